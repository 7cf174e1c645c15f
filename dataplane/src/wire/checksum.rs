//! The Internet checksum (RFC 1071): the complement of the ones' complement sum of 16-bit words.

/// A sum that has not been folded to 16 bits yet. Wide enough for any packet that fits a chunk.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Nothing summed yet.
    pub const ZERO: Sum = Sum(0);

    /// Adds a 16-bit word.
    #[inline]
    #[must_use]
    pub const fn word(self, word: u16) -> Sum {
        Sum(self.0 + word as u64)
    }

    /// Adds bytes, as words in network order; an odd last byte is padded with zero. Only the last piece of a
    /// packet may have an odd length.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        // Four bytes at a time: ones' complement addition does not care how the words are grouped (RFC 1071 §2).
        let (quads, rest) = bytes.as_chunks::<4>();
        let mut sum = self.0;
        for quad in quads {
            sum += u64::from(u32::from_be_bytes(*quad));
        }
        let (pairs, last) = rest.as_chunks::<2>();
        for pair in pairs {
            sum += u64::from(u16::from_be_bytes(*pair));
        }
        if let [byte] = last {
            sum += u64::from(*byte) << 8;
        }
        Sum(sum)
    }

    /// Folded to 16 bits, not complemented: 0xffff for data that contains its own correct checksum.
    #[inline]
    pub const fn fold(self) -> u16 {
        let mut sum = self.0;
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum as u16
    }

    /// The checksum: what goes into the header field.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// RFC 1071 §3's example.
    #[test]
    fn the_rfcs_example() {
        let sum = Sum::ZERO.bytes(&[0x00, 0x01, 0xf2, 0x03, 0xf4, 0xf5, 0xf6, 0xf7]);
        assert_eq!(sum.fold(), 0xddf2);
        assert_eq!(sum.checksum(), 0x220d);
    }

    /// The IPv4 header of RFC 1071's well-known worked example.
    #[test]
    fn an_ipv4_header_checks_out() {
        let mut header = [
            0x45, 0x00, 0x00, 0x73, 0x00, 0x00, 0x40, 0x00, 0x40, 0x11, 0x00, 0x00, 0xc0, 0xa8, 0x00, 0x01,
            0xc0, 0xa8, 0x00, 0xc7,
        ];
        let checksum = Sum::ZERO.bytes(&header).checksum();
        assert_eq!(checksum, 0xb861);
        header[10..12].copy_from_slice(&checksum.to_be_bytes());
        assert_eq!(Sum::ZERO.bytes(&header).fold(), 0xffff);
    }

    proptest! {
        /// Against the definition, word by word, and against etherparse's independent sum.
        #[test]
        fn any_bytes_sum_as_defined(bytes in proptest::collection::vec(any::<u8>(), 0..2000)) {
            let mut plain = 0u64;
            for pair in bytes.chunks(2) {
                plain += u64::from(u16::from_be_bytes([pair[0], *pair.get(1).unwrap_or(&0)]));
                plain = (plain & 0xffff) + (plain >> 16);
            }
            prop_assert_eq!(u64::from(Sum::ZERO.bytes(&bytes).fold()), plain);
            let theirs = etherparse::checksum::Sum16BitWords::new().add_slice(&bytes).ones_complement().to_be();
            prop_assert_eq!(Sum::ZERO.bytes(&bytes).checksum(), theirs);
        }
    }
}
