//! The steps of a frame's way. Each takes a burst apart and hands on what goes further:
//!
//! ```text
//! in    uplink rx → Classify → Decap → Lookup → Deliver
//! out   collect   ----------------→ Lookup → Deliver → Encap → transmit
//! ```
//!
//! A stage empties its input: every frame goes to the output, home to the pool (delivered), or to [`Cx::drop`] with
//! a reason. No stage blocks, allocates or panics, and none knows which worker runs it or what comes before: that is
//! the worker's business, so stages can be spread over cores without being changed.
//!
//! A stage's output never holds more frames than a burst. Only [`encap`] makes frames (copies for flooding), and
//! it stops where the burst is full.

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

    /// Empties `input`.
    #[inline]
    pub fn run(self, input: &mut Burst, output: &mut Burst, cx: &mut Cx<'_>) {
        match self {
            Stage::Classify => classify::run(input, output, cx),
            Stage::Decap => decap::run(input, output, cx),
            Stage::Lookup => lookup::run(input, output, cx),
            Stage::Deliver => deliver::run(input, output, cx),
            Stage::Encap => encap::run(input, output, cx),
        }
    }
}

/// Sends the frames in the first burst through the stages from `first` on. What is left is for the uplink and is in
/// one of the two bursts; the other is empty.
#[inline]
pub fn run_from(first: Stage, bursts: (&mut Burst, &mut Burst), cx: &mut Cx<'_>) {
    let (mut input, mut output) = bursts;
    let mut stage = Some(first);
    while let Some(current) = stage
        && !input.is_empty()
    {
        current.run(input, output, cx);
        std::mem::swap(&mut input, &mut output);
        stage = current.next();
    }
}

/// What the stages work with: the worker's own things, lent for one burst.
#[derive(Debug)]
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
    /// Frames that may still be taken for transmission, so that the receive side never runs dry.
    pub tx_allowance: usize,
}

impl Cx<'_> {
    /// Sends the frame home and counts why.
    #[cold]
    pub fn drop(&mut self, frame: Frame, reason: DropReason) {
        self.count_drop(&frame, reason);
        self.pool.put(frame);
    }

    /// Counts a drop of a copy that was never made of this frame.
    pub fn count_drop(&self, frame: &Frame, reason: DropReason) {
        self.counters.dropped.one(reason);
        if let Some(network) = self.counters.network(frame.meta.network) {
            network.dropped.add(1);
        }
        let endpoint = match (frame.meta.source, frame.meta.target) {
            (Source::Endpoint(id), _) | (_, Target::Endpoint(id)) => self.counters.endpoint(id),
            _ => None,
        };
        if let Some(endpoint) = endpoint {
            endpoint.dropped.add(1);
        }
    }

    /// Hands the frame on; if the burst is full (it never is: outputs are as large as inputs) it is dropped.
    #[inline]
    pub fn pass(&mut self, frame: Frame, output: &mut Burst) {
        if let Err(frame) = output.push(frame) {
            self.drop(frame, DropReason::BurstFull);
        }
    }
}
