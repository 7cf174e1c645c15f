//! The tenants that a worker serves: their rings and what they did wrong; whose turn it is, is up to `turns`.
//!
//! A tenant is served through the rings of a memif connection, or, if it is a container that knows nothing of us, through a port
//! (`port.rs`), our end of its veth.
//!
//! Each ring has one user, the worker that it was attached to: it is moved here and has no second owner. A tenant may have
//! several each way (queue pairs): what it sends is taken from all of them in turn, what is for it is spread over them by
//! flow, so that each flow keeps its order; where there are priority classes, these have queues of their own, and the first one of what it
//! sends is looked at in between (`worker/by_class.rs`). A tenant that breaks the ring protocol, or sends more
//! than [`BAD_DESCRIPTORS_MAX`] bad descriptors, is put out: its rings go back to control, which hangs up and unmaps.
//! Nobody else notices.

use std::os::fd::BorrowedFd;
use std::time::Instant;

use peregrine_memif::{PushError, RxRing, TxRing, Violation, Watch};

use crate::clock::{cycles, thread_time_ns};
use crate::counters::{DropReason, WorkerCounters};
use crate::discard::Discard;
use crate::frame::Frame;
use crate::plan::PlaceId;
use crate::port::Port;
use crate::tables::Tables;
use crate::turns::Turns;
use crate::types::{EndpointId, NetworkId};
use crate::wire::flow::flow_hash;

/// Bad descriptors after which a tenant is put out. A correct tenant sends none.
pub const BAD_DESCRIPTORS_MAX: u32 = 256;

/// Most rings of a tenant in one direction.
pub const QUEUES_MAX: usize = 8;

/// A wake-up that takes longer than so many cycles (some 10 µs; a usual one takes 1 to 5) is suspect: those of that tenant that follow are
/// measured in processor time, because a worker that loses its core in the middle of one must blame nobody. They are for
/// [`FORGIVEN_SHARE`] times as long as that one took: so what suspects cost that nobody has measured is no more than is forgiven.
const SUSPECT_WAKEUP_CYCLES: u64 = 30_000;
/// Processor time that each wake-up may take (with 10 µs an honest tenant was put out where a hypervisor takes part in waking); and what
/// they take beyond it, all together, before the tenant is put out. One nanosecond in [`FORGIVEN_SHARE`] that pass is forgiven.
const FREE_WAKEUP_NS: u64 = 20_000;
const SLOW_WAKEUP_DEBT_MAX_NS: u64 = 10_000_000;
const FORGIVEN_SHARE: u64 = 100;

/// First queues that are looked at each time.
pub const FIRST_LOOKS: usize = 4;

/// Both directions of a tenant's connection: 1 to [`QUEUES_MAX`] rings each.
#[derive(Debug)]
pub struct TenantRings {
    /// Packets from the tenant.
    pub rx: Vec<RxRing>,
    /// Packets to the tenant.
    pub tx: Vec<TxRing>,
    /// In place of both.
    instead: Option<Instead>,
    account: Account,
}

/// What an endpoint is served through, if not by the rings of a memif connection.
#[derive(Debug)]
enum Instead {
    /// There is no tenant, and what is for it is only counted.
    Discard(Box<Discard>),
    /// A container that knows nothing of us.
    Port(Box<dyn Port>),
}

/// What the tenant of a connection did wrong so far, and what of it is watched. It goes along when another worker serves it: nobody is
/// forgiven for being moved.
#[derive(Clone, Copy, Default, Debug)]
struct Account {
    bad_descriptors: u32,
    /// So many of its events, the first ones, the worker watches where it may sleep.
    watched: u8,
    /// The endpoint's, as the worker that let go of it knew it.
    wakeups: WakeupDebt,
}

impl TenantRings {
    /// Those of a connection.
    pub fn new(rx: Vec<RxRing>, tx: Vec<TxRing>) -> TenantRings {
        TenantRings { rx, tx, instead: None, account: Account::default() }
    }

    /// No tenant, only a count.
    pub fn discard(discard: Discard) -> TenantRings {
        TenantRings::without_rings(Instead::Discard(Box::new(discard)))
    }

    /// A container's.
    pub fn port(port: impl Port + 'static) -> TenantRings {
        TenantRings::without_rings(Instead::Port(Box::new(port)))
    }

    fn without_rings(instead: Instead) -> TenantRings {
        TenantRings { instead: Some(instead), ..TenantRings::new(Vec::new(), Vec::new()) }
    }

    /// Somebody is there to whom it matters what comes and goes.
    pub fn is_tenant(&self) -> bool {
        !matches!(self.instead, Some(Instead::Discard(_)))
    }

    /// What tells that packets have come from it, for one who sleeps, and whether that is a shared eventfd, which tells it once, or a socket,
    /// which tells it as long as they are there.
    pub(crate) fn events(&self) -> impl Iterator<Item = (BorrowedFd<'_>, EventKind)> {
        let port = match &self.instead {
            Some(Instead::Port(port)) => Some((port.event_fd(), EventKind::Socket)),
            _ => None,
        };
        self.rx.iter().map(|ring| (ring.event_fd(), EventKind::Shared)).chain(port)
    }

    /// Those of them that are watched.
    pub(crate) fn watched_events(&self) -> impl Iterator<Item = (BorrowedFd<'_>, EventKind)> {
        self.events().take(self.account.watched.into())
    }

    /// The numbers of rings are within the bounds.
    pub fn is_complete(&self) -> bool {
        if self.instead.is_some() {
            return self.rx.is_empty() && self.tx.is_empty();
        }
        let good = 1..=QUEUES_MAX;
        good.contains(&self.rx.len()) && good.contains(&self.tx.len())
    }
}

/// What kind of descriptor tells that packets have come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum EventKind {
    /// An eventfd that the tenant has as well.
    Shared,
    /// An AF_XDP socket.
    Socket,
}

/// How far a tenant may be left alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Armed {
    /// It will call.
    Quiet,
    /// It will call, but what is for it waits, and is to be offered again after some time.
    Owed,
    /// There is something to take from it.
    Pending,
}

/// How far all tenants may be left alone.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Calm {
    /// Some have something to be taken.
    pub(crate) is_pending: bool,
    /// Some must be looked at after a time.
    pub(crate) is_owed: bool,
}

/// Why a tenant is put out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// It broke the ring protocol.
    Protocol(Violation),
    /// It sent too many bad descriptors.
    BadDescriptors,
    /// Waking it takes so long, again and again, that others suffer: its eventfd has very many waiters.
    SlowWakeups,
    /// Its interface was deleted, most often with the namespace of its container.
    Gone,
}

impl From<Violation> for Fault {
    fn from(violation: Violation) -> Fault {
        Fault::Protocol(violation)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Fault::Protocol(violation) => violation.fmt(f),
            Fault::SlowWakeups => f.write_str("waking it through its eventfd takes too long"),
            Fault::Gone => f.write_str("its interface is gone, most likely with its namespace"),
            Fault::BadDescriptors => write!(f, "more than {BAD_DESCRIPTORS_MAX} bad descriptors"),
        }
    }
}

/// A tenant that is attached.
#[derive(Debug)]
pub struct Tenant {
    /// Tells this connection from those before it.
    serial: u64,
    rings: TenantRings,
    /// The queue that its next turn begins with.
    first_queue: usize,
    fault: Option<Fault>,
    /// Queues pushed to since the last flush, one bit each.
    unflushed: u8,
    /// Of these pushes one at least was for this tenant alone.
    was_meant: bool,
    /// Its first queue had something that is not urgent, since its last turn.
    is_mixed: bool,
    /// It was asked to call when it sends. Who was not stands among the busy ones, where the worker sleeps at times.
    is_armed: bool,
}

/// What an endpoint's slow wake-ups have cost and was not yet forgiven; it stays over connections to the same worker.
#[derive(Clone, Copy, Default, Debug)]
struct WakeupDebt {
    ns: u64,
    /// When it was last added to.
    at: Option<Instant>,
    /// Wake-ups are measured until then, in cycles.
    watched_until: u64,
}

impl WakeupDebt {
    /// A wake-up that began at `before` is over: if it took long, those that follow are measured.
    #[inline]
    fn watch(&mut self, before: u64) {
        let now = cycles();
        let spent = now.saturating_sub(before);
        if spent > SUSPECT_WAKEUP_CYCLES {
            let until = now.saturating_add(spent.saturating_mul(FORGIVEN_SHARE));
            self.watched_until = self.watched_until.max(until);
        }
    }

    /// Adds a slow wake-up.
    fn add(&mut self, spent_ns: u64, now: Instant) {
        self.ns = self.unforgiven_ns(now).saturating_add(spent_ns);
        self.at = Some(now);
    }

    fn unforgiven_ns(&self, now: Instant) -> u64 {
        let passed = self.at.map_or(0, |at| now.saturating_duration_since(at).as_nanos() as u64);
        self.ns.saturating_sub(passed / FORGIVEN_SHARE)
    }

    /// Of what two workers know of an endpoint the greater counts: what one of them knows is most often a part of the other's.
    fn take_over(&mut self, other: WakeupDebt, now: Instant) {
        let watched_until = self.watched_until.max(other.watched_until);
        if other.unforgiven_ns(now) > self.unforgiven_ns(now) {
            *self = other;
        }
        self.watched_until = watched_until;
    }

    /// Whether it is too much.
    fn is_too_high(&self, now: Instant) -> bool {
        self.unforgiven_ns(now) > SLOW_WAKEUP_DEBT_MAX_NS
    }
}

impl Tenant {
    /// Its receive queues, the one whose turn it is first.
    #[inline]
    pub fn queues(&mut self) -> impl Iterator<Item = &mut RxRing> {
        let queues = self.rings.rx.len();
        let first = self.first_queue;
        self.first_queue = if first + 1 < queues { first + 1 } else { 0 };
        let (wrapped, rest) = self.rings.rx.split_at_mut(first.min(queues));
        rest.iter_mut().chain(wrapped)
    }

    /// The queue that is looked at between other work, if it has several.
    #[inline]
    pub fn first_queue(&mut self) -> Option<&mut RxRing> {
        match self.rings.rx.as_mut_slice() {
            [first, _, ..] => Some(first),
            _ => None,
        }
    }

    /// What a container's packets come by, if it is one.
    #[inline]
    pub fn port(&mut self) -> Option<&mut (dyn Port + 'static)> {
        match &mut self.rings.instead {
            Some(Instead::Port(port)) => Some(port.as_mut()),
            _ => None,
        }
    }

    /// Whether there is something to take, be it a violation.
    #[inline]
    fn has_packets(&mut self) -> bool {
        if let Some(port) = self.port() {
            return port.has_work();
        }
        self.rings.rx.iter_mut().any(|queue| queue.pending() != Ok(0))
    }

    /// Asks it to call when it sends, and then looks once more. A broken ring has something to take: its turn shows what.
    fn arm(&mut self) -> Armed {
        self.is_armed = true;
        if let Some(port) = self.port() {
            return match (port.has_work(), port.is_stuck()) {
                (true, _) => Armed::Pending,
                (false, true) => Armed::Owed,
                (false, false) => Armed::Quiet,
            };
        }
        // Each is asked, whatever the others have.
        let pending =
            self.rings.rx.iter_mut().filter_map(|queue| (queue.arm() != Ok(false)).then_some(())).count();
        if pending > 0 { Armed::Pending } else { Armed::Quiet }
    }

    /// It need not call: it is looked at.
    #[cold]
    fn disarm(&mut self) {
        self.is_armed = false;
        self.rings.rx.iter_mut().for_each(RxRing::disable_interrupt);
    }

    /// Something to look at instead of the tenant while it is quiet; for one with several queues there is nothing.
    fn watch(&self) -> Option<Watch> {
        match self.rings.rx.as_slice() {
            [queue] => Some(queue.watch()),
            _ => None,
        }
    }

    /// The queue for a packet: of so many classes each has its own, as far as there are enough; the last class has all that are left, by
    /// flow.
    #[inline]
    fn queue_for(&self, frame: &Frame, classes: usize) -> usize {
        let queues = self.rings.tx.len();
        let class = frame.class().index().min(classes.saturating_sub(1));
        let first = class.min(queues.saturating_sub(1));
        let shared = queues - first;
        if class + 1 < classes || shared < 2 {
            return first;
        }
        first + ((u64::from(flow_hash(frame.bytes())) * shared as u64) >> 32) as usize
    }
}

/// What one turn of a tenant gave.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Taken {
    /// Packets, good or bad: one descriptor each, or, where chains are allowed, up to 16.
    pub packets: usize,
    /// Those of them whose descriptors broke the protocol.
    pub bad: usize,
    /// There was one for which there is no buffer yet.
    pub is_short: bool,
}

/// A tenant that was taken off its worker.
#[derive(Debug)]
pub struct Detached {
    /// Whose it was.
    pub endpoint: EndpointId,
    /// The number that it was attached with.
    pub serial: u64,
    /// To be dropped by control: that unmaps memory.
    pub rings: TenantRings,
    /// Why, if the worker did it by itself.
    pub fault: Option<Fault>,
}

/// All tenants of one worker.
#[derive(Debug)]
pub struct Tenants {
    slots: Box<[Option<Tenant>]>,
    /// By endpoint.
    networks: Box<[Option<NetworkId>]>,
    /// By network: who is attached. Each has [room](Self::make_room) for all endpoints of its network, so none ever grows here.
    attached: Box<[Vec<EndpointId>]>,
    turns: Turns,
    /// Of those with several queues, for their first ones.
    first_turns: Turns,
    /// So many classes queues are shared out among.
    queue_classes: usize,
    /// By endpoint, for those that are quiet: close together, so that looking at many is cheap.
    watches: Box<[Option<Watch>]>,
    /// Packets moved since the quiet ones were last looked at.
    moved: usize,
    /// By endpoint.
    wakeup_debts: Box<[WakeupDebt]>,
    unflushed: Vec<EndpointId>,
    /// Who is to be put out.
    faulty: Vec<EndpointId>,
    /// The worker sleeps at times: who stands among the quiet ones has been asked to call.
    is_calling: bool,
}

/// How long a list for so many endpoints of a network is: some more may come before there must be another one.
pub(crate) fn room_for(endpoints: usize) -> usize {
    endpoints.next_power_of_two()
}

impl Tenants {
    /// Room for all endpoints; none is attached.
    pub fn new(tables: &Tables) -> Tenants {
        Tenants::with_room(tables, tables.networks.end(), tables.endpoints.end())
    }

    /// The same with room for so many networks and endpoints.
    pub fn with_room(tables: &Tables, networks: usize, endpoints: usize) -> Tenants {
        let network = |id: EndpointId| tables.endpoint(id).map(|endpoint| endpoint.network);
        let mut counts = vec![0; networks];
        for (_, endpoint) in tables.endpoints.iter() {
            if let Some(count) = counts.get_mut(endpoint.network.index()) {
                *count += 1;
            }
        }
        Tenants {
            slots: std::iter::repeat_with(|| None).take(endpoints).collect(),
            networks: (0..endpoints).map(|id| network(EndpointId::at(id))).collect(),
            attached: counts.into_iter().map(|count| Vec::with_capacity(room_for(count))).collect(),
            turns: Turns::new(endpoints),
            first_turns: Turns::new(endpoints),
            queue_classes: tables.queue_classes,
            watches: std::iter::repeat_with(|| None).take(endpoints).collect(),
            moved: 0,
            wakeup_debts: vec![WakeupDebt::default(); endpoints].into(),
            unflushed: Vec::with_capacity(endpoints),
            faulty: Vec::with_capacity(endpoints),
            is_calling: false,
        }
    }

    /// An endpoint that came, or has the place of another one now, is on this network. Nobody is attached there.
    pub fn place(&mut self, id: EndpointId, network: NetworkId) {
        if let Some(place) = self.networks.get_mut(id.index()) {
            *place = Some(network);
        }
    }

    /// The next one at this place owes nothing.
    pub fn forget(&mut self, id: EndpointId) {
        if let Some(debt) = self.wakeup_debts.get_mut(id.index()) {
            *debt = WakeupDebt::default();
        }
    }

    /// A network has more endpoints: this list has room for all of them. Returns the one before, to be freed elsewhere.
    pub fn make_room(&mut self, network: NetworkId, mut room: Vec<EndpointId>) -> Vec<EndpointId> {
        match self.attached.get_mut(network.index()) {
            Some(attached) if attached.len() <= room.capacity() => {
                room.clear();
                room.append(attached);
                std::mem::replace(attached, room)
            }
            _ => room,
        }
    }

    /// The tenants of a network that are attached.
    #[inline]
    pub fn attached(&self, network: NetworkId) -> &[EndpointId] {
        self.attached.get(network.index()).map_or(&[], Vec::as_slice)
    }

    fn attached_with(&mut self, id: EndpointId) -> Option<&mut Vec<EndpointId>> {
        self.attached.get_mut((*self.networks.get(id.index())?)?.index())
    }

    /// Begins to serve a tenant. If there is one already, or no such endpoint, or rings are missing, they come back. One whose
    /// slow wake-ups are not forgiven yet is put out before it is woken even once: each could take as long as all of them.
    pub fn attach(&mut self, id: EndpointId, serial: u64, rings: TenantRings) -> Result<(), TenantRings> {
        match self.slots.get_mut(id.index()) {
            Some(slot @ None) if rings.is_complete() => {
                let (owed, now) = (rings.account.wakeups, Instant::now());
                let has_first = self.queue_classes > 1 && rings.rx.len() > 1;
                *slot = Some(Tenant {
                    serial,
                    rings,
                    first_queue: 0,
                    fault: None,
                    unflushed: 0,
                    was_meant: false,
                    is_mixed: false,
                    is_armed: false,
                });
                self.turns.join(id);
                if has_first {
                    self.first_turns.join(id);
                }
                if let Some(attached) = self.attached_with(id) {
                    attached.push(id);
                }
                let debt = self.wakeup_debts.get_mut(id.index());
                let is_too_high = debt.is_some_and(|debt| {
                    debt.take_over(owed, now);
                    debt.is_too_high(now)
                });
                if is_too_high {
                    self.set_fault(id, Fault::SlowWakeups);
                }
                Ok(())
            }
            _ => Err(rings),
        }
    }

    /// Stops serving a tenant and gives its rings up. `None` if the connection with this number is not there.
    pub fn detach(&mut self, id: EndpointId, serial: u64) -> Option<Detached> {
        let slot = self.slots.get_mut(id.index())?;
        let mut tenant = slot.take_if(|tenant| tenant.serial == serial)?;
        if tenant.is_armed {
            tenant.disarm();
        }
        tenant.rings.account.wakeups = self.wakeup_debts.get(id.index()).copied().unwrap_or_default();
        self.turns.leave(id);
        self.first_turns.leave(id);
        self.set_watch(id, None); // the rings still hold the memory: nothing is unmapped here
        self.unflushed.retain(|&other| other != id);
        self.faulty.retain(|&other| other != id);
        if let Some(attached) = self.attached_with(id) {
            attached.retain(|&other| other != id);
        }
        Some(Detached { endpoint: id, serial, rings: tenant.rings, fault: tenant.fault })
    }

    /// Looks at some of the quiet tenants, so that those with something to say have their turn. Returns how many turns
    /// there are then.
    #[inline]
    pub fn begin_turns(&mut self) -> usize {
        for _ in 0..self.turns.quiet_looks(std::mem::take(&mut self.moved)) {
            let Some(id) = self.turns.next_quiet() else { break };
            let speaks = match self.watches.get(id.index()) {
                Some(Some(watch)) => watch.has_moved(),
                _ => self.slots.get_mut(id.index()).and_then(Option::as_mut).is_some_and(Tenant::has_packets),
            };
            if speaks {
                self.turns.wake(id);
            }
        }
        // It lies in a page of its own, which the processor must find first: it can do so while others have their turn.
        if let Some(id) = self.turns.quiet_ahead()
            && let Some(Some(watch)) = self.watches.get(id.index())
        {
            watch.prefetch();
        }
        self.turns.busy_looks()
    }

    /// The tenant whose turn it is; its turn ends with [`turn_over`](Self::turn_over).
    #[inline]
    pub fn next_turn(&mut self) -> Option<(EndpointId, &mut Tenant)> {
        let id = self.turns.next_busy()?;
        let tenant = self.slots.get_mut(id.index())?.as_mut()?;
        Some((id, tenant))
    }

    /// Looks at one of the quiet first queues. How many others are to be looked at then.
    #[inline]
    pub fn begin_first_turns(&mut self) -> usize {
        for _ in 0..self.first_turns.quiet_looks(0) {
            let Some(id) = self.first_turns.next_quiet() else { break };
            let tenant = self.slots.get_mut(id.index()).and_then(Option::as_mut);
            let queue = tenant.and_then(Tenant::first_queue);
            if queue.is_some_and(|queue| queue.pending() != Ok(0)) {
                self.first_turns.wake(id);
            }
        }
        self.first_turns.busy_looks().min(FIRST_LOOKS)
    }

    /// The tenant whose first queue is looked at; [`first_turn_over`](Self::first_turn_over) ends it.
    #[inline]
    pub fn next_first_turn(&mut self) -> Option<(EndpointId, &mut Tenant)> {
        let id = self.first_turns.next_busy()?;
        let tenant = self.slots.get_mut(id.index())?.as_mut()?;
        if tenant.is_mixed {
            self.first_turns.served(id, true);
            return None;
        }
        Some((id, tenant))
    }

    /// As [`turn_over`](Self::turn_over). Whose queue had something that is not `urgent` is passed over until its turn.
    #[inline]
    pub fn first_turn_over(&mut self, id: EndpointId, is_mixed: bool, result: Result<Taken, Fault>) {
        if let Some(Some(tenant)) = self.slots.get_mut(id.index()) {
            tenant.is_mixed |= is_mixed;
            let is_called = tenant.is_armed && result != Ok(Taken::default());
            if is_called {
                tenant.disarm();
            }
            if is_mixed || is_called {
                self.turns.wake(id); // so that its turn comes
            }
        }
        self.first_turns.served(id, result != Ok(Taken::default()));
        self.note_taken(id, result);
    }

    /// So many packets came from elsewhere and were worked on.
    #[inline]
    pub fn note_work(&mut self, packets: usize) {
        self.moved += packets;
    }

    /// Ends a tenant's turn, in which so many packets were taken and so many were bad, or that showed a fault. If there was no
    /// room for what it had, it is first in the next turn.
    #[inline]
    pub fn turn_over(&mut self, id: EndpointId, was_cut_short: bool, result: Result<Taken, Fault>) {
        let had_packets = result != Ok(Taken::default());
        if let Some(Some(tenant)) = self.slots.get_mut(id.index()) {
            tenant.is_mixed = false;
            if tenant.is_armed && had_packets {
                tenant.disarm();
            }
        }
        if was_cut_short {
            self.turns.cut_short(id);
        } else if self.turns.served(id, had_packets) {
            self.begin_quiet(id);
        }
        self.note_taken(id, result);
    }

    /// One stands among the quiet ones from now on. Where the worker sleeps at times it is asked to call; one that has something after all
    /// is busy again.
    #[cold]
    fn begin_quiet(&mut self, id: EndpointId) -> Armed {
        let Some(Some(tenant)) = self.slots.get_mut(id.index()) else { return Armed::Quiet };
        let armed = if self.is_calling { tenant.arm() } else { Armed::Quiet };
        let watch = tenant.watch();
        self.set_watch(id, watch);
        if armed != Armed::Quiet {
            self.turns.wake(id);
        }
        armed
    }

    /// The worker sleeps at times.
    pub(crate) fn are_to_call(&self) -> bool {
        self.is_calling
    }

    /// The worker sleeps at times from now on, or no more: all are busy until they are asked to call, or need not call any more.
    pub(crate) fn let_call(&mut self, is_calling: bool) {
        self.is_calling = is_calling;
        for (index, slot) in self.slots.iter_mut().enumerate() {
            let Some(tenant) = slot else { continue };
            if tenant.is_armed {
                tenant.disarm();
            }
            if is_calling {
                self.turns.wake(EndpointId::at(index));
            }
        }
    }

    /// Before a sleep: asks all to call that were not asked yet. That are the busy ones, however many others there are.
    pub(crate) fn ask_all_to_call(&mut self) -> Calm {
        let mut calm = Calm::default();
        for _ in 0..self.turns.busy() {
            let Some(id) = self.turns.next_busy() else { continue };
            self.turns.calm(id);
            let armed = self.begin_quiet(id);
            calm.is_pending |= armed == Armed::Pending;
            calm.is_owed |= armed == Armed::Owed;
        }
        calm
    }

    /// After a sleep: this one has called. So might one have done that has gone since.
    pub(crate) fn has_called(&mut self, id: EndpointId) {
        let Some(Some(tenant)) = self.slots.get_mut(id.index()) else { return };
        self.turns.wake(id);
        if self.queue_classes > 1 && tenant.first_queue().is_some() {
            self.first_turns.wake(id);
        }
    }

    /// Tenants are to be put out.
    pub(crate) fn has_faulty(&self) -> bool {
        !self.faulty.is_empty()
    }

    /// One of the [events](TenantRings::events) of one that is attached, and not to be put out.
    pub(crate) fn event_of(&self, id: EndpointId, nth: u8) -> Option<(BorrowedFd<'_>, EventKind)> {
        let tenant = self.slots.get(id.index())?.as_ref()?;
        if tenant.fault.is_none() { tenant.rings.events().nth(nth.into()) } else { None }
    }

    /// So many of its events are watched.
    pub(crate) fn set_watched(&mut self, id: EndpointId, events: u8) {
        if let Some(Some(tenant)) = self.slots.get_mut(id.index()) {
            tenant.rings.account.watched = events;
        }
    }

    /// What else its eventfd has cost, in processor time, counts as its wake-ups do: who watches it, or ends that, waits for a lock that the
    /// tenant holds while it signals, as long as it takes to wake all who watch it.
    pub fn charge(&mut self, id: EndpointId, spent_ns: u64) {
        let Some(beyond @ 1..) = spent_ns.checked_sub(FREE_WAKEUP_NS) else { return };
        let Some(debt) = self.wakeup_debts.get_mut(id.index()) else { return };
        let now = Instant::now();
        debt.add(beyond, now);
        if debt.is_too_high(now) {
            self.set_fault(id, Fault::SlowWakeups);
        }
    }

    /// One that is served no more takes with it what it was charged since.
    pub fn give_account(&mut self, detached: &mut Detached) {
        if let Some(debt) = self.wakeup_debts.get(detached.endpoint.index()) {
            detached.rings.account.wakeups = *debt;
        }
    }

    /// All that are attached.
    pub(crate) fn ids(&self) -> Vec<EndpointId> {
        let tenants = self.slots.iter().enumerate();
        tenants.filter_map(|(index, slot)| slot.as_ref().map(|_| EndpointId::at(index))).collect()
    }

    /// What an endpoint owes.
    #[cfg(test)]
    pub(crate) fn debt_ns(&self, id: EndpointId) -> u64 {
        self.wakeup_debts.get(id.index()).map_or(0, |debt| debt.unforgiven_ns(Instant::now()))
    }

    #[inline]
    fn note_taken(&mut self, id: EndpointId, result: Result<Taken, Fault>) {
        match result {
            Ok(Taken { packets, bad: 0, .. }) => self.moved += packets,
            Ok(Taken { bad, .. }) => self.add_bad_descriptors(id, bad as u32),
            Err(fault) => self.set_fault(id, fault),
        }
    }

    #[cold]
    fn set_watch(&mut self, id: EndpointId, watch: Option<Watch>) {
        if let Some(place) = self.watches.get_mut(id.index()) {
            *place = watch;
        }
    }

    #[cold]
    fn add_bad_descriptors(&mut self, id: EndpointId, bad: u32) {
        let Some(Some(tenant)) = self.slots.get_mut(id.index()) else { return };
        let account = &mut tenant.rings.account;
        account.bad_descriptors = account.bad_descriptors.saturating_add(bad);
        if account.bad_descriptors > BAD_DESCRIPTORS_MAX {
            self.set_fault(id, Fault::BadDescriptors);
        }
    }

    /// Copies a packet into a tenant's ring: one that is meant for it alone, or a copy of one that is for many. It is seen
    /// after [`flush`](Self::flush).
    ///
    /// # Errors
    /// Why it could not be: a reason to drop.
    #[inline]
    pub fn give(
        &mut self,
        to: EndpointId,
        frame: &Frame,
        is_meant: bool,
        counters: &WorkerCounters,
    ) -> Result<(), DropReason> {
        let packet = frame.bytes();
        let Some(Some(tenant)) = self.slots.get_mut(to.index()) else { return Err(DropReason::TenantAbsent) };
        match &mut tenant.rings.instead {
            None => {}
            Some(Instead::Discard(discard)) => {
                if !discard.take(packet) {
                    return Err(DropReason::TenantBufferSmall);
                }
                note_given(to, (1, packet.len()), counters);
                return Ok(());
            }
            Some(Instead::Port(_)) => return self.give_port(to, packet, is_meant, counters),
        }
        let queue = tenant.queue_for(frame, self.queue_classes);
        let Some(ring) = tenant.rings.tx.get_mut(queue) else { return Err(DropReason::TenantAbsent) };
        if let Err(error) = ring.push(packet) {
            return Err(self.refused(to, error, counters));
        }
        if tenant.unflushed == 0 {
            self.unflushed.push(to); // never grows: each is in it once
        }
        tenant.unflushed |= 1 << queue;
        tenant.was_meant |= is_meant;
        note_given(to, (1, packet.len()), counters);
        Ok(())
    }

    /// The same for a container.
    #[inline(never)]
    fn give_port(
        &mut self,
        to: EndpointId,
        packet: &[u8],
        is_meant: bool,
        counters: &WorkerCounters,
    ) -> Result<(), DropReason> {
        let Some(Some(tenant)) = self.slots.get_mut(to.index()) else { return Err(DropReason::TenantAbsent) };
        let Some(port) = tenant.port() else { return Err(DropReason::TenantAbsent) };
        if let Err(error) = port.push(packet) {
            return Err(self.refused(to, error, counters));
        }
        if tenant.unflushed == 0 {
            self.unflushed.push(to); // never grows: each is in it once
        }
        tenant.unflushed = 1;
        tenant.was_meant |= is_meant;
        note_given(to, (1, packet.len()), counters);
        Ok(())
    }

    /// The same for packets that are all meant for this tenant, with one look at it and one count. Returns how many were given, and why
    /// the next one could not be: a reason to drop that. Neither all nor a reason: this tenant takes its packets one by one.
    #[inline]
    pub fn give_all<'p>(
        &mut self,
        to: EndpointId,
        frames: impl Iterator<Item = &'p Frame>,
        counters: &WorkerCounters,
    ) -> (usize, Option<DropReason>) {
        let Some(Some(tenant)) = self.slots.get_mut(to.index()) else { return (0, None) };
        let [ring] = tenant.rings.tx.as_mut_slice() else { return (0, None) };
        let (mut given, mut bytes, mut refused) = (0, 0, None);
        for frame in frames {
            if let Err(error) = ring.push(frame.bytes()) {
                refused = Some(error);
                break;
            }
            given += 1;
            bytes += frame.len();
        }
        if given > 0 {
            if tenant.unflushed == 0 {
                self.unflushed.push(to); // never grows: each is in it once
            }
            tenant.unflushed |= 1;
            tenant.was_meant = true;
            note_given(to, (given, bytes), counters);
        }
        (given, refused.map(|error| self.refused(to, error, counters)))
    }

    #[cold]
    fn refused(&mut self, id: EndpointId, error: PushError, counters: &WorkerCounters) -> DropReason {
        match error {
            PushError::Full => DropReason::TenantRingFull,
            PushError::TooLong { .. } => DropReason::TenantBufferSmall,
            PushError::TooShort => DropReason::InnerTruncated,
            PushError::BadDescriptor(_) => {
                if let Some(endpoint) = counters.endpoint(id) {
                    endpoint.bad_descriptors.add(1);
                }
                self.add_bad_descriptors(id, 1);
                DropReason::TenantBufferInvalid
            }
            PushError::Violation(violation) => {
                self.set_fault(id, Fault::Protocol(violation));
                DropReason::TenantFault
            }
        }
    }

    #[cold]
    fn set_fault(&mut self, id: EndpointId, fault: Fault) {
        if let Some(Some(tenant)) = self.slots.get_mut(id.index())
            && tenant.fault.is_none()
        {
            tenant.fault = Some(fault);
            self.faulty.push(id); // never grows: each is in it once
        }
    }

    /// Shows the tenants what was pushed: one store and at most one eventfd write for each queue. Those that are to be put out are
    /// shown nothing any more.
    #[inline]
    pub fn flush(&mut self, counters: &WorkerCounters) {
        while let Some(id) = self.unflushed.pop() {
            let Some(Some(tenant)) = self.slots.get_mut(id.index()) else { continue };
            let Some(debt) = self.wakeup_debts.get_mut(id.index()) else { continue };
            let mut queues = std::mem::take(&mut tenant.unflushed);
            if tenant.fault.is_some() {
                continue;
            }
            let (mut fault, mut is_owed) = (None, false);
            while queues != 0 {
                let queue = queues.trailing_zeros() as usize;
                queues &= queues - 1;
                let Some(ring) = tenant.rings.tx.get_mut(queue) else {
                    if let Some(port) = tenant.port() {
                        fault = flush_port(port, counters);
                        is_owed = port.is_stuck();
                    }
                    continue;
                };
                let before = cycles();
                if before < debt.watched_until {
                    if wake_watched(ring, debt, before, counters) {
                        fault = Some(Fault::SlowWakeups);
                    }
                    continue;
                }
                // A failed wake-up is the tenant's own doing (it may own the eventfd); the packets are published.
                if let Ok(true) = ring.flush() {
                    counters.tenant_wakeups.add(1);
                    debt.watch(before);
                }
            }
            if std::mem::take(&mut tenant.was_meant) {
                self.turns.stir(id);
            }
            if is_owed && self.is_calling {
                self.turns.wake(id); // it is looked at after a sleep
            }
            if let Some(fault) = fault {
                self.set_fault(id, fault);
            }
        }
    }

    /// Takes off one tenant that has a fault, if there is one.
    #[inline]
    pub fn put_out(&mut self) -> Option<Detached> {
        let id = self.faulty.pop()?;
        let serial = self.slots.get(id.index())?.as_ref()?.serial;
        self.detach(id, serial)
    }
}

#[inline]
fn note_given(to: EndpointId, (packets, bytes): (usize, usize), counters: &WorkerCounters) {
    counters.tenant_tx.many(packets, bytes);
    if let Some(endpoint) = counters.endpoint(to) {
        endpoint.to_tenant.many(packets, bytes);
    }
}

/// Lets the kernel send what was pushed to a container. The fault, if it has gone.
#[inline(never)]
pub(crate) fn flush_port(port: &mut dyn Port, counters: &WorkerCounters) -> Option<Fault> {
    let done = port.flush();
    counters.kicks.add(done.calls);
    counters.kicks_link_down.add(done.down);
    counters.kicks_failed.add(done.failed);
    counters.device_drops.add(done.lost);
    done.is_gone.then_some(Fault::Gone)
}

/// Shows a tenant what was pushed, and measures what waking it costs; it begins at `before`. True if that is too much. Two system
/// calls more: only for those that are suspect.
#[cold]
fn wake_watched(ring: &mut TxRing, debt: &mut WakeupDebt, before: u64, counters: &WorkerCounters) -> bool {
    let ran_before = thread_time_ns();
    let Ok(true) = ring.flush() else { return false };
    counters.tenant_wakeups.add(1);
    let spent = thread_time_ns().saturating_sub(ran_before);
    let Some(beyond @ 1..) = spent.checked_sub(FREE_WAKEUP_NS) else { return false };
    debt.watch(before);
    let now = Instant::now();
    debt.add(beyond, now);
    debt.is_too_high(now)
}
