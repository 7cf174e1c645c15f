//! `[[networks]]`.

use std::collections::{BTreeMap, HashSet};
use std::net::IpAddr;
use std::time::Duration;

use peregrine_dataplane::plan::NetworkPlan;
use peregrine_dataplane::types::{Class, MacAddr, Vni};

use super::uplink;
use crate::at::{At, Claims};
use crate::error::ConfigError;
use crate::raw::{Field, List, Network, StaticMac};
use crate::values;

/// Different remotes over all networks: each is a `RemoteId`.
const REMOTES_TOTAL_MAX: u64 = 65535;
/// Learned addresses over all networks, for which memory is taken at start: as many networks as there may be, each
/// with the default.
const FDB_TOTAL_MAX: u64 = 4096 * 4096;
/// An inner Ethernet header, and the outer Ethernet, IPv4, UDP and VXLAN headers.
const HEADERS_BYTES: u32 = 14 + 50;
/// The kernel keeps this much at the start of every chunk.
const XDP_HEADROOM_BYTES: u32 = 256;

/// What the endpoints must know of the networks, and what is already taken on each.
pub struct Taken<'a> {
    /// Name → place in the list; also names with mistakes, so that one mistake is told once.
    pub names: BTreeMap<&'a str, usize>,
    /// For each network, by its place.
    pub on: Vec<OnNetwork>,
}

/// What the endpoints must know of one network, even when something else in it is wrong.
pub struct OnNetwork {
    pub macs: Claims<MacAddr>,
    pub mtu: Option<u16>,
}

/// What may be had once over all networks.
struct Unique {
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
    let mut unique = Unique { names: Claims::new(), vnis: Claims::new(), remotes: Claims::new() };
    let mut taken = Taken { names: BTreeMap::new(), on: Vec::new() };
    let mut plans = Vec::new();
    for (place, (at, entry)) in
        at.list(field, 1..=4096, "a list of 1 to 4096 tables: [[networks]]").enumerate()
    {
        let mut on = OnNetwork { macs: Claims::new(), mtu: None };
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
            at.all().key(key).invalid(&format!("{count} in total"), rule);
        }
    };
    total("remotes", unique.remotes.len() as u64, REMOTES_TOTAL_MAX, "different ones ");
    total("fdb_limit", plans.iter().map(|plan| u64::from(plan.fdb_limit)).sum(), FDB_TOTAL_MAX, "");
    (plans, taken)
}

fn network(
    at: &At<'_>,
    raw: &Network,
    uplinks: &uplink::Checked,
    unique: &mut Unique,
    on: &mut OnNetwork,
) -> Option<NetworkPlan> {
    let name = at.key("name").text(&raw.name, None, values::NAME, values::name);
    if let Some(name) = &name {
        unique.names.claim(name.clone(), &at.key("name"), raw.name.shown());
    }
    let vni = at.key("vni").number(&raw.vni, 1..=Vni::MAX, None).and_then(Vni::new);
    if let Some(vni) = vni {
        unique.vnis.claim(vni, &at.key("vni"), raw.vni.shown());
    }
    let mtu = at.key("mtu").number(&raw.mtu, 576..=9000, Some(1450));
    on.mtu = mtu;
    if let (Some(mtu), Some(chunk_size)) = (mtu, uplinks.chunk_size) {
        mtu_fits(&at.key("mtu"), mtu, chunk_size);
    }
    let remotes = remotes(&at.key("remotes"), &raw.remotes, &uplinks.locals);
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
    // Where a remote has a mistake, it may be the one that a static address means.
    let all =
        raw.remotes.value().map_or(matches!(raw.remotes, Field::Absent), |list| list.len() == remotes.len());
    let static_macs = static_macs(at, &raw.static_macs, all.then_some(&remotes), &mut on.macs);
    Some(NetworkPlan {
        name: name?,
        vni: vni?,
        mtu: mtu?,
        remotes,
        learning: learning?,
        ageing: ageing?,
        fdb_limit: fdb_limit?,
        static_macs,
        class: Class::NORMAL, // until the classes are known
    })
}

/// A whole frame with its outer headers must fit one chunk: we have no multi-buffer frames.
fn mtu_fits(at: &At<'_>, mtu: u16, chunk_size: u32) {
    let limit = chunk_size - XDP_HEADROOM_BYTES - HEADERS_BYTES;
    if u32::from(mtu) > limit {
        at.report().add(ConfigError::MtuTooLarge { key: at.path().to_owned(), mtu, limit, chunk_size });
    }
}

fn remotes<'r>(at: &At<'r>, field: &List<String>, locals: &[(IpAddr, String)]) -> Vec<(IpAddr, At<'r>)> {
    const RULE: &str = "a list of at most 1024 VTEP addresses, such as [\"192.0.2.2\"]";
    let mut claims = Claims::new();
    let mut remotes = Vec::new();
    for (at, entry) in at.list(field, 0..=1024, RULE) {
        let Some(ip) = at.text(entry, None, values::vtep_rule(entry), values::vtep) else { continue };
        if let Some((_, local)) = locals.iter().find(|(local, _)| *local == ip) {
            at.invalid(entry.shown(), format!("another host's address: {local} is the same"));
        } else {
            claims.claim(ip, &at, entry.shown());
        }
        remotes.push((ip, at));
    }
    remotes
}

fn static_macs(
    network: &At<'_>,
    field: &List<StaticMac>,
    remotes: Option<&Vec<IpAddr>>,
    macs: &mut Claims<MacAddr>,
) -> Vec<(MacAddr, IpAddr)> {
    const RULE: &str =
        "a list of at most 65536 tables, such as [{ mac = \"02:00:00:00:00:99\", remote = \"192.0.2.2\" }]";
    let known: Option<HashSet<&IpAddr>> = remotes.map(|remotes| remotes.iter().collect());
    let mut plans = Vec::new();
    for (at, entry) in network.key("static_macs").list(field, 0..=65536, RULE) {
        let Some(raw) = at.table(entry, "a table with the keys mac and remote") else { continue };
        let mac = at.key("mac").text(&raw.mac, None, values::MAC, values::station_mac);
        if let Some(mac) = mac {
            macs.claim(mac, &at.key("mac"), raw.mac.shown());
        }
        let at = at.key("remote");
        let remote = at.text(&raw.remote, None, values::vtep_rule(&raw.remote), values::vtep);
        if remote.is_some_and(|ip| known.as_ref().is_some_and(|known| !known.contains(&ip))) {
            at.invalid(raw.remote.shown(), format!("one of {}", network.key("remotes").path()));
        }
        plans.extend(mac.zip(remote));
    }
    plans
}
