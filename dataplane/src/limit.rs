//! A rate limit that many threads share: the generic cell rate algorithm (GCRA, ITU-T I.371 Annex A) in one word.
//!
//! The word ([`Account`]) is the theoretical arrival time: when the next event would come if all came evenly. An event that comes no
//! earlier than the burst allows is taken, and moves it on by the time that one event is worth. What the limit is stands apart
//! ([`Limiter`]) and never changes: many accounts may have the same one. Asked by the stages, where a frame is flooded or answered: never
//! for a frame that just passes.
//!
//! Clocks of cores may differ by less than a second. One that goes back further begins anew.
//!
//! What must hold: within any time `t` no more than `burst + rate × t` events are taken, whoever asks; and after `1 / rate` without one
//! taken the next is.

use std::num::NonZeroU64;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What somebody has had: the theoretical arrival time, in ticks.
#[derive(Default, Debug)]
pub struct Account(AtomicU64);

impl Account {
    /// As if there had been nothing.
    pub fn clear(&self) {
        self.0.store(0, Relaxed);
    }
}

/// So many events a second, and a burst of them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limiter {
    /// Ticks between two events; `None`: none is taken.
    interval: Option<NonZeroU64>,
    /// How much earlier than that an event may come, in ticks.
    tolerance: u64,
    /// Further ahead than this it is only if the clock has gone back, or is another one: then it says nothing.
    horizon: u64,
}

impl Limiter {
    /// `rate` events a second, of which `burst` may come at once, by a clock of so many ticks a second. None at all if either is 0.
    pub fn new(rate: u32, burst: u32, ticks_per_second: u64) -> Limiter {
        let is_open = rate > 0 && burst > 0;
        // Rounded up: never more than the rate.
        let interval = ticks_per_second.div_ceil(u64::from(rate).max(1)).max(1);
        let interval = NonZeroU64::new(interval).filter(|_| is_open);
        let ticks = interval.map_or(0, NonZeroU64::get);
        let tolerance = ticks.saturating_mul(u64::from(burst.saturating_sub(1)));
        let horizon = tolerance.saturating_add(ticks).saturating_add(ticks_per_second);
        Limiter { interval, tolerance, horizon }
    }

    /// Whether one more may come now, by this account. Threads that ask at the same moment each have their own answer: who loses the race for the word
    /// looks again, and somebody else has been taken then.
    pub fn admit(&self, account: &Account, now: u64) -> bool {
        let mut arrival = account.0.load(Relaxed);
        loop {
            let Some(next) = self.next(arrival, now) else { return false };
            match account.0.compare_exchange_weak(arrival, next, Relaxed, Relaxed) {
                Ok(_) => return true,
                Err(there) => arrival = there,
            }
        }
    }

    /// Whether [`admit`](Self::admit) would be true if nobody else asked in between. Takes nothing: for who has work to do before there is
    /// an event.
    pub fn would_admit(&self, account: &Account, now: u64) -> bool {
        self.next(account.0.load(Relaxed), now).is_some()
    }

    /// The arrival time after one more event now, if that may come.
    fn next(&self, arrival: u64, now: u64) -> Option<u64> {
        let interval = self.interval?.get();
        let is_sound = arrival <= now.saturating_add(self.horizon);
        let expected = if is_sound { arrival } else { now };
        (now >= expected.saturating_sub(self.tolerance)).then(|| expected.max(now).saturating_add(interval))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_burst_and_then_the_rate() {
        let (limiter, account) = (Limiter::new(10, 3, 1000), Account::default());
        assert_eq!(
            [0, 0, 0, 0, 99, 100, 100, 199, 200].map(|now| limiter.admit(&account, now)),
            [true, true, true, false, false, true, false, false, true]
        );
        assert_eq!(
            [10_000; 4].map(|now| limiter.admit(&account, now)),
            [true, true, true, false],
            "the burst is there again"
        );
    }

    #[test]
    fn nothing_is_nothing() {
        let account = Account::default();
        for limiter in [Limiter::new(0, 10, 1000), Limiter::new(10, 0, 1000)] {
            assert!((0..100_000).step_by(1000).all(|now| !limiter.admit(&account, now)));
        }
    }

    #[test]
    fn a_clock_that_goes_back_closes_it_for_a_second_at_most() {
        let (limiter, account) = (Limiter::new(10, 3, 1000), Account::default());
        assert_eq!([50_000; 4].map(|now| limiter.admit(&account, now)), [true, true, true, false]);
        assert!(!limiter.admit(&account, 49_500), "clocks that differ a little share the limit");
        assert_eq!([10; 4].map(|now| limiter.admit(&account, now)), [true, true, true, false]);
        assert!(limiter.admit(&account, 110), "and the rate is the same");
    }

    #[test]
    fn threads_share_one_limit() {
        let (limiter, account) = (Limiter::new(1000, 50, 1_000_000), Account::default());
        let taken: u64 = std::thread::scope(|scope| {
            let ask = || (0..100_000u64).filter(|now| limiter.admit(&account, *now)).count() as u64;
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(ask)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        // 0.1 s at 1000 a second; who is behind the others in time gets nothing more for it.
        assert!((100..=150).contains(&taken), "{taken}");
    }

    proptest! {
        /// Events come whenever they like: in no window more than allowed, and whoever has waited long enough is taken.
        #[test]
        fn never_more_than_the_burst_and_the_rate_and_nobody_starves(
            rate in 1u32..2000,
            burst in 1u32..50,
            ticks_per_second in 1000u64..5_000_000_000,
            gaps in proptest::collection::vec(0f64..3.0, 1..300),
        ) {
            let (limiter, account) = (Limiter::new(rate, burst, ticks_per_second), Account::default());
            let interval = ticks_per_second as f64 / f64::from(rate);
            let (mut now, mut taken) = (1u64, Vec::new());
            for gap in gaps {
                now += (gap * interval) as u64;
                let is_due = taken.last().is_none_or(|last| (now - last) as f64 >= interval + 1.0);
                let would_be = [limiter.would_admit(&account, now), limiter.would_admit(&account, now)];
                let is_taken = limiter.admit(&account, now);
                prop_assert_eq!(would_be, [is_taken; 2], "asking takes nothing");
                prop_assert!(is_taken || !is_due, "one interval after the last it was refused");
                if is_taken {
                    taken.push(now);
                }
            }
            for (first, start) in taken.iter().enumerate() {
                for (last, end) in taken.iter().enumerate().skip(first) {
                    let allowed = f64::from(burst) + (end - start) as f64 / interval;
                    prop_assert!((last - first + 1) as f64 <= allowed + 1e-6);
                }
            }
        }
    }
}
