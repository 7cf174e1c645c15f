//! Several workers, turned by hand and in whatever order a test likes: what stands still holds nobody else up, and what is
//! flooded keeps its place among the frames that follow it.

mod rig;

use peregrine_dataplane::counters::{DropReason, WorkerCounters};
use peregrine_dataplane::fdb::{Destination, Fdb};
use peregrine_dataplane::frame::{BURST, Burst, FramePool, bucket};
use peregrine_dataplane::mesh::{Mesh, WAITING_MAX, mesh};
use peregrine_dataplane::placement::Placement;
use peregrine_dataplane::plan::Plan;
use peregrine_dataplane::stages::{self, Cx, Stage, Work};
use peregrine_dataplane::stats::Totals;
use peregrine_dataplane::tables::{NextHop, Tables};
use peregrine_dataplane::tenants::Tenants;
use peregrine_dataplane::types::{EndpointId, MacAddr, NetworkId, RemoteId, Route, WorkerId};
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
}

impl Several {
    /// So many chunks for each worker; each endpoint's tenant at the worker that is named.
    fn new(plan: Plan, workers: u8, chunks: usize, homes: &[WorkerId]) -> Several {
        let mut tables = Tables::new(&plan, 1500);
        let hop = NextHop { destination: mac(0xaa), source: mac(0xbb) };
        for remote in 0..tables.remotes.len() {
            tables.set_next_hop(RemoteId(remote as u16), Some(hop));
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
                wire: Sent { frames: Vec::new(), room: usize::MAX, keeps: true },
            }
        };
        let workers = mesh(&placement, chunks).into_iter().map(new_worker).collect();
        let fdb = Fdb::new(256, plan.networks.len());
        let mut several = Several { tables, fdb, placement, workers, clients: Vec::new() };
        for (index, (endpoint, home)) in plan.endpoints.iter().zip(homes).enumerate() {
            let id = EndpointId(index as u16);
            assert!(several.fdb.set_fixed(endpoint.network, endpoint.mac, Destination::Local(id)));
            let (client, server) =
                peregrine_memif::pair(ClientConfig::default(), ServerConfig::default()).unwrap();
            several.workers[home.index()].tenants.attach(id, 7, rings(server)).unwrap();
            several.clients.push(client);
            several.placement.set_home(id, Some(*home));
        }
        several.placement.set_serving(homes.iter().fold(0, |bits, home| bits | 1 << home.0));
        for network in 0..plan.networks.len() {
            let its = plan.endpoints.iter().zip(homes).filter(|(it, _)| it.network.index() == network);
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
            wire: &mut worker.wire,
            flood_budget: &mut 256,
            mesh: Some(&mut worker.mesh),
            work: &NO_WORK,
            is_sampled: false,
        };
        work((&mut worker.bursts.0, &mut worker.bursts.1), &mut cx);
    }

    /// Once around, as a worker does it, but for what comes in; what others sent is taken from them in this order.
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
                while let Some(stage) = cx.mesh.as_deref_mut().unwrap().arrivals(other.index(), bursts.0) {
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
                cx.counters.uplink_rx.one(bytes.len());
                bursts.0.push(frame).unwrap();
            }
            stages::run_from(Stage::Classify, bursts, cx);
        });
    }

    fn gets(&mut self, tenant: EndpointId) -> Vec<Vec<u8>> {
        let rx = &mut self.clients[tenant.index()].rx[0];
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
