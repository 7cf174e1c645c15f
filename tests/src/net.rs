//! The two hosts and the wire between them. Names are unique for each test; what killed runs left is removed.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use peregrine_control::lab::Namespace;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::Value;

use crate::{PATIENCE, run};

/// The network of the tests.
pub const VNI: u32 = 42;
/// The far host's VTEP: address, device, link-layer address.
pub const FAR: (&str, &str, &str) = ("192.0.2.2", "far0", "02:00:00:00:0f:02");
/// The near host's.
pub const NEAR: (&str, &str, &str) = ("192.0.2.1", "near0", "02:00:00:00:0f:01");
/// The far host's kernel on the overlay: address and link-layer address of its vxlan device `vx`.
pub const FAR_OVERLAY: (&str, &str) = ("10.42.0.2", "02:00:00:00:42:02");

const PREFIX: &str = "peregrine-t";

/// Two hosts. Dropped, they are gone with all that runs in them.
#[derive(Debug)]
pub struct Net {
    /// The host with the kernel's vxlan device.
    pub far: Namespace,
    /// The host for the daemon.
    pub near: Namespace,
    directory: tempfile::TempDir,
}

impl Net {
    /// The hosts, the wire `far0`–`near0`, and the far kernel's vxlan device `vx`; no IPv6, so that nothing is on the
    /// wire that a test has not sent.
    ///
    /// # Panics
    /// If `ip` fails: not root, most likely.
    pub fn new() -> Net {
        let net = Net::apart();
        net.far.wire((FAR.1, FAR.2), &net.near, (NEAR.1, NEAR.2), 1500).expect("a wire");
        net.near.ip(&format!("addr add {}/24 dev {}", NEAR.0, NEAR.1)).expect("an address");
        overlay(&net.far, FAR, NEAR.0, FAR_OVERLAY);
        net
    }

    /// The hosts without a wire.
    ///
    /// # Panics
    /// If `ip` fails: not root, most likely.
    pub fn apart() -> Net {
        remove_left_behind();
        let (far, near) = (namespace("far"), namespace("near"));
        Net { far, near, directory: tempfile::tempdir().expect("a directory for sockets") }
    }

    /// A file of this test.
    pub fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Frames that a device of the far host has put on its wire, and those that the wire's other end had no room for.
    ///
    /// # Panics
    /// If `ip` does not say.
    pub fn sent(&self, device: &str) -> (u64, u64) {
        let text = self.far.ip(&format!("-s -json link show {device}")).expect("statistics");
        let links: Value = serde_json::from_str(&text).expect("JSON");
        let tx = &links[0]["stats64"]["tx"];
        (tx["packets"].as_u64().expect("packets"), tx["dropped"].as_u64().expect("dropped"))
    }

    /// Whether an XDP program is on the near end of the wire.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn has_program(&self) -> bool {
        self.near.ip(&format!("-d link show {}", NEAR.1)).expect("a link").contains("xdp")
    }
}

impl Default for Net {
    fn default() -> Net {
        Net::new()
    }
}

/// A host with a name of its own.
///
/// # Panics
/// If `ip` fails.
pub(crate) fn namespace(role: &str) -> Namespace {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let name = format!("{PREFIX}-{}-{number}-{role}", std::process::id());
    let namespace = Namespace::create(&name).unwrap_or_else(|error| panic!("{error}"));
    // No neighbour discovery and no router solicitations between the frames of a test.
    for which in ["all", "default"] {
        let key = format!("net.ipv6.conf.{which}.disable_ipv6=1");
        run(namespace.command("sysctl").args(["-qw", &key]));
    }
    namespace
}

impl Net {
    /// One more host.
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn host(&self, role: &str) -> Namespace {
        namespace(role)
    }
}

/// Gives a host its VTEP address and the kernel's vxlan device `vx` towards `remote`. Its UDP checksums are off, as
/// RFC 7348 §4.1 wants it.
pub(crate) fn overlay(host: &Namespace, vtep: (&str, &str, &str), remote: &str, overlay: (&str, &str)) {
    for command in [
        format!("addr add {}/24 dev {}", vtep.0, vtep.1),
        format!(
            "link add vx address {} mtu 1450 type vxlan id {VNI} local {} remote {remote} dstport 4789 noudpcsum",
            overlay.1, vtep.0
        ),
        format!("addr add {}/24 dev vx", overlay.0),
        "link set vx up".to_string(),
    ] {
        host.ip(&command).unwrap_or_else(|error| panic!("{error}"));
    }
}

impl Net {
    /// The same on another host: address and device of its VTEP, address of its vxlan device. See [`Net::new`].
    ///
    /// # Panics
    /// If `ip` fails.
    pub fn overlay(&self, host: &Namespace, vtep: (&str, &str, &str), address: (&str, &str)) {
        overlay(host, vtep, NEAR.0, address);
    }
}

/// Runs `action` on a thread that has moved into a host. What it opens stays there.
///
/// # Panics
/// If it may not, or if `action` panics.
pub fn inside<T: Send>(host: &Namespace, action: impl FnOnce() -> T + Send) -> T {
    let file = File::open(Path::new("/run/netns").join(host.name())).expect("the namespace");
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).expect("root");
            action()
        });
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Pings `count` times, one every `interval` seconds; how many were answered.
///
/// # Panics
/// If there is no `ping`.
pub fn ping(from: &Namespace, to: &str, count: u32, interval: f64) -> u32 {
    let mut command = from.command("ping");
    command.args(["-n", "-q", "-W", "2", "-i", &interval.to_string(), "-c", &count.to_string(), to]);
    let output = command.output().expect("ping");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    println!("ping {to}: {}", text.lines().filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" | "));
    let received = text.lines().find_map(|line| line.split(", ").find_map(|w| w.strip_suffix(" received")));
    received.and_then(|count| count.parse().ok()).unwrap_or_else(|| panic!("ping said: {text}"))
}

/// Pings like [`ping`], where nobody else does, and waits for answers that come after `ping` has gone home: it waits for the last ones no
/// longer than one interval, which is too short where two polling workers leave the tenants no core. The kernel counts them all.
///
/// # Panics
/// If there is no `ping`, or the kernel does not count.
pub fn ping_patiently(from: &Namespace, to: &str, count: u32, interval: f64) -> u32 {
    let before = echo_replies(from);
    let answered = ping(from, to, count, interval);
    let mut all = answered;
    crate::within(PATIENCE, || {
        all = answered.max(echo_replies(from) - before);
        all >= count
    });
    println!("{all} answers; {}", run(from.command("ip").args(["-s", "link"])));
    all
}

/// ICMP echo replies that a host's kernel has received.
fn echo_replies(host: &Namespace) -> u32 {
    let text = run(host.command("cat").arg("/proc/net/snmp"));
    let mut lines = text.lines().filter_map(|line| line.strip_prefix("Icmp: "));
    let (names, values) = (lines.next().expect("names"), lines.next().expect("values"));
    let mut pairs = names.split(' ').zip(values.split(' '));
    pairs.find(|(name, _)| *name == "InEchoReps").expect("InEchoReps").1.parse().expect("a number")
}

/// Removes namespaces of test runs that are over.
fn remove_left_behind() {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return };
    for name in names.flatten().filter_map(|entry| entry.file_name().into_string().ok()) {
        let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.trim_start_matches('-').split('-').next());
        if pid.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _absent = Command::new("ip").args(["netns", "del", &name]).output();
        }
    }
}
