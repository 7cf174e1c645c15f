//! What must be said beside the figures: what disturbed them, what limited them, what they do not show. `page.rs` prints
//! these lines before any figure.

use serde_json::{Map, Value};

use super::input::Results;
use super::svg::figure;
use crate::kernel_case::System;

/// A thread that had less of its core was disturbed.
const CORE_SHARE: f64 = 0.98;
/// Percent that a rate may be off.
const RATE_ERROR: f64 = 1.0;
/// Highest over lowest; more is no quiet machine.
const SPREAD: f64 = 1.25;
const STOLEN_PERCENT: f64 = 0.1;
const RUNS: usize = 5;

/// Each is a sentence or two.
pub fn notes(results: &Results) -> Vec<String> {
    let mut notes = Vec::new();
    notes.extend(
        results.failures.iter().map(|failure| format!("Not measured: {}: {}.", failure.case, failure.error)),
    );
    machine(results, &mut notes);
    runs(results, &mut notes);
    core(results, &mut notes);
    memif(results, &mut notes);
    placement(results, &mut notes);
    priority(results, &mut notes);
    generator(results, &mut notes);
    kernel(results, &mut notes);
    notes
}

fn machine(results: &Results, notes: &mut Vec<String>) {
    let environments = results.environments();
    let texts = |key: &str| -> Vec<String> {
        let mut found: Vec<String> =
            environments.iter().filter_map(|(_, all)| Some(all.get(key)?.as_str()?.to_string())).collect();
        found.dedup();
        found
    };
    let most = |key: &str| {
        let values =
            environments.iter().filter_map(|(_, all): &(_, Map<String, Value>)| all.get(key)?.as_f64());
        values.fold(0.0, f64::max)
    };
    let machines = texts("virtual_machine");
    if !machines.is_empty() {
        notes.push(format!(
            "Measured in a virtual machine ({}): the hypervisor can take a core away at any time and decides which cores \
             share a cache. Rates and tails are of that moment; compare only what was measured in the same run.",
            machines.join("; ").trim_start_matches("yes, ")
        ));
    }
    if most("stolen_percent") > STOLEN_PERCENT {
        notes.push(format!(
            "The hypervisor took up to {} % of all cores' time while it measured.",
            figure(most("stolen_percent"))
        ));
    }
    if most("load_before") > 0.5 {
        notes.push(format!(
            "The machine was not idle: up to {} threads wanted a core in the minute before a case began.",
            figure(most("load_before"))
        ));
    }
    let silent: Vec<&str> =
        environments.iter().filter(|(_, all)| all.is_empty()).map(|(name, _)| *name).collect();
    if !silent.is_empty() {
        notes.push(format!("Where it was measured is not known of: {}.", silent.join(", ")));
    }
}

fn runs(results: &Results, notes: &mut Vec<String>) {
    let counts = [
        ("kernel", results.kernel.as_ref().map(|report| report.runs)),
        ("memif", results.memif.as_ref().map(|report| report.runs)),
        ("core", results.core.as_ref().map(|report| report.runs)),
        ("pipeline", results.pipeline.as_ref().map(|report| report.runs)),
        ("skew", results.skew.as_ref().map(|report| report.runs)),
        ("placement-latency", results.placement_latency.as_ref().map(|report| report.runs)),
        ("priority", results.priority.as_ref().map(|report| report.runs)),
        ("tenants", results.tenants.as_ref().map(|report| report.runs)),
        ("generator", results.generator.as_ref().map(|report| report.runs)),
    ];
    for (name, runs) in counts {
        if let Some(runs) = runs.filter(|runs| *runs < RUNS) {
            let runs = if runs == 1 { "1 run is".into() } else { format!("{runs} runs are") };
            notes.push(format!("{name}: {runs} too few to tell a spread; {RUNS} is the least."));
        }
    }
}

fn core(results: &Results, notes: &mut Vec<String>) {
    let Some(report) = &results.core else { return };
    spread("core", report.cases.iter().map(|case| (case.mpps_lowest, case.mpps_highest)), notes);
    let slower: Vec<String> = report
        .cases
        .iter()
        .filter(|case| case.lost > 0)
        .map(|case| format!("{} at {} bytes", case.name, case.inner_bytes))
        .collect();
    if !slower.is_empty() {
        notes.push(format!(
            "core: the tenant's core was the limit, not the worker's, in: {}. What the ring had no room for was dropped and \
             only what the tenant got counts; the worker alone is faster than that.",
            slower.join(", ")
        ));
    }
}

fn memif(results: &Results, notes: &mut Vec<String>) {
    let Some(report) = &results.memif else { return };
    let ours = report.sizes.iter().map(|size| (size.ours_mpps_lowest, size.ours_mpps_highest));
    let theirs = report.sizes.iter().map(|size| (size.testpmd_mpps_lowest, size.testpmd_mpps_highest));
    spread("memif", ours.chain(theirs), notes);
    let shares = report.sizes.iter().flat_map(|size| [size.ours_core_share, size.testpmd_core_share]);
    let least = shares.fold(1.0, f64::min);
    if least < CORE_SHARE {
        notes.push(format!(
            "memif: in the worst run a polling thread had {:.0} % of its core, something else the rest. The ratios, of pairs \
             of runs that followed one another, say more than the rates.",
            least * 100.0
        ));
    }
}

fn priority(results: &Results, notes: &mut Vec<String>) {
    let Some(report) = &results.priority else { return };
    let least = report.loads.iter().map(|load| load.core_share).fold(1.0, f64::min);
    if least < CORE_SHARE {
        notes.push(format!(
            "priority: in the worst run the worker had {:.0} % of its core, something else the rest: beyond the median, only what is called \
             calm is the worker's.",
            least * 100.0
        ));
    }
    if let Some(why) = &report.left_out {
        notes.push(format!("priority: nothing was measured over a wire: {why}."));
    }
}

/// The three cases in which two workers must run at the same time.
fn placement(results: &Results, notes: &mut Vec<String>) {
    let pipeline = results.pipeline.iter().flat_map(|report| &report.work).map(|point| point.core_share);
    let skew = results.skew.iter().flat_map(|report| &report.modes).map(|mode| mode.core_share);
    let points = results.placement_latency.iter().flat_map(|report| &report.points);
    let latency = points.flat_map(|point| &point.modes).map(|mode| mode.core_share);
    for (name, least) in [
        ("pipeline", pipeline.fold(1.0, f64::min)),
        ("skew", skew.fold(1.0, f64::min)),
        ("placement-latency", latency.fold(1.0, f64::min)),
    ] {
        if least < CORE_SHARE {
            notes.push(format!(
                "{name}: in the worst run a worker had {:.0} % of its core, something else the rest. Two workers that wait for each \
                 other lose more by that than one does.",
                least * 100.0
            ));
        }
    }
    if results.skew.as_ref().is_some_and(|report| !report.hot_flow.can_be_shared()) {
        notes.push(
            "skew: no split of the hot flow carried more to speak of than its own worker alone: nothing could be shared again.".into(),
        );
    }
    let points = results.placement_latency.iter().flat_map(|report| &report.points);
    let lost: u64 = points.flat_map(|point| &point.modes).map(|mode| mode.lost).sum();
    if lost > 0 {
        notes.push(format!(
            "placement-latency: {} packets were lost in usual runs, and are in no time.",
            figure(lost as f64)
        ));
    }
}

fn generator(results: &Results, notes: &mut Vec<String>) {
    let Some(report) = &results.generator else { return };
    spread("generator", report.full_rate.iter().map(|speed| (speed.mpps_lowest, speed.mpps_highest)), notes);
    let worst = report.rates.iter().map(|rate| rate.error_percent.abs()).fold(0.0, f64::max);
    if worst > RATE_ERROR {
        notes.push(format!(
            "generator: a rate was missed by {worst:.1} % in the median, more than {RATE_ERROR} %: it had no core to itself, or \
             the wire carried no more."
        ));
    }
}

/// Only the worst is told.
fn spread(name: &str, ranges: impl Iterator<Item = (f64, f64)>, notes: &mut Vec<String>) {
    let worst = ranges
        .map(|(lowest, highest)| highest / lowest)
        .filter(|factor| factor.is_finite())
        .fold(1.0, f64::max);
    if worst > SPREAD {
        notes.push(format!(
            "{name}: the fastest run of a case was up to {} times as fast as the slowest. Something other than the programs \
             made the difference: other work on these cores, or how far they lie apart.",
            figure(worst)
        ));
    }
}

fn kernel(results: &Results, notes: &mut Vec<String>) {
    let Some(report) = &results.kernel else { return };
    let rates = report.cases.iter().flat_map(|case| System::ALL.map(|system| case.side(system)));
    spread("kernel", rates.map(|side| (side.max_pps_lowest, side.max_pps_highest)), notes);
    notes.extend(
        report.limits().into_iter().chain(report.disturbances()).map(|note| format!("kernel: {note}")),
    );
    notes.push(
        "kernel: the wire is a veth pair. Each frame is copied, and the sender's core does the kernel's part of both ends: \
         with Peregrine that, and the generator, is the limit before the worker is. Conclude the order of the three \
         systems on such a wire, not the rates of a NIC."
            .into(),
    );
}

#[cfg(test)]
mod tests {
    use super::super::input::tests::all;
    use super::*;

    fn environment(json: Value) -> Option<crate::environment::Environment> {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_quiet_machine_needs_no_excuse_but_the_wire_is_named() {
        let mut results = all();
        let quiet =
            environment(serde_json::json!({"cpu": "fast", "load_before": 0.1, "stolen_percent": 0.0}));
        results.memif.as_mut().unwrap().environment = quiet.clone();
        results.generator.as_mut().unwrap().environment = quiet.clone();
        results.tenants.as_mut().unwrap().environment = quiet.clone();
        results.pipeline.as_mut().unwrap().environment = quiet.clone();
        results.skew.as_mut().unwrap().environment = quiet.clone();
        results.placement_latency.as_mut().unwrap().environment = quiet.clone();
        results.priority.as_mut().unwrap().environment = quiet.clone();
        let core = results.core.as_mut().unwrap();
        core.environment = quiet;
        core.cases[0].mpps_lowest = core.cases[0].mpps_highest;
        let notes = notes(&results);
        let [limit, unconfirmed, disturbed, wire] = &notes[..] else { panic!("{notes:#?}") };
        assert!(
            limit.contains("The wire or the generator, not the kernel's overlay, was the limit in 1 of 5")
        );
        assert!(unconfirmed.contains("1 of 5 searches of the kernel's overlay with RPS ran out of time"));
        assert!(
            disturbed.starts_with("kernel: 1 of 10 measurements of round trips were disturbed"),
            "{disturbed}"
        );
        assert!(wire.starts_with("kernel: the wire is a veth pair."));
    }

    #[test]
    fn every_disturbance_is_told() {
        let mut results = all();
        results.core.as_mut().unwrap().cases[0].lost = 7;
        results.memif.as_mut().unwrap().sizes[0].testpmd_core_share = 0.42;
        results.memif.as_mut().unwrap().environment = environment(
            serde_json::json!({"virtual_machine": "KVM", "load_before": 3.5, "stolen_percent": 2.0}),
        );
        results.tenants.as_mut().unwrap().runs = 3;
        results.pipeline.as_mut().unwrap().work[0].core_share = 0.5;
        results.skew.as_mut().unwrap().hot_flow.carried_split_mpps = 0.8;
        results.placement_latency.as_mut().unwrap().points[0].modes[0].lost = 3;
        results
            .failures
            .push(super::super::input::Failure { case: "memif".into(), error: "no testpmd".into() });
        let text = notes(&results).join("\n");
        for part in [
            "Not measured: memif: no testpmd.",
            "a virtual machine (KVM)",
            "up to 2.00 % of all cores' time",
            "up to 3.50 threads wanted a core",
            "not known of: core, pipeline, skew, placement-latency, priority, tenants, generator.",
            "tenants: 3 runs are too few",
            "core: the tenant's core was the limit, not the worker's, in: in at 64 bytes.",
            "core: the fastest run of a case was up to 1.50 times as fast",
            "a polling thread had 42 % of its core",
            "pipeline: in the worst run a worker had 50 % of its core",
            "skew: no split of the hot flow",
            "placement-latency: 3.00 packets were lost",
        ] {
            assert!(text.contains(part), "{part} is not in:\n{text}");
        }
        assert!(!text.contains("memif: the fastest"));
    }
}
