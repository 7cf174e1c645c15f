//! Networks, ports and endpoints that are declared: by the config, and at the control socket while the daemon runs. Called by the methods
//! (`declared.rs`); owned by the [daemon](crate::daemon).
//!
//! Everything that is to be changed is staged first ([`stage`]), checked as a config is and held against all that there is; then it is written
//! beside the file ([`mod@file`]), sockets and engine get it, what was written becomes what is kept, and only then the model is another one. So a change is there as a whole or not at all,
//! and what it costs does not depend on how much is there: what may be had once is found by what it is ([`Key`]). Only the file, where there
//! is one, is now and then written as a whole.

pub mod file;
mod journal;
pub mod live;
pub mod prepared;
mod shared;
mod sockets;
pub mod stage;
pub mod types;
pub mod written;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::net::IpAddr;

use peregrine_dataplane::engine::Change;
use peregrine_dataplane::plan::{EndpointPlan, MemifPlan, MemifRole, NetworkPlan, Plan, PortKey, PortPlan};
use peregrine_dataplane::types::{EndpointId, MacAddr, NetworkId, Vni};
use peregrine_memif::SocketAddr;

use self::prepared::Prepared;
use self::types::{Changed, Kind, Named, Origin};
use crate::tenants::Coming;

/// So many changes are kept for who watches,
const LOG_MAX: usize = 1024;
/// as long as they name no more objects than this together.
const LOG_NAMES_MAX: usize = 1 << 16;

/// A network.
#[derive(Clone, Debug)]
pub struct Network {
    /// Who declared it.
    pub origin: Origin,
    /// Its place.
    pub id: NetworkId,
    /// As it was declared. Remotes that came and went since are the engine's.
    pub plan: NetworkPlan,
    /// The names of the endpoints on it.
    pub endpoints: BTreeSet<String>,
    /// As JSON, for the file and to compare.
    text: String,
}

/// What carries frames.
#[derive(Clone, Debug)]
pub struct Port {
    /// Who declared it.
    pub origin: Origin,
    /// It came with its endpoint and goes with it.
    pub is_own: bool,
    /// How it is attached.
    pub plan: PortPlan,
    text: String,
}

/// A tenant's address on a network.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Who declared it.
    pub origin: Origin,
    /// Its place: that of all on its port.
    pub id: EndpointId,
    /// When it came to its port: the first one's name and address are those of the place.
    joined: u64,
    /// As it was declared, attached as its port is.
    pub plan: EndpointPlan,
    /// Its network's name.
    pub network: String,
    /// Its port's name.
    pub port: String,
    text: String,
}

/// What one object at most may have.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Key {
    /// A network's number.
    Vni(Vni),
    /// An Ethernet address on a network.
    Mac(NetworkId, MacAddr),
    /// An IP address on a network.
    Address(NetworkId, IpAddr),
    /// A memif interface, or a container's.
    At(PortKey),
}

/// What all on one socket must say alike.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Terms {
    is_server: bool,
    mode: Option<u32>,
    owner: Option<u32>,
    group: Option<u32>,
}

impl Terms {
    fn of(memif: &MemifPlan) -> Terms {
        match memif.role {
            MemifRole::Server { mode, owner, group, .. } => Terms { is_server: true, mode, owner, group },
            MemifRole::Client { .. } => Terms { is_server: false, mode: None, owner: None, group: None },
        }
    }
}

/// A socket that ports are on.
#[derive(Clone, Debug)]
struct SocketUse {
    terms: Terms,
    /// One of those who say so.
    by: String,
    ports: usize,
}

/// What a change is made in: the engine and the tenants' sockets; or a plan that has not begun.
pub trait Runtime {
    /// The first places that are free for networks, at most so many.
    fn vacant_networks(&self, count: usize) -> Vec<NetworkId>;
    /// The same for endpoints.
    fn vacant_endpoints(&self, count: usize) -> Vec<EndpointId>;
    /// Closes what endpoints that go have of sockets, and opens those of endpoints that come: all of it, or nothing.
    ///
    /// # Errors
    /// The index of the one that cannot come, and why.
    fn swap(&mut self, go: &[EndpointId], come: &[Coming]) -> Result<(), (usize, String)>;
    /// One that stays where it is has other addresses: its container's interface gets them.
    ///
    /// # Errors
    /// Why it does not; it has those that it had.
    fn refit(&mut self, coming: &Coming) -> Result<(), String>;
    /// A port is there, whether it carries an endpoint or not.
    ///
    /// # Errors
    /// Why it cannot be.
    fn hold(&mut self, name: &str, port: &PortPlan) -> Result<(), String>;
    /// Undoes one [`hold`](Self::hold).
    fn release(&mut self, port: &PortPlan);
    /// Endpoints that came and that the engine knows by now are served where their tenants are here already.
    fn attach(&mut self, come: &[Coming]);
    /// What was there before a change that came to nothing: `go` goes again, and `come` and what was held come back. What to say if some
    /// of it did not.
    fn restore(&mut self, go: &[EndpointId], come: &[Coming], hold: &[(String, PortPlan)]) -> Option<String>;
    /// Would it make the change?
    ///
    /// # Errors
    /// As those of [`change`](Self::change).
    fn check(&self, change: &Change) -> Result<(), (Option<About>, String)>;
    /// Makes the change.
    ///
    /// # Errors
    /// Why not, and what it is about, if it is about one; nothing has changed then.
    fn change(&mut self, change: Change) -> Result<(), (Option<About>, String)>;
}

/// What an engine's refusal is about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum About {
    /// This network.
    Network(NetworkId),
    /// This endpoint.
    Endpoint(EndpointId),
}

/// Everything that is declared.
#[derive(Debug, Default)]
pub struct Model {
    generation: u64,
    networks: BTreeMap<String, Network>,
    ports: BTreeMap<String, Port>,
    endpoints: BTreeMap<String, Endpoint>,
    held: HashMap<Key, Named>,
    /// The names of those on each port.
    on_ports: BTreeMap<String, BTreeSet<String>>,
    sockets: HashMap<SocketAddr, SocketUse>,
    log: VecDeque<Changed>,
    log_names: usize,
    file: Option<file::StateFile>,
    /// What to say of a change that was under way when the daemon before was killed.
    cut: Option<String>,
}

impl Model {
    /// What a config declares.
    pub fn of(plan: &Plan) -> Model {
        let mut model = Model::default();
        for (id, network) in plan.networks.iter() {
            let network = Network {
                origin: Origin::Config,
                id,
                plan: network.clone(),
                endpoints: BTreeSet::new(),
                text: String::new(),
            };
            network.keys().into_iter().for_each(|key| model.hold(key, Kind::Network, &network.plan.name));
            model.networks.insert(network.plan.name.clone(), network);
        }
        for (id, endpoint) in plan.endpoints.iter() {
            model.take_configs_endpoint(id, endpoint, plan);
        }
        model
    }

    fn take_configs_endpoint(&mut self, id: EndpointId, plan: &EndpointPlan, all: &Plan) {
        let name = plan.name.clone();
        let network = all.network(plan.network).map(|network| network.name.clone()).unwrap_or_default();
        let port =
            Port { origin: Origin::Config, is_own: true, plan: plan.port.clone(), text: String::new() };
        self.hold(port.key(), Kind::Port, &name);
        self.join_socket(&port.plan, &name);
        self.ports.insert(name.clone(), port);
        let endpoint = Endpoint {
            origin: Origin::Config,
            id,
            joined: 0,
            plan: plan.clone(),
            network,
            port: name.clone(),
            text: String::new(),
        };
        endpoint.keys().for_each(|(key, kind, holder)| self.hold(key, kind, holder));
        self.on_ports.entry(name.clone()).or_default().insert(name.clone());
        if let Some(network) = self.networks.get_mut(&endpoint.network) {
            network.endpoints.insert(name.clone());
        }
        self.endpoints.insert(name, endpoint);
    }

    fn hold(&mut self, key: Key, kind: Kind, name: &str) {
        self.held.insert(key, Named { kind, name: name.to_owned() });
    }

    fn join_socket(&mut self, plan: &PortPlan, port: &str) {
        let Some(memif) = plan.memif() else { return };
        let new = || SocketUse { terms: Terms::of(memif), by: port.to_owned(), ports: 0 };
        self.sockets.entry(memif.socket.clone()).or_insert_with(new).ports += 1;
    }

    /// How often it has become another one.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The ports whose sockets are to be held, once, at the start: those of endpoints' own ports come and go with these.
    pub fn held_ports(&self) -> impl Iterator<Item = (&String, &PortPlan)> {
        self.ports.iter().filter(|(_, port)| !port.is_own).map(|(name, port)| (name, &port.plan))
    }

    /// All networks, by name.
    pub fn networks(&self) -> &BTreeMap<String, Network> {
        &self.networks
    }

    /// All ports, by name.
    pub fn ports(&self) -> &BTreeMap<String, Port> {
        &self.ports
    }

    /// All endpoints, by name.
    pub fn endpoints(&self) -> &BTreeMap<String, Endpoint> {
        &self.endpoints
    }

    /// What came after a generation, the oldest first. `None` if it is not known any more, or never was: who asks must look at everything.
    pub fn since(&self, generation: u64) -> Option<impl Iterator<Item = &Changed>> {
        let back = usize::try_from(self.generation.checked_sub(generation)?).ok()?;
        let first = self.log.len().checked_sub(back)?;
        Some(self.log.iter().skip(first))
    }

    /// The texts of what the control socket declared, as they are in `export` and in the file. `next` is about to be.
    fn texts<'m>(&'m self, next: Option<&'m Prepared>) -> [Vec<&'m str>; 3] {
        let api = |origin: Origin| origin == Origin::Api;
        let networks =
            self.networks.iter().filter(|(_, n)| api(n.origin)).map(|(name, n)| (name, n.text.as_str()));
        let ports = self.ports.iter().filter(|(_, p)| api(p.origin) && !p.is_own);
        let ports = ports.map(|(name, p)| (name, p.text.as_str()));
        let endpoints =
            self.endpoints.iter().filter(|(_, e)| api(e.origin)).map(|(name, e)| (name, e.text.as_str()));
        let Some(next) = next else {
            return [
                networks.map(|(_, text)| text).collect(),
                ports.map(|(_, text)| text).collect(),
                endpoints.map(|(_, text)| text).collect(),
            ];
        };
        fn merged<'m, T>(
            stay: impl Iterator<Item = (&'m String, &'m str)>,
            next: &'m BTreeMap<String, Option<T>>,
            text: impl Fn(&'m T) -> Option<&'m str>,
        ) -> Vec<&'m str> {
            let stay = stay.filter(|(name, _)| !next.contains_key(*name)).map(|(_, text)| text);
            stay.chain(next.values().flatten().filter_map(text)).collect()
        }
        [
            merged(networks, &next.networks, |network| Some(network.text.as_str())),
            merged(ports, &next.ports, |port| (!port.is_own).then_some(port.text.as_str())),
            merged(endpoints, &next.endpoints, |endpoint| Some(endpoint.text.as_str())),
        ]
    }

    /// `export`: what the control socket declared, as JSON.
    pub fn export(&self) -> String {
        file::body(self.generation, &self.texts(None)) + "}"
    }

    /// Whether a change that was prepared would be made, as far as nothing is touched.
    ///
    /// # Errors
    /// One line.
    pub fn check(&self, prepared: &Prepared, runtime: &impl Runtime) -> Result<(), String> {
        runtime.check(&prepared.change).map_err(|(about, why)| format!("{}: {why}", prepared.path_of(about)))
    }

    /// Makes a change that was prepared: in the sockets, the engine, the file, and here; or nowhere.
    ///
    /// # Errors
    /// One line.
    pub fn make(&mut self, prepared: Prepared, runtime: &mut impl Runtime) -> Result<(), String> {
        if prepared.is_nothing() {
            return Ok(());
        }
        // No tenant loses its connection for what is refused anyway.
        self.check(&prepared, runtime)?;
        let mut file = self.file.take();
        let made = self.make_and_keep(prepared, runtime, file.as_mut());
        self.file = file;
        made
    }

    fn make_and_keep(
        &mut self,
        prepared: Prepared,
        runtime: &mut impl Runtime,
        file: Option<&mut file::StateFile>,
    ) -> Result<(), String> {
        let generation = self.generation + 1;
        let written = match file {
            Some(file) => {
                let whole = || file::text(generation, &self.texts(Some(&prepared)));
                Some(file.write(&file::record(generation, &prepared), whole)?)
            }
            None => None,
        };
        let undo = |written: Option<file::Written<'_>>| written.map_or_else(String::new, file::Written::undo);
        if let Err(why) = prepared.open(runtime) {
            return Err(why + &undo(written));
        }
        if let Err((about, why)) = runtime.change(prepared.change.clone()) {
            let back = prepared.close_again(runtime) + &undo(written);
            return Err(format!("{}: {why}{back}", prepared.path_of(about)));
        }
        runtime.attach(&prepared.come);
        prepared.close(runtime);
        let kept = written.map_or(Ok(()), file::Written::keep);
        self.take(prepared, generation);
        kept.map_err(|why| format!("the change was made, but a restart will not know it: {why}"))
    }

    /// Writes the file as a whole, with nothing left for its journal: in the end, so that the next start reads one file.
    ///
    /// # Errors
    /// One line; what is kept is as good as before.
    pub fn rest(&mut self) -> Result<(), String> {
        let Some(mut file) = self.file.take() else { return Ok(()) };
        let written = match file.is_whole() {
            true => Ok(()),
            false => {
                let text = file::text(self.generation, &self.texts(None));
                file.write_beside(&text).and_then(file::Written::keep)
            }
        };
        self.file = Some(file);
        written
    }

    /// What to say of a change that was under way when the daemon before was killed: it was not written to its end.
    pub fn cut(&self) -> Option<&str> {
        self.cut.as_deref()
    }

    /// It has happened.
    fn take(&mut self, prepared: Prepared, generation: u64) {
        self.generation = generation;
        self.note(prepared.changed(generation));
        let Prepared { networks, ports, endpoints, released, claimed, sockets, .. } = prepared;
        released.iter().for_each(|key| drop(self.held.remove(key)));
        self.held.extend(claimed);
        for (socket, used) in sockets {
            match used {
                Some(used) => drop(self.sockets.insert(socket, used)),
                None => drop(self.sockets.remove(&socket)),
            }
        }
        for (name, endpoint) in &endpoints {
            if let Some(before) = self.endpoints.get(name)
                && endpoint.as_ref().is_none_or(|after| after.network != before.network)
                && let Some(network) = self.networks.get_mut(&before.network)
            {
                network.endpoints.remove(name);
            }
        }
        for (name, network) in networks {
            let endpoints = self.networks.remove(&name).map(|before| before.endpoints).unwrap_or_default();
            if let Some(network) = network {
                self.networks.insert(name, Network { endpoints, ..network });
            }
        }
        put(&mut self.ports, ports);
        for name in endpoints.keys() {
            let port = self.endpoints.get(name).map(|before| &before.port);
            if let Some((port, all)) = port.and_then(|port| Some((port, self.on_ports.get_mut(port)?))) {
                all.remove(name);
                if all.is_empty() {
                    self.on_ports.remove(port);
                }
            }
        }
        for (name, endpoint) in &endpoints {
            if let Some(endpoint) = endpoint {
                self.on_ports.entry(endpoint.port.clone()).or_default().insert(name.clone());
            }
            if let Some(network) = endpoint.as_ref().and_then(|e| self.networks.get_mut(&e.network)) {
                network.endpoints.insert(name.clone());
            }
        }
        put(&mut self.endpoints, endpoints);
    }

    fn note(&mut self, changed: Changed) {
        let names = |changed: &Changed| changed.added.len() + changed.changed.len() + changed.removed.len();
        self.log_names += names(&changed);
        self.log.push_back(changed);
        while self.log.len() > LOG_MAX || (self.log_names > LOG_NAMES_MAX && self.log.len() > 1) {
            self.log_names -= self.log.pop_front().map_or(0, |oldest| names(&oldest));
        }
    }
}

fn put<T>(all: &mut BTreeMap<String, T>, next: BTreeMap<String, Option<T>>) {
    for (name, object) in next {
        match object {
            Some(object) => drop(all.insert(name, object)),
            None => drop(all.remove(&name)),
        }
    }
}

impl Network {
    fn keys(&self) -> Vec<Key> {
        let mut keys = vec![Key::Vni(self.plan.vni)];
        for fixed in &self.plan.static_macs {
            keys.push(Key::Mac(self.id, fixed.mac));
            keys.extend(fixed.addresses.iter().map(|ip| Key::Address(self.id, *ip)));
        }
        keys
    }
}

impl Port {
    fn key(&self) -> Key {
        Key::At(self.plan.key())
    }
}

impl Endpoint {
    /// With whose each is: an Ethernet address is the port's, as all on that may have it.
    fn keys(&self) -> impl Iterator<Item = (Key, Kind, &str)> {
        let EndpointPlan { name, network, mac, addresses, .. } = &self.plan;
        let address = |ip: &IpAddr| (Key::Address(*network, *ip), Kind::Endpoint, name.as_str());
        let mac = (Key::Mac(*network, *mac), Kind::Port, self.port.as_str());
        std::iter::once(mac).chain(addresses.iter().map(address))
    }
}

#[cfg(test)]
mod tests;
