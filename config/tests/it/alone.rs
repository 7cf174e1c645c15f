//! One network, port or endpoint by itself, beside a daemon's plan.

use peregrine_config::{Carrier, Checker, Networks, parse};
use peregrine_dataplane::plan::Plan;
use peregrine_dataplane::types::{Class, NetworkId};
use serde_json::{Value, json};

use crate::good::GOOD;

fn running() -> Plan {
    parse(GOOD, "t").unwrap_or_else(|errors| panic!("{errors}"))
}

/// The networks of a plan.
struct Of<'p>(&'p Plan);

impl Networks for Of<'_> {
    fn find(&self, name: &str) -> Option<(NetworkId, u16)> {
        let (id, network) = self.0.networks.iter().find(|(_, network)| network.name == name)?;
        Some((id, network.mtu))
    }

    fn names(&self) -> Vec<String> {
        self.0.networks.values().map(|network| network.name.clone()).collect()
    }
}

/// What is wrong with an object: one line for each mistake.
fn wrong(check: impl FnOnce(&Checker<'_>) -> bool) -> Vec<String> {
    let plan = running();
    let checker = Checker::new(&plan);
    let is_there = check(&checker);
    let errors = checker.finish("t");
    assert_eq!(is_there, errors.is_ok());
    errors.err().map(|errors| errors.list().iter().map(ToString::to_string).collect()).unwrap_or_default()
}

fn endpoint(given: Value) -> Vec<String> {
    let plan = running();
    wrong(|checker| checker.endpoint("e", given, &Of(&plan)).is_some())
}

#[test]
fn what_a_file_may_say_may_be_said_alone() {
    let plan = running();
    let checker = Checker::new(&plan);
    let network = json!({"name": "red", "vni": 44, "remotes": ["192.0.2.9"], "class": "urgent"});
    let network = checker.network("n", network).unwrap();
    assert_eq!((network.name.as_str(), network.mtu, network.class), ("red", 1450, Class(0)));
    let port = checker.port("p", json!({"name": "p1", "memif": {"socket": "@p", "id": 7}})).unwrap();
    assert_eq!((port.name.as_str(), port.plan.memif().unwrap().id), ("p1", 7));
    let on_port = json!({"name": "e1", "network": "green", "mac": "02:00:00:00:00:77", "port": "p1"});
    let on_port = checker.endpoint("e", on_port, &Of(&plan)).unwrap();
    assert_eq!(on_port.network, NetworkId(1));
    assert!(matches!(&on_port.carrier, Carrier::Port(port) if port == "p1"));
    assert_eq!(on_port.plan(port.plan).port.memif().unwrap().id, 7);
    let own = json!({"name": "e2", "network": "blue", "mac": "02:00:00:00:00:78", "memif": {"socket": "@p"}});
    let own = checker.endpoint("e", own, &Of(&plan)).unwrap();
    assert!(matches!(own.carrier, Carrier::Own(_)));
    checker.finish("t").unwrap();
}

#[test]
fn every_mistake_is_told_with_its_place() {
    let mistakes = endpoint(json!({
        "name": "a b", "network": "gren", "mac": "03:00:00:00:00:01", "addresses": ["10.0.0.1", "x", "10.0.0.1"],
        "port": "p", "memif": {"socket": "@x"}, "colour": 1,
    }));
    assert_eq!(
        mistakes,
        [
            "e.colour: unknown key: must be one of name, network, mac, addresses, anti_spoofing, storm_limit, announce, hairpin, port, memif, veth",
            "e.name = \"a b\": must be 1 to 63 letters, digits, '_', '.' or '-'",
            "e.network = \"gren\": must be the name of a network: did you mean \"green\"?",
            "e.mac = \"03:00:00:00:00:01\": must be a station's Ethernet address, such as \"02:00:00:00:00:01\" (not multicast, not zero)",
            "e.addresses[1] = \"x\": must be a station's IP address, such as \"10.42.0.1\" (not multicast, broadcast, loopback or unspecified)",
            "e.addresses[2] = \"10.0.0.1\": must be unique: e.addresses[0] is the same",
            "e.memif = {…}: must be left out: the endpoint is on a port",
        ]
    );
}

#[test]
fn what_is_no_table_at_all_is_told() {
    for given in [json!(7), json!([]), json!("x"), json!([null]), json!({"name": [null]}), json!(null)] {
        let mistakes = endpoint(given.clone());
        assert_eq!(mistakes.len(), 1, "{given}: {mistakes:?}");
        assert!(mistakes[0].starts_with("e"), "{mistakes:?}");
    }
    // A key without a value that TOML has a word for.
    let mistakes = wrong(|checker| checker.network("n", json!({"name": "x", "vni": u64::MAX})).is_some());
    assert_eq!(mistakes.len(), 1, "{mistakes:?}");
    let mistakes = wrong(|checker| checker.port("p", json!({"name": "x"})).is_some());
    assert_eq!(
        mistakes,
        [
            "p.memif: missing: must be a table, such as { socket = \"/run/peregrine/memif.sock\", id = 0 }; or there must be a table veth, such as { namespace = \"web\" }"
        ]
    );
}

#[test]
fn a_network_is_held_to_the_uplinks_and_the_classes() {
    let mistakes = wrong(|checker| {
        let network =
            json!({"name": "x", "vni": 9, "remotes": ["192.0.2.1"], "port": 50000, "class": "gold"});
        checker.network("n", network).is_some()
    });
    assert_eq!(
        mistakes,
        [
            "n.port = 50000: must be outside uplink.source_ports = [49152, 65535], which frames are sent from",
            "n.remotes[0] = \"192.0.2.1\": must be another host's address: uplink.local[0] is the same",
            "n.class = \"gold\": must be the name of a class: \"urgent\", \"normal\"",
        ]
    );
}

#[test]
fn an_endpoint_is_held_to_the_control_socket_and_its_networks_mtu() {
    let memif = |memif: Value| {
        endpoint(json!({"name": "x", "network": "blue", "mac": "02:00:00:00:00:77", "memif": memif}))
    };
    assert_eq!(
        memif(json!({"socket": peregrine_config::CONTROL_SOCKET})),
        ["e.memif.socket = \"/run/peregrine/control.sock\": must be unique: control_socket is the same"]
    );
    assert_eq!(memif(json!({"socket": "@x", "role": "client", "mode": "0600"})).len(), 1);
}
