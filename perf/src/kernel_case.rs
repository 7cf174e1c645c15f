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

/// A system on its hosts, and how it is measured.
mod bench;
/// What is compared, and what a run of it gives.
mod measured;
/// What is said beside the figures.
mod notes;
/// What is shown.
mod report;
/// Round trips of all runs.
mod round_trips;
/// As tables.
mod text;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use peregrine_control::demo::{self, DemoError};

use bench::Bench;
pub use bench::program;
pub use measured::System;
use measured::{Capacity, Case, Measured};
use report::Measurement;
pub use report::{CaseReport, LOADS, Report, Side};
pub use round_trips::{AtLoad, Percentiles};

use crate::environment::Watch;

/// Runs of the full measurement; the median counts.
const RUNS: usize = 5;

/// How long what takes, in seconds.
#[derive(Clone, Copy, Debug)]
struct Times {
    runs: usize,
    /// All of it: searches share what the rest leaves of it, and no run is begun, and nothing measured again, that would not
    /// be over by then.
    all: f64,
    /// One system in one case, about: what is left is told by it before anything was measured.
    case: f64,
    /// How many systems are measured again at most because something failed.
    retries: usize,
    /// All of a search: at most, and at least.
    search: f64,
    search_least: f64,
    first_trial: f64,
    trial: f64,
    sum: f64,
    /// Of the search's bounds, in percent.
    width: f64,
    /// The stream for which CPU time is counted.
    stream: f64,
    /// The same for Peregrine: `status` tells how busy a worker was over a second, one after the other, and one of them
    /// must be all stream: more than two seconds.
    stream_peregrine: f64,
    /// Round trips at one rate, for so many packets, but no shorter and no longer than this.
    round_trips: f64,
    round_trips_longest: f64,
    packets: f64,
    /// A rate beyond the capacity for round trips is lowered by this factor, so often at most.
    capacity_step: f64,
    capacity_steps: usize,
    /// For measuring round trips again that something disturbed: of each system in each run, so that all have the same.
    spare: f64,
}

/// Under a minute.
const QUICK: Times = Times {
    runs: 1,
    all: 49.0,
    case: 5.0,
    retries: 1,
    search: 2.4,
    search_least: 0.6,
    first_trial: 0.06,
    trial: 0.2,
    sum: 0.2,
    width: 5.0,
    stream: 0.6,
    stream_peregrine: 2.2,
    round_trips: 0.2,
    round_trips_longest: 0.3,
    packets: 12_000.0,
    capacity_step: 0.9,
    capacity_steps: 3,
    spare: 0.5,
};

/// Twenty minutes at most. At idle, too, four runs together have the 10,000 packets that p99.99 takes.
const FULL: Times = Times {
    runs: RUNS,
    all: 1170.0,
    case: 11.0,
    retries: 3,
    search: 5.0,
    search_least: 3.0,
    first_trial: 0.1,
    trial: 0.5,
    sum: 1.0,
    width: 3.0,
    stream: 1.5,
    stream_peregrine: 2.4,
    round_trips: 0.4,
    round_trips_longest: 2.6,
    packets: 8000.0,
    capacity_step: 0.95,
    capacity_steps: 6,
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
    // Before anything else: what is missing will not be there at the next try either.
    program("peregrine").and(program("peregrine-pktgen"))?;
    let times = if quick { QUICK } else { FULL };
    let cases: &[Case] = if quick { &QUICK_CASES } else { &FULL_CASES };
    let watch = Watch::start();
    let mut done = Done::new(times, cases, interrupted.clone());
    let failure = done.all_runs();
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
            retried: done.retried,
            seconds: done.begun.elapsed().as_secs_f64(),
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
#[derive(Debug)]
struct Done<'a> {
    times: Times,
    cases: &'a [Case],
    interrupted: Arc<AtomicBool>,
    begun: Instant,
    runs: usize,
    all: Vec<Measured>,
    /// The kernel's capacity for round trips, of each case: the first run's, so that all runs answer the same load.
    capacities: Vec<Capacity>,
    uplink: serde_json::Value,
    /// What failed and was measured again.
    retried: Vec<String>,
    /// Cases that are behind us, of any system.
    steps: usize,
    /// Cases that were measured, those that a failure made worthless included, and seconds that all but their searches and
    /// streams took.
    measured: usize,
    rest: f64,
    /// Seconds that the capacities took.
    of_capacities: f64,
}

impl Done<'_> {
    fn new(times: Times, cases: &[Case], interrupted: Arc<AtomicBool>) -> Done<'_> {
        Done {
            times,
            cases,
            interrupted,
            begun: Instant::now(),
            runs: 0,
            all: Vec::new(),
            capacities: Vec::new(),
            uplink: serde_json::Value::Null,
            retried: Vec::new(),
            steps: 0,
            measured: 0,
            rest: 0.0,
            of_capacities: 0.0,
        }
    }

    /// Why there are not as many runs as there were to be.
    fn all_runs(&mut self) -> Option<String> {
        while self.runs < self.times.runs {
            if let Err(error) = self.time_for(self.cases.len() * System::ALL.len()).and_then(|()| self.run())
            {
                return Some(error);
            }
        }
        None
    }

    /// One run more: all systems, all cases. If it fails nothing of it is kept, for a median wants all systems alike.
    fn run(&mut self) -> Result<(), String> {
        let mut run = Vec::new();
        for system in System::ALL {
            let before = (run.len(), self.steps);
            while let Err(error) = self.system(system, &mut run) {
                let stopped = self.interrupted.load(Ordering::Relaxed);
                if stopped
                    || self.retried.len() >= self.times.retries
                    || self.time_for(self.cases.len()).is_err()
                {
                    return Err(error);
                }
                let error = format!("run {}: {}: {error}", self.runs + 1, system.name());
                eprintln!("peregrine-perf: {error}; measuring it again");
                self.retried.push(error);
                run.truncate(before.0);
                self.steps = before.1;
            }
        }
        self.all.append(&mut run);
        self.runs += 1;
        Ok(())
    }

    /// All cases of one system.
    fn system(&mut self, system: System, run: &mut Vec<Measured>) -> Result<(), String> {
        // Where the time is short for searches, there is none to measure round trips again.
        let spare = if self.search_seconds() > self.times.search_least { self.times.spare } else { 0.0 };
        let times = Times { spare, ..self.times };
        let bench = Bench::start(system, times, self.interrupted.clone())?;
        for (at, case) in self.cases.iter().copied().enumerate() {
            eprintln!("{}", self.progress(system, case));
            let capacity = match self.capacities.get(at) {
                Some(capacity) => *capacity,
                None => {
                    let begun = Instant::now();
                    let capacity = bench.round_trip_capacity(case, self.search_seconds())?;
                    self.capacities.push(capacity);
                    self.of_capacities += begun.elapsed().as_secs_f64();
                    capacity
                }
            };
            let (begun, seconds) = (Instant::now(), self.search_seconds());
            let figures = bench.measure(case, capacity.pps, seconds, self.start(run, system, case))?;
            let stream = self.streams(self.steps + 1) - self.streams(self.steps);
            self.rest += begun.elapsed().as_secs_f64() - figures.search_seconds - stream;
            self.measured += 1;
            run.push(Measured { system, case, figures });
            self.steps += 1;
        }
        if let Some(status) = bench.stop()? {
            self.uplink = status["uplinks"][0].clone();
        }
        Ok(())
    }

    /// Where a search begins: at what the last one of the same found; that with RPS at what the one without did. An overload
    /// brings the kernel's overlay to a standstill, which tells a search nothing.
    fn start(&self, run: &[Measured], system: System, case: Case) -> Option<u64> {
        let found = |system: System| {
            let same = |measured: &&Measured| measured.system == system && measured.case == case;
            let mut last = run.iter().rev().chain(self.all.iter().rev()).filter(same);
            last.find_map(|measured| measured.figures.confirmed_ndr())
        };
        found(system).or_else(|| (system == System::KernelRps).then(|| found(System::Kernel)).flatten())
    }

    /// What a search may take for all to be over in time: on a busy machine everything else takes longer.
    fn search_seconds(&self) -> f64 {
        let Times { all, case, search, search_least, stream, .. } = self.times;
        let streams = self.streams(self.steps_in_all()) - self.streams(self.steps);
        let left = all - self.begun.elapsed().as_secs_f64() - streams;
        let mean = |seconds: f64, of: usize, before: f64| if of > 0 { seconds / of as f64 } else { before };
        let rest = mean(self.rest, self.measured, case - search - stream);
        let capacities = self.cases.len().saturating_sub(self.capacities.len()) as f64
            * mean(self.of_capacities, self.capacities.len(), search);
        let searches = self.steps_in_all().saturating_sub(self.steps).max(1) as f64;
        ((left - capacities) / searches - rest).clamp(search_least, search)
    }

    /// What the streams of the first so many cases take.
    fn streams(&self, steps: usize) -> f64 {
        let Times { stream, stream_peregrine, .. } = self.times;
        let systems = System::ALL.iter().flat_map(|system| self.cases.iter().map(move |_| system));
        let of = |system: &System| if *system == System::Peregrine { stream_peregrine } else { stream };
        systems.cycle().take(steps).map(of).sum()
    }

    fn steps_in_all(&self) -> usize {
        self.times.runs * System::ALL.len() * self.cases.len()
    }

    /// What so many cases more will take, by those until now.
    fn expected(&self, steps: usize) -> f64 {
        let each = match self.steps {
            0 => self.times.case,
            done => self.begun.elapsed().as_secs_f64() / done as f64,
        };
        each * steps as f64
    }

    /// An error if there is none.
    fn time_for(&self, steps: usize) -> Result<(), String> {
        let (all, so_far) = (self.times.all, self.begun.elapsed().as_secs_f64());
        if so_far + self.expected(steps) <= all {
            return Ok(());
        }
        Err(format!(
            "{so_far:.0} s were over, and one more would have ended after the {all:.0} s that there are"
        ))
    }

    fn progress(&self, system: System, case: Case) -> String {
        let left = match self.expected(self.steps_in_all().saturating_sub(self.steps)) {
            seconds if seconds < 90.0 => format!("{seconds:.0} s"),
            seconds => format!("{:.0} min", seconds / 60.0),
        };
        let (run, runs) = (self.runs + 1, self.times.runs);
        format!("peregrine-perf: run {run} of {runs}: {}: {}; some {left} left", system.name(), case.title())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn done(times: Times) -> Done<'static> {
        Done::new(times, &FULL_CASES, Arc::default())
    }

    fn measured(system: System, ndr_pps: f64, end: &str) -> Measured {
        let figures = measured::Figures {
            max_pps: ndr_pps,
            ndr_pps,
            search_seconds: 1.0,
            ndr_end: end.into(),
            cpu: measured::Cpu::default(),
            round_trips: Vec::new(),
        };
        Measured { system, case: FULL_CASES[0], figures }
    }

    #[test]
    fn a_search_begins_where_the_last_one_ended() {
        let mut done = done(FULL);
        let (case, other) = (FULL_CASES[0], FULL_CASES[1]);
        assert_eq!(done.start(&[], System::KernelRps, case), None);
        let run = [measured(System::Kernel, 5000.0, "device")];
        assert_eq!(done.start(&run, System::KernelRps, case), Some(5000), "as the kernel without RPS");
        assert_eq!(
            (done.start(&run, System::Peregrine, case), done.start(&run, System::Kernel, other)),
            (None, None)
        );
        done.all = vec![
            measured(System::KernelRps, 7000.0, "device"),
            measured(System::KernelRps, 10.0, "unconfirmed"),
        ];
        assert_eq!(
            done.start(&run, System::KernelRps, case),
            Some(7000),
            "what was not confirmed is no start"
        );
    }

    #[test]
    fn what_is_left_is_told_and_bounded() {
        let mut done = done(FULL);
        let line = done.progress(System::Peregrine, FULL_CASES[0]);
        assert_eq!(line, "peregrine-perf: run 1 of 5: peregrine: 64 bytes, 1 flow; some 16 min left");
        assert!(done.time_for(90).is_ok());
        let short = Times { all: 60.0, ..FULL };
        (done.times, done.steps) = (short, 0);
        assert!(done.time_for(90).unwrap_err().contains("would have ended after the 60 s"));
    }

    #[test]
    fn searches_share_what_the_rest_leaves() {
        let mut done = done(FULL);
        assert_eq!(done.search_seconds(), FULL.search, "there is time");
        (done.steps, done.measured, done.rest) = (30, 30, 30.0 * 15.0);
        assert_eq!(done.search_seconds(), FULL.search_least, "the rest takes 15 s each, with 60 to come");
        done.times.all = 60.0 * (15.0 + 4.0) + done.streams(90) - done.streams(30);
        done.capacities = vec![Capacity { pps: 1, prompt: true }; FULL_CASES.len()];
        assert!((3.99..=4.0).contains(&done.search_seconds()), "{}", done.search_seconds());
    }

    #[test]
    fn streams_of_peregrine_are_longer() {
        let done = done(FULL);
        assert_eq!(done.streams(12), 12.0 * FULL.stream);
        let run = 12.0 * FULL.stream + 6.0 * FULL.stream_peregrine;
        assert!((done.streams(36) - 2.0 * run).abs() < 1e-6);
    }

    /// Even if the time is up before the last one.
    #[test]
    fn the_full_measurement_has_the_packets_of_its_deepest_percentile() {
        let at_idle = (FULL.runs - 1) as f64 * 1000.0 * FULL.round_trips_longest.min(FULL.packets / 1000.0);
        assert!(at_idle > measured::PACKETS_MIN[4] as f64, "{at_idle}");
    }
}
