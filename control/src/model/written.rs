//! Plans as the tables that would be declared for them: with what is not the default, and nothing else. So two tables are the same if they
//! mean the same, whatever was written.

use std::time::Duration;

use peregrine_dataplane::plan::{
    ClassesPlan, EndpointPlan, InnerVlan, MemifPlan, MemifRole, NamespaceRef, NetworkPlan, OuterDscp,
    PortPlan, Prefix, ReservedBits, StaticMac, VethPlan,
};
use peregrine_dataplane::types::{MacAddr, NetworkId};
use serde::Serialize;

use super::types::{
    EndpointTable, MemifTable, NetworkTable, NumberOrText, PortTable, StaticMacTable, VethTable,
};

/// A value, unless it is the default.
fn unless<T: PartialEq>(value: T, default: &T) -> Option<T> {
    (value != *default).then_some(value)
}

fn seconds(duration: Duration) -> String {
    format!("{}s", duration.as_secs())
}

/// As JSON, on one line.
pub fn text(table: &impl Serialize) -> String {
    // These tables have no keys and no numbers that JSON could not have.
    serde_json::to_string(table).unwrap_or_default()
}

/// A network.
pub fn network(plan: &NetworkPlan, classes: &ClassesPlan) -> NetworkTable {
    let default = NetworkPlan::new(&plan.name, plan.vni);
    let class = unless(plan.class, &classes.default);
    NetworkTable {
        name: plan.name.clone(),
        vni: plan.vni.get(),
        mtu: unless(plan.mtu, &default.mtu),
        port: plan.port,
        local: plan.local,
        remotes: plan.remotes.clone(),
        any_remote: unless(plan.any_remote, &default.any_remote),
        reserved_bits: unless(plan.reserved_bits, &default.reserved_bits).map(|bits| {
            let word = match bits {
                ReservedBits::Ignore => "ignore",
                ReservedBits::Refuse => "refuse",
            };
            word.to_owned()
        }),
        inner_vlan: unless(plan.inner_vlan, &default.inner_vlan).map(|vlan| {
            let word = match vlan {
                InnerVlan::Drop => "drop",
                InnerVlan::Strip => "strip",
                InnerVlan::Carry => "carry",
            };
            word.to_owned()
        }),
        dscp: match plan.dscp {
            OuterDscp::ByClass => None,
            OuterDscp::Copy => Some(NumberOrText::Text("copy".to_owned())),
            OuterDscp::Fixed(dscp) => Some(NumberOrText::Number(dscp.into())),
        },
        suppression: unless(plan.suppression, &default.suppression),
        subnets: plan.subnets.iter().map(Prefix::to_string).collect(),
        gateways: plan.gateways.clone(),
        clamp_mss: unless(plan.clamp_mss, &default.clamp_mss),
        learning: unless(plan.learning, &default.learning),
        ageing: unless(plan.ageing, &default.ageing).map(seconds),
        fdb_limit: unless(plan.fdb_limit, &default.fdb_limit),
        move_limit: unless(plan.move_limit, &default.move_limit),
        move_hold: unless(plan.move_hold, &default.move_hold).map(seconds),
        static_macs: plan.static_macs.iter().map(static_mac).collect(),
        class: class.and_then(|class| Some(classes.list.get(class.index())?.name.clone())),
    }
}

fn static_mac(fixed: &StaticMac) -> StaticMacTable {
    StaticMacTable { mac: fixed.mac.to_string(), remote: fixed.remote, addresses: fixed.addresses.clone() }
}

/// Whether secrets are written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Secrets {
    /// For the state file, and for who may read it.
    Shown,
    /// For everybody else.
    Hidden,
}

/// How something is attached.
pub fn memif(plan: &MemifPlan, secrets: Secrets) -> MemifTable {
    let mut table = MemifTable {
        socket: plan.socket.to_string(),
        id: unless(plan.id, &0),
        secret: (secrets == Secrets::Shown && !plan.secret.is_empty())
            .then(|| String::from_utf8_lossy(&plan.secret).into_owned()),
        queue_pairs: unless(plan.queue_pairs, &1),
        chains: unless(plan.chains, &false),
        ..MemifTable::default()
    };
    match plan.role {
        MemifRole::Server { mode, owner, group, allow_unsealed, memory_bytes_max } => {
            table.mode = mode.and_then(|mode| unless(mode, &0o660)).map(|mode| format!("{mode:04o}"));
            table.owner = owner;
            table.group = group;
            table.allow_unsealed = unless(allow_unsealed, &false);
            table.memory_max = unless(memory_bytes_max >> 20, &128);
        }
        MemifRole::Client { ring_log2, buffer_bytes, tenant_uid } => {
            table.role = Some("client".to_owned());
            table.ring_size = unless(1 << ring_log2, &1024);
            table.buffer_size = unless(buffer_bytes, &2048);
            table.tenant_uid = tenant_uid;
        }
    }
    table
}

/// A container's interface.
fn veth(plan: &VethPlan) -> VethTable {
    let default = VethPlan::new(plan.namespace.clone());
    let (namespace, pid) = match &plan.namespace {
        NamespaceRef::Name(name) => (Some(name.clone()), None),
        NamespaceRef::Path(path) => (Some(path.display().to_string()), None),
        NamespaceRef::Pid(pid) => (None, Some(*pid)),
    };
    VethTable {
        namespace,
        pid,
        create_namespace: unless(plan.create, &default.create),
        interface: unless(plan.interface.clone(), &default.interface),
        default_route: unless(plan.default_route, &default.default_route),
        ring_size: unless(plan.ring_size, &default.ring_size),
    }
}

/// The key under which it is said how something is attached.
pub fn kind(plan: &PortPlan) -> &'static str {
    match plan {
        PortPlan::Memif(_) => "memif",
        PortPlan::Veth(_) => "veth",
    }
}

/// Of both keys the one that says how something is attached.
fn carrier(plan: &PortPlan, secrets: Secrets) -> (Option<MemifTable>, Option<VethTable>) {
    (plan.memif().map(|plan| memif(plan, secrets)), plan.veth().map(veth))
}

/// A port.
pub fn port(name: &str, plan: &PortPlan, secrets: Secrets) -> PortTable {
    let (memif, veth) = carrier(plan, secrets);
    PortTable { name: name.to_owned(), memif, veth }
}

/// An endpoint of this network, on a port of this name or, without one, on its own.
pub fn endpoint(plan: &EndpointPlan, network: &str, port: Option<&str>, secrets: Secrets) -> EndpointTable {
    let default = EndpointPlan::new("", NetworkId(0), MacAddr([0; 6]), plan.port.clone());
    let (memif, veth) = if port.is_none() { carrier(&plan.port, secrets) } else { (None, None) };
    EndpointTable {
        name: plan.name.clone(),
        network: network.to_owned(),
        mac: plan.mac.to_string(),
        addresses: plan.addresses.clone(),
        anti_spoofing: unless(plan.anti_spoofing, &default.anti_spoofing),
        storm_limit: plan.storm_limit,
        announce: unless(plan.announce, &default.announce),
        hairpin: unless(plan.hairpin, &default.hairpin),
        port: port.map(str::to_owned),
        memif,
        veth,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Every key of the format, each with another value than the default: what is written is read as the same plan again.
    #[test]
    fn what_is_written_is_read_as_the_same() {
        let full = include_str!("../../../config/examples/full.toml");
        let full = full.replace("mtu = 1450", "mtu = 1400").replace("learning = true", "learning = false");
        let full =
            full.replace("ageing = \"300s\"", "ageing = \"2m\"").replace("dscp = \"class\"", "dscp = 12");
        let full = full.replace("inner_vlan = \"drop\"", "inner_vlan = \"strip\"");
        let full = full.replace("chains = false", "chains = true").replace("\"0660\"", "\"0600\"");
        let full =
            full.replace("memory_max = 128", "memory_max = 64").replace("ring_size = 1024", "ring_size = 64");
        let full = full.replace("class = \"normal\"", "class = \"urgent\"");
        let plan = peregrine_config::parse(&full, "full").unwrap_or_else(|errors| panic!("{errors}"));
        let checker = peregrine_config::Checker::new(&plan);
        for before in plan.networks.values() {
            let value: Value = serde_json::to_value(network(before, &plan.classes)).unwrap();
            let after = checker.network("n", value).unwrap();
            assert_eq!(format!("{after:?}"), format!("{before:?}"));
        }
        for before in plan.endpoints.values() {
            let value = serde_json::to_value(port("p", &before.port, Secrets::Shown)).unwrap();
            let after = checker.port("p", value).unwrap();
            assert!(after.plan == before.port);
            let hidden = text(&endpoint(before, "blue", None, Secrets::Hidden));
            assert!(!hidden.contains("secret"), "{hidden}");
        }
        checker.finish("t").unwrap();
    }
}
