//! When a run ends: after a time, a number of packets, a silence, or at a signal. And what a loop does while
//! there is nothing to do.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde::Serialize;

use crate::clock::MILLISECOND;
use crate::error::Error;

/// The longest that any loop sleeps: so soon it sees a signal or a peer that is gone.
pub const SLEEP_MAX: Duration = Duration::from_millis(50);

/// Set by SIGINT and SIGTERM, or by a test.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<AtomicBool>);

impl Stop {
    /// Not set.
    pub fn new() -> Stop {
        Stop::default()
    }

    /// Set by the first SIGINT or SIGTERM of the process.
    pub fn at_signals() -> Result<Stop, Error> {
        let stop = Stop::new();
        stop.watch_signals()?;
        Ok(stop)
    }

    /// From now on it is set by SIGINT and SIGTERM; until then they end the process at once.
    ///
    /// # Errors
    /// Those of sigaction(2).
    pub fn watch_signals(&self) -> Result<(), Error> {
        for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
            signal_hook::flag::register(signal, Arc::clone(&self.0))
                .map_err(Error::system("watching for signals"))?;
        }
        Ok(())
    }

    /// Ends the run.
    pub fn set(&self) {
        self.0.store(true, Ordering::Relaxed);
    }

    /// Whether to end.
    #[inline]
    pub fn is_set(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// Why a run ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Ended {
    /// Its time was over.
    Seconds,
    /// So many packets had been asked for.
    Count,
    /// Nothing came any more.
    Idle,
    /// SIGINT or SIGTERM.
    Signal,
    /// The peer went away.
    Peer,
}

/// The bounds of a run that receives.
#[derive(Clone, Debug, Default)]
pub struct Limits {
    /// After so long.
    pub seconds: Option<Duration>,
    /// After so many packets.
    pub count: Option<u64>,
    /// After so long a silence; it begins with the first packet.
    pub idle: Option<Duration>,
}

/// [`Limits`] of a run that has begun.
#[derive(Debug)]
pub struct Until {
    end_ns: u64,
    count: u64,
    idle_ns: u64,
    stop: Stop,
}

impl Until {
    /// The run begins at `start_ns`.
    pub fn new(limits: &Limits, start_ns: u64, stop: Stop) -> Until {
        let ns = |duration: Duration| u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        Until {
            end_ns: limits.seconds.map_or(u64::MAX, |seconds| start_ns.saturating_add(ns(seconds))),
            count: limits.count.unwrap_or(u64::MAX),
            idle_ns: limits.idle.map_or(u64::MAX, ns),
            stop,
        }
    }

    /// When its time is over.
    pub fn end_ns(&self) -> u64 {
        self.end_ns
    }

    /// Whether the run ends now, and why.
    #[inline]
    pub fn reached(&self, now: u64, count: u64, last_ns: Option<u64>) -> Option<Ended> {
        if count >= self.count {
            Some(Ended::Count)
        } else if self.stop.is_set() {
            Some(Ended::Signal)
        } else if now >= self.end_ns {
            Some(Ended::Seconds)
        } else if last_ns.is_some_and(|last| now.saturating_sub(last) >= self.idle_ns) {
            Some(Ended::Idle)
        } else {
            None
        }
    }

    /// How long a loop may sleep at `now` and not miss its end by more than a millisecond.
    pub fn sleep_ns(&self, now: u64) -> u64 {
        let idle = self.idle_ns.max(MILLISECOND);
        self.end_ns.saturating_sub(now).clamp(MILLISECOND, SLEEP_MAX.as_nanos() as u64).min(idle)
    }
}

/// What a receiving loop does when nothing is there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Looks again at once: lowest latency, a core of its own.
    Poll,
    /// Looks again after others that share the core have had their turn.
    Yield,
    /// Sleeps until the kernel or the peer wakes it.
    Interrupt,
    /// Sleeps so long between two looks: leaves the core to others, whatever the rate.
    Pause(Duration),
}

/// Pins the calling thread to a core.
pub fn pin(core: Option<usize>) -> Result<(), Error> {
    const CORES_MAX: usize = 1024;
    let Some(id) = core else { return Ok(()) };
    if id < CORES_MAX && core_affinity::set_for_current(core_affinity::CoreId { id }) {
        return Ok(());
    }
    Err(not_ours(id, &core_affinity::get_core_ids().unwrap_or_default()))
}

/// Whether a thread may be pinned there, before there is one.
pub fn check_core(id: usize) -> Result<(), Error> {
    let cores = core_affinity::get_core_ids().unwrap_or_default();
    if cores.iter().any(|core| core.id == id) { Ok(()) } else { Err(not_ours(id, &cores)) }
}

fn not_ours(id: usize, cores: &[core_affinity::CoreId]) -> Error {
    let cores: Vec<String> = cores.iter().map(|core| core.id.to_string()).collect();
    Error::Arguments(format!(
        "--core {id}: this process may not run there; choose one of {}",
        cores.join(", ")
    ))
}

/// True for what a receiving system call says when there is merely nothing.
pub fn is_nothing(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SECOND;

    fn until(seconds: Option<u64>, count: Option<u64>, idle_ms: Option<u64>) -> Until {
        let limits = Limits {
            seconds: seconds.map(Duration::from_secs),
            count,
            idle: idle_ms.map(Duration::from_millis),
        };
        Until::new(&limits, 100, Stop::new())
    }

    #[test]
    fn each_limit_ends_a_run() {
        assert_eq!(until(None, None, None).reached(u64::MAX - 1, u64::MAX - 1, Some(0)), None);
        let timed = until(Some(2), None, None);
        assert_eq!(timed.reached(2 * SECOND + 99, 0, None), None);
        assert_eq!(timed.reached(2 * SECOND + 100, 0, None), Some(Ended::Seconds));
        assert_eq!(until(None, Some(10), None).reached(0, 10, None), Some(Ended::Count));
    }

    #[test]
    fn silence_counts_from_the_first_packet_on() {
        let until = until(None, None, Some(5));
        assert_eq!(until.reached(100 * MILLISECOND, 0, None), None);
        assert_eq!(until.reached(100 * MILLISECOND, 1, Some(96 * MILLISECOND)), None);
        assert_eq!(until.reached(100 * MILLISECOND, 1, Some(95 * MILLISECOND)), Some(Ended::Idle));
    }

    #[test]
    fn a_signal_ends_it() {
        let stop = Stop::new();
        let until = Until::new(&Limits::default(), 0, stop.clone());
        assert_eq!(until.reached(0, 0, None), None);
        stop.set();
        assert_eq!(until.reached(0, 0, None), Some(Ended::Signal));
    }

    #[test]
    fn no_sleep_outlasts_the_end() {
        assert_eq!(until(None, None, None).sleep_ns(0), 50 * MILLISECOND);
        assert_eq!(until(Some(1), None, None).sleep_ns(SECOND - 9 * MILLISECOND + 100), 9 * MILLISECOND);
        assert_eq!(until(Some(1), None, None).sleep_ns(2 * SECOND), MILLISECOND);
        assert_eq!(until(None, None, Some(7)).sleep_ns(0), 7 * MILLISECOND);
    }

    #[test]
    fn a_core_that_is_not_there_is_an_argument_error() {
        let error = pin(Some(5000)).unwrap_err();
        assert_eq!(error.exit_status(), 2);
        assert!(error.to_string().starts_with("--core 5000: "), "{error}");
        pin(None).unwrap();
        assert_eq!(check_core(5000).unwrap_err().to_string(), error.to_string());
        for core in core_affinity::get_core_ids().unwrap() {
            check_core(core.id).unwrap();
        }
    }
}
