//! Which worker runs what: the one table that makes run-to-completion and pipelining the same thing.
//!
//! For each worker at which frames enter and each flow bucket there is a [`Route`]. If all its rows name the worker itself, it runs
//! every step to the end (run-to-completion); other rows spread a flow's steps over workers (FALCON). Control writes the routes
//! that it *wants*, any time; a worker takes a bucket over to the wanted route only when none of the bucket's frames
//! is under way on the old one. Frames that come meanwhile wait. So no frame can overtake an older one of its flow, whatever
//! its way is and however long the rings on it are.
//!
//! That "under way" is known to the worker where the frames enter without a shared counter: every frame lies in the memory of
//! that worker, and comes home to it when it is done with.
//!
//! Used by `mesh`; knows no rings and no I/O.

use crate::counters::Counter;
use crate::frame::BUCKETS;
use crate::sync::Ordering::{Acquire, Relaxed, Release};
use crate::sync::{AtomicBool, AtomicU8, AtomicU16, AtomicU32};
use crate::types::{EndpointId, NetworkId, Route, WorkerId};

/// Workers that there can be.
const WORKERS: usize = if cfg!(all(loom, test)) { 3 } else { WorkerId::LIMIT }; // a model keeps a record of each cell

/// The worker of a flow's step: one after the other ([`PlacementMode::Static`](crate::plan::PlacementMode::Static)).
pub const fn in_turn(flow_hash: u32, step: u32, workers: usize) -> WorkerId {
    place(flow_hash.wrapping_add(step), workers)
}

/// The worker of a flow's step by the hash that FALCON (EuroSys 2021) published, `hash_32(skb.hash + ifindex)`
/// ([`PlacementMode::StaticHashed`](crate::plan::PlacementMode::StaticHashed)); steps 1, 2, 3 stand for devices 2, 3, 4. Numbers
/// that follow one another have hashes that lie 25,032 or 25,033 apart, but for the wrap at 65,536: so consecutive steps share a worker in
/// about half of the flows, and three workers, of which the former is a multiple, have a step each in only a hundredth.
pub const fn hashed(flow_hash: u32, step: u32, workers: usize) -> WorkerId {
    place(hash_32(flow_hash.wrapping_add(1 + step), 16), workers)
}

/// Linux's (`include/linux/hash.h`): the highest bits of a product.
const fn hash_32(value: u32, bits: u32) -> u32 {
    const GOLDEN_RATIO_32: u32 = 0x61c8_8647;
    value.wrapping_mul(GOLDEN_RATIO_32) >> (32 - bits)
}

const fn place(number: u32, workers: usize) -> WorkerId {
    match number.checked_rem(workers as u32) {
        Some(worker) => WorkerId(worker as u8),
        None => WorkerId(0),
    }
}

/// What control wants and all workers read.
#[derive(Debug)]
pub struct Placement {
    /// Counts the changes of `wanted`.
    epoch: AtomicU32,
    /// By worker of entry and bucket.
    wanted: Box<[[AtomicU16; BUCKETS]]>,
    /// By endpoint: the worker that serves the tenant.
    homes: Box<[AtomicU8]>,
    /// By network: a bit for each worker that serves a tenant of it.
    present: Box<[AtomicU32]>,
    /// By worker: itself, or, if it has no socket, another one that has: copies for flooding leave where they are made.
    exits: Box<[AtomicU8]>,
    /// A bit for each worker that there is. Of control only: who comes or goes is told to the others by orders.
    there: AtomicU32,
    /// A bit for each worker that serves a tenant.
    serving: AtomicU32,
    /// By worker of entry: what control and it tell each other.
    entries: Box<[EntryNotes]>,
    /// The number of the pause that control asks for; 0 for none.
    pause: AtomicU32,
}

/// What enters at one worker, by bucket, and whether that is to be counted.
#[derive(Debug)]
#[repr(align(128))]
struct EntryNotes {
    is_counted: AtomicBool,
    /// The last pause that it has reached.
    paused: AtomicU32,
    entered: Box<[Entered; BUCKETS]>,
}

/// Frames of a bucket that entered while that was counted.
#[derive(Debug, Default)]
pub struct Entered {
    /// From the underlay.
    pub inward: Counter,
    /// From tenants.
    pub outward: Counter,
}

impl Placement {
    /// Everything on the worker where it enters. `exits` has an entry for each worker; others may [come](Self::come) later.
    pub fn new(exits: &[WorkerId], endpoints: usize, networks: usize) -> Placement {
        let placement = Placement {
            epoch: AtomicU32::new(0),
            wanted: (0..WORKERS).map(|_| std::array::from_fn(|_| AtomicU16::new(0))).collect(),
            homes: (0..endpoints).map(|_| AtomicU8::new(WorkerId::NONE.0)).collect(),
            present: (0..networks).map(|_| AtomicU32::new(0)).collect(),
            exits: (0..WORKERS).map(|_| AtomicU8::new(WorkerId::NONE.0)).collect(),
            there: AtomicU32::new(0),
            serving: AtomicU32::new(0),
            entries: (0..WORKERS).map(|_| EntryNotes::new()).collect(),
            pause: AtomicU32::new(0),
        };
        for (worker, exit) in (0u8..).zip(exits) {
            placement.come(WorkerId(worker), *exit);
        }
        placement
    }

    /// Control: there is this worker from now on, and that one sends its frames.
    pub fn come(&self, worker: WorkerId, exit: WorkerId) {
        if let Some(place) = self.exits.get(worker.index()) {
            place.store(exit.0, Relaxed);
            self.there.fetch_or(1 << worker.0, Relaxed);
            for bucket in 0..=u8::MAX {
                self.want(worker, bucket, Route::all(worker));
            }
        }
    }

    /// Control: this worker is no more to be used: flows that visit it stay where they enter. It is gone when a pause has been
    /// [reached](Self::is_paused) after that.
    pub fn go(&self, worker: WorkerId) {
        self.there.fetch_and(!(1 << worker.0), Relaxed);
        for entry in self.present() {
            for bucket in 0..=u8::MAX {
                let route = self.wanted(entry, bucket);
                if [route.decap(), route.lookup(), route.encap()].contains(&worker) {
                    self.want(entry, bucket, Route::all(entry));
                }
            }
        }
    }

    /// Control: the workers that there are.
    pub fn present(&self) -> impl Iterator<Item = WorkerId> + use<> {
        let there = self.there.load(Relaxed);
        (0..WORKERS as u8).filter(move |worker| there >> worker & 1 == 1).map(WorkerId)
    }

    /// Control: whether there is this worker.
    pub fn is_there(&self, worker: WorkerId) -> bool {
        self.there.load(Relaxed) >> worker.0 & 1 == 1
    }

    /// Control: asks all workers to take nothing new in and to tell when nothing of theirs is under way any more; 0: to go on.
    pub fn ask_pause(&self, number: u32) {
        self.pause.store(number, Release);
    }

    /// The number of the pause that control asks for, if it does. When it does not, what it changed in the last one is seen.
    #[inline]
    pub fn asked_pause(&self) -> Option<u32> {
        Some(self.pause.load(Acquire)).filter(|number| *number != 0)
    }

    /// Worker: nothing of mine is under way, and I take nothing new in.
    #[cold]
    pub fn reach_pause(&self, worker: WorkerId, number: u32) {
        if let Some(notes) = self.entries.get(worker.index()) {
            notes.paused.store(number, Release);
        }
    }

    /// Control: this worker has reached that pause.
    pub fn is_paused(&self, worker: WorkerId, number: u32) -> bool {
        self.entries.get(worker.index()).is_some_and(|notes| notes.paused.load(Acquire) == number)
    }

    /// Control: from now on what enters there is counted by bucket, or no more.
    pub fn count_entering(&self, entry: WorkerId, is_counted: bool) {
        if let Some(notes) = self.entries.get(entry.index()) {
            notes.is_counted.store(is_counted, Relaxed);
        }
    }

    /// Whether what enters there is to be counted.
    #[inline]
    pub fn counts_entering(&self, entry: WorkerId) -> bool {
        self.entries.get(entry.index()).is_some_and(|notes| notes.is_counted.load(Relaxed))
    }

    /// What entered there, by bucket, while it was counted.
    pub fn entered(&self, entry: WorkerId) -> Option<&[Entered; BUCKETS]> {
        self.entries.get(entry.index()).map(|notes| &*notes.entered)
    }

    /// No flow that enters there leaves the worker, and no tenant is served elsewhere: then all is as if there were no other worker.
    fn is_plain(&self, entry: WorkerId) -> bool {
        let here = Route::all(entry);
        let others = self.serving.load(Relaxed) & !(1 << entry.0);
        others == 0 && (0..=u8::MAX).all(|bucket| self.wanted(entry, bucket) == here)
    }

    /// Control: spreads the steps of every flow over all workers, the same bucket always in the same way: [`in_turn`] or [`hashed`].
    /// The bucket's number stands for the hash of its flows.
    pub fn spread(&self, worker: fn(u32, u32, usize) -> WorkerId) {
        let workers: Vec<WorkerId> = self.present().collect();
        for &entry in &workers {
            for bucket in 0..=u8::MAX {
                let step = |step| {
                    let nth = worker(bucket.into(), step, workers.len());
                    workers.get(nth.index()).copied().unwrap_or(entry)
                };
                let route = Route::new(step(1), step(2), step(3));
                self.want(entry, bucket, route);
            }
        }
    }

    /// The route that frames of this bucket should have that enter there.
    pub(crate) fn wanted(&self, entry: WorkerId, bucket: u8) -> Route {
        let row = self.wanted.get(entry.index()).and_then(|row| row.get(usize::from(bucket)));
        row.map_or(Route::all(entry), |bits| Route::from_bits(bits.load(Relaxed)))
    }

    /// Control: wants another route. Its Encap goes to a worker that can send: copies for flooding leave where they are made.
    pub fn want(&self, entry: WorkerId, bucket: u8, route: Route) {
        if let Some(cell) = self.wanted.get(entry.index()).and_then(|row| row.get(usize::from(bucket))) {
            let route = Route::new(route.decap(), route.lookup(), self.exit(route.encap()));
            cell.store(route.to_bits(), Relaxed);
            self.epoch.fetch_add(1, Release);
        }
    }

    /// The worker that sends the frames of this one.
    #[inline]
    pub fn exit(&self, worker: WorkerId) -> WorkerId {
        let exit = self.exits.get(worker.index()).map(|exit| WorkerId(exit.load(Relaxed)));
        exit.filter(|exit| *exit != WorkerId::NONE).unwrap_or(worker)
    }

    /// The worker that serves this endpoint's tenant, if one is attached.
    #[inline]
    pub fn home(&self, endpoint: EndpointId) -> Option<WorkerId> {
        let home = self.homes.get(endpoint.index())?.load(Relaxed);
        (home != WorkerId::NONE.0).then_some(WorkerId(home))
    }

    /// Control: who serves this endpoint's tenant.
    pub fn set_home(&self, endpoint: EndpointId, worker: Option<WorkerId>) {
        if let Some(home) = self.homes.get(endpoint.index()) {
            home.store(worker.unwrap_or(WorkerId::NONE).0, Relaxed);
        }
    }

    /// Control: which workers serve any tenant, a bit each.
    pub fn set_serving(&self, workers: u32) {
        if self.serving.swap(workers, Relaxed) != workers {
            self.epoch.fetch_add(1, Release);
        }
    }

    /// Control: which workers serve tenants of this network, a bit each.
    pub fn set_present(&self, network: NetworkId, workers: u32) {
        if let Some(present) = self.present.get(network.index()) {
            present.store(workers, Relaxed);
        }
    }

    /// The worker that a flooded frame visits first: this one, if it serves tenants of the network or nobody does, or the next one
    /// round the circle.
    #[inline]
    pub fn first_visit(&self, network: NetworkId, here: WorkerId) -> WorkerId {
        let present = self.present.get(network.index()).map_or(0, |present| present.load(Relaxed));
        if present >> here.0 & 1 == 1 { here } else { self.next_visit(network, here, here).unwrap_or(here) }
    }

    /// The worker that a flooded frame visits after `here`, having begun at `first`: the next one round the circle that serves
    /// tenants of the network. `None` when it has been everywhere.
    #[inline]
    pub fn next_visit(&self, network: NetworkId, first: WorkerId, here: WorkerId) -> Option<WorkerId> {
        let present = self.present.get(network.index())?.load(Relaxed);
        // Bit n: the worker n places after the first.
        let circle = present.rotate_right(u32::from(first.0));
        let passed = u32::from(here.0.wrapping_sub(first.0) & 31) + 1;
        let ahead = circle.checked_shr(passed).unwrap_or(0);
        (ahead != 0).then(|| WorkerId(((u32::from(first.0) + passed + ahead.trailing_zeros()) & 31) as u8))
    }
}

impl EntryNotes {
    fn new() -> EntryNotes {
        EntryNotes {
            is_counted: AtomicBool::new(false),
            paused: AtomicU32::new(0),
            entered: Box::new(std::array::from_fn(|_| Entered::default())),
        }
    }
}

/// One worker's buckets: the route that each has, the one that it should have, and whether frames wait for that.
#[derive(Debug)]
pub struct Buckets {
    rows: Box<[Bucket; BUCKETS]>,
    /// Everything stays here, so that not even the flow of a frame is looked at; and whether it should be so.
    is_plain: bool,
    wants_plain: bool,
    /// Of `wanted`, when it was last looked at.
    epoch: u32,
    /// Counts the rounds in which frames that wait were looked at.
    round: u16,
}

#[derive(Clone, Copy, Debug)]
struct Bucket {
    route: Route,
    wanted: Route,
    /// Frames that wait.
    waiting: u16,
    /// The round in which one of them had to go on waiting: so must all behind it.
    refused: u16,
}

/// What is to be done with a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// It goes this way.
    Go(Route),
    /// Its bucket is about to change its way: it waits until what is under way is home.
    Wait,
}

impl Buckets {
    /// With the routes that are wanted at the start.
    pub fn new(placement: &Placement, entry: WorkerId) -> Buckets {
        let mut rows = Box::new([Bucket::on(Route::all(entry)); BUCKETS]);
        for (bucket, row) in (0..=u8::MAX).zip(rows.iter_mut()) {
            *row = Bucket::on(placement.wanted(entry, bucket));
        }
        Buckets { rows, is_plain: false, wants_plain: false, epoch: u32::MAX, round: 0 }
    }

    /// Everything stays here: frames need no way.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.is_plain
    }

    /// Everything has stayed here so far, but is to no more. Frames that were flooded meanwhile are under way without
    /// being told apart by flow: nothing may come in until they are home.
    #[inline]
    pub fn is_leaving_plain(&self) -> bool {
        self.is_plain && !self.wants_plain
    }

    /// When nothing is under way, and nothing waits.
    #[inline]
    pub fn all_home(&mut self) {
        self.is_plain = self.wants_plain;
    }

    /// Looks at what is wanted. Called between bursts: of those that a burst holds, all have the same way.
    #[inline]
    pub fn look(&mut self, placement: &Placement, entry: WorkerId) {
        if placement.epoch.load(Relaxed) != self.epoch {
            self.look_again(placement, entry);
        }
    }

    #[cold]
    fn look_again(&mut self, placement: &Placement, entry: WorkerId) {
        self.epoch = placement.epoch.load(Acquire);
        for (bucket, row) in (0..=u8::MAX).zip(self.rows.iter_mut()) {
            row.wanted = placement.wanted(entry, bucket);
        }
        self.wants_plain = placement.is_plain(entry);
    }

    /// For a frame that has just come in, when so many of its bucket are under way. One that must wait is counted until
    /// [`leave_wait`](Self::leave_wait) or [`give_up_wait`](Self::give_up_wait).
    #[inline]
    pub fn enter(&mut self, bucket: u8, under_way: u32) -> Entry {
        let Some(row) = self.rows.get_mut(usize::from(bucket)) else { return Entry::Wait };
        if row.waiting == 0 && row.may_go(under_way) {
            return Entry::Go(row.route);
        }
        row.waiting += 1;
        Entry::Wait
    }

    /// The last frame that was to wait is dropped instead.
    #[cold]
    pub fn give_up_wait(&mut self, bucket: u8) {
        if let Some(row) = self.rows.get_mut(usize::from(bucket)) {
            row.waiting = row.waiting.saturating_sub(1);
        }
    }

    /// From now on all frames that wait are looked at, in their order.
    #[inline]
    pub fn begin_round(&mut self) {
        self.round = self.round.wrapping_add(1);
    }

    /// For the next frame that waits: may it go now?
    #[inline]
    pub fn leave_wait(&mut self, bucket: u8, under_way: u32) -> Entry {
        let Some(row) = self.rows.get_mut(usize::from(bucket)) else { return Entry::Wait };
        if row.refused == self.round || !row.may_go(under_way) {
            row.refused = self.round;
            return Entry::Wait;
        }
        row.waiting = row.waiting.saturating_sub(1);
        Entry::Go(row.route)
    }
}

impl Bucket {
    const fn on(route: Route) -> Bucket {
        Bucket { route, wanted: route, waiting: 0, refused: 0 }
    }

    /// The guard: another way only when nothing is under way on the old one.
    #[inline]
    fn may_go(&mut self, under_way: u32) -> bool {
        if self.route != self.wanted {
            if under_way > 0 && !cfg!(feature = "unguarded") {
                return false;
            }
            self.route = self.wanted;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerId = WorkerId(0);
    const B: WorkerId = WorkerId(1);

    #[test]
    fn all_stays_at_the_entry_until_something_else_is_wanted() {
        let placement = Placement::new(&[A, B, A], 1, 1);
        assert_eq!(placement.wanted(B, 7), Route::all(B));
        assert_eq!(
            placement.wanted(WorkerId(2), 7),
            Route::new(WorkerId(2), WorkerId(2), A),
            "2 has no socket"
        );
        placement.want(B, 7, Route::all(WorkerId(2)));
        assert_eq!(placement.wanted(B, 7), Route::new(WorkerId(2), WorkerId(2), A));
        assert_eq!((placement.wanted(B, 8), placement.wanted(A, 7)), (Route::all(B), Route::all(A)));
    }

    #[test]
    fn spreading_puts_consecutive_steps_on_distinct_workers_and_uses_them_alike() {
        let workers: Vec<WorkerId> = (0..4).map(WorkerId).collect();
        let placement = Placement::new(&workers, 0, 0);
        placement.spread(in_turn);
        let mut uses = [0; 4];
        for bucket in 0..=u8::MAX {
            let route = placement.wanted(A, bucket);
            let steps = [route.decap(), route.lookup(), route.encap()];
            steps.iter().for_each(|worker| uses[worker.index()] += 1);
            assert!(steps[0] != steps[1] && steps[1] != steps[2] && steps[0] != steps[2], "{route:?}");
        }
        assert_eq!(uses, [192; 4]);
    }

    #[test]
    fn the_kernels_hash_is_the_top_of_the_product() {
        assert_eq!([hash_32(0, 16), hash_32(1, 16), hash_32(2, 16)], [0, 0x61c8, 0xc391]);
        assert_eq!(hash_32(u32::MAX, 16), 0x9e37);
        assert_eq!(hash_32(1, 32), 0x61c8_8647);
    }

    /// By hand from the kernel's formula: the bucket's number and 2, 3, 4 for the devices.
    #[test]
    fn falcons_hash_uses_all_workers_but_puts_consecutive_steps_together() {
        assert_eq!([1, 2, 3].map(|step| hashed(0, step, 3).index()), [50_065 % 3, 9_561 % 3, 34_594 % 3]);
        let steps = |route: Route| [route.decap(), route.lookup(), route.encap()];
        for (workers, distinct_most) in [(2, 0), (3, 5), (4, 15)] {
            let all: Vec<WorkerId> = (0..workers).map(WorkerId).collect();
            let placement = Placement::new(&all, 0, 0);
            placement.spread(hashed);
            let routes: Vec<Route> = (0..=u8::MAX).map(|bucket| placement.wanted(A, bucket)).collect();
            for worker in all {
                let used = routes.iter().filter(|route| route.decap() == worker).count();
                assert!(used * usize::from(workers) > 200, "{worker:?} of {workers}: {used}");
            }
            let count = |is_so: &dyn Fn([WorkerId; 3]) -> bool| {
                routes.iter().filter(|route| is_so(steps(**route))).count()
            };
            let alike = count(&|[decap, lookup, _]| decap == lookup);
            assert!((110..130).contains(&alike), "{workers}: {alike}");
            let distinct =
                count(&|[decap, lookup, encap]| decap != lookup && lookup != encap && decap != encap);
            assert!(distinct <= distinct_most, "{workers}: {distinct}");
        }
    }

    #[test]
    #[cfg(not(feature = "unguarded"))]
    fn a_bucket_changes_its_way_only_when_nothing_of_it_is_under_way() {
        let placement = Placement::new(&[A, B], 0, 0);
        let mut buckets = Buckets::new(&placement, A);
        let (old, new) = (Route::all(A), Route::all(B));
        assert_eq!(buckets.enter(3, 5), Entry::Go(old));
        placement.want(A, 3, new);
        assert_eq!(buckets.enter(3, 5), Entry::Go(old), "nobody has looked yet");
        buckets.look(&placement, A);
        assert_eq!(buckets.enter(3, 5), Entry::Wait);
        assert_eq!(buckets.enter(4, 9), Entry::Go(old), "another bucket");
        // Even if the old way is wanted again, and whatever is under way: those that wait go first.
        placement.want(A, 3, old);
        buckets.look(&placement, A);
        assert_eq!(buckets.enter(3, 5), Entry::Wait);
        placement.want(A, 3, new);
        buckets.look(&placement, A);
        buckets.begin_round();
        assert_eq!(buckets.leave_wait(3, 1), Entry::Wait);
        assert_eq!(buckets.leave_wait(3, 0), Entry::Wait, "the one before it waits, so it does too");
        buckets.begin_round();
        assert_eq!(buckets.leave_wait(3, 0), Entry::Go(new));
        assert_eq!(buckets.enter(3, 1), Entry::Wait, "one still waits");
        assert_eq!(buckets.leave_wait(3, 1), Entry::Go(new), "on the new way there may be others");
        assert_eq!(buckets.leave_wait(3, 1), Entry::Go(new));
        assert_eq!(buckets.enter(3, 4), Entry::Go(new));
    }

    #[test]
    fn a_flood_visits_every_worker_once() {
        let placement = Placement::new(&[A; 31], 0, 1);
        let network = NetworkId(0);
        for (present, first, expected) in [
            (0b0, 3, vec![]),
            (0b1000, 3, vec![]),
            (0b1000, 1, vec![3]),
            (0b1011, 3, vec![0, 1]),
            (0b1011, 1, vec![3, 0]),
            (0b0011, 2, vec![0, 1]),
            (1 << 30 | 1, 29, vec![30, 0]),
            (0x7fff_ffff, 30, (0..30).collect()),
        ] {
            placement.set_present(network, present);
            let (first, mut here, mut visits) = (WorkerId(first), WorkerId(first), vec![]);
            let begins = placement.first_visit(network, first);
            assert!(present == 0 && begins == first || present >> begins.0 & 1 == 1, "{begins:?}");
            while let Some(next) = placement.next_visit(network, first, here) {
                visits.push(next.0);
                here = next;
                assert!(visits.len() < 40);
            }
            assert_eq!(visits, expected, "{present:b} from {first:?}");
        }
    }
}
