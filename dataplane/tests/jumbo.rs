//! Packets of 9000 bytes, longer than a chunk, on their whole way: with frames by hand, with one worker and several in an engine, and
//! against the kernel's vxlan device over a real wire.

mod rig;
mod veth;

use std::net::{IpAddr, UdpSocket};
use std::time::{Duration, Instant};

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use peregrine_dataplane::counters::DropReason;
use peregrine_dataplane::engine::{Engine, NextHop};
use peregrine_dataplane::fdb::Destination;
use peregrine_dataplane::plan::{InnerVlan, PlacementMode, Plan, WorkerPlan, XdpMode};
use peregrine_dataplane::replay::{ReplayFrame, STAMP};
use peregrine_dataplane::stages::{self, Stage, collect};
use peregrine_dataplane::types::{CoreId, EndpointId, MacAddr, NetworkId, RemoteId, SourceId, UplinkId};
use peregrine_memif::{ClientConfig, ServerConfig};
use proptest::prelude::*;
use rig::*;
use veth::{OUR_ADDRESS, PATIENCE, THEIR_ADDRESS, Wire, run, until};

const FAR: u8 = 0x77;

fn jumbo_plan() -> Plan {
    let mut plan = plan();
    plan.networks.values_mut().for_each(|network| network.mtu = 9000);
    plan
}

/// Tenants with buffers of 2048 bytes that take chains.
fn jumbo_rig() -> Rig {
    Rig::with_config(jumbo_plan(), ClientConfig { chains: true, ..ClientConfig::default() })
}

/// An inner packet of so many bytes of IP, each byte another one.
fn packet(from: MacAddr, to: MacAddr, ip_bytes: usize) -> Vec<u8> {
    let payload: Vec<u8> = (0..ip_bytes - 28).map(|at| (at * 13) as u8).collect();
    let mut out = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64)
        .udp(1000, 2000)
        .write(&mut out, &payload)
        .unwrap();
    out
}

/// The VXLAN payload of a sent frame, when everything around it is as it must be.
fn inner_of(frame: &[u8]) -> &[u8] {
    let sliced = SlicedPacket::from_ethernet(frame).unwrap();
    let Some(NetSlice::Ipv4(ip)) = sliced.net else { panic!("no IPv4: {:?}", sliced.net) };
    assert_eq!(usize::from(ip.header().total_len()), frame.len() - 14);
    assert_eq!(ip.header().header_checksum(), ip.header().to_header().calc_header_checksum());
    let Some(TransportSlice::Udp(udp)) = sliced.transport else { panic!("no UDP") };
    assert_eq!((usize::from(udp.length()), udp.destination_port()), (frame.len() - 34, 4789));
    &udp.payload()[8..]
}

#[test]
fn long_packets_reach_a_tenant_in_a_chain_and_their_checksum_is_checked_to_the_last_byte() {
    let mut rig = jumbo_rig();
    for length in [9000, 1800, 100, 8999] {
        let inner = packet(mac(FAR), mac(1), length);
        let mut frame = vxlan(REMOTE_A, BLUE, &inner); // with a UDP checksum
        rig.receive(std::slice::from_ref(&frame));
        assert!(rig.tenant_gets(WEB) == [inner], "{length}");
        *frame.last_mut().unwrap() ^= 1;
        rig.receive(&[frame]);
        assert!(rig.tenant_gets(WEB).is_empty());
    }
    assert_eq!(rig.dropped(DropReason::OuterUdpChecksum), 4);
}

#[test]
fn long_packets_of_a_tenant_leave_whole_from_chains_and_from_large_buffers() {
    let large = ClientConfig { buffer_bytes: 9216, ..ClientConfig::default() };
    for mut rig in [jumbo_rig(), Rig::with_config(jumbo_plan(), large)] {
        rig.receive(&[vxlan(REMOTE_A, BLUE, &packet(mac(FAR), mac(1), 100))]); // learned
        for length in [9000, 100, 1714, 1715, 1724, 1750, 8999] {
            let inner = packet(mac(1), mac(FAR), length);
            let sent = rig.tenant_sends(WEB, &inner);
            assert_eq!(sent.len(), 1, "{length}");
            assert!(inner_of(&sent[0]) == inner, "{length}");
        }
        let too_long = packet(mac(1), mac(FAR), 9005); // 9000 and a VLAN tag are not
        assert!(rig.tenant_sends(WEB, &too_long).is_empty());
        assert_eq!(rig.dropped(DropReason::InnerTooLong), 1);
    }
}

#[test]
fn long_packets_are_flooded_to_tenants_and_remotes() {
    let mut rig = jumbo_rig();
    let inner = packet(mac(1), MacAddr::BROADCAST, 9000);
    let sent = rig.tenant_sends(WEB, &inner);
    assert_eq!(sent.len(), 2, "both remotes");
    assert!(sent.iter().all(|frame| inner_of(frame) == inner));
    assert!(rig.tenant_gets(DB) == [inner] && rig.tenant_gets(LONER).is_empty());
}

#[test]
fn a_tenant_with_small_buffers_gets_the_short_ones_and_the_rest_is_counted() {
    let mut rig = Rig::with(jumbo_plan());
    let short = packet(mac(FAR), mac(1), 1000);
    let long = packet(mac(FAR), mac(1), 9000);
    rig.receive(&[vxlan(REMOTE_A, BLUE, &long), vxlan(REMOTE_A, BLUE, &short)]);
    assert!(rig.tenant_gets(WEB) == [short]);
    assert_eq!(rig.dropped(DropReason::TenantBufferSmall), 1);
}

/// A burst from all tenants, as far as there are buffers, on its whole way; returns how many leave for the underlay.
fn collect(rig: &mut Rig) -> usize {
    rig.begin(|bursts, cx| {
        collect::run(bursts.0, cx);
        stages::run_from(Stage::Lookup, bursts, cx);
    });
    std::mem::take(&mut rig.wire.frames).len()
}

fn push(rig: &mut Rig, from: EndpointId, packets: &[&[u8]]) {
    let ring = &mut rig.clients[from.index()].tx[0];
    packets.iter().for_each(|packet| ring.push(packet).unwrap());
    ring.flush().unwrap();
}

#[test]
fn without_a_free_large_buffer_a_long_packet_waits_in_its_ring_and_others_do_not() {
    for config in [
        ClientConfig { chains: true, ..ClientConfig::default() },
        ClientConfig { buffer_bytes: 9216, ..ClientConfig::default() },
    ] {
        let mut rig = Rig::with_config(jumbo_plan(), config);
        let long = packet(mac(1), mac(2), 9000);
        let [first, last, others] = [(1, 2, 100), (1, 2, 1600), (2, 1, 1714)]
            .map(|(from, to, length)| packet(mac(from), mac(to), length));
        let mut taken: Vec<_> = std::iter::from_fn(|| rig.pool.take_large()).collect();
        push(&mut rig, WEB, &[&first, &long, &last, &long]);
        push(&mut rig, DB, &[&others]);
        for _ in 0..2000 {
            collect(&mut rig); // more often than it takes to be thought quiet
        }
        assert!(rig.tenant_gets(DB) == [first] && rig.tenant_gets(WEB) == [others]);
        rig.pool.put(taken.pop().unwrap());
        collect(&mut rig);
        assert!(rig.tenant_gets(DB) == [long.clone(), last], "there is one buffer, and two long ones");
        collect(&mut rig);
        assert!(rig.tenant_gets(DB) == [long]);
        taken.into_iter().for_each(|frame| rig.pool.put(frame));
        rig.check();
        assert_eq!(rig.dropped(DropReason::NoFreeFrame), 0);
    }
}

/// Its headers are longer than those that there was room for at the start.
#[test]
fn packets_of_all_lengths_reach_a_remote_over_ipv6_that_comes_later() {
    let mut plan = jumbo_plan();
    plan.networks.values_mut().for_each(|network| network.mtu = 8900);
    let ours: IpAddr = "2001:db8::1".parse().unwrap();
    plan.uplinks[0].locals = vec![IpAddr::V4(OUR_VTEP), ours];
    let mut rig = Rig::with_config(plan, ClientConfig { chains: true, ..ClientConfig::default() });
    let id = RemoteId(2);
    rig.tables.set_remotes(&[(id, Some("2001:db8::2".parse().unwrap()), false)]);
    rig.tables.set_members(NetworkId(0), [RemoteId(0), RemoteId(1), id].into(), &[]);
    let hop = NextHop { uplink: UplinkId(0), destination: mac(0xaa), source: mac(0xbb) };
    rig.tables.set_paths(id, SourceId(0), &[hop.path(ours, 9000)]);
    assert!(rig.fdb.set_fixed(NetworkId(0), mac(FAR), Destination::Remote(id)));
    for ip_bytes in 1650..1800 {
        let sent = rig.tenant_sends(WEB, &packet(mac(1), mac(FAR), ip_bytes));
        let lengths: Vec<usize> = sent.iter().map(Vec::len).collect();
        let too_long = rig.dropped(DropReason::UplinkTooLong);
        assert_eq!((lengths, too_long), (vec![ip_bytes + 14 + 70], 0), "{ip_bytes}");
    }
}

/// It fits its chunk: no large buffer is asked for.
#[test]
fn a_packet_that_only_a_tag_would_allow_is_told_of_when_all_large_buffers_are_in_use() {
    let mut plan = jumbo_plan();
    plan.networks[0].mtu = 1450;
    plan.networks[0].inner_vlan = InnerVlan::Carry;
    let mut rig = Rig::with_config(plan, ClientConfig { chains: true, ..ClientConfig::default() });
    let taken: Vec<_> = std::iter::from_fn(|| rig.pool.take_large()).collect();
    push(&mut rig, WEB, &[&packet(mac(1), mac(FAR), 1452)]);
    collect(&mut rig);
    assert_eq!((rig.dropped(DropReason::InnerTooLong), rig.dropped(DropReason::NoFreeFrame)), (1, 0));
    assert_eq!(rig.tenant_gets(WEB).len(), 1, "\"fragmentation needed\"");
    taken.into_iter().for_each(|frame| rig.pool.put(frame));
}

#[test]
fn copies_of_long_floods_leave_an_eighth_of_the_large_buffers() {
    let mut rig = jumbo_rig();
    let mut taken: Vec<_> = std::iter::from_fn(|| rig.pool.take_large()).collect();
    taken.drain(..taken.len() / 8 + 2).for_each(|frame| rig.pool.put(frame)); // one for the frame, one for a copy
    let [long, short] = [9000, 900].map(|length| packet(mac(1), MacAddr::BROADCAST, length));
    push(&mut rig, WEB, &[&long]);
    assert_eq!(collect(&mut rig), 2, "both remotes");
    taken.push(rig.pool.take_large().unwrap());
    push(&mut rig, WEB, &[&long]);
    assert_eq!(collect(&mut rig), 1);
    push(&mut rig, WEB, &[&short]);
    assert_eq!(collect(&mut rig), 2);
    assert_eq!(rig.dropped(DropReason::NoFreeFrame), 1);
    taken.into_iter().for_each(|frame| rig.pool.put(frame));
    rig.check();
}

#[test]
fn a_long_flood_costs_as_many_as_it_has_parts() {
    let mut rig = jumbo_rig();
    rig.flood_budget = 256;
    let long = packet(mac(1), MacAddr::BROADCAST, 9000);
    push(&mut rig, WEB, &vec![&long[..]; 25]);
    collect(&mut rig);
    // Five each for the copy to a tenant and for two remotes.
    assert_eq!((rig.tenant_gets(DB).len(), rig.dropped(DropReason::FloodLimited)), (18, 7));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    /// Whatever the lengths in a burst, each packet comes through as it was, both ways; the rig sees that every buffer is home.
    #[test]
    fn packets_of_all_lengths_come_through_unchanged(lengths in proptest::collection::vec(28usize..=9000, 1..40)) {
        let mut rig = jumbo_rig();
        let there: Vec<Vec<u8>> = lengths.iter().map(|length| packet(mac(FAR), mac(1), *length)).collect();
        for some in there.chunks(8) {
            rig.receive(&some.iter().map(|inner| vxlan(REMOTE_A, BLUE, inner)).collect::<Vec<_>>());
            prop_assert!(rig.tenant_gets(WEB) == some);
        }
        for length in lengths {
            let back = packet(mac(1), mac(FAR), length);
            let sent = rig.tenant_sends(WEB, &back);
            prop_assert!(sent.len() == 1 && inner_of(&sent[0]) == back);
        }
    }
}

/// An engine whose workers present long packets as fast as they go, for a tenant each.
fn replay(workers: usize) {
    let mut plan = jumbo_plan();
    plan.uplinks[0].ring_size = 512;
    plan.placement = if workers > 1 { PlacementMode::Static } else { PlacementMode::RunToCompletion };
    let cores = core_affinity::get_core_ids().unwrap();
    let worker = |n: usize| WorkerPlan::on(CoreId(cores[n % cores.len()].id));
    plan.workers = (0..workers).map(worker).collect();
    let frames = |worker: usize| {
        let frame = |flow: u32| {
            let length = [9000, 200, 4000, 1800][flow as usize % 4];
            let inner = flow_of(mac(FAR), mac(1 + (worker as u8 + flow as u8) % 2), flow, length);
            ReplayFrame { bytes: without_checksum(vxlan(REMOTE_A, BLUE, &inner)), flow }
        };
        (0..16).map(|n| frame(worker as u32 * 16 + n)).collect()
    };
    let mut engine = Engine::replay(&plan, (0..workers).map(frames).collect()).unwrap();
    let tenants = [WEB, DB].map(|id| engine.attach_discard(id, workers * 16).unwrap());
    let deadline = Instant::now() + PATIENCE;
    while tenants.iter().any(|tenant| tenant.packets.get() < 20_000) {
        assert!(Instant::now() < deadline, "{:?}", engine.stats());
        assert_eq!(engine.poll(), []);
        std::thread::sleep(Duration::from_millis(1));
    }
    let stats = engine.stop();
    assert!(stats.totals.conserved, "{:?} {:?}", stats.totals, stats.drops);
    let delivered: u64 = tenants.iter().map(|tenant| tenant.packets.get()).sum();
    assert_eq!(delivered, stats.totals.tenant_tx.frames);
    for tenant in &tenants {
        assert_eq!((tenant.reordered.get(), tenant.strange.get()), (0, 0), "{tenant:?} {:?}", stats.drops);
    }
    if workers > 1 {
        assert!(stats.workers.iter().map(|worker| worker.handed_over).sum::<u64>() > 1000);
    }
}

/// A packet of so many bytes of IP with room for a stamp at its end.
fn flow_of(from: MacAddr, to: MacAddr, port: u32, ip_bytes: usize) -> Vec<u8> {
    assert!(ip_bytes > 28 + STAMP);
    flow(from, to, 1000 + port as u16, ip_bytes - 28)
}

/// The stamps change the packet.
fn without_checksum(mut frame: Vec<u8>) -> Vec<u8> {
    frame[40..42].fill(0);
    frame
}

#[test]
fn one_worker_carries_long_packets() {
    replay(1);
}

#[test]
fn several_workers_hand_long_packets_to_each_other() {
    replay(2);
}

const THEIR_STATION: MacAddr = MacAddr([2, 0, 0, 0, 0x42, 2]);

/// The kernel's vxlan device at the other end, and UDP sockets on both sides of the overlay: the kernel's, and a tenant's by hand.
fn the_kernels_vxlan_and_a_tenant(mode: XdpMode) {
    let wire = Wire::new(1);
    run("ip link set a0 mtu 9050");
    let host = wire.in_theirs(|| {
        run("ip link set b0 mtu 9050");
        run("ip link add vx address 02:00:00:00:42:02 mtu 9000 type vxlan id 42 local 10.9.0.2 remote 10.9.0.1 dstport 4789");
        run("ip link set vx up");
        run("ip address add 10.42.0.2/24 dev vx");
        run("ip neighbour add 10.42.0.1 lladdr 02:00:00:00:00:01 dev vx");
        run("ip neighbour add 10.9.0.1 lladdr 02:00:00:00:09:01 dev b0");
        UdpSocket::bind(("10.42.0.2", 7000)).unwrap()
    });
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut plan = jumbo_plan();
    plan.uplinks[0] = peregrine_dataplane::plan::UplinkPlan {
        mode,
        ..peregrine_dataplane::plan::UplinkPlan::new("a0", IpAddr::V4(OUR_ADDRESS))
    };
    plan.networks[0].remotes = vec![IpAddr::V4(THEIR_ADDRESS)];
    let mut engine = Engine::start(&plan).unwrap();
    assert!(engine.uplinks().iter().all(|uplink| uplink.multi_buffer));
    let hop = NextHop {
        uplink: UplinkId(0),
        destination: MacAddr([2, 0, 0, 0, 9, 2]),
        source: MacAddr([2, 0, 0, 0, 9, 1]),
    };
    engine.set_paths([(RemoteId(0), SourceId(0), vec![hop.path(IpAddr::V4(OUR_ADDRESS), 9050)])]);
    let config = ClientConfig { chains: true, ..ClientConfig::default() };
    let server = ServerConfig { chains: true, ..ServerConfig::default() };
    let (mut client, server) = peregrine_memif::pair(config, server).unwrap();
    engine.attach(WEB, rings(server)).unwrap();

    let mut buffer = vec![0; 10_000];
    for round in 0..100usize {
        for length in [8972, 100, 1700, 5000, 8971] {
            let payload: Vec<u8> = (0..length).map(|at| (at * 3 + round) as u8).collect();
            // Outwards first: then the worker serves the tenant.
            let mut back = Vec::new();
            PacketBuilder::ethernet2(mac(1).0, THEIR_STATION.0)
                .ipv4([10, 42, 0, 1], [10, 42, 0, 2], 64)
                .udp(7000, 7000)
                .write(&mut back, &payload)
                .unwrap();
            client.tx[0].push(&back).unwrap();
            client.tx[0].flush().unwrap();
            let length = host.recv(&mut buffer).unwrap_or_else(|e| panic!("{e} {:?}", engine.stats()));
            assert!(buffer[..length] == payload, "{length} in round {round}");
            host.send_to(&payload, ("10.42.0.1", 7000)).unwrap();
            let (mut got, deadline) = (Vec::new(), Instant::now() + PATIENCE / 2);
            until("the tenant has the packet", || {
                assert!(Instant::now() < deadline, "{length} in round {round}: {:?}", engine.stats());
                assert_eq!(engine.poll(), []);
                got.extend(packets_of(&mut client.rx[0]));
                got.iter().any(|packet| udp_payload(packet) == Some(&payload[..]))
            });
        }
    }
    let stats = engine.stop();
    assert!(stats.totals.conserved, "{:?} {:?}", stats.totals, stats.drops);
    assert_eq!(stats.workers.iter().map(|worker| worker.chunk_faults).sum::<u64>(), 0);
}

fn udp_payload(frame: &[u8]) -> Option<&[u8]> {
    match SlicedPacket::from_ethernet(frame).ok()?.transport? {
        TransportSlice::Udp(udp) => Some(udp.payload()),
        _ => None,
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_kernels_vxlan_and_a_tenant_exchange_long_packets_in_native_copy_mode() {
    the_kernels_vxlan_and_a_tenant(XdpMode::Copy);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_kernels_vxlan_and_a_tenant_exchange_long_packets_in_generic_mode() {
    the_kernels_vxlan_and_a_tenant(XdpMode::Generic);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_interface_with_a_small_mtu_is_refused() {
    let _wire = Wire::new(1);
    let mut plan = jumbo_plan();
    (plan.uplinks[0].interface, plan.uplinks[0].locals) = ("a0".into(), vec![IpAddr::V4(OUR_ADDRESS)]);
    let error = Engine::start(&plan).map(|_| ()).unwrap_err().to_string();
    assert!(error.contains("MTU of 9000") && error.contains("1500"), "{error}");
}
