//! Where the steps of the flow run, and one run of it: a new engine, the flow from memory, the tenant that counts.
//! `pipeline_case` runs all modes in turns; a further placement is one more [`Mode`].

use std::time::{Duration, Instant};

use peregrine_dataplane::discard::DiscardCounters;
use peregrine_dataplane::engine::Engine;
use peregrine_dataplane::plan::{PlacementMode, Plan, WorkerPlan};
use peregrine_dataplane::replay::ReplayFrame;
use peregrine_dataplane::stages::Stage;
use peregrine_dataplane::stats::Stats;
use peregrine_dataplane::types::{CoreId, EndpointId, Route, WorkerId};

use super::{INNER_BYTES, Series, flow_bucket};
use crate::environment::CpuTime;
use crate::rig::{plan, tenant_mac, underlay_frame};

/// Frames enter here, and the tenant is served here.
const FIRST: WorkerId = WorkerId(0);
const OTHER: WorkerId = WorkerId(1);
const TENANT: EndpointId = EndpointId(0);

/// Where the steps run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// All on one core; there is no other worker.
    RunToCompletion,
    /// All on one core; a second worker looks on.
    Beside,
    /// As the engine spreads them over two cores by itself.
    Static,
    /// As the engine's balancer finds best.
    Balanced,
    /// These steps on the second core, whatever the engine thinks.
    Split(Split),
}

/// What is on the second core; the rest is on the first.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Split {
    pub decap: bool,
    pub lookup: bool,
    /// The tenant is served there, so Deliver runs there.
    pub tenant: bool,
}

impl Split {
    const fn new(decap: bool, lookup: bool, tenant: bool) -> Split {
        Split { decap, lookup, tenant }
    }

    /// How the flow and its tenant are placed now.
    fn of(engine: &Engine) -> Split {
        let route = engine.route(FIRST, flow_bucket());
        let tenant = engine.home(TENANT) == Some(OTHER);
        Split::new(route.decap() == OTHER, route.lookup() == OTHER, tenant)
    }

    pub fn name(self) -> String {
        let parts = [(self.decap, "decap"), (self.lookup, "lookup"), (self.tenant, "tenant")];
        let on: Vec<&str> = parts.iter().filter(|(is_there, _)| *is_there).map(|(_, name)| *name).collect();
        if on.is_empty() { "nothing".into() } else { on.join("+") }
    }

    fn route(self) -> Route {
        let worker = |is_there| if is_there { OTHER } else { FIRST };
        Route::new(worker(self.decap), worker(self.lookup), FIRST)
    }
}

impl Mode {
    /// In which the modes run, each round beginning with another one.
    pub const ALL: [Mode; 9] = [
        Mode::RunToCompletion,
        Mode::Balanced,
        Mode::Static,
        Mode::SPLITS[0],
        Mode::SPLITS[1],
        Mode::SPLITS[2],
        Mode::SPLITS[3],
        Mode::SPLITS[4],
        Mode::Beside,
    ];

    /// Those of which the fastest is the best that two cores can do. The first takes both steps there and back.
    pub const SPLITS: [Mode; 5] = [
        Mode::Split(Split::new(true, true, false)),
        Mode::Split(Split::new(true, false, false)),
        Mode::Split(Split::new(false, true, false)),
        Mode::Split(Split::new(false, true, true)),
        Mode::Split(Split::new(true, true, true)),
    ];

    pub fn name(self) -> String {
        match self {
            Mode::RunToCompletion => "rtc".into(),
            Mode::Beside => "beside".into(),
            Mode::Static => "static".into(),
            Mode::Balanced => "balanced".into(),
            Mode::Split(split) => split.name(),
        }
    }

    /// What it has on the second core, if that is given.
    pub fn split(self) -> Option<Split> {
        if let Mode::Split(split) = self { Some(split) } else { None }
    }

    /// What the engine is asked for at the start.
    fn placement(self) -> PlacementMode {
        match self {
            Mode::Static => PlacementMode::Static,
            Mode::Balanced => PlacementMode::Balanced,
            Mode::RunToCompletion | Mode::Beside | Mode::Split(_) => PlacementMode::RunToCompletion,
        }
    }

    fn workers(self) -> usize {
        if self == Mode::RunToCompletion { 1 } else { 2 }
    }
}

/// Where and for how long.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub cores: [usize; 2],
    pub warm_up: Duration,
    /// What the balancer has to find its placement.
    pub balancing: Duration,
    pub window: Duration,
    pub hertz: u64,
}

/// What one run gave.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Packets a second that came to the tenant.
    pub rate: f64,
    /// Frames dropped from the beginning of the window on.
    pub lost: u64,
    pub reordered: u64,
    /// Cycles in which a worker had work, of all workers, for each packet.
    pub busy_cycles: f64,
    /// The smaller part of its core that a worker had.
    pub core_share: f64,
    /// What was on the second core at the end.
    pub split: Split,
}

/// How far things were at one moment.
struct Reading {
    at: Instant,
    packets: u64,
    dropped: u64,
    cpu: Vec<CpuTime>,
}

impl Setup {
    /// One run. Whatever does not add up is an error, with all counters.
    pub fn measure(&self, mode: Mode, series: Series, cycles: u32) -> Result<Run, String> {
        let cores = self.cores.iter().take(mode.workers());
        let plan = Plan {
            workers: cores.map(|core| WorkerPlan::on(CoreId(*core))).collect(),
            placement: mode.placement(),
            ..plan(1)
        };
        let flow = ReplayFrame { flow: 0, bytes: underlay_frame(tenant_mac(TENANT.0), INNER_BYTES) };
        let mut engine = Engine::replay(&plan, vec![vec![flow]]).map_err(|error| error.to_string())?;
        for stage in [Stage::Classify, Stage::Decap, Stage::Lookup, Stage::Deliver] {
            engine.work().set(stage, series.share(stage, cycles));
        }
        let tenant = engine.attach_discard(TENANT, 1).map_err(|error| error.to_string())?;
        if let Mode::Split(split) = mode {
            place(&mut engine, flow_bucket(), split)?;
        }
        // One core as long as balanced, which is compared with it: a machine may slow down while it is in use.
        let is_long = matches!(mode, Mode::Balanced | Mode::RunToCompletion);
        let warm_up = if is_long { self.balancing } else { self.warm_up };
        pass(&mut engine, &tenant, warm_up)?;
        let (before, _) = self.read(&mut engine, &tenant, mode)?;
        pass(&mut engine, &tenant, self.window)?;
        let (after, busy) = self.read(&mut engine, &tenant, mode)?;
        let split = Split::of(&engine);
        let stats = engine.stop();
        check(&stats, &tenant).map_err(|fault| {
            let counters = serde_json::json!(stats);
            format!(
                "{}, {} work of {cycles} cycles: {fault}: {tenant:?} {counters}",
                mode.name(),
                series.name()
            )
        })?;
        let (packets, seconds) = (after.packets - before.packets, (after.at - before.at).as_secs_f64());
        let shares: Vec<f64> =
            after.cpu.iter().zip(&before.cpu).map(|(after, before)| after.share_since(before)).collect();
        let busy: f64 = busy.iter().zip(&shares).map(|(busy, share)| busy * share).sum();
        Ok(Run {
            rate: packets as f64 / seconds,
            lost: stats.totals.dropped - before.dropped,
            reordered: tenant.reordered.get(),
            busy_cycles: busy * seconds * self.hertz as f64 / packets as f64,
            core_share: shares.into_iter().fold(1.0, f64::min),
            split,
        })
    }

    /// How far it is, and how busy each worker was since the last look.
    fn read(
        &self,
        engine: &mut Engine,
        tenant: &DiscardCounters,
        mode: Mode,
    ) -> Result<(Reading, Vec<f64>), String> {
        engine.age();
        let (at, packets) = (Instant::now(), tenant.packets.get());
        let busy = engine.busy().into_iter().map(|(_, busy)| busy).collect();
        let cpu = self
            .cores
            .iter()
            .take(mode.workers())
            .map(|core| worker_time(*core))
            .collect::<Result<_, _>>()?;
        Ok((Reading { at, packets, dropped: engine.stats().totals.dropped, cpu }, busy))
    }
}

/// Gives the second core what it is to have of the flows of this bucket, and of the first tenant.
pub(crate) fn place(engine: &mut Engine, bucket: u8, split: Split) -> Result<(), String> {
    const PATIENCE: Duration = Duration::from_secs(10);
    if !engine.place(FIRST, bucket, split.route()) {
        return Err(format!("{}: the engine refused {:?}", split.name(), split.route()));
    }
    let deadline = Instant::now() + PATIENCE;
    while split.tenant && engine.home(TENANT) != Some(OTHER) {
        // On a busy machine the workers may not come to rest in time.
        engine.serve_at(TENANT, OTHER);
        engine.poll();
        if Instant::now() > deadline {
            return Err(format!("{}: the tenant does not move", split.name()));
        }
    }
    Ok(())
}

/// Lets the flow run for so long, and until some packets have come: on a busy machine a worker may have to wait for its core. Does what
/// control does meanwhile.
fn pass(engine: &mut Engine, tenant: &DiscardCounters, time: Duration) -> Result<(), String> {
    const TICK: Duration = Duration::from_millis(5);
    const PACKETS: u64 = 1000;
    const PATIENCE: Duration = Duration::from_secs(10);
    let (start, goal) = (Instant::now(), tenant.packets.get() + PACKETS);
    loop {
        let elapsed = start.elapsed();
        if elapsed >= time && tenant.packets.get() >= goal {
            return Ok(());
        }
        if elapsed >= time + PATIENCE {
            let counters = serde_json::json!(engine.stats());
            return Err(format!("traffic stands still: {tenant:?} {counters}"));
        }
        std::thread::sleep(time.saturating_sub(elapsed).clamp(Duration::from_millis(1), TICK));
        engine.poll();
    }
}

/// Of the worker's thread on this core.
pub(crate) fn worker_time(core: usize) -> Result<CpuTime, String> {
    CpuTime::read(&thread_folder(&format!("worker-{core}"))?)
}

/// Where `/proc` tells of the thread of this process with this name.
pub(crate) fn thread_folder(name: &str) -> Result<String, String> {
    let tasks = std::fs::read_dir("/proc/self/task").map_err(|error| format!("/proc/self/task: {error}"))?;
    let named = |folder: &std::path::PathBuf| {
        std::fs::read_to_string(folder.join("comm")).is_ok_and(|comm| comm.trim() == name)
    };
    let folder = tasks.flatten().map(|task| task.path()).find(named);
    Ok(folder.ok_or(format!("{name} is not running"))?.to_string_lossy().into_owned())
}

/// Nothing is unaccounted for, nothing was overtaken: what came in is with the tenant, dropped or still under way, and what is
/// under way lies in chunks that are not free.
pub(crate) fn check(stats: &Stats, tenant: &DiscardCounters) -> Result<(), &'static str> {
    let totals = &stats.totals;
    let chunks = |count: fn(&peregrine_dataplane::stats::WorkerStats) -> u64| -> u64 {
        stats.workers.iter().map(count).sum()
    };
    let out = chunks(|worker| worker.frames_total) as i64 - chunks(|worker| worker.frames_free) as i64;
    let accounted = (tenant.packets.get() + totals.dropped) as i64 + totals.in_flight;
    match () {
        () if tenant.reordered.get() > 0 => Err("packets of the flow were overtaken"),
        () if tenant.strange.get() > 0 => Err("the tenant got packets that nobody sent"),
        () if totals.uplink_rx.frames as i64 != accounted => {
            Err("frames in are not the tenant's, dropped and in flight")
        }
        () if totals.in_flight < 0 || totals.in_flight > out => Err("frames in flight do not lie in chunks"),
        () if stats.drops.values().sum::<u64>() != totals.dropped => Err("drops without a reason"),
        () if tenant.missing.get() > totals.dropped => Err("packets are missing that were not dropped"),
        () => Ok(()),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::sync::Mutex;

    use super::*;

    /// Workers are found by their name: one engine at a time.
    pub(crate) static ENGINE: Mutex<()> = Mutex::new(());

    #[test]
    fn every_mode_moves_packets_in_order_and_accounts_for_them() {
        let _alone = ENGINE.lock();
        let cores = core_affinity::get_core_ids().unwrap();
        let time = Duration::from_millis(1);
        let cores = [cores[0].id, cores[1 % cores.len()].id];
        let setup = Setup { cores, warm_up: time, balancing: time, window: time, hertz: 1_000_000_000 };
        for mode in Mode::ALL {
            let run = setup.measure(mode, Series::Heavy, 100).unwrap();
            assert!(run.rate > 0.0 && run.reordered == 0, "{mode:?} {run:?}");
        }
    }

    #[test]
    fn what_does_not_add_up_is_found() {
        let _alone = ENGINE.lock();
        let flow = ReplayFrame { flow: 0, bytes: underlay_frame(tenant_mac(TENANT.0), INNER_BYTES) };
        let mut engine = Engine::replay(&plan(1), vec![vec![flow]]).unwrap();
        let tenant = engine.attach_discard(TENANT, 1).unwrap();
        pass(&mut engine, &tenant, Duration::ZERO).unwrap();
        let stats = engine.stop();
        assert_eq!(check(&stats, &tenant), Ok(()));
        let wrong = |change: fn(&mut Stats)| {
            let mut stats = stats.clone();
            change(&mut stats);
            check(&stats, &tenant).unwrap_err()
        };
        assert!(wrong(|stats| stats.totals.uplink_rx.frames += 1).contains("frames in are not"));
        assert!(wrong(|stats| stats.totals.dropped += 1).contains("frames in are not"));
        let hidden = wrong(|stats| {
            stats.totals.uplink_rx.frames += 1;
            stats.totals.in_flight += 1;
        });
        assert!(hidden.contains("in chunks"));
        tenant.reordered.add(1);
        assert!(check(&stats, &tenant).unwrap_err().contains("overtaken"));
    }
}
