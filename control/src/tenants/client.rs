//! Endpoints where we are the client: the tenant listens, we connect, and again whenever the connection has ended.
//! So neither side has to know when the other one restarts.
//!
//! What must hold: a tenant that is away, refuses, hangs, or breaks the protocol right after each handshake soon costs an
//! attempt a second and no more; the [`Connector`] sees to that. One that was put out is left alone for a while even if its
//! connection had lasted.

use std::time::Instant;

use peregrine_memif::{Attempt, Backoff, ClientConfig, Connector, SocketAddr};

use super::port::{Port, Role};
use super::{Rings, Watch, memif_error};
use crate::error::Error;

/// Tries to connect until it is connected.
#[derive(Debug)]
pub struct Dialler {
    connector: Connector,
    /// The attempt whose socket is in the poll set.
    watched: u64,
}

impl Dialler {
    pub fn new(socket: &SocketAddr, config: ClientConfig) -> Result<Dialler, Error> {
        let connector = Connector::new(socket.clone(), config, Backoff::default());
        Ok(Dialler { connector: connector.map_err(|e| memif_error(socket, &e))?, watched: 0 })
    }

    /// When the next step is due; `None` while connected.
    pub fn deadline(&self) -> Option<Instant> {
        self.connector.deadline()
    }

    /// The connection has ended.
    pub fn lost(&mut self, now: Instant) {
        self.connector.lost(now);
    }

    /// Watches the socket of a new attempt; `false` if that failed and must be tried again.
    fn watch(&mut self, watch: Watch<'_>) -> bool {
        let attempt = self.connector.attempts();
        if attempt != self.watched
            && let Some(fd) = self.connector.raw_socket()
        {
            if watch.over(fd).is_err() {
                return false;
            }
            self.watched = attempt;
        }
        true
    }
}

impl Port {
    /// As client: the next step towards a connection, if it is time for one.
    pub(super) fn dial(&mut self, watch: Watch<'_>, now: Instant, rings: &mut impl Rings) {
        let Role::Client(dialler) = &mut self.role else { return };
        let Some(deadline) = dialler.deadline() else { return };
        if self.barred_until.is_some_and(|until| now < until) || (now < deadline && !self.readable) {
            return;
        }
        self.readable = false;
        let attempt = dialler.connector.step(now);
        self.record.attempts = dialler.connector.attempts();
        match attempt {
            Attempt::Waiting => self.readable = !dialler.watch(watch),
            Attempt::Failed(why) => self.record.last_failure = Some(why.to_string()),
            Attempt::Connected(interface) => {
                if let Err(why) = self.connect(*interface, watch, now, rings) {
                    self.record.last_failure = Some(why);
                    if let Role::Client(dialler) = &mut self.role {
                        dialler.lost(now);
                    }
                }
            }
        }
    }
}
