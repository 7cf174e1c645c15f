//! The sections of the page that need no wire: memif alone, one worker's path, neighbours. `page.rs` calls them.

use super::layout::{Group, bars, inverse, legend, points, row, section, spread, table_of};
use super::svg::{Row, Series, Spread, escape, figure};
use crate::generator_case::{self, Outlet};
use crate::{core_case, memif_case, tenants_case};

pub fn way(name: &str) -> &str {
    match name {
        "in" => "in, wire to tenant",
        "out" => "out, tenant to wire",
        other => other,
    }
}

pub fn memif(report: &memif_case::Report) -> String {
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
            small: format!("{}× testpmd", figure(size.ratio)),
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
             medians of {} runs each, the ratio over pairs that followed one another; whiskers from the lowest to the highest. No wire, no lookup: the rings only.",
            report.cores, report.runs
        ),
    ) + &legend(&[Series::Peregrine, Series::Testpmd], "")
        + "<h3>Throughput</h3>\n"
        + &bars(&groups, "Mpps")
        + "<h3>Cycles per packet, of the slower of the two cores</h3>\n"
        + &bars(&cycles, "cycles")
        + &table_of(&[("Mpps", &groups), ("cycles per packet", &cycles)])
}

pub fn core(report: &core_case::Report) -> String {
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

pub fn tenants(report: &tenants_case::Report) -> String {
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
    ) + &legend(&[Series::Alone, Series::Beside], "")
        + "<h3>Round trip, 99th percentile</h3>\n"
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

pub fn generator(report: &generator_case::Report) -> String {
    let groups = |value: &dyn Fn(&generator_case::Speed) -> Option<Spread>| {
        let group = |outlet: Outlet| {
            let speeds = report.full_rate.iter().filter(|speed| speed.outlet == outlet);
            let row = |speed: &generator_case::Speed| {
                let series = if speed.sender.starts_with("bare") { Series::Alone } else { Series::Peregrine };
                Some(Row { label: speed.sender.clone(), series, value: value(speed)? })
            };
            Group {
                title: outlet.name().into(),
                small: String::new(),
                rows: speeds.filter_map(row).collect(),
            }
        };
        let all = [Outlet::Memif, Outlet::Xdp].map(group).into_iter();
        all.filter(|group| !group.rows.is_empty()).collect::<Vec<Group>>()
    };
    let rates = groups(&|speed| Some(spread(speed.mpps, speed.mpps_lowest, speed.mpps_highest)));
    let work = groups(&|speed| speed.work_cycles_per_packet.map(|cycles| spread(cycles, cycles, cycles)));
    let kept: String = report
        .rates
        .iter()
        .map(|rate| {
            format!(
                "<tr><td>{}</td><td>{}</td><td>{:+.4}</td><td>{:+.4} to {:+.4}</td><td>{}</td><td>{}</td></tr>\n",
                rate.outlet.name(),
                rate.wanted_pps,
                rate.error_percent,
                rate.error_percent_lowest,
                rate.error_percent_highest,
                rate.late,
                rate.skipped
            )
        })
        .collect();
    section(
        "The generator itself",
        &format!(
            "<code>peregrine-pktgen send</code> at its full rate beside a bare loop over the same ring or socket, {} bytes a frame, \
             and how exactly it keeps a rate. {} cores: one for the sender, one for who empties the ring. Medians of {} runs, in turns.",
            report.bytes, report.cores, report.runs
        ),
    ) + "<h3>Full rate</h3>\n"
        // A ring carries many times as much as a veth pair: each on a scale of its own.
        + &rates.iter().map(|group| bars(std::slice::from_ref(group), "Mpps")).collect::<String>()
        + "<h3>The sender’s own work, all in its core’s cache</h3>\n"
        + &bars(&work, "cycles per packet")
        + "<h3>Rates asked for</h3>\n<div class=\"scroll\"><table>\n<tr><th>over</th><th>packets/s</th><th>error, %</th>\
           <th>lowest to highest</th><th>over 1 ms late</th><th>given up</th></tr>\n"
        + &kept
        + "</table></div>\n"
        + &table_of(&[("Mpps", &rates), ("cycles of work", &work)])
}
