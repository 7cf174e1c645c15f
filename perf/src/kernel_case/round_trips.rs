//! Round trips at one load over all runs. `report.rs` calls `AtLoad::new`; the page and the tables read it.
//!
//! p50 to p99 are medians of the runs: one run that something disturbed does not move them. What is rarer is taken from
//! the packets of all runs together, for one run alone has too few of them to tell p99.99 at all.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::measured::{DISTURBED, PACKETS_MIN, RoundTrips};
use crate::figures::spread;

/// Places of p50, p90 and p99, of those that are made of all packets, and of the maximum, among the percentiles.
const OF_RUNS: [usize; 3] = [0, 1, 2];
const OF_ALL: [usize; 2] = [3, 4];
const MAX: usize = 5;

/// Round trips at one load: counts over all runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct AtLoad {
    pub pps: u64,
    pub sent: u64,
    pub lost: u64,
    pub late: u64,
    pub stolen_ms: f64,
    pub attempts: u64,
    /// Runs in which even the best attempt was disturbed.
    pub disturbed_runs: usize,
    /// Answers, over all runs: so many p99.9 and p99.99 are made of.
    #[serde(default)]
    pub samples: u64,
    /// The generator's own part of a round trip: less than this tells no systems apart.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub floor_ns: Option<f64>,
    /// The median of the runs; p99.9 and p99.99 of all packets together; the highest maximum.
    #[serde(flatten)]
    pub median: Percentiles,
    /// Of single runs; absent where one of them had too few packets.
    pub lowest: Percentiles,
    pub highest: Percentiles,
}

/// In microseconds; `null` where there were too few packets for it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Percentiles {
    pub p50: Option<f64>,
    pub p90: Option<f64>,
    pub p99: Option<f64>,
    pub p999: Option<f64>,
    pub p9999: Option<f64>,
    pub max: Option<f64>,
}

impl AtLoad {
    /// `None` of no runs.
    pub fn new(runs: &[&RoundTrips]) -> Option<AtLoad> {
        let sum = |pick: fn(&RoundTrips) -> u64| runs.iter().map(|run| pick(run)).sum::<u64>();
        let of = |at: usize| -> Option<[f64; 3]> {
            let told: Vec<f64> = runs.iter().filter_map(|run| run.us.get(at).copied().flatten()).collect();
            let whole = OF_RUNS.contains(&at) || told.len() == runs.len();
            spread(told).filter(|_| whole)
        };
        let spreads: [Option<[f64; 3]>; 6] = std::array::from_fn(of);
        let [lowest, mut median, highest] = [0, 1, 2].map(|which: usize| {
            Percentiles::of(spreads.map(|values| values.and_then(|values| values.get(which).copied())))
        });
        let all = together(runs);
        [median.p999, median.p9999] = OF_ALL.map(|at| slowest(&all, *PACKETS_MIN.get(at)?));
        median.max = spreads.get(MAX).copied().flatten().map(|[_, _, highest]| highest);
        Some(AtLoad {
            pps: runs.first()?.pps,
            sent: sum(|run| run.sent),
            lost: sum(|run| run.lost),
            late: sum(|run| run.late),
            stolen_ms: runs.iter().map(|run| run.stolen_ms).sum(),
            attempts: sum(|run| run.attempts),
            disturbed_runs: runs.iter().filter(|run| run.disturbed > DISTURBED).count(),
            samples: all.values().sum(),
            floor_ns: spread(runs.iter().filter_map(|run| run.floor_ns).collect())
                .map(|[_, median, _]| median),
            median,
            lowest,
            highest,
        })
    }

    /// The part of the packets that left late: as many of the slowest round trips are the generator's doing.
    pub fn late_share(&self) -> f64 {
        self.late as f64 / self.sent.max(1) as f64
    }
}

impl Percentiles {
    fn of([p50, p90, p99, p999, p9999, max]: [Option<f64>; 6]) -> Percentiles {
        Percentiles { p50, p90, p99, p999, p9999, max }
    }

    /// In this order.
    pub fn values(&self) -> [Option<f64>; 6] {
        [self.p50, self.p90, self.p99, self.p999, self.p9999, self.max]
    }
}

/// How many answers of all runs took how many nanoseconds.
fn together(runs: &[&RoundTrips]) -> BTreeMap<u64, u64> {
    let mut all = BTreeMap::new();
    for (ns, count) in runs.iter().flat_map(|run| &run.counts) {
        *all.entry(*ns).or_default() += count;
    }
    all
}

/// What one packet in `one_in` exceeds at most, in microseconds; `None` if there are not as many packets.
fn slowest(all: &BTreeMap<u64, u64>, one_in: u64) -> Option<f64> {
    let samples: u64 = all.values().sum();
    let mut beyond = samples.checked_div(one_in).filter(|beyond| *beyond > 0)?;
    for (ns, count) in all.iter().rev() {
        if *count > beyond {
            return Some(*ns as f64 / 1000.0);
        }
        beyond -= count;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// So many answers after 10 µs, some after 5 ms.
    fn run(fast: u64, slow: u64) -> RoundTrips {
        let answered = fast + slow;
        let of = |at: usize, us: f64| (answered >= PACKETS_MIN[at]).then_some(us);
        RoundTrips {
            load: "idle",
            pps: 1000,
            sent: answered,
            lost: 0,
            late: 0,
            stolen_ms: 0.0,
            disturbed: 0.0,
            attempts: 1,
            floor_ns: None,
            us: [of(0, 10.0), of(1, 10.0), of(2, 10.0), of(3, 5000.0), of(4, 5000.0), of(5, 5000.0)],
            counts: vec![(10_000, fast), (5_000_000, slow)],
        }
    }

    #[test]
    fn what_one_run_is_too_short_for_all_together_tell() {
        let runs = [run(2390, 10), run(2398, 2), run(2400, 0), run(2400, 0), run(2400, 0)];
        let at = AtLoad::new(&runs.each_ref()).unwrap();
        assert_eq!(at.samples, 12_000);
        // Twelve were slow: twelve are beyond p99.9, one beyond p99.99.
        assert_eq!((at.median.p999, at.median.p9999), (Some(10.0), Some(5000.0)));
        assert_eq!((at.lowest.p9999, at.highest.p9999), (None, None), "no run tells it by itself");
        assert_eq!((at.median.p99, at.median.max), (Some(10.0), Some(5000.0)));
        let few = AtLoad::new(&runs.each_ref()[..4]).unwrap();
        assert_eq!((few.samples, few.median.p9999), (9600, None), "not one packet lies beyond");
    }

    #[test]
    fn a_tail_of_all_packets_is_that_of_one_run_with_all_of_them() {
        // Each nanosecond once, dealt out to four runs: the rank is known.
        let mut runs = [run(0, 0), run(0, 0), run(0, 0), run(0, 0)];
        for ns in 1..=40_000_u64 {
            runs[(ns % 4) as usize].counts.push((ns, 1));
        }
        let at = AtLoad::new(&runs.each_ref()).unwrap();
        assert_eq!((at.median.p999, at.median.p9999), (Some(39.96), Some(39.996)));
    }

    #[test]
    fn a_disturbed_run_moves_no_median() {
        let mut bad = run(2400, 0);
        (bad.us, bad.disturbed) = ([Some(900.0); 6], 0.5);
        let at = AtLoad::new(&[&run(2400, 0), &bad, &run(2400, 0)]).unwrap();
        assert_eq!((at.median.p50, at.median.p99, at.disturbed_runs), (Some(10.0), Some(10.0), 1));
        assert_eq!((at.highest.p50, at.median.max), (Some(900.0), Some(5000.0)));
        assert!(AtLoad::new(&[]).is_none());
    }
}
