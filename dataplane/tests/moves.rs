//! Flows that change their way thousands of times while they run at full rate: none of their packets is overtaken, none is lost
//! without a trace. With the guard left out (`--features unguarded`) packets are overtaken, and the same test says so.

mod rig;

use std::sync::Arc;
use std::time::{Duration, Instant};

use peregrine_dataplane::discard::DiscardCounters;
use peregrine_dataplane::engine::Engine;
use peregrine_dataplane::frame::bucket;
use peregrine_dataplane::placement::{hashed, in_turn};
use peregrine_dataplane::plan::{PlacementMode, Plan, WorkerPlan};
use peregrine_dataplane::replay::{ReplayFrame, STAMP};
use peregrine_dataplane::stats::Stats;
use peregrine_dataplane::types::{CoreId, EndpointId, Route, WorkerId};
use peregrine_dataplane::wire::flow::flow_hash;
use rig::{BLUE, DB, REMOTE_A, WEB, flow, mac, plan, vxlan};

const PATIENCE: Duration = Duration::from_secs(60);

/// So many workers, on the cores that there are in turn.
fn workers(count: usize) -> Plan {
    let cores: Vec<usize> = core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).collect();
    let worker = |n: usize| WorkerPlan::on(CoreId(cores[n % cores.len()]));
    // Static: whenever workers come or go, all flows are spread anew.
    let workers = (0..count).map(worker).collect();
    let mut plan = Plan { workers, placement: PlacementMode::Static, ..plan() };
    plan.uplinks[0].ring_size = 2048;
    plan
}

/// VXLAN frames of so many flows to the endpoint with this address, and the bucket of each.
fn flows(to: u8, count: u16) -> Vec<(ReplayFrame, u8)> {
    let frame = |n: u16| {
        let inner = flow(mac(0x77), mac(to), 1000 + n, 22 + STAMP);
        let bucket = bucket(flow_hash(&inner));
        let mut bytes = vxlan(REMOTE_A, BLUE, &inner);
        bytes[40..42].fill(0); // no outer checksum: the stamp would make it wrong
        (ReplayFrame { flow: u32::from(n), bytes }, bucket)
    };
    (0..count).map(frame).collect()
}

/// Any steps on any workers that there are, by a number that changes each time.
fn route(engine: &Engine, n: usize) -> Route {
    let workers: Vec<WorkerId> = engine.workers().collect();
    let worker = |n: usize| workers[n % workers.len()];
    Route::new(worker(n), worker(n / workers.len()), worker(n / workers.len().pow(2)))
}

/// Waits until so many more packets have come to each of these, and does what control does meanwhile.
fn let_flow(engine: &mut Engine, tenants: &[&Arc<DiscardCounters>], packets: u64) {
    let goals: Vec<u64> = tenants.iter().map(|tenant| tenant.packets.get() + packets).collect();
    let deadline = Instant::now() + PATIENCE;
    while tenants.iter().zip(&goals).any(|(tenant, goal)| tenant.packets.get() < *goal) {
        assert!(Instant::now() < deadline, "traffic stands still: {:?}", engine.stats());
        assert_eq!(engine.poll(), []);
        std::thread::yield_now();
    }
}

/// To the other of the first two workers; where cores are shared the workers may not come to rest in time, so again and again.
fn move_tenant(engine: &mut Engine, endpoint: EndpointId) {
    let to = WorkerId(1 - engine.home(endpoint).unwrap().0);
    let deadline = Instant::now() + PATIENCE;
    while engine.home(endpoint) != Some(to) {
        assert!(Instant::now() < deadline, "the tenant does not move: {:?}", engine.stats());
        engine.serve_at(endpoint, to);
        assert_eq!(engine.poll(), []);
    }
}

/// Waits until there are so many workers, on so many cores.
fn let_workers(engine: &mut Engine, workers: usize, cores: usize) {
    let deadline = Instant::now() + PATIENCE;
    let are =
        |engine: &Engine| (engine.stats().workers.len(), engine.workers().count(), engine.cores().len());
    while are(engine) != (workers, workers, cores) {
        assert!(Instant::now() < deadline, "{:?}, not {workers} on {cores}", are(engine));
        assert_eq!(engine.poll(), []);
        std::thread::yield_now();
    }
}

/// One worker comes, or goes: in turn one without queues comes, the second one's core goes, so that it moves to another one's, it gets
/// a core again, and the one without queues goes.
fn change_workers(engine: &mut Engine, start: usize, nth: usize) {
    let cores: Vec<CoreId> =
        core_affinity::get_core_ids().unwrap().iter().map(|core| CoreId(core.id)).collect();
    let (first, second) = (cores[0], *cores.get(1).expect("two CPUs are needed"));
    match nth % 4 {
        0 => engine.add_worker(&WorkerPlan::on(first)).unwrap(),
        1 => engine.remove_worker(second).unwrap(),
        2 => engine.add_worker(&WorkerPlan::on(second)).unwrap(),
        _ => engine.remove_worker(first).unwrap(), // of those on that core, the last one
    }
    let (workers, cores) = [(1, 1), (1, 0), (1, 1), (0, 0)][nth % 4];
    let_workers(engine, start + workers, start + cores);
}

/// Moves `rounds` buckets, and now and then a tenant or a worker; returns the counters, and the tenants' when all has ended.
fn move_buckets(workers_count: usize, rounds: usize) -> (Stats, Vec<Arc<DiscardCounters>>) {
    let enter = [flows(1, 40), flows(2, 40)];
    let buckets: Vec<u8> = enter.iter().flatten().map(|(_, bucket)| *bucket).collect();
    let frames = enter.map(|flows| flows.into_iter().map(|(frame, _)| frame).collect());
    let mut engine = Engine::replay(&workers(workers_count), frames.into()).unwrap();
    let tenants = [WEB, DB].map(|endpoint| engine.attach_discard(endpoint, 40).unwrap());
    let_flow(&mut engine, &[&tenants[0], &tenants[1]], 10_000);
    for round in 0..rounds {
        let entry = WorkerId((round % 2) as u8);
        assert!(engine.place(entry, buckets[round * 7 % buckets.len()], route(&engine, round)));
        // Some moves at once, so that some are changed again before they are over; then a look that all goes on.
        if round % 16 == 0 {
            let_flow(&mut engine, &[&tenants[0], &tenants[1]], 50);
        }
        if round % 64 == 0 {
            move_tenant(&mut engine, [WEB, DB][round / 64 % 2]);
        }
        if round % 200 == 100 {
            change_workers(&mut engine, workers_count, round / 200);
        }
    }
    let_flow(&mut engine, &[&tenants[0], &tenants[1]], 10_000);
    (engine.stop(), tenants.into())
}

#[test]
#[cfg(not(feature = "unguarded"))]
fn flows_that_move_thousands_of_times_keep_their_order() {
    for workers in [2, 3] {
        let (stats, tenants) = move_buckets(workers, 4000);
        let delivered: u64 = tenants.iter().map(|tenant| tenant.packets.get()).sum();
        for tenant in &tenants {
            assert_eq!((tenant.reordered.get(), tenant.strange.get()), (0, 0), "{tenant:?}");
        }
        assert!(stats.totals.conserved, "{:?} {:?}", stats.totals, stats.drops);
        assert_eq!(delivered, stats.totals.tenant_tx.frames);
        // What is missing was dropped, and counted: at most, since the last of a flow are not missed.
        let missing: u64 = tenants.iter().map(|tenant| tenant.missing.get()).sum();
        assert!(missing <= stats.totals.dropped, "{missing} {:?}", stats.drops);
        let handed: u64 = stats.workers.iter().map(|worker| worker.handed_over).sum();
        assert!(handed > 4000, "frames went from worker to worker: {handed}");
    }
}

#[test]
fn static_placements_run_each_bucket_where_their_rule_says() {
    for (mode, rule) in [
        (PlacementMode::Static, in_turn as fn(u32, u32, usize) -> WorkerId),
        (PlacementMode::StaticHashed, hashed),
    ] {
        let frames = flows(1, 64);
        let buckets: Vec<u8> = frames.iter().map(|(_, bucket)| *bucket).collect();
        let plan = Plan { placement: mode, ..workers(3) };
        let frames = frames.into_iter().map(|(frame, _)| frame).collect();
        let mut engine = Engine::replay(&plan, vec![frames, vec![], vec![]]).unwrap();
        let tenant = engine.attach_discard(WEB, 64).unwrap();
        let_flow(&mut engine, &[&tenant], 10_000);
        for bucket in buckets {
            let [decap, lookup, encap] = [1, 2, 3].map(|step| rule(bucket.into(), step, 3));
            assert_eq!(
                engine.route(WorkerId(0), bucket),
                Route::new(decap, lookup, encap),
                "{mode:?} {bucket}"
            );
        }
        engine.stop();
        assert_eq!((tenant.reordered.get(), tenant.strange.get()), (0, 0), "{mode:?}");
    }
}

/// The other test can fail.
#[test]
#[cfg(feature = "unguarded")]
fn without_the_guard_packets_are_overtaken() {
    let (_, tenants) = move_buckets(2, 4000);
    let reordered: u64 = tenants.iter().map(|tenant| tenant.reordered.get()).sum();
    assert!(reordered > 0, "{tenants:?}");
}
