//! Cores that come and go in any order and as fast as control can ask, while flows and tenants move: whoever is between two threads,
//! joins or leaves just then, no worker is lost, no packet is overtaken, and the counters balance.

mod rig;

use std::sync::Arc;
use std::time::{Duration, Instant};

use peregrine_dataplane::discard::DiscardCounters;
use peregrine_dataplane::engine::{Engine, WorkerError};
use peregrine_dataplane::plan::{IdleMode, PlacementMode, Plan, WorkerPlan};
use peregrine_dataplane::replay::{Pace, ReplayFrame, ReplayStream, STAMP, Speed};
use peregrine_dataplane::types::{CoreId, Route, WorkerId};
use rig::{BLUE, DB, Dice, REMOTE_A, WEB, flow, mac, plan, vxlan};

const PATIENCE: Duration = Duration::from_secs(60);
/// Workers with queues.
const ENTRIES: u8 = 3;
/// And with those without: where many share two cores, they do not come to rest in time.
const ALL: usize = 4;
const FLOWS: u16 = 20;
/// Cycles from frame to frame at each worker with queues: what enters at one must not find the rings full of what enters at others.
const INTERVAL: f64 = 50_000.0;

fn cores() -> Vec<CoreId> {
    core_affinity::get_core_ids().unwrap().iter().map(|core| CoreId(core.id)).collect()
}

/// Flows to the endpoint with this address; the first one's number is that.
fn flows(to: u8, first: u16) -> Vec<ReplayFrame> {
    let frame = |n: u16| {
        let mut bytes = vxlan(REMOTE_A, BLUE, &flow(mac(0x77), mac(to), 1000 + n, 22 + STAMP));
        bytes[40..42].fill(0); // no outer checksum: the stamp would make it wrong
        ReplayFrame { flow: u32::from(n), bytes }
    };
    (first..first + FLOWS).map(frame).collect()
}

struct Churn {
    engine: Engine,
    tenants: [Arc<DiscardCounters>; 2],
    dice: Dice,
}

impl Churn {
    fn new(placement: PlacementMode, seed: u64) -> Churn {
        let cores = cores();
        // Every other time some of them sleep between two frames.
        let idle = |n: u8| if seed % 2 == 0 && n > 0 { IdleMode::Adaptive } else { IdleMode::Busy };
        let worker =
            |n: u8| WorkerPlan { idle: idle(n), ..WorkerPlan::on(cores[usize::from(n) % cores.len()]) };
        let mut plan = Plan {
            workers: (0..ENTRIES).map(worker).collect(),
            idle_after: Duration::from_micros(2),
            placement,
            ..plan()
        };
        plan.uplinks[0].ring_size = 1024;
        let pace = Arc::new(Pace::new(Speed::Every(INTERVAL)));
        let stream =
            |frames| vec![ReplayStream { frames, pace: pace.clone(), field: None, is_urgent: false }];
        let streams = [flows(1, 0), flows(2, 0), flows(1, FLOWS)].map(stream);
        let mut engine = Engine::replay_streams(&plan, streams.into()).unwrap();
        let tenants = [WEB, DB].map(|it| engine.attach_discard(it, 2 * usize::from(FLOWS)).unwrap());
        Churn { engine, tenants, dice: Dice::new(seed) }
    }

    fn poll(&mut self) {
        assert_eq!(self.engine.poll(), []);
        std::thread::yield_now();
    }

    /// Does what control does until it is so.
    fn until(&mut self, what: &str, mut is_so: impl FnMut(&Churn) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}: {:?}", self.engine.stats());
            self.poll();
        }
    }

    /// All flows, wherever they enter.
    fn let_flow(&mut self, packets: u64) {
        let counts = |churn: &Churn| -> Vec<u64> {
            churn.tenants.iter().flat_map(|tenant| tenant.by_flow.iter().map(|flow| flow.get())).collect()
        };
        let before = counts(self);
        self.until("traffic stands still", |churn| {
            let flows = counts(churn).into_iter().zip(&before);
            flows.enumerate().all(|(n, (now, before))| is_unused(n) || now >= before + packets)
        });
    }

    fn some_core(&mut self) -> CoreId {
        let cores = cores();
        cores[self.dice.below(cores.len())]
    }

    fn some_worker(&mut self) -> WorkerId {
        let workers: Vec<WorkerId> = self.engine.workers().collect();
        workers[self.dice.below(workers.len())]
    }

    fn step(&mut self) {
        match self.dice.below(10) {
            0..3 if self.engine.stats().workers.len() < ALL => {
                let core = self.some_core();
                let idle = [IdleMode::Busy, IdleMode::Adaptive][self.dice.below(2)];
                match self.engine.add_worker(&WorkerPlan { idle, ..WorkerPlan::on(core) }) {
                    Ok(()) | Err(WorkerError::NothingToDo) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            0..6 => {
                let core = self.some_core();
                match self.engine.remove_worker(core) {
                    Ok(()) | Err(WorkerError::Last(_) | WorkerError::NoneThere { .. }) => {}
                    Err(error) => panic!("{error}"),
                }
            }
            6 => {
                let (endpoint, to) = ([WEB, DB][self.dice.below(2)], self.some_worker());
                _ = self.engine.serve_at(endpoint, to);
            }
            7..9 => {
                let route = Route::new(self.some_worker(), self.some_worker(), self.some_worker());
                let entry = WorkerId(self.dice.below(ENTRIES.into()) as u8);
                assert!(self.engine.place(entry, self.dice.below(256) as u8, route));
            }
            _ => (0..self.dice.below(20)).for_each(|_| self.poll()),
        }
    }
}

/// The second tenant's flows all enter at one worker.
fn is_unused(flow: usize) -> bool {
    flow >= 3 * usize::from(FLOWS)
}

#[test]
fn cores_that_come_and_go_in_any_order_cost_no_worker_and_no_order() {
    let modes = [
        PlacementMode::Static,
        PlacementMode::StaticHashed,
        PlacementMode::Balanced,
        PlacementMode::RunToCompletion,
    ];
    for seed in 1..=16 {
        let mode = modes[seed % modes.len()];
        let mut churn = Churn::new(mode, seed as u64);
        churn.let_flow(10);
        for step in 0..60 {
            churn.step();
            if step % 20 == 19 {
                churn.let_flow(1);
            }
        }
        if mode != PlacementMode::Balanced {
            churn.until("somebody is on his way for ever", |churn| churn.engine.deadline().is_none());
        }
        churn.let_flow(10);
        let stats = churn.engine.stop();
        for tenant in &churn.tenants {
            assert_eq!((tenant.reordered.get(), tenant.strange.get()), (0, 0), "seed {seed}: {tenant:?}");
        }
        assert!(stats.totals.conserved, "seed {seed}: {:?} {:?}", stats.totals, stats.drops);
        let missing: u64 = churn.tenants.iter().map(|tenant| tenant.missing.get()).sum();
        assert!(missing <= stats.totals.dropped, "seed {seed}: {missing} {:?}", stats.drops);
    }
}
