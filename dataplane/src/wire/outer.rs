//! The outer headers taken off in one pass: Ethernet, IPv4 or IPv6, and UDP. Used by `stages/classify.rs`, and by the generator.
//!
//! There are two ways. The short ones ([`plain_ipv4`], [`plain_ipv6`]) know only what nearly every frame looks like and read every field
//! at its fixed place; the long one ([`parse_any`]) goes step by step, takes what else is right, and names what is wrong.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::checksum::Sum;
use super::eth::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, EthHeader};
use super::ip::{
    Ipv4Header, Ipv6Header, PROTOCOL_FRAGMENT, PROTOCOL_UDP, udp_pseudo_header, udp_pseudo_header_ipv6,
};
use super::udp::UdpHeader;
use crate::counters::DropReason;

pub use super::template::{
    OVERHEAD_IPV4, OVERHEAD_IPV6, OuterFields, OuterHeaders, OuterTemplate, OwnFields, VLAN_TAG,
};

/// One place where VXLAN is listened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Vtep {
    /// Our address on the underlay.
    pub address: Ipv4Addr,
    /// UDP port of VXLAN.
    pub port: u16,
}

/// All our addresses on an uplink, and all ports.
#[derive(Clone, Debug)]
pub struct Listening {
    /// The first IPv4 address as a number; [`NO_ADDRESS`] if there is none.
    ipv4: u64,
    /// The first IPv6 address.
    ipv6: Option<u128>,
    /// The first port.
    port: u16,
    /// Over IPv6 no UDP checksum is needed (RFC 6935 §5).
    accept_zero_checksum: bool,
    addresses: Box<[IpAddr]>,
    ports: Box<[u16]>,
}

/// No address has so many bits.
const NO_ADDRESS: u64 = u64::MAX;

impl Listening {
    /// At these addresses and ports. To the first ones of each, most frames come.
    pub fn new(addresses: &[IpAddr], ports: &[u16], accept_zero_checksum: bool) -> Listening {
        let ipv4 = addresses.iter().find_map(|address| match address {
            IpAddr::V4(address) => Some(u64::from(u32::from(*address))),
            IpAddr::V6(_) => None,
        });
        let ipv6 = addresses.iter().find_map(|address| match address {
            IpAddr::V6(address) => Some(u128::from(*address)),
            IpAddr::V4(_) => None,
        });
        Listening {
            ipv4: ipv4.unwrap_or(NO_ADDRESS),
            ipv6,
            port: ports.first().copied().unwrap_or(0),
            accept_zero_checksum,
            addresses: addresses.into(),
            ports: ports.into(),
        }
    }

    /// One of ours.
    #[cold]
    pub fn has_address(&self, address: IpAddr) -> bool {
        self.addresses.contains(&address)
    }

    /// Looks through all of them. That a network's frames come to its own port is the XDP program's affair.
    #[cold]
    #[inline(never)]
    fn has(&self, address: IpAddr, port: u16) -> bool {
        self.addresses.contains(&address) && self.ports.contains(&port)
    }
}

/// What the outer headers said.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Outer<A = IpAddr> {
    /// The VTEP that sent it.
    pub source: A,
    /// Bytes of Ethernet, IP and UDP, up to the VXLAN header.
    pub header_len: usize,
    /// Bytes of VXLAN header and inner frame.
    pub payload_len: usize,
    /// The ECN field.
    pub ecn: u8,
}

impl<A: Into<IpAddr>> Outer<A> {
    fn any(self) -> Outer {
        let Outer { source, header_len, payload_len, ecn } = self;
        Outer { source: source.into(), header_len, payload_len, ecn }
    }
}

/// Checks Ethernet, IP and UDP of a received frame, by the short ways first.
///
/// # Errors
/// The reason for which to drop it.
pub fn parse(frame: &[u8], listening: &Listening) -> Result<Outer, DropReason> {
    let plain = plain_ipv4(frame, listening).map(Outer::any);
    match plain.or_else(|| plain_ipv6(frame, listening).map(Outer::any)) {
        Some(outer) => Ok(outer),
        None => parse_any(frame, listening),
    }
}

/// The headers of nearly every frame over IPv4, without options, if nothing at all is wrong with them: every field is
/// read at its fixed place, and all are judged together. `None` says nothing but "look closely".
#[inline(always)] // else its answer goes through memory, a fifth of what classifying costs
pub fn plain_ipv4(frame: &[u8], listening: &Listening) -> Option<Outer<Ipv4Addr>> {
    let (head, rest) = frame.split_first_chunk::<VXLAN>()?;
    let word = |at: usize| head.get(at..)?.first_chunk().map(|word| u64::from_be_bytes(*word));
    let (kind, fragment) = (word(IP - 2)?, word(IP + 6)?);
    let (addresses, udp) = (word(IP + 12)?, word(UDP)?);
    let is_plain = kind >> 40 == 0x0008_0045 // IPv4 without options
        && fragment & 0x3fff_00ff_0000_0000 == u64::from(PROTOCOL_UDP) << 32; // a whole packet
    if !is_plain {
        return None;
    }
    let (to, port) = (u64::from(addresses as u32), (udp >> 32) as u16);
    if (to != listening.ipv4 || port != listening.port)
        && !listening.has(Ipv4Addr::from(addresses as u32).into(), port)
    {
        return None;
    }
    let header_len = Ipv4Header::LEN + UdpHeader::LEN;
    let segment_len = usize::from((kind >> 16) as u16).wrapping_sub(header_len);
    let payload_len = usize::from((udp >> 16) as u16).wrapping_sub(UdpHeader::LEN);
    let fits = payload_len <= segment_len && segment_len <= rest.len();
    if !fits || !Sum::ZERO.bytes(head.get(IP..UDP)?).holds() {
        return None;
    }
    if udp as u16 != 0 && !is_summed::<{ VXLAN - IP - 12 }>(head.last_chunk()?, rest.get(..payload_len)?) {
        return None;
    }
    let source = Ipv4Addr::from((addresses >> 32) as u32);
    Some(Outer { source, header_len: VXLAN, payload_len, ecn: (kind >> 32) as u8 & 3 })
}

/// The same over IPv6, without extension headers.
#[inline(always)]
pub fn plain_ipv6(frame: &[u8], listening: &Listening) -> Option<Outer<Ipv6Addr>> {
    let (head, rest) = frame.split_first_chunk::<VXLAN_IPV6>()?;
    let word = |at: usize| head.get(at..)?.first_chunk().map(|word| u64::from_be_bytes(*word));
    let address = |at: usize| head.get(at..)?.first_chunk().map(|address| u128::from_be_bytes(*address));
    let (kind, udp) = (word(IP - 2)?, word(UDP_IPV6)?);
    let [next_header, _] = *head.get(IP + 6..)?.first_chunk()?;
    if kind & 0xffff_f000_0000_0000 != 0x86dd_6000_0000_0000 || next_header != PROTOCOL_UDP {
        return None;
    }
    let (to, port) = (address(IP + 24)?, (udp >> 32) as u16);
    if (Some(to) != listening.ipv6 || port != listening.port)
        && !listening.has(Ipv6Addr::from(to).into(), port)
    {
        return None;
    }
    let segment_len = usize::from(kind as u16).wrapping_sub(UdpHeader::LEN);
    let payload_len = usize::from((udp >> 16) as u16).wrapping_sub(UdpHeader::LEN);
    if payload_len > segment_len || segment_len > rest.len() {
        return None;
    }
    if udp as u16 == 0 {
        listening.accept_zero_checksum.then_some(())?;
    } else if !is_summed::<{ VXLAN_IPV6 - IP - 8 }>(head.last_chunk()?, rest.get(..payload_len)?) {
        return None;
    }
    let source = Ipv6Addr::from(address(IP + 8)?);
    Some(Outer { source, header_len: VXLAN_IPV6, payload_len, ecn: (kind >> 36) as u8 & 3 })
}

/// The UDP checksum, over the addresses (which stand before the UDP header), protocol and length too.
#[inline(never)]
fn is_summed<const N: usize>(addresses_and_udp: &[u8; N], payload: &[u8]) -> bool {
    let Some((_, [length @ .., _, _])) = addresses_and_udp.split_last_chunk::<4>() else { return false };
    let length = u16::from_be_bytes(*length);
    let sum = Sum::ZERO.word(u16::from(PROTOCOL_UDP)).word(length);
    sum.bytes(addresses_and_udp).bytes(payload).holds()
}

/// Any frame, step by step.
///
/// # Errors
/// The reason for which to drop it.
#[inline(never)]
pub fn parse_any(frame: &[u8], listening: &Listening) -> Result<Outer, DropReason> {
    let (eth, packet) = EthHeader::split(frame).ok_or(DropReason::OuterTruncated)?;
    let has = |address: IpAddr| listening.addresses.contains(&address);
    let has_port = |port: u16| listening.ports.contains(&port);
    match eth.ethertype() {
        ETHERTYPE_IPV4 => {
            let (outer, ip, udp, payload) = split(frame, packet, |to| has(to.into()), has_port)?;
            let pseudo = || udp_pseudo_header(ip.source(), ip.destination(), udp.length());
            if udp.has_checksum() && !udp.checksum_holds(pseudo(), payload) {
                return Err(DropReason::OuterUdpChecksum);
            }
            Ok(outer.any())
        }
        ETHERTYPE_IPV6 => {
            let (outer, ip, udp, payload) = split_ipv6(frame, packet, |to| has(to.into()), has_port)?;
            if !udp.has_checksum() && !listening.accept_zero_checksum {
                return Err(DropReason::OuterUdpNoChecksum);
            }
            let pseudo = || udp_pseudo_header_ipv6(ip.source(), ip.destination(), udp.length());
            if udp.has_checksum() && !udp.checksum_holds(pseudo(), payload) {
                return Err(DropReason::OuterUdpChecksum);
            }
            Ok(outer.any())
        }
        _ => Err(DropReason::OuterNotOurs),
    }
}

/// IPv4 to one address and port, without a look at the UDP checksum, for a measuring tool to which it is all the same.
///
/// # Errors
/// The reason for which to drop it.
#[inline]
pub fn parse_unsummed(frame: &[u8], vtep: Vtep) -> Result<Outer<Ipv4Addr>, DropReason> {
    let (eth, packet) = EthHeader::split(frame).ok_or(DropReason::OuterTruncated)?;
    if eth.ethertype() != ETHERTYPE_IPV4 {
        return Err(DropReason::OuterNotOurs);
    }
    split(frame, packet, |to| to == vtep.address, |port| port == vtep.port).map(|(outer, ..)| outer)
}

/// What [`split`] found: the headers, and what the UDP checksum covers.
type Split<'a, A, H> = (Outer<A>, &'a H, &'a UdpHeader, &'a [u8]);

/// Everything but the UDP checksum, with what that is computed from. `packet` is the end of `frame`.
#[inline]
fn split<'a>(
    frame: &'a [u8],
    packet: &'a [u8],
    has: impl Fn(Ipv4Addr) -> bool,
    has_port: impl Fn(u16) -> bool,
) -> Result<Split<'a, Ipv4Addr, Ipv4Header>, DropReason> {
    let (ip, segment) = Ipv4Header::split(packet)?;
    if ip.protocol() != PROTOCOL_UDP || !has(ip.destination()) {
        return Err(DropReason::OuterNotOurs);
    }
    if ip.is_fragment() {
        return Err(DropReason::OuterFragment);
    }
    let (udp, payload) = UdpHeader::split(segment)?;
    if !has_port(udp.destination()) {
        return Err(DropReason::OuterNotOurs);
    }
    Ok((found(frame, ip.source(), payload, ip.tos()), ip, udp, payload))
}

/// The same of IPv6. Extension headers are not ours (the XDP program leaves them to the kernel), and a fragment is one.
fn split_ipv6<'a>(
    frame: &'a [u8],
    packet: &'a [u8],
    has: impl Fn(Ipv6Addr) -> bool,
    has_port: impl Fn(u16) -> bool,
) -> Result<Split<'a, Ipv6Addr, Ipv6Header>, DropReason> {
    let (ip, segment) = Ipv6Header::split(packet)?;
    if !has(ip.destination()) {
        return Err(DropReason::OuterNotOurs);
    }
    match ip.next_header() {
        PROTOCOL_UDP => {}
        PROTOCOL_FRAGMENT => return Err(DropReason::OuterFragment),
        _ => return Err(DropReason::OuterNotOurs),
    }
    let (udp, payload) = UdpHeader::split(segment)?;
    if !has_port(udp.destination()) {
        return Err(DropReason::OuterNotOurs);
    }
    Ok((found(frame, ip.source(), payload, ip.traffic_class()), ip, udp, payload))
}

/// The payload is a part of `frame`: what lies before it is header, options included.
#[inline]
fn found<A>(frame: &[u8], source: A, payload: &[u8], tos: u8) -> Outer<A> {
    let header_len = payload.as_ptr().addr() - frame.as_ptr().addr();
    Outer { source, header_len, payload_len: payload.len(), ecn: tos & 3 }
}

/// The DSCP of a frame's outer header (RFC 2474 §3), without a tag before it.
#[inline]
pub fn dscp(frame: &[u8]) -> Option<u8> {
    let [first, second] = *frame.get(IP..)?.first_chunk()?;
    Some(if first >> 4 == 6 { (first & 0xf) << 2 | second >> 6 } else { second >> 2 })
}

/// Bytes in front of the inner frame, if the outer headers are as plain as ours.
pub fn usual_overhead(frame: &[u8]) -> usize {
    let is_ipv6 = EthHeader::split(frame).is_some_and(|(eth, _)| eth.ethertype() == ETHERTYPE_IPV6);
    if is_ipv6 { OVERHEAD_IPV6 } else { OVERHEAD_IPV4 }
}

const IP: usize = EthHeader::LEN;
const UDP: usize = IP + Ipv4Header::LEN;
const VXLAN: usize = UDP + UdpHeader::LEN;
const UDP_IPV6: usize = IP + Ipv6Header::LEN;
const VXLAN_IPV6: usize = UDP_IPV6 + UdpHeader::LEN;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{MacAddr, Vni};

    const OURS: [IpAddr; 4] = [
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2)),
        IpAddr::V4(Ipv4Addr::new(192, 0, 2, 22)),
        IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 0x22)),
    ];

    fn theirs(ours: IpAddr) -> IpAddr {
        match ours {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)),
        }
    }

    fn listening() -> Listening {
        Listening::new(&OURS, &[4789, 8472], true)
    }

    fn frame_to(to: IpAddr, port: u16, udp_checksum: bool, inner: &[u8]) -> Vec<u8> {
        let fields = OuterFields {
            destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
            source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            source: theirs(to),
            destination: to,
            port,
            ttl: 64,
        };
        let headers = OuterHeaders::new(&fields, None).unwrap();
        let mut packet = vec![0; headers.len()];
        packet.extend(inner);
        let vni = Vni::new(42).unwrap();
        let own = OwnFields { vni, source_port: 50000, port: None, tos: 0, udp_checksum };
        assert!(headers.write(&mut packet, &own));
        packet
    }

    /// IPv4 without and IPv6 with a UDP checksum, as it usually is.
    fn frame(ipv6: bool) -> Vec<u8> {
        frame_to(OURS[usize::from(ipv6)], 4789, ipv6, b"inner frame")
    }

    fn plain(frame: &[u8], listening: &Listening) -> Option<Outer> {
        let plain = plain_ipv4(frame, listening).map(Outer::any);
        plain.or_else(|| plain_ipv6(frame, listening).map(Outer::any))
    }

    #[test]
    fn what_we_write_we_accept_by_the_short_way() {
        for (ours, port) in OURS.into_iter().flat_map(|ours| [(ours, 4789), (ours, 8472)]) {
            for udp_checksum in [false, true] {
                let frame = frame_to(ours, port, udp_checksum, b"inner frame");
                let header_len = if ours.is_ipv4() { 42 } else { 62 };
                let outer = Outer { source: theirs(ours), header_len, payload_len: 19, ecn: 0 };
                assert_eq!(plain(&frame, &listening()), Some(outer));
                assert_eq!(parse_any(&frame, &listening()), Ok(outer));
                assert_eq!(parse(&frame, &listening()), Ok(outer));
                let header_lens = (usual_overhead(&frame), header_len + 8);
                assert_eq!(header_lens.0, header_lens.1);
            }
        }
    }

    #[test]
    fn over_ipv6_no_checksum_is_taken_only_if_that_is_wanted() {
        let strict = Listening::new(&OURS, &[4789], false);
        let summed =
            |ipv6: usize, sum: bool| parse(&frame_to(OURS[ipv6], 4789, sum, b"inner"), &strict).err();
        assert_eq!((summed(0, false), summed(0, true), summed(1, true)), (None, None, None));
        assert_eq!(summed(1, false), Some(DropReason::OuterUdpNoChecksum));
    }

    #[test]
    fn what_is_not_for_us_is_refused() {
        for (ipv6, what, offset, value, reason) in [
            (false, "ethertype", 13, 0x06, DropReason::OuterNotOurs),
            (false, "port", 37, 0, DropReason::OuterNotOurs),
            (false, "udp length", 39, 0xff, DropReason::OuterUdpInvalid),
            (false, "udp checksum", 41, 1, DropReason::OuterUdpChecksum),
            (false, "ip checksum", 25, 0, DropReason::OuterIpChecksum),
            (true, "version", 14, 0x40, DropReason::OuterIpInvalid),
            (true, "payload length", 18, 1, DropReason::OuterIpInvalid),
            (true, "address", 53, 3, DropReason::OuterNotOurs),
            (true, "hop-by-hop options", 20, 0, DropReason::OuterNotOurs),
            (true, "routing header", 20, 43, DropReason::OuterNotOurs),
            (true, "fragment", 20, 44, DropReason::OuterFragment),
            (true, "destination options", 20, 60, DropReason::OuterNotOurs),
            (true, "port", 57, 0, DropReason::OuterNotOurs),
            (true, "udp length", 59, 0xff, DropReason::OuterUdpInvalid),
            (true, "udp checksum", 61, 1, DropReason::OuterUdpChecksum),
        ] {
            let mut bytes = frame(ipv6);
            bytes[offset] = value;
            assert_eq!(parse(&bytes, &listening()), Err(reason), "{what}");
        }
        let elsewhere = Listening::new(&OURS[2..], &[4789], true);
        assert_eq!(parse(&frame(false), &elsewhere), Err(DropReason::OuterNotOurs));
        assert_eq!(parse(&frame(true), &elsewhere), Err(DropReason::OuterNotOurs));
        let none = Listening::new(&[], &[4789], true);
        let mut to_nobody = frame(true);
        to_nobody[38..54].fill(0xff);
        assert_eq!(parse(&to_nobody, &none), Err(DropReason::OuterNotOurs));
    }

    /// Linux leaves the sum of the pseudo header in a packet whose checksum was left to a card.
    #[test]
    fn a_checksum_that_was_left_to_a_card_is_taken() {
        for ipv6 in [false, true] {
            let mut bytes = frame_to(OURS[usize::from(ipv6)], 4789, true, b"inner frame");
            let (ip, udp) = if ipv6 { (22, UDP_IPV6) } else { (26, UDP) };
            let pseudo = Sum::ZERO.bytes(&bytes[ip..udp]).word(17).word((bytes.len() - udp) as u16);
            bytes[udp + 6..udp + 8].copy_from_slice(&pseudo.fold().to_be_bytes());
            assert!(parse(&bytes, &listening()).is_ok());
        }
    }

    #[test]
    fn every_truncation_is_refused() {
        for ipv6 in [false, true] {
            let frame = frame(ipv6);
            for len in 0..frame.len() {
                assert!(parse(&frame[..len], &listening()).is_err(), "{len} bytes");
            }
        }
    }

    #[test]
    fn a_dscp_and_an_ecn_field_are_read() {
        for (ipv6, tos) in (0..=255).flat_map(|tos| [(false, tos), (true, tos)]) {
            let mut bytes = frame(ipv6);
            if ipv6 {
                bytes[14] = 0x60 | tos >> 4;
                bytes[15] = bytes[15] & 0x0f | tos << 4;
            } else {
                bytes[15] = tos;
                resum(&mut bytes);
            }
            let read = parse(&bytes, &listening()).map(|outer| outer.ecn);
            assert_eq!((read, dscp(&bytes)), (Ok(tos & 3), Some(tos >> 2)));
        }
    }

    /// Makes the IPv4 header's checksum right.
    fn resum(bytes: &mut [u8]) {
        bytes[IP + 10..IP + 12].fill(0);
        let checksum = Sum::ZERO.bytes(&bytes[IP..UDP]).checksum();
        bytes[IP + 10..IP + 12].copy_from_slice(&checksum.to_be_bytes());
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_are_taken_or_refused(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            if let Ok(outer) = parse(&bytes, &listening()) {
                assert!(outer.header_len + outer.payload_len <= bytes.len());
            }
        }

        /// The short ways say the same as the long one, or nothing.
        #[test]
        fn what_is_plain_is_right(
            ipv6: bool,
            udp_checksum: bool,
            accept: bool,
            at in 0usize..81,
            value: u8,
            cut in 0usize..90,
            length: u8,
            sum: bool,
        ) {
            let mut bytes = frame_to(OURS[usize::from(ipv6)], 4789, udp_checksum, b"inner frame");
            let at = at % bytes.len();
            bytes[at] = value;
            let low = if ipv6 { UDP_IPV6 + 5 } else { UDP + 5 };
            bytes[low] = if length < 40 { length } else { bytes[low] };
            bytes.resize(cut.max(20), 0);
            if sum && !ipv6 && bytes.len() >= UDP {
                resum(&mut bytes);
            }
            let listening = Listening::new(&OURS, &[4789], accept);
            if let Some(outer) = plain(&bytes, &listening) {
                assert_eq!(parse_any(&bytes, &listening), Ok(outer));
            }
        }

        #[test]
        fn any_mutation_is_taken_or_refused(ipv6: bool, at in 0usize..81, value: u8) {
            let mut bytes = frame(ipv6);
            let at = at % bytes.len();
            bytes[at] = value;
            if let Ok(outer) = parse(&bytes, &listening()) {
                assert!(outer.header_len + outer.payload_len <= bytes.len());
            }
        }
    }
}
