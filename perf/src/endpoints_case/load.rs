//! What others notice of bursts: a stream at some 70 % of what the worker can, and how late its packets are while nothing comes or goes,
//! and while a thousand endpoints come and go again and again. Windows of both kinds take turns.

use std::time::{Duration, Instant};

use peregrine_dataplane::replay::{Pace, ReplayFrame, ReplayStream, Speed};
use peregrine_dataplane::types::EndpointId;
use serde::{Deserialize, Serialize};

use super::bursts::Bench;
use crate::figures::{median, spread};
use crate::paced::{Latencies, hertz, speed};
use crate::rig::{tenant_mac, underlay_frame};

/// Whose stream it is.
const OTHER: u16 = 0;
const INNER_BYTES: usize = 64;
/// Endpoints that are there, and those that come and go at once.
const EXISTING: u16 = 1000;
const BURST: u16 = 1000;
/// From one burst's beginning to the next one's.
const EVERY: Duration = Duration::from_millis(100);
/// Of what the worker can.
const LOAD: f64 = 0.7;
/// Cycles between frames that no worker keeps up with.
const TOO_FAST: f64 = 8.0;
/// Control's turns, as while a daemon has something to look after.
const TURN: Duration = Duration::from_millis(1);

/// Medians of the windows, and their spread.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct UnderLoad {
    pub p99_us_before: f64,
    pub p99_us_before_lowest: f64,
    pub p99_us_before_highest: f64,
    pub p99_us_during: f64,
    pub p99_us_during_lowest: f64,
    pub p99_us_during_highest: f64,
    /// During over before, medians of neighbouring windows.
    pub p99_ratio: f64,
    /// What the worker can, packets a second, and what it was given.
    pub capacity_pps: f64,
    pub load_pps: f64,
    /// Endpoints that came, and went, a second, in windows with bursts.
    pub endpoints_per_second: f64,
    /// Packets that were not taken in time, in windows without bursts and with.
    pub missed_before: u64,
    pub missed_during: u64,
    pub windows: usize,
}

struct Window {
    p99_us: f64,
    missed: u64,
    bursts: u32,
}

struct Load {
    bench: Bench,
    pace: std::sync::Arc<Pace>,
    late: std::sync::Arc<peregrine_dataplane::discard::DiscardCounters>,
    hertz: f64,
}

/// On a thread of its own, which it pins.
pub fn run(cores: [core_affinity::CoreId; 2], quick: bool) -> Result<UnderLoad, String> {
    let pace = std::sync::Arc::new(Pace::new(Speed::Stopped));
    let frame = ReplayFrame { flow: 1, bytes: underlay_frame(tenant_mac(OTHER), INNER_BYTES) };
    let stream = ReplayStream { frames: vec![frame], pace: pace.clone(), field: None, is_urgent: false };
    let mut bench = Bench::start(cores, EXISTING, BURST, vec![stream])?;
    let late =
        bench.engine().attach_timed_discard(EndpointId(OTHER), 2).map_err(|error| error.to_string())?;
    let mut load = Load { bench, pace, late, hertz: hertz() };
    let window = Duration::from_millis(if quick { 500 } else { 1000 });
    let capacity_pps = load.capacity(window)?;
    let load_pps = LOAD * capacity_pps;
    load.pace.set(speed(load_pps, load.hertz));
    load.window(window / 2, true)?; // until all is warm
    let (mut before, mut during) = (Vec::new(), Vec::new());
    let windows = if quick { 5 } else { 11 };
    for _ in 0..windows {
        before.push(load.window(window, false)?);
        during.push(load.window(window, true)?);
    }
    let p99 =
        |windows: &[Window]| spread(windows.iter().map(|window| window.p99_us).collect()).unwrap_or_default();
    let missed = |windows: &[Window]| windows.iter().map(|window| window.missed).sum();
    let ([b_lowest, b, b_highest], [d_lowest, d, d_highest]) = (p99(&before), p99(&during));
    let bursts: u32 = during.iter().map(|window| window.bursts).sum();
    let seconds = window.as_secs_f64() * windows as f64;
    Ok(UnderLoad {
        p99_us_before: b,
        p99_us_before_lowest: b_lowest,
        p99_us_before_highest: b_highest,
        p99_us_during: d,
        p99_us_during_lowest: d_lowest,
        p99_us_during_highest: d_highest,
        p99_ratio: median(before.iter().zip(&during).map(|(b, d)| d.p99_us / b.p99_us).collect()),
        capacity_pps,
        load_pps,
        endpoints_per_second: f64::from(bursts) * f64::from(BURST) / seconds,
        missed_before: missed(&before),
        missed_during: missed(&during),
        windows,
    })
}

impl Load {
    /// Packets a second: the middle of some windows.
    fn capacity(&mut self, window: Duration) -> Result<f64, String> {
        self.pace.set(Speed::Every(TOO_FAST));
        let mut rates = Vec::new();
        for _ in 0..5 {
            let (begun, before) = (Instant::now(), self.late.packets.get());
            self.window(window / 2, false)?;
            rates.push((self.late.packets.get() - before) as f64 / begun.elapsed().as_secs_f64());
        }
        Ok(median(rates))
    }

    fn window(&mut self, time: Duration, with_bursts: bool) -> Result<Window, String> {
        let (begun, mut bursts) = (Instant::now(), 0);
        let (before, missed) = (self.latencies(), self.pace.missed.get());
        while begun.elapsed() < time {
            if with_bursts && begun.elapsed() >= EVERY * bursts {
                self.bench.come(Instant::now())?;
                self.bench.go()?;
                bursts += 1;
            }
            self.bench.engine().poll();
            std::thread::sleep(TURN);
        }
        let cycles = self.latencies().since(&before).percentile(0.99).ok_or("no packets came through")?;
        Ok(Window {
            p99_us: cycles as f64 / self.hertz * 1e6,
            missed: self.pace.missed.get() - missed,
            bursts,
        })
    }

    fn latencies(&self) -> Latencies {
        Latencies::sum(self.late.latency.iter().map(|latency| latency.counts()))
    }
}
