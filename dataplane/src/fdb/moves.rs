//! An address that moves from remote to remote again and again is in two places, or a loop carries its frames round: it
//! is held where it is for a while (RFC 7432 §15.1 stops with such duplicates as well, after 5 moves in 180 s, until somebody clears it).
//! Frames from elsewhere are still delivered; they are only not believed.
//!
//! That is among equals. In a network that takes any remote, one that somebody told us of goes before one that was only discovered: it takes
//! an address from that at once, held or not, and gives none to it until the address has aged. Else whoever has two addresses on the underlay
//! could move a station's to and fro, and have it held at one of them.
//!
//! The moves of a slot's address are counted in a word beside the table, which nobody reads but who sees an address move: a
//! look-up, and an address that stays where it is, cost what they did. A word counts only as long as its `ROUND` is that of the
//! slot's value, so it need not be cleared when the slot is filled anew. It would be taken for that of another address only if the slot
//! were filled 8192 times within the seconds that it is good for, and then that address moved.
//!
//! A word changes under a claim on both buckets of its address.

use super::{Fdb, Learned, Limits, Ordering, Place, Slot};
use crate::fdb::Destination;
use crate::fdb::value::Value;
use crate::plan::MOVE_WINDOW;
use crate::types::RemoteId;

/// The second in which the window began, or in which holding ends, in the upper half; the rest as in a [`Value`]: whose round it is; then
/// whether it is held; and the moves in the low 8 bits.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Record(pub(super) u64);

impl Record {
    const HELD: u64 = 1 << 8;
    const COUNT: u64 = 0xff;
    const WINDOW_S: u32 = MOVE_WINDOW.as_secs() as u32;

    fn new(second: u32, low: u64, value: Value) -> Record {
        Record(u64::from(second) << 32 | value.round() | low)
    }

    fn second(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// It is about what the slot holds now.
    fn is_of(self, value: Value) -> bool {
        self.0 & Value::ROUND == value.round()
    }

    /// Until when the address is, or was, held.
    pub(super) fn held_until_s(self, value: Value) -> Option<u32> {
        (self.is_of(value) && self.0 & Record::HELD != 0).then_some(self.second())
    }

    fn holds(self, value: Value, now_s: u32) -> bool {
        self.held_until_s(value).is_some_and(|until_s| now_s < until_s)
    }

    /// The address is about to move once more: the record from then on, and whether it may.
    fn after_move(self, value: Value, now_s: u32, limits: &Limits) -> (Record, bool) {
        let in_window = self.is_of(value)
            && self.0 & Record::HELD == 0
            && now_s.saturating_sub(self.second()) < Record::WINDOW_S;
        let (began_s, moves) = if in_window { (self.second(), self.0 & Record::COUNT) } else { (now_s, 0) };
        if self.holds(value, now_s) {
            (self, false)
        } else if moves >= u64::from(limits.moves) {
            (Record::new(now_s.saturating_add(limits.hold_s), Record::HELD, value), false)
        } else {
            (Record::new(began_s, moves + 1, value), true) // no more than 255
        }
    }
}

/// Whose word counts, of who sends from an address and where it was.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Word {
    /// That of who sends now: it is known, and the other one was only discovered.
    New,
    /// That of the other one.
    Old,
    /// Both are known, or neither is.
    Either,
}

impl Word {
    fn of(remote: RemoteId, old: Value, limits: &Limits) -> Word {
        let was_known = match old.destination() {
            Destination::Remote(other) => limits.knows(other),
            Destination::Local(_) => true,
        };
        match (limits.knows(remote), was_known) {
            (true, false) => Word::New,
            (false, true) => Word::Old,
            _ => Word::Either,
        }
    }
}

/// All that needs no count of moves: `Err`. Otherwise the address has moved, and whose word counts.
fn settle(
    (slot, old): (&Slot, Value),
    remote: RemoteId,
    now_s: u32,
    limits: &Limits,
) -> Result<Word, Learned> {
    if let Some(learned) = slot.see_again(old, remote, now_s) {
        return Err(learned);
    }
    let word = Word::of(remote, old, limits);
    if word == Word::Old {
        return Err(Learned::Held);
    }
    if limits.moves == 0 {
        let moves = slot.try_exchange(old, old.seen_behind(remote, now_s));
        return Err(if moves { Learned::Moved } else { Learned::Busy });
    }
    Ok(word)
}

impl Fdb {
    /// An address was seen in another second, or behind another remote, than before.
    #[cold]
    #[inline(never)] // else it costs those that stay where they are
    pub(super) fn see_change(
        &self,
        (place, slot, old): (Place, &Slot, Value),
        remote: RemoteId,
        now_s: u32,
        limits: &Limits,
    ) -> Learned {
        let word = match settle((slot, old), remote, now_s, limits) {
            Ok(word) => word,
            Err(learned) => return learned,
        };
        // In a loop each frame comes by here: it finds out without a claim.
        let record = self.record(slot, place).map_or(0, |record| record.load(Ordering::Acquire));
        if word == Word::Either && Record(record).holds(old, now_s) {
            return Learned::Held;
        }
        let Some(_claim) = self.claim(place) else { return Learned::Busy };
        self.see_claimed(place, remote, now_s, limits)
    }

    /// The same for who has the claim on both buckets.
    #[cold]
    pub(super) fn see_claimed(&self, place: Place, remote: RemoteId, now_s: u32, limits: &Limits) -> Learned {
        // As it is now: it may have been taken away, or moved, before the claim.
        let Some((slot, old)) = self.find(place) else { return Learned::Busy };
        let word = match settle((slot, old), remote, now_s, limits) {
            Ok(word) => word,
            Err(learned) => return learned,
        };
        let Some(record) = self.record(slot, place) else { return Learned::Busy };
        let (next, may_move) = match word {
            Word::New => (Record::new(now_s, 0, old), true), // what it did before was not its doing
            _ => Record(record.load(Ordering::Acquire)).after_move(old, now_s, limits),
        };
        if may_move && !slot.try_exchange(old, old.seen_behind(remote, now_s)) {
            return Learned::Busy; // seen where it was, just now
        }
        record.store(next.0, Ordering::Release);
        if may_move { Learned::Moved } else { Learned::Held }
    }

    /// An address went from one slot to the other, both in buckets of this place. The caller has the claim.
    pub(super) fn move_record(&self, from: &Slot, to: &Slot, place: Place) {
        let (Some(old), Some(new)) = (self.record(from, place), self.record(to, place)) else { return };
        let (was, is) = (Value(from.value.load(Ordering::Relaxed)), Value(to.value.load(Ordering::Relaxed)));
        let record = Record(old.load(Ordering::Acquire));
        if record.is_of(was) {
            let record = Record::new(record.second(), record.0 & (Record::HELD | Record::COUNT), is);
            new.store(record.0, Ordering::Release);
        }
    }

    /// The word of a slot that is in a bucket of this place.
    fn record(&self, slot: &Slot, place: Place) -> Option<&super::AtomicU64> {
        [self.first(place), self.second(place)].into_iter().find_map(|index| {
            let at = self.bucket(index).0.iter().position(|one| std::ptr::eq(one, slot))?;
            self.moves.get(index & (self.buckets.len() - 1))?.get(at)
        })
    }
}
