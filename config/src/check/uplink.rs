//! `[uplink]`, or several: `[[uplink]]`.

use std::collections::HashSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use peregrine_dataplane::plan::{Early, Queues, UdpChecksum, UplinkPlan, XdpMode};
use peregrine_dataplane::types::{QueueId, UplinkId};
use toml::Value;

use crate::at::{At, Claims};
use crate::error::ConfigError;
use crate::raw::{Addresses, Field, Uplink, Uplinks};
use crate::values;

/// The uplinks, and what the networks must know of them even when something else is wrong.
#[derive(Default)]
pub struct Checked {
    /// Those without mistakes.
    pub plans: Vec<UplinkPlan>,
    /// Our VTEP addresses, and the path of the key of each.
    pub locals: Vec<(IpAddr, String)>,
    /// The UDP source ports of each, and the path of the key.
    pub source_ports: Vec<(RangeInclusive<u16>, String)>,
}

impl Checked {
    /// Those of a plan.
    pub fn of(plans: &[UplinkPlan]) -> Checked {
        let mut checked = Checked::default();
        for (place, plan) in plans.iter().enumerate() {
            let path = if plans.len() == 1 { "uplink".to_owned() } else { format!("uplink[{place}]") };
            let locals = plan.locals.iter().enumerate();
            checked.locals.extend(locals.map(|(nth, ip)| (*ip, format!("{path}.local[{nth}]"))));
            checked.source_ports.push((plan.source_ports.clone(), format!("{path}.source_ports")));
        }
        checked
    }
}

const TABLES: &str = "a table: [uplink], or 1 to 4 of them: [[uplink]]";
/// More receive queues than any NIC has; bounds the list.
const QUEUE_MAX: i64 = 4095;
const QUEUES: &str = "\"all\" or a list of different queue numbers from 0 to 4095, such as [0, 1]";
const MODES: [XdpMode; 4] =
    [XdpMode::RequireZeroCopy, XdpMode::PreferZeroCopy, XdpMode::Copy, XdpMode::Generic];
const MODE: &str = "\"require-zero-copy\", \"prefer-zero-copy\", \"copy\" or \"generic\"";
const EARLY: &str = "true, false or \"if-possible\"";
const UDP_CHECKSUM: &str = "\"auto\", true or false";
const VLAN_MAX: u16 = 4094;
/// Stands for a key that was left out; not in the range.
const UNTAGGED: u16 = 0;
const LOCALS_MAX: usize = 8;
const SOURCE_PORTS: &str = "two numbers from 1 to 65535 in order, such as [49152, 65535]";

/// Checks `[uplink]` or `[[uplink]]`.
pub fn uplinks(at: &At<'_>, field: &Field<Uplinks>) -> Checked {
    let (mut checked, mut unlike) = (Checked::default(), Unlike::default());
    match at.required(field, TABLES, |_| Some(())).and(field.value()) {
        None => {}
        Some(Uplinks::One(raw)) => {
            at.unknown_keys(&**raw);
            uplink(at, raw, &mut checked, &mut unlike);
        }
        Some(Uplinks::Several(list)) => {
            if !(1..=UplinkId::LIMIT).contains(&list.len()) {
                let (key, count) = (at.path(), list.len());
                at.report().add(ConfigError::Count { key, count, rule: TABLES.into() });
            }
            for (place, entry) in list.iter().enumerate() {
                let at = at.nth(place);
                if let Some(raw) = at.table(entry, "a table: [[uplink]]") {
                    uplink(&at, raw, &mut checked, &mut unlike);
                }
            }
        }
    }
    checked
}

/// What the uplinks have each for itself, and what they have together.
#[derive(Default)]
struct Unlike {
    interfaces: Claims<String>,
    locals: Claims<IpAddr>,
    chunk_size: Shared<u32>,
    ring_size: Shared<u32>,
    /// Those that must have zero-copy, and those that must not.
    zero_copy: Shared<bool>,
}

/// A value that all uplinks have together, with its path and as it is shown.
struct Shared<T>(Option<(T, String, String)>);

impl<T> Default for Shared<T> {
    fn default() -> Shared<T> {
        Shared(None)
    }
}

impl<T: PartialEq> Shared<T> {
    /// The first says it; who says another value is reported.
    fn agree(&mut self, at: &At<'_>, value: Option<T>, shown: impl Display) {
        let Some(value) = value else { return };
        let Some((first, path, first_shown)) = &self.0 else {
            self.0 = Some((value, at.path(), shown.to_string()));
            return;
        };
        if *first != value {
            at.report().add(ConfigError::Disagree {
                of: "all uplinks, whose sockets share memory",
                key: at.path(),
                got: shown.to_string(),
                other: path.clone(),
                other_got: first_shown.clone(),
            });
        }
    }
}

fn uplink(at: &At<'_>, raw: &Uplink, checked: &mut Checked, unlike: &mut Unlike) {
    let interface = at.key("interface").text(&raw.interface, None, values::INTERFACE, values::interface);
    let queues = at.key("queues").optional(&raw.queues, Queues::All, QUEUES, queues);
    let mode = at.key("mode").optional(&raw.mode, XdpMode::PreferZeroCopy, MODE, |text| {
        MODES.into_iter().find(|mode| mode.name() == text)
    });
    let vlan = at.key("vlan").number(&raw.vlan, 1..=VLAN_MAX, Some(UNTAGGED));
    let locals = locals(&at.key("local"), &raw.local, checked, unlike);
    let port = at.key("port").number(&raw.port, 1..=u16::MAX, Some(4789));
    let ttl = at.key("ttl").number(&raw.ttl, 1..=u8::MAX, Some(64));
    let source_ports =
        at.key("source_ports")
            .optional(&raw.source_ports, 49152..=65535, SOURCE_PORTS, |list| source_ports(list));
    let udp_checksum = at.key("udp_checksum").optional(
        &raw.udp_checksum,
        UdpChecksum::default(),
        UDP_CHECKSUM,
        udp_checksum,
    );
    let accept_zero_checksum = at.key("accept_zero_checksum").switch(&raw.accept_zero_checksum, true);
    if let (Some(port), Some(ports)) = (port, &source_ports) {
        port_is_apart(&at.key("port"), port, ports, &at.key("source_ports").path());
        checked.source_ports.push((ports.clone(), at.key("source_ports").path()));
    }
    let chunk_size = at.key("chunk_size").optional(&raw.chunk_size, 2048, "2048 or 4096", |size| {
        u32::try_from(*size).ok().filter(|size| matches!(size, 2048 | 4096))
    });
    let ring_size =
        at.key("ring_size").optional(&raw.ring_size, 2048, "a power of two from 64 to 32768", |size| {
            u32::try_from(*size).ok().filter(|size| size.is_power_of_two() && (64..=32768).contains(size))
        });
    let early = at.key("early").optional(&raw.early, Early::Off, EARLY, early);
    let fix = at.key("fix").switch(&raw.fix, false);
    if let Some(interface) = &interface {
        unlike.interfaces.claim(interface.clone(), &at.key("interface"), &raw.interface);
    }
    unlike.chunk_size.agree(&at.key("chunk_size"), chunk_size, raw.chunk_size.given_or("2048"));
    unlike.ring_size.agree(&at.key("ring_size"), ring_size, raw.ring_size.given_or("2048"));
    let zero_copy = mode.filter(|mode| *mode != XdpMode::PreferZeroCopy);
    let zero_copy = zero_copy.map(|mode| mode == XdpMode::RequireZeroCopy);
    unlike.zero_copy.agree(&at.key("mode"), zero_copy, &raw.mode);
    let plan = || {
        Some(UplinkPlan {
            vlan: vlan.filter(|vlan| *vlan != UNTAGGED),
            queues: queues?,
            mode: mode?,
            udp_checksum: udp_checksum?,
            accept_zero_checksum: accept_zero_checksum?,
            port: port?,
            source_ports: source_ports?,
            ttl: ttl?,
            chunk_size: chunk_size?,
            ring_size: ring_size?,
            early: early?,
            fix: fix?,
            ..UplinkPlan::new(&interface?, *locals.first()?)
        })
    };
    // Where one of the addresses has a mistake, that is told, and there is no plan.
    checked.plans.extend(plan().map(|plan| UplinkPlan { locals, ..plan }));
}

/// Our VTEP addresses on one uplink.
fn locals(at: &At<'_>, field: &Field<Addresses>, checked: &mut Checked, unlike: &mut Unlike) -> Vec<IpAddr> {
    const RULE: &str = "our VTEP address, such as \"192.0.2.1\", or a list of 1 to 8";
    let mut locals = Vec::new();
    let mut add = |at: &At<'_>, entry: &Field<String>| {
        let Some(ip) = at.text(entry, None, values::vtep_rule(entry), values::vtep) else { return };
        unlike.locals.claim(ip, at, entry);
        checked.locals.push((ip, at.path()));
        locals.push(ip);
    };
    match at.required(field, RULE, |_| Some(())).and(field.value()) {
        None => {}
        Some(Addresses::One(text)) => add(at, &Field::Given(text.clone())),
        Some(Addresses::Several(list)) => {
            if !(1..=LOCALS_MAX).contains(&list.len()) {
                let (key, count) = (at.path(), list.len());
                at.report().add(ConfigError::Count { key, count, rule: RULE.into() });
            }
            list.iter().enumerate().for_each(|(place, entry)| add(&at.nth(place), entry));
        }
    }
    locals
}

/// What comes back to a source port (an ICMP error, a frame that went astray) must not look like VXLAN.
pub fn port_is_apart(at: &At<'_>, port: u16, ports: &RangeInclusive<u16>, path: &str) {
    if ports.contains(&port) {
        let (first, last) = (ports.start(), ports.end());
        at.invalid(
            port.to_string(),
            format!("outside {path} = [{first}, {last}], which frames are sent from"),
        );
    }
}

fn udp_checksum(value: &Value) -> Option<UdpChecksum> {
    match value {
        Value::Boolean(on) => Some(UdpChecksum { ipv4: *on, ipv6: *on }),
        Value::String(text) if text == "auto" => Some(UdpChecksum::default()),
        _ => None,
    }
}

fn early(value: &Value) -> Option<Early> {
    match value {
        Value::Boolean(true) => Some(Early::On),
        Value::Boolean(false) => Some(Early::Off),
        Value::String(text) if text == "if-possible" => Some(Early::IfPossible),
        _ => None,
    }
}

fn queues(value: &Value) -> Option<Queues> {
    let list = match value {
        Value::String(text) if text == "all" => return Some(Queues::All),
        Value::Array(list) if !list.is_empty() => list,
        _ => return None,
    };
    let mut queues = Vec::new();
    let mut seen = HashSet::new();
    for entry in list {
        let number = entry.as_integer().filter(|number| (0..=QUEUE_MAX).contains(number))?;
        let queue = QueueId(u32::try_from(number).ok()?);
        if !seen.insert(queue) {
            return None;
        }
        queues.push(queue);
    }
    Some(Queues::List(queues))
}

fn source_ports(list: &[Field<i64>]) -> Option<RangeInclusive<u16>> {
    let [first, last] = list else { return None };
    let (first, last) = (u16::try_from(*first.value()?).ok()?, u16::try_from(*last.value()?).ok()?);
    (1 <= first && first <= last).then_some(first..=last)
}
