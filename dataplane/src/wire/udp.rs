//! UDP (RFC 768) in the outer packet.

use bytemuck::{Pod, Zeroable};

use super::checksum::Sum;
use super::{Be16, split_header};
use crate::counters::DropReason;

/// The 8-byte header.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct UdpHeader {
    source: Be16,
    destination: Be16,
    length: Be16,
    checksum: Be16,
}

const _: () = assert!(size_of::<UdpHeader>() == UdpHeader::LEN);

impl UdpHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 8;

    /// The header and its payload, cut to the length field.
    ///
    /// # Errors
    /// [`DropReason::OuterUdpInvalid`].
    #[inline]
    pub fn split(bytes: &[u8]) -> Result<(&UdpHeader, &[u8]), DropReason> {
        let (header, rest) = split_header::<UdpHeader>(bytes).ok_or(DropReason::OuterUdpInvalid)?;
        let payload_len = usize::from(header.length.get()).wrapping_sub(UdpHeader::LEN);
        let payload = rest.get(..payload_len).ok_or(DropReason::OuterUdpInvalid)?;
        Ok((header, payload))
    }

    /// True when there is a checksum.
    #[inline]
    pub fn has_checksum(&self) -> bool {
        self.checksum.get() != 0
    }

    /// True when there is no checksum, it is right, or it was left to the sender's network card and holds the sum of
    /// the pseudo header only (see [`partial`](super::partial)). `pseudo` is the sum over the IP addresses, protocol
    /// and length; `payload` what [`split`](Self::split) gave.
    pub fn checksum_holds(&self, pseudo: Sum, payload: &[u8]) -> bool {
        !self.has_checksum()
            || self.checksum.get() == pseudo.fold()
            || pseudo.bytes(bytemuck::bytes_of(self)).bytes(payload).holds()
    }

    /// Destination port.
    #[inline]
    pub fn destination(&self) -> u16 {
        self.destination.get()
    }

    /// Source port.
    #[inline]
    pub fn source(&self) -> u16 {
        self.source.get()
    }

    /// Header and payload, in bytes.
    #[inline]
    pub fn length(&self) -> u16 {
        self.length.get()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::ip::udp_pseudo_header;

    #[test]
    fn lengths_that_do_not_fit_are_refused() {
        let good = [0xc0, 0x00, 0x12, 0xb5, 0x00, 0x0a, 0, 0, 7, 8];
        let (header, payload) = UdpHeader::split(&good).unwrap();
        assert_eq!(
            (header.source(), header.destination(), header.length(), payload),
            (0xc000, 4789, 10, &[7, 8][..])
        );
        for length in [0u8, 7, 11, 255] {
            let mut bad = good;
            bad[5] = length;
            assert_eq!(UdpHeader::split(&bad).err(), Some(DropReason::OuterUdpInvalid), "length {length}");
        }
        assert!(UdpHeader::split(&good[..7]).is_err());
    }

    #[test]
    fn a_checksum_is_verified_when_there_is_one() {
        let (a, b) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let payload = [1u8, 2, 3];
        let built = etherparse::UdpHeader::with_ipv4_checksum(
            49152,
            4789,
            &etherparse::Ipv4Header::new(11, 64, etherparse::IpNumber::UDP, [192, 0, 2, 1], [192, 0, 2, 2])
                .unwrap(),
            &payload,
        );
        let mut bytes = built.unwrap().to_bytes().to_vec();
        bytes.extend(payload);
        let (header, rest) = UdpHeader::split(&bytes).unwrap();
        assert!(header.checksum_holds(udp_pseudo_header(a, b, 11), rest));
        let mut wrong = bytes.clone();
        wrong[9] ^= 1;
        let (header, rest) = UdpHeader::split(&wrong).unwrap();
        assert!(!header.checksum_holds(udp_pseudo_header(a, b, 11), rest));
        wrong[6..8].copy_from_slice(&udp_pseudo_header(a, b, 11).fold().to_be_bytes());
        let (header, rest) = UdpHeader::split(&wrong).unwrap();
        assert!(header.checksum_holds(udp_pseudo_header(a, b, 11), rest), "left to a card that is not there");
        wrong[6..8].fill(0);
        let (header, rest) = UdpHeader::split(&wrong).unwrap();
        assert!(header.checksum_holds(udp_pseudo_header(a, b, 11), rest), "zero means none");
    }
}
