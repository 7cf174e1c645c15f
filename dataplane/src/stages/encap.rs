//! Way out, last step: the outer headers are put in front of the inner frame, from the remote's template, and the frame is told
//! which uplink it leaves by.

use super::Cx;
use crate::counters::DropReason;
use crate::frame::{Burst, Flooding, Frame, Target};
use crate::tables::Network;
use crate::types::RemoteId;
use crate::wire::outer::{self, OVERHEAD_IPV4};

/// Empties `input`; what goes on is ready for the wire.
pub fn run(input: &mut Burst, output: &mut Burst, cx: &mut Cx<'_>) {
    // Most often each has one way to go, and none needs to be moved from burst to burst.
    if output.is_empty() && input.iter().all(|frame| matches!(frame.meta.target, Target::Remote(_))) {
        cx.each(input, |frame, cx| match frame.meta.target {
            Target::Remote(to) => encap(frame, to, cx),
            _ => Err(DropReason::FloodNobody),
        });
        std::mem::swap(input, output);
        return;
    }
    for frame in input.drain() {
        match frame.meta.target {
            Target::Remote(to) => send(frame, to, output, cx),
            Target::Flood(state) if frame.home() != cx.me() => pass_home(frame, state, output, cx),
            Target::Flood(state) => replicate(frame, state, output, cx),
            Target::Endpoint(_) | Target::Unknown | Target::Uplink(_) => {
                cx.drop(frame, DropReason::FloodNobody)
            }
        }
    }
}

/// The flow of a flooded frame comes by here, but copies are made where it entered: it goes on to there, in its place among the others.
fn pass_home(mut frame: Frame, state: Flooding, output: &mut Burst, cx: &mut Cx<'_>) {
    frame.meta.target = Target::Flood(Flooding { first: frame.home(), ..state });
    pass(frame, output, cx);
}

/// Head-end replication: one copy for each remote of the network; the last one is the frame itself, unless it goes on to tenants
/// elsewhere.
fn replicate(mut frame: Frame, state: Flooding, output: &mut Burst, cx: &mut Cx<'_>) {
    let (tables, id) = (cx.tables, frame.meta.network);
    let remotes = tables.network(id).map_or(&[][..], |network| &network.remotes);
    let Some((&last, others)) = remotes.split_last() else { return cx.drop(frame, DropReason::FloodNobody) };
    for &to in others {
        cx.count_copies(&frame, 1);
        send_copy(&frame, to, output, cx);
    }
    let Some(next) = cx.next_visit(id, state.first) else { return send(frame, last, output, cx) };
    // This one counts as the frame itself, and what tenants get as copies.
    send_copy(&frame, last, output, cx);
    frame.meta.target = Target::Flood(Flooding { given: true, ..state });
    cx.visit(frame, next, true);
}

fn send_copy(frame: &Frame, to: RemoteId, output: &mut Burst, cx: &mut Cx<'_>) {
    match super::copy(frame, cx.pool) {
        Ok(copy) => send(copy, to, output, cx),
        Err(reason) => super::count_drop(cx.counters, frame, None, reason),
    }
}

fn send(mut frame: Frame, to: RemoteId, output: &mut Burst, cx: &mut Cx<'_>) {
    match encap(&mut frame, to, cx) {
        Ok(()) => pass(frame, output, cx),
        Err(reason) => cx.drop(frame, reason),
    }
}

/// Copies can be more than a burst holds, and every input still needs its place.
#[inline]
fn pass(frame: Frame, output: &mut Burst, cx: &mut Cx<'_>) {
    if output.room() == 0 {
        cx.leave(output, &mut Burst::new());
    }
    cx.pass(frame, output);
}

#[inline]
fn encap(frame: &mut Frame, to: RemoteId, cx: &Cx<'_>) -> Result<(), DropReason> {
    let network: &Network = cx.tables.network(frame.meta.network).ok_or(DropReason::VniUnknown)?;
    // Counted before anything can fail: it tells control that somebody wants this next hop.
    if let Some(counter) = cx.counters.remote(to) {
        counter.add(1);
    }
    let adjacency = cx.tables.remote(to).and_then(|remote| remote.adjacency.as_ref());
    let adjacency = adjacency.ok_or(DropReason::NextHopUnresolved)?;
    let inner_len = u16::try_from(frame.len()).map_err(|_| DropReason::UplinkTooLong)?;
    if frame.len() + OVERHEAD_IPV4 > cx.tables.uplink_frame_max {
        return Err(DropReason::UplinkTooLong);
    }
    let source_port = adjacency.source_ports.of(frame.meta.flow_hash);
    let dscp = cx.tables.dscps.get(frame.class().index()).copied().unwrap_or_default();
    let head = frame.push(OVERHEAD_IPV4).and_then(|head| head.first_chunk_mut());
    let head = head.ok_or(DropReason::UplinkTooLong)?;
    adjacency.outer.write(head, inner_len, network.vni, source_port);
    if dscp != 0 {
        outer::set_dscp(head, dscp);
    }
    // Whatever the tables say by the time it leaves: these headers belong to this wire.
    frame.meta.target = adjacency.target;
    if let Some(counter) = cx.counters.network(frame.meta.network) {
        counter.to_underlay.one(usize::from(inner_len));
    }
    Ok(())
}
