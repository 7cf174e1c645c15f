//! Pseudo-random numbers for traffic: xoshiro256++ (Blackman and Vigna), seeded by splitmix64, as its authors advise. A
//! seed gives the same numbers on every machine and in every version: a run can be repeated.
//!
//! [`Deck`] and [`Weighted`] are the two ways in which `send` chooses by weight.

/// A stream of numbers.
#[derive(Clone, Debug)]
pub struct Rng([u64; 4]);

impl Rng {
    /// The stream of a seed; `stream` tells apart those who share it.
    pub fn new(seed: u64, stream: u64) -> Rng {
        let mut state = seed ^ stream.wrapping_mul(0xd134_2543_de82_ef95);
        Rng([(); 4].map(|()| splitmix(&mut state)))
    }

    /// The next 64 bits.
    #[inline]
    pub fn bits(&mut self) -> u64 {
        let [a, b, c, d] = &mut self.0;
        let result = a.wrapping_add(*d).rotate_left(23).wrapping_add(*a);
        let shifted = *b << 17;
        *c ^= *a;
        *d ^= *b;
        *b ^= *c;
        *a ^= *d;
        *c ^= shifted;
        *d = d.rotate_left(45);
        result
    }

    /// Below `limit`, each number alike (to 1 in 2³²); 0 if `limit` is 0.
    #[inline]
    pub fn below(&mut self, limit: u32) -> u32 {
        (((self.bits() >> 32) * u64::from(limit)) >> 32) as u32
    }

    /// Above 0 and up to 1.
    #[inline]
    pub fn unit(&mut self) -> f64 {
        ((self.bits() >> 11) + 1) as f64 / (1u64 << 53) as f64
    }
}

fn splitmix(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Chooses among a few by whole weights, exactly: a deck that holds each one as often as its weight says is dealt in random
/// order, then shuffled again.
#[derive(Clone, Debug)]
pub struct Deck {
    cards: Vec<u8>,
    at: usize,
}

impl Deck {
    /// The most cards: so many packets pass before the proportions are exact.
    pub const CARDS_MAX: u64 = 10_000;

    /// `None` if all weights are 0, there are more than 256 of them, or they add up to more than [`Self::CARDS_MAX`] cards.
    pub fn new(weights: &[u32]) -> Option<Deck> {
        let divisor = weights.iter().fold(0, |all, weight| gcd(all, *weight));
        let count = weights.iter().map(|weight| u64::from(*weight)).sum::<u64>() / u64::from(divisor.max(1));
        if divisor == 0 || count > Self::CARDS_MAX || weights.len() > 256 {
            return None;
        }
        let cards = weights.iter().zip(0u8..=255).flat_map(|(weight, card)| {
            std::iter::repeat_n(card, usize::try_from(*weight / divisor).unwrap_or(0))
        });
        Some(Deck { cards: cards.collect(), at: 0 })
    }

    /// The next card: which of the weights.
    #[inline]
    pub fn draw(&mut self, rng: &mut Rng) -> usize {
        if self.cards.len() <= 1 {
            return self.cards.first().copied().map_or(0, usize::from);
        }
        let left = self.cards.len() - self.at;
        let chosen = self.at + rng.below(left as u32) as usize;
        self.cards.swap(self.at, chosen);
        let card = self.cards.get(self.at).copied().unwrap_or(0);
        self.at = if left == 1 { 0 } else { self.at + 1 };
        usize::from(card)
    }
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Chooses among many by any weights, in constant time: Vose's alias method.
#[derive(Clone, Debug)]
pub struct Weighted {
    /// Of each place: below which 32-bit number it is meant itself, and which one is meant otherwise.
    places: Vec<(u64, u32)>,
}

impl Weighted {
    /// Weights are finite and above 0.
    pub fn new(weights: &[f64]) -> Weighted {
        let mean = weights.iter().sum::<f64>() / weights.len().max(1) as f64;
        let mut scaled: Vec<f64> = weights.iter().map(|weight| weight / mean).collect();
        let mut places: Vec<(u64, u32)> = (0..weights.len() as u32).map(|own| (1 << 32, own)).collect();
        let (mut small, mut large): (Vec<usize>, Vec<usize>) =
            (0..weights.len()).partition(|place| scaled.get(*place).is_some_and(|weight| *weight < 1.0));
        while let (Some(poor), Some(rich)) = (small.pop(), large.last().copied()) {
            let share = scaled.get(poor).copied().unwrap_or(1.0);
            if let Some(place) = places.get_mut(poor) {
                *place = ((share * (1u64 << 32) as f64) as u64, rich as u32);
            }
            let Some(rest) = scaled.get_mut(rich) else { break };
            *rest -= 1.0 - share;
            if *rest < 1.0 {
                large.pop();
                small.push(rich);
            }
        }
        Weighted { places }
    }

    /// The next one.
    #[inline]
    pub fn draw(&self, rng: &mut Rng) -> usize {
        let bits = rng.bits();
        let place = (((bits >> 32) * self.places.len() as u64) >> 32) as usize;
        match self.places.get(place) {
            Some((below, other)) if bits & 0xffff_ffff >= *below => *other as usize,
            _ => place,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first numbers of the authors' code for the state 1, 2, 3, 4; and of splitmix64 for 0.
    #[test]
    fn the_numbers_are_those_of_the_published_generators() {
        let mut rng = Rng([1, 2, 3, 4]);
        assert_eq!(
            [(); 5].map(|()| rng.bits()),
            [41943041, 58720359, 3588806011781223, 3591011842654386, 9228616714210784205]
        );
        assert_eq!(splitmix(&mut 0), 0xe220_a839_7b1d_cdaf);
    }

    #[test]
    fn a_seed_repeats_and_streams_differ() {
        let numbers = |seed, stream| {
            let mut rng = Rng::new(seed, stream);
            [(); 4].map(|()| rng.bits())
        };
        assert_eq!(numbers(7, 1), numbers(7, 1));
        assert_ne!(numbers(7, 1), numbers(7, 2));
        assert_ne!(numbers(7, 1), numbers(8, 1));
    }

    #[test]
    fn a_deck_deals_exactly_by_weight_and_in_another_order_each_time() {
        let (mut deck, mut rng) = (Deck::new(&[14, 8, 2]).unwrap(), Rng::new(1, 0));
        assert_eq!(deck.cards.len(), 12, "weights without their common divisor");
        let mut deals = std::collections::HashSet::new();
        for _ in 0..100 {
            let deal: Vec<usize> = (0..12).map(|_| deck.draw(&mut rng)).collect();
            let count = |card| deal.iter().filter(|got| **got == card).count();
            assert_eq!((count(0), count(1), count(2)), (7, 4, 1));
            deals.insert(deal);
        }
        assert!(deals.len() > 90, "{}", deals.len());
    }

    #[test]
    fn decks_that_cannot_be_are_none() {
        assert!(Deck::new(&[]).is_none());
        assert!(Deck::new(&[0, 0]).is_none());
        assert!(Deck::new(&[9999, 1]).is_some());
        assert!(Deck::new(&[10_000, 1]).is_none());
        assert!(Deck::new(&[40_000, 4]).is_none());
        assert_eq!(Deck::new(&[0, 5]).unwrap().draw(&mut Rng::new(1, 1)), 1);
    }

    /// With exponent 1 over 4: 12/25, 6/25, 4/25, 3/25.
    #[test]
    fn each_is_drawn_by_its_weight() {
        let (zipf, mut rng) = (Weighted::new(&[12.0, 6.0, 4.0, 3.0]), Rng::new(42, 0));
        let mut counts = [0u32; 4];
        for _ in 0..250_000 {
            counts[zipf.draw(&mut rng)] += 1;
        }
        for (got, wanted) in counts.iter().zip([120_000, 60_000, 40_000, 30_000]) {
            assert!(got.abs_diff(wanted) < 1000, "{counts:?}");
        }
        let one = Weighted::new(&[0.1]);
        assert_eq!(one.draw(&mut rng), 0);
    }

    #[test]
    fn below_and_unit_keep_their_bounds() {
        let mut rng = Rng::new(3, 0);
        let mut counts = [0u32; 5];
        for _ in 0..50_000 {
            counts[rng.below(5) as usize] += 1;
            let unit = rng.unit();
            assert!(unit > 0.0 && unit <= 1.0);
        }
        assert!(counts.iter().all(|count| count.abs_diff(10_000) < 500), "{counts:?}");
        assert_eq!(rng.below(0), 0);
    }
}
