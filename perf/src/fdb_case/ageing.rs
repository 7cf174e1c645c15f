//! How late packets of a flow with a rate are while a million learned addresses age out and others come in, beside tables in which
//! nothing happens: control's hand goes round the table in each of them, but for the one that it leaves alone.

use std::time::Duration;

use peregrine_dataplane::replay::Numbers;
use serde::{Deserialize, Serialize};

use super::bench::{Bench, Setup, stream};
use super::{Figure, MILLION, NEW_PER_SECOND, Plan, RUNS, as_control};
use crate::paced;

/// Frames a second of the flow.
const RATE: f64 = 1e6;
/// Addresses that it comes from, at random.
const STATIONS: u32 = 1000;
/// The flows: that at the rate; beside it new addresses; beside it known ones.
const FLOW: usize = 1;
const NEW: usize = 2;
const AGAIN: usize = 3;
/// Nothing is as old as this.
const NEVER: Duration = Duration::from_secs(3600);
/// The shortest.
const SOON: Duration = Duration::from_secs(1);

/// What is in the table, and what becomes of it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Table {
    /// Room for a million and next to nothing in it.
    Empty,
    /// A million; control does nothing.
    NoAgeing,
    /// A million; all are looked at, none is old.
    NoneOld,
    /// A million, all old: they go while others come.
    AgeingOut,
}

impl Table {
    const ALL: [Table; 4] = [Table::Empty, Table::NoAgeing, Table::NoneOld, Table::AgeingOut];

    pub fn name(self) -> &'static str {
        match self {
            Table::Empty => "empty",
            Table::NoAgeing => "1M, no ageing",
            Table::NoneOld => "1M, none is old",
            Table::AgeingOut => "1M, ageing out",
        }
    }
}

/// One of them.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Case {
    pub table: Table,
    /// `None` where a run had too few packets to tell.
    pub p50_us: Option<Figure>,
    pub p99_us: Option<Figure>,
    pub p999_us: Option<Figure>,
    pub max_us: Option<Figure>,
    pub forgotten_per_s: Figure,
    pub learned_per_s: Figure,
    /// Addresses for which the table had no room, in all runs.
    pub refused: u64,
    /// In all runs.
    pub stalls: u64,
    /// Missed and dropped, in all runs.
    pub lost: u64,
    pub core_share: f64,
}

/// All of them.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Ageing {
    /// Of the flow, and of what comes beside it.
    pub packets_per_s: f64,
    pub cases: Vec<Case>,
}

impl Ageing {
    /// A table.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<17}{:>18}{:>26}{:>28}{:>26}{:>12}{:>12}{:>9}{:>8}{:>8}{:>8}\n",
            "ageing",
            "p50 us",
            "p99 us",
            "p99.9 us",
            "max us",
            "forgotten/s",
            "learned/s",
            "refused",
            "stalls",
            "lost",
            "core %"
        );
        let time = |figure: &Option<Figure>, digits| figure.map_or("-".into(), |figure| figure.text(digits));
        for case in &self.cases {
            out += &format!(
                "{:<17}{:>18}{:>26}{:>28}{:>26}{:>12.0}{:>12.0}{:>9}{:>8}{:>8}{:>8.0}\n",
                case.table.name(),
                time(&case.p50_us, 2),
                time(&case.p99_us, 2),
                time(&case.p999_us, 2),
                time(&case.max_us, 1),
                case.forgotten_per_s.median,
                case.learned_per_s.median,
                case.refused,
                case.stalls,
                case.lost,
                100.0 * case.core_share
            );
        }
        out + &format!(
            "{:.1} Mpps are offered; times are from when a frame is due to the tenant, at most 3 % too high.\n",
            self.packets_per_s / 1e6
        )
    }
}

/// What one run gave; times in cycles.
#[derive(Clone, Debug)]
struct Run {
    times: [Option<u64>; 4],
    forgotten_per_s: f64,
    learned_per_s: f64,
    refused: u64,
    stalls: u64,
    lost: u64,
    core_share: f64,
}

/// All of them in turns.
pub fn run(plan: &Plan) -> Result<Ageing, String> {
    let mut tables: Vec<(Table, Vec<Run>)> = Table::ALL.iter().map(|table| (*table, Vec::new())).collect();
    for _ in 0..RUNS {
        for (table, runs) in &mut tables {
            runs.push(as_control(|| measure(plan, *table, MILLION))?);
        }
        tables.rotate_left(1); // who is first changes, so that what drifts favours nobody
    }
    tables.sort_by_key(|(table, _)| Table::ALL.iter().position(|of| of == table));
    let cases = tables.iter().map(|(table, runs)| case(*table, runs, plan.hertz)).collect();
    Ok(Ageing { packets_per_s: RATE + f64::from(NEW_PER_SECOND), cases })
}

fn measure(plan: &Plan, table: Table, million: u32) -> Result<Run, String> {
    let known = if table == Table::Empty { 0 } else { million };
    let ageing = if table == Table::AgeingOut { SOON } else { NEVER };
    let setup = Setup { worker: plan.worker, control: plan.second, room: million + STATIONS, ageing, known };
    let streams = vec![
        stream(FLOW as u32, Numbers::random(0, STATIONS)),
        stream(NEW as u32, Numbers::rising(million, u32::MAX - million)),
        stream(AGAIN as u32, Numbers::random(0, STATIONS)),
    ];
    let mut bench = Bench::start(&setup, streams)?;
    bench.set_speed(FLOW, paced::speed(RATE, plan.hertz));
    if table == Table::AgeingOut {
        // As much room as new ones need until control looks again.
        bench.until("nothing ages", |bench| bench.known() < known - known / 50)?;
    }
    bench.is_left_alone = table == Table::NoAgeing;
    let beside = if table == Table::AgeingOut { NEW } else { AGAIN };
    bench.set_speed(beside, paced::speed(NEW_PER_SECOND.into(), plan.hertz));
    bench.pass(plan.warm_up)?;
    let before = bench.read()?;
    bench.pass(plan.ageing)?;
    let after = bench.read()?;
    bench.stop()?;
    let (seconds, latencies) = (after.seconds_since(&before), after.latencies.since(&before.latencies));
    let learned = (after.learned - before.learned) as f64;
    let [p50, p99, p999] = [0.5, 0.99, 0.999].map(|share| latencies.percentile(share));
    Ok(Run {
        times: [p50, p99, p999, latencies.max()],
        forgotten_per_s: (learned + f64::from(before.known) - f64::from(after.known)) / seconds,
        learned_per_s: learned / seconds,
        refused: after.refused - before.refused,
        stalls: after.stalls - before.stalls,
        lost: after.lost - before.lost,
        core_share: after.core_share_since(&before),
    })
}

fn case(table: Table, runs: &[Run], hertz: f64) -> Case {
    let time = |index: usize| {
        let times: Option<Vec<f64>> = runs.iter().map(|run| Some(run.times[index]? as f64)).collect();
        times.map(|times| Figure::of(times.into_iter().map(|cycles| 1e6 * cycles / hertz)))
    };
    let figure = |of: fn(&Run) -> f64| Figure::of(runs.iter().map(of));
    Case {
        table,
        p50_us: time(0),
        p99_us: time(1),
        p999_us: time(2),
        max_us: time(3),
        forgotten_per_s: figure(|run| run.forgotten_per_s),
        learned_per_s: figure(|run| run.learned_per_s),
        refused: runs.iter().map(|run| run.refused).sum(),
        stalls: runs.iter().map(|run| run.stalls).sum(),
        lost: runs.iter().map(|run| run.lost).sum(),
        core_share: runs.iter().map(|run| run.core_share).fold(1.0, f64::min),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline_case::mode::tests::ENGINE;

    #[test]
    fn figures_are_medians_and_missing_where_a_run_could_not_tell() {
        let run = |p50, p99| Run {
            times: [Some(p50), p99, None, Some(9000)],
            forgotten_per_s: p50 as f64,
            learned_per_s: 7.0,
            refused: 4,
            stalls: 1,
            lost: 2,
            core_share: 0.9,
        };
        let case = case(Table::Empty, &[run(3000, Some(1)), run(1000, None), run(2000, Some(1))], 2e9);
        assert_eq!(case.p50_us, Some(Figure { median: 1.0, lowest: 0.5, highest: 1.5 }));
        assert_eq!((case.p99_us, case.p999_us), (None, None));
        assert_eq!((case.forgotten_per_s.median, case.stalls, case.lost), (2000.0, 3, 6));
        let text = Ageing { packets_per_s: 1e6, cases: vec![case] }.text();
        assert!(text.contains("1.00 (0.50–1.50)") && text.contains("empty"), "{text}");
    }

    #[test]
    fn old_addresses_go_and_new_ones_come() {
        let _alone = ENGINE.lock();
        let plan = Plan { ageing: Duration::from_millis(500), ..super::super::tests::plan() };
        let run = as_control(|| measure(&plan, Table::AgeingOut, 20_000)).unwrap();
        assert!(run.forgotten_per_s > 0.0 && run.learned_per_s > 0.0 && run.times[3].is_some(), "{run:?}");
        let quiet = as_control(|| measure(&plan, Table::NoneOld, 20_000)).unwrap();
        assert_eq!(quiet.forgotten_per_s, 0.0, "{quiet:?}");
    }
}
