//! `peregrine doctor` on each driver: a thing is made wrong, the doctor tells it, what it prints is run by a shell, and all is well. A
//! command that the driver would not obey is not printed.

use std::path::PathBuf;
use std::process::Command;

use peregrine_control::lab::Namespace;
use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::QueueId;
use peregrine_dataplane::xsk::{self, XskConfig};
use peregrine_tests::{NEAR, cores, inside, program, run, until};
use serde_json::Value;

use crate::bench::Bench;
use crate::kinds::Kind;

/// The doctor on the near host, with a config.
#[derive(Debug)]
pub struct Doctor<'a> {
    host: Option<&'a Namespace>,
    file: PathBuf,
}

impl Doctor<'_> {
    /// Writes the config to a file of this name.
    pub fn new<'a>(bench: &'a Bench, name: &str, config: &str) -> Doctor<'a> {
        let file = bench.net.file(&format!("{name}.toml"));
        std::fs::write(&file, config).expect("a config file");
        Doctor { host: Some(&bench.net.near), file }
    }

    /// The same in no host: in the machine's own network namespace, with its own `/sys`.
    pub fn outside(self) -> Doctor<'static> {
        Doctor { host: None, file: self.file }
    }

    fn dash(&self, script: &str) -> Command {
        // Not busybox's shell: its `ip` goes before ours.
        let mut command = self.host.map_or_else(|| Command::new("dash"), |host| host.command("dash"));
        command.args(["-c", script]);
        command
    }

    /// How it is called.
    pub fn command_line(&self) -> String {
        format!("{} doctor --json -c {}", program("peregrine").display(), self.file.display())
    }

    /// A shell there, whose script must end well.
    #[track_caller]
    pub fn shell(&self, script: &str) -> String {
        run(&mut self.dash(script))
    }

    /// What it finds when a script calls it, which is where it may be called in other ways.
    #[track_caller]
    pub fn report_of(&self, script: &str) -> Value {
        let output = self.dash(script).output().expect("dash");
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{script}: {error}: {said}"))
    }

    /// What it finds.
    #[track_caller]
    pub fn report(&self, more: &str) -> Value {
        self.report_of(&format!("{} {more}", self.command_line()))
    }

    /// A check ends so, with these words in what is said of it.
    #[track_caller]
    pub fn tells(&self, check: &str, verdict: &str, words: &str) -> Value {
        tells(&self.report(""), check, verdict, words)
    }

    /// A check ends so, prints this command, and is ok when that was run.
    #[track_caller]
    pub fn is_mended(&self, check: &str, verdict: &str, words: &str, command: &str) {
        self.are_mended(&[(check, verdict, words, command)]);
    }

    /// The same with several at once: a doctor takes a while in an emulated machine.
    #[track_caller]
    pub fn are_mended(&self, all: &[(&str, &str, &str, &str)]) {
        let report = self.report("");
        for (check, verdict, words, command) in all {
            let finding = tells(&report, check, verdict, words);
            assert_eq!(finding["command"], *command, "{finding}");
        }
        let commands: Vec<&str> = all.iter().map(|(_, _, _, command)| *command).collect();
        self.shell(&commands.join(" && "));
        let report = self.report("");
        all.iter().for_each(|(check, ..)| drop(tells(&report, check, "ok", "")));
    }

    /// The same by `--fix`, which says this.
    #[track_caller]
    pub fn is_fixed(&self, check: &str, verdict: &str, line: &str) {
        self.tells(check, verdict, "");
        let report = self.report("--fix");
        let is_said = report["fixed"].as_array().is_some_and(|fixed| fixed.contains(&line.into()));
        assert!(is_said, "{report}");
        tells(&report, check, "ok", "");
    }
}

/// The worst finding of a check in a report; it must have ended so.
#[track_caller]
pub fn tells(report: &Value, check: &str, verdict: &str, words: &str) -> Value {
    let rank = |finding: &&Value| {
        ["ok", "skipped", "warning", "failure"].iter().position(|name| finding["verdict"] == *name)
    };
    let all = report["checks"].as_array().into_iter().flatten().filter(|finding| finding["check"] == check);
    let finding = all.max_by_key(rank).unwrap_or_else(|| panic!("no check {check} in {report}"));
    let is_said = finding["what"].to_string().contains(words) || finding["why"].to_string().contains(words);
    assert!(finding["verdict"] == verdict && is_said, "not {verdict}, '{words}': {finding}");
    finding.clone()
}

/// The link, its MTU, and who else has a program there.
pub fn link(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let doctor = Doctor::new(&bench, "plain", &bench.config(&[]));
    let sound = doctor.report("");
    assert_eq!(sound["counts"]["failure"], 0, "{sound}");
    for check in ["interface", "carrier", "native-xdp", "zero-copy", "mtu", "program", "sockets", "next-hop"]
    {
        tells(&sound, check, "ok", "");
    }
    bench.cable(false);
    doctor.tells("carrier", "warning", "no carrier");
    bench.cable(true);

    let small = bench.config(&[]).replace(&bench.chunks(), "chunk_size = 2048");
    let small = Doctor::new(&bench, "small", &small);
    small.shell("ip link set near0 down mtu 3000");
    let most = kind.small_mtu();
    small.are_mended(&[
        ("interface", "failure", "it is down", "ip link set dev near0 up"),
        ("mtu", "failure", &format!("3000 of at most {most}"), &format!("ip link set dev near0 mtu {most}")),
    ]);
    bench.wait_for_carrier(&bench.net.near, NEAR.1, true);
    let limit = match kind.program_mtu() {
        Some(most) => driver_mtu(&bench, most),
        None => "no XDP of the driver's".into(),
    };
    doctor.shell("ip link set near0 mtu 1400 && ip link set dev near0 xdp obj /lab/foreign.o sec xdp");
    let mode = if kind == Kind::E1000e { "xdpgeneric" } else { "xdpdrv" };
    doctor.are_mended(&[
        ("underlay-mtu", "failure", "needs 1500", "ip link set dev near0 mtu 1500"),
        ("program", "failure", "somebody_elses", &format!("ip link set dev near0 {mode} off")),
    ]);
    sockets(&bench, &doctor);
    let seen = offloads(&bench, &doctor);
    format!(
        "down, no cable, MTU too small and too large, another's program and socket: told, and mended; {limit}; {seen}"
    )
}

/// Another's AF_XDP socket: ours here.
fn sockets(bench: &Bench, doctor: &Doctor<'_>) {
    inside(&bench.net.near, || {
        let mode = if bench.kind == Kind::E1000e { XdpMode::Generic } else { XdpMode::Copy };
        let theirs = xsk::open(&XskConfig::new(NEAR.1, mode), &[vec![QueueId(0)]]).expect("a socket");
        let owner = format!("queue 0 has an AF_XDP socket of nic_lab ({})", std::process::id());
        let finding = doctor.tells("sockets", "failure", &owner);
        assert!(finding["command"].is_null(), "{finding}");
        drop(theirs);
    });
    // The kernel takes a socket off its queue late.
    until("the queue to be free", || {
        doctor.report("")["checks"]
            .as_array()
            .into_iter()
            .flatten()
            .any(|finding| finding["check"] == "sockets" && finding["verdict"] == "ok")
    });
}

/// The largest MTU with which the driver takes a program is what the doctor believes.
fn driver_mtu(bench: &Bench, most: u32) -> String {
    let copying = bench
        .config(&[])
        .replace(&format!("mode = \"{}\"", bench.kind.mode()), "mode = \"copy\"")
        .replace(&bench.chunks(), "chunk_size = 4096");
    let doctor = Doctor::new(bench, "large", &copying);
    let attach = "ip link set dev near0 xdpdrv obj /lab/foreign.o sec xdp";
    doctor.shell(&format!("ip link set near0 mtu {}", most + 1));
    assert!(bench.net.near.ip(attach.trim_start_matches("ip ")).is_err(), "it takes one with {}", most + 1);
    let command = format!("ip link set dev near0 mtu {most}");
    doctor.is_mended("mtu", "failure", "takes no XDP program with a larger one", &command);
    doctor.shell(&format!("{attach} && ip link set dev near0 xdpdrv off"));
    format!("a program up to an MTU of {most}")
}

/// How packets come to queues and cores.
pub fn queues(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let config = bench.config(&[]);
    let doctor = Doctor::new(&bench, "plain", &config);
    let with = |name: &str, queues: &str| {
        Doctor::new(&bench, name, &config.replace("[uplink]\n", &format!("[uplink]\nqueues = {queues}\n")))
    };
    let mut facts = vec![hash(kind, &doctor)];
    let (both, first) = (with("both", "[0, 1]"), with("first", "[0]"));
    if kind == Kind::Igb {
        // With a table that somebody has chosen the kernel takes no queues away. The driver asks for its interrupts anew here.
        doctor.shell("ethtool -X near0 default && ethtool -L near0 combined 1");
        both.is_mended("channels", "failure", "queue 1 is asked for", "ethtool -L near0 combined 2");
        facts.push("channels".into());
    } else {
        let more = if kind.is_multi_queue() { with("more", "[0, 1, 2]") } else { both };
        let finding = more.tells("channels", "failure", "is asked for, and there are 0 to");
        assert!(finding["command"].is_null(), "{finding}");
        facts.push("no more channels to be had, and none offered".into());
    }
    let irqs = interrupts(&doctor);
    let mut wrong = vec![("interrupts", "warning", "are served on workers' cores", irqs.as_str())];
    if kind.is_multi_queue() {
        doctor.shell("ethtool -X near0 weight 1 0");
        wrong.push(("rss", "warning", "no packets come to queues 1", "ethtool -X near0 equal 2"));
    }
    if kind == Kind::Igb {
        doctor.shell(BY_ADDRESSES);
        wrong.push(("hash-udp4", "warning", "by addresses only", "ethtool -N near0 rx-flow-hash udp4 sdfn"));
    }
    doctor.are_mended(&wrong);
    if kind.is_multi_queue() {
        first.is_mended("queues", "warning", "come to queues 1,", "ethtool -X near0 equal 1");
        let last = with("last", "[1]");
        last.is_mended("queues", "warning", "come to queues 0,", "ethtool -X near0 weight 0 1");
        doctor.shell("ethtool -X near0 equal 2");
        facts.push("table of queues".into());
    }
    let daemon = bench.start(&config);
    bench.pings(50);
    doctor.tells("interrupts", "ok", "");
    daemon.stop();
    doctor.shell(&format!("{IRQS} echo 0-1 > /proc/irq/$irq/smp_affinity_list; done"));
    facts.push("interrupts".into());
    facts.join(", ")
}

/// The card's interrupts that are in use. A virtio card's are those of the device that it is on.
const IRQS: &str = "cd -P /sys/class/net/near0/device; [ -d msi_irqs ] || cd ..; \
                    for irq in $(ls msi_irqs); do [ -d /proc/irq/$irq ] || continue;";

const BY_ADDRESSES: &str = "ethtool -N near0 rx-flow-hash udp4 sd";

/// By which fields UDP is hashed: on igb that is chosen, vmxnet3 in QEMU does not tell, the others have one queue.
fn hash(kind: Kind, doctor: &Doctor<'_>) -> String {
    match kind {
        Kind::Igb => {
            doctor.shell(BY_ADDRESSES);
            doctor.is_fixed("hash-udp4", "warning", "near0: udp4 hashed by ports");
            "UDP's hash".into()
        }
        Kind::Vmxnet3 => {
            let finding = doctor.tells("hash-udp4", "skipped", "does not tell");
            assert!(finding["command"].is_null(), "{finding}");
            "UDP's hash not told, and no command offered".into()
        }
        _ => {
            doctor.tells("hash-udp4", "ok", "there is one queue");
            "one queue".into()
        }
    }
}

/// All on the worker's core: the command that is expected.
fn interrupts(doctor: &Doctor<'_>) -> String {
    let (worker, other) = cores();
    let numbers =
        doctor.shell(&format!("{IRQS} echo {worker} > /proc/irq/$irq/smp_affinity_list; echo $irq; done"));
    let numbers: Vec<&str> = numbers.split_whitespace().collect();
    assert!(!numbers.is_empty());
    format!("for irq in {}; do echo {other} > /proc/irq/$irq/smp_affinity_list; done", numbers.join(" "))
}

/// What the card does to packets before a program sees them; and a VLAN, part by part.
fn offloads(bench: &Bench, plain: &Doctor<'_>) -> String {
    let kind = bench.kind;
    let lro = if kind == Kind::Vmxnet3 {
        plain.shell("ethtool -K near0 lro on");
        plain.tells("lro", "ok", "on; driver vmxnet3 switches it off for an XDP program");
        let with_program = "ip link set dev near0 xdpdrv obj /lab/foreign.o sec xdp && ethtool -k near0";
        let all = plain.shell(&format!("{with_program}; ip link set dev near0 xdpdrv off"));
        assert!(all.contains("large-receive-offload: off"), "{all}");
        "the driver switches LRO off, as is told"
    } else {
        plain.tells("lro", "ok", "off");
        "no LRO"
    };
    let vlan = Doctor::new(bench, "vlan", &bench.config_in_a_vlan());
    let report = vlan.report("");
    tells(&report, "gro-hw", "ok", "off");
    let make = tells(&report, "vlan-device", "failure", "near0 has no device for VLAN 100");
    assert_eq!(make["command"], "ip link add link near0 name near0.100 type vlan id 100");
    vlan.shell("ip link add link near0 name near0.100 type vlan id 100");
    vlan.is_mended("address", "failure", "is not on near0.100", "ip address add 198.18.0.1/32 dev near0.100");
    vlan.shell("ip address add 198.18.0.1/24 dev near0.100");
    let up = vlan.tells("next-hop", "failure", "");
    assert_eq!(up["command"], "ip link set dev near0.100 up", "{up}");
    vlan.shell("ip link set dev near0.100 up");
    bench.far_in_a_vlan();
    vlan.tells("next-hop", "ok", "");
    let strip = if kind.strips_vlans() {
        vlan.is_mended("vlan-strip", "failure", "takes VLAN tags off", "ethtool -K near0 rxvlan off");
        vlan.shell("ethtool -K near0 rxvlan on");
        vlan.is_fixed("vlan-strip", "failure", "near0: rxvlan off");
        "tags taken off: told and mended"
    } else {
        vlan.tells("vlan-strip", "ok", "tags are left in packets");
        "the driver takes no tags off"
    };
    format!("{lro}; no GRO-HW; a VLAN's device, address and state: told and mended; {strip}")
}

/// `[uplink] fix`: for as long as the daemon runs; after a kill -9 the next one puts it back.
pub fn fix(kind: Kind) -> String {
    let bench = Bench::new(kind);
    bench.near_in_a_vlan();
    bench.far_in_a_vlan();
    let config = bench.config_in_a_vlan().replace("[uplink]\n", "[uplink]\nfix = true\n");
    let doctor = Doctor::new(&bench, "plain", &config);
    let mut expected = vec![("rxvlan off", "rx-vlan-hw-parse on")];
    if kind == Kind::Igb {
        doctor.shell("ethtool -N near0 rx-flow-hash udp4 sd");
        expected.push(("udp4 hashed by ports", "udp4 hashed as before"));
    }
    let state = || {
        let hash = "ethtool -n near0 rx-flow-hash udp4 2>/dev/null || true";
        doctor.shell(&format!("ethtool -k near0 | grep rx-vlan-offload; {hash}"))
    };
    let before = state();
    let daemon = bench.start(&config);
    let fixed = state();
    assert_ne!(fixed, before);
    bench.pings(50);
    daemon.kill();
    assert_eq!(state(), fixed, "a kill puts nothing back");
    let daemon = bench.start(&config);
    assert_eq!(state(), fixed);
    bench.pings(50);
    let said = daemon.stop();
    assert_eq!(state(), before, "it is as it was");
    for (fixed, back) in &expected {
        assert!(said.contains(&format!("put back, as a killed daemon could not: near0: {back}")), "{said}");
        assert!(said.contains(&format!("fixed until the end: near0: {fixed}")), "{said}");
    }
    let names: Vec<&str> = expected.iter().map(|(fixed, _)| *fixed).collect();
    format!(
        "{}: set, put back after a kill by the next daemon, set again, and put back at the end",
        names.join(", ")
    )
}
