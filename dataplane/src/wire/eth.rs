//! Ethernet II (IEEE 802.3 §3.1.1, without preamble and FCS).

use bytemuck::{Pod, Zeroable};

use super::{Be16, split_header};
use crate::types::MacAddr;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of IPv6.
pub const ETHERTYPE_IPV6: u16 = 0x86dd;
/// EtherType of an IEEE 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;
/// EtherType of an IEEE 802.1ad service tag.
pub const ETHERTYPE_QINQ: u16 = 0x88a8;

/// The 14-byte header.
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
#[repr(C)]
pub struct EthHeader {
    destination: [u8; 6],
    source: [u8; 6],
    ethertype: Be16,
}

impl EthHeader {
    /// Bytes on the wire.
    pub const LEN: usize = 14;

    /// `None` if `bytes` is shorter than a header.
    #[inline]
    pub fn split(bytes: &[u8]) -> Option<(&EthHeader, &[u8])> {
        split_header(bytes)
    }

    /// Where a frame goes and who sent it, as [`MacAddr::to_u64`] has it, each read as one word; `None` if it is shorter than a
    /// header.
    #[inline]
    pub fn numbers(frame: &[u8]) -> Option<(u64, u64)> {
        let header = frame.first_chunk::<{ EthHeader::LEN }>()?;
        let (destination, source) = (header.first_chunk::<8>()?, header.last_chunk::<8>()?);
        Some((u64::from_be_bytes(*destination) >> 16, u64::from_be_bytes(*source) >> 16))
    }

    /// Who sent it, as [`MacAddr::to_u64`] has it, and what follows, read as one word; `None` if the frame is shorter than a header.
    #[inline]
    pub fn source_and_type(frame: &[u8]) -> Option<(u64, u16)> {
        let header = frame.first_chunk::<{ EthHeader::LEN }>()?;
        let word = u64::from_be_bytes(*header.last_chunk::<8>()?);
        Some((word >> 16, word as u16))
    }

    /// A VLAN tag (IEEE 802.1Q or 802.1ad) follows.
    #[inline]
    pub fn is_tag(ethertype: u16) -> bool {
        // Most often one comparison says no, because what the two types have in common few others have.
        const COMMON: u16 = !(ETHERTYPE_VLAN ^ ETHERTYPE_QINQ);
        ethertype & COMMON == ETHERTYPE_VLAN & COMMON && matches!(ethertype, ETHERTYPE_VLAN | ETHERTYPE_QINQ)
    }

    /// Where it goes.
    #[inline]
    pub fn destination(&self) -> MacAddr {
        MacAddr(self.destination)
    }

    /// Who sent it.
    #[inline]
    pub fn source(&self) -> MacAddr {
        MacAddr(self.source)
    }

    /// What follows; below 0x0600 it is a length (IEEE 802.3 §3.2.6).
    #[inline]
    pub fn ethertype(&self) -> u16 {
        self.ethertype.get()
    }
}

const _: () = assert!(size_of::<EthHeader>() == EthHeader::LEN);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_stand_where_the_standard_puts_them() {
        let bytes = [0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2, 0x08, 0x06, 0xaa];
        let (header, rest) = EthHeader::split(&bytes).unwrap();
        assert_eq!(header.destination(), MacAddr([0x02, 0, 0, 0, 0, 1]));
        assert_eq!(header.source(), MacAddr([0x02, 0, 0, 0, 0, 2]));
        assert_eq!((header.ethertype(), rest), (0x0806, &[0xaa][..]));
        let numbers = (header.destination().to_u64(), header.source().to_u64());
        assert_eq!(EthHeader::numbers(&bytes), Some(numbers));
        assert_eq!(EthHeader::source_and_type(&bytes), Some((numbers.1, 0x0806)));
        let tags: Vec<u16> = (0..=u16::MAX).filter(|ethertype| EthHeader::is_tag(*ethertype)).collect();
        assert_eq!(tags, [ETHERTYPE_VLAN, ETHERTYPE_QINQ]);
        assert!(EthHeader::split(&bytes[..13]).is_none() && EthHeader::numbers(&bytes[..13]).is_none());
    }
}
