//! The memif crate against an implementation that is not ours: DPDK's testpmd, in both roles.
//!
//! testpmd has one port and forwards it to itself (`io`, which leaves every byte as it is; queue `i` to queue `i`), so
//! what we send on a queue must come back on that queue, unchanged, in order and complete. Each packet says its queue and
//! its number; the rest is random, the same in every run. Fewer are under way than a ring holds, so nobody has a reason
//! to drop any. testpmd's own count, which it prints when it ends, is the second witness.
//!
//! Nothing here needs root, only `dpdk-testpmd`. Both programs poll, each on a core: so one test at a time.

use std::fs;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use peregrine_control::lab::Process;
use peregrine_memif::{
    Client, ClientConfig, DisconnectReason, Handshake, HandshakeError, Interface, Listener, ListenerConfig,
    Progress, PushError, Reject, Role, RxRing, Secret, ServerConfig, SocketAddr, TxRing,
};
use peregrine_tests::{PATIENCE, Random, cores, until};
use rustix::process::Signal;
use tempfile::TempDir;

/// Held by the test that runs.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Packets of a case, over all queues. On one queue the rings' 16-bit indexes start again from 0.
const PACKETS: u64 = 70_000;
/// log2 of the slots of every ring.
const RING_LOG2: u8 = 10;
/// Slots under way per queue: less than a ring has.
const WINDOW_SLOTS: u64 = 512;
/// Bytes before an mbuf's data (RTE_PKTMBUF_HEADROOM).
const HEADROOM_BYTES: u32 = 128;

/// Both ends of a connection that is to be made.
#[derive(Clone, Debug)]
struct Setup {
    /// Our side.
    role: Role,
    addr: SocketAddr,
    queues: u16,
    /// Of each buffer, at both ends: DPDK copies without asking whether ours are as long as its own.
    buffer_bytes: u32,
    /// testpmd's mbufs hold so much; longer packets it keeps in chains of them.
    mbuf_bytes: u32,
    /// What we know or want to be told.
    our_secret: Option<Secret>,
    /// More options of testpmd's device.
    device: String,
    /// More options of its environment.
    eal: &'static [&'static str],
    /// What we grant a client.
    server: ServerConfig,
}

impl Setup {
    fn new(role: Role, folder: &TempDir) -> Setup {
        Setup {
            role,
            addr: SocketAddr::Path(folder.path().join("memif.sock")),
            queues: 1,
            buffer_bytes: 2048,
            mbuf_bytes: 2048,
            our_secret: None,
            device: String::new(),
            eal: &[],
            server: ServerConfig::default(),
        }
    }

    /// testpmd at the other end. What it keeps in files goes into `folder`.
    fn testpmd(&self, folder: &TempDir) -> Process {
        let role = if self.role == Role::Client { "server" } else { "client" };
        let socket = match &self.addr {
            SocketAddr::Path(path) => format!("socket-abstract=no,socket={}", path.display()),
            SocketAddr::Abstract(name) => format!("socket-abstract=yes,socket={name}"),
        };
        let (bytes, device) = (self.buffer_bytes, &self.device);
        let vdev =
            format!("--vdev=net_memif0,role={role},id=0,{socket},bsize={bytes},rsize={RING_LOG2}{device}");
        let (worker, other) = cores();
        let mut command = Command::new("dpdk-testpmd");
        command.env("RUNTIME_DIRECTORY", folder.path().join("dpdk"));
        command.args(["--no-huge", "-m", "128", "--no-pci", "--no-shconf", "--no-telemetry", &vdev]);
        // Its main thread waits only, so it may share our core; the other one polls.
        command.args(["-l", &format!("{other},{worker}"), "--main-lcore", &other.to_string()]);
        command.args(self.eal).arg("--");
        command.args(["--auto-start", "--forward-mode=io", "--nb-cores=1", "--total-num-mbufs=4096"]);
        command.args([format!("--rxq={}", self.queues), format!("--txq={}", self.queues)]);
        command.arg(format!("--mbuf-size={}", self.mbuf_bytes + HEADROOM_BYTES));
        // It would throw away what comes before it has begun; and without statistics it ends with its standard input.
        command.args(["--no-flush-rx", "--stats-period=1", "--no-lsc-interrupt"]);
        // It would lock all memory, and wait 9 s for a link before it forwards.
        command.args(["--no-mlockall", "--disable-link-check"]);
        let mut testpmd = Process::start(&mut command).unwrap();
        // One that is not installed, or does not like its options, says so here.
        testpmd.wait_for_line("EAL: ", PATIENCE).unwrap();
        testpmd
    }

    fn client(&self) -> ClientConfig {
        ClientConfig {
            secret: self.our_secret.unwrap_or_default(),
            ring_log2: RING_LOG2,
            buffer_bytes: self.buffer_bytes,
            // A DPDK server refuses rings that it has no queue for, and reads rubbish where it has more of them.
            queue_pairs: self.queues,
            ..ClientConfig::default()
        }
    }

    /// Starts testpmd and connects.
    fn link(&self, folder: &TempDir) -> Link {
        let (testpmd, ours) = match self.role {
            Role::Server => {
                // A DPDK client connects once, when it starts.
                let listener = Listener::bind(&self.addr, ListenerConfig::default()).unwrap();
                let testpmd = self.testpmd(folder);
                (testpmd, self.serve(&listener).unwrap())
            }
            Role::Client => {
                let testpmd = self.testpmd(folder);
                (testpmd, self.connect().unwrap())
            }
        };
        assert_eq!((ours.rx.len(), ours.tx.len()), (self.queues.into(), self.queues.into()));
        Link { testpmd, ours }
    }

    /// The next client of the listener.
    fn serve(&self, listener: &Listener) -> Result<Interface, HandshakeError> {
        let mut handshake: Option<Handshake> = None;
        let config = ServerConfig { secret: self.our_secret, ..self.server.clone() };
        let mut result = None;
        until("testpmd to connect", || {
            let Some(handshake) = &mut handshake else {
                handshake = listener.accept().unwrap();
                return false;
            };
            match handshake.step(&mut |_| Ok(config.clone())) {
                Ok(Progress::Pending) => false,
                Ok(Progress::Connected(interface)) => result.insert(Ok(*interface)).is_ok(),
                Err(why) => result.insert(Err(why)).is_err(),
            }
        });
        result.unwrap()
    }

    /// A DPDK server listens before it knows its interface: so again until it does.
    fn connect(&self) -> Result<Interface, HandshakeError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let early = |why: &HandshakeError| match why {
                HandshakeError::Io { .. } | HandshakeError::Closed => true,
                HandshakeError::Disconnected { text, .. } => text == "ID not found",
                _ => false,
            };
            match Client::connect_blocking(&self.addr, self.client(), PATIENCE) {
                Err(why) if early(&why) && Instant::now() < deadline => {
                    thread::sleep(Duration::from_millis(5))
                }
                result => return result,
            }
        }
    }
}

/// A connection with testpmd.
struct Link {
    testpmd: Process,
    ours: Interface,
}

impl Link {
    /// Ends testpmd, which says what it has forwarded: packets received, sent, dropped. Nothing more may come, and we
    /// must be told of the end.
    fn end(mut self) -> (u64, u64, u64) {
        let said = self.testpmd.stop(PATIENCE).unwrap();
        until("the end of the connection", || self.ours.control.poll_disconnect().unwrap().is_some());
        for rx in &mut self.ours.rx {
            assert_eq!(rx.pending(), Ok(0), "a packet too many");
        }
        let totals = said.split("Accumulated forward statistics").nth(1).unwrap_or_else(|| panic!("{said}"));
        let count = |name: &str| {
            let rest = totals.split(name).nth(1).unwrap_or_else(|| panic!("{said}"));
            rest.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{said}"))
        };
        (count("RX-packets:"), count("TX-packets:"), count("RX-dropped:") + count("TX-dropped:"))
    }
}

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
    /// When the packets that are under way count as lost.
    deadline: Instant,
}

impl<'a> Traffic<'a> {
    fn new(rx: &'a mut [RxRing], tx: &'a mut [TxRing], packets: &'a Packets, window: u64) -> Traffic<'a> {
        let rings = rx.iter_mut().zip(tx).enumerate();
        let queue = |(number, (rx, tx))| Queue { number, rx, tx, sent: 0, received: 0 };
        Traffic { packets, window, queues: rings.map(queue).collect(), deadline: Instant::now() + PATIENCE }
    }

    /// Sends and receives once on each queue; up to `end` packets each.
    fn turn(&mut self, end: u64) {
        let mut received = false;
        for queue in &mut self.queues {
            queue.send(self.packets, self.window, end);
            received |= queue.receive(self.packets);
        }
        if received {
            self.deadline = Instant::now() + PATIENCE;
        } else {
            let state: Vec<_> = self.queues.iter().map(|queue| (queue.sent, queue.received)).collect();
            assert!(Instant::now() < self.deadline, "lost; sent and received, per queue: {state:?}");
            thread::yield_now();
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

/// One line of the table, and the assertions that hold for every case.
fn case(name: &str, setup: &Setup, sizes: &'static [usize], folder: &TempDir) {
    let packets = Packets::new(sizes);
    let slots = packets.longest().div_ceil(setup.buffer_bytes as usize) as u64;
    let mut link = setup.link(folder);
    let Interface { rx, tx, .. } = &mut link.ours;
    let traffic = Traffic::new(rx, tx, &packets, WINDOW_SLOTS / slots);
    let start = Instant::now();
    let each = PACKETS / u64::from(setup.queues);
    let (sent, received) = traffic.run(each);
    let elapsed = start.elapsed();
    let forwarded = link.end();
    println!(
        "{name:<12} we are {:<7} queues {} buffers {:>5} bytes {sizes:?} sent {sent} echoed {received} in {elapsed:.1?}; testpmd (rx, tx, dropped) {forwarded:?}",
        format!("{:?}", setup.role),
        setup.queues,
        setup.buffer_bytes,
    );
    assert_eq!((sent, received), (each * u64::from(setup.queues), sent));
    assert_eq!(forwarded, (sent, sent, 0));
}

fn matrix(role: Role) {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for queues in [1, 4] {
        for (sizes, buffer_bytes) in [(&[64][..], 2048), (&[1500], 2048), (&[9000], 10240)] {
            let setup = Setup { queues, buffer_bytes, mbuf_bytes: buffer_bytes, ..Setup::new(role, &folder) };
            case("matrix", &setup, sizes, &folder);
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

#[test]
fn an_abstract_socket_works_like_a_path() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for role in [Role::Server, Role::Client] {
        let name = format!("peregrine-memif-dpdk-{}-{role:?}", std::process::id());
        let setup = Setup { addr: SocketAddr::Abstract(name), ..Setup::new(role, &folder) };
        case("abstract", &setup, &[64], &folder);
    }
}

/// Mappings of files whose name contains this.
fn mappings(name: &str) -> usize {
    let maps = fs::read_to_string("/proc/self/maps").unwrap();
    maps.lines().filter(|line| line.contains(name)).count()
}

/// Even without huge pages: `--single-file-segments` puts DPDK's memory into one file, `memfd:nohuge`, which it cannot
/// seal. So only for a peer that is trusted.
#[test]
fn zero_copy_of_a_dpdk_client_needs_our_trust_and_works_then() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup {
        device: ",zero-copy=yes".to_owned(),
        eal: &["--single-file-segments"],
        server: ServerConfig { memory_bytes_max: 1 << 30, ..ServerConfig::default() },
        ..Setup::new(Role::Server, &folder)
    };
    let listener = Listener::bind(&setup.addr, ListenerConfig::default()).unwrap();
    let _testpmd = setup.testpmd(&folder);
    let refused = setup.serve(&listener).unwrap_err();
    assert!(matches!(refused, HandshakeError::Rejected(Reject::RegionUnsealed)), "{refused}");
    drop((_testpmd, listener));

    let trusting = ServerConfig { allow_unsealed: true, ..setup.server.clone() };
    let setup = Setup { server: trusting, ..setup };
    let link = setup.link(&folder);
    assert_eq!(mappings("memfd:nohuge"), 1, "its packets would not lie in its own memory");
    drop(link);
    case("zero-copy", &setup, &[64], &folder);
}

#[test]
fn a_secret_lets_in_who_knows_it_and_nobody_else() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    let secret = |text: &str| Some(Secret::new(text.as_bytes()).unwrap());
    for role in [Role::Server, Role::Client] {
        let device = ",secret=open-sesame".to_owned();
        let setup = Setup { our_secret: secret("open-sesame"), device, ..Setup::new(role, &folder) };
        case("secret", &setup, &[64], &folder);
    }
    let setup = Setup { device: ",secret=open-sesame".to_owned(), ..Setup::new(Role::Server, &folder) };
    for (device, why) in [(",secret=open-barley", Reject::SecretWrong), ("", Reject::SecretRequired)] {
        let setup = Setup { device: device.to_owned(), our_secret: secret("open-sesame"), ..setup.clone() };
        let listener = Listener::bind(&setup.addr, ListenerConfig::default()).unwrap();
        let _testpmd = setup.testpmd(&folder);
        let refused = setup.serve(&listener).unwrap_err();
        assert!(matches!(refused, HandshakeError::Rejected(got) if got == why), "{refused}");
    }
    let setup = Setup { our_secret: secret("open-barley"), role: Role::Client, ..setup };
    let _testpmd = setup.testpmd(&folder);
    let refused = setup.connect().unwrap_err();
    println!("{refused}");
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
        let setup = Setup { queues: 4, ..Setup::new(role, &folder) };
        // What a thread needs once, for waking others, is there before anything is counted.
        peregrine_memif::warm_up();
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
        case("after a kill", &setup, &[64], &folder);
        until("all to be given back", || given_back(before));
    }
}

/// SIGKILL in the middle; we go on until we are told. How many packets had come back by then.
fn kill_under_traffic(link: &mut Link, packets: &Packets) -> u64 {
    let Interface { rx, tx, control, .. } = &mut link.ours;
    let mut traffic = Traffic::new(rx, tx, packets, WINDOW_SLOTS);
    while traffic.received() < 5000 {
        traffic.turn(u64::MAX);
    }
    link.testpmd.signal(Signal::KILL);
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
    let setup = Setup { queues: 2, ..Setup::new(Role::Client, &folder) };
    let _testpmd = setup.testpmd(&folder);
    let refused = Setup { queues: 3, ..setup.clone() }.connect().unwrap_err();
    println!("{refused}");
    assert!(matches!(&refused, HandshakeError::Disconnected { .. }), "{refused}");
    let mut ours = setup.connect().unwrap();
    let Interface { rx, tx, .. } = &mut ours;
    Traffic::new(rx, tx, &Packets::new(&[64]), WINDOW_SLOTS).run(1000);
}

/// A packet in one buffer of the ring and in several mbufs at the other end, as with DPDK's default mbuf size.
#[test]
fn large_buffers_meet_small_mbufs() {
    let _alone = alone();
    let folder = tempfile::tempdir().unwrap();
    for role in [Role::Server, Role::Client] {
        let setup = Setup { buffer_bytes: 10240, ..Setup::new(role, &folder) };
        case("small mbufs", &setup, &[64, 2047, 2048, 2049, 4097, 9000], &folder);
    }
}
