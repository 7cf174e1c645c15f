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
//! [`SLEEP_MAX`]: there are tenants that lose a wake-up now and then. So whoever else wakes it, some of those that are quiet are looked at
//! after each such time. What must be looked at sooner makes the sleep shorter.
//!
//! What must hold: who sleeps has said so at every bell before the last look, see `bell`.

use std::sync::Arc;
use std::time::Duration;

use arrayvec::ArrayVec;
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use crate::bell::Bell;
use crate::clock::{cycles, cycles_per_second};
use crate::types::WorkerId;
use crate::worker::{Sleep, Woken, Worker};

/// Nobody sleeps longer, unless a test wants to see that nobody is forgotten. DPDK's and VPP's memif may read too early whether they have to call, and a call is lost then.
pub(crate) const SLEEP_MAX: Duration = Duration::from_millis(10);

/// Where something waits for the kernel, for another worker or for a container, it is looked at after so long, and, as long as nothing
/// moves, each time after twice as long.
const SLEEP_SHORT: Duration = Duration::from_micros(100);

/// Between two looks; about a microsecond.
const PAUSES: usize = 32;

/// So many looks a tenant has whose packets cannot be taken, because there is no room for them.
const REFUSALS_MAX: u32 = 1024;

/// How long a thread looks in vain before it pauses, and as long before it sleeps; and how long it sleeps at most.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Times {
    pub(crate) after: Duration,
    pub(crate) sleep_max: Duration,
}

/// Of a thread that may sleep.
#[derive(Debug)]
pub(crate) struct Idle {
    /// In cycles.
    after: u64,
    sleep_max: Duration,
    bell: Arc<Bell>,
    /// When quiet tenants were last looked at after a sleep, and how long that may be ago; in cycles.
    looked_at: u64,
    look_every: u64,
    /// When one of the workers last moved a frame, and how often they have slept, and not been able to, since then.
    worked_at: u64,
    sleeps: u32,
    refusals: u32,
}

impl Idle {
    /// Called by this bell.
    pub(crate) fn new(times: Times, bell: Arc<Bell>) -> Idle {
        let Times { after, sleep_max } = times;
        let in_cycles = |time: Duration| {
            let cycles = time.as_nanos() * u128::from(cycles_per_second()) / 1_000_000_000;
            u64::try_from(cycles).unwrap_or(u64::MAX / 2)
        };
        Idle {
            after: in_cycles(after),
            sleep_max,
            bell,
            looked_at: cycles(),
            look_every: in_cycles(sleep_max),
            worked_at: 0,
            sleeps: 0,
            refusals: 0,
        }
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
        may_sleep: impl Fn() -> bool,
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

    fn sleep(&mut self, workers: &mut [Box<Worker>], may_sleep: impl Fn() -> bool) {
        // Who has work is not worth that all are asked to call.
        if !may_sleep() || workers.iter_mut().any(|worker| worker.has_work()) {
            return;
        }
        self.bell.lie_down();
        let (mut longest, mut has_work, mut is_refused) = (self.sleep_max, !may_sleep(), false);
        for worker in workers.iter_mut() {
            match worker.lie_down(self.refusals >= REFUSALS_MAX) {
                Sleep::Long => {}
                Sleep::Short => longest = self.sleep_max.min(SLEEP_SHORT * (1 << self.sleeps.min(7))),
                Sleep::Refused => is_refused = true,
                Sleep::No => has_work = true,
            }
        }
        let woken = if has_work || is_refused { None } else { self.wait(workers, longest) };
        self.bell.get_up();
        let looks = woken.is_some() && self.is_look_due();
        for (place, worker) in workers.iter_mut().enumerate() {
            worker.get_up(woken.map(|(called, is_over)| {
                let has_events = called >> place & 1 == 1;
                Woken { has_events, is_over, looks }
            }));
        }
        if woken.is_some() {
            self.sleeps = self.sleeps.saturating_add(1);
        } else if is_refused && !has_work {
            self.refusals = self.refusals.saturating_add(1);
        }
    }

    /// Quiet tenants are to be looked at, because a call may have been lost: once in the longest time that a sleep takes.
    fn is_look_due(&mut self) -> bool {
        let now = cycles();
        let is_due = now.wrapping_sub(self.looked_at) >= self.look_every;
        if is_due {
            self.looked_at = now;
        }
        is_due
    }

    /// Sleeps; a bit for each worker that has events, and whether the time was over. `None` if there is nothing to sleep on.
    fn wait(&self, workers: &[Box<Worker>], longest: Duration) -> Option<(u32, bool)> {
        let mut fds: ArrayVec<PollFd<'_>, { WorkerId::LIMIT + 1 }> = ArrayVec::new();
        for worker in workers {
            fds.try_push(PollFd::from_borrowed_fd(worker.events()?, PollFlags::IN)).ok()?;
        }
        fds.try_push(PollFd::from_borrowed_fd(self.bell.fd()?, PollFlags::IN)).ok()?;
        let longest = Timespec {
            tv_sec: i64::try_from(longest.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: longest.subsec_nanos().into(),
        };
        let is_over = poll(&mut fds, Some(&longest)) == Ok(0); // interrupted by a signal: nobody has events, and it is not over
        if fds.last().is_some_and(|bell| !bell.revents().is_empty()) {
            self.bell.silence();
        }
        let ready = fds.iter().enumerate().filter(|(_, fd)| !fd.revents().is_empty());
        let called = ready.fold(0, |called, (place, _)| called | 1u32.checked_shl(place as u32).unwrap_or(0));
        Some((called, is_over))
    }
}
