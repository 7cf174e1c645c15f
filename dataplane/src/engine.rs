//! A [`Plan`] made to run: opens the uplinks, starts the pinned workers, changes what they forward by while they run,
//! reads their counters, stops them. Called by the control thread only; nothing here is on the path of a frame.

/// Addresses that control adds and takes away.
mod addresses;
/// Tenants that connect are announced.
mod announcing;
/// What the balancer decides, done.
mod balancing;
/// What of the classes' rules is decided in the driver.
mod early;
/// Networks and endpoints that come and go.
mod endpoints;
/// When what was found by older tables is under way no more.
mod grace;
/// Who serves how many.
mod homes;
/// Remotes that come and go.
mod remotes;
/// Rules that are replaced while frames flow.
mod rules;
/// Workers that come and go.
mod workers;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::bell::Bell;
use crate::clock::{Seconds, cycles_per_second};
use crate::counters::{Counter, Traffic, TrafficStats};
use crate::discard::{Discard, DiscardCounters};
use crate::fdb::{AgeingHand, Destination, Entry, Fdb};
use crate::frame::FramePool;
use crate::histogram::Histogram;
use crate::lanes::Lanes;
use crate::mailbox::{Order, Returned};
use crate::mesh::mesh;
use crate::pinned::{Ending, PinnedThread, usable_cores};
use crate::placement::{self, Placement};
use crate::plan::{IdleMode, InnerVlan, NetworkPlan, PlacementMode, Plan, StaticMac, UplinkPlan};
use crate::replay::{Pace, Replay, ReplayFrame, ReplayStream, Speed};
use crate::stages::Work;
use crate::stats::{
    ClassEntry, EndpointStats, NetworkStats, RemoteStats, StageStats, StationName, Stats, Totals,
    UplinkStats, WokenBy, WorkerStats, drops_by_name,
};
use crate::sys;
use crate::tables::{Tables, overhead, remote_addresses};
use crate::types::{CoreId, EndpointId, MacAddr, NetworkId, QueueId, RemoteId, Route, UplinkId, WorkerId};
use crate::wire::eth::EthHeader;
use crate::wire::outer::VLAN_TAG;
use crate::worker::{Port, Uplink};
use crate::xsk::{self, Hand, Interface, Steering, UplinkInfo, XskConfig, XskError};
use announcing::Announcing;
use balancing::Balancing;
use endpoints::Lives;
use homes::Homes;
use remotes::Remotes;
use rules::Rules;
use workers::{Presence, WorkerHandle};

pub use crate::tables::{NextHop, Path};
use crate::tenants::Detached;
pub use crate::tenants::{QUEUES_MAX, TenantRings};
pub use crate::types::SourceId;
pub use addresses::{AddressError, AddressFilter, FIXED_LATER, FLUSH_BUCKETS_MAX, Flushed};
pub use early::EarlyPlan;
pub use endpoints::{Change, ChangeError};
pub use remotes::{DISCOVERED_MAX, Member, REMOTES_LATER, REMOTES_MAX, RemoteError, Standing};
pub use rules::{RulesError, RulesStatus, RulesStep};
pub use workers::WorkerError;

/// What the workers had to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A tenant broke the protocol and is no longer served: hang up. It may have hung up itself meanwhile, and been detached.
    TenantFault {
        /// Which.
        endpoint: EndpointId,
        /// What it did.
        reason: String,
    },
    /// A worker ended without having been told to: a bug. What it served stands still; start again.
    WorkerDied {
        /// The CPU that it ran on.
        core: CoreId,
    },
}

/// Why the engine did not start. One line: what, where, and what to do.
#[derive(Debug)]
pub enum StartError {
    /// An uplink could not be opened.
    Uplink(XskError),
    /// The CPU is not there, or not for us.
    Core {
        /// Which.
        core: CoreId,
        /// Those that we may use.
        usable: Vec<usize>,
    },
    /// A network's packets do not fit every uplink once they are encapsulated.
    Mtu {
        /// The network's name.
        network: String,
        /// Its MTU, in bytes.
        mtu: u16,
        /// The interface of the uplink with the smallest MTU.
        interface: String,
        /// Its MTU, in bytes.
        uplink_mtu: u32,
        /// Bytes of outer headers.
        overhead: u32,
    },
    /// The worker did not get its priority.
    Nice {
        /// Its CPU.
        core: CoreId,
        /// What was asked for.
        nice: i8,
        /// Why not.
        source: io::Error,
    },
    /// The system started no thread.
    Thread(io::Error),
    /// Two fixed addresses too many for one place of the forwarding database: so unlikely that it points to a bug.
    FdbFull,
}

impl fmt::Display for StartError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StartError::Uplink(error) => error.fmt(f),
            StartError::Core { core, usable } => {
                write!(
                    f,
                    "cannot run a worker on core {}: the cores that this process may use are {usable:?}",
                    core.0
                )
            }
            StartError::Mtu { network, mtu, interface, uplink_mtu, overhead } => write!(
                f,
                "network {network}: its MTU of {mtu} and {overhead} bytes of outer headers do not fit the MTU of {interface}, {uplink_mtu}: set it to {} or less, or raise the interface's (ip link set dev {interface} mtu {})",
                uplink_mtu.saturating_sub(*overhead),
                u32::from(*mtu) + overhead
            ),
            StartError::Nice { core, nice, source } => write!(
                f,
                "cannot give the worker on core {} nice {nice}: {source}: run as root (CAP_SYS_NICE), or leave `nice` out",
                core.0
            ),
            StartError::Thread(error) => write!(f, "cannot start a worker thread: {error}"),
            StartError::FdbFull => f.write_str(
                "the forwarding database has no room for the configured addresses: raise fdb_limit",
            ),
        }
    }
}

impl std::error::Error for StartError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StartError::Uplink(error) => Some(error),
            StartError::Thread(error) => Some(error),
            StartError::Nice { source, .. } => Some(source),
            StartError::Core { .. } | StartError::Mtu { .. } | StartError::FdbFull => None,
        }
    }
}

/// Why a tenant was not attached.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AttachError {
    /// The plan has no such endpoint.
    NoSuchEndpoint,
    /// A tenant is attached there.
    AlreadyAttached,
    /// It has no ring in one direction, or more than [`QUEUES_MAX`].
    Rings,
}

impl fmt::Display for AttachError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AttachError::NoSuchEndpoint => "no such endpoint",
            AttachError::AlreadyAttached => "already connected",
            AttachError::Rings => "1 to 8 rings in each direction are needed",
        })
    }
}

impl std::error::Error for AttachError {}

/// Workers that run, and what control needs to steer them.
#[derive(Debug)]
pub struct Engine {
    plan: Plan,
    /// None if frames come from memory.
    uplinks: Vec<xsk::Uplink>,
    /// By [`UplinkId`].
    infos: Vec<UplinkInfo>,
    remotes: Remotes,
    /// What is fixed behind remotes, and how much of it there may be.
    fixed: BTreeMap<(NetworkId, MacAddr), RemoteId>,
    fixed_max: usize,
    /// By remote and source, as in [`Tables`].
    paths: Vec<Vec<Path>>,
    tables: Arc<Tables>,
    fdb: Arc<Fdb>,
    seconds: Seconds,
    /// By [`WorkerId`].
    workers: Vec<WorkerHandle>,
    /// None where one has ended.
    threads: Vec<Option<PinnedThread>>,
    /// One worker, as if there could be no other.
    is_alone: bool,
    /// When to go on with workers that come or go, if any do.
    due: Option<Instant>,
    /// For those who leave: when to ask for rest again, and how much later the time after that.
    next_rest: (Instant, Duration),
    /// Cores whose threads were to end, and panicked.
    died: Vec<CoreId>,
    placement: Arc<Placement>,
    work: Arc<Work>,
    /// By endpoint.
    connections: Vec<Connection>,
    last_serial: u64,
    /// Given back by workers in the middle of something else.
    returned: Vec<Returned>,
    /// Numbers the pauses.
    pauses: u32,
    /// None if placement is fixed, or there is nobody to share with.
    balancing: Option<Balancing>,
    ending: Arc<Ending>,
    ageing: AgeingHand,
    /// How far the plan's rules have come into force.
    rules: Rules,
    announcing: Announcing,
    lives: Lives,
    /// Which worker serves how many tenants, in all and of each network.
    homes: Homes,
    cycles_per_second: u64,
}

/// An endpoint's last connection.
#[derive(Clone, Copy, Default, Debug)]
struct Connection {
    /// 0 before the first one.
    serial: u64,
    /// The worker that serves it, while it is attached.
    home: Option<WorkerId>,
}

impl Connection {
    /// Ends it; its number and its worker if it was attached.
    fn detach(&mut self) -> Option<(u64, WorkerId)> {
        self.home.take().map(|home| (self.serial, home))
    }

    /// The worker has put out the connection with this number: whether that is news. A fault of a connection that is gone says nothing
    /// about the one that came after it; but if none has come, it is still who did it.
    fn put_out(&mut self, serial: u64) -> bool {
        let is_last = self.serial == serial;
        if is_last {
            self.home = None;
        }
        is_last
    }
}

impl Engine {
    /// Opens the uplinks and starts the workers. Next hops are unknown and no tenant is attached.
    ///
    /// # Errors
    /// [`StartError`]; whatever was opened is closed again.
    pub fn start(plan: &Plan) -> Result<Engine, StartError> {
        check_cores(plan)?;
        let queues = |uplink: &UplinkPlan| {
            xsk::interface(&uplink.interface)
                .and_then(|interface: Interface| interface.queues(&uplink.queues))
        };
        let queues: Result<Vec<_>, _> = plan.uplinks.iter().map(queues).collect();
        let hands = deal(&queues.map_err(StartError::Uplink)?, plan.workers.len());
        let (mut uplinks, ports) = xsk::open_all(&xsk_configs(plan), &hands).map_err(StartError::Uplink)?;
        let infos: Vec<UplinkInfo> = uplinks.iter().map(|uplink| uplink.info().clone()).collect();
        check_mtu(plan, &infos)?;
        let rules = if infos.iter().any(|info| info.early) {
            let early = EarlyPlan::of(plan).rules;
            uplinks.iter_mut().try_for_each(|uplink| uplink.set_early(&early)).map_err(StartError::Uplink)?;
            Rules::told(early)
        } else {
            Rules::default()
        };
        Engine::start_on(plan, uplinks, infos, ports.into_iter().map(Port::from).collect(), rules)
    }

    /// Starts the workers without an interface: each presents frames from memory, and what it sends is thrown away. A worker without
    /// frames has only what others hand to it. For measuring and for tests.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn replay(plan: &Plan, frames: Vec<Vec<ReplayFrame>>) -> Result<Engine, StartError> {
        let full = |frames| {
            vec![ReplayStream {
                frames,
                pace: Arc::new(Pace::new(Speed::Full)),
                field: None,
                is_urgent: false,
            }]
        };
        Engine::replay_streams(plan, frames.into_iter().map(full).collect())
    }

    /// The same with some streams for each worker, each at its own pace.
    ///
    /// # Errors
    /// [`StartError`].
    pub fn replay_streams(plan: &Plan, streams: Vec<Vec<ReplayStream>>) -> Result<Engine, StartError> {
        check_cores(plan)?;
        let configs = xsk_configs(plan);
        let sizes = |config: &XskConfig| (config.chunk_size as usize, 2 * config.ring_size as usize);
        let (chunk_size, chunks) = configs.first().map_or((2048, 0), sizes);
        let large = if configs.first().is_some_and(|config| config.multi_buffer) { chunks / 4 } else { 0 };
        let mut streams = streams.into_iter();
        let ports = plan.workers.iter().map(|_| Port {
            uplink: Uplink::Replay(Replay::new(streams.next().unwrap_or_default(), plan.has_early())),
            pool: FramePool::anonymous_with_large(chunk_size, chunks, xsk::HEADROOM, large),
        });
        let ports: Vec<Port> = ports.collect();
        let frames = ports.iter().map(|port| port.pool.capacity()).sum();
        let infos = configs.iter().map(|config| UplinkInfo::memory(config, frames)).collect();
        Engine::start_on(plan, Vec::new(), infos, ports, Rules::default())
    }

    fn start_on(
        plan: &Plan,
        uplinks: Vec<xsk::Uplink>,
        infos: Vec<UplinkInfo>,
        ports: Vec<Port>,
        rules: Rules,
    ) -> Result<Engine, StartError> {
        sys::allow_barriers();
        let mut tables = Tables::new(plan, smallest_mtu(&infos).map_or(0, |info| info.mtu as usize));
        for (uplink, info) in tables.uplinks.iter_mut().zip(&infos) {
            uplink.cardless = info.driver == "veth";
        }
        tables.settling = !rules.is_settled();
        let tables = Arc::new(tables);
        let work = Arc::new(Work::none());
        let remotes = Remotes::new(plan);
        let fixed = fixed_addresses(plan);
        let fdb = Arc::new(make_fdb(plan, &fixed)?);
        let placement = Arc::new(Placement::new(&exits(&ports), plan.endpoints_max(), plan.networks_max()));
        spread(&placement, plan.placement);
        let is_alone = ports.len() < 2;
        let mut engine = Engine {
            threads: Vec::new(),
            is_alone,
            due: None,
            next_rest: (Instant::now(), workers::RETRY),
            died: Vec::new(),
            paths: vec![Vec::new(); tables.remotes.len() * tables.sources.len()],
            remotes,
            fixed_max: fixed.len() + FIXED_LATER,
            fixed,
            plan: plan.clone(),
            uplinks,
            infos,
            tables,
            fdb,
            seconds: Seconds::start(),
            workers: Vec::new(),
            connections: vec![Connection::default(); plan.endpoints_max()],
            last_serial: 0,
            returned: Vec::new(),
            pauses: 0,
            balancing: (plan.placement == PlacementMode::Balanced && ports.len() > 1)
                .then(|| Balancing::new(plan.balance_threshold)),
            ending: Arc::default(),
            ageing: AgeingHand::new(Instant::now()),
            rules,
            announcing: Announcing::new(),
            lives: Lives::new(plan, learned_max(plan)),
            homes: Homes::new(plan),
            cycles_per_second: cycles_per_second(),
            placement: placement.clone(),
            work,
        };
        let frames = ports.iter().map(|port| port.pool.capacity()).max().unwrap_or(0);
        let lanes = Lanes::new(&plan.classes);
        let bells: Vec<Arc<Bell>> = plan.workers.iter().map(|_| Arc::default()).collect();
        let meshes = mesh(&placement, &bells, lanes, frames);
        for (((worker, port), mesh), bell) in plan.workers.iter().zip(ports).zip(meshes).zip(bells) {
            engine.start_worker(worker, port, (!is_alone).then_some(mesh), bell)?;
        }
        Ok(engine)
    }

    /// The interfaces, and what was got of what was asked, by [`UplinkId`].
    pub fn uplinks(&self) -> &[UplinkInfo] {
        &self.infos
    }

    /// Frames that were to go to this remote so far, resolved or not: it grows while somebody wants the next hop.
    pub fn frames_towards(&self, remote: RemoteId) -> u64 {
        self.frames_ever_towards(remote).saturating_sub(self.remotes.frames_before(remote))
    }

    /// The same, with those to others who had the id before.
    fn frames_ever_towards(&self, remote: RemoteId) -> u64 {
        self.workers.iter().filter_map(|worker| worker.counters.remote(remote)).map(Counter::get).sum()
    }

    /// The source addresses from which ways are wanted; the index is the [`SourceId`]. The first is `None`: the uplink's own, of the
    /// remote's family.
    pub fn sources(&self) -> &[Option<IpAddr>] {
        &self.tables.sources
    }

    /// Sets how remotes are reached from a source address: by these paths, which share the flows by their weights, or not at all.
    /// However many change, the workers get one new set of tables.
    pub fn set_paths(&mut self, changes: impl IntoIterator<Item = (RemoteId, SourceId, Vec<Path>)>) {
        let mut tables = None;
        for (remote, source, paths) in changes {
            if !self.remotes.is_reachable(remote) {
                continue; // gone since they asked for ways to it
            }
            let at = self.tables.way_index(remote, source);
            let known = at.and_then(|at| self.paths.get_mut(at));
            let Some(known) = known.filter(|known| **known != paths) else { continue };
            tables.get_or_insert_with(|| Tables::clone(&self.tables)).set_paths(remote, source, &paths);
            *known = paths;
        }
        if let Some(tables) = tables {
            self.publish(tables);
        }
    }

    /// From their next turn on the workers forward by these.
    fn publish(&mut self, tables: Tables) {
        self.tables = Arc::new(tables);
        for worker in self.workers.iter_mut().filter(|worker| worker.presence != Presence::Absent) {
            worker.send(Order::Tables(self.tables.clone()));
        }
    }

    /// What runs: the plan that it was started with, with the rules that hold now.
    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// Lets a worker serve a tenant: of those that can send, the one with the fewest.
    ///
    /// # Errors
    /// [`AttachError`]; the rings are dropped.
    pub fn attach(&mut self, endpoint: EndpointId, rings: TenantRings) -> Result<(), AttachError> {
        if !rings.is_complete() {
            return Err(AttachError::Rings);
        }
        if self.plan.endpoint(endpoint).is_none() {
            return Err(AttachError::NoSuchEndpoint);
        }
        let (home, is_tenant) = (self.least_crowded(), rings.is_tenant());
        match self.connections.get_mut(endpoint.index()) {
            None => return Err(AttachError::NoSuchEndpoint),
            Some(connection) if connection.home.is_some() => return Err(AttachError::AlreadyAttached),
            Some(connection) => {
                self.last_serial += 1;
                *connection = Connection { serial: self.last_serial, home: Some(home) };
            }
        }
        if let Some(worker) = self.workers.get_mut(home.index()) {
            worker.send(Order::Attach { endpoint, serial: self.last_serial, rings });
        }
        self.publish_home(endpoint);
        if is_tenant {
            self.begin_announcing(endpoint);
        }
        Ok(())
    }

    /// Lets packets for this endpoint be counted and thrown away, instead of a tenant. They come from [`replay`](Self::replay), in so
    /// many flows.
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_discard(
        &mut self,
        endpoint: EndpointId,
        flows: usize,
    ) -> Result<Arc<DiscardCounters>, AttachError> {
        self.discard_into(endpoint, DiscardCounters::new(flows))
    }

    /// The same, and how late they are is noted: for streams with a rate, see [`replay_streams`](Self::replay_streams).
    ///
    /// # Errors
    /// [`AttachError`].
    pub fn attach_timed_discard(
        &mut self,
        endpoint: EndpointId,
        flows: usize,
    ) -> Result<Arc<DiscardCounters>, AttachError> {
        let latency = Some(Histogram::default());
        self.discard_into(endpoint, DiscardCounters { latency, ..DiscardCounters::new(flows) })
    }

    fn discard_into(
        &mut self,
        endpoint: EndpointId,
        counters: DiscardCounters,
    ) -> Result<Arc<DiscardCounters>, AttachError> {
        let counters = Arc::new(counters);
        self.attach(endpoint, TenantRings::discard(Discard::new(counters.clone())))?;
        Ok(counters)
    }

    /// Stops serving a tenant. Its memory is unmapped once the worker has let go, in a later [`poll`](Self::poll).
    pub fn detach(&mut self, endpoint: EndpointId) {
        let ended = self.connections.get_mut(endpoint.index()).and_then(Connection::detach);
        let Some((serial, home)) = ended else { return };
        self.announcing.end(endpoint);
        self.publish_home(endpoint);
        if let Some(worker) = self.workers.get_mut(home.index()) {
            worker.send(Order::Detach { endpoint, serial });
        }
    }

    /// Where the next tenant goes.
    fn least_crowded(&self) -> WorkerId {
        let senders = (0u8..).map(WorkerId).zip(&self.workers).filter(|(_, worker)| worker.sends);
        let best = senders.map(|(id, _)| id).min_by_key(|id| self.homes.tenants(*id));
        best.unwrap_or(WorkerId(0))
    }

    /// Tells the workers who serves an endpoint now, and its network.
    fn publish_home(&mut self, endpoint: EndpointId) {
        let home = self.connections.get(endpoint.index()).and_then(|last| last.home);
        self.placement.set_home(endpoint, home);
        let network = self.plan.endpoint(endpoint).map(|endpoint| endpoint.network);
        let network = self.homes.set(endpoint, home.zip(network)).or(network);
        self.placement.set_serving(self.homes.serving());
        if let Some(network) = network {
            self.placement.set_present(network, self.homes.present(network));
        }
    }

    /// Wants the flows of this bucket that enter at this worker to go another way. They do once their frames that are under way have
    /// arrived, so none is overtaken. A worker that is not there is refused: false.
    #[must_use]
    pub fn place(&mut self, entry: WorkerId, bucket: u8, route: Route) -> bool {
        let steps = [entry, route.decap(), route.lookup(), route.encap()];
        let is_known = steps.iter().all(|worker| self.placement.is_there(*worker));
        if is_known {
            self.placement.want(entry, bucket, route);
        }
        is_known
    }

    /// The workers that steps can be given to now.
    pub fn workers(&self) -> impl Iterator<Item = WorkerId> + use<> {
        self.placement.present()
    }

    /// The way that flows of this bucket that enter at this worker have, or are about to have.
    pub fn route(&self, entry: WorkerId, bucket: u8) -> Route {
        self.placement.wanted(entry, bucket)
    }

    /// The worker that serves this endpoint's tenant, if one is attached.
    pub fn home(&self, endpoint: EndpointId) -> Option<WorkerId> {
        self.connections.get(endpoint.index())?.home
    }

    /// Work added to the steps, for measuring.
    pub fn work(&self) -> &Work {
        &self.work
    }

    /// Keeps the clock, ages addresses, passes orders on, frees what the workers gave back, and tells what they had to
    /// say. Control calls it at least some times a second.
    pub fn poll(&mut self) -> Vec<Event> {
        self.seconds.tick();
        self.age_addresses();
        self.settle_workers();
        self.balance();
        self.announce();
        let mut events = Vec::new();
        let mut returned = std::mem::take(&mut self.returned);
        for worker in &mut self.workers {
            worker.flush();
            returned.extend(std::iter::from_fn(|| worker.mailbox.take_returned()));
        }
        let died = self.threads.iter().flatten().filter(|thread| thread.is_finished() && !thread.is_closed());
        let died = died.map(PinnedThread::core).chain(self.died.drain(..));
        events.extend(died.map(|core| Event::WorkerDied { core }));
        for returned in returned {
            match returned {
                Returned::Tenant(detached) => events.extend(self.take_back(detached)),
                Returned::Announced(announcement) => self.take_back_announcement(announcement),
                Returned::Drained { worker, number } => self.rules.note_drained(worker, number),
                Returned::Tables(_)
                | Returned::Room(_)
                | Returned::Vacated(_)
                | Returned::Mesh(_)
                | Returned::Links(_) => {}
            }
        }
        self.settle_rules();
        self.settle_remotes();
        self.settle_lives();
        events
    }

    /// A worker has let go of a tenant.
    fn take_back(&mut self, detached: Detached) -> Option<Event> {
        let Detached { endpoint, serial, rings, fault } = detached;
        let last = self.connections.get_mut(endpoint.index())?;
        let Some(fault) = fault else {
            // As it was told to; if it still has a home, it was to move and came too late for it.
            if last.serial == serial
                && let Some(worker) = last.home.and_then(|home| self.workers.get_mut(home.index()))
            {
                worker.send(Order::Attach { endpoint, serial, rings });
            }
            return None;
        };
        last.put_out(serial).then(|| {
            self.announcing.end(endpoint);
            self.publish_home(endpoint);
            Event::TenantFault { endpoint, reason: fault.to_string() }
        })
    }

    /// What is due once a second: measures how busy the workers were, and forgets remotes that were discovered and are silent.
    pub fn age(&mut self) {
        self.workers.iter_mut().for_each(WorkerHandle::measure_busy);
        self.forget_discovered();
    }

    /// Forgets learned addresses that are too old, in the next part of the table.
    fn age_addresses(&mut self) {
        let ageing_s = |network: NetworkId| {
            self.plan.network(network).map_or(0, |n| u32::try_from(n.ageing.as_secs()).unwrap_or(u32::MAX))
        };
        self.ageing.go(&self.fdb, Instant::now(), self.seconds.now(), ageing_s);
    }

    /// The forwarding database, for people to read.
    pub fn fdb(&self) -> impl Iterator<Item = Entry> + '_ {
        self.fdb.entries()
    }

    /// Seconds since the start, the clock of [`Entry::seen_s`].
    pub fn uptime_s(&self) -> u32 {
        self.seconds.now()
    }

    /// Each worker's core, and its busy share in the last second.
    pub fn busy(&self) -> Vec<(CoreId, f64)> {
        self.running().map(|worker| (self.core_of(worker), worker.busy)).collect()
    }

    /// In the same order: what each worker does while there is nothing to do, and the share of the last second in which it slept.
    pub fn idle(&self) -> Vec<(IdleMode, f64)> {
        self.running().map(|worker| (self.idle_of(worker), worker.slept)).collect()
    }

    /// Those that there are.
    fn running(&self) -> impl Iterator<Item = &WorkerHandle> {
        self.workers.iter().filter(|worker| worker.presence != Presence::Absent)
    }

    /// Tenants that have several queues get the classes on queues of their own: at the start some packet could have another class than
    /// the default.
    pub fn has_queues_by_class(&self) -> bool {
        self.tables.queue_classes > 1
    }

    /// All counters now.
    pub fn stats(&self) -> Stats {
        let mut totals = Totals::default();
        self.workers.iter().for_each(|worker| totals.add(&worker.counters));
        let counters = || self.workers.iter().map(|worker| &*worker.counters);
        let drops = drops_by_name(counters());
        let networks = self.network_stats();
        let endpoints = self.endpoint_stats();
        let remotes = self.remote_stats();
        let uplinks = self.uplink_stats();
        let classes = ClassEntry::all(&self.plan.classes, counters(), self.cycles_per_second);
        let workers = self.running().map(|worker| self.worker_stats(worker)).collect();
        let balance = self.balancing.as_ref().map(Balancing::stats);
        Stats { totals, drops, classes, workers, balance, networks, endpoints, remotes, uplinks }
    }

    fn uplink_stats(&self) -> Vec<UplinkStats> {
        let of = |(id, info): (UplinkId, &UplinkInfo)| {
            let counters = || self.workers.iter().map(|worker| &worker.counters);
            // Nothing if frames come from memory; and an interface that is gone has no counters in the kernel any more.
            let uplink = self.uplinks.get(id.index());
            UplinkStats {
                interface: info.interface.clone(),
                rx: sum_traffic(counters().filter_map(|c| c.uplink_rx.of(id)).map(Traffic::read)),
                tx: sum_traffic(counters().filter_map(|c| c.uplink_tx.of(id)).map(Traffic::read)),
                program: uplink.and_then(|uplink| uplink.steering().ok()).unwrap_or_default(),
                sockets: uplink.and_then(|uplink| uplink.sockets().ok()).unwrap_or_default(),
            }
        };
        UplinkId::all(self.infos.len()).zip(&self.infos).map(of).collect()
    }

    fn worker_stats(&self, worker: &WorkerHandle) -> WorkerStats {
        let counters = &worker.counters;
        WorkerStats {
            core: self.core_of(worker),
            busy: worker.busy,
            device_drops: counters.device_drops.get(),
            ecn_unexpected: counters.ecn_unexpected.get(),
            chunk_faults: counters.chunk_faults.get(),
            stages: StageStats::of(counters),
            stalls: counters.stalls.get(),
            turns: counters.turns.get(),
            handed_over: counters.handed_over.get(),
            kicks: counters.kicks.get(),
            kicks_deferred: counters.kicks_deferred.get(),
            kicks_link_down: counters.kicks_link_down.get(),
            kicks_failed: counters.kicks_failed.get(),
            receive_kicks: counters.receive_kicks.get(),
            watchdog_kicks: counters.watchdog_kicks.get(),
            tenant_wakeups: counters.tenant_wakeups.get(),
            idle: self.idle_of(worker),
            slept: worker.slept,
            sleeps: counters.sleeps.get(),
            woken_by: WokenBy::of(&counters.woken),
            unwatched: counters.unwatched.get(),
            frames_free: counters.frames_free.get(),
            frames_total: worker.frames_total,
        }
    }

    fn network_stats(&self) -> Vec<NetworkStats> {
        self.plan.networks.iter().filter_map(|(id, _)| self.network_stats_of(id)).collect()
    }

    /// What was counted for the network that is there now.
    fn network_stats_of(&self, id: NetworkId) -> Option<NetworkStats> {
        let network = self.plan.network(id)?;
        let stats = {
            let counters = || self.workers.iter().filter_map(|worker| worker.counters.network(id));
            NetworkStats {
                name: network.name.clone(),
                vni: network.vni,
                from_underlay: sum_traffic(counters().map(|c| c.from_underlay.read())),
                to_underlay: sum_traffic(counters().map(|c| c.to_underlay.read())),
                dropped: counters().map(|c| c.dropped.get()).sum(),
                fdb_learned: self.fdb.learned(id),
                learned: counters().map(|c| c.learned.get()).sum(),
                moved: counters().map(|c| c.moved.get()).sum(),
                learn_refused: counters().map(|c| c.learn_refused.get()).sum(),
                discovered: self.discovered(id).0,
                discoveries_refused: self.discovered(id).1,
                moves_damped: counters().map(|c| c.moves_damped.get()).sum(),
                arp_answered: counters().map(|c| c.arp_answered.get()).sum(),
                nd_answered: counters().map(|c| c.nd_answered.get()).sum(),
                too_big_told: counters().map(|c| c.too_big_told.get()).sum(),
            }
        };
        Some(match self.lives.network_before(id) {
            Some(before) => stats.since(before),
            None => stats,
        })
    }

    fn endpoint_stats(&self) -> Vec<EndpointStats> {
        self.plan.endpoints.iter().filter_map(|(id, _)| self.endpoint_stats_of(id)).collect()
    }

    /// What was counted for the endpoint that is there now.
    fn endpoint_stats_of(&self, id: EndpointId) -> Option<EndpointStats> {
        let endpoint = self.plan.endpoint(id)?;
        let stats = {
            let counters = || self.workers.iter().filter_map(|worker| worker.counters.endpoint(id));
            EndpointStats {
                name: endpoint.name.clone(),
                network: self
                    .plan
                    .network(endpoint.network)
                    .map(|network| network.name.clone())
                    .unwrap_or_default(),
                mac: endpoint.mac,
                more: endpoint.more.iter().map(StationName::of).collect(),
                connected: self.connections.get(id.index()).is_some_and(|last| last.home.is_some()),
                from_tenant: sum_traffic(counters().map(|c| c.from_tenant.read())),
                to_tenant: sum_traffic(counters().map(|c| c.to_tenant.read())),
                dropped: counters().map(|c| c.dropped.get()).sum(),
                bad_descriptors: counters().map(|c| c.bad_descriptors.get()).sum(),
            }
        };
        Some(match self.lives.endpoint_before(id) {
            Some(before) => stats.since(before),
            None => stats,
        })
    }

    fn remote_stats(&self) -> Vec<RemoteStats> {
        let sources = self.sources().len();
        let stats = self.remotes.iter().map(|(id, address)| {
            let mut ways = self.paths.iter().skip(id.index() * sources).take(sources).flatten();
            let hop = ways.next().map(|path| path.hop);
            RemoteStats {
                address,
                resolved: hop.is_some(),
                uplink: hop
                    .and_then(|hop| self.infos.get(hop.uplink.index()))
                    .map(|info| info.interface.clone()),
                next_hop: hop.map(|hop| hop.destination),
                frames: self.frames_towards(id),
            }
        });
        stats.collect()
    }

    /// Stops the workers, closes the sockets and takes the XDP programs off the interfaces. The last counters.
    pub fn stop(mut self) -> Stats {
        self.join();
        self.stats()
    }

    /// A worker stops within one turn once the frames between them are home; what it owned is dropped here.
    fn join(&mut self) {
        self.ending.drain();
        self.call_threads();
        let deadline = Instant::now() + DRAIN_PATIENCE;
        while !self.ending.is_drained() && Instant::now() < deadline {
            self.take_over(); // who is between two threads
            std::thread::sleep(Duration::from_micros(100));
        }
        self.ending.halt();
        self.call_threads();
        // Handles and threads stay in their lists, so that counters and cores can still be read.
        for worker in &mut self.workers {
            worker.outbox.clear();
        }
        for thread in self.threads.iter_mut().flatten() {
            thread.join();
        }
        for worker in &mut self.workers {
            while worker.mailbox.take_returned().is_some() {}
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.join();
    }
}

fn sum_traffic(parts: impl Iterator<Item = TrafficStats>) -> TrafficStats {
    parts.fold(TrafficStats::default(), |mut sum, part| {
        sum += part;
        sum
    })
}

/// What each worker would get of these queues, interface by interface, and so many bytes of memory for their frames.
pub fn shares(plan: &Plan, queues: &[Vec<QueueId>]) -> Vec<(Hand, usize)> {
    let configs = xsk_configs(plan);
    let hands = deal(queues, plan.workers.len()).into_iter();
    hands.map(|hand| (xsk::frame_memory(&configs, &hand), hand)).map(|(bytes, hand)| (hand, bytes)).collect()
}

fn check_cores(plan: &Plan) -> Result<(), StartError> {
    let usable = usable_cores();
    match plan.workers.iter().find(|worker| !usable.contains(&worker.core.0)) {
        Some(worker) => Err(StartError::Core { core: worker.core, usable }),
        None => Ok(()),
    }
}

/// The MTU that the underlay must have for a network's largest packets.
pub fn underlay_mtu_needed(network: &NetworkPlan, plan: &Plan) -> u32 {
    // The inner Ethernet header, VXLAN, UDP and IP: as many bytes as with the outer Ethernet header instead of the inner. A tag of the
    // underlay is no part of an IP packet.
    u32::from(network.mtu) + overhead(network, &plan.uplinks) as u32
}

/// Every network fits every uplink: where its remotes are reached may change while we run.
fn check_mtu(plan: &Plan, infos: &[UplinkInfo]) -> Result<(), StartError> {
    let Some(uplink) = smallest_mtu(infos) else { return Ok(()) };
    for network in plan.networks.values() {
        let needed = underlay_mtu_needed(network, plan);
        if needed > uplink.mtu {
            return Err(StartError::Mtu {
                network: network.name.clone(),
                mtu: network.mtu,
                interface: uplink.interface.clone(),
                uplink_mtu: uplink.mtu,
                overhead: needed - u32::from(network.mtu),
            });
        }
    }
    Ok(())
}

fn smallest_mtu(infos: &[UplinkInfo]) -> Option<&UplinkInfo> {
    infos.iter().min_by_key(|info| info.mtu)
}

/// What the frames between workers may take to come home at the end: no longer than a worker that lost its core.
const DRAIN_PATIENCE: Duration = Duration::from_millis(200);

/// Who sends the frames of each worker: itself, or, if it has no socket, one after the other of those that have.
fn exits(ports: &[Port]) -> Vec<WorkerId> {
    let senders: Vec<WorkerId> = (0u8..)
        .zip(ports)
        .filter(|(_, port)| port.uplink.sends())
        .map(|(worker, _)| WorkerId(worker))
        .collect();
    let exit = |(worker, port): (u8, &Port)| match senders.get(usize::from(worker) % senders.len().max(1)) {
        Some(sender) if !port.uplink.sends() => *sender,
        _ => WorkerId(worker),
    };
    (0u8..).zip(ports).map(exit).collect()
}

/// Gives the steps of all flows to the workers that there are, if they have a fixed place.
fn spread(placement: &Placement, mode: PlacementMode) {
    match mode {
        PlacementMode::Static => placement.spread(placement::in_turn),
        PlacementMode::StaticHashed => placement.spread(placement::hashed),
        PlacementMode::Balanced | PlacementMode::RunToCompletion => {}
    }
}

/// Of each uplink queue by queue to one worker after the other. Who has any has one of every uplink, since nobody else can send from
/// its memory: so no more workers get some than the uplink with the fewest has queues.
fn deal(uplinks: &[Vec<QueueId>], workers: usize) -> Vec<Hand> {
    let fewest = uplinks.iter().map(Vec::len).min().unwrap_or(0);
    let players = workers.min(fewest).max(1);
    let its = |queues: &Vec<QueueId>, worker: usize| {
        queues.iter().copied().skip(worker).step_by(players).collect::<Vec<QueueId>>()
    };
    let hand = |worker: usize| match worker {
        _ if worker < players => uplinks.iter().map(|queues| its(queues, worker)).collect(),
        _ => vec![Vec::new(); uplinks.len()],
    };
    (0..workers).map(hand).collect()
}

/// The MTU with which a network's packets with the longest outer headers, also those to remotes that come while we run, fit a chunk behind
/// the kernel's headroom.
fn mtu_max(network: &NetworkPlan, plan: &Plan, chunk_size: u32) -> u32 {
    let is_tagged = plan.uplinks.iter().any(|uplink| uplink.vlan.is_some());
    let tags = usize::from(is_tagged) + usize::from(network.inner_vlan != InnerVlan::Drop);
    let to_any = NetworkPlan { any_remote: true, ..network.clone() };
    let headers = EthHeader::LEN + overhead(&to_any, &plan.uplinks) + VLAN_TAG * tags;
    (chunk_size as usize).saturating_sub(xsk::HEADROOM + headers) as u32
}

/// Some network's packets do not fit a chunk.
pub fn needs_multi_buffer(plan: &Plan, chunk_size: u32) -> bool {
    plan.networks.values().any(|network| u32::from(network.mtu) > mtu_max(network, plan, chunk_size))
}

fn xsk_configs(plan: &Plan) -> Vec<XskConfig> {
    let steering = |uplink: &UplinkPlan| Steering {
        locals: uplink.locals.clone(),
        vlan: uplink.vlan,
        port: uplink.port,
        networks: plan.networks.values().map(|n| (n.vni, n.port.unwrap_or(uplink.port))).collect(),
    };
    let config = |uplink: &UplinkPlan| XskConfig {
        chunk_size: uplink.chunk_size,
        ring_size: uplink.ring_size,
        early: uplink.early,
        multi_buffer: needs_multi_buffer(plan, uplink.chunk_size),
        tx_frames: uplink.ring_size,
        watchdog_ticks: WATCHDOG_MS * cycles_per_second() / 1000,
        steering: Some(steering(uplink)),
        ..XskConfig::new(&uplink.interface, uplink.mode)
    };
    plan.uplinks.iter().map(config).collect()
}

/// Frames that the kernel has had for so long without a completion are asked after.
const WATCHDOG_MS: u64 = 10;

/// What the plan has fixed behind remotes.
fn fixed_addresses(plan: &Plan) -> BTreeMap<(NetworkId, MacAddr), RemoteId> {
    let addresses = remote_addresses(plan);
    let on = |(id, network): (NetworkId, &NetworkPlan)| {
        let fixed = |fixed: &StaticMac| Some(((id, fixed.mac), *addresses.get(&fixed.remote)?));
        network.static_macs.iter().filter_map(fixed).collect::<Vec<_>>()
    };
    plan.networks.iter().flat_map(on).collect()
}

/// Addresses that all networks may learn together, those that come later as well.
fn learned_max(plan: &Plan) -> usize {
    let limits = plan.networks.values().map(|network| network.fdb_limit as usize);
    limits.sum::<usize>() + plan.capacity.addresses as usize
}

/// With room for every network's limit, and with what is known beforehand in it.
fn make_fdb(plan: &Plan, fixed: &BTreeMap<(NetworkId, MacAddr), RemoteId>) -> Result<Fdb, StartError> {
    let fdb =
        Fdb::new(learned_max(plan) + plan.stations_max() + fixed.len() + FIXED_LATER, plan.networks_max());
    let mut room = true;
    for (id, endpoint) in plan.endpoints.iter() {
        for station in endpoint.stations() {
            room &= fdb.set_fixed(endpoint.network, station.mac, Destination::Local(id));
        }
    }
    for (&(network, mac), &remote) in fixed {
        room &= fdb.set_fixed(network, mac, Destination::Remote(remote));
    }
    if room { Ok(fdb) } else { Err(StartError::FdbFull) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For each worker how many queues of each uplink.
    fn dealt(queues: &[u32], workers: usize) -> Vec<Vec<usize>> {
        let lists: Vec<Vec<QueueId>> =
            queues.iter().map(|count| (0..*count).map(QueueId).collect()).collect();
        let hands = deal(&lists, workers);
        for (uplink, list) in lists.iter().enumerate() {
            let mut all: Vec<QueueId> = hands.iter().flat_map(|hand| hand[uplink].clone()).collect();
            all.sort();
            assert_eq!(all, *list, "each queue once");
        }
        hands.iter().map(|hand| hand.iter().map(Vec::len).collect()).collect()
    }

    #[test]
    fn who_has_a_queue_has_one_of_every_uplink() {
        assert_eq!(dealt(&[3], 2), [[2], [1]]);
        assert_eq!(dealt(&[1], 3), [[1], [0], [0]]);
        assert_eq!(dealt(&[4, 1], 2), [[4, 1], [0, 0]]);
        assert_eq!(dealt(&[2, 3, 5], 3), [[1, 2, 3], [1, 1, 2], [0, 0, 0]]);
    }

    #[test]
    fn a_fault_is_that_of_the_last_connection_whether_it_has_left_or_not() {
        let mut endpoint = Connection::default();
        assert_eq!(endpoint.detach(), None);
        endpoint = Connection { serial: 1, home: Some(WorkerId(0)) };
        assert!(endpoint.put_out(1) && endpoint.home.is_none());
        endpoint = Connection { serial: 2, home: Some(WorkerId(0)) };
        assert!(!endpoint.put_out(1) && endpoint.home.is_some(), "who has come after it");
        assert_eq!((endpoint.detach(), endpoint.detach()), (Some((2, WorkerId(0))), None));
        assert!(endpoint.put_out(2), "who hung up just before");
    }
}
