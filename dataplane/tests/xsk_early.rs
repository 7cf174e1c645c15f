//! Early classes over a veth: urgent frames have rings of their own. Which frames these are, that a flood of others takes nothing
//! from them, that both ways keep their accounts, and what is said where there is no second socket.
#![allow(
    unsafe_code,
    reason = "namespaces, packet sockets and filters for system calls have no safe wrapper"
)]

mod rig;
mod veth;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Instant;

use peregrine_dataplane::engine::Engine;
use peregrine_dataplane::frame::Burst;
use peregrine_dataplane::plan::{Early, RulePlan, XdpMode};
use peregrine_dataplane::types::{Class, QueueId};
use peregrine_dataplane::xsk::{
    EarlyNetwork, EarlyPort, EarlyProtocol, EarlyRules, EarlySet, EarlySide, SocketStatistics, XskConfig,
    open_all,
};

use veth::filter::{answer, if_not_skip, install, load};
use veth::{
    End, OUR_ADDRESS, PATIENCE, RawSocket, THEIR_ADDRESS, Vxlan, Wire, config, filled, run, until, vni,
};

const EF: u8 = 46;

fn early(ring_size: u32) -> XskConfig {
    XskConfig { early: Early::On, ring_size, tx_frames: ring_size, ..config("a0", OUR_ADDRESS) }
}

/// An inner frame: Ethernet, tags, IPv4 or IPv6, and two ports.
#[derive(Clone)]
struct Inner {
    v6: bool,
    tags: usize,
    dscp: u8,
    protocol: u8,
    options: bool,
    fragment: u16,
    ports: [u16; 2],
}

const PLAIN: Inner =
    Inner { v6: false, tags: 0, dscp: 0, protocol: 17, options: false, fragment: 0, ports: [1111, 2222] };

impl Inner {
    fn build(&self) -> Vec<u8> {
        let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2];
        for tag in 0..self.tags {
            frame.extend(if tag == 0 { [0x88, 0xa8, 0, 5] } else { [0x81, 0, 0, 6] });
        }
        if self.v6 {
            frame.extend([0x86, 0xdd, 0x60 | self.dscp >> 2, self.dscp << 6 | 0x3f, 0xff, 0xff, 0, 12]);
            frame.extend([self.protocol, 64]);
            frame.extend([0x20; 32]);
        } else {
            let words = if self.options { 7 } else { 5 };
            frame.extend([8, 0, 0x40 | words, self.dscp << 2 | 3, 0, 40, 0, 1]);
            frame.extend(self.fragment.to_be_bytes());
            frame.extend([64, self.protocol, 0, 0, 10, 1, 1, 1, 10, 1, 1, 2]);
            frame.resize(frame.len() + usize::from(words - 5) * 4, 1);
        }
        self.ports.iter().for_each(|port| frame.extend(port.to_be_bytes()));
        frame.extend([0x5a; 8]);
        frame
    }

    fn on(&self, network: u32) -> Vec<u8> {
        Vxlan { vni: network, payload: self.build(), ..Vxlan::default() }.build()
    }
}

fn dscps(list: &[u8]) -> EarlySet {
    EarlySet { dscps: list.iter().map(|dscp| 1u64 << dscp).sum(), ..EarlySet::default() }
}

fn ports(list: &[(EarlyProtocol, EarlySide, u16)]) -> EarlySet {
    let port = |&(protocol, side, port): &_| EarlyPort { protocol, side, port };
    EarlySet { ports: list.iter().map(port).collect(), ..EarlySet::default() }
}

fn everything() -> EarlySet {
    EarlySet { everything: true, ..EarlySet::default() }
}

fn for_all(all: EarlySet) -> EarlyRules {
    EarlyRules { all, ..EarlyRules::default() }
}

fn for_network(network: u32, own: EarlySet, all: bool, rules: EarlyRules) -> EarlyRules {
    let mut rules = rules;
    rules.networks.insert(vni(network), EarlyNetwork { own, all });
    rules
}

/// Sends one frame and says on which ring it arrived.
fn arrives_urgent(end: &mut End, peer: &RawSocket, frame: &[u8]) -> bool {
    peer.send(frame);
    let mut normal = Vec::new();
    until("it has arrived", || {
        normal.extend(end.turn());
        normal.len() + end.urgent.len() == 1
    });
    let urgent: Vec<Vec<u8>> = std::mem::take(&mut end.urgent);
    assert!(normal.iter().chain(&urgent).all(|got| got == frame), "unchanged");
    !urgent.is_empty()
}

/// Rules, and frames with whether they are urgent by them.
type Case = (&'static str, EarlyRules, Vec<(Vec<u8>, bool)>);

/// A frame in network 7 with so much of this inner one.
fn cut(inner: &Inner, length: usize) -> Vec<u8> {
    Vxlan { payload: inner.build()[..length].to_vec(), ..Vxlan::default() }.build()
}

/// The whole inner frame in network 7, but all after so many bytes of it stands behind the outer UDP datagram, as padding may. Whose
/// length says so: that of both outer headers, that of UDP alone, or that of IP alone.
fn behind(inner: &Inner, length: usize) -> [Vec<u8>; 3] {
    let whole = inner.on(7);
    let excess = (inner.build().len() - length) as u16;
    let shorten = |frame: &mut Vec<u8>, at: usize| {
        let shorter = u16::from_be_bytes([frame[at], frame[at + 1]]) - excess;
        frame[at..at + 2].copy_from_slice(&shorter.to_be_bytes());
    };
    let (ip_length, udp_length) = (14 + 2, 14 + 20 + 4);
    let mut frames = [whole.clone(), whole.clone(), whole];
    shorten(&mut frames[0], ip_length);
    shorten(&mut frames[0], udp_length);
    shorten(&mut frames[1], udp_length);
    shorten(&mut frames[2], ip_length);
    frames
}

fn by_what_the_outer_headers_hold() -> Vec<Case> {
    let ef = Inner { dscp: EF, ports: [1, 2], ..PLAIN };
    let ef6 = Inner { v6: true, ..ef.clone() };
    let tagged = |tags, inner: &Inner| Inner { tags, ..inner.clone() };
    let port = Inner { options: true, ..PLAIN };
    let port6 = Inner { v6: true, ..PLAIN };
    let rules = EarlySet { dscps: 1 << EF, ..ports(&[(EarlyProtocol::Udp, EarlySide::Source, 1111)]) };
    let mut frames = Vec::new();
    // Each with the first length at which it can be told.
    for (inner, enough) in [
        (&ef, 14 + 20),
        (&tagged(1, &ef), 18 + 20),
        (&tagged(2, &ef), 22 + 20),
        (&ef6, 14 + 40),
        (&tagged(2, &ef6), 22 + 40),
        (&PLAIN, 14 + 20 + 4),
        (&port, 14 + 28 + 4),
        (&tagged(2, &port), 22 + 28 + 4),
        (&port6, 14 + 40 + 4),
    ] {
        frames.extend(behind(inner, enough).map(|frame| (frame, true)));
        for length in (0..enough).rev().step_by(3) {
            frames.extend(behind(inner, length).map(|frame| (frame, false)));
        }
    }
    // Lengths that do not even hold the outer headers.
    for (at, length) in [(16, 0u16), (16, 20), (16, 35), (38, 0), (38, 7), (38, 15)] {
        let mut frame = ef.on(7);
        frame[at..at + 2].copy_from_slice(&length.to_be_bytes());
        frames.push((frame, false));
    }
    vec![("by what the outer headers hold", for_all(rules), frames)]
}

fn by_network() -> Vec<Case> {
    let ef = Inner { dscp: EF, ..PLAIN };
    let v6 = Inner { v6: true, ..PLAIN };
    let one = |network| for_network(network, everything(), false, EarlyRules::default());
    let empty = Vxlan { vni: 0xff_ffff, payload: vec![], ..Vxlan::default() }.build();
    vec![
        ("no rules", EarlyRules::default(), vec![(ef.on(7), false), (v6.on(8), false)]),
        (
            "by network",
            one(8),
            vec![(PLAIN.on(7), false), (PLAIN.on(8), true), (v6.on(8), true), (PLAIN.on(0xff_ffff), false)],
        ),
        (
            "the largest VNI, and too short to have an inner header",
            one(0xff_ffff),
            vec![(PLAIN.on(0xff_ffff), true), (empty, true), (PLAIN.on(7), false)],
        ),
        (
            "all but one",
            for_network(8, EarlySet::default(), false, for_all(everything())),
            vec![(PLAIN.on(7), true), (ef.on(8), false)],
        ),
    ]
}

fn by_dscp() -> Vec<Case> {
    let v6 = Inner { v6: true, ..PLAIN };
    let ef = Inner { dscp: EF, ..PLAIN };
    let ef6 = Inner { dscp: EF, ..v6.clone() };
    let frames = vec![
        (ef.on(7), true),
        (ef6.on(7), true),
        (PLAIN.on(7), false),
        (v6.on(7), false),
        (Inner { dscp: 63, ..PLAIN }.on(8), true),
        (Inner { dscp: 63, ..v6.clone() }.on(8), true),
        (Inner { dscp: 0x20, ..v6.clone() }.on(8), true),
        (Inner { dscp: 0x21, ..v6 }.on(8), false),
        (Inner { dscp: 62, ..PLAIN }.on(8), false),
        (Inner { fragment: 100, ..ef.clone() }.on(8), true),
        (Inner { tags: 1, ..ef.clone() }.on(8), true),
        (Inner { tags: 2, ..ef6.clone() }.on(8), true),
        (Inner { tags: 3, ..ef.clone() }.on(8), false),
        (cut(&ef, 14 + 20), true),
        (cut(&ef, 14 + 19), false),
        (cut(&ef6, 14 + 40), true),
        (cut(&ef6, 14 + 39), false),
        (cut(&Inner { tags: 1, ..ef.clone() }, 14 + 3), false),
        (cut(&ef, 13), false),
        (cut(&ef, 0), false),
    ];
    vec![("by DSCP", for_all(dscps(&[EF, 63, 0x20])), frames)]
}

fn by_port() -> Vec<Case> {
    use EarlyProtocol::{Sctp, Tcp, Udp};
    use EarlySide::{Destination, Source};
    let v6 = Inner { v6: true, ..PLAIN };
    let tcp = Inner { protocol: 6, ..PLAIN };
    let (ef, ef_tcp) = (Inner { dscp: EF, ..PLAIN }, Inner { dscp: EF, ..tcp.clone() });
    let rules = for_all(ports(&[(Udp, Destination, 2222), (Tcp, Source, 1111), (Sctp, Source, 1)]));
    let own = |all| for_network(8, ports(&[(Udp, Source, 1111)]), all, for_all(dscps(&[EF])));
    let frames = vec![
        (PLAIN.on(7), true),
        (v6.on(7), true),
        (Inner { ports: [2222, 1111], ..PLAIN }.on(7), false),
        (tcp.on(7), true),
        (Inner { ports: [2222, 1111], ..tcp.clone() }.on(7), false),
        (Inner { ports: [2, 2222], ..tcp }.on(7), false),
        (Inner { protocol: 132, ports: [1, 2], ..v6.clone() }.on(7), true),
        (Inner { options: true, ..PLAIN }.on(8), true),
        (Inner { tags: 2, ..PLAIN }.on(8), true),
        (Inner { fragment: 0x2000, ..PLAIN }.on(8), false),
        (Inner { fragment: 7, ..PLAIN }.on(8), false),
        (Inner { protocol: 44, ..v6.clone() }.on(8), false),
        (Inner { protocol: 0, ..v6 }.on(8), false),
        (Inner { protocol: 1, ..PLAIN }.on(8), false),
        (cut(&PLAIN, 14 + 24), true),
        (cut(&PLAIN, 14 + 23), false),
    ];
    let beside = vec![(PLAIN.on(8), true), (PLAIN.on(7), false), (ef.on(7), true), (ef_tcp.on(8), true)];
    let instead = vec![(PLAIN.on(8), true), (PLAIN.on(7), false), (ef.on(7), true), (ef_tcp.on(8), false)];
    let asked = for_network(8, EarlySet::default(), true, rules.clone());
    let not_asked = for_network(8, EarlySet::default(), false, rules.clone());
    vec![
        ("by port", rules, frames),
        ("a network's own beside those for all", own(true), beside),
        ("a network's own instead", own(false), instead),
        ("the ports for all, where they are asked", asked, vec![(PLAIN.on(8), true), (PLAIN.on(7), true)]),
        ("and where they are not", not_asked, vec![(PLAIN.on(8), false), (PLAIN.on(7), true)]),
        ("no rules again", EarlyRules::default(), vec![(ef.on(7), false), (PLAIN.on(8), false)]),
    ]
}

#[test]
#[ignore = "needs root: make test runs it"]
fn urgent_frames_arrive_on_their_own_ring_and_others_do_not() {
    let wire = Wire::new(1);
    let mut end = End::open(&early(64), &[0]).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    let info = end.uplinks[0].info();
    assert_eq!((info.early_requested, info.early, &info.queues[..]), (Early::On, true, &[QueueId(0)][..]));
    assert_eq!(info.early_refused, None);
    end.uplinks[0].serve(vni(8), 4789).unwrap();
    end.uplinks[0].serve(vni(0xff_ffff), 4789).unwrap();
    let (mut urgent, mut all) = (0, 0);
    for (name, rules, frames) in
        [by_network(), by_dscp(), by_port(), by_what_the_outer_headers_hold()].concat()
    {
        end.uplinks[0].set_early(&rules).unwrap();
        for (number, (frame, want)) in frames.iter().enumerate() {
            assert_eq!(arrives_urgent(&mut end, &peer, frame), *want, "{name}, frame {number}");
            urgent += u64::from(*want);
            all += 1;
        }
    }
    let counted = end.uplinks[0].steering().unwrap()[0];
    assert_eq!((counted.steered, counted.urgent, counted.passed.total()), (all, urgent, 0), "{end:?}");
    end.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_frame_for_the_kernel_stays_the_kernels_whatever_the_rules_say() {
    let wire = Wire::new(1);
    let mut end = End::open(&early(64), &[0]).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    end.uplinks[0].set_early(&for_all(everything())).unwrap();
    peer.send(&PLAIN.on(9));
    peer.send(&Vxlan { to: [10, 9, 0, 77], ..Vxlan::default() }.build());
    assert!(arrives_urgent(&mut end, &peer, &PLAIN.on(7)));
    let passed = end.uplinks[0].steering().unwrap()[0].passed;
    assert_eq!((passed.other_vni, passed.other_address), (1, 1));
}

/// The first socket's counters, and the second one's.
fn statistics(end: &End) -> Vec<SocketStatistics> {
    end.uplinks[0].sockets().unwrap()
}

/// Sends frames and waits until the program has seen them, so that none is lost on the wire itself.
struct Paced {
    peer: RawSocket,
    sent: u64,
}

impl Paced {
    fn send(&mut self, end: &End, frame: &[u8], count: usize) {
        for left in (0..count).rev() {
            self.peer.send(frame);
            self.sent += 1;
            if self.sent.is_multiple_of(32) || left == 0 {
                let seen = || end.uplinks[0].steering().unwrap()[0].steered;
                until("they have been steered", || seen() == self.sent);
            }
        }
    }
}

/// Frames that the kernel has counted as lost, on all sockets.
fn lost(end: &End) -> u64 {
    statistics(end).iter().map(|socket| socket.rx_dropped + socket.rx_ring_full).sum()
}

/// Nobody takes while a flood comes: 40 times what the rx ring holds, and in the middle of it as many urgent frames as there is room
/// for. So many are to be `kept`. How many normal and urgent ones arrive after that.
fn flood(config: &XskConfig, kept: usize) -> (End, usize, usize) {
    let wire = Wire::new(1);
    let mut end = End::open(config, &[0]).unwrap();
    let ring = config.ring_size as usize;
    let mut paced = Paced { peer: wire.in_theirs(|| RawSocket::new("b0")), sent: 0 };
    end.uplinks[0].set_early(&for_all(dscps(&[EF]))).unwrap();
    let (normal, urgent) = (PLAIN.on(7), Inner { dscp: EF, ..PLAIN }.on(7));
    paced.send(&end, &normal, 2 * ring);
    for _ in 0..ring / 2 / 16 {
        paced.send(&end, &urgent, 16);
        paced.send(&end, &normal, 16 * 76);
    }
    until("the kernel has counted all for which there is no room", || lost(&end) == paced.sent - kept as u64);
    let mut arrived = Vec::new();
    until("the others have arrived", || {
        arrived.extend(end.turn());
        arrived.append(&mut end.urgent);
        arrived.len() >= kept
    });
    let count = |what: &[u8]| arrived.iter().filter(|frame| frame == &what).count();
    let result = (count(&normal), count(&urgent));
    assert_eq!(result.0 + result.1, arrived.len());
    end.assert_frames_are_home();
    (end, result.0, result.1)
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_flood_takes_nothing_from_urgent_frames() {
    for ring in [64, 128, 1024] {
        let frames = ring as usize;
        let flooding = 2 * frames + frames / 32 * 16 * 76;
        let (end, normal, urgent) = flood(&early(ring), frames + frames / 2);
        assert_eq!((normal, urgent), (frames, frames / 2), "each ring as full as it can be: {end:?}");
        let [first, second] = statistics(&end)[..] else { panic!("two sockets") };
        assert_eq!((first.urgent, second.urgent), (false, true));
        assert_eq!(first.rx_ring_full as usize, flooding - frames, "the kernel has counted what was lost");
        assert_eq!((first.rx_dropped, second.rx_dropped, second.rx_ring_full), (0, 0, 0), "{end:?}");
        let counted = end.uplinks[0].steering().unwrap()[0];
        assert_eq!((counted.steered as usize, counted.urgent as usize), (flooding + frames / 2, frames / 2));

        let (end, normal, urgent) = flood(&XskConfig { early: Early::Off, ..early(ring) }, frames);
        assert_eq!((normal, urgent), (frames, 0), "without early classes the flood takes all: {end:?}");
        assert_eq!(statistics(&end).len(), 1);
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn urgent_frames_go_on_while_the_normal_ring_is_full() {
    let wire = Wire::new(1);
    let mut end = End::open(&early(64), &[0]).unwrap();
    let mut paced = Paced { peer: wire.in_theirs(|| RawSocket::new("b0")), sent: 0 };
    end.uplinks[0].set_early(&for_network(7, dscps(&[EF]), false, EarlyRules::default())).unwrap();
    let (normal, urgent) = (PLAIN.on(7), Inner { dscp: EF, v6: true, ..PLAIN }.on(7));
    paced.send(&end, &normal, 200);
    let mut taken = 0;
    for _ in 0..200 {
        paced.send(&end, &urgent, 20);
        paced.send(&end, &normal, 20);
        // Only urgent frames are taken.
        let (pool, socket) = (&mut end.port.pool, &mut end.port.sockets[0]);
        let mut burst = Burst::new();
        until("all urgent frames have arrived", || {
            socket.receive_urgent(pool, &mut burst);
            burst.len() == 20
        });
        taken += burst.len();
        assert!(!socket.has_urgent() && burst.iter().all(|frame| frame.bytes() == urgent));
        burst.drain().for_each(|frame| pool.put(frame));
        socket.refill(pool);
    }
    assert_eq!(taken, 200 * 20, "{end:?}");
    until("all the others but a ring of them are lost", || lost(&end) == 200 + 200 * 20 - 64);
    let [first, second] = statistics(&end)[..] else { panic!("two sockets") };
    assert_eq!(first.rx_ring_full, 200 + 200 * 20 - 64);
    assert_eq!((first.rx_dropped, second.rx_dropped, second.rx_ring_full), (0, 0, 0), "{end:?}");
    assert_eq!(end.receive(64).len(), 64);
    end.assert_frames_are_home();
}

/// All the frames of a burst, on one of the two rings.
fn transmit(end: &mut End, urgent: bool, frames: &[Vec<u8>]) -> usize {
    let (pool, socket) = (&mut end.port.pool, &mut end.port.sockets[0]);
    let mut burst = Burst::new();
    frames.iter().for_each(|frame| burst.push(filled(pool, frame, 0)).unwrap());
    let sent =
        if urgent { socket.transmit_urgent(pool, &mut burst) } else { socket.transmit(pool, &mut burst) };
    burst.drain().for_each(|frame| pool.put(frame));
    sent
}

#[test]
#[ignore = "needs root: make test runs it"]
fn each_tx_ring_keeps_its_own_account() {
    // The second binds in another way, though a veth has no zero-copy.
    for mode in [XdpMode::Copy, XdpMode::PreferZeroCopy, XdpMode::Generic] {
        each_tx_ring(mode);
    }
}

fn each_tx_ring(mode: XdpMode) {
    let wire = Wire::new(1);
    let mut theirs = wire.in_theirs(|| End::open(&config("b0", THEIR_ADDRESS), &[0]).unwrap());
    let mut ours = End::open(&XskConfig { mode, ..early(64) }, &[0]).unwrap();
    let frame = |number: u8| {
        Vxlan { to: THEIR_ADDRESS.octets(), payload: vec![number; 60], ..Vxlan::default() }.build()
    };
    // The normal ring stands still: it is full, and nobody tells the kernel.
    let normal: Vec<Vec<u8>> = vec![frame(1); 64];
    assert_eq!(transmit(&mut ours, false, &normal), 64);
    assert_eq!((ours.port.sockets[0].tx_budget(), ours.port.sockets[0].urgent_tx_budget()), (0, 32));
    for round in 0..200u8 {
        let urgent = vec![frame(round.max(2)); 40];
        assert_eq!(transmit(&mut ours, true, &urgent), 32, "its own budget");
        let (pool, socket) = (&mut ours.port.pool, &mut ours.port.sockets[0]);
        assert_eq!((socket.urgent_tx_outstanding(), socket.tx_outstanding()), (32, 96));
        let mut home = 0;
        until("the urgent ones have come home", || {
            ours.kicks += socket.kick_urgent(0);
            home += socket.complete(pool);
            home == 32
        });
        assert_eq!((socket.urgent_tx_outstanding(), socket.tx_outstanding(), socket.tx_budget()), (0, 64, 0));
        let arrived = theirs.receive(32);
        assert!(arrived.iter().all(|got| *got == frame(round.max(2))), "round {round}");
    }
    assert_eq!((ours.kicks.lost, ours.kicks.failed, ours.kicks.watchdog), (0, 0, 0), "{ours:?}");
    let mut arrived = Vec::new();
    until("the others have arrived", || {
        ours.turn();
        arrived.extend(theirs.turn());
        arrived.len() == 64
    });
    assert_eq!(arrived, normal);
    until("all have come home", || {
        ours.turn();
        ours.port.sockets[0].tx_outstanding() == 0
    });
    ours.assert_frames_are_home();
    assert_eq!(transmit(&mut ours, true, &[vec![]]), 0);
    assert_eq!(ours.port.sockets[0].faults(), 1, "an empty one is refused");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn both_watchdogs_watch_and_a_link_that_comes_back_sends_from_both_rings() {
    let wire = Wire::new(1);
    let mut theirs = wire.in_theirs(|| End::open(&config("b0", THEIR_ADDRESS), &[0]).unwrap());
    let mut ours = End::open(&XskConfig { watchdog_ticks: 1_000_000, ..early(64) }, &[0]).unwrap();
    let frame = Vxlan { to: THEIR_ADDRESS.octets(), ..Vxlan::default() }.build();
    run("ip link set a0 down");
    let ten = vec![frame; 10];
    assert_eq!((transmit(&mut ours, false, &ten), transmit(&mut ours, true, &ten)), (10, 10));
    until("each watchdog has looked three times", || {
        ours.turn();
        ours.kicks.watchdog >= 6
    });
    assert_eq!((ours.kicks.failed, ours.port.sockets[0].tx_outstanding()), (0, 20), "{ours:?}");
    run("ip link set a0 up");
    let mut arrived = 0;
    until("all have arrived and come home", || {
        ours.turn();
        arrived += theirs.turn().len();
        arrived == 20 && ours.port.sockets[0].tx_outstanding() == 0
    });
    ours.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn without_a_second_socket_there_is_nothing_urgent() {
    let wire = Wire::new(1);
    let mut end = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    end.uplinks[0].set_early(&for_all(everything())).unwrap();
    assert!(!arrives_urgent(&mut end, &peer, &PLAIN.on(7)));
    assert_eq!(transmit(&mut end, true, &[PLAIN.on(7)]), 0);
    let socket = &end.port.sockets[0];
    assert_eq!((socket.is_early(), socket.urgent_tx_budget(), socket.faults()), (false, 0, 0));
    assert_eq!(end.uplinks[0].steering().unwrap()[0].urgent, 0);
}

/// Rules with many entries: two sets that have one frame in common, and one not.
fn alternating() -> [EarlyRules; 2] {
    let many = (0..200u16).map(|port| (EarlyProtocol::Udp, EarlySide::Source, 10_000 + port));
    let many: Vec<_> = many.collect();
    let mut first = for_network(7, everything(), false, for_all(ports(&many)));
    first.networks.extend((100..300).map(|other| (vni(other), EarlyNetwork::default())));
    let second = for_network(8, EarlySet::default(), true, for_all(dscps(&[EF])));
    [first, second]
}

#[test]
#[ignore = "needs root: make test runs it"]
fn rules_change_a_thousand_times_while_frames_arrive() {
    let wire = Wire::new(1);
    let mut end = End::open(&early(512), &[0]).unwrap();
    end.uplinks[0].serve(vni(8), 4789).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    let rules = alternating();
    end.uplinks[0].set_early(&rules[0]).unwrap();
    // Urgent by both, for different reasons; by neither; by the first only.
    let frames = [Inner { dscp: EF, ..PLAIN }.on(7), PLAIN.on(8), PLAIN.on(7)];
    let (sent, taken, done) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let mut normal = [0usize; 3];
    let mut urgent = [0usize; 3];
    let kind = |frame: &Vec<u8>| frames.iter().position(|known| known == frame).expect("one of the three");
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Acquire) {
                if sent.load(Ordering::Relaxed) - taken.load(Ordering::Acquire) < 128 {
                    let number = sent.load(Ordering::Relaxed);
                    peer.send(&frames[number % 3]);
                    sent.store(number + 1, Ordering::Release);
                } else {
                    std::thread::yield_now();
                }
            }
        });
        let deadline = Instant::now() + PATIENCE;
        let mut changes = 0;
        while !done.load(Ordering::Acquire) {
            if changes < 1000 || normal[2] == 0 || urgent[2] == 0 {
                changes += 1;
                if let Err(error) = end.uplinks[0].set_early(&rules[changes % 2]) {
                    done.store(true, Ordering::Release);
                    panic!("{error}");
                }
            } else {
                done.store(true, Ordering::Release);
            }
            end.turn().iter().for_each(|frame| normal[kind(frame)] += 1);
            end.urgent.drain(..).for_each(|frame| urgent[kind(&frame)] += 1);
            taken.store(normal.iter().chain(&urgent).sum(), Ordering::Release);
            if Instant::now() > deadline {
                done.store(true, Ordering::Release);
                panic!("{changes} changes, {sent:?} sent, {taken:?} taken: {end:?}");
            }
        }
    });
    // The sender has ended; its last frames may still be on their way.
    let sent = sent.into_inner();
    until("all have arrived", || {
        end.turn().iter().for_each(|frame| normal[kind(frame)] += 1);
        end.urgent.drain(..).for_each(|frame| urgent[kind(&frame)] += 1);
        normal.iter().chain(&urgent).sum::<usize>() == sent
    });
    assert_eq!((normal[0], urgent[1]), (0, 0), "{normal:?} {urgent:?}");
    assert_eq!(
        [0, 1, 2].map(|kind| normal[kind] + urgent[kind]),
        [0, 1, 2].map(|kind| (sent + 2 - kind) / 3)
    );
    let counted = end.uplinks[0].steering().unwrap()[0];
    assert_eq!((counted.steered, counted.passed.other_vni), (sent as u64, 0), "{end:?}");
    end.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn all_the_rules_that_the_program_has_room_for_can_be_replaced() {
    let wire = Wire::new(1);
    let mut end = End::open(&early(64), &[0]).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    let full = |first: u32| {
        let list = (0..16_384u32).map(|port| (EarlyProtocol::Udp, EarlySide::Source, (first + port) as u16));
        let mut rules = for_all(ports(&list.collect::<Vec<_>>()));
        rules.networks = (0..4096).map(|raw| (vni(first * 8 + raw), EarlyNetwork::default())).collect();
        rules
    };
    for first in [20_000, 40_000, 20_000] {
        end.uplinks[0].set_early(&full(first)).unwrap();
        let frame = |port| Inner { ports: [port, 1], ..PLAIN }.on(7);
        assert!(arrives_urgent(&mut end, &peer, &frame((first + 16_383) as u16)));
        assert!(!arrives_urgent(&mut end, &peer, &frame((60_000 - first) as u16)));
    }
    let mut more = full(20_000);
    more.networks.insert(vni(1), EarlyNetwork::default());
    let error = end.uplinks[0].set_early(&more).unwrap_err().to_string();
    assert!(error.starts_with("4097 networks with rules for urgent frames"), "{error}");
    assert!(arrives_urgent(&mut end, &peer, &Inner { ports: [20_000, 1], ..PLAIN }.on(7)), "as before");
}

/// Several queues of one worker, which share one UMEM: each has a second socket, and gets its own urgent frames.
#[test]
#[ignore = "needs root: make test runs it"]
fn every_queue_of_a_worker_has_its_own_urgent_ring() {
    let wire = Wire::new(3);
    for mode in [XdpMode::Copy, XdpMode::PreferZeroCopy, XdpMode::Generic] {
        let mut ours = End::open(&XskConfig { mode, ..early(64) }, &[0, 2, 1]).unwrap();
        assert_eq!(ours.uplinks[0].info().queues, [QueueId(0), QueueId(2), QueueId(1)]);
        ours.uplinks[0].set_early(&for_all(dscps(&[EF]))).unwrap();
        let sending = XskConfig { steering: None, mode, ..config("b0", THEIR_ADDRESS) };
        let mut theirs = wire.in_theirs(|| End::open(&sending, &[0, 1, 2]).unwrap());
        for queue in 0..3 {
            let (urgent, normal) = (Inner { dscp: EF, ..PLAIN }.on(7), PLAIN.on(7));
            (0..10).for_each(|_| assert_eq!(theirs.transmit(queue, &urgent, 0), 1));
            (0..7).for_each(|_| assert_eq!(theirs.transmit(queue, &normal, 0), 1));
        }
        theirs.turn();
        let mut normal = Vec::new();
        until("all have arrived", || {
            theirs.turn();
            normal.extend(ours.turn());
            normal.len() + ours.urgent.len() == 3 * 17
        });
        assert_eq!((normal.len(), ours.urgent.len()), (3 * 7, 3 * 10));
        let sockets: Vec<_> =
            statistics(&ours).iter().map(|socket| (socket.queue.0, socket.urgent)).collect();
        assert_eq!(sockets, [(0, false), (0, true), (2, false), (2, true), (1, false), (1, true)]);
        if mode != XdpMode::Generic {
            let counted: Vec<_> =
                ours.uplinks[0].steering().unwrap().iter().map(|q| (q.steered, q.urgent)).collect();
            assert_eq!(counted, [(17, 10); 3]);
        }
        ours.assert_frames_are_home();
        drop(ours);
        until("it is detached", || !run("ip link show a0").contains("prog/xdp"));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn of_two_uplinks_that_share_memory_one_may_have_it_and_the_other_not() {
    let wire = Wire::new(1);
    wire.add_second();
    let first = XskConfig { early: Early::Off, ..early(64) };
    let steering = config("c0", [10, 8, 0, 1].into()).steering;
    let second = XskConfig { interface: "c0".into(), steering, ..early(64) };
    let queue = vec![QueueId(0)];
    let (mut uplinks, mut ports) = open_all(&[first, second], &[vec![queue.clone(), queue]]).unwrap();
    let rules = for_all(everything());
    uplinks.iter_mut().for_each(|uplink| uplink.set_early(&rules).unwrap());
    assert_eq!([0, 1].map(|uplink: usize| uplinks[uplink].info().early), [false, true]);
    let mut end = End::of(uplinks, ports.pop().unwrap());
    let (b0, d0) = wire.in_theirs(|| (RawSocket::new("b0"), RawSocket::new("d0")));
    for _ in 0..500 {
        assert!(!arrives_urgent(&mut end, &b0, &PLAIN.on(7)));
        let to_second = Vxlan { to: [10, 8, 0, 1], payload: PLAIN.build(), ..Vxlan::default() }.build();
        assert!(arrives_urgent(&mut end, &d0, &to_second));
    }
    end.assert_frames_are_home();
}

/// From here on this thread gets no AF_XDP socket of the kind that a second one is (close-on-exec from the start; the library's are
/// not). A seccomp filter that answers ENOBUFS.
fn refuse_second_sockets() {
    let mut program = [
        load(0), // the number of the system call
        if_not_skip(libc::SYS_socket as u32, 5),
        load(16), // its first argument
        if_not_skip(libc::AF_XDP as u32, 3),
        load(24), // its second one
        if_not_skip((libc::SOCK_RAW | libc::SOCK_CLOEXEC) as u32, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::ENOBUFS as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    install(&mut program);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_second_socket_that_is_refused_is_an_error_or_left_out() {
    let wire = Wire::new(1);
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    refuse_second_sockets();
    let error = End::open(&early(64), &[0]).unwrap_err().to_string();
    assert!(error.starts_with("queue 0 of a0 got no second AF_XDP socket for urgent frames ("), "{error}");
    assert!(error.ends_with("use early = \"if-possible\" or early = false"), "{error}");
    assert!(!run("ip link show a0").contains("prog/xdp"), "nothing stays behind");
    let mut end = End::open(&XskConfig { early: Early::IfPossible, ..early(64) }, &[0]).unwrap();
    let info = end.uplinks[0].info();
    assert_eq!((info.early_requested, info.early), (Early::IfPossible, false));
    let why = format!("queue 0: {}", std::io::Error::from_raw_os_error(libc::ENOBUFS));
    assert_eq!(info.early_refused, Some(why));
    end.uplinks[0].set_early(&for_all(everything())).unwrap();
    for _ in 0..300 {
        assert!(!arrives_urgent(&mut end, &peer, &PLAIN.on(7)), "one socket for everything");
    }
    end.assert_frames_are_home();
}

/// A worker with queues of which one alone, or each, is asked: it reads both rings, and nothing is left lying in either.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_worker_takes_from_both_rings_of_every_queue() {
    let wire = Wire::new(2);
    let mut plan = rig::plan();
    plan.uplinks[0].interface = "a0".into();
    plan.uplinks[0].locals = vec![OUR_ADDRESS.into()];
    let dscp = Some([EF].into_iter().collect());
    plan.classes.rules = vec![RulePlan { dscp, ..RulePlan::any(Class::URGENT) }];
    for early in [Early::On, Early::IfPossible] {
        plan.uplinks[0].early = early;
        let engine = Engine::start(&plan).unwrap();
        assert!(engine.uplinks()[0].early);
        let sending = XskConfig { steering: None, ..config("b0", THEIR_ADDRESS) };
        let mut theirs = wire.in_theirs(|| End::open(&sending, &[0, 1]).unwrap());
        let (urgent, normal) = (Inner { dscp: EF, ..PLAIN }.on(rig::BLUE), PLAIN.on(rig::BLUE));
        for round in 1..=50 {
            for queue in 0..2 {
                (0..10).for_each(|_| assert_eq!(theirs.transmit(queue, &urgent, 0), 1));
                (0..10).for_each(|_| assert_eq!(theirs.transmit(queue, &normal, 0), 1));
            }
            until("the worker has taken them", || {
                theirs.turn();
                engine.stats().totals.uplink_rx.frames == round * 40
            });
        }
        let stats = engine.stop();
        let program: Vec<_> = stats.uplinks[0].program.iter().map(|q| (q.steered, q.urgent)).collect();
        assert_eq!(program, [(1000, 500); 2]);
        assert!(stats.uplinks[0].sockets.iter().all(|socket| socket.rx_ring_full == 0), "{stats:?}");
    }
}

/// Gives up all privileges of this thread but those that the error message names.
fn keep_capabilities() {
    const VERSION_3: u32 = 0x2008_0522;
    let kept: u64 = [12u32, 13, 38, 39].iter().map(|number| 1u64 << number).sum(); // NET_ADMIN, NET_RAW, PERFMON, BPF
    let header = [VERSION_3, 0];
    let halves = [kept as u32, (kept >> 32) as u32];
    let data = [[halves[0], halves[0], 0], [halves[1], halves[1], 0]];
    // SAFETY: the header and the two parts that version 3 has.
    let result = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), data.as_ptr()) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// The verifier does not allow headers of different lengths (options) to somebody without CAP_PERFMON.
#[test]
#[ignore = "needs root: make test runs it"]
fn the_capabilities_that_are_asked_for_are_enough() {
    let wire = Wire::new(1);
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    keep_capabilities();
    let mut end = End::open(&early(64), &[0]).unwrap();
    end.uplinks[0].set_early(&for_all(dscps(&[EF]))).unwrap();
    assert!(arrives_urgent(&mut end, &peer, &Inner { dscp: EF, ..PLAIN }.on(7)));
    assert!(!arrives_urgent(&mut end, &peer, &PLAIN.on(7)));
}
