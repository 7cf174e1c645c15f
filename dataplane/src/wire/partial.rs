//! Checksums that a sender left to its network card.
//!
//! Linux writes only the sum of the pseudo header into the checksum field of a TCP or UDP packet and lets the card
//! add the rest (`CHECKSUM_PARTIAL`, include/linux/skbuff.h). Over a veth there is no card, and a receiver that is not
//! the kernel sees the unfinished sum. In a VXLAN packet it is either the outer UDP checksum that is unfinished, or
//! the inner one; in the second case the outer one is absent, or right for the packet as it would be once the inner
//! is finished (`lco_csum`, include/linux/skbuff.h; Documentation/networking/checksum-offloads.rst).

use super::checksum::Sum;
use super::eth::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthHeader};
use super::ip::{PROTOCOL_TCP, PROTOCOL_UDP};

/// Finishes the TCP or UDP checksum of the packet in an Ethernet frame if it holds the pseudo header's sum only.
/// False, and no change, if there is nothing to finish.
pub fn complete(frame: &mut [u8]) -> bool {
    let Some(found) = find(frame) else { return false };
    let Some(segment) = frame.get_mut(found.start..found.end) else { return false };
    let place = found.field..found.field + 2;
    if segment.get(place.clone()) != Some(&found.pseudo.fold().to_be_bytes()[..]) {
        return false;
    }
    let sum = Sum::ZERO.bytes(segment); // the pseudo header's sum stands in the field
    let Some(field) = segment.get_mut(place) else { return false };
    // A UDP checksum of zero would say "none" (RFC 768).
    let checksum = match sum.checksum() {
        0 if found.protocol == PROTOCOL_UDP => 0xffff,
        checksum => checksum,
    };
    field.copy_from_slice(&checksum.to_be_bytes());
    true
}

/// Where the TCP or UDP segment of a frame is.
struct Segment {
    start: usize,
    end: usize,
    /// The checksum field, from `start`.
    field: usize,
    protocol: u8,
    pseudo: Sum,
}

/// `None` for anything but a whole TCP or UDP packet.
fn find(frame: &[u8]) -> Option<Segment> {
    let (eth, _) = EthHeader::split(frame)?;
    let (mut ethertype, mut ip) = (eth.ethertype(), EthHeader::LEN);
    for _ in 0..2 {
        if matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            ethertype = u16::from_be_bytes(*frame.get(ip + 2..)?.first_chunk()?);
            ip += 4;
        }
    }
    let packet = frame.get(ip..)?;
    let (header_len, total_len, protocol, addresses) = match ethertype {
        ETHERTYPE_IPV4 => {
            let header = packet.first_chunk::<20>()?;
            let fragment = u16::from_be_bytes([header[6], header[7]]) & 0x3fff != 0;
            let len = usize::from(u16::from_be_bytes([header[2], header[3]]));
            let addresses = Sum::ZERO.bytes(&header[12..]);
            (!fragment).then_some((usize::from(header[0] & 0xf) * 4, len, header[9], addresses))?
        }
        ETHERTYPE_IPV6 => {
            let header = packet.first_chunk::<40>()?;
            let len = 40 + usize::from(u16::from_be_bytes([header[4], header[5]]));
            let (protocol, start) = match header[6] {
                PROTOCOL_TCP | PROTOCOL_UDP => (header[6], 40),
                other => behind_options(other, packet)?,
            };
            (start, len, protocol, Sum::ZERO.bytes(&header[8..]))
        }
        _ => return None,
    };
    let field = match protocol {
        PROTOCOL_TCP => 16,
        PROTOCOL_UDP => 6,
        _ => return None,
    };
    let segment_len = u16::try_from(total_len.checked_sub(header_len)?).ok()?;
    let pseudo = addresses.word(u16::from(protocol)).word(segment_len);
    Some(Segment { start: ip + header_len, end: ip + total_len, field, protocol, pseudo })
}

/// What follows an IPv6 header and options, and where. Not behind a fragment's header, whose packet is not whole; nor behind one for routing, where the
/// checksum is for another destination.
#[cold]
fn behind_options(first: u8, packet: &[u8]) -> Option<(u8, usize)> {
    const HOP_BY_HOP: u8 = 0;
    const DESTINATION: u8 = 60;
    let (mut protocol, mut start) = (first, 40);
    for _ in 0..4 {
        if !matches!(protocol, HOP_BY_HOP | DESTINATION) {
            return Some((protocol, start));
        }
        let [next, words] = *packet.get(start..)?.first_chunk()?;
        start += 8 + usize::from(words) * 8;
        protocol = next;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{PacketBuilder, PacketBuilderStep, UdpHeader};

    fn write(builder: PacketBuilderStep<UdpHeader>, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        builder.write(&mut out, payload).unwrap();
        out
    }

    fn eth() -> PacketBuilderStep<etherparse::Ethernet2Header> {
        PacketBuilder::ethernet2([2; 6], [4; 6])
    }

    /// What the kernel leaves: the folded sum of the pseudo header.
    fn unfinished(frame: &[u8]) -> Vec<u8> {
        let found = find(frame).unwrap();
        let mut frame = frame.to_vec();
        frame[found.start + found.field..][..2].copy_from_slice(&found.pseudo.fold().to_be_bytes());
        frame
    }

    #[test]
    fn an_unfinished_checksum_becomes_what_another_implementation_computes() {
        let mut tcp = Vec::new();
        eth().ipv6([1; 16], [2; 16], 64).tcp(1, 2, 3, 4).write(&mut tcp, b"seven!!").unwrap();
        for (what, whole) in [
            ("UDP over IPv4", write(eth().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2), b"odd")),
            ("UDP over IPv6", write(eth().ipv6([1; 16], [2; 16], 64).udp(1, 2), b"even")),
            (
                "tagged",
                write(
                    eth().single_vlan(7.try_into().unwrap()).ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2),
                    b"",
                ),
            ),
            ("TCP over IPv6", tcp),
        ] {
            let mut frame = unfinished(&whole);
            frame.extend([0xee; 5]); // padding is not summed
            assert!(complete(&mut frame), "{what}");
            assert_eq!(frame[..whole.len()], whole, "{what}");
            assert!(!complete(&mut frame), "{what}: it is finished now");
        }
    }

    #[test]
    fn options_between_the_headers_are_passed_over_and_fragments_left_alone() {
        let plain = write(eth().ipv6([1; 16], [2; 16], 64).udp(1, 2), b"behind options");
        let with = |kinds: &[u8]| {
            let mut frame = plain.clone();
            for &kind in kinds.iter().rev() {
                let next = std::mem::replace(&mut frame[14 + 6], kind);
                frame.splice(54..54, [next, 0, 1, 4, 0, 0, 0, 0]); // eight bytes: padding
                let len = u16::from_be_bytes([frame[18], frame[19]]) + 8;
                frame[18..20].copy_from_slice(&len.to_be_bytes());
            }
            frame
        };
        for kinds in [&[0][..], &[60], &[0, 60]] {
            let whole = with(kinds);
            let mut frame = unfinished(&whole);
            assert!(complete(&mut frame), "{kinds:?}");
            assert_eq!(frame, whole, "{kinds:?}: the sum does not cover them");
        }
        for kinds in [&[44][..], &[43], &[0, 44], &[60; 5]] {
            assert!(find(&with(kinds)).is_none(), "{kinds:?}");
        }
    }

    #[test]
    fn everything_else_is_left_alone() {
        let whole = write(eth().ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2), b"payload");
        for len in 0..whole.len() {
            let mut cut = unfinished(&whole)[..len].to_vec();
            assert!(!complete(&mut cut), "{len} bytes");
        }
        let mut fragment = unfinished(&whole);
        fragment[14 + 6] = 0x20;
        assert!(!complete(&mut fragment));
        let mut arp = vec![0; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        assert!(!complete(&mut arp));
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_will_do(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..120), v6: bool) {
            if bytes.len() > 14 {
                bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
            }
            complete(&mut bytes);
        }
    }
}
