//! CLOCK_MONOTONIC in nanoseconds: the same for all processes of a host, so that a time stamp made in one can be
//! read in another. One look costs some 20 ns and no system call; the loops look once per burst.

use rustix::time::{ClockId, clock_gettime};

/// Nanoseconds in a second.
pub const SECOND: u64 = 1_000_000_000;
/// Nanoseconds in a millisecond.
pub const MILLISECOND: u64 = 1_000_000;

/// Nanoseconds since some point in the past.
#[inline]
pub fn now_ns() -> u64 {
    let time = clock_gettime(ClockId::Monotonic);
    (time.tv_sec as u64).wrapping_mul(SECOND).wrapping_add(time.tv_nsec as u64)
}

/// For people and JSON.
pub fn seconds(ns: u64) -> f64 {
    ns as f64 / SECOND as f64
}

/// `count` in `ns`, per second; 0 when no time has passed.
pub fn per_second(count: u64, ns: u64) -> f64 {
    if ns == 0 { 0.0 } else { count as f64 * SECOND as f64 / ns as f64 }
}
