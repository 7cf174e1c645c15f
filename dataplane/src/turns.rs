//! Whose turn it is among many tenants, most of which say nothing most of the time.
//!
//! Those that sent lately stand in one row, of which a burst is filled; the quiet ones in another, of which every
//! second turn of the worker looks at one, and each turn at one more for every [`PACKETS_PER_LOOK`] packets that were moved. So the
//! looking is a fixed small share of a worker's time (some 6 ns a look), however many are quiet; what they pay is that the first
//! packet after a pause waits until their place is looked at: some 0.2 µs for each quiet tenant, so 0.2 ms with a thousand. While the worker
//! is up nobody waits for an interrupt, so nobody can lose or withhold one; before it sleeps all are asked to call (`worker/sleep.rs`).
//!
//! Used by `tenants`; knows no rings. An endpoint stands in each row at most once, so the rows never grow
//! beyond what they were made for.

use std::collections::VecDeque;

use crate::types::EndpointId;

/// A turn that moved so many packets has time to look at one more of the quiet tenants.
pub const PACKETS_PER_LOOK: usize = 16;
/// Tenants that a burst is collected from in one turn, at most.
pub const BUSY_LOOKS: usize = 64;
/// So many turns without a packet make a tenant quiet: some 0.1 ms on an idle worker, some milliseconds on a loaded one.
const EMPTY_TURNS_MAX: u16 = 1024;
/// So many turns one has that was stirred, to answer in.
const STIRRED_TURNS: u16 = 64;

/// Where one endpoint stands.
#[derive(Clone, Copy, Default, Debug)]
struct Standing {
    attached: bool,
    /// Has a place in the row of the busy ones; it may have left, and then the place is given up when it comes to the front.
    in_busy: bool,
    /// Its place in the row of the quiet ones.
    quiet_at: Option<u16>,
    empty_turns: u16,
}

/// Both rows.
#[derive(Debug)]
pub struct Turns {
    busy: VecDeque<EndpointId>,
    /// In no particular order; gone through from `next_quiet` on, again and again.
    quiet: Vec<EndpointId>,
    next_quiet: usize,
    /// Every second turn looks at a quiet one.
    is_odd: bool,
    standings: Box<[Standing]>,
}

impl Turns {
    /// Room for so many endpoints.
    pub fn new(endpoints: usize) -> Turns {
        Turns {
            busy: VecDeque::with_capacity(endpoints),
            quiet: Vec::with_capacity(endpoints),
            next_quiet: 0,
            is_odd: false,
            standings: vec![Standing::default(); endpoints].into(),
        }
    }

    /// A tenant has come: it stands with the busy ones until it proves quiet.
    pub fn join(&mut self, id: EndpointId) {
        if let Some(standing) = self.standings.get_mut(id.index()) {
            standing.attached = true;
            self.wake(id);
        }
    }

    /// A tenant has gone.
    pub fn leave(&mut self, id: EndpointId) {
        if let Some(standing) = self.standings.get_mut(id.index()) {
            standing.attached = false;
            self.leave_quiet(id);
        }
    }

    /// Places to go through among the busy ones in one turn.
    #[inline]
    pub fn busy_looks(&self) -> usize {
        self.busy.len().min(BUSY_LOOKS)
    }

    /// The busy one in front, if that place still counts; it is to be given back with [`served`](Self::served).
    #[inline]
    pub fn next_busy(&mut self) -> Option<EndpointId> {
        let id = self.busy.pop_front()?;
        let standing = self.standings.get_mut(id.index())?;
        standing.in_busy = false;
        standing.attached.then_some(id)
    }

    /// After a busy one's turn: to the end of its row, or to the quiet ones if it had nothing for long enough: then true.
    #[inline]
    pub fn served(&mut self, id: EndpointId, had_packets: bool) -> bool {
        let Some(standing) = self.standings.get_mut(id.index()) else { return false };
        standing.empty_turns = if had_packets { 0 } else { standing.empty_turns + 1 };
        let is_quiet = standing.empty_turns >= EMPTY_TURNS_MAX;
        if is_quiet {
            self.calm(id);
        } else {
            standing.in_busy = true;
            self.busy.push_back(id); // it was taken from there
        }
        is_quiet
    }

    /// One that was taken from the busy ones goes to the quiet ones.
    #[inline]
    pub fn calm(&mut self, id: EndpointId) {
        let Some(standing) = self.standings.get_mut(id.index()) else { return };
        standing.quiet_at = Some(self.quiet.len() as u16);
        self.quiet.push(id); // never grows: each is in it once
    }

    /// How many places there are among the busy ones.
    pub fn busy(&self) -> usize {
        self.busy.len()
    }

    /// A busy one had more than there was room for: it is first in the next turn. Otherwise those before it could take all
    /// room for ever.
    #[inline]
    pub fn cut_short(&mut self, id: EndpointId) {
        let Some(standing) = self.standings.get_mut(id.index()) else { return };
        standing.empty_turns = 0;
        standing.in_busy = true;
        self.busy.push_front(id); // it was taken from there
    }

    /// The next of the quiet ones. It keeps its place, unless it is to [`wake`](Self::wake).
    #[inline]
    pub fn next_quiet(&mut self) -> Option<EndpointId> {
        if self.next_quiet >= self.quiet.len() {
            self.next_quiet = 0;
        }
        let id = *self.quiet.get(self.next_quiet)?;
        self.next_quiet += 1;
        Some(id)
    }

    /// Begins a turn; so many places are to be gone through among the quiet ones in it, after so many packets.
    #[inline]
    pub fn quiet_looks(&mut self, packets: usize) -> usize {
        self.is_odd = !self.is_odd;
        self.quiet.len().min(usize::from(self.is_odd) + packets / PACKETS_PER_LOOK)
    }

    /// The one that [`next_quiet`](Self::next_quiet) will give next, unless the row begins anew.
    #[inline]
    pub fn quiet_ahead(&self) -> Option<EndpointId> {
        self.quiet.get(self.next_quiet).copied()
    }

    /// To the end of the busy row.
    pub fn wake(&mut self, id: EndpointId) {
        self.leave_quiet(id);
        let Some(standing) = self.standings.get_mut(id.index()) else { return };
        standing.empty_turns = 0;
        if !std::mem::replace(&mut standing.in_busy, true) {
            self.busy.push_back(id); // never grows: each is in it once
        }
    }

    /// Somebody has sent it something, so it will likely answer: worth to be looked at, if not for long.
    #[inline]
    pub fn stir(&mut self, id: EndpointId) {
        if self.standings.get(id.index()).is_some_and(|standing| standing.quiet_at.is_some()) {
            self.wake(id);
            if let Some(standing) = self.standings.get_mut(id.index()) {
                standing.empty_turns = EMPTY_TURNS_MAX - STIRRED_TURNS;
            }
        }
    }

    /// Fills its place with one from the end of the part that this round has seen, and that one's with the last of all: so
    /// nobody is passed over in this round.
    fn leave_quiet(&mut self, id: EndpointId) {
        let standing = self.standings.get_mut(id.index());
        let Some(mut place) = standing.and_then(|standing| standing.quiet_at.take()).map(usize::from) else {
            return;
        };
        if place < self.next_quiet {
            self.next_quiet -= 1;
            if place != self.next_quiet {
                self.quiet.swap(place, self.next_quiet);
                self.note_place(place);
                place = self.next_quiet;
            }
        }
        self.quiet.swap_remove(place);
        self.note_place(place);
    }

    fn note_place(&mut self, place: usize) {
        if let Some(id) = self.quiet.get(place)
            && let Some(standing) = self.standings.get_mut(id.index())
        {
            standing.quiet_at = Some(place as u16);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One turn as `collect` does it; `sends` says who has packets. Returns who was served.
    fn turn(turns: &mut Turns, sends: impl Fn(u16) -> bool) -> Vec<u16> {
        for _ in 0..turns.quiet_looks(80) {
            match turns.next_quiet() {
                Some(id) if sends(id.0) => turns.wake(id),
                _ => {}
            }
        }
        let mut served = Vec::new();
        for _ in 0..turns.busy_looks() {
            let Some(id) = turns.next_busy() else { continue };
            turns.served(id, sends(id.0));
            served.push(id.0);
        }
        served
    }

    #[test]
    fn who_says_nothing_becomes_quiet_and_is_looked_at_again() {
        let mut turns = Turns::new(100);
        (0..100).for_each(|id| turns.join(EndpointId(id)));
        // As many as a turn holds are served, in their order.
        assert_eq!(turn(&mut turns, |_| false), (0..64).collect::<Vec<_>>());
        for _ in 0..2 * EMPTY_TURNS_MAX {
            turn(&mut turns, |id| id == 7);
        }
        assert_eq!(turn(&mut turns, |id| id == 7), [7], "only who sends is served");
        let looks = (1..).find(|_| turn(&mut turns, |id| id == 7 || id == 50).contains(&50)).unwrap();
        assert!(looks <= 100 / 5 + 2, "{looks} turns until a quiet one was noticed");
        turns.stir(EndpointId(3));
        let stirred = (0..200).filter(|_| turn(&mut turns, |_| false).contains(&3)).count();
        assert_eq!(stirred, usize::from(STIRRED_TURNS), "who was sent something is looked at for a while");
    }

    #[test]
    fn nobody_is_passed_over_when_others_wake() {
        let mut turns = Turns::new(10);
        (0..10).for_each(|id| turns.join(EndpointId(id)));
        for _ in 0..2 * EMPTY_TURNS_MAX {
            turn(&mut turns, |_| false);
        }
        assert_eq!((turns.quiet.len(), turns.busy.len()), (10, 0));
        turns.next_quiet = 0;
        let mut seen = Vec::new();
        for round in 0.. {
            let Some(id) = turns.next_quiet().filter(|_| turns.next_quiet <= turns.quiet.len()) else {
                break;
            };
            if seen.contains(&id.0) {
                break;
            }
            seen.push(id.0);
            // One that was seen wakes, another that was not, or nobody.
            match round % 3 {
                0 => turns.stir(id),
                1 => turns.stir(EndpointId(9 - round)),
                _ => {}
            }
        }
        let woken = |id: &u16| turns.busy.contains(&EndpointId(*id));
        assert!((0..10).all(|id| seen.contains(&id) || woken(&id)), "seen {seen:?}, busy {:?}", turns.busy);
        for (place, id) in turns.quiet.iter().enumerate() {
            assert_eq!(turns.standings[id.index()].quiet_at, Some(place as u16));
        }
    }

    #[test]
    fn who_leaves_and_comes_back_has_one_place() {
        let mut turns = Turns::new(2);
        let (busy, quiet) = (turns.busy.capacity(), turns.quiet.capacity());
        for round in 0..10_000 {
            turns.join(EndpointId(0));
            turns.join(EndpointId(1));
            for _ in 0..round % 5 * 300 {
                turn(&mut turns, |_| false);
            }
            turns.leave(EndpointId(0));
            assert!(!turn(&mut turns, |_| true).contains(&0), "it has left");
        }
        assert_eq!((turns.busy.capacity(), turns.quiet.capacity()), (busy, quiet));
        assert!(turns.busy.len() <= 2 && turns.quiet.len() <= 2);
    }
}
