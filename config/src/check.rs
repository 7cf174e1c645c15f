//! From the file as written to a [`Plan`]: every key checked, every mistake reported.
//!
//! Nothing here asks the machine: whether the core, the interface or the address exist is seen when the daemon
//! starts, and a configuration can be checked anywhere.

/// One network, port or endpoint by itself.
mod alone;
mod classes;
mod endpoint;
mod memif;
mod network;
mod port;
mod uplink;

use std::path::{Path, PathBuf};

pub use alone::{Carrier, Checker, DeclaredEndpoint, DeclaredPort, Networks};
pub use classes::{protocol_name, rules_of};
pub use port::unfit;

use peregrine_dataplane::plan::{Capacity, IdleMode, PlacementMode, Plan, Pools, WorkerPlan};
use peregrine_dataplane::types::{CoreId, WorkerId};

use crate::at::{At, Claims, Report};
use crate::error::ConfigError;
use crate::raw::{self, Field, File, List, Worker};
use crate::values;

/// The plan, or `None` when something was reported.
pub fn file(file: &File, report: &Report) -> Option<Plan> {
    let top = At::top(report);
    top.unknown_keys(file);
    let default = PathBuf::from(crate::CONTROL_SOCKET);
    let control_socket = top.key("control_socket").text(
        &file.control_socket,
        Some(default),
        values::SOCKET_PATH,
        values::socket_path,
    );
    let control_group = top.key("control_group").optional(&file.control_group, None, values::OWNER, group);
    let state = state(&top.key("state"), &file.state, control_socket.as_deref());
    let workers = workers(&top.key("workers"), &file.workers);
    let placement = top.key("placement").text(
        &file.placement,
        Some(PlacementMode::default()),
        values::PLACEMENT,
        values::placement,
    );
    let balance_threshold = top.key("balance_threshold").number(
        &file.balance_threshold,
        BALANCE_THRESHOLD_MIN..=BALANCE_THRESHOLD_MAX,
        Some(BALANCE_THRESHOLD),
    );
    let idle_after = top.key("idle_after").text(
        &file.idle_after,
        Some(Plan::default().idle_after),
        values::IDLE_AFTER,
        values::idle_after,
    );
    let uplinks = uplink::uplinks(&top.key("uplink"), &file.uplink);
    let capacity = capacity(&top.key("capacity"), &file.capacity);
    let pools = pools(&top.key("pools"), &file.pools);
    let classes = classes::classes(&top, file);
    let (mut networks, taken) = network::networks(&top.key("networks"), &file.networks, &uplinks);
    let at = top.key("endpoints");
    let endpoints = endpoint::endpoints(&at, &file.endpoints, taken, control_socket.as_deref());
    let of_networks = classes::of_networks(&top.key("networks"), &file.networks, &classes);
    for (network, class) in networks.iter_mut().zip(of_networks) {
        network.class = class.unwrap_or(network.class);
    }
    let classes = classes::plan(&top, file, classes, &classes::Known::new(file, &networks));
    let control_socket = control_socket?;
    let (placement, balance_threshold, idle_after) = (placement?, balance_threshold?, idle_after?);
    // Entries with mistakes are not in the lists, and then the places in them mean nothing.
    report.is_clean().then_some(Plan {
        workers,
        idle_after,
        sleep_max: Plan::default().sleep_max,
        placement,
        balance_threshold,
        uplinks: uplinks.plans,
        networks: networks.into(),
        endpoints: endpoints.into(),
        capacity: capacity?,
        pools: pools?,
        classes: classes?,
        control_socket,
        control_group: control_group?,
        state: state?,
    })
}

fn group(id: &i64) -> Option<Option<u32>> {
    values::owner(*id).map(Some)
}

/// Outer: a mistake was told. Inner: the key was left out.
#[expect(clippy::option_option, reason = "a mistake and nothing are not the same")]
fn state(at: &At<'_>, field: &Field<String>, control_socket: Option<&Path>) -> Option<Option<PathBuf>> {
    let path = at.optional(field, None, values::STATE_PATH, |text| values::state_path(text).map(Some))?;
    if path.is_some() && path.as_deref() == control_socket {
        let (key, got) = (at.path(), field.to_string());
        at.report().add(ConfigError::Taken { key, got, by: "control_socket".to_owned() });
    }
    Some(path)
}

const NETWORKS_MAX: u16 = 4096;
const ENDPOINTS_MAX: u16 = 65534;
/// As many networks as there may be, each with the default.
const ADDRESSES_MAX: u32 = 4096 * 4096;

const REGIONS_MAX: u16 = 4096;

/// Room for what comes later.
fn capacity(at: &At<'_>, field: &Field<raw::Capacity>) -> Option<Capacity> {
    let default = Capacity::default();
    if matches!(field, Field::Absent) {
        return Some(default);
    }
    let raw = at.table(field, "a table: [capacity]")?;
    let networks = at.key("networks").number(&raw.networks, 1..=NETWORKS_MAX, Some(default.networks));
    let endpoints = at.key("endpoints").number(&raw.endpoints, 1..=ENDPOINTS_MAX, Some(default.endpoints));
    let addresses = at.key("addresses").number(&raw.addresses, 1..=ADDRESSES_MAX, Some(default.addresses));
    Some(Capacity { networks: networks?, endpoints: endpoints?, addresses: addresses? })
}

const POOLED_CONTAINERS_MAX: u16 = 4096;

/// What is made beforehand.
fn pools(at: &At<'_>, field: &Field<raw::Pools>) -> Option<Pools> {
    if matches!(field, Field::Absent) {
        return Some(Pools::default());
    }
    let raw = at.table(field, "a table: [pools]")?;
    let containers = at.key("containers").number(&raw.containers, 0..=POOLED_CONTAINERS_MAX, Some(0));
    let memif_regions = at.key("memif_regions").number(&raw.memif_regions, 0..=REGIONS_MAX, Some(0));
    Some(Pools { containers: containers?, memif_regions: memif_regions? })
}

/// Percent. Below, two workers would push flows to and fro; above, frames are lost before anybody notices.
const BALANCE_THRESHOLD_MIN: u8 = 50;
const BALANCE_THRESHOLD_MAX: u8 = 99;
const BALANCE_THRESHOLD: u8 = 85;

/// Cores beyond are not in a `cpu_set_t`, and so cannot be pinned to.
const CORE_MAX: usize = 1023;

/// Those of setpriority(2).
const NICE_MIN: i8 = -20;
const NICE_MAX: i8 = 19;
/// Stands for a key that was left out; not in the range.
const NICE_OF_THE_PROCESS: i8 = i8::MAX;

fn workers(at: &At<'_>, field: &List<Worker>) -> Vec<WorkerPlan> {
    const RULE: &str = "1 to 31 [[workers]] tables, one for each core";
    let mut cores = Claims::new();
    let mut plans = Vec::new();
    for (at, entry) in at.list(field, 1..=WorkerId::LIMIT, RULE) {
        let Some(raw) = at.table(entry, "a table with the key core") else { continue };
        let nice = at.key("nice").number(&raw.nice, NICE_MIN..=NICE_MAX, Some(NICE_OF_THE_PROCESS));
        let idle = at.key("idle").text(&raw.idle, Some(IdleMode::default()), values::IDLE, values::idle);
        let at = at.key("core");
        let Some(core) = at.number(&raw.core, 0..=CORE_MAX, None) else { continue };
        cores.claim(core, &at, &raw.core);
        let (Some(nice), Some(idle)) = (nice, idle) else { continue };
        plans.push(WorkerPlan {
            core: CoreId(core),
            nice: Some(nice).filter(|&nice| nice != NICE_OF_THE_PROCESS),
            idle,
        });
    }
    plans
}
