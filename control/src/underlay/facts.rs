//! What the kernel's messages say about the way to a remote, as plain facts: the interface, the route, the
//! neighbour. Reads messages, does no I/O. Called by [`netlink`](super::netlink) for answers and notices.
//!
//! Link messages are read by hand: they carry dozens of attributes that every kernel release adds to, and few
//! of them matter here. A kernel newer than the parser must not take the uplink down.

use std::fmt;
use std::net::IpAddr;

use netlink_packet_core::{NLA_HEADER_SIZE, NetlinkBuffer, NlasIterator};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteNextHop, RouteNextHopFlags, RouteType,
    RouteVia,
};
use peregrine_dataplane::types::MacAddr;
use serde::Serialize;

/// `RTM_NEWLINK`, from linux/rtnetlink.h.
pub const RTM_NEWLINK: u16 = 16;
/// `RTM_DELLINK`.
pub const RTM_DELLINK: u16 = 17;

const IFINFOMSG_BYTES: usize = 16;
const IFF_UP: u32 = 1 << 0;
const IFF_LOWER_UP: u32 = 1 << 16;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINK: u16 = 5;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_LINK_NETNSID: u16 = 37;
/// In `IFLA_LINKINFO`.
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
/// In `IFLA_INFO_DATA` of a VLAN device, from linux/if_link.h.
const IFLA_VLAN_ID: u16 = 1;
const IFLA_VLAN_PROTOCOL: u16 = 5;
const ETH_P_8021Q: [u8; 2] = [0x81, 0x00];
const ETH_P_8021AD: [u8; 2] = [0x88, 0xa8];
/// Family, scope, protocol, reserved; flags. From linux/nexthop.h.
const NHMSG_BYTES: usize = 8;
const NHA_ID: u16 = 1;
const NHA_GROUP: u16 = 2;
const NHA_OIF: u16 = 5;
const NHA_GATEWAY: u16 = 6;
const NHA_ENCAP: u16 = 8;
/// A member of a group: number, weight less one, its high byte, reserved.
const NEXTHOP_GRP_BYTES: usize = 8;
/// In the flags, from linux/rtnetlink.h.
const RTNH_F_DEAD: u32 = 1;
/// Family, three prefix lengths and the like, …, flags.
const RTMSG_BYTES: usize = 12;
const RTM_F_CLONED: u32 = 0x200;
const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_METRICS: u16 = 8;
/// In `RTA_METRICS`.
const RTAX_MTU: u16 = 2;
/// Family, prefix length, flags, scope, interface. From linux/if_addr.h.
const IFADDRMSG_BYTES: usize = 8;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
/// All of them; the header has the lowest eight.
const IFA_FLAGS: u16 = 8;
const IFA_F_OPTIMISTIC: u32 = 0x04;
const IFA_F_DADFAILED: u32 = 0x08;
const IFA_F_TENTATIVE: u32 = 0x40;
/// In `IFLA_AF_SPEC`, and in that.
const AF_INET6: u16 = 10;
const IFLA_INET6_CONF: u16 = 2;
/// Which of the 32-bit words in `IFLA_INET6_CONF`, from linux/ipv6.h.
const DEVCONF_MTU6: usize = 2;

/// An interface as the kernel describes it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LinkFact {
    /// Its number.
    pub ifindex: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address; `None` when it has none.
    pub mac: Option<MacAddr>,
    /// Largest IP packet that it sends.
    pub mtu: u32,
    /// Largest IPv6 packet, where that is known: a router's advertisement may say less.
    pub mtu_ipv6: Option<u32>,
    /// Of a VLAN device: what it is of.
    pub vlan: Option<VlanFact>,
    /// Switched on (`ip link set … up`).
    pub up: bool,
    /// The wire is there.
    pub carrier: bool,
}

/// Of which interface a device is the VLAN, and which.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct VlanFact {
    /// The number of the interface below, in the same network namespace.
    pub of: u32,
    /// The VLAN's number.
    pub id: u16,
    /// What it tags with.
    pub tag: VlanTag,
}

/// The kinds of tags. Ours are the first: a device of the other kind is another VLAN, whatever its number.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub enum VlanTag {
    /// That of customers.
    #[serde(rename = "802.1Q")]
    Customer,
    /// That of providers.
    #[serde(rename = "802.1ad")]
    Service,
}

/// Whether this host has an address and may send from it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Presence {
    /// It does not have it.
    Absent,
    /// Duplicate address detection found another host that has it.
    Duplicate,
    /// Duplicate address detection is not done.
    Tentative,
    /// It may.
    Usable,
}

impl fmt::Display for Presence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Presence::Absent => "is not on this host",
            Presence::Duplicate => "cannot be used: another host has it too (duplicate address)",
            Presence::Tentative => "is not usable yet (duplicate address detection)",
            Presence::Usable => "is on this host",
        })
    }
}

/// Where a route leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteFact {
    /// To one of these; those that the kernel itself would not use are left out.
    Unicast {
        /// All of them.
        hops: Vec<HopFact>,
        /// The largest packet, where the route or a router on it says so.
        mtu: Option<u32>,
    },
    /// The destination is this host.
    Local,
    /// A route that carries no unicast packets: broadcast, blackhole and so on.
    Unusable(RouteType),
}

/// One next hop of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct HopFact {
    /// The interface it leaves through.
    pub ifindex: u32,
    /// The next router, if the destination is not on the link. Of either family (RTA_VIA).
    pub gateway: Option<IpAddr>,
    /// Its share, relative to the others'. 1 to 255: the kernel's largest, 256, counts as 255.
    pub weight: u8,
    /// The kernel puts packets that go there into others (MPLS, segment routing, tunnels).
    pub has_encap: bool,
}

/// A next-hop object.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NextHopFact {
    /// One next hop.
    Hop(HopFact),
    /// Several: the number of each object, and its weight.
    Group(Vec<(u32, u8)>),
}

/// A neighbour entry.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NeighbourFact {
    /// Its state (NUD_…).
    pub state: NeighbourState,
    /// Its link-layer address, if it is known and an Ethernet address.
    pub mac: Option<MacAddr>,
}

/// What a notice from the kernel may have changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Affects {
    /// Nothing of ours.
    Nothing,
    /// The neighbour on this interface of ours, with this address.
    Neighbour(u32, IpAddr),
    /// An interface, or any route: all must be looked up again.
    Everything,
    /// The same, and the interface of ours with this number was removed.
    Removal(u32),
}

/// Reads `RTM_NEWLINK`'s payload. `None` if it is not about an interface as such (bridge ports have messages of
/// the same type) or is cut short.
pub fn link(payload: &[u8]) -> Option<LinkFact> {
    let (header, attributes) = payload.split_at_checked(IFINFOMSG_BYTES)?;
    let word = |at: usize| header.get(at..at + 4).and_then(|b| b.try_into().ok()).map(u32::from_ne_bytes);
    if header.first() != Some(&u8::from(AddressFamily::Unspec)) {
        return None;
    }
    let (ifindex, flags) = (word(4)?, word(8)?);
    let (up, carrier) = (flags & IFF_UP != 0, flags & IFF_LOWER_UP != 0);
    let (name, mac_none, mtu_ipv6, vlan) = (String::new(), None, None, None);
    let mut fact = LinkFact { ifindex, name, mac: mac_none, mtu: 0, mtu_ipv6, vlan, up, carrier };
    let (mut below, mut is_elsewhere, mut info) = (None, false, None);
    for (kind, value) in each_attribute(attributes) {
        match kind {
            IFLA_ADDRESS => fact.mac = mac(value),
            IFLA_IFNAME => fact.name = text(value),
            IFLA_MTU => fact.mtu = value.try_into().map_or(0, u32::from_ne_bytes),
            IFLA_LINK => below = value.try_into().ok().map(u32::from_ne_bytes),
            IFLA_LINK_NETNSID => is_elsewhere = true, // `below` is then a number of another namespace
            IFLA_LINKINFO => info = vlan_info(value),
            IFLA_AF_SPEC => fact.mtu_ipv6 = mtu_ipv6_of(value),
            _ => {}
        }
    }
    if let (Some(of), Some((id, tag)), false) = (below, info, is_elsewhere) {
        fact.vlan = Some(VlanFact { of, id, tag });
    }
    Some(fact)
}

/// Number, name and alias of an interface, the last one empty if it has none.
pub fn alias(payload: &[u8]) -> Option<(u32, String, String)> {
    let (ifindex, attributes) = of_interface(payload)?;
    let (mut name, mut alias) = (String::new(), String::new());
    for (kind, value) in each_attribute(attributes) {
        match kind {
            IFLA_IFNAME => name = text(value),
            IFLA_IFALIAS => alias = text(value),
            _ => {}
        }
    }
    Some((ifindex, name, alias))
}

/// The number of the interface that one is joined to.
pub fn below(payload: &[u8]) -> Option<u32> {
    let (_, attributes) = of_interface(payload)?;
    let (_, value) = each_attribute(attributes).find(|(kind, _)| *kind == IFLA_LINK)?;
    value.try_into().ok().map(u32::from_ne_bytes)
}

/// The number of an interface, and its attributes.
fn of_interface(payload: &[u8]) -> Option<(u32, &[u8])> {
    let (header, attributes) = payload.split_at_checked(IFINFOMSG_BYTES)?;
    let ifindex = header.get(4..8)?.try_into().ok().map(u32::from_ne_bytes)?;
    Some((ifindex, attributes))
}

/// Kind and value of each attribute, up to one that is cut short.
fn each_attribute(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(NLA_HEADER_SIZE..end)?))
    })
}

fn text(value: &[u8]) -> String {
    String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned()
}

/// The VLAN's number and tag, if this is the `IFLA_LINKINFO` of a VLAN's device.
fn vlan_info(info: &[u8]) -> Option<(u16, VlanTag)> {
    let of = |bytes, wanted| each_attribute(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    if text(of(info, IFLA_INFO_KIND)?) != "vlan" {
        return None;
    }
    let data = of(info, IFLA_INFO_DATA)?;
    let id = of(data, IFLA_VLAN_ID)?.try_into().ok().map(u16::from_ne_bytes)?;
    let tags = [(ETH_P_8021Q, VlanTag::Customer), (ETH_P_8021AD, VlanTag::Service)];
    let tag = of(data, IFLA_VLAN_PROTOCOL)?;
    tags.into_iter().find(|(protocol, _)| tag == protocol).map(|(_, tag)| (id, tag))
}

fn mtu_ipv6_of(families: &[u8]) -> Option<u32> {
    let (_, family) = each_attribute(families).find(|(kind, _)| *kind == AF_INET6)?;
    let (_, words) = each_attribute(family).find(|(kind, _)| *kind == IFLA_INET6_CONF)?;
    let word = words.get(DEVCONF_MTU6 * 4..)?.get(..4)?;
    word.try_into().ok().map(u32::from_ne_bytes).filter(|mtu| *mtu > 0)
}

/// Reads the answer to a route look-up: the route that was chosen, or all of it.
pub fn route(message: &RouteMessage) -> RouteFact {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return RouteFact::Local,
        other => return RouteFact::Unusable(other),
    }
    let (mut ifindex, mut several, mut mtu) = (None, Vec::new(), None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::MultiPath(hops) => several.extend(hops.iter().filter_map(hop)),
            RouteAttribute::Metrics(metrics) => mtu = mtu_of(metrics),
            _ => {}
        }
    }
    if let Some(ifindex) = ifindex {
        let attributes = &message.attributes;
        let (gateway, has_encap) = (gateway(attributes), has_encap(attributes));
        several.push(HopFact { ifindex, gateway, weight: 1, has_encap });
    }
    RouteFact::Unicast { hops: several, mtu }
}

fn hop(hop: &RouteNextHop) -> Option<HopFact> {
    let is_dead = hop.flags.contains(RouteNextHopFlags::Dead);
    let weight = hop.hops.saturating_add(1); // rtnh_hops is one less
    (!is_dead).then(|| HopFact {
        ifindex: hop.interface_index,
        gateway: gateway(&hop.attributes),
        weight,
        has_encap: has_encap(&hop.attributes),
    })
}

fn has_encap(attributes: &[RouteAttribute]) -> bool {
    attributes.iter().any(|a| matches!(a, RouteAttribute::Encap(_) | RouteAttribute::EncapType(_)))
}

fn mtu_of(metrics: &[RouteMetric]) -> Option<u32> {
    metrics.iter().find_map(|metric| match metric {
        RouteMetric::Mtu(mtu) if *mtu > 0 => Some(*mtu),
        _ => None,
    })
}

fn gateway(attributes: &[RouteAttribute]) -> Option<IpAddr> {
    attributes.iter().find_map(|a| match a {
        RouteAttribute::Gateway(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Gateway(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        RouteAttribute::Via(RouteVia::Inet(ip)) => Some(IpAddr::V4(*ip)),
        RouteAttribute::Via(RouteVia::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

/// Reads `RTM_NEWROUTE`'s payload where it is an exception that ICMP made: the interface, the remote, the path's MTU.
pub fn exception(payload: &[u8]) -> Option<(u32, IpAddr, u32)> {
    let (header, attributes) = payload.split_at_checked(RTMSG_BYTES)?;
    let flags = header.get(8..)?.try_into().ok().map(u32::from_ne_bytes)?;
    let word = |value: &[u8]| value.try_into().ok().map(u32::from_ne_bytes);
    let (mut ifindex, mut remote, mut mtu) = (None, None, None);
    for (kind, value) in each_attribute(attributes) {
        match kind {
            RTA_DST => remote = address(value),
            RTA_OIF => ifindex = word(value),
            RTA_METRICS => {
                mtu = each_attribute(value).find(|(kind, _)| *kind == RTAX_MTU).and_then(|(_, v)| word(v));
            }
            _ => {}
        }
    }
    (flags & RTM_F_CLONED != 0).then_some((ifindex?, remote?, mtu?))
}

/// What this `RTM_NEWADDR`'s payload says about an address: nothing if it is of another one.
pub fn presence(payload: &[u8], wanted: IpAddr) -> Presence {
    let Some((&[_, _, low_flags, ..], attributes)) = payload.split_first_chunk::<IFADDRMSG_BYTES>() else {
        return Presence::Absent;
    };
    let value_of =
        |wanted| each_attribute(attributes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value);
    // On a point-to-point link, IFA_ADDRESS is the other end's.
    if value_of(IFA_LOCAL).or_else(|| value_of(IFA_ADDRESS)).and_then(address) != Some(wanted) {
        return Presence::Absent;
    }
    let all_flags = value_of(IFA_FLAGS).and_then(|value| value.try_into().ok()).map(u32::from_ne_bytes);
    let flags = all_flags.unwrap_or_else(|| low_flags.into());
    let has = |flag: u32| flags & flag != 0;
    match () {
        () if wanted.is_ipv4() => Presence::Usable,
        () if has(IFA_F_DADFAILED) => Presence::Duplicate,
        // What is optimistic is used meanwhile (RFC 4429).
        () if has(IFA_F_TENTATIVE) && !has(IFA_F_OPTIMISTIC) => Presence::Tentative,
        () => Presence::Usable,
    }
}

/// The number of a route's next-hop object, if it has one.
pub fn next_hop_object(message: &RouteMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::NhId(id) => Some(*id),
        _ => None,
    })
}

/// `RTM_GETNEXTHOP`'s payload for one object.
pub fn next_hop_question(id: u32) -> Vec<u8> {
    let mut bytes = vec![0; NHMSG_BYTES];
    bytes.extend(8u16.to_ne_bytes());
    bytes.extend(NHA_ID.to_ne_bytes());
    bytes.extend(id.to_ne_bytes());
    bytes
}

/// Reads `RTM_NEWNEXTHOP`'s payload. `None` if the kernel itself sends nothing there: a blackhole, a dead link.
pub fn next_hop(payload: &[u8]) -> Option<NextHopFact> {
    let (header, attributes) = payload.split_at_checked(NHMSG_BYTES)?;
    let flags = header.get(4..)?.try_into().ok().map(u32::from_ne_bytes)?;
    let (mut ifindex, mut gateway, mut members, mut has_encap) = (None, None, None, false);
    for (kind, value) in each_attribute(attributes) {
        match kind {
            NHA_ENCAP => has_encap = true,
            NHA_GROUP => members = Some(value.chunks_exact(NEXTHOP_GRP_BYTES).filter_map(member).collect()),
            NHA_OIF => ifindex = value.try_into().ok().map(u32::from_ne_bytes),
            NHA_GATEWAY => gateway = address(value),
            _ => {}
        }
    }
    match (members, ifindex) {
        (Some(members), _) => Some(NextHopFact::Group(members)),
        (None, Some(ifindex)) if flags & RTNH_F_DEAD == 0 => {
            Some(NextHopFact::Hop(HopFact { ifindex, gateway, weight: 1, has_encap }))
        }
        _ => None,
    }
}

fn member(bytes: &[u8]) -> Option<(u32, u8)> {
    let (id, rest) = bytes.split_at_checked(4)?;
    let [low, high, ..] = *rest else { return None };
    let weight = if high == 0 { low.saturating_add(1) } else { u8::MAX };
    Some((u32::from_ne_bytes(id.try_into().ok()?), weight))
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    let four = |bytes: &[u8]| <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    four(bytes).or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

/// Reads a neighbour entry.
pub fn neighbour(message: &NeighbourMessage) -> NeighbourFact {
    let mac = message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::LinkLayerAddress(bytes) => mac(bytes),
        _ => None,
    });
    NeighbourFact { state: message.header.state, mac }
}

fn neighbour_address(message: &NeighbourMessage) -> Option<IpAddr> {
    message.attributes.iter().find_map(|a| match a {
        NeighbourAttribute::Destination(NeighbourAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
        NeighbourAttribute::Destination(NeighbourAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
        _ => None,
    })
}

/// An Ethernet address that a station can have.
fn mac(bytes: &[u8]) -> Option<MacAddr> {
    let mac = MacAddr(bytes.try_into().ok()?);
    (!mac.is_zero() && !mac.is_group()).then_some(mac)
}

/// What a notice changes for uplinks on these interfaces. A message that is not understood may have changed any route.
pub fn affects(message: &[u8], ifindexes: &[u32]) -> Affects {
    let Ok(buffer) = NetlinkBuffer::new_checked(message) else { return Affects::Everything };
    match buffer.message_type() {
        // Another interface that goes down takes its IPv4 routes with it without a word about them, and the way to a
        // remote may then lead over ours.
        kind @ (RTM_NEWLINK | RTM_DELLINK) => match link(buffer.payload()) {
            Some(LinkFact { ifindex, .. }) if kind == RTM_DELLINK && ifindexes.contains(&ifindex) => {
                Affects::Removal(ifindex)
            }
            Some(_) => Affects::Everything,
            None => Affects::Nothing, // of a bridge's port
        },
        _ => match super::netlink::parse(message) {
            Some(RouteNetlinkMessage::NewNeighbour(n) | RouteNetlinkMessage::DelNeighbour(n)) => {
                match neighbour_address(&n) {
                    Some(address) if ifindexes.contains(&n.header.ifindex) => {
                        Affects::Neighbour(n.header.ifindex, address)
                    }
                    _ => Affects::Nothing,
                }
            }
            _ => Affects::Everything,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_core::NetlinkMessage;
    use netlink_packet_route::neighbour::NeighbourHeader;

    /// `RTM_NEWLINK` of a veth: family, type 1, index 7, flags; address, name, mtu, and an attribute cut short.
    fn newlink(family: u8, flags: u32) -> Vec<u8> {
        let mut bytes = vec![family, 0, 1, 0];
        bytes.extend(7u32.to_ne_bytes());
        bytes.extend(flags.to_ne_bytes());
        bytes.extend([0; 4]);
        bytes.extend([10, 0, 1, 0, 2, 0, 0, 0, 0, 1, 0, 0]);
        bytes.extend([8, 0, 3, 0, b'o', b'v', b'0', 0]);
        bytes.extend([8, 0, 4, 0]);
        bytes.extend(1500u32.to_ne_bytes());
        bytes.extend([0xff, 0, 99, 0]);
        bytes
    }

    fn framed(kind: u16, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::from((16 + payload.len() as u32).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend([0; 10]);
        bytes.extend(payload);
        bytes
    }

    #[test]
    fn a_link_message_is_read_up_to_what_is_not_understood() {
        let fact = link(&newlink(0, 0x1_1043)).unwrap();
        let (name, mac) = ("ov0".to_owned(), Some(MacAddr([2, 0, 0, 0, 0, 1])));
        let (mtu_ipv6, vlan) = (None, None);
        assert_eq!(
            fact,
            LinkFact { ifindex: 7, name, mac, mtu: 1500, mtu_ipv6, vlan, up: true, carrier: true }
        );
        let fact = link(&newlink(0, 0x1003)).unwrap();
        assert!(fact.up && !fact.carrier);
    }

    #[test]
    fn link_messages_cut_anywhere_do_no_harm() {
        let whole = newlink(0, 1);
        for len in 0..whole.len() {
            let fact = link(&whole[..len]);
            assert_eq!(fact.is_some(), len >= IFINFOMSG_BYTES, "{len}");
            let _ = affects(&framed(RTM_NEWLINK, &whole[..len]), &[7]);
            let _ = affects(&whole[..len], &[7]);
        }
    }

    #[test]
    fn a_bridge_port_that_leaves_its_bridge_is_not_an_interface_that_is_gone() {
        assert_eq!(affects(&framed(RTM_DELLINK, &newlink(7, 1)), &[7]), Affects::Nothing);
        assert_eq!(affects(&framed(RTM_DELLINK, &newlink(0, 1)), &[6, 7]), Affects::Removal(7));
        assert_eq!(
            affects(&framed(RTM_DELLINK, &newlink(0, 1)), &[8]),
            Affects::Everything,
            "routes go with it"
        );
        assert_eq!(affects(&framed(RTM_NEWLINK, &newlink(0, 1)), &[7]), Affects::Everything);
    }

    fn neighbour_notice(ifindex: u32) -> Vec<u8> {
        let mut message = NeighbourMessage::default();
        message.header = NeighbourHeader {
            family: AddressFamily::Inet,
            ifindex,
            state: NeighbourState::Stale,
            ..Default::default()
        };
        message.attributes = vec![
            NeighbourAttribute::Destination(NeighbourAddress::Inet([10, 0, 0, 2].into())),
            NeighbourAttribute::LinkLayerAddress(vec![2, 0, 0, 0, 0, 9]),
        ];
        let mut message = NetlinkMessage::from(RouteNetlinkMessage::NewNeighbour(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        bytes
    }

    #[test]
    fn only_neighbours_on_our_interface_matter() {
        let bytes = neighbour_notice(7);
        assert_eq!(affects(&bytes, &[7]), Affects::Neighbour(7, [10, 0, 0, 2].into()));
        assert_eq!(affects(&bytes, &[6, 8]), Affects::Nothing);
        assert_eq!(affects(&bytes, &[6, 7]), Affects::Neighbour(7, [10, 0, 0, 2].into()));
    }

    #[test]
    fn an_unknown_notice_makes_us_look_again() {
        assert_eq!(affects(&framed(104, &[0; 8]), &[7]), Affects::Everything); // RTM_NEWNEXTHOP
        assert_eq!(affects(&framed(24, &[2, 24, 0, 0, 254, 2, 0, 1, 0, 0, 0, 0]), &[7]), Affects::Everything);
    }

    fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::from((4 + value.len() as u16).to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(value);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    }

    /// What the kernel tells of `ip link add link ov0 name ov0.5 type vlan id 5`, with this kind and protocol.
    fn vlan_link(kind: &[u8], protocol: [u8; 2], more: &[u8]) -> LinkFact {
        link(&vlan_message(kind, protocol, more)).unwrap()
    }

    fn vlan_message(kind: &[u8], protocol: [u8; 2], more: &[u8]) -> Vec<u8> {
        let data = [attribute(1, &5u16.to_ne_bytes()), attribute(5, &protocol)].concat();
        let info = [attribute(1, kind), attribute(0x8000 | 2, &data)].concat();
        let mut bytes = newlink(0, 0x1_1043);
        bytes.truncate(bytes.len() - 4); // but for the attribute cut short
        bytes.extend(attribute(5, &3u32.to_ne_bytes()));
        bytes.extend(attribute(0x8000 | 18, &info));
        bytes.extend(more);
        bytes
    }

    #[test]
    fn a_vlan_cut_off_is_another_or_none() {
        let whole = vlan_message(b"vlan\0", [0x81, 0x00], &[]);
        for len in IFINFOMSG_BYTES..whole.len() {
            assert_eq!(link(&whole[..len]).unwrap().vlan, None, "{len}");
        }
        assert!(link(&whole).unwrap().vlan.is_some());
    }

    #[test]
    fn a_vlan_device_tells_of_which_interface_and_which_vlan() {
        let expected = |tag| Some(VlanFact { of: 3, id: 5, tag });
        assert_eq!(vlan_link(b"vlan\0", [0x81, 0x00], &[]).vlan, expected(VlanTag::Customer));
        assert_eq!(vlan_link(b"vlan\0", [0x88, 0xa8], &[]).vlan, expected(VlanTag::Service));
        assert_eq!(vlan_link(b"vlan\0", [0x91, 0x00], &[]).vlan, None);
        assert_eq!(vlan_link(b"macvlan\0", [0x81, 0x00], &[]).vlan, None);
        let netnsid = attribute(37, &0u32.to_ne_bytes());
        assert_eq!(vlan_link(b"vlan\0", [0x81, 0x00], &netnsid).vlan, None, "of another namespace's 3");
    }

    #[test]
    fn the_mtu_for_ipv6_is_the_third_word_of_its_settings() {
        let words: Vec<u8> = [0u32, 64, 1400, 1].iter().flat_map(|word| word.to_ne_bytes()).collect();
        let inet6 = attribute(10, &[attribute(1, &[0; 4]), attribute(2, &words)].concat());
        let families = attribute(26, &[attribute(2, &[0; 8]), inet6].concat());
        assert_eq!(vlan_link(b"vlan\0", [0x81, 0x00], &families).mtu_ipv6, Some(1400));
        assert_eq!(vlan_link(b"vlan\0", [0x81, 0x00], &families[..40]).mtu_ipv6, None);
    }

    /// An `RTM_NEWROUTE` for 192.168.7.7/32 of this type, with these attributes.
    fn route_of(kind: u8, attributes: &[u8]) -> RouteFact {
        let header = [2, 32, 0, 0, 254, 2, 0, kind, 0, 0, 0, 0];
        let bytes = framed(24, &[&header[..], attributes].concat());
        match super::super::netlink::parse(&bytes) {
            Some(RouteNetlinkMessage::NewRoute(message)) => route(&message),
            other => panic!("{other:?}"),
        }
    }

    fn via(ifindex: u32, gateway: Option<&str>, weight: u8) -> HopFact {
        let gateway = gateway.map(|text| text.parse().unwrap());
        HopFact { ifindex, gateway, weight, has_encap: false }
    }

    /// `encap ip dst 10.9.0.9`, as the kernel tells it, in these attributes.
    fn encap(kind: u16, value: u16) -> Vec<u8> {
        let tunnel = attribute(2, &[10, 9, 0, 9]);
        [attribute(kind, &2u16.to_ne_bytes()), attribute(value, &tunnel)].concat()
    }

    #[test]
    fn that_a_next_hop_encapsulates_is_seen_wherever_it_is_said() {
        let has_encap = |fact| match fact {
            RouteFact::Unicast { hops, .. } => hops.iter().map(|hop| hop.has_encap).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        let oif = attribute(4, &7u32.to_ne_bytes());
        assert_eq!(has_encap(route_of(1, &[oif.clone(), encap(21, 22)].concat())), [true]);
        assert_eq!(has_encap(route_of(1, &oif)), [false]);
        let mut one = nexthop(0, 0, 7, [10, 0, 0, 1]);
        one.extend(encap(21, 22));
        let length = u16::try_from(one.len()).unwrap();
        one[..2].copy_from_slice(&length.to_ne_bytes());
        let several = [one, nexthop(0, 0, 7, [10, 0, 0, 2])].concat();
        assert_eq!(has_encap(route_of(1, &attribute(9, &several))), [true, false]);
        let object = [vec![2, 0, 0, 0, 0, 0, 0, 0], attribute(5, &7u32.to_ne_bytes()), encap(7, 8)].concat();
        let hop = HopFact { has_encap: true, ..via(7, None, 1) };
        assert_eq!(next_hop(&object), Some(NextHopFact::Hop(hop)));
    }

    #[test]
    fn routes_are_told_apart() {
        let oif = attribute(4, &7u32.to_ne_bytes());
        let gateway = attribute(5, &[10, 0, 0, 1]);
        let one = |hop| RouteFact::Unicast { hops: vec![hop], mtu: None };
        assert_eq!(route_of(1, &oif), one(via(7, None, 1)));
        let both = [oif.clone(), gateway].concat();
        assert_eq!(route_of(1, &both), one(via(7, Some("10.0.0.1"), 1)));
        assert_eq!(route_of(2, &oif), RouteFact::Local);
        assert_eq!(route_of(3, &oif), RouteFact::Unusable(RouteType::Broadcast));
        assert_eq!(route_of(6, &[]), RouteFact::Unusable(RouteType::BlackHole));
    }

    #[test]
    fn an_ipv4_route_can_have_an_ipv6_gateway() {
        let address = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
        let mut value = Vec::from(10u16.to_ne_bytes());
        value.extend(address);
        let attributes = [attribute(4, &7u32.to_ne_bytes()), attribute(18, &value)].concat();
        let hops = vec![via(7, Some("fe80::1"), 1)];
        assert_eq!(route_of(1, &attributes), RouteFact::Unicast { hops, mtu: None });
    }

    #[test]
    fn a_path_mtu_is_read_from_the_metrics() {
        let metrics = [attribute(1, &0u32.to_ne_bytes()), attribute(2, &1400u32.to_ne_bytes())].concat();
        let attributes = [attribute(4, &7u32.to_ne_bytes()), attribute(8, &metrics)].concat();
        let hops = vec![via(7, None, 1)];
        assert_eq!(route_of(1, &attributes), RouteFact::Unicast { hops, mtu: Some(1400) });
    }

    /// One entry of `RTA_MULTIPATH`: length, flags, weight less one, interface; attributes.
    fn nexthop(flags: u8, hops: u8, ifindex: u32, gateway: [u8; 4]) -> Vec<u8> {
        let attributes = attribute(5, &gateway);
        let mut bytes = Vec::from((8 + attributes.len() as u16).to_ne_bytes());
        bytes.extend([flags, hops]);
        bytes.extend(ifindex.to_ne_bytes());
        bytes.extend(attributes);
        bytes
    }

    #[test]
    fn several_next_hops_have_weights_and_dead_ones_do_not_count() {
        const DEAD: u8 = 1;
        const ONLINK: u8 = 4;
        const LINKDOWN: u8 = 16; // the kernel uses it, unless it is dead as well
        let hops = [
            nexthop(0, 0, 7, [10, 0, 0, 1]),
            nexthop(ONLINK, 4, 7, [10, 0, 0, 2]),
            nexthop(DEAD | LINKDOWN, 0, 8, [10, 1, 0, 1]),
            nexthop(LINKDOWN, 255, 9, [10, 2, 0, 1]),
        ]
        .concat();
        let expected =
            vec![via(7, Some("10.0.0.1"), 1), via(7, Some("10.0.0.2"), 5), via(9, Some("10.2.0.1"), 255)];
        let several = attribute(9, &hops);
        assert_eq!(route_of(1, &several), RouteFact::Unicast { hops: expected, mtu: None });
        let dead = attribute(9, &nexthop(DEAD, 0, 8, [10, 1, 0, 1]));
        assert_eq!(route_of(1, &dead), RouteFact::Unicast { hops: vec![], mtu: None });
    }

    #[test]
    fn an_exception_has_an_interface_a_remote_and_an_mtu() {
        let remote: std::net::Ipv6Addr = "fd07::2".parse().unwrap();
        let of = |flags: u32, metric: u16| {
            let metrics = attribute(metric, &1400u32.to_ne_bytes());
            let header = [vec![10, 128, 0, 0, 254, 2, 0, 1], Vec::from(flags.to_ne_bytes())].concat();
            let (oif, metrics) = (attribute(4, &7u32.to_ne_bytes()), attribute(8, &metrics));
            [header, attribute(1, &remote.octets()), oif, metrics].concat()
        };
        let whole = of(0x200, 2);
        assert_eq!(exception(&whole), Some((7, remote.into(), 1400)));
        assert_eq!(exception(&of(0, 2)), None, "a route of somebody's");
        assert_eq!(exception(&of(0x200, 1)), None, "a redirect");
        for len in 0..whole.len() {
            assert_eq!(exception(&whole[..len]), None, "{len}");
        }
    }

    #[test]
    fn of_two_ends_ours_is_the_local_one() {
        let (local, other) = ([10, 0, 0, 1], [10, 0, 0, 2]);
        let header = [2, 32, 0, 0, 7, 0, 0, 0];
        let ends = [&header[..], &attribute(1, &other), &attribute(2, &local)].concat();
        assert_eq!(presence(&ends, local.into()), Presence::Usable);
        assert_eq!(presence(&ends, other.into()), Presence::Absent);
        assert_eq!(presence(&header[..4], local.into()), Presence::Absent);
    }

    #[test]
    fn an_address_that_is_not_known_to_be_ours_alone_is_not_used() {
        let six: std::net::Ipv6Addr = "fd00::1".parse().unwrap();
        let of = |low: u8, all: Option<u32>| {
            let flags = all.map(|all| attribute(8, &all.to_ne_bytes())).unwrap_or_default();
            let message = [&[10, 64, low, 0, 7, 0, 0, 0], &attribute(1, &six.octets())[..], &flags].concat();
            presence(&message, six.into())
        };
        assert_eq!(of(0x80, None), Presence::Usable, "permanent");
        assert_eq!(of(0xc0, None), Presence::Tentative);
        assert_eq!(of(0xc4, None), Presence::Usable, "optimistic");
        assert_eq!(of(0xc8, None), Presence::Duplicate);
        assert_eq!(of(0, Some(0x240)), Presence::Tentative);
        assert_eq!(of(0xc8, Some(0x80)), Presence::Usable, "the attribute counts");
        assert!(Presence::Usable > Presence::Tentative && Presence::Tentative > Presence::Absent);
    }

    #[test]
    fn a_next_hop_object_is_a_hop_a_group_or_nothing() {
        let of = |flags: u32, attributes: &[Vec<u8>]| {
            let header = [vec![2, 0, 0, 0], Vec::from(flags.to_ne_bytes())].concat();
            next_hop(&[header, attributes.concat()].concat())
        };
        let (oif, gateway) = (attribute(5, &7u32.to_ne_bytes()), attribute(6, &[10, 0, 0, 1]));
        let hop = Some(NextHopFact::Hop(via(7, Some("10.0.0.1"), 1)));
        assert_eq!(of(0, &[oif.clone(), gateway.clone()]), hop);
        assert_eq!(of(0, std::slice::from_ref(&oif)), Some(NextHopFact::Hop(via(7, None, 1))));
        assert_eq!(of(1, &[oif, gateway]), None, "dead");
        assert_eq!(of(0, &[attribute(4, &[])]), None, "a blackhole");
        let member = |id: u32, low, high| [&id.to_ne_bytes()[..], &[low, high, 0, 0]].concat();
        let members = [member(1, 1, 0), member(2, 255, 0), member(3, 0, 1)].concat();
        let group = NextHopFact::Group(vec![(1, 2), (2, 255), (3, 255)]);
        assert_eq!(of(0, &[attribute(2, &members)]), Some(group));
        for len in 0..16 {
            assert_eq!(next_hop(&[0; 16][..len]), None);
        }
    }

    #[test]
    fn addresses_that_no_station_has_are_no_neighbours() {
        for bad in [&[0u8; 6][..], &[0xff; 6], &[1, 0, 0x5e, 0, 0, 1], &[2, 0, 0], &[0; 20]] {
            assert_eq!(mac(bad), None);
        }
    }
}
