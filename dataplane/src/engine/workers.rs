//! Workers that come and go while frames flow.
//!
//! A worker that holds queues of the interface cannot end: its sockets are bound to its memory. When its core is taken away it moves, whole,
//! to another core; when a core is added, one that shares a core moves there. Where nobody shares a core, the new core gets a worker
//! without queues, which takes steps for the others; such a one ends when its core goes.
//!
//! Nothing here waits for a worker but for its thread to start: what takes several steps goes on with each [`Engine::poll`].
//!
//! ```text
//! Joining ──all others have their rings to it──► Present ──its core goes──► Leaving ──nothing is under way──► Drained ──► Absent
//! ```

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::balancing::{Balancing, PAUSE_PATIENCE};
use super::{Engine, StartError, spread};
use crate::bell::Bell;
use crate::counters::{Counter, WorkerCounters};
use crate::frame::FramePool;
use crate::idle::Times;
use crate::lanes::Lanes;
use crate::mailbox::{Mailbox, Order};
use crate::mesh::{self, Mesh};
use crate::pinned::{JOIN_PATIENCE, PinnedThread, START_PATIENCE};
use crate::plan::{IdleMode, PlacementMode, WorkerPlan};
use crate::types::{CoreId, WorkerId};
use crate::worker::{Port, Shared, Uplink, Worker};
use crate::xsk;

/// Until the next try, if they took longer; and how often control looks while somebody comes or goes.
pub(super) const RETRY: Duration = Duration::from_millis(2);
/// Where the workers do not come to rest, all wait for that in vain: each time the next try is twice as far away, up to this.
const REST_RETRY_MAX: Duration = Duration::from_millis(100);

/// Why no worker came, or none went. One line.
#[derive(Debug)]
pub enum WorkerError {
    /// The thread did not start.
    Start(StartError),
    /// There is one on this core.
    Taken(CoreId),
    /// There is none on this core.
    NoneThere {
        /// Which.
        core: CoreId,
        /// Those that have one.
        taken: Vec<CoreId>,
    },
    /// Somebody must be left.
    Last(CoreId),
    /// There are as many as there can be.
    Full,
    /// All steps are run where a frame enters, and the worker would have no queue.
    NothingToDo,
}

impl fmt::Display for WorkerError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            WorkerError::Start(error) => error.fmt(f),
            WorkerError::Taken(core) => write!(f, "core {} has a worker already: choose another one", core.0),
            WorkerError::NoneThere { core, taken } => {
                let taken: Vec<String> = taken.iter().map(|core| core.0.to_string()).collect();
                write!(f, "core {} has no worker: those on cores {} can be removed", core.0, taken.join(", "))
            }
            WorkerError::Last(core) => {
                write!(f, "the worker on core {} is the last one: add another one first, or stop the daemon", core.0)
            }
            WorkerError::Full => write!(f, "there are {} workers, as many as there can be", WorkerId::LIMIT),
            WorkerError::NothingToDo => f.write_str(
                "every queue has a worker, and with placement = \"run-to-completion\" another one has nothing to do: choose \"balanced\"",
            ),
        }
    }
}

impl std::error::Error for WorkerError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            WorkerError::Start(error) => Some(error),
            _ => None,
        }
    }
}

/// Where a worker is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Presence {
    /// It runs, but not all others have their rings to it.
    Joining,
    Present,
    /// Nothing new goes to it.
    Leaving,
    /// Nothing is under way to it or on it: it is called back.
    Drained,
    /// Its place is free; its counters stay, for the sums.
    Absent,
}

/// What control knows of a worker.
#[derive(Debug)]
pub(super) struct WorkerHandle {
    /// The place of its thread in the list.
    pub(super) thread: usize,
    pub(super) presence: Presence,
    /// It was told to leave its thread, and control has not taken it from there yet.
    is_called_back: bool,
    pub(super) counters: Arc<WorkerCounters>,
    pub(super) mailbox: Arc<Mailbox>,
    /// Orders that the mailbox had no room for yet.
    pub(super) outbox: VecDeque<Order>,
    /// It has a socket of its own.
    pub(super) sends: bool,
    pub(super) frames_total: u64,
    /// Busy, slept and total cycles at the last [`Engine::age`], and the shares of the first two between the last two of these.
    cycles_seen: [u64; 3],
    pub(super) busy: f64,
    pub(super) slept: f64,
}

impl WorkerHandle {
    /// Tables that wait are replaced by newer ones, in their place: so the list stays as short as there are tenants, and who is to be
    /// served is known by the tables that the worker has then.
    pub(super) fn send(&mut self, order: Order) {
        let is_tables = |order: &Order| matches!(order, Order::Tables(_));
        let older =
            if is_tables(&order) { self.outbox.iter_mut().find(|order| is_tables(order)) } else { None };
        match older {
            Some(waiting) => *waiting = order,
            None => self.outbox.push_back(order),
        }
        self.flush();
    }

    /// Orders keep their order: the first that finds no room stays in front.
    pub(super) fn flush(&mut self) {
        while let Some(order) = self.outbox.pop_front() {
            if let Err(order) = self.mailbox.send(order) {
                self.outbox.push_front(order);
                return;
            }
        }
    }

    /// It is to leave its thread. Once is enough, whatever is decided meanwhile: where it goes then is looked at when it has left.
    fn call_back(&mut self) {
        if !std::mem::replace(&mut self.is_called_back, true) {
            self.send(Order::Leave);
        }
    }

    /// It runs and will go on, or is about to.
    fn stays(&self) -> bool {
        matches!(self.presence, Presence::Joining | Presence::Present)
    }

    /// It has taken every order, and so done it before it looks at another frame.
    pub(super) fn has_obeyed(&self) -> bool {
        self.outbox.is_empty() && self.mailbox.is_read()
    }

    /// The shares since the last call.
    pub(super) fn measure_busy(&mut self) {
        let cycles = cycles_of(&self.counters);
        let [busy, slept, total] = std::array::from_fn(|at| {
            let of = |cycles: &[u64; 3]| cycles.get(at).copied().unwrap_or_default();
            of(&cycles).saturating_sub(of(&self.cycles_seen)) as f64
        });
        self.cycles_seen = cycles;
        let share = |cycles: f64| if total == 0.0 { 0.0 } else { (cycles / total).min(1.0) };
        (self.busy, self.slept) = (share(busy), share(slept));
    }
}

/// Busy, slept, total.
fn cycles_of(counters: &WorkerCounters) -> [u64; 3] {
    [&counters.cycles_busy, &counters.cycles_slept, &counters.cycles_total].map(Counter::get)
}

impl Engine {
    /// At the start: a worker on a thread of its own.
    pub(super) fn start_worker(
        &mut self,
        plan: &WorkerPlan,
        port: Port,
        mesh: Option<Mesh>,
        bell: Arc<Bell>,
    ) -> Result<(), StartError> {
        let thread = self.start_thread(plan, START_PATIENCE)?;
        let me = mesh.as_ref().map_or(WorkerId(0), Mesh::me);
        let counters = self.new_counters();
        self.seat_new((me, bell), thread, port, mesh, counters);
        Ok(())
    }

    /// Its place in the list.
    fn start_thread(&mut self, plan: &WorkerPlan, patience: Duration) -> Result<usize, StartError> {
        let times = Times { after: self.plan.idle_after, sleep_max: self.plan.sleep_max };
        let idle_times = (plan.idle == IdleMode::Adaptive).then_some(times);
        let thread = Some(PinnedThread::start(plan, idle_times, &self.ending, patience)?);
        let free = self.threads.iter().position(Option::is_none);
        let place = free.unwrap_or(self.threads.len());
        match self.threads.get_mut(place) {
            Some(free) => *free = thread,
            None => self.threads.push(thread),
        }
        Ok(place)
    }

    fn new_counters(&self) -> Arc<WorkerCounters> {
        let Engine { plan, remotes, .. } = self;
        let counters = WorkerCounters::new(plan.networks_max(), plan.endpoints_max(), remotes.capacity());
        Arc::new(counters.with_classes(plan.classes.list.len(), plan.classes.default))
    }

    fn seat_new(
        &mut self,
        (me, bell): (WorkerId, Arc<Bell>),
        thread: usize,
        mut port: Port,
        mesh: Option<Mesh>,
        counters: Arc<WorkerCounters>,
    ) {
        port.pool.set_owner(me);
        port.pool.set_class(self.plan.classes.default);
        let mailbox = Arc::new(Mailbox::new(bell));
        counters.frames_free.set(port.pool.available() as u64);
        let handle = WorkerHandle {
            thread,
            presence: Presence::Present,
            is_called_back: false,
            counters: counters.clone(),
            mailbox: mailbox.clone(),
            outbox: VecDeque::new(),
            sends: port.uplink.sends(),
            frames_total: port.pool.capacity() as u64,
            cycles_seen: cycles_of(&counters),
            busy: 0.0,
            slept: 0.0,
        };
        let shared = Shared {
            tables: self.tables.clone(),
            fdb: self.fdb.clone(),
            seconds: self.seconds.clone(),
            work: self.work.clone(),
            classes: Arc::new(self.plan.classes.clone()),
        };
        let worker = Worker::new(port, shared, mesh, counters, mailbox);
        self.ending.expect_worker();
        if let Some(Some(thread)) = self.threads.get(thread) {
            thread.seat(Box::new(worker));
        }
        match self.workers.get_mut(me.index()) {
            Some(place) => *place = handle,
            None => self.workers.push(handle),
        }
    }

    /// The CPU that it runs on.
    pub(super) fn core_of(&self, worker: &WorkerHandle) -> CoreId {
        let thread = self.threads.get(worker.thread).and_then(Option::as_ref);
        thread.map_or(CoreId(usize::MAX), PinnedThread::core)
    }

    /// What its thread does while there is nothing to do.
    pub(super) fn idle_of(&self, worker: &WorkerHandle) -> IdleMode {
        let thread = self.threads.get(worker.thread).and_then(Option::as_ref);
        thread.map_or(IdleMode::Busy, PinnedThread::idle)
    }

    /// Wakes the threads that sleep.
    pub(super) fn call_threads(&self) {
        self.threads.iter().flatten().for_each(PinnedThread::call);
    }

    /// The cores that workers run on, in their order.
    pub fn cores(&self) -> Vec<CoreId> {
        let open = self.threads.iter().flatten().filter(|thread| !thread.is_closed());
        let mut cores: Vec<CoreId> = open.map(PinnedThread::core).collect();
        cores.sort_unstable();
        cores
    }

    /// Uses another core: a worker that shares one moves there, or a new one, without queues, takes steps for the others. The
    /// next calls of [`poll`](Self::poll) complete it.
    ///
    /// # Errors
    /// [`WorkerError`]; nothing has changed then.
    pub fn add_worker(&mut self, plan: &WorkerPlan) -> Result<(), WorkerError> {
        let guest = self.guest();
        let free = self.workers.iter().position(|worker| worker.presence == Presence::Absent);
        let me = free.unwrap_or(self.workers.len());
        if guest.is_none() && self.plan.placement == PlacementMode::RunToCompletion {
            return Err(WorkerError::NothingToDo);
        }
        if guest.is_none() && me >= WorkerId::LIMIT {
            return Err(WorkerError::Full);
        }
        let thread = self.start_thread(plan, JOIN_PATIENCE).map_err(WorkerError::Start)?;
        match guest {
            Some(guest) => self.move_worker(guest, thread),
            None => self.join_new(WorkerId(me as u8), thread),
        }
        self.due = Some(Instant::now());
        Ok(())
    }

    /// A worker with queues that shares its core with another worker.
    fn guest(&self) -> Option<usize> {
        let on = |thread: usize| self.workers.iter().filter(|it| it.stays() && it.thread == thread).count();
        self.workers.iter().rposition(|it| it.sends && it.stays() && on(it.thread) > 1)
    }

    /// A worker without queues, and rings between it and the others.
    fn join_new(&mut self, me: WorkerId, thread: usize) {
        let others = self.present().filter(|other| *other != me);
        let with_bell =
            |other: WorkerId| Some((other, self.workers.get(other.index())?.mailbox.bell().clone()));
        let others: Vec<(WorkerId, Arc<Bell>)> = others.filter_map(with_bell).collect();
        let bell = Arc::default();
        let frames = self.workers.iter().map(|worker| worker.frames_total).max().unwrap_or(0) as usize;
        let lanes = Lanes::new(&self.plan.classes);
        let (mesh, theirs) = mesh::join(&self.placement, (me, &bell), &others, lanes, frames);
        for ((other, _), mut links) in others.into_iter().zip(theirs) {
            let order = if self.is_alone {
                let mut first = Mesh::new(&self.placement, other, lanes);
                first.relink(&mut links, me);
                Order::Mesh(Box::new(Some(first)))
            } else {
                Order::Links { links, without: me }
            };
            if let Some(other) = self.workers.get_mut(other.index()) {
                other.send(order);
            }
        }
        self.is_alone = false;
        let port = Port {
            uplink: Uplink::none(),
            pool: FramePool::anonymous(2048, 0, xsk::HEADROOM), // no chunk, of whatever size
        };
        let kept = self.workers.get(me.index()).map(|worker| worker.counters.clone());
        let counters = kept.unwrap_or_else(|| self.new_counters());
        self.seat_new((me, bell), thread, port, Some(mesh), counters);
        if let Some(handle) = self.workers.get_mut(me.index()) {
            handle.presence = Presence::Joining;
        }
    }

    /// Workers that run, present or about to be, or about to be no more.
    pub(super) fn present(&self) -> impl Iterator<Item = WorkerId> + '_ {
        let there = self.workers.iter().enumerate().filter(|(_, it)| it.presence != Presence::Absent);
        there.map(|(place, _)| WorkerId(place as u8))
    }

    /// Uses a core no more, once what is under way there has arrived, in one of the next calls of [`poll`](Self::poll). A worker
    /// with queues goes on on another core, the one with the least to do.
    ///
    /// # Errors
    /// [`WorkerError`]; nothing has changed then.
    pub fn remove_worker(&mut self, core: CoreId) -> Result<(), WorkerError> {
        let taken = self.cores();
        let open = |thread: &Option<PinnedThread>| thread.as_ref().is_some_and(|it| !it.is_closed());
        let goes = self
            .threads
            .iter()
            .rposition(|thread| open(thread) && thread.as_ref().is_some_and(|thread| thread.core() == core));
        let Some(goes) = goes else { return Err(WorkerError::NoneThere { core, taken }) };
        let idle = (0..self.threads.len())
            .filter(|place| *place != goes && self.threads.get(*place).is_some_and(open))
            .min_by(|a, b| self.busy_on(*a).total_cmp(&self.busy_on(*b)));
        let Some(idle) = idle else { return Err(WorkerError::Last(core)) };
        if let Some(Some(thread)) = self.threads.get(goes) {
            thread.close();
        }
        for place in 0..self.workers.len() {
            let Some(worker) = self.workers.get_mut(place).filter(|worker| worker.thread == goes) else {
                continue;
            };
            match worker.presence {
                Presence::Present if worker.sends => self.move_worker(place, idle),
                Presence::Present | Presence::Joining => {
                    worker.presence = Presence::Leaving;
                    self.placement.go(WorkerId(place as u8));
                }
                Presence::Leaving | Presence::Drained | Presence::Absent => {}
            }
        }
        spread(&self.placement, self.plan.placement);
        self.due = Some(Instant::now());
        Ok(())
    }

    /// How busy a thread was in the last second.
    fn busy_on(&self, thread: usize) -> f64 {
        let there = self.workers.iter().filter(|it| it.thread == thread && it.presence != Presence::Absent);
        there.map(|worker| worker.busy).sum()
    }

    /// To another thread, with everything: it leaves after its turn, and control takes it there.
    fn move_worker(&mut self, worker: usize, to: usize) {
        if let Some(worker) = self.workers.get_mut(worker) {
            worker.thread = to;
            worker.call_back();
        }
    }

    /// Of those who have frames: called back from a thread, and not taken from there yet.
    pub(super) fn is_somebody_between_threads(&self) -> bool {
        self.workers.iter().any(|worker| worker.is_called_back && worker.frames_total > 0)
    }

    /// Goes on with those that come and go.
    pub(super) fn settle_workers(&mut self) {
        let now = Instant::now();
        if self.due.is_none_or(|due| due > now) {
            return;
        }
        self.take_over();
        self.let_in();
        self.let_out();
        self.end_threads();
        let is_on_its_way = |worker: &WorkerHandle| {
            worker.is_called_back || !matches!(worker.presence, Presence::Present | Presence::Absent)
        };
        let is_going = self.threads.iter().flatten().any(PinnedThread::is_closed);
        let goes_on = is_going || self.workers.iter().any(is_on_its_way);
        self.due = goes_on.then(|| Instant::now() + RETRY);
    }

    /// Threads that nobody runs on any more. Who has left one since the last look is still there, and keeps it.
    fn end_threads(&mut self) {
        for place in &mut self.threads {
            if let Some(thread) = place.as_mut().filter(|thread| thread.is_left()) {
                if !thread.join() {
                    self.died.push(thread.core());
                }
                *place = None;
            }
        }
    }

    /// Workers that have left their thread sit down on another one, or are dropped.
    pub(super) fn take_over(&mut self) {
        let gone: Vec<Box<Worker>> =
            self.threads.iter().flatten().flat_map(|thread| std::iter::from_fn(|| thread.gone())).collect();
        let mut watched = Vec::new(); // closed when all sit: that takes milliseconds each
        for worker in gone {
            let Some(handle) = self.workers.get_mut(worker.id().index()) else { continue };
            handle.is_called_back = false;
            if handle.presence == Presence::Drained {
                handle.presence = Presence::Absent;
                handle.outbox.clear();
                if !worker.is_finished() {
                    self.ending.worker_is_done();
                }
                while handle.mailbox.take_returned().is_some() {}
                while handle.mailbox.next_order().is_some() {} // which it left unread
            } else if let Some(Some(thread)) = self.threads.get(handle.thread) {
                watched.extend(thread.seat(worker));
            }
        }
    }

    /// Who joins is present once all others have their rings to it.
    fn let_in(&mut self) {
        // Who joins at the same time, too: frames may go from one to the other.
        if !self.workers.iter().all(|worker| !worker.stays() || worker.has_obeyed()) {
            return;
        }
        let senders: Vec<usize> = (0..self.workers.len())
            .filter(|place| self.workers.get(*place).is_some_and(|it| it.sends))
            .collect();
        let joins = self.workers.iter_mut().enumerate().filter(|(_, it)| it.presence == Presence::Joining);
        let mut has_come = false;
        for (place, worker) in joins {
            worker.presence = Presence::Present;
            let exit = senders.get(place % senders.len().max(1)).copied().unwrap_or(place);
            self.placement.come(WorkerId(place as u8), WorkerId(exit as u8));
            has_come = true;
        }
        if has_come {
            spread(&self.placement, self.plan.placement);
        }
        if self.balancing.is_none() && self.plan.placement == PlacementMode::Balanced && !self.is_alone {
            self.balancing = Some(Balancing::new(self.plan.balance_threshold));
        }
    }

    /// Who leaves is called back once nothing is under way: all workers take nothing in for some microseconds.
    fn let_out(&mut self) {
        let leaves = |worker: &WorkerHandle| worker.presence == Presence::Leaving;
        let (next_rest, wait) = self.next_rest;
        let is_due = Instant::now() >= next_rest && !self.is_somebody_between_threads();
        if !is_due || !self.workers.iter().any(leaves) {
            return;
        }
        // Who waits longer for the next try waits longer in it: where workers share their cores with others, all must have had a turn.
        let patience = (wait / 5).max(PAUSE_PATIENCE);
        if !self.pause(patience, |_| true) {
            self.next_rest = (Instant::now() + wait, (2 * wait).min(REST_RETRY_MAX));
            return;
        }
        self.next_rest.1 = RETRY;
        for place in 0..self.workers.len() {
            let Some(worker) = self.workers.get_mut(place).filter(|worker| leaves(worker)) else { continue };
            worker.presence = Presence::Drained;
            worker.call_back();
            let gone = WorkerId(place as u8);
            let places = self.workers.len();
            for other in self.workers.iter_mut().filter(|other| other.stays()) {
                let links = std::iter::repeat_with(|| None).take(places).collect();
                other.send(Order::Links { links, without: gone });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Event;
    use crate::pinned::usable_cores;
    use crate::plan::{Plan, UplinkPlan, XdpMode};
    use crate::replay::{Field, Numbers, Pace, ReplayFrame, ReplayStream, STAMP, Speed};

    const PATIENCE: Duration = Duration::from_secs(60);

    fn core(n: usize) -> CoreId {
        let cores = usable_cores();
        CoreId(cores[n % cores.len()])
    }

    /// Without networks: what comes in is dropped, and counted.
    fn plan(workers: usize) -> Plan {
        Plan {
            workers: (0..workers).map(|n| WorkerPlan::on(core(n))).collect(),
            placement: PlacementMode::Static,
            balance_threshold: 85,
            uplinks: vec![UplinkPlan {
                mode: XdpMode::Copy,
                ring_size: 64,
                ..UplinkPlan::new("unused", [192, 0, 2, 1].into())
            }],
            networks: vec![].into(),
            endpoints: Default::default(),
            capacity: Default::default(),
            pools: Default::default(),
            classes: Default::default(),
            control_socket: std::path::PathBuf::new(),
            ..Plan::default()
        }
    }

    fn frame() -> ReplayFrame {
        ReplayFrame { flow: 0, bytes: vec![0; 30 + STAMP] }
    }

    fn engine(workers: usize) -> Engine {
        Engine::replay(&plan(workers), vec![vec![frame()]; workers]).unwrap()
    }

    fn until(engine: &mut Engine, mut is_so: impl FnMut(&mut Engine) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(engine) {
            assert!(Instant::now() < deadline, "{:?}", engine.workers);
            std::thread::yield_now();
        }
    }

    /// From the thread of its own, without a word to control.
    fn take_off(engine: &mut Engine, place: usize) -> Box<Worker> {
        engine.workers[place].mailbox.send(Order::Leave).unwrap();
        let mut worker = None;
        until(engine, |engine| {
            worker = engine.threads[place].as_ref().and_then(PinnedThread::gone);
            worker.is_some()
        });
        worker.unwrap()
    }

    #[test]
    fn who_has_left_a_thread_is_not_lost_when_that_ends_before_control_looks() {
        let mut engine = engine(2);
        engine.remove_worker(core(1)).unwrap();
        until(&mut engine, |engine| engine.threads[1].as_ref().is_some_and(PinnedThread::is_finished));
        engine.end_threads();
        let before = engine.workers[1].counters.uplink_rx.frames();
        until(&mut engine, |engine| {
            assert_eq!(engine.poll(), []);
            engine.deadline().is_none() && engine.workers[1].counters.uplink_rx.frames() > before
        });
        assert!(engine.threads[1].is_none());
    }

    /// Two who leave one thread in one round would each answer to several calls at once, and control wait for the rest for ever.
    #[test]
    fn who_is_called_back_again_is_told_once() {
        let mut engine = engine(2);
        let worker = take_off(&mut engine, 1);
        for thread in [0, 1, 0] {
            engine.move_worker(1, thread);
        }
        let told = std::iter::from_fn(|| engine.workers[1].mailbox.next_order()).count();
        assert_eq!((told, engine.workers[1].thread), (1, 0));
        engine.threads[1].as_ref().unwrap().seat(worker);
    }

    #[test]
    fn nobody_rests_for_who_is_between_two_threads() {
        let mut engine = engine(2);
        engine.move_worker(1, 0);
        let mut asked = false;
        assert!(!engine.pause(PAUSE_PATIENCE, |_| std::mem::replace(&mut asked, true)));
        assert_eq!((asked, engine.pauses), (false, 0));
        until(&mut engine, |engine| {
            engine.take_over();
            !engine.is_somebody_between_threads()
        });
        until(&mut engine, |engine| engine.pause(PAUSE_PATIENCE, |_| true));
    }

    #[test]
    fn who_has_no_frames_need_not_say_that_they_are_home() {
        let mut engine = engine(2);
        engine.add_worker(&WorkerPlan::on(core(0))).unwrap();
        until(&mut engine, |engine| engine.poll().is_empty() && engine.deadline().is_none());
        let worker = take_off(&mut engine, 2);
        until(&mut engine, |engine| engine.pause(PAUSE_PATIENCE, |_| true));
        engine.threads[2].as_ref().unwrap().seat(worker);
    }

    #[test]
    fn who_cannot_leave_does_not_keep_the_others_waiting() {
        let mut engine = engine(2);
        engine.add_worker(&WorkerPlan::on(core(0))).unwrap();
        until(&mut engine, |engine| engine.poll().is_empty() && engine.deadline().is_none());
        // One that never rests: it sits on no thread.
        let worker = take_off(&mut engine, 1);
        engine.remove_worker(core(0)).unwrap();
        let tried = engine.pauses;
        let began = Instant::now();
        for _ in 0..200 {
            engine.let_out();
        }
        let tries = engine.pauses - tried;
        assert!(tries >= 1 && (1 << tries) * RETRY <= 2 * began.elapsed() + 4 * RETRY, "{tries}");
        engine.threads[1].as_ref().unwrap().seat(worker);
        until(&mut engine, |engine| engine.poll().is_empty() && engine.workers().count() == 2);
        until(&mut engine, |engine| engine.poll().is_empty() && engine.deadline().is_none());
    }

    #[test]
    fn who_joins_waits_for_the_others_who_join() {
        let mut engine = engine(1);
        for _ in 0..2 {
            engine.add_worker(&WorkerPlan::on(core(1))).unwrap();
        }
        // Something that it has not been told yet.
        let tables = engine.tables.clone();
        engine.workers[1].outbox.push_back(Order::Tables(tables));
        until(&mut engine, |engine| engine.workers[0].has_obeyed());
        engine.let_in();
        assert_eq!(engine.workers[2].presence, Presence::Joining);
        until(&mut engine, |engine| engine.poll().is_empty() && engine.workers().count() == 3);
    }

    #[test]
    #[cfg_attr(not(debug_assertions), ignore = "an addition that overflows panics only where it is checked")]
    fn a_worker_that_panics_while_its_core_goes_is_reported() {
        let pace = std::sync::Arc::new(Pace::new(Speed::Stopped));
        let field = Some(Field { at: usize::MAX, numbers: Numbers::rising(0, 1) });
        let stream = ReplayStream { frames: vec![frame()], pace: pace.clone(), field, is_urgent: false };
        let mut engine = Engine::replay_streams(&plan(2), vec![vec![], vec![stream]]).unwrap();
        engine.threads[1].as_ref().unwrap().close();
        engine.due = Some(Instant::now());
        pace.set(Speed::Full);
        until(&mut engine, |engine| match engine.poll()[..] {
            [] => false,
            [Event::WorkerDied { core: died }] => died == core(1),
            ref other => panic!("{other:?}"),
        });
    }

    #[test]
    fn the_last_counters_say_which_core_they_are_of() {
        let engine = engine(2);
        let cores: Vec<CoreId> = engine.stop().workers.iter().map(|worker| worker.core).collect();
        assert_eq!(cores, [core(0), core(1)]);
    }
}
