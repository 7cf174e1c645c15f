//! One ring in shared memory: its header words and its descriptors, at the protocol's offsets.
//!
//! ```text
//! ring:  cookie u32 @0 | flags u16 @4 (bit 0 MASK_INT) | head u16 @6 | … | tail u16 @64 | … | descriptors @128
//! desc:  flags u16 @0 (bit 0 NEXT) | region u16 @2 | length u32 @4 | offset u32 @8 | metadata u32 @12
//! ```
//! A ring's place is checked once, when it is made: all of it lies in one region, 8-byte aligned, and a slot number is masked to
//! the ring's size. So its accesses need no further check, and are atomic (header words) or volatile (descriptor halves).

use std::fmt;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU32, Ordering, fence};

use crate::cursor::Indices;
use crate::error::Reject;
use crate::message::LOG2_MAX;
use crate::region::{Regions, prefetch};

/// Bytes of a ring's header, and of one descriptor.
pub(crate) const HEADER_BYTES: u32 = 128;
pub(crate) const DESCRIPTOR_BYTES: u32 = 16;
/// What a ring starts with.
const COOKIE: u32 = 0x03E3_1F20;
const FLAGS_AT: usize = 4;
const HEAD_AT: usize = 6;
const TAIL_AT: usize = 64;
const MASK_INT: u16 = 1;
/// The descriptor flag of all but the last piece of a chain.
const NEXT: u16 = 1;

/// Which side of the connection we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Listens, maps the client's memory, owns every `tail` ("master" in older texts).
    Server,
    /// Connects, provides all memory, owns every `head` ("slave").
    Client,
}

/// Where a ring lies.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RingPlace {
    pub region: u16,
    pub offset: u32,
    pub log2: u8,
}

/// Bytes of a ring with `1 << log2` slots.
pub(crate) const fn ring_bytes(log2: u8) -> u32 {
    HEADER_BYTES + (DESCRIPTOR_BYTES << log2)
}

/// A private copy of one descriptor.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Descriptor {
    pub flags: u16,
    pub region: u16,
    pub length: u32,
    pub offset: u32,
}

impl Descriptor {
    pub fn is_chained(&self) -> bool {
        self.flags & NEXT != 0
    }

    /// The same buffer with `length` bytes in it, the last of its packet or not.
    #[inline(always)]
    pub fn filled(self, length: u32, is_last: bool) -> Self {
        Self { flags: if is_last { 0 } else { NEXT }, length, ..self }
    }

    /// From its two halves as they lie in memory.
    #[inline(always)]
    pub fn from_halves(first: u64, second: u64) -> Self {
        let [f0, f1, r0, r1, l0, l1, l2, l3] = first.to_ne_bytes();
        let [o0, o1, o2, o3, ..] = second.to_ne_bytes();
        Self {
            flags: u16::from_ne_bytes([f0, f1]),
            region: u16::from_ne_bytes([r0, r1]),
            length: u32::from_ne_bytes([l0, l1, l2, l3]),
            offset: u32::from_ne_bytes([o0, o1, o2, o3]),
        }
    }

    /// As it lies in memory, with metadata 0: small enough to be handed on in registers.
    #[inline(always)]
    pub fn halves(&self) -> (u64, u64) {
        (self.first_half(), self.second_half())
    }

    #[inline(always)]
    fn first_half(&self) -> u64 {
        let ([f0, f1], [r0, r1]) = (self.flags.to_ne_bytes(), self.region.to_ne_bytes());
        let [l0, l1, l2, l3] = self.length.to_ne_bytes();
        u64::from_ne_bytes([f0, f1, r0, r1, l0, l1, l2, l3])
    }

    /// With metadata 0.
    #[inline(always)]
    fn second_half(&self) -> u64 {
        let [o0, o1, o2, o3] = self.offset.to_ne_bytes();
        u64::from_ne_bytes([o0, o1, o2, o3, 0, 0, 0, 0])
    }
}

/// One ring as one side uses it.
pub(crate) struct RingMemory {
    base: NonNull<u8>,
    /// The index that we write, and the one that the peer writes.
    own: NonNull<u8>,
    peer: NonNull<u8>,
    slot_mask: u16,
    /// Whether `regions` are guarded against being taken away: unsealed ones only.
    is_guarded: bool,
    regions: Arc<Regions>,
}

// SAFETY: the pointers lead into mappings that `regions` keeps alive and that are valid in every thread.
unsafe impl Send for RingMemory {}

/// A look at a ring from afar: whether its peer has moved its index since. It is small and asks for one cache line only, so one
/// thread can keep an eye on thousands of quiet rings.
pub struct Watch {
    word: NonNull<u8>,
    seen: u16,
    _regions: Arc<Regions>,
}

// SAFETY: the pointer leads into a mapping that `_regions` keeps alive and that is valid in every thread.
unsafe impl Send for Watch {}

impl Watch {
    /// Whether the peer's index is another than when the watch began. What it says is not believed: ask the ring. Memory that was taken
    /// away ([`guard_memory`](crate::guard_memory)) reads as 0, so where the index was 0 its loss does not show here: ask the ring now
    /// and then all the same.
    #[inline(always)]
    pub fn has_moved(&self) -> bool {
        // SAFETY: `RingMemory::watch` gave the address of an index: 2-byte aligned and mapped while `_regions` lives; every
        // access of ours to it is atomic.
        let word = unsafe { AtomicU16::from_ptr(self.word.as_ptr().cast()) };
        word.load(Ordering::Relaxed) != self.seen
    }

    /// Asks the processor to fetch what [`has_moved`](Self::has_moved) will look at. Only a hint.
    #[inline(always)]
    pub fn prefetch(&self) {
        prefetch(self.word);
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").field("seen", &self.seen).finish_non_exhaustive()
    }
}

impl RingMemory {
    /// The ring at `place`, if it can be there. A server also checks the cookie; a client writes the header.
    pub fn new(regions: Arc<Regions>, place: RingPlace, role: Role) -> Result<Self, Reject> {
        if !(1..=LOG2_MAX).contains(&place.log2) {
            return Err(Reject::RingSize { log2: place.log2 });
        }
        let span = regions.span(place.region, place.offset, ring_bytes(place.log2));
        let base = span.map_err(|_| Reject::RingOutside)?.start();
        // Mappings start on a page. The indexes need 2-byte and the descriptor halves 8-byte alignment; every known peer
        // has 16 or more.
        if !place.offset.is_multiple_of(8) {
            return Err(Reject::RingMisaligned);
        }
        // SAFETY: the header's 128 bytes lie inside the span.
        let (head, tail) = unsafe { (base.add(HEAD_AT), base.add(TAIL_AT)) };
        let (own, peer) = match role {
            Role::Server => (tail, head),
            Role::Client => (head, tail),
        };
        let is_guarded = regions.is_guarded();
        let ring = Self { base, own, peer, slot_mask: (1 << place.log2) - 1, is_guarded, regions };
        match role {
            Role::Server if ring.cookie().load(Ordering::Relaxed) != COOKIE => {
                return Err(Reject::RingCookie);
            }
            Role::Server => {}
            Role::Client => ring.cookie().store(COOKIE, Ordering::Relaxed),
        }
        Ok(ring)
    }

    pub fn size(&self) -> u16 {
        self.slot_mask + 1
    }

    /// For the time until the peer's index is no longer `seen`.
    pub fn watch(&self, seen: u16) -> Watch {
        Watch { word: self.peer, seen, _regions: Arc::clone(&self.regions) }
    }

    pub fn regions(&self) -> &Arc<Regions> {
        &self.regions
    }

    /// Our own index as it stands in memory: only to start from, when a connection is made.
    pub fn load_own(&self) -> u16 {
        self.word(self.own).load(Ordering::Acquire)
    }

    fn cookie(&self) -> &AtomicU32 {
        // SAFETY: the first four bytes of the ring, 8-byte aligned (checked in `new`), mapped while `self` lives; every access
        // of ours to them is atomic.
        unsafe { AtomicU32::from_ptr(self.base.as_ptr().cast()) }
    }

    #[inline(always)]
    fn word(&self, at: NonNull<u8>) -> &AtomicU16 {
        // SAFETY: called with `own`, `peer` and the flags' address only: even offsets in the header of a ring that is 8-byte
        // aligned and mapped while `self` lives; every access of ours to them is atomic.
        unsafe { AtomicU16::from_ptr(at.as_ptr().cast()) }
    }

    #[inline(always)]
    fn flags(&self) -> &AtomicU16 {
        // SAFETY: inside the header, see `new`.
        self.word(unsafe { self.base.add(FLAGS_AT) })
    }

    /// The address of a slot's descriptor: two aligned u64.
    #[inline(always)]
    fn slot(&self, index: u16) -> *mut u64 {
        let slot = usize::from(index & self.slot_mask);
        // SAFETY: slot < size, so the descriptor ends inside `ring_bytes`, which `new` has checked to be mapped.
        unsafe { self.base.add(HEADER_BYTES as usize + slot * DESCRIPTOR_BYTES as usize) }.as_ptr().cast()
    }

    /// Copies a descriptor out, each byte once. From here on only the copy counts.
    #[inline(always)]
    pub fn read(&self, index: u16) -> Descriptor {
        let slot = self.slot(index);
        // SAFETY: `slot` gives 16 mapped, 8-byte aligned bytes. Volatile: the peer may write at any time, and the compiler must
        // not read a second time.
        let (first, second) = unsafe { (slot.read_volatile(), slot.add(1).read_volatile()) };
        Descriptor::from_halves(first, second)
    }

    /// Writes a whole descriptor.
    #[inline(always)]
    pub fn write(&self, index: u16, descriptor: Descriptor) {
        self.write_first_half(index, descriptor);
        // SAFETY: as in `read`.
        unsafe { self.slot(index).add(1).write_volatile(descriptor.second_half()) };
    }

    /// Writes flags, region and length, and leaves the offset alone: a server returns the client's buffer where it was.
    #[inline(always)]
    pub fn write_first_half(&self, index: u16, descriptor: Descriptor) {
        // SAFETY: as in `read`.
        unsafe { self.slot(index).write_volatile(descriptor.first_half()) };
    }
}

impl Indices for RingMemory {
    #[inline(always)]
    fn load_peer(&self) -> u16 {
        self.word(self.peer).load(Ordering::Acquire)
    }

    #[inline(always)]
    fn store_own(&self, value: u16) {
        self.word(self.own).store(value, Ordering::Release);
    }

    #[inline(always)]
    fn is_lost(&self) -> bool {
        self.is_guarded && self.regions.is_lost()
    }

    #[inline(always)]
    fn is_masked(&self) -> bool {
        self.flags().load(Ordering::Relaxed) & MASK_INT != 0
    }

    fn set_masked(&self, masked: bool) {
        self.flags().store(if masked { MASK_INT } else { 0 }, Ordering::Relaxed);
    }

    #[inline(always)]
    fn fence(&self) {
        fence(Ordering::SeqCst);
    }
}

impl fmt::Debug for RingMemory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RingMemory").field("size", &self.size()).field("regions", &self.regions).finish()
    }
}
