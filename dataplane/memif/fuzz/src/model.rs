//! What one half of a ring must do, worked out apart from the crate: from the bytes that the peer sees in its own view of the
//! memory, and from counts instead of positions. Of what is written it says every byte: each packet's, and each descriptor's.

use peregrine_memif::{BadDescriptor, CHAIN_MAX, PACKET_BYTES_MIN, PushError, Role, Violation};

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

    fn is_chained(&self) -> bool {
        self.flags & NEXT != 0
    }

    /// As it lies in memory.
    fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..2].copy_from_slice(&self.flags.to_ne_bytes());
        bytes[2..4].copy_from_slice(&self.region.to_ne_bytes());
        bytes[4..8].copy_from_slice(&self.length.to_ne_bytes());
        bytes[8..12].copy_from_slice(&self.offset.to_ne_bytes());
        bytes[12..].copy_from_slice(&self.metadata.to_ne_bytes());
        bytes
    }

    /// Its bytes, all of which exist.
    pub fn content(&self, regions: &[Memory]) -> Vec<u8> {
        let mut bytes = vec![0; self.length as usize];
        regions[usize::from(self.region)].read(self.offset as usize, &mut bytes);
        bytes
    }

    /// Whether it is a buffer that a packet, or a piece of one, can be sent in.
    fn usable(&self, regions: &[Memory]) -> Result<(), BadDescriptor> {
        if self.length < PACKET_BYTES_MIN { Err(BadDescriptor::TooShort) } else { self.place(regions) }
    }

    /// Where its bytes lie, if they all exist.
    fn place(&self, regions: &[Memory]) -> Result<(), BadDescriptor> {
        let region = regions.get(usize::from(self.region)).ok_or(BadDescriptor::Region)?;
        let end = u64::from(self.offset) + u64::from(self.length);
        if end > region.len() as u64 { Err(BadDescriptor::Span) } else { Ok(()) }
    }
}

/// A call of `next_packet`: the slots that it must use up, as they were before, and what must come of it.
pub struct Taken {
    pub first: u16,
    pub pieces: Vec<Descriptor>,
    pub result: Result<u32, BadDescriptor>,
}

/// A call of `push`: what must come of it, and the slots that it must use up.
pub struct Sent {
    pub result: Result<(), PushError>,
    slots: Vec<Filled>,
}

/// A slot, its descriptor before, and the bytes of the packet that go into its buffer: none if it is given back unused.
type Filled = (u16, Descriptor, u32);

/// Bytes that must have been written: region, offset, bytes.
pub type Write = (usize, usize, Vec<u8>);

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
    /// Why a chain was refused of which more may follow: the last descriptor taken had NEXT.
    refused: Option<BadDescriptor>,
    /// A client's rx descriptors as they were made: always its own buffers.
    own: Vec<Descriptor>,
    /// Where the buffers of a client's tx slots lie, as far as they have been seen: where it puts them is its own affair.
    own_tx: Vec<Option<u32>>,
    /// Longest packet in one buffer, in bytes; for a client the size of its buffers.
    pub packet_bytes_max: u32,
    chains: bool,
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
        chains: bool,
    ) -> Self {
        let is_empty_tx = role == Role::Client && direction == Direction::Tx;
        let given = if is_empty_tx { size } else { 0 };
        Self {
            at,
            size,
            role,
            direction,
            published: tail,
            given,
            used: 0,
            refused: None,
            own: Vec::new(),
            own_tx: vec![None; size.into()],
            packet_bytes_max,
            chains,
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

    /// Taking a packet: its slots, and what must come of it. `None` if there is nothing to take.
    pub fn take(&mut self, regions: &[Memory]) -> Option<Taken> {
        let first = self.next();
        let most = if self.chains { self.available().min(CHAIN_MAX) } else { self.available().min(1) };
        let mut pieces = Vec::new();
        for ahead in 0..most {
            pieces.push(self.descriptor(&regions[0], first.wrapping_add(ahead)));
            if !pieces[usize::from(ahead)].is_chained() {
                break;
            }
        }
        let goes_on = pieces.last()?.is_chained();
        self.used += pieces.len() as u16;
        let result = match self.refused {
            Some(why) => Err(why),
            None if !goes_on && pieces.len() == 1 => self.single(pieces[0], regions),
            None if !self.chains => Err(BadDescriptor::Chained),
            None => self.chain(&pieces, regions),
        };
        self.refused = if goes_on { result.err() } else { None };
        Some(Taken { first, pieces, result })
    }

    fn single(&self, packet: Descriptor, regions: &[Memory]) -> Result<u32, BadDescriptor> {
        if packet.length < PACKET_BYTES_MIN {
            return Err(BadDescriptor::TooShort);
        }
        packet.place(regions)?;
        if packet.length > self.packet_bytes_max { Err(BadDescriptor::TooLong) } else { Ok(packet.length) }
    }

    /// The first piece with a fault gives the reason; only if there is none, the chain as a whole.
    fn chain(&self, pieces: &[Descriptor], regions: &[Memory]) -> Result<u32, BadDescriptor> {
        let chain_bytes_max = match self.role {
            Role::Server => self.packet_bytes_max,
            Role::Client => self.packet_bytes_max * u32::from(CHAIN_MAX),
        };
        let up_to = |count: usize| pieces[..count].iter().map(|piece| u64::from(piece.length)).sum::<u64>();
        for (before, piece) in pieces.iter().enumerate() {
            if piece.length == 0 {
                return Err(BadDescriptor::TooShort);
            }
            if piece.length > self.packet_bytes_max || up_to(before + 1) > chain_bytes_max.into() {
                return Err(BadDescriptor::TooLong);
            }
            piece.place(regions)?;
        }
        let all = up_to(pieces.len()) as u32;
        match pieces.last() {
            // Of one more piece than is allowed, whether it is there or not.
            Some(last) if last.is_chained() && pieces.len() == usize::from(CHAIN_MAX) => {
                Err(BadDescriptor::TooLong)
            }
            Some(last) if last.is_chained() => Err(BadDescriptor::Unfinished),
            _ if all < PACKET_BYTES_MIN => Err(BadDescriptor::TooShort),
            _ => Ok(all),
        }
    }

    /// What taking writes: a client leaves its own buffers, whole, in the slots, and a server takes NEXT out of them.
    pub fn writes_of_taking(&self, taken: &Taken) -> Vec<Write> {
        let left = (0..).zip(&taken.pieces).map(|(ahead, piece)| {
            let slot = taken.first.wrapping_add(ahead);
            let left = match self.own.get(usize::from(slot % self.size)) {
                Some(own) => *own,
                None if piece.is_chained() => Descriptor { flags: 0, ..*piece },
                None => *piece,
            };
            (0, self.slot_at(slot), left.to_bytes().to_vec())
        });
        left.collect()
    }

    /// Sending a packet of this length.
    pub fn send(&mut self, regions: &[Memory], length: usize) -> Sent {
        let (result, slots) = match self.buffers_for(regions, length) {
            Ok(slots) => (Ok(()), slots),
            Err((why, slots)) => (Err(why), slots),
        };
        self.used += slots.len() as u16;
        Sent { result, slots }
    }

    /// The slots that the packet takes, or the reason and the slots that are given back unused: all up to the first bad one.
    fn buffers_for(
        &mut self,
        regions: &[Memory],
        length: usize,
    ) -> Result<Vec<Filled>, (PushError, Vec<Filled>)> {
        let refuse = |why| Err((why, Vec::new()));
        if length < PACKET_BYTES_MIN as usize {
            return refuse(PushError::TooShort);
        }
        let most = if self.chains { self.size.min(CHAIN_MAX) } else { 1 };
        let own_capacity = u32::from(most) * self.packet_bytes_max;
        let (mut slots, mut capacity) = (Vec::new(), 0);
        for ahead in 0..most {
            if self.available() <= ahead {
                match self.look(&regions[0]) {
                    Err(violation) => return refuse(PushError::Violation(violation)),
                    Ok(free) if free <= ahead => return refuse(PushError::Full),
                    Ok(_) => {}
                }
            }
            if self.role == Role::Client && length > own_capacity as usize {
                return refuse(PushError::TooLong { capacity: own_capacity });
            }
            let slot = self.next().wrapping_add(ahead);
            let mut buffer = self.descriptor(&regions[0], slot);
            if self.role == Role::Client {
                buffer.length = self.packet_bytes_max;
            }
            let left = length - capacity as usize;
            slots.push((slot, buffer, buffer.length.min(left as u32)));
            // A single buffer that is too short for the packet stays where it is, even if it lies nowhere.
            let is_looked_at =
                self.chains || left <= buffer.length as usize || buffer.length < PACKET_BYTES_MIN;
            if self.role == Role::Server
                && is_looked_at
                && let Err(why) = buffer.usable(regions)
            {
                slots.iter_mut().for_each(|(_, _, bytes)| *bytes = 0);
                return Err((PushError::BadDescriptor(why), slots));
            }
            capacity += buffer.length;
            if left <= buffer.length as usize {
                return Ok(slots);
            }
        }
        refuse(PushError::TooLong { capacity })
    }

    /// What sending `packet` writes, in this order: a buffer may lie in the rings. A client's buffers are where its descriptors
    /// say now; it always says the same.
    pub fn writes_of_sending(&mut self, sent: &Sent, packet: &[u8], memory: &Memory) -> Vec<Write> {
        let (mut writes, mut rest) = (Vec::new(), packet);
        for &(slot, before, length) in &sent.slots {
            let (piece, after) = rest.split_at(length as usize);
            let flags = if sent.result.is_ok() && !after.is_empty() { NEXT } else { 0 };
            let mut written = Descriptor { flags, length, ..before };
            if self.role == Role::Client {
                let offset = self.descriptor(memory, slot).offset;
                self.note_own_tx(slot, offset, memory);
                written = Descriptor { region: 0, offset, metadata: 0, ..written };
            }
            writes.push((usize::from(written.region), written.offset as usize, piece.to_vec()));
            // Of the client's descriptor a server writes the first half only.
            let half = if self.role == Role::Server { 8 } else { 16 };
            writes.push((0, self.slot_at(slot), written.to_bytes()[..half].to_vec()));
            rest = after;
        }
        // Of a buffer that is given back nothing is written, and it may lie nowhere.
        writes.retain(|(_, _, bytes)| !bytes.is_empty());
        writes
    }

    /// Each slot has a buffer, always the same, in which no other's and no ring lies.
    fn note_own_tx(&mut self, slot: u16, offset: u32, memory: &Memory) {
        let (slot, bytes) = (usize::from(slot % self.size), self.packet_bytes_max);
        if let Some(known) = self.own_tx[slot] {
            assert_eq!(offset, known, "the buffer of slot {slot} has moved");
            return;
        }
        assert!(offset as usize + bytes as usize <= memory.len(), "slot {slot}: a buffer outside");
        assert!(offset as usize >= self.slot_at(self.size - 1) + 16, "slot {slot}: a buffer in a ring");
        let overlaps = |known: &u32| offset.abs_diff(*known) < bytes;
        assert!(!self.own_tx.iter().flatten().any(overlaps), "slot {slot}: a buffer in another's");
        self.own_tx[slot] = Some(offset);
    }
}
