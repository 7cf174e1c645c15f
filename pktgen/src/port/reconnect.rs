//! A memif interface whose server may go away: it is looked for until it is back (`--reconnect`).
//!
//! What must hold: while there is no server, a loop over this port sleeps in [`Port::rest`] whatever its `wait` is, and
//! packets that were in the ring when the server went are still taken.

use std::time::{Duration, Instant};

use peregrine_memif::{Attempt, Backoff, ClientConfig, Connector, SocketAddr};

use super::memif::{MemifPort, MemifRx, wait_for_server};
use super::{Port, PortStatistics, RingStatistics, Source};
use crate::error::Error;
use crate::limits::Wait;
use crate::trailer::Trailer;

/// An interface that comes back.
#[derive(Debug)]
pub struct ReconnectingPort {
    connector: Connector,
    packet_bytes_max: usize,
    port: Option<MemifPort>,
    /// The server has gone: its ring is emptied, then let go of.
    leaving: bool,
    /// Of the connections that have ended.
    past: RingStatistics,
}

impl ReconnectingPort {
    /// Connects when it is first used.
    ///
    /// # Errors
    /// A configuration that cannot be.
    pub fn new(socket: &SocketAddr, config: ClientConfig) -> Result<ReconnectingPort, Error> {
        let packet_bytes_max = config.buffer_bytes as usize;
        let connector = Connector::new(socket.clone(), config, Backoff::default())
            .map_err(|why| Error::Arguments(why.to_string()))?;
        let past = RingStatistics::default();
        Ok(ReconnectingPort { connector, packet_bytes_max, port: None, leaving: false, past })
    }

    /// Uses the connection for a batch, if there is one. A server that breaks the rules is left, and looked for again.
    ///
    /// # Errors
    /// Those of `batch` that are not the server's.
    #[inline]
    pub fn with(
        &mut self,
        batch: impl FnOnce(&mut MemifPort) -> Result<usize, Error>,
    ) -> Result<usize, Error> {
        let Some(port) = &mut self.port else {
            self.connect();
            return Ok(0);
        };
        match batch(port) {
            Ok(0) if self.leaving => self.leave(),
            Err(Error::PeerGone { .. }) => self.leave(),
            result => return result,
        }
        Ok(0)
    }

    #[cold]
    fn connect(&mut self) {
        let now = Instant::now();
        if let Attempt::Connected(interface) = self.connector.step(now) {
            match MemifPort::new(*interface, self.packet_bytes_max) {
                Ok(port) => self.port = Some(port),
                Err(_) => self.connector.lost(now),
            }
        }
    }

    #[cold]
    fn leave(&mut self) {
        self.past = self.ring();
        self.port = None;
        self.leaving = false;
        self.connector.lost(Instant::now());
    }

    /// Over all connections.
    fn ring(&self) -> RingStatistics {
        let Some(port) = &self.port else { return self.past };
        let now = port.rx.ring_statistics();
        RingStatistics {
            size: now.size,
            queues: now.queues,
            pending_max: now.pending_max.max(self.past.pending_max),
            bad_descriptors: now.bad_descriptors + self.past.bad_descriptors,
            connections: now.connections + self.past.connections,
        }
    }
}

impl Port for ReconnectingPort {
    const HEADERS_TAKEN_OFF: usize = MemifRx::HEADERS_TAKEN_OFF;

    #[inline]
    fn trailer(packet: &[u8]) -> Option<Trailer> {
        MemifRx::trailer(packet)
    }

    fn rest(&mut self, wait: Wait, longest_ns: u64) -> Result<(), Error> {
        if let Some(port) = &mut self.port {
            return port.rx.rest(wait, longest_ns);
        }
        let longest = Duration::from_nanos(longest_ns);
        let due = self.connector.deadline().map(|due| due.saturating_duration_since(Instant::now()));
        let pause = due.unwrap_or(longest).min(longest);
        wait_for_server(&self.connector, pause)
    }

    fn gone(&mut self) -> Option<String> {
        self.leaving = self.port.as_mut().is_some_and(|port| port.rx.gone().is_some());
        None
    }

    fn statistics(&self) -> PortStatistics {
        PortStatistics::Ring(self.ring())
    }
}

impl Source for ReconnectingPort {
    #[inline]
    fn receive(&mut self, wait: Wait, each: impl FnMut(u64, &[u8])) -> Result<usize, Error> {
        self.with(|port| port.rx.receive(wait, each))
    }
}
