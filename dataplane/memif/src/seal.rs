//! Sealing a client's files so that no page can be taken out of them again, and emptying our own, without waiting for the peer: the
//! program's side of the `sealer`. Used by `offer` (seals) and `region` (empties).
//!
//! A request goes to the sealer over a socket, and its answer comes back over it: whoever looks for one takes in all that have come. A
//! handshake waits for its own for a moment, looks again whenever it is stepped, and gives up after `Limits::seal_timeout`. The
//! sealer goes on waiting for the lock of that file, until its owner lets go or dies.
//!
//! What must hold: for a name at most one seal is under way, given up or not, whatever others do. And no emptying is forgotten:
//! instead, no new memory is made for a name of which `UNRETURNED_MAX` are not done. So a tenant can have no more of the sealer, and
//! of our memory, than that many files and threads, and those of its connections that are open.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Reject;
use crate::sealer::{self, MESSAGE_BYTES, Task};
use crate::sys;

/// As client: most files of our memory that a server may keep us from taking back before it is given no more. Of an honest one there is
/// one, for some microseconds; the rest is for a busy machine.
pub const UNRETURNED_MAX: usize = 8;

/// A sealer whose process has not answered for so long is lost. It does so at once unless the machine is very busy.
const SILENCE_MAX: Duration = Duration::from_secs(3);
/// What a look at it counts for at most: a program that was stopped together with its sealer does not take it for lost.
const LOOK_MAX: Duration = Duration::from_secs(1);

static DESK: Mutex<Desk> = Mutex::new(Desk {
    sealer: Sealer::None,
    ping: None,
    next_number: 0,
    seals: Vec::new(),
    emptyings: Vec::new(),
});

/// Requests and their answers.
struct Desk {
    sealer: Sealer,
    /// To the sealer's process, which has not answered anything since.
    ping: Option<Ping>,
    next_number: u64,
    seals: Vec<Seal>,
    emptyings: Vec<Emptying>,
}

/// Who does the work.
enum Sealer {
    /// Nobody yet: a thread, as soon as there is work.
    None,
    /// Whoever is at the other end: a thread, or a process, which can die.
    At {
        /// The socket to it.
        socket: Arc<OwnedFd>,
        is_process: bool,
    },
    /// It has ended.
    Lost,
}

/// A question whether the sealer is there.
struct Ping {
    /// How long it has been unanswered, and until when that was counted.
    silence: Duration,
    looked: Instant,
}

/// A file to be sealed, until the answer has come and was taken.
struct Seal {
    number: u64,
    name: Arc<str>,
    /// 0 or an errno, once it has come.
    answer: Option<i32>,
    /// Somebody will take the answer.
    is_awaited: bool,
}

/// A file of ours to be emptied, until it is.
struct Emptying {
    number: u64,
    name: Arc<str>,
    /// As long as the sealer does not have it yet.
    file: Option<Arc<File>>,
}

/// Why a request was not made.
enum NotBegun {
    /// Others are under way: try again later.
    Busy,
    /// There is no sealer.
    Lost,
}

/// All requests go to the sealer at the other end of this socket from now on.
pub(crate) fn use_sealer(socket: OwnedFd) {
    let mut desk = desk();
    desk.lose();
    desk.sealer = Sealer::At { socket: Arc::new(socket), is_process: true };
}

/// Whether the sealer's process has ended: until another one is started, clients whose memory must be sealed are refused, and our own
/// memory is not taken back from peers that keep it. To be asked about once a second: one that has died while a thread of it waits for a
/// file's lock keeps its socket open, and is known by not answering for three seconds in which this was asked.
pub fn is_lost() -> bool {
    let mut desk = desk();
    desk.hear();
    desk.ping(Instant::now());
    matches!(desk.sealer, Sealer::Lost)
}

/// Files of earlier connections, of all names, whose memory is not given back yet.
pub fn unreturned() -> usize {
    let mut desk = desk();
    desk.hear();
    desk.emptyings.len()
}

/// Waits until the sealer has answered something, or for so long; `false` if it has not, or there is none. For who serves many clients whose
/// memory is being sealed at the same time: then it is worth a look at each of them.
pub fn wait(patience: Duration) -> bool {
    let socket = {
        let mut desk = desk();
        desk.hear();
        if desk.seals.iter().any(|seal| seal.is_awaited && seal.answer.is_some()) {
            return true;
        }
        match &desk.sealer {
            Sealer::At { socket, .. } => Arc::clone(socket),
            Sealer::None | Sealer::Lost => return false,
        }
    };
    sys::wait_readable(socket.as_fd(), patience).is_ok_and(|is_readable| is_readable)
}

fn desk() -> MutexGuard<'static, Desk> {
    DESK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// Begins to seal a file; gives the request's number.
    fn seal(&mut self, name: &Arc<str>, file: BorrowedFd<'_>) -> Result<u64, NotBegun> {
        self.hear();
        if self.seals.iter().any(|seal| seal.answer.is_none() && seal.name == *name) {
            return Err(NotBegun::Busy);
        }
        let number = self.number();
        self.request(number, Task::Seal, Some(file))?;
        self.seals.push(Seal { number, name: Arc::clone(name), answer: None, is_awaited: true });
        Ok(number)
    }

    /// Of the next request.
    fn number(&mut self) -> u64 {
        self.next_number += 1;
        self.next_number
    }

    /// Sends a request to the sealer.
    fn request(&mut self, number: u64, task: Task, file: Option<BorrowedFd<'_>>) -> Result<(), NotBegun> {
        if matches!(self.sealer, Sealer::None) {
            let socket = Arc::new(in_a_thread().map_err(|_| NotBegun::Busy)?);
            self.sealer = Sealer::At { socket, is_process: false };
        }
        let Sealer::At { socket, .. } = &self.sealer else { return Err(NotBegun::Lost) };
        match sys::send(socket.as_fd(), &sealer::message(number, task as u64), file) {
            Ok(()) => Ok(()),
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => {
                self.lose();
                Err(NotBegun::Lost)
            }
            Err(_) => Err(NotBegun::Busy),
        }
    }

    /// Takes in all answers that have come, and hands on what the sealer could not be given before.
    fn hear(&mut self) {
        self.take_answers();
        for at in 0..self.emptyings.len() {
            let Some(Emptying { number, file: Some(file), .. }) = self.emptyings.get(at) else { continue };
            let (number, file) = (*number, Arc::clone(file));
            if self.request(number, Task::Empty, Some(file.as_fd())).is_err() {
                return;
            }
            if let Some(emptying) = self.emptyings.get_mut(at) {
                emptying.file = None;
            }
        }
    }

    /// Asks the sealer's process whether it is there, or counts how long it has not said so.
    fn ping(&mut self, now: Instant) {
        if !matches!(self.sealer, Sealer::At { is_process: true, .. }) {
            return;
        }
        if let Some(ping) = &mut self.ping {
            ping.silence += now.saturating_duration_since(ping.looked).min(LOOK_MAX);
            ping.looked = now;
            if ping.silence >= SILENCE_MAX {
                self.lose();
            }
            return;
        }
        let number = self.number();
        // Where there is no room for it, other requests are unanswered: any answer will do.
        if let Ok(()) | Err(NotBegun::Busy) = self.request(number, Task::Ping, None) {
            self.ping = Some(Ping { silence: Duration::ZERO, looked: now });
        }
    }

    fn take_answers(&mut self) {
        while let Sealer::At { socket, .. } = &self.sealer {
            let mut bytes = [0; MESSAGE_BYTES];
            match sys::receive(socket.as_fd(), &mut bytes) {
                Ok(received) if received.bytes > 0 => {
                    let (number, errno) = sealer::parts(bytes);
                    self.emptyings.retain(|emptying| emptying.number != number);
                    self.ping = None;
                    self.answer(|seal| seal.number == number, errno as i32);
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                _ => self.lose(),
            }
        }
    }

    /// The answer to a seal that is awaited, if it has come.
    fn answer_to(&self, number: u64) -> Option<i32> {
        let seal = self.seals.iter().find(|seal| seal.number == number);
        seal.map_or(Some(libc::EPIPE), |seal| seal.answer)
    }

    fn answer(&mut self, of: impl Fn(&Seal) -> bool, errno: i32) {
        for seal in self.seals.iter_mut().filter(|seal| seal.answer.is_none() && of(seal)) {
            seal.answer = Some(errno);
        }
        self.seals.retain(|seal| seal.is_awaited || seal.answer.is_none());
    }

    /// The sealer has ended: it will not answer any more. What waits for a lock in it is still emptied, for threads that wait so end
    /// only afterwards.
    fn lose(&mut self) {
        self.sealer = Sealer::Lost;
        self.ping = None;
        self.answer(|_| true, libc::EPIPE);
        self.emptyings.retain(|emptying| emptying.file.is_some());
    }
}

/// A sealer in this process: its socket. It keeps none of the process's descriptors open, which a thread that waits would keep until
/// long after the process was killed; the process's memory it does keep.
fn in_a_thread() -> io::Result<OwnedFd> {
    let (ours, theirs) = sys::socket_pair()?;
    let (tell, told) = mpsc::sync_channel(1);
    let work = move || {
        // Handlers write to descriptors, which are others here.
        sys::block_signals();
        // Nobody listens if the other thread is gone, with the process.
        let _ = tell.send(sys::leave_descriptors(theirs.as_fd()));
        sealer::work(theirs, || ());
    };
    thread::Builder::new().name("memif-sealer".to_owned()).stack_size(64 << 10).spawn(work)?;
    // What it has in its own table is still in ours.
    if let Ok(Some(left_behind)) = told.recv() {
        left_behind.close();
    }
    Ok(ours)
}

/// Gives the memory of our own file back, although a peer may keep the file: what it takes of it from now on is its own. Asked for and
/// not waited for. If the peer has sealed the file against it, the memory stays; if it keeps the file locked, for as long as it does.
pub(crate) fn empty(file: &Arc<File>, name: &Arc<str>) {
    let mut desk = desk();
    let number = desk.number();
    desk.emptyings.push(Emptying { number, name: Arc::clone(name), file: Some(Arc::clone(file)) });
    desk.hear();
}

/// Whether memory may be made for a connection to the server that this name stands for: not while it keeps too much from earlier ones.
pub(crate) fn may_make_memory(name: &Arc<str>) -> Result<(), Reject> {
    let mut desk = desk();
    desk.hear();
    let unreturned = desk.emptyings.iter().filter(|emptying| emptying.name == *name).count();
    if unreturned < UNRETURNED_MAX { Ok(()) } else { Err(Reject::MemoryKept) }
}

/// A request whose answer is awaited.
#[derive(Debug)]
struct Ticket(u64);

impl Ticket {
    /// The answer, if it comes before `end`: 0 or an errno.
    fn answer(&self, end: Instant) -> Option<i32> {
        loop {
            let mut desk = desk();
            // Somebody else may have taken it in already.
            if desk.answer_to(self.0).is_none() {
                desk.hear();
            }
            if let Some(errno) = desk.answer_to(self.0) {
                return Some(errno);
            }
            let Sealer::At { socket, .. } = &desk.sealer else { return Some(libc::EPIPE) };
            let socket = Arc::clone(socket);
            drop(desk);
            let left = end.saturating_duration_since(Instant::now());
            // Somebody else may take the answer in: then this waits for nothing, but not for long.
            if left.is_zero() || sys::wait_readable(socket.as_fd(), left).is_err() {
                return None;
            }
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut desk = desk();
        desk.seals.iter_mut().filter(|seal| seal.number == self.0).for_each(|seal| seal.is_awaited = false);
        desk.seals.retain(|seal| seal.is_awaited || seal.answer.is_none());
    }
}

/// One client's files being sealed, one after the other. Dropped before the end, the request that is under way stays so.
#[derive(Debug)]
pub(crate) struct Sealing {
    /// The interface's name.
    name: Arc<str>,
    /// Those that are to follow.
    files: Vec<File>,
    /// Of the one under way.
    ticket: Option<Ticket>,
    give_up_at: Instant,
}

impl Sealing {
    /// To add the seal to all files, which belong to a client of the interface `name`, within `timeout`.
    pub fn new(name: &str, files: Vec<File>, timeout: Duration) -> Self {
        Self { name: name.into(), files, ticket: None, give_up_at: Instant::now() + timeout }
    }

    /// Whether the sealer has answered what it was asked last, as far as is known: then [`is_done`](Self::is_done) goes on.
    pub fn is_answered(&self) -> bool {
        self.ticket.as_ref().is_some_and(|ticket| desk().answer_to(ticket.0).is_some())
    }

    /// Whether the seals are there; waits for them `patience` at most.
    pub fn is_done(&mut self, patience: Duration) -> Result<bool, Reject> {
        let end = Instant::now() + patience;
        loop {
            if let Some(ticket) = &self.ticket {
                match ticket.answer(end) {
                    None => return self.not_yet(),
                    Some(0) => {}
                    Some(libc::EPERM | libc::EINVAL) => return Err(Reject::RegionUnsealable),
                    Some(errno) => return Err(Reject::NoSealer { errno }),
                }
                self.ticket = None;
            }
            let Some(file) = self.files.pop() else { return Ok(true) };
            match desk().seal(&self.name, file.as_fd()) {
                Ok(number) => self.ticket = Some(Ticket(number)),
                Err(NotBegun::Lost) => return Err(Reject::NoSealer { errno: libc::EPIPE }),
                Err(NotBegun::Busy) => {
                    self.files.push(file);
                    return self.not_yet();
                }
            }
        }
    }

    fn not_yet(&self) -> Result<bool, Reject> {
        if Instant::now() < self.give_up_at { Ok(false) } else { Err(Reject::RegionBusy) }
    }
}
