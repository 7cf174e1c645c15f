//! Way in, first step: the outer headers are checked and taken off, and the sender is noted.

use std::net::Ipv4Addr;

use super::Cx;
use crate::counters::DropReason;
use crate::frame::{Burst, Frame, Source};
use crate::tables::Uplink;
use crate::types::RemoteId;
use crate::wire::outer::{self, OVERHEAD_IPV4, Outer, Vtep};
use crate::wire::partial;
use crate::wire::vxlan::VxlanHeader;

/// What stays in the burst starts with its VXLAN header.
pub fn run(burst: &mut Burst, cx: &mut Cx<'_>) {
    let mut last = None;
    match cx.tables.uplink(cx.uplink) {
        Some(uplink) => cx.each(burst, |frame, cx| classify(frame, &mut last, uplink, cx)),
        None => cx.each(burst, |_, _| Err(DropReason::OuterNotOurs)), // never: a socket belongs to one
    }
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
