//! A picture of all counters at one moment, for `status`, `stats` and tests: plain data, made by
//! [`Engine::stats`](crate::engine::Engine::stats) from the workers' counters and the kernel's.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::balance::BalanceStats;
use crate::counters::{ClassStats, DropReason, TrafficStats, Wakers, WorkerCounters};
use crate::histogram::value_at;
use crate::plan::{ClassPlan, ClassesPlan, IdleMode, Station, WorkOrder};
use crate::types::{Class, CoreId, MacAddr, Stage, Vni};
use crate::waiting::Before;
use crate::xsk::{SocketStatistics, SteeringCounters};

/// Everything that is counted.
#[derive(Clone, Debug, Serialize)]
pub struct Stats {
    /// Frames in, out and dropped over all workers.
    pub totals: Totals,
    /// Drops by reason; reasons that never occurred are left out.
    pub drops: BTreeMap<&'static str, u64>,
    /// One for each priority class, the most urgent first.
    pub classes: Vec<ClassEntry>,
    /// One for each worker.
    pub workers: Vec<WorkerStats>,
    /// What the balancer has done, if there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance: Option<BalanceStats>,
    /// One for each network.
    pub networks: Vec<NetworkStats>,
    /// One for each endpoint.
    pub endpoints: Vec<EndpointStats>,
    /// One for each remote VTEP.
    pub remotes: Vec<RemoteStats>,
    /// One for each uplink.
    pub uplinks: Vec<UplinkStats>,
}

/// Conservation: `uplink_rx + tenant_rx + replicated = uplink_tx + tenant_tx + dropped + in_flight`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Totals {
    /// From the uplinks.
    pub uplink_rx: TrafficStats,
    /// From tenants.
    pub tenant_rx: TrafficStats,
    /// Frames made here: copies for flooding, answers to tenants, announcements of them.
    pub replicated: u64,
    /// To the uplinks.
    pub uplink_tx: TrafficStats,
    /// To tenants.
    pub tenant_tx: TrafficStats,
    /// Dropped, for all reasons.
    pub dropped: u64,
    /// In minus out minus dropped: what the workers hold just now. While traffic runs the counters are read one
    /// after the other, so it can be off by what moved in between; at rest it is exactly zero.
    pub in_flight: i64,
    /// `in_flight == 0`.
    pub conserved: bool,
}

impl Totals {
    /// Adds one worker's counters.
    pub fn add(&mut self, worker: &WorkerCounters) {
        // Outputs first: a frame that moves on while we read is then rather seen as in flight than as made of nothing.
        self.uplink_tx += worker.uplink_tx.read();
        self.tenant_tx += worker.tenant_tx.read();
        self.dropped += worker.dropped.total();
        self.replicated += worker.replicated.get();
        self.uplink_rx += worker.uplink_rx.read();
        self.tenant_rx += worker.tenant_rx.read();
        let frames_in = self.uplink_rx.frames + self.tenant_rx.frames + self.replicated;
        let frames_out = self.uplink_tx.frames + self.tenant_tx.frames + self.dropped;
        self.in_flight = frames_in.wrapping_sub(frames_out) as i64;
        self.conserved = self.in_flight == 0;
    }
}

/// One priority class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassEntry {
    /// Its name in the config.
    pub name: String,
    /// How it is preferred to the classes behind it; of the last `None`.
    pub order: Option<WorkOrder>,
    /// Percent of each worker's time that it has at least.
    pub share: u8,
    /// DSCP of the outer header of what is sent.
    pub dscp: u8,
    /// Its frames over all workers: `uplink_rx + tenant_rx + replicated = uplink_tx + tenant_tx + dropped + in_flight`.
    #[serde(flatten)]
    pub frames: ClassStats,
    /// What the workers hold just now, as in [`Totals`].
    pub in_flight: i64,
    /// How long its frames waited for each step, as far as that was timed.
    pub waiting: Vec<WaitingStats>,
}

/// How long frames of a class waited before a step, over all workers and since the start: of one burst in some
/// ([`waiting`](crate::waiting) tells from when to when). Times are at most 1/32 too high.
#[derive(Clone, Debug, Serialize)]
pub struct WaitingStats {
    /// For what they waited: `collect`, to be taken from a tenant, or a step.
    pub stage: &'static str,
    /// How many were timed.
    pub samples: u64,
    /// Half waited no longer, in microseconds.
    pub p50_us: f64,
    /// 99 of 100 waited no longer.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

impl ClassEntry {
    /// All classes of a plan, by these workers, whose clocks go so many cycles a second.
    pub fn all<'a>(
        plan: &ClassesPlan,
        workers: impl Iterator<Item = &'a WorkerCounters> + Clone,
        cycles_per_second: u64,
    ) -> Vec<ClassEntry> {
        let last = plan.list.len().saturating_sub(1);
        let entry = |(index, class): (usize, &ClassPlan)| {
            let id = Class(index as u8);
            let mut frames = ClassStats::default();
            workers.clone().for_each(|worker| frames += worker.class(id));
            let waited = |before| WaitingStats::of(id, before, workers.clone(), cycles_per_second);
            ClassEntry {
                name: class.name.clone(),
                order: (index < last).then_some(class.order),
                share: class.share,
                dscp: class.dscp,
                frames,
                in_flight: frames.in_flight(),
                waiting: Before::all().filter_map(waited).collect(),
            }
        };
        plan.list.iter().enumerate().map(entry).collect()
    }
}

impl WaitingStats {
    fn of<'a>(
        class: Class,
        before: Before,
        workers: impl Iterator<Item = &'a WorkerCounters>,
        cycles_per_second: u64,
    ) -> Option<WaitingStats> {
        let counts = workers
            .filter_map(|worker| worker.waiting.counts(class, before))
            .reduce(|sum, counts| sum.iter().zip(&counts).map(|(a, b)| a + b).collect())?;
        let samples: u64 = counts.iter().sum();
        let us_of = |number| {
            let cycles = value_at(&counts, number).unwrap_or_default();
            // Nanoseconds are more than exact enough.
            (cycles as f64 * 1e9 / cycles_per_second.max(1) as f64).round() / 1e3
        };
        Some(WaitingStats {
            stage: before.name(),
            samples,
            p50_us: us_of(samples.div_ceil(2)),
            p99_us: us_of((samples * 99).div_ceil(100)),
            max_us: us_of(samples),
        })
    }
}

/// One worker.
#[derive(Clone, Debug, Serialize)]
pub struct WorkerStats {
    /// The CPU that it is pinned to.
    pub core: CoreId,
    /// Share of its cycles in the last second in which it found work; 0 to 1.
    pub busy: f64,
    /// By step, as far as it ran any.
    pub stages: Vec<StageStats>,
    /// Turns of its loop since the start.
    pub turns: u64,
    /// Turns in the middle of which its core was taken away for a millisecond or more: it should have the core for itself.
    pub stalls: u64,
    /// Frames that it handed to other workers.
    pub handed_over: u64,
    /// Transmit kicks (syscalls).
    pub kicks: u64,
    /// Kicks that the kernel put off (EAGAIN, ENOBUFS, EBUSY in zero-copy mode).
    pub kicks_deferred: u64,
    /// Kicks that failed because the interface was down.
    pub kicks_link_down: u64,
    /// Kicks that failed otherwise.
    pub kicks_failed: u64,
    /// Frames that the device dropped after they were handed over (EBUSY in copy mode, a veth whose other end is full
    /// for one). They count as `uplink_tx` too.
    pub device_drops: u64,
    /// Frames whose ECN fields, outer and inner, should not occur together (RFC 6040 §4.2).
    pub ecn_unexpected: u64,
    /// Chunks lost, frames refused, and chunks that the kernel named without having them, because of a bug: ours, or a driver's that hands a
    /// chunk over twice.
    pub chunk_faults: u64,
    /// Receive kicks (syscalls): the driver had run out of fill descriptors.
    pub receive_kicks: u64,
    /// Kicks by the watchdog.
    pub watchdog_kicks: u64,
    /// eventfd writes to sleeping tenants (syscalls).
    pub tenant_wakeups: u64,
    /// What it does while there is nothing to do.
    pub idle: IdleMode,
    /// Share of the last second in which it slept; 0 to 1.
    pub slept: f64,
    /// Times that it slept since the start.
    pub sleeps: u64,
    /// What woke it.
    pub woken_by: WokenBy,
    /// Times that a tenant could not be watched (/proc/sys/fs/epoll/max_user_watches), when it came or the worker moved: while the worker sleeps
    /// such a one is noticed late, by up to 10 ms for every 256 quiet tenants.
    pub unwatched: u64,
    /// Chunks in its UMEM, free for use just now.
    pub frames_free: u64,
    /// Chunks in its UMEM.
    pub frames_total: u64,
}

/// How often each has woken a worker; together more than its sleeps, if several did at once.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct WokenBy {
    /// Frames from an uplink.
    pub uplink: u64,
    /// Tenants that sent.
    pub tenants: u64,
    /// Frames from other workers.
    pub workers: u64,
    /// The control thread.
    pub control: u64,
    /// Nobody: it sleeps some milliseconds at most.
    pub time: u64,
}

impl WokenBy {
    pub(crate) fn of(wakers: &Wakers) -> WokenBy {
        WokenBy {
            uplink: wakers.uplink.get(),
            tenants: wakers.tenants.get(),
            workers: wakers.workers.get(),
            control: wakers.control.get(),
            time: wakers.time.get(),
        }
    }
}

/// What a worker did of one step.
#[derive(Clone, Debug, Serialize)]
pub struct StageStats {
    /// Which.
    pub stage: &'static str,
    /// Frames that it was run for.
    pub frames: u64,
    /// Those of them that were looked at.
    pub sampled_frames: u64,
    /// Cycles (of the TSC) for each of these, in the mean since the start.
    pub cycles_per_frame: Option<f64>,
}

impl StageStats {
    /// Of all steps that ran.
    pub fn of(worker: &WorkerCounters) -> Vec<StageStats> {
        let of = |stage: Stage| {
            let counters = worker.stage(stage)?;
            let (frames, sampled_frames) = (counters.frames.get(), counters.sampled_frames.get());
            let cycles_per_frame =
                (sampled_frames > 0).then(|| counters.sampled_cycles.get() as f64 / sampled_frames as f64);
            (frames > 0).then_some(StageStats {
                stage: stage.name(),
                frames,
                sampled_frames,
                cycles_per_frame,
            })
        };
        Stage::ALL.into_iter().filter_map(of).collect()
    }
}

/// One network.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkStats {
    /// Its name in the config.
    pub name: String,
    /// Its number.
    pub vni: Vni,
    /// Decapsulated.
    pub from_underlay: TrafficStats,
    /// Encapsulated.
    pub to_underlay: TrafficStats,
    /// Dropped after the network was known.
    pub dropped: u64,
    /// MAC addresses in the FDB that were learned.
    pub fdb_learned: u32,
    /// Addresses learned since the start.
    pub learned: u64,
    /// Learned addresses that moved to another remote.
    pub moved: u64,
    /// Addresses not learned: limit reached or table full.
    pub learn_refused: u64,
    /// Remotes that it has because they sent, and it takes any.
    pub discovered: usize,
    /// Times that a sender did not become a remote, because there was no room: one that goes on sending counts again.
    pub discoveries_refused: u64,
    /// Moves not followed: the address moved too often, and is held where it is.
    pub moves_damped: u64,
    /// ARP requests of tenants answered instead of flooded.
    pub arp_answered: u64,
    /// Neighbour solicitations of tenants answered instead of flooded.
    pub nd_answered: u64,
    /// Tenants were told that a packet of theirs was too big (ICMP).
    pub too_big_told: u64,
}

impl NetworkStats {
    /// What was counted since then, for another one.
    pub(crate) fn since(mut self, before: &NetworkStats) -> NetworkStats {
        self.from_underlay -= before.from_underlay;
        self.to_underlay -= before.to_underlay;
        let pairs = [
            (&mut self.dropped, before.dropped),
            (&mut self.learned, before.learned),
            (&mut self.moved, before.moved),
            (&mut self.learn_refused, before.learn_refused),
            (&mut self.moves_damped, before.moves_damped),
            (&mut self.arp_answered, before.arp_answered),
            (&mut self.nd_answered, before.nd_answered),
            (&mut self.too_big_told, before.too_big_told),
            (&mut self.discoveries_refused, before.discoveries_refused),
        ];
        pairs.into_iter().for_each(|(now, before)| *now = now.saturating_sub(before));
        self
    }
}

/// One endpoint.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStats {
    /// Its name in the config.
    pub name: String,
    /// The network's name.
    pub network: String,
    /// Its address.
    pub mac: MacAddr,
    /// Other stations of the same tenant: all that follows is counted for all of them together.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub more: Vec<StationName>,
    /// A tenant is attached.
    pub connected: bool,
    /// Taken from the tenant.
    pub from_tenant: TrafficStats,
    /// Handed to the tenant.
    pub to_tenant: TrafficStats,
    /// Dropped, from or for it.
    pub dropped: u64,
    /// Descriptors that broke the protocol.
    pub bad_descriptors: u64,
}

/// A station beside the first one of an endpoint.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct StationName {
    /// Its name in the config.
    pub name: String,
    /// Its address.
    pub mac: MacAddr,
}

impl StationName {
    pub(crate) fn of(station: &Station) -> StationName {
        StationName { name: station.name.clone(), mac: station.mac }
    }
}

impl EndpointStats {
    /// What was counted since then, for another one.
    pub(crate) fn since(mut self, before: &EndpointStats) -> EndpointStats {
        self.from_tenant -= before.from_tenant;
        self.to_tenant -= before.to_tenant;
        self.dropped = self.dropped.saturating_sub(before.dropped);
        self.bad_descriptors = self.bad_descriptors.saturating_sub(before.bad_descriptors);
        self
    }

    /// Nothing was counted.
    pub(crate) fn is_nothing(&self) -> bool {
        let nothing = TrafficStats::default();
        (self.from_tenant, self.to_tenant, self.dropped, self.bad_descriptors) == (nothing, nothing, 0, 0)
    }
}

/// One remote VTEP.
#[derive(Clone, Debug, Serialize)]
pub struct RemoteStats {
    /// Its address.
    pub address: std::net::IpAddr,
    /// The kernel knows how to reach it.
    pub resolved: bool,
    /// The interface that it is reached over.
    pub uplink: Option<String>,
    /// Link-layer address of the next hop.
    pub next_hop: Option<MacAddr>,
    /// Frames sent towards it.
    pub frames: u64,
}

/// One uplink: what is ours of it, and what the XDP program and the kernel's sockets counted before that.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UplinkStats {
    /// Its interface.
    pub interface: String,
    /// Taken from its rx rings.
    pub rx: TrafficStats,
    /// Handed to its tx rings.
    pub tx: TrafficStats,
    /// What the XDP program decided, by queue from 0.
    pub program: Vec<SteeringCounters>,
    /// The kernel's statistics of each socket (XDP_STATISTICS).
    pub sockets: Vec<SocketStatistics>,
}

/// Sums the reasons over workers and leaves out those that are zero.
pub fn drops_by_name<'a>(
    workers: impl Iterator<Item = &'a WorkerCounters> + Clone,
) -> BTreeMap<&'static str, u64> {
    DropReason::ALL
        .iter()
        .map(|&reason| (reason.name(), workers.clone().map(|w| w.dropped.get(reason)).sum()))
        .filter(|&(_, count): &(_, u64)| count > 0)
        .collect()
}
