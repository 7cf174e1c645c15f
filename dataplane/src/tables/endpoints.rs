//! What changes in the tables when networks and endpoints come and go: called by the engine on a copy that is then published.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Endpoint, Network, Tables, Uplink, index_vnis};
use crate::plan::{EndpointPlan, Plan};
use crate::types::{EndpointId, NetworkId};

impl Tables {
    /// From now on there are these networks as they stand in the plan, new, or gone. They have no endpoints yet, and no remotes.
    pub fn set_networks(&mut self, ids: &[NetworkId], plan: &Plan) {
        if ids.is_empty() {
            return;
        }
        let answers = Arc::make_mut(&mut self.answers);
        self.networks.reach(plan.networks.end());
        answers.forget_networks(ids);
        for &id in ids {
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
        for (id, before, _) in changes.clone() {
            if let Some(before) = before {
                answers.let_out(id, before);
            }
        }
        let comes = changes.clone().filter(|(_, _, now)| now.is_some());
        self.endpoints.reach(comes.map(|(id, _, _)| id.index() + 1).max().unwrap_or(0));
        let mut come: BTreeMap<NetworkId, Vec<EndpointId>> = BTreeMap::new();
        for (id, before, now) in changes {
            if let Some(now) = now {
                answers.let_in(id, now);
            }
            self.endpoints.set(id, now.map(Endpoint::new));
            let Some(network) = before.or(now).map(|endpoint| endpoint.network) else { continue };
            let come = come.entry(network).or_default();
            come.extend(before.is_none().then_some(id));
        }
        for (id, come) in come {
            let Some(network) = self.networks.get_mut(id) else { continue };
            let stays = |endpoint: &EndpointId| self.endpoints.is_there(*endpoint);
            let stay = network.endpoints.iter().copied().filter(stays);
            network.endpoints = stay.chain(come).collect();
            // A station with the address of a gateway may have come or gone.
            if plan.network(id).is_some_and(|network| !network.gateways.is_empty()) {
                answers.set_network(id, plan.network(id));
            }
        }
    }
}
