//! `classes`, `urgent_quota`, `default_class`, `trusted_remotes` and `[[rules]]`.

/// Rules for what runs already.
mod running;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use peregrine_dataplane::plan::{
    ClassPlan, ClassesPlan, DscpSet, NetworkPlan, Prefix, PrefixError, RulePlan, WorkOrder,
};
use peregrine_dataplane::types::{Class, EndpointId, NetworkId};
use toml::Value;

pub use running::rules_of;

use super::endpoint::no_such_name;
use crate::at::{At, Claims};
use crate::raw::{ClassEntry, ClassTable, Field, File, Kind, List, Network, Rule, show_text};
use crate::values;

/// Protocols that have ports.
const WITH_PORTS: [u8; 3] = [6, 17, 132];
const RULES: &str = "a list of at most 1024 tables: [[rules]]";
const CLASSES: &str =
    "a list of 1 to 4 names or tables, the most urgent first, such as [\"urgent\", \"normal\"]";
const CLASS: &str = "a name, or a table with the key name";
const ORDER: &str = "\"sync\", \"batch\" or \"fifo\"";
const LAST_ORDER: &str = "left out: the last class has nobody behind it";
const DEFAULT: &str = "the name of a class, because no class is called \"normal\"";

/// Percent, of all classes together.
const SHARES_MAX: u32 = 100;
const URGENT_QUOTA_MAX: u16 = 1024;

/// The classes, and what is the default.
pub struct Classes {
    /// With what is right of each whose name is.
    list: Vec<ClassPlan>,
    /// Some of the names have mistakes: then a name that is not there may be one of those.
    whole: bool,
    /// `None` if it has a mistake.
    urgent_quota: Option<u16>,
    /// `None` if it has a mistake.
    pub default: Option<Class>,
}

/// Checks `classes`, `urgent_quota` and `default_class`.
pub fn classes(top: &At<'_>, file: &File) -> Classes {
    let (list, whole) = match &file.classes {
        Field::Absent => (ClassesPlan::default().list, true),
        given => list(&top.key("classes"), given),
    };
    let urgent_quota = top.key("urgent_quota").number(
        &file.urgent_quota,
        1..=URGENT_QUOTA_MAX,
        Some(ClassesPlan::URGENT_QUOTA),
    );
    let mut classes = Classes { list, whole, urgent_quota, default: None };
    let at = top.key("default_class");
    let normal = classes.list.iter().position(|class| class.name == "normal");
    classes.default = match (&file.default_class, normal) {
        (Field::Absent, Some(place)) => u8::try_from(place).ok().map(Class),
        (Field::Absent, None) if !classes.whole => None,
        (Field::Absent, None) => at.required(&file.default_class, DEFAULT, |_| None),
        (field, _) => classes.class(&at, field),
    };
    classes
}

/// The classes whose names are right, and whether all are.
fn list(at: &At<'_>, field: &List<ClassEntry>) -> (Vec<ClassPlan>, bool) {
    let given = field.value().map_or(0, Vec::len);
    let mut claims = Claims::new();
    let mut list = Vec::new();
    for (place, (at, entry)) in at.list(field, 1..=Class::LIMIT, CLASSES).enumerate() {
        let is_last = place + 1 == given;
        let Some((class, at, shown)) = entry_of(&at, entry, is_last) else { continue };
        claims.claim(class.name.clone(), &at, &shown);
        list.push(class);
    }
    let shares: u32 = list.iter().map(|class| u32::from(class.share)).sum();
    if shares > SHARES_MAX {
        at.all()
            .key("share")
            .invalid(format!("{shares} in total"), format!("at most {SHARES_MAX} over all classes"));
    }
    let whole = list.len() == given && given > 0;
    (list, whole)
}

/// One class, with the place of its name and the name as it is shown. What else of it is wrong has been reported.
fn entry_of<'r>(
    at: &'r At<'r>,
    entry: &Field<ClassEntry>,
    is_last: bool,
) -> Option<(ClassPlan, At<'r>, String)> {
    at.required(entry, CLASS, |_| Some(()))?;
    match entry.value()? {
        ClassEntry::Name(name) => {
            let shown = show_text(name);
            if values::name(name).is_none() {
                at.invalid(&shown, values::NAME);
                return None;
            }
            Some((ClassPlan::new(name), *at, shown))
        }
        ClassEntry::Table(raw) => {
            at.unknown_keys(&**raw);
            let name = at.key("name").text(&raw.name, None, values::NAME, values::name);
            let plan = class_table(at, raw, is_last);
            Some((ClassPlan { name: name?, ..plan }, at.key("name"), raw.name.to_string()))
        }
    }
}

/// What a table says besides the name; defaults where it has mistakes.
fn class_table(at: &At<'_>, raw: &ClassTable, is_last: bool) -> ClassPlan {
    let default = ClassPlan::new("");
    let order = if is_last && let Some(given) = raw.order.given() {
        at.key("order").invalid(given, LAST_ORDER);
        None
    } else {
        let by_name = |text: &str| WorkOrder::ALL.into_iter().find(|order| order.name() == text);
        at.key("order").text(&raw.order, Some(default.order), ORDER, by_name)
    };
    let share = at.key("share").number(&raw.share, 0..=SHARES_MAX as u8, Some(default.share));
    let dscp = at.key("dscp").number(&raw.dscp, 0..=DscpSet::MAX, Some(default.dscp));
    ClassPlan {
        order: order.unwrap_or(default.order),
        share: share.unwrap_or(default.share),
        dscp: dscp.unwrap_or(default.dscp),
        ..default
    }
}

impl Classes {
    /// The class of this name.
    pub fn class(&self, at: &At<'_>, field: &Field<String>) -> Option<Class> {
        let name = at.required(field, "the name of a class", |name| Some(name.clone()))?;
        let place = self.list.iter().position(|known| known.name == name);
        if place.is_none() && self.whole {
            let known: Vec<String> = self.list.iter().map(|known| show_text(&known.name)).collect();
            at.invalid(field, format!("the name of a class: {}", known.join(", ")));
        }
        place.and_then(|place| u8::try_from(place).ok()).map(Class)
    }
}

/// The class of each network, in their order; `None` where it has a mistake.
pub fn of_networks(at: &At<'_>, field: &List<Network>, classes: &Classes) -> Vec<Option<Class>> {
    let class = |(place, network): (usize, &Network)| of_network(&at.nth(place), network, classes);
    tables(field).map(class).collect()
}

/// The class of one network.
pub fn of_network(at: &At<'_>, network: &Network, classes: &Classes) -> Option<Class> {
    match &network.class {
        Field::Absent => classes.default,
        given => classes.class(&at.key("class"), given),
    }
}

/// What rules may name.
pub struct Known<'a> {
    networks: BTreeMap<&'a str, usize>,
    endpoints: BTreeMap<&'a str, Endpoint<'a>>,
    /// The networks without mistakes.
    plans: &'a [NetworkPlan],
}

#[derive(Clone, Copy)]
struct Endpoint<'a> {
    place: usize,
    network: Option<&'a str>,
}

impl<'a> Known<'a> {
    /// Names as they are written, so that what else is wrong with their tables is told once.
    pub fn new(file: &'a File, plans: &'a [NetworkPlan]) -> Known<'a> {
        let mut known = Known { networks: BTreeMap::new(), endpoints: BTreeMap::new(), plans };
        for (place, network) in tables(&file.networks) {
            if let Some(name) = network.name.value() {
                known.networks.entry(name).or_insert(place);
            }
        }
        for (place, endpoint) in tables(&file.endpoints) {
            if let Some(name) = endpoint.name.value() {
                let network = endpoint.network.value().map(String::as_str);
                known.endpoints.entry(name).or_insert(Endpoint { place, network });
            }
        }
        known
    }
}

fn tables<T: Kind>(list: &List<T>) -> impl Iterator<Item = (usize, &T)> {
    let entries = list.value().map(Vec::as_slice).unwrap_or_default();
    entries.iter().enumerate().filter_map(|(place, entry)| Some((place, entry.value()?)))
}

/// Checks the rest.
pub fn plan(top: &At<'_>, file: &File, classes: Classes, known: &Known<'_>) -> Option<ClassesPlan> {
    let trusted = trusted(&top.key("trusted_remotes"), &file.trusted_remotes, known.plans);
    let nobody = match &file.trusted_remotes {
        Field::Absent => true,
        given => given.value().is_some_and(Vec::is_empty),
    };
    let rules = rules(&top.key("rules"), &file.rules, &classes, known, nobody);
    let Classes { list, urgent_quota, default, .. } = classes;
    Some(ClassesPlan { list, urgent_quota: urgent_quota?, default: default?, rules, trusted })
}

/// Checks `[[rules]]`. Where `nobody` is trusted, no rule may ask for outer DSCPs.
fn rules(
    at: &At<'_>,
    field: &List<Rule>,
    classes: &Classes,
    known: &Known<'_>,
    nobody: bool,
) -> Vec<RulePlan> {
    let mut rules = Vec::new();
    for (at, entry) in at.list(field, 0..=ClassesPlan::RULES_MAX, RULES) {
        let Some(raw) = at.table(entry, "a table: [[rules]]") else { continue };
        if nobody && !matches!(raw.outer_dscp, Field::Absent) {
            let rule = "left out: it is believed only from trusted_remotes, and there are none";
            at.key("outer_dscp").invalid(&raw.outer_dscp, rule);
        }
        rules.extend(rule(&at, raw, classes, known));
    }
    rules
}

fn trusted(at: &At<'_>, field: &List<String>, networks: &[NetworkPlan]) -> Vec<IpAddr> {
    const RULE: &str = "a list of at most 65535 VTEP addresses, such as [\"192.0.2.2\"]";
    let mut claims = Claims::new();
    let mut trusted = Vec::new();
    for (at, entry) in at.list(field, 0..=65535, RULE) {
        let Some(ip) = at.text(entry, None, values::vtep_rule(entry), values::vtep) else { continue };
        claims.claim(ip, &at, entry);
        // Where something else is wrong, its network may be the one that is not in the list.
        if at.report().is_clean() && !networks.iter().any(|network| network.remotes.contains(&ip)) {
            at.invalid(entry, "one of the remotes of a network");
        }
        trusted.push(ip);
    }
    trusted
}

fn rule(at: &At<'_>, raw: &Rule, classes: &Classes, known: &Known<'_>) -> Option<RulePlan> {
    let class = classes.class(&at.key("class"), &raw.class);
    let network = named(&at.key("network"), &raw.network, "a network", &known.networks);
    let endpoint = named(&at.key("endpoint"), &raw.endpoint, "an endpoint", &known.endpoints);
    let network_of = endpoint.and_then(|endpoint| endpoint.network);
    let its_network = network_of.and_then(|name| known.networks.get(name)).copied();
    if let (Some(network), Some(its), Some(of)) = (network, its_network, network_of)
        && network != its
    {
        let rule = format!("left out, or the endpoint's network, {}", show_text(of));
        at.key("network").invalid(&raw.network, rule);
    }
    let plan = RulePlan {
        class: Class::NORMAL,
        network: network.or(its_network).and_then(|place| u16::try_from(place).ok()).map(NetworkId),
        endpoint: endpoint.and_then(|endpoint| u16::try_from(endpoint.place).ok()).map(EndpointId),
        dscp: asked(at, "dscp", &raw.dscp, DSCP, dscp),
        protocol: asked(at, "protocol", &raw.protocol, PROTOCOL, protocol),
        source_port: asked(at, "source_port", &raw.source_port, PORT, port),
        destination_port: asked(at, "destination_port", &raw.destination_port, PORT, port),
        port: asked(at, "port", &raw.port, PORT, port),
        source: prefix(&at.key("source"), &raw.source),
        destination: prefix(&at.key("destination"), &raw.destination),
        address: prefix(&at.key("address"), &raw.address),
        outer_dscp: asked(at, "outer_dscp", &raw.outer_dscp, DSCP, dscp),
    };
    contradictions(at, raw, &plan);
    Some(RulePlan { class: class?, ..plan })
}

/// What no packet can be.
fn contradictions(at: &At<'_>, raw: &Rule, plan: &RulePlan) {
    if plan.protocol.is_some_and(|protocol| !WITH_PORTS.contains(&protocol)) {
        for (key, field) in [
            ("source_port", &raw.source_port),
            ("destination_port", &raw.destination_port),
            ("port", &raw.port),
        ] {
            if let Some(given) = field.given() {
                let rule = format!("left out: protocol = {} has no ports", raw.protocol);
                at.key(key).invalid(given, rule);
            }
        }
    }
    if let (Some(either), Some(source), Some(destination)) =
        (&plan.port, &plan.source_port, &plan.destination_port)
        && [source, destination].iter().all(|one| one.end() < either.start() || either.end() < one.start())
    {
        at.key("port").invalid(&raw.port, "within reach of source_port or destination_port");
    }
    let addresses = [
        ("source", &raw.source, plan.source),
        ("destination", &raw.destination, plan.destination),
        ("address", &raw.address, plan.address),
    ];
    let mut given = addresses.iter().filter_map(|(key, field, prefix)| Some((key, field, (*prefix)?)));
    if let Some((first_key, _, first)) = given.next()
        && let Some((key, field, _)) = given.find(|(_, _, prefix)| prefix.is_ipv4() != first.is_ipv4())
    {
        let rule = format!("of the same IP version as {first_key}: a packet has one");
        at.key(key).invalid(field, rule);
    }
}

/// A name, if one is given, and what it stands for, if there is such a thing.
fn named<V: Copy>(
    at: &At<'_>,
    field: &Field<String>,
    what: &'static str,
    known: &BTreeMap<&str, V>,
) -> Option<V> {
    if matches!(field, Field::Absent) {
        return None;
    }
    let name = at.required(field, format!("the name of {what}"), |name| Some(name.clone()))?;
    let found = known.get(name.as_str()).copied();
    if found.is_none() {
        no_such_name(at, field, what, known.keys().copied());
    }
    found
}

/// What a rule asks for, if it does.
fn asked<T>(
    at: &At<'_>,
    key: &str,
    field: &Field<Value>,
    rule: &'static str,
    parse: impl Fn(&Value) -> Option<T>,
) -> Option<T> {
    if matches!(field, Field::Absent) { None } else { at.key(key).required(field, rule, parse) }
}

fn prefix(at: &At<'_>, field: &Field<String>) -> Option<Prefix> {
    if matches!(field, Field::Absent) {
        return None;
    }
    let parsed = field.value().map_or(Err(PrefixError::Syntax), |text| text.parse());
    parsed.map_err(|error| at.invalid(field, error.to_string())).ok()
}

const DSCP: &str = "a number from 0 to 63, a range such as \"40-47\", or a list of both";

fn dscp(value: &Value) -> Option<DscpSet> {
    let one = |value: &Value| range(value, DscpSet::MAX.into());
    let ranges = match value {
        Value::Array(list) if !list.is_empty() => list.iter().map(one).collect::<Option<Vec<_>>>()?,
        other => vec![one(other)?],
    };
    Some(ranges.into_iter().flatten().filter_map(|dscp| u8::try_from(dscp).ok()).collect())
}

const PORT: &str = "a number from 0 to 65535, or a range such as \"5000-5999\"";

fn port(value: &Value) -> Option<RangeInclusive<u16>> {
    range(value, u16::MAX)
}

/// A number, or a text of two with a dash between.
fn range(value: &Value, max: u16) -> Option<RangeInclusive<u16>> {
    let number = |text: &str| {
        let digits = (1..=5).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u16>().ok()).flatten()
    };
    let (first, last) = match value {
        Value::Integer(number) => (u16::try_from(*number).ok()?, u16::try_from(*number).ok()?),
        Value::String(text) => text.split_once('-').and_then(|(a, b)| Some((number(a)?, number(b)?)))?,
        _ => return None,
    };
    (first <= last && last <= max).then_some(first..=last)
}

const PROTOCOL: &str = "\"tcp\", \"udp\", \"icmp\", \"icmpv6\", \"sctp\" or a number from 0 to 255";

fn protocol(value: &Value) -> Option<u8> {
    match value {
        Value::Integer(number) => u8::try_from(*number).ok(),
        Value::String(name) => PROTOCOLS.iter().find(|(_, its)| its == name).map(|(number, _)| *number),
        _ => None,
    }
}

const PROTOCOLS: [(u8, &str); 5] = [(1, "icmp"), (6, "tcp"), (17, "udp"), (58, "icmpv6"), (132, "sctp")];

/// What a protocol is called in a file, if it has a name there.
pub fn protocol_name(number: u8) -> Option<&'static str> {
    PROTOCOLS.iter().find(|(its, _)| *its == number).map(|(_, name)| *name)
}
