//! Way in, first step: the outer headers are checked and taken off, the sender is noted and the priority class found.

use std::net::Ipv4Addr;

use super::Cx;
use crate::classes::Known;
use crate::counters::DropReason;
use crate::frame::{Burst, Frame, Source};
use crate::tables::Uplink;
use crate::types::{Class, NetworkId, RemoteId, Vni};
use crate::wire::flow::Headers;
use crate::wire::outer::{self, OVERHEAD_IPV4, Outer, Vtep};
use crate::wire::partial;
use crate::wire::vxlan::VxlanHeader;

/// What stays in the burst starts with its VXLAN header.
pub fn run(burst: &mut Burst, cx: &mut Cx<'_>) {
    let mut last = Last::default();
    let Some(uplink) = cx.tables.uplink(cx.origin.uplink) else {
        return cx.each(burst, |_, _| Err(DropReason::OuterNotOurs)); // never: a socket belongs to one
    };
    // Where all packets have one class, nobody looks for it.
    if cx.origin.is_early {
        cx.each(burst, |frame, cx| {
            classify(frame, &mut last, uplink, cx)?;
            set_class(frame, Class::URGENT, cx);
            Ok(())
        });
    } else if cx.tables.classes.is_trivial() {
        cx.each(burst, |frame, cx| classify(frame, &mut last, uplink, cx).map(|_| ()));
    } else {
        cx.each(burst, |frame, cx| {
            let outer_dscp = classify(frame, &mut last, uplink, cx)?;
            sort(frame, outer_dscp, &mut last, cx);
            Ok(())
        });
    }
}

/// What the frame before had, which most often is this one's, too.
#[derive(Default)]
struct Last {
    sender: Option<Sender>,
    network: Option<(Vni, NetworkId)>,
}

#[derive(Clone, Copy)]
struct Sender {
    address: Ipv4Addr,
    remote: RemoteId,
    /// The DSCP of its outer headers is believed.
    is_trusted: bool,
}

/// The outer DSCP, if it is believed.
#[inline(always)] // else its answer goes through memory
fn classify(
    frame: &mut Frame,
    last: &mut Last,
    uplink: &Uplink,
    cx: &Cx<'_>,
) -> Result<Option<u8>, DropReason> {
    let outer = match outer::parse(frame.bytes(), uplink.vtep) {
        Err(DropReason::OuterUdpChecksum) => finish_checksum(frame, uplink.vtep)?,
        outer => outer?,
    };
    if uplink.cardless {
        finish_inner_checksum(frame, &outer);
    }
    let sender = match last.sender {
        Some(sender) if sender.address == outer.source => sender,
        _ => sender(outer.source, cx).ok_or(DropReason::RemoteUnknown)?,
    };
    last.sender = Some(sender);
    frame.meta.source = Source::Remote(sender.remote);
    // `parse` has seen that both lengths lie inside the frame.
    if !frame.cut(outer.header_len, outer.payload_len) {
        return Err(DropReason::OuterTruncated);
    }
    Ok(sender.is_trusted.then_some(outer.dscp))
}

#[inline]
fn sender(address: Ipv4Addr, cx: &Cx<'_>) -> Option<Sender> {
    let remote = cx.tables.remote_by_address(address)?;
    let is_trusted = cx.tables.remote(remote).is_some_and(|remote| remote.trusted);
    Some(Sender { address, remote, is_trusted })
}

/// Finds the class, and the hash of the flow where that takes a look at the headers anyway. A frame of no network keeps its class: it
/// is dropped in the next step.
#[inline]
fn sort(frame: &mut Frame, outer_dscp: Option<u8>, last: &mut Last, cx: &Cx<'_>) {
    let Ok((header, inner)) = VxlanHeader::split(frame.bytes()) else { return };
    let vni = header.vni();
    let network = match last.network {
        Some((known, network)) if known == vni => network,
        _ => match cx.tables.network_by_vni(vni) {
            Some((network, _)) => network,
            None => return,
        },
    };
    last.network = Some((vni, network));
    let rules = &cx.tables.classes;
    let (class, flow_hash) = match (rules.settled(network), Headers::read(inner)) {
        (Some(class), _) => (class, 0),
        (None, Some(headers)) => {
            (rules.classify(&Known { network, sender: None, outer_dscp }, &headers), headers.flow_hash)
        }
        (None, None) => return,
    };
    set_class(frame, class, cx);
    frame.meta.flow_hash = flow_hash;
}

#[inline]
fn set_class(frame: &mut Frame, class: Class, cx: &Cx<'_>) {
    frame.set_class(class);
    cx.counters.of_class(class, |class| &class.uplink_rx, 1);
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
