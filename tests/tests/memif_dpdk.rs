//! The memif crate against an implementation that is not ours: DPDK's testpmd, in both roles.
//!
//! testpmd has one port and forwards it to itself (`io`, which leaves every byte as it is; queue `i` to queue `i`), so
//! what we send on a queue must come back on that queue, unchanged, in order and complete. Each packet says its queue and
//! its number; the rest is random, the same in every run. Fewer are under way than a ring holds, so nobody has a reason
//! to drop any. testpmd's own count, which it prints when it ends, is the second witness.
//!
//! Nothing here needs root, only `dpdk-testpmd`. Both programs poll, each on a core: so one test at a time.

use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peregrine_memif::{
    DisconnectReason, HandshakeError, Interface, Listener, ListenerConfig, PushError, Reject, Role, RxRing,
    Secret, ServerConfig, SocketAddr, TxRing,
};
use peregrine_tests::{PATIENCE, Random, TestpmdLink, TestpmdSetup, until};
use rustix::process::Signal;
use tempfile::TempDir;

/// Held by the test that runs.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packets of a run, over all queues; and slots, so that on one queue the rings' 16-bit indexes start again from 0.
const PACKETS: u64 = 20_000;
const SLOTS: u64 = 70_000;
/// Slots under way per queue: less than a ring has.
const WINDOW_SLOTS: u64 = 960;

/// What is sent and what must come back.
struct Packets {
    random: Vec<u8>,
    /// Packet `n` has the size `n` modulo their number.
    sizes: &'static [usize],
}

impl Packets {
    fn new(sizes: &'static [usize]) -> Packets {
        let mut random = Random(sizes.iter().sum::<usize>() as u64);
        Packets { random: (0..1 << 16).map(|_| random.byte()).collect(), sizes }
    }

    fn longest(&self) -> usize {
        self.sizes.iter().copied().max().unwrap()
    }

    /// Writes packet `number` of `queue` to the front of `to`; its length.
    fn write(&self, queue: usize, number: u64, to: &mut [u8]) -> usize {
        let bytes = self.sizes[(number % self.sizes.len() as u64) as usize];
        let mut place = Random(number ^ (queue as u64) << 32);
        let start = place.below(self.random.len() - bytes);
        let to = &mut to[..bytes];
        to.copy_from_slice(&self.random[start..start + bytes]);
        to[..8].copy_from_slice(&number.to_le_bytes());
        to[8..16].copy_from_slice(&(queue as u64).to_le_bytes());
        bytes
    }
}

/// One queue: its rings, and how many packets went out and came back.
struct Queue<'a> {
    number: usize,
    rx: &'a mut RxRing,
    tx: &'a mut TxRing,
    sent: u64,
    received: u64,
}

impl Queue<'_> {
    /// Sends what the window lets, up to `end` in all.
    fn send(&mut self, packets: &Packets, window: u64, end: u64) {
        let mut packet = vec![0; packets.longest()];
        while self.sent < end && self.sent - self.received < window {
            let bytes = packets.write(self.number, self.sent, &mut packet);
            match self.tx.push(&packet[..bytes]) {
                Ok(()) => self.sent += 1,
                // It has not offered the buffers of the last packets again yet.
                Err(PushError::Full) => break,
                Err(why) => panic!("queue {}, packet {}: {why}", self.number, self.sent),
            }
        }
        self.tx.flush().unwrap();
    }

    /// Takes what has come back and compares it; whether there was any.
    fn receive(&mut self, packets: &Packets) -> bool {
        let before = self.received;
        let mut expected = vec![0; packets.longest()];
        let mut packet = vec![0; 1 << 14];
        self.rx.pending().unwrap();
        while let Some(taken) = self.rx.next_packet() {
            let (queue, number) = (self.number, self.received);
            let taken = taken.unwrap_or_else(|why| panic!("queue {queue}, packet {number}: {why}"));
            let length = taken.copy_to(&mut packet).unwrap();
            let bytes = packets.write(queue, number, &mut expected);
            let (got, expected) = (&packet[..length], &expected[..bytes]);
            if got != expected {
                let at = got.iter().zip(expected).position(|(got, expected)| got != expected);
                let head = &got[..16];
                panic!(
                    "queue {queue}, packet {number}: {length} of {bytes} bytes, other at {at:?}, head {head:?}"
                );
            }
            self.received += 1;
        }
        self.rx.release();
        self.received > before
    }
}

/// Traffic on all queues of a connection, in turns.
struct Traffic<'a> {
    packets: &'a Packets,
    /// Most packets under way on one queue.
    window: u64,
    queues: Vec<Queue<'a>>,
    /// When the packets that are under way count as lost, if we have looked often enough: a machine that stood still has
    /// kept the other side waiting as well.
    deadline: Instant,
    /// Turns since something came.
    in_vain: u32,
}

impl<'a> Traffic<'a> {
    fn new(rx: &'a mut [RxRing], tx: &'a mut [TxRing], packets: &'a Packets, window: u64) -> Traffic<'a> {
        let rings = rx.iter_mut().zip(tx).enumerate();
        let queue = |(number, (rx, tx))| Queue { number, rx, tx, sent: 0, received: 0 };
        Traffic {
            packets,
            window,
            queues: rings.map(queue).collect(),
            deadline: Instant::now() + PATIENCE,
            in_vain: 0,
        }
    }

    /// Sends and receives once on each queue; up to `end` packets each.
    fn turn(&mut self, end: u64) {
        let mut received = false;
        for queue in &mut self.queues {
            queue.send(self.packets, self.window, end);
            received |= queue.receive(self.packets);
        }
        if received {
            (self.deadline, self.in_vain) = (Instant::now() + PATIENCE, 0);
            return;
        }
        self.in_vain += 1;
        let state: Vec<_> = self.queues.iter().map(|queue| (queue.sent, queue.received)).collect();
        let late = self.in_vain > 1000 && Instant::now() >= self.deadline;
        assert!(!late, "lost; sent and received, per queue: {state:?}");
        // Asleep rather than polling: the other side may have to share our core.
        if let Some(queue) = self.queues.iter_mut().find(|queue| queue.sent > queue.received) {
            queue.rx.wait(Duration::from_millis(1)).unwrap();
        }
    }

    fn received(&self) -> u64 {
        self.queues.iter().map(|queue| queue.received).sum()
    }

    /// Until `count` packets have come back on each queue; how many were sent and received in all.
    fn run(mut self, count: u64) -> (u64, u64) {
        while self.queues.iter().any(|queue| queue.received < count) {
            self.turn(count);
        }
        (self.queues.iter().map(|queue| queue.sent).sum(), self.received())
    }
}

/// Runs over one connection, each with packets of the sizes given: a line of the table for each, and the assertions that
/// hold for all.
fn case(name: &str, setup: &TestpmdSetup, runs: &[&'static [usize]], folder: &TempDir) {
    let mut link = setup.link(folder);
    let (role, queues, buffer) = (format!("{:?}", setup.role), setup.queues, setup.buffer_bytes);
    let mut total = 0;
    for sizes in runs {
        let packets = Packets::new(sizes);
        let slots = packets.longest().div_ceil(buffer as usize) as u64;
        let each = PACKETS.max(SLOTS / slots) / u64::from(queues);
        let start = Instant::now();
        let Interface { rx, tx, .. } = &mut link.ours;
        let (sent, echoed) = Traffic::new(rx, tx, &packets, WINDOW_SLOTS / slots).run(each);
        println!(
            "{name:<12} we are {role:<6}  queues {queues}  buffers {buffer:>5}  sent {sent}  echoed {echoed}  in {:>6.1?}  bytes {sizes:?}",
            start.elapsed(),
        );
        assert_eq!((sent, echoed), (each * u64::from(queues), sent));
        total += sent;
    }
    assert_eq!(link.end(), (total, total, 0), "testpmd's count: received, sent, dropped");
}

fn matrix(role: Role) {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for queues in [1, 4] {
        for (runs, buffer_bytes) in [(&[&[64][..], &[1500]][..], 2048), (&[&[9000]], 10240)] {
            let setup = TestpmdSetup {
                queues,
                buffer_bytes,
                mbuf_bytes: buffer_bytes,
                ..TestpmdSetup::new(role, &folder)
            };
            case("matrix", &setup, runs, &folder);
        }
    }
}

#[test]
fn as_server_every_packet_comes_back_from_a_dpdk_client() {
    matrix(Role::Server);
}

#[test]
fn as_client_every_packet_comes_back_from_a_dpdk_server() {
    matrix(Role::Client);
}

/// Sizes around the edges of 2048-byte buffers.
const MIXED: &[usize] = &[64, 2047, 2048, 2049, 4096, 4097, 1500, 6145, 8192, 9000];

/// A packet that is longer than a buffer, in several of them. Mixed sizes after long packets, and the other way round:
/// a DPDK client never takes the flag NEXT out of a slot again, so a server that leaves it there gets two packets as one.
fn chains(role: Role) {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for queues in [1, 4] {
        let setup = TestpmdSetup { chains: true, queues, ..TestpmdSetup::new(role, &folder) };
        case("chains", &setup, &[&[9000], MIXED, &[64]], &folder);
    }
}

#[test]
fn as_server_chains_come_back_from_a_dpdk_client() {
    chains(Role::Server);
}

#[test]
fn as_client_chains_come_back_from_a_dpdk_server() {
    chains(Role::Client);
}

/// A packet in one buffer of the ring, but in several mbufs at the other end, as with DPDK's default mbuf size. Whether it
/// comes back in one buffer is up to DPDK's version.
#[test]
fn large_buffers_meet_small_mbufs() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for role in [Role::Server, Role::Client] {
        let setup = TestpmdSetup { buffer_bytes: 10240, chains: true, ..TestpmdSetup::new(role, &folder) };
        case("small mbufs", &setup, &[MIXED], &folder);
    }
}

#[test]
fn an_abstract_socket_works_like_a_path() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for role in [Role::Server, Role::Client] {
        let name = format!("peregrine-memif-dpdk-{}-{role:?}", std::process::id());
        let setup = TestpmdSetup { addr: SocketAddr::Abstract(name), ..TestpmdSetup::new(role, &folder) };
        case("abstract", &setup, &[&[64]], &folder);
    }
}

/// Mappings of files whose name contains this.
fn mappings(name: &str) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(name)).count()
}

/// Even without huge pages: `--single-file-segments` puts DPDK's memory into one file, `memfd:nohuge`, which has no
/// seals. So only for a peer that is trusted.
#[test]
fn zero_copy_of_a_dpdk_client_needs_our_trust_and_works_then() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let setup = TestpmdSetup {
        device: ",zero-copy=yes".to_owned(),
        eal: &["--single-file-segments"],
        server: ServerConfig { memory_bytes_max: 1 << 30, ..ServerConfig::default() },
        ..TestpmdSetup::new(Role::Server, &folder)
    };
    let listener = Listener::bind(&setup.addr, ListenerConfig::default()).unwrap();
    let testpmd = setup.testpmd(&folder);
    let refused = setup.serve(&listener).unwrap_err();
    assert!(matches!(refused, HandshakeError::Rejected(Reject::RegionUnsealed)), "{refused}");
    drop((testpmd, listener));

    let trusting = ServerConfig { allow_unsealed: true, ..setup.server.clone() };
    let setup = TestpmdSetup { server: trusting, ..setup };
    let link = setup.link(&folder);
    assert_eq!(mappings("memfd:nohuge"), 1, "its packets would not lie in its own memory");
    drop(link);
    case("zero-copy", &setup, &[&[64]], &folder);
}

#[test]
fn a_secret_lets_in_who_knows_it_and_nobody_else() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let secret = |text: &str| Some(Secret::new(text.as_bytes()).unwrap());
    for role in [Role::Server, Role::Client] {
        let device = ",secret=open-sesame".to_owned();
        let setup =
            TestpmdSetup { our_secret: secret("open-sesame"), device, ..TestpmdSetup::new(role, &folder) };
        case("secret", &setup, &[&[64]], &folder);
    }
    let setup =
        TestpmdSetup { device: ",secret=open-sesame".to_owned(), ..TestpmdSetup::new(Role::Server, &folder) };
    for (device, why) in [(",secret=open-barley", Reject::SecretWrong), ("", Reject::SecretRequired)] {
        let setup =
            TestpmdSetup { device: device.to_owned(), our_secret: secret("open-sesame"), ..setup.clone() };
        let listener = Listener::bind(&setup.addr, ListenerConfig::default()).unwrap();
        let _testpmd = setup.testpmd(&folder);
        let refused = setup.serve(&listener).unwrap_err();
        assert!(matches!(refused, HandshakeError::Rejected(got) if got == why), "{refused}");
    }
    let setup = TestpmdSetup { our_secret: secret("open-barley"), role: Role::Client, ..setup };
    let _testpmd = setup.testpmd(&folder);
    let refused = setup.connect().unwrap_err();
    assert!(
        matches!(&refused, HandshakeError::Disconnected { text, .. } if text == "Incorrect secret"),
        "{refused}"
    );
}

/// Descriptors of this process, and its mappings of memory that it shares.
fn open_things() -> (usize, usize) {
    (fs::read_dir("/proc/self/fd").unwrap().count(), mappings("memfd:"))
}

fn given_back(before: (usize, usize)) -> bool {
    let now = open_things();
    now.0 <= before.0 && now.1 <= before.1
}

#[test]
fn a_dpdk_that_is_killed_under_traffic_leaves_nothing_and_another_can_come() {
    let _alone = alone();
    for role in [Role::Server, Role::Client] {
        let folder = tempfile::tempdir().unwrap();
        let setup = TestpmdSetup { queues: 4, ..TestpmdSetup::new(role, &folder) };
        // What is needed once, for waking others and for sealing memory, is there before anything is counted.
        peregrine_memif::warm_up();
        drop(peregrine_memif::pair(Default::default(), Default::default()).unwrap());
        let before = open_things();
        let packets = Packets::new(&[64, 1500, 700]);
        for _ in 0..2 {
            let mut link = setup.link(&folder);
            let Interface { control, .. } = &link.ours;
            assert_eq!(control.poll_disconnect().unwrap(), None);
            let killed_after = kill_under_traffic(&mut link, &packets);
            drop(link);
            // The thread that reads its standard error ends by itself.
            until("all to be given back", || given_back(before));
            println!(
                "killed       we are {role:?} queues 4 after {killed_after} packets: {before:?} as before"
            );
            // A DPDK server does not take a socket file over from a dead one.
            let _ours_is_gone = fs::remove_file(folder.path().join("memif.sock"));
        }
        case("after a kill", &setup, &[&[64]], &folder);
        until("all to be given back", || given_back(before));
    }
}

/// SIGKILL in the middle; we go on until we are told. How many packets had come back by then.
fn kill_under_traffic(link: &mut TestpmdLink, packets: &Packets) -> u64 {
    let Interface { rx, tx, control, .. } = &mut link.ours;
    let mut traffic = Traffic::new(rx, tx, packets, WINDOW_SLOTS);
    while traffic.received() < 5000 {
        traffic.turn(u64::MAX);
        assert_eq!(control.poll_disconnect().unwrap(), None, "not killed yet");
    }
    link.testpmd.as_ref().unwrap().signal(Signal::KILL);
    loop {
        traffic.turn(u64::MAX);
        match control.poll_disconnect().unwrap() {
            None => {}
            Some(reason) => {
                assert_eq!(reason, DisconnectReason::Closed);
                return traffic.received();
            }
        }
    }
}

#[test]
fn a_dpdk_server_refuses_a_client_with_more_queues_and_takes_one_with_as_many() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let setup = TestpmdSetup { queues: 2, ..TestpmdSetup::new(Role::Client, &folder) };
    let _testpmd = setup.testpmd(&folder);
    let refused = TestpmdSetup { queues: 3, ..setup.clone() }.connect().unwrap_err();
    assert!(
        matches!(&refused, HandshakeError::Disconnected { text, .. } if text == "Invalid ring index"),
        "{refused}"
    );
    let mut ours = setup.connect().unwrap();
    TestpmdSetup::forward(&folder);
    let Interface { rx, tx, .. } = &mut ours;
    Traffic::new(rx, tx, &Packets::new(&[64]), WINDOW_SLOTS).run(1000);
}
