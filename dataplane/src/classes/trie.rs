//! From a number to what was said for the ranges around it: a trie that takes a byte at each step. Used by `classes.rs`, for
//! ports and addresses.
//!
//! How many steps a look-up takes depends on how finely the numbers near it are told apart, not on how many ranges there are.

use super::rows::{Rows, set};

/// One range, first and last number, and the rule it belongs to.
pub type Range = (u128, u128, usize);

/// Nodes of 256 entries each, the root first. An entry is a row, or with the highest bit set the place of another node's first entry.
#[derive(Clone, Debug)]
pub struct Trie {
    entries: Box<[u32]>,
}

const NODE: u32 = 1 << 31;

impl Trie {
    /// For numbers of `bytes` bytes. Each gives the row of `always` and of the rules whose ranges it is in.
    pub fn new(bytes: u32, ranges: &[Range], always: &[u64], rows: &mut Rows) -> Trie {
        let mut entries = vec![0; 256];
        fill(&mut entries, 0, (0, bytes), ranges, always, rows);
        Trie { entries: entries.into() }
    }

    /// The row for a number, its most significant byte first.
    #[inline]
    pub fn get(&self, number: &[u8]) -> u32 {
        let mut node = 0;
        for byte in number {
            let entry = self.entries.get(node as usize + usize::from(*byte)).copied().unwrap_or_default();
            if entry & NODE == 0 {
                return entry;
            }
            node = entry & !NODE;
        }
        0 // not reached: what the last byte leads to is a row
    }
}

/// Fills the node at `node`, whose numbers begin at `first` and are told apart by `bytes` more bytes.
fn fill(
    entries: &mut Vec<u32>,
    node: usize,
    (first, bytes): (u128, u32),
    ranges: &[Range],
    inherited: &[u64],
    rows: &mut Rows,
) {
    let size = 1u128 << (8 * bytes.saturating_sub(1));
    let plain = rows.add(inherited);
    for byte in 0..256 {
        let from = first + byte as u128 * size;
        let to = from + (size - 1);
        let near: Vec<Range> = ranges.iter().copied().filter(|r| r.0 <= to && from <= r.1).collect();
        let (whole, part): (Vec<Range>, Vec<Range>) = near.iter().partition(|r| r.0 <= from && to <= r.1);
        let mut row = inherited.to_vec();
        if !whole.is_empty() {
            whole.iter().for_each(|range| set(&mut row, range.2));
        }
        let entry = if !part.is_empty() {
            let child = entries.len();
            entries.resize(child + 256, 0);
            fill(entries, child, (from, bytes - 1), &part, &row, rows);
            child as u32 | NODE
        } else if whole.is_empty() {
            plain
        } else {
            rows.add(&row)
        };
        if let Some(place) = entries.get_mut(node + byte) {
            *place = entry;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::rows::words;
    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        /// Of ports and IPv6 addresses: the row has the rules in whose ranges the number lies, and those of `always`.
        #[test]
        fn a_number_gives_the_ranges_that_it_is_in(
            ports in proptest::collection::vec((any::<u16>(), any::<u16>()), 0..100),
            wide in proptest::collection::vec((any::<u128>(), 0u32..128), 1..20),
            numbers in proptest::collection::vec(any::<u16>(), 20),
        ) {
            let sorted = |(a, b): &(u16, u16)| (u128::from(*a.min(b)), u128::from(*a.max(b)));
            let ports: Vec<(u128, u128)> = ports.iter().map(sorted).collect();
            let ends = ports.iter().flat_map(|r| [r.0, r.1, r.0.saturating_sub(1), r.1 + 1]);
            let near: Vec<u128> = ends.chain(numbers.iter().map(|n| u128::from(*n))).collect();
            check(2, &ports, &near)?;
            let prefix = |(first, bits): &(u128, u32)| (first >> bits << bits, first | ((1u128 << bits) - 1));
            let wide: Vec<(u128, u128)> = wide.iter().map(prefix).collect();
            let ends = wide.iter().flat_map(|r| [r.0, r.1, r.0.wrapping_sub(1), r.1.wrapping_add(1)]);
            check(16, &wide, &ends.collect::<Vec<_>>())?;
        }
    }

    fn check(bytes: u32, ranges: &[(u128, u128)], numbers: &[u128]) -> Result<(), TestCaseError> {
        let mut rows = Rows::new();
        let width = words(ranges.len() + 1);
        let mut always = vec![0; width];
        set(&mut always, ranges.len());
        let placed: Vec<Range> = ranges.iter().enumerate().map(|(place, r)| (r.0, r.1, place)).collect();
        let trie = Trie::new(bytes, &placed, &always, &mut rows);
        let rows = rows.into_words();
        for number in numbers.iter().filter(|n| bytes == 16 || **n >> (8 * bytes) == 0) {
            let row = trie.get(&number.to_be_bytes()[16 - bytes as usize..]) as usize;
            let mut expected = always.clone();
            for (place, _) in ranges.iter().enumerate().filter(|(_, r)| (r.0..=r.1).contains(number)) {
                set(&mut expected, place);
            }
            prop_assert_eq!(&rows[row + 1..row + 1 + width], &expected[..], "{} of {:?}", number, ranges);
            for (word, bits) in expected.iter().enumerate() {
                prop_assert_eq!(rows[row] >> word & 1 == 1, *bits != 0, "summary, word {}", word);
            }
        }
        Ok(())
    }
}
