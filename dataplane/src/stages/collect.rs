//! Way out, first step: packets are taken from the tenants' rings, each copied once into a frame of its own with
//! room for the outer headers, and checked like everything that a stranger wrote.
//!
//! Tenants take turns: each call starts with the one after the last that was served, and none gives more than
//! [`PER_TENANT`] packets to a burst. When frames or room run out, packets stay in the tenant's ring.

use peregrine_memif::{BadDescriptor, Packet, RxRing};

use super::Cx;
use crate::counters::{DropReason, EndpointCounters};
use crate::frame::{Burst, Frame, Source};
use crate::tables::Endpoint;
use crate::tenants::Fault;
use crate::types::EndpointId;
use crate::wire::eth::EthHeader;
use crate::wire::flow::flow_hash;

/// Packets that one tenant may put into a burst.
pub const PER_TENANT: usize = 32;

/// Packets ahead whose bytes are asked for while one is copied: they lie in the tenant's core's cache.
const PREFETCH: u16 = 4;

/// Fills `output` from the tenants that this worker serves.
pub fn run(output: &mut Burst, cx: &mut Cx<'_>) {
    for _ in 0..cx.tenants.served() {
        let quota = output.room().min(cx.pool.available()).min(PER_TENANT);
        if quota == 0 {
            return;
        }
        let Some((id, mut rx)) = cx.tenants.next_turn() else { return };
        let result = take(id, &mut rx[0], quota, output, cx);
        cx.tenants.turn_over(id, rx, result);
    }
}

/// Up to `quota` packets of one tenant.
#[inline]
fn take(
    id: EndpointId,
    rx: &mut RxRing,
    quota: usize,
    output: &mut Burst,
    cx: &mut Cx<'_>,
) -> Result<usize, Fault> {
    let pending = usize::from(rx.pending()?);
    if pending == 0 {
        return Ok(0);
    }
    let (Some(endpoint), Some(counters)) = (cx.tables.endpoint(id), cx.counters.endpoint(id)) else {
        return Ok(0);
    };
    let mut bad = 0;
    for _ in 0..pending.min(quota) {
        rx.prefetch(PREFETCH);
        let Some(packet) = rx.next_packet() else { break };
        bad += usize::from(!admit(id, endpoint, counters, packet, output, cx));
    }
    rx.release();
    Ok(bad)
}

/// Copies one packet and hands it on or drops it. False if its descriptor broke the protocol.
#[inline]
fn admit(
    id: EndpointId,
    endpoint: &Endpoint,
    counters: &EndpointCounters,
    packet: Result<Packet<'_>, BadDescriptor>,
    output: &mut Burst,
    cx: &mut Cx<'_>,
) -> bool {
    let packet = match packet {
        Ok(packet) => packet,
        // Legal, only not taken here: a packet like any other, and dropped.
        Err(BadDescriptor::Chained) => {
            cx.counters.tenant_rx.one(0);
            counters.from_tenant.one(0);
            counters.dropped.add(1);
            cx.counters.dropped.one(DropReason::TenantChained);
            return true;
        }
        Err(_) => {
            counters.bad_descriptors.add(1);
            return false;
        }
    };
    counters.from_tenant.one(packet.len());
    cx.counters.tenant_rx.one(packet.len());
    let Some(mut frame) = cx.pool.take() else { return true }; // the quota has looked: there is one
    frame.meta.network = endpoint.network;
    frame.meta.source = Source::Endpoint(id);
    match copy(&mut frame, packet, endpoint, cx) {
        Ok(()) => cx.pass(frame, output),
        Err(reason) => cx.drop(frame, reason),
    }
    true
}

#[inline]
fn copy(frame: &mut Frame, packet: Packet<'_>, endpoint: &Endpoint, cx: &Cx<'_>) -> Result<(), DropReason> {
    let network = cx.tables.network(endpoint.network).ok_or(DropReason::VniUnknown)?;
    if packet.len() > network.frame_max {
        return Err(DropReason::InnerTooLong);
    }
    let room = frame.reset(network.overhead, packet.len()).ok_or(DropReason::InnerTooLong)?;
    packet.copy_to(room).ok_or(DropReason::InnerTruncated)?;
    // From here on only our copy is looked at.
    let (eth, _) = EthHeader::split(frame.bytes()).ok_or(DropReason::InnerTruncated)?;
    let source = eth.source();
    if source.is_group() || source.is_zero() {
        return Err(DropReason::InnerSourceInvalid);
    }
    if endpoint.anti_spoofing && source != endpoint.mac {
        return Err(DropReason::SourceSpoofed);
    }
    frame.meta.flow_hash = flow_hash(frame.bytes());
    Ok(())
}
