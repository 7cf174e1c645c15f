//! Containers' parts that are ready before anybody asks for them: a fresh network namespace, a veth into it, and its port, open.
//!
//! - `part`: one of them, made, taken, removed
//! - `names`: the names of those that are taken, and marks by which they are found after a crash
//!
//! ```text
//!  thread "pool":  make ──► ready ──► take: mark, MAC, addresses, routes, name ──► Taken, XskPort  (whoever called)
//!                  remove ◄── ending ◄── give_back ◄──────────────────────────────┘
//! ```
//!
//! A thread of the pool's own makes and removes parts: a namespace costs the kernel half a millisecond, a device's end a grace period. What is
//! left to do when one is taken is a few system calls. The thread keeps still while parts are being taken and there are some: both need
//! the kernel's lock on network devices.
//!
//! What must hold: a part is used once, so nobody finds anything of who had one before. One that is not taken is held by descriptors of this
//! process only, and goes with it. One that is taken stays marked until it is removed. What is not ours is left alone: a name is taken away
//! only while it is that of the namespace that we made.

mod names;
mod part;
#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use peregrine_dataplane::xsk::{PortConfig, Ports, XskPort};
use serde::Serialize;

use super::ContainerError;
use super::pair::{self, Link, Pair, refused};
use crate::underlay::netlink::Requests;
use names::Names;
use part::{Ending, Maker, Part};

/// After the last part was taken the pool's thread waits so long: what was taken has its first packets, and to make a part takes what they need.
const CALM: Duration = Duration::from_millis(25);
/// The same when only an eighth is left. With none left, and none to be removed, there is no waiting.
const CALM_WHEN_FEW: Duration = Duration::from_millis(5);
/// After so long what was taken is made again, though there are enough.
const REST: Duration = Duration::from_secs(1);
/// After a part could not be made: so long, then twice as long, and so on.
const PATIENCE: Duration = Duration::from_millis(100);
const PATIENCE_MAX: Duration = Duration::from_secs(30);
/// Parts that are removed at once. Who wants the kernel's lock on network devices waits meanwhile: under a millisecond with 8, up to 20 with 32.
const REMOVED_AT_ONCE: usize = 8;

/// How large a pool is, and what its parts are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PoolConfig {
    /// Parts that are kept ready.
    pub size: usize,
    /// With so many or fewer, more are made at once until there are `size`; less than that. With more, when nothing was taken for a second.
    pub low_water: usize,
    /// The name of the container's end.
    pub interface: String,
    /// The largest IP packet. Who takes a part may have it smaller; for a larger one a part is made on the spot.
    pub mtu: u16,
    /// How large the ports are.
    pub port: PortConfig,
    /// What our ends have for an alias: whose they are.
    pub alias: String,
    /// For the marks of what is taken: of this pool alone, and still there when the daemon is started again.
    pub directory: PathBuf,
}

/// What a container is to have.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PartPlan {
    /// The name of its namespace, as of `ip netns`.
    pub namespace: String,
    /// The name of its end, if it is not the pool's.
    pub interface: Option<String>,
    /// What for it is, in the caller's words: in the mark, and so still known when the daemon is started again.
    pub mark: String,
    /// What its end is given.
    pub link: Link,
}

/// A part that a container has. Nothing happens when it is dropped: [`Pool::give_back`] does it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Taken {
    /// The name of its namespace.
    pub namespace: String,
    /// The number of that, by which it is known again.
    pub inode: u64,
    /// Its veth.
    pub pair: Pair,
    /// What for, as it was said when it was taken.
    pub mark: String,
}

/// What a pool has, and what came of it.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct PoolCounts {
    /// Parts that are to be ready.
    pub size: usize,
    /// Parts that are.
    pub ready: usize,
    /// Parts that wait to be removed.
    pub ending: usize,
    /// Taken that were ready.
    pub hits: u64,
    /// Taken that had to be made on the spot.
    pub misses: u64,
    /// Parts made, in advance and on the spot.
    pub made: u64,
    /// Parts that could not be made, or not be removed.
    pub failed: u64,
    /// Why, the last time.
    pub failure: Option<String>,
}

/// The pool. Dropping it removes what nobody has; what is taken stays, marked.
#[derive(Debug)]
pub struct Pool {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: Condvar,
    maker: Maker,
}

#[derive(Debug)]
struct State {
    ready: VecDeque<Part>,
    ending: Vec<Ending>,
    /// Names and numbers of namespaces that the thread is removing.
    removing: Vec<(String, u64)>,
    counts: PoolCounts,
    low_water: usize,
    mtu: u16,
    /// From the low-water mark to the size.
    is_filling: bool,
    taken_at: Option<Instant>,
    /// After failures.
    patience: Duration,
    not_before: Option<Instant>,
    is_over: bool,
}

/// What the thread does next.
enum Job {
    Make,
    Remove(Vec<Ending>),
    /// Until it is woken, or so long.
    Nothing(Option<Duration>),
    End,
}

impl Pool {
    /// Starts it, and its thread with it, which begins to make parts. Their other ends will be in the caller's network namespace. Also what an earlier pool with this
    /// directory had given out and is still there: each to be adopted, or given back.
    ///
    /// # Errors
    /// [`ContainerError`]: the directory is another's, or something is not permitted.
    pub fn start(
        config: &PoolConfig,
        ports: Arc<Mutex<Ports>>,
    ) -> Result<(Pool, Vec<Taken>), ContainerError> {
        let failed = |error| refused(error, || "starting the pool of containers' parts".into());
        let names = Names::open(&config.directory)?;
        let mut host = Requests::open().map_err(failed)?;
        let (there, ending) = left(&names, &mut host)?;
        let shared = Arc::new(Shared {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                ending,
                removing: Vec::new(),
                counts: PoolCounts { size: config.size, ..PoolCounts::default() },
                low_water: config.low_water.min(config.size.saturating_sub(1)),
                mtu: config.mtu,
                is_filling: config.size > 0,
                taken_at: None,
                patience: PATIENCE,
                not_before: None,
                is_over: false,
            }),
            wake: Condvar::new(),
            maker: Maker::new(names, ports, config)?,
        });
        let (its, mut requests) = (shared.clone(), Requests::open().map_err(failed)?);
        let thread = std::thread::Builder::new().name("pool".into());
        let thread = thread.spawn(move || its.run(&mut requests)).map_err(failed)?;
        Ok((Pool { shared, thread: Some(thread) }, there))
    }

    /// Takes a part; where none is ready one is made now, which takes a millisecond or two. When this returns the container can send, and once
    /// the port is attached it gets an answer.
    ///
    /// # Errors
    /// [`ContainerError`]. Then there is nothing of it.
    pub fn take(&mut self, plan: &PartPlan) -> Result<(Taken, XskPort), ContainerError> {
        self.check(plan)?;
        let (ready, is_hit) = match self.shared.next(plan.link.mtu) {
            Some(part) => (part, true),
            None => (self.shared.made(self.shared.maker.make_aside(plan.link.mtu))?, false),
        };
        let given = ready.give(plan, &self.shared.maker.names);
        let mut state = self.shared.lock();
        match given {
            Ok(taken) => {
                let counts = &mut state.counts;
                *(if is_hit { &mut counts.hits } else { &mut counts.misses }) += 1;
                Ok(taken)
            }
            Err((error, part)) => {
                state.ending.push(Ending::Untaken(part));
                self.shared.wake.notify_one();
                Err(error)
            }
        }
    }

    /// What can be known before a part is used for it.
    fn check(&self, plan: &PartPlan) -> Result<(), ContainerError> {
        let name = &plan.namespace;
        names::check(name)?;
        if let Some(interface) = plan.interface.as_ref().filter(|name| !pair::is_interface_name(name)) {
            return Err(ContainerError::BadName { name: interface.clone() });
        }
        if !Names::is_taken(name) {
            return Ok(());
        }
        // Given back, and not removed yet: the name is wanted now.
        let leaving = self.shared.lock().leaving(name);
        leaving.map_or(Ok(()), |inode| self.shared.maker.names.remove(name, inode))?;
        match Names::is_taken(name) {
            true => Err(ContainerError::NamespaceTaken { name: name.clone() }),
            false => Ok(()),
        }
    }

    /// Opens the port of a container that an earlier pool had given out.
    ///
    /// # Errors
    /// [`ContainerError`].
    pub fn adopt(&self, taken: &Taken) -> Result<XskPort, ContainerError> {
        self.shared.maker.open(&taken.pair)
    }

    /// It is for something else, and marked so.
    ///
    /// # Errors
    /// The mark cannot be written; it says what it said.
    pub fn mark_anew(&self, taken: &Taken) -> Result<(), ContainerError> {
        self.shared.maker.names.mark_anew(taken)
    }

    /// Has a part removed: its name, its device, and its namespace, unless somebody is still in it. The port is dropped by who has it.
    pub fn give_back(&self, taken: Taken) {
        self.shared.lock().ending.push(Ending::Taken(taken));
        self.shared.wake.notify_one();
    }

    /// The same of one whose device is gone already. Its name goes now.
    pub fn let_go(&self, taken: Taken) {
        let named = self.shared.maker.names.remove(&taken.namespace, taken.inode);
        if let Err(error) = named {
            self.shared.lock().counts.failed(&error);
        }
        self.give_back(taken);
    }

    /// Has another size from now on.
    pub fn resize(&self, size: usize, low_water: usize) {
        let mut state = self.shared.lock();
        state.counts.size = size;
        state.low_water = low_water.min(size.saturating_sub(1));
        state.is_filling = state.ready.len() < size;
        while state.ready.len() > size
            && let Some(part) = state.ready.pop_back()
        {
            state.ending.push(Ending::Untaken(Box::new(part)));
        }
        self.shared.wake.notify_one();
    }

    /// What it has.
    pub fn counts(&self) -> PoolCounts {
        let state = self.shared.lock();
        PoolCounts { ready: state.ready.len(), ending: state.ending.len(), ..state.counts.clone() }
    }
}

/// What there is still of an earlier pool with these marks: what somebody can have, and what is to be removed.
fn left(names: &Names, host: &mut Requests) -> Result<(Vec<Taken>, Vec<Ending>), ContainerError> {
    let (mut there, mut ending) = (Vec::new(), Vec::new());
    let mut called = names::all()?;
    for (inode, pair, mark) in names.marked()? {
        // Where our end is gone the number may be another's.
        match called.remove(&inode).filter(|_| pair.is_still(host)) {
            Some(namespace) => there.push(Taken { namespace, inode, pair, mark }),
            None => ending.push(Ending::Nameless(pair)),
        }
    }
    Ok((there, ending))
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.lock().is_over = true;
        self.shared.wake.notify_one();
        if let Some(thread) = self.thread.take() {
            let _panicked = thread.join();
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A part that is ready, if there is one that will do.
    fn next(&self, mtu: u16) -> Option<Part> {
        let mut state = self.lock();
        state.taken_at = Some(Instant::now());
        // The thread sleeps until then, and has to know from when on it rests.
        let was_full = state.ready.len() >= state.counts.size;
        let is_large_enough = state.ready.front().is_some_and(|part| part.mtu >= mtu);
        let part = if is_large_enough { state.ready.pop_front() } else { None };
        // And so much less when there are few.
        let is_first_of_few =
            8 * state.ready.len() <= state.counts.size && 8 * (state.ready.len() + 1) > state.counts.size;
        let is_of_interest = was_full || is_first_of_few || state.ready.is_empty();
        let is_low = state.ready.len() <= state.low_water && !state.is_filling && state.counts.size > 0;
        state.is_filling |= is_low;
        if is_low || (is_of_interest && part.is_some()) {
            self.wake.notify_one();
        }
        part
    }

    /// Counts what came of making one.
    fn made<T>(&self, result: Result<T, ContainerError>) -> Result<T, ContainerError> {
        let counts = &mut self.lock().counts;
        match &result {
            Ok(_) => counts.made += 1,
            Err(error) => counts.failed(error),
        }
        result
    }

    /// The thread.
    fn run(&self, host: &mut Requests) {
        let mut state = self.lock();
        loop {
            match state.next() {
                Job::Make => {
                    let mtu = state.mtu;
                    drop(state);
                    self.fill(host, mtu);
                    state = self.lock();
                }
                Job::Remove(all) => {
                    drop(state);
                    self.remove(all, host);
                    state = self.lock();
                    state.removing.clear();
                }
                Job::Nothing(None) => {
                    state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Job::Nothing(Some(most)) => {
                    let woken = self.wake.wait_timeout(state, most);
                    state = woken.unwrap_or_else(PoisonError::into_inner).0;
                }
                Job::End => return,
            }
        }
    }

    fn fill(&self, host: &mut Requests, mtu: u16) {
        let made = self.made(self.maker.make(host, mtu));
        let mut state = self.lock();
        match made {
            Ok(part) => {
                (state.patience, state.not_before) = (PATIENCE, None);
                state.ready.push_back(part);
                state.is_filling = state.ready.len() < state.counts.size;
            }
            Err(_) => {
                state.not_before = Some(Instant::now() + state.patience);
                state.patience = (2 * state.patience).min(PATIENCE_MAX);
            }
        }
    }

    fn remove(&self, all: Vec<Ending>, host: &mut Requests) {
        if let Err(error) = part::remove(all, host, &self.maker.names) {
            self.lock().counts.failed(&error);
        }
    }
}

impl State {
    fn next(&mut self) -> Job {
        if self.is_over {
            let ready = self.ready.drain(..).map(|part| Ending::Untaken(Box::new(part)));
            let all: Vec<Ending> = self.ending.drain(..).chain(ready).collect();
            return if all.is_empty() { Job::End } else { Job::Remove(all) };
        }
        let calm = if 8 * self.ready.len() > self.counts.size { CALM } else { CALM_WHEN_FEW };
        let busy = self.taken_at.and_then(|at| calm.checked_sub(at.elapsed()));
        if self.ending.len() >= REMOVED_AT_ONCE || (busy.is_none() && !self.ending.is_empty()) {
            let most = self.ending.len().min(REMOVED_AT_ONCE);
            let all: Vec<Ending> = self.ending.drain(..most).collect();
            self.removing = all.iter().filter_map(Ending::name).collect();
            return Job::Remove(all);
        }
        let busy = busy.filter(|_| !(self.ready.is_empty() && self.ending.is_empty()));
        let to_rest = self.to_rest();
        self.is_filling |= to_rest == Some(Duration::ZERO);
        let failing = self.not_before.and_then(|at| at.checked_duration_since(Instant::now()));
        match (self.is_filling, busy, failing) {
            (true, None, None) => Job::Make,
            (true, ..) => Job::Nothing(busy.max(failing)),
            (false, ..) => Job::Nothing(busy.filter(|_| !self.ending.is_empty()).or(to_rest)),
        }
    }

    /// How long until what was taken is made again; `None` if nothing is missing.
    fn to_rest(&self) -> Option<Duration> {
        let since = self.taken_at.map_or(REST, |at| at.elapsed());
        (self.ready.len() < self.counts.size).then(|| REST.saturating_sub(since))
    }

    /// The number of the namespace that has this name until it is removed.
    fn leaving(&self, name: &str) -> Option<u64> {
        let waiting = self.ending.iter().filter_map(Ending::name);
        let mut all = self.removing.iter().cloned().chain(waiting);
        all.find_map(|(its, inode)| (its == name).then_some(inode))
    }
}

impl Ending {
    fn name(&self) -> Option<(String, u64)> {
        match self {
            Ending::Untaken(_) | Ending::Nameless(_) => None,
            Ending::Taken(taken) => Some((taken.namespace.clone(), taken.inode)),
        }
    }
}

impl PoolCounts {
    fn failed(&mut self, error: &ContainerError) {
        self.failed += 1;
        self.failure = Some(error.to_string());
    }
}
