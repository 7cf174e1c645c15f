//! What one half of a ring must do, worked out apart from the crate: from the bytes that the peer sees in its own view of the
//! memory, and from counts instead of positions. Chains are off.

use peregrine_memif::{BadDescriptor, PACKET_BYTES_MIN, PushError, Role, Violation};

use crate::memory::Memory;

const FLAGS_AT: usize = 4;
const HEAD_AT: usize = 6;
const TAIL_AT: usize = 64;
const DESCRIPTORS_AT: usize = 128;
const MASK_INT: u16 = 1;
const NEXT: u16 = 1;

/// A descriptor as the peer reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Descriptor {
    pub flags: u16,
    pub region: u16,
    pub length: u32,
    pub offset: u32,
    pub metadata: u32,
}

impl Descriptor {
    fn from_bytes(bytes: [u8; 16]) -> Self {
        let [a, b, c, d, rest @ ..] = bytes;
        let word = |at: usize| u32::from_ne_bytes([rest[at], rest[at + 1], rest[at + 2], rest[at + 3]]);
        Self {
            flags: u16::from_ne_bytes([a, b]),
            region: u16::from_ne_bytes([c, d]),
            length: word(0),
            offset: word(4),
            metadata: word(8),
        }
    }

    /// Where its bytes lie, if they all exist.
    fn place(&self, regions: &[Memory]) -> Result<(), BadDescriptor> {
        let region = regions.get(usize::from(self.region)).ok_or(BadDescriptor::Region)?;
        let end = u64::from(self.offset) + u64::from(self.length);
        if end > region.len() as u64 { Err(BadDescriptor::Span) } else { Ok(()) }
    }
}

/// Which half it is: the two directions of the two roles.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    Rx,
    Tx,
}

/// One half of ours, in the ring at `at` of region 0.
pub struct Model {
    pub at: usize,
    pub size: u16,
    role: Role,
    direction: Direction,
    /// The position that has been published.
    published: u16,
    /// Slots beyond it that the peer has given, when we last looked; and those used up.
    given: u16,
    used: u16,
    /// The last descriptor taken had NEXT.
    in_chain: bool,
    /// A client's descriptors as they were made: always its own buffers.
    own: Vec<Descriptor>,
    /// Longest packet, in bytes; for a client's tx the size of its buffers.
    pub packet_bytes_max: u32,
}

impl Model {
    /// Of a half that has just been made, when the tail was `tail`.
    pub fn new(
        at: usize,
        size: u16,
        role: Role,
        direction: Direction,
        tail: u16,
        packet_bytes_max: u32,
    ) -> Self {
        let is_empty_tx = role == Role::Client && direction == Direction::Tx;
        let given = if is_empty_tx { size } else { 0 };
        let own = Vec::new();
        Self {
            at,
            size,
            role,
            direction,
            published: tail,
            given,
            used: 0,
            in_chain: false,
            own,
            packet_bytes_max,
        }
    }

    /// A client's rx half has offered all its buffers.
    pub fn note_own_buffers(&mut self, memory: &Memory) {
        self.own = (0..self.size).map(|slot| self.descriptor(memory, slot)).collect();
    }

    pub fn own_index_at(&self) -> usize {
        self.at + if self.role == Role::Client { HEAD_AT } else { TAIL_AT }
    }

    pub fn peer_index_at(&self) -> usize {
        self.at + if self.role == Role::Client { TAIL_AT } else { HEAD_AT }
    }

    pub fn flags_at(&self) -> usize {
        self.at + FLAGS_AT
    }

    pub fn slot_at(&self, slot: u16) -> usize {
        self.at + DESCRIPTORS_AT + 16 * usize::from(slot % self.size)
    }

    pub fn descriptor(&self, memory: &Memory, slot: u16) -> Descriptor {
        Descriptor::from_bytes(memory.read_array(self.slot_at(slot)))
    }

    pub fn is_masked(&self, memory: &Memory) -> bool {
        memory.u16(self.flags_at()) & MASK_INT != 0
    }

    /// The next slot to be used.
    pub fn next(&self) -> u16 {
        self.published.wrapping_add(self.used)
    }

    pub fn available(&self) -> u16 {
        self.given - self.used
    }

    /// A look at the peer's index: what it must answer.
    pub fn look(&mut self, memory: &Memory) -> Result<u16, Violation> {
        let index = memory.u16(self.peer_index_at());
        let gap = index.wrapping_sub(self.published);
        // The tail of a client's tx ring says what was taken of what it had.
        let given = match (self.role, self.direction) {
            (Role::Client, Direction::Tx) => gap.wrapping_add(self.size),
            _ => gap,
        };
        if given > self.size || given < self.used {
            return Err(Violation::IndexJump { pending: given, size: self.size });
        }
        self.given = given;
        Ok(self.available())
    }

    /// Publishing: the value that our index must have afterwards; `None` if there is nothing to publish.
    pub fn publish(&mut self) -> Option<u16> {
        if self.used == 0 {
            return None;
        }
        self.published = self.published.wrapping_add(self.used);
        self.given -= self.used;
        self.used = 0;
        let offers_the_rest = self.role == Role::Client && self.direction == Direction::Rx;
        Some(self.published.wrapping_add(if offers_the_rest { self.size } else { 0 }))
    }

    /// Taking a packet: what must come of it, and the descriptor that says so.
    pub fn take(&mut self, regions: &[Memory]) -> Option<(Descriptor, Result<u32, BadDescriptor>)> {
        if self.available() == 0 {
            return None;
        }
        let descriptor = self.descriptor(&regions[0], self.next());
        self.used += 1;
        let is_chained = descriptor.flags & NEXT != 0;
        let was_in_chain = std::mem::replace(&mut self.in_chain, is_chained);
        let expected = if was_in_chain || is_chained {
            Err(BadDescriptor::Chained)
        } else if descriptor.length > self.packet_bytes_max {
            Err(BadDescriptor::TooLong)
        } else if descriptor.length < PACKET_BYTES_MIN {
            Err(BadDescriptor::TooShort)
        } else {
            descriptor.place(regions).map(|()| descriptor.length)
        };
        Some((descriptor, expected))
    }

    /// A client leaves its own buffer, whole, in a slot that it has used.
    pub fn check_offered_again(&self, memory: &Memory, slot: u16) {
        if let Some(own) = self.own.get(usize::from(slot % self.size)) {
            assert_eq!(self.descriptor(memory, slot), *own);
        }
    }

    /// Sending a packet of this length: what must come of it, and the descriptor of the slot that was next, before.
    pub fn send(&mut self, regions: &[Memory], length: usize) -> (Result<(), PushError>, Descriptor) {
        let before = self.descriptor(&regions[0], self.next());
        if length < PACKET_BYTES_MIN as usize {
            return (Err(PushError::TooShort), before);
        }
        if self.available() == 0 {
            match self.look(&regions[0]) {
                Err(violation) => return (Err(PushError::Violation(violation)), before),
                Ok(0) => return (Err(PushError::Full), before),
                Ok(_) => {}
            }
        }
        let expected = match self.role {
            Role::Client if length > self.packet_bytes_max as usize => {
                Err(PushError::TooLong { capacity: self.packet_bytes_max })
            }
            Role::Client => Ok(()),
            Role::Server if before.length < PACKET_BYTES_MIN => {
                Err(PushError::BadDescriptor(BadDescriptor::TooShort))
            }
            Role::Server if length > before.length as usize => {
                Err(PushError::TooLong { capacity: before.length })
            }
            Role::Server => before.place(regions).map_err(PushError::BadDescriptor),
        };
        if matches!(expected, Ok(()) | Err(PushError::BadDescriptor(_))) {
            self.used += 1;
        }
        (expected, before)
    }
}
