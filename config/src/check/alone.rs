//! One network, port or endpoint by itself, beside what runs: each as a file's table is checked. What may be had once over all of them is
//! for who knows them all: nothing here looks at more than the one.

use std::net::IpAddr;

use peregrine_dataplane::plan::{EndpointPlan, NetworkPlan, Plan, PortPlan};
use peregrine_dataplane::types::{MacAddr, NetworkId};
use serde::{Deserialize, Deserializer};

use super::classes::{Classes, of_network};
use super::endpoint::{SUGGESTIONS_MAX, keys, no_such_name};
use super::network::{OnNetwork, Unique, network};
use super::port::{Ports, port};
use super::uplink;
use crate::at::{At, Report};
use crate::error::{ConfigError, ConfigErrors, one_line};
use crate::raw::{Declared, Field, Kind, Memif, Network, Port, Table, Veth};
use crate::values;

/// Checks one object after the other, and collects what is wrong with them.
pub struct Checker<'p> {
    plan: &'p Plan,
    uplinks: uplink::Checked,
    classes: Classes,
    report: Report,
}

impl std::fmt::Debug for Checker<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Checker").field("mistakes", &self.report.len()).finish_non_exhaustive()
    }
}

/// The networks that endpoints may be on.
pub trait Networks {
    /// The place and the MTU of the network of this name.
    fn find(&self, name: &str) -> Option<(NetworkId, u16)>;
    /// All names, to find one that is like another: asked only for the first mistakes.
    fn names(&self) -> Vec<String>;
}

/// A port.
#[derive(Clone, Debug)]
pub struct DeclaredPort {
    /// Its name.
    pub name: String,
    /// How it is attached.
    pub plan: PortPlan,
}

/// An endpoint, and what carries it.
#[derive(Clone, Debug)]
#[allow(missing_docs, reason = "as in `EndpointPlan`")]
pub struct DeclaredEndpoint {
    pub name: String,
    pub network: NetworkId,
    pub mac: MacAddr,
    pub addresses: Vec<IpAddr>,
    pub anti_spoofing: bool,
    pub storm_limit: Option<u32>,
    pub announce: bool,
    pub hairpin: bool,
    /// What carries it.
    pub carrier: Carrier,
}

/// What carries an endpoint.
#[derive(Clone, Debug)]
pub enum Carrier {
    /// The port of this name.
    Port(String),
    /// One of its own.
    Own(PortPlan),
}

impl DeclaredEndpoint {
    /// Attached like this.
    pub fn plan(&self, port: PortPlan) -> EndpointPlan {
        EndpointPlan {
            addresses: self.addresses.clone(),
            anti_spoofing: self.anti_spoofing,
            storm_limit: self.storm_limit,
            announce: self.announce,
            hairpin: self.hairpin,
            ..EndpointPlan::new(&self.name, self.network, self.mac, port)
        }
    }
}

impl<'p> Checker<'p> {
    /// For objects beside those of this plan.
    pub fn new(plan: &'p Plan) -> Checker<'p> {
        let (uplinks, classes) = (uplink::Checked::of(&plan.uplinks), Classes::of(plan));
        Checker { plan, uplinks, classes, report: Report::default() }
    }

    /// A network. `path` is where it stands, as errors show it; `None` if something was wrong.
    pub fn network<'de>(&self, path: &str, given: impl Deserializer<'de>) -> Option<NetworkPlan> {
        let before = self.report.count();
        let at = At::under(path, &self.report);
        let raw = self.table::<Network>(&at, given, "a network: a table with the keys name and vni")?;
        let plan = network(&at, &raw, &self.uplinks, &mut Unique::default(), &mut OnNetwork::default());
        let class = of_network(&at, &raw, &self.classes);
        Some(NetworkPlan { class: class?, ..plan? }).filter(|_| self.report.count() == before)
    }

    /// A port.
    pub fn port<'de>(&self, path: &str, given: impl Deserializer<'de>) -> Option<DeclaredPort> {
        let before = self.report.count();
        let at = At::under(path, &self.report);
        let rule = "a port: a table with the keys name, and memif or veth";
        let raw = self.table::<Port>(&at, given, rule)?;
        let name = at.key("name").text(&raw.name, None, values::NAME, values::name);
        let plan = self.carrier(&at, (&raw.memif, &raw.veth), None);
        Some(DeclaredPort { name: name?, plan: plan? }).filter(|_| self.report.count() == before)
    }

    /// An endpoint.
    pub fn endpoint<'de>(
        &self,
        path: &str,
        given: impl Deserializer<'de>,
        networks: &impl Networks,
    ) -> Option<DeclaredEndpoint> {
        let before = self.report.count();
        let rule = "an endpoint: a table with the keys name, network, mac, and port, memif or veth";
        let at = At::under(path, &self.report);
        let (raw, port) = self.table::<Declared>(&at, given, rule)?.split();
        let name = at.key("name").text(&raw.name, None, values::NAME, values::name);
        let found = self.network_of(&at.key("network"), &raw.network, networks);
        let keys = keys(&at, &raw, Some(&mut OnNetwork::default()));
        let carrier = match &port {
            Field::Absent => {
                let mtu = found.map(|(_, mtu)| (mtu, "the network's mtu".to_owned()));
                self.carrier(&at, (&raw.memif, &raw.veth), mtu).map(Carrier::Own)
            }
            port => {
                for (key, given) in [("memif", raw.memif.given()), ("veth", raw.veth.given())] {
                    if let Some(shown) = given {
                        at.key(key).invalid(shown, "left out: the endpoint is on a port");
                    }
                }
                at.key("port").text(port, None, "the name of a port", values::name).map(Carrier::Port)
            }
        };
        let keys = keys?;
        let declared = DeclaredEndpoint {
            name: name?,
            network: found?.0,
            mac: keys.mac,
            addresses: keys.addresses,
            anti_spoofing: keys.anti_spoofing,
            storm_limit: keys.storm_limit,
            announce: keys.announce,
            hairpin: keys.hairpin,
            carrier: carrier?,
        };
        Some(declared).filter(|_| self.report.count() == before)
    }

    fn network_of(
        &self,
        at: &At<'_>,
        field: &Field<String>,
        networks: &impl Networks,
    ) -> Option<(NetworkId, u16)> {
        let name = at.required(field, "the name of a network", |name| Some(name.clone()))?;
        let found = networks.find(&name);
        if found.is_none() {
            let names = if self.report.len() < SUGGESTIONS_MAX { networks.names() } else { Vec::new() };
            no_such_name(at, field, "a network", names.iter().map(String::as_str));
        }
        found
    }

    fn carrier(
        &self,
        at: &At<'_>,
        fields: (&Field<Memif>, &Field<Veth>),
        mtu: Option<(u16, String)>,
    ) -> Option<PortPlan> {
        port(at, fields, mtu, &mut Ports::of_one(Some(&self.plan.control_socket)))
    }

    /// The table that was given; what it may not have has been reported.
    fn table<'de, T: Table + Kind>(
        &self,
        at: &At<'_>,
        given: impl Deserializer<'de>,
        rule: &'static str,
    ) -> Option<T> {
        let field = Field::<T>::deserialize(given);
        let field = field.map_err(|error| {
            // What TOML has no word for, such as null in a list.
            at.invalid(one_line(&error.to_string()), "what can stand in a file");
        });
        let field = field.ok()?;
        at.table(&field, rule)?;
        match field {
            Field::Given(table) => Some(table),
            Field::Wrong(_) | Field::Absent => None,
        }
    }

    /// Something else that is wrong.
    pub fn report(&self, error: ConfigError) {
        self.report.add(error);
    }

    /// Nothing was wrong so far.
    pub fn is_clean(&self) -> bool {
        self.report.is_clean()
    }

    /// How many mistakes there are so far.
    pub fn mistakes(&self) -> usize {
        self.report.count()
    }

    /// All that was wrong; `origin` is what the errors call it.
    ///
    /// # Errors
    /// If anything was.
    pub fn finish(self, origin: &str) -> Result<(), ConfigErrors> {
        if self.report.is_clean() { Ok(()) } else { Err(self.report.into_errors(origin)) }
    }
}
