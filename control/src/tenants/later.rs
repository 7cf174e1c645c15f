//! Sockets that could not be opened when they should have been, and are tried again: those of what the control socket declared, at a start
//! (somebody's folder is gone, somebody else listens there) and after a change that was taken back. One of them must not keep the others
//! from their work.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use mio::Registry;
use peregrine_dataplane::plan::{EndpointPlan, MemifPlan};
use peregrine_dataplane::types::EndpointId;
use peregrine_memif::SocketAddr;

use super::{TenantRecord, Tenants};
use crate::error::Error;

/// Sockets that one look finds shut at most: the rest is for the next one.
const SHUT_MAX: usize = 64;

/// What waits for its socket.
#[derive(Debug, Default)]
pub struct Later {
    endpoints: BTreeMap<EndpointId, (EndpointPlan, TenantRecord)>,
    /// Ports that only hold theirs, the one that was tried last at the end.
    held: VecDeque<MemifPlan>,
    /// Where the last look ended.
    last: Option<EndpointId>,
}

impl Later {
    /// It is not wanted any more; `false` if it did not wait.
    pub fn forget(&mut self, id: EndpointId) -> bool {
        self.endpoints.remove(&id).is_some()
    }

    /// The same of a port's.
    pub fn forget_held(&mut self, memif: &MemifPlan) -> bool {
        let is_it = |held: &MemifPlan| held.socket == memif.socket && held.id == memif.id;
        self.held.iter().position(is_it).and_then(|place| self.held.remove(place)).is_some()
    }

    /// Of an endpoint that waits: why.
    pub fn record(&self, id: EndpointId) -> Option<&TenantRecord> {
        self.endpoints.get(&id).map(|(_, record)| record)
    }

    /// Those that wait, from the one after the last on.
    fn in_turn(&self) -> Vec<EndpointId> {
        let last = self.last.unwrap_or(EndpointId(u16::MAX));
        let after = self.endpoints.range((Excluded(last), Unbounded));
        after.chain(self.endpoints.range(..=last)).map(|(id, _)| *id).collect()
    }
}

impl Tenants {
    /// An endpoint that comes; if that cannot be now, it is tried again with each [`retry`](Self::retry) until it
    /// [goes](Self::change).
    ///
    /// # Errors
    /// Why it waits.
    pub fn add_or_wait(
        &mut self,
        registry: &Registry,
        id: EndpointId,
        plan: &EndpointPlan,
    ) -> Result<(), Error> {
        let added = self.prepare(Some(registry), &[], [(id, plan)].into_iter());
        match added {
            Ok(prepared) => {
                self.put(prepared);
                Ok(())
            }
            Err((_, error)) => {
                let record =
                    TenantRecord { last_failure: Some(error.to_string()), ..TenantRecord::default() };
                self.later.endpoints.insert(id, (plan.clone(), record));
                Err(error)
            }
        }
    }

    /// The same of a port's socket: see [`hold`](Self::hold).
    ///
    /// # Errors
    /// Why it waits.
    pub fn hold_or_wait(&mut self, registry: &Registry, memif: &MemifPlan) -> Result<(), Error> {
        let held = self.hold(registry, memif);
        if held.is_err() {
            self.later.held.push_back(memif.clone());
        }
        held
    }

    /// Looks whether what waits can be opened now: a socket once, and a bounded number of them.
    pub fn retry(&mut self, registry: &Registry) {
        let mut shut: HashSet<SocketAddr> = HashSet::new();
        for id in self.later.in_turn() {
            let Some((plan, _)) = self.later.endpoints.get(&id) else { continue };
            if shut.contains(&plan.memif.socket) {
                continue;
            }
            if shut.len() >= SHUT_MAX {
                break;
            }
            let plan = plan.clone();
            self.later.last = Some(id);
            match self.add_or_wait(registry, id, &plan) {
                Ok(()) => drop(self.later.forget(id)),
                Err(_) => drop(shut.insert(plan.memif.socket)),
            }
        }
        self.retry_held(registry);
    }

    fn retry_held(&mut self, registry: &Registry) {
        let mut shut: HashSet<SocketAddr> = HashSet::new();
        for _ in 0..self.later.held.len() {
            let Some(memif) = self.later.held.pop_front() else { return };
            let is_shut = shut.contains(&memif.socket) || shut.len() >= SHUT_MAX;
            if is_shut {
                self.later.held.push_back(memif);
            } else if self.hold_or_wait(registry, &memif).is_err() {
                shut.insert(memif.socket);
            }
        }
    }
}
