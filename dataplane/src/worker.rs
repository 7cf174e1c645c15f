//! One pinned thread: takes bursts from its uplink queues and its tenants, sends them through the stages, and does
//! what control tells it in between. It polls and never waits.
//!
//! The order of work in a turn: orders; for each uplink queue one burst in; one burst out; then the rings are tended
//! (completions, fill, kick). A burst is at most [`BURST`](crate::frame::BURST) frames, so nothing waits for longer than
//! one burst of each other source.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::clock::{Seconds, cycles};
use crate::counters::{DropReason, WorkerCounters};
use crate::fdb::Fdb;
use crate::frame::{Burst, FramePool};
use crate::mailbox::{Mailbox, Order, Returned};
use crate::stages::{self, Cx, Stage, collect};
use crate::tables::Tables;
use crate::tenants::{Detached, Tenants};
use crate::xsk::{Kicks, WorkerPort, XskSocket};

/// Everything that one worker owns. Engine makes it, the thread runs it, and at the end it goes back to be dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    pool: FramePool,
    sockets: Vec<XskSocket>,
    tenants: Tenants,
    tables: Arc<Tables>,
    fdb: Arc<Fdb>,
    counters: Arc<WorkerCounters>,
    mailbox: Arc<Mailbox>,
    seconds: Seconds,
    bursts: (Burst, Burst),
}

/// What all workers share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) tables: Arc<Tables>,
    pub(crate) fdb: Arc<Fdb>,
    pub(crate) seconds: Seconds,
}

impl Worker {
    pub(crate) fn new(
        port: WorkerPort,
        shared: Shared,
        counters: Arc<WorkerCounters>,
        mailbox: Arc<Mailbox>,
    ) -> Worker {
        Worker {
            pool: port.pool,
            sockets: port.sockets,
            tenants: Tenants::new(shared.tables.endpoints.len()),
            tables: shared.tables,
            fdb: shared.fdb,
            counters,
            mailbox,
            seconds: shared.seconds,
            bursts: (Burst::new(), Burst::new()),
        }
    }

    /// Turns until told to stop.
    pub(crate) fn run(mut self, stop: &AtomicBool) -> Worker {
        let mut before = cycles();
        while !stop.load(Ordering::Relaxed) {
            let moved = self.turn(before);
            let now = cycles();
            let spent = now.wrapping_sub(before);
            before = now;
            self.counters.turns.add(1);
            self.counters.cycles_total.add(spent);
            if moved > 0 {
                self.counters.cycles_busy.add(spent);
                self.counters.frames_free.set(self.pool.available() as u64);
            }
        }
        self
    }

    /// Once around; returns how many frames moved.
    #[inline]
    fn turn(&mut self, now_cycles: u64) -> usize {
        self.obey();
        let mut moved = 0;
        for queue in 0..self.sockets.len() {
            moved += self.way_in(queue);
        }
        moved += self.way_out();
        for socket in &mut self.sockets {
            moved += socket.complete(&mut self.pool);
            socket.refill(&mut self.pool);
            count(socket.kick(now_cycles), &self.counters);
        }
        moved
    }

    /// Frames that may be taken for transmission now without starving the receive side.
    #[inline]
    fn tx_allowance(&self) -> usize {
        self.sockets.first().map_or(0, XskSocket::tx_budget)
    }

    /// One burst from an uplink queue.
    #[inline]
    fn way_in(&mut self, queue: usize) -> usize {
        let Some(socket) = self.sockets.get_mut(queue) else { return 0 };
        let received = socket.receive(&mut self.pool, &mut self.bursts.0);
        if received > 0 {
            let bytes: usize = self.bursts.0.iter().map(|frame| frame.len()).sum();
            self.counters.uplink_rx.frames.add(received as u64);
            self.counters.uplink_rx.bytes.add(bytes as u64);
            self.pipeline(Stage::Classify);
        }
        received
    }

    /// One burst from the tenants, who take turns.
    #[inline]
    fn way_out(&mut self) -> usize {
        let allowance = self.tx_allowance();
        let (input, _, mut cx) = self.parts(allowance);
        collect::run(input, &mut cx);
        let taken = input.len();
        if taken > 0 {
            self.pipeline(Stage::Lookup);
        }
        if let Some(detached) = self.mailbox.can_return().then(|| self.tenants.put_out()).flatten() {
            self.mailbox.give_back(Returned::Tenant(detached));
        }
        taken
    }

    /// Sends the burst through the stages from `first` on; what is left then leaves through the uplink.
    #[inline]
    fn pipeline(&mut self, first: Stage) {
        let allowance = self.tx_allowance().saturating_sub(self.bursts.0.len());
        let (input, output, mut cx) = self.parts(allowance);
        stages::run_from(first, (input, output), &mut cx);
        // What is left is in one of the two.
        for burst in [&mut self.bursts.0, &mut self.bursts.1] {
            transmit(burst, self.sockets.first_mut(), &mut self.pool, &self.counters);
        }
    }

    /// The two bursts, and everything else that a stage works with.
    #[inline]
    fn parts(&mut self, tx_allowance: usize) -> (&mut Burst, &mut Burst, Cx<'_>) {
        let cx = Cx {
            tables: &self.tables,
            fdb: &self.fdb,
            counters: &self.counters,
            pool: &mut self.pool,
            tenants: &mut self.tenants,
            now_s: self.seconds.now(),
            tx_allowance,
        };
        (&mut self.bursts.0, &mut self.bursts.1, cx)
    }

    /// Does what control asks; one order a turn is plenty.
    #[inline]
    fn obey(&mut self) {
        let Some(order) = self.mailbox.next_order() else { return };
        let answer = match order {
            Order::Tables(tables) => Returned::Tables(std::mem::replace(&mut self.tables, tables)),
            Order::Detach { endpoint, serial } => match self.tenants.detach(endpoint, serial) {
                Some(detached) => Returned::Tenant(detached),
                None => return, // it was put out before
            },
            Order::Attach { endpoint, serial, rings } => match self.tenants.attach(endpoint, serial, rings) {
                Ok(()) => return,
                Err(rings) => {
                    Returned::Tenant(Detached { endpoint, serial, rings: Some(rings), fault: None })
                }
            },
        };
        self.mailbox.give_back(answer);
    }
}

/// Hands the burst to the uplink, in order; what its ring does not take is dropped.
#[inline]
fn transmit(
    burst: &mut Burst,
    socket: Option<&mut XskSocket>,
    pool: &mut FramePool,
    counters: &WorkerCounters,
) {
    if burst.is_empty() {
        return;
    }
    let bytes: usize = burst.iter().map(|frame| frame.len()).sum();
    let sent = socket.map_or(0, |socket| socket.transmit(pool, burst));
    counters.uplink_tx.frames.add(sent as u64);
    let mut dropped_bytes = 0;
    for frame in burst.drain() {
        dropped_bytes += frame.len();
        counters.dropped.one(DropReason::UplinkRingFull);
        if let Some(network) = counters.network(frame.meta.network) {
            network.dropped.add(1);
        }
        pool.put(frame);
    }
    counters.uplink_tx.bytes.add((bytes - dropped_bytes) as u64);
}

#[inline]
fn count(kicks: Kicks, counters: &WorkerCounters) {
    if kicks == Kicks::default() {
        return;
    }
    counters.kicks.add(u64::from(kicks.transmit));
    counters.kicks_deferred.add(u64::from(kicks.deferred));
    counters.kicks_link_down.add(u64::from(kicks.down));
    counters.kicks_failed.add(u64::from(kicks.failed));
    counters.receive_kicks.add(u64::from(kicks.receive));
    counters.watchdog_kicks.add(u64::from(kicks.watchdog));
}
