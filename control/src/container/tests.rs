//! Real devices in real namespaces, which have no name and end with the test: `unshare` keeps one for as long as a process of it lives.

use std::net::IpAddr;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::*;
use crate::underlay::netlink::Requests;

/// A process in a namespace of its own.
struct Container(Child);

impl Container {
    fn new() -> Container {
        let mut child = Command::new("unshare")
            .args(["--net", "sh", "-c", "echo ready; exec sleep 600"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.as_mut().unwrap()), &mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        Container(child)
    }

    fn which(&self) -> NamespaceRef {
        NamespaceRef::Pid(self.0.id())
    }

    fn open(&self) -> Namespace {
        Namespace::open(&self.which()).unwrap()
    }

    fn run(&self, command: &str) -> String {
        run(&format!("nsenter -t {} -n {command}", self.0.id()))
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

pub(super) fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// This thread, in a namespace of its own from now on, and its questions to the kernel.
pub(super) fn ours() -> Requests {
    let host = Container::new(); // the thread keeps its namespace
    let file = std::fs::File::open(format!("/proc/{}/ns/net", host.0.id())).unwrap();
    move_into_link_name_space(std::os::fd::AsFd::as_fd(&file), Some(LinkNameSpaceType::Network)).unwrap();
    Requests::open().unwrap()
}

fn plan(port: &str) -> VethPlan {
    VethPlan { port: port.into(), interface: "eth0".into(), link: link() }
}

fn link() -> Link {
    Link {
        mac: "02:00:00:00:42:07".parse().unwrap(),
        mtu: 1450,
        addresses: vec![([10, 42, 0, 7].into(), 24), ("fd42::7".parse().unwrap(), 64)],
        gateways: vec![[10, 42, 0, 1].into(), "fe80::1".parse().unwrap()],
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_container_has_its_address_routes_and_mtu_and_no_offloads() {
    let mut requests = ours();
    let container = Container::new();
    let pair = make(&mut requests, &plan("pg7"), &container.open()).unwrap();
    assert!(pair.is_there(&mut requests).unwrap());
    let near = run("ip -d link show pg7");
    assert!(
        near.contains("mtu 1450") && near.contains("numtxqueues 1") && near.contains("LOWER_UP"),
        "{near}"
    );
    let far = container.run("ip -d link show eth0");
    for part in ["02:00:00:00:42:07", "mtu 1450", "state UP", "numrxqueues 1"] {
        assert!(far.contains(part), "{far}");
    }
    let addresses = container.run("ip address show eth0");
    assert!(addresses.contains("inet 10.42.0.7/24") && addresses.contains("inet6 fd42::7/64"), "{addresses}");
    assert!(!addresses.contains("tentative") || addresses.contains("fe80::"), "{addresses}");
    assert!(container.run("ip route").contains("default via 10.42.0.1 dev eth0"));
    assert!(container.run("ip -6 route").contains("default via fe80::1 dev eth0"));
    let features = container.run("ethtool -k eth0");
    for feature in
        ["tx-checksumming", "tx-vlan-offload", "generic-segmentation-offload", "tcp-segmentation-offload"]
    {
        assert!(features.contains(&format!("\n{feature}: off")), "{feature}: {features}");
    }
    for feature in ["tx-checksum-sctp", "tx-vlan-stag-hw-insert"] {
        assert!(
            features.contains(&format!("\t{feature}: off"))
                || features.contains(&format!("\n{feature}: off")),
            "{feature}: {features}"
        );
    }
    pair.remove(&mut requests).unwrap();
    assert!(!pair.is_there(&mut requests).unwrap());
    assert!(!container.run("ip link").contains("eth0"));
    pair.remove(&mut requests).unwrap(); // nothing to do
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_namespace_is_found_by_its_name_and_path_too_and_what_is_none_is_refused() {
    let mut requests = ours();
    let container = Container::new();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ns");
    let proc = format!("/proc/{}/ns/net", container.0.id());
    std::os::unix::fs::symlink(&proc, &path).unwrap();
    let namespace = Namespace::open(&NamespaceRef::Path(path)).unwrap();
    make(&mut requests, &plan("pg7"), &namespace).unwrap();
    assert!(container.run("ip link").contains("eth0"));

    let name = format!("peregrine-container-{}", std::process::id());
    run(&format!("ip netns attach {name} {}", container.0.id()));
    let named = Namespace::open(&NamespaceRef::Name(name.clone()));
    run(&format!("ip netns del {name}"));
    let error = make(&mut requests, &plan("pg8"), &named.unwrap()).unwrap_err().to_string();
    let text =
        format!("there is an interface 'eth0' in network namespace '{name}' already: choose another name");
    assert!(error.starts_with(&text), "{error}");
    assert!(!run("ip link").contains("pg8"), "nothing is left of it");

    let refused = |which| Namespace::open(&which).map(drop).unwrap_err().to_string();
    let error = refused(NamespaceRef::Name(name.clone()));
    assert!(error.starts_with(&format!("there is no network namespace '{name}' (No such file")), "{error}");
    assert!(error.ends_with("`ip netns list` lists those that there are"), "{error}");
    for name in ["", "..", "../../proc/self/ns/net", "a\0b"] {
        assert!(refused(NamespaceRef::Name(name.into())).contains("there is no network namespace"));
    }
    assert!(refused(NamespaceRef::Pid(0x7fff_fff0)).contains("of process 2147483632 (No such file"));
    let fifo = directory.path().join("fifo");
    run(&format!("mkfifo {}", fifo.display()));
    let error = refused(NamespaceRef::Path(fifo)); // does not wait for whoever writes
    assert!(error.contains("is no network namespace: give the path"), "{error}");
    let other_kind = Namespace::open(&NamespaceRef::Path("/proc/self/ns/mnt".into())).unwrap();
    let error = make(&mut requests, &plan("pg8"), &other_kind).unwrap_err().to_string();
    assert!(error.contains("/proc/self/ns/mnt"), "{error}");
    assert!(!run("ip link").contains("pg8"), "nothing is left of it");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_cannot_be_made_is_named_and_leaves_nothing_behind() {
    let mut requests = ours();
    let container = Container::new();
    let namespace = container.open();
    let mut refused = |plan: VethPlan| {
        let error = make(&mut requests, &plan, &namespace).unwrap_err().to_string();
        assert!(!container.run("ip link").contains("eth0"), "{error}");
        assert_eq!(error.lines().count(), 1, "{error}");
        error
    };
    for name in ["", "sixteen_letters_", "a/b", "p%d", "a b", "..", "a\nb"] {
        let error = refused(VethPlan { port: name.into(), ..plan("pg7") });
        assert!(error.starts_with("no interface can be called"), "{error}");
    }
    run("ip link add pg7 type veth peer name other");
    let error = refused(plan("pg7"));
    assert!(error.starts_with("there is an interface 'pg7' already"), "{error}");
    let error = refused(VethPlan {
        link: Link { addresses: vec![([10, 0, 0, 1].into(), 99)], ..link() },
        ..plan("pg8")
    });
    assert!(error.starts_with("giving 10.0.0.1/99 to eth0 in network namespace of process"), "{error}");
    container.run("sysctl -qw net.ipv6.conf.default.disable_ipv6=1");
    let error = refused(plan("pg8"));
    assert!(error.contains("has IPv6 switched off"), "{error}");
    container.run("ip link add other type veth peer name another");
    container.run("ip link set other up");
    container.run("ip route add default dev other");
    let v4 = vec![(IpAddr::from([10, 42, 0, 7]), 24)];
    let error = refused(VethPlan { link: Link { addresses: v4.clone(), ..link() }, ..plan("pg8") });
    assert!(error.contains("has a default route, so none to 10.42.0.1 was made"), "{error}");
    assert!(!run("ip link").contains("pg8"));
    let without_route = VethPlan { link: Link { addresses: v4, gateways: vec![], ..link() }, ..plan("pg8") };
    make(&mut requests, &without_route, &namespace).unwrap();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn our_end_goes_with_the_namespace() {
    let mut requests = ours();
    let container = Container::new();
    let pair = make(&mut requests, &plan("pg7"), &container.open()).unwrap();
    drop(container);
    let deadline = Instant::now() + Duration::from_secs(20);
    while pair.is_there(&mut requests).unwrap() {
        assert!(Instant::now() < deadline, "it is still there");
        std::thread::yield_now();
    }
    pair.remove(&mut requests).unwrap();
}

pub(super) const PLAN: &str = r#"
control_socket = "/run/unused.sock"
[uplink]
interface = "unused"
local = "192.0.2.1"
[[workers]]
core = CORE
[[networks]]
name = "blue"
vni = 42
[[endpoints]]
name = "one"
network = "blue"
mac = "02:00:00:00:42:01"
memif = { socket = "/run/unused-too.sock", id = 0 }
[[endpoints]]
name = "two"
network = "blue"
mac = "02:00:00:00:42:02"
memif = { socket = "/run/unused-too.sock", id = 1 }
"#;

#[test]
#[ignore = "needs root: make test runs it"]
fn containers_reach_each_other_through_an_engine() {
    use peregrine_dataplane::engine::{Engine, TenantRings};
    use peregrine_dataplane::types::EndpointId;
    use peregrine_dataplane::xsk::{PortConfig, Ports};

    let mut requests = ours();
    let core = rustix::thread::sched_getcpu();
    let plan_of_engine = peregrine_config::parse(&PLAN.replace("CORE", &core.to_string()), "t").unwrap();
    let mut engine = Engine::replay(&plan_of_engine, vec![]).unwrap();
    let mut ports = Ports::load().unwrap();
    let containers = [1, 2].map(|number| {
        let container = Container::new();
        let link = Link {
            mac: format!("02:00:00:00:42:0{number}").parse().unwrap(),
            addresses: vec![
                ([10, 42, 0, number].into(), 24),
                (format!("fd42::{number}").parse().unwrap(), 64),
            ],
            gateways: vec![],
            ..link()
        };
        let plan = VethPlan { link, ..plan(&format!("pg{number}")) };
        let pair = make(&mut requests, &plan, &container.open()).unwrap();
        let port = ports.open(&pair.port, &PortConfig::default()).unwrap();
        engine.attach(EndpointId((number - 1).into()), TenantRings::port(port)).unwrap();
        (container, pair)
    });
    for address in ["10.42.0.2", "fd42::2"] {
        containers[0].0.run(&format!("ping -q -c 3 -i 0.05 -W 10 {address}"));
    }
    assert_eq!(engine.poll(), []);
    for (_, pair) in &containers {
        pair.remove(&mut requests).unwrap();
    }
    assert!(engine.stop().totals.conserved);
}
