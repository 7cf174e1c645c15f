//! Way in, second step: the VXLAN header is taken off, the network found, the inner Ethernet header checked.

use super::Cx;
use crate::counters::DropReason;
use crate::frame::{Burst, Frame, Source};
use crate::types::MacAddr;
use crate::wire::eth::EthHeader;
use crate::wire::vxlan::VxlanHeader;

/// What stays in the burst starts with its inner Ethernet header.
pub fn run(burst: &mut Burst, cx: &mut Cx<'_>) {
    cx.each(burst, decap);
}

#[inline]
fn decap(frame: &mut Frame, cx: &Cx<'_>) -> Result<(), DropReason> {
    let (header, inner) = VxlanHeader::split(frame.bytes())?;
    let (id, network) = cx.tables.network_by_vni(header.vni()).ok_or(DropReason::VniUnknown)?;
    let inner_len = inner.len();
    let inner_eth = EthHeader::split(inner).map(|(eth, _)| eth.source_number());
    frame.meta.network = id;
    match frame.meta.source {
        Source::Remote(remote) if network.has_remote(remote) => {}
        _ => return Err(DropReason::RemoteUnknown),
    }
    let source = inner_eth.ok_or(DropReason::InnerTruncated)?;
    if MacAddr::number_is_group(source) || source == 0 {
        return Err(DropReason::InnerSourceInvalid);
    }
    if inner_len > network.frame_max {
        return Err(DropReason::InnerTooLong);
    }
    if !frame.pull(VxlanHeader::LEN) {
        return Err(DropReason::VxlanTruncated);
    }
    if let Some(counters) = cx.counters.network(id) {
        counters.from_underlay.one(inner_len);
    }
    Ok(())
}
