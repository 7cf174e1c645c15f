//! The page: one HTML text with its style and plots inside, that asks nobody for anything and needs no script.
//! `report.rs` calls `html`. The order: what was found, what limits it, then each case with plots, words and tables, and
//! the machine last.

use serde_json::{Map, Value};

use super::input::Results;
use super::notes::notes;
use super::svg::{Curve, Mark, PERCENTILES, Row, Scale, Series, Spread, curves, escape, figure, rows};
use super::{kernel, kernel_part};
use crate::{core_case, memif_case, tenants_case};

/// The whole page.
pub fn html(results: &Results) -> String {
    let body = [
        head(results),
        summary(results),
        limits(results),
        results.kernel.as_ref().map(kernel_part::section).unwrap_or_default(),
        results.memif.as_ref().map(memif).unwrap_or_default(),
        results.core.as_ref().map(core).unwrap_or_default(),
        results.tenants.as_ref().map(tenants).unwrap_or_default(),
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
    list("", &lines)
}

fn limits(results: &Results) -> String {
    let lines: Vec<String> = notes(results).iter().map(|note| escape(note)).collect();
    if lines.is_empty() {
        return String::new();
    }
    format!("<section class=\"notes\">\n<h2>Read this first</h2>\n{}</section>\n", list("", &lines))
}

/// Of items that are HTML already.
fn list(class: &str, items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("<li>{item}</li>\n")).collect();
    format!("<ul class=\"{class}\">\n{}</ul>\n", items.concat())
}

fn way(name: &str) -> &str {
    match name {
        "in" => "in, wire to tenant",
        "out" => "out, tenant to wire",
        other => other,
    }
}

fn memif(report: &memif_case::Report) -> String {
    let ours =
        |size: &memif_case::Size| spread(size.ours_mpps, size.ours_mpps_lowest, size.ours_mpps_highest);
    let theirs = |size: &memif_case::Size| {
        spread(size.testpmd_mpps, size.testpmd_mpps_lowest, size.testpmd_mpps_highest)
    };
    // Both had the same core, so its cycles a second follow from ours.
    let hertz = |size: &memif_case::Size| size.ours_cycles_per_packet * size.ours_mpps;
    let groups: Vec<Group> = report
        .sizes
        .iter()
        .map(|size| Group {
            title: format!("{} bytes", size.bytes),
            small: format!("{}× testpmd, median of pairs", figure(size.ratio)),
            rows: vec![row(Series::Peregrine, ours(size)), row(Series::Testpmd, theirs(size))],
        })
        .collect();
    let cycles: Vec<Group> = report
        .sizes
        .iter()
        .map(|size| Group {
            title: format!("{} bytes", size.bytes),
            small: String::new(),
            rows: vec![
                row(Series::Peregrine, inverse(hertz(size), ours(size))),
                row(Series::Testpmd, inverse(hertz(size), theirs(size))),
            ],
        })
        .collect();
    section(
        "memif alone, beside DPDK’s testpmd",
        &format!(
            "Packets from one process to another over one ring of 1024 slots, bursts of 32. {} cores: on one the sender writes \
             each packet and copies it into the ring, on the other the receiver copies it out. The two programs took turns; \
             medians of {} runs each, marks from the lowest to the highest. No wire, no lookup: the rings only.",
            report.cores, report.runs
        ),
    ) + "<h3>Throughput</h3>\n"
        + &bars(&groups, "Mpps")
        + "<h3>Cycles per packet, of the slower of the two cores</h3>\n"
        + &bars(&cycles, "cycles")
        + &table_of(&[("Mpps", &groups), ("cycles per packet", &cycles)])
}

fn core(report: &core_case::Report) -> String {
    let rates = |case: &core_case::Case| spread(case.mpps, case.mpps_lowest, case.mpps_highest);
    let mut sizes: Vec<usize> = report.cases.iter().map(|case| case.inner_bytes).collect();
    sizes.dedup();
    let group = |value: &dyn Fn(&core_case::Case) -> Spread, bytes: usize| {
        let cases = report.cases.iter().filter(|case| case.inner_bytes == bytes);
        let row = |case: &core_case::Case| Row {
            label: way(&case.name).into(),
            series: Series::Peregrine,
            value: value(case),
        };
        Group { title: format!("{bytes} bytes"), small: "inner frame".into(), rows: cases.map(row).collect() }
    };
    let cycles = |case: &core_case::Case| inverse(case.cycles_per_packet * case.mpps, rates(case));
    let throughput: Vec<Group> = sizes.iter().map(|bytes| group(&rates, *bytes)).collect();
    let cost: Vec<Group> = sizes.iter().map(|bytes| group(&cycles, *bytes)).collect();
    section(
        "One worker’s path without a wire",
        &format!(
            "Frames from memory through classify, decap, lookup and deliver into a tenant’s ring, and from a tenant through \
             collect, lookup and encap. {} cores: one for the worker’s stages, one for the tenant. Medians of {} runs. The \
             frames stay in the cache and no card or driver takes part: this is the price of the instructions, not a rate to \
             expect of a wire.",
            report.cores, report.runs
        ),
    ) + "<h3>Throughput</h3>\n"
        + &bars(&throughput, "Mpps")
        + "<h3>Cycles per packet</h3>\n"
        + &bars(&cost, "cycles")
        + &table_of(&[("Mpps", &throughput), ("cycles per packet", &cost)])
}

fn tenants(report: &tenants_case::Report) -> String {
    let p99 = |figures: &tenants_case::Figures| {
        spread(figures.p99_ns, figures.p99_ns_lowest, figures.p99_ns_highest)
    };
    let stream =
        |figures: &tenants_case::Figures| spread(figures.mpps, figures.mpps_lowest, figures.mpps_highest);
    let groups = |value: &dyn Fn(&tenants_case::Figures) -> Spread, ratio: fn(&tenants_case::Case) -> f64| {
        let group = |case: &tenants_case::Case| Group {
            title: case.neighbour.clone(),
            small: format!("{}× beside it", figure(ratio(case))),
            rows: vec![row(Series::Alone, value(&case.alone)), row(Series::Beside, value(&case.beside))],
        };
        report.cases.iter().map(group).collect::<Vec<Group>>()
    };
    let (latency, rate) = (groups(&p99, |case| case.p99_ratio), groups(&stream, |case| case.mpps_ratio));
    let middle = |value: f64| Spread { median: value, lowest: value, highest: value };
    let p50 = groups(&|figures| middle(figures.p50_ns), |case| case.p50_ratio);
    let outs: Vec<String> = report
        .cases
        .iter()
        .filter(|case| case.put_out > 0 || case.lost > 0)
        .map(|case| {
            format!("{}: put out {} times, {} packets lost", escape(&case.neighbour), case.put_out, case.lost)
        })
        .collect();
    let faults = if outs.is_empty() { String::new() } else { format!("<p>{}.</p>\n", outs.join("; ")) };
    section(
        "What a tenant notices of its neighbours",
        &format!(
            "Two tenants talk through a worker, alone and beside a neighbour, in windows that take turns. {} cores: one for the \
             worker and both talkers, so that a round trip is nothing but work, one for the neighbour. Medians of {} pairs of \
             windows; the ratios are medians over the pairs.",
            report.cores, report.runs
        ),
    ) + "<h3>Round trip, 99th percentile</h3>\n"
        + &points(&latency, "ns")
        + "<h3>Stream</h3>\n"
        + &bars(&rate, "Mpps")
        + "<p>“Full speed” is no offence: it is a tenant that takes its fair share of the worker.</p>\n"
        + &faults
        + &table_of(&[
            ("round trip p50, ns", &p50),
            ("round trip p99, ns", &latency),
            ("stream, Mpps", &rate),
        ])
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
        ("kernel", results.kernel.as_ref().and_then(|report| report.more.get("cores")?.as_u64())),
        ("memif", results.memif.as_ref().map(|report| report.cores as u64)),
        ("core", results.core.as_ref().map(|report| report.cores as u64)),
        ("tenants", results.tenants.as_ref().map(|report| report.cores as u64)),
    ];
    let told: Vec<String> =
        counts.into_iter().filter_map(|(name, cores)| Some(format!("{name} {}", cores?))).collect();
    format!("<tr><td class=\"key\">cores used</td><td>{}</td></tr>\n", told.join(", "))
}

/// The name of each load, and each system's latencies at it.
pub type Loads = Vec<(String, Vec<Curve>)>;

/// What stands under one heading of a row of plots.
pub struct Group {
    pub title: String,
    pub small: String,
    pub rows: Vec<Row>,
}

pub fn row(series: Series, value: Spread) -> Row {
    Row { label: series.name().into(), series, value }
}

pub fn spread(median: f64, lowest: f64, highest: f64) -> Spread {
    Spread { median, lowest, highest }
}

/// `whole` divided by each: the fastest run is the cheapest.
fn inverse(whole: f64, rate: Spread) -> Spread {
    Spread { median: whole / rate.median, lowest: whole / rate.highest, highest: whole / rate.lowest }
}

/// Title and words are this program's own, and HTML.
pub fn section(title: &str, words: &str) -> String {
    format!("<h2>{title}</h2>\n<p>{words}</p>\n")
}

/// Bars from 0, all on one scale.
pub fn bars(groups: &[Group], unit: &str) -> String {
    plots(groups, Mark::Bar, &Scale::linear(values(groups)), unit)
}

/// Points on one logarithmic scale.
fn points(groups: &[Group], unit: &str) -> String {
    plots(groups, Mark::Point, &Scale::log(values(groups)), unit)
}

fn values(groups: &[Group]) -> impl Iterator<Item = f64> + '_ {
    groups.iter().flat_map(|group| &group.rows).flat_map(|row| row.value.values())
}

fn plots(groups: &[Group], mark: Mark, scale: &Scale, unit: &str) -> String {
    let figures: Vec<String> = groups
        .iter()
        .map(|group| {
            let title = format!("{}, {unit}", group.title);
            caption(&group.title, &group.small)
                + &rows(&group.rows, mark, scale, unit, &title)
                + "</figure>\n"
        })
        .collect();
    format!("<div class=\"plots\">\n{}</div>\n", figures.concat())
}

fn caption(title: &str, small: &str) -> String {
    format!("<figure><figcaption>{} <small>{}</small></figcaption>\n", escape(title), escape(small))
}

/// One plot a load, all on one scale.
pub fn latency_plots(loads: &[(String, Vec<Curve>)]) -> String {
    let all =
        loads.iter().flat_map(|(_, of)| of).flat_map(|curve| curve.points).flat_map(|point| point.values());
    let scale = Scale::log(all);
    let figures: Vec<String> = loads
        .iter()
        .map(|(load, of)| {
            let title = format!("round trip in µs by percentile, {load}");
            caption(load, "µs by percentile") + &curves(of, &scale, &title) + "</figure>\n"
        })
        .collect();
    format!("<div class=\"plots wide\">\n{}</div>\n", figures.concat())
}

/// The figures of the plots above, for those who want them exactly.
pub fn table_of(parts: &[(&str, &[Group])]) -> String {
    let cells = |unit: &str, group: &Group, row: &Row| {
        let numbers: Vec<String> = [row.value.median, row.value.lowest, row.value.highest]
            .iter()
            .map(|value| format!("<td class=\"n\">{}</td>", figure(*value)))
            .collect();
        format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td>{}<td>{}</td></tr>\n",
            escape(unit),
            escape(&group.title),
            escape(&row.label),
            numbers.concat(),
            escape(&group.small)
        )
    };
    let all: Vec<String> = parts
        .iter()
        .flat_map(|(unit, groups)| groups.iter().map(move |group| (unit, group)))
        .flat_map(|(unit, group)| group.rows.iter().map(move |row| cells(unit, group, row)))
        .collect();
    details(&["of", "case", "who", "median", "lowest", "highest", ""], &all.concat())
}

/// One row a curve, one column a percentile.
pub fn latency_table(loads: &[(String, Vec<Curve>)]) -> String {
    let line = |load: &str, curve: &Curve| {
        let cells: Vec<String> = curve
            .points
            .iter()
            .map(|point| format!("<td class=\"n\">{}</td>", escape(&point.text("µs"))))
            .collect();
        format!("<tr><td>{}</td><td>{}</td>{}</tr>\n", escape(load), curve.series.name(), cells.concat())
    };
    let all: Vec<String> =
        loads.iter().flat_map(|(load, of)| of.iter().map(move |curve| line(load, curve))).collect();
    let head: Vec<&str> = ["load", "who"].into_iter().chain(PERCENTILES.map(|(name, _)| name)).collect();
    details(&head, &all.concat())
}

fn details(head: &[&str], body: &str) -> String {
    let number = |name: &str| matches!(name, "median" | "lowest" | "highest") || name.ends_with('%');
    let head: Vec<String> = head
        .iter()
        .map(|name| format!("<th{}>{name}</th>", if number(name) { " class=\"n\"" } else { "" }))
        .collect();
    format!(
        "<details><summary>The numbers</summary><div class=\"scroll\"><table>\n<tr>{}</tr>\n{body}</table></div></details>\n",
        head.concat()
    )
}

/// The curves of all systems of a case, load by load.
pub fn latencies(case: &kernel::Case) -> Loads {
    let systems = [
        (Series::Kernel, Some(&case.kernel)),
        (Series::KernelRps, case.kernel_rps.as_ref()),
        (Series::Peregrine, case.peregrine.as_ref()),
    ];
    let mut loads: Loads = Vec::new();
    for (series, system) in systems {
        for latency in system.map(kernel::System::latencies).unwrap_or_default() {
            let curve = Curve { series, points: latency.points };
            match loads.iter_mut().find(|(load, _)| *load == latency.load) {
                Some((_, all)) => all.push(curve),
                None => loads.push((latency.load, vec![curve])),
            }
        }
    }
    loads.sort_by_key(|(load, _)| percent_of(load));
    loads
}

/// `idle` and what has no number come first.
fn percent_of(load: &str) -> u64 {
    let digits: String = load.chars().filter(char::is_ascii_digit).collect();
    digits.parse().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::super::input::tests::all;
    use super::*;

    #[test]
    fn the_page_has_every_case_and_asks_nobody_for_anything() {
        let page = html(&all());
        for part in [
            "10.0 Mpps, 8.00–12.0",
            "87.0 cycles",
            "1000 idle",
            "kernel + RPS",
            "99.99 %",
            "veth",
            "<td>copy</td>",
        ] {
            assert!(page.contains(part), "{part}");
        }
        for part in ["http:", "https:", "url(", "<script", "<link", "<img", "@import", "NaN", ">inf"] {
            assert!(!page.contains(part), "{part}");
        }
        for tag in ["svg", "figure", "table", "section", "details", "ul", "li", "td", "text", "g", "div"] {
            let opened =
                page.matches(&format!("<{tag} ")).count() + page.matches(&format!("<{tag}>")).count();
            assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
        }
    }

    #[test]
    fn nothing_of_a_file_becomes_markup() {
        let evil = "<script>alert(\"x\")</script>&'";
        let mut results = all();
        results.tenants.as_mut().unwrap().cases[0].neighbour = evil.into();
        results.tenants.as_mut().unwrap().cases[0].put_out = 1;
        results.core.as_mut().unwrap().cases[0].name = evil.into();
        results.failures.push(super::super::input::Failure { case: evil.into(), error: evil.into() });
        let kernel = results.kernel.as_mut().unwrap();
        kernel.more.insert("notes".into(), serde_json::json!([evil]));
        kernel.more.insert(
            "environment".into(),
            serde_json::json!({ evil: { evil: evil }, "cpu": evil, "date": evil }),
        );
        let latencies = kernel.cases[0].kernel.0["rtt_us"].take();
        kernel.cases[0].kernel.0["rtt_us"] = serde_json::json!({ evil: latencies });
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
        results.kernel.as_mut().unwrap().cases[0].peregrine = None;
        results.kernel.as_mut().unwrap().cases[0].kernel = kernel::System::default();
        for page in [html(&results), html(&Results::default())] {
            assert!(!page.contains("NaN") && !page.contains("inf%") && !page.contains(">inf"));
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
