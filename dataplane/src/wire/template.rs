//! The outer headers put on: templates made once for each path, of which a frame's own fields are written only. Used by
//! `stages/encap.rs`, and by the generator.
//!
//! There are four forms: IPv4 or IPv6, untagged or with one IEEE 802.1Q tag. The length of a template is its form: what stands where
//! follows from it while compiling, and the usual form, untagged IPv4, pays nothing for the others.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::eth::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_VLAN, EthHeader};
use super::ip::{Ipv4Header, Ipv6Header, PROTOCOL_UDP};
use super::udp::UdpHeader;
use super::vxlan::VxlanHeader;
use crate::types::{MacAddr, Vni};

/// Bytes in front of the inner frame when the underlay is IPv4: Ethernet 14, IPv4 20, UDP 8, VXLAN 8.
pub const OVERHEAD_IPV4: usize = EthHeader::LEN + Ipv4Header::LEN + UdpHeader::LEN + VxlanHeader::LEN;
/// The same when it is IPv6, whose header has 40.
pub const OVERHEAD_IPV6: usize = EthHeader::LEN + Ipv6Header::LEN + UdpHeader::LEN + VxlanHeader::LEN;
/// Bytes of an IEEE 802.1Q tag.
pub const VLAN_TAG: usize = 4;

const OVERHEAD_IPV4_TAGGED: usize = OVERHEAD_IPV4 + VLAN_TAG;
const OVERHEAD_IPV6_TAGGED: usize = OVERHEAD_IPV6 + VLAN_TAG;

/// What a template is made of.
#[derive(Clone, Copy, Debug)]
pub struct OuterFields<A = Ipv4Addr> {
    /// Next hop's link-layer address.
    pub destination_mac: MacAddr,
    /// Our interface's link-layer address.
    pub source_mac: MacAddr,
    /// Our VTEP address.
    pub source: A,
    /// The remote VTEP.
    pub destination: A,
    /// UDP destination port.
    pub port: u16,
    /// Time to live, or hop limit.
    pub ttl: u8,
}

impl<A> OuterFields<A> {
    fn with<B>(&self, source: B, destination: B) -> OuterFields<B> {
        let OuterFields { destination_mac, source_mac, port, ttl, .. } = *self;
        OuterFields { destination_mac, source_mac, source, destination, port, ttl }
    }
}

/// Outer headers of `N` bytes, ready but for lengths, source port and VNI. DSCP and ECN are 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterTemplate<const N: usize = OVERHEAD_IPV4> {
    bytes: [u8; N],
    /// Sum of the IPv4 header with total length and checksum zero.
    ip_sum: Sum,
    /// What the UDP checksum covers of the IP header, but the length.
    pseudo: Sum,
}

impl OuterTemplate {
    /// Untagged IPv4. See [`OuterHeaders`] for the others.
    pub fn new(fields: &OuterFields) -> OuterTemplate {
        OuterTemplate::ipv4(fields, &[])
    }
}

impl<const N: usize> OuterTemplate<N> {
    const VXLAN: usize = N - VxlanHeader::LEN;
    const UDP: usize = OuterTemplate::<N>::VXLAN - UdpHeader::LEN;
    const IS_IPV6: bool = N >= OVERHEAD_IPV6;
    const IP: usize =
        OuterTemplate::<N>::UDP - if N >= OVERHEAD_IPV6 { Ipv6Header::LEN } else { Ipv4Header::LEN };

    /// DF is set and the identification zero: an atomic datagram (RFC 6864 §4.1); VTEPs must not fragment (RFC 7348 §4.3).
    fn ipv4(fields: &OuterFields, tag: &[u8]) -> OuterTemplate<N> {
        let addresses = [fields.source.octets(), fields.destination.octets()].concat();
        let header = [0x45, 0, 0, 0, 0, 0, 0x40, 0, fields.ttl, PROTOCOL_UDP, 0, 0];
        OuterTemplate::of(fields, tag, ETHERTYPE_IPV4, &header, &addresses)
    }

    fn ipv6(fields: &OuterFields<Ipv6Addr>, tag: &[u8]) -> OuterTemplate<N> {
        let addresses = [fields.source.octets(), fields.destination.octets()].concat();
        let header = [0x60, 0, 0, 0, 0, 0, PROTOCOL_UDP, fields.ttl];
        OuterTemplate::of(fields, tag, ETHERTYPE_IPV6, &header, &addresses)
    }

    fn of<A>(
        fields: &OuterFields<A>,
        tag: &[u8],
        ethertype: u16,
        header: &[u8],
        addresses: &[u8],
    ) -> OuterTemplate<N> {
        let OuterFields { destination_mac, source_mac, port, .. } = fields;
        let link = [&destination_mac.0[..], &source_mac.0, tag, &ethertype.to_be_bytes()].concat();
        let udp = [[0, 0], port.to_be_bytes(), [0, 0], [0, 0]].concat();
        let all = [&link[..], header, addresses, &udp, &[0x08, 0, 0, 0, 0, 0, 0, 0]].concat();
        debug_assert_eq!(all.len(), N);
        let mut bytes = [0; N];
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = from);
        OuterTemplate {
            bytes,
            ip_sum: Sum::ZERO.bytes(header).bytes(addresses),
            pseudo: Sum::ZERO.bytes(addresses).word(u16::from(PROTOCOL_UDP)),
        }
    }

    /// Writes the headers for an inner frame of `inner_len` bytes, without a UDP checksum.
    ///
    /// An IPv6 flow label is the source port: it tells flows apart as well as that (RFC 6438 §3), for routers that balance by the label
    /// and look no further.
    #[inline(always)] // else a call, and its copy of the template, is a quarter of what encap costs
    pub fn write(&self, out: &mut [u8; N], inner_len: u16, vni: Vni, source_port: u16) {
        let udp_len = inner_len.wrapping_add((UdpHeader::LEN + VxlanHeader::LEN) as u16);
        *out = self.bytes;
        if Self::IS_IPV6 {
            put(out, Self::IP + 2, source_port.to_be_bytes());
            put(out, Self::IP + 4, udp_len.to_be_bytes());
        } else {
            let total_len = udp_len.wrapping_add(Ipv4Header::LEN as u16);
            put(out, Self::IP + 2, total_len.to_be_bytes());
            put(out, Self::IP + 10, self.ip_sum.word(total_len).checksum().to_be_bytes());
        }
        put(out, Self::UDP, source_port.to_be_bytes());
        put(out, Self::UDP + 4, udp_len.to_be_bytes());
        put(out, Self::VXLAN + 4, vni.to_bytes());
    }

    /// Sets DSCP and ECN (the former type of service, or traffic class) of headers that were written with 0. The checksum of an IPv4
    /// header follows (RFC 1624 §3).
    #[inline]
    pub fn set_tos(head: &mut [u8; N], tos: u8) {
        let Some(ip) = head.get_mut(Self::IP..).and_then(|ip| ip.first_chunk_mut::<12>()) else { return };
        if Self::IS_IPV6 {
            ip[0] |= tos >> 4;
            ip[1] |= tos << 4;
        } else {
            ip[1] = tos;
            let sum = !u16::from_be_bytes([ip[10], ip[11]]);
            let checksum = Sum::ZERO.word(sum).word(u16::from(tos)).checksum();
            [ip[10], ip[11]] = checksum.to_be_bytes();
        }
    }

    /// Everything, with what may be otherwise than usual, over the first bytes of the packet. False, and no change, if it has not so many.
    #[inline]
    pub(crate) fn encapsulate(&self, packet: &mut [u8], own: &OwnFields) -> bool {
        let Some((head, inner)) = packet.split_first_chunk_mut::<N>() else { return false };
        self.write(head, inner.len() as u16, own.vni, own.source_port);
        if own.tos != 0 {
            Self::set_tos(head, own.tos);
        }
        if let Some(port) = own.port {
            put(head, Self::UDP + 2, port.to_be_bytes());
        }
        if own.udp_checksum {
            let segment_len = (N - Self::UDP + inner.len()) as u16;
            let head_sum = head.get(Self::UDP..).map_or(Sum::ZERO, |udp| Sum::ZERO.bytes(udp));
            let sum = self.pseudo.word(segment_len).plus(head_sum).bytes(inner).checksum();
            // Zero would say that there is none (RFC 768).
            put(head, Self::UDP + 6, (if sum == 0 { 0xffff } else { sum }).to_be_bytes());
        }
        true
    }
}

/// The place is known while compiling, and so is that it is there.
#[inline(always)]
fn put<const N: usize, const K: usize>(out: &mut [u8; N], at: usize, bytes: [u8; K]) {
    if let Some(place) = out.get_mut(at..).and_then(|rest| rest.first_chunk_mut()) {
        *place = bytes;
    }
}

/// What is a frame's own in its outer headers.
#[derive(Clone, Copy, Debug)]
pub struct OwnFields {
    /// Its network.
    pub vni: Vni,
    /// UDP source port.
    pub source_port: u16,
    /// UDP destination port, if it is not that of the template.
    pub port: Option<u16>,
    /// DSCP and ECN.
    pub tos: u8,
    /// Whether there is a UDP checksum.
    pub udp_checksum: bool,
}

/// The outer headers of a path, in one of the four forms.
#[derive(Clone, Debug)]
pub enum OuterHeaders {
    /// IPv4.
    Ipv4(OuterTemplate),
    /// IPv4 behind a tag.
    Ipv4Tagged(OuterTemplate<OVERHEAD_IPV4_TAGGED>),
    /// IPv6.
    Ipv6(OuterTemplate<OVERHEAD_IPV6>),
    /// IPv6 behind a tag.
    Ipv6Tagged(OuterTemplate<OVERHEAD_IPV6_TAGGED>),
}

impl OuterHeaders {
    /// With this VLAN's tag, if there is one. `None` if the addresses are not of one family.
    pub fn new(fields: &OuterFields<IpAddr>, vlan: Option<u16>) -> Option<OuterHeaders> {
        let tag = vlan.map(|vlan| [ETHERTYPE_VLAN.to_be_bytes(), vlan.to_be_bytes()].concat());
        Some(match (fields.source, fields.destination, &tag) {
            (IpAddr::V4(from), IpAddr::V4(to), None) => {
                OuterHeaders::Ipv4(OuterTemplate::new(&fields.with(from, to)))
            }
            (IpAddr::V4(from), IpAddr::V4(to), Some(tag)) => {
                OuterHeaders::Ipv4Tagged(OuterTemplate::ipv4(&fields.with(from, to), tag))
            }
            (IpAddr::V6(from), IpAddr::V6(to), None) => {
                OuterHeaders::Ipv6(OuterTemplate::ipv6(&fields.with(from, to), &[]))
            }
            (IpAddr::V6(from), IpAddr::V6(to), Some(tag)) => {
                OuterHeaders::Ipv6Tagged(OuterTemplate::ipv6(&fields.with(from, to), tag))
            }
            _ => return None,
        })
    }

    /// Their bytes.
    #[allow(clippy::len_without_is_empty, reason = "headers are never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        match self {
            OuterHeaders::Ipv4(_) => OVERHEAD_IPV4,
            OuterHeaders::Ipv4Tagged(_) => OVERHEAD_IPV4_TAGGED,
            OuterHeaders::Ipv6(_) => OVERHEAD_IPV6,
            OuterHeaders::Ipv6Tagged(_) => OVERHEAD_IPV6_TAGGED,
        }
    }

    /// The IP version is 6.
    pub fn is_ipv6(&self) -> bool {
        matches!(self, OuterHeaders::Ipv6(_) | OuterHeaders::Ipv6Tagged(_))
    }

    /// Writes them over the first [`len`](Self::len) bytes of the packet, behind which the inner frame stands. False, and no change, if it
    /// has not so many.
    pub fn write(&self, packet: &mut [u8], own: &OwnFields) -> bool {
        match self {
            OuterHeaders::Ipv4(template) => template.encapsulate(packet, own),
            OuterHeaders::Ipv4Tagged(template) => template.encapsulate(packet, own),
            OuterHeaders::Ipv6(template) => template.encapsulate(packet, own),
            OuterHeaders::Ipv6Tagged(template) => template.encapsulate(packet, own),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::counters::DropReason;
    use crate::wire::outer::{self, Listening};

    const V4: (&str, &str) = ("192.0.2.1", "192.0.2.2");
    const V6: (&str, &str) = ("2001:db8::1", "2001:db8::2");

    fn headers((source, destination): (&str, &str), vlan: Option<u16>) -> OuterHeaders {
        let fields = OuterFields::<IpAddr> {
            destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            source: source.parse().unwrap(),
            destination: destination.parse().unwrap(),
            port: 4789,
            ttl: 64,
        };
        OuterHeaders::new(&fields, vlan).unwrap()
    }

    fn own(tos: u8, udp_checksum: bool) -> OwnFields {
        OwnFields { vni: Vni::new(42).unwrap(), source_port: 50000, port: None, tos, udp_checksum }
    }

    fn written(headers: &OuterHeaders, inner: &[u8], own: &OwnFields) -> Vec<u8> {
        let mut packet = vec![0xff; headers.len()];
        packet.extend(inner);
        assert!(headers.write(&mut packet, own));
        packet
    }

    const LINK: [u8; 12] = [2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1];
    const TAG: [u8; 4] = [0x81, 0x00, 0x01, 0x23];
    const IPV4: [u8; 22] =
        [0x08, 0x00, 0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17, 0xb6, 0xb7, 192, 0, 2, 1, 192, 0, 2, 2];
    const IPV6: [u8; 42] = [
        0x86, 0xdd, 0x60, 0, 0xc3, 0x50, 0, 30, 17, 64, // the flow label is the source port
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, //
        0x20, 0x01, 0x0d, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2,
    ];
    const UDP: [u8; 8] = [0xc3, 0x50, 0x12, 0xb5, 0, 30, 0, 0];
    const VXLAN: [u8; 8] = [0x08, 0, 0, 0, 0, 0, 42, 0];
    const INNER: &[u8; 14] = b"0123456789abcd";

    /// Every byte of each form, literally.
    #[test]
    fn the_headers_have_the_bytes_of_the_rfcs() {
        let forms: [(_, _, &[&[u8]]); 4] = [
            (V4, None, &[&LINK, &IPV4, &UDP, &VXLAN, INNER]),
            (V4, Some(0x123), &[&LINK, &TAG, &IPV4, &UDP, &VXLAN, INNER]),
            (V6, None, &[&LINK, &IPV6, &UDP, &VXLAN, INNER]),
            (V6, Some(0x123), &[&LINK, &TAG, &IPV6, &UDP, &VXLAN, INNER]),
        ];
        for (addresses, vlan, expected) in forms {
            let headers = headers(addresses, vlan);
            let packet = written(&headers, INNER, &own(0, false));
            assert_eq!(packet, expected.concat(), "{addresses:?} {vlan:?}");
            assert_eq!(headers.len(), packet.len() - INNER.len());
        }
    }

    #[test]
    fn a_checksum_is_the_one_that_was_worked_out_by_hand() {
        // Sum of 2001:0db8::1, 2001:0db8::2, length 30, protocol 17, the UDP and the VXLAN header, "0123456789abcd".
        let packet = written(&headers(V6, None), INNER, &own(0, true));
        let words = [
            0x2001u32,
            0x0db8,
            1,
            0x2001,
            0x0db8,
            2,
            30,
            17,
            0xc350,
            0x12b5,
            30,
            0x0800,
            42 << 8,
            0x3031,
            0x3233,
            0x3435,
            0x3637,
            0x3839,
            0x6162,
            0x6364,
        ];
        let mut sum: u32 = words.iter().sum();
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        assert_eq!(u32::from(u16::from_be_bytes([packet[60], packet[61]])), !sum & 0xffff);
    }

    /// What etherparse reads of a packet: DSCP and ECN, UDP payload, and whether the checksums are right.
    fn read_by_another(packet: &[u8], udp_checksum: bool) -> (u8, Vec<u8>) {
        let parsed = etherparse::SlicedPacket::from_ethernet(packet).unwrap();
        let Some(etherparse::TransportSlice::Udp(udp)) = parsed.transport else { panic!("not UDP") };
        let (header, payload) = (udp.to_header(), udp.payload());
        assert_eq!((header.source_port, header.destination_port), (50000, 4789));
        let (tos, sum) = match parsed.net.unwrap() {
            etherparse::NetSlice::Ipv4(ip) => {
                let header4 = ip.header().to_header();
                assert_eq!(header4.header_checksum, header4.calc_header_checksum());
                assert!(header4.dont_fragment && !header4.more_fragments && header4.time_to_live == 64);
                let tos = header4.dscp.value() << 2 | header4.ecn.value();
                (tos, header.calc_checksum_ipv4(&header4, payload).unwrap())
            }
            etherparse::NetSlice::Ipv6(ip) => {
                let header6 = ip.header().to_header();
                assert_eq!((header6.hop_limit, header6.flow_label.value()), (64, 50000));
                (header6.traffic_class, header.calc_checksum_ipv6(&header6, payload).unwrap())
            }
            other => panic!("{other:?}"),
        };
        assert_eq!(header.checksum, if udp_checksum { sum } else { 0 });
        (tos, payload.to_vec())
    }

    proptest::proptest! {
        #[test]
        fn another_parser_reads_what_we_write(
            ipv6: bool,
            vlan in proptest::option::of(1u16..4095),
            tos: u8,
            udp_checksum: bool,
            inner in proptest::collection::vec(proptest::prelude::any::<u8>(), 14..200),
        ) {
            let headers = headers(if ipv6 { V6 } else { V4 }, vlan);
            let mut packet = written(&headers, &inner, &own(tos, udp_checksum));
            let (read, payload) = read_by_another(&packet, udp_checksum);
            assert_eq!((read, &payload[..8], &payload[8..]), (tos, &VXLAN[..], &inner[..]));
            // And so do we, once the tag is off.
            if vlan.is_some() {
                packet.drain(12..16);
            }
            let listening = Listening::new(&["192.0.2.2".parse().unwrap(), "2001:db8::2".parse().unwrap()], &[4789], false);
            match outer::parse(&packet, &listening) {
                Ok(outer) => {
                    assert_eq!((outer.ecn, outer.payload_len), (tos & 3, 8 + inner.len()));
                    assert_eq!(outer::dscp(&packet), Some(tos >> 2));
                }
                Err(reason) => assert_eq!((reason, ipv6, udp_checksum), (DropReason::OuterUdpNoChecksum, true, false)),
            }
        }
    }

    #[test]
    fn a_checksum_of_zero_is_sent_as_all_ones() {
        let inner = |word: u16| [&[0; 12][..], &word.to_be_bytes()].concat();
        let checksum = |packet: &[u8]| u16::from_be_bytes([packet[40], packet[41]]);
        let headers = headers(V4, None);
        let rest = checksum(&written(&headers, &inner(0), &own(0, true)));
        // What was left over to the full sum is added: the checksum would be zero.
        assert_eq!(checksum(&written(&headers, &inner(rest), &own(0, true))), 0xffff);
    }

    #[test]
    fn a_network_can_have_its_own_port() {
        let own = OwnFields { port: Some(8472), ..own(0, true) };
        let packet = written(&headers(V6, Some(7)), INNER, &own);
        assert_eq!(packet[60..62], 8472u16.to_be_bytes());
        let local = ["2001:db8::2".parse().unwrap()];
        let untagged = [&packet[..12], &packet[16..]].concat();
        assert!(
            outer::parse(&untagged, &Listening::new(&local, &[4789, 8472], false)).is_ok(),
            "the sum is right"
        );
    }

    #[test]
    fn what_has_no_room_is_left_alone() {
        let mut short = [0xff; OVERHEAD_IPV4 - 1];
        assert!(!headers(V4, None).write(&mut short, &own(0, true)));
        assert_eq!(short, [0xff; OVERHEAD_IPV4 - 1]);
        let (v4, v6) = (V4.0.parse().unwrap(), V6.0.parse().unwrap());
        let mixed = OuterFields::<IpAddr> {
            destination_mac: MacAddr([2; 6]),
            source_mac: MacAddr([4; 6]),
            source: v4,
            destination: v6,
            port: 1,
            ttl: 1,
        };
        assert!(OuterHeaders::new(&mixed, None).is_none());
    }
}
