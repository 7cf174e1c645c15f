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
    assert!(template.write(&mut frame, Trailer { run: 7, flow, sequence, time: clock::now_ns() }));
    server.tx[0].push(&frame).unwrap();
}

fn settings(wait: Wait, count: u64) -> SinkSettings {
    let limits = Limits { seconds: Some(Duration::from_secs(10)), count: Some(count), idle: None };
    SinkSettings { wait, limits, flows: 3, classes: Vec::new(), quiet: true }
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
        assert_eq!((report.distinct, report.loss_ratio), (7, 2.0 / 9.0));
        assert_eq!(report.reordering.extent.map(|extent| (extent.p50, extent.max)), Some((1, 1)));
        let per_flow: Vec<_> = report.per_flow.iter().map(|of| (of.flow, of.distinct, of.lost)).collect();
        assert_eq!(per_flow, [(0, 4, 1), (1, 2, 1), (2, 1, 0)]);
        let PortStatistics::Ring(ring) = report.port else { panic!("{:?}", report.port) };
        assert_eq!((ring.size, ring.pending_max, ring.bad_descriptors), (1024, 10, 0));
        assert!(report.latency_us.unwrap().max < 5e6);
    }
}

#[test]
fn all_rings_are_read() {
    for wait in [Wait::Poll, Wait::Interrupt] {
        let client = ClientConfig { queue_pairs: 3, ..ClientConfig::default() };
        let server = ServerConfig { rings_max: 3, ..ServerConfig::default() };
        let (client, mut server) = peregrine_memif::pair(client, server).unwrap();
        let port = MemifPort::new(client, 2048).unwrap();
        let template = template();
        let thread = std::thread::spawn(move || run(port.rx, &settings(wait, 300), Stop::new()).unwrap());
        for sequence in 0..100 {
            for (flow, ring) in (0..3).zip(&mut server.tx) {
                let mut frame = vec![0; template.len()];
                assert!(
                    template.write(&mut frame, Trailer { run: 7, flow, sequence, time: clock::now_ns() })
                );
                ring.push(&frame).unwrap();
                ring.flush().unwrap();
            }
        }
        let report = thread.join().unwrap().report;
        assert_eq!(
            (report.received, report.lost, report.reordered, report.flows),
            (300, 0, 0, 3),
            "{wait:?}"
        );
        let PortStatistics::Ring(ring) = report.port else { panic!("{:?}", report.port) };
        assert_eq!((ring.queues, ring.size), (3, 1024));
    }
}

#[test]
fn classes_are_reported_apart() {
    let (port, mut server) = memif();
    for (flow, sequence) in [(0, 0), (0, 2), (1, 0), (1, 1), (1, 1), (2, 0)] {
        push(&mut server, flow, sequence);
    }
    server.tx[0].flush().unwrap();
    let classes = ["none=dscp:46", "all=ports:9000-9001"].map(|text| text.parse().unwrap()).to_vec();
    let settings = SinkSettings { classes, ..settings(Wait::Poll, 6) };
    let report = run(port.rx, &settings, Stop::new()).unwrap().report;
    let got = report.per_class.iter().map(|of| (of.class.as_str(), of.received, of.lost, of.duplicates));
    assert_eq!(got.collect::<Vec<_>>(), [("none", 0, 0, 0), ("all", 6, 1, 1), ("other", 0, 0, 0)]);
    assert!(report.per_class[0].latency_us.is_none() && report.per_class[1].latency_us.is_some());
}

#[test]
fn a_line_per_second_loses_nothing() {
    let mut tally = Tally::new(&settings(Wait::Poll, 1)).unwrap();
    let template = template();
    let mut frame = vec![0; template.len()];
    for (sequence, at) in [(0, 10_000), (2, 20_000), (3, 1_000_000)] {
        assert!(template.write(&mut frame, Trailer { run: 7, flow: 0, sequence, time: 0 }));
        tally.take::<crate::port::memif::MemifRx>(at, &frame);
        if sequence == 2 {
            let Quality { lost, p50_ns, p99_ns, .. } = tally.quality();
            assert!(lost == 1 && p50_ns / 100 == 100 && p99_ns / 100 == 200, "{lost} {p50_ns} {p99_ns}");
        }
    }
    assert_eq!((tally.quality().lost, tally.quality().p99_ns), (0, 0));
    let report = tally.report(Ended::Count, port_statistics());
    assert_eq!((report.latency.count_from(1), report.latency.count_from(900_000)), (3, 1));
}

fn port_statistics() -> PortStatistics {
    PortStatistics::Ring(crate::port::RingStatistics::default())
}

#[test]
fn what_a_script_wants_is_checked() {
    let mut tally = Tally::new(&settings(Wait::Poll, 1)).unwrap();
    for sequence in [0, 1, 1, 3] {
        assert!(tally.tracker.record(0, sequence));
    }
    let report = tally.report(Ended::Count, port_statistics());
    let check = |max_loss, min_received| Demands { max_loss, min_received }.check(&report);
    assert!(check(None, None).is_ok() && check(Some(0.25), Some(3)).is_ok());
    let few = check(None, Some(4)).unwrap_err();
    assert_eq!((few.exit_status(), few.to_string()), (1, "3 packets came: --min-received 4".into()));
    let lossy = check(Some(0.2), None).unwrap_err().to_string();
    assert_eq!(lossy, "1 packets were lost, a ratio of 0.250000: --max-loss 0.2");
}

/// Its numbers begin anew: taken for those of the first one, they would be duplicates and hide what is lost.
#[test]
fn a_second_sender_is_told_from_the_first() {
    let (port, mut server) = memif();
    let template = template();
    let mut frame = vec![0; template.len()];
    for (run, sequence) in [(7, 0), (7, 1), (8, 0), (8, 5), (7, 2), (9, 0), (7, 3)] {
        assert!(template.write(&mut frame, Trailer { run, flow: 0, sequence, time: clock::now_ns() }));
        server.tx[0].push(&frame).unwrap();
    }
    server.tx[0].flush().unwrap();
    let report = run(port.rx, &settings(Wait::Poll, 4), Stop::new()).unwrap().report;
    assert_eq!((report.received, report.other_runs, report.bytes), (4, 3, 4 * 64));
    assert_eq!((report.lost, report.duplicates, report.beyond_window), (0, 0, 0));
    let demands = |max_loss| Demands { max_loss, min_received: Some(4) };
    demands(None).check(&report).unwrap();
    let why = demands(Some(0.0)).check(&report).unwrap_err();
    assert_eq!(why.exit_status(), 1);
    assert!(why.to_string().starts_with("3 packets are of another run of send"), "{why}");
    let rows = crate::report::Report::rows(&report);
    assert!(
        rows.iter().any(|(what, text)| *what == "other runs" && text.starts_with("3 packets")),
        "{rows:?}"
    );
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
        assert!(template.write(
            &mut frame,
            Trailer { run: 7, flow: 0, sequence, time: now - (100 - sequence) * MILLISECOND }
        ));
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
            let trailer = Trailer { run: 7, flow: 0, sequence, time: clock::now_ns() };
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
        limits: Limits { idle: Some(Duration::from_millis(5)), ..Limits::default() },
        ..settings(Wait::Interrupt, 1)
    };
    assert_eq!(run(port.rx, &idle, Stop::new()).unwrap().report.ended, Ended::Idle);

    let (port, _server) = memif();
    let stop = Stop::new();
    let at_end = stop.clone();
    let thread = std::thread::spawn(move || run(port.rx, &settings(Wait::Interrupt, 1), stop).unwrap());
    at_end.set();
    assert_eq!(thread.join().unwrap().report.ended, Ended::Signal);
}

#[test]
fn nothing_at_all_is_not_without_loss() {
    let report = |sent: &[u64]| {
        let (port, mut server) = memif();
        sent.iter().for_each(|sequence| push(&mut server, 0, *sequence));
        server.tx[0].flush().unwrap();
        let limits = Limits { seconds: Some(Duration::from_millis(20)), count: Some(1), idle: None };
        run(port.rx, &SinkSettings { limits, ..settings(Wait::Poll, 1) }, Stop::new()).unwrap().report
    };
    for most in [0.0, 1.0] {
        let demands = Demands { max_loss: Some(most), min_received: None };
        let why = demands.check(&report(&[])).unwrap_err();
        assert!(why.to_string().contains("no packet came"), "{why}");
        demands.check(&report(&[0])).unwrap();
    }
}
