//! One worker: takes bursts from its uplink queues and its tenants, sends them through the stages, and does
//! what control tells it in between. It runs on a pinned thread (see `pinned`), polls and never waits; a thread that may sleep does so
//! between two turns (`idle`).
//!
//! The order of work in a turn: orders; what other workers sent: frames that come home, frames that may go on after a wait, a burst
//! from each; a burst from each uplink queue; one burst out, from the tenants; then the rings are tended (completions, fill, kick). A
//! burst is at most [`BURST`] frames. Where packets have classes, the more urgent ones go first, and in between: `by_class`.
//!
//! - `by_class`: the order of work where it depends on the class; `looks`: when it looked for new work
//! - `sleep`: what it sleeps on, where its thread may
//! - `uplink`: where frames come from and leave by

mod by_class;
mod looks;
mod sleep;
mod uplink;

use std::sync::Arc;

use crate::clock::{Seconds, cycles};
use crate::counters::{DropReason, WorkerCounters};
use crate::fdb::Fdb;
use crate::frame::{BURST, Burst, FramePool};
use crate::lanes::Lanes;
use crate::mailbox::{Announcement, Mailbox, Order, Returned};
use crate::mesh::Mesh;
use crate::pinned::{Ending, Phase};
use crate::plan::ClassesPlan;
use crate::stages::{self, Cx, Origin, Stage, Work, answer, collect};
use crate::tables::Tables;
use crate::tenants::{Detached, Tenants};
use crate::types::{UplinkId, WorkerId};
use crate::waiting::{self, Before};
use crate::xsk::{Kicks, Losses, WorkerPort, XskSocket};
use by_class::ByClass;
use sleep::Events;
use uplink::Sockets;

pub(crate) use sleep::{Sleep, Woken};
pub(crate) use uplink::Uplink;

/// Everything that one worker owns. Engine makes it, the thread runs it, and at the end it goes back to be dropped.
#[derive(Debug)]
pub(crate) struct Worker {
    // First, so that the sockets are closed before the memory that they use may go.
    uplink: Uplink,
    pool: FramePool,
    tenants: Tenants,
    tables: Arc<Tables>,
    fdb: Arc<Fdb>,
    counters: Arc<WorkerCounters>,
    mailbox: Arc<Mailbox>,
    seconds: Seconds,
    work: Arc<Work>,
    /// None if there are no other workers.
    mesh: Option<Mesh>,
    bursts: (Burst, Burst),
    lanes: Lanes,
    by_class: ByClass,
    flood_budget: usize,
    /// In this turn, what each step takes is noted.
    is_sampled: bool,
    /// When its last turn ended, in cycles; and the last one that moved a frame.
    last_end: u64,
    worked_at: u64,
    /// Of one that may sleep.
    events: Option<Events>,
    /// Since the end began: all its frames are home.
    is_finished: bool,
    /// Control calls it back from the thread that it runs on.
    leaves: bool,
    /// Control waits for what lay in the rx rings when it sent this order.
    drains: Option<u32>,
}

/// Copies for flooding in one turn, all tenants and remotes together: so many for what they send, for what other workers began, and for
/// an announcement. A flood that has begun is finished, so each can take longer by one network's size, and no more.
const FLOOD_COPIES_PER_TURN: usize = 256;

/// A turn of more cycles than this (over a millisecond) was none of ours: the core was taken away in the middle.
const STALL_CYCLES: u64 = 4_000_000;

/// In one turn of so many, what each step takes is noted: twice reading the clock, some 50 cycles, for each step of a burst; and, where
/// classes are told apart, how long bursts wait.
const SAMPLED_TURNS: u64 = waiting::SAMPLED;

/// What all workers share.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) tables: Arc<Tables>,
    pub(crate) fdb: Arc<Fdb>,
    pub(crate) seconds: Seconds,
    pub(crate) work: Arc<Work>,
    pub(crate) classes: Arc<ClassesPlan>,
}

impl Worker {
    pub(crate) fn new(
        port: Port,
        shared: Shared,
        mesh: Option<Mesh>,
        counters: Arc<WorkerCounters>,
        mailbox: Arc<Mailbox>,
    ) -> Worker {
        Worker {
            mesh,
            pool: port.pool,
            tenants: Tenants::with_room(&shared.tables, counters.networks.len(), counters.endpoints.len()),
            tables: shared.tables,
            fdb: shared.fdb,
            counters,
            mailbox,
            seconds: shared.seconds,
            work: shared.work,
            bursts: (Burst::new(), Burst::new()),
            lanes: Lanes::new(&shared.classes),
            by_class: ByClass::new(&shared.classes, port.uplink.sources()),
            uplink: port.uplink,
            flood_budget: 0,
            is_sampled: false,
            last_end: 0,
            worked_at: 0,
            events: None,
            is_finished: false,
            leaves: false,
            drains: None,
        }
    }

    /// Who it is.
    pub(crate) fn id(&self) -> WorkerId {
        self.mesh.as_ref().map_or(WorkerId(0), Mesh::me)
    }

    /// It has said that all its frames are home, at the end.
    pub(crate) fn is_finished(&self) -> bool {
        self.is_finished
    }

    /// It is to leave the thread that it runs on.
    #[inline]
    pub(crate) fn leaves(&self) -> bool {
        self.leaves
    }

    /// A turn, and what it took; when it ended, in cycles. Time in which other workers of the thread ran is time in which this one
    /// found nothing to do.
    #[inline]
    pub(crate) fn run(&mut self, began: u64, phase: Phase, ending: &Ending) -> u64 {
        let taken = self.counters.tenant_rx.frames.get();
        let moved = self.turn(began, phase == Phase::Run);
        let now = cycles();
        let (spent, elapsed) = (now.wrapping_sub(began), now.wrapping_sub(self.last_end));
        self.last_end = now;
        self.counters.turns.add(1);
        self.counters.cycles_total.add(elapsed);
        if elapsed > STALL_CYCLES {
            self.counters.stalls.add(1);
            self.counters.cycles_stalled.add(elapsed);
        } else if moved > 0 {
            self.counters.cycles_busy.add(spent);
            self.counters.turn_costs.note(moved as u64, spent);
        }
        if self.counters.tenant_rx.frames.get() != taken {
            self.worked_at = now; // though all of them may have been dropped where they came in
        }
        if moved > 0 {
            self.worked_at = now;
            self.counters.frames_free.set(self.pool.available() as u64);
        }
        if phase == Phase::Drain && !self.is_finished && self.has_all_home() {
            self.is_finished = true;
            ending.worker_is_done();
        }
        now
    }

    /// No frame of ours is on another worker, or waits.
    fn has_all_home(&self) -> bool {
        self.pool.all_under_way() == 0 && self.mesh.as_ref().is_none_or(|mesh| mesh.waiting() == 0)
    }

    /// Once around; returns how many frames moved.
    #[inline]
    fn turn(&mut self, now_cycles: u64, takes_in: bool) -> usize {
        self.tell_drained();
        self.flood_budget = FLOOD_COPIES_PER_TURN; // for an announcement; neither it nor floods of others keep ours from flooding
        self.obey(takes_in);
        let turn = self.counters.turns.get();
        self.is_sampled = turn.is_multiple_of(SAMPLED_TURNS);
        // Where all packets have one class, or none is preferred, nobody needs to look for it.
        let by_class = self.lanes.count() > 1 && !self.tables.classes.is_trivial();
        self.by_class.begin_turn(now_cycles, turn, by_class);
        let mut moved = 0;
        if self.mesh.is_some() {
            self.flood_budget = FLOOD_COPIES_PER_TURN;
            moved += self.others_bursts(by_class);
        }
        self.flood_budget = FLOOD_COPIES_PER_TURN;
        if takes_in && self.mesh.as_ref().is_none_or(Mesh::takes_in) {
            // All that comes in stays on this worker.
            let is_plain = self.mesh.as_ref().is_none_or(Mesh::is_plain);
            moved += if by_class { self.take_in_by_class(is_plain) } else { self.take_in(is_plain) };
        }
        if by_class {
            self.by_class.forget_idle();
        }
        self.put_out();
        let mut faults = 0;
        for socket in self.uplink.sockets() {
            moved += socket.complete(&mut self.pool);
            socket.refill(&mut self.pool);
            count(socket.kick(now_cycles), &self.counters);
            faults += socket.faults();
            if socket.is_multi_buffer() {
                count_losses(socket, &self.counters);
            }
        }
        self.counters.chunk_faults.set(faults);
        moved
    }

    /// What the other workers sent, and what could not go on before.
    #[inline]
    fn others_bursts(&mut self, by_class: bool) -> usize {
        let Some(mesh) = &mut self.mesh else { return 0 };
        let mut moved = mesh.homecoming(&mut self.pool);
        let others = mesh.others();
        let mut looks = mesh.begin_turn();
        if self.pool.all_under_way() == 0
            && mesh.waiting() == 0
            && (!mesh.is_paused() || self.uplink.has_sent_all())
        {
            mesh.all_home();
        }
        if by_class {
            moved += self.released_by_class(&mut looks);
            return moved + self.others_by_class(others);
        }
        while looks > 0 {
            let (bursts, mut cx) = self.parts();
            let Some(mesh) = cx.mesh.as_deref_mut() else { break };
            let Some(stage) = mesh.released(bursts.0, &mut looks, cx.pool) else { break };
            moved += bursts.0.len();
            stages::resume(stage, bursts, &mut cx);
        }
        for lane in 0..self.lanes.count() {
            for other in 0..others {
                moved += self.others_burst(other, lane);
            }
        }
        moved
    }

    /// What is on its way comes before anything new: a burst from this one of the others, though it may be in pieces, one for each
    /// next step.
    #[inline]
    fn others_burst(&mut self, other: usize, lane: usize) -> usize {
        let mut arrived = 0;
        while arrived < BURST {
            let (bursts, mut cx) = self.parts();
            let Some(mesh) = cx.mesh.as_deref_mut() else { break };
            let Some(stage) = mesh.arrivals(other, lane, bursts.0) else { break };
            if let Some(waited) = mesh.waited() {
                let time = cycles().saturating_sub(waited.since);
                cx.counters.waited(Some(waited.class), Before::Step(stage), time);
            }
            arrived += bursts.0.len();
            stages::run_from(stage, bursts, &mut cx);
        }
        self.tenants.note_work(arrived);
        arrived
    }

    /// A burst from each of the uplink's rings and one from the tenants, one after the other.
    #[inline]
    fn take_in(&mut self, is_plain: bool) -> usize {
        let mut moved = 0;
        for source in 0..self.uplink.sources() {
            if self.uplink.has_urgent(source) {
                moved += self.way_in(source, true, is_plain);
            }
        }
        for source in 0..self.uplink.sources() {
            moved += self.way_in(source, false, is_plain);
        }
        moved + self.way_out(is_plain)
    }

    /// One burst from a ring of an uplink queue.
    #[inline]
    fn way_in(&mut self, source: usize, is_urgent: bool, is_plain: bool) -> usize {
        // What is presented as fast as it goes can wait, unlike a network: not more than there is room for behind.
        if self.must_wait() {
            return 0;
        }
        let origin = self.uplink.origin(source, is_urgent);
        let received = self.uplink.receive(source, origin.ring, &mut self.pool, &mut self.bursts.0);
        if received > 0 {
            self.count_received(origin.uplink, &self.bursts.0);
            self.tenants.note_work(received);
            let (bursts, mut cx) = self.parts();
            cx.origin = origin;
            if is_plain {
                stages::run_here(Stage::Classify, bursts, &mut cx);
            } else {
                stages::run_from(Stage::Classify, bursts, &mut cx);
            }
        }
        received
    }

    #[inline]
    fn must_wait(&mut self) -> bool {
        self.uplink.can_wait() && self.mesh.as_mut().is_some_and(|mesh| !mesh.has_room_beyond(&self.pool))
    }

    #[inline]
    fn count_received(&self, uplink: UplinkId, burst: &Burst) {
        let bytes: usize = burst.iter().map(|frame| frame.len()).sum();
        if let Some(traffic) = self.counters.uplink_rx.of(uplink) {
            traffic.many(burst.len(), bytes);
        }
    }

    /// One burst from the tenants, who take turns.
    #[inline]
    fn way_out(&mut self, is_plain: bool) -> usize {
        let (bursts, mut cx) = self.parts();
        collect::run(bursts.0, &mut cx);
        let taken = bursts.0.len();
        if taken > 0 && is_plain {
            stages::run_here(Stage::Lookup, bursts, &mut cx);
        } else if taken > 0 {
            stages::enter(bursts, &mut cx);
        }
        taken
    }

    /// Gives up a tenant that has a fault, if there is one.
    #[inline]
    fn put_out(&mut self) {
        if self.mailbox.can_return()
            && let Some(mut detached) = self.tenants.put_out()
        {
            self.forget_tenant(&mut detached);
            self.mailbox.give_back(Returned::Tenant(detached));
        }
    }

    /// The two bursts, and everything else that a stage works with.
    #[inline]
    fn parts(&mut self) -> ((&mut Burst, &mut Burst), Cx<'_>) {
        let cx = Cx {
            tables: &self.tables,
            fdb: &self.fdb,
            counters: &self.counters,
            pool: &mut self.pool,
            tenants: &mut self.tenants,
            now_s: self.seconds.now(),
            origin: Origin::only(UplinkId(0)),
            is_urgent: false,
            wire: &mut self.uplink,
            flood_budget: &mut self.flood_budget,
            mesh: self.mesh.as_mut(),
            work: &self.work,
            is_sampled: self.is_sampled,
        };
        ((&mut self.bursts.0, &mut self.bursts.1), cx)
    }

    /// Does what control asks; one order a turn is plenty. Frames may come in, or not.
    #[inline]
    fn obey(&mut self, takes_in: bool) {
        let Some(order) = self.mailbox.next_order() else { return };
        let answer = match order {
            Order::Tables(tables) => Returned::Tables(std::mem::replace(&mut self.tables, tables)),
            Order::Detach { endpoint, serial } => match self.tenants.detach(endpoint, serial) {
                Some(mut detached) => {
                    self.forget_tenant(&mut detached);
                    Returned::Tenant(detached)
                }
                None => return, // it was put out before
            },
            Order::Attach { endpoint, serial, rings } => {
                if let Some(its) = self.tables.endpoint(endpoint) {
                    self.tenants.place(endpoint, its.network);
                }
                match self.tenants.attach(endpoint, serial, rings) {
                    Ok(()) => {
                        self.watch_tenant(endpoint);
                        return;
                    }
                    Err(rings) => Returned::Tenant(Detached { endpoint, serial, rings, fault: None }),
                }
            }
            Order::Vacated(endpoints) => {
                endpoints.iter().for_each(|endpoint| self.tenants.forget(*endpoint));
                Returned::Vacated(endpoints)
            }
            Order::Room { network, room } => Returned::Room(self.tenants.make_room(network, room)),
            Order::Mesh(mut mesh) => {
                std::mem::swap(&mut self.mesh, &mut mesh);
                Returned::Mesh(mesh)
            }
            Order::Links { mut links, without } => {
                if let Some(mesh) = &mut self.mesh {
                    mesh.relink(&mut links, without);
                }
                Returned::Links(links)
            }
            Order::Announce(mut announcement) => {
                announcement.is_sent = takes_in && self.announce(&announcement);
                Returned::Announced(announcement)
            }
            Order::Drain { number } => {
                self.uplink.sockets().iter_mut().for_each(XskSocket::mark_arrived);
                self.drains = Some(number);
                return;
            }
            Order::Leave => {
                self.leaves = true;
                return;
            }
        };
        self.mailbox.give_back(answer);
    }

    /// Sends a frame in a tenant's name, unless nothing may come in: then its way would not be known.
    #[cold]
    fn announce(&mut self, announcement: &Announcement) -> bool {
        if !self.mesh.as_ref().is_none_or(Mesh::takes_in) {
            return false;
        }
        let Some(network) = self.tables.endpoint(announcement.endpoint).map(|it| it.network) else {
            return true; // there is no such tenant
        };
        let is_plain = self.mesh.as_ref().is_none_or(Mesh::is_plain);
        let (bursts, mut cx) = self.parts();
        let from = (network, announcement.endpoint);
        let is_made = answer::announce(&announcement.frame, from, bursts.0, &mut cx);
        if is_plain {
            stages::run_here(Stage::Deliver, bursts, &mut cx);
        } else {
            stages::enter_made(bursts, &mut cx);
        }
        is_made
    }

    /// What has been taken from the rx rings is on its way: a burst goes on as soon as it is taken.
    #[inline]
    fn tell_drained(&mut self) {
        let Some(number) = self.drains else { return };
        if self.mailbox.can_return() && !self.uplink.sockets().iter().any(XskSocket::has_marked) {
            self.drains = None;
            self.mailbox.give_back(Returned::Drained { worker: self.id(), number });
        }
    }
}

/// What a worker needs of the uplinks.
#[derive(Debug)]
pub(crate) struct Port {
    // First, so that the sockets are closed before the memory that they use may go.
    pub(crate) uplink: Uplink,
    pub(crate) pool: FramePool,
}

impl From<WorkerPort> for Port {
    fn from(port: WorkerPort) -> Port {
        Port { uplink: Uplink::Sockets(Sockets::new(port.sockets)), pool: port.pool }
    }
}

/// What a socket had to throw away came in, and was dropped. What it was is not known.
#[cold]
#[inline(never)]
fn count_losses(socket: &mut XskSocket, counters: &WorkerCounters) {
    let Losses { too_long, no_buffer } = socket.take_losses();
    for (lost, reason) in [(too_long, DropReason::UplinkTooLong), (no_buffer, DropReason::NoFreeFrame)] {
        counters.dropped.many(reason, lost);
        if let Some(traffic) = counters.uplink_rx.of(socket.uplink()) {
            traffic.many(lost as usize, 0);
        }
    }
}

#[inline]
fn count(kicks: Kicks, counters: &WorkerCounters) {
    if kicks == Kicks::default() {
        return;
    }
    counters.kicks.add(kicks.transmit);
    counters.kicks_deferred.add(kicks.deferred);
    counters.kicks_link_down.add(kicks.down);
    counters.kicks_failed.add(kicks.failed);
    counters.receive_kicks.add(kicks.receive);
    counters.watchdog_kicks.add(kicks.watchdog);
    counters.device_drops.add(kicks.lost);
}

#[cfg(test)]
mod tests;
