//! The steps of a frame's way. Each takes a burst apart and hands on what goes further:
//!
//! ```text
//! in    uplink rx → Classify → Decap → Lookup → Deliver
//! out   collect   ----------------→ Lookup → Deliver → Encap → transmit
//! ```
//!
//! The first three work on a burst where it is, the others from one burst to another, which empties the first. Every frame
//! stays in the burst or goes to the output, home to the pool (delivered), or to [`Cx::drop`] with a reason. No stage blocks, allocates or panics, and none knows which worker runs it or what comes before: that is
//! the worker's business, so stages can be spread over cores without being changed.
//!
//! A stage's output never holds more frames than its input, but for [`encap`]: it makes copies for flooding, and
//! hands its output to the uplink whenever it is full.

pub mod classify;
pub mod collect;
pub mod decap;
pub mod deliver;
pub mod encap;
pub mod lookup;

use crate::counters::{DropReason, WorkerCounters};
use crate::fdb::Fdb;
use crate::frame::{Burst, Frame, FramePool, Source, Target};
use crate::tables::Tables;
use crate::tenants::Tenants;
use crate::types::EndpointId;

/// A step between two ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stage {
    /// Outer headers checked and taken off, class and flow found.
    Classify,
    /// VXLAN header taken off, network found, inner header checked.
    Decap,
    /// Source learned, destination found.
    Lookup,
    /// Copied into tenants' rings.
    Deliver,
    /// Outer headers put on.
    Encap,
}

impl Stage {
    /// The step after this one; after the last, what is left goes to the uplink.
    pub const fn next(self) -> Option<Stage> {
        match self {
            Stage::Classify => Some(Stage::Decap),
            Stage::Decap => Some(Stage::Lookup),
            Stage::Lookup => Some(Stage::Deliver),
            Stage::Deliver => Some(Stage::Encap),
            Stage::Encap => None,
        }
    }

    /// Takes the frames of the first burst further; returns the burst in which they are then, and the empty one.
    #[inline]
    pub fn run<'b>(
        self,
        (input, output): (&'b mut Burst, &'b mut Burst),
        cx: &mut Cx<'_>,
    ) -> (&'b mut Burst, &'b mut Burst) {
        match self {
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
        }
        (input, output)
    }
}

/// Where frames leave that are ready for the wire: the uplink's transmit ring.
pub trait Wire {
    /// Takes the frames from the front, in order; what it has no room for stays. Returns how many it took and their
    /// bytes.
    fn transmit(&mut self, frames: &mut Burst, pool: &mut FramePool) -> (usize, usize);
}

/// Sends the frames in the first burst through the stages from `first` on, and what is left to the wire. Both bursts
/// are empty then.
#[inline]
pub fn run_from(first: Stage, bursts: (&mut Burst, &mut Burst), cx: &mut Cx<'_>) {
    let mut bursts = bursts;
    let mut stage = Some(first);
    while let Some(current) = stage
        && !bursts.0.is_empty()
    {
        bursts = current.run(bursts, cx);
        stage = current.next();
    }
    cx.transmit(bursts.0);
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
    /// The way out.
    pub wire: &'a mut dyn Wire,
    /// Copies that flooding may still make in this turn.
    pub flood_budget: &'a mut usize,
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
        let dropped = burst.keep(|frame| match step(frame, self) {
            Ok(()) => true,
            Err(reason) => {
                self.count_drop(frame, reason);
                false
            }
        });
        dropped.for_each(|frame| self.pool.put(frame));
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

    /// Hands the burst to the wire; what that has no room for is dropped.
    #[inline]
    pub fn transmit(&mut self, frames: &mut Burst) {
        if frames.is_empty() {
            return;
        }
        let (sent, bytes) = self.wire.transmit(frames, self.pool);
        self.counters.uplink_tx.frames.add(sent as u64);
        self.counters.uplink_tx.bytes.add(bytes as u64);
        for frame in frames.drain() {
            self.drop(frame, DropReason::UplinkRingFull);
        }
    }

    /// May this frame be flooded now? Once begun, a flood reaches everybody; what it costs is taken from the turn's
    /// budget, which may be overdrawn by one network's size.
    #[inline]
    pub fn may_flood(&self) -> bool {
        *self.flood_budget > 0
    }

    /// Takes copies from the turn's budget.
    #[inline]
    pub fn charge_flood(&mut self, copies: usize) {
        *self.flood_budget = self.flood_budget.saturating_sub(copies);
    }
}

/// Counts a drop, of the frame or of a copy that was not made of it, on its network and the endpoint that it concerns.
#[cold]
fn count_drop(counters: &WorkerCounters, frame: &Frame, endpoint: Option<EndpointId>, reason: DropReason) {
    counters.dropped.one(reason);
    if let Some(network) = counters.network(frame.meta.network) {
        network.dropped.add(1);
    }
    if let Some(endpoint) = endpoint.and_then(|id| counters.endpoint(id)) {
        endpoint.dropped.add(1);
    }
}
