//! The stages as a whole, without a kernel: frames in by hand, tenants over real memif rings in one process, what
//! leaves for the uplink looked at byte by byte. After every step frames in = frames out + drops, in all and in each class, and all
//! chunks are home.

mod rig;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use peregrine_dataplane::classes::CompiledRules;
use peregrine_dataplane::counters::{ClassStats, DropReason};
use peregrine_dataplane::fdb::Destination;
use peregrine_dataplane::frame::{BURST, Burst};
use peregrine_dataplane::plan::{
    ClassPlan, EndpointPlan, InnerVlan, OuterDscp, Plan, ReservedBits, RulePlan, Station, WorkOrder,
};
use peregrine_dataplane::stages::{self, Stage, collect};
use peregrine_dataplane::tables::{NextHop, Path};
use peregrine_dataplane::types::{Class, EndpointId, MacAddr, NetworkId, RemoteId, SourceId, UplinkId};
use peregrine_memif::ClientConfig;
use rig::*;

/// Counts allocations of this thread, so that a test can say "none".
struct CountingAllocator;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: passes everything on to the system's allocator.
unsafe impl GlobalAlloc for CountingAllocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's contract is the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: as above.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: CountingAllocator = CountingAllocator;

const FAR: u8 = 0x77;

#[test]
fn a_frame_from_a_remote_reaches_its_tenant_unchanged_and_only_it() {
    let mut rig = Rig::new();
    let packet = inner(mac(FAR), mac(1), 100);
    assert!(rig.receive(&[vxlan(REMOTE_A, BLUE, &packet)]).is_empty());
    assert_eq!(rig.tenant_gets(WEB), [packet]);
    assert!(
        rig.tenant_gets(DB).is_empty() && rig.tenant_gets(LONER).is_empty(),
        "same MAC on red is another tenant"
    );
}

#[test]
fn an_answer_goes_to_the_remote_that_was_learned() {
    let mut rig = Rig::new();
    rig.receive(&[vxlan(REMOTE_B, BLUE, &inner(mac(FAR), mac(1), 10))]);
    let answer = inner(mac(1), mac(FAR), 60);
    let sent = rig.tenant_sends(WEB, &answer);
    assert_eq!(sent.len(), 1);
    let frame = &sent[0];
    assert_eq!(&frame[..14], [2, 0, 0, 0, 0, 0xaa, 2, 0, 0, 0, 0, 0xbb, 8, 0]);
    assert_eq!(frame[30..34], REMOTE_B.octets());
    assert!(u16::from_be_bytes([frame[34], frame[35]]) >= 49152);
    assert_eq!(frame[42..50], [8, 0, 0, 0, 0, 0, 42, 0]);
    assert_eq!(frame[50..], answer);
    assert!(rig.tenant_gets(DB).is_empty());
}

#[test]
fn broadcast_from_a_remote_goes_to_all_tenants_of_the_network_and_no_remote() {
    let mut rig = Rig::new();
    let packet = inner(mac(FAR), MacAddr::BROADCAST, 10);
    assert!(rig.receive(&[vxlan(REMOTE_A, BLUE, &packet)]).is_empty());
    assert_eq!(rig.tenant_gets(WEB), std::slice::from_ref(&packet));
    assert_eq!(rig.tenant_gets(DB), [packet]);
    assert!(rig.tenant_gets(LONER).is_empty());
}

#[test]
fn broadcast_from_a_tenant_goes_to_the_others_and_every_remote_but_not_back() {
    let mut rig = Rig::new();
    let packet = inner(mac(1), MacAddr::BROADCAST, 10);
    let sent = rig.tenant_sends(WEB, &packet);
    let mut to: Vec<_> =
        sent.iter().map(|frame| Ipv4Addr::from(*frame[30..].first_chunk::<4>().unwrap())).collect();
    to.sort();
    assert_eq!(to, [REMOTE_A, REMOTE_B]);
    assert!(sent.iter().all(|frame| frame[50..] == packet));
    assert_eq!(rig.tenant_gets(DB), [packet]);
    assert!(rig.tenant_gets(WEB).is_empty() && rig.tenant_gets(LONER).is_empty());
}

#[test]
fn an_unknown_address_is_flooded_like_broadcast() {
    let mut rig = Rig::new();
    assert_eq!(rig.tenant_sends(WEB, &inner(mac(1), mac(0x55), 10)).len(), 2);
    assert_eq!(rig.tenant_gets(DB).len(), 1);
}

#[test]
fn tenants_of_a_network_reach_each_other_and_those_of_another_do_not() {
    let mut rig = Rig::new();
    let packet = inner(mac(1), mac(2), 10);
    assert!(rig.tenant_sends(WEB, &packet).is_empty());
    assert_eq!(rig.tenant_gets(DB), std::slice::from_ref(&packet));
    // The loner has web's MAC on red; db's address is unknown there, and there is nobody to flood to.
    assert!(rig.tenant_sends(LONER, &packet).is_empty());
    assert!(rig.tenant_gets(DB).is_empty());
    assert_eq!(rig.dropped(DropReason::FloodNobody), 1);
}

#[test]
fn split_horizon_what_came_from_a_remote_never_goes_to_another() {
    let mut rig = Rig::new();
    rig.receive(&[vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(1), 10))]);
    assert!(rig.receive(&[vxlan(REMOTE_B, BLUE, &inner(mac(0x78), mac(FAR), 10))]).is_empty());
    assert_eq!(rig.dropped(DropReason::SplitHorizon), 1);
}

#[test]
fn a_tenant_cannot_pretend_or_talk_to_itself() {
    let mut rig = Rig::new();
    for (source, destination, reason) in [
        (mac(2), mac(0x55), DropReason::SourceSpoofed),
        (MacAddr::BROADCAST, mac(2), DropReason::InnerSourceInvalid),
        (MacAddr([0; 6]), mac(2), DropReason::InnerSourceInvalid),
        (mac(1), mac(1), DropReason::Hairpin),
    ] {
        assert!(rig.tenant_sends(WEB, &inner(source, destination, 10)).is_empty());
        assert_eq!(rig.dropped(reason), if source.is_zero() { 2 } else { 1 }, "{reason:?}");
    }
    assert!(rig.tenant_gets(DB).is_empty());
    assert_eq!(rig.counters.endpoints[0].dropped.get(), 4);
}

#[test]
fn stations_of_one_tenant_are_all_its_own_and_with_hairpin_reach_each_other_through_us() {
    for (anti_spoofing, hairpin) in [(true, true), (false, true), (true, false), (false, false)] {
        let mut plan = plan();
        let station = |last| Station { name: format!("s{last}"), mac: mac(last), addresses: Vec::new() };
        plan.endpoints[0].more = [8, 5, 7, 6].map(station).into();
        plan.endpoints[0].anti_spoofing = anti_spoofing;
        plan.endpoints[0].hairpin = hairpin;
        let mut rig = Rig::with(plan);
        let all = [1, 5, 6, 7, 8];
        for its in all {
            let packet = inner(mac(its), mac(2), 10);
            assert!(rig.tenant_sends(WEB, &packet).is_empty());
            assert_eq!(rig.tenant_gets(DB), [packet]);
            let packet = inner(mac(2), mac(its), 10);
            assert!(rig.tenant_sends(DB, &packet).is_empty());
            assert_eq!(rig.tenant_gets(WEB), [packet]);
            let packet = inner(mac(FAR), mac(its), 10);
            rig.receive(&[vxlan(REMOTE_A, BLUE, &packet)]);
            assert_eq!(rig.tenant_gets(WEB), [packet]);
            for other in all.into_iter().filter(|other| *other != its) {
                let packet = inner(mac(its), mac(other), 10);
                assert!(rig.tenant_sends(WEB, &packet).is_empty());
                let expected = if hairpin { vec![packet] } else { vec![] };
                assert_eq!(rig.tenant_gets(WEB), expected, "from {its} to {other}");
            }
        }
        let between = if hairpin { 0 } else { 5 * 4 };
        assert_eq!(rig.dropped(DropReason::Hairpin), between);
        assert_eq!(rig.counters.dropped.total(), between);
        // To itself, and from who is none of them.
        assert!(rig.tenant_sends(WEB, &inner(mac(5), mac(5), 10)).is_empty());
        assert!(rig.tenant_sends(WEB, &inner(mac(9), mac(5), 10)).is_empty());
        assert!(rig.tenant_gets(WEB).is_empty());
        let [spoofed, back] = [DropReason::SourceSpoofed, DropReason::Hairpin].map(|why| rig.dropped(why));
        assert_eq!((spoofed, back - between), if anti_spoofing { (1, 1) } else { (0, 2) });
        // A remote cannot take over the address of any of them.
        rig.receive(&[vxlan(REMOTE_A, BLUE, &inner(mac(7), mac(2), 10))]);
        assert_eq!(rig.dropped(DropReason::SourceSpoofed), spoofed + 1);
        // Who floods does not hear it, whichever of its stations that was.
        assert_eq!(rig.tenant_sends(WEB, &inner(mac(8), MacAddr::BROADCAST, 10)).len(), 2);
        assert_eq!((rig.tenant_gets(WEB).len(), rig.tenant_gets(DB).len()), (0, 1));
    }
}

#[test]
fn strangers_and_wrong_networks_are_refused() {
    let mut rig = Rig::new();
    let packet = inner(mac(FAR), mac(1), 10);
    rig.receive(&[
        vxlan(STRANGER, BLUE, &packet),
        vxlan(REMOTE_A, RED, &packet),
        vxlan(REMOTE_A, 7, &packet),
    ]);
    assert_eq!(rig.dropped(DropReason::RemoteUnknown), 2, "unknown everywhere; known, but not on red");
    assert_eq!(rig.dropped(DropReason::VniUnknown), 1);
    rig.receive(&[vxlan(REMOTE_A, BLUE, &inner(MacAddr::BROADCAST, mac(1), 10))]);
    assert_eq!(rig.dropped(DropReason::InnerSourceInvalid), 1);
    assert!(rig.tenant_gets(WEB).is_empty() && rig.tenant_gets(LONER).is_empty());
}

#[test]
fn the_mtu_is_kept_both_ways() {
    let mut rig = Rig::new();
    let largest = inner(mac(FAR), mac(1), 1450 - 28);
    rig.receive(&[vxlan(REMOTE_A, BLUE, &largest)]);
    assert_eq!(rig.tenant_gets(WEB), [largest]);
    rig.receive(&[vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(1), 1450 - 28 + 5))]);
    assert_eq!(rig.dropped(DropReason::InnerTooLong), 1);
    assert_eq!(rig.tenant_sends(WEB, &inner(mac(1), mac(FAR), 1450 - 28))[0].len(), 1450 + 14 + 50);
    rig.tenant_sends(WEB, &inner(mac(1), mac(FAR), 1450 - 28 + 1));
    assert_eq!(rig.dropped(DropReason::InnerTooLong), 2);
}

#[test]
fn a_path_takes_no_more_than_its_mtu() {
    let mut rig = Rig::new();
    let hop = NextHop { uplink: UplinkId(0), destination: mac(0xcc), source: mac(0xdd) };
    let sends = |rig: &mut Rig, payload| rig.tenant_sends(WEB, &inner(mac(1), mac(FAR), payload)).len();
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    for (mtu, inner_max) in [(1400, 1350), (1500, 1450), (9000, 1450)] {
        let path = hop.path(IpAddr::V4(OUR_VTEP), mtu);
        rig.tables.set_paths(RemoteId(0), SourceId(0), &[path]);
        let before = rig.dropped(DropReason::PathMtuExceeded);
        assert_eq!(sends(&mut rig, inner_max - 28), 1);
        assert_eq!(sends(&mut rig, inner_max - 28 + 1), 0, "path MTU {mtu}");
        let is_path = inner_max < 1450; // else the network's own MTU comes first
        assert_eq!(rig.dropped(DropReason::PathMtuExceeded) - before, u64::from(is_path));
    }
}

/// In a VLAN of the inner network.
fn tagged(frame: &[u8]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0, 0, 7], &frame[12..]].concat()
}

#[test]
fn inner_vlan_tags_are_dropped_stripped_or_carried_both_ways() {
    for (inner_vlan, expected) in [
        (InnerVlan::Drop, None),
        (InnerVlan::Strip, Some(inner(mac(FAR), mac(1), 60))),
        (InnerVlan::Carry, Some(tagged(&inner(mac(FAR), mac(1), 60)))),
    ] {
        let mut plan = plan();
        plan.networks.values_mut().for_each(|network| network.inner_vlan = inner_vlan);
        let mut rig = Rig::with(plan);
        rig.wire.may_move = true;
        let untagged = inner(mac(FAR), mac(1), 59);
        rig.receive(&[vxlan(REMOTE_A, BLUE, &tagged(&inner(mac(FAR), mac(1), 60)))]);
        assert_eq!(rig.tenant_gets(WEB).first(), expected.as_ref(), "{inner_vlan:?}, in");
        rig.receive(&[vxlan(REMOTE_A, BLUE, &untagged)]);
        assert_eq!(rig.tenant_gets(WEB), [untagged]);

        let sent = rig.tenant_sends(WEB, &tagged(&inner(mac(1), mac(FAR), 60)));
        let expected = match inner_vlan {
            InnerVlan::Drop => None,
            InnerVlan::Strip => Some(inner(mac(1), mac(FAR), 60)),
            InnerVlan::Carry => Some(tagged(&inner(mac(1), mac(FAR), 60))),
        };
        assert_eq!(sent.first().map(|frame| &frame[50..]), expected.as_deref(), "{inner_vlan:?}, out");
        let dropped = if inner_vlan == InnerVlan::Drop { 2 } else { 0 };
        assert_eq!(rig.dropped(DropReason::InnerVlanTagged), dropped);
        // A tag and nothing behind it.
        rig.receive(&[vxlan(REMOTE_A, BLUE, &tagged(&inner(mac(FAR), mac(1), 60))[..16])]);
        assert_eq!(rig.tenant_gets(WEB).len(), usize::from(inner_vlan == InnerVlan::Carry));
    }
}

#[test]
fn reserved_bits_are_ignored_or_refused() {
    for reserved_bits in [ReservedBits::Ignore, ReservedBits::Refuse] {
        let mut plan = plan();
        plan.networks.values_mut().for_each(|network| network.reserved_bits = reserved_bits);
        let mut rig = Rig::with(plan);
        let mut good = vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(1), 10));
        good[40..42].fill(0); // no UDP checksum
        let with = |at: usize, bits: u8| {
            let mut frame = good.clone();
            frame[at] |= bits;
            frame
        };
        let frames = [
            good.clone(),
            with(42, 0x80),
            good.clone(),
            with(43, 1),
            with(45, 1),
            with(49, 0xff),
            good.clone(),
        ];
        rig.receive(&frames);
        let refused = if reserved_bits == ReservedBits::Refuse { 4 } else { 0 };
        assert_eq!(rig.dropped(DropReason::VxlanReservedSet), refused);
        assert_eq!(rig.tenant_gets(WEB).len() as u64, 7 - refused);
    }
}

#[test]
fn a_network_can_have_its_own_port_dscp_and_source_address() {
    let mut plan = plan();
    let other = Ipv4Addr::new(192, 0, 2, 77);
    plan.uplinks[0].locals.push(IpAddr::V4(other));
    plan.networks[0].port = Some(8472);
    plan.networks[0].local = Some(IpAddr::V4(other));
    plan.networks[0].dscp = OuterDscp::Fixed(46);
    let mut rig = Rig::with(plan);
    let hop = NextHop { uplink: UplinkId(0), destination: mac(0xcc), source: mac(0xdd) };
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    let ours = Some(IpAddr::V4(OUR_VTEP));
    assert_eq!(
        rig.tables.sources[..],
        [None, Some(IpAddr::V4(other)), ours],
        "each that some network may ask for"
    );
    assert!(rig.tenant_sends(WEB, &inner(mac(1), mac(FAR), 10)).is_empty(), "there is no way from there yet");
    assert_eq!(rig.dropped(DropReason::NextHopUnresolved), 1);
    rig.tables.set_paths(RemoteId(0), SourceId(1), &[hop.path(IpAddr::V4(other), 1500)]);
    let sent = rig.tenant_sends(WEB, &inner(mac(1), mac(FAR), 10));
    let frame = &sent[0];
    assert_eq!(
        (frame[15] >> 2, &frame[26..30], &frame[36..38]),
        (46, &other.octets()[..], &[0x21, 0x18][..])
    );
    // And it is heard there.
    let mut answer = vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(1), 10));
    answer[33] = 77;
    answer[36..38].copy_from_slice(&[0x21, 0x18]);
    answer[40..42].fill(0); // no UDP checksum
    let checksum =
        etherparse::Ipv4HeaderSlice::from_slice(&answer[14..34]).unwrap().to_header().calc_header_checksum();
    answer[24..26].copy_from_slice(&checksum.to_be_bytes());
    rig.receive(&[answer]);
    assert_eq!(rig.tenant_gets(WEB).len(), 1);
}

#[test]
fn congestion_marks_go_out_and_come_in() {
    let mut rig = Rig::new();
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    let ip = |ecn: u8, from: u8, to: u8| {
        let mut header =
            etherparse::Ipv4Header::new(8, 64, etherparse::IpNumber::UDP, [10, 0, 0, 1], [10, 0, 0, 2])
                .unwrap();
        header.ecn = ecn.try_into().unwrap();
        let mut bytes = [&mac(to).0[..], &mac(from).0, &[8, 0]].concat();
        header.write(&mut bytes).unwrap();
        [bytes, vec![0; 8]].concat()
    };
    for ecn in 0..4 {
        let sent = rig.tenant_sends(WEB, &ip(ecn, 1, FAR));
        assert_eq!(sent[0][15], ecn);
        let header = etherparse::Ipv4HeaderSlice::from_slice(&sent[0][14..34]).unwrap().to_header();
        assert_eq!(header.header_checksum, header.calc_header_checksum());
    }
    let marked = |inner_ecn: u8| {
        let mut frame = vxlan(REMOTE_A, BLUE, &ip(inner_ecn, FAR, 1));
        frame[15] = 3;
        let checksum = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..34])
            .unwrap()
            .to_header()
            .calc_header_checksum();
        frame[24..26].copy_from_slice(&checksum.to_be_bytes());
        frame
    };
    rig.receive(&[marked(2)]);
    assert_eq!(rig.tenant_gets(WEB), [ip(3, FAR, 1)]);
    rig.receive(&[marked(0)]);
    assert_eq!((rig.tenant_gets(WEB).len(), rig.dropped(DropReason::EcnInvalid)), (0, 1));
}

#[test]
fn flows_are_shared_by_weight_over_the_paths_and_stay_on_theirs() {
    let mut rig = with_two_uplinks();
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    let hop = |uplink: u8, last: u8| NextHop {
        uplink: UplinkId(uplink),
        destination: mac(last),
        source: mac(0xbb),
    };
    let paths = [
        Path { weight: 1, ..hop(0, 0x10).path(IpAddr::V4(OUR_VTEP), 1500) },
        Path { weight: 3, ..hop(1, 0x11).path(IpAddr::V4(OUR_OTHER_VTEP), 1500) },
    ];
    rig.tables.set_paths(RemoteId(0), SourceId(0), &paths);
    let mut second = 0;
    let mut ports = std::collections::HashSet::new();
    for flow in 0..1000u16 {
        let mut packet = inner(mac(1), mac(FAR), 10);
        packet[34..36].copy_from_slice(&flow.to_be_bytes());
        let both: Vec<Vec<u8>> = (0..2).flat_map(|_| rig.tenant_sends(WEB, &packet)).collect();
        assert_eq!(both[0], both[1], "a flow has one path");
        let (is_second, from) = (both[0][5] == 0x11, &both[0][26..30]);
        assert_eq!(from, if is_second { OUR_OTHER_VTEP.octets() } else { OUR_VTEP.octets() });
        if is_second {
            second += 1;
        } else {
            ports.insert([both[0][34], both[0][35]]);
        }
    }
    // Three quarters of 1000: 13.7 is one standard deviation.
    assert!((680..=820).contains(&second), "{second} of 1000 flows by the second path");
    assert!(
        ports.len() > (1000 - second) * 9 / 10,
        "and those by the first have all source ports: {}",
        ports.len()
    );
    // One fails: all go by the other.
    rig.tables.set_paths(RemoteId(0), SourceId(0), &paths[..1]);
    assert_eq!(rig.tenant_sends(WEB, &inner(mac(1), mac(FAR), 10))[0][5], 0x10);
}

/// A remote of the other family that comes while it runs: the frame has no room for its headers, and gets it.
#[test]
fn longer_headers_than_were_expected_get_room() {
    let mut rig = over_ipv6(None);
    let local = rig.tables.networks[0].overhead;
    assert_eq!(local, 70);
    let packet = inner(mac(1), mac(FAR), 1450 - 28 - 20);
    let expected = rig.tenant_sends(WEB, &packet);
    rig.tables.networks[0].overhead = 50;
    rig.tables.networks[1].overhead = 50;
    assert_eq!(rig.tenant_sends(WEB, &packet), expected);
}

/// Both VTEPs over IPv6, in a VLAN or not.
fn over_ipv6(vlan: Option<u16>) -> Rig {
    let mut plan = plan();
    let address = |host: u16| IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, host));
    plan.uplinks[0].locals = vec![address(1)];
    plan.uplinks[0].vlan = vlan;
    plan.networks.values_mut().for_each(|network| network.remotes = vec![address(2)]);
    let rig = Rig::with(plan);
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    rig
}

/// What goes out comes in again, if addresses are swapped: the checksum stays right.
#[test]
fn an_underlay_of_ipv6_carries_frames_both_ways() {
    for vlan in [None, Some(5)] {
        let mut rig = over_ipv6(vlan);
        let packet = inner(mac(1), mac(FAR), 100);
        let mut frame = rig.tenant_sends(WEB, &packet).remove(0);
        let ip = if vlan.is_some() { 18 } else { 14 };
        assert_eq!(frame.len(), ip + 40 + 8 + 8 + packet.len());
        assert_eq!(frame[ip + 56..], packet);
        assert_ne!(frame[ip + 46..ip + 48], [0, 0], "it has a checksum");
        if vlan.is_some() {
            assert_eq!(frame[12..16], [0x81, 0, 0, 5]);
        }
        let (ours, theirs) = frame[ip + 8..ip + 40].split_at_mut(16);
        ours.swap_with_slice(theirs);
        // Inside, the destination and source are swapped, too: sums do not mind.
        let inner_start = ip + 56;
        let (to, from) = frame[inner_start..inner_start + 12].split_at_mut(6);
        to.swap_with_slice(from);
        let expected = frame[inner_start..].to_vec();
        rig.receive(std::slice::from_ref(&frame));
        assert_eq!(rig.tenant_gets(WEB), [expected]);
        // Of another VLAN, or none, or with a tag where none is to be.
        let other = match vlan {
            Some(_) => [&frame[..15], &[6], &frame[16..]].concat(),
            None => [&frame[..12], &[0x81, 0, 0, 5], &frame[12..]].concat(),
        };
        let untagged = [&frame[..12], &frame[16..]].concat();
        rig.receive(&[other, untagged]);
        assert_eq!(rig.dropped(DropReason::OuterNotOurs), 2, "{vlan:?}");
        let mut wrong = frame.clone();
        *wrong.last_mut().unwrap() ^= 1;
        rig.receive(&[wrong]);
        assert_eq!(rig.dropped(DropReason::OuterUdpChecksum), 1);
    }
}

#[test]
fn without_a_next_hop_frames_are_dropped_and_asked_for() {
    let mut rig = Rig::new();
    rig.tables.set_paths(RemoteId(0), SourceId(0), &[]);
    assert_eq!(
        rig.tenant_sends(WEB, &inner(mac(1), MacAddr::BROADCAST, 10)).len(),
        1,
        "the other remote gets its copy"
    );
    assert_eq!(rig.dropped(DropReason::NextHopUnresolved), 1);
    assert_eq!(rig.counters.remotes[0].get(), 1, "control sees that somebody wants it");
}

#[test]
fn a_tenant_that_does_not_read_loses_its_own_packets_only() {
    let mut rig = Rig::new();
    let ring = u64::from(rig.clients[0].rx[0].size());
    let to_web = vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(1), 10));
    let to_db = vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(2), 10));
    for _ in 0..ring + 10 {
        rig.receive(&[to_web.clone(), to_db.clone()]);
        assert_eq!(rig.tenant_gets(DB).len(), 1);
    }
    assert_eq!(rig.dropped(DropReason::TenantRingFull), 10);
    assert_eq!(rig.tenant_gets(WEB).len() as u64, ring);
}

#[test]
fn an_absent_tenant_costs_a_counted_drop() {
    let mut rig = Rig::new();
    assert!(rig.tenants.detach(WEB, 6).is_none(), "another connection's number");
    let detached = rig.tenants.detach(WEB, 7).unwrap();
    assert!(detached.rings.is_complete() && detached.fault.is_none());
    rig.receive(&[vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(1), 10))]);
    assert_eq!(rig.dropped(DropReason::TenantAbsent), 1);
}

#[test]
fn tenants_take_turns() {
    let mut rig = Rig::new();
    for tenant in [WEB, DB] {
        let packet = inner(mac(tenant.0 as u8 + 1), mac(FAR), 10);
        for _ in 0..200 {
            rig.clients[tenant.index()].tx[0].push(&packet).unwrap();
        }
        rig.clients[tenant.index()].tx[0].flush().unwrap();
    }
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    for turn in 0..5 {
        let sent = rig.collect();
        let from_web = sent.iter().filter(|frame| frame[50 + 11] == 1).count();
        assert_eq!((sent.len(), from_web), (64, 32), "turn {turn}: half each");
    }
}

/// Our VTEP address on the second uplink.
const OUR_OTHER_VTEP: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);

/// Remote A is reached over the first uplink and remote B over the second.
fn with_two_uplinks() -> Rig {
    let mut plan = plan();
    let mut second = plan.uplinks[0].clone();
    (second.locals, second.port, second.ttl) = (vec![IpAddr::V4(OUR_OTHER_VTEP)], 8472, 3);
    second.source_ports = 1000..=1000;
    plan.uplinks.push(second);
    let mut rig = Rig::with(plan);
    let hop = NextHop { uplink: UplinkId(1), destination: mac(0xcc), source: mac(0xdd) };
    rig.tables.set_paths(RemoteId(1), SourceId(0), &[hop.path(IpAddr::V4(OUR_OTHER_VTEP), 1500)]);
    rig
}

#[test]
fn a_frame_leaves_by_its_remotes_uplink_and_with_that_ones_headers() {
    let mut rig = with_two_uplinks();
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    rig.fdb.learn(NetworkId(0), mac(0x78), RemoteId(1), 0, 64);
    // To A, to B and to everybody, in one burst, so that many of each leave together.
    for number in 0..10 {
        for to in [mac(FAR), mac(0x78), MacAddr::BROADCAST] {
            rig.clients[0].tx[0].push(&inner(mac(1), to, number)).unwrap();
        }
    }
    rig.clients[0].tx[0].flush().unwrap();
    let sent = rig.collect();
    assert_eq!(sent.len(), 40);
    let mut payloads = [Vec::new(), Vec::new()];
    for (frame, uplink) in sent.iter().zip(&rig.wire.uplinks) {
        let second = uplink.index() == 1;
        let (local, remote) = if second { (OUR_OTHER_VTEP, REMOTE_B) } else { (OUR_VTEP, REMOTE_A) };
        assert_eq!(frame[6..12], if second { mac(0xdd).0 } else { mac(0xbb).0 });
        assert_eq!(frame[22], if second { 3 } else { 64 }, "TTL");
        assert_eq!((&frame[26..30], &frame[30..34]), (&local.octets()[..], &remote.octets()[..]));
        let port = |at: usize| u16::from_be_bytes([frame[at], frame[at + 1]]);
        assert_eq!(port(36), if second { 8472 } else { 4789 });
        assert!(if second { port(34) == 1000 } else { port(34) >= 49152 });
        payloads[uplink.index()].push(frame.len() - 50 - 42);
    }
    let in_order: Vec<usize> = (0..10).flat_map(|number| [number, number]).collect();
    assert_eq!(payloads, [in_order.clone(), in_order], "in the order in which they came");
    for uplink in [UplinkId(0), UplinkId(1)] {
        assert_eq!(rig.counters.uplink_tx.of(uplink).unwrap().frames.get(), 20);
    }
    assert_eq!(rig.counters.dropped.total(), 0);
}

#[test]
fn a_full_uplink_costs_those_only_who_leave_by_it() {
    let mut rig = with_two_uplinks();
    rig.wire.full = Some(UplinkId(1));
    for _ in 0..5 {
        rig.tenant_sends(WEB, &inner(mac(1), MacAddr::BROADCAST, 10));
    }
    assert_eq!(rig.wire.uplinks, [UplinkId(0); 5]);
    assert_eq!(rig.dropped(DropReason::UplinkRingFull), 5);
}

/// A sender's packets are for the address of the uplink that they come by.
#[test]
fn each_uplink_takes_what_is_for_its_own_address() {
    let mut rig = with_two_uplinks();
    let packet = inner(mac(FAR), mac(1), 100);
    let to = |vtep: Ipv4Addr, port: u16| {
        let mut frame = vxlan(REMOTE_A, BLUE, &packet);
        frame[30..34].copy_from_slice(&vtep.octets());
        frame[36..38].copy_from_slice(&port.to_be_bytes());
        frame[24..26].fill(0);
        let sum = etherparse::Ipv4HeaderSlice::from_slice(&frame[14..]).unwrap().to_header();
        frame[24..26].copy_from_slice(&sum.calc_header_checksum().to_be_bytes());
        frame[40..42].fill(0);
        frame
    };
    for (uplink, vtep, port) in [(UplinkId(0), OUR_VTEP, 4789), (UplinkId(1), OUR_OTHER_VTEP, 8472)] {
        rig.receive_by(uplink, &[to(vtep, port)]);
        assert_eq!(rig.tenant_gets(WEB), std::slice::from_ref(&packet), "{uplink:?}");
        rig.receive_by(UplinkId(1 - uplink.0), &[to(vtep, port)]);
        assert!(rig.tenant_gets(WEB).is_empty(), "{uplink:?}");
        assert_eq!(rig.counters.uplink_rx.of(uplink).unwrap().frames.get(), 1 + u64::from(uplink.0));
    }
    assert_eq!(rig.dropped(DropReason::OuterNotOurs), 2);
}

#[test]
fn a_stuck_uplink_stops_nobody_but_those_who_use_it() {
    let mut rig = Rig::new();
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    rig.wire.room = 3;
    for round in 0..100 {
        rig.tenant_sends(WEB, &inner(mac(1), mac(FAR), 10));
        rig.tenant_sends(WEB, &inner(mac(1), mac(2), 10));
        assert_eq!(rig.tenant_gets(DB).len(), 1, "round {round}: the way to a neighbour is free");
    }
    assert_eq!(rig.dropped(DropReason::UplinkRingFull), 97);
    assert_eq!(rig.counters.endpoints[0].dropped.get(), 97, "the sender is told");
}

#[test]
fn a_broadcast_reaches_more_remotes_than_a_burst_holds() {
    let mut plan = plan();
    plan.networks[0].remotes = (1..=100).map(|n| IpAddr::V4(Ipv4Addr::new(198, 51, 100, n))).collect();
    let mut rig = Rig::with(plan);
    let sent = rig.tenant_sends(WEB, &inner(mac(1), MacAddr::BROADCAST, 10));
    let to: std::collections::BTreeSet<u8> = sent.iter().map(|frame| frame[33]).collect();
    assert_eq!((sent.len(), to.len()), (100, 100), "each remote once");
    assert_eq!(rig.counters.dropped.total(), 0);
}

#[test]
fn a_broadcast_in_a_full_burst_costs_nobody_a_frame() {
    let mut rig = Rig::new();
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    for tenant in [WEB, DB] {
        let own = mac(tenant.0 as u8 + 1);
        for n in 0..32 {
            let to = if n % 8 == 0 { MacAddr::BROADCAST } else { mac(FAR) };
            rig.clients[tenant.index()].tx[0].push(&inner(own, to, 10)).unwrap();
        }
        rig.clients[tenant.index()].tx[0].flush().unwrap();
    }
    assert_eq!(rig.collect().len(), 2 * (28 + 4 * 2));
    assert_eq!((rig.tenant_gets(WEB).len(), rig.tenant_gets(DB).len()), (4, 4));
    assert_eq!(rig.counters.dropped.total(), 0);
}

#[test]
fn flooding_is_bounded_and_leaves_other_traffic_alone() {
    let mut rig = Rig::new();
    rig.flood_budget = 5;
    for n in 0..10 {
        let to = if n % 2 == 0 { MacAddr::BROADCAST } else { mac(2) };
        rig.clients[0].tx[0].push(&inner(mac(1), to, 10)).unwrap();
    }
    rig.clients[0].tx[0].flush().unwrap();
    rig.collect();
    // Each costs a copy for the neighbour and two for the remotes: the second one ends the budget and is finished.
    assert_eq!((rig.flood_budget, rig.dropped(DropReason::FloodLimited)), (0, 3));
    assert_eq!(rig.tenant_gets(DB).len(), 2 + 5);
    rig.tenant_sends(WEB, &inner(mac(1), mac(0x55), 10));
    assert_eq!(rig.dropped(DropReason::FloodLimited), 4, "an unknown address as well");
    rig.tenant_sends(WEB, &inner(mac(1), mac(2), 10));
    assert_eq!(rig.tenant_gets(DB).len(), 1, "what is not flooded passes");
}

#[test]
fn a_remote_cannot_pretend_to_be_a_tenant_of_ours() {
    for learning in [true, false] {
        let mut plan = plan();
        plan.networks[0].learning = learning;
        let mut rig = Rig::with(plan);
        rig.receive(&[vxlan(REMOTE_A, BLUE, &inner(mac(2), mac(1), 10))]);
        assert_eq!(rig.dropped(DropReason::SourceSpoofed), 1);
        assert!(rig.tenant_gets(WEB).is_empty());
        // A static address is where the config says, and nowhere else.
        assert!(rig.fdb.set_fixed(NetworkId(0), mac(FAR), Destination::Remote(RemoteId(0))));
        rig.receive(&[
            vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(1), 10)),
            vxlan(REMOTE_B, BLUE, &inner(mac(FAR), mac(1), 10)),
        ]);
        assert_eq!((rig.tenant_gets(WEB).len(), rig.dropped(DropReason::SourceSpoofed)), (1, 2));
    }
}

#[test]
fn a_drop_is_counted_on_the_tenant_that_it_concerns() {
    let mut rig = Rig::new();
    let full = u64::from(rig.clients[1].rx[0].size());
    for _ in 0..full + 3 {
        rig.tenant_sends(WEB, &inner(mac(1), mac(2), 10));
    }
    let dropped = |rig: &Rig| rig.counters.endpoints.iter().map(|e| e.dropped.get()).collect::<Vec<_>>();
    assert_eq!(dropped(&rig), [0, 3, 0], "the receiver that does not read");
    rig.receive(&[vxlan(REMOTE_A, BLUE, &inner(mac(FAR), MacAddr::BROADCAST, 10))]);
    assert_eq!(dropped(&rig), [0, 4, 0], "and its copy of a broadcast");
}

#[test]
fn every_truncation_of_a_valid_frame_is_a_counted_drop() {
    let mut rig = Rig::new();
    let whole = vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(1), 30));
    let frames: Vec<_> = (0..whole.len()).map(|len| whole[..len].to_vec()).collect();
    assert!(rig.receive(&frames).is_empty());
    assert_eq!(rig.counters.dropped.total(), frames.len() as u64, "none got through");
    // The same, with outer lengths and checksums that fit, so that the inner headers are what is cut.
    let packet = inner(mac(FAR), mac(1), 30);
    let frames: Vec<_> = (0..packet.len()).map(|len| vxlan(REMOTE_A, BLUE, &packet[..len])).collect();
    rig.receive(&frames);
    assert_eq!(rig.dropped(DropReason::InnerTruncated), 14);
    assert_eq!(
        rig.tenant_gets(WEB).len(),
        packet.len() - 14,
        "an inner IP packet cut short is the tenants' affair"
    );
}

#[test]
fn a_hundred_thousand_mutations_change_nothing_for_the_neighbour() {
    let mut rig = Rig::new();
    let mut random = 0x2545_f491_4f6c_dd1du64;
    let mut next = |below: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random % below as u64) as usize
    };
    let good = vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(1), 60));
    let to_loner = inner(mac(1), mac(1), 20); // hairpins on red: a neighbour that keeps working
    for round in 0..2_000 {
        let frames: Vec<_> = (0..50)
            .map(|_| {
                let mut frame = good.clone();
                for _ in 0..=next(4) {
                    let at = next(frame.len());
                    frame[at] = next(256) as u8;
                }
                frame.truncate(frame.len() - if next(4) == 0 { next(frame.len()) } else { 0 });
                frame
            })
            .collect();
        assert!(rig.receive(&frames).is_empty(), "nothing is ever sent back to the underlay");
        rig.tenant_gets(WEB);
        rig.tenant_gets(DB);
        rig.tenant_sends(LONER, &to_loner);
        assert_eq!(rig.dropped(DropReason::Hairpin), round + 1);
        assert!(rig.tenant_gets(LONER).is_empty(), "no frame crosses to red, which has no remote");
    }
    assert_eq!(rig.counters.uplink_rx.frames(), 100_000);
}

/// Four classes, by the source port of `flow`; what has none of these is of the third. The first two are on their own, or not, by the
/// orders.
fn classed(orders: [WorkOrder; 4]) -> Plan {
    let mut plan = plan();
    let class = |order| ClassPlan { order, ..ClassPlan::new("x") };
    plan.classes.list = orders.map(class).into();
    plan.classes.default = Class(2);
    plan.networks.values_mut().for_each(|network| network.class = Class(2));
    let rule = |class, port| RulePlan { source_port: Some(port..=port), ..RulePlan::any(Class(class)) };
    plan.classes.rules = vec![rule(0, 1), rule(1, 2), rule(3, 4)];
    plan
}

/// All that is counted of a class: in, copies, out, drops.
fn counted(class: ClassStats) -> [u64; 6] {
    [class.uplink_rx, class.tenant_rx, class.replicated, class.uplink_tx, class.tenant_tx, class.dropped]
}

#[test]
fn each_class_has_its_own_frames_whatever_becomes_of_them() {
    use WorkOrder::{Batch, Fifo, Sync};
    for orders in [[Sync, Batch, Sync, Fifo], [Fifo; 4]] {
        let mut rig = Rig::with(classed(orders));
        rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
        let from = |source, to, port| flow(source, to, port, 10);
        let all = |make: &dyn Fn(u16) -> Vec<u8>| (1..=4).map(make).collect::<Vec<_>>();
        // In one burst: to one tenant, to all of them, and dropped before and after the class is known.
        let mut burst = all(&|port| vxlan(REMOTE_A, BLUE, &from(mac(FAR), mac(1), port)));
        burst.extend(all(&|port| vxlan(REMOTE_A, BLUE, &from(mac(FAR), MacAddr::BROADCAST, port))));
        burst.extend(all(&|port| vxlan(STRANGER, BLUE, &from(mac(FAR), mac(1), port))));
        burst.extend(all(&|port| vxlan(REMOTE_A, BLUE, &from(mac(2), mac(1), port))));
        assert!(rig.receive(&burst).is_empty());
        // What a stranger sent has no class of its own.
        let inward = |strangers: u64| [3 + strangers, 0, 1, 0, 3, 1 + strangers];
        assert_eq!(rig.classes().map(counted), [inward(0), inward(0), inward(4), inward(0)]);
        assert_eq!((rig.tenant_gets(WEB).len(), rig.tenant_gets(DB).len()), (8, 4));

        // From a tenant: to a remote, to a neighbour, to all, from an address that is not its own, and back to itself.
        let before = rig.classes().map(counted);
        let packets = [
            (mac(1), mac(FAR)),
            (mac(1), mac(2)),
            (mac(1), MacAddr::BROADCAST),
            (mac(9), mac(2)),
            (mac(1), mac(1)),
        ];
        for (source, to) in packets {
            all(&|port| from(source, to, port))
                .iter()
                .for_each(|packet| rig.clients[0].tx[0].push(packet).unwrap());
        }
        rig.clients[0].tx[0].flush().unwrap();
        assert_eq!(rig.collect().len(), 4 * 3);
        // To be refused is older than to have a class.
        let outward = |refused: u64| [0, 4 + refused, 2, 3, 2, 1 + refused];
        let expected = [outward(0), outward(0), outward(4), outward(0)];
        let since = |rig: &Rig, before: [[u64; 6]; 4]| {
            std::array::from_fn::<_, 4, _>(|class| {
                std::array::from_fn::<_, 6, _>(|n| counted(rig.classes()[class])[n] - before[class][n])
            })
        };
        assert_eq!(since(&rig, before), expected);

        // The uplink takes three of four, and then nobody knows the way.
        let before = rig.classes().map(counted);
        rig.wire.room = 3;
        all(&|port| from(mac(1), mac(FAR), port))
            .iter()
            .for_each(|packet| rig.clients[0].tx[0].push(packet).unwrap());
        rig.clients[0].tx[0].flush().unwrap();
        assert_eq!(rig.collect().len(), 3);
        rig.tables.set_paths(RemoteId(0), SourceId(0), &[]);
        rig.tenant_sends(WEB, &from(mac(1), mac(FAR), 1));
        assert_eq!(
            since(&rig, before),
            [[0, 2, 0, 1, 0, 1], [0, 1, 0, 1, 0, 0], [0, 1, 0, 1, 0, 0], [0, 1, 0, 0, 0, 1]]
        );
    }
}

/// Rules go while frames of their classes are under way: what has a class keeps it.
#[test]
fn a_frame_counts_for_the_class_that_it_has() {
    let mut rig = Rig::with(classed([WorkOrder::Sync; 4]));
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    for to in [mac(FAR), mac(2)] {
        rig.clients[0].tx[0].push(&flow(mac(1), to, 1, 10)).unwrap();
    }
    rig.clients[0].tx[0].flush().unwrap();
    let mut under_way = Burst::new();
    rig.begin(|bursts, cx| {
        collect::run(bursts.0, cx);
        std::mem::swap(bursts.0, &mut under_way);
    });
    assert_eq!(rig.classes()[0].in_flight(), 2);
    rig.tables.classes = CompiledRules::compile(&plan()).into();
    assert!(rig.tables.classes.is_trivial());
    rig.run(|bursts, cx| {
        std::mem::swap(bursts.0, &mut under_way);
        stages::run_from(Stage::Lookup, bursts, cx);
    });
    assert_eq!(counted(rig.classes()[0]), [0, 2, 0, 1, 1, 0]);
}

#[test]
fn the_path_allocates_nothing() {
    let mut plan = plan();
    plan.endpoints[0].more = vec![Station { name: "second".into(), mac: mac(5), addresses: Vec::new() }];
    let mut rig = Rig::with(plan);
    rig.wire.keeps = false;
    let frame = vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(1), 60));
    let answer = inner(mac(5), mac(FAR), 60);
    let broadcast = inner(mac(1), MacAddr::BROADCAST, 60);
    let spoofed = inner(mac(9), mac(2), 60);
    peregrine_memif::warm_up();
    for round in 0..50 {
        for n in 0..BURST {
            let packet = [&answer, &broadcast, &spoofed][n % 3];
            let _ = rig.clients[0].tx[0].push(packet);
        }
        rig.clients[1].rx[0].enable_interrupt();
        rig.clients[0].tx[0].flush().unwrap();
        rig.run(|(input, output), cx| {
            cx.now_s = round;
            let before = ALLOCATIONS.with(Cell::get);
            for _ in 0..BURST {
                let mut taken = cx.pool.take().unwrap();
                taken.reset(0, frame.len()).unwrap().copy_from_slice(&frame);
                cx.counters.uplink_rx.of(UplinkId(0)).unwrap().one(frame.len());
                input.push(taken).unwrap();
            }
            stages::run_from(Stage::Classify, (input, output), cx);
            collect::run(input, cx);
            stages::run_from(Stage::Lookup, (input, output), cx);
            assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "round {round}");
        });
        rig.tenant_gets(WEB);
        rig.tenant_gets(DB);
    }
    assert!(rig.counters.tenant_rx.frames.get() > 0 && rig.counters.tenant_wakeups.get() > 0);
    assert!(rig.counters.replicated.get() > 0 && rig.dropped(DropReason::SourceSpoofed) > 0);
}

#[test]
fn queues_chains_and_quiet_tenants_allocate_nothing() {
    let mut plan = plan();
    let one = plan.endpoints[0].clone();
    for last in 10..40 {
        plan.endpoints.push(EndpointPlan { mac: mac(last), ..one.clone() });
    }
    let config = ClientConfig { queue_pairs: 3, chains: true, ..ClientConfig::default() };
    let mut rig = Rig::with_config(plan, config);
    rig.wire.keeps = false;
    peregrine_memif::warm_up();
    let long = inner(mac(1), mac(2), 1400);
    let chain = inner(mac(1), mac(2), 5000);
    for round in 0..3000usize {
        // One talks; the others fall quiet, are stirred now and then, speak up, leave and come back.
        let speaker = 3 + round % 30;
        let _ = rig.clients[0].tx[round % 3].push(if round % 10 == 9 { &chain } else { &long });
        rig.clients[0].tx[round % 3].flush().unwrap();
        if round % 100 == 99 {
            rig.clients[speaker].tx[round % 3].push(&inner(mac(7 + speaker as u8), mac(1), 10)).unwrap();
            rig.clients[speaker].tx[round % 3].flush().unwrap();
        }
        rig.run(|(input, output), cx| {
            let before = ALLOCATIONS.with(Cell::get);
            collect::run(input, cx);
            stages::run_from(Stage::Lookup, (input, output), cx);
            if round % 500 == 499 {
                let detached = cx.tenants.detach(EndpointId(speaker as u16), 7).unwrap();
                cx.tenants.attach(detached.endpoint, 7, detached.rings).unwrap();
            }
            assert_eq!(ALLOCATIONS.with(Cell::get) - before, 0, "round {round}");
        });
        (0..3).for_each(|queue| drop(rig.queue_gives(DB, queue)));
        (0..3).for_each(|queue| drop(rig.queue_gives(WEB, queue)));
    }
    assert!(rig.counters.endpoints[12].from_tenant.frames.get() > 0, "the first who spoke up was heard");
    assert!(rig.counters.tenant_rx.frames.get() >= 3000);
    assert_eq!(
        rig.dropped(DropReason::InnerTooLong),
        300,
        "chains are put together, and too long for the network"
    );
}
