//! When a worker last looked at each place where new work may be: what a look finds has waited at most since the one before, as long as
//! that left nothing there. `by_class` asks, in one turn of some (see `waiting`).

use crate::clock::cycles;
use crate::waiting;

/// When each place was last looked at where new work may be.
#[derive(Debug)]
pub(super) struct Looks {
    /// These are noted now.
    is_on: bool,
    /// What they find counts: a burst from there has waited at most since then.
    is_sampled: bool,
    /// In cycles; 0: not since they are noted. Tenants' first queues, all of theirs, and two rings of each queue of the uplinks.
    last: Box<[u64]>,
}

/// Where new work may be.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place {
    /// A ring of one of the uplinks' queues, that for urgent frames or the other.
    Ring(usize, bool),
    /// Tenants' first queues.
    FirstQueues,
    /// All their queues.
    Tenants,
}

impl Looks {
    /// Of a worker with so many places to take frames from.
    pub(super) fn new(sources: usize) -> Looks {
        Looks { is_on: false, is_sampled: false, last: vec![0; 2 * sources + 2].into() }
    }

    /// Each sampled turn and the one before.
    #[inline]
    pub(super) fn begin_turn(&mut self, turn: u64, by_class: bool) {
        let place = turn % waiting::SAMPLED;
        self.is_on = by_class && (self.is_on && place == 0 || place == waiting::SAMPLED - 1);
        self.is_sampled = self.is_on && place == 0;
        if self.is_on && place != 0 {
            self.last.fill(0);
        }
    }

    /// Between two looks was a sleep, which ended when something came: they tell nothing.
    pub(super) fn forget(&mut self) {
        self.is_on = false;
    }

    /// A place is looked at now. Since when a burst that is found there may have waited, if that counts.
    #[inline]
    pub(super) fn look(&mut self, place: Place) -> Option<u64> {
        if self.is_on { self.note(place) } else { None }
    }

    #[cold]
    fn note(&mut self, place: Place) -> Option<u64> {
        let index = match place {
            Place::Ring(source, is_urgent) => 2 + 2 * source + usize::from(is_urgent),
            Place::FirstQueues => 0,
            Place::Tenants => 1,
        };
        let last = std::mem::replace(self.last.get_mut(index)?, cycles());
        (self.is_sampled && last > 0).then_some(last)
    }
}
