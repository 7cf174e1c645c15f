//! Peers that hold the lock of a file that is shared with them, so that we can neither seal it nor take its pages back: nothing of ours
//! may wait for them, and a process that serves them must be able to end.
//!
//! The lock is held as a hostile client would: by a write(2) into the file from a page whose fault is never served.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::process::{Child, Stdio};
use std::thread::{self, JoinHandle};

use super::*;
use crate::addr::SocketAddr;
use crate::error::{Reject, Sent};
use crate::listener::{Listener, ListenerConfig};
use crate::{seal, sealer};

/// A server configuration of an interface that no other test uses: its name may be refused for a while.
fn named(name: &str) -> ServerConfig {
    ServerConfig { name: name.into(), ..ServerConfig::default() }
}

/// userfaultfd(2): the requests of its interface, and their structures as plain words.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const API: u64 = 0xaa;
const MODE_MISSING: u64 = 1;
const PAGE_BYTES: usize = 4096;

/// The lock of a file, held until this is dropped.
struct Lock {
    /// Serves the faults of the page; `None` once it does not, and the kernel does.
    faults: Option<OwnedFd>,
    writer: Option<JoinHandle<io::Result<()>>>,
}

impl Lock {
    fn hold(file: &File, bytes: u64) -> Self {
        // SAFETY: a system call without pointers; then a new descriptor that nobody else has.
        let faults = unsafe {
            let fd = libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK);
            assert!(fd >= 0, "userfaultfd: {}", io::Error::last_os_error());
            OwnedFd::from_raw_fd(fd as i32)
        };
        // SAFETY: a new private page at an address of the kernel's choice.
        let page = unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            libc::mmap(std::ptr::null_mut(), PAGE_BYTES, libc::PROT_READ, flags, -1, 0)
        };
        assert_ne!(page, libc::MAP_FAILED);
        let mut api = [API, 0, 0];
        let mut range = [page as u64, PAGE_BYTES as u64, MODE_MISSING, 0];
        // SAFETY: each request reads and writes the words of its structure: three, and four.
        unsafe {
            assert_eq!(libc::ioctl(faults.as_raw_fd(), UFFDIO_API, api.as_mut_ptr()), 0);
            assert_eq!(libc::ioctl(faults.as_raw_fd(), UFFDIO_REGISTER, range.as_mut_ptr()), 0);
        }
        let file = file.try_clone().unwrap();
        let address = page as usize;
        let writer = thread::spawn(move || {
            // SAFETY: the page stays mapped until this thread has ended, and only the kernel reads it.
            let byte = unsafe { std::slice::from_raw_parts(address as *const u8, 1) };
            file.write_all_at(byte, bytes - 1)
        });
        // The fault is reported: the writer sleeps in it, with the lock.
        assert!(sys::wait_readable(faults.as_fd(), Duration::from_secs(10)).unwrap(), "no fault");
        Self { faults: Some(faults), writer: Some(writer) }
    }

    /// Lets go of the lock.
    fn release(mut self) {
        self.end().unwrap();
    }

    fn end(&mut self) -> io::Result<()> {
        self.faults = None;
        self.writer.take().map_or(Ok(()), |writer| writer.join().unwrap())
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Sealed meanwhile, perhaps: then the write fails, and that is all right.
        let _ = self.end();
    }
}

/// CONNECT, and a few steps that do not wait for the lock: or else they would never end.
fn say_connect(bench: &mut Bench) {
    let mut pending = bench.say(&Message::Connect { name: "if0".into() }, None);
    for _ in 0..3 {
        assert!(matches!(pending, Ok(Progress::Pending)), "{pending:?}");
        assert!(
            bench.server.deadline() <= Instant::now() + Duration::from_secs(1),
            "not in its time, but soon"
        );
        pending = bench.next_step();
    }
    assert!(matches!(pending, Ok(Progress::Pending)), "{pending:?}");
    assert_eq!(bench.server.id(), Some(3));
}

/// A handshake that gives up at its second look at the latest.
fn impatient(config: &ServerConfig) -> Bench {
    Bench::with_limits(config.clone(), Limits { seal_timeout: Duration::ZERO, ..limits() }).describe()
}

#[track_caller]
fn assert_busy(refused: Result<Interface, HandshakeError>) {
    assert!(matches!(refused, Err(HandshakeError::Rejected(Reject::RegionBusy))), "{refused:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_that_keeps_its_file_locked_is_refused_and_its_name_stays_so() {
    let config = named("locked");
    let mut bench = impatient(&config);
    let lock = Lock::hold(&bench.memory.file, REGION_BYTES);
    assert_busy(bench.connect());
    assert_eq!(bench.farewell(), Reject::RegionBusy.to_string());
    // The lock is still waited for: no second time for this name, but others are not concerned.
    assert_busy(impatient(&config).connect());
    Bench::described(named("not locked")).connect().unwrap();
    // One that has time connects when it is let go.
    let mut next = Bench::described(config);
    say_connect(&mut next);
    lock.release();
    connects(&mut next);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn however_many_keep_their_files_locked_others_connect() {
    let locks: Vec<_> = (0..40)
        .map(|number| {
            let mut bench = impatient(&named(&format!("one of many {number}")));
            let lock = Lock::hold(&bench.memory.file, REGION_BYTES);
            assert_busy(bench.connect());
            lock
        })
        .collect();
    Bench::described(named("not one of them")).connect().unwrap();
    drop(locks);
}

/// Steps until it is connected.
fn connects(bench: &mut Bench) {
    loop {
        match bench.next_step().unwrap() {
            Progress::Pending => {}
            Progress::Connected(mut interface) => {
                assert_eq!(interface.rx[0].pending(), Ok(0));
                return assert!(matches!(bench.heard(), Message::Connected { .. }));
            }
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_that_lets_go_in_time_connects() {
    let mut bench = Bench::described(named("late"));
    let lock = Lock::hold(&bench.memory.file, REGION_BYTES);
    say_connect(&mut bench);
    lock.release();
    connects(&mut bench);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_that_leaves_meanwhile_is_gone_at_once_but_not_its_lock() {
    let config = named("left");
    let mut bench = Bench::described(config.clone());
    let lock = Lock::hold(&bench.memory.file, REGION_BYTES);
    say_connect(&mut bench);
    let Bench { channel, mut server, memory, .. } = bench;
    drop((channel, memory));
    let gone = server.step(&mut |_| panic!("lookup after the end"));
    assert!(matches!(gone, Err(HandshakeError::Closed { after: Sent::Connect })), "{gone:?}");
    assert_busy(impatient(&config).connect());
    lock.release();
    Bench::described(config).connect().unwrap();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn nothing_else_may_be_said_meanwhile() {
    for message in [Message::Ack, Message::Init(init()), Message::Connect { name: "again".into() }] {
        let config = named("talking");
        let mut bench = Bench::described(config.clone());
        let lock = Lock::hold(&bench.memory.file, REGION_BYTES);
        say_connect(&mut bench);
        let refused = bench.say(&message, None);
        let why = Reject::UnexpectedMessage { kind: message.kind() };
        assert!(matches!(refused, Err(HandshakeError::Rejected(given)) if given == why), "{refused:?}");
        assert_eq!(bench.farewell(), why.to_string());
        lock.release();
        Bench::described(config).connect().unwrap();
    }
}

/// A server that keeps our memory locked when we let go of it.
#[test]
#[ignore = "needs root: make test runs it"]
fn letting_go_of_memory_does_not_wait_for_its_lock() {
    let (mut peer, memory, _) = client_side::Peer::served(client_side::config(), client_side::hello());
    let interface = peer.connected();
    assert_ne!(client_side::blocks(&memory.file), 0);
    let lock = Lock::hold(&memory.file, REGION_BYTES);
    let dropping = thread::spawn(move || drop(interface));
    wait_until("the interface is dropped", || dropping.is_finished());
    assert_ne!(client_side::blocks(&memory.file), 0, "nothing could be taken back yet");
    lock.release();
    wait_until("the pages are gone", || client_side::blocks(&memory.file) == 0);
}

/// A server whose connections last, and that keeps the memory of each locked: it is given so much and no more, and others are not
/// concerned.
#[test]
#[ignore = "needs root: make test runs it"]
fn who_keeps_memory_locked_gets_no_more_of_it() {
    let hoarder = connector::Port::new("hoarder");
    let mut locks = Vec::new();
    for _ in 0..seal::UNRETURNED_MAX {
        let (_client, memory) = hoarder.gives_memory();
        locks.push(Lock::hold(&memory, memory.metadata().unwrap().len()));
    }
    let refused = hoarder.asks_for_memory().unwrap_err();
    assert!(matches!(refused, HandshakeError::Rejected(Reject::MemoryKept)), "{refused}");
    connector::Port::new("not a hoarder").gives_memory();
    for lock in locks {
        lock.release();
    }
    wait_until("it gets memory again", || hoarder.asks_for_memory().is_ok());
}

/// A process that serves: with a sealer of its own or without. It is killed while its client keeps its file locked.
struct Server {
    process: Child,
    addr: SocketAddr,
    sealer: Option<u32>,
    /// Held by us, its client.
    lock: Lock,
}

impl Server {
    /// What the process does.
    fn run(test: &str, has_sealer: bool) {
        let sealer = has_sealer.then(|| sealer::start(&mut this_test_as(test, "sealer")).unwrap());
        let addr = Self::addr(test, std::process::id());
        let listener = Listener::bind(&addr, ListenerConfig::default()).unwrap();
        println!("\nlistening {}", sealer.map_or(0, |child| child.id()));
        sys::wait_readable(listener.as_fd(), Duration::from_secs(60)).unwrap();
        let mut handshake = listener.accept().unwrap().unwrap();
        let refused = loop {
            match handshake.step(&mut |_| Ok(ServerConfig::default())) {
                Ok(Progress::Pending) => {}
                other => break other,
            }
            let left = handshake.deadline().saturating_duration_since(Instant::now());
            sys::wait_readable(handshake.socket().unwrap(), left).unwrap();
        };
        assert!(matches!(refused, Err(HandshakeError::Rejected(Reject::RegionBusy))), "{refused:?}");
        println!("refused");
        // Until it is killed.
        loop {
            thread::park();
        }
    }

    fn addr(test: &str, pid: u32) -> SocketAddr {
        SocketAddr::Abstract(format!("peregrine-memif-{test}-{pid}"))
    }

    /// Started, and attacked, and killed.
    fn killed(test: &str) -> Self {
        let mut process = this_test_as(test, "server").stdout(Stdio::piped()).spawn().unwrap();
        let addr = Self::addr(test, process.id());
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines().map(Result::unwrap);
        let listening =
            lines.find_map(|line| line.strip_prefix("listening ").map(|pid| pid.parse().unwrap()));
        let sealer = listening.filter(|pid| *pid != 0);
        let lock = connect_and_lock(&addr);
        assert!(lines.any(|line| line == "refused"));
        process.kill().unwrap();
        Self { process, addr, sealer, lock }
    }

    fn is_gone(&mut self) -> bool {
        self.process.try_wait().unwrap().is_some()
    }

    fn can_be_replaced(&self) -> bool {
        Listener::bind(&self.addr, ListenerConfig::default()).is_ok()
    }
}

/// A client that locks its file before it says CONNECT.
fn connect_and_lock(addr: &SocketAddr) -> Lock {
    let socket = sys::socket().unwrap();
    sys::connect(socket.as_fd(), &addr.to_raw().unwrap()).unwrap();
    let channel = Channel::new(socket);
    let heard = || {
        assert!(sys::wait_readable(channel.as_fd(), Duration::from_secs(10)).unwrap(), "nothing heard");
        match channel.receive().unwrap() {
            Incoming::Message(message, None) => message,
            _ => panic!("no message from the server"),
        }
    };
    let (memory, event) = (Memory::new(sys::sealed_memory(REGION_BYTES).unwrap()), sys::eventfd().unwrap());
    assert!(matches!(heard(), Message::Hello(_)));
    let region = Message::AddRegion { index: 0, size: REGION_BYTES };
    for (message, fd) in [
        (Message::Init(init()), None),
        (region, Some(memory.file.as_fd())),
        (Message::AddRing(s2m()), Some(event.as_fd())),
        (Message::AddRing(m2s()), Some(event.as_fd())),
    ] {
        channel.send(&message, fd).unwrap();
        assert!(matches!(heard(), Message::Ack));
    }
    let lock = Lock::hold(&memory.file, REGION_BYTES);
    channel.send(&Message::Connect { name: "if0".into() }, None).unwrap();
    assert!(matches!(heard(), Message::Disconnect { text, .. } if text == Reject::RegionBusy.to_string()));
    lock
}

/// Threads of a process, which has one that waits and a first one that has ended if it is stuck.
fn threads(pid: u32) -> usize {
    fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count)
}

#[test]
#[ignore = "needs root: make test runs it"]
fn with_a_sealer_a_killed_server_is_gone_at_once_and_can_be_replaced() {
    let test = "locked_file::with_a_sealer_a_killed_server_is_gone_at_once_and_can_be_replaced";
    match role().as_deref() {
        Some("sealer") => sealer::serve(),
        Some(_) => return Server::run(test, true),
        None => {}
    }
    let mut server = Server::killed(test);
    wait_until("the killed server is gone", || server.is_gone());
    assert!(server.can_be_replaced());
    // It is the sealer that the lock holds.
    let sealer = server.sealer.unwrap();
    assert!(threads(sealer) >= 2, "the sealer does not wait for the lock");
    server.lock.release();
    wait_until("the sealer ends", || threads(sealer) <= 1);
}

/// What the documentation says of programs without one.
#[test]
#[ignore = "needs root: make test runs it"]
fn without_a_sealer_a_killed_server_can_be_replaced_but_is_not_gone() {
    let test = "locked_file::without_a_sealer_a_killed_server_can_be_replaced_but_is_not_gone";
    if role().is_some() {
        return Server::run(test, false);
    }
    let mut server = Server::killed(test);
    wait_until("its address is free", || server.can_be_replaced());
    assert!(!server.is_gone());
    let Server { lock, mut process, .. } = server;
    lock.release();
    wait_until("it is gone", || process.try_wait().unwrap().is_some());
}

/// The one that works, beside that of the test program.
fn has_a_thread_without_capabilities(pid: u32) -> bool {
    let mut threads = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    threads.any(|thread| {
        let status = fs::read_to_string(thread.unwrap().path().join("status")).unwrap_or_default();
        let is_empty = |set: &str| status.contains(&format!("{set}:\t0000000000000000\n"));
        ["CapInh", "CapPrm", "CapEff", "CapAmb"].into_iter().all(is_empty)
            && status.contains("NoNewPrivs:\t1\n")
    })
}

#[test]
fn a_sealer_that_has_died_can_be_replaced() {
    let test = "locked_file::a_sealer_that_has_died_can_be_replaced";
    if role().as_deref() == Some("sealer") {
        sealer::serve();
    }
    let output = in_a_process_of_its_own(test, || {
        let test = "locked_file::a_sealer_that_has_died_can_be_replaced";
        let start = || sealer::start(&mut this_test_as(test, "sealer")).unwrap();
        for _ in 0..2 {
            let mut process = start();
            Bench::described(ServerConfig::default()).connect().unwrap();
            assert!(!sealer::is_lost());
            assert!(has_a_thread_without_capabilities(process.id()));
            process.kill().unwrap();
            process.wait().unwrap();
            let refused = Bench::described(ServerConfig::default()).connect();
            let why = Reject::NoSealer { errno: libc::EPIPE };
            assert!(matches!(refused, Err(HandshakeError::Rejected(given)) if given == why), "{refused:?}");
            assert!(sealer::is_lost());
        }
    });
    assert_survived(&output);
}

#[test]
fn a_sealer_that_cannot_work_says_why() {
    let test = "locked_file::a_sealer_that_cannot_work_says_why";
    let output = in_a_process_of_its_own(test, || {
        let (ours, theirs) = sys::socket_pair().unwrap();
        seal::use_sealer(ours);
        let answering = thread::spawn(move || {
            let mut request = [0; sealer::MESSAGE_BYTES];
            assert!(sys::wait_readable(theirs.as_fd(), Duration::from_secs(10)).unwrap(), "no request");
            let received = sys::receive(theirs.as_fd(), &mut request).unwrap();
            assert_eq!((received.bytes, received.fds.len()), (sealer::MESSAGE_BYTES, 1));
            let answer = sealer::message(sealer::parts(request).0, libc::EMFILE as u64);
            sys::send(theirs.as_fd(), &answer, None).unwrap();
        });
        let refused = Bench::described(ServerConfig::default()).connect();
        let why = Reject::NoSealer { errno: libc::EMFILE };
        assert!(matches!(refused, Err(HandshakeError::Rejected(given)) if given == why), "{refused:?}");
        answering.join().unwrap();
    });
    assert_survived(&output);
}

/// Its thread that waits for the lock keeps its socket open: nothing but its silence tells.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_sealer_that_has_died_while_a_file_is_locked_is_noticed() {
    let test = "locked_file::a_sealer_that_has_died_while_a_file_is_locked_is_noticed";
    if role().as_deref() == Some("sealer") {
        sealer::serve();
    }
    let output = in_a_process_of_its_own(test, || {
        let test = "locked_file::a_sealer_that_has_died_while_a_file_is_locked_is_noticed";
        let start = || sealer::start(&mut this_test_as(test, "sealer")).unwrap();
        let mut process = start();
        let mut bench = impatient(&named("locks it"));
        let lock = Lock::hold(&bench.memory.file, REGION_BYTES);
        assert_busy(bench.connect());
        // It answers as long as it lives.
        let end = Instant::now() + Duration::from_secs(4);
        wait_until("four seconds", || {
            assert!(!sealer::is_lost());
            Instant::now() > end
        });
        process.kill().unwrap();
        wait_until("it is noticed", sealer::is_lost);
        assert!(process.try_wait().unwrap().is_none(), "it is not stuck, so this shows nothing");
        let mut next = start();
        Bench::described(named("not concerned")).connect().unwrap();
        assert!(!sealer::is_lost());
        lock.release();
        process.wait().unwrap();
        next.kill().unwrap();
        next.wait().unwrap();
    });
    assert_survived(&output);
}
