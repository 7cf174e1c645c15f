//! The server's handshake against a client that holds its file's lock, so that the file cannot be sealed: no step may wait for it.
//!
//! The lock is held as a hostile client would: by a write(2) into the file from a page whose fault is never served.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::FileExt;
use std::thread::{self, JoinHandle};

use super::*;
use crate::error::{Reject, Sent};

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
    fn hold(file: &File) -> Self {
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
            file.write_all_at(byte, REGION_BYTES - 1)
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

fn say_connect(bench: &mut Bench) {
    let pending = bench.say(&Message::Connect { name: "if0".into() }, None);
    assert!(matches!(pending, Ok(Progress::Pending)), "{pending:?}");
    assert!(bench.server.deadline() <= Instant::now() + Duration::from_secs(1), "not in its time, but soon");
    assert_eq!(bench.server.id(), Some(3));
}

/// A new client of this interface, as soon as the name is free again.
fn connects_in_the_end(config: &ServerConfig) {
    let end = Instant::now() + Duration::from_secs(10);
    while let Err(why) = Bench::described(config.clone()).connect() {
        assert!(matches!(why, HandshakeError::Rejected(Reject::RegionBusy)), "{why}");
        assert!(Instant::now() < end, "still busy");
        thread::yield_now();
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_that_keeps_its_file_locked_is_refused_after_many_short_steps() {
    let config = named("locked");
    let mut bench = Bench::described(config.clone());
    let lock = Lock::hold(&bench.memory.file);
    say_connect(&mut bench);
    let mut steps = 0;
    let refused = loop {
        match bench.next_step() {
            Ok(Progress::Pending) => steps += 1,
            other => break other,
        }
    };
    assert!(matches!(refused, Err(HandshakeError::Rejected(Reject::RegionBusy))), "{refused:?}");
    assert!(steps >= 2, "{steps} steps: one of them waited");
    assert_eq!(bench.farewell(), Reject::RegionBusy.to_string());
    // The thread is still stuck: no second one for this name, but others are not concerned.
    let refused = Bench::described(config.clone()).connect();
    assert!(matches!(refused, Err(HandshakeError::Rejected(Reject::RegionBusy))), "{refused:?}");
    Bench::described(named("not locked")).connect().unwrap();
    lock.release();
    connects_in_the_end(&config);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_that_lets_go_in_time_connects() {
    let mut bench = Bench::described(named("late"));
    let lock = Lock::hold(&bench.memory.file);
    say_connect(&mut bench);
    lock.release();
    loop {
        match bench.next_step().unwrap() {
            Progress::Pending => {}
            Progress::Connected(mut interface) => {
                assert_eq!(interface.rx[0].pending(), Ok(0));
                break assert!(matches!(bench.heard(), Message::Connected { .. }));
            }
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_that_leaves_meanwhile_is_gone_at_once_but_not_its_lock() {
    let config = named("left");
    let mut bench = Bench::described(config.clone());
    let lock = Lock::hold(&bench.memory.file);
    say_connect(&mut bench);
    let Bench { channel, mut server, memory, .. } = bench;
    drop((channel, memory));
    let gone = server.step(&mut |_| panic!("lookup after the end"));
    assert!(matches!(gone, Err(HandshakeError::Closed { after: Sent::Connect })), "{gone:?}");
    let refused = Bench::described(config.clone()).connect();
    assert!(matches!(refused, Err(HandshakeError::Rejected(Reject::RegionBusy))), "{refused:?}");
    lock.release();
    connects_in_the_end(&config);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn nothing_else_may_be_said_meanwhile() {
    for message in [Message::Ack, Message::Init(init()), Message::Connect { name: "again".into() }] {
        let config = named("talking");
        let mut bench = Bench::described(config.clone());
        let lock = Lock::hold(&bench.memory.file);
        say_connect(&mut bench);
        let refused = bench.say(&message, None);
        let why = Reject::UnexpectedMessage { kind: message.kind() };
        assert!(matches!(refused, Err(HandshakeError::Rejected(given)) if given == why), "{refused:?}");
        assert_eq!(bench.farewell(), why.to_string());
        lock.release();
        connects_in_the_end(&config);
    }
}
