//! The echo over a memif pair in this process, and over a UDP socket.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use peregrine_dataplane::types::MacAddr;
use peregrine_memif::{ClientConfig, Interface, ServerConfig};

use super::*;

const WE: Identity = Identity { mac: MacAddr([2, 0, 0, 0, 0, 9]), ip: Ipv4Addr::new(10, 0, 0, 9), ip6: None };

fn settings(wait: Wait, count: u64) -> EchoSettings {
    EchoSettings {
        wait,
        limits: Limits { seconds: Some(Duration::from_secs(10)), count: Some(count), idle: None },
        quiet: true,
    }
}

fn memif() -> (MemifResponder<MemifPort>, Interface) {
    let (client, server) = peregrine_memif::pair(ClientConfig::default(), ServerConfig::default()).unwrap();
    (MemifResponder { port: MemifPort::new(client, 2048).unwrap(), identity: WE }, server)
}

fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let builder =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], WE.mac.0).ipv4([10, 0, 0, 1], WE.ip.octets(), 64);
    builder.udp(1000, 2000).write(&mut out, payload).unwrap();
    out
}

#[test]
fn datagrams_go_back_over_memif_in_order() {
    for wait in [Wait::Poll, Wait::Interrupt, Wait::Pause(Duration::from_micros(300))] {
        let (responder, mut server) = memif();
        for n in 0..200u8 {
            server.tx[0].push(&datagram(&[n; 30])).unwrap();
        }
        server.tx[0].push(&[0; 64]).unwrap();
        server.tx[0].flush().unwrap();
        let outcome = run(responder, &settings(wait, 201), Stop::new());
        assert!(outcome.failure.is_none());
        let report = outcome.report;
        assert_eq!((report.received, report.ignored, report.dropped), (201, 1, 0), "{wait:?}");
        assert_eq!(report.answered, Answered { udp: 200, ..Answered::default() });
        assert_eq!(server.rx[0].pending(), Ok(200));
        for n in 0..200u8 {
            let mut copy = [0; 128];
            let len = server.rx[0].next_packet().unwrap().unwrap().copy_to(&mut copy).unwrap();
            assert_eq!((len, copy[..6].to_vec(), copy[60]), (72, vec![2, 0, 0, 0, 0, 1], n));
        }
    }
}

#[test]
fn answers_that_find_the_ring_full_are_dropped_and_counted() {
    let (responder, mut server) = memif();
    let thread = std::thread::spawn(move || run(responder, &settings(Wait::Poll, 2000), Stop::new()));
    let deadline = Instant::now() + Duration::from_secs(5);
    let mut sent = 0;
    while sent < 2000 && Instant::now() < deadline {
        if server.tx[0].push(&datagram(b"x")).is_ok() {
            sent += 1;
        }
        server.tx[0].flush().unwrap();
    }
    let report = thread.join().unwrap().report;
    assert_eq!((report.received, report.answered.udp, report.dropped), (2000, 1024, 976));
}

#[test]
fn datagrams_go_back_over_a_socket() {
    let (bound, address) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        let port = UdpPort::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        bound.send(port.local()).unwrap();
        run(port, &settings(Wait::Interrupt, 100), Stop::new())
    });
    let to = address.recv().unwrap();
    let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    sender.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    for n in 0..100u8 {
        sender.send_to(&[n; 22], to).unwrap();
    }
    for n in 0..100u8 {
        let mut got = [0; 64];
        let (len, from) = sender.recv_from(&mut got).unwrap();
        assert_eq!((&got[..len], from), (&[n; 22][..], to.into()));
    }
    let report = thread.join().unwrap().report;
    assert_eq!((report.received, report.answered.udp, report.dropped), (100, 100, 0));
    assert_eq!(report.bytes, 100 * 64);
}
