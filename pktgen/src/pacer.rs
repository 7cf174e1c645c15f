//! When each packet is meant to leave. Open loop: the times depend on the rate only, never on how fast packets
//! could be sent; who falls behind sends late, and the packets say so.

use std::fmt;
use std::num::NonZeroU64;
use std::str::FromStr;

use crate::clock::{MILLISECOND, SECOND};

/// How far a sender may fall behind before it gives departures up (they are counted): what it then still owes
/// would be a burst and no longer the rate that was asked for.
pub const LAG_MAX_NS: u64 = 100 * MILLISECOND;

/// The fastest rate that can be asked for.
const PPS_MAX: u64 = 100_000_000;

/// How many packets a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rate {
    /// So many, evenly spaced.
    Pps(NonZeroU64),
    /// As many as can be sent.
    Max,
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        if text == "max" {
            return Ok(Rate::Max);
        }
        let pps = text.parse::<NonZeroU64>().ok().filter(|pps| pps.get() <= PPS_MAX);
        pps.map(Rate::Pps).ok_or_else(|| format!("a rate is 1 to {PPS_MAX} packets per second, or 'max'"))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::Pps(pps) => pps.fmt(f),
            Rate::Max => f.write_str("max"),
        }
    }
}

/// The schedule of one sender: exact also for rates that do not divide a second.
#[derive(Debug)]
pub struct Pacer {
    /// `None`: everything is due at once.
    pps: Option<NonZeroU64>,
    next_ns: u64,
    /// What `next_ns` leaves out, in 1/pps of a nanosecond.
    fraction: u64,
}

impl Pacer {
    /// The first packet is due at `start_ns`.
    pub fn new(rate: Rate, start_ns: u64) -> Pacer {
        let pps = match rate {
            Rate::Pps(pps) => Some(pps),
            Rate::Max => None,
        };
        Pacer { pps, next_ns: start_ns, fraction: 0 }
    }

    /// When the next packet is due; at rate `max` that is `now`.
    #[inline]
    pub fn next_ns(&self, now: u64) -> u64 {
        if self.pps.is_some() { self.next_ns } else { now }
    }

    /// If a packet is due, takes it: when it was meant to leave.
    #[inline]
    pub fn take(&mut self, now: u64) -> Option<u64> {
        let Some(pps) = self.pps else { return Some(now) };
        if self.next_ns > now {
            return None;
        }
        let due = self.next_ns;
        self.advance(pps, 1);
        Some(due)
    }

    /// Gives up departures that are overdue by more than [`LAG_MAX_NS`], and returns how many.
    #[inline]
    pub fn skip_overdue(&mut self, now: u64) -> u64 {
        let Some(pps) = self.pps else { return 0 };
        let lag = now.saturating_sub(self.next_ns);
        if lag <= LAG_MAX_NS {
            return 0;
        }
        let count = scale(lag - LAG_MAX_NS, pps.get(), SECOND);
        self.advance(pps, count);
        count
    }

    #[inline]
    fn advance(&mut self, pps: NonZeroU64, count: u64) {
        if count == 1 {
            self.next_ns += SECOND / pps;
            self.fraction += SECOND % pps;
            if self.fraction >= pps.get() {
                self.fraction -= pps.get();
                self.next_ns += 1;
            }
            return;
        }
        let total = u128::from(count) * u128::from(SECOND) + u128::from(self.fraction);
        let pps = u128::from(pps.get());
        self.next_ns += (total / pps) as u64;
        self.fraction = (total % pps) as u64;
    }
}

/// `value * times / by`, without overflow in between.
fn scale(value: u64, times: u64, by: u64) -> u64 {
    u64::try_from(u128::from(value) * u128::from(times) / u128::from(by.max(1))).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn pps(rate: u64) -> Rate {
        Rate::Pps(NonZeroU64::new(rate).unwrap())
    }

    #[test]
    fn rates_are_read() {
        assert_eq!("max".parse(), Ok(Rate::Max));
        assert_eq!("10000".parse(), Ok(pps(10_000)));
        for bad in ["0", "-1", "1.5", "fast", "", "100000001"] {
            assert!(bad.parse::<Rate>().is_err(), "{bad}");
        }
    }

    #[test]
    fn packets_are_due_at_even_distances() {
        let mut pacer = Pacer::new(pps(10_000), 7);
        assert_eq!(pacer.take(6), None);
        assert_eq!(pacer.take(7), Some(7));
        assert_eq!(pacer.take(100_006), None);
        assert_eq!(pacer.take(1_000_000), Some(100_007), "late, but stamped with its own time");
        assert_eq!(pacer.next_ns(0), 200_007);
    }

    #[test]
    fn at_full_rate_everything_is_due_now() {
        let mut pacer = Pacer::new(Rate::Max, 7);
        assert_eq!((pacer.take(9), pacer.take(9), pacer.next_ns(12)), (Some(9), Some(9), 12));
        assert_eq!(pacer.skip_overdue(u64::MAX), 0);
    }

    #[test]
    fn a_short_stall_is_caught_up_and_a_long_one_is_given_up() {
        let mut pacer = Pacer::new(pps(1000), 0);
        assert_eq!(pacer.skip_overdue(LAG_MAX_NS), 0);
        assert_eq!(pacer.skip_overdue(LAG_MAX_NS + 5_500_000), 5);
        assert_eq!(pacer.take(u64::MAX), Some(5_000_000));
    }

    proptest! {
        /// Packet n leaves at floor(n / pps) seconds, for any rate, also after some were skipped.
        #[test]
        fn no_rate_drifts(rate in 1u64..=PPS_MAX, before in 0u64..3000, lag in 0u64..10 * SECOND) {
            let mut pacer = Pacer::new(pps(rate), 0);
            for _ in 0..before {
                pacer.take(u64::MAX);
            }
            let now = pacer.next_ns(0) + lag;
            let n = before + pacer.skip_overdue(now);
            prop_assert_eq!(u128::from(pacer.next_ns(0)), u128::from(n) * u128::from(SECOND) / u128::from(rate));
            prop_assert!(now.saturating_sub(pacer.next_ns(0)) <= LAG_MAX_NS + SECOND / rate + 1);
        }
    }
}
