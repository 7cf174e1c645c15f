//! Neither end is ours: DPDK's testpmd is the tenant, the far host's kernel pings it.

use peregrine_control::lab::Process;
use peregrine_tests::{Daemon, Net, Tenant, answering_testpmd, ping, ping_patiently, totals, until};

/// testpmd at an endpoint.
fn testpmd(net: &Net, tenant: Tenant) -> Process {
    let socket = net.file("memif.sock");
    let device =
        format!("role=client,id={},socket={},rsize=10,mac={}", tenant.id, socket.display(), tenant.mac);
    answering_testpmd(net, &device, 1)
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
        assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 100, 0.01), 100, "round {round}");
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
