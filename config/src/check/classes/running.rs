//! `[[rules]]` alone, for what runs already: the names are those of its plan.

use std::collections::BTreeMap;

use peregrine_dataplane::plan::{EndpointPlan, Plan, RulePlan};
use peregrine_dataplane::types::EndpointId;

use super::{Classes, Endpoint, Known, rules};
use crate::at::At;
use crate::raw::{List, Rule};

impl Classes {
    /// Those of a plan.
    pub fn of(plan: &Plan) -> Classes {
        Classes {
            list: plan.classes.list.clone(),
            whole: true,
            urgent_quota: Some(plan.classes.urgent_quota),
            default: Some(plan.classes.default),
        }
    }
}

/// Checks them.
pub fn rules_of(at: &At<'_>, field: &List<Rule>, plan: &Plan) -> Vec<RulePlan> {
    let classes = Classes::of(plan);
    let networks = plan.networks.iter().map(|(id, network)| (network.name.as_str(), id.index()));
    let endpoint = |(id, endpoint): (EndpointId, &'_ EndpointPlan)| {
        let network = plan.network(endpoint.network).map(|network| network.name.as_str());
        Endpoint { place: id.index(), network }
    };
    let endpoints: BTreeMap<&str, Endpoint<'_>> =
        plan.endpoints.iter().map(|it| (it.1.name.as_str(), endpoint(it))).collect();
    let known = Known { networks: networks.collect(), endpoints, plans: &[] };
    rules(at, field, &classes, &known, plan.classes.trusted.is_empty())
}
