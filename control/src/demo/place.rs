//! Where a run of the demo keeps its files, and that there is one run at a time.

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{DemoError, hosts};
use crate::lab::Namespace;

/// Where the runs' sockets and configs are, each in a directory of its own. Fixed, so that a run cleans up after one
/// that was killed; and its own, because a program that was just being started at the kill goes on for some seconds
/// looking for the socket that it was told, and must not find the next run's.
const DIRECTORY: &str = "/run/peregrine-demo";

/// A lock that is still taken after this belongs to a demo that runs.
const LOCK_PATIENCE: Duration = Duration::from_secs(1);

/// The directory of this run. Dropped, it is gone.
#[derive(Debug)]
pub(super) struct Place {
    directory: PathBuf,
    /// Held while the demo runs; the kernel lets go of it even if we are killed.
    _lock: File,
}

impl Place {
    /// Makes it, and removes what a killed run left, of whichever scenario.
    ///
    /// # Errors
    /// Another run that still goes on; a directory that cannot be made.
    pub(super) fn take() -> Result<Place, DemoError> {
        let lock = lock()?;
        for name in hosts::left_behind() {
            drop(Namespace::adopt(name));
        }
        let directory = Path::new(DIRECTORY).join(std::process::id().to_string());
        let _absent = std::fs::remove_dir_all(DIRECTORY);
        std::fs::create_dir_all(&directory)
            .map_err(|error| DemoError::Here(format!("cannot make {DIRECTORY}: {error}")))?;
        Ok(Place { directory, _lock: lock })
    }

    /// A file of this run.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.directory.join(name)
    }

    /// The same, with something in it.
    ///
    /// # Errors
    /// If it cannot be written.
    pub(super) fn write(&self, name: &str, content: impl AsRef<[u8]>) -> Result<PathBuf, DemoError> {
        let path = self.file(name);
        std::fs::write(&path, content)
            .map_err(|error| DemoError::Here(format!("cannot write {}: {error}", path.display())))?;
        Ok(path)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _left_for_the_next_run = std::fs::remove_dir_all(DIRECTORY);
    }
}

/// One demo at a time: two would fight for the namespaces' names.
fn lock() -> Result<File, DemoError> {
    let path = Path::new("/run/peregrine-demo.lock");
    let file = File::create(path)
        .map_err(|error| DemoError::Here(format!("cannot make {}: {error}", path.display())))?;
    // A demo that was killed while it started a program leaves the lock to that program until its `exec`.
    let deadline = Instant::now() + LOCK_PATIENCE;
    let mut locked = file.try_lock();
    while matches!(locked, Err(TryLockError::WouldBlock)) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
        locked = file.try_lock();
    }
    match locked {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(DemoError::Here("another demo is running: wait until it is done".into()))
        }
        Err(TryLockError::Error(error)) => {
            Err(DemoError::Here(format!("cannot lock {}: {error}", path.display())))
        }
    }
}
