//! Flows that are due at a rate, through workers that place their steps in one of three ways: what `skew_case` and
//! `placement_latency_case` share. Frames come from memory and go to tenants that copy them, check their order and count.
//!
//! What must hold at the end of each run, else it is an error: frames that came in are with the tenants, dropped or under way; those
//! that were due came in, were missed or wait; none of a flow was overtaken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peregrine_dataplane::balance::BalanceStats;
use peregrine_dataplane::clock::cycles_per_second;
use peregrine_dataplane::counters::Counter;
use peregrine_dataplane::discard::DiscardCounters;
use peregrine_dataplane::engine::Engine;
use peregrine_dataplane::frame::bucket;
use peregrine_dataplane::histogram::{Histogram, value_at};
use peregrine_dataplane::plan::{PlacementMode, Plan, WorkerPlan};
use peregrine_dataplane::replay::{Pace, ReplayFrame, ReplayStream, Speed, WAITING_MAX};
use peregrine_dataplane::stages::Stage;
use peregrine_dataplane::types::{CoreId, EndpointId};
use peregrine_dataplane::wire::flow::flow_hash;
use peregrine_dataplane::wire::outer::OVERHEAD_IPV4;
use serde::{Deserialize, Serialize};

use crate::environment::CpuTime;
use crate::figures::median;
use crate::pipeline_case::mode::{Split, check, place, worker_time};
use crate::rig::{plan, tenant_mac, underlay_frame};

/// Bytes of the inner packets.
pub const INNER_BYTES: usize = 64;
/// The steps that work is added to, the same to each.
const WORKED: [Stage; 4] = [Stage::Classify, Stage::Decap, Stage::Lookup, Stage::Deliver];
/// How often control looks.
const TICK: Duration = Duration::from_millis(5);
/// Cycles between frames that no worker keeps up with.
const TOO_FAST: f64 = 8.0;

/// How steps are placed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    RunToCompletion,
    Static,
    Balanced,
}

impl Mode {
    pub const ALL: [Mode; 3] = [Mode::RunToCompletion, Mode::Static, Mode::Balanced];

    pub fn name(self) -> &'static str {
        match self {
            Mode::RunToCompletion => "run-to-completion",
            Mode::Static => "static",
            Mode::Balanced => "balanced",
        }
    }

    fn placement(self) -> PlacementMode {
        match self {
            Mode::RunToCompletion => PlacementMode::RunToCompletion,
            Mode::Static => PlacementMode::Static,
            Mode::Balanced => PlacementMode::Balanced,
        }
    }
}

/// Frames of these flows in turn, and nothing yet. Flow n goes to tenant n modulo `tenants`.
pub fn stream(flows: std::ops::Range<u16>, tenants: u16) -> (ReplayStream, Arc<Pace>) {
    let frame = |flow: u16| {
        let mut bytes = underlay_frame(tenant_mac(flow % tenants), INNER_BYTES);
        // The inner UDP source port tells the flows apart; nobody checks its checksum.
        let port = OVERHEAD_IPV4 + 34;
        bytes[port..port + 2].copy_from_slice(&(20_000 + flow).to_be_bytes());
        ReplayFrame { flow: flow.into(), bytes }
    };
    let pace = Arc::new(Pace::new(Speed::Stopped));
    (
        ReplayStream {
            frames: flows.map(frame).collect(),
            pace: pace.clone(),
            field: None,
            is_urgent: false,
        },
        pace,
    )
}

/// The bucket of the first flow of all.
pub fn first_bucket(streams: &[Vec<ReplayStream>]) -> u8 {
    let frames = streams.iter().flatten().flat_map(|stream| &stream.frames);
    let inner = frames.filter_map(|frame| frame.bytes.get(OVERHEAD_IPV4..)).next();
    bucket(flow_hash(inner.unwrap_or_default()))
}

/// What runs, and where.
#[derive(Clone, Copy, Debug)]
pub struct Setup<'a> {
    /// One for each worker.
    pub cores: &'a [usize],
    pub mode: Mode,
    /// Cycles added to each packet's way.
    pub work: u32,
    pub tenants: u16,
    pub flows: u16,
    /// How late packets are is noted.
    pub is_timed: bool,
}

/// Workers that run.
pub struct Bench {
    engine: Engine,
    tenants: Vec<Arc<DiscardCounters>>,
    paces: Vec<Arc<Pace>>,
    cores: Vec<usize>,
    name: String,
}

/// How far things were at one moment, all counted since the start.
#[derive(Clone, Copy, Debug, Default)]
pub struct Reading {
    pub at_s: f64,
    /// With the tenants.
    pub packets: u64,
    pub due: u64,
    pub missed: u64,
    pub dropped: u64,
}

impl Reading {
    /// Missed or dropped.
    pub fn lost(&self) -> u64 {
        self.missed + self.dropped
    }

    /// What came to the tenants since, a second.
    pub fn rate_since(&self, earlier: &Reading) -> f64 {
        (self.packets - earlier.packets) as f64 / (self.at_s - earlier.at_s)
    }
}

impl Bench {
    /// Starts the workers, by worker the streams, all of which must be stopped.
    pub fn start(setup: &Setup<'_>, streams: Vec<Vec<ReplayStream>>) -> Result<Bench, String> {
        let worker = |core: &usize| WorkerPlan::on(CoreId(*core));
        let plan = Plan {
            workers: setup.cores.iter().map(worker).collect(),
            placement: setup.mode.placement(),
            ..plan(setup.tenants)
        };
        let paces = streams.iter().flatten().map(|stream| stream.pace.clone()).collect();
        let mut engine = Engine::replay_streams(&plan, streams).map_err(|error| error.to_string())?;
        for stage in WORKED {
            engine.work().set(stage, setup.work / WORKED.len() as u32);
        }
        let attach = |tenant| {
            let (endpoint, flows) = (EndpointId(tenant), usize::from(setup.flows));
            let attached = match setup.is_timed {
                true => engine.attach_timed_discard(endpoint, flows),
                false => engine.attach_discard(endpoint, flows),
            };
            attached.map_err(|error| error.to_string())
        };
        let tenants = (0..setup.tenants).map(attach).collect::<Result<_, _>>()?;
        let name = format!("{}, {} cycles of work", setup.mode.name(), setup.work);
        Ok(Bench { engine, tenants, paces, cores: setup.cores.to_vec(), name })
    }

    /// Does what control does for so long, and until packets have come: on a busy machine a worker may have to wait for its core. Hands
    /// over where things stand at each look.
    pub fn pass(&mut self, time: Duration, mut note: impl FnMut(Reading)) -> Result<(), String> {
        const PATIENCE: Duration = Duration::from_secs(10);
        let (start, packets) = (Instant::now(), self.read().packets);
        loop {
            let elapsed = start.elapsed();
            let reading = self.read();
            note(reading);
            if elapsed >= time && reading.packets > packets {
                return Ok(());
            }
            if elapsed >= time + PATIENCE {
                return Err(self.fault("traffic stands still"));
            }
            std::thread::sleep(time.saturating_sub(elapsed).clamp(Duration::from_millis(1), TICK));
            self.engine.poll();
        }
    }

    /// Puts steps of what enters first in this bucket, and maybe the first tenant, on the second worker.
    pub fn split(&mut self, bucket: u8, split: Split) -> Result<(), String> {
        place(&mut self.engine, bucket, split)
    }

    /// Where things stand.
    pub fn read(&self) -> Reading {
        static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
        let sum = |counter: fn(&Pace) -> u64| self.paces.iter().map(|pace| counter(pace)).sum();
        Reading {
            at_s: START.get_or_init(Instant::now).elapsed().as_secs_f64(),
            packets: self.tenants.iter().map(|tenant| tenant.packets.get()).sum(),
            due: sum(|pace| pace.due.get()),
            missed: sum(|pace| pace.missed.get()),
            dropped: self.engine.stats().totals.dropped,
        }
    }

    /// The time that each worker's thread had.
    pub fn worker_times(&self) -> Result<Vec<CpuTime>, String> {
        self.cores.iter().map(|core| worker_time(*core)).collect()
    }

    /// How late packets were so far.
    pub fn latencies(&self) -> Latencies {
        let counts = self.tenants.iter().filter_map(|tenant| tenant.latency.as_ref()).map(Histogram::counts);
        Latencies::sum(counts)
    }

    /// What the balancer has done, if there is one.
    pub fn balance(&self) -> Option<BalanceStats> {
        self.engine.stats().balance
    }

    /// Ends it: what all tenants found. Whatever does not add up is an error, with all counters.
    pub fn stop(self) -> Result<DiscardCounters, String> {
        let last = self.read();
        let Bench { engine, tenants, paces, cores, name } = self;
        let stats = engine.stop();
        let all = sum(&tenants);
        let came_in = stats.totals.uplink_rx.frames;
        let due: u64 = paces.iter().map(|pace| pace.due.get() - pace.missed.get()).sum();
        let waits = due.checked_sub(came_in);
        let fault = match check(&stats, &all) {
            Err(fault) => fault,
            Ok(()) if waits.is_none_or(|waits| waits > (WAITING_MAX * cores.len()) as u64) => {
                "frames that were due did not come in, were not missed and do not wait"
            }
            Ok(()) => return Ok(all),
        };
        Err(format!("{name}: {fault}: {last:?} {all:?} {}", serde_json::json!(stats)))
    }

    fn fault(&self, what: &str) -> String {
        format!("{}: {what}: {:?} {}", self.name, self.read(), serde_json::json!(self.engine.stats()))
    }
}

/// What all tenants found.
fn sum(tenants: &[Arc<DiscardCounters>]) -> DiscardCounters {
    let all = DiscardCounters::new(0);
    for tenant in tenants {
        let pairs: [(&Counter, &Counter); 4] = [
            (&all.packets, &tenant.packets),
            (&all.reordered, &tenant.reordered),
            (&all.missing, &tenant.missing),
            (&all.strange, &tenant.strange),
        ];
        pairs.into_iter().for_each(|(sum, part)| sum.add(part.get()));
    }
    all
}

/// The most packets a second that these workers can take of streams with a rate: the middle of some windows. `streams` makes the streams
/// anew, with their paces.
pub fn capacity(
    setup: &Setup<'_>,
    window: Duration,
    streams: impl Fn() -> (Vec<Vec<ReplayStream>>, Vec<Arc<Pace>>),
) -> Result<f64, String> {
    const WINDOWS: usize = 5;
    let mut rates = Vec::new();
    for _ in 0..WINDOWS {
        let (streams, paces) = streams();
        let mut bench = Bench::start(setup, streams)?;
        paces.iter().for_each(|pace| pace.set(Speed::Every(TOO_FAST)));
        bench.pass(window / 4, |_| ())?;
        let before = bench.read();
        bench.pass(window, |_| ())?;
        rates.push(bench.read().rate_since(&before));
        bench.stop()?;
    }
    Ok(median(rates))
}

/// Cycles in a second: the middle of some looks, for in one of them the core may have been taken away.
pub fn hertz() -> f64 {
    median((0..9).map(|_| cycles_per_second() as f64).collect())
}

/// So many frames a second.
pub fn speed(per_second: f64, hertz: f64) -> Speed {
    Speed::Every(hertz / per_second)
}

/// How often packets were how late, in the places of a [`Histogram`].
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Latencies(Vec<u64>);

/// Samples from which on percentiles are told, and for those beyond the 99.9th.
const SAMPLES_MIN: u64 = 10_000;
const SAMPLES_MIN_TAIL: u64 = 100_000;

impl Latencies {
    /// Of all these, each as [`Histogram::counts`] has it.
    pub fn sum(all: impl Iterator<Item = Vec<u64>>) -> Latencies {
        let sum = all.reduce(|sum, counts| sum.iter().zip(&counts).map(|(a, b)| a + b).collect());
        Latencies(sum.unwrap_or_default())
    }

    /// What came since then.
    pub fn since(&self, earlier: &Latencies) -> Latencies {
        Latencies(self.0.iter().zip(&earlier.0).map(|(now, before)| now - before).collect())
    }

    /// These, and the others, too.
    pub fn plus(&self, other: &Latencies) -> Latencies {
        Latencies(self.0.iter().zip(&other.0).map(|(one, other)| one + other).collect())
    }

    pub fn samples(&self) -> u64 {
        self.0.iter().sum()
    }

    /// In cycles, so much of a whole of 1: at most 1/32 too high. `None` if there are too few samples to tell.
    pub fn percentile(&self, share: f64) -> Option<u64> {
        self.percentile_of(share, if share > 0.999 { SAMPLES_MIN_TAIL } else { SAMPLES_MIN })
    }

    /// The same, told from so many samples on.
    pub fn percentile_of(&self, share: f64, least: u64) -> Option<u64> {
        let samples = self.samples();
        (samples >= least).then(|| value_at(&self.0, (share * samples as f64).ceil() as u64)).flatten()
    }

    /// In cycles, at most 1/32 too high. `None` of nothing.
    pub fn max(&self) -> Option<u64> {
        value_at(&self.0, self.samples())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn latencies(values: &[u64]) -> Latencies {
        let histogram = Histogram::default();
        values.iter().for_each(|value| histogram.record(*value));
        Latencies(histogram.counts())
    }

    #[test]
    fn percentiles_are_those_of_an_hdr_histogram_and_of_the_sorted_values() {
        let mut random = 7u64;
        let mut values: Vec<u64> = (0..100_000)
            .map(|n| {
                random =
                    random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                200 + (random >> (40 + n % 12))
            })
            .collect();
        let ours = latencies(&values);
        let mut theirs = hdrhistogram::Histogram::<u64>::new_with_bounds(1, 1 << 40, 4).unwrap();
        values.iter().for_each(|value| theirs.record(*value).unwrap());
        values.sort_unstable();
        for share in [0.5, 0.9, 0.99, 0.9999, 1.0] {
            let exact = values[(share * values.len() as f64).ceil() as usize - 1];
            let read = ours.percentile(share).unwrap();
            assert!((exact..=exact + exact / 32).contains(&read), "{share}: {read} for {exact}");
            let hdr = theirs.value_at_quantile(share) as f64;
            assert!((read as f64 / hdr - 1.0).abs() < 1.0 / 32.0 + 1e-3, "{share}: {read} for {hdr}");
        }
        assert_eq!(ours.max(), ours.percentile(1.0));
    }

    #[test]
    fn too_few_samples_tell_no_percentile() {
        let told = |samples: usize| {
            let latencies = latencies(&vec![5; samples]);
            [0.99, 0.9999].map(|share| latencies.percentile(share))
        };
        assert_eq!(told(9_999), [None, None]);
        assert_eq!((told(10_000), told(99_999)), ([Some(5), None], [Some(5), None]));
        assert_eq!(told(100_000), [Some(5), Some(5)]);
        assert_eq!(latencies(&[]).max(), None);
        assert_eq!(latencies(&[3, 9]).since(&latencies(&[9])), latencies(&[3]));
        assert_eq!(Latencies::sum([latencies(&[3]).0, latencies(&[9]).0].into_iter()), latencies(&[3, 9]));
    }

    #[test]
    fn flows_differ_in_bucket_and_tenant() {
        let (stream, _pace) = stream(0..100, 4);
        let buckets: std::collections::HashSet<u8> =
            stream.frames.iter().map(|frame| bucket(flow_hash(&frame.bytes[OVERHEAD_IPV4..]))).collect();
        assert!(buckets.len() > 60, "of 256 at random some 83 are met: {}", buckets.len());
        let tenant = |flow: usize| &stream.frames[flow].bytes[OVERHEAD_IPV4..OVERHEAD_IPV4 + 6];
        assert_eq!((tenant(6), tenant(3)), (&tenant_mac(2).0[..], &tenant_mac(3).0[..]));
    }
}
