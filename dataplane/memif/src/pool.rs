//! Memory for connections that are to come, made beforehand: a client's largest cost by far, as every page of it is found, cleared and mapped.
//! Used by the client (`memory`); the program makes the pool, and gives it to its clients by [`ClientConfig::pool`](crate::ClientConfig::pool).
//!
//! A thread of its own makes what is wanted. What must hold: a region is used once and never again, so nothing of an earlier connection is ever
//! in it; who takes one never waits for the thread; and an empty pool is no error, for then a region is made as if there were none.

use std::fs::File;
use std::io;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use crate::client::ClientConfig;
use crate::error::HandshakeError;
use crate::memory::Layout;
use crate::region::Mapping;
use crate::sys;

/// After a region that could not be made, the next is tried so much later.
const PAUSE: Duration = Duration::from_secs(1);

/// Regions of one size, made beforehand. Cloned it is the same pool; when the last clone is dropped, what is left in it is given back.
#[derive(Clone, Debug)]
pub struct RegionPool {
    /// Ends the thread when the last of them goes.
    owner: Arc<Owner>,
}

/// How it stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegionPoolStatus {
    /// As many are made.
    pub size: usize,
    /// Bytes of each.
    pub region_bytes: usize,
    /// Those that are there.
    pub ready: usize,
    /// How often one was there.
    pub hits: u64,
    /// How often one was wanted of this kind, and none was there.
    pub misses: u64,
    /// How often one of another kind was wanted.
    pub others: u64,
    /// Why the next could not be made; it is tried again every second.
    pub failure: Option<String>,
}

#[derive(Debug)]
struct Owner(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    kind: Kind,
    state: Mutex<State>,
    /// There may be something to make, or it is over.
    wanted: Condvar,
}

/// What regions must have in common to stand in for each other: all of them are zeros.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Kind {
    bytes: u32,
    forbid_seals: bool,
}

#[derive(Debug, Default)]
struct State {
    ready: Vec<Blank>,
    status: RegionPoolStatus,
    is_over: bool,
}

/// A region that nobody has used: no peer knows it, so what is dropped is gone.
#[derive(Debug)]
pub(crate) struct Blank {
    pub file: Arc<File>,
    pub mapping: Mapping,
}

impl Blank {
    /// Makes one, present.
    pub fn new(bytes: u32, forbid_seals: bool) -> io::Result<Self> {
        let file = Arc::new(sys::sealed_memory(bytes.into())?);
        if forbid_seals {
            sys::forbid_seals(&file)?;
        }
        let mapping = Mapping::present(&file, bytes as usize)?;
        Ok(Self { file, mapping })
    }
}

impl RegionPool {
    /// Starts one of `size` regions for clients of this configuration, as long as servers allow them all rings that they want. When half of them
    /// or fewer are left, as many as are missing are made.
    ///
    /// # Errors
    /// [`HandshakeError::Config`], or [`HandshakeError::Io`] if no thread can be started.
    pub fn start(config: &ClientConfig, size: usize) -> Result<Self, HandshakeError> {
        config.check()?;
        let layout = Layout::of(config);
        Self::of(Kind { bytes: layout.bytes(), forbid_seals: config.forbid_seals }, size)
            .map_err(HandshakeError::io("start a thread that makes memory"))
    }

    fn of(kind: Kind, size: usize) -> io::Result<Self> {
        let status = RegionPoolStatus { size, region_bytes: kind.bytes as usize, ..Default::default() };
        let state = State { status, ..State::default() };
        let shared = Arc::new(Shared { kind, state: Mutex::new(state), wanted: Condvar::new() });
        let maker = Arc::clone(&shared);
        let work = move || {
            // Others of the process take them.
            sys::block_signals();
            maker.make();
        };
        thread::Builder::new().name("memif-pool".to_owned()).stack_size(64 << 10).spawn(work)?;
        Ok(Self { owner: Arc::new(Owner(shared)) })
    }

    /// One of this kind, if there is one. Never waits for one to be made.
    pub(crate) fn take(&self, bytes: u32, forbid_seals: bool) -> Option<Blank> {
        let shared = &self.owner.0;
        let mut state = shared.lock();
        if shared.kind != (Kind { bytes, forbid_seals }) {
            state.status.others += 1;
            return None;
        }
        let taken = state.ready.pop();
        match taken {
            Some(_) => state.status.hits += 1,
            None => state.status.misses += 1,
        }
        if state.is_low() {
            shared.wanted.notify_one();
        }
        taken
    }

    /// How it stands now.
    pub fn status(&self) -> RegionPoolStatus {
        let state = self.owner.0.lock();
        RegionPoolStatus { ready: state.ready.len(), ..state.status.clone() }
    }
}

impl State {
    fn is_low(&self) -> bool {
        self.ready.len() < self.status.size && self.ready.len() <= self.status.size / 2
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes what is missing, until it is over.
    fn make(&self) {
        let mut state = self.lock();
        loop {
            let enough = |state: &mut State| !state.is_over && !state.is_low();
            state = self.wanted.wait_while(state, enough).unwrap_or_else(PoisonError::into_inner);
            while !state.is_over && state.ready.len() < state.status.size {
                drop(state);
                let made = Blank::new(self.kind.bytes, self.kind.forbid_seals);
                state = self.lock();
                match made {
                    Ok(blank) => {
                        state.status.failure = None;
                        state.ready.push(blank);
                    }
                    Err(why) => {
                        state.status.failure = Some(why.to_string());
                        let goes_on = |state: &mut State| !state.is_over;
                        let waited = self.wanted.wait_timeout_while(state, PAUSE, goes_on);
                        state = waited.unwrap_or_else(PoisonError::into_inner).0;
                    }
                }
            }
            if state.is_over {
                return;
            }
        }
    }
}

impl Drop for Owner {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.is_over = true;
        let left = std::mem::take(&mut state.ready);
        drop(state);
        self.0.wanted.notify_one();
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;
    use std::time::Instant;

    use super::*;
    use crate::pair;
    use crate::server::ServerConfig;

    fn config() -> ClientConfig {
        ClientConfig { ring_log2: 5, ..ClientConfig::default() }
    }

    fn until(pool: &RegionPool, ready: usize) -> RegionPoolStatus {
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            let status = pool.status();
            if status.ready >= ready {
                return status;
            }
            assert!(Instant::now() < end, "{status:?}");
            thread::yield_now();
        }
    }

    #[test]
    fn connections_take_from_it_and_it_is_filled_again() {
        let pool = RegionPool::start(&config(), 4).unwrap();
        until(&pool, 4);
        let with_pool = ClientConfig { pool: Some(pool.clone()), ..config() };
        let mut pairs: Vec<_> =
            (0..3).map(|_| pair(with_pool.clone(), ServerConfig::default()).unwrap()).collect();
        let status = until(&pool, 3);
        assert_eq!((status.hits, status.misses, status.others), (3, 0, 0));
        for (client, server) in &mut pairs {
            client.tx[0].push(&[7; 60]).unwrap();
            client.tx[0].flush().unwrap();
            assert_eq!(server.rx[0].pending().unwrap(), 1);
        }
        // Another size is made as if there were none.
        pair(ClientConfig { ring_log2: 6, ..with_pool }, ServerConfig::default()).unwrap();
        assert_eq!(pool.status().others, 1);
    }

    #[test]
    fn an_empty_pool_is_no_error() {
        let pool = RegionPool::start(&config(), 0).unwrap();
        let with_pool = ClientConfig { pool: Some(pool.clone()), ..config() };
        pair(with_pool, ServerConfig::default()).unwrap();
        let status = pool.status();
        assert_eq!((status.ready, status.hits, status.misses), (0, 0, 1));
    }

    #[test]
    fn what_was_taken_never_comes_back() {
        let pool = RegionPool::start(&config(), 2).unwrap();
        let size = until(&pool, 2).region_bytes as u32;
        let mut seen = Vec::new();
        for _ in 0..20 {
            until(&pool, 2);
            let blank = pool.take(size, false).unwrap();
            let file = blank.file.metadata().unwrap();
            assert_eq!((file.len(), file.blocks() * 512 >= u64::from(size)), (size.into(), true), "present");
            // Kept open, so that no number of a file is used twice.
            assert!(!seen.iter().any(|(number, _)| *number == file.ino()));
            seen.push((file.ino(), blank));
        }
    }

    #[test]
    fn a_pool_that_is_dropped_is_over() {
        let pool = RegionPool::start(&config(), 3).unwrap();
        let shared = Arc::downgrade(&pool.owner.0);
        drop(pool);
        let end = Instant::now() + Duration::from_secs(10);
        while shared.strong_count() > 0 {
            assert!(Instant::now() < end, "its thread goes on");
            thread::yield_now();
        }
    }
}
