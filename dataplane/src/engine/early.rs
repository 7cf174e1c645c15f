//! Which of a plan's rules the XDP program can decide by itself, so that their frames are urgent from the driver on: those that ask for
//! a network, and beside that for nothing, or DSCPs, or ports.
//!
//! What must hold: what is urgent here is urgent by the rules as well. The first rule that matches decides, and the program knows no
//! order; so in each network only the rules before the first of another class count.

use std::collections::BTreeSet;

use crate::plan::{Plan, RulePlan};
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
    pub networks_left_out: Vec<usize>,
}

impl EarlyPlan {
    /// Of a plan.
    pub fn of(plan: &Plan) -> EarlyPlan {
        let mut early = EarlyPlan::default();
        if plan.classes.list.len() < 2 {
            return early; // all are alike
        }
        let mut left_out = BTreeSet::new();
        let mut room = EARLY_PORTS_MAX;
        for (index, network) in plan.networks.iter().enumerate() {
            let id = NetworkId(index as u16);
            let mut own = EarlySet::default();
            let mut its = plan.classes.rules.iter().enumerate().filter(|(_, rule)| applies(rule, id));
            let mut its_left_out = Vec::new();
            let mut is_over = false;
            for (place, rule) in its.by_ref() {
                if rule.class != Class::URGENT {
                    is_over = true;
                    break;
                }
                if !add(rule, &mut own, &mut room) {
                    its_left_out.push(place);
                }
                if own.everything {
                    break;
                }
            }
            its_left_out.extend(its.filter(|(_, rule)| rule.class == Class::URGENT).map(|(place, _)| place));
            own.everything |= !is_over && network.class == Class::URGENT;
            if !own.everything {
                left_out.extend(its_left_out);
                early.networks_left_out.extend((network.class == Class::URGENT).then_some(index));
            }
            if own != EarlySet::default() {
                early.rules.networks.insert(network.vni, EarlyNetwork { own, all: false });
            }
        }
        early.left_out = left_out.into_iter().collect();
        early
    }
}

fn applies(rule: &RulePlan, network: NetworkId) -> bool {
    rule.network.is_none_or(|its| its == network)
}

/// False if the program cannot tell what it asks for.
fn add(rule: &RulePlan, set: &mut EarlySet, room: &mut usize) -> bool {
    let RulePlan { class, network, dscp, protocol, source_port, destination_port, port, .. } = rule.clone();
    let any = RulePlan { network, ..RulePlan::any(class) };
    if *rule == any {
        set.everything = true;
        return true;
    }
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
    let places = range.len() * protocols.len();
    if *rule != of_ports || protocols.is_empty() || range.len() > RANGE_MAX || places > *room {
        return false;
    }
    *room -= places;
    for port in range {
        for protocol in &protocols {
            set.ports.extend(sides.iter().map(|side| EarlyPort { protocol: *protocol, side: *side, port }));
        }
    }
    true
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::time::Duration;

    use super::*;
    use crate::plan::{ClassPlan, ClassesPlan, DscpSet, NetworkPlan, PlacementMode};
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
            name: format!("n{vni}"),
            vni: Vni::new(vni).unwrap(),
            mtu: 1450,
            remotes: vec![],
            learning: true,
            ageing: Duration::from_secs(300),
            fdb_limit: 16,
            static_macs: vec![],
            class,
        };
        Plan {
            workers: vec![],
            placement: PlacementMode::Balanced,
            balance_threshold: 85,
            uplinks: vec![],
            networks: vec![network(42, Class::NORMAL), network(43, Class::URGENT)],
            endpoints: vec![],
            classes,
            control_socket: PathBuf::new(),
        }
    }

    fn own(early: &EarlyPlan, vni: u32) -> EarlySet {
        early.rules.networks.get(&Vni::new(vni).unwrap()).map(|it| it.own.clone()).unwrap_or_default()
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
        assert_eq!((own(&early, 43), early.networks_left_out), (EarlySet::default(), vec![1]));
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
    fn no_more_ports_than_the_program_has_room_for() {
        let rules = (0..100u16).map(|n| RulePlan { port: Some(n * 200..=n * 200 + 199), ..URGENT });
        let early = early(rules.chain([NORMAL]).collect());
        let count: usize = early.rules.networks.values().map(|it| it.own.ports.len() / 2).sum();
        assert!(count <= EARLY_PORTS_MAX && count > EARLY_PORTS_MAX - 600, "{count}");
        assert!(!early.left_out.is_empty());
    }
}
