//! Which worker serves how many tenants, in all and of each network: counted, so that a tenant that comes or goes costs the same
//! however many there are.

use std::collections::HashMap;

use crate::plan::Plan;
use crate::types::{EndpointId, NetworkId, WorkerId};

/// By worker.
type Counts = [u32; WorkerId::LIMIT + 1];

/// See the [module documentation](self).
#[derive(Debug)]
pub(super) struct Homes {
    /// By endpoint: what it counts for.
    counted: Vec<Option<(WorkerId, NetworkId)>>,
    all: Counts,
    /// Those with tenants.
    networks: HashMap<NetworkId, Counts>,
}

impl Homes {
    pub(super) fn new(plan: &Plan) -> Homes {
        Homes {
            counted: vec![None; plan.endpoints_max()],
            all: [0; WorkerId::LIMIT + 1],
            networks: HashMap::new(),
        }
    }

    /// The endpoint's tenant is served there now, or there is none. The network that it counted for before.
    pub(super) fn set(
        &mut self,
        endpoint: EndpointId,
        now: Option<(WorkerId, NetworkId)>,
    ) -> Option<NetworkId> {
        let place = self.counted.get_mut(endpoint.index())?;
        let before = std::mem::replace(place, now);
        if let Some((worker, network)) = now {
            add(&mut self.all, worker, 1);
            add(self.networks.entry(network).or_insert([0; WorkerId::LIMIT + 1]), worker, 1);
        }
        let (worker, network) = before?;
        add(&mut self.all, worker, -1);
        if let Some(counts) = self.networks.get_mut(&network) {
            add(counts, worker, -1);
            if *counts == [0; WorkerId::LIMIT + 1] {
                self.networks.remove(&network);
            }
        }
        Some(network)
    }

    /// How many tenants a worker serves.
    pub(super) fn tenants(&self, worker: WorkerId) -> u32 {
        self.all.get(worker.index()).copied().unwrap_or(0)
    }

    /// How many tenants of a network there are.
    pub(super) fn tenants_of(&self, network: NetworkId) -> u32 {
        self.networks.get(&network).map_or(0, |counts| counts.iter().sum())
    }

    /// The workers that serve any, a bit each.
    pub(super) fn serving(&self) -> u32 {
        bits(&self.all)
    }

    /// Those that serve some of a network.
    pub(super) fn present(&self, network: NetworkId) -> u32 {
        self.networks.get(&network).map_or(0, bits)
    }
}

fn add(counts: &mut Counts, worker: WorkerId, change: i32) {
    if let Some(count) = counts.get_mut(worker.index()) {
        *count = count.saturating_add_signed(change);
    }
}

fn bits(counts: &Counts) -> u32 {
    counts.iter().enumerate().filter(|(_, count)| **count > 0).fold(0, |bits, (worker, _)| bits | 1 << worker)
}
