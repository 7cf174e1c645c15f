//! The index protocol of a ring, without its memory: who may move which index, and how far a peer is believed.
//!
//! A ring has two free-running u16 indexes. **The client writes `head` and the server writes `tail`, on every ring**; so each
//! side has one index of its own and one of its peer's, and the four kinds of ring half differ only in what the indexes count:
//!
//! | half      | a slot is ours to use while       | own index published as |
//! |-----------|-----------------------------------|------------------------|
//! | server rx | cursor ≠ head (packet produced)   | tail = cursor          |
//! | server tx | cursor ≠ head (buffer offered)    | tail = cursor          |
//! | client tx | cursor ≠ tail + size (slot free)  | head = cursor          |
//! | client rx | cursor ≠ tail (packet filled)     | head = cursor + size   |
//!
//! The client's rx half offers every buffer it is not holding, hence `head = cursor + size`. One `Cursor` with two constants
//! does all four. The cursor is private: what we wrote to shared memory is never read back as truth.
//!
//! Generic over `Indices` so that the same code runs over shared memory and, in `tests/loom.rs`, under the loom model checker.

use crate::error::Violation;

/// The shared words of one ring, as one of its sides sees them.
pub trait Indices {
    /// The peer's index: an Acquire load.
    fn load_peer(&self) -> u16;
    /// Our index: a Release store.
    fn store_own(&self, value: u16);
    /// Whether the peer has taken the memory away, so that the other words mean nothing.
    fn is_lost(&self) -> bool {
        false
    }
    /// Whether the receiver has asked not to be woken (MASK_INT): a relaxed load.
    fn is_masked(&self) -> bool;
    /// Asks not to be woken, or to be: a relaxed store. Only for the receiver of packets.
    fn set_masked(&self, masked: bool);
    /// A full fence: nothing passes it, a store followed by a load least of all.
    fn fence(&self);
}

/// One side's private position in one ring. See the module's documentation.
#[derive(Clone, Debug)]
pub struct Cursor {
    /// The next slot to use.
    next: u16,
    /// `next` as it was last published.
    published: u16,
    /// The first slot not ours to use, from the last look at the peer's index.
    limit: u16,
    /// Slots of the ring, a power of two ≤ 2^14.
    size: u16,
    /// What to add to the peer's index to get `limit`: 0 or `size`.
    peer_bias: u16,
    /// What to add to `next` to get our index: 0 or `size`.
    own_bias: u16,
}

impl Cursor {
    /// A server's half, rx or tx. `tail` is our own index, which may not be 0 in memory that has been used before.
    pub fn server(size: u16, tail: u16) -> Self {
        Self { next: tail, published: tail, limit: tail, size, peer_bias: 0, own_bias: 0 }
    }

    /// A client's tx half over an empty ring (head = tail).
    pub fn client_tx(size: u16, tail: u16) -> Self {
        Self {
            next: tail,
            published: tail,
            limit: tail.wrapping_add(size),
            size,
            peer_bias: size,
            own_bias: 0,
        }
    }

    /// A client's rx half that offers all its buffers (head = tail + size).
    pub fn client_rx(size: u16, tail: u16) -> Self {
        Self { next: tail, published: tail, limit: tail, size, peer_bias: 0, own_bias: size }
    }

    /// Slots of the ring.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Slots that are ours to use, as far as we have looked.
    #[inline(always)]
    pub fn available(&self) -> u16 {
        self.limit.wrapping_sub(self.next)
    }

    /// The peer's index as it was last seen.
    pub fn peer_seen(&self) -> u16 {
        self.limit.wrapping_sub(self.peer_bias)
    }

    /// Reads the peer's index once, and believes it only if it lies between what we have used and one ring further.
    ///
    /// # Errors
    /// [`Violation::IndexJump`] and [`Violation::MemoryLost`]; nothing has changed then.
    #[inline(always)]
    pub fn look(&mut self, shared: &impl Indices) -> Result<u16, Violation> {
        let limit = shared.load_peer().wrapping_add(self.peer_bias);
        // After the load: it may be the access that finds the memory gone.
        if shared.is_lost() {
            return Err(Violation::MemoryLost);
        }
        let pending = limit.wrapping_sub(self.published);
        if pending > self.size || pending < self.unpublished() {
            return Err(Violation::IndexJump { pending, size: self.size });
        }
        self.limit = limit;
        Ok(self.available())
    }

    /// The next slot that is ours to use (as a free-running index), without using it up.
    #[inline(always)]
    pub fn peek(&self) -> Option<u16> {
        (self.next != self.limit).then_some(self.next)
    }

    /// Uses up the slot that `peek` gave. Without one it does nothing.
    #[inline(always)]
    pub fn advance(&mut self) {
        if self.next != self.limit {
            self.next = self.next.wrapping_add(1);
        }
    }

    /// Slots used since the last publish.
    #[inline(always)]
    pub fn unpublished(&self) -> u16 {
        self.next.wrapping_sub(self.published)
    }

    /// Gives all used slots to the peer in one Release store. False if there were none.
    #[inline(always)]
    pub fn publish(&mut self, shared: &impl Indices) -> bool {
        if self.next == self.published {
            return false;
        }
        self.published = self.next;
        shared.store_own(self.next.wrapping_add(self.own_bias));
        true
    }

    /// For the receiver, before it sleeps: asks to be woken and then looks once more. True: packets are pending, don't sleep.
    ///
    /// The fence pairs with the one in [`must_wake`]: of the sender's "publish, then read the mask" and our "clear the mask, then
    /// read the index", at least one sees the other's write.
    ///
    /// # Errors
    /// As [`Cursor::look`].
    pub fn arm(&mut self, shared: &impl Indices) -> Result<bool, Violation> {
        shared.set_masked(false);
        shared.fence();
        self.look(shared).map(|pending| pending > 0)
    }
}

/// For the sender, after it has published: whether the receiver wants to be woken.
#[inline(always)]
pub fn must_wake(shared: &impl Indices) -> bool {
    shared.fence();
    !shared.is_masked()
}

#[cfg(test)]
#[path = "cursor_tests.rs"]
mod tests;
