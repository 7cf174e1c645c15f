//! `peregrine-pktgen` between two tenants of one Peregrine, both over memif: what is sent arrives, over IPv4 and IPv6.

use std::process::Command;

use peregrine_control::lab::Process;
use peregrine_tests::{Daemon, Net, PATIENCE, Tenant, cores, program, report, totals};
use serde_json::Value;

/// The tenants' addresses over IPv6.
const FROM_IP6: &str = "fd42::1";
const TO_IP6: &str = "fd42::3";

/// `peregrine-pktgen` at this tenant's endpoint.
fn pktgen(net: &Net, command: &str, tenant: &Tenant) -> Command {
    let mut pktgen = Command::new(program("peregrine-pktgen"));
    pktgen.args([command, "--json", "--quiet", "--id", &tenant.id.to_string()]);
    pktgen.arg("--memif").arg(net.file("memif.sock")).args(["--core", &cores().1.to_string()]);
    pktgen
}

fn start(net: &Net, command: &mut Command, tenant: &Tenant) -> Process {
    let mut process = Process::start(command).unwrap_or_else(|error| panic!("{error}"));
    process.wait_for_line("ready", PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    tenant.wait_until_served(net);
    process
}

/// Sends from the one tenant to the other and reads the report.
fn send(net: &Net, source: &str, destination: &str, more: &[&str]) -> Value {
    let (from, to) = (Tenant::WEB, Tenant::DB);
    let mut command = pktgen(net, "send", &from);
    command.args(["--inner-source-mac", from.mac, "--inner-destination-mac", to.mac]);
    command.args(["--inner-source", source, "--inner-destination", destination]).args(more);
    let process = Process::start(&mut command).unwrap_or_else(|error| panic!("{error}"));
    let text = process.finish(PATIENCE, &|| false).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_str(&text).unwrap()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn round_trips_between_tenants_are_measured_over_ipv4_and_ipv6() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB, Tenant::DB]);
    let to = Tenant::DB;
    let mut command = pktgen(&net, "echo", &to);
    let echo = start(&net, command.args(["--mac", to.mac, "--ip", to.ip, "--ip6", TO_IP6]), &to);
    let more =
        ["--rtt", "--no-floor", "--rate", "1000", "--count", "300", "--flows", "5", "--size", "80:1,201:1"];
    for (source, destination) in [(Tenant::WEB.ip, to.ip), (FROM_IP6, TO_IP6)] {
        let sent = send(&net, source, destination, &more);
        let counted =
            ["sent", "received", "lost", "reordered", "duplicates", "not_ours"].map(|key| sent[key].as_u64());
        assert_eq!(counted, [300, 300, 0, 0, 0, 0].map(Some), "{source}: {sent:#}");
        let us = ["p50", "p90", "p99", "p999", "max"].map(|key| sent["rtt_us"][key].as_f64().unwrap());
        assert!(us[0] > 0.0 && us.is_sorted(), "{source}: {sent:#}");
    }
    let stats = daemon.at_rest();
    assert_eq!(["tenant_rx", "tenant_tx", "dropped"].map(|key| totals(&stats, key)), [1200, 1200, 0]);
    assert_eq!(report(echo)["answered"]["udp"], 600);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn loss_and_latency_of_flows_over_ipv6_are_tracked() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB, Tenant::DB]);
    let mut command = pktgen(&net, "sink", &Tenant::DB);
    let sink =
        start(&net, command.args(["--no-floor", "--count", "300", "--class", "all=ports:9000"]), &Tenant::DB);
    // Those of 1500 bytes do not fit the network: they are lost, and each flow's next packet shows it.
    let more = ["--rate", "1000", "--count", "400", "--flows", "4", "--size", "80:3,1500:1"];
    let source = format!("[{FROM_IP6}-fd42::2]:20000-20001");
    let sent = send(&net, &source, &format!("[{TO_IP6}]:9000"), &more);
    assert_eq!(sent["sent"], 400, "{sent:#}");
    let stats = daemon.at_rest();
    assert_eq!(daemon.drops("inner_too_long"), 100, "{stats:#}");
    let text = sink.finish(PATIENCE, &|| false).unwrap_or_else(|error| panic!("{error}"));
    let got: Value = serde_json::from_str(&text).unwrap();
    let counted = ["received", "flows", "not_ours", "duplicates"].map(|key| got[key].as_u64());
    assert_eq!(counted, [300, 4, 0, 0].map(Some), "{got:#}");
    let lost = got["lost"].as_u64().unwrap();
    // A flow's last packets may be among the lost: nothing came after them.
    assert!(lost > 0 && lost <= 100, "{got:#}");
    let all = &got["per_class"][0];
    assert_eq!((&all["class"], &all["received"]), (&"all".into(), &300.into()), "{got:#}");
    assert!(got["latency_us"]["p50"].as_f64().unwrap() > 0.0, "{got:#}");
    assert_eq!(got["per_flow"].as_array().unwrap().len(), 4, "{got:#}");
}
