//! The memif tenants: one listener for each socket of the plan, handshakes in progress, and the control sockets of
//! those that are connected. Driven by the [daemon](crate::daemon)'s poll loop; nothing here waits.
//!
//! What must hold: a client can only lose its own connection. Handshakes are bounded in number and time, and with
//! them the descriptors that clients may send; a client that is refused, breaks off or breaks the protocol leaves
//! nothing behind; its id can be used again at once.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use peregrine_dataplane::engine::{Engine, TenantRings};
use peregrine_dataplane::plan::{EndpointPlan, MemifRole, Plan};
use peregrine_dataplane::types::EndpointId;
use peregrine_memif::{
    ControlSocket, Credentials, Handshake, Interface, Limits, Listener, ListenerConfig, Progress, Refusal,
    Request, Secret, ServerConfig, SocketAddr,
};

use crate::error::Error;
use crate::socket;

/// Handshakes at the same time, over all sockets. Each may hold [`DESCRIPTORS_PER_HANDSHAKE`].
pub const HANDSHAKES_MAX: usize = 32;
/// The connection, the regions and two eventfds.
pub const DESCRIPTORS_PER_HANDSHAKE: usize = 1 + REGIONS_MAX as usize + 2;
/// The control socket and two eventfds of a connected tenant.
pub const DESCRIPTORS_PER_TENANT: usize = 3;
/// Regions of one tenant.
const REGIONS_MAX: u16 = 16;
/// Queues each way of one tenant.
const RINGS_MAX: u16 = 1;
/// A handshake must be over in this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// When all places are taken, a handshake that is as old as this makes room: an honest one takes a millisecond.
const EVICT_AFTER: Duration = Duration::from_millis(100);
/// After a failed accept (no descriptors left) the next try is so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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
    /// Clients that were refused for this endpoint.
    pub refused: u64,
    /// Why the last one left or was refused.
    pub last_end: Option<String>,
}

/// Who is at the other end.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Its name, as it says.
    pub name: String,
    /// Its interface's name, as it says.
    pub interface: String,
    /// The process that connected.
    pub credentials: Option<Credentials>,
    /// When it connected.
    pub since: Instant,
}

/// All tenants' sockets.
#[derive(Debug)]
pub struct Tenants {
    first: Token,
    endpoints: Vec<Endpoint>,
    listeners: Vec<Listening>,
    handshakes: Vec<Option<Pending>>,
    evicted: u64,
}

#[derive(Debug)]
struct Endpoint {
    name: String,
    secret: Option<Secret>,
    allow_unsealed: bool,
    control: Option<ControlSocket>,
    readable: bool,
    record: TenantRecord,
}

#[derive(Debug)]
struct Listening {
    listener: Listener,
    ids: HashMap<u32, EndpointId>,
    accept_from: Option<Instant>,
}

#[derive(Debug)]
struct Pending {
    handshake: Handshake,
    listener: usize,
    readable: bool,
    since: Instant,
}

impl Tenants {
    /// Listens on every socket of the plan.
    pub fn bind(plan: &Plan, first: Token) -> Result<Tenants, Error> {
        let mut listeners: Vec<Listening> = Vec::new();
        let mut by_socket: HashMap<&SocketAddr, usize> = HashMap::new();
        for (index, endpoint) in plan.endpoints.iter().enumerate() {
            let (id, memif) = (EndpointId(index as u16), &endpoint.memif);
            match by_socket.get(&memif.socket).and_then(|&at| listeners.get_mut(at)) {
                Some(listening) => {
                    listening.ids.insert(memif.id, id);
                }
                None => {
                    by_socket.insert(&memif.socket, listeners.len());
                    listeners.push(listen(endpoint, id)?);
                }
            }
        }
        let endpoints = plan.endpoints.iter().map(Endpoint::new).collect::<Result<_, _>>()?;
        let handshakes = std::iter::repeat_with(|| None).take(HANDSHAKES_MAX).collect();
        Ok(Tenants { first, endpoints, listeners, handshakes, evicted: 0 })
    }

    /// Joins the poll set.
    pub fn register(&mut self, registry: &Registry) -> io::Result<()> {
        for (index, listening) in self.listeners.iter().enumerate() {
            let fd = listening.listener.as_raw_fd();
            registry.register(&mut SourceFd(&fd), Token(self.first.0 + index), Interest::READABLE)?;
        }
        Ok(())
    }

    /// The poll has something for one of our tokens: listeners, then handshakes, then endpoints.
    pub fn ready(&mut self, token: Token, now: Instant) {
        let slot = token.0.wrapping_sub(self.first.0);
        if let Some(listening) = self.listeners.get_mut(slot) {
            listening.accept_from = Some(now);
            return;
        }
        let slot = slot.wrapping_sub(self.listeners.len());
        match self.handshakes.get_mut(slot) {
            Some(Some(pending)) => pending.readable = true,
            Some(None) => {}
            None => {
                if let Some(endpoint) = self.endpoints.get_mut(slot.wrapping_sub(HANDSHAKES_MAX)) {
                    endpoint.readable = true;
                }
            }
        }
    }

    /// Notices who left, moves handshakes on, lets new clients in; in this order, so that who comes back at once
    /// finds the id free.
    pub fn turn(&mut self, registry: &Registry, now: Instant, rings: &mut impl Rings) {
        for index in 0..self.endpoints.len() {
            self.notice_end(index, rings);
        }
        for index in 0..self.listeners.len() {
            self.accept(index, registry, now);
        }
        for slot in 0..self.handshakes.len() {
            self.step(slot, registry, now, rings);
        }
    }

    /// When [`turn`](Self::turn) is wanted next, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let handshakes = self.handshakes.iter().flatten().map(|p| p.handshake.deadline());
        handshakes.chain(self.listeners.iter().filter_map(|l| l.accept_from)).min()
    }

    /// Puts out a tenant that broke the protocol on its rings.
    pub fn fault(&mut self, endpoint: EndpointId, reason: &str, rings: &mut impl Rings) {
        let Some(entry) = self.endpoints.get_mut(endpoint.index()) else { return };
        if entry.control.is_some() {
            entry.record.faults += 1;
        }
        entry.end(endpoint, reason, Some(reason), rings);
    }

    /// Says goodbye to everybody and stops listening.
    pub fn stop(mut self, rings: &mut impl Rings) {
        for (index, endpoint) in self.endpoints.iter_mut().enumerate() {
            endpoint.end(EndpointId(index as u16), "stopped", Some("the daemon is stopping"), rings);
        }
    }

    /// Each endpoint's record, in the order of the plan.
    pub fn records(&self) -> impl Iterator<Item = &TenantRecord> {
        self.endpoints.iter().map(|e| &e.record)
    }

    /// Handshakes in progress.
    pub fn handshakes(&self) -> usize {
        self.handshakes.iter().flatten().count()
    }

    fn notice_end(&mut self, index: usize, rings: &mut impl Rings) {
        let Some(endpoint) = self.endpoints.get_mut(index) else { return };
        if !std::mem::take(&mut endpoint.readable) {
            return;
        }
        let Some(control) = &endpoint.control else { return };
        let why = match control.poll_disconnect() {
            Ok(None) => return,
            Ok(Some(why)) => why.to_string(),
            Err(e) => e.to_string(),
        };
        endpoint.end(EndpointId(index as u16), &why, None, rings);
    }

    fn accept(&mut self, index: usize, registry: &Registry, now: Instant) {
        for _ in 0..HANDSHAKES_MAX {
            if self.listeners.get(index).and_then(|l| l.accept_from).is_none_or(|at| now < at) {
                return;
            }
            let slot = self.free_slot(now);
            let Some(listening) = self.listeners.get_mut(index) else { return };
            listening.accept_from = match slot.map(|slot| (slot, listening.listener.accept())) {
                Ok((slot, Ok(Some(handshake)))) => {
                    self.begin(slot, handshake, index, registry, now);
                    continue;
                }
                Ok((_, Ok(None))) => None,
                Ok((_, Err(_))) => Some(now + ACCEPT_PAUSE),
                Err(later) => Some(later),
            };
        }
    }

    /// A place for a handshake, or when there will be one. The client waits in the listener's queue until then.
    fn free_slot(&mut self, now: Instant) -> Result<usize, Instant> {
        if let Some(slot) = self.handshakes.iter().position(Option::is_none) {
            return Ok(slot);
        }
        let all = self.handshakes.iter().enumerate().filter_map(|(slot, p)| Some((p.as_ref()?.since, slot)));
        match all.min() {
            Some((since, slot)) if now.saturating_duration_since(since) >= EVICT_AFTER => {
                if let Some(place) = self.handshakes.get_mut(slot) {
                    *place = None;
                }
                self.evicted += 1;
                Ok(slot)
            }
            Some((since, _)) => Err(since + EVICT_AFTER),
            None => Err(now + EVICT_AFTER),
        }
    }

    fn begin(
        &mut self,
        slot: usize,
        handshake: Handshake,
        listener: usize,
        registry: &Registry,
        now: Instant,
    ) {
        let token = Token(self.first.0 + self.listeners.len() + slot);
        let registered = handshake
            .raw_socket()
            .is_some_and(|fd| registry.register(&mut SourceFd(&fd), token, Interest::READABLE).is_ok());
        if let (true, Some(place)) = (registered, self.handshakes.get_mut(slot)) {
            *place = Some(Pending { handshake, listener, readable: true, since: now });
        }
    }

    fn step(&mut self, slot: usize, registry: &Registry, now: Instant, rings: &mut impl Rings) {
        let Some(place) = self.handshakes.get_mut(slot) else { return };
        let Some(pending) = place else { return };
        if !std::mem::take(&mut pending.readable) && now < pending.handshake.deadline() {
            return;
        }
        let Some(listening) = self.listeners.get(pending.listener) else { return };
        let endpoints = &mut self.endpoints;
        let mut asked = None;
        let result = pending.handshake.step(&mut |request| {
            asked = listening.ids.get(&request.id).copied();
            let endpoint = asked.and_then(|id| endpoints.get(id.index()));
            endpoint.ok_or(Refusal::UnknownId).and_then(|e| e.admit(request))
        });
        let known = asked.or_else(|| pending.handshake.id().and_then(|id| listening.ids.get(&id).copied()));
        match result {
            Ok(Progress::Pending) => {}
            Ok(Progress::Connected(interface)) => {
                let endpoint = listening.ids.get(&interface.id).copied();
                *place = None;
                if let Some(id) = endpoint {
                    self.connect(id, *interface, registry, now, rings);
                }
            }
            Err(why) => {
                *place = None;
                if let Some(endpoint) = known.and_then(|id| endpoints.get_mut(id.index())) {
                    endpoint.record.refused += 1;
                    if endpoint.control.is_none() {
                        endpoint.record.last_end = Some(why.to_string());
                    }
                }
            }
        }
    }

    fn connect(
        &mut self,
        id: EndpointId,
        interface: Interface,
        registry: &Registry,
        now: Instant,
        rings: &mut impl Rings,
    ) {
        let token = Token(self.first.0 + self.listeners.len() + HANDSHAKES_MAX + id.index());
        let Some(endpoint) = self.endpoints.get_mut(id.index()) else { return };
        let Interface { name: _, peer_name, peer_if_name, credentials, rx, tx, control, .. } = interface;
        let refusal = match endpoint.control.is_some() {
            true => Some("already connected".to_owned()),
            false => rings.attach(id, TenantRings { rx, tx }).err(),
        };
        if let Some(reason) = refusal {
            endpoint.record.refused += 1;
            control.disconnect(&reason);
            return;
        }
        let fd = control.as_raw_fd();
        let watched = registry.reregister(&mut SourceFd(&fd), token, Interest::READABLE);
        endpoint.control = Some(control);
        // What came before the registration changed would not be told again.
        endpoint.readable = true;
        endpoint.record.attached += 1;
        endpoint.record.last_end = None;
        endpoint.record.peer =
            Some(Peer { name: peer_name, interface: peer_if_name, credentials, since: now });
        if let Err(e) = watched {
            endpoint.end(id, &format!("cannot watch its socket: {e}"), Some("internal error"), rings);
        }
    }
}

impl Endpoint {
    fn new(plan: &EndpointPlan) -> Result<Endpoint, Error> {
        let secret = match plan.memif.secret.as_slice() {
            [] => None,
            bytes => Some(Secret::new(bytes).map_err(|e| memif_error(plan, &e))?),
        };
        Ok(Endpoint {
            name: plan.name.clone(),
            secret,
            allow_unsealed: matches!(plan.memif.role, MemifRole::Server { allow_unsealed: true, .. }),
            control: None,
            readable: false,
            record: TenantRecord::default(),
        })
    }

    fn admit(&self, _request: &Request<'_>) -> Result<ServerConfig, Refusal> {
        if self.control.is_some() {
            return Err(Refusal::AlreadyConnected);
        }
        Ok(ServerConfig {
            name: self.name.clone(),
            secret: self.secret,
            rings_max: RINGS_MAX,
            allow_unsealed: self.allow_unsealed,
            ..ServerConfig::default()
        })
    }

    /// Ends the connection, if there is one: the worker lets go of the rings, then the tenant is told (if there is
    /// something to tell).
    fn end(&mut self, id: EndpointId, why: &str, tell: Option<&str>, rings: &mut impl Rings) {
        let Some(control) = self.control.take() else { return };
        rings.detach(id);
        if let Some(text) = tell {
            control.disconnect(text);
        }
        self.readable = false;
        self.record.peer = None;
        self.record.last_end = Some(why.to_owned());
    }
}

fn listen(endpoint: &EndpointPlan, id: EndpointId) -> Result<Listening, Error> {
    let memif = &endpoint.memif;
    if let Some(path) = memif.socket.path() {
        socket::make_directory(path)?;
    }
    let limits =
        Limits { handshake_timeout: HANDSHAKE_TIMEOUT, regions_max: REGIONS_MAX, rings_max: RINGS_MAX };
    let MemifRole::Server { mode, .. } = memif.role else { unreachable!() };
    let config = ListenerConfig { mode, limits, ..ListenerConfig::default() };
    let listener = Listener::bind(&memif.socket, config).map_err(|e| memif_error(endpoint, &e))?;
    let ids = HashMap::from([(memif.id, id)]);
    Ok(Listening { listener, ids, accept_from: None })
}

fn memif_error(endpoint: &EndpointPlan, reason: &dyn std::error::Error) -> Error {
    Error::Memif { socket: endpoint.memif.socket.to_string(), reason: reason.to_string() }
}

#[cfg(test)]
#[path = "tenants_tests.rs"]
mod tests;
