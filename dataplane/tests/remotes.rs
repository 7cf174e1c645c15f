//! Remotes that come and go while frames flow, senders that a network takes without knowing them, and addresses that move too often.

mod rig;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peregrine_dataplane::counters::DropReason;
use peregrine_dataplane::discard::DiscardCounters;
use peregrine_dataplane::engine::{AddressFilter, Engine, NextHop, REMOTES_LATER, Standing};
use peregrine_dataplane::fdb::{Destination, Entry};
use peregrine_dataplane::plan::{InnerVlan, PlacementMode, Plan, WorkerPlan};
use peregrine_dataplane::replay::{Pace, ReplayFrame, ReplayStream, STAMP, Speed};
use peregrine_dataplane::stats::NetworkStats;
use peregrine_dataplane::types::{CoreId, MacAddr, NetworkId, RemoteId, SourceId, UplinkId};
use peregrine_memif::{ClientConfig, Interface, ServerConfig};
use rig::{
    BLUE, DB, OUR_VTEP, RED, REMOTE_A, REMOTE_B, Rig, STRANGER, WEB, flow, inner, mac, plan, rings, vxlan,
};

const PATIENCE: Duration = Duration::from_secs(120);
const NETWORK: NetworkId = NetworkId(0);
/// Cycles from frame to frame.
const INTERVAL: f64 = 20_000.0;

/// Remotes that come and go.
const COMERS: u8 = 32;

/// Remote `n` of them, and the address behind it.
fn comer(n: u8) -> (Ipv4Addr, MacAddr) {
    (Ipv4Addr::new(198, 51, 100, n), mac(0x80 + n))
}

/// From a VTEP, for the second tenant, in this flow.
fn frame(from: Ipv4Addr, source: MacAddr, number: u32) -> ReplayFrame {
    let mut bytes = vxlan(from, BLUE, &flow(source, mac(2), 1000 + number as u16, 22 + STAMP));
    bytes[40..42].fill(0); // no outer checksum: the stamp would make it wrong
    ReplayFrame { flow: number, bytes }
}

/// One at a time: the workers of several would wait for each other's cores.
static ALONE: Mutex<()> = Mutex::new(());

/// The second tenant counts what comes in flows; the first one is this test.
struct Traffic {
    engine: Engine,
    pace: Arc<Pace>,
    client: Interface,
    counts: Arc<DiscardCounters>,
    /// Packets in the ring of this test, taken or not.
    sent: u64,
    _alone: MutexGuard<'static, ()>,
}

impl Traffic {
    fn new(plan: Plan, workers: usize, frames: Vec<ReplayFrame>) -> Traffic {
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let cores = core_affinity::get_core_ids().unwrap();
        let worker = |n: usize| WorkerPlan::on(CoreId(cores[n % cores.len()].id));
        let mut plan =
            Plan { workers: (0..workers).map(worker).collect(), placement: PlacementMode::Static, ..plan };
        plan.uplinks[0].ring_size = 1024;
        let flows = frames.len();
        let pace = Arc::new(Pace::new(Speed::Every(INTERVAL)));
        let stream = ReplayStream { frames, pace: pace.clone(), field: None, is_urgent: false };
        let mut engine = Engine::replay_streams(&plan, vec![vec![stream]]).unwrap();
        let counts = engine.attach_discard(DB, flows).unwrap();
        let (client, server) =
            peregrine_memif::pair(ClientConfig::default(), ServerConfig::default()).unwrap();
        engine.attach(WEB, rings(server)).unwrap();
        Traffic { engine, pace, client, counts, sent: 0, _alone: alone }
    }

    fn poll(&mut self) {
        assert_eq!(self.engine.poll(), []);
        let rx = &mut self.client.rx[0];
        rx.pending().unwrap();
        while rx.next_packet().is_some() {}
        rx.release();
        std::thread::yield_now();
    }

    fn until(&mut self, what: &str, mut is_so: impl FnMut(&mut Traffic) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(self) {
            assert!(Instant::now() < deadline, "{what}: {:#?}", self.engine.stats());
            self.poll();
        }
    }

    fn send(&mut self, packet: &[u8]) {
        let tx = &mut self.client.tx[0];
        self.sent += u64::from(tx.push(packet).is_ok()); // a full ring: there is enough
        tx.flush().unwrap();
    }

    fn of_flow(&self, number: usize) -> u64 {
        self.counts.by_flow[number].get()
    }

    fn remote(&self, address: Ipv4Addr) -> Option<RemoteId> {
        self.engine.remotes().find(|(_, known)| *known == IpAddr::V4(address)).map(|(id, _)| id)
    }

    fn resolve(&mut self, address: Ipv4Addr) -> RemoteId {
        let remote = self.remote(address).unwrap();
        let hop = NextHop { uplink: UplinkId(0), destination: mac(0xaa), source: mac(0xbb) };
        self.engine.set_paths([(remote, SourceId(0), vec![hop.path(OUR_VTEP.into(), 1500)])]);
        remote
    }

    fn blue(&self) -> NetworkStats {
        self.engine.stats().networks.swap_remove(0)
    }

    /// Nothing comes any more, and everything that was sent is where it goes.
    fn come_to_rest(&mut self) {
        self.pace.set(Speed::Stopped);
        // Counters of several workers are read one after the other: what moves meanwhile may hide what is on its way. Twice the same is rest.
        let mut last = None;
        self.until("it does not come to rest", |traffic| {
            let stats = traffic.engine.stats();
            let all_taken = stats.endpoints[WEB.index()].from_tenant.frames == traffic.sent;
            let now = (stats.totals.conserved && all_taken).then(|| format!("{:?}", stats.totals));
            let rests = now.is_some() && now == last;
            last = now;
            rests
        });
    }

    fn stop(mut self) {
        self.come_to_rest();
        let stats = self.engine.stop();
        assert!(stats.totals.conserved, "{:?}", stats.totals);
    }
}

/// A remote that comes and goes, and what is so before it goes on.
#[derive(Debug)]
struct Comer {
    number: u8,
    rounds: usize,
    step: Step,
}

#[derive(Debug)]
enum Step {
    /// It is no remote, and nothing goes to its id: while the others' frames went on, no frame came from it, and none went there.
    Gone { remote: RemoteId, counts: (u64, u64), others: Others },
    /// Frames from it come, and its address is behind it; frames go there, and some are flooded to it.
    Here { remote: RemoteId, came: u64 },
    /// It is removed, and still leaves.
    Leaving { remote: RemoteId },
}

/// What flows besides: frames of the remote that stays, and frames taken from the tenant that sends to all of them.
type Others = (u64, u64);

impl Comer {
    /// Adds it.
    fn come(number: u8, rounds: usize, traffic: &mut Traffic) -> Comer {
        let (address, came) = (comer(number).0, traffic.of_flow(number.into()));
        traffic.engine.add_remote(NETWORK, address.into()).unwrap();
        Comer { number, rounds, step: Step::Here { remote: traffic.resolve(address), came } }
    }

    /// Where it can, one step. True if it came once more.
    fn go_on(&mut self, others: Others, traffic: &mut Traffic) -> bool {
        let ((address, behind), flow) = (comer(self.number), usize::from(self.number));
        let entry = |traffic: &Traffic| traffic.engine.fdb().find(|entry| entry.mac == behind);
        let counts =
            |remote, traffic: &Traffic| (traffic.engine.frames_towards(remote), traffic.of_flow(flow));
        match self.step {
            Step::Here { remote, came } => {
                let is_there =
                    entry(traffic).is_some_and(|entry| entry.destination == Destination::Remote(remote));
                if is_there && traffic.of_flow(flow) > came && traffic.engine.frames_towards(remote) > 0 {
                    assert_eq!(traffic.engine.remove_remote(NETWORK, address.into()), Ok(0));
                    self.step = Step::Leaving { remote };
                }
            }
            Step::Leaving { remote } => {
                if traffic.engine.members().all(|member| member.remote != remote) {
                    self.step = Step::Gone { remote, counts: counts(remote, traffic), others };
                }
            }
            Step::Gone { remote, counts: before, others: (heard, taken) } => {
                if others.0 > heard + 1 && others.1 > taken + 64 {
                    assert_eq!((counts(remote, traffic), entry(traffic)), (before, None), "{self:?}");
                    *self = Comer::come(self.number, self.rounds + 1, traffic);
                    return true;
                }
            }
        }
        false
    }
}

/// Frames from them, to addresses behind them, and flooded to them, all the time, and each of them somewhere else on its way in and
/// out: nothing is lost that is not counted, and none goes to one that is gone. With one worker so often that ids are used again.
#[test]
fn thousands_of_times_remotes_come_and_go() {
    for (workers, rounds, are_ids_used_again) in [(1, 2 * REMOTES_LATER + 200, true), (2, 500, false)] {
        let stays = usize::from(COMERS);
        let sources = (0..=COMERS).map(|n| if n == COMERS { (REMOTE_A, mac(0x70)) } else { comer(n) });
        let frames = (0..).zip(sources).map(|(n, (from, source))| frame(from, source, n)).collect();
        let mut traffic = Traffic::new(plan(), workers, frames);
        traffic.resolve(REMOTE_A);
        let mut comers: Vec<Comer> = (0..COMERS).map(|n| Comer::come(n, 0, &mut traffic)).collect();
        let (mut come, deadline) = (comers.len(), Instant::now() + PATIENCE);
        while come < rounds {
            assert!(Instant::now() < deadline, "{come}: {comers:#?} {:#?}", traffic.engine.stats());
            let taken = traffic.engine.stats().endpoints[WEB.index()].from_tenant.frames;
            let others = (traffic.of_flow(stays), taken);
            for comer in &mut comers {
                come += usize::from(comer.go_on(others, &mut traffic));
            }
            for n in 0..COMERS {
                traffic.send(&inner(mac(1), comer(n).1, 30));
            }
            traffic.send(&inner(mac(1), MacAddr::BROADCAST, 30));
            traffic.poll();
        }
        assert!(comers.iter().all(|comer| comer.rounds > 0), "{comers:#?}");
        let ids = traffic.engine.remotes().map(|(id, _)| id.index());
        assert_eq!(ids.max() < Some(come), are_ids_used_again);
        assert_eq!(traffic.blue().learn_refused, 0);
        traffic.stop();
    }
}

#[test]
fn a_sender_that_is_not_known_becomes_a_remote_where_any_may_be_one() {
    let mut plan = plan();
    plan.networks[0].any_remote = true;
    let (address, behind) = comer(1);
    let mut traffic = Traffic::new(plan, 2, vec![frame(address, behind, 0), frame(STRANGER, mac(2), 1)]);
    traffic.until("it is not found", |traffic| {
        traffic.engine.members().any(|member| member.standing == Standing::Discovered)
    });
    let remote = traffic.resolve(address);
    traffic.until("its address is not learned", |traffic| traffic.blue().fdb_learned == 1);
    let to_it = inner(mac(1), behind, 30);
    traffic.until("nothing goes to it", |traffic| {
        traffic.send(&to_it);
        traffic.engine.frames_towards(remote) > 0
    });
    traffic.come_to_rest();
    let unicast = traffic.engine.frames_towards(remote);
    traffic.send(&inner(mac(1), MacAddr::BROADCAST, 30));
    traffic.come_to_rest();
    assert_eq!(traffic.engine.frames_towards(remote), unicast, "nothing is flooded to it");
    assert!(traffic.of_flow(0) > 0);
    // Who sends from a tenant's address is nobody's remote.
    assert_eq!((traffic.of_flow(1), traffic.remote(STRANGER)), (0, None));
    assert!(traffic.engine.stats().drops["source_spoofed"] > 0);
    assert_eq!((traffic.blue().discovered, traffic.blue().discoveries_refused), (1, 0));
    traffic.stop();
}

#[test]
fn a_stranger_is_heard_and_not_believed() {
    let mut rig = Rig::new();
    let from_it = vxlan(STRANGER, BLUE, &inner(mac(0x50), mac(1), 30));
    assert_eq!(rig.receive(std::slice::from_ref(&from_it)).len() + rig.tenant_gets(WEB).len(), 0);
    assert_eq!(rig.dropped(DropReason::RemoteUnknown), 1);
    rig.tables.networks[0].any_remote = true;
    let broadcast = inner(mac(0x50), MacAddr::BROADCAST, 30);
    let sent = rig.receive(&[from_it.clone(), vxlan(STRANGER, BLUE, &broadcast), from_it]);
    assert!(sent.is_empty(), "nothing goes back to the underlay");
    let wanted = inner(mac(0x50), mac(1), 30);
    assert_eq!(rig.tenant_gets(WEB), [wanted.clone(), broadcast.clone(), wanted]);
    assert_eq!(rig.tenant_gets(DB), [broadcast]);
    assert_eq!(rig.fdb.lookup(NETWORK, mac(0x50)), None);
    // Neither from a tenant's address, nor for an address behind a remote, nor to another network.
    rig.receive(&[vxlan(STRANGER, BLUE, &inner(mac(2), mac(1), 30))]);
    rig.fdb.learn(NETWORK, mac(0x51), RemoteId(0), 0, 64);
    rig.receive(&[vxlan(STRANGER, BLUE, &inner(mac(0x50), mac(0x51), 30))]);
    rig.receive(&[vxlan(STRANGER, RED, &inner(mac(0x50), mac(1), 30))]);
    for (reason, count) in
        [(DropReason::SourceSpoofed, 1), (DropReason::SplitHorizon, 1), (DropReason::RemoteUnknown, 2)]
    {
        assert_eq!(rig.dropped(reason), count, "{reason:?}");
    }
    // A remote, but of another network only; and what is cut short.
    rig.tables.networks[1].any_remote = true;
    let to_red = inner(mac(0x50), mac(1), 30);
    rig.receive(&[
        vxlan(REMOTE_A, RED, &to_red),
        vxlan(REMOTE_A, BLUE, &to_red),
        vxlan(REMOTE_A, RED, &to_red),
    ]);
    assert_eq!(rig.tenant_gets(rig::LONER), [to_red.clone(), to_red.clone()]);
    assert_eq!(rig.tenant_gets(WEB), [to_red]);
    assert_eq!(rig.fdb.lookup(NetworkId(1), mac(0x50)), None);
    rig.receive(&[vxlan(STRANGER, BLUE, &[0; 5])]);
    assert_eq!(rig.dropped(DropReason::InnerTruncated), 1);
}

#[test]
fn nobody_sends_from_an_address_that_no_other_host_has() {
    let mut rig = Rig::new();
    rig.tables.networks[0].any_remote = true;
    let nobodys = [[0, 0, 0, 0], [0, 1, 2, 3], [255; 4], [224, 0, 0, 1], [127, 0, 0, 1], OUR_VTEP.octets()];
    // From a tenant's address, too: the FDB is not asked.
    for (n, source) in nobodys.into_iter().flat_map(|address| [(address, mac(0x50)), (address, mac(2))]) {
        assert!(rig.receive(&[vxlan(n.into(), BLUE, &inner(source, mac(1), 30))]).is_empty());
    }
    assert_eq!(rig.tenant_gets(WEB).len(), 0);
    assert_eq!(rig.dropped(DropReason::RemoteUnknown), 2 * nobodys.len() as u64);
}

#[test]
fn one_that_was_removed_is_not_heard() {
    let mut rig = Rig::new();
    rig.tables.networks[0].any_remote = true;
    rig.tables.networks[0].barred = [STRANGER.into()].into();
    rig.receive(&[vxlan(STRANGER, BLUE, &inner(mac(0x50), mac(1), 30))]);
    assert_eq!((rig.tenant_gets(WEB).len(), rig.dropped(DropReason::RemoteUnknown)), (0, 1));
}

#[test]
fn a_discovered_remote_takes_no_address_from_a_known_one() {
    let mut rig = Rig::new();
    let network = NetworkId(0);
    rig.tables.networks[0].any_remote = true;
    let remote = |rig: &Rig, address| rig.tables.remote_by_ipv4(address).unwrap();
    let [a, b] = [REMOTE_A, REMOTE_B].map(|address| remote(&rig, address));
    rig.tables.set_members(network, [a].into(), &[b]); // the other one was only discovered
    for (from, source, wanted) in [
        (REMOTE_A, 0x50, a),
        (REMOTE_B, 0x50, a),
        (REMOTE_B, 0x51, b),
        (REMOTE_A, 0x51, a),
        (REMOTE_B, 0x51, a),
    ] {
        rig.receive(&[vxlan(from, BLUE, &inner(mac(source), mac(1), 30))]);
        assert_eq!(rig.tenant_gets(WEB).len(), 1, "it is delivered");
        assert_eq!(rig.fdb.lookup(network, mac(source)), Some(Destination::Remote(wanted)), "{source:x}");
    }
}

/// Who has two addresses on the underlay moves a station's to and fro until it is held at one of them: not where somebody told us where it
/// is.
#[test]
fn two_discovered_remotes_hold_an_address_among_themselves_only() {
    let mut plan = plan();
    (plan.networks[0].any_remote, plan.networks[0].move_limit) = (true, 2);
    let hostile = [comer(1).0, comer(2).0];
    plan.networks[0].remotes.extend(hostile.map(IpAddr::V4));
    let mut rig = Rig::with(plan);
    let ids = [REMOTE_A, REMOTE_B, hostile[0], hostile[1]].map(|it| rig.tables.remote_by_ipv4(it).unwrap());
    rig.tables.set_members(NETWORK, [ids[0], ids[1]].into(), &ids[2..]);
    let stations = mac(0x50);
    let pin = |rig: &mut Rig, source| {
        for from in hostile.iter().cycle().take(8) {
            rig.receive(&[vxlan(*from, BLUE, &inner(source, mac(2), 30))]);
        }
    };
    pin(&mut rig, stations);
    let is_it = |entry: &Entry, mac| (entry.network, entry.mac) == (NETWORK, mac);
    let entry = |rig: &Rig, mac| rig.fdb.entries().find(|entry| is_it(entry, mac)).unwrap();
    assert!(entry(&rig, stations).held_until_s.is_some(), "it is undecided whose it is");
    rig.receive(&[vxlan(REMOTE_A, BLUE, &inner(stations, mac(2), 30))]);
    pin(&mut rig, stations);
    let held = entry(&rig, stations);
    assert_eq!((held.destination, held.held_until_s), (Destination::Remote(ids[0]), None));
    // It may go to another host of ours, to and fro as often as any.
    rig.receive(&[vxlan(REMOTE_B, BLUE, &inner(stations, mac(2), 30))]);
    assert_eq!(entry(&rig, stations).destination, Destination::Remote(ids[1]));
    // A tenant's is where it is, and so is what the config or somebody by hand has put behind a remote.
    pin(&mut rig, mac(1));
    assert_eq!(entry(&rig, mac(1)).destination, Destination::Local(WEB));
    let fixed = mac(0x51);
    pin(&mut rig, fixed);
    assert!(rig.fdb.set_fixed(NETWORK, fixed, Destination::Remote(ids[0])));
    let before = rig.dropped(DropReason::SourceSpoofed);
    pin(&mut rig, fixed);
    assert_eq!(rig.dropped(DropReason::SourceSpoofed), before + 8);
    assert_eq!(entry(&rig, fixed).destination, Destination::Remote(ids[0]));
}

#[test]
fn no_remote_is_made_of_rubbish() {
    for (inner_vlan, sound, reasons) in [
        (InnerVlan::Drop, &[0, 4][..], &[("inner_too_long", 2), ("inner_vlan_tagged", 2)][..]),
        (InnerVlan::Carry, &[0, 4, 6], &[("inner_too_long", 3)]),
        (InnerVlan::Strip, &[0, 4, 6], &[("inner_too_long", 3)]),
    ] {
        let mut plan = plan();
        plan.networks[0].any_remote = true;
        plan.networks[0].inner_vlan = inner_vlan;
        let from = |n: u8, bytes: &[u8]| {
            let mut bytes = vxlan(comer(n).0, BLUE, bytes);
            bytes[40..42].fill(0); // as above
            ReplayFrame { flow: u32::from(n), bytes }
        };
        let longest = usize::from(plan.networks[0].mtu) - 28;
        let of_len = |len| inner(mac(0x50), mac(2), len);
        let tagged = |len| {
            let mut bytes = of_len(len);
            bytes.splice(12..12, [0x81, 0, 0, 7]);
            bytes
        };
        let frames = vec![
            frame(comer(0).0, comer(0).1, 0),
            from(1, &inner(MacAddr([0; 6]), mac(2), 30)),
            from(2, &inner(MacAddr::BROADCAST, mac(2), 30)),
            from(3, &of_len(1600)),
            from(4, &of_len(longest)),
            from(5, &of_len(longest + 1)),
            from(6, &tagged(longest)),
            from(7, &tagged(longest + 1)),
        ];
        let mut traffic = Traffic::new(plan, 2, frames);
        traffic.until("not all of them are seen", |traffic| {
            let drops = traffic.engine.stats().drops;
            let is_seen = |&(reason, senders): &(&str, u64)| drops[reason] > 10 * senders;
            is_seen(&("inner_source_invalid", 2)) && reasons.iter().all(is_seen)
        });
        traffic.until("not all are found", |traffic| {
            sound.iter().all(|n| traffic.remote(comer(*n).0).is_some())
        });
        assert_eq!(traffic.blue().discovered, sound.len(), "{inner_vlan:?}");
        traffic.stop();
    }
}

#[test]
fn an_address_in_two_places_is_held_and_its_frames_are_delivered() {
    let mut plan = plan();
    plan.networks[0].move_limit = 2;
    let twice = mac(0x60);
    let mut traffic = Traffic::new(plan, 2, vec![frame(REMOTE_A, twice, 0), frame(REMOTE_B, twice, 1)]);
    traffic.until("it is not held", |traffic| traffic.blue().moves_damped > 100);
    assert_eq!(traffic.blue().moved, 2);
    let before = [traffic.of_flow(0), traffic.of_flow(1)];
    traffic.until("one is not heard", |traffic| {
        traffic.of_flow(0) > before[0] && traffic.of_flow(1) > before[1]
    });
    let entry = traffic.engine.fdb().find(|entry| entry.mac == twice).unwrap();
    assert!(entry.held_until_s.is_some_and(|until_s| until_s >= 30), "{entry:?}");
    // Forgotten by hand, it begins again.
    let filter = AddressFilter { mac: Some(twice), ..AddressFilter::default() };
    let flushed = traffic.engine.flush(filter, 0);
    assert_eq!((flushed.addresses, flushed.next), (1, None));
    traffic.until("it is not held again", |traffic| traffic.blue().moved == 4);
    traffic.stop();
}
