//! Where things stand in an inner frame: the IP packet behind VLAN tags, and what it carries behind extension headers. For the few
//! frames that are answered or changed; the path of all others has [`Headers`](super::flow::Headers).

use super::checksum::Sum;
use super::eth::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthHeader};

/// IPv6 header, bytes.
pub const IPV6_LEN: usize = 40;
/// Protocol number of ICMP.
pub const PROTOCOL_ICMP: u8 = 1;
/// Protocol number of ICMPv6.
pub const PROTOCOL_ICMPV6: u8 = 58;

/// Extension headers that are walked through, at most: RFC 8200 §4.1 has no more than so many in a packet that follows it.
const EXTENSIONS_MAX: usize = 8;

/// An IP packet in a frame, as far as the frame's bytes are at hand.
#[derive(Clone, Copy, Debug)]
pub enum Packet<'a> {
    /// IPv4: its header without options, and all of it.
    V4(&'a [u8; 20], &'a [u8]),
    /// IPv6.
    V6(&'a [u8; IPV6_LEN], &'a [u8]),
}

/// What an IP packet carries.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Upper {
    /// Its protocol.
    pub protocol: u8,
    /// Where it begins in the packet.
    pub start: usize,
}

impl<'a> Packet<'a> {
    /// The packet and where it begins, behind up to two VLAN tags. `None` if it is none, or its version is not that of the EtherType.
    pub fn find(frame: &'a [u8]) -> Option<(Packet<'a>, usize)> {
        let (eth, _) = EthHeader::split(frame)?;
        let (mut ethertype, mut start) = (eth.ethertype(), EthHeader::LEN);
        for _ in 0..2 {
            if matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
                ethertype = u16::from_be_bytes(*frame.get(start + 2..)?.first_chunk()?);
                start += 4;
            }
        }
        let packet = frame.get(start..)?;
        let version = packet.first()? >> 4;
        let found = match (ethertype, version) {
            (ETHERTYPE_IPV4, 4) => Packet::V4(packet.first_chunk()?, packet),
            (ETHERTYPE_IPV6, 6) => Packet::V6(packet.first_chunk()?, packet),
            _ => return None,
        };
        Some((found, start))
    }

    /// Its length, as it says itself.
    pub fn total_len(&self) -> usize {
        match self {
            Packet::V4(header, _) => usize::from(u16::from_be_bytes([header[2], header[3]])),
            Packet::V6(header, _) => IPV6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]])),
        }
    }

    /// What it carries. `None` for a fragment that is not the first, and for headers that are malformed, more than
    /// `EXTENSIONS_MAX`, or not at hand.
    pub fn upper(&self) -> Option<Upper> {
        match self {
            Packet::V4(header, _) => {
                let len = usize::from(header[0] & 0xf) * 4;
                let offset = u16::from_be_bytes([header[6], header[7]]) & 0x1fff;
                (len >= 20 && offset == 0).then_some(Upper { protocol: header[9], start: len })
            }
            Packet::V6(header, packet) => upper_of_ipv6(header[6], packet),
        }
    }
}

/// Walks through the extension headers (RFC 8200 §4).
fn upper_of_ipv6(first: u8, packet: &[u8]) -> Option<Upper> {
    let (mut protocol, mut start) = (first, IPV6_LEN);
    for _ in 0..EXTENSIONS_MAX {
        let words = match protocol {
            // Hop-by-hop options, routing, destination options, mobility.
            0 | 43 | 60 | 135 => 8,
            // Fragment: its length is fixed, and where others have theirs is nothing.
            44 => 0,
            // Authentication (RFC 4302 §2.2): in words of four bytes, and two of them not counted.
            51 => 4,
            _ => return Some(Upper { protocol, start }),
        };
        let [next, len, high, low] = *packet.get(start..)?.first_chunk::<4>()?;
        if protocol == 44 && u16::from_be_bytes([high, low]) & 0xfff8 != 0 {
            return None;
        }
        start += 8 + usize::from(len) * words;
        protocol = next;
    }
    None
}

/// The sum of an IPv6 pseudo header (RFC 8200 §8.1): both addresses as they stand in the header, length and protocol of what follows.
pub fn pseudo_header_v6(addresses: &[u8], len: u16, protocol: u8) -> Sum {
    Sum::ZERO.bytes(addresses).word(len).word(u16::from(protocol))
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;
    use proptest::prelude::*;

    fn eth_ipv6(first: u8, rest: &[u8]) -> Vec<u8> {
        let mut frame = vec![2; 12];
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, rest.len() as u8, first, 64]);
        frame.extend([0xfd; 32]);
        frame.extend(rest);
        frame
    }

    #[test]
    fn the_upper_layer_is_found_behind_tags_and_extensions() {
        let mut plain = Vec::new();
        PacketBuilder::ethernet2([2; 6], [4; 6])
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .tcp(1, 2, 3, 4)
            .write(&mut plain, &[])
            .unwrap();
        for tags in 0..3 {
            let (packet, start) = Packet::find(&plain).unwrap();
            assert_eq!((start, packet.total_len()), (14 + 4 * tags, 40));
            assert_eq!(packet.upper(), Some(Upper { protocol: 6, start: 20 }));
            plain.splice(12..12, [0x81, 0, 0, 7]);
        }
        assert!(Packet::find(&plain).is_none(), "three tags");
        let (hop_by_hop, fragment, auth) =
            ([44, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], [51, 0, 0, 1, 0, 0, 0, 9], [6, 4, 0, 0]);
        let all = [&hop_by_hop[..], &fragment, &auth, &[0; 20], &[0xaa; 20]].concat();
        let frame = eth_ipv6(0, &all);
        let (packet, start) = Packet::find(&frame).unwrap();
        assert_eq!((start, packet.total_len()), (14, 40 + all.len()));
        assert_eq!(packet.upper(), Some(Upper { protocol: 6, start: 40 + 16 + 8 + 24 }));
    }

    #[test]
    fn later_fragments_and_endless_headers_have_none() {
        let upper = |frame: &[u8]| Packet::find(frame).unwrap().0.upper();
        assert_eq!(upper(&eth_ipv6(44, &[6, 0, 0, 8, 0, 0, 0, 0])), None);
        assert_eq!(upper(&eth_ipv6(60, &[60, 0, 0, 0, 0, 0, 0, 0].repeat(9))), None);
        assert_eq!(upper(&eth_ipv6(60, &[6, 0, 0])), None, "not at hand");
        let mut v4 = vec![2; 12];
        v4.extend([8, 0, 0x45, 0, 0, 20, 0, 0, 0, 1]);
        v4.resize(34, 0);
        assert_eq!(upper(&v4), None);
    }

    proptest! {
        #[test]
        fn any_bytes_will_do(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), v6: bool) {
            if bytes.len() > 14 {
                bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
                bytes[14] = bytes[14] & 0xf | if v6 { 0x60 } else { 0x40 };
            }
            if let Some((packet, start)) = Packet::find(&bytes) {
                prop_assert!(start < bytes.len());
                prop_assert!(packet.upper().is_none_or(|upper| upper.start >= 20));
            }
        }
    }
}
