//! Whole workers, turned by hand: tenants over real memif rings, the wire from memory. What is asked is who is served in a turn and who
//! is not, where packets have two classes; never how fast.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use peregrine_memif::{ClientConfig, Interface, ServerConfig};
use rustix::event::epoll;

use super::*;
use crate::fdb::Destination;
use crate::mesh::mesh;
use crate::placement::Placement;
use crate::plan::{
    ClassPlan, Early, EndpointPlan, MemifPlan, NetworkPlan, PlacementMode, Plan, RulePlan, UplinkPlan,
    WorkerPlan, XdpMode,
};
use crate::replay::{Pace, Replay, ReplayFrame, ReplayStream, Speed, Stamp};
use crate::tables::NextHop;
use crate::tenants::TenantRings;
use crate::types::{Class, CoreId, EndpointId, MacAddr, NetworkId, RemoteId, Route, SourceId, Vni};

const URGENT: u16 = 5201;
const NORMAL: u16 = 9000;
const A: WorkerId = WorkerId(0);
const B: WorkerId = WorkerId(1);
/// Tenants of one network. Most packets are for the last.
const H1: EndpointId = EndpointId(0);
const H2: EndpointId = EndpointId(1);
const H3: EndpointId = EndpointId(2);
const SINK: EndpointId = EndpointId(3);
const EVERYBODY: MacAddr = MacAddr([255; 6]);

fn mac(of: EndpointId) -> MacAddr {
    MacAddr([2, 0, 0, 0, 0, of.0 as u8 + 1])
}

/// Urgent is what goes to a port.
fn classes(urgent_quota: u16, share: u8) -> ClassesPlan {
    ClassesPlan {
        list: vec![ClassPlan::new("urgent"), ClassPlan { share, ..ClassPlan::new("normal") }],
        urgent_quota,
        rules: vec![RulePlan { destination_port: Some(URGENT..=URGENT), ..RulePlan::any(Class::URGENT) }],
        ..ClassesPlan::default()
    }
}

fn plan(classes: ClassesPlan) -> Plan {
    let endpoint = |id: EndpointId| {
        let memif = MemifPlan::server(peregrine_memif::SocketAddr::Abstract("unused".into()), id.0.into());
        EndpointPlan::new(&format!("h{}", id.0), NetworkId(0), mac(id), memif)
    };
    Plan {
        workers: vec![WorkerPlan::on(CoreId(0))],
        placement: PlacementMode::Static,
        balance_threshold: 85,
        uplinks: vec![UplinkPlan {
            mode: XdpMode::Copy,
            early: Early::On,
            ring_size: 1024,
            ..UplinkPlan::new("unused", [192, 0, 2, 1].into())
        }],
        networks: vec![NetworkPlan {
            remotes: vec![[192, 0, 2, 2].into()],
            fdb_limit: 64,
            ..NetworkPlan::new("blue", Vni::new(42).unwrap())
        }]
        .into(),
        endpoints: [H1, H2, H3, SINK].into_iter().map(endpoint).collect(),
        capacity: Default::default(),
        classes,
        control_socket: Default::default(),
        ..Plan::default()
    }
}

fn inner(from: MacAddr, to: MacAddr, port: u16, stamp: Stamp) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64)
        .udp(1000, port)
        .write(&mut out, &stamp.to_bytes())
        .unwrap();
    out
}

/// Urgent ones from the remote to [`SINK`], as fast as they are taken, by the ring for urgent ones or the other.
fn stream(flow: u32, is_urgent: bool) -> ReplayStream {
    stream_to(URGENT, flow, is_urgent)
}

fn stream_to(port: u16, flow: u32, is_urgent: bool) -> ReplayStream {
    let mut payload = vec![8, 0, 0, 0, 0, 0, 42, 0];
    payload.extend(inner(MacAddr([2, 0, 0, 0, 0, 0x77]), mac(SINK), port, stamp(flow, 0)));
    let mut bytes = Vec::new();
    PacketBuilder::ethernet2([2, 9, 9, 9, 9, 9], [2, 8, 8, 8, 8, 8])
        .ipv4([192, 0, 2, 2], [192, 0, 2, 1], 64)
        .udp(50000, 4789)
        .write(&mut bytes, &payload)
        .unwrap();
    bytes[40..42].fill(0); // the outer checksum: the stamp changes
    let pace = Arc::new(Pace::new(Speed::Full));
    ReplayStream { frames: vec![ReplayFrame { flow, bytes }], pace, field: None, is_urgent }
}

fn stamp(flow: u32, sequence: u64) -> Stamp {
    Stamp { flow, sequence, due: 0 }
}

/// Workers, and the tenants' ends of their rings.
struct Bench {
    workers: Vec<Worker>,
    placement: Arc<Placement>,
    clients: [Option<Interface>; 4],
}

impl Bench {
    /// So many; the first has these streams, with a ring of its own for urgent ones.
    fn new(classes: ClassesPlan, workers: u8, streams: Vec<ReplayStream>) -> Bench {
        Bench::with(plan(classes), workers, streams)
    }

    fn with(plan: Plan, workers: u8, streams: Vec<ReplayStream>) -> Bench {
        let mut tables = Tables::new(&plan, 1500);
        let hop = NextHop { uplink: UplinkId(0), destination: EVERYBODY, source: EVERYBODY };
        tables.set_paths(RemoteId(0), SourceId(0), &[hop.path(plan.uplinks[0].local(), 1500)]);
        let fdb = Fdb::new(256, 1);
        for id in [H1, H2, H3, SINK] {
            assert!(fdb.set_fixed(NetworkId(0), mac(id), Destination::Local(id)));
        }
        let ids: Vec<WorkerId> = (0..workers).map(WorkerId).collect();
        let placement = Arc::new(Placement::new(&ids, plan.endpoints.len(), 1));
        let bells: Vec<_> = ids.iter().map(|_| Arc::default()).collect();
        let mut meshes = mesh(&placement, &bells, Lanes::new(&plan.classes), 4096).into_iter();
        let remotes = plan.networks[0].remotes.len();
        let mut uplink = Some(Uplink::Replay(Replay::new(streams, true)));
        let shared = Shared {
            tables: Arc::new(tables),
            fdb: Arc::new(fdb),
            seconds: Seconds::start(),
            work: Arc::new(Work::none()),
            classes: Arc::new(plan.classes),
        };
        let worker = |id| {
            let mut pool = FramePool::anonymous(2048, 4096, 256);
            pool.set_owner(id);
            let port = Port { uplink: uplink.take().unwrap_or_else(Uplink::none), pool };
            let mesh = meshes.next().filter(|_| workers > 1);
            let counters = Arc::new(WorkerCounters::new(1, plan.endpoints.len(), remotes));
            Worker::new(port, shared.clone(), mesh, counters, Arc::new(Mailbox::new(Arc::default())))
        };
        let workers = ids.into_iter().map(worker).collect();
        Bench { workers, placement, clients: Default::default() }
    }

    fn attach(&mut self, worker: WorkerId, id: EndpointId, queue_pairs: u16) {
        let config = ClientConfig { queue_pairs, ring_log2: 12, ..ClientConfig::default() };
        let (client, server) = peregrine_memif::pair(config, ServerConfig::default()).unwrap();
        let rings = TenantRings::new(server.rx, server.tx);
        self.workers[worker.index()].tenants.attach(id, 7, rings).unwrap();
        self.clients[id.index()] = Some(client);
        self.placement.set_home(id, Some(worker));
    }

    /// What comes in at A is to go this way.
    fn route(&self, route: Route) {
        (0..=255).for_each(|bucket| self.placement.want(A, bucket, route));
    }

    /// By the first queue: so many, or as many as there is room for.
    fn send(&mut self, from: EndpointId, to: MacAddr, port: u16, count: u64) {
        let tx = &mut self.clients[from.index()].as_mut().unwrap().tx[0];
        for number in 0..count {
            let _full = tx.push(&inner(mac(from), to, port, stamp(port.into(), number)));
        }
        tx.flush().unwrap();
    }

    /// What has come to a tenant.
    fn gets(&mut self, id: EndpointId) -> Vec<Stamp> {
        let mut got = Vec::new();
        for rx in &mut self.clients[id.index()].as_mut().unwrap().rx {
            rx.pending().unwrap();
            while let Some(packet) = rx.next_packet() {
                let packet = packet.unwrap();
                let mut bytes = vec![0; packet.len()];
                packet.copy_to(&mut bytes).unwrap();
                got.push(Stamp::of(&bytes).unwrap());
            }
            rx.release();
        }
        got
    }

    fn turn(&mut self, worker: WorkerId, takes_in: bool) {
        self.workers[worker.index()].turn(cycles(), takes_in);
    }

    /// Packets of a tenant that A has taken, and those of them that were dropped.
    fn taken(&self, from: EndpointId) -> (u64, u64) {
        let counters = self.workers[A.index()].counters.endpoint(from).unwrap();
        (counters.from_tenant.frames.get(), counters.dropped.get())
    }
}

#[test]
fn a_ring_for_all_that_holds_only_urgent_frames_does_not_close_the_urgent_one() {
    let mut bench = Bench::new(classes(16, 0), 1, vec![stream(0, true), stream(1, false)]);
    bench.attach(A, SINK, 1);
    for turn in 0..20 {
        bench.turn(A, true);
        let got = bench.gets(SINK);
        let of = |flow| got.iter().filter(|stamp| stamp.flow == flow).count();
        assert!(of(0) > 0 && of(1) > 0, "turn {turn}: {} by the urgent ring, {} by the other", of(0), of(1));
    }
}

#[test]
fn packets_that_are_all_handed_over_do_not_close_the_urgent_ring() {
    let mut bench = Bench::new(classes(16, 0), 2, vec![stream(0, true)]);
    bench.attach(B, SINK, 1);
    bench.attach(A, H1, 1);
    bench.route(Route::new(A, B, A));
    bench.placement.set_serving(3);
    for turn in 0..20 {
        let received = bench.workers[A.index()].counters.uplink_rx.frames();
        let (taken, _) = bench.taken(H1);
        bench.send(H1, mac(SINK), NORMAL, 10);
        bench.turn(A, true);
        let received = bench.workers[A.index()].counters.uplink_rx.frames() - received;
        let taken = bench.taken(H1).0 - taken;
        assert!(
            received > 0 && taken == 10,
            "turn {turn}: {received} by the urgent ring, {taken} of a tenant"
        );
        (0..40).for_each(|_| bench.turn(B, true));
        bench.gets(SINK);
    }
}

#[test]
fn urgent_frames_between_workers_come_home_where_nothing_is_taken_in() {
    for (quota, share) in [(16, 0), (2, 0), (16, 30)] {
        let mut bench = Bench::new(classes(quota, share), 2, vec![stream(0, true)]);
        bench.attach(A, SINK, 1);
        bench.route(Route::new(B, B, A));
        bench.placement.set_serving(1);
        for _ in 0..10 {
            bench.turn(A, true);
        }
        let under_way = bench.workers[A.index()].pool.all_under_way();
        assert!(under_way > 512, "{under_way}");
        for _ in 0..1000 {
            bench.turn(A, false);
            bench.turn(B, false);
            bench.gets(SINK);
        }
        let left = bench.workers[A.index()].pool.all_under_way();
        assert!(
            bench.workers[A.index()].has_all_home(),
            "quota {quota}, share {share}: {left} of {under_way}"
        );
    }
}

#[test]
fn packets_that_are_not_urgent_gain_nothing_by_a_first_queue() {
    for hostile in [&[H1][..], &[H1, H2]] {
        let mut bench = Bench::new(classes(16, 0), 1, vec![]);
        bench.attach(A, SINK, 1);
        bench.attach(A, H3, 1);
        hostile.iter().for_each(|id| bench.attach(A, *id, 2));
        for _ in 0..300 {
            hostile.iter().chain([&H3]).for_each(|id| bench.send(*id, mac(SINK), NORMAL, 200));
            bench.turn(A, true);
            bench.gets(SINK);
        }
        let (fair, _) = bench.taken(H3);
        let got: Vec<u64> = hostile.iter().map(|id| bench.taken(*id).0).collect();
        assert!(got.iter().all(|got| got.abs_diff(fair) * 20 < fair), "{got:?} beside {fair}");
    }
}

#[test]
fn urgent_packets_that_waited_for_their_way_go_first_and_in_order() {
    let mut bench = Bench::new(classes(16, 0), 2, vec![]);
    bench.attach(A, SINK, 1);
    bench.attach(A, H1, 1);
    bench.route(Route::new(A, B, A));
    bench.placement.set_serving(1);
    for port in [NORMAL, URGENT] {
        bench.send(H1, mac(SINK), port, 1);
    }
    bench.turn(A, true); // to B, which stands still
    bench.route(Route::all(A));
    for port in [NORMAL, URGENT] {
        bench.send(H1, mac(SINK), port, 8);
    }
    bench.turn(A, true);
    assert_eq!(bench.workers[A.index()].mesh.as_ref().map(Mesh::waiting), Some(16));
    bench.turn(B, true);
    bench.turn(A, true);
    assert_eq!(bench.gets(SINK), [stamp(URGENT.into(), 0), stamp(NORMAL.into(), 0)]);
    bench.turn(A, true);
    let sent = |port: u16| (0..8).map(move |number| stamp(port.into(), number));
    assert_eq!(bench.gets(SINK), sent(URGENT).chain(sent(NORMAL)).collect::<Vec<_>>());
}

#[test]
fn urgent_floods_take_nothing_from_what_others_may_flood() {
    let mut bench = Bench::new(classes(16, 0), 1, vec![]);
    for (id, queue_pairs) in [(H1, 2), (H2, 1), (H3, 1), (SINK, 1)] {
        bench.attach(A, id, queue_pairs);
    }
    for _ in 0..200 {
        bench.send(H1, EVERYBODY, URGENT, 1200);
        bench.send(H3, EVERYBODY, NORMAL, 4);
        bench.turn(A, true);
        for id in [H1, H2, H3, SINK] {
            bench.gets(id);
        }
    }
    let (_, dropped) = bench.taken(H1);
    assert!(dropped > 0, "it floods more than it may");
    assert_eq!(bench.taken(H3), (800, 0));
}

/// On a network with so many remotes that its one flood is all that a turn allows.
#[test]
fn an_announcement_takes_nothing_from_what_tenants_may_flood() {
    for classes in [ClassesPlan::default(), classes(16, 0)] {
        let mut plan = plan(classes);
        plan.networks[0].remotes = (0..=255).map(|last| [192, 0, 3, last].into()).collect();
        let mut bench = Bench::with(plan, 1, vec![]);
        bench.attach(A, H1, 1);
        bench.attach(A, SINK, 1);
        for turn in 1..=3 {
            let frame = inner(mac(H1), EVERYBODY, NORMAL, stamp(1, turn));
            let announcement =
                Announcement { endpoint: H1, station: mac(H1), frame, number: 0, is_sent: false };
            bench.workers[A.index()].mailbox.send(Order::Announce(announcement)).unwrap();
            bench.send(H1, EVERYBODY, NORMAL, 1);
            bench.turn(A, true);
            let answer = bench.workers[A.index()].mailbox.take_returned();
            assert!(matches!(answer, Some(Returned::Announced(Announcement { is_sent: true, .. }))));
            assert_eq!(bench.gets(SINK).len(), 2, "the announcement, and what the tenant sent");
            assert_eq!(
                bench.workers[A.index()].counters.dropped.get(DropReason::FloodLimited),
                0,
                "turn {turn}"
            );
        }
    }
}

#[test]
fn what_others_send_first_does_not_close_the_urgent_ring_where_nobody_else_has_work() {
    for (quota, share) in [(1, 0), (16, 0), (16, 10)] {
        let mut bench = Bench::new(classes(quota, share), 2, vec![stream(0, true)]);
        bench.attach(A, SINK, 1);
        bench.attach(B, H1, 1);
        bench.placement.set_serving(0b11);
        let received = |bench: &Bench| bench.workers[A.index()].counters.uplink_rx.frames();
        for turn in 0..50 {
            bench.send(H1, mac(SINK), URGENT, 200);
            bench.turn(B, true);
            let before = received(&bench);
            bench.turn(A, true);
            assert!(received(&bench) > before, "quota {quota}, share {share}: nothing in turn {turn}");
            let others = bench.gets(SINK).iter().filter(|stamp| stamp.flow == URGENT.into()).count();
            assert!(others > 0 || turn < 2, "none of the other's in turn {turn}");
        }
    }
}

#[test]
fn a_class_in_the_middle_has_its_share_of_what_comes_by_the_ring_for_all() {
    let mut plan = classes(1024, 0);
    plan.list.insert(1, ClassPlan { share: 30, ..ClassPlan::new("middle") });
    plan.default = Class(2);
    plan.rules.push(RulePlan { destination_port: Some(NORMAL..=NORMAL), ..RulePlan::any(Class(1)) });
    let mut bench = Bench::new(plan, 1, vec![stream(0, true), stream_to(NORMAL, 1, false)]);
    bench.attach(A, SINK, 1);
    for _ in 0..200 {
        bench.turn(A, true);
        bench.gets(SINK);
    }
    let counters = &bench.workers[A.index()].counters;
    let [urgent, middle] = [0, 1].map(|class| counters.class(Class(class)).uplink_rx);
    assert!(middle * 8 > urgent, "{middle} beside {urgent}");
}

#[test]
fn packets_that_are_refused_are_no_more_than_a_turn_allows() {
    let mut bench = Bench::new(classes(16, 0), 1, vec![stream(0, true), stream_to(NORMAL, 1, false)]);
    bench.attach(A, SINK, 1);
    bench.attach(A, H1, 2);
    for _ in 0..20 {
        let tx = &mut bench.clients[H1.index()].as_mut().unwrap().tx[0];
        for number in 0..200 {
            let _full = tx.push(&inner(mac(H2), mac(SINK), URGENT, stamp(0, number)));
        }
        tx.flush().unwrap();
        let (before, _) = bench.taken(H1);
        bench.turn(A, true);
        let (after, dropped) = bench.taken(H1);
        assert!(after > before && after - before <= 34 && dropped == after, "{before} to {after}, {dropped}");
        bench.gets(SINK);
    }
}

/// What an adaptive worker watches, one line each.
fn watched(worker: &Worker) -> usize {
    let events = worker.events().unwrap().as_raw_fd();
    let text = std::fs::read_to_string(format!("/proc/self/fdinfo/{events}")).unwrap();
    text.lines().filter(|line| line.starts_with("tfd:")).count()
}

fn order(bench: &mut Bench, order: Order) {
    bench.workers[A.index()].mailbox.send(order).unwrap();
    bench.turn(A, true);
}

fn come(bench: &mut Bench, serial: u64, rings: TenantRings) {
    order(bench, Order::Attach { endpoint: H1, serial, rings });
}

fn gone(bench: &mut Bench) -> Detached {
    match bench.workers[A.index()].mailbox.take_returned() {
        Some(Returned::Tenant(detached)) => detached,
        other => panic!("{other:?}"),
    }
}

fn rings_of_a_tenant(queue_pairs: u16) -> (Interface, TenantRings) {
    let config = ClientConfig { queue_pairs, ..ClientConfig::default() };
    let server = ServerConfig { rings_max: 8, ..ServerConfig::default() };
    let (client, server) = peregrine_memif::pair(config, server).unwrap();
    (client, TenantRings::new(server.rx, server.tx))
}

#[test]
fn a_tenant_in_debt_is_not_watched() {
    let mut bench = Bench::new(ClassesPlan::default(), 1, vec![]);
    assert!(bench.workers[A.index()].watch(true).is_none());
    let before = watched(&bench.workers[A.index()]);
    let (_client, rings) = rings_of_a_tenant(4);
    come(&mut bench, 1, rings);
    assert_eq!(watched(&bench.workers[A.index()]), before + 4);
    order(&mut bench, Order::Detach { endpoint: H1, serial: 1 });
    assert_eq!(watched(&bench.workers[A.index()]), before);
    let detached = gone(&mut bench);
    bench.workers[A.index()].tenants.charge(H1, 50_000_000);
    bench.workers[A.index()]
        .mailbox
        .send(Order::Attach { endpoint: H1, serial: 2, rings: detached.rings })
        .unwrap();
    bench.workers[A.index()].obey(true);
    assert_eq!(watched(&bench.workers[A.index()]), before, "it is on its way out");
    // Nor when its thread may sleep from now on.
    assert!(bench.workers[A.index()].watch(false).is_some());
    assert!(bench.workers[A.index()].watch(true).is_none());
    assert_eq!(watched(&bench.workers[A.index()]), before);
    bench.turn(A, true);
    let detached = gone(&mut bench);
    assert_eq!(detached.fault, Some(crate::tenants::Fault::SlowWakeups));
    assert_eq!(detached.rings.watched_events().count(), 0, "so nothing is to be forgotten");
    assert_eq!(bench.workers[A.index()].counters.unwatched.get(), 0);
}

/// So many epolls watch an eventfd so many times each, and somebody signals it without end.
const WATCHERS: usize = 120;

fn watchers(event: &OwnedFd) -> Vec<OwnedFd> {
    let many: Vec<_> = (0..WATCHERS).map(|_| event.try_clone().unwrap()).collect();
    let set = |_| {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for event in &many {
            epoll::add(&set, event, epoll::EventData::new_u64(0), epoll::EventFlags::IN).unwrap();
        }
        set
    };
    let sets: Vec<_> = (0..WATCHERS).map(set).collect();
    many.into_iter().chain(sets).collect()
}

/// Ends who signals, even if a look in between fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn to_watch_a_tenant_and_to_forget_it_is_charged_each_by_itself() {
    let mut bench = Bench::new(ClassesPlan::default(), 1, vec![]);
    assert!(bench.workers[A.index()].watch(true).is_none());
    let (_client, mut rings) = rings_of_a_tenant(1);
    let event = rings.rx[0].event_fd().try_clone_to_owned().unwrap();
    let _watchers = watchers(&event);
    let (is_over, deadline) = (AtomicBool::new(false), Instant::now() + Duration::from_secs(60));
    std::thread::scope(|scope| {
        let _over = Over(&is_over);
        scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                rustix::io::write(event.as_fd(), &1u64.to_ne_bytes()).unwrap();
            }
        });
        let mut charged = (false, false);
        for serial in 1.. {
            let worker = &mut bench.workers[A.index()];
            worker.tenants.forget(H1);
            let mut detached = Detached { endpoint: H1, serial, rings, fault: None };
            worker.tenants.give_account(&mut detached);
            worker.tenants.attach(H1, serial, detached.rings).unwrap();
            worker.watch_tenant(H1);
            charged.0 |= worker.tenants.debt_ns(H1) > 0;
            worker.tenants.forget(H1);
            let mut detached = worker.tenants.detach(H1, serial).unwrap();
            worker.forget_tenant(&mut detached);
            charged.1 |= worker.tenants.debt_ns(H1) > 0;
            rings = detached.rings;
            if charged == (true, true) {
                return;
            }
            assert!(Instant::now() < deadline, "{charged:?} after {serial} times");
        }
    });
}
