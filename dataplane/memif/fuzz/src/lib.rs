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

use std::time::{Duration, Instant};

/// How many files this process has open.
pub fn open_files() -> usize {
    std::fs::read_dir("/proc/self/fd").expect("/proc is mounted").count()
}

/// The input has been dealt with: as many files are open as before. A sealing thread may take a moment to close its own.
pub fn assert_open_files(before: usize) {
    let deadline = Instant::now() + Duration::from_secs(5);
    while open_files() != before {
        assert!(Instant::now() < deadline, "{} files open, {before} before the input", open_files());
        std::thread::yield_now();
    }
}
