//! What the control socket's methods about networks, ports and endpoints take and return, as JSON has it. The command line writes and reads
//! these types, and the schema (`schema`, `docs/api.schema.json`) is made from them.
//!
//! The daemon does not read its requests with them: it checks them as it checks a config, so that all mistakes come at once, each with its
//! path. What it *writes* is made from them: [`NetworkTable`] and the like say only what is not the default.

use std::net::IpAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Which of the three kinds of objects.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// An overlay network.
    Network,
    /// What carries frames.
    Port,
    /// A tenant's address on a network.
    Endpoint,
}

impl Kind {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Network => "network",
            Kind::Port => "port",
            Kind::Endpoint => "endpoint",
        }
    }
}

/// Who declared an object.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Origin {
    /// The config file: it is changed there.
    Config,
    /// Somebody at the control socket: it is kept in the state file.
    Api,
}

/// A number, or a word that stands for something.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(untagged)]
pub enum NumberOrText {
    /// A number.
    Number(u16),
    /// A word.
    Text(String),
}

/// A network: the keys of the config's `[[networks]]`. What is left out has the config's default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Network")]
#[allow(missing_docs, reason = "the keys of the config's format, which are told at the head of its crate")]
pub struct NetworkTable {
    #[schemars(required)]
    pub name: String,
    #[schemars(required)]
    pub vni: u32,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub local: Option<IpAddr>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remotes: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub any_remote: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reserved_bits: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub inner_vlan: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<NumberOrText>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub suppression: Option<bool>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub subnets: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub gateways: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub clamp_mss: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learning: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ageing: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fdb_limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub move_limit: Option<u8>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub move_hold: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub static_macs: Vec<StaticMacTable>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub class: Option<String>,
}

/// An address that is known beforehand, behind a remote.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "StaticMac")]
#[allow(missing_docs, reason = "the keys of the config's format, which are told at the head of its crate")]
pub struct StaticMacTable {
    pub mac: String,
    pub remote: IpAddr,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
}

/// A port: what carries frames. It has one of the keys beside `name`, which says how.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Port")]
pub struct PortTable {
    /// Its name, unique among ports.
    #[schemars(required)]
    pub name: String,
    /// A memif interface.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memif: Option<MemifTable>,
    /// A veth pair into a container's network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub veth: Option<VethTable>,
}

/// A veth pair: the keys of the config's `veth`. What is left out has the config's default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Veth")]
#[allow(missing_docs, reason = "the keys of the config's format, which are told at the head of its crate")]
pub struct VethTable {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create_namespace: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub default_route: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_size: Option<u32>,
}

/// A memif interface: the keys of the config's `memif`. What is left out has the config's default.
#[derive(Clone, PartialEq, Eq, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Memif")]
#[allow(missing_docs, reason = "the keys of the config's format, which are told at the head of its crate")]
pub struct MemifTable {
    #[schemars(required)]
    pub socket: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub queue_pairs: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chains: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allow_unsealed: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory_max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ring_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub buffer_size: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenant_uid: Option<u32>,
}

/// Without the secret.
impl std::fmt::Debug for MemifTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemifTable")
            .field("socket", &self.socket)
            .field("id", &self.id)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}

/// An endpoint: the keys of the config's `[[endpoints]]`, on a port of that name or with a `memif` or `veth` of its own. What is left out has the
/// config's default.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
#[schemars(rename = "Endpoint")]
#[allow(missing_docs, reason = "the keys of the config's format, which are told at the head of its crate")]
pub struct EndpointTable {
    #[schemars(required)]
    pub name: String,
    #[schemars(required)]
    pub network: String,
    #[schemars(required)]
    pub mac: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub anti_spoofing: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub storm_limit: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub announce: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hairpin: Option<bool>,
    /// The port that carries it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<String>,
    /// Instead of `port`: a port of its own, with its name, which is made and removed with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memif: Option<MemifTable>,
    /// The same into a container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub veth: Option<VethTable>,
}

/// One step of a `change`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Step {
    /// A network that is not there yet.
    AddNetwork(NetworkTable),
    /// The network of this name with other keys.
    SetNetwork(NetworkTable),
    /// By name; no endpoint may be on it when the change is made.
    RemoveNetwork(String),
    /// A port that is not there yet.
    AddPort(PortTable),
    /// The port of this name with other keys.
    SetPort(PortTable),
    /// By name; it may carry no endpoint when the change is made.
    RemovePort(String),
    /// An endpoint that is not there yet.
    AddEndpoint(EndpointTable),
    /// The endpoint of this name with other keys: what is left out gets its default.
    SetEndpoint(EndpointTable),
    /// By name.
    RemoveEndpoint(String),
    /// To another port, everything else as it is.
    MoveEndpoint(Move),
}

/// An endpoint to another port.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Move {
    /// The endpoint's name.
    pub name: String,
    /// The port's name.
    pub port: String,
}

/// Parameters of `change`: all of it is done, or nothing.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ChangeRequest {
    /// One after the other. What may be had once (addresses, VNIs, ids) counts when all of it is done.
    pub changes: Vec<Step>,
    /// Say what would be done, and do nothing.
    #[serde(default)]
    pub dry_run: bool,
    /// Refuse if the state has another generation by now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
}

/// Result of `change`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ChangeAnswer {
    /// Of the state after it.
    pub generation: u64,
    /// Objects that were not there before.
    pub added: usize,
    /// Objects that are other than before.
    pub changed: usize,
    /// Objects that are gone.
    pub removed: usize,
    /// What it took the daemon, in microseconds.
    pub took_us: u64,
}

/// Parameters of `apply`: of what the control socket declared, exactly this is there afterwards.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ApplyRequest {
    /// If given it must be 1: `export` writes it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub format: Option<u32>,
    /// If given: refuse if the state has another generation by now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// All networks, but for the config's.
    pub networks: Vec<NetworkTable>,
    /// All ports, but for those that endpoints have of their own.
    pub ports: Vec<PortTable>,
    /// All endpoints, but for the config's.
    pub endpoints: Vec<EndpointTable>,
    /// Say what would be done, and do nothing.
    pub dry_run: bool,
}

/// Result of `apply`. Each list has the first 1000.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct ApplyAnswer {
    /// Of the state after it; with `dry_run` that of the state as it is.
    pub generation: u64,
    /// Objects that were not there before.
    pub added: Vec<Named>,
    /// Objects that are other than before.
    pub changed: Vec<Altered>,
    /// Objects that are gone.
    pub removed: Vec<Named>,
    /// How many there are of each.
    pub totals: Totals,
    /// Nothing was done.
    pub dry_run: bool,
    /// What it took the daemon, in microseconds.
    pub took_us: u64,
}

/// How many.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Totals {
    /// That were not there before.
    pub added: usize,
    /// That are other than before.
    pub changed: usize,
    /// That are gone.
    pub removed: usize,
}

/// An object.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Named {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
}

/// An object that is other than before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Altered {
    /// What it is.
    pub kind: Kind,
    /// Its name.
    pub name: String,
    /// The keys whose values are other ones.
    pub keys: Vec<String>,
}

/// Result of `export`: everything that the control socket declared, as `apply` takes it. With secrets, so only root and the daemon's own
/// user get it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Export {
    /// 1.
    pub format: u32,
    /// Of the state.
    pub generation: u64,
    /// All networks, but for the config's.
    pub networks: Vec<NetworkTable>,
    /// All ports, but for those that endpoints have of their own.
    pub ports: Vec<PortTable>,
    /// All endpoints, but for the config's.
    pub endpoints: Vec<EndpointTable>,
}

/// Parameters of `network.list`, `port.list` and `endpoint.list`. What is left out may be anything.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct ListRequest {
    /// The object of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Endpoints, and ports that carry endpoints, on the network of this name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<String>,
    /// Only those whose names come after this one: the last answer's `next`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub after: Option<String>,
}

/// Result of `network.list`: 10,000 at most.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NetworkList {
    /// By name.
    pub networks: Vec<NetworkEntry>,
    /// How many there are, listed or not.
    pub total: usize,
    /// There are more: what to ask for next as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A network that is there.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct NetworkEntry {
    /// As it was declared.
    #[serde(flatten)]
    pub network: NetworkTable,
    /// By whom.
    pub origin: Origin,
    /// How many endpoints are on it.
    pub endpoints: usize,
}

/// Result of `port.list`: 10,000 at most.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PortList {
    /// By name.
    pub ports: Vec<PortEntry>,
    /// How many there are, listed or not.
    pub total: usize,
    /// There are more: what to ask for next as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// A port that is there. Secrets are never listed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PortEntry {
    /// As it was declared.
    #[serde(flatten)]
    pub port: PortTable,
    /// By whom.
    pub origin: Origin,
    /// It came with its endpoint and goes with it.
    pub own: bool,
    /// The endpoints that it carries, the first one first.
    pub endpoints: Vec<String>,
    /// As in `status`: `connected`; else `listening` as server, `connecting` as client, `waiting` for a container; `unbound` without an endpoint.
    pub state: String,
}

/// Result of `endpoint.list`: 10,000 at most.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EndpointList {
    /// By name.
    pub endpoints: Vec<EndpointEntry>,
    /// How many there are, listed or not.
    pub total: usize,
    /// There are more: what to ask for next as `after`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// An endpoint that is there. Secrets are never listed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct EndpointEntry {
    /// As it was declared.
    #[serde(flatten)]
    pub endpoint: EndpointTable,
    /// By whom.
    pub origin: Origin,
    /// A tenant is connected.
    pub connected: bool,
}

/// Parameters of `watch`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct WatchRequest {
    /// The generation of the state that the client knows: it is told what came after. Left out: only what comes from now on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<u64>,
}

/// Result of `watch`. From then on the connection gets [`Changed`] as the parameters of `changed`, which has no id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WatchAnswer {
    /// Of the state.
    pub generation: u64,
    /// The daemon's.
    pub version: String,
    /// What came after `from` is not known any more, or never was: ask for the lists.
    #[serde(default)]
    pub resync: bool,
}

/// Parameters of the notification `changed`: one change, whole.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Changed {
    /// Of the state after it.
    pub generation: u64,
    /// Objects that were not there before.
    pub added: Vec<Named>,
    /// Objects that are other than before.
    pub changed: Vec<Named>,
    /// Objects that are gone.
    pub removed: Vec<Named>,
}

/// `data` of an error that says what is wrong with a request.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize, JsonSchema)]
pub struct Mistakes {
    /// One line each, with the path into the request; at most 100.
    pub errors: Vec<String>,
}

/// Everything above, for the schema: its definitions are what matters.
#[derive(Clone, Debug, JsonSchema)]
#[schemars(rename = "Peregrine")]
#[allow(dead_code, missing_docs, reason = "only its schema is used")]
pub struct Everything {
    pub change: (ChangeRequest, ChangeAnswer),
    pub apply: (ApplyRequest, ApplyAnswer),
    pub export: Export,
    pub network_list: (ListRequest, NetworkList),
    pub port_list: (ListRequest, PortList),
    pub endpoint_list: (ListRequest, EndpointList),
    pub watch: (WatchRequest, WatchAnswer),
    pub changed: Changed,
    pub mistakes: Mistakes,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_request_is_written_as_the_daemon_reads_it() {
        let request = ChangeRequest {
            changes: vec![
                Step::AddEndpoint(EndpointTable {
                    name: "web".into(),
                    network: "blue".into(),
                    mac: "02:00:00:00:00:01".into(),
                    port: Some("p1".into()),
                    ..EndpointTable::default()
                }),
                Step::RemoveNetwork("red".into()),
            ],
            ..ChangeRequest::default()
        };
        let want = json!({
            "changes": [
                {"add_endpoint": {"name": "web", "network": "blue", "mac": "02:00:00:00:00:01", "port": "p1"}},
                {"remove_network": "red"},
            ],
            "dry_run": false,
        });
        let written = serde_json::to_value(&request).unwrap();
        assert_eq!(written, want);
        assert_eq!(serde_json::from_value::<ChangeRequest>(want).unwrap(), request);
    }

    #[test]
    fn entries_of_lists_are_read_again() {
        let entry = EndpointEntry {
            endpoint: EndpointTable { name: "web".into(), ..EndpointTable::default() },
            origin: Origin::Api,
            connected: true,
        };
        let text = serde_json::to_string(&entry).unwrap();
        assert_eq!(serde_json::from_str::<EndpointEntry>(&text).unwrap(), entry, "{text}");
    }
}
