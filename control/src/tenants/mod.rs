//! The memif tenants: those that connect to us (`server.rs`), those that we connect to (`client.rs`), what both have in common
//! (`endpoint.rs`), and those whose socket is tried again (`later.rs`). Endpoints, and the sockets that they are on, come and go. Driven by the [daemon](crate::daemon)'s poll loop; nothing
//! here waits for a tenant.
//!
//! What must hold: a tenant can only lose its own connection. Whoever breaks off, is refused or breaks the protocol
//! leaves nothing behind; handshakes are bounded in number and time, and attempts to connect in how often they are
//! made. And a turn costs what there is to do, however many endpoints there are.

mod client;
mod endpoint;
mod later;
mod server;

use std::collections::{BTreeSet, HashSet};
use std::io;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use peregrine_dataplane::engine::{Engine, TenantRings};
use peregrine_dataplane::plan::{EndpointPlan, MemifPlan, Places, Plan};
use peregrine_dataplane::types::EndpointId;
use peregrine_memif::{Credentials, RegionPool, SocketAddr, sealer};

use crate::error::Error;
use endpoint::Endpoint;
use later::Later;
use server::{Listeners, Seat};

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
    /// From here on tokens are ours: one for each place that an endpoint may have, then those of the listeners and handshakes.
    first: Token,
    listeners: Listeners,
    endpoints: Places<EndpointId, Endpoint>,
    /// Those whose socket has something to read.
    readable: Vec<EndpointId>,
    /// When those that we connect to want their next step.
    wanted: BTreeSet<(Instant, EndpointId)>,
    later: Later,
    regions: Option<RegionPool>,
}

/// A tenant that was put out may come back after this long: so what it can do to others before it is put out again is a small
/// part of the time.
pub const FAULT_PAUSE: Duration = Duration::from_millis(100);
/// Places that endpoints may have.
const ENDPOINT_TOKENS: usize = 1 << 16;
/// Attempts to connect in one turn, if more of them are due.
const DIALS_PER_TURN: usize = 64;

/// An endpoint that can be put in its place without anything that may fail.
struct Prepared {
    id: EndpointId,
    endpoint: Endpoint,
}

impl Tenants {
    /// Listens on every socket of the plan that is ours. Those that are the tenants' are tried from the first
    /// [`turn`](Self::turn) on.
    /// What we connect with has its memory from `regions`, if there are.
    pub fn bind(plan: &Plan, first: Token, regions: Option<RegionPool>) -> Result<Tenants, Error> {
        let listeners = Listeners::new(Token(first.0 + ENDPOINT_TOKENS));
        let (endpoints, wanted) = (Places::default(), BTreeSet::new());
        let mut tenants = Tenants {
            first,
            listeners,
            endpoints,
            readable: Vec::new(),
            wanted,
            later: Later::default(),
            regions,
        };
        let prepared = tenants.prepare(None, &[], plan.endpoints.iter()).map_err(|(_, error)| error)?;
        tenants.put(prepared);
        Ok(tenants)
    }

    /// Joins the poll set.
    pub fn register(&mut self, registry: &Registry) -> io::Result<()> {
        self.listeners.register(registry)
    }

    /// Endpoints that come: sockets that are not there yet are made. All of them, or none.
    ///
    /// # Errors
    /// Which one cannot be, and why; nothing has changed then.
    pub fn add(
        &mut self,
        registry: &Registry,
        endpoints: &[(EndpointId, EndpointPlan)],
    ) -> Result<(), (usize, Error)> {
        let prepared = self.prepare(Some(registry), &[], endpoints.iter().map(|(id, plan)| (*id, plan)))?;
        self.put(prepared);
        Ok(())
    }

    /// Endpoints that go: who is connected or about to be is told, and sockets that nobody is on any more are removed.
    pub fn remove(&mut self, ids: &[EndpointId], now: Instant, rings: &mut impl Rings) {
        ids.iter().for_each(|id| self.take(*id, now, rings));
        self.listeners.close_unused();
    }

    /// Both at once: what is removed makes room for what is added, and a socket that both are on stays.
    ///
    /// # Errors
    /// Which of those that come cannot be, and why; nothing has changed then.
    pub fn change(
        &mut self,
        registry: &Registry,
        removed: &[EndpointId],
        added: &[(EndpointId, EndpointPlan)],
        now: Instant,
        rings: &mut impl Rings,
    ) -> Result<(), (usize, Error)> {
        let prepared = self.prepare(Some(registry), removed, added.iter().map(|(id, plan)| (*id, plan)))?;
        removed.iter().for_each(|id| self.take(*id, now, rings));
        self.put(prepared);
        self.listeners.close_unused();
        Ok(())
    }

    /// Listens on a socket of ours whether an endpoint is on it or not, until it is [released](Self::release) as often as this was
    /// called. For sockets of tenants it does nothing.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn hold(&mut self, registry: &Registry, memif: &MemifPlan) -> Result<(), Error> {
        self.listeners.hold(registry, memif)
    }

    /// Undoes one [`hold`](Self::hold).
    pub fn release(&mut self, memif: &MemifPlan) {
        if !self.later.forget_held(memif) {
            self.listeners.release(memif);
        }
    }

    /// Makes all that may fail: listeners that nobody is on yet, and whatever there is to check. In case of an error they are gone again.
    fn prepare<'p>(
        &mut self,
        registry: Option<&Registry>,
        removed: &[EndpointId],
        added: impl Iterator<Item = (EndpointId, &'p EndpointPlan)>,
    ) -> Result<Vec<Prepared>, (usize, Error)> {
        let removed: HashSet<EndpointId> = removed.iter().copied().collect();
        let (mut prepared, mut seats) = (Vec::new(), HashSet::new());
        for (index, (id, plan)) in added.enumerate() {
            let is_free = removed.contains(&id) || self.endpoints.get(id).is_none();
            let made = match is_free {
                true => self.prepare_one(registry, &removed, &mut seats, plan),
                false => {
                    Err(memif_error(&plan.memif.socket, &format!("endpoint {} is there already", plan.name)))
                }
            };
            match made {
                Ok(endpoint) => prepared.push(Prepared { id, endpoint }),
                Err(error) => {
                    self.listeners.close_unused();
                    return Err((index, error));
                }
            }
        }
        Ok(prepared)
    }

    fn prepare_one(
        &mut self,
        registry: Option<&Registry>,
        removed: &HashSet<EndpointId>,
        seats: &mut HashSet<(usize, u32)>,
        plan: &EndpointPlan,
    ) -> Result<Endpoint, Error> {
        let (memif, regions) = (&plan.memif, self.regions.as_ref());
        let Some(listener) = self.listeners.open(registry, memif)? else {
            return Endpoint::new(plan, None, regions);
        };
        let seat = Seat { listener, id: memif.id, queue_pairs: memif.queue_pairs };
        let sitting = self.listeners.endpoint(listener, memif.id).filter(|id| !removed.contains(id));
        if sitting.is_some() || !seats.insert((listener, memif.id)) {
            return Err(memif_error(&memif.socket, &format!("its id {} is another endpoint's", memif.id)));
        }
        Endpoint::new(plan, Some(seat), regions)
    }

    fn put(&mut self, prepared: Vec<Prepared>) {
        for Prepared { id, endpoint } in prepared {
            if let Some(seat) = endpoint.seat() {
                self.listeners.sit(seat, id);
            }
            self.endpoints.set(id, Some(endpoint));
            self.plan_next(id);
        }
    }

    fn take(&mut self, id: EndpointId, now: Instant, rings: &mut impl Rings) {
        const WHY: &str = "the endpoint was removed";
        if self.later.forget(id) {
            return;
        }
        let Some(mut endpoint) = self.endpoints.set(id, None) else { return };
        endpoint.end(id, WHY, Some(WHY), now, rings);
        if let Some(at) = endpoint.planned {
            self.wanted.remove(&(at, id));
        }
        if let Some(seat) = endpoint.seat() {
            self.listeners.rise(seat, WHY);
        }
    }

    /// The poll has something for one of our tokens.
    pub fn ready(&mut self, token: Token) {
        let slot = token.0.wrapping_sub(self.first.0);
        match slot.checked_sub(ENDPOINT_TOKENS) {
            None => {
                let id = EndpointId(slot as u16);
                if let Some(endpoint) = self.endpoints.get_mut(id) {
                    endpoint.readable = true;
                }
                self.plan_next(id);
            }
            Some(slot) => self.listeners.ready(slot),
        }
    }

    /// Notices who left, moves our own attempts and the tenants' handshakes on, lets new clients in; in this order, so
    /// that who comes back at once finds the id free, and who waits a place.
    pub fn turn(&mut self, registry: &Registry, now: Instant, rings: &mut impl Rings) {
        for id in self.due(now) {
            let watch = self.watch(registry, id);
            if let Some(endpoint) = self.endpoints.get_mut(id) {
                endpoint.is_listed = false;
                endpoint.notice_end(id, now, rings);
                endpoint.dial(id, watch, now, rings);
            }
            self.plan_next(id);
        }
        for (id, interface) in self.listeners.step(now, &mut self.endpoints) {
            let watch = self.watch(registry, id);
            if let Some(endpoint) = self.endpoints.get_mut(id)
                && let Err(why) = endpoint.connect(id, interface, watch, now, rings)
            {
                endpoint.refused(why);
            }
            self.plan_next(id);
        }
        self.listeners.accept(registry, now);
    }

    fn watch<'r>(&self, registry: &'r Registry, id: EndpointId) -> Watch<'r> {
        Watch { registry, token: Token(self.first.0 + id.index()) }
    }

    /// Those that have something to do now.
    fn due(&mut self, now: Instant) -> Vec<EndpointId> {
        let mut due = std::mem::take(&mut self.readable);
        let dials = self.wanted.iter().take_while(|(at, _)| *at <= now).take(DIALS_PER_TURN);
        due.extend(dials.map(|(_, id)| *id));
        due
    }

    /// Notes when this one has something to do next.
    fn plan_next(&mut self, id: EndpointId) {
        let Some(endpoint) = self.endpoints.get_mut(id) else { return };
        let wanted = endpoint.deadline();
        if endpoint.planned != wanted {
            if let Some(at) = endpoint.planned {
                self.wanted.remove(&(at, id));
            }
            self.wanted.extend(wanted.map(|at| (at, id)));
            endpoint.planned = wanted;
        }
        if endpoint.readable && !endpoint.is_listed {
            endpoint.is_listed = true;
            self.readable.push(id);
        }
    }

    /// When [`turn`](Self::turn) is wanted next, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.wanted.first().map(|(at, _)| *at).into_iter().chain(self.listeners.deadline()).min()
    }

    /// Puts out a tenant that broke the protocol on its rings. One that hung up before this was known is barred as well.
    pub fn fault(&mut self, id: EndpointId, reason: &str, now: Instant, rings: &mut impl Rings) {
        let Some(endpoint) = self.endpoints.get_mut(id) else { return };
        endpoint.record.faults += 1;
        endpoint.barred_until = Some(now + FAULT_PAUSE);
        endpoint.end(id, reason, Some(reason), now, rings);
        endpoint.record.last_end = Some(reason.to_owned());
        self.plan_next(id);
    }

    /// Says goodbye to everybody, stops listening and connecting.
    pub fn stop(mut self, now: Instant, rings: &mut impl Rings) {
        let ids: Vec<EndpointId> = self.endpoints.iter().map(|(id, _)| id).collect();
        for id in ids {
            if let Some(endpoint) = self.endpoints.get_mut(id) {
                endpoint.end(id, "stopped", Some("the daemon is stopping"), now, rings);
            }
        }
    }

    /// An endpoint's record.
    pub fn record(&self, id: EndpointId) -> Option<&TenantRecord> {
        let record = self.endpoints.get(id).map(|endpoint| &endpoint.record);
        record.or_else(|| self.later.record(id))
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

/// Descriptors that a plan's tenants may need at the same time, and those that may come: these are counted with one queue pair each, and
/// a socket of their own.
pub fn descriptors_max(plan: &Plan) -> u64 {
    // The control socket, an eventfd for each ring, and as client the memory, and that of earlier connections if it cannot be taken
    // back: the sealer has the same limit.
    let kept = sealer::UNRETURNED_MAX as u64;
    let connected: u64 = plan.endpoints.values().map(|e| 2 + kept + 2 * u64::from(e.memif.queue_pairs)).sum();
    let to_come = plan.endpoints_max().saturating_sub(plan.endpoints.len()) as u64;
    let beforehand = u64::from(plan.pools.memif_regions);
    connected + to_come * (4 + kept) + server::descriptors_max(plan) + beforehand
}

fn memif_error(socket: &SocketAddr, reason: &impl ToString) -> Error {
    Error::Memif { socket: socket.to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
