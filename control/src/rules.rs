//! The methods about rules: what is in force, what would be wrong with others, and others instead. Called by [`methods`](crate::methods).
//!
//! A rule is an object with the keys and values of the config's `[[rules]]`; `null` is as good as a key left out. A list is taken whole or not at
//! all. The file that the daemon was started with is not changed.

use peregrine_config::{ConfigErrors, rule_warnings};
use peregrine_dataplane::engine::Engine;
use peregrine_dataplane::plan::{Early, Plan, RulePlan};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::rpc::{RpcError, code, params};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rules {
    rules: Value,
}

/// `rules.get`: those in force, as they are written in a config.
pub fn get(engine: &Engine) -> Value {
    json!({ "rules": peregrine_config::written(engine.plan()), "status": engine.rules_status() })
}

/// `rules.check`: what [`set`] would say, and nothing is done.
///
/// # Errors
/// Wrong parameters; the mistakes are in the error's data.
pub fn check(engine: &Engine, given: Value) -> Result<Value, RpcError> {
    let rules = read("rules.check", given, engine.plan())?;
    let mut plan = engine.plan().clone();
    plan.classes.rules = rules;
    Ok(taken(engine, plan))
}

/// `rules.set`: these instead of those in force. `status` tells when all workers go by them.
///
/// # Errors
/// Wrong parameters; the mistakes are in the error's data, and nothing has changed.
pub fn set(engine: &mut Engine, given: Value) -> Result<Value, RpcError> {
    let rules = read("rules.set", given, engine.plan())?;
    engine.set_rules(rules).map_err(|error| RpcError::new(code::REFUSED, error.to_string()))?;
    Ok(taken(engine, engine.plan().clone()))
}

/// How many there are, and what is hardly meant.
fn taken(engine: &Engine, mut plan: Plan) -> Value {
    if !engine.uplinks().iter().any(|uplink| uplink.early) {
        // Asked for, perhaps, and not got: then nothing comes early.
        plan.uplinks.iter_mut().for_each(|uplink| uplink.early = Early::Off);
    }
    // What classes there are is the config's.
    let warnings: Vec<String> = rule_warnings(&plan).iter().map(ToString::to_string).collect();
    json!({ "count": plan.classes.rules.len(), "warnings": warnings })
}

fn read(method: &str, given: Value, plan: &Plan) -> Result<Vec<RulePlan>, RpcError> {
    let mut rules = params::<Rules>(method, given)?.rules;
    for rule in rules.as_array_mut().into_iter().flatten().filter_map(Value::as_object_mut) {
        rule.retain(|_, value| !value.is_null());
    }
    peregrine_config::rules(rules, method, plan).map_err(|errors| mistakes(method, &errors))
}

/// The first in the message, all of them in `data.mistakes`.
fn mistakes(method: &str, errors: &ConfigErrors) -> RpcError {
    let mut lines: Vec<String> = errors.list().iter().map(ToString::to_string).collect();
    if errors.unlisted() > 0 {
        lines.push(format!("and {} more mistakes", errors.unlisted()));
    }
    let first = lines.first().map_or("", String::as_str);
    let more = match lines.len().saturating_sub(1) {
        0 => String::new(),
        more => format!(" (and {more} more in data.mistakes)"),
    };
    RpcError {
        data: Some(json!({ "mistakes": lines })),
        ..RpcError::new(code::INVALID_PARAMS, format!("{method}: {first}{more}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::preflight::allowed_cores;
    use crate::rpc::LINE_BYTES_MAX;

    /// Workers on frames from memory, by a config with these networks and this endpoint.
    fn engine() -> Engine {
        let core = allowed_cores().unwrap().first().unwrap().0;
        let config = format!(
            "[[workers]]\ncore = {core}\n[uplink]\ninterface = \"ov0\"\nlocal = \"10.9.0.1\"\nring_size = 64\nearly = true\n\
             [[networks]]\nname = \"blue\"\nvni = 7\n[[networks]]\nname = \"green\"\nvni = 8\n\
             [[endpoints]]\nname = \"web\"\nnetwork = \"blue\"\nmac = \"02:00:00:00:07:01\"\nmemif = {{ socket = \"@x\" }}\n"
        );
        let plan = peregrine_config::parse(&config, "t").unwrap_or_else(|errors| panic!("{errors}"));
        Engine::replay(&plan, vec![]).unwrap()
    }

    #[test]
    fn rules_that_are_set_are_those_that_are_told() {
        let mut engine = engine();
        assert_eq!(get(&engine)["rules"], json!([]));
        let rules = json!([
            {"class": "urgent", "network": "green", "protocol": "udp", "port": "5000-5099"},
            {"class": "normal", "dscp": [8, "10-12"], "address": "10.0.0.0/8"},
            {"class": "urgent", "network": "blue", "endpoint": "web"},
        ]);
        let answer = set(&mut engine, json!({ "rules": rules })).unwrap();
        assert_eq!(answer["count"], 3);
        let told = get(&engine);
        assert_eq!((&told["rules"], &told["status"]["count"]), (&rules, &json!(3)));
        // The network is the endpoint's, and null asks for nothing.
        let short = json!({"rules": [{"class": "urgent", "endpoint": "web", "dscp": null}]});
        set(&mut engine, short).unwrap();
        assert_eq!(get(&engine)["rules"], json!([rules[2]]));
        assert_eq!(set(&mut engine, json!({"rules": []})).unwrap(), json!({"count": 0, "warnings": []}));
        assert_eq!(get(&engine)["rules"], json!([]));
    }

    #[test]
    fn what_is_checked_changes_nothing() {
        let mut engine = engine();
        set(&mut engine, json!({"rules": [{"class": "urgent"}]})).unwrap();
        let hidden = json!({"rules": [{"class": "normal"}, {"class": "urgent", "port": 22}]});
        let answer = check(&engine, hidden).unwrap();
        assert_eq!(answer["count"], 2);
        assert!(answer["warnings"][0].as_str().unwrap().contains("no packet reaches it"), "{answer}");
        assert_eq!(get(&engine)["rules"], json!([{"class": "urgent"}]));
    }

    #[test]
    fn mistakes_are_told_with_their_places_and_nothing_is_changed() {
        let mut engine = engine();
        set(&mut engine, json!({"rules": [{"class": "urgent"}]})).unwrap();
        for (rules, mistakes) in [
            (json!([{"class": "urgent"}, {"class": "urgent", "network": "blu", "port": "x"}]), 2),
            (json!([{"class": "urgent", "prot": 6}]), 1),
            (json!([{"class": "urgent", "port": 1e3}]), 1),
            (json!([{"class": "urgent", "dscp": [null]}]), 1),
            (json!([{"class": "urgent", "port": u64::MAX}]), 1),
            (json!([{}]), 1),
            (json!([7, []]), 2),
            (json!({"class": "urgent"}), 1),
            (json!(null), 1),
            (json!(vec![json!({}); 3000]), 1001),
        ] {
            for method in ["rules.set", "rules.check"] {
                let given = json!({ "rules": rules });
                let error = match method {
                    "rules.set" => set(&mut engine, given),
                    _ => check(&engine, given),
                };
                let error = error.unwrap_err();
                let data = error.data.unwrap();
                let lines = data["mistakes"].as_array().unwrap();
                assert_eq!((error.code, lines.len()), (code::INVALID_PARAMS, mistakes), "{lines:?}");
                assert!(error.message.starts_with(&format!("{method}: rules")), "{}", error.message);
                assert!(lines.iter().all(|line| !line.as_str().unwrap().contains('\n')), "{lines:?}");
            }
        }
        for given in [json!({}), json!({"rules": [], "more": 1}), json!([])] {
            assert_eq!(set(&mut engine, given).unwrap_err().code, code::INVALID_PARAMS);
        }
        assert_eq!(get(&engine)["rules"], json!([{"class": "urgent"}]));
    }

    #[test]
    fn all_the_rules_that_there_can_be_fit_into_a_request() {
        let name = "n".repeat(63);
        let dscps: Vec<u8> = (0..64).step_by(2).collect();
        let prefix = "2001:db8:1111:2222:3333:4444:5555:6666/128";
        let rule = json!({
            "class": name, "network": name, "endpoint": name, "dscp": dscps, "outer_dscp": dscps, "protocol": "icmpv6",
            "port": "50000-59999", "source_port": "50000-59999", "destination_port": "50000-59999",
            "source": prefix, "destination": prefix, "address": prefix,
        });
        let request =
            json!({"jsonrpc": "2.0", "id": 1, "method": "rules.set", "params": {"rules": vec![rule; 1024]}});
        assert!(request.to_string().len() < LINE_BYTES_MAX);
    }
}
