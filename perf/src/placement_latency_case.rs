//! How long one flow's packets are under way, from when they are due until the tenant has them, by placement. `main.rs` calls `run`.
//!
//! Frames come from memory, at a share of what one core can carry alone; the worker's looks at its rings, its bursts and hand-overs are
//! what the latency is made of, and, at 90 %, waiting. Whoever is late is late for those behind too: frames are due at their times, whatever
//! the worker does. `run-to-completion` has one core, the others have two.

use std::time::Duration;

use peregrine_dataplane::replay::Speed;
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch, two_cores};
use crate::figures::{median, share};
use crate::paced::{self, Bench, INNER_BYTES, Mode, Setup};

/// Offered, as shares of what one core can carry.
const SHARES: [f64; 2] = [0.5, 0.9];
/// Cycles added to each packet's way, a quarter in each of four steps.
const WORK: [u32; 2] = [0, 400];
/// Runs of each mode at each point, in turns; the median counts.
const RUNS: usize = 5;

/// One mode at one rate. Medians of the runs; no value where one of them had too few packets to tell.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ModeReport {
    pub mode: Mode,
    pub p50_us: Option<f64>,
    pub p99_us: Option<f64>,
    pub p9999_us: Option<f64>,
    pub max_us: Option<f64>,
    /// Packets of a run.
    pub samples: u64,
    /// Missed and dropped in a run: late beyond measure, and in none of the figures.
    pub lost: u64,
    /// The smallest part of its core that a worker had, in any run.
    #[serde(deserialize_with = "share")]
    pub core_share: f64,
}

/// All modes at one rate.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Point {
    pub work_cycles: u32,
    /// Of what one core can carry.
    pub share: f64,
    pub offered_mpps: f64,
    pub modes: Vec<ModeReport>,
}

/// Everything.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cores: usize,
    pub runs: usize,
    pub inner_bytes: usize,
    pub points: Vec<Point>,
    pub environment: Option<Environment>,
}

impl Report {
    /// A table.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:>6}{:>6}{:>7}  {:<19}{:>9}{:>9}{:>10}{:>9}{:>11}{:>9}{:>8}\n",
            "cycles",
            "load",
            "Mpps",
            "placement",
            "p50 us",
            "p99 us",
            "p99.99 us",
            "max us",
            "packets",
            "lost",
            "core %"
        );
        let time = |us: Option<f64>| us.map_or("-".into(), |us| format!("{us:.1}"));
        for (point, mode) in
            self.points.iter().flat_map(|point| point.modes.iter().map(move |mode| (point, mode)))
        {
            out += &format!(
                "{:>6}{:>5.0}%{:>7.2}  {:<19}{:>9}{:>9}{:>10}{:>9}{:>11}{:>9}{:>8.0}\n",
                point.work_cycles,
                100.0 * point.share,
                point.offered_mpps,
                mode.mode.name(),
                time(mode.p50_us),
                time(mode.p99_us),
                time(mode.p9999_us),
                time(mode.max_us),
                mode.samples,
                mode.lost,
                100.0 * mode.core_share
            );
        }
        out + &format!(
            "One flow, {} bytes inside, from when a frame is due to the tenant; load: of what one core can carry with that work. Medians of {} runs \
             in turns; {} cores: one for run-to-completion, two for the others.\n\
             Times are at most 3 % too high. lost: missed or dropped, in no time. core %: what a worker had of its core in the worst run; \
             below 100, the tail is the machine's.\n",
            self.inner_bytes, self.runs, self.cores
        )
    }
}

/// Where and for how long.
#[derive(Clone, Copy, Debug)]
struct Plan {
    cores: [usize; 2],
    warm_up: Duration,
    /// What the balancer has to find its placement.
    balancing: Duration,
    window: Duration,
    hertz: f64,
}

/// Runs everything.
pub fn run(quick: bool) -> Result<Report, String> {
    let [first, second] = two_cores("one for each worker")?;
    let watch = Watch::start();
    let (warm_up_ms, balancing_ms, window_ms) = if quick { (20, 400, 200) } else { (200, 2000, 2000) };
    let plan = Plan {
        cores: [first.id, second.id],
        warm_up: Duration::from_millis(warm_up_ms),
        balancing: Duration::from_millis(balancing_ms),
        window: Duration::from_millis(window_ms),
        hertz: paced::hertz(),
    };
    let mut points = Vec::new();
    for work in WORK {
        let capacity = paced::capacity(&plan.setup(Mode::RunToCompletion, work), plan.window / 2, || {
            let (stream, pace) = paced::stream(0..1, 1);
            (vec![vec![stream]], vec![pace])
        })?;
        for share in SHARES {
            points.push(plan.point(work, share, share * capacity)?);
        }
    }
    Ok(Report {
        cores: plan.cores.len(),
        runs: RUNS,
        inner_bytes: INNER_BYTES,
        points,
        environment: Some(watch.end()),
    })
}

/// What one run gave; times in cycles.
#[derive(Clone, Copy, Debug)]
struct Run {
    /// p50, p99, p99.99, highest.
    times: [Option<u64>; 4],
    samples: u64,
    lost: u64,
    core_share: f64,
}

impl Plan {
    fn setup(&self, mode: Mode, work: u32) -> Setup<'_> {
        let cores = if mode == Mode::RunToCompletion { &self.cores[..1] } else { &self.cores[..] };
        Setup { cores, mode, work, tenants: 1, flows: 1, is_timed: true }
    }

    fn point(&self, work: u32, share: f64, rate: f64) -> Result<Point, String> {
        let mut modes: Vec<(Mode, Vec<Run>)> = Mode::ALL.iter().map(|mode| (*mode, Vec::new())).collect();
        for _ in 0..RUNS {
            for (mode, runs) in &mut modes {
                runs.push(self.measure(*mode, work, paced::speed(rate, self.hertz))?);
            }
            modes.rotate_left(1); // who is first changes, so that what drifts favours nobody
        }
        modes.sort_by_key(|(mode, _)| Mode::ALL.iter().position(|of| of == mode));
        let modes = modes.iter().map(|(mode, runs)| mode_report(*mode, runs, self.hertz)).collect();
        Ok(Point { work_cycles: work, share, offered_mpps: rate / 1e6, modes })
    }

    fn measure(&self, mode: Mode, work: u32, speed: Speed) -> Result<Run, String> {
        let (stream, pace) = paced::stream(0..1, 1);
        let mut bench = Bench::start(&self.setup(mode, work), vec![vec![stream]])?;
        pace.set(speed);
        bench.pass(if mode == Mode::Balanced { self.balancing } else { self.warm_up }, |_| ())?;
        let (before, earlier, cpu) = (bench.read(), bench.latencies(), bench.worker_times()?);
        bench.pass(self.window, |_| ())?;
        let cpu = bench.worker_times()?.into_iter().zip(cpu);
        let latencies = bench.latencies().since(&earlier);
        let lost = bench.read().lost() - before.lost();
        bench.stop()?;
        let [p50, p99, p9999] = [0.5, 0.99, 0.9999].map(|share| latencies.percentile(share));
        Ok(Run {
            times: [p50, p99, p9999, latencies.max()],
            samples: latencies.samples(),
            lost,
            core_share: cpu.map(|(now, before)| now.share_since(&before)).fold(1.0, f64::min),
        })
    }
}

fn mode_report(mode: Mode, runs: &[Run], hertz: f64) -> ModeReport {
    let middle = |of: fn(&Run) -> u64| median(runs.iter().map(|run| of(run) as f64).collect()) as u64;
    let time = |index: usize| {
        let times: Option<Vec<f64>> =
            runs.iter().map(|run| run.times[index].map(|time| time as f64)).collect();
        times.map(|times| 1e6 * median(times) / hertz)
    };
    ModeReport {
        mode,
        p50_us: time(0),
        p99_us: time(1),
        p9999_us: time(2),
        max_us: time(3),
        samples: middle(|run| run.samples),
        lost: middle(|run| run.lost),
        core_share: runs.iter().map(|run| run.core_share).fold(1.0, f64::min),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline_case::mode::tests::ENGINE;

    #[test]
    fn figures_are_medians_and_missing_where_a_run_could_not_tell() {
        let run = |p50, tail| Run {
            times: [Some(p50), Some(2 * p50), tail, Some(9000)],
            samples: p50,
            lost: 1,
            core_share: 0.9,
        };
        let runs = [run(3000, Some(5000)), run(1000, Some(5000)), run(2000, None)];
        let report = mode_report(Mode::Static, &runs, 2e9);
        assert_eq!(
            (report.p50_us, report.p99_us, report.p9999_us, report.max_us),
            (Some(1.0), Some(2.0), None, Some(4.5))
        );
        assert_eq!((report.samples, report.lost, report.core_share), (2000, 1, 0.9));
        assert_eq!(mode_report(Mode::Static, &runs[..2], 2e9).p9999_us, Some(2.5));
    }

    #[test]
    fn every_mode_tells_how_late_all_packets_were() {
        let _alone = ENGINE.lock();
        let cores = core_affinity::get_core_ids().unwrap();
        let time = Duration::from_millis(5);
        let plan = Plan {
            cores: [cores[0].id, cores[1 % cores.len()].id],
            warm_up: time,
            balancing: time,
            window: time,
            hertz: paced::hertz(),
        };
        for mode in Mode::ALL {
            let run = plan.measure(mode, 100, Speed::Every(10_000.0)).unwrap();
            assert!(run.samples > 0 && run.times[3].is_some(), "{mode:?} {run:?}");
        }
    }
}
