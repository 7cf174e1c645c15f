//! Which of a plan's rules the XDP program can decide by itself, so that their frames are urgent from the driver on: those that ask for
//! a network, and beside that for nothing, or DSCPs, or ports.
//!
//! What must hold: what is urgent here is urgent by the rules as well. The first rule that matches decides, and the program knows no
//! order; so in each network only the rules before the first of another class count. Those that name no network are told to the
//! program once for all networks in which all of them count.

use std::collections::BTreeSet;

use crate::plan::{NetworkPlan, Plan, RulePlan};
use crate::types::{Class, NetworkId};
use crate::xsk::{EARLY_PORTS_MAX, EarlyNetwork, EarlyPort, EarlyProtocol, EarlyRules, EarlySet, EarlySide};

/// A range of more ports than this is not decided early: each takes a place in the program's table.
const RANGE_MAX: usize = 256;

/// What the program is told, and the places of the rules for urgent packets that it cannot decide.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EarlyPlan {
    /// What it can.
    pub rules: EarlyRules,
    /// Rules whose frames, or some of them, come with the others.
    pub left_out: Vec<usize>,
    /// Networks whose packets are urgent but for what some rule says: they come with the others.
    pub networks_left_out: Vec<NetworkId>,
}

impl EarlyPlan {
    /// Of a plan.
    pub fn of(plan: &Plan) -> EarlyPlan {
        let mut early = EarlyPlan::default();
        if plan.classes.list.len() < 2 {
            return early; // all are alike
        }
        let rules = reached(&plan.classes.rules);
        let scopes: Vec<Scope> =
            plan.networks.iter().map(|(id, network)| Scope::of((id, network), &rules)).collect();
        let mut room = EARLY_PORTS_MAX;
        let shared = Shared::new(&rules, &scopes, &mut early.rules.all, &mut room);
        let mut left_out = BTreeSet::new();
        for ((id, network), scope) in plan.networks.iter().zip(&scopes) {
            let mut its = EarlyNetwork { own: EarlySet::default(), all: shared.counts_in(scope) };
            if scope.everything {
                its = EarlyNetwork { own: EarlySet { everything: true, ..EarlySet::default() }, all: false };
            } else {
                for (place, rule) in rules.iter().filter(|(_, rule)| scope.asks(rule)) {
                    let is_decided = match rule.network {
                        _ if *place > scope.end => false,
                        None if its.all => !shared.left_out.contains(place),
                        _ => add(rule, &mut its.own, &mut room),
                    };
                    left_out.extend((!is_decided).then_some(*place));
                }
                early.networks_left_out.extend((network.class == Class::URGENT).then_some(id));
            }
            // A network that it is told nothing of has the rules for all.
            let nothing = EarlySet::default();
            if its.own != nothing || (!its.all && early.rules.all != nothing) {
                early.rules.networks.insert(network.vni, its);
            }
        }
        early.left_out = left_out.into_iter().collect();
        early
    }
}

/// The rules with their places, but for those of other classes that no packet reaches: they take nothing from the ones behind them.
fn reached(rules: &[RulePlan]) -> Vec<(usize, &RulePlan)> {
    let is_hidden = |place: usize, rule: &RulePlan| rules.iter().take(place).any(|other| other.covers(rule));
    rules
        .iter()
        .enumerate()
        .filter(|(place, rule)| rule.class == Class::URGENT || !is_hidden(*place, rule))
        .collect()
}

/// Which rules count in one network.
struct Scope {
    network: NetworkId,
    /// The place of the first rule of another class, or beyond all.
    end: usize,
    /// Every packet is urgent.
    everything: bool,
}

impl Scope {
    fn of((id, network): (NetworkId, &NetworkPlan), rules: &[(usize, &RulePlan)]) -> Scope {
        let applies = |rule: &RulePlan| rule.network.is_none_or(|its| its == id);
        let mut its = rules.iter().filter(|(_, rule)| applies(rule));
        let end = its.clone().find(|(_, rule)| rule.class != Class::URGENT).map(|(place, _)| *place);
        let is_urgent = network.class == Class::URGENT;
        let by_rule = its.any(|(place, rule)| end.is_none_or(|end| *place < end) && rule.is_network_only());
        Scope {
            network: id,
            end: end.unwrap_or(usize::MAX),
            everything: by_rule || (end.is_none() && is_urgent),
        }
    }

    /// It is for urgent packets, and some of this network may match it.
    fn asks(&self, rule: &RulePlan) -> bool {
        rule.class == Class::URGENT && rule.network.is_none_or(|network| network == self.network)
    }
}

/// The rules that name no network, as far as none of another class that names none stands before them.
struct Shared {
    /// All of them.
    places: Vec<usize>,
    /// Those that the program cannot decide.
    left_out: BTreeSet<usize>,
}

impl Shared {
    /// Enters them into `set`, if there is a network in which all of them count.
    fn new(rules: &[(usize, &RulePlan)], scopes: &[Scope], set: &mut EarlySet, room: &mut usize) -> Shared {
        let of_all: Vec<_> = rules
            .iter()
            .filter(|(_, rule)| rule.network.is_none())
            .take_while(|(_, rule)| rule.class == Class::URGENT)
            .filter(|(_, rule)| !rule.is_network_only()) // in such networks everything is urgent
            .collect();
        let mut shared =
            Shared { places: of_all.iter().map(|(place, _)| *place).collect(), left_out: BTreeSet::new() };
        if !scopes.iter().any(|scope| !scope.everything && shared.counts_in(scope)) {
            return Shared { places: Vec::new(), left_out: BTreeSet::new() };
        }
        for (place, rule) in of_all {
            if !add(rule, set, room) {
                shared.left_out.insert(*place);
            }
        }
        shared
    }

    /// All of them count there.
    fn counts_in(&self, scope: &Scope) -> bool {
        self.places.last().is_some_and(|last| *last < scope.end)
    }
}

/// False if the program cannot tell what it asks for, or has no room for it.
fn add(rule: &RulePlan, set: &mut EarlySet, room: &mut usize) -> bool {
    let RulePlan { class, network, dscp, protocol, source_port, destination_port, port, .. } = rule.clone();
    let any = RulePlan { network, ..RulePlan::any(class) };
    if let Some(dscp) = dscp {
        let is_all = *rule == RulePlan { dscp: Some(dscp), ..any };
        set.dscps |= if is_all { dscp.0 } else { 0 };
        return is_all;
    }
    let range = source_port.clone().or(destination_port.clone()).or(port.clone());
    let of_ports = RulePlan { protocol, source_port, destination_port, port, ..any };
    let protocols: Vec<EarlyProtocol> = EarlyProtocol::ALL
        .into_iter()
        .filter(|one| protocol.is_none_or(|protocol| protocol == *one as u8))
        .collect();
    let named = [&of_ports.source_port, &of_ports.destination_port, &of_ports.port];
    let Some(range) = range.filter(|_| named.iter().filter(|port| port.is_some()).count() == 1) else {
        return false;
    };
    let sides: &[EarlySide] = match named {
        [Some(_), ..] => &[EarlySide::Source],
        [_, Some(_), _] => &[EarlySide::Destination],
        _ => &[EarlySide::Source, EarlySide::Destination],
    };
    if *rule != of_ports || protocols.is_empty() || range.len() > RANGE_MAX {
        return false;
    }
    let one = |protocol, side, port| EarlyPort { protocol, side, port };
    // Both sides of a port are one place.
    let is_there = |protocol: EarlyProtocol, port: u16| {
        [EarlySide::Source, EarlySide::Destination]
            .into_iter()
            .any(|side| set.ports.contains(&one(protocol, side, port)))
    };
    let all = || range.clone().flat_map(|port| protocols.iter().map(move |protocol| (*protocol, port)));
    let places = all().filter(|(protocol, port)| !is_there(*protocol, *port)).count();
    let Some(rest) = room.checked_sub(places) else { return false };
    *room = rest;
    set.ports
        .extend(all().flat_map(|(protocol, port)| sides.iter().map(move |side| one(protocol, *side, port))));
    true
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;
    use std::path::PathBuf;

    use proptest::prelude::*;

    use super::*;
    use crate::plan::{ClassPlan, ClassesPlan, DscpSet, PlacementMode};
    use crate::types::Vni;

    const UDP: u8 = EarlyProtocol::Udp as u8;
    const URGENT: RulePlan = RulePlan::any(Class::URGENT);
    const NORMAL: RulePlan = RulePlan::any(Class::NORMAL);
    const BLUE: Option<NetworkId> = Some(NetworkId(0));

    /// Networks 42 and 43 with these rules; the packets of the second are urgent if no rule says otherwise.
    fn early(rules: Vec<RulePlan>) -> EarlyPlan {
        EarlyPlan::of(&with(ClassesPlan { rules, ..ClassesPlan::default() }))
    }

    fn with(classes: ClassesPlan) -> Plan {
        let network = |vni, class| NetworkPlan {
            class,
            fdb_limit: 16,
            ..NetworkPlan::new(&format!("n{vni}"), Vni::new(vni).unwrap())
        };
        Plan {
            workers: vec![],
            placement: PlacementMode::Balanced,
            balance_threshold: 85,
            uplinks: vec![],
            networks: vec![network(42, Class::NORMAL), network(43, Class::URGENT)].into(),
            endpoints: Default::default(),
            capacity: Default::default(),
            pools: Default::default(),
            classes,
            control_socket: PathBuf::new(),
            ..Plan::default()
        }
    }

    /// What is urgent in a network: its own and, if they are asked for, the rules for all.
    fn own(early: &EarlyPlan, vni: u32) -> EarlySet {
        let all = &early.rules.all;
        match early.rules.networks.get(&Vni::new(vni).unwrap()) {
            Some(EarlyNetwork { own, all: false }) => own.clone(),
            Some(EarlyNetwork { own, all: true }) => EarlySet {
                everything: own.everything || all.everything,
                dscps: own.dscps | all.dscps,
                ports: own.ports.union(&all.ports).copied().collect(),
            },
            None => all.clone(),
        }
    }

    fn everything() -> EarlySet {
        EarlySet { everything: true, ..EarlySet::default() }
    }

    #[test]
    fn without_rules_only_urgent_networks_are() {
        let early = early(vec![]);
        assert_eq!((own(&early, 42), own(&early, 43)), (EarlySet::default(), everything()));
        assert_eq!(early.left_out, [0; 0]);
        assert_eq!(
            EarlyPlan::of(&with(ClassesPlan { list: vec![ClassPlan::new("all")], ..Default::default() })),
            EarlyPlan::default()
        );
    }

    #[test]
    fn networks_dscps_and_ports_are_decided_early() {
        let dscp = DscpSet::from_iter([46, 48]);
        let early = early(vec![
            RulePlan { network: BLUE, dscp: Some(dscp), ..URGENT },
            RulePlan { network: BLUE, protocol: Some(UDP), destination_port: Some(5000..=5001), ..URGENT },
            RulePlan { network: BLUE, port: Some(22..=22), ..URGENT },
        ]);
        let blue = own(&early, 42);
        assert_eq!((blue.everything, blue.dscps), (false, 1 << 46 | 1 << 48));
        let sides = [EarlySide::Source, EarlySide::Destination];
        let both = |protocol| sides.map(|side| EarlyPort { protocol, side, port: 22 });
        let port = |port| EarlyPort { protocol: EarlyProtocol::Udp, side: EarlySide::Destination, port };
        let ports: BTreeSet<EarlyPort> =
            EarlyProtocol::ALL.into_iter().flat_map(both).chain([port(5000), port(5001)]).collect();
        assert_eq!((blue.ports, early.left_out), (ports, vec![]));
    }

    #[test]
    fn what_an_earlier_rule_may_take_is_not() {
        let dscp = Some(DscpSet::from_iter([46]));
        let rules = vec![
            RulePlan { dscp, ..URGENT },
            RulePlan { network: BLUE, protocol: Some(1), ..NORMAL },
            RulePlan { network: BLUE, ..URGENT },
        ];
        let early = early(rules);
        assert_eq!(own(&early, 42), EarlySet { dscps: 1 << 46, ..EarlySet::default() });
        assert!(own(&early, 43).everything, "that rule is not for this network");
        assert_eq!((early.left_out, early.networks_left_out), (vec![2], vec![]));
    }

    #[test]
    fn a_network_is_not_urgent_early_if_a_rule_may_take_some_of_it() {
        let dscp = Some(DscpSet::from_iter([8]));
        let rules = vec![RulePlan { dscp, ..NORMAL }];
        let early = early(rules);
        assert_eq!((own(&early, 43), early.networks_left_out), (EarlySet::default(), vec![NetworkId(1)]));
    }

    #[test]
    fn what_is_left_out_of_an_urgent_network_is_urgent_all_the_same() {
        let rule = RulePlan { network: Some(NetworkId(1)), protocol: Some(1), ..URGENT };
        let early = early(vec![rule]);
        assert_eq!((own(&early, 43), early.left_out), (everything(), vec![]));
    }

    #[test]
    fn what_the_program_cannot_tell_is_left_out() {
        let dscp = Some(DscpSet::from_iter([46]));
        let prefix = "10.0.0.0/8".parse().unwrap();
        let cannot = [
            RulePlan { address: Some(prefix), ..URGENT },
            RulePlan { dscp, port: Some(22..=22), ..URGENT },
            RulePlan { protocol: Some(1), ..URGENT },
            RulePlan { protocol: Some(1), port: Some(22..=22), ..URGENT },
            RulePlan { source_port: Some(1..=1), destination_port: Some(2..=2), ..URGENT },
            RulePlan { port: Some(0..=65535), ..URGENT },
            RulePlan { outer_dscp: dscp, ..URGENT },
        ];
        let count = cannot.len();
        let early = early(cannot.into_iter().map(|rule| RulePlan { network: BLUE, ..rule }).collect());
        assert_eq!(own(&early, 42), EarlySet::default());
        assert_eq!(early.left_out, (0..count).collect::<Vec<_>>());
    }

    #[test]
    fn a_rule_that_nothing_reaches_takes_nothing_from_those_behind_it() {
        let rules = |class| {
            vec![
                RulePlan { port: Some(1..=10), ..URGENT },
                RulePlan { protocol: Some(UDP), source_port: Some(5..=5), ..RulePlan::any(class) },
                RulePlan { dscp: Some(DscpSet::from_iter([46])), ..URGENT },
            ]
        };
        let early = early(rules(Class::NORMAL));
        assert_eq!((own(&early, 42).dscps, early.left_out.len()), (1 << 46, 0));
        assert!(own(&early, 43).everything);
        assert_eq!(own(&self::early(rules(Class::URGENT)), 42), own(&early, 42));
    }

    #[test]
    fn rules_without_a_network_take_room_once() {
        let rules: Vec<RulePlan> = (0..80u16)
            .map(|n| RulePlan { protocol: Some(UDP), port: Some(n * 200..=n * 200 + 199), ..URGENT })
            .collect();
        let mut plan = with(ClassesPlan { rules, ..ClassesPlan::default() });
        let other = |n: u32| NetworkPlan { vni: Vni::new(100 + n).unwrap(), ..plan.networks[0].clone() };
        let others: Vec<NetworkPlan> = (0..100).map(other).collect();
        others.into_iter().for_each(|other| plan.networks.push(other));
        let own_port = RulePlan {
            network: Some(NetworkId(2)),
            protocol: Some(UDP),
            port: Some(50_000..=50_383),
            ..URGENT
        };
        plan.classes.rules.push(RulePlan { port: Some(50_000..=50_255), ..own_port.clone() });
        plan.classes.rules.push(RulePlan { port: Some(50_256..=50_383), ..own_port });
        let early = EarlyPlan::of(&plan);
        assert_eq!((&early.left_out[..], &early.networks_left_out[..]), (&[][..], &[][..]), "room for 16384");
        assert_eq!(early.rules.all.ports.len(), 2 * 16_000);
        assert_eq!(own(&early, 100).ports.len(), 2 * 16_384);
        assert_eq!(early.rules.networks.len(), 2, "a network's own, and all of another");
        assert_eq!(own(&early, 199), early.rules.all);
    }

    #[test]
    fn a_network_that_leaves_the_others_early_has_what_stands_before() {
        let port = |port| RulePlan { protocol: Some(UDP), source_port: Some(port..=port), ..URGENT };
        let rules = vec![
            port(1),
            RulePlan { network: Some(NetworkId(1)), protocol: Some(1), ..NORMAL },
            port(2),
            RulePlan { protocol: Some(58), ..NORMAL },
            port(3),
        ];
        let early = early(rules);
        let ports = |vni| own(&early, vni).ports.into_iter().map(|port| port.port).collect::<Vec<_>>();
        assert_eq!((ports(42), ports(43), ports(44)), (vec![1, 2], vec![1], vec![1, 2]));
        assert_eq!((&early.left_out[..], &early.networks_left_out[..]), (&[2, 4][..], &[NetworkId(1)][..]));
        assert_eq!(early.rules.networks.keys().map(|vni| vni.get()).collect::<Vec<_>>(), [43]);
    }

    #[test]
    fn no_more_ports_than_the_program_has_room_for() {
        let rules = (0..100u16).map(|n| RulePlan { port: Some(n * 200..=n * 200 + 199), ..URGENT });
        let early = early(rules.chain([NORMAL]).collect());
        let count = early.rules.all.ports.len() / 2;
        assert!(count <= EARLY_PORTS_MAX && count > EARLY_PORTS_MAX - 600, "{count}");
        assert_eq!(early.left_out, (27..100).collect::<Vec<_>>());
        // What is there already takes no room.
        let same = (0..100u16).map(|n| RulePlan { port: Some(n..=n + 199), ..URGENT });
        assert_eq!(self::early(same.chain([NORMAL]).collect()).left_out, [0; 0]);
    }

    /// A packet as rules see it.
    #[derive(Clone, Copy, Debug)]
    struct Packet {
        network: u16,
        dscp: u8,
        protocol: u8,
        ports: Option<[u16; 2]>,
    }

    fn matches(rule: &RulePlan, packet: &Packet) -> bool {
        let within = |range: &Option<RangeInclusive<u16>>, ports: &[u16]| match range {
            None => true,
            Some(range) => ports.iter().any(|port| range.contains(port)),
        };
        let ports = packet.ports.as_ref().map_or(&[][..], |ports| ports);
        rule.network.is_none_or(|network| network.0 == packet.network)
            && rule.dscp.is_none_or(|dscps| dscps.contains(packet.dscp))
            && rule.protocol.is_none_or(|protocol| protocol == packet.protocol)
            && within(&rule.source_port, ports.get(..1).unwrap_or_default())
            && within(&rule.destination_port, ports.get(1..).unwrap_or_default())
            && within(&rule.port, ports)
    }

    fn is_early(set: &EarlySet, packet: &Packet) -> bool {
        let one = |side, port| {
            let protocol = EarlyProtocol::ALL.into_iter().find(|one| *one as u8 == packet.protocol);
            protocol.is_some_and(|protocol| set.ports.contains(&EarlyPort { protocol, side, port }))
        };
        let by_port = |[source, destination]: [u16; 2]| {
            one(EarlySide::Source, source) || one(EarlySide::Destination, destination)
        };
        set.everything || set.dscps >> packet.dscp & 1 == 1 || packet.ports.is_some_and(by_port)
    }

    /// Rules of two classes over few values, so that they hide each other and meet the same packets.
    fn any_rule() -> impl Strategy<Value = RulePlan> {
        let range = || {
            proptest::option::weighted(0.3, (0u16..4, 0u16..3).prop_map(|(first, more)| first..=first + more))
        };
        let class = prop_oneof![3 => Just(Class::URGENT), 1 => Just(Class::NORMAL)];
        let network = proptest::option::of((0u16..2).prop_map(NetworkId));
        let dscp = proptest::option::weighted(0.3, (1u64..8).prop_map(DscpSet));
        let protocol = proptest::option::weighted(0.5, prop_oneof![Just(6u8), Just(UDP), Just(1)]);
        (class, network, dscp, protocol, range(), range(), range()).prop_map(
            |(class, network, dscp, protocol, source_port, destination_port, port)| RulePlan {
                network,
                dscp,
                protocol,
                source_port,
                destination_port,
                port,
                ..RulePlan::any(class)
            },
        )
    }

    fn any_packet() -> impl Strategy<Value = Packet> {
        let ports = proptest::option::weighted(0.8, [0u16..6, 0u16..6]);
        let protocol = prop_oneof![Just(6u8), Just(UDP), Just(1)];
        (0u16..2, 0u8..4, protocol, ports).prop_map(|(network, dscp, protocol, ports)| Packet {
            network,
            dscp,
            protocol,
            ports: ports.filter(|_| protocol != 1),
        })
    }

    proptest! {
        /// What is early is urgent; and what is urgent is early, but for the rules and networks that are named.
        #[test]
        fn what_is_early_is_what_the_rules_say(
            rules in proptest::collection::vec(any_rule(), 0..8),
            packets in proptest::collection::vec(any_packet(), 50),
        ) {
            let early = early(rules.clone());
            for packet in packets {
                let first = rules.iter().position(|rule| matches(rule, &packet));
                let by_network = [Class::NORMAL, Class::URGENT][usize::from(packet.network)];
                let class = first.map_or(by_network, |place| rules[place].class);
                let is_early = is_early(&own(&early, 42 + u32::from(packet.network)), &packet);
                if is_early {
                    prop_assert_eq!(class, Class::URGENT, "{:?} {:?}", packet, early);
                } else if class == Class::URGENT {
                    let is_named = match first {
                        Some(place) => early.left_out.contains(&place),
                        None => early.networks_left_out.contains(&NetworkId(packet.network)),
                    };
                    prop_assert!(is_named, "{:?} {:?}", packet, early);
                }
            }
        }
    }
}
