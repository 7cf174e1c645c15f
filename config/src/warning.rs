//! What is not wrong with a configuration, but hardly meant. `peregrine run` and `check` print it.

use std::fmt;

use peregrine_dataplane::engine::EarlyPlan;
use peregrine_dataplane::plan::Plan;

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
    /// There are rules or urgent networks, and no uplink has rings for urgent frames.
    NoEarly,
    /// A network whose class has no effect yet: a rule for another class may take some of its packets, and the XDP program cannot
    /// tell which.
    NetworkNotEarly {
        /// Its place in `networks`.
        network: usize,
    },
    /// A rule for urgent packets that has no effect yet: the XDP program cannot decide it, and nobody else acts on it.
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
            Warning::NoEarly => f.write_str(
                "classes have no effect: no uplink has rings for urgent frames: set early = true or \"if-possible\" there",
            ),
            Warning::NotEarly { rule } => write!(
                f,
                "rules[{rule}]: it has no effect yet, or not everywhere: only rules are followed that ask for at most a network, and for DSCPs or one range of up to 256 ports (16384 in all), and stand before any for other classes"
            ),
            Warning::NetworkNotEarly { network } => write!(
                f,
                "networks[{network}].class: it has no effect yet, because a rule for another class stands before it"
            ),
        }
    }
}

/// All that a plan gives reason for, in the order of the format.
pub fn warnings(plan: &Plan) -> Vec<Warning> {
    let class = |place: usize| plan.classes.rules.get(place).map(|rule| rule.class);
    let hidden = plan.classes.hidden();
    let is_hidden = |place: &usize| hidden.iter().any(|(rule, _)| rule == place);
    let early = EarlyPlan::of(plan);
    let left_out: Vec<usize> = early.left_out.into_iter().filter(|rule| !is_hidden(rule)).collect();
    let has_early = plan.has_early();
    let networks = early.networks_left_out;
    let has_urgent = !early.rules.networks.is_empty() || !left_out.is_empty() || !networks.is_empty();
    let no_early = (has_urgent && !has_early).then_some(Warning::NoEarly);
    let not_early = left_out.into_iter().filter(|_| has_early).map(|rule| Warning::NotEarly { rule });
    let hidden = hidden.iter().map(|&(rule, by)| Warning::HiddenRule {
        rule,
        by,
        same_class: class(rule) == class(by),
    });
    let networks =
        networks.into_iter().filter(|_| has_early).map(|network| Warning::NetworkNotEarly { network });
    hidden.chain(no_early).chain(networks).chain(not_early).collect()
}
