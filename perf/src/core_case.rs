//! One worker's stages on one core, a tenant on another, shared memory between them, no wire.
//!
//! *in*: VXLAN frames that lie ready in memory go through classify, decap, lookup and deliver into a memif ring. *copy*, its
//! yardstick: a loop that copies the same inner frames from the same memory into the same ring, and does nothing else.
//! *out*: a tenant sends as fast as it can; collect, lookup and encap make frames that are then counted and thrown away. The
//! tenant reads the first 8 bytes of each packet that it gets.
//!
//! The frames are presented again and again in the same order, so up to [`FRAMES`] of them stay in the cache: what is
//! measured is the instructions, and what it costs to move a packet's lines to another core. The cases follow one another in
//! [`RUNS`] rounds, so that a machine that is slower for a while is so for all of them.
//!
//! What must hold: the worker's loop goes to the allocator not even once, or the run fails.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use core_affinity::CoreId;
use peregrine_dataplane::clock::{cycles, cycles_per_second};
use peregrine_dataplane::frame::{BURST, Burst, Frame};
use peregrine_dataplane::stages::{self, Stage, collect};
use peregrine_dataplane::types::{EndpointId, MacAddr, UplinkId};
use peregrine_memif::{ClientConfig, Interface, TxRing};
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch, two_cores};
use crate::figures::{median, null_as_nan, spread};
use crate::hardware::Hardware;
use crate::rig::{
    FAR, Ip, Rig, Underlay, connect, encapsulated_over, inner_of, set_flow, station, tenant_mac,
};

const TENANT: MacAddr = tenant_mac(0);
/// Frames that are presented again and again, where there is one flow; else each flow has one.
const FRAMES: usize = 256;
/// Addresses in the forwarding database: the tenant's, the far station's, and others.
const ADDRESSES: u32 = 1024;
/// Flows in the cases with many, which come from as many stations as there are.
const MANY: usize = 10_000;
/// Runs of each case; the median counts.
const RUNS: usize = 5;
/// What goes through.
#[derive(Clone, Copy)]
enum Way {
    Copy,
    In,
    Out,
}

/// What is measured.
#[derive(Clone, Copy)]
struct Setup {
    name: &'static str,
    way: Way,
    inner_bytes: usize,
    flows: usize,
    ip: Ip,
}

const fn setup(name: &'static str, way: Way, inner_bytes: usize, flows: usize, ip: Ip) -> Setup {
    Setup { name, way, inner_bytes, flows, ip }
}

const SETUPS: [Setup; 10] = [
    setup("copy", Way::Copy, 64, 1, Ip::V4),
    setup("in", Way::In, 64, 1, Ip::V4),
    setup("out", Way::Out, 64, 1, Ip::V4),
    setup("in, 10,000 flows", Way::In, 64, MANY, Ip::V4),
    setup("out, 10,000 flows", Way::Out, 64, MANY, Ip::V4),
    setup("in, IPv6 inside", Way::In, 64, 1, Ip::V6),
    setup("out, IPv6 inside", Way::Out, 64, 1, Ip::V6),
    setup("copy", Way::Copy, 1400, 1, Ip::V4),
    setup("in", Way::In, 1400, 1, Ip::V4),
    setup("out", Way::Out, 1400, 1, Ip::V4),
];

/// What one case gave, in the median of its runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Case {
    pub name: String,
    pub inner_bytes: usize,
    pub mpps: f64,
    pub mpps_lowest: f64,
    pub mpps_highest: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub cycles_per_packet: f64,
    /// Of the worker's thread, outside the kernel; `None` where the machine does not count them.
    #[serde(default)]
    pub instructions_per_packet: Option<f64>,
    #[serde(default)]
    pub cache_misses_per_packet: Option<f64>,
    /// The same of bursts only of which every packet got through, in the median: what the worker's work costs where the other
    /// side keeps up, also on a machine where others take the cores away now and then.
    #[serde(default)]
    pub burst_cycles_per_packet: Option<f64>,
    /// How fast such bursts are beside those of *copy* with as many bytes in the same round: the median of these ratios.
    #[serde(default)]
    pub of_copy: Option<f64>,
    pub lost: u64,
}

/// All cases.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cores: usize,
    /// Which, by number.
    #[serde(default)]
    pub worker_core: Option<usize>,
    #[serde(default)]
    pub tenant_core: Option<usize>,
    pub runs: usize,
    pub cases: Vec<Case>,
    /// Of the worker's loop, in all runs.
    #[serde(default)]
    pub allocations: u64,
    /// Why instructions or cache misses are missing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub not_counted: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
}

impl Report {
    /// A table.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<20}{:>6}{:>8}{:>16}{:>15}{:>10}{:>9}{:>14}{:>15}{:>11}\n",
            "case",
            "bytes",
            "Mpps",
            "lowest–highest",
            "cycles/packet",
            "in bursts",
            "of copy",
            "instructions",
            "cache misses",
            "lost"
        );
        let or_dash = |value: Option<f64>, digits: usize| {
            value.map_or("—".to_owned(), |value| format!("{value:.digits$}"))
        };
        for case in &self.cases {
            let spread = format!("{:.1}–{:.1}", case.mpps_lowest, case.mpps_highest);
            out += &format!(
                "{:<20}{:>6}{:>8.1}{:>16}{:>15.0}{:>10}{:>9}{:>14}{:>15}{:>11}\n",
                case.name,
                case.inner_bytes,
                case.mpps,
                spread,
                case.cycles_per_packet,
                or_dash(case.burst_cycles_per_packet, 0),
                or_dash(case.of_copy, 2),
                or_dash(case.instructions_per_packet, 0),
                or_dash(case.cache_misses_per_packet, 2),
                case.lost
            );
        }
        let core = |core: Option<usize>| core.map_or("?".to_owned(), |core| core.to_string());
        out += &format!(
            "Median of {} runs, the cases in turns; the stages on core {}, the tenant on core {}. No run allocated.\n\
             In bursts: cycles a packet of bursts that got through whole; of copy: how fast these are beside copy's.\n",
            self.runs,
            core(self.worker_core),
            core(self.tenant_core)
        );
        if let Some(why) = &self.not_counted {
            out += &format!("{why}\n");
        }
        out
    }
}

/// Runs all cases.
pub fn run(quick: bool, underlay: Underlay) -> Result<Report, String> {
    let [tenant, worker] = two_cores("one for the stages and one for the tenant")?;
    let watch = Watch::start();
    let duration = Duration::from_millis(if quick { 500 } else { 2000 });
    core_affinity::set_for_current(worker);
    let mut hardware = Hardware::new();
    let mut runs: Vec<Vec<Run>> = vec![Vec::new(); SETUPS.len()];
    for _ in 0..RUNS {
        for (setup, runs) in SETUPS.iter().zip(&mut runs) {
            runs.push(measure(setup, underlay, duration, tenant, &mut hardware)?);
        }
    }
    let allocations: u64 = runs.iter().flatten().map(|run| run.allocations).sum();
    if allocations > 0 {
        return Err(format!("the packet path allocates: {allocations} calls of the allocator"));
    }
    let hertz = cycles_per_second();
    let cases = SETUPS.iter().zip(&runs).map(|(setup, its)| {
        let is_yardstick =
            |other: &&Setup| matches!(other.way, Way::Copy) && other.inner_bytes == setup.inner_bytes;
        let copy = SETUPS.iter().position(|other| is_yardstick(&other)).and_then(|at| runs.get(at));
        summary(setup, its, copy.map_or(&[], Vec::as_slice), hertz)
    });
    Ok(Report {
        cores: 2,
        worker_core: Some(worker.id),
        tenant_core: Some(tenant.id),
        runs: RUNS,
        cases: cases.collect(),
        allocations,
        not_counted: hardware.missing().map(|why| {
            format!(
                "Not counted: {why}. `peregrine-perf instructions path/` counts instructions under valgrind."
            )
        }),
        environment: Some(watch.end()),
    })
}

/// What one run gave.
#[derive(Clone, Copy)]
struct Run {
    packets: u64,
    lost: u64,
    seconds: f64,
    /// A packet's share of a burst of which all got through, in the median: 0 of none.
    burst_cycles: f64,
    allocations: u64,
    instructions: Option<u64>,
    cache_misses: Option<u64>,
}

impl Run {
    fn rate(&self) -> f64 {
        self.packets as f64 / self.seconds
    }
}

fn summary(setup: &Setup, runs: &[Run], copy: &[Run], hertz: u64) -> Case {
    let [lowest, middle, highest] = spread(runs.iter().map(Run::rate).collect()).unwrap_or_default();
    let per_packet = |count: fn(&Run) -> Option<u64>| {
        let each = |run: &Run| count(run).map(|count| count as f64 / run.packets.max(1) as f64);
        runs.iter().map(each).collect::<Option<Vec<f64>>>().map(median)
    };
    let ratios = runs.iter().zip(copy).map(|(run, copy)| copy.burst_cycles / run.burst_cycles).collect();
    let burst_cycles = median(runs.iter().map(|run| run.burst_cycles).collect());
    Case {
        name: setup.name.into(),
        inner_bytes: setup.inner_bytes,
        mpps: middle / 1e6,
        mpps_lowest: lowest / 1e6,
        mpps_highest: highest / 1e6,
        cycles_per_packet: hertz as f64 / middle,
        burst_cycles_per_packet: (burst_cycles > 0.0).then_some(burst_cycles),
        instructions_per_packet: per_packet(|run| run.instructions),
        cache_misses_per_packet: per_packet(|run| run.cache_misses),
        of_copy: (!matches!(setup.way, Way::Copy)).then(|| median(ratios)).filter(|ratio| ratio.is_finite()),
        lost: runs.iter().map(|run| run.lost).sum(),
    }
}

fn measure(
    setup: &Setup,
    underlay: Underlay,
    duration: Duration,
    core: CoreId,
    hardware: &mut Hardware,
) -> Result<Run, String> {
    let frames = FRAMES.max(setup.flows.next_multiple_of(BURST));
    let mut rig = Rig::over(underlay, 1, frames, ADDRESSES - 2)?;
    let config = ClientConfig { ring_log2: 11, ..ClientConfig::default() };
    let (client, mut ring) = match setup.way {
        Way::Copy => {
            let (client, rings) = connect(config)?;
            (client, rings.tx.into_iter().next())
        }
        Way::In | Way::Out => (rig.attach(EndpointId(0), config)?, None),
    };
    let mut bursts = match setup.way {
        Way::Copy | Way::In => bursts(&mut rig, setup, underlay)?,
        Way::Out => Vec::new(),
    };
    let stop = AtomicBool::new(false);
    let on_its_core = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            core_affinity::set_for_current(core);
            on_its_core.wait();
            tenant(client, setup, &stop);
        });
        on_its_core.wait();
        let start = Instant::now();
        let deadline = start + duration;
        let (mut moved, mut counted, mut pace) = ((0, 0), (None, None), Pace::new());
        let calls = allocation_counter::measure(|| {
            counted = hardware.count(|| {
                moved = match &mut ring {
                    Some(ring) => copy_only(ring, &bursts, underlay.overhead(), deadline, &mut pace),
                    None if bursts.is_empty() => way_out(&mut rig, deadline, &mut pace),
                    None => way_in(&mut rig, &mut bursts, deadline, &mut pace),
                };
            });
        });
        let seconds = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        for frame in bursts.iter_mut().flat_map(Burst::drain) {
            rig.pool.put(frame);
        }
        Ok(Run {
            packets: moved.0,
            lost: moved.1,
            seconds,
            burst_cycles: median(pace.samples),
            allocations: calls.count_total + calls.count_current.unsigned_abs(),
            instructions: counted.0,
            cache_misses: counted.1,
        })
    })
}

/// All frames of the pool, in bursts, as the far VTEP sends them: flow by flow, each from the next station.
fn bursts(rig: &mut Rig, setup: &Setup, underlay: Underlay) -> Result<Vec<Burst>, String> {
    let mut bursts = Vec::new();
    let mut burst = Burst::new();
    let mut number = 0;
    while let Some(mut frame) = rig.pool.take() {
        let from = if setup.flows > 1 { station(number as u32 % (ADDRESSES - 2)) } else { FAR };
        let mut packet = inner_of(setup.ip, from, TENANT, setup.inner_bytes);
        set_flow(&mut packet, setup.ip, (number % setup.flows) as u16);
        let bytes = encapsulated_over(underlay, &packet);
        frame.reset(0, bytes.len()).ok_or("the frame does not fit a chunk")?.copy_from_slice(&bytes);
        let _room = burst.push(frame);
        if burst.room() == 0 {
            bursts.push(std::mem::take(&mut burst));
        }
        number += 1;
    }
    Ok(bursts)
}

/// Looks at the first bytes of what comes and sends what fits, as fast as it can.
fn tenant(mut client: Interface, setup: &Setup, stop: &AtomicBool) {
    let (Some(rx), Some(tx)) = (client.rx.first_mut(), client.tx.first_mut()) else { return };
    let mut packet = inner_of(setup.ip, TENANT, FAR, setup.inner_bytes);
    let mut flow = 0;
    let mut seen = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let _peer = rx.pending();
        while let Some(packet) = rx.next_packet() {
            let mut head = [0; 8];
            let _read = packet.is_ok_and(|packet| packet.copy_front_to(&mut head).is_some());
            seen ^= u64::from_ne_bytes(head);
        }
        rx.release();
        if !matches!(setup.way, Way::Out) {
            continue;
        }
        for _ in 0..BURST {
            if setup.flows > 1 {
                flow = (flow + 1) % setup.flows;
                set_flow(&mut packet, setup.ip, flow as u16);
            }
            if tx.push(&packet).is_err() {
                break;
            }
        }
        let _woken = tx.flush();
    }
    std::hint::black_box(seen);
}

/// Whether it is time to end, looked at seldom: the clock costs as much as a packet.
struct Deadline {
    at: Instant,
    next_look: u64,
}

impl Deadline {
    fn new(at: Instant) -> Deadline {
        Deadline { at, next_look: cycles() }
    }

    #[inline]
    fn is_over(&mut self) -> bool {
        let now = cycles();
        if now <= self.next_look {
            return false;
        }
        self.next_look = now + 1_000_000;
        Instant::now() >= self.at
    }
}

/// What bursts cost of which every packet got through, in cycles a packet: nobody waited and nobody was waited for.
struct Pace {
    samples: Vec<f64>,
    next: usize,
}

impl Pace {
    /// Nothing is allocated after this: new bursts take the places of the oldest.
    fn new() -> Pace {
        Pace { samples: Vec::with_capacity(1 << 16), next: 0 }
    }

    #[inline]
    fn note(&mut self, since: u64, packets: usize) {
        let each = cycles().wrapping_sub(since) as f64 / packets as f64;
        match self.samples.get_mut(self.next) {
            Some(oldest) => *oldest = each,
            None => self.samples.push(each),
        }
        self.next = (self.next + 1) % (1 << 16);
    }
}

/// The same copies as [`way_in`] makes, into the same kind of ring, and nothing more.
fn copy_only(
    ring: &mut TxRing,
    bursts: &[Burst],
    overhead: usize,
    deadline: Instant,
    pace: &mut Pace,
) -> (u64, u64) {
    let mut deadline = Deadline::new(deadline);
    let (mut moved, mut lost) = (0, 0);
    for burst in bursts.iter().cycle() {
        let (start, lost_before) = (cycles(), lost);
        for frame in burst.iter() {
            match frame.bytes().get(overhead..).map(|inner| ring.push(inner)) {
                Some(Ok(())) => moved += 1,
                _ => lost += 1,
            }
        }
        let _woken = ring.flush();
        if lost == lost_before {
            pace.note(start, burst.len());
        }
        if deadline.is_over() {
            break;
        }
    }
    (moved, lost)
}

/// One burst after the other from memory to the tenant. What its ring does not take is dropped and shown as lost: then
/// the tenant was the slower side, and only what it got counts.
fn way_in(rig: &mut Rig, bursts: &mut [Burst], deadline: Instant, pace: &mut Pace) -> (u64, u64) {
    let mut deadline = Deadline::new(deadline);
    let mut spare = Burst::new();
    let len = bursts.first().and_then(|burst| burst.iter().next()).map_or(0, Frame::len);
    while !deadline.is_over() {
        for burst in bursts.iter_mut() {
            let (start, given) = (cycles(), rig.counters.tenant_tx.frames.get());
            let mut cx = rig.cx();
            if let Some(traffic) = cx.counters.uplink_rx.of(UplinkId(0)) {
                traffic.many(burst.len(), burst.len() * len);
            }
            stages::run_from(Stage::Classify, (burst, &mut spare), &mut cx);
            // They are at home now, and nobody else took any of them: the same ones come again.
            while burst.room() > 0
                && let Some(mut frame) = cx.pool.take()
            {
                let _there = frame.reset(0, len);
                let _room = burst.push(frame);
            }
            if cx.counters.tenant_tx.frames.get() - given == burst.len() as u64 {
                pace.note(start, burst.len());
            }
        }
    }
    (rig.counters.tenant_tx.frames.get(), rig.counters.dropped.total())
}

/// One burst after the other from the tenant; what is ready for the wire is counted and thrown away.
fn way_out(rig: &mut Rig, deadline: Instant, pace: &mut Pace) -> (u64, u64) {
    let mut deadline = Deadline::new(deadline);
    let mut bursts = (Burst::new(), Burst::new());
    while !deadline.is_over() {
        let start = cycles();
        let mut cx = rig.cx();
        collect::run(&mut bursts.0, &mut cx);
        let packets = bursts.0.len();
        stages::run_from(Stage::Lookup, (&mut bursts.0, &mut bursts.1), &mut cx);
        if packets >= collect::PER_TENANT {
            pace.note(start, packets);
        }
    }
    (rig.sent(), rig.counters.dropped.total())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All three ways, in this profile too.
    #[test]
    fn no_setup_allocates() {
        let core = *core_affinity::get_core_ids().unwrap().first().unwrap();
        let mut hardware = Hardware::new();
        for setup in &SETUPS {
            let underlay = if setup.flows == 1 { Underlay::Ipv4 } else { Underlay::Ipv6 };
            let run = measure(setup, underlay, Duration::from_millis(20), core, &mut hardware).unwrap();
            assert_eq!(run.allocations, 0, "{}", setup.name);
            // What the tenant sends in so short a time depends on who else wants its core; what is sent to it does not.
            let is_out = matches!(setup.way, Way::Out);
            assert!(is_out || run.packets + run.lost >= BURST as u64, "{}", setup.name);
        }
    }

    #[test]
    fn each_frame_is_its_flows_and_its_stations() {
        for setup in &SETUPS {
            let mut rig = Rig::with_stations(1, FRAMES, ADDRESSES - 2).unwrap();
            let bursts = bursts(&mut rig, setup, Underlay::Ipv6).unwrap();
            let mut frames = bursts.iter().flat_map(Burst::iter).map(Frame::bytes);
            let (first, second) = (frames.next().unwrap(), frames.next().unwrap());
            assert_eq!((first == second, frames.count()), (setup.flows == 1, FRAMES - 2), "{}", setup.name);
            for mut burst in bursts {
                burst.drain().for_each(|frame| rig.pool.put(frame));
            }
        }
    }

    #[test]
    fn the_newest_bursts_count_and_nothing_grows() {
        let mut pace = Pace::new();
        let room = pace.samples.capacity();
        for _ in 0..room + 10 {
            pace.note(cycles(), 1);
        }
        assert_eq!((pace.samples.capacity(), pace.next), (room, 10));
    }

    /// What an older version wrote is read, and has no figures that it did not measure.
    #[test]
    fn results_without_the_newer_figures_are_read() {
        let old = r#"{"cores":2,"runs":5,"environment":null,"cases":[{"name":"in","inner_bytes":64,"mpps":1.0,
            "mpps_lowest":1.0,"mpps_highest":1.0,"cycles_per_packet":null,"lost":0}]}"#;
        let report: Report = serde_json::from_str(old).unwrap();
        assert_eq!((report.cases[0].of_copy, report.cases[0].instructions_per_packet), (None, None));
        assert!(report.text().contains("core ?"));
    }
}
