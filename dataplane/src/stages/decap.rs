//! Way in, second step: the VXLAN header is taken off, the network found, the inner Ethernet header checked.

use super::{Cx, stranger};
use crate::counters::{DropReason, WorkerCounters};
use crate::frame::{Burst, Frame, Source};
use crate::plan::{InnerVlan, ReservedBits};
use crate::tables::Network;
use crate::types::{MacAddr, NetworkId};
use crate::wire::eth::EthHeader;
use crate::wire::outer::VLAN_TAG;
use crate::wire::vxlan::VxlanHeader;

/// What stays in the burst starts with its inner Ethernet header.
pub fn run(burst: &mut Burst, cx: &mut Cx<'_>) {
    let mut last = Last::default();
    cx.each(burst, |frame, cx| decap(frame, &mut last, cx));
    last.count(cx.counters);
}

/// What the frames before have in common, as most often all of a burst do: it is looked up, and counted, once.
#[derive(Default)]
struct Last {
    known: Option<Known>,
    frames: u64,
    bytes: u64,
}

/// A network and a sender that belongs to it.
#[derive(Clone, Copy)]
struct Known {
    /// The VXLAN header as it stands there: another one like it means the same.
    header: [u8; VxlanHeader::LEN],
    source: Source,
    network: NetworkId,
    untagged_max: usize,
    inner_vlan: InnerVlan,
}

impl Last {
    fn count(&mut self, counters: &WorkerCounters) {
        if let Some(counters) = self.known.and_then(|known| counters.network(known.network)) {
            counters.from_underlay.frames.add(self.frames);
            counters.from_underlay.bytes.add(self.bytes);
        }
        (self.frames, self.bytes) = (0, 0);
    }

    /// Another network or sender than before. The frame has its network even if the sender is none of it.
    #[inline(never)]
    fn find(&mut self, frame: &mut Frame, cx: &Cx<'_>) -> Result<Known, DropReason> {
        let bytes = *frame.bytes().first_chunk().ok_or(DropReason::VxlanTruncated)?;
        let (header, _) = VxlanHeader::split(&bytes)?;
        let has_reserved = header.has_reserved();
        let (id, network) = cx.tables.network_by_vni(header.vni()).ok_or(DropReason::VniUnknown)?;
        frame.meta.network = id;
        if has_reserved && network.reserved_bits == ReservedBits::Refuse {
            return Err(DropReason::VxlanReservedSet);
        }
        if network.any_remote {
            meet(id, network, frame, cx)?;
        }
        let source = frame.meta.source;
        match source {
            Source::Remote(remote) if network.has_remote(remote) => {}
            Source::Unknown if network.any_remote => {}
            _ => return Err(DropReason::RemoteUnknown),
        }
        self.count(cx.counters);
        let Network { inner_vlan, untagged_max, .. } = *network;
        let known = Known { header: bytes, source, network: id, untagged_max, inner_vlan };
        self.known = Some(known);
        Ok(known)
    }
}

/// In a network that takes any remote: control hears of those that it found and that still send, and of those that it does not know.
#[cold]
#[inline(never)]
fn meet(id: NetworkId, network: &Network, frame: &mut Frame, cx: &Cx<'_>) -> Result<(), DropReason> {
    let Source::Remote(remote) = frame.meta.source else { return Ok(()) };
    if network.has_remote(remote) {
        cx.counters.hear(remote, cx.now_s);
        return Ok(());
    }
    // A remote, but of other networks only.
    let sender = cx.tables.remote(remote).ok_or(DropReason::RemoteUnknown)?.address;
    let inner = frame.bytes().get(VxlanHeader::LEN..).unwrap_or_default();
    frame.meta.source = stranger::admit((id, network), sender, inner, cx)?;
    Ok(())
}

#[inline]
fn decap(frame: &mut Frame, last: &mut Last, cx: &Cx<'_>) -> Result<(), DropReason> {
    let (header, inner) = frame.bytes().split_first_chunk().ok_or(DropReason::VxlanTruncated)?;
    let received = inner.len();
    let source_and_type = EthHeader::source_and_type(inner);
    let known = match last.known {
        Some(known) if known.header == *header && known.source == frame.meta.source => known,
        _ => last.find(frame, cx)?,
    };
    frame.meta.network = known.network;
    let (source, ethertype) = source_and_type.ok_or(DropReason::InnerTruncated)?;
    let (mut inner_len, is_tagged) = (received, EthHeader::is_tag(ethertype));
    if is_tagged {
        inner_len -= tagged(frame, known.inner_vlan)?;
    }
    if MacAddr::number_is_group(source) || source == 0 {
        return Err(DropReason::InnerSourceInvalid);
    }
    if received > longest(known.untagged_max, is_tagged) {
        return Err(DropReason::InnerTooLong);
    }
    if !frame.pull(VxlanHeader::LEN) {
        return Err(DropReason::VxlanTruncated);
    }
    last.frames += 1;
    last.bytes += inner_len as u64;
    Ok(())
}

/// Of an inner frame as it comes, with the tag that may be taken off it.
#[inline]
pub(super) fn longest(untagged_max: usize, is_tagged: bool) -> usize {
    untagged_max + if is_tagged { VLAN_TAG } else { 0 }
}

/// The inner frame, behind the VXLAN header, has a VLAN tag; so many bytes are taken off it.
#[cold]
#[inline(never)]
fn tagged(frame: &mut Frame, inner_vlan: InnerVlan) -> Result<usize, DropReason> {
    match inner_vlan {
        InnerVlan::Drop => Err(DropReason::InnerVlanTagged),
        InnerVlan::Carry => Ok(0),
        InnerVlan::Strip => {
            super::untag(frame, VxlanHeader::LEN)?;
            Ok(VLAN_TAG)
        }
    }
}
