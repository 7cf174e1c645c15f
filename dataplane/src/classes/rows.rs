//! Sets of rules, a bit for each: which of them a value does not rule out. Used by `classes.rs`.
//!
//! A row is a summary (bit *w* says that word *w* is not zero) and the words. Rules that several rows leave are found by their
//! summaries first, so that words in which nothing is left are not read: bit vectors with an aggregate (Baboescu and Varghese,
//! SIGCOMM 2001). One summary of 64 bits is enough for 4096 rules.

use std::collections::HashMap;

/// Rows while they are made: each set is there once, and is known by the place of its summary.
#[derive(Debug)]
pub struct Rows {
    words: Vec<u64>,
    known: HashMap<Vec<u64>, u32>,
}

impl Rows {
    /// None yet.
    pub fn new() -> Rows {
        Rows { words: Vec::new(), known: HashMap::new() }
    }

    /// The place of this set.
    pub fn add(&mut self, set: &[u64]) -> u32 {
        if let Some(place) = self.known.get(set) {
            return *place;
        }
        let place = self.words.len() as u32;
        let summary = set.iter().enumerate().fold(0, |all, (at, word)| all | u64::from(*word != 0) << at);
        self.words.push(summary);
        self.words.extend_from_slice(set);
        self.known.insert(set.to_vec(), place);
        place
    }

    /// All of them, to be read.
    pub fn into_words(self) -> Box<[u64]> {
        self.words.into()
    }
}

/// Adds a rule to a set.
pub fn set(set: &mut [u64], rule: usize) {
    if let Some(word) = set.get_mut(rule / 64) {
        *word |= 1 << (rule % 64);
    }
}

/// As many words as `rules` need.
pub fn words(rules: usize) -> usize {
    rules.div_ceil(64)
}
