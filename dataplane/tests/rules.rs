//! Rules that are replaced while frames flow, over a veth with rings for urgent frames: nothing is lost, no frame is overtaken by another of
//! its flow and class, and the new rules come into force whatever the workers and the interface do meanwhile.
#![allow(
    unsafe_code,
    reason = "namespaces, packet sockets and filters for system calls have no safe wrapper"
)]

mod rig;
mod veth;

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use peregrine_dataplane::engine::{Engine, NextHop, RulesStep};
use peregrine_dataplane::plan::{Early, PlacementMode, Plan, RulePlan, WorkerPlan};
use peregrine_dataplane::stages::Stage;
use peregrine_dataplane::stats::Stats;
use peregrine_dataplane::types::{Class, CoreId, MacAddr, NetworkId, RemoteId, SourceId, UplinkId, Vni};
use peregrine_memif::{ClientConfig, Interface, ServerConfig};

use rig::{BLUE, Dice, WEB, flow, mac, packets_of, plan, rings};
use veth::filter::{answer, if_not_skip, install, load};
use veth::{OUR_ADDRESS, RawSocket, THEIR_ADDRESS, Vxlan, Wire, run, until};

const URGENT: RulePlan = RulePlan::any(Class::URGENT);
/// Long enough for a thousand changes on a busy machine.
const PATIENCE: Duration = Duration::from_secs(240);
const RING_SIZE: u32 = 1024;
/// Frames under way at most: fewer than each ring holds, so that none is lost for want of room,
const UNDER_WAY: u64 = 400;
/// and so many cycles each takes, so that most of them wait in the rings.
const WORK_CYCLES: u32 = 15_000;

/// The flow of these tests is urgent by none, by one that the driver follows, by one that it cannot follow, or with its whole network.
fn rule_sets() -> [Vec<RulePlan>; 4] {
    let network = Some(NetworkId(0));
    let port = RulePlan { network, protocol: Some(17), destination_port: Some(2000..=2000), ..URGENT };
    let address = RulePlan { address: Some("10.0.0.0/8".parse().unwrap()), ..URGENT };
    [vec![], vec![port], vec![address], vec![RulePlan { network, ..URGENT }]]
}

fn early_plan(workers: usize) -> Plan {
    let cores = core_affinity::get_core_ids().unwrap();
    let mut plan = plan();
    plan.workers = (0..workers).map(|n| WorkerPlan::on(CoreId(cores[n % cores.len()].id))).collect();
    plan.placement = PlacementMode::Static;
    let uplink = &mut plan.uplinks[0];
    (uplink.interface, uplink.locals, uplink.early) = ("a0".into(), vec![OUR_ADDRESS.into()], Early::On);
    uplink.ring_size = RING_SIZE;
    plan.networks[0].remotes = vec![THEIR_ADDRESS.into()];
    // Classes are used from the start, so each has its queue at a tenant with several.
    let [_, port, ..] = rule_sets();
    plan.classes.rules = port;
    plan
}

fn start(workers: usize) -> (Engine, Interface) {
    let mut engine = Engine::start(&early_plan(workers)).unwrap();
    let hop = NextHop {
        uplink: UplinkId(0),
        destination: MacAddr([2, 0, 0, 0, 9, 2]),
        source: MacAddr([2, 0, 0, 0, 9, 1]),
    };
    engine.set_paths([(RemoteId(0), SourceId(0), vec![hop.path(IpAddr::V4(OUR_ADDRESS), 1500)])]);
    let config = ClientConfig { queue_pairs: 2, ..ClientConfig::default() };
    let (client, server) = peregrine_memif::pair(config, ServerConfig::default()).unwrap();
    engine.attach(WEB, rings(server)).unwrap();
    // Each worker takes one order a turn: then the tenant is served.
    let turns = |engine: &Engine| engine.stats().workers.iter().map(|it| it.turns).collect::<Vec<_>>();
    let before = turns(&engine);
    until("the orders are done", || turns(&engine).iter().zip(&before).all(|(now, then)| *now > then + 8));
    (engine, client)
}

fn settle(engine: &mut Engine) {
    until("the rules are in force", || {
        assert_eq!(engine.poll(), []);
        engine.rules_status().is_settled()
    });
}

/// Frame after frame of one flow, each with its number, as long as not too many are under way.
struct Sender {
    sent: AtomicU64,
    got: AtomicU64,
    is_over: AtomicBool,
}

impl Sender {
    fn run(&self, peer: &RawSocket) {
        let inner = flow(mac(0x77), mac(1), 1000, 32);
        let mut frame = Vxlan { vni: BLUE, payload: inner, ..Vxlan::default() }.build();
        let number_at = frame.len() - 8;
        while !self.is_over.load(Ordering::Acquire) {
            let sent = self.sent.load(Ordering::Relaxed);
            if sent - self.got.load(Ordering::Acquire) < UNDER_WAY {
                frame[number_at..].copy_from_slice(&sent.to_be_bytes());
                peer.send(&frame);
                self.sent.store(sent + 1, Ordering::Release);
            } else {
                std::thread::yield_now();
            }
        }
    }

    fn got(&self) -> u64 {
        self.got.load(Ordering::Relaxed)
    }
}

/// Ends the sender whatever happens, so that a failure is told.
struct EndOnDrop<'a>(&'a Sender);

impl Drop for EndOnDrop<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Release);
    }
}

/// The tenant: what came, and in which class.
struct Tenant<'a> {
    client: Interface,
    sender: &'a Sender,
    seen: Vec<bool>,
    /// The largest number in each class.
    largest: [Option<u64>; 2],
    pushed: u64,
    deadline: Instant,
}

impl Tenant<'_> {
    /// How many frames came in each class.
    fn take(&mut self) -> [usize; 2] {
        let counts = [0, 1].map(|class: usize| {
            let got = packets_of(&mut self.client.rx[class]);
            for packet in &got {
                let number = u64::from_be_bytes(*packet.last_chunk().unwrap());
                let place = number as usize;
                if self.seen.len() <= place {
                    self.seen.resize(place + 1, false);
                }
                assert!(!std::mem::replace(&mut self.seen[place], true), "{number} twice");
                let before = self.largest[class].replace(number);
                assert!(before < Some(number), "class {class}: {number} after {before:?}");
            }
            got.len()
        });
        self.sender.got.fetch_add((counts[0] + counts[1]) as u64, Ordering::Release);
        assert!(Instant::now() < self.deadline, "{} of {:?} got", self.count(), self.sender.sent);
        counts
    }

    fn count(&self) -> u64 {
        self.sender.got.load(Ordering::Relaxed)
    }

    /// The other way: an answer now and then.
    fn answer(&mut self) {
        let tx = &mut self.client.tx[0];
        if tx.push(&flow(mac(1), mac(0x77), 2000, 32)).is_ok() {
            self.pushed += 1;
        }
        tx.flush().unwrap();
    }
}

/// So many changes of rules by which the flow changes its class, some of which are followed by the next one before they are in force, at whatever step.
fn change(workers: usize, queues: u32, changes: usize) {
    let wire = Wire::new(queues);
    let (mut engine, client) = start(workers);
    engine.work().set(Stage::Decap, WORK_CYCLES);
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    let sender = Sender { sent: 0.into(), got: 0.into(), is_over: false.into() };
    let mut tenant = Tenant {
        client,
        sender: &sender,
        seen: Vec::new(),
        largest: [None; 2],
        pushed: 0,
        deadline: Instant::now() + PATIENCE,
    };
    let sets = rule_sets();
    let mut dice = Dice::new(changes as u64);
    let (mut steps, mut settled, mut current) = (Vec::new(), 0, 1);
    std::thread::scope(|scope| {
        scope.spawn(|| sender.run(&peer));
        let _end = EndOnDrop(&sender);
        until("the first frames have arrived", || {
            tenant.take();
            tenant.count() > 0
        });
        for _ in 0..changes {
            current = (current + 1 + dice.below(3)) % 4;
            engine.set_rules(sets[current].clone()).unwrap();
            // At this step the next ones come; one time in three the rules come into force first.
            let until_step = [Some(RulesStep::Grace), Some(RulesStep::Rings), None][dice.below(3)];
            loop {
                assert_eq!(engine.poll(), []);
                tenant.take();
                let step = engine.rules_status().step;
                if !steps.contains(&step) {
                    steps.push(step);
                }
                if step == RulesStep::Settled || Some(step) == until_step {
                    break;
                }
            }
            tenant.answer();
            if !engine.rules_status().is_settled() {
                continue;
            }
            settled += 1;
            // What was taken from a ring before, by whatever rules, is delivered; what comes then is all of one class.
            let before = engine.stats().totals.tenant_tx.frames + UNDER_WAY;
            while tenant.count() < before {
                tenant.take();
            }
            let mut counts = [0; 2];
            while counts == [0; 2] {
                counts = tenant.take();
            }
            let other = usize::from(current != 0);
            assert_eq!(counts[other], 0, "after {settled} changes that came into force, to {current}");
        }
    });
    settle(&mut engine);
    let is_rest = |stats: &Stats| stats.totals.conserved && stats.totals.tenant_tx.frames == sender.got();
    until("all frames have arrived or are counted as lost", || {
        tenant.take();
        is_rest(&engine.stats())
    });
    assert_eq!(sender.got(), sender.sent.load(Ordering::Relaxed), "{:#?}", engine.stats());
    assert!(tenant.seen.iter().all(|seen| *seen));
    assert!(settled > changes / 5 && steps.len() >= 4, "{settled} of {changes}, {steps:?}");
    until("all answers have left", || engine.stats().totals.uplink_tx.frames == tenant.pushed);
    let stats = engine.stop();
    assert!(stats.totals.conserved && stats.totals.dropped == 0, "{:?} {:?}", stats.totals, stats.drops);
    let program = stats.uplinks[0].program.iter().map(|queue| (queue.steered, queue.urgent));
    let (steered, urgent) = program.fold((0, 0), |sum, queue| (sum.0 + queue.0, sum.1 + queue.1));
    assert_eq!(steered, tenant.seen.len() as u64);
    assert!(urgent > 0 && urgent < steered, "{urgent} of {steered} by the urgent ring");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_thousand_changes_lose_no_frame_and_none_is_overtaken_in_its_class() {
    change(1, 1, 1000);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn nor_do_they_with_two_workers_that_share_the_steps() {
    change(2, 2, 100);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_interface_that_is_down_or_gone_does_not_hold_rules_up() {
    let _wire = Wire::new(1);
    let (mut engine, _client) = start(1);
    settle(&mut engine);
    let [nothing, port, _, all] = rule_sets();
    for (command, rules) in
        [("ip link set a0 down", all), ("ip link set a0 up", nothing), ("ip link del a0", port)]
    {
        run(command);
        let count = rules.len();
        engine.set_rules(rules).unwrap();
        assert_eq!(engine.rules_status().step, RulesStep::Tables);
        settle(&mut engine);
        assert_eq!((engine.rules_status().count, engine.rules_status().not_early), (count, None));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_the_driver_does_not_take_holds_all_the_same() {
    let wire = Wire::new(1);
    let mut plan = early_plan(1);
    for more in 0..4096 {
        let mut network = plan.networks[1].clone();
        network.vni = Vni::new(1000 + more).unwrap();
        network.name = format!("n{more}");
        plan.networks.push(network);
    }
    let mut engine = Engine::start(&plan).unwrap();
    let peer = wire.in_theirs(|| RawSocket::new("b0"));
    let frame = Vxlan { vni: BLUE, payload: flow(mac(0x77), mac(1), 1000, 32), ..Vxlan::default() }.build();
    let arrives_urgent = |engine: &Engine| {
        let counted = || engine.stats().uplinks[0].program[0];
        let before = counted();
        peer.send(&frame);
        until("it is steered", || counted().steered > before.steered);
        counted().urgent > before.urgent
    };
    let network = RulePlan { network: Some(NetworkId(0)), ..URGENT };
    for _ in 0..2 {
        engine.set_rules(vec![network.clone()]).unwrap();
        settle(&mut engine);
        assert!(arrives_urgent(&engine));
        // More networks than the program has room for.
        engine.set_rules(vec![URGENT]).unwrap();
        settle(&mut engine);
        let status = engine.rules_status();
        assert_eq!(
            status.not_early.as_deref(),
            Some("4098 networks with rules for urgent frames: the XDP program has room for 4096")
        );
        assert!(status.count == 1 && !arrives_urgent(&engine));
    }
    engine.set_rules(vec![]).unwrap();
    settle(&mut engine);
    assert_eq!(engine.rules_status().not_early, None);
}

/// From here on this thread's changes of BPF maps fail as if there were no memory. A seccomp filter.
fn refuse_map_updates() {
    const BPF_MAP_UPDATE_ELEM: u32 = 2;
    let mut program = [
        load(0), // the number of the system call
        if_not_skip(libc::SYS_bpf as u32, 3),
        load(16), // its first argument
        if_not_skip(BPF_MAP_UPDATE_ELEM, 1),
        answer(libc::SECCOMP_RET_ERRNO | libc::ENOMEM as u32),
        answer(libc::SECCOMP_RET_ALLOW),
    ];
    install(&mut program);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_driver_that_takes_nothing_at_all_is_asked_again() {
    let _wire = Wire::new(1);
    let (mut engine, _client) = start(1);
    let [.., all] = rule_sets();
    std::thread::scope(|scope| {
        let refused = scope.spawn(|| {
            refuse_map_updates();
            engine.set_rules(all).unwrap();
            until("it is refused", || {
                assert_eq!(engine.poll(), []);
                engine.rules_status().not_early.is_some()
            });
            engine.rules_status()
        });
        let status = refused.join().unwrap();
        assert_eq!(status.step, RulesStep::Programs, "{status:?}");
    });
    settle(&mut engine);
    assert_eq!(engine.rules_status().not_early, None);
}
