//! What is not wrong with a configuration, but hardly meant. `peregrine run` and `check` print it.

use std::fmt;

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
        }
    }
}

/// All that a plan gives reason for, in the order of the format.
pub fn warnings(plan: &Plan) -> Vec<Warning> {
    let class = |place: usize| plan.classes.rules.get(place).map(|rule| rule.class);
    let hidden = plan.classes.hidden().into_iter();
    hidden.map(|(rule, by)| Warning::HiddenRule { rule, by, same_class: class(rule) == class(by) }).collect()
}
