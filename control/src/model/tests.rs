//! A model on a runtime that is nothing but lists: what the engine and the sockets would have. What is refused changes nothing; what is
//! done is there everywhere.

use std::collections::{BTreeMap, HashMap};

use peregrine_dataplane::plan::{Places, Plan};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::declared::{apply, change};
use crate::rpc::{RpcError, code};

/// What runs, and which sockets are open.
#[derive(Default, Debug)]
pub struct Lists {
    networks: Places<NetworkId, NetworkPlan>,
    endpoints: Places<EndpointId, EndpointPlan>,
    open: BTreeMap<u16, PortKey>,
    held: HashMap<PortKey, String>,
    /// The engine refuses everything, which it knows before; or only when it is to do it; or a name cannot be opened.
    would_refuse: bool,
    refuses: bool,
    shut: Option<&'static str>,
    /// How often something was done to the sockets.
    touched: usize,
}

impl Lists {
    pub fn of(plan: &Plan) -> Lists {
        let mut lists =
            Lists { networks: plan.networks.clone(), endpoints: plan.endpoints.clone(), ..Lists::default() };
        for (id, endpoint) in plan.endpoints.iter() {
            lists.open.insert(id.0, endpoint.port.key());
        }
        lists
    }

    /// With the ports that are there by themselves.
    pub fn holding(mut self, model: &Model) -> Lists {
        self.held = model.held_ports().map(|(name, port)| (port.key(), name.clone())).collect();
        self
    }

    fn refusal(&self, change: &Change) -> Result<(), (Option<About>, String)> {
        let about = change.endpoints.iter().find(|(_, plan)| plan.is_some());
        Err((about.map(|(id, _)| About::Endpoint(*id)), "it does not like it".to_owned()))
    }

    /// All that there is.
    pub fn picture(&self) -> String {
        let networks: Vec<_> = self.networks.iter().collect();
        let endpoints: Vec<_> = self.endpoints.iter().collect();
        let held: BTreeMap<&String, &PortKey> = self.held.iter().map(|(key, name)| (name, key)).collect();
        format!("{networks:?} {endpoints:?} {:?} {held:?}", self.open)
    }
}

impl Runtime for Lists {
    fn vacant_networks(&self, count: usize) -> Vec<NetworkId> {
        (0..8).map(NetworkId).filter(|id| self.networks.get(*id).is_none()).take(count).collect()
    }

    fn vacant_endpoints(&self, count: usize) -> Vec<EndpointId> {
        (0..16).map(EndpointId).filter(|id| self.endpoints.get(*id).is_none()).take(count).collect()
    }

    fn swap(&mut self, go: &[EndpointId], come: &[Coming]) -> Result<(), (usize, String)> {
        self.touched += 1;
        let mut open = self.open.clone();
        go.iter().for_each(|id| assert!(open.remove(&id.0).is_some(), "{id:?} was not open"));
        for (index, Coming { id, plan, .. }) in come.iter().enumerate() {
            let place = plan.port.key();
            if self.shut == Some(&plan.name) {
                return Err((index, "no".to_owned()));
            }
            assert!(!open.values().any(|there| *there == place), "{place:?} twice");
            assert!(open.insert(id.0, place).is_none(), "{id:?} twice");
        }
        self.open = open;
        Ok(())
    }

    fn refit(&mut self, coming: &Coming) -> Result<(), String> {
        assert!(self.open.contains_key(&coming.id.0) && coming.plan.port.veth().is_some());
        Ok(())
    }

    fn hold(&mut self, name: &str, port: &PortPlan) -> Result<(), String> {
        self.touched += 1;
        assert!(self.held.insert(port.key(), name.to_owned()).is_none(), "{name} twice");
        Ok(())
    }

    fn release(&mut self, port: &PortPlan) {
        self.touched += 1;
        assert!(self.held.remove(&port.key()).is_some(), "{port:?} was not held");
    }

    fn attach(&mut self, come: &[Coming]) {
        for Coming { id, .. } in come {
            assert!(self.endpoints.get(*id).is_some() && self.open.contains_key(&id.0), "{id:?}");
        }
    }

    fn restore(&mut self, go: &[EndpointId], come: &[Coming], hold: &[(String, PortPlan)]) -> Option<String> {
        self.swap(go, &[]).unwrap();
        hold.iter().for_each(|(name, port)| self.hold(name, port).unwrap());
        self.swap(&[], come).unwrap();
        None
    }

    fn check(&self, change: &Change) -> Result<(), (Option<About>, String)> {
        match self.would_refuse {
            true => self.refusal(change),
            false => Ok(()),
        }
    }

    fn change(&mut self, change: Change) -> Result<(), (Option<About>, String)> {
        if self.refuses {
            return self.refusal(&change);
        }
        // What the engine would refuse.
        for (id, after) in &change.endpoints {
            if let (Some(before), Some(after)) = (self.endpoints.get(*id), after) {
                assert!(before.network == after.network && before.port == after.port);
            }
        }
        for (id, network) in change.networks {
            assert!(network.is_none() || self.networks.get(id).is_none(), "a network becomes another one");
            self.networks.set(id, network);
        }
        for (id, endpoint) in change.endpoints {
            self.endpoints.set(id, endpoint);
        }
        assert!(self.endpoints.values().all(|endpoint| self.networks.get(endpoint.network).is_some()));
        Ok(())
    }
}

pub fn config() -> Plan {
    let config = "[[workers]]\ncore = 0\n[uplink]\ninterface = \"ov0\"\nlocal = \"10.9.0.1\"\n\
         [[networks]]\nname = \"blue\"\nvni = 7\nremotes = [\"10.9.0.2\"]\n\
         static_macs = [{ mac = \"02:00:00:00:00:99\", remote = \"10.9.0.2\", addresses = [\"10.1.0.99\"] }]\n\
         [[endpoints]]\nname = \"web\"\nnetwork = \"blue\"\nmac = \"02:00:00:00:00:01\"\naddresses = [\"10.1.0.1\"]\n\
         memif = { socket = \"@config\", id = 1 }\n";
    peregrine_config::parse(config, "t").unwrap_or_else(|errors| panic!("{errors}"))
}

struct Rig {
    plan: Plan,
    model: Model,
    lists: Lists,
}

impl Rig {
    fn new() -> Rig {
        let plan = config();
        Rig { model: Model::of(&plan), lists: Lists::of(&plan), plan }
    }

    fn change(&mut self, steps: Value) -> Result<crate::model::types::ChangeAnswer, RpcError> {
        change(&mut self.model, &self.plan, &mut self.lists, json!({ "changes": steps }))
    }

    fn apply(&mut self, given: Value) -> Result<crate::model::types::ApplyAnswer, RpcError> {
        apply(&mut self.model, &self.plan, &mut self.lists, given)
    }

    fn export(&self) -> Value {
        serde_json::from_str(&self.model.export()).unwrap()
    }

    /// Who is on a port, the first one first.
    fn on(&self, port: &str) -> Vec<&str> {
        self.model.on_port(port).into_iter().map(|(name, _)| name.as_str()).collect()
    }

    /// Everything that there is, but for who watches.
    fn picture(&self) -> String {
        format!("{} {}", self.model.picture(), self.lists.picture())
    }

    /// One network, one port, one endpoint on it, one by itself.
    fn furnished() -> Rig {
        let mut rig = Rig::new();
        let answer = rig.change(json!([
            {"add_network": {"name": "green", "vni": 8}},
            {"add_port": {"name": "p1", "memif": {"socket": "@ports", "id": 1}}},
            {"add_port": {"name": "p2", "memif": {"socket": "@ports", "id": 2}}},
            {"add_endpoint": endpoint("e1", "green", 1, json!({"port": "p1", "addresses": ["10.2.0.1"]}))},
            {"add_endpoint": endpoint("e2", "blue", 2, json!({"memif": {"socket": "@own"}}))},
        ]));
        let answer = answer.unwrap();
        assert_eq!((answer.generation, answer.added, answer.changed, answer.removed), (1, 5, 0, 0));
        rig
    }
}

impl Model {
    /// Everything in order.
    fn picture(&self) -> String {
        let mut held: Vec<String> = self.held.iter().map(|it| format!("{it:?}")).collect();
        held.sort();
        let mut sockets: Vec<String> = self
            .sockets
            .iter()
            .map(|(socket, used)| format!("{socket} {:?} {}", used.terms, used.ports))
            .collect();
        sockets.sort();
        format!("{:?} {:?} {:?} {held:?} {sockets:?}", self.networks, self.ports, self.endpoints)
    }
}

fn endpoint(name: &str, network: &str, mac: u8, more: Value) -> Value {
    let mut given = json!({"name": name, "network": network, "mac": format!("02:00:00:00:00:{mac:02x}")});
    given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    given
}

#[test]
fn what_is_declared_is_there_and_goes_again() {
    let mut rig = Rig::furnished();
    assert_eq!(rig.lists.networks.len(), 2);
    assert_eq!(rig.lists.endpoints.len(), 3);
    let ports = |id| PortKey::Memif("@ports".parse().unwrap(), id);
    assert_eq!((rig.lists.held[&ports(1)].as_str(), rig.lists.held[&ports(2)].as_str()), ("p1", "p2"));
    assert_eq!(rig.on("p1"), ["e1"]);
    assert!(rig.on("p2").is_empty());
    let before = rig.lists.open.clone();
    rig.change(json!([{"move_endpoint": {"name": "e1", "port": "p2"}}])).unwrap();
    assert_eq!((rig.on("p1").len(), rig.on("p2")), (0, vec!["e1"]));
    assert_ne!(rig.lists.open, before);
    // The same place, other limits.
    let before = rig.lists.open.clone();
    let set = endpoint("e1", "green", 3, json!({"port": "p2", "storm_limit": 5}));
    assert_eq!(rig.change(json!([{"set_endpoint": set}])).unwrap().changed, 1);
    assert_eq!(rig.lists.open, before);
    let all = json!([{"remove_endpoint": "e1"}, {"remove_endpoint": "e2"}, {"remove_port": "p1"}, {"remove_port": "p2"}, {"remove_network": "green"}]);
    assert_eq!(rig.change(all).unwrap().removed, 5);
    assert_eq!(rig.picture(), Rig::new().picture());
    assert_eq!(rig.model.generation(), 4);
}

#[test]
fn what_is_wrong_is_told_with_its_path_and_changes_nothing() {
    let mut rig = Rig::furnished();
    let before = rig.picture();
    let own = json!({"memif": {"socket": "@x"}});
    let add = |given: Value| json!({"add_endpoint": given});
    let cases = [
        (
            add(endpoint("e3", "green", 1, own.clone())),
            "add_endpoint.mac = \"02:00:00:00:00:01\": must be unique: that of port p1 is the same",
        ),
        (
            add(endpoint("e3", "blue", 0x99, own.clone())),
            "add_endpoint.mac = \"02:00:00:00:00:99\": must be unique: that of network blue is the same",
        ),
        (
            add(endpoint("e3", "green", 9, json!({"memif": {"socket": "@x"}, "addresses": ["10.2.0.1"]}))),
            "add_endpoint.addresses = \"10.2.0.1\": must be unique: that of endpoint e1 is the same",
        ),
        (
            add(endpoint("e3", "gren", 9, own.clone())),
            "add_endpoint.network = \"gren\": must be the name of a network: did you mean \"green\"?",
        ),
        (
            add(endpoint("e1", "green", 9, own.clone())),
            "add_endpoint.name = \"e1\": there is an endpoint of this name already",
        ),
        (
            add(endpoint("web", "green", 9, own.clone())),
            "add_endpoint.name = \"web\": the config has an endpoint of this name",
        ),
        (
            add(endpoint("p1", "green", 9, own.clone())),
            "add_endpoint.memif: its port would have the endpoint's name, and there is a port p1 already: name another, or say port = \"p1\"",
        ),
        (
            add(endpoint("e3", "blue", 9, json!({"port": "p1"}))),
            "add_endpoint.network: endpoints on one port have the same network, anti_spoofing, storm_limit, announce and hairpin, and in a container the same mac, and port p1 carries endpoint e1 with another network",
        ),
        (
            add(endpoint("e3", "green", 9, json!({"port": "web"}))),
            "add_endpoint.port = \"web\": it is endpoint web's own: declare a port that both are on",
        ),
        (
            add(endpoint("e3", "green", 9, json!({"port": "nope"}))),
            "add_endpoint.port = \"nope\": there is no port of this name",
        ),
        (
            add(endpoint("e3", "green", 9, json!({"memif": {"socket": "@ports", "id": 2}}))),
            "add_endpoint.memif.id = 2 on \"@ports\": must be unique: that of port p2 is the same",
        ),
        (
            add(endpoint(
                "e3",
                "green",
                9,
                json!({"memif": {"socket": "@ports", "id": 3, "role": "client"}}),
            )),
            "add_endpoint.memif.socket = \"@ports\": role, mode, owner and group must be the same for one socket, and port p1 says others",
        ),
        (
            json!({"add_network": {"name": "red", "vni": 8}}),
            "add_network.vni = 8: must be unique: that of network green is the same",
        ),
        (
            json!({"add_network": {"name": "blue", "vni": 9}}),
            "add_network.name = \"blue\": the config has a network of this name",
        ),
        (
            json!({"remove_network": "blue"}),
            "remove_network = \"blue\": network blue is the config's: change it there and restart",
        ),
        (
            json!({"remove_network": "green"}),
            "remove_network = \"green\": endpoints are on it, such as e1: remove them first, or in the same change",
        ),
        (json!({"remove_network": 7}), "remove_network: must be the name of a network"),
        (
            json!({"remove_endpoint": "web"}),
            "remove_endpoint = \"web\": endpoint web is the config's: change it there and restart",
        ),
        (json!({"remove_endpoint": "nope"}), "remove_endpoint = \"nope\": there is no endpoint of this name"),
        (
            json!({"remove_port": "p1"}),
            "remove_port = \"p1\": it carries endpoint e1: remove that first, or move it",
        ),
        (json!({"remove_port": "e2"}), "remove_port = \"e2\": it is an endpoint's own, and goes with it"),
        (
            json!({"set_port": {"name": "e2", "memif": {"socket": "@y"}}}),
            "set_port.name = \"e2\": it is an endpoint's own: change the endpoint",
        ),
        (
            json!({"set_endpoint": endpoint("nope", "green", 9, own.clone())}),
            "set_endpoint.name = \"nope\": there is no endpoint of this name",
        ),
        (
            json!({"move_endpoint": {"name": "e1"}}),
            "move_endpoint: must be a table with the keys name and port",
        ),
        (
            json!({"move_endpoint": {"name": "e1", "port": "e2"}}),
            "move_endpoint.port = \"e2\": it is endpoint e2's own: declare a port that both are on",
        ),
    ];
    for (step, want) in cases {
        // Half of the batch is right.
        let fine = json!({"add_network": {"name": "fine", "vni": 100}});
        let error = rig.change(json!([fine, step])).unwrap_err();
        assert_eq!((error.code, error.message), (code::INVALID_PARAMS, format!("changes[1].{want}")));
        assert_eq!(rig.picture(), before, "{want}");
    }
    for step in
        [json!({}), json!({"add_endpoint": {}, "add_port": {}}), json!("x"), json!({"add": {}}), json!(null)]
    {
        let error = rig.change(json!([step])).unwrap_err();
        assert!(
            error.message.starts_with("changes[0]: must be a table with one of the keys add_network, "),
            "{error:?}"
        );
    }
    assert_eq!(rig.picture(), before);
}

#[test]
fn all_mistakes_are_told_at_once() {
    let mut rig = Rig::furnished();
    let bad: Vec<Value> = (0..150).map(|_| json!({"remove_port": "nope"})).collect();
    let error = rig.change(json!(bad)).unwrap_err();
    assert!(error.message.ends_with("there is no port of this name (and 149 more)"), "{}", error.message);
    assert_eq!(error.data.unwrap()["errors"].as_array().unwrap().len(), 100);
}

#[test]
fn steps_see_those_before_them_and_addresses_count_at_the_end() {
    let mut rig = Rig::furnished();
    // Two change their addresses with each other; one goes and comes again; a network comes with what is on it.
    rig.change(json!([
        {"add_endpoint": endpoint("e3", "green", 3, json!({"memif": {"socket": "@own", "id": 3}}))},
    ]))
    .unwrap();
    rig.change(json!([
        {"set_endpoint": endpoint("e1", "green", 3, json!({"port": "p1"}))},
        {"set_endpoint": endpoint("e3", "green", 1, json!({"memif": {"socket": "@own", "id": 3}}))},
        {"remove_endpoint": "e2"},
        {"add_endpoint": endpoint("e2", "red", 1, json!({"memif": {"socket": "@own"}}))},
        {"add_network": {"name": "red", "vni": 9}},
    ]))
    .unwrap_err();
    let answer = rig.change(json!([
        {"set_endpoint": endpoint("e1", "green", 3, json!({"port": "p1"}))},
        {"set_endpoint": endpoint("e3", "green", 1, json!({"memif": {"socket": "@own", "id": 3}}))},
        {"remove_endpoint": "e2"},
        {"add_network": {"name": "red", "vni": 9}},
        {"add_endpoint": endpoint("e2", "red", 1, json!({"memif": {"socket": "@own"}}))},
    ]));
    let answer = answer.unwrap();
    assert_eq!((answer.added, answer.changed, answer.removed), (1, 3, 0));
    // What comes and goes in one change was never there.
    let before = rig.picture();
    let answer =
        rig.change(json!([{"add_network": {"name": "x", "vni": 50}}, {"remove_network": "x"}])).unwrap();
    assert_eq!((answer.added, answer.generation, rig.picture()), (0, 3, before));
}

#[test]
fn endpoints_share_a_port_and_are_one_place_of_the_engine() {
    let mut rig = Rig::furnished();
    let place = rig.model.endpoints["e1"].id;
    let runs = |rig: &Rig| {
        let plan = rig.lists.endpoints.get(place).unwrap();
        plan.stations().map(|it| (it.name.to_owned(), it.mac.0[5], it.addresses.len())).collect::<Vec<_>>()
    };
    let one =
        |name: &str, mac, ip: &str| endpoint(name, "green", mac, json!({"port": "p1", "addresses": [ip]}));
    // The same address as the first one's: a function on a shared interface. And one with its own, whose name comes first.
    rig.change(
        json!([{"add_endpoint": one("f1", 1, "10.2.0.2")}, {"add_endpoint": one("a", 9, "10.2.0.9")}]),
    )
    .unwrap();
    assert_eq!(rig.on("p1"), ["e1", "f1", "a"]);
    assert_eq!(runs(&rig), [("e1".into(), 1, 2), ("a".into(), 9, 1)]);
    assert!(["f1", "a"].iter().all(|name| rig.model.endpoints[*name].id == place));
    let opened = rig.lists.open.clone();
    for (bad, why) in [
        (
            one("b", 2, "10.2.0.2"),
            "add_endpoint.addresses = \"10.2.0.2\": must be unique: that of endpoint f1 is the same",
        ),
        (
            endpoint("b", "blue", 7, json!({"port": "p1"})),
            "add_endpoint.network: endpoints on one port have the same network",
        ),
        (
            endpoint("b", "green", 7, json!({"port": "p1", "storm_limit": 5})),
            "and port p1 carries endpoint e1 with another storm_limit",
        ),
        (
            endpoint("b", "green", 1, json!({"port": "p2"})),
            "add_endpoint.mac = \"02:00:00:00:00:01\": must be unique: that of port p1 is the same",
        ),
    ] {
        let before = rig.picture();
        let error = rig.change(json!([{"add_endpoint": bad}])).unwrap_err().message;
        assert!(error.contains(why), "{error}");
        assert_eq!(rig.picture(), before);
    }
    // The first one goes: the others stay connected, and its Ethernet address stays with who else has it.
    rig.change(json!([{"remove_endpoint": "e1"}])).unwrap();
    assert_eq!(runs(&rig), [("f1".into(), 1, 1), ("a".into(), 9, 1)]);
    assert_eq!(rig.lists.open, opened);
    let taken =
        rig.change(json!([{"add_endpoint": endpoint("b", "green", 1, json!({"port": "p2"}))}])).unwrap_err();
    assert!(taken.message.contains("that of port p1"), "{}", taken.message);
    // Another address for one of them, and another port.
    rig.change(json!([{"set_endpoint": one("f1", 1, "10.2.0.77")}])).unwrap();
    assert_eq!(rig.lists.endpoints.get(place).unwrap().addresses, [std::net::IpAddr::from([10, 2, 0, 77])]);
    rig.change(json!([{"move_endpoint": {"name": "f1", "port": "p2"}}])).unwrap();
    assert_eq!((runs(&rig), rig.on("p2")), (vec![("a".into(), 9, 1)], vec!["f1"]));
    assert_ne!(rig.model.endpoints["f1"].id, place);
    // What a restart has.
    let export = rig.export();
    let mut again = Rig::new();
    again.apply(json!({"networks": export["networks"], "ports": export["ports"], "endpoints": export["endpoints"]})).unwrap();
    assert_eq!(again.on("p1"), ["a"]);
    rig.change(json!([{"remove_endpoint": "a"}, {"remove_endpoint": "f1"}, {"remove_port": "p1"}])).unwrap();
    assert!(rig.lists.endpoints.get(place).is_none() && rig.lists.open.len() == 2);
}

#[test]
fn a_port_carries_so_many_and_no_more() {
    let mut rig = Rig::furnished();
    let one =
        |n: usize| json!({"add_endpoint": endpoint(&format!("f{n:02}"), "green", 1, json!({"port": "p1"}))});
    let most = shared::ON_ONE_PORT_MAX;
    rig.change(json!((1..most).map(one).collect::<Vec<_>>())).unwrap();
    assert_eq!(rig.on("p1").len(), most);
    let error = rig.change(json!([one(most)])).unwrap_err().message;
    assert_eq!(
        error,
        format!("changes[0].add_endpoint.port = \"p1\": a port carries at most {most} endpoints")
    );
}

#[test]
fn a_network_or_a_port_that_changes_takes_its_endpoints_along() {
    let mut rig = Rig::furnished();
    let place = rig.lists.open.clone();
    let answer = rig.change(json!([{"set_network": {"name": "green", "vni": 8, "mtu": 1400}}])).unwrap();
    assert_eq!((answer.changed, rig.model.endpoints["e1"].plan.network), (1, rig.model.networks["green"].id));
    assert_eq!(rig.lists.networks.get(rig.model.networks["green"].id).unwrap().mtu, 1400);
    assert_ne!(rig.lists.open, place);
    rig.change(json!([{"set_port": {"name": "p1", "memif": {"socket": "@elsewhere"}}}])).unwrap();
    assert_eq!(rig.lists.held.len(), 2);
    assert!(
        rig.lists
            .open
            .values()
            .any(|key| matches!(key, PortKey::Memif(socket, _) if socket.to_string() == "@elsewhere"))
    );
    // All on a socket take another role together.
    rig.change(json!([{"add_endpoint": endpoint("e4", "green", 4, json!({"port": "p2"}))}])).unwrap();
    let client = json!({"socket": "@ports", "id": 2, "role": "client"});
    rig.change(json!([{"set_port": {"name": "p2", "memif": client}}])).unwrap();
    assert!(matches!(rig.model.endpoints["e4"].plan.port.memif().unwrap().role, MemifRole::Client { .. }));
    // A client whose buffers would be too small for the network.
    let before = rig.picture();
    let error = rig.change(json!([{"set_network": {"name": "green", "vni": 8, "mtu": 9000}}])).unwrap_err();
    assert!(
        error.message.contains("port p2: its buffer_size of 2048 must be at least 9018"),
        "{}",
        error.message
    );
    assert_eq!(rig.picture(), before);
}

#[test]
fn what_the_engine_or_a_socket_refuses_changes_nothing() {
    for (refuses, shut, want) in [
        (true, None, "changes[1].set_endpoint: it does not like it"),
        (false, Some("e2"), "changes[1].set_endpoint: no"),
    ] {
        let mut rig = Rig::furnished();
        let before = rig.picture();
        (rig.lists.refuses, rig.lists.shut) = (refuses, shut);
        let error = rig.change(json!([
            {"add_port": {"name": "p3", "memif": {"socket": "@new"}}},
            {"set_endpoint": endpoint("e2", "blue", 2, json!({"memif": {"socket": "@own", "secret": "other"}}))},
            {"remove_port": "p2"},
        ]));
        let error = error.unwrap_err();
        assert_eq!((error.code, error.message.as_str()), (code::REFUSED, want));
        assert_eq!(rig.picture(), before);
        assert_eq!(rig.model.generation(), 1);
    }
}

#[test]
fn what_the_engine_would_refuse_touches_no_socket_and_fails_a_dry_run() {
    let mut rig = Rig::furnished();
    rig.lists.would_refuse = true;
    let (before, touched) = (rig.picture(), rig.lists.touched);
    for dry_run in [true, false] {
        let set = endpoint("e2", "blue", 2, json!({"memif": {"socket": "@own", "secret": "other"}}));
        let given = json!({"changes": [{"set_endpoint": set}], "dry_run": dry_run});
        let error = change(&mut rig.model, &rig.plan, &mut rig.lists, given).unwrap_err();
        let want = "changes[0].set_endpoint: it does not like it";
        assert_eq!((error.code, error.message.as_str()), (code::REFUSED, want));
        assert_eq!((rig.picture(), rig.lists.touched), (before.clone(), touched));
    }
}

#[test]
fn a_generation_that_is_over_is_refused_and_a_dry_run_does_nothing() {
    let mut rig = Rig::furnished();
    let before = rig.picture();
    let step = json!({"add_network": {"name": "x", "vni": 50}});
    let mut ask = |more: Value| {
        let mut given = json!({"changes": [step.clone()]});
        given.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        change(&mut rig.model, &rig.plan, &mut rig.lists, given)
    };
    let error = ask(json!({"generation": 0})).unwrap_err();
    assert_eq!(error.message, "generation = 0: it is 1 by now: look at what changed, and ask again");
    let answer = ask(json!({"generation": 1, "dry_run": true})).unwrap();
    assert_eq!((answer.added, answer.generation), (1, 1));
    assert_eq!(rig.picture(), before);
}

#[test]
fn no_place_is_told() {
    let mut rig = Rig::new();
    let add = |n: u8| json!({"add_endpoint": endpoint(&format!("e{n}"), "blue", n, json!({"memif": {"socket": "@own", "id": n}}))});
    let steps: Vec<Value> = (10..26).map(add).collect();
    let error = rig.change(json!(steps)).unwrap_err();
    assert!(error.message.contains("no place is free for another endpoint"), "{}", error.message);
    rig.change(json!(steps[1..])).unwrap();
}

#[test]
fn apply_makes_the_difference() {
    let mut rig = Rig::furnished();
    let export = rig.export();
    let answer = rig.apply(export.clone()).unwrap();
    assert_eq!((answer.generation, answer.totals), (1, types::Totals::default()), "nothing is other");
    // Written otherwise, and the same.
    let mut same = export.clone();
    same["networks"][0]["mtu"] = json!(1450);
    same["endpoints"][0]["storm_limit"] = json!(null);
    assert_eq!(rig.apply(same).unwrap().generation, 1);
    let mut other = export.clone();
    other["generation"] = json!(1);
    other["endpoints"][0]["storm_limit"] = json!(9);
    other["endpoints"].as_array_mut().unwrap().remove(1);
    other["ports"].as_array_mut().unwrap().push(json!({"name": "p9", "memif": {"socket": "@nine"}}));
    let mut dry = other.clone();
    dry["dry_run"] = json!(true);
    let before = rig.picture();
    let planned = rig.apply(dry).unwrap();
    assert_eq!(rig.picture(), before);
    let answer = rig.apply(other.clone()).unwrap();
    assert_eq!(
        (&answer.added, &answer.changed, &answer.removed),
        (&planned.added, &planned.changed, &planned.removed)
    );
    assert_eq!(
        answer.changed,
        [types::Altered { kind: Kind::Endpoint, name: "e1".into(), keys: vec!["storm_limit".into()] }]
    );
    assert_eq!((answer.totals.added, answer.totals.removed, answer.generation), (1, 1, 2));
    // The second of two who both knew generation 1.
    let error = rig.apply(other).unwrap_err();
    assert!(error.message.starts_with("generation = 1: it is 2 by now"), "{}", error.message);
    // An endpoint's own port becomes a port of its name, and back.
    rig.apply(json!({"endpoints": [endpoint("e", "blue", 5, json!({"memif": {"socket": "@e"}}))]})).unwrap();
    let on_port = json!({"ports": [{"name": "e", "memif": {"socket": "@e"}}], "endpoints": [endpoint("e", "blue", 5, json!({"port": "e"}))]});
    rig.apply(on_port).unwrap();
    rig.apply(json!({"endpoints": [endpoint("e", "blue", 5, json!({"memif": {"socket": "@e"}}))]})).unwrap();
    assert_eq!(rig.apply(json!({})).unwrap().totals.removed, 1);
    assert_eq!(rig.picture(), Rig::new().picture());
    let twice = endpoint("e", "blue", 5, json!({"memif": {"socket": "@e"}}));
    let error = rig.apply(json!({"endpoints": [twice, twice]})).unwrap_err();
    assert_eq!(error.message, "endpoints[1].name = \"e\": there is an endpoint of this name already");
    assert_eq!(rig.apply(json!({"format": 3})).unwrap_err().message, "apply: format = 3: must be 1");
    // A state file's, which was moved away.
    assert_eq!(rig.apply(json!({"format": 2})).unwrap().totals.added, 0);
}

#[test]
fn who_watches_is_told_what_came_after() {
    let mut rig = Rig::new();
    assert_eq!(rig.model.since(0).unwrap().count(), 0);
    assert!(rig.model.since(1).is_none(), "that is yet to come");
    for n in 0..super::LOG_MAX + 10 {
        let step = if n % 2 == 0 {
            json!({"add_network": {"name": "x", "vni": 50}})
        } else {
            json!({"remove_network": "x"})
        };
        rig.change(json!([step])).unwrap();
    }
    assert!(rig.model.since(9).is_none());
    let changes: Vec<&Changed> = rig.model.since(10).unwrap().collect();
    assert_eq!((changes.len(), changes[0].generation), (LOG_MAX, 11));
    assert_eq!(changes[0].added, [Named { kind: Kind::Network, name: "x".into() }]);
    assert_eq!(rig.model.since(rig.model.generation() - 1).unwrap().count(), 1);
}

/// Steps with few names and addresses, so that they meet.
fn steps() -> impl Strategy<Value = Value> {
    let name = prop_oneof![Just("a"), Just("b"), Just("c"), Just("web")];
    let port = prop_oneof![Just("p"), Just("q"), Just("a")];
    let network = prop_oneof![Just("blue"), Just("n1"), Just("n2")];
    let memif = (0u8..2, 0u8..4, prop::bool::weighted(0.2)).prop_map(|(socket, id, is_client)| {
        let role = if is_client { json!("client") } else { json!(null) };
        json!({"socket": format!("@s{socket}"), "id": id, "role": role})
    });
    let carrier = prop_oneof![
        port.clone().prop_map(|port| json!({"port": port})),
        memif.clone().prop_map(|memif| json!({"memif": memif})),
    ];
    let endpoint = (name.clone(), network.clone(), 1u8..4, 0u8..3, carrier).prop_map(
        |(name, network, mac, ip, carrier)| {
            let mut given = endpoint(name, network, mac, carrier);
            given["addresses"] = json!([format!("10.5.0.{}", ip + 1)]);
            given
        },
    );
    let net = (network.clone(), 7u32..10, 1400u16..1402)
        .prop_map(|(name, vni, mtu)| json!({"name": name, "vni": vni, "mtu": mtu}));
    let port_table = (port.clone(), memif).prop_map(|(name, memif)| json!({"name": name, "memif": memif}));
    prop_oneof![
        net.clone().prop_map(|it| json!({"add_network": it})),
        net.prop_map(|it| json!({"set_network": it})),
        network.prop_map(|it| json!({"remove_network": it})),
        port_table.clone().prop_map(|it| json!({"add_port": it})),
        port_table.prop_map(|it| json!({"set_port": it})),
        port.clone().prop_map(|it| json!({"remove_port": it})),
        endpoint.clone().prop_map(|it| json!({"add_endpoint": it})),
        endpoint.prop_map(|it| json!({"set_endpoint": it})),
        name.clone().prop_map(|it| json!({"remove_endpoint": it})),
        (name, port).prop_map(|(name, port)| json!({"move_endpoint": {"name": name, "port": port}})),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever was done or refused: what runs is what is declared, and who replays the export has the same.
    #[test]
    fn the_model_is_what_its_export_says(batches in prop::collection::vec(prop::collection::vec(steps(), 1..5), 1..24)) {
        let mut rig = Rig::new();
        for batch in batches {
            let before = rig.picture();
            if rig.change(json!(batch)).is_err() {
                prop_assert_eq!(&before, &rig.picture());
            }
            for endpoint in rig.model.endpoints.values() {
                let runs = rig.lists.endpoints.get(endpoint.id).unwrap();
                prop_assert_eq!((&runs.port, runs.network, runs.storm_limit), (&endpoint.plan.port, endpoint.plan.network, endpoint.plan.storm_limit));
                let station = runs.stations().find(|station| station.mac == endpoint.plan.mac).unwrap();
                prop_assert!(endpoint.plan.addresses.iter().all(|ip| station.addresses.contains(ip)));
                prop_assert!(rig.model.networks[&endpoint.network].endpoints.contains(&endpoint.plan.name));
            }
            let ports: std::collections::BTreeSet<&String> = rig.model.endpoints.values().map(|it| &it.port).collect();
            prop_assert_eq!((rig.lists.endpoints.len(), rig.lists.open.len()), (ports.len(), ports.len()));
            let addresses = |all: &[std::net::IpAddr]| all.len();
            let run: usize = rig.lists.endpoints.values().flat_map(EndpointPlan::stations).map(|it| addresses(it.addresses)).sum();
            prop_assert_eq!(run, rig.model.endpoints.values().map(|it| it.plan.addresses.len()).sum::<usize>());
            prop_assert_eq!(rig.lists.networks.len(), rig.model.networks.len());
        }
        let mut replayed = Rig::new();
        replayed.apply(json!({"networks": rig.export()["networks"], "ports": rig.export()["ports"], "endpoints": rig.export()["endpoints"]})).unwrap();
        // But for the places that they have.
        let (mut one, mut other) = (rig.export(), replayed.export());
        one["generation"] = json!(0);
        other["generation"] = json!(0);
        prop_assert_eq!(one, other);
        prop_assert_eq!(rig.model.held.len(), replayed.model.held.len());
        prop_assert_eq!(rig.model.sockets.len(), replayed.model.sockets.len());
        for (socket, used) in &rig.model.sockets {
            let there = &replayed.model.sockets[socket];
            prop_assert_eq!((&used.terms, used.ports), (&there.terms, there.ports));
        }
        // And nothing is left when all of it goes.
        rig.apply(json!({})).unwrap();
        prop_assert_eq!(rig.picture(), Rig::new().picture());
    }
}
