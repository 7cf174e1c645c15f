//! The rings as both sides use them, over the in-process pair.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::time::{Duration, Instant};

use peregrine_memif::{ClientConfig, Interface, PushError, Role, RxRing, ServerConfig, TxRing, pair};

fn small() -> ClientConfig {
    ClientConfig { ring_log2: 5, ..ClientConfig::default() }
}

fn connected(config: ClientConfig) -> (Interface, Interface) {
    pair(config, ServerConfig::default()).unwrap()
}

/// Both directions: (sender, receiver) of S2M, then of M2S. The sides' control sockets are dropped: rings live on their own.
fn directions(config: ClientConfig) -> [(TxRing, RxRing); 2] {
    let (mut client, mut server) = connected(config);
    [(client.tx.remove(0), server.rx.remove(0)), (server.tx.remove(0), client.rx.remove(0))]
}

/// A packet that carries its number.
fn packet(number: u32, bytes: usize) -> Vec<u8> {
    let mut packet = vec![number as u8; bytes];
    packet[..4].copy_from_slice(&number.to_ne_bytes());
    packet
}

fn receive(rx: &mut RxRing) -> Option<Vec<u8>> {
    rx.pending().unwrap();
    let mut bytes = vec![0; 16384];
    let length = rx.next_packet()?.unwrap().copy_to(&mut bytes).unwrap();
    bytes.truncate(length);
    Some(bytes)
}

#[test]
fn packets_cross_unchanged_in_both_directions() {
    for (mut tx, mut rx) in directions(small()) {
        for bytes in [14, 15, 60, 64, 1500, 2047, 2048] {
            tx.push(&packet(7, bytes)).unwrap();
            assert_eq!(receive(&mut rx), None, "visible only after flush");
            tx.flush().unwrap();
            assert_eq!(receive(&mut rx), Some(packet(7, bytes)));
            rx.release();
        }
    }
}

#[test]
fn a_full_ring_refuses_and_a_release_frees_it() {
    for (mut tx, mut rx) in directions(small()) {
        assert_eq!(tx.free(), Ok(32));
        for number in 0..32 {
            tx.push(&packet(number, 64)).unwrap();
        }
        assert_eq!(tx.push(&packet(32, 64)), Err(PushError::Full));
        tx.flush().unwrap();
        assert_eq!(tx.push(&packet(32, 64)), Err(PushError::Full));
        assert_eq!(rx.pending(), Ok(32));
        assert_eq!(receive(&mut rx), Some(packet(0, 64)));
        assert_eq!(tx.free(), Ok(0), "taken is not released");
        rx.release();
        assert_eq!(tx.free(), Ok(1));
        tx.push(&packet(32, 64)).unwrap();
        tx.flush().unwrap();
        for number in 1..=32 {
            assert_eq!(receive(&mut rx), Some(packet(number, 64)));
        }
        assert_eq!(rx.pending(), Ok(0));
    }
}

#[test]
fn the_indexes_wrap_at_65536() {
    for (mut tx, mut rx) in directions(small()) {
        // 2100 bursts of 31 are 65100 packets, and 100 more bursts go well past the wrap.
        let mut number = 0;
        for _ in 0..2200 {
            for offset in 0..31 {
                tx.push(&packet(number + offset, 14)).unwrap();
            }
            tx.flush().unwrap();
            assert_eq!(rx.pending(), Ok(31));
            for offset in 0..31 {
                assert_eq!(receive(&mut rx), Some(packet(number + offset, 14)));
            }
            rx.release();
            number += 31;
        }
    }
}

#[test]
fn a_packet_that_does_not_fit_leaves_its_slot_to_the_next() {
    for (mut tx, mut rx) in directions(small()) {
        assert_eq!(tx.push(&[0; 2049]), Err(PushError::TooLong { capacity: 2048 }));
        assert_eq!(tx.push(&[0; 13]), Err(PushError::TooShort));
        assert_eq!(tx.push(&[]), Err(PushError::TooShort));
        tx.push(&packet(1, 64)).unwrap();
        tx.flush().unwrap();
        assert_eq!(receive(&mut rx), Some(packet(1, 64)));
        assert_eq!(rx.pending(), Ok(0));
    }
}

#[test]
fn a_short_buffer_gets_nothing() {
    let [(mut tx, mut rx), _] = directions(small());
    tx.push(&packet(1, 64)).unwrap();
    tx.flush().unwrap();
    rx.pending().unwrap();
    let taken = rx.next_packet().unwrap().unwrap();
    let mut short = [0xee; 63];
    assert_eq!(taken.copy_to(&mut short), None);
    assert_eq!(short, [0xee; 63]);
    assert_eq!(taken.len(), 64);
}

#[test]
fn a_receiver_that_never_takes_costs_the_sender_nothing_but_packets() {
    for (mut tx, _rx) in directions(small()) {
        let refused =
            (0..10_000).filter(|number| tx.push(&packet(*number, 64)) == Err(PushError::Full)).count();
        tx.flush().unwrap();
        assert_eq!(refused, 10_000 - 32);
    }
}

#[test]
fn only_a_receiver_that_asks_is_woken_and_once_per_burst() {
    for (mut tx, mut rx) in directions(small()) {
        tx.push(&packet(0, 64)).unwrap();
        assert!(!tx.flush().unwrap(), "rings start polling");
        assert_eq!(rx.arm(), Ok(true), "a packet was there already");
        rx.next_packet().unwrap().unwrap();
        rx.release();
        assert_eq!(rx.arm(), Ok(false));
        for number in 0..3 {
            tx.push(&packet(number, 64)).unwrap();
        }
        assert!(tx.flush().unwrap());
        assert!(!tx.flush().unwrap(), "nothing new, nobody woken");
        assert!(rx.wait(Duration::from_secs(1)).unwrap());
        tx.push(&packet(3, 64)).unwrap();
        assert!(!tx.flush().unwrap(), "wait leaves the ring polling");
        rx.enable_interrupt();
        tx.push(&packet(4, 64)).unwrap();
        assert!(tx.flush().unwrap());
        rx.disable_interrupt();
        rx.drain_event().unwrap();
        rx.drain_event().unwrap();
    }
}

#[test]
fn wait_ends_at_its_timeout_and_at_a_packet() {
    let [(mut tx, mut rx), _] = directions(small());
    let start = Instant::now();
    assert!(!rx.wait(Duration::from_millis(25)).unwrap());
    assert!(start.elapsed() >= Duration::from_millis(25));
    let sender = std::thread::spawn(move || {
        for number in 0..100 {
            tx.push(&packet(number, 64)).unwrap();
            tx.flush().unwrap();
            while tx.free().unwrap() < 32 {
                std::thread::yield_now();
            }
        }
    });
    for number in 0..100 {
        assert!(rx.wait(Duration::from_secs(10)).unwrap());
        assert_eq!(receive(&mut rx), Some(packet(number, 64)));
        rx.release();
    }
    sender.join().unwrap();
}

#[test]
fn several_queues_do_not_mix() {
    let (mut client, mut server) = connected(ClientConfig { queue_pairs: 8, ring_log2: 6, ..small() });
    assert_eq!((client.rx.len(), client.tx.len(), server.rx.len(), server.tx.len()), (8, 8, 8, 8));
    for (queue, (from, to)) in client.tx.iter_mut().zip(&mut server.tx).enumerate() {
        from.push(&packet(queue as u32, 100)).unwrap();
        from.flush().unwrap();
        to.push(&packet(100 + queue as u32, 100)).unwrap();
        to.flush().unwrap();
    }
    for (queue, (at_client, at_server)) in client.rx.iter_mut().zip(&mut server.rx).enumerate() {
        assert_eq!(receive(at_server), Some(packet(queue as u32, 100)));
        assert_eq!(receive(at_client), Some(packet(100 + queue as u32, 100)));
    }
    assert_eq!((client.role, server.role), (Role::Client, Role::Server));
    assert_eq!((client.rx[0].role(), server.tx[0].role()), (Role::Client, Role::Server));
}

#[test]
fn two_threads_a_million_packets_in_order() {
    for (mut tx, mut rx) in directions(ClientConfig::default()) {
        let sender = std::thread::spawn(move || {
            let mut number = 0u32;
            while number < 1_000_000 {
                let room = u32::from(tx.free().unwrap()).min(64).min(1_000_000 - number);
                for offset in 0..room {
                    tx.push(&packet(number + offset, 64)).unwrap();
                }
                tx.flush().unwrap();
                number += room;
                if room == 0 {
                    std::thread::yield_now();
                }
            }
        });
        let mut bytes = [0; 2048];
        let mut number = 0u32;
        while number < 1_000_000 {
            if rx.pending().unwrap() == 0 {
                std::thread::yield_now();
            }
            while let Some(taken) = rx.next_packet() {
                assert_eq!(taken.unwrap().copy_to(&mut bytes), Some(64));
                assert_eq!(bytes[..64], packet(number, 64));
                number += 1;
            }
            rx.release();
        }
        sender.join().unwrap();
    }
}

/// Mostly 9000 bytes, which take five buffers, and some that take one.
fn jumbo_bytes(number: u32) -> u32 {
    if number.is_multiple_of(7) { 64 } else { 9000 }
}

/// Makes `packet` that packet: every 32-bit word differs from its neighbours, and from the same word of the packets around it.
fn make_jumbo(number: u32, packet: &mut Vec<u8>) {
    packet.resize(jumbo_bytes(number) as usize, 0);
    for (word, bytes) in (0..).zip(packet.chunks_exact_mut(4)) {
        bytes.copy_from_slice(&(number.wrapping_mul(2251) + word).to_ne_bytes());
    }
}

#[test]
fn two_threads_jumbo_packets_in_chains_in_order() {
    const PACKETS: u32 = 20_000;
    let client = ClientConfig { chains: true, ..ClientConfig::default() };
    let server = ServerConfig { chains: true, ..ServerConfig::default() };
    let (mut client, mut server) = pair(client, server).unwrap();
    for (mut tx, mut rx) in
        [(client.tx.remove(0), server.rx.remove(0)), (server.tx.remove(0), client.rx.remove(0))]
    {
        let sender = std::thread::spawn(move || {
            let mut packet = Vec::new();
            for number in 0..PACKETS {
                make_jumbo(number, &mut packet);
                loop {
                    match tx.push(&packet) {
                        Ok(()) => break,
                        Err(PushError::Full) => {
                            tx.flush().unwrap();
                            std::thread::yield_now();
                        }
                        Err(why) => panic!("packet {number}: {why}"),
                    }
                }
            }
            tx.flush().unwrap();
        });
        let (mut bytes, mut expected) = ([0; 9216], Vec::new());
        let mut number = 0;
        while number < PACKETS {
            if rx.pending().unwrap() == 0 {
                std::thread::yield_now();
            }
            while let Some(taken) = rx.next_packet() {
                let length = taken.unwrap().copy_to(&mut bytes).unwrap();
                make_jumbo(number, &mut expected);
                assert!(bytes[..length] == expected, "packet {number} of {length} bytes");
                number += 1;
            }
            rx.release();
        }
        sender.join().unwrap();
    }
}
