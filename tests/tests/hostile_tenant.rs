//! Tenants that break every rule: they lose their own connection, nobody else anything.

mod by_hand;

use std::fs::File;
use std::os::fd::AsFd;
use std::time::Duration;

use by_hand::{DESCRIPTORS_MAX, Peer, garbage, good_message};
use peregrine_memif::{Client, ClientConfig, SocketAddr};
use peregrine_tests::{
    Case, Daemon, Guest, Memory, Net, PATIENCE, Random, Tenant, Waiters, beside, frame, ping, totals, until,
    within,
};
use rustix::event::{EventfdFlags, eventfd};

/// Slots of a guest's rings.
const SLOTS: u16 = 1024;
/// Where the guest's rings lie: client to server, then server to client.
const RINGS_AT: [u64; 2] = [0, 128 + 16 * SLOTS as u64];

fn descriptor(random: &mut Random) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes.fill_with(|| random.byte());
    // Now and then all but right.
    match random.below(4) {
        0 => bytes[0..4].fill(0),
        1 => bytes[0..8].copy_from_slice(&[0, 0, 0, 0, 64, 0, 0, 0]),
        _ => {}
    }
    bytes
}

/// Writes the heads of both rings.
fn set_heads(memory: &Memory, head: u16) {
    for ring in RINGS_AT {
        memory.write(&head.to_ne_bytes(), ring + 6);
    }
}

/// Why the daemon hung up.
fn farewell(guest: &Guest) -> String {
    let mut why = None;
    until("the daemon to hang up", || {
        why = guest.interface.control.poll_disconnect().unwrap();
        why.is_some()
    });
    why.unwrap().to_string()
}

fn faults(daemon: &Daemon) -> u64 {
    daemon.status()["endpoints"][1]["faults"].as_u64().unwrap()
}

/// Rings full of nonsense, then heads that jump.
fn nonsense_in_rings(net: &Net, daemon: &Daemon, random: &mut Random) {
    for round in 0..20u16 {
        let guest = Guest::new(net, Tenant::DB);
        let memory = Memory::of_the_guest();
        for ring in RINGS_AT {
            for slot in 0..u64::from(SLOTS) {
                memory.write(&descriptor(random), ring + 128 + 16 * slot);
            }
        }
        let before = faults(daemon);
        if round % 2 == 0 {
            // As many as the ring has: all are looked at, and too many are bad.
            set_heads(&memory, SLOTS);
            assert!(farewell(&guest).contains("bad descriptors"));
        } else {
            set_heads(&memory, SLOTS + 1 + random.below(40_000) as u16);
            let why = farewell(&guest);
            assert!(why.contains("index") || why.contains("jump"), "{why}");
        }
        until("the fault to be noted", || faults(daemon) > before);
        daemon.wait_for_tenant(1, false);
    }
    assert!(daemon.stats()["endpoints"][1]["bad_descriptors"].as_u64() > Some(256));
}

/// Bytes that change all the time under a daemon that reads them.
fn nonsense_while_it_is_read(net: &Net, daemon: &Daemon, random: &mut Random) {
    for _ in 0..10 {
        let guest = Guest::new(net, Tenant::DB);
        let memory = Memory::of_the_guest();
        let hung_up = within(PATIENCE, || {
            for _ in 0..100 {
                let (ring, slot) = (RINGS_AT[random.below(2)], random.below(SLOTS.into()) as u64);
                memory.write(&descriptor(random), ring + 128 + 16 * slot);
                let head = memory.head(ring).wrapping_add(1);
                memory.write(&head.to_ne_bytes(), ring + 6);
            }
            guest.interface.control.poll_disconnect().unwrap().is_some()
        });
        assert!(hung_up);
        daemon.wait_for_tenant(1, false);
    }
}

/// Every prefix of a right handshake, and then bytes of no meaning, a message of the wrong size, or the end.
fn nonsense_in_handshakes(net: &Net, random: &mut Random) {
    for right in 0..=5 {
        for kind in 0..8 {
            let peer = Peer::connect(&net.file("memif.sock"));
            (0..right).for_each(|step| peer.send(&good_message(step, Tenant::DB.id), step >= 1));
            match kind {
                0 => {}
                1 => peer.send(&[], false),
                2 => peer.send(&garbage(random, 127), false),
                3 => peer.send(&garbage(random, 1), false),
                4 => peer.send(&[0xff; 128], true),
                5 => peer.send(&good_message(0, u32::MAX), false),
                _ => peer.send(&garbage(random, 128), kind == 7),
            }
            if kind != 0 {
                assert!(peer.is_hung_up_on(PATIENCE), "after {right} messages, kind {kind}");
            }
        }
    }
}

/// More idle connections than there are places for handshakes: who speaks gets in all the same.
fn silence(net: &Net, daemon: &Daemon) {
    let silent: Vec<Peer> = (0..60).map(|_| Peer::connect(&net.file("memif.sock"))).collect();
    let guest = Guest::new(net, Tenant::DB);
    daemon.wait_for_tenant(1, true);
    drop((silent, guest));
    daemon.wait_for_tenant(1, false);
}

/// A tenant that takes nothing: what is for it is dropped and counted.
fn never_consuming(net: &Net, daemon: &Daemon) {
    let guest = Guest::new(net, Tenant::DB);
    daemon.wait_for_tenant(1, true);
    let wire = peregrine_tests::RawSocket::sender(&net.far, "vx");
    let text = frame("02:00:00:00:42:02", Tenant::DB.mac, "for somebody who does not listen");
    let before = daemon.drops("tenant_ring_full");
    until("its ring to be full", || {
        (0..50).for_each(|_| wire.send(&text));
        daemon.drops("tenant_ring_full") > before
    });
    drop(guest);
    daemon.wait_for_tenant(1, false);
}

/// Descriptors that are not what the message wants, where the message wants one.
fn wrong_descriptors(net: &Net) {
    let (pipe, _other) = rustix::pipe::pipe().unwrap();
    let null = File::open("/dev/null").unwrap();
    let folder = File::open("/").unwrap();
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let wrong = [pipe.as_fd(), null.as_fd(), folder.as_fd(), event.as_fd()];
    let id = Tenant::DB.id;
    for fd in wrong {
        let peer = Peer::connect(&net.file("memif.sock"));
        peer.send(&good_message(0, id), false);
        peer.send_with(&good_message(1, id), &[fd]);
        assert!(peer.is_hung_up_on(PATIENCE), "as a region: {fd:?}");
    }
    let peer = Peer::connect(&net.file("memif.sock"));
    for fd in [peer.memory.as_fd(), wrong[0], wrong[1], wrong[2]] {
        let peer = Peer::connect(&net.file("memif.sock"));
        peer.send(&good_message(0, id), false);
        peer.send(&good_message(1, id), true);
        peer.send_with(&good_message(2, id), &[fd]);
        assert!(peer.is_hung_up_on(PATIENCE), "as a ring's eventfd: {fd:?}");
    }
    // Memory that can be taken away.
    let peer = Peer::unsealed(&net.file("memif.sock"));
    peer.send(&good_message(0, id), false);
    peer.send(&good_message(1, id), true);
    assert!(peer.is_hung_up_on(PATIENCE));
}

/// As many descriptors as messages can carry, on many connections at once.
fn floods_of_descriptors(net: &Net) {
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let flood = [event.as_fd(); DESCRIPTORS_MAX];
    for _ in 0..5 {
        let peers: Vec<Peer> = (0..40).map(|_| Peer::connect(&net.file("memif.sock"))).collect();
        for peer in &peers {
            for step in 0..=4 {
                peer.send_with(&good_message(step, Tenant::DB.id), &flood);
            }
        }
        for peer in &peers {
            assert!(peer.is_hung_up_on(PATIENCE));
        }
    }
}

/// One after the other, each for as long as a handshake takes.
fn a_thousand_connections(net: &Net, daemon: &Daemon) {
    let address = SocketAddr::Path(net.file("memif.sock"));
    let config =
        ClientConfig { id: Tenant::DB.id, name: "fickle".into(), ring_log2: 5, ..ClientConfig::default() };
    for _ in 0..1000 {
        drop(Client::connect_blocking(&address, config.clone(), PATIENCE).unwrap());
    }
    daemon.wait_for_tenant(1, false);
}

/// The end at each step of the handshake.
fn deaths_in_handshakes(net: &Net) {
    for _ in 0..20 {
        for steps in 0..=5 {
            let peer = Peer::connect(&net.file("memif.sock"));
            (0..steps).for_each(|step| peer.send(&good_message(step, Tenant::DB.id), step >= 1));
        }
    }
}

/// A tenant that is stopped in the middle of traffic, and stays so.
fn stopped_under_traffic(net: &Net, daemon: &Daemon) {
    let tenant = Tenant::DB.echo(net);
    until("it to answer", || ping(&net.far, Tenant::DB.ip, 1, 1.0) == 1);
    tenant.signal(rustix::process::Signal::STOP);
    let wire = peregrine_tests::RawSocket::sender(&net.far, "vx");
    let text = frame("02:00:00:00:42:02", Tenant::DB.mac, "for somebody who does not listen");
    let before = daemon.drops("tenant_ring_full");
    until("its ring to be full", || {
        (0..50).for_each(|_| wire.send(&text));
        daemon.drops("tenant_ring_full") > before + 1000
    });
    assert_eq!(daemon.status()["endpoints"][1]["connected"], true, "it is stopped, not gone");
    drop(tenant); // SIGKILL
    daemon.wait_for_tenant(1, false);
}

/// Memory that is taken away from a daemon that was told to accept such memory.
fn memory_taken_away(net: &Net, daemon: &Daemon) {
    let before = daemon.status()["endpoints"][2]["faults"].as_u64().unwrap();
    for bytes in [0, 4096, 65536] {
        let mut peer = Peer::unsealed(&net.file("memif.sock"));
        until("it to be let in again", || {
            peer = Peer::unsealed(&net.file("memif.sock"));
            peer.attach(RISKY.id)
        });
        daemon.wait_for_tenant(2, true);
        rustix::fs::ftruncate(&peer.memory, bytes).unwrap();
        // It finds out when it looks into what is gone: the first ring when it polls, the second when there is a packet.
        let wire = peregrine_tests::RawSocket::sender(&net.far, "vx");
        let text = frame("02:00:00:00:42:02", RISKY.mac, "into the void");
        until("the daemon to notice", || {
            wire.send(&text);
            daemon.status()["endpoints"][2]["connected"] == false
        });
        assert!(peer.is_hung_up_on(PATIENCE));
    }
    assert_eq!(daemon.status()["endpoints"][2]["faults"], before + 3);
}

/// A third tenant, whose memory the daemon takes as it is.
const RISKY: Tenant =
    Tenant { name: "risky", network: "blue", id: 2, ip: "10.42.0.4", mac: "02:00:00:00:42:04" };

/// A tenant that sleeps, and whose eventfd so many wait for that waking it takes long.
fn slow_wake_ups(net: &Net, daemon: &Daemon) {
    let before = faults(daemon);
    // Not waited for until it is served: as long as an earlier one's wake-ups are not forgiven, it is put out at once.
    let config = ClientConfig { id: Tenant::DB.id, name: "sleeper".into(), ..ClientConfig::default() };
    let mut interface =
        Client::connect_blocking(&SocketAddr::Path(net.file("memif.sock")), config, PATIENCE).unwrap();
    let ring = interface.rx.first_mut().unwrap();
    ring.enable_interrupt();
    let _waiters = Waiters::of(ring.event_fd());
    let wire = peregrine_tests::RawSocket::sender(&net.far, "vx");
    let text = frame("02:00:00:00:42:02", Tenant::DB.mac, "wake up");
    let mut why = None;
    until("it to be put out", || {
        wire.send(&text);
        why = interface.control.poll_disconnect().unwrap();
        why.is_some()
    });
    let why = why.unwrap().to_string();
    assert!(why.contains("eventfd"), "{why}");
    until("the fault to be noted", || faults(daemon) == before + 1);
    daemon.wait_for_tenant(1, false);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_hostile_tenant_loses_its_connection_and_its_neighbour_nothing() {
    let net = Net::new();
    let config = Daemon::config(&net, &[peregrine_tests::FAR.0], &[Tenant::WEB, Tenant::DB, RISKY]);
    let risky = format!("id = {} }}", RISKY.id);
    assert!(config.contains(&risky));
    let config = config.replace(&risky, &format!("id = {}, allow_unsealed = true }}", RISKY.id));
    let daemon = Daemon::start_with(&net, &config);
    let _neighbour = Tenant::WEB.echo(&net);
    daemon.wait_for_next_hops();
    until("the neighbour to answer", || ping(&net.far, Tenant::WEB.ip, 1, 1.0) == 1);
    // Once there and back, so that what a first connection leaves for good is not counted.
    drop(Guest::new(&net, Tenant::DB));
    daemon.wait_for_tenant(1, false);
    let mut random = Random(20);
    let nobody = || assert!(!within(Duration::from_secs(1), || false));
    let mut cases: Vec<Case<'_>> = vec![
        ("nobody", Box::new(nobody)),
        ("connects, disconnects", Box::new(|| a_thousand_connections(&net, &daemon))),
        ("garbage in rings", Box::new(|| nonsense_in_rings(&net, &daemon, &mut Random(1)))),
        ("rewriting while read", Box::new(|| nonsense_while_it_is_read(&net, &daemon, &mut Random(2)))),
        ("garbage in handshakes", Box::new(|| nonsense_in_handshakes(&net, &mut random))),
        ("deaths in handshakes", Box::new(|| deaths_in_handshakes(&net))),
        ("silent connections", Box::new(|| silence(&net, &daemon))),
        ("wrong descriptors", Box::new(|| wrong_descriptors(&net))),
        ("floods of descriptors", Box::new(|| floods_of_descriptors(&net))),
        ("never reads", Box::new(|| never_consuming(&net, &daemon))),
        ("stopped (SIGSTOP)", Box::new(|| stopped_under_traffic(&net, &daemon))),
        ("slow wake-ups", Box::new(|| slow_wake_ups(&net, &daemon))),
        ("memory taken away", Box::new(|| memory_taken_away(&net, &daemon))),
        ("nobody", Box::new(nobody)),
    ];
    beside(&net, &daemon, &mut cases);
    drop(cases);
    let stats = daemon.at_rest();
    assert!(totals(&stats, "dropped") > 0);
    let endpoint = &daemon.status()["endpoints"][1];
    println!("faults {}, refused {}, drops {}", endpoint["faults"], endpoint["refused"], stats["drops"]);
}
