//! What both fuzz targets use: the input as a list of operations, a peer that is nothing but a socket and memory, and fences.
//!
//! The targets use the crate from outside, like any program; the peer speaks the protocol by itself, with none of the crate's
//! code. An input is a text that can be written and read by hand: one letter for each operation, then its operands. Bytes that
//! are no operation are passed over, so that every input means something. The corpus holds examples.

pub mod fence;
pub mod input;
pub mod memory;
pub mod model;
pub mod peer;

use std::sync::OnceLock;
use std::time::{Duration, Instant};

/// What this process holds of the kernel's: open files and threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Holdings {
    files: usize,
    threads: usize,
}

impl Holdings {
    /// What is held between two inputs at most. The fuzzer's own files may be others each time, its threads are not; the sealer of this process
    /// is set up at the first connection, and stays: a file and up to three threads.
    pub fn at_rest() -> Self {
        static THREADS: OnceLock<usize> = OnceLock::new();
        let threads = *THREADS.get_or_init(|| {
            let threads = Self::count().threads;
            drop(peregrine_memif::pair(Default::default(), Default::default()).expect("a pair"));
            threads + 3
        });
        Self { threads, ..Self::count() }
    }

    fn count() -> Self {
        let count = |folder| std::fs::read_dir(folder).expect("/proc is mounted").count();
        Self { files: count("/proc/self/fd"), threads: count("/proc/self/task") }
    }

    /// After an input nothing more may be held than before. The threads that seal a region or empty ours take a moment to end, and until it
    /// has, the leak detector takes what it is about to free for lost.
    pub fn assert_given_back(&self) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let now = Self::count();
            if now.files == self.files && now.threads <= self.threads {
                return;
            }
            assert!(Instant::now() < deadline, "{now:?}, at rest {self:?}");
            std::thread::yield_now();
        }
    }
}
