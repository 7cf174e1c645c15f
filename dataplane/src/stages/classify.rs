//! Way in, first step: the outer headers are checked and taken off, the sender is noted and the priority class found.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::{Cx, RxRing, stranger};
use crate::classes::Known;
use crate::counters::{ClassTally, DropReason};
use crate::frame::{Burst, Frame, Source};
use crate::tables::Uplink;
use crate::types::{Class, NetworkId, RemoteId, Vni};
use crate::wire::ecn;
use crate::wire::eth::ETHERTYPE_VLAN;
use crate::wire::flow::Headers;
use crate::wire::outer::{self, Listening, Outer};
use crate::wire::partial;
use crate::wire::vxlan::VxlanHeader;

/// What stays in the burst starts with its VXLAN header.
pub fn run(burst: &mut Burst, cx: &mut Cx<'_>) {
    let Some(uplink) = cx.tables.uplink(cx.origin.uplink) else {
        return refuse_all(burst, cx); // never: a socket belongs to one
    };
    if let Some(vlan) = uplink.vlan {
        untag_all(burst, vlan, cx);
    }
    let rules = &cx.tables.classes;
    // Otherwise all have one class.
    let is_settling = cx.tables.settling && cx.origin.ring == RxRing::Rest;
    let is_sorted = cx.origin.ring != RxRing::Urgent && (!rules.is_trivial() || is_settling);
    if is_sorted && rules.asks_outer_dscp() {
        burst.iter_mut().for_each(note_outer_dscp);
    }
    let mut last = Last::default();
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

#[cold]
#[inline(never)]
fn refuse_all(burst: &mut Burst, cx: &mut Cx<'_>) {
    cx.each(burst, |_, _| Err(DropReason::OuterNotOurs));
}

#[inline(never)]
fn untag_all(burst: &mut Burst, vlan: u16, cx: &mut Cx<'_>) {
    cx.each(burst, |frame, _| untag(frame, vlan));
}

/// It stands where the flow's hash will stand, until that is known.
#[inline]
fn note_outer_dscp(frame: &mut Frame) {
    frame.meta.flow_hash = outer::dscp(frame.bytes()).map_or(0, u32::from);
}

/// The VLAN's tag is taken off: from then on the frame is like any other.
fn untag(frame: &mut Frame, vlan: u16) -> Result<(), DropReason> {
    let head = frame.bytes().first_chunk::<16>().ok_or(DropReason::OuterTruncated)?;
    let [.., a, b, c, d] = *head;
    if u16::from_be_bytes([a, b]) != ETHERTYPE_VLAN || u16::from_be_bytes([c, d]) & 0xfff != vlan {
        return Err(DropReason::OuterNotOurs);
    }
    super::untag(frame, 0).map_err(|_| DropReason::OuterTruncated)
}

/// The senders of the frames before, which most often are the next one's, too.
#[derive(Default)]
struct Last {
    ipv4: Option<(Ipv4Addr, RemoteId)>,
    ipv6: Option<(Ipv6Addr, RemoteId)>,
}

#[inline]
fn classify(frame: &mut Frame, last: &mut Last, uplink: &Uplink, cx: &Cx<'_>) -> Result<(), DropReason> {
    let Some(outer) = outer::plain_ipv4(frame.bytes(), &uplink.listening) else {
        return classify_other(frame, last, uplink, cx);
    };
    let remote = match last.ipv4 {
        Some((source, remote)) if source == outer.source => remote,
        _ => match cx.tables.remote_by_ipv4(outer.source) {
            Some(remote) => remote,
            None => return strange(frame, &outer, uplink, cx),
        },
    };
    last.ipv4 = Some((outer.source, remote));
    take(frame, &outer, Source::Remote(remote), uplink, cx)
}

/// Over IPv6, and all that takes a closer look.
#[inline(never)]
fn classify_other(
    frame: &mut Frame,
    last: &mut Last,
    uplink: &Uplink,
    cx: &Cx<'_>,
) -> Result<(), DropReason> {
    let Some(outer) = outer::plain_ipv6(frame.bytes(), &uplink.listening) else {
        return classify_any(frame, uplink, cx);
    };
    let remote = match last.ipv6 {
        Some((source, remote)) if source == outer.source => remote,
        _ => match cx.tables.remote_by_ipv6(outer.source) {
            Some(remote) => remote,
            None => return strange(frame, &outer, uplink, cx),
        },
    };
    last.ipv6 = Some((outer.source, remote));
    take(frame, &outer, Source::Remote(remote), uplink, cx)
}

#[cold]
#[inline(never)]
fn classify_any(frame: &mut Frame, uplink: &Uplink, cx: &Cx<'_>) -> Result<(), DropReason> {
    let outer = match outer::parse(frame.bytes(), &uplink.listening) {
        Err(DropReason::OuterUdpChecksum) => finish_checksum(frame, &uplink.listening)?,
        outer => outer?,
    };
    let remote = match outer.source {
        IpAddr::V4(source) => cx.tables.remote_by_ipv4(source),
        IpAddr::V6(source) => cx.tables.remote_by_ipv6(source),
    };
    match remote {
        Some(remote) => take(frame, &outer, Source::Remote(remote), uplink, cx),
        None => strange(frame, &outer, uplink, cx),
    }
}

/// The outer headers are right and the sender is known: they come off.
#[inline(always)]
fn take<A>(
    frame: &mut Frame,
    outer: &Outer<A>,
    source: Source,
    uplink: &Uplink,
    cx: &Cx<'_>,
) -> Result<(), DropReason> {
    if uplink.cardless {
        finish_inner_checksum(frame, outer.header_len);
    }
    frame.meta.source = source;
    // `parse` has seen that both lengths lie inside the frame.
    if !frame.cut(outer.header_len, outer.payload_len) {
        return Err(DropReason::OuterTruncated);
    }
    if outer.ecn != 0 {
        take_over_ecn(frame, outer.ecn, cx)?;
    }
    Ok(())
}

/// The frame begins with its VXLAN header. A VTEP whose header says that congestion was experienced says it to the inner packet.
#[cold]
#[inline(never)]
fn take_over_ecn(frame: &mut Frame, outer: u8, cx: &Cx<'_>) -> Result<(), DropReason> {
    let inner = frame.bytes_mut().get_mut(VxlanHeader::LEN..).unwrap_or_default();
    if ecn::take_over(inner, outer)? {
        cx.counters.ecn_unexpected.add(1);
    }
    Ok(())
}

/// Nobody knows the sender.
#[cold]
#[inline(never)]
fn strange<A: Copy + Into<IpAddr>>(
    frame: &mut Frame,
    outer: &Outer<A>,
    uplink: &Uplink,
    cx: &Cx<'_>,
) -> Result<(), DropReason> {
    take(frame, outer, Source::Unknown, uplink, cx)?;
    frame.meta.source = stranger::of_nobody(outer.source.into(), frame.bytes(), cx)?;
    Ok(())
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
        Source::Endpoint(_) | Source::Unknown | Source::Ours => false,
    }
}

/// Without an outer checksum nothing but the inner one itself tells that it was left to a card.
fn finish_inner_checksum(frame: &mut Frame, header_len: usize) {
    if let Some(inner) = frame.bytes_mut().get_mut(header_len + VxlanHeader::LEN..) {
        partial::complete(inner); // false: there was nothing to finish
    }
}

/// The outer checksum is wrong as the frame stands, but may be right once the inner one is finished, which a local
/// sender left to a network card that a veth does not have.
#[cold]
fn finish_checksum(frame: &mut Frame, listening: &Listening) -> Result<Outer, DropReason> {
    let overhead = outer::usual_overhead(frame.bytes());
    let inner = frame.bytes_mut().get_mut(overhead..).ok_or(DropReason::OuterUdpChecksum)?;
    if partial::complete(inner) {
        outer::parse(frame.bytes(), listening)
    } else {
        Err(DropReason::OuterUdpChecksum)
    }
}
