//! What `status` tells: what was asked for and what was got, side by side. Plain data, made by the
//! [daemon](crate::daemon) when somebody asks; [`render`](crate::render) shows it to people.

use std::net::IpAddr;
use std::path::Path;
use std::time::Instant;

use peregrine_dataplane::engine::{AddressFilter, Engine, RulesStatus};
use peregrine_dataplane::fdb::{Destination, Entry};
use peregrine_dataplane::plan::{
    ClassPlan, ClassesPlan, EndpointPlan, IdleMode, MemifRole, NetworkPlan, PlacementMode, Plan, PortPlan,
    Queues, UplinkPlan, WorkOrder,
};
use peregrine_dataplane::types::{CoreId, EndpointId, MacAddr, Vni};
use peregrine_dataplane::xsk::UplinkInfo;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::model::written;
use crate::pools::PoolsStatus;
use crate::tenants::{Peer, TenantRecord, Tenants};
use crate::underlay::decide::{Hop, Verdict};
use crate::underlay::{Underlay, Uplink, Wanted};

/// This program's version.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Everything but the counters.
#[derive(Clone, Debug, Serialize)]
pub struct Status<'a> {
    /// The daemon's version.
    pub version: &'static str,
    /// Its process.
    pub pid: u32,
    /// Since it began to forward.
    pub uptime_seconds: u64,
    /// Where it answers.
    pub control_socket: &'a Path,
    /// The engine's account of each uplink, with `queues_requested` and `link` (what the kernel says now) added.
    pub uplinks: Vec<Map<String, Value>>,
    /// How a flow's steps are spread over the workers.
    pub placement: PlacementMode,
    /// The polling threads.
    pub workers: Vec<WorkerStatus>,
    /// How many rules there are, and whether all workers go by them.
    pub rules: RulesStatus,
    /// The overlay networks.
    pub networks: Vec<NetworkStatus<'a>>,
    /// The tenants' endpoints.
    pub endpoints: Vec<EndpointStatus<'a>>,
    /// The remote VTEPs and how they are reached.
    pub next_hops: Vec<NextHopStatus>,
    /// The priority classes, the most urgent first.
    pub classes: Vec<ClassStatus<'a>>,
    /// So many bursts of more urgent classes are taken in a row while others wait.
    pub urgent_quota: u16,
    /// memif handshakes in progress.
    pub handshakes: usize,
    /// What is made ready before it is asked for; a pool that is not there is left out.
    pub pools: PoolsStatus,
}

/// One polling thread.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct WorkerStatus {
    /// Its core.
    pub core: CoreId,
    /// Share of its time with work to do, over the last second; 0 to 1.
    pub busy: f64,
    /// What it does while there is nothing to do.
    pub idle: IdleMode,
    /// Share of the last second in which it slept; 0 to 1.
    pub slept: f64,
}

/// All that there are.
pub fn workers(engine: &Engine) -> Vec<WorkerStatus> {
    let idle = engine.idle().into_iter();
    let workers = engine.busy().into_iter().zip(idle);
    workers.map(|((core, busy), (idle, slept))| WorkerStatus { core, busy, idle, slept }).collect()
}

/// One priority class.
#[derive(Clone, Debug, Serialize)]
pub struct ClassStatus<'a> {
    /// Its name.
    pub name: &'a str,
    /// How it is preferred to those behind it; of the last `null`.
    pub order: Option<WorkOrder>,
    /// Percent of each worker's time that it has at least.
    pub share: u8,
    /// DSCP of the outer header of what is sent.
    pub dscp: u8,
}

/// One network.
#[derive(Clone, Debug, Serialize)]
pub struct NetworkStatus<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its number.
    pub vni: Vni,
    /// The tenants' MTU.
    pub mtu: u16,
    /// Whether addresses are learned.
    pub learning: bool,
    /// Its VTEPs.
    pub remotes: &'a [IpAddr],
}

/// One endpoint and its tenant.
#[derive(Clone, Debug, Serialize)]
pub struct EndpointStatus<'a> {
    /// Its name.
    pub name: &'a str,
    /// Its network's name.
    pub network: &'a str,
    /// Its address.
    pub mac: MacAddr,
    /// `memif` or `veth`: which of the keys follow.
    pub kind: &'static str,
    /// Where it is.
    #[serde(flatten)]
    pub at: AtStatus<'a>,
    /// How those that there are are used: see [`queues_used`].
    pub queues: Option<&'static str>,
    /// `connected`; else `listening` as server, `connecting` as client, `waiting` for a container.
    pub state: &'static str,
    /// A tenant is connected, or its interface is there.
    pub connected: bool,
    /// Who.
    pub peer: Option<PeerStatus<'a>>,
    /// Tenants attached since the start.
    pub attached: u64,
    /// Tenants put out because they broke the protocol.
    pub faults: u64,
    /// As server: clients that were refused.
    pub refused: u64,
    /// As client: how often we tried to connect.
    pub attempts: u64,
    /// Why the last connection ended.
    pub last_end: Option<&'a str>,
    /// Why the last handshake since then came to nothing.
    pub last_failure: Option<&'a str>,
}

/// How an endpoint is attached.
#[derive(Clone, Debug, Serialize)]
#[serde(untagged)]
pub enum AtStatus<'a> {
    /// A memif interface.
    Memif {
        /// The memif socket.
        socket: String,
        /// The interface id on that socket.
        id: u32,
        /// Our role on it: `server` or `client`.
        role: &'static str,
        /// A secret is required, or given by us.
        secret: bool,
        /// Rings each way that the config allows, or as client offers.
        queue_pairs: u16,
    },
    /// A container's interface.
    Veth {
        /// Where it is.
        namespace: String,
        /// Its name there.
        container_interface: &'a str,
        /// The name of our end.
        device: Option<String>,
    },
}

/// A connected tenant.
#[derive(Clone, Debug, Serialize)]
pub struct PeerStatus<'a> {
    /// Its name, as it says.
    pub name: &'a str,
    /// Its interface's name, as it says.
    pub interface: &'a str,
    /// The process that connected.
    pub pid: Option<i32>,
    /// Its user.
    pub uid: Option<u32>,
    /// How long it has been connected.
    pub connected_seconds: u64,
    /// Rings that there are in each direction.
    pub queue_pairs: usize,
}

/// How a remote is reached from one source address.
#[derive(Clone, Debug, Serialize)]
pub struct NextHopStatus {
    /// The remote VTEP.
    pub remote: IpAddr,
    /// The source address that the network has; `null`: the uplink's.
    pub local: Option<IpAddr>,
    /// The kernel knows a way.
    pub resolved: bool,
    /// Why it knows none.
    pub reason: Option<String>,
    /// The interface of the first path that is used, and so on below.
    pub uplink: Option<String>,
    /// The neighbour's link-layer address.
    pub next_hop: Option<MacAddr>,
    /// The gateway, if the remote is not on our link.
    pub gateway: Option<IpAddr>,
    /// The largest outer IP packet, in bytes.
    pub mtu: Option<u32>,
    /// All paths, those that are not used with the reason.
    pub paths: Vec<PathStatus>,
}

/// One of several ways to a remote.
#[derive(Clone, Debug, Default, Serialize)]
pub struct PathStatus {
    /// The interface.
    pub uplink: String,
    /// Our address.
    pub local: Option<IpAddr>,
    /// Whose link-layer address counts: the gateway, or the remote itself.
    pub neighbour: Option<IpAddr>,
    /// That address.
    pub next_hop: Option<MacAddr>,
    /// Its share of the flows, relative to the others that are used.
    pub weight: Option<u8>,
    /// The largest outer IP packet, in bytes.
    pub mtu: Option<u32>,
    /// A smaller one that was learned from ICMP and is not believed.
    pub mtu_not_believed: Option<u32>,
    /// Why it is not used.
    pub reason: Option<String>,
}

/// What of the plan's queues was asked for: `"all"`, or a list.
pub fn queues_requested(queues: &Queues) -> Value {
    match queues {
        Queues::All => Value::from("all"),
        Queues::List(list) => json!(list),
    }
}

/// The engine's account of the uplinks, with what we know besides.
pub fn uplinks(infos: &[UplinkInfo], plan: &Plan, underlay: &Underlay) -> Vec<Map<String, Value>> {
    let uplinks = infos.iter().zip(&plan.uplinks).zip(underlay.uplinks());
    uplinks.map(|((info, plan), side)| uplink(info, plan, side, underlay)).collect()
}

fn uplink(info: &UplinkInfo, plan: &UplinkPlan, side: &Uplink, underlay: &Underlay) -> Map<String, Value> {
    let mut map = match serde_json::to_value(info) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    map.entry("queues_requested").or_insert_with(|| queues_requested(&plan.queues));
    map.insert("local".into(), json!(plan.locals));
    map.insert("port".into(), json!(plan.port));
    map.insert("link".into(), json!(side.link));
    let missing = side.missing.iter();
    let missing =
        missing.map(|(address, presence)| json!({ "address": address, "reason": presence.to_string() }));
    map.insert("missing".into(), missing.collect());
    map.insert("vlan".into(), json!(plan.vlan));
    map.insert("vlan_link".into(), json!(side.vlan_link));
    let mut unknown =
        plan.locals.iter().filter_map(|local| Some((local, underlay.path_mtu_unknown(*local)?)));
    let why = unknown.next().map(|(local, why)| format!("for {local}: {why}"));
    map.insert("path_mtu_unknown".into(), json!(why));
    map
}

/// The networks of a plan.
pub fn networks(plan: &Plan) -> Vec<NetworkStatus<'_>> {
    fn network(n: &NetworkPlan) -> NetworkStatus<'_> {
        NetworkStatus { name: &n.name, vni: n.vni, mtu: n.mtu, learning: n.learning, remotes: &n.remotes }
    }
    plan.networks.values().map(network).collect()
}

/// The classes of a plan.
pub fn classes<'a>(plan: &'a ClassesPlan) -> Vec<ClassStatus<'a>> {
    let last = plan.list.len().saturating_sub(1);
    let class = |(index, class): (usize, &'a ClassPlan)| ClassStatus {
        name: &class.name,
        order: (index < last).then_some(class.order),
        share: class.share,
        dscp: class.dscp,
    };
    plan.list.iter().enumerate().map(class).collect()
}

/// How a tenant's queues are used: flows are spread over all of them; or each class has its own, as far as there are enough; or, where
/// that would be so if there were several, all classes share the one that there is.
pub const fn queues_used(by_class: bool, queue_pairs: usize) -> &'static str {
    match (by_class, queue_pairs) {
        (false, _) => "by flow",
        (true, 0 | 1) => "one for all classes",
        (true, _) => "by class",
    }
}

/// What a role is called, as in the config.
pub fn role(role: &MemifRole) -> &'static str {
    match role {
        MemifRole::Server { .. } => "server",
        MemifRole::Client { .. } => "client",
    }
}

/// What a port does that nobody is connected to.
pub fn waiting(port: &PortPlan) -> &'static str {
    match port.memif().map(|memif| &memif.role) {
        Some(MemifRole::Server { .. }) => "listening",
        Some(MemifRole::Client { .. }) => "connecting",
        None => "waiting",
    }
}

fn at<'a>(port: &'a PortPlan, tenants: &Tenants) -> AtStatus<'a> {
    match port {
        PortPlan::Memif(memif) => AtStatus::Memif {
            socket: memif.socket.to_string(),
            id: memif.id,
            role: role(&memif.role),
            secret: !memif.secret.is_empty(),
            queue_pairs: memif.queue_pairs,
        },
        PortPlan::Veth(veth) => AtStatus::Veth {
            namespace: veth.namespace.to_string(),
            container_interface: &veth.interface,
            device: tenants.device(veth),
        },
    }
}

/// Of an endpoint that the tenants' sockets do not know.
static NOBODY: TenantRecord = TenantRecord {
    peer: None,
    attached: 0,
    faults: 0,
    refused: 0,
    attempts: 0,
    last_end: None,
    last_failure: None,
};

/// The endpoints of a plan, with their tenants, whose queues are by class if they can be.
pub fn endpoints<'a>(
    plan: &'a Plan,
    by_class: bool,
    tenants: &'a Tenants,
    now: Instant,
) -> Vec<EndpointStatus<'a>> {
    let endpoint = |(id, endpoint): (EndpointId, &'a EndpointPlan)| {
        let record = tenants.record(id).unwrap_or(&NOBODY);
        let waiting = waiting(&endpoint.port);
        EndpointStatus {
            name: &endpoint.name,
            network: plan.network(endpoint.network).map_or("", |n| &n.name),
            mac: endpoint.mac,
            kind: written::kind(&endpoint.port),
            at: at(&endpoint.port, tenants),
            queues: record.peer.as_ref().map(|peer| queues_used(by_class, peer.queue_pairs)),
            state: if record.peer.is_some() { "connected" } else { waiting },
            connected: record.peer.is_some(),
            peer: record.peer.as_ref().map(|p| peer(p, now)),
            attached: record.attached,
            faults: record.faults,
            refused: record.refused,
            attempts: record.attempts,
            last_end: record.last_end.as_deref(),
            last_failure: record.last_failure.as_deref(),
        }
    };
    plan.endpoints.iter().map(endpoint).collect()
}

fn peer(peer: &Peer, now: Instant) -> PeerStatus<'_> {
    PeerStatus {
        name: &peer.name,
        interface: &peer.interface,
        pid: peer.credentials.map(|c| c.pid),
        uid: peer.credentials.map(|c| c.uid),
        connected_seconds: now.saturating_duration_since(peer.since).as_secs(),
        queue_pairs: peer.queue_pairs,
    }
}

/// The remotes and how they are reached.
pub fn next_hops(underlay: &Underlay) -> Vec<NextHopStatus> {
    underlay.ways().map(|(wanted, verdict)| next_hop(wanted, verdict)).collect()
}

fn next_hop(wanted: &Wanted, verdict: &Verdict) -> NextHopStatus {
    let used = verdict.hops.iter().find(|hop| hop.state.is_ok());
    // Where there is no next hop at all, `reason` says what these would.
    let others = verdict.others.iter().filter(|_| !verdict.hops.is_empty());
    let other = others.map(|(interface, why)| PathStatus {
        uplink: interface.clone(),
        reason: Some(why.to_string()),
        ..PathStatus::default()
    });
    NextHopStatus {
        remote: wanted.address,
        local: wanted.local,
        resolved: used.is_some(),
        reason: verdict.why().map(|why| why.to_string()),
        uplink: used.map(|hop| hop.interface.clone()),
        next_hop: used.and_then(|hop| hop.state.as_ref().ok()).map(|hop| hop.destination),
        gateway: verdict.hops.iter().map(|hop| hop.neighbour).find(|neighbour| *neighbour != wanted.address),
        mtu: used.map(|hop| hop.mtu),
        paths: verdict.hops.iter().map(path).chain(other).collect(),
    }
}

fn path(hop: &Hop) -> PathStatus {
    PathStatus {
        uplink: hop.interface.clone(),
        local: Some(hop.local),
        neighbour: Some(hop.neighbour),
        next_hop: hop.state.as_ref().ok().map(|hop| hop.destination),
        weight: Some(hop.weight),
        mtu: Some(hop.mtu),
        mtu_not_believed: hop.mtu_not_believed,
        reason: hop.state.as_ref().err().map(ToString::to_string),
    }
}

/// Entries that one answer to `fdb` holds at most: the rest is counted.
pub const FDB_LISTED_MAX: usize = 10_000;

/// The forwarding database.
#[derive(Clone, Debug, Serialize)]
pub struct FdbStatus<'a> {
    /// The first of them.
    pub entries: Vec<FdbEntry<'a>>,
    /// How many there are.
    pub total: usize,
}

/// Where one address is.
#[derive(Clone, Debug, Serialize)]
pub struct FdbEntry<'a> {
    /// The network's name.
    pub network: &'a str,
    /// The address.
    pub mac: MacAddr,
    /// The endpoint's name, if it is on this host.
    pub endpoint: Option<&'a str>,
    /// The remote VTEP, if it is behind one.
    pub remote: Option<IpAddr>,
    /// From the config; never forgotten.
    pub fixed: bool,
    /// Since a frame last came from it; `null` for those that are fixed.
    pub age_seconds: Option<u32>,
    /// It moved too often: so much longer it stays where it is.
    pub held_seconds: Option<u32>,
}

/// What the engine knows of where these addresses are.
pub fn fdb<'a>(engine: &'a Engine, plan: &'a Plan, filter: &AddressFilter) -> FdbStatus<'a> {
    let now = engine.uptime_s();
    let mut total = 0;
    let entry = |entry: Entry| {
        let (endpoint, remote) = match entry.destination {
            Destination::Local(id) => (plan.endpoint(id).map(|e| e.name.as_str()), None),
            Destination::Remote(id) => (None, engine.remote_address(id)),
        };
        FdbEntry {
            network: plan.network(entry.network).map_or("", |n| &n.name),
            mac: entry.mac,
            endpoint,
            remote,
            fixed: entry.fixed,
            age_seconds: (!entry.fixed).then(|| now.saturating_sub(entry.seen_s)),
            held_seconds: entry
                .held_until_s
                .and_then(|until| until.checked_sub(now))
                .filter(|left| *left > 0),
        }
    };
    let is_meant = |entry: &Entry| {
        filter.network.is_none_or(|network| network == entry.network)
            && filter.mac.is_none_or(|mac| mac == entry.mac)
            && filter.remote.is_none_or(|remote| entry.destination == Destination::Remote(remote))
    };
    let all = engine.fdb().filter(is_meant).inspect(|_| total += 1).enumerate();
    let entries = all.filter(|(index, _)| *index < FDB_LISTED_MAX).map(|(_, e)| entry(e)).collect();
    FdbStatus { entries, total }
}
