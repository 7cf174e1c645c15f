//! A worker's stages without its thread and without a wire: what the cases measure. Tenants are attached over real memif rings;
//! what would leave for the underlay is counted and thrown away.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;

use peregrine_dataplane::counters::WorkerCounters;
use peregrine_dataplane::fdb::{Destination, Fdb};
use peregrine_dataplane::frame::{Burst, FramePool};
use peregrine_dataplane::plan::{
    Capacity, EndpointPlan, MemifPlan, NetworkPlan, PlacementMode, Plan, UplinkPlan, WorkerPlan, XdpMode,
};
use peregrine_dataplane::stages::{self, Cx, Origin, Stage, Wire, Work, collect};
use peregrine_dataplane::tables::{NextHop, Tables};
use peregrine_dataplane::tenants::{Detached, TenantRings, Tenants};
use peregrine_dataplane::types::{CoreId, EndpointId, MacAddr, NetworkId, RemoteId, SourceId, UplinkId, Vni};
use peregrine_dataplane::wire::outer::{OVERHEAD_IPV4, OVERHEAD_IPV6, OuterFields, OuterHeaders, OwnFields};
use peregrine_memif::{ClientConfig, Interface, ServerConfig, SocketAddr};

/// Nothing is added to the stages.
static NO_WORK: Work = Work::none();

/// Our VTEP and the far one.
pub const LOCAL: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// The same over IPv6.
pub const LOCAL_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
const REMOTE_IPV6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);
/// A station behind the far VTEP.
pub const FAR: MacAddr = MacAddr([2, 0xff, 0, 0, 0, 2]);
pub const VNI: Vni = Vni::from_bytes([0, 0, 42]);
pub const NETWORK: NetworkId = NetworkId(0);
/// Known, so that every run finds an address after the same number of looks.
pub const SECRET: u64 = 0x243f_6a88_85a3_08d3;

/// What the frames between the VTEPs are made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Underlay {
    /// IPv4, without UDP checksums.
    #[default]
    Ipv4,
    /// IPv6, with UDP checksums.
    Ipv6,
    /// IPv6, without UDP checksums (RFC 6935).
    Ipv6ZeroChecksum,
}

impl Underlay {
    /// Our VTEP and the far one.
    fn vteps(self) -> (IpAddr, IpAddr) {
        match self {
            Underlay::Ipv4 => (LOCAL.into(), REMOTE.into()),
            Underlay::Ipv6 | Underlay::Ipv6ZeroChecksum => (LOCAL_IPV6.into(), REMOTE_IPV6.into()),
        }
    }

    /// Bytes of the outer headers.
    pub fn overhead(self) -> usize {
        if self == Underlay::Ipv4 { OVERHEAD_IPV4 } else { OVERHEAD_IPV6 }
    }
}

/// The address of a tenant by its number.
pub const fn tenant_mac(number: u16) -> MacAddr {
    let [high, low] = number.to_be_bytes();
    MacAddr([2, 0, 0, 1, high, low])
}

/// The address of a station behind the far VTEP by its number.
pub const fn station(number: u32) -> MacAddr {
    let [a, b, c, d] = number.to_be_bytes();
    MacAddr([2, 0xfe, a, b, c, d])
}

/// A worker's things.
pub struct Rig {
    tables: Tables,
    fdb: Fdb,
    pub counters: WorkerCounters,
    pub pool: FramePool,
    pub tenants: Tenants,
    wire: Nowhere,
    bursts: (Burst, Burst),
    flood_budget: usize,
}

/// Counts what would leave, and keeps nothing.
#[derive(Default)]
struct Nowhere {
    sent: u64,
}

impl Wire for Nowhere {
    fn transmit(
        &mut self,
        _uplink: UplinkId,
        _is_urgent: bool,
        frames: &mut Burst,
        pool: &mut FramePool,
    ) -> (usize, usize) {
        let sent = frames.len();
        self.sent += sent as u64;
        frames.drain().for_each(|frame| pool.put(frame));
        (sent, 0)
    }
}

impl Rig {
    /// With room for so many tenants on one network, and so many frames.
    pub fn new(tenants: u16, frames: usize) -> Result<Rig, String> {
        Rig::with_stations(tenants, frames, 0)
    }

    /// The same with so many stations ([`station`]) known behind the far VTEP.
    pub fn with_stations(tenants: u16, frames: usize, stations: u32) -> Result<Rig, String> {
        Rig::over(Underlay::Ipv4, tenants, frames, stations)
    }

    /// The same over any underlay.
    pub fn over(underlay: Underlay, tenants: u16, frames: usize, stations: u32) -> Result<Rig, String> {
        let mut plan = plan(tenants);
        let (local, remote) = underlay.vteps();
        for uplink in &mut plan.uplinks {
            uplink.locals = vec![local];
            uplink.udp_checksum.ipv6 = underlay == Underlay::Ipv6;
        }
        plan.networks.values_mut().for_each(|network| network.remotes = vec![remote]);
        let mut tables = Tables::with_secret(&plan, 1500, SECRET);
        let hop = NextHop { uplink: UplinkId(0), destination: FAR, source: tenant_mac(0) };
        tables.set_paths(RemoteId(0), SourceId(0), &[hop.path(local, 1500)]);
        let fdb = Fdb::with_secret(1024 + usize::from(tenants) + stations as usize, 1, SECRET);
        for number in 0..tenants {
            let place = Destination::Local(EndpointId(number));
            if !fdb.set_fixed(NETWORK, tenant_mac(number), place) {
                return Err(format!("no room for {tenants} tenants in the forwarding database"));
            }
        }
        fdb.learn(NETWORK, FAR, RemoteId(0), 0, 1024);
        for number in 0..stations {
            fdb.learn(NETWORK, station(number), RemoteId(0), 0, u32::MAX);
        }
        Ok(Rig {
            tenants: Tenants::new(&tables),
            tables,
            fdb,
            counters: WorkerCounters::new(1, tenants.into(), 1),
            pool: FramePool::anonymous(2048, frames, 256),
            wire: Nowhere::default(),
            bursts: (Burst::new(), Burst::new()),
            flood_budget: usize::MAX,
        })
    }

    /// Attaches a tenant with serial number 1; returns the tenant's end.
    pub fn attach(&mut self, id: EndpointId, config: ClientConfig) -> Result<Interface, String> {
        let (client, rings) = connect(config)?;
        match self.tenants.attach(id, 1, rings) {
            Ok(()) => Ok(client),
            Err(_) => Err(format!("tenant {} could not be attached", id.0)),
        }
    }

    /// What left for the underlay.
    pub fn sent(&self) -> u64 {
        self.wire.sent
    }

    /// What the stages work with.
    pub fn cx(&mut self) -> Cx<'_> {
        self.parts().1
    }

    /// The tenants' part of a worker's turn; then whoever has a fault is put out, and returned.
    #[inline]
    pub fn turn(&mut self) -> Option<Detached> {
        let ((input, output), mut cx) = self.parts();
        collect::run(input, &mut cx);
        stages::run_from(Stage::Lookup, (input, output), &mut cx);
        self.tenants.put_out()
    }

    #[inline]
    fn parts(&mut self) -> ((&mut Burst, &mut Burst), Cx<'_>) {
        let cx = Cx {
            tables: &self.tables,
            fdb: &self.fdb,
            counters: &self.counters,
            pool: &mut self.pool,
            tenants: &mut self.tenants,
            now_s: 0,
            origin: Origin::only(UplinkId(0)),
            is_urgent: false,
            wire: &mut self.wire,
            flood_budget: &mut self.flood_budget,
            mesh: None,
            work: &NO_WORK,
            is_sampled: false,
        };
        ((&mut self.bursts.0, &mut self.bursts.1), cx)
    }
}

/// Both ends of a new connection: the tenant's, and the rings for a worker.
pub fn connect(config: ClientConfig) -> Result<(Interface, TenantRings), String> {
    let (client, server) = pair(config, ServerConfig::default())?;
    Ok((client, TenantRings::new(server.rx, server.tx)))
}

/// Both ends of a new connection. Both are ours, so nobody takes memory away: no seal is needed, for which memif has a
/// thread that a busy machine can keep waiting too long.
pub fn pair(client: ClientConfig, server: ServerConfig) -> Result<(Interface, Interface), String> {
    let server = ServerConfig { allow_unsealed: true, ..server };
    peregrine_memif::pair(client, server).map_err(|error| error.to_string())
}

/// An inner UDP packet; nobody looks at what is behind its ports.
pub fn inner(source: MacAddr, destination: MacAddr, bytes: usize) -> Vec<u8> {
    let mut packet = Vec::with_capacity(bytes);
    packet.extend(destination.0);
    packet.extend(source.0);
    packet.extend([8, 0, 0x45, 0]);
    packet.extend(((bytes - 14) as u16).to_be_bytes());
    packet.extend([0, 0, 0x40, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x4e, 0x20, 0x23, 0x28]);
    packet.resize(bytes, 0);
    packet
}

/// What an inner packet is made of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Ip {
    V4,
    V6,
}

/// An inner UDP packet of either kind, of at least 62 bytes.
pub fn inner_of(ip: Ip, source: MacAddr, destination: MacAddr, bytes: usize) -> Vec<u8> {
    if ip == Ip::V4 {
        return inner(source, destination, bytes);
    }
    let mut packet = Vec::with_capacity(bytes);
    packet.extend(destination.0);
    packet.extend(source.0);
    packet.extend([0x86, 0xdd, 0x60, 0, 0, 0]);
    packet.extend(((bytes - 54) as u16).to_be_bytes());
    packet.extend([17, 64]);
    for host in [1, 2] {
        packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, host]);
    }
    packet.extend([0x4e, 0x20, 0x23, 0x28]);
    packet.resize(bytes, 0);
    packet
}

/// Makes an inner packet one of the flow with this source port.
pub fn set_flow(packet: &mut [u8], ip: Ip, port: u16) {
    let at = if ip == Ip::V4 { 34 } else { 54 };
    if let Some(field) = packet.get_mut(at..at + 2) {
        field.copy_from_slice(&port.to_be_bytes());
    }
}

/// What the far VTEP sends towards a tenant: an inner packet of so many bytes in its outer headers.
pub fn underlay_frame(to: MacAddr, inner_bytes: usize) -> Vec<u8> {
    encapsulated(&inner(FAR, to, inner_bytes))
}

/// An inner packet as the far VTEP sends it.
pub fn encapsulated(packet: &[u8]) -> Vec<u8> {
    encapsulated_over(Underlay::Ipv4, packet)
}

/// The same over any underlay.
pub fn encapsulated_over(underlay: Underlay, packet: &[u8]) -> Vec<u8> {
    let (destination, source) = underlay.vteps();
    let (destination_mac, source_mac) = (tenant_mac(0), FAR);
    let fields = OuterFields { destination_mac, source_mac, source, destination, port: 4789, ttl: 64 };
    let udp_checksum = underlay == Underlay::Ipv6;
    let own = OwnFields { vni: VNI, source_port: 50000, port: None, tos: 0, udp_checksum };
    let mut frame = [&vec![0; underlay.overhead()][..], packet].concat();
    let is_written = OuterHeaders::new(&fields, None).is_some_and(|headers| headers.write(&mut frame, &own));
    debug_assert!(is_written, "both are of one family");
    frame
}

/// Writes the frame into every chunk; the stages change none of its bytes on the way in.
pub fn fill(pool: &mut FramePool, frame: &[u8]) -> Result<(), String> {
    let mut all = Vec::new();
    while let Some(mut chunk) = pool.take() {
        chunk.reset(0, frame.len()).ok_or("the frame does not fit a chunk")?.copy_from_slice(frame);
        all.push(chunk);
    }
    all.into_iter().for_each(|chunk| pool.put(chunk));
    Ok(())
}

/// One network, one remote, so many tenants.
pub fn plan(tenants: u16) -> Plan {
    let endpoint = |number: u16| {
        let memif = MemifPlan::server(SocketAddr::Abstract("peregrine-perf".into()), number.into());
        let plan = EndpointPlan::new(&format!("tenant{number}"), NETWORK, tenant_mac(number), memif);
        EndpointPlan { announce: false, ..plan } // only what a measurement sends is measured
    };
    Plan {
        workers: vec![WorkerPlan::on(CoreId(0))],
        placement: PlacementMode::RunToCompletion,
        balance_threshold: 85,
        uplinks: vec![UplinkPlan { mode: XdpMode::Copy, ..UplinkPlan::new("", IpAddr::V4(LOCAL)) }],
        networks: vec![NetworkPlan {
            remotes: vec![IpAddr::V4(REMOTE)],
            fdb_limit: 1024,
            ..NetworkPlan::new("perf", VNI)
        }]
        .into(),
        endpoints: (0..tenants).map(endpoint).collect(),
        capacity: Capacity { networks: 1, endpoints: 1, addresses: 0 },
        classes: Default::default(),
        control_socket: PathBuf::new(),
        ..Plan::default()
    }
}
