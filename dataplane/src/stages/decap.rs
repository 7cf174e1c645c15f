//! Way in, second step: the VXLAN header is taken off, the network found, the inner Ethernet header checked.

use super::Cx;
use crate::counters::{DropReason, WorkerCounters};
use crate::frame::{Burst, Frame, Source};
use crate::types::{MacAddr, NetworkId, Vni};
use crate::wire::eth::EthHeader;
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
    vni: Vni,
    source: Source,
    network: NetworkId,
    frame_max: usize,
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
    fn find(&mut self, vni: Vni, frame: &mut Frame, cx: &Cx<'_>) -> Result<Known, DropReason> {
        let (id, network) = cx.tables.network_by_vni(vni).ok_or(DropReason::VniUnknown)?;
        frame.meta.network = id;
        let source = frame.meta.source;
        match source {
            Source::Remote(remote) if network.has_remote(remote) => {}
            _ => return Err(DropReason::RemoteUnknown),
        }
        self.count(cx.counters);
        let known = Known { vni, source, network: id, frame_max: network.frame_max };
        self.known = Some(known);
        Ok(known)
    }
}

#[inline]
fn decap(frame: &mut Frame, last: &mut Last, cx: &Cx<'_>) -> Result<(), DropReason> {
    let (header, inner) = VxlanHeader::split(frame.bytes())?;
    let (vni, inner_len) = (header.vni(), inner.len());
    let source = EthHeader::numbers(inner).map(|(_, source)| source);
    let known = match last.known {
        Some(known) if known.vni == vni && known.source == frame.meta.source => known,
        _ => last.find(vni, frame, cx)?,
    };
    frame.meta.network = known.network;
    let source = source.ok_or(DropReason::InnerTruncated)?;
    if MacAddr::number_is_group(source) || source == 0 {
        return Err(DropReason::InnerSourceInvalid);
    }
    if inner_len > known.frame_max {
        return Err(DropReason::InnerTooLong);
    }
    if !frame.pull(VxlanHeader::LEN) {
        return Err(DropReason::VxlanTruncated);
    }
    last.frames += 1;
    last.bytes += inner_len as u64;
    Ok(())
}
