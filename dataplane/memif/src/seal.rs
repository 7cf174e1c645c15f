//! Sealing a client's files so that no page can be taken out of them again, without waiting for the client.
//!
//! Adding a seal takes the inode's lock, and the owner of the file can hold that for as long as it likes (a write(2) into the
//! file from memory whose page fault it serves itself, through FUSE or userfaultfd). So a thread of its own does it, and the
//! handshake gives up on it after `WAIT_MAX`. Such a thread cannot be stopped: it stays, asleep, until the owner lets go of the
//! lock or dies (this process cannot end completely before that either). There is at most one for each interface name.

use std::fs::File;
use std::io;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::thread;
use std::time::Duration;

use crate::error::Reject;
use crate::sys;

/// Longest wait for the seals. They take microseconds if nobody holds the lock; the rest is for a busy machine.
const WAIT_MAX: Duration = Duration::from_millis(200);

/// Sealing threads that did not end in time, by interface name.
static LATE: Mutex<Vec<(String, Receiver<io::Result<()>>)>> = Mutex::new(Vec::new());

/// Adds the seal to all files, which belong to a client of the interface `name`.
pub(crate) fn seal(name: &str, files: Vec<File>) -> Result<(), Reject> {
    let is_late = |receiver: &Receiver<_>| matches!(receiver.try_recv(), Err(TryRecvError::Empty));
    let mut late = LATE.lock().unwrap_or_else(PoisonError::into_inner);
    late.retain(|(_, receiver)| is_late(receiver));
    if late.iter().any(|(of, _)| of == name) {
        return Err(Reject::RegionBusy);
    }
    // Not held while waiting: other interfaces may be served by other threads.
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
    match result.recv_timeout(WAIT_MAX) {
        Ok(sealed) => sealed.map_err(|_| Reject::RegionUnsealable),
        Err(RecvTimeoutError::Disconnected) => Err(Reject::RegionUnsealable),
        Err(RecvTimeoutError::Timeout) => {
            LATE.lock().unwrap_or_else(PoisonError::into_inner).push((name.to_owned(), result));
            Err(Reject::RegionBusy)
        }
    }
}

/// Enters a sealing thread that ends when the result is dropped.
#[cfg(test)]
pub(crate) fn pretend_late(name: &str) -> mpsc::SyncSender<io::Result<()>> {
    let (done, result) = mpsc::sync_channel(1);
    LATE.lock().unwrap().push((name.to_owned(), result));
    done
}
