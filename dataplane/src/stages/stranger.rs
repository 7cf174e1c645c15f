//! A frame of a sender that is no remote of its network. Where the network takes any, it goes on without being learned, and control is told,
//! which makes a remote of the sender: from then on nothing of this is run for it. Called by Classify and Decap.

use std::net::IpAddr;

use super::{Cx, decap};
use crate::counters::DropReason;
use crate::frame::Source;
use crate::plan::{InnerVlan, ReservedBits};
use crate::strangers::Stranger;
use crate::tables::{Network, Remote};
use crate::types::{MacAddr, NetworkId};
use crate::wire::eth::EthHeader;
use crate::wire::outer::VLAN_TAG;
use crate::wire::vxlan::VxlanHeader;

/// For Classify: nobody knows the sender. `vxlan` begins with the VXLAN header.
#[cold]
#[inline(never)]
pub fn of_nobody(sender: IpAddr, vxlan: &[u8], cx: &Cx<'_>) -> Result<Source, DropReason> {
    let Ok((header, inner)) = VxlanHeader::split(vxlan) else { return Err(DropReason::RemoteUnknown) };
    match cx.tables.network_by_vni(header.vni()) {
        Some((id, network)) if network.any_remote => {
            if header.has_reserved() && network.reserved_bits == ReservedBits::Refuse {
                return Err(DropReason::VxlanReservedSet);
            }
            admit((id, network), sender, inner, cx)
        }
        _ => Err(DropReason::RemoteUnknown),
    }
}

/// The sender is none of this network, which takes any.
#[cold]
#[inline(never)]
pub fn admit(
    (id, network): (NetworkId, &Network),
    sender: IpAddr,
    inner: &[u8],
    cx: &Cx<'_>,
) -> Result<Source, DropReason> {
    // Before the FDB is asked. What says that it comes from us comes from somebody else.
    let is_own = cx.tables.uplinks.iter().any(|uplink| uplink.listening.has_address(sender));
    if is_own || !Remote::may_be(sender) || network.barred.binary_search(&sender).is_ok() {
        return Err(DropReason::RemoteUnknown);
    }
    if !is_sound(network, inner) {
        return Ok(Source::Unknown); // Decap drops it, and says why; but no remote is made of it
    }
    // An address that is fixed is not a stranger's, wherever it is.
    if let Some((_, source)) = EthHeader::numbers(inner)
        && cx.fdb.lookup_fixed_at(cx.fdb.place(id, source)).is_some()
    {
        return Err(DropReason::SourceSpoofed);
    }
    cx.tables.strangers.note(Stranger { network: id, address: sender }, cx.now_s);
    Ok(Source::Unknown)
}

/// Decap will take it.
fn is_sound(network: &Network, inner: &[u8]) -> bool {
    let Some((source, ethertype)) = EthHeader::source_and_type(inner) else { return false };
    let is_tagged = EthHeader::is_tag(ethertype);
    let is_whole = match network.inner_vlan {
        _ if !is_tagged => true,
        InnerVlan::Drop => false,
        InnerVlan::Carry => true,
        InnerVlan::Strip => inner.len() >= EthHeader::LEN + VLAN_TAG,
    };
    let is_station = source != 0 && !MacAddr::number_is_group(source);
    is_whole && is_station && inner.len() <= decap::longest(network.untagged_max, is_tagged)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a test that panics has failed")]
mod tests {
    use super::*;
    use crate::plan::{NetworkPlan, Plan};
    use crate::tables::Tables;
    use crate::types::Vni;

    #[test]
    fn only_what_decap_takes_is_sound() {
        for (inner_vlan, tagged_min) in
            [(InnerVlan::Drop, usize::MAX), (InnerVlan::Carry, 14), (InnerVlan::Strip, 18)]
        {
            let network =
                NetworkPlan { inner_vlan, mtu: 1450, ..NetworkPlan::new("x", Vni::new(1).unwrap()) };
            let plan = Plan {
                workers: vec![],
                placement: Default::default(),
                balance_threshold: 85,
                uplinks: vec![],
                networks: vec![network].into(),
                endpoints: Default::default(),
                capacity: Default::default(),
                classes: Default::default(),
                control_socket: Default::default(),
                ..Plan::default()
            };
            let tables = Tables::new(&plan, 1500);
            let frame = |ethertype: [u8; 2], len: usize| {
                let mut frame = [&[2; 12][..], &ethertype, &[0; 1500]].concat();
                frame.truncate(len);
                frame
            };
            let is_sound = |frame: &[u8]| is_sound(&tables.networks[0], frame);
            for len in 0..1500 {
                let is_right = (14..=1464).contains(&len);
                assert_eq!(is_sound(&frame([8, 0], len)), is_right, "{len}, {inner_vlan:?}");
                let is_right = (tagged_min..=1468).contains(&len);
                assert_eq!(is_sound(&frame([0x81, 0], len)), is_right, "{len} tagged, {inner_vlan:?}");
            }
        }
    }
}
