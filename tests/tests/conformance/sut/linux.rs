//! Linux: for each network a vxlan device and a bridge, and a veth as each tenant. The options are those with which it comes
//! closest to the RFCs; the page names them.

use std::time::Duration;

use peregrine_control::lab::Namespace;
use peregrine_tests::{NEAR, Net, RawSocket, run};

use super::{Dscp, Has, InnerVlan, Network, Setup, Sut};

pub struct Linux {
    tenants: Vec<RawSocket>,
    filters: bool,
}

impl Linux {
    pub fn start(net: &Net, setup: &Setup) -> Result<Linux, String> {
        let host = &net.near;
        run(host.command("sysctl").args(["-qw", "net.ipv4.fib_multipath_hash_policy=1"]));
        // Where the kernel's bridge can hand frames to netfilter it does so by default, and that drops IP packets that are not sound.
        if std::path::Path::new("/proc/sys/net/bridge").exists() {
            for key in ["arptables", "iptables", "ip6tables"] {
                run(host.command("sysctl").args(["-qw", &format!("net.bridge.bridge-nf-call-{key}=0")]));
            }
        }
        // Not every kernel's bridge is built with VLANs.
        let filters = host.ip("link add probe type bridge vlan_filtering 1").is_ok();
        let _absent = host.ip("link del probe");
        let mut tenants = Vec::new();
        for network in setup.networks {
            overlay(host, setup, network, filters).map_err(|error| error.to_string())?;
            for _ in 0..network.tenants {
                let number = tenants.len();
                tenants.push(tenant(host, number, &format!("br{}", network.vni), setup)?);
            }
        }
        setup
            .networks
            .iter()
            .filter(|network| network.suppression)
            .try_for_each(|network| suppress(host, network))?;
        Ok(Linux { tenants, filters })
    }
}

/// A veth: one end is a port of the bridge, on the other the suite sends and receives.
fn tenant(host: &Namespace, number: usize, bridge: &str, setup: &Setup) -> Result<RawSocket, String> {
    // Longer than the network's, so that it can send what is too long.
    let mtu = setup.wire_mtu.max(4000);
    let ip = |command: String| host.ip(&command).map_err(|error| error.to_string());
    ip(format!("link add t{number} mtu {mtu} type veth peer name p{number} mtu {mtu}"))?;
    ip(format!("link set t{number} master {bridge}"))?;
    ip(format!("link set t{number} up"))?;
    ip(format!("link set p{number} up"))?;
    Ok(RawSocket::open(host, &format!("p{number}")))
}

fn overlay(
    host: &Namespace,
    setup: &Setup,
    network: &Network,
    filters: bool,
) -> Result<(), Box<dyn std::error::Error>> {
    let Network { vni, mtu, remotes, .. } = network;
    let (vx, br) = (format!("vx{vni}"), format!("br{vni}"));
    let from = network.from();
    let (first, last) = setup.source_ports;
    let mut options =
        format!("id {vni} local {from} dstport {} srcport {first} {last} ttl {}", network.port(), setup.ttl);
    if from.contains(':') {
        options += if setup.zero6 { " udp6zerocsumrx" } else { "" };
        options += if setup.checksum6 { "" } else { " udp6zerocsumtx" };
    } else {
        options += if setup.checksum4 { " df set udpcsum" } else { " df set noudpcsum" };
    }
    match network.dscp {
        Dscp::ByClass => {}
        Dscp::Copy => options += " tos inherit",
        Dscp::Fixed(value) => options += &format!(" tos {:#x}", value << 2),
    }
    if let Some(seconds) = network.ageing_s {
        options += &format!(" ageing {seconds}");
    }
    if let Some(limit) = network.fdb_limit {
        options += &format!(" maxaddress {limit}");
    }
    host.ip(&format!("link add {vx} mtu {mtu} type vxlan {options}"))?;
    host.ip(&format!("link add {br} type bridge mcast_snooping 0"))?;
    if filters && network.inner_vlan == InnerVlan::Drop && !network.suppression {
        host.ip(&format!("link set {br} type bridge vlan_filtering 1"))?;
    }
    if let Some(seconds) = network.ageing_s {
        host.ip(&format!("link set {br} type bridge ageing_time {}", seconds * 100))?;
    }
    host.ip(&format!("link set {vx} master {br}"))?;
    let fdb = |what: &str| run(host.command("bridge").arg("fdb").args(what.split_whitespace()));
    for remote in *remotes {
        fdb(&format!("append 00:00:00:00:00:00 dev {vx} dst {remote}"));
    }
    for (mac, remote, _) in network.known {
        fdb(&format!("add {mac} dev {vx} master static"));
        fdb(&format!("append {mac} dev {vx} self dst {remote}"));
    }
    host.ip(&format!("link set {vx} up"))?;
    host.ip(&format!("link set {br} up"))?;
    Ok(())
}

/// Last of all: a port that joins can change the bridge's own address, and then it forgets its neighbours.
fn suppress(host: &Namespace, network: &Network) -> Result<(), String> {
    let (vx, br) = (format!("vx{}", network.vni), format!("br{}", network.vni));
    // What IPv6 says by itself is no answer.
    host.ip(&format!("link set {br} addrgenmode none")).map_err(|error| error.to_string())?;
    for key in ["disable_ipv6=0", "accept_dad=0", "router_solicitations=0"] {
        run(host.command("sysctl").args(["-qw", &format!("net.ipv6.conf.{br}.{key}")]));
    }
    for (mac, _, addresses) in network.known {
        for address in *addresses {
            let neighbour = format!("neigh replace {address} lladdr {mac} dev {br} nud permanent");
            host.ip(&neighbour).map_err(|error| error.to_string())?;
        }
    }
    run(host.command("bridge").args(["link", "set", "dev", &vx, "neigh_suppress", "on"]));
    Ok(())
}

impl Sut for Linux {
    fn lacks(&self, what: Has) -> Option<&'static str> {
        Some(match what {
            Has::VlanDropped if !self.filters => "this kernel's bridge is built without VLANs",
            Has::Classes => "the vxlan device knows no classes (tc can rewrite the outer header)",
            Has::KnownRemotes => "takes frames from every address",
            Has::VlanStripped => "the vxlan device has no such option",
            Has::StormLimit => "the bridge has none (tc can police)",
            Has::Damping => "the bridge has none",
            Has::Announcements => "left to the tenant or the hypervisor",
            Has::MssClamping => "not in the bridge (nftables can)",
            Has::Reasons => "does not tell reasons by counter",
            _ => return None,
        })
    }

    fn send(&mut self, tenant: usize, frame: &[u8]) {
        self.tenants[tenant].send(frame);
    }

    fn receive(
        &mut self,
        tenant: usize,
        last: &dyn Fn(&[u8]) -> bool,
        time: Duration,
    ) -> Option<Vec<Vec<u8>>> {
        received(&self.tenants[tenant], last, time)
    }

    fn remote(&mut self, net: &Net, network: &Network, add: bool, address: &str) -> Result<(), String> {
        let verb = if add { "append" } else { "del" };
        let mut command = net.near.command("bridge");
        let entry = format!("fdb {verb} 00:00:00:00:00:00 dev vx{} dst {address}", network.vni);
        peregrine_control::lab::run(command.args(entry.split(' '))).map_err(|error| error.to_string())?;
        Ok(())
    }

    fn flush(&mut self, net: &Net, network: &Network) -> Result<(), String> {
        for what in [format!("dev vx{} self dynamic", network.vni), format!("dev br{} dynamic", network.vni)]
        {
            let mut command = net.near.command("bridge");
            command.args(["fdb", "flush"]).args(what.split(' '));
            peregrine_control::lab::run(&mut command).map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

/// What passes a packet socket, up to the frame that `last` picks.
pub fn received(socket: &RawSocket, last: &dyn Fn(&[u8]) -> bool, time: Duration) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    socket.next(time, |frame| {
        all.push(frame.to_vec());
        last(frame)
    })?;
    Some(all)
}

/// Address and routes of the underlay are the same for Linux and Peregrine.
pub fn underlay(host: &Namespace, setup: &Setup) -> Result<(), String> {
    let mut device = NEAR.1.to_string();
    if let Some(vlan) = setup.vlan {
        device = format!("{}.{vlan}", NEAR.1);
        let made = host.ip(&format!("link add link {} name {device} type vlan id {vlan}", NEAR.1));
        made.map_err(|_| format!("{} VLAN devices", crate::suite::KERNEL_LACKS))?;
    }
    addresses(host, setup, &device);
    Ok(())
}

/// The addresses of a VTEP and the ways to the remotes, by a device.
pub fn addresses(host: &Namespace, setup: &Setup, device: &str) {
    let ip = |command: &str| host.ip(command).unwrap_or_else(|error| panic!("{error}"));
    let set = |key: &str| run(host.command("sysctl").args(["-qw", &format!("net.ipv6.conf.{device}.{key}")]));
    let six = setup.locals.iter().any(|local| local.contains(':'));
    if six {
        ip(&format!("link set {device} addrgenmode none"));
        for key in ["disable_ipv6=0", "accept_dad=0", "router_solicitations=0"] {
            set(key);
        }
    }
    ip(&format!("link set {device} up"));
    for local in std::iter::once(&super::LOCAL4).chain(setup.locals) {
        let (length, nodad) = if local.contains(':') { (64, " nodad") } else { (24, "") };
        ip(&format!("addr add {local}/{length} dev {device}{nodad}"));
    }
    for (address, mac) in
        [(super::A4, super::A_MAC), (super::B4, super::B_MAC), (super::STRANGER4, super::A_MAC)]
    {
        ip(&format!("neigh replace {address} lladdr {mac} dev {device} nud permanent"));
    }
    ip(&format!("route add {} nexthop via {} nexthop via {}", super::ECMP4, super::A4, super::B4));
    ip(&format!(
        "route add {} nexthop via {} weight 3 nexthop via {}",
        super::WEIGHTED4,
        super::A4,
        super::B4
    ));
    for remote in [super::LEARN4, super::LITTLE4] {
        ip(&format!("route add {remote} via {}", super::A4));
    }
    ip(&format!("route add {} via {} mtu {}", super::SMALL4, super::A4, super::SMALL_MTU));
    if six {
        for (address, mac) in [(super::A6, super::A_MAC), (super::B6, super::B_MAC)] {
            ip(&format!("neigh replace {address} lladdr {mac} dev {device} nud permanent"));
        }
        ip(&format!("route add {} via {}", super::LEARN6, super::A6));
        ip(&format!("route add {} via {} mtu {}", super::SMALL6, super::A6, super::SMALL_MTU));
    }
}

/// Its release, without what a distribution adds.
pub fn version() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    text.chars().take_while(|letter| letter.is_ascii_digit() || *letter == '.').collect()
}
