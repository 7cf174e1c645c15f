//! Sockets that could not be opened when they should have been, and are tried again: those of what the control socket declared, at a start
//! (somebody's folder is gone, somebody else listens there) and after a change that was taken back. One of them must not keep the others
//! from their work.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::ops::Bound::{Excluded, Unbounded};

use mio::Registry;
use peregrine_dataplane::plan::PortPlan;
use peregrine_dataplane::types::EndpointId;
use peregrine_memif::SocketAddr;

use super::{Coming, TenantRecord, Tenants, When};
use crate::error::Error;

/// Sockets that one look finds shut at most: the rest is for the next one.
const SHUT_MAX: usize = 64;

/// What waits for its socket.
#[derive(Debug, Default)]
pub struct Later {
    endpoints: BTreeMap<EndpointId, (Coming, TenantRecord)>,
    /// Ports that only hold theirs, the one that was tried last at the end.
    held: VecDeque<(String, PortPlan)>,
    /// Where the last look ended.
    last: Option<EndpointId>,
}

impl Later {
    /// It is not wanted any more; `false` if it did not wait.
    pub fn forget(&mut self, id: EndpointId) -> bool {
        self.endpoints.remove(&id).is_some()
    }

    /// The same of a port's.
    pub fn forget_held(&mut self, plan: &PortPlan) -> bool {
        let is_it = |(_, held): &(String, PortPlan)| held.key() == plan.key();
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
    pub fn add_or_wait(&mut self, registry: &Registry, coming: &Coming) -> Result<(), Error> {
        let added = self.prepare(Some(registry), &[], std::slice::from_ref(coming), When::Again);
        match added {
            Ok(prepared) => {
                self.put(prepared);
                Ok(())
            }
            Err((_, error)) => {
                let record =
                    TenantRecord { last_failure: Some(error.to_string()), ..TenantRecord::default() };
                self.later.endpoints.insert(coming.id, (coming.clone(), record));
                Err(error)
            }
        }
    }

    /// The same of a port: see [`hold`](Self::hold).
    ///
    /// # Errors
    /// Why it waits.
    pub fn hold_or_wait(&mut self, registry: &Registry, name: &str, plan: &PortPlan) -> Result<(), Error> {
        let held = self.hold(registry, name, plan);
        if held.is_err() {
            self.later.held.push_back((name.to_owned(), plan.clone()));
        }
        held
    }

    /// Looks whether what waits can be opened now: a socket once, and a bounded number of them.
    pub fn retry(&mut self, registry: &Registry) {
        let mut shut: HashSet<SocketAddr> = HashSet::new();
        for id in self.later.in_turn() {
            let Some((coming, _)) = self.later.endpoints.get(&id) else { continue };
            // Containers are looked for elsewhere.
            let socket = coming.plan.port.memif().map(|memif| memif.socket.clone());
            if socket.as_ref().is_some_and(|socket| shut.contains(socket)) {
                continue;
            }
            if shut.len() >= SHUT_MAX {
                break;
            }
            let coming = coming.clone();
            self.later.last = Some(id);
            match self.add_or_wait(registry, &coming) {
                Ok(()) => drop(self.later.forget(id)),
                Err(_) => shut.extend(socket),
            }
        }
        self.retry_held(registry);
    }

    fn retry_held(&mut self, registry: &Registry) {
        let mut shut: HashSet<SocketAddr> = HashSet::new();
        for _ in 0..self.later.held.len() {
            let Some((name, plan)) = self.later.held.pop_front() else { return };
            let socket = plan.memif().map(|memif| memif.socket.clone());
            let is_shut =
                socket.as_ref().is_some_and(|socket| shut.contains(socket)) || shut.len() >= SHUT_MAX;
            if is_shut {
                self.later.held.push_back((name, plan));
            } else if self.hold_or_wait(registry, &name, &plan).is_err() {
                shut.extend(socket);
            }
        }
    }
}
