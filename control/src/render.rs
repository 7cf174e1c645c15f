//! `status` and `stats` for people, and the daemon's lines at start: from the same JSON that `--json` prints, so that
//! both always tell the same. A field that is missing shows as `-`.

pub mod objects;

use serde_json::Value;

use crate::table::{Table, count, duration, percent, thousands};

/// What stands where there is nothing to tell.
const NONE: &str = "-";

fn text(value: &Value) -> String {
    match value {
        Value::Null => NONE.to_owned(),
        Value::String(text) => text.clone(),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.to_owned(),
        Value::Number(number) => number.as_u64().map_or_else(|| number.to_string(), thousands),
        Value::Array(list) if list.is_empty() => NONE.to_owned(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(", "),
        Value::Object(_) => value.to_string(),
    }
}

fn figure(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn list<'a>(value: &'a Value, key: &str) -> &'a [Value] {
    value.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
}

fn section(out: &mut String, title: &str, table: &Table) {
    let body = table.render();
    if !body.is_empty() {
        out.push_str(&format!("\n{title}\n{body}"));
    }
}

/// One uplink: what was asked for and what was got.
pub fn uplink(uplink: &Value) -> Vec<(String, String)> {
    let link = &uplink["link"];
    let state = match (link.is_null(), &link["up"], &link["carrier"]) {
        (true, ..) => "gone",
        (_, Value::Bool(false), _) => "down",
        (_, _, Value::Bool(false)) => "no carrier",
        _ => "up",
    };
    let (interface, driver) = (text(&uplink["interface"]), text(&uplink["driver"]));
    let (mac, mtu) = (text(&uplink["mac"]), &uplink["mtu"]);
    let queues = match list(uplink, "queues").len() {
        0 => format!("{} got", text(&uplink["queues"])),
        got => format!("{got} got: {}", text(&uplink["queues"])),
    };
    let (asked, of) = (text(&uplink["queues_requested"]), text(&uplink["queue_count"]));
    vec![
        ("uplink".into(), format!("{interface}, {state}: driver {driver}, address {mac}, MTU {mtu}")),
        ("VTEP".into(), vtep(uplink)),
        (
            "mode".into(),
            format!(
                "{} asked, {} got{}",
                text(&uplink["mode_requested"]),
                text(&uplink["mode_actual"]),
                if uplink["multi_buffer"] == true {
                    ", multi-buffer: packets may be longer than a chunk"
                } else {
                    ""
                }
            ),
        ),
        ("urgent rings".into(), urgent_rings(uplink)),
        ("queues".into(), format!("{asked} of {of} asked, {queues}")),
        ("huge pages".into(), huge_pages(&uplink["huge_pages"])),
    ]
}

fn vtep(uplink: &Value) -> String {
    let vlan = match (&uplink["vlan"], &uplink["vlan_link"]) {
        (Value::Null, _) => String::new(),
        (vlan, Value::Null) => format!(", VLAN {vlan} without a device"),
        (vlan, link) if link["vlan"]["tag"] == "802.1ad" => {
            format!(", VLAN {vlan} without a device ({} is 802.1ad: 802.1Q is needed)", text(&link["name"]))
        }
        (vlan, link) => format!(", VLAN {vlan} ({})", text(&link["name"])),
    };
    let missing = list(uplink, "missing").iter();
    let missing: String =
        missing.map(|its| format!(", {} {}", text(&its["address"]), text(&its["reason"]))).collect();
    let path_mtu = match &uplink["path_mtu_unknown"] {
        Value::Null => String::new(),
        why => format!(", path MTUs are not learned {}", text(why)),
    };
    format!("{}, UDP port {}{vlan}{missing}{path_mtu}", text(&uplink["local"]), uplink["port"])
}

fn urgent_rings(uplink: &Value) -> String {
    let got = match (&uplink["early"], uplink["early_refused"].as_str()) {
        (Value::Bool(true), _) => "got".to_owned(),
        (_, Some(why)) => format!("none: {why}"),
        _ => "none".to_owned(),
    };
    match text(&uplink["early_requested"]).as_str() {
        "on" => format!("asked, {got}"),
        "if-possible" => format!("asked if possible, {got}"),
        _ => "not asked".to_owned(),
    }
}

fn huge_pages(value: &Value) -> String {
    let got = match value {
        Value::Bool(yes) => *yes,
        Value::Number(count) => count.as_u64().unwrap_or(0) > 0,
        Value::Null => return NONE.to_owned(),
        other => return text(other),
    };
    if got {
        "yes".to_owned()
    } else {
        "no: none free; `sysctl vm.nr_hugepages=64` before the start gives some (fewer TLB misses)".to_owned()
    }
}

/// The cores in use after one was added or given up.
pub fn cores(answer: &Value) -> String {
    let cores = list(answer, "cores");
    let noun = if cores.len() == 1 { "core" } else { "cores" };
    format!("workers now run on {noun} {}\n", text(&answer["cores"]))
}

/// Titles and texts under each other, the texts aligned.
pub fn lines(pairs: &[(String, String)]) -> String {
    let width = pairs.iter().map(|(title, _)| title.chars().count()).max().unwrap_or(0);
    pairs.iter().map(|(title, text)| format!("  {title:<width$}  {text}\n")).collect()
}

/// All of `status`.
pub fn status(status: &Value) -> String {
    let mut out = format!(
        "peregrine {}, process {}, up {}\n",
        text(&status["version"]),
        status["pid"],
        duration(figure(&status["uptime_seconds"]))
    );
    let mut pairs: Vec<_> = list(status, "uplinks").iter().flat_map(uplink).collect();
    pairs.push(("rules".into(), rules_status(&status["rules"])));
    out.push_str(&lines(&pairs));
    let mut workers = Table::new(&[">worker", ">core", ">busy", ">asleep", "idle"]);
    for (index, worker) in list(status, "workers").iter().enumerate() {
        let busy = percent(worker["busy"].as_f64().unwrap_or(0.0));
        let slept = percent(worker["slept"].as_f64().unwrap_or(0.0));
        workers.row(vec![index.to_string(), text(&worker["core"]), busy, slept, text(&worker["idle"])]);
    }
    let title = match list(status, "workers").len() {
        0 | 1 => "Workers".to_string(),
        _ => format!("Workers (placement {})", text(&status["placement"])),
    };
    section(&mut out, &title, &workers);
    let mut networks = Table::new(&["network", ">VNI", ">MTU", "learning", "remotes"]);
    for n in list(status, "networks") {
        let (vni, mtu) = (n["vni"].to_string(), n["mtu"].to_string());
        networks.row(vec![text(&n["name"]), vni, mtu, text(&n["learning"]), text(&n["remotes"])]);
    }
    section(&mut out, "Networks", &networks);
    section(&mut out, "Pools", &pools(status));
    section(&mut out, "Next hops", &next_hops(status));
    section(&mut out, "Endpoints", &endpoints(status));
    section(&mut out, &format!("Classes (urgent quota {})", text(&status["urgent_quota"])), &classes(status));
    out
}

/// How many, and how far they have come into force.
fn rules_status(status: &Value) -> String {
    let count = match &status["count"] {
        Value::Null => return NONE.to_owned(),
        count => rules_count(count),
    };
    let step = match text(&status["step"]).as_str() {
        "settled" => String::new(),
        step => format!(", coming into force (step {step})"),
    };
    let not_early = match &status["not_early"] {
        Value::Null => String::new(),
        reason => format!(", none followed from the driver on: {}", text(reason)),
    };
    count + &step + &not_early
}

/// `3 rules`.
pub fn rules_count(number: &Value) -> String {
    count(figure(number) as usize, "rule")
}

/// The rules in force.
pub fn rules(answer: &Value) -> String {
    let mut table = Table::new(&[">rule", "class", "packets"]);
    for (place, rule) in list(answer, "rules").iter().enumerate() {
        let asked = rule.as_object().into_iter().flatten().filter(|(key, _)| *key != "class");
        let asked: Vec<String> = asked.map(|(key, value)| format!("{key} {}", written(value))).collect();
        let asked = if asked.is_empty() { "all".to_owned() } else { asked.join(", ") };
        table.row(vec![place.to_string(), text(&rule["class"]), asked]);
    }
    format!("{}\n{}", rules_status(&answer["status"]), table.render())
}

/// A value of a rule: numbers as they are.
fn written(value: &Value) -> String {
    match value {
        Value::Array(list) => list.iter().map(written).collect::<Vec<_>>().join("|"),
        Value::Number(number) => number.to_string(),
        other => text(other),
    }
}

/// One row for each path; one for a remote that has none.
fn next_hops(status: &Value) -> Table {
    let mut table =
        Table::new(&["remote", "uplink", "from", "next hop", "gateway", ">weight", ">MTU", "state"]);
    for hop in list(status, "next_hops") {
        let paths = list(hop, "paths");
        for path in paths {
            let gateway = if path["neighbour"] == hop["remote"] { &Value::Null } else { &path["neighbour"] };
            table.row(vec![
                text(&hop["remote"]),
                text(&path["uplink"]),
                text(&path["local"]),
                text(&path["next_hop"]),
                text(gateway),
                text(&path["weight"]),
                written(&path["mtu"]),
                match (path["reason"].as_str(), &path["mtu_not_believed"]) {
                    (Some(why), _) => format!("unresolved: {why}"),
                    (None, Value::Null) => "resolved".to_owned(),
                    (None, mtu) => format!("resolved; an MTU of {mtu} by ICMP is not believed"),
                },
            ]);
        }
        if paths.is_empty() {
            let mut cells = vec![NONE.to_owned(); 8];
            for (cell, value) in cells.iter_mut().zip([&hop["remote"], &Value::Null, &hop["local"]]) {
                *cell = text(value);
            }
            if let Some(state) = cells.last_mut() {
                *state = format!("unresolved: {}", text(&hop["reason"]));
            }
            table.row(cells);
        }
    }
    table
}

fn pools(status: &Value) -> Table {
    let mut table = Table::new(&["pool", ">ready", ">hits", ">misses", "the last failure"]);
    let pools = status["pools"].as_object().into_iter().flatten();
    for (key, pool) in pools.filter(|(_, pool)| figure(&pool["size"]) > 0 || figure(&pool["misses"]) > 0) {
        let ready = format!("{} of {}", text(&pool["ready"]), text(&pool["size"]));
        let [hits, misses, why] = ["hits", "misses", "failure"].map(|count| text(&pool[count]));
        table.row(vec![key.replace('_', " "), ready, hits, misses, why]);
    }
    table
}

fn endpoints(status: &Value) -> Table {
    let mut table = Table::new(&["endpoint", "network", "address", "at", "tenant"]);
    for endpoint in list(status, "endpoints") {
        let faults = figure(&endpoint["faults"]);
        let faults =
            if faults > 0 { format!("; {} protocol faults", thousands(faults)) } else { String::new() };
        table.row(vec![
            text(&endpoint["name"]),
            text(&endpoint["network"]),
            text(&endpoint["mac"]),
            at(endpoint),
            tenant(endpoint) + &faults,
        ]);
    }
    table
}

/// Where it is attached.
fn at(endpoint: &Value) -> String {
    if endpoint["kind"] == "veth" {
        let [interface, namespace, device] =
            ["container_interface", "namespace", "device"].map(|key| text(&endpoint[key]));
        return format!("{interface} in {namespace}, by {device}");
    }
    format!("memif {} id {}, {}", text(&endpoint["socket"]), endpoint["id"], text(&endpoint["role"]))
}

fn classes(status: &Value) -> Table {
    let mut table = Table::new(&["class", "order", ">share", ">outer DSCP"]);
    for class in list(status, "classes") {
        let share = format!("{} %", text(&class["share"]));
        table.row(vec![text(&class["name"]), text(&class["order"]), share, text(&class["dscp"])]);
    }
    table
}

/// Who is connected; or what we do until somebody is, and why nobody is.
fn tenant(endpoint: &Value) -> String {
    let peer = &endpoint["peer"];
    if !peer.is_null() {
        let since = duration(figure(&peer["connected_seconds"]));
        let pairs = figure(&peer["queue_pairs"]) as usize;
        let queues = count(pairs, "queue pair");
        let used = match text(&endpoint["queues"]).as_str() {
            "one for all classes" => " for all classes",
            "by class" => " by class",
            "by flow" if pairs > 1 => " by flow",
            _ => "",
        };
        if endpoint["kind"] == "veth" {
            return format!("there for {since}");
        }
        let name = name(&peer["name"]);
        return format!(
            "{name} (process {}, user {}), {queues}{used}, for {since}",
            peer["pid"], peer["uid"]
        );
    }
    let state = text(&endpoint["state"]);
    let state = match figure(&endpoint["attempts"]) {
        0 => state,
        attempts => format!("{state}, attempt {}", thousands(attempts)),
    };
    let why = [&endpoint["last_failure"], &endpoint["last_end"]].into_iter().find(|why| !why.is_null());
    why.map_or_else(|| state.clone(), |why| format!("{state} ({})", text(why)))
}

fn name(value: &Value) -> String {
    match value.as_str() {
        None | Some("") => "unnamed".to_owned(),
        Some(name) => name.to_owned(),
    }
}

fn traffic(cells: &mut Vec<String>, traffic: &Value) {
    cells.push(thousands(figure(&traffic["frames"])));
    cells.push(thousands(figure(&traffic["bytes"])));
}

/// All of `fdb`.
pub fn fdb(fdb: &Value) -> String {
    let mut table = Table::new(&["network", "address", "where", ">age"]);
    let entries = list(fdb, "entries");
    for entry in entries {
        let place = match entry["endpoint"].as_str() {
            Some(endpoint) => format!("endpoint {endpoint}"),
            None => format!("remote {}", text(&entry["remote"])),
        };
        let mut age = entry["age_seconds"].as_u64().map_or_else(|| "fixed".to_owned(), duration);
        if let Some(left) = entry["held_seconds"].as_u64() {
            age = format!("{age}, held {}", duration(left));
        }
        table.row(vec![text(&entry["network"]), text(&entry["mac"]), place, age]);
    }
    let rest = figure(&fdb["total"]).saturating_sub(entries.len() as u64);
    let rest = if rest > 0 { format!("  and {} more\n", thousands(rest)) } else { String::new() };
    format!("{}\n{}{rest}", addresses(figure(&fdb["total"]), ""), table.render())
}

/// `1 address`, `2 fixed addresses`: of that kind, which may be none.
pub fn addresses(number: u64, kind: &str) -> String {
    let blank = if kind.is_empty() { "" } else { " " };
    format!("{} {kind}{blank}address{}", thousands(number), if number == 1 { "" } else { "es" })
}

/// All of `remote.list`.
pub fn remotes(answer: &Value) -> String {
    let mut table =
        Table::new(&["network", "remote", "standing", ">frames for it, sent or not (all networks)"]);
    let remotes = list(answer, "remotes");
    for remote in remotes {
        let leaving = if remote["leaving"] == true { ", leaving" } else { "" };
        let standing = format!("{}{leaving}", text(&remote["standing"]));
        let frames = thousands(figure(&remote["frames"]));
        table.row(vec![text(&remote["network"]), text(&remote["remote"]), standing, frames]);
    }
    let rest = figure(&answer["total"]).saturating_sub(remotes.len() as u64);
    let rest = if rest > 0 { format!("  and {} more\n", thousands(rest)) } else { String::new() };
    format!("{}\n{}{rest}", count(figure(&answer["total"]) as usize, "remote"), table.render())
}

/// All of `stats`.
pub fn stats(stats: &Value) -> String {
    let mut out = format!("{}\n", conservation(&stats["totals"]));
    let totals = &stats["totals"];
    let mut flows = Table::new(&["", ">frames", ">bytes"]);
    for (title, key) in [
        ("from the underlay", "uplink_rx"),
        ("from tenants", "tenant_rx"),
        ("to the underlay", "uplink_tx"),
        ("to tenants", "tenant_tx"),
    ] {
        let mut cells = vec![title.to_owned()];
        traffic(&mut cells, &totals[key]);
        flows.row(cells);
    }
    section(&mut out, "Traffic", &flows);
    let mut drops = Table::new(&["reason", ">frames"]);
    for (reason, count) in stats["drops"].as_object().into_iter().flatten() {
        drops.row(vec![reason.clone(), thousands(figure(count))]);
    }
    section(&mut out, "Drops", &drops);
    section(&mut out, "Noticed", &noticed(stats));
    section(&mut out, "Classes", &class_stats(stats));
    section(&mut out, "Waiting, in µs", &waiting(stats));
    section(&mut out, "Workers", &worker_stats(stats));
    section(&mut out, "Networks", &network_stats(stats));
    section(&mut out, "Endpoints", &endpoint_stats(stats));
    let mut remotes = Table::new(&["remote", ">frames", "uplink", "next hop"]);
    for remote in list(stats, "remotes") {
        let hop = if remote["next_hop"].is_null() { "unresolved".into() } else { text(&remote["next_hop"]) };
        remotes.row(vec![text(&remote["address"]), text(&remote["frames"]), text(&remote["uplink"]), hop]);
    }
    section(&mut out, "Remotes", &remotes);
    section(&mut out, "Uplinks", &uplink_stats(stats));
    list(stats, "uplinks").iter().for_each(|uplink| before_us(&mut out, uplink));
    out
}

/// What should not happen and is in no other sum: summed over workers, only what is not zero.
fn noticed(stats: &Value) -> Table {
    let mut table = Table::new(&["what", ">count"]);
    for key in ["ecn_unexpected", "kicks_failed", "chunk_faults"] {
        let sum: u64 = list(stats, "workers").iter().map(|worker| figure(&worker[key])).sum();
        if sum > 0 {
            table.row(vec![key.to_owned(), thousands(sum)]);
        }
    }
    table
}

/// `in 12 + 3 copies = out 10 + dropped 5`, and what is on its way.
pub fn conservation(totals: &Value) -> String {
    let frames = |key: &str| figure(&totals[key]["frames"]);
    let arrived = frames("uplink_rx") + frames("tenant_rx");
    let left = frames("uplink_tx") + frames("tenant_tx");
    let (copies, dropped) = (figure(&totals["replicated"]), figure(&totals["dropped"]));
    let copies = if copies > 0 { format!(" + {} copies", thousands(copies)) } else { String::new() };
    let in_flight = totals["in_flight"].as_i64().unwrap_or(0);
    let verdict = match in_flight {
        0 => "conserved".to_owned(),
        n if n > 0 => format!("{} on their way", thousands(n.unsigned_abs())),
        n => format!("{} counted while they moved", thousands(n.unsigned_abs())),
    };
    format!(
        "frames in {}{copies} = frames out {} + drops {}: {verdict}",
        thousands(arrived),
        thousands(left),
        thousands(dropped)
    )
}

fn class_stats(stats: &Value) -> Table {
    let mut table = Table::new(&[
        "class",
        ">from underlay",
        ">from tenants",
        ">copies",
        ">to underlay",
        ">to tenants",
        ">dropped",
        ">on their way",
    ]);
    for class in list(stats, "classes") {
        let mut cells = vec![text(&class["name"])];
        for key in ["uplink_rx", "tenant_rx", "replicated", "uplink_tx", "tenant_tx", "dropped", "in_flight"]
        {
            cells.push(text(&class[key]));
        }
        table.row(cells);
    }
    table
}

/// How long frames waited before each step, where that was timed.
fn waiting(stats: &Value) -> Table {
    let mut table = Table::new(&["class", "before", ">samples", ">median", ">99 %", ">longest"]);
    for class in list(stats, "classes") {
        for waited in list(class, "waiting") {
            let mut cells = vec![text(&class["name"]), text(&waited["stage"]), text(&waited["samples"])];
            for key in ["p50_us", "p99_us", "max_us"] {
                cells.push(waited[key].as_f64().map_or_else(|| NONE.to_owned(), |us| format!("{us:.2}")));
            }
            table.row(cells);
        }
    }
    table
}

fn worker_stats(stats: &Value) -> Table {
    let mut table = Table::new(&[
        ">worker",
        ">core",
        ">busy",
        ">asleep",
        ">sleeps",
        ">handed over",
        ">tx kicks",
        ">deferred",
        ">device drops",
        ">watchdog",
        ">wake-ups",
        ">free frames",
    ]);
    for (index, worker) in list(stats, "workers").iter().enumerate() {
        let mut cells = vec![index.to_string(), text(&worker["core"])];
        cells.push(percent(worker["busy"].as_f64().unwrap_or(0.0)));
        cells.push(percent(worker["slept"].as_f64().unwrap_or(0.0)));
        cells.push(text(&worker["sleeps"]));
        for key in
            ["handed_over", "kicks", "kicks_deferred", "device_drops", "watchdog_kicks", "tenant_wakeups"]
        {
            cells.push(text(&worker[key]));
        }
        cells.push(format!("{} of {}", text(&worker["frames_free"]), text(&worker["frames_total"])));
        table.row(cells);
    }
    table
}

fn network_stats(stats: &Value) -> Table {
    let mut table = Table::new(&[
        "network",
        ">VNI",
        ">from underlay",
        ">bytes",
        ">to underlay",
        ">bytes",
        ">dropped",
        ">learned now",
        ">moved",
        ">refused",
        ">ARP answered",
        ">ND answered",
        ">told too big",
        ">damped",
    ]);
    for network in list(stats, "networks") {
        let mut cells = vec![text(&network["name"]), network["vni"].to_string()];
        traffic(&mut cells, &network["from_underlay"]);
        traffic(&mut cells, &network["to_underlay"]);
        let own = ["dropped", "fdb_learned", "moved", "learn_refused"];
        for key in own.into_iter().chain(["arp_answered", "nd_answered", "too_big_told", "moves_damped"]) {
            cells.push(text(&network[key]));
        }
        table.row(cells);
    }
    table
}

fn endpoint_stats(stats: &Value) -> Table {
    let mut table = Table::new(&[
        "endpoint",
        "connected",
        ">from tenant",
        ">bytes",
        ">to tenant",
        ">bytes",
        ">dropped",
        ">bad descriptors",
    ]);
    for endpoint in list(stats, "endpoints") {
        let mut cells = vec![text(&endpoint["name"]), text(&endpoint["connected"])];
        traffic(&mut cells, &endpoint["from_tenant"]);
        traffic(&mut cells, &endpoint["to_tenant"]);
        for key in ["dropped", "bad_descriptors"] {
            cells.push(text(&endpoint[key]));
        }
        table.row(cells);
    }
    table
}

fn uplink_stats(stats: &Value) -> Table {
    let mut table = Table::new(&["interface", ">received", ">bytes", ">sent", ">bytes"]);
    for uplink in list(stats, "uplinks") {
        let mut cells = vec![text(&uplink["interface"])];
        traffic(&mut cells, &uplink["rx"]);
        traffic(&mut cells, &uplink["tx"]);
        table.row(cells);
    }
    table
}

/// What the XDP program and the kernel's sockets of an interface counted: summed over queues, only what is not zero.
fn before_us(out: &mut String, uplink: &Value) {
    let mut table = Table::new(&["before the dataplane", ">frames"]);
    for (title, key, urgent) in [
        ("XDP program", "program", false),
        ("AF_XDP sockets", "sockets", false),
        ("AF_XDP sockets for urgent frames", "sockets", true),
    ] {
        let mut sums: Vec<(&str, u64)> = Vec::new();
        let of_kind = list(uplink, key).iter().filter(|entry| (entry["urgent"] == true) == urgent);
        let counters = of_kind.filter_map(Value::as_object).flatten();
        for (name, value) in counters.filter(|(name, _)| !matches!(name.as_str(), "queue" | "queue_id")) {
            let Some(value) = value.as_u64() else { continue };
            match sums.iter_mut().find(|(known, _)| known == name) {
                Some((_, sum)) => *sum += value,
                None => sums.push((name, value)),
            }
        }
        for (name, sum) in sums.iter().filter(|(_, sum)| *sum > 0) {
            table.row(vec![format!("{title}: {}", name.replace('_', " ")), thousands(*sum)]);
        }
    }
    section(out, &format!("Uplink {}", text(&uplink["interface"])), &table);
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn conservation_is_told_with_figures() {
        let totals = json!({"uplink_rx": {"frames": 1000}, "tenant_rx": {"frames": 2}, "replicated": 3,
            "uplink_tx": {"frames": 4}, "tenant_tx": {"frames": 1000}, "dropped": 1, "in_flight": 0});
        let want = "frames in 1,002 + 3 copies = frames out 1,004 + drops 1: conserved";
        assert_eq!(conservation(&totals), want);
        assert!(conservation(&json!({"in_flight": 7})).ends_with("7 on their way"));
    }

    #[test]
    fn what_should_not_happen_is_shown_where_it_did() {
        let worker = |ecn, faults| json!({"ecn_unexpected": ecn, "kicks_failed": 0, "chunk_faults": faults});
        let shown = |workers: [Value; 2]| stats(&json!({"workers": workers}));
        assert!(!shown([worker(0, 0), worker(0, 0)]).contains("Noticed"));
        let text = shown([worker(1000, 0), worker(234, 0)]);
        let rows: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("Noticed")).skip(2).collect();
        assert_eq!(rows[0].split_whitespace().collect::<Vec<_>>(), ["ecn_unexpected", "1,234"], "{text}");
        assert!(!text.contains("kicks_failed") && !text.contains("chunk_faults"), "{text}");
    }

    #[test]
    fn asked_and_got_stand_side_by_side() {
        let info = json!({"interface": "ov0", "driver": "veth", "mac": "02:00:00:00:00:01", "mtu": 1550,
            "mode_requested": "prefer-zero-copy", "mode_actual": "copy", "queues": [0, 1],
            "queues_requested": "all", "queue_count": 2, "huge_pages": false, "link": {"up": true, "carrier": false}});
        let text = lines(&uplink(&info));
        assert!(text.contains("prefer-zero-copy asked, copy got\n"), "{text}");
        let jumbo = lines(&uplink(&json!({"mode_actual": "copy", "multi_buffer": true})));
        assert!(jumbo.contains("copy got, multi-buffer: packets may"), "{jumbo}");
        assert!(text.contains("all of 2 asked, 2 got: 0, 1") && text.contains("not asked"), "{text}");
        let early = |asked, got, why: Option<&str>| {
            urgent_rings(&json!({"early_requested": asked, "early": got, "early_refused": why}))
        };
        assert_eq!(early("on", true, None), "asked, got");
        assert_eq!(early("off", false, None), "not asked");
        let why = "queue 1: Invalid argument (os error 22)";
        assert_eq!(early("if-possible", false, Some(why)), format!("asked if possible, none: {why}"));
        assert!(text.contains("no carrier") && text.contains("vm.nr_hugepages"), "{text}");
    }

    #[test]
    fn each_path_has_a_row_and_so_has_a_remote_without_one() {
        let paths = json!([
            {"uplink": "ov0", "local": "fd00::1", "neighbour": "fd00::2", "next_hop": "02:00:00:00:00:02", "weight": 1, "mtu": 1500},
            {"uplink": "ov0", "local": "fd00::1", "neighbour": "fd00::2", "next_hop": "02:00:00:00:00:02", "weight": 1, "mtu": 1500, "mtu_not_believed": 1280},
            {"uplink": "ov1", "local": "fd01::1", "neighbour": "fe80::1", "weight": 3, "mtu": 9000, "reason": "fe80::1 does not answer"},
        ]);
        let status = json!({"next_hops": [
            {"remote": "fd00::2", "local": null, "resolved": true, "paths": paths},
            {"remote": "10.0.0.9", "local": "10.0.0.1", "resolved": false, "reason": "no route", "paths": []},
        ]});
        let text = next_hops(&status).render();
        let rows: Vec<Vec<&str>> = text.lines().skip(1).map(|row| row.split_whitespace().collect()).collect();
        let row = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(rows[0], row("fd00::2 ov0 fd00::1 02:00:00:00:00:02 - 1 1500 resolved"));
        let unresolved = "fd00::2 ov1 fd01::1 - fe80::1 3 9000 unresolved: fe80::1 does not answer";
        let doubted =
            "fd00::2 ov0 fd00::1 02:00:00:00:00:02 - 1 1500 resolved; an MTU of 1280 by ICMP is not believed";
        assert_eq!(rows[1], row(doubted));
        assert_eq!(rows[2], row(unresolved));
        assert_eq!(rows[3], row("10.0.0.9 - 10.0.0.1 - - - - unresolved: no route"));
    }

    #[test]
    fn an_uplinks_vtep_tells_its_vlan_and_what_is_not_learned() {
        let mut uplink = json!({"local": ["10.0.0.1", "fd00::1"], "port": 4789, "vlan": null});
        assert_eq!(vtep(&uplink), "10.0.0.1, fd00::1, UDP port 4789");
        uplink["vlan"] = json!(5);
        assert_eq!(vtep(&uplink), "10.0.0.1, fd00::1, UDP port 4789, VLAN 5 without a device");
        uplink["vlan_link"] = json!({"name": "ov0.5"});
        uplink["path_mtu_unknown"] = json!("for fd00::1: Operation not permitted");
        let service =
            json!({"local": [], "vlan": 5, "vlan_link": {"name": "ov0.5", "vlan": {"tag": "802.1ad"}}});
        assert!(vtep(&service).ends_with("VLAN 5 without a device (ov0.5 is 802.1ad: 802.1Q is needed)"));
        let missing = json!({"missing": [{"address": "10.0.0.1", "reason": "is not on this host"}]});
        assert!(vtep(&missing).ends_with(", 10.0.0.1 is not on this host"), "{}", vtep(&missing));
        let want = "VLAN 5 (ov0.5), path MTUs are not learned for fd00::1: Operation not permitted";
        assert!(vtep(&uplink).ends_with(want), "{}", vtep(&uplink));
    }

    #[test]
    fn one_is_not_many() {
        let entry = json!({"network": "blue", "mac": "02:00:00:00:00:01", "endpoint": "web"});
        assert!(fdb(&json!({"entries": [entry], "total": 1})).starts_with("1 address\n"));
        assert!(fdb(&json!({"entries": [], "total": 0})).starts_with("0 addresses\n"));
        let remote = json!({"network": "blue", "remote": "10.9.0.2", "standing": "added", "frames": 7});
        let text = remotes(&json!({"remotes": [remote], "total": 1}));
        assert!(text.starts_with("1 remote\n") && text.contains("  frames for it, sent or not"), "{text}");
        assert!(remotes(&json!({"remotes": [], "total": 1234})).starts_with("1,234 remotes\n"));
    }

    #[test]
    fn a_tenant_is_told_as_it_is() {
        let peer = json!({"name": "vpp", "pid": 7, "uid": 0, "connected_seconds": 3, "queue_pairs": 2});
        let there =
            json!({"state": "connected", "peer": peer, "attempts": 4, "last_end": "closed by the peer"});
        assert_eq!(tenant(&there), "vpp (process 7, user 0), 2 queue pairs, for 3 s");
        for (used, pairs, want) in [
            ("by class", 2, "2 queue pairs by class,"),
            ("by flow", 2, "2 queue pairs by flow,"),
            ("by flow", 1, "1 queue pair,"),
            ("one for all classes", 1, "1 queue pair for all classes,"),
        ] {
            let there = json!({"peer": {"queue_pairs": pairs}, "queues": used});
            assert!(tenant(&there).contains(want), "{}", tenant(&there));
        }
        let away = json!({"state": "connecting", "peer": null, "attempts": 1234, "last_end": "ring index jump",
            "last_failure": "connect to the memif socket: No such file or directory"});
        let want = "connecting, attempt 1,234 (connect to the memif socket: No such file or directory)";
        assert_eq!(tenant(&away), want);
        let gone = json!({"state": "listening", "peer": null, "attempts": 0, "last_end": "ring index jump"});
        assert_eq!(tenant(&gone), "listening (ring index jump)");
        assert_eq!(tenant(&json!({"state": "listening"})), "listening");
    }

    #[test]
    fn classes_are_shown_with_what_they_are_and_what_became_of_their_frames() {
        let classes = json!({"urgent_quota": 16, "classes": [
            {"name": "voice", "order": "sync", "share": 0, "dscp": 46},
            {"name": "rest", "order": null, "share": 30, "dscp": 0},
        ]});
        let text = status(&classes);
        let (_, table) = text.split_once("\nClasses (urgent quota 16)\n").expect(&text);
        let rows: Vec<Vec<&str>> = table.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(rows[1], ["voice", "sync", "0", "%", "46"]);
        assert_eq!(rows[2], ["rest", "-", "30", "%", "0"]);
        let text = stats(&json!({"classes": [
            {"name": "voice", "uplink_rx": 1000, "tenant_rx": 2, "replicated": 3, "uplink_tx": 4, "tenant_tx": 5,
                "dropped": 6, "in_flight": -7, "waiting": [
                    {"stage": "collect", "samples": 1234, "p50_us": 0.256, "p99_us": 10.0, "max_us": 2000.5}]},
            {"name": "rest", "waiting": []},
        ]}));
        let row = |title: &str, class: &str| {
            let (_, table) = text.split_once(&format!("\n{title}\n")).expect(&text);
            let table = table.split("\n\n").next().expect(table);
            let row = table.lines().find(|line| line.trim_start().starts_with(class));
            row.map(|row| row.split_whitespace().skip(1).map(str::to_owned).collect::<Vec<_>>())
        };
        assert_eq!(row("Classes", "voice").unwrap(), ["1,000", "2", "3", "4", "5", "6", "-7"]);
        assert_eq!(row("Classes", "rest").unwrap().len(), 7);
        assert_eq!(row("Waiting, in µs", "voice").unwrap(), ["collect", "1,234", "0.26", "10.00", "2000.50"]);
        assert_eq!(row("Waiting, in µs", "rest"), None);
    }

    #[test]
    fn nothing_is_shown_of_what_is_missing_and_nothing_breaks() {
        for value in [json!(null), json!({}), json!([]), json!({"workers": 7, "uplinks": "x", "drops": []})] {
            assert!(status(&value).starts_with("peregrine"));
            assert!(stats(&value).starts_with("frames in 0"));
        }
    }

    #[test]
    fn drops_are_named_and_kernel_counters_summed() {
        let text = stats(&json!({"drops": {"vni_unknown": 1234},
        "uplinks": [
            {"interface": "up0", "program": [{"queue": 0, "steered": 5, "passed": 0}, {"queue": 1, "steered": 6}]},
            {"interface": "up1", "rx": {"frames": 77, "bytes": 7700},
                "sockets": [{"rx_dropped": 3, "urgent": false}, {"rx_dropped": 8, "urgent": true}]},
        ]}));
        assert!(text.contains("vni_unknown   1,234"), "{text}");
        let (_, first) = text.split_once("\nUplink up0\n").expect(&text);
        let (first, second) = first.split_once("\nUplink up1\n").expect(&text);
        assert!(first.contains("XDP program: steered") && first.contains("11"), "{text}");
        let ending = |start: &str| {
            let line = second.lines().find(|line| line.trim_start().starts_with(start)).expect(&text);
            line.split_whitespace().last().expect(&text).to_owned()
        };
        assert_eq!((&*ending("AF_XDP sockets: rx dropped"), second.contains("XDP program")), ("3", false));
        assert_eq!(ending("AF_XDP sockets for urgent frames: rx dropped"), "8");
        let row = text.lines().find(|line| line.trim_start().starts_with("up1")).expect(&text);
        assert_eq!(row.split_whitespace().collect::<Vec<_>>(), ["up1", "77", "7,700", "0", "0"]);
        assert!(!text.contains("passed") && !text.contains("queue"), "{text}");
    }
}
