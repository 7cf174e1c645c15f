//! [`Frame`], the one owner of bytes in a chunk; [`Burst`], up to 64 of them moving together; and
//! [`FramePool`], where they come from and go home to.
//!
//! ```text
//! chunk   |- XDP headroom (256) -|------------------- data segment (room) -------------------|
//!                                 |<-- start -->|<--------- len --------->|
//!                                   push() grows     bytes()
//!                                   to the left      pull() shrinks from the left
//! ```
//!
//! A packet that is longer than the room of a chunk lies in a [`large`](FramePool::take_large) buffer: some chunks that follow each
//! other in memory, with one headroom, used as one. To everybody but the pool and the uplink its frame is a frame like any other, only with
//! more room, and its bytes are one slice; the uplink's kernel, which knows chunks only, is given it chunk by chunk
//! (`xsk/multi.rs`). A pool has large buffers only where a network's MTU needs them.
//!
//! What must hold:
//! - A chunk has at most one `Frame`, or is lent to the kernel, or lies in the pool: never two of these, whatever the kernel names. There are
//!   drivers that hand a chunk over twice (igb's, when it runs out of buffers): it is taken back once, and from the hand that it was lent to.
//!   That a driver still writes into what it gave back, nobody can see. `Frame` is not `Clone`; every function that can fail gives it back.
//! - A frame goes home through [`FramePool::put`], of whichever pool is at hand: one that belongs elsewhere waits there among the
//!   strangers until it is sent to its owner. One that is dropped on the floor is never reused, and the
//!   pool then keeps its memory mapped for ever instead of leaving the frame dangling.
//! - A pool knows which of its frames are under way on other workers, by flow bucket: such a flow must not change its way. No more
//!   than half of all are, and of the large buffers no more than half are anywhere but here or with the kernel when another one goes.
//!
//! Called by the ports (which fill and empty frames) and the stages (which read headers and hand frames on).

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::any::Any;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use arrayvec::ArrayVec;

use crate::clock::prefetch;
use crate::types::{Class, EndpointId, NetworkId, RemoteId, Route, Stage, UplinkId, WorkerId};

/// Frames that move together, at most.
pub const BURST: usize = 64;

/// The longest packet with its headers that a large buffer takes at least: an inner packet of [`INNER_MTU_MAX`] bytes, its Ethernet header
/// with a VLAN tag, and the longest outer headers (74 bytes: Ethernet, VLAN tag, IPv6, UDP, VXLAN), with something to spare.
pub const LARGE: usize = 9600;
/// The longest inner packet.
pub const INNER_MTU_MAX: usize = 9000;
const _: () = assert!(INNER_MTU_MAX + 18 + 74 <= LARGE);

/// Where a frame entered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Not classified yet, or sent by a VTEP that nobody knows.
    Unknown,
    /// From the underlay, sent by this VTEP.
    Remote(RemoteId),
    /// From a tenant.
    Endpoint(EndpointId),
    /// We made it ourselves, an answer: its target is known from the beginning.
    Ours,
}

/// Where a frame goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Target {
    /// Not looked up yet.
    Unknown,
    /// To a tenant on this host.
    Endpoint(EndpointId),
    /// To a tenant behind this VTEP.
    Remote(RemoteId),
    /// To every tenant of the network, and every remote if it came from a tenant; never back to its source.
    Flood(Flooding),
    /// Encapsulated: to the wire, over this uplink.
    Uplink(UplinkId),
}

/// How far a flooded frame has come: it visits each worker that has tenants of its network, one after the other. One from a tenant
/// begins where it entered, and goes to the remotes from there before it visits others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flooding {
    /// The worker that it began with, or is about to; none before that is known.
    pub first: WorkerId,
    /// A tenant or a remote got it: what others get are copies.
    pub given: bool,
}

impl Flooding {
    /// Not begun yet.
    pub const NEW: Flooding = Flooding { first: WorkerId::NONE, given: false };
}

/// What the stages found out about a frame; it travels in the handle, not in the chunk.
#[derive(Clone, Copy, Debug)]
pub struct Meta {
    /// Hash of the inner flow: of a frame from a tenant always, it chooses the outer source port; of one from the underlay once its way is
    /// looked up.
    pub flow_hash: u32,
    /// Valid once `source` is known.
    pub network: NetworkId,
    /// Where it came from.
    pub source: Source,
    /// Where it goes.
    pub target: Target,
    /// Who takes it through the steps that may run anywhere.
    pub route: Route,
}

impl Meta {
    /// Nothing known yet.
    pub const UNKNOWN: Meta = Meta {
        flow_hash: 0,
        network: NetworkId(NetworkId::LIMIT),
        source: Source::Unknown,
        target: Target::Unknown,
        route: Route::all(WorkerId(0)),
    };
}

/// The one owner of the bytes in a chunk.
#[derive(Debug)]
#[must_use = "a frame that is dropped is lost to its pool: put it back or hand it on"]
pub struct Frame {
    data: NonNull<u8>,
    room: u16,
    start: u16,
    len: u16,
    /// Whose pool it belongs to, in the lowest bits; its class; the highest bit while it is under way on other workers.
    home: u8,
    /// The step that is next, for one that waits in a ring.
    pub next: Stage,
    /// What is known about it.
    pub meta: Meta,
}

/// Set in [`Frame::home`] from when the frame first leaves its owner until it is home.
const AWAY: u8 = 0x80;
/// Where the class is in it, and how many bits the owner has.
const CLASS: u8 = 0x60;
const OWNER_BITS: u32 = 5;
const OWNER: u8 = 0x1f;

const _: () =
    assert!(WorkerId::LIMIT <= OWNER as usize + 1 && Class::LIMIT <= (CLASS >> OWNER_BITS) as usize + 1);

const _: () = assert!(size_of::<Frame>() <= 32, "two handles to a cache line");

// SAFETY: a frame owns its bytes alone (see the module's rules), so moving it to another thread moves them.
unsafe impl Send for Frame {}

impl Frame {
    /// The worker whose memory it lies in.
    #[inline]
    pub fn home(&self) -> WorkerId {
        WorkerId(self.home & OWNER)
    }

    /// Its priority class: its pool's as long as nobody has said.
    #[inline]
    pub fn class(&self) -> Class {
        Class((self.home & CLASS) >> OWNER_BITS)
    }

    /// Puts it into a class.
    #[inline]
    pub fn set_class(&mut self, class: Class) {
        self.home = self.home & !CLASS | class.0 << OWNER_BITS & CLASS;
    }

    /// Length of the packet in bytes.
    #[inline]
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// True when there is no packet in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Bytes in front of the packet that [`push`](Self::push) can take.
    #[inline]
    pub fn headroom(&self) -> usize {
        usize::from(self.start)
    }

    /// The packet.
    #[inline]
    pub fn bytes(&self) -> &[u8] {
        // SAFETY: `start + len <= room` (kept by every method that changes them), the chunk's memory outlives
        // the frame (see `FramePool::drop`) and this frame owns it alone, of all that run here.
        unsafe { std::slice::from_raw_parts(self.data.as_ptr().add(usize::from(self.start)), self.len()) }
    }

    /// Has the packet's first bytes brought into the cache: another core has written or read them.
    #[inline]
    pub fn prefetch(&self) {
        let mut lines = self.bytes().chunks(64);
        lines.by_ref().take(2).filter_map(<[u8]>::first).for_each(prefetch);
    }

    /// The packet, to be changed in place.
    #[inline]
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as in `bytes`, and `&mut self` makes this the only borrow.
        unsafe { std::slice::from_raw_parts_mut(self.data.as_ptr().add(usize::from(self.start)), self.len()) }
    }

    /// Takes `count` bytes off the front (a header that has been read). False, and no change, if there are fewer.
    #[inline]
    #[must_use]
    pub fn pull(&mut self, count: usize) -> bool {
        match u16::try_from(count) {
            Ok(count) if count <= self.len => {
                self.start += count;
                self.len -= count;
                true
            }
            _ => false,
        }
    }

    /// Grows the packet by `count` bytes at the front and shows them, to be written: they hold what the chunk
    /// last held. `None`, and no change, if the headroom is smaller.
    #[inline]
    #[must_use]
    pub fn push(&mut self, count: usize) -> Option<&mut [u8]> {
        let count = u16::try_from(count).ok().filter(|count| *count <= self.start)?;
        self.start -= count;
        self.len += count;
        self.bytes_mut().get_mut(..usize::from(count))
    }

    /// Cuts the packet to `len` bytes that begin `start` bytes into it. False, and no change, if it has not so many.
    #[inline]
    #[must_use]
    pub fn cut(&mut self, start: usize, len: usize) -> bool {
        let fits = start.checked_add(len).is_some_and(|end| end <= self.len());
        if fits {
            self.start += start as u16;
            self.len = len as u16;
        }
        fits
    }

    /// Cuts the packet to its first `len` bytes (link-layer padding behind it). False if it is shorter.
    #[inline]
    #[must_use]
    pub fn truncate(&mut self, len: usize) -> bool {
        match u16::try_from(len) {
            Ok(len) if len <= self.len => {
                self.len = len;
                true
            }
            _ => false,
        }
    }

    /// Puts more bytes behind the packet. False, and no change, if there is no room for them.
    #[must_use]
    pub(crate) fn append(&mut self, more: &[u8]) -> bool {
        let before = self.len();
        let fits = self.headroom() + before + more.len() <= usize::from(self.room);
        if fits {
            self.len += more.len() as u16;
            if let Some(end) = self.bytes_mut().get_mut(before..) {
                end.copy_from_slice(more);
            }
        }
        fits
    }

    /// Makes the packet `len` bytes that start `headroom` bytes into the data segment, and shows them, to be
    /// written: they hold what the chunk last held. `None`, and no change, if that does not fit.
    #[inline]
    #[must_use]
    pub fn reset(&mut self, headroom: usize, len: usize) -> Option<&mut [u8]> {
        let (start, len) = (u16::try_from(headroom).ok()?, u16::try_from(len).ok()?);
        start.checked_add(len).filter(|end| *end <= self.room)?;
        self.start = start;
        self.len = len;
        Some(self.bytes_mut())
    }
}

/// Up to [`BURST`] frames that move together. Made once and reused: nothing is allocated.
#[derive(Debug, Default)]
pub struct Burst {
    frames: ArrayVec<Frame, BURST>,
}

impl Burst {
    /// An empty one.
    pub fn new() -> Burst {
        Burst::default()
    }

    /// Adds a frame at the end. A full burst gives it back, so that it cannot leak.
    #[inline]
    pub fn push(&mut self, frame: Frame) -> Result<(), Frame> {
        self.frames.try_push(frame).map_err(|e| e.element())
    }

    /// Takes all frames out, first in first out.
    #[inline]
    pub fn drain(&mut self) -> impl Iterator<Item = Frame> + '_ {
        self.frames.drain(..)
    }

    /// Takes the first `count` frames out, or all if there are fewer, first in first out; the others move up.
    #[inline]
    pub fn drain_front(&mut self, count: usize) -> impl Iterator<Item = Frame> + '_ {
        self.frames.drain(..count.min(self.frames.len()))
    }

    /// Takes some of the frames out and gives them; the others keep their order. `which` has a bit for each frame, the lowest for the first.
    pub fn take_out(&mut self, which: u64) -> impl Iterator<Item = Frame> + '_ {
        const { assert!(BURST <= u64::BITS as usize, "a bit for each") }
        let mut kept = 0;
        for at in 0..self.frames.len() {
            if which >> at & 1 == 0 {
                self.frames.swap(kept, at);
                kept += 1;
            }
        }
        self.frames.drain(kept..)
    }

    /// The frame at the end.
    #[inline]
    pub fn last(&self) -> Option<&Frame> {
        self.frames.last()
    }

    /// Takes the frame at the end out.
    #[inline]
    pub fn pop(&mut self) -> Option<Frame> {
        self.frames.pop()
    }

    /// The frames, in order, to be changed in place.
    #[inline]
    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut Frame> {
        self.frames.iter_mut()
    }

    /// How many are in it.
    #[inline]
    pub fn len(&self) -> usize {
        self.frames.len()
    }

    /// How many more it takes.
    #[inline]
    pub fn room(&self) -> usize {
        self.frames.remaining_capacity()
    }

    /// True when none is in it.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.frames.is_empty()
    }

    /// The frames, in order.
    #[inline]
    pub fn iter(&self) -> impl Iterator<Item = &Frame> {
        self.frames.iter()
    }
}

/// Slices of the flow-hash space: what moves from worker to worker is one of these at a time.
pub const BUCKETS: usize = if cfg!(all(loom, test)) { 1 } else { 256 }; // a model has one flow, and tries each access

/// The bucket of a flow.
#[inline]
pub const fn bucket(flow_hash: u32) -> u8 {
    (flow_hash >> 24) as u8
}

/// A frame on its way home, where only its chunk and its bucket matter.
#[derive(Debug)]
pub struct Homing {
    data: NonNull<u8>,
    bucket: u8,
    home: u8,
}

// SAFETY: as for the frame that it was made of.
unsafe impl Send for Homing {}

impl Homing {
    /// The worker whose memory it lies in.
    #[inline]
    pub fn home(&self) -> WorkerId {
        WorkerId(self.home & !AWAY)
    }
}

/// How many frames of a pool are under way on other workers.
#[derive(Debug)]
struct Departures {
    by_bucket: Box<[u32; BUCKETS]>,
    total: u32,
}

impl Default for Departures {
    fn default() -> Departures {
        Departures { by_bucket: Box::new([0; BUCKETS]), total: 0 }
    }
}

impl Departures {
    #[inline]
    fn change(&mut self, bucket: u8, by: i32) {
        if let Some(count) = self.by_bucket.get_mut(usize::from(bucket)) {
            *count = count.wrapping_add_signed(by);
            self.total = self.total.wrapping_add_signed(by);
        }
    }
}

/// Frames of others that are done with between two looks at them: more than a worker handles then.
const STRANGERS: usize = 4 * BURST;

/// The large buffers of a pool: they lie behind its chunks, each of `parts` chunks.
#[derive(Debug, Default)]
struct LargeBuffers {
    parts: usize,
    room: u16,
    free: Vec<NonNull<u8>>,
    /// By buffer: how many of its chunks the kernel has to give back.
    lent: Box<[u8]>,
    /// Buffers of which it has some.
    lent_count: usize,
    /// Buffers under way on other workers.
    away: usize,
}

impl LargeBuffers {
    fn new(chunk_size: usize, headroom: usize, count: usize, address: impl Fn(usize) -> NonNull<u8>) -> Self {
        let parts = large_parts(chunk_size, headroom);
        LargeBuffers {
            parts,
            room: (parts * chunk_size - headroom) as u16,
            free: (0..count).rev().map(|index| address(index * parts)).collect(),
            lent: vec![0; count].into(),
            lent_count: 0,
            away: 0,
        }
    }
}

/// How many chunks a large buffer is made of.
pub(crate) const fn large_parts(chunk_size: usize, headroom: usize) -> usize {
    (headroom + LARGE).div_ceil(chunk_size)
}

/// A part of a large frame, as a descriptor names it: within one chunk.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Part {
    /// From the beginning of the pool's memory.
    pub(crate) address: usize,
    pub(crate) len: usize,
    /// Others follow.
    pub(crate) is_continued: bool,
}

/// One of the kernel's hands: a queue's rings for receiving, or for sending.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Hand(u16);

impl Hand {
    /// A chunk is in none.
    const NONE: Hand = Hand(0);

    /// Those of the pool's queue of this number, for receiving and for sending.
    pub(crate) const fn of_queue(number: u16) -> (Hand, Hand) {
        (Hand(number * 2 + 1), Hand(number * 2 + 2))
    }
}

/// The chunks of one memory area, and which of them are free.
pub struct FramePool {
    base: NonNull<u8>,
    chunk_log2: u32,
    chunk_count: usize,
    data_offset: u16,
    room: u16,
    free: Vec<NonNull<u8>>,
    /// Of each chunk, which of the kernel's hands it is in.
    hands: Box<[Hand]>,
    /// How many are in one.
    lent: usize,
    large: LargeBuffers,
    /// Whose it is.
    owner: WorkerId,
    /// [`Frame::home`] of a frame that is taken.
    fresh: u8,
    departures: Departures,
    /// Frames of other pools that are done with.
    strangers: Vec<Homing>,
    memory: ManuallyDrop<Box<dyn Any + Send>>,
}

// SAFETY: the pointers lead into `memory`, which is `Send` and owned here; frames own their parts of it.
unsafe impl Send for FramePool {}

impl FramePool {
    /// `count` chunks of ordinary memory, for tests and for ports that have no kernel behind them.
    ///
    /// # Panics
    /// If `chunk_size` is not a power of two between 512 and 32768, `headroom` does not leave room in it, or the
    /// system has no memory left. Called at start only.
    pub fn anonymous(chunk_size: usize, count: usize, headroom: usize) -> FramePool {
        FramePool::anonymous_with_large(chunk_size, count, headroom, 0)
    }

    /// The same with so many large buffers beside the chunks.
    ///
    /// # Panics
    /// As [`anonymous`](Self::anonymous).
    pub fn anonymous_with_large(chunk_size: usize, count: usize, headroom: usize, large: usize) -> FramePool {
        assert!(chunk_size.is_power_of_two() && (512..=32768).contains(&chunk_size) && headroom < chunk_size);
        let chunks = count + large * large_parts(chunk_size, headroom);
        let memory = HeapChunks::new(chunk_size * chunks.max(1));
        let base = memory.base;
        // SAFETY: `memory` is `chunk_size * chunks` bytes at `base`, owned by the box and used by nobody else.
        unsafe { FramePool::from_raw(base, chunk_size, (count, large), headroom, Box::new(memory)) }
    }

    /// Chunks of memory that somebody else made (a UMEM).
    ///
    /// # Safety
    /// `count` is how many chunks, and how many large buffers of [`large_parts`] chunks behind them.
    /// `memory` keeps `chunk_size` bytes for each of all these at `base` mapped until it is dropped, and nobody but this pool,
    /// its frames and whoever they are lent to touches them. `chunk_size` is a power of two of at most 32768 and
    /// `headroom` is smaller.
    pub(crate) unsafe fn from_raw(
        base: NonNull<u8>,
        chunk_size: usize,
        (count, large): (usize, usize),
        headroom: usize,
        memory: Box<dyn Any + Send>,
    ) -> FramePool {
        // Highest first, so that the first ones taken are the first in memory.
        // SAFETY: `index * chunk_size + headroom` is inside the area (see this function's contract).
        let data = |index: usize| unsafe { base.add(index * chunk_size + headroom) };
        let free = (0..count).rev().map(data).collect();
        let large = LargeBuffers::new(chunk_size, headroom, large, |index| data(count + index));
        FramePool {
            base,
            chunk_log2: chunk_size.trailing_zeros(),
            chunk_count: count,
            data_offset: headroom as u16,
            room: (chunk_size - headroom) as u16,
            free,
            hands: vec![Hand::NONE; count].into(),
            lent: 0,
            large,
            owner: WorkerId(0),
            fresh: Class::NORMAL.0 << OWNER_BITS,
            departures: Departures::default(),
            strangers: Vec::with_capacity(STRANGERS),
            memory: ManuallyDrop::new(memory),
        }
    }

    /// Takes a free chunk; its packet is empty and its metadata unknown. `None` when there is none left.
    #[inline]
    pub fn take(&mut self) -> Option<Frame> {
        let data = self.free.pop()?;
        Some(self.frame(data, 0, 0))
    }

    #[inline]
    fn frame(&self, data: NonNull<u8>, start: u16, len: u16) -> Frame {
        let (home, next) = (self.fresh, Stage::Classify);
        Frame { data, room: self.room, start, len, home, next, meta: Meta::UNKNOWN }
    }

    /// Takes a free large buffer, like [`take`](Self::take). `None` as well where there are none at all.
    #[cold]
    #[inline(never)]
    pub fn take_large(&mut self) -> Option<Frame> {
        let data = self.large.free.pop()?;
        Some(Frame { room: self.large.room, ..self.frame(data, 0, 0) })
    }

    /// Takes a chunk, or where that has no room for so many bytes (of packet and headroom) and there are large buffers, one of these.
    #[inline]
    pub fn take_for(&mut self, bytes: usize) -> Option<Frame> {
        if bytes <= usize::from(self.room) || self.large_capacity() == 0 {
            self.take()
        } else {
            self.take_large()
        }
    }

    /// The same for a copy of a flooded frame. The last eighth of the large buffers is not for copies: who floods long packets does not keep
    /// others from sending and receiving theirs.
    pub fn take_for_copy(&mut self, bytes: usize) -> Option<Frame> {
        let is_large = bytes > usize::from(self.room);
        if is_large && self.large_available() <= self.large_capacity() / 8 {
            return None;
        }
        self.take_for(bytes)
    }

    /// Takes a frame home. One of another worker's waits among the [`strangers`](Self::next_stranger) to be sent there.
    #[inline]
    pub fn put(&mut self, frame: Frame) {
        let homing =
            Homing { data: frame.data, bucket: bucket(frame.meta.flow_hash), home: frame.home & !CLASS };
        if homing.home == self.owner.0 {
            self.free_chunk(homing.data, false);
        } else {
            self.put_away(homing);
        }
    }

    /// Takes one home that was under way, or notes a stranger.
    fn put_away(&mut self, homing: Homing) {
        if homing.home() == self.owner {
            self.come_home(homing);
        } else {
            self.strangers.push(homing); // never grows: they are sent home after each burst
        }
    }

    /// Takes a frame home that another worker has done with.
    #[inline]
    pub fn come_home(&mut self, homing: Homing) {
        let was_away = homing.home & AWAY != 0;
        self.departures.change(homing.bucket, -i32::from(was_away));
        self.free_chunk(homing.data, was_away);
    }

    #[inline]
    fn free_chunk(&mut self, data: NonNull<u8>, was_away: bool) {
        if self.index_of(data).is_some() {
            self.free.push(data); // never grows: there are no more frames than the list has room for
        } else {
            self.free_large(data, was_away);
        }
    }

    /// A frame of another pool is a bug of ours: it is left alone, and never reused.
    #[cold]
    #[inline(never)]
    fn free_large(&mut self, data: NonNull<u8>, was_away: bool) {
        let ours = self.large_index(data).is_some();
        debug_assert!(ours, "a frame was put into a pool that it does not belong to");
        if ours {
            self.large.free.push(data); // as above
            self.large.away -= usize::from(was_away);
        }
    }

    /// A frame of another worker's that is done with here, the oldest last.
    #[inline]
    pub fn next_stranger(&mut self) -> Option<Homing> {
        self.strangers.pop()
    }

    /// The frame goes to another worker, while so many wait here, of which so many are large ones: from now on, if it is one of ours, it
    /// is under way until it is home. False, and it must stay, if it is one too many.
    #[inline]
    #[must_use]
    pub fn depart(&mut self, frame: &mut Frame, waiting: usize, large_waiting: usize) -> bool {
        if frame.home & !CLASS == self.owner.0 {
            if !self.can_spare_this(frame, waiting, large_waiting) {
                return false;
            }
            if self.is_large(frame) {
                self.large.away += 1;
            }
            frame.home |= AWAY;
            self.departures.change(bucket(frame.meta.flow_hash), 1);
        }
        true
    }

    /// While so many wait here, one more may be held up, there or here: half of all chunks are always left for what comes in and
    /// goes out, however long another worker stands still.
    #[inline]
    pub fn can_spare(&self, waiting: usize) -> bool {
        self.departures.total as usize + waiting < self.chunk_count / 2
    }

    /// The same for this frame of ours: if it is a large one, half of the large buffers are left, too, however many are in hand.
    #[inline]
    pub fn can_spare_this(&self, frame: &Frame, waiting: usize, large_waiting: usize) -> bool {
        self.can_spare(waiting) && (!self.is_large(frame) || self.can_spare_large(large_waiting))
    }

    /// Those with the kernel do not count: how many these may be is bounded apart ([`large_to_send`](Self::large_to_send)), and both bounds
    /// together leave some.
    #[cold]
    #[inline(never)]
    fn can_spare_large(&self, waiting: usize) -> bool {
        self.large.away + waiting < self.large_capacity().div_ceil(2)
    }

    /// How many large buffers the kernel may have at once, all sockets together: three of eight. It keeps what it was given to send for as
    /// long as the interface is down, or for ever if that was removed. Half of them may be held up on the way to other workers; so an eighth
    /// is always left for what comes in and goes elsewhere.
    pub(crate) fn large_to_send(&self) -> usize {
        self.large_capacity() * 3 / 8
    }

    /// Whether the frame, one of ours, lies in a large buffer.
    #[inline]
    pub fn is_large(&self, frame: &Frame) -> bool {
        frame.room > self.room
    }

    /// How many frames of this bucket are under way on other workers.
    #[inline]
    pub fn under_way(&self, bucket: u8) -> u32 {
        self.departures.by_bucket.get(usize::from(bucket)).copied().unwrap_or(0)
    }

    /// How many frames are under way on other workers.
    #[inline]
    pub fn all_under_way(&self) -> u32 {
        self.departures.total
    }

    /// Whose it is.
    #[inline]
    pub fn owner(&self) -> WorkerId {
        self.owner
    }

    /// From now on its frames are this worker's. Before the first is taken.
    pub fn set_owner(&mut self, owner: WorkerId) {
        debug_assert_eq!(self.free.len() + self.lent, self.chunk_count, "some are out with the old name");
        self.owner = owner;
        self.fresh = self.fresh & CLASS | owner.0;
    }

    /// From now on frames have this class when they are taken, and until somebody says otherwise; it is [`Class::NORMAL`] at first.
    pub fn set_class(&mut self, class: Class) {
        self.fresh = self.owner.0 | class.0 << OWNER_BITS & CLASS;
    }

    /// How many large buffers are free.
    pub fn large_available(&self) -> usize {
        self.large.free.len()
    }

    /// How many large buffers there are, whosever they are now.
    #[inline]
    pub fn large_capacity(&self) -> usize {
        self.large.lent.len()
    }

    /// How many chunks a large buffer is made of; at least one.
    pub(crate) fn large_parts(&self) -> usize {
        self.large.parts.max(1)
    }

    /// How many large buffers the kernel has.
    pub fn large_lent(&self) -> usize {
        self.large.lent_count
    }

    /// How many chunks are free.
    #[inline]
    pub fn available(&self) -> usize {
        self.free.len()
    }

    /// How many chunks there are; those of large buffers do not count.
    pub fn capacity(&self) -> usize {
        self.chunk_count
    }

    /// Bytes that a packet and its headroom may take together.
    pub fn room(&self) -> usize {
        usize::from(self.room)
    }

    /// Where the memory begins: no two pools that are alive begin at the same address.
    #[inline]
    pub(crate) fn base(&self) -> usize {
        self.base.as_ptr().addr()
    }

    /// Gives the chunk to the kernel (a fill or tx ring) and returns its index. A frame of another pool comes back.
    #[inline]
    pub(crate) fn lend(&mut self, frame: Frame, to: Hand) -> Result<u32, Frame> {
        match self.index_of(frame.data) {
            Some(index) => {
                if frame.home & AWAY != 0 {
                    self.departures.change(bucket(frame.meta.flow_hash), -1);
                }
                if let Some(hand) = self.hands.get_mut(index as usize) {
                    *hand = to;
                }
                self.lent += 1;
                Ok(index)
            }
            None => Err(frame),
        }
    }

    /// Takes a chunk back from the kernel, with a packet of `len` bytes at `start` in its data segment. `None` if
    /// the kernel named a chunk that this hand does not have (that of a large buffer's part is not one of these), or a span that is not there.
    #[inline]
    pub(crate) fn regain(&mut self, index: u32, start: usize, len: usize, from: Hand) -> Option<Frame> {
        let (start, len) = (u16::try_from(start).ok()?, u16::try_from(len).ok()?);
        start.checked_add(len).filter(|end| *end <= self.room)?;
        let index = index as usize;
        let hand = self.hands.get_mut(index).filter(|hand| **hand == from)?;
        *hand = Hand::NONE;
        self.lent -= 1;
        // SAFETY: the chunk is inside the area: there is an entry for it.
        let data = unsafe { self.base.add((index << self.chunk_log2) + usize::from(self.data_offset)) };
        Some(self.frame(data, start, len))
    }

    /// How many descriptors name the frame, if it is one of ours: one, or one for each chunk of a large buffer that its packet touches.
    pub(crate) fn parts(&self, frame: &Frame) -> usize {
        let chunk_size = 1 << self.chunk_log2;
        let start = usize::from(self.data_offset) + frame.headroom();
        (start + frame.len()).div_ceil(chunk_size).saturating_sub(start / chunk_size).max(1)
    }

    /// Gives a frame to the kernel, part by part: each is shown to `give`, in order. A large buffer is home when all of its parts are
    /// ([`regain_part`](Self::regain_part)); a chunk, which has one, is got back by [`regain`](Self::regain) as ever. A frame of another pool comes back.
    pub(crate) fn lend_parts(
        &mut self,
        frame: Frame,
        to: Hand,
        mut give: impl FnMut(Part),
    ) -> Result<(), Frame> {
        let chunk_size = 1 << self.chunk_log2;
        let offset = frame.data.as_ptr().addr().wrapping_sub(self.base.as_ptr().addr());
        let (mut address, mut left) = (offset.wrapping_add(frame.headroom()), frame.len());
        let parts = self.parts(&frame);
        if let Some(large) = self.large_index(frame.data) {
            if frame.home & AWAY != 0 {
                self.large.away -= 1;
                self.departures.change(bucket(frame.meta.flow_hash), -1);
            }
            if let Some(lent) = self.large.lent.get_mut(large) {
                *lent = parts as u8;
                self.large.lent_count += 1;
            }
        } else {
            let _index = self.lend(frame, to)?;
        }
        for _ in 0..parts {
            let len = left.min(chunk_size - address % chunk_size);
            left -= len;
            give(Part { address, len, is_continued: left > 0 });
            address += len;
        }
        Ok(())
    }

    /// Takes a chunk of a large buffer back from the kernel: true when it was the last one of its packet, and the buffer is home. `None` if no chunk of this number is lent so.
    #[cold]
    #[inline(never)]
    pub(crate) fn regain_part(&mut self, index: u32) -> Option<bool> {
        let large = (index as usize).checked_sub(self.chunk_count)?.checked_div(self.large.parts)?;
        let lent = self.large.lent.get_mut(large).filter(|lent| **lent > 0)?;
        *lent -= 1;
        if *lent > 0 {
            return Some(false);
        }
        let first = self.chunk_count + large * self.large.parts;
        // SAFETY: the buffer is inside the area: there is an entry for it.
        let data = unsafe { self.base.add((first << self.chunk_log2) + usize::from(self.data_offset)) };
        self.large.lent_count -= 1;
        self.large.free.push(data);
        Some(true)
    }

    /// Which chunk begins there, if it is one of ours.
    #[inline]
    fn index_of(&self, data: NonNull<u8>) -> Option<u32> {
        let offset = data.as_ptr().addr().wrapping_sub(self.base.as_ptr().addr());
        let index = offset >> self.chunk_log2;
        if index < self.chunk_count { u32::try_from(index).ok() } else { None }
    }

    /// Which large buffer begins there, if it is one of ours.
    fn large_index(&self, data: NonNull<u8>) -> Option<usize> {
        let offset = data.as_ptr().addr().checked_sub(self.base.as_ptr().addr())?;
        let index =
            (offset >> self.chunk_log2).checked_sub(self.chunk_count)?.checked_div(self.large.parts)?;
        (index < self.large.lent.len()).then_some(index)
    }
}

impl Drop for FramePool {
    fn drop(&mut self) {
        // Frames that are still out point into the memory: then it stays for ever. What was lent does not count:
        // whoever drops the pool has closed the sockets that it was lent to.
        let large_home = self.large.free.len() + self.large.lent_count;
        if self.free.len() + self.lent >= self.chunk_count && large_home >= self.large_capacity() {
            // SAFETY: dropped once, here, and not used after.
            unsafe { ManuallyDrop::drop(&mut self.memory) }
        }
    }
}

impl std::fmt::Debug for FramePool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FramePool")
            .field("capacity", &self.chunk_count)
            .field("available", &self.free.len())
            .field("lent", &self.lent)
            .field("large", &(self.large_capacity(), self.large_available(), self.large_lent()))
            .finish_non_exhaustive()
    }
}

/// Page-aligned zeroed memory.
struct HeapChunks {
    base: NonNull<u8>,
    layout: Layout,
}

// SAFETY: it owns the memory alone.
unsafe impl Send for HeapChunks {}

impl HeapChunks {
    fn new(bytes: usize) -> HeapChunks {
        let layout =
            Layout::from_size_align(bytes, 4096).unwrap_or_else(|_| panic!("{bytes} bytes of frames"));
        // SAFETY: the size is not zero.
        let base = unsafe { alloc_zeroed(layout) };
        match NonNull::new(base) {
            Some(base) => HeapChunks { base, layout },
            None => handle_alloc_error(layout),
        }
    }
}

impl Drop for HeapChunks {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn large_pool(chunk_size: usize) -> FramePool {
        FramePool::anonymous_with_large(chunk_size, 4, 256, 3)
    }

    /// Gives the frame to the kernel; returns what that was given.
    fn lend_all(pool: &mut FramePool, frame: Frame) -> Vec<Part> {
        let mut parts = Vec::new();
        pool.lend_parts(frame, SENDING, |part| parts.push(part)).unwrap();
        parts
    }

    const RECEIVING: Hand = Hand::of_queue(0).0;
    const SENDING: Hand = Hand::of_queue(0).1;

    fn assert_all_home(pool: &FramePool) {
        assert_eq!((pool.available(), pool.large_available(), pool.large_lent()), (4, 3, 0), "{pool:?}");
    }

    #[test]
    fn a_large_buffer_holds_the_longest_packet_in_one_piece() {
        for chunk_size in [2048, 4096] {
            let mut pool = large_pool(chunk_size);
            let mut frame = pool.take_for(74 + 9018).unwrap();
            frame.reset(74, 9018).unwrap().fill(1);
            frame.push(74).unwrap().fill(2);
            assert_eq!((frame.len(), frame.bytes()[73], frame.bytes()[74]), (9092, 2, 1));
            assert!(
                !frame.append(&[0; 4000]) && frame.append(&[3; 100]) && frame.bytes().ends_with(&[3; 100])
            );
            let other = pool.take_large().unwrap();
            assert!(other.data.as_ptr().addr() - frame.data.as_ptr().addr() >= frame.len());
            pool.put(frame);
            pool.put(other);
            assert_all_home(&pool);
        }
    }

    #[test]
    fn large_buffers_run_out_and_come_home_like_chunks() {
        let mut pool = large_pool(2048);
        let frames: Vec<Frame> = std::iter::from_fn(|| pool.take_large()).collect();
        assert_eq!((frames.len(), pool.available(), pool.take_for(5000).is_none()), (3, 4, true));
        frames.into_iter().for_each(|frame| pool.put(frame));
        assert_all_home(&pool);
        assert!(FramePool::anonymous(2048, 4, 256).take_large().is_none(), "only where they are wanted");
    }

    #[test]
    fn a_large_buffer_comes_home_from_another_worker_with_its_bucket() {
        let (mut pool, mut other) = (large_pool(2048), large_pool(2048));
        other.set_owner(WorkerId(1));
        let mut frame = pool.take_large().unwrap();
        frame.meta.flow_hash = 7 << 24;
        assert!(pool.depart(&mut frame, 0, 0));
        other.put(frame);
        assert_eq!((pool.under_way(7), other.large_available()), (1, 3));
        pool.come_home(other.next_stranger().unwrap());
        assert_eq!(pool.under_way(7), 0);
        assert_all_home(&pool);
        let mut sent = pool.take_large().unwrap();
        assert!(pool.depart(&mut sent, 0, 0));
        sent.reset(0, 100).unwrap();
        let parts = lend_all(&mut pool, sent);
        assert_eq!((parts.len(), pool.under_way(0)), (1, 0), "with the kernel it is under way no more");
    }

    #[test]
    fn half_of_the_large_buffers_are_left_whoever_stands_still() {
        let mut pool = FramePool::anonymous_with_large(2048, 100, 256, 8);
        // All are in hand, as a burst in rings of the smallest size has it.
        let mut frames: Vec<Frame> = std::iter::from_fn(|| pool.take_large()).collect();
        let mut more = frames.split_off(4);
        for frame in &mut frames {
            assert!(pool.can_spare_this(frame, 0, 0) && pool.depart(frame, 0, 0), "nothing is held up");
        }
        let mut fifth = more.pop().unwrap();
        assert!(
            !pool.can_spare_this(&fifth, 0, 0) && !pool.depart(&mut fifth, 0, 0),
            "of 8 there are 4 away"
        );
        let mut small = pool.take().unwrap();
        assert!(pool.depart(&mut small, 0, 0), "there are chunks");
        pool.put(frames.pop().unwrap());
        assert!(
            !pool.can_spare_this(&fifth, 1, 1) && pool.can_spare_this(&fifth, 10, 0),
            "who waits is held up"
        );
        assert!(pool.depart(&mut fifth, 0, 0));
        // What goes to the kernel is away no more.
        lend_all(&mut pool, fifth);
        assert!(pool.can_spare_this(&more[0], 0, 0));
        frames.into_iter().chain(more).chain([small]).for_each(|frame| pool.put(frame));
        assert_eq!((pool.all_under_way(), pool.large.away), (0, 0));
        assert_eq!((pool.large_available(), pool.large_lent()), (7, 1));
    }

    #[test]
    fn parts_of_a_large_buffer_are_no_chunks() {
        let mut pool = large_pool(2048);
        let mut frame = pool.take_large().unwrap();
        frame.reset(0, 9068).unwrap();
        let parts = lend_all(&mut pool, frame);
        let small = pool.take().unwrap();
        let lent = pool.lend(small, SENDING).unwrap();
        let before = format!("{pool:?}");
        for index in parts.iter().map(|part| (part.address >> 11) as u32).chain([19, u32::MAX]) {
            assert!(pool.regain(index, 0, 0, SENDING).is_none(), "{index}");
        }
        assert_eq!(format!("{pool:?}"), before);
        parts.iter().for_each(|part| give_back(&mut pool, (part.address >> 11) as u32));
        give_back(&mut pool, lent);
        assert_all_home(&pool);
    }

    #[test]
    fn the_kernel_gives_a_large_buffer_back_part_by_part() {
        let mut pool = large_pool(2048);
        let mut frame = pool.take_large().unwrap();
        frame.reset(0, 9068).unwrap();
        assert_eq!(pool.parts(&frame), 5);
        let parts = lend_all(&mut pool, frame);
        assert_eq!(parts.iter().map(|part| part.len).collect::<Vec<_>>(), [1792, 2048, 2048, 2048, 1132]);
        assert_eq!(parts.iter().map(|part| part.address >> 11).collect::<Vec<_>>(), [4, 5, 6, 7, 8]);
        assert_eq!(parts.iter().filter(|part| part.is_continued).count(), 4);
        for (part, is_last) in [(8, false), (4, false), (5, false), (6, false), (7, true)] {
            assert_eq!(pool.regain_part(part), Some(is_last));
        }
        for strange in [3, 4, 19, u32::MAX] {
            assert_eq!(pool.regain_part(strange), None, "{strange} is not lent so");
        }
        assert_all_home(&pool);
        let small = pool.take().unwrap();
        assert!(pool.lend_parts(FramePool::anonymous(2048, 1, 0).take().unwrap(), SENDING, |_| {}).is_err());
        pool.put(small);
    }

    proptest! {
        /// Whatever is taken, sent, handed over and given back, in whatever order: parts cover each packet, no buffer is in two
        /// hands, and in the end all are home.
        #[test]
        fn no_buffer_is_lost_or_given_twice(
            chunk_log2 in 11u32..=12,
            steps in proptest::collection::vec((0u8..5, 0usize..9600, 0usize..256), 1..200),
        ) {
            let mut pool = large_pool(1 << chunk_log2);
            let (mut held, mut lent) = (Vec::<Frame>::new(), Vec::<u32>::new());
            for (step, len, pick) in steps {
                match step {
                    0 | 1 => if let Some(mut frame) = pool.take_for(len) {
                        frame.reset(0, len.max(1)).unwrap().fill(held.len() as u8);
                        held.push(frame);
                    },
                    2 if !held.is_empty() => pool.put(held.swap_remove(pick % held.len())),
                    3 if !held.is_empty() => {
                        let frame = held.swap_remove(pick % held.len());
                        let (len, count, is_large) = (frame.len(), pool.parts(&frame), frame.room > pool.room);
                        let parts = lend_all(&mut pool, frame);
                        prop_assert_eq!(parts.iter().map(|part| part.len).sum::<usize>(), len);
                        prop_assert_eq!(parts.len(), count);
                        prop_assert!(parts.iter().all(|p| p.len > 0 && p.address % (1 << chunk_log2) + p.len <= 1 << chunk_log2));
                        prop_assert!(is_large || parts.len() == 1);
                        lent.extend(parts.iter().map(|part| (part.address >> chunk_log2) as u32));
                    }
                    4 if !lent.is_empty() => give_back(&mut pool, lent.swap_remove(pick % lent.len())),
                    _ => {}
                }
                let mut starts: Vec<usize> = held.iter().map(|frame| frame.data.as_ptr().addr()).collect();
                starts.sort_unstable();
                starts.dedup();
                prop_assert_eq!(starts.len(), held.len());
            }
            lent.drain(..).for_each(|index| give_back(&mut pool, index));
            held.drain(..).for_each(|frame| pool.put(frame));
            assert_all_home(&pool);
        }
    }

    fn give_back(pool: &mut FramePool, index: u32) {
        match pool.regain(index, 0, 0, SENDING) {
            Some(frame) => pool.put(frame),
            None => assert!(pool.regain_part(index).is_some()),
        }
    }

    #[test]
    fn a_header_is_pulled_off_and_another_pushed_in_its_place() {
        let mut pool = FramePool::anonymous(2048, 2, 256);
        let mut frame = pool.take().unwrap();
        frame.reset(50, 4).unwrap().copy_from_slice(b"abcd");
        assert!(frame.push(51).is_none(), "only 50 bytes of headroom");
        frame.push(2).unwrap().copy_from_slice(b"12");
        assert_eq!(frame.bytes(), b"12abcd");
        assert!(frame.pull(3));
        assert_eq!(frame.bytes(), b"bcd");
        assert!(!frame.pull(4));
        assert!(!frame.cut(1, 3) && !frame.cut(usize::MAX, 1) && frame.cut(0, 3) && frame.cut(0, 2));
        assert!(frame.truncate(1) && !frame.truncate(2));
        assert_eq!((frame.bytes(), frame.headroom()), (&b"b"[..], 51));
        pool.put(frame);
        assert_eq!(pool.available(), 2);
    }

    #[test]
    fn a_packet_never_leaves_its_chunk() {
        let mut pool = FramePool::anonymous(2048, 1, 256);
        let mut frame = pool.take().unwrap();
        assert_eq!(frame.reset(0, 1792).unwrap().len(), 1792);
        for (start, len) in [(1, 1792), (1793, 0), (usize::MAX, 1), (1, usize::MAX), (65535, 65535)] {
            assert!(frame.reset(start, len).is_none(), "{start}+{len}");
        }
        pool.put(frame);
    }

    #[test]
    fn a_pool_gives_each_chunk_once_and_runs_dry() {
        let mut pool = FramePool::anonymous(2048, 3, 256);
        let frames: Vec<Frame> = std::iter::from_fn(|| pool.take()).collect();
        let mut starts: Vec<_> = frames.iter().map(|f| f.bytes().as_ptr().addr()).collect();
        starts.dedup();
        assert_eq!((frames.len(), starts.len()), (3, 3));
        assert!(pool.take().is_none());
        frames.into_iter().for_each(|frame| pool.put(frame));
        assert_eq!(pool.available(), 3);
    }

    #[test]
    fn what_was_lent_comes_back_where_it_was() {
        let mut pool = FramePool::anonymous(2048, 2, 256);
        let mut frame = pool.take().unwrap();
        frame.reset(0, 3).unwrap().copy_from_slice(b"xyz");
        let index = pool.lend(frame, RECEIVING).unwrap();
        let frame = pool.regain(index, 1, 2, RECEIVING).unwrap();
        assert_eq!(frame.bytes(), b"yz");
        pool.put(frame);
    }

    #[test]
    fn the_kernel_gets_no_frame_for_a_chunk_that_it_does_not_have() {
        let mut pool = FramePool::anonymous(2048, 3, 256);
        let frames: Vec<Frame> = std::iter::from_fn(|| pool.take()).collect();
        let lent: Vec<u32> = frames.into_iter().map(|frame| pool.lend(frame, RECEIVING).unwrap()).collect();
        assert_eq!(lent, [0, 1, 2]);
        for (index, start, len) in
            [(3, 0, 1), (u32::MAX, 0, 1), (0, 0, 1793), (0, 1792, 1), (0, usize::MAX, 1)]
        {
            assert!(pool.regain(index, start, len, RECEIVING).is_none(), "chunk {index}: {start}+{len}");
        }
        let held = pool.regain(0, 0, 1, RECEIVING).unwrap();
        assert!(pool.regain(0, 0, 1, RECEIVING).is_none(), "named twice, and held by us");
        pool.put(held);
        assert!(pool.regain(0, 0, 1, RECEIVING).is_none(), "named twice, and in the pool");
        let held = pool.take().unwrap();
        assert_eq!(pool.lend(held, SENDING).unwrap(), 0);
        let (other, _) = Hand::of_queue(1);
        for hand in [RECEIVING, other, Hand::NONE] {
            assert!(pool.regain(0, 0, 1, hand).is_none(), "named twice, and being sent");
        }
        for (index, hand) in [(0, SENDING), (1, RECEIVING), (2, RECEIVING)] {
            let frame = pool.regain(index, 0, 1, hand).unwrap();
            pool.put(frame);
        }
        assert_eq!((pool.available(), pool.lent), (3, 0), "{pool:?}");
    }

    #[test]
    fn a_frame_of_another_pool_is_not_lent() {
        let (mut a, mut b) = (FramePool::anonymous(2048, 1, 256), FramePool::anonymous(2048, 1, 256));
        let frame = a.take().unwrap();
        let frame = b.lend(frame, SENDING).unwrap_err();
        a.put(frame);
    }

    #[test]
    fn frames_are_taken_out_of_a_burst_and_the_others_keep_their_order() {
        let mut pool = FramePool::anonymous(2048, 10, 256);
        for unwanted in [&[][..], &[0], &[9], &[2, 3, 7], &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9]] {
            let which = unwanted.iter().fold(0, |which, number| which | 1 << number);
            let mut burst = Burst::new();
            for number in 0..10 {
                let mut frame = pool.take().unwrap();
                frame.meta.flow_hash = number;
                burst.push(frame).unwrap();
            }
            let rest: Vec<Frame> = burst.take_out(which).collect();
            let mut given: Vec<u32> = rest.iter().map(|frame| frame.meta.flow_hash).collect();
            given.sort_unstable();
            assert_eq!(given, unwanted);
            let kept: Vec<u32> = burst.iter().map(|frame| frame.meta.flow_hash).collect();
            assert_eq!(kept, (0..10).filter(|number| !unwanted.contains(number)).collect::<Vec<_>>());
            burst.drain().chain(rest).for_each(|frame| pool.put(frame));
        }
    }

    #[test]
    fn a_full_burst_gives_the_frame_back() {
        let mut pool = FramePool::anonymous(2048, BURST + 1, 256);
        let mut burst = Burst::new();
        while burst.room() > 0 {
            burst.push(pool.take().unwrap()).unwrap();
        }
        let back = burst.push(pool.take().unwrap()).unwrap_err();
        pool.put(back);
        burst.drain().for_each(|frame| pool.put(frame));
        assert_eq!(pool.available(), BURST + 1);
    }
}
