//! The forwarding database: (network, MAC address) → a local endpoint or a remote VTEP (RFC 7348 §4.1 calls the
//! learned part the VXLAN segment's forwarding table).
//!
//! One table of fixed size for all networks, made at start and shared by all threads. An entry is a 64-bit key and a
//! 64-bit value; a bucket of four entries is one cache line, and a key can be in two buckets only, its first or its
//! second. A new entry goes to the first if there is room, so a look-up that finds reads one line nearly always, and
//! one that does not reads two. If both are full, an entry of theirs that is in its own first bucket moves to its
//! second.
//!
//! Readers take no lock and never wait. Who adds, moves or takes away an entry first claims its two buckets (a flag for
//! every so many buckets). A worker that does not get the claim at once leaves it: the next frame learns. Only control
//! waits, for a worker that is in the middle of some hundred instructions. That an address was seen again is written
//! without a claim.
//!
//! What must hold:
//! - Keys change only under a claim on both buckets of the key, so an address is never there twice, but for the moment
//!   in which it moves.
//! - An entry moves from its first bucket to its second and never back, and is in the second before it leaves the
//!   first: readers, who look in this order, never miss it.
//! - A value is made `DEAD` before its key is freed, by an exchange that fails if the address was seen again meanwhile;
//!   and each filling of a slot has another `ROUND` in its value, so that one who comes late never changes what is
//!   no longer his. A reader takes a value only if the key is the same before and after.
//! - Static and local entries are never overwritten by what was learned.
//! - A network never has more learned entries than its limit.
//!
//! Called by the lookup stage (every frame) and by the engine (static entries, ageing). `fdb/loom_tests.rs` runs
//! it under a model checker.

use std::hash::{BuildHasher, RandomState};
use std::time::{Duration, Instant};

#[cfg(all(loom, test))]
use loom::hint::spin_loop;
#[cfg(all(loom, test))]
use loom::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
#[cfg(not(all(loom, test)))]
use std::hint::spin_loop;
#[cfg(not(all(loom, test)))]
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

use crate::clock::prefetch;
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
    /// Not learned: the network's limit is reached, or there is no room.
    Refused,
    /// Not learned now: another thread is changing the entry or its buckets. The next frame learns it.
    Busy,
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

/// Where in the table an address is, if it is there: what a look-up needs to know of it, found once.
#[derive(Clone, Copy, Debug)]
pub struct Place {
    key: u64,
    hash: u64,
}

impl Place {
    /// Whose address it is.
    #[inline]
    pub fn network(self) -> NetworkId {
        network_of(self.key)
    }
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

#[cfg(not(all(loom, test)))]
const _: () = assert!(size_of::<Bucket>() == 64, "a bucket is a cache line");

/// The table.
#[derive(Debug)]
pub struct Fdb {
    buckets: Box<[Bucket]>,
    /// Different in each process, so that nobody can choose addresses that fill the buckets of another's.
    secrets: [u64; 2],
    /// Bucket `n` is claimed by flag `n` modulo their number.
    claims: Box<[AtomicBool]>,
    learned: Box<[AtomicU32]>,
}

const FREE: u64 = 0;
/// So few threads change the table that they seldom want the same flag.
const CLAIMS_MAX: usize = 4096;
/// Bytes of a core's own cache, or so.
const FAR: usize = 1 << 20;
/// Digits of the golden ratio: any odd number with its bits well mixed would do.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

impl Fdb {
    /// A table for `entries` addresses in `networks` networks. It has twice the room: it is then so seldom that an
    /// address finds none (never, in runs of 500,000) that nobody will see it.
    pub fn new(entries: usize, networks: usize) -> Fdb {
        Fdb::with_secret(entries, networks, RandomState::new().hash_one(0u64))
    }

    /// The same with a known secret, so that measurements find every address in the same slot each time. Not for a
    /// table that strangers can fill: see `secrets`.
    pub fn with_secret(entries: usize, networks: usize, secret: u64) -> Fdb {
        let buckets = (entries * 2).div_ceil(SLOTS).next_power_of_two().clamp(2, 1 << 31);
        Fdb {
            buckets: std::iter::repeat_with(Bucket::default).take(buckets).collect(),
            secrets: [secret, mix(secret, GOLDEN) | 1],
            claims: std::iter::repeat_with(AtomicBool::default).take(buckets.min(CLAIMS_MAX)).collect(),
            learned: std::iter::repeat_with(AtomicU32::default).take(networks).collect(),
        }
    }

    /// Where in the table the address (as [`MacAddr::to_u64`] has it) belongs.
    #[inline]
    pub fn place(&self, network: NetworkId, mac: u64) -> Place {
        self.place_of(u64::from(network.0) << 48 | mac)
    }

    /// Asks for the memory in which the address most likely is, to have it near when [`lookup_at`](Self::lookup_at) or
    /// [`learn_at`](Self::learn_at) comes.
    #[inline]
    pub fn prefetch(&self, place: Place) {
        prefetch(self.bucket(self.first(place)));
    }

    /// True if the table is larger than the cache that a core has to itself, so that [`prefetch`](Self::prefetch) is
    /// worth its while.
    #[inline]
    pub fn is_far(&self) -> bool {
        self.buckets.len() > FAR / size_of::<Bucket>()
    }

    /// Where the address is.
    #[inline]
    pub fn lookup(&self, network: NetworkId, mac: MacAddr) -> Option<Destination> {
        self.lookup_at(self.place(network, mac.to_u64()))
    }

    /// Where the address is.
    #[inline]
    pub fn lookup_at(&self, place: Place) -> Option<Destination> {
        self.find(place).map(|(_, value)| value.destination())
    }

    /// Where the address is, if that is fixed.
    #[inline]
    pub fn lookup_fixed_at(&self, place: Place) -> Option<Destination> {
        self.find(place).filter(|(_, value)| value.is_fixed()).map(|(_, value)| value.destination())
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
        self.learn_at(self.place(network, mac.to_u64()), remote, now_s, limit)
    }

    /// The same. Writes only when the second or the remote is another than before, so that a busy address does not
    /// keep its cache line moving between cores.
    #[inline]
    pub fn learn_at(&self, place: Place, remote: RemoteId, now_s: u32, limit: u32) -> Learned {
        let Some((slot, old)) = self.find(place) else {
            return self.learn_new(place, remote, now_s, limit);
        };
        if old.seen_behind(remote, now_s) == old {
            Learned::Known
        } else {
            slot.see_again(old, remote, now_s)
        }
    }

    #[cold]
    fn learn_new(&self, place: Place, remote: RemoteId, now_s: u32, limit: u32) -> Learned {
        let Some(count) = self.learned.get(network_of(place.key).index()) else { return Learned::Refused };
        if count.load(Ordering::Relaxed) >= limit {
            return Learned::Refused;
        }
        let Some(_claim) = self.claim(place) else { return Learned::Busy };
        if let Some((slot, old)) = self.find(place) {
            return slot.see_again(old, remote, now_s); // another thread learned it since we looked
        }
        let Some(slot) = self.room_for(place) else { return Learned::Refused };
        if count.fetch_add(1, Ordering::Relaxed) >= limit {
            count.fetch_sub(1, Ordering::Relaxed);
            return Learned::Refused;
        }
        slot.fill(place.key, Value::EMPTY.seen_behind(remote, now_s));
        Learned::New
    }

    /// Adds an address that never ages, in place of what was learned. False if there is no room. Waits for workers
    /// that change its buckets.
    #[must_use]
    pub fn set_fixed(&self, network: NetworkId, mac: MacAddr, destination: Destination) -> bool {
        let place = self.place(network, mac.to_u64());
        let _claim = self.claim_patiently(place);
        if let Some((slot, _)) = self.find(place) {
            let old = slot.exchange(|old| Value::fixed(destination).in_round_of(old));
            self.forget_count(place.key, old);
            return true;
        }
        let Some(slot) = self.room_for(place) else { return false };
        slot.fill(place.key, Value::fixed(destination));
        true
    }

    /// Forgets an address, whatever it is. True if it was there. Waits for workers that change its buckets.
    pub fn remove(&self, network: NetworkId, mac: MacAddr) -> bool {
        let place = self.place(network, mac.to_u64());
        let _claim = self.claim_patiently(place);
        let Some((slot, _)) = self.find(place) else { return false };
        let old = slot.exchange(Value::dead);
        slot.key.store(FREE, Ordering::Release);
        self.forget_count(place.key, old);
        true
    }

    /// Looks at `count` buckets from `first` on (wrapping) and forgets what was learned and is older than its
    /// network allows: `ageing_s(network)` seconds. What others are changing it leaves for the next time. Returns how
    /// many were forgotten.
    pub fn age(&self, first: usize, count: usize, now_s: u32, ageing_s: impl Fn(NetworkId) -> u32) -> usize {
        let buckets = self.buckets.len();
        let old = |key: u64, value: Value| {
            !value.is_fixed() && now_s.saturating_sub(value.seen_s()) > ageing_s(network_of(key))
        };
        let mut forgotten = 0;
        for index in (0..count.min(buckets)).map(|ahead| (first + ahead) % buckets) {
            for slot in &self.bucket(index).0 {
                let key = slot.key.load(Ordering::Relaxed);
                if key != FREE && old(key, Value(slot.value.load(Ordering::Relaxed))) {
                    forgotten += usize::from(self.forget(slot, key, &old));
                }
            }
        }
        forgotten
    }

    /// Empties the slot if it still holds this key, and the value is still old.
    #[cold]
    fn forget(&self, slot: &Slot, key: u64, old: impl Fn(u64, Value) -> bool) -> bool {
        let Some(_claim) = self.claim(self.place_of(key)) else { return false };
        let value = Value(slot.value.load(Ordering::Acquire));
        if slot.key.load(Ordering::Relaxed) != key
            || !old(key, value)
            || !slot.try_exchange(value, value.dead())
        {
            return false;
        }
        slot.key.store(FREE, Ordering::Release);
        self.forget_count(key, value);
        true
    }

    /// How many buckets [`age`](Self::age) can look at.
    pub fn buckets(&self) -> usize {
        self.buckets.len()
    }

    /// How many addresses of the network are learned.
    pub fn learned(&self, network: NetworkId) -> u32 {
        self.learned.get(network.index()).map_or(0, |count| count.load(Ordering::Relaxed))
    }

    /// All entries, in no order, for people to read. What moves meanwhile may show twice.
    pub fn entries(&self) -> impl Iterator<Item = Entry> + '_ {
        self.buckets.iter().flat_map(|bucket| &bucket.0).filter_map(|slot| {
            let key = slot.key.load(Ordering::Acquire);
            let value = slot.read(key).filter(|_| key != FREE)?;
            Some(Entry {
                network: network_of(key),
                mac: MacAddr::from_u64(key),
                destination: value.destination(),
                fixed: value.is_fixed(),
                seen_s: value.seen_s(),
            })
        })
    }

    /// The entry as it was at some moment since the call.
    #[inline]
    fn find(&self, place: Place) -> Option<(&Slot, Value)> {
        let find_in = |index| {
            self.bucket(index).0.iter().find_map(|slot| slot.read(place.key).map(|value| (slot, value)))
        };
        find_in(self.first(place)).or_else(|| find_in(self.second(place)))
    }

    /// A free slot for the key. The caller has the claim.
    fn room_for(&self, place: Place) -> Option<&Slot> {
        let both = [self.first(place), self.second(place)];
        both.into_iter()
            .find_map(|index| self.bucket(index).free())
            .or_else(|| both.into_iter().find_map(|index| self.make_room(index, both)))
    }

    /// Moves an entry out of a full bucket, if one can be moved, and gives its slot. The caller has the claim on the
    /// `claimed` buckets.
    #[cold]
    fn make_room(&self, index: usize, claimed: [usize; 2]) -> Option<&Slot> {
        self.bucket(index).0.iter().find(|slot| {
            let place = self.place_of(slot.key.load(Ordering::Relaxed));
            let second = self.second(place);
            if self.first(place) != index || self.bucket(second).free().is_none() {
                return false;
            }
            let ours = claimed.map(|index| self.flag_of(index));
            let flag = self.flag_of(second);
            let _claim = if ours.contains(&flag) {
                None
            } else {
                match self.raise(flag) {
                    None => return false,
                    claim => claim,
                }
            };
            let Some(to) = self.bucket(second).free() else { return false };
            slot.move_to(to, place.key);
            true
        })
    }

    /// What was learned is so no more.
    fn forget_count(&self, key: u64, old: Value) {
        if !old.is_fixed()
            && let Some(count) = self.learned.get(network_of(key).index())
        {
            count.fetch_sub(1, Ordering::Relaxed);
        }
    }

    #[inline]
    fn place_of(&self, key: u64) -> Place {
        let [secret, factor] = self.secrets;
        // Twice, for a single product of neighbouring keys has halves that go in step.
        Place { key, hash: mix(mix(key ^ secret, GOLDEN), factor) }
    }

    #[inline]
    fn first(&self, place: Place) -> usize {
        place.hash as usize & (self.buckets.len() - 1)
    }

    /// Never the first: the last bit differs.
    #[inline]
    fn second(&self, place: Place) -> usize {
        (place.hash as usize ^ ((place.hash >> 32) as usize | 1)) & (self.buckets.len() - 1)
    }

    #[inline]
    fn bucket(&self, index: usize) -> &Bucket {
        // The length is a power of two of at least 2, so a masked index is always in range.
        #[allow(clippy::indexing_slicing, reason = "masked with the length")]
        &self.buckets[index & (self.buckets.len() - 1)]
    }

    /// The right to change both buckets of the place, if nobody else has it now.
    fn claim(&self, place: Place) -> Option<[Option<Claim<'_>>; 2]> {
        let [first, second] = [self.first(place), self.second(place)].map(|index| self.flag_of(index));
        let claim = self.raise(first)?;
        if first == second {
            return Some([Some(claim), None]);
        }
        Some([Some(claim), Some(self.raise(second)?)])
    }

    /// Not for workers.
    fn claim_patiently(&self, place: Place) -> [Option<Claim<'_>>; 2] {
        loop {
            if let Some(claim) = self.claim(place) {
                return claim;
            }
            spin_loop();
        }
    }

    fn flag_of(&self, index: usize) -> usize {
        index & (self.claims.len() - 1)
    }

    fn raise(&self, flag: usize) -> Option<Claim<'_>> {
        let flag = self.claims.get(flag)?;
        let raised = flag.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed);
        raised.is_ok().then(|| Claim(flag)) // made only if raised: dropping it takes the flag down
    }
}

/// The right to change buckets, until it is dropped.
#[derive(Debug)]
struct Claim<'a>(&'a AtomicBool);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Release);
    }
}

/// The control thread's hand that goes round the table like a clock's, and ages what it passes: a little at a time, so
/// that it neither holds control up nor fills a cache that a worker shares.
#[derive(Debug)]
pub struct AgeingHand {
    at: usize,
    /// Up to when its way is done.
    until: Instant,
}

impl AgeingHand {
    /// Once round.
    pub const ROUND: Duration = Duration::from_secs(8);
    /// At most so many buckets at once, half a megabyte. Where that is less than the time asks for, a round takes longer.
    pub const STEP_MAX: usize = 8192;

    /// Begins its way.
    pub fn new(now: Instant) -> AgeingHand {
        AgeingHand { at: 0, until: now }
    }

    /// Goes as far as the time that has passed asks for; returns how many addresses were forgotten.
    pub fn go(&mut self, fdb: &Fdb, now: Instant, now_s: u32, ageing_s: impl Fn(NetworkId) -> u32) -> usize {
        let (buckets, round_ns) = (fdb.buckets(), AgeingHand::ROUND.as_nanos());
        let passed = now.saturating_duration_since(self.until);
        let due = (passed.as_nanos() * buckets as u128 / round_ns) as usize;
        let step = due.min(AgeingHand::STEP_MAX);
        let paid_ns = (step as u128 * round_ns).div_ceil(buckets as u128);
        self.until = if step < due { now } else { self.until + Duration::from_nanos(paid_ns as u64) };
        let forgotten = fdb.age(self.at, step, now_s, ageing_s);
        self.at = (self.at + step) % buckets;
        forgotten
    }
}

impl Bucket {
    fn free(&self) -> Option<&Slot> {
        self.0.iter().find(|slot| slot.key.load(Ordering::Relaxed) == FREE)
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
        // Acquire, too: who finds that it has gone goes on to where it went.
        (self.key.load(Ordering::Acquire) == key).then_some(value)
    }

    /// Puts an entry into a free slot. The caller has the claim.
    fn fill(&self, key: u64, value: Value) {
        let old = Value(self.value.load(Ordering::Relaxed));
        self.value.store(value.in_round_after(old).0, Ordering::Release);
        self.key.store(key, Ordering::Release);
    }

    /// The caller has the claim on both buckets.
    fn move_to(&self, to: &Slot, key: u64) {
        let mut value = Value(self.value.load(Ordering::Acquire));
        to.fill(key, value);
        while !self.try_exchange(value, value.dead()) {
            // Seen again meanwhile.
            value = Value(self.value.load(Ordering::Acquire));
            to.exchange(|there| value.in_round_of(there));
        }
        self.key.store(FREE, Ordering::Release);
    }

    /// An address was seen, in another second or behind another remote than before.
    fn see_again(&self, old: Value, remote: RemoteId, now_s: u32) -> Learned {
        let behind = Destination::Remote(remote);
        if old.is_dead() {
            return Learned::Busy;
        }
        if old.is_fixed() {
            return if old.destination() == behind { Learned::Known } else { Learned::Fixed };
        }
        if !self.try_exchange(old, old.seen_behind(remote, now_s)) {
            return Learned::Busy; // another thread saw it too, or took it away
        }
        if old.destination() == behind { Learned::Known } else { Learned::Moved }
    }

    fn try_exchange(&self, old: Value, new: Value) -> bool {
        self.value.compare_exchange(old.0, new.0, Ordering::AcqRel, Ordering::Relaxed).is_ok()
    }

    /// Changes the value, whatever it is; returns what it was.
    fn exchange(&self, new: impl Fn(Value) -> Value) -> Value {
        loop {
            let old = Value(self.value.load(Ordering::Acquire));
            if self.try_exchange(old, new(old)) {
                return old;
            }
        }
    }
}

/// `seen_s` in the upper half; then how often the slot was filled; then flags; the endpoint or remote in the low 16
/// bits.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Value(u64);

impl Value {
    const LOCAL: u64 = 1 << 16;
    const FIXED: u64 = 1 << 17;
    /// The entry is being taken away. What the value says is true for those who read it now.
    const DEAD: u64 = 1 << 18;
    const ROUND_ONE: u64 = 1 << 19;
    /// Comes round after 8192 fillings.
    const ROUND: u64 = 0xffff_ffff & !(Value::ROUND_ONE - 1);
    const EMPTY: Value = Value(0);

    fn fixed(destination: Destination) -> Value {
        match destination {
            Destination::Local(endpoint) => Value(Value::FIXED | Value::LOCAL | u64::from(endpoint.0)),
            Destination::Remote(remote) => Value(Value::FIXED | u64::from(remote.0)),
        }
    }

    /// Learned, in this value's round.
    #[inline]
    fn seen_behind(self, remote: RemoteId, now_s: u32) -> Value {
        Value(u64::from(now_s) << 32 | self.0 & Value::ROUND | u64::from(remote.0))
    }

    fn in_round_of(self, other: Value) -> Value {
        Value(self.0 & !Value::ROUND | other.0 & Value::ROUND)
    }

    fn in_round_after(self, other: Value) -> Value {
        self.in_round_of(Value(other.0.wrapping_add(Value::ROUND_ONE)))
    }

    fn dead(self) -> Value {
        Value(self.0 | Value::DEAD)
    }

    fn is_dead(self) -> bool {
        self.0 & Value::DEAD != 0
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

/// A key is never [`FREE`]: a station's address is not zero (the stages have checked).
#[inline]
fn network_of(key: u64) -> NetworkId {
    NetworkId((key >> 48) as u16)
}

#[cfg(all(loom, test))]
mod loom_tests;

#[cfg(all(test, not(loom)))]
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
        let place = fdb.place(NET, mac(1).to_u64());
        assert_eq!(fdb.lookup_fixed_at(place), Some(Destination::Local(EndpointId(7))));
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

    /// Addresses one after the other, as a vendor or a lab gives them, with a step between them, and without any order.
    #[test]
    fn a_table_takes_as_many_as_it_was_made_for() {
        const ENTRIES: u64 = 1 << 17; // just so many that the table is half full
        for (what, address) in [
            ("consecutive", (|n| mac(n)) as fn(u64) -> MacAddr),
            ("every 256th", |n| mac(n << 8)),
            ("some of each vendor", |n| MacAddr::from_u64((n & !0x3ff) << 14 | n & 0x3ff | 1 << 41)),
            ("anywhere", |n| MacAddr::from_u64(mix(n, GOLDEN) | 1 << 41)),
        ] {
            let fdb = Fdb::new(ENTRIES as usize, 1);
            assert_eq!(fdb.buckets() as u64 * SLOTS as u64, ENTRIES * 2);
            let learn = |n: &u64| fdb.learn(NET, address(*n), A, 0, u32::MAX);
            let refused = (0..ENTRIES).filter(|n| learn(n) == Learned::Refused).count();
            assert_eq!(refused, 0, "{what}");
            assert!(
                (0..ENTRIES).all(|n| fdb.lookup(NET, address(n)) == Some(Destination::Remote(A))),
                "{what}"
            );
            assert_eq!(fdb.entries().count(), fdb.learned(NET) as usize, "{what}");
        }
    }

    /// First and second buckets of addresses one after the other, each by itself and both together: χ² with 63 degrees
    /// of freedom stays below 130 (p ≈ 0.000001).
    #[test]
    fn both_buckets_are_chosen_evenly_and_apart() {
        let fdb = Fdb::new(1 << 16, 1);
        let mut counts = [[0u32; 64]; 3];
        for n in 0..1 << 16 {
            let place = fdb.place(NET, mac(n).to_u64());
            let (first, second) = (fdb.first(place), fdb.second(place));
            assert_ne!(first, second);
            // Of both together three bits each, without the last, in which they always differ.
            for (counts, bucket) in
                counts.iter_mut().zip([first % 64, second % 64, (first / 2 % 8) << 3 | second / 2 % 8])
            {
                counts[bucket] += 1;
            }
        }
        for counts in counts {
            let chi: f64 = counts.iter().map(|&n| (f64::from(n) - 1024.0).powi(2) / 1024.0).sum();
            assert!(chi < 130.0, "χ² = {chi}: {counts:?}");
        }
    }

    #[test]
    fn a_tiny_table_refuses_and_stays_whole() {
        let fdb = Fdb::new(1, 1);
        let taken = (0..100).filter(|&n| fdb.learn(NET, mac(n), A, 0, 100) == Learned::New).count();
        assert_eq!((taken, fdb.learned(NET)), (8, 8), "two buckets of four");
    }

    #[test]
    fn what_makes_room_for_others_is_still_found() {
        let fdb = Fdb::new(1 << 12, 1);
        let known: Vec<u64> = (0..fdb.buckets() as u64 * 3)
            .filter(|&n| fdb.learn(NET, mac(n), A, 0, u32::MAX) == Learned::New)
            .collect();
        let in_its_first = |entry: Entry| {
            let place = fdb.place(NET, entry.mac.to_u64());
            fdb.bucket(fdb.first(place)).0.iter().any(|slot| slot.read(place.key).is_some())
        };
        let elsewhere = fdb.entries().filter(|entry| !in_its_first(*entry)).count();
        assert!(elsewhere > known.len() / 20, "{elsewhere} of {} are in their second bucket", known.len());
        assert_eq!(known.iter().find(|&&n| fdb.lookup(NET, mac(n)).is_none()), None);
        assert_eq!((fdb.entries().count(), fdb.learned(NET) as usize), (known.len(), known.len()));
    }

    #[test]
    fn the_hand_goes_round_in_its_time_and_no_faster() {
        let (fdb, start) = (Fdb::new(4000, 1), Instant::now());
        (0..4000).for_each(|n| assert_eq!(fdb.learn(NET, mac(n), A, 0, u32::MAX), Learned::New));
        let mut hand = AgeingHand::new(start);
        let mut forgotten = 0;
        let steps = 700; // no divisor of anything here
        for step in 1..=steps {
            forgotten += hand.go(&fdb, start + AgeingHand::ROUND * step / steps, 100, |_| 30);
            let even = 4000.0 * f64::from(step) / f64::from(steps);
            assert!(
                (forgotten as f64 - even).abs() < 300.0,
                "{forgotten} after {step} steps, about {even:.0} expected"
            );
        }
        assert!(forgotten >= 3990, "{forgotten}: the last bucket may come with the next step");
        forgotten += hand.go(&fdb, start + AgeingHand::ROUND * 2, 100, |_| 30);
        assert_eq!((forgotten, fdb.learned(NET)), (4000, 0));
        assert_eq!(hand.go(&fdb, start, 100, |_| 30), 0, "a clock that goes back is no harm");
    }

    #[test]
    fn a_hand_that_was_kept_waiting_takes_a_step_of_bounded_length() {
        let (fdb, start) = (Fdb::new(AgeingHand::STEP_MAX * SLOTS, 1), Instant::now());
        assert_eq!(fdb.buckets(), 2 * AgeingHand::STEP_MAX);
        let total = 1000 * SLOTS as u64;
        (0..total).for_each(|n| assert_eq!(fdb.learn(NET, mac(n), A, 0, u32::MAX), Learned::New));
        let mut hand = AgeingHand::new(start);
        let half = hand.go(&fdb, start + AgeingHand::ROUND, 100, |_| 30) as f64;
        assert!((half - total as f64 / 2.0).abs() < total as f64 / 10.0, "{half} of {total}");
        assert_eq!(
            hand.go(&fdb, start + AgeingHand::ROUND, 100, |_| 30),
            0,
            "what was too much is not made up for"
        );
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

    /// Workers that learn the same addresses at once, in a table that is so full that entries move all the time, while
    /// others age and are looked up: none is there twice, the count agrees, and what is fixed is never missed.
    #[test]
    fn threads_that_learn_the_same_addresses_never_enter_one_twice() {
        const ADDRESSES: u64 = 600;
        for round in 0..20u64 {
            let fdb = Fdb::with_secret(256, 1, mix(round + 1, GOLDEN));
            let fixed: Vec<u64> = (ADDRESSES..ADDRESSES + 40).collect();
            let place = |n: u64| Destination::Local(EndpointId(n as u16));
            assert!(fixed.iter().all(|&n| fdb.set_fixed(NET, mac(n), place(n))));
            let missed = std::sync::atomic::AtomicUsize::new(0);
            std::thread::scope(|scope| {
                for worker in 0..3u64 {
                    let fdb = &fdb;
                    scope.spawn(move || {
                        for step in 0..20_000u64 {
                            let n = mix(step / 3 ^ round, GOLDEN) % ADDRESSES;
                            fdb.learn(NET, mac(n), RemoteId(worker as u16), (step / 1000) as u32, 500);
                        }
                    });
                }
                scope.spawn(|| {
                    (0..2000u32).for_each(|n| {
                        fdb.age(0, fdb.buckets(), n / 100, |_| 1);
                    })
                });
                for n in fixed.iter().cycle().take(50_000) {
                    let found = fdb.lookup(NET, mac(*n)) == Some(place(*n));
                    missed.fetch_add(usize::from(!found), std::sync::atomic::Ordering::Relaxed);
                }
            });
            assert_eq!(missed.into_inner(), 0, "fixed addresses that were not found");
            let mut all: Vec<Entry> = fdb.entries().collect();
            let count = all.len();
            all.sort_unstable_by_key(|entry| entry.mac);
            all.dedup_by_key(|entry| entry.mac);
            assert_eq!((all.len(), fdb.learned(NET) as usize + fixed.len()), (count, count), "round {round}");
            assert!(fdb.learned(NET) <= 500);
        }
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
