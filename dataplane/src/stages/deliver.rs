//! The step in which frames for tenants of this host are copied into their rings and go home. Frames that also, or
//! only, go to a remote pass through.

use super::Cx;
use crate::counters::{ClassTally, DropReason};
use crate::frame::{Burst, Flooding, Frame, Source, Target};
use crate::types::{EndpointId, WorkerId};

/// Empties `input`; what goes on leaves through the uplink. Tenants see the burst when it is over: one publication
/// and at most one wake-up each.
pub fn run(input: &mut Burst, output: &mut Burst, cx: &mut Cx<'_>) {
    let first = input.iter().next().map(|frame| frame.meta.target);
    match first {
        Some(Target::Endpoint(to)) => give_first(to, input, cx),
        Some(Target::Remote(_)) if output.is_empty() && input.iter().all(is_for_remote) => {
            std::mem::swap(input, output);
        }
        _ => {}
    }
    let mut given = ClassTally::default();
    for frame in input.drain() {
        match frame.meta.target {
            Target::Endpoint(to) => match cx.tenants.give(to, &frame, true, cx.counters) {
                Ok(()) => {
                    given.one(frame.class());
                    cx.pool.put(frame);
                }
                Err(reason) => cx.drop(frame, reason),
            },
            Target::Flood(state) => flood(frame, state, output, cx),
            Target::Remote(_) => cx.pass(frame, output),
            Target::Unknown | Target::Uplink(_) => cx.drop(frame, DropReason::FloodNobody),
        }
    }
    cx.counters.of_classes(&given, |class| &class.tenant_tx);
    cx.tenants.flush(cx.counters);
}

#[inline]
fn is_for_remote(frame: &Frame) -> bool {
    matches!(frame.meta.target, Target::Remote(_))
}

/// Gives a tenant the frames at the front that are all for it: most often the whole burst.
#[inline]
fn give_first(to: EndpointId, input: &mut Burst, cx: &mut Cx<'_>) {
    let its = input.iter().take_while(|frame| frame.meta.target == Target::Endpoint(to));
    let (given, refused) = cx.tenants.give_all(to, its, cx.counters);
    if !cx.counters.are_default(input.iter().take(given).map(Frame::class)) {
        let given = ClassTally::of(input.iter().take(given).map(Frame::class));
        cx.counters.of_classes(&given, |class| &class.tenant_tx);
    }
    for frame in input.drain_front(given) {
        cx.pool.put(frame);
    }
    if let Some(reason) = refused {
        input.drain_front(1).for_each(|frame| cx.drop(frame, reason));
    }
}

/// One copy for each attached tenant of the network but the one it came from: here, and then on the other workers that serve some.
/// If a tenant sent it, it goes to the remotes before it visits others.
fn flood(mut frame: Frame, state: Flooding, output: &mut Burst, cx: &mut Cx<'_>) {
    let (tables, id) = (cx.tables, frame.meta.network);
    let is_from_tenant = matches!(frame.meta.source, Source::Endpoint(_));
    if is_from_tenant && state.first == WorkerId::NONE && !cx.begins_here(&frame) {
        return cx.pass(frame, output); // it has yet to come there, on the way of its flow
    }
    let Some(network) = tables.network(id) else { return cx.drop(frame, DropReason::VniUnknown) };
    let goes_on = is_from_tenant && frame.home() == cx.me() && !network.remotes.is_empty();
    if !cx.may_flood() {
        // What was given elsewhere is a copy then.
        cx.count_copies(&frame, u64::from(state.given));
        return cx.drop(frame, DropReason::FloodLimited);
    }
    let copies = give_to_all(&frame, goes_on || state.given, cx);
    cx.charge_flood(&frame, copies.max(1));
    let first = if state.first == WorkerId::NONE { cx.me() } else { state.first };
    let given = state.given || (copies > 0 && !goes_on);
    frame.meta.target = Target::Flood(Flooding { first, given });
    if goes_on {
        cx.charge_flood(&frame, network.remotes.len());
        cx.pass(frame, output);
    } else if let Some(to) = cx.next_visit(id, first) {
        cx.visit(frame, to, given);
    } else if given {
        cx.pool.put(frame);
    } else {
        cx.drop(frame, DropReason::FloodNobody);
    }
}

/// Returns how many copies were made. The first one is the frame itself, unless that is needed further.
fn give_to_all(frame: &Frame, is_needed: bool, cx: &mut Cx<'_>) -> usize {
    let mut copies = 0;
    for place in 0..cx.tenants.attached(frame.meta.network).len() {
        let to = match cx.tenants.attached(frame.meta.network).get(place) {
            Some(&to) if frame.meta.source != Source::Endpoint(to) => to,
            _ => continue,
        };
        copies += 1;
        cx.count_copies(frame, u64::from(is_needed || copies > 1));
        match cx.tenants.give(to, frame, false, cx.counters) {
            Ok(()) => cx.counters.of_class(frame.class(), |class| &class.tenant_tx, 1),
            Err(reason) => super::count_drop(cx.counters, frame, Some(to), reason),
        }
    }
    copies
}
