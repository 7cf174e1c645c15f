//! A worker's stages without a kernel: frames in by hand, tenants over real memif rings in this process, and what leaves for
//! the uplink kept to be looked at. After every step frames in = frames out + drops, in all and in each class, and all chunks are home.
#![allow(dead_code, reason = "each test program uses a part of it")]

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use etherparse::PacketBuilder;
use peregrine_dataplane::counters::{ClassStats, DropReason, WorkerCounters};
use peregrine_dataplane::fdb::{Destination, Fdb};
use peregrine_dataplane::frame::{BURST, Burst, FramePool};
use peregrine_dataplane::plan::{
    EndpointPlan, MemifPlan, NetworkPlan, PlacementMode, Plan, UplinkPlan, WorkerPlan, XdpMode,
};
use peregrine_dataplane::stages::{self, Cx, Origin, Stage, Wire, Work, collect};
use peregrine_dataplane::stats::Totals;
use peregrine_dataplane::tables::{NextHop, Tables, remote_addresses};
use peregrine_dataplane::tenants::{TenantRings, Tenants};
use peregrine_dataplane::types::{
    Class, CoreId, EndpointId, MacAddr, NetworkId, RemoteId, SourceId, UplinkId, Vni,
};
use peregrine_memif::{ClientConfig, Interface, RxRing, ServerConfig};

/// Nothing is added to the stages.
static NO_WORK: Work = Work::none();

pub const OUR_VTEP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const REMOTE_A: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
pub const REMOTE_B: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
pub const STRANGER: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 99);
pub const BLUE: u32 = 42;
pub const RED: u32 = 43;
/// Two tenants on blue, one on red.
pub const WEB: EndpointId = EndpointId(0);
pub const DB: EndpointId = EndpointId(1);
pub const LONER: EndpointId = EndpointId(2);

pub fn mac(last: u8) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, last])
}

pub fn plan() -> Plan {
    let network = |name: &str, vni, remotes: Vec<Ipv4Addr>| NetworkPlan {
        remotes: remotes.into_iter().map(IpAddr::V4).collect(),
        fdb_limit: 64,
        ..NetworkPlan::new(name, Vni::new(vni).unwrap())
    };
    let endpoint = |name: &str, network, last: u8| {
        let memif = MemifPlan::server(peregrine_memif::SocketAddr::Abstract("unused".into()), last.into());
        // What is sent is a test's own alone: frames are counted.
        EndpointPlan { announce: false, ..EndpointPlan::new(name, NetworkId(network), mac(last), memif) }
    };
    Plan {
        workers: vec![WorkerPlan::on(CoreId(0))],
        placement: PlacementMode::RunToCompletion,
        balance_threshold: 85,
        uplinks: vec![UplinkPlan {
            mode: XdpMode::Copy,
            ring_size: 64,
            ..UplinkPlan::new("unused", IpAddr::V4(OUR_VTEP))
        }],
        networks: vec![network("blue", BLUE, vec![REMOTE_A, REMOTE_B]), network("red", RED, vec![])].into(),
        endpoints: vec![endpoint("web", 0, 1), endpoint("db", 0, 2), endpoint("loner", 1, 1)].into(),
        capacity: Default::default(),
        classes: Default::default(),
        control_socket: PathBuf::new(),
        ..Plan::default()
    }
}

/// Small numbers that look like chance, the same in each run.
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Dice {
        Dice(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
    }

    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 8) as usize % limit
    }
}

/// A worker's things without the worker's thread, and the tenants' ends of the rings.
pub struct Rig {
    pub tables: Tables,
    pub fdb: Fdb,
    pub counters: WorkerCounters,
    pub pool: FramePool,
    pub tenants: Tenants,
    pub clients: Vec<Interface>,
    pub bursts: (Burst, Burst),
    pub wire: Sent,
    pub flood_budget: usize,
}

/// The far end of the wire: keeps what is sent, as long as it has room.
pub struct Sent {
    pub frames: Vec<Vec<u8>>,
    /// Those that the frames left by.
    pub uplinks: Vec<UplinkId>,
    pub room: usize,
    /// An uplink that takes nothing.
    pub full: Option<UplinkId>,
    /// Whether frames are kept, which allocates.
    pub keeps: bool,
    /// Frames may be such as the uplink must move before it sends them.
    pub may_move: bool,
}

impl Sent {
    /// It takes and keeps everything.
    pub fn new() -> Sent {
        Sent {
            frames: Vec::new(),
            uplinks: Vec::new(),
            room: usize::MAX,
            full: None,
            keeps: true,
            may_move: false,
        }
    }
}

impl Wire for Sent {
    fn transmit(
        &mut self,
        uplink: UplinkId,
        _is_urgent: bool,
        frames: &mut Burst,
        pool: &mut FramePool,
    ) -> (usize, usize) {
        if self.full == Some(uplink) {
            return (0, 0);
        }
        let (mut sent, mut bytes) = (0, 0);
        for frame in frames.drain_front(self.room.min(frames.len())) {
            let starts_well = frame.headroom() == 0 || self.may_move;
            assert!(starts_well, "ready for the wire: starts where the kernel wants it");
            sent += 1;
            bytes += frame.len();
            if self.keeps {
                self.frames.push(frame.bytes().to_vec());
                self.uplinks.push(uplink);
            }
            pool.put(frame);
        }
        self.room -= sent;
        (sent, bytes)
    }
}

impl Rig {
    pub fn new() -> Rig {
        Rig::with(plan())
    }

    pub fn with(plan: Plan) -> Rig {
        Rig::with_queues(plan, 1)
    }

    pub fn with_queues(plan: Plan, queue_pairs: u16) -> Rig {
        Rig::with_config(plan, ClientConfig { queue_pairs, ..ClientConfig::default() })
    }

    /// Chains are taken from and given to tenants that have them in their configuration.
    pub fn with_config(plan: Plan, config: ClientConfig) -> Rig {
        let mut tables = Tables::new(&plan, uplink_mtu(&plan));
        let hop = NextHop { uplink: UplinkId(0), destination: mac(0xaa), source: mac(0xbb) };
        for remote in 0..tables.remotes.len() {
            let path = hop.path(plan.uplinks[0].local(), uplink_mtu(&plan) as u32);
            tables.set_paths(RemoteId(remote as u16), SourceId(0), &[path]);
        }
        let fdb = Fdb::new(256, plan.networks.len());
        let mut tenants = Tenants::new(&tables);
        let mut clients = Vec::new();
        let mut pool = FramePool::anonymous_with_large(2048, 256, 256, if is_jumbo(&plan) { 64 } else { 0 });
        pool.set_class(plan.classes.default);
        let server = ServerConfig { chains: config.chains, ..ServerConfig::default() };
        for (id, endpoint) in plan.endpoints.iter() {
            for station in endpoint.stations() {
                assert!(fdb.set_fixed(endpoint.network, station.mac, Destination::Local(id)));
            }
            let (client, server) = peregrine_memif::pair(config.clone(), server.clone()).unwrap();
            tenants.attach(id, 7, rings(server)).unwrap();
            clients.push(client);
        }
        for (network, its) in plan.networks.iter() {
            for fixed in &its.static_macs {
                let remote = remote_addresses(&plan)[&fixed.remote];
                assert!(fdb.set_fixed(network, fixed.mac, Destination::Remote(remote)));
            }
        }
        Rig {
            counters: counters(&plan, &tables),
            tables,
            fdb,
            pool,
            tenants,
            clients,
            bursts: Default::default(),
            wire: Sent::new(),
            flood_budget: usize::MAX,
        }
    }

    /// Runs `work` with a context; returns what left for the underlay.
    pub fn run(&mut self, work: impl FnOnce((&mut Burst, &mut Burst), &mut Cx<'_>)) -> Vec<Vec<u8>> {
        self.begin(work);
        self.check();
        std::mem::take(&mut self.wire.frames)
    }

    /// The same where frames are still under way afterwards.
    pub fn begin(&mut self, work: impl FnOnce((&mut Burst, &mut Burst), &mut Cx<'_>)) {
        let mut cx = Cx {
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
        work((&mut self.bursts.0, &mut self.bursts.1), &mut cx);
        assert!(self.bursts.0.is_empty() && self.bursts.1.is_empty());
    }

    /// Frames from the underlay; returns what goes back to it.
    pub fn receive(&mut self, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        self.receive_by(UplinkId(0), frames)
    }

    /// The same by this uplink.
    pub fn receive_by(&mut self, uplink: UplinkId, frames: &[Vec<u8>]) -> Vec<Vec<u8>> {
        let mut sent = Vec::new();
        for burst in frames.chunks(BURST) {
            sent.extend(self.run(|bursts, cx| {
                for bytes in burst {
                    let mut frame = cx.pool.take_for(bytes.len()).unwrap();
                    frame.reset(0, bytes.len()).unwrap().copy_from_slice(bytes);
                    cx.counters.uplink_rx.of(uplink).unwrap().one(bytes.len());
                    bursts.0.push(frame).unwrap();
                }
                cx.origin = Origin::only(uplink);
                stages::run_from(Stage::Classify, bursts, cx);
            }));
        }
        sent
    }

    /// One turn of the tenants; returns what leaves for the underlay.
    pub fn collect(&mut self) -> Vec<Vec<u8>> {
        self.run(|bursts, cx| {
            collect::run(bursts.0, cx);
            stages::run_from(Stage::Lookup, bursts, cx);
        })
    }

    pub fn tenant_sends(&mut self, tenant: EndpointId, packet: &[u8]) -> Vec<Vec<u8>> {
        let tx = &mut self.clients[tenant.index()].tx[0];
        tx.push(packet).unwrap();
        tx.flush().unwrap();
        self.collect()
    }

    pub fn tenant_gets(&mut self, tenant: EndpointId) -> Vec<Vec<u8>> {
        self.queue_gives(tenant, 0)
    }

    pub fn queue_gives(&mut self, tenant: EndpointId, queue: usize) -> Vec<Vec<u8>> {
        packets_of(&mut self.clients[tenant.index()].rx[queue])
    }

    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.counters.dropped.get(reason)
    }

    /// What was counted, by class.
    pub fn classes(&self) -> [ClassStats; Class::LIMIT] {
        std::array::from_fn(|class| self.counters.class(Class(class as u8)))
    }

    pub fn check(&self) {
        let mut totals = Totals::default();
        totals.add(&self.counters);
        assert!(totals.conserved, "frames in != frames out + drops: {totals:?}");
        for class in self.classes() {
            assert_eq!(class.in_flight(), 0, "of its class, frames in != frames out + drops: {class:?}");
        }
        assert_eq!(self.pool.available(), self.pool.capacity(), "every chunk is home");
        assert_eq!(self.pool.large_available(), self.pool.large_capacity(), "every large buffer is home");
    }
}

/// Some network's packets are longer than a chunk.
pub fn is_jumbo(plan: &Plan) -> bool {
    plan.networks.values().any(|network| network.mtu > 1728)
}

/// Of an uplink that takes all of its networks' packets.
pub fn uplink_mtu(plan: &Plan) -> usize {
    plan.networks.values().map(|network| usize::from(network.mtu) + 50).max().unwrap_or_default().max(1500)
}

/// A worker's, all zero.
pub fn counters(plan: &Plan, tables: &Tables) -> WorkerCounters {
    WorkerCounters::new(plan.networks.len(), plan.endpoints.len(), tables.remotes.len())
        .with_classes(plan.classes.list.len(), plan.classes.default)
}

pub fn rings(server: Interface) -> TenantRings {
    TenantRings::new(server.rx, server.tx)
}

pub fn inner(source: MacAddr, destination: MacAddr, payload: usize) -> Vec<u8> {
    flow(source, destination, 1000, payload)
}

/// With this UDP source port.
pub fn flow(source: MacAddr, destination: MacAddr, port: u16, payload: usize) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ethernet2(source.0, destination.0)
        .ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64)
        .udp(port, 2000)
        .write(&mut out, &vec![0x5a; payload])
        .unwrap();
    out
}

/// As an independent implementation builds it.
pub fn vxlan(from: Ipv4Addr, vni: u32, inner: &[u8]) -> Vec<u8> {
    let mut payload = vec![0x08, 0, 0, 0];
    payload.extend((vni << 8).to_be_bytes());
    payload.extend(inner);
    let mut out = Vec::new();
    PacketBuilder::ethernet2([2, 9, 9, 9, 9, 9], [2, 8, 8, 8, 8, 8])
        .ipv4(from.octets(), OUR_VTEP.octets(), 64)
        .udp(50000, 4789)
        .write(&mut out, &payload)
        .unwrap();
    out
}

/// All that has come to a tenant by this ring.
pub fn packets_of(rx: &mut RxRing) -> Vec<Vec<u8>> {
    let mut got = Vec::new();
    rx.pending().unwrap();
    while let Some(packet) = rx.next_packet() {
        let packet = packet.unwrap();
        let mut bytes = vec![0; packet.len()];
        packet.copy_to(&mut bytes).unwrap();
        got.push(bytes);
    }
    rx.release();
    got
}
