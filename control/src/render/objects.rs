//! Networks, ports and endpoints that are declared, and what changes in them.

use serde_json::Value;

use super::{NONE, figure, list, text};
use crate::table::{Table, count, thousands};

/// Names that are listed of each kind of change in a line of `watch`.
const NAMED_MAX: usize = 8;

/// `peregrine network list`.
pub fn networks(answer: &Value) -> String {
    let mut table = Table::new(&["network", ">VNI", ">MTU", "remotes", ">endpoints", "from"]);
    for network in list(answer, "networks") {
        table.row(vec![
            text(&network["name"]),
            figure(&network["vni"]).to_string(),
            text(&network["mtu"]),
            text(&network["remotes"]),
            text(&network["endpoints"]),
            origin(network),
        ]);
    }
    all(&table, answer, "networks")
}

/// `peregrine port list`.
pub fn ports(answer: &Value) -> String {
    let mut table = Table::new(&["port", "at", "endpoints", "state", "from"]);
    for port in list(answer, "ports") {
        table.row(vec![
            text(&port["name"]),
            at(port),
            text(&port["endpoints"]),
            text(&port["state"]),
            if port["own"] == true { "its endpoint".to_owned() } else { origin(port) },
        ]);
    }
    all(&table, answer, "ports")
}

/// `peregrine endpoint list`.
pub fn endpoints(answer: &Value) -> String {
    let mut table = Table::new(&["endpoint", "network", "MAC", "addresses", "on", "connected", "from"]);
    for endpoint in list(answer, "endpoints") {
        let on = match &endpoint["port"] {
            Value::Null => at(endpoint),
            port => format!("port {}", text(port)),
        };
        table.row(vec![
            text(&endpoint["name"]),
            text(&endpoint["network"]),
            text(&endpoint["mac"]),
            text(&endpoint["addresses"]),
            on,
            text(&endpoint["connected"]),
            origin(endpoint),
        ]);
    }
    all(&table, answer, "endpoints")
}

/// Where a port is, or an endpoint with one of its own.
fn at(object: &Value) -> String {
    let (memif, veth) = (&object["memif"], &object["veth"]);
    if veth.is_null() {
        let role = memif["role"].as_str().unwrap_or("server");
        return format!("memif {} id {}, {role}", text(&memif["socket"]), figure(&memif["id"]));
    }
    let namespace = match &veth["pid"] {
        Value::Null => text(&veth["namespace"]),
        pid => format!("process {pid}'s namespace"),
    };
    format!("{} in {namespace}", veth["interface"].as_str().unwrap_or("eth0"))
}

fn origin(object: &Value) -> String {
    match object["origin"].as_str() {
        Some("api") => "control socket".to_owned(),
        Some(other) => other.to_owned(),
        None => NONE.to_owned(),
    }
}

/// The table, if there is anything in it.
fn all(table: &Table, answer: &Value, kind: &str) -> String {
    if list(answer, kind).is_empty() { format!("no {kind}\n") } else { table.render() }
}

/// `peregrine apply`: the difference, a line each.
pub fn applied(answer: &Value) -> String {
    let mut out = String::new();
    for (key, sign) in [("removed", '-'), ("changed", '~'), ("added", '+')] {
        for object in list(answer, key) {
            let keys = match list(object, "keys") {
                [] => String::new(),
                keys => format!(": {}", keys.iter().map(text).collect::<Vec<_>>().join(", ")),
            };
            out.push_str(&format!("{sign} {} {}{keys}\n", text(&object["kind"]), text(&object["name"])));
        }
        let more = figure(&answer["totals"][key]).saturating_sub(list(answer, key).len() as u64);
        if more > 0 {
            out.push_str(&format!("{sign} and {} more\n", thousands(more)));
        }
    }
    let number = |key| figure(&answer["totals"][key]).max(list(answer, key).len() as u64);
    let (added, changed, removed) = (number("added"), number("changed"), number("removed"));
    let what = if added + changed + removed == 0 {
        "nothing to change".to_owned()
    } else {
        format!("{} added, {} changed, {} removed", thousands(added), thousands(changed), thousands(removed))
    };
    let note = if answer["dry_run"] == true { " (dry run: nothing was changed)" } else { "" };
    format!("{out}{what}{note}\n")
}

/// The first line of `peregrine watch`.
pub fn watching(answer: &Value) -> String {
    let note = if answer["resync"] == true { "; what came before is not known any more" } else { "" };
    format!("generation {}{note}\n", figure(&answer["generation"]))
}

/// A line of `peregrine watch`.
pub fn changed(changed: &Value) -> String {
    let part = |key: &str| {
        let objects = list(changed, key);
        let named = |object: &Value| format!("{} {}", text(&object["kind"]), text(&object["name"]));
        match objects.len() {
            0 => None,
            1..=NAMED_MAX => {
                Some(format!("{key} {}", objects.iter().map(named).collect::<Vec<_>>().join(", ")))
            }
            many => Some(format!("{key} {}", count(many, "object"))),
        }
    };
    let parts: Vec<String> = ["added", "changed", "removed"].into_iter().filter_map(part).collect();
    format!("generation {}: {}\n", figure(&changed["generation"]), parts.join("; "))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lists_are_tables() {
        let answer = json!({"total": 2, "networks": [
            {"name": "blue", "vni": 4242, "mtu": 1450, "remotes": ["10.0.0.1", "10.0.0.2"], "endpoints": 2, "origin": "api"},
            {"name": "red", "vni": 7, "endpoints": 0, "origin": "config"},
        ]});
        assert_eq!(
            networks(&answer),
            "  network   VNI    MTU  remotes             endpoints  from\n  blue     4242  1,450  10.0.0.1, 10.0.0.2          2  control socket\n  red         7      -  -                           0  config\n"
        );
        let answer = json!({"total": 1, "ports": [{"name": "p", "memif": {"socket": "@x"}, "origin": "api", "own": true, "endpoints": ["web"], "state": "listening"}]});
        assert!(
            ports(&answer).ends_with("  p     memif @x id 0, server  web        listening  its endpoint\n"),
            "{}",
            ports(&answer)
        );
        let answer = json!({"total": 1, "endpoints": [{"name": "web", "network": "blue", "mac": "02:00:00:00:00:01", "port": "p", "connected": false, "origin": "api"}]});
        assert!(endpoints(&answer).contains("port p  no         control socket"), "{}", endpoints(&answer));
        assert_eq!(endpoints(&json!({"endpoints": [], "total": 0})), "no endpoints\n");
    }

    #[test]
    fn a_difference_is_read_from_top_to_bottom() {
        let answer = json!({
            "added": [{"kind": "endpoint", "name": "web"}], "changed": [{"kind": "network", "name": "blue", "keys": ["mtu", "remotes"]}],
            "removed": [{"kind": "port", "name": "p"}], "totals": {"added": 1001, "changed": 1, "removed": 1}, "dry_run": true,
        });
        assert_eq!(
            applied(&answer),
            "- port p\n~ network blue: mtu, remotes\n+ endpoint web\n+ and 1,000 more\n1,001 added, 1 changed, 1 removed (dry run: nothing was changed)\n"
        );
        assert_eq!(applied(&json!({"dry_run": false})), "nothing to change\n");
    }

    #[test]
    fn what_changes_is_a_line() {
        let many: Vec<Value> = (0..9).map(|n| json!({"kind": "port", "name": format!("p{n}")})).collect();
        let told = json!({"generation": 7, "added": [{"kind": "endpoint", "name": "web"}, {"kind": "port", "name": "q"}], "removed": many});
        assert_eq!(changed(&told), "generation 7: added endpoint web, port q; removed 9 objects\n");
        assert_eq!(watching(&json!({"generation": 12345})), "generation 12345\n");
    }
}
