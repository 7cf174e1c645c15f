//! The second socket of a queue, for urgent frames: its rx ring and its tx ring. Fill and completion ring are the first one's.
//!
//! Owned by [`XskSocket`](super::XskSocket), which moves the frames. Our own code, because the library can share a queue with the
//! first socket of a UMEM only, and a worker has several queues on one. What must hold: as in `socket`.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use crate::sys;
use crate::types::QueueId;

use super::rings::Ring;
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
