//! Chains: one packet in several buffers, as a receiver puts it together. Used by [`RxRing`](crate::RxRing) where chains are
//! allowed.
//!
//! All but the last descriptor of a chain have the flag NEXT; the pieces follow each other in the ring and make up the packet in
//! that order. A sender publishes a chain only when its last piece is written, so a receiver sees all of it or nothing.
//!
//! What is kept here are private copies of the descriptors, each checked when it was added: a peer that rewrites its descriptors
//! afterwards changes nothing.

use std::sync::Arc;

use crate::PACKET_BYTES_MIN;
use crate::error::BadDescriptor;
use crate::region::{Regions, Span};
use crate::ring::{Descriptor, RingMemory};

/// Most buffers of one packet, where chains are allowed: 9000 bytes fit into chains of 1024-byte buffers, and 32 KiB into chains
/// of 2048-byte ones.
pub const CHAIN_MAX: u16 = 16;

/// Room for the descriptors of one packet.
pub(crate) type Pieces = [Descriptor; CHAIN_MAX as usize];

/// The last chain that was taken.
#[derive(Debug)]
pub(crate) struct Chain {
    /// Keeps the memory by itself, so that a packet needs one pointer and not two.
    regions: Arc<Regions>,
    pieces: Pieces,
    count: usize,
    /// Bytes of all pieces.
    bytes: u32,
    /// Longest piece and longest packet taken, in bytes.
    piece_bytes_max: u32,
    bytes_max: u32,
}

impl Chain {
    /// For one ring, which keeps it: so taking a chain allocates nothing.
    pub fn new(ring: &RingMemory, piece_bytes_max: u32, bytes_max: u32) -> Box<Self> {
        let regions = Arc::clone(ring.regions());
        Box::new(Self { regions, pieces: Pieces::default(), count: 0, bytes: 0, piece_bytes_max, bytes_max })
    }

    pub fn clear(&mut self) {
        (self.count, self.bytes) = (0, 0);
    }

    /// Adds a piece, if it can be one. An empty piece is refused: it carries nothing and would only use up slots.
    pub fn add(&mut self, piece: Descriptor) -> Result<(), BadDescriptor> {
        if piece.length == 0 {
            return Err(BadDescriptor::TooShort);
        }
        if piece.length > self.piece_bytes_max {
            return Err(BadDescriptor::TooLong);
        }
        let fits = |bytes: &u32| *bytes <= self.bytes_max;
        let bytes = self.bytes.checked_add(piece.length).filter(fits).ok_or(BadDescriptor::TooLong)?;
        self.regions.span(piece.region, piece.offset, piece.length)?;
        *self.pieces.get_mut(self.count).ok_or(BadDescriptor::TooLong)? = piece;
        self.count += 1;
        self.bytes = bytes;
        Ok(())
    }

    /// After the last piece.
    pub fn finish(&self) -> Result<(), BadDescriptor> {
        if self.bytes < PACKET_BYTES_MIN { Err(BadDescriptor::TooShort) } else { Ok(()) }
    }

    pub fn bytes(&self) -> u32 {
        self.bytes
    }

    /// The first piece.
    pub fn first(&self) -> Option<Span<'_>> {
        let piece = self.pieces.first().filter(|_| self.count > 0)?;
        self.regions.span(piece.region, piece.offset, piece.length).ok()
    }

    /// Copies all pieces, one after the other, to the front of `to`; `None`, and nothing copied, if `to` is shorter.
    pub fn copy_to(&self, to: &mut [u8]) -> Option<usize> {
        let bytes = self.bytes as usize;
        let mut rest = to.get_mut(..bytes)?;
        for piece in self.pieces.iter().take(self.count) {
            let (front, after) = rest.split_at_mut_checked(piece.length as usize)?;
            // From private numbers, which have not changed since `add` found that they name a span.
            self.regions.span(piece.region, piece.offset, piece.length).ok()?.copy_to(front)?;
            rest = after;
        }
        Some(bytes)
    }
}
