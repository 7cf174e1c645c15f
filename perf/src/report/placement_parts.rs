//! The sections of the page about where steps run: one flow on two cores, a flow that turns hot, and how late packets are. `page.rs`
//! calls them.

use super::layout::{Group, bars, legend, points, row, section, spread, table, table_of};
use super::svg::{Series, Spread, escape, figure};
use crate::paced::Mode;
use crate::{pipeline_case, placement_latency_case, skew_case};

fn series(mode: Mode) -> Series {
    match mode {
        Mode::RunToCompletion => Series::RunToCompletion,
        Mode::Static => Series::Static,
        Mode::Balanced => Series::Balanced,
    }
}

const MODES: [Series; 3] = [Series::Balanced, Series::Static, Series::RunToCompletion];

fn alone(value: f64) -> Spread {
    spread(value, value, value)
}

pub fn pipeline(report: &pipeline_case::Report) -> String {
    let groups = |of: pipeline_case::Series,
                  rows: &dyn Fn(&pipeline_case::Point) -> [(Series, Spread); 4]| {
        let group = |point: &pipeline_case::Point| Group {
            title: format!("{} cycles", point.cycles),
            small: format!("best: {}", point.best_split),
            rows: rows(point).into_iter().map(|(series, value)| row(series, value)).collect(),
        };
        report.work.iter().filter(|point| point.series == of).map(group).collect::<Vec<Group>>()
    };
    let ratios = |point: &pipeline_case::Point| {
        let [low, high] = [point.balanced_over_rtc_lowest, point.balanced_over_rtc_highest];
        [
            (Series::Balanced, spread(point.balanced_over_rtc, low, high)),
            (Series::Static, alone(point.static_over_rtc)),
            (
                Series::Best,
                spread(point.best_over_rtc, point.best_over_rtc_lowest, point.best_over_rtc_highest),
            ),
            (Series::RunToCompletion, alone(1.0)),
        ]
    };
    let rates = |point: &pipeline_case::Point| {
        [
            (
                Series::Balanced,
                spread(point.balanced_mpps, point.balanced_mpps_lowest, point.balanced_mpps_highest),
            ),
            (Series::Static, spread(point.static_mpps, point.static_mpps_lowest, point.static_mpps_highest)),
            (Series::Best, spread(point.best_mpps, point.best_mpps_lowest, point.best_mpps_highest)),
            (Series::RunToCompletion, spread(point.rtc_mpps, point.rtc_mpps_lowest, point.rtc_mpps_highest)),
        ]
    };
    let [even, heavy] = [pipeline_case::Series::Even, pipeline_case::Series::Heavy];
    let (even_ratios, heavy_ratios) = (groups(even, &ratios), groups(heavy, &ratios));
    let hand_over = &report.hand_over;
    let crossover = |at: Option<f64>| {
        at.map_or("at no amount that was tried".into(), |cycles| format!("from {} cycles on", figure(cycles)))
    };
    let share = &report.placement_distinct_share;
    section(
        "One flow on two cores",
        &format!(
            "One flow of {}-byte inner packets from memory to a tenant, on one core (run-to-completion) and with its steps on two, by the \
             cycles of work added to each packet’s way. {} cores. Medians of {} runs in turns; the ratios are of runs that followed \
             one another. “Best” is the fastest of five splits, found by trying: what the balancer could reach; beside the cycles stands what it has on the second core. What is above 1 is \
             what the second core brings.",
            report.inner_bytes, report.cores, report.runs
        ),
    ) + &legend(&[Series::Balanced, Series::Static, Series::Best, Series::RunToCompletion], "")
        + "<h3>Work in four steps alike: packets of two cores over those of one</h3>\n"
        + &bars(&even_ratios, "× one core")
        + "<h3>All work in one step that can be cut in two</h3>\n"
        + &bars(&heavy_ratios, "× one core")
        + &format!(
            "<p>The best split is faster than one core: {}, with work in four steps alike; {}, with all of it in one. Without work a packet costs {} cycles on one core, {} \
             more beside a second worker, and {} more ({}–{}) for each change of cores. Three steps of a flow are on three of three cores for {:.1} % \
             of the flows by the hash that FALCON published (<code>static-hashed</code>), for {:.1} % with <code>static</code>.</p>\n",
            crossover(report.crossover_cycles.even),
            crossover(report.crossover_cycles.heavy),
            figure(hand_over.rtc_cycles),
            figure(hand_over.entry_cycles),
            figure(hand_over.hop_cycles),
            figure(hand_over.hop_cycles_lowest),
            figure(hand_over.hop_cycles_highest),
            100.0 * share.paper_hash,
            100.0 * share.ours
        )
        + &table_of(&[
            ("× one core, work alike", &even_ratios),
            ("× one core, in one step", &heavy_ratios),
            ("Mpps, work alike", &groups(even, &rates)),
            ("Mpps, in one step", &groups(heavy, &rates)),
        ])
}

pub fn skew(report: &skew_case::Report) -> String {
    let hot = &report.hot_flow;
    let modes =
        || MODES.into_iter().filter_map(|of| report.modes.iter().find(|mode| series(mode.mode) == of));
    let group = |title: &str, small: String, value: &dyn Fn(&skew_case::ModeReport) -> Spread| Group {
        title: title.into(),
        small,
        rows: modes().map(|mode| row(series(mode.mode), value(mode))).collect(),
    };
    let carried =
        [group("once it was hot", format!("offered {} Mpps", figure(report.offered_hot_mpps)), &|mode| {
            spread(mode.mpps, mode.mpps_lowest, mode.mpps_highest)
        })];
    let lost =
        [group("while it was hot", format!("for {} ms", report.hot_ms), &|mode| alone(mode.lost as f64))];
    let ms = |time: Option<f64>| time.map_or("never".into(), figure);
    let lines: Vec<Vec<String>> = modes()
        .map(|mode| {
            vec![
                mode.mode.name().into(),
                format!("{:.1} %", 100.0 * mode.of_offered),
                format!(
                    "{} ({}–{})",
                    figure(mode.over_static),
                    figure(mode.over_static_lowest),
                    figure(mode.over_static_highest)
                ),
                ms(mode.settled_ms),
                ms(mode.balanced_again_ms),
                ms(mode.loss_free_ms),
                mode.lost.to_string(),
                mode.lost_settled.to_string(),
                mode.reordered.to_string(),
            ]
        })
        .collect();
    let head = [
        "placement",
        "of all offered",
        "over static",
        "95 % of its own",
        "98 % of all",
        "no loss",
        "lost",
        "in the 2nd half",
        "reordered",
    ];
    let split = match hot.can_be_shared() {
        true => format!("up to {} with {} on the other", figure(hot.carried_split_mpps), escape(&hot.best_split)),
        false => {
            "with no split more to speak of, for a change of cores cost what the second core brought, or the cores had other work".into()
        }
    };
    section(
        "A flow that turns hot",
        &format!(
            "{} flows to {} tenants enter at two workers, half of them at each, {} cycles of work on each packet; then one of them grows by {} \
             Mpps. 99 % came through up to {} all on its own worker, and {split}. {} cores do everything. Medians of {} runs in \
             turns; what no worker took in time is lost.",
            report.flows,
            report.tenants,
            report.work_cycles,
            figure(hot.mpps),
            figure(hot.carried_alone_mpps),
            report.cores,
            report.runs
        ),
    ) + &legend(&MODES, "")
        + "<h3>Carried, in the second half of the time</h3>\n"
        + &bars(&carried, "Mpps")
        + "<h3>Lost</h3>\n"
        + &bars(&lost, "packets")
        + "<h3>How soon: milliseconds from when it was hot until so much came through for 200 ms</h3>\n"
        + &table(&head, &lines)
        + &table_of(&[("Mpps", &carried), ("packets lost", &lost)])
}

pub fn latency(report: &placement_latency_case::Report) -> String {
    let groups = |time: &dyn Fn(&placement_latency_case::ModeReport) -> Option<f64>| {
        let group = |point: &placement_latency_case::Point| Group {
            title: format!("{:.0} % load", 100.0 * point.share),
            small: format!("{} cycles, {} Mpps", point.work_cycles, figure(point.offered_mpps)),
            rows: MODES
                .into_iter()
                .filter_map(|of| point.modes.iter().find(|mode| series(mode.mode) == of))
                .map(|mode| row(series(mode.mode), alone(time(mode).unwrap_or(f64::NAN))))
                .collect(),
        };
        report.points.iter().map(group).collect::<Vec<Group>>()
    };
    let middle = groups(&|mode| mode.p50_us);
    let tail = groups(&|mode| mode.p99_us);
    let (far, highest) = (groups(&|mode| mode.p9999_us), groups(&|mode| mode.max_us));
    section(
        "How late packets are, by placement",
        &format!(
            "One flow of {}-byte inner packets, from when each is due until the tenant has it, at two loads (of what one core can carry), by the cycles of work on each. {} cores: \
             one for run-to-completion, two for the others. Medians of {} runs in turns. Where a run had too few packets to tell, nothing is \
             drawn; what was lost is in no figure.",
            report.inner_bytes, report.cores, report.runs
        ),
    ) + &legend(&MODES, "")
        + "<h3>Median</h3>\n"
        + &points(&middle, "µs")
        + "<h3>99th percentile</h3>\n"
        + &points(&tail, "µs")
        + &table_of(&[
            ("p50, µs", &middle),
            ("p99, µs", &tail),
            ("p99.99, µs", &far),
            ("highest, µs", &highest),
        ])
}
