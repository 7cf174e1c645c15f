//! Ports where we are the server: one listener for each socket, as long as a port is on it, and the handshakes of clients that have
//! connected to it.
//!
//! What must hold: a client can only lose its own connection. Handshakes are bounded in number and time, and with
//! them the descriptors that clients may send; a client that is refused or breaks off leaves nothing behind; its id
//! can be used again at once, or after [`FAULT_PAUSE`](super::FAULT_PAUSE) if it was put out. Sockets take turns in letting clients in: a
//! crowd at one does not keep the others' out.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::io;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Interest, Registry, Token};
use peregrine_dataplane::plan::{MemifPlan, MemifRole, Plan};
use peregrine_memif::{
    Handshake, Interface, Limits, Listener, ListenerConfig, Progress, Refusal, ServerConfig, SocketAddr,
    sealer,
};

use super::port::{Port, Role};
use super::{Slot, Slots, memif_error};
use crate::error::Error;
use crate::socket;

/// Handshakes at the same time, over all sockets.
pub const HANDSHAKES_MAX: usize = 32;
/// Regions of one tenant.
const REGIONS_MAX: u16 = 16;
/// A handshake must be over in this time.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// In one turn, how long clients' memory is waited for that is being sealed: it takes microseconds, unless somebody keeps it locked.
const SEAL_PATIENCE: Duration = Duration::from_millis(1);
/// When all places are taken, a handshake that is as old as this makes room: an honest one takes a millisecond.
pub const EVICT_AFTER: Duration = Duration::from_millis(100);
/// After a failed accept (no descriptors left) the next try is so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// All sockets that we listen on, and the handshakes there.
#[derive(Debug)]
pub struct Listeners {
    /// The tokens from here on are ours: one for each handshake, then one for each listener.
    first: Token,
    /// With gaps: tokens are known by place.
    listeners: Vec<Option<Listening>>,
    by_socket: HashMap<SocketAddr, usize>,
    /// Gaps, and those that nobody may be on any more.
    vacant: Vec<usize>,
    unused: Vec<usize>,
    handshakes: Vec<Option<Pending>>,
    /// Where clients may wait to be let in, in turn.
    crowded: VecDeque<usize>,
    /// Nobody is let in before.
    paused_until: Option<Instant>,
}

/// Where at our sockets a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Seat {
    /// The listener's place.
    pub listener: usize,
    /// The interface id.
    pub id: u32,
    /// The most that it takes.
    pub queue_pairs: u16,
}

#[derive(Debug)]
struct Listening {
    listener: Listener,
    addr: SocketAddr,
    ids: HashMap<u32, Slot>,
    /// How many of them take so many queue pairs: the most is what clients are told.
    queue_pairs: BTreeMap<u16, usize>,
    /// It is among the crowded ones.
    is_crowded: bool,
}

#[derive(Debug)]
struct Pending {
    handshake: Handshake,
    listener: usize,
    readable: bool,
    since: Instant,
}

impl Listeners {
    /// None yet. Tokens from `first` on are ours.
    pub fn new(first: Token) -> Listeners {
        Listeners {
            first,
            listeners: Vec::new(),
            by_socket: HashMap::new(),
            vacant: Vec::new(),
            unused: Vec::new(),
            handshakes: std::iter::repeat_with(|| None).take(HANDSHAKES_MAX).collect(),
            crowded: VecDeque::new(),
            paused_until: None,
        }
    }

    /// Joins the poll set, with all listeners that were opened without one.
    pub fn register(&self, registry: &Registry) -> io::Result<()> {
        for (place, listening) in self.listeners.iter().enumerate() {
            if let Some(Listening { listener, .. }) = listening {
                self.watch(place, listener, registry)?;
            }
        }
        Ok(())
    }

    fn watch(&self, place: usize, listener: &Listener, registry: &Registry) -> io::Result<()> {
        let token = Token(self.first.0 + HANDSHAKES_MAX + place);
        registry.register(&mut SourceFd(&listener.as_raw_fd()), token, Interest::READABLE)
    }

    /// The place of the listener on this socket, which is made if it is not there yet; `None` where we do not listen. Unless somebody
    /// [sits](Self::sit) down there, [`close_unused`](Self::close_unused) closes it.
    pub fn open(&mut self, registry: Option<&Registry>, memif: &MemifPlan) -> Result<Option<usize>, Error> {
        if let MemifRole::Client { .. } = memif.role {
            return Ok(None);
        }
        if let Some(place) = self.by_socket.get(&memif.socket) {
            return Ok(Some(*place));
        }
        let listener = listen(memif)?;
        let place = self.vacant.pop().unwrap_or(self.listeners.len());
        if let Some(registry) = registry
            && let Err(e) = self.watch(place, &listener, registry)
        {
            self.vacant.extend((place < self.listeners.len()).then_some(place));
            return Err(memif_error(&memif.socket, &format!("it cannot be watched: {e}")));
        }
        let addr = memif.socket.clone();
        self.by_socket.insert(addr.clone(), place);
        let listening = Listening {
            listener,
            addr,
            ids: HashMap::new(),
            queue_pairs: BTreeMap::new(),
            is_crowded: false,
        };
        match self.listeners.get_mut(place) {
            Some(vacant) => *vacant = Some(listening),
            None => self.listeners.push(Some(listening)),
        }
        self.unused.push(place);
        Ok(Some(place))
    }

    /// Which port has this id there.
    pub fn sitting(&self, listener: usize, id: u32) -> Option<Slot> {
        self.listeners.get(listener)?.as_ref()?.ids.get(&id).copied()
    }

    /// A port takes its seat.
    pub fn sit(&mut self, seat: Seat, port: Slot) {
        if let Some(Some(listening)) = self.listeners.get_mut(seat.listener) {
            listening.ids.insert(seat.id, port);
            *listening.queue_pairs.entry(seat.queue_pairs).or_default() += 1;
            listening.limit_rings();
        }
    }

    /// It gives its seat up; clients that are about to connect to it are told why.
    pub fn rise(&mut self, seat: Seat, why: &str) {
        let Some(Some(listening)) = self.listeners.get_mut(seat.listener) else { return };
        listening.ids.remove(&seat.id);
        if let Some(count) = listening.queue_pairs.get_mut(&seat.queue_pairs) {
            *count -= 1;
            if *count == 0 {
                listening.queue_pairs.remove(&seat.queue_pairs);
            }
        }
        listening.limit_rings();
        if listening.is_unused() {
            self.unused.push(seat.listener);
        }
        self.refuse(why, |pending| {
            pending.listener == seat.listener && pending.handshake.id() == Some(seat.id)
        });
    }

    /// Closes the listeners that nobody is on any more, and removes their files.
    pub fn close_unused(&mut self) {
        for place in std::mem::take(&mut self.unused) {
            let Some(at) = self.listeners.get_mut(place) else { continue };
            let Some(listening) = at.take_if(|listening| listening.is_unused()) else { continue };
            self.by_socket.remove(&listening.addr);
            self.crowded.retain(|crowded| !listening.is_crowded || *crowded != place);
            self.vacant.push(place);
            self.refuse("the socket was removed", |pending| pending.listener == place);
        }
    }

    fn refuse(&mut self, why: &str, which: impl Fn(&Pending) -> bool) {
        for place in &mut self.handshakes {
            if let Some(pending) = place.take_if(|pending| which(pending)) {
                pending.handshake.refuse(why);
            }
        }
    }

    /// The poll has something for one of our tokens, counted from the first.
    pub fn ready(&mut self, slot: usize) {
        let Some(place) = slot.checked_sub(HANDSHAKES_MAX) else {
            if let Some(Some(pending)) = self.handshakes.get_mut(slot) {
                pending.readable = true;
            }
            return;
        };
        if let Some(Some(listening)) = self.listeners.get_mut(place)
            && !listening.is_crowded
        {
            listening.is_crowded = true;
            self.crowded.push_back(place);
        }
    }

    /// When something is wanted next, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let handshakes = self.handshakes.iter().flatten().map(|p| p.handshake.deadline());
        handshakes.chain(self.accept_at()).min()
    }

    /// When clients that wait can be let in: there was no place for them, or accepting failed.
    fn accept_at(&self) -> Option<Instant> {
        self.crowded.front()?;
        self.paused_until.or_else(|| Some(self.oldest()?.0 + EVICT_AFTER))
    }

    /// Handshakes in progress.
    pub fn handshakes(&self) -> usize {
        self.handshakes.iter().flatten().count()
    }

    /// Lets new clients in, as many as there is room for; the others wait in their listener's queue.
    pub fn accept(&mut self, registry: &Registry, now: Instant) {
        if self.paused_until.is_some_and(|until| now < until) {
            return;
        }
        self.paused_until = None;
        while let Some(place) = self.crowded.front().copied()
            && let Some(slot) = self.free_slot(now)
        {
            self.crowded.pop_front();
            let Some(Some(listening)) = self.listeners.get_mut(place) else { continue };
            let accepted = listening.listener.accept();
            listening.is_crowded = !matches!(accepted, Ok(None));
            if listening.is_crowded {
                self.crowded.push_back(place);
            }
            match accepted {
                Ok(Some(handshake)) => self.begin(slot, handshake, place, registry, now),
                Ok(None) => {}
                Err(_) => {
                    self.paused_until = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// A place for a handshake: if none is free, that of one that has had its time.
    fn free_slot(&self, now: Instant) -> Option<usize> {
        let free = self.handshakes.iter().position(Option::is_none);
        free.or_else(|| {
            let (since, slot) = self.oldest()?;
            (now.saturating_duration_since(since) >= EVICT_AFTER).then_some(slot)
        })
    }

    fn oldest(&self) -> Option<(Instant, usize)> {
        self.handshakes.iter().enumerate().filter_map(|(slot, p)| Some((p.as_ref()?.since, slot))).min()
    }

    fn begin(
        &mut self,
        slot: usize,
        handshake: Handshake,
        listener: usize,
        registry: &Registry,
        now: Instant,
    ) {
        let token = Token(self.first.0 + slot);
        let registered = handshake
            .raw_socket()
            .is_some_and(|fd| registry.register(&mut SourceFd(&fd), token, Interest::READABLE).is_ok());
        if let (true, Some(place)) = (registered, self.handshakes.get_mut(slot)) {
            *place = Some(Pending { handshake, listener, readable: true, since: now });
        }
    }

    /// Moves the handshakes on for which it is time. Of those that have come to their end: at which port, and the connection.
    ///
    /// The clients' memory is sealed elsewhere, all of it at the same time; that is waited for here, once for all.
    pub fn step(&mut self, now: Instant, ports: &mut Slots) -> Vec<(Slot, Interface)> {
        let mut done = Vec::new();
        let mut sealing = Vec::new();
        for slot in 0..HANDSHAKES_MAX {
            let Some(Some(pending)) = self.handshakes.get_mut(slot) else { continue };
            if std::mem::take(&mut pending.readable) || now >= pending.handshake.deadline() {
                let was_sealing = pending.handshake.is_sealing();
                done.extend(self.step_one(slot, now, ports));
                sealing.extend((!was_sealing && self.is_sealing(slot)).then_some(slot));
            }
        }
        let end = Instant::now() + SEAL_PATIENCE;
        while !sealing.is_empty() {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || !sealer::wait(left) {
                break;
            }
            // The answer may be to another one that waits, from an earlier turn.
            for slot in 0..HANDSHAKES_MAX {
                if matches!(self.handshakes.get(slot), Some(Some(pending)) if pending.handshake.is_answered())
                {
                    done.extend(self.step_one(slot, now, ports));
                }
            }
            sealing.retain(|slot| self.is_sealing(*slot));
        }
        done
    }

    fn is_sealing(&self, slot: usize) -> bool {
        matches!(self.handshakes.get(slot), Some(Some(pending)) if pending.handshake.is_sealing())
    }

    fn step_one(&mut self, slot: usize, now: Instant, ports: &mut Slots) -> Option<(Slot, Interface)> {
        let place = self.handshakes.get_mut(slot)?;
        let pending = place.as_mut()?;
        let ids = &self.listeners.get(pending.listener)?.as_ref()?.ids;
        let mut asked = None;
        let result = pending.handshake.step(&mut |request| {
            asked = ids.get(&request.id).copied();
            let port = asked.and_then(|port| ports.get(port));
            port.ok_or(Refusal::UnknownId).and_then(|port| port.admit(now))
        });
        let known = asked.or_else(|| pending.handshake.id().and_then(|id| ids.get(&id).copied()));
        match result {
            Ok(Progress::Pending) => None,
            Ok(Progress::Connected(interface)) => {
                let port = ids.get(&interface.id).copied();
                *place = None;
                port.map(|port| (port, *interface))
            }
            Err(why) => {
                *place = None;
                ports.get_mut(known?)?.refused(why.to_string());
                None
            }
        }
    }
}

impl Listening {
    fn is_unused(&self) -> bool {
        self.ids.is_empty()
    }

    fn limit_rings(&mut self) {
        if let Some((most, _)) = self.queue_pairs.last_key_value() {
            self.listener.set_rings_max(*most);
        }
    }
}

/// Listens on a socket. What it has once, its mode and owner, all endpoints on it say the same.
fn listen(memif: &MemifPlan) -> Result<Listener, Error> {
    if let Some(path) = memif.socket.path() {
        socket::make_directory(path)?;
    }
    let limits = Limits {
        handshake_timeout: HANDSHAKE_TIMEOUT,
        seal_patience: Duration::ZERO,
        regions_max: REGIONS_MAX,
        rings_max: memif.queue_pairs,
        ..Limits::default()
    };
    let (mode, owner) = match memif.role {
        MemifRole::Server { mode, owner, group, .. } => (mode, ownership(owner, group)),
        MemifRole::Client { .. } => (None, None),
    };
    let config = ListenerConfig { mode, owner, limits, ..ListenerConfig::default() };
    Listener::bind(&memif.socket, config).map_err(|e| memif_error(&memif.socket, &e))
}

/// Of owner and group, what is not given is ours.
fn ownership(owner: Option<u32>, group: Option<u32>) -> Option<(u32, u32)> {
    if owner.is_none() && group.is_none() {
        return None;
    }
    let owner = owner.unwrap_or_else(|| rustix::process::geteuid().as_raw());
    Some((owner, group.unwrap_or_else(|| rustix::process::getegid().as_raw())))
}

impl Port {
    /// A client asks for it.
    fn admit(&self, now: Instant) -> Result<ServerConfig, Refusal> {
        match &self.role {
            Role::Server(..) if self.is_barred(now) => Err(Refusal::TooSoon),
            Role::Server(..) if self.control.is_some() => Err(Refusal::AlreadyConnected),
            Role::Server(config, _) => Ok((**config).clone()),
            Role::Client(_) | Role::Veth(_) => Err(Refusal::UnknownId),
        }
    }
}

/// Descriptors that handshakes may need at the same time: of each the connection, the regions and the eventfds.
pub fn descriptors_max(plan: &Plan) -> u64 {
    let memifs = plan.endpoints.values().filter_map(|endpoint| endpoint.port.memif());
    let rings = memifs.map(|memif| 2 * u64::from(memif.queue_pairs)).max().unwrap_or(0);
    HANDSHAKES_MAX as u64 * (1 + u64::from(REGIONS_MAX) + rings)
}
