//! The section of the forwarding database. `page.rs` calls it.

use super::layout::{Group, bars, legend, points, section, table_of};
use super::svg::{Row, Series, Spread, figure};
use crate::fdb_case::{Figure, Report};

fn spread(figure: &Figure) -> Spread {
    Spread { median: figure.median, lowest: figure.lowest, highest: figure.highest }
}

fn row(label: String, series: Series, figure: &Figure) -> Row {
    Row { label, series, value: spread(figure) }
}

/// Plots of all three parts, and their figures.
pub fn fdb(report: &Report) -> String {
    let mut cycles: Vec<Group> = Vec::new();
    for point in &report.lookups {
        let title = point.way.name();
        if cycles.last().is_none_or(|group| group.title != title) {
            cycles.push(Group { title: title.into(), small: "addresses".into(), rows: Vec::new() });
        }
        if let Some(group) = cycles.last_mut() {
            group.rows.push(row(point.addresses.to_string(), Series::Peregrine, &point.cycles_per_packet));
        }
    }
    let learning = &report.learning;
    let rates = [Group {
        title: "full rate".into(),
        small: format!("{}× with learning", figure(learning.ratio.median)),
        rows: vec![
            row("none".into(), Series::Alone, &learning.without.mpps),
            row("100,000 a second".into(), Series::Beside, &learning.with.mpps),
        ],
    }];
    let cases = &report.ageing.cases;
    let late = |of: &dyn Fn(usize) -> Option<Figure>| -> Vec<Row> {
        let of = |(index, name): (usize, &str)| Some(row(name.into(), Series::Peregrine, &of(index)?));
        cases.iter().map(|case| case.table.name()).enumerate().filter_map(of).collect()
    };
    let group = |title: &str, rows: Vec<Row>| Group { title: title.into(), small: String::new(), rows };
    let latency: Vec<Group> = [
        group("p50", late(&|index| cases.get(index)?.p50_us)),
        group("p99", late(&|index| cases.get(index)?.p99_us)),
        group("p99.9", late(&|index| cases.get(index)?.p999_us)),
    ]
    .into_iter()
    .filter(|group| !group.rows.is_empty())
    .collect();
    section(
        "The forwarding database",
        &format!(
            "Frames of {} bytes inside, each from, or to, another station at random. {} cores: the worker, and control with the \
             tenant that sends. Medians of {} runs, in turns.",
            report.inner_bytes, report.cores, report.runs
        ),
    ) + "<h3>Cycles per packet by addresses in the table</h3>\n"
        + &bars(&cycles, "cycles")
        + "<h3>New addresses beside full rate</h3>\n"
        + &legend(&[Series::Alone, Series::Beside], "")
        + &bars(&rates, "Mpps")
        + "<h3>Lateness of a million packets a second, by what is in the table</h3>\n"
        + &points(&latency, "µs")
        + &table_of(&[("cycles per packet", &cycles), ("Mpps", &rates), ("µs", &latency)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_has_its_plot_and_what_could_not_be_told_is_left_out() {
        let figure = |median: f64| serde_json::json!({"median": median, "lowest": 1.0, "highest": 900.0});
        let side = |mpps| {
            serde_json::json!({"mpps": figure(mpps), "p50_us": null, "p99_us": null, "max_us": null, "stalls": 0, "lost": 0,
                "core_share": 1.0})
        };
        let report: Report = serde_json::from_value(serde_json::json!({
            "cores": 2, "worker_core": 0, "control_core": 1, "runs": 5, "inner_bytes": 64,
            "lookups": [{"way": "in", "addresses": 100_000, "mpps": figure(20.0), "cycles_per_packet": figure(123.0),
                "lookup_cycles": figure(9.0), "lost": 0, "core_share": 1.0}],
            "learning": {"known": 1, "known_last": 2, "without": side(18.0), "with": side(17.0), "ratio": figure(0.95),
                "learned_per_s": figure(1e5), "learned_share": 1.0, "refused": 0},
            "ageing": {"packets_per_s": 1e6, "cases": [{"table": "ageing-out", "p50_us": figure(0.14), "p99_us": figure(1.08),
                "p999_us": null, "max_us": null, "forgotten_per_s": figure(1.0), "learned_per_s": figure(1.0), "refused": 0,
                "stalls": 0, "lost": 0, "core_share": 1.0}]},
            "environment": {}
        }))
        .unwrap();
        let html = fdb(&report);
        for part in ["in, by source", "100000", "123", "0.950× with learning", "1M, ageing out", "1.08"] {
            assert!(html.contains(part), "{part} is not in:\n{html}");
        }
        assert!(!html.contains("p99.9"));
    }
}
