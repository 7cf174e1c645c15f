//! Rings that run dry, and queues without a socket.

use std::process::Command;

use peregrine_tests::{Daemon, FAR_OVERLAY, NEAR, RawSocket, Tenant, frame, ping, run, until};
use rustix::process::Signal;
use serde_json::Value;

use super::doctor::Doctor;
use super::streams::{polled, quiet, settled};
use crate::bench::{Bench, WEB};
use crate::kinds::Kind;

/// The worker stands still while more frames come than there are places in its rings; then it goes on, and so do the frames. Each is
/// accounted for, but with igb's zero-copy.
///
/// Where igb's driver is short of buffers at its ring's end, it does not clear the next descriptor's length (Linux 7.2, `igb_alloc_rx_buffers_zc` in
/// igb_xsk.c). So it goes through frames that it had already, and counts them again; it has chunks twice, and hands them over twice;
/// and it is ahead of the card, which fills those descriptors later: what comes there may be counted by nobody.
pub fn dry(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let config = bench.config(&[Tenant::DB]).replace("[uplink]\n", "[uplink]\nring_size = 64\n");
    if kind != Kind::Igb {
        return ran_dry(&bench, &bench.start(&config), true);
    }
    let daemon = bench.start(&config);
    let facts = ran_dry(&bench, &daemon, false);
    daemon.stop();
    // What finds no descriptor of the card's, QEMU drops and does not count while another queue has some.
    run(bench.net.near.command("ethtool").args(["-G", NEAR.1, "rx", "2048"]));
    let copying = bench.start_in(&config.replace(kind.mode(), "copy"), "copy");
    format!("{facts}; by copy: {}", ran_dry(&bench, &copying, true))
}

fn ran_dry(bench: &Bench, daemon: &Daemon, is_exact: bool) -> String {
    const FRAMES: usize = 1500;
    let mut tenant = Tenant::DB.connect(&bench.net);
    bench.pings(20);
    let mut facts = Vec::new();
    for _ in 0..2 {
        let before = quiet(bench, daemon);
        let far = RawSocket::sender(&bench.net.far, "vx");
        daemon.signal(Signal::STOP);
        for number in 0..FRAMES {
            far.send(&frame(FAR_OVERLAY.1, Tenant::DB.mac, &format!("stream {number}")));
        }
        daemon.signal(Signal::CONT);
        let (stats, (came, sent, lost)) = settled(bench, daemon, &before, || drop(polled(&mut tenant)));
        facts.push(format!("{sent} sent, {came} came, {lost} counted as lost"));
        let empty =
            |stats: &Value| sockets(stats, "rx_fill_ring_empty_descs") + sockets(stats, "rx_ring_full");
        assert!(came > 0, "{facts:?}: {stats:#}");
        assert!(came < sent || empty(&stats) > empty(&before.0), "nothing ran dry: {stats:#}");
        if is_exact {
            assert_eq!(came + lost, sent, "{facts:?}: {stats:#}");
            assert_eq!(named_twice(&stats), 0);
            bench.pings(100);
            continue;
        }
        until("each ping to be answered, or lost with a chunk that was there twice", || {
            let before = named_twice(&daemon.stats());
            let answered = ping(&bench.net.far, WEB, 100, 0.01);
            u64::from(answered) + named_twice(&daemon.stats()) - before >= 100
        });
    }
    let stats = daemon.at_rest();
    if !is_exact {
        facts.push(format!("{} chunks handed over twice", named_twice(&stats)));
    }
    facts.join(", then ")
}

/// Chunks that the driver handed over and did not have.
fn named_twice(stats: &Value) -> u64 {
    let all = stats["workers"].as_array().expect("workers").iter();
    all.map(|worker| worker["chunk_faults"].as_u64().expect("a count")).sum()
}

fn sockets(stats: &Value, key: &str) -> u64 {
    let all = stats["uplinks"][0]["sockets"].as_array().into_iter().flatten();
    all.filter_map(|socket| socket[key].as_u64()).sum()
}

/// The NIC has two queues, and we a socket on one. What comes to the other one is counted, and shown; and when the NIC is told to use
/// the served one, all comes.
pub fn unserved_queue(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let near = |program: &str, arguments: &str| {
        let mut command: Command = bench.net.near.command(program);
        run(command.args(arguments.split_whitespace()))
    };
    // QEMU's vmxnet3 puts everything into queue 0.
    let (served, unserved) = if kind == Kind::Igb { (0, 1) } else { (1, 0) };
    let config = bench.config(&[]).replace("[uplink]\n", &format!("[uplink]\nqueues = [{served}]\n"));
    let doctor = Doctor::new(&bench, "one-queue", &config);
    let words = format!("packets come to queues {unserved}, which have no socket");
    assert_eq!(doctor.tells("queues", "warning", "")["what"], words);
    let daemon = bench.start(&config);
    let uplink = &daemon.status()["uplinks"][0];
    assert_eq!((&uplink["queues"], &uplink["queue_count"]), (&[served].into(), &2.into()), "{uplink}");
    if kind == Kind::Igb {
        near("ethtool", &format!("-X {} weight 0 1", NEAR.1));
    }
    // Of each queue: what went to its socket, and what found none.
    let counted = || {
        let stats = daemon.stats();
        let of = |queue: usize| {
            let program = &stats["uplinks"][0]["program"][queue];
            [&program["steered"], &program["no_socket"]].map(|count| count.as_u64().expect("a count"))
        };
        (of(served), of(unserved))
    };
    let neighbour =
        format!("neigh replace {} lladdr {} dev vx nud permanent", Tenant::WEB.ip, Tenant::WEB.mac);
    bench.net.far.ip(&neighbour).expect("a neighbour");
    let before = counted();
    assert_eq!(before.1, [0, 0]);
    assert_eq!(ping(&bench.net.far, Tenant::WEB.ip, 50, 0.01), 0, "no socket, no answer");
    until("the frames to be counted", || counted().1[1] >= 50);
    assert_eq!(counted(), (before.0, [0, 50]), "each frame once, and at the queue without a socket");
    let shown =
        near(&program_path(), &format!("stats --socket {}", bench.net.file("control.sock").display()));
    let line = shown.lines().find(|line| line.trim_start().starts_with("XDP program: no socket"));
    let last = line.and_then(|line| line.split_whitespace().last());
    assert_eq!(last, Some("50"), "{shown}");
    if kind == Kind::Igb {
        near("ethtool", &format!("-X {} weight 1 0", NEAR.1));
        bench.pings(100);
        let after = counted();
        assert!(after.0[0] >= before.0[0] + 100 && after.1 == [0, 50], "{after:?}");
        near("ethtool", &format!("-X {} default", NEAR.1));
    }
    daemon.at_rest();
    let ([steered, _], [_, lost]) = counted();
    let said = daemon.stop();
    assert!(said.contains(&format!("doctor: warning: {}: {words}", NEAR.1)), "{said}");
    format!(
        "{lost} frames to queue {unserved}, all counted there; {steered} in by queue {served}; told by doctor, start and stats"
    )
}

fn program_path() -> String {
    peregrine_tests::program("peregrine").display().to_string()
}
