//! The two hosts of a case, with a NIC each, as the driver has it after a reset of what cases change.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;

use peregrine_control::lab::Namespace;
use peregrine_tests::{Daemon, FAR, FAR_OVERLAY, NEAR, Net, Tenant, VNI, ping, ping_patiently, run, until};

use crate::host::REQUEST;
use crate::kinds::Kind;

/// The overlay's station behind Peregrine: a container, whose kernel answers pings.
pub const WEB: &str = Tenant::WEB.ip;

/// The hosts' addresses where the underlay has a tag.
const NEAR_TAGGED: &str = "198.18.0.1";
const FAR_TAGGED: &str = "198.18.0.2";

/// Descriptors of a receive queue of igb, if nobody asks for more.
const IGB_DESCRIPTORS: &str = "256";

/// Two hosts, and a container on the near one.
#[derive(Debug)]
pub struct Bench {
    /// The kind of both NICs.
    pub kind: Kind,
    /// The hosts. The NICs leave them when this is dropped.
    pub net: Net,
    /// The container.
    pub web: Namespace,
}

impl Bench {
    /// The NICs in their hosts, up, with addresses; behind the far one the kernel's vxlan device.
    pub fn new(kind: Kind) -> Bench {
        let net = Net::apart();
        let web = net.host("web");
        for (host, (address, name, mac)) in [(&net.far, FAR), (&net.near, NEAR)] {
            let found = device(mac);
            run(Command::new("ip").args(["link", "set", &found, "down", "mtu", "1500", "promisc", "off"]));
            if kind == Kind::Igb {
                run(Command::new("ethtool").args(["-G", &found, "rx", IGB_DESCRIPTORS]));
            }
            if kind.strips_vlans() {
                run(Command::new("ethtool").args(["-K", &found, "rxvlan", "on"]));
            }
            run(Command::new("ip").args(["link", "set", &found, "netns", host.name(), "name", name]));
            host.ip(&format!("link set {name} up")).expect("a NIC that comes up");
            if host.name() == net.near.name() {
                host.ip(&format!("addr add {address}/24 dev {name}")).expect("an address");
            }
        }
        net.overlay(&net.far, FAR, FAR_OVERLAY);
        let bench = Bench { kind, net, web };
        bench.wait_for_carrier(&bench.net.far, FAR.1, true);
        bench.wait_for_carrier(&bench.net.near, NEAR.1, true);
        bench
    }

    /// The config of the tests in the best mode of the driver, with the container, and with tenants on memif.
    pub fn config(&self, tenants: &[Tenant]) -> String {
        let config = Daemon::config(&self.net, &[FAR.0], tenants)
            .replace("mode = \"copy\"", &format!("mode = \"{}\"\n{}", self.kind.mode(), self.chunks()))
            .replace("mtu = 1450\n", "mtu = 1450\nsubnets = [\"10.42.0.0/24\"]\n");
        let container = format!("veth = {{ namespace = \"{}\" }}\n", self.web.name());
        config + &Tenant::WEB.endpoint("").replace("memif = {  }\n", &container)
    }

    /// The near host's address in VLAN 100.
    pub fn near_in_a_vlan(&self) {
        tagged(&self.net.near, NEAR.1, NEAR_TAGGED);
    }

    /// The far host's, and its overlay moved there.
    pub fn far_in_a_vlan(&self) {
        let far = &self.net.far;
        tagged(far, FAR.1, FAR_TAGGED);
        let (overlay, mac) = FAR_OVERLAY;
        let vx =
            format!("vx address {mac} mtu 1450 type vxlan id {VNI} local {FAR_TAGGED} remote {NEAR_TAGGED}");
        for command in [
            "link del vx".to_string(),
            format!("link add {vx} dstport 4789 noudpcsum"),
            format!("addr add {overlay}/24 dev vx"),
            "link set vx up".to_string(),
        ] {
            far.ip(&command).expect("the overlay");
        }
    }

    /// The config with the underlay in that VLAN.
    pub fn config_in_a_vlan(&self) -> String {
        let local = format!("local = \"{NEAR_TAGGED}\"\nvlan = 100");
        self.config(&[]).replace(FAR.0, FAR_TAGGED).replace(&format!("local = \"{}\"", NEAR.0), &local)
    }

    /// The line about chunks in such a config.
    pub fn chunks(&self) -> String {
        format!("chunk_size = {}", self.kind.chunk_size())
    }

    /// A daemon that has got the mode that it was to get, knows its way to the far host, and has the container attached.
    pub fn start_in(&self, config: &str, mode: &str) -> Daemon {
        let daemon = Daemon::start_with(&self.net, config);
        let status = daemon.status();
        let uplink = &status["uplinks"][0];
        assert_eq!(uplink["driver"], self.kind.driver());
        assert_eq!(uplink["mode_actual"], mode, "{uplink}");
        daemon.wait_for_next_hops();
        until("the container to be attached", || {
            let status = daemon.status();
            let mut all = status["endpoints"].as_array().into_iter().flatten();
            all.any(|endpoint| endpoint["name"] == Tenant::WEB.name && endpoint["connected"] == true)
        });
        daemon
    }

    /// The same in the best mode that the driver has.
    pub fn start(&self, config: &str) -> Daemon {
        self.start_in(config, self.kind.actual_mode())
    }

    /// A start that is refused in one line, with each of these words in it: the line.
    #[track_caller]
    pub fn refused(&self, config: &str, words: &[&str]) -> String {
        let said = Daemon::refused(&self.net, config).said;
        for word in words {
            assert!(said.contains(word), "no '{word}' in: {said}");
        }
        said
    }

    /// Does on the near host what a message says: the command between its backquotes.
    #[track_caller]
    pub fn obey(&self, said: &str, start: &str) {
        let mut quoted = said.split('`').skip(1).step_by(2);
        let command =
            quoted.find(|text| text.starts_with(start)).unwrap_or_else(|| panic!("no command in: {said}"));
        let mut words = command.split_whitespace();
        run(self.net.near.command(words.next().unwrap_or_default()).args(words));
    }

    /// The same beside other pings from there, of which the kernel counts the answers as well.
    #[track_caller]
    pub fn pings_beside(&self, count: u32) {
        until("an answer", || ping(&self.net.far, WEB, 1, 1.0) == 1);
        assert_eq!(ping(&self.net.far, WEB, count, 0.01), count, "of {count} pings");
    }

    /// The far host pings the container: first until there is an answer, then this often, and each must be answered.
    #[track_caller]
    pub fn pings(&self, count: u32) {
        until("an answer", || ping(&self.net.far, WEB, 1, 1.0) == 1);
        assert_eq!(ping_patiently(&self.net.far, WEB, count, 0.003), count, "of {count} pings");
    }

    /// Waits until a NIC sees a link, or none.
    pub fn wait_for_carrier(&self, host: &Namespace, device: &str, is_there: bool) {
        until("the link to come or go", || {
            let state = host.ip(&format!("link show {device}")).expect("a NIC");
            state.contains("LOWER_UP") == is_there
        });
    }

    /// Pulls the cable of the near NIC, or puts it in again.
    pub fn cable(&self, is_in: bool) {
        println!("{REQUEST}set_link near {}", if is_in { "on" } else { "off" });
        self.wait_for_carrier(&self.net.near, NEAR.1, is_in);
    }
}

fn tagged(host: &Namespace, device: &str, address: &str) {
    host.ip(&format!("link add link {device} name {device}.100 type vlan id 100")).expect("a VLAN");
    host.ip(&format!("addr add {address}/24 dev {device}.100")).expect("an address");
    host.ip(&format!("link set {device}.100 up")).expect("up");
}

/// The PCI device of the NIC with this address; before it is in a host.
pub fn pci_device(mac: &str) -> PathBuf {
    let link = PathBuf::from("/sys/class/net").join(device(mac)).join("device");
    let path = std::fs::canonicalize(link).expect("a device");
    let is_pci = |path: &&std::path::Path| path.join("remove").is_file() && path.join("config").is_file();
    path.ancestors().find(is_pci).expect("a PCI device").to_path_buf()
}

/// The NIC with this address, when it has come back from where it was.
pub fn device(mac: &str) -> String {
    let mut found = None;
    until("the NIC to be there", || {
        let all = std::fs::read_dir("/sys/class/net").expect("sysfs").flatten().map(|entry| entry.path());
        let has_it = |path: &PathBuf| {
            std::fs::read_to_string(path.join("address")).is_ok_and(|text| text.trim() == mac)
        };
        found = all.into_iter().find(has_it).and_then(|path| Some(path.file_name()?.to_str()?.to_string()));
        found.is_some()
    });
    found.expect("a name")
}

/// A counter of a device, as the kernel has it in sysfs.
pub fn counter(host: &Namespace, device: &str, name: &str) -> u64 {
    let path = format!("/sys/class/net/{device}/statistics/{name}");
    run(host.command("cat").arg(path)).trim().parse().expect("a number")
}

/// All that a driver counts, and the kernel for it.
pub fn counters(host: &Namespace, device: &str) -> BTreeMap<String, u64> {
    let text = run(host.command("ethtool").args(["-S", device]));
    let one = |line: &str| {
        let (name, value) = line.rsplit_once(':')?;
        Some((name.trim().to_owned(), value.trim().parse().ok()?))
    };
    text.lines().filter_map(one).collect()
}
