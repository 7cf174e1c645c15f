//! Tenants that connect are announced to their network, by the workers that serve them, whichever those are.

mod rig;

use std::time::{Duration, Instant};

use peregrine_dataplane::engine::{Change, Engine};
use peregrine_dataplane::plan::{PlacementMode, Plan, Station, WorkerPlan};
use peregrine_dataplane::stats::Totals;
use peregrine_dataplane::types::{CoreId, EndpointId};
use peregrine_dataplane::wire::{arp, ndp};
use peregrine_memif::{ClientConfig, Interface, ServerConfig};
use rig::*;

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

/// web has two addresses, db none. No remote: nobody else hears it.
fn announced(workers: usize, placement: PlacementMode) -> Plan {
    let cores: Vec<usize> = core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).collect();
    let worker = |n: usize| WorkerPlan::on(CoreId(cores[n % cores.len()]));
    let mut plan = Plan { workers: (0..workers).map(worker).collect(), placement, ..plan() };
    plan.networks[0].remotes.clear();
    plan.endpoints.values_mut().for_each(|endpoint| endpoint.announce = true);
    plan.endpoints[0].addresses = vec![[10, 0, 0, 1].into(), "fd00::1".parse().unwrap()];
    plan
}

fn connect(engine: &mut Engine, endpoint: EndpointId) -> Interface {
    let (client, server) = peregrine_memif::pair(ClientConfig::default(), ServerConfig::default()).unwrap();
    engine.attach(endpoint, rings(server)).unwrap();
    client
}

/// Does what control does, until so many packets have come.
fn wait_for(engine: &mut Engine, tenant: &mut Interface, packets: usize) -> Vec<Vec<u8>> {
    let (deadline, mut got) = (Instant::now() + PATIENCE, Vec::new());
    while got.len() < packets {
        assert!(Instant::now() < deadline, "{got:x?}: {:?}", engine.stats());
        assert_eq!(engine.poll(), []);
        got.extend(packets_of(&mut tenant.rx[0]));
        std::thread::yield_now();
    }
    got
}

#[test]
fn who_connects_is_announced_to_the_others() {
    for (workers, placement) in
        [(1, PlacementMode::Balanced), (2, PlacementMode::RunToCompletion), (3, PlacementMode::Static)]
    {
        let mut engine = Engine::replay(&announced(workers, placement), vec![]).unwrap();
        let mut web = connect(&mut engine, WEB);
        let mut db = connect(&mut engine, DB);
        let _loner = connect(&mut engine, LONER);
        let mut from_web = wait_for(&mut engine, &mut db, 2);
        from_web.sort(); // they are two flows
        assert_eq!(from_web[0], ndp::announcement(mac(1), "fd00::1".parse().unwrap(), false));
        assert_eq!(from_web[1], arp::announcement(mac(1), [10, 0, 0, 1].into()));
        assert_eq!(wait_for(&mut engine, &mut web, 1), [arp::reverse_request(mac(2))]);
        // Who comes again is announced again.
        engine.detach(DB);
        let _db = connect(&mut engine, DB);
        assert_eq!(wait_for(&mut engine, &mut web, 1), [arp::reverse_request(mac(2))]);
        let stats = engine.stop();
        assert!(stats.totals.conserved, "{stats:?}");
        // Where several workers serve them, one may hear of the other before its own tenant is there.
        assert!(stats.drops.keys().all(|reason| *reason == "flood_nobody"), "{stats:?}");
        let Totals { replicated, tenant_tx, dropped, tenant_rx, uplink_tx, .. } = stats.totals;
        assert_eq!(replicated, tenant_tx.frames + dropped, "made here");
        assert_eq!((tenant_rx.frames, uplink_tx.frames), (0, 0), "nobody sent any");
    }
}

#[test]
fn stations_are_announced_when_their_tenant_connects_and_a_new_one_alone() {
    for (workers, placement) in [(1, PlacementMode::Balanced), (2, PlacementMode::Static)] {
        let mut plan = announced(workers, placement);
        let station =
            |last: u8| Station { name: "s".into(), mac: mac(last), addresses: vec![[10, 0, 0, last].into()] };
        plan.endpoints[0].addresses.truncate(1);
        plan.endpoints[0].more = vec![station(5)];
        let mut web = plan.endpoints[0].clone();
        let mut engine = Engine::replay(&plan, vec![]).unwrap();
        let mut db = connect(&mut engine, DB);
        let _web = connect(&mut engine, WEB);
        let announced = |last: u8| arp::announcement(mac(last), [10, 0, 0, last].into()).to_vec();
        let mut heard = wait_for(&mut engine, &mut db, 2);
        heard.sort();
        assert_eq!(heard, [announced(1), announced(5)]);
        // One comes, and is the first now: only it is news. The second round of the others is two seconds later.
        web.more = vec![station(5), station(1)];
        (web.mac, web.addresses) = (mac(6), station(6).addresses);
        let change = |web| Change { endpoints: vec![(WEB, Some(web))], ..Change::default() };
        engine.change(change(web.clone())).unwrap();
        let mut heard = wait_for(&mut engine, &mut db, 4);
        assert_eq!(heard.remove(0), announced(6));
        heard.sort();
        assert_eq!(heard, [announced(1), announced(5), announced(6)]);
        // One goes, one has another address.
        web.more = vec![Station { addresses: vec![[10, 0, 0, 7].into()], ..station(5) }];
        engine.change(change(web)).unwrap();
        let moved = arp::announcement(mac(5), [10, 0, 0, 7].into()).to_vec();
        assert_eq!(wait_for(&mut engine, &mut db, 2), [moved.clone(), moved]);
        let stats = engine.stop();
        assert!(stats.totals.conserved, "{stats:?}");
    }
}

#[test]
fn who_comes_and_goes_all_the_time_is_announced_once_a_second() {
    let mut engine = Engine::replay(&announced(1, PlacementMode::Balanced), vec![]).unwrap();
    let mut db = connect(&mut engine, DB);
    let start = Instant::now();
    let mut heard = 0;
    for _ in 0..50 {
        let _web = connect(&mut engine, WEB);
        assert_eq!(engine.poll(), []);
        heard += packets_of(&mut db.rx[0]).len();
        engine.detach(WEB);
        assert_eq!(engine.poll(), []);
    }
    let stats = engine.stop();
    heard += packets_of(&mut db.rx[0]).len();
    let most = 2 * (start.elapsed().as_secs() as usize + 1);
    assert!(heard <= most, "{heard} of at most {most}");
    assert!(stats.totals.conserved, "{stats:?}");
}
