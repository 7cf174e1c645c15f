//! How frames go from worker to worker: a ring for each pair and direction, another one for frames that go home, and the frames
//! that wait until their bucket may change its way.
//!
//! ```text
//!            to        from
//! worker A ------ring------> worker B     frames with their next step
//!          <-----ring-------              frames of A's memory that B has done with
//! ```
//!
//! Owned by one worker, which turns it by hand: [`arrivals`](Mesh::arrivals) and [`released`](Mesh::released) in, hand over while the
//! steps run, [`settle`](Mesh::settle) after each burst.
//!
//! What must hold: a full ring drops, and nobody waits for anybody. What is held up, in the rings and in the list of those that wait,
//! is at most half of a worker's frames. Frames that go home are never dropped: those that find
//! no room wait in a list that is as long as there are frames. `mesh/loom_tests.rs` runs this, the placement and the rings under a
//! model checker.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::bell::{Bell, Caller};
use crate::frame::{BURST, Burst, Frame, FramePool, Homing, Source, Target, bucket};
use crate::lanes::Lanes;
use crate::placement::{Buckets, Entry, Placement};
use crate::ring::{Consumer, Producer, ring};
use crate::types::{Class, EndpointId, NetworkId, Stage, WorkerId};
use crate::waiting::{ProbeIn, ProbeOut, probe};

/// Frames under way from one worker to another, at most: what a worker does in some 50 µs.
pub const RING: usize = if cfg!(all(loom, test)) { 2 } else { 1024 }; // a model has few frames, and watches each slot

/// Frames that wait for their bucket, at most, if the pool can spare so many. More are dropped.
pub const WAITING_MAX: usize = 1024;

/// Both directions between a worker and another.
#[derive(Debug)]
pub struct Link {
    /// A ring for each lane.
    to: Box<[(Producer<Frame>, ProbeIn)]>,
    from: Box<[(Consumer<Frame>, ProbeOut)]>,
    /// Frames of the other's memory, on their way home.
    home_to: Producer<Homing>,
    home_from: Consumer<Homing>,
    /// Those that the ring had no room for.
    backlog: Vec<Homing>,
    /// Something was pushed since the last publication.
    is_unpublished: bool,
    /// The other's.
    bell: Arc<Bell>,
}

/// A worker's ends to the others, by worker; none to itself.
pub type Links = Box<[Option<Link>]>;

/// While nothing leaves a worker, what comes in is counted in one turn of so many: to hash a frame for that only costs a third of all
/// else that is done with it, and who has too much to do has no time for it.
const COUNTED_TURNS: u32 = 8;

/// One worker's end of everything.
#[derive(Debug)]
pub struct Mesh {
    me: WorkerId,
    lanes: Lanes,
    links: Links,
    placement: Arc<Placement>,
    buckets: Buckets,
    waiting: VecDeque<Frame>,
    /// How many of them lie in large buffers.
    large_waiting: usize,
    /// Control wants that nothing comes in.
    is_paused: bool,
    /// Counts the turns.
    turn: u32,
    /// From which of the others frames are taken first in this turn.
    first: usize,
    /// In this turn what comes in is counted by bucket.
    is_counting: bool,
    waited: Option<Waited>,
}

/// A frame that lay in a ring.
#[derive(Clone, Copy, Debug)]
pub struct Waited {
    /// Since when, in cycles.
    pub since: u64,
    /// What it is.
    pub class: Class,
}

/// The ends for all workers, who have these bells, in their order, and memory for so many frames at most, each, and keep these lanes apart.
pub fn mesh(placement: &Arc<Placement>, bells: &[Arc<Bell>], lanes: Lanes, frames: usize) -> Vec<Mesh> {
    let workers: Vec<(WorkerId, &Arc<Bell>)> = placement.present().zip(bells).collect();
    let mut meshes: Vec<Mesh> = workers.iter().map(|(me, _)| Mesh::new(placement, *me, lanes)).collect();
    for (place, &(a, bell_a)) in workers.iter().enumerate() {
        for (other, &(b, bell_b)) in workers.iter().enumerate().skip(place + 1) {
            let (to_b, to_a) = link(lanes, frames, bell_a, bell_b);
            for (place, other, link) in [(place, b, to_b), (other, a, to_a)] {
                if let Some(mesh) = meshes.get_mut(place) {
                    put(&mut mesh.links, other, link);
                }
            }
        }
    }
    meshes
}

/// The ends of a worker that comes to these others, and what each of them gets for its own: see [`Mesh::relink`].
pub fn join(
    placement: &Arc<Placement>,
    (newcomer, bell): (WorkerId, &Arc<Bell>),
    others: &[(WorkerId, Arc<Bell>)],
    lanes: Lanes,
    frames: usize,
) -> (Mesh, Vec<Links>) {
    let places = others.iter().map(|(other, _)| other.index()).max().unwrap_or(0).max(newcomer.index()) + 1;
    let mut mesh = Mesh::new(placement, newcomer, lanes);
    let theirs = others.iter().map(|(other, other_bell)| {
        let (to_other, to_newcomer) = link(lanes, frames, bell, other_bell);
        put(&mut mesh.links, *other, to_other);
        let mut links: Links = std::iter::repeat_with(|| None).take(places).collect();
        put(&mut links, newcomer, to_newcomer);
        links
    });
    let theirs = theirs.collect();
    (mesh, theirs)
}

/// Both ends between two workers, a's and b's.
fn link(lanes: Lanes, frames: usize, a: &Arc<Bell>, b: &Arc<Bell>) -> (Link, Link) {
    let timed_ring = || {
        let ((to, from), (probe_in, probe_out)) = (ring(RING), probe());
        ((to, probe_in), (from, probe_out))
    };
    let rings = || std::iter::repeat_with(timed_ring).take(lanes.count()).unzip::<_, _, Vec<_>, Vec<_>>();
    let ((to_b, from_a), (to_a, from_b)) = (rings(), rings());
    let ((home_to_b, home_from_a), (home_to_a, home_from_b)) = (ring(RING), ring(RING));
    let end = |to: Vec<_>, from: Vec<_>, home_to, home_from, other: &Arc<Bell>| {
        let (backlog, bell) = (Vec::with_capacity(frames), other.clone());
        Link { to: to.into(), from: from.into(), home_to, home_from, backlog, is_unpublished: false, bell }
    };
    (end(to_b, from_b, home_to_b, home_from_b, b), end(to_a, from_a, home_to_a, home_from_a, a))
}

/// At its place in the list, which is made long enough.
fn put(links: &mut Links, worker: WorkerId, link: Link) {
    let mut longer = std::mem::take(links).into_vec();
    if longer.len() <= worker.index() {
        longer.resize_with(worker.index() + 1, || None);
    }
    if let Some(place) = longer.get_mut(worker.index()) {
        *place = Some(link);
    }
    *links = longer.into();
}

impl Mesh {
    /// Without links.
    pub fn new(placement: &Arc<Placement>, me: WorkerId, lanes: Lanes) -> Mesh {
        Mesh {
            me,
            lanes,
            links: Links::default(),
            placement: placement.clone(),
            buckets: Buckets::new(placement, me),
            waiting: VecDeque::with_capacity(WAITING_MAX),
            large_waiting: 0,
            is_paused: false,
            turn: 0,
            first: 0,
            is_counting: false,
            waited: None,
        }
    }

    /// Takes up these links, and keeps those that it has for which there is a place but no link in the list; not the one to `without`, who has
    /// gone or is new. What is left over is in the list afterwards. Nothing may be under way through that.
    #[cold]
    pub fn relink(&mut self, links: &mut Links, without: WorkerId) {
        for (worker, (new, old)) in links.iter_mut().zip(self.links.iter_mut()).enumerate() {
            if new.is_none() && worker != without.index() {
                std::mem::swap(new, old);
            }
        }
        std::mem::swap(links, &mut self.links);
    }

    /// Whose end it is.
    #[inline]
    pub fn me(&self) -> WorkerId {
        self.me
    }

    /// A burst may come in: nobody wants a pause, and flows need not be told apart for the first time.
    #[inline]
    pub fn takes_in(&self) -> bool {
        !self.buckets.is_leaving_plain() && !self.is_paused
    }

    /// All that comes in stays here: it needs no way.
    #[inline]
    pub fn is_plain(&self) -> bool {
        self.buckets.is_plain()
    }

    /// Control wants that nothing comes in.
    #[inline]
    pub fn is_paused(&self) -> bool {
        self.is_paused
    }

    /// Nothing of ours is under way: says so if control waits for that.
    #[inline]
    pub fn all_home(&mut self) {
        self.buckets.all_home();
        if self.is_paused
            && let Some(number) = self.placement.asked_pause()
        {
            self.placement.reach_pause(self.me, number);
        }
    }

    /// Every ring to another worker has room for a burst, the list of those that wait too, and the pool can spare it.
    #[inline]
    pub fn has_room_beyond(&mut self, pool: &FramePool) -> bool {
        let with_burst = self.waiting.len() + BURST;
        with_burst <= WAITING_MAX
            && pool.can_spare(with_burst - 1)
            && self
                .links
                .iter_mut()
                .flatten()
                .flat_map(|link| &mut link.to)
                .all(|(to, _)| to.has_room_for(BURST))
    }

    /// Frames that wait for their bucket.
    #[inline]
    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    /// A frame that has come in, whose flow is known, with its way; `None` if it must wait for one, and is kept.
    ///
    /// # Errors
    /// It would have to wait, and too many do: the frame comes back.
    #[inline]
    pub fn enter(&mut self, mut frame: Frame, next: Stage, pool: &FramePool) -> Result<Option<Frame>, Frame> {
        let bucket = bucket(frame.meta.flow_hash);
        if self.is_counting {
            self.note_entering(bucket, next, 1);
        }
        match self.buckets.enter(bucket, pool.under_way(bucket)) {
            Entry::Go(route) => {
                frame.meta.route = route;
                Ok(Some(frame))
            }
            Entry::Wait
                if self.waiting.len() < WAITING_MAX
                    && pool.can_spare_this(&frame, self.waiting.len(), self.large_waiting) =>
            {
                frame.next = next;
                self.large_waiting += usize::from(pool.is_large(&frame));
                self.waiting.push_back(frame);
                Ok(None)
            }
            Entry::Wait => {
                self.buckets.give_up_wait(bucket);
                Err(frame)
            }
        }
    }

    /// What came in is counted by bucket in this turn, although nobody looks for its way.
    #[inline]
    pub fn counts_here(&self) -> bool {
        self.is_counting && self.buckets.is_plain()
    }

    /// Counts a frame whose way nobody looks for, and those of the other turns for which it stands.
    #[inline]
    pub fn note_here(&self, flow_hash: u32, next: Stage) {
        self.note_entering(bucket(flow_hash), next, u64::from(COUNTED_TURNS));
    }

    #[inline]
    fn note_entering(&self, bucket: u8, next: Stage, frames: u64) {
        let entered = self.placement.entered(self.me).and_then(|entered| entered.get(usize::from(bucket)));
        match entered {
            Some(entered) if next == Stage::Decap => entered.inward.add(frames),
            Some(entered) => entered.outward.add(frames),
            None => {}
        }
    }

    /// Looks at what control wants, and begins a round through the frames that wait: so many they are. When the round is over,
    /// everything that can go has gone; nothing new may be taken in before.
    #[inline]
    pub fn begin_turn(&mut self) -> usize {
        // The pause first: when it is over, what was changed in it is seen before anything comes in.
        self.is_paused = self.placement.asked_pause().is_some();
        self.buckets.look(&self.placement, self.me);
        self.turn = self.turn.wrapping_add(1);
        self.first = if self.first + 1 < self.links.len() { self.first + 1 } else { 0 };
        let is_due = self.turn.is_multiple_of(COUNTED_TURNS) || !self.buckets.is_plain();
        self.is_counting = is_due && self.placement.counts_entering(self.me);
        self.buckets.begin_round();
        self.waiting.len()
    }

    /// Fills the burst with frames whose wait is over and that have the same next step, which is returned. `looks` says how many are
    /// yet to be looked at in this round.
    #[inline]
    pub fn released(&mut self, burst: &mut Burst, looks: &mut usize, pool: &FramePool) -> Option<Stage> {
        let mut stage = None;
        while *looks > 0 && burst.room() > 0 {
            let next = self.waiting.front()?.next;
            if stage.is_some_and(|stage| stage != next) {
                break;
            }
            *looks -= 1;
            let mut frame = self.waiting.pop_front()?;
            let bucket = bucket(frame.meta.flow_hash);
            match self.buckets.leave_wait(bucket, pool.under_way(bucket)) {
                Entry::Go(route) => {
                    self.large_waiting -= usize::from(pool.is_large(&frame));
                    frame.meta.route = route;
                    stage = Some(next);
                    if let Err(frame) = burst.push(frame) {
                        self.waiting.push_back(frame); // never: there was room
                    }
                }
                Entry::Wait => self.waiting.push_back(frame),
            }
        }
        stage
    }

    /// Who is to run this step for the frame.
    #[inline]
    pub fn worker_for(&self, next: Stage, frame: &Frame) -> WorkerId {
        match next {
            Stage::Classify => self.me,
            Stage::Decap => frame.meta.route.decap(),
            Stage::Lookup => frame.meta.route.lookup(),
            Stage::Deliver => match frame.meta.target {
                // Nobody serves it: whoever finds that out drops the frame.
                Target::Endpoint(to) => self.placement.home(to).unwrap_or(self.me),
                // To the remotes first, on the way of its flow.
                Target::Flood(_) if matches!(frame.meta.source, Source::Endpoint(_)) => self.me,
                Target::Flood(_) => self.placement.first_visit(frame.meta.network, self.me),
                _ => self.me,
            },
            // Copies for flooding leave where they are made: by the same socket as the frame itself, and as what follows it.
            Stage::Encap if matches!(frame.meta.target, Target::Flood(state) if state.first == self.me) => {
                self.me
            }
            Stage::Encap => frame.meta.route.encap(),
            Stage::Transmit => frame.home(),
        }
    }

    /// Somebody serves a tenant on this endpoint.
    pub fn serves(&self, endpoint: EndpointId) -> bool {
        self.placement.home(endpoint).is_some()
    }

    /// A tenant's frame that is flooded begins here: it lies in this worker's memory, and its flow's way to a remote leads nowhere else
    /// any more. So it stays among the frames of its flow that are for one remote, before and after it.
    #[inline]
    pub fn begins_here(&self, frame: &Frame) -> bool {
        frame.home() == self.me && (self.is_plain() || frame.meta.route.encap() == self.me)
    }

    /// The worker that a flooded frame visits next.
    #[inline]
    pub fn next_visit(&self, network: NetworkId, first: WorkerId) -> Option<WorkerId> {
        self.placement.next_visit(network, first, self.me)
    }

    /// Gives a frame to another worker, which will begin with `next`; it is seen after [`settle`](Self::settle).
    ///
    /// # Errors
    /// No room in the ring, too many are held up already, or no such worker: the frame comes back.
    #[inline]
    pub fn hand_over(
        &mut self,
        mut frame: Frame,
        to: WorkerId,
        next: Stage,
        pool: &mut FramePool,
    ) -> Result<(), Frame> {
        let Some(Some(link)) = self.links.get_mut(to.index()) else { return Err(frame) };
        let Some((to, _)) = link.to.get_mut(self.lanes.of(frame.class())) else { return Err(frame) };
        if !to.has_room() || !pool.depart(&mut frame, self.waiting.len(), self.large_waiting) {
            return Err(frame);
        }
        frame.next = next;
        link.is_unpublished = true;
        to.push(frame)
    }

    /// After each burst: shows the others what was pushed, and sends strangers home.
    #[inline]
    pub fn settle(&mut self, pool: &mut FramePool) {
        while let Some(stranger) = pool.next_stranger() {
            if let Some(Some(link)) = self.links.get_mut(stranger.home().index()) {
                link.send_home(stranger);
            }
        }
        for link in self.links.iter_mut().flatten() {
            link.publish();
        }
    }

    /// Frames come home, and those that had no room before are sent.
    #[inline]
    pub fn homecoming(&mut self, pool: &mut FramePool) -> usize {
        let mut count = 0;
        for link in self.links.iter_mut().flatten() {
            let before = count;
            link.home_from.prefetch(2 * BURST);
            while let Some(homing) = link.home_from.pop() {
                pool.come_home(homing);
                count += 1;
            }
            if count > before {
                link.home_from.release();
            }
            if !link.backlog.is_empty() {
                link.retry();
            }
        }
        count
    }

    /// How many others there are to take frames from.
    #[inline]
    pub fn others(&self) -> usize {
        self.links.len()
    }

    /// Fills the burst with frames of a lane from the `n`th of the others that begin with the same step, which is returned. Each turn
    /// another one is the first: what is flooded there must not keep those that come after it from flooding for ever.
    #[inline]
    pub fn arrivals(&mut self, n: usize, lane: usize, burst: &mut Burst) -> Option<Stage> {
        let at = self.first + n;
        let at = if at < self.links.len() { at } else { at - self.links.len() };
        let (from, probe) = self.links.get_mut(at)?.as_mut()?.from.get_mut(lane)?;
        let mut ready = from.prefetch(burst.room());
        let stage = from.peek(|frame| frame.next)?;
        while ready > 0 && from.peek(|frame| frame.next) == Some(stage) {
            ready -= 1;
            if let Some(frame) = from.pop() {
                frame.prefetch();
                let _room = burst.push(frame);
            }
        }
        from.release();
        if let Some((after, since)) = probe.takes(from.taken()) {
            let place = burst.len().saturating_sub(after + 1);
            self.waited = burst.iter().nth(place).map(|frame| Waited { since, class: frame.class() });
        }
        Some(stage)
    }

    /// Before a sleep: there is something to do for this worker in the mesh.
    pub fn has_work(&mut self) -> bool {
        self.is_paused
            || self.placement.asked_pause().is_some()
            || self.buckets.is_leaving_plain()
            || self.links.iter_mut().flatten().any(Link::has_arrived)
    }

    /// Before a sleep: something of this worker's waits for others.
    pub fn is_waiting(&self) -> bool {
        !self.waiting.is_empty() || self.links.iter().flatten().any(|link| !link.backlog.is_empty())
    }

    /// Of the [`arrivals`](Self::arrivals) just now, the frame that was timed, if there is one.
    #[inline]
    pub fn waited(&mut self) -> Option<Waited> {
        self.waited.take()
    }
}

impl Link {
    /// Frames lie in one of the rings to this worker.
    fn has_arrived(&mut self) -> bool {
        self.home_from.has_item() || self.from.iter_mut().any(|(from, _)| from.has_item())
    }

    /// Sends a frame home, now or when there is room.
    #[inline]
    fn send_home(&mut self, homing: Homing) {
        self.is_unpublished = true;
        if !self.backlog.is_empty() {
            return self.backlog.push(homing); // never grows: there are no more frames than it has room for
        }
        if let Err(homing) = self.home_to.push(homing) {
            self.backlog.push(homing);
        }
    }

    /// Once more, those that had no room. Their order does not matter.
    #[cold]
    fn retry(&mut self) {
        while let Some(homing) = self.backlog.pop() {
            if let Err(homing) = self.home_to.push(homing) {
                self.backlog.push(homing);
                break;
            }
        }
        self.home_to.publish();
        self.bell.ring(Caller::Worker);
    }

    #[inline]
    fn publish(&mut self) {
        if self.is_unpublished {
            self.is_unpublished = false;
            for (to, probe) in &mut self.to {
                probe.publishes(to.put_in());
                to.publish();
            }
            self.home_to.publish();
            self.bell.ring(Caller::Worker);
        }
    }
}

#[cfg(all(loom, test))]
mod loom_tests;
