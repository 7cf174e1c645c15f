//! `peregrine-pktgen search` against Peregrine: figures that do not contradict one another, however busy the machine is.

use std::process::Command;

use peregrine_control::lab::Process;
use peregrine_tests::{Daemon, FAR, NEAR, Net, PATIENCE, Tenant, VNI, cores, program, until};
use rustix::process::Signal;
use serde_json::Value;

const SHORT: [&str; 4] = ["--trial-seconds", "0.1", "--sum-seconds", "0.3"];

/// A search from the far host to this tenant.
fn search(net: &Net, to: &Tenant, more: &[&str]) -> Command {
    let mut command = net.far.command(program("peregrine-pktgen"));
    command.args(["search", "--json", "--interface", FAR.1, "--mode", "copy", "--next-hop", NEAR.2]);
    command.args(["--local", FAR.0, "--remote", NEAR.0, "--vni", &VNI.to_string()]);
    command.args(["--inner-source-mac", "02:00:00:00:42:09", "--inner-source", "10.42.0.9"]);
    command.args(["--inner-destination-mac", to.mac, "--inner-destination", &format!("{}:9000", to.ip)]);
    command.args(["--first-trial-seconds", "0.05"]);
    command.args(["--latency-seconds", "0.1", "--core", &cores().1.to_string()]).args(more);
    command
}

fn memif_sink(net: &Net, tenant: &Tenant) -> [String; 6] {
    let (id, core) = (tenant.id.to_string(), cores().1.to_string());
    let socket = net.file("memif.sock").display().to_string();
    ["--sink-memif".into(), socket, "--sink-id".into(), id, "--sink-core".into(), core]
}

fn finish(command: &mut Command) -> Value {
    let process = Process::start(command).unwrap_or_else(|error| panic!("{error}"));
    let text = process.finish(4 * PATIENCE, &|| false).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(text.lines().count(), 1, "one object: {text}");
    serde_json::from_str(&text).unwrap()
}

fn number(value: &Value, key: &str) -> f64 {
    value[key].as_f64().unwrap_or_else(|| panic!("no {key} in {value:#}"))
}

/// What holds for each size, whatever was found.
fn is_consistent(size: &Value, rate_max: f64) {
    let (ndr, pdr) = (&size["ndr"], &size["pdr"]);
    assert!(number(ndr, "pps") <= number(pdr, "pps"), "{size:#}");
    assert!(number(pdr, "pps") <= rate_max.min(number(size, "max_offered_pps") * 1.01 + 1.0), "{size:#}");
    assert!(number(size, "max_received_pps") > 0.0, "nothing arrived: {size:#}");
    assert!(number(size, "max_received_pps") <= number(size, "max_offered_pps"), "{size:#}");
    let trials = size["trials"].as_array().unwrap();
    assert!(!trials.is_empty() && trials.len() <= 200);
    for trial in trials {
        let (sent, received) = (number(trial, "sent"), number(trial, "received"));
        assert!(received <= sent, "{trial}");
        assert!((number(trial, "loss_ratio") - (sent - received) / sent.max(1.0)).abs() < 1e-9, "{trial}");
    }
    let ends = ["device", "generator", "rate_max", "nothing", "unconfirmed"];
    for found in [ndr, pdr] {
        assert!(ends.contains(&found["end"].as_str().unwrap()), "{found}");
    }
    if number(pdr, "pps") >= 10.0 {
        let latency = size["latency"].as_array().unwrap();
        let percents: Vec<u64> = latency.iter().map(|at| at["percent"].as_u64().unwrap()).collect();
        assert_eq!(percents, [10, 50, 90], "{size:#}");
        for at in latency.iter().filter(|at| number(at, "received") > 0.0) {
            assert!(number(&at["latency_us"], "p50") > 0.0, "{at}");
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_search_through_peregrine_is_consistent() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    let sink = memif_sink(&net, &Tenant::WEB);
    let mut command = search(&net, &Tenant::WEB, &["--rate", "20000", "--rate-min", "500", "--seconds", "5"]);
    let report = finish(command.args(SHORT).args(sink).args(["--sizes", "64,1400", "--flows", "4"]));
    assert_eq!((&report["command"], &report["ended"]), (&"search".into(), &"done".into()));
    assert_eq!((&report["flows"], &report["latency_of"]), (&4.into(), &"one_way".into()));
    let sizes = report["sizes"].as_array().unwrap();
    assert_eq!(sizes.iter().map(|size| number(size, "bytes")).collect::<Vec<_>>(), [64.0, 1400.0]);
    sizes.iter().for_each(|size| is_consistent(size, 20_000.0));
    // What the daemon gave its tenant is what was counted, of all sizes, but for what was late for its trial.
    let delivered = daemon.stats()["totals"]["tenant_tx"]["frames"].as_u64().unwrap();
    let trials = sizes.iter().flat_map(|size| size["trials"].as_array().unwrap());
    let counted: f64 = trials.map(|trial| number(trial, "received")).sum();
    assert!(counted <= delivered as f64, "{counted} counted, {delivered} delivered");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_search_by_round_trips_counts_the_answers() {
    let net = Net::new();
    let _daemon = Daemon::start(&net, &[Tenant::WEB]);
    let _echo = Tenant::WEB.echo(&net);
    let mut command = search(&net, &Tenant::WEB, &["--rate", "2000", "--rate-min", "500", "--seconds", "4"]);
    let report = finish(command.args(SHORT).arg("--rtt"));
    assert_eq!(report["latency_of"], "round_trip");
    is_consistent(&report["sizes"][0], 2_000.0);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_interrupted_search_reports_what_it_found() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    let sink = memif_sink(&net, &Tenant::WEB);
    let mut command = search(&net, &Tenant::WEB, &["--rate", "5000", "--trial-seconds", "20"]);
    let mut process = Process::start(command.args(sink).args(["--sum-seconds", "60"])).unwrap();
    process.wait_for_line("64 bytes, trial 2", PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    process.signal(Signal::INT);
    let text = process.finish(PATIENCE, &|| false).unwrap_or_else(|error| panic!("{error}"));
    let report: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(report["ended"], "signal");
    assert!(report["sizes"][0]["trials"].as_array().unwrap().len() >= 2, "{report:#}");
    until("the tenant to be gone", || daemon.stats()["endpoints"][0]["connected"] == false);
}
