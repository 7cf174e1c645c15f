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
//! A request is one message over a SOCK_SEQPACKET socket, with one file; the reply has its number. Each request has a thread, but for pings,
//! which are answered by the first one: when that has ended, others that are stuck may still keep the socket open. What must hold: nothing
//! here waits for a peer but those threads; the other side bounds how many there are.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

pub use crate::seal::{UNRETURNED_MAX, is_lost, unreturned, wait};
use crate::{seal, sys};

/// Number and task; or number and errno, of which 0 is success.
pub(crate) const MESSAGE_BYTES: usize = 16;
/// Stack of a thread that makes one system call.
const STACK_BYTES: usize = 64 << 10;
/// How long to wait for the next request before waiting again; and if there is one that no thread could be started for.
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
        Ok(socket) => work(&Arc::new(socket)),
        Err(_) => sys::exit_at_once(1),
    }
    sys::exit_at_once(0)
}

/// Handles requests until the other side has closed.
pub(crate) fn work(socket: &Arc<OwnedFd>) {
    let mut request = [0; MESSAGE_BYTES];
    let mut later = Vec::new();
    loop {
        match sys::receive(socket.as_fd(), &mut request) {
            Ok(received) if received.bytes == 0 => return,
            Ok(mut received) => {
                let (number, task) = parts(request);
                match received.fds.pop() {
                    Some(fd) => later.extend(begin(socket, number, task, Arc::new(fd.into()))),
                    None if task == Task::Ping as u64 => reply(socket, number, &Ok(())),
                    None => reply(socket, number, &Err(io::Error::from_raw_os_error(libc::EBADF))),
                }
            }
            Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                let patience = if later.is_empty() { LONG } else { SOON };
                if sys::wait_readable(socket.as_fd(), patience).is_err() {
                    return;
                }
                let again = std::mem::take(&mut later);
                later.extend(
                    again
                        .into_iter()
                        .filter_map(|(number, file)| begin(socket, number, Task::Empty as u64, file)),
                );
            }
            Err(_) => return,
        }
    }
}

/// Begins one request in a thread of its own, which answers it. If none can be started: for a file that is to be emptied, that is kept
/// for later and given back; for any other, that is the answer.
fn begin(socket: &Arc<OwnedFd>, number: u64, task: u64, file: Arc<File>) -> Option<(u64, Arc<File>)> {
    let (to, of_the_thread) = (Arc::clone(socket), Arc::clone(&file));
    let job = move || {
        let file = of_the_thread;
        let result =
            if task == Task::Seal as u64 { sys::seal_against_holes(&file) } else { sys::empty(&file) };
        // Closed before anybody goes on.
        drop(file);
        reply(&to, number, &result);
    };
    let thread = thread::Builder::new().name("memif-seal".to_owned()).stack_size(STACK_BYTES);
    match thread.spawn(job) {
        Ok(_) => None,
        Err(_) if task == Task::Empty as u64 => Some((number, file)),
        Err(why) => {
            reply(socket, number, &Err(why));
            None
        }
    }
}

/// Waits for room if the other side has not taken in its answers for long; one that is gone needs none.
fn reply(socket: &OwnedFd, number: u64, result: &io::Result<()>) {
    let errno = result.as_ref().map_or_else(|why| why.raw_os_error().unwrap_or(libc::EIO), |()| 0);
    let answer = message(number, errno as u64);
    while sys::send(socket.as_fd(), &answer, None).is_err_and(|why| why.kind() == io::ErrorKind::WouldBlock) {
        if sys::wait_writable(socket.as_fd(), LONG).is_err() {
            return;
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
