//! Tenants that break every rule: they lose their own connection, nobody else anything.

mod by_hand;

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use by_hand::{Peer, garbage, good_message};
use peregrine_tests::{Daemon, Guest, Net, PATIENCE, Random, Tenant, frame, ping, totals, until, within};

/// Slots of a guest's rings.
const SLOTS: u16 = 1024;
/// Where the guest's rings lie: client to server, then server to client.
const RINGS_AT: [u64; 2] = [0, 128 + 16 * SLOTS as u64];

/// The guest's memory, written behind its back. There is one guest at a time.
struct Memory {
    /// All of this process's: the memory's own file takes no writes once the daemon has sealed it.
    process: File,
    begin: u64,
}

impl Memory {
    fn of_the_guest() -> Memory {
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let range = maps.lines().find(|line| line.contains("/memfd:")).expect("a guest's memory");
        let begin = u64::from_str_radix(range.split('-').next().unwrap(), 16).unwrap();
        Memory { process: OpenOptions::new().read(true).write(true).open("/proc/self/mem").unwrap(), begin }
    }

    fn write(&self, bytes: &[u8], offset: u64) {
        self.process.write_all_at(bytes, self.begin + offset).unwrap();
    }

    fn head(&self, ring: u64) -> u16 {
        let mut head = [0; 2];
        self.process.read_exact_at(&mut head, self.begin + ring + 6).unwrap();
        u16::from_ne_bytes(head)
    }
}

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

#[test]
#[ignore = "needs root: make test runs it"]
fn a_hostile_tenant_loses_its_connection_and_its_neighbour_nothing() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB, Tenant::DB]);
    let _neighbour = Tenant::WEB.echo(&net);
    daemon.wait_for_next_hops();
    assert_eq!(ping(&net.far, Tenant::WEB.ip, 10, 0.01), 10);
    // Once there and back, so that what a first connection leaves for good is not counted.
    drop(Guest::new(&net, Tenant::DB));
    daemon.wait_for_tenant(1, false);
    let before = daemon.open_things();
    let began = std::time::Instant::now();
    let answered = std::thread::scope(|scope| {
        let far = &net.far;
        let neighbour = scope.spawn(move || {
            // Until the others are done, and longer.
            let (mut sent, mut answered) = (0, 0);
            while sent < 300 || began.elapsed() < Duration::from_secs(6) {
                answered += ping(far, Tenant::WEB.ip, 50, 0.01);
                sent += 50;
            }
            (sent, answered)
        });
        let mut random = Random(20);
        for _ in 0..200 {
            drop(Guest::new(&net, Tenant::DB));
            daemon.wait_for_tenant(1, false);
        }
        nonsense_in_rings(&net, &daemon, &mut random);
        nonsense_while_it_is_read(&net, &daemon, &mut random);
        nonsense_in_handshakes(&net, &mut random);
        silence(&net, &daemon);
        never_consuming(&net, &daemon);
        println!("hostile tenants: done after {:?}", began.elapsed());
        neighbour.join().unwrap()
    });
    assert_eq!(answered.0, answered.1, "the neighbour's pings");
    // Not more than before: a question of ours that was just being answered may have been counted then.
    let as_before = |now: (usize, usize)| now.0 <= before.0 && now.1 <= before.1;
    until("descriptors and mappings as before", || as_before(daemon.open_things()));
    let stats = daemon.at_rest();
    assert!(totals(&stats, "dropped") > 0);
    let endpoint = &daemon.status()["endpoints"][1];
    println!(
        "hostile tenants: {} pings of the neighbour answered; faults {}, refused {}, drops {}",
        answered.1, endpoint["faults"], endpoint["refused"], stats["drops"]
    );
}
