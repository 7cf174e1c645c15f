//! `send` into a memif server of ours: what it says is what arrives. Needs no privilege.

mod common;

use std::collections::HashMap;
use std::io::Write;
use std::path::Path;
use std::time::Instant;

use common::{PATIENCE, Process, accept, pktgen};
use peregrine_memif::{Interface, Listener, ListenerConfig, SocketAddr};
use peregrine_pktgen::trailer::Trailer;

const FLOWS: &str = "--inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 02:00:00:00:01:02 \
                     --inner-source 10.9.0.1 --inner-destination 10.9.0.2";

fn listen(path: &Path) -> Listener {
    Listener::bind(&SocketAddr::Path(path.to_owned()), ListenerConfig::default()).unwrap()
}

/// Everything that comes on any queue until the sender has gone; with its queue.
fn receive(server: &mut Interface) -> Vec<(usize, Vec<u8>)> {
    let deadline = Instant::now() + PATIENCE;
    let (mut all, mut copy) = (Vec::new(), [0; 2048]);
    loop {
        assert!(Instant::now() < deadline, "it does not end");
        let gone = server.control.poll_disconnect().unwrap().is_some();
        for (queue, rx) in server.rx.iter_mut().enumerate() {
            while rx.pending().unwrap() > 0 {
                while let Some(packet) = rx.next_packet() {
                    let length = packet.unwrap().copy_to(&mut copy).unwrap();
                    all.push((queue, copy[..length].to_vec()));
                }
                rx.release();
            }
        }
        if gone {
            return all;
        }
        std::thread::yield_now();
    }
}

fn run(path: &Path, arguments: &str) -> (Vec<(usize, Vec<u8>)>, Process) {
    let listener = listen(path);
    let sender = pktgen(&format!("send --json --memif {} {arguments}", path.display()));
    let mut server = accept(&listener);
    (receive(&mut server), sender)
}

#[test]
fn every_frame_of_every_thread_arrives_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let arguments = format!("{FLOWS} --threads 2 --flows 6 --size imix --rate max --count 20001");
    let (got, sender) = run(&dir.path().join("m.sock"), &arguments);
    let report = sender.end().report();
    assert_eq!(
        (report["sent"].as_u64(), report["ended"].as_str()),
        (Some(20_001), Some("count")),
        "{report}"
    );
    assert_eq!(report["bytes"].as_u64(), Some(got.iter().map(|(_, frame)| frame.len() as u64).sum()));
    assert_eq!((report["memif"]["queue_pairs"].as_u64(), got.len()), (Some(2), 20_001));
    assert_eq!(report["profile"]["sizes"], "60:7,590:4,1514:1");
    let mut next: HashMap<u16, u64> = HashMap::new();
    let run = Trailer::of_frame(&got[0].1).unwrap().run;
    for (queue, frame) in &got {
        let trailer = Trailer::of_frame(frame).unwrap();
        assert_eq!(trailer.run, run, "all threads are of one run");
        assert_eq!(usize::from(trailer.flow) % 2, *queue, "flows keep to their thread");
        let next = next.entry(trailer.flow).or_default();
        assert_eq!(trailer.sequence, *next);
        *next += 1;
    }
    assert_eq!(next.len(), 6);
}

#[test]
fn vxlan_frames_go_into_memif_too() {
    let dir = tempfile::tempdir().unwrap();
    let outer = "--next-hop 04:00:00:00:00:02 --local 192.0.2.1 --remote 192.0.2.2 --vni 7,8";
    let arguments = format!("{FLOWS} {outer} --flows 2 --rate 10000 --count 10");
    let (got, sender) = run(&dir.path().join("m.sock"), &arguments);
    assert_eq!(sender.end().report()["bytes"], 10 * 114);
    let vnis: Vec<u8> = got.iter().map(|(_, frame)| frame[48]).collect();
    assert_eq!(vnis, [7, 8, 7, 8, 7, 8, 7, 8, 7, 8]);
}

#[test]
fn a_capture_arrives_byte_by_byte() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes =
        vec![0xd4, 0xc3, 0xb2, 0xa1, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xff, 0, 0, 1, 0, 0, 0];
    for (at, length) in [(0u8, 60u8), (9, 100), (20, 61)] {
        bytes.extend([1, 0, 0, 0, at, 0, 0, 0, length, 0, 0, 0, length, 0, 0, 0]);
        bytes.extend(vec![length; usize::from(length)]);
    }
    let file = dir.path().join("x.pcap");
    std::fs::File::create(&file).unwrap().write_all(&bytes).unwrap();
    let arguments = format!("--replay {} --loops 2", file.display());
    let (got, sender) = run(&dir.path().join("m.sock"), &arguments);
    let report = sender.end().report();
    assert_eq!((report["sent"].as_u64(), report["replay"]["packets"].as_u64()), (Some(6), Some(3)));
    assert_eq!(report["ended"], "count");
    let wanted: Vec<_> = [60u8, 100, 61].repeat(2).iter().map(|n| (0, vec![*n; usize::from(*n)])).collect();
    assert_eq!(got, wanted);
}

#[test]
fn a_server_that_goes_away_leaves_the_report() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.sock");
    let listener = listen(&path);
    let sender = pktgen(&format!("send --json --memif {} {FLOWS} --rate 1000 --seconds 60", path.display()));
    let server = accept(&listener);
    let sender = sender.ready();
    drop(server);
    let ended = sender.end();
    let report: serde_json::Value = serde_json::from_str(&ended.stdout).unwrap();
    assert_eq!((ended.status, report["ended"].as_str()), (Some(1), Some("peer")));
    assert!(ended.stderr[0].contains("memif server"), "{:?}", ended.stderr);
}
