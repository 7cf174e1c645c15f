//! How often each of many values came, at one plain addition each: one worker writes it, anybody reads it meanwhile. How long frames
//! wait (`waiting`) is noted so, and how late they are where a measurement wants to know (`discard`).
//!
//! Values below 32 have a place each; above, each power of two is cut into 32 places of one width (log-linear, as HdrHistogram does it),
//! so what is read off is less than 1/32 above what was recorded.

use crate::counters::Counter;

/// Places for each power of two.
const PARTS: u64 = 1 << PART_BITS;
const PART_BITS: u32 = 5;
/// Places for all values of 64 bits.
const PLACES: usize = PARTS as usize * (u64::BITS - PART_BITS + 1) as usize;

/// The counters; with one writer.
#[derive(Debug)]
pub struct Histogram(Box<[Counter]>);

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram(std::iter::repeat_with(Counter::default).take(PLACES).collect())
    }
}

impl Histogram {
    /// Counts this value. Only the owning worker calls this.
    #[inline]
    pub fn record(&self, value: u64) {
        if let Some(counter) = self.0.get(place(value)) {
            counter.add(1);
        }
    }

    /// How often something came in each place, in rising order; [`highest`] tells the values.
    pub fn counts(&self) -> Vec<u64> {
        self.0.iter().map(Counter::get).collect()
    }
}

/// How many of the lowest bits do not count is told by the highest bit set.
#[inline]
fn place(value: u64) -> usize {
    let shift = (value | (PARTS - 1)).ilog2().saturating_sub(PART_BITS);
    (u64::from(shift) * PARTS + (value >> shift)) as usize
}

/// The highest value that is counted in this place.
pub fn highest(place: usize) -> u64 {
    let place = place as u64;
    let shift = (place / PARTS).saturating_sub(1);
    let first = (place - shift * PARTS) << shift;
    first | ((1 << shift) - 1)
}

/// Of samples in rising order, as [`Histogram::counts`] or the sum of several has them, the value of the one with this number, from 1.
pub fn value_at(counts: &[u64], number: u64) -> Option<u64> {
    let mut seen = 0;
    let place = counts.iter().position(|count| {
        seen += count;
        seen >= number.max(1)
    });
    place.map(highest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_follow_one_another_without_a_gap_and_are_narrow() {
        let mut lowest = 0;
        for index in 0..PLACES {
            let highest = highest(index);
            assert_eq!((place(lowest), place(highest)), (index, index), "{lowest} to {highest}");
            assert!(
                index < 32 && highest == lowest || highest - lowest <= lowest / 32,
                "{lowest} to {highest}"
            );
            assert_eq!(highest == u64::MAX, index == PLACES - 1);
            lowest = highest.wrapping_add(1);
        }
    }

    #[test]
    fn each_value_is_counted_in_the_first_place_that_reaches_it() {
        let histogram = Histogram::default();
        let mut expected = vec![0; PLACES];
        let all: Vec<u64> = (0..PLACES).map(highest).collect();
        let mut random = 1u64;
        for n in 0..20_000 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let value = random >> (n % 64);
            histogram.record(value);
            expected[all.partition_point(|highest| *highest < value)] += 1;
        }
        assert_eq!(histogram.counts(), expected);
    }
}
