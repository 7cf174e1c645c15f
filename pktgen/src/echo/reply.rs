//! Turns a frame into its answer, in place: ARP requests for our address, ICMP echo requests and UDP packets to us.
//!
//! Swapping addresses and ports leaves every checksum right, as a sum does not care for order; only ICMP's type
//! changes, and its checksum with it (RFC 1624).

use std::net::Ipv4Addr;

use peregrine_dataplane::types::MacAddr;

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its IPv4 address.
    pub ip: Ipv4Addr,
}

/// What was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An ARP request.
    Arp,
    /// An ICMP echo request.
    Icmp,
    /// A UDP packet.
    Udp,
}

const ARP_END: usize = 14 + 28;

/// The answer to a frame, in the same bytes. `None`: nobody answers it, and its bytes are as they were.
#[inline]
pub fn answer(frame: &mut [u8], we: Identity) -> Option<(Kind, &[u8])> {
    let kind = match *frame.get(12..14)? {
        [0x08, 0x00] => ipv4(frame, we)?,
        [0x08, 0x06] => arp(frame, we)?,
        _ => return None,
    };
    let length = match kind {
        Kind::Arp => ARP_END,
        Kind::Icmp | Kind::Udp => frame.len(),
    };
    frame.get(..length).map(|answer| (kind, answer))
}

/// RFC 826: a request for our address, over Ethernet and IPv4.
fn arp(frame: &mut [u8], we: Identity) -> Option<Kind> {
    let body = frame.get_mut(14..ARP_END)?;
    let is_request = body[..8] == [0, 1, 0x08, 0x00, 6, 4, 0, 1];
    if !is_request || body[24..28] != we.ip.octets() {
        return None;
    }
    body[7] = 2; // a reply
    body.copy_within(8..18, 18); // the asker becomes the target
    body[8..14].copy_from_slice(&we.mac.0);
    body[14..18].copy_from_slice(&we.ip.octets());
    swap_ethernet(frame, we)?;
    Some(Kind::Arp)
}

#[inline]
fn ipv4(frame: &mut [u8], we: Identity) -> Option<Kind> {
    let (ethernet, packet) = frame.split_first_chunk_mut::<14>()?;
    let (head, _) = packet.split_first_chunk::<20>()?;
    let header_len = usize::from(head[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let is_fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
    let is_ours = ethernet[..6] == we.mac.0 && head[16..20] == we.ip.octets();
    if head[0] >> 4 != 4 || header_len < 20 || is_fragment || !is_ours {
        return None;
    }
    let protocol = head[9];
    let segment = packet.get_mut(header_len..total_len)?;
    let kind = match protocol {
        1 => icmp(segment)?,
        17 => udp(segment)?,
        _ => return None,
    };
    let (source, destination) = packet.get_mut(12..20)?.split_at_mut(4);
    source.swap_with_slice(destination);
    swap_ethernet(frame, we)?;
    Some(kind)
}

fn icmp(segment: &mut [u8]) -> Option<Kind> {
    let [kind, code, high, low, _, _, _, _] = segment.first_chunk_mut::<8>()?;
    if (*kind, *code) != (8, 0) {
        return None;
    }
    *kind = 0;
    // The sum has lost 0x0800, so its complement, the checksum, gains it (with the carry coming round).
    let (sum, carry) = u16::from_be_bytes([*high, *low]).overflowing_add(0x0800);
    [*high, *low] = (sum + u16::from(carry)).to_be_bytes();
    Some(Kind::Icmp)
}

#[inline]
fn udp(segment: &mut [u8]) -> Option<Kind> {
    segment.first_chunk::<8>()?;
    let (source, destination) = segment.get_mut(..4)?.split_at_mut(2);
    source.swap_with_slice(destination);
    Some(Kind::Udp)
}

/// Back to the sender, from us.
#[inline]
fn swap_ethernet(frame: &mut [u8], we: Identity) -> Option<()> {
    let (destination, source) = frame.get_mut(..12)?.split_at_mut(6);
    destination.copy_from_slice(source);
    source.copy_from_slice(&we.mac.0);
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    const WE: Identity = Identity { mac: MacAddr([2, 0, 0, 0, 0, 9]), ip: Ipv4Addr::new(10, 0, 0, 9) };
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
        fn any_frame_is_looked_at_without_harm(mut frame in proptest::collection::vec(any::<u8>(), 0..100)) {
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
        for good in [ping(b"x"), datagram(b"x")] {
            for len in 0..good.len() {
                let mut frame = good[..len].to_vec();
                assert_eq!(answer(&mut frame, WE), None, "{len} bytes");
                assert_eq!(frame, good[..len]);
            }
        }
    }
}
