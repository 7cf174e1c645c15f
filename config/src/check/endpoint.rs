//! `[[endpoints]]`.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::Path;

use peregrine_dataplane::plan::{EndpointPlan, MemifPlan, MemifRole};
use peregrine_dataplane::types::NetworkId;
use peregrine_memif::SocketAddr;

use super::network::Taken;
use crate::at::{At, Claims};
use crate::error::ConfigError;
use crate::nearest::nearest;
use crate::raw::{Endpoint, Field, List, Memif, show_text};
use crate::values;

/// So many mistakes and no more are worth the search for a name that looks like the one given.
const SUGGESTIONS_MAX: usize = 50;
/// Permission bits of a path socket where none are given: no other users.
const MODE_DEFAULT: u32 = 0o660;

/// What may be had once over all endpoints, and what those that share must agree on.
struct Shared<'a> {
    networks: Taken<'a>,
    names: Claims<String>,
    /// By the network's place.
    addresses: Claims<(usize, IpAddr)>,
    memifs: Claims<(SocketAddr, u32)>,
    /// The first mode for each path socket: the key's path, as shown, the bits.
    modes: HashMap<SocketAddr, (String, String, u32)>,
    control_socket: Option<&'a Path>,
}

/// Checks `[[endpoints]]`.
pub fn endpoints(
    at: &At<'_>,
    field: &List<Endpoint>,
    networks: Taken<'_>,
    control_socket: Option<&Path>,
) -> Vec<EndpointPlan> {
    let mut shared = Shared {
        networks,
        names: Claims::new(),
        addresses: Claims::new(),
        memifs: Claims::new(),
        modes: HashMap::new(),
        control_socket,
    };
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
        shared.names.claim(name.clone(), &at.key("name"), raw.name.shown());
    }
    let place = network(&at.key("network"), &raw.network, &shared.networks);
    let mac = at.key("mac").text(&raw.mac, None, values::MAC, values::station_mac);
    if let (Some(mac), Some(macs)) = (mac, place.and_then(|place| shared.networks.macs.get_mut(place))) {
        macs.claim(mac, &at.key("mac"), raw.mac.shown());
    }
    let addresses = addresses(&at.key("addresses"), &raw.addresses, place, shared);
    let anti_spoofing = at.key("anti_spoofing").switch(&raw.anti_spoofing, true);
    let at = at.key("memif");
    let memif = at
        .table(&raw.memif, "a table, such as { socket = \"/run/peregrine/memif.sock\", id = 0 }")
        .and_then(|raw| memif(&at, raw, shared));
    Some(EndpointPlan {
        name: name?,
        network: NetworkId(u16::try_from(place?).ok()?),
        mac: mac?,
        addresses,
        anti_spoofing: anti_spoofing?,
        memif: memif?,
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
    let names = || networks.names.keys().copied();
    let few = at.report().len() < SUGGESTIONS_MAX;
    at.report().add(ConfigError::NoSuchNetwork {
        key: at.path().to_owned(),
        got: field.shown().to_owned(),
        nearest: if few { nearest(&name, names()).map(show_text) } else { None },
        known: names().take(8).map(show_text).collect(),
    });
    None
}

fn addresses(
    at: &At<'_>,
    field: &List<String>,
    place: Option<usize>,
    shared: &mut Shared<'_>,
) -> Vec<IpAddr> {
    const RULE: &str = "a list of at most 64 IP addresses, such as [\"10.42.0.1\"]";
    let mut addresses = Vec::new();
    for (at, entry) in at.list(field, 0..=64, RULE) {
        let Some(ip) = at.text(entry, None, values::ADDRESS, values::station_ip) else { continue };
        if let Some(place) = place {
            shared.addresses.claim((place, ip), &at, entry.shown());
        }
        addresses.push(ip);
    }
    addresses
}

fn memif(at: &At<'_>, raw: &Memif, shared: &mut Shared<'_>) -> Option<MemifPlan> {
    let socket = at.key("socket").text(&raw.socket, None, values::SOCKET, values::memif_socket);
    let id = at.key("id").number(&raw.id, 0..=u32::MAX, Some(0));
    let secret = secret(&at.key("secret"), &raw.secret);
    let mode = at.key("mode").optional(&raw.mode, None, values::MODE, |text| values::mode(text).map(Some));
    let allow_unsealed = at.key("allow_unsealed").switch(&raw.allow_unsealed, false);
    let socket = socket?;
    if socket.path().is_some() && socket.path() == shared.control_socket {
        let (key, got) = (at.key("socket").path().to_owned(), raw.socket.shown().to_owned());
        at.report().add(ConfigError::Taken { key, got, by: "control_socket".to_owned() });
    }
    if let Some(id) = id {
        let got = if matches!(raw.id, Field::Absent) { "0 (the default)" } else { raw.id.shown() };
        shared.memifs.claim((socket.clone(), id), &at.key("id"), &format!("{got} on {}", raw.socket.shown()));
    }
    let mode = one_mode(&at.key("mode"), &raw.mode, &socket, mode?, shared);
    let allow_unsealed = allow_unsealed?;
    let role =
        MemifRole::Server { mode, owner: None, group: None, allow_unsealed, memory_bytes_max: 128 << 20 };
    Some(MemifPlan { socket, id: id?, secret: secret?, queue_pairs: 1, chains: false, role })
}

/// Never shows what was given.
fn secret(at: &At<'_>, field: &Field<crate::raw::Secret>) -> Option<Vec<u8>> {
    if matches!(field, Field::Absent) {
        return Some(Vec::new());
    }
    let secret = field.value().and_then(|text| values::secret(&text.0));
    if secret.is_none() {
        at.invalid("(not shown)", values::SECRET);
    }
    secret
}

/// The bits that a socket gets: none if it is abstract. A socket is made once, so all who share it must want the same.
fn one_mode(
    at: &At<'_>,
    raw: &Field<String>,
    socket: &SocketAddr,
    given: Option<u32>,
    shared: &mut Shared<'_>,
) -> Option<u32> {
    if socket.path().is_none() {
        if given.is_some() {
            at.invalid(raw.shown(), "left out: an abstract socket has no permission bits");
        }
        return None;
    }
    let mode = given.unwrap_or(MODE_DEFAULT);
    let shown = if given.is_some() { raw.shown() } else { "\"0660\" (the default)" };
    match shared.modes.get(socket) {
        Some((_, _, first)) if *first == mode => {}
        Some((other, other_got, _)) => at.report().add(ConfigError::MixedMode {
            key: at.path().to_owned(),
            got: shown.to_owned(),
            other: other.clone(),
            other_got: other_got.clone(),
        }),
        None => {
            shared.modes.insert(socket.clone(), (at.path().to_owned(), shown.to_owned(), mode));
        }
    }
    Some(mode)
}
