//! `[[rules]]` alone, for what runs already: the names are those of its plan.

use std::collections::BTreeMap;

use peregrine_dataplane::plan::{EndpointPlan, Plan, RulePlan};

use super::{Endpoint, Known, Names, rules};
use crate::at::At;
use crate::raw::{List, Rule};

/// Checks them.
pub fn rules_of(at: &At<'_>, field: &List<Rule>, plan: &Plan) -> Vec<RulePlan> {
    let classes = plan.classes.list.iter();
    let names = Names {
        names: classes.map(|class| class.name.clone()).collect(),
        whole: true,
        default: Some(plan.classes.default),
    };
    let networks = plan.networks.iter().enumerate().map(|(place, network)| (network.name.as_str(), place));
    let endpoint = |(place, endpoint): (usize, &'_ EndpointPlan)| {
        let network = plan.network(endpoint.network).map(|network| network.name.as_str());
        Endpoint { place, network }
    };
    let endpoints: BTreeMap<&str, Endpoint<'_>> =
        plan.endpoints.iter().enumerate().map(|it| (it.1.name.as_str(), endpoint(it))).collect();
    let known = Known { networks: networks.collect(), endpoints, plans: &plan.networks };
    rules(at, field, &names, &known, plan.classes.trusted.is_empty())
}
