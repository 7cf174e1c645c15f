//! Histograms of nanoseconds: up to a minute, what is longer counts as a minute. Three significant digits, or two where
//! there are many histograms.
//!
//! The bounds are fixed: nothing is allocated after the start. (A histogram that resizes itself would put what it clamps
//! in the wrong place.)

use std::io::{self, Write};

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::clock::SECOND;
use crate::error::Error;

const LONGEST_NS: u64 = 60 * SECOND;

/// How long packets took.
#[derive(Clone, PartialEq, Debug)]
pub struct Latency(Histogram<u64>);

/// Percentiles in microseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Percentiles {
    /// Half of the packets took at most this long.
    pub p50: f64,
    /// 90 %.
    pub p90: f64,
    /// 99 %.
    pub p99: f64,
    /// 99.9 %.
    pub p999: f64,
    /// 99.99 %.
    pub p9999: f64,
    /// The slowest.
    pub max: f64,
}

impl Latency {
    /// Nothing recorded yet. Three digits: some 220 kB.
    ///
    /// # Errors
    /// None that is known: the bounds are good.
    pub fn new() -> Result<Latency, Error> {
        Latency::with_digits(3)
    }

    /// The same with two digits: some 30 kB.
    ///
    /// # Errors
    /// As [`new`](Self::new).
    pub fn coarse() -> Result<Latency, Error> {
        Latency::with_digits(2)
    }

    fn with_digits(digits: u8) -> Result<Latency, Error> {
        Histogram::new_with_bounds(1, LONGEST_NS, digits).map(Latency).map_err(|error| Error::System {
            what: "making a histogram".into(),
            source: io::Error::other(error),
        })
    }

    /// One packet. Allocates nothing.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns.min(LONGEST_NS));
    }

    /// Adds what another histogram of the same digits holds.
    pub fn add(&mut self, other: &Latency) {
        // It could fail only for values beyond the bounds, which are the same for all.
        let _never = self.0.add(&other.0);
    }

    /// Forgets everything.
    pub fn reset(&mut self) {
        self.0.reset();
    }

    /// At most how many nanoseconds this share of the packets took; 0 when nothing was recorded.
    pub fn at(&self, quantile: f64) -> u64 {
        self.0.value_at_quantile(quantile)
    }

    /// How many packets took at least so long, as exactly as the digits allow.
    #[cfg(test)]
    pub fn count_from(&self, ns: u64) -> u64 {
        self.0.count_between(ns, LONGEST_NS)
    }

    /// Writes how many packets took how long, as lines of nanoseconds and a count: what several runs wrote can be added
    /// up without loss, unlike their percentiles.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write_counts(&self, out: &mut impl Write) -> io::Result<()> {
        let mut recorded = self.0.iter_recorded();
        recorded.try_for_each(|step| writeln!(out, "{} {}", step.value_iterated_to(), step.count_at_value()))
    }

    /// `None` when nothing was recorded.
    pub fn percentiles(&self) -> Option<Percentiles> {
        let us = |ns: u64| ns as f64 / 1000.0;
        let at = |quantile: f64| us(self.at(quantile));
        (!self.0.is_empty()).then(|| Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            p9999: at(0.9999),
            max: us(self.0.max()),
        })
    }

    /// Writes the percentile distribution in microseconds, in the text format of HdrHistogram that its plotters read.
    ///
    /// # Errors
    /// Those of writing.
    pub fn write_percentiles(&self, out: &mut impl Write) -> io::Result<()> {
        const TICKS_PER_HALF_DISTANCE: u32 = 5;
        const NS: f64 = 1000.0;
        let digits = usize::from(self.0.sigfig());
        writeln!(
            out,
            "{:>12} {:>14} {:>10} {:>14}\n",
            "Value", "Percentile", "TotalCount", "1/(1-Percentile)"
        )?;
        let mut total = 0;
        for step in self.0.iter_quantiles(TICKS_PER_HALF_DISTANCE) {
            total += step.count_since_last_iteration();
            let (value, share) = (step.value_iterated_to() as f64 / NS, step.quantile_iterated_to());
            write!(out, "{value:>12.digits$} {share:>14.12} {total:>10}")?;
            if share < 1.0 {
                write!(out, " {:>14.2}", 1.0 / (1.0 - share))?;
            }
            writeln!(out)?;
        }
        let (mean, deviation) = (self.0.mean() / NS, self.0.stdev() / NS);
        let (max, buckets, sub_buckets) = (self.0.max() as f64 / NS, self.0.buckets(), self.sub_buckets());
        writeln!(out, "#[Mean    = {mean:>12.digits$}, StdDeviation   = {deviation:>12.digits$}]")?;
        writeln!(out, "#[Max     = {max:>12.digits$}, Total count    = {total:>12}]")?;
        writeln!(out, "#[Buckets = {buckets:>12}, SubBuckets     = {sub_buckets:>12}]")
    }

    /// The places of one bucket: the power of two from twice the values that the digits tell apart.
    fn sub_buckets(&self) -> u64 {
        (2 * 10_u64.pow(u32::from(self.0.sigfig()))).next_power_of_two()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_microseconds_to_three_digits() {
        let mut latency = Latency::new().unwrap();
        assert_eq!(latency.percentiles(), None);
        for us in 1..=10_000 {
            latency.record(us * 1000);
        }
        let got = latency.percentiles().unwrap();
        for (got, wanted) in [
            (got.p50, 5000.0),
            (got.p90, 9000.0),
            (got.p99, 9900.0),
            (got.p999, 9990.0),
            (got.p9999, 9999.0),
            (got.max, 10_000.0),
        ] {
            assert!((got / wanted - 1.0).abs() < 0.002, "{got} {wanted}");
        }
        let slow = latency.count_from(9_000_000);
        assert!((1000..=1010).contains(&slow), "{slow}");
        latency.reset();
        assert_eq!((latency.percentiles(), latency.at(0.5)), (None, 0));
    }

    #[test]
    fn counts_are_all_that_was_recorded() {
        let mut latency = Latency::new().unwrap();
        [900, 900, 5, 1_000_000].into_iter().for_each(|ns| latency.record(ns));
        let mut text = Vec::new();
        latency.write_counts(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), "5 1\n900 2\n1000447 1\n");
    }

    #[test]
    fn two_digits_are_right_to_a_hundredth() {
        let mut latency = Latency::coarse().unwrap();
        latency.record(123_456);
        let p50 = latency.percentiles().unwrap().p50;
        assert!((p50 / 123.456 - 1.0).abs() < 0.01, "{p50}");
    }

    /// Whatever comes after a minute or more is not misled by it, nor it by what came before.
    #[test]
    fn what_lasts_longer_than_a_minute_counts_as_a_minute() {
        for mut latency in [Latency::new().unwrap(), Latency::coarse().unwrap()] {
            for ns in [u64::MAX, LONGEST_NS, LONGEST_NS + 1, 2 * LONGEST_NS, 1000, 0] {
                latency.record(ns);
            }
            let got = latency.percentiles().unwrap();
            assert!((60e6..60e6 * 1.01).contains(&got.max), "{got:?}");
            assert_eq!((latency.count_from(LONGEST_NS), latency.count_from(2000)), (4, 4));
        }
    }

    /// As the Java library prints it: one value from 8 of 10 on, mean and deviation to be checked by hand.
    const PLOTTERS_TEXT: &str = "\
\x20      Value     Percentile TotalCount 1/(1-Percentile)

       1.000 0.000000000000          8           1.00
       1.000 0.100000000000          8           1.11
       1.000 0.200000000000          8           1.25
       1.000 0.300000000000          8           1.43
       1.000 0.400000000000          8           1.67
       1.000 0.500000000000          8           2.00
       1.000 0.550000000000          8           2.22
       1.000 0.600000000000          8           2.50
       1.000 0.650000000000          8           2.86
       1.000 0.700000000000          8           3.33
       1.000 0.750000000000          8           4.00
       1.000 0.775000000000          8           4.44
       2.000 0.800000000000          9           5.00
       2.000 0.825000000000          9           5.71
       2.000 0.850000000000          9           6.67
       2.000 0.875000000000          9           8.00
       2.000 0.887500000000          9           8.89
     100.031 0.900000000000         10          10.00
     100.031 1.000000000000         10
#[Mean    =       11.000, StdDeviation   =       29.668]
#[Max     =      100.031, Total count    =           10]
#[Buckets =           26, SubBuckets     =         2048]
";

    #[test]
    fn the_plotters_text_is_literally_so() {
        let mut latency = Latency::new().unwrap();
        for us in [1, 1, 1, 1, 1, 1, 1, 1, 2, 100] {
            latency.record(us * 1000);
        }
        let mut text = Vec::new();
        latency.write_percentiles(&mut text).unwrap();
        assert_eq!(String::from_utf8(text).unwrap(), PLOTTERS_TEXT);
    }
}
