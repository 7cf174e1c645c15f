//! `[[endpoints]]`.

use std::net::IpAddr;
use std::path::Path;

use peregrine_dataplane::plan::EndpointPlan;
use peregrine_dataplane::types::{MacAddr, NetworkId};

use super::network::{OnNetwork, Taken};
use super::port::{Ports, port};
use crate::at::{At, Claims};
use crate::error::ConfigError;
use crate::nearest::nearest;
use crate::raw::{Endpoint, Field, List, show_text};
use crate::values;

/// So many mistakes and no more are worth the search for a name that looks like the one given.
pub const SUGGESTIONS_MAX: usize = 50;

/// Stands for a key that was left out; not in the range.
const NO_STORM_LIMIT: u32 = 0;

/// What may be had once over all endpoints, and what those that share must agree on.
struct Shared<'a> {
    networks: Taken<'a>,
    names: Claims<String>,
    ports: Ports<'a>,
}

/// Checks `[[endpoints]]`.
pub fn endpoints(
    at: &At<'_>,
    field: &List<Endpoint>,
    networks: Taken<'_>,
    control_socket: Option<&Path>,
) -> Vec<EndpointPlan> {
    let mut shared = Shared { networks, names: Claims::new(), ports: Ports::new(control_socket) };
    let mut plans = Vec::new();
    for (at, entry) in at.list(field, 0..=65534, "a list of at most 65534 tables: [[endpoints]]") {
        if let Some(raw) = at.table(entry, "a table: [[endpoints]]") {
            plans.extend(endpoint(&at, raw, &mut shared));
        }
    }
    plans
}

fn endpoint(at: &At<'_>, raw: &Endpoint, shared: &mut Shared<'_>) -> Option<EndpointPlan> {
    let name = at.key("name").text(&raw.name, None, values::NAME, values::name);
    if let Some(name) = &name {
        shared.names.claim(name.clone(), &at.key("name"), &raw.name);
    }
    let place = network(&at.key("network"), &raw.network, &shared.networks);
    let keys = keys(at, raw, place.and_then(|place| shared.networks.on.get_mut(place)));
    let mtu =
        place.and_then(|place| Some((shared.networks.on.get(place)?.mtu?, format!("networks[{place}].mtu"))));
    let port = port(at, (&raw.memif, &raw.veth), mtu, &mut shared.ports);
    let network = NetworkId(u16::try_from(place?).ok()?);
    let keys = keys?;
    Some(EndpointPlan {
        addresses: keys.addresses,
        anti_spoofing: keys.anti_spoofing,
        storm_limit: keys.storm_limit,
        announce: keys.announce,
        hairpin: keys.hairpin,
        ..EndpointPlan::new(&name?, network, keys.mac, port?)
    })
}

/// What an endpoint is, beside its name, where it is, and how it is attached.
pub struct Keys {
    pub mac: MacAddr,
    pub addresses: Vec<IpAddr>,
    pub anti_spoofing: bool,
    pub storm_limit: Option<u32>,
    pub announce: bool,
    pub hairpin: bool,
}

/// Checks them; `on` is its network, if it is known.
pub fn keys(at: &At<'_>, raw: &Endpoint, mut on: Option<&mut OnNetwork>) -> Option<Keys> {
    let mac = at.key("mac").text(&raw.mac, None, values::MAC, values::station_mac);
    if let (Some(mac), Some(on)) = (mac, &mut on) {
        on.macs.claim(mac, &at.key("mac"), &raw.mac);
    }
    let addresses = addresses(&at.key("addresses"), &raw.addresses, on);
    let anti_spoofing = at.key("anti_spoofing").switch(&raw.anti_spoofing, true);
    let storm_limit = at.key("storm_limit").number(&raw.storm_limit, 1..=1_000_000, Some(NO_STORM_LIMIT));
    let announce = at.key("announce").switch(&raw.announce, true);
    let hairpin = at.key("hairpin").switch(&raw.hairpin, false);
    Some(Keys {
        mac: mac?,
        addresses,
        anti_spoofing: anti_spoofing?,
        storm_limit: storm_limit.filter(|limit| *limit != NO_STORM_LIMIT),
        announce: announce?,
        hairpin: hairpin?,
    })
}

/// The place of the network with this name.
fn network(at: &At<'_>, field: &Field<String>, networks: &Taken<'_>) -> Option<usize> {
    let name = at.required(field, "the name of a network", |name| Some(name.clone()))?;
    if let Some(place) = networks.names.get(name.as_str()) {
        return Some(*place);
    }
    if networks.names.is_empty() {
        return None; // and why there is no network at all has been told
    }
    no_such_name(at, field, "a network", networks.names.keys().copied());
    None
}

/// Reports a name that nothing has.
pub fn no_such_name<'a>(
    at: &At<'_>,
    field: &Field<String>,
    what: &'static str,
    names: impl Iterator<Item = &'a str> + Clone,
) {
    let name = field.value().map(String::as_str).unwrap_or_default();
    let few = at.report().len() < SUGGESTIONS_MAX;
    at.report().add(ConfigError::NoSuchName {
        what,
        key: at.path(),
        got: field.to_string(),
        nearest: if few { nearest(name, names.clone()).map(show_text) } else { None },
        known: names.take(8).map(show_text).collect(),
    });
}

fn addresses(at: &At<'_>, field: &List<String>, mut on: Option<&mut OnNetwork>) -> Vec<IpAddr> {
    const RULE: &str = "a list of at most 64 IP addresses, such as [\"10.42.0.1\"]";
    let mut addresses = Vec::new();
    for (at, entry) in at.list(field, 0..=64, RULE) {
        let Some(ip) = at.text(entry, None, values::station_rule(entry), values::station_ip) else {
            continue;
        };
        if let Some(on) = &mut on {
            on.addresses.claim(ip, &at, entry);
        }
        addresses.push(ip);
    }
    addresses
}
