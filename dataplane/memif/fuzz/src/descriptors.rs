//! Fuzz target: a peer that has connected and now writes anything at all into the shared memory, between our calls.
//!
//! Input: our side (`S` server, `C` client), log2 of a server's ring (a digit, `1` to `5`; a letter, `A` to `E`, for the same with
//! chains allowed), where indexes start (2 bytes), then operations. All numbers of two bytes are little-endian; a ring is 0 for what
//! we receive and 1 for what we send.
//!
//! | the peer's | operands | | ours | operands |
//! |---|---|---|---|---|
//! | `d` writes a descriptor | ring, slot, 16 bytes | | `p` pending | |
//! | `g` writes a good one into the slot that is next | ring, ahead, length (2) | | `n` takes packets | count; bit 4: its slots are overwritten meanwhile; bit 5: a short buffer |
//! | `h` writes a chain of good ones | ring, ahead, pieces, length of each (2) | | | |
//! | `c` sets NEXT in the slot that is next | ring, ahead | | | |
//! | `i` moves its index | ring, by (signed) | | `l` release | |
//! | `j` sets its index | ring, value (2) | | `P` push | length (2) |
//! | `o` writes our index | ring, value (2) | | `f` flush | |
//! | `F` writes the flags | ring, value (2) | | `k` free | |
//! | `w` fills memory | region, offset (2), count, value | | `A` arm, `E` `M` interrupt on, off, `W` wait | |
//! | `e` fills an eventfd and makes it blocking | ring | | `D` drains the eventfd, `t` prefetch | `t`: ahead (2) |
//!
//! What must hold: no panic, no access outside the regions (`fence`), no wait; and every answer, every byte of a packet and every
//! index is exactly what `model` works out, and so is every byte of the regions after a packet was taken or pushed.
#![no_main]

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::OnceLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use peregrine_memif::{ClientConfig, Interface, Progress, Role, RxRing, ServerConfig, TxRing};
use peregrine_memif_fuzz::input::Input;
use peregrine_memif_fuzz::memory::{self, Memory};
use peregrine_memif_fuzz::model::{Direction, Model, Write};
use peregrine_memif_fuzz::peer::{self, COOKIE, Peer};
use peregrine_memif_fuzz::{Holdings, fence};

/// Longest packet that our server takes. Our client's is its buffers' size.
const PACKET_BYTES_MAX: u32 = 3000;
const CLIENT_BUFFER_BYTES: u32 = 2048;
const CLIENT_LOG2: u8 = 5;
/// The peer's buffers, in a region that ends in the middle of a page.
const BUFFERS_BYTES: usize = 20_001;
/// Index of region 1 if there is one: rings are always in region 0.
const BUFFERS: u16 = 1;

/// Whether waking never waits for a peer here: without asynchronous I/O it can.
static WAKES_SAFELY: OnceLock<bool> = OnceLock::new();

fuzz_target!(init: { WAKES_SAFELY.set(peregrine_memif::warm_up()).expect("once"); }, |data: &[u8]| {
    let before = Holdings::at_rest();
    let mut input = Input::new(data);
    if let Some(([side, log2], start)) = input.array().zip(input.u16()) {
        let chains = log2 & 0x40 != 0;
        match side {
            b'S' => Bench::server((log2 % 8).clamp(1, 5), start, chains).run(&mut input),
            b'C' => Bench::client(start, chains).run(&mut input),
            _ => {}
        }
    }
    before.assert_given_back();
    assert_eq!(fence::count(), 0, "memory is still mapped");
});

struct Bench {
    /// The peer's view of each region.
    regions: Vec<Memory>,
    /// The peer's ends, receiving ring first.
    events: [OwnedFd; 2],
    rx: RxRing,
    tx: TxRing,
    /// Of `rx` and `tx`.
    models: [Model; 2],
    image: Image,
    _peer: Peer,
}

/// Steps the side under test until it has dealt with what the peer said.
fn connected(progress: Progress) -> Option<Interface> {
    match progress {
        Progress::Connected(interface) => Some(*interface),
        Progress::Pending => None,
    }
}

impl Bench {
    /// Our server, and a client whose rings and buffers are in two regions.
    fn server(log2: u8, start: u16, chains: bool) -> Self {
        let (peer, mut handshake) = peer::server_under_test();
        let ring_bytes = 128 + (16 << log2);
        let sizes = [2 * ring_bytes, BUFFERS_BYTES];
        let files = sizes.map(|bytes| memory::file(bytes as u64, libc::F_SEAL_SHRINK));
        let regions: Vec<Memory> =
            files.iter().zip(sizes).map(|(file, bytes)| Memory::map(file, bytes)).collect();
        let events = [peer::eventfd(), peer::eventfd()];
        let models = [(0, Direction::Rx), (ring_bytes, Direction::Tx)].map(|(at, direction)| {
            let model = Model::new(at, 1 << log2, Role::Server, direction, start, PACKET_BYTES_MAX, chains);
            regions[0].write(at, &COOKIE);
            regions[0].set_u16(model.own_index_at(), start);
            regions[0].set_u16(model.peer_index_at(), start);
            model
        });
        peer.send(&peer::init(b""), &[]);
        for (index, (file, bytes)) in (0..).zip(files.iter().zip(sizes)) {
            peer.send(&peer::add_region(index, bytes as u64), &[file.as_raw_fd()]);
        }
        peer.send(&peer::add_ring(true, 0, 0, log2), &[events[0].as_raw_fd()]);
        peer.send(&peer::add_ring(false, 0, ring_bytes as u32, log2), &[events[1].as_raw_fd()]);
        peer.send(&peer::connect(), &[]);
        // Unsealed: without the thread that would add the seal, an input takes a tenth of the time.
        let config = ServerConfig {
            packet_bytes_max: PACKET_BYTES_MAX,
            chains,
            allow_unsealed: true,
            ..ServerConfig::default()
        };
        let progress = handshake.step(&mut |_| Ok(config.clone())).expect("an honest client");
        let interface = connected(progress).expect("all has been said");
        Self::new(interface, regions, events, models, peer)
    }

    /// Our client, and a server that answers it.
    fn client(start: u16, chains: bool) -> Self {
        let config = ClientConfig {
            ring_log2: CLIENT_LOG2,
            buffer_bytes: CLIENT_BUFFER_BYTES,
            chains,
            ..ClientConfig::default()
        };
        let (peer, mut client) = peer::client_under_test(config);
        peer.send(&peer::hello(0, CLIENT_LOG2), &[]);
        let (mut regions, mut rings) = (Vec::new(), Vec::new());
        loop {
            assert!(connected(client.step().expect("an honest server")).is_none());
            let (message, fd) = peer.receive().expect("an answer");
            match (message[0], fd) {
                (4, Some(file)) => {
                    let bytes = u64::from_ne_bytes(message[4..12].try_into().expect("8 bytes"));
                    regions.push(Memory::map(&file, bytes as usize));
                }
                (5, Some(event)) => {
                    let offset = u32::from_ne_bytes(message[8..12].try_into().expect("4 bytes"));
                    rings.push((offset as usize, event));
                }
                (6, None) => break,
                _ => {}
            }
            peer.send(&peer::ack(), &[]);
        }
        let [(s2m, s2m_event), (m2s, m2s_event)] = rings.try_into().expect("two rings");
        let mut models = [(m2s, Direction::Rx), (s2m, Direction::Tx)].map(|(at, direction)| {
            let model =
                Model::new(at, 1 << CLIENT_LOG2, Role::Client, direction, start, CLIENT_BUFFER_BYTES, chains);
            regions[0].set_u16(model.peer_index_at(), start);
            model
        });
        peer.send(&peer::connected(), &[]);
        let interface = connected(client.step().expect("an honest server")).expect("all has been said");
        let [rx, _] = &mut models;
        rx.note_own_buffers(&regions[0]);
        assert_eq!(regions[0].u16(rx.own_index_at()), start.wrapping_add(rx.size), "all buffers are offered");
        Self::new(interface, regions, [m2s_event, s2m_event], models, peer)
    }

    fn new(
        mut interface: Interface,
        regions: Vec<Memory>,
        events: [OwnedFd; 2],
        models: [Model; 2],
        peer: Peer,
    ) -> Self {
        assert_eq!(fence::count(), 2 * regions.len(), "a mapping without a fence");
        let (rx, tx) = (interface.rx.remove(0), interface.tx.remove(0));
        assert_eq!((rx.size(), tx.size()), (models[0].size, models[1].size));
        Self { regions, events, rx, tx, models, image: Image::default(), _peer: peer }
    }

    fn run(mut self, input: &mut Input<'_>) {
        while let Some(operation) = input.byte() {
            // `None`: operands are missing at the end of the input.
            if self.peer_does(operation, input).is_none() {
                break;
            }
            let before = self.own_indexes();
            if self.we_do(operation, input).is_none() {
                break;
            }
            if !matches!(operation, b'l' | b'f' | b'P') {
                assert_eq!(self.own_indexes(), before, "an index moved");
            }
        }
    }

    fn own_indexes(&self) -> [u16; 2] {
        [0, 1].map(|ring: usize| self.regions[0].u16(self.models[ring].own_index_at()))
    }

    fn model(&self, ring: u8) -> &Model {
        &self.models[usize::from(ring % 2)]
    }

    fn peer_does(&mut self, operation: u8, input: &mut Input<'_>) -> Option<()> {
        let rings = &self.regions[0];
        match operation {
            b'd' => {
                let [ring, slot] = input.array()?;
                rings.write(self.model(ring).slot_at(slot.into()), input.take(16)?);
            }
            b'g' => {
                let [ring, ahead] = input.array()?;
                self.write_good_descriptor(self.model(ring), ahead, input.u16()?);
            }
            b'h' => {
                let ([ring, ahead, pieces], length) = (input.array()?, input.u16()?);
                let model = self.model(ring);
                // More than the ring has would only write over the first ones.
                let pieces = (pieces % 64).min(model.size as u8);
                for piece in 0..pieces {
                    let ahead = ahead.wrapping_add(piece);
                    self.write_good_descriptor(model, ahead, length);
                    let next = u16::from(piece + 1 < pieces);
                    rings.set_u16(model.slot_at(model.next().wrapping_add(ahead.into())), next);
                }
            }
            b'c' => {
                let [ring, ahead] = input.array()?;
                let model = self.model(ring);
                rings.set_u16(model.slot_at(model.next().wrapping_add(ahead.into())), 1);
            }
            b'i' => {
                let [ring, by] = input.array()?;
                let at = self.model(ring).peer_index_at();
                rings.set_u16(at, rings.u16(at).wrapping_add_signed((by as i8).into()));
            }
            b'j' => rings.set_u16(self.model(input.byte()?).peer_index_at(), input.u16()?),
            b'o' => rings.set_u16(self.model(input.byte()?).own_index_at(), input.u16()?),
            b'F' => rings.set_u16(self.model(input.byte()?).flags_at(), input.u16()?),
            b'w' => {
                let region = &self.regions[usize::from(input.byte()?) % self.regions.len()];
                let (offset, [count, value]) = (input.u16()?, input.array()?);
                let at = usize::from(offset) % region.len();
                let count = usize::from(count).min(region.len() - at);
                region.write(at, &[value; 255][..count]);
            }
            b'e' => self.fill_event(input.byte()?),
            _ => {}
        }
        Some(())
    }

    /// A buffer that lies where it should: an empty one, or one with a packet.
    fn write_good_descriptor(&self, model: &Model, ahead: u8, length: u16) {
        let slot = model.next().wrapping_add(ahead.into());
        let region = if self.regions.len() > 1 { BUFFERS } else { 0 };
        let bytes = self.regions[usize::from(region)].len() as u32;
        let length = u32::from(length);
        let offset = (u32::from(slot) * 601) % (bytes - length.min(bytes - 1));
        let at = model.slot_at(slot);
        self.regions[0].set_u16(at, 0);
        self.regions[0].set_u16(at + 2, region);
        self.regions[0].write(at + 4, &length.to_ne_bytes());
        self.regions[0].write(at + 8, &offset.to_ne_bytes());
    }

    /// A count that nothing can be added to, and a file that makes a plain write wait for that.
    fn fill_event(&self, ring: u8) {
        if WAKES_SAFELY.get() == Some(&true) {
            let event = self.events[usize::from(ring % 2)].as_raw_fd();
            let most = (u64::MAX - 1).to_ne_bytes();
            // SAFETY: eight bytes are read. It fails if there is a count already; then less is left to fill.
            unsafe {
                libc::fcntl(event, libc::F_SETFL, libc::O_NONBLOCK);
                libc::write(event, most.as_ptr().cast(), most.len());
                libc::fcntl(event, libc::F_SETFL, 0);
            }
        }
    }

    fn we_do(&mut self, operation: u8, input: &mut Input<'_>) -> Option<()> {
        let memory = &self.regions[0];
        let [rx, tx] = &mut self.models;
        match operation {
            b'p' => assert_eq!(self.rx.pending(), rx.look(memory)),
            b'k' => assert_eq!(self.tx.free(), tx.look(memory)),
            b'n' => self.take_packets(input.byte()?),
            b'l' => {
                let expected = rx.publish().unwrap_or(memory.u16(rx.own_index_at()));
                self.rx.release();
                assert_eq!(memory.u16(rx.own_index_at()), expected);
            }
            b'P' => self.push_packet(input.u16()?.into()),
            b'f' => {
                let published = tx.publish();
                let wakes = published.is_some() && !tx.is_masked(memory);
                let expected = published.unwrap_or(memory.u16(tx.own_index_at()));
                assert_eq!(self.tx.flush().expect("waking never fails"), wakes);
                assert_eq!(memory.u16(tx.own_index_at()), expected);
            }
            b'A' => {
                assert_eq!(self.rx.arm(), rx.look(memory).map(|pending| pending > 0));
                assert_eq!(memory.u16(rx.flags_at()), 0);
            }
            b'E' => {
                self.rx.enable_interrupt();
                assert_eq!(memory.u16(rx.flags_at()), 0);
            }
            b'M' => {
                self.rx.disable_interrupt();
                assert_eq!(memory.u16(rx.flags_at()), 1);
            }
            b'W' => {
                let expected = rx.look(memory).map(|pending| pending > 0);
                assert_eq!(self.rx.wait(Duration::ZERO).ok(), expected.ok());
                assert_eq!(memory.u16(rx.flags_at()), 1);
            }
            b'D' => self.rx.drain_event().expect("draining never fails"),
            b't' => self.rx.prefetch(input.u16()?),
            _ => {}
        }
        Some(())
    }

    fn take_packets(&mut self, how: u8) {
        for _ in 0..=how & 15 {
            let [model, _] = &mut self.models;
            let Some(expected) = model.take(&self.regions) else {
                assert!(self.rx.next_packet().is_none(), "a packet from nowhere");
                return;
            };
            self.image.copy(&self.regions);
            self.image.apply(model.writes_of_taking(&expected));
            let taken = self.rx.next_packet().expect("a packet is due");
            self.image.assert_is(&self.regions);
            if how & 16 != 0 {
                for slot in 0..expected.pieces.len() as u16 {
                    self.regions[0].write(model.slot_at(expected.first.wrapping_add(slot)), &[0xff; 16]);
                }
            }
            assert_eq!(taken.as_ref().map(|packet| packet.len() as u32).map_err(|why| *why), expected.result);
            let Ok(packet) = taken else { continue };
            let length = packet.len();
            let mut bytes = vec![0; length + 1];
            if how & 32 != 0 {
                assert_eq!(packet.copy_to(&mut bytes[..length - 1]), None);
                assert!(bytes.iter().all(|byte| *byte == 0), "refused, but bytes have been copied");
            }
            assert_eq!(packet.copy_to(&mut bytes), Some(length));
            let seen: Vec<u8> =
                expected.pieces.iter().flat_map(|piece| piece.content(&self.regions)).collect();
            assert!(bytes[..length] == seen && bytes[length] == 0, "not the packet's bytes");
        }
    }

    fn push_packet(&mut self, length: usize) {
        let [_, model] = &mut self.models;
        let expected = model.send(&self.regions, length);
        self.image.copy(&self.regions);
        assert_eq!(self.tx.push(&PACKET[..length]), expected.result);
        self.image.apply(model.writes_of_sending(&expected, &PACKET[..length], &self.regions[0]));
        self.image.assert_is(&self.regions);
    }
}

/// A packet whose bytes differ from place to place, so that pieces in the wrong order show.
static PACKET: [u8; 1 << 16] = {
    let mut bytes = [0; 1 << 16];
    let mut at = 0;
    while at < bytes.len() {
        bytes[at] = (at % 251) as u8;
        at += 1;
    }
    bytes
};

/// All regions as they must be.
#[derive(Default)]
struct Image(Vec<Vec<u8>>);

impl Image {
    fn copy(&mut self, regions: &[Memory]) {
        self.0.resize_with(regions.len(), Vec::new);
        for (copy, region) in self.0.iter_mut().zip(regions) {
            copy.resize(region.len(), 0);
            region.read(0, copy);
        }
    }

    fn apply(&mut self, writes: Vec<Write>) {
        for (region, at, bytes) in writes {
            self.0[region][at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }

    fn assert_is(&self, regions: &[Memory]) {
        for (index, (wanted, region)) in self.0.iter().zip(regions).enumerate() {
            assert_eq!(region.differs(wanted), None, "a byte of region {index} is not what it must be");
        }
    }
}
