//! What a change is made in while the daemon runs: the engine, and the tenants' sockets.

use std::time::Instant;

use mio::Registry;
use peregrine_dataplane::engine::{Change, ChangeError, Engine};
use peregrine_dataplane::plan::{MemifRole, Plan, PortPlan};
use peregrine_dataplane::types::{EndpointId, NetworkId};

use super::{About, Runtime};
use crate::tenants::{Coming, Tenants};

/// See the [module documentation](self).
#[derive(Debug)]
pub struct Live<'d> {
    /// The workers.
    pub engine: &'d mut Engine,
    /// The tenants' sockets.
    pub tenants: &'d mut Tenants,
    /// Where these are watched.
    pub registry: &'d Registry,
    /// The time.
    pub now: Instant,
}

impl Runtime for Live<'_> {
    fn vacant_networks(&self, count: usize) -> Vec<NetworkId> {
        self.engine.vacant_networks().take(count).collect()
    }

    fn vacant_endpoints(&self, count: usize) -> Vec<EndpointId> {
        self.engine.vacant_endpoints().take(count).collect()
    }

    fn swap(&mut self, go: &[EndpointId], come: &[Coming]) -> Result<(), (usize, String)> {
        if let Some(index) = come.iter().position(|coming| may_be_unsealed(&coming.plan.port)) {
            // As at the start: its tenant could take memory away under a worker.
            peregrine_memif::guard_memory()
                .map_err(|error| (index, format!("cannot handle SIGBUS: {error}")))?;
        }
        let Live { engine, tenants, registry, now } = self;
        let swapped = tenants.change(registry, go, come, *now, *engine);
        swapped.map_err(|(index, error)| (index, error.to_string()))
    }

    fn refit(&mut self, coming: &Coming) -> Result<(), String> {
        self.tenants.refit(coming)
    }

    fn hold(&mut self, name: &str, port: &PortPlan) -> Result<(), String> {
        self.tenants.hold(self.registry, name, port).map_err(|error| error.to_string())
    }

    fn release(&mut self, port: &PortPlan) {
        self.tenants.release(port, self.now, self.engine);
    }

    fn attach(&mut self, come: &[Coming]) {
        self.tenants.attach(come.iter().map(|coming| coming.id), self.now, self.engine);
    }

    fn restore(&mut self, go: &[EndpointId], come: &[Coming], hold: &[(String, PortPlan)]) -> Option<String> {
        let mut failed = None;
        self.tenants.remove(go, self.now, self.engine);
        for (name, port) in hold {
            failed = self.tenants.hold_or_wait(self.registry, name, port).err().or(failed);
        }
        // One by one if not together.
        if self.swap(&[], come).is_err() {
            for coming in come {
                failed = self.tenants.add_or_wait(self.registry, coming).err().or(failed);
            }
        }
        failed.map(|error| format!("{error}: tried again every second"))
    }

    fn check(&self, change: &Change) -> Result<(), (Option<About>, String)> {
        self.engine
            .check_change(change)
            .map_err(|error| (about(&error, self.engine.plan()), error.to_string()))
    }

    fn change(&mut self, change: Change) -> Result<(), (Option<About>, String)> {
        self.engine.change(change).map_err(|error| (about(&error, self.engine.plan()), error.to_string()))
    }
}

/// Its tenant may keep its memory unsealed.
pub fn may_be_unsealed(port: &PortPlan) -> bool {
    port.memif().is_some_and(|memif| matches!(memif.role, MemifRole::Server { allow_unsealed: true, .. }))
}

fn about(error: &ChangeError, plan: &Plan) -> Option<About> {
    Some(match error {
        ChangeError::EndpointPlace(id)
        | ChangeError::NoSuchNetwork(id)
        | ChangeError::Mac(id, _)
        | ChangeError::Fixed(id, _)
        | ChangeError::StationsFull { endpoint: id, .. }
        | ChangeError::FdbFull(id, _) => About::Endpoint(*id),
        ChangeError::NetworkPlace(id)
        | ChangeError::NotEmpty(id)
        | ChangeError::Remote(id, _)
        | ChangeError::FixedBehind(id, _)
        | ChangeError::FixedFull(id)
        | ChangeError::Local(id, _)
        | ChangeError::Mtu { network: id, .. }
        | ChangeError::FdbLimit { network: id, .. } => About::Network(*id),
        ChangeError::Ruled(rule) => {
            let rule = plan.classes.rules.get(*rule)?;
            rule.endpoint.map(About::Endpoint).or(rule.network.map(About::Network))?
        }
        ChangeError::Vni(_) | ChangeError::Steering(_) => return None,
    })
}
