//! Containers of a daemon as it is run: an interface in their namespace, declared in the config or at the control socket, with which they reach
//! each other and the kernel's VTEP on the other host; a daemon that ends and comes again; namespaces that go and come.
//! `here: ov0 10.9.0.1/24 ── ov1 10.9.0.2/24 :there`, with a vxlan device there that has 10.42.0.9/24 and fd42::9/64.

mod common;

use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use common::{Net, ip, text, until};
use peregrine_control::client::{CHANGE_TIMEOUT, Client};
use peregrine_control::preflight::allowed_cores;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_peregrine");

struct Host {
    net: Net,
    dir: tempfile::TempDir,
    /// Containers' namespaces.
    containers: Vec<String>,
}

struct Daemon(Child);

impl Host {
    fn new() -> Host {
        let net = Net::new();
        net.there("link add vx mtu 1450 type vxlan id 7 local 10.9.0.2 remote 10.9.0.1 dstport 4789");
        net.there("addr add 10.42.0.9/24 dev vx");
        net.there("addr add fd42::9/64 dev vx nodad");
        net.there("link set vx up");
        Host { net, dir: tempfile::tempdir().unwrap(), containers: Vec::new() }
    }

    /// A container's namespace, empty.
    fn container(&mut self, name: &str) -> String {
        let name = self.name(name);
        ip(&format!("netns add {name}"));
        ip(&format!("-n {name} link set lo up"));
        self.containers.push(name.clone());
        name
    }

    /// Of one that may be there or not.
    fn name(&self, name: &str) -> String {
        format!("{}-{name}", self.net.here)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn start(&self, endpoints: &str) -> Daemon {
        self.start_with("", endpoints)
    }

    fn pool(&self) -> Value {
        let status: Value = serde_json::from_slice(&self.ask("status --json").stdout).unwrap();
        status["pools"]["containers"].clone()
    }

    fn start_with(&self, pools: &str, endpoints: &str) -> Daemon {
        let core = allowed_cores().unwrap().last().unwrap().0;
        let config = format!(
            "control_socket = \"{}\"\nstate = \"{}\"\n{pools}[[workers]]\ncore = {core}\n[uplink]\ninterface = \"ov0\"\nmode = \"copy\"\n\
             local = \"10.9.0.1\"\nring_size = 512\n[[networks]]\nname = \"blue\"\nvni = 7\nmtu = 1450\nremotes = [\"10.9.0.2\"]\n\
             subnets = [\"10.42.0.0/24\", \"fd42::/64\"]\ngateways = [\"10.42.0.9\", \"fd42::9\"]\n{endpoints}",
            self.file("control.sock").display(),
            self.file("state.json").display(),
        );
        std::fs::write(self.file("peregrine.toml"), config).unwrap();
        // Not `ip netns exec`: names of namespaces that are made behind it are seen by nobody else.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", self.net.here)).arg(PROGRAM);
        command.args(["run", "-c"]).arg(self.file("peregrine.toml")).stdin(Stdio::null());
        let log = std::fs::File::options().create(true).append(true).open(self.file("log")).unwrap();
        let mut child = command.stderr(log).spawn().unwrap();
        until(20, "the daemon answers", || {
            assert!(
                child.try_wait().unwrap().is_none(),
                "{}",
                std::fs::read_to_string(self.file("log")).unwrap()
            );
            self.ask("status --json").status.success()
        });
        Daemon(child)
    }

    fn ask(&self, arguments: &str) -> Output {
        Command::new(PROGRAM)
            .args(arguments.split(' '))
            .arg("--socket")
            .arg(self.file("control.sock"))
            .output()
            .unwrap()
    }

    fn does(&self, arguments: &str) {
        let output = self.ask(arguments);
        assert!(output.status.success(), "{arguments}: {}", text(&output));
    }

    fn change(&self, steps: Value) {
        let mut client = Client::connect(&self.file("control.sock")).unwrap();
        client.call_within("change", &json!({ "changes": steps }), CHANGE_TIMEOUT).unwrap();
    }

    fn refuses(&self, arguments: &str) -> String {
        let output = self.ask(arguments);
        assert!(!output.status.success(), "{arguments}");
        text(&output)
    }

    fn endpoint(&self, name: &str) -> Value {
        let status: Value = serde_json::from_slice(&self.ask("status --json").stdout).unwrap();
        let endpoints = status["endpoints"].as_array().unwrap();
        endpoints.iter().find(|endpoint| endpoint["name"] == name).cloned().unwrap_or_default()
    }

    /// All of so many pings come back. After its last one `ping` waits as long as between two.
    fn pings(&self, namespace: &str, to: &str, count: u32) {
        let output = Command::new("ip")
            .args(["netns", "exec", namespace, "ping", "-c", &count.to_string(), "-i", "0.2", to])
            .output()
            .unwrap();
        let there =
            ip(&format!("-n {namespace} addr")) + &ip(&format!("-n {namespace} route show table all"));
        let state = there + &text(&self.ask("status")) + &text(&self.ask("stats"));
        assert!(
            text(&output).contains(" 0% packet loss"),
            "{to} from {namespace}: {}\n{state}",
            text(&output)
        );
    }

    fn devices(&self) -> usize {
        self.net.here("-br link").lines().filter(|line| line.starts_with("pg")).count()
    }
}

impl Daemon {
    fn end(mut self, signal: Signal) {
        kill_process(Pid::from_child(&self.0), signal).unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.0.kill();
        let _ended = self.0.wait();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        for name in &self.containers {
            let _gone = Command::new("ip").args(["netns", "del", name]).output();
        }
    }
}

fn of_config(name: &str, namespace: &str, last: u8) -> String {
    format!(
        "[[endpoints]]\nname = \"{name}\"\nnetwork = \"blue\"\nmac = \"02:00:00:00:07:{last:02x}\"\n\
         addresses = [\"10.42.0.{last}\", \"fd42::{last:x}\"]\nveth = {{ namespace = \"{namespace}\" }}\n"
    )
}

fn add(name: &str, namespace: &str, last: u8) -> String {
    format!(
        "endpoint add {name} --network blue --mac 02:00:00:00:07:{last:02x} --address 10.42.0.{last} --address fd42::{last:x} --namespace {namespace}"
    )
}

#[test]
#[ignore = "needs root: make test runs it"]
fn containers_reach_each_other_and_the_other_host() {
    let mut host = Host::new();
    let (one, two) = (host.container("one"), host.container("two"));
    let daemon = host.start(&of_config("one", &one, 1));
    until(10, "the config's container has its interface", || host.endpoint("one")["connected"] == true);
    host.pings(&one, "10.42.0.9", 10);
    host.pings(&one, "fd42::9", 10);
    // One that comes while it runs is there when the call is back.
    host.does(&add("two", &two, 2));
    host.pings(&two, "10.42.0.1", 1);
    host.pings(&two, "fd42::1", 1);
    host.pings(&two, "10.42.0.9", 10);
    assert!(ip(&format!("-n {two} route")).contains("default via 10.42.0.9 dev eth0"));
    let eth0 = ip(&format!("-n {two} addr show eth0"));
    assert!(
        eth0.contains("10.42.0.2/24") && eth0.contains("fd42::2/64") && eth0.contains("mtu 1450"),
        "{eth0}"
    );
    assert_eq!(host.devices(), 2);
    let status = host.endpoint("two");
    assert_eq!((&status["kind"], &status["state"]), (&"veth".into(), &"connected".into()), "{status}");
    host.does("endpoint del two");
    until(10, "its interface is gone", || {
        !ip(&format!("-n {two} -br link")).contains("eth0") && host.devices() == 1
    });
    // The same again at once, with other addresses.
    host.does(&add("two", &two, 3));
    host.pings(&two, "10.42.0.1", 3);
    daemon.end(Signal::TERM);
    let log = std::fs::read_to_string(host.file("log")).unwrap();
    assert!(log.contains("stopped; "), "{log}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_container_keeps_its_interface_over_a_restart() {
    let mut host = Host::new();
    let (one, two) = (host.container("one"), host.container("two"));
    let mut daemon = host.start(&of_config("one", &one, 1));
    host.does(&add("two", &two, 2));
    host.pings(&two, "10.42.0.1", 3);
    let number = |namespace: &str| {
        ip(&format!("-n {namespace} -o link show eth0")).split(':').next().unwrap().to_owned()
    };
    let before = (number(&one), number(&two));
    for (signal, config) in [(Signal::TERM, true), (Signal::KILL, true), (Signal::KILL, false)] {
        daemon.end(signal);
        daemon = host.start(&if config { of_config("one", &one, 1) } else { String::new() });
        until(10, "the container is served again", || host.endpoint("two")["connected"] == true);
        host.pings(&two, "10.42.0.9", 5);
        assert_eq!(number(&two), before.1, "it is the same interface");
        if config {
            host.pings(&one, "10.42.0.2", 5);
            assert_eq!(number(&one), before.0);
        } else {
            // The config does not have it any more.
            until(10, "what nobody wants is removed", || host.devices() == 1);
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn namespaces_are_made_with_what_is_in_them_and_go_with_it() {
    let host = Host::new();
    let [config, one, two] = ["config", "one", "two"].map(|name| host.name(name));
    let there = |name: &str| std::path::Path::new("/run/netns").join(name).exists();
    let pooled = |endpoints: String| format!("[pools]\ncontainers = 4\n{endpoints}");
    let of_config = of_config("config", &config, 1).replace("veth = {", "veth = { create_namespace = true,");
    let mut daemon = host.start_with(&pooled(String::new()), &of_config);
    until(10, "the pool is full", || host.pool()["ready"] == 4);
    host.pings(&config, "10.42.0.9", 5);
    host.does(&add("one", &format!("{one} --create-namespace"), 2));
    host.pings(&one, "10.42.0.1", 1);
    host.does(&add("two", &format!("{two} --create-namespace --interface net7"), 3));
    host.pings(&two, "fd42::2", 1);
    assert_eq!(
        (host.pool()["hits"].as_u64(), host.pool()["size"].as_u64()),
        (Some(2), Some(4)),
        "{}",
        host.pool()
    );
    assert!(host.refuses(&add("other", &format!("{two} --create-namespace"), 4)).lines().count() == 1);
    for signal in [Signal::TERM, Signal::KILL] {
        let number = ip(&format!("-n {one} -o link show eth0")).split(':').next().unwrap().to_owned();
        daemon.end(signal);
        daemon = host.start_with(&pooled(String::new()), &of_config);
        host.pings(&one, "10.42.0.1", 5);
        host.pings(&two, "10.42.0.9", 5);
        assert_eq!(ip(&format!("-n {one} -o link show eth0")).split(':').next().unwrap(), number);
    }
    host.does("endpoint del two");
    until(10, "its namespace is gone", || !there(&two));
    // The config does not have its own any more, and the pool is smaller.
    daemon.end(Signal::KILL);
    let daemon = host.start_with("", "");
    until(10, "what nobody wants is gone", || !there(&config) && there(&one));
    host.pings(&one, "10.42.0.9", 5);
    host.does("endpoint del one");
    until(10, "nothing is left", || !there(&one) && !host.net.here("-br link").contains("pp"));
    daemon.end(Signal::TERM);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_namespace_that_goes_is_noticed_and_one_that_comes_is_found() {
    let mut host = Host::new();
    let late = host.name("late");
    let _daemon = host.start(&of_config("late", &late, 1));
    let waits = |host: &Host| {
        let endpoint = host.endpoint("late");
        endpoint["state"] == "waiting"
            && endpoint["last_failure"]
                .as_str()
                .is_some_and(|why| why.contains("there is no network namespace"))
    };
    until(10, "it waits for its namespace, and says so", || waits(&host));
    host.container("late");
    until(10, "it is found", || host.endpoint("late")["connected"] == true);
    host.pings(&late, "10.42.0.9", 5);
    ip(&format!("netns del {late}"));
    // Nothing is sent to it: the kernel tells.
    until(10, "it is gone, and that is known", || waits(&host) && host.devices() == 0);
    host.container("late");
    until(10, "it is there again", || host.endpoint("late")["connected"] == true);
    host.pings(&late, "fd42::9", 5);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_container_that_changes_is_reached_when_the_call_is_back() {
    let mut host = Host::new();
    let (one, made) = (host.container("one"), host.name("made"));
    let mut daemon = host.start("");
    host.does(&add("one", &one, 1));
    host.does(&add("made", &format!("{made} --create-namespace"), 2));
    let set = |name: &str, mac: u8, last: u8, veth: Value| {
        json!({"set_endpoint": {"name": name, "network": "blue", "mac": format!("02:00:00:00:07:{mac:02x}"),
            "addresses": [format!("10.42.0.{last}")], "veth": veth}})
    };
    let given = json!({"namespace": one});
    let created = json!({"namespace": made, "create_namespace": true});
    // Another address: the same interface, and its default route.
    host.change(json!([set("one", 1, 11, given.clone()), set("made", 2, 12, created.clone())]));
    for namespace in [&one, &made] {
        host.pings(namespace, "10.42.0.9", 2);
        assert!(ip(&format!("-n {namespace} route")).contains("default via 10.42.0.9 dev eth0"));
    }
    // The next daemon takes both up as they are now.
    let number = |namespace: &str| {
        ip(&format!("-n {namespace} -o link show eth0")).split(':').next().unwrap().to_owned()
    };
    let inode = || std::fs::metadata(std::path::Path::new("/run/netns").join(&made)).unwrap().ino();
    let before = (number(&one), number(&made), inode());
    daemon.end(Signal::KILL);
    daemon = host.start("");
    host.pings(&one, "10.42.0.12", 5);
    assert_eq!((number(&one), number(&made), inode()), before);
    // Another Ethernet address, and what belongs to nobody any more is gone.
    host.change(json!([set("one", 3, 11, given), set("made", 4, 12, created)]));
    host.pings(&one, "10.42.0.12", 2);
    host.pings(&made, "10.42.0.9", 2);
    until(10, "only theirs are left", || {
        host.net
            .here("-br link")
            .lines()
            .filter(|line| line.starts_with("pg") || line.starts_with("pp"))
            .count()
            == 2
    });
    host.pings(&made, "10.42.0.11", 2);
    host.does("endpoint del one made");
    until(10, "all is gone", || {
        !std::path::Path::new("/run/netns").join(&made).exists() && host.devices() == 0
    });
    daemon.end(Signal::TERM);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn functions_share_an_interface() {
    let mut host = Host::new();
    let one = host.container("one");
    let daemon = host.start("");
    host.does(&format!("port add p --namespace {one}"));
    let add = |name: &str, last: u8| {
        format!(
            "endpoint add {name} --network blue --mac 02:00:00:00:07:05 --address 10.42.0.{last} --address fd42::{last:x} --port p"
        )
    };
    host.does(&add("f1", 5));
    let number = ip(&format!("-n {one} -o link show eth0"));
    host.does(&add("f2", 6));
    host.pings(&host.net.there, "10.42.0.5", 3);
    host.pings(&host.net.there, "10.42.0.6", 3);
    host.pings(&host.net.there, "fd42::6", 3);
    // The first one goes, and with it its address, and nothing else.
    host.does("endpoint del f1");
    let addresses = ip(&format!("-n {one} addr show eth0"));
    assert!(addresses.contains("10.42.0.6/24") && !addresses.contains("10.42.0.5"), "{addresses}");
    assert_eq!(ip(&format!("-n {one} -o link show eth0")), number, "the same interface");
    host.pings(&host.net.there, "10.42.0.6", 3);
    host.does(&add("f3", 7));
    host.pings(&host.net.there, "10.42.0.7", 3);
    let refused = host.refuses("endpoint add f4 --network blue --mac 02:00:00:00:07:05 --address 10.42.0.8 --port p --no-anti-spoofing");
    assert!(refused.contains("endpoints on one port have the same"), "{refused}");
    // And so it is after a restart.
    daemon.end(Signal::KILL);
    let _daemon = host.start("");
    host.pings(&host.net.there, "10.42.0.6", 3);
    host.pings(&host.net.there, "fd42::7", 3);
    assert_eq!(ip(&format!("-n {one} -o link show eth0")), number, "the same interface");
    host.does("endpoint del f2 f3");
    until(10, "the interface is gone", || host.devices() == 0);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_port_is_made_beforehand_and_mistakes_change_nothing() {
    let mut host = Host::new();
    let one = host.container("one");
    let _daemon = host.start("");
    host.does(&format!("port add p --namespace {one} --interface net1"));
    assert!(text(&host.ask("port list")).contains("unbound"));
    host.does("endpoint add web --network blue --mac 02:00:00:00:07:05 --address 10.42.0.5 --port p");
    host.pings(&one, "10.42.0.9", 3);
    for (arguments, why) in [
        (add("other", &host.name("nowhere"), 6), "there is no network namespace"),
        (add("other", &format!("{one} --interface net1"), 6), "must be unique: that of port p"),
        (add("other", "pid:2147480000", 6), "there is no network namespace of process 2147480000"),
        (add("other", &one, 6).replace("--namespace", "--interface lo --namespace"), "already"),
        (format!("port add q --namespace {one} --interface net1"), "must be unique: that of port p"),
    ] {
        let refused = host.refuses(&arguments);
        assert!(refused.contains(why) && refused.lines().count() == 1, "{arguments}: {refused}");
        assert_eq!(host.devices(), 1);
    }
    host.does("endpoint del web");
    until(10, "the interface is gone", || host.devices() == 0);
    host.does("endpoint add web --network blue --mac 02:00:00:00:07:06 --address 10.42.0.6 --port p");
    host.pings(&one, "10.42.0.9", 3);
    host.does("endpoint del web");
    host.does("port del p");
    until(10, "all is gone", || host.devices() == 0);
}
