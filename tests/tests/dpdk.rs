//! Neither end is ours: DPDK's testpmd is the tenant, the far host's kernel pings it.

use std::process::Command;

use peregrine_control::lab::Process;
use peregrine_tests::{Daemon, Net, Tenant, cores, ping, totals, until};

/// testpmd at an endpoint. It answers ARP and ICMP echo.
fn testpmd(net: &Net, tenant: Tenant) -> Process {
    let (worker, other) = cores();
    let device = format!(
        "--vdev=net_memif0,role=client,id={},socket-abstract=no,socket={},bsize=2048,rsize=10,mac={}",
        tenant.id,
        net.file("memif.sock").display(),
        tenant.mac
    );
    let mut command = Command::new("dpdk-testpmd");
    // What it keeps in files goes where everything of this test goes.
    command.env("RUNTIME_DIRECTORY", net.file("dpdk"));
    command.args(["--no-huge", "-m", "512", "--no-pci", "--no-shconf", "--no-telemetry", &device]);
    // Its main thread waits only, so it may share the worker's core; the other one polls.
    command.args(["-l", &format!("{other},{worker}"), "--main-lcore", &worker.to_string(), "--"]);
    command.args(["--forward-mode=icmpecho", "--auto-start", "--total-num-mbufs=16384", "--nb-cores=1"]);
    // It would throw away what comes before it has begun; and without statistics it ends with its standard input.
    command.args(["--no-flush-rx", "--stats-period=1", "--no-lsc-interrupt"]);
    Process::start(&mut command).unwrap()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_far_kernel_pings_a_dpdk_tenant_also_after_that_was_killed() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    for round in 1..=2 {
        let tenant = testpmd(&net, Tenant::WEB);
        daemon.wait_for_tenant(0, true);
        daemon.wait_for_next_hops();
        // Connected is not polling: until then it offers no buffers, and what comes is dropped and counted.
        until("testpmd to answer", || ping(&net.far, Tenant::WEB.ip, 1, 1.0) == 1);
        assert_eq!(ping(&net.far, Tenant::WEB.ip, 100, 0.01), 100, "round {round}");
        let stats = daemon.at_rest();
        assert!(stats["endpoints"][0]["to_tenant"]["frames"].as_u64() >= Some(100 * round), "{stats}");
        assert!(totals(&stats, "uplink_tx") >= 100 * round, "{stats}");
        assert_eq!(stats["endpoints"][0]["bad_descriptors"], 0);
        drop(tenant); // SIGKILL
        daemon.wait_for_tenant(0, false);
    }
    assert_eq!(daemon.status()["endpoints"][0]["attached"], 2);
    let stats = daemon.at_rest();
    println!("dpdk: 2 x 100 of 100 answered; drops: {}", stats["drops"]);
}
