//! Tenants that listen, and break every rule once we are connected to them: they lose their own connection, nobody else
//! anything. Here the memory is ours and they have it too; what they can do to it must not matter, and whatever they keep of
//! it, we have given back.

#[path = "by_hand/listener.rs"]
mod by_hand;

use std::cell::Cell;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use by_hand::{
    ACK, ANSWERS, CONNECTED, DESCRIPTORS_MAX, DISCONNECT, HELLO, Listening, Visitor, good_answer, message,
};
use peregrine_memif::Role;
use peregrine_tests::{
    Case, Daemon, FAR, FAR_OVERLAY, Net, PATIENCE, Random, RawSocket, Tenant, TestpmdSetup, Waiters, beside,
    frame, ping, totals, until, within,
};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{FallocateFlags, SealFlags, fallocate, fcntl_add_seals, ftruncate};
use rustix::process::Signal;
use serde_json::Value;

/// Endpoints that connect to one hostile listener, and listeners, one for each case: who has been given our memory for nothing
/// is soon asked only twice a minute, so everybody is used once or twice.
const HOSTILE: usize = 24;
const LISTENERS: usize = 15;
/// The first of them in the config; before it are the neighbour and the one for DPDK.
const FIRST: usize = 2;
/// Slots of their rings.
const SLOTS: u16 = 64;
/// What the daemon may hold in memory beyond what it had at the start, in kB.
const GROWTH_KB_MAX: u64 = 64 << 10;

/// Where DPDK listens.
const DPDK: Tenant =
    Tenant { name: "dpdk", network: "blue", id: 0, ip: "10.42.0.4", mac: "02:00:00:00:42:04" };

fn mac(id: u32) -> String {
    format!("02:00:00:01:{:02x}:{:02x}", id >> 8, id & 0xff)
}

fn socket(net: &Net, listener: usize) -> PathBuf {
    net.file(&format!("hostile{listener}.sock"))
}

struct Stage {
    /// Before the hosts, which would end it: after a panic it says what it has counted.
    daemon: Daemon,
    net: Net,
    wire: RawSocket,
    dpdk: tempfile::TempDir,
    resident_kb: u64,
    /// Where the case that runs listens.
    listener: Cell<usize>,
}

impl Stage {
    fn new() -> Stage {
        let net = Net::new();
        let dpdk = tempfile::tempdir().unwrap();
        let mut config = Daemon::config(&net, &[FAR.0], &[Tenant::WEB]);
        let path = dpdk.path().join("memif.sock");
        config += &DPDK.endpoint(&format!("role = \"client\", socket = \"{}\"", path.display()));
        for id in 0..LISTENERS * HOSTILE {
            config += &format!(
                "\n[[endpoints]]\nname = \"hostile{id}\"\nnetwork = \"blue\"\nmac = \"{}\"\nannounce = false\nmemif = {{ role = \"client\", \
                 socket = \"{}\", id = {id}, ring_size = {SLOTS} }}\n",
                mac(id as u32),
                socket(&net, id / HOSTILE).display()
            );
        }
        let daemon = Daemon::start_with(&net, &config);
        let wire = RawSocket::sender(&net.far, "vx");
        Stage { net, daemon, wire, dpdk, resident_kb: 0, listener: Cell::new(0) }
    }

    fn listen(&self) -> Listening {
        Listening::bind(&self.path(), 128)
    }

    fn path(&self) -> PathBuf {
        socket(&self.net, self.listener.get())
    }

    /// A frame from the far host to an endpoint.
    fn send_to(&self, mac: &str, text: &str) -> Vec<u8> {
        let frame = frame(FAR_OVERLAY.1, mac, text);
        self.wire.send(&frame);
        frame
    }

    /// Of each endpoint that is ours to connect.
    fn attempts(&self) -> Vec<u64> {
        let status = self.daemon.status();
        let endpoints = status["endpoints"].as_array().unwrap();
        endpoints.iter().skip(1).map(|endpoint| endpoint["attempts"].as_u64().unwrap()).collect()
    }

    fn endpoint(&self, id: u32) -> Value {
        self.daemon.status()["endpoints"][FIRST + id as usize].clone()
    }

    /// The handshake is over a moment before the worker has the rings.
    fn wait_until_served(&self, id: u32) {
        until("the tenant to be served", || {
            self.daemon.stats()["endpoints"][FIRST + id as usize]["connected"] == true
        });
    }

    fn faults(&self, id: u32) -> u64 {
        self.endpoint(id)["faults"].as_u64().unwrap()
    }

    /// Does something, in which no endpoint may try to connect too often, nor the daemon grow.
    fn bounded(&self, listener: usize, work: impl FnOnce(&Stage)) {
        self.listener.set(listener);
        let (before, began) = (self.attempts(), Instant::now());
        work(self);
        let now = self.attempts();
        // Pauses of 10, 20, 40 … ms at first, of a second later.
        let most = 8 + 2 * began.elapsed().as_secs();
        for (before, now) in before.iter().zip(&now) {
            assert!(now - before <= most, "{} attempts in {:?}", now - before, began.elapsed());
        }
        until("the daemon to be as small as before", || {
            self.daemon.memory_kb("VmRSS") <= self.resident_kb + GROWTH_KB_MAX
        });
    }
}

/// Comes to nothing at once, for everybody.
fn hangs_up_at_accept(stage: &Stage) {
    let listening = stage.listen();
    (0..HOSTILE).for_each(|_| drop(listening.accept()));
}

/// After each number of right answers, all of them included.
fn hangs_up_at_each_step(stage: &Stage) {
    let listening = stage.listen();
    for round in 0..HOSTILE {
        drop(listening.accept().served(round % (ANSWERS + 1)));
    }
}

/// DISCONNECT with a reason, at each step; and greetings that no client can do anything with.
fn refuses(stage: &Stage) {
    let listening = stage.listen();
    for round in 0..HOSTILE / 2 {
        let visitor = listening.accept().served(round % (ANSWERS + 1));
        let mut bytes = message(DISCONNECT);
        bytes[6..29].copy_from_slice(b"not you, \x1b[31mnot today");
        visitor.send(&bytes, &[]);
        visitor.farewell();
        if visitor.id > 0 {
            until("the reason to be told", || {
                let endpoint = stage.endpoint(visitor.id);
                let told = |key: &str| endpoint[key].as_str().is_some_and(|why| why.contains("not today"));
                told("last_end") || told("last_failure")
            });
        }
        let mut greeting = good_answer(0);
        match round % 3 {
            0 => greeting[34..38].fill(1), // versions 1.1 only
            1 => greeting[36..38].fill(0), // at most version 0
            _ => greeting[44] = 0,         // rings of one slot
        }
        let visitor = listening.accept();
        visitor.send(&greeting, &[]);
        visitor.farewell();
    }
}

/// Something wrong in the place of each answer.
fn says_wrong_things(stage: &Stage) {
    let listening = stage.listen();
    let mut random = Random(33);
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    for round in 0..HOSTILE {
        let mut visitor = listening.accept().served(round % (ANSWERS + 1));
        if (1..ANSWERS).contains(&(round % (ANSWERS + 1))) {
            visitor.listen(round % (ANSWERS + 1));
        }
        let mut garbage: Vec<u8> = (0..256).map(|_| random.byte()).collect();
        garbage[0] |= 0x10; // of no known type
        match round % 8 {
            0 => visitor.send(&garbage[..127], &[]),
            1 => visitor.send(&garbage[..1], &[]),
            2 => visitor.send(&garbage[..256], &[]),
            3 => visitor.send(&garbage[..128], &[]),
            4 => visitor.send(&[0xff; 128], &[event.as_fd()]),
            5 => visitor.send(&message(4), &[event.as_fd()]), // as if it were the client
            6 => visitor.send(&[], &[]),
            // Each is right somewhere, all in a row nowhere.
            _ => [HELLO, HELLO, ACK, CONNECTED, CONNECTED]
                .iter()
                .for_each(|&kind| visitor.send(&message(kind), &[])),
        }
        visitor.farewell();
    }
}

/// Right answers with as many descriptors as a message can carry.
fn floods_with_descriptors(stage: &Stage) {
    let listening = stage.listen();
    let event = eventfd(0, EventfdFlags::CLOEXEC).unwrap();
    let flood = [event.as_fd(); DESCRIPTORS_MAX];
    for round in 0..HOSTILE {
        let step = round % (ANSWERS + 1);
        let mut visitor = listening.accept().served(step);
        let answer = if step < ANSWERS { visitor.listen(step) } else { message(ACK) };
        (0..20).for_each(|_| visitor.send(&answer, &flood));
        visitor.farewell();
    }
}

/// Its index says that it has taken, or filled, more than there is.
fn jumps(stage: &Stage) {
    let listening = stage.listen();
    let mut random = Random(30);
    for round in 0..HOSTILE {
        let visitor = listening.accept().served(ANSWERS);
        let before = stage.faults(visitor.id);
        let s2m = round % 2 == 0;
        let ring = visitor.ring(s2m);
        ring.set_tail(ring.head().wrapping_add(1 + random.below(30_000) as u16));
        // What it has taken is looked at when there is no room left.
        until("the daemon to hang up", || {
            if s2m {
                (0..SLOTS).for_each(|_| drop(stage.send_to(&mac(visitor.id), "for a liar")));
            }
            stage.faults(visitor.id) == before + 1
        });
        let why = visitor.farewell();
        assert!(why.contains("index") || why.contains("jump"), "{why}");
    }
}

/// Descriptors of no meaning, as what it sends: it is put out for too many of them.
fn sends_garbage(stage: &Stage) {
    let listening = stage.listen();
    let mut random = Random(31);
    for _ in 0..HOSTILE {
        let visitor = listening.accept().served(ANSWERS);
        let before = stage.faults(visitor.id);
        let ring = visitor.ring(false);
        until("the daemon to hang up", || {
            let (head, tail) = (ring.head(), ring.tail());
            for ahead in 0..head.wrapping_sub(tail) {
                let mut descriptor = [0; 16];
                descriptor.fill_with(|| random.byte());
                // Chains and long packets are no offence: every other one is short and in one piece, but lies nowhere.
                if ahead % 2 == 0 {
                    descriptor[..2].fill(0);
                    descriptor[4..8].copy_from_slice(&64u32.to_ne_bytes());
                }
                ring.set_descriptor(tail.wrapping_add(ahead), &descriptor);
            }
            ring.set_tail(head);
            stage.faults(visitor.id) == before + 1
        });
        let why = visitor.farewell();
        assert!(why.contains("bad descriptors"), "{why}");
    }
}

/// Writes over the descriptors that we send with: our own memory's layout is not read from there, so nothing happens.
fn scribbles(stage: &Stage) {
    let listening = stage.listen();
    let mut random = Random(32);
    let visitor = listening.accept().served(ANSWERS);
    stage.wait_until_served(visitor.id);
    let ring = visitor.ring(true);
    for round in 0..200 {
        for slot in 0..SLOTS {
            let mut descriptor = [0; 16];
            descriptor.fill_with(|| random.byte());
            ring.set_descriptor(slot, &descriptor);
        }
        let sent = stage.send_to(&mac(visitor.id), &format!("number {round}"));
        // Whatever is broadcast meanwhile comes, too.
        until("the frame, unchanged", || {
            let (head, tail) = (ring.head(), ring.tail());
            let found =
                (0..head.wrapping_sub(tail)).any(|ahead| ring.packet(tail.wrapping_add(ahead)) == sent);
            ring.set_tail(head);
            found
        });
    }
    assert_eq!(stage.endpoint(visitor.id)["connected"], true);
}

/// A tenant that takes nothing: what is for it is dropped and counted.
fn never_takes(stage: &Stage) {
    let listening = stage.listen();
    let visitor = listening.accept().served(ANSWERS);
    stage.wait_until_served(visitor.id);
    let before = stage.daemon.drops("tenant_ring_full");
    until("its ring to be full", || {
        (0..50).for_each(|_| drop(stage.send_to(&mac(visitor.id), "for nobody")));
        stage.daemon.drops("tenant_ring_full") > before + 1000
    });
    assert_eq!(stage.endpoint(visitor.id)["connected"], true, "slow is not forbidden");
}

/// Does all to our memory that somebody who has its descriptor may do.
fn seals_and_punches_holes(stage: &Stage) {
    let listening = stage.listen();
    for seal in [SealFlags::GROW, SealFlags::WRITE, SealFlags::FUTURE_WRITE, SealFlags::SEAL] {
        let visitor = listening.accept().served(ANSWERS);
        stage.wait_until_served(visitor.id);
        let memory = visitor.memory();
        let bytes = rustix::fs::fstat(memory).unwrap().st_size as u64;
        assert!(ftruncate(memory, bytes / 2).is_err(), "memory that we use can be taken away");
        let _whether_it_may = fcntl_add_seals(memory, seal);
        let holes = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
        for _ in 0..50 {
            stage.send_to(&mac(visitor.id), "into a hole");
            let _whether_it_may = fallocate(memory, holes, 0, bytes);
        }
        until("the daemon to be done", || stage.daemon.stats()["totals"]["conserved"] == true);
    }
}

/// Keeps every descriptor that it is given, and seals half of the memory before. What it keeps must be empty.
fn hoards(stage: &Stage) {
    let listening = stage.listen();
    let mut hoard = Vec::new();
    for round in 0..HOSTILE {
        let mut visitor = listening.accept().served(ANSWERS);
        if round % 2 == 0 {
            let _whether_it_may = fcntl_add_seals(visitor.memory(), SealFlags::FUTURE_WRITE);
        }
        hoard
            .push((std::fs::File::from(visitor.memory.take().unwrap()), std::mem::take(&mut visitor.events)));
    }
    let bytes = || hoard.iter().map(|(memory, _)| memory.metadata().unwrap().blocks() * 512).sum::<u64>();
    let whole = hoard.iter().map(|(memory, _)| memory.metadata().unwrap().len()).sum::<u64>();
    let empty = within(PATIENCE, || bytes() == 0);
    println!("hoarded: {} of {} kB still hold memory", bytes() >> 10, whole >> 10);
    assert!(empty, "memory of connections that are over: {} of {whole} bytes", bytes());
}

/// Waking it takes long: many wait for the eventfd that we have made for it.
fn slow_wake_ups(stage: &Stage) {
    let listening = stage.listen();
    let visitor = listening.accept().served(ANSWERS);
    stage.wait_until_served(visitor.id);
    let before = stage.faults(visitor.id);
    let ring = visitor.ring(true);
    let at = visitor.rings.iter().position(|ring| ring.s2m).unwrap();
    let _waiters = Waiters::of(visitor.events[at].as_fd());
    ring.set_masked(false);
    until("it to be put out", || {
        stage.send_to(&mac(visitor.id), "wake up");
        ring.set_tail(ring.head());
        stage.faults(visitor.id) == before + 1
    });
    let why = visitor.farewell();
    assert!(why.contains("eventfd"), "{why}");
}

/// Says nothing any more: at once, after HELLO, before CONNECTED; and where so many wait to be accepted that no more can.
fn silence(stage: &Stage) {
    let listening = stage.listen();
    let before = stage.attempts();
    let visitors: Vec<Visitor> =
        [0, 1, 2, ANSWERS - 1].map(|answers| listening.accept().served(answers)).into();
    for (number, visitor) in visitors.iter().enumerate() {
        let why = visitor.farewell();
        assert!(why.contains("time"), "silent visitor {number}: {why}");
    }
    drop((visitors, listening));
    // One is waiting, two or three more may, the others are refused by the kernel.
    let _never_accepting = Listening::bind(&stage.path(), 1);
    until("others to try", || stage.attempts().iter().zip(&before).all(|(now, before)| now > before));
}

/// DPDK, stopped in the middle of traffic, then killed.
fn stopped(stage: &Stage) {
    let setup = TestpmdSetup::new(Role::Client, &stage.dpdk);
    let testpmd = setup.testpmd(&stage.dpdk);
    let endpoint = || stage.daemon.status()["endpoints"][1].clone();
    until("DPDK to be connected", || endpoint()["connected"] == true);
    TestpmdSetup::forward(&stage.dpdk);
    testpmd.signal(Signal::STOP);
    let (before, attempts) = (stage.daemon.drops("tenant_ring_full"), endpoint()["attempts"].clone());
    until("its ring to be full", || {
        (0..50).for_each(|_| drop(stage.send_to(DPDK.mac, "for a stopped one")));
        stage.daemon.drops("tenant_ring_full") > before + 1000
    });
    let now = endpoint();
    assert_eq!((&now["connected"], &now["attempts"]), (&true.into(), &attempts), "stopped, not gone");
    drop(testpmd); // SIGKILL
    until("the daemon to notice", || endpoint()["connected"] == false);
    std::fs::remove_file(stage.dpdk.path().join("memif.sock")).unwrap();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_hostile_listener_loses_its_connection_and_its_neighbour_nothing() {
    let mut stage = Stage::new();
    let _neighbour = Tenant::WEB.echo(&stage.net);
    stage.daemon.wait_for_next_hops();
    until("the neighbour to answer", || ping(&stage.net.far, Tenant::WEB.ip, 1, 1.0) == 1);
    // Once for each, so that what a first connection leaves for good is not counted.
    hangs_up_at_each_step(&stage);
    stage.resident_kb = stage.daemon.memory_kb("VmRSS");
    let nobody = || assert!(!within(Duration::from_secs(1), || false));
    let (stage, mut listeners) = (&stage, 1..LISTENERS);
    let mut case = |work: fn(&Stage)| -> Box<dyn FnMut()> {
        let listener = listeners.next().expect("one more");
        Box::new(move || stage.bounded(listener, work))
    };
    let mut cases: Vec<Case<'_>> = vec![
        ("nobody", Box::new(nobody)),
        ("hangs up at accept", case(hangs_up_at_accept)),
        ("hangs up at each step", case(hangs_up_at_each_step)),
        ("refuses", case(refuses)),
        ("wrong messages", case(says_wrong_things)),
        ("floods of descriptors", case(floods_with_descriptors)),
        ("jumps", case(jumps)),
        ("sends garbage", case(sends_garbage)),
        ("scribbles", case(scribbles)),
        ("never takes", case(never_takes)),
        ("seals and holes", case(seals_and_punches_holes)),
        ("hoards", case(hoards)),
        ("slow wake-ups", case(slow_wake_ups)),
        ("silence", case(silence)),
        ("stopped (SIGSTOP)", case(stopped)),
        ("nobody", Box::new(nobody)),
    ];
    beside(&stage.net, &stage.daemon, &mut cases);
    let stats = stage.daemon.at_rest();
    assert!(totals(&stats, "dropped") > 0);
    let attempts: u64 = stage.attempts().iter().sum();
    println!("{attempts} attempts to connect, drops {}", stats["drops"]);
}
