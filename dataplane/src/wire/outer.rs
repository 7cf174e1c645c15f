//! The outer headers as a whole: taken off in one pass on the way in, put on from a template on the way out.

use std::net::Ipv4Addr;

use super::checksum::Sum;
use super::eth::{ETHERTYPE_IPV4, EthHeader};
use super::ip::{Ipv4Header, PROTOCOL_UDP, udp_pseudo_header};
use super::udp::UdpHeader;
use super::vxlan::VxlanHeader;
use crate::counters::DropReason;
use crate::types::{MacAddr, Vni};

/// Bytes in front of the inner frame when the underlay is IPv4: Ethernet 14, IPv4 20, UDP 8, VXLAN 8.
pub const OVERHEAD_IPV4: usize = EthHeader::LEN + Ipv4Header::LEN + UdpHeader::LEN + VxlanHeader::LEN;

/// Where we listen.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vtep {
    /// Our address on the underlay.
    pub address: Ipv4Addr,
    /// UDP port of VXLAN.
    pub port: u16,
}

/// What the outer headers said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer {
    /// The VTEP that sent it.
    pub source: Ipv4Addr,
    /// Bytes of Ethernet, IP and UDP, up to the VXLAN header.
    pub header_len: usize,
    /// Bytes of VXLAN header and inner frame.
    pub payload_len: usize,
}

/// Checks Ethernet, IPv4 and UDP of a received frame.
///
/// # Errors
/// The reason for which to drop it.
#[inline(always)] // else its answer goes through memory, a fifth of what classifying costs
pub fn parse(frame: &[u8], vtep: Vtep) -> Result<Outer, DropReason> {
    match plain(frame, vtep) {
        Some(outer) => Ok(outer),
        None => parse_any(frame, vtep),
    }
}

/// The headers of nearly every frame, without options and without a UDP checksum, if nothing at all is wrong with them: every field is
/// read at its fixed place, and all are judged together. `None` says nothing but "look closely".
#[inline(always)]
fn plain(frame: &[u8], vtep: Vtep) -> Option<Outer> {
    let (head, rest) = frame.split_first_chunk::<VXLAN>()?;
    let word = |at: usize| head.get(at..)?.first_chunk().map(|word| u64::from_be_bytes(*word));
    let (kind, fragment) = (word(IP - 2)?, word(IP + 6)?);
    let (addresses, udp) = (word(IP + 12)?, word(UDP)?);
    let is_ours = kind >> 40 == 0x0008_0045 // IPv4 without options
        && fragment & 0x3fff_00ff_0000_0000 == u64::from(PROTOCOL_UDP) << 32 // a whole packet
        && addresses as u32 == u32::from(vtep.address)
        && (udp >> 32) as u16 == vtep.port;
    let header_len = Ipv4Header::LEN + UdpHeader::LEN;
    let segment_len = usize::from((kind >> 16) as u16).wrapping_sub(header_len);
    let payload_len = usize::from((udp >> 16) as u16).wrapping_sub(UdpHeader::LEN);
    let fits = payload_len <= segment_len && segment_len <= rest.len();
    if !is_ours || !fits || !Sum::ZERO.bytes(head.get(IP..UDP)?).holds() {
        return None;
    }
    if udp as u16 != 0 && !is_summed(head, rest.get(..payload_len)?) {
        return None;
    }
    Some(Outer { source: Ipv4Addr::from((addresses >> 32) as u32), header_len: VXLAN, payload_len })
}

/// The UDP checksum, over the addresses (which stand before the UDP header), protocol and length too.
#[inline(never)]
fn is_summed(head: &[u8; VXLAN], payload: &[u8]) -> bool {
    let Some((_, [length @ .., _, _])) = head.split_last_chunk::<4>() else { return false };
    let length = u16::from_be_bytes(*length);
    let sum = Sum::ZERO.word(u16::from(PROTOCOL_UDP)).word(length);
    head.get(IP + 12..).is_some_and(|head| sum.bytes(head).bytes(payload).holds())
}

/// Any frame, step by step.
#[inline(never)]
fn parse_any(frame: &[u8], vtep: Vtep) -> Result<Outer, DropReason> {
    let (outer, ip, udp, payload) = split(frame, vtep)?;
    let holds = || {
        let pseudo = udp_pseudo_header(ip.source(), ip.destination(), udp.length());
        udp.checksum_holds(pseudo, payload)
    };
    if !udp.has_checksum() || holds() { Ok(outer) } else { Err(DropReason::OuterUdpChecksum) }
}

/// The same without a look at the UDP checksum, for a measuring tool to which it is all the same.
///
/// # Errors
/// The reason for which to drop it.
#[inline]
pub fn parse_unsummed(frame: &[u8], vtep: Vtep) -> Result<Outer, DropReason> {
    split(frame, vtep).map(|(outer, ..)| outer)
}

/// Everything but the UDP checksum, with what that is computed from.
#[inline]
fn split(frame: &[u8], vtep: Vtep) -> Result<(Outer, &Ipv4Header, &UdpHeader, &[u8]), DropReason> {
    let (eth, packet) = EthHeader::split(frame).ok_or(DropReason::OuterTruncated)?;
    if eth.ethertype() != ETHERTYPE_IPV4 {
        return Err(DropReason::OuterNotOurs);
    }
    let (ip, segment) = Ipv4Header::split(packet)?;
    if ip.protocol() != PROTOCOL_UDP || ip.destination() != vtep.address {
        return Err(DropReason::OuterNotOurs);
    }
    if ip.is_fragment() {
        return Err(DropReason::OuterFragment);
    }
    let (udp, payload) = UdpHeader::split(segment)?;
    if udp.destination() != vtep.port {
        return Err(DropReason::OuterNotOurs);
    }
    // The payload is a part of `frame`: what lies before it is header, options included.
    let header_len = payload.as_ptr().addr() - frame.as_ptr().addr();
    Ok((Outer { source: ip.source(), header_len, payload_len: payload.len() }, ip, udp, payload))
}

/// Outer headers towards one remote, ready but for lengths, source port and VNI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OuterTemplate {
    bytes: [u8; OVERHEAD_IPV4],
    /// Sum of the IPv4 header with total length and checksum zero.
    ip_sum: Sum,
}

/// What a template is made of.
#[derive(Clone, Copy, Debug)]
pub struct OuterFields {
    /// Next hop's link-layer address.
    pub destination_mac: MacAddr,
    /// Our interface's link-layer address.
    pub source_mac: MacAddr,
    /// Our VTEP address.
    pub source: Ipv4Addr,
    /// The remote VTEP.
    pub destination: Ipv4Addr,
    /// UDP destination port.
    pub port: u16,
    /// Time to live.
    pub ttl: u8,
}

impl OuterTemplate {
    /// DF is set and the identification zero: an atomic datagram (RFC 6864 §4.1); VTEPs must not fragment
    /// (RFC 7348 §4.3). The UDP checksum is zero (RFC 7348 §4.1).
    pub fn new(fields: &OuterFields) -> OuterTemplate {
        let mut bytes = [0; OVERHEAD_IPV4];
        let mut rest = &mut bytes[..];
        let mut put = |field: &[u8]| {
            let (head, tail) = std::mem::take(&mut rest).split_at_mut(field.len());
            head.copy_from_slice(field);
            rest = tail;
        };
        put(&fields.destination_mac.0);
        put(&fields.source_mac.0);
        put(&ETHERTYPE_IPV4.to_be_bytes());
        put(&[0x45, 0, 0, 0, 0, 0, 0x40, 0, fields.ttl, PROTOCOL_UDP, 0, 0]);
        put(&fields.source.octets());
        put(&fields.destination.octets());
        put(&[0, 0]);
        put(&fields.port.to_be_bytes());
        put(&[0, 0, 0, 0]);
        put(&[0x08, 0, 0, 0, 0, 0, 0, 0]);
        let ip_sum = Sum::ZERO.bytes(&bytes[IP..UDP]);
        OuterTemplate { bytes, ip_sum }
    }

    /// Writes the headers for an inner frame of `inner_len` bytes.
    #[inline]
    pub fn write(&self, out: &mut [u8; OVERHEAD_IPV4], inner_len: u16, vni: Vni, source_port: u16) {
        let udp_len = inner_len + (UdpHeader::LEN + VxlanHeader::LEN) as u16;
        let total_len = udp_len + Ipv4Header::LEN as u16;
        *out = self.bytes;
        out[IP + 2..IP + 4].copy_from_slice(&total_len.to_be_bytes());
        out[IP + 10..IP + 12].copy_from_slice(&self.ip_sum.word(total_len).checksum().to_be_bytes());
        out[UDP..UDP + 2].copy_from_slice(&source_port.to_be_bytes());
        out[UDP + 4..UDP + 6].copy_from_slice(&udp_len.to_be_bytes());
        out[VXLAN + 4..VXLAN + 7].copy_from_slice(&vni.to_bytes());
    }
}

/// The DSCP of a frame's outer header (RFC 2474 §3), whose IPv4 header `parse` or `split` has found.
#[inline]
pub fn dscp(frame: &[u8]) -> Option<u8> {
    frame.get(IP + 1).map(|tos| tos >> 2)
}

/// Sets the DSCP, 0 to 63, of headers that were written with 0. The checksum follows (RFC 1624 §3).
#[inline]
pub fn set_dscp(head: &mut [u8; OVERHEAD_IPV4], dscp: u8) {
    head[IP + 1] = dscp << 2;
    let sum = !u16::from_be_bytes([head[IP + 10], head[IP + 11]]);
    let checksum = Sum::ZERO.word(sum).word(u16::from(dscp << 2)).checksum();
    head[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
}

const IP: usize = EthHeader::LEN;
const UDP: usize = IP + Ipv4Header::LEN;
const VXLAN: usize = UDP + UdpHeader::LEN;

#[cfg(test)]
mod tests {
    use super::*;

    const VTEP: Vtep = Vtep { address: Ipv4Addr::new(192, 0, 2, 2), port: 4789 };

    fn template() -> OuterTemplate {
        OuterTemplate::new(&OuterFields {
            destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            source: Ipv4Addr::new(192, 0, 2, 1),
            destination: VTEP.address,
            port: 4789,
            ttl: 64,
        })
    }

    fn frame(inner: &[u8]) -> Vec<u8> {
        let mut head = [0xff; OVERHEAD_IPV4];
        head_of(inner, 0, &mut head);
        [&head[..], inner].concat()
    }

    fn head_of(inner: &[u8], dscp: u8, head: &mut [u8; OVERHEAD_IPV4]) {
        template().write(head, inner.len() as u16, Vni::new(42).unwrap(), 50000);
        set_dscp(head, dscp);
    }

    #[test]
    fn a_dscp_is_in_its_place_and_in_the_checksum() {
        for dscp in 0..64 {
            let mut head = [0xff; OVERHEAD_IPV4];
            head_of(b"0123456789abcd", dscp, &mut head);
            let mut bytes = head.to_vec();
            bytes.extend(b"0123456789abcd");
            assert!(parse(&bytes, VTEP).is_ok(), "the checksum holds");
            assert_eq!((super::dscp(&bytes), head[IP + 1]), (Some(dscp), dscp << 2));
        }
    }

    /// Every byte, literally.
    #[test]
    fn the_headers_have_the_bytes_of_the_rfcs() {
        assert_eq!(
            frame(b"0123456789abcd")[..50],
            [
                2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0x08, 0x00, // Ethernet
                0x45, 0, 0, 50, 0, 0, 0x40, 0, 64, 17, 0xb6, 0xb7, 192, 0, 2, 1, 192, 0, 2, 2, // IPv4
                0xc3, 0x50, 0x12, 0xb5, 0, 30, 0, 0, // UDP
                0x08, 0, 0, 0, 0, 0, 42, 0, // VXLAN
            ]
        );
    }

    #[test]
    fn another_parser_reads_what_we_write() {
        let frame = frame(&[7; 100]);
        let parsed = etherparse::SlicedPacket::from_ethernet(&frame).unwrap();
        let etherparse::NetSlice::Ipv4(ip) = parsed.net.unwrap() else { panic!("not IPv4") };
        let header = ip.header().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
        assert!(header.dont_fragment && !header.more_fragments);
        assert_eq!((header.time_to_live, ip.payload().payload.len()), (64, 116));
    }

    #[test]
    fn what_we_write_we_accept() {
        let frame = frame(b"inner frame");
        assert_eq!(plain(&frame, VTEP), parse_any(&frame, VTEP).ok(), "it takes the short way");
        let outer = parse(&frame, VTEP).unwrap();
        assert_eq!(
            (outer.source, outer.header_len, outer.payload_len),
            (Ipv4Addr::new(192, 0, 2, 1), 42, 19)
        );
    }

    #[test]
    fn what_is_not_for_us_is_refused() {
        for (what, offset, value, reason) in [
            ("ethertype", 13, 0x06, DropReason::OuterNotOurs),
            ("port", 37, 0, DropReason::OuterNotOurs),
            ("udp length", 39, 0xff, DropReason::OuterUdpInvalid),
            ("udp checksum", 41, 1, DropReason::OuterUdpChecksum),
            ("ip checksum", 25, 0, DropReason::OuterIpChecksum),
        ] {
            let mut bytes = frame(b"inner frame");
            bytes[offset] = value;
            assert_eq!(parse(&bytes, VTEP), Err(reason), "{what}");
        }
        let elsewhere = Vtep { address: Ipv4Addr::new(192, 0, 2, 3), ..VTEP };
        assert_eq!(parse(&frame(b"x"), elsewhere), Err(DropReason::OuterNotOurs));
    }

    #[test]
    fn every_truncation_is_refused() {
        let frame = frame(b"inner frame");
        for len in 0..frame.len() {
            assert!(parse(&frame[..len], VTEP).is_err(), "{len} bytes");
        }
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            if let Ok(outer) = parse(&bytes, VTEP) {
                assert!(outer.header_len + outer.payload_len <= bytes.len());
            }
        }

        /// The short way says the same as the long one, or nothing.
        #[test]
        fn what_is_plain_is_right(at in 0usize..61, value: u8, cut in 0usize..70, length: u8, sum: bool) {
            let mut bytes = frame(b"inner frame");
            bytes[at] = value;
            bytes[39] = if length < 40 { length } else { bytes[39] };
            bytes.resize(cut.max(20), 0);
            if sum && bytes.len() >= UDP {
                bytes[IP + 10..IP + 12].fill(0);
                let checksum = Sum::ZERO.bytes(&bytes[IP..UDP]).checksum();
                bytes[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
            }
            if let Some(outer) = plain(&bytes, VTEP) {
                assert_eq!(parse_any(&bytes, VTEP), Ok(outer));
            }
        }

        #[test]
        fn any_mutation_is_taken_or_refused(at in 0usize..61, value: u8) {
            let mut bytes = frame(b"inner frame");
            bytes[at] = value;
            if let Ok(outer) = parse(&bytes, VTEP) {
                assert!(outer.header_len + outer.payload_len <= bytes.len());
            }
        }
    }
}
