//! Where packets come from and where answers go: a memif ring ([`memif`], or [`reconnect`] if its
//! server may go away), AF_XDP sockets ([`xdp`], only to receive) or a UDP socket of the kernel ([`udp`]).
//!
//! The loops of [`sink`](crate::sink) and [`echo`](crate::echo) are written once, over these traits.

pub mod memif;
pub mod reconnect;
pub mod udp;
pub mod xdp;

use peregrine_dataplane::xsk::{self, UplinkInfo};
use serde::Serialize;

use crate::error::Error;
use crate::limits::Wait;
use crate::trailer::Trailer;

/// Packets that are taken at once, at most.
pub const BURST: usize = 64;

/// What every port can do.
pub trait Port {
    /// Bytes of headers that the port has taken off each packet before we see it.
    const HEADERS_TAKEN_OFF: usize;

    /// The trailer of a packet as this port gives it.
    fn trailer(packet: &[u8]) -> Option<Trailer>;

    /// Nothing was there: sleeps until something may be, in the way of `wait`, at most `longest_ns`.
    ///
    /// # Errors
    /// Those of the system call.
    fn rest(&mut self, wait: Wait, longest_ns: u64) -> Result<(), Error>;

    /// If the peer has gone away: who, and what it said. A system call; asked now and then.
    fn gone(&mut self) -> Option<String>;

    /// What the port itself has counted.
    fn statistics(&self) -> PortStatistics;
}

/// A port that packets come from.
pub trait Source: Port {
    /// Takes what is there, at most [`BURST`] packets; `each` gets the time of the look and a packet. Returns how many there
    /// were. Never waits, unless `wait` says so and the port can do both in one system call.
    ///
    /// # Errors
    /// What ends the run: a peer that breaks the rules, a socket that fails.
    fn receive(&mut self, wait: Wait, each: impl FnMut(u64, &[u8])) -> Result<usize, Error>;
}

/// A port's own counters.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum PortStatistics {
    /// Of a memif ring.
    Ring(RingStatistics),
    /// Of a UDP socket.
    Socket(SocketStatistics),
    /// Of AF_XDP sockets.
    Xdp(Box<XdpStatistics>),
}

/// What AF_XDP sockets saw.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct XdpStatistics {
    /// What was asked for and what was got.
    pub uplink: UplinkInfo,
    /// The kernel's counters of each socket.
    pub kernel: Vec<xsk::SocketStatistics>,
}

/// What a memif ring saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct RingStatistics {
    /// Its slots.
    pub size: u16,
    /// How many such rings are read.
    pub queues: usize,
    /// The most packets that were waiting in one at once.
    pub pending_max: u16,
    /// Descriptors that no packet could be read from.
    pub bad_descriptors: u64,
    /// Connections that there were.
    pub connections: u64,
}

/// What a UDP socket saw.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct SocketStatistics {
    /// The kernel's buffer for it, in its own counting.
    pub receive_buffer_bytes: usize,
    /// Datagrams that the kernel dropped because that was full; absent if it does not tell.
    pub drops: Option<u64>,
}
