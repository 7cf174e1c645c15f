//! What a network answers and limits for its tenants: ARP and neighbour solicitations, "packet too big", floods, the MSS of TCP. After
//! every step frames in and made = frames out + drops.

mod rig;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Instant;

use etherparse::{PacketBuilder, SlicedPacket, TransportSlice};
use peregrine_dataplane::counters::DropReason;
use peregrine_dataplane::fdb::Destination;
use peregrine_dataplane::frame::BURST;
use peregrine_dataplane::plan::{ClassPlan, InnerVlan, Plan, RulePlan, StaticMac, Station, WorkOrder};
use peregrine_dataplane::stages::{self, Stage, answer};
use peregrine_dataplane::tables::NextHop;
use peregrine_dataplane::types::{Class, MacAddr, NetworkId, RemoteId, SourceId, UplinkId};
use peregrine_dataplane::wire::{arp, ndp};
use peregrine_memif::ClientConfig;
use rig::*;

const FAR: u8 = 0x77;

fn v6(last: u16) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x12, last)
}

/// web is 10.0.0.1, db 10.0.0.2, and behind remote A is 10.0.0.77; the same last numbers over IPv6. On red, loner is 10.0.0.2.
fn known() -> Plan {
    let mut plan = plan();
    let addresses = |last: u8| vec![IpAddr::from([10, 0, 0, last]), v6(last.into()).into()];
    for (endpoint, last) in plan.endpoints.values_mut().zip([1, 2, 2]) {
        endpoint.addresses = addresses(last);
    }
    plan.networks[0].static_macs =
        vec![StaticMac { mac: mac(FAR), remote: REMOTE_A.into(), addresses: addresses(FAR) }];
    plan
}

/// From this station and address.
fn arp_request(from: MacAddr, sender: [u8; 4], target: [u8; 4]) -> Vec<u8> {
    let mut frame = arp::announcement(from, sender.into()).to_vec();
    frame[38..].copy_from_slice(&target);
    frame.resize(60, 0);
    frame
}

fn arp_reply(owner: MacAddr, target: [u8; 4], to: MacAddr, sender: [u8; 4]) -> Vec<u8> {
    let mut frame = [to.0, owner.0].concat();
    frame.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 2]);
    [frame, owner.0.into(), target.into(), to.0.into(), sender.into()].concat()
}

fn solicitation(from: MacAddr, sender: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let group = ndp::solicited_node(target).octets();
    let mut frame = vec![0x33, 0x33, group[12], group[13], group[14], group[15]];
    frame.extend(from.0);
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 24, 58, 255]);
    frame.extend(sender.octets());
    frame.extend(group);
    frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
    frame.extend(target.octets());
    let sum = etherparse::checksum::Sum16BitWords::new()
        .add_16bytes(sender.octets())
        .add_16bytes(group)
        .add_4bytes(24u32.to_be_bytes())
        .add_4bytes([0, 0, 0, 58])
        .add_slice(&frame[54..]);
    let sum = sum.ones_complement().to_be();
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

#[test]
fn who_asks_for_a_known_address_is_answered_and_nobody_else_hears_it() {
    let mut rig = Rig::with(known());
    for (last, owner) in [(2, mac(2)), (FAR, mac(FAR))] {
        let request = arp_request(mac(1), [10, 0, 0, 1], [10, 0, 0, last]);
        assert!(rig.tenant_sends(WEB, &request).is_empty());
        assert_eq!(rig.tenant_gets(WEB), [arp_reply(owner, [10, 0, 0, last], mac(1), [10, 0, 0, 1])]);
        let asked = solicitation(mac(1), v6(1), v6(last.into()));
        assert!(rig.tenant_sends(WEB, &asked).is_empty());
        let read = ndp::Solicitation::read(&asked).unwrap();
        assert_eq!(rig.tenant_gets(WEB), [read.advertisement(owner, false)]);
        assert!(rig.tenant_gets(DB).is_empty());
    }
    let blue = &rig.counters.networks[0];
    assert_eq!((blue.arp_answered.get(), blue.nd_answered.get()), (2, 2));
    assert_eq!((rig.counters.replicated.get(), rig.counters.dropped.total()), (0, 0));
}

#[test]
fn every_station_of_a_tenant_is_answered_for_but_to_those_beside_it() {
    let mut plan = known();
    let addresses = vec![[10, 0, 0, 5].into(), v6(5).into()];
    plan.endpoints[1].more = vec![Station { name: "second".into(), mac: mac(5), addresses }];
    let mut rig = Rig::with(plan);
    for (last, owner) in [(2, mac(2)), (5, mac(5))] {
        assert!(rig.tenant_sends(WEB, &arp_request(mac(1), [10, 0, 0, 1], [10, 0, 0, last])).is_empty());
        assert_eq!(rig.tenant_gets(WEB), [arp_reply(owner, [10, 0, 0, last], mac(1), [10, 0, 0, 1])]);
        let asked = solicitation(mac(1), v6(1), v6(last.into()));
        assert!(rig.tenant_sends(WEB, &asked).is_empty());
        let read = ndp::Solicitation::read(&asked).unwrap();
        assert_eq!(rig.tenant_gets(WEB), [read.advertisement(owner, false)]);
        assert!(rig.tenant_gets(DB).is_empty());
    }
    // Both of a tenant's stations hear what the other one asks, wherever that is heard; here only others are asked.
    for (asker, target) in [(2, 5), (5, 2), (5, 5)] {
        let own = arp_request(mac(asker), [10, 0, 0, asker], [10, 0, 0, target]);
        let solicited = solicitation(mac(asker), v6(asker.into()), v6(target.into()));
        for question in [&own, &solicited] {
            assert_eq!(rig.tenant_sends(DB, question).len(), 2, "to both remotes");
            assert_eq!((rig.tenant_gets(WEB).len(), rig.tenant_gets(DB).len()), (1, 0));
        }
    }
    // What another one asks is answered to whichever station asked.
    assert!(rig.tenant_sends(DB, &arp_request(mac(5), [10, 0, 0, 5], [10, 0, 0, 1])).is_empty());
    assert_eq!(rig.tenant_gets(DB), [arp_reply(mac(1), [10, 0, 0, 1], mac(5), [10, 0, 0, 5])]);
}

#[test]
fn who_is_about_to_take_an_address_is_told_whose_it_is() {
    let mut rig = Rig::with(known());
    assert!(rig.tenant_sends(WEB, &arp_request(mac(1), [0; 4], [10, 0, 0, 2])).is_empty());
    assert_eq!(rig.tenant_gets(WEB), [arp_reply(mac(2), [10, 0, 0, 2], mac(1), [0; 4])]);
    assert!(rig.tenant_sends(WEB, &solicitation(mac(1), Ipv6Addr::UNSPECIFIED, v6(2))).is_empty());
    let [told] = rig.tenant_gets(WEB).try_into().unwrap();
    assert_eq!((&told[..6], told[58]), (&[0x33, 0x33, 0, 0, 0, 1][..], 0x20), "as all nodes are");
    assert!(rig.tenant_gets(DB).is_empty());
}

#[test]
fn for_a_station_that_was_removed_nobody_answers_until_it_is_back() {
    let mut rig = Rig::with(known());
    let (network, station) = (NetworkId(0), mac(FAR));
    let request = arp_request(mac(1), [10, 0, 0, 1], [10, 0, 0, FAR]);
    let asked = solicitation(mac(1), v6(1), v6(FAR.into()));
    let answered = |rig: &mut Rig| {
        [&request, &asked].map(|question| {
            _ = rig.tenant_sends(WEB, question);
            (rig.tenant_gets(WEB).len(), rig.tenant_gets(DB).len())
        })
    };
    assert_eq!(answered(&mut rig), [(1, 0); 2]);
    assert!(rig.fdb.remove(network, station));
    assert_eq!(answered(&mut rig), [(0, 1); 2], "flooded");
    // It may be seen anywhere now, and have other addresses.
    rig.receive(&[vxlan(REMOTE_B, BLUE, &inner(station, mac(2), 30))]);
    assert!(rig.fdb.lookup(network, station).is_some() && rig.tenant_gets(DB).len() == 1);
    assert_eq!(answered(&mut rig), [(0, 1); 2], "flooded");
    assert!(rig.fdb.set_fixed(network, station, Destination::Remote(RemoteId(1))));
    assert_eq!(answered(&mut rig), [(1, 0); 2], "behind whichever remote");
}

#[test]
fn everything_else_is_flooded_as_ever() {
    let mut rig = Rig::with(known());
    let mut broken = solicitation(mac(1), v6(1), v6(2));
    broken[56] ^= 1;
    let mut tagged = arp_request(mac(1), [10, 0, 0, 1], [10, 0, 0, 2]);
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    for (what, packet) in [
        ("an unknown address", arp_request(mac(1), [10, 0, 0, 1], [10, 0, 0, 3])),
        ("its own address", arp_request(mac(1), [10, 0, 0, 9], [10, 0, 0, 1])),
        ("an announcement", arp::announcement(mac(1), Ipv4Addr::new(10, 0, 0, 1)).to_vec()),
        ("an unknown IPv6 address", solicitation(mac(1), v6(1), v6(3))),
        ("its own IPv6 address", solicitation(mac(1), Ipv6Addr::UNSPECIFIED, v6(1))),
        ("a wrong checksum", broken),
        ("in a VLAN of its own", tagged),
        ("cut short", arp_request(mac(1), [10, 0, 0, 1], [10, 0, 0, 2])[..41].to_vec()),
    ] {
        let sent = rig.tenant_sends(WEB, &packet);
        if what != "in a VLAN of its own" || !sent.is_empty() {
            assert_eq!(sent.len(), 2, "{what}");
            assert_eq!(rig.tenant_gets(DB), [packet], "{what}");
        }
        assert!(rig.tenant_gets(WEB).is_empty(), "{what}");
    }
    // On red nobody else has this address; on blue it is asked for from the underlay, whose VTEP has its own tenants to answer.
    rig.tenant_sends(LONER, &arp_request(mac(1), [10, 0, 0, 9], [10, 0, 0, 1]));
    assert!(rig.tenant_gets(LONER).is_empty());
    let asked = arp_request(mac(0x78), [10, 0, 0, 0x78], [10, 0, 0, 2]);
    rig.receive(&[vxlan(REMOTE_A, BLUE, &asked)]);
    assert_eq!((rig.tenant_gets(WEB), rig.tenant_gets(DB)), (vec![asked.clone()], vec![asked]));
    assert_eq!(rig.counters.networks[0].arp_answered.get(), 0);

    let mut plan = known();
    plan.networks[0].suppression = false;
    let mut rig = Rig::with(plan);
    assert_eq!(rig.tenant_sends(WEB, &arp_request(mac(1), [10, 0, 0, 1], [10, 0, 0, 2])).len(), 2);
}

#[test]
fn a_router_is_answered_for_as_one() {
    for gateway in [v6(2).into(), IpAddr::from([10, 0, 0, 2])] {
        let mut plan = known();
        let link_local: Ipv6Addr = "fe80::2".parse().unwrap();
        plan.endpoints[1].addresses.push(link_local.into());
        plan.networks[0].gateways = vec![gateway];
        let mut rig = Rig::with(plan);
        for (address, flags) in [(v6(2), 0xe0), (link_local, 0xe0), (v6(FAR.into()), 0x60)] {
            rig.tenant_sends(WEB, &solicitation(mac(1), v6(1), address));
            assert_eq!(rig.tenant_gets(WEB)[0][58], flags, "{address}: router, solicited, override");
        }
    }
}

/// Without the rule that it sends from one address only, several stations may be behind a tenant.
#[test]
fn who_asks_for_an_address_of_its_own_tenant_or_of_one_that_is_gone_is_not_answered() {
    let mut plan = known();
    plan.endpoints[0].anti_spoofing = false;
    let mut rig = Rig::with(plan);
    let own =
        [arp_request(mac(0x31), [10, 0, 0, 0x31], [10, 0, 0, 1]), solicitation(mac(0x31), v6(0x31), v6(1))];
    for asked in own {
        assert_eq!(rig.tenant_sends(WEB, &asked).len(), 2);
        assert_eq!((rig.tenant_gets(WEB), rig.tenant_gets(DB)), (vec![], vec![asked]));
    }
    let asked = arp_request(mac(1), [10, 0, 0, 1], [10, 0, 0, 2]);
    assert!(rig.tenant_sends(WEB, &asked).is_empty());
    assert_eq!(rig.tenant_gets(WEB).len(), 1);
    rig.tenants.detach(DB, 7).unwrap();
    assert_eq!(rig.tenant_sends(WEB, &asked).len(), 2);
    assert!(rig.tenant_gets(WEB).is_empty());
    assert_eq!(rig.counters.networks[0].arp_answered.get(), 1);
}

/// A UDP packet of so many bytes.
fn udp(len: usize) -> Vec<u8> {
    inner(mac(1), mac(FAR), len - 28)
}

#[test]
fn who_sends_a_packet_that_is_too_long_is_told_and_it_is_dropped() {
    for len in [1460, 1500, 5000, 9000] {
        let mut rig =
            Rig::with_config(plan(), ClientConfig { buffer_bytes: 9216, ..ClientConfig::default() });
        rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
        assert!(rig.tenant_sends(WEB, &udp(len)).is_empty());
        assert_eq!(rig.dropped(DropReason::InnerTooLong), 1);
        let [told] = rig.tenant_gets(WEB).try_into().unwrap();
        assert_eq!(told[..12], [mac(1).0, mac(FAR).0].concat(), "from whom it was for");
        assert_eq!(
            (told[26..34].to_vec(), told[34..36].to_vec()),
            (vec![10, 0, 0, 1, 10, 0, 0, 9], vec![3, 4])
        );
        assert_eq!((told.len(), &told[40..42]), (14 + 576, &1450u16.to_be_bytes()[..]));
        assert_eq!(told[42..], udp(len)[14..14 + 548]);
        let sliced = SlicedPacket::from_ethernet(&told).unwrap();
        assert!(matches!(sliced.transport, Some(TransportSlice::Icmpv4(_))));
        assert_eq!((rig.counters.networks[0].too_big_told.get(), rig.counters.replicated.get()), (1, 1));
        assert_eq!(rig.counters.endpoints[0].dropped.get(), 1);
    }
}

/// The way to remote A takes packets of so many bytes, outer headers and all.
fn with_path_mtu(plan: Plan, mtu: u32) -> Rig {
    let mut rig = Rig::with(plan);
    let hop = NextHop { uplink: UplinkId(0), destination: mac(0xaa), source: mac(0xbb) };
    rig.tables.set_paths(RemoteId(0), SourceId(0), &[hop.path(OUR_VTEP.into(), mtu)]);
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    rig
}

#[test]
fn a_path_that_takes_less_than_the_network_is_told_of() {
    let mut rig = with_path_mtu(plan(), 1400);
    assert_eq!(rig.tenant_sends(WEB, &udp(1350)).len(), 1);
    // Among others that fit, so that it is taken out of a burst.
    for len in [100, 1351, 200, 1450] {
        rig.clients[0].tx[0].push(&udp(len)).unwrap();
    }
    rig.clients[0].tx[0].flush().unwrap();
    let sent: Vec<usize> = rig.collect().iter().map(Vec::len).collect();
    assert_eq!(sent, [64 + 100, 64 + 200]);
    let told = rig.tenant_gets(WEB);
    assert_eq!(told.len(), 2);
    for told in &told {
        assert_eq!((&told[34..36], &told[40..42]), (&[3, 4][..], &1350u16.to_be_bytes()[..]));
        assert!(matches!(
            SlicedPacket::from_ethernet(told).unwrap().transport,
            Some(TransportSlice::Icmpv4(_))
        ));
    }
    assert_eq!((rig.dropped(DropReason::PathMtuExceeded), rig.counters.endpoints[0].dropped.get()), (2, 2));
    assert_eq!((rig.counters.networks[0].too_big_told.get(), rig.counters.replicated.get()), (2, 2));
    // Flooded, it still reaches the other remote: nobody is told, whether it is for a station or for everybody.
    assert_eq!(rig.tenant_sends(WEB, &inner(mac(1), mac(0x55), 1372)).len(), 1);
    assert_eq!((rig.tenant_gets(WEB).len(), rig.tenant_gets(DB).len()), (0, 1));
    assert_eq!(rig.tenant_sends(WEB, &inner(mac(1), MacAddr::BROADCAST, 1372)).len(), 1);
    assert_eq!((rig.tenant_gets(WEB).len(), rig.tenant_gets(DB).len()), (0, 1));
}

#[test]
fn a_told_tenant_that_does_not_read_costs_a_counted_drop() {
    let mut rig = with_path_mtu(plan(), 1400);
    let full = rig.clients[0].rx[0].size();
    for _ in 0..full {
        rig.tenant_sends(DB, &inner(mac(2), mac(1), 10));
    }
    rig.tenant_sends(WEB, &udp(1400));
    assert_eq!((rig.dropped(DropReason::PathMtuExceeded), rig.dropped(DropReason::TenantRingFull)), (1, 1));
}

/// In buffers of 2048 bytes, of which an answer needs the first only.
#[test]
fn a_chain_that_is_too_long_is_told_of_as_well() {
    let mut rig = Rig::with_config(plan(), ClientConfig { chains: true, ..ClientConfig::default() });
    assert!(rig.tenant_sends(WEB, &udp(9000)).is_empty());
    assert_eq!((rig.tenant_gets(WEB).len(), rig.dropped(DropReason::InnerTooLong)), (1, 1));
}

#[test]
fn the_networks_gateway_tells_it() {
    let mut plan = plan();
    plan.networks[0].gateways = vec![IpAddr::from([10, 0, 0, 254]), v6(254).into()];
    let mut rig = Rig::with(plan);
    rig.tenant_sends(WEB, &udp(1500));
    assert_eq!(rig.tenant_gets(WEB)[0][26..30], [10, 0, 0, 254]);
    let mut packet = Vec::new();
    PacketBuilder::ethernet2(mac(1).0, mac(FAR).0)
        .ipv6(v6(1).octets(), v6(2).octets(), 64)
        .udp(1, 2)
        .write(&mut packet, &[0x5a; 1452])
        .unwrap();
    rig.tenant_sends(WEB, &packet);
    let [told] = rig.tenant_gets(WEB).try_into().unwrap();
    assert_eq!((told.len(), &told[22..38]), (14 + 1280, &v6(254).octets()[..]));
    assert_eq!((told[54], &told[58..62]), (2, &1450u32.to_be_bytes()[..]));
}

#[test]
fn what_must_not_be_answered_is_only_dropped() {
    let mut rig = Rig::new();
    let mut error = udp(1500);
    (error[23], error[34]) = (1, 3); // ICMP, destination unreachable; and its header's checksum is wrong then
    for packet in [error, inner(mac(1), MacAddr::BROADCAST, 1472), inner(mac(9), mac(FAR), 1472)] {
        assert!(rig.tenant_sends(WEB, &packet).is_empty());
    }
    // Tags are not this network's.
    let mut tagged = udp(1500);
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    rig.tenant_sends(WEB, &tagged);
    assert_eq!(rig.dropped(DropReason::InnerTooLong), 4, "length comes before who sent it");
    assert!(rig.tenant_gets(WEB).is_empty());
    let mut plan = plan();
    plan.networks[0].inner_vlan = InnerVlan::Carry;
    let mut rig = Rig::with(plan);
    rig.tenant_sends(WEB, &tagged);
    assert_eq!(rig.tenant_gets(WEB)[0][12..18], [0x81, 0, 0, 7, 8, 0]);
}

/// The network has room for one.
#[test]
fn tags_make_a_packet_neither_longer_nor_lost_without_a_word() {
    let with_tags = |tags: usize, len: usize| {
        let mut packet = udp(len);
        (0..tags).for_each(|_| drop(packet.splice(12..12, [0x81, 0, 0, 7])));
        packet
    };
    let too_long = |rig: &Rig| rig.dropped(DropReason::InnerTooLong);
    for inner_vlan in [InnerVlan::Carry, InnerVlan::Strip] {
        let mut plan = plan();
        plan.networks[0].inner_vlan = inner_vlan;
        plan.networks[1].mtu = 1454; // so the uplink takes a tag on the other one
        let mut rig = with_path_mtu(plan, 1504);
        rig.wire.may_move = true; // stripped
        for tags in [0, 1] {
            assert_eq!(rig.tenant_sends(WEB, &with_tags(tags, 1450)).len(), 1);
            assert!(rig.tenant_gets(WEB).is_empty());
        }
        for len in [1451, 1454] {
            assert!(rig.tenant_sends(WEB, &with_tags(0, len)).is_empty());
            assert_eq!(rig.tenant_gets(WEB)[0][40..42], 1450u16.to_be_bytes());
        }
        assert_eq!(too_long(&rig), 2);
        assert!(rig.tenant_sends(WEB, &with_tags(2, 1450)).is_empty());
        let told = rig.tenant_gets(WEB);
        if inner_vlan == InnerVlan::Carry {
            assert_eq!(told[0][48..50], 1446u16.to_be_bytes());
            assert_eq!(rig.tenant_sends(WEB, &with_tags(2, 1446)).len(), 1);
        }
        assert_eq!(too_long(&rig), 3);
        // From the underlay.
        for (tags, len, comes) in [(0, 1450, true), (1, 1450, true), (0, 1451, false), (1, 1451, false)] {
            let mut packet = with_tags(tags, len);
            packet[..12].copy_from_slice(&[mac(1).0, mac(FAR).0].concat());
            rig.receive(&[vxlan(REMOTE_A, BLUE, &packet)]);
            assert_eq!(rig.tenant_gets(WEB).len(), usize::from(comes), "{tags} tags, {len}");
        }
        assert_eq!(too_long(&rig), 5);
    }
}

/// 10 at once and 100 a second, however many it sends.
#[test]
fn a_tenant_is_told_so_often_and_no_more() {
    let mut rig = Rig::new();
    let start = Instant::now();
    let mut told = 0;
    for _ in 0..20 {
        for _ in 0..10 {
            rig.clients[0].tx[0].push(&udp(1500)).unwrap();
        }
        rig.clients[0].tx[0].flush().unwrap();
        rig.collect();
        told += rig.tenant_gets(WEB).len() as u64;
    }
    let most = 10 + (start.elapsed().as_secs_f64() * 100.0) as u64 + 1;
    assert!((10..=most).contains(&told), "{told} of at most {most}");
    assert_eq!(rig.dropped(DropReason::InnerTooLong), 200);
    assert_eq!(rig.counters.networks[0].too_big_told.get(), told);
    assert_eq!(rig.counters.replicated.get(), told);
}

#[test]
fn for_who_is_told_no_more_nothing_is_copied() {
    let mut rig = Rig::with(known());
    let packet = udp(1500);
    let mut untold = 0;
    while untold < 100 {
        // The chunk that was put back last is the next one.
        let mut chunk = rig.pool.take().unwrap();
        chunk.reset(0, 1400).unwrap().fill(0xee);
        rig.pool.put(chunk);
        assert!(rig.tenant_sends(WEB, &packet).is_empty());
        if rig.tenant_gets(WEB).is_empty() {
            untold += 1;
            let mut chunk = rig.pool.take().unwrap();
            assert!(chunk.reset(0, 1400).unwrap().iter().all(|byte| *byte == 0xee));
            rig.pool.put(chunk);
        }
    }
    assert_eq!(rig.dropped(DropReason::InnerTooLong), rig.counters.networks[0].too_big_told.get() + untold);
}

#[test]
fn an_answer_has_the_class_of_what_it_is_about() {
    let mut plan = plan();
    plan.classes.list =
        vec![ClassPlan { order: WorkOrder::Sync, ..ClassPlan::new("urgent") }, ClassPlan::new("normal")];
    plan.classes.rules = vec![RulePlan { source_port: Some(1000..=1000), ..RulePlan::any(Class(0)) }];
    let mut rig = Rig::with(plan);
    rig.tenant_sends(WEB, &udp(1500));
    assert_eq!(rig.tenant_gets(WEB).len(), 1);
    let [urgent, normal, ..] = rig.classes();
    assert_eq!((urgent.replicated, urgent.tenant_tx, urgent.dropped), (1, 1, 0));
    assert_eq!((normal.tenant_rx, normal.dropped), (1, 1), "a packet that is too long has no class");
}

/// 20 a second, and at least 10 at once.
#[test]
fn floods_have_a_limit_and_answers_and_other_packets_do_not_count() {
    let mut plan = known();
    plan.endpoints[0].storm_limit = Some(20);
    let mut rig = Rig::with(plan);
    let start = Instant::now();
    for _ in 0..50 {
        assert!(rig.tenant_sends(WEB, &arp_request(mac(1), [10, 0, 0, 1], [10, 0, 0, 2])).is_empty());
        rig.tenant_sends(WEB, &inner(mac(1), mac(2), 10));
    }
    assert_eq!((rig.tenant_gets(WEB).len(), rig.tenant_gets(DB).len()), (50, 50));
    let mut flooded = 0;
    for n in 0..200 {
        let to = if n % 2 == 0 { MacAddr::BROADCAST } else { mac(0x55) };
        flooded += rig.tenant_sends(WEB, &inner(mac(1), to, 10)).len() as u64 / 2;
        rig.tenant_gets(DB);
    }
    let most = 10 + (start.elapsed().as_secs_f64() * 20.0) as u64 + 1;
    assert!((10..=most).contains(&flooded), "{flooded} of at most {most}");
    assert_eq!(rig.dropped(DropReason::StormLimited), 200 - flooded);
    assert_eq!(rig.counters.endpoints[0].dropped.get(), 200 - flooded);
    // Each has its own.
    assert_eq!(rig.tenant_sends(DB, &inner(mac(2), MacAddr::BROADCAST, 10)).len(), 2);
}

/// A TCP SYN with an MSS of 1460, and its MSS.
fn syn(from: MacAddr, to: MacAddr) -> Vec<u8> {
    let mut out = Vec::new();
    PacketBuilder::ethernet2(from.0, to.0)
        .ipv4([10, 0, 0, 9], [10, 0, 0, 1], 64)
        .tcp(1000, 80, 7, 1024)
        .syn()
        .options_raw(&[2, 4, 0x05, 0xb4])
        .unwrap()
        .write(&mut out, &[])
        .unwrap();
    out
}

fn mss(frame: &[u8]) -> u16 {
    let Some(TransportSlice::Tcp(tcp)) = SlicedPacket::from_ethernet(frame).unwrap().transport else {
        panic!("no TCP")
    };
    assert_eq!(tcp.calc_checksum_ipv4([10, 0, 0, 9], [10, 0, 0, 1]).unwrap(), tcp.checksum());
    u16::from_be_bytes([frame[56], frame[57]])
}

#[test]
fn the_mss_is_lowered_both_ways_where_the_network_wants_it() {
    for (clamps, expected) in [(true, 1410), (false, 1460)] {
        let mut plan = plan();
        plan.networks[0].clamp_mss = clamps;
        plan.networks[1].clamp_mss = true;
        plan.networks[1].mtu = 1000;
        let mut rig = Rig::with(plan);
        rig.receive(&[vxlan(REMOTE_A, BLUE, &syn(mac(FAR), mac(1)))]);
        assert_eq!(mss(&rig.tenant_gets(WEB)[0]), expected, "to a tenant");
        let sent = rig.tenant_sends(WEB, &syn(mac(1), mac(FAR)));
        assert_eq!(mss(&sent[0][50..]), expected, "to a remote");
        rig.tenant_sends(WEB, &syn(mac(1), mac(2)));
        assert_eq!(mss(&rig.tenant_gets(DB)[0]), expected, "to a neighbour");
    }
}

/// As the worker sends it when a tenant has connected.
#[test]
fn an_announcement_goes_to_everybody_else_and_against_no_limit() {
    let mut plan = plan();
    plan.endpoints[0].storm_limit = Some(0);
    let mut rig = Rig::with(plan);
    assert!(rig.tenant_sends(WEB, &inner(mac(1), MacAddr::BROADCAST, 10)).is_empty());
    let bytes = arp::reverse_request(mac(1));
    let sent = rig.run(|bursts, cx| {
        assert!(answer::announce(&bytes, (NetworkId(0), WEB), bursts.0, cx));
        stages::run_here(Stage::Deliver, bursts, cx);
    });
    assert_eq!(sent.iter().map(|frame| &frame[50..]).collect::<Vec<_>>(), [&bytes[..]; 2]);
    assert_eq!((rig.tenant_gets(DB), rig.tenant_gets(WEB).len()), (vec![bytes.to_vec()], 0));
    assert_eq!(rig.counters.replicated.get(), 3, "made, and two copies");
}

/// Any change to a good question is answered well, flooded, or refused as the tenant's other packets are; nobody but the asker is answered.
#[test]
fn twenty_thousand_mutations_of_questions() {
    let mut rig = Rig::with(known());
    let mut dice = Dice::new(9);
    let questions = [
        arp_request(mac(1), [10, 0, 0, 1], [10, 0, 0, 2]),
        solicitation(mac(1), v6(1), v6(2)),
        solicitation(mac(1), Ipv6Addr::UNSPECIFIED, v6(2)),
        udp(1500),
    ];
    let mut answered = 0;
    for _ in 0..20_000 / BURST {
        rig.flood_budget = usize::MAX;
        for n in 0..32 {
            let mut packet = questions[n % 4].clone();
            for _ in 0..dice.below(3) {
                let at = dice.below(packet.len().min(100));
                packet[at] = dice.below(256) as u8;
            }
            if dice.below(8) == 0 {
                packet.truncate(14 + dice.below(packet.len() - 13));
            }
            rig.clients[0].tx[0].push(&packet).unwrap();
        }
        rig.clients[0].tx[0].flush().unwrap();
        rig.collect();
        rig.tenant_gets(DB);
        for answer in rig.tenant_gets(WEB) {
            answered += 1;
            // As long as a reply, an advertisement or the most that is told.
            assert!([42, 86].contains(&answer.len()) || answer.len() <= 14 + 576, "{answer:x?}");
            assert!(SlicedPacket::from_ethernet(&answer).is_ok(), "{answer:x?}");
        }
    }
    assert!(answered > 1000, "{answered}");
}
