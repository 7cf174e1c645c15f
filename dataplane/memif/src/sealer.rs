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
//! A request is one message over a SOCK_SEQPACKET socket, with one file; the reply has its number. Each request has a thread. What must
//! hold: nothing here waits for a peer but those threads; the other side bounds how many there are.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

pub use crate::seal::is_lost;
use crate::{seal, sys};

/// Number and task; or number and errno, of which 0 is success.
pub(crate) const MESSAGE_BYTES: usize = 16;
/// Stack of a thread that makes one system call.
const STACK_BYTES: usize = 64 << 10;
/// How long to wait for the next request before waiting again.
const LONG: Duration = Duration::from_secs(3600);

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Task {
    /// Seal a file against holes.
    Seal = 1,
    /// Take all pages out of a file.
    Empty = 2,
}

impl Task {
    /// Most requests under way for one name. Several connections with one server can end in the same moment, and all their memory
    /// is to be given back.
    pub fn for_a_name(self) -> usize {
        match self {
            Self::Seal => 1,
            Self::Empty => 16,
        }
    }
}

/// Starts `program`, which must come to call [`serve`], as this process's sealer: all sealing is its work from then on, and so is giving
/// back memory. Call it early. After the sealer has died ([`is_lost`]), call it again with a new one.
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

/// What a sealer's process does: works for the process that has [`start`]ed it, until that has ended. It gives up all privileges first,
/// and needs none. It ends even while it waits for files that others keep locked, apart from the threads that do: the kernel ends
/// these when they are let go.
pub fn serve() -> ! {
    sys::drop_privileges();
    if let Ok(socket) = io::stdin().as_fd().try_clone_to_owned() {
        work(&Arc::new(socket));
    }
    sys::exit_at_once()
}

/// Handles requests until the other side has closed.
pub(crate) fn work(socket: &Arc<OwnedFd>) {
    let mut request = [0; MESSAGE_BYTES];
    loop {
        match sys::receive(socket.as_fd(), &mut request) {
            Ok(received) if received.bytes == 0 => return,
            Ok(mut received) => begin(socket, request, received.fds.pop()),
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                if sys::wait_readable(socket.as_fd(), LONG).is_err() {
                    return;
                }
            }
            Err(_) => return,
        }
    }
}

/// Begins one request in a thread of its own, which answers it.
fn begin(socket: &Arc<OwnedFd>, request: [u8; MESSAGE_BYTES], fd: Option<OwnedFd>) {
    let (number, task) = parts(request);
    let Some(file) = fd.map(File::from) else {
        return reply(socket, number, &Err(io::Error::from_raw_os_error(libc::EBADF)));
    };
    let to = Arc::clone(socket);
    let job = move || {
        let result =
            if task == Task::Seal as u64 { sys::seal_against_holes(&file) } else { sys::empty(&file) };
        // Closed before anybody goes on.
        drop(file);
        reply(&to, number, &result);
    };
    let thread = thread::Builder::new().name("memif-seal".to_owned()).stack_size(STACK_BYTES);
    if let Err(why) = thread.spawn(job) {
        reply(socket, number, &Err(why));
    }
}

/// The other side has room for an answer to each request that it has made; one that is gone needs none.
fn reply(socket: &OwnedFd, number: u64, result: &io::Result<()>) {
    let errno = result.as_ref().map_or_else(|why| why.raw_os_error().unwrap_or(libc::EIO), |()| 0);
    let _ = sys::send(socket.as_fd(), &message(number, errno as u64), None);
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
