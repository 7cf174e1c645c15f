//! The files that come with the crate: every example loads, and every file in `tests/bad` is refused with exactly
//! what stands in the `.txt` beside it. `UPDATE_EXPECTED=1` writes those anew; read the difference.

use std::collections::BTreeSet;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use peregrine_config::{load, parse, warnings};
use peregrine_dataplane::engine::EarlyPlan;
use peregrine_dataplane::plan::{
    EndpointPlan, MemifRole, NamespaceRef, NetworkPlan, Plan, Queues, StaticMac, UplinkPlan, VethPlan,
    WorkOrder, XdpMode,
};
use peregrine_dataplane::types::{Class, CoreId, MacAddr, NetworkId};
use peregrine_memif::SocketAddr;

fn here(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

fn example(name: &str) -> Plan {
    load(&here("examples").join(name)).unwrap_or_else(|errors| panic!("{errors}"))
}

fn files(folder: &str, extension: &str) -> Vec<PathBuf> {
    let all = fs::read_dir(here(folder)).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<PathBuf> =
        all.filter(|path| path.extension().is_some_and(|e| e == extension)).collect();
    files.sort();
    files
}

#[test]
fn every_example_loads_without_a_warning() {
    let examples = files("examples", "toml");
    assert!(examples.len() >= 3, "{examples:?}");
    for path in examples {
        let plan = load(&path).unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(warnings(&plan), [], "{}", path.display());
    }
}

#[test]
fn priorities_are_what_they_say() {
    let plan = example("priorities.toml");
    let names: Vec<&str> = plan.classes.list.iter().map(|class| class.name.as_str()).collect();
    assert_eq!((&names[..], plan.classes.default), (&["voice", "database", "rest"][..], Class(2)));
    let orders = plan.classes.list.iter().map(|class| (class.order, class.share, class.dscp));
    let want = [(WorkOrder::Sync, 0, 46), (WorkOrder::Batch, 30, 26), (WorkOrder::Sync, 10, 0)];
    assert_eq!(orders.collect::<Vec<_>>(), want);
    let early = EarlyPlan::of(&plan);
    assert_eq!(early.left_out, [0; 0]);
    let own = &early.rules.networks.values().next().unwrap().own;
    assert_eq!((own.dscps, own.ports.len()), (1 << 46, 2 * 128));
}

#[test]
fn one_tenant_is_what_it_says_and_the_rest_is_default() {
    let plan = example("one_tenant.toml");
    assert_eq!(plan.control_socket, Path::new(peregrine_config::CONTROL_SOCKET));
    assert_eq!(plan.workers.iter().map(|w| w.core).collect::<Vec<_>>(), [CoreId(1)]);
    let uplink = &plan.uplinks[0];
    assert_eq!((uplink.interface.as_str(), uplink.local()), ("eth0", IpAddr::from([192, 0, 2, 1])));
    assert_eq!((&uplink.queues, uplink.mode), (&Queues::All, XdpMode::PreferZeroCopy));
    assert_eq!((uplink.port, uplink.ttl, uplink.source_ports.clone()), (4789, 64, 49152..=65535));
    assert_eq!((uplink.chunk_size, uplink.ring_size), (2048, 2048));
    let network = &plan.networks[0];
    assert_eq!((network.name.as_str(), network.vni.get(), network.mtu), ("blue", 42, 1450));
    assert_eq!(network.remotes, [IpAddr::from([192, 0, 2, 2])]);
    assert!(network.learning && network.static_macs.is_empty());
    assert_eq!((network.ageing, network.fdb_limit), (Duration::from_secs(300), 4096));
    let endpoint = &plan.endpoints[0];
    assert_eq!((endpoint.name.as_str(), endpoint.network), ("web", NetworkId(0)));
    assert_eq!(endpoint.mac, MacAddr([2, 0, 0, 0, 0, 1]));
    assert_eq!(endpoint.addresses, [IpAddr::from([10, 42, 0, 1])]);
    assert!(endpoint.anti_spoofing);
    // What the plan's constructors take for the defaults is the same.
    let built = UplinkPlan::new("eth0", uplink.local());
    assert_eq!(format!("{uplink:?}"), format!("{built:?}"));
    let built =
        NetworkPlan { remotes: network.remotes.clone(), ..NetworkPlan::new(&network.name, network.vni) };
    assert_eq!(format!("{network:?}"), format!("{built:?}"));
    let built = EndpointPlan::new(&endpoint.name, endpoint.network, endpoint.mac, endpoint.port.clone());
    let built = EndpointPlan { addresses: endpoint.addresses.clone(), ..built };
    assert_eq!(format!("{endpoint:?}"), format!("{built:?}"));
    let memif = &endpoint.port.memif().unwrap();
    assert_eq!(memif.socket, SocketAddr::Path("/run/peregrine/memif.sock".into()));
    assert_eq!((memif.id, memif.secret.len(), memif.queue_pairs, memif.chains), (0, 0, 1, false));
    let role = MemifRole::Server {
        mode: Some(0o660),
        owner: None,
        group: None,
        allow_unsealed: false,
        memory_bytes_max: 128 << 20,
    };
    assert_eq!(memif.role, role);
}

#[test]
fn two_tenants_share_a_socket() {
    let plan = example("two_tenants.toml");
    let (web, database) = (&plan.endpoints[0], &plan.endpoints[1]);
    assert_eq!(plan.endpoints.len(), 2);
    assert_eq!((web.network, database.network), (NetworkId(0), NetworkId(0)));
    assert_eq!(web.port.memif().unwrap().socket, database.port.memif().unwrap().socket);
    assert_eq!((web.port.memif().unwrap().id, database.port.memif().unwrap().id), (0, 1));
}

#[test]
fn full_says_the_defaults_and_holds_every_key() {
    let text = fs::read_to_string(here("examples/full.toml")).unwrap();
    let plan = parse(&text, "full.toml").unwrap();
    assert_eq!(
        plan.networks[0].static_macs,
        [StaticMac {
            mac: MacAddr([2, 0, 0, 0, 0, 0x99]),
            remote: [192, 0, 2, 2].into(),
            addresses: vec![[10, 42, 0, 99].into()]
        }]
    );
    assert_eq!(plan.workers[0].nice, Some(0));
    assert_eq!(plan.endpoints[0].port.memif().unwrap().secret, b"change me");

    // Apart from what only `full` sets, it is `one_tenant`: so what it calls a default is one.
    let mut plan = plan;
    let client = plan.endpoints[1].port.memif().unwrap().clone();
    let shell = NamespaceRef::Name("shell".into());
    assert_eq!(plan.endpoints[2].port, VethPlan::new(shell).into());
    assert_eq!(plan.endpoints[3].port, VethPlan::new(NamespaceRef::Pid(4242)).into());
    assert_eq!(plan.networks[0].subnets.pop(), Some("10.42.0.0/16".parse().unwrap()));
    plan.endpoints = plan.endpoints.values().take(1).cloned().collect();
    assert_eq!(client.socket, SocketAddr::Path("/run/tenants/database.sock".into()));
    assert_eq!((client.id, client.queue_pairs, client.chains), (0, 1, false));
    assert_eq!(client.role, MemifRole::Client { ring_log2: 10, buffer_bytes: 2048, tenant_uid: Some(1000) });
    // So are the client's, when `full` no longer says them.
    let beginning = text.split_once("\nring_size = 1024").unwrap().0;
    let mut by_default = parse(beginning, "full.toml").unwrap().endpoints[1].port.memif().unwrap().clone();
    let MemifRole::Client { tenant_uid, .. } = &mut by_default.role else { panic!() };
    assert_eq!(tenant_uid.replace(1000), None);
    assert_eq!(by_default, client);
    let MemifRole::Server { owner, group, .. } = &mut plan.endpoints[0].port.memif_mut().unwrap().role else {
        panic!()
    };
    assert_eq!((owner.take(), group.take()), (Some(0), Some(0)));
    plan.workers[0].nice = None;
    assert_eq!((plan.classes.rules.len(), plan.classes.trusted.len()), (4, 1));
    plan.classes.rules.clear();
    plan.classes.trusted.clear();
    plan.networks[0].static_macs.clear();
    plan.endpoints[0].port.memif_mut().unwrap().secret.clear();
    assert_eq!(plan.uplinks[0].vlan.take(), Some(100));
    assert_eq!(plan.uplinks[0].locals.pop(), Some("2001:db8::1".parse().unwrap()));
    let network = &mut plan.networks[0];
    assert_eq!((network.port.take(), network.local.take()), (Some(4789), Some([192, 0, 2, 1].into())));
    assert_eq!(network.gateways.pop(), Some([10, 42, 0, 254].into()));
    assert_eq!(plan.endpoints[0].storm_limit.take(), Some(1000));
    assert_eq!(plan.control_group.take(), Some(0));
    assert_eq!(plan.state.take(), Some("/var/lib/peregrine/state.json".into()));
    assert_eq!(format!("{plan:?}"), format!("{:?}", example("one_tenant.toml")));
}

#[test]
fn the_table_in_the_crate_documentation_has_the_keys_of_the_full_example() {
    let doc = fs::read_to_string(here("src/lib.rs")).unwrap();
    let rows = doc.lines().filter_map(|line| line.strip_prefix("//! | `")?.split('`').next());
    let documented: BTreeSet<&str> = rows.collect();
    let full = fs::read_to_string(here("examples/full.toml")).unwrap();
    let keys = full.lines().filter(|line| !line.starts_with([' ', '#', '[', ']']));
    let used: BTreeSet<&str> = keys.filter_map(|line| Some(line.split_once(" = ")?.0)).collect();
    assert_eq!(documented, used);
}

#[test]
fn every_bad_file_is_refused_with_what_stands_beside_it() {
    let bad = files("tests/bad", "toml");
    assert!(bad.len() >= 20, "only {} files", bad.len());
    for path in &bad {
        let name = path.file_name().unwrap().to_str().unwrap();
        // Read as bytes and parsed under the bare name, so that the messages do not depend on where we are.
        let text = fs::read_to_string(path).unwrap();
        let got = match parse(&text, name) {
            Ok(plan) => panic!("{name} is accepted: {plan:?}"),
            Err(errors) => format!("{errors}\n"),
        };
        let beside = path.with_extension("txt");
        if std::env::var_os("UPDATE_EXPECTED").is_some() {
            fs::write(&beside, &got).unwrap();
        }
        let want = fs::read_to_string(&beside).unwrap_or_else(|e| panic!("{}: {e}", beside.display()));
        assert_eq!(got, want, "{name}");
    }
    let with = |extension: &str| -> BTreeSet<PathBuf> {
        files("tests/bad", extension).iter().map(|path| path.with_extension("")).collect()
    };
    assert_eq!(with("toml"), with("txt"), "each .toml has its .txt and the other way round");
}

#[test]
fn files_that_cannot_be_read_are_one_line() {
    for (path, want) in [
        (here("no/such/file.toml"), "cannot be read: No such file or directory (os error 2)"),
        (here("src"), "cannot be read: Is a directory (os error 21)"),
        (PathBuf::from("/dev/zero"), "too long: must be at most 33554432 bytes"),
    ] {
        let errors = load(&path).unwrap_err();
        assert_eq!(errors.to_string(), format!("{}: {want}", path.display()));
        assert_eq!((errors.list().len(), errors.list()[0].key()), (1, None));
    }
}

#[test]
fn a_file_that_is_not_text_is_told_with_its_place() {
    let path = std::env::temp_dir().join(format!("peregrine-config-{}.toml", std::process::id()));
    fs::write(&path, b"control_socket = \"/run/x\"\n# \xc3\xa4 \xff\n").unwrap();
    let errors = load(&path).unwrap_err();
    fs::remove_file(&path).unwrap();
    assert_eq!(errors.to_string(), format!("{}:2:5: not text: must be UTF-8", path.display()));
    assert_eq!(errors.list()[0].position(), Some((2, 5)));
}
