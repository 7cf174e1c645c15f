//! Way out, first step: packets are taken from the tenants' rings, each copied once into a frame of its own with
//! room for the outer headers, and checked like everything that a stranger wrote.
//!
//! Tenants take turns: each call starts with the one after the last that was served, and none gives more than
//! [`PER_TENANT`] packets to a burst, however many queues it has. When frames or room run out, packets stay in the tenant's ring; when large
//! buffers do, a packet that needs one, and what follows it in its ring.

use peregrine_memif::{BadDescriptor, Packet, RxRing};

use super::{Cx, answer};
use crate::classes::Known;
use crate::counters::{DropReason, EndpointCounters, WorkerCounters};
use crate::frame::{Burst, Frame, FramePool, Source};
use crate::plan::InnerVlan;
use crate::port::{Port, PortPacket};
use crate::tables::{Endpoint, Network, Tables};
use crate::tenants::{Fault, Taken, Tenant, flush_port};
use crate::types::EndpointId;
use crate::wire::eth::EthHeader;
use crate::wire::flow::{Headers, flow_hash};

/// Packets that one tenant may put into a burst, or that of it are looked at and refused.
pub const PER_TENANT: usize = 32;

/// Packets ahead whose bytes are asked for while one is copied: they lie in the tenant's core's cache.
const PREFETCH: u16 = 4;

/// Fills `output` from the tenants that this worker serves.
pub fn run(output: &mut Burst, cx: &mut Cx<'_>) {
    let Cx { tables, counters, pool, tenants, .. } = cx;
    let mut taker = Taker { tables, counters, pool, output };
    for _ in 0..tenants.begin_turns() {
        let quota = taker.output.room().min(taker.pool.available()).min(PER_TENANT);
        if quota == 0 {
            return;
        }
        let Some((id, tenant)) = tenants.next_turn() else { continue };
        let result = taker.take(id, tenant, quota);
        let was_cut_short = quota < PER_TENANT && result.is_ok_and(|taken| taken.packets == quota);
        tenants.turn_over(id, was_cut_short, result);
    }
}

/// The same from the first queues of tenants that have several, a few of them each time: what `is_urgent` goes to the first burst, up
/// to the first packet of each that is not, which goes to the second. Both are empty.
pub fn run_first(
    (urgent, others): (&mut Burst, &mut Burst),
    is_urgent: impl Fn(&Frame) -> bool,
    cx: &mut Cx<'_>,
) {
    let Cx { tables, counters, pool, tenants, .. } = cx;
    let mut taker = Taker { tables, counters, pool, output: urgent };
    for _ in 0..tenants.begin_first_turns() {
        let quota = taker.output.room().min(taker.pool.available()).min(PER_TENANT);
        if quota == 0 {
            return;
        }
        let Some((id, tenant)) = tenants.next_first_turn() else { continue };
        let is_other = |burst: &Burst| burst.last().is_some_and(|last| !is_urgent(last));
        let mut admitted = taker.output.len();
        let mut is_mixed = false;
        let result = taker.take_first(id, tenant, quota, |burst| {
            admitted += 1;
            is_mixed = burst.len() < admitted || is_other(burst); // refused, or not urgent
            is_mixed
        });
        if is_other(taker.output)
            && let Some(frame) = taker.output.pop()
        {
            let _room = others.push(frame); // there are fewer looks than places
        }
        tenants.first_turn_over(id, is_mixed, result);
    }
}

/// A packet that a tenant has sent, where it lies in memory that is not ours to keep.
pub(super) trait Inner: Copy {
    /// Its bytes.
    fn len(&self) -> usize;
    /// Copies it to the front of `to`. `None`, and nothing copied, if that is shorter.
    fn copy_to(&self, to: &mut [u8]) -> Option<usize>;
    /// Copies its beginning, as much as `to` holds. `None`, and nothing copied, if it is shorter, or does not lie in one piece so far.
    fn copy_front_to(&self, to: &mut [u8]) -> Option<usize>;
}

impl Inner for Packet<'_> {
    #[inline(always)]
    fn len(&self) -> usize {
        Packet::len(self)
    }

    #[inline(always)]
    fn copy_to(&self, to: &mut [u8]) -> Option<usize> {
        Packet::copy_to(self, to)
    }

    #[inline(always)]
    fn copy_front_to(&self, to: &mut [u8]) -> Option<usize> {
        Packet::copy_front_to(self, to)
    }
}

impl Inner for PortPacket<'_> {
    #[inline]
    fn len(&self) -> usize {
        PortPacket::len(self)
    }

    #[inline]
    fn copy_to(&self, to: &mut [u8]) -> Option<usize> {
        PortPacket::copy_to(self, to)
    }

    fn copy_front_to(&self, to: &mut [u8]) -> Option<usize> {
        PortPacket::copy_front_to(self, to)
    }
}

/// What packets are taken with.
struct Taker<'a> {
    tables: &'a Tables,
    counters: &'a WorkerCounters,
    pool: &'a mut FramePool,
    output: &'a mut Burst,
}

impl Taker<'_> {
    /// Up to `quota` packets of one tenant, from all its queues.
    #[inline]
    fn take(&mut self, id: EndpointId, tenant: &mut Tenant, quota: usize) -> Result<Taken, Fault> {
        let (Some(endpoint), Some(counters)) = (self.tables.endpoint(id), self.counters.endpoint(id)) else {
            return Ok(Taken::default());
        };
        if let Some(port) = tenant.port() {
            return self.take_port((id, endpoint, counters), port, quota);
        }
        let mut taken = Taken::default();
        for queue in tenant.queues() {
            self.take_queue((id, endpoint, counters), queue, quota, &mut taken, |_| false)?;
            if taken.packets >= quota {
                break;
            }
        }
        Ok(taken)
    }

    /// Up to `quota` packets of a container. What the kernel has left of what was for it is offered again: nobody else looks.
    #[inline(never)]
    fn take_port(
        &mut self,
        from: (EndpointId, &Endpoint, &EndpointCounters),
        port: &mut dyn Port,
        quota: usize,
    ) -> Result<Taken, Fault> {
        if port.is_due()
            && let Some(fault) = flush_port(port, self.counters)
        {
            return Err(fault);
        }
        let packets = port.take(quota, &mut |packet| self.copy_in(from, packet));
        Ok(Taken { packets, ..Taken::default() })
    }

    /// Up to `quota` packets from a tenant's first queue, and none after one with which it `is_over`.
    #[inline]
    fn take_first(
        &mut self,
        id: EndpointId,
        tenant: &mut Tenant,
        quota: usize,
        is_over: impl FnMut(&Burst) -> bool,
    ) -> Result<Taken, Fault> {
        let mut taken = Taken::default();
        if let (Some(endpoint), Some(counters)) = (self.tables.endpoint(id), self.counters.endpoint(id))
            && let Some(queue) = tenant.first_queue()
        {
            self.take_queue((id, endpoint, counters), queue, quota, &mut taken, is_over)?;
        }
        Ok(taken)
    }

    #[inline]
    fn take_queue(
        &mut self,
        from: (EndpointId, &Endpoint, &EndpointCounters),
        queue: &mut RxRing,
        quota: usize,
        taken: &mut Taken,
        mut is_over: impl FnMut(&Burst) -> bool,
    ) -> Result<(), Fault> {
        let pending = usize::from(queue.pending()?);
        if pending == 0 {
            return Ok(());
        }
        let mut count = pending.min(quota - taken.packets);
        if self.pool.large_capacity() > 0 {
            let affordable = self.affordable(from.1, queue, count);
            taken.is_short |= affordable < count;
            count = affordable;
        }
        for _ in 0..count {
            queue.prefetch(PREFETCH);
            let Some(packet) = queue.next_packet() else { break };
            taken.packets += 1;
            taken.bad += usize::from(!self.admit(from, packet));
            if is_over(self.output) {
                break;
            }
        }
        queue.release();
        Ok(())
    }

    /// Copies one packet and hands it on or drops it. False if its descriptor broke the protocol.
    #[inline(always)] // into both ways to take a queue: otherwise it costs the usual one a tenth
    fn admit(
        &mut self,
        from: (EndpointId, &Endpoint, &EndpointCounters),
        packet: Result<Packet<'_>, BadDescriptor>,
    ) -> bool {
        let packet = match packet {
            Ok(packet) => packet,
            // Legal, only not taken here: a packet like any other, and dropped.
            Err(BadDescriptor::Chained) => return self.refuse(from.2, DropReason::TenantChained),
            Err(BadDescriptor::TooLong) => return self.refuse(from.2, DropReason::InnerTooLong),
            Err(_) => {
                from.2.bad_descriptors.add(1);
                return false;
            }
        };
        self.copy_in(from, packet);
        true
    }

    /// Copies one packet and hands it on or drops it.
    #[inline(always)] // as `admit`
    fn copy_in(
        &mut self,
        (id, endpoint, counters): (EndpointId, &Endpoint, &EndpointCounters),
        packet: impl Inner,
    ) {
        counters.from_tenant.one(packet.len());
        self.counters.tenant_rx.one(packet.len());
        let Some(mut frame) = self.pool.take() else { return }; // the quota has looked: there is one
        frame.meta.network = endpoint.network;
        frame.meta.source = Source::Endpoint(id);
        let result = copy(&mut frame, packet, (id, endpoint), self.tables);
        let refused = match result {
            Ok(()) => {
                self.counters.of_class(frame.class(), |class| &class.tenant_rx, 1);
                self.output.push(frame).map_err(|frame| (frame, DropReason::BurstFull))
            }
            Err(reason) => Err((frame, reason)),
        };
        if let Err((frame, reason)) = refused {
            self.give_up(frame, reason, (id, endpoint), packet);
        }
    }
}

impl Taker<'_> {
    /// Of the next so many packets, how many there are buffers for; chunks there are enough.
    #[cold]
    #[inline(never)]
    fn affordable(&self, endpoint: &Endpoint, queue: &RxRing, count: usize) -> usize {
        let free = self.pool.large_available();
        if free >= count {
            return count;
        }
        let overhead = self.tables.network(endpoint.network).map_or(0, |network| network.overhead);
        queue.packets_within(count, self.pool.room().saturating_sub(overhead), free)
    }

    /// Drops a packet, unless it was only too long for the chunk and there are large buffers. Who sent one that is too long for the network is
    /// told, with the frame that was meant for it.
    #[cold]
    #[inline(never)]
    fn give_up(
        &mut self,
        frame: Frame,
        reason: DropReason,
        (id, endpoint): (EndpointId, &Endpoint),
        packet: impl Inner,
    ) {
        let is_long = |network: &Network| {
            packet.len() <= network.frame_max && network.overhead + packet.len() > self.pool.room()
        };
        let is_long = reason == DropReason::InnerTooLong
            && self.pool.large_capacity() > 0
            && self.tables.network(endpoint.network).is_some_and(is_long);
        let refused = match is_long {
            true => self.admit_long(frame, packet, (id, endpoint)),
            false => Err((frame, reason)),
        };
        let Err((mut frame, reason)) = refused else { return };
        super::count_drop(self.counters, &frame, Some(id), reason);
        let answers = reason == DropReason::InnerTooLong
            && answer::too_long(&mut frame, packet, id, self.tables, self.counters);
        let done = if answers { self.output.push(frame) } else { Err(frame) }; // there is room: it was the packet's
        if let Err(frame) = done {
            self.pool.put(frame);
        }
    }

    /// Copies a packet into a large buffer, instead of the chunk that it does not fit, and hands it on. There is one, unless the tenant said
    /// something else when that was looked at.
    fn admit_long(
        &mut self,
        chunk: Frame,
        packet: impl Inner,
        from: (EndpointId, &Endpoint),
    ) -> Result<(), (Frame, DropReason)> {
        let Some(mut frame) = self.pool.take_large() else { return Err((chunk, DropReason::NoFreeFrame)) };
        frame.meta = chunk.meta;
        self.pool.put(chunk);
        if let Err(reason) = copy(&mut frame, packet, from, self.tables) {
            return Err((frame, reason));
        }
        self.counters.of_class(frame.class(), |class| &class.tenant_rx, 1);
        self.output.push(frame).map_err(|frame| (frame, DropReason::BurstFull))
    }

    /// Counts a packet that is not even copied. True: it is no offence.
    #[cold]
    fn refuse(&self, counters: &EndpointCounters, reason: DropReason) -> bool {
        self.counters.tenant_rx.one(0);
        counters.from_tenant.one(0);
        counters.dropped.add(1);
        self.counters.dropped.one(reason);
        true
    }
}

#[inline(always)] // as `admit`
fn copy(
    frame: &mut Frame,
    packet: impl Inner,
    (id, endpoint): (EndpointId, &Endpoint),
    tables: &Tables,
) -> Result<(), DropReason> {
    let network = tables.network(endpoint.network).ok_or(DropReason::VniUnknown)?;
    if packet.len() > network.untagged_max {
        return copy_longer(frame, packet, (id, endpoint), network, tables);
    }
    let ethertype = copy_checked(frame, packet, endpoint, network)?;
    if EthHeader::is_tag(ethertype) {
        return tagged(frame, network.inner_vlan, id, tables);
    }
    find_flow(frame, id, tables);
    Ok(())
}

/// Only a frame with a VLAN tag may be so long.
#[cold]
#[inline(never)]
fn copy_longer(
    frame: &mut Frame,
    packet: impl Inner,
    (id, endpoint): (EndpointId, &Endpoint),
    network: &Network,
    tables: &Tables,
) -> Result<(), DropReason> {
    if packet.len() > network.frame_max {
        return Err(DropReason::InnerTooLong);
    }
    let ethertype = copy_checked(frame, packet, endpoint, network)?;
    if !EthHeader::is_tag(ethertype) {
        return Err(DropReason::InnerTooLong);
    }
    tagged(frame, network.inner_vlan, id, tables)
}

/// Copies the packet and looks at who it says it is from; returns its EtherType.
#[inline(always)] // as `admit`
fn copy_checked(
    frame: &mut Frame,
    packet: impl Inner,
    endpoint: &Endpoint,
    network: &Network,
) -> Result<u16, DropReason> {
    let room = frame.reset(network.overhead, packet.len()).ok_or(DropReason::InnerTooLong)?;
    packet.copy_to(room).ok_or(DropReason::InnerTruncated)?;
    // From here on only our copy is looked at.
    let (eth, _) = EthHeader::split(frame.bytes()).ok_or(DropReason::InnerTruncated)?;
    let source = eth.source();
    if source.is_group() || source.is_zero() {
        return Err(DropReason::InnerSourceInvalid);
    }
    if endpoint.anti_spoofing && !endpoint.has(source) {
        return Err(DropReason::SourceSpoofed);
    }
    Ok(eth.ethertype())
}

/// Of a tenant's frame, its flow and, if there are several, its class.
#[inline(always)] // as `admit`
pub(super) fn find_flow(frame: &mut Frame, id: EndpointId, tables: &Tables) {
    if tables.classes.is_trivial() {
        frame.meta.flow_hash = flow_hash(frame.bytes());
    } else {
        sort(frame, id, tables);
    }
}

/// The frame has a VLAN tag.
#[cold]
#[inline(never)]
fn tagged(
    frame: &mut Frame,
    inner_vlan: InnerVlan,
    id: EndpointId,
    tables: &Tables,
) -> Result<(), DropReason> {
    match inner_vlan {
        InnerVlan::Drop => return Err(DropReason::InnerVlanTagged),
        InnerVlan::Strip => super::untag(frame, 0)?,
        InnerVlan::Carry => {}
    }
    sort(frame, id, tables); // without rules, too: it finds the hash
    Ok(())
}

/// Finds the class, and the flow's hash on the way.
#[inline(never)]
fn sort(frame: &mut Frame, id: EndpointId, tables: &Tables) {
    let Some(headers) = Headers::read(frame.bytes()) else { return };
    let known = Known { network: frame.meta.network, sender: Some(id), outer_dscp: None };
    let (class, flow_hash) = (tables.classes.classify(&known, &headers), headers.flow_hash);
    frame.set_class(class);
    frame.meta.flow_hash = flow_hash;
}
