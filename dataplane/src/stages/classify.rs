//! Way in, first step: the outer headers are checked and taken off, the sender is noted and the priority class found.

use std::net::Ipv4Addr;

use super::{Cx, RxRing};
use crate::classes::Known;
use crate::counters::{ClassTally, DropReason};
use crate::frame::{Burst, Frame, Source};
use crate::tables::Uplink;
use crate::types::{Class, NetworkId, RemoteId, Vni};
use crate::wire::flow::Headers;
use crate::wire::outer::{self, OVERHEAD_IPV4, Outer, Vtep};
use crate::wire::partial;
use crate::wire::vxlan::VxlanHeader;

/// What stays in the burst starts with its VXLAN header.
pub fn run(burst: &mut Burst, cx: &mut Cx<'_>) {
    let Some(uplink) = cx.tables.uplink(cx.origin.uplink) else {
        return cx.each(burst, |_, _| Err(DropReason::OuterNotOurs)); // never: a socket belongs to one
    };
    let rules = &cx.tables.classes;
    // Otherwise all have one class.
    let is_settling = cx.tables.settling && cx.origin.ring == RxRing::Rest;
    let is_sorted = cx.origin.ring != RxRing::Urgent && (!rules.is_trivial() || is_settling);
    if is_sorted && rules.asks_outer_dscp() {
        burst.iter_mut().for_each(note_outer_dscp);
    }
    let mut last = None;
    cx.each(burst, |frame, cx| classify(frame, &mut last, uplink, cx));
    if cx.origin.ring == RxRing::Urgent {
        burst.iter_mut().for_each(|frame| frame.set_class(Class::URGENT));
    } else if is_sorted {
        let mut last = None;
        burst.iter_mut().for_each(|frame| sort(frame, &mut last, is_settling, cx));
    }
    if is_sorted || cx.origin.ring == RxRing::Urgent {
        cx.counters.of_classes(&ClassTally::of(burst.iter().map(Frame::class)), |class| &class.uplink_rx);
    }
}

/// It stands where the flow's hash will stand, until that is known.
#[inline]
fn note_outer_dscp(frame: &mut Frame) {
    frame.meta.flow_hash = outer::dscp(frame.bytes()).map_or(0, u32::from);
}

/// `last` is the sender of the frame before, which most often is this one's, too.
#[inline]
fn classify(
    frame: &mut Frame,
    last: &mut Option<(Ipv4Addr, RemoteId)>,
    uplink: &Uplink,
    cx: &Cx<'_>,
) -> Result<(), DropReason> {
    let outer = match outer::parse(frame.bytes(), uplink.vtep) {
        Err(DropReason::OuterUdpChecksum) => finish_checksum(frame, uplink.vtep)?,
        outer => outer?,
    };
    if uplink.cardless {
        finish_inner_checksum(frame, &outer);
    }
    let remote = match *last {
        Some((source, remote)) if source == outer.source => remote,
        _ => cx.tables.remote_by_address(outer.source).ok_or(DropReason::RemoteUnknown)?,
    };
    *last = Some((outer.source, remote));
    frame.meta.source = Source::Remote(remote);
    // `parse` has seen that both lengths lie inside the frame.
    if frame.cut(outer.header_len, outer.payload_len) { Ok(()) } else { Err(DropReason::OuterTruncated) }
}

/// Finds the class, and the hash of the flow where that takes a look at the headers anyway. `last` is the network of the frame before. A
/// frame of no network keeps its class: it is dropped in the next step.
#[inline(never)]
fn sort(frame: &mut Frame, last: &mut Option<(Vni, NetworkId)>, is_settling: bool, cx: &Cx<'_>) {
    let outer_dscp = std::mem::take(&mut frame.meta.flow_hash) as u8;
    let Ok((header, inner)) = VxlanHeader::split(frame.bytes()) else { return };
    let vni = header.vni();
    let network = match *last {
        Some((known, network)) if known == vni => network,
        _ => match cx.tables.network_by_vni(vni) {
            Some((network, _)) => network,
            None => return,
        },
    };
    *last = Some((vni, network));
    let rules = &cx.tables.classes;
    let (mut class, flow_hash) = if let Some(class) = rules.settled(network) {
        (class, 0)
    } else if let Some(headers) = Headers::read(inner) {
        let outer_dscp = is_trusted(frame.meta.source, cx).then_some(outer_dscp);
        (rules.classify(&Known { network, sender: None, outer_dscp }, &headers), headers.flow_hash)
    } else {
        return;
    };
    if class == Class::URGENT && is_settling {
        class = Class::NORMAL; // there is a second class wherever there is a ring for the first
    }
    frame.set_class(class);
    frame.meta.flow_hash = flow_hash;
}

/// The DSCP of its outer headers is believed.
#[inline]
fn is_trusted(source: Source, cx: &Cx<'_>) -> bool {
    match source {
        Source::Remote(remote) => cx.tables.remote(remote).is_some_and(|remote| remote.trusted),
        Source::Endpoint(_) | Source::Unknown => false,
    }
}

/// Without an outer checksum nothing but the inner one itself tells that it was left to a card.
fn finish_inner_checksum(frame: &mut Frame, outer: &Outer) {
    if let Some(inner) = frame.bytes_mut().get_mut(outer.header_len + VxlanHeader::LEN..) {
        partial::complete(inner); // false: there was nothing to finish
    }
}

/// The outer checksum is wrong as the frame stands, but may be right once the inner one is finished, which a local
/// sender left to a network card that a veth does not have.
#[cold]
fn finish_checksum(frame: &mut Frame, vtep: Vtep) -> Result<Outer, DropReason> {
    let inner = frame.bytes_mut().get_mut(OVERHEAD_IPV4..).ok_or(DropReason::OuterUdpChecksum)?;
    if partial::complete(inner) {
        outer::parse(frame.bytes(), vtep)
    } else {
        Err(DropReason::OuterUdpChecksum)
    }
}
