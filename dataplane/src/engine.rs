//! A [`Plan`] made to run: opens the uplink, starts the pinned workers, changes what they forward by while they run,
//! reads their counters, stops them. Called by the control thread only; nothing here is on the path of a frame.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Instant;

use crate::clock::{Seconds, cycles_per_second};
use crate::counters::{Counter, TrafficStats, WorkerCounters};
use crate::fdb::{AgeingHand, Destination, Entry, Fdb};
use crate::mailbox::{Mailbox, Order, Returned};
use crate::plan::{Plan, UplinkPlan, WorkerPlan};
use crate::stats::{
    EndpointStats, NetworkStats, RemoteStats, Stats, Totals, UplinkStats, WorkerStats, drops_by_name,
};
use crate::sys;
use crate::tables::{Tables, remote_addresses};
use crate::types::{CoreId, EndpointId, NetworkId, QueueId, RemoteId};
use crate::wire::outer::OVERHEAD_IPV4;
use crate::worker::{Shared, Worker};
use crate::xsk::{self, Steering, Uplink, UplinkInfo, XskConfig, XskError};

pub use crate::tables::NextHop;
use crate::tenants::Detached;
pub use crate::tenants::{QUEUES_MAX, TenantRings};

/// What the workers had to say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Event {
    /// A tenant broke the protocol and is no longer served: hang up.
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
    /// The uplink could not be opened.
    Uplink(XskError),
    /// The CPU is not there, or not for us.
    Core {
        /// Which.
        core: CoreId,
        /// Those that we may use.
        usable: Vec<usize>,
    },
    /// A network's packets do not fit the uplink once they are encapsulated.
    Mtu {
        /// The network's name.
        network: String,
        /// Its MTU, in bytes.
        mtu: u16,
        /// The uplink's interface.
        interface: String,
        /// Its MTU, in bytes.
        uplink_mtu: u32,
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
            StartError::Mtu { network, mtu, interface, uplink_mtu } => write!(
                f,
                "network {network}: its MTU of {mtu} and {OUTER_BYTES} bytes of outer headers do not fit the MTU of {interface}, {uplink_mtu}: set it to {} or less, or raise the interface's (ip link set dev {interface} mtu {})",
                uplink_mtu.saturating_sub(OUTER_BYTES),
                u32::from(*mtu) + OUTER_BYTES
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
    uplink: Uplink,
    remotes: Vec<IpAddr>,
    next_hops: Vec<Option<NextHop>>,
    tables: Arc<Tables>,
    fdb: Arc<Fdb>,
    seconds: Seconds,
    workers: Vec<WorkerHandle>,
    /// By endpoint: the serial number of the connection that is attached.
    attached: Vec<Option<u64>>,
    last_serial: u64,
    stop: Arc<AtomicBool>,
    ageing: AgeingHand,
}

#[derive(Debug)]
struct WorkerHandle {
    core: CoreId,
    /// `None` once it has been joined.
    thread: Option<JoinHandle<Worker>>,
    counters: Arc<WorkerCounters>,
    mailbox: Arc<Mailbox>,
    /// Orders that the mailbox had no room for yet.
    outbox: VecDeque<Order>,
    frames_total: u64,
    /// Busy and total cycles at the last [`Engine::age`], and the share between the last two.
    cycles_seen: (u64, u64),
    busy: f64,
}

impl Engine {
    /// Opens the uplink and starts the workers. Next hops are unknown and no tenant is attached.
    ///
    /// # Errors
    /// [`StartError`]; whatever was opened is closed again.
    pub fn start(plan: &Plan) -> Result<Engine, StartError> {
        let usable = usable_cores();
        if let Some(worker) = plan.workers.iter().find(|worker| !usable.contains(&worker.core.0)) {
            return Err(StartError::Core { core: worker.core, usable });
        }
        let config = xsk_config(plan);
        let interface = xsk::interface(&plan.uplink.interface).map_err(StartError::Uplink)?;
        let queues = interface.queues(&plan.uplink.queues).map_err(StartError::Uplink)?;
        let (uplink, ports) =
            xsk::open(&config, &deal(&queues, plan.workers.len())).map_err(StartError::Uplink)?;

        check_mtu(plan, uplink.info().mtu)?;
        let mut tables = Tables::new(plan, uplink.info().mtu as usize);
        tables.cardless = uplink.info().driver == "veth";
        let tables = Arc::new(tables);
        let fdb = Arc::new(make_fdb(plan, &tables)?);
        let shared = Shared { tables: tables.clone(), fdb: fdb.clone(), seconds: Seconds::start() };
        let mut by_id: Vec<(RemoteId, IpAddr)> =
            remote_addresses(plan).into_iter().map(|(address, id)| (id, address)).collect();
        by_id.sort_unstable();
        let remotes: Vec<IpAddr> = by_id.into_iter().map(|(_, address)| address).collect();
        let mut engine = Engine {
            next_hops: vec![None; remotes.len()],
            remotes,
            plan: plan.clone(),
            uplink,
            tables,
            fdb,
            seconds: shared.seconds.clone(),
            workers: Vec::new(),
            attached: vec![None; plan.endpoints.len()],
            last_serial: 0,
            stop: Arc::default(),
            ageing: AgeingHand::new(Instant::now()),
        };
        for (worker, port) in plan.workers.iter().zip(ports) {
            let handle = engine.spawn(worker, port, shared.clone())?;
            engine.workers.push(handle);
        }
        Ok(engine)
    }

    fn spawn(
        &self,
        plan: &WorkerPlan,
        port: xsk::WorkerPort,
        shared: Shared,
    ) -> Result<WorkerHandle, StartError> {
        let WorkerPlan { core, nice } = *plan;
        let counters = Arc::new(WorkerCounters::new(
            self.plan.networks.len(),
            self.plan.endpoints.len(),
            self.remotes.len(),
        ));
        let mailbox = Arc::new(Mailbox::new());
        let frames_total = port.pool.capacity() as u64;
        counters.frames_free.set(port.pool.available() as u64);
        let worker = Worker::new(port, shared, counters.clone(), mailbox.clone());
        let stop = self.stop.clone();
        let (ready, placed) = mpsc::sync_channel(1);
        let body = move || {
            let result = settle(core, nice);
            peregrine_memif::warm_up(); // what the first wake-up of a tenant would otherwise set up
            let stays = result.is_ok();
            let _started = ready.send(result);
            if stays { worker.run(&stop) } else { worker }
        };
        let thread = std::thread::Builder::new().name(format!("worker-{}", core.0)).spawn(body);
        let thread = Some(thread.map_err(StartError::Thread)?);
        placed.recv().map_err(|_| StartError::Thread(io::ErrorKind::Interrupted.into()))??;
        Ok(WorkerHandle {
            core,
            thread,
            counters,
            mailbox,
            outbox: VecDeque::new(),
            frames_total,
            cycles_seen: (0, 0),
            busy: 0.0,
        })
    }

    /// The interface, and what was got of what was asked.
    pub fn uplink(&self) -> &UplinkInfo {
        self.uplink.info()
    }

    /// The remote VTEPs whose next hops are wanted; the index is the [`RemoteId`].
    pub fn remotes(&self) -> &[IpAddr] {
        &self.remotes
    }

    /// Frames that were to go to this remote so far, resolved or not: it grows while somebody wants the next hop.
    pub fn frames_towards(&self, remote: RemoteId) -> u64 {
        self.workers.iter().filter_map(|worker| worker.counters.remote(remote)).map(Counter::get).sum()
    }

    /// Sets how remotes are reached; `None` where the kernel does not know. However many change, the workers get one
    /// new set of tables.
    pub fn set_next_hops(&mut self, changes: impl IntoIterator<Item = (RemoteId, Option<NextHop>)>) {
        let mut tables = None;
        for (remote, hop) in changes {
            let Some(known) = self.next_hops.get_mut(remote.index()).filter(|known| **known != hop) else {
                continue;
            };
            *known = hop;
            tables.get_or_insert_with(|| Tables::clone(&self.tables)).set_next_hop(remote, hop);
        }
        if let Some(tables) = tables {
            self.tables = Arc::new(tables);
            for worker in &mut self.workers {
                worker.send(Order::Tables(self.tables.clone()));
            }
        }
    }

    /// Lets a worker serve a tenant.
    ///
    /// # Errors
    /// [`AttachError`]; the rings are dropped.
    pub fn attach(&mut self, endpoint: EndpointId, rings: TenantRings) -> Result<(), AttachError> {
        if !rings.is_complete() {
            return Err(AttachError::Rings);
        }
        match self.attached.get_mut(endpoint.index()) {
            None => return Err(AttachError::NoSuchEndpoint),
            Some(Some(_)) => return Err(AttachError::AlreadyAttached),
            Some(attached) => {
                self.last_serial += 1;
                *attached = Some(self.last_serial);
            }
        }
        if let Some(worker) = self.workers.first_mut() {
            worker.send(Order::Attach { endpoint, serial: self.last_serial, rings });
        }
        Ok(())
    }

    /// Stops serving a tenant. Its memory is unmapped once the worker has let go, in a later [`poll`](Self::poll).
    pub fn detach(&mut self, endpoint: EndpointId) {
        if let Some(serial) = self.attached.get_mut(endpoint.index()).and_then(Option::take)
            && let Some(worker) = self.workers.first_mut()
        {
            worker.send(Order::Detach { endpoint, serial });
        }
    }

    /// Keeps the clock, ages addresses, passes orders on, frees what the workers gave back, and tells what they had to
    /// say. Control calls it at least some times a second.
    pub fn poll(&mut self) -> Vec<Event> {
        self.seconds.tick();
        self.age_addresses();
        let mut events = Vec::new();
        for worker in &mut self.workers {
            worker.flush();
            while let Some(returned) = worker.mailbox.take_returned() {
                let Returned::Tenant(detached) = returned else { continue };
                let Detached { endpoint, serial, fault: Some(fault), .. } = detached else { continue };
                // A fault of a connection that is gone says nothing about the one that came after it.
                if let Some(attached) =
                    self.attached.get_mut(endpoint.index()).filter(|a| **a == Some(serial))
                {
                    *attached = None;
                    events.push(Event::TenantFault { endpoint, reason: fault.to_string() });
                }
            }
            if worker.thread.as_ref().is_some_and(JoinHandle::is_finished) {
                events.push(Event::WorkerDied { core: worker.core });
            }
        }
        events
    }

    /// What is due once a second: measures how busy the workers were.
    pub fn age(&mut self) {
        self.workers.iter_mut().for_each(WorkerHandle::measure_busy);
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
        self.workers.iter().map(|worker| (worker.core, worker.busy)).collect()
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
        // The kernel's own counters: an interface that is gone has none any more.
        let uplink = UplinkStats {
            program: self.uplink.steering().unwrap_or_default(),
            sockets: self.uplink.sockets().unwrap_or_default(),
        };
        let workers = self.workers.iter().map(WorkerHandle::stats).collect();
        Stats { totals, drops, workers, networks, endpoints, remotes, uplink }
    }

    fn network_stats(&self) -> Vec<NetworkStats> {
        let stats = self.plan.networks.iter().enumerate().map(|(index, network)| {
            let id = NetworkId(index as u16);
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
            }
        });
        stats.collect()
    }

    fn endpoint_stats(&self) -> Vec<EndpointStats> {
        let stats = self.plan.endpoints.iter().enumerate().map(|(index, endpoint)| {
            let id = EndpointId(index as u16);
            let counters = || self.workers.iter().filter_map(|worker| worker.counters.endpoint(id));
            EndpointStats {
                name: endpoint.name.clone(),
                network: self
                    .plan
                    .network(endpoint.network)
                    .map(|network| network.name.clone())
                    .unwrap_or_default(),
                mac: endpoint.mac,
                connected: self.attached.get(index).is_some_and(Option::is_some),
                from_tenant: sum_traffic(counters().map(|c| c.from_tenant.read())),
                to_tenant: sum_traffic(counters().map(|c| c.to_tenant.read())),
                dropped: counters().map(|c| c.dropped.get()).sum(),
                bad_descriptors: counters().map(|c| c.bad_descriptors.get()).sum(),
            }
        });
        stats.collect()
    }

    fn remote_stats(&self) -> Vec<RemoteStats> {
        let stats = self.remotes.iter().zip(&self.next_hops).enumerate().map(|(index, (&address, hop))| {
            RemoteStats {
                address,
                resolved: hop.is_some(),
                next_hop: hop.map(|hop| hop.destination),
                frames: self.frames_towards(RemoteId(index as u16)),
            }
        });
        stats.collect()
    }

    /// Stops the workers, closes the sockets and takes the XDP program off the interface. The last counters.
    pub fn stop(mut self) -> Stats {
        self.join();
        self.stats()
    }

    /// A worker stops within one turn; what it owned is dropped here.
    fn join(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        for worker in &mut self.workers {
            worker.outbox.clear();
        }
        // Kept in the list without their threads, so that their counters can still be read.
        for handle in &mut self.workers {
            if let Some(thread) = handle.thread.take()
                && thread.join().is_err()
            {
                eprintln!("peregrine: error: the worker on core {} panicked", handle.core.0);
            }
            while handle.mailbox.take_returned().is_some() {}
        }
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.join();
    }
}

impl WorkerHandle {
    /// Tables that wait are replaced by newer ones, so the list stays as short as there are tenants.
    fn send(&mut self, order: Order) {
        if matches!(order, Order::Tables(_)) {
            self.outbox.retain(|waiting| !matches!(waiting, Order::Tables(_)));
        }
        self.outbox.push_back(order);
        self.flush();
    }

    /// Orders keep their order: the first that finds no room stays in front.
    fn flush(&mut self) {
        while let Some(order) = self.outbox.pop_front() {
            if let Err(order) = self.mailbox.send(order) {
                self.outbox.push_front(order);
                return;
            }
        }
    }

    /// The busy share since the last call.
    fn measure_busy(&mut self) {
        let cycles = (self.counters.cycles_busy.get(), self.counters.cycles_total.get());
        let (busy, total) = (cycles.0 - self.cycles_seen.0, cycles.1 - self.cycles_seen.1);
        self.cycles_seen = cycles;
        self.busy = if total == 0 { 0.0 } else { (busy as f64 / total as f64).min(1.0) };
    }

    fn stats(&self) -> WorkerStats {
        let counters = &self.counters;
        WorkerStats {
            core: self.core,
            busy: self.busy,
            device_drops: counters.device_drops.get(),
            chunk_faults: counters.chunk_faults.get(),
            turns: counters.turns.get(),
            kicks: counters.kicks.get(),
            kicks_deferred: counters.kicks_deferred.get(),
            kicks_link_down: counters.kicks_link_down.get(),
            kicks_failed: counters.kicks_failed.get(),
            receive_kicks: counters.receive_kicks.get(),
            watchdog_kicks: counters.watchdog_kicks.get(),
            tenant_wakeups: counters.tenant_wakeups.get(),
            frames_free: counters.frames_free.get(),
            frames_total: self.frames_total,
        }
    }
}

fn sum_traffic(parts: impl Iterator<Item = TrafficStats>) -> TrafficStats {
    parts.fold(TrafficStats::default(), |mut sum, part| {
        sum += part;
        sum
    })
}

/// What an inner IP packet grows by within the outer IP packet: its Ethernet header, VXLAN, UDP and IPv4.
const OUTER_BYTES: u32 = OVERHEAD_IPV4 as u32;

fn check_mtu(plan: &Plan, uplink_mtu: u32) -> Result<(), StartError> {
    match plan.networks.iter().find(|network| u32::from(network.mtu) + OUTER_BYTES > uplink_mtu) {
        None => Ok(()),
        Some(network) => Err(StartError::Mtu {
            network: network.name.clone(),
            mtu: network.mtu,
            interface: plan.uplink.interface.clone(),
            uplink_mtu,
        }),
    }
}

/// Puts the calling thread on its core, with its priority.
fn settle(core: CoreId, nice: Option<i8>) -> Result<(), StartError> {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: core.0 }) {
        return Err(StartError::Core { core, usable: usable_cores() });
    }
    let Some(nice) = nice else { return Ok(()) };
    sys::set_thread_nice(nice).map_err(|source| StartError::Nice { core, nice, source })
}

fn usable_cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect()
}

/// Queue by queue to one worker after the other.
fn deal(queues: &[QueueId], workers: usize) -> Vec<Vec<QueueId>> {
    let mut hands = vec![Vec::new(); workers];
    for (queue, hand) in queues.iter().zip((0..workers).cycle()) {
        hands[hand].push(*queue);
    }
    hands
}

fn xsk_config(plan: &Plan) -> XskConfig {
    let UplinkPlan { interface, mode, local, port, chunk_size, ring_size, .. } = &plan.uplink;
    let vnis = plan.networks.iter().map(|network| network.vni).collect();
    XskConfig {
        chunk_size: *chunk_size,
        ring_size: *ring_size,
        tx_frames: *ring_size,
        watchdog_ticks: WATCHDOG_MS * cycles_per_second() / 1000,
        steering: Some(Steering { local: *local, port: *port, vnis }),
        ..XskConfig::new(interface, *mode)
    }
}

/// Frames that the kernel has had for so long without a completion are asked after.
const WATCHDOG_MS: u64 = 10;

/// With room for every network's limit, and with what is known beforehand in it.
fn make_fdb(plan: &Plan, tables: &Tables) -> Result<Fdb, StartError> {
    let learned: usize = plan.networks.iter().map(|network| network.fdb_limit as usize).sum();
    let fixed =
        plan.endpoints.len() + plan.networks.iter().map(|network| network.static_macs.len()).sum::<usize>();
    let fdb = Fdb::new(learned + fixed, plan.networks.len());
    let addresses = remote_addresses(plan);
    let mut room = true;
    for (index, endpoint) in tables.endpoints.iter().enumerate() {
        room &= fdb.set_fixed(endpoint.network, endpoint.mac, Destination::Local(EndpointId(index as u16)));
    }
    for (index, network) in plan.networks.iter().enumerate() {
        for (mac, remote) in &network.static_macs {
            let Some(&remote) = addresses.get(remote) else { continue };
            room &= fdb.set_fixed(NetworkId(index as u16), *mac, Destination::Remote(remote));
        }
    }
    if room { Ok(fdb) } else { Err(StartError::FdbFull) }
}
