//! Histograms of nanoseconds: three significant digits, up to a minute; what is longer counts as a minute.

use hdrhistogram::Histogram;
use serde::Serialize;

use crate::clock::SECOND;
use crate::error::Error;

const LONGEST_NS: u64 = 60 * SECOND;

/// How long packets took.
#[derive(Clone, Debug)]
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
    /// The slowest.
    pub max: f64,
}

impl Latency {
    /// Nothing recorded yet.
    pub fn new() -> Result<Latency, Error> {
        Histogram::new_with_bounds(1, LONGEST_NS, 3).map(Latency).map_err(|error| Error::System {
            what: "making a histogram".into(),
            source: std::io::Error::other(error),
        })
    }

    /// One packet. Allocates nothing.
    #[inline]
    pub fn record(&mut self, ns: u64) {
        self.0.saturating_record(ns);
    }

    /// `None` when nothing was recorded.
    pub fn percentiles(&self) -> Option<Percentiles> {
        let us = |ns: u64| ns as f64 / 1000.0;
        let at = |quantile: f64| us(self.0.value_at_quantile(quantile));
        (!self.0.is_empty()).then(|| Percentiles {
            p50: at(0.5),
            p90: at(0.9),
            p99: at(0.99),
            p999: at(0.999),
            max: us(self.0.max()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_microseconds_to_three_digits() {
        let mut latency = Latency::new().unwrap();
        assert_eq!(latency.percentiles(), None);
        for us in 1..=1000 {
            latency.record(us * 1000);
        }
        let got = latency.percentiles().unwrap();
        for (got, wanted) in
            [(got.p50, 500.0), (got.p90, 900.0), (got.p99, 990.0), (got.p999, 999.0), (got.max, 1000.0)]
        {
            assert!((got / wanted - 1.0).abs() < 0.002, "{got} {wanted}");
        }
    }

    #[test]
    fn what_lasts_longer_than_a_minute_saturates() {
        let mut latency = Latency::new().unwrap();
        latency.record(u64::MAX);
        assert!(latency.percentiles().unwrap().max >= 60e6);
    }
}
