//! What one process must run: plain data, checked before it gets here (crate `peregrine-config`),
//! read once by [`Engine::start`](crate::engine::Engine::start) and by the control thread.
//!
//! Indexes ([`NetworkId`], [`EndpointId`], [`UplinkId`]) are places in the lists below.

mod classes;
mod places;

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};

pub use self::classes::{ClassPlan, ClassesPlan, DscpSet, Prefix, PrefixError, RulePlan, WorkOrder};
pub use self::places::{PlaceId, Places};
use crate::types::{Class, CoreId, EndpointId, MacAddr, NetworkId, QueueId, UplinkId, Vni};

/// Everything that one daemon runs.
#[derive(Clone, Debug)]
pub struct Plan {
    /// One pinned polling thread each. 1 to [`WorkerId::LIMIT`](crate::types::WorkerId::LIMIT).
    pub workers: Vec<WorkerPlan>,
    /// How long a worker that may sleep looks in vain for work at full speed. After twice that time it sleeps.
    pub idle_after: Duration,
    /// It sleeps no longer than this. No config says it: only tests do, for which a call that was lost is to be a call that never comes.
    #[doc(hidden)]
    pub sleep_max: Duration,
    /// How the steps are spread over the workers.
    pub placement: PlacementMode,
    /// A worker that is busy for more than this share of its cycles, in percent, has too much to do: what it does is spread, if
    /// placement is balanced. 50 to 99.
    pub balance_threshold: u8,
    /// The interfaces towards the underlay, 1 to [`UplinkId::LIMIT`]: each another one, with another local address. `chunk_size` and
    /// `ring_size` are the same on all, because a worker's sockets share their memory.
    pub uplinks: Vec<UplinkPlan>,
    /// The overlay networks that we serve.
    pub networks: Places<NetworkId, NetworkPlan>,
    /// The tenants on them.
    pub endpoints: Places<EndpointId, EndpointPlan>,
    /// How many of both there may be at the same time.
    pub capacity: Capacity,
    /// What is made ready before it is asked for.
    pub pools: Pools,
    /// The priority classes, and which packets belong to which.
    pub classes: ClassesPlan,
    /// Where `peregrine status` and `stats` find the daemon.
    pub control_socket: PathBuf,
    /// The group (gid) that owns that socket and may change what runs, besides root and the daemon's user; `None`: no group may.
    pub control_group: Option<u32>,
    /// Where what was declared at the control socket is kept; `None`: nowhere, and it is gone with the process.
    pub state: Option<PathBuf>,
}

/// The config's defaults, and nothing to run: a plan needs a worker and an uplink.
impl Default for Plan {
    fn default() -> Plan {
        Plan {
            workers: Vec::new(),
            idle_after: Duration::from_micros(50),
            sleep_max: crate::idle::SLEEP_MAX,
            placement: PlacementMode::default(),
            balance_threshold: 85,
            uplinks: Vec::new(),
            networks: Places::default(),
            endpoints: Places::default(),
            capacity: Capacity::default(),
            pools: Pools::default(),
            classes: ClassesPlan::default(),
            control_socket: PathBuf::new(),
            control_group: None,
            state: None,
        }
    }
}

impl Plan {
    /// The uplink with this id; ids in a plan are always in range.
    pub fn uplink(&self, id: UplinkId) -> Option<&UplinkPlan> {
        self.uplinks.get(id.index())
    }

    /// Some uplink is to have rings for urgent frames.
    pub fn has_early(&self) -> bool {
        self.uplinks.iter().any(|uplink| uplink.early != Early::Off)
    }

    /// The network with this id; ids in a plan are always in range.
    pub fn network(&self, id: NetworkId) -> Option<&NetworkPlan> {
        self.networks.get(id)
    }

    /// Indexes of networks are below this, whatever comes.
    pub fn networks_max(&self) -> usize {
        self.networks.end().max(self.capacity.networks.into())
    }

    /// Indexes of endpoints are below this, whatever comes.
    pub fn endpoints_max(&self) -> usize {
        self.endpoints.end().max(self.capacity.endpoints.into())
    }

    /// There are at most so many stations of endpoints, whatever comes: as many as endpoints with one each, or as the plan begins with.
    pub fn stations_max(&self) -> usize {
        let stations = self.endpoints.values().map(|endpoint| 1 + endpoint.more.len()).sum();
        self.endpoints_max().max(stations)
    }

    /// The endpoint with this id.
    pub fn endpoint(&self, id: EndpointId) -> Option<&EndpointPlan> {
        self.endpoints.get(id)
    }
}

/// Room for what comes while the workers run: they allocate nothing then. What the plan begins with has room in any case.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Capacity {
    /// Networks, 1 to 4096.
    pub networks: u16,
    /// Endpoints, 1 to 65,534, and as many stations behind them. Each takes some 1.5 KB in each worker, whether it is there or not.
    pub endpoints: u16,
    /// Learned addresses of networks that come: the sum of their `fdb_limit`s. Each takes some 50 bytes.
    pub addresses: u32,
}

impl Default for Capacity {
    fn default() -> Capacity {
        Capacity { networks: 256, endpoints: 4096, addresses: 65_536 }
    }
}

/// How much is made ready before it is asked for; 0: nothing. When half is left, more is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Pools {
    /// Network namespaces with a veth and an open port.
    pub containers: u16,
    /// Memory for tenants that we connect to, where it is of the size that the config's defaults give (4.1 MiB).
    pub memif_regions: u16,
}

/// How the steps of a flow's way are spread over the workers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum PlacementMode {
    /// All on the worker where its frames enter, until that one has too much to do: then flows and steps move to where
    /// measured costs promise a gain, and back when load falls.
    #[default]
    Balanced,
    /// All on the worker where its frames enter, as far as they are not bound to another.
    RunToCompletion,
    /// One step after the other on the next worker: step *s* of a flow on worker (base + *s*) mod *N*, the base by the flow's hash
    /// (FALCON, EuroSys 2021, in the form that puts consecutive steps on distinct workers whenever there are enough).
    Static,
    /// The same with FALCON's published hash: each step on worker `hash_32(flow hash + device)` mod *N*. What is wrong
    /// with it: consecutive steps often share a worker, and with three workers only a hundredth of the flows has a step on each. To compare with.
    StaticHashed,
}

impl PlacementMode {
    /// All of them.
    pub const ALL: [PlacementMode; 4] = [
        PlacementMode::Balanced,
        PlacementMode::RunToCompletion,
        PlacementMode::Static,
        PlacementMode::StaticHashed,
    ];

    /// The word used in the config and in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            PlacementMode::Balanced => "balanced",
            PlacementMode::RunToCompletion => "run-to-completion",
            PlacementMode::Static => "static",
            PlacementMode::StaticHashed => "static-hashed",
        }
    }
}

/// One pinned worker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct WorkerPlan {
    /// The CPU it runs on, best alone.
    pub core: CoreId,
    /// Its priority where it is not alone: −20 (highest) to 19, as for setpriority(2). A worker that loses its core
    /// for milliseconds loses frames that the rings cannot hold; one with −20 leaves little to the others. `None`: that
    /// of the process.
    pub nice: Option<i8>,
    /// What it does while there is nothing to do.
    pub idle: IdleMode,
}

impl WorkerPlan {
    /// On this CPU, with the defaults.
    pub fn on(core: CoreId) -> WorkerPlan {
        WorkerPlan { core, nice: None, idle: IdleMode::default() }
    }
}

/// What a worker does while there is nothing to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum IdleMode {
    /// It looks for work at full speed: nothing is noticed sooner, and its core is always busy.
    #[default]
    Busy,
    /// It looks for some time, then pauses between looks, then sleeps until something happens.
    Adaptive,
}

impl IdleMode {
    /// As the config says it.
    pub const fn name(self) -> &'static str {
        match self {
            IdleMode::Busy => "busy",
            IdleMode::Adaptive => "adaptive",
        }
    }
}

/// An uplink: an interface, its AF_XDP sockets and our address as a VTEP.
#[derive(Clone, Debug)]
pub struct UplinkPlan {
    /// Name of the interface.
    pub interface: String,
    /// IEEE 802.1Q tag of the underlay's frames: the VLAN's number, 1 to 4094. The addresses are then those of the kernel's VLAN device
    /// on this interface. `None`: untagged.
    pub vlan: Option<u16>,
    /// Which receive queues get a socket.
    pub queues: Queues,
    /// How the sockets are bound.
    pub mode: XdpMode,
    /// Our VTEP addresses, 1 to 8 of either family; each must be an address of the interface. What is sent comes from the first of the
    /// remote's family, unless the network says otherwise.
    pub locals: Vec<IpAddr>,
    /// UDP destination port of VXLAN, both ways (IANA: 4789), of networks that have none of their own.
    pub port: u16,
    /// UDP source ports of what we send lie in this range, by inner flow (RFC 7348 §4.1 recommends 49152–65535).
    pub source_ports: std::ops::RangeInclusive<u16>,
    /// Outer TTL (hop limit) of what we send.
    pub ttl: u8,
    /// Whether what we send has an outer UDP checksum.
    pub udp_checksum: UdpChecksum,
    /// Take frames over IPv6 whose outer UDP checksum is zero (RFC 6935 §5, RFC 6936 §4). Over IPv4 they are always taken.
    pub accept_zero_checksum: bool,
    /// Bytes per UMEM chunk: 2048 or 4096. 256 of them are the kernel's XDP headroom.
    pub chunk_size: u32,
    /// Descriptors per ring (fill, completion, rx, tx): a power of two.
    pub ring_size: u32,
    /// Whether urgent frames have rings of their own from the driver on.
    pub early: Early,
    /// Settings of the interface that break or slow AF_XDP are set right at the start and put back at the end.
    pub fix: bool,
}

impl UplinkPlan {
    /// The first of our addresses.
    pub fn local(&self) -> IpAddr {
        self.locals.first().copied().unwrap_or(IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED))
    }

    /// With the config's defaults.
    pub fn new(interface: &str, local: IpAddr) -> UplinkPlan {
        UplinkPlan {
            interface: interface.to_owned(),
            vlan: None,
            queues: Queues::All,
            mode: XdpMode::PreferZeroCopy,
            locals: vec![local],
            port: 4789,
            source_ports: 49152..=65535,
            ttl: 64,
            udp_checksum: UdpChecksum::default(),
            accept_zero_checksum: true,
            chunk_size: 2048,
            ring_size: 2048,
            early: Early::Off,
            fix: false,
        }
    }
}

/// Over which IP what we send has an outer UDP checksum (RFC 7348 §4.1: it should be zero over IPv4; RFC 8200 §8.1: over IPv6 it must be
/// there, unless the other side takes zero by RFC 6935).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct UdpChecksum {
    /// Over IPv4.
    pub ipv4: bool,
    /// Over IPv6.
    pub ipv6: bool,
}

impl Default for UdpChecksum {
    fn default() -> UdpChecksum {
        UdpChecksum { ipv4: false, ipv6: true }
    }
}

/// Which queues of an interface are ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Queues {
    /// All that the interface has when we start.
    All,
    /// Only these; the others' frames pass to the kernel and are counted as `no socket`.
    List(Vec<QueueId>),
}

/// How AF_XDP sockets are bound, and what to do when the driver cannot.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// Native XDP with zero-copy, or refuse to start.
    RequireZeroCopy,
    /// Zero-copy where the driver has it, native with copy otherwise.
    PreferZeroCopy,
    /// Native XDP in the driver, frames copied by the kernel.
    Copy,
    /// Generic XDP (on socket buffers): any driver, slowest.
    Generic,
}

impl XdpMode {
    /// The word used in the config, on the command line and in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            XdpMode::RequireZeroCopy => "require-zero-copy",
            XdpMode::PreferZeroCopy => "prefer-zero-copy",
            XdpMode::Copy => "copy",
            XdpMode::Generic => "generic",
        }
    }
}

/// Whether each queue gets a second AF_XDP socket, so that urgent frames have an rx ring and a tx ring of their own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Early {
    /// One socket for everything.
    #[default]
    Off,
    /// If the kernel gives them on all queues of the uplink; otherwise one for everything.
    IfPossible,
    /// Or refuse to start.
    On,
}

/// One overlay network.
#[derive(Clone, Debug)]
pub struct NetworkPlan {
    /// For people.
    pub name: String,
    /// Its number on the wire.
    pub vni: Vni,
    /// Largest inner IP packet, in bytes (the tenants' MTU).
    pub mtu: u16,
    /// Its own UDP destination port; `None`: the uplink's.
    pub port: Option<u16>,
    /// The VTEP address from which its frames are sent, one of some uplink's; `None`: the first of the remote's family on the uplink by
    /// which it is reached.
    pub local: Option<IpAddr>,
    /// The VTEPs that may send to it and that broadcast goes to.
    pub remotes: Vec<IpAddr>,
    /// Any other VTEP may send to it, too.
    pub any_remote: bool,
    /// What happens to frames whose VXLAN header has reserved bits set.
    pub reserved_bits: ReservedBits,
    /// What happens to inner frames that have a VLAN tag, both ways.
    pub inner_vlan: InnerVlan,
    /// DSCP of the outer header.
    pub dscp: OuterDscp,
    /// Answer ARP requests and neighbour solicitations of tenants for addresses that are known, instead of flooding them.
    pub suppression: bool,
    /// The prefixes of its stations' addresses: of which length those are that containers get on it. Outside of them it is that of one address.
    pub subnets: Vec<Prefix>,
    /// Whose addresses "packet too big" is told from, at most one of each family. Where there is none, the packet's destination is taken.
    /// Containers have their default routes by them.
    pub gateways: Vec<IpAddr>,
    /// Lower the MSS that TCP connections announce to what the network's MTU holds.
    pub clamp_mss: bool,
    /// Learn the MAC addresses behind the remotes from what they send.
    pub learning: bool,
    /// Learned addresses are forgotten after this long without a frame.
    pub ageing: Duration,
    /// At most this many learned addresses.
    pub fdb_limit: u32,
    /// A learned address that moved from remote to remote more often than this within `MOVE_WINDOW` stays where it is for `move_hold`;
    /// 0: it may always move.
    pub move_limit: u8,
    /// See `move_limit`.
    pub move_hold: Duration,
    /// Addresses that are known beforehand, each behind one of `remotes`.
    pub static_macs: Vec<StaticMac>,
    /// The class of its packets that no rule names.
    pub class: Class,
}

impl NetworkPlan {
    /// With the config's defaults, and no remotes.
    pub fn new(name: &str, vni: Vni) -> NetworkPlan {
        NetworkPlan {
            name: name.to_owned(),
            vni,
            mtu: 1450,
            port: None,
            local: None,
            remotes: Vec::new(),
            any_remote: false,
            reserved_bits: ReservedBits::default(),
            inner_vlan: InnerVlan::default(),
            dscp: OuterDscp::default(),
            suppression: true,
            subnets: Vec::new(),
            gateways: Vec::new(),
            clamp_mss: false,
            learning: true,
            ageing: Duration::from_secs(300),
            fdb_limit: 4096,
            move_limit: 5,
            move_hold: Duration::from_secs(30),
            static_macs: Vec::new(),
            class: Class::NORMAL,
        }
    }

    /// The length of the longest of its subnets that holds an address; where none does, that of one address.
    pub fn prefix_bits(&self, address: IpAddr) -> u8 {
        let bits = self.subnets.iter().filter(|subnet| subnet.holds(address)).map(Prefix::bits);
        bits.max().unwrap_or(if address.is_ipv4() { 32 } else { 128 })
    }
}

/// Moves of an address are counted within so long.
pub const MOVE_WINDOW: Duration = Duration::from_secs(10);

/// An address that is known beforehand.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaticMac {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// The VTEP that it is behind.
    pub remote: IpAddr,
    /// Its IP addresses, for which ARP and neighbour solicitations are answered.
    pub addresses: Vec<IpAddr>,
}

/// Reserved bits of the VXLAN header that are set (RFC 7348 §5: ignored on receipt).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReservedBits {
    /// As the RFC says.
    #[default]
    Ignore,
    /// The frame is dropped: it may be of an extension (VXLAN-GPE, group policy) that means something else.
    Refuse,
}

/// Inner frames with a VLAN tag (RFC 7348 §6.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum InnerVlan {
    /// Dropped, as the RFC has it unless something else is configured.
    #[default]
    Drop,
    /// The outermost tag is taken off.
    Strip,
    /// They go through as they are.
    Carry,
}

/// Where the DSCP of the outer header comes from (RFC 2983 §4: pipe and uniform model).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum OuterDscp {
    /// The class of the packet says it.
    #[default]
    ByClass,
    /// It is the inner one; 0 for what is not IP.
    Copy,
    /// Always the same, 0 to 63.
    Fixed(u8),
}

/// A tenant on one network: its rings or its port, and the station behind them. There may be [`more`](Self::more) than one; who has the
/// place, what is counted and what is limited is the tenant, with all of them.
#[derive(Clone, Debug)]
pub struct EndpointPlan {
    /// For people.
    pub name: String,
    /// The network it is on.
    pub network: NetworkId,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its IP addresses: ARP and neighbour solicitations for them are answered, and they are announced. Forwarding is by MAC.
    pub addresses: Vec<IpAddr>,
    /// Other stations behind the same rings, on the same network. They come and go by a change of this place, and the tenant stays
    /// connected; which one is the first makes no difference to a frame.
    pub more: Vec<Station>,
    /// Drop what the tenant sends from another source MAC than its stations'.
    pub anti_spoofing: bool,
    /// Frames a second of its that may be flooded (broadcast, multicast, unknown destination); `None`: no limit of its own.
    pub storm_limit: Option<u32>,
    /// Announce its addresses in the network when it connects or moves (gratuitous ARP, unsolicited neighbour advertisement).
    pub announce: bool,
    /// What one of its stations sends to another one goes back to it, as with a bridge's hairpin mode (IEEE 802.1Qbg: reflective relay). Without, as
    /// a bridge (IEEE 802.1Q) never sends a frame to where it came from: a bridge inside the tenant would learn the sender on the wrong side.
    pub hairpin: bool,
    /// How it is attached.
    pub port: PortPlan,
}

impl EndpointPlan {
    /// With the config's defaults, and no IP addresses.
    pub fn new(name: &str, network: NetworkId, mac: MacAddr, port: impl Into<PortPlan>) -> EndpointPlan {
        EndpointPlan {
            name: name.to_owned(),
            network,
            mac,
            addresses: Vec::new(),
            more: Vec::new(),
            anti_spoofing: true,
            storm_limit: None,
            announce: true,
            hairpin: false,
            port: port.into(),
        }
    }

    /// All stations behind its rings, the first one first.
    pub fn stations(&self) -> impl Iterator<Item = StationRef<'_>> + Clone {
        let first = StationRef { name: &self.name, mac: self.mac, addresses: &self.addresses };
        let more = self.more.iter().map(|station| StationRef {
            name: &station.name,
            mac: station.mac,
            addresses: &station.addresses,
        });
        std::iter::once(first).chain(more)
    }
}

/// A station behind the rings of a tenant that has another one already.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Station {
    /// For people.
    pub name: String,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its IP addresses, as those of [`EndpointPlan`].
    pub addresses: Vec<IpAddr>,
}

/// A station of an endpoint's, the first one or another.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StationRef<'p> {
    /// For people.
    pub name: &'p str,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its IP addresses.
    pub addresses: &'p [IpAddr],
}

/// How an endpoint is attached.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum PortPlan {
    /// To a program that speaks memif.
    Memif(MemifPlan),
    /// To a container that knows nothing of us.
    Veth(VethPlan),
}

impl PortPlan {
    /// What one port at most may be.
    pub fn key(&self) -> PortKey {
        match self {
            PortPlan::Memif(memif) => PortKey::Memif(memif.socket.clone(), memif.id),
            PortPlan::Veth(veth) if veth.create => PortKey::Made(veth.namespace.clone()),
            PortPlan::Veth(veth) => PortKey::Veth(veth.namespace.clone(), veth.interface.clone()),
        }
    }

    /// If it is a memif interface.
    pub fn memif(&self) -> Option<&MemifPlan> {
        match self {
            PortPlan::Memif(memif) => Some(memif),
            PortPlan::Veth(_) => None,
        }
    }

    /// The same, to be changed.
    pub fn memif_mut(&mut self) -> Option<&mut MemifPlan> {
        match self {
            PortPlan::Memif(memif) => Some(memif),
            PortPlan::Veth(_) => None,
        }
    }

    /// If it is a container's.
    pub fn veth(&self) -> Option<&VethPlan> {
        match self {
            PortPlan::Veth(veth) => Some(veth),
            PortPlan::Memif(_) => None,
        }
    }
}

/// Where a port is.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum PortKey {
    /// A socket and an interface's id there.
    Memif(peregrine_memif::SocketAddr, u32),
    /// A namespace that others made, and the name of an interface there.
    Veth(NamespaceRef, String),
    /// A namespace that is made with it.
    Made(NamespaceRef),
}

impl From<MemifPlan> for PortPlan {
    fn from(memif: MemifPlan) -> PortPlan {
        PortPlan::Memif(memif)
    }
}

impl From<VethPlan> for PortPlan {
    fn from(veth: VethPlan) -> PortPlan {
        PortPlan::Veth(veth)
    }
}

/// A veth pair that we make: one end in a container's network namespace, with the endpoint's addresses and its network's MTU, the other
/// one ours.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VethPlan {
    /// Where the container's end is.
    pub namespace: NamespaceRef,
    /// The namespace is made with the port, and goes with it.
    pub create: bool,
    /// The name of the container's end.
    pub interface: String,
    /// What the container sends to others than its network goes to the network's gateways.
    pub default_route: bool,
    /// Packets that may wait each way: a power of two from 64 to 4096.
    pub ring_size: u32,
}

impl VethPlan {
    /// The largest IP packet: a frame has to lie in one page, with room in front and behind that the kernel wants.
    pub const MTU_MAX: u16 = 3400;

    /// With the config's defaults.
    pub fn new(namespace: NamespaceRef) -> VethPlan {
        VethPlan {
            namespace,
            create: false,
            interface: "eth0".to_owned(),
            default_route: true,
            ring_size: 256,
        }
    }
}

/// A network namespace.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum NamespaceRef {
    /// One that `ip netns` knows.
    Name(String),
    /// What lies at this path, a file that was bound to it.
    Path(PathBuf),
    /// That of a process.
    Pid(u32),
}

impl std::fmt::Display for NamespaceRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            NamespaceRef::Name(name) => write!(f, "network namespace '{}'", name.escape_debug()),
            NamespaceRef::Path(path) => {
                write!(f, "network namespace {}", path.display().to_string().escape_debug())
            }
            NamespaceRef::Pid(pid) => write!(f, "network namespace of process {pid}"),
        }
    }
}

/// A memif interface, in either role.
#[derive(Clone, PartialEq, Eq)]
pub struct MemifPlan {
    /// Where the server's socket is. Endpoints may share one, each with its own id, if all on it have the same role.
    pub socket: peregrine_memif::SocketAddr,
    /// Interface id within the socket.
    pub id: u32,
    /// What the client must know, up to 24 bytes; empty for none.
    pub secret: Vec<u8>,
    /// Rings in each direction, 1 to 8: as server the most that we take, as client what we offer.
    pub queue_pairs: u16,
    /// Take and send packets in several buffers (chains), if one is too small.
    pub chains: bool,
    /// Which side we are.
    pub role: MemifRole,
}

impl MemifPlan {
    /// A server with the defaults: one queue pair, no secret, no chains, sealed memory of at most 128 MiB, and a socket for us
    /// and our group.
    pub fn server(socket: peregrine_memif::SocketAddr, id: u32) -> MemifPlan {
        let mode = socket.path().map(|_| 0o660);
        let role = MemifRole::Server {
            mode,
            owner: None,
            group: None,
            allow_unsealed: false,
            memory_bytes_max: 128 << 20,
        };
        MemifPlan { socket, id, secret: Vec::new(), queue_pairs: 1, chains: false, role }
    }
}

/// Which side of a memif connection we are, and what only that side decides.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum MemifRole {
    /// We listen; the tenant connects and owns the memory.
    Server {
        /// Permission bits of a path socket.
        mode: Option<u32>,
        /// Owner of a path socket (uid); `None`: ours.
        owner: Option<u32>,
        /// Group of a path socket (gid); `None`: ours.
        group: Option<u32>,
        /// Accept memory that the tenant could truncate (it did not or could not seal it).
        allow_unsealed: bool,
        /// Most memory of the tenant that we map, in bytes.
        memory_bytes_max: u64,
    },
    /// We connect, and again after each end; the memory is ours. So the tenant outlives a restart of the daemon.
    Client {
        /// log2 of the slots of each ring, 5 to 14.
        ring_log2: u8,
        /// Bytes of each buffer, 2048 to 16384.
        buffer_bytes: u32,
        /// The user (uid) that the tenant's process must have; `None`: any. Nothing is told to another one.
        tenant_uid: Option<u32>,
    },
}

/// Without the secret: a plan may be printed.
impl std::fmt::Debug for MemifPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MemifPlan")
            .field("socket", &self.socket)
            .field("id", &self.id)
            .field("queue_pairs", &self.queue_pairs)
            .field("chains", &self.chains)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}
