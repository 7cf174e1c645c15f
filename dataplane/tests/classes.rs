//! The rules that put packets into classes: compiled ones against a plain search from the first to the last, and the walk of the
//! headers against etherparse and literal bytes.

mod rig;

use std::net::IpAddr;
use std::ops::RangeInclusive;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use peregrine_dataplane::classes::{Addresses, CompiledRules, Key, Known};
use peregrine_dataplane::plan::{ClassPlan, DscpSet, Plan, Prefix, RulePlan};
use peregrine_dataplane::tables::Tables;
use peregrine_dataplane::types::{Class, EndpointId, NetworkId};
use peregrine_dataplane::wire::flow::{Headers, flow_hash};
use proptest::collection::vec;
use proptest::option::{of, weighted};
use proptest::prelude::*;
use proptest::sample::select;
use rig::{DB, LONER, REMOTE_A, REMOTE_B, Rig, WEB, mac, plan, vxlan};

/// Few values, so that rules and packets meet.
const PORTS: [u16; 8] = [0, 1, 53, 255, 256, 5201, 65534, 65535];
const PREFIXES: [&str; 10] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.42.0.0/15",
    "10.42.0.1",
    "10.42.1.128/25",
    "255.255.255.255",
    "::/0",
    "fd00::/8",
    "fd00::1:0/112",
    "fd00::1:2",
];
const V4: [[u8; 4]; 6] =
    [[10, 42, 0, 1], [10, 42, 1, 200], [10, 43, 9, 9], [10, 44, 0, 1], [9, 0, 0, 0], [255; 4]];

fn v6() -> Vec<[u8; 16]> {
    ["::", "fd00::1:2", "fd00::1:3", "fd00::2:0", "fe80::1"]
        .iter()
        .map(|text| text.parse::<std::net::Ipv6Addr>().unwrap().octets())
        .collect()
}

fn plan_with(rules: Vec<RulePlan>) -> Plan {
    let mut plan = plan();
    plan.networks[1].class = Class(3);
    plan.classes.list = ["a", "b", "c", "d"].map(ClassPlan::new).into();
    plan.classes.default = Class(2);
    plan.classes.rules = rules;
    plan
}

fn port_range() -> impl Strategy<Value = RangeInclusive<u16>> {
    (select(&PORTS[..]), select(&PORTS[..])).prop_map(|(a, b)| a.min(b)..=a.max(b))
}

fn prefix() -> impl Strategy<Value = Prefix> {
    select(&PREFIXES[..]).prop_map(|text| text.parse().unwrap())
}

fn dscp() -> impl Strategy<Value = DscpSet> {
    vec(select(&[0u8, 1, 34, 46, 63][..]), 1..3).prop_map(DscpSet::from_iter)
}

fn rule() -> impl Strategy<Value = RulePlan> {
    let place = (0..Class::LIMIT as u8, weighted(0.4, 0u16..2), weighted(0.2, 0u16..3));
    let bytes = (weighted(0.2, dscp()), weighted(0.3, select(&[1u8, 6, 17, 132][..])), weighted(0.1, dscp()));
    let ports = (weighted(0.2, port_range()), weighted(0.2, port_range()), weighted(0.2, port_range()));
    let addresses = (weighted(0.2, prefix()), weighted(0.2, prefix()), weighted(0.2, prefix()));
    (place, bytes, ports, addresses).prop_map(|(place, bytes, ports, addresses)| {
        let endpoint = place.2.map(EndpointId);
        let of_endpoint = endpoint.map(|id| plan().endpoints[id.index()].network);
        RulePlan {
            class: Class(place.0),
            network: of_endpoint.or(place.1.map(NetworkId)),
            endpoint,
            dscp: bytes.0,
            protocol: bytes.1,
            outer_dscp: bytes.2,
            source_port: ports.0,
            destination_port: ports.1,
            port: ports.2,
            source: addresses.0,
            destination: addresses.1,
            address: addresses.2,
        }
    })
}

fn key() -> impl Strategy<Value = Key> {
    let addresses = prop_oneof![
        1 => Just(Addresses::None),
        4 => (select(&V4[..]), select(&V4[..])).prop_map(|(a, b)| Addresses::V4([a, b])),
        4 => (select(v6()), select(v6())).prop_map(|(a, b)| Addresses::V6([a, b])),
    ];
    let dscp = || of(select(&[0u8, 1, 2, 34, 46, 63][..]));
    let ports = of((select(&PORTS[..]), select(&PORTS[..])).prop_map(|(a, b)| [a, b]));
    (
        0u16..3,
        of(0u16..4),
        of(0u16..4),
        dscp(),
        dscp(),
        of(select(&[0u8, 1, 6, 17, 132][..])),
        ports,
        addresses,
    )
        .prop_map(|(network, sender, receiver, outer_dscp, dscp, protocol, ports, addresses)| Key {
            network: NetworkId(network),
            sender: sender.map(EndpointId),
            receiver: receiver.map(EndpointId),
            outer_dscp,
            dscp,
            protocol,
            ports,
            addresses,
        })
}

/// What the plan says, word by word.
fn matches(rule: &RulePlan, key: &Key) -> bool {
    fn asked<T>(asked: &Option<T>, is: impl Fn(&T) -> bool) -> bool {
        asked.as_ref().is_none_or(is)
    }
    let ips: Option<[IpAddr; 2]> = match key.addresses {
        Addresses::None => None,
        Addresses::V4(sides) => Some(sides.map(IpAddr::from)),
        Addresses::V6(sides) => Some(sides.map(IpAddr::from)),
    };
    let port = |range: &RangeInclusive<u16>, side: usize| key.ports.is_some_and(|p| range.contains(&p[side]));
    let lies = |prefix: &Prefix, side: usize| {
        ips.is_some_and(|ips| {
            prefix.covers(&Prefix::new(ips[side], if ips[side].is_ipv4() { 32 } else { 128 }).unwrap())
        })
    };
    asked(&rule.network, |network| key.network == *network)
        && asked(&rule.endpoint, |id| key.sender == Some(*id) || key.receiver == Some(*id))
        && asked(&rule.outer_dscp, |set| key.outer_dscp.is_some_and(|dscp| set.contains(dscp)))
        && asked(&rule.dscp, |set| key.dscp.is_some_and(|dscp| set.contains(dscp)))
        && asked(&rule.protocol, |protocol| key.protocol == Some(*protocol))
        && asked(&rule.source_port, |range| port(range, 0))
        && asked(&rule.destination_port, |range| port(range, 1))
        && asked(&rule.port, |range| port(range, 0) || port(range, 1))
        && asked(&rule.source, |prefix| lies(prefix, 0))
        && asked(&rule.destination, |prefix| lies(prefix, 1))
        && asked(&rule.address, |prefix| lies(prefix, 0) || lies(prefix, 1))
}

fn first_match(plan: &Plan, rules: &[RulePlan], key: &Key) -> Class {
    let default = plan.networks.get(key.network).map_or(plan.classes.default, |network| network.class);
    match rules.iter().find(|rule| matches(rule, key)) {
        Some(rule) if plan.networks.get(key.network).is_some() => rule.class,
        _ => default,
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn the_first_rule_that_matches_decides(rules in vec(rule(), 0..150), keys in vec(key(), 100)) {
        let plan = plan_with(rules);
        let compiled = CompiledRules::compile(&plan);
        for key in keys {
            let expected = first_match(&plan, &plan.classes.rules, &key);
            prop_assert_eq!(compiled.class_of(&key), expected, "{:?}", key);
            if let Some(class) = compiled.settled(key.network) {
                prop_assert_eq!(class, expected, "settled, {:?}", key);
            }
        }
    }

    /// Many rules of few kinds: several words of each kind.
    #[test]
    fn the_first_of_many_decides_too(
        rules in vec((rule(), 0..3u8), 300..900),
        keys in vec(key(), 60),
    ) {
        let narrow = |(rule, kind): (RulePlan, u8)| {
            let any = RulePlan { network: Some(NetworkId(0)), ..RulePlan::any(rule.class) };
            match kind {
                0 => RulePlan { port: rule.port.or(Some(256..=5201)), ..any },
                1 => RulePlan { protocol: Some(6), destination: rule.source.or("10.42.1.200".parse().ok()), ..any },
                _ => RulePlan { dscp: Some(DscpSet(1 << 34)), address: Some("fd00::1:3".parse().unwrap()), ..any },
            }
        };
        let plan = plan_with(rules.into_iter().map(narrow).collect());
        let compiled = CompiledRules::compile(&plan);
        for key in keys {
            prop_assert_eq!(compiled.class_of(&key), first_match(&plan, &plan.classes.rules, &key), "{:?}", key);
        }
    }

    /// Rules that are said to be hidden change nothing when they go.
    #[test]
    fn hidden_rules_decide_nothing(rules in vec(rule(), 2..40), keys in vec(key(), 100)) {
        let plan = plan_with(rules);
        let hidden = plan.classes.hidden();
        let rules = &plan.classes.rules;
        let seen: Vec<RulePlan> = (0..rules.len())
            .filter(|place| !hidden.iter().any(|(hidden, _)| hidden == place))
            .map(|place| rules[place].clone())
            .collect();
        for key in keys {
            prop_assert_eq!(first_match(&plan, rules, &key), first_match(&plan, &seen, &key));
            for (hidden, by) in &hidden {
                prop_assert!(by < hidden && (!matches(&rules[*hidden], &key) || matches(&rules[*by], &key)));
            }
        }
    }

    #[test]
    fn any_bytes_have_a_class(bytes in vec(any::<u8>(), 0..200), rules in vec(rule(), 0..80)) {
        let compiled = CompiledRules::compile(&plan_with(rules));
        if let Some(headers) = Headers::read(&bytes) {
            prop_assert!(compiled.classify(&known(), &headers).index() < Class::LIMIT);
        }
    }

    /// Frames that look like IP: version, lengths, fragments and protocols as they come, cut anywhere. What etherparse takes
    /// has the same fields.
    #[test]
    fn etherparse_reads_the_same(
        mut bytes in vec(any::<u8>(), 14..120),
        (v6, tags, ihl) in (any::<bool>(), 0usize..3, 4u8..=15),
        protocol in select(&[0u8, 1, 6, 17, 44, 58, 132][..]),
        fragment in select(&[0u16, 0, 0, 0x4000, 0x2000, 1, 0x1fff][..]),
    ) {
        let at = 14 + 4 * tags;
        bytes.resize(bytes.len().max(at + 4), 0);
        let types = [[0x88, 0xa8], [0x81, 0x00], if v6 { [0x86, 0xdd] } else { [8, 0] }];
        for (n, ethertype) in types[2 - tags..].iter().enumerate() {
            bytes[12 + 4 * n..][..2].copy_from_slice(ethertype);
        }
        let len = (bytes.len() - at) as u16;
        let mut put = |offset: usize, value: &[u8]| {
            if let Some(place) = bytes.get_mut(at + offset..at + offset + value.len()) {
                place.copy_from_slice(value);
            }
        };
        if v6 {
            put(0, &[0x60 | ihl & 3]);
            put(4, &len.saturating_sub(40).to_be_bytes());
            put(6, &[protocol]);
        } else {
            put(0, &[0x40 | ihl]);
            put(2, &len.to_be_bytes());
            put(6, &fragment.to_be_bytes());
            put(9, &[protocol]);
        }
        agree_with_etherparse(&bytes)?;
    }
}

fn agree_with_etherparse(frame: &[u8]) -> Result<(), TestCaseError> {
    let Ok(theirs) = SlicedPacket::from_ethernet(frame) else { return Ok(()) };
    let key = key_of(frame);
    match theirs.net {
        Some(NetSlice::Ipv4(slice)) => {
            let header = slice.header();
            prop_assert_eq!(key.addresses, Addresses::V4([header.source(), header.destination()]));
            prop_assert_eq!(
                (key.dscp, key.protocol),
                (Some(header.dcp().value()), Some(header.protocol().0))
            );
            prop_assert!(!header.is_fragmenting_payload() || key.ports.is_none());
        }
        Some(NetSlice::Ipv6(slice)) => {
            let header = slice.header();
            prop_assert_eq!(key.addresses, Addresses::V6([header.source(), header.destination()]));
            prop_assert_eq!(
                (key.dscp, key.protocol),
                (Some(header.traffic_class() >> 2), Some(header.next_header().0))
            );
        }
        _ => prop_assert_eq!(key.addresses, Addresses::None),
    }
    let direct = key.protocol.is_some_and(|protocol| [6, 17].contains(&protocol));
    match theirs.transport {
        Some(TransportSlice::Udp(udp)) if direct => {
            prop_assert_eq!(key.ports, Some([udp.source_port(), udp.destination_port()]));
        }
        Some(TransportSlice::Tcp(tcp)) if direct => {
            prop_assert_eq!(key.ports, Some([tcp.source_port(), tcp.destination_port()]));
        }
        _ => {}
    }
    Ok(())
}

fn known() -> Known {
    Known { network: NetworkId(0), sender: None, outer_dscp: None }
}

/// As a plan with a rule about an endpoint reads it.
fn key_of(frame: &[u8]) -> Key {
    let rules = [WEB, LONER].map(|id| RulePlan {
        endpoint: Some(id),
        network: Some(plan().endpoints[id.index()].network),
        ..RulePlan::any(Class::URGENT)
    });
    CompiledRules::compile(&plan_with(rules.into())).key(&known(), &Headers::read(frame).unwrap())
}

/// 02:…:02 to 02:…:01, 10.42.0.1:5201 → 10.42.1.200:53, UDP, DSCP 46.
fn udp() -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x08, 0x00];
    frame.extend([0x45, 0xb8, 0, 30, 0, 1, 0, 0, 64, 17, 0, 0, 10, 42, 0, 1, 10, 42, 1, 200]);
    frame.extend([0x14, 0x51, 0, 53, 0, 10, 0, 0, 1, 2]);
    frame
}

#[test]
fn a_udp_packet_has_all_its_fields_behind_tags_too() {
    let expected = Key {
        network: NetworkId(0),
        sender: None,
        receiver: Some(WEB),
        outer_dscp: None,
        dscp: Some(46),
        protocol: Some(17),
        ports: Some([5201, 53]),
        addresses: Addresses::V4([[10, 42, 0, 1], [10, 42, 1, 200]]),
    };
    assert_eq!(key_of(&udp()), expected);
    let mut tagged = udp();
    tagged.splice(12..12, [0x81, 0, 0, 7]);
    assert_eq!(key_of(&tagged), expected);
    tagged.splice(12..12, [0x88, 0xa8, 0, 8]);
    assert_eq!(key_of(&tagged), expected);
    tagged.splice(12..12, [0x88, 0xa8, 0, 9]);
    assert_eq!(key_of(&tagged).addresses, Addresses::None, "a third tag is not taken off");
}

#[test]
fn options_are_skipped_and_lies_about_lengths_leave_no_ip() {
    let mut options = udp();
    options[14] = 0x46;
    options.splice(34..34, [0x94, 0x04, 0, 0]);
    assert_eq!(key_of(&options).ports, Some([5201, 53]));
    for (what, version_ihl) in
        [("shorter than its header", 0x44), ("version 6", 0x65), ("options beyond the end", 0x4f)]
    {
        let mut frame = udp();
        frame[14] = version_ihl;
        let key = key_of(&frame);
        assert_eq!(
            (key.addresses, key.protocol, key.dscp, key.ports),
            (Addresses::None, None, None, None),
            "{what}"
        );
    }
}

/// Neither the first fragment nor a later one has ports: they go one way.
#[test]
fn fragments_have_no_ports() {
    for flags in [[0x20, 0], [0, 1], [0x3f, 0xff]] {
        let mut frame = udp();
        frame[20..22].copy_from_slice(&flags);
        let key = key_of(&frame);
        assert_eq!((key.ports, key.protocol), (None, Some(17)), "{flags:?}");
    }
}

#[test]
fn a_frame_cut_short_has_what_is_left_of_it() {
    let frame = udp();
    for len in 14..34 {
        assert_eq!(key_of(&frame[..len]).addresses, Addresses::None, "{len} bytes");
    }
    for len in 34..38 {
        let key = key_of(&frame[..len]);
        assert_eq!((key.ports, key.protocol), (None, Some(17)), "{len} bytes");
    }
    assert_eq!(key_of(&frame[..38]).ports, Some([5201, 53]));
    assert!(Headers::read(&frame[..13]).is_none());
}

#[test]
fn ipv6_has_its_fields_and_extension_headers_hide_the_ports() {
    let mut frame = Vec::new();
    let (source, destination) = ([0xfd; 16], [0xfe; 16]);
    PacketBuilder::ethernet2([2, 0, 0, 0, 0, 9], [2, 0, 0, 0, 0, 1])
        .ipv6(source, destination, 64)
        .tcp(80, 443, 0, 0)
        .write(&mut frame, &[])
        .unwrap();
    frame[14..16].copy_from_slice(&[0x68, 0x8f]); // traffic class 0x88 (DSCP 34), and some of the flow label
    let key = key_of(&frame);
    assert_eq!((key.dscp, key.protocol, key.ports), (Some(34), Some(6), Some([80, 443])));
    assert_eq!((key.addresses, key.receiver), (Addresses::V6([source, destination]), Some(WEB)));
    for extension in [0u8, 43, 44, 60] {
        frame[20] = extension;
        let key = key_of(&frame);
        assert_eq!((key.protocol, key.ports), (Some(extension), None));
    }
    frame[14] = 0x48;
    assert_eq!(key_of(&frame).addresses, Addresses::None, "version 4 in an IPv6 frame");
}

#[test]
fn without_rules_that_matter_nothing_is_read() {
    let settled = |rules: Vec<RulePlan>| {
        let compiled = CompiledRules::compile(&plan_with(rules));
        [0, 1, 2].map(|network| compiled.settled(NetworkId(network)))
    };
    let any = RulePlan::any(Class::URGENT);
    let red = RulePlan { network: Some(NetworkId(1)), ..any.clone() };
    let red_udp = RulePlan { protocol: Some(17), ..red.clone() };
    let defaults = [Some(Class::NORMAL), Some(Class(3)), Some(Class(2))];
    assert_eq!(settled(vec![]), defaults);
    assert_eq!(settled(vec![red_udp.clone()]), [defaults[0], None, defaults[2]]);
    assert_eq!(settled(vec![red.clone(), red_udp.clone()]), [defaults[0], Some(Class::URGENT), defaults[2]]);
    assert_eq!(settled(vec![red_udp, any]), [Some(Class::URGENT), None, defaults[2]]);
}

/// Both ends count, each in its own network: `web` on blue and `loner` on red have the same MAC address.
#[test]
fn a_rule_about_an_endpoint_takes_what_it_sends_and_what_it_gets() {
    let rule = |id: EndpointId| RulePlan {
        endpoint: Some(id),
        network: Some(plan().endpoints[id.index()].network),
        ..RulePlan::any(Class::URGENT)
    };
    let compiled = CompiledRules::compile(&plan_with(vec![rule(WEB)]));
    let class = |network, sender, destination| {
        let mut frame = udp();
        frame[..6].copy_from_slice(&mac(destination).0);
        let known = Known { network: NetworkId(network), sender, outer_dscp: None };
        compiled.classify(&known, &Headers::read(&frame).unwrap())
    };
    assert_eq!(class(0, None, 1), Class::URGENT);
    assert_eq!(class(0, Some(DB), 1), Class::URGENT);
    assert_eq!(class(0, Some(WEB), 2), Class::URGENT);
    assert_eq!(class(0, Some(DB), 9), Class::NORMAL);
    assert_eq!(class(1, None, 1), Class(3));
}

#[test]
fn tables_have_the_rules_and_who_is_trusted() {
    let mut plan = plan_with(vec![RulePlan {
        outer_dscp: Some(DscpSet::from_iter([46])),
        ..RulePlan::any(Class::URGENT)
    }]);
    plan.classes.trusted = vec![IpAddr::V4(REMOTE_B)];
    let tables = Tables::new(&plan, 1500);
    for remote in tables.remotes.iter() {
        assert_eq!(remote.trusted, remote.address == REMOTE_B);
    }
    let frame = udp();
    let headers = Headers::read(&frame).unwrap();
    for (outer_dscp, class) in [(None, Class::NORMAL), (Some(46), Class::URGENT), (Some(45), Class::NORMAL)] {
        assert_eq!(tables.classes.classify(&Known { outer_dscp, ..known() }, &headers), class);
    }
    assert_eq!(headers.flow_hash, flow_hash(&frame));
}

/// A frame from a VTEP whose outer header has this DSCP.
fn marked(from: std::net::Ipv4Addr, dscp: u8) -> Vec<u8> {
    let mut frame = vxlan(from, rig::BLUE, &udp());
    let mut ip = etherparse::Ipv4Header::from_slice(&frame[14..]).unwrap().0;
    ip.dscp = dscp.try_into().unwrap();
    ip.header_checksum = ip.calc_header_checksum();
    frame[14..34].copy_from_slice(&ip.to_bytes());
    frame
}

#[test]
fn the_outer_dscp_counts_if_the_remote_is_trusted() {
    let mut plan = plan();
    let outer_dscp = Some(DscpSet::from_iter([46]));
    plan.classes.rules = vec![RulePlan { outer_dscp, ..RulePlan::any(Class::URGENT) }];
    plan.classes.trusted = vec![IpAddr::V4(REMOTE_B)];
    let mut rig = Rig::with(plan);
    let frames =
        [(REMOTE_A, 46, 0), (REMOTE_B, 45, 0), (REMOTE_B, 46, 1), (REMOTE_A, 46, 1), (REMOTE_B, 46, 2)];
    for (from, dscp, urgent) in frames {
        rig.receive(&[marked(from, dscp)]);
        assert_eq!(rig.counters.class(Class::URGENT).uplink_rx, urgent, "{from} {dscp}");
    }
    assert_eq!(rig.counters.class(Class::NORMAL).uplink_rx, 3);
    // All in one burst, too.
    rig.receive(&frames.map(|(from, dscp, _)| marked(from, dscp)));
    assert_eq!(rig.counters.class(Class::URGENT).uplink_rx, 4);
}
