//! The memif tenants: those that connect to us (`server.rs`), those that we connect to (`client.rs`), and the control
//! sockets of all that are connected. Driven by the [daemon](crate::daemon)'s poll loop; nothing here waits.
//!
//! What must hold: a tenant can only lose its own connection. Whoever breaks off, is refused or breaks the protocol
//! leaves nothing behind; handshakes are bounded in number and time, and attempts to connect in how often they are
//! made.

mod client;
mod server;

use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use peregrine_dataplane::engine::{Engine, TenantRings};
use peregrine_dataplane::plan::{EndpointPlan, MemifRole, Plan};
use peregrine_dataplane::types::EndpointId;
use peregrine_memif::{
    ClientConfig, ControlSocket, Credentials, Interface, Reject, Secret, ServerConfig, sealer,
};

use crate::error::Error;
use client::Dialler;
use server::Listeners;

/// Where the rings of a connected tenant go. The engine; in tests something smaller.
pub trait Rings {
    /// Takes the rings of an endpoint into use.
    fn attach(&mut self, endpoint: EndpointId, rings: TenantRings) -> Result<(), String>;
    /// Lets go of them.
    fn detach(&mut self, endpoint: EndpointId);
}

impl Rings for Engine {
    fn attach(&mut self, endpoint: EndpointId, rings: TenantRings) -> Result<(), String> {
        Engine::attach(self, endpoint, rings).map_err(|e| e.to_string())
    }

    fn detach(&mut self, endpoint: EndpointId) {
        Engine::detach(self, endpoint);
    }
}

/// One endpoint's tenant, for `status`.
#[derive(Clone, Debug, Default)]
pub struct TenantRecord {
    /// The tenant that is connected.
    pub peer: Option<Peer>,
    /// Tenants attached since the start.
    pub attached: u64,
    /// Tenants put out because they broke the protocol.
    pub faults: u64,
    /// As server: clients that were refused for this endpoint.
    pub refused: u64,
    /// As client: how often we tried to connect.
    pub attempts: u64,
    /// Why the last connection ended.
    pub last_end: Option<String>,
    /// Why the last handshake since then came to nothing.
    pub last_failure: Option<String>,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name, as it says.
    pub name: String,
    /// Its interface's name, as it says.
    pub interface: String,
    /// The process at the other end.
    pub credentials: Option<Credentials>,
    /// When the connection began.
    pub since: Instant,
    /// Rings that there are in each direction.
    pub queue_pairs: usize,
}

/// All tenants' sockets.
#[derive(Debug)]
pub struct Tenants {
    first: Token,
    listeners: Listeners,
    endpoints: Vec<Endpoint>,
}

/// A tenant that was put out may come back after this long: so what it can do to others before it is put out again is a small
/// part of the time.
pub const FAULT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug)]
struct Endpoint {
    role: Role,
    control: Option<ControlSocket>,
    /// The socket has something to read: that of the connection, or of our attempt at one.
    readable: bool,
    /// It was put out, and may not come back before.
    barred_until: Option<Instant>,
    record: TenantRecord,
}

#[derive(Debug)]
enum Role {
    Server(ServerConfig),
    Client(Box<Dialler>),
}

impl Tenants {
    /// Listens on every socket of the plan that is ours. Those that are the tenants' are tried from the first
    /// [`turn`](Self::turn) on.
    pub fn bind(plan: &Plan, first: Token) -> Result<Tenants, Error> {
        let endpoints = plan.endpoints.values().map(Endpoint::new).collect::<Result<_, _>>()?;
        Ok(Tenants { first, listeners: Listeners::bind(plan, first)?, endpoints })
    }

    /// Joins the poll set.
    pub fn register(&mut self, registry: &Registry) -> io::Result<()> {
        self.listeners.register(registry)
    }

    /// The poll has something for one of our tokens: listeners and handshakes, then endpoints.
    pub fn ready(&mut self, token: Token, now: Instant) {
        let slot = token.0.wrapping_sub(self.first.0);
        match slot.checked_sub(self.listeners.tokens()) {
            None => self.listeners.ready(slot, now),
            Some(index) => {
                if let Some(endpoint) = self.endpoints.get_mut(index) {
                    endpoint.readable = true;
                }
            }
        }
    }

    /// Notices who left, moves our own attempts and the tenants' handshakes on, lets new clients in; in this order, so
    /// that who comes back at once finds the id free.
    pub fn turn(&mut self, registry: &Registry, now: Instant, rings: &mut impl Rings) {
        let first = self.first.0 + self.listeners.tokens();
        for (index, endpoint) in self.endpoints.iter_mut().enumerate() {
            let (id, token) = (EndpointId(index as u16), Token(first + index));
            endpoint.notice_end(id, now, rings);
            endpoint.dial(id, Watch { registry, token }, now, rings);
        }
        self.listeners.accept(registry, now);
        for slot in 0..server::HANDSHAKES_MAX {
            if let Some((id, interface)) = self.listeners.step(slot, now, &mut self.endpoints)
                && let Some(endpoint) = self.endpoints.get_mut(id.index())
            {
                let watch = Watch { registry, token: Token(first + id.index()) };
                if let Err(why) = endpoint.connect(id, interface, watch, now, rings) {
                    endpoint.refused(why);
                }
            }
        }
    }

    /// When [`turn`](Self::turn) is wanted next, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let attempts = self.endpoints.iter().filter_map(|endpoint| match &endpoint.role {
            Role::Client(dialler) => {
                dialler.deadline().map(|at| endpoint.barred_until.map_or(at, |until| at.max(until)))
            }
            Role::Server(_) => None,
        });
        attempts.chain(self.listeners.deadline()).min()
    }

    /// Puts out a tenant that broke the protocol on its rings. One that hung up before this was known is barred as well.
    pub fn fault(&mut self, id: EndpointId, reason: &str, now: Instant, rings: &mut impl Rings) {
        let Some(endpoint) = self.endpoints.get_mut(id.index()) else { return };
        endpoint.record.faults += 1;
        endpoint.barred_until = Some(now + FAULT_PAUSE);
        endpoint.end(id, reason, Some(reason), now, rings);
        endpoint.record.last_end = Some(reason.to_owned());
    }

    /// Says goodbye to everybody, stops listening and connecting.
    pub fn stop(mut self, now: Instant, rings: &mut impl Rings) {
        for (index, endpoint) in self.endpoints.iter_mut().enumerate() {
            endpoint.end(EndpointId(index as u16), "stopped", Some("the daemon is stopping"), now, rings);
        }
    }

    /// Each endpoint's record, in the order of the plan.
    pub fn records(&self) -> impl Iterator<Item = &TenantRecord> {
        self.endpoints.iter().map(|e| &e.record)
    }

    /// Clients' handshakes in progress.
    pub fn handshakes(&self) -> usize {
        self.listeners.handshakes()
    }
}

/// Where a socket is to be watched, and under which name.
#[derive(Clone, Copy)]
struct Watch<'a> {
    registry: &'a Registry,
    token: Token,
}

impl Watch<'_> {
    /// Joins the poll set, or changes the token that it is there with.
    fn over(&self, fd: i32) -> io::Result<()> {
        let changed = self.registry.reregister(&mut SourceFd(&fd), self.token, Interest::READABLE);
        changed.or_else(|_| self.registry.register(&mut SourceFd(&fd), self.token, Interest::READABLE))
    }
}

impl Endpoint {
    fn new(plan: &EndpointPlan) -> Result<Endpoint, Error> {
        let memif = &plan.memif;
        let secret = match memif.secret.as_slice() {
            [] => None,
            bytes => Some(Secret::new(bytes).map_err(|e| memif_error(plan, &e))?),
        };
        let role = match memif.role {
            MemifRole::Server { allow_unsealed, memory_bytes_max, .. } => Role::Server(ServerConfig {
                name: plan.name.clone(),
                secret,
                rings_max: memif.queue_pairs,
                chains: memif.chains,
                memory_bytes_max,
                allow_unsealed,
                ..ServerConfig::default()
            }),
            MemifRole::Client { ring_log2, buffer_bytes, tenant_uid } => {
                let config = ClientConfig {
                    id: memif.id,
                    name: plan.name.clone(),
                    secret: secret.unwrap_or_default(),
                    ring_log2,
                    buffer_bytes,
                    queue_pairs: memif.queue_pairs,
                    chains: memif.chains,
                    server_uid: tenant_uid,
                    // A tenant must not be able to keep our memory.
                    forbid_seals: true,
                };
                Role::Client(Box::new(Dialler::new(plan, config)?))
            }
        };
        Ok(Endpoint {
            role,
            control: None,
            readable: false,
            barred_until: None,
            record: TenantRecord::default(),
        })
    }

    /// It was put out just now.
    fn is_barred(&self, now: Instant) -> bool {
        self.barred_until.is_some_and(|until| now < until)
    }

    fn notice_end(&mut self, id: EndpointId, now: Instant, rings: &mut impl Rings) {
        let Some(control) = self.control.as_ref().filter(|_| self.readable) else { return };
        self.readable = false;
        let why = match control.poll_disconnect() {
            Ok(None) => return,
            Ok(Some(why)) => why.to_string(),
            Err(e) => e.to_string(),
        };
        self.end(id, &why, None, now, rings);
    }

    /// A client that was sent away. While another one is connected, that is not what people ask about.
    fn refused(&mut self, why: String) {
        self.record.refused += 1;
        if self.control.is_none() {
            self.record.last_failure = Some(why);
        }
    }

    /// A handshake has come to its end: the worker gets the rings.
    ///
    /// # Errors
    /// Why the tenant was sent away instead.
    fn connect(
        &mut self,
        id: EndpointId,
        interface: Interface,
        watch: Watch<'_>,
        now: Instant,
        rings: &mut impl Rings,
    ) -> Result<(), String> {
        let Interface { peer_name, peer_if_name, credentials, rx, tx, control, .. } = interface;
        let queue_pairs = rx.len().min(tx.len());
        // Several handshakes can be let in before one has come to its end.
        let admitted = if self.control.is_some() {
            Err(Reject::AlreadyConnected.to_string())
        } else if self.is_barred(now) {
            Err(Reject::TooSoon.to_string())
        } else {
            watch.over(control.as_raw_fd()).map_err(|e| format!("its socket cannot be watched: {e}"))
        };
        let attached = admitted.and_then(|()| rings.attach(id, TenantRings::new(rx, tx)));
        if let Err(reason) = attached {
            control.disconnect(&reason);
            return Err(reason);
        }
        self.control = Some(control);
        // What came under the token of the handshake is not told again under this one.
        self.readable = true;
        self.record.attached += 1;
        self.record.last_failure = None;
        self.record.peer =
            Some(Peer { name: peer_name, interface: peer_if_name, credentials, since: now, queue_pairs });
        Ok(())
    }

    /// Ends the connection, if there is one: the worker lets go of the rings, then the tenant is told (if there is
    /// something to tell).
    fn end(&mut self, id: EndpointId, why: &str, tell: Option<&str>, now: Instant, rings: &mut impl Rings) {
        let Some(control) = self.control.take() else { return };
        rings.detach(id);
        if let Some(text) = tell {
            control.disconnect(text);
        }
        if let Role::Client(dialler) = &mut self.role {
            dialler.lost(now);
        }
        self.readable = false;
        self.record.peer = None;
        self.record.last_end = Some(why.to_owned());
        self.record.last_failure = None;
    }
}

/// Descriptors that a plan's tenants may need at the same time.
pub fn descriptors_max(plan: &Plan) -> u64 {
    // The control socket, an eventfd for each ring, and as client the memory, and that of earlier connections if it cannot be taken
    // back: the sealer has the same limit.
    let kept = sealer::UNRETURNED_MAX as u64;
    let connected: u64 = plan.endpoints.values().map(|e| 2 + kept + 2 * u64::from(e.memif.queue_pairs)).sum();
    connected + server::descriptors_max(plan)
}

fn memif_error(endpoint: &EndpointPlan, reason: &dyn std::error::Error) -> Error {
    Error::Memif { socket: endpoint.memif.socket.to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
