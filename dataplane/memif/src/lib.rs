//! memif 2.0: packets between two processes of one host over shared memory, in both roles, and proof against a hostile peer.
//!
//! The other side can be DPDK (`net_memif`), VPP, libmemif, gomemif or this crate. Linux only; Ethernet mode only.
//!
//! # Concepts
//!
//! A **client** (in older texts: slave) connects to a **server**'s (master's) socket and names an interface id. The client
//! provides *all* memory: one or more regions, each a file that the server maps as well. In them lie the rings and the packets'
//! buffers. **S2M** rings carry packets from client to server, **M2S** rings from server to client.
//!
//! Every ring has two free-running indexes. The client writes `head` and the server writes `tail`, *on both kinds of ring*; only
//! their meaning changes:
//!
//! | ring | client                                                            | server                                             |
//! |------|-------------------------------------------------------------------|----------------------------------------------------|
//! | S2M  | fills a buffer, moves `head`: a packet is there                   | copies it out, moves `tail`: the buffer is free    |
//! | M2S  | offers an empty buffer with its size, moves `head`                | copies a packet in, moves `tail`: a packet is there |
//!
//! So a server without offered buffers cannot send, and what does not fit is dropped by whoever sends: nobody ever waits for a
//! peer. Each ring also has an eventfd (made by the client), which the sender writes unless the receiver has set the ring's mask.
//!
//! A packet that is longer than a buffer can go into several slots in a row, a **chain**, of which all but the last have the flag
//! NEXT. Not all peers know chains, so they must be asked for, with `chains` in both sides' configurations; [`TxRing::push`] and
//! [`RxRing::next_packet`] then do it by themselves, with up to [`CHAIN_MAX`] buffers for a packet.
//!
//! In this crate a connection is an [`Interface`]: a list of [`RxRing`] and of [`TxRing`] halves, each of which one thread owns,
//! and a [`ControlSocket`]. The halves work alike in both roles. A [`Listener`] gives a [`Handshake`] for each client; a
//! [`Client`] is the other side, and a [`Connector`] one that comes back.
//!
//! ```
//! use peregrine_memif::{ClientConfig, ServerConfig, pair};
//!
//! // Both sides in one process; over a real socket: `Listener::bind` and `Client::connect_blocking`.
//! let (mut tenant, mut host) = pair(ClientConfig::default(), ServerConfig::default())?;
//! tenant.tx[0].push(b"\xff\xff\xff\xff\xff\xff\x02\0\0\0\0\x01\x08\0hello")?;
//! tenant.tx[0].flush()?;
//!
//! // The host sends back whatever has come.
//! let mut packet = [0; 2048];
//! host.rx[0].pending()?;
//! while let Some(taken) = host.rx[0].next_packet() {
//!     let length = taken?.copy_to(&mut packet).ok_or("packet too long")?;
//!     host.tx[0].push(&packet[..length])?;
//! }
//! host.rx[0].release();
//! host.tx[0].flush()?;
//!
//! assert_eq!(tenant.rx[0].pending()?, 1);
//! assert_eq!(tenant.rx[0].next_packet().ok_or("lost")??.len(), 19);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # Life cycle
//!
//! | from         | to           | by whom, how                                                                                  |
//! |--------------|--------------|-----------------------------------------------------------------------------------------------|
//! | nothing      | handshake    | client: [`Connector::step`] or [`Client::connect`]; server: [`Listener::accept`]              |
//! | handshake    | handshake    | either: `step` when the socket is readable, and at the deadline                               |
//! | handshake    | connected    | `step` gives [`Progress::Connected`] (a connector: [`Attempt::Connected`]); only now does the client offer its receive buffers |
//! | handshake    | closed       | error of `step`, deadline, drop; a refusal is sent as DISCONNECT first                        |
//! | connected    | disconnected | [`ControlSocket::poll_disconnect`] says so, a [`Violation`], or our own [`ControlSocket::disconnect`] |
//! | disconnected | closed       | the threads drop their ring halves; the last one unmaps the memory                            |
//! | closed       | handshake    | client: the connector, after a pause that a failed attempt or [`Connector::lost`] begins; server: a new handshake for the same id |
//!
//! Not possible, or not allowed, and why:
//! - *disconnected → connected*: a client that comes back does so with a new handshake and new memory.
//! - *unmapping under a running thread*: each half keeps the memory by itself, so a half that is still polled is harmless; its ring
//!   is just silent.
//! - *two clients on one id*: the lookup passed to [`Handshake::step`] must refuse the second, and because two handshakes can be
//!   under way at once, the caller must look again at [`Progress::Connected`].
//! - *two connections of one connector*: after [`Attempt::Connected`] it rests until [`Connector::lost`], which does nothing in any
//!   other state and so may be called twice.
//! - *a connector that has given up*: there is no such state. [`Attempt::Failed`] says why each attempt failed; drop it when that is
//!   reason enough.
//! - *one half in two threads*: halves are `Send` but every method that moves takes `&mut self`.
//!
//! # Event loops
//!
//! Everything is driven by readiness, and nothing waits for a peer, except [`Client::connect_blocking`] and [`RxRing::wait`], and
//! [`Handshake::step`] for 1 ms at most. Three steps take time for their work, because they make all of a connection's memory present:
//! the handshake's step that finds CONNECT (up to [`ServerConfig::memory_bytes_max`]), and the step of a [`Client`] or [`Connector`] that
//! finds INIT accepted. So handshakes are not for a thread that moves packets.
//! A client can have its memory made beforehand, by a [`RegionPool`]: then only the rings' headers and eventfds are left to make.
//!
//! What to watch, all of it for reading, by level or by edge:
//!
//! | what                  | when ready                                                                            | besides |
//! |-----------------------|---------------------------------------------------------------------------------------|---------|
//! | [`Listener`]          | [`accept`](Listener::accept) until `None`                                             | |
//! | [`Handshake::socket`] | [`step`](Handshake::step)                                                             | at [`Handshake::deadline`], asked again after each step |
//! | [`Connector::socket`] | [`step`](Connector::step); it is another one when [`attempts`](Connector::attempts) has grown | at [`Connector::deadline`], asked again after each step |
//! | [`Interface::control`] | [`poll_disconnect`](ControlSocket::poll_disconnect); it is the handshake's socket, and still registered | |
//! | [`RxRing::event_fd`]  | [`drain_event`](RxRing::drain_event), then bursts until [`arm`](RxRing::arm) says false | every 10 ms: wake-ups can be lost |
//!
//! A socket leaves an epoll set by being closed. An eventfd does not, since it is open at the peer, too: take it out before the ring
//! half is dropped. A thread with very many rings that are mostly quiet can keep a [`Watch`] on each of them ([`RxRing::watch`]) and ask
//! the ring itself only when its index has moved, and now and then. `examples/events.rs` is such a loop with `mio`: a server of several ids on one socket that sleeps when there is
//! nothing to do. `examples/server.rs` is one that polls, and `examples/echo.rs` a blocking client.
//!
//! # Peers and their quirks
//!
//! What other implementations do, what this crate does about it, and the test that shows it.
//!
//! | a peer …                                          | so this crate …                                          | test |
//! |---------------------------------------------------|----------------------------------------------------------|------|
//! | libmemif, DPDK: sets all heads and tails to 0 when it handles CONNECT or CONNECTED; VPP does not | as client offers buffers only after CONNECTED, and starts from the indexes that stand there then | `buffers_are_offered_only_after_connected_and_indexes_read_afresh` |
//! | libmemif client: offers no buffers until its program refills the queue | sends nothing: [`PushError::Full`]   | `a_client_without_buffers_gets_nothing` |
//! | DPDK, libmemif servers: announce 255 rings, refuse those beyond their own queues | says which ring was refused ([`Sent`]) | `a_server_that_refuses_a_ring_shows_which` |
//! | DPDK server (22.11 and newer): a thread of it that polls while a client comes or goes can die of SIGSEGV, rarely, on busy cores: it computes a ring's address before it asks whether there is a connection | can do nothing about it, but has the first S2M ring at offset 0, which DPDK takes for none until it is connected: with several queues, or if it sends by itself, let the server poll a port only once its link is up | `buffers_are_offered_only_after_connected_and_indexes_read_afresh` (the offset); it happens between two DPDKs, too |
//! | DPDK server: takes rings that it was not given for ring 0 | brings [`queue_pairs`](ClientConfig::queue_pairs) rings each way, unless HELLO allows less: set it to the server's queues | none: it is configuration |
//! | VPP client: announces its configured ring size, though it allocates what HELLO allows | as server always allows the largest | `hello_says_what_the_limits_are` |
//! | VPP, DPDK: count the slots of all rings in 16 bits | refuses such a configuration ([`ConfigError::Slots`])   | `nonsense_in_the_configuration_is_refused` |
//! | DPDK: copies what is longer than its own buffers unchecked when it receives | never fills a buffer beyond its size; set [`buffer_bytes`](ClientConfig::buffer_bytes) to the peer's `bsize` | `a_small_offer_stays_for_a_small_packet`, `a_packet_that_does_not_fit_leaves_its_slot_to_the_next` |
//! | DPDK server: does not look at the size of the buffer that it fills | never offers less than 2048 bytes, and refuses what is longer than was offered | `nonsense_in_the_configuration_is_refused`, `a_server_that_lies_is_found_out` |
//! | VPP server: refuses packets of 0 and of more than 9216 bytes | sends none of 0; keep packets to VPP at 9216 bytes | `a_packet_that_does_not_fit_leaves_its_slot_to_the_next`; none for the upper limit, which is VPP's own |
//! | all: chains are where their errors are (stale NEXT, wrong lengths, crashes) | clears a stale NEXT, and never takes a piece of a chain for a packet | `a_slot_that_had_next_is_given_back_without_it`, `a_chain_cut_by_a_burst_is_still_one_chain`, `a_chain_that_is_cut_off_is_unfinished_and_so_is_its_rest`, `a_chain_with_anything_wrong_is_one_error_for_all_its_slots` |
//! | DPDK: Ethernet only                               | likewise                                                 | `init_is_checked` |
//! | libmemif: takes any region in ADD_RING as server, and its interrupt set-up confuses the directions: a client made for it may never have been told | as server checks every region and index, and counts the directions apart | `rings_are_checked_when_they_come`, `rings_are_checked_in_memory_at_connect` |
//! | gomemif: always sleeps on the eventfd             | wakes unless the mask is set                             | `the_mask_decides_about_waking` |
//! | DPDK programs: crash with more rings one way than the other; VPP: miscounts with zero-copy | brings as many each way, also if HELLO allows more of one kind; its counters are its own affair | `the_limits_in_hello_are_kept`, `several_queues_do_not_mix` |
//! | VPP client: zero-copy unless told otherwise, so many regions, and buffers anywhere in them | takes any arrangement of up to [`regions_max`](Limits::regions_max) regions | `rings_and_buffers_may_lie_anywhere` |
//! | libmemif: full barriers where lighter ones were meant | need not know: it is only slower                     | none: nothing shows |
//! | abstract names are written `@x`, `abstract:x` or `socket-abstract=yes,socket=x` | uses the same bytes: NUL and the name, not padded | `an_abstract_name_counts_exactly_its_bytes` |
//! | DPDK: options `role`, `id`, `bsize`, `rsize`, `socket`, `socket-abstract` (default yes), `secret`; a server says "ID not found" until its port is started, a client never comes back by itself | as client tries again ([`Connector`]); as server can do nothing for such a client | `a_server_that_is_not_ready_yet_is_asked_again` |
//! | libmemif, VPP listeners: the kernel adds credentials to what their sockets receive | takes credentials next to a descriptor, should its own socket have them | `credentials_next_to_a_descriptor_are_no_harm` |
//!
//! # Security
//!
//! The peer can write every byte of the shared memory at any time, and is not believed:
//! - There is no reference to shared memory, anywhere, but to single atomics (a ring's indexes and flags). A descriptor is copied once
//!   and only the copy is checked and used; a packet is copied to private memory by [`Packet::copy_to`], and is to be parsed there.
//! - Region, offset and length are checked against the mapping, in 64 bits; the peer's index may not run ahead of what the ring can
//!   hold; our own positions are never read back.
//! - Chains are refused unless [`ServerConfig::chains`] or [`ClientConfig::chains`] allows them. Then each piece is checked like a
//!   packet, there are at most [`CHAIN_MAX`] of them, and a chain that is wrong is refused as a whole: no part of it is ever taken
//!   for a packet.
//! - Regions must be plain memory, sealed by the client against shrinking; the server maps them, then seals them against holes
//!   (F_SEAL_FUTURE_WRITE, Linux 5.1) and then makes every page present (Linux 5.14; older kernels leave that to the first
//!   access). So the client can neither truncate them, which would make our next access a SIGBUS that ends the process, nor punch
//!   holes, which would let our threads sleep in page faults while it does.
//! - Pages are made present as if they were read: memory files are never write-protected, so the first write takes no fault either. Where the
//!   system lets shared memory have larger pages (`/sys/kernel/mm/transparent_hugepage/hugepages-64kB/shmem_enabled` says `advise` or `always`), a
//!   client asks for them: a connection is then made in half the time, and no larger.
//! - What is left of page faults is the kernel's own business: memory that it swaps out or moves (compaction; huge pages, also at
//!   the client's request) is faulted in again at the next access, and a client's cgroup may have its pages swapped out. No such
//!   fault waits for the client. Use no swap, or mlockall(2) with MCL_ONFAULT (without it, see [`guard_memory`]).
//!   SIGBUS can also still come from broken memory (ECC), and before Linux 5.14 from a page that could not be allocated.
//! - **Holes.** Memory that was not sealed against them, which is that of [`ServerConfig::allow_unsealed`] and all that we bring as client,
//!   can be punched by the peer while it is used. An access of ours to a place that is being punched sleeps until the peer's thread is
//!   done with its hole, and can be neither interrupted nor killed; that thread goes on only when the peer's scheduling lets it. One that
//!   it has starved (SCHED_IDLE or nice 19 beside a busy thread of its own on the same core) can hold our thread for **seconds**, and
//!   begin again. memif's memory files leave no way to stop this but that seal. So a peer of these two kinds must be trusted as far as
//!   the thread that serves it; what makes it harder is a cgroup of its own with a fair `cpu.weight` and few tasks, and no system call
//!   that sets a thread's policy, priority or affinity. Our own memory can neither shrink nor grow, so that a hole is at most as large as
//!   that.
//! - [`ServerConfig::allow_unsealed`] gives all that up, for peers that cannot be sealed (old programs, VPP with huge pages); use it
//!   only for peers that are trusted like this process. With [`guard_memory`], which handles SIGBUS, such a peer that takes its
//!   memory away loses its own connection ([`Violation::MemoryLost`]) instead of ending the process; without it the process dies.
//!   Holes remain possible. The guard is for this alone: it does not help against broken memory.
//! - A client can keep its file locked while it is to be sealed, for as long as it likes, and whoever waits for the lock cannot be
//!   stopped, not even by SIGKILL. So this is done elsewhere: it costs the server's event loop 1 ms, the client is refused after
//!   [`Limits::seal_timeout`], and its interface's name until it lets go. Elsewhere is a process that the program starts with
//!   [`sealer::start`]; then that one alone is held up. **Without it** it is a thread of this process: when this process is killed or
//!   ends, its listening sockets are closed and can be bound again, but it does not go away completely, and with its address space
//!   mapped sockets (AF_XDP queues, packet rings) stay as they are, until the client lets go or dies. Programs with such sockets, and
//!   those that must be restarted whatever their clients do, start a sealer.
//! - Of one interface at most one file waits to be sealed at a time, and none because of another interface's client.
//! - As client we pay for the memory, and the server can keep it: it is made only once INIT is accepted, and its pages are taken back
//!   when the connection has ended. A server can prevent that, by a seal of its own ([`ClientConfig::forbid_seals`] forbids it), or by a
//!   lock: so one that keeps the memory of 8 earlier connections locked ([`sealer::UNRETURNED_MAX`]) gets no more
//!   ([`Reject::MemoryKept`]), and a [`Connector`] asks one that takes memory and hangs up less and less often ([`Backoff`]). And it can
//!   punch holes into it while it is used (above).
//! - What a [`RegionPool`] gives was never another connection's: nothing of one server is ever shown to another.
//! - Whoever listens where a client connects gets the secret: [`ClientConfig::server_uid`] says who that must be.
//! - The eventfds that a peer shares with us are written and read in ways that never wait for it (writing: where `io_setup` is to
//!   be had, see [`warm_up`]). But waking is not free of the peer's influence: the kernel walks everything that waits for the
//!   eventfd (epoll sets, sleeping threads), and a peer can register a great many, so that one wake-up costs more. Whoever runs a
//!   worker should watch the time of [`TxRing::flush`] and disconnect a peer whose wake-ups are slow.
//! - Each step of the handshake has limits ([`Limits`], [`ServerConfig`]) and a time; unwanted descriptors are closed.
//! - Names and texts of the peer contain only printable ASCII by the time the caller sees them.
//! - A server copies all packets. The memory stays the tenant's: never put another tenant's bytes into a region, apart from packets
//!   meant for it.
//!
//! What is left to the caller: socket permissions ([`ListenerConfig`]), users ([`Request::credentials`]), disconnecting a peer that
//! keeps sending bad descriptors, and limiting the work done for one peer at a time (every call here is bounded).
//!
//! # Code map
//!
//! `addr`, `message`, `channel` → `listener`, `server` with `offer`, `seal` and `sealer`, `connector`, `client` with `memory` and `pool` → `interface`
//! with `rx`, `tx`, `chain` → `cursor`, `ring`, `region` with `guard` and `pages` → `sys`. Code with `unsafe` is in `ring` (headers and
//! descriptors), `region` (copies), `sys` (system calls), `doorbell` (those for waking) and `guard` (the signal handler), and nowhere
//! else. No public function is unsafe.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::unreachable
    )
)]

/// Where a socket lives.
mod addr;
/// One packet in several buffers.
mod chain;
/// Messages over a socket.
mod channel;
/// The client's handshake.
mod client;
/// A client that connects again.
mod connector;
/// The ring's index protocol, without memory.
#[cfg(not(loom))]
mod cursor;
#[cfg(loom)]
#[doc(hidden)]
pub mod cursor;
/// Waking a peer without waiting for it.
mod doorbell;
/// Everything that can go wrong.
mod error;
/// Surviving memory that is taken away.
mod guard;
/// An established connection.
mod interface;
/// The server's socket.
mod listener;
/// The client's shared memory.
mod memory;
/// The control messages, to the byte.
mod message;
/// What a client offers, checked.
mod offer;
/// Memory mapped and made present in little time.
mod pages;
/// Both sides in one process.
mod pair;
/// Clients' memory, made beforehand.
mod pool;
/// Mapped memory and spans of it.
mod region;
/// One ring in shared memory.
mod ring;
/// The receiving half.
mod rx;
/// Sealing a client's memory.
mod seal;
/// Where files are sealed that a peer may keep locked: a process of its own, if the program starts one.
pub mod sealer;
/// The server's handshake.
mod server;
/// System calls.
mod sys;
/// The sending half.
mod tx;

pub use addr::{ADDRESS_BYTES_MAX, AddrError, SocketAddr};
pub use chain::CHAIN_MAX;
pub use client::{Client, ClientConfig};
pub use connector::{Attempt, Backoff, Connector};
pub use doorbell::warm_up;
pub use error::{
    BadDescriptor, ConfigError, DisconnectReason, HandshakeError, PushError, Reject, Sent, Violation,
};
pub use guard::guard_memory;
pub use interface::{ControlSocket, Interface};
pub use listener::{Limits, Listener, ListenerConfig};
pub use message::Secret;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use message::recode;
pub use pair::pair;
pub use pool::{RegionPool, RegionPoolStatus};
pub use ring::{Role, Watch};
pub use rx::{Packet, RxRing};
pub use server::{Handshake, Progress, Refusal, Request, ServerConfig};
pub use sys::Credentials;
pub use tx::TxRing;

/// Shortest packet, in bytes: an Ethernet header.
pub const PACKET_BYTES_MIN: u32 = 14;

#[cfg(test)]
mod tests;
