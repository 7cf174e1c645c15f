//! The uplink against the kernel, over a veth between two network namespaces: what is steered and what passes, that
//! nothing is lost either way, and that nothing stays behind.
#![allow(unsafe_code, reason = "namespaces and packet sockets have no safe wrapper")]

mod veth;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use peregrine_dataplane::frame::{Burst, FramePool};
use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::QueueId;
use peregrine_dataplane::xsk::{ActualMode, PassedCounters, XskConfig, XskSocket, interface, open, open_all};

use veth::{
    End, OUR_ADDRESS, PATIENCE, RawSocket, THEIR_ADDRESS, Vxlan, Wire, config, filled, run, until, vni,
};

/// Set in a child process: what it is to do is the value.
const CHILD: &str = "PEREGRINE_TEST_CHILD";

fn kernel_socket(port: u16) -> UdpSocket {
    let socket = UdpSocket::bind((OUR_ADDRESS, port)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn kernel_receives(socket: &UdpSocket) -> Vec<u8> {
    let mut buffer = [0; 2048];
    let length = socket.recv(&mut buffer).expect("the kernel gets what is not for us");
    buffer[..length].to_vec()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn vxlan_for_us_is_steered_and_everything_else_reaches_the_kernel() {
    let wire = Wire::new(1);
    let mut end = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap();
    let (vxlan_port, other_port) = (kernel_socket(4789), kernel_socket(4790));
    let peer = wire.in_theirs(|| RawSocket::new("b0"));

    let plain = Vxlan::default();
    let ours = [
        plain.build(),
        Vxlan { options: true, ..plain.clone() }.build(),
        Vxlan { flags: 0xff, ..plain.clone() }.build(),
    ];
    ours.iter().for_each(|frame| peer.send(frame));
    assert_eq!(end.receive(3), ours, "in order and unchanged");

    let text = |text: &str| text.as_bytes().to_vec();
    let spoilt = Vxlan { vni: 8, payload: text("other VNI"), ..plain.clone() };
    peer.send(&spoilt.build());
    assert!(kernel_receives(&vxlan_port).ends_with(b"other VNI"));
    peer.send(&Vxlan { flags: 0xf7, payload: text("no I flag"), ..plain.clone() }.build());
    assert!(kernel_receives(&vxlan_port).ends_with(b"no I flag"));
    peer.send(&Vxlan { port: 4790, payload: text("other port"), ..plain.clone() }.build());
    assert!(kernel_receives(&other_port).ends_with(b"other port"));
    peer.send(&Vxlan { fragment: true, ..plain.clone() }.build());
    peer.send(&Vxlan { to: [10, 9, 0, 77], ..plain.clone() }.build());
    let mut cut = plain.build();
    cut.truncate(14 + 20 + 8 + 7);
    peer.send(&cut);
    peer.send(&[0xff; 60]); // no EtherType of ours

    let passed = PassedCounters { malformed: 1, not_ip: 1, ..PassedCounters::default() };
    let passed = PassedCounters {
        other_vni: 1,
        no_vni_flag: 1,
        other_port: 1,
        fragment: 1,
        other_address: 1,
        ..passed
    };
    until("all are counted", || end.uplinks[0].steering().unwrap()[0].passed.total() >= passed.total());
    let counted = end.uplinks[0].steering().unwrap();
    assert_eq!((counted[0].steered, counted[0].no_socket, counted[0].passed), (3, 0, passed), "{end:?}");

    wire.in_theirs(|| run("ping -c 2 -i 0.01 -W 10 10.9.0.1")); // ARP and ICMP
    let counted = end.uplinks[0].steering().unwrap()[0].passed;
    assert!(counted.not_udp == 2 && counted.not_ip > 1, "{counted:?}");
    end.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn networks_are_served_and_released_while_frames_arrive() {
    let wire = Wire::new(1);
    let mut end = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    let other = Vxlan { vni: 0xff_ffff, ..Vxlan::default() }.build();

    end.uplinks[0].serve(vni(0xff_ffff), 4789).unwrap();
    peer.send(&other);
    assert_eq!(end.receive(1), std::slice::from_ref(&other));
    end.uplinks[0].release(vni(0xff_ffff)).unwrap();
    end.uplinks[0].release(vni(0xff_ffff)).unwrap();
    peer.send(&other);
    until("it has passed", || end.uplinks[0].steering().unwrap()[0].passed.other_vni == 1);
    assert!(end.turn().is_empty());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn ipv6_to_our_address_is_steered() {
    let wire = Wire::new(1);
    std::fs::write("/proc/sys/net/ipv6/conf/a0/disable_ipv6", "0").unwrap();
    run("ip address add fd00:9::1/64 dev a0 nodad");
    let mut config = config("a0", OUR_ADDRESS);
    config.steering.as_mut().unwrap().locals = vec!["fd00:9::1".parse().unwrap()];
    let mut end = End::open(&config, &[0]).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));

    let frame = |to: &str, next_header: u8| {
        let from: std::net::Ipv6Addr = "fd00:9::2".parse().unwrap();
        let to: std::net::Ipv6Addr = to.parse().unwrap();
        let rest = &Vxlan::default().build()[34..];
        let mut frame =
            [&[2, 0, 0, 0, 9, 1, 2, 0, 0, 0, 9, 2, 0x86, 0xdd, 0x60, 0, 0, 0], &[0; 2][..]].concat();
        frame[18..20].copy_from_slice(&u16::try_from(rest.len()).unwrap().to_be_bytes());
        frame.extend([next_header, 64]);
        frame.extend(from.octets().iter().chain(&to.octets()).chain(rest));
        frame
    };
    let ours = frame("fd00:9::1", 17);
    peer.send(&frame("fd00:9::3", 17));
    peer.send(&frame("fd00:9::1", 44));
    peer.send(&Vxlan::default().build());
    peer.send(&ours);
    assert_eq!(end.receive(1), [ours]);
    let counted = end.uplinks[0].steering().unwrap()[0];
    assert_eq!(
        (counted.steered, counted.passed.other_address, counted.passed.fragment),
        (1, 2, 1),
        "{end:?}"
    );
}

#[test]
#[ignore = "needs root: make test runs it"]
fn several_addresses_and_a_port_for_each_network_are_steered() {
    let wire = Wire::new(1);
    run("ip address add 10.9.0.3/24 dev a0");
    let mut config = config("a0", OUR_ADDRESS);
    let steering = config.steering.as_mut().unwrap();
    steering.locals.push([10, 9, 0, 3].into());
    steering.networks.push((vni(8), 8472));
    let mut end = End::open(&config, &[0]).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    let to = |last, port, vni| Vxlan { to: [10, 9, 0, last], port, vni, ..Vxlan::default() }.build();
    let ours = [to(1, 4789, 7), to(3, 4789, 7), to(1, 8472, 8), to(3, 8472, 8)];
    let others = [to(4, 4789, 7), to(1, 8472, 7), to(3, 4789, 8)];
    others.iter().chain(&ours).for_each(|frame| peer.send(frame));
    assert_eq!(end.receive(4), ours);
    // What the kernel asks its neighbour on account of the others (ARP) passes, too.
    until("all are counted", || {
        let passed = end.uplinks[0].steering().unwrap()[0].passed;
        (passed.other_address, passed.other_port) == (1, 2)
    });

    config.steering.as_mut().unwrap().locals.push([10, 9, 0, 4].into());
    drop(end);
    let error = End::open(&config, &[0]).err().unwrap().to_string();
    assert!(error.starts_with("10.9.0.4 is not an address of a0"), "{error}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_vlan_needs_its_device_and_its_tags() {
    let _wire = Wire::new(1);
    let mut config = config("a0", OUR_ADDRESS);
    config.steering.as_mut().unwrap().vlan = Some(5);
    let error = End::open(&config, &[0]).err().unwrap().to_string();
    assert_eq!(
        error,
        "a0 takes VLAN tags off what it receives, so nothing would be known as of VLAN 5: switch that off with \
         `ethtool -K a0 rxvlan off`"
    );
    run("ethtool -K a0 rxvlan off");
    let error = End::open(&config, &[0]).err().unwrap().to_string();
    assert!(error.starts_with("a0 has no device for VLAN 5"), "{error}");
    // Not every kernel has such devices.
    let made = std::process::Command::new("ip")
        .args("link add link a0 name a0.5 type vlan id 5".split(' '))
        .status();
    if made.unwrap().success() {
        let error = End::open(&config, &[0]).err().unwrap().to_string();
        assert!(error.starts_with("10.9.0.1 is not an address of a0.5"), "{error}");
        run("ip address add 10.9.5.1/24 dev a0.5");
        config.steering.as_mut().unwrap().locals = vec![[10, 9, 5, 1].into()];
        assert!(End::open(&config, &[0]).is_ok());
    }
}

/// Sends `count` frames from ours to theirs and checks that each arrives. Never more are on the way than the wire and
/// the rings hold, and new ones are made when half of that is free, however slowly the others arrive.
fn transmit_all(ours: &mut End, theirs: &mut End, count: usize) {
    let frame = |number: usize| {
        let payload = [&(number as u64).to_be_bytes()[..], &[7; 56]].concat();
        Vxlan { to: THEIR_ADDRESS.octets(), payload, ..Vxlan::default() }.build()
    };
    let on_the_way_max = (ours.uplinks[0].info().ring_size as usize / 2).min(128);
    let (mut made, mut arrived, mut burst) = (0, 0, Burst::new());
    let deadline = Instant::now() + PATIENCE;
    while arrived < count {
        let budget = ours.port.sockets[0].tx_budget().saturating_sub(burst.len());
        let free = on_the_way_max - (made - arrived);
        if free >= on_the_way_max / 2 {
            for _ in 0..budget.min(burst.room()).min(count - made).min(free) {
                burst.push(filled(&mut ours.port.pool, &frame(made), 0)).unwrap();
                made += 1;
            }
        }
        ours.port.sockets[0].transmit(&mut ours.port.pool, &mut burst);
        assert!(ours.turn().is_empty());
        for got in theirs.turn() {
            assert_eq!(got, frame(arrived), "frame {arrived}");
            arrived += 1;
        }
        assert!(Instant::now() < deadline, "{arrived} of {count} arrived: {ours:?} {theirs:?}");
    }
    until("all frames have come home", || {
        ours.turn();
        ours.port.sockets[0].tx_outstanding() == 0
    });
    ours.assert_frames_are_home();
    theirs.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn every_frame_sent_arrives_in_order_and_comes_home() {
    for (mode, ring_size) in [(XdpMode::Copy, 2048), (XdpMode::PreferZeroCopy, 64), (XdpMode::Generic, 512)] {
        let wire = Wire::new(1);
        let sized = |config: XskConfig| XskConfig { mode, ring_size, tx_frames: ring_size, ..config };
        let mut theirs = wire.in_theirs(|| End::open(&sized(config("b0", THEIR_ADDRESS)), &[0]).unwrap());
        let mut ours = End::open(&sized(config("a0", OUR_ADDRESS)), &[0]).unwrap();
        let generic = mode == XdpMode::Generic;
        assert_eq!(
            ours.uplinks[0].info().mode_actual,
            if generic { ActualMode::Generic } else { ActualMode::Copy }
        );
        transmit_all(&mut ours, &mut theirs, 10_000);
        assert!(ours.kicks.transmit < 10_000 / 8, "one system call is for many frames: {ours:?}");
        assert_eq!((ours.kicks.lost, ours.kicks.failed), (0, 0), "{ours:?}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_does_not_fit_the_budget_stays_in_the_burst() {
    let _wire = Wire::new(1);
    let config = XskConfig { ring_size: 64, tx_frames: 40, ..XskConfig::new("a0", XdpMode::Copy) };
    let mut end = End::open(&config, &[0]).unwrap();
    let (pool, socket) = (&mut end.port.pool, &mut end.port.sockets[0]);
    let mut burst = Burst::new();
    for number in 0..64 {
        burst.push(filled(pool, &[number; 60], 0)).unwrap();
    }
    assert_eq!((socket.transmit(pool, &mut burst), socket.tx_outstanding(), socket.tx_budget()), (40, 40, 0));
    assert_eq!(socket.transmit(pool, &mut burst), 0);
    assert!(burst.iter().map(|frame| frame.bytes()[0]).eq(40..64), "the rest, in order");
    burst.drain().for_each(|frame| pool.put(frame));
    until("the others have come home", || {
        end.turn();
        end.port.sockets[0].tx_outstanding() == 0
    });
    end.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_packet_behind_headroom_is_sent_whole_and_an_empty_one_is_refused() {
    let wire = Wire::new(1);
    let mut theirs = wire.in_theirs(|| End::open(&config("b0", THEIR_ADDRESS), &[0]).unwrap());
    let mut ours = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap();
    let frame = Vxlan { to: THEIR_ADDRESS.octets(), ..Vxlan::default() }.build();
    assert_eq!(ours.transmit(0, &frame, 50), 1);
    ours.turn();
    assert_eq!(theirs.receive(1), [frame]);
    assert_eq!(ours.transmit(0, &[], 0), 0);
    assert_eq!(ours.port.sockets[0].faults(), 1);
    until("the frame has come home", || {
        ours.turn();
        ours.port.sockets[0].tx_outstanding() == 0
    });
}

/// The four ways to hand a socket a pool that is not its own.
fn assert_refused(socket: &mut XskSocket, pool: &mut FramePool) {
    let before = (socket.faults(), socket.rx_outstanding(), socket.tx_outstanding(), pool.available());
    let mut burst = Burst::new();
    burst.push(filled(pool, &[7; 60], 0)).unwrap();
    assert_eq!((socket.transmit(pool, &mut burst), burst.len()), (0, 1));
    assert_eq!((socket.receive(pool, &mut burst), burst.len()), (0, 1));
    assert_eq!((socket.complete(pool), socket.refill(pool)), (0, 0));
    burst.drain().for_each(|frame| pool.put(frame));
    let after = (socket.faults() - 4, socket.rx_outstanding(), socket.tx_outstanding(), pool.available());
    assert_eq!(after, before);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_pool_that_is_not_the_ports_own_is_refused() {
    let wire = Wire::new(1);
    let small = |config| XskConfig { ring_size: 64, tx_frames: 64, ..config };
    let mut theirs = wire.in_theirs(|| End::open(&small(config("b0", THEIR_ADDRESS)), &[0]).unwrap());
    let mut ours = End::open(&small(config("a0", OUR_ADDRESS)), &[0]).unwrap();
    let mut anonymous = FramePool::anonymous(2048, 128, 256);

    // With frames in the rx ring and the completion ring, and then with room in the fill ring.
    (0..40).for_each(|_| assert_eq!(theirs.transmit(0, &Vxlan::default().build(), 0), 1));
    until("all have been steered to us", || {
        theirs.turn();
        ours.uplinks[0].steering().unwrap()[0].steered == 40
    });
    assert_eq!(ours.transmit(0, &Vxlan::default().build(), 0), 1);
    let (pool, socket) = (&mut ours.port.pool, &mut ours.port.sockets[0]);
    socket.kick(0);
    assert_refused(socket, &mut theirs.port.pool);
    assert_refused(socket, &mut anonymous);
    let mut burst = Burst::new();
    until("all have arrived", || {
        socket.receive(pool, &mut burst);
        burst.len() == 40
    });
    burst.drain().for_each(|frame| pool.put(frame));
    assert_refused(socket, &mut theirs.port.pool);
    assert_refused(socket, &mut anonymous);
    until("the fill ring is filled from the port's own pool", || socket.refill(pool) > 0);
    until("ours has come home", || socket.complete(pool) == 1);
    assert_eq!(pool.available() + socket.rx_outstanding(), pool.capacity());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_frame_that_the_device_drops_is_counted_as_lost_and_comes_home() {
    for mode in [XdpMode::Copy, XdpMode::Generic] {
        let wire = Wire::new(1);
        let mut ours = End::open(&XskConfig { mode, ..config("a0", OUR_ADDRESS) }, &[0]).unwrap();
        wire.in_theirs(|| run("ip link set b0 down")); // up, but without a carrier
        let frame = Vxlan { to: THEIR_ADDRESS.octets(), ..Vxlan::default() }.build();
        (0..10).for_each(|_| assert_eq!(ours.transmit(0, &frame, 0), 1));
        until("all have come home", || {
            ours.turn();
            ours.port.sockets[0].tx_outstanding() == 0
        });
        let kicks = ours.kicks;
        assert_eq!((kicks.lost, kicks.deferred, kicks.down, kicks.failed), (10, 0, 0, 0), "{ours:?}");
        ours.assert_frames_are_home();
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_link_that_goes_down_and_up_loses_no_chunk() {
    let wire = Wire::new(1);
    let mut theirs = wire.in_theirs(|| End::open(&config("b0", THEIR_ADDRESS), &[0]).unwrap());
    let watchful = XskConfig { watchdog_ticks: 1_000_000, ..config("a0", OUR_ADDRESS) };
    let mut ours = End::open(&watchful, &[0]).unwrap();
    let frame = Vxlan { to: THEIR_ADDRESS.octets(), ..Vxlan::default() }.build();
    run("ip link set a0 down");
    (0..10).for_each(|_| assert_eq!(ours.transmit(0, &frame, 0), 1));
    until("the watchdog has looked three times", || {
        ours.turn();
        ours.kicks.watchdog == 3
    });
    assert_eq!((ours.kicks.down, ours.kicks.transmit, ours.kicks.failed), (4, 4, 0), "{ours:?}");
    run("ip link set a0 up");
    assert_eq!(theirs_after(&mut ours, &mut theirs), 10, "{ours:?} {theirs:?}");
    ours.assert_frames_are_home();
}

/// How many frames arrive until all of ours have come home.
fn theirs_after(ours: &mut End, theirs: &mut End) -> usize {
    let mut arrived = 0;
    until("all frames have come home", || {
        ours.turn();
        arrived += theirs.turn().len();
        ours.port.sockets[0].tx_outstanding() == 0
    });
    arrived + theirs.turn().len()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn queues_without_a_socket_pass_to_the_kernel() {
    let wire = Wire::new(4);
    assert_eq!(interface("a0").unwrap().queue_count, 4);
    let mut ours = End::open(&config("a0", OUR_ADDRESS), &[0, 2]).unwrap();
    assert_eq!(ours.uplinks[0].info().queues, [QueueId(0), QueueId(2)]);
    let kernel = kernel_socket(4789);
    let sending = XskConfig { steering: None, ..config("b0", THEIR_ADDRESS) };
    let mut theirs = wire.in_theirs(|| End::open(&sending, &[0, 1, 2, 3]).unwrap());
    for socket in 0..4 {
        let frame = Vxlan { payload: vec![socket as u8; 20], ..Vxlan::default() }.build();
        (0..10).for_each(|_| assert_eq!(theirs.transmit(socket, &frame, 0), 1));
    }
    theirs.turn();
    let arrived = ours.receive(20);
    assert!(arrived.iter().all(|frame| matches!(frame.last(), Some(0 | 2))));
    for _ in 0..20 {
        assert!(matches!(kernel_receives(&kernel).last(), Some(1 | 3)));
    }
    let counted: Vec<_> =
        ours.uplinks[0].steering().unwrap().iter().map(|q| (q.steered, q.no_socket)).collect();
    assert_eq!(counted, [(10, 0), (0, 10), (10, 0), (0, 10)], "{ours:?}");
    ours.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn each_worker_has_its_own_frames_and_one_without_queues_has_none() {
    let _wire = Wire::new(2);
    let workers = [vec![QueueId(1)], vec![], vec![QueueId(0)]];
    let (uplink, ports) = open(&config("a0", OUR_ADDRESS), &workers).unwrap();
    let sizes: Vec<_> = ports.iter().map(|port| (port.sockets.len(), port.pool.capacity())).collect();
    assert!(matches!(sizes[..], [(1, a), (0, 0), (1, b)] if a == b && a > 6000), "{sizes:?}");
    assert_eq!(uplink.info().frames, sizes[0].1 * 2);
    for socket in ports.iter().flat_map(|port| &port.sockets) {
        // SAFETY: asks for the flags of an open descriptor.
        let flags = unsafe { libc::fcntl(socket.fd().as_raw_fd(), libc::F_GETFD) };
        assert_eq!(flags, libc::FD_CLOEXEC, "no child process holds a queue");
    }
}

fn two_interfaces() -> [XskConfig; 2] {
    [config("a0", OUR_ADDRESS), config("c0", Ipv4Addr::new(10, 8, 0, 1))]
}

/// What comes by one interface leaves by the other without being copied, and one goes on when the other is gone.
#[test]
#[ignore = "needs root: make test runs it"]
fn the_sockets_of_a_worker_share_their_frames_over_two_interfaces() {
    let wire = Wire::new(1);
    wire.add_second();
    let queue = vec![QueueId(0)];
    let (uplinks, mut ports) = open_all(&two_interfaces(), &[vec![queue.clone(), queue]]).unwrap();
    let mut end = End::of(uplinks, ports.pop().unwrap());
    let to_second = || Vxlan { to: [10, 8, 0, 1], ..Vxlan::default() }.build();
    let (b0, d0) = wire.in_theirs(|| (RawSocket::new("b0"), RawSocket::new("d0")));
    let ids: Vec<u8> = end.port.sockets.iter().map(|socket| socket.uplink().0).collect();
    assert_eq!(ids, [0, 1]);

    b0.send(&to_second()); // for an address that is the other interface's: the kernel's
    b0.send(&Vxlan::default().build());
    assert_eq!(end.receive(1), [Vxlan::default().build()]);
    d0.send(&to_second());
    assert_eq!(end.receive(1), [to_second()]);
    let passed: Vec<_> = end.uplinks.iter().map(|u| u.steering().unwrap()[0]).collect();
    assert_eq!((passed[0].steered, passed[0].passed.other_address, passed[1].steered), (1, 1, 1));

    let packets = || {
        let text = wire.in_theirs(|| run("ip -s link show d0"));
        let figures = text.lines().skip_while(|line| !line.trim_start().starts_with("RX:")).nth(1);
        figures.and_then(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok()).expect("a count")
    };
    let before = packets();
    for _ in 0..100 {
        b0.send(&Vxlan::default().build());
    }
    let mut forwarded = 0;
    until("all have been forwarded", || {
        let mut burst = Burst::new();
        let [first, second] = &mut end.port.sockets[..] else { panic!("two sockets") };
        first.receive(&mut end.port.pool, &mut burst);
        forwarded += second.transmit(&mut end.port.pool, &mut burst);
        assert!(burst.is_empty());
        for socket in [first, second] {
            socket.complete(&mut end.port.pool);
            socket.refill(&mut end.port.pool);
            socket.kick(0);
        }
        forwarded == 100 && end.port.sockets[1].tx_outstanding() == 0
    });
    assert_eq!(packets() - before, 100);
    end.assert_frames_are_home();

    run("ip link delete a0");
    assert_eq!(end.transmit(0, &Vxlan::default().build(), 0), 1);
    until("the socket to notice", || {
        end.turn();
        end.port.sockets[0].is_down()
    });
    d0.send(&to_second());
    assert_eq!(end.receive(1), [to_second()]);
    assert_eq!(end.transmit(1, &to_second(), 0), 1);
    until("it to be sent", || {
        end.turn();
        end.port.sockets[1].tx_outstanding() == 0
    });
    assert!(!end.port.sockets[1].is_down());
    end.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn interfaces_with_different_chunks_or_rings_are_not_opened_together() {
    let wire = Wire::new(1);
    wire.add_second();
    let [first, second] = two_interfaces();
    let hand = vec![vec![QueueId(0)], vec![QueueId(0)]];
    for second in [XskConfig { chunk_size: 4096, ..second.clone() }, XskConfig { ring_size: 4096, ..second }]
    {
        let error = open_all(&[first.clone(), second], std::slice::from_ref(&hand)).unwrap_err().to_string();
        assert!(error.starts_with("c0 has another chunk_size or ring_size than the first uplink"), "{error}");
    }
    assert!(open_all(&two_interfaces(), &[hand]).is_ok(), "nothing was left behind");
}

/// Loads a program that passes everything and attaches it as `ip link set xdp` does.
fn attach_foreign_program(name: &str) {
    let index = i32::try_from(interface("a0").unwrap().index).unwrap();
    // r0 = XDP_PASS; exit
    let code = [(0xb7u8, 2), (0x95, 0)].map(|(code, imm)| libxdp_sys::bpf_insn {
        code,
        _bitfield_align_1: [],
        _bitfield_1: libxdp_sys::bpf_insn::new_bitfield_1(0, 0),
        off: 0,
        imm,
    });
    let (name, licence) = (std::ffi::CString::new(name).unwrap(), c"MIT");
    let kind = libxdp_sys::bpf_prog_type_BPF_PROG_TYPE_XDP;
    let none = std::ptr::null_mut();
    // SAFETY: terminated strings and two instructions; the attachment holds the program, so its descriptor is closed.
    unsafe {
        let fd = libxdp_sys::bpf_prog_load(kind, name.as_ptr(), licence.as_ptr(), code.as_ptr(), 2, none);
        assert!(fd >= 0, "{fd}");
        assert_eq!(libxdp_sys::bpf_xdp_attach(index, fd, 0, std::ptr::null()), 0);
        libc::close(fd);
    }
}

/// Not at once after the end: a command that another test starts just then may have a copy of the link until its exec.
fn program_on_a0() -> bool {
    run("ip link show a0").contains("prog/xdp")
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_foreign_program_is_named_and_left_alone() {
    let _wire = Wire::new(1);
    attach_foreign_program("firewall");
    let before = run("ip link show a0");
    let error = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap_err().to_string();
    assert!(error.starts_with("a0 already has an XDP program 'firewall' (id "), "{error}");
    assert_eq!(run("ip link show a0"), before);
    run("ip link set dev a0 xdp off");
    let first = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap();
    let error = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap_err().to_string();
    assert!(error.contains("'peregrine_steer'"), "a second daemon is told of the first: {error}");
    assert!(program_on_a0());
    drop(first);
    until("it is detached", || !program_on_a0());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn it_opens_again_right_after_it_was_closed() {
    let wire = Wire::new(1);
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    for _ in 0..5 {
        let mut end = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap();
        peer.send(&Vxlan::default().build());
        end.receive(1);
    }
    until("it is detached", || !program_on_a0());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_queue_that_stays_taken_is_named() {
    let _wire = Wire::new(1);
    let _first = End::open(&XskConfig { steering: None, ..config("a0", OUR_ADDRESS) }, &[0]).unwrap();
    let begin = Instant::now();
    let error = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap_err().to_string();
    assert!(error.starts_with("queue 0 of a0 has had another AF_XDP socket on it for 5 s"), "{error}");
    assert!((5..10).contains(&begin.elapsed().as_secs()));
    assert!(!program_on_a0(), "nothing stays behind");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_queue_that_becomes_free_is_taken() {
    let _wire = Wire::new(1);
    let sending = XskConfig { steering: None, ..config("a0", OUR_ADDRESS) };
    let first = End::open(&sending, &[0]).unwrap();
    let releasing = std::thread::spawn(move || {
        std::thread::sleep(Duration::from_millis(300)); // the next open is at its retries by then
        drop(first);
    });
    let mut second = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap();
    releasing.join().unwrap();
    second.turn();
    second.assert_frames_are_home();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn zero_copy_is_not_pretended() {
    let _wire = Wire::new(1);
    let required = XskConfig { mode: XdpMode::RequireZeroCopy, ..config("a0", OUR_ADDRESS) };
    let error = End::open(&required, &[0]).unwrap_err().to_string();
    assert!(error.starts_with("a0 (driver veth) has no zero-copy ("), "{error}");
    assert!(error.ends_with(": use mode 'prefer-zero-copy' or 'copy'"), "{error}");
    assert!(!program_on_a0());
    let preferred = XskConfig { mode: XdpMode::PreferZeroCopy, ..required };
    let end = End::open(&preferred, &[0]).unwrap();
    assert_eq!(end.uplinks[0].info().mode_requested, XdpMode::PreferZeroCopy);
    assert_eq!(end.uplinks[0].info().mode_actual, ActualMode::Copy);
}

/// What it says must be what helps: the mode of the one that is refused is not the one to change.
#[test]
#[ignore = "needs root: make test runs it"]
fn zero_copy_that_another_uplink_requires_is_said_to_be_that_ones() {
    let wire = Wire::new(1);
    wire.add_second();
    let [mut first, mut second] = two_interfaces();
    (first.mode, second.mode) = (XdpMode::PreferZeroCopy, XdpMode::RequireZeroCopy);
    let error = open_all(&[first, second], &[vec![vec![QueueId(0)]; 2]]).unwrap_err().to_string();
    assert!(error.starts_with("a0 (driver veth) has no zero-copy ("), "{error}");
    let way_out =
        "use mode 'prefer-zero-copy' or 'copy' for the uplink that requires it, all have it or none";
    assert!(error.ends_with(way_out), "{error}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_is_wrong_with_the_interface_is_said() {
    let _wire = Wire::new(1);
    let error = |config: &XskConfig| End::open(config, &[0]).unwrap_err().to_string();
    let wrong = error(&config("a0", THEIR_ADDRESS));
    assert!(wrong.starts_with("10.9.0.2 is not an address of a0, which has 10.9.0.1: "), "{wrong}");
    run("ip link set a0 mtu 3000");
    let wrong = error(&config("a0", OUR_ADDRESS));
    assert!(wrong.contains("MTU of 3000"), "{wrong}");
    run("ip link set a0 mtu 1500");
    run("ip link set a0 down");
    assert!(error(&config("a0", OUR_ADDRESS)).starts_with("interface a0 is down"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_address_with_a_label_is_one_of_the_interface() {
    let _wire = Wire::new(1);
    run("ip address add 10.9.0.9/24 dev a0 label a0:vtep");
    let labelled = std::net::Ipv4Addr::new(10, 9, 0, 9);
    assert_eq!(interface("a0").unwrap().addresses, [OUR_ADDRESS, labelled]);
    assert!(interface("a0:vtep").unwrap_err().to_string().contains("no interface 'a0:vtep'"));
    End::open(&config("a0", labelled), &[0]).expect("the VTEP's address may have a label");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_program_that_the_driver_refuses_is_reported() {
    let wire = Wire::new(1);
    wire.in_theirs(|| run("ip link set b0 mtu 9000")); // veth: too long for one page at our end
    let error = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap_err().to_string();
    assert!(
        error.starts_with("a0 (driver veth, MTU 1500) refused the XDP program in mode 'copy': "),
        "{error}"
    );
    End::open(&XskConfig { mode: XdpMode::Generic, ..config("a0", OUR_ADDRESS) }, &[0])
        .expect("generic XDP works");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn without_privileges_it_says_so() {
    let _wire = Wire::new(1);
    // SAFETY: by the system call itself, not by libc's function, this thread alone gives its privileges up.
    assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, 65534, 65534, 65534) }, 0);
    for config in [config("a0", OUR_ADDRESS), XskConfig { steering: None, ..config("a0", OUR_ADDRESS) }] {
        let error = End::open(&config, &[0]).unwrap_err().to_string();
        assert!(error.contains("not permitted: run as root"), "{error}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_program_is_gone_after_sigkill() {
    if std::env::var_os(CHILD).is_some() {
        return hold_until_killed();
    }
    let _wire = Wire::new(1);
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--ignored", "--exact", "the_program_is_gone_after_sigkill", "--nocapture"])
        .env(CHILD, "hold")
        .stdout(Stdio::piped())
        .process_group(0)
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let ready = lines.map_while(Result::ok).any(|line| line.contains("holding"));
    let attached = program_on_a0();
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(ready && attached, "the child had it: ready {ready}, attached {attached}");
    until("it is detached", || !program_on_a0());
    End::open(&config("a0", OUR_ADDRESS), &[0]).expect("the queue is free again");
}

/// The child's part: open, say so, and wait for the end.
fn hold_until_killed() {
    let _end = End::open(&config("a0", OUR_ADDRESS), &[0]).unwrap();
    println!("holding");
    std::thread::sleep(PATIENCE);
}
