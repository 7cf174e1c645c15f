//! What is under test: one of three VTEPs, set up in the same way, with a wire on one side and tenants on the other.

pub mod linux;
pub mod ovs;
pub mod peregrine;

use std::time::Duration;

use peregrine_tests::Net;

/// The near end's addresses as a VTEP: the first of each family is what is sent from unless something else is asked for.
pub const LOCAL4: &str = "192.0.2.1";
pub const OTHER_LOCAL4: &str = "192.0.2.9";
pub const LOCAL6: &str = "2001:db8::1";
/// The remotes. What is sent to them ends at the far end of the wire, where the suite reads it.
pub const A4: &str = "192.0.2.2";
pub const B4: &str = "192.0.2.3";
pub const A6: &str = "2001:db8::2";
pub const B6: &str = "2001:db8::3";
/// One behind two routers, those with the addresses of A and B.
pub const ECMP4: &str = "198.51.100.2";
/// One behind a route of a smaller MTU, `SMALL_MTU`.
pub const SMALL4: &str = "198.51.100.9";
pub const SMALL6: &str = "2001:db8:9::9";
pub const SMALL_MTU: usize = 1400;
/// As `ECMP4`, with a route that sends three times as much over A as over B.
pub const WEIGHTED4: &str = "198.51.100.3";
/// Ones of whose path nothing is known beforehand.
pub const LEARN4: &str = "198.51.100.10";
pub const LITTLE4: &str = "198.51.100.11";
pub const LEARN6: &str = "2001:db8:a::10";
/// No remote of any network.
pub const STRANGER4: &str = "192.0.2.66";

/// Link-layer addresses of the far end: A is the wire's own, B is another station there.
pub const A_MAC: &str = "02:00:00:00:0f:02";
pub const B_MAC: &str = "02:00:00:00:0f:03";

pub const TENANT_MAC: &str = "02:00:00:00:42:01";
pub const SECOND_MAC: &str = "02:00:00:00:42:03";

/// Inner VLAN tags.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum InnerVlan {
    #[default]
    Drop,
    Strip,
    Carry,
}

/// Outer DSCP.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Dscp {
    #[default]
    ByClass,
    Copy,
    Fixed(u8),
}

/// The DSCP of a priority class that there is beside the default one, and which packets belong to it.
pub const VOICE_DSCP: u8 = 46;
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Voice {
    #[default]
    None,
    /// All of the network.
    Network,
    /// Those to this UDP port.
    Port(u16),
}

/// An overlay network, with what is asked of it beyond the usual.
#[derive(Clone, Copy, Debug)]
pub struct Network {
    pub vni: u32,
    pub mtu: u16,
    pub remotes: &'static [&'static str],
    pub tenants: usize,
    pub port: Option<u16>,
    pub local: Option<&'static str>,
    pub any_remote: bool,
    pub refuse_reserved: bool,
    pub inner_vlan: InnerVlan,
    pub dscp: Dscp,
    pub voice: Voice,
    pub suppression: bool,
    pub gateways: &'static [&'static str],
    pub clamp_mss: bool,
    pub fdb_limit: Option<u32>,
    pub ageing_s: Option<u32>,
    pub move_limit: Option<u8>,
    pub storm_limit: Option<u32>,
    pub announce: bool,
    /// Stations known beforehand: address, remote, IP addresses.
    pub known: &'static [(&'static str, &'static str, &'static [&'static str])],
}

impl Network {
    pub const fn new(vni: u32, remotes: &'static [&'static str]) -> Network {
        Network {
            vni,
            mtu: 1500,
            remotes,
            tenants: 1,
            port: None,
            local: None,
            any_remote: false,
            refuse_reserved: false,
            inner_vlan: InnerVlan::Drop,
            dscp: Dscp::ByClass,
            voice: Voice::None,
            suppression: false,
            gateways: &[],
            clamp_mss: false,
            fdb_limit: None,
            ageing_s: None,
            move_limit: None,
            storm_limit: None,
            announce: false,
            known: &[],
        }
    }

    /// The address that its frames are sent from.
    pub fn from(&self) -> &'static str {
        let six = self.remotes.first().is_some_and(|remote| remote.contains(':'));
        self.local.unwrap_or(if six { LOCAL6 } else { LOCAL4 })
    }

    pub fn port(&self) -> u16 {
        self.port.unwrap_or(4789)
    }
}

/// A whole host.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub networks: &'static [Network],
    /// Underlay addresses beside `LOCAL4`.
    pub locals: &'static [&'static str],
    pub vlan: Option<u16>,
    pub wire_mtu: u16,
    /// Checksums over IPv4 on what is sent; and over IPv6.
    pub checksum4: bool,
    pub checksum6: bool,
    /// Zero checksums over IPv6 are taken.
    pub zero6: bool,
    pub ttl: u8,
    /// First and last.
    pub source_ports: (u16, u16),
}

impl Setup {
    pub const fn new(networks: &'static [Network]) -> Setup {
        Setup {
            networks,
            locals: &[],
            vlan: None,
            wire_mtu: 1600,
            checksum4: false,
            checksum6: true,
            zero6: true,
            ttl: 64,
            source_ports: (49152, 65535),
        }
    }

    pub fn network(&self, vni: u32) -> &'static Network {
        self.networks.iter().find(|network| network.vni == vni).expect("a network of the set-up")
    }
}

/// Options that a VTEP may not have.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Has {
    /// Only known remotes may send.
    KnownRemotes,
    /// Reserved bits refused.
    RefuseReserved,
    /// Inner VLAN tags dropped, or taken off.
    VlanDropped,
    VlanStripped,
    DscpCopied,
    DscpFixed,
    /// Priority classes with a DSCP each.
    Classes,
    PortPerNetwork,
    SeveralLocals,
    Suppression,
    StormLimit,
    LearningLimit,
    Damping,
    StaticEntries,
    Announcements,
    MssClamping,
    Reasons,
    /// Copies to several remotes.
    HeadEnd,
    Ecmp,
    PathMtu,
    Vlan,
    RefuseZero6,
}

/// A VTEP that runs. Tenants are counted over the networks, in their order.
pub trait Sut {
    /// Why it cannot do what is asked for.
    fn lacks(&self, what: Has) -> Option<&'static str>;
    /// A tenant sends.
    fn send(&mut self, tenant: usize, frame: &[u8]);
    /// What a tenant has got, up to a frame that `last` picks; `None` if that does not come in time.
    fn receive(
        &mut self,
        tenant: usize,
        last: &dyn Fn(&[u8]) -> bool,
        time: Duration,
    ) -> Option<Vec<Vec<u8>>>;
    /// How often frames were dropped for a reason, and for any.
    fn drops(&self, _reason: &str) -> Option<u64> {
        None
    }
    /// How often frames were left to the kernel for a reason.
    fn passed(&self, _reason: &str) -> Option<u64> {
        None
    }
    /// The remotes of a network while it runs.
    fn remote(&mut self, _net: &Net, _network: &Network, _add: bool, _address: &str) -> Result<(), String> {
        Err("no such command".into())
    }
    /// Forgets what was learned.
    fn flush(&mut self, _net: &Net, _network: &Network) -> Result<(), String> {
        Err("no such command".into())
    }
    /// A tenant goes and comes back.
    fn reconnect(&mut self, _net: &Net, _tenant: usize) {}
    /// Whether all is as it must be at the end.
    fn settle(&mut self) -> Result<(), String> {
        Ok(())
    }
}

/// Which one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    Peregrine,
    Linux,
    Ovs,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Peregrine, Kind::Linux, Kind::Ovs];

    /// Starts it in the near host; or why it does not run.
    pub fn start(self, net: &Net, setup: &Setup) -> Result<Box<dyn Sut>, String> {
        match self {
            Kind::Peregrine => Ok(Box::new(peregrine::Peregrine::start(net, setup)?)),
            Kind::Linux => Ok(Box::new(linux::Linux::start(net, setup)?)),
            Kind::Ovs => Ok(Box::new(ovs::Ovs::start(net, setup)?)),
        }
    }
}
