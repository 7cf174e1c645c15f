//! One port: what it is attached by, the endpoint that it carries, who is connected, and what was told of it. Which sockets it is on is for
//! `server.rs` and `client.rs`, which container it goes into for `veth.rs`.

use std::os::fd::AsRawFd;
use std::time::Instant;

use peregrine_dataplane::engine::TenantRings;
use peregrine_dataplane::plan::{MemifPlan, MemifRole, PortKey};
use peregrine_dataplane::types::EndpointId;
use peregrine_memif::{ClientConfig, ControlSocket, Interface, RegionPool, Reject, Secret, ServerConfig};

use super::client::Dialler;
use super::server::Seat;
use super::veth::Veth;
use super::{Peer, Rings, TenantRecord, Watch, memif_error};
use crate::error::Error;

/// A port and its tenant.
#[derive(Debug)]
pub struct Port {
    pub key: PortKey,
    pub role: Role,
    /// The endpoint that it carries. While it carries none, whoever is connected waits.
    pub endpoint: Option<EndpointId>,
    /// It was declared by itself, and stays when its endpoint goes.
    pub is_held: bool,
    /// The tenant's, until a worker has them.
    waiting: Option<TenantRings>,
    pub control: Option<ControlSocket>,
    /// The socket has something to read: that of the connection, or of our attempt at one.
    pub readable: bool,
    /// It stands in the list of those that have.
    pub is_listed: bool,
    /// When it is known to want its next step.
    pub planned: Option<Instant>,
    /// It was put out, and may not come back before.
    pub barred_until: Option<Instant>,
    pub record: TenantRecord,
}

/// How it is attached.
#[derive(Debug)]
pub enum Role {
    /// We listen.
    Server(Box<ServerConfig>, Seat),
    /// We connect.
    Client(Box<Dialler>),
    /// To a container.
    Veth(Box<Veth>),
}

impl Port {
    /// Where nobody is connected yet.
    pub fn new(key: PortKey, role: Role) -> Port {
        Port {
            key,
            role,
            endpoint: None,
            is_held: false,
            waiting: None,
            control: None,
            readable: false,
            is_listed: false,
            planned: None,
            barred_until: None,
            record: TenantRecord::default(),
        }
    }

    /// A memif interface. Where we are the server, it has a seat at one of our sockets. `name` is what its tenant is told that we are.
    pub fn memif(
        name: &str,
        memif: &MemifPlan,
        seat: Option<Seat>,
        regions: Option<&RegionPool>,
    ) -> Result<Port, Error> {
        let secret = match memif.secret.as_slice() {
            [] => None,
            bytes => Some(Secret::new(bytes).map_err(|e| memif_error(&memif.socket, &e))?),
        };
        let role = match (&memif.role, seat) {
            (&MemifRole::Server { allow_unsealed, memory_bytes_max, .. }, Some(seat)) => {
                let config = ServerConfig {
                    name: name.to_owned(),
                    secret,
                    rings_max: memif.queue_pairs,
                    chains: memif.chains,
                    memory_bytes_max,
                    allow_unsealed,
                    ..ServerConfig::default()
                };
                Role::Server(Box::new(config), seat)
            }
            (MemifRole::Server { .. }, None) => {
                return Err(memif_error(&memif.socket, &"nobody listens there"));
            }
            (&MemifRole::Client { ring_log2, buffer_bytes, tenant_uid }, _) => {
                let config = ClientConfig {
                    id: memif.id,
                    name: name.to_owned(),
                    secret: secret.unwrap_or_default(),
                    ring_log2,
                    buffer_bytes,
                    queue_pairs: memif.queue_pairs,
                    chains: memif.chains,
                    server_uid: tenant_uid,
                    // A tenant must not be able to keep our memory.
                    forbid_seals: true,
                    pool: regions.cloned(),
                };
                Role::Client(Box::new(Dialler::new(&memif.socket, config)?))
            }
        };
        Ok(Port::new(PortKey::Memif(memif.socket.clone(), memif.id), role))
    }

    /// Its seat at one of our sockets.
    pub fn seat(&self) -> Option<Seat> {
        match self.role {
            Role::Server(_, seat) => Some(seat),
            Role::Client(_) | Role::Veth(_) => None,
        }
    }

    /// When it wants its next step, if nothing comes before: as client until it is connected, of a container until its interface is there.
    pub fn deadline(&self) -> Option<Instant> {
        let at = match &self.role {
            Role::Server(..) => None,
            Role::Client(dialler) => dialler.deadline(),
            Role::Veth(veth) => veth.deadline(),
        };
        at.map(|at| self.barred_until.map_or(at, |until| at.max(until)))
    }

    /// It was put out just now.
    pub fn is_barred(&self, now: Instant) -> bool {
        self.barred_until.is_some_and(|until| now < until)
    }

    /// Looks whether the tenant has left, if its socket has something to read.
    pub fn notice_end(&mut self, now: Instant, rings: &mut impl Rings) {
        let Some(control) = self.control.as_ref().filter(|_| self.readable) else {
            // As client it may be that of an attempt.
            self.readable &= matches!(self.role, Role::Client(_));
            return;
        };
        self.readable = false;
        let why = match control.poll_disconnect() {
            Ok(None) => return,
            Ok(Some(why)) => why.to_string(),
            Err(e) => e.to_string(),
        };
        self.end(&why, None, now, rings);
    }

    /// A client that was sent away. While another one is connected, that is not what people ask about.
    pub fn refused(&mut self, why: String) {
        self.record.refused += 1;
        if self.control.is_none() {
            self.record.last_failure = Some(why);
        }
    }

    /// A handshake has come to its end: the worker gets the rings, now or when there is an endpoint.
    ///
    /// # Errors
    /// Why the tenant was sent away instead.
    pub fn connect(
        &mut self,
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
        if let Err(reason) = admitted {
            control.disconnect(&reason);
            return Err(reason);
        }
        self.control = Some(control);
        // What came under the token of the handshake is not told again under this one.
        self.readable = true;
        let peer = Peer { name: peer_name, interface: peer_if_name, credentials, since: now, queue_pairs };
        self.have(TenantRings::new(rx, tx), peer, now, rings)
    }

    /// Its tenant is here. The worker gets the rings, now or when there is an endpoint.
    ///
    /// # Errors
    /// Why it cannot have them; the tenant was sent away.
    pub(super) fn have(
        &mut self,
        its: TenantRings,
        peer: Peer,
        now: Instant,
        rings: &mut impl Rings,
    ) -> Result<(), String> {
        self.waiting = Some(its);
        self.record.peer = Some(peer);
        self.attach(now, rings)?;
        self.record.attached += 1;
        self.record.last_failure = None;
        Ok(())
    }

    /// A tenant that waits is served, if there is an endpoint now.
    ///
    /// # Errors
    /// Why it cannot be; it was sent away.
    pub fn attach(&mut self, now: Instant, rings: &mut impl Rings) -> Result<(), String> {
        let Some(id) = self.endpoint else { return Ok(()) };
        let Some(its) = self.waiting.take() else { return Ok(()) };
        let Err(why) = rings.attach(id, its) else { return Ok(()) };
        // Nothing to detach.
        self.endpoint = None;
        self.end(&why, Some(&why), now, rings);
        self.endpoint = Some(id);
        Err(why)
    }

    /// Ends the connection, if there is one: the worker lets go of the rings, then the tenant is told (if there is
    /// something to tell).
    pub fn end(&mut self, why: &str, tell: Option<&str>, now: Instant, rings: &mut impl Rings) {
        if self.record.peer.take().is_none() {
            return;
        }
        if self.waiting.take().is_none()
            && let Some(id) = self.endpoint
        {
            rings.detach(id);
        }
        if let Some(control) = self.control.take()
            && let Some(text) = tell
        {
            control.disconnect(text);
        }
        match &mut self.role {
            Role::Server(..) => {}
            Role::Client(dialler) => dialler.lost(now),
            Role::Veth(veth) => veth.lost(now),
        }
        self.readable = false;
        self.record.last_end = Some(why.to_owned());
        self.record.last_failure = None;
    }
}
