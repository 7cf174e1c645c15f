//! What happened, counted: per worker, per network, per endpoint, per remote; and the reasons for every drop.
//!
//! A [`Counter`] has one writer, the worker it belongs to, so adding is a plain load and store; the control
//! thread reads at any time without disturbing it. The sum over the workers is taken when somebody asks.
//!
//! What must hold, per worker and over all of them (`stats` shows it, tests assert it):
//! `uplink_rx + tenant_rx + replicated == uplink_tx + tenant_tx + dropped + in flight`. What is made here and not taken from somewhere is
//! `replicated`: copies, answers about packets that are too long, announcements.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use serde::Serialize;

use crate::types::{Class, EndpointId, NetworkId, RemoteId, Stage, UplinkId};
use crate::waiting::{Before, Waiting};

/// A number that only goes up, with one writer.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds `count`. Only the owning worker calls this.
    #[inline]
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Its value now, from any thread.
    #[inline]
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that goes up and down, with one writer.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Its value from now on. Only the owning worker calls this.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Its value now, from any thread.
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $name:ident => $text:literal,)*) => {
        /// Why a frame was dropped. Each has a counter and a name that people see.
        #[derive(Clone, Copy, PartialEq, Eq, Debug)]
        #[repr(u8)]
        pub enum DropReason { $($(#[$doc])* $name,)* }

        impl DropReason {
            /// All of them, in the order of their counters.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$name,)*];
            /// How many there are.
            pub const COUNT: usize = DropReason::ALL.len();

            /// The name in `stats`.
            pub const fn name(self) -> &'static str {
                match self { $(DropReason::$name => $text,)* }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than an Ethernet header.
    OuterTruncated => "outer_truncated",
    /// The outer packet is not UDP to one of our ports and addresses: the XDP program should not have sent it.
    OuterNotOurs => "outer_not_ours",
    /// Outer IPv4 header: version, header length or total length do not fit together (RFC 791 §3.1).
    OuterIpInvalid => "outer_ip_invalid",
    /// Outer IPv4 header checksum is wrong.
    OuterIpChecksum => "outer_ip_checksum",
    /// A fragment of an outer packet; VTEPs need not reassemble (RFC 7348 §4.3).
    OuterFragment => "outer_fragment",
    /// Outer UDP length does not fit the packet (RFC 768).
    OuterUdpInvalid => "outer_udp_invalid",
    /// Outer UDP checksum is there and wrong (RFC 7348 §4.1).
    OuterUdpChecksum => "outer_udp_checksum",
    /// Outer UDP checksum is zero over IPv6, and that is not accepted here (RFC 6936 §4).
    OuterUdpNoChecksum => "outer_udp_no_checksum",
    /// The outer header says "congestion experienced" and the inner one that its sender does not know ECN (RFC 6040 §4.2).
    EcnInvalid => "ecn_invalid",
    /// Too short for a VXLAN header.
    VxlanTruncated => "vxlan_truncated",
    /// The I flag is not set (RFC 7348 §5).
    VxlanFlagUnset => "vxlan_flag_unset",
    /// A reserved bit of the VXLAN header is set, and the network refuses those.
    VxlanReservedSet => "vxlan_reserved_set",
    /// No network of ours has this VNI.
    VniUnknown => "vni_unknown",
    /// The sender is not a remote VTEP of this network.
    RemoteUnknown => "remote_unknown",
    /// The inner frame is shorter than an Ethernet header.
    InnerTruncated => "inner_truncated",
    /// The inner source address is a group address or zero, which no station has.
    InnerSourceInvalid => "inner_source_invalid",
    /// The inner frame has a VLAN tag, and the network has none (RFC 7348 §6.1).
    InnerVlanTagged => "inner_vlan_tagged",
    /// The inner frame is longer than the network's MTU allows.
    InnerTooLong => "inner_too_long",
    /// The encapsulated packet is longer than the path to the remote takes.
    PathMtuExceeded => "path_mtu_exceeded",
    /// A tenant sent from an address that is not its own.
    SourceSpoofed => "source_spoofed",
    /// The destination is where the frame came from.
    Hairpin => "hairpin",
    /// Broadcast, unknown or multicast, and nobody to send it to.
    FloodNobody => "flood_nobody",
    /// From the underlay, for an address behind a remote: never sent back (split horizon).
    SplitHorizon => "split_horizon",
    /// The tenant is not connected.
    TenantAbsent => "tenant_absent",
    /// The tenant's ring is full: it does not take packets fast enough.
    TenantRingFull => "tenant_ring_full",
    /// The buffer that the tenant offered is too small for the packet.
    TenantBufferSmall => "tenant_buffer_small",
    /// The tenant offered a buffer outside its memory.
    TenantBufferInvalid => "tenant_buffer_invalid",
    /// The kernel has no link-layer address for the next hop yet.
    NextHopUnresolved => "next_hop_unresolved",
    /// The uplink's transmit ring is full.
    UplinkRingFull => "uplink_ring_full",
    /// The encapsulated frame does not fit the uplink's MTU or the chunk; or one came in that is longer than the longest we take.
    UplinkTooLong => "uplink_too_long",
    /// No free frame for a copy (flooding), or no large buffer for a packet from the underlay that is longer than a chunk.
    NoFreeFrame => "no_free_frame",
    /// The ring to the worker that is next is full, or half of this worker's frames are held up at others: one of those is overloaded.
    WorkerRingFull => "worker_ring_full",
    /// Too much flooding in one turn: copies for some tenant's broadcasts would have kept everybody waiting.
    FloodLimited => "flood_limited",
    /// The tenant flooded more frames a second than its limit.
    StormLimited => "storm_limited",
    /// The tenant broke the ring protocol just now and is being put out.
    TenantFault => "tenant_fault",
    /// The tenant sent a chain of buffers; chains are not taken here.
    TenantChained => "tenant_chained",
    /// A burst was full: a bound of ours that is never reached, since no stage but encap makes frames, and encap
    /// empties its burst when it is full.
    BurstFull => "burst_full",
}

/// Frames and bytes.
#[derive(Debug, Default)]
pub struct Traffic {
    /// Frames.
    pub frames: Counter,
    /// Their bytes without FCS: outer frames at the uplink, inner ones everywhere else.
    pub bytes: Counter,
}

impl Traffic {
    /// Counts one frame of `bytes`.
    #[inline]
    pub fn one(&self, bytes: usize) {
        self.many(1, bytes);
    }

    /// Counts frames that have so many bytes together.
    #[inline]
    pub fn many(&self, frames: usize, bytes: usize) {
        self.frames.add(frames as u64);
        self.bytes.add(bytes as u64);
    }

    /// Their values now.
    pub fn read(&self) -> TrafficStats {
        TrafficStats { frames: self.frames.get(), bytes: self.bytes.get() }
    }
}

/// Frames and bytes by uplink.
#[derive(Debug, Default)]
pub struct UplinkTraffic([Traffic; UplinkId::LIMIT]);

impl UplinkTraffic {
    /// That of an uplink, if there may be one with this id.
    #[inline]
    pub fn of(&self, uplink: UplinkId) -> Option<&Traffic> {
        self.0.get(uplink.index())
    }

    /// Frames over all of them.
    #[inline]
    pub fn frames(&self) -> u64 {
        self.0.iter().map(|traffic| traffic.frames.get()).sum()
    }

    /// All of them together.
    pub fn read(&self) -> TrafficStats {
        self.0.iter().map(Traffic::read).fold(TrafficStats::default(), |mut sum, part| {
            sum += part;
            sum
        })
    }
}

/// Drops by reason.
#[derive(Debug)]
pub struct Drops([Counter; DropReason::COUNT]);

impl Default for Drops {
    fn default() -> Drops {
        Drops(std::array::from_fn(|_| Counter::default()))
    }
}

impl Drops {
    /// Counts one.
    #[inline]
    pub fn one(&self, reason: DropReason) {
        self.many(reason, 1);
    }

    /// Counts so many.
    #[inline]
    pub fn many(&self, reason: DropReason, drops: u64) {
        if let Some(counter) = self.0.get(reason as usize) {
            counter.add(drops);
        }
    }

    /// How many for this reason.
    pub fn get(&self, reason: DropReason) -> u64 {
        self.0.get(reason as usize).map_or(0, Counter::get)
    }

    /// All of them together.
    pub fn total(&self) -> u64 {
        self.0.iter().map(Counter::get).sum()
    }
}

/// One network's share, in one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct NetworkCounters {
    /// Decapsulated frames.
    pub from_underlay: Traffic,
    /// Encapsulated frames.
    pub to_underlay: Traffic,
    /// Frames dropped after their network was known.
    pub dropped: Counter,
    /// Source addresses learned.
    pub learned: Counter,
    /// Learned addresses that appeared behind another remote.
    pub moved: Counter,
    /// Addresses not learned because the network's limit was reached or the table was full.
    pub learn_refused: Counter,
    /// Moves that were not followed because the address moves too often.
    pub moves_damped: Counter,
    /// ARP requests of tenants that were answered instead of flooded.
    pub arp_answered: Counter,
    /// Neighbour solicitations of tenants that were answered instead of flooded.
    pub nd_answered: Counter,
    /// Tenants were told that a packet of theirs was too big.
    pub too_big_told: Counter,
}

/// One endpoint's share, in one worker.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct EndpointCounters {
    /// Packets taken from the tenant.
    pub from_tenant: Traffic,
    /// Packets handed to the tenant.
    pub to_tenant: Traffic,
    /// Frames from this tenant that were dropped, and frames for it that it could not be given.
    pub dropped: Counter,
    /// Descriptors of the tenant that broke the protocol; none of their bytes were read.
    pub bad_descriptors: Counter,
}

/// One class's share, in one worker: frames.
#[derive(Debug, Default)]
pub struct ClassCounters {
    /// From the uplinks.
    pub uplink_rx: Counter,
    /// To the uplinks' tx rings.
    pub uplink_tx: Counter,
    /// From tenants.
    pub tenant_rx: Counter,
    /// To tenants.
    pub tenant_tx: Counter,
    /// Frames made here: copies beyond the one that came in, answers, announcements.
    pub replicated: Counter,
    /// Dropped since their class was known.
    pub dropped: Counter,
}

impl ClassCounters {
    fn read(&self) -> ClassStats {
        // Outputs first, as in `stats::Totals`.
        ClassStats {
            uplink_tx: self.uplink_tx.get(),
            tenant_tx: self.tenant_tx.get(),
            dropped: self.dropped.get(),
            replicated: self.replicated.get(),
            uplink_rx: self.uplink_rx.get(),
            tenant_rx: self.tenant_rx.get(),
        }
    }
}

/// How many frames of a burst are of each class.
#[derive(Clone, Copy, Default, Debug)]
pub struct ClassTally([u64; Class::LIMIT]);

impl ClassTally {
    /// Of frames of these classes.
    #[inline]
    pub fn of(classes: impl Iterator<Item = Class>) -> ClassTally {
        let mut tally = ClassTally::default();
        classes.for_each(|class| tally.one(class));
        tally
    }

    /// One more.
    #[inline]
    pub fn one(&mut self, class: Class) {
        if let Some(count) = self.0.get_mut(class.index()) {
            *count += 1;
        }
    }

    /// Without those that are left of them.
    #[inline]
    pub fn without(self, left: &ClassTally) -> ClassTally {
        let mut counts = self.0;
        counts.iter_mut().zip(left.0).for_each(|(count, left)| *count -= left.min(*count));
        ClassTally(counts)
    }
}

/// Frames of one class:
/// `uplink_rx + tenant_rx + replicated == uplink_tx + tenant_tx + dropped + in flight`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ClassStats {
    /// From the uplinks.
    pub uplink_rx: u64,
    /// To the uplinks' tx rings.
    pub uplink_tx: u64,
    /// From tenants.
    pub tenant_rx: u64,
    /// To tenants.
    pub tenant_tx: u64,
    /// Frames made here: copies beyond the one that came in, answers, announcements.
    pub replicated: u64,
    /// Dropped.
    pub dropped: u64,
}

impl ClassStats {
    /// In minus out minus dropped. While traffic runs the counters are read one after the other, so it can be off by what moved in
    /// between; at rest it is exactly zero.
    pub fn in_flight(&self) -> i64 {
        let frames_in = self.uplink_rx + self.tenant_rx + self.replicated;
        let frames_out = self.uplink_tx + self.tenant_tx + self.dropped;
        frames_in.wrapping_sub(frames_out) as i64
    }

    fn with(self, other: ClassStats, op: impl Fn(u64, u64) -> u64) -> ClassStats {
        ClassStats {
            uplink_rx: op(self.uplink_rx, other.uplink_rx),
            uplink_tx: op(self.uplink_tx, other.uplink_tx),
            tenant_rx: op(self.tenant_rx, other.tenant_rx),
            tenant_tx: op(self.tenant_tx, other.tenant_tx),
            replicated: op(self.replicated, other.replicated),
            dropped: op(self.dropped, other.dropped),
        }
    }

    /// A worker counts while it is read: never below nothing.
    fn without(self, other: ClassStats) -> ClassStats {
        self.with(other, u64::saturating_sub)
    }
}

impl std::ops::AddAssign for ClassStats {
    fn add_assign(&mut self, other: ClassStats) {
        *self = self.with(other, u64::wrapping_add);
    }
}

/// What one step did on one worker, and what it costs: looked at in one turn of some.
#[derive(Debug, Default)]
pub struct StageCounters {
    /// Frames that it was run for.
    pub frames: Counter,
    /// Those of them in turns that were looked at.
    pub sampled_frames: Counter,
    /// What these took, in cycles.
    pub sampled_cycles: Counter,
}

/// Sums over turns that found work, from which what a turn costs can be told from what a frame costs (least squares).
#[derive(Debug, Default)]
pub struct TurnCosts {
    /// Turns.
    pub turns: Counter,
    /// Frames that moved in them.
    pub frames: Counter,
    /// The squares of these.
    pub frames_squared: Counter,
    /// Cycles.
    pub cycles: Counter,
    /// Cycles times frames.
    pub frame_cycles: Counter,
}

impl TurnCosts {
    /// More cycles than a turn has even with much work on each frame: an interrupt fell into it.
    const DISTURBED_CYCLES: u64 = 500_000;

    /// One turn.
    #[inline]
    pub fn note(&self, frames: u64, cycles: u64) {
        if cycles < TurnCosts::DISTURBED_CYCLES {
            self.turns.add(1);
            self.frames.add(frames);
            self.frames_squared.add(frames * frames);
            self.cycles.add(cycles);
            self.frame_cycles.add(frames * cycles);
        }
    }

    /// Turns, frames, their squares, cycles, cycles times frames.
    pub fn read(&self) -> [u64; 5] {
        let sums = [&self.turns, &self.frames, &self.frames_squared, &self.cycles, &self.frame_cycles];
        sums.map(Counter::get)
    }
}

/// What woke a worker.
#[derive(Debug, Default)]
pub struct Wakers {
    /// Frames from an uplink.
    pub uplink: Counter,
    /// A tenant that has sent.
    pub tenants: Counter,
    /// Frames from another worker.
    pub workers: Counter,
    /// An order, a pause.
    pub control: Counter,
    /// Nobody: the time was over.
    pub time: Counter,
}

/// One worker's counters. Only that worker writes them.
#[derive(Debug)]
#[repr(align(128))]
pub struct WorkerCounters {
    /// Frames from the uplinks' rx rings.
    pub uplink_rx: UplinkTraffic,
    /// Frames handed to the uplinks' tx rings.
    pub uplink_tx: UplinkTraffic,
    /// Packets taken from tenants.
    pub tenant_rx: Traffic,
    /// Packets handed to tenants.
    pub tenant_tx: Traffic,
    /// Frames made here: copies beyond the one that came in (flooding), answers, announcements.
    pub replicated: Counter,
    /// Dropped, by reason.
    pub dropped: Drops,
    /// By class, but for the one that frames have if nobody says otherwise: of that it is what is left of all.
    classes: [ClassCounters; Class::LIMIT],
    default_class: Class,
    /// How long frames waited, by class.
    pub waiting: Waiting,
    /// Frames handed to other workers.
    pub handed_over: Counter,
    /// By step.
    pub stages: [StageCounters; Stage::COUNT],
    /// Turns of the loop.
    pub turns: Counter,
    /// Cycles in turns that found work.
    pub cycles_busy: Counter,
    /// What these turns cost.
    pub turn_costs: TurnCosts,
    /// Cycles in all turns.
    pub cycles_total: Counter,
    /// Turns in the middle of which the core was taken away for a millisecond or more.
    pub stalls: Counter,
    /// Cycles in these turns.
    pub cycles_stalled: Counter,
    /// Transmit kicks that the kernel put off (EAGAIN, ENOBUFS, EBUSY in zero-copy mode): tried again in the next turn.
    pub kicks_deferred: Counter,
    /// Transmit kicks: system calls that make the kernel look at the tx ring.
    pub kicks: Counter,
    /// Transmit kicks that failed because the interface was down.
    pub kicks_link_down: Counter,
    /// Transmit kicks that failed otherwise.
    pub kicks_failed: Counter,
    /// Frames that the device dropped in the kick (EBUSY in copy mode): handed over, completed, never sent.
    pub device_drops: Counter,
    /// Frames whose ECN fields, outer and inner, should not occur together (RFC 6040 §4.2): some tunnel on the way does it wrong, or an
    /// attacker plays with them. They go on.
    pub ecn_unexpected: Counter,
    /// Chunks lost, frames refused, and chunks that the kernel named without having them: 0 unless there is a bug, ours or a driver's.
    pub chunk_faults: Gauge,
    /// Receive kicks: the driver had run out of fill descriptors and asked to be woken.
    pub receive_kicks: Counter,
    /// Kicks by the watchdog: frames were outstanding without a completion for too long.
    pub watchdog_kicks: Counter,
    /// eventfd writes to tenants that sleep.
    pub tenant_wakeups: Counter,
    /// Times that it slept, the cycles of that (in `cycles_total`, too), and what woke it.
    pub sleeps: Counter,
    /// As above.
    pub cycles_slept: Counter,
    /// As above; more than one may have, at once.
    pub woken: Wakers,
    /// Times that a tenant could not be watched, because the system had no room for it: such a one does not wake it, and is noticed late, by
    /// up to 10 ms for every 256 quiet tenants.
    pub unwatched: Counter,
    /// Chunks of the worker's memory that are free.
    pub frames_free: Gauge,
    /// Per network, by [`NetworkId`].
    pub networks: Box<[NetworkCounters]>,
    /// Per endpoint, by [`EndpointId`].
    pub endpoints: Box<[EndpointCounters]>,
    /// Frames sent towards each remote, by [`RemoteId`]: shows which next hops are in use.
    pub remotes: Box<[Counter]>,
    /// When each remote was last heard of in a network that takes any, in seconds, by [`RemoteId`].
    heard: Box<[Gauge]>,
}

impl WorkerCounters {
    /// All zero, for so many of each.
    pub fn new(networks: usize, endpoints: usize, remotes: usize) -> WorkerCounters {
        fn list<T: Default>(count: usize) -> Box<[T]> {
            std::iter::repeat_with(T::default).take(count).collect()
        }
        WorkerCounters {
            uplink_rx: UplinkTraffic::default(),
            uplink_tx: UplinkTraffic::default(),
            tenant_rx: Traffic::default(),
            tenant_tx: Traffic::default(),
            replicated: Counter::default(),
            dropped: Drops::default(),
            classes: Default::default(),
            default_class: Class::NORMAL,
            waiting: Waiting::default(),
            handed_over: Counter::default(),
            stages: Default::default(),
            turns: Counter::default(),
            turn_costs: TurnCosts::default(),
            stalls: Counter::default(),
            cycles_stalled: Counter::default(),
            cycles_busy: Counter::default(),
            cycles_total: Counter::default(),
            kicks_deferred: Counter::default(),
            kicks: Counter::default(),
            kicks_link_down: Counter::default(),
            kicks_failed: Counter::default(),
            device_drops: Counter::default(),
            ecn_unexpected: Counter::default(),
            chunk_faults: Gauge::default(),
            receive_kicks: Counter::default(),
            watchdog_kicks: Counter::default(),
            tenant_wakeups: Counter::default(),
            sleeps: Counter::default(),
            cycles_slept: Counter::default(),
            woken: Wakers::default(),
            unwatched: Counter::default(),
            frames_free: Gauge::default(),
            networks: list(networks),
            endpoints: list(endpoints),
            remotes: list(remotes),
            heard: list(remotes),
        }
    }

    /// The same for so many classes, of which frames have this one if nobody says otherwise. Before, that is [`Class::NORMAL`], and
    /// nobody notes how long they wait.
    #[must_use]
    pub fn with_classes(self, count: usize, default: Class) -> WorkerCounters {
        WorkerCounters { default_class: default, waiting: Waiting::new(count), ..self }
    }

    /// A burst of this class, or the default, has waited so many cycles.
    #[inline]
    pub fn waited(&self, class: Option<Class>, before: Before, cycles: u64) {
        self.waiting.record(class.unwrap_or(self.default_class), before, cycles);
    }

    /// Adds to a counter of this class, unless it is the default.
    #[inline]
    pub fn of_class(&self, class: Class, counter: impl FnOnce(&ClassCounters) -> &Counter, count: u64) {
        if class != self.default_class
            && let Some(counters) = self.classes.get(class.index())
        {
            counter(counters).add(count);
        }
    }

    /// The same for frames of several classes.
    #[inline]
    pub fn of_classes(&self, frames: &ClassTally, counter: impl Fn(&ClassCounters) -> &Counter) {
        for (class, count) in (0..).map(Class).zip(frames.0).filter(|(_, count)| *count > 0) {
            self.of_class(class, &counter, count);
        }
    }

    /// None of these is of another class than the default.
    #[inline]
    pub fn are_default(&self, classes: impl Iterator<Item = Class>) -> bool {
        classes.fold(0, |differences, class| differences | (class.0 ^ self.default_class.0)) == 0
    }

    /// What was counted for a class. Of the default it is what no other class has; frames that were dropped before
    /// anybody knew their class are its own.
    pub fn class(&self, class: Class) -> ClassStats {
        let one = |class: Class| self.classes.get(class.index()).map(ClassCounters::read).unwrap_or_default();
        if class != self.default_class {
            return one(class);
        }
        let all = ClassStats {
            uplink_tx: self.uplink_tx.frames(),
            tenant_tx: self.tenant_tx.frames.get(),
            dropped: self.dropped.total(),
            replicated: self.replicated.get(),
            uplink_rx: self.uplink_rx.frames(),
            tenant_rx: self.tenant_rx.frames.get(),
        };
        (0..Class::LIMIT as u8).map(Class).map(one).fold(all, ClassStats::without)
    }

    /// The counters of a step.
    #[inline]
    pub fn stage(&self, stage: Stage) -> Option<&StageCounters> {
        self.stages.get(stage as usize)
    }

    /// The counters of a network, if there is one with this id.
    #[inline]
    pub fn network(&self, id: NetworkId) -> Option<&NetworkCounters> {
        self.networks.get(id.index())
    }

    /// The counters of an endpoint, if there is one with this id.
    #[inline]
    pub fn endpoint(&self, id: EndpointId) -> Option<&EndpointCounters> {
        self.endpoints.get(id.index())
    }

    /// A remote sent to a network that takes any.
    pub fn hear(&self, id: RemoteId, now_s: u32) {
        if let Some(heard) = self.heard.get(id.index()) {
            heard.set(u64::from(now_s));
        }
    }

    /// When it last did, in seconds.
    pub fn heard_s(&self, id: RemoteId) -> u32 {
        self.heard.get(id.index()).map_or(0, |heard| heard.get() as u32)
    }

    /// The counter of a remote, if there is one with this id.
    #[inline]
    pub fn remote(&self, id: RemoteId) -> Option<&Counter> {
        self.remotes.get(id.index())
    }
}

/// Frames and bytes, read at one moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct TrafficStats {
    /// Frames.
    pub frames: u64,
    /// Bytes.
    pub bytes: u64,
}

impl std::ops::SubAssign for TrafficStats {
    fn sub_assign(&mut self, other: TrafficStats) {
        self.frames = self.frames.saturating_sub(other.frames);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }
}

impl std::ops::AddAssign for TrafficStats {
    fn add_assign(&mut self, other: TrafficStats) {
        self.frames += other.frames;
        self.bytes += other.bytes;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_counter_and_a_name_of_its_own() {
        let drops = Drops::default();
        let mut names = std::collections::HashSet::new();
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
            assert!(names.insert(reason.name()), "{} twice", reason.name());
            drops.one(*reason);
            assert_eq!(drops.get(*reason), 1);
        }
        assert_eq!(drops.total(), DropReason::COUNT as u64);
    }
}
