//! How hot the flow may get: more than its worker can carry alone, and no more than both can with a good placement, hand-overs
//! included. Both are measured, for what a hand-over costs differs from machine to machine. `skew_case.rs` calls `find`.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{BASE, Plan, streams};
use crate::paced::{self, Bench, Mode};
use crate::pipeline_case::mode;

/// Lost at most, of what is due, by a placement that is said to carry it: less than what counts as well later.
const LOST_MAX: f64 = 0.01;
/// What loses too much is tried so often: a core may have been taken away in the middle.
const TRIES: usize = 3;
/// Of a worker's capacity: how exactly it is found, and up to where it is looked for.
const STEP: f64 = 1.0 / 64.0;
const STEPS: u32 = 96;
/// A split that carries less than this times what is carried without one leaves nothing to be found.
const GAIN_MIN: f64 = 1.05;
/// Offered then, times what is carried without a split: too much for any of them.
const OVERLOAD: f64 = 1.15;

/// The hot flow's own rates beside what all flows have before, in millions of packets a second.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct HotFlow {
    /// The most of which 99 % came through, all steps where it enters.
    pub carried_alone_mpps: f64,
    /// The same with the best of five ways to put its steps and its tenant on both workers.
    pub carried_split_mpps: f64,
    /// What the best one has on the other worker.
    pub best_split: String,
    /// What is offered: halfway between the two, if they differ.
    pub mpps: f64,
}

impl HotFlow {
    /// There is a placement that carries more than none; else nothing can be shared again, and no time be measured: hand-overs cost what the
    /// second core brings, or the cores had other work.
    pub fn can_be_shared(&self) -> bool {
        self.carried_split_mpps > GAIN_MIN * self.carried_alone_mpps
    }
}

/// Looks for the rates, each trial of so long.
pub fn find(plan: &Plan, window: Duration) -> Result<HotFlow, String> {
    let rate = |steps: u32| f64::from(steps) * STEP * plan.capacity / 2.0;
    let carries = |split, steps| plan.carries(split, rate(steps), window);
    let alone = highest(0, STEPS, |steps| carries(mode::Split::default(), steps))?;
    let (mut best, mut best_split) = (alone, mode::Split::default());
    for split in mode::Mode::SPLITS.into_iter().filter_map(mode::Mode::split) {
        // Only what is better needs to be known exactly.
        if carries(split, best + 1)? {
            best = highest(best + 1, STEPS, |steps| carries(split, steps))?;
            best_split = split;
        }
    }
    let (alone, best) = (rate(alone) / 1e6, rate(best) / 1e6);
    let mut hot = HotFlow {
        carried_alone_mpps: alone,
        carried_split_mpps: best,
        best_split: best_split.name(),
        mpps: (alone + best) / 2.0,
    };
    if !hot.can_be_shared() {
        hot.mpps = (OVERLOAD * alone).max(rate(1) / 1e6);
    }
    Ok(hot)
}

/// The highest number that is carried, if `carried` is and `beyond` is not.
fn highest(
    mut carried: u32,
    mut beyond: u32,
    carries: impl Fn(u32) -> Result<bool, String>,
) -> Result<u32, String> {
    while beyond - carried > 1 {
        let middle = carried + (beyond - carried) / 2;
        match carries(middle)? {
            true => carried = middle,
            false => beyond = middle,
        }
    }
    Ok(carried)
}

impl Plan {
    /// Whether what is offered comes through with the hot flow, at this rate, split like that.
    fn carries(&self, split: mode::Split, rate: f64, window: Duration) -> Result<bool, String> {
        for _ in 0..TRIES {
            let (streams, paces) = streams();
            let bucket = paced::first_bucket(&streams);
            let mut bench = Bench::start(&self.setup(Mode::RunToCompletion), streams)?;
            bench.split(bucket, split)?;
            paces.base.iter().for_each(|pace| pace.set(paced::speed(BASE * self.capacity / 2.0, self.hertz)));
            paces.hot.set(paced::speed(rate, self.hertz));
            bench.pass(window / 4, |_| ())?;
            let before = bench.read();
            bench.pass(window, |_| ())?;
            let after = bench.read();
            bench.stop()?;
            let lost = (after.lost() - before.lost()) as f64;
            if lost <= LOST_MAX * (after.due - before.due) as f64 {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_that_is_carried_is_found() {
        for limit in [0, 1, 37, 94, 95] {
            assert_eq!(highest(0, STEPS, |steps| Ok(steps <= limit)), Ok(limit));
        }
        assert_eq!(highest(3, 4, |_| Err("not asked for".into())), Ok(3));
    }
}
