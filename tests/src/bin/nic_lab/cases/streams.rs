//! Streams of frames, each of which is accounted for. The tenant is on memif and polls: what a wake-up takes in a guest that is
//! emulated, Peregrine does not put up with for long.

use std::time::{Duration, Instant};

use peregrine_memif::Interface;
use peregrine_tests::{Daemon, FAR, FAR_OVERLAY, NEAR, PATIENCE, RawSocket, Tenant, frame, totals, until};
use serde_json::Value;

use super::lost_at_sockets;
use crate::bench::{Bench, counter, counters};
use crate::kinds::Kind;

/// What begins the payload of each frame of ours.
const MARK: &str = "stream ";

/// A frame of the stream, with this number, from about 100 to 1400 bytes long.
fn numbered(from: &str, to: &str, number: usize) -> Vec<u8> {
    let text = format!("{MARK}{number} ");
    frame(from, to, &format!("{text:.<length$}", length = 60 + number * 37 % 1300))
}

fn is_ours(frame: &[u8]) -> bool {
    frame.windows(MARK.len()).any(|bytes| bytes == MARK.as_bytes())
}

/// What has come to a tenant since the last look.
pub fn polled(tenant: &mut Interface) -> Vec<Vec<u8>> {
    let ring = tenant.rx.first_mut().expect("a ring");
    ring.disable_interrupt();
    ring.pending().expect("an honest peer");
    let mut frames = Vec::new();
    while let Some(packet) = ring.next_packet() {
        let packet = packet.expect("an honest peer");
        let mut bytes = vec![0; packet.len()];
        packet.copy_to(&mut bytes).expect("room");
        frames.push(bytes);
    }
    ring.release();
    frames.retain(|frame| is_ours(frame));
    frames
}

fn give(tenant: &mut Interface, frame: &[u8]) {
    let ring = tenant.tx.first_mut().expect("a ring");
    ring.push(frame).expect("room in the ring");
    ring.flush().expect("flushed");
}

/// The far kernel's vxlan device and the tenant send to each other, so many under way at once; all of them come, in order.
pub fn both_ways(kind: Kind) -> String {
    const WINDOWS: usize = 60;
    const WINDOW: usize = 32;
    let bench = Bench::new(kind);
    let daemon = bench.start(&bench.config(&[Tenant::DB]));
    let mut tenant = Tenant::DB.connect(&bench.net);
    let far = RawSocket::open(&bench.net.far, "vx");
    // So that nothing of the stream is flooded: the daemon learns where the far end is.
    far.send(&numbered(FAR_OVERLAY.1, Tenant::DB.mac, 0));
    until("the first frame", || !polled(&mut tenant).is_empty());
    let before = daemon.at_rest();

    for window in 0..WINDOWS {
        let numbers = window * WINDOW..(window + 1) * WINDOW;
        let inward: Vec<_> = numbers.clone().map(|n| numbered(FAR_OVERLAY.1, Tenant::DB.mac, n)).collect();
        let outward: Vec<_> = numbers.map(|n| numbered(Tenant::DB.mac, FAR_OVERLAY.1, n)).collect();
        for (inward, outward) in inward.iter().zip(&outward) {
            far.send(inward);
            give(&mut tenant, outward);
        }
        let mut got = Vec::new();
        until("the window to come in", || {
            got.extend(polled(&mut tenant));
            got.len() >= WINDOW
        });
        assert!(got == inward, "window {window} came in otherwise than it was sent");
        // The socket sees what it sends itself as well.
        let wanted = |frame: &[u8]| is_ours(frame) && frame.get(6..12) == outward[0].get(6..12);
        for (n, sent) in outward.iter().enumerate() {
            let got = far.next(PATIENCE, wanted);
            assert!(
                got.as_ref() == Some(sent),
                "frame {n} of window {window} went out otherwise than it was given"
            );
        }
    }
    let after = super::nothing_lost(&daemon);
    let grown = |name| totals(&after, name) - totals(&before, name);
    let all = (WINDOWS * WINDOW) as u64;
    assert!(grown("uplink_rx") >= all && grown("uplink_tx") >= all, "{after:#}");
    assert_eq!(grown("tenant_rx"), grown("uplink_tx"));
    format!(
        "{all} frames each way, all came, in order; {} in, {} out",
        grown("uplink_rx"),
        grown("uplink_tx")
    )
}

/// As many as the far host can send at once: what came, what we dropped, and what the socket or the NIC had no room for, is all of it.
pub fn burst(kind: Kind) -> String {
    const FRAMES: usize = 3000;
    let bench = Bench::new(kind);
    let daemon = bench.start(&bench.config(&[Tenant::DB]));
    let mut tenant = Tenant::DB.connect(&bench.net);
    let far = RawSocket::sender(&bench.net.far, "vx");
    let before = quiet(&bench, &daemon);
    let mut got = 0;
    for number in 0..FRAMES {
        far.send(&numbered(FAR_OVERLAY.1, Tenant::DB.mac, number));
        if number % 64 == 0 {
            got += polled(&mut tenant).len() as u64;
        }
    }
    let (stats, (came, sent, lost)) =
        settled(&bench, &daemon, &before, || got += polled(&mut tenant).len() as u64);
    assert_eq!(came + lost, sent, "{came} came and {lost} were counted as lost, of {sent}: {stats:#}");
    let delivered = totals(&stats, "tenant_tx") - totals(&before.0, "tenant_tx");
    until("the last ones", || {
        got += polled(&mut tenant).len() as u64;
        got >= delivered
    });
    assert_eq!(got, delivered);
    format!("{sent} sent, {came} came, {lost} counted as lost before, {got} delivered")
}

/// Counters of the wire's two ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Wire {
    sent: u64,
    /// For which the near NIC had no room, or which it did not take.
    refused: u64,
}

impl Wire {
    /// As they are now.
    pub fn now(bench: &Bench) -> Wire {
        let near = |name| counter(&bench.net.near, NEAR.1, name);
        let refused = near("rx_missed_errors") + near("rx_over_errors");
        Wire { sent: counter(&bench.net.far, FAR.1, "tx_packets"), refused }
    }
}

/// At rest, with the wire's counters of the same moment: nobody sends anything of his own meanwhile.
pub fn quiet(bench: &Bench, daemon: &Daemon) -> (Value, Wire) {
    let mut found = None;
    until("a moment in which nothing is sent", || {
        let wire = Wire::now(bench);
        let stats = daemon.at_rest();
        found = (Wire::now(bench) == wire).then_some((stats, wire));
        found.is_some()
    });
    found.expect("found")
}

/// What came, what was sent, and what somebody counted as lost on the way.
pub type Balance = (u64, u64, u64);

/// Waits until the frames that came, and those counted as lost, are as many as were sent, at rest; or until nothing changes any more.
pub fn settled(
    bench: &Bench,
    daemon: &Daemon,
    before: &(Value, Wire),
    mut meanwhile: impl FnMut(),
) -> (Value, Balance) {
    let mut last = (daemon.stats(), Instant::now());
    loop {
        meanwhile();
        let is_over = last.1.elapsed() > Duration::from_secs(4);
        // The wire after the rest: a frame that others send meanwhile is waited for.
        let found = |stats: &Value| {
            let found = balance(stats, &Wire::now(bench), before);
            (found.0 + found.2 == found.1 || is_over).then_some(found)
        };
        let stats = daemon.stats();
        if found(&stats).is_some() {
            let at_rest = daemon.at_rest();
            if let Some(found) = found(&at_rest) {
                return (at_rest, found);
            }
        }
        if stats["totals"] != last.0["totals"] {
            last = (stats, Instant::now());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// What came counts to us or to the kernel.
fn balance(stats: &Value, wire: &Wire, before: &(Value, Wire)) -> Balance {
    let came = |stats: &Value| {
        let passed = stats["uplinks"][0]["program"].as_array().into_iter().flatten().map(|queue| {
            let passed = queue["passed"].as_object().into_iter().flatten().filter_map(|(_, n)| n.as_u64());
            queue["no_socket"].as_u64().unwrap_or(0) + passed.sum::<u64>()
        });
        totals(stats, "uplink_rx") + passed.sum::<u64>()
    };
    let lost = lost_at_sockets(stats) - lost_at_sockets(&before.0) + wire.refused - before.1.refused;
    (came(stats) - came(&before.0), wire.sent - before.1.sent, lost)
}

/// Who counts frames of this length, which are longer than the MTU: we and the drivers all do it elsewhere. Nobody does where QEMU's card
/// drops them and tells its driver nothing.
fn counts_huge(kind: Kind, length: usize) -> Option<&'static str> {
    match kind {
        // What fits a chunk comes to us.
        Kind::Virtio if length < 2000 => Some("inner_too_long"),
        Kind::Virtio => Some("rx_drops"),
        Kind::E1000e => Some("rx_long_length_errors"),
        Kind::Igb | Kind::Vmxnet3 | Kind::Machine => None,
    }
}

/// Frames that are longer than the MTU: each is dropped, and counted where it is known by whom; those around them come all the same.
pub fn huge(kind: Kind) -> String {
    const FRAMES: u64 = 40;
    let bench = Bench::new(kind);
    let daemon = bench.start(&bench.config(&[Tenant::DB]));
    bench.net.far.ip(&format!("link set {} mtu 6000", FAR.1)).expect("a larger MTU");
    bench.net.far.ip("link set vx mtu 5900").expect("a larger MTU");
    bench.wait_for_carrier(&bench.net.far, FAR.1, true);
    bench.pings(20);
    let far = RawSocket::sender(&bench.net.far, "vx");
    let mut tenant = Tenant::DB.connect(&bench.net);
    let counted = || {
        let of_driver = counters(&bench.net.near, NEAR.1);
        ["inner_too_long", "rx_drops", "rx_long_length_errors"].map(|name| {
            let of_driver = of_driver.get(name).copied();
            (name, of_driver.unwrap_or_else(|| daemon.drops(name)))
        })
    };
    let mut facts = Vec::new();
    for length in [1600, 5000] {
        let (before, sent) = (counted(), counter(&bench.net.far, FAR.1, "tx_packets"));
        for number in 0..FRAMES {
            far.send(&frame(FAR_OVERLAY.1, Tenant::DB.mac, &format!("{MARK}{number}{:.<length$}", "")));
        }
        let all_sent = || counter(&bench.net.far, FAR.1, "tx_packets") >= sent + FRAMES;
        until("the frames to be on the wire", all_sent);
        bench.pings(100);
        let counter = counts_huge(kind, length);
        let expected =
            before.map(|(name, before)| (name, before + if Some(name) == counter { FRAMES } else { 0 }));
        until("the frames to be counted", || counted() >= expected);
        assert_eq!(counted(), expected, "of {length} bytes");
        assert!(polled(&mut tenant).is_empty(), "a frame of {length} bytes came");
        facts.push(format!(
            "{FRAMES} of {length} bytes: {}",
            counter.unwrap_or("dropped by the card, not counted")
        ));
    }
    let stats = daemon.at_rest();
    let drops = totals(&stats, "dropped");
    assert_eq!(drops, daemon.drops("inner_too_long"), "{}", stats["drops"]);
    format!("{}; all pings", facts.join(", "))
}
