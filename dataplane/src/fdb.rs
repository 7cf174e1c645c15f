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
//! - An address that moves too often stays where it is for a while, and no discovered remote takes one from a known one, or keeps one
//!   from it (`fdb/moves.rs`).
//!
//! Called by the lookup stage (every frame) and by the engine (static entries, ageing). `fdb/loom_tests.rs` runs
//! it under a model checker.

mod ageing;
mod moves;
mod value;

use std::hash::{BuildHasher, RandomState};

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

pub use ageing::AgeingHand;
use moves::Record;
use value::Value;

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
    /// Not learned: it moved too often, and stays behind another remote for a while; or that one is known, and this one only discovered.
    Held,
}

/// What a network may learn.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Limits {
    /// At most so many addresses.
    pub addresses: u32,
    /// An address may move so often within [`MOVE_WINDOW`](crate::plan::MOVE_WINDOW); what moves once more is held. 0: it may always move.
    pub moves: u8,
    /// For so many seconds.
    pub hold_s: u32,
    /// Remotes that somebody told us of, a bit each: their word goes before that of others, which were only discovered. `None`: all are
    /// alike.
    pub known: Option<Box<[u64]>>,
}

impl Limits {
    /// So many addresses, which may always move.
    pub const fn of(addresses: u32) -> Limits {
        Limits { addresses, moves: 0, hold_s: 0, known: None }
    }

    /// Somebody told us of this remote.
    pub fn knows(&self, remote: RemoteId) -> bool {
        let has = |bits: &[u64]| {
            bits.get(remote.index() / 64).is_some_and(|word| word >> (remote.index() % 64) & 1 == 1)
        };
        self.known.as_deref().is_none_or(has)
    }
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
    /// It moved too often, and stays where it is until this second.
    pub held_until_s: Option<u32>,
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
    /// How often the address in a slot moved: a word for each slot, looked at only when an address moves.
    moves: Box<[[AtomicU64; SLOTS]]>,
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
    /// address finds none (in one table of some, one of 131,072) that nobody will see it; what is for it is flooded.
    pub fn new(entries: usize, networks: usize) -> Fdb {
        Fdb::with_secret(entries, networks, RandomState::new().hash_one(0u64))
    }

    /// The same with a known secret, so that measurements find every address in the same slot each time. Not for a
    /// table that strangers can fill: see `secrets`.
    pub fn with_secret(entries: usize, networks: usize, secret: u64) -> Fdb {
        let buckets = (entries * 2).div_ceil(SLOTS).next_power_of_two().clamp(2, 1 << 31);
        Fdb {
            buckets: std::iter::repeat_with(Bucket::default).take(buckets).collect(),
            moves: std::iter::repeat_with(Default::default).take(buckets).collect(),
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

    /// Notes that the address was seen behind `remote` in second `now_s`; of `addresses` that may be learned in its network, and always
    /// move.
    #[inline]
    pub fn learn(
        &self,
        network: NetworkId,
        mac: MacAddr,
        remote: RemoteId,
        now_s: u32,
        addresses: u32,
    ) -> Learned {
        self.learn_at(self.place(network, mac.to_u64()), remote, now_s, &Limits::of(addresses))
    }

    /// The same within limits. Writes only when the second or the remote is another than before, so that a busy address does not
    /// keep its cache line moving between cores.
    #[inline]
    pub fn learn_at(&self, place: Place, remote: RemoteId, now_s: u32, limits: &Limits) -> Learned {
        let Some((slot, old)) = self.find(place) else {
            return self.learn_new(place, remote, now_s, limits);
        };
        if old.seen_behind(remote, now_s) == old {
            return Learned::Known;
        }
        self.see_change((place, slot, old), remote, now_s, limits)
    }

    #[cold]
    fn learn_new(&self, place: Place, remote: RemoteId, now_s: u32, limits: &Limits) -> Learned {
        let Some(count) = self.learned.get(network_of(place.key).index()) else { return Learned::Refused };
        if count.load(Ordering::Relaxed) >= limits.addresses {
            return Learned::Refused;
        }
        let Some(_claim) = self.claim(place) else { return Learned::Busy };
        if self.find(place).is_some() {
            return self.see_claimed(place, remote, now_s, limits); // another thread learned it since we looked
        }
        let Some(slot) = self.room_for(place) else { return Learned::Refused };
        if count.fetch_add(1, Ordering::Relaxed) >= limits.addresses {
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
        let old = |key: u64, value: Value| {
            !value.is_fixed() && now_s.saturating_sub(value.seen_s()) > ageing_s(network_of(key))
        };
        self.sweep(first, count, old, |place| self.claim(place))
    }

    /// The same for what is behind a remote and for which `goes` says so of network, address, remote and whether it is fixed. Waits for
    /// workers that change buckets.
    pub fn forget_behind(
        &self,
        first: usize,
        count: usize,
        goes: impl Fn(NetworkId, MacAddr, RemoteId, bool) -> bool,
    ) -> usize {
        let goes = |key: u64, value: Value| match value.destination() {
            Destination::Remote(remote) => {
                goes(network_of(key), MacAddr::from_u64(key), remote, value.is_fixed())
            }
            Destination::Local(_) => false,
        };
        self.sweep(first, count, goes, |place| Some(self.claim_patiently(place)))
    }

    fn sweep<'a>(
        &'a self,
        first: usize,
        count: usize,
        goes: impl Fn(u64, Value) -> bool,
        claim: impl Fn(Place) -> Option<[Option<Claim<'a>>; 2]>,
    ) -> usize {
        let mut forgotten = 0;
        for ahead in 0..count.min(self.buckets.len()) {
            for slot in &self.bucket(first.wrapping_add(ahead)).0 {
                let key = slot.key.load(Ordering::Relaxed);
                if key != FREE
                    && goes(key, Value(slot.value.load(Ordering::Relaxed)))
                    && let Some(_claim) = claim(self.place_of(key))
                {
                    forgotten += usize::from(self.forget(slot, key, &goes));
                }
            }
        }
        forgotten
    }

    /// Empties the slot if it still holds this key, and its value still says so. The caller has the claim.
    #[cold]
    fn forget(&self, slot: &Slot, key: u64, goes: impl Fn(u64, Value) -> bool) -> bool {
        let value = Value(slot.value.load(Ordering::Acquire));
        if slot.key.load(Ordering::Relaxed) != key
            || !goes(key, value)
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
        self.entries_in(0, self.buckets.len())
    }

    /// Those in so many buckets, from `first` on.
    pub fn entries_in(&self, first: usize, count: usize) -> impl Iterator<Item = Entry> + '_ {
        let buckets = self.buckets.iter().zip(&self.moves).skip(first).take(count);
        let slots = buckets.flat_map(|(bucket, moves)| bucket.0.iter().zip(moves));
        slots.filter_map(|(slot, moves)| {
            let key = slot.key.load(Ordering::Acquire);
            let value = slot.read(key).filter(|_| key != FREE)?;
            Some(Entry {
                network: network_of(key),
                mac: MacAddr::from_u64(key),
                destination: value.destination(),
                fixed: value.is_fixed(),
                seen_s: value.seen_s(),
                held_until_s: Record(moves.load(Ordering::Relaxed))
                    .held_until_s(value)
                    .filter(|_| !value.is_fixed()),
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
            self.move_record(slot, to, place);
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

    /// By its number; what is beyond the last begins again at the first.
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

    /// An address was seen, in another second or behind another remote than before. `None` if it has moved.
    fn see_again(&self, old: Value, remote: RemoteId, now_s: u32) -> Option<Learned> {
        if old.is_dead() {
            return Some(Learned::Busy);
        }
        if old.destination() != Destination::Remote(remote) {
            return old.is_fixed().then_some(Learned::Fixed);
        }
        // Else another thread saw it too, or took it away.
        let is_known = old.is_fixed() || self.try_exchange(old, old.seen_behind(remote, now_s));
        Some(if is_known { Learned::Known } else { Learned::Busy })
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

/// A key is never [`FREE`]: a station's address is not zero (the stages have checked).
#[inline]
fn network_of(key: u64) -> NetworkId {
    NetworkId((key >> 48) as u16)
}

#[cfg(all(loom, test))]
mod loom_tests;

#[cfg(all(test, not(loom)))]
mod tests;
