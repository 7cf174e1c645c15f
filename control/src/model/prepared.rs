//! A change that can be made: what is to be there, and what that means for the engine and the sockets. Made by [`stage`](super::stage).

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use peregrine_dataplane::engine::Change;
use peregrine_dataplane::plan::{NetworkPlan, PortKey, PortPlan};
use peregrine_dataplane::types::EndpointId;
use peregrine_memif::SocketAddr;
use serde_json::Value;

use super::stage::Staged;
use super::types::{Altered, Changed, Kind, Named};
use super::{About, Endpoint, Key, Model, Network, Port, SocketUse, shared};
use crate::tenants::Coming;

/// A change that can be made, as far as the model knows.
#[derive(Debug, Default)]
pub struct Prepared {
    pub(super) networks: BTreeMap<String, Option<Network>>,
    pub(super) ports: BTreeMap<String, Option<Port>>,
    pub(super) endpoints: BTreeMap<String, Option<Endpoint>>,
    pub(super) released: Vec<Key>,
    pub(super) claimed: HashMap<Key, Named>,
    pub(super) sockets: HashMap<SocketAddr, Option<SocketUse>>,
    pub(super) change: Change,
    /// Endpoints that come, in the places that they get.
    pub(super) come: Vec<Coming>,
    /// Endpoints that go before those come, because they are where those will be.
    pub(super) close_first: Vec<Coming>,
    /// Those that stay where they are, with other addresses for their containers: as they were, and as they will be.
    pub(super) refit: Vec<(Coming, Coming)>,
    /// The others that go.
    pub(super) close: Vec<EndpointId>,
    /// Ports that come, with where they were said and their names,
    pub(super) hold: Vec<(String, (String, PortPlan))>,
    /// and those that go. One that becomes another one is both.
    pub(super) release: Vec<(String, PortPlan)>,
    /// Something that is there becomes another one of the same place: what goes, goes before anything comes.
    pub(super) goes_first: bool,
    /// Where those that come, go or change were said.
    paths: Vec<(About, String)>,
    /// What it comes to.
    pub added: Vec<Named>,
    /// What it comes to.
    pub changed: Vec<Named>,
    /// What it comes to.
    pub removed: Vec<Named>,
}

impl Prepared {
    /// Everything is as it was.
    pub fn is_nothing(&self) -> bool {
        self.networks.is_empty() && self.ports.is_empty() && self.endpoints.is_empty()
    }

    /// Where it was said.
    pub(super) fn path_of(&self, about: Option<About>) -> &str {
        let path = self.paths.iter().find(|(it, _)| Some(*it) == about);
        path.map_or("the request", |(_, path)| path.as_str())
    }

    pub(super) fn changed(&self, generation: u64) -> Changed {
        Changed {
            generation,
            added: self.added.clone(),
            changed: self.changed.clone(),
            removed: self.removed.clone(),
        }
    }

    /// The first so many of those that are other than before, with their keys that are. The model is still as it was.
    pub fn altered(&self, model: &Model, most: usize) -> Vec<Altered> {
        let altered = self.changed.iter().take(most).map(|Named { kind, name }| {
            let (before, after) = match kind {
                Kind::Network => {
                    (model.networks.get(name).map(|n| &n.text), text(&self.networks, name, |n| &n.text))
                }
                Kind::Port => (model.ports.get(name).map(|p| &p.text), text(&self.ports, name, |p| &p.text)),
                Kind::Endpoint => {
                    (model.endpoints.get(name).map(|e| &e.text), text(&self.endpoints, name, |e| &e.text))
                }
            };
            Altered { kind: *kind, name: name.clone(), keys: keys(before, after) }
        });
        altered.collect()
    }
}

fn text<'a, T>(
    all: &'a BTreeMap<String, Option<T>>,
    name: &str,
    of: impl Fn(&'a T) -> &'a String,
) -> Option<&'a String> {
    all.get(name)?.as_ref().map(of)
}

/// Of two tables, the keys whose values are not the same.
fn keys(before: Option<&String>, after: Option<&String>) -> Vec<String> {
    let read = |text: Option<&String>| -> BTreeMap<String, Value> {
        text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default()
    };
    let (before, after) = (read(before), read(after));
    let all: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    all.into_iter().filter(|key| before.get(*key) != after.get(*key)).cloned().collect()
}

impl Prepared {
    /// What is there that was not, is other than it was, is gone. Ports that belong to an endpoint are part of it.
    pub(super) fn sum_up(
        &mut self,
        model: &Model,
        networks: &BTreeMap<String, Staged<Network>>,
        ports: &BTreeMap<String, Staged<Port>>,
        endpoints: &BTreeMap<String, Staged<Endpoint>>,
    ) {
        for (name, staged) in networks {
            let before = model.networks.get(name).map(|network| network.text.as_str());
            self.count(Kind::Network, name, before, staged.after.as_ref().map(|n| n.text.as_str()));
        }
        for (name, staged) in ports {
            let before = model.ports.get(name).filter(|port| !port.is_own).map(|port| port.text.as_str());
            let after = staged.after.as_ref().filter(|port| !port.is_own);
            self.count(Kind::Port, name, before, after.map(|port| port.text.as_str()));
        }
        for (name, staged) in endpoints {
            let before = model.endpoints.get(name).map(|endpoint| endpoint.text.as_str());
            self.count(Kind::Endpoint, name, before, staged.after.as_ref().map(|e| e.text.as_str()));
        }
    }

    fn count(&mut self, kind: Kind, name: &str, before: Option<&str>, after: Option<&str>) {
        let list = match (before, after) {
            (None, Some(_)) => &mut self.added,
            (Some(_), None) => &mut self.removed,
            (Some(before), Some(after)) if before != after => &mut self.changed,
            _ => return,
        };
        list.push(Named { kind, name: name.to_owned() });
    }

    /// What the engine and the sockets are to do.
    pub(super) fn order(
        &mut self,
        model: &Model,
        networks: &BTreeMap<String, Staged<Network>>,
        endpoints: &BTreeMap<String, Staged<Endpoint>>,
    ) {
        // Those that go first: who comes may have the same number.
        for (name, staged) in networks {
            let Some(before) = model.networks.get(name) else { continue };
            self.change.networks.push((before.id, None));
            self.paths.push((About::Network(before.id), staged.path.clone()));
        }
        for staged in networks.values() {
            let Some(after) = &staged.after else { continue };
            self.change.networks.push((after.id, Some(after.plan.clone())));
            self.paths.push((About::Network(after.id), staged.path.clone()));
        }
        let gone = self.order_endpoints(model, networks, endpoints);
        let holds: HashSet<PortKey> = self.hold.iter().map(|(_, (_, port))| port.key()).collect();
        let come: HashSet<PortKey> = self.come.iter().map(|coming| coming.plan.port.key()).collect();
        let other_terms = |socket: &SocketAddr| match self.sockets.get(socket) {
            Some(Some(now)) => model.sockets.get(socket).is_some_and(|before| before.terms != now.terms),
            _ => false,
        };
        let is_another = |(_, port): &(String, PortPlan)| holds.contains(&port.key());
        self.goes_first = self.sockets.keys().any(other_terms) || self.release.iter().any(is_another);
        for endpoint in gone {
            let port = &endpoint.plan.port;
            let key = port.key();
            let in_the_way = come.contains(&key) || holds.contains(&key);
            if in_the_way || port.memif().is_some_and(|memif| other_terms(&memif.socket)) {
                self.goes_first |= holds.contains(&key);
                self.close_first.extend(model.coming(&endpoint.port));
            } else {
                self.close.push(endpoint.id);
            }
        }
    }

    /// All on a port are one place of the engine's. Returns those that go, as they were.
    fn order_endpoints<'m>(
        &mut self,
        model: &'m Model,
        networks: &BTreeMap<String, Staged<Network>>,
        endpoints: &BTreeMap<String, Staged<Endpoint>>,
    ) -> Vec<&'m Endpoint> {
        let after = shared::by_port(endpoints);
        let stay: HashSet<EndpointId> = after.values().flatten().map(|(_, endpoint)| endpoint.id).collect();
        let mut gone: BTreeMap<EndpointId, &Endpoint> = BTreeMap::new();
        for (name, staged) in endpoints {
            let Some(before) = model.endpoints.get(name).filter(|before| !stay.contains(&before.id)) else {
                continue;
            };
            if gone.insert(before.id, before).is_none() {
                self.change.endpoints.push((before.id, None));
                self.paths.push((About::Endpoint(before.id), staged.path.clone()));
            }
        }
        let known: HashSet<EndpointId> =
            endpoints.keys().filter_map(|name| model.endpoints.get(name)).map(|before| before.id).collect();
        for all in after.values() {
            let Some((id, plan)) = shared::together(all) else { continue };
            let network = all.first().and_then(|(_, first)| network_of(model, networks, &first.network));
            let path =
                all.iter().find_map(|(name, _)| endpoints.get(*name)).map(|staged| staged.path.clone());
            self.paths.extend(path.map(|path| (About::Endpoint(id), path)));
            let coming = Coming::new(id, &plan, network);
            if !known.contains(&id) {
                self.come.push(coming);
            } else if let Some(before) =
                all.iter().find_map(|(name, _)| model.endpoints.get(*name).filter(|before| before.id == id))
            {
                let before = shared::together(&model.on_port(&before.port));
                let before = before.map(|(_, plan)| Coming::new(id, &plan, network));
                self.refit.extend(
                    before.filter(|before| before.link != coming.link).map(|before| (before, coming)),
                );
            }
            self.change.endpoints.push((id, Some(plan)));
        }
        gone.into_values().collect()
    }

    /// Ports are there without endpoints, too.
    pub(super) fn order_ports(&mut self, model: &Model, ports: &BTreeMap<String, Staged<Port>>) {
        for (name, staged) in ports {
            let before = model.ports.get(name).filter(|port| !port.is_own);
            self.release.extend(before.map(|port| (name.clone(), port.plan.clone())));
            let after = staged.after.as_ref().filter(|port| !port.is_own);
            self.hold.extend(after.map(|port| (staged.path.clone(), (name.clone(), port.plan.clone()))));
        }
    }
}

/// As it is to be.
fn network_of<'m>(
    model: &'m Model,
    staged: &'m BTreeMap<String, Staged<Network>>,
    name: &str,
) -> Option<&'m NetworkPlan> {
    let network = match staged.get(name) {
        Some(staged) => staged.after.as_ref(),
        None => model.networks.get(name),
    };
    network.map(|network| &network.plan)
}
