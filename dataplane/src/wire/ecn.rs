//! Congestion marks (ECN, RFC 3168) through the tunnel, as RFC 6040 has it in normal mode: put on by encap, taken over to the inner
//! packet by classify. And the DSCP beside them.

use super::checksum::Sum;
use super::eth::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthHeader};
use super::ip::Ipv4Header;
use crate::counters::DropReason;

/// Of the two bits of ECN: "congestion experienced".
pub const CE: u8 = 0b11;
const NOT_ECT: u8 = 0b00;
const ECT_1: u8 = 0b01;
const ECT_0: u8 = 0b10;

/// RFC 6040 §4.2, figure 4, by inner and outer field: what the inner one becomes, and whether the RFC calls that the sign of something
/// wrong on the way ("currently unused", with exclamation marks). `None`: the packet is dropped.
const ARRIVING: [[Option<(u8, bool)>; 4]; 4] = [
    // Not-ECT             ECT(1)                  ECT(0)                  CE
    [Some((NOT_ECT, false)), Some((NOT_ECT, true)), Some((NOT_ECT, true)), None], // Not-ECT
    [Some((ECT_1, false)), Some((ECT_1, false)), Some((ECT_1, true)), Some((CE, false))], // ECT(1)
    [Some((ECT_0, false)), Some((ECT_1, false)), Some((ECT_0, false)), Some((CE, false))], // ECT(0)
    [Some((CE, false)), Some((CE, true)), Some((CE, false)), Some((CE, false))],  // CE
];

/// Takes over what the outer header's ECN field says to the packet in an Ethernet frame; nothing to do for what is not IP. True if such
/// a pair of fields should not occur.
///
/// # Errors
/// [`DropReason::EcnInvalid`]: congestion was experienced, and the inner packet cannot say so.
#[cold]
#[inline(never)]
pub fn take_over(frame: &mut [u8], outer: u8) -> Result<bool, DropReason> {
    let Some(packet) = find(frame) else { return Ok(false) };
    let inner = packet.tos & 3;
    let row = ARRIVING.get(usize::from(inner)).and_then(|row| row.get(usize::from(outer & 3)));
    let (ecn, is_unexpected) = row.copied().flatten().ok_or(DropReason::EcnInvalid)?;
    if ecn != inner {
        set(frame, &packet, packet.tos & !3 | ecn);
    }
    Ok(is_unexpected)
}

/// DSCP and ECN of the packet in an Ethernet frame, behind up to two VLAN tags; 0 for what is not IP.
#[inline]
pub fn inner_tos(frame: &[u8]) -> u8 {
    find(frame).map_or(0, |packet| packet.tos)
}

/// An IP packet in a frame.
struct Packet {
    at: usize,
    is_ipv6: bool,
    tos: u8,
}

fn find(frame: &[u8]) -> Option<Packet> {
    let mut at = EthHeader::LEN;
    let mut ethertype = EthHeader::split(frame)?.0.ethertype();
    for _ in 0..2 {
        if matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ) {
            ethertype = u16::from_be_bytes(*frame.get(at + 2..)?.first_chunk()?);
            at += 4;
        }
    }
    let header = frame.get(at..)?.first_chunk::<{ Ipv4Header::LEN }>()?;
    match (ethertype, header[0] >> 4) {
        (ETHERTYPE_IPV4, 4) => Some(Packet { at, is_ipv6: false, tos: header[1] }),
        (ETHERTYPE_IPV6, 6) => Some(Packet { at, is_ipv6: true, tos: header[0] << 4 | header[1] >> 4 }),
        _ => None,
    }
}

fn set(frame: &mut [u8], packet: &Packet, tos: u8) {
    let header = frame.get_mut(packet.at..).and_then(|rest| rest.first_chunk_mut::<{ Ipv4Header::LEN }>());
    let Some(header) = header else { return };
    if packet.is_ipv6 {
        header[0] = header[0] & 0xf0 | tos >> 4;
        header[1] = header[1] & 0x0f | tos << 4;
    } else {
        // RFC 1624 §3: the old word goes out of the sum, the new one in.
        let sum = !u16::from_be_bytes([header[10], header[11]]);
        let sum = Sum::ZERO.word(sum).word(!u16::from_be_bytes([header[0], header[1]]));
        header[1] = tos;
        let checksum = sum.word(u16::from_be_bytes([header[0], header[1]])).checksum();
        [header[10], header[11]] = checksum.to_be_bytes();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An IPv4 or IPv6 packet in Ethernet behind so many tags.
    fn frame(ipv6: bool, tags: usize, tos: u8) -> Vec<u8> {
        let builder = etherparse::PacketBuilder::ethernet2([2; 6], [4; 6]);
        let mut bytes = Vec::new();
        if ipv6 {
            let mut ip = etherparse::Ipv6Header { traffic_class: tos, hop_limit: 9, ..Default::default() };
            ip.flow_label = 0x5_4321.try_into().unwrap();
            builder
                .ip(etherparse::IpHeaders::Ipv6(ip, Default::default()))
                .udp(1, 2)
                .write(&mut bytes, b"x")
                .unwrap();
        } else {
            let mut ip = etherparse::Ipv4Header { time_to_live: 9, ..Default::default() };
            (ip.dscp, ip.ecn) = ((tos >> 2).try_into().unwrap(), (tos & 3).try_into().unwrap());
            builder
                .ip(etherparse::IpHeaders::Ipv4(ip, Default::default()))
                .udp(1, 2)
                .write(&mut bytes, b"x")
                .unwrap();
        }
        for _ in 0..tags {
            bytes.splice(12..12, [0x81, 0, 0, 7]);
        }
        bytes
    }

    /// RFC 6040 §4.2, figure 4, as it stands there: rows by the inner field, columns Not-ECT, ECT(0), ECT(1), CE; "!" for what is
    /// marked there.
    const FIGURE: [(&str, [&str; 4]); 4] = [
        ("Not-ECT", ["Not-ECT", "Not-ECT !", "Not-ECT !", "drop"]),
        ("ECT(0)", ["ECT(0)", "ECT(0)", "ECT(1)", "CE"]),
        ("ECT(1)", ["ECT(1)", "ECT(1) !", "ECT(1)", "CE"]),
        ("CE", ["CE", "CE", "CE !", "CE"]),
    ];

    fn bits(name: &str) -> u8 {
        match name {
            "Not-ECT" => 0b00,
            "ECT(1)" => 0b01,
            "ECT(0)" => 0b10,
            "CE" => 0b11,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn every_pair_becomes_what_the_rfc_says() {
        for (ipv6, tags) in [(false, 0), (true, 0), (false, 1), (true, 2)] {
            for (inner, row) in FIGURE {
                for (outer, expected) in ["Not-ECT", "ECT(0)", "ECT(1)", "CE"].into_iter().zip(row) {
                    let mut bytes = frame(ipv6, tags, 0b1011_0100 & !3 | bits(inner));
                    let result = take_over(&mut bytes, bits(outer));
                    if expected == "drop" {
                        assert_eq!(result, Err(DropReason::EcnInvalid));
                        continue;
                    }
                    assert_eq!(result, Ok(expected.ends_with('!')), "{inner} in {outer}");
                    let tos = 0b1011_0100 & !3 | bits(expected.trim_end_matches(" !"));
                    // etherparse has put in the right checksum.
                    assert_eq!(bytes, frame(ipv6, tags, tos), "{inner} in {outer}");
                    assert_eq!(inner_tos(&bytes), tos);
                }
            }
        }
    }

    #[test]
    fn what_is_not_ip_has_no_field() {
        let mut arp = vec![0; 60];
        arp[12..14].copy_from_slice(&[8, 6]);
        let before = arp.clone();
        assert_eq!((inner_tos(&arp), take_over(&mut arp, CE)), (0, Ok(false)));
        assert_eq!(arp, before);
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_will_do(mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..60), kind in 0..4, outer: u8) {
            if bytes.len() > 14 {
                let types: [[u8; 2]; 4] = [[8, 0], [0x86, 0xdd], [0x81, 0], [0x88, 0xa8]];
                bytes[12..14].copy_from_slice(&types[kind as usize]);
            }
            inner_tos(&bytes);
            let _any = take_over(&mut bytes, outer);
        }
    }
}
