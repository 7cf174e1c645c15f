//! The section of the page that puts Peregrine beside the kernel's overlay on the same wire. `page.rs` calls `section`.

use super::kernel::{Case, Report, System};
use super::page::{self, Group, Loads, bars, latency_plots, latency_table, row, table_of};
use super::svg::{Row, Series, Spread, escape, figure};

/// In one sentence, for the case that comes first.
pub fn summary(report: &Report) -> Option<String> {
    let case = report.cases.first()?;
    let ours = case.peregrine.as_ref()?.spread("max_pps")?.median;
    let kernel = case.kernel.spread("max_pps")?.median;
    Some(format!(
        "<b>{}: {} Mpps</b> over the same wire, {}× the kernel’s overlay.",
        escape(&title(case)),
        figure(ours / 1e6),
        figure(ours / kernel)
    ))
}

/// Throughput and its price for all cases; latency for the first, and behind a click for the others.
pub fn section(report: &Report) -> String {
    let runs = report.more.get("runs").and_then(serde_json::Value::as_u64);
    let runs = runs.map(|runs| format!("medians of {runs} runs, ")).unwrap_or_default();
    let mpps = |spread: Spread| scaled(spread, 1e-6);
    let most = groups(report, "max_pps", mpps);
    let loss_free = groups(report, "ndr_pps", mpps);
    let cpu = groups(report, "cpu_s_per_mpkt", |spread| spread);
    let mut out = page::section(
        "Beside the kernel’s overlay, over the same wire",
        &format!(
            "The kernel’s own path (vxlan, bridge, veth, UDP socket), without and with RPS on the second core, and Peregrine with \
             a memif tenant; one generator for all three. Bars: {runs}marks from the lowest to the highest."
        ),
    );
    let parts = [
        ("Most that arrives", "Mpps", &most),
        ("Without loss", "Mpps", &loss_free),
        ("CPU seconds per million packets", "s", &cpu),
    ];
    for (heading, unit, groups) in parts {
        if !groups.is_empty() {
            out += &format!("<h3>{heading}</h3>\n{}", bars(groups, unit));
        }
    }
    out +=
        &table_of(&[("most, Mpps", &most), ("without loss, Mpps", &loss_free), ("CPU s per million", &cpu)]);
    out + &latency(report)
}

fn latency(report: &Report) -> String {
    let all: Vec<(String, Loads)> = report
        .cases
        .iter()
        .map(|case| (title(case), named(page::latencies(case))))
        .filter(|(_, loads)| !loads.is_empty())
        .collect();
    let Some(((first, loads), others)) = all.split_first() else { return String::new() };
    let mut out = format!(
        "<h3>Round trip: {}</h3>\n<p>Timed from when each packet was due, so a stall counts against all who waited. Both axes \
         are logarithmic; the bar behind a mark reaches from the lowest run to the highest. p99.99 is one packet in 10,000: in \
         a short run a handful, so mind its spread.</p>\n",
        escape(first)
    );
    out += &(latency_plots(loads) + &latency_table(loads));
    for (title, loads) in others {
        out += &format!(
            "<details><summary>Round trip: {}</summary>\n{}{}</details>\n",
            escape(title),
            latency_plots(loads),
            latency_table(loads)
        );
    }
    out
}

/// A load without a name is the only one.
fn named(loads: Loads) -> Loads {
    let name = |load: String| if load.is_empty() { "round trip".into() } else { load };
    loads.into_iter().map(|(load, curves)| (name(load), curves)).collect()
}

/// One group a case, with those systems that have the figure.
fn groups(report: &Report, name: &str, convert: impl Fn(Spread) -> Spread) -> Vec<Group> {
    let group = |case: &Case| {
        let row = |series, system: &System| Some(row(series, convert(system.spread(name)?)));
        let rows: Vec<Row> = [
            case.peregrine.as_ref().and_then(|system| row(Series::Peregrine, system)),
            row(Series::Kernel, &case.kernel),
            case.kernel_rps.as_ref().and_then(|system| row(Series::KernelRps, system)),
        ]
        .into_iter()
        .flatten()
        .collect();
        (!rows.is_empty()).then(|| Group { title: title(case), small: String::new(), rows })
    };
    report.cases.iter().filter_map(group).collect()
}

fn scaled(spread: Spread, by: f64) -> Spread {
    Spread { median: spread.median * by, lowest: spread.lowest * by, highest: spread.highest * by }
}

fn title(case: &Case) -> String {
    format!("{} bytes, {} flow{}", case.bytes, case.flows, if case.flows == 1 { "" } else { "s" })
}
