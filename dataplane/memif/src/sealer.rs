//! The sealer: does to a peer's files what the peer can make us wait for without end, somewhere where that does not matter.
//!
//! Two things are done to files that a peer has open as well: a client's memory is sealed against holes (`seal`, for the server), and
//! the pages of our own memory are given back once a connection has ended (`region`, for the client). Both take the inode's lock, and
//! whoever has the file open can hold that for as long as it likes: by a write(2) into it from memory whose page faults it serves
//! itself, through FUSE or userfaultfd. A thread that waits for the lock cannot be stopped, not even by SIGKILL, and what it shares with
//! its process stays as long: the address space, and with it the rings of mapped sockets; and the open descriptors. So a program that
//! must be able to end, or to be restarted, lets a process of its own do it (`start`, `serve`). Without one, a thread does
//! (`seal::in_a_thread`).
//!
//! A request is one message over a SOCK_SEQPACKET socket, with one file; the reply has its number. All threads are alike (`Crew`): each
//! takes a request and does it at once, so that a request costs no change of threads; and before it does, it sees to it that another one
//! is there for the next, so that nobody waits for those that are stuck. What must hold: at every moment that lasts, one thread that is not
//! stuck waits for requests, pings among them: a socket that stuck threads alone keep open is then known by its silence; the other side bounds
//! how many can be stuck.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

pub use crate::seal::{UNRETURNED_MAX, is_lost, unreturned, wait};
use crate::{seal, sys};

/// Number and task; or number and errno, of which 0 is success.
pub(crate) const MESSAGE_BYTES: usize = 16;
/// Stack of a thread that makes one system call at a time.
const STACK_BYTES: usize = 64 << 10;
/// So many threads stay when there is nothing to do.
const THREADS_KEPT: usize = 3;
/// How long to wait for room for an answer before waiting again; and for the next request, if there is one that was put off.
const LONG: Duration = Duration::from_secs(3600);
const SOON: Duration = Duration::from_millis(100);

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Seal a file against holes.
    Seal = 1,
    /// Take all pages out of a file.
    Empty = 2,
    /// Answer: there is no file.
    Ping = 3,
}

/// Starts `program`, which must come to call [`serve`], as this process's sealer: all sealing is its work from then on, and so is giving
/// back memory. Call it early. Ask [`is_lost`] once a second, and when it is, call this again with a new one.
///
/// The sealer gets a socket as its standard input and nothing else of ours; it ends by itself when this process does. The [`Child`] is
/// there to be reaped.
///
/// # Errors
/// Those of socketpair(2) and of starting a process.
pub fn start(program: &mut Command) -> io::Result<Child> {
    let (ours, theirs) = sys::socket_pair()?;
    let child = program.stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null()).spawn()?;
    seal::use_sealer(ours);
    Ok(child)
}

/// What a sealer's process does: works for the process that has [`start`]ed it, until that has ended. It gives up all capabilities first,
/// and needs none; where it cannot, it ends with status 1. Its user stays, so that no other user's processes can stop it. It ends even while it waits for files that others keep locked, apart from the threads that do: the kernel ends
/// these when they are let go.
pub fn serve() -> ! {
    match sys::drop_capabilities().and_then(|()| io::stdin().as_fd().try_clone_to_owned()) {
        // Whichever thread sees the end: others may be stuck.
        Ok(socket) => work(socket, || sys::exit_at_once(0)),
        Err(_) => sys::exit_at_once(1),
    }
    sys::exit_at_once(1)
}

/// Handles requests until the other side has closed; each thread then calls `at_end`, and ends.
pub(crate) fn work(socket: OwnedFd, at_end: fn()) {
    // Where it does not wait, it is waited for all the same, if less well.
    let _ = sys::set_blocking(socket.as_fd());
    let crew = Crew { socket, waiting: AtomicUsize::new(1), later: Mutex::new(Vec::new()), at_end };
    Arc::new(crew).serve(true);
}

/// The threads that handle requests.
struct Crew {
    socket: OwnedFd,
    /// Those that wait for a request, or are about to.
    waiting: AtomicUsize,
    /// To be tried again.
    later: Mutex<Vec<Request>>,
    at_end: fn(),
}

struct Request {
    number: u64,
    task: u64,
    file: Option<File>,
}

impl Crew {
    /// One thread's work: the first stays to the end.
    fn serve(self: Arc<Self>, is_first: bool) {
        while let Some(request) = self.next() {
            let is_last = self.waiting.fetch_sub(1, Ordering::AcqRel) == 1;
            match if is_last { self.hire() } else { Ok(()) } {
                Ok(()) => self.handle(request),
                Err(why) => self.put_off(request, why),
            }
            self.waiting.fetch_add(1, Ordering::AcqRel);
            let fewer = |waiting| (!is_first && waiting > THREADS_KEPT).then(|| waiting - 1);
            if self.waiting.fetch_update(Ordering::AcqRel, Ordering::Acquire, fewer).is_ok() {
                return;
            }
        }
        (self.at_end)();
    }

    /// Another one that waits.
    fn hire(self: &Arc<Self>) -> io::Result<()> {
        self.waiting.fetch_add(1, Ordering::AcqRel);
        let crew = Arc::clone(self);
        let thread = thread::Builder::new().name("memif-seal".to_owned()).stack_size(STACK_BYTES);
        let hired = thread.spawn(move || crew.serve(false)).map(drop);
        if hired.is_err() {
            self.waiting.fetch_sub(1, Ordering::AcqRel);
        }
        hired
    }

    /// The next request; `None` when the other side has closed.
    fn next(&self) -> Option<Request> {
        loop {
            let (socket, mut bytes) = (self.socket.as_fd(), [0; MESSAGE_BYTES]);
            let put_off = self.later().pop();
            let received = if put_off.is_none() {
                sys::receive_or_wait(socket, &mut bytes)
            } else if sys::wait_readable(socket, SOON).is_ok_and(|is_there| is_there) {
                self.later().extend(put_off);
                sys::receive(socket, &mut bytes)
            } else {
                return put_off;
            };
            match received {
                Ok(received) if received.bytes == 0 => return None,
                Ok(mut received) => {
                    let (number, task) = parts(bytes);
                    return Some(Request { number, task, file: received.fds.pop().map(File::from) });
                }
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                // Another thread was faster, or the socket does not wait.
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                    sys::wait_readable(socket, LONG).ok()?;
                }
                Err(_) => return None,
            }
        }
    }

    fn handle(&self, Request { number, task, file }: Request) {
        let result = match &file {
            None if task == Task::Ping as u64 => Ok(()),
            None => Err(io::Error::from_raw_os_error(libc::EBADF)),
            Some(file) if task == Task::Seal as u64 => sys::seal_against_holes(file),
            Some(file) => sys::empty(file),
        };
        // Closed before anybody goes on.
        drop(file);
        self.reply(number, &result);
    }

    /// There is no other thread, and none can be started: nothing may be begun that could last. A file that is to be emptied is kept for later;
    /// for any other, that is the answer.
    fn put_off(&self, request: Request, why: io::Error) {
        match request {
            Request { file: None, .. } => self.handle(request),
            Request { task, .. } if task == Task::Empty as u64 => self.later().push(request),
            Request { number, file, .. } => {
                drop(file);
                self.reply(number, &Err(why));
            }
        }
    }

    fn later(&self) -> MutexGuard<'_, Vec<Request>> {
        self.later.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for room if the other side has not taken in its answers for long; one that is gone needs none.
    fn reply(&self, number: u64, result: &io::Result<()>) {
        let errno = result.as_ref().map_or_else(|why| why.raw_os_error().unwrap_or(libc::EIO), |()| 0);
        let answer = message(number, errno as u64);
        let socket = self.socket.as_fd();
        while sys::send(socket, &answer, None).is_err_and(|why| why.kind() == io::ErrorKind::WouldBlock) {
            if sys::wait_writable(socket, LONG).is_err() {
                return;
            }
        }
    }
}

/// A message: two numbers.
pub(crate) fn message(first: u64, second: u64) -> [u8; MESSAGE_BYTES] {
    (u128::from(second) << 64 | u128::from(first)).to_ne_bytes()
}

/// The numbers of a message.
pub(crate) fn parts(message: [u8; MESSAGE_BYTES]) -> (u64, u64) {
    let both = u128::from_ne_bytes(message);
    (both as u64, (both >> 64) as u64)
}
