//! One worker's stages on one core, a tenant on another, shared memory between them, no wire.
//!
//! *in*: VXLAN frames that lie ready in memory go through classify, decap, lookup and deliver into a memif ring; the
//! tenant copies each packet out. *out*: a tenant sends as fast as it can; collect, lookup and encap
//! make frames that are then counted and thrown away. The frames are never copied but by the stages themselves, and
//! always the same 256 chunks, so they stay in the cache: what is measured is the instructions, not the memory.

use std::sync::Barrier;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peregrine_dataplane::clock::{cycles, cycles_per_second};
use peregrine_dataplane::frame::{BURST, Burst};
use peregrine_dataplane::stages::{self, Stage, collect};
use peregrine_dataplane::types::{EndpointId, MacAddr};
use peregrine_memif::{ClientConfig, Interface};
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch};
use crate::figures::{null_as_nan, spread};
use crate::rig::{FAR, Rig, fill, inner, tenant_mac, underlay_frame};

const TENANT: MacAddr = tenant_mac(0);
/// Frames that are presented again and again.
const FRAMES: usize = 256;
/// Runs of each case; the median counts.
const RUNS: usize = 5;

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
    pub lost: u64,
}

/// All cases.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cores: usize,
    pub runs: usize,
    pub cases: Vec<Case>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
}

impl Report {
    /// A table.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<10}{:>12}{:>10}{:>18}{:>16}{:>12}\n",
            "case", "inner bytes", "Mpps", "lowest–highest", "cycles/packet", "lost"
        );
        for case in &self.cases {
            let spread = format!("{:.1}–{:.1}", case.mpps_lowest, case.mpps_highest);
            out += &format!(
                "{:<10}{:>12}{:>10.1}{:>18}{:>16.0}{:>12}\n",
                case.name, case.inner_bytes, case.mpps, spread, case.cycles_per_packet, case.lost
            );
        }
        out + &format!(
            "Median of {} runs; one core for the stages, one for the tenant, {} in all.\n",
            self.runs, self.cores
        )
    }
}

/// Runs all cases.
pub fn run(quick: bool) -> Result<Report, String> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    let [tenant, worker, ..] = cores[..] else {
        return Err("it needs two cores: one for the stages and one for the tenant".into());
    };
    let watch = Watch::start();
    let duration = Duration::from_millis(if quick { 500 } else { 2000 });
    let hertz = cycles_per_second();
    core_affinity::set_for_current(worker);
    let mut cases = Vec::new();
    for inner_bytes in [64, 1400] {
        for (name, way) in [("in", way_in as Way), ("out", way_out)] {
            let mut runs = Vec::new();
            for _ in 0..RUNS {
                runs.push(measure(way, inner_bytes, duration, tenant)?);
            }
            cases.push(summary(name, inner_bytes, runs, hertz));
        }
    }
    Ok(Report { cores: 2, runs: RUNS, cases, environment: Some(watch.end()) })
}

/// Packets, seconds, packets lost.
type Run = (u64, f64, u64);

fn summary(name: &str, inner_bytes: usize, runs: Vec<Run>, hertz: u64) -> Case {
    let rates = runs.iter().map(|(packets, seconds, _)| *packets as f64 / seconds).collect();
    let [lowest, median, highest] = spread(rates).unwrap_or_default();
    Case {
        name: name.into(),
        inner_bytes,
        mpps: median / 1e6,
        mpps_lowest: lowest / 1e6,
        mpps_highest: highest / 1e6,
        cycles_per_packet: hertz as f64 / median,
        lost: runs.iter().map(|(_, _, lost)| lost).sum(),
    }
}

/// Runs until `deadline`; returns what was moved and what was lost.
type Way = fn(&mut Rig, frame_len: usize, deadline: Instant) -> (u64, u64);

fn measure(
    way: Way,
    inner_bytes: usize,
    duration: Duration,
    core: core_affinity::CoreId,
) -> Result<Run, String> {
    let mut rig = Rig::new(1, FRAMES)?;
    let client = rig.attach(EndpointId(0), ClientConfig { ring_log2: 11, ..ClientConfig::default() })?;
    let frame = underlay_frame(TENANT, inner_bytes);
    fill(&mut rig.pool, &frame)?;
    let stop = AtomicBool::new(false);
    let on_its_core = Barrier::new(2);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            core_affinity::set_for_current(core);
            on_its_core.wait();
            tenant(client, inner_bytes, &stop);
        });
        on_its_core.wait();
        let start = Instant::now();
        let (moved, lost) = way(&mut rig, frame.len(), start + duration);
        let seconds = start.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        Ok((moved, seconds, lost))
    })
}

/// Reads what comes and sends what fits, as fast as it can.
fn tenant(mut client: Interface, inner_bytes: usize, stop: &AtomicBool) {
    let (Some(rx), Some(tx)) = (client.rx.first_mut(), client.tx.first_mut()) else { return };
    let packet = inner(TENANT, FAR, inner_bytes);
    let mut head = [0u8; 2048];
    while !stop.load(Ordering::Relaxed) {
        let _peer = rx.pending();
        while let Some(packet) = rx.next_packet() {
            let _read = packet.is_ok_and(|packet| packet.copy_to(&mut head).is_some());
        }
        rx.release();
        for _ in 0..BURST {
            if tx.push(&packet).is_err() {
                break;
            }
        }
        let _woken = tx.flush();
    }
}

/// One burst after the other from memory to the tenant. What its ring does not take is dropped and shown as lost: then
/// the tenant was the slower side, and only what it got counts.
fn way_in(rig: &mut Rig, len: usize, deadline: Instant) -> (u64, u64) {
    let mut next_look = cycles();
    loop {
        let mut cx = rig.cx();
        let mut burst = Burst::new();
        while let Some(mut frame) = cx.pool.take() {
            let _there = frame.reset(0, len);
            if let Err(frame) = burst.push(frame) {
                cx.pool.put(frame);
                break;
            }
        }
        cx.counters.uplink_rx.frames.add(burst.len() as u64);
        stages::run_from(Stage::Classify, (&mut burst, &mut Burst::new()), &mut cx);
        if cycles() > next_look {
            if Instant::now() >= deadline {
                break;
            }
            next_look = cycles() + 1_000_000;
        }
    }
    (rig.counters.tenant_tx.frames.get(), rig.counters.dropped.total())
}

/// One burst after the other from the tenant; what is ready for the wire is counted and thrown away.
fn way_out(rig: &mut Rig, _len: usize, deadline: Instant) -> (u64, u64) {
    let mut bursts = (Burst::new(), Burst::new());
    let mut next_look = cycles();
    loop {
        let mut cx = rig.cx();
        collect::run(&mut bursts.0, &mut cx);
        stages::run_from(Stage::Lookup, (&mut bursts.0, &mut bursts.1), &mut cx);
        if cycles() > next_look {
            if Instant::now() >= deadline {
                break;
            }
            next_look = cycles() + 1_000_000;
        }
    }
    (rig.sent(), rig.counters.dropped.total())
}
