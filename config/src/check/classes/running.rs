//! `[[rules]]` alone, for what runs already: the names are those of its plan.

use std::collections::BTreeMap;

use peregrine_dataplane::plan::{EndpointPlan, Plan, RulePlan};

use super::{Classes, Endpoint, Known, rules};
use crate::at::At;
use crate::raw::{List, Rule};

/// Checks them.
pub fn rules_of(at: &At<'_>, field: &List<Rule>, plan: &Plan) -> Vec<RulePlan> {
    let classes = Classes {
        list: plan.classes.list.clone(),
        whole: true,
        urgent_quota: Some(plan.classes.urgent_quota),
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
    rules(at, field, &classes, &known, plan.classes.trusted.is_empty())
}
