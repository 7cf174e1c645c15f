//! The step where both ways meet: the source address is learned (from the underlay) and the destination found.
//!
//! Split horizon: what came from a remote goes to tenants only, never to another remote, because a remote floods to
//! every VTEP of the network itself (head-end replication).

use super::Cx;
use crate::counters::{DropReason, NetworkCounters};
use crate::fdb::{Destination, Learned, Place};
use crate::frame::{Burst, Flooding, Frame, Source, Target};
use crate::tables::Network;
use crate::types::{MacAddr, NetworkId, RemoteId};
use crate::wire::eth::EthHeader;

/// What stays in the burst knows its target.
pub fn run(burst: &mut Burst, cx: &mut Cx<'_>) {
    if cx.fdb.is_far() {
        burst.iter().for_each(|frame| prefetch(frame, cx));
    }
    cx.each(burst, lookup);
}

/// Asks for what the frame's look-ups will read, so that a burst waits for memory once and not frame by frame.
#[inline]
fn prefetch(frame: &Frame, cx: &Cx<'_>) {
    let Some((eth, _)) = EthHeader::split(frame.bytes()) else { return };
    if let Source::Remote(_) = frame.meta.source {
        cx.fdb.prefetch(cx.fdb.place(frame.meta.network, eth.source_number()));
    }
    cx.fdb.prefetch(cx.fdb.place(frame.meta.network, eth.destination_number()));
}

#[inline]
fn lookup(frame: &mut Frame, cx: &Cx<'_>) -> Result<(), DropReason> {
    let id = frame.meta.network;
    let network = cx.tables.network(id).ok_or(DropReason::VniUnknown)?;
    let (eth, _) = EthHeader::split(frame.bytes()).ok_or(DropReason::InnerTruncated)?;
    if let Source::Remote(remote) = frame.meta.source {
        learn(network, cx.fdb.place(id, eth.source_number()), remote, cx)?;
    }
    let destination = eth.destination_number();
    let known = destination != 0 && !MacAddr::number_is_group(destination);
    let found = if known { find(id, network, cx.fdb.place(id, destination), cx) } else { None };
    frame.meta.target = match (frame.meta.source, found) {
        (_, None) => Target::Flood(Flooding::NEW),
        (Source::Endpoint(from), Some(Destination::Local(to))) if from == to => {
            return Err(DropReason::Hairpin);
        }
        (_, Some(Destination::Local(to))) => Target::Endpoint(to),
        (Source::Endpoint(_), Some(Destination::Remote(to))) => Target::Remote(to),
        (_, Some(Destination::Remote(_))) => return Err(DropReason::SplitHorizon),
    };
    Ok(())
}

/// The FDB is shared and changes under us: what it says is used only if it belongs to this network, so that not
/// even a torn entry could carry a frame into another one.
#[inline]
fn find(id: NetworkId, network: &Network, place: Place, cx: &Cx<'_>) -> Option<Destination> {
    cx.fdb.lookup_at(place).filter(|found| match *found {
        Destination::Local(endpoint) => cx.tables.endpoint(endpoint).is_some_and(|e| e.network == id),
        Destination::Remote(remote) => network.has_remote(remote),
    })
}

/// Notes where the sender is. An address that is fixed elsewhere, a tenant of ours for one, cannot be taken over.
#[inline]
fn learn(network: &Network, place: Place, remote: RemoteId, cx: &Cx<'_>) -> Result<(), DropReason> {
    if !network.learning {
        return match cx.fdb.lookup_fixed_at(place) {
            Some(there) if there != Destination::Remote(remote) => Err(DropReason::SourceSpoofed),
            _ => Ok(()),
        };
    }
    let learned = cx.fdb.learn_at(place, remote, cx.now_s, network.fdb_limit);
    if learned != Learned::Known
        && let Some(counters) = cx.counters.network(place.network())
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
