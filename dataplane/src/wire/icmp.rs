//! "Packet too big": what a router tells the sender of a packet that its next link does not take, so that path MTU discovery works.
//! ICMP destination unreachable, fragmentation needed (RFC 792, RFC 1191 §4), and ICMPv6 packet too big (RFC 4443 §3.2).
//!
//! An overlay network is a bridge, which cannot fragment: IPv4 packets that may be fragmented (no DF) are answered as well, because
//! they are lost as well, and a sender that takes note fragments them itself.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::eth::EthHeader;
use super::inner::{IPV6_LEN, PROTOCOL_ICMP, PROTOCOL_ICMPV6, Packet, Upper, pseudo_header_v6};
use crate::types::MacAddr;

/// Longest answer over IPv4, as a packet (RFC 1812 §4.3.2.3).
const PACKET_MAX_V4: usize = 576;
/// Over IPv6 (RFC 4443 §2.4 c): what every link takes, and so the least that may be told.
const PACKET_MAX_V6: usize = 1280;
/// The least that may be told over IPv4 (RFC 791 §3.2).
const MTU_MIN_V4: usize = 68;

const IPV4_LEN: usize = 20;
const ICMP_LEN: usize = 8;
/// Ethernet with two tags, IPv6, ICMPv6.
const HEADERS_MAX: usize = EthHeader::LEN + 8 + IPV6_LEN + ICMP_LEN;

/// Bytes of a frame that are needed to answer it: more would not be quoted.
pub const NEEDED: usize = EthHeader::LEN + 8 + PACKET_MAX_V6 - IPV6_LEN - ICMP_LEN;

/// Who answers.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct Gateways {
    /// Over IPv4; `None`: the packet's destination.
    pub v4: Option<Ipv4Addr>,
    /// Over IPv6; `None`: the packet's destination.
    pub v6: Option<Ipv6Addr>,
    /// The station of `v6`, if it is known: answers come from it if the packet was for a group.
    pub v6_station: Option<MacAddr>,
}

/// An answer: these headers, and after them a part of the frame that it is about.
#[derive(Clone, Debug)]
pub struct TooBig {
    headers: [u8; HEADERS_MAX],
    headers_len: usize,
    quoted: (usize, usize),
}

impl TooBig {
    /// About a frame of `frame_len` bytes, of which the first are given, for which there is room for a packet of `mtu` bytes. `None`
    /// where an answer is forbidden (RFC 1122 §3.2.2, RFC 4443 §2.4 e) or would help nobody: about what is not IP or is malformed,
    /// ICMP errors, fragments but the first, what is for a group (IPv6 allows that, §2.4 e.3) or not from one station, and what is not
    /// longer than the least that may be told.
    pub fn about(frame: &[u8], frame_len: usize, mtu: usize, gateways: &Gateways) -> Option<TooBig> {
        let (packet, start) = Packet::find(frame)?;
        let (eth, _) = EthHeader::split(frame)?;
        if packet.total_len() > frame_len.checked_sub(start)? || eth.source().is_group() {
            return None;
        }
        let upper = packet.upper()?;
        match packet {
            Packet::V4(header, bytes) => about_v4(frame, start, (header, bytes, upper), mtu, gateways),
            Packet::V6(header, bytes) => about_v6(frame, start, (header, bytes, upper), mtu, gateways),
        }
    }

    /// What stands in front of the quoted part.
    pub fn headers(&self) -> &[u8] {
        self.headers.get(..self.headers_len).unwrap_or_default()
    }

    /// Where in the frame the quoted part begins, and its length.
    pub fn quoted(&self) -> (usize, usize) {
        self.quoted
    }

    /// Link layer: back to the station that sent, with the tags of the frame; then what is written by `fill`.
    fn new<const N: usize>(
        frame: &[u8],
        start: usize,
        from: MacAddr,
        ip: &[u8; N],
        quoted: usize,
    ) -> Option<TooBig> {
        let mut headers = [0; HEADERS_MAX];
        let link = frame.get(..start)?;
        headers[..start].copy_from_slice(link);
        headers[..6].copy_from_slice(&link[6..12]);
        headers[6..12].copy_from_slice(&from.0);
        headers.get_mut(start..start + N)?.copy_from_slice(ip);
        Some(TooBig { headers, headers_len: start + N, quoted: (start, quoted) })
    }
}

fn about_v4(
    frame: &[u8],
    start: usize,
    (header, packet, upper): (&[u8; IPV4_LEN], &[u8], Upper),
    mtu: usize,
    gateways: &Gateways,
) -> Option<TooBig> {
    let (eth, _) = EthHeader::split(frame)?;
    let source = Ipv4Addr::from(*header[12..].first_chunk::<4>()?);
    let destination = Ipv4Addr::from(*header[16..].first_chunk::<4>()?);
    let is_good = Sum::ZERO.bytes(packet.get(..upper.start)?).holds()
        && total(header) > mtu
        && mtu >= MTU_MIN_V4
        && is_unicast_v4(source)
        && is_unicast_v4(destination)
        && !eth.destination().is_group();
    if !is_good || upper.protocol == PROTOCOL_ICMP && !is_query(*packet.get(upper.start)?) {
        return None;
    }
    let quote = packet.get(..packet.len().min(total(header)).min(PACKET_MAX_V4 - IPV4_LEN - ICMP_LEN))?;
    let mut out = [0; IPV4_LEN + ICMP_LEN];
    let (ip, icmp) = out.split_at_mut(IPV4_LEN);
    icmp[..2].copy_from_slice(&[3, 4]); // destination unreachable, fragmentation needed
    icmp[6..].copy_from_slice(&u16::try_from(mtu).unwrap_or(u16::MAX).to_be_bytes());
    let sum = Sum::ZERO.bytes(icmp).bytes(quote).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    // Precedence "internetwork control" (RFC 1812 §4.3.2.5); short enough for everybody, so DF.
    ip[..2].copy_from_slice(&[0x45, 0xc0]);
    ip[2..4].copy_from_slice(&((IPV4_LEN + ICMP_LEN + quote.len()) as u16).to_be_bytes());
    ip[6..10].copy_from_slice(&[0x40, 0, 64, PROTOCOL_ICMP]);
    ip[12..16].copy_from_slice(&gateways.v4.unwrap_or(destination).octets());
    ip[16..].copy_from_slice(&source.octets());
    let sum = Sum::ZERO.bytes(ip).checksum();
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    TooBig::new(frame, start, eth.destination(), &out, quote.len())
}

fn about_v6(
    frame: &[u8],
    start: usize,
    (header, packet, upper): (&[u8; IPV6_LEN], &[u8], Upper),
    mtu: usize,
    gateways: &Gateways,
) -> Option<TooBig> {
    let (eth, _) = EthHeader::split(frame)?;
    let source = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
    let destination = Ipv6Addr::from(*header[24..].first_chunk::<16>()?);
    let total = IPV6_LEN + usize::from(u16::from_be_bytes([header[4], header[5]]));
    let mtu = mtu.max(PACKET_MAX_V6);
    let is_good = total > mtu && !source.is_multicast() && !source.is_unspecified() && !source.is_loopback();
    if !is_good || upper.protocol == PROTOCOL_ICMPV6 && !is_informational(*packet.get(upper.start)?) {
        return None;
    }
    let from = if destination.is_multicast() { gateways.v6? } else { gateways.v6.unwrap_or(destination) };
    let station = if eth.destination().is_group() { gateways.v6_station? } else { eth.destination() };
    let quote = packet.get(..packet.len().min(total).min(PACKET_MAX_V6 - IPV6_LEN - ICMP_LEN))?;
    let mut out = [0; IPV6_LEN + ICMP_LEN];
    let (ip, icmp) = out.split_at_mut(IPV6_LEN);
    let len = (ICMP_LEN + quote.len()) as u16;
    ip[0] = 0x60;
    ip[4..6].copy_from_slice(&len.to_be_bytes());
    ip[6..8].copy_from_slice(&[PROTOCOL_ICMPV6, 64]);
    ip[8..24].copy_from_slice(&from.octets());
    ip[24..].copy_from_slice(&source.octets());
    icmp[0] = 2; // packet too big
    icmp[4..].copy_from_slice(&u32::try_from(mtu).unwrap_or(u32::MAX).to_be_bytes());
    let sum = pseudo_header_v6(&ip[8..], len, PROTOCOL_ICMPV6).bytes(icmp).bytes(quote).checksum();
    icmp[2..4].copy_from_slice(&sum.to_be_bytes());
    TooBig::new(frame, start, station, &out, quote.len())
}

fn total(header: &[u8; IPV4_LEN]) -> usize {
    usize::from(u16::from_be_bytes([header[2], header[3]]))
}

/// One station's address: not "this network" (0/8), loopback, a group, reserved or everybody.
fn is_unicast_v4(address: Ipv4Addr) -> bool {
    !matches!(address.octets()[0], 0 | 127 | 224..)
}

/// Echo, router discovery, timestamp, information, mask and extended echo. What is not known to be harmless may be an error, and errors
/// are never answered.
fn is_query(icmp_type: u8) -> bool {
    matches!(icmp_type, 0 | 8..=10 | 13..=18 | 42 | 43)
}

/// No error (RFC 4443 §2.1), nor a redirect (§2.4 e.2).
fn is_informational(icmp_type: u8) -> bool {
    icmp_type >= 128 && icmp_type != 137
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{
        Icmpv4Type, Icmpv6Type, LaxSlicedPacket, NetSlice, PacketBuilder, SlicedPacket, TransportSlice,
    };
    use proptest::prelude::*;

    const SENDER: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const RECEIVER: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const V6: ([u8; 16], [u8; 16]) = ([0xfd; 16], [0xfe; 16]);

    fn udp_v4(payload: usize) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ethernet2(SENDER, RECEIVER)
            .ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
            .udp(1000, 2000)
            .write(&mut out, &vec![0x5a; payload])
            .unwrap();
        out
    }

    fn udp_v6(payload: usize) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ethernet2(SENDER, RECEIVER)
            .ipv6(V6.0, V6.1, 64)
            .udp(1000, 2000)
            .write(&mut out, &vec![0x5a; payload])
            .unwrap();
        out
    }

    /// After a change to the IPv4 header.
    fn resummed(mut frame: Vec<u8>) -> Vec<u8> {
        frame[24..26].fill(0);
        let end = 14 + usize::from(frame[14] & 0xf) * 4;
        let sum = Sum::ZERO.bytes(&frame[14..end]).checksum();
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    fn answer(frame: &[u8], mtu: usize, gateways: &Gateways) -> Option<Vec<u8>> {
        let head = &frame[..frame.len().min(NEEDED)];
        let answer = TooBig::about(head, frame.len(), mtu, gateways)?;
        let (start, len) = answer.quoted();
        Some([answer.headers(), &head[start..start + len]].concat())
    }

    fn plain(frame: &[u8], mtu: usize) -> Option<Vec<u8>> {
        answer(frame, mtu, &Gateways::default())
    }

    #[test]
    fn ipv4_is_told_what_the_next_link_takes() {
        let packet = udp_v4(1500 - 28);
        let told = plain(&packet, 1450).unwrap();
        assert_eq!(told.len(), 14 + 576);
        assert_eq!(
            told[..42],
            [
                2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, // back
                0x45, 0xc0, 0x02, 0x40, 0, 0, 0x40, 0, 64, 1, told[24], told[25], 10, 0, 0, 2, 10, 0, 0, 1,
                3, 4, told[36], told[37], 0, 0, 0x05, 0xaa, // 1450
            ]
        );
        assert_eq!(told[42..], packet[14..14 + 548]);
        assert_eq!(Sum::ZERO.bytes(&told[34..]).fold(), 0xffff);
        // Another implementation reads it, and finds the checksums right.
        let sliced = SlicedPacket::from_ethernet(&told).unwrap();
        let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("{sliced:?}") };
        assert_eq!(ip.header().to_header().calc_header_checksum(), ip.header().header_checksum());
        let Some(TransportSlice::Icmpv4(icmp)) = sliced.transport else { panic!("no ICMP") };
        let Icmpv4Type::DestinationUnreachable(
            etherparse::icmpv4::DestUnreachableHeader::FragmentationNeeded { next_hop_mtu: 1450 },
        ) = icmp.icmp_type()
        else {
            panic!("{icmp:?}")
        };
        assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
        let gateways = Gateways { v4: Some(Ipv4Addr::new(10, 0, 0, 254)), ..Gateways::default() };
        assert_eq!(answer(&packet, 1450, &gateways).unwrap()[26..30], [10, 0, 0, 254]);
    }

    #[test]
    fn ipv6_is_told_too_and_never_less_than_every_link_takes() {
        let packet = udp_v6(2000);
        for (mtu, told_mtu) in [(1450, 1450u32), (1000, 1280)] {
            let told = plain(&packet, mtu).unwrap();
            assert_eq!(told.len(), 14 + 1280);
            assert_eq!(
                told[..22],
                [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0, 0x04, 0xd8, 58, 64]
            );
            assert_eq!((&told[22..38], &told[38..54]), (&V6.1[..], &V6.0[..]));
            assert_eq!(told[54..56], [2, 0]);
            assert_eq!(told[58..62], told_mtu.to_be_bytes());
            assert_eq!(told[62..], packet[14..14 + 1232]);
            let sliced = SlicedPacket::from_ethernet(&told).unwrap();
            let Some(TransportSlice::Icmpv6(icmp)) = sliced.transport else { panic!("no ICMPv6") };
            assert!(matches!(icmp.icmp_type(), Icmpv6Type::PacketTooBig { mtu } if mtu == told_mtu));
            assert!(icmp.is_checksum_valid(V6.1, V6.0));
        }
        assert!(plain(&udp_v6(1280 - 48), 1000).is_none(), "as long as every link takes");
        let gateway = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xfe);
        let gateways = Gateways { v6: Some(gateway), ..Gateways::default() };
        assert_eq!(answer(&packet, 1450, &gateways).unwrap()[22..38], gateway.octets());
    }

    #[test]
    fn tags_go_back_with_it() {
        let mut packet = udp_v4(1500 - 28);
        packet.splice(12..12, [0x81, 0, 0, 7]);
        let told = plain(&packet, 1450).unwrap();
        assert_eq!(told[..18], [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x81, 0, 0, 7, 8, 0]);
        let sliced = LaxSlicedPacket::from_ethernet(&told).unwrap();
        assert!(matches!(sliced.transport, Some(TransportSlice::Icmpv4(_))), "{sliced:?}");
    }

    #[test]
    fn where_ipv4_forbids_an_answer_there_is_none() {
        let good = udp_v4(1472);
        let changed = |offset: usize, values: &[u8]| {
            let mut frame = good.clone();
            frame[offset..offset + values.len()].copy_from_slice(values);
            resummed(frame)
        };
        assert!(plain(&changed(20, &[0, 0]), 1450).is_some(), "may be fragmented: lost as well");
        assert!(plain(&changed(20, &[0x20, 0]), 1450).is_some(), "the first fragment");
        let icmp = |icmp_type: u8| {
            let mut frame = changed(23, &[1]);
            frame[34] = icmp_type;
            plain(&frame, 1450)
        };
        assert!(icmp(8).is_some() && icmp(0).is_some(), "echo");
        for error in [3, 4, 5, 11, 12, 1, 200] {
            assert!(icmp(error).is_none(), "ICMP type {error}");
        }
        for (what, offset, values) in [
            ("a later fragment", 20, &[0, 1][..]),
            ("from nobody", 26, &[0, 0, 0, 0]),
            ("from loopback", 26, &[127, 0, 0, 1]),
            ("from a group", 26, &[224, 0, 0, 1]),
            ("from everybody", 26, &[255, 255, 255, 255]),
            ("to a group", 30, &[239, 0, 0, 1]),
            ("to everybody", 30, &[255, 255, 255, 255]),
            ("to an Ethernet group", 0, &[1]),
            ("from an Ethernet group", 6, &[1]),
            ("not longer than that", 16, &[0x05, 0xaa]),
            ("longer than the frame", 16, &[0x05, 0xdd]),
            ("a header of nothing", 14, &[0x44]),
            ("version 6", 14, &[0x65]),
            ("not IP", 12, &[8, 6]),
        ] {
            assert!(plain(&changed(offset, values), 1450).is_none(), "{what}");
        }
        let mut wrong = good.clone();
        wrong[24] ^= 1;
        assert!(plain(&wrong, 1450).is_none(), "checksum");
        assert!(plain(&good, 67).is_none(), "less than any link takes");
    }

    #[test]
    fn where_ipv6_forbids_an_answer_there_is_none() {
        let good = udp_v6(1460);
        let changed = |offset: usize, values: &[u8]| {
            let mut frame = good.clone();
            frame[offset..offset + values.len()].copy_from_slice(values);
            frame
        };
        for (icmp_type, is_told) in
            [(1, false), (2, false), (127, false), (128, true), (135, true), (137, false)]
        {
            let mut frame = changed(20, &[58]);
            frame[54] = icmp_type;
            assert_eq!(plain(&frame, 1450).is_some(), is_told, "ICMPv6 type {icmp_type}");
        }
        for (what, offset, values) in [
            ("from nobody", 22, &[0; 16][..]),
            ("from a group", 22, &[0xff]),
            ("a later fragment", 20, &[44, 64]),
            ("longer than the frame", 18, &[0x06, 0]),
        ] {
            let mut frame = changed(offset, values);
            frame[56..58].copy_from_slice(&[1, 0]); // the fragment offset, where there is one
            assert!(plain(&frame, 1450).is_none(), "{what}");
        }
        // To a group it may be told, but by somebody.
        let mut group = changed(38, &[0xff, 0x0e]);
        group[..2].copy_from_slice(&[0x33, 0x33]);
        assert!(plain(&group, 1450).is_none());
        let gateway = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 0xfe);
        let mut gateways = Gateways { v6: Some(gateway), ..Gateways::default() };
        assert!(answer(&group, 1450, &gateways).is_none(), "its station is not known");
        gateways.v6_station = Some(MacAddr([2, 0, 0, 0, 0, 0xfe]));
        assert_eq!(answer(&group, 1450, &gateways).unwrap()[6..12], [2, 0, 0, 0, 0, 0xfe]);
    }

    proptest! {
        /// Nothing panics, and what is told is well-formed, whatever it is about.
        #[test]
        fn any_frame_has_a_good_answer_or_none(
            mut bytes in proptest::collection::vec(any::<u8>(), 0..200), v6: bool, len in 0usize..9000, mtu in 0usize..9000,
        ) {
            if bytes.len() > 14 {
                bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
                bytes[14] = if v6 { 0x60 } else { 0x45 };
            }
            if !v6 && bytes.len() >= 34 {
                bytes = resummed(bytes);
            }
            let frame_len = bytes.len().max(len);
            if let Some(told) = TooBig::about(&bytes, frame_len, mtu, &Gateways::default()) {
                let (start, len) = told.quoted();
                prop_assert!(start + len <= bytes.len());
                let all = [told.headers(), &bytes[start..start + len]].concat();
                prop_assert!(SlicedPacket::from_ethernet(&all).is_ok());
                prop_assert_eq!(&all[..6], &bytes[6..12]);
                if !v6 {
                    prop_assert_eq!(Sum::ZERO.bytes(&all[34..]).fold(), 0xffff);
                }
            }
        }
    }
}
