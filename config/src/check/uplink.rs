//! `[uplink]`, or several: `[[uplink]]`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use peregrine_dataplane::plan::{Early, Queues, UplinkPlan, XdpMode};
use peregrine_dataplane::types::{QueueId, UplinkId};
use toml::Value;

use crate::at::{At, Claims};
use crate::error::ConfigError;
use crate::raw::{Field, Uplink, Uplinks};
use crate::values;

/// The uplinks, and what the networks must know of them even when something else is wrong.
#[derive(Default)]
pub struct Checked {
    /// Those without mistakes.
    pub plans: Vec<UplinkPlan>,
    /// Our VTEP addresses, and the path of the key of each.
    pub locals: Vec<(IpAddr, String)>,
    /// That of the first.
    pub chunk_size: Option<u32>,
}

const TABLES: &str = "a table: [uplink], or 1 to 4 of them: [[uplink]]";
/// More receive queues than any NIC has; bounds the list.
const QUEUE_MAX: i64 = 4095;
const QUEUES: &str = "\"all\" or a list of different queue numbers from 0 to 4095, such as [0, 1]";
const MODES: [XdpMode; 4] =
    [XdpMode::RequireZeroCopy, XdpMode::PreferZeroCopy, XdpMode::Copy, XdpMode::Generic];
const MODE: &str = "\"require-zero-copy\", \"prefer-zero-copy\", \"copy\" or \"generic\"";
const EARLY: &str = "true, false or \"if-possible\"";
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
                let (key, count) = (at.path().to_owned(), list.len());
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
    fn agree(&mut self, at: &At<'_>, value: Option<T>, shown: &str) {
        let Some(value) = value else { return };
        let Some((first, path, first_shown)) = &self.0 else {
            self.0 = Some((value, at.path().to_owned(), shown.to_owned()));
            return;
        };
        if *first != value {
            at.report().add(ConfigError::Disagree {
                of: "all uplinks, whose sockets share memory",
                key: at.path().to_owned(),
                got: shown.to_owned(),
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
    let local = at.key("local").text(&raw.local, None, values::vtep_rule(&raw.local), values::vtep);
    let port = at.key("port").number(&raw.port, 1..=u16::MAX, Some(4789));
    let ttl = at.key("ttl").number(&raw.ttl, 1..=u8::MAX, Some(64));
    let source_ports =
        at.key("source_ports")
            .optional(&raw.source_ports, 49152..=65535, SOURCE_PORTS, |list| source_ports(list));
    let chunk_size = at.key("chunk_size").optional(&raw.chunk_size, 2048, "2048 or 4096", |size| {
        u32::try_from(*size).ok().filter(|size| matches!(size, 2048 | 4096))
    });
    let ring_size =
        at.key("ring_size").optional(&raw.ring_size, 2048, "a power of two from 64 to 32768", |size| {
            u32::try_from(*size).ok().filter(|size| size.is_power_of_two() && (64..=32768).contains(size))
        });
    let early = at.key("early").optional(&raw.early, Early::Off, EARLY, early);
    if let Some(interface) = &interface {
        unlike.interfaces.claim(interface.clone(), &at.key("interface"), raw.interface.shown());
    }
    if let Some(local) = local {
        let at = at.key("local");
        unlike.locals.claim(local, &at, raw.local.shown());
        checked.locals.push((local, at.path().to_owned()));
    }
    let size = |field: &Field<i64>| field.given().unwrap_or("2048 (the default)").to_owned();
    unlike.chunk_size.agree(&at.key("chunk_size"), chunk_size, &size(&raw.chunk_size));
    unlike.ring_size.agree(&at.key("ring_size"), ring_size, &size(&raw.ring_size));
    let zero_copy = mode.filter(|mode| *mode != XdpMode::PreferZeroCopy);
    let zero_copy = zero_copy.map(|mode| mode == XdpMode::RequireZeroCopy);
    unlike.zero_copy.agree(&at.key("mode"), zero_copy, raw.mode.shown());
    checked.chunk_size = checked.chunk_size.or(chunk_size);
    let plan = || {
        Some(UplinkPlan {
            interface: interface?,
            queues: queues?,
            mode: mode?,
            local: local?,
            port: port?,
            source_ports: source_ports?,
            ttl: ttl?,
            chunk_size: chunk_size?,
            ring_size: ring_size?,
            early: early?,
        })
    };
    checked.plans.extend(plan());
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

fn source_ports(list: &[i64]) -> Option<RangeInclusive<u16>> {
    let &[first, last] = list else { return None };
    let (first, last) = (u16::try_from(first).ok()?, u16::try_from(last).ok()?);
    (1 <= first && first <= last).then_some(first..=last)
}
