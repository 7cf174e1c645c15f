//! A thread pinned to one CPU and the workers that run on it, mostly one, turn by turn. Control starts it, sends workers there and calls
//! them back while frames flow: a worker moves from core to core whole, with its sockets, memory, rings and tenants, so
//! nothing of its is lost or overtaken; what comes meanwhile waits in the rings.
//!
//! Called by `engine`. What must hold: a worker's memory is freed by control, never by a pinned thread.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use crossbeam::queue::ArrayQueue;

use crate::bell::{Bell, Caller};
use crate::clock::cycles;
use crate::engine::StartError;
use crate::idle::{Idle, Times};
use crate::plan::{IdleMode, WorkerPlan};
use crate::sys;
use crate::types::{CoreId, WorkerId};
use crate::worker::Worker;

/// How the workers are told to end: first nothing new comes in, until all frames that are under way between them are home; then they
/// stop.
#[derive(Debug, Default)]
pub(crate) struct Ending {
    phase: AtomicU8,
    /// Workers that have frames under way, or may have.
    unfinished: AtomicUsize,
}

/// How far the end has come.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Run,
    Drain,
    Halt,
}

impl Ending {
    const DRAIN: u8 = 1;
    const HALT: u8 = 2;

    /// Before the worker starts.
    pub(crate) fn expect_worker(&self) {
        self.unfinished.fetch_add(1, Ordering::Relaxed);
    }

    /// Worker, once: all that is under way is home. Or control, of a worker that is no more.
    pub(crate) fn worker_is_done(&self) {
        self.unfinished.fetch_sub(1, Ordering::Relaxed);
    }

    pub(crate) fn drain(&self) {
        self.phase.fetch_max(Ending::DRAIN, Ordering::Relaxed);
    }

    /// Nothing is under way any more.
    pub(crate) fn is_drained(&self) -> bool {
        self.unfinished.load(Ordering::Relaxed) == 0
    }

    pub(crate) fn halt(&self) {
        self.phase.store(Ending::HALT, Ordering::Relaxed);
    }

    fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Relaxed) {
            0 => Phase::Run,
            Ending::DRAIN => Phase::Drain,
            _ => Phase::Halt,
        }
    }
}

/// What a thread may take to get onto its core: at the start of all, where a busy machine only makes it later,
pub(crate) const START_PATIENCE: Duration = Duration::from_secs(10);
/// and while others wait for control.
pub(crate) const JOIN_PATIENCE: Duration = Duration::from_secs(1);

/// What control and the thread hand each other.
#[derive(Debug)]
struct Seats {
    coming: ArrayQueue<Box<Worker>>,
    going: ArrayQueue<Box<Worker>>,
    /// Nobody comes any more: the thread ends when nobody is left.
    is_closed: AtomicBool,
    /// The thread's.
    bell: Arc<Bell>,
}

/// Control's end of a thread.
#[derive(Debug)]
pub(crate) struct PinnedThread {
    core: CoreId,
    idle: IdleMode,
    may_sleep: bool,
    seats: Arc<Seats>,
    /// None once it has been joined.
    thread: Option<JoinHandle<Vec<Box<Worker>>>>,
}

impl PinnedThread {
    /// Starts a thread on the core, with its priority, and without workers. It may sleep if times for that are given.
    ///
    /// # Errors
    /// [`StartError::Core`], [`StartError::Nice`], [`StartError::Thread`].
    pub(crate) fn start(
        plan: &WorkerPlan,
        idle_times: Option<Times>,
        ending: &Arc<Ending>,
        patience: Duration,
    ) -> Result<PinnedThread, StartError> {
        let WorkerPlan { core, nice, idle: mode } = *plan;
        let bell = Arc::new(Bell::new());
        bell.allow(idle_times.is_some());
        let may_sleep = idle_times.is_some();
        let idle = idle_times.map(|times| Idle::new(times, bell.clone()));
        let queue = || ArrayQueue::new(WorkerId::LIMIT);
        let seats =
            Arc::new(Seats { coming: queue(), going: queue(), is_closed: AtomicBool::new(false), bell });
        let (theirs, ending) = (seats.clone(), ending.clone());
        let (ready, placed) = mpsc::sync_channel(1);
        let body = move || {
            let result = settle(core, nice);
            peregrine_memif::warm_up(); // what the first wake-up of a tenant would otherwise set up
            let stays = result.is_ok();
            let _started = ready.send(result);
            if stays { run(&theirs, &ending, idle) } else { Vec::new() }
        };
        let thread = std::thread::Builder::new().name(format!("worker-{}", core.0)).spawn(body);
        let thread = Some(thread.map_err(StartError::Thread)?);
        let started = PinnedThread { core, idle: mode, may_sleep, seats, thread };
        // Control waits here: a core that lets nobody in (a real-time program has it) is given up.
        let Ok(placed) = placed.recv_timeout(patience) else {
            started.close(); // it ends when it gets there
            return Err(StartError::Thread(std::io::ErrorKind::TimedOut.into()));
        };
        placed?;
        Ok(started)
    }

    /// The CPU.
    pub(crate) fn core(&self) -> CoreId {
        self.core
    }

    /// What it does while there is nothing to do.
    pub(crate) fn idle(&self) -> IdleMode {
        self.idle
    }

    /// Lets a worker run there. What it has watched until now is returned, to be closed when control has nothing more urgent.
    pub(crate) fn seat(&self, mut worker: Box<Worker>) -> Option<OwnedFd> {
        let watched = worker.watch(self.may_sleep);
        if self.seats.coming.push(worker).is_err() {
            debug_assert!(false, "more workers than there can be");
        }
        self.call();
        watched
    }

    /// Wakes it, if it sleeps.
    pub(crate) fn call(&self) {
        self.seats.bell.ring(Caller::Control);
    }

    /// A worker that was told to leave, and has.
    pub(crate) fn gone(&self) -> Option<Box<Worker>> {
        self.seats.going.pop()
    }

    /// The thread ends once its workers have left.
    pub(crate) fn close(&self) {
        self.seats.is_closed.store(true, Ordering::Release);
        self.call();
    }

    /// It is to end.
    pub(crate) fn is_closed(&self) -> bool {
        self.seats.is_closed.load(Ordering::Relaxed)
    }

    /// It runs no more.
    pub(crate) fn is_finished(&self) -> bool {
        self.thread.as_ref().is_none_or(JoinHandle::is_finished)
    }

    /// It has ended as it was to, and all who left it have been taken from there.
    pub(crate) fn is_left(&self) -> bool {
        self.is_closed() && self.is_finished() && self.seats.going.is_empty()
    }

    /// Waits for its end; what it ran is dropped here. False if it panicked.
    pub(crate) fn join(&mut self) -> bool {
        let has_panicked = self.thread.take().is_some_and(|thread| thread.join().is_err());
        if has_panicked {
            eprintln!("peregrine: error: the worker on core {} panicked", self.core.0);
        }
        while self.seats.going.pop().is_some() || self.seats.coming.pop().is_some() {}
        !has_panicked
    }
}

/// Round and round until told to stop; the workers that are there then.
fn run(seats: &Seats, ending: &Ending, mut idle: Option<Idle>) -> Vec<Box<Worker>> {
    let mut workers: Vec<Box<Worker>> = Vec::with_capacity(WorkerId::LIMIT);
    let mut now = cycles();
    loop {
        let phase = ending.phase();
        if phase == Phase::Halt {
            return workers;
        }
        if !seats.coming.is_empty()
            && let Some(mut worker) = seats.coming.pop()
        {
            worker.sit_down(now);
            workers.push(worker); // there is room for all that there can be
        }
        let mut leaves = false;
        for worker in &mut workers {
            now = worker.run(now, phase, ending);
            leaves |= worker.leaves();
        }
        if leaves
            && let Some(place) = workers.iter().position(|worker| worker.leaves())
            && let Err(worker) = seats.going.push(workers.swap_remove(place))
        {
            workers.push(worker);
        }
        if workers.is_empty() {
            if seats.is_closed.load(Ordering::Acquire) && seats.coming.is_empty() {
                return workers;
            }
            now = cycles();
            if idle.is_none() || phase != Phase::Run {
                std::thread::yield_now();
            }
        }
        if let Some(idle) = &mut idle
            && phase == Phase::Run
            && idle.is_due(&workers, now)
        {
            let has_workers = !workers.is_empty();
            let may_sleep = || {
                let is_open = has_workers || !seats.is_closed.load(Ordering::Relaxed);
                ending.phase() == Phase::Run && seats.coming.is_empty() && is_open
            };
            now = idle.rest(&mut workers, now, may_sleep);
        }
    }
}

/// Puts the calling thread on its core, with its priority.
fn settle(core: CoreId, nice: Option<i8>) -> Result<(), StartError> {
    if !core_affinity::set_for_current(core_affinity::CoreId { id: core.0 }) {
        return Err(StartError::Core { core, usable: usable_cores() });
    }
    let Some(nice) = nice else { return Ok(()) };
    sys::set_thread_nice(nice).map_err(|source| StartError::Nice { core, nice, source })
}

/// The CPUs that this process may use.
pub(crate) fn usable_cores() -> Vec<usize> {
    core_affinity::get_core_ids().unwrap_or_default().iter().map(|core| core.id).collect()
}
