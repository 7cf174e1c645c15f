//! What classes cost, as pairs of rates that take turns: everything urgent beside everything normal, 1000 rules beside 10. And what is left
//! for normal packets when urgent ones are more than the worker can take. With frames from memory.

use peregrine_dataplane::plan::{RulePlan, WorkOrder};
use peregrine_dataplane::types::Class;
use serde::{Deserialize, Serialize};

use super::bench::{Bench, Cores, Offered, Setup};
use super::measured::{Goal, Mode};
use super::port::{self, Times};
use super::traffic::{NORMAL_PORT, rule};
use crate::figures::{median, share, spread};
use crate::micro::classes::rules;

/// What normal packets are guaranteed, in percent of the worker's time.
const SHARE: u8 = 20;
/// Offered, as parts of what the worker can take.
const URGENT: f64 = 1.2;
const NORMAL: f64 = 0.6;
/// Of the guaranteed share, this much must be there.
const SHARE_WITHIN: f64 = 0.9;
/// A ratio of rates that are the same, as exactly as they are measured.
const NO_SLOWER: f64 = 0.98;
/// Work on each packet while shares are measured.
const WORK: u32 = 400;

/// Two rates that took turns.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Pair {
    pub what: String,
    pub mpps: f64,
    pub over_mpps: f64,
    /// The first over the second, of runs that followed one another.
    pub ratio: f64,
    pub ratio_lowest: f64,
    pub ratio_highest: f64,
    pub ratio_wanted: f64,
}

/// What normal packets got beside too many urgent ones.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct ShareReport {
    pub mode: Mode,
    pub early: bool,
    /// Of what the worker can take: guaranteed to normal packets, offered of them and of urgent ones, and what came through of both.
    pub share: f64,
    pub normal_offered: f64,
    pub urgent_offered: f64,
    pub normal_got: f64,
    pub urgent_got: f64,
    /// Normal packets of all that came through: as each costs the worker the same, their part of its time.
    #[serde(deserialize_with = "share")]
    pub normal_part: f64,
}

/// All pairs.
pub fn pairs(cores: Cores, times: Times) -> Result<Vec<Pair>, String> {
    // Rules that do or do not meet what is sent, so that both kinds are looked for alike.
    let only = |port| vec![rule(port, Class::URGENT)];
    let with = |early, rules: Vec<RulePlan>| Setup { rules, ..port::setup(cores, WorkOrder::Sync, early, 0) };
    let all_urgent = |early| Setup { is_all_urgent: true, ..with(early, only(NORMAL_PORT)) };
    let all_normal = |early| with(early, only(NORMAL_PORT + 1));
    let of_rules = |count| with(false, rules(count));
    Ok(vec![
        pair("all urgent over all normal", [all_urgent(false), all_normal(false)], NO_SLOWER, times)?,
        pair("all urgent over all normal, early", [all_urgent(true), all_normal(true)], NO_SLOWER, times)?,
        pair("1000 rules over 10", [of_rules(1000), of_rules(10)], 1.0 / 1.1, times)?,
    ])
}

fn pair(what: &str, setups: [Setup; 2], wanted: f64, times: Times) -> Result<Pair, String> {
    let mut rates = [Vec::new(), Vec::new()];
    for round in 0..times.pairs {
        for which in 0..setups.len() {
            let which = (which + round) % setups.len();
            if let (Some(setup), Some(rates)) = (setups.get(which), rates.get_mut(which)) {
                rates.push(Bench::start(setup, None)?.most(times.capacity)?);
            }
        }
    }
    let [first, second] = rates;
    let ratios = first.iter().zip(&second).map(|(first, second)| first / second).collect();
    let [ratio_lowest, ratio, ratio_highest] = spread(ratios).unwrap_or_default();
    Ok(Pair {
        what: what.into(),
        mpps: median(first) / 1e6,
        over_mpps: median(second) / 1e6,
        ratio,
        ratio_lowest,
        ratio_highest,
        ratio_wanted: wanted,
    })
}

/// Of the orders that prefer urgent packets, with early classes and without.
pub fn shares(cores: Cores, times: Times) -> Result<Vec<ShareReport>, String> {
    let capacity = port::capacity(&port::setup(cores, WorkOrder::Fifo, false, WORK), None, times)?;
    let mut all = Vec::new();
    for order in [WorkOrder::Batch, WorkOrder::Sync] {
        for early in [false, true] {
            let setup = Setup { normal_share: SHARE, ..port::setup(cores, order, early, WORK) };
            let offered = Offered { urgent: URGENT * capacity, normal: NORMAL * capacity };
            let mut got = [Vec::new(), Vec::new(), Vec::new()];
            for _ in 0..times.runs {
                let run = Bench::start(&setup, None)?.measure(offered, times.warm_up, times.window)?;
                got[0].push(run.normal_of_core() / capacity);
                got[1].push(run.urgent_of_core() / capacity);
                got[2].push(run.normal_rate / (run.normal_rate + run.urgent_rate));
            }
            let [normal_got, urgent_got, normal_part] = got.map(median);
            all.push(ShareReport {
                mode: order.into(),
                early,
                share: f64::from(SHARE) / 100.0,
                normal_offered: NORMAL,
                urgent_offered: URGENT,
                normal_got,
                urgent_got,
                normal_part,
            });
        }
    }
    Ok(all)
}

/// What is wanted of both.
pub fn goals(pairs: &[Pair], shares: &[ShareReport]) -> Vec<Goal> {
    let goal = |what: String, found, wanted| Goal {
        what,
        port: "replay".into(),
        found: Some(found),
        wanted,
        at_least: true,
    };
    let of_pair = |pair: &Pair| goal(format!("rate: {}", pair.what), pair.ratio, pair.ratio_wanted);
    let of_share = |share: &ShareReport| {
        let early = if share.early { ", early" } else { "" };
        let what = format!("part of normal beside 120 % urgent, {}{early}", share.mode.name());
        goal(what, share.normal_part, SHARE_WITHIN * share.share)
    };
    pairs.iter().map(of_pair).chain(shares.iter().map(of_share)).collect()
}
