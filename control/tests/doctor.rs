//! `peregrine doctor` on a real wire: each thing is made wrong, found, and put right by the very command that is printed. What no namespace can
//! be brought into is tested with made facts (src/doctor/tests.rs).

mod common;

use std::path::PathBuf;
use std::process::{Command, Output};
use std::time::Duration;

use common::{Net, until};
use peregrine_control::lab::Process;
use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::QueueId;
use peregrine_dataplane::xsk::{self, XskConfig, inspect};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

const BIN: &str = env!("CARGO_BIN_EXE_peregrine");

/// `here: ov0 10.9.0.1/24 ── ov1 10.9.0.2/24 :there`, and a config for it.
struct Bench {
    net: Net,
    folder: TempDir,
}

impl Bench {
    fn new() -> Bench {
        Bench { net: Net::new(), folder: tempfile::tempdir().unwrap() }
    }

    /// With these lines in `[uplink]`, and this network's MTU.
    fn config(&self, uplink: &str, mtu: u32) -> PathBuf {
        let (path, folder) = (self.folder.path().join("peregrine.toml"), self.folder.path().display());
        let text = format!(
            "control_socket = \"{folder}/control.sock\"\n[[workers]]\ncore = 0\n[uplink]\ninterface = \"ov0\"\nlocal = \"10.9.0.1\"\n\
             mode = \"copy\"\n{uplink}\n[[networks]]\nname = \"blue\"\nvni = 42\nmtu = {mtu}\nremotes = [\"10.9.0.2\"]\n"
        );
        std::fs::write(&path, text).unwrap();
        path
    }

    fn command(&self, arguments: &[&str], uplink: &str, mtu: u32) -> Command {
        let mut command = self.net.command(BIN);
        command.args(["doctor", "-c"]).arg(self.config(uplink, mtu)).args(arguments);
        command
    }

    fn report(&self, uplink: &str, mtu: u32) -> Report {
        Report::of(&self.command(&["--json"], uplink, mtu).output().unwrap())
    }

    /// What is printed by a shell in our namespace, which must end well.
    #[track_caller]
    fn shell(&self, script: &str) -> Output {
        let output = self.net.command("sh").args(["-c", script]).output().unwrap();
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    /// The check ends so, prints a command, and is ok after that.
    #[track_caller]
    fn is_mended(&self, check: &str, verdict: &str, uplink: &str, mtu: u32) -> String {
        let before = self.report(uplink, mtu);
        let finding = before.finding(check);
        assert_eq!(finding["verdict"], verdict, "{finding}");
        let command =
            finding["command"].as_str().unwrap_or_else(|| panic!("no command: {finding}")).to_owned();
        println!("{check}: {}: {}: {command}", finding["what"], finding["why"]);
        self.shell(&command);
        let after = self.report(uplink, mtu);
        assert_eq!(after.finding(check)["verdict"], "ok", "after `{command}`: {}", after.finding(check));
        command
    }

    /// The number of ours.
    fn namespace(&self) -> u64 {
        let inside = || {
            self.net.enter();
            inspect::network_namespace().unwrap()
        };
        std::thread::scope(|scope| scope.spawn(inside).join().unwrap())
    }

    fn has_rxvlan(&self) -> bool {
        String::from_utf8_lossy(&self.shell("ethtool -k ov0").stdout).contains("rx-vlan-offload: on")
    }
}

struct Report {
    code: Option<i32>,
    json: Value,
}

impl Report {
    #[track_caller]
    fn of(output: &Output) -> Report {
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.is_empty(), "{said}");
        Report { code: output.status.code(), json: serde_json::from_slice(&output.stdout).unwrap() }
    }

    /// The worst of a check.
    #[track_caller]
    fn finding(&self, check: &str) -> &Value {
        let rank = |finding: &&Value| {
            ["ok", "skipped", "warning", "failure"].iter().position(|v| finding["verdict"] == *v)
        };
        let all = self.json["checks"].as_array().unwrap().iter().filter(|finding| finding["check"] == check);
        all.max_by_key(rank).unwrap_or_else(|| panic!("no check {check} in {}", self.json))
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_sound_wire_has_no_failures() {
    let bench = Bench::new();
    let report = bench.report("", 1400);
    assert_eq!(
        (report.code, &report.json["counts"]["failure"]),
        (Some(0), &Value::from(0)),
        "{}",
        report.json
    );
    for check in [
        "kernel",
        "af-xdp",
        "rights",
        "cores",
        "interface",
        "native-xdp",
        "mtu",
        "program",
        "address",
        "underlay-mtu",
        "next-hop",
    ] {
        assert_eq!(report.finding(check)["verdict"], "ok", "{}", report.finding(check));
    }
    let text = bench.command(&[], "", 1400).output().unwrap();
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    let counts = &report.json["counts"];
    let last = text.lines().last().unwrap();
    assert!(last.contains(&format!("{} ok, ", counts["ok"])) && last.contains("0 failures"), "{text}");
    // Without a config: all cards, or all interfaces that could be an uplink, or one.
    let output = bench.net.command(BIN).args(["doctor", "--json"]).output().unwrap();
    let report = Report::of(&output);
    let (finding, why) = (
        report.finding("interface"),
        "1 interface could be an uplink all the same (ov0): name one, or --all",
    );
    assert_eq!((report.code, &finding["what"]), (Some(1), &Value::from("no card is here")));
    assert_eq!(finding["why"], why);
    let output = bench.net.command(BIN).args(["doctor", "--json", "--all"]).output().unwrap();
    assert_eq!(Report::of(&output).finding("interface")["about"], "ov0");
    let output = bench.net.command(BIN).args(["doctor", "none0", "--json"]).output().unwrap();
    let report = Report::of(&output);
    assert_eq!((report.code, &report.finding("interface")["verdict"]), (Some(1), &Value::from("failure")));
    let output = bench.net.command(BIN).args(["doctor", "--fix"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("name an interface"), "{said}");
    let output = bench.command(&["ov7"], "", 1400).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(2) && said.contains("no uplink 'ov7': it has ov0"), "{said}");
}

/// As in a network namespace that a program has entered by itself: then nobody tells what is a card's.
#[test]
#[ignore = "needs root: make test runs it"]
fn what_may_be_a_card_is_looked_at_where_sys_is_another_namespaces() {
    let bench = Bench::new();
    bench.net.here("link add br7 type bridge");
    bench.net.here("link set br7 up");
    let inside = || {
        bench.net.enter();
        Report::of(&Command::new(BIN).args(["doctor", "--json"]).output().unwrap())
    };
    let report = std::thread::scope(|scope| scope.spawn(inside).join().unwrap());
    let of = |name: &str| {
        report.json["checks"].as_array().unwrap().iter().filter(|finding| finding["about"] == name).count()
    };
    assert!(of("br7") > 0 && of("lo") == 0 && of("ov0") == 0, "{}", report.json);
    let left_out = "1 interface not looked at (ov0): name one, or --all";
    assert!(report.json["checks"].as_array().unwrap().iter().any(|finding| finding["what"] == left_out));
    // With a /sys of its own it is known that a bridge is none.
    let output = bench.net.command(BIN).args(["doctor", "--json"]).output().unwrap();
    assert_eq!(Report::of(&output).finding("interface")["what"], "no card is here");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_link_that_is_wrong_is_put_right_by_the_command() {
    let bench = Bench::new();
    bench.net.here("link set ov0 down");
    bench.is_mended("interface", "failure", "", 1400);
    bench.net.here("link set ov0 down");
    assert_eq!(bench.is_mended("next-hop", "failure", "", 1400), "ip link set dev ov0 up");
    bench.net.there("link set ov1 down");
    let report = bench.report("", 1400);
    assert_eq!(report.finding("carrier")["verdict"], "warning");
    assert!(
        report.finding("next-hop")["what"].as_str().unwrap().contains("carrier"),
        "{}",
        report.finding("next-hop")
    );
    bench.net.there("link set ov1 up");
    bench.net.here("link set ov0 mtu 9000");
    assert_eq!(bench.is_mended("mtu", "failure", "", 1400), "ip link set dev ov0 mtu 1774");
    bench.net.here("link set ov0 mtu 1400");
    assert_eq!(bench.is_mended("underlay-mtu", "failure", "", 1400), "ip link set dev ov0 mtu 1450");
    bench.net.here("addr del 10.9.0.1/24 dev ov0");
    assert_eq!(bench.is_mended("address", "failure", "", 1400), "ip address add 10.9.0.1/32 dev ov0");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn queues_that_are_wrong_are_put_right_by_the_command() {
    let bench = Bench::new();
    bench.shell("ethtool -L ov0 rx 1");
    assert_eq!(bench.is_mended("channels", "failure", "queues = [0, 1]", 1400), "ethtool -L ov0 rx 2");
    assert_eq!(bench.is_mended("queues", "warning", "queues = [0]", 1400), "ethtool -L ov0 rx 1");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_underlay_in_a_vlan_is_put_right_by_the_commands() {
    let bench = Bench::new();
    let vlan = "vlan = 100";
    let report = bench.report(vlan, 1400);
    let command = report.finding("vlan-device")["command"].as_str().unwrap();
    assert_eq!(command, "ip link add link ov0 name ov0.100 type vlan id 100");
    if bench.net.command("sh").args(["-c", command]).output().unwrap().status.success() {
        let elsewhere = bench.report(vlan, 1400);
        let elsewhere = elsewhere.finding("address");
        assert!(elsewhere["what"].as_str().unwrap().contains("is on ov0, not on ov0.100"), "{elsewhere}");
        assert!(elsewhere["command"].is_null(), "{elsewhere}");
        bench.net.here("addr del 10.9.0.1/24 dev ov0");
        assert_eq!(
            bench.is_mended("address", "failure", vlan, 1400),
            "ip address add 10.9.0.1/32 dev ov0.100"
        );
        bench.net.here("addr add 10.9.0.1/24 dev ov0.100");
        let report = bench.report(vlan, 1400);
        let down = report.finding("next-hop");
        assert_eq!(down["command"], "ip link set dev ov0.100 up", "{down}");
    } else {
        common::left_out("doctor: an underlay in a VLAN: this kernel has no VLAN devices");
    }
    assert_eq!(bench.is_mended("vlan-strip", "failure", vlan, 1400), "ethtool -K ov0 rxvlan off");
    // The same without a shell.
    bench.shell("ethtool -K ov0 rxvlan on");
    let output = bench.command(&["--fix", "--json"], vlan, 1400).output().unwrap();
    let report = Report::of(&output);
    assert!(report.json["fixed"].as_array().unwrap().contains(&"ov0: rxvlan off".into()), "{}", report.json);
    assert_eq!(report.finding("vlan-strip")["verdict"], "ok");
    assert!(!bench.has_rxvlan());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn another_ones_program_is_detached_by_the_command() {
    let bench = Bench::new();
    let folder = bench.folder.path().display();
    let source = "__attribute__((section(\"xdp\"), used)) int firewall(void *x) { return 2; }\n\
                  char licence[] __attribute__((section(\"license\"), used)) = \"GPL\";\n";
    std::fs::write(bench.folder.path().join("x.c"), source).unwrap();
    bench.shell(&format!("clang -O2 -target bpf -c {folder}/x.c -o {folder}/x.o && ip link set dev ov0 xdp obj {folder}/x.o sec xdp"));
    assert!(bench.report("", 1400).finding("program")["what"].as_str().unwrap().contains("another's"));
    assert_eq!(bench.is_mended("program", "failure", "", 1400), "ip link set dev ov0 xdpdrv off");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn another_ones_socket_is_told() {
    let bench = Bench::new();
    bench.net.enter();
    let config = XskConfig::new("ov0", XdpMode::Copy);
    let theirs = xsk::open(&config, &[vec![QueueId(0)]]).unwrap();
    let report = bench.report("", 1400);
    let what = format!("({})", std::process::id());
    let found = report.finding("sockets");
    if found["verdict"] == "skipped" {
        common::left_out("doctor: others' sockets: this kernel does not tell of AF_XDP sockets");
        return;
    }
    assert!(found["verdict"] == "failure" && found["what"].as_str().unwrap().contains(&what), "{found}");
    drop(theirs);
    // The kernel takes a socket off its queue late.
    until(5, "the queue is free", || bench.report("", 1400).finding("sockets")["verdict"] == "ok");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_remote_without_a_way_is_told() {
    let bench = Bench::new();
    bench.net.here("route add blackhole 10.9.0.2/32");
    let report = bench.report("", 1400);
    assert!(
        report.finding("next-hop")["what"].as_str().unwrap().contains("blackhole"),
        "{}",
        report.finding("next-hop")
    );
    bench.net.here("route del blackhole 10.9.0.2/32");
    bench.net.there("addr del 10.9.0.2/24 dev ov1");
    bench.net.here("neigh flush dev ov0");
    let report = bench.report("", 1400);
    let silent = report.finding("next-hop");
    assert!(
        silent["verdict"] == "failure" && silent["what"].as_str().unwrap().contains("10.9.0.2"),
        "{silent}"
    );
    bench.net.there("addr add 10.9.0.2/24 dev ov1");
    assert_eq!(bench.report("", 1400).finding("next-hop")["verdict"], "ok");
    bench.net.here("route add 10.9.0.2/32 dev ov0 mtu 1430");
    assert_eq!(bench.report("", 1400).finding("path-mtu")["verdict"], "warning");
}

/// What a user without rights is told to do. `sudo` is a stand-in: who runs this is root.
#[test]
#[ignore = "needs root: make test runs it"]
fn missing_rights_and_limits_are_put_right_by_the_command() {
    let bench = Bench::new();
    let config = bench.config("", 1400);
    let folder = bench.folder.path();
    let sudo = folder.join("sudo");
    std::fs::write(&sudo, "#!/bin/sh\nexec \"$@\"\n").unwrap();
    bench.shell(&format!("chmod +x {}", sudo.display()));
    let doctor = format!("{BIN} doctor --json -c {}", config.display());
    let with_sudo = |command: &str| format!("PATH={}:$PATH; {command}", folder.display());
    let run = |script: String| bench.net.command("sh").args(["-c", &script]).output().unwrap();

    let weak = Report::of(&run(format!("exec setpriv --bounding-set -net_raw,-bpf,-sys_admin {doctor}")));
    let finding = weak.finding("rights");
    assert_eq!((&finding["verdict"], weak.code), (&Value::from("failure"), Some(1)), "{finding}");
    assert_eq!(finding["what"], "this process has not CAP_NET_RAW, CAP_BPF");
    assert_eq!(weak.finding("af-xdp")["verdict"], "skipped");
    let command = finding["command"].as_str().unwrap();
    assert_eq!(command, format!("sudo {doctor}"));
    assert_eq!(Report::of(&run(with_sudo(command))).finding("rights")["verdict"], "ok");

    let weak = format!("setpriv --bounding-set -ipc_lock,-sys_resource {doctor}");
    let limited = Report::of(&run(format!("ulimit -l 1024; {weak}")));
    let finding = limited.finding("locked-memory");
    assert_eq!(finding["verdict"], "failure", "{finding}");
    let command = finding["command"].as_str().unwrap();
    assert_eq!(command, "sudo prlimit --pid $$ --memlock=unlimited");
    let may_raise = rustix::thread::capabilities(None).unwrap().effective;
    if may_raise.contains(rustix::thread::CapabilitySet::SYS_RESOURCE) {
        let raised = Report::of(&run(with_sudo(&format!("ulimit -l 1024; {command}; {weak}"))));
        assert_eq!(raised.finding("locked-memory")["verdict"], "ok", "{}", raised.finding("locked-memory"));
    } else {
        common::left_out("doctor: locked memory raised: root may not raise limits here");
    }
    // Interfaces of containers are made in their namespaces.
    let text = std::fs::read_to_string(&config).unwrap();
    let container = "[[endpoints]]\nname = \"c\"\nnetwork = \"blue\"\nmac = \"02:00:00:00:00:01\"\nveth = { namespace = \"none\" }\n";
    std::fs::write(&config, format!("{text}{container}")).unwrap();
    let weak = Report::of(&run(format!("exec setpriv --bounding-set -sys_admin {doctor}")));
    let finding = weak.finding("rights");
    assert_eq!(finding["what"], "this process has not CAP_SYS_ADMIN", "{finding}");
    let command = finding["command"].as_str().unwrap();
    assert_eq!(Report::of(&run(with_sudo(command))).finding("rights")["verdict"], "ok");

    let alone = Report::of(&run(format!("exec taskset -c 0 {doctor}")));
    assert_eq!(alone.finding("control-core")["verdict"], "warning", "{}", alone.finding("control-core"));
    let two = Report::of(&run(format!("exec taskset -c 0-1 {doctor}")));
    assert_eq!(two.finding("control-core")["verdict"], "ok", "{}", two.finding("control-core"));
    let elsewhere = Report::of(&run(format!("exec taskset -c 1 {doctor}")));
    let finding = elsewhere.finding("cores");
    assert_eq!(finding["verdict"], "failure", "{finding}");
    let command = finding["command"].as_str().unwrap();
    assert_eq!(command, format!("taskset -c 0-1 {doctor}"));
    assert_eq!(Report::of(&run(format!("taskset -c 1 {command}"))).finding("cores")["verdict"], "ok");
}

/// Settings of the whole machine; they are as before afterwards.
#[test]
#[ignore = "needs root: make test runs it"]
fn memory_and_file_systems_are_put_right_by_the_command() {
    struct Before(&'static str, String);
    impl Drop for Before {
        fn drop(&mut self) {
            let _as_before = std::fs::write(self.0, &self.1);
        }
    }
    let bench = Bench::new();
    let huge = "/proc/sys/vm/nr_hugepages";
    let before = Before(huge, std::fs::read_to_string(huge).unwrap());
    std::fs::write(huge, "0").unwrap();
    bench.is_mended("huge-pages", "warning", "", 1400);
    drop(before);
    // `ip netns exec` gives each command a /sys of its own, so the command is run beside the doctor.
    let doctor = format!("{BIN} doctor --json -c {}", bench.config("", 1400).display());
    let report = bench.report("", 1400);
    let command = report.finding("bpffs")["command"].as_str().unwrap();
    let output = bench.net.command("sh").args(["-c", &format!("{command} && {doctor}")]).output().unwrap();
    assert_eq!(Report::of(&output).finding("bpffs")["verdict"], "ok");
    let output = bench.command(&["--fix", "--json"], "", 1400).output().unwrap();
    let report = Report::of(&output);
    assert_eq!(report.json["fixed"], serde_json::json!(["bpf mounted at /sys/fs/bpf"]), "{}", report.json);
    assert_eq!(report.finding("bpffs")["verdict"], "ok");
    // What is not permitted is said.
    let doctor = format!("{BIN} doctor --fix --json -c {}", bench.config("vlan = 100", 1400).display());
    let script = format!("exec setpriv --bounding-set -net_admin {doctor}");
    let report = Report::of(&bench.net.command("sh").args(["-c", &script]).output().unwrap());
    let not_fixed = report.json["not_fixed"][0].as_str().unwrap();
    assert!(not_fixed.starts_with("ov0: rxvlan off: ") && bench.has_rxvlan(), "{not_fixed}");
}

/// What this machine has not, or what cannot be changed here (a compiler that is always on, a second memory node, a clock's governor), is
/// made: files of the kernel's with others over them, which nobody else sees. What is printed is run on them.
#[test]
#[ignore = "needs root: make test runs it"]
fn what_the_kernel_tells_of_itself_is_put_right_by_the_command() {
    let bench = Bench::new();
    let doctor = format!("{BIN} doctor --json -c {}", bench.config("", 1400).display());
    // The compiler's switch is seen in the first network namespace only; interfaces are where they are.
    let in_made = |setup: &str, command: &str| {
        let script =
            format!("set -e; cd {}; {setup}; {command}; exec {doctor}", bench.folder.path().display());
        let mut sh = if setup.contains("/proc/sys/net") {
            Command::new("unshare")
        } else {
            bench.net.command("unshare")
        };
        Report::of(&sh.args(["-m", "sh", "-c", &script]).output().unwrap())
    };
    let cpu = "cpu=/sys/devices/system/cpu/cpu0; mount -t tmpfs made $cpu";
    let governor = format!("{cpu}; mkdir $cpu/cpufreq; echo powersave > $cpu/cpufreq/scaling_governor");
    let compiler = "echo 0 > jit; mount --bind jit /proc/sys/net/core/bpf_jit_enable";
    // What is made is free.
    let nodes = format!(
        "{cpu}; mkdir $cpu/node1; nodes=/sys/devices/system/node; mount -t tmpfs made $nodes; for n in 0 1; do \
         pages=$nodes/node$n/hugepages/hugepages-2048kB; mkdir -p $pages; echo 0 > $pages/nr_hugepages; \
         ln -s nr_hugepages $pages/free_hugepages; done"
    );
    let file = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
    for (check, setup, expected) in [
        (
            "governor",
            governor.as_str(),
            "echo performance > /sys/devices/system/cpu/cpu0/cpufreq/scaling_governor",
        ),
        ("jit", compiler, "echo 1 > /proc/sys/net/core/bpf_jit_enable"),
        ("huge-pages", nodes.as_str(), &format!("echo $(($(cat {file}) + ")),
    ] {
        let before = in_made(setup, ":");
        let finding = before.finding(check);
        let command = finding["command"].as_str().unwrap_or_else(|| panic!("no command: {finding}"));
        assert!(finding["verdict"] == "warning" && command.starts_with(expected), "{finding}");
        let after = in_made(setup, command);
        assert_eq!(after.finding(check)["verdict"], "ok", "after `{command}`: {}", after.finding(check));
    }
    // Those that no command mends.
    let isolated = |cores: &str| {
        let setup = format!("echo {cores} > cores; mount --bind cores /sys/devices/system/cpu/isolated");
        in_made(&setup, ":").finding("isolation").clone()
    };
    let (none, one) = (isolated(""), isolated("0"));
    assert!(none["why"].as_str().unwrap().contains("isolcpus=managed_irq,domain,0 "), "{none}");
    assert_eq!((&none["verdict"], &one["verdict"]), (&Value::from("warning"), &Value::from("ok")), "{one}");
    let siblings = |list: &str| {
        let setup = format!("{cpu}; mkdir $cpu/topology; echo {list} > $cpu/topology/thread_siblings_list");
        in_made(&setup, ":").finding("siblings").clone()
    };
    let (shared, own) = (siblings("0-1"), siblings("0"));
    assert_eq!(shared["what"], "cores 1 share physical cores with workers", "{shared}");
    assert_eq!((&shared["verdict"], &own["verdict"]), (&Value::from("warning"), &Value::from("ok")), "{own}");
}

/// Modes that a driver does not have: the way out is another one.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_mode_that_the_driver_has_not_is_told_with_those_that_it_has() {
    let bench = Bench::new();
    bench.net.here("link add br0 type bridge");
    bench.net.here("link set br0 up");
    let finding = |check: &str, interface: &str, mode: &str| {
        let text = std::fs::read_to_string(bench.config("", 1400)).unwrap();
        let text =
            text.replace("\"ov0\"", &format!("\"{interface}\"")).replace("\"copy\"", &format!("\"{mode}\""));
        let path = bench.folder.path().join("other.toml");
        std::fs::write(&path, text).unwrap();
        let output = bench.net.command(BIN).args(["doctor", "--json", "-c"]).arg(&path).output().unwrap();
        Report::of(&output).finding(check).clone()
    };
    for (check, interface, mode, what, way_out) in [
        ("native-xdp", "br0", "copy", "driver bridge runs no XDP programs", "generic"),
        ("zero-copy", "ov0", "require-zero-copy", "driver veth has none", "prefer-zero-copy"),
    ] {
        let wrong = finding(check, interface, mode);
        assert_eq!(wrong["verdict"], "failure", "{wrong}");
        assert!(wrong["what"].as_str().unwrap().starts_with(what), "{wrong}");
        assert!(wrong["why"].as_str().unwrap().contains(&format!("mode = \"{way_out}\"")), "{wrong}");
        let right = finding(check, interface, way_out);
        assert_eq!(right["verdict"], "ok", "{right}");
    }
}

/// What a daemon that was killed leaves beside its control socket: it has switched `ov0`'s VLAN stripping off.
fn left_behind(namespace: u64, ifindex: &str) -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let was = "{\"feature\":{\"feature\":\"rx-vlan-hw-parse\",\"on\":true}}";
    format!(
        "{{\"boot\":\"{}\",\"records\":[{{\"interface\":\"ov0\",\"namespace\":{namespace},\"ifindex\":{ifindex},\"was\":{was}}}]}}",
        boot.trim()
    )
}

/// What one daemon has left is no matter of another interface with the same number, nor put back under another daemon.
#[test]
#[ignore = "needs root: make test runs it"]
fn what_was_left_is_not_put_back_where_that_disturbs_others() {
    let (bench, second) = (Bench::new(), tempfile::tempdir().unwrap());
    let patience = Duration::from_secs(20);
    bench.net.here("link add ov2 type veth peer name ov3");
    bench.net.here("addr add 10.9.9.1/24 dev ov2");
    bench.net.here("link set ov2 up");
    bench.net.here("link set ov3 up");
    let text = std::fs::read_to_string(bench.config("", 1400)).unwrap();
    let text = text.replace("ov0", "ov2").replace("10.9.0.1", "10.9.9.1").replace("10.9.0.2", "10.9.9.2");
    let text = text.replace(&bench.folder.path().display().to_string(), &second.path().display().to_string());
    let config = second.path().join("peregrine.toml");
    std::fs::write(&config, text).unwrap();
    let run = |config: &std::path::Path| {
        let mut daemon = Process::start(bench.net.command(BIN).args(["run", "-c"]).arg(config)).unwrap();
        daemon.wait_for_line("ready", patience).unwrap();
        daemon
    };
    let file = second.path().join("control.sock.mended");
    let ifindex = bench.net.here("-o link show ov0").split(':').next().unwrap().to_owned();
    bench.shell("ethtool -K ov0 rxvlan off");
    let not = "warning: not put back: ov0: rx-vlan-hw-parse on: ";
    let says = |daemon: &Process, why: &str| {
        let line = format!("{not}{why}");
        assert!(daemon.said().iter().any(|said| said.contains(&line)), "{:?}", daemon.said());
        assert!(!bench.has_rxvlan() && file.exists());
    };

    let elsewhere = inspect::network_namespace().unwrap();
    std::fs::write(&file, left_behind(elsewhere, &ifindex)).unwrap();
    let daemon = run(&config);
    says(&daemon, "it is in another network namespace");
    daemon.stop(patience).unwrap();
    assert!(!bench.has_rxvlan() && file.exists());

    std::fs::write(&file, left_behind(bench.namespace(), &ifindex)).unwrap();
    let first = run(&bench.config("", 1400));
    let report = bench.report("", 1400);
    for check in ["program", "sockets"] {
        assert_eq!(report.finding(check)["verdict"], "warning", "{}", report.finding(check));
    }
    let daemon = run(&config);
    says(&daemon, "another daemon uses it");
    first.stop(patience).unwrap();
    assert_eq!(bench.report("", 1400).finding("program")["verdict"], "ok");
    assert!(!bench.has_rxvlan());
    daemon.stop(patience).unwrap();
    assert!(bench.has_rxvlan() && !file.exists());
}

/// With `fix = true` the daemon leaves the interface as it was, whether it starts or not, and even if it was killed.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_daemon_fixes_for_as_long_as_it_runs() {
    let bench = Bench::new();
    let patience = Duration::from_secs(20);
    let start = |uplink: &str, from: &str, to: &str| {
        let config = bench.config(uplink, 1400);
        let text = std::fs::read_to_string(&config).unwrap().replace(from, to);
        std::fs::write(&config, text).unwrap();
        let mut command = bench.net.command(BIN);
        Process::start(command.args(["run", "-c"]).arg(&config)).unwrap()
    };
    let file = bench.folder.path().join("control.sock.mended");
    // Without it, that is the error of the start; with it, the next one is, and what was fixed is put back.
    let vlan = "vlan = 100";
    let refused = start(vlan, "", "").finish(patience, &|| false).unwrap_err().to_string();
    assert!(refused.contains("ethtool -K ov0 rxvlan off"), "{refused}");
    let refused =
        start("vlan = 100\nfix = true", "", "").finish(patience, &|| false).unwrap_err().to_string();
    let said = "fixed until the end: ov0: rxvlan off";
    assert!(refused.contains(said) && refused.contains("no device for VLAN 100"), "{refused}");
    assert!(bench.has_rxvlan() && !file.exists());

    // As a daemon that was killed leaves it.
    bench.shell("ethtool -K ov0 rxvlan off");
    let ifindex = bench.net.here("-o link show ov0").split(':').next().unwrap().to_owned();
    std::fs::write(&file, left_behind(bench.namespace(), &ifindex)).unwrap();
    let back = "put back, as a killed daemon could not: ov0: rx-vlan-hw-parse on";
    let mut next = start("", "", "");
    next.wait_for_line("ready", patience).unwrap();
    assert!(next.said().contains(&back.into()), "{:?}", next.said());
    assert!(next.said().iter().any(|line| line.starts_with("doctor: warning: ")), "{:?}", next.said());
    // Its own program, sockets, memory and pinning are nothing that it would complain of.
    assert!(!next.said().iter().any(|line| line.starts_with("doctor: failure: ")), "{:?}", next.said());
    assert!(bench.has_rxvlan() && !file.exists());
    next.stop(patience).unwrap();

    let add = "link add link ov0 name ov0.100 type vlan id 100";
    let added = Command::new("ip").args(["-n", &bench.net.here]).args(add.split(' ')).output().unwrap();
    if !added.status.success() {
        common::left_out("doctor: a daemon with a VLAN: this kernel has no VLAN devices");
        return;
    }
    bench.net.here("addr add 10.9.1.1/24 dev ov0.100");
    bench.net.here("link set ov0.100 up");
    let start = || {
        let mut daemon = start("vlan = 100\nfix = true", "10.9.0.1", "10.9.1.1");
        daemon.wait_for_line("ready", patience).unwrap();
        assert!(daemon.said().contains(&said.into()), "{:?}", daemon.said());
        assert!(!bench.has_rxvlan());
        daemon
    };
    start().stop(patience).unwrap();
    assert!(bench.has_rxvlan());
    let killed = start();
    killed.signal(Signal::KILL);
    killed.finish(patience, &|| false).unwrap_err();
    assert!(!bench.has_rxvlan() && file.exists());
    let next = start();
    assert!(next.said().contains(&back.into()), "{:?}", next.said());
    next.stop(patience).unwrap();
    assert!(bench.has_rxvlan() && !file.exists());
}
