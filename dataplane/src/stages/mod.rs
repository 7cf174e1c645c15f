//! The steps of a frame's way. Each takes a burst apart and hands on what goes further:
//!
//! ```text
//! in    uplink rx → Classify → Decap → Lookup → Deliver
//! out   collect   ----------------→ Lookup → Deliver → Encap → Transmit
//! ```
//!
//! The first three work on a burst where it is, the others from one burst to another, which empties the first. Every frame
//! stays in the burst or goes to the output, home to the pool (delivered), or to [`Cx::drop`] with a reason. No stage blocks, allocates or panics, and none knows which worker runs it or what comes before: that is
//! the worker's business, so stages can be spread over cores without being changed.
//!
//! A stage's output never holds more frames than its input, but for [`encap`]: it makes copies for flooding, and
//! hands its output to the uplink whenever it is full.

pub mod answer;
pub mod classify;
pub mod collect;
pub mod decap;
pub mod deliver;
pub mod encap;
pub mod lookup;
mod stranger;

use std::sync::atomic::{AtomicU32, Ordering::Relaxed};

use crate::clock::cycles;
use crate::counters::{ClassTally, DropReason, WorkerCounters};
use crate::fdb::Fdb;
use crate::frame::{Burst, Frame, FramePool, Source, Target};
use crate::mesh::Mesh;
use crate::tables::Tables;
use crate::tenants::Tenants;
use crate::types::{EndpointId, MacAddr, NetworkId, UplinkId, WorkerId};
use crate::wire::eth::EthHeader;
use crate::wire::flow::flow_hash;
use crate::wire::outer::VLAN_TAG;
use crate::wire::vxlan::VxlanHeader;

pub use crate::types::Stage;

/// Takes the frames of the first burst one step further; returns the burst in which they are then, and the empty one.
#[inline]
pub fn run<'b>(
    stage: Stage,
    bursts: (&'b mut Burst, &'b mut Burst),
    cx: &mut Cx<'_>,
) -> (&'b mut Burst, &'b mut Burst) {
    let frames = bursts.0.len();
    let start = cx.is_sampled.then(cycles);
    let bursts = step(stage, bursts, cx);
    count(stage, frames, start.map(|start| cycles().wrapping_sub(start)), cx.counters);
    bursts
}

/// What a step was run for and, if it was looked at, what it cost.
#[inline]
fn count(stage: Stage, frames: usize, spent: Option<u64>, counters: &WorkerCounters) {
    let Some(counters) = counters.stage(stage) else { return };
    counters.frames.add(frames as u64);
    if let Some(spent) = spent {
        counters.sampled_frames.add(frames as u64);
        counters.sampled_cycles.add(spent);
    }
}

#[inline]
fn step<'b>(
    stage: Stage,
    (input, output): (&'b mut Burst, &'b mut Burst),
    cx: &mut Cx<'_>,
) -> (&'b mut Burst, &'b mut Burst) {
    cx.work.spend(stage, input.len());
    match stage {
        Stage::Classify => classify::run(input, cx),
        Stage::Decap => decap::run(input, cx),
        Stage::Lookup => lookup::run(input, cx),
        Stage::Deliver => {
            deliver::run(input, output, cx);
            return (output, input);
        }
        Stage::Encap => {
            encap::run(input, output, cx);
            return (output, input);
        }
        Stage::Transmit => cx.transmit(input),
    }
    (input, output)
}

/// Where frames leave that are ready for the wire: the uplinks' transmit rings.
pub trait Wire {
    /// Takes the frames from the front, in order; what this uplink has no room for stays. Returns how many it took and
    /// their bytes. Urgent ones go by a ring of their own, if it has one.
    fn transmit(
        &mut self,
        uplink: UplinkId,
        is_urgent: bool,
        frames: &mut Burst,
        pool: &mut FramePool,
    ) -> (usize, usize);
}

/// Takes the frames in the first burst one step further, and hands over those whose next step another worker is to run, unless they
/// have just come in and all stay here (`is_plain`: nobody looks where they should go). Returns the burst in which the others are then,
/// the empty one, and their next step.
#[inline]
pub fn advance<'b>(
    stage: Stage,
    bursts: (&'b mut Burst, &'b mut Burst),
    is_plain: bool,
    cx: &mut Cx<'_>,
) -> ((&'b mut Burst, &'b mut Burst), Option<Stage>) {
    let bursts = run(stage, bursts, cx);
    let Some(next) = stage.next() else { return (bursts, None) };
    if is_plain {
        if stage == Stage::Classify {
            cx.count_here(next, bursts.0);
        }
    } else if cx.mesh.is_some() {
        if stage == Stage::Classify {
            cx.enter(next, bursts.0, bursts.1);
        }
        cx.part(next, bursts.0, bursts.1);
    }
    (bursts, Some(next))
}

/// Sends the frames in the first burst through the steps from `first` on; those whose next step another worker is to run are handed
/// over. Both bursts are empty then.
#[inline]
pub fn run_from(first: Stage, bursts: (&mut Burst, &mut Burst), cx: &mut Cx<'_>) {
    run_through(first, bursts, false, cx);
}

/// The same while all frames stay on this worker.
#[inline]
pub fn run_here(first: Stage, bursts: (&mut Burst, &mut Burst), cx: &mut Cx<'_>) {
    if first == Stage::Lookup {
        cx.count_here(first, bursts.0);
    }
    run_through(first, bursts, true, cx);
}

#[inline]
fn run_through(first: Stage, bursts: (&mut Burst, &mut Burst), is_plain: bool, cx: &mut Cx<'_>) {
    let mut bursts = bursts;
    let mut stage = Some(first);
    while let Some(current) = stage
        && !bursts.0.is_empty()
    {
        (bursts, stage) = advance(current, bursts, is_plain, cx);
    }
    cx.settle();
}

/// The same for frames that come from a tenant: first each gets its way.
#[inline]
pub fn enter(bursts: (&mut Burst, &mut Burst), cx: &mut Cx<'_>) {
    cx.enter(Stage::Lookup, bursts.0, bursts.1);
    resume(Stage::Lookup, bursts, cx);
}

/// The same for a frame that we made in a tenant's name, which needs no look-up.
#[cold]
pub fn enter_made(bursts: (&mut Burst, &mut Burst), cx: &mut Cx<'_>) {
    cx.enter(Stage::Deliver, bursts.0, bursts.1);
    resume(Stage::Deliver, bursts, cx);
}

/// The same for frames that have waited for their way: not all of them may stay here.
#[inline]
pub fn resume(next: Stage, bursts: (&mut Burst, &mut Burst), cx: &mut Cx<'_>) {
    cx.part(next, bursts.0, bursts.1);
    run_from(next, bursts, cx);
}

/// What the stages work with: the worker's own things, lent for one burst.
pub struct Cx<'a> {
    /// What to forward by.
    pub tables: &'a Tables,
    /// Where MAC addresses are.
    pub fdb: &'a Fdb,
    /// The worker's counters.
    pub counters: &'a WorkerCounters,
    /// Where frames come from and go home to.
    pub pool: &'a mut FramePool,
    /// The tenants that this worker serves.
    pub tenants: &'a mut Tenants,
    /// Seconds since the engine started: the FDB's clock.
    pub now_s: u32,
    /// Where a burst for Classify came from: all of it from one ring.
    pub origin: Origin,
    /// What leaves goes by the uplinks' rings for urgent frames, where they have one.
    pub is_urgent: bool,
    /// The way out.
    pub wire: &'a mut dyn Wire,
    /// Copies that flooding may still make in this turn.
    pub flood_budget: &'a mut usize,
    /// The way to the other workers, if there are any.
    pub mesh: Option<&'a mut Mesh>,
    /// What the steps cost beyond what they do.
    pub work: &'a Work,
    /// What each step takes is noted.
    pub is_sampled: bool,
}

/// An rx ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Origin {
    /// Whose it is.
    pub uplink: UplinkId,
    /// What comes by it.
    pub ring: RxRing,
}

/// What comes by an rx ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RxRing {
    /// Everything.
    Only,
    /// What the XDP program has found urgent. It is, whatever the rules say by now: so nothing is overtaken within its class when these
    /// change.
    Urgent,
    /// Everything else.
    Rest,
}

impl Origin {
    /// An uplink's ring for everything.
    pub const fn only(uplink: UplinkId) -> Origin {
        Origin { uplink, ring: RxRing::Only }
    }
}

/// Work added to the steps, in cycles a frame: what spreading them is worth depends on it, and a measurement sets it.
#[derive(Debug)]
pub struct Work([AtomicU32; Stage::COUNT]);

impl Work {
    /// Nothing is added.
    pub const fn none() -> Work {
        Work([const { AtomicU32::new(0) }; Stage::COUNT])
    }

    /// From now on this step costs so many cycles more for each frame.
    pub fn set(&self, stage: Stage, cycles: u32) {
        if let Some(work) = self.0.get(stage as usize) {
            work.store(cycles, Relaxed);
        }
    }

    #[inline]
    fn spend(&self, stage: Stage, frames: usize) {
        let each = self.0.get(stage as usize).map_or(0, |work| work.load(Relaxed));
        if each > 0 {
            spin(u64::from(each) * frames as u64);
        }
    }
}

#[cold]
fn spin(spent: u64) {
    let start = cycles();
    while cycles().wrapping_sub(start) < spent {
        std::hint::spin_loop();
    }
}

impl std::fmt::Debug for Cx<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cx")
            .field("pool", &self.pool)
            .field("flood_budget", &self.flood_budget)
            .finish_non_exhaustive()
    }
}

impl Cx<'_> {
    /// So many copies are made of this frame.
    #[inline]
    pub fn count_copies(&self, frame: &Frame, copies: u64) {
        self.counters.replicated.add(copies);
        self.counters.of_class(frame.class(), |class| &class.replicated, copies);
    }

    /// Sends the frame home and counts why.
    #[cold]
    pub fn drop(&mut self, frame: Frame, reason: DropReason) {
        self.count_drop(&frame, reason);
        self.pool.put(frame);
    }

    /// Does one step with each frame of the burst; those for which there is a reason to drop them are dropped.
    #[inline]
    pub fn each(
        &mut self,
        burst: &mut Burst,
        mut step: impl FnMut(&mut Frame, &Cx<'_>) -> Result<(), DropReason>,
    ) {
        let mut refused = 0;
        for (at, frame) in burst.iter_mut().enumerate() {
            if let Err(reason) = step(frame, self) {
                self.refuse(frame, reason);
                refused |= 1 << at;
            }
        }
        if refused != 0 {
            self.dispose_of(burst, refused);
        }
    }

    /// Takes out the frames that were counted as dropped: a bit for each.
    #[cold]
    #[inline(never)]
    fn dispose_of(&mut self, burst: &mut Burst, refused: u64) {
        burst.take_out(refused).for_each(|frame| self.dispose(frame));
    }

    /// Drops a frame, which may have become an answer to its sender.
    #[cold]
    pub(crate) fn drop_or_answer(&mut self, mut frame: Frame, reason: DropReason) {
        self.refuse(&mut frame, reason);
        self.dispose(frame);
    }

    /// Counts a drop. The frame is no answer, or no more, unless this is a reason of which its sender is told: one that was under way
    /// may be dropped like any other frame.
    #[cold]
    #[inline(never)]
    fn refuse(&self, frame: &mut Frame, reason: DropReason) {
        self.count_drop(frame, reason);
        if reason != DropReason::PathMtuExceeded {
            frame.meta.target = Target::Unknown;
        }
    }

    /// A frame that was counted as dropped goes home; or, if it is an answer to its sender now, to whoever serves that.
    #[cold]
    fn dispose(&mut self, frame: Frame) {
        let (Source::Ours, Target::Endpoint(to)) = (frame.meta.source, frame.meta.target) else {
            return self.pool.put(frame);
        };
        let me = self.me();
        let home = self.mesh.as_deref().map_or(me, |mesh| mesh.worker_for(Stage::Deliver, &frame));
        if home != me {
            return self.visit(frame, home, false);
        }
        match self.tenants.give(to, &frame, true, self.counters) {
            Ok(()) => {
                self.counters.of_class(frame.class(), |class| &class.tenant_tx, 1);
                self.pool.put(frame);
            }
            Err(reason) => self.drop(frame, reason),
        }
        self.tenants.flush(self.counters);
    }

    #[cold]
    fn count_drop(&self, frame: &Frame, reason: DropReason) {
        let at_fault = match (frame.meta.target, frame.meta.source) {
            // It is the receiver that has no room, whoever sent.
            (Target::Endpoint(to), _) => Some(to),
            (_, Source::Endpoint(from)) => Some(from),
            _ => None,
        };
        count_drop(self.counters, frame, at_fault, reason);
    }

    /// Hands the frame on; if the burst is full (it never is, see the module) it is dropped.
    #[inline]
    pub fn pass(&mut self, frame: Frame, output: &mut Burst) {
        if let Err(frame) = output.push(frame) {
            self.drop(frame, DropReason::BurstFull);
        }
    }

    /// For frames that have just come in, now that their flow is known: each gets its way, or waits for it.
    #[inline]
    pub fn enter(&mut self, next: Stage, frames: &mut Burst, spare: &mut Burst) {
        if self.mesh.is_none() {
            return;
        }
        for mut frame in frames.drain() {
            let Some(mesh) = self.mesh.as_deref_mut() else { continue };
            if next == Stage::Decap && frame.meta.flow_hash == 0 {
                frame.meta.flow_hash = inner_hash(&frame); // else it was found with the class
            }
            match mesh.enter(frame, next, self.pool) {
                Ok(Some(frame)) => self.pass(frame, spare), // room for as many as there were
                Ok(None) => {}
                Err(frame) => self.drop(frame, DropReason::WorkerRingFull),
            }
        }
        std::mem::swap(frames, spare);
    }

    /// Counts what has come in by flow bucket, if control wants to know and it is time.
    #[inline]
    pub(crate) fn count_here(&self, next: Stage, frames: &Burst) {
        let Some(mesh) = self.mesh.as_deref().filter(|mesh| mesh.counts_here()) else { return };
        for frame in frames.iter() {
            let hash = if next == Stage::Decap { inner_hash(frame) } else { frame.meta.flow_hash };
            mesh.note_here(hash, next);
        }
    }

    /// Hands over the frames that another worker is to go on with; the others stay.
    #[inline]
    pub(crate) fn part(&mut self, next: Stage, frames: &mut Burst, spare: &mut Burst) {
        let Some(mesh) = self.mesh.as_deref_mut() else { return };
        let me = mesh.me();
        if frames.iter().all(|frame| mesh.worker_for(next, frame) == me) {
            return;
        }
        let mut handed = 0;
        for frame in frames.drain() {
            let Some(mesh) = self.mesh.as_deref_mut() else { continue };
            let to = mesh.worker_for(next, &frame);
            if to == me {
                self.pass(frame, spare);
                continue;
            }
            // What is flooded begins where it entered.
            let next = match frame.meta.target {
                Target::Flood(_) if to == frame.home() => Stage::Deliver,
                _ => next,
            };
            match mesh.hand_over(frame, to, next, self.pool) {
                Ok(()) => handed += 1,
                Err(frame) => self.drop(frame, DropReason::WorkerRingFull),
            }
        }
        self.counters.handed_over.add(handed);
        if !spare.is_empty() {
            std::mem::swap(frames, spare);
        }
    }

    /// The worker that a flooded frame visits next, if there is one.
    #[inline]
    pub fn next_visit(&self, network: NetworkId, first: WorkerId) -> Option<WorkerId> {
        self.mesh.as_deref().and_then(|mesh| mesh.next_visit(network, first))
    }

    /// Lets a flooded frame visit another worker; `given` says whether anybody got it, so that what others get are copies. A full ring
    /// drops it.
    pub fn visit(&mut self, frame: Frame, to: WorkerId, given: bool) {
        let refused = match self.mesh.as_deref_mut() {
            Some(mesh) => mesh.hand_over(frame, to, Stage::Deliver, self.pool).err(),
            None => Some(frame),
        };
        match refused {
            None => self.counters.handed_over.add(1),
            Some(frame) => {
                // What was given is a copy then.
                self.count_copies(&frame, u64::from(given));
                self.drop(frame, DropReason::WorkerRingFull);
            }
        }
    }

    /// See [`Mesh::begins_here`].
    #[inline]
    pub fn begins_here(&self, frame: &Frame) -> bool {
        self.mesh.as_deref().is_none_or(|mesh| mesh.begins_here(frame))
    }

    /// Whether a tenant is attached to this endpoint of the network, here or on another worker.
    #[cold]
    pub fn is_attached(&self, network: NetworkId, endpoint: EndpointId) -> bool {
        match self.mesh.as_deref() {
            Some(mesh) => mesh.serves(endpoint),
            None => self.tenants.attached(network).contains(&endpoint),
        }
    }

    /// Which worker this is.
    #[inline]
    pub fn me(&self) -> WorkerId {
        self.mesh.as_deref().map_or(WorkerId(0), Mesh::me)
    }

    /// After a burst: the others see what was handed over, and frames of theirs go home.
    #[inline]
    pub(crate) fn settle(&mut self) {
        if let Some(mesh) = self.mesh.as_deref_mut() {
            mesh.settle(self.pool);
        }
    }

    /// Hands frames that are ready for the wire to whoever sends them.
    #[inline]
    pub fn leave(&mut self, frames: &mut Burst, spare: &mut Burst) {
        self.part(Stage::Transmit, frames, spare);
        self.transmit(frames);
    }

    /// Hands the burst to the wire, each frame over its uplink; what that has no room for is dropped.
    #[inline]
    pub fn transmit(&mut self, frames: &mut Burst) {
        let first = frames.iter().next().map(|frame| frame.meta.target);
        match first {
            None => {}
            Some(Target::Uplink(uplink))
                if self.tables.uplinks.len() < 2
                    || frames.iter().all(|frame| frame.meta.target == Target::Uplink(uplink)) =>
            {
                self.transmit_over(uplink, frames);
            }
            Some(_) => self.transmit_apart(frames),
        }
    }

    /// The frames of each uplink for themselves, in the order that they have. A flow is on one uplink, so it keeps its order.
    #[inline(never)]
    fn transmit_apart(&mut self, frames: &mut Burst) {
        let mut apart: [Burst; UplinkId::LIMIT] = Default::default();
        for frame in frames.drain() {
            let Target::Uplink(uplink) = frame.meta.target else {
                self.drop(frame, DropReason::NextHopUnresolved); // never: encap has named one
                continue;
            };
            match apart.get_mut(uplink.index()) {
                Some(its) => self.pass(frame, its),
                None => self.drop(frame, DropReason::NextHopUnresolved), // never: no table names such a one
            }
        }
        for (uplink, its) in UplinkId::all(UplinkId::LIMIT).zip(&mut apart) {
            if !its.is_empty() {
                self.transmit_over(uplink, its);
            }
        }
    }

    #[inline]
    fn transmit_over(&mut self, uplink: UplinkId, frames: &mut Burst) {
        // Not what the rules say by now: a frame may have its class by older ones, or by its ring.
        let counts_classes = !self.counters.are_default(frames.iter().map(Frame::class));
        let before = counts_classes.then(|| ClassTally::of(frames.iter().map(Frame::class)));
        let (sent, bytes) = self.wire.transmit(uplink, self.is_urgent, frames, self.pool);
        if let Some(before) = before {
            let left = before.without(&ClassTally::of(frames.iter().map(Frame::class)));
            self.counters.of_classes(&left, |class| &class.uplink_tx);
        }
        if let Some(traffic) = self.counters.uplink_tx.of(uplink) {
            traffic.many(sent, bytes);
        }
        for frame in frames.drain() {
            self.drop(frame, DropReason::UplinkRingFull);
        }
    }

    /// May this frame be flooded now? What it costs is taken from the turn's budget, which may be overdrawn by one network's size;
    /// floods that another worker began have a budget of their own on each that they visit.
    #[inline]
    pub fn may_flood(&self) -> bool {
        *self.flood_budget > 0
    }

    /// Takes copies of this frame from the turn's budget; long ones count for as many as they have parts.
    #[inline]
    pub fn charge_flood(&mut self, frame: &Frame, copies: usize) {
        *self.flood_budget = self.flood_budget.saturating_sub(copies * (1 + frame.len() / LONG));
    }
}

/// Of a frame that starts with its VXLAN header.
#[inline]
fn inner_hash(frame: &Frame) -> u32 {
    flow_hash(frame.bytes().get(VxlanHeader::LEN..).unwrap_or_default())
}

/// Takes off the VLAN tag of the Ethernet frame that begins `at` bytes into the packet: what stands before it moves up.
#[inline(never)]
fn untag(frame: &mut Frame, at: usize) -> Result<(), DropReason> {
    let addresses = at + 2 * size_of::<MacAddr>();
    let head = frame.bytes_mut().get_mut(..addresses + VLAN_TAG).ok_or(DropReason::InnerTruncated)?;
    head.copy_within(..addresses, VLAN_TAG);
    if frame.pull(VLAN_TAG) && frame.len() >= at + EthHeader::LEN {
        Ok(())
    } else {
        Err(DropReason::InnerTruncated)
    }
}

/// A flooded frame costs as one more for each of so many bytes: what the usual chunk has room for, and more than the usual packet.
const LONG: usize = 2048;

/// A copy in a chunk or large buffer of this pool, if there is one to spare.
#[inline(never)]
fn copy(frame: &Frame, pool: &mut FramePool) -> Result<Frame, DropReason> {
    let taken = pool.take_for_copy(frame.headroom() + frame.len());
    let mut copy = taken.ok_or(DropReason::NoFreeFrame)?;
    copy.meta = frame.meta;
    copy.set_class(frame.class());
    match copy.reset(frame.headroom(), frame.len()) {
        Some(bytes) => {
            bytes.copy_from_slice(frame.bytes());
            Ok(copy)
        }
        None => {
            pool.put(copy);
            Err(DropReason::UplinkTooLong)
        }
    }
}

/// Counts a drop, of the frame or of a copy that was not made of it, on its network and the endpoint that it concerns.
#[cold]
fn count_drop(counters: &WorkerCounters, frame: &Frame, endpoint: Option<EndpointId>, reason: DropReason) {
    counters.dropped.one(reason);
    counters.of_class(frame.class(), |class| &class.dropped, 1);
    if let Some(network) = counters.network(frame.meta.network) {
        network.dropped.add(1);
    }
    if let Some(endpoint) = endpoint.and_then(|id| counters.endpoint(id)) {
        endpoint.dropped.add(1);
    }
}
