//! Senders that are no remotes of a network which takes any: workers tell control, which makes remotes of them.
//!
//! A bounded queue, and places that remember who was noted: of a sender that goes on there is no second note within a second, unless another
//! one that has the same place was noted in between, so its frames cost a look-up and two words that are read. Who sends from ever new
//! addresses fills the queue; after that a frame costs one word that is read, until control has looked.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};

use crossbeam::queue::ArrayQueue;

use crate::types::NetworkId;
use crate::wire::flow::mix;

/// Any odd numbers with their bits well mixed would do.
const SEED: u64 = 0x243f_6a88_85a3_08d3;
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Who sent to which network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stranger {
    /// The network, which takes any remote.
    pub network: NetworkId,
    /// The sender.
    pub address: IpAddr,
}

/// Notes between control's looks: as many new senders as it then makes remotes of.
pub const CAPACITY: usize = 64;
/// Places: as many as a network has discovered remotes at most.
const PLACES: usize = 256;

/// What workers noted. Shared by all of them.
#[derive(Debug)]
pub struct Strangers {
    notes: ArrayQueue<Stranger>,
    /// There was no room, and control has not looked since.
    is_full: AtomicBool,
    /// By sender, the last note and its second, in a few bits: two that look alike cost a note that the next second, or another sender, makes
    /// up for.
    places: [AtomicU64; PLACES],
}

impl Default for Strangers {
    fn default() -> Strangers {
        Strangers {
            notes: ArrayQueue::new(CAPACITY),
            is_full: AtomicBool::new(false),
            places: [const { AtomicU64::new(0) }; PLACES],
        }
    }
}

impl Strangers {
    /// Workers: this one sent, in this second. When there are too many, it is noted later: it will send again.
    #[cold]
    pub fn note(&self, stranger: Stranger, now_s: u32) {
        if self.is_full.load(Relaxed) {
            return;
        }
        let low = match stranger.address {
            IpAddr::V4(address) => u64::from(u32::from(address)),
            IpAddr::V6(address) => {
                let number = u128::from(address);
                mix(number as u64 ^ 1, (number >> 64) as u64 | 1)
            }
        };
        let sender = mix(low ^ SEED, u64::from(stranger.network.0) ^ GOLDEN);
        let Some(place) = self.places.get(sender as usize % PLACES) else { return };
        let digest = mix(sender ^ u64::from(now_s), GOLDEN);
        if place.load(Relaxed) == digest {
            return;
        }
        match self.notes.push(stranger) {
            Ok(()) => place.store(digest, Relaxed),
            Err(_) => self.is_full.store(true, Relaxed), // at worst just after control has looked: until it looks again
        }
    }

    /// Control: the next note.
    pub fn take(&self) -> Option<Stranger> {
        let next = self.notes.pop();
        if self.is_full.load(Relaxed) {
            self.is_full.store(false, Relaxed);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stranger(network: u16, last: u8) -> Stranger {
        Stranger { network: NetworkId(network), address: [192, 0, 2, last].into() }
    }

    #[test]
    fn one_sender_is_noted_once_a_second_and_others_at_once() {
        let strangers = Strangers::default();
        let v6 = Stranger { network: NetworkId(0), address: "2001:db8::1".parse().unwrap() };
        for now_s in [0, 0, 0, 1, 1] {
            strangers.note(stranger(0, 1), now_s);
        }
        for other in [stranger(1, 1), stranger(1, 2), v6, v6] {
            strangers.note(other, 1);
        }
        let all: Vec<Stranger> = std::iter::from_fn(|| strangers.take()).collect();
        assert_eq!(all, [stranger(0, 1), stranger(0, 1), stranger(1, 1), stranger(1, 2), v6]);
    }

    #[test]
    fn senders_that_take_turns_are_each_noted_once_a_second() {
        let strangers = Strangers::default();
        let all: Vec<Stranger> = (0..8).map(|n| stranger(n % 2, n as u8)).collect();
        for now_s in [0, 1] {
            (0..100).for_each(|_| all.iter().for_each(|one| strangers.note(*one, now_s)));
            assert_eq!(std::iter::from_fn(|| strangers.take()).collect::<Vec<_>>(), all, "second {now_s}");
        }
    }

    #[test]
    fn a_full_queue_is_left_alone_until_control_has_looked() {
        let strangers = Strangers::default();
        (0..CAPACITY as u8).for_each(|n| strangers.note(stranger(0, n), 0));
        assert!(!strangers.is_full.load(Relaxed), "that was all");
        strangers.note(stranger(1, 1), 0);
        assert!(strangers.is_full.load(Relaxed));
        // What would be noted is not.
        while strangers.notes.pop().is_some() {}
        strangers.note(stranger(1, 1), 0);
        assert!(strangers.notes.is_empty());
        assert_eq!(strangers.take(), None);
        strangers.note(stranger(1, 1), 0);
        assert_eq!(strangers.take(), Some(stranger(1, 1)));
    }

    #[test]
    fn a_flood_of_senders_fills_the_queue_and_no_more() {
        let strangers = Strangers::default();
        (0..10_000u32).for_each(|n| strangers.note(stranger(n as u16, n as u8), n));
        assert_eq!(std::iter::from_fn(|| strangers.take()).count(), CAPACITY);
        strangers.note(stranger(9_999, 15), 9_999);
        assert_eq!(strangers.take(), Some(stranger(9_999, 15)), "what found no room is noted next time");
    }
}
