//! The frames' bytes: literally, and as an independent parser sees them.

use std::net::{Ipv4Addr, Ipv6Addr};

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use proptest::prelude::*;

use super::*;

fn inner(size: usize, flows: u16) -> Inner {
    Inner {
        source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 20000),
        destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 9000),
        size,
        flows,
    }
}

fn vxlan() -> Vxlan {
    let outer = OuterFields {
        destination_mac: MacAddr([4, 0, 0, 0, 0, 2]),
        source_mac: MacAddr([4, 0, 0, 0, 0, 1]),
        source: Ipv4Addr::new(192, 0, 2, 1),
        destination: Ipv4Addr::new(192, 0, 2, 2),
        port: 4789,
        ttl: 64,
    };
    Vxlan { outer, vni: Vni::new(0x010203).unwrap() }
}

fn frame(template: &Template, packet: Trailer) -> Vec<u8> {
    let mut out = vec![0xee; template.len()];
    assert!(template.write(&mut out, packet));
    out
}

#[test]
fn a_smallest_frame_is_literally_this() {
    let template = Template::new(&inner(60, 3), Some(&vxlan())).unwrap();
    let mut got =
        frame(&template, Trailer { run: 0x5431, flow: 2, sequence: 0x0102, time: 0x0a0b_0c0d_0e0f });
    let outer_port = u16::from_be_bytes([got[34], got[35]]);
    assert!(outer_port >= 49152);
    got[34..36].fill(0); // the hash is not a contract
    #[rustfmt::skip]
    let wanted = [
        4, 0, 0, 0, 0, 2,  4, 0, 0, 0, 0, 1,  0x08, 0x00,
        0x45, 0, 0, 96,  0, 0, 0x40, 0,  64, 17, 0xb6, 0x89,  192, 0, 2, 1,  192, 0, 2, 2,
        0, 0, 0x12, 0xb5,  0, 76, 0, 0,
        0x08, 0, 0, 0,  1, 2, 3, 0,
        2, 0, 0, 0, 0, 2,  2, 0, 0, 0, 0, 1,  0x08, 0x00,
        0x45, 0, 0, 46,  0, 0, 0x40, 0,  64, 17, 0x26, 0xbd,  10, 0, 0, 1,  10, 0, 0, 2,
        0x4e, 0x22, 0x23, 0x28,  0, 26, 0xb0, 0xa9,
        b'P', b'g', b'T', b'1',  0, 2,  0, 0, 0, 0, 1, 2,  0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f,
    ];
    assert_eq!(got, wanted);
}

/// Every header, length and checksum by etherparse.
fn check_inner(frame: &[u8], wanted: &Inner, packet: Trailer) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no IPv4") };
    let header = ip.header().to_header();
    assert_eq!(header.header_checksum, header.calc_header_checksum());
    assert_eq!(
        (header.source, header.destination),
        (wanted.source.ip().octets(), wanted.destination.ip().octets())
    );
    assert_eq!(usize::from(header.total_len), wanted.size - 14);
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("no UDP") };
    assert_eq!(udp.source_port(), wanted.source.port() + packet.flow);
    assert_eq!(udp.destination_port(), wanted.destination.port());
    assert_eq!(usize::from(udp.length()), wanted.size - 34);
    let sum = udp.to_header().calc_checksum_ipv4(&header, udp.payload()).unwrap();
    assert_eq!(udp.checksum(), sum, "UDP checksum");
    assert_eq!(Trailer::of_payload(udp.payload()), Some(packet));
    assert_eq!(Trailer::of_frame(frame), Some(packet));
}

/// The same over IPv6; the frame is as long as `wanted` has no say about.
fn check_ipv6(frame: &[u8], wanted: &Flow, packet: Trailer) {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv6(ip)) = &sliced.net else { panic!("no IPv6") };
    let header = ip.header().to_header();
    let (SocketAddr::V6(source), SocketAddr::V6(destination)) = (wanted.source, wanted.destination) else {
        panic!()
    };
    assert_eq!((header.source, header.destination), (source.ip().octets(), destination.ip().octets()));
    assert_eq!((header.traffic_class >> 2, header.hop_limit), (wanted.dscp, 64));
    assert_eq!(usize::from(header.payload_length), frame.len() - 54);
    let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("no UDP") };
    assert_eq!((udp.source_port(), udp.destination_port()), (source.port(), destination.port()));
    let sum = udp.to_header().calc_checksum_ipv6(&header, udp.payload()).unwrap();
    assert_eq!(udp.checksum(), sum, "UDP checksum");
    assert_eq!(Trailer::of_frame(frame), Some(packet));
}

proptest! {
    #[test]
    fn etherparse_finds_every_frame_over_ipv6_right(
        size in SIZE_MIN_IPV6..1800, addresses: (u128, u128), ports: (u16, u16), dscp in 0u8..64,
        flow in 0u16..3, sequence in 0..=trailer::SEQUENCE_MAX, time in 0..=trailer::SEQUENCE_MAX,
    ) {
        let headers = |n: u16| Flow {
            source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            source: SocketAddr::new(Ipv6Addr::from(addresses.0).into(), ports.0.wrapping_add(n)),
            destination: SocketAddr::new(Ipv6Addr::from(addresses.1).into(), ports.1),
            dscp,
            vni: None,
        };
        let packet = Trailer { run: 7, flow, sequence, time };
        let template = Template::of_flows((0..3).map(headers), None);
        prop_assert_eq!(template.flows(), 3);
        let mut plain = vec![0xee; size];
        prop_assert!(template.write(&mut plain, packet));
        check_ipv6(&plain, &headers(flow), packet);
        prop_assert!(!template.write(&mut [0; SIZE_MIN_IPV6 - 1], packet));
        let beyond = Trailer { flow: 3, ..packet };
        prop_assert!(!template.write(&mut plain, beyond));

        let template = Template::of_flows((0..3).map(headers), Some(&vxlan().outer));
        let mut wrapped = vec![0xee; size + OVERHEAD_IPV4];
        prop_assert!(template.write(&mut wrapped, packet));
        let sliced = SlicedPacket::from_ethernet(&wrapped).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no outer IPv4") };
        let header = ip.header().to_header();
        prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
        prop_assert_eq!((usize::from(header.total_len), header.dscp.value()), (wrapped.len() - 14, dscp));
        check_ipv6(&wrapped[OVERHEAD_IPV4..], &headers(flow), packet);
    }

    #[test]
    fn etherparse_finds_every_frame_right(
        size in SIZE_MIN..1800, flow in 0u16..50, sequence in 0..=trailer::SEQUENCE_MAX, time in 0..=trailer::SEQUENCE_MAX,
    ) {
        let (inner, packet) = (inner(size, 50), Trailer { run: 7, flow, sequence, time });
        check_inner(&frame(&Template::new(&inner, None).unwrap(), packet), &inner, packet);

        let wrapped = frame(&Template::new(&inner, Some(&vxlan())).unwrap(), packet);
        let sliced = SlicedPacket::from_ethernet(&wrapped).unwrap();
        let Some(NetSlice::Ipv4(ip)) = &sliced.net else { panic!("no outer IPv4") };
        let header = ip.header().to_header();
        prop_assert_eq!(header.header_checksum, header.calc_header_checksum());
        let Some(TransportSlice::Udp(udp)) = &sliced.transport else { panic!("no outer UDP") };
        prop_assert_eq!((udp.destination_port(), udp.checksum()), (4789, 0));
        prop_assert!(udp.source_port() >= 49152);
        prop_assert_eq!(&udp.payload()[..8], &[8, 0, 0, 0, 1, 2, 3, 0]);
        check_inner(&udp.payload()[8..], &inner, packet);
    }
}

#[test]
fn no_checksum_is_ever_sent_as_zero() {
    let template = Template::new(&inner(60, 1), None).unwrap();
    let all_ones = (0..=u16::MAX).filter(|n| {
        let got = frame(&template, Trailer { run: 7, flow: 0, sequence: u64::from(*n), time: 0 });
        assert_ne!(got[40..42], [0, 0]);
        got[40..42] == [0xff, 0xff]
    });
    assert_eq!(all_ones.count(), 1, "the one whose sum is zero");
}

#[test]
fn flows_have_outer_ports_of_their_own() {
    let template = Template::new(&inner(60, 100), Some(&vxlan())).unwrap();
    let port = |flow| frame(&template, Trailer { run: 7, flow, sequence: 0, time: 0 })[34..36].to_vec();
    let ports: std::collections::HashSet<_> = (0..100).map(port).collect();
    assert!(ports.len() > 90, "{}", ports.len());
    assert_eq!(port(7), port(7));
}

#[test]
fn what_cannot_be_is_refused() {
    assert!(Template::new(&inner(SIZE_MIN - 1, 1), None).is_none());
    assert!(Template::new(&inner(SIZE_MAX, 1), Some(&vxlan())).is_some());
    assert!(Template::new(&inner(SIZE_MAX + 1, 1), None).is_none());
    assert!(Template::new(&inner(60, 0), None).is_none());
    assert!(Template::new(&inner(60, 45536), None).is_some());
    assert!(Template::new(&inner(60, 45537), None).is_none(), "ports beyond 65535");
    let template = Template::new(&inner(60, 1), None).unwrap();
    assert!(!template.write(&mut [0; 59], Trailer { run: 7, flow: 0, sequence: 0, time: 0 }));
    assert!(!template.write(&mut [0; 60], Trailer { run: 7, flow: 1, sequence: 0, time: 0 }));
}
