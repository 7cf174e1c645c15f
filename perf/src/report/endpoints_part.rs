//! The section of endpoints that come in bursts. `page.rs` calls it.

use super::layout::{Group, bars, section, table_of};
use super::svg::{Row, Series, Spread, figure};
use crate::endpoints_case::{Figure, Report};

fn row(label: String, series: Series, figure: &Figure) -> Row {
    let value = Spread { median: figure.median, lowest: figure.lowest, highest: figure.highest };
    Row { label, series, value }
}

/// How long bursts took here and in the kernel, and what others noticed.
pub fn endpoints(report: &Report) -> String {
    let mut sizes: Vec<u32> = report.bursts.iter().map(|burst| burst.n.into()).collect();
    sizes.extend(report.kernel.iter().map(|burst| burst.n));
    sizes.sort_unstable();
    sizes.dedup();
    let group = |n: u32| {
        let ours = report.bursts.iter().filter(|burst| u32::from(burst.n) == n).filter_map(|burst| {
            let label = format!("{}, {} beside {}", burst.level, burst.kind, burst.existing);
            Some(row(label, Series::Peregrine, &burst.first_packet_ms?))
        });
        let kernel = report.kernel.iter().filter(|burst| burst.n == n).map(|burst| {
            let threads = if burst.threads == 1 { "" } else { "s" };
            let label = format!("{}, {} thread{threads}", burst.form, burst.threads);
            row(label, Series::Kernel, &burst.first_packet_ms)
        });
        Group { title: n.to_string(), small: "at once".into(), rows: ours.chain(kernel).collect() }
    };
    let groups: Vec<Group> = sizes.into_iter().map(group).collect();
    let load = report.under_load.as_ref().map_or(String::new(), |load| {
        format!(
            " While {} endpoints a second came and went, the 99th percentile of others' lateness at 70 % load was {} times that before.",
            figure(load.endpoints_per_second),
            figure(load.p99_ratio)
        )
    });
    let memory = report.per_endpoint_bytes.map_or(String::new(), |bytes| {
        format!(" A memif endpoint with the smallest rings takes {bytes} bytes.")
    });
    let churn = report.churn.as_ref().map_or(String::new(), |churn| {
        let grew = if churn.grew.is_empty() { "nothing".into() } else { churn.grew.join("; ") };
        format!(
            " Through a daemon {} endpoints a second came, and as many went, for {} s: of memory, descriptors, devices and frames {grew} grew.",
            figure(churn.per_second),
            figure(churn.seconds)
        )
    });
    let skipped =
        report.kernel_skipped.iter().map(|what| format!(" Not measured: {what}.")).collect::<String>();
    section(
        "Endpoints in bursts",
        &format!(
            "Until a packet got through the last of them; through containers an answer of their kernel's. {} cores: the worker, and everything else. Medians of {} \
             runs.{load}{memory}{churn}{skipped}",
            report.cores, report.runs,
        ),
    ) + &bars(&groups, "ms")
        + &table_of(&[("ms", &groups)])
}
