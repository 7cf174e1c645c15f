//! The second socket of a queue, for urgent frames: its rx ring and its tx ring. Fill and completion ring are the first one's.
//!
//! Owned by [`XskSocket`](super::XskSocket), which moves the frames. Our own code, because the library can share a queue with the
//! first socket of a UMEM only, and a worker has several queues on one. What must hold: as in `socket`. The kernel is the other
//! side of each ring; an index of ours is published after what it stands for was read or written.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::{self, RingMapping};
use crate::types::QueueId;

use super::socket::Watchdog;

/// The second socket.
#[derive(Debug)]
pub(super) struct Urgent {
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    fd: OwnedFd,
    /// How many frames may be out at once.
    pub(super) tx_frames: u32,
    /// Chunks in the tx ring, with the kernel, or in the completion ring.
    pub(super) tx_lent: u32,
    pub(super) watchdog: Watchdog,
    /// By chunk: it is one of those. Completions of both sockets come by one ring, and do not say whose they are.
    sent: Box<[bool]>,
}

/// What [`Urgent::open`] needs.
pub(super) struct UrgentParts<'a> {
    /// The queue's first socket.
    pub(super) first: BorrowedFd<'a>,
    pub(super) interface_index: u32,
    pub(super) queue: QueueId,
    pub(super) ring_size: u32,
    pub(super) tx_frames: u32,
    pub(super) watchdog_ticks: u64,
    /// In the UMEM.
    pub(super) chunks: usize,
}

impl Urgent {
    pub(super) fn open(parts: &UrgentParts<'_>) -> io::Result<Urgent> {
        let fd = sys::xdp_socket(parts.ring_size)?;
        let offsets = sys::xdp_offsets(fd.as_fd())?;
        let ring = |place, offsets| Ring::map(fd.as_fd(), place, &offsets, parts.ring_size);
        let rx = ring(libc::XDP_PGOFF_RX_RING, offsets.rx)?;
        let tx = ring(libc::XDP_PGOFF_TX_RING, offsets.tx)?;
        sys::xdp_bind_beside(fd.as_fd(), parts.first, parts.interface_index, parts.queue.0)?;
        Ok(Urgent {
            rx,
            tx,
            fd,
            tx_frames: parts.tx_frames,
            tx_lent: 0,
            watchdog: Watchdog::new(parts.watchdog_ticks),
            sent: vec![false; parts.chunks].into(),
        })
    }

    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    #[inline]
    pub(super) fn raw_fd(&self) -> libc::c_int {
        self.fd.as_raw_fd()
    }

    /// How many more frames may go out now.
    #[inline]
    pub(super) fn tx_budget(&self) -> u32 {
        self.tx_frames.saturating_sub(self.tx_lent).min(self.tx.room())
    }

    /// Puts a lent chunk into the tx ring, if there is room. The kernel sees it after [`Ring::publish`].
    #[inline]
    pub(super) fn send(&mut self, index: u32, address: u64, length: u32, options: u32) -> bool {
        let Some(sent) = self.sent.get_mut(index as usize) else { return false };
        if !self.tx.put(address, length, options) {
            return false;
        }
        *sent = true;
        if self.tx_lent == 0 {
            self.watchdog.reset = true;
        }
        self.tx_lent += 1;
        true
    }

    /// A chunk was in the completion ring: whether it is one that was sent here.
    #[inline]
    pub(super) fn completes(&mut self, index: u32) -> bool {
        match self.sent.get_mut(index as usize) {
            Some(sent) if *sent => {
                *sent = false;
                self.tx_lent = self.tx_lent.saturating_sub(1);
                self.watchdog.reset = true;
                true
            }
            _ => false,
        }
    }
}

/// An rx or tx ring of a socket's: a power of two of descriptors, and two indices that only grow. For one side, which it says by what it calls.
#[derive(Debug)]
pub(super) struct Ring {
    producer: NonNull<AtomicU32>,
    consumer: NonNull<AtomicU32>,
    flags: NonNull<AtomicU32>,
    descriptors: NonNull<libc::xdp_desc>,
    mask: u32,
    /// Our own index.
    at: u32,
    _memory: RingMapping,
}

// SAFETY: the pointers are into the mapping that it owns.
unsafe impl Send for Ring {}

impl Ring {
    pub(super) fn map(
        fd: BorrowedFd<'_>,
        place: libc::off_t,
        offsets: &libc::xdp_ring_offset,
        size: u32,
    ) -> io::Result<Ring> {
        let bytes = offsets.desc as usize + size as usize * size_of::<libc::xdp_desc>();
        let memory = RingMapping::new(fd, place, bytes)?;
        Ring::on(memory, offsets, size)
    }

    fn on(memory: RingMapping, offsets: &libc::xdp_ring_offset, size: u32) -> io::Result<Ring> {
        Ok(Ring {
            producer: memory.at(offsets.producer, 1)?,
            consumer: memory.at(offsets.consumer, 1)?,
            flags: memory.at(offsets.flags, 1)?,
            descriptors: memory.at(offsets.desc, size)?,
            mask: size.wrapping_sub(1),
            at: 0,
            _memory: memory,
        })
    }

    #[inline]
    fn load(index: NonNull<AtomicU32>) -> u32 {
        // SAFETY: in the mapping, which lives as long as the ring, and touched by atomic operations only.
        unsafe { index.as_ref() }.load(Ordering::Acquire)
    }

    #[inline]
    fn store(index: NonNull<AtomicU32>, value: u32) {
        // SAFETY: as above.
        unsafe { index.as_ref() }.store(value, Ordering::Release);
    }

    #[inline]
    fn descriptor(&self, index: u32) -> NonNull<libc::xdp_desc> {
        // SAFETY: the mask keeps it inside the mapping.
        unsafe { self.descriptors.add((index & self.mask) as usize) }
    }

    /// rx: how many frames have arrived.
    #[inline]
    pub(super) fn arrived(&self) -> u32 {
        Ring::load(self.producer).wrapping_sub(self.at).min(self.mask + 1)
    }

    /// rx: the next descriptor. Only if one has arrived; [`release`](Self::release) gives the places back.
    #[inline]
    pub(super) fn take(&mut self) -> libc::xdp_desc {
        // SAFETY: in the mapping, and written before the producer index was.
        let descriptor = unsafe { self.descriptor(self.at).read() };
        self.at = self.at.wrapping_add(1);
        descriptor
    }

    /// rx: what was taken has been read.
    #[inline]
    pub(super) fn release(&mut self) {
        Ring::store(self.consumer, self.at);
    }

    /// tx: how many frames the kernel has not taken, of those put in.
    #[inline]
    pub(super) fn pending(&self) -> u32 {
        self.at.wrapping_sub(Ring::load(self.consumer))
    }

    /// tx: how many more fit.
    #[inline]
    pub(super) fn room(&self) -> u32 {
        (self.mask + 1).saturating_sub(self.pending())
    }

    /// tx: puts one in, if there is room.
    #[inline]
    pub(super) fn put(&mut self, address: u64, length: u32, options: u32) -> bool {
        if self.room() == 0 {
            return false;
        }
        // SAFETY: in the mapping, and not the kernel's before the producer index says so.
        unsafe { self.descriptor(self.at).write(libc::xdp_desc { addr: address, len: length, options }) };
        self.at = self.at.wrapping_add(1);
        true
    }

    /// tx: what was put in is the kernel's.
    #[inline]
    pub(super) fn publish(&mut self) {
        Ring::store(self.producer, self.at);
    }

    /// tx: a zero-copy driver waits for a call.
    #[inline]
    pub(super) fn needs_wakeup(&self) -> bool {
        Ring::load(self.flags) & libc::XDP_RING_NEED_WAKEUP != 0
    }
}
