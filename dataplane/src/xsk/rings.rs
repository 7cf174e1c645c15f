//! The rings of an AF_XDP socket, mapped by ourselves where the library has no way to: a queue's second socket, packets in several parts,
//! and ports.
//!
//! What must hold: the kernel is the other side of each ring, and an index of ours is published after what it stands for was read or
//! written.

use std::io;
use std::os::fd::BorrowedFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::RingMapping;

/// An rx or tx ring of a socket's, or, of addresses only, a fill or completion ring: a power of two of entries, and two indices that only
/// grow. For one side, which it says by what it calls.
#[derive(Debug)]
pub(super) struct Ring<T = libc::xdp_desc> {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    entries: NonNull<T>,
    mask: u32,
    /// Our own index.
    at: u32,
    _memory: RingMapping,
}

// SAFETY: the pointers are into the mapping that it owns.
unsafe impl<T: Send> Send for Ring<T> {}

/// What lies in such rings: numbers, so that any bytes are a value.
pub(super) trait Entry: Copy {}
impl Entry for libc::xdp_desc {}
impl Entry for u64 {}

impl<T: Entry> Ring<T> {
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        place: libc::off_t,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Ring<T>> {
        let bytes = offsets.desc as usize + size as usize * size_of::<T>();
        let memory = RingMapping::new(fd, place, bytes)?;
        Ring::on(memory, offsets, size)
    }

    fn on(memory: RingMapping, offsets: &libc::xdp_ring_offset, size: u32) -> io::Result<Ring<T>> {
        Ok(Ring {
            producer: memory.at(offsets.producer, 1)?,
            consumer: memory.at(offsets.consumer, 1)?,
            flags: memory.at(offsets.flags, 1)?,
            entries: memory.at(offsets.desc, size)?,
            mask: size.wrapping_sub(1),
            at: 0,
            _memory: memory,
        })
    }

    #[inline]
    fn entry(&self, index: u32) -> NonNull<T> {
        // SAFETY: the mask keeps it inside the mapping.
        unsafe { self.entries.add((index & self.mask) as usize) }
    }

    /// rx and completion: how many entries have come.
    #[inline]
    pub(super) fn arrived(&self) -> u32 {
        load(self.producer).wrapping_sub(self.at).min(self.mask + 1)
    }

    /// rx and completion: the next one. Only if one has arrived; [`release`](Self::release) gives the places back.
    #[inline]
    pub(super) fn take(&mut self) -> T {
        // SAFETY: in the mapping, and written before the producer index was.
        let entry = unsafe { self.entry(self.at).read() };
        self.at = self.at.wrapping_add(1);
        entry
    }

    /// rx and completion: what was taken has been read.
    #[inline]
    pub(super) fn release(&mut self) {
        store(self.consumer, self.at);
    }

    /// tx and fill: how many the kernel has not taken, of those put in.
    #[inline]
    pub(super) fn pending(&self) -> u32 {
        self.at.wrapping_sub(load(self.consumer))
    }

    /// tx and fill: how many more fit.
    #[inline]
    pub(super) fn room(&self) -> u32 {
        (self.mask + 1).saturating_sub(self.pending())
    }

    /// tx and fill: puts one in, if there is room.
    #[inline]
    pub(super) fn put_entry(&mut self, entry: T) -> bool {
        if self.room() == 0 {
            return false;
        }
        // SAFETY: in the mapping, and not the kernel's before the producer index says so.
        unsafe { self.entry(self.at).write(entry) };
        self.at = self.at.wrapping_add(1);
        true
    }

    /// tx and fill: what was put in is the kernel's.
    #[inline]
    pub(super) fn publish(&mut self) {
        store(self.producer, self.at);
    }

    /// tx: a zero-copy driver waits for a call.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        load(self.flags) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}

#[inline]
fn load(index: NonNull<AtomicU32>) -> u32 {
    // SAFETY: of a ring, in its mapping, which lives as long as that, and touched by atomic operations only.
    unsafe { index.as_ref() }.load(Ordering::Acquire)
}

#[inline]
fn store(index: NonNull<AtomicU32>, value: u32) {
    // SAFETY: as above.
    unsafe { index.as_ref() }.store(value, Ordering::Release);
}

impl Ring {
    /// tx: puts a descriptor in, if there is room.
    #[inline]
    pub(super) fn put(&mut self, address: u64, length: u32, options: u32) -> bool {
        self.put_entry(libc::xdp_desc { addr: address, len: length, options })
    }
}
