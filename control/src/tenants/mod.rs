//! The tenants: programs that connect to us by memif (`server.rs`), those that we connect to (`client.rs`), and containers (`veth.rs`). Each is
//! at a port (`port.rs`), which carries an endpoint, or waits for one; those whose socket is tried again are in `later.rs`. Endpoints, ports and
//! the sockets that these are on come and go. Driven by the [daemon](crate::daemon)'s poll loop; nothing here waits for a tenant.
//!
//! What must hold: a tenant can only lose its own connection. Whoever breaks off, is refused or breaks the protocol
//! leaves nothing behind; handshakes are bounded in number and time, and attempts to connect in how often they are
//! made. And a turn costs what there is to do, however many endpoints there are.

mod client;
mod later;
mod port;
mod server;
mod slots;
mod veth;

use std::collections::{BTreeSet, HashMap, HashSet};
use std::io;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use peregrine_dataplane::engine::{Engine, TenantRings};
use peregrine_dataplane::plan::{EndpointPlan, NetworkPlan, Plan, PortKey, PortPlan, VethPlan};
use peregrine_dataplane::types::EndpointId;
use peregrine_memif::{Credentials, RegionPool, SocketAddr, sealer};

use crate::container::{Link, Maker, PoolCounts};
use crate::error::Error;
use later::Later;
use port::{Port, Role};
use server::{Listeners, Seat};
use slots::{Slot, Slots};
use veth::Veth;

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

/// An endpoint that comes, with what its container's interface is given, if it has one.
#[derive(Clone, Debug)]
pub struct Coming {
    /// Its place.
    pub id: EndpointId,
    /// What it is.
    pub plan: EndpointPlan,
    /// Of a veth.
    pub link: Option<Link>,
}

impl Coming {
    /// On this network.
    pub fn new(id: EndpointId, plan: &EndpointPlan, network: Option<&NetworkPlan>) -> Coming {
        Coming { id, plan: plan.clone(), link: network.and_then(|network| Link::of(plan, network)) }
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

/// All tenants.
#[derive(Debug)]
pub struct Tenants {
    /// From here on tokens are ours: one for each place that a port may have, then those of the listeners and handshakes.
    first: Token,
    listeners: Listeners,
    ports: Slots,
    by_endpoint: HashMap<EndpointId, Slot>,
    by_key: HashMap<PortKey, Slot>,
    /// Those whose socket has something to read.
    readable: Vec<Slot>,
    /// When those that we connect to, or make, want their next step.
    wanted: BTreeSet<(Instant, Slot)>,
    later: Later,
    maker: Maker,
    regions: Option<RegionPool>,
}

/// A tenant that was put out may come back after this long: so what it can do to others before it is put out again is a small
/// part of the time.
pub const FAULT_PAUSE: Duration = Duration::from_millis(100);
/// Places that ports may have: some with and some without endpoints.
const PORTS_MAX: usize = 1 << 17;
/// Attempts to connect in one turn, if more of them are due.
const DIALS_PER_TURN: usize = 64;

/// An endpoint that can be put in its place without anything that may fail.
struct Prepared {
    id: EndpointId,
    at: At,
}

enum At {
    /// A port that is there; with what its container gets when its place is free.
    Held(Slot, Option<Link>),
    /// One of its own.
    Own(Box<Port>),
}

impl Tenants {
    /// Listens on every socket of the plan that is ours. Those that are the tenants' are tried, and containers are looked for, from the first
    /// [`turn`](Self::turn) on.
    /// What we connect with has its memory from `regions`, if there are.
    pub fn bind(plan: &Plan, first: Token, regions: Option<RegionPool>) -> Result<Tenants, Error> {
        let maker = Maker::new(&plan.control_socket, plan.pools.containers.into())
            .map_err(|source| Error::System { doing: "prepare for containers", source })?;
        let mut tenants = Tenants {
            first,
            listeners: Listeners::new(Token(first.0 + PORTS_MAX)),
            ports: Slots::default(),
            by_endpoint: HashMap::new(),
            by_key: HashMap::new(),
            readable: Vec::new(),
            wanted: BTreeSet::new(),
            later: Later::default(),
            maker,
            regions,
        };
        let coming = |(id, endpoint): (EndpointId, &EndpointPlan)| {
            Coming::new(id, endpoint, plan.network(endpoint.network))
        };
        let coming: Vec<Coming> = plan.endpoints.iter().map(coming).collect();
        let prepared = tenants.prepare(None, &[], &coming, When::Later);
        let prepared = prepared.map_err(|(_, error)| error)?;
        tenants.put(prepared);
        Ok(tenants)
    }

    /// Joins the poll set.
    pub fn register(&mut self, registry: &Registry) -> io::Result<()> {
        self.listeners.register(registry)
    }

    /// Takes the interfaces away that an earlier daemon left in containers, and that are for no endpoint now.
    ///
    /// # Errors
    /// The kernel does not list its interfaces.
    pub fn remove_leftovers(&mut self) -> io::Result<usize> {
        let carrying = self.ports.values().filter(|port| port.endpoint.is_some());
        let veths = carrying.filter_map(|port| match &port.role {
            Role::Veth(veth) => Some(veth.plan()),
            _ => None,
        });
        self.maker.remove_others(veths)
    }

    /// Endpoints that go: who is connected or about to be is told, and sockets that nobody is on any more are removed.
    pub fn remove(&mut self, ids: &[EndpointId], now: Instant, rings: &mut impl Rings) {
        ids.iter().for_each(|id| self.take(*id, now, rings));
        self.listeners.close_unused();
    }

    /// Endpoints that go, and endpoints that come: sockets that are not there yet are made, and interfaces in containers; what is removed makes room for
    /// what is added, and a socket that both are on stays. All of it, or nothing.
    ///
    /// Those that come are served when the engine knows them: see [`attach`](Self::attach).
    ///
    /// # Errors
    /// Which of those that come cannot be, and why; nothing has changed then.
    pub fn change(
        &mut self,
        registry: &Registry,
        removed: &[EndpointId],
        added: &[Coming],
        now: Instant,
        rings: &mut impl Rings,
    ) -> Result<(), (usize, Error)> {
        let prepared = self.prepare(Some(registry), removed, added, When::Now(now))?;
        removed.iter().for_each(|id| self.take(*id, now, rings));
        self.put(prepared);
        self.listeners.close_unused();
        Ok(())
    }

    /// A container's interface gets the addresses that its endpoint has now.
    ///
    /// # Errors
    /// Why not. It has those that it had.
    pub fn refit(&mut self, coming: &Coming) -> Result<(), String> {
        let port = self.by_endpoint.get(&coming.id).and_then(|slot| self.ports.get_mut(*slot));
        match port.map(|port| &mut port.role) {
            Some(Role::Veth(veth)) => veth.refit(coming.link.as_ref(), &mut self.maker),
            _ => Ok(()),
        }
    }

    /// Those of these endpoints whose tenants are here already are served.
    pub fn attach(&mut self, ids: impl Iterator<Item = EndpointId>, now: Instant, rings: &mut impl Rings) {
        // What was put off since then is due.
        let now = now.max(Instant::now());
        for id in ids {
            let Some(slot) = self.by_endpoint.get(&id).copied() else { continue };
            if let Some(port) = self.ports.get_mut(slot) {
                // Why not stands in its record.
                let _refused = port.attach(now, rings);
                port.look(&mut self.maker, now, rings);
            }
            self.plan_next(slot);
        }
    }

    /// A port is there, whether it carries an endpoint or not, until it is [released](Self::release): memif tenants connect to it, and
    /// wait. `name` is what they are told that we are.
    ///
    /// # Errors
    /// It cannot be.
    pub fn hold(&mut self, registry: &Registry, name: &str, plan: &PortPlan) -> Result<(), Error> {
        if let Some(port) = self.by_key.get(&plan.key()).and_then(|slot| self.ports.get_mut(*slot)) {
            // Its endpoint was here first, as when both are tried again after a start.
            let was_held = std::mem::replace(&mut port.is_held, true);
            return if was_held { Err(port_error(plan, &"it is there already")) } else { Ok(()) };
        }
        if self.ports.len() >= PORTS_MAX {
            return Err(no_room(plan));
        }
        let (none, mut seats) = (HashSet::new(), HashSet::new());
        let prepared = self.prepare_port(Some(registry), &none, &mut seats, name, plan);
        let mut port = prepared.inspect_err(|_| self.listeners.close_unused())?;
        port.is_held = true;
        self.place(port);
        self.listeners.close_unused();
        Ok(())
    }

    /// Undoes [`hold`](Self::hold). If it carries an endpoint, it goes with that.
    pub fn release(&mut self, plan: &PortPlan, now: Instant, rings: &mut impl Rings) {
        if self.later.forget_held(plan) {
            return;
        }
        let Some(slot) = self.by_key.get(&plan.key()).copied() else { return };
        let Some(port) = self.ports.get_mut(slot) else { return };
        port.is_held = false;
        if port.endpoint.is_none() {
            self.discard(slot, "the port was removed", now, rings);
            self.listeners.close_unused();
        }
    }

    /// Makes all that may fail: listeners that nobody is on yet, interfaces in containers, and whatever there is to check. In case of an error they
    /// are gone again.
    fn prepare(
        &mut self,
        registry: Option<&Registry>,
        removed: &[EndpointId],
        added: &[Coming],
        when: When,
    ) -> Result<Vec<Prepared>, (usize, Error)> {
        let removed: HashSet<EndpointId> = removed.iter().copied().collect();
        let (mut prepared, mut seats, mut own) = (Vec::new(), HashSet::new(), 0);
        for (index, coming) in added.iter().enumerate() {
            let is_free = removed.contains(&coming.id) || !self.by_endpoint.contains_key(&coming.id);
            let made = match is_free {
                true => self.prepare_one(registry, &removed, &mut seats, coming, when),
                false => Err(port_error(
                    &coming.plan.port,
                    &format!("endpoint {} is there already", coming.plan.name),
                )),
            };
            let made = match made {
                Ok(At::Own(mut port)) if self.ports.len() + own >= PORTS_MAX => {
                    port.put_away(&mut self.maker);
                    Err(no_room(&coming.plan.port))
                }
                made => made,
            };
            own += usize::from(matches!(made, Ok(At::Own(_))));
            match made {
                Ok(at) => prepared.push(Prepared { id: coming.id, at }),
                Err(error) => {
                    self.undo(prepared);
                    return Err((index, error));
                }
            }
        }
        Ok(prepared)
    }

    fn undo(&mut self, prepared: Vec<Prepared>) {
        for Prepared { at, .. } in prepared {
            let maker = &mut self.maker;
            match at {
                At::Own(mut port) => port.put_away(maker),
                // One that still carries what it carried before has nothing new yet.
                At::Held(_, Some(_)) => {}
                At::Held(slot, None) => {
                    self.ports.get_mut(slot).into_iter().for_each(|port| port.put_away(maker));
                }
            }
        }
        self.listeners.close_unused();
    }

    fn prepare_one(
        &mut self,
        registry: Option<&Registry>,
        removed: &HashSet<EndpointId>,
        seats: &mut HashSet<(usize, u32)>,
        coming: &Coming,
        when: When,
    ) -> Result<At, Error> {
        let plan = &coming.plan;
        if let Some(slot) = self.by_key.get(&plan.port.key()).copied()
            && let Some(port) = self.ports.get_mut(slot)
            && port.is_held
        {
            if port.endpoint.is_some_and(|id| !removed.contains(&id)) {
                return Err(port_error(&plan.port, &"it carries another endpoint"));
            }
            // What it carried before is taken away only when nothing can fail any more: its container's interface is in the way until then.
            if port.endpoint.is_some() {
                return Ok(At::Held(slot, coming.link.clone()));
            }
            let prepared = port.prepare(coming, &mut self.maker, when);
            return prepared.map(|()| At::Held(slot, None)).map_err(|why| port_error(&plan.port, &why));
        }
        // One that goes is in the way of its own successor until it is gone.
        let in_the_way = self.by_key.contains_key(&plan.port.key());
        let when = if in_the_way && matches!(when, When::Now(_)) { When::Later } else { when };
        let mut port = self.prepare_port(registry, removed, seats, &plan.name, &plan.port)?;
        port.prepare(coming, &mut self.maker, when).map_err(|why| port_error(&plan.port, &why))?;
        Ok(At::Own(Box::new(port)))
    }

    fn prepare_port(
        &mut self,
        registry: Option<&Registry>,
        removed: &HashSet<EndpointId>,
        seats: &mut HashSet<(usize, u32)>,
        name: &str,
        plan: &PortPlan,
    ) -> Result<Port, Error> {
        let memif = match plan {
            PortPlan::Memif(memif) => memif,
            PortPlan::Veth(veth) => return Ok(Port::new(plan.key(), Role::Veth(Box::new(Veth::new(veth))))),
        };
        let Some(listener) = self.listeners.open(registry, memif)? else {
            return Port::memif(name, memif, None, self.regions.as_ref());
        };
        let seat = Seat { listener, id: memif.id, queue_pairs: memif.queue_pairs };
        let sitting = self.listeners.sitting(listener, memif.id).and_then(|slot| self.ports.get(slot));
        let goes = |port: &Port| !port.is_held && port.endpoint.is_some_and(|id| removed.contains(&id));
        if sitting.is_some_and(|port| !goes(port)) || !seats.insert((listener, memif.id)) {
            return Err(memif_error(&memif.socket, &format!("its id {} is another's", memif.id)));
        }
        Port::memif(name, memif, Some(seat), self.regions.as_ref())
    }

    fn put(&mut self, prepared: Vec<Prepared>) {
        for Prepared { id, at } in prepared {
            let (slot, link) = match at {
                At::Held(slot, link) => (slot, link),
                At::Own(port) => (self.place(*port), None),
            };
            if let Some(port) = self.ports.get_mut(slot) {
                port.endpoint = Some(id);
                link.iter().for_each(|link| port.want(link));
            }
            self.by_endpoint.insert(id, slot);
            self.plan_next(slot);
        }
    }

    fn place(&mut self, port: Port) -> Slot {
        let seat = port.seat();
        let key = port.key.clone();
        let slot = self.ports.put(port);
        self.by_key.insert(key, slot);
        if let Some(seat) = seat {
            self.listeners.sit(seat, slot);
        }
        self.plan_next(slot);
        slot
    }

    fn take(&mut self, id: EndpointId, now: Instant, rings: &mut impl Rings) {
        const WHY: &str = "the endpoint was removed";
        if self.later.forget(id) {
            return;
        }
        let Some(slot) = self.by_endpoint.remove(&id) else { return };
        let Some(port) = self.ports.get_mut(slot) else { return };
        if !port.is_held {
            return self.discard(slot, WHY, now, rings);
        }
        // What its tenant's memory holds of this endpoint is not for the next one: it connects again.
        port.end(WHY, Some(WHY), now, rings);
        port.put_away(&mut self.maker);
        port.endpoint = None;
        self.plan_next(slot);
    }

    fn discard(&mut self, slot: Slot, why: &str, now: Instant, rings: &mut impl Rings) {
        let Some(mut port) = self.ports.take(slot) else { return };
        port.end(why, Some(why), now, rings);
        port.put_away(&mut self.maker);
        self.by_key.remove(&port.key);
        if let Some(at) = port.planned {
            self.wanted.remove(&(at, slot));
        }
        if let Some(seat) = port.seat() {
            self.listeners.rise(seat, why);
        }
    }

    /// The poll has something for one of our tokens.
    pub fn ready(&mut self, token: Token) {
        let slot = token.0.wrapping_sub(self.first.0);
        match slot.checked_sub(PORTS_MAX) {
            None => {
                let slot = Slot(slot);
                if let Some(port) = self.ports.get_mut(slot) {
                    port.readable = true;
                }
                self.plan_next(slot);
            }
            Some(slot) => self.listeners.ready(slot),
        }
    }

    /// Notices who left, moves our own attempts and the tenants' handshakes on, lets new clients in; in this order, so
    /// that who comes back at once finds the id free, and who waits a place.
    pub fn turn(&mut self, registry: &Registry, now: Instant, rings: &mut impl Rings) {
        for slot in self.due(now) {
            let watch = self.watch(registry, slot);
            if let Some(port) = self.ports.get_mut(slot) {
                port.is_listed = false;
                port.notice_end(now, rings);
                port.dial(watch, now, rings);
                port.look(&mut self.maker, now, rings);
            }
            self.plan_next(slot);
        }
        for (slot, interface) in self.listeners.step(now, &mut self.ports) {
            let watch = self.watch(registry, slot);
            if let Some(port) = self.ports.get_mut(slot)
                && let Err(why) = port.connect(interface, watch, now, rings)
            {
                port.refused(why);
            }
            self.plan_next(slot);
        }
        self.listeners.accept(registry, now);
    }

    fn watch<'r>(&self, registry: &'r Registry, slot: Slot) -> Watch<'r> {
        Watch { registry, token: Token(self.first.0 + slot.0) }
    }

    /// Those that have something to do now.
    fn due(&mut self, now: Instant) -> Vec<Slot> {
        let mut due = std::mem::take(&mut self.readable);
        let dials = self.wanted.iter().take_while(|(at, _)| *at <= now).take(DIALS_PER_TURN);
        due.extend(dials.map(|(_, slot)| *slot));
        due
    }

    /// Notes when this one has something to do next.
    fn plan_next(&mut self, slot: Slot) {
        let Some(port) = self.ports.get_mut(slot) else { return };
        let wanted = port.deadline();
        if port.planned != wanted {
            if let Some(at) = port.planned {
                self.wanted.remove(&(at, slot));
            }
            self.wanted.extend(wanted.map(|at| (at, slot)));
            port.planned = wanted;
        }
        if port.readable && !port.is_listed {
            port.is_listed = true;
            self.readable.push(slot);
        }
    }

    /// What the pool of containers' parts has, if there is one.
    pub fn pool(&self) -> Option<PoolCounts> {
        self.maker.pool_counts()
    }

    /// Starts the pool of containers' parts, if there is to be one.
    ///
    /// # Errors
    /// One line.
    pub fn begin_pool(&mut self) -> Result<(), String> {
        self.maker.begin()
    }

    /// The first turns, at a start: each container's interface, and each tenant that listens, is tried once.
    pub fn begin(&mut self, registry: &Registry, rings: &mut impl Rings) {
        let now = Instant::now();
        for _ in 0..self.ports.len().div_ceil(DIALS_PER_TURN) {
            self.turn(registry, now, rings);
        }
    }

    /// When [`turn`](Self::turn) is wanted next, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        self.wanted.first().map(|(at, _)| *at).into_iter().chain(self.listeners.deadline()).min()
    }

    /// Puts out a tenant that broke the protocol on its rings. One that hung up before this was known is barred as well.
    pub fn fault(&mut self, id: EndpointId, reason: &str, now: Instant, rings: &mut impl Rings) {
        let Some(slot) = self.by_endpoint.get(&id).copied() else { return };
        let Some(port) = self.ports.get_mut(slot) else { return };
        port.record.faults += 1;
        port.barred_until = Some(now + FAULT_PAUSE);
        port.end(reason, Some(reason), now, rings);
        port.record.last_end = Some(reason.to_owned());
        self.plan_next(slot);
    }

    /// The kernel has removed an interface: if it was a container's, its namespace is gone, most likely.
    pub fn interface_gone(&mut self, ifindex: u32, now: Instant, rings: &mut impl Rings) {
        let is_it = |port: &Port| matches!(&port.role, Role::Veth(veth) if veth.pair().is_some_and(|pair| pair.ifindex == ifindex));
        let Some(slot) = self.ports.find(is_it) else { return };
        if let Some(port) = self.ports.get_mut(slot) {
            port.interface_gone(&mut self.maker, now, rings);
        }
        self.plan_next(slot);
    }

    /// Some of the kernel's words were lost: looks which containers' interfaces there still are.
    pub fn look_for_interfaces(&mut self, now: Instant, rings: &mut impl Rings) {
        let numbers = self.ports.values().filter_map(|port| match &port.role {
            Role::Veth(veth) => veth.pair().map(|pair| pair.ifindex),
            _ => None,
        });
        let numbers: Vec<u32> = numbers.collect();
        if numbers.is_empty() {
            return;
        }
        let Ok(there) = self.maker.interfaces() else { return };
        for ifindex in numbers.into_iter().filter(|ifindex| !there.contains(ifindex)) {
            self.interface_gone(ifindex, now, rings);
        }
    }

    /// Says goodbye to everybody, stops listening and connecting. Containers keep their interfaces: the next daemon drives them.
    pub fn stop(mut self, now: Instant, rings: &mut impl Rings) {
        for slot in self.ports.all() {
            if let Some(port) = self.ports.get_mut(slot) {
                port.end("stopped", Some("the daemon is stopping"), now, rings);
            }
        }
    }

    /// An endpoint's record.
    pub fn record(&self, id: EndpointId) -> Option<&TenantRecord> {
        let port = self.by_endpoint.get(&id).and_then(|slot| self.ports.get(*slot));
        port.map(|port| &port.record).or_else(|| self.later.record(id))
    }

    /// A port's record, whether it carries an endpoint or not.
    pub fn record_of(&self, plan: &PortPlan) -> Option<&TenantRecord> {
        let port = self.by_key.get(&plan.key()).and_then(|slot| self.ports.get(*slot));
        port.map(|port| &port.record)
    }

    /// The name of our end of a veth.
    pub fn device(&self, veth: &VethPlan) -> Option<String> {
        self.maker.device(veth)
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
    let memifs = plan.endpoints.values().filter_map(|endpoint| endpoint.port.memif());
    let connected: u64 = memifs.map(|memif| 2 + kept + 2 * u64::from(memif.queue_pairs)).sum();
    // The socket of a port and its program's link.
    let containers =
        2 * plan.endpoints.values().filter(|endpoint| endpoint.port.veth().is_some()).count() as u64;
    let to_come = plan.endpoints_max().saturating_sub(plan.endpoints.len()) as u64;
    let beforehand = u64::from(plan.pools.memif_regions) + 5 * u64::from(plan.pools.containers);
    connected + beforehand + containers + to_come * (4 + kept) + server::descriptors_max(plan)
}

/// When what a container gets is made.
#[derive(Clone, Copy)]
enum When {
    /// At once, or it is an error.
    Now(Instant),
    /// When it can be.
    Later,
    /// The same of what was declared before this daemon began.
    Again,
}

fn no_room(plan: &PortPlan) -> Error {
    port_error(plan, &format!("there are {PORTS_MAX} ports already: remove some"))
}

fn port_error(plan: &PortPlan, reason: &impl ToString) -> Error {
    match plan {
        PortPlan::Memif(memif) => memif_error(&memif.socket, reason),
        PortPlan::Veth(veth) => Error::Container {
            interface: veth.interface.clone(),
            namespace: veth.namespace.to_string(),
            reason: reason.to_string(),
        },
    }
}

fn memif_error(socket: &SocketAddr, reason: &impl ToString) -> Error {
    Error::Memif { socket: socket.to_string(), reason: reason.to_string() }
}

#[cfg(test)]
mod tests;
