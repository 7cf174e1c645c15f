//! Rings that run dry, and queues without a socket.

use std::process::Command;

use peregrine_tests::{FAR_OVERLAY, NEAR, RawSocket, Tenant, frame, ping, run, until};
use rustix::process::Signal;
use serde_json::Value;

use super::doctor::Doctor;
use super::streams::{Wire, balance, polled, settled};
use crate::bench::Bench;
use crate::kinds::Kind;

/// Descriptors of a receive queue of igb, if nobody asks for more.
const IGB_DESCRIPTORS: u64 = 256;

/// The worker stands still while more frames come than there are places in its rings; then it goes on, and so do the frames.
pub fn dry(kind: Kind) -> String {
    const FRAMES: usize = 1500;
    let bench = Bench::new(kind);
    let config = bench.config(&[Tenant::DB]).replace("[uplink]\n", "[uplink]\nring_size = 64\n");
    let daemon = bench.start(&config);
    let mut tenant = Tenant::DB.connect(&bench.net);
    bench.pings(20);
    let mut facts = Vec::new();
    for _ in 0..2 {
        let before = (daemon.at_rest(), Wire::now(&bench));
        let far = RawSocket::sender(&bench.net.far, "vx");
        daemon.signal(Signal::STOP);
        for number in 0..FRAMES {
            far.send(&frame(FAR_OVERLAY.1, Tenant::DB.mac, &format!("stream {number}")));
        }
        daemon.signal(Signal::CONT);
        let stats = settled(&bench, &daemon, &before, || drop(polled(&mut tenant)));
        let (came, sent, lost) = balance(&stats, &Wire::now(&bench), &before);
        facts.push(format!("{sent} sent, {came} came, {lost} counted as lost"));
        bench.pings(100);
        let empty =
            |stats: &Value| sockets(stats, "rx_fill_ring_empty_descs") + sockets(stats, "rx_ring_full");
        assert!(came < sent || empty(&stats) > empty(&before.0), "nothing ran dry: {stats:#}");
        // On igb (Linux 7.2) up to a ring of descriptors was counted more than was sent: it seems to look again at those that it had no buffers for,
        // and so to be ahead of the card, which fills them later: what comes then may be counted by nobody.
        let again = if kind == Kind::Igb { IGB_DESCRIPTORS } else { 0 };
        let wire = Wire::now(&bench);
        assert!(
            (sent - again..=sent + again).contains(&(came + lost)),
            "{facts:?}, {:?}, {wire:?}: {stats:#}",
            before.1
        );
    }
    daemon.at_rest();
    facts.join("; then ")
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
