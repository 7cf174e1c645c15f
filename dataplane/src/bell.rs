//! How one who may sleep is called: a worker by the others and by control, a thread by control. Who has put something where the sleeper
//! looks (a ring, the mailbox, a flag) rings; that is a system call only if it sleeps.
//!
//! ```text
//! sleeper  says that it sleeps │ fence │ looks once more at all places │ sleeps, unless there was something
//! caller   puts something in   │ fence │ looks whether it sleeps       │ rings, if so
//! ```
//!
//! Of the two, one at least sees what the other wrote before its fence, so nobody sleeps beside work. `mesh/loom_tests.rs` tries every
//! interleaving of this file with the rings between workers.
//!
//! What must hold: one thread lies down and gets up; it gets up after each sleep, and when it looked and found something.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{EventfdFlags, eventfd};

use crate::sync::{AtomicU8, Ordering, fence};

/// It never sleeps, so nobody need ring: its thread has its core for itself.
const UP_FOR_EVER: u8 = 0;
const UP: u8 = 1;
const ASLEEP: u8 = 2;
/// It was called, and has not got up yet.
const CALLED_BY_WORKER: u8 = 3;
const CALLED_BY_CONTROL: u8 = 4;

/// Who rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Caller {
    /// Another worker.
    Worker,
    /// The control thread.
    Control,
}

/// Of one who may sleep.
#[derive(Debug)]
pub struct Bell {
    state: AtomicU8,
    event: Event,
}

impl Default for Bell {
    fn default() -> Bell {
        Bell::new()
    }
}

impl Bell {
    /// Of one who does not sleep yet.
    pub fn new() -> Bell {
        Bell { state: AtomicU8::new(UP_FOR_EVER), event: Event::new() }
    }

    /// From now on it may sleep, or no more. Before the first sleep after that, who may ring must have seen it: a barrier on all threads
    /// (`sys.rs`) sees to that.
    pub fn allow(&self, may_sleep: bool) {
        self.state.store(if may_sleep { UP } else { UP_FOR_EVER }, Ordering::Relaxed);
    }

    /// It will sleep, unless it finds something where it looks after this.
    #[inline]
    pub fn lie_down(&self) {
        self.state.store(ASLEEP, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// It does not sleep any more. Who rang, if somebody did.
    #[inline]
    pub fn get_up(&self) -> Option<Caller> {
        match self.state.swap(UP, Ordering::Relaxed) {
            CALLED_BY_WORKER => Some(Caller::Worker),
            CALLED_BY_CONTROL => Some(Caller::Control),
            _ => None,
        }
    }

    /// Something was put where it looks.
    #[inline]
    pub fn ring(&self, caller: Caller) {
        if self.state.load(Ordering::Relaxed) != UP_FOR_EVER {
            self.ring_if_asleep(caller);
        }
    }

    #[inline]
    fn ring_if_asleep(&self, caller: Caller) {
        fence(Ordering::SeqCst);
        if self.state.load(Ordering::Relaxed) == ASLEEP {
            self.wake(caller);
        }
    }

    #[cold]
    #[inline(never)]
    fn wake(&self, caller: Caller) {
        let called = match caller {
            Caller::Worker => CALLED_BY_WORKER,
            Caller::Control => CALLED_BY_CONTROL,
        };
        // One of those who ring at once is enough.
        if self.state.compare_exchange(ASLEEP, called, Ordering::Relaxed, Ordering::Relaxed).is_ok() {
            self.event.signal();
        }
    }
}

impl Bell {
    /// What becomes readable when somebody rings. Who watches its edges need not [silence](Self::silence) it. `None` if the system gave no descriptor:
    /// such a one does not sleep.
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.event.0.as_ref().map(AsFd::as_fd)
    }

    /// It is not readable any more, until somebody rings. Never waits.
    pub fn silence(&self) {
        if let Some(event) = &self.event.0 {
            let _count = rustix::io::read(event, &mut [0; 8]);
        }
    }
}

/// An eventfd of our own, which nobody else has.
#[derive(Debug)]
struct Event(Option<OwnedFd>);

impl Event {
    fn new() -> Event {
        Event(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).ok())
    }

    /// Never waits. A count at its largest would be refused, and is reached after centuries.
    fn signal(&self) {
        if let Some(event) = &self.0 {
            let _woken = rustix::io::write(event, &1u64.to_ne_bytes());
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn is_signalled(bell: &Bell) -> bool {
        let mut count = [0; 8];
        rustix::io::read(bell.fd().unwrap(), &mut count).is_ok()
    }

    #[test]
    fn only_a_sleeper_is_woken_and_once() {
        let bell = Bell::new();
        bell.ring(Caller::Control);
        bell.allow(true);
        bell.ring(Caller::Control);
        assert!(!is_signalled(&bell), "it was up");
        bell.lie_down();
        bell.ring(Caller::Worker);
        bell.ring(Caller::Control);
        assert!(is_signalled(&bell));
        assert_eq!((bell.get_up(), bell.get_up()), (Some(Caller::Worker), None));
        bell.ring(Caller::Control);
        assert!(!is_signalled(&bell), "it is up again");
        bell.lie_down();
        assert_eq!(bell.get_up(), None, "it found something itself");
    }
}
