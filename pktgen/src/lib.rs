//! The packet generator's parts: what `peregrine-pktgen` is made of, for its own tests and for other tools.
//!
//! | module | what it is |
//! |---|---|
//! | [`trailer`] | the 18 bytes at the end of each payload: flow, number, intended departure |
//! | [`template`] | a frame prepared once, finished for each packet |
//! | [`pacer`] | open loop: when each packet is meant to leave |
//! | [`profile`] | what is sent: networks, flows, sizes, classes, from flags or TOML |
//! | [`replay`] | what is sent: a capture file |
//! | [`rng`] | random choices that a seed repeats |
//! | [`tracker`] | what was lost, came twice or out of order, in bounded memory |
//! | [`latency`] | histograms of nanoseconds and their percentiles |
//! | [`classes`], [`floor`] | packets reported apart; the generator's own latency |
//! | [`limits`] | when a run ends |
//! | [`port`] | where packets come from and answers go: memif, UDP socket |
//! | [`send`], [`sink`], [`echo`] | three commands |
//! | [`search`] | the fourth: sender and receiver in one, for the highest rate without loss |
//! | [`cli`], [`report`], [`progress`] | words in, words out |
//! | [`clock`], [`error`] | CLOCK_MONOTONIC; what can go wrong |
//!
//! # Invariants
//! - The loops allocate nothing, take no lock and write no log line per packet; system calls are per burst at most.
//! - What a packet carries is when it was *meant* to leave, so that a stall of the generator shows as latency.
//! - Every run is bounded, or ends at a signal, and then reports what was measured so far.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

pub mod classes;
pub mod cli;
pub mod clock;
pub mod echo;
pub mod error;
pub mod floor;
pub mod latency;
pub mod limits;
pub mod pacer;
pub mod port;
pub mod profile;
pub mod progress;
pub mod replay;
pub mod report;
pub mod rng;
pub mod search;
pub mod send;
pub mod sink;
pub mod template;
pub mod tracker;
pub mod trailer;
