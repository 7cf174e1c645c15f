//! The page: one HTML text with its style and plots inside, that asks nobody for anything and needs no script.
//! `report.rs` calls `html`. The order: what was found, what limits it, then each case with plots, words and tables, and
//! the machine last.

use serde_json::{Map, Value};

use super::endpoints_part::endpoints;
use super::fdb_part::fdb;
use super::input::Results;
use super::kernel_part;
use super::layout::list;
use super::notes::notes;
use super::parts::{core, generator, memif, tenants, way};
use super::placement_parts::{latency, pipeline, skew};
use super::priority_part::priority;
use super::svg::{escape, figure};
use crate::core_case;
use crate::paced::Mode;

/// The whole page.
pub fn html(results: &Results) -> String {
    let body = [
        head(results),
        summary(results),
        limits(results),
        results.kernel.as_ref().map(kernel_part::section).unwrap_or_default(),
        results.memif.as_ref().map(memif).unwrap_or_default(),
        results.core.as_ref().map(core).unwrap_or_default(),
        results.pipeline.as_ref().map(pipeline).unwrap_or_default(),
        results.skew.as_ref().map(skew).unwrap_or_default(),
        results.placement_latency.as_ref().map(latency).unwrap_or_default(),
        results.priority.as_ref().map(priority).unwrap_or_default(),
        results.tenants.as_ref().map(tenants).unwrap_or_default(),
        results.generator.as_ref().map(generator).unwrap_or_default(),
        results.fdb.as_ref().map(fdb).unwrap_or_default(),
        results.endpoints.as_ref().map(endpoints).unwrap_or_default(),
        environment(results),
    ];
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n<title>Peregrine: measurements</title>\n\
         <style>\n{}</style>\n</head>\n<body>\n{}</body>\n</html>\n",
        include_str!("style.css"),
        body.concat()
    )
}

fn head(results: &Results) -> String {
    let environments = results.environments();
    let first = |key: &str| environments.iter().find_map(|(_, all)| all.get(key)?.as_str());
    let parts = [
        first("date").map(str::to_string),
        first("cpu").map(str::to_string),
        first("kernel").map(|kernel| format!("Linux {kernel}")),
        first("commit").map(|commit| format!("commit {commit}")),
    ];
    let line: Vec<String> = parts.into_iter().flatten().map(|part| escape(&part)).collect();
    format!("<h1>Peregrine: measurements</h1>\n<p class=\"soft\">{}</p>\n", line.join(" · "))
}

/// One sentence a case.
fn summary(results: &Results) -> String {
    let mut lines = Vec::new();
    lines.extend(results.kernel.as_ref().and_then(kernel_part::summary));
    if let Some(size) = results.memif.as_ref().and_then(|report| report.sizes.first()) {
        lines.push(format!(
            "<b>memif ring, {} bytes: {} Mpps</b> from one process to another, {}× as many as DPDK’s testpmd on the same \
             two cores.",
            size.bytes,
            figure(size.ours_mpps),
            figure(size.ratio)
        ));
    }
    if let Some(report) = &results.core {
        let of = |case: &core_case::Case| {
            format!(
                "{} Mpps {} ({} cycles a packet)",
                figure(case.mpps),
                way(&case.name),
                figure(case.cycles_per_packet)
            )
        };
        let least = report.cases.first().map(|case| case.inner_bytes);
        let cases: Vec<String> = report
            .cases
            .iter()
            .filter(|case| Some(case.inner_bytes) == least)
            .map(|case| escape(&of(case)))
            .collect();
        lines.push(format!(
            "<b>One worker core without a wire, {} bytes:</b> {}.",
            least.unwrap_or_default(),
            cases.join(", ")
        ));
    }
    if let Some(point) = results.pipeline.as_ref().and_then(|report| report.work.last()) {
        lines.push(format!(
            "<b>One flow on two cores, {} cycles of work a packet:</b> {}× as many packets as on one, with the balancer’s own choice.",
            point.cycles,
            figure(point.balanced_over_rtc)
        ));
    }
    if let Some(report) = &results.skew {
        let balanced = report.modes.iter().find(|mode| mode.mode == Mode::Balanced);
        lines.extend(balanced.map(|mode| {
            let all = mode.balanced_again_ms.map_or("not all that was offered came through again".into(), |ms| {
                format!("98 % of what was offered came through again after {} ms", figure(ms))
            });
            format!(
                "<b>A flow turns hot:</b> {all}; {}× as many packets as with <code>static</code>, {} reordered.",
                figure(mode.over_static),
                mode.reordered
            )
        }));
    }
    if let Some(report) = &results.tenants {
        let least = report.cases.iter().min_by(|one, other| one.mpps_ratio.total_cmp(&other.mpps_ratio));
        lines.extend(least.filter(|case| case.mpps_ratio.is_finite()).map(|case| {
            format!(
                "<b>Neighbours:</b> the one most noticed, “{}”, left the others {:.0} % of their stream, with {}× the round trip \
                 at p99.",
                escape(&case.neighbour),
                100.0 * case.mpps_ratio,
                figure(case.p99_ratio)
            )
        }));
    }
    list(&lines)
}

/// Names of the cases.
const CASES: [&str; 9] =
    ["kernel", "memif", "core", "pipeline", "skew", "placement-latency", "priority", "tenants", "generator"];

fn limits(results: &Results) -> String {
    // What is of one case begins with its name.
    let line = |note: &String| match note.split_once(": ") {
        Some((case, text)) if CASES.contains(&case) => format!("<b>{case}:</b> {}", escape(text)),
        _ => escape(note),
    };
    let lines: Vec<String> = notes(results).iter().map(line).collect();
    if lines.is_empty() {
        return String::new();
    }
    format!("<section class=\"notes\">\n<h2>Read this first</h2>\n{}</section>\n", list(&lines))
}

/// The machine, one row a fact; where the cases differ, one line a case.
fn environment(results: &Results) -> String {
    let environments = results.environments();
    let mut keys: Vec<&str> = ENVIRONMENT.iter().map(|(key, _)| *key).collect();
    for (_, all) in &environments {
        let new: Vec<&str> = all.keys().map(String::as_str).filter(|key| !keys.contains(key)).collect();
        keys.extend(new);
    }
    let mut out = String::from("<h2>The machine</h2>\n<div class=\"scroll\"><table>\n");
    for key in keys {
        let name = ENVIRONMENT.iter().find(|(known, _)| *known == key).map_or(key, |(_, name)| name);
        out += &format!(
            "<tr><td class=\"key\">{}</td><td>{}</td></tr>\n",
            escape(&name.replace('_', " ")),
            fact(&environments, key)
        );
    }
    out + &cores_used(results) + "</table></div>\n"
}

/// What the page calls them, in its order; others follow under their own names.
const ENVIRONMENT: [(&str, &str); 12] = [
    ("date", "date"),
    ("version", "version"),
    ("commit", "commit of the source tree"),
    ("cpu", "CPU"),
    ("cores_online", "cores online"),
    ("isolated_cores", "isolated cores"),
    ("governor", "governor"),
    ("kernel", "Linux"),
    ("virtual_machine", "virtual machine"),
    ("load_before", "load in the minute before"),
    ("stolen_percent", "stolen by the hypervisor, %"),
    ("mode", "driver mode"),
];

fn fact(environments: &[(&str, Map<String, Value>)], key: &str) -> String {
    let text = |value: &Value| match value {
        Value::Null => nothing(key).into(),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.as_f64().map_or_else(|| number.to_string(), plain),
        Value::Bool(yes) => if *yes { "yes" } else { "no" }.into(),
        other => other.to_string(),
    };
    let all: Vec<(&str, String)> =
        environments.iter().filter_map(|(name, facts)| Some((*name, text(facts.get(key)?)))).collect();
    match all.first() {
        None => match key {
            "mode" => "none: no network interface took part".into(),
            _ => "not told".into(),
        },
        Some((_, first)) if all.iter().all(|(_, other)| other == first) => escape(first),
        _ => all.iter().map(|(name, text)| format!("{name}: {}<br>", escape(text))).collect(),
    }
}

fn nothing(key: &str) -> &'static str {
    match key {
        "governor" => "none visible",
        "isolated_cores" => "none",
        "virtual_machine" => "none seen",
        _ => "not known",
    }
}

fn plain(value: f64) -> String {
    if value.fract() == 0.0 { format!("{value}") } else { figure(value) }
}

fn cores_used(results: &Results) -> String {
    let counts = [
        ("kernel", results.kernel.as_ref().map(|report| report.environment.cores_used as u64)),
        ("memif", results.memif.as_ref().map(|report| report.cores as u64)),
        ("core", results.core.as_ref().map(|report| report.cores as u64)),
        ("pipeline", results.pipeline.as_ref().map(|report| report.cores as u64)),
        ("skew", results.skew.as_ref().map(|report| report.cores as u64)),
        ("placement-latency", results.placement_latency.as_ref().map(|report| report.cores as u64)),
        ("priority", results.priority.as_ref().map(|report| report.cores as u64)),
        ("tenants", results.tenants.as_ref().map(|report| report.cores as u64)),
        ("generator", results.generator.as_ref().map(|report| report.cores as u64)),
        ("fdb", results.fdb.as_ref().map(|report| report.cores as u64)),
        ("endpoints", results.endpoints.as_ref().map(|report| report.cores as u64)),
    ];
    let told: Vec<String> =
        counts.into_iter().filter_map(|(name, cores)| Some(format!("{name} {}", cores?))).collect();
    format!("<tr><td class=\"key\">cores used</td><td>{}</td></tr>\n", told.join(", "))
}

#[cfg(test)]
mod tests {
    use super::super::input::tests::all;
    use super::*;
    use crate::tenants_case;

    #[test]
    fn the_page_has_every_case_and_asks_nobody_for_anything() {
        let page = html(&all());
        for part in [
            "10.0 Mpps, 8.00–12.0",
            "87.0 cycles",
            "1000 idle",
            "1.40 × one core, 1.23–1.42",
            "best: lookup+tenant",
            "98 % of what was offered came through again after 412 ms",
            "packet; then one of them grows by 1.00",
            "4.20 µs",
            "400 cycles, 2.00 Mpps",
            "veth, 120 % load",
            "sync, early",
            "61.5 µs",
            "veth, urgent packets lost: 0, wanted at most 0: met",
            "send, 1 flow",
            "-0.2500 to +0.0020",
            "kernel + RPS",
            "99.99 %",
            "veth",
            "copy (asked for copy), driver veth",
            "CPU s",
            "curve s2 doubtful",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for part in ["http:", "https:", "url(", "<script", "<link", "<img", "@import", "NaN", ">inf"] {
            assert!(!page.contains(part), "{part}");
        }
        well_formed(&page);
    }

    /// Every element that is opened is closed, in the right order, and no attribute is left open.
    fn well_formed(page: &str) {
        let body = page.split_once("</style>").unwrap().1;
        let mut open: Vec<&str> = vec!["html", "head"];
        for tag in body.split('<').skip(1).map(|rest| rest.split_once('>').expect("a tag that ends").0) {
            assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
            let name = tag.split(' ').next().unwrap();
            match name.strip_prefix('/') {
                Some(name) => assert_eq!(open.pop(), Some(name), "</{name}>"),
                None if tag.ends_with('/') || name == "br" => {}
                None => open.push(name),
            }
        }
        assert!(open.is_empty(), "{open:?}");
    }

    #[test]
    fn nothing_of_a_file_becomes_markup() {
        let evil = "<script>alert(\"x\")</script>&'";
        let mut results = all();
        results.tenants.as_mut().unwrap().cases[0].neighbour = evil.into();
        results.tenants.as_mut().unwrap().cases[0].put_out = 1;
        results.core.as_mut().unwrap().cases[0].name = evil.into();
        results.pipeline.as_mut().unwrap().work[0].best_split = evil.into();
        results.skew.as_mut().unwrap().hot_flow.best_split = evil.into();
        results.priority.as_mut().unwrap().goals[0].what = evil.into();
        results.priority.as_mut().unwrap().loads[0].port = evil.into();
        results.priority.as_mut().unwrap().left_out = Some(evil.into());
        results.failures.push(super::super::input::Failure { case: evil.into(), error: evil.into() });
        let kernel = results.kernel.as_mut().unwrap();
        let machine = &mut kernel.environment.machine;
        machine.date = evil.into();
        (machine.cpu, machine.kernel, machine.governor) =
            (Some(evil.into()), Some(evil.into()), Some(evil.into()));
        kernel.environment.mode = serde_json::json!({ "actual": evil });
        let page = html(&results);
        assert!(!page.contains("<script"));
        assert!(page.matches("&lt;script&gt;alert(&quot;x&quot;)&lt;/script&gt;&amp;&#39;").count() > 10);
    }

    #[test]
    fn empty_and_zero_results_make_a_page() {
        let mut results = all();
        results.core.as_mut().unwrap().cases[0].mpps = 0.0;
        results.core.as_mut().unwrap().cases[0].mpps_lowest = 0.0;
        results.core.as_mut().unwrap().cases[0].cycles_per_packet = f64::INFINITY;
        results.memif.as_mut().unwrap().sizes.clear();
        results.tenants.as_mut().unwrap().cases[0].beside = tenants_case::Figures::default();
        let nothing = &mut results.kernel.as_mut().unwrap().cases[0].peregrine;
        (nothing.max_pps, nothing.max_pps_lowest, nothing.max_pps_highest) = (0.0, 0.0, 0.0);
        nothing.rtt_us.clear();
        let mut none = all();
        none.kernel.as_mut().unwrap().cases.clear();
        none.core.as_mut().unwrap().cases.clear();
        none.tenants.as_mut().unwrap().cases.clear();
        none.pipeline.as_mut().unwrap().work.clear();
        none.skew.as_mut().unwrap().modes.clear();
        none.placement_latency.as_mut().unwrap().points.clear();
        none.priority.as_mut().unwrap().loads.clear();
        for page in [html(&results), html(&none), html(&Results::default())] {
            assert!(!page.contains("NaN") && !page.contains("inf%") && !page.contains(">inf"));
            well_formed(&page);
        }
    }

    #[test]
    fn where_the_cases_differ_each_is_told() {
        let of = |text: &str| serde_json::from_str::<Map<String, Value>>(text).unwrap();
        let two = [
            ("core", of(r#"{"a": "x", "b": 1, "governor": null}"#)),
            ("memif", of(r#"{"a": "x", "b": 2.5}"#)),
        ];
        assert_eq!(fact(&two, "a"), "x");
        assert_eq!(fact(&two, "b"), "core: 1<br>memif: 2.50<br>");
        assert_eq!(fact(&two, "governor"), "none visible");
        assert_eq!(fact(&two, "cpu"), "not told");
        assert_eq!(fact(&two, "mode"), "none: no network interface took part");
    }
}
