//! Forwarding at full rate of known addresses, without and with 100,000 new ones a second. Both times as many frames come at
//! a rate, and how late these are shows whether the worker stops to learn; without learning they are from known addresses.

use std::time::Duration;

use peregrine_dataplane::replay::{Numbers, Speed};
use serde::{Deserialize, Serialize};

use super::bench::{Bench, Reading, Setup, stream};
use super::{Figure, MILLION, NEW_PER_SECOND, Plan, RUNS, as_control};
use crate::paced;

/// Addresses that are known, of which those at full rate are at random.
const KNOWN: u32 = 100_000;
/// The flows: at full rate; new addresses at their rate; known ones at the same.
const FULL: usize = 1;
const NEW: usize = 2;
const AGAIN: usize = 3;

/// Without learning, or with it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Side {
    pub mpps: Figure,
    /// How late frames at the rate are; `None` where a run had too few of them to tell.
    pub p50_us: Option<Figure>,
    pub p99_us: Option<Figure>,
    pub max_us: Option<Figure>,
    /// Turns of over a millisecond, in all runs.
    pub stalls: u64,
    /// In all runs.
    pub lost: u64,
    pub core_share: f64,
}

/// Both.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Learning {
    pub known: u32,
    /// In the table after the last run.
    pub known_last: u32,
    pub without: Side,
    pub with: Side,
    /// Of the rates, over the pairs of runs that followed one another.
    pub ratio: Figure,
    pub learned_per_s: Figure,
    /// Of the new addresses, those that were learned from their first frame, in the worst run.
    pub learned_share: f64,
    pub refused: u64,
}

impl Learning {
    /// A table.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<21}{:>22}{:>20}{:>28}{:>28}{:>8}{:>8}{:>8}\n",
            "learning", "Mpps", "p50 us", "p99 us", "max us", "stalls", "lost", "core %"
        );
        let time = |figure: &Option<Figure>| figure.map_or("-".into(), |figure| figure.text(1));
        for (name, side) in [("none", &self.without), ("100,000 a second", &self.with)] {
            out += &format!(
                "{:<21}{:>22}{:>20}{:>28}{:>28}{:>8}{:>8}{:>8.0}\n",
                name,
                side.mpps.text(2),
                time(&side.p50_us),
                time(&side.p99_us),
                time(&side.max_us),
                side.stalls,
                side.lost,
                100.0 * side.core_share
            );
        }
        out + &format!(
            "With learning {} of the rate without. Learned {} a second, {:.3} % of the new ones from their first frame; {} refused; {} in the \
             table at first, {} at last.\n",
            self.ratio.text(3),
            self.learned_per_s.text(0),
            100.0 * self.learned_share,
            self.refused,
            self.known,
            self.known_last
        )
    }
}

/// What one run gave; times in cycles.
#[derive(Clone, Debug)]
struct Run {
    rate: f64,
    times: [Option<u64>; 3],
    learned_per_s: f64,
    learned_share: f64,
    refused: u64,
    stalls: u64,
    lost: u64,
    core_share: f64,
}

/// All runs.
pub fn run(plan: &Plan) -> Result<Learning, String> {
    as_control(|| on_one_table(plan))
}

/// It grows from run to run.
fn on_one_table(plan: &Plan) -> Result<Learning, String> {
    let setup = Setup {
        worker: plan.worker,
        control: plan.second,
        room: MILLION,
        ageing: Duration::from_secs(3600),
        known: KNOWN,
    };
    let streams = vec![
        stream(FULL as u32, Numbers::random(0, KNOWN)),
        stream(NEW as u32, Numbers::rising(KNOWN, u32::MAX - KNOWN)),
        stream(AGAIN as u32, Numbers::random(0, KNOWN)),
    ];
    let mut bench = Bench::start(&setup, streams)?;
    bench.set_speed(FULL, Speed::Full);
    bench.pass(plan.warm_up)?;
    let [mut without, mut with] = [Vec::new(), Vec::new()];
    for round in 0..RUNS {
        let mut sides = [(AGAIN, &mut without), (NEW, &mut with)];
        sides.rotate_left(round % 2);
        for (flow, runs) in sides {
            runs.push(measure(plan, &mut bench, flow)?);
        }
    }
    let known_last = bench.known();
    bench.stop()?;
    Ok(summary(&without, &with, known_last, plan.hertz))
}

fn measure(plan: &Plan, bench: &mut Bench, flow: usize) -> Result<Run, String> {
    bench.set_speed(flow, paced::speed(NEW_PER_SECOND.into(), plan.hertz));
    bench.pass(plan.warm_up)?;
    let (before, taken) = (bench.read()?, bench.taken(flow));
    bench.pass(plan.learning)?;
    let (after, taken) = (bench.read()?, bench.taken(flow) - taken);
    bench.set_speed(flow, Speed::Stopped);
    Ok(compare(&before, &after, taken))
}

fn compare(before: &Reading, after: &Reading, taken: u64) -> Run {
    let seconds = after.seconds_since(before);
    let latencies = after.latencies.since(&before.latencies);
    let learned = (after.learned - before.learned) as f64;
    Run {
        rate: (after.received - before.received) as f64 / seconds,
        times: [latencies.percentile(0.5), latencies.percentile(0.99), latencies.max()],
        learned_per_s: learned / seconds,
        learned_share: (learned / taken.max(1) as f64).min(1.0),
        refused: after.refused - before.refused,
        stalls: after.stalls - before.stalls,
        lost: after.lost - before.lost,
        core_share: after.core_share_since(before),
    }
}

fn side(runs: &[Run], hertz: f64) -> Side {
    let time = |index: usize| {
        let times: Option<Vec<f64>> = runs.iter().map(|run| Some(run.times[index]? as f64)).collect();
        times.map(|times| Figure::of(times.into_iter().map(|cycles| 1e6 * cycles / hertz)))
    };
    Side {
        mpps: Figure::of(runs.iter().map(|run| run.rate / 1e6)),
        p50_us: time(0),
        p99_us: time(1),
        max_us: time(2),
        stalls: runs.iter().map(|run| run.stalls).sum(),
        lost: runs.iter().map(|run| run.lost).sum(),
        core_share: runs.iter().map(|run| run.core_share).fold(1.0, f64::min),
    }
}

fn summary(without: &[Run], with: &[Run], known_last: u32, hertz: f64) -> Learning {
    Learning {
        known: KNOWN,
        known_last,
        without: side(without, hertz),
        with: side(with, hertz),
        ratio: Figure::of(with.iter().zip(without).map(|(with, without)| with.rate / without.rate)),
        learned_per_s: Figure::of(with.iter().map(|run| run.learned_per_s)),
        learned_share: with.iter().map(|run| run.learned_share).fold(1.0, f64::min),
        refused: with.iter().map(|run| run.refused).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline_case::mode::tests::ENGINE;

    #[test]
    fn what_is_said_of_learning_is_of_pairs_of_runs() {
        let run = |rate, time, learned_share| Run {
            rate,
            times: [Some(time), None, Some(9 * time)],
            learned_per_s: 1e5,
            learned_share,
            refused: 1,
            stalls: 2,
            lost: 3,
            core_share: 0.9,
        };
        let without = [run(1e6, 2000, 0.0), run(4e6, 2000, 0.0)];
        let with = [run(9e5, 4000, 1.0), run(2e6, 6000, 0.5)];
        let learning = summary(&without, &with, 7, 2e9);
        assert_eq!((learning.ratio.lowest, learning.ratio.highest), (0.5, 0.9));
        assert_eq!((learning.with.p50_us.unwrap().lowest, learning.with.p99_us), (2.0, None));
        assert_eq!((learning.learned_share, learning.refused, learning.with.lost), (0.5, 2, 6));
        assert!(learning.text().contains("0.900 (0.500–0.900)"), "{}", learning.text());
    }

    #[test]
    fn new_addresses_are_learned_beside_full_rate() {
        let _alone = ENGINE.lock();
        let plan = super::super::tests::plan();
        let learning = run(&plan).unwrap();
        assert!(learning.known_last > KNOWN && learning.refused == 0, "{learning:?}");
        assert!(learning.with.mpps.lowest > 0.0 && learning.without.mpps.lowest > 0.0);
    }
}
