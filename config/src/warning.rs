//! What is not wrong with a configuration, but hardly meant. `peregrine run` and `check` print it.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;

use peregrine_dataplane::engine::EarlyPlan;
use peregrine_dataplane::plan::{ClassesPlan, NetworkPlan, Plan, WorkOrder};
use peregrine_dataplane::tables::overhead;
use peregrine_dataplane::types::Class;

/// Something to look at; one line.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Warning {
    /// A rule that no packet reaches.
    HiddenRule {
        /// Its place in `rules`.
        rule: usize,
        /// The place of the first earlier rule that matches all that it does.
        by: usize,
        /// Both give the same class.
        same_class: bool,
    },
    /// Nothing gets into a class.
    UnusedClass {
        /// Its place in `classes`.
        class: usize,
        /// Its name.
        name: String,
    },
    /// What no rule and no network names belongs to the first class.
    DefaultIsFirst {
        /// Its name.
        name: String,
    },
    /// A class that is not preferred, listed before one that is.
    FifoBeforeOthers {
        /// Its place in `classes`.
        class: usize,
        /// The place of the first one behind it that is preferred.
        preferred: usize,
    },
    /// A network whose urgent packets come on the normal rx rings: a rule for another class may take some of them, and the XDP program
    /// cannot tell which.
    NetworkNotEarly {
        /// Its place in `networks`.
        network: usize,
    },
    /// Addresses that are those of several stations: nobody is answered for.
    SharedAddress {
        /// The network's place in `networks`.
        network: usize,
        /// The first such address,
        address: IpAddr,
        /// and the places in `static_macs` of the first two that have it.
        stations: [usize; 2],
        /// How many others there are.
        others: usize,
    },
    /// A network whose packets fit a common interface over IPv4, but not over IPv6, and remotes are reached over that.
    MtuOverIpv6 {
        /// Its place in `networks`.
        network: usize,
        /// Its MTU.
        mtu: u16,
        /// It would have to be this on such an interface.
        fits: usize,
        /// What the interfaces need as it is.
        needs: usize,
    },
    /// A rule whose urgent packets come on the normal rx rings, or some of them: the XDP program cannot decide it.
    NotEarly {
        /// Its place in `rules`.
        rule: usize,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Warning::HiddenRule { rule, by, same_class } => {
                write!(
                    f,
                    "rules[{rule}]: no packet reaches it: rules[{by}] stands before it and matches all that it does"
                )?;
                f.write_str(if *same_class { ", for the same class" } else { ", for another class" })
            }
            Warning::UnusedClass { class, name } => write!(
                f,
                "classes[{class}]: nothing is {name:?}: no rule that is reached and no network names it, and it is not the default"
            ),
            Warning::DefaultIsFirst { name } => write!(
                f,
                "default_class: it is {name:?}, the most urgent: what no rule and no network names goes before all that they name"
            ),
            Warning::FifoBeforeOthers { class, preferred } => write!(
                f,
                "classes[{class}].order: \"fifo\" is not preferred, so classes[{preferred}], though behind it in the list, goes first"
            ),
            Warning::NotEarly { rule } => write!(
                f,
                "rules[{rule}]: early: its packets, or some of them, come on the normal rings: the driver decides only rules that ask for at most a network, and for DSCPs or one range of up to 256 ports (16384 in all), and stand before any for other classes"
            ),
            Warning::SharedAddress { network, address, stations: [first, second], others } => {
                write!(
                    f,
                    "networks[{network}].static_macs[{second}].addresses: {address} is an address of static_macs[{first}], too: nobody is answered for where several stations have the same"
                )?;
                if *others > 0 { write!(f, " (and {others} more)") } else { Ok(()) }
            }
            Warning::MtuOverIpv6 { network, mtu, fits, needs } => write!(
                f,
                "networks[{network}].mtu: with remotes over IPv6, {mtu} needs an interface MTU of at least {needs}: {fits} fits {}",
                needs - usize::from(*mtu) + fits
            ),
            Warning::NetworkNotEarly { network } => write!(
                f,
                "networks[{network}].class: early: its packets come on the normal rings, because a rule for another class stands before it"
            ),
        }
    }
}

/// All that a plan gives reason for, in the order of the format.
pub fn warnings(plan: &Plan) -> Vec<Warning> {
    let hidden = plan.classes.hidden();
    let mut warnings = of_classes(plan, |place| is_hidden(&hidden, place));
    for (id, network) in plan.networks.iter() {
        let place = id.index();
        warnings.extend(mtu_over_ipv6(place, network, plan));
        warnings.extend(shared_address(place, network));
    }
    warnings.extend(of_rules(plan, &hidden));
    warnings
}

/// Those of them that are about rules.
pub fn rule_warnings(plan: &Plan) -> Vec<Warning> {
    of_rules(plan, &plan.classes.hidden())
}

fn is_hidden(hidden: &[(usize, usize)], place: usize) -> bool {
    hidden.iter().any(|(rule, _)| *rule == place)
}

fn of_rules(plan: &Plan, hidden: &[(usize, usize)]) -> Vec<Warning> {
    let class = |place: usize| plan.classes.rules.get(place).map(|rule| rule.class);
    let early = if plan.has_early() { EarlyPlan::of(plan) } else { EarlyPlan::default() };
    let networks = early.networks_left_out.iter();
    let mut warnings: Vec<Warning> =
        networks.map(|network| Warning::NetworkNotEarly { network: network.index() }).collect();
    warnings.extend(hidden.iter().map(|&(rule, by)| Warning::HiddenRule {
        rule,
        by,
        same_class: class(rule) == class(by),
    }));
    let not_early = early.left_out.into_iter().filter(|rule| !is_hidden(hidden, *rule));
    warnings.extend(not_early.map(|rule| Warning::NotEarly { rule }));
    warnings
}

/// An MTU that was made for IPv4.
fn mtu_over_ipv6(place: usize, network: &NetworkPlan, plan: &Plan) -> Option<Warning> {
    /// Ethernet's, and that of most jumbo frames.
    const COMMON: [usize; 2] = [1500, 9000];
    let over_ipv4 = NetworkPlan { remotes: vec![[192, 0, 2, 1].into()], ..NetworkPlan::new("", network.vni) };
    let (less, more) = (overhead(&over_ipv4, &plan.uplinks), overhead(network, &plan.uplinks));
    let mtu = usize::from(network.mtu);
    let interface = COMMON.into_iter().find(|interface| mtu + less <= *interface)?;
    let is_so = !network.remotes.is_empty() && mtu + more > interface;
    is_so.then(|| Warning::MtuOverIpv6 {
        network: place,
        mtu: network.mtu,
        fits: interface - more,
        needs: mtu + more,
    })
}

fn shared_address(place: usize, network: &NetworkPlan) -> Option<Warning> {
    let mut stations: HashMap<IpAddr, Vec<usize>> = HashMap::new();
    for (station, fixed) in network.static_macs.iter().enumerate() {
        for address in &fixed.addresses {
            stations.entry(*address).or_default().push(station);
        }
    }
    let mut shared: Vec<([usize; 2], IpAddr)> = stations
        .into_iter()
        .filter_map(|(address, stations)| Some((*stations.first_chunk()?, address)))
        .collect();
    shared.sort_by_key(|&([first, second], address)| (second, first, address));
    let &(stations, address) = shared.first()?;
    Some(Warning::SharedAddress { network: place, address, stations, others: shared.len() - 1 })
}

/// What is wrong with the list of classes, beside the rules. Nothing if nobody asks for classes: the default list has two.
fn of_classes(plan: &Plan, is_hidden: impl Fn(usize) -> bool) -> Vec<Warning> {
    let ClassesPlan { list, default, rules, .. } = &plan.classes;
    let is_asked = list != &ClassesPlan::default().list
        || !rules.is_empty()
        || plan.networks.values().any(|network| network.class != *default)
        || plan.has_early();
    let mut warnings = Vec::new();
    if !is_asked {
        return warnings;
    }
    for (place, class) in list.iter().enumerate() {
        let is_here = |other: &Class| usize::from(other.0) == place;
        let by_rule = rules.iter().enumerate().any(|(place, rule)| is_here(&rule.class) && !is_hidden(place));
        let by_network = plan.networks.values().any(|network| is_here(&network.class));
        if !by_rule && !by_network && !is_here(default) {
            warnings.push(Warning::UnusedClass { class: place, name: class.name.clone() });
        }
        // The last one has no order.
        let behind = list.iter().enumerate().skip(place + 1).take(list.len().saturating_sub(place + 2));
        let preferred =
            behind.filter(|(_, behind)| behind.order != WorkOrder::Fifo).map(|(place, _)| place).next();
        if let (WorkOrder::Fifo, Some(preferred)) = (class.order, preferred) {
            warnings.push(Warning::FifoBeforeOthers { class: place, preferred });
        }
    }
    if let ([first, _, ..], Class::URGENT) = (&list[..], *default) {
        warnings.push(Warning::DefaultIsFirst { name: first.name.clone() });
    }
    warnings
}
