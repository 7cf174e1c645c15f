//! The control half of an uplink: what was got, the counters, and the VNIs that are served.
//!
//! Owned by the control thread. Dropping it detaches the XDP program; the sockets close when their
//! [`WorkerPort`](super::WorkerPort)s are gone as well.

use std::os::fd::{AsFd, OwnedFd};

use serde::Serialize;

use crate::plan::{Early, XdpMode};
use crate::sys;
use crate::types::{MacAddr, QueueId, Vni};

use super::program::Program;
use super::{EarlyRules, Interface, SteeringCounters, XskConfig, XskError};

/// What the kernel gave, beside what was asked for.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct UplinkInfo {
    /// Name of the interface.
    pub interface: String,
    /// Its driver.
    pub driver: String,
    /// Its number.
    pub ifindex: u32,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its MTU.
    pub mtu: u32,
    /// The queues that have a socket.
    pub queues: Vec<QueueId>,
    /// How many queues it has.
    pub queue_count: u32,
    /// The mode asked for.
    pub mode_requested: XdpMode,
    /// The mode got: read back from the kernel.
    pub mode_actual: ActualMode,
    /// Whether second sockets for urgent frames were asked for.
    pub early_requested: Early,
    /// Whether every queue has one.
    pub early: bool,
    /// Why not, if they were asked for: the first queue that has none, and the kernel's reason.
    pub early_refused: Option<String>,
    /// Packets may be longer than a chunk (multi-buffer).
    pub multi_buffer: bool,
    /// The frames lie on huge pages.
    pub huge_pages: bool,
    /// Bytes per chunk.
    pub chunk_size: u32,
    /// Descriptors per ring.
    pub ring_size: u32,
    /// Chunks, over all workers; uplinks that were opened together share them.
    pub frames: usize,
}

/// How frames come in.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ActualMode {
    /// The NIC writes into our memory.
    ZeroCopy,
    /// Native XDP; the kernel copies.
    Copy,
    /// XDP on socket buffers; the kernel copies.
    Generic,
}

impl UplinkInfo {
    /// There is no interface: frames come from memory.
    pub(crate) fn memory(config: &XskConfig, frames: usize) -> UplinkInfo {
        UplinkInfo {
            interface: String::new(),
            driver: "memory".into(),
            ifindex: 0,
            mac: MacAddr([0; 6]),
            mtu: u32::from(u16::MAX),
            queues: Vec::new(),
            queue_count: 0,
            mode_requested: config.mode,
            mode_actual: ActualMode::Copy,
            early_requested: config.early,
            early: false,
            early_refused: None,
            multi_buffer: config.multi_buffer,
            huge_pages: false,
            chunk_size: config.chunk_size,
            ring_size: config.ring_size,
            frames,
        }
    }

    pub(super) fn new(
        config: &XskConfig,
        interface: &Interface,
        sockets: &[ControlSocket],
        early_refused: Option<String>,
        huge_pages: bool,
        frames: usize,
    ) -> UplinkInfo {
        UplinkInfo {
            interface: interface.name.clone(),
            driver: interface.driver.clone(),
            ifindex: interface.index,
            mac: interface.mac,
            mtu: interface.packet_mtu(),
            queues: sockets.iter().filter(|socket| !socket.urgent).map(|socket| socket.queue).collect(),
            queue_count: interface.queue_count,
            mode_requested: config.mode,
            mode_actual: actual_mode(config.mode, sockets),
            early_requested: config.early,
            early: config.early != Early::Off && early_refused.is_none(),
            early_refused,
            multi_buffer: config.multi_buffer,
            huge_pages,
            chunk_size: config.chunk_size,
            ring_size: config.ring_size,
            frames,
        }
    }
}

/// Zero-copy only if all sockets have it.
fn actual_mode(requested: XdpMode, sockets: &[ControlSocket]) -> ActualMode {
    match requested {
        XdpMode::Generic => ActualMode::Generic, // the program is attached that way, or not at all
        _ if !sockets.is_empty() && sockets.iter().all(|socket| socket.zero_copy) => ActualMode::ZeroCopy,
        _ => ActualMode::Copy,
    }
}

/// The kernel's counters of one socket (XDP_STATISTICS).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct SocketStatistics {
    /// The socket's queue.
    pub queue: QueueId,
    /// It is the queue's second one, for urgent frames.
    pub urgent: bool,
    /// Dropped on receipt for other reasons than those below: too long for a chunk, say.
    pub rx_dropped: u64,
    /// Dropped because the rx ring was full: the worker does not keep up.
    pub rx_ring_full: u64,
    /// The kernel's count of bad descriptors in the rx ring, which it writes itself: none. What it refuses of the fill ring it counts
    /// there, and tells nobody.
    pub rx_invalid_descs: u64,
    /// How often the fill ring was found empty. Both sockets of a queue share one: it stands with the first.
    pub rx_fill_ring_empty_descs: u64,
    /// Descriptors in the tx ring that the kernel refused.
    pub tx_invalid_descs: u64,
    /// How often the tx ring was found empty: no loss.
    pub tx_ring_empty_descs: u64,
}

/// A socket as control sees it. Its descriptor is a duplicate, for reading only.
#[derive(Debug)]
pub(super) struct ControlSocket {
    pub(super) queue: QueueId,
    /// The queue's second one.
    pub(super) urgent: bool,
    pub(super) zero_copy: bool,
    pub(super) fd: OwnedFd,
}

/// The control half of an open uplink.
#[derive(Debug)]
pub struct Uplink {
    info: UplinkInfo,
    program: Option<Box<Program>>,
    sockets: Vec<ControlSocket>,
}

impl Uplink {
    pub(super) fn new(info: UplinkInfo, program: Option<Program>, sockets: Vec<ControlSocket>) -> Uplink {
        Uplink { info, program: program.map(Box::new), sockets }
    }

    /// What was asked for and what was got.
    pub fn info(&self) -> &UplinkInfo {
        &self.info
    }

    /// What the XDP program did so far, by receive queue from 0 on. Empty when there is none.
    pub fn steering(&self) -> Result<Vec<SteeringCounters>, XskError> {
        self.program.as_ref().map_or(Ok(Vec::new()), |program| program.counters())
    }

    /// From now on these frames are urgent: they go to the second socket of their queue. A frame is judged by the rules before or
    /// by these, never by parts of both, and all the while nothing else changes in what is steered. Nothing to do if the queues have no
    /// second sockets ([`UplinkInfo::early`]).
    ///
    /// A flow that becomes urgent, or is no longer, overtakes itself: its last frames wait in one ring and the next ones are in the other.
    /// [`Engine::set_rules`](crate::engine::Engine::set_rules) keeps the order in each class all the same.
    ///
    /// # Errors
    /// [`XskError::EarlyRules`] if there are too many, or what the kernel said. Then the rules are as before.
    pub fn set_early(&mut self, rules: &EarlyRules) -> Result<(), XskError> {
        match &mut self.program {
            Some(program) if self.info.early => program.set_early(rules),
            _ => Ok(()),
        }
    }

    /// The kernel's counters of each socket: queue by queue, the second one behind the first.
    pub fn sockets(&self) -> Result<Vec<SocketStatistics>, XskError> {
        self.sockets.iter().map(socket_statistics).collect()
    }

    /// From now on frames of this network are steered to us, if they come to this port.
    pub fn serve(&mut self, vni: Vni, port: u16) -> Result<(), XskError> {
        self.program.as_mut().map_or(Ok(()), |program| program.serve(vni, port))
    }

    /// From now on frames of this network pass to the kernel.
    pub fn release(&mut self, vni: Vni) -> Result<(), XskError> {
        self.program.as_mut().map_or(Ok(()), |program| program.release(vni))
    }
}

fn socket_statistics(socket: &ControlSocket) -> Result<SocketStatistics, XskError> {
    let statistics = sys::xdp_statistics(socket.fd.as_fd()).map_err(|source| XskError::System {
        what: format!("reading the counters of the socket of queue {}", socket.queue.0),
        source,
    })?;
    Ok(SocketStatistics {
        queue: socket.queue,
        urgent: socket.urgent,
        rx_dropped: statistics.rx_dropped,
        rx_ring_full: statistics.rx_ring_full,
        rx_invalid_descs: statistics.rx_invalid_descs,
        rx_fill_ring_empty_descs: if socket.urgent { 0 } else { statistics.rx_fill_ring_empty_descs },
        tx_invalid_descs: statistics.tx_invalid_descs,
        tx_ring_empty_descs: statistics.tx_ring_empty_descs,
    })
}
