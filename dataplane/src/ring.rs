//! A bounded ring from one thread to one other: how frames go from worker to worker, a burst at a time.
//!
//! Both sides count for ever and mask for the place: `tail` is what was published, `head` what was released. Each side has its own
//! count and a copy of the other's, which it reads again only when that copy says full (or empty), so that on a ring that
//! is neither the two cache lines move once a burst and not once an item.
//!
//! What must hold: `head <= tail <= head + capacity`; the producer alone writes `tail` and the slots from `tail` on, the consumer
//! alone writes `head` and reads the slots below `tail`. `tests/loom.rs` runs this file under the loom model checker.

use std::mem::MaybeUninit;

use crossbeam::utils::CachePadded;

use crate::sync::{Arc, AtomicUsize, Ordering, UnsafeCell, prefetch};

/// What both sides see.
struct Shared<T> {
    /// Released by the consumer.
    head: CachePadded<AtomicUsize>,
    /// Published by the producer.
    tail: CachePadded<AtomicUsize>,
    slots: Box<[UnsafeCell<MaybeUninit<T>>]>,
}

// SAFETY: a slot is accessed by one side at a time (see the module), and what is in it moves from one thread to the other.
unsafe impl<T: Send> Sync for Shared<T> {}
// SAFETY: it owns its slots.
unsafe impl<T: Send> Send for Shared<T> {}

impl<T> Shared<T> {
    #[inline]
    fn slot(&self, at: usize) -> Option<&UnsafeCell<MaybeUninit<T>>> {
        self.slots.get(at & (self.slots.len() - 1)) // the length is a power of two
    }
}

/// The side that puts in.
pub struct Producer<T> {
    shared: Arc<Shared<T>>,
    /// Published and not yet published items so far.
    next: usize,
    /// Of these, published.
    published: usize,
    /// What `head` was when last looked at.
    head: usize,
}

/// The side that takes out.
pub struct Consumer<T> {
    shared: Arc<Shared<T>>,
    /// Taken so far.
    next: usize,
    /// What `tail` was when last looked at.
    tail: usize,
}

/// A ring for at least `capacity` items. They have nothing to drop: what is left in it at the end is forgotten.
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    const { assert!(!std::mem::needs_drop::<T>(), "what is left in a ring is forgotten") };
    let slots = (0..capacity.next_power_of_two()).map(|_| UnsafeCell::new(MaybeUninit::uninit())).collect();
    let head = CachePadded::new(AtomicUsize::new(0));
    let tail = CachePadded::new(AtomicUsize::new(0));
    let shared = Arc::new(Shared { head, tail, slots });
    (
        Producer { shared: shared.clone(), next: 0, published: 0, head: 0 },
        Consumer { shared, next: 0, tail: 0 },
    )
}

impl<T> Producer<T> {
    /// Puts an item in. It is seen after [`publish`](Self::publish).
    ///
    /// # Errors
    /// A full ring gives it back.
    #[inline]
    pub fn push(&mut self, item: T) -> Result<(), T> {
        if !self.has_room() {
            return Err(item);
        }
        let Some(slot) = self.shared.slot(self.next) else { return Err(item) };
        // SAFETY: the slot is free: the consumer has released what was in it (`head`, acquired above or before), and does not
        // look at it until it is published.
        slot.with_mut(|slot| unsafe { (*slot).write(item) });
        self.next = self.next.wrapping_add(1);
        Ok(())
    }

    /// Whether one more item finds room.
    #[inline]
    pub fn has_room(&mut self) -> bool {
        self.has_room_for(1)
    }

    /// Whether so many more items find room.
    #[inline]
    pub fn has_room_for(&mut self, items: usize) -> bool {
        let capacity = self.shared.slots.len();
        if self.next.wrapping_sub(self.head) + items <= capacity {
            return true;
        }
        self.head = self.shared.head.load(Ordering::Acquire);
        self.next.wrapping_sub(self.head) + items <= capacity
    }

    /// How many were put in so far, published or not.
    #[inline]
    pub fn put_in(&self) -> usize {
        self.next
    }

    /// Shows the consumer what was put in.
    #[inline]
    pub fn publish(&mut self) {
        if self.published != self.next {
            self.published = self.next;
            self.shared.tail.store(self.next, Ordering::Release);
        }
    }
}

impl<T> Consumer<T> {
    /// Takes the oldest item out. Its place is free after [`release`](Self::release).
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        let slot = if self.has_item() { self.shared.slot(self.next)? } else { return None };
        // SAFETY: the producer has published the item (`tail`, acquired now or before) and does not touch its slot until it is
        // released; each is taken once, because `next` only goes up.
        let item = slot.with(|slot| unsafe { (*slot).assume_init_read() });
        self.next = self.next.wrapping_add(1);
        Some(item)
    }

    /// Whether there is something to take.
    #[inline]
    pub fn has_item(&mut self) -> bool {
        if self.next == self.tail {
            self.tail = self.shared.tail.load(Ordering::Acquire);
        }
        self.next != self.tail
    }

    /// Has the next items brought into the cache, so many at most: they were written by another core. How many there are.
    #[inline]
    pub fn prefetch(&mut self, items: usize) -> usize {
        if self.next == self.tail {
            self.tail = self.shared.tail.load(Ordering::Acquire);
        }
        let count = self.tail.wrapping_sub(self.next).min(items);
        for ahead in 0..count {
            if let Some(slot) = self.shared.slot(self.next.wrapping_add(ahead)) {
                prefetch(slot);
            }
        }
        count
    }

    /// The oldest item, looked at and left there.
    #[inline]
    pub fn peek<R>(&mut self, look: impl FnOnce(&T) -> R) -> Option<R> {
        let slot = if self.has_item() { self.shared.slot(self.next)? } else { return None };
        // SAFETY: as in `pop`; the reference ends with the call.
        Some(slot.with(|slot| look(unsafe { (*slot).assume_init_ref() })))
    }

    /// How many were taken so far.
    #[inline]
    pub fn taken(&self) -> usize {
        self.next
    }

    /// Gives the places of what was taken back to the producer.
    #[inline]
    pub fn release(&mut self) {
        self.shared.head.store(self.next, Ordering::Release);
    }
}

impl<T> std::fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Producer").field("next", &self.next).finish_non_exhaustive()
    }
}

impl<T> std::fmt::Debug for Consumer<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Consumer").field("next", &self.next).finish_non_exhaustive()
    }
}
