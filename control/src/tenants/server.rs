//! Endpoints where we are the server: one listener for each socket of the plan, and the handshakes of clients that
//! have connected to it.
//!
//! What must hold: a client can only lose its own connection. Handshakes are bounded in number and time, and with
//! them the descriptors that clients may send; a client that is refused or breaks off leaves nothing behind; its id
//! can be used again at once, or after [`FAULT_PAUSE`](super::FAULT_PAUSE) if it was put out.

use std::collections::HashMap;
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use peregrine_dataplane::plan::{EndpointPlan, MemifRole, Plan};
use peregrine_dataplane::types::EndpointId;
use peregrine_memif::{
    Handshake, Interface, Limits, Listener, ListenerConfig, Progress, Refusal, ServerConfig, SocketAddr,
};

use super::{Endpoint, Role, memif_error};
use crate::error::Error;
use crate::socket;

/// Handshakes at the same time, over all sockets.
pub const HANDSHAKES_MAX: usize = 32;
/// Regions of one tenant.
const REGIONS_MAX: u16 = 16;
/// A handshake must be over in this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// When all places are taken, a handshake that is as old as this makes room: an honest one takes a millisecond.
pub const EVICT_AFTER: Duration = Duration::from_millis(100);
/// After a failed accept (no descriptors left) the next try is so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All sockets that we listen on, and the handshakes there.
#[derive(Debug)]
pub struct Listeners {
    first: Token,
    listeners: Vec<Listening>,
    handshakes: Vec<Option<Pending>>,
    evicted: u64,
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

impl Listeners {
    /// Listens on every socket of the plan that is ours; `first` is the first of [`tokens`](Self::tokens).
    pub fn bind(plan: &Plan, first: Token) -> Result<Listeners, Error> {
        let mut sockets: Vec<Socket<'_>> = Vec::new();
        let mut by_socket: HashMap<&SocketAddr, usize> = HashMap::new();
        for (id, endpoint) in plan.endpoints.iter() {
            let memif = &endpoint.memif;
            let MemifRole::Server { mode, owner, group, .. } = memif.role else { continue };
            let at = *by_socket.entry(&memif.socket).or_insert(sockets.len());
            if at == sockets.len() {
                sockets.push(Socket { endpoint, mode, owner, group, ids: HashMap::new(), rings_max: 0 });
            }
            if let Some(socket) = sockets.get_mut(at) {
                socket.ids.insert(memif.id, id);
                socket.rings_max = socket.rings_max.max(memif.queue_pairs);
            }
        }
        let listeners = sockets.into_iter().map(Socket::listen).collect::<Result<_, _>>()?;
        let handshakes = std::iter::repeat_with(|| None).take(HANDSHAKES_MAX).collect();
        Ok(Listeners { first, listeners, handshakes, evicted: 0 })
    }

    /// Joins the poll set.
    pub fn register(&self, registry: &Registry) -> io::Result<()> {
        for (index, listening) in self.listeners.iter().enumerate() {
            let fd = listening.listener.as_raw_fd();
            registry.register(&mut SourceFd(&fd), Token(self.first.0 + index), Interest::READABLE)?;
        }
        Ok(())
    }

    /// How many tokens are ours: one for each listener, then one for each handshake.
    pub fn tokens(&self) -> usize {
        self.listeners.len() + HANDSHAKES_MAX
    }

    /// The poll has something for one of our tokens, counted from the first.
    pub fn ready(&mut self, slot: usize, now: Instant) {
        if let Some(listening) = self.listeners.get_mut(slot) {
            listening.accept_from = Some(now);
        } else if let Some(Some(pending)) = self.handshakes.get_mut(slot - self.listeners.len()) {
            pending.readable = true;
        }
    }

    /// When something is wanted next, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let handshakes = self.handshakes.iter().flatten().map(|p| p.handshake.deadline());
        handshakes.chain(self.listeners.iter().filter_map(|l| l.accept_from)).min()
    }

    /// Handshakes in progress.
    pub fn handshakes(&self) -> usize {
        self.handshakes.iter().flatten().count()
    }

    /// Lets new clients in, as many as there is room for.
    pub fn accept(&mut self, registry: &Registry, now: Instant) {
        for index in 0..self.listeners.len() {
            self.accept_at(index, registry, now);
        }
    }

    fn accept_at(&mut self, index: usize, registry: &Registry, now: Instant) {
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

    /// Moves a handshake on, if it is time to. When it has come to its end: whose it is, and the connection.
    pub fn step(
        &mut self,
        slot: usize,
        now: Instant,
        endpoints: &mut [Endpoint],
    ) -> Option<(EndpointId, Interface)> {
        let place = self.handshakes.get_mut(slot)?;
        let pending = place.as_mut()?;
        if !std::mem::take(&mut pending.readable) && now < pending.handshake.deadline() {
            return None;
        }
        let ids = &self.listeners.get(pending.listener)?.ids;
        let mut asked = None;
        let result = pending.handshake.step(&mut |request| {
            asked = ids.get(&request.id).copied();
            let endpoint = asked.and_then(|id| endpoints.get(id.index()));
            endpoint.ok_or(Refusal::UnknownId).and_then(|endpoint| endpoint.admit(now))
        });
        let known = asked.or_else(|| pending.handshake.id().and_then(|id| ids.get(&id).copied()));
        match result {
            Ok(Progress::Pending) => None,
            Ok(Progress::Connected(interface)) => {
                let endpoint = ids.get(&interface.id).copied();
                *place = None;
                endpoint.map(|id| (id, *interface))
            }
            Err(why) => {
                *place = None;
                endpoints.get_mut(known?.index())?.refused(why.to_string());
                None
            }
        }
    }
}

impl Endpoint {
    /// A client asks for it.
    fn admit(&self, now: Instant) -> Result<ServerConfig, Refusal> {
        match &self.role {
            Role::Server(_) if self.is_barred(now) => Err(Refusal::TooSoon),
            Role::Server(_) if self.control.is_some() => Err(Refusal::AlreadyConnected),
            Role::Server(config) => Ok(config.clone()),
            Role::Client(_) => Err(Refusal::UnknownId),
        }
    }
}

/// A socket to listen on.
struct Socket<'p> {
    /// The first on it. What a socket has once, all on it say the same.
    endpoint: &'p EndpointPlan,
    mode: Option<u32>,
    owner: Option<u32>,
    group: Option<u32>,
    ids: HashMap<u32, EndpointId>,
    /// The most that any of them takes.
    rings_max: u16,
}

impl Socket<'_> {
    fn listen(self) -> Result<Listening, Error> {
        let addr = &self.endpoint.memif.socket;
        if let Some(path) = addr.path() {
            socket::make_directory(path)?;
        }
        let limits = Limits {
            handshake_timeout: HANDSHAKE_TIMEOUT,
            regions_max: REGIONS_MAX,
            rings_max: self.rings_max,
            ..Limits::default()
        };
        let config =
            ListenerConfig { mode: self.mode, owner: self.owner(), limits, ..ListenerConfig::default() };
        let listener = Listener::bind(addr, config).map_err(|e| memif_error(self.endpoint, &e))?;
        Ok(Listening { listener, ids: self.ids, accept_from: None })
    }

    /// Of owner and group, what is not given is ours.
    fn owner(&self) -> Option<(u32, u32)> {
        if self.owner.is_none() && self.group.is_none() {
            return None;
        }
        let owner = self.owner.unwrap_or_else(|| rustix::process::geteuid().as_raw());
        Some((owner, self.group.unwrap_or_else(|| rustix::process::getegid().as_raw())))
    }
}

/// Descriptors that handshakes may need at the same time: of each the connection, the regions and the eventfds.
pub fn descriptors_max(plan: &Plan) -> u64 {
    let rings = plan.endpoints.values().map(|e| 2 * u64::from(e.memif.queue_pairs)).max().unwrap_or(0);
    HANDSHAKES_MAX as u64 * (1 + u64::from(REGIONS_MAX) + rings)
}
