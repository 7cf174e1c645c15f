//! The step where both ways meet: the source address is learned (from the underlay) and the destination found.
//!
//! Split horizon: what came from a remote goes to tenants only, never to another remote, because a remote floods to
//! every VTEP of the network itself (head-end replication).

use super::{Cx, answer};
use crate::counters::{DropReason, NetworkCounters};
use crate::fdb::{Destination, Learned, Place};
use crate::frame::{Burst, Flooding, Frame, Source, Target};
use crate::tables::{Endpoint, Network};
use crate::types::{EndpointId, MacAddr, NetworkId, RemoteId};
use crate::wire::eth::EthHeader;

/// What stays in the burst knows its target.
pub fn run(burst: &mut Burst, cx: &mut Cx<'_>) {
    if cx.fdb.is_far() {
        burst.iter().for_each(|frame| prefetch(frame, cx));
    }
    if cx.tables.clamps_mss {
        answer::clamp_mss(burst, cx); // here, because both ways meet
    }
    let mut last = Last::default();
    cx.each(burst, |frame, cx| lookup(frame, &mut last, cx));
}

/// What was found for the frame before. Frames of one flow come together, so most often it is true of this one, too; that
/// another thread may change the FDB between two frames of a burst makes no difference to a frame.
#[derive(Default)]
struct Last {
    /// From this remote came this source address, and there it was known to be.
    source: Option<(NetworkId, RemoteId, u64)>,
    /// This destination address is there.
    destination: Option<(NetworkId, u64, Option<Destination>)>,
}

/// Asks for what the frame's look-ups will read, so that a burst waits for memory once and not frame by frame.
#[inline]
fn prefetch(frame: &Frame, cx: &Cx<'_>) {
    let Some((destination, source)) = EthHeader::numbers(frame.bytes()) else { return };
    if let Source::Remote(_) = frame.meta.source {
        cx.fdb.prefetch(cx.fdb.place(frame.meta.network, source));
    }
    cx.fdb.prefetch(cx.fdb.place(frame.meta.network, destination));
}

#[inline]
fn lookup(frame: &mut Frame, last: &mut Last, cx: &Cx<'_>) -> Result<(), DropReason> {
    let id = frame.meta.network;
    let (destination, source) = EthHeader::numbers(frame.bytes()).ok_or(DropReason::InnerTruncated)?;
    if let Source::Remote(remote) = frame.meta.source
        && last.source != Some((id, remote, source))
    {
        if learn(network(id, cx)?, cx.fdb.place(id, source), remote, cx)? == Learned::Known {
            last.source = Some((id, remote, source));
        } else {
            *last = Last::default(); // what is learned now may be where the next frame goes
        }
    }
    let found = match last.destination {
        Some((network, mac, found)) if network == id && mac == destination => found,
        _ => find(id, destination, cx)?,
    };
    last.destination = Some((id, destination, found));
    frame.meta.target = match (frame.meta.source, found) {
        (Source::Ours, _) => return Ok(()),
        (Source::Endpoint(from), None) => return answer::flooded(frame, from, cx),
        (_, None) => Target::Flood(Flooding::NEW),
        (Source::Endpoint(from), Some(Destination::Local(to))) if from == to => {
            back(source, destination, to, cx)?
        }
        (_, Some(Destination::Local(to))) => Target::Endpoint(to),
        (Source::Endpoint(_), Some(Destination::Remote(to))) => Target::Remote(to),
        (_, Some(Destination::Remote(_))) => return Err(DropReason::SplitHorizon),
    };
    Ok(())
}

/// From a tenant to itself. What one of its stations sends to another one goes back where that is wanted, by the way that both have. Everything else
/// would only go round.
#[cold]
#[inline(never)]
fn back(source: u64, destination: u64, to: EndpointId, cx: &Cx<'_>) -> Result<Target, DropReason> {
    let is_its = |endpoint: &Endpoint| endpoint.hairpin && endpoint.has(MacAddr::from_u64(source));
    if source != destination && cx.tables.endpoint(to).is_some_and(is_its) {
        return Ok(Target::Endpoint(to));
    }
    Err(DropReason::Hairpin)
}

#[inline]
fn network<'a>(id: NetworkId, cx: &Cx<'a>) -> Result<&'a Network, DropReason> {
    cx.tables.network(id).ok_or(DropReason::VniUnknown)
}

/// The FDB is shared and changes under us: what it says is used only if it belongs to this network, so that not
/// even a torn entry could carry a frame into another one.
#[inline]
fn find(id: NetworkId, mac: u64, cx: &Cx<'_>) -> Result<Option<Destination>, DropReason> {
    let network = network(id, cx)?;
    if mac == 0 || MacAddr::number_is_group(mac) {
        return Ok(None);
    }
    Ok(cx.fdb.lookup_at(cx.fdb.place(id, mac)).filter(|found| match *found {
        Destination::Local(endpoint) => cx.tables.endpoint(endpoint).is_some_and(|e| e.network == id),
        Destination::Remote(remote) => network.has_remote(remote),
    }))
}

/// Notes where the sender is. An address that is fixed elsewhere, a tenant of ours for one, cannot be taken over.
#[inline]
fn learn(network: &Network, place: Place, remote: RemoteId, cx: &Cx<'_>) -> Result<Learned, DropReason> {
    if !network.learning {
        return match cx.fdb.lookup_fixed_at(place) {
            Some(there) if there != Destination::Remote(remote) => Err(DropReason::SourceSpoofed),
            _ => Ok(Learned::Known),
        };
    }
    let learned = cx.fdb.learn_at(place, remote, cx.now_s, &network.limits);
    if learned != Learned::Known
        && let Some(counters) = cx.counters.network(place.network())
    {
        count(learned, counters);
    }
    if learned == Learned::Fixed { Err(DropReason::SourceSpoofed) } else { Ok(learned) }
}

#[cold]
fn count(learned: Learned, counters: &NetworkCounters) {
    match learned {
        Learned::New => counters.learned.add(1),
        Learned::Moved => counters.moved.add(1),
        Learned::Refused => counters.learn_refused.add(1),
        Learned::Held => counters.moves_damped.add(1),
        Learned::Known | Learned::Fixed | Learned::Busy => {}
    }
}
