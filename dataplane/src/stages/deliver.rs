//! The step in which frames for tenants of this host are copied into their rings and go home. Frames that also, or
//! only, go to a remote pass through.

use super::Cx;
use crate::counters::DropReason;
use crate::frame::{Burst, Frame, Source, Target};

/// Empties `input`; what goes on leaves through the uplink. Tenants see the burst when it is over: one publication
/// and at most one wake-up each.
pub fn run(input: &mut Burst, output: &mut Burst, cx: &mut Cx<'_>) {
    for frame in input.drain() {
        match frame.meta.target {
            Target::Endpoint(to) => match cx.tenants.give(to, frame.bytes(), true, cx.counters) {
                Ok(()) => cx.pool.put(frame),
                Err(reason) => cx.drop(frame, reason),
            },
            Target::Flood => flood(frame, output, cx),
            Target::Remote(_) => cx.pass(frame, output),
            Target::Unknown => cx.drop(frame, DropReason::FloodNobody),
        }
    }
    cx.tenants.flush(cx.counters);
}

/// One copy for each attached tenant of the network but the one it came from; then on to the remotes if a tenant sent
/// it.
fn flood(frame: Frame, output: &mut Burst, cx: &mut Cx<'_>) {
    let tables = cx.tables;
    let Some(network) = tables.network(frame.meta.network) else {
        return cx.drop(frame, DropReason::VniUnknown);
    };
    if !cx.may_flood() {
        return cx.drop(frame, DropReason::FloodLimited);
    }
    let source = frame.meta.source;
    let goes_on = matches!(source, Source::Endpoint(_)) && !network.remotes.is_empty();
    let mut copies: usize = 0;
    for place in 0..cx.tenants.attached(frame.meta.network).len() {
        let to = match cx.tenants.attached(frame.meta.network).get(place) {
            Some(&to) if source != Source::Endpoint(to) => to,
            _ => continue,
        };
        copies += 1;
        // The first copy is the frame itself, unless that goes on to the remotes.
        cx.counters.replicated.add(u64::from(goes_on || copies > 1));
        if let Err(reason) = cx.tenants.give(to, frame.bytes(), false, cx.counters) {
            super::count_drop(cx.counters, &frame, Some(to), reason);
        }
    }
    cx.charge_flood(copies);
    if goes_on {
        cx.charge_flood(network.remotes.len());
        cx.pass(frame, output);
    } else if copies > 0 {
        cx.pool.put(frame);
    } else {
        cx.drop(frame, DropReason::FloodNobody);
    }
}
