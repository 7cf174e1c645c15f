//! Several workers, turned by hand and in whatever order a test likes: what stands still holds nobody else up, and what is
//! flooded keeps its place among the frames that follow it.

mod rig;

use std::sync::Arc;

use peregrine_dataplane::bell::Bell;
use peregrine_dataplane::counters::{DropReason, WorkerCounters};
use peregrine_dataplane::fdb::{Destination, Fdb};
use peregrine_dataplane::frame::{BURST, Burst, FramePool, bucket};
use peregrine_dataplane::lanes::Lanes;
use peregrine_dataplane::mesh::{Mesh, WAITING_MAX, mesh};
use peregrine_dataplane::placement::Placement;
use peregrine_dataplane::plan::{EndpointPlan, Plan};
use peregrine_dataplane::stages::{self, Cx, Origin, Stage, Work, collect};
use peregrine_dataplane::stats::Totals;
use peregrine_dataplane::tables::{NextHop, Tables};
use peregrine_dataplane::tenants::Tenants;
use peregrine_dataplane::types::{
    EndpointId, MacAddr, NetworkId, RemoteId, Route, SourceId, UplinkId, WorkerId,
};
use peregrine_dataplane::wire::arp;
use peregrine_dataplane::wire::flow::flow_hash;
use peregrine_memif::{ClientConfig, Interface, ServerConfig};
use rig::*;

static NO_WORK: Work = Work::none();
const FAR: u8 = 0x77;
const A: WorkerId = WorkerId(0);
const B: WorkerId = WorkerId(1);
const C: WorkerId = WorkerId(2);

/// A worker without its thread.
struct Worker {
    mesh: Mesh,
    pool: FramePool,
    tenants: Tenants,
    counters: WorkerCounters,
    bursts: (Burst, Burst),
    wire: Sent,
}

/// What they share, and the tenants' ends of the rings.
struct Several {
    tables: Tables,
    fdb: Fdb,
    placement: std::sync::Arc<Placement>,
    workers: Vec<Worker>,
    clients: Vec<Interface>,
    /// In each turn.
    flood_budget: usize,
}

impl Several {
    /// So many chunks for each worker; each endpoint's tenant at the worker that is named.
    fn new(plan: Plan, workers: u8, chunks: usize, homes: &[WorkerId]) -> Several {
        let mut tables = Tables::new(&plan, 1500);
        let hop = NextHop { uplink: UplinkId(0), destination: mac(0xaa), source: mac(0xbb) };
        for remote in 0..tables.remotes.len() {
            let path = hop.path(plan.uplinks[0].local(), 1500);
            tables.set_paths(RemoteId(remote as u16), SourceId(0), &[path]);
        }
        let exits: Vec<WorkerId> = (0..workers).map(WorkerId).collect();
        let placement = Placement::new(&exits, plan.endpoints.len(), plan.networks.len()).into();
        let new_worker = |mesh: Mesh| {
            let mut pool = FramePool::anonymous(2048, chunks, 256);
            pool.set_owner(mesh.me());
            Worker {
                pool,
                mesh,
                tenants: Tenants::new(&tables),
                counters: WorkerCounters::new(
                    plan.networks.len(),
                    plan.endpoints.len(),
                    tables.remotes.len(),
                ),
                bursts: Default::default(),
                wire: Sent::new(),
            }
        };
        let bells: Vec<Arc<Bell>> = (0..workers).map(|_| Arc::default()).collect();
        let workers = mesh(&placement, &bells, Lanes::ONE, chunks).into_iter().map(new_worker).collect();
        let fdb = Fdb::new(256, plan.networks.len());
        let mut several = Several { tables, fdb, placement, workers, clients: Vec::new(), flood_budget: 256 };
        for ((id, endpoint), home) in plan.endpoints.iter().zip(homes) {
            assert!(several.fdb.set_fixed(endpoint.network, endpoint.mac, Destination::Local(id)));
            let (client, server) =
                peregrine_memif::pair(ClientConfig::default(), ServerConfig::default()).unwrap();
            several.workers[home.index()].tenants.attach(id, 7, rings(server)).unwrap();
            several.clients.push(client);
            several.placement.set_home(id, Some(*home));
        }
        several.placement.set_serving(homes.iter().fold(0, |bits, home| bits | 1 << home.0));
        for network in 0..plan.networks.len() {
            let its = plan.endpoints.values().zip(homes).filter(|(it, _)| it.network.index() == network);
            let present = its.fold(0, |bits, (_, home)| bits | 1 << home.0);
            several.placement.set_present(NetworkId(network as u16), present);
        }
        several
    }

    fn run(&mut self, worker: WorkerId, work: impl FnOnce((&mut Burst, &mut Burst), &mut Cx<'_>)) {
        let worker = &mut self.workers[worker.index()];
        let mut cx = Cx {
            tables: &self.tables,
            fdb: &self.fdb,
            counters: &worker.counters,
            pool: &mut worker.pool,
            tenants: &mut worker.tenants,
            now_s: 0,
            origin: Origin::only(UplinkId(0)),
            is_urgent: false,
            wire: &mut worker.wire,
            flood_budget: &mut self.flood_budget.clone(),
            mesh: Some(&mut worker.mesh),
            work: &NO_WORK,
            is_sampled: false,
        };
        work((&mut worker.bursts.0, &mut worker.bursts.1), &mut cx);
    }

    /// Once around, as a worker does it, but for what comes in; what others sent is taken from these, in this order.
    fn turn(&mut self, worker: WorkerId, others: &[WorkerId]) {
        self.run(worker, |bursts, cx| {
            let mesh = cx.mesh.as_deref_mut().unwrap();
            mesh.homecoming(cx.pool);
            let mut looks = mesh.begin_turn();
            if cx.pool.all_under_way() == 0 && mesh.waiting() == 0 {
                mesh.all_home();
            }
            while let Some(stage) = cx.mesh.as_deref_mut().unwrap().released(bursts.0, &mut looks, cx.pool) {
                stages::resume(stage, (&mut *bursts.0, &mut *bursts.1), cx);
            }
            for other in others {
                while let Some(stage) = cx.mesh.as_deref_mut().unwrap().arrivals(other.index(), 0, bursts.0) {
                    stages::run_from(stage, (&mut *bursts.0, &mut *bursts.1), cx);
                }
            }
        });
    }

    /// All of them, until everything is home.
    fn settle(&mut self) {
        let all: Vec<WorkerId> = (0..self.workers.len() as u8).map(WorkerId).collect();
        for _ in 0..100 {
            all.iter().for_each(|worker| self.turn(*worker, &all));
        }
        let mut totals = Totals::default();
        for worker in &self.workers {
            totals.add(&worker.counters);
            assert_eq!(worker.pool.available(), worker.pool.capacity(), "every chunk is home");
        }
        assert!(totals.conserved, "frames in != frames out + drops: {totals:?}");
    }

    /// A turn with frames from the underlay.
    fn receive(&mut self, worker: WorkerId, frames: &[Vec<u8>]) {
        self.turn(worker, &[A, B, C]);
        self.run(worker, |bursts, cx| {
            assert!(cx.mesh.as_deref().unwrap().takes_in(), "reception stands still");
            for bytes in frames {
                let mut frame = cx.pool.take().expect("a chunk for what comes in");
                frame.reset(0, bytes.len()).unwrap().copy_from_slice(bytes);
                cx.counters.uplink_rx.of(UplinkId(0)).unwrap().one(bytes.len());
                bursts.0.push(frame).unwrap();
            }
            stages::run_from(Stage::Classify, bursts, cx);
        });
    }

    /// A packet of a tenant's, taken by its worker.
    fn send(&mut self, tenant: EndpointId, packet: &[u8]) {
        let tx = &mut self.clients[tenant.index()].tx[0];
        tx.push(packet).unwrap();
        tx.flush().unwrap();
        let home = self.placement.home(tenant).unwrap();
        self.run(home, |bursts, cx| {
            collect::run(bursts.0, cx);
            stages::enter(bursts, cx);
        });
    }

    fn gets(&mut self, tenant: EndpointId) -> Vec<Vec<u8>> {
        rig::packets_of(&mut self.clients[tenant.index()].rx[0])
    }

    fn dropped(&self, worker: WorkerId, reason: DropReason) -> u64 {
        self.workers[worker.index()].counters.dropped.get(reason)
    }
}

/// From the far station to this address on blue.
fn from_far(to: MacAddr, port: u16) -> Vec<u8> {
    vxlan(REMOTE_A, BLUE, &flow(mac(FAR), to, port, 20))
}

#[test]
fn a_worker_that_stands_still_does_not_take_all_chunks_of_another() {
    let mut several = Several::new(plan(), 2, 256, &[A, B, A]);
    for round in 0..100 {
        let stuck: Vec<_> = (0..BURST as u16).map(|port| from_far(mac(2), port)).collect();
        several.receive(A, &stuck);
        several.receive(A, &[from_far(mac(1), 1)]);
        assert_eq!(several.gets(WEB).len(), 1, "round {round}: who is served here is not held up");
    }
    let kept = several.workers[A.index()].pool.available();
    assert_eq!((kept, several.dropped(A, DropReason::WorkerRingFull)), (128, 6400 - 128));
    several.settle();
    assert_eq!(several.gets(DB).len(), 128, "what was not dropped arrives");
}

#[test]
fn frames_that_wait_for_their_way_do_not_hold_up_others() {
    // Many chunks, then few: once the list is what ends it, once the pool.
    for (chunks, held_up) in [(4096, WAITING_MAX + 1), (256, 128)] {
        let mut several = Several::new(plan(), 3, chunks, &[A, A, A]);
        let waiting = from_far(mac(2), 1);
        let its = bucket(flow_hash(&flow(mac(FAR), mac(2), 1, 20)));
        let other = (2..).find(|port| bucket(flow_hash(&flow(mac(FAR), mac(1), *port, 20))) != its).unwrap();
        several.placement.want(A, its, Route::all(B));
        several.receive(A, std::slice::from_ref(&waiting));
        // It lies with B, which stands still, so those that follow must wait.
        several.placement.want(A, its, Route::all(C));
        for round in 0..50 {
            several.receive(A, &vec![waiting.clone(); BURST]);
            several.receive(A, &[from_far(mac(1), other)]);
            assert_eq!(several.gets(WEB).len(), 1, "round {round}: another flow goes on");
        }
        let dropped = several.dropped(A, DropReason::WorkerRingFull) as usize;
        assert_eq!(dropped, 1 + 50 * BURST - held_up);
        several.settle();
        assert_eq!(several.gets(DB).len(), held_up.min(1024), "as many as the tenant's ring takes");
        several.receive(A, std::slice::from_ref(&waiting));
        several.settle();
        assert_eq!(several.gets(DB).len(), 1, "it has its new way, and nobody waits any more");
    }
}

/// Some of all workers, in some order.
fn some_workers(dice: &mut Dice) -> Vec<WorkerId> {
    let mut all = vec![A, B, C];
    (0..dice.below(4)).map(|_| all.remove(dice.below(all.len()))).collect()
}

/// The number that `numbered` gave to a packet.
fn number(packet: &[u8]) -> u32 {
    u32::from_be_bytes(*packet[42..].first_chunk().unwrap())
}

/// One flow of a tenant's, of which some frames are flooded and others not, because the address is learned and forgotten again. Returns
/// what came to the remote and to the tenants of the network at B and C.
fn flood_now_and_then(route: Route, seed: u64) -> [Vec<u32>; 3] {
    let mut plan = plan();
    plan.endpoints[2].network = NetworkId(0);
    plan.endpoints[2].mac = mac(3);
    let mut several = Several::new(plan, 3, 256, &[A, B, C]);
    let mut dice = Dice::new(seed);
    let packet = flow(mac(1), mac(FAR), 1000, 20);
    several.placement.want(A, bucket(flow_hash(&packet)), route);
    several.settle();
    for sent in 0..40u32 {
        match dice.below(3) {
            0 => _ = several.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64),
            1 => _ = several.fdb.remove(NetworkId(0), mac(FAR)),
            _ => {}
        }
        let mut numbered = packet.clone();
        numbered[42..46].copy_from_slice(&sent.to_be_bytes());
        several.send(WEB, &numbered);
        for _ in 0..dice.below(4) {
            let worker = [A, B, C][dice.below(3)];
            several.turn(worker, &some_workers(&mut dice));
        }
    }
    several.settle();
    let sent = std::mem::take(&mut several.workers[A.index()].wire.frames);
    let to_remote = sent.iter().filter(|frame| frame[30..34] == REMOTE_A.octets());
    let mut numbers = |tenant| several.gets(tenant).iter().map(|packet| number(packet)).collect();
    [to_remote.map(|frame| number(&frame[50..])).collect(), numbers(DB), numbers(LONER)]
}

#[test]
fn what_is_flooded_keeps_its_place_in_its_flow() {
    for (decap, lookup, encap) in
        [(A, A, A), (A, B, C), (A, C, B), (A, B, B), (A, A, B), (A, A, C), (A, C, A)]
    {
        let mut flooded = 0;
        for seed in 1..=20 {
            let [to_remote, to_b, to_c] = flood_now_and_then(Route::new(decap, lookup, encap), seed);
            let way = format!("look-ups at {lookup:?}, encap at {encap:?}, seed {seed}");
            assert_eq!(to_remote, (0..40).collect::<Vec<_>>(), "to the remote, {way}");
            assert!(to_b.is_sorted() && to_b == to_c, "to tenants {to_b:?} {to_c:?}, {way}");
            flooded += to_b.len();
        }
        assert!((20 * 10..20 * 30).contains(&flooded), "some are flooded, and others not: {flooded}");
    }
}

#[test]
fn what_is_flooded_reaches_the_remotes_even_if_it_cannot_visit_a_worker() {
    let mut several = Several::new(plan(), 2, 256, &[A, B, A]);
    several.settle();
    for _ in 0..200 {
        several.send(WEB, &inner(mac(1), MacAddr::BROADCAST, 10));
    }
    assert_eq!(several.workers[A.index()].wire.frames.len(), 2 * 200);
    several.settle();
    assert_eq!((several.gets(DB).len(), several.dropped(A, DropReason::WorkerRingFull)), (128, 200 - 128));
}

#[test]
fn who_floods_at_one_worker_does_not_keep_others_from_it() {
    // WEB at A floods blue whatever there is to flood, LONER at B red now and then; both reach C.
    let mut plan = plan();
    plan.endpoints.push(EndpointPlan { mac: mac(2), ..plan.endpoints[2].clone() });
    let quiet = EndpointId(3);
    let mut several = Several::new(plan, 3, 256, &[A, C, B, C]);
    several.settle();
    several.flood_budget = 8;
    let mut heard = 0;
    for _ in 0..12 {
        (0..16).for_each(|_| several.send(WEB, &inner(mac(1), MacAddr::BROADCAST, 10)));
        several.send(LONER, &inner(mac(1), MacAddr::BROADCAST, 10));
        [C, A, B].iter().for_each(|worker| several.turn(*worker, &[A, B, C]));
        heard += several.gets(quiet).len();
        several.gets(DB);
    }
    assert!(
        (4..12).contains(&heard),
        "in some turns, if not in those in which the other has used all up: {heard}"
    );
}

/// Whoever looks the frames up, and whoever serves the asker.
#[test]
fn an_answer_finds_the_tenant_that_asked() {
    let mut plan = plan();
    plan.endpoints[1].addresses = vec![[10, 0, 0, 2].into()];
    for (route, home) in
        [(Route::all(A), A), (Route::all(B), A), (Route::new(A, C, B), A), (Route::all(A), B)]
    {
        let mut several = Several::new(plan.clone(), 3, 256, &[home, C, A]);
        let mut question = arp::announcement(mac(1), [10, 0, 0, 1].into()).to_vec();
        question[38..].copy_from_slice(&[10, 0, 0, 2]);
        let too_long = inner(mac(1), mac(2), 1500);
        for packet in [&question, &too_long] {
            several.placement.want(home, bucket(flow_hash(packet)), route);
        }
        // And one that only the way to its remote is too narrow for.
        several.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
        let hop = NextHop { uplink: UplinkId(0), destination: mac(0xaa), source: mac(0xbb) };
        several.tables.set_paths(RemoteId(0), SourceId(0), &[hop.path(OUR_VTEP.into(), 1400)]);
        let narrow = inner(mac(1), mac(FAR), 1372);
        several.placement.want(home, bucket(flow_hash(&narrow)), route);
        several.settle();
        for packet in [&question, &too_long, &narrow] {
            several.send(WEB, packet);
        }
        several.settle();
        let got = several.gets(WEB);
        let (replies, told): (Vec<_>, Vec<_>) = got.iter().partition(|packet| packet[12..14] == [8, 6]);
        assert_eq!((replies.len(), told.len()), (1, 2), "{route:?} {home:?}");
        assert_eq!(replies[0][21], 2, "a reply");
        let mut mtus: Vec<_> = told.iter().map(|told| u16::from_be_bytes([told[40], told[41]])).collect();
        mtus.sort();
        assert_eq!(mtus, [1350, 1450]);
        assert!(several.gets(DB).is_empty());
    }
}
