//! The step where both ways meet: the source address is learned (from the underlay) and the destination found.
//!
//! Split horizon: what came from a remote goes to tenants only, never to another remote, because a remote floods to
//! every VTEP of the network itself (head-end replication).

use super::Cx;
use crate::counters::{DropReason, NetworkCounters};
use crate::fdb::{Destination, Learned};
use crate::frame::{Burst, Frame, Source, Target};
use crate::tables::Network;
use crate::types::{MacAddr, NetworkId, RemoteId};
use crate::wire::eth::EthHeader;

/// Empties `input`; what goes on knows its target.
pub fn run(input: &mut Burst, output: &mut Burst, cx: &mut Cx<'_>) {
    for mut frame in input.drain() {
        match lookup(&frame, cx) {
            Ok(target) => {
                frame.meta.target = target;
                cx.pass(frame, output);
            }
            Err(reason) => cx.drop(frame, reason),
        }
    }
}

#[inline]
fn lookup(frame: &Frame, cx: &Cx<'_>) -> Result<Target, DropReason> {
    let id = frame.meta.network;
    let network = cx.tables.network(id).ok_or(DropReason::VniUnknown)?;
    let (eth, _) = EthHeader::split(frame.bytes()).ok_or(DropReason::InnerTruncated)?;
    if let Source::Remote(remote) = frame.meta.source {
        learn(id, network, eth.source(), remote, cx)?;
    }
    let destination = eth.destination();
    let found = if destination.is_group() { None } else { find(id, network, destination, cx) };
    let Some(found) = found else { return Ok(Target::Flood) };
    match (frame.meta.source, found) {
        (Source::Endpoint(from), Destination::Local(to)) if from == to => Err(DropReason::Hairpin),
        (_, Destination::Local(to)) => Ok(Target::Endpoint(to)),
        (Source::Endpoint(_), Destination::Remote(to)) => Ok(Target::Remote(to)),
        (_, Destination::Remote(_)) => Err(DropReason::SplitHorizon),
    }
}

/// The FDB is shared and changes under us: what it says is used only if it belongs to this network, so that not
/// even a torn entry could carry a frame into another one.
#[inline]
fn find(id: NetworkId, network: &Network, mac: MacAddr, cx: &Cx<'_>) -> Option<Destination> {
    if mac.is_zero() {
        return None;
    }
    cx.fdb.lookup(id, mac).filter(|found| match *found {
        Destination::Local(endpoint) => cx.tables.endpoint(endpoint).is_some_and(|e| e.network == id),
        Destination::Remote(remote) => network.has_remote(remote),
    })
}

/// Notes where the sender is. An address that is fixed elsewhere, a tenant of ours for one, cannot be taken over.
#[inline]
fn learn(
    id: NetworkId,
    network: &Network,
    mac: MacAddr,
    remote: RemoteId,
    cx: &Cx<'_>,
) -> Result<(), DropReason> {
    if !network.learning {
        return match cx.fdb.lookup_fixed_at(cx.fdb.place(id, mac.to_u64())) {
            Some(place) if place != Destination::Remote(remote) => Err(DropReason::SourceSpoofed),
            _ => Ok(()),
        };
    }
    let learned = cx.fdb.learn(id, mac, remote, cx.now_s, network.fdb_limit);
    if learned != Learned::Known
        && let Some(counters) = cx.counters.network(id)
    {
        count(learned, counters);
    }
    if learned == Learned::Fixed { Err(DropReason::SourceSpoofed) } else { Ok(()) }
}

#[cold]
fn count(learned: Learned, counters: &NetworkCounters) {
    match learned {
        Learned::New => counters.learned.add(1),
        Learned::Moved => counters.moved.add(1),
        Learned::Refused => counters.learn_refused.add(1),
        Learned::Known | Learned::Fixed | Learned::Busy => {}
    }
}
