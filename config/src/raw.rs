//! The file as it is written: every key of the format and its TOML type, nothing checked yet.
//!
//! serde stops at the first mistake. We want all of them, so here nothing is a mistake: a key that is absent, or whose value has another type,
//! is a [`Field`] that says so, and keys that the format does not have are kept by name. `check` makes the errors.

use std::fmt::{self, Display};

use serde::{Deserialize, Deserializer};
use toml::Value;

/// What stands at a key. Displayed, it is as errors show it.
#[derive(Default)]
pub enum Field<T> {
    /// Nothing.
    #[default]
    Absent,
    /// A value of the right type.
    Given(T),
    /// One of another type.
    Wrong(Value),
}

/// What can stand at a key.
pub trait Kind: Sized {
    /// The value as one of these; or it is of another type.
    fn of(value: Value) -> Result<Self, Value>;
    /// As errors show it: on one line, short.
    fn show(&self) -> String;
    /// The same within a list: lists are not followed further.
    fn show_entry(&self) -> String {
        self.show()
    }
}

impl<T: Kind> Field<T> {
    /// With this value.
    pub fn of(value: Value) -> Field<T> {
        T::of(value).map_or_else(Field::Wrong, Field::Given)
    }

    /// The value, when there is one and its type is right.
    pub fn value(&self) -> Option<&T> {
        match self {
            Field::Given(value) => Some(value),
            Field::Wrong(_) | Field::Absent => None,
        }
    }

    /// As errors show it, if there is something.
    pub fn given(&self) -> Option<&dyn Display> {
        match self {
            Field::Absent => None,
            Field::Given(_) | Field::Wrong(_) => Some(self),
        }
    }

    /// As errors show it, or the default that stands for it.
    pub fn given_or<'f>(&'f self, default: &'f str) -> GivenOr<'f> {
        GivenOr(self.given(), default)
    }
}

/// See [`Field::given_or`].
pub struct GivenOr<'f>(Option<&'f dyn Display>, &'f str);

impl Display for GivenOr<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            GivenOr(Some(given), _) => given.fmt(f),
            GivenOr(None, default) => write!(f, "{default} (the default)"),
        }
    }
}

impl<T: Kind> Display for Field<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Field::Absent => f.write_str("(not given)"),
            Field::Given(value) => f.write_str(&value.show()),
            Field::Wrong(value) => f.write_str(&value.show()),
        }
    }
}

impl<'de, T: Kind> Deserialize<'de> for Field<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Value::deserialize(deserializer).map(Field::of)
    }
}

impl Kind for Value {
    fn of(value: Value) -> Result<Value, Value> {
        Ok(value)
    }

    /// What is inside a table stays out, it may be secret.
    fn show(&self) -> String {
        match self {
            Value::Array(list) => show_list(list.iter().map(Kind::show_entry)),
            other => other.show_entry(),
        }
    }

    fn show_entry(&self) -> String {
        match self {
            Value::Table(_) => TABLE_SHOWN.to_owned(),
            Value::Array(_) => LIST_SHOWN.to_owned(),
            Value::String(text) => show_text(text),
            other => other.to_string(),
        }
    }
}

impl Kind for String {
    fn of(value: Value) -> Result<String, Value> {
        if let Value::String(text) = value { Ok(text) } else { Err(value) }
    }

    fn show(&self) -> String {
        show_text(self)
    }
}

impl Kind for i64 {
    fn of(value: Value) -> Result<i64, Value> {
        if let Value::Integer(number) = value { Ok(number) } else { Err(value) }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

impl Kind for bool {
    fn of(value: Value) -> Result<bool, Value> {
        if let Value::Boolean(is_on) = value { Ok(is_on) } else { Err(value) }
    }

    fn show(&self) -> String {
        self.to_string()
    }
}

/// Entries of which each is right or wrong for itself.
impl<T: Kind> Kind for Vec<Field<T>> {
    fn of(value: Value) -> Result<Self, Value> {
        if let Value::Array(list) = value {
            Ok(list.into_iter().map(Field::of).collect())
        } else {
            Err(value)
        }
    }

    fn show(&self) -> String {
        show_list(self.iter().map(|entry| match entry {
            Field::Given(value) => value.show_entry(),
            Field::Wrong(value) => value.show_entry(),
            Field::Absent => String::new(),
        }))
    }

    fn show_entry(&self) -> String {
        LIST_SHOWN.to_owned()
    }
}

/// A text that errors must not show.
pub struct Secret(pub Option<String>);

impl Kind for Secret {
    fn of(value: Value) -> Result<Secret, Value> {
        // Never `Wrong`, which is shown.
        Ok(Secret(String::of(value).ok()))
    }

    fn show(&self) -> String {
        "(not shown)".to_owned()
    }
}

/// A list of values or tables, each right or wrong for itself.
pub type List<T> = Field<Vec<Field<T>>>;

/// A table of the format.
pub trait Table {
    /// The keys that it may have.
    const KEYS: &'static [&'static str];
    /// The keys that it has and may not.
    fn unknown(&self) -> &[String];
}

macro_rules! table {
    ($(#[$doc:meta])* $name:ident { $($key:ident: $kind:ty,)* }) => {
        $(#[$doc])*
        #[derive(Default)]
        pub struct $name {
            $(pub $key: $kind,)*
            unknown: Vec<String>,
        }

        impl Table for $name {
            const KEYS: &'static [&'static str] = &[$(stringify!($key)),*];

            fn unknown(&self) -> &[String] {
                &self.unknown
            }
        }

        impl Kind for $name {
            fn of(value: Value) -> Result<Self, Value> {
                let Value::Table(table) = value else { return Err(value) };
                let mut all = $name::default();
                for (key, value) in table {
                    match key.as_str() {
                        $(stringify!($key) => all.$key = Field::of(value),)*
                        _ => all.unknown.push(key),
                    }
                }
                Ok(all)
            }

            fn show(&self) -> String {
                TABLE_SHOWN.to_owned()
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

impl Kind for ClassEntry {
    fn of(value: Value) -> Result<ClassEntry, Value> {
        match value {
            Value::Table(_) => ClassTable::of(value).map(|table| ClassEntry::Table(Box::new(table))),
            _ => String::of(value).map(ClassEntry::Name),
        }
    }

    fn show(&self) -> String {
        match self {
            ClassEntry::Name(name) => name.show(),
            ClassEntry::Table(table) => table.show(),
        }
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

impl Kind for Uplinks {
    fn of(value: Value) -> Result<Uplinks, Value> {
        match value {
            Value::Array(_) => Vec::of(value).map(Uplinks::Several),
            _ => Uplink::of(value).map(|uplink| Uplinks::One(Box::new(uplink))),
        }
    }

    fn show(&self) -> String {
        match self {
            Uplinks::One(uplink) => uplink.show(),
            Uplinks::Several(list) => list.show(),
        }
    }
}

/// One address, or a list of them.
pub enum Addresses {
    /// `"192.0.2.1"`
    One(String),
    /// `["192.0.2.1", "2001:db8::1"]`
    Several(Vec<Field<String>>),
}

impl Kind for Addresses {
    fn of(value: Value) -> Result<Addresses, Value> {
        match value {
            Value::Array(_) => Vec::of(value).map(Addresses::Several),
            _ => String::of(value).map(Addresses::One),
        }
    }

    fn show(&self) -> String {
        match self {
            Addresses::One(address) => address.show(),
            Addresses::Several(list) => list.show(),
        }
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
        source_ports: List<i64>,
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
            unknown: Vec::new(),
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
        rules: List<Value>,
    }
);

/// Values in errors are cut to so many characters,
const SHOWN_CHARS_MAX: usize = 60;
/// and lists to so many entries.
const SHOWN_ENTRIES_MAX: usize = 8;

/// A table's inside stays out of errors: it may be secret.
const TABLE_SHOWN: &str = "{…}";
const LIST_SHOWN: &str = "[…]";

/// A list, of entries as they are shown.
fn show_list(mut entries: impl Iterator<Item = String>) -> String {
    let mut parts: Vec<String> = entries.by_ref().take(SHOWN_ENTRIES_MAX).collect();
    if entries.next().is_some() {
        parts.push("…".to_owned());
    }
    format!("[{}]", parts.join(", "))
}

/// A text in quotes, cut where it is too long.
pub fn show_text(text: &str) -> String {
    match text.char_indices().nth(SHOWN_CHARS_MAX) {
        None => format!("{text:?}"),
        Some((end, _)) => format!("{:?}…", text.get(..end).unwrap_or_default()),
    }
}
