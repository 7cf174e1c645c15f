//! What `stats` tells of each class while engines run: every frame is counted for one class, whoever runs its steps, and how long frames
//! wait is seen where they wait.

mod rig;

use std::time::{Duration, Instant};

use peregrine_dataplane::engine::{Engine, NextHop};
use peregrine_dataplane::plan::{ClassPlan, PlacementMode, Plan, RulePlan, WorkOrder, WorkerPlan};
use peregrine_dataplane::replay::{ReplayFrame, STAMP};
use peregrine_dataplane::stats::{ClassEntry, Stats};
use peregrine_dataplane::types::{Class, CoreId, MacAddr, NetworkId, RemoteId, SourceId, UplinkId};
use peregrine_memif::{ClientConfig, Interface, ServerConfig};
use rig::{BLUE, DB, LONER, REMOTE_A, WEB, flow, mac, plan, rings, vxlan};

const PATIENCE: Duration = Duration::from_secs(60);
const FAR: u8 = 0x77;
const FLOWS: usize = 33;

/// Two classes, the first by source ports below 100; on so many workers, each step of a flow on the next one.
fn classed(workers: usize, order: WorkOrder) -> Plan {
    let cores = core_affinity::get_core_ids().unwrap();
    let worker = |n: usize| WorkerPlan::on(CoreId(cores[n % cores.len()].id));
    let mut plan =
        Plan { workers: (0..workers).map(worker).collect(), placement: PlacementMode::Static, ..plan() };
    plan.uplinks[0].ring_size = 1024;
    plan.classes.list[0] = ClassPlan { order, share: 10, dscp: 46, ..ClassPlan::new("voice") };
    plan.classes.rules = vec![RulePlan { source_port: Some(1..=99), ..RulePlan::any(Class(0)) }];
    // So that there is one who only floods.
    plan.endpoints[LONER.index()].network = NetworkId(0);
    plan.endpoints[LONER.index()].mac = mac(3);
    plan
}

/// Flows of both classes to one tenant and to all; so many that not every burst begins with the same.
fn frames() -> Vec<ReplayFrame> {
    let frame = |(number, port): (u32, u16)| {
        let to = if number.is_multiple_of(8) { MacAddr::BROADCAST } else { mac(1) };
        let mut bytes = vxlan(REMOTE_A, BLUE, &flow(mac(FAR), to, port, 22 + STAMP));
        bytes[40..42].fill(0); // no outer checksum: the stamp would make it wrong
        ReplayFrame { flow: number, bytes }
    };
    (0..).zip((1..=16).chain(101..=117)).map(frame).collect()
}

/// One who sends by two queues, of each class the same by both, and takes nothing: the rings to him fill up.
struct Sender(Interface);

impl Sender {
    fn attach(engine: &mut Engine) -> Sender {
        let config = ClientConfig { queue_pairs: 2, ..ClientConfig::default() };
        let (client, server) = peregrine_memif::pair(config, ServerConfig::default()).unwrap();
        engine.attach(LONER, rings(server)).unwrap();
        Sender(client)
    }

    /// As much as there is room for.
    fn send(&mut self) {
        let packets = [1, 101].map(|port| flow(mac(3), mac(FAR), port, 30));
        for tx in &mut self.0.tx {
            while packets.iter().all(|packet| tx.push(packet).is_ok()) {}
            tx.flush().unwrap();
        }
    }
}

/// Runs until `is_enough`; what was counted at the end.
fn run(plan: &Plan, is_enough: impl Fn(&Stats) -> bool) -> Stats {
    let mut streams = vec![frames()];
    streams.resize(plan.workers.len(), Vec::new());
    let mut engine = Engine::replay(plan, streams).unwrap();
    let hop = NextHop { uplink: UplinkId(0), destination: mac(0xaa), source: mac(0xbb) };
    let path = hop.path(plan.uplinks[0].local(), 1500);
    engine.set_paths([0, 1].map(|remote| (RemoteId(remote), SourceId(0), vec![path])));
    for endpoint in [WEB, DB] {
        engine.attach_discard(endpoint, FLOWS).unwrap();
    }
    let mut sender = Sender::attach(&mut engine);
    let deadline = Instant::now() + PATIENCE;
    while !is_enough(&engine.stats()) {
        assert!(Instant::now() < deadline, "{:?}", engine.stats());
        sender.send();
        assert_eq!(engine.poll(), []);
        std::thread::yield_now();
    }
    engine.stop()
}

/// Each class is conserved, and all of them together are what was counted.
fn check(stats: &Stats) {
    let totals = stats.totals;
    assert!(totals.conserved, "{totals:?}");
    assert!(stats.classes.iter().all(|class| class.in_flight == 0), "{:?}", stats.classes);
    let sum = |of: fn(&ClassEntry) -> u64| stats.classes.iter().map(of).sum::<u64>();
    assert_eq!(sum(|class| class.frames.uplink_rx), totals.uplink_rx.frames);
    assert_eq!(sum(|class| class.frames.tenant_rx), totals.tenant_rx.frames);
    assert_eq!(sum(|class| class.frames.replicated), totals.replicated);
    assert_eq!(sum(|class| class.frames.uplink_tx), totals.uplink_tx.frames);
    assert_eq!(sum(|class| class.frames.tenant_tx), totals.tenant_tx.frames);
    assert_eq!(sum(|class| class.frames.dropped), totals.dropped);
    for class in &stats.classes {
        let frames = class.frames;
        assert!(frames.uplink_rx > 0 && frames.tenant_rx > 0 && frames.uplink_tx > 0, "{class:?}");
        assert!(frames.tenant_tx > 0 && frames.replicated > 0 && frames.dropped > 0, "{class:?}");
        for waited in &class.waiting {
            let in_order = [0.0, waited.p50_us, waited.p99_us, waited.max_us];
            assert!(waited.samples > 0 && in_order.is_sorted(), "{waited:?}");
        }
    }
}

/// Waits of this class before these were timed.
fn has_waited(stats: &Stats, class: usize, before: &[&str]) -> bool {
    let waiting = &stats.classes[class].waiting;
    before.iter().all(|before| waiting.iter().any(|waited| waited.stage == *before))
}

#[test]
fn on_one_worker_frames_wait_between_all_steps() {
    for order in [WorkOrder::Sync, WorkOrder::Batch] {
        let all = ["collect", "classify", "decap", "lookup", "deliver", "encap", "transmit"];
        // The two have a share of each burst, and the first frame of one tells its class.
        let stats = run(&classed(1, order), |stats| {
            (0..2).all(|class| has_waited(stats, class, &all[1..])) && has_waited(stats, 0, &all)
        });
        check(&stats);
        let described: Vec<_> =
            stats.classes.iter().map(|class| (&*class.name, class.order, class.share, class.dscp)).collect();
        assert_eq!(described, [("voice", Some(order), 10, 46), ("normal", None, 0, 0)]);
    }
}

#[test]
fn between_workers_frames_wait_in_rings() {
    for order in [WorkOrder::Sync, WorkOrder::Fifo] {
        let between = ["decap", "lookup", "deliver", "transmit"];
        let stats = run(&classed(3, order), |stats| (0..2).all(|class| has_waited(stats, class, &between)));
        check(&stats);
    }
}

#[test]
fn where_no_class_is_preferred_nothing_waits_but_in_rings() {
    let enough = |stats: &Stats| stats.totals.uplink_rx.frames > 100_000 && stats.workers[0].turns > 10_000;
    let mut plan = classed(1, WorkOrder::Fifo);
    let stats = run(&plan, |stats| enough(stats));
    check(&stats);
    assert!(stats.classes.iter().all(|class| class.waiting.is_empty()), "{:?}", stats.classes);
    plan.classes.rules.clear();
    let stats = run(&plan, |stats| enough(stats));
    assert!(stats.totals.conserved && stats.classes.iter().all(|class| class.in_flight == 0));
    assert_eq!(stats.classes[0].frames, Default::default());
    assert_eq!(stats.classes[1].frames.uplink_rx, stats.totals.uplink_rx.frames);
}
