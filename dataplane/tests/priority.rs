//! Priority classes from the wire to the tenant and back, over a veth: the order in which packets are delivered, looked at one by one
//! while there is more to do than the worker can, which has work added to each packet. How fast it all is, is not asked here.

mod rig;
mod veth;

use std::net::IpAddr;

use etherparse::PacketBuilder;
use peregrine_dataplane::engine::{Engine, NextHop};
use peregrine_dataplane::plan::{
    ClassPlan, ClassesPlan, Early, PlacementMode, Plan, RulePlan, WorkOrder, WorkerPlan,
};
use peregrine_dataplane::stages::Stage;
use peregrine_dataplane::types::{Class, CoreId, MacAddr, RemoteId, SourceId, UplinkId};
use peregrine_dataplane::xsk::XskConfig;
use peregrine_memif::{ClientConfig, Interface, ServerConfig};
use rig::{WEB, mac, packets_of, plan, rings};
use veth::{End, OUR_ADDRESS, RawSocket, THEIR_ADDRESS, Vxlan, Wire, config, until};

const URGENT_PORT: u16 = 5201;
const NORMAL_PORT: u16 = 9000;
const FLOWS: u16 = 4;
const FAR: u8 = 0x77;
const EF: u8 = 46;
/// Added to each packet's way, in cycles: some 10 µs, which is more than it takes to send one.
const WORK: u32 = 25_000;

/// And how many less urgent packets may come before one that was sent before them: in batches, one burst that came just before may be a
/// step ahead, and stay so.
const ORDERS: [(WorkOrder, usize); 2] = [(WorkOrder::Sync, 0), (WorkOrder::Batch, 64)];

/// What a packet is: its place in the order of sending, over all.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Packet {
    is_urgent: bool,
    flow: u16,
    number: u32,
}

impl Packet {
    /// Every `nth` is urgent; flows take turns.
    fn new(number: u32, nth: u32) -> Packet {
        Packet { is_urgent: number % nth == nth - 1, flow: (number / nth) as u16 % FLOWS, number }
    }

    fn inner(self, from: MacAddr, to: MacAddr) -> Vec<u8> {
        let port = if self.is_urgent { URGENT_PORT } else { NORMAL_PORT };
        let mut out = Vec::new();
        PacketBuilder::ethernet2(from.0, to.0)
            .ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64)
            .udp(1000 + self.flow, port)
            .write(&mut out, &self.number.to_be_bytes())
            .unwrap();
        out.resize(60, 0);
        out
    }

    /// Of an inner frame.
    fn of(frame: &[u8]) -> Packet {
        let word = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        let number = u32::from_be_bytes(frame[42..46].try_into().unwrap());
        Packet { is_urgent: word(36) == URGENT_PORT, flow: word(34) - 1000, number }
    }
}

/// What is measured of an order of delivery.
#[derive(Debug, Default)]
struct Seen {
    /// Urgent packets.
    urgent: usize,
    /// For each urgent packet, how many normal ones that were sent before it came after it.
    overtaken: Vec<usize>,
    /// How many normal packets at most came before an urgent one that was sent before them.
    inverted: usize,
}

/// Looks at what was delivered: every flow in order, and what overtook what.
fn look(got: &[Packet]) -> Seen {
    let mut seen = Seen::default();
    for is_urgent in [true, false] {
        for flow in 0..FLOWS {
            let its = got.iter().filter(|packet| packet.is_urgent == is_urgent && packet.flow == flow);
            let numbers: Vec<u32> = its.map(|packet| packet.number).collect();
            assert!(numbers.is_sorted_by(|a, b| a < b), "urgent {is_urgent}, flow {flow}: {numbers:?}");
        }
    }
    for (place, urgent) in got.iter().enumerate().filter(|(_, packet)| packet.is_urgent) {
        let normal = |packet: &&Packet| !packet.is_urgent;
        let (before, after) = (got[..place].iter().filter(normal), got[place..].iter().filter(normal));
        seen.urgent += 1;
        seen.overtaken.push(after.filter(|packet| packet.number < urgent.number).count());
        seen.inverted = before.filter(|packet| packet.number > urgent.number).count().max(seen.inverted);
    }
    seen
}

fn classes(order: WorkOrder) -> ClassesPlan {
    let urgent = ClassPlan { order, dscp: EF, ..ClassPlan::new("urgent") };
    ClassesPlan {
        list: vec![urgent, ClassPlan::new("normal")],
        rules: vec![RulePlan {
            destination_port: Some(URGENT_PORT..=URGENT_PORT),
            ..RulePlan::any(Class::URGENT)
        }],
        ..ClassesPlan::default()
    }
}

/// An engine on our end of a wire, and its tenant.
struct Bench {
    engine: Engine,
    client: Interface,
    wire: Wire,
}

impl Bench {
    fn new(queue_pairs: u16, change: impl FnOnce(&mut Plan)) -> Bench {
        let wire = Wire::new(1);
        let mut plan = plan();
        plan.workers = vec![worker(0)];
        let uplink = &mut plan.uplinks[0];
        (uplink.interface, uplink.locals) = ("a0".into(), vec![IpAddr::V4(OUR_ADDRESS)]);
        uplink.ring_size = 4096;
        plan.networks[0].remotes = vec![IpAddr::V4(THEIR_ADDRESS)];
        change(&mut plan);
        let mut engine = Engine::start(&plan).unwrap();
        let hop = NextHop {
            uplink: UplinkId(0),
            destination: MacAddr([2, 0, 0, 0, 9, 2]),
            source: MacAddr([2, 0, 0, 0, 9, 1]),
        };
        engine.set_paths([(RemoteId(0), SourceId(0), vec![hop.path(IpAddr::V4(OUR_ADDRESS), 1500)])]);
        let config = ClientConfig { queue_pairs, ring_log2: 12, ..ClientConfig::default() };
        let (client, server) = peregrine_memif::pair(config, ServerConfig::default()).unwrap();
        engine.attach(WEB, rings(server)).unwrap();
        // So that the worker knows where it is, and the tenant has been served once.
        let mut bench = Bench { engine, client, wire };
        bench.client.tx[0].push(&Packet::new(0, 2).inner(mac(1), mac(FAR))).unwrap();
        bench.client.tx[0].flush().unwrap();
        bench.wait(|bench| bench.engine.stats().totals.uplink_tx.frames == 1);
        bench
    }

    fn wait(&mut self, mut done: impl FnMut(&mut Bench) -> bool) {
        until("all is delivered", || {
            assert_eq!(self.engine.poll(), []);
            done(self)
        });
    }

    /// Sends so many packets to the tenant, every `nth` urgent, faster than they can be handled; what the tenant got, by queue.
    fn send_in(&mut self, count: u32, nth: u32) -> Vec<Vec<Packet>> {
        self.engine.work().set(Stage::Decap, WORK);
        let before = self.engine.stats().totals;
        let frames: Vec<Vec<u8>> = (0..count)
            .map(|number| Packet::new(number, nth).inner(mac(FAR), mac(1)))
            .map(|payload| Vxlan { vni: rig::BLUE, payload, ..Vxlan::default() }.build())
            .collect();
        self.wire.in_theirs(|| {
            let socket = RawSocket::new("b0");
            frames.iter().for_each(|frame| socket.send(frame));
        });
        self.wait(|bench| {
            let totals = bench.engine.stats().totals;
            totals.uplink_rx.frames - before.uplink_rx.frames == u64::from(count) && totals.conserved
        });
        let packets = |rx| packets_of(rx).iter().map(|frame| Packet::of(frame)).collect();
        self.client.rx.iter_mut().map(packets).collect()
    }

    /// The other end of the wire, to take what is sent. It has sent a packet, so it is known where the far station is.
    fn far(&mut self) -> End {
        let everything =
            XskConfig { everything: true, steering: None, ring_size: 4096, ..config("b0", THEIR_ADDRESS) };
        let mut far = self.wire.in_theirs(|| End::open(&everything, &[0])).unwrap();
        let learn = Packet::new(0, 2).inner(mac(FAR), mac(1));
        far.transmit(0, &Vxlan { vni: rig::BLUE, payload: learn, ..Vxlan::default() }.build(), 0);
        far.turn();
        self.wait(|bench| bench.engine.stats().totals.tenant_tx.frames == 1);
        far
    }

    /// Frames in are frames out and drops, also of each class; what was dropped of each.
    fn stop(self) -> [u64; 2] {
        let stats = self.engine.stop();
        assert!(stats.totals.conserved, "{:?}", stats.totals);
        [0, 1].map(|class: usize| {
            let frames = &stats.classes[class].frames;
            let (came, went) = (frames.uplink_rx + frames.tenant_rx, frames.uplink_tx + frames.tenant_tx);
            assert_eq!(came + frames.replicated, went + frames.dropped, "{frames:?}");
            frames.dropped
        })
    }
}

fn worker(place: usize) -> WorkerPlan {
    let cores = core_affinity::get_core_ids().unwrap();
    WorkerPlan::on(CoreId(cores[(cores.len() - 1 + place) % cores.len()].id))
}

/// Sends in with this order of work; what was seen.
fn deliver(order: WorkOrder, early: Early) -> Seen {
    let mut bench = Bench::new(1, |plan| {
        plan.classes = classes(order);
        plan.uplinks[0].early = early;
    });
    let got = bench.send_in(2000, 10).concat();
    assert_eq!(got.len(), 2000, "none is lost");
    assert_eq!(bench.stop(), [0, 0]);
    let seen = look(&got);
    assert_eq!(seen.urgent, 200);
    seen
}

#[test]
#[ignore = "needs root: make test runs it"]
fn with_rings_of_their_own_urgent_packets_overtake_all_that_waits_and_nothing_overtakes_them() {
    for (order, ahead) in ORDERS {
        let seen = deliver(order, Early::On);
        assert!(seen.inverted <= ahead, "{order:?}: {seen:?}");
        let most = seen.overtaken.iter().max().unwrap();
        assert!(*most > 64, "{order:?}: more than a burst waits before the first step: {seen:?}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn without_them_urgent_packets_overtake_what_came_in_the_same_burst() {
    for (order, ahead) in ORDERS {
        let seen = deliver(order, Early::Off);
        assert!(seen.inverted <= ahead, "{order:?}: {seen:?}");
        let (most, all) = (seen.overtaken.iter().max().unwrap(), seen.overtaken.iter().sum::<usize>());
        assert!(*most < 64 && all > 0, "{order:?}: {seen:?}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn where_no_class_is_preferred_packets_come_as_they_were_sent() {
    let seen = deliver(WorkOrder::Fifo, Early::Off);
    assert_eq!((seen.overtaken.iter().sum::<usize>(), seen.inverted), (0, 0));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn urgent_packets_go_first_over_several_workers_too() {
    for early in [Early::On, Early::Off] {
        let mut bench = Bench::new(1, |plan| {
            plan.classes = classes(WorkOrder::Sync);
            plan.uplinks[0].early = early;
            plan.placement = PlacementMode::Static;
            plan.workers = vec![worker(0), worker(1)];
        });
        let got = bench.send_in(2000, 10).concat();
        let dropped = bench.stop();
        // What is too much for the ring to the other worker is lost, but not of the class that has another ring.
        assert_eq!((dropped[0], dropped[1] as usize + got.len()), (0, 2000));
        let seen = look(&got);
        assert_eq!(seen.urgent, 200);
        assert!(seen.overtaken.iter().sum::<usize>() > 0, "{early:?}: {seen:?}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_tenant_with_two_queues_has_one_for_urgent_packets() {
    let mut bench = Bench::new(2, |plan| plan.classes = classes(WorkOrder::Sync));
    let got = bench.send_in(1000, 4);
    assert_eq!(bench.stop(), [0, 0]);
    assert!(got[0].len() == 250 && got[0].iter().all(|packet| packet.is_urgent));
    assert!(got[1].len() == 750 && got[1].iter().all(|packet| !packet.is_urgent));
    got.iter().for_each(|queue| assert_eq!(look(queue).inverted, 0));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn others_do_not_starve_behind_urgent_packets() {
    let mut bench = Bench::new(1, |plan| {
        plan.classes = ClassesPlan { urgent_quota: 2, ..classes(WorkOrder::Sync) };
        plan.classes.rules[0].destination_port = Some(NORMAL_PORT..=NORMAL_PORT);
        plan.uplinks[0].early = Early::On;
    });
    let got = bench.send_in(2000, 4).concat();
    assert_eq!((got.len(), bench.stop()), (2000, [0, 0]));
    // Those with URGENT_PORT are the normal ones here. By the time that half of the others are through, some of them are.
    let others = got.iter().position(|packet| packet.number >= 1200 && !packet.is_urgent).unwrap();
    let through = got[..others].iter().filter(|packet| packet.is_urgent).count();
    assert!(through >= 128, "{through} of 500");
}

/// A tenant sends, each packet by the queue that is said; what comes to the far end, in order.
fn send_out(queue: impl Fn(Packet) -> usize) -> Seen {
    let mut bench = Bench::new(2, |plan| {
        plan.classes = classes(WorkOrder::Sync);
        plan.uplinks[0].early = Early::On;
    });
    let mut far = bench.far();
    bench.engine.work().set(Stage::Lookup, WORK);
    let packets: Vec<Packet> = (0..1500).map(|number| Packet::new(number, 10)).collect();
    for packet in &packets {
        let queue = &mut bench.client.tx[queue(*packet)];
        queue.push(&packet.inner(mac(1), mac(FAR))).unwrap();
        queue.flush().unwrap();
    }
    let got: Vec<Packet> = far
        .receive(packets.len())
        .iter()
        .map(|frame| {
            let packet = Packet::of(&frame[50..]);
            assert_eq!(frame[15] >> 2, if packet.is_urgent { EF } else { 0 }, "the outer DSCP");
            packet
        })
        .collect();
    assert_eq!((got.len(), bench.stop()), (packets.len(), [0, 0]));
    look(&got)
}

#[test]
#[ignore = "needs root: make test runs it"]
fn urgent_packets_of_a_tenant_overtake_its_others_up_to_the_wire() {
    let seen = send_out(|packet| usize::from(!packet.is_urgent));
    assert_eq!((seen.urgent, seen.inverted), (150, 0), "{seen:?}");
    assert!(*seen.overtaken.iter().max().unwrap() > 64, "{seen:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_is_not_urgent_gains_nothing_by_the_first_queue_and_keeps_its_order() {
    let seen = send_out(|_| 0);
    assert_eq!((seen.urgent, seen.inverted), (150, 0), "{seen:?}");
    // All packets of a queue of another class, and some of the urgent one that come later by the first.
    let seen = send_out(|packet| usize::from(!packet.is_urgent && packet.flow % 2 == 0));
    assert_eq!(seen.urgent, 150, "{seen:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_tenant_may_send_more_urgent_packets_in_a_turn_than_the_urgent_ring_holds() {
    let mut bench = Bench::new(2, |plan| {
        plan.classes = ClassesPlan { urgent_quota: 16, ..classes(WorkOrder::Sync) };
        plan.uplinks[0].early = Early::On;
        plan.uplinks[0].ring_size = 256;
    });
    let mut far = bench.far();
    let queue = &mut bench.client.tx[0];
    for number in 0..1000 {
        queue.push(&Packet::new(number, 1).inner(mac(1), mac(FAR))).unwrap();
    }
    queue.flush().unwrap();
    let got: Vec<Packet> = far.receive(1000).iter().map(|frame| Packet::of(&frame[50..])).collect();
    assert_eq!((got.len(), bench.stop()), (1000, [0, 0]));
    assert_eq!(look(&got).urgent, 1000);
}
