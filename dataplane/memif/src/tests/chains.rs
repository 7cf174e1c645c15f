//! Chains, where they are allowed, against peers made by hand: what is taken, what is refused and how the ring goes on after it,
//! and what a chain that we send looks like in memory. Both roles.

use super::client_side::{Peer, RX_BUFFERS, RX_RING, STRIDE, TX_BUFFERS, TX_RING, config, hello};
use super::hostile_client::{connected_with, taken};
use super::*;
use crate::CHAIN_MAX;
use crate::client::ClientConfig;
use crate::error::{BadDescriptor, PushError, Violation};
use crate::message::Hello;
use crate::rx::RxRing;
use crate::tx::TxRing;

/// The descriptor flag.
const NEXT: u16 = 1;

/// Length, region, offset.
type PieceAt = (u32, u16, u32);
/// What a call gave: a packet of so many bytes, or why not.
type Taken = Result<usize, BadDescriptor>;

fn server_at(start: u16) -> (Bench, RxRing, TxRing) {
    let config = ServerConfig { packet_bytes_max: 1500, chains: true, ..ServerConfig::default() };
    connected_with(config, start)
}

fn client(hello: Hello) -> (Memory, RxRing, TxRing) {
    let (mut peer, memory, _) = Peer::served(ClientConfig { chains: true, ..config() }, hello);
    let mut interface = peer.connected();
    (memory, interface.rx.remove(0), interface.tx.remove(0))
}

/// Where the hand-made client's buffer of a slot lies.
fn buffer(slot: u16) -> u32 {
    BUFFERS_AT + u32::from(slot % SLOTS) * BUFFER_BYTES
}

/// A piece in its slot's own buffer, which is filled with `byte`.
fn put(memory: &Memory, slot: u16, flags: u16, length: u32, byte: u8) {
    memory.set_slot(S2M_AT, slot % SLOTS, descriptor(flags, 0, length, buffer(slot)));
    memory.write(u64::from(buffer(slot)), &vec![byte; length as usize]);
}

/// Bytes that differ from place to place, so that pieces in the wrong order show.
fn pattern(bytes: usize) -> Vec<u8> {
    (0..bytes).map(|at| (at % 251) as u8).collect()
}

fn results(rx: &mut RxRing) -> Vec<Taken> {
    std::iter::from_fn(|| rx.next_packet().map(|result| result.map(|packet| packet.len()))).collect()
}

#[test]
fn a_chain_is_one_packet_also_across_both_wraps() {
    for start in [0u16, 30, 0xfffe] {
        let (bench, mut rx, _tx) = server_at(start);
        let at = |ahead: u16| start.wrapping_add(ahead);
        put(&bench.memory, at(0), NEXT, 100, 1);
        put(&bench.memory, at(1), NEXT, 1, 2);
        put(&bench.memory, at(2), 0, 200, 3);
        put(&bench.memory, at(3), 0, 14, 4);
        bench.memory.set_head(S2M_AT, at(4));
        assert_eq!(rx.pending(), Ok(4), "slots");
        let packet = rx.next_packet().unwrap().unwrap();
        let mut short = [0xee; 300];
        assert_eq!((packet.len(), packet.copy_to(&mut short)), (301, None));
        assert_eq!(short, [0xee; 300]);
        // What was read once is not read again.
        bench.memory.set_slot(S2M_AT, at(1) % SLOTS, descriptor(0, 9, u32::MAX, u32::MAX));
        let mut bytes = [0; 1500];
        assert_eq!(packet.copy_to(&mut bytes), Some(301));
        let mut front = [0; 100];
        assert_eq!((packet.copy_front_to(&mut front), front), (Some(100), [1; 100]), "the first piece");
        assert_eq!(packet.copy_front_to(&mut [0; 101]), None, "the second piece is elsewhere");
        assert_eq!(bytes[..301], [&[1; 100][..], &[2; 1], &[3; 200]].concat());
        assert_eq!(taken(&mut rx), [4; 14], "the next packet");
        assert!(rx.next_packet().is_none());
        assert_eq!(bench.memory.tail(S2M_AT), start, "not before release");
        rx.release();
        assert_eq!(bench.memory.tail(S2M_AT), at(4));
    }
}

#[test]
fn a_chain_with_anything_wrong_is_one_error_for_all_its_slots() {
    let end = REGION_BYTES as u32;
    let good = (100, 0, 4096);
    use BadDescriptor::{Region, Span, TooLong, TooShort};
    let table: [(&[PieceAt], BadDescriptor); 11] = [
        (&[(100, 1, 4096), good, good], Region),
        (&[good, (100, 0xffff, 4096), good], Region),
        (&[good, good, (100, 0, end - 99)], Span),
        (&[good, (100, 0, u32::MAX), good], Span),
        (&[good, (0, 0, 4096), good], TooShort),
        (&[good, (0, 0, 4096)], TooShort),
        (&[(7, 0, 4096), (6, 0, 4096)], TooShort),
        (&[(1501, 0, 4096), good], TooLong),
        (&[(1400, 0, 4096), good, (1, 0, 4096)], TooLong),
        (&[(u32::MAX, 0, 0), (u32::MAX, 0, 0)], TooLong),
        (&[good, (100, 7, 4096), (1501, 0, 4096)], Region),
    ];
    for (pieces, why) in table {
        let (bench, mut rx, _tx) = server_at(0);
        let last = pieces.len() as u16;
        for (slot, &(length, region, offset)) in (0..).zip(pieces) {
            let flags = if slot + 1 < last { NEXT } else { 0 };
            bench.memory.set_slot(S2M_AT, slot, descriptor(flags, region, length, offset));
        }
        put(&bench.memory, last, 0, 64, 5);
        bench.memory.set_head(S2M_AT, last + 1);
        rx.pending().unwrap();
        assert_eq!(rx.next_packet().unwrap().unwrap_err(), why, "{pieces:?}");
        assert_eq!(taken(&mut rx), [5; 64], "after {pieces:?}");
        assert!(rx.next_packet().is_none());
        rx.release();
        assert_eq!(bench.memory.tail(S2M_AT), last + 1);
    }
}

#[test]
fn lengths_at_the_limits_are_taken() {
    let (bench, mut rx, _tx) = server_at(0);
    for (slot, (flags, length)) in (0..).zip([(NEXT, 13), (0, 1), (NEXT, 512), (NEXT, 512), (0, 476)]) {
        put(&bench.memory, slot, flags, length, 0);
    }
    bench.memory.set_head(S2M_AT, 5);
    rx.pending().unwrap();
    assert_eq!(results(&mut rx), [Ok(14), Ok(1500)]);
}

#[test]
fn a_chain_that_is_too_long_is_skipped_to_its_end() {
    use BadDescriptor::{Region, TooLong};
    // (pieces, whether the third is bad, what the calls give)
    let max = usize::from(CHAIN_MAX);
    let cases: [(u16, bool, &[Taken]); 6] = [
        (CHAIN_MAX, false, &[Ok(20 * max)]),
        (CHAIN_MAX, true, &[Err(Region)]),
        (CHAIN_MAX + 1, false, &[Err(TooLong), Err(TooLong)]),
        (CHAIN_MAX + 1, true, &[Err(Region), Err(Region)]),
        (2 * CHAIN_MAX - 1, false, &[Err(TooLong), Err(TooLong)]),
        (SLOTS - 2, false, &[Err(TooLong), Err(TooLong)]),
    ];
    for (pieces, bad, expected) in cases {
        let start = 0xfff0;
        let (bench, mut rx, _tx) = server_at(start);
        for ahead in 0..pieces {
            put(&bench.memory, start.wrapping_add(ahead), NEXT, 20, 0);
        }
        if bad {
            let slot = start.wrapping_add(2) % SLOTS;
            bench.memory.set_slot(S2M_AT, slot, descriptor(NEXT, 3, 20, 4096));
        }
        put(&bench.memory, start.wrapping_add(pieces - 1), 0, 20, 0);
        let mut head = start.wrapping_add(pieces);
        if pieces < SLOTS - 1 {
            put(&bench.memory, head, 0, 99, 0);
            head = head.wrapping_add(1);
        }
        bench.memory.set_head(S2M_AT, head);
        rx.pending().unwrap();
        let results = results(&mut rx);
        let (next, chain) = results.split_last().unwrap();
        if pieces < SLOTS - 1 {
            assert_eq!((chain, *next), (expected, Ok(99)), "{pieces} pieces");
        } else {
            assert_eq!(results, expected, "{pieces} pieces");
        }
        rx.release();
        assert_eq!(bench.memory.tail(S2M_AT), head);
    }
}

#[test]
fn an_endless_chain_takes_a_bounded_number_of_slots_a_call() {
    let (bench, mut rx, _tx) = server_at(0);
    let mut head = 0u16;
    for round in 0..100 {
        // Anew in each round: a server gives slots back without NEXT.
        for slot in 0..SLOTS {
            put(&bench.memory, slot, NEXT, 100, 0);
        }
        head = head.wrapping_add(SLOTS);
        bench.memory.set_head(S2M_AT, head);
        assert_eq!(rx.pending(), Ok(SLOTS));
        for left in [SLOTS - CHAIN_MAX, 0] {
            assert_eq!(rx.next_packet().unwrap().unwrap_err(), BadDescriptor::TooLong, "round {round}");
            assert_eq!(rx.pending(), Ok(left));
        }
        rx.release();
    }
    put(&bench.memory, head, 0, 100, 0);
    put(&bench.memory, head + 1, 0, 64, 0);
    bench.memory.set_head(S2M_AT, head.wrapping_add(2));
    rx.pending().unwrap();
    assert_eq!(results(&mut rx), [Err(BadDescriptor::TooLong), Ok(64)]);
}

#[test]
fn a_chain_that_is_cut_off_is_unfinished_and_so_is_its_rest() {
    use BadDescriptor::Unfinished;
    let (bench, mut rx, _tx) = server_at(0);
    for (slot, flags) in (0..).zip([NEXT, NEXT, NEXT, 0, 0]) {
        put(&bench.memory, slot, flags, 64 + u32::from(slot), 0);
    }
    for (head, expected) in [(2, Err(Unfinished)), (3, Err(Unfinished)), (4, Err(Unfinished)), (5, Ok(68))] {
        bench.memory.set_head(S2M_AT, head);
        rx.pending().unwrap();
        assert_eq!(results(&mut rx), [expected], "up to slot {head}");
        rx.release();
        assert_eq!(bench.memory.tail(S2M_AT), head);
    }
    // The first fault is the one that counts.
    bench.memory.set_slot(S2M_AT, 5, descriptor(NEXT, 2, 64, 4096));
    bench.memory.set_head(S2M_AT, 6);
    rx.pending().unwrap();
    assert_eq!(results(&mut rx), [Err(BadDescriptor::Region)]);
}

/// Offers the slots' own buffers with these lengths, from `start` on.
fn offer(memory: &Memory, start: u16, lengths: &[u32]) {
    let mut slot = start;
    for length in lengths {
        // A stale NEXT must not reach the reader.
        memory.set_slot(M2S_AT, slot % SLOTS, descriptor(NEXT, 0, *length, buffer(slot)));
        slot = slot.wrapping_add(1);
    }
    memory.set_head(M2S_AT, slot);
}

#[test]
fn a_server_fills_as_many_offered_buffers_as_it_needs() {
    for start in [0u16, 30, 0xfffe] {
        let (bench, _rx, mut tx) = server_at(start);
        let slot = |ahead: u16| start.wrapping_add(ahead) % SLOTS;
        offer(&bench.memory, start, &[512, 100, 512, 512]);
        let packet = pattern(613);
        tx.push(&packet).unwrap();
        tx.push(&packet[..20]).unwrap();
        assert_eq!(bench.memory.tail(M2S_AT), start, "not before flush");
        tx.flush().unwrap();
        assert_eq!(bench.memory.tail(M2S_AT), start.wrapping_add(4));
        for (ahead, (flags, length)) in (0..).zip([(NEXT, 512), (NEXT, 100), (0, 1), (0, 20)]) {
            let expected = descriptor(flags, 0, length, buffer(slot(ahead)));
            assert_eq!(bench.memory.slot(M2S_AT, slot(ahead)), expected, "slot {}", slot(ahead));
        }
        assert_eq!(bench.memory.read::<512>(u64::from(buffer(slot(0)))), packet[..512]);
        assert_eq!(bench.memory.read::<100>(u64::from(buffer(slot(1)))), packet[512..612]);
        let after = [&packet[612..], &[0]].concat();
        assert_eq!(bench.memory.read::<2>(u64::from(buffer(slot(2)))), *after, "nothing after the packet");
    }
}

#[test]
fn a_server_sends_all_of_a_packet_or_nothing() {
    let (bench, _rx, mut tx) = server_at(0xfffe);
    offer(&bench.memory, 0xfffe, &[512, 512]);
    let before = [30, 31].map(|slot| bench.memory.slot(M2S_AT, slot));
    assert_eq!(tx.push(&pattern(1025)), Err(PushError::Full));
    assert!(!tx.flush().unwrap());
    assert_eq!(bench.memory.tail(M2S_AT), 0xfffe);
    assert_eq!([30, 31].map(|slot| bench.memory.slot(M2S_AT, slot)), before);
    // A head that cannot be, found while more buffers are looked for.
    bench.memory.set_head(M2S_AT, 0xfffeu16.wrapping_add(33));
    let violation = Violation::IndexJump { pending: 33, size: 32 };
    assert_eq!(tx.push(&pattern(1025)), Err(PushError::Violation(violation)));
    // One more buffer, which an honest client offers meanwhile.
    offer(&bench.memory, 0xfffe, &[512, 512, 512]);
    tx.push(&pattern(1025)).unwrap();
    tx.flush().unwrap();
    assert_eq!(bench.memory.tail(M2S_AT), 1);
}

#[test]
fn a_bad_buffer_in_the_middle_costs_the_chain_and_nothing_else() {
    let table = [
        (descriptor(0, 1, 512, 4096), BadDescriptor::Region),
        (descriptor(0, 0, 512, REGION_BYTES as u32 - 511), BadDescriptor::Span),
        (descriptor(0, 0, 13, 4096), BadDescriptor::TooShort),
    ];
    for (bad, why) in table {
        let (bench, _rx, mut tx) = server_at(0);
        offer(&bench.memory, 0, &[512; 6]);
        bench.memory.set_slot(M2S_AT, 2, bad);
        assert_eq!(tx.push(&pattern(1200)), Err(PushError::BadDescriptor(why)));
        tx.push(&pattern(1200)).unwrap();
        assert_eq!(tx.push(&pattern(20)), Err(PushError::Full));
        tx.flush().unwrap();
        assert_eq!(bench.memory.tail(M2S_AT), 6);
        for slot in [0, 1] {
            assert_eq!(bench.memory.slot(M2S_AT, slot), descriptor(0, 0, 0, buffer(slot)), "given back");
        }
        assert_eq!(bench.memory.slot(M2S_AT, 2)[..8], descriptor(0, u16::from(bad[2]), 0, 0)[..8]);
        assert_eq!(bench.memory.read::<4>(u64::from(buffer(0))), [0; 4], "nothing was copied there");
        for (slot, (flags, length)) in (3..).zip([(NEXT, 512), (NEXT, 512), (0, 176)]) {
            assert_eq!(bench.memory.slot(M2S_AT, slot), descriptor(flags, 0, length, buffer(slot)));
        }
    }
}

#[test]
fn a_server_fills_at_most_chain_max_buffers() {
    let (bench, _rx, mut tx) = server_at(0);
    offer(&bench.memory, 0, &[64; SLOTS as usize]);
    let capacity = 64 * u32::from(CHAIN_MAX);
    assert_eq!(tx.push(&pattern(capacity as usize + 1)), Err(PushError::TooLong { capacity }));
    tx.push(&pattern(capacity as usize)).unwrap();
    assert_eq!(tx.free(), Ok(SLOTS - CHAIN_MAX));
    tx.push(&pattern(64)).unwrap();
    tx.flush().unwrap();
    for slot in 0..CHAIN_MAX {
        let flags = if slot + 1 < CHAIN_MAX { NEXT } else { 0 };
        assert_eq!(bench.memory.slot(M2S_AT, slot), descriptor(flags, 0, 64, buffer(slot)));
    }
    assert_eq!(bench.memory.slot(M2S_AT, CHAIN_MAX), descriptor(0, 0, 64, buffer(CHAIN_MAX)));
}

#[test]
fn a_client_takes_a_chain_and_offers_every_buffer_again() {
    let (memory, mut rx, _tx) = client(hello());
    let at = |slot: u16| RX_BUFFERS + u32::from(slot) * STRIDE;
    for (slot, (flags, length)) in (0..).zip([(NEXT, 2048), (NEXT, 2048), (0, 10), (0, 60)]) {
        memory.set_slot(RX_RING, slot, descriptor(flags, 0, length, at(slot)));
        memory.write(u64::from(at(slot)), &vec![1 + slot as u8; length as usize]);
    }
    // The server's own mistakes: a piece that is longer than a buffer, and a chain without an end.
    memory.set_slot(RX_RING, 4, descriptor(NEXT, 0, 2049, at(4)));
    memory.set_slot(RX_RING, 5, descriptor(0, 0, 100, at(5)));
    memory.set_slot(RX_RING, 6, descriptor(NEXT, 0, 100, at(6)));
    memory.set_tail(RX_RING, 7);
    assert_eq!(rx.pending(), Ok(7));
    let mut bytes = [0; 8192];
    assert_eq!(rx.next_packet().unwrap().unwrap().copy_to(&mut bytes), Some(4106));
    assert_eq!(bytes[..4106], [&[1; 2048][..], &[2; 2048], &[3; 10]].concat());
    assert_eq!(rx.next_packet().unwrap().unwrap().copy_to(&mut bytes), Some(60));
    assert_eq!(bytes[..60], [4; 60]);
    assert_eq!(results(&mut rx), [Err(BadDescriptor::TooLong), Err(BadDescriptor::Unfinished)]);
    assert_eq!(memory.head(RX_RING), 32, "not before release");
    rx.release();
    assert_eq!(memory.head(RX_RING), 32 + 7);
    for slot in 0..SLOTS {
        assert_eq!(memory.slot(RX_RING, slot), descriptor(0, 0, 2048, at(slot)));
    }
}

#[test]
fn a_client_takes_chains_of_up_to_chain_max_whole_buffers() {
    for (pieces, expected) in [
        (CHAIN_MAX, &[Ok(32768)][..]),
        (CHAIN_MAX + 1, &[Err(BadDescriptor::TooLong), Err(BadDescriptor::TooLong)]),
    ] {
        let (memory, mut rx, _tx) = client(hello());
        for slot in 0..pieces {
            let flags = if slot + 1 < pieces { NEXT } else { 0 };
            let at = RX_BUFFERS + u32::from(slot) * STRIDE;
            memory.set_slot(RX_RING, slot, descriptor(flags, 0, 2048, at));
        }
        memory.set_tail(RX_RING, pieces);
        rx.pending().unwrap();
        assert_eq!(results(&mut rx), expected);
    }
}

#[test]
fn a_client_sends_a_chain_from_its_own_buffers() {
    let (memory, _rx, mut tx) = client(hello());
    let at = |slot: u16| TX_BUFFERS + u32::from(slot) * STRIDE;
    // What the server writes into them does not matter.
    for slot in 0..SLOTS {
        memory.set_slot(TX_RING, slot, descriptor(NEXT, 7, u32::MAX, u32::MAX));
    }
    for _ in 0..30 {
        tx.push(&pattern(64)).unwrap();
    }
    assert_eq!(tx.push(&pattern(4097)), Err(PushError::Full), "two slots are free, and three needed");
    tx.flush().unwrap();
    assert_eq!(memory.head(TX_RING), 30);
    assert_eq!(memory.slot(TX_RING, 30), descriptor(NEXT, 7, u32::MAX, u32::MAX), "untouched");
    memory.set_tail(TX_RING, 30);
    let packet = pattern(4097);
    tx.push(&packet).unwrap();
    tx.flush().unwrap();
    assert_eq!(memory.head(TX_RING), 33);
    for ((slot, piece), flags) in [30, 31, 0].into_iter().zip(packet.chunks(2048)).zip([NEXT, NEXT, 0]) {
        assert_eq!(memory.slot(TX_RING, slot), descriptor(flags, 0, piece.len() as u32, at(slot)));
        assert_eq!(memory.read::<2048>(u64::from(at(slot)))[..piece.len()], *piece);
    }
    // Once round the ring: no NEXT is left where a single packet now is.
    memory.set_tail(TX_RING, 33);
    for _ in 0..SLOTS {
        tx.push(&pattern(64)).unwrap();
    }
    for slot in 0..SLOTS {
        assert_eq!(memory.slot(TX_RING, slot), descriptor(0, 0, 64, at(slot)));
    }
}

#[test]
fn a_client_sends_at_most_what_its_chain_or_its_ring_holds() {
    let (_memory, _rx, mut tx) = client(hello());
    assert_eq!(tx.push(&pattern(32769)), Err(PushError::TooLong { capacity: 32768 }));
    tx.push(&pattern(32768)).unwrap();
    tx.push(&pattern(32767)).unwrap();
    assert_eq!(tx.push(&pattern(32769)), Err(PushError::Full));
    // A server that allows two slots only: what could never be sent is not called "full".
    let (memory, _rx, mut tx) = client(Hello { max_log2: 1, ..hello() });
    assert_eq!(tx.push(&pattern(4097)), Err(PushError::TooLong { capacity: 4096 }));
    tx.push(&pattern(4096)).unwrap();
    tx.flush().unwrap();
    assert_eq!(memory.head(TX_RING), 2);
}
