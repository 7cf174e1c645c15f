//! The kernel's overlay (vxlan, bridge, veth, UDP socket), without and with RPS onto the second core, beside Peregrine
//! (memif tenant): over the same wire, with the same generator, on the same two cores. `main.rs` calls `run`.
//!
//! The hosts are those of `peregrine demo`, the figures those of `peregrine-pktgen search` and `send --rtt`, which run as
//! the programs that a user runs. The systems take turns, run after run, so that what else the machine does meets all
//! alike. Round trips are measured at parts of the *kernel's* capacity for round trips, so that all answer the same load.
//!
//! The most that arrives, and its CPU time, are those of a stream at the load of which most arrived in the search (at full
//! rate an overlay can come to a standstill, which is not the most that it can do): what each of the two cores was busy according to
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

use bench::{Bench, Capacity, Case, Measured};
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
    /// The stream for which CPU time is counted.
    stream: f64,
    /// The same for Peregrine: `status` tells how busy a worker was over a second, one after the other, and one of them
    /// must be all stream: more than two seconds.
    stream_peregrine: f64,
    /// Round trips at one rate: up to twice this, for so many packets.
    round_trips: f64,
    packets: f64,
    /// For measuring round trips again that something disturbed: of each system in each run, so that all have the same.
    spare: f64,
}

const QUICK: Times = Times {
    runs: 1,
    search: 1.4,
    first_trial: 0.08,
    trial: 0.3,
    sum: 0.3,
    stream: 0.6,
    stream_peregrine: 2.2,
    round_trips: 0.2,
    packets: 12_000.0,
    spare: 0.5,
};

/// Twenty minutes at most.
const FULL: Times = Times {
    runs: RUNS,
    search: 5.5,
    first_trial: 0.1,
    trial: 0.5,
    sum: 1.5,
    stream: 1.5,
    stream_peregrine: 2.4,
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

/// All of it. Namespaces and programs are gone when it returns, however it ends. If a run fails, or Ctrl-C ends it, the
/// report is of those before it, and tells why there are no more; without one it is an error.
pub fn run(quick: bool) -> Result<Report, String> {
    let interrupted = Arc::new(AtomicBool::new(false));
    demo::check_requirements().map_err(|error| plain(&error))?;
    demo::catch_signals(&interrupted).map_err(|error| plain(&error))?;
    let times = if quick { QUICK } else { FULL };
    let cases: &[Case] = if quick { &QUICK_CASES } else { &FULL_CASES };
    let (begun, watch) = (Instant::now(), Watch::start());
    let mut done = Done::default();
    let failure = (1..=times.runs).find_map(|_| done.add(times, cases, &interrupted).err());
    // Whatever failed then, it failed because of that.
    let failure = match failure {
        Some(_) if interrupted.load(Ordering::Relaxed) => Some(match demo::hosts::left_behind()[..] {
            [] => "interrupted; everything that it made was removed".into(),
            ref left => format!(
                "interrupted; these namespaces are still there: {}: remove them with `ip netns del NAME`",
                left.join(", ")
            ),
        }),
        failure => failure,
    };
    match failure {
        Some(failure) if done.runs == 0 => Err(failure),
        failure => Ok(Report::new(Measurement {
            quick,
            runs: done.runs,
            failure,
            seconds: begun.elapsed().as_secs_f64(),
            machine: watch.end(),
            uplink: done.uplink,
            cases,
            capacities: &done.capacities,
            all: &done.all,
        })),
    }
}

/// The same line without the demo's name.
pub fn plain(error: &DemoError) -> String {
    let text = error.to_string();
    text.strip_prefix("demo: ").unwrap_or(&text).to_string()
}

/// What whole runs gave.
#[derive(Debug, Default)]
struct Done {
    runs: usize,
    all: Vec<Measured>,
    /// The kernel's capacity for round trips, of each case: the first run's, so that all runs answer the same load.
    capacities: Vec<Capacity>,
    uplink: serde_json::Value,
}

impl Done {
    /// One run more: all systems, all cases. If it fails nothing of it is kept, for a median wants all systems alike.
    fn add(&mut self, times: Times, cases: &[Case], interrupted: &Arc<AtomicBool>) -> Result<(), String> {
        let mut run = Vec::new();
        for system in System::ALL {
            eprintln!("peregrine-perf: run {} of {}: {}", self.runs + 1, times.runs, system.name());
            let bench = Bench::start(system, times, interrupted.clone())?;
            for (at, case) in cases.iter().enumerate() {
                let capacity = match self.capacities.get(at) {
                    Some(capacity) => *capacity,
                    None => {
                        let capacity = bench.round_trip_capacity(*case)?;
                        self.capacities.push(capacity);
                        capacity
                    }
                };
                let figures = bench.measure(*case, capacity.pps)?;
                run.push(Measured { system, case: *case, figures });
            }
            if let Some(status) = bench.stop()? {
                self.uplink = status["uplink"].clone();
            }
        }
        self.all.append(&mut run);
        self.runs += 1;
        Ok(())
    }
}
