//! Many flows of which one turns hot: how soon, and how well, workers share the load again. `main.rs` calls `run`.
//!
//! 100 flows enter at two workers, half of them at each, at a rate that leaves both some time to spare. Then one flow grows until the
//! worker where it enters has more to do than it can. How much it grows is measured first (`load.rs`): halfway between what that
//! worker carries alone and what both carry with the flow split in the best way, hand-overs included, so that there is a placement
//! that carries it. Offered is the same in each mode and does not wait for anybody: what no worker takes in time is missed, as by a card
//! whose receive ring is full. Both cores are workers and do everything: frames come from memory, tenants are counters on the workers
//! themselves; control runs on them too, some times in 10 ms.

mod load;

use std::sync::Arc;
use std::time::Duration;

use peregrine_dataplane::balance::BalanceStats;
use peregrine_dataplane::replay::{Pace, ReplayStream};
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch, two_cores};
use crate::figures::{median, share, spread};
use crate::paced::{self, Bench, INNER_BYTES, Mode, Reading, Setup};
use load::HotFlow;

const FLOWS: u16 = 100;
const TENANTS: u16 = 4;
/// Cycles added to each packet's way, a quarter in each of four steps.
const WORK: u32 = 1600;
/// Runs of each mode, in turns; the median counts.
const RUNS: usize = 5;
/// Offered before, as a share of what both workers can take.
const BASE: f64 = 0.4;
/// What of the packets due must come through, and for how long, until all is well again.
const WELL: f64 = 0.98;
const WELL_S: f64 = 0.2;
/// What it must carry of what it carries in the end, for as long, to have settled.
const SETTLED: f64 = 0.95;

/// One mode. Medians of the runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ModeReport {
    pub mode: Mode,
    /// With the tenants, in the second half of the time in which the flow was hot.
    pub mpps: f64,
    pub mpps_lowest: f64,
    pub mpps_highest: f64,
    /// What that is of what was due.
    pub of_offered: f64,
    /// Of runs of one round.
    pub over_static: f64,
    pub over_static_lowest: f64,
    pub over_static_highest: f64,
    /// Missed and dropped while the flow was hot, and in the second half of that.
    pub lost: u64,
    pub lost_settled: u64,
    /// Of `lost`: never taken in.
    pub missed: u64,
    /// Missed and dropped before the flow was hot.
    pub lost_before: u64,
    /// Packets overtaken, in all runs: always 0, else there is no report.
    pub reordered: u64,
    /// From when the flow was hot until 95 % of `mpps` came through for 200 ms: it has found what it will carry.
    pub settled_ms: Option<f64>,
    /// The same until 98 % of what was due came through; `None`: not within the run.
    pub balanced_again_ms: Option<f64>,
    /// The same until nothing was lost for 200 ms.
    pub loss_free_ms: Option<f64>,
    /// The smallest part of its core that a worker had, in any run.
    #[serde(deserialize_with = "share")]
    pub core_share: f64,
    /// Placements that the balancer tried and undid, and what it moved, in all runs.
    pub tried: u64,
    pub undone: u64,
    pub bucket_moves: u64,
    pub tenant_moves: u64,
}

/// Everything.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cores: usize,
    pub runs: usize,
    pub flows: u16,
    pub tenants: u16,
    pub inner_bytes: usize,
    pub work_cycles: u32,
    /// What both workers can take of all flows alike, run to completion.
    pub capacity_mpps: f64,
    /// Before, and once the one flow is hot.
    pub offered_mpps: f64,
    pub offered_hot_mpps: f64,
    /// What makes the difference, and how it was found.
    pub hot_flow: HotFlow,
    /// How long the flow was hot.
    pub hot_ms: u64,
    pub modes: Vec<ModeReport>,
    pub environment: Option<Environment>,
}

impl Report {
    /// A table.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<19}{:>7}{:>14}{:>11}{:>9}{:>14}{:>10}{:>10}{:>10}{:>10}{:>12}{:>12}{:>12}{:>8}\n",
            "placement",
            "Mpps",
            "lowest–high.",
            "of offered",
            "/static",
            "lowest–high.",
            "lost",
            "settled",
            "missed",
            "before",
            "settled ms",
            "balanced ms",
            "no loss ms",
            "core %"
        );
        let range = |lowest: f64, highest: f64| format!("{lowest:.2}–{highest:.2}");
        let time = |ms: Option<f64>| ms.map_or("never".into(), |ms| format!("{ms:.0}"));
        for mode in &self.modes {
            out += &format!(
                "{:<19}{:>7.2}{:>14}{:>9.1} %{:>9.2}{:>14}{:>10}{:>10}{:>10}{:>10}{:>12}{:>12}{:>12}{:>8.0}\n",
                mode.mode.name(),
                mode.mpps,
                range(mode.mpps_lowest, mode.mpps_highest),
                100.0 * mode.of_offered,
                mode.over_static,
                range(mode.over_static_lowest, mode.over_static_highest),
                mode.lost,
                mode.lost_settled,
                mode.missed,
                mode.lost_before,
                time(mode.settled_ms),
                time(mode.balanced_again_ms),
                time(mode.loss_free_ms),
                100.0 * mode.core_share
            );
        }
        for mode in self.modes.iter().filter(|mode| mode.tried > 0) {
            out += &format!(
                "{}: {} placements tried in all runs, {} undone; {} moves of buckets, {} of tenants.\n",
                mode.mode.name(),
                mode.tried,
                mode.undone,
                mode.bucket_moves,
                mode.tenant_moves
            );
        }
        out + &self.notes()
    }

    fn notes(&self) -> String {
        let hot = &self.hot_flow;
        let possible = match hot.can_be_shared() {
            true => "",
            false => {
                " No split carries more to speak of: hand-overs cost what the second core brings, or the cores had other work; there is nothing to be found."
            }
        };
        let reordered: u64 = self.modes.iter().map(|mode| mode.reordered).sum();
        format!(
            "{} flows to {} tenants, {} bytes inside, {} cycles of work on each; two workers on {} cores do everything. Medians of {} runs in turns.\n\
             Both can take {:.2} Mpps, run to completion. Offered are {:.2}, and {:.2} once one flow is hot, for {} ms: Mpps is of the second half.\n\
             The hot flow grows by {:.2} Mpps. 99 % comes through up to {:.2} all on its own worker, and with {} on the other up to {:.2}.{possible}\n\
             lost: while it was hot, missed and dropped; settled: in the second half; before: until it was hot. Reordered: {reordered}.\n\
             settled ms: until 95 % of Mpps came through for 200 ms; balanced ms: until 98 % of what was due did; no loss ms: until nothing was lost.\n\
             core %: what a worker had of its core in the worst run; well below 100, the line says little.\n",
            self.flows,
            self.tenants,
            self.inner_bytes,
            self.work_cycles,
            self.cores,
            self.runs,
            self.capacity_mpps,
            self.offered_mpps,
            self.offered_hot_mpps,
            self.hot_ms,
            hot.mpps,
            hot.carried_alone_mpps,
            hot.best_split,
            hot.carried_split_mpps
        )
    }
}

/// How long, where, and how much.
#[derive(Clone, Copy, Debug)]
struct Plan {
    cores: [usize; 2],
    warm_up: Duration,
    base: Duration,
    hot: Duration,
    hertz: f64,
    /// Packets a second: what both can take.
    capacity: f64,
    /// The hot flow's, beside what it has before.
    hot_rate: f64,
}

/// Runs everything.
pub fn run(quick: bool) -> Result<Report, String> {
    let [first, second] = two_cores("one for each worker")?;
    let watch = Watch::start();
    let (warm_up_ms, base_ms, hot_ms, window_ms) =
        if quick { (100, 500, 2000, 200) } else { (500, 5000, 5000, 1000) };
    let mut plan = Plan {
        cores: [first.id, second.id],
        warm_up: Duration::from_millis(warm_up_ms),
        base: Duration::from_millis(base_ms),
        hot: Duration::from_millis(hot_ms),
        hertz: paced::hertz(),
        capacity: 0.0,
        hot_rate: 0.0,
    };
    let window = Duration::from_millis(window_ms);
    plan.capacity = paced::capacity(&plan.setup(Mode::RunToCompletion), window, || {
        let (streams, paces) = streams();
        (streams, paces.base.into())
    })?;
    let hot_flow = load::find(&plan, window)?;
    plan.hot_rate = 1e6 * hot_flow.mpps;
    let mut modes: Vec<(Mode, Vec<Run>)> = Mode::ALL.iter().map(|mode| (*mode, Vec::new())).collect();
    for _ in 0..RUNS {
        for (mode, runs) in &mut modes {
            runs.push(plan.measure(*mode)?);
        }
        modes.rotate_left(1); // who is first changes, so that what drifts favours nobody
    }
    let runs = |wanted| modes.iter().filter(move |(mode, _)| *mode == wanted).flat_map(|(_, runs)| runs);
    let baseline: Vec<&Run> = runs(Mode::Static).collect();
    let report = |mode| mode_report(mode, &runs(mode).collect::<Vec<_>>(), &baseline);
    Ok(Report {
        cores: plan.cores.len(),
        runs: RUNS,
        flows: FLOWS,
        tenants: TENANTS,
        inner_bytes: INNER_BYTES,
        work_cycles: WORK,
        capacity_mpps: plan.capacity / 1e6,
        offered_mpps: BASE * plan.capacity / 1e6,
        offered_hot_mpps: (BASE * plan.capacity + plan.hot_rate) / 1e6,
        hot_flow,
        hot_ms,
        modes: Mode::ALL.map(report).into(),
        environment: Some(watch.end()),
    })
}

/// The flows of each worker, and one of the first once more.
fn streams() -> (Vec<Vec<ReplayStream>>, Paces) {
    let (first, first_pace) = paced::stream(0..FLOWS / 2, TENANTS);
    let (second, second_pace) = paced::stream(FLOWS / 2..FLOWS, TENANTS);
    // Its tenant is the first that is attached: where the flow enters.
    let (hot, hot_pace) = paced::stream(0..1, TENANTS);
    (vec![vec![first, hot], vec![second]], Paces { base: [first_pace, second_pace], hot: hot_pace })
}

struct Paces {
    base: [Arc<Pace>; 2],
    hot: Arc<Pace>,
}

/// What one run gave.
#[derive(Clone, Copy, Debug, Default)]
struct Run {
    rate: f64,
    of_offered: f64,
    lost: u64,
    lost_settled: u64,
    missed: u64,
    lost_before: u64,
    reordered: u64,
    balance: BalanceStats,
    settled_s: Option<f64>,
    balanced_again_s: Option<f64>,
    loss_free_s: Option<f64>,
    core_share: f64,
}

impl Plan {
    fn setup(&self, mode: Mode) -> Setup<'_> {
        Setup { cores: &self.cores, mode, work: WORK, tenants: TENANTS, flows: FLOWS, is_timed: false }
    }

    fn measure(&self, mode: Mode) -> Result<Run, String> {
        let (streams, paces) = streams();
        let mut bench = Bench::start(&self.setup(mode), streams)?;
        let one = self.capacity / 2.0;
        paces.base.iter().for_each(|pace| pace.set(paced::speed(BASE * one, self.hertz)));
        bench.pass(self.warm_up, |_| ())?;
        let (began, cpu) = (bench.read(), bench.worker_times()?);
        bench.pass(self.base, |_| ())?;
        let before = bench.read();
        paces.hot.set(paced::speed(self.hot_rate, self.hertz));
        let mut readings = Vec::new();
        bench.pass(self.hot, |reading| readings.push(reading))?;
        let cpu = bench.worker_times()?.into_iter().zip(cpu);
        let core_share = cpu.map(|(now, before)| now.share_since(&before)).fold(1.0, f64::min);
        let balance = bench.balance().unwrap_or_default();
        let reordered = bench.stop()?.reordered.get();
        Ok(Run {
            balance,
            lost_before: before.lost() - began.lost(),
            reordered,
            core_share,
            ..Run::of(&readings)
        })
    }
}

impl Run {
    /// Of what was seen while the flow was hot.
    fn of(readings: &[Reading]) -> Run {
        let (Some(first), Some(last)) = (readings.first(), readings.last()) else { return Run::default() };
        let half_s = (first.at_s + last.at_s) / 2.0;
        let half = readings.iter().find(|reading| reading.at_s >= half_s).unwrap_or(last);
        let comes_through = |from: &Reading, to: &Reading| {
            (to.packets - from.packets) as f64 >= WELL * (to.due - from.due) as f64
        };
        let rate = if last.at_s > half.at_s { last.rate_since(half) } else { 0.0 };
        Run {
            rate,
            of_offered: (last.packets - half.packets) as f64 / (last.due - half.due).max(1) as f64,
            lost: last.lost() - first.lost(),
            lost_settled: last.lost() - half.lost(),
            missed: last.missed - first.missed,
            settled_s: first_well(readings, |from, to| to.rate_since(from) >= SETTLED * rate),
            balanced_again_s: first_well(readings, comes_through),
            loss_free_s: first_well(readings, |from, to| from.lost() == to.lost()),
            ..Run::default()
        }
    }
}

/// Seconds until it was well for [`WELL_S`].
fn first_well(readings: &[Reading], is_well: impl Fn(&Reading, &Reading) -> bool) -> Option<f64> {
    let begin_s = readings.first()?.at_s;
    let well = readings.iter().enumerate().find(|(index, from)| {
        let mut later = readings.iter().skip(index + 1);
        later.find(|to| to.at_s >= from.at_s + WELL_S).is_some_and(|to| is_well(from, to))
    });
    well.map(|(_, from)| from.at_s - begin_s)
}

/// The nth of all modes followed one another.
fn mode_report(mode: Mode, runs: &[&Run], baseline: &[&Run]) -> ModeReport {
    let all = |of: fn(&Run) -> f64| spread(runs.iter().map(|run| of(run)).collect()).unwrap_or_default();
    let middle = |of: fn(&Run) -> u64| median(runs.iter().map(|run| of(run) as f64).collect()) as u64;
    // One that never was well took longer than all others.
    let time = |of: fn(&Run) -> Option<f64>| {
        let seconds = median(runs.iter().map(|run| of(run).unwrap_or(f64::INFINITY)).collect());
        seconds.is_finite().then_some(1e3 * seconds)
    };
    let ratios = runs.iter().zip(baseline).map(|(run, other)| run.rate / other.rate);
    let [over_static_lowest, over_static, over_static_highest] = spread(ratios.collect()).unwrap_or_default();
    let [mpps_lowest, mpps, mpps_highest] = all(|run| run.rate / 1e6);
    ModeReport {
        mode,
        mpps,
        mpps_lowest,
        mpps_highest,
        of_offered: all(|run| run.of_offered)[1],
        over_static,
        over_static_lowest,
        over_static_highest,
        lost: middle(|run| run.lost),
        lost_settled: middle(|run| run.lost_settled),
        missed: middle(|run| run.missed),
        lost_before: middle(|run| run.lost_before),
        reordered: runs.iter().map(|run| run.reordered).sum(),
        settled_ms: time(|run| run.settled_s),
        balanced_again_ms: time(|run| run.balanced_again_s),
        loss_free_ms: time(|run| run.loss_free_s),
        core_share: all(|run| run.core_share)[0],
        tried: runs.iter().map(|run| run.balance.tried).sum(),
        undone: runs.iter().map(|run| run.balance.undone).sum(),
        bucket_moves: runs.iter().map(|run| run.balance.bucket_moves).sum(),
        tenant_moves: runs.iter().map(|run| run.balance.tenant_moves).sum(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline_case::mode::tests::ENGINE;

    /// A reading each 10 ms; in each step 1000 are due, and so many are lost: first half missed, then dropped.
    fn readings(lost: &[u64]) -> Vec<Reading> {
        let mut at = Reading { at_s: 7.0, ..Reading::default() };
        let mut all = vec![at];
        for lost in lost {
            at.at_s += 0.01;
            at.due += 1000;
            at.packets += 1000 - lost;
            at.missed += lost / 2;
            at.dropped += lost - lost / 2;
            all.push(at);
        }
        all
    }

    #[test]
    fn it_is_well_from_when_on_it_stays_so_for_200_ms() {
        let lost: Vec<u64> =
            (0..100).map(|step| if step < 30 { 300 } else { u64::from(step == 40) }).collect();
        let run = Run::of(&readings(&lost));
        // 21 steps, of which one has 300 lost: 1.4 %.
        let (again, free) = (run.balanced_again_s.unwrap(), run.loss_free_s.unwrap());
        // 21 steps, of which three have 300 lost: 4.3 %.
        assert!((0.265..0.275).contains(&run.settled_s.unwrap()), "{run:?}");
        assert!((run.of_offered - 1.0).abs() < 1e-9, "{run:?}");
        assert!((0.285..0.295).contains(&again), "{again}");
        assert!((0.405..0.415).contains(&free), "{free}");
        assert_eq!((run.lost, run.missed, run.lost_settled), (9001, 4500, 0));
        assert!((run.rate - 100_000.0).abs() < 1.0, "{run:?}");
        let never = Run::of(&readings(&[100; 100]));
        assert_eq!((never.settled_s, never.balanced_again_s, never.loss_free_s), (Some(0.0), None, None));
        assert!((never.rate - 90_000.0).abs() < 1.0, "{never:?}");
        assert_eq!(Run::of(&readings(&[0; 10])).loss_free_s, None, "too short to tell");
    }

    #[test]
    fn a_run_that_never_was_well_counts_as_the_longest() {
        let run = |balanced_again_s, rate| Run { balanced_again_s, rate, core_share: 0.5, ..Run::default() };
        let runs = [run(Some(0.1), 4e6), run(None, 2e6), run(Some(0.3), 2e6)];
        let others = [run(None, 2e6), run(None, 2e6), run(None, 1e6)];
        let report =
            |runs: &[Run]| mode_report(Mode::Balanced, &runs.iter().collect::<Vec<_>>(), &others.each_ref());
        let all = report(&runs);
        assert_eq!((all.balanced_again_ms, all.mpps, all.over_static), (Some(300.0), 2.0, 2.0));
        assert_eq!((all.over_static_lowest, all.mpps_highest, all.core_share), (1.0, 4.0, 0.5));
        assert_eq!(report(&runs[1..2]).balanced_again_ms, None);
    }

    #[test]
    fn every_mode_carries_what_is_offered_in_order_and_accounts_for_it() {
        let _alone = ENGINE.lock();
        let cores = core_affinity::get_core_ids().unwrap();
        let time = Duration::from_millis(20);
        let plan = Plan {
            cores: [cores[0].id, cores[1 % cores.len()].id],
            warm_up: time,
            base: time,
            hot: time,
            hertz: paced::hertz(),
            capacity: 100_000.0,
            hot_rate: 50_000.0,
        };
        for mode in Mode::ALL {
            plan.measure(mode).unwrap();
        }
    }
}
