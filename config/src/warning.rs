//! What is not wrong with a configuration, but hardly meant. `peregrine run` and `check` print it.

use std::fmt;

use peregrine_dataplane::engine::EarlyPlan;
use peregrine_dataplane::plan::{ClassesPlan, Plan, WorkOrder};
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
    let is_hidden = |place: usize| hidden.iter().any(|(rule, _)| *rule == place);
    let class = |place: usize| plan.classes.rules.get(place).map(|rule| rule.class);
    let mut warnings = of_classes(plan, is_hidden);
    let early = if plan.has_early() { EarlyPlan::of(plan) } else { EarlyPlan::default() };
    warnings.extend(early.networks_left_out.iter().map(|&network| Warning::NetworkNotEarly { network }));
    warnings.extend(hidden.iter().map(|&(rule, by)| Warning::HiddenRule {
        rule,
        by,
        same_class: class(rule) == class(by),
    }));
    let not_early = early.left_out.into_iter().filter(|rule| !is_hidden(*rule));
    warnings.extend(not_early.map(|rule| Warning::NotEarly { rule }));
    warnings
}

/// What is wrong with the list of classes, beside the rules. Nothing if nobody asks for classes: the default list has two.
fn of_classes(plan: &Plan, is_hidden: impl Fn(usize) -> bool) -> Vec<Warning> {
    let ClassesPlan { list, default, rules, .. } = &plan.classes;
    let is_asked = list != &ClassesPlan::default().list
        || !rules.is_empty()
        || plan.networks.iter().any(|network| network.class != *default)
        || plan.has_early();
    let mut warnings = Vec::new();
    if !is_asked {
        return warnings;
    }
    for (place, class) in list.iter().enumerate() {
        let is_here = |other: &Class| usize::from(other.0) == place;
        let by_rule = rules.iter().enumerate().any(|(place, rule)| is_here(&rule.class) && !is_hidden(place));
        let by_network = plan.networks.iter().any(|network| is_here(&network.class));
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
