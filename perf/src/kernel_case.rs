//! The kernel's overlay (vxlan, bridge, veth, UDP socket), without and with RPS onto the second core, beside Peregrine
//! (memif tenant): over the same wire, with the same generator, on the same two cores. `main.rs` calls `run`.
//!
//! The hosts are those of `peregrine demo`, the figures those of `peregrine-pktgen search` and `send --rtt`, which run as
//! the programs that a user runs. The systems take turns, run after run, so that what else the machine does meets all
//! alike. Round trips are measured at parts of the *kernel's* capacity for round trips, so that all answer the same load.
//!
//! CPU time is counted while the generator sends as fast as it can: what each of the two cores was busy according to
//! /proc/stat, per million packets that arrived. The generator's core does the wire's work too, and for Peregrine its
//! tenant's. A worker polls, so its core is always busy; `status` tells which share of that was work.

/// The systems, and what is measured on them.
mod bench;
/// What is shown.
mod report;
/// As tables.
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use peregrine_control::demo::{self, DemoError};

use bench::{Bench, Case, Measured};
pub use bench::{System, program};
use report::Measurement;
pub use report::{AtLoad, CaseReport, LOADS, Percentiles, Report, Side};

use crate::environment::Watch;

/// Runs of the full measurement; the median counts.
const RUNS: usize = 5;

/// How long what takes.
#[derive(Clone, Copy, Debug)]
struct Times {
    runs: usize,
    /// All of a search, at most.
    search: f64,
    first_trial: f64,
    trial: f64,
    sum: f64,
    /// The stream at full rate for which CPU time is counted.
    stream: f64,
    /// The same for Peregrine: `status` tells how busy a worker was over a second, which must be all stream.
    stream_peregrine: f64,
    /// Round trips at one rate: up to twice this, for so many packets.
    round_trips: f64,
    packets: f64,
    /// For measuring round trips again that something disturbed: of each system in each run, so that all have the same.
    spare: f64,
}

const QUICK: Times = Times {
    runs: 1,
    search: 1.1,
    first_trial: 0.08,
    trial: 0.2,
    sum: 0.4,
    stream: 0.5,
    stream_peregrine: 1.2,
    round_trips: 0.2,
    packets: 12_000.0,
    spare: 2.0,
};

/// A quarter of an hour at most.
const FULL: Times = Times {
    runs: RUNS,
    search: 4.0,
    first_trial: 0.1,
    trial: 0.3,
    sum: 0.9,
    stream: 1.2,
    stream_peregrine: 1.2,
    round_trips: 0.5,
    packets: 12_000.0,
    spare: 8.0,
};

const QUICK_CASES: [Case; 3] =
    [Case { bytes: 64, flows: 1 }, Case { bytes: 64, flows: 100 }, Case { bytes: 1400, flows: 1 }];

const FULL_CASES: [Case; 6] = [
    Case { bytes: 64, flows: 1 },
    Case { bytes: 64, flows: 100 },
    Case { bytes: 512, flows: 1 },
    Case { bytes: 512, flows: 100 },
    Case { bytes: 1400, flows: 1 },
    Case { bytes: 1400, flows: 100 },
];

/// All of it. Namespaces and programs are gone when it returns, however it ends.
pub fn run(quick: bool) -> Result<Report, String> {
    let interrupted = Arc::new(AtomicBool::new(false));
    demo::check_requirements().map_err(|error| plain(&error))?;
    demo::catch_signals(&interrupted).map_err(|error| plain(&error))?;
    match measure(quick, &interrupted) {
        // Whatever failed then, it failed because of that.
        _ if interrupted.load(Ordering::Relaxed) => match demo::hosts::left_behind()[..] {
            [] => Err("interrupted; everything that it made was removed".into()),
            ref left => Err(format!(
                "interrupted; these namespaces are still there: {}: remove them with `ip netns del NAME`",
                left.join(", ")
            )),
        },
        result => result,
    }
}

/// The same line without the demo's name.
pub fn plain(error: &DemoError) -> String {
    let text = error.to_string();
    text.strip_prefix("demo: ").unwrap_or(&text).to_string()
}

fn measure(quick: bool, interrupted: &Arc<AtomicBool>) -> Result<Report, String> {
    let (begun, watch) = (Instant::now(), Watch::start());
    let times = if quick { QUICK } else { FULL };
    let cases: &[Case] = if quick { &QUICK_CASES } else { &FULL_CASES };
    let mut all = Vec::new();
    let mut uplink = serde_json::Value::Null;
    // The kernel's capacity for round trips, of each case: the first run's, so that all runs answer the same load.
    let mut capacities: Vec<u64> = Vec::new();
    for number in 1..=times.runs {
        for system in System::ALL {
            eprintln!("peregrine-perf: run {number} of {}: {}", times.runs, system.name());
            let bench = Bench::start(system, times, interrupted.clone())?;
            for (at, case) in cases.iter().enumerate() {
                if capacities.len() <= at {
                    capacities.push(bench.round_trip_capacity(*case)?);
                }
                let capacity = capacities.get(at).copied().unwrap_or(0);
                let figures = bench.measure(*case, capacity)?;
                all.push(Measured { system, case: *case, figures });
            }
            if let Some(status) = bench.stop()? {
                uplink = status["uplink"].clone();
            }
        }
    }
    Ok(Report::new(Measurement {
        quick,
        runs: times.runs,
        seconds: begun.elapsed().as_secs_f64(),
        machine: watch.end(),
        uplink,
        cases,
        capacities: &capacities,
        all: &all,
    }))
}
