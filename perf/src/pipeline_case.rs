//! One flow on one core, and the same flow with its steps spread over two: what a hand-over between cores costs, and from how much work
//! a packet on it is worth it. `main.rs` calls `run`.
//!
//! Frames come from memory and go to a tenant that copies them, checks their order and throws them away; both are on the first core,
//! the second one runs what is handed to it. Work is added to the steps, in two series: the same to each, or all of it in a
//! step that can be cut in two. In each round all modes (`mode.rs`) run one after the other, so a ratio is of runs that
//! followed one another. `best` is the fastest of all splits, found by trying: what a balancer could reach at most.

/// The modes, and one run.
pub(crate) mod mode;
/// How a hash spreads steps.
mod spread;

use std::time::Duration;

use peregrine_dataplane::clock::cycles_per_second;
use peregrine_dataplane::frame::bucket;
use peregrine_dataplane::stages::Stage;
use peregrine_dataplane::types::WorkerId;
use peregrine_dataplane::wire::flow::flow_hash;
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch, two_cores};
use crate::figures::{median, share, spread};
use crate::rig::{FAR, inner, tenant_mac};
use mode::{Mode, Run, Setup};
use spread::{DistinctShare, static_routes};

/// Bytes of the inner packets.
const INNER_BYTES: usize = 64;
/// Work added to a packet's way, in cycles.
const WORK: [u32; 6] = [0, 100, 200, 400, 800, 1600];
/// Of the second series, when time is short.
const QUICK_HEAVY_WORK: [u32; 3] = [0, 400, 1600];
/// Runs of each mode at each point; the median counts.
const RUNS: usize = 5;

/// Which steps the work is added to.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Series {
    /// A quarter each: Classify, Decap, Lookup, Deliver.
    Even,
    /// One heavy step that can be cut in two: half on Decap, half on Lookup.
    Heavy,
}

impl Series {
    const ALL: [Series; 2] = [Series::Even, Series::Heavy];

    fn name(self) -> &'static str {
        match self {
            Series::Even => "even",
            Series::Heavy => "heavy",
        }
    }

    /// What one step gets of the cycles.
    fn share(self, stage: Stage, cycles: u32) -> u32 {
        match (self, stage) {
            (Series::Even, Stage::Classify | Stage::Decap | Stage::Lookup | Stage::Deliver) => cycles / 4,
            (Series::Heavy, Stage::Decap | Stage::Lookup) => cycles / 2,
            _ => 0,
        }
    }
}

/// All modes with one amount of work. A ratio is the median over the rounds.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Point {
    pub series: Series,
    pub cycles: u32,
    pub rtc_mpps: f64,
    pub rtc_mpps_lowest: f64,
    pub rtc_mpps_highest: f64,
    pub static_mpps: f64,
    pub static_mpps_lowest: f64,
    pub static_mpps_highest: f64,
    pub static_over_rtc: f64,
    pub balanced_mpps: f64,
    pub balanced_mpps_lowest: f64,
    pub balanced_mpps_highest: f64,
    pub balanced_over_rtc: f64,
    pub balanced_over_rtc_lowest: f64,
    pub balanced_over_rtc_highest: f64,
    /// What the balancer had put on the second core at the end of most runs.
    pub balanced_split: String,
    pub best_mpps: f64,
    pub best_mpps_lowest: f64,
    pub best_mpps_highest: f64,
    /// The steps that the best split has on the second core.
    pub best_split: String,
    pub best_over_rtc: f64,
    pub best_over_rtc_lowest: f64,
    pub best_over_rtc_highest: f64,
    /// Frames dropped, in all runs.
    pub lost: u64,
    /// Packets overtaken, in all runs: always 0, else there is no report.
    pub reordered: u64,
    /// The smallest part of its core that a worker had, in any run.
    #[serde(deserialize_with = "share")]
    pub core_share: f64,
}

/// From how much work on the best split is faster than one core; `None`: never, up to the most that was tried.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Crossover {
    pub even: Option<f64>,
    pub heavy: Option<f64>,
}

/// Cycles a packet without added work, of all workers together. Medians, with lowest and highest.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct HandOver {
    /// What all steps cost on one core.
    pub rtc_cycles: f64,
    /// Added by a second worker that gets nothing: the flow is hashed, its bucket looked up, the other's rings polled.
    pub entry_cycles: f64,
    /// Added by each of the two hops of a packet whose decap and lookup run on the second core. In it is what it costs the first core to
    /// write frames into memory that the second one has just read: a card would do that.
    pub hop_cycles: f64,
    pub hop_cycles_lowest: f64,
    pub hop_cycles_highest: f64,
}

/// Everything.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cores: usize,
    pub runs: usize,
    pub inner_bytes: usize,
    /// The step that `static` gives the second core, for this flow.
    pub static_split: String,
    pub work: Vec<Point>,
    pub crossover_cycles: Crossover,
    pub hand_over: HandOver,
    pub placement_distinct_share: DistinctShare,
    pub environment: Option<Environment>,
}

impl Report {
    /// A table.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<8}{:>7}{:>10}{:>14}{:>13}{:>14}{:>10}{:>7}{:>12}  {:<20}{:>10}{:>14}  {:<20}{:>9}{:>14}{:>8}{:>7}\n",
            "work",
            "cycles",
            "rtc Mpps",
            "lowest–high.",
            "static Mpps",
            "lowest–high.",
            "balanced",
            "/rtc",
            "lowest–high.",
            "on the 2nd",
            "best Mpps",
            "lowest–high.",
            "on the 2nd",
            "best/rtc",
            "lowest–high.",
            "lost",
            "core %"
        );
        let range = |lowest: f64, highest: f64| format!("{lowest:.2}–{highest:.2}");
        for point in &self.work {
            out += &format!(
                "{:<8}{:>7}{:>10.2}{:>14}{:>13.2}{:>14}{:>10.2}{:>7.2}{:>12}  {:<20}{:>10.2}{:>14}  {:<20}{:>9.2}{:>14}{:>8}{:>7.0}\n",
                point.series.name(),
                point.cycles,
                point.rtc_mpps,
                range(point.rtc_mpps_lowest, point.rtc_mpps_highest),
                point.static_mpps,
                range(point.static_mpps_lowest, point.static_mpps_highest),
                point.balanced_mpps,
                point.balanced_over_rtc,
                range(point.balanced_over_rtc_lowest, point.balanced_over_rtc_highest),
                point.balanced_split,
                point.best_mpps,
                range(point.best_mpps_lowest, point.best_mpps_highest),
                point.best_split,
                point.best_over_rtc,
                range(point.best_over_rtc_lowest, point.best_over_rtc_highest),
                point.lost,
                100.0 * point.core_share
            );
        }
        out + &self.notes()
    }

    fn notes(&self) -> String {
        let crossover = |at: Option<f64>| at.map_or("nowhere".into(), |cycles| format!("{cycles:.0} cycles"));
        let HandOver { rtc_cycles, entry_cycles, hop_cycles, hop_cycles_lowest, hop_cycles_highest } =
            self.hand_over;
        format!(
            "One flow, {} bytes inside; median of {} runs in turns; {} cores: one for rtc (run-to-completion), two for the others.\n\
             For this flow static has {} on the second core; best is the fastest of all splits.\n\
             The best split is faster than one core from: {} (even), {} (heavy).\n\
             Without added work a packet costs {rtc_cycles:.0} cycles on one core, {entry_cycles:.0} more beside a second worker, and \
             {hop_cycles:.0} more ({hop_cycles_lowest:.0}–{hop_cycles_highest:.0}) for each hop.\n\
             Three steps of a flow on three of three cores: {:.1} % of the flows by the hash of FALCON's paper, {:.1} % by ours.\n\
             core %: what a worker had of its core in the worst run; well below 100, the line says little.\n",
            self.inner_bytes,
            self.runs,
            self.cores,
            self.static_split,
            crossover(self.crossover_cycles.even),
            crossover(self.crossover_cycles.heavy),
            100.0 * self.placement_distinct_share.paper_hash,
            100.0 * self.placement_distinct_share.ours
        )
    }
}

/// Runs everything.
pub fn run(quick: bool) -> Result<Report, String> {
    let [first, second] = two_cores("one for each worker")?;
    let watch = Watch::start();
    let (warm_up_ms, balancing_ms, window_ms) = if quick { (5, 300, 25) } else { (100, 2000, 1000) };
    let setup = Setup {
        cores: [first.id, second.id],
        warm_up: Duration::from_millis(warm_up_ms),
        balancing: Duration::from_millis(balancing_ms),
        window: Duration::from_millis(window_ms),
        hertz: cycles_per_second(),
    };
    let mut work = Vec::new();
    let mut idle = None;
    for series in Series::ALL {
        let points = if quick && series == Series::Heavy { &QUICK_HEAVY_WORK[..] } else { &WORK[..] };
        for &cycles in points {
            let rounds = measure(&setup, series, cycles)?;
            work.push(rounds.point(series, cycles));
            idle.get_or_insert(rounds);
        }
    }
    let crossover = |series| crossover(work.iter().filter(|point: &&Point| point.series == series));
    Ok(Report {
        cores: setup.cores.len(),
        runs: RUNS,
        inner_bytes: INNER_BYTES,
        static_split: static_split().into(),
        crossover_cycles: Crossover { even: crossover(Series::Even), heavy: crossover(Series::Heavy) },
        hand_over: idle.map(|rounds| rounds.hand_over()).ok_or("nothing was measured")?,
        placement_distinct_share: DistinctShare::count(),
        environment: Some(watch.end()),
        work,
    })
}

/// The bucket of the one flow.
fn flow_bucket() -> u8 {
    bucket(flow_hash(&inner(FAR, tenant_mac(0), INNER_BYTES)))
}

/// What `static` does with it on two cores.
fn static_split() -> &'static str {
    let route = static_routes(2).get(usize::from(flow_bucket())).copied();
    if route.is_some_and(|route| route.decap() != WorkerId(0)) { "decap" } else { "lookup" }
}

/// Each mode's runs; the nth of all modes followed one another.
struct Rounds(Vec<(Mode, Vec<Run>)>);

fn measure(setup: &Setup, series: Series, cycles: u32) -> Result<Rounds, String> {
    let mut modes: Vec<(Mode, Vec<Run>)> = Mode::ALL.iter().map(|mode| (*mode, Vec::new())).collect();
    for _ in 0..RUNS {
        for (mode, runs) in &mut modes {
            // With work in the steps a second worker that gets nothing has nothing to tell.
            if *mode != Mode::Beside || cycles == 0 {
                runs.push(setup.measure(*mode, series, cycles)?);
            }
        }
        modes.rotate_left(1); // who is first changes, so that what drifts favours nobody
    }
    Ok(Rounds(modes))
}

impl Rounds {
    fn runs(&self, mode: Mode) -> impl Iterator<Item = &Run> {
        self.0.iter().filter(move |(of, _)| *of == mode).flat_map(|(_, runs)| runs)
    }

    /// Lowest, median and highest of what is said of the mode's run and of the run on one core in the same round.
    fn beside_rtc(&self, mode: Mode, figure: impl Fn(&Run, &Run) -> f64) -> [f64; 3] {
        let pairs = self.runs(mode).zip(self.runs(Mode::RunToCompletion));
        spread(pairs.map(|(run, rtc)| figure(run, rtc)).collect()).unwrap_or_default()
    }

    fn mpps(&self, mode: Mode) -> [f64; 3] {
        spread(self.runs(mode).map(|run| run.rate / 1e6).collect()).unwrap_or_default()
    }

    fn over_rtc(&self, mode: Mode) -> [f64; 3] {
        self.beside_rtc(mode, |run, rtc| run.rate / rtc.rate)
    }

    /// What was on the second core at the end of most runs.
    fn usual_split(&self, mode: Mode) -> String {
        let splits = || self.runs(mode).map(|run| run.split);
        let usual = splits().max_by_key(|split| splits().filter(|other| other == split).count());
        usual.unwrap_or_default().name()
    }

    fn point(&self, series: Series, cycles: u32) -> Point {
        let by_ratio = |a: &Mode, b: &Mode| self.over_rtc(*a)[1].total_cmp(&self.over_rtc(*b)[1]);
        let best = Mode::SPLITS.into_iter().max_by(by_ratio).unwrap_or(Mode::SPLITS[0]);
        let [rtc_mpps_lowest, rtc_mpps, rtc_mpps_highest] = self.mpps(Mode::RunToCompletion);
        let [static_mpps_lowest, static_mpps, static_mpps_highest] = self.mpps(Mode::Static);
        let [balanced_mpps_lowest, balanced_mpps, balanced_mpps_highest] = self.mpps(Mode::Balanced);
        let [balanced_over_rtc_lowest, balanced_over_rtc, balanced_over_rtc_highest] =
            self.over_rtc(Mode::Balanced);
        let [best_mpps_lowest, best_mpps, best_mpps_highest] = self.mpps(best);
        let [best_over_rtc_lowest, best_over_rtc, best_over_rtc_highest] = self.over_rtc(best);
        let all = || self.0.iter().flat_map(|(_, runs)| runs);
        Point {
            series,
            cycles,
            rtc_mpps,
            rtc_mpps_lowest,
            rtc_mpps_highest,
            static_mpps,
            static_mpps_lowest,
            static_mpps_highest,
            static_over_rtc: self.over_rtc(Mode::Static)[1],
            balanced_mpps,
            balanced_mpps_lowest,
            balanced_mpps_highest,
            balanced_over_rtc,
            balanced_over_rtc_lowest,
            balanced_over_rtc_highest,
            balanced_split: self.usual_split(Mode::Balanced),
            best_mpps,
            best_mpps_lowest,
            best_mpps_highest,
            best_split: best.name(),
            best_over_rtc,
            best_over_rtc_lowest,
            best_over_rtc_highest,
            lost: all().map(|run| run.lost).sum(),
            reordered: all().map(|run| run.reordered).sum(),
            core_share: all().map(|run| run.core_share).fold(1.0, f64::min),
        }
    }

    /// From the rounds without added work.
    fn hand_over(&self) -> HandOver {
        let added = |mode| self.beside_rtc(mode, |run, rtc| run.busy_cycles - rtc.busy_cycles);
        let [_, entry_cycles, _] = added(Mode::Beside);
        let hop = |added: f64| (added - entry_cycles) / 2.0;
        let [hop_cycles_lowest, hop_cycles, hop_cycles_highest] = added(Mode::SPLITS[0]).map(hop);
        let rtc_cycles = median(self.runs(Mode::RunToCompletion).map(|run| run.busy_cycles).collect());
        HandOver { rtc_cycles, entry_cycles, hop_cycles, hop_cycles_lowest, hop_cycles_highest }
    }
}

/// The work from which on the best split stays faster than one core: between the last point where it is not and the next, in a
/// straight line.
fn crossover<'a>(points: impl Iterator<Item = &'a Point>) -> Option<f64> {
    let points: Vec<(f64, f64)> =
        points.map(|point| (f64::from(point.cycles), point.best_over_rtc)).collect();
    match points.iter().rposition(|(_, ratio)| *ratio < 1.0) {
        None => points.first().map(|(cycles, _)| *cycles),
        Some(last) => match points.get(last..last + 2) {
            Some([(below, slower), (above, faster)]) => {
                Some(below + (above - below) * (1.0 - slower) / (faster - slower))
            }
            _ => None,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mode::Split;

    fn run(mpps: f64, busy_cycles: f64) -> Run {
        let split = Split::default();
        Run { rate: mpps * 1e6, lost: 1, reordered: 0, busy_cycles, core_share: 0.5 + mpps / 1000.0, split }
    }

    /// Two rounds in which all modes are alike but for those named.
    fn rounds(special: &[(Mode, [Run; 2])]) -> Rounds {
        let usual = [run(10.0, 100.0), run(20.0, 100.0)];
        let runs = |mode| special.iter().find(|(of, _)| *of == mode).map_or(usual, |(_, runs)| *runs);
        Rounds(Mode::ALL.iter().map(|mode| (*mode, runs(*mode).to_vec())).collect())
    }

    #[test]
    fn ratios_are_of_runs_of_one_round_and_the_best_split_wins_by_them() {
        let decap = (Mode::SPLITS[1], [run(15.0, 1.0), run(40.0, 1.0)]);
        let point = rounds(&[decap]).point(Series::Heavy, 100);
        assert_eq!((point.best_split.as_str(), point.best_mpps), ("decap", 40.0));
        assert_eq!(
            (point.best_over_rtc, point.best_over_rtc_lowest, point.best_over_rtc_highest),
            (2.0, 1.5, 2.0)
        );
        assert_eq!((point.rtc_mpps, point.static_over_rtc, point.lost), (20.0, 1.0, 18));
        assert_eq!(point.core_share, 0.51);
    }

    #[test]
    fn a_hop_costs_half_of_what_two_add_beyond_the_entry() {
        let beside = (Mode::Beside, [run(1.0, 130.0); 2]);
        let both = (Mode::SPLITS[0], [run(1.0, 230.0); 2]);
        let hand_over = rounds(&[beside, both]).hand_over();
        assert_eq!((hand_over.rtc_cycles, hand_over.entry_cycles, hand_over.hop_cycles), (100.0, 30.0, 50.0));
    }

    #[test]
    fn work_is_split_without_a_rest() {
        let stages = [Stage::Classify, Stage::Decap, Stage::Lookup, Stage::Deliver];
        for (series, cycles) in Series::ALL.into_iter().flat_map(|series| WORK.map(|cycles| (series, cycles)))
        {
            assert_eq!(stages.map(|stage| series.share(stage, cycles)).iter().sum::<u32>(), cycles);
        }
    }

    #[test]
    fn the_crossover_is_after_the_last_point_that_is_slower() {
        let points = |ratios: [f64; 4]| {
            let point =
                |(cycles, best_over_rtc)| Point { best_over_rtc, ..rounds(&[]).point(Series::Even, cycles) };
            [0, 100, 200, 400].into_iter().zip(ratios).map(point).collect::<Vec<Point>>()
        };
        let at = |ratios| crossover(points(ratios).iter());
        assert_eq!(at([0.5, 0.75, 1.25, 1.5]), Some(150.0));
        assert_eq!(at([0.5, 1.5, 0.5, 1.5]), Some(300.0));
        assert_eq!(at([1.0, 1.5, 1.6, 1.7]), Some(0.0));
        assert_eq!(at([0.5, 1.5, 1.5, 0.9]), None);
    }
}
