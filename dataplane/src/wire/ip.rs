//! The outer IPv4 header (RFC 791 §3.1) and IPv6 header (RFC 8200 §3), checked as a VTEP must.

use std::net::{Ipv4Addr, Ipv6Addr};

use bytemuck::{Pod, Zeroable};

use super::checksum::Sum;
use super::{Be16, split_header};
use crate::counters::DropReason;

/// Protocol number of UDP.
pub const PROTOCOL_UDP: u8 = 17;
/// Protocol number of TCP.
pub const PROTOCOL_TCP: u8 = 6;
/// Protocol number of the IPv6 fragment header.
pub const PROTOCOL_FRAGMENT: u8 = 44;
/// Protocol number of SCTP.
pub const PROTOCOL_SCTP: u8 = 132;

/// The fixed 20 bytes; options may follow.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv4Header {
    version_ihl: u8,
    tos: u8,
    total_length: Be16,
    identification: Be16,
    flags_offset: Be16,
    ttl: u8,
    protocol: u8,
    checksum: Be16,
    source: [u8; 4],
    destination: [u8; 4],
}

const _: () = assert!(size_of::<Ipv4Header>() == Ipv4Header::LEN);

impl Ipv4Header {
    /// Bytes without options.
    pub const LEN: usize = 20;

    /// The header and its payload, cut to the total length (Ethernet pads short frames). Version, lengths and
    /// checksum are checked.
    ///
    /// # Errors
    /// [`DropReason::OuterIpInvalid`] or [`DropReason::OuterIpChecksum`].
    #[inline]
    pub fn split(bytes: &[u8]) -> Result<(&Ipv4Header, &[u8]), DropReason> {
        let (header, rest) = split_header::<Ipv4Header>(bytes).ok_or(DropReason::OuterIpInvalid)?;
        // Version 4, and what the header is longer than its fixed part: 0 to 10 words.
        let options_len = usize::from(header.version_ihl.wrapping_sub(0x45)) * 4;
        if options_len > 40 {
            return Err(DropReason::OuterIpInvalid);
        }
        let rest_len = usize::from(header.total_length.get()).wrapping_sub(Ipv4Header::LEN);
        let rest = rest.get(..rest_len).ok_or(DropReason::OuterIpInvalid)?;
        let (options, payload) = rest.split_at_checked(options_len).ok_or(DropReason::OuterIpInvalid)?;
        let mut sum = Sum::ZERO.bytes(bytemuck::bytes_of(header));
        if !options.is_empty() {
            sum = with_options(sum, options);
        }
        if !sum.holds() {
            return Err(DropReason::OuterIpChecksum);
        }
        Ok((header, payload))
    }

    /// More fragments follow, or this is not the first.
    #[inline]
    pub fn is_fragment(&self) -> bool {
        self.flags_offset.get() & 0x3fff != 0
    }

    /// DSCP and ECN.
    #[inline]
    pub fn tos(&self) -> u8 {
        self.tos
    }

    /// What follows.
    #[inline]
    pub fn protocol(&self) -> u8 {
        self.protocol
    }

    /// Who sent it.
    #[inline]
    pub fn source(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.source)
    }

    /// Where it goes.
    #[inline]
    pub fn destination(&self) -> Ipv4Addr {
        Ipv4Addr::from(self.destination)
    }
}

#[cold]
fn with_options(sum: Sum, options: &[u8]) -> Sum {
    sum.bytes(options)
}

/// The part of the UDP checksum that covers the IPv4 addresses, protocol and UDP length (RFC 768).
#[inline]
pub fn udp_pseudo_header(source: Ipv4Addr, destination: Ipv4Addr, udp_len: u16) -> Sum {
    Sum::ZERO.bytes(&source.octets()).bytes(&destination.octets()).word(u16::from(PROTOCOL_UDP)).word(udp_len)
}

/// The 40 bytes; extension headers may follow.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct Ipv6Header {
    version_class_label: [u8; 4],
    payload_length: Be16,
    next_header: u8,
    hop_limit: u8,
    source: [u8; 16],
    destination: [u8; 16],
}

const _: () = assert!(size_of::<Ipv6Header>() == Ipv6Header::LEN);

impl Ipv6Header {
    /// Bytes without extension headers.
    pub const LEN: usize = 40;

    /// The header and what follows it, cut to the payload length. Version and length are checked.
    ///
    /// # Errors
    /// [`DropReason::OuterIpInvalid`].
    pub fn split(bytes: &[u8]) -> Result<(&Ipv6Header, &[u8]), DropReason> {
        let (header, rest) = split_header::<Ipv6Header>(bytes).ok_or(DropReason::OuterIpInvalid)?;
        if header.version_class_label[0] >> 4 != 6 {
            return Err(DropReason::OuterIpInvalid);
        }
        let payload =
            rest.get(..usize::from(header.payload_length.get())).ok_or(DropReason::OuterIpInvalid)?;
        Ok((header, payload))
    }

    /// What follows: a protocol or an extension header.
    pub fn next_header(&self) -> u8 {
        self.next_header
    }

    /// DSCP and ECN.
    pub fn traffic_class(&self) -> u8 {
        self.version_class_label[0] << 4 | self.version_class_label[1] >> 4
    }

    /// Who sent it.
    pub fn source(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.source)
    }

    /// Where it goes.
    pub fn destination(&self) -> Ipv6Addr {
        Ipv6Addr::from(self.destination)
    }
}

/// The part of the UDP checksum that covers the IPv6 addresses, protocol and UDP length (RFC 8200 §8.1).
pub fn udp_pseudo_header_ipv6(source: Ipv6Addr, destination: Ipv6Addr, udp_len: u16) -> Sum {
    Sum::ZERO.bytes(&source.octets()).bytes(&destination.octets()).word(u16::from(PROTOCOL_UDP)).word(udp_len)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 192.0.2.1 → 192.0.2.2, UDP, total length 28, TTL 64, DF.
    pub(crate) const GOOD: [u8; 28] = [
        0x45, 0x00, 0x00, 0x1c, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0xb6, 0xcd, 192, 0, 2, 1, 192, 0, 2, 2,
        1, 2, 3, 4, 5, 6, 7, 8,
    ];

    fn with_checksum(mut bytes: Vec<u8>) -> Vec<u8> {
        let len = usize::from(bytes[0] & 0xf) * 4;
        bytes[10..12].fill(0);
        let sum = Sum::ZERO.bytes(&bytes[..len]).checksum();
        bytes[10..12].copy_from_slice(&sum.to_be_bytes());
        bytes
    }

    #[test]
    fn a_good_header_gives_its_fields_and_the_unpadded_payload() {
        let mut padded = GOOD.to_vec();
        padded.extend([0; 18]);
        let (header, payload) = Ipv4Header::split(&padded).unwrap();
        assert_eq!(
            (header.source(), header.destination()),
            (Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 2))
        );
        assert_eq!((header.protocol(), header.is_fragment()), (PROTOCOL_UDP, false));
        assert_eq!(payload, [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    #[test]
    fn lies_about_version_and_lengths_are_refused() {
        for (what, offset, value) in [
            ("version 5", 0, 0x55),
            ("ihl 4", 0, 0x44),
            ("ihl 15", 0, 0x4f),
            ("too long", 3, 29),
            ("shorter than its header", 3, 19),
        ] {
            let mut bytes = GOOD.to_vec();
            bytes[offset] = value;
            assert_eq!(Ipv4Header::split(&bytes).err(), Some(DropReason::OuterIpInvalid), "{what}");
        }
        for len in 0..GOOD.len() {
            assert_eq!(
                Ipv4Header::split(&GOOD[..len]).err(),
                Some(DropReason::OuterIpInvalid),
                "{len} bytes"
            );
        }
    }

    #[test]
    fn every_single_bit_error_in_the_header_is_found() {
        for bit in 0..160 {
            let mut bytes = GOOD.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Ipv4Header::split(&bytes).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn options_are_skipped() {
        let mut bytes = GOOD.to_vec();
        bytes[0] = 0x46;
        bytes[3] = 32;
        bytes.splice(20..20, [0x94, 0x04, 0, 0]);
        let bytes = with_checksum(bytes);
        let (_, payload) = Ipv4Header::split(&bytes).unwrap();
        assert_eq!(payload, [1, 2, 3, 4, 5, 6, 7, 8]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(2000))]
        /// Against etherparse, which knows every length of header: the same are taken, with the same fields.
        #[test]
        fn another_parser_takes_the_same(
            mut bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 20..120),
            version_ihl in proptest::prop_oneof![0x40u8..=0x4f, proptest::prelude::any::<u8>()],
            total_len in 0u16..130,
            right: bool,
        ) {
            bytes[0] = version_ihl;
            bytes[6] &= 0x7f; // the reserved bit, which it does not sum
            bytes[2..4].copy_from_slice(&total_len.to_be_bytes());
            let header_len = usize::from(version_ihl & 0xf) * 4;
            if right && (20..=bytes.len()).contains(&header_len) {
                bytes = with_checksum(bytes);
            }
            let theirs = etherparse::Ipv4Slice::from_slice(&bytes);
            match (Ipv4Header::split(&bytes), theirs) {
                (Ok((header, payload)), Ok(theirs)) => {
                    let slice = theirs.header();
                    assert_eq!(slice.header_checksum(), slice.to_header().calc_header_checksum());
                    assert_eq!(header.source(), slice.source_addr());
                    assert_eq!(header.destination(), slice.destination_addr());
                    assert_eq!(header.protocol(), slice.protocol().0);
                    assert_eq!(header.is_fragment(), slice.is_fragmenting_payload());
                    assert_eq!(payload, &bytes[slice.slice().len()..usize::from(total_len)]);
                }
                (Err(DropReason::OuterIpChecksum), Ok(theirs)) => {
                    let slice = theirs.header();
                    assert_ne!(slice.header_checksum(), slice.to_header().calc_header_checksum());
                }
                (Err(DropReason::OuterIpInvalid), Err(_)) => {}
                // It takes headers whose extension (an authentication header) is cut off for broken ones.
                (Ok((header, _)), Err(_)) => assert_eq!(header.protocol(), 51),
                (Err(DropReason::OuterIpChecksum), Err(_)) => assert_eq!(bytes[9], 51),
                (ours, theirs) => panic!("{:?} and {theirs:?}", ours.err()),
            }
        }
    }

    #[test]
    fn lies_about_an_ipv6_header_are_refused() {
        let good = [&[0x6a, 0xb0, 0, 0, 0, 2, 17, 64][..], &[0; 16], &[1; 16], &[7, 8]].concat();
        let (header, payload) = Ipv6Header::split(&good).unwrap();
        assert_eq!((header.traffic_class(), header.next_header(), payload), (0xab, 17, &[7, 8][..]));
        assert_eq!((header.source(), header.destination()), (Ipv6Addr::UNSPECIFIED, Ipv6Addr::from([1; 16])));
        for (offset, value) in [(0, 0x45), (0, 0x7a), (5, 3), (4, 1)] {
            let mut bytes = good.clone();
            bytes[offset] = value;
            assert_eq!(Ipv6Header::split(&bytes).err(), Some(DropReason::OuterIpInvalid));
        }
        for len in 0..good.len() {
            assert!(Ipv6Header::split(&good[..len]).is_err(), "{len} bytes");
        }
    }

    #[test]
    fn fragments_are_told() {
        for (flags_offset, fragment) in
            [([0x40, 0], false), ([0x20, 0], true), ([0, 1], true), ([0x1f, 0xff], true), ([0x80, 0], false)]
        {
            let mut bytes = GOOD.to_vec();
            bytes[6..8].copy_from_slice(&flags_offset);
            let bytes = with_checksum(bytes);
            assert_eq!(Ipv4Header::split(&bytes).unwrap().0.is_fragment(), fragment, "{flags_offset:?}");
        }
    }
}
