//! `--reconnect` against a memif server that comes and goes. Needs no privilege.

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::path::Path;
use std::time::Instant;

use common::{PATIENCE, accept, pktgen, until};
use etherparse::PacketBuilder;
use peregrine_dataplane::types::MacAddr;
use peregrine_memif::{Interface, Listener, ListenerConfig, SocketAddr};
use peregrine_pktgen::clock::now_ns;
use peregrine_pktgen::template::{Inner, Template};
use peregrine_pktgen::trailer::Trailer;
use rustix::process::Signal;

const ECHO_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const ECHO_IP: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 9);

/// A server that serves one client and then is gone when both are dropped.
fn serve(path: &Path) -> (Listener, Interface) {
    let listener = Listener::bind(&SocketAddr::Path(path.to_owned()), ListenerConfig::default()).unwrap();
    let interface = accept(&listener);
    (listener, interface)
}

fn datagram(payload: u8) -> Vec<u8> {
    let mut out = Vec::new();
    let builder =
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], ECHO_MAC).ipv4([10, 0, 0, 1], ECHO_IP.octets(), 64);
    builder.udp(1000, 2000).write(&mut out, &[payload; 30]).unwrap();
    out
}

/// A frame that the sink counts.
fn numbered(sequence: u64) -> Vec<u8> {
    let inner = Inner {
        source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        destination_mac: MacAddr(ECHO_MAC),
        source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 20000),
        destination: SocketAddrV4::new(ECHO_IP, 9000),
        size: 64,
        flows: 1,
    };
    let template = Template::new(&inner, None).unwrap();
    let mut frame = vec![0; template.len()];
    assert!(template.write(&mut frame, Trailer { run: 7, flow: 0, sequence, time: now_ns() }));
    frame
}

/// The client offers its buffers when it has read that it is connected.
fn push(server: &mut Interface, frame: &[u8]) {
    until("room", || server.tx[0].push(frame).ok());
}

#[test]
fn an_echo_answers_each_server_that_comes() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.sock");
    for wait in ["poll", "interrupt"] {
        let line = format!(
            "echo --memif {} --reconnect --mac 02:00:00:00:00:09 --ip {ECHO_IP} --json --wait {wait}",
            path.display()
        );
        let echo = pktgen(&line).ready();
        for round in 1..=3 {
            let (_listener, mut server) = serve(&path);
            push(&mut server, &datagram(round));
            server.tx[0].flush().unwrap();
            let mut copy = [0; 128];
            let length = until("answer", || match server.rx[0].pending().unwrap() {
                0 => None,
                _ => server.rx[0].next_packet().unwrap().unwrap().copy_to(&mut copy),
            });
            assert_eq!((length, copy[length - 1]), (72, round));
        }
        // Nobody is there now, and it still ends when it is told to.
        let before = Instant::now();
        echo.signal(Signal::TERM);
        let report = echo.end().report();
        assert!(before.elapsed() < PATIENCE);
        assert_eq!((report["received"].as_u64(), report["ended"].as_str()), (Some(3), Some("signal")));
        assert_eq!(report["ring"]["connections"], 3);
    }
}

#[test]
fn a_sink_takes_what_was_in_the_ring_when_its_server_went() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.sock");
    // Looks seldom, so that most often all is pushed and the server gone when it does.
    let line = format!(
        "sink --memif {} --reconnect --json --wait pause --pause-us 50000 --count 400",
        path.display()
    );
    let sink = pktgen(&line).ready();
    for sequences in [0..200, 200..400] {
        let (_listener, mut server) = serve(&path);
        for sequence in sequences {
            push(&mut server, &numbered(sequence));
        }
        server.tx[0].flush().unwrap();
    }
    let report = sink.end().report();
    assert_eq!((report["received"].as_u64(), report["ended"].as_str()), (Some(400), Some("count")));
    assert_eq!((report["lost"].as_u64(), report["reordered"].as_u64()), (Some(0), Some(0)));
    assert_eq!(report["ring"]["connections"], 2);
}

#[test]
fn it_ends_in_time_when_no_server_ever_comes() {
    let dir = tempfile::tempdir().unwrap();
    let line =
        format!("sink --memif {} --reconnect --json --seconds 0.1", dir.path().join("none.sock").display());
    let report = pktgen(&line).ready().end().report();
    assert_eq!((report["received"].as_u64(), report["ended"].as_str()), (Some(0), Some("seconds")));
    assert_eq!(report["ring"]["connections"], 0);
}

#[test]
fn a_server_that_hangs_up_at_first_is_tried_again_and_that_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.sock");
    let listener = Listener::bind(&SocketAddr::Path(path.clone()), ListenerConfig::default()).unwrap();
    let sink = pktgen(&format!("sink --memif {} --seconds 0.1 --no-floor --json", path.display()));
    drop(until("client", || listener.accept().unwrap()));
    let _server = accept(&listener);
    let ended = sink.end();
    ended.report();
    let [again, ready] = &ended.stderr[..] else { panic!("{:?}", ended.stderr) };
    assert!(
        again.contains("m.sock: peer closed the connection") && again.contains("trying again"),
        "{again}"
    );
    assert_eq!(ready, "ready");
}
