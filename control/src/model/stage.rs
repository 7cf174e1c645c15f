//! A change before it is made: its steps read and checked one after the other, each seeing those before it; then everything that counts
//! only at the end: who has which address, which port carries what, which places are taken. The model stays as it is meanwhile.

use std::cell::Cell;
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use peregrine_config::{Carrier, Checker, ConfigError, DeclaredEndpoint, Networks, port_unfit};
use peregrine_dataplane::plan::{ClassesPlan, Plan, PortKey};
use peregrine_dataplane::types::{EndpointId, NetworkId};
use peregrine_memif::SocketAddr;
use serde_json::Value;

use super::prepared::Prepared;
use super::types::{Kind, Named, Origin};
use super::written::{self, Secrets};
use super::{Endpoint, Key, Model, Network, Port, Runtime, SocketUse, Terms, shared};

/// Steps of a `change`.
const STEPS: &str = "add_network, set_network, remove_network, add_port, set_port, remove_port, add_endpoint, set_endpoint, remove_endpoint or move_endpoint";

/// The steps so far.
#[derive(Debug)]
pub struct Stage<'m, 'p> {
    model: &'m Model,
    classes: &'p ClassesPlan,
    checker: Checker<'p>,
    networks: BTreeMap<String, Staged<Network>>,
    ports: BTreeMap<String, Staged<Port>>,
    endpoints: BTreeMap<String, Staged<Endpoint>>,
    steps: usize,
    /// What the first mistake is against.
    against: Cell<Option<Against>>,
}

/// What an object is to be; `None`: gone.
#[derive(Debug)]
pub(super) struct Staged<T> {
    pub(super) after: Option<T>,
    /// Where that was said.
    pub(super) path: String,
    /// In which step.
    step: usize,
}

/// What takes what may be had once.
#[derive(Clone, Copy)]
enum Taker<'s> {
    Network(&'s str, &'s Staged<Network>),
    Port(&'s str, &'s Staged<Port>),
    Endpoint(&'s Staged<Endpoint>),
}

impl Networks for Stage<'_, '_> {
    fn find(&self, name: &str) -> Option<(NetworkId, u16)> {
        self.network(name).map(|network| (network.id, network.plan.mtu))
    }

    fn names(&self) -> Vec<String> {
        let staged = self.networks.iter().filter(|(_, staged)| staged.after.is_some()).map(|(name, _)| name);
        let there = self.model.networks.keys().filter(|name| !self.networks.contains_key(*name));
        there.chain(staged).cloned().collect()
    }
}

/// A key without a value is as good as one left out.
fn without_nulls(value: &mut Value) {
    if let Value::Object(map) = value {
        if map.values().any(Value::is_null) {
            map.retain(|_, value| !value.is_null());
        }
        map.values_mut().for_each(without_nulls);
    }
}

impl<'m, 'p> Stage<'m, 'p> {
    /// Nothing yet. `plan` is the config's: what it says of uplinks, classes and the control socket counts for all.
    pub fn new(model: &'m Model, plan: &'p Plan) -> Stage<'m, 'p> {
        Stage {
            model,
            classes: &plan.classes,
            checker: Checker::new(plan),
            networks: BTreeMap::new(),
            ports: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            steps: 0,
            against: Cell::new(None),
        }
    }

    fn network(&self, name: &str) -> Option<&Network> {
        match self.networks.get(name) {
            Some(staged) => staged.after.as_ref(),
            None => self.model.networks.get(name),
        }
    }

    fn port(&self, name: &str) -> Option<&Port> {
        match self.ports.get(name) {
            Some(staged) => staged.after.as_ref(),
            None => self.model.ports.get(name),
        }
    }

    fn endpoint(&self, name: &str) -> Option<&Endpoint> {
        match self.endpoints.get(name) {
            Some(staged) => staged.after.as_ref(),
            None => self.model.endpoints.get(name),
        }
    }

    fn staged<T>(&mut self, path: &str, after: Option<T>) -> Staged<T> {
        self.steps += 1;
        Staged { after, path: path.to_owned(), step: self.steps }
    }

    fn refuse(&self, path: impl Into<String>, got: &str, why: String) {
        let got = if got.is_empty() { String::new() } else { show(got) };
        self.checker.report(ConfigError::Refused { key: path.into(), got, why });
    }

    /// What is reported next, if it is the first, is against this.
    fn is_against(&self, what: Against) {
        if self.checker.is_clean() {
            self.against.set(Some(what));
        }
    }

    /// One step of a `change`.
    pub fn step(&mut self, path: &str, given: Value) {
        let one = match given {
            Value::Object(map) if map.len() == 1 => map.into_iter().next(),
            _ => None,
        };
        let Some((what, mut given)) = one else {
            return self.refuse(path, "", format!("must be a table with one of the keys {STEPS}"));
        };
        without_nulls(&mut given);
        let at = format!("{path}.{what}");
        match what.as_str() {
            "add_network" => self.declare_network(&at, given, true),
            "set_network" => self.declare_network(&at, given, false),
            "remove_network" => self.remove(&at, &given, Kind::Network),
            "add_port" => self.declare_port(&at, given, true),
            "set_port" => self.declare_port(&at, given, false),
            "remove_port" => self.remove(&at, &given, Kind::Port),
            "add_endpoint" => self.declare_endpoint(&at, given, true),
            "set_endpoint" => self.declare_endpoint(&at, given, false),
            "remove_endpoint" => self.remove(&at, &given, Kind::Endpoint),
            "move_endpoint" => self.move_endpoint(&at, &given),
            _ => self.refuse(path, "", format!("must be a table with one of the keys {STEPS}")),
        }
    }

    /// Everything that the control socket declared is to go.
    pub fn clear(&mut self) {
        let api = |origin: Origin| origin == Origin::Api;
        let model = self.model;
        for (name, _) in model.endpoints.iter().filter(|(_, e)| api(e.origin)) {
            self.stage_endpoint(name, "endpoints", None);
        }
        for (name, _) in model.ports.iter().filter(|(_, p)| api(p.origin) && !p.is_own) {
            let staged = self.staged("ports", None);
            self.ports.insert(name.clone(), staged);
        }
        for (name, _) in model.networks.iter().filter(|(_, n)| api(n.origin)) {
            let staged = self.staged("networks", None);
            self.networks.insert(name.clone(), staged);
        }
    }

    /// An object that is to be there. `path` is where it stands.
    pub fn declare(&mut self, kind: Kind, path: &str, mut given: Value) {
        without_nulls(&mut given);
        match kind {
            Kind::Network => self.declare_network(path, given, true),
            Kind::Port => self.declare_port(path, given, true),
            Kind::Endpoint => self.declare_endpoint(path, given, true),
        }
    }

    /// Whether an object can become another one: one that is new must not be there yet, any other must, and must be the control socket's.
    fn may(&self, path: &str, kind: Kind, name: &str, is_new: bool, there: Option<Origin>) -> bool {
        let what = kind.name();
        let why = match (is_new, there) {
            (true, None) | (false, Some(Origin::Api)) => return true,
            (true, Some(Origin::Config)) => {
                self.is_against(Against::Config);
                format!("the config has a {what} of this name")
            }
            (true, Some(Origin::Api)) => format!("there is a {what} of this name already"),
            (false, None) => format!("there is no {what} of this name"),
            (false, Some(Origin::Config)) => {
                format!("{what} {name} is the config's: change it there and restart")
            }
        };
        self.refuse(path, name, why.replace("a endpoint", "an endpoint"));
        false
    }

    fn declare_network(&mut self, path: &str, given: Value, is_new: bool) {
        let Some(plan) = self.checker.network(path, given) else { return };
        let there = self.network(&plan.name).map(|network| network.origin);
        if !self.may(&format!("{path}.name"), Kind::Network, &plan.name, is_new, there) {
            return;
        }
        let text = written::text(&written::network(&plan, self.classes));
        let name = plan.name.clone();
        let network =
            Network { origin: Origin::Api, id: NEW_NETWORK, plan, endpoints: BTreeSet::new(), text };
        let staged = self.staged(path, Some(network));
        self.networks.insert(name, staged);
    }

    fn declare_port(&mut self, path: &str, given: Value, is_new: bool) {
        let Some(port) = self.checker.port(path, given) else { return };
        let there = self.port(&port.name).map(|port| (port.origin, port.is_own));
        let at = format!("{path}.name");
        if let Some((Origin::Api, true)) = there {
            let why = "it is an endpoint's own: change the endpoint".to_owned();
            return self.refuse(at, &port.name, why);
        }
        if !self.may(&at, Kind::Port, &port.name, is_new, there.map(|(origin, _)| origin)) {
            return;
        }
        let text = written::text(&written::port(&port.name, &port.plan, Secrets::Shown));
        let staged = Some(Port { origin: Origin::Api, is_own: false, plan: port.plan, text });
        let staged = self.staged(path, staged);
        self.ports.insert(port.name, staged);
    }

    fn declare_endpoint(&mut self, path: &str, given: Value, is_new: bool) {
        // The name of its network is for us: the checker gives its place.
        let network = given.get("network").and_then(Value::as_str).unwrap_or_default().to_owned();
        let was_clean = self.checker.is_clean();
        let Some(declared) = self.checker.endpoint(path, given, self) else {
            if was_clean && !network.is_empty() && self.network(&network).is_none() {
                self.against.set(Some(Against::Gone));
            }
            return;
        };
        let there = self.endpoint(&declared.name).map(|endpoint| endpoint.origin);
        if !self.may(&format!("{path}.name"), Kind::Endpoint, &declared.name, is_new, there) {
            return;
        }
        self.put_endpoint(path, &declared, network);
    }

    fn put_endpoint(&mut self, path: &str, declared: &DeclaredEndpoint, network: String) {
        let name = &declared.name;
        let (port, carrier) = match &declared.carrier {
            Carrier::Port(port) => match self.port(port) {
                Some(there) if there.is_own && port != name => {
                    let why = format!("it is endpoint {port}'s own: declare a port that both are on");
                    return self.refuse(format!("{path}.port"), port, why);
                }
                Some(there) => (Some(port.clone()), there.plan.clone()),
                None => {
                    self.is_against(Against::Gone);
                    return self.refuse(
                        format!("{path}.port"),
                        port,
                        "there is no port of this name".to_owned(),
                    );
                }
            },
            Carrier::Own(carrier) => (None, carrier.clone()),
        };
        if port.is_none() && self.port(name).is_some_and(|port| !port.is_own) {
            let why = format!(
                "its port would have the endpoint's name, and there is a port {name} already: name another, or say port = {name:?}"
            );
            if self.port(name).is_some_and(|port| port.origin == Origin::Config) {
                self.is_against(Against::Config);
            }
            return self.refuse(format!("{path}.{}", written::kind(&carrier)), "", why);
        }
        let plan = declared.plan(carrier);
        let text = written::text(&written::endpoint(&plan, &network, port.as_deref(), Secrets::Shown));
        let is_own = port.is_none();
        let carrier = plan.port.clone();
        let endpoint = Endpoint {
            origin: Origin::Api,
            id: NEW_ENDPOINT,
            joined: self.joined(name, port.as_deref().unwrap_or(name)),
            network,
            port: port.unwrap_or_else(|| name.clone()),
            plan,
            text,
        };
        self.stage_endpoint(name, path, Some(endpoint));
        if is_own {
            let own = Port { origin: Origin::Api, is_own: true, plan: carrier, text: String::new() };
            let staged = self.staged(path, Some(own));
            self.ports.insert(name.clone(), staged);
        }
    }

    /// When it came to this port, or comes now.
    fn joined(&self, name: &str, port: &str) -> u64 {
        let before = self.model.endpoints.get(name).filter(|before| before.port == port);
        let now = ((self.model.generation + 1) << STEP_BITS) + self.steps as u64;
        before.map_or(now, |before| before.joined)
    }

    /// An endpoint as it is to be; a port of its own goes, until it has one again.
    fn stage_endpoint(&mut self, name: &str, path: &str, after: Option<Endpoint>) {
        if self.port(name).is_some_and(|port| port.is_own) {
            let staged = self.staged(path, None);
            self.ports.insert(name.to_owned(), staged);
        }
        let staged = self.staged(path, after);
        self.endpoints.insert(name.to_owned(), staged);
    }

    fn move_endpoint(&mut self, path: &str, given: &Value) {
        let text = |key: &str| given.get(key).and_then(Value::as_str);
        let is_short = given.as_object().is_some_and(|map| map.len() == 2);
        let (Some(name), Some(port), true) = (text("name"), text("port"), is_short) else {
            return self.refuse(path, "", "must be a table with the keys name and port".to_owned());
        };
        let there = self.endpoint(name).map(|endpoint| endpoint.origin);
        if !self.may(&format!("{path}.name"), Kind::Endpoint, name, false, there) {
            return;
        }
        let Some(endpoint) = self.endpoint(name) else { return };
        let declared = DeclaredEndpoint {
            name: name.to_owned(),
            network: endpoint.plan.network,
            mac: endpoint.plan.mac,
            addresses: endpoint.plan.addresses.clone(),
            anti_spoofing: endpoint.plan.anti_spoofing,
            storm_limit: endpoint.plan.storm_limit,
            announce: endpoint.plan.announce,
            hairpin: endpoint.plan.hairpin,
            carrier: Carrier::Port(port.to_owned()),
        };
        let network = endpoint.network.clone();
        self.put_endpoint(path, &declared, network);
    }

    fn remove(&mut self, path: &str, given: &Value, kind: Kind) {
        let Some(name) = given.as_str() else {
            return self.refuse(
                path,
                "",
                format!("must be the name of a {}", kind.name()).replace("a e", "an e"),
            );
        };
        let there = match kind {
            Kind::Network => self.network(name).map(|network| network.origin),
            Kind::Port => self.port(name).map(|port| port.origin),
            Kind::Endpoint => self.endpoint(name).map(|endpoint| endpoint.origin),
        };
        if !self.may(path, kind, name, false, there) {
            return;
        }
        match kind {
            Kind::Endpoint => self.stage_endpoint(name, path, None),
            Kind::Network => {
                let staged = self.staged(path, None);
                self.networks.insert(name.to_owned(), staged);
            }
            Kind::Port if self.port(name).is_some_and(|port| port.is_own) => {
                self.refuse(path, name, "it is an endpoint's own, and goes with it".to_owned());
            }
            Kind::Port => {
                let staged = self.staged(path, None);
                self.ports.insert(name.to_owned(), staged);
            }
        }
    }

    /// What all the steps come to.
    ///
    /// # Errors
    /// All mistakes, one line each.
    pub fn finish(mut self, runtime: &impl Runtime) -> Result<Prepared, Mistaken> {
        if self.checker.is_clean() {
            self.settle_networks(runtime);
            self.settle_ports();
            self.settle_endpoints(runtime);
        }
        let mut prepared = Prepared::default();
        if self.checker.is_clean() {
            self.hold(&mut prepared);
            self.share(&mut prepared);
        }
        let Stage { model, checker, networks, ports, endpoints, against, .. } = self;
        if let Err(errors) = checker.finish("") {
            let lines = errors.list().iter().map(ToString::to_string).collect();
            return Err(Mistaken { lines, unlisted: errors.unlisted(), against: against.get() });
        }
        prepared.sum_up(model, &networks, &ports, &endpoints);
        prepared.order_ports(model, &ports);
        prepared.order(model, &networks, &endpoints);
        prepared.networks = networks.into_iter().map(|(name, staged)| (name, staged.after)).collect();
        prepared.ports = ports.into_iter().map(|(name, staged)| (name, staged.after)).collect();
        prepared.endpoints = endpoints.into_iter().map(|(name, staged)| (name, staged.after)).collect();
        Ok(prepared)
    }

    /// A network that becomes another one gets another place, and so do the endpoints on it.
    fn settle_networks(&mut self, runtime: &impl Runtime) {
        let model = self.model;
        self.networks.retain(|name, staged| {
            let (before, after) = (model.networks.get(name), staged.after.as_ref());
            before.map(|network| &network.text) != after.map(|network| &network.text)
        });
        let needed = self.networks.values().filter(|staged| staged.after.is_some()).count();
        let mut places = runtime.vacant_networks(needed).into_iter();
        let mut along = Vec::new();
        for (name, staged) in &mut self.networks {
            let before = model.networks.get(name);
            match &mut staged.after {
                Some(network) => match places.next() {
                    Some(place) => network.id = place,
                    None => self.checker.report(no_place(&staged.path, "network", "networks")),
                },
                None => {
                    let stay = |name: &&String| !self.endpoints.contains_key(*name);
                    if let Some(such) = before.and_then(|before| before.endpoints.iter().find(stay)) {
                        let why = format!(
                            "endpoints are on it, such as {such}: remove them first, or in the same change"
                        );
                        let (key, got) = (staged.path.clone(), show(name));
                        self.checker.report(ConfigError::Refused { key, got, why });
                    }
                    continue;
                }
            }
            let on_it = before.into_iter().flat_map(|before| &before.endpoints);
            along.extend(on_it.map(|name| (name, staged.path.clone())));
        }
        self.take_along(along);
    }

    /// Endpoints that are as they were, but not where.
    fn take_along(&mut self, names: Vec<(&'m String, String)>) {
        for (name, path) in names {
            if !self.endpoints.contains_key(name)
                && let Some(endpoint) = self.model.endpoints.get(name)
            {
                // Before the others: what it has, it keeps.
                let staged = Staged { after: Some(endpoint.clone()), path, step: 0 };
                self.endpoints.insert(name.clone(), staged);
            }
        }
    }

    fn settle_ports(&mut self) {
        let model = self.model;
        self.ports.retain(|name, staged| match (model.ports.get(name), &staged.after) {
            (Some(before), Some(after)) => {
                before.plan != after.plan || before.is_own != after.is_own || before.text != after.text
            }
            (None, None) => false,
            _ => true,
        });
        let mut along = Vec::new();
        for (name, staged) in &self.ports {
            let carried = model.on_ports.get(name).into_iter().flatten();
            let mut carried = carried.filter(|endpoint| !self.endpoints.contains_key(*endpoint));
            if staged.after.is_some() {
                along.extend(carried.map(|endpoint| (endpoint, staged.path.clone())));
            } else if let Some(carried) = carried.next() {
                let why = format!("it carries endpoint {carried}: remove that first, or move it");
                self.refuse(staged.path.clone(), name, why);
            }
        }
        self.take_along(along);
        self.take_mates();
    }

    /// Those that share a port with one that comes, goes or changes: the engine knows them as one.
    fn take_mates(&mut self) {
        let model = self.model;
        let mut along = Vec::new();
        for (name, staged) in &self.endpoints {
            let before = model.endpoints.get(name).map(|before| &before.port);
            let ports = before.into_iter().chain(staged.after.as_ref().map(|after| &after.port));
            for port in ports.collect::<BTreeSet<_>>() {
                let mates = model.on_ports.get(port).into_iter().flatten();
                along.extend(mates.map(|mate| (mate, staged.path.clone())));
            }
        }
        self.take_along(along);
    }

    /// Each on its network and its port as they are at the end; in a place of its own, if it is not where it was.
    fn settle_endpoints(&mut self, runtime: &impl Runtime) {
        let mut staged = std::mem::take(&mut self.endpoints);
        for (name, Staged { after, path, .. }) in &mut staged {
            let Some(endpoint) = after else { continue };
            let (Some((network, mtu)), Some(port)) =
                (self.find(&endpoint.network), self.port(&endpoint.port))
            else {
                let why = if self.port(&endpoint.port).is_some() { "its network" } else { "its port" };
                self.refuse(path.clone(), name, format!("{why} goes in the same change"));
                continue;
            };
            if let Some(why) = port_unfit(&port.plan, mtu) {
                self.refuse(
                    format!("{path}.network"),
                    &endpoint.network,
                    format!("port {}: {why}", endpoint.port),
                );
            }
            endpoint.plan.network = network;
            endpoint.plan.port = port.plan.clone();
        }
        let places = self.places(&staged, runtime);
        for Staged { after, .. } in staged.values_mut() {
            if let Some(endpoint) = after {
                endpoint.id = places.get(&endpoint.port).copied().unwrap_or(NEW_ENDPOINT);
            }
        }
        let shared: HashSet<String> = shared::by_port(&staged)
            .into_iter()
            .filter(|(_, all)| all.len() > 1)
            .map(|(port, _)| port)
            .collect();
        let was_shared = |port: &str| self.model.on_ports.get(port).is_some_and(|all| all.len() > 1);
        staged.retain(|name, staged| match (self.model.endpoints.get(name), &staged.after) {
            (Some(before), Some(after)) => {
                let is_shared = shared.contains(&after.port) || was_shared(&after.port);
                before.id != after.id || before.text != after.text || is_shared
            }
            (None, None) => false,
            _ => true,
        });
        self.endpoints = staged;
    }

    /// The place of each port: that which it has, if the workers know it as the same.
    fn places(
        &self,
        staged: &BTreeMap<String, Staged<Endpoint>>,
        runtime: &impl Runtime,
    ) -> HashMap<String, EndpointId> {
        let ports = shared::by_port(staged);
        let mut places = HashMap::new();
        let mut new = Vec::new();
        for (port, all) in &ports {
            let Some(((_, first), others)) = all.split_first() else { continue };
            for (name, other) in others {
                self.check_mate(path_of(staged, name), first, other);
            }
            if let Some((name, _)) = all.get(shared::ON_ONE_PORT_MAX) {
                let why = format!("a port carries at most {} endpoints", shared::ON_ONE_PORT_MAX);
                self.refuse(format!("{}.port", path_of(staged, name)), port, why);
            }
            let before = all.iter().filter_map(|(name, _)| self.model.endpoints.get(*name));
            let was_so = |before: &&Endpoint| {
                let on_it = self.model.on_port(&before.port);
                on_it.first().is_some_and(|(_, leader)| shared::is_same_place(&leader.plan, &first.plan))
            };
            match before.filter(|before| before.port == *port || self.is_alone(before)).find(was_so) {
                Some(before) => drop(places.insert(port.clone(), before.id)),
                None => new.push((port, first)),
            }
        }
        let mut vacant = runtime.vacant_endpoints(new.len()).into_iter();
        for (port, first) in new {
            match vacant.next() {
                Some(place) => drop(places.insert(port.clone(), place)),
                None => {
                    self.checker.report(no_place(path_of(staged, &first.plan.name), "endpoint", "endpoints"))
                }
            }
        }
        places
    }

    /// Nobody else was on its port, so its place can go along to another port that is the same.
    fn is_alone(&self, endpoint: &Endpoint) -> bool {
        self.model.on_ports.get(&endpoint.port).is_some_and(|all| all.len() == 1)
    }

    fn check_mate(&self, path: &str, first: &Endpoint, other: &Endpoint) {
        if let Some(key) = shared::disagreement(&first.plan, &other.plan) {
            let why = format!(
                "endpoints on one port have the same network, anti_spoofing, storm_limit, announce and hairpin, and in a container the same mac, and port {} carries endpoint {} with another {key}",
                other.port, first.plan.name
            );
            self.refuse(format!("{path}.{key}"), "", why);
        }
    }

    /// What may be had once: everything that goes or changes lets go of it, and then those that come or change take theirs.
    fn hold(&self, prepared: &mut Prepared) {
        let model = self.model;
        let mut released: HashSet<Key> = HashSet::new();
        released.extend(self.networks.keys().filter_map(|n| model.networks.get(n)).flat_map(Network::keys));
        released.extend(self.ports.keys().filter_map(|name| model.ports.get(name)).map(Port::key));
        let endpoints = self.endpoints.keys().filter_map(|name| model.endpoints.get(name));
        released.extend(endpoints.flat_map(|endpoint| endpoint.keys()).map(|(key, ..)| key));
        let networks = self.networks.iter().map(|(name, staged)| (staged.step, Taker::Network(name, staged)));
        let ports = self.ports.iter().map(|(name, staged)| (staged.step, Taker::Port(name, staged)));
        let endpoints = self.endpoints.values().map(|staged| (staged.step, Taker::Endpoint(staged)));
        let mut takers: Vec<(usize, Taker<'_>)> = networks.chain(ports).chain(endpoints).collect();
        takers.sort_by_key(|(step, _)| *step);
        let mut take = |path: &str, key: Key, kind: Kind, name: &str| {
            let holder = match prepared.claimed.entry(key) {
                Entry::Occupied(claimed) => Err((claimed.key().clone(), claimed.get().clone(), true)),
                Entry::Vacant(free) => match model.held.get(free.key()) {
                    Some(holder) if !released.contains(free.key()) => {
                        Err((free.into_key(), holder.clone(), false))
                    }
                    _ => Ok(free.insert(Named { kind, name: name.to_owned() })),
                },
            };
            // It may be its own, as where two stations of a network have the same address.
            if let Err((key, holder, comes_too)) = holder
                && (holder.kind != kind || holder.name != name)
            {
                if !comes_too {
                    self.is_against(Against::Config);
                }
                self.checker.report(held_already(path, kind, &key, &self.as_told(&holder)));
            }
        };
        for (_, taker) in takers {
            match taker {
                Taker::Network(name, Staged { after: Some(after), path, .. }) => {
                    after.keys().into_iter().for_each(|key| take(path, key, Kind::Network, name));
                }
                Taker::Port(name, Staged { after: Some(after), path, .. }) => {
                    take(path, after.key(), Kind::Port, name);
                }
                Taker::Endpoint(Staged { after: Some(after), path, .. }) => {
                    after.keys().for_each(|(key, kind, name)| take(path, key, kind, name));
                }
                _ => {}
            }
        }
        prepared.released = released.into_iter().collect();
    }

    /// An endpoint's own port is told as the endpoint.
    fn as_told(&self, holder: &Named) -> Named {
        let is_own = holder.kind == Kind::Port && self.port(&holder.name).is_some_and(|port| port.is_own);
        Named { kind: if is_own { Kind::Endpoint } else { holder.kind }, name: holder.name.clone() }
    }

    /// Those that share a socket agree on it.
    fn share(&self, prepared: &mut Prepared) {
        let model = self.model;
        let mut sockets: HashMap<SocketAddr, SocketUse> = HashMap::new();
        for before in self.ports.keys().filter_map(|name| model.ports.get(name)) {
            let Some(socket) = before.plan.memif().map(|memif| &memif.socket) else { continue };
            if !sockets.contains_key(socket)
                && let Some(used) = model.sockets.get(socket)
            {
                sockets.insert(socket.clone(), used.clone());
            }
            if let Some(used) = sockets.get_mut(socket) {
                used.ports = used.ports.saturating_sub(1);
            }
        }
        let mut comes: Vec<(&String, &Staged<Port>)> = self.ports.iter().collect();
        comes.sort_by_key(|(_, staged)| staged.step);
        for (name, staged) in comes {
            let Some(port) = &staged.after else { continue };
            let Some(memif) = port.plan.memif() else { continue };
            let terms = Terms::of(memif);
            let new = || SocketUse { terms: terms.clone(), by: name.clone(), ports: 0 };
            let used = sockets
                .entry(memif.socket.clone())
                .or_insert_with(|| model.sockets.get(&memif.socket).cloned().unwrap_or_else(new));
            if used.ports == 0 {
                *used = new();
            }
            used.ports += 1;
            if used.terms != terms {
                self.checker.report(ConfigError::Refused {
                    key: format!("{}.memif.socket", staged.path),
                    got: show(&memif.socket.to_string()),
                    why: format!("role, mode, owner and group must be the same for one socket, and port {} says others", used.by),
                });
            }
        }
        let gone = |used: SocketUse| (used.ports > 0).then_some(used);
        prepared.sockets = sockets.into_iter().map(|(socket, used)| (socket, gone(used))).collect();
    }
}

/// Mistakes of a request.
#[derive(Debug)]
pub struct Mistaken {
    /// One line each.
    pub lines: Vec<String>,
    /// How many more there are.
    pub unlisted: usize,
    /// What the first is against, where there was nothing but the config's before: at a start.
    pub against: Option<Against>,
}

/// What keeps something from being as it was declared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Against {
    /// The config has the same.
    Config,
    /// It needs something that is not there.
    Gone,
}

impl Mistaken {
    /// The first, and how many more there are.
    pub fn in_one_line(&self) -> String {
        let first = self.lines.first().map_or("", String::as_str);
        match self.lines.len().saturating_sub(1) + self.unlisted {
            0 => first.to_owned(),
            more => format!("{first} (and {more} more)"),
        }
    }
}

/// Steps of one change.
const STEP_BITS: u32 = 24;

/// Stand for a place until there is one.
const NEW_NETWORK: NetworkId = NetworkId(u16::MAX);
const NEW_ENDPOINT: EndpointId = EndpointId(u16::MAX);

fn path_of<'s, T>(staged: &'s BTreeMap<String, Staged<T>>, name: &str) -> &'s str {
    staged.get(name).map_or("", |staged| &staged.path)
}

/// In quotes, and not too long.
fn show(text: &str) -> String {
    format!("{:?}", text.chars().take(70).collect::<String>())
}

fn no_place(path: &str, what: &str, key: &str) -> ConfigError {
    let why = format!(
        "no place is free for another {what}: remove some (their places are free after a moment), or raise capacity.{key} in the config and restart"
    );
    ConfigError::Refused { key: path.to_owned(), got: String::new(), why }
}

fn held_already(path: &str, kind: Kind, key: &Key, holder: &Named) -> ConfigError {
    let by = format!("that of {} {}", holder.kind.name(), holder.name);
    let (key, got) = match key {
        Key::Vni(vni) => ("vni", vni.to_string()),
        Key::Mac(_, mac) if kind == Kind::Network => ("static_macs", show(&mac.to_string())),
        Key::Address(_, ip) if kind == Kind::Network => ("static_macs", show(&ip.to_string())),
        Key::Mac(_, mac) => ("mac", show(&mac.to_string())),
        Key::Address(_, ip) => ("addresses", show(&ip.to_string())),
        Key::At(PortKey::Memif(socket, id)) => ("memif.id", format!("{id} on {}", show(&socket.to_string()))),
        Key::At(PortKey::Made(namespace)) => ("veth.namespace", namespace.to_string()),
        Key::At(PortKey::Veth(namespace, interface)) => {
            ("veth.interface", format!("{} in {namespace}", show(interface)))
        }
    };
    ConfigError::Taken { key: format!("{path}.{key}"), got, by }
}
