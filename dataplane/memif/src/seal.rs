//! Sealing a client's files so that no page can be taken out of them again, and emptying our own, without waiting for the peer: the
//! program's side of the `sealer`. Used by `offer` (seals) and `region` (empties).
//!
//! A request goes to the sealer over a socket, and its answer comes back over it: whoever looks for one takes in all that have come. A
//! handshake waits for its own for a moment, looks again whenever it is stepped, and gives up after `Limits::seal_timeout`. The
//! sealer goes on waiting for the lock of that file, until its owner lets go or dies.
//!
//! What must hold: for a name at most one seal and 16 emptyings are under way, and `UNDER_WAY_MAX` of each task in all, given up or
//! not. So a tenant can have no more of the sealer than so many files and threads, and all of them no more than these.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Reject;
use crate::sealer::{self, MESSAGE_BYTES, Task};
use crate::sys;

/// Most requests of one task under way, of all names.
const UNDER_WAY_MAX: usize = 32;

static DESK: Mutex<Desk> = Mutex::new(Desk { sealer: Sealer::None, next_number: 0, jobs: Vec::new() });

/// Requests and their answers.
struct Desk {
    sealer: Sealer,
    next_number: u64,
    jobs: Vec<Job>,
}

/// Who does the work.
enum Sealer {
    /// Nobody yet: a thread, as soon as there is work.
    None,
    /// Whoever is at the other end.
    At(Arc<OwnedFd>),
    /// It has ended.
    Lost,
}

/// One request, until its answer has come and was taken.
struct Job {
    number: u64,
    task: Task,
    name: Arc<str>,
    /// 0 or an errno, once it has come.
    answer: Option<i32>,
    /// Somebody will take the answer.
    is_awaited: bool,
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
    desk.sealer = Sealer::At(Arc::new(socket));
}

/// Whether the sealer's process has ended: until another one is started, clients whose memory must be sealed are refused, and our own
/// memory is not taken back from peers that keep it.
pub fn is_lost() -> bool {
    let mut desk = desk();
    desk.hear();
    matches!(desk.sealer, Sealer::Lost)
}

fn desk() -> MutexGuard<'static, Desk> {
    DESK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// Makes a request; gives its number.
    fn begin(
        &mut self,
        task: Task,
        name: &Arc<str>,
        file: BorrowedFd<'_>,
        is_awaited: bool,
    ) -> Result<u64, NotBegun> {
        self.hear();
        let under_way = || self.jobs.iter().filter(|job| job.task == task && job.answer.is_none());
        let of_the_name = under_way().filter(|job| job.name == *name).count();
        if under_way().count() >= UNDER_WAY_MAX || of_the_name >= task.for_a_name() {
            return Err(NotBegun::Busy);
        }
        if matches!(self.sealer, Sealer::None) {
            self.sealer = Sealer::At(Arc::new(in_a_thread().map_err(|_| NotBegun::Busy)?));
        }
        let Sealer::At(socket) = &self.sealer else { return Err(NotBegun::Lost) };
        let number = self.next_number;
        match sys::send(socket.as_fd(), &sealer::message(number, task as u64), Some(file)) {
            Ok(()) => {}
            Err(err) if err.kind() == io::ErrorKind::BrokenPipe => {
                self.lose();
                return Err(NotBegun::Lost);
            }
            Err(_) => return Err(NotBegun::Busy),
        }
        self.next_number += 1;
        self.jobs.push(Job { number, task, name: Arc::clone(name), answer: None, is_awaited });
        Ok(number)
    }

    /// Takes in all answers that have come.
    fn hear(&mut self) {
        while let Sealer::At(socket) = &self.sealer {
            let mut bytes = [0; MESSAGE_BYTES];
            match sys::receive(socket.as_fd(), &mut bytes) {
                Ok(received) if received.bytes > 0 => {
                    let (number, errno) = sealer::parts(bytes);
                    self.answer(|job| job.number == number, errno as i32);
                }
                Err(err) if err.kind() == io::ErrorKind::WouldBlock => return,
                Err(err) if err.kind() == io::ErrorKind::Interrupted => {}
                _ => self.lose(),
            }
        }
    }

    fn answer(&mut self, of: impl Fn(&Job) -> bool, errno: i32) {
        for job in self.jobs.iter_mut().filter(|job| job.answer.is_none() && of(job)) {
            job.answer = Some(errno);
        }
        self.jobs.retain(|job| job.is_awaited || job.answer.is_none());
    }

    /// The sealer has ended: it will not answer any more.
    fn lose(&mut self) {
        self.sealer = Sealer::Lost;
        self.answer(|_| true, libc::EPIPE);
    }
}

/// A sealer in this process: its socket. It keeps none of the process's descriptors open, which a thread that waits would keep until
/// long after the process was killed; the process's memory it does keep.
fn in_a_thread() -> io::Result<OwnedFd> {
    let (ours, theirs) = sys::socket_pair()?;
    let work = move || {
        // Handlers write to descriptors, which are others here.
        sys::block_signals();
        sys::leave_descriptors(theirs.as_fd());
        sealer::work(&Arc::new(theirs));
    };
    thread::Builder::new().name("memif-sealer".to_owned()).stack_size(64 << 10).spawn(work)?;
    Ok(ours)
}

/// Gives the memory of our own file back, although a peer may keep the file: what it takes of it from now on is its own. Asked for and
/// not waited for. If the peer has sealed the file against it, or keeps an earlier one of this name locked, the memory stays.
pub(crate) fn empty(file: &File, name: &Arc<str>) {
    // Nothing else can be done.
    let _ = desk().begin(Task::Empty, name, file.as_fd(), false);
}

/// A request whose answer is awaited.
#[derive(Debug)]
struct Ticket(u64);

impl Ticket {
    /// The answer, if it comes before `end`: 0 or an errno.
    fn answer(&self, end: Instant) -> Option<i32> {
        loop {
            let mut desk = desk();
            desk.hear();
            let job = desk.jobs.iter().find(|job| job.number == self.0);
            if let Some(errno) = job.map_or(Some(libc::EPIPE), |job| job.answer) {
                return Some(errno);
            }
            let Sealer::At(socket) = &desk.sealer else { return Some(libc::EPIPE) };
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
        desk.jobs.iter_mut().filter(|job| job.number == self.0).for_each(|job| job.is_awaited = false);
        desk.jobs.retain(|job| job.is_awaited || job.answer.is_none());
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

    /// Whether the seals are there; waits for them `patience` at most.
    pub fn is_done(&mut self, patience: Duration) -> Result<bool, Reject> {
        let end = Instant::now() + patience;
        loop {
            if let Some(ticket) = &self.ticket {
                match ticket.answer(end) {
                    None => return self.not_yet(),
                    Some(0) => {}
                    Some(libc::EPERM | libc::EINVAL) => return Err(Reject::RegionUnsealable),
                    Some(_) => return Err(Reject::NoSealer),
                }
                self.ticket = None;
            }
            let Some(file) = self.files.pop() else { return Ok(true) };
            match desk().begin(Task::Seal, &self.name, file.as_fd(), true) {
                Ok(number) => self.ticket = Some(Ticket(number)),
                Err(NotBegun::Lost) => return Err(Reject::NoSealer),
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
