//! The Internet checksum (RFC 1071): the complement of the ones' complement sum of 16-bit words.

/// A sum that has not been folded to 16 bits yet: the ones' complement sum of 64-bit words. Words of any size may be
/// added in the machine's own byte order; only what comes out at the end is swapped (RFC 1071 §2).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sum(u64);

impl Sum {
    /// Nothing summed yet.
    pub const ZERO: Sum = Sum(0);

    /// Adds a 16-bit word.
    #[inline]
    #[must_use]
    pub const fn word(self, word: u16) -> Sum {
        Sum::carried(self.0 as u128 + word.to_be() as u128)
    }

    /// Adds another sum, of an even number of bytes.
    #[inline]
    #[must_use]
    pub const fn plus(self, other: Sum) -> Sum {
        Sum::carried(self.0 as u128 + other.0 as u128)
    }

    /// Adds bytes, as words in network order; an odd last byte is padded with zero. Only the last piece of a
    /// packet may have an odd length.
    #[inline]
    #[must_use]
    pub fn bytes(self, bytes: &[u8]) -> Sum {
        let mut sum = u128::from(self.0);
        let (blocks, rest) = bytes.as_chunks::<64>();
        for block in blocks {
            sum += words(block);
        }
        // What is left is less than a block, so each of these is there once or not at all: no loop.
        let rest = take::<32>(&mut sum, rest);
        let rest = take::<16>(&mut sum, rest);
        let mut rest = take::<8>(&mut sum, rest);
        if let Some((quad, behind)) = rest.split_first_chunk() {
            sum += u128::from(u32::from_ne_bytes(*quad));
            rest = behind;
        }
        if let Some((pair, behind)) = rest.split_first_chunk() {
            sum += u128::from(u16::from_ne_bytes(*pair));
            rest = behind;
        }
        if let [byte] = rest {
            sum += u128::from(u16::from_ne_bytes([*byte, 0]));
        }
        Sum::carried(sum)
    }

    /// What went over 64 bits comes in again at the low end.
    #[inline]
    const fn carried(sum: u128) -> Sum {
        let (low, carry) = (sum as u64).overflowing_add((sum >> 64) as u64);
        Sum(low + carry as u64)
    }

    /// True for data that contains its own correct checksum.
    #[inline]
    pub const fn holds(self) -> bool {
        // It folds to 0xffff, the other zero of ones' complement: a multiple of it, but not nothing. What is a multiple of
        // an odd number is told by a product with its inverse modulo 2^64, the quotient then.
        const INVERSE: u64 = 0x0001_0001_0001_0001_u64.wrapping_neg();
        const { assert!(INVERSE.wrapping_mul(0xffff) == 1) }
        self.0.wrapping_mul(INVERSE).wrapping_sub(1) < u64::MAX / 0xffff
    }

    /// Folded to 16 bits, not complemented.
    #[inline]
    pub const fn fold(self) -> u16 {
        let mut sum = self.0;
        sum = (sum & 0xffff_ffff) + (sum >> 32);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        u16::from_be(sum as u16)
    }

    /// The checksum: what goes into the header field.
    #[inline]
    pub const fn checksum(self) -> u16 {
        !self.fold()
    }
}

/// Adds the first `N` bytes, if there are so many; returns what is behind them.
#[inline(always)]
fn take<'a, const N: usize>(sum: &mut u128, bytes: &'a [u8]) -> &'a [u8] {
    let Some((chunk, rest)) = bytes.split_first_chunk::<N>() else { return bytes };
    *sum += words(chunk);
    rest
}

/// The sum of `N / 8` words, at most 65 bits. Each is one addition with the carry of the one before it; and the next block's do not wait
/// for this one's, as they would if all were added to the same sum word by word (half the cycles at 1400 bytes).
#[inline(always)]
fn words<const N: usize>(block: &[u8; N]) -> u128 {
    let (mut sum, mut carry) = (0u64, false);
    for word in block.as_chunks::<8>().0 {
        (sum, carry) = sum.carrying_add(u64::from_ne_bytes(*word), carry);
    }
    u128::from(carry) << 64 | u128::from(sum)
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
        assert!(Sum::ZERO.bytes(&header).holds());
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
            prop_assert_eq!(Sum::ZERO.bytes(&bytes).holds(), plain == 0xffff);
        }

        /// The same in pieces, words among them, and with its checksum added it holds; so it does when every bit is set,
        /// which makes the most carries.
        #[test]
        fn pieces_sum_like_the_whole(
            bytes in prop_oneof![
                proptest::collection::vec(any::<u8>(), 2..200),
                proptest::collection::vec(Just(0xffu8), 2..200),
            ],
            cut in 0usize..100,
            word: u16,
        ) {
            let (head, tail) = bytes.split_at((cut * 2).min(bytes.len() & !1));
            let sum = Sum::ZERO.word(word).bytes(head).bytes(tail);
            let whole = [&word.to_be_bytes()[..], &bytes].concat();
            prop_assert_eq!(sum.fold(), Sum::ZERO.bytes(&whole).fold());
            prop_assert!(sum.word(sum.checksum()).holds());
        }
    }
}
