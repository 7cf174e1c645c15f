//! Peregrine's daemon and its command line. The binary `peregrine` is [`cli::main`]; everything is a library so
//! that tests can use it.
//!
//! The daemon is one control thread that never touches a frame: it starts the engine, keeps next hops and tenants
//! up to date in it, and answers questions. Workers go on with what was last published, whatever happens here.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::unreachable))]

// The control socket's server.
pub mod api;
// The arguments, and what each subcommand does.
pub mod cli;
// The control socket's client.
pub mod client;
// What containers are given: veth pairs into their namespaces.
pub mod container;
// The control thread: start, loop, stop.
pub mod daemon;
// `peregrine demo`.
pub mod demo;
// The control socket's methods about networks, ports and endpoints.
pub mod declared;
// `peregrine doctor`.
pub mod doctor;
// What can go wrong, in one line each.
pub mod error;
// The control socket's methods about addresses and remotes.
pub mod forwarding;
// Hosts on one machine, for the demo and for tests.
pub mod lab;
// The control socket's methods.
pub mod methods;
// What is declared at run time: networks, ports and endpoints, and their file.
pub mod model;
// What must be true before anything is started.
pub mod pools;
pub mod preflight;
// `status` and `stats` for people.
pub mod render;
// JSON-RPC, without I/O.
pub mod rpc;
// The control socket's methods about rules.
pub mod rules;
// Socket files.
pub mod socket;
// The process that seals tenants' memory.
pub mod sealer;
// What `status` tells.
pub mod status;
// Columns and figures.
pub mod table;
// The memif tenants: listeners, handshakes, connections.
pub mod tenants;
// Next hops, from the kernel.
pub mod underlay;
