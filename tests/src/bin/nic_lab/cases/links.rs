//! Links that go and come, NICs that go and come, and what a NIC lets in.

use std::time::Duration;

use peregrine_control::lab::{Namespace, Process};
use peregrine_tests::{FAR, FAR_OVERLAY, NEAR, PATIENCE, Tenant, ping, run, until, within};
use rustix::process::Signal;

use super::nothing_lost;
use crate::bench::{Bench, WEB, pci_device};
use crate::kinds::Kind;

/// Pings all the time, until told to stop.
fn pinging(from: &Namespace, to: &str) -> Process {
    let mut command = from.command("ping");
    command.args(["-n", "-q", "-i", "0.005", to]);
    Process::start(&mut command).unwrap_or_else(|error| panic!("{error}"))
}

fn stop(pinging: Process) {
    pinging.signal(Signal::INT);
    // Its exit status says whether there were answers, which is no matter here.
    let _answers = pinging.finish(PATIENCE, &|| false);
}

/// Under traffic both ways: the near cable pulled and put in again, and each interface taken down and up.
pub fn cable_and_interface(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let config = bench.config(&[]);
    let forgets = kind != Kind::E1000e && forgets_programs(&bench);
    assert_eq!(forgets, kind == Kind::Vmxnet3, "of this driver something else is known");
    let daemon = bench.start(&config);
    bench.pings(20);
    let traffic = [pinging(&bench.net.far, WEB), pinging(&bench.web, FAR_OVERLAY.0)];
    bench.cable(false);
    bench.cable(true);
    bench.pings_beside(50);
    let hosts: &[_] = match forgets {
        true => &[(&bench.net.far, FAR.1)],
        false => &[(&bench.net.near, NEAR.1), (&bench.net.far, FAR.1), (&bench.net.near, NEAR.1)],
    };
    for &(host, device) in hosts {
        down_and_up(&bench, host, device);
        bench.pings_beside(50);
    }
    if forgets {
        down_and_up(&bench, &bench.net.near, NEAR.1);
        let answers = within(Duration::from_secs(4), || ping(&bench.net.far, WEB, 1, 1.0) == 1);
        assert!(
            !answers,
            "the driver forgets programs, and ours still runs: let this case be as the others'"
        );
    }
    traffic.into_iter().for_each(stop);
    if forgets {
        daemon.at_rest();
        daemon.stop();
        let daemon = bench.start(&config);
        bench.pings(100);
        nothing_lost(&daemon);
        return "1 cable, 1 interface; known: the driver forgets any program when the near interface goes down and up, and \
                a daemon that is started then works"
            .into();
    }
    bench.pings(100);
    let stats = daemon.at_rest();
    let kicks: u64 =
        stats["workers"].as_array().into_iter().flatten().filter_map(|w| w["kicks_link_down"].as_u64()).sum();
    format!(
        "1 cable, {} times an interface; {kicks} wake-ups found it down; dropped: {}",
        hosts.len(),
        stats["drops"]
    )
}

fn down_and_up(bench: &Bench, host: &Namespace, device: &str) {
    host.ip(&format!("link set {device} down")).expect("down");
    bench.wait_for_carrier(host, device, false);
    host.ip(&format!("link set {device} up")).expect("up");
    bench.wait_for_carrier(host, device, true);
}

/// Whether the driver, with nothing of ours, runs a program no more when its interface was down and up: then packets pass one that drops all
/// of them, while the kernel says that it is attached. vmxnet3's does so (Linux 7.2), and when the MTU changes, too.
fn forgets_programs(bench: &Bench) -> bool {
    let near = &bench.net.near;
    let passes = || within(Duration::from_secs(3), || ping(&bench.net.far, NEAR.0, 1, 1.0) == 1);
    near.ip("link set dev near0 xdpdrv obj /lab/drop.o sec xdp").expect("attached");
    assert_eq!(ping(&bench.net.far, NEAR.0, 5, 0.01), 0, "all is dropped");
    down_and_up(bench, near, NEAR.1);
    let forgets = passes();
    let shown = near.ip("link show near0").expect("a NIC");
    assert!(shown.contains("drop_all"), "{shown}");
    near.ip("link set dev near0 xdpdrv off").expect("detached");
    forgets
}

/// The NIC is taken out under traffic, the daemon stays, says so, and ends when asked; with the NIC back another one starts.
pub fn removed(kind: Kind) -> String {
    let pci = pci_device(NEAR.2);
    let bench = Bench::new(kind);
    let daemon = bench.start(&bench.config(&[]));
    bench.pings(20);
    let traffic = [pinging(&bench.net.far, WEB), pinging(&bench.web, FAR_OVERLAY.0)];
    std::fs::write(pci.join("remove"), "1").expect("removed");
    let is_gone = || bench.net.near.ip(&format!("link show {}", NEAR.1)).is_err();
    until("the NIC to be gone", is_gone);
    until("the daemon to say that it is gone", || daemon.status()["uplinks"][0]["link"].is_null());
    assert!(!within(Duration::from_secs(1), || !daemon.is_alive()), "the daemon ended");
    daemon.at_rest();
    traffic.into_iter().for_each(stop);
    daemon.stop();
    drop(bench);

    std::fs::write("/sys/bus/pci/rescan", "1").expect("looked for again");
    let bench = Bench::new(kind);
    let daemon = bench.start(&bench.config(&[]));
    bench.pings(100);
    nothing_lost(&daemon);
    "the daemon stayed, showed that the link is gone, and ended when asked; with the NIC back another one works".into()
}

/// Nobody has made the NIC promiscuous, and frames for tenants come, whose addresses it has never heard of; promiscuous it does as well.
pub fn filters(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let daemon = bench.start(&bench.config(&[]));
    let promiscuity = || {
        let text = bench.net.near.ip(&format!("-d link show {}", NEAR.1)).expect("a NIC");
        text.split("promiscuity ").nth(1).and_then(|rest| rest.split_whitespace().next().map(str::to_string))
    };
    assert_eq!(promiscuity().as_deref(), Some("0"));
    bench.pings(200);
    // Another tenant's address, while it runs: nothing that the NIC could know.
    let other = "02:00:00:00:42:77";
    let control = bench.net.file("control.sock");
    let container = bench.net.host("other");
    let mut command = bench.net.near.command(peregrine_tests::program("peregrine"));
    command.args([
        "endpoint",
        "add",
        "other",
        "--network",
        "blue",
        "--mac",
        other,
        "--address",
        "10.42.0.77",
    ]);
    command.args(["--namespace", container.name(), "--socket"]).arg(control);
    run(&mut command);
    assert_eq!(peregrine_tests::ping_patiently(&bench.net.far, "10.42.0.77", 100, 0.003), 100);
    for state in ["on", "off"] {
        bench.net.near.ip(&format!("link set {} promisc {state}", NEAR.1)).expect("set");
        bench.pings(100);
    }
    assert_ne!(Tenant::WEB.mac, other);
    nothing_lost(&daemon);
    "500 pings to 2 addresses, promiscuous and not".into()
}
