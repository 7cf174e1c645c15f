//! The section of urgent packets beside too many normal ones. `page.rs` calls it.

use super::layout::{Group, list, points, section, spread, table};
use super::svg::{Row, Series, escape, figure};
use crate::priority_case::{LoadReport, Mode, Percentiles, PortInfo, Report};

fn label(load: &LoadReport) -> String {
    format!("{}{}", load.mode.name(), if load.early { ", early" } else { "" })
}

fn series(load: &LoadReport) -> Series {
    match (load.mode, load.early) {
        (Mode::Kernel, _) => Series::Kernel,
        (Mode::Fifo, _) => Series::Alone,
        (_, false) => Series::Best,
        (_, true) => Series::Peregrine,
    }
}

/// A group for each port and load; the kernel's stand beside those over the same wire.
fn groups(report: &Report, time: fn(&LoadReport) -> Option<f64>) -> Vec<Group> {
    let mut groups: Vec<Group> = Vec::new();
    for load in report.loads.iter().filter(|load| load.mode != Mode::Kernel) {
        let title = format!("{}, {:.0} % load", load.port, 100.0 * load.fraction);
        if groups.last().is_none_or(|group| group.title != title) {
            groups.push(Group { title, small: String::new(), rows: Vec::new() });
        }
        let is_wire = |port: &PortInfo| port.port == load.port && port.wire_mpps.is_some();
        let kernel = report.loads.iter().filter(|it| it.mode == Mode::Kernel && it.fraction == load.fraction);
        let with_kernel = report.ports.iter().any(is_wire) && load.mode == Mode::Fifo && !load.early;
        let rows = kernel.filter(|_| with_kernel).chain([load]).map(|load| {
            let value = time(load).unwrap_or(f64::NAN);
            Row { label: label(load), series: series(load), value: spread(value, value, value) }
        });
        if let Some(group) = groups.last_mut() {
            group.rows.extend(rows);
        }
    }
    groups
}

fn us(time: Option<f64>) -> String {
    time.map_or("–".into(), figure)
}

fn lines(report: &Report) -> Vec<Vec<String>> {
    let line = |load: &LoadReport| {
        let Percentiles { p50, p99, p999, max, .. } = load.urgent_us;
        let calm = load.urgent_calm_us;
        vec![
            format!("{}, {:.0} %, {}", load.port, 100.0 * load.fraction, label(load)),
            us(p50),
            us(p99),
            us(p999),
            us(max),
            us(calm.p99),
            us(calm.max),
            load.urgent_lost.to_string(),
            figure(load.normal_mpps),
            us(load.normal_over_fifo),
        ]
    };
    report.loads.iter().map(line).collect()
}

/// Plots, figures, and what was wanted.
pub fn priority(report: &Report) -> String {
    let head = [
        "",
        "p50, µs",
        "p99, µs",
        "p99.9, µs",
        "highest, µs",
        "calm p99, µs",
        "calm highest, µs",
        "lost",
        "normal, Mpps",
        "× fifo",
    ];
    let goals: Vec<String> = report
        .goals
        .iter()
        .map(|goal| {
            let bound = if goal.at_least { "at least" } else { "at most" };
            let met = match goal.is_met() {
                Some(true) => "met",
                Some(false) => "<b>missed</b>",
                None => "not told",
            };
            format!(
                "{}, {}: {}, wanted {bound} {}: {met}",
                escape(&goal.port),
                escape(&goal.what),
                us(goal.found),
                figure(goal.wanted)
            )
        })
        .collect();
    let machine = &report.machine_us;
    section(
        "Urgent packets beside too many others",
        &format!(
            "{} urgent packets a second of {} bytes inside, beside normal ones at a part of what the worker (or the kernel’s overlay) can take: from when one is \
             due until the tenant has it. {} cores. p50 and p99 are medians of {} runs in turns. “Calm” are those that came while nobody took the \
             worker’s core or the generator’s away. The machine alone keeps a packet from the core for {} µs at p99, {} at most.",
            figure(report.urgent_pps),
            report.inner_bytes,
            report.cores,
            report.runs,
            figure(machine.p99),
            figure(machine.max)
        ),
    ) + "<h3>99th percentile</h3>\n"
        + &points(&groups(report, |load| load.urgent_us.p99), "µs")
        + "<h3>99th percentile, calm</h3>\n"
        + &points(&groups(report, |load| load.urgent_calm_us.p99), "µs")
        + &table(&head, &lines(report))
        + "<h3>What was wanted</h3>\n"
        + &list(&goals)
}
