//! The file as it is written: every key of the format and its TOML type, nothing checked yet.
//!
//! serde stops at the first mistake, and `deny_unknown_fields` is one of the ways in which it does. We want all of
//! them, so here nothing is a mistake: a key that is absent, or whose value has another type, is a [`Field`]
//! that says so, and keys that the format does not have are kept by name. `check` makes the errors.

use std::collections::BTreeMap;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};
use toml::Value;

/// What stands at a key.
#[derive(Default)]
pub enum Field<T> {
    /// Nothing.
    #[default]
    Absent,
    /// A value.
    Given {
        /// As errors show it.
        shown: String,
        /// `None` when it has another type.
        value: Option<T>,
    },
}

impl<T> Field<T> {
    /// The value, when there is one and its type is right.
    pub fn value(&self) -> Option<&T> {
        match self {
            Field::Given { value, .. } => value.as_ref(),
            Field::Absent => None,
        }
    }

    /// As errors show it, if there is something.
    pub fn given(&self) -> Option<&str> {
        match self {
            Field::Given { shown, .. } => Some(shown),
            Field::Absent => None,
        }
    }

    /// As errors show it.
    pub fn shown(&self) -> &str {
        self.given().unwrap_or("(not given)")
    }
}

impl<'de, T: DeserializeOwned> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(Field::Given { shown: show(&value), value: value.try_into().ok() })
    }
}

/// A text that errors must not show.
pub struct Secret(pub String);

impl<'de> Deserialize<'de> for Secret {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(Secret)
    }
}

/// A list of values or tables, each right or wrong for itself.
pub type List<T> = Field<Vec<Field<T>>>;

/// A table of the format.
pub trait Table {
    /// The keys that it may have.
    const KEYS: &'static [&'static str];
    /// The keys that it has and may not.
    fn unknown(&self) -> impl Iterator<Item = &str>;
}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($key:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Default, Deserialize)]
        #[serde(default)]
        pub struct $name {
            $(pub $key: $kind,)*
            #[serde(flatten)]
            unknown: BTreeMap<String, IgnoredAny>,
        }

        impl Table for $name {
            const KEYS: &'static [&'static str] = &[$(stringify!($key)),*];

            fn unknown(&self) -> impl Iterator<Item = &str> {
                self.unknown.keys().map(String::as_str)
            }
        }
    };
}

table!(
    /// The whole file.
    File {
        control_socket: Field<String>,
        control_group: Field<i64>,
        state: Field<String>,
        placement: Field<String>,
        balance_threshold: Field<i64>,
        idle_after: Field<String>,
        workers: List<Worker>,
        uplink: Field<Uplinks>,
        capacity: Field<Capacity>,
        pools: Field<Pools>,
        networks: List<Network>,
        endpoints: List<Endpoint>,
        classes: List<ClassEntry>,
        urgent_quota: Field<i64>,
        default_class: Field<String>,
        trusted_remotes: List<String>,
        rules: List<Rule>,
    }
);

/// One of `classes`: its name alone, or a table.
pub enum ClassEntry {
    /// `"urgent"`
    Name(String),
    /// `{ name = "urgent", … }`, or `[[classes]]`
    Table(Box<ClassTable>),
}

impl<'de> Deserialize<'de> for ClassEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let entry = match value {
            Value::Table(_) => value.try_into().map(ClassEntry::Table),
            _ => value.try_into().map(ClassEntry::Name),
        };
        entry.map_err(serde::de::Error::custom)
    }
}

table!(
    /// One of `classes` that says more than a name.
    ClassTable {
        name: Field<String>,
        order: Field<String>,
        share: Field<i64>,
        dscp: Field<i64>,
    }
);

table!(
    /// `[[workers]]`
    Worker {
        core: Field<i64>,
        nice: Field<i64>,
        idle: Field<String>,
    }
);

/// What stands at `uplink`: one table, or a list of them.
pub enum Uplinks {
    /// `[uplink]`
    One(Box<Uplink>),
    /// `[[uplink]]`
    Several(Vec<Field<Uplink>>),
}

impl<'de> Deserialize<'de> for Uplinks {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let uplinks = match value {
            Value::Array(_) => value.try_into().map(Uplinks::Several),
            _ => value.try_into().map(Uplinks::One),
        };
        uplinks.map_err(serde::de::Error::custom)
    }
}

/// One address, or a list of them.
pub enum Addresses {
    /// `"192.0.2.1"`
    One(String),
    /// `["192.0.2.1", "2001:db8::1"]`
    Several(Vec<Field<String>>),
}

impl<'de> Deserialize<'de> for Addresses {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        let addresses = match value {
            Value::Array(_) => value.try_into().map(Addresses::Several),
            _ => value.try_into().map(Addresses::One),
        };
        addresses.map_err(serde::de::Error::custom)
    }
}

table!(
    /// `[uplink]`, or one of `[[uplink]]`
    Uplink {
        interface: Field<String>,
        vlan: Field<i64>,
        queues: Field<Value>,
        mode: Field<String>,
        local: Field<Addresses>,
        port: Field<i64>,
        ttl: Field<i64>,
        source_ports: Field<Vec<i64>>,
        udp_checksum: Field<Value>,
        accept_zero_checksum: Field<bool>,
        chunk_size: Field<i64>,
        ring_size: Field<i64>,
        early: Field<Value>,
        fix: Field<bool>,
    }
);

table!(
    /// `[capacity]`
    Capacity {
        networks: Field<i64>,
        endpoints: Field<i64>,
        addresses: Field<i64>,
    }
);

table!(
    /// `[pools]`
    Pools {
        containers: Field<i64>,
        memif_regions: Field<i64>,
    }
);

table!(
    /// `[[networks]]`
    Network {
        name: Field<String>,
        vni: Field<i64>,
        mtu: Field<i64>,
        port: Field<i64>,
        local: Field<String>,
        remotes: List<String>,
        any_remote: Field<bool>,
        reserved_bits: Field<String>,
        inner_vlan: Field<String>,
        dscp: Field<Value>,
        suppression: Field<bool>,
        subnets: List<String>,
        gateways: List<String>,
        clamp_mss: Field<bool>,
        learning: Field<bool>,
        ageing: Field<String>,
        fdb_limit: Field<i64>,
        move_limit: Field<i64>,
        move_hold: Field<String>,
        static_macs: List<StaticMac>,
        class: Field<String>,
    }
);

table!(
    /// One of a network's `static_macs`.
    StaticMac {
        mac: Field<String>,
        remote: Field<String>,
        addresses: List<String>,
    }
);

table!(
    /// `[[endpoints]]`
    Endpoint {
        name: Field<String>,
        network: Field<String>,
        mac: Field<String>,
        addresses: List<String>,
        anti_spoofing: Field<bool>,
        storm_limit: Field<i64>,
        announce: Field<bool>,
        hairpin: Field<bool>,
        memif: Field<Memif>,
        veth: Field<Veth>,
    }
);

table!(
    /// An endpoint that is declared while the daemon runs: the same, or on a port.
    Declared {
        name: Field<String>,
        network: Field<String>,
        mac: Field<String>,
        addresses: List<String>,
        anti_spoofing: Field<bool>,
        storm_limit: Field<i64>,
        announce: Field<bool>,
        hairpin: Field<bool>,
        port: Field<String>,
        memif: Field<Memif>,
        veth: Field<Veth>,
    }
);

impl Declared {
    /// What it has in common with those of a file, and the port.
    pub fn split(self) -> (Endpoint, Field<String>) {
        let endpoint = Endpoint {
            name: self.name,
            network: self.network,
            mac: self.mac,
            addresses: self.addresses,
            anti_spoofing: self.anti_spoofing,
            storm_limit: self.storm_limit,
            announce: self.announce,
            hairpin: self.hairpin,
            memif: self.memif,
            veth: self.veth,
            unknown: BTreeMap::new(),
        };
        (endpoint, self.port)
    }
}

table!(
    /// A port that is declared while the daemon runs.
    Port {
        name: Field<String>,
        memif: Field<Memif>,
        veth: Field<Veth>,
    }
);

table!(
    /// An endpoint's `veth`.
    Veth {
        namespace: Field<String>,
        pid: Field<i64>,
        create_namespace: Field<bool>,
        interface: Field<String>,
        default_route: Field<bool>,
        ring_size: Field<i64>,
    }
);

table!(
    /// An endpoint's `memif`.
    Memif {
        socket: Field<String>,
        id: Field<i64>,
        secret: Field<Secret>,
        role: Field<String>,
        queue_pairs: Field<i64>,
        chains: Field<bool>,
        mode: Field<String>,
        owner: Field<i64>,
        group: Field<i64>,
        allow_unsealed: Field<bool>,
        memory_max: Field<i64>,
        ring_size: Field<i64>,
        buffer_size: Field<i64>,
        tenant_uid: Field<i64>,
    }
);

table!(
    /// `[[rules]]`
    Rule {
        class: Field<String>,
        network: Field<String>,
        endpoint: Field<String>,
        dscp: Field<Value>,
        protocol: Field<Value>,
        source_port: Field<Value>,
        destination_port: Field<Value>,
        port: Field<Value>,
        source: Field<String>,
        destination: Field<String>,
        address: Field<String>,
        outer_dscp: Field<Value>,
    }
);

table!(
    /// A file with nothing but `[[rules]]`, which who knows the names checks.
    Rules {
        rules: Field<Vec<Value>>,
    }
);

/// Values in errors are cut to so many characters,
const SHOWN_CHARS_MAX: usize = 60;
/// and lists to so many entries.
const SHOWN_ENTRIES_MAX: usize = 8;

/// A value as errors show it: on one line, short. What is inside a table stays out, it may be secret.
fn show(value: &Value) -> String {
    match value {
        Value::Table(_) => "{…}".to_owned(),
        Value::Array(list) => {
            let mut parts: Vec<String> = list.iter().take(SHOWN_ENTRIES_MAX).map(show_entry).collect();
            if list.len() > SHOWN_ENTRIES_MAX {
                parts.push("…".to_owned());
            }
            format!("[{}]", parts.join(", "))
        }
        other => show_entry(other),
    }
}

/// A value within a list: lists are not followed further.
fn show_entry(value: &Value) -> String {
    match value {
        Value::Table(_) => "{…}".to_owned(),
        Value::Array(_) => "[…]".to_owned(),
        Value::String(text) => show_text(text),
        other => other.to_string(),
    }
}

/// A text in quotes, cut where it is too long.
pub fn show_text(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
    }
}
