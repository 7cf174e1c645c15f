//! When each packet is meant to leave. Open loop: the times depend on the rate only, never on how fast packets
//! could be sent; who falls behind sends late, and the packets say so.

use std::fmt;
use std::num::{NonZeroU32, NonZeroU64};
use std::str::FromStr;

use crate::clock::{MILLISECOND, SECOND};
use crate::profile::parts::Part;
use crate::rng::Rng;

/// How far a sender may fall behind before it gives departures up (they are counted): what it then still owes
/// would be a burst and no longer the rate that was asked for.
pub const LAG_MAX_NS: u64 = 100 * MILLISECOND;

/// The fastest rates that can be asked for.
const PPS_MAX: u64 = 100_000_000;
const BITS_MAX: u64 = 1_000_000_000_000;

/// How many packets a second.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Rate {
    /// So many packets.
    Pps(NonZeroU64),
    /// So many bits of Ethernet frames as they are sent: outer headers included, without FCS, preamble and gap.
    Bits(NonZeroU64),
    /// As many as can be sent.
    Max,
}

impl Rate {
    /// A thread's part of it. `None`: less than 1.
    pub fn part(self, part: &Part) -> Option<Rate> {
        let cut = |whole: NonZeroU64| NonZeroU64::new(part.of(whole.get()));
        match self {
            Rate::Pps(pps) => cut(pps).map(Rate::Pps),
            Rate::Bits(bits) => cut(bits).map(Rate::Bits),
            Rate::Max => Some(Rate::Max),
        }
    }
}

impl FromStr for Rate {
    type Err = String;

    fn from_str(text: &str) -> Result<Rate, String> {
        if text == "max" {
            return Ok(Rate::Max);
        }
        for (unit, factor) in [("kbit", 1e3), ("mbit", 1e6), ("gbit", 1e9)] {
            if let Some(number) = text.strip_suffix(unit) {
                return bits(number, factor).ok_or_else(|| refused(text));
            }
        }
        let pps = text.parse::<NonZeroU64>().ok().filter(|pps| pps.get() <= PPS_MAX);
        pps.map(Rate::Pps).ok_or_else(|| refused(text))
    }
}

fn bits(number: &str, factor: f64) -> Option<Rate> {
    let bits = number.parse::<f64>().ok()? * factor;
    let bits = (1.0..=BITS_MAX as f64).contains(&bits).then_some(bits as u64)?;
    NonZeroU64::new(bits).map(Rate::Bits)
}

fn refused(text: &str) -> String {
    format!(
        "'{text}': a rate is 1 to {PPS_MAX} packets per second, or bits per second such as 500mbit or 2.5gbit, or 'max'"
    )
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Rate::Pps(pps) => pps.fmt(f),
            Rate::Bits(bits) => write!(f, "{}kbit", bits.get() as f64 / 1e3),
            Rate::Max => f.write_str("max"),
        }
    }
}

/// How departures are spread at a rate.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Arrivals {
    /// Evenly.
    #[default]
    Constant,
    /// As independent events: exponential gaps with the rate's mean.
    Poisson,
    /// So many at once, then a gap.
    Bursts(NonZeroU32),
}

impl FromStr for Arrivals {
    type Err = String;

    fn from_str(text: &str) -> Result<Arrivals, String> {
        match text {
            "constant" => Ok(Arrivals::Constant),
            "poisson" => Ok(Arrivals::Poisson),
            _ => text
                .strip_prefix("bursts:")
                .and_then(|count| count.parse().ok())
                .map(Arrivals::Bursts)
                .ok_or_else(|| format!("'{text}': arrivals are 'constant', 'poisson' or 'bursts:N'")),
        }
    }
}

impl fmt::Display for Arrivals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Arrivals::Constant => f.write_str("constant"),
            Arrivals::Poisson => f.write_str("poisson"),
            Arrivals::Bursts(count) => write!(f, "bursts:{count}"),
        }
    }
}

/// The schedule of one sender: exact also for rates that do not divide a second.
#[derive(Debug)]
pub struct Pacer {
    /// Packets or bits; `None`: everything is due at once.
    per_second: Option<NonZeroU64>,
    /// Bits that a packet has on average, where bits are counted.
    mean_bits: Option<u64>,
    /// When the next packet is due.
    due_ns: u64,
    /// When the next burst is; of [`Arrivals::Constant`] each is one packet.
    next_ns: u64,
    /// What `next_ns` leaves out, in 1/`per_second` of a nanosecond.
    fraction: u64,
    burst: u32,
    /// Of the burst that has begun.
    left: u32,
    poisson: Option<Poisson>,
}

#[derive(Debug)]
struct Poisson {
    rng: Rng,
    /// What the nanoseconds leave out.
    fraction: f64,
}

impl Pacer {
    /// Evenly spaced; the first packet is due at `start_ns`.
    pub fn new(rate: Rate, start_ns: u64) -> Pacer {
        Pacer::with(rate, Arrivals::Constant, 0.0, Rng::new(0, 0), start_ns)
    }

    /// The first packet is due at `start_ns`. Packets have `mean_bytes` on average, which matters to rates in bits only.
    pub fn with(rate: Rate, arrivals: Arrivals, mean_bytes: f64, rng: Rng, start_ns: u64) -> Pacer {
        let (per_second, by_bits) = match rate {
            Rate::Pps(pps) => (Some(pps), false),
            Rate::Bits(bits) => (Some(bits), true),
            Rate::Max => (None, false),
        };
        let burst = if let Arrivals::Bursts(count) = arrivals { count.get() } else { 1 };
        Pacer {
            per_second,
            mean_bits: by_bits.then_some(((mean_bytes * 8.0) as u64).max(1)),
            due_ns: start_ns,
            next_ns: start_ns,
            fraction: 0,
            burst,
            left: burst,
            poisson: (arrivals == Arrivals::Poisson).then_some(Poisson { rng, fraction: 0.0 }),
        }
    }

    /// When the next packet is due; at rate `max` that is `now`.
    #[inline]
    pub fn next_ns(&self, now: u64) -> u64 {
        if self.per_second.is_some() { self.due_ns } else { now }
    }

    /// When the time of the last packet is over: when the next one is due, unless that is after a gap between bursts.
    pub fn slot_end_ns(&self, now: u64) -> u64 {
        if self.burst == 1 { self.next_ns(now) } else { now }
    }

    /// If a packet is due, takes it: when it was meant to leave. It has `bytes`.
    #[inline]
    pub fn take(&mut self, now: u64, bytes: usize) -> Option<u64> {
        let Some(per_second) = self.per_second else { return Some(now) };
        if self.due_ns > now {
            return None;
        }
        let due = self.due_ns;
        let units = if self.mean_bits.is_some() { bytes as u64 * 8 } else { 1 };
        match &mut self.poisson {
            None => self.advance(per_second, units),
            Some(poisson) => {
                self.next_ns += poisson.gap(units as f64 * SECOND as f64 / per_second.get() as f64);
            }
        }
        self.left -= 1;
        if self.left == 0 {
            (self.left, self.due_ns) = (self.burst, self.next_ns);
        }
        Some(due)
    }

    /// Gives up departures that are overdue by more than [`LAG_MAX_NS`], whole bursts of them, and returns how many.
    #[inline]
    pub fn skip_overdue(&mut self, now: u64) -> u64 {
        let Some(per_second) = self.per_second else { return 0 };
        let lag = now.saturating_sub(self.due_ns);
        if lag <= LAG_MAX_NS || self.left != self.burst {
            return 0;
        }
        let units = scale(lag - LAG_MAX_NS, per_second.get(), SECOND);
        let units_each = self.mean_bits.unwrap_or(1);
        let count = units / units_each;
        let count = count - count % u64::from(self.burst);
        self.advance(per_second, count.saturating_mul(units_each));
        self.due_ns = self.next_ns;
        count
    }

    /// Takes every departure before `end_ns`, as if all packets had `bytes`, and returns how many there were. It counts them one
    /// by one: random ones are known in no other way.
    pub fn take_before(&mut self, end_ns: u64, bytes: usize) -> u64 {
        let mut count = 0;
        while self.per_second.is_some() && self.due_ns < end_ns && self.take(end_ns, bytes).is_some() {
            count += 1;
        }
        count
    }

    #[inline]
    fn advance(&mut self, per_second: NonZeroU64, units: u64) {
        if units == 1 {
            self.next_ns += SECOND / per_second;
            self.fraction += SECOND % per_second;
            if self.fraction >= per_second.get() {
                self.fraction -= per_second.get();
                self.next_ns += 1;
            }
            return;
        }
        let total = u128::from(units) * u128::from(SECOND) + u128::from(self.fraction);
        let per_second = u128::from(per_second.get());
        self.next_ns += (total / per_second) as u64;
        self.fraction = (total % per_second) as u64;
    }
}

impl Poisson {
    #[inline]
    fn gap(&mut self, mean: f64) -> u64 {
        let exact = self.fraction - self.rng.unit().ln() * mean;
        let whole = exact as u64;
        self.fraction = exact - whole as f64;
        whole
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

    use crate::rng::Rng;

    fn pps(rate: u64) -> Rate {
        Rate::Pps(NonZeroU64::new(rate).unwrap())
    }

    #[test]
    fn rates_are_read() {
        let bits = |rate| Ok(Rate::Bits(NonZeroU64::new(rate).unwrap()));
        assert_eq!("max".parse(), Ok(Rate::Max));
        assert_eq!("10000".parse(), Ok(pps(10_000)));
        assert_eq!("8kbit".parse(), bits(8000));
        assert_eq!("500mbit".parse(), bits(500_000_000));
        assert_eq!("2.5gbit".parse(), bits(2_500_000_000));
        for bad in [
            "0",
            "-1",
            "1.5",
            "fast",
            "",
            "100000001",
            "0mbit",
            "nangbit",
            "-1mbit",
            "1001gbit",
            "mbit",
            "5 mbit",
        ] {
            assert!(bad.parse::<Rate>().unwrap_err().contains("'max'"), "{bad}");
        }
        for text in ["max", "123", "2500000kbit", "0.5kbit"] {
            assert_eq!(text.parse::<Rate>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn arrivals_are_read() {
        for text in ["constant", "poisson", "bursts:32"] {
            assert_eq!(text.parse::<Arrivals>().unwrap().to_string(), text);
        }
        for bad in ["", "bursts", "bursts:0", "bursts:-1", "random"] {
            assert!(bad.parse::<Arrivals>().unwrap_err().contains("bursts:N"), "{bad}");
        }
    }

    #[test]
    fn packets_are_due_at_even_distances() {
        let mut pacer = Pacer::new(pps(10_000), 7);
        assert_eq!(pacer.take(6, 64), None);
        assert_eq!(pacer.take(7, 64), Some(7));
        assert_eq!(pacer.take(100_006, 64), None);
        assert_eq!(pacer.take(1_000_000, 64), Some(100_007), "late, but stamped with its own time");
        assert_eq!(pacer.next_ns(0), 200_007);
    }

    #[test]
    fn at_full_rate_everything_is_due_now() {
        let mut pacer = Pacer::new(Rate::Max, 7);
        assert_eq!((pacer.take(9, 64), pacer.take(9, 64), pacer.next_ns(12)), (Some(9), Some(9), 12));
        assert_eq!(pacer.skip_overdue(u64::MAX), 0);
    }

    /// 1 Mbit/s: a byte takes 8 µs.
    #[test]
    fn bits_are_counted_by_the_frame() {
        let mut pacer = Pacer::with("1mbit".parse().unwrap(), Arrivals::Constant, 100.0, Rng::new(0, 0), 0);
        let times: Vec<u64> = [100, 1000, 60].map(|bytes| pacer.take(u64::MAX, bytes).unwrap()).into();
        assert_eq!(times, [0, 800_000, 8_800_000]);
        assert_eq!(pacer.next_ns(0), 9_280_000);
        assert_eq!(pacer.skip_overdue(9_280_000 + LAG_MAX_NS + 1_700_000), 2, "of 800 µs each");
        assert_eq!(pacer.next_ns(0), 9_280_000 + 1_600_000);
    }

    #[test]
    fn a_burst_leaves_at_once_and_the_rate_holds() {
        let arrivals = "bursts:3".parse().unwrap();
        let mut pacer = Pacer::with(pps(1000), arrivals, 0.0, Rng::new(0, 0), 5);
        let times: Vec<u64> = (0..7).map(|_| pacer.take(u64::MAX, 64).unwrap()).collect();
        assert_eq!(times, [5, 5, 5, 3_000_005, 3_000_005, 3_000_005, 6_000_005]);
        assert_eq!(pacer.skip_overdue(u64::MAX), 0, "a burst that has begun is ended");
        assert_eq!((pacer.take(u64::MAX, 64), pacer.take(u64::MAX, 64)), (Some(6_000_005), Some(6_000_005)));
        assert_eq!(pacer.skip_overdue(9_000_005 + LAG_MAX_NS + 10_000_000), 9, "whole bursts");
    }

    #[test]
    fn poisson_gaps_are_exponential_with_the_rates_mean() {
        let mut pacer = Pacer::with(pps(1_000_000), Arrivals::Poisson, 0.0, Rng::new(9, 0), 0);
        let times: Vec<u64> = (0..=100_000).map(|_| pacer.take(u64::MAX, 64).unwrap()).collect();
        let gaps: Vec<u64> = times.windows(2).map(|pair| pair[1] - pair[0]).collect();
        let mean = times[100_000] as f64 / 100_000.0;
        assert!((990.0..1010.0).contains(&mean), "{mean}");
        // P(gap > n means) = e^-n; and the standard deviation is the mean.
        for (means, wanted) in [(1u64, 36_788usize), (2, 13_534), (4, 1_832)] {
            let longer = gaps.iter().filter(|gap| **gap > 1000 * means).count();
            assert!(longer.abs_diff(wanted) < 600, "{longer} gaps beyond {means}");
        }
        let variance = gaps.iter().map(|gap| (*gap as f64 - mean).powi(2)).sum::<f64>() / 100_000.0;
        assert!((970.0..1030.0).contains(&variance.sqrt()), "{}", variance.sqrt());
    }

    #[test]
    fn departures_before_an_end_are_those_that_would_be_taken_one_by_one() {
        for arrivals in [Arrivals::Constant, Arrivals::Poisson, "bursts:32".parse().unwrap()] {
            let make = || Pacer::with(pps(10_000), arrivals, 64.0, Rng::new(9, 0), 7);
            let end = SECOND / 5;
            let mut one_by_one = make();
            let mut count = 0;
            while one_by_one.next_ns(0) < end {
                one_by_one.take(end, 64).unwrap();
                count += 1;
            }
            let mut pacer = make();
            assert_eq!(pacer.take_before(end, 64), count, "{arrivals}");
            assert_eq!(pacer.take_before(end, 64), 0, "{arrivals}: none is counted twice");
            assert!(pacer.next_ns(0) >= end);
        }
        assert_eq!(Pacer::new(Rate::Max, 0).take_before(SECOND, 64), 0, "at full rate nothing is owed");
    }

    #[test]
    fn a_short_stall_is_caught_up_and_a_long_one_is_given_up() {
        let mut pacer = Pacer::new(pps(1000), 0);
        assert_eq!(pacer.skip_overdue(LAG_MAX_NS), 0);
        assert_eq!(pacer.skip_overdue(LAG_MAX_NS + 5_500_000), 5);
        assert_eq!(pacer.take(u64::MAX, 64), Some(5_000_000));
    }

    proptest! {
        /// Packet n leaves at floor(n / pps) seconds, for any rate, also after some were skipped.
        #[test]
        fn no_rate_drifts(rate in 1u64..=PPS_MAX, before in 0u64..3000, lag in 0u64..10 * SECOND) {
            let mut pacer = Pacer::new(pps(rate), 0);
            for _ in 0..before {
                pacer.take(u64::MAX, 64);
            }
            let now = pacer.next_ns(0) + lag;
            let n = before + pacer.skip_overdue(now);
            prop_assert_eq!(u128::from(pacer.next_ns(0)), u128::from(n) * u128::from(SECOND) / u128::from(rate));
            prop_assert!(now.saturating_sub(pacer.next_ns(0)) <= LAG_MAX_NS + SECOND / rate + 1);
        }

        /// However sizes mix, the bits of all packets before determine when the next one leaves.
        #[test]
        fn no_bit_rate_drifts(bits in 1000u64..=BITS_MAX, sizes in proptest::collection::vec(60usize..9000, 1..200)) {
            let rate = Rate::Bits(NonZeroU64::new(bits).unwrap());
            let mut pacer = Pacer::with(rate, Arrivals::Constant, 100.0, Rng::new(0, 0), 0);
            for size in &sizes {
                pacer.take(u64::MAX, *size);
            }
            let sent = sizes.iter().sum::<usize>() as u128 * 8;
            prop_assert_eq!(u128::from(pacer.next_ns(0)), sent * u128::from(SECOND) / u128::from(bits));
        }
    }
}
