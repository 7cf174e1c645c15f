//! How fast the table is aged: by the clock, a little at a time. The engine calls it whenever it does its housekeeping.

use std::time::{Duration, Instant};

use super::Fdb;
use crate::types::NetworkId;

/// The control thread's hand that goes round the table like a clock's, and ages what it passes: a little at a time, so
/// that it neither holds control up nor fills a cache that a worker shares.
#[derive(Debug)]
pub struct AgeingHand {
    at: usize,
    /// Up to when its way is done.
    until: Instant,
}

impl AgeingHand {
    /// Once round.
    pub const ROUND: Duration = Duration::from_secs(8);
    /// At most so many buckets at once, half a megabyte. Where that is less than the time asks for, a round takes longer:
    /// control goes on ten times a second or more, so one of 16 million addresses, the most that there may be, takes up
    /// to 100 seconds.
    pub const STEP_MAX: usize = 8192;

    /// Begins its way.
    pub fn new(now: Instant) -> AgeingHand {
        AgeingHand { at: 0, until: now }
    }

    /// Goes as far as the time that has passed asks for; returns how many addresses were forgotten.
    pub fn go(&mut self, fdb: &Fdb, now: Instant, now_s: u32, ageing_s: impl Fn(NetworkId) -> u32) -> usize {
        let (buckets, round_ns) = (fdb.buckets(), AgeingHand::ROUND.as_nanos());
        let passed = now.saturating_duration_since(self.until);
        let due = (passed.as_nanos() * buckets as u128 / round_ns) as usize;
        let step = due.min(AgeingHand::STEP_MAX);
        let paid_ns = (step as u128 * round_ns).div_ceil(buckets as u128);
        self.until = if step < due { now } else { self.until + Duration::from_nanos(paid_ns as u64) };
        let forgotten = fdb.age(self.at, step, now_s, ageing_s);
        self.at = (self.at + step) % buckets;
        forgotten
    }
}
