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

    /// Where it goes, as [`MacAddr::to_u64`] has it: read as one word.
    #[inline]
    pub fn destination_number(&self) -> u64 {
        let [a, b, c, d, e, f] = self.destination;
        u64::from_be_bytes([a, b, c, d, e, f, self.source[0], self.source[1]]) >> 16
    }

    /// Who sent it, as [`MacAddr::to_u64`] has it: read as one word.
    #[inline]
    pub fn source_number(&self) -> u64 {
        let [a, b, c, d, e, f] = self.source;
        let [g, h] = self.ethertype.0;
        u64::from_be_bytes([a, b, c, d, e, f, g, h]) >> 16
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
        assert_eq!(header.destination_number(), header.destination().to_u64());
        assert_eq!(header.source_number(), header.source().to_u64());
        assert!(EthHeader::split(&bytes[..13]).is_none());
    }
}
