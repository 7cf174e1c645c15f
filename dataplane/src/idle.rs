//! What a thread does whose workers have nothing to do, if it may sleep: it looks in vain for some time at full speed, then as long
//! again with pauses in between, in which a sibling of its core runs faster, and then sleeps until something happens. With the first frame
//! all begins anew.
//!
//! ```text
//! frames ──nothing for `after`──► pauses ──nothing for `after`──► asleep ──nobody called: one turn──┐
//!    ▲                              │                               │  ▲                           │
//!    └──────────a frame─────────────┴───────────────────────────────┘  └────────still nothing──────┘
//! ```
//!
//! It sleeps on its own bell (a worker comes, the end) and on what each of its workers watches (`worker/sleep.rs`), never longer than
//! [`SLEEP_MAX`]: there are tenants that lose a wake-up now and then. What must be looked at sooner makes the sleep shorter.
//!
//! What must hold: who sleeps has said so at every bell before the last look, see `bell`.

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bell::Bell;
use crate::clock::{cycles, cycles_per_second};
use crate::types::WorkerId;
use crate::worker::{Sleep, Worker};

/// Nobody sleeps longer. DPDK's and VPP's memif may read too early whether they have to call, and a call is lost then.
pub(crate) const SLEEP_MAX: Duration = Duration::from_millis(10);

/// Where something waits for the kernel, for another worker or for a container, it is looked at after so long, and, as long as nothing
/// moves, each time after twice as long.
const SLEEP_SHORT: Duration = Duration::from_micros(100);

/// Between two looks; about a microsecond.
const PAUSES: usize = 32;

/// So many looks a tenant has whose packets cannot be taken, because there is no room for them.
const REFUSALS_MAX: u32 = 1024;

/// Of a thread that may sleep.
#[derive(Debug)]
pub(crate) struct Idle {
    /// In cycles.
    after: u64,
    bell: Arc<Bell>,
    /// When one of the workers last moved a frame, and how often they have slept, and not been able to, since then.
    worked_at: u64,
    sleeps: u32,
    refusals: u32,
}

impl Idle {
    /// Called by this bell. It looks in vain for so long before it pauses, and for as long before it sleeps.
    pub(crate) fn new(after: Duration, bell: Arc<Bell>) -> Idle {
        let after = after.as_nanos() * u128::from(cycles_per_second()) / 1_000_000_000;
        let after = u64::try_from(after).unwrap_or(u64::MAX / 2);
        Idle { after, bell, worked_at: 0, sleeps: 0, refusals: 0 }
    }

    /// They have moved nothing for long enough.
    #[inline]
    pub(crate) fn is_due(&self, workers: &[Box<Worker>], now: u64) -> bool {
        workers.iter().all(|worker| now.wrapping_sub(worker.worked_at()) >= self.after)
    }

    /// Pauses or sleeps, if the thread itself may. When that was over, in cycles.
    #[cold]
    #[inline(never)]
    pub(crate) fn rest(
        &mut self,
        workers: &mut [Box<Worker>],
        now: u64,
        may_sleep: impl FnOnce() -> bool,
    ) -> u64 {
        let worked_at = workers.iter().map(|worker| worker.worked_at()).max().unwrap_or(0);
        if worked_at != self.worked_at {
            (self.worked_at, self.sleeps, self.refusals) = (worked_at, 0, 0);
        }
        if now.wrapping_sub(worked_at) < 2 * self.after {
            (0..PAUSES).for_each(|_| std::hint::spin_loop());
        } else {
            self.sleep(workers, may_sleep);
        }
        cycles()
    }

    fn sleep(&mut self, workers: &mut [Box<Worker>], may_sleep: impl FnOnce() -> bool) {
        self.bell.lie_down();
        let mut longest = SLEEP_MAX;
        let mut sleeps = may_sleep();
        for worker in workers.iter_mut() {
            match worker.lie_down(self.refusals >= REFUSALS_MAX) {
                Sleep::Long => {}
                Sleep::Short => longest = SLEEP_MAX.min(SLEEP_SHORT * (1 << self.sleeps.min(7))),
                Sleep::No => sleeps = false,
            }
        }
        let called = if sleeps { self.wait(workers, longest) } else { None };
        self.bell.get_up();
        for (place, worker) in workers.iter_mut().enumerate() {
            worker.get_up(called.map(|called| called >> place & 1 == 1));
        }
        match called {
            Some(_) => self.sleeps = self.sleeps.saturating_add(1),
            None => self.refusals = self.refusals.saturating_add(1),
        }
    }

    /// Sleeps; a bit for each worker that has events. `None` if there is nothing to sleep on.
    fn wait(&self, workers: &[Box<Worker>], longest: Duration) -> Option<u32> {
        let mut fds: ArrayVec<PollFd<'_>, { WorkerId::LIMIT + 1 }> = ArrayVec::new();
        for worker in workers {
            fds.try_push(PollFd::from_borrowed_fd(worker.events()?, PollFlags::IN)).ok()?;
        }
        fds.try_push(PollFd::from_borrowed_fd(self.bell.fd()?, PollFlags::IN)).ok()?;
        let longest = Timespec { tv_sec: 0, tv_nsec: longest.subsec_nanos().into() };
        let _interrupted = poll(&mut fds, Some(&longest)); // then nobody has events, as if the time was over
        if fds.last().is_some_and(|bell| !bell.revents().is_empty()) {
            self.bell.silence();
        }
        let ready = fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty());
        Some(ready.fold(0, |called, (place, _)| called | 1u32.checked_shl(place as u32).unwrap_or(0)))
    }
}
