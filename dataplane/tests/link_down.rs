//! An engine on an interface that is switched off: what lies there holds up nobody else.

mod rig;
mod veth;

use std::net::IpAddr;

use peregrine_dataplane::engine::{Engine, NextHop};
use peregrine_dataplane::plan::WorkerPlan;
use peregrine_dataplane::types::{CoreId, MacAddr, RemoteId, SourceId, UplinkId};
use peregrine_memif::{ClientConfig, ServerConfig};
use rig::{WEB, inner, mac, plan, rings};
use veth::{OUR_ADDRESS, Wire, run, until};

/// Two workers, of which the second has no queue.
fn two_workers() -> Engine {
    let cores = core_affinity::get_core_ids().unwrap();
    let mut plan = plan();
    plan.workers = (0..2).map(|n| WorkerPlan::on(CoreId(cores[n].id))).collect();
    (plan.uplinks[0].interface, plan.uplinks[0].locals) = ("a0".into(), vec![IpAddr::V4(OUR_ADDRESS)]);
    let mut engine = Engine::start(&plan).unwrap();
    let hop = NextHop {
        uplink: UplinkId(0),
        destination: MacAddr([2, 0, 0, 0, 9, 2]),
        source: MacAddr([2, 0, 0, 0, 9, 1]),
    };
    let path = hop.path(IpAddr::V4(OUR_ADDRESS), 1500);
    engine.set_paths([0, 1].map(|remote| (RemoteId(remote), SourceId(0), vec![path])));
    engine
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_worker_leaves_though_frames_lie_at_an_interface_that_is_down() {
    let _wire = Wire::new(1);
    let mut engine = two_workers();
    let leaves = engine.cores()[1];
    let (mut client, server) =
        peregrine_memif::pair(ClientConfig::default(), ServerConfig::default()).unwrap();
    engine.attach(WEB, rings(server)).unwrap();
    run("ip link set a0 down");
    client.tx[0].push(&inner(mac(1), MacAddr::BROADCAST, 100)).unwrap();
    client.tx[0].flush().unwrap();
    until("frames to lie there", || {
        assert_eq!(engine.poll(), []);
        let stats = engine.stats();
        stats.totals.uplink_tx.frames == 2 && stats.workers[0].kicks_link_down > 0
    });
    engine.remove_worker(leaves).unwrap();
    until("the worker to have left", || {
        assert_eq!(engine.poll(), []);
        engine.stats().workers.len() == 1
    });
    assert!(engine.stop().totals.conserved);
}
