//! The sending half of a ring: packets to the peer, in either role. Owned by one thread; never blocks.
//!
//! A burst is: [`push`](TxRing::push) for each packet, [`flush`](TxRing::flush) once.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use crate::PACKET_BYTES_MIN;
use crate::chain::{CHAIN_MAX, Pieces};
use crate::cursor::{Cursor, Indices, must_wake};
use crate::doorbell;
use crate::error::{BadDescriptor, PushError, Violation};
use crate::region::Span;
use crate::ring::{Descriptor, RingMemory, Role};
use crate::rx::Buffers;

/// How many packets ahead a client fetches its buffers.
const PREFETCH_AHEAD: u16 = 2;
/// From which length on: a line or two do not keep the processor waiting, but asking for them does.
const PREFETCH_BYTES_MIN: u32 = 256;

/// Packets to the peer: an M2S ring for a server, an S2M ring for a client.
#[derive(Debug)]
pub struct TxRing {
    ring: RingMemory,
    cursor: Cursor,
    event: OwnedFd,
    /// The client's buffers; a server fills those that the client offers.
    buffers: Option<Buffers>,
    /// Whether a packet may take several buffers.
    chains: bool,
}

impl TxRing {
    /// A server's half.
    pub(crate) fn server(ring: RingMemory, event: OwnedFd, chains: bool) -> Self {
        let cursor = Cursor::server(ring.size(), ring.load_own());
        Self { ring, cursor, event, buffers: None, chains }
    }

    /// A client's half, empty. Only after CONNECTED, as for [`RxRing::client`](crate::rx::RxRing::client).
    pub(crate) fn client(ring: RingMemory, event: OwnedFd, buffers: Buffers, chains: bool) -> Self {
        let tail = ring.load_peer();
        ring.store_own(tail);
        let cursor = Cursor::client_tx(ring.size(), tail);
        Self { ring, cursor, event, buffers: Some(buffers), chains }
    }

    /// Which side of the connection this half is.
    pub fn role(&self) -> Role {
        if self.buffers.is_some() { Role::Client } else { Role::Server }
    }

    /// Slots of the ring.
    pub fn size(&self) -> u16 {
        self.cursor.size()
    }

    /// Looks at the peer's index (once, Acquire) and returns how many slots are free: one for each packet that fits one buffer.
    ///
    /// # Errors
    /// [`Violation`] if the index cannot be true: disconnect.
    #[inline]
    pub fn free(&mut self) -> Result<u16, Violation> {
        self.cursor.look(&self.ring)
    }

    /// Copies one packet into the next slot; where chains are allowed and its buffer is too small, into as many slots as it needs,
    /// up to [`CHAIN_MAX`]. The peer sees it after [`flush`](Self::flush). Looks at the peer's index only when no slot is left of
    /// those that it last saw.
    ///
    /// # Errors
    /// See [`PushError`]; the packet has not been sent then, and nothing of it was written.
    #[inline(always)]
    pub fn push(&mut self, packet: &[u8]) -> Result<(), PushError> {
        // A length that does not fit u32 fits no buffer either.
        let length = u32::try_from(packet.len()).unwrap_or(u32::MAX);
        if length < PACKET_BYTES_MIN {
            return Err(PushError::TooShort);
        }
        let index = match self.cursor.peek() {
            Some(index) => index,
            None => self.look_again()?,
        };
        match self.buffers {
            Some(buffers) => self.fill_own(index, buffers, packet, length),
            None => self.fill_offered(index, packet, length),
        }
    }

    #[cold]
    fn look_again(&mut self) -> Result<u16, PushError> {
        self.cursor.look(&self.ring)?;
        self.cursor.peek().ok_or(PushError::Full)
    }

    /// Client: the slot's own buffer, whatever the peer has written into the descriptor.
    #[inline(always)]
    fn fill_own(
        &mut self,
        index: u16,
        buffers: Buffers,
        packet: &[u8],
        length: u32,
    ) -> Result<(), PushError> {
        if length > buffers.bytes {
            return self.push_long(packet, buffers.bytes);
        }
        let slot = index & (self.ring.size() - 1);
        let descriptor = buffers.descriptor(slot, length);
        let span =
            self.ring.regions().span(0, descriptor.offset, length).map_err(PushError::BadDescriptor)?;
        span.copy_from(packet).ok_or(PushError::TooLong { capacity: buffers.bytes })?;
        self.ring.write(index, descriptor);
        if length >= PREFETCH_BYTES_MIN {
            self.prefetch_own(index, buffers, length);
        }
        self.cursor.advance();
        Ok(())
    }

    /// Fetches the buffer of a packet to come, which will likely be as long as this one. Not of a slot that the peer still has.
    #[inline(always)]
    fn prefetch_own(&self, index: u16, buffers: Buffers, length: u32) {
        if self.cursor.available() <= PREFETCH_AHEAD {
            return;
        }
        let slot = index.wrapping_add(PREFETCH_AHEAD) & (self.ring.size() - 1);
        if let Ok(span) = self.ring.regions().span(0, buffers.descriptor(slot, length).offset, length) {
            span.prefetch_to_write();
        }
    }

    /// Server: the buffer that the client's descriptor offers, read once and checked.
    #[inline(always)]
    fn fill_offered(&mut self, index: u16, packet: &[u8], length: u32) -> Result<(), PushError> {
        let offered = self.ring.read(index);
        if offered.length < PACKET_BYTES_MIN {
            return Err(self.pass_over(index, offered, BadDescriptor::TooShort));
        }
        if length > offered.length {
            return self.push_long(packet, offered.length);
        }
        let span = match self.ring.regions().span(offered.region, offered.offset, offered.length) {
            Ok(span) => span,
            Err(why) => return Err(self.pass_over(index, offered, why)),
        };
        span.copy_from(packet).ok_or(PushError::TooLong { capacity: offered.length })?;
        // Without NEXT, which a client may have left there.
        self.ring.write_first_half(index, offered.filled(length, true));
        self.cursor.advance();
        Ok(())
    }

    /// Gives an unusable buffer back with length 0: kept, it would stop the ring for good.
    #[cold]
    fn pass_over(&mut self, index: u16, offered: Descriptor, why: BadDescriptor) -> PushError {
        self.ring.write_first_half(index, offered.filled(0, true));
        self.cursor.advance();
        PushError::BadDescriptor(why)
    }

    /// A packet that is longer than the next buffer, which has `capacity` bytes: over several buffers in a row, or not at all.
    ///
    /// A server has read the first buffer's descriptor by now, but of that copy only the length was looked at. It is read again
    /// here, with the others, and only this copy counts.
    #[cold]
    fn push_long(&mut self, packet: &[u8], capacity: u32) -> Result<(), PushError> {
        if !self.chains {
            return Err(PushError::TooLong { capacity });
        }
        let index = self.cursor.peek().ok_or(PushError::Full)?;
        let mut buffers = Pieces::default();
        let count = self.gather(index, packet.len(), &mut buffers)?;
        let mut rest = packet;
        for (ahead, buffer) in (0..count).zip(&buffers) {
            let (piece, after) = rest.split_at(rest.len().min(buffer.length as usize));
            let filled = buffer.filled(piece.len() as u32, after.is_empty());
            let span = self.checked(*buffer).map_err(PushError::BadDescriptor)?;
            span.copy_from(piece).ok_or(PushError::TooLong { capacity: buffer.length })?;
            let index = index.wrapping_add(ahead);
            match self.role() {
                Role::Client => self.ring.write(index, filled),
                Role::Server => self.ring.write_first_half(index, filled),
            }
            rest = after;
        }
        for _ in 0..count {
            self.cursor.advance();
        }
        Ok(())
    }

    /// The buffers from `index` on until they hold `length` bytes, each checked; returns how many. Nothing is used up, except when
    /// one of them is bad: then it and those before it go back with length 0.
    fn gather(&mut self, index: u16, length: usize, buffers: &mut Pieces) -> Result<u16, PushError> {
        let count_max = CHAIN_MAX.min(self.ring.size());
        if let Some(own) = self.buffers {
            // Our own buffers are known before they are free.
            let capacity = own.bytes * u32::from(count_max);
            if length > capacity as usize {
                return Err(PushError::TooLong { capacity });
            }
        }
        let mut capacity = 0u32;
        for (ahead, place) in (0..count_max).zip(buffers.iter_mut()) {
            if ahead >= self.cursor.available() && self.cursor.look(&self.ring)? <= ahead {
                return Err(PushError::Full);
            }
            let buffer = self.buffer(index.wrapping_add(ahead));
            *place = buffer;
            if let Err(why) = self.checked(buffer) {
                for (index, buffer) in (0..=ahead).map(|back| index.wrapping_add(back)).zip(buffers.iter()) {
                    self.pass_over(index, *buffer, why);
                }
                return Err(PushError::BadDescriptor(why));
            }
            capacity = capacity.saturating_add(buffer.length);
            if capacity as usize >= length {
                return Ok(ahead + 1);
            }
        }
        Err(PushError::TooLong { capacity })
    }

    /// A slot's buffer with its whole length: our own, or what the client's descriptor offers, read once.
    fn buffer(&self, index: u16) -> Descriptor {
        match self.buffers {
            Some(own) => own.descriptor(index & (self.ring.size() - 1), own.bytes),
            None => self.ring.read(index),
        }
    }

    fn checked(&self, buffer: Descriptor) -> Result<Span<'_>, BadDescriptor> {
        if buffer.length < PACKET_BYTES_MIN {
            return Err(BadDescriptor::TooShort);
        }
        self.ring.regions().span(buffer.region, buffer.offset, buffer.length)
    }

    /// Publishes everything pushed, in one Release store, and wakes the receiver if it asked for that: at most one eventfd write,
    /// which never waits for the peer, whatever it does to the eventfd. But the write walks the list of those who wait for the
    /// eventfd, and the peer can make that list long: watch the time that this takes, and disconnect a peer whose wake-ups are
    /// slow. The first wake-up of a thread is slow by itself, unless [`warm_up`](crate::warm_up) was called there.
    ///
    /// Returns whether it was woken. Without anything to publish it does nothing.
    ///
    /// # Errors
    /// Those of signalling the eventfd; the packets are published all the same. A full eventfd is no error.
    #[inline]
    pub fn flush(&mut self) -> io::Result<bool> {
        if !self.cursor.publish(&self.ring) || !must_wake(&self.ring) {
            return Ok(false);
        }
        doorbell::ring(self.event.as_fd()).map(|()| true)
    }
}
