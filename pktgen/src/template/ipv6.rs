//! The inner frames of flows over IPv6: their header has no checksum, and UDP's must be there (RFC 8200 §8.1).

use std::net::SocketAddrV6;

use peregrine_dataplane::wire::checksum::Sum;
use peregrine_dataplane::wire::outer::OVERHEAD_IPV4;

use super::{Flow, SIZE_MAX, transmitted};
use crate::trailer::{self, Trailer};

/// Bytes of the inner headers: Ethernet, IPv6, UDP.
const HEADERS: usize = UDP_AT + 8;
/// Where they begin.
const IP_AT: usize = 14;
const UDP_AT: usize = IP_AT + 40;
/// The smallest inner frame, without FCS.
pub const SIZE_MIN: usize = HEADERS + trailer::LEN;

/// The headers of one flow.
#[derive(Clone, Debug)]
pub(super) struct Head {
    /// The outer ones; of it nothing else is used.
    outer: super::Head,
    /// Lengths and checksum are zero.
    inner: [u8; HEADERS],
    /// The folded sum of pseudo header and UDP header, without the length, which is in both.
    udp: u16,
}

impl Head {
    pub(super) fn new(
        flow: &Flow,
        source: SocketAddrV6,
        destination: SocketAddrV6,
        outer: Option<[u8; OVERHEAD_IPV4]>,
    ) -> Head {
        let mut inner = [0; HEADERS];
        inner[..6].copy_from_slice(&flow.destination_mac.0);
        inner[6..12].copy_from_slice(&flow.source_mac.0);
        inner[12..14].copy_from_slice(&[0x86, 0xdd]);
        // Version and traffic class; no flow label. UDP, hop limit 64.
        inner[IP_AT..IP_AT + 2].copy_from_slice(&[0x60 | flow.dscp >> 2, flow.dscp << 6]);
        inner[IP_AT + 6..IP_AT + 8].copy_from_slice(&[17, 64]);
        inner[IP_AT + 8..IP_AT + 24].copy_from_slice(&source.ip().octets());
        inner[IP_AT + 24..UDP_AT].copy_from_slice(&destination.ip().octets());
        inner[UDP_AT..UDP_AT + 2].copy_from_slice(&source.port().to_be_bytes());
        inner[UDP_AT + 2..UDP_AT + 4].copy_from_slice(&destination.port().to_be_bytes());
        // RFC 8200 §8.1: addresses, length, next header.
        let udp = Sum::ZERO.bytes(&inner[IP_AT + 8..UDP_AT]).word(17).bytes(&inner[UDP_AT..]).fold();
        Head { outer: super::outer_head(flow, &inner, outer), inner, udp }
    }

    /// As [`Template::write`](super::Template::write).
    #[inline]
    pub(super) fn write(&self, out: &mut [u8], packet: Trailer, wrapped: bool) -> bool {
        if !wrapped {
            return self.write_inner(out, packet);
        }
        let Some((outer, inner)) = out.split_first_chunk_mut::<OVERHEAD_IPV4>() else { return false };
        self.outer.write_outer(outer, inner.len() as u16);
        self.write_inner(inner, packet)
    }

    #[inline]
    fn write_inner(&self, out: &mut [u8], packet: Trailer) -> bool {
        if !(SIZE_MIN..=SIZE_MAX).contains(&out.len()) {
            return false;
        }
        let size = out.len();
        let udp_len = (size - UDP_AT) as u16;
        let Some((front, rest)) = out.split_first_chunk_mut::<HEADERS>() else { return false };
        let Some((filling, tail)) = rest.split_last_chunk_mut::<{ trailer::LEN }>() else { return false };
        *tail = packet.encode();
        let trailer = Sum::ZERO.bytes(tail).fold();
        // One that begins at an odd place of what the checksum covers has its words turned round there.
        let trailer = if size & 1 == 0 { trailer } else { trailer.swap_bytes() };
        let checksum = Sum::ZERO.word(self.udp).word(udp_len).word(udp_len).word(trailer).checksum();
        *front = self.inner;
        front[IP_AT + 4..IP_AT + 6].copy_from_slice(&udp_len.to_be_bytes());
        front[UDP_AT + 4..UDP_AT + 6].copy_from_slice(&udp_len.to_be_bytes());
        front[UDP_AT + 6..].copy_from_slice(&transmitted(checksum).to_be_bytes());
        filling.fill(0);
        true
    }
}
