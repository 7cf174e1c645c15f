//! The methods about networks, ports and endpoints: `change`, `apply`, `export`, `network.list`, `port.list`, `endpoint.list`, `schema`.
//! Called by [`methods`](crate::methods). What they take and return is in [`types`](crate::model::types).

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use mio::Registry;
use peregrine_dataplane::engine::Engine;
use peregrine_dataplane::plan::Plan;
use peregrine_dataplane::types::EndpointId;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::model::live::Live;
use crate::model::prepared::Prepared;
use crate::model::stage::{Mistaken, Stage};
use crate::model::types::{
    ApplyAnswer, ChangeAnswer, EndpointEntry, EndpointList, Everything, ListRequest, Named, NetworkEntry,
    NetworkList, PortEntry, PortList, Totals,
};
use crate::model::written::{self, Secrets};
use crate::model::{Model, Runtime, file};
use crate::rpc::{RpcError, code, no_params, params, take_list};
use crate::status;
use crate::tenants::Tenants;

/// Objects that one answer lists at most: the next ones are asked for by `after`.
pub const LISTED_MAX: usize = 10_000;
/// Objects of each list of `apply`'s answer.
const APPLIED_MAX: usize = 1000;
/// Mistakes that are told.
const MISTAKES_MAX: usize = 100;

/// What the methods look at and change.
#[derive(Debug)]
pub struct Declared<'d> {
    /// The config.
    pub plan: &'d Plan,
    /// What is declared.
    pub model: &'d mut Model,
    /// The workers.
    pub engine: &'d mut Engine,
    /// The tenants' sockets.
    pub tenants: &'d mut Tenants,
    /// Where these are watched.
    pub registry: &'d Registry,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ChangeParams {
    changes: Vec<Value>,
    #[serde(default)]
    dry_run: bool,
    generation: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
struct ApplyParams {
    format: Option<u32>,
    generation: Option<u64>,
    networks: Vec<Value>,
    ports: Vec<Value>,
    endpoints: Vec<Value>,
    dry_run: bool,
    /// A state file has it, which was moved away and edited: it says nothing any more.
    #[serde(rename = "check")]
    _check: Option<Value>,
}

impl Declared<'_> {
    /// Does what one of these methods asks for, and takes its parameters then. `None`: it is no method of ours.
    ///
    /// # Errors
    /// Wrong parameters, or it cannot be done as things are; nothing has changed then.
    pub fn answer(
        &mut self,
        method: &str,
        given: &mut Value,
        now: Instant,
    ) -> Option<Result<Value, RpcError>> {
        Some(match method {
            "change" | "apply" => self.alter(method, given.take(), now),
            "export" => no_params(method, given).and_then(|()| self.export()),
            "network.list" => self.networks(given.take()),
            "port.list" => self.ports(given.take()),
            "endpoint.list" => self.endpoints(given.take()),
            "schema" => no_params(method, given).map(|()| schema()),
            _ => return None,
        })
    }

    fn alter(&mut self, method: &str, given: Value, now: Instant) -> Result<Value, RpcError> {
        let began = Instant::now();
        let Declared { plan, model, engine, tenants, registry } = self;
        let mut runtime = Live { engine, tenants, registry, now };
        if method == "change" {
            let answer = change(model, plan, &mut runtime, given)?;
            until_in_force(engine);
            return to_value(&ChangeAnswer { took_us: micros(began), ..answer });
        }
        let answer = apply(model, plan, &mut runtime, given)?;
        until_in_force(engine);
        to_value(&ApplyAnswer { took_us: micros(began), ..answer })
    }

    fn export(&self) -> Result<Value, RpcError> {
        serde_json::from_str(&self.model.export()).map_err(|e| RpcError::new(code::INTERNAL, e.to_string()))
    }

    fn networks(&self, given: Value) -> Result<Value, RpcError> {
        let ListRequest { name, network, after } = filter("network.list", given)?;
        let all = self.model.networks();
        let names: Vec<&String> = match (&name, &network) {
            (None, None) => all.keys().collect(),
            (Some(name), Some(network)) if name != network => Vec::new(),
            (Some(name), _) | (None, Some(name)) => {
                all.get_key_value(name).map(|(name, _)| name).into_iter().collect()
            }
        };
        let entry = |name: &&String| {
            let network = all.get(*name)?;
            Some(NetworkEntry {
                network: written::network(&network.plan, &self.plan.classes),
                origin: network.origin,
                endpoints: network.endpoints.len(),
            })
        };
        let (listed, next) = page(&names, after.as_deref());
        let networks = listed.iter().filter_map(entry).collect();
        to_value(&NetworkList { networks, total: names.len(), next })
    }

    fn ports(&self, given: Value) -> Result<Value, RpcError> {
        let ListRequest { name, network, after } = filter("port.list", given)?;
        let all = self.model.ports();
        let names: Vec<&str> = match (&name, &network) {
            (Some(name), network) => {
                let is_meant = network.as_ref().is_none_or(|network| self.is_port_on(name, network));
                all.get_key_value(name)
                    .filter(|_| is_meant)
                    .map(|(name, _)| name.as_str())
                    .into_iter()
                    .collect()
            }
            (None, Some(network)) => {
                let on_it = self.on(network).filter_map(|name| self.model.endpoints().get(name));
                // By name, and each once.
                on_it.map(|endpoint| endpoint.port.as_str()).collect::<BTreeSet<_>>().into_iter().collect()
            }
            (None, None) => all.keys().map(String::as_str).collect(),
        };
        let (listed, next) = page(&names, after.as_deref());
        let ports = listed.iter().filter_map(|name| self.port(name)).collect();
        to_value(&PortList { ports, total: names.len(), next })
    }

    fn is_port_on(&self, port: &str, network: &str) -> bool {
        self.model.on_port(port).first().is_some_and(|(_, endpoint)| endpoint.network == network)
    }

    fn on(&self, network: &str) -> impl Iterator<Item = &String> {
        self.model.networks().get(network).into_iter().flat_map(|network| &network.endpoints)
    }

    fn port(&self, name: &str) -> Option<PortEntry> {
        let port = self.model.ports().get(name)?;
        let endpoints = self.model.on_port(name);
        let state = match endpoints.first() {
            _ if self.tenants.record_of(&port.plan).is_some_and(|record| record.peer.is_some()) => {
                "connected"
            }
            None => "unbound",
            Some(_) => status::waiting(&port.plan),
        };
        Some(PortEntry {
            port: written::port(name, &port.plan, Secrets::Hidden),
            origin: port.origin,
            own: port.is_own,
            endpoints: endpoints.into_iter().map(|(name, _)| name.clone()).collect(),
            state: state.to_owned(),
        })
    }

    fn is_connected(&self, id: EndpointId) -> bool {
        self.tenants.record(id).is_some_and(|record| record.peer.is_some())
    }

    fn endpoints(&self, given: Value) -> Result<Value, RpcError> {
        let ListRequest { name, network, after } = filter("endpoint.list", given)?;
        let all = self.model.endpoints();
        let names: Vec<&String> = match (&name, &network) {
            (Some(name), network) => {
                let there = all.get_key_value(name);
                let there =
                    there.filter(|(_, it)| network.as_ref().is_none_or(|network| it.network == *network));
                there.map(|(name, _)| name).into_iter().collect()
            }
            (None, Some(network)) => self.on(network).collect(),
            (None, None) => all.keys().collect(),
        };
        let entry = |name: &&String| {
            let endpoint = all.get(*name)?;
            let is_own = self.model.ports().get(&endpoint.port).is_some_and(|port| port.is_own);
            let port = (!is_own).then_some(endpoint.port.as_str());
            Some(EndpointEntry {
                endpoint: written::endpoint(&endpoint.plan, &endpoint.network, port, Secrets::Hidden),
                origin: endpoint.origin,
                connected: self.is_connected(endpoint.id),
            })
        };
        let (listed, next) = page(&names, after.as_deref());
        let endpoints = listed.iter().filter_map(entry).collect();
        to_value(&EndpointList { endpoints, total: names.len(), next })
    }
}

/// Of names in order those that one answer lists, and after which one the next answer begins, if there are more.
fn page<'n, N: AsRef<str>>(names: &'n [N], after: Option<&str>) -> (&'n [N], Option<String>) {
    let first = after.map_or(0, |after| names.partition_point(|name| name.as_ref() <= after));
    let rest = names.get(first..).unwrap_or_default();
    match rest.get(..LISTED_MAX) {
        Some(listed) if rest.len() > LISTED_MAX => {
            (listed, listed.last().map(|last| last.as_ref().to_owned()))
        }
        _ => (rest, None),
    }
}

/// `change`.
///
/// # Errors
/// As it is told; nothing has changed then.
pub fn change(
    model: &mut Model,
    plan: &Plan,
    runtime: &mut impl Runtime,
    mut given: Value,
) -> Result<ChangeAnswer, RpcError> {
    let steps = take_list(&mut given, "changes");
    let ChangeParams { changes, dry_run, generation } = params("change", given)?;
    let changes = steps.unwrap_or(changes);
    expect_generation(model, generation)?;
    let mut stage = Stage::new(model, plan);
    for (nth, step) in changes.into_iter().enumerate() {
        stage.step(&format!("changes[{nth}]"), step);
    }
    let prepared = stage.finish(runtime).map_err(mistakes)?;
    let Totals { added, changed, removed } = totals(&prepared);
    make(model, prepared, runtime, dry_run)?;
    Ok(ChangeAnswer { generation: model.generation(), added, changed, removed, took_us: 0 })
}

/// `apply`.
///
/// # Errors
/// As it is told; nothing has changed then.
pub fn apply(
    model: &mut Model,
    plan: &Plan,
    runtime: &mut impl Runtime,
    mut given: Value,
) -> Result<ApplyAnswer, RpcError> {
    let taken = ["networks", "ports", "endpoints"].map(|kind| take_list(&mut given, kind));
    let ApplyParams { format, generation, networks, ports, endpoints, dry_run, _check: _ } =
        params("apply", given)?;
    if let Some(format) = format.filter(|format| !file::FORMATS.contains(format)) {
        let text = format!("apply: format = {format}: must be {}", file::FORMAT);
        return Err(RpcError::new(code::INVALID_PARAMS, text));
    }
    expect_generation(model, generation)?;
    let mut stage = Stage::new(model, plan);
    stage.clear();
    let [of_networks, of_ports, of_endpoints] = taken;
    stage.declare_all([
        of_networks.unwrap_or(networks),
        of_ports.unwrap_or(ports),
        of_endpoints.unwrap_or(endpoints),
    ]);
    let prepared = stage.finish(runtime).map_err(mistakes)?;
    let first = |names: &[Named]| names.iter().take(APPLIED_MAX).cloned().collect();
    let answer = ApplyAnswer {
        added: first(&prepared.added),
        changed: prepared.altered(model, APPLIED_MAX),
        removed: first(&prepared.removed),
        totals: totals(&prepared),
        dry_run,
        ..ApplyAnswer::default()
    };
    make(model, prepared, runtime, dry_run)?;
    Ok(ApplyAnswer { generation: model.generation(), ..answer })
}

/// A dry run is refused as the change would be, as far as that is known without touching anything.
fn make(
    model: &mut Model,
    prepared: Prepared,
    runtime: &mut impl Runtime,
    dry_run: bool,
) -> Result<(), RpcError> {
    let made = if dry_run { model.check(&prepared, runtime) } else { model.make(prepared, runtime) };
    made.map_err(|why| RpcError::new(code::REFUSED, why))
}

fn totals(prepared: &Prepared) -> Totals {
    let Prepared { added, changed, removed, .. } = prepared;
    Totals { added: added.len(), changed: changed.len(), removed: removed.len() }
}

fn expect_generation(model: &Model, wanted: Option<u64>) -> Result<(), RpcError> {
    let now = model.generation();
    let Some(wanted) = wanted.filter(|wanted| *wanted != now) else { return Ok(()) };
    let text = format!("generation = {wanted}: it is {now} by now: look at what changed, and ask again");
    Err(RpcError { data: Some(json!({ "generation": now })), ..RpcError::new(code::REFUSED, text) })
}

fn mistakes(mut mistaken: Mistaken) -> RpcError {
    let message = mistaken.in_one_line();
    mistaken.lines.truncate(MISTAKES_MAX);
    RpcError {
        data: Some(json!({ "errors": mistaken.lines })),
        ..RpcError::new(code::INVALID_PARAMS, message)
    }
}

fn filter(method: &str, given: Value) -> Result<ListRequest, RpcError> {
    params(method, if given.is_null() { json!({}) } else { given })
}

/// The JSON schema of all these methods.
pub fn schema() -> Value {
    schemars::schema_for!(Everything).to_value()
}

fn micros(began: Instant) -> u64 {
    u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX)
}

/// Who has the answer may send at once. A worker takes its orders each turn, which takes microseconds; one that has lost its core is not waited
/// for longer than this.
fn until_in_force(engine: &mut Engine) {
    let end = Instant::now() + Duration::from_millis(5);
    while !engine.is_in_force() && Instant::now() < end {
        engine.send_orders();
        std::thread::yield_now();
    }
}

fn to_value(value: &impl serde::Serialize) -> Result<Value, RpcError> {
    serde_json::to_value(value).map_err(|e| RpcError::new(code::INTERNAL, e.to_string()))
}

#[cfg(test)]
#[path = "declared_tests.rs"]
mod tests;
