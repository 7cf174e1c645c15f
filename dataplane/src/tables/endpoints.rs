//! What changes in the tables when networks and endpoints come and go: called by the engine on a copy that is then published.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Endpoint, Network, Tables, Uplink, index_vnis};
use crate::plan::{EndpointPlan, NetworkPlan, Plan};
use crate::types::{EndpointId, NetworkId};

impl Tables {
    /// From now on there are these networks as they stand in the plan, new, or gone: with each what stood in its place. They have no
    /// endpoints yet, and no remotes.
    pub fn set_networks(&mut self, changes: &[(NetworkId, Option<NetworkPlan>)], plan: &Plan) {
        if changes.is_empty() {
            return;
        }
        let answers = Arc::make_mut(&mut self.answers);
        self.networks.reach(plan.networks.end());
        for (id, before) in changes {
            before.iter().for_each(|before| answers.forget_network(*id, before));
        }
        for &(id, _) in changes {
            let network = plan.network(id);
            answers.set_network(id, network);
            let network = network.map(|network| Network::new(network, &plan.uplinks, &self.sources));
            self.networks.set(id, network);
        }
        for (uplink, plan_of) in self.uplinks.iter_mut().zip(&plan.uplinks) {
            *uplink = Uplink { cardless: uplink.cardless, ..Uplink::new(plan_of, &plan.networks) };
        }
        self.by_vni = index_vnis(&self.networks, self.secrets);
        self.clamps_mss = plan.networks.values().any(|network| network.clamp_mss);
    }

    /// From now on there are these endpoints, new, others than before, or gone: with each what stood in its place. Its network stays, if
    /// there is one in its place as well.
    pub fn set_endpoints<'p>(
        &mut self,
        changes: impl Iterator<Item = (EndpointId, Option<&'p EndpointPlan>, Option<&'p EndpointPlan>)> + Clone,
        plan: &Plan,
    ) {
        let answers = Arc::make_mut(&mut self.answers);
        for (id, before, now) in changes.clone() {
            if let Some(before) = before {
                answers.let_out(id, before, now.is_some());
            }
        }
        let mut networks = BTreeSet::new();
        for (id, before, now) in changes {
            if let Some(now) = now {
                answers.let_in(id, before, now);
            }
            self.endpoints.set(id, now.map(Endpoint::new));
            networks.extend(now.or(before).map(|endpoint| endpoint.network));
        }
        // A station with the address of a gateway may have come or gone.
        for id in networks {
            let network = plan.network(id).filter(|network| !network.gateways.is_empty());
            if network.is_some() {
                answers.set_network(id, network);
            }
        }
    }
}
