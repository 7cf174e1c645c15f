//! Sealing a client's files so that no page can be taken out of them again, without waiting for the client. Used by `offer`.
//!
//! Adding a seal takes the inode's lock, and the owner of the file can hold that for as long as it likes (a write(2) into the
//! file from memory whose page fault it serves itself, through FUSE or userfaultfd). So a thread of its own does it: the handshake
//! waits for it a moment, looks again whenever it is stepped, and gives up when that has gone on for `GIVE_UP_AFTER`. Such a thread
//! cannot be stopped: it stays, asleep, until the owner lets go of the lock or dies (this process cannot end completely before that
//! either).
//!
//! What must hold: as long as an interface name has a thread that was given up, whatever the reason, no other is started for it.
//! So a name never has more of them than it had handshakes under way at one moment.

use std::fs::File;
use std::io;
use std::mem;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::Reject;
use crate::sys;

/// Longest time for the seals. They take microseconds if nobody holds the lock; the rest is for a busy machine.
const GIVE_UP_AFTER: Duration = Duration::from_millis(200);

/// Sealing threads that were given up and have not ended, by interface name.
static LATE: Mutex<Vec<(String, Receiver<io::Result<()>>)>> = Mutex::new(Vec::new());

/// One client's files being sealed. Dropped before the end, it counts as late.
#[derive(Debug)]
pub(crate) struct Sealing {
    /// The interface's name.
    name: String,
    /// `None` once the thread has ended.
    result: Option<Receiver<io::Result<()>>>,
    give_up_at: Instant,
}

impl Sealing {
    /// Begins to add the seal to all files, which belong to a client of the interface `name`.
    pub fn start(name: &str, files: Vec<File>) -> Result<Self, Reject> {
        let mut late = LATE.lock().unwrap_or_else(PoisonError::into_inner);
        late.retain(|(_, result)| matches!(result.try_recv(), Err(TryRecvError::Empty)));
        if late.iter().any(|(of, _)| of == name) {
            return Err(Reject::RegionBusy);
        }
        drop(late);
        let (done, result) = mpsc::sync_channel(1);
        let work = move || {
            let sealed = files.iter().try_for_each(sys::seal_against_holes);
            // Closed before anybody goes on.
            drop(files);
            // Nobody listens any more if it took too long.
            let _ = done.send(sealed);
        };
        thread::Builder::new()
            .name("memif-seal".to_owned())
            .stack_size(64 << 10)
            .spawn(work)
            .map_err(|_| Reject::RegionUnsealable)?;
        let give_up_at = Instant::now() + GIVE_UP_AFTER;
        Ok(Self { name: name.to_owned(), result: Some(result), give_up_at })
    }

    /// Whether the seals are there; waits for them `patience` at most.
    pub fn is_done(&mut self, patience: Duration) -> Result<bool, Reject> {
        let Some(result) = &self.result else { return Ok(true) };
        let sealed = match result.recv_timeout(patience) {
            Err(RecvTimeoutError::Timeout) if Instant::now() < self.give_up_at => return Ok(false),
            Err(RecvTimeoutError::Timeout) => return Err(Reject::RegionBusy),
            Err(RecvTimeoutError::Disconnected) => Err(Reject::RegionUnsealable),
            Ok(sealed) => sealed.map_err(|_| Reject::RegionUnsealable),
        };
        self.result = None;
        sealed.map(|()| true)
    }
}

impl Drop for Sealing {
    fn drop(&mut self) {
        if let Some(result) = self.result.take() {
            LATE.lock().unwrap_or_else(PoisonError::into_inner).push((mem::take(&mut self.name), result));
        }
    }
}
