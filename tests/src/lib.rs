//! Fixtures for tests that need the whole: hosts in network namespaces with real wires, the programs as a user runs
//! them, and the kernel, DPDK or a hand-made peer at the other end.
//!
//! ```text
//!  far                                   near
//!  ┌───────────────────────────┐  wire  ┌──────────────────────────────────────┐
//!  │ vx: the kernel's vxlan     │  far0  │ near0: peregrine run ── memif ── …    │
//!  │     10.42.0.2, VNI 42      ├────────┤ 192.0.2.1                            │
//!  │ 192.0.2.2                  │        │                                      │
//!  └───────────────────────────┘        └──────────────────────────────────────┘
//! ```
//!
//! [`Net`] is the two hosts, [`Daemon`] the program on the near one, [`RawSocket`] a way to put any bytes on a device
//! and to see what passes there. Everything is removed when it is dropped, also after a panic; a daemon that is
//! dropped by a panic prints its counters. Nothing sleeps to let something happen: [`until`] waits for conditions.

mod daemon;
mod guest;
mod neighbour;
mod net;
mod ovs;
mod pcap;
mod raw;
mod testpmd;
mod waiters;

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use peregrine_control::lab::Process;
use serde_json::Value;

pub use daemon::{Daemon, Ended, Tenant, totals};
pub use guest::{Guest, Memory, frame, serve};
pub use neighbour::{Case, beside};
pub use net::{FAR, FAR_OVERLAY, NEAR, Net, VNI, inside, ping, ping_patiently};
pub use ovs::OpenVswitch;
pub use pcap::{tshark, write_pcap};
pub use raw::RawSocket;
pub use testpmd::{TestpmdLink, TestpmdSetup, answering_testpmd, forwarded};
pub use waiters::Waiters;

/// What works at all works within this on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(15);

/// Waits until `condition` holds.
///
/// # Panics
/// If it does not within [`PATIENCE`].
#[track_caller]
pub fn until(what: &str, condition: impl FnMut() -> bool) {
    assert!(within(PATIENCE, condition), "not within {PATIENCE:?}: {what}");
}

/// Whether `condition` comes to hold within `time`.
pub fn within(time: Duration, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + time;
    while !condition() {
        if Instant::now() >= deadline {
            return false;
        }
        // Between two looks, so that the looking does not take the processor from what is waited for.
        std::thread::sleep(Duration::from_millis(2));
    }
    true
}

/// A program of this workspace, as built beside the tests.
///
/// # Panics
/// If it has not been built.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("this program's path");
    let profile = test.parent().and_then(|deps| deps.parent()).expect("target/<profile>/deps/<test>");
    let path = profile.join(name);
    assert!(path.is_file(), "{} is missing: build it with `cargo build --workspace --bins`", path.display());
    path
}

/// The core for the worker of a daemon (the last one that we may use) and one for everything else (the first).
///
/// # Panics
/// If the kernel does not tell.
pub fn cores() -> (usize, usize) {
    let cores = peregrine_control::preflight::allowed_cores().expect("the cores that we may use");
    let core = |core: Option<&peregrine_dataplane::types::CoreId>| core.expect("a core").0;
    (core(cores.last()), core(cores.first()))
}

/// Runs a program to its end.
///
/// # Panics
/// If it fails; with what it said.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    peregrine_control::lab::run(command).unwrap_or_else(|error| panic!("{error}"))
}

/// Asks a program to end and reads the report that it prints.
///
/// # Panics
/// If it fails or prints no JSON.
#[track_caller]
pub fn report(process: Process) -> Value {
    let text = process.stop(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in: {text}"))
}

/// Random numbers that are the same in every run (splitmix64).
#[derive(Clone, Debug)]
pub struct Random(pub u64);

impl Random {
    /// The next one.
    pub fn word(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// One below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        (self.word() % end.max(1) as u64) as usize
    }

    /// A random byte.
    pub fn byte(&mut self) -> u8 {
        self.word() as u8
    }
}
