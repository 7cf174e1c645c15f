//! Answers, against literal bytes and against etherparse.

use super::*;
use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use proptest::prelude::*;

const WE: Identity =
    Identity { mac: MacAddr([2, 0, 0, 0, 0, 9]), ip: Ipv4Addr::new(10, 0, 0, 9), ip6: Some(WE6) };
const WE6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 9);
const PEER_IP6: [u8; 16] = [0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
const PEER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const PEER_IP: [u8; 4] = [10, 0, 0, 1];

#[test]
fn an_arp_request_is_answered_literally_so() {
    #[rustfmt::skip]
    let mut request = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff,  2, 0, 0, 0, 0, 1,  8, 6,
        0, 1, 8, 0, 6, 4, 0, 1,  2, 0, 0, 0, 0, 1,  10, 0, 0, 1,  0, 0, 0, 0, 0, 0,  10, 0, 0, 9,
        0, 0, 0, 0,
    ];
    #[rustfmt::skip]
    let reply: [u8; 42] = [
        2, 0, 0, 0, 0, 1,  2, 0, 0, 0, 0, 9,  8, 6,
        0, 1, 8, 0, 6, 4, 0, 2,  2, 0, 0, 0, 0, 9,  10, 0, 0, 9,  2, 0, 0, 0, 0, 1,  10, 0, 0, 1,
    ];
    let mut other = request;
    assert_eq!(answer(&mut request, WE), Some((Kind::Arp, &reply[..])));
    other[41] = 8;
    assert_eq!(answer(&mut other, WE), None, "for somebody else");
    other[41] = 9;
    other[21] = 2;
    assert_eq!(answer(&mut other, WE), None, "a reply is not answered");
}

/// Who has fd00::9? Tell fd00::1, at 02:00:00:00:00:01.
#[rustfmt::skip]
const SOLICITATION: [u8; 86] = [
    0x33, 0x33, 0xff, 0, 0, 9,  2, 0, 0, 0, 0, 1,  0x86, 0xdd,
    0x60, 0, 0, 0,  0, 32, 58, 255,
    0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
    0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 9,
    135, 0, 0x7d, 0x89,  0, 0, 0, 0,
    0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
    1, 1, 2, 0, 0, 0, 0, 1,
];

#[test]
fn a_neighbour_solicitation_is_answered_literally_so() {
    #[rustfmt::skip]
    let advertisement: [u8; 86] = [
        2, 0, 0, 0, 0, 1,  2, 0, 0, 0, 0, 9,  0x86, 0xdd,
        0x60, 0, 0, 0,  0, 32, 58, 255,
        0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
        0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        136, 0, 0x1c, 0x85,  0x60, 0, 0, 0,
        0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 9,
        2, 1, 2, 0, 0, 0, 0, 9,
    ];
    let mut to_group = SOLICITATION.to_vec();
    to_group.extend([0; 10]); // padding
    assert_eq!(answer(&mut to_group, WE), Some((Kind::NeighbourSolicitation, &advertisement[..])));

    for (what, at, value) in [
        ("for somebody else", 77, 8),
        ("to another group", 53, 8),
        ("forwarded", 21, 254),
        ("code", 55, 1),
        ("checksum", 56, 0xff),
        ("cut by its length", 19, 24),
    ] {
        let mut frame = SOLICITATION;
        frame[at] = value;
        let before = frame;
        assert_eq!(answer(&mut frame, WE), None, "{what}");
        assert_eq!(frame, before, "{what}");
    }
}

fn ping6(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = PacketBuilder::ethernet2(PEER_MAC, WE.mac.0).ipv6(PEER_IP6, WE6.octets(), 64);
    builder.icmpv6_echo_request(7, 8).write(&mut out, payload).unwrap();
    out
}

fn datagram6(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = PacketBuilder::ethernet2(PEER_MAC, WE.mac.0).ipv6(PEER_IP6, WE6.octets(), 64);
    builder.udp(1000, 2000).write(&mut out, payload).unwrap();
    out
}

fn ping(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = PacketBuilder::ethernet2(PEER_MAC, WE.mac.0).ipv4(PEER_IP, WE.ip.octets(), 64);
    builder.icmpv4_echo_request(7, 8).write(&mut out, payload).unwrap();
    out
}

fn datagram(payload: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    let builder = PacketBuilder::ethernet2(PEER_MAC, WE.mac.0).ipv4(PEER_IP, WE.ip.octets(), 64);
    builder.udp(1000, 2000).write(&mut out, payload).unwrap();
    out
}

/// RFC 1624 §3: a sum of all ones has the checksum 0, never 0xffff, which is what adding to the checksum itself would give.
#[test]
fn the_checksum_of_an_answer_may_be_zero() {
    // The request's sum is 0x0800 + 7 + 8 + 0xfff0 with the carry: 0x0800, of which the answer has 0xffff left.
    let mut frame = ping(&[0xff, 0xf0]);
    assert_eq!(frame[36..38], [0xf7, 0xff]);
    let (_, reply) = answer(&mut frame, WE).unwrap();
    assert_eq!(reply[36..38], [0, 0]);
}

proptest! {
    #[test]
    fn answers_to_pings_are_right(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut frame = ping(&payload);
        let (kind, reply) = answer(&mut frame, WE).unwrap();
        prop_assert_eq!(kind, Kind::Icmp);
        let sliced = SlicedPacket::from_ethernet(reply).unwrap();
        let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("no ICMP") };
        let header = icmp.header();
        prop_assert!(matches!(header.icmp_type, etherparse::Icmpv4Type::EchoReply(_)));
        prop_assert_eq!(header.checksum, header.icmp_type.calc_checksum(icmp.payload()));
        prop_assert_eq!(icmp.payload(), payload);
    }

    #[test]
    fn datagrams_come_back_whole(payload in proptest::collection::vec(any::<u8>(), 0..200), padding in 0usize..20) {
        let mut frame = datagram(&payload);
        frame.extend(vec![0; padding]);
        let (kind, reply) = answer(&mut frame, WE).unwrap();
        prop_assert_eq!(kind, Kind::Udp);
        prop_assert_eq!(&reply[..12], &[PEER_MAC, WE.mac.0].concat()[..]);
        let sliced = SlicedPacket::from_ethernet(reply).unwrap();
        let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("no IPv4") };
        let ip = ip.header().to_header();
        prop_assert_eq!((ip.source, ip.destination), (WE.ip.octets(), PEER_IP));
        prop_assert_eq!(ip.header_checksum, ip.calc_header_checksum());
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
        prop_assert_eq!((udp.source_port(), udp.destination_port()), (2000, 1000));
        prop_assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv4(&ip, udp.payload()).unwrap());
        prop_assert_eq!(udp.payload(), payload);
    }

    #[test]
    fn answers_to_pings_over_ipv6_are_right(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut frame = ping6(&payload);
        let (kind, reply) = answer(&mut frame, WE).unwrap();
        prop_assert_eq!((kind, &reply[..12]), (Kind::Icmp, &[PEER_MAC, WE.mac.0].concat()[..]));
        let sliced = SlicedPacket::from_ethernet(reply).unwrap();
        let Some(NetSlice::Ipv6(ip)) = sliced.net else { panic!("no IPv6") };
        let (from, to) = (ip.header().source(), ip.header().destination());
        prop_assert_eq!((from, to), (WE6.octets(), PEER_IP6));
        let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("no ICMPv6") };
        prop_assert!(matches!(icmp.header().icmp_type, etherparse::Icmpv6Type::EchoReply(_)));
        prop_assert!(icmp.is_checksum_valid(from, to));
        prop_assert_eq!(icmp.payload(), payload);
    }

    #[test]
    fn datagrams_over_ipv6_come_back_whole(payload in proptest::collection::vec(any::<u8>(), 0..200)) {
        let mut frame = datagram6(&payload);
        let (kind, reply) = answer(&mut frame, WE).unwrap();
        prop_assert_eq!(kind, Kind::Udp);
        let sliced = SlicedPacket::from_ethernet(reply).unwrap();
        let Some(NetSlice::Ipv6(ip)) = sliced.net else { panic!("no IPv6") };
        let ip = ip.header().to_header();
        prop_assert_eq!((ip.source, ip.destination), (WE6.octets(), PEER_IP6));
        let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
        prop_assert_eq!((udp.source_port(), udp.destination_port()), (2000, 1000));
        prop_assert_eq!(udp.checksum(), udp.to_header().calc_checksum_ipv6(&ip, udp.payload()).unwrap());
        prop_assert_eq!(udp.payload(), payload);
    }

    #[test]
    fn any_frame_is_looked_at_without_harm(
        mut frame in proptest::collection::vec(any::<u8>(), 0..100), kind in 0usize..4
    ) {
        let known = [[8, 0], [8, 6], [0x86, 0xdd]].get(kind).copied();
        if let (Some(ether_type), Some(known)) = (frame.get_mut(12..14), known) {
            ether_type.copy_from_slice(&known);
        }
        let _ = answer(&mut frame, WE);
    }
}

#[test]
fn what_is_not_for_us_or_cut_is_left_as_it_was() {
    for (what, at, value) in [
        ("another MAC", 5, 8),
        ("another IP", 33, 8),
        ("a fragment", 20, 0x20),
        ("TCP", 23, 6),
        ("IPv6", 12, 0x86),
        ("IHL 4", 14, 0x44),
    ] {
        let mut frame = datagram(b"payload");
        frame[at] = value;
        let before = frame.clone();
        assert_eq!(answer(&mut frame, WE), None, "{what}");
        assert_eq!(frame, before, "{what}");
    }
    for (what, at, value) in
        [("another MAC", 5, 8), ("another IP", 53, 8), ("an extension header", 20, 0), ("version", 14, 0x40)]
    {
        let mut frame = datagram6(b"payload");
        frame[at] = value;
        let before = frame.clone();
        assert_eq!(answer(&mut frame, WE), None, "{what}");
        assert_eq!(frame, before, "{what}");
    }
    let no_ip6 = Identity { ip6: None, ..WE };
    assert_eq!(answer(&mut datagram6(b"x"), no_ip6), None);
    for good in [ping(b"x"), datagram(b"x"), ping6(b"x"), datagram6(b"x"), SOLICITATION.to_vec()] {
        for len in 0..good.len() {
            let mut frame = good[..len].to_vec();
            assert_eq!(answer(&mut frame, WE), None, "{len} bytes");
            assert_eq!(frame, good[..len]);
        }
    }
}
