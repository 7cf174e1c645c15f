//! The order of work where it depends on the class of a packet. A worker has one burst in each lane at most, somewhere between two
//! steps; it takes the most urgent one further, and before each step of another it looks for new work that is more urgent still:
//!
//! ```text
//!                     lane 0   ┌─ from other workers, lane by lane
//!   before each step: lane 1 ◄─┤  from the uplinks' rings for urgent frames   (lane 0)
//!   of a lower lane            └─ from tenants' first queues, of several      (lane 0)
//!   each turn:        the last ◄─ all the rest, mixed; split by class after its first step
//! ```
//!
//! So an urgent packet waits for one step of one less urgent burst, and for urgent ones before it. How long others may go first, and
//! whether a burst runs through at once, says [`Precedence`].
//!
//! In one turn of some it is noted how long bursts wait, see `waiting`: the end of each step, and in the turn before already each look
//! at a place where new work may be.
//!
//! What must hold: at the end of a turn no lane has a burst; frames of a flow and class are in one lane and are taken in order from
//! each place, so they keep it. What is new is taken in only when `takes_in` allows it: not while frames wait for their bucket's way.

use super::looks::{Looks, Place};
use super::{FLOOD_COPIES_PER_TURN, Worker, count};
use crate::clock::cycles;
use crate::frame::{BURST, Burst, Frame};
use crate::lanes::{Lanes, Precedence};
use crate::mesh::Mesh;
use crate::plan::ClassesPlan;
use crate::stages::{self, Cx, Origin, Stage, collect};
use crate::tenants::FIRST_LOOKS;
use crate::types::{Class, UplinkId};
use crate::waiting::Before;

/// What a worker needs for that.
#[derive(Debug)]
pub(super) struct ByClass {
    lanes: Box<[Lane]>,
    precedence: Precedence,
    /// From tenants' first queues, and not as urgent as those are for: they wait for the others' turn.
    deferred: Box<Burst>,
    /// New frames may be taken in now, and those of first queues, which may have to be deferred; `is_plain`: all of them stay here.
    takes_in: bool,
    takes_first: bool,
    is_plain: bool,
    /// By lane: it had a burst in this turn; the last also for what came from a place where all classes are mixed.
    had_work: [bool; Class::LIMIT],
    /// The place of its own that the most urgent lane is to be asked for first the next time.
    first: usize,
    /// Until then time is accounted for.
    mark: u64,
    looks: Looks,
}

/// A burst between two steps.
#[derive(Debug)]
struct Lane {
    /// Boxed, so that a whole burst can be given to another lane.
    bursts: [Box<Burst>; 2],
    /// Its frames are in the second of them.
    is_second: bool,
    /// Its next step; `None`: there is no burst.
    stage: Option<Stage>,
    origin: Origin,
    is_plain: bool,
    /// It came from another worker.
    is_of_others: bool,
    /// Copies that flooding may still make in this turn, of a lane before the last: what began here, and what came from other workers.
    flood_budgets: [usize; 2],
    /// It waits for that, if anybody wants to know how long.
    wait: Option<Wait>,
}

#[derive(Clone, Copy, Debug)]
struct Wait {
    /// In cycles.
    since: u64,
    /// Whose wait it is; `None`: that of the burst's first frame.
    class: Option<Class>,
}

impl Lane {
    fn new() -> Lane {
        Lane {
            bursts: Default::default(),
            is_second: false,
            stage: None,
            origin: Origin::only(UplinkId(0)),
            is_plain: false,
            is_of_others: false,
            flood_budgets: [0; 2],
            wait: None,
        }
    }

    /// It waits since then.
    #[inline]
    fn waits_since(&mut self, since: Option<u64>) {
        self.wait = since.map(|since| Wait { since, class: None });
    }

    /// The class of its burst's first frame.
    #[inline]
    fn class(&mut self) -> Option<Class> {
        self.bursts().0.iter().next().map(Frame::class)
    }

    /// The burst with its frames, and the other.
    #[inline]
    fn bursts(&mut self) -> (&mut Box<Burst>, &mut Box<Burst>) {
        let [first, second] = &mut self.bursts;
        if self.is_second { (second, first) } else { (first, second) }
    }

    /// The lane that all frames of the burst belong to.
    #[inline]
    fn common_lane(&mut self, lanes: Lanes) -> Option<usize> {
        let (frames, _) = self.bursts();
        let mut of = frames.iter().map(|frame| lanes.of(frame.class()));
        let first = of.next()?;
        of.all(|lane| lane == first).then_some(first)
    }

    /// Gives its burst to a lane that has none.
    #[inline]
    fn give_all(&mut self, to: &mut Lane) {
        std::mem::swap(&mut self.bursts, &mut to.bursts);
        std::mem::swap(&mut self.is_second, &mut to.is_second);
        to.stage = self.stage.take();
        (to.origin, to.is_plain, to.wait) = (self.origin, self.is_plain, self.wait);
        to.is_of_others = self.is_of_others;
    }
}

impl ByClass {
    /// Of a worker with so many places to take frames from.
    pub(super) fn new(classes: &ClassesPlan, sources: usize) -> ByClass {
        let lanes = Lanes::new(classes);
        // Where there is one lane, nobody asks for it.
        let count = if lanes.count() > 1 { lanes.count() } else { 0 };
        ByClass {
            lanes: std::iter::repeat_with(Lane::new).take(count).collect(),
            precedence: Precedence::new(classes, lanes),
            deferred: Box::default(),
            takes_in: false,
            takes_first: false,
            is_plain: false,
            had_work: [false; Class::LIMIT],
            first: 0,
            mark: 0,
            looks: Looks::new(sources),
        }
    }

    /// After a sleep.
    pub(super) fn forget_looks(&mut self) {
        self.looks.forget();
    }

    #[inline]
    pub(super) fn begin_turn(&mut self, now: u64, turn: u64, by_class: bool) {
        (self.takes_in, self.takes_first) = (false, false);
        self.had_work = [false; Class::LIMIT];
        self.mark = now;
        self.lanes.iter_mut().for_each(|lane| lane.flood_budgets = [FLOOD_COPIES_PER_TURN; 2]);
        self.looks.begin_turn(turn, by_class);
    }

    /// Lanes for which nothing has come in this turn wait for nothing, and claim nothing: before new frames are taken in, and at the end. Not
    /// sooner: what is theirs may lie in a place where all classes are mixed.
    #[inline]
    pub(super) fn forget_idle(&mut self) {
        for lane in 1..self.lanes.len() {
            if !self.had_work.get(lane).is_some_and(|had| *had) {
                self.precedence.has_nothing(lane);
            }
        }
    }

    #[inline]
    fn note_work(&mut self, lane: usize) {
        if let Some(had_work) = self.had_work.get_mut(lane) {
            *had_work = true;
        }
    }

    /// The most urgent lane from this one on that has a burst.
    #[inline]
    fn busy_from(&self, from: usize) -> Option<usize> {
        (from..self.lanes.len()).find(|lane| self.lanes.get(*lane).is_some_and(|lane| lane.stage.is_some()))
    }

    /// The time since the last account went into this lane.
    #[inline]
    fn account(&mut self, lane: usize) {
        if self.precedence.has_shares() {
            let now = cycles();
            self.precedence.spent(lane, now.wrapping_sub(self.mark));
            self.mark = now;
        }
    }
}

impl Worker {
    /// What has waited for its way, of all classes.
    pub(super) fn released_by_class(&mut self, looks: &mut usize) -> usize {
        let last = self.lanes.last();
        let mut moved = 0;
        while *looks > 0 {
            let mut released = 0;
            self.load(last, |worker, its| {
                let (burst, spare) = its.bursts();
                let (_, mut cx) = worker.parts();
                let mesh = cx.mesh.as_deref_mut()?;
                let stage = mesh.released(burst, looks, cx.pool)?;
                released = burst.len();
                cx.part(stage, burst, spare);
                cx.settle();
                Some((burst.len(), stage, Origin::only(UplinkId(0)), false))
            });
            if released == 0 {
                break;
            }
            self.by_class.note_work(last); // even if all of it is handed over
            self.split();
            moved += released + self.work_off();
        }
        moved
    }

    /// A burst from each of the others, lane by lane, and what is more urgent first.
    pub(super) fn others_by_class(&mut self, others: usize) -> usize {
        let last = self.lanes.last();
        let mut moved = 0;
        for other in 0..others {
            let mut arrived = 0;
            while arrived < BURST {
                moved += self.more_urgent_first();
                match self.load_arrivals(other, last) {
                    0 => break,
                    count => arrived += count,
                }
                moved += self.work_off();
            }
            moved += arrived;
        }
        moved
    }

    /// A burst from each source, and what is more urgent first.
    pub(super) fn take_in_by_class(&mut self, is_plain: bool) -> usize {
        (self.by_class.takes_in, self.by_class.takes_first) = (true, true);
        self.by_class.is_plain = is_plain;
        self.by_class.forget_idle();
        let mut moved = 0;
        for source in 0..self.uplink.sources() {
            if self.lanes.urgent().is_none() && self.has_early(source) {
                moved += self.rest_in(source, true); // of the class that is not preferred
            }
            moved += self.more_urgent_first() + self.rest_in(source, false);
        }
        moved += self.more_urgent_first() + self.rest_out();
        // None stays over the turn's end: the way of its flow may change there.
        self.by_class.takes_first = false;
        moved += self.out(None, |_, _| ());
        moved
    }

    /// Bursts of the lanes before the last, as long as there are any and nobody behind has waited enough.
    #[inline]
    fn more_urgent_first(&mut self) -> usize {
        let mut moved = 0;
        while let Some(count) = self.load_more_urgent(self.lanes.last()) {
            moved += count + self.work_off();
        }
        moved
    }

    /// One burst of all classes from an uplink's ring.
    #[inline]
    fn rest_in(&mut self, source: usize, is_urgent: bool) -> usize {
        if self.must_wait() {
            return 0;
        }
        let last = self.lanes.last();
        let received = self.load_received(source, is_urgent, last);
        if received == 0 {
            return 0;
        }
        self.step(last);
        self.split();
        received + self.work_off()
    }

    /// One burst of all classes from the tenants, behind what was deferred.
    #[inline]
    fn rest_out(&mut self) -> usize {
        let since = self.by_class.looks.look(Place::Tenants);
        self.out(since, |worker, burst| {
            let (_, mut cx) = worker.parts();
            collect::run(burst, &mut cx);
        })
    }

    /// What was deferred goes its way, and what `fill` adds, which has waited at most since then.
    #[inline]
    fn out(&mut self, since: Option<u64>, fill: impl FnOnce(&mut Worker, &mut Burst)) -> usize {
        let last = self.lanes.last();
        let taken = self.load(last, |worker, lane| {
            let (burst, _) = lane.bursts();
            std::mem::swap(burst, &mut worker.by_class.deferred);
            fill(worker, burst);
            let taken = burst.len();
            worker.collected(since, lane);
            Some((taken, Stage::Lookup, Origin::only(UplinkId(0)), false))
        });
        if taken == 0 {
            return 0;
        }
        self.enter(last);
        self.split();
        taken + self.work_off()
    }

    /// Takes all bursts that there are to their end, and those that come meanwhile and are more urgent. How many frames these were.
    #[inline]
    fn work_off(&mut self) -> usize {
        let mut moved = 0;
        while let Some(lane) = self.by_class.busy_from(0) {
            if let Some(count) = self.load_more_urgent(lane) {
                moved += count;
                continue;
            }
            self.step(lane);
            if !self.by_class.precedence.alternates(lane) {
                continue;
            }
            let Some(behind) = self.by_class.busy_from(lane + 1) else { continue };
            match self.load_more_urgent(lane) {
                Some(count) => moved += count,
                None => self.step(behind),
            }
        }
        moved
    }

    /// Takes up a burst of a lane before this one, if there is work there and nobody from this one on has waited enough. All of these
    /// are without a burst. How many frames it has.
    #[inline]
    fn load_more_urgent(&mut self, before: usize) -> Option<usize> {
        let precedence = &self.by_class.precedence;
        if before == 0 || (before..self.lanes.count()).any(|lane| precedence.is_due(lane)) {
            return None;
        }
        // One that has waited enough, and has nothing of its own here, may have something where all classes are mixed: that is next.
        let due = (1..before).find(|lane| precedence.is_due(*lane));
        let lanes = due.map_or(0..before, |due| due..due + 1);
        for lane in lanes {
            let count = self.load_urgent(lane);
            if count > 0 {
                self.by_class.precedence.takes(lane);
                self.by_class.account(lane);
                return Some(count);
            }
        }
        None
    }

    /// A burst of a lane before the last: of each place that it may come from, another one is asked first each time.
    #[inline]
    fn load_urgent(&mut self, lane: usize) -> usize {
        let others = self.mesh.as_ref().map_or(0, Mesh::others);
        let is_most = self.lanes.urgent() == Some(lane) && self.by_class.takes_in;
        let sources = if is_most { self.uplink.sources() } else { 0 };
        let places = others + sources + usize::from(is_most);
        let first = if is_most && self.by_class.first < places { self.by_class.first } else { 0 };
        for place in 0..places {
            let place = place + first;
            let place = if place < places { place } else { place - places };
            let count = if place < others {
                self.load_arrivals(place, lane)
            } else if place < others + sources {
                self.load_early(place - others, lane)
            } else {
                self.load_first_queues(lane)
            };
            if count > 0 {
                if is_most {
                    self.by_class.first = place + 1;
                }
                return count;
            }
        }
        0
    }

    #[inline]
    fn load_arrivals(&mut self, other: usize, lane: usize) -> usize {
        let count = self.load(lane, |worker, its| {
            let (burst, _) = its.bursts();
            let mesh = worker.mesh.as_mut()?;
            let stage = mesh.arrivals(other, lane, burst)?;
            let count = burst.len();
            its.wait = mesh.waited().map(|waited| Wait { since: waited.since, class: Some(waited.class) });
            Some((count, stage, Origin::only(UplinkId(0)), false))
        });
        if let Some(its) = self.by_class.lanes.get_mut(lane) {
            its.is_of_others |= count > 0;
        }
        self.tenants.note_work(count);
        count
    }

    #[inline]
    fn load_early(&mut self, source: usize, lane: usize) -> usize {
        if self.has_early(source) && !self.must_wait() { self.load_received(source, true, lane) } else { 0 }
    }

    /// Frames are in a ring for urgent ones. That none are is known by a look as well.
    #[inline]
    fn has_early(&mut self, source: usize) -> bool {
        let has = self.uplink.has_urgent(source);
        if !has {
            self.by_class.looks.look(Place::Ring(source, true));
        }
        has
    }

    #[inline]
    fn load_received(&mut self, source: usize, is_urgent: bool, lane: usize) -> usize {
        let count = self.load(lane, |worker, its| {
            its.waits_since(worker.by_class.looks.look(Place::Ring(source, is_urgent)));
            let (burst, _) = its.bursts();
            let origin = worker.uplink.origin(source, is_urgent);
            let received = worker.uplink.receive(source, origin.ring, &mut worker.pool, burst);
            if received > 0 {
                worker.count_received(origin.uplink, burst);
                // Many urgent bursts may come in one turn, more than the fill ring holds.
                worker.uplink.refill(source, &mut worker.pool);
            }
            Some((received, Stage::Classify, origin, worker.by_class.is_plain))
        });
        self.tenants.note_work(count);
        count
    }

    /// From the first queues of tenants that have several. What there is not urgent waits for the rest's turn.
    #[inline]
    fn load_first_queues(&mut self, lane: usize) -> usize {
        if !self.by_class.takes_first || self.by_class.deferred.room() < FIRST_LOOKS {
            return 0; // no room for one of each
        }
        let lanes = self.lanes;
        let count = self.load(lane, |worker, its| {
            let since = worker.by_class.looks.look(Place::FirstQueues);
            let (burst, spare) = its.bursts();
            let (_, mut cx) = worker.parts();
            collect::run_first((burst, spare), |frame| lanes.of(frame.class()) == lane, &mut cx);
            for frame in spare.drain() {
                if let Err(frame) = worker.by_class.deferred.push(frame) {
                    worker.pool.put(frame); // never: there is room for one of each look
                }
            }
            let taken = burst.len();
            worker.collected(since, its);
            Some((taken, Stage::Lookup, Origin::only(UplinkId(0)), false))
        });
        if count > 0 {
            self.enter(lane);
        }
        count
    }

    /// Fills a lane that has no burst: how many frames, their next step, where they come from, whether all stay here.
    #[inline]
    fn load(
        &mut self,
        lane: usize,
        fill: impl FnOnce(&mut Worker, &mut Lane) -> Option<(usize, Stage, Origin, bool)>,
    ) -> usize {
        self.with_lane(lane, |worker, its| {
            let (count, stage, origin, is_plain) = fill(worker, its)?;
            if count > 0 {
                (its.stage, its.origin, its.is_plain) = (Some(stage), origin, is_plain);
                its.is_of_others = false;
                worker.by_class.note_work(lane);
            }
            Some(count)
        })
        .unwrap_or(0)
    }

    /// What came from tenants gets its way. None may be left.
    #[inline]
    fn enter(&mut self, lane: usize) {
        let is_plain = self.by_class.is_plain;
        self.with_lane(lane, |worker, its| {
            its.is_plain = is_plain;
            let (frames, spare) = its.bursts();
            let (_, mut cx) = worker.parts();
            if is_plain {
                cx.count_here(Stage::Lookup, frames);
            } else {
                cx.enter(Stage::Lookup, frames, spare);
                cx.part(Stage::Lookup, frames, spare);
                cx.settle();
            }
            if frames.is_empty() {
                its.stage = None;
            }
            Some(())
        });
    }

    /// What a look at tenants has brought, who were looked at then before.
    #[inline]
    fn collected(&self, since: Option<u64>, its: &mut Lane) {
        its.wait = None;
        if let (Some(since), Some(class)) = (since, its.class()) {
            let now = cycles();
            self.counters.waited(Some(class), Before::Collect, now.wrapping_sub(since));
            its.waits_since(Some(now));
        }
    }

    /// Takes a lane's burst one step further.
    fn step(&mut self, lane: usize) {
        let is_urgent = self.lanes.urgent() == Some(lane);
        let is_preferred = lane < self.lanes.last();
        self.with_lane(lane, |worker, its| {
            let (stage, origin, is_plain) = (its.stage?, its.origin, its.is_plain);
            let (_, cx) = worker.parts();
            let mut cx = Cx { origin, is_urgent, ..cx };
            let waited =
                its.wait.take().map(|wait| (wait.class.or(its.class()), cycles().saturating_sub(wait.since)));
            // What the lanes before the last flood is not taken from its own.
            let [here, others] = its.flood_budgets;
            let mut budget = if its.is_of_others { others } else { here };
            if is_preferred {
                cx.flood_budget = &mut budget;
            }
            let (frames, spare) = its.bursts();
            let ((frames, _), next) = stages::advance(stage, (frames, spare), is_plain, &mut cx);
            let is_done = frames.is_empty();
            cx.settle();
            its.flood_budgets = if its.is_of_others { [here, budget] } else { [budget, others] };
            its.is_second ^= stage.moves_on();
            its.stage = next.filter(|_| !is_done);
            if let Some((class, time)) = waited {
                // Before Classify nobody knows it.
                let class = if stage == Stage::Classify { its.class() } else { class };
                worker.counters.waited(class, Before::Step(stage), time);
            }
            its.waits_since((worker.is_sampled && !is_done).then(cycles));
            Some(())
        });
        self.by_class.account(lane);
        if self.by_class.lanes.get(lane).is_some_and(|its| its.stage.is_none()) {
            self.by_class.precedence.has_done(lane);
            if is_urgent {
                self.kick_urgent();
            }
        }
    }

    /// Gives each frame of the last lane, which are of all classes, to its own. No other lane has a burst.
    #[inline]
    fn split(&mut self) {
        self.split_rest();
        let last = self.lanes.last();
        for lane in 0..last {
            if self.by_class.lanes.get(lane).is_some_and(|its| its.stage.is_some()) {
                self.by_class.note_work(lane);
            }
        }
        if self.by_class.lanes.get(last).is_some_and(|its| its.stage.is_none()) {
            // It had its turn, and nothing in the burst was its own, or nothing stays here.
            self.by_class.precedence.has_done(last);
            self.by_class.account(last);
        }
    }

    #[inline]
    fn split_rest(&mut self) {
        let of = self.lanes;
        let Some((rest, lanes)) = self.by_class.lanes.split_last_mut() else { return };
        let Some(stage) = rest.stage else { return };
        if let Some(lane) = rest.common_lane(of) {
            if let Some(lane) = lanes.get_mut(lane) {
                rest.give_all(lane);
            }
            return; // most often: all are of the last lane, or of one other
        }
        let (origin, is_plain, wait) = (rest.origin, rest.is_plain, rest.wait);
        let (frames, kept) = rest.bursts();
        for frame in frames.drain() {
            let to = match lanes.get_mut(of.of(frame.class())) {
                Some(lane) => {
                    (lane.stage, lane.origin, lane.is_plain, lane.wait) =
                        (Some(stage), origin, is_plain, wait);
                    lane.is_of_others = false; // a mixed burst came in here
                    lane.bursts().0
                }
                None => &mut *kept,
            };
            if let Err(frame) = to.push(frame) {
                self.pool.put(frame); // never: there is room for all in each
            }
        }
        let is_empty = kept.is_empty();
        rest.is_second ^= true;
        if is_empty {
            rest.stage = None;
        }
    }

    /// Urgent frames do not wait for the end of the turn; nor does the room for more of them.
    #[inline]
    fn kick_urgent(&mut self) {
        for socket in self.uplink.sockets() {
            if socket.urgent_tx_outstanding() > 0 {
                count(socket.kick_urgent(cycles()), &self.counters);
                socket.complete(&mut self.pool);
            }
        }
    }

    /// Works on a lane with everything else at hand.
    #[inline]
    fn with_lane<T>(
        &mut self,
        lane: usize,
        work: impl FnOnce(&mut Worker, &mut Lane) -> Option<T>,
    ) -> Option<T> {
        let mut lanes = std::mem::take(&mut self.by_class.lanes);
        let result = lanes.get_mut(lane).and_then(|lane| work(self, lane));
        self.by_class.lanes = lanes;
        result
    }
}
