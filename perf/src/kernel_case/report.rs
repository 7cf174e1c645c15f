//! The figures of all runs: medians with the lowest and highest, for people and for programs. `report` draws them.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::measured::{Capacity, Case, Cpu, Figures, Measured, RoundTrips, System, UNCONFIRMED};
use super::round_trips::{AtLoad, Percentiles};
use crate::environment;
use crate::figures::spread;

/// Loads of the round trips, in the order in which they are shown.
pub const LOADS: [&str; 4] = ["idle", "10", "50", "90"];

/// Everything.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub quick: bool,
    pub runs: usize,
    /// Why there are no more runs, if there were to be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    /// What failed and was measured again.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub retried: Vec<String>,
    pub seconds: f64,
    pub environment: Environment,
    pub cases: Vec<CaseReport>,
    /// What must be known to read the figures.
    pub notes: Vec<String>,
}

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Environment {
    pub cores_used: usize,
    /// Peregrine's driver mode, asked for and got, and the driver.
    pub mode: Value,
    #[serde(flatten)]
    pub machine: environment::Environment,
}

/// One packet size and number of flows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct CaseReport {
    #[serde(flatten)]
    pub case: Case,
    /// Of the kernel's overlay: 10, 50 and 90 % of this are the loads of the round trips.
    pub round_trip_capacity_pps: u64,
    /// Half of the answers came within a millisecond there.
    #[serde(default = "yes")]
    pub round_trip_capacity_prompt: bool,
    pub kernel: Side,
    pub kernel_rps: Side,
    pub peregrine: Side,
    pub ratio: Ratio,
}

/// One system: the median of the runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Side {
    pub max_pps: f64,
    pub max_pps_lowest: f64,
    pub max_pps_highest: f64,
    pub ndr_pps: f64,
    pub ndr_pps_lowest: f64,
    pub ndr_pps_highest: f64,
    /// Why NDR is not higher, in each run.
    pub ndr_end: Vec<String>,
    /// By load.
    pub rtt_us: BTreeMap<String, AtLoad>,
    pub cpu_s_per_mpkt: CpuReport,
}

/// CPU seconds per million packets.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct CpuReport {
    #[serde(flatten)]
    pub median: Cpu,
    pub lowest: Cpu,
    pub highest: Cpu,
}

/// Peregrine's figure over the kernel's; absent where one of them is 0 or was not measured, and of NDR where most searches
/// of one of them were not confirmed.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Ratio {
    pub max_pps: Option<f64>,
    pub ndr_pps: Option<f64>,
    pub rtt_p50_idle: Option<f64>,
    pub rtt_p99_50: Option<f64>,
    pub cpu_s_per_mpkt: Option<f64>,
    /// The same over the kernel with RPS.
    pub max_pps_to_rps: Option<f64>,
    pub ndr_pps_to_rps: Option<f64>,
}

/// Of reports that do not say it.
fn yes() -> bool {
    true
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    ours.zip(theirs).filter(|(ours, theirs)| *ours > 0.0 && *theirs > 0.0).map(|(ours, theirs)| ours / theirs)
}

impl Environment {
    pub fn mode_text(&self) -> String {
        let text = |key: &str| self.mode[key].as_str().unwrap_or("unknown");
        format!("{} (asked for {}), driver {}", text("actual"), text("requested"), text("driver"))
    }
}

impl Ratio {
    fn new(kernel: &Side, rps: &Side, ours: &Side) -> Ratio {
        let rtt = |load: &str, pick: fn(&Percentiles) -> Option<f64>| {
            let of = |side: &Side| pick(&side.rtt_us.get(load)?.median);
            ratio(of(ours), of(kernel))
        };
        let over = |theirs: &Side, pick: fn(&Side) -> f64| ratio(Some(pick(ours)), Some(pick(theirs)));
        let ndr = |theirs: &Side| ratio(ours.confirmed_ndr(), theirs.confirmed_ndr());
        Ratio {
            max_pps: over(kernel, |side| side.max_pps),
            ndr_pps: ndr(kernel),
            rtt_p50_idle: rtt("idle", |us| us.p50),
            rtt_p99_50: rtt("50", |us| us.p99),
            cpu_s_per_mpkt: over(kernel, |side| side.cpu_s_per_mpkt.median.total),
            max_pps_to_rps: over(rps, |side| side.max_pps),
            ndr_pps_to_rps: ndr(rps),
        }
    }
}

impl Side {
    fn new(figures: &[Figures]) -> Side {
        let of = |pick: fn(&Figures) -> f64| spread(figures.iter().map(pick).collect()).unwrap_or_default();
        let [max_pps_lowest, max_pps, max_pps_highest] = of(|figures| figures.max_pps);
        let [ndr_pps_lowest, ndr_pps, ndr_pps_highest] = of(|figures| figures.ndr_pps);
        let at_load = |load: &str| {
            let all = figures.iter().flat_map(|figures| &figures.round_trips);
            let runs: Vec<&RoundTrips> = all.filter(|at| at.load == load).collect();
            Some((load.to_string(), AtLoad::new(&runs)?))
        };
        Side {
            max_pps,
            max_pps_lowest,
            max_pps_highest,
            ndr_pps,
            ndr_pps_lowest,
            ndr_pps_highest,
            ndr_end: figures.iter().map(|figures| figures.ndr_end.clone()).collect(),
            rtt_us: LOADS.into_iter().filter_map(at_load).collect(),
            cpu_s_per_mpkt: CpuReport::new(figures),
        }
    }

    /// Most searches were not confirmed: what they found may be far too low.
    pub fn is_unconfirmed(&self) -> bool {
        let unconfirmed = self.ndr_end.iter().filter(|end| *end == UNCONFIRMED).count();
        unconfirmed > 0 && unconfirmed >= self.ndr_end.len() - unconfirmed
    }

    fn confirmed_ndr(&self) -> Option<f64> {
        (!self.is_unconfirmed()).then_some(self.ndr_pps)
    }
}

impl CpuReport {
    fn new(figures: &[Figures]) -> CpuReport {
        let of = |pick: fn(&Cpu) -> f64| {
            let told = figures.iter().map(|figures| pick(&figures.cpu)).filter(|value| !value.is_nan());
            spread(told.collect()).unwrap_or([f64::NAN; 3])
        };
        let generator_core = of(|cpu| cpu.generator_core);
        let other_core = of(|cpu| cpu.other_core);
        let total = of(|cpu| cpu.total);
        let busy_share = of(|cpu| cpu.busy_share);
        let total_busy = of(|cpu| cpu.total_busy);
        let [lowest, median, highest] = [0, 1, 2].map(|at: usize| {
            let value = |values: [f64; 3]| values.get(at).copied().unwrap_or_default();
            Cpu {
                generator_core: value(generator_core),
                other_core: value(other_core),
                total: value(total),
                busy_share: value(busy_share),
                total_busy: value(total_busy),
            }
        });
        CpuReport { median, lowest, highest }
    }
}

/// What was measured, and where.
#[derive(Debug)]
pub struct Measurement<'a> {
    pub quick: bool,
    pub runs: usize,
    /// Why there are no more.
    pub failure: Option<String>,
    /// What failed and was measured again.
    pub retried: Vec<String>,
    pub seconds: f64,
    pub machine: environment::Environment,
    /// Of Peregrine's `status`.
    pub uplink: Value,
    pub cases: &'a [Case],
    /// The kernel's, of each case.
    pub capacities: &'a [Capacity],
    pub all: &'a [Measured],
}

impl Report {
    pub fn new(of: Measurement<'_>) -> Report {
        let side = |case: Case, system: System| {
            let figures = of.all.iter().filter(|measured| measured.case == case && measured.system == system);
            Side::new(&figures.map(|measured| measured.figures.clone()).collect::<Vec<_>>())
        };
        let case = |(case, capacity): (&Case, &Capacity)| {
            let [kernel, kernel_rps, peregrine] = System::ALL.map(|system| side(*case, system));
            CaseReport {
                case: *case,
                round_trip_capacity_pps: capacity.pps,
                round_trip_capacity_prompt: capacity.prompt,
                ratio: Ratio::new(&kernel, &kernel_rps, &peregrine),
                kernel,
                kernel_rps,
                peregrine,
            }
        };
        let uplink = &of.uplink;
        let mut report = Report {
            quick: of.quick,
            runs: of.runs,
            failure: of.failure,
            retried: of.retried,
            seconds: of.seconds,
            environment: Environment {
                cores_used: 2,
                mode: json!({
                    "requested": uplink["mode_requested"], "actual": uplink["mode_actual"], "driver": uplink["driver"],
                }),
                machine: of.machine,
            },
            cases: of.cases.iter().zip(of.capacities).map(case).collect(),
            notes: Vec::new(),
        };
        report.notes = report.explain();
        report
    }
}

impl CaseReport {
    pub fn side(&self, system: System) -> &Side {
        match system {
            System::Kernel => &self.kernel,
            System::KernelRps => &self.kernel_rps,
            System::Peregrine => &self.peregrine,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn measured(system: System, scale: f64) -> Measured {
        let round_trips = |load| RoundTrips {
            load,
            pps: 1000,
            sent: 300,
            lost: 1,
            late: 30,
            stolen_ms: 10.0,
            disturbed: 0.1 / scale,
            attempts: 2,
            floor_ns: Some(90.0),
            us: [Some(10.0 / scale), Some(20.0), Some(30.0), None, None, Some(99.0)],
            counts: vec![(20_000, 299)],
        };
        let cpu = Cpu {
            generator_core: 1.0,
            other_core: 2.0 / scale,
            total: 3.0,
            busy_share: 0.5,
            total_busy: 2.0,
        };
        Measured {
            system,
            case: Case { bytes: 64, flows: 1 },
            figures: Figures {
                max_pps: 100.0 * scale,
                ndr_pps: 80.0 * scale,
                search_seconds: 1.0,
                ndr_end: if system == System::Peregrine { "generator" } else { "device" }.into(),
                cpu,
                round_trips: LOADS.map(round_trips).into(),
            },
        }
    }

    pub fn of(all: &[Measured], runs: usize) -> Report {
        Report::new(Measurement {
            quick: true,
            runs,
            failure: None,
            retried: Vec::new(),
            seconds: 9.0,
            machine: environment::Watch::start().end(),
            uplink: json!({"mode_requested": "copy", "mode_actual": "copy", "driver": "veth"}),
            cases: &[Case { bytes: 64, flows: 1 }],
            capacities: &[Capacity { pps: 5000, prompt: true }],
            all,
        })
    }

    pub fn report() -> Report {
        let all: Vec<Measured> = [1.0, 3.0, 2.0]
            .into_iter()
            .flat_map(|run| {
                [
                    measured(System::Kernel, run),
                    measured(System::KernelRps, 2.0 * run),
                    measured(System::Peregrine, 4.0 * run),
                ]
            })
            .collect();
        of(&all, 3)
    }

    #[test]
    fn the_json_keys_are_a_contract() {
        let json: Value = serde_json::from_str(&crate::figures::json(&report())).unwrap();
        assert_eq!((&json["runs"], &json["quick"]), (&json!(3), &json!(true)));
        let case = &json["cases"][0];
        assert_eq!((&case["bytes"], &case["flows"]), (&json!(64), &json!(1)));
        assert_eq!(case["round_trip_capacity_pps"], 5000);
        let kernel = &case["kernel"];
        assert_eq!(kernel["max_pps"], 200.0, "the median");
        assert_eq!((&kernel["ndr_pps_lowest"], &kernel["ndr_pps_highest"]), (&json!(80.0), &json!(240.0)));
        for load in LOADS {
            let at = &kernel["rtt_us"][load];
            assert_eq!((&at["sent"], &at["lost"], &at["pps"]), (&json!(900), &json!(3), &json!(1000)));
            assert_eq!((&at["p50"], &at["p999"], &at["max"]), (&json!(5.0), &Value::Null, &json!(99.0)));
            assert_eq!(at["highest"]["p50"], 10.0);
            assert_eq!(at["floor_ns"], 90.0);
        }
        for system in ["kernel", "kernel_rps", "peregrine"] {
            for load in LOADS {
                assert!(case[system]["rtt_us"][load]["p50"].is_f64(), "{system} at {load}");
            }
        }
        let at = &kernel["rtt_us"]["90"];
        assert_eq!((&at["late"], &at["attempts"], &at["stolen_ms"]), (&json!(90), &json!(6), &json!(30.0)));
        let cpu = &case["kernel"]["cpu_s_per_mpkt"];
        assert_eq!((&cpu["lowest"]["other_core"], &cpu["other_core"]), (&json!(2.0 / 3.0), &json!(1.0)));
        for key in ["generator_core", "other_core", "total", "busy_share", "total_busy"] {
            assert!(case["peregrine"]["cpu_s_per_mpkt"][key].is_f64(), "{key}");
        }
        assert_eq!((&case["ratio"]["max_pps"], &case["ratio"]["ndr_pps"]), (&json!(4.0), &json!(4.0)));
        assert_eq!(
            (&case["ratio"]["rtt_p50_idle"], &case["ratio"]["max_pps_to_rps"]),
            (&json!(0.25), &json!(2.0))
        );
        for key in ["cores_used", "kernel", "cpu", "mode"] {
            assert!(!json["environment"][key].is_null(), "{key}");
        }
        assert_eq!(json["environment"]["mode"]["actual"], "copy");
    }

    #[test]
    fn what_was_not_measured_is_absent_and_no_zero() {
        let mut all = vec![measured(System::Kernel, 1.0), measured(System::Peregrine, 1.0)];
        all[0].figures.ndr_pps = 0.0;
        all[1].figures.round_trips.clear();
        let report = of(&all, 1);
        let json: Value = serde_json::from_str(&crate::figures::json(&report)).unwrap();
        assert_eq!(json["cases"][0]["ratio"]["ndr_pps"], Value::Null);
        assert!(report.notes.iter().any(|note| note.starts_with("There is no ratio")), "{:?}", report.notes);
        assert_eq!(json["cases"][0]["ratio"]["rtt_p50_idle"], Value::Null);
        assert_eq!(json["cases"][0]["peregrine"]["rtt_us"], json!({}));
    }

    #[test]
    fn a_ratio_of_what_was_not_found_or_not_confirmed_is_absent() {
        let ratio = |change: fn(&mut Figures)| {
            let mut all = System::ALL.map(|system| measured(system, 1.0));
            change(&mut all[2].figures);
            let report = of(&all, 1);
            (serde_json::json!(report.cases[0].ratio), report.text())
        };
        let (json, text) = ratio(|ours| (ours.ndr_pps, ours.max_pps) = (0.0, 0.0));
        for key in ["ndr_pps", "max_pps", "ndr_pps_to_rps", "max_pps_to_rps"] {
            assert_eq!(json[key], Value::Null, "{key}");
        }
        assert!(
            text.contains("peregrine to the kernel: NDR –, max –, CPU 1.00×; with RPS: NDR –, max –"),
            "{text}"
        );
        let (json, text) = ratio(|ours| ours.ndr_end = UNCONFIRMED.into());
        assert_eq!((&json["ndr_pps"], &json["max_pps"]), (&Value::Null, &serde_json::json!(1.0)));
        assert!(text.contains("80?") && text.contains("NDR –, max 1.00×"), "{text}");
    }

    #[test]
    fn one_search_of_three_that_was_not_confirmed_leaves_the_median_one_that_was() {
        let side = |ends: &[&str]| {
            let figures = ends
                .iter()
                .map(|end| Figures { ndr_end: (*end).into(), ..measured(System::Kernel, 1.0).figures });
            Side::new(&figures.collect::<Vec<_>>()).is_unconfirmed()
        };
        assert!(!side(&["device", UNCONFIRMED, "generator"]));
        assert!(side(&["device", UNCONFIRMED]) && side(&[UNCONFIRMED]) && !side(&[]));
    }

    #[test]
    fn a_share_that_was_not_told_is_absent() {
        let mut all = System::ALL.map(|system| measured(system, 1.0));
        all[2].figures.cpu.busy_share = f64::NAN;
        let json = json!(of(&all, 1));
        assert_eq!(json["cases"][0]["peregrine"]["cpu_s_per_mpkt"]["busy_share"], Value::Null);
        assert!(serde_json::from_value::<Report>(json).is_ok());
    }

    #[test]
    fn a_report_is_read_back_as_it_was() {
        let json = json!(report());
        assert_eq!(json!(serde_json::from_value::<Report>(json.clone()).unwrap()), json);
    }
}
