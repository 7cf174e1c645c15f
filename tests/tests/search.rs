//! `peregrine-pktgen search` against Peregrine: figures that do not contradict one another, however busy the machine is.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use peregrine_control::lab::Process;
use peregrine_tests::{Daemon, FAR, NEAR, Net, PATIENCE, Tenant, VNI, cores, program, totals, until};
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

/// A search from one tenant of this host to the other.
fn memif_search(net: &Net, more: &[&str]) -> Command {
    let socket = net.file("memif.sock");
    let (from, to, core) = (Tenant::WEB, Tenant::DB, cores().1.to_string());
    let mut command = Command::new(program("peregrine-pktgen"));
    command.args(["search", "--json", "--id", &from.id.to_string(), "--sink-id", &to.id.to_string()]);
    command.arg("--memif").arg(&socket).arg("--sink-memif").arg(socket);
    command.args(["--inner-source-mac", from.mac, "--inner-source", from.ip]);
    command.args(["--inner-destination-mac", to.mac, "--inner-destination", to.ip]);
    command.args(["--first-trial-seconds", "0.05", "--latency-seconds", "0.1", "--sink-wait", "pause"]);
    command.args(["--core", &core, "--sink-core", &core]).args(SHORT).args(more);
    command
}

/// A daemon whose tenants have as many queue pairs.
fn daemon_with_queues(net: &Net, queue_pairs: u32) -> Daemon {
    let mut config = Daemon::config(net, &[FAR.0], &[]);
    for (tenant, queue_pairs) in [(Tenant::WEB, queue_pairs), (Tenant::DB, 1)] {
        let socket = net.file("memif.sock");
        let memif =
            format!("socket = \"{}\", id = {}, queue_pairs = {queue_pairs}", socket.display(), tenant.id);
        config += &tenant.endpoint(&memif);
    }
    Daemon::start_with(net, &config)
}

/// What all trials sent and what arrived of it, with the measurements of latency.
fn sent_and_received(size: &Value) -> (u64, u64) {
    let all = ["trials", "latency"].into_iter().flat_map(|key| size[key].as_array().unwrap());
    all.fold((0, 0), |sum, trial| {
        (sum.0 + number(trial, "sent") as u64, sum.1 + number(trial, "received") as u64)
    })
}

/// What holds for each size, whatever was found.
fn is_consistent(size: &Value, rate_max: f64) {
    let (ndr, pdr) = (&size["ndr"], &size["pdr"]);
    assert!(number(ndr, "pps") <= number(pdr, "pps"), "{size:#}");
    assert!(number(pdr, "pps") <= rate_max.min(number(size, "max_offered_pps") * 1.1 + 1.0), "{size:#}");
    assert!(number(size, "max_received_pps") > 0.0, "nothing arrived: {size:#}");
    assert!(number(size, "max_received_pps") <= number(size, "max_offered_pps"), "{size:#}");
    let trials = size["trials"].as_array().unwrap();
    assert!(!trials.is_empty() && trials.len() <= 200);
    for trial in trials {
        let (sent, received) = (number(trial, "sent"), number(trial, "received"));
        assert!(received <= sent && sent <= number(trial, "due"), "{trial}");
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

#[test]
#[ignore = "needs root: make test runs it"]
fn a_search_between_tenants_accounts_for_every_frame() {
    let net = Net::new();
    let daemon = daemon_with_queues(&net, 1);
    let more = [
        "--rate",
        "20000",
        "--rate-min",
        "500",
        "--seconds",
        "4",
        "--size",
        "60:7,590:4,1400:1",
        "--flows",
        "50",
    ];
    let mut command = memif_search(&net, &more);
    let report = finish(command.args(["--flow-choice", "zipf:1.1", "--arrivals", "poisson"]));
    assert_eq!((&report["ended"], &report["latency_of"]), (&"done".into(), &"one_way".into()));
    let [size] = &report["sizes"].as_array().unwrap()[..] else { panic!("one size: {report:#}") };
    assert_eq!((&size["bytes"], &size["sizes"]), (&348.into(), &"60:7,590:4,1400:1".into()));
    is_consistent(size, 20_000.0);
    // Frames in are frames out and those with a reason; what was counted is part of what was delivered.
    let stats = daemon.at_rest();
    let (sent, received) = sent_and_received(size);
    assert_eq!(totals(&stats, "tenant_rx"), sent, "{size:#}");
    let (delivered, dropped) = (totals(&stats, "tenant_tx"), totals(&stats, "dropped"));
    assert_eq!(delivered + dropped, sent, "{stats:#}");
    assert!(received <= delivered, "{received} counted, {delivered} delivered");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn two_threads_share_the_rate_and_the_flows() {
    let net = Net::new();
    let daemon = daemon_with_queues(&net, 2);
    let more = ["--rate", "10000", "--rate-min", "500", "--seconds", "3", "--threads", "2", "--flows", "6"];
    let report = finish(&mut memif_search(&net, &more));
    let size = &report["sizes"][0];
    is_consistent(size, 10_000.0);
    // Half of the rate each: together no more than all of it, and one packet for each thread.
    for trial in size["trials"].as_array().unwrap() {
        let most = number(trial, "pps") * number(trial, "seconds") + 2.0;
        assert!(number(trial, "sent") <= most, "{trial}");
    }
    assert_eq!(totals(&daemon.at_rest(), "tenant_rx"), sent_and_received(size).0);
    // As many threads as there are queue pairs, and no more.
    let refused = memif_search(&net, &["--threads", "3", "--flows", "6"]).output().unwrap();
    let said = String::from_utf8(refused.stderr).unwrap();
    assert_eq!((refused.status.code(), said.lines().count()), (Some(2), 1), "{said}");
    assert!(said.contains("2 queue pairs") && refused.stdout.is_empty(), "{said}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_sweep_with_a_profile_searches_each_size_and_says_what_it_ignores() {
    let net = Net::new();
    let _daemon = daemon_with_queues(&net, 1);
    let profile = net.file("profile.toml");
    std::fs::write(&profile, "rate = 1234\ncount = 7\nsizes = \"imix\"\n[flows]\ncount = 9\n").unwrap();
    let more = ["--rate", "5000", "--rate-min", "500", "--seconds", "2", "--sizes", "64,512,1400"];
    let mut command = memif_search(&net, &more);
    let output = command.arg("--profile").arg(profile).output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(said.lines().any(|line| line.starts_with("warning: ") && line.contains("rate, count")), "{said}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(report["profile_unused"], serde_json::json!(["rate", "count"]));
    assert_eq!(report["flows"], 9);
    let sizes = report["sizes"].as_array().unwrap();
    assert_eq!(sizes.iter().map(|size| number(size, "bytes")).collect::<Vec<_>>(), [64.0, 512.0, 1400.0]);
    sizes.iter().for_each(|size| is_consistent(size, 5_000.0));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_daemon_that_goes_away_leaves_what_was_found() {
    let net = Net::new();
    let daemon = daemon_with_queues(&net, 1);
    let mut command = memif_search(&net, &["--rate", "2000"]);
    let child =
        command.args(["--seconds", "60", "--sizes", "64,512"]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let mut said = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(said.by_ref().any(|line| line.starts_with("64 bytes, trial 2")));
    daemon.kill();
    let rest: Vec<String> = said.collect();
    let output = child.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!((output.status.code(), report["ended"].as_str()), (Some(1), Some("failure")), "{rest:?}");
    assert!(report["sizes"][0]["trials"].as_array().unwrap().len() >= 2, "{report:#}");
    let errors: Vec<_> = rest.iter().filter(|line| line.starts_with("error: ")).collect();
    assert!(matches!(errors[..], [error] if error.contains("memif server")), "{rest:?}");
}
