//! Peregrine's engine: pinned workers that move VXLAN frames between AF_XDP uplinks and memif tenants.
//!
//! [`engine::Engine`] is the way in: it takes a checked [`plan::Plan`] and runs it. The rest, from the outside in:
//!
//! | module | what it is |
//! |---|---|
//! | [`plan`], [`stats`] | what must run; what was counted: plain data for control |
//! | [`engine`] | a plan made to run: workers started, changed, stopped |
//! | `worker`, `mailbox` | one pinned thread; how control talks to it |
//! | `idle`, [`bell`] | what a thread does that has nothing to do, and how it is called |
//! | [`stages`] | the steps of a frame's way: classify, decap, lookup, deliver; collect, encap; answers |
//! | [`tables`], [`fdb`], [`tenants`], `turns` | what the stages look up: networks and remotes; MAC addresses; rings; whose turn it is |
//! | [`answers`], [`limit`] | what is answered for tenants, and how much they may flood |
//! | [`classes`] | which priority class a packet belongs to |
//! | [`xsk`] | UMEM, AF_XDP sockets, the XDP program: the only place that knows xsk-rs and aya |
//! | [`wire`] | headers: checked views and templates, no I/O |
//! | [`counters`], [`waiting`], [`histogram`], [`clock`] | per-worker counters and drop reasons; how long frames wait; cycles and seconds |
//! | [`frame`], [`types`] | the one owner of bytes in a chunk; newtypes |
//! | `sys` | every system call that no crate wraps |
//!
//! # Invariants
//! - A frame has one owner: [`frame::Frame`] is not `Clone`, and errors give it back.
//! - What comes in equals what goes out plus the drops, each with a [`counters::DropReason`].
//! - Workers take no lock, allocate and free nothing, and never wait after start, but where they may sleep, with nothing to do.
//! - Tenant memory is read once, copied and checked; only the copy is used.
#![deny(unsafe_code)]

#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod answers;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod balance;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod bell;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod classes;
#[allow(unsafe_code, reason = "two instructions that have no safe wrapper")]
pub mod clock;
pub mod counters;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod discard;
pub mod engine;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod fdb;
#[allow(unsafe_code, reason = "the one owner of bytes in a chunk: raw memory behind safe methods")]
pub mod frame;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod histogram;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
mod idle;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod lanes;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod limit;
mod mailbox;
#[deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod mesh;
#[deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
mod pinned;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod placement;
pub mod plan;
#[deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod port;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod replay;
#[allow(unsafe_code, reason = "slots that one thread writes and another reads")]
#[deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod ring;
#[deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod stages;
pub mod stats;
mod strangers;
mod sync;
#[allow(unsafe_code, reason = "every system call that no crate wraps is here")]
mod sys;
pub mod tables;
#[deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]
pub mod tenants;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
mod turns;
pub mod types;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod waiting;
#[cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic))]
pub mod wire;
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
mod worker;
#[allow(unsafe_code, reason = "the kernel's rings: xsk-rs leaves the ownership of frames to its caller")]
pub mod xsk;

pub use sys::peer_groups;
