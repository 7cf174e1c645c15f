//! What the kernel's messages say about the way to a remote, as plain facts: the interface, the route, the
//! neighbour. Reads messages, does no I/O. Called by [`netlink`](super::netlink) for answers and notices.
//!
//! Link messages are read by hand: they carry dozens of attributes that every kernel release adds to, and three
//! of them matter here. A kernel newer than the parser must not take the uplink down.

use std::net::IpAddr;

use netlink_packet_core::{NetlinkBuffer, NlasIterator};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteType, RouteVia};
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
    /// Switched on (`ip link set … up`).
    pub up: bool,
    /// The wire is there.
    pub carrier: bool,
}

/// Where a route leads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RouteFact {
    /// Over interface `ifindex`; to the gateway, or straight to the destination.
    Unicast {
        /// The interface it leaves through.
        ifindex: u32,
        /// The next router, if the destination is not on the link.
        gateway: Option<IpAddr>,
    },
    /// The destination is this host.
    Local,
    /// A route that carries no unicast packets: broadcast, blackhole and so on.
    Unusable(RouteType),
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
    let mut fact = LinkFact { ifindex, name: String::new(), mac: None, mtu: 0, up, carrier };
    for attribute in NlasIterator::new(attributes) {
        let Ok(attribute) = attribute else { break };
        let value = attribute.value();
        match attribute.kind() {
            IFLA_ADDRESS => fact.mac = mac(value),
            IFLA_IFNAME => {
                fact.name = String::from_utf8_lossy(value.strip_suffix(&[0]).unwrap_or(value)).into_owned();
            }
            IFLA_MTU => fact.mtu = value.try_into().map_or(0, u32::from_ne_bytes),
            _ => {}
        }
    }
    Some(fact)
}

/// Reads the answer to a route look-up.
pub fn route(message: &RouteMessage) -> RouteFact {
    match message.header.kind {
        RouteType::Unicast => {}
        RouteType::Local => return RouteFact::Local,
        other => return RouteFact::Unusable(other),
    }
    let ifindex = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::Oif(index) => Some(*index),
        _ => None,
    });
    RouteFact::Unicast { ifindex: ifindex.unwrap_or(0), gateway: gateway(&message.attributes) }
}

/// Of a route with several next hops, the one over `ifindex`.
pub fn route_through(message: &RouteMessage, ifindex: u32) -> Option<RouteFact> {
    let hops = message.attributes.iter().find_map(|a| match a {
        RouteAttribute::MultiPath(hops) => Some(hops),
        _ => None,
    })?;
    let hop = hops.iter().find(|hop| hop.interface_index == ifindex)?;
    Some(RouteFact::Unicast { ifindex, gateway: gateway(&hop.attributes) })
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
        let mac = Some(MacAddr([2, 0, 0, 0, 0, 1]));
        assert_eq!(
            fact,
            LinkFact { ifindex: 7, name: "ov0".into(), mac, mtu: 1500, up: true, carrier: true }
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

    #[test]
    fn routes_are_told_apart() {
        let mut message = RouteMessage::default();
        message.header.kind = RouteType::Unicast;
        message.attributes.push(RouteAttribute::Oif(7));
        assert_eq!(route(&message), RouteFact::Unicast { ifindex: 7, gateway: None });
        message.attributes.push(RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into())));
        assert_eq!(route(&message), RouteFact::Unicast { ifindex: 7, gateway: Some([10, 0, 0, 1].into()) });
        message.header.kind = RouteType::Local;
        assert_eq!(route(&message), RouteFact::Local);
        message.header.kind = RouteType::Broadcast;
        assert_eq!(route(&message), RouteFact::Unusable(RouteType::Broadcast));
    }

    #[test]
    fn addresses_that_no_station_has_are_no_neighbours() {
        for bad in [&[0u8; 6][..], &[0xff; 6], &[1, 0, 0x5e, 0, 0, 1], &[2, 0, 0], &[0; 20]] {
            assert_eq!(mac(bad), None);
        }
    }
}
