//! What the engine knows of the endpoints on one port: one place, with a station for each Ethernet address. So a tenant with many addresses
//! (Particle's interface that many functions share) stays connected while they come and go.

use std::collections::BTreeMap;

use peregrine_dataplane::plan::{EndpointPlan, Station};
use peregrine_dataplane::types::EndpointId;

use super::stage::Staged;
use super::types::Origin;
use super::{Endpoint, Model};
use crate::tenants::Coming;

/// Endpoints on one port.
pub const ON_ONE_PORT_MAX: usize = 64;

/// All on one port, who came first before the others.
pub fn in_order<'e>(
    all: impl Iterator<Item = (&'e String, &'e Endpoint)>,
) -> Vec<(&'e String, &'e Endpoint)> {
    let mut all: Vec<_> = all.collect();
    all.sort_by_key(|(name, endpoint)| (endpoint.joined, *name));
    all
}

/// One place for all of them; `None` if there is none.
pub fn together(all: &[(&String, &Endpoint)]) -> Option<(EndpointId, EndpointPlan)> {
    let ((_, first), others) = all.split_first()?;
    let mut plan = first.plan.clone();
    for (_, other) in others {
        let EndpointPlan { name, mac, addresses, .. } = &other.plan;
        if *mac == plan.mac {
            plan.addresses.extend(addresses);
        } else if let Some(station) = plan.more.iter_mut().find(|station| station.mac == *mac) {
            station.addresses.extend(addresses);
        } else {
            plan.more.push(Station { name: name.clone(), mac: *mac, addresses: addresses.clone() });
        }
    }
    Some((first.id, plan))
}

/// What those on one port must say alike, and this one does not.
pub fn disagreement(first: &EndpointPlan, other: &EndpointPlan) -> Option<&'static str> {
    [
        ("network", first.network != other.network),
        ("anti_spoofing", first.anti_spoofing != other.anti_spoofing),
        ("storm_limit", first.storm_limit != other.storm_limit),
        ("announce", first.announce != other.announce),
        ("hairpin", first.hairpin != other.hairpin),
        // A container's interface has one.
        ("mac", first.port.veth().is_some() && first.mac != other.mac),
    ]
    .into_iter()
    .find_map(|(key, differs)| differs.then_some(key))
}

/// The workers know them as the same place. A container's interface has the first one's Ethernet address.
pub fn is_same_place(before: &EndpointPlan, after: &EndpointPlan) -> bool {
    let is_as_made = after.port.veth().is_none() || before.mac == after.mac;
    before.network == after.network && before.port == after.port && is_as_made
}

impl Model {
    /// What is on a port, as the engine and the tenants know it.
    pub fn coming(&self, port: &str) -> Option<Coming> {
        let all = self.on_port(port);
        let (id, plan) = together(&all)?;
        let network = all.first().and_then(|(_, first)| self.networks.get(&first.network));
        Some(Coming::new(id, &plan, network.map(|network| &network.plan)))
    }

    /// The ports that carry something that the control socket declared.
    pub fn ports_in_use(&self) -> impl Iterator<Item = &String> {
        let is_api = |port: &&String| self.on_port(port).iter().any(|(_, it)| it.origin == Origin::Api);
        self.on_ports.keys().filter(is_api)
    }

    /// Those on a port, in order.
    pub fn on_port(&self, port: &str) -> Vec<(&String, &Endpoint)> {
        let names = self.on_ports.get(port).into_iter().flatten();
        in_order(names.filter_map(|name| self.endpoints.get_key_value(name)))
    }
}

/// Those that will be on each port, in order.
pub(super) fn by_port(
    endpoints: &BTreeMap<String, Staged<Endpoint>>,
) -> BTreeMap<String, Vec<(&String, &Endpoint)>> {
    let mut all: BTreeMap<String, Vec<(&String, &Endpoint)>> = BTreeMap::new();
    for (name, staged) in endpoints {
        if let Some(endpoint) = &staged.after {
            all.entry(endpoint.port.clone()).or_default().push((name, endpoint));
        }
    }
    all.into_iter().map(|(port, all)| (port, in_order(all.into_iter()))).collect()
}
