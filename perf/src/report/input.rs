//! Results from files: which case one is of is told by what it contains. `report.rs` calls `read`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::environment::Environment;
use crate::{
    core_case, endpoints_case, fdb_case, generator_case, kernel_case, memif_case, pipeline_case,
    placement_latency_case, priority_case, skew_case, tenants_case,
};

/// No result is nearly as large.
const BYTES_MAX: u64 = 16 << 20;

/// All that a page can show, and what `report.json` contains.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Results {
    /// Of this program: what makes a `report.json` known.
    pub peregrine_report: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<kernel_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memif: Option<memif_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core: Option<core_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pipeline: Option<pipeline_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub skew: Option<skew_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub placement_latency: Option<placement_latency_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<priority_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenants: Option<tenants_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub generator: Option<generator_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fdb: Option<fdb_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoints: Option<endpoints_case::Report>,
    /// What was to be measured and was not, and why.
    pub failures: Vec<Failure>,
}

/// A case that gave no result.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Failure {
    pub case: String,
    pub error: String,
}

impl Results {
    /// The environment of each case, by the case's name; empty if it says nothing of it.
    pub fn environments(&self) -> Vec<(&'static str, Map<String, Value>)> {
        let own = |environment: &Option<Environment>| match serde_json::json!(environment) {
            Value::Object(all) => all,
            _ => Map::new(),
        };
        let kernel = |report: &kernel_case::Report| {
            let mut all = own(&Some(report.environment.machine.clone()));
            all.insert("mode".into(), report.environment.mode_text().into());
            all
        };
        let all = [
            ("kernel", self.kernel.as_ref().map(kernel)),
            ("memif", self.memif.as_ref().map(|report| own(&report.environment))),
            ("core", self.core.as_ref().map(|report| own(&report.environment))),
            ("pipeline", self.pipeline.as_ref().map(|report| own(&report.environment))),
            ("skew", self.skew.as_ref().map(|report| own(&report.environment))),
            ("placement-latency", self.placement_latency.as_ref().map(|report| own(&report.environment))),
            ("priority", self.priority.as_ref().map(|report| own(&report.environment))),
            ("tenants", self.tenants.as_ref().map(|report| own(&report.environment))),
            ("generator", self.generator.as_ref().map(|report| own(&report.environment))),
            ("fdb", self.fdb.as_ref().map(|report| own(&Some(report.environment.clone())))),
            ("endpoints", self.endpoints.as_ref().map(|report| own(&report.environment))),
        ];
        all.into_iter().filter_map(|(name, environment)| Some((name, environment?))).collect()
    }
}

/// Reads all files; the error is one line that names the file.
pub fn read<P: AsRef<Path>>(files: &[P]) -> Result<Results, String> {
    let mut results = Results::default();
    for file in files {
        let file = file.as_ref();
        let text = text(file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
        add(&mut results, &text).map_err(|error| format!("{}: {error}", file.display()))?;
    }
    Ok(results)
}

fn text(file: &Path) -> Result<String, String> {
    let mut text = String::new();
    let mut opened = File::open(file).map_err(|error| error.to_string())?.take(BYTES_MAX + 1);
    opened.read_to_string(&mut text).map_err(|error| error.to_string())?;
    if text.len() as u64 > BYTES_MAX {
        return Err(format!("it is larger than {} MiB, which no result is", BYTES_MAX >> 20));
    }
    Ok(text)
}

fn add(results: &mut Results, text: &str) -> Result<(), String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not whole JSON: {error}"))?;
    let first = |list: &str| value.get(list).and_then(|list| list.get(0));
    let has = |name: &str| first("cases").is_some_and(|case| case.get(name).is_some());
    if value.get("peregrine_report").is_some() {
        return merge(results, whole(value, "report")?);
    }
    if first("sizes").is_some() {
        put(&mut results.memif, whole(value, "memif")?, "memif")
    } else if first("full_rate").is_some() {
        put(&mut results.generator, whole(value, "generator")?, "generator")
    } else if value.get("hand_over").is_some() {
        put(&mut results.pipeline, whole(value, "pipeline")?, "pipeline")
    } else if value.get("hot_flow").is_some() {
        put(&mut results.skew, whole(value, "skew")?, "skew")
    } else if first("points").is_some_and(|point| point.get("share").is_some()) {
        put(&mut results.placement_latency, whole(value, "placement-latency")?, "placement-latency")
    } else if value.get("idle_calm_us").is_some() {
        put(&mut results.priority, whole(value, "priority")?, "priority")
    } else if first("lookups").is_some() {
        put(&mut results.fdb, whole(value, "fdb")?, "fdb")
    } else if value.get("bursts").is_some() {
        put(&mut results.endpoints, whole(value, "endpoints")?, "endpoints")
    } else if has("neighbour") {
        put(&mut results.tenants, whole(value, "tenants")?, "tenants")
    } else if has("inner_bytes") {
        put(&mut results.core, whole(value, "core")?, "core")
    } else if has("kernel") {
        put(&mut results.kernel, whole(value, "kernel")?, "kernel")
    } else {
        Err(format!(
            "not a result of `peregrine-perf core|memif|pipeline|skew|placement-latency|priority|tenants|generator|kernel|fdb|endpoints --json`, nor a report.json{}",
            of(&value)
        ))
    }
}

/// What it is instead.
fn of(value: &Value) -> String {
    let Value::Object(all) = value else { return String::new() };
    let keys: Vec<&str> = all.keys().map(String::as_str).take(8).collect();
    format!(": its keys are {}", if keys.is_empty() { "none".into() } else { keys.join(", ") })
}

fn whole<T: DeserializeOwned>(value: Value, kind: &str) -> Result<T, String> {
    serde_json::from_value(value).map_err(|error| format!("not a whole `{kind}` result: {error}"))
}

fn put<T>(place: &mut Option<T>, result: T, kind: &str) -> Result<(), String> {
    match place.replace(result) {
        Some(_) => Err(format!("a second `{kind}` result: give one of each kind")),
        None => Ok(()),
    }
}

/// A `report.json` counts as the results that it consists of.
fn merge(results: &mut Results, other: Results) -> Result<(), String> {
    let Results {
        kernel,
        memif,
        core,
        pipeline,
        skew,
        placement_latency,
        priority,
        tenants,
        generator,
        fdb,
        endpoints,
        failures,
        ..
    } = other;
    kernel.map_or(Ok(()), |result| put(&mut results.kernel, result, "kernel"))?;
    memif.map_or(Ok(()), |result| put(&mut results.memif, result, "memif"))?;
    core.map_or(Ok(()), |result| put(&mut results.core, result, "core"))?;
    pipeline.map_or(Ok(()), |result| put(&mut results.pipeline, result, "pipeline"))?;
    skew.map_or(Ok(()), |result| put(&mut results.skew, result, "skew"))?;
    placement_latency
        .map_or(Ok(()), |result| put(&mut results.placement_latency, result, "placement-latency"))?;
    priority.map_or(Ok(()), |result| put(&mut results.priority, result, "priority"))?;
    tenants.map_or(Ok(()), |result| put(&mut results.tenants, result, "tenants"))?;
    generator.map_or(Ok(()), |result| put(&mut results.generator, result, "generator"))?;
    fdb.map_or(Ok(()), |result| put(&mut results.fdb, result, "fdb"))?;
    endpoints.map_or(Ok(()), |result| put(&mut results.endpoints, result, "endpoints"))?;
    results.failures.extend(failures);
    Ok(())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    pub const CORE: &str = r#"{"cores":2,"runs":5,"cases":[{"name":"in","inner_bytes":64,"mpps":10.0,"mpps_lowest":8.0,
        "mpps_highest":12.0,"cycles_per_packet":260.0,"lost":0}]}"#;
    pub const MEMIF: &str = r#"{"cores":2,"runs":5,"sizes":[{"bytes":64,"ours_mpps":30.0,"ours_mpps_lowest":29.0,
        "ours_mpps_highest":31.0,"ours_cycles_per_packet":87.0,"testpmd_mpps":10.0,"testpmd_mpps_lowest":9.0,
        "testpmd_mpps_highest":11.0,"ratio":3.0,"ours_core_share":1.0,"testpmd_core_share":0.99}]}"#;
    pub const TENANTS: &str = r#"{"cores":2,"runs":7,"cases":[{"neighbour":"1000 idle","p50_ratio":1.0,"p99_ratio":1.2,
        "mpps_ratio":0.9,"connections":7,"put_out":0,"lost":0,
        "alone":{"p50_ns":330,"p99_ns":500,"p99_ns_lowest":490,"p99_ns_highest":510,"mpps":18.0,"mpps_lowest":17.0,"mpps_highest":19.0},
        "beside":{"p50_ns":340,"p99_ns":600,"p99_ns_lowest":590,"p99_ns_highest":610,"mpps":16.0,"mpps_lowest":15.0,"mpps_highest":17.0}}]}"#;
    pub const PIPELINE: &str = r#"{"cores":2,"runs":5,"inner_bytes":64,"static_split":"decap","work":[{"series":"even","cycles":800,
        "rtc_mpps":2.9,"rtc_mpps_lowest":2.8,"rtc_mpps_highest":3.0,"static_mpps":2.9,"static_mpps_lowest":2.8,"static_mpps_highest":3.0,
        "static_over_rtc":1.0,"balanced_mpps":4.0,"balanced_mpps_lowest":3.9,"balanced_mpps_highest":4.1,"balanced_over_rtc":1.4,
        "balanced_over_rtc_lowest":1.23,"balanced_over_rtc_highest":1.42,"balanced_split":"lookup","best_mpps":4.1,"best_mpps_lowest":4.0,
        "best_mpps_highest":4.2,"best_split":"lookup+tenant","best_over_rtc":1.41,"best_over_rtc_lowest":1.4,"best_over_rtc_highest":1.45,
        "lost":0,"reordered":0,"core_share":0.99}],"crossover_cycles":{"even":150.0,"heavy":null},"hand_over":{"rtc_cycles":95.0,
        "entry_cycles":3.0,"hop_cycles":155.0,"hop_cycles_lowest":150.0,"hop_cycles_highest":170.0},
        "placement_distinct_share":{"paper_hash":0.0116,"ours":1.0}}"#;
    pub const SKEW: &str = r#"{"cores":2,"runs":5,"flows":100,"tenants":4,"inner_bytes":64,"work_cycles":1600,"capacity_mpps":2.0,
        "offered_mpps":0.8,"offered_hot_mpps":1.8,"hot_flow":{"carried_alone_mpps":0.8,"carried_split_mpps":1.2,"best_split":"lookup+tenant",
        "mpps":1.0},"hot_ms":5000,"modes":[{"mode":"balanced","mpps":1.8,"mpps_lowest":1.7,"mpps_highest":1.8,"of_offered":1.0,
        "over_static":1.3,"over_static_lowest":1.2,"over_static_highest":1.4,"lost":70000,"lost_settled":0,"missed":60000,"lost_before":0,
        "reordered":0,"settled_ms":300.0,"balanced_again_ms":412.0,"loss_free_ms":null,"core_share":1.0,"tried":5,"undone":0,
        "bucket_moves":50,"tenant_moves":5}]}"#;
    pub const LATENCY: &str = r#"{"cores":2,"runs":5,"inner_bytes":64,"points":[{"work_cycles":400,"share":0.5,"offered_mpps":2.0,
        "modes":[{"mode":"run-to-completion","p50_us":1.1,"p99_us":4.2,"p9999_us":null,"max_us":900.0,"samples":400000,"lost":0,
        "core_share":1.0}]}]}"#;
    pub const PRIORITY: &str = r#"{"cores":2,"runs":5,"window_ms":1000,"inner_bytes":64,"urgent_pps":1000.0,
        "ports":[{"port":"veth","work_cycles":7000,"capacity_mpps":0.36,"wire_mpps":0.6,"batch_us":43.0,"sent_late_us":null}],
        "loads":[{"fraction":1.2,"port":"veth","mode":"sync","early":true,
            "urgent_us":{"p50":22.0,"p99":61.5,"p999":null,"max":900.0,"samples":5000},
            "urgent_calm_us":{"p50":22.0,"p99":55.0,"p999":null,"max":77.0,"samples":4800},"urgent_sent":5100,"urgent_lost":0,
            "urgent_unsent":0,"normal_mpps":0.35,"normal_over_fifo":0.98,"core_share":1.0,
            "taken":{"switches":9,"waited_ms":0.5,"stolen_ms":0.0,"stalls":0}},
          {"fraction":1.2,"port":"kernel","mode":"kernel","early":false,
            "urgent_us":{"p50":900.0,"p99":2100.0,"p999":null,"max":9000.0,"samples":5000},
            "urgent_calm_us":{"p50":null,"p99":null,"p999":null,"max":null,"samples":0},"urgent_sent":5100,"urgent_lost":800,
            "urgent_unsent":0,"normal_mpps":0.2,"normal_over_fifo":null,"core_share":1.0,
            "taken":{"switches":0,"waited_ms":0.0,"stolen_ms":0.0,"stalls":0}}],
        "idle_us":{"veth":{"p50":12.0,"p99":30.0,"p999":null,"max":90.0,"samples":5000}},
        "idle_calm_us":{"veth":{"p50":12.0,"p99":28.0,"p999":null,"max":60.0,"samples":5000}},
        "machine_us":{"p50":0.0,"p99":0.0,"p999":1.5,"max":80.0,"share":0.001,"gaps_per_s":300.0},
        "pairs":[{"what":"1000 rules over 10","mpps":9.0,"over_mpps":9.3,"ratio":0.97,"ratio_lowest":0.96,"ratio_highest":0.99,
            "ratio_wanted":0.909}],
        "shares":[{"mode":"sync","early":true,"share":0.2,"normal_offered":0.6,"urgent_offered":1.2,"normal_got":0.21,
            "urgent_got":0.79,"normal_part":0.21}],
        "goals":[{"what":"urgent packets lost","port":"veth","found":0.0,"wanted":0.0,"at_least":false}]}"#;
    pub const GENERATOR: &str = r#"{"cores":2,"runs":5,"bytes":64,"full_rate":[
        {"outlet":"memif","sender":"bare","mpps":20.0,"mpps_lowest":19.0,"mpps_highest":21.0,"cycles_per_packet":130.0,"ratio":1.0,
            "work_cycles_per_packet":12.0,"core_share":1.0},
        {"outlet":"memif","sender":"send, 1 flow","mpps":18.0,"mpps_lowest":17.0,"mpps_highest":19.0,"cycles_per_packet":144.0,
            "ratio":0.9,"work_cycles_per_packet":38.0,"core_share":0.97}],
        "rates":[{"outlet":"xdp","wanted_pps":1000,"error_percent":0.001,"error_percent_lowest":-0.25,"error_percent_highest":0.002,
            "sent":2000,"late":3,"skipped":0,"core_share":0.98}]}"#;
    pub const KERNEL: &str = r#"{"quick":false,"runs":5,"seconds":9.5,"notes":["told"],
        "environment":{"cores_used":2,"kernel":"6.18","mode":{"requested":"copy","actual":"copy","driver":"veth"}},
        "cases":[{"bytes":64,"flows":1,"round_trip_capacity_pps":200000,
        "kernel":{"max_pps":250000,"max_pps_lowest":240000,"max_pps_highest":260000,"ndr_pps":200000,"ndr_pps_lowest":200000,
            "ndr_pps_highest":200000,"ndr_end":["generator"],
            "rtt_us":{"idle":{"pps":1000,"sent":100000,"lost":0,"late":500,"stolen_ms":20.0,"attempts":7,"disturbed_runs":1,
                "p50":15,"p90":17,"p99":500,"p999":7000,"p9999":null,"max":9000,
                "lowest":{"p50":14,"p90":17,"p99":400,"p999":6000,"p9999":null,"max":8000},
                "highest":{"p50":16,"p90":18,"p99":600,"p999":8000,"p9999":null,"max":9500}}},
            "cpu_s_per_mpkt":{"generator_core":3.0,"other_core":1.0,"total":4.0,"busy_share":1.0,"total_busy":4.0,
                "lowest":{"generator_core":3.0,"other_core":1.0,"total":3.5,"busy_share":1.0,"total_busy":3.5},
                "highest":{"generator_core":3.0,"other_core":1.0,"total":4.5,"busy_share":1.0,"total_busy":4.5}}},
        "kernel_rps":{"max_pps":300000,"max_pps_lowest":300000,"max_pps_highest":300000,"ndr_pps":0,"ndr_pps_lowest":0,
            "ndr_pps_highest":0,"ndr_end":["unconfirmed"],"rtt_us":{},
            "cpu_s_per_mpkt":{"generator_core":3.0,"other_core":2.0,"total":5.0,"busy_share":1.0,"total_busy":5.0,
                "lowest":{"generator_core":3.0,"other_core":2.0,"total":5.0,"busy_share":1.0,"total_busy":5.0},
                "highest":{"generator_core":3.0,"other_core":2.0,"total":5.0,"busy_share":1.0,"total_busy":5.0}}},
        "peregrine":{"max_pps":776000,"max_pps_lowest":770000,"max_pps_highest":780000,"ndr_pps":700000,"ndr_pps_lowest":690000,
            "ndr_pps_highest":710000,"ndr_end":["device"],
            "rtt_us":{"idle":{"pps":1000,"sent":100000,"lost":0,"late":0,"stolen_ms":0.0,"attempts":5,"disturbed_runs":0,
                "p50":11,"p90":12,"p99":600,"p999":6500,"p9999":8900,"max":9000,
                "lowest":{"p50":11,"p90":12,"p99":600,"p999":6500,"p9999":8900,"max":9000},
                "highest":{"p50":11,"p90":12,"p99":600,"p999":6500,"p9999":8900,"max":9000}}},
            "cpu_s_per_mpkt":{"generator_core":0.7,"other_core":0.6,"total":1.3,"busy_share":0.5,"total_busy":1.0,
                "lowest":{"generator_core":0.7,"other_core":0.6,"total":1.3,"busy_share":0.5,"total_busy":1.0},
                "highest":{"generator_core":0.7,"other_core":0.6,"total":1.3,"busy_share":0.5,"total_busy":1.0}}},
        "ratio":{"max_pps":3.1,"ndr_pps":3.5,"rtt_p50_idle":0.7,"rtt_p99_50":null,"cpu_s_per_mpkt":0.3,"max_pps_to_rps":2.5,
            "ndr_pps_to_rps":null}}]}"#;

    pub fn all() -> Results {
        let mut results = Results { peregrine_report: "0".into(), ..Results::default() };
        for text in [CORE, MEMIF, PIPELINE, SKEW, LATENCY, PRIORITY, TENANTS, GENERATOR, KERNEL] {
            add(&mut results, text).unwrap();
        }
        results
    }

    #[test]
    fn the_kind_is_told_by_content_and_a_report_is_read_back_as_it_was() {
        let results = all();
        assert_eq!(results.core.as_ref().unwrap().cases[0].inner_bytes, 64);
        assert_eq!(results.memif.as_ref().unwrap().sizes[0].bytes, 64);
        assert_eq!(results.pipeline.as_ref().unwrap().work[0].cycles, 800);
        assert_eq!(results.skew.as_ref().unwrap().hot_ms, 5000);
        assert_eq!(results.placement_latency.as_ref().unwrap().points[0].work_cycles, 400);
        assert_eq!(results.priority.as_ref().unwrap().urgent_pps, 1000.0);
        assert_eq!(results.tenants.as_ref().unwrap().cases[0].neighbour, "1000 idle");
        assert_eq!(results.kernel.as_ref().unwrap().cases[0].case.flows, 1);
        let json = serde_json::json!(results);
        let mut again = Results { peregrine_report: "0".into(), ..Results::default() };
        add(&mut again, &json.to_string()).unwrap();
        assert_eq!(serde_json::json!(again), json);
    }

    #[test]
    fn every_file_that_is_cut_is_refused_by_name_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("some.json");
        for text in [CORE, MEMIF, PIPELINE, SKEW, LATENCY, PRIORITY, TENANTS, GENERATOR, KERNEL] {
            for end in (0..text.len()).step_by(7) {
                std::fs::write(&file, &text[..end]).unwrap();
                let error = read(&[&file]).unwrap_err();
                assert!(error.contains("some.json: ") && !error.contains('\n'), "{error}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |text: &str| add(&mut all(), text).unwrap_err();
        for other in
            ["{}", "[]", "5", r#"{"cases":[]}"#, r#"{"cases":[{"x":1}]}"#, r#"{"cases":{"inner_bytes":1}}"#]
        {
            assert!(error(other).starts_with("not a result of `peregrine-perf core|memif"), "{other}");
        }
        let unknown = r#"{"generator":"memif","cases":[{"pps":1}]}"#;
        assert!(
            error(unknown).ends_with("nor a report.json: its keys are cases, generator"),
            "{}",
            error(unknown)
        );
        let without_runs = CORE.replace(r#""runs":5,"#, "");
        assert!(error(&without_runs).ends_with("missing field `runs`"));
        let share = error(&MEMIF.replace(r#""ours_core_share":1.0"#, r#""ours_core_share":-1e308"#));
        assert!(
            share.starts_with("not a whole `memif` result: a share of -1") && share.ends_with("from 0 to 1"),
            "{share}"
        );
        assert_eq!(error(CORE), "a second `core` result: give one of each kind");
        let changed = CORE.replace("10.0", "\"fast\"");
        assert!(error(&changed).starts_with("not a whole `core` result: invalid type: string \"fast\""));
        assert!(error(&KERNEL.replace(r#""bytes":64,"#, "")).contains("missing field `bytes`"));
        assert!(
            read(&["/nowhere/x.json"]).unwrap_err().starts_with("cannot read /nowhere/x.json: No such file")
        );
        assert!(read(&["/dev/zero"]).unwrap_err().contains("/dev/zero: it is larger than 16 MiB"));
        assert!(read(&["/"]).unwrap_err().starts_with("cannot read /: "));
    }

    #[test]
    fn a_rate_of_0_makes_cycles_that_are_no_number() {
        let mut results = Results::default();
        add(&mut results, &CORE.replace("260.0", "null")).unwrap();
        assert!(results.core.unwrap().cases[0].cycles_per_packet.is_nan());
    }
}
