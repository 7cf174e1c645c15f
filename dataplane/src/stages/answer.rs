//! Frames that we make for tenants, or instead of flooding what they sent: replies to ARP requests and neighbour solicitations for
//! addresses that are known, "packet too big", and announcements of tenants that have just connected.
//!
//! Lookup asks about what a tenant sent and nobody in particular is to get (`flooded`), collect and encap about what is too long
//! (`too_long`, `too_big`), the worker about announcements ([`announce`]). An answer is ours ([`Source::Ours`]) and has its
//! target already, the tenant that asked: so it goes the usual way to whoever serves that.
//!
//! Solicitations to one station are left to it: who sends one wants to know whether that station is still there (RFC 4861 §7.3.3).

use std::net::IpAddr;

use super::Cx;
use super::collect::{Inner, find_flow};
use crate::clock::cycles;
use crate::counters::{DropReason, WorkerCounters};
use crate::fdb::Destination;
use crate::frame::{Burst, Flooding, Frame, Source, Target};
use crate::tables::Tables;
use crate::types::{EndpointId, MacAddr, NetworkId};
use crate::wire::arp::Request;
use crate::wire::eth::EthHeader;
use crate::wire::icmp::{NEEDED, TooBig};
use crate::wire::ndp::Solicitation;
use crate::wire::{inner, mss};

/// Bytes in front of a packet that is looked at only because it is too long: for the headers of the answer.
const HEADROOM: usize = 64;
/// Enough of a packet for an answer (RFC 792: its header and 8 bytes), where the first buffer of a chain has no more.
const QUOTE_MIN: usize = 128;

/// What a tenant sent would be flooded: it is answered instead, if it can be, and else flooded, if the tenant has not flooded too much.
#[cold]
#[inline(never)]
pub(super) fn flooded(frame: &mut Frame, from: EndpointId, cx: &Cx<'_>) -> Result<(), DropReason> {
    if answer_known(frame, from, cx).is_some() {
        return Ok(());
    }
    if !cx.tables.answers.may_flood(from, cycles()) {
        return Err(DropReason::StormLimited);
    }
    frame.meta.target = Target::Flood(Flooding::NEW);
    Ok(())
}

/// Turns a question for a known address, not of who asks, into the answer.
fn answer_known(frame: &mut Frame, from: EndpointId, cx: &Cx<'_>) -> Option<()> {
    let (id, answers) = (frame.meta.network, &cx.tables.answers);
    let network = answers.network(id).filter(|network| network.suppression)?;
    let counters = cx.counters.network(id)?;
    let owner = |address: IpAddr, asker: MacAddr| {
        answers.station(id, address).filter(|owner| *owner != asker && is_elsewhere(*owner, id, from, cx))
    };
    if let Some(request) = Request::read(frame.bytes()) {
        let owner = owner(request.target.into(), request.asker)?;
        become_answer(frame, &request.reply(owner), from)?;
        counters.arp_answered.add(1);
    } else {
        let asked = Solicitation::read(frame.bytes())?;
        let owner = owner(asked.target.into(), asked.asker)?;
        become_answer(frame, &asked.advertisement(owner, network.is_router(owner)), from)?;
        counters.nd_answered.add(1);
    }
    Some(())
}

/// Not behind the tenant that asks, who may check whether its own address is in use, and whose stations hear each other: a second answer, from
/// our side, would tell a bridge there that its own station is here; nor a tenant of ours that is not connected: until it
/// is, somebody else may stand in for it; nor one that is not fixed behind a remote any more, but was removed, it or the remote.
fn is_elsewhere(owner: MacAddr, network: NetworkId, from: EndpointId, cx: &Cx<'_>) -> bool {
    match cx.fdb.lookup_fixed_at(cx.fdb.place(network, owner.to_u64())) {
        Some(Destination::Local(endpoint)) => endpoint != from && cx.is_attached(network, endpoint),
        Some(Destination::Remote(_)) => true,
        None => false,
    }
}

/// The flow's hash stays: the frame may be under way by it.
fn become_answer(frame: &mut Frame, bytes: &[u8], to: EndpointId) -> Option<()> {
    frame.reset(frame.headroom(), bytes.len())?.copy_from_slice(bytes);
    (frame.meta.source, frame.meta.target) = (Source::Ours, Target::Endpoint(to));
    Some(())
}

/// A packet that is longer than its network allows, not copied yet, has been counted as dropped: makes the empty frame the answer. False
/// if there is none. One that is not answered for want of a turn costs a look at the limit.
#[cold]
#[inline(never)]
pub(super) fn too_long(
    frame: &mut Frame,
    packet: impl Inner,
    from: EndpointId,
    tables: &Tables,
    counters: &WorkerCounters,
) -> bool {
    if !tables.answers.could_tell(from, cycles()) {
        return false;
    }
    let copied = [NEEDED, QUOTE_MIN].into_iter().any(|len| {
        let room = frame.reset(HEADROOM, len.min(packet.len()));
        room.and_then(|room| packet.copy_front_to(room)).is_some()
    });
    let id = frame.meta.network;
    let Some(network) = tables.answers.network(id).filter(|_| copied) else { return false };
    // With more tags than are provided for, the packet has less room.
    let Some((_, link_len)) = inner::Packet::find(frame.bytes()) else { return false };
    let frame_max = tables.network(id).map_or(0, |network| network.frame_max);
    let mtu = network.mtu.min(frame_max.saturating_sub(link_len));
    if !is_from(frame, from, tables) {
        return false;
    }
    find_flow(frame, from, tables); // the answer goes with what it is about
    let is_told = answer_too_big(frame, packet.len(), mtu, from, tables);
    if is_told {
        count_told(frame, counters);
    }
    is_told
}

/// The tenant may send from this address: what pretends to be from another is not answered.
fn is_from(frame: &Frame, from: EndpointId, tables: &Tables) -> bool {
    let Some((eth, _)) = EthHeader::split(frame.bytes()) else { return false };
    tables.endpoint(from).is_some_and(|endpoint| !endpoint.anti_spoofing || endpoint.has(eth.source()))
}

/// A frame that is longer than the `frame_max` bytes that its path takes is about to be counted as dropped: makes it the answer for the
/// tenant that sent it, if there is one and the frame went to this remote only: a copy of a flood may reach who it is for another way.
/// `Cx::each` sends that.
#[cold]
#[inline(never)]
pub(super) fn too_big(frame: &mut Frame, frame_max: usize, cx: &Cx<'_>) -> DropReason {
    if let (Source::Endpoint(from), Target::Remote(_)) = (frame.meta.source, frame.meta.target)
        && cx.tables.answers.could_tell(from, cycles())
        && let Some((_, link_len)) = inner::Packet::find(frame.bytes())
        && answer_too_big(frame, frame.len(), frame_max.saturating_sub(link_len), from, cx.tables)
    {
        count_told(frame, cx.counters);
    }
    DropReason::PathMtuExceeded
}

/// Only if the tenant could be told: there is a checksum to be made.
fn answer_too_big(
    frame: &mut Frame,
    frame_len: usize,
    mtu: usize,
    from: EndpointId,
    tables: &Tables,
) -> bool {
    let Some(network) = tables.answers.network(frame.meta.network) else { return false };
    let Some(told) = TooBig::about(frame.bytes(), frame_len, mtu, &network.gateways) else { return false };
    let (start, len) = told.quoted();
    let is_tagged = start > EthHeader::LEN;
    if is_tagged && !network.is_tagged || !tables.answers.may_tell(from, cycles()) {
        return false;
    }
    let Some(headers) = frame.cut(start, len).then(|| frame.push(told.headers().len())).flatten() else {
        return false; // never: it had a link layer and more headroom than IP needs
    };
    headers.copy_from_slice(told.headers());
    (frame.meta.source, frame.meta.target) = (Source::Ours, Target::Endpoint(from));
    true
}

fn count_told(frame: &Frame, counters: &WorkerCounters) {
    count_made(frame, counters);
    if let Some(network) = counters.network(frame.meta.network) {
        network.too_big_told.add(1);
    }
}

/// This frame came from nowhere.
fn count_made(frame: &Frame, counters: &WorkerCounters) {
    counters.replicated.add(1);
    counters.of_class(frame.class(), |class| &class.replicated, 1);
}

/// Makes an announcement a frame that this tenant has sent to everybody: flooded without being looked up, and without being counted
/// against its limit. False if there is no free frame, or it does not fit one.
#[cold]
pub fn announce(
    bytes: &[u8],
    (network, from): (NetworkId, EndpointId),
    output: &mut Burst,
    cx: &mut Cx<'_>,
) -> bool {
    let overhead = cx.tables.network(network).map_or(0, |network| network.overhead);
    let Some(mut frame) = cx.pool.take() else { return false };
    let Some(room) = frame.reset(overhead, bytes.len()) else {
        cx.pool.put(frame);
        return false;
    };
    room.copy_from_slice(bytes);
    frame.meta.network = network;
    frame.meta.source = Source::Endpoint(from);
    frame.meta.target = Target::Flood(Flooding::NEW);
    find_flow(&mut frame, from, cx.tables);
    count_made(&frame, cx.counters);
    cx.pass(frame, output);
    true
}

/// Lowers the MSS in those frames of the burst that open a TCP connection on a network that wants it.
#[cold]
#[inline(never)]
pub(super) fn clamp_mss(burst: &mut Burst, cx: &Cx<'_>) {
    for frame in burst.iter_mut() {
        if let Some(network) = cx.tables.answers.network(frame.meta.network)
            && network.clamps_mss
        {
            mss::clamp(frame.bytes_mut(), network.mtu);
        }
    }
}
