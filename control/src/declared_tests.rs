//! The methods on a real engine, whose frames come from memory, and real sockets; and the schema.

use std::path::Path;

use mio::{Poll, Token};
use peregrine_memif::SocketAddr;

use super::*;
use crate::preflight::allowed_cores;

struct Rig {
    plan: Plan,
    model: Model,
    engine: Engine,
    tenants: Tenants,
    poll: Poll,
    folder: tempfile::TempDir,
}

impl Rig {
    fn new() -> Rig {
        let folder = tempfile::tempdir().unwrap();
        let core = allowed_cores().unwrap().first().unwrap().0;
        let config = format!(
            "state = \"{}\"\n[[workers]]\ncore = {core}\n[uplink]\ninterface = \"ov0\"\nlocal = \"10.9.0.1\"\nring_size = 64\n\
             [capacity]\nnetworks = 4\nendpoints = 300\n\
             [[networks]]\nname = \"blue\"\nvni = 7\nremotes = [\"10.9.0.2\"]\n\
             [[endpoints]]\nname = \"web\"\nnetwork = \"blue\"\nmac = \"02:00:00:00:07:01\"\nmemif = {{ socket = \"{}\" }}\n",
            folder.path().join("state.json").display(),
            folder.path().join("config.sock").display(),
        );
        let plan = peregrine_config::parse(&config, "t").unwrap_or_else(|errors| panic!("{errors}"));
        Rig::start(plan, folder)
    }

    fn start(plan: Plan, folder: tempfile::TempDir) -> Rig {
        let (model, begins) = file::load(&plan).unwrap();
        let engine = Engine::replay(&begins, vec![]).unwrap();
        let poll = Poll::new().unwrap();
        let mut tenants = Tenants::bind(&begins, Token(0), None).unwrap();
        tenants.register(poll.registry()).unwrap();
        for (name, port) in model.held_ports() {
            tenants.hold(poll.registry(), name, port).unwrap();
        }
        Rig { plan, model, engine, tenants, poll, folder }
    }

    fn again(self) -> Rig {
        let Rig { plan, folder, engine, tenants, .. } = self;
        drop((engine, tenants));
        Rig::start(plan, folder)
    }

    fn ask(&mut self, method: &str, mut given: Value) -> Result<Value, RpcError> {
        let Rig { plan, model, engine, tenants, poll, .. } = self;
        let mut declared = Declared { plan, model, engine, tenants, registry: poll.registry() };
        declared.answer(method, &mut given, Instant::now()).unwrap()
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn change(&mut self, steps: Value) -> Value {
        self.ask("change", json!({ "changes": steps })).unwrap_or_else(|error| panic!("{}", error.message))
    }
}

fn add(n: usize, socket: &str) -> Value {
    let mac = format!("02:00:00:01:{:02x}:{:02x}", n / 256, n % 256);
    json!({"add_endpoint": {"name": format!("e{n}"), "network": "blue", "mac": mac, "memif": {"socket": socket, "id": n}}})
}

#[test]
fn endpoints_come_and_go_in_the_engine_and_at_the_sockets() {
    let mut rig = Rig::new();
    let (own, ports) = (rig.path("own.sock"), rig.path("ports.sock"));
    let steps: Vec<Value> = (0..200).map(|n| add(n, &own)).collect();
    assert_eq!(rig.change(json!(steps))["added"], 200);
    assert_eq!(rig.engine.plan().endpoints.len(), 201);
    assert!(Path::new(&own).exists());
    rig.change(json!([
        {"add_network": {"name": "green", "vni": 8}},
        {"add_port": {"name": "p", "memif": {"socket": ports, "secret": "geheim"}}},
    ]));
    assert!(Path::new(&ports).exists(), "a port listens without an endpoint");
    assert_eq!(rig.ask("port.list", json!({"name": "p"})).unwrap()["ports"][0]["state"], "unbound");
    rig.change(
        json!([{"add_endpoint": {"name": "g", "network": "green", "mac": "02:00:00:00:00:09", "port": "p"}}]),
    );
    // All of it as before, when it is started again.
    let before = rig.ask("export", json!(null)).unwrap();
    let mut rig = rig.again();
    assert_eq!(rig.ask("export", json!(null)).unwrap(), before);
    assert_eq!(
        (before["endpoints"].as_array().unwrap().len(), &before["ports"][0]["memif"]["secret"]),
        (201, &json!("geheim"))
    );
    assert_eq!(rig.engine.plan().endpoints.len(), 202);
    assert!(Path::new(&own).exists() && Path::new(&ports).exists());
    assert_eq!(rig.ask("apply", before).unwrap()["generation"], 3);
    assert_eq!(rig.ask("apply", json!({})).unwrap()["totals"]["removed"], 203);
    assert_eq!(rig.engine.plan().endpoints.len(), 1);
    assert!(!Path::new(&own).exists() && !Path::new(&ports).exists());
}

#[test]
fn what_a_socket_or_the_engine_refuses_is_told_with_its_path() {
    let mut rig = Rig::new();
    let own = rig.path("own.sock");
    std::fs::write(rig.path("taken"), "").unwrap();
    let steps = json!([add(1, &own), add(2, &rig.path("taken"))]);
    let error = rig.ask("change", json!({ "changes": steps })).unwrap_err();
    assert!(error.message.starts_with("changes[1].add_endpoint: "), "{}", error.message);
    let network = json!({"name": "n", "vni": 9, "fdb_limit": 1_000_000});
    let error = rig.ask("change", json!({"changes": [add(1, &own), {"add_network": network}]})).unwrap_err();
    assert!(error.message.starts_with("changes[1].add_network: its fdb_limit is more"), "{}", error.message);
    assert!(!Path::new(&own).exists());
    rig.change(json!([add(1, &own)]));
    let rules = json!({"rules": [{"class": "urgent", "endpoint": "e1"}]});
    crate::rules::set(&mut rig.engine, rules).unwrap();
    let error = rig.ask("apply", json!({})).unwrap_err();
    assert!(
        error.message.starts_with("endpoints: rules[0] names it: replace the rules first"),
        "{}",
        error.message
    );
    assert!(Path::new(&own).exists());
    crate::rules::set(&mut rig.engine, json!({"rules": []})).unwrap();
    rig.ask("apply", json!({})).unwrap();
    assert_eq!(rig.ask("export", json!({})).unwrap()["generation"], 2);
    assert_eq!(rig.engine.plan().endpoints.len(), 1);
}

#[test]
fn a_dry_run_knows_what_the_engine_would_refuse() {
    let mut rig = Rig::new();
    let network = json!({"name": "n", "vni": 9, "fdb_limit": 1_000_000});
    let given = json!({"changes": [{"add_network": network}], "dry_run": true});
    let error = rig.ask("change", given).unwrap_err();
    assert!(error.message.starts_with("changes[0].add_network: its fdb_limit is more"), "{}", error.message);
    let given = json!({"networks": [network], "dry_run": true});
    let error = rig.ask("apply", given).unwrap_err();
    assert!(error.message.starts_with("networks[0]: its fdb_limit is more"), "{}", error.message);
    // A tenant stays where what would take its place is refused.
    let own = rig.path("own.sock");
    rig.change(json!([add(1, &own)]));
    let inode = |path: &str| std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(path).unwrap());
    let (before, rules) = (inode(&own), json!({"rules": [{"class": "urgent", "endpoint": "e1"}]}));
    crate::rules::set(&mut rig.engine, rules).unwrap();
    let steps = json!([{"remove_endpoint": "e1"}, add(1, &rig.path("other.sock"))]);
    for dry_run in [true, false] {
        let error = rig.ask("change", json!({"changes": steps, "dry_run": dry_run})).unwrap_err();
        assert!(error.message.contains("rules[0] names it"), "{}", error.message);
        assert_eq!(inode(&own), before);
        assert!(!Path::new(&rig.path("other.sock")).exists());
    }
}

#[test]
fn a_long_list_comes_in_pages_that_together_have_each_name_once() {
    for count in [0, 1, LISTED_MAX, LISTED_MAX + 1, 2 * LISTED_MAX, 2 * LISTED_MAX + 3] {
        let names: Vec<String> = (0..count).map(|number| format!("e{number:05}")).collect();
        let (mut seen, mut after, mut pages) = (Vec::new(), None, 0);
        loop {
            let (listed, next) = page(&names, after.as_deref());
            seen.extend_from_slice(listed);
            pages += 1;
            let Some(next) = next else { break };
            assert!(after.replace(next.clone()).is_none_or(|before| before < next));
        }
        assert_eq!((seen, pages), (names, count.div_ceil(LISTED_MAX).max(1)), "{count}");
    }
    // One that went meanwhile is no name to look for, but still a place in the order.
    let names = ["a", "c", "d"];
    assert_eq!(page(&names, Some("b")), (&["c", "d"][..], None));
    assert_eq!(page(&names, Some("d")), (&[][..], None));
}

#[test]
fn lists_are_filtered_and_show_no_secrets() {
    let mut rig = Rig::new();
    let socket = rig.path("s.sock");
    rig.change(json!([
        {"add_network": {"name": "green", "vni": 8, "mtu": 1400}},
        {"add_port": {"name": "p", "memif": {"socket": socket, "secret": "geheim"}}},
        {"add_endpoint": {"name": "g", "network": "green", "mac": "02:00:00:00:00:09", "port": "p"}},
        {"add_endpoint": {"name": "h", "network": "blue", "mac": "02:00:00:00:00:09", "memif": {"socket": socket, "id": 4, "secret": "geheim"}}},
    ]));
    let mut names = |method: &str, given: Value| -> Vec<String> {
        let answer = rig.ask(method, given).unwrap();
        assert!(!answer.to_string().contains("geheim"), "{answer}");
        let list = answer.as_object().unwrap().values().find_map(Value::as_array).unwrap();
        assert_eq!(answer["total"], list.len());
        list.iter().map(|entry| entry["name"].as_str().unwrap().to_owned()).collect()
    };
    assert_eq!(names("network.list", json!(null)), ["blue", "green"]);
    assert_eq!(names("network.list", json!({"name": "green"})), ["green"]);
    assert_eq!(names("network.list", json!({"name": "nope"})), [""; 0]);

    assert_eq!(names("port.list", json!({})), ["h", "p", "web"]);
    assert_eq!(names("port.list", json!({"network": "green"})), ["p"]);
    assert_eq!(names("port.list", json!({"network": "blue", "name": "p"})), [""; 0]);
    assert_eq!(names("endpoint.list", json!({})), ["g", "h", "web"]);
    assert_eq!(names("endpoint.list", json!({"network": "blue"})), ["h", "web"]);
    assert_eq!(names("endpoint.list", json!({"network": "blue", "name": "g"})), [""; 0]);
    let green = &rig.ask("network.list", json!({"name": "green"})).unwrap()["networks"][0];
    assert_eq!(green, &json!({"name": "green", "vni": 8, "mtu": 1400, "origin": "api", "endpoints": 1}));
    let error = rig.ask("endpoint.list", json!({"nam": "x"})).unwrap_err();
    assert_eq!(error.code, code::INVALID_PARAMS);
    // What is on the socket of the config is known, too.
    let taken: SocketAddr = rig.path("config.sock").parse().unwrap();
    let error = rig.ask("change", json!({"changes": [add(0, &taken.to_string())]})).unwrap_err();
    assert!(error.message.ends_with("must be unique: that of endpoint web is the same"), "{}", error.message);
}

/// `UPDATE_EXPECTED=1` writes it anew; read the difference.
#[test]
fn the_schema_is_the_one_in_the_documentation() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/api.schema.json");
    let now = serde_json::to_string_pretty(&schema()).unwrap() + "\n";
    if std::env::var_os("UPDATE_EXPECTED").is_some() {
        std::fs::write(&path, &now).unwrap();
    }
    assert_eq!(std::fs::read_to_string(&path).unwrap(), now);
}

/// What the daemon takes is what the schema says: the checks name the keys that they know.
#[test]
fn the_schema_has_the_keys_that_are_checked() {
    let schema = schema();
    assert!(schema["$schema"].as_str().unwrap().contains("2020-12"));
    let plan = Rig::new().plan;
    let known = |kind: &str| -> BTreeSet<String> {
        let checker = peregrine_config::Checker::new(&plan);
        let given = json!({"zzzzzzzzzzzz": 1, "memif": {"zzzzzzzzzzzz": 1}});
        match kind {
            "Network" => drop(checker.network("x", given)),
            "Endpoint" => drop(checker.endpoint("x", given, &Nothing)),
            _ => drop(checker.port("x", given)),
        }
        let errors = checker.finish("").unwrap_err();
        let lines: Vec<String> = errors.list().iter().map(ToString::to_string).collect();
        let key = if kind == "Memif" { "x.memif.zzzzzzzzzzzz" } else { "x.zzzzzzzzzzzz" };
        let line = lines.iter().find(|line| line.starts_with(key)).unwrap();
        line.split_once("one of ").unwrap().1.split(", ").map(str::to_owned).collect()
    };
    for kind in ["Network", "Port", "Endpoint", "Memif"] {
        let said = schema["$defs"][kind]["properties"].as_object().unwrap();
        assert_eq!(said.keys().cloned().collect::<BTreeSet<_>>(), known(kind), "{kind}");
    }
}

struct Nothing;

impl peregrine_config::Networks for Nothing {
    fn find(&self, _: &str) -> Option<(peregrine_dataplane::types::NetworkId, u16)> {
        None
    }

    fn names(&self) -> Vec<String> {
        Vec::new()
    }
}
