//! Packets that are longer than a chunk (multi-buffer AF_XDP) against the kernel, over a veth: whole and in order both ways, in native copy
//! and in generic mode, and no chunk or large buffer is lost.
#![allow(unsafe_code, reason = "namespaces and packet sockets have no safe wrapper")]

mod veth;

use std::net::UdpSocket;

use peregrine_dataplane::frame::{BURST, Burst};
use peregrine_dataplane::plan::{Early, XdpMode};
use peregrine_dataplane::xsk::{EarlyRules, EarlySet, Losses, XskConfig, open, open_all};

use veth::{End, OUR_ADDRESS, PATIENCE, RawSocket, THEIR_ADDRESS, Vxlan, Wire, config, filled, run, until};

/// A wire for packets of 9000 bytes, and more.
fn jumbo_wire(mtu: u32) -> Wire {
    let wire = Wire::new(1);
    run(&format!("ip link set a0 mtu {mtu}"));
    wire.in_theirs(|| run(&format!("ip link set b0 mtu {mtu}")));
    wire
}

fn jumbo_config(mode: XdpMode) -> XskConfig {
    XskConfig { multi_buffer: true, mode, ..config("a0", OUR_ADDRESS) }
}

/// A packet of `length` bytes that no other looks like, with an Ethernet header.
fn payload(length: usize, number: usize) -> Vec<u8> {
    (0..length + 14).map(|at| (at * 7 + number) as u8).collect()
}

fn to_us(length: usize, number: usize) -> Vec<u8> {
    Vxlan { payload: payload(length, number), ..Vxlan::default() }.build()
}

fn to_them(length: usize, number: usize) -> Vec<u8> {
    let to = THEIR_ADDRESS.octets();
    Vxlan { to, payload: payload(length, number), ..Vxlan::default() }.build()
}

/// Around the bounds of chunks, and the longest.
const LENGTHS: [usize; 9] = [64, 9000, 1500, 1728, 1729, 1800, 4000, 9000, 46];

fn long_packets_come_in_whole(mode: XdpMode, chunk_size: u32) {
    let wire = jumbo_wire(9050);
    let mut end = End::open(&XskConfig { chunk_size, ..jumbo_config(mode) }, &[0]).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    for round in 0..40 {
        let sent: Vec<Vec<u8>> =
            LENGTHS.iter().enumerate().map(|(at, length)| to_us(*length, round + at)).collect();
        sent.iter().for_each(|frame| peer.send(frame));
        let arrived = end.receive(sent.len());
        let lengths = arrived.iter().map(Vec::len).collect::<Vec<_>>();
        assert!(arrived == sent, "round {round}: {lengths:?} {end:?}");
    }
    // More descriptors at once than a burst takes: packets are begun in one look and go on in the next.
    let sent: Vec<Vec<u8>> = (0..60).map(|number| to_us(9000, number)).collect();
    sent.iter().for_each(|frame| peer.send(frame));
    assert!(end.receive(sent.len()) == sent, "{end:?}");
    assert_eq!(end.port.sockets[0].take_losses(), Losses::default());
    end.assert_frames_are_home();
}

fn bring_home(end: &mut End) {
    until("all are home", || {
        end.turn();
        end.port.sockets[0].tx_outstanding() == 0
    });
    end.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn long_packets_come_in_whole_in_native_copy_mode() {
    long_packets_come_in_whole(XdpMode::Copy, 2048);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn long_packets_come_in_whole_in_large_chunks() {
    long_packets_come_in_whole(XdpMode::Copy, 4096);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn long_packets_come_in_whole_in_generic_mode() {
    long_packets_come_in_whole(XdpMode::Generic, 2048);
}

fn long_packets_go_out_whole(mode: XdpMode) {
    let wire = jumbo_wire(9050);
    let mut end = End::open(&jumbo_config(mode), &[0]).unwrap();
    let host = wire.in_theirs(|| UdpSocket::bind((THEIR_ADDRESS, 4789)).unwrap());
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 10_000];
    for round in 0..40 {
        // With and without room in front; the kernel is told once of all, more descriptors than its batch takes.
        for (at, length) in LENGTHS.iter().enumerate() {
            assert_eq!(end.transmit(0, &to_them(*length, round + at), at * 20), 1);
        }
        end.turn();
        for (at, length) in LENGTHS.iter().enumerate() {
            let got =
                host.recv(&mut buffer).unwrap_or_else(|error| panic!("{round}, {length}: {error} {end:?}"));
            assert!(
                buffer[..got] == to_them(*length, round + at)[42..],
                "round {round}: {length} became {got}"
            );
        }
    }
    bring_home(&mut end);
    assert_eq!(end.port.pool.large_available(), end.port.pool.large_capacity(), "{end:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn long_packets_go_out_whole_in_native_copy_mode() {
    long_packets_go_out_whole(XdpMode::Copy);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn long_packets_go_out_whole_in_generic_mode() {
    long_packets_go_out_whole(XdpMode::Generic);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_packet_that_is_too_long_is_dropped_whole_and_the_next_one_is_not() {
    let wire = jumbo_wire(20_000);
    let mut end = End::open(&jumbo_config(XdpMode::Copy), &[0]).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    for round in 0..3 {
        peer.send(&to_us(12_000, round));
        peer.send(&to_us(9000, round));
        assert!(end.receive(1) == [to_us(9000, round)], "{end:?}");
    }
    assert_eq!(end.port.sockets[0].take_losses(), Losses { too_long: 3, no_buffer: 0 });
    end.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_look_at_the_ring_ends_although_everything_is_thrown_away() {
    const PACKETS: u64 = 200;
    let wire = jumbo_wire(9050);
    let mut end = End::open(&jumbo_config(XdpMode::Copy), &[0]).unwrap();
    let taken: Vec<_> = std::iter::from_fn(|| end.port.pool.take_large()).collect();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    (0..PACKETS).for_each(|number| peer.send(&to_us(9000, number as usize)));
    let mut lost = 0;
    until("all are thrown away", || {
        assert!(end.turn().is_empty());
        let losses = end.port.sockets[0].take_losses();
        assert!(losses.no_buffer <= BURST as u64, "{losses:?} at once");
        lost += losses.no_buffer;
        lost == PACKETS
    });
    taken.into_iter().for_each(|frame| end.port.pool.put(frame));
    end.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_ring_without_room_for_all_parts_takes_none() {
    let _wire = jumbo_wire(9050);
    let mut end =
        End::open(&XskConfig { ring_size: 64, tx_frames: 64, ..jumbo_config(XdpMode::Copy) }, &[0]).unwrap();
    let mut burst = Burst::new();
    for number in 0..20 {
        burst.push(filled(&mut end.port.pool, &to_them(9000, number), 0)).unwrap();
    }
    let count = end.port.sockets[0].transmit(&mut end.port.pool, &mut burst);
    assert_eq!((count, burst.len(), end.port.sockets[0].tx_outstanding()), (12, 8, 60), "5 descriptors each");
    let short = filled(&mut end.port.pool, &to_them(64, 0), 0);
    let mut other = Burst::new();
    other.push(short).unwrap();
    assert_eq!(end.port.sockets[0].transmit(&mut end.port.pool, &mut other), 1);
    burst.drain().for_each(|frame| end.port.pool.put(frame));
    bring_home(&mut end);
}

/// Hands packets that are a little longer than a chunk to a socket until it takes none; how many it took.
fn stuff(end: &mut End, socket: usize, is_urgent: bool) -> usize {
    let (mut burst, mut total) = (Burst::new(), 0);
    loop {
        for number in 0..8 {
            let Some(mut frame) = end.port.pool.take_large() else { break };
            let bytes = to_them(1800, number);
            frame.reset(0, bytes.len()).unwrap().copy_from_slice(&bytes);
            burst.push(frame).unwrap();
        }
        let socket = &mut end.port.sockets[socket];
        let count = match is_urgent {
            true => socket.transmit_urgent(&mut end.port.pool, &mut burst),
            false => socket.transmit(&mut end.port.pool, &mut burst),
        };
        burst.drain().for_each(|frame| end.port.pool.put(frame));
        total += count;
        if count == 0 {
            return total;
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_interface_that_is_down_leaves_large_buffers_to_the_others() {
    let wire = jumbo_wire(9050);
    wire.add_second();
    let one = jumbo_config(XdpMode::Copy);
    let other = XskConfig { multi_buffer: true, ..config("c0", [10, 8, 0, 1].into()) };
    let queue = || vec![peregrine_dataplane::types::QueueId(0)];
    let (uplinks, mut ports) = open_all(&[one, other], &[vec![queue(), queue()]]).unwrap();
    let mut end = End::of(uplinks, ports.pop().unwrap());
    let all = end.port.pool.large_capacity();
    for round in 0..2 {
        run("ip link set a0 down");
        assert_eq!(stuff(&mut end, 0, false), all * 3 / 16, "round {round}: half of what may be sent");
        until("that it is down is known", || {
            end.turn();
            end.port.sockets[0].is_down()
        });
        assert_eq!(end.transmit(0, &to_them(64, 0), 0), 1, "short packets need no large buffer");
        assert_eq!(end.port.pool.large_lent(), all * 3 / 16);
        // The other interface has its share.
        assert_eq!(stuff(&mut end, 1, false), all * 3 / 16);
        until("they are sent", || {
            end.turn();
            end.port.sockets[1].tx_outstanding() == 0
        });
        run("ip link set a0 up");
        bring_home(&mut end);
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn urgent_packets_have_large_buffers_of_their_own() {
    let _wire = jumbo_wire(9050);
    let config = XskConfig { early: Early::On, ..jumbo_config(XdpMode::Copy) };
    let mut end = End::open(&config, &[0]).unwrap();
    let most = end.port.pool.large_capacity() * 3 / 8;
    run("ip link set a0 down");
    assert_eq!(stuff(&mut end, 0, false), most - most / 3);
    assert_eq!(stuff(&mut end, 0, true), most / 3);
    run("ip link set a0 up");
    bring_home(&mut end);
    assert_eq!(stuff(&mut end, 0, true), most / 3, "those that are home may go again");
    bring_home(&mut end);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn long_packets_come_and_go_by_the_second_socket() {
    let wire = jumbo_wire(9050);
    let config = XskConfig { early: Early::On, ..jumbo_config(XdpMode::Copy) };
    let mut end = End::open(&config, &[0]).unwrap();
    let everything = EarlySet { everything: true, ..EarlySet::default() };
    end.uplinks[0].set_early(&EarlyRules { all: everything, ..EarlyRules::default() }).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    let sent: Vec<Vec<u8>> = (0..30).map(|number| to_us(LENGTHS[number % LENGTHS.len()], number)).collect();
    sent.iter().for_each(|frame| peer.send(frame));
    until("all have come", || {
        assert!(end.turn().is_empty());
        end.urgent.len() == sent.len()
    });
    assert!(end.urgent == sent, "{end:?}");

    let host = wire.in_theirs(|| UdpSocket::bind((THEIR_ADDRESS, 4789)).unwrap());
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut buffer = vec![0; 10_000];
    for number in 0..30 {
        let frame = to_them(LENGTHS[number % LENGTHS.len()], number);
        let mut burst = Burst::new();
        burst.push(filled(&mut end.port.pool, &frame, 0)).unwrap();
        assert_eq!(end.port.sockets[0].transmit_urgent(&mut end.port.pool, &mut burst), 1);
        end.turn();
        let got = host.recv(&mut buffer).unwrap();
        assert!(buffer[..got] == frame[42..], "{number}: {got}");
    }
    bring_home(&mut end);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_a_driver_has_not_is_refused_with_a_way_out() {
    let _wire = jumbo_wire(9050);
    let error = |config: &XskConfig| match open(config, &[vec![peregrine_dataplane::types::QueueId(0)]]) {
        Ok(_) => panic!("{config:?} was opened"),
        Err(error) => error.to_string(),
    };
    let text = error(&jumbo_config(XdpMode::RequireZeroCopy));
    assert!(
        text.contains("a0 (driver veth) has no zero-copy, or none for packets of several chunks"),
        "{text}"
    );
    assert!(text.ends_with("or lower networks[n].mtu to 1700 or less"), "{text}");
    let text = error(&XskConfig { multi_buffer: false, ..jumbo_config(XdpMode::Copy) });
    assert!(text.contains("a0 has an MTU of 9050, but a chunk of 2048 bytes holds 1774"), "{text}");
}
