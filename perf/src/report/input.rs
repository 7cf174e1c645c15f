//! Results from files: which case one is of is told by what it contains. `report.rs` calls `read`.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::kernel;
use crate::{core_case, memif_case, tenants_case};

/// No result is nearly as large.
const BYTES_MAX: u64 = 16 << 20;

/// All that a page can show, and what `report.json` contains.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Results {
    /// Of this program: what makes a `report.json` known.
    pub peregrine_report: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<kernel::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memif: Option<memif_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub core: Option<core_case::Report>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tenants: Option<tenants_case::Report>,
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
        let own = |environment: &Option<crate::environment::Environment>| match serde_json::json!(environment)
        {
            Value::Object(all) => all,
            _ => Map::new(),
        };
        let kernel = |report: &kernel::Report| match report.more.get("environment") {
            Some(Value::Object(all)) => all.clone(),
            _ => Map::new(),
        };
        let all = [
            ("kernel", self.kernel.as_ref().map(kernel)),
            ("memif", self.memif.as_ref().map(|report| own(&report.environment))),
            ("core", self.core.as_ref().map(|report| own(&report.environment))),
            ("tenants", self.tenants.as_ref().map(|report| own(&report.environment))),
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
    } else if has("neighbour") {
        put(&mut results.tenants, whole(value, "tenants")?, "tenants")
    } else if has("inner_bytes") {
        put(&mut results.core, whole(value, "core")?, "core")
    } else if has("kernel") {
        put(&mut results.kernel, whole(value, "kernel")?, "kernel")
    } else {
        Err("not a result of `peregrine-perf core|memif|tenants|kernel --json`, nor a report.json".into())
    }
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
    let Results { kernel, memif, core, tenants, failures, .. } = other;
    kernel.map_or(Ok(()), |result| put(&mut results.kernel, result, "kernel"))?;
    memif.map_or(Ok(()), |result| put(&mut results.memif, result, "memif"))?;
    core.map_or(Ok(()), |result| put(&mut results.core, result, "core"))?;
    tenants.map_or(Ok(()), |result| put(&mut results.tenants, result, "tenants"))?;
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
    pub const KERNEL: &str = r#"{"runs":5,"environment":{"kernel":"6.18","mode":"copy"},"cases":[{"bytes":64,"flows":1,
        "kernel":{"max_pps":250000,"ndr_pps":200000,"rtt_us":{"p50":15,"p90":17,"p99":500,"p999":7000,"p9999":9000},"cpu_s_per_mpkt":4.0},
        "kernel_rps":{"max_pps":300000,"ndr_pps":240000,"rtt_us":{"p50":20,"p90":22,"p99":400,"p999":6000,"p9999":9000},"cpu_s_per_mpkt":5.0},
        "peregrine":{"max_pps":776000,"ndr_pps":700000,"rtt_us":{"p50":11,"p90":12,"p99":600,"p999":6500,"p9999":8900},"cpu_s_per_mpkt":1.3},
        "ratio":{"max_pps":3.1}}]}"#;

    pub fn all() -> Results {
        let mut results = Results { peregrine_report: "0".into(), ..Results::default() };
        for text in [CORE, MEMIF, TENANTS, KERNEL] {
            add(&mut results, text).unwrap();
        }
        results
    }

    #[test]
    fn the_kind_is_told_by_content_and_a_report_is_read_back_as_it_was() {
        let results = all();
        assert_eq!(results.core.as_ref().unwrap().cases[0].inner_bytes, 64);
        assert_eq!(results.memif.as_ref().unwrap().sizes[0].bytes, 64);
        assert_eq!(results.tenants.as_ref().unwrap().cases[0].neighbour, "1000 idle");
        assert_eq!(results.kernel.as_ref().unwrap().cases[0].flows, 1);
        let json = serde_json::json!(results);
        let mut again = Results { peregrine_report: "0".into(), ..Results::default() };
        add(&mut again, &json.to_string()).unwrap();
        assert_eq!(serde_json::json!(again), json);
    }

    #[test]
    fn every_file_that_is_cut_is_refused_by_name_in_one_line() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("some.json");
        for text in [CORE, MEMIF, TENANTS, KERNEL] {
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
