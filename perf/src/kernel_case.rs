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

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peregrine_control::demo::{self, DemoError};

pub use bench::program;
use bench::{Bench, Case, Measured, System};
pub use report::Report;

/// Runs of the full measurement; the median counts.
const RUNS: usize = 5;
/// After this a quick run leaves out the round trips that are still to come, and says so. Those with RPS it always does.
const QUICK_PATIENCE: Duration = Duration::from_secs(42);

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
    /// Round trips at one rate.
    round_trips: f64,
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
};

const FULL: Times = Times {
    runs: RUNS,
    search: 10.0,
    first_trial: 0.1,
    trial: 0.5,
    sum: 1.5,
    stream: 2.0,
    stream_peregrine: 2.0,
    round_trips: 2.0,
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
    let begun = Instant::now();
    let times = if quick { QUICK } else { FULL };
    let cases: &[Case] = if quick { &QUICK_CASES } else { &FULL_CASES };
    let hurry = || quick && begun.elapsed() > QUICK_PATIENCE;
    let mut all = Vec::new();
    let mut uplink = serde_json::Value::Null;
    // The kernel's capacity for round trips, of each case: the first run's, so that all runs answer the same load.
    let mut capacities: Vec<u64> = Vec::new();
    for number in 1..=times.runs {
        for system in [System::Kernel, System::KernelRps, System::Peregrine] {
            eprintln!("peregrine-perf: run {number} of {}: {}", times.runs, system.name());
            let bench = Bench::start(system, times, interrupted.clone())?;
            for (at, case) in cases.iter().enumerate() {
                if capacities.len() <= at {
                    capacities.push(bench.round_trip_capacity(*case)?);
                }
                let capacity = capacities.get(at).copied().unwrap_or(0);
                let skip = || hurry() || (quick && system == System::KernelRps);
                let figures = bench.measure(*case, capacity, &skip)?;
                all.push(Measured { system, case: *case, figures });
            }
            if let Some(status) = bench.stop()? {
                uplink = status["uplink"].clone();
            }
        }
    }
    Ok(Report::new(quick, times.runs, &all, cases, &capacities, &uplink, begun.elapsed()))
}
