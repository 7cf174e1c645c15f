//! The data half of one queue: the four rings of its AF_XDP socket, driven by one worker, and the two of a second socket if it has one.
//!
//! ```text
//!   pool --refill--> fill ring ..kernel.. rx ring --receive--> burst
//!                                     \.. urgent rx ring --receive_urgent--> burst
//!   burst --transmit--> tx ring ..kernel.. completion ring --complete--> pool
//!   burst --transmit_urgent--> urgent tx ring ../
//! ```
//!
//! Called by the worker that owns the [`WorkerPort`](super::WorkerPort) and by the generator. What must hold:
//! - The pool handed in is the port's own. Another one is a bug of the caller's: it is counted, and nothing is done. A
//!   frame of another one is counted and lost, never sent.
//! - A chunk is lent (`FramePool::lend`) exactly while it is in one of the kernel's hands. What the kernel names and this queue's rings do not
//!   have, is no frame: it is counted, and changes nothing.
//! - No lock, allocation, wait or panic in here; system calls in [`kick`](XskSocket::kick) only.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use serde::Serialize;
use xsk_rs::{CompQueue, FillQueue, FrameDesc, RxQueue, TxQueue};

use crate::frame::{BURST, Burst, Frame, FramePool, Hand};
use crate::sys;
use crate::types::{QueueId, UplinkId};

use super::multi::{self, Losses, Multi};
use super::umem::{Area, Sizes};
use super::urgent::Urgent;

/// What one transmit wake-up may leave undone: the kernel's copy mode sends so many per call (TX_BATCH_SIZE in
/// net/xdp/xsk.c; 16 in old kernels, which then need more turns).
pub(super) const KERNEL_TX_BATCH: u32 = 32;

/// One queue's socket, or its two.
#[derive(Debug)]
pub struct XskSocket {
    uplink: UplinkId,
    queue: QueueId,
    zero_copy: bool,
    area: Area,
    rx: RxQueue,
    fill: FillQueue,
    tx: TxQueue,
    completion: CompQueue,
    fd: libc::c_int,
    urgent: Option<Urgent>,
    /// Where packets may be longer than a chunk.
    multi: Option<Box<Multi>>,
    sizes: Sizes,
    /// The kernel's, by which the pool knows this queue's chunks.
    receiving: Hand,
    sending: Hand,
    /// Chunks in the fill ring, with the kernel, or in an rx ring.
    rx_lent: u32,
    /// Frames that lay in the rx rings at the last [`mark_arrived`](XskSocket::mark_arrived) and have not been taken: normal and urgent.
    marked: [u32; 2],
    /// Chunks in the (first) tx ring, with the kernel, or in the completion ring.
    tx_lent: u32,
    /// The fill ring got frames since it was last woken.
    filled: bool,
    watchdog: Watchdog,
    /// The interface was down at the last wake-up, or is gone.
    down: bool,
    rx_woken: u64,
    faults: u64,
    scratch: [FrameDesc; BURST],
}

/// What [`XskSocket::kick`] did, or what many calls did together.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Kicks {
    /// System calls that told the kernel of frames to send.
    pub transmit: u64,
    /// Those that the kernel put off (EAGAIN without progress, ENOBUFS, and EBUSY in zero-copy mode): tried again in a
    /// later turn.
    pub deferred: u64,
    /// Frames that the device dropped, each told by one of these system calls: what EBUSY means in the copy modes.
    /// `__xsk_generic_xmit` (net/xdp/xsk.c) answers so when `__dev_direct_xmit` gave NET_XMIT_DROP: no carrier, or, on a
    /// veth, a full ring at the other end. The chunk comes home like that of a frame which was sent.
    pub lost: u64,
    /// Those that found the interface down (ENETDOWN, ENXIO): frames wait in the ring until it is up.
    pub down: u64,
    /// Those that failed for another reason.
    pub failed: u64,
    /// System calls that told the kernel of free frames.
    pub receive: u64,
    /// Wake-ups because frames were outstanding without a completion for too long.
    pub watchdog: u64,
}

impl std::ops::AddAssign for Kicks {
    fn add_assign(&mut self, other: Kicks) {
        self.transmit += other.transmit;
        self.deferred += other.deferred;
        self.lost += other.lost;
        self.down += other.down;
        self.failed += other.failed;
        self.receive += other.receive;
        self.watchdog += other.watchdog;
    }
}

/// The four rings and what they were made with.
pub(super) struct Parts {
    pub(super) uplink: UplinkId,
    pub(super) queue: QueueId,
    pub(super) area: Area,
    pub(super) rx: RxQueue,
    pub(super) tx: TxQueue,
    pub(super) fill: FillQueue,
    pub(super) completion: CompQueue,
    pub(super) zero_copy: bool,
    pub(super) urgent: Option<Urgent>,
    pub(super) multi: Option<Box<Multi>>,
    pub(super) sizes: Sizes,
    pub(super) watchdog_ticks: u64,
}

/// One of the two tx rings.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum TxRing {
    Normal,
    Urgent,
}

impl XskSocket {
    /// `number`: no other queue of its pool has the same.
    pub(super) fn new(parts: Parts, number: u16) -> XskSocket {
        let fd = parts.rx.fd().as_raw_fd();
        let (receiving, sending) = Hand::of_queue(number);
        XskSocket {
            uplink: parts.uplink,
            queue: parts.queue,
            zero_copy: parts.zero_copy,
            area: parts.area,
            rx: parts.rx,
            fill: parts.fill,
            tx: parts.tx,
            completion: parts.completion,
            fd,
            urgent: parts.urgent,
            multi: parts.multi,
            sizes: parts.sizes,
            receiving,
            sending,
            rx_lent: 0,
            marked: [0; 2],
            tx_lent: 0,
            filled: false,
            watchdog: Watchdog::new(parts.watchdog_ticks),
            down: false,
            rx_woken: 0,
            faults: 0,
            scratch: [FrameDesc::default(); BURST],
        }
    }

    /// Which of the interfaces that were opened together it is bound to.
    #[inline]
    pub fn uplink(&self) -> UplinkId {
        self.uplink
    }

    /// Which queue it is bound to.
    pub fn queue(&self) -> QueueId {
        self.queue
    }

    /// Whether the kernel bound it with zero-copy.
    pub fn is_zero_copy(&self) -> bool {
        self.zero_copy
    }

    /// For `poll`: readable when frames have arrived (urgent ones do not count), writable when the tx ring has room.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.as_fd()
    }

    /// Frames given to [`transmit`](Self::transmit) and [`transmit_urgent`](Self::transmit_urgent) that have not come home yet.
    #[inline]
    pub fn tx_outstanding(&self) -> usize {
        self.tx_lent as usize + self.urgent_tx_outstanding()
    }

    /// Of these, the urgent ones.
    #[inline]
    pub fn urgent_tx_outstanding(&self) -> usize {
        self.urgent.as_ref().map_or(0, |urgent| urgent.tx_lent as usize)
    }

    /// Whether the queue has a second socket, for urgent frames.
    #[inline]
    pub fn is_early(&self) -> bool {
        self.urgent.is_some()
    }

    /// For `poll`: readable when urgent frames have arrived.
    pub(crate) fn urgent_fd(&self) -> Option<BorrowedFd<'_>> {
        self.urgent.as_ref().map(Urgent::fd)
    }

    /// Whether urgent frames have arrived. One load.
    #[inline]
    pub fn has_urgent(&self) -> bool {
        self.urgent.as_ref().is_some_and(|urgent| urgent.rx.arrived() > 0)
    }

    /// The interface was down at the last wake-up, so what is outstanding stays so until it is up, or for ever if it was removed.
    #[inline]
    pub fn is_down(&self) -> bool {
        self.down
    }

    /// How many frames may be taken from the pool for transmission now. Who keeps to it never takes what the fill
    /// ring needs.
    #[inline]
    pub fn tx_budget(&self) -> usize {
        self.sizes.tx_frames.saturating_sub(self.tx_lent) as usize
    }

    /// The same for urgent frames: theirs alone, whatever the others have.
    #[inline]
    pub fn urgent_tx_budget(&self) -> usize {
        self.urgent.as_ref().map_or(0, |urgent| urgent.tx_budget() as usize)
    }

    /// Frames lent for receiving: in the fill ring, with the kernel, or in an rx ring.
    pub fn rx_outstanding(&self) -> usize {
        self.rx_lent as usize
    }

    /// Descriptors by which the kernel named a chunk that it does not have or a span outside of one; chunks lost because a frame of
    /// another pool was to be sent; frames without a packet that were to be sent; and calls with a pool that is not the
    /// port's own, which do nothing else. 0 unless there is a bug, ours or a driver's.
    pub fn faults(&self) -> u64 {
        self.faults
    }

    /// Whether packets may be longer than a chunk.
    #[inline]
    pub fn is_multi_buffer(&self) -> bool {
        self.multi.is_some()
    }

    /// Packets that came in and were thrown away, since the last call: see [`Losses`].
    #[inline]
    pub fn take_losses(&mut self) -> Losses {
        self.multi.as_mut().map_or(Losses::default(), |multi| std::mem::take(&mut multi.losses))
    }

    /// Notes what lies in the rx rings now, for [`has_marked`](Self::has_marked).
    pub(crate) fn mark_arrived(&mut self) {
        self.marked = self.arrived();
    }

    /// Frames lie in the rx rings.
    pub(crate) fn has_arrived(&mut self) -> bool {
        self.arrived() != [0; 2]
    }

    /// How many in each.
    fn arrived(&mut self) -> [u32; 2] {
        let urgent = self.urgent.as_ref().map_or(0, |urgent| urgent.rx.arrived());
        let normal = match &self.multi {
            Some(multi) => multi.rx.arrived(),
            None => self.rx.nb_avail_exact(),
        };
        [normal, urgent]
    }

    /// Whether something of that is still there.
    pub(crate) fn has_marked(&self) -> bool {
        self.marked != [0; 2]
    }

    /// Whether the pool is the port's own; counted if not.
    #[inline]
    fn owns(&mut self, pool: &FramePool) -> bool {
        let ours = self.area.has(pool);
        self.faults += u64::from(!ours);
        ours
    }

    /// Moves what has arrived into `burst`, as many as it takes, and returns how many it got. Their metadata is unknown.
    #[inline]
    pub fn receive(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        if !self.owns(pool) {
            return 0;
        }
        if self.multi.is_some() {
            return self.receive_multi(pool, burst);
        }
        let room = burst.room();
        let mut received = 0;
        let Some(descriptors) = self.scratch.get_mut(..room) else { return 0 };
        // SAFETY: the ring and its descriptors are of this UMEM.
        let count = unsafe { self.rx.consume(descriptors) };
        for descriptor in descriptors.iter().take(count) {
            let (index, start) = self.area.locate(descriptor.addr());
            let length = descriptor.lengths().data();
            let frame = start.and_then(|start| pool.regain(index, start, length, self.receiving));
            match frame.map(|frame| burst.push(frame)) {
                Some(Ok(())) => received += 1,
                Some(Err(frame)) => pool.put(frame), // never: `room` was asked for
                None => self.faults += 1,
            }
        }
        self.rx_lent = self.rx_lent.saturating_sub(received as u32);
        self.marked[0] = self.marked[0].saturating_sub(count as u32);
        received
    }

    /// The same with urgent frames. None if there is no second socket.
    #[inline]
    pub fn receive_urgent(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        if !self.has_urgent() || !self.owns(pool) {
            return 0;
        }
        if self.multi.is_some() {
            return self.receive_urgent_multi(pool, burst);
        }
        let Some(urgent) = &mut self.urgent else { return 0 };
        let count = (urgent.rx.arrived() as usize).min(burst.room());
        let mut received = 0;
        for _ in 0..count {
            let descriptor = urgent.rx.take();
            let (index, start) = self.area.locate(descriptor.addr as usize);
            let frame =
                start.and_then(|start| pool.regain(index, start, descriptor.len as usize, self.receiving));
            match frame.map(|frame| burst.push(frame)) {
                Some(Ok(())) => received += 1,
                Some(Err(frame)) => pool.put(frame), // never: `room` was asked for
                None => self.faults += 1,
            }
        }
        urgent.rx.release();
        self.rx_lent = self.rx_lent.saturating_sub(received as u32);
        self.marked[1] = self.marked[1].saturating_sub(count as u32);
        received
    }

    /// Tops the fill ring up from the pool, in batches, and returns how many frames it took.
    #[inline]
    pub fn refill(&mut self, pool: &mut FramePool) -> usize {
        if !self.owns(pool) {
            return 0;
        }
        let mut total = 0;
        loop {
            match self.refill_batch(pool) {
                0 => break,
                count => total += count,
            }
        }
        self.filled |= total > 0;
        total
    }

    fn refill_batch(&mut self, pool: &mut FramePool) -> usize {
        let batch = self.sizes.batch();
        // What circulates is bounded: the pool has been dimensioned for a full fill ring and full rx rings.
        let share = self.sizes.receiving().saturating_sub(self.rx_lent);
        if self.fill.nb_free(batch) < batch || share < batch {
            return 0;
        }
        let mut count = 0;
        for slot in self.scratch.iter_mut().take(batch as usize) {
            let Some(frame) = pool.take() else { break };
            let Some(descriptor) = lend(pool, &self.area, frame, self.receiving, &mut self.faults) else {
                continue;
            };
            *slot = descriptor;
            count += 1;
        }
        let Some(descriptors) = self.scratch.get(..count) else { return 0 };
        // SAFETY: chunks of this UMEM, lent just now, so nobody else has them. There is room (checked above, and only
        // this function puts anything into the ring), so all of them are taken.
        let taken = unsafe { self.fill.produce(descriptors) };
        debug_assert_eq!(taken, count);
        self.rx_lent += taken as u32;
        taken
    }

    /// Hands frames from the front of `burst`, in order, to the tx ring and returns how many it got; what does not fit
    /// stays. Of long packets so many stay that others find large buffers, too, however long the interface is down. What cannot be
    /// sent at all is taken out and counted in [`faults`](Self::faults), not in the result. The kernel is told by [`kick`](Self::kick).
    ///
    /// A packet must begin where the data segment does (`headroom() == 0`); one that does not is moved there first,
    /// which costs a copy: give frames just the headroom that their headers fill.
    #[inline]
    pub fn transmit(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        if !self.owns(pool) {
            return 0;
        }
        if self.multi.is_some() {
            return self.transmit_multi(pool, burst);
        }
        let wanted = burst.len().min(self.tx_budget());
        if wanted == 0 {
            return 0;
        }
        let room = self.tx.nb_free(wanted as u32) as usize;
        if self.tx_lent == 0 {
            self.watchdog.reset = true;
        }
        let mut count = 0;
        for frame in burst.drain_front(wanted.min(room)) {
            let length = frame.len();
            let Some(frame) = sendable(frame, pool, &mut self.faults) else { continue };
            let Some(mut descriptor) = lend(pool, &self.area, frame, self.sending, &mut self.faults) else {
                continue;
            };
            // SAFETY: a chunk of this UMEM, lent just now: no frame has it, and the kernel not yet.
            unsafe { self.area.umem.data_mut(&mut descriptor) }.cursor().set_pos(length);
            if let Some(slot) = self.scratch.get_mut(count) {
                *slot = descriptor;
                count += 1;
            }
        }
        let Some(descriptors) = self.scratch.get(..count) else { return 0 };
        // SAFETY: chunks of this UMEM, lent above, so nobody else has them. There is room: no more were drained.
        let produced = unsafe { self.tx.produce(descriptors) };
        debug_assert_eq!(produced, count);
        self.tx_lent += produced as u32;
        produced
    }

    /// The same on the second socket, with a ring and a budget of its own. None if there is none.
    #[inline]
    pub fn transmit_urgent(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        if self.urgent.is_none() || burst.is_empty() || !self.owns(pool) {
            return 0;
        }
        if self.multi.is_some() {
            return self.transmit_urgent_multi(pool, burst);
        }
        let Some(urgent) = &mut self.urgent else { return 0 };
        let wanted = burst.len().min(urgent.tx_budget() as usize);
        let mut count = 0;
        for frame in burst.drain_front(wanted) {
            let length = frame.len() as u32;
            let Some(frame) = sendable(frame, pool, &mut self.faults) else { continue };
            let Some(descriptor) = lend(pool, &self.area, frame, self.sending, &mut self.faults) else {
                continue;
            };
            let (index, _) = self.area.locate(descriptor.addr());
            if urgent.send(index, descriptor.addr() as u64, length, 0) {
                count += 1;
            } else {
                self.faults += 1; // never: there is room for what the budget allows, and the chunk is one of the UMEM's
            }
        }
        urgent.tx.publish();
        count
    }

    /// Brings frames home that have been sent, on either socket, and returns how many came.
    #[inline]
    pub fn complete(&mut self, pool: &mut FramePool) -> usize {
        if !self.owns(pool) {
            return 0;
        }
        let mut total = 0;
        while self.tx_outstanding() > 0 {
            // SAFETY: the ring and its descriptors are of this UMEM.
            let count = unsafe { self.completion.consume(&mut self.scratch) };
            let mut normal = 0;
            for descriptor in self.scratch.iter().take(count) {
                let (index, _) = self.area.locate(descriptor.addr());
                let is_urgent = self.urgent.as_mut().is_some_and(|urgent| urgent.completes(index));
                normal += u32::from(!is_urgent);
                match pool.regain(index, 0, 0, self.sending) {
                    Some(frame) => {
                        pool.put(frame);
                        total += 1;
                    }
                    None => match part_home(pool, &mut self.multi, index, is_urgent) {
                        Some(is_last) => total += usize::from(is_last),
                        None => self.faults += 1,
                    },
                }
            }
            self.tx_lent = self.tx_lent.saturating_sub(normal);
            self.watchdog.reset |= normal > 0;
            if count < BURST {
                break;
            }
        }
        total
    }

    /// Wakes the kernel where it must be woken: for frames in the tx ring, for free frames in the fill ring, and when
    /// nothing has come back for too long. Once per turn of the loop; `now` is in the ticks of
    /// [`XskConfig::watchdog_ticks`](super::XskConfig::watchdog_ticks).
    #[inline]
    pub fn kick(&mut self, now: u64) -> Kicks {
        let mut kicks = self.kick_urgent(now);
        if self.tx_lent > 0 {
            // While the interface is down, the watchdog's pace is enough to find out that it is up again.
            if !self.down {
                self.kick_transmit(TxRing::Normal, &mut kicks);
            }
            if self.watchdog.expired(now) {
                kicks.watchdog += 1;
                self.wake_transmit(TxRing::Normal, &mut kicks);
            }
        }
        if self.fill.needs_wakeup() {
            self.kick_receive(now, &mut kicks);
        }
        kicks
    }

    /// Its first part: for urgent frames alone. Whoever does not want them to wait for the end of the turn calls it earlier as well.
    #[inline]
    pub fn kick_urgent(&mut self, now: u64) -> Kicks {
        let mut kicks = Kicks::default();
        if self.urgent_tx_outstanding() > 0 {
            if !self.down {
                self.kick_transmit(TxRing::Urgent, &mut kicks);
            }
            // Each ring has a watchdog: what comes home to one says nothing about the other.
            if self.urgent.as_mut().is_some_and(|urgent| urgent.watchdog.expired(now)) {
                kicks.watchdog += 1;
                self.wake_transmit(TxRing::Urgent, &mut kicks);
            }
        }
        kicks
    }

    /// At most one call per batch that the kernel takes, and none after one that brought nothing.
    fn kick_transmit(&mut self, ring: TxRing, kicks: &mut Kicks) {
        let mut pending = self.tx_pending(ring);
        let mut calls = pending.div_ceil(KERNEL_TX_BATCH);
        // Copy mode sends in the call only. A zero-copy driver that is at work already says that it needs no call.
        while calls > 0 && pending > 0 && (!self.zero_copy || self.tx_needs_wakeup(ring)) {
            calls -= 1;
            let again = self.wake_transmit(ring, kicks);
            let left = self.tx_pending(ring);
            if left >= pending {
                // A zero-copy driver goes on by itself; copy mode is tried again in the next turn.
                kicks.deferred += u64::from(again && !self.zero_copy);
                break;
            }
            if !again {
                break;
            }
            pending = left;
        }
    }

    /// One call. True unless the kernel has said that there is no use in another one now.
    fn wake_transmit(&mut self, ring: TxRing, kicks: &mut Kicks) -> bool {
        kicks.transmit += 1;
        self.down = false;
        let fd = match (ring, &self.urgent) {
            (TxRing::Urgent, Some(urgent)) => urgent.raw_fd(),
            _ => self.fd,
        };
        match sys::wake_transmit(fd) {
            // EAGAIN from copy mode also means that its batch is full and more is in the ring.
            Ok(()) | Err(libc::EAGAIN) => return true,
            // Copy mode has taken the frame out of the ring, and will complete it, but the device has dropped it.
            Err(libc::EBUSY) if !self.zero_copy => kicks.lost += 1,
            Err(libc::EBUSY | libc::ENOBUFS) => kicks.deferred += 1,
            Err(libc::ENETDOWN | libc::ENXIO) => {
                kicks.down += 1;
                self.down = true;
            }
            Err(_) => kicks.failed += 1,
        }
        false
    }

    /// Only after new frames were put in, or when the watchdog's time has passed: a driver that is out of frames keeps
    /// asking.
    #[cold]
    fn kick_receive(&mut self, now: u64, kicks: &mut Kicks) {
        if self.filled || now.wrapping_sub(self.rx_woken) >= self.watchdog.limit {
            self.filled = false;
            self.rx_woken = now;
            kicks.receive += 1;
            // Whatever it answers (nothing to read, interface down), there is nothing to do but to try again later.
            let _ = sys::wake_receive(self.fd);
        }
    }

    /// Descriptors in a tx ring that the kernel has not taken.
    fn tx_pending(&mut self, ring: TxRing) -> u32 {
        match (ring, &self.urgent) {
            (TxRing::Urgent, Some(urgent)) => urgent.tx.pending(),
            _ => match &self.multi {
                Some(multi) => multi.tx.pending(),
                None => self.sizes.rings.saturating_sub(self.tx.nb_free_exact()),
            },
        }
    }

    fn tx_needs_wakeup(&self, ring: TxRing) -> bool {
        match (ring, &self.urgent) {
            (TxRing::Urgent, Some(urgent)) => urgent.tx.needs_wakeup(),
            _ => self.tx.needs_wakeup(),
        }
    }
}

impl AsFd for XskSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the queues keep the socket open as long as `self` lives.
        unsafe { BorrowedFd::borrow_raw(self.fd) }
    }
}

/// The ways of the same name, where packets may be longer than a chunk. See `multi`.
impl XskSocket {
    #[cold]
    #[inline(never)]
    fn receive_multi(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        let Some(multi) = self.multi.as_deref_mut() else { return 0 };
        let before = burst.len();
        let Multi { rx, assembly, losses, .. } = multi;
        let from = (rx, self.receiving, losses, &mut self.faults);
        let (taken, back) = assembly.receive(from, &self.area, pool, burst);
        self.rx_lent = self.rx_lent.saturating_sub(back);
        self.marked[0] = self.marked[0].saturating_sub(taken);
        burst.len() - before
    }

    #[cold]
    #[inline(never)]
    fn receive_urgent_multi(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        let (Some(multi), Some(urgent)) = (self.multi.as_deref_mut(), &mut self.urgent) else { return 0 };
        let before = burst.len();
        let Multi { urgent_assembly, losses, .. } = multi;
        let from = (&mut urgent.rx, self.receiving, losses, &mut self.faults);
        let (taken, back) = urgent_assembly.receive(from, &self.area, pool, burst);
        self.rx_lent = self.rx_lent.saturating_sub(back);
        self.marked[1] = self.marked[1].saturating_sub(taken);
        burst.len() - before
    }

    #[cold]
    #[inline(never)]
    fn transmit_multi(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        let budget = self.tx_budget();
        let Some(Multi { tx, large, .. }) = self.multi.as_deref_mut() else { return 0 };
        let room = budget.min(tx.room() as usize);
        if self.tx_lent == 0 {
            self.watchdog.reset = true;
        }
        let mut lent = 0;
        let count = multi::send((room, large, self.sending), pool, burst, &mut self.faults, |part| {
            lent += 1;
            tx.put(part.address as u64, part.len as u32, multi::options(part))
        });
        tx.publish();
        self.tx_lent += lent;
        count
    }

    #[cold]
    #[inline(never)]
    fn transmit_urgent_multi(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        let (Some(multi), Some(urgent)) = (self.multi.as_deref_mut(), &mut self.urgent) else { return 0 };
        let room = urgent.tx_budget() as usize;
        let area = &self.area;
        let count = multi::send(
            (room, &mut multi.urgent_large, self.sending),
            pool,
            burst,
            &mut self.faults,
            |part| {
                let (index, _) = area.locate(part.address);
                urgent.send(index, part.address as u64, part.len as u32, multi::options(part))
            },
        );
        urgent.tx.publish();
        count
    }
}

/// A part of a large buffer was sent: true if the buffer is home with it. `None` if none is lent so.
#[cold]
#[inline(never)]
fn part_home(
    pool: &mut FramePool,
    multi: &mut Option<Box<Multi>>,
    index: u32,
    is_urgent: bool,
) -> Option<bool> {
    let is_last = pool.regain_part(index)?;
    if let Some(multi) = multi.as_mut().filter(|_| is_last) {
        multi.large_home(is_urgent);
    }
    Some(is_last)
}

/// The frame as a descriptor can name it. One without a packet the kernel would refuse and never give back: it goes home, and is counted.
#[inline]
fn sendable(mut frame: Frame, pool: &mut FramePool, faults: &mut u64) -> Option<Frame> {
    if !frame.is_empty() && (frame.headroom() == 0 || move_to_start(&mut frame)) {
        return Some(frame);
    }
    *faults += 1;
    pool.put(frame);
    None
}

/// Lends a frame's chunk. A frame of another pool is lost, and counted.
#[inline]
fn lend(pool: &mut FramePool, area: &Area, frame: Frame, to: Hand, faults: &mut u64) -> Option<FrameDesc> {
    let descriptor = pool.lend(frame, to).ok().and_then(|index| area.descriptor(index));
    if descriptor.is_none() {
        *faults += 1;
    }
    descriptor
}

/// Moves the packet to the start of the data segment: a descriptor cannot point anywhere else.
#[cold]
fn move_to_start(frame: &mut Frame) -> bool {
    let (headroom, length) = (frame.headroom(), frame.len());
    let Some(segment) = frame.reset(0, headroom + length) else { return false };
    segment.copy_within(headroom.., 0);
    frame.truncate(length)
}

/// Finds out that frames are outstanding and nothing comes back.
#[derive(Debug)]
pub(super) struct Watchdog {
    /// After so many ticks.
    limit: u64,
    since: u64,
    /// Something moved: count from the next look on.
    pub(super) reset: bool,
}

impl Watchdog {
    pub(super) fn new(limit: u64) -> Watchdog {
        Watchdog { limit, since: 0, reset: true }
    }

    #[inline]
    fn expired(&mut self, now: u64) -> bool {
        if !self.reset && now.wrapping_sub(self.since) < self.limit {
            return false;
        }
        self.since = now;
        !std::mem::take(&mut self.reset)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_is_moved_to_the_start_of_its_chunk() {
        let mut pool = FramePool::anonymous(2048, 1, 256);
        let mut frame = pool.take().unwrap();
        frame.reset(3, 5).unwrap().copy_from_slice(b"hello");
        assert!(move_to_start(&mut frame));
        assert_eq!((frame.headroom(), frame.bytes()), (0, &b"hello"[..]));
        pool.put(frame);
    }

    #[test]
    fn a_packet_at_the_far_end_of_its_chunk_is_moved_whole() {
        let mut pool = FramePool::anonymous(2048, 1, 256);
        let mut frame = pool.take().unwrap();
        frame.reset(50, 1742).unwrap().fill(7);
        assert!(move_to_start(&mut frame));
        assert_eq!((frame.headroom(), frame.len()), (0, 1742));
        assert!(frame.bytes().iter().all(|byte| *byte == 7));
        pool.put(frame);
    }

    #[test]
    fn the_watchdog_bites_only_when_nothing_moves() {
        let mut dog = Watchdog::new(10);
        assert!(!dog.expired(100), "counting begins here");
        assert!(!dog.expired(109));
        assert!(dog.expired(110));
        assert!(!dog.expired(119), "and again after the same time");
        dog.reset = true;
        assert!(!dog.expired(125));
        assert!(!dog.expired(134));
        assert!(dog.expired(135));
    }
}
