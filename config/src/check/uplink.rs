//! `[uplink]`.

use std::collections::HashSet;
use std::net::IpAddr;
use std::ops::RangeInclusive;

use peregrine_dataplane::plan::{Queues, UplinkPlan, XdpMode};
use peregrine_dataplane::types::QueueId;
use toml::Value;

use crate::at::At;
use crate::raw::{Field, Uplink};
use crate::values;

/// The uplink, and what the networks must know of it even when something else in it is wrong.
#[derive(Default)]
pub struct Checked {
    pub plan: Option<UplinkPlan>,
    pub local: Option<IpAddr>,
    pub chunk_size: Option<u32>,
}

/// More receive queues than any NIC has; bounds the list.
const QUEUE_MAX: i64 = 4095;
const QUEUES: &str = "\"all\" or a list of different queue numbers from 0 to 4095, such as [0, 1]";
const MODES: [XdpMode; 4] =
    [XdpMode::RequireZeroCopy, XdpMode::PreferZeroCopy, XdpMode::Copy, XdpMode::Generic];
const MODE: &str = "\"require-zero-copy\", \"prefer-zero-copy\", \"copy\" or \"generic\"";
const SOURCE_PORTS: &str = "two numbers from 1 to 65535 in order, such as [49152, 65535]";

/// Checks `[uplink]`.
pub fn uplink(at: &At<'_>, field: &Field<Uplink>) -> Checked {
    let Some(raw) = at.table(field, "a table: [uplink]") else { return Checked::default() };
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
        })
    };
    Checked { plan: plan(), local, chunk_size }
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
