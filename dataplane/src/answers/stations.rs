//! Who has which address: a map whose copies share all that was not changed since, so that an endpoint that comes costs the same however
//! many there are. Read by the stages, where a tenant asks; changed by control, in a copy of its own.
//!
//! A tree of two levels with short sorted lists as leaves, found by a hash: who chooses addresses is who may change the network anyway.

use std::net::IpAddr;
use std::sync::Arc;

use crate::types::{MacAddr, NetworkId};
use crate::wire::flow::mix;

/// Branches of each level.
const WIDTH: usize = 32;

/// An address of a network.
type Place = (NetworkId, IpAddr);
/// The same in numbers, those first in which most differ.
type Key = [u64; 3];
/// In order.
type Leaf = Vec<(Key, MacAddr)>;

/// See the [module documentation](self).
#[derive(Clone, Default, Debug)]
pub(super) struct Stations {
    branches: [Arc<[Arc<Leaf>; WIDTH]>; WIDTH],
}

impl Stations {
    /// The station that has this address.
    pub(super) fn get(&self, place: Place) -> Option<MacAddr> {
        let key = key_of(place);
        let (branch, leaf) = home(key);
        let leaf = self.branches.get(branch)?.get(leaf)?;
        let at = leaf.binary_search_by_key(&key, |(key, _)| *key).ok()?;
        leaf.get(at).map(|(_, mac)| *mac)
    }

    /// It has it from now on, whoever had it before.
    pub(super) fn insert(&mut self, place: Place, mac: MacAddr) {
        let key = key_of(place);
        let Some(leaf) = self.leaf_mut(key) else { return };
        match leaf.binary_search_by_key(&key, |(key, _)| *key) {
            Ok(at) => {
                if let Some(known) = leaf.get_mut(at) {
                    known.1 = mac;
                }
            }
            Err(at) => leaf.insert(at, (key, mac)),
        }
    }

    /// Nobody has it from now on, if it was this one.
    pub(super) fn remove(&mut self, place: Place, mac: MacAddr) {
        if self.get(place) != Some(mac) {
            return;
        }
        let key = key_of(place);
        let Some(leaf) = self.leaf_mut(key) else { return };
        if let Ok(at) = leaf.binary_search_by_key(&key, |(key, _)| *key) {
            leaf.remove(at);
        }
    }

    /// Its own from now on.
    fn leaf_mut(&mut self, key: Key) -> Option<&mut Leaf> {
        let (branch, leaf) = home(key);
        let branch = Arc::make_mut(self.branches.get_mut(branch)?);
        branch.get_mut(leaf).map(Arc::make_mut)
    }
}

fn key_of((network, address): Place) -> Key {
    let (number, family) = match address {
        IpAddr::V4(address) => (u128::from(u32::from(address)), 4),
        IpAddr::V6(address) => (u128::from(address), 6),
    };
    [number as u64, (number >> 64) as u64, u64::from(network.0) << 8 | family]
}

fn home([low, high, network]: Key) -> (usize, usize) {
    let hash = mix(mix(low ^ FIRST, high ^ SECOND) ^ network, FIRST);
    (hash as usize % WIDTH, (hash >> 32) as usize % WIDTH)
}

/// Digits of the golden ratio, and of pi: any odd numbers with their bits well mixed would do.
const FIRST: u64 = 0x9e37_79b9_7f4a_7c15;
const SECOND: u64 = 0x243f_6a88_85a3_08d3;

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn place(number: u8) -> Place {
        let address = [10, 0, 0, number / 4].into();
        let v6 = IpAddr::V6([0xfd00, 0, 0, 0, 0, 0, 0, u16::from(number / 4)].into());
        (NetworkId(u16::from(number % 2)), if number % 4 < 2 { address } else { v6 })
    }

    #[test]
    fn places_are_spread_over_all_leaves() {
        let mut counts = [0; WIDTH * WIDTH];
        for number in 0..16_384u32 {
            let (branch, leaf) = home(key_of((NetworkId(3), IpAddr::V4((0x0a00_0000 + number).into()))));
            counts[branch * WIDTH + leaf] += 1;
        }
        assert!(counts.iter().all(|count| (1..48).contains(count)), "{counts:?}");
    }

    proptest! {
        /// Whatever is changed, each copy says what a map says that was changed like it.
        #[test]
        fn it_is_a_map_and_a_copy_is_not_changed(
            changes in proptest::collection::vec((any::<u8>(), 0u8..4, any::<bool>()), 1..400),
        ) {
            let (mut stations, mut map) = (Stations::default(), HashMap::new());
            let mut copies = Vec::new();
            for (number, last, comes) in changes {
                let (at, mac) = (place(number), MacAddr([2, 0, 0, 0, 0, last]));
                if comes {
                    stations.insert(at, mac);
                    map.insert(at, mac);
                } else {
                    stations.remove(at, mac);
                    if map.get(&at) == Some(&mac) {
                        map.remove(&at);
                    }
                }
                if number % 16 == 0 {
                    copies.push((stations.clone(), map.clone()));
                }
            }
            copies.push((stations, map));
            for (stations, map) in copies {
                for at in (0..=255).map(place) {
                    prop_assert_eq!(stations.get(at), map.get(&at).copied());
                }
            }
        }
    }
}
