//! What the case reports: figures of all runs of a mode together, and whether they are what is wanted.

use peregrine_dataplane::plan::WorkOrder;
use serde::{Deserialize, Serialize};

use super::bench::Run;
use super::kernel::KernelRun;
use crate::figures::{median, share};
use crate::paced::Latencies;

/// Packets that must lie beyond a percentile for it to be told.
const BEYOND: f64 = 1.0;

/// The load at which goals are judged.
pub const OVERLOAD: f64 = 1.2;

/// Of one-way latencies, µs. Up to p99 the median of the runs, p99.9 and the highest of all runs together; nothing where there were too
/// few packets to tell.
#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
pub struct Percentiles {
    pub p50: Option<f64>,
    pub p99: Option<f64>,
    pub p999: Option<f64>,
    pub max: Option<f64>,
    /// Packets of all runs.
    pub samples: u64,
}

impl Percentiles {
    /// Of the latencies of some runs.
    pub fn of(runs: &[Latencies], hertz: f64) -> Percentiles {
        let us = |cycles: u64| 1e6 * cycles as f64 / hertz;
        let told = |latencies: &Latencies, share: f64| {
            latencies.percentile_of(share, (BEYOND / (1.0 - share)).round() as u64).map(us)
        };
        let middle = |share| {
            let all: Option<Vec<f64>> = runs.iter().map(|run| told(run, share)).collect();
            all.filter(|all| !all.is_empty()).map(median)
        };
        let together = together(runs);
        Percentiles {
            p50: middle(0.5),
            p99: middle(0.99),
            p999: together.as_ref().and_then(|all| told(all, 0.999)),
            max: together.as_ref().and_then(Latencies::max).map(us),
            samples: together.as_ref().map_or(0, Latencies::samples),
        }
    }

    /// Of all runs together, where each alone may have too few.
    pub fn of_all(runs: &[Latencies], hertz: f64) -> Percentiles {
        Percentiles::of(together(runs).as_slice(), hertz)
    }
}

fn together(runs: &[Latencies]) -> Option<Latencies> {
    runs.iter().cloned().reduce(|sum, run| sum.plus(&run))
}

/// What the operating system and the hypervisor took of the worker's time.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Taken {
    /// How often the core was another thread's.
    pub switches: u64,
    /// For how long, in all.
    pub waited_ms: f64,
    /// What the hypervisor took of the core.
    pub stolen_ms: f64,
    /// Turns of the worker that were longer than a millisecond.
    pub stalls: u64,
}

/// How the worker is set, or the kernel's overlay instead of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    Fifo,
    Batch,
    Sync,
    Kernel,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Fifo => WorkOrder::Fifo.name(),
            Mode::Batch => WorkOrder::Batch.name(),
            Mode::Sync => WorkOrder::Sync.name(),
            Mode::Kernel => "kernel",
        }
    }
}

impl From<WorkOrder> for Mode {
    fn from(order: WorkOrder) -> Mode {
        match order {
            WorkOrder::Fifo => Mode::Fifo,
            WorkOrder::Batch => Mode::Batch,
            WorkOrder::Sync => Mode::Sync,
        }
    }
}

/// One mode under one load, all runs together.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct LoadReport {
    /// Of what the worker, or the kernel's overlay, can take: so many normal packets were offered.
    pub fraction: f64,
    pub port: String,
    pub mode: Mode,
    pub early: bool,
    pub urgent_us: Percentiles,
    /// Of those that were met while the worker and the generator had their cores, of all runs together: what is the worker's own.
    pub urgent_calm_us: Percentiles,
    pub urgent_sent: u64,
    pub urgent_lost: u64,
    /// Due, and given up by the generator: neither sent nor lost.
    pub urgent_unsent: u64,
    /// In the median of the runs.
    pub normal_mpps: f64,
    /// Over that with `fifo` without early classes under the same load, in the median of the runs: a second of the worker's own time each.
    pub normal_over_fifo: Option<f64>,
    /// The smallest part of its core that the worker had, in any run; of the kernel nothing is known.
    #[serde(deserialize_with = "share")]
    pub core_share: f64,
    pub taken: Taken,
}

impl LoadReport {
    /// Of the worker's runs, and those of the baseline's in the same order.
    pub fn of(point: Point, port: &str, runs: &[Run], baseline: &[Run], hertz: f64) -> LoadReport {
        let latencies: Vec<Latencies> = runs.iter().map(|run| run.latencies.clone()).collect();
        let calm: Vec<Latencies> = runs.iter().map(|run| run.calm.clone()).collect();
        let ratios =
            runs.iter().zip(baseline).map(|(run, base)| run.normal_of_core() / base.normal_of_core());
        let sum = |of: fn(&Run) -> u64| runs.iter().map(of).sum::<u64>();
        LoadReport {
            fraction: point.fraction,
            port: port.into(),
            mode: point.order.into(),
            early: point.early,
            urgent_us: Percentiles::of(&latencies, hertz),
            urgent_calm_us: Percentiles::of_all(&calm, hertz),
            urgent_sent: sum(|run| run.urgent_due - run.urgent_unsent),
            urgent_lost: sum(|run| run.urgent_lost),
            urgent_unsent: sum(|run| run.urgent_unsent),
            normal_mpps: median(runs.iter().map(|run| run.normal_rate).collect()) / 1e6,
            normal_over_fifo: Some(median(ratios.collect())),
            core_share: runs.iter().map(|run| run.core_share).fold(1.0, f64::min),
            taken: Taken {
                switches: sum(|run| run.taken.switches),
                waited_ms: runs.iter().map(|run| run.taken.waited_ms).sum(),
                stolen_ms: runs.iter().map(|run| run.taken.stolen_ms).sum(),
                stalls: sum(|run| run.taken.stalls),
            },
        }
    }

    /// Of the kernel's.
    pub fn of_kernel(fraction: f64, port: &str, runs: &[KernelRun], hertz: f64) -> LoadReport {
        let latencies: Vec<Latencies> = runs.iter().map(|run| run.latencies.clone()).collect();
        let calm: Vec<Latencies> = runs.iter().map(|run| run.calm.clone()).collect();
        let sum = |of: fn(&KernelRun) -> u64| runs.iter().map(of).sum::<u64>();
        LoadReport {
            fraction,
            port: port.into(),
            mode: Mode::Kernel,
            early: false,
            urgent_us: Percentiles::of(&latencies, hertz),
            urgent_calm_us: Percentiles::of_all(&calm, hertz),
            urgent_sent: sum(|run| run.urgent_due - run.urgent_unsent),
            urgent_lost: sum(|run| run.urgent_lost),
            urgent_unsent: sum(|run| run.urgent_unsent),
            normal_mpps: median(runs.iter().map(|run| run.normal_rate).collect()) / 1e6,
            normal_over_fifo: None,
            core_share: 1.0,
            taken: Taken::default(),
        }
    }
}

/// One way to set the worker, under one load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Point {
    pub fraction: f64,
    pub order: WorkOrder,
    pub early: bool,
}

/// Everything of one port.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PortReport {
    pub port: String,
    /// Added to each packet's way.
    pub work_cycles: u32,
    /// What the worker, or the kernel's overlay, takes of normal packets alone.
    pub capacity_mpps: f64,
    /// What the generator and the wire bring to a worker that has nothing else to do.
    pub wire_mpps: Option<f64>,
    /// How long a burst takes in the slowest step: what an urgent packet waits for at most, beside what the machine takes.
    pub batch_us: Option<f64>,
    /// How late urgent packets left the generator, of all that were sent: in no latency.
    pub sent_late_us: Option<Percentiles>,
    /// Urgent packets alone, `sync` with early classes.
    pub idle_us: Percentiles,
    pub idle_calm_us: Percentiles,
    pub loads: Vec<LoadReport>,
}

/// One thing that is wanted, and what was found.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
pub struct Goal {
    pub what: String,
    pub port: String,
    pub found: Option<f64>,
    /// A bound; from below where `at_least`.
    pub wanted: f64,
    pub at_least: bool,
}

impl Goal {
    /// `None` where too little was measured to tell.
    pub fn is_met(&self) -> Option<bool> {
        self.found.map(|found| if self.at_least { found >= self.wanted } else { found <= self.wanted })
    }
}

/// What is wanted of `sync` with early classes at the overload of each of Peregrine's ports.
pub fn goals(port: &PortReport) -> Vec<Goal> {
    let at = |mode, early| {
        port.loads.iter().find(|it| it.fraction == OVERLOAD && it.mode == mode && it.early == early)
    };
    let Some(best) = at(Mode::Sync, true) else { return Vec::new() };
    let over =
        |of: fn(&LoadReport) -> &Percentiles, base: Option<&Percentiles>| Some(of(best).p99? / base?.p99?);
    let all: fn(&LoadReport) -> &Percentiles = |load| &load.urgent_us;
    let calm: fn(&LoadReport) -> &Percentiles = |load| &load.urgent_calm_us;
    let goal = |what: &str, found, wanted, at_least| Goal {
        what: what.into(),
        port: port.port.clone(),
        found,
        wanted,
        at_least,
    };
    let fifo = at(Mode::Fifo, false);
    vec![
        goal("urgent p99 over fifo's", over(all, fifo.map(all)), 0.1, false),
        goal("urgent p99 over fifo's, calm", over(calm, fifo.map(calm)), 0.1, false),
        goal("urgent p99 over its own when idle", over(all, Some(&port.idle_us)), 3.0, false),
        goal("urgent p99 over its own when idle, calm", over(calm, Some(&port.idle_calm_us)), 3.0, false),
        goal("urgent packets lost", Some(best.urgent_lost as f64), 0.0, false),
        goal("normal packets over fifo's", best.normal_over_fifo, 0.95, true),
    ]
}

#[cfg(test)]
mod tests {
    use peregrine_dataplane::histogram::Histogram;

    use super::*;

    fn latencies(values: impl Iterator<Item = u64>) -> Latencies {
        let histogram = Histogram::default();
        values.for_each(|value| histogram.record(value));
        Latencies::sum(std::iter::once(histogram.counts()))
    }

    #[test]
    fn percentiles_are_told_where_there_are_enough_packets() {
        let run = |of: u64, count| latencies((0..count).map(move |_| of));
        let all = Percentiles::of(&[run(10, 400), run(30, 400), run(20, 400)], 1e6);
        assert_eq!((all.p50, all.p99, all.p999, all.max), (Some(20.0), Some(20.0), Some(30.0), Some(30.0)));
        assert_eq!(all.samples, 1200);
        let few = Percentiles::of(&[run(10, 99), run(30, 900)], 1e6);
        assert_eq!((few.p50, few.p99, few.p999, few.max), (Some(30.0), None, None, Some(30.0)));
        assert_eq!(Percentiles::of(&[], 1e6), Percentiles::default());
    }

    #[test]
    fn goals_are_judged_at_the_overload() {
        let load = |fraction, mode, early, p99| LoadReport {
            fraction,
            port: "replay".into(),
            mode,
            early,
            urgent_us: Percentiles { p99: Some(p99), ..Percentiles::default() },
            urgent_calm_us: Percentiles { p99: Some(2.0 * p99), ..Percentiles::default() },
            urgent_sent: 10,
            urgent_lost: 0,
            urgent_unsent: 0,
            normal_mpps: 1.0,
            normal_over_fifo: Some(0.9),
            core_share: 1.0,
            taken: Taken::default(),
        };
        let mut port = PortReport {
            port: "replay".into(),
            work_cycles: 0,
            capacity_mpps: 1.0,
            wire_mpps: None,
            batch_us: None,
            sent_late_us: None,
            idle_us: Percentiles { p99: Some(1.0), ..Percentiles::default() },
            idle_calm_us: Percentiles { p99: Some(1.0), ..Percentiles::default() },
            loads: vec![
                load(0.7, Mode::Fifo, false, 1.0),
                load(OVERLOAD, Mode::Fifo, false, 40.0),
                load(OVERLOAD, Mode::Sync, true, 2.0),
            ],
        };
        let found: Vec<_> = goals(&port).iter().map(|goal| (goal.found.unwrap(), goal.is_met())).collect();
        let expected = [(0.05, true), (0.05, true), (2.0, true), (4.0, false), (0.0, true), (0.9, false)];
        assert_eq!(found, expected.map(|(found, met)| (found, Some(met))));
        port.idle_us.p99 = None;
        assert_eq!(goals(&port)[2].is_met(), None);
        port.loads.clear();
        assert_eq!(goals(&port), []);
    }
}
