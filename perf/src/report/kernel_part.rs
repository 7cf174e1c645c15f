//! The section of the page that puts Peregrine beside the kernel's overlay on the same wire. `page.rs` calls `section`.

use super::layout::{
    self, Group, Load, bars, latency_plots, latency_table, legend, list, row, spread, table_of,
};
use super::svg::{Curve, PERCENTILES, Row, Series, Spread, figure};
use crate::kernel_case::{AtLoad, CaseReport, LOADS, Report, Side, System};

/// Peregrine first, as in the other sections.
const SYSTEMS: [(System, Series); 3] = [
    (System::Peregrine, Series::Peregrine),
    (System::Kernel, Series::Kernel),
    (System::KernelRps, Series::KernelRps),
];

/// In one sentence, for the case that comes first.
pub fn summary(report: &Report) -> Option<String> {
    let case = report.cases.first()?;
    let times = |ratio: Option<f64>| ratio.map_or("–".into(), figure);
    let best = f64::max(case.kernel.max_pps, case.kernel_rps.max_pps);
    Some(format!(
        "<b>Over the same wire, {}: {} Mpps</b>, {}× the kernel’s overlay, {}× the better of the kernel’s two.",
        case.case.title(),
        figure(case.peregrine.max_pps / 1e6),
        times(case.ratio.max_pps),
        times((best > 0.0 && case.peregrine.max_pps > 0.0).then_some(case.peregrine.max_pps / best))
    ))
}

/// Throughput and its price for all cases; latency for the first, and behind a click for the others.
pub fn section(report: &Report) -> String {
    let mpps = |lowest: f64, median: f64, highest: f64| spread(median / 1e6, lowest / 1e6, highest / 1e6);
    let most = groups(report, |side| mpps(side.max_pps_lowest, side.max_pps, side.max_pps_highest));
    let mut loss_free = groups(report, |side| match side.ndr_pps {
        0.0 => spread(f64::NAN, f64::NAN, f64::NAN),
        median => mpps(side.ndr_pps_lowest, median, side.ndr_pps_highest),
    });
    for (case, group) in report.cases.iter().zip(&mut loss_free) {
        for ((system, _), row) in SYSTEMS.iter().zip(&mut group.rows) {
            let side = case.side(*system);
            if side.ndr_pps > 0.0 && side.is_unconfirmed() {
                row.label += " (?)";
            }
        }
    }
    let cpu = groups(report, |side| {
        let cpu = &side.cpu_s_per_mpkt;
        spread(cpu.median.total, cpu.lowest.total, cpu.highest.total)
    });
    let work = groups(report, |side| {
        let cpu = &side.cpu_s_per_mpkt;
        spread(cpu.median.total_busy, cpu.lowest.total_busy, cpu.highest.total_busy)
    });
    let runs = match report.runs {
        1 => "One run".to_string(),
        runs => format!("Medians of {runs} runs, whiskers from the lowest to the highest"),
    };
    let series = SYSTEMS.map(|(_, series)| series);
    let mut out = layout::section(
        "Beside the kernel’s overlay, over the same wire",
        &format!(
            "The kernel’s own path (vxlan, bridge, veth, UDP socket), without and with RPS on the second core, and Peregrine with \
             a memif tenant: one generator, one veth pair and the same two cores for all three, which took turns. {runs}; “–”: no such rate was found; “(?)”: the search \
             ran out of time before it was sure, so there is no ratio."
        ),
    ) + &legend(&series, "");
    let parts = [
        ("Without loss (NDR, RFC 9900)", "Mpps", &loss_free),
        ("Most that arrives, at any loss", "Mpps", &most),
        ("CPU seconds per million packets, both cores, all that they did", "CPU s", &cpu),
        ("The same, of a polling worker only the part with work", "CPU s", &work),
    ];
    for (heading, unit, groups) in parts {
        out += &format!("<h3>{heading}</h3>\n{}", bars(groups, unit));
    }
    out += &table_of(&[
        ("without loss, Mpps", &loss_free),
        ("most, Mpps", &most),
        ("CPU s per million", &cpu),
        ("CPU s of work per million", &work),
    ]);
    out + &latency(report)
}

fn latency(report: &Report) -> String {
    let all: Vec<(String, Vec<Load>)> = report
        .cases
        .iter()
        .map(|case| (case.case.title(), loads(case)))
        .filter(|(_, all)| !all.is_empty())
        .collect();
    let Some(((first, of_first), others)) = all.split_first() else { return String::new() };
    let series = SYSTEMS.map(|(_, series)| series);
    let mut out = format!(
        "<h3>Round trip: {first}</h3>\n{}{}",
        list(&[
            "Loads are parts of what the <em>kernel’s</em> overlay can answer, the same for all three; idle is 1000 a second. Both \
             axes are logarithmic; the bar behind a mark reaches from the lowest run to the highest."
                .into(),
            "Timed from when each packet was due, so a stall counts against all who waited. Where the generator itself was late \
             with so many packets, the curve is dashed and its marks are hollow: from there on it says nothing about the system."
                .into(),
            "Up to p99 the median of the runs; p99.9, p99.99 and the maximum are of the answers of all runs together, as many as \
             the table says. Of 10,000 answers one lies beyond p99.99; where there are fewer it is “–”, as it is at idle and \
             low loads in a quick run."
                .into(),
        ]),
        legend(&series, "dashed: the generator’s own delay")
    );
    out += &(latency_plots(of_first) + &latency_table(of_first, true));
    for (title, loads) in others {
        out += &format!(
            "<details class=\"case\"><summary>Round trip: {title}</summary>\n{}{}</details>\n",
            latency_plots(loads),
            latency_table(loads, false)
        );
    }
    out
}

/// One group a case.
fn groups(report: &Report, value: impl Fn(&Side) -> Spread) -> Vec<Group> {
    let group = |case: &CaseReport| {
        let rows: Vec<Row> =
            SYSTEMS.map(|(system, series)| row(series, value(case.side(system)))).into_iter().collect();
        Group { title: case.case.title(), small: String::new(), rows }
    };
    report.cases.iter().map(group).collect()
}

/// The loads that were measured, with the systems that were measured at them.
fn loads(case: &CaseReport) -> Vec<Load> {
    let load = |name: &str| {
        let at: Vec<(Series, &AtLoad)> = SYSTEMS
            .iter()
            .filter_map(|(system, series)| Some((*series, case.side(*system).rtt_us.get(name)?)))
            .collect();
        let (_, first) = at.first()?;
        let title =
            if name == "idle" { "idle".to_string() } else { format!("{name} % of the kernel’s capacity") };
        let short = if name == "idle" { "idle".to_string() } else { format!("{name} %") };
        Some(Load {
            title,
            short,
            small: format!("{} packets/s", figure(first.pps as f64)),
            curves: at.iter().map(|(series, at)| curve(*series, at)).collect(),
            beside: at.iter().map(|(_, at)| beside(at)).collect(),
        })
    };
    LOADS.into_iter().filter_map(load).collect()
}

fn curve(series: Series, at: &AtLoad) -> Curve {
    let values = |of: &crate::kernel_case::Percentiles| {
        let [p50, p90, p99, p999, p9999, _max] = of.values();
        [p50, p90, p99, p999, p9999].map(|value| value.unwrap_or(f64::NAN))
    };
    let (median, lowest, highest) = (values(&at.median), values(&at.lowest), values(&at.highest));
    let mut points = [Spread::default(); 5];
    for (point, ((median, lowest), highest)) in
        points.iter_mut().zip(median.into_iter().zip(lowest).zip(highest))
    {
        *point = spread(median, lowest, highest);
    }
    let late = at.late_share();
    let sound = PERCENTILES.iter().take_while(|(_, quantile)| 1.0 - quantile > late).count();
    Curve { series, points, sound }
}

fn beside(at: &AtLoad) -> [String; 4] {
    let max = at.median.max.map_or("–".into(), figure);
    // A result of before they were counted has none.
    let answers = if at.samples > 0 { at.samples } else { at.sent.saturating_sub(at.lost) };
    [max, figure(answers as f64), figure(100.0 * at.late_share()), figure(at.stolen_ms)]
}

#[cfg(test)]
mod tests {
    use super::super::input::tests::all;
    use super::*;

    #[test]
    fn what_was_not_confirmed_or_not_found_is_marked() {
        let mut report = all().kernel.unwrap();
        let html = section(&report);
        assert!(!html.contains("kernel (?)") && html.contains("<td class=\"n\">100,000</td>"), "{html}");
        report.cases[0].kernel_rps.ndr_pps = 5.0;
        let html = section(&report);
        assert!(html.contains("kernel + RPS (?)") && !html.contains("– Mpps"), "{html}");
    }

    #[test]
    fn a_summary_has_no_ratio_of_nothing() {
        let mut report = all().kernel.unwrap();
        report.cases[0].peregrine.max_pps = 0.0;
        report.cases[0].ratio.max_pps = None;
        let line = summary(&report).unwrap();
        assert!(line.contains("–× the kernel’s overlay, –× the better"), "{line}");
    }
}
