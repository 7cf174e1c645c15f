//! `[[networks]]`.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use peregrine_dataplane::plan::{
    InnerVlan, NetworkPlan, OuterDscp, Prefix, PrefixError, ReservedBits, StaticMac,
};
use peregrine_dataplane::types::{Class, MacAddr, Vni};
use toml::Value;

use super::uplink;
use crate::at::{At, Claims};

use crate::raw::{Field, List, Network, StaticMac as RawStaticMac};
use crate::values;

/// Different remotes over all networks: each is a `RemoteId`.
const REMOTES_TOTAL_MAX: u64 = 65535;
/// Learned addresses over all networks, for which memory is taken at start: as many networks as there may be, each
/// with the default.
const FDB_TOTAL_MAX: u64 = 4096 * 4096;
const RESERVED_BITS: &str = "\"ignore\" or \"refuse\"";
const INNER_VLAN: &str = "\"drop\", \"strip\" or \"carry\"";
const GATEWAYS_MAX: usize = 2;
const DSCP: &str = "\"class\", \"copy\" or a number from 0 to 63";
/// Stands for a key that was left out; not in the range.
const PORT_OF_THE_UPLINK: u16 = 0;

/// What the endpoints must know of the networks, and what is already taken on each.
pub struct Taken<'a> {
    /// Name → place in the list; also names with mistakes, so that one mistake is told once.
    pub names: BTreeMap<&'a str, usize>,
    /// For each network, by its place.
    pub on: Vec<OnNetwork>,
}

/// What the endpoints must know of one network, even when something else in it is wrong.
#[derive(Default)]
pub struct OnNetwork {
    pub macs: Claims<MacAddr>,
    pub addresses: Claims<IpAddr>,
    pub mtu: Option<u16>,
}

/// What may be had once over all networks.
#[derive(Default)]
pub struct Unique {
    names: Claims<String>,
    vnis: Claims<Vni>,
    remotes: Claims<IpAddr>,
}

/// Checks `[[networks]]`.
pub fn networks<'a>(
    at: &At<'_>,
    field: &'a List<Network>,
    uplinks: &uplink::Checked,
) -> (Vec<NetworkPlan>, Taken<'a>) {
    let mut unique = Unique::default();
    let mut taken = Taken { names: BTreeMap::new(), on: Vec::new() };
    let mut plans = Vec::new();
    for (place, (at, entry)) in
        at.list(field, 1..=4096, "a list of 1 to 4096 tables: [[networks]]").enumerate()
    {
        let mut on = OnNetwork::default();
        if let Some(raw) = at.table(entry, "a table: [[networks]]") {
            if let Some(name) = raw.name.value() {
                taken.names.entry(name).or_insert(place);
            }
            plans.extend(network(&at, raw, uplinks, &mut unique, &mut on));
        }
        taken.on.push(on);
    }
    let total = |key: &str, count: u64, limit: u64, what: &str| {
        if count > limit {
            let rule = format!("at most {limit} {what}over all networks");
            at.all().key(key).invalid(format!("{count} in total"), rule);
        }
    };
    total("remotes", unique.remotes.len() as u64, REMOTES_TOTAL_MAX, "different ones ");
    total("fdb_limit", plans.iter().map(|plan| u64::from(plan.fdb_limit)).sum(), FDB_TOTAL_MAX, "");
    (plans, taken)
}

/// Checks one network, but for its class.
pub fn network(
    at: &At<'_>,
    raw: &Network,
    uplinks: &uplink::Checked,
    unique: &mut Unique,
    on: &mut OnNetwork,
) -> Option<NetworkPlan> {
    let name = at.key("name").text(&raw.name, None, values::NAME, values::name);
    if let Some(name) = &name {
        unique.names.claim(name.clone(), &at.key("name"), &raw.name);
    }
    let vni = at.key("vni").number(&raw.vni, 1..=Vni::MAX, None).and_then(Vni::new);
    if let Some(vni) = vni {
        unique.vnis.claim(vni, &at.key("vni"), &raw.vni);
    }
    let mtu = at.key("mtu").number(&raw.mtu, 576..=9000, Some(1450));
    on.mtu = mtu;
    let port = at.key("port").number(&raw.port, 1..=u16::MAX, Some(PORT_OF_THE_UPLINK));
    if let Some(port) = port {
        for (ports, path) in &uplinks.source_ports {
            uplink::port_is_apart(&at.key("port"), port, ports, path);
        }
    }
    let local = local(&at.key("local"), &raw.local, &uplinks.locals);
    let at_remotes = at.key("remotes");
    let remotes = remotes(&at_remotes, &raw.remotes, &uplinks.locals);
    let any_remote = at.key("any_remote").switch(&raw.any_remote, false);
    same_family(&remotes, local.flatten(), &at.key("local"), &uplinks.locals);
    let reserved_bits =
        at.key("reserved_bits").text(&raw.reserved_bits, Some(ReservedBits::Ignore), RESERVED_BITS, |text| {
            [("ignore", ReservedBits::Ignore), ("refuse", ReservedBits::Refuse)]
                .into_iter()
                .find_map(named(text))
        });
    let inner_vlan = at.key("inner_vlan").text(&raw.inner_vlan, Some(InnerVlan::Drop), INNER_VLAN, |text| {
        [("drop", InnerVlan::Drop), ("strip", InnerVlan::Strip), ("carry", InnerVlan::Carry)]
            .into_iter()
            .find_map(named(text))
    });
    let dscp = at.key("dscp").optional(&raw.dscp, OuterDscp::ByClass, DSCP, outer_dscp);
    let suppression = at.key("suppression").switch(&raw.suppression, true);
    let subnets = subnets(&at.key("subnets"), &raw.subnets);
    let gateways = gateways(&at.key("gateways"), &raw.gateways);
    let clamp_mss = at.key("clamp_mss").switch(&raw.clamp_mss, false);
    for (ip, place) in &remotes {
        if !unique.remotes.contains(ip) {
            unique.remotes.claim(*ip, place, "");
        }
    }
    let remotes: Vec<IpAddr> = remotes.into_iter().map(|(ip, _)| ip).collect();
    let learning = at.key("learning").switch(&raw.learning, true);
    let ageing =
        at.key("ageing").text(&raw.ageing, Some(Duration::from_secs(300)), values::AGEING, values::ageing);
    let fdb_limit = at.key("fdb_limit").number(&raw.fdb_limit, 1..=1_000_000, Some(4096));
    let move_limit = at.key("move_limit").number(&raw.move_limit, 0..=u8::MAX, Some(5));
    let move_hold = at.key("move_hold").text(
        &raw.move_hold,
        Some(Duration::from_secs(30)),
        values::AGEING,
        values::ageing,
    );
    // Where a remote has a mistake, it may be the one that a static address means.
    let all =
        raw.remotes.value().map_or(matches!(raw.remotes, Field::Absent), |list| list.len() == remotes.len());
    let static_macs = static_macs(at, &raw.static_macs, all.then_some(&remotes), on);
    Some(NetworkPlan {
        mtu: mtu?,
        port: port.filter(|port| *port != PORT_OF_THE_UPLINK),
        local: local?,
        remotes,
        any_remote: any_remote?,
        reserved_bits: reserved_bits?,
        inner_vlan: inner_vlan?,
        dscp: dscp?,
        suppression: suppression?,
        subnets,
        gateways,
        clamp_mss: clamp_mss?,
        learning: learning?,
        ageing: ageing?,
        fdb_limit: fdb_limit?,
        move_limit: move_limit?,
        move_hold: move_hold?,
        static_macs,
        class: Class::NORMAL, // until the classes are known
        ..NetworkPlan::new(&name?, vni?)
    })
}

/// The value of a word.
fn named<T>(text: &str) -> impl Fn((&str, T)) -> Option<T> {
    move |(word, value)| (word == text).then_some(value)
}

fn outer_dscp(value: &Value) -> Option<OuterDscp> {
    match value {
        Value::String(text) if text == "class" => Some(OuterDscp::ByClass),
        Value::String(text) if text == "copy" => Some(OuterDscp::Copy),
        Value::Integer(number) => u8::try_from(*number).ok().filter(|dscp| *dscp < 64).map(OuterDscp::Fixed),
        _ => None,
    }
}

/// Outer: a mistake was told. Inner: the key was left out.
#[expect(clippy::option_option, reason = "a mistake and nothing are not the same")]
fn local(at: &At<'_>, field: &Field<String>, locals: &[(IpAddr, String)]) -> Option<Option<IpAddr>> {
    if matches!(field, Field::Absent) {
        return Some(None);
    }
    let ip = at.text(field, None, values::vtep_rule(field), values::vtep)?;
    // Without any, that is what was told.
    if !locals.is_empty() && !locals.iter().any(|(local, _)| *local == ip) {
        at.invalid(field, "one of the uplinks' `local` addresses");
        return None;
    }
    Some(Some(ip))
}

/// What is sent to a remote must come from an address of the same IP version.
fn same_family(
    remotes: &[(IpAddr, At<'_>)],
    local: Option<IpAddr>,
    local_at: &At<'_>,
    locals: &[(IpAddr, String)],
) {
    for (remote, at) in remotes {
        let version = if remote.is_ipv6() { "IPv6" } else { "IPv4" };
        let got = format!("\"{remote}\"");
        match local {
            Some(local) if local.is_ipv6() != remote.is_ipv6() => {
                at.invalid(&got, format!("of the same IP version as {local_at} = \"{local}\""));
            }
            None if !locals.is_empty() && !locals.iter().any(|(ip, _)| ip.is_ipv6() == remote.is_ipv6()) => {
                at.invalid(
                    &got,
                    format!("reached from an address of ours: no uplink has an {version} `local`"),
                );
            }
            _ => {}
        }
    }
}

fn subnets(at: &At<'_>, field: &List<String>) -> Vec<Prefix> {
    const RULE: &str = "a list of at most 16 prefixes, such as [\"10.42.0.0/16\"]";
    let mut claims = Claims::new();
    let mut subnets = Vec::new();
    for (at, entry) in at.list(field, 0..=16, RULE) {
        let parsed = entry.value().map_or(Err(PrefixError::Syntax), |text| text.parse());
        match parsed {
            Ok(prefix) => {
                claims.claim(prefix, &at, entry);
                subnets.push(prefix);
            }
            Err(error) => at.invalid(entry, error.to_string()),
        }
    }
    subnets
}

fn gateways(at: &At<'_>, field: &List<String>) -> Vec<IpAddr> {
    const RULE: &str = "a list of at most two addresses, one of each IP version, such as [\"10.42.0.254\"]";
    let mut gateways: Vec<IpAddr> = Vec::new();
    // Of too many, some are of the same version: that is no mistake of its own.
    let is_counted = field.value().is_none_or(|list| list.len() <= GATEWAYS_MAX);
    for (at, entry) in at.list(field, 0..=GATEWAYS_MAX, RULE) {
        let Some(ip) = at.text(entry, None, values::station_rule(entry), values::station_ip) else {
            continue;
        };
        if is_counted && gateways.iter().any(|other| other.is_ipv6() == ip.is_ipv6()) {
            at.invalid(entry, RULE);
        }
        gateways.push(ip);
    }
    gateways
}

fn remotes<'r>(at: &'r At<'r>, field: &List<String>, locals: &[(IpAddr, String)]) -> Vec<(IpAddr, At<'r>)> {
    const RULE: &str = "a list of at most 1024 VTEP addresses, such as [\"192.0.2.2\"]";
    let mut claims = Claims::new();
    let mut remotes = Vec::new();
    for (at, entry) in at.list(field, 0..=1024, RULE) {
        let Some(ip) = at.text(entry, None, values::vtep_rule(entry), values::vtep) else { continue };
        if let Some((_, local)) = locals.iter().find(|(local, _)| *local == ip) {
            at.invalid(entry, format!("another host's address: {local} is the same"));
        } else {
            claims.claim(ip, &at, entry);
        }
        remotes.push((ip, at));
    }
    remotes
}

fn static_macs(
    network: &At<'_>,
    field: &List<RawStaticMac>,
    remotes: Option<&Vec<IpAddr>>,
    on: &mut OnNetwork,
) -> Vec<StaticMac> {
    const RULE: &str =
        "a list of at most 65536 tables, such as [{ mac = \"02:00:00:00:00:99\", remote = \"192.0.2.2\" }]";
    let known: Option<HashSet<&IpAddr>> = remotes.map(|remotes| remotes.iter().collect());
    let mut plans = Vec::new();
    for (at, entry) in network.key("static_macs").list(field, 0..=65536, RULE) {
        let Some(raw) = at.table(entry, "a table with the keys mac and remote") else { continue };
        let addresses = static_addresses(&at.key("addresses"), &raw.addresses, &mut on.addresses);
        let mac = at.key("mac").text(&raw.mac, None, values::MAC, values::station_mac);
        if let Some(mac) = mac {
            on.macs.claim(mac, &at.key("mac"), &raw.mac);
        }
        let at = at.key("remote");
        let remote = at.text(&raw.remote, None, values::vtep_rule(&raw.remote), values::vtep);
        if remote.is_some_and(|ip| known.as_ref().is_some_and(|known| !known.contains(&ip))) {
            at.invalid(&raw.remote, format!("one of {}", network.key("remotes").path()));
        }
        plans.extend(mac.zip(remote).map(|(mac, remote)| StaticMac { mac, remote, addresses }));
    }
    plans
}

/// Those that ARP and neighbour solicitations are answered for. Two stations behind remotes may have the same one, and then it is nobody's;
/// an endpoint may not, nor one station twice.
fn static_addresses(at: &At<'_>, field: &List<String>, claims: &mut Claims<IpAddr>) -> Vec<IpAddr> {
    const RULE: &str = "a list of at most 64 IP addresses, such as [\"10.42.0.9\"]";
    let (mut addresses, mut own) = (Vec::new(), Claims::new());
    for (at, entry) in at.list(field, 0..=64, RULE) {
        let Some(ip) = at.text(entry, None, values::station_rule(entry), values::station_ip) else {
            continue;
        };
        own.claim(ip, &at, entry);
        if !claims.contains(&ip) {
            claims.claim(ip, &at, entry);
        }
        addresses.push(ip);
    }
    addresses
}
