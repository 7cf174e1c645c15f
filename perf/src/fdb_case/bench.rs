//! One worker whose forwarding database is filled by what comes from the underlay, as anywhere else; and what was counted between two
//! moments. The parts of `fdb_case` run it.
//!
//! What must hold at the end of each run, else it is an error: every frame is accounted for, none of a flow was overtaken.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use peregrine_dataplane::discard::DiscardCounters;
use peregrine_dataplane::engine::Engine;
use peregrine_dataplane::histogram::Histogram;
use peregrine_dataplane::plan::{NetworkPlan, Plan, WorkerPlan};
use peregrine_dataplane::replay::{Field, Numbers, Pace, ReplayFrame, ReplayStream, Speed};
use peregrine_dataplane::stats::Stats;
use peregrine_dataplane::tables::NextHop;
use peregrine_dataplane::types::{CoreId, EndpointId, SourceId, UplinkId};
use peregrine_dataplane::wire::outer::OVERHEAD_IPV4;
use peregrine_memif::{ClientConfig, Interface};

use super::INNER_BYTES;
use crate::environment::CpuTime;
use crate::paced::Latencies;
use crate::pipeline_case::mode::worker_time;
use crate::rig::{FAR, LOCAL, REMOTE, connect, encapsulated, inner, plan, station, tenant_mac};

/// Gets what comes from the underlay.
const RECEIVER: EndpointId = EndpointId(0);
/// Sends to it.
pub const SENDER: EndpointId = EndpointId(1);
/// Where the number of a station is in its address; see [`station`].
pub const NUMBER_IN_ADDRESS: usize = 2;
/// Control looks at least so often, as that of the daemon does.
const TURN_MAX: Duration = Duration::from_millis(100);
/// What on a quiet machine takes much less.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is to run.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub worker: usize,
    /// Where the caller goes as soon as the worker has its core; see `as_control`.
    pub control: core_affinity::CoreId,
    /// Addresses that the network may learn: the size of the table.
    pub room: u32,
    pub ageing: Duration,
    /// Stations that are learned before it begins, from number 0 on.
    pub known: u32,
}

/// A worker that runs.
pub struct Bench {
    engine: Engine,
    receiver: Arc<DiscardCounters>,
    paces: Vec<Arc<Pace>>,
    core: usize,
    /// Control does nothing meanwhile: nothing ages.
    pub is_left_alone: bool,
}

/// How far things were at one moment, all counted since the start but for `busy`.
#[derive(Clone, Debug)]
pub struct Reading {
    pub at: Instant,
    /// From the underlay, with the tenant.
    pub received: u64,
    /// To the underlay.
    pub sent: u64,
    /// Dropped, or missed because the worker did not take them in time.
    pub lost: u64,
    pub learned: u64,
    pub refused: u64,
    /// In the table, learned.
    pub known: u32,
    pub stalls: u64,
    /// Cycles of the look-up, and of how many frames.
    lookup: (f64, u64),
    /// Share of the worker's cycles since the last reading in which it had something to do.
    pub busy: f64,
    pub latencies: Latencies,
    cpu: CpuTime,
}

impl Reading {
    pub fn seconds_since(&self, earlier: &Reading) -> f64 {
        (self.at - earlier.at).as_secs_f64()
    }

    /// Cycles of the look-up for each frame since; none if no turn was looked at.
    pub fn lookup_cycles_since(&self, earlier: &Reading) -> f64 {
        (self.lookup.0 - earlier.lookup.0) / (self.lookup.1 - earlier.lookup.1) as f64
    }

    /// The share of its core that the worker had.
    pub fn core_share_since(&self, earlier: &Reading) -> f64 {
        self.cpu.share_since(&earlier.cpu)
    }
}

/// Frames from stations behind the far VTEP to the tenant, which one by the numbers; nothing yet. Each stream is a flow of its own.
pub fn stream(flow: u32, numbers: Numbers) -> ReplayStream {
    let packet = inner(station(0), tenant_mac(RECEIVER.0), INNER_BYTES);
    let source_mac = OVERHEAD_IPV4 + 6;
    ReplayStream {
        frames: vec![ReplayFrame { flow, bytes: encapsulated(&packet) }],
        pace: Arc::new(Pace::new(Speed::Stopped)),
        field: Some(Field { at: source_mac + NUMBER_IN_ADDRESS, numbers }),
        is_urgent: false,
    }
}

impl Bench {
    /// Starts the worker, lets it learn what is to be known, and nothing else yet. Flow 0 is that of what is learned.
    pub fn start(setup: &Setup, streams: Vec<ReplayStream>) -> Result<Bench, String> {
        let mut plan = Plan { workers: vec![WorkerPlan::on(CoreId(setup.worker))], ..plan(SENDER.0 + 1) };
        for network in plan.networks.values_mut() {
            let NetworkPlan { fdb_limit, ageing, .. } = network;
            (*fdb_limit, *ageing) = (setup.room, setup.ageing);
        }
        let fill = stream(0, Numbers::rising(0, setup.known.max(1)));
        let streams: Vec<ReplayStream> = std::iter::once(fill).chain(streams).collect();
        let paces: Vec<Arc<Pace>> = streams.iter().map(|stream| stream.pace.clone()).collect();
        let flows = streams.len();
        let mut engine = Engine::replay_streams(&plan, vec![streams]).map_err(|error| error.to_string())?;
        core_affinity::set_for_current(setup.control);
        let hop = NextHop { uplink: UplinkId(0), destination: FAR, source: tenant_mac(0) };
        let remote = engine.remotes().find(|(_, address)| *address == IpAddr::V4(REMOTE));
        let path = hop.path(IpAddr::V4(LOCAL), 1500);
        engine.set_paths(remote.map(|(id, _)| (id, SourceId(0), vec![path])));
        let receiver = engine.attach_timed_discard(RECEIVER, flows).map_err(|error| error.to_string())?;
        let mut bench = Bench { engine, receiver, paces, core: setup.worker, is_left_alone: false };
        if setup.known > 0 {
            bench.set_speed(0, Speed::Full);
            bench.until("the addresses are not learned", |bench| bench.known() >= setup.known)?;
            bench.set_speed(0, Speed::Stopped);
        }
        Ok(bench)
    }

    /// Lets somebody send; returns the tenant's end.
    pub fn attach_sender(&mut self) -> Result<Interface, String> {
        let (client, rings) = connect(ClientConfig { ring_log2: 11, ..ClientConfig::default() })?;
        self.engine.attach(SENDER, rings).map_err(|error| error.to_string())?;
        Ok(client)
    }

    /// How fast a flow goes from now on.
    pub fn set_speed(&self, flow: usize, speed: Speed) {
        if let Some(pace) = self.paces.get(flow) {
            pace.set(speed);
        }
    }

    /// Frames of a flow with a rate that the worker took so far, or will take.
    pub fn taken(&self, flow: usize) -> u64 {
        self.paces.get(flow).map_or(0, |pace| pace.due.get() - pace.missed.get())
    }

    /// Does what control does for so long, and until frames have come through: on a busy machine a worker may have to wait for its core.
    pub fn pass(&mut self, time: Duration) -> Result<(), String> {
        let end = Instant::now() + time;
        let moved =
            |bench: &Bench| bench.engine.stats().totals.uplink_tx.frames + bench.receiver.packets.get();
        let before = moved(self);
        while let Some(left) = end.checked_duration_since(Instant::now()).filter(|left| !left.is_zero()) {
            let due = self.engine.deadline().map(|due| due.saturating_duration_since(Instant::now()));
            std::thread::sleep(left.min(TURN_MAX).min(due.unwrap_or(TURN_MAX)));
            self.poll();
        }
        self.until("traffic stands still", |bench| moved(bench) > before)
    }

    /// Does what control does until then.
    pub fn until(&mut self, fault: &str, is_done: impl Fn(&Bench) -> bool) -> Result<(), String> {
        let start = Instant::now();
        while !is_done(self) {
            if start.elapsed() > PATIENCE {
                return Err(self.fault(fault));
            }
            std::thread::sleep(Duration::from_millis(1));
            self.poll();
        }
        Ok(())
    }

    fn poll(&mut self) {
        if !self.is_left_alone {
            self.engine.poll();
        }
    }

    /// Addresses in the table that were learned.
    pub fn known(&self) -> u32 {
        self.engine.stats().networks.iter().map(|network| network.fdb_learned).sum()
    }

    /// Where things stand.
    pub fn read(&mut self) -> Result<Reading, String> {
        self.engine.age();
        let stats = self.engine.stats();
        let missed: u64 = self.paces.iter().map(|pace| pace.missed.get()).sum();
        let network = stats.networks.first().ok_or("the worker has no network")?;
        let worker = stats.workers.first().ok_or("there is no worker")?;
        let lookup = worker.stages.iter().find(|stage| stage.stage == "lookup");
        let lookup = lookup.map_or((0.0, 0), |stage| {
            let cycles = stage.cycles_per_frame.unwrap_or_default();
            (cycles * stage.sampled_frames as f64, stage.sampled_frames)
        });
        Ok(Reading {
            at: Instant::now(),
            received: self.receiver.packets.get(),
            sent: stats.totals.uplink_tx.frames,
            lost: stats.totals.dropped + missed,
            learned: network.learned,
            refused: network.learn_refused,
            known: network.fdb_learned,
            stalls: worker.stalls,
            lookup,
            busy: worker.busy,
            latencies: Latencies::sum(self.receiver.latency.iter().map(Histogram::counts)),
            cpu: worker_time(self.core)?,
        })
    }

    /// Ends it. Whatever does not add up is an error, with all counters.
    pub fn stop(self) -> Result<(), String> {
        let Bench { engine, receiver, .. } = self;
        let stats = engine.stop();
        check(&stats, &receiver)
            .map_err(|fault| format!("{fault}: {receiver:?} {}", serde_json::json!(stats)))
    }

    fn fault(&self, what: &str) -> String {
        format!("{what}: {:?} {}", self.receiver, serde_json::json!(self.engine.stats()))
    }
}

/// One worker does all there is to do with a frame in one turn, so nothing is under way when it has stopped.
fn check(stats: &Stats, receiver: &DiscardCounters) -> Result<(), &'static str> {
    let totals = &stats.totals;
    match () {
        () if receiver.reordered.get() > 0 => Err("packets of a flow were overtaken"),
        () if receiver.strange.get() > 0 => Err("the tenant got packets that nobody sent"),
        () if !totals.conserved => Err("frames in are not frames out and drops"),
        () if totals.tenant_tx.frames != receiver.packets.get() => {
            Err("the tenant has not got what it was given")
        }
        () if stats.drops.values().sum::<u64>() != totals.dropped => Err("drops without a reason"),
        () if receiver.missing.get() > totals.dropped => Err("packets are missing that were not dropped"),
        () => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline_case::mode::tests::ENGINE;

    #[test]
    fn what_is_to_be_known_is_learned_and_every_frame_accounted_for() {
        let _alone = ENGINE.lock();
        let cores = core_affinity::get_core_ids().unwrap();
        let (worker, control) = (cores[0].id, cores[1 % cores.len()]);
        let setup = Setup { worker, control, room: 5000, ageing: Duration::from_secs(300), known: 3000 };
        let mut bench = Bench::start(&setup, vec![stream(1, Numbers::rising(3000, 1000))]).unwrap();
        bench.set_speed(1, Speed::Full);
        bench.until("new ones are not learned", |bench| bench.known() == 4000).unwrap();
        let reading = bench.read().unwrap();
        assert_eq!((reading.known, reading.learned, reading.refused), (4000, 4000, 0));
        assert!(reading.received >= 4000 && reading.lookup.1 > 0);
        bench.stop().unwrap();
    }

    #[test]
    fn what_does_not_add_up_is_found() {
        let _alone = ENGINE.lock();
        let cores = core_affinity::get_core_ids().unwrap();
        let (worker, control) = (cores[0].id, cores[1 % cores.len()]);
        let setup = Setup { worker, control, room: 100, ageing: Duration::from_secs(300), known: 10 };
        let bench = Bench::start(&setup, vec![]).unwrap();
        let receiver = bench.receiver.clone();
        let stats = bench.engine.stop();
        assert_eq!(check(&stats, &receiver), Ok(()));
        let mut wrong = stats.clone();
        wrong.totals.conserved = false;
        assert!(check(&wrong, &receiver).unwrap_err().contains("frames in"));
        receiver.packets.add(1);
        assert!(check(&stats, &receiver).unwrap_err().contains("not got"));
        receiver.reordered.add(1);
        assert!(check(&stats, &receiver).unwrap_err().contains("overtaken"));
    }
}
