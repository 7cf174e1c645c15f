//! The receiving half of a ring: packets that come to us, in either role. Owned by one thread; never blocks, except [`RxRing::wait`].
//!
//! A burst is: [`pending`](RxRing::pending) once, [`next_packet`](RxRing::next_packet) as often as wanted,
//! [`release`](RxRing::release) once.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use crate::PACKET_BYTES_MIN;
use crate::chain::{CHAIN_MAX, Chain};
use crate::cursor::{Cursor, Indices};
use crate::error::{BadDescriptor, Violation};
use crate::region::Span;
use crate::ring::{Descriptor, RingMemory, Role, Watch};
use crate::sys;

/// Longest sleep between two looks at the ring, in [`RxRing::wait`]: some senders read the mask without a full fence, so a
/// wake-up can be lost.
const SLEEP_MAX: Duration = Duration::from_millis(10);

/// The client's own buffers for one ring, one per slot, in region 0.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Buffers {
    /// Offset of slot 0's buffer, in bytes.
    pub start: u32,
    /// From one buffer to the next, in bytes.
    pub stride: u32,
    /// Bytes of one buffer.
    pub bytes: u32,
}

impl Buffers {
    /// The descriptor of a slot's buffer with this length.
    #[inline(always)]
    pub fn descriptor(&self, slot: u16, length: u32) -> Descriptor {
        Descriptor { flags: 0, region: 0, length, offset: self.start + u32::from(slot) * self.stride }
    }
}

/// Packets from the peer: an S2M ring for a server, an M2S ring for a client.
#[derive(Debug)]
pub struct RxRing {
    ring: RingMemory,
    cursor: Cursor,
    event: OwnedFd,
    /// Longest packet in one buffer taken, in bytes.
    packet_bytes_max: u32,
    /// The client's buffers, which go back with every packet taken; a server has none.
    buffers: Option<Buffers>,
    /// The chain taken last; `None` where chains are refused.
    chain: Option<Box<Chain>>,
    /// Why a chain was refused whose last piece has not been seen: the next slots belong to it.
    refused: Option<BadDescriptor>,
}

/// One packet, still in shared memory: its place and length were checked, its bytes can change at any time. Copy it out, and
/// parse only the copy. As long as it lives its slots cannot be released.
#[derive(Clone, Copy)]
pub struct Packet<'a>(Place<'a>);

/// Where a packet lies.
#[derive(Clone, Copy)]
enum Place<'a> {
    /// In one buffer, like nearly every packet.
    Single(Span<'a>),
    /// In several.
    Chain(&'a Chain),
}

impl Packet<'_> {
    /// Bytes of the packet, at least [`PACKET_BYTES_MIN`] and at most the ring's maximum.
    #[allow(clippy::len_without_is_empty, reason = "a packet is never empty")]
    pub fn len(&self) -> usize {
        match self.0 {
            Place::Single(span) => span.length() as usize,
            Place::Chain(chain) => chain.bytes() as usize,
        }
    }

    /// Copies the packet to the front of `to` and returns its length; `None`, and nothing copied, if `to` is shorter.
    #[inline(always)]
    #[must_use]
    pub fn copy_to(&self, to: &mut [u8]) -> Option<usize> {
        match self.0 {
            Place::Single(span) => span.copy_to(to),
            Place::Chain(chain) => chain.copy_to(to),
        }
    }

    /// Copies the first bytes of the packet, as many as `to` has; `None`, and nothing copied, if the packet is shorter, or is a
    /// chain whose first piece is.
    #[inline(always)]
    #[must_use]
    pub fn copy_front_to(&self, to: &mut [u8]) -> Option<usize> {
        match self.0 {
            Place::Single(span) => span.front(to.len())?.copy_to(to),
            Place::Chain(chain) => chain.first()?.front(to.len())?.copy_to(to),
        }
    }
}

impl std::fmt::Debug for Packet<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packet({} bytes)", self.len())
    }
}

impl RxRing {
    /// A server's half. It starts polling: the sender is asked not to wake us.
    pub(crate) fn server(ring: RingMemory, event: OwnedFd, packet_bytes_max: u32, chains: bool) -> Self {
        let cursor = Cursor::server(ring.size(), ring.load_own());
        ring.set_masked(true);
        let chain = chains.then(|| Chain::new(&ring, packet_bytes_max, packet_bytes_max));
        Self { ring, cursor, event, packet_bytes_max, buffers: None, chain, refused: None }
    }

    /// A client's half; offers all its buffers. Only after CONNECTED: some servers set both indexes to 0 just before they send it.
    pub(crate) fn client(ring: RingMemory, event: OwnedFd, buffers: Buffers, chains: bool) -> Self {
        let tail = ring.load_peer();
        for slot in 0..ring.size() {
            ring.write(slot, buffers.descriptor(slot, buffers.bytes));
        }
        ring.set_masked(true);
        ring.store_own(tail.wrapping_add(ring.size()));
        let cursor = Cursor::client_rx(ring.size(), tail);
        let packet_bytes_max = buffers.bytes;
        let chain =
            chains.then(|| Chain::new(&ring, packet_bytes_max, packet_bytes_max * u32::from(CHAIN_MAX)));
        Self { ring, cursor, event, packet_bytes_max, buffers: Some(buffers), chain, refused: None }
    }

    /// Which side of the connection this half is.
    pub fn role(&self) -> Role {
        if self.buffers.is_some() { Role::Client } else { Role::Server }
    }

    /// Slots of the ring.
    pub fn size(&self) -> u16 {
        self.cursor.size()
    }

    /// Looks at the peer's index (once, Acquire) and returns how many slots wait for [`next_packet`](Self::next_packet),
    /// including those that earlier calls saw: as many packets, or fewer where chains are allowed.
    ///
    /// # Errors
    /// [`Violation`] if the index cannot be true: disconnect.
    #[inline]
    pub fn pending(&mut self) -> Result<u16, Violation> {
        self.cursor.look(&self.ring)
    }

    /// A watch that tells when there may be more packets than [`pending`](Self::pending) has seen. It keeps the memory mapped.
    pub fn watch(&self) -> Watch {
        self.ring.watch(self.cursor.peer_seen())
    }

    /// The next packet that [`pending`](Self::pending) saw; `None` when there is none. Every call uses up the slots of one packet,
    /// whether its descriptors are good or bad, so a burst of `n` calls does a bounded amount of work.
    ///
    /// A packet has one slot. Where chains are refused, every piece of a chain is one [`BadDescriptor::Chained`]. Where they are
    /// allowed, a packet has up to [`CHAIN_MAX`] slots. A chain with anything wrong is one error for all its slots. What is left
    /// of a chain that was refused before its last piece was seen (it is too long, or was cut off) is never taken for a packet:
    /// further calls use it up, each at most [`CHAIN_MAX`] slots of it and with the same error again. The next packet begins
    /// after the first slot without NEXT.
    #[inline(always)]
    pub fn next_packet(&mut self) -> Option<Result<Packet<'_>, BadDescriptor>> {
        let descriptor = take_slot(&self.ring, &mut self.cursor, self.buffers)?;
        if self.refused.is_some() || descriptor.is_chained() {
            // Without `self`, and the descriptor in registers: so that the path of single packets need not put them into memory.
            let mut walk = Walk { cursor: self.cursor.clone(), buffers: self.buffers, refused: self.refused };
            let result = walk.chained(&self.ring, self.chain.as_deref_mut(), descriptor.halves());
            (self.cursor, self.refused) = (walk.cursor, walk.refused);
            let chain = result.and(self.chain.as_deref().ok_or(BadDescriptor::Chained));
            return Some(chain.map(|chain| Packet(Place::Chain(chain))));
        }
        Some(self.checked(descriptor).map(|span| Packet(Place::Single(span))))
    }

    #[inline(always)]
    fn checked(&self, descriptor: Descriptor) -> Result<Span<'_>, BadDescriptor> {
        if descriptor.length < PACKET_BYTES_MIN {
            return Err(BadDescriptor::TooShort);
        }
        // Whether it exists comes first: a packet that is there and too long is no nonsense.
        let span = self.ring.regions().span(descriptor.region, descriptor.offset, descriptor.length)?;
        if descriptor.length > self.packet_bytes_max { Err(BadDescriptor::TooLong) } else { Ok(span) }
    }

    /// Of the next so many packets that [`pending`](Self::pending) saw, how many can be taken until there are more than `spare` of more
    /// than `bytes` bytes. A look ahead: nothing is used up, and the peer may yet change what it says.
    #[cold]
    pub fn packets_within(&self, packets: usize, bytes: usize, mut spare: usize) -> usize {
        let first = self.cursor.peek().unwrap_or_default();
        let mut slots = (0..self.cursor.available()).map(|slot| self.ring.read(first.wrapping_add(slot)));
        for packet in 0..packets {
            let mut length = 0;
            for piece in slots.by_ref().take(usize::from(CHAIN_MAX)) {
                length += u64::from(piece.length);
                if !piece.is_chained() {
                    break;
                }
            }
            if length > bytes as u64 {
                let Some(left) = spare.checked_sub(1) else { return packet };
                spare = left;
            }
        }
        packets
    }

    /// Asks the processor to fetch what lies `ahead` slots after the next one. Only a hint: nothing is used up or believed.
    #[inline]
    pub fn prefetch(&self, ahead: u16) {
        if ahead >= self.cursor.available() {
            return;
        }
        let Some(index) = self.cursor.peek() else { return };
        let descriptor = self.ring.read(index.wrapping_add(ahead));
        if let Ok(span) = self.ring.regions().span(descriptor.region, descriptor.offset, descriptor.length) {
            span.prefetch();
        }
    }

    /// Gives the slots of all packets taken so far back to the peer, in one Release store. For a client this also offers their
    /// buffers again.
    #[inline]
    pub fn release(&mut self) {
        self.cursor.publish(&self.ring);
    }

    /// Asks the sender to write [`event_fd`](Self::event_fd) when it has sent. Before a sleep use [`arm`](Self::arm) instead.
    pub fn enable_interrupt(&mut self) {
        self.ring.set_masked(false);
    }

    /// Asks the sender not to write [`event_fd`](Self::event_fd) (MASK_INT): for polling. So every ring starts.
    pub fn disable_interrupt(&mut self) {
        self.ring.set_masked(true);
    }

    /// The eventfd that the sender writes: readable after a burst, unless masked.
    pub fn event_fd(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }

    /// Before a sleep: asks to be woken, then looks once more. True: packets are pending, do not sleep.
    ///
    /// Sleep at most some 10 ms: some senders (DPDK, VPP) read the mask without a full fence, so a wake-up can be lost.
    ///
    /// # Errors
    /// [`Violation`] as from [`pending`](Self::pending).
    pub fn arm(&mut self) -> Result<bool, Violation> {
        self.cursor.arm(&self.ring)
    }

    /// After a wake-up: sets the eventfd's count to 0, so that it is not readable until the next burst. Never blocks.
    ///
    /// # Errors
    /// Those of reading the eventfd.
    pub fn drain_event(&mut self) -> io::Result<()> {
        sys::eventfd_drain(self.event.as_fd())
    }

    /// Sleeps until packets are pending, at most `timeout`; true if there are. Leaves the interrupt disabled.
    ///
    /// # Errors
    /// Those of poll(2); a [`Violation`] comes as [`io::ErrorKind::InvalidData`].
    pub fn wait(&mut self, timeout: Duration) -> io::Result<bool> {
        let deadline = Instant::now() + timeout;
        let result = self.wait_until(deadline);
        self.ring.set_masked(true);
        result
    }

    fn wait_until(&mut self, deadline: Instant) -> io::Result<bool> {
        loop {
            if self.arm().map_err(invalid)? {
                return Ok(true);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(false);
            }
            if sys::wait_readable(self.event.as_fd(), left.min(SLEEP_MAX))? {
                self.drain_event()?;
            }
        }
    }
}

/// What taking a chain uses and changes in a ring half, but for the chain itself.
struct Walk {
    cursor: Cursor,
    buffers: Option<Buffers>,
    refused: Option<BadDescriptor>,
}

impl Walk {
    /// A chain from its first piece on, or the rest of one that was refused: its slots up to the last one, but no more than
    /// [`CHAIN_MAX`].
    #[cold]
    fn chained(
        &mut self,
        ring: &RingMemory,
        chain: Option<&mut Chain>,
        first: (u64, u64),
    ) -> Result<(), BadDescriptor> {
        let first = Descriptor::from_halves(first.0, first.1);
        let Some(chain) = chain else {
            self.refused = first.is_chained().then_some(BadDescriptor::Chained);
            return Err(BadDescriptor::Chained);
        };
        let mut fault = self.refused.take();
        chain.clear();
        let (mut piece, mut slots) = (first, 1);
        loop {
            if fault.is_none() {
                fault = chain.add(piece).err();
            }
            if !piece.is_chained() {
                break;
            }
            let next = if slots == CHAIN_MAX {
                Err(BadDescriptor::TooLong)
            } else {
                // Whole chains are published, so the next piece must be there.
                take_slot(ring, &mut self.cursor, self.buffers).ok_or(BadDescriptor::Unfinished)
            };
            match next {
                Ok(next) => piece = next,
                Err(why) => {
                    let why = fault.unwrap_or(why);
                    self.refused = Some(why);
                    return Err(why);
                }
            }
            slots += 1;
        }
        match fault {
            Some(why) => Err(why),
            None => chain.finish(),
        }
    }
}

/// Uses up the next slot and gives its descriptor, read once. A client's own buffer is put back into the slot.
#[inline(always)]
fn take_slot(ring: &RingMemory, cursor: &mut Cursor, buffers: Option<Buffers>) -> Option<Descriptor> {
    let index = cursor.peek()?;
    let descriptor = ring.read(index);
    if let Some(buffers) = buffers {
        // Restored now while its line is at hand; the peer may use it only after `release`.
        let slot = index & (ring.size() - 1);
        ring.write(index, buffers.descriptor(slot, buffers.bytes));
    } else if descriptor.is_chained() {
        // DPDK clients (22.11 for one) set NEXT and never take it out again: left there, it would join a later packet in this
        // slot with the one after it.
        ring.write_first_half(index, Descriptor { flags: 0, ..descriptor });
    }
    cursor.advance();
    Some(descriptor)
}

fn invalid(why: Violation) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}
