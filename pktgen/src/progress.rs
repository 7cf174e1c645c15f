//! One line per second on a terminal, so that one sees that something happens. Nothing where standard error is not one.

use std::io::{IsTerminal, stderr};

use crate::clock::{self, SECOND};

/// Counts the seconds of a run.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    start_ns: u64,
    /// When the next line is due; never, if nobody reads it.
    next_ns: u64,
    shown_ns: u64,
    shown: u64,
}

impl Progress {
    /// `what` is done to the packets.
    pub fn new(what: &'static str, start_ns: u64) -> Progress {
        let next_ns = if stderr().is_terminal() { start_ns + SECOND } else { u64::MAX };
        Progress { what, start_ns, next_ns, shown_ns: start_ns, shown: 0 }
    }

    /// `total` packets so far.
    #[inline]
    pub fn tick(&mut self, now: u64, total: u64) {
        if now >= self.next_ns {
            self.show(now, total);
        }
    }

    #[cold]
    fn show(&mut self, now: u64, total: u64) {
        let rate = clock::per_second(total - self.shown, now - self.shown_ns);
        eprintln!(
            "{:>4.0} s  {total:>12} {}  {rate:>12.0} packets/s",
            clock::seconds(now - self.start_ns),
            self.what
        );
        (self.next_ns, self.shown_ns, self.shown) = (now + SECOND, now, total);
    }
}
