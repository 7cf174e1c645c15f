//! Open vSwitch with its userspace datapath (`datapath_type=netdev`), in the near host, with files of its own: a bridge for
//! each network, a vxlan port for each remote, a veth as each tenant, and `br-phy` with the wire and the VTEP's addresses.

use std::process::Command;
use std::time::Duration;

use peregrine_tests::{NEAR, Net, OpenVswitch, PATIENCE, RawSocket, within};

use super::{Dscp, Has, InnerVlan, Network, Setup, Sut};

pub struct Ovs {
    tenants: Vec<RawSocket>,
    switch: OpenVswitch,
}

impl Ovs {
    pub fn start(net: &Net, setup: &Setup) -> Result<Ovs, String> {
        let mut ovs = Ovs { tenants: Vec::new(), switch: OpenVswitch::start(&net.near, &net.file("ovs"))? };
        ovs.configure(net, setup)?;
        Ok(ovs)
    }

    fn configure(&mut self, net: &Net, setup: &Setup) -> Result<(), String> {
        let host = &net.near;
        let tag = setup.vlan.map_or(String::new(), |vlan| format!(" tag={vlan}"));
        let mut changes = vec![
            "add-br br-phy".to_string(),
            format!(
                "set bridge br-phy datapath_type=netdev fail-mode=standalone other_config:hwaddr={}",
                NEAR.2
            ),
            format!("add-port br-phy {}", NEAR.1),
            format!("set interface br-phy mtu_request={}", setup.wire_mtu),
        ];
        if !tag.is_empty() {
            changes.push(format!("set port br-phy{tag}"));
        }
        for network in setup.networks {
            changes.push(format!("add-br br{}", network.vni));
            changes.push(format!("set bridge br{} datapath_type=netdev fail-mode=standalone", network.vni));
            if let Some(seconds) = network.ageing_s {
                changes.push(format!("set bridge br{} other_config:mac-aging-time={seconds}", network.vni));
            }
            if let Some(limit) = network.fdb_limit {
                changes.push(format!("set bridge br{} other_config:mac-table-size={limit}", network.vni));
            }
            for remote in network.remotes {
                changes.extend(tunnel(setup, network, remote));
            }
            for _ in 0..network.tenants {
                let (number, mtu) = (self.tenants.len(), setup.wire_mtu.max(4000));
                let ip = |command: String| host.ip(&command).map_err(|error| error.to_string());
                ip(format!("link add t{number} mtu {mtu} type veth peer name p{number} mtu {mtu}"))?;
                ip(format!("link set t{number} up"))?;
                ip(format!("link set p{number} up"))?;
                self.tenants.push(RawSocket::open(host, &format!("p{number}")));
                changes.push(format!("add-port br{} t{number}{}", network.vni, access(network)));
            }
        }
        self.switch.set(&changes)?;
        super::linux::addresses(host, setup, "br-phy");
        // Its routes come by netlink, its neighbours from what passes: those of the kernel do not count.
        let all = [
            (super::A4, super::A_MAC),
            (super::B4, super::B_MAC),
            (super::A6, super::A_MAC),
            (super::B6, super::B_MAC),
        ];
        for (address, mac) in all {
            self.switch.tell(&format!("tnl/neigh/set br-phy {address} {mac}"))?;
        }
        let (first, last) = setup.source_ports;
        self.switch.tell(&format!("tnl/egress_port_range {first} {last}"))?;
        for network in setup.networks {
            for (mac, remote, _) in network.known {
                let vlan = u8::from(!access(network).is_empty());
                self.switch.tell(&format!(
                    "fdb/add br{} {} {vlan} {mac}",
                    network.vni,
                    port(network, remote)
                ))?;
            }
        }
        let last = super::LOCAL4;
        let there = || self.switch.tell("ovs/route/show").is_ok_and(|text| text.contains(last));
        if within(PATIENCE, there) {
            Ok(())
        } else {
            Err("ovs-vswitchd does not see the VTEP's address".into())
        }
    }
}

/// The name of the port towards a remote.
fn port(network: &Network, remote: &str) -> String {
    let hash = remote.bytes().fold(0u32, |sum, byte| sum.wrapping_mul(31).wrapping_add(u32::from(byte)));
    format!("v{}x{:x}", network.vni, hash & 0xffff)
}

fn access(network: &Network) -> &'static str {
    if network.inner_vlan == InnerVlan::Drop { " tag=1 vlan_mode=access" } else { "" }
}

fn tunnel(setup: &Setup, network: &Network, remote: &str) -> Vec<String> {
    let name = port(network, remote);
    let tos = match network.dscp {
        Dscp::ByClass => String::new(),
        Dscp::Copy => " options:tos=inherit".into(),
        Dscp::Fixed(value) => format!(" options:tos={}", value << 2),
    };
    let csum = if remote.contains(':') { setup.checksum6 } else { setup.checksum4 };
    vec![
        format!("add-port br{} {name}{}", network.vni, access(network)),
        // Protected ports do not send to each other: split horizon.
        format!("set port {name} protected=true"),
        format!(
            "set interface {name} type=vxlan options:remote_ip={remote} options:local_ip={} options:key={} options:dst_port={} \
             options:csum={csum} options:df_default=true options:ttl={}{tos}",
            network.from(),
            network.vni,
            network.port(),
            setup.ttl
        ),
    ]
}

impl Sut for Ovs {
    fn lacks(&self, what: Has) -> Option<&'static str> {
        Some(match what {
            Has::Classes => "not with the normal pipeline (flows can set the DSCP)",
            Has::RefuseReserved => "no such option",
            Has::VlanStripped => "no such option for a tunnel (flows can)",
            Has::Suppression => "not with the normal pipeline (flows of a controller can)",
            Has::StormLimit => "not with the normal pipeline (meters can)",
            Has::Damping => "none",
            Has::Announcements => "left to the tenant or the hypervisor",
            Has::MssClamping => "none",
            Has::Reasons => "does not tell these reasons by counter",
            Has::RefuseZero6 => "no such option",
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
        super::linux::received(&self.tenants[tenant], last, time)
    }

    fn remote(&mut self, _net: &Net, network: &Network, add: bool, address: &str) -> Result<(), String> {
        if add {
            return self.switch.set(&tunnel(&Setup::new(&[]), network, address)).map(drop);
        }
        self.switch.set(&[format!("del-port {}", port(network, address))]).map(drop)
    }

    fn flush(&mut self, _net: &Net, network: &Network) -> Result<(), String> {
        self.switch.tell(&format!("fdb/flush br{}", network.vni)).map(drop)
    }
}

/// Its release, if it is installed.
pub fn version() -> Option<String> {
    let output = Command::new("ovs-vswitchd").arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    text.lines().next()?.rsplit(' ').next().map(str::to_string)
}
