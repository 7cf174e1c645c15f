//! The sink over a memif pair in this process, and over a UDP socket.

use std::net::{Ipv4Addr, SocketAddrV4, UdpSocket};
use std::time::Duration;

use peregrine_dataplane::types::MacAddr;
use peregrine_memif::{ClientConfig, Interface, ServerConfig};

use super::*;
use crate::port::memif::MemifPort;
use crate::port::udp::UdpPort;
use crate::template::{Inner, Template};
use crate::trailer::Trailer;

fn template() -> Template {
    let inner = Inner {
        source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 20000),
        destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 9000),
        size: 64,
        flows: 4,
    };
    Template::new(&inner, None).unwrap()
}

fn push(server: &mut Interface, flow: u16, sequence: u64) {
    let template = template();
    let mut frame = vec![0; template.len()];
    assert!(template.write(&mut frame, Trailer { flow, sequence, time: clock::now_ns() }));
    server.tx[0].push(&frame).unwrap();
}

fn settings(wait: Wait, count: u64) -> SinkSettings {
    let limits = Limits { seconds: Some(Duration::from_secs(10)), count: Some(count), idle: None };
    SinkSettings { wait, limits, flows: 3 }
}

fn memif() -> (MemifPort, Interface) {
    let (client, server) = peregrine_memif::pair(ClientConfig::default(), ServerConfig::default()).unwrap();
    (MemifPort::new(client, 2048).unwrap(), server)
}

#[test]
fn injected_faults_are_reported_exactly_so() {
    for wait in [Wait::Poll, Wait::Yield, Wait::Interrupt, Wait::Pause(Duration::from_micros(300))] {
        let (port, mut server) = memif();
        for (flow, sequence) in [(0, 0), (0, 1), (0, 1), (0, 4), (0, 3), (1, 0), (1, 2), (3, 0), (2, 0)] {
            push(&mut server, flow, sequence);
        }
        server.tx[0].push(&[0xaa; 70]).unwrap();
        server.tx[0].flush().unwrap();
        let outcome = run(port.rx, &settings(wait, 8), Stop::new()).unwrap();
        let report = outcome.report;
        assert!(outcome.failure.is_none());
        assert_eq!((report.received, report.bytes, report.ended), (8, 8 * 64, Ended::Count), "{wait:?}");
        assert_eq!((report.lost, report.reordered, report.duplicates), (2, 1, 1));
        assert_eq!((report.not_ours, report.unknown_flow, report.flows), (1, 1, 3));
        let PortStatistics::Ring(ring) = report.port else { panic!("{:?}", report.port) };
        assert_eq!((ring.size, ring.pending_max, ring.bad_descriptors), (1024, 10, 0));
        assert!(report.latency_us.unwrap().max < 5e6);
    }
}

#[test]
fn a_peer_that_goes_away_ends_it_with_the_report() {
    let (port, mut server) = memif();
    push(&mut server, 0, 0);
    server.tx[0].flush().unwrap();
    server.control.disconnect("going home");
    let outcome = run(port.rx, &settings(Wait::Interrupt, 100), Stop::new()).unwrap();
    assert_eq!((outcome.report.received, outcome.report.ended), (1, Ended::Peer));
    let text = outcome.failure.unwrap().to_string();
    assert!(text.contains("going home"), "{text}");
}

#[test]
fn a_stall_of_the_receiver_shows_in_the_histogram() {
    let (port, mut server) = memif();
    let template = template();
    let mut frame = vec![0; template.len()];
    let now = clock::now_ns();
    for sequence in 0..100 {
        assert!(
            template
                .write(&mut frame, Trailer { flow: 0, sequence, time: now - (100 - sequence) * MILLISECOND })
        );
        server.tx[0].push(&frame).unwrap();
    }
    server.tx[0].flush().unwrap();
    let report = run(port.rx, &settings(Wait::Poll, 100), Stop::new()).unwrap().report;
    let got = report.latency_us.unwrap();
    assert!(got.p50 >= 50_000.0 && got.max >= 100_000.0 && got.max < 10e6, "{got:?}");
}

#[test]
fn datagrams_are_counted_and_what_is_not_ours_is_told() {
    for wait in [Wait::Poll, Wait::Yield, Wait::Interrupt, Wait::Pause(Duration::from_micros(300))] {
        let port = UdpPort::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap();
        let sender = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        sender.send_to(b"not ours", port.local()).unwrap();
        for sequence in [0, 1, 3] {
            let trailer = Trailer { flow: 0, sequence, time: clock::now_ns() };
            sender.send_to(&[&[0; 4], &trailer.encode()[..]].concat(), port.local()).unwrap();
        }
        let report = run(port, &settings(wait, 3), Stop::new()).unwrap().report;
        assert_eq!((report.received, report.not_ours, report.lost), (3, 1, 1), "{wait:?}");
        assert_eq!(report.bytes, 3 * 64, "counted as whole inner frames");
        let PortStatistics::Socket(socket) = report.port else { panic!("{:?}", report.port) };
        assert_eq!(socket.drops, Some(0));
        assert!(socket.receive_buffer_bytes > 0);
    }
}

#[test]
fn silence_and_signals_end_it() {
    let (port, mut server) = memif();
    push(&mut server, 0, 0);
    server.tx[0].flush().unwrap();
    let idle = SinkSettings {
        wait: Wait::Interrupt,
        limits: Limits { idle: Some(Duration::from_millis(5)), ..Limits::default() },
        flows: 1,
    };
    assert_eq!(run(port.rx, &idle, Stop::new()).unwrap().report.ended, Ended::Idle);

    let (port, _server) = memif();
    let stop = Stop::new();
    let at_end = stop.clone();
    let thread = std::thread::spawn(move || run(port.rx, &settings(Wait::Interrupt, 1), stop).unwrap());
    at_end.set();
    assert_eq!(thread.join().unwrap().report.ended, Ended::Signal);
}
