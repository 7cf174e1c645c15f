//! The forwarding database: (network, MAC address) → a local endpoint or a remote VTEP (RFC 7348 §4.1 calls the
//! learned part the VXLAN segment's forwarding table).
//!
//! One table of fixed size for all networks, made at start and shared by all threads without a lock. An entry is a
//! 64-bit key and a 64-bit value; a bucket of four entries is one cache line, and a key can be in two buckets only,
//! so a look-up reads at most two lines, found or not. Workers learn, the control thread adds what is static and
//! forgets what is old.
//!
//! What must hold:
//! - A key of zero is free and `BUSY` is being changed; between the two states only the thread that made it `BUSY`
//!   writes the slot. A reader takes a value only if the key is the same before and after.
//! - Static and local entries are never overwritten by what was learned.
//! - A network's learned entries never exceed its limit by more than the number of threads that learn at once.
//!
//! Called by the lookup stage (every frame) and by the engine (static entries, ageing).

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::types::{EndpointId, MacAddr, NetworkId, RemoteId};
use crate::wire::flow::mix;

/// Where an address is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Destination {
    /// A tenant on this host.
    Local(EndpointId),
    /// Behind a remote VTEP.
    Remote(RemoteId),
}

/// What [`Fdb::learn`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Learned {
    /// Nothing: it was known, behind this remote.
    Known,
    /// It was not known.
    New,
    /// It was known behind another remote.
    Moved,
    /// Not learned: the address is fixed, and somewhere else.
    Fixed,
    /// Not learned: the network's limit is reached, or both buckets are full.
    Refused,
}

/// One entry, for people to read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Entry {
    /// The network.
    pub network: NetworkId,
    /// The address.
    pub mac: MacAddr,
    /// Where it is.
    pub destination: Destination,
    /// Not learned: never ages.
    pub fixed: bool,
    /// Second (of the caller's clock) in which it was last seen.
    pub seen_s: u32,
}

#[derive(Debug, Default)]
struct Slot {
    key: AtomicU64,
    value: AtomicU64,
}

const SLOTS: usize = 4;

#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket([Slot; SLOTS]);

const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is a cache line");

/// The table.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket]>,
    /// Different in each process, so that nobody can choose addresses that fill the buckets of another's.
    secret: u64,
    learned: Box<[AtomicU32]>,
}

const FREE: u64 = 0;
/// No real key: its network would be [`NetworkId::LIMIT`].
const BUSY: u64 = u64::MAX;

impl Fdb {
    /// A table for `entries` addresses in `networks` networks. It has twice the room, so that two full buckets for
    /// one key are rare (two choices, four slots, half full).
    pub fn new(entries: usize, networks: usize) -> Fdb {
        Fdb::with_secret(entries, networks, RandomState::new().hash_one(0u64))
    }

    /// The same with a known secret, so that measurements find every address in the same slot each time. Not for a
    /// table that strangers can fill: see `secret`.
    pub fn with_secret(entries: usize, networks: usize, secret: u64) -> Fdb {
        let buckets = (entries * 2).div_ceil(SLOTS).next_power_of_two().max(2);
        Fdb {
            buckets: std::iter::repeat_with(Bucket::default).take(buckets).collect(),
            secret,
            learned: std::iter::repeat_with(AtomicU32::default).take(networks).collect(),
        }
    }

    /// Where the address is.
    #[inline]
    pub fn lookup(&self, network: NetworkId, mac: MacAddr) -> Option<Destination> {
        let key = key_of(network, mac);
        self.slots_of(key).find_map(|slot| slot.read(key)).map(Value::destination)
    }

    /// Where the address is, if that is fixed.
    #[inline]
    pub fn lookup_fixed(&self, network: NetworkId, mac: MacAddr) -> Option<Destination> {
        let key = key_of(network, mac);
        self.slots_of(key)
            .find_map(|slot| slot.read(key))
            .filter(|value| value.is_fixed())
            .map(Value::destination)
    }

    /// Notes that the address was seen behind `remote` in second `now_s`.
    #[inline]
    pub fn learn(
        &self,
        network: NetworkId,
        mac: MacAddr,
        remote: RemoteId,
        now_s: u32,
        limit: u32,
    ) -> Learned {
        let key = key_of(network, mac);
        for slot in self.slots_of(key) {
            let Some(old) = slot.read(key) else { continue };
            return slot.see_again(key, old, Value::learned(remote, now_s));
        }
        self.learn_new(network, key, Value::learned(remote, now_s), limit)
    }

    #[cold]
    fn learn_new(&self, network: NetworkId, key: u64, value: Value, limit: u32) -> Learned {
        let Some(count) = self.learned.get(network.index()) else { return Learned::Refused };
        if count.load(Ordering::Relaxed) >= limit || !self.insert(key, value) {
            return Learned::Refused;
        }
        count.fetch_add(1, Ordering::Relaxed);
        Learned::New
    }

    /// Adds an address that never ages, in place of what was learned. False if both buckets are full.
    #[must_use]
    pub fn set_fixed(&self, network: NetworkId, mac: MacAddr, destination: Destination) -> bool {
        self.remove(network, mac);
        self.insert(key_of(network, mac), Value::fixed(destination))
    }

    /// Forgets an address, whatever it is. True if it was there.
    pub fn remove(&self, network: NetworkId, mac: MacAddr) -> bool {
        let key = key_of(network, mac);
        let mut found = false;
        for slot in self.slots_of(key) {
            found |= self.take(slot, key, |_| true);
        }
        found
    }

    /// Looks at `count` buckets from `first` on (wrapping) and forgets what was learned and is older than its
    /// network allows: `ageing_s(network)` seconds. Returns how many were forgotten.
    pub fn age(&self, first: usize, count: usize, now_s: u32, ageing_s: impl Fn(NetworkId) -> u32) -> usize {
        let mut forgotten = 0;
        for bucket in
            self.buckets.iter().cycle().skip(first % self.buckets.len()).take(count.min(self.buckets.len()))
        {
            for slot in &bucket.0 {
                let key = slot.key.load(Ordering::Relaxed);
                if key == FREE || key == BUSY {
                    continue;
                }
                let limit_s = ageing_s(network_of(key));
                let old = |value: Value| !value.is_fixed() && now_s.saturating_sub(value.seen_s()) > limit_s;
                forgotten += usize::from(self.take(slot, key, old));
            }
        }
        forgotten
    }

    /// How many buckets [`age`](Self::age) can look at.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// How many addresses of the network are learned.
    pub fn learned(&self, network: NetworkId) -> u32 {
        self.learned.get(network.index()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// All entries, in no order, for people to read.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.buckets.iter().flat_map(|bucket| &bucket.0).filter_map(|slot| {
            let key = slot.key.load(Ordering::Acquire);
            let value = slot.read(key).filter(|_| key != FREE && key != BUSY)?;
            Some(Entry {
                network: network_of(key),
                mac: MacAddr::from_u64(key),
                destination: value.destination(),
                fixed: value.is_fixed(),
                seen_s: value.seen_s(),
            })
        })
    }

    /// Empties the slot if it still holds `key` and its value is `unwanted`.
    fn take(&self, slot: &Slot, key: u64, unwanted: impl Fn(Value) -> bool) -> bool {
        if !slot.read(key).is_some_and(&unwanted) {
            return false;
        }
        if slot.key.compare_exchange(key, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        // It may have been seen again since it was judged.
        let value = Value(slot.value.load(Ordering::Acquire));
        if !unwanted(value) {
            slot.key.store(key, Ordering::Release);
            return false;
        }
        if !value.is_fixed()
            && let Some(count) = self.learned.get(network_of(key).index())
        {
            count.fetch_sub(1, Ordering::Relaxed);
        }
        slot.key.store(FREE, Ordering::Release);
        true
    }

    /// Puts the entry into the emptier one of its buckets.
    fn insert(&self, key: u64, value: Value) -> bool {
        let [a, b] = self.buckets_of(key);
        let free =
            |bucket: &Bucket| bucket.0.iter().filter(|slot| slot.key.load(Ordering::Relaxed) == FREE).count();
        let order = if free(a) >= free(b) { [a, b] } else { [b, a] };
        order.iter().flat_map(|bucket| &bucket.0).any(|slot| slot.claim(key, value))
    }

    #[inline]
    fn slots_of(&self, key: u64) -> impl Iterator<Item = &Slot> {
        self.buckets_of(key).into_iter().flat_map(|bucket| &bucket.0)
    }

    #[inline]
    fn buckets_of(&self, key: u64) -> [&Bucket; 2] {
        let mask = self.buckets.len() - 1;
        let hash = mix(key ^ self.secret, 0x9e37_79b9_7f4a_7c15);
        let first = hash as usize & mask;
        let second = (hash >> 32) as usize & mask;
        let second = if second == first { first ^ 1 } else { second };
        // The length is a power of two of at least 2, so a masked index is always in range.
        #[allow(clippy::indexing_slicing, reason = "masked with the length")]
        [&self.buckets[first & mask], &self.buckets[second & mask]]
    }
}

impl Slot {
    /// The value, if the slot holds this key before and after the value was read.
    #[inline]
    fn read(&self, key: u64) -> Option<Value> {
        if self.key.load(Ordering::Acquire) != key {
            return None;
        }
        let value = Value(self.value.load(Ordering::Acquire));
        (self.key.load(Ordering::Relaxed) == key).then_some(value)
    }

    /// Takes a free slot for this entry.
    fn claim(&self, key: u64, value: Value) -> bool {
        if self.key.compare_exchange(FREE, BUSY, Ordering::AcqRel, Ordering::Relaxed).is_err() {
            return false;
        }
        self.value.store(value.0, Ordering::Release);
        self.key.store(key, Ordering::Release);
        true
    }

    /// A learned address was seen: writes only when the second or the place is another, so that a busy address
    /// does not keep its cache line moving between cores.
    #[inline]
    fn see_again(&self, key: u64, old: Value, new: Value) -> Learned {
        if old.is_fixed() {
            return if old.destination() == new.destination() { Learned::Known } else { Learned::Fixed };
        }
        if old == new {
            return Learned::Known;
        }
        // If the entry was taken away meanwhile, the exchange fails or hits a slot that is free: harmless, because
        // a claim writes its value before its key.
        let written = self.key.load(Ordering::Relaxed) == key
            && self.value.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_ok();
        if written && old.destination() != new.destination() { Learned::Moved } else { Learned::Known }
    }
}

/// `seen_s` in the upper half; then flags; the endpoint or remote in the low 16 bits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value(u64);

impl Value {
    const LOCAL: u64 = 1 << 16;
    const FIXED: u64 = 1 << 17;

    fn learned(remote: RemoteId, now_s: u32) -> Value {
        Value(u64::from(now_s) << 32 | u64::from(remote.0))
    }

    fn fixed(destination: Destination) -> Value {
        match destination {
            Destination::Local(endpoint) => Value(Value::FIXED | Value::LOCAL | u64::from(endpoint.0)),
            Destination::Remote(remote) => Value(Value::FIXED | u64::from(remote.0)),
        }
    }

    #[inline]
    fn destination(self) -> Destination {
        let id = self.0 as u16;
        if self.0 & Value::LOCAL != 0 {
            Destination::Local(EndpointId(id))
        } else {
            Destination::Remote(RemoteId(id))
        }
    }

    #[inline]
    fn is_fixed(self) -> bool {
        self.0 & Value::FIXED != 0
    }

    fn seen_s(self) -> u32 {
        (self.0 >> 32) as u32
    }
}

/// Never [`FREE`]: a station's address is not zero (the stages have checked).
#[inline]
fn key_of(network: NetworkId, mac: MacAddr) -> u64 {
    u64::from(network.0) << 48 | mac.to_u64()
}

fn network_of(key: u64) -> NetworkId {
    NetworkId((key >> 48) as u16)
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use super::*;
    use proptest::prelude::*;

    const NET: NetworkId = NetworkId(0);
    const A: RemoteId = RemoteId(3);
    const B: RemoteId = RemoteId(4);

    fn mac(n: u64) -> MacAddr {
        MacAddr::from_u64(0x0200_0000_0000 + n)
    }

    #[test]
    fn an_address_is_learned_moves_and_ages() {
        let fdb = Fdb::new(16, 2);
        assert_eq!(fdb.lookup(NET, mac(1)), None);
        assert_eq!(fdb.learn(NET, mac(1), A, 100, 10), Learned::New);
        assert_eq!(fdb.learn(NET, mac(1), A, 100, 10), Learned::Known);
        assert_eq!(fdb.lookup(NET, mac(1)), Some(Destination::Remote(A)));
        assert_eq!(fdb.lookup(NetworkId(1), mac(1)), None, "networks are apart");
        assert_eq!(fdb.learn(NET, mac(1), B, 130, 10), Learned::Moved);
        assert_eq!(fdb.lookup(NET, mac(1)), Some(Destination::Remote(B)));
        assert_eq!(fdb.learned(NET), 1);
        assert_eq!(fdb.age(0, fdb.buckets(), 160, |_| 30), 0, "30 seconds old: not older than 30");
        assert_eq!(fdb.age(0, fdb.buckets(), 161, |_| 30), 1);
        assert_eq!((fdb.lookup(NET, mac(1)), fdb.learned(NET)), (None, 0));
    }

    #[test]
    fn being_seen_keeps_an_address_young() {
        let fdb = Fdb::new(16, 1);
        fdb.learn(NET, mac(1), A, 0, 10);
        fdb.learn(NET, mac(1), A, 25, 10);
        assert_eq!(fdb.age(0, fdb.buckets(), 50, |_| 30), 0);
    }

    #[test]
    fn what_is_fixed_is_neither_learned_over_nor_aged() {
        let fdb = Fdb::new(16, 1);
        assert_eq!(fdb.learn(NET, mac(1), A, 0, 10), Learned::New);
        assert!(fdb.set_fixed(NET, mac(1), Destination::Local(EndpointId(7))));
        assert_eq!(fdb.learned(NET), 0, "the learned entry gave way");
        assert_eq!(fdb.learn(NET, mac(1), B, 9, 10), Learned::Fixed);
        assert_eq!(fdb.lookup_fixed(NET, mac(1)), Some(Destination::Local(EndpointId(7))));
        assert!(fdb.set_fixed(NET, mac(2), Destination::Remote(A)));
        assert_eq!(fdb.learn(NET, mac(2), A, 9, 10), Learned::Known, "it is where it should be");
        assert_eq!(fdb.age(0, fdb.buckets(), u32::MAX, |_| 0), 0);
        assert_eq!(fdb.lookup(NET, mac(1)), Some(Destination::Local(EndpointId(7))));
        assert!(fdb.remove(NET, mac(1)) && !fdb.remove(NET, mac(1)));
    }

    #[test]
    fn a_network_learns_no_more_than_its_limit() {
        let fdb = Fdb::new(100, 2);
        for n in 0..5 {
            assert_eq!(fdb.learn(NET, mac(n), A, 0, 5), Learned::New);
        }
        assert_eq!(fdb.learn(NET, mac(5), A, 0, 5), Learned::Refused);
        assert_eq!(fdb.learn(NET, mac(4), B, 0, 5), Learned::Moved, "what is known may move");
        assert_eq!(fdb.learn(NetworkId(1), mac(5), A, 0, 5), Learned::New, "limits are per network");
        assert_eq!(fdb.learn(NetworkId(2), mac(5), A, 0, 5), Learned::Refused, "no such network");
    }

    #[test]
    fn a_table_takes_as_many_as_it_was_made_for() {
        let fdb = Fdb::new(20_000, 1);
        let refused = (0..20_000).filter(|&n| fdb.learn(NET, mac(n), A, 0, u32::MAX) != Learned::New).count();
        assert_eq!(refused, 0);
        assert!((0..20_000).all(|n| fdb.lookup(NET, mac(n)) == Some(Destination::Remote(A))));
        assert_eq!(fdb.entries().count(), 20_000);
    }

    #[test]
    fn a_tiny_table_refuses_and_stays_whole() {
        let fdb = Fdb::new(1, 1);
        let taken = (0..100).filter(|&n| fdb.learn(NET, mac(n), A, 0, 100) == Learned::New).count();
        assert_eq!((taken, fdb.learned(NET)), (8, 8), "two buckets of four");
    }

    /// Threads that learn, look up and forget at once never see an address behind a remote that it never was
    /// behind: the remote is a function of the address here.
    #[test]
    fn readers_never_see_a_torn_entry() {
        let fdb = Fdb::new(64, 1);
        let remote = |n: u64| RemoteId((n % 1000) as u16);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..200_000u64 {
                    let n = round * 7 % 512;
                    fdb.learn(NET, mac(n), remote(n), (round / 100) as u32, 400);
                }
            });
            scope.spawn(|| {
                for round in 0..2_000u32 {
                    fdb.age(0, fdb.buckets(), round, |_| 0);
                }
            });
            for round in 0..200_000u64 {
                let n = round * 13 % 512;
                if let Some(found) = fdb.lookup(NET, mac(n)) {
                    assert_eq!(found, Destination::Remote(remote(n)));
                }
            }
        });
        fdb.age(0, fdb.buckets(), u32::MAX, |_| 0);
        assert_eq!((fdb.learned(NET), fdb.entries().count()), (0, 0), "the count agrees with the entries");
    }

    #[derive(Clone, Debug)]
    enum Op {
        Learn(u64, u16),
        Fix(u64, u16),
        Remove(u64),
        Age(u32),
    }

    proptest! {
        /// Against a map, one operation after the other.
        #[test]
        fn it_behaves_like_a_map(ops in proptest::collection::vec(prop_oneof![
            (0u64..40, 0u16..4).prop_map(|(n, r)| Op::Learn(n, r)),
            (0u64..40, 0u16..4).prop_map(|(n, r)| Op::Fix(n, r)),
            (0u64..40).prop_map(Op::Remove),
            (0u32..10).prop_map(Op::Age),
        ], 0..400)) {
            let fdb = Fdb::new(200, 1);
            let mut map: HashMap<u64, (Destination, bool, u32)> = HashMap::new();
            for (step, op) in ops.into_iter().enumerate() {
                let now = step as u32;
                match op {
                    Op::Learn(n, r) => {
                        fdb.learn(NET, mac(n), RemoteId(r), now, 1000);
                        let entry = map.entry(n).or_insert((Destination::Remote(RemoteId(r)), false, now));
                        if !entry.1 { *entry = (Destination::Remote(RemoteId(r)), false, now); }
                    }
                    Op::Fix(n, r) => {
                        prop_assert!(fdb.set_fixed(NET, mac(n), Destination::Local(EndpointId(r))));
                        map.insert(n, (Destination::Local(EndpointId(r)), true, 0));
                    }
                    Op::Remove(n) => prop_assert_eq!(fdb.remove(NET, mac(n)), map.remove(&n).is_some()),
                    Op::Age(limit) => {
                        fdb.age(0, fdb.buckets(), now, |_| limit);
                        map.retain(|_, (_, fixed, seen)| *fixed || now - *seen <= limit);
                    }
                }
                for n in 0..40 {
                    prop_assert_eq!(fdb.lookup(NET, mac(n)), map.get(&n).map(|e| e.0));
                }
                prop_assert_eq!(fdb.learned(NET) as usize, map.values().filter(|e| !e.1).count());
            }
        }
    }
}
