//! The figures of all runs: medians with the lowest and highest, for people and for programs.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::bench::{Case, Cpu, Figures, Measured, PERCENTILES, RoundTrips, System};
use crate::environment::Watch;
use crate::figures::spread;

/// Loads of the round trips, in the order in which they are shown.
const LOADS: [&str; 4] = ["idle", "10", "50", "90"];

/// Everything.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    quick: bool,
    runs: usize,
    seconds: f64,
    environment: Environment,
    cases: Vec<CaseReport>,
    /// What must be known to read the figures.
    notes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Environment {
    cores_used: usize,
    cores: usize,
    cpu: String,
    kernel: String,
    /// Peregrine's driver mode, asked for and got, and the driver.
    mode: Value,
    hypervisor: bool,
}

#[derive(Clone, Debug, Serialize)]
struct CaseReport {
    #[serde(flatten)]
    case: Case,
    /// Of the kernel's overlay: 10, 50 and 90 % of this are the loads of the round trips.
    round_trip_capacity_pps: u64,
    kernel: Side,
    kernel_rps: Side,
    peregrine: Side,
    ratio: Ratio,
}

/// One system: the median of the runs.
#[derive(Clone, Debug, Serialize)]
struct Side {
    #[serde(flatten)]
    max: Spread<Max>,
    #[serde(flatten)]
    ndr: Spread<Ndr>,
    /// Why NDR is not higher, in each run.
    ndr_end: Vec<String>,
    /// By load.
    rtt_us: Map<String, Value>,
    cpu_s_per_mpkt: Cpu,
}

/// Names of a [`Spread`]'s three figures.
trait Named {
    const NAMES: [&'static str; 3];
}

#[derive(Clone, Copy, Debug)]
struct Max;
#[derive(Clone, Copy, Debug)]
struct Ndr;

impl Named for Max {
    const NAMES: [&'static str; 3] = ["max_pps", "max_pps_lowest", "max_pps_highest"];
}

impl Named for Ndr {
    const NAMES: [&'static str; 3] = ["ndr_pps", "ndr_pps_lowest", "ndr_pps_highest"];
}

#[derive(Clone, Copy, Debug)]
struct Spread<N> {
    median: f64,
    lowest: f64,
    highest: f64,
    _name: std::marker::PhantomData<N>,
}

impl<N> Spread<N> {
    fn of(figures: &[Figures], pick: fn(&Figures) -> f64) -> Spread<N> {
        let values: Vec<f64> = figures.iter().map(pick).collect();
        let [lowest, median, highest] = spread(values).unwrap_or_default();
        Spread { median, lowest, highest, _name: std::marker::PhantomData }
    }
}

impl<N: Named> Serialize for Spread<N> {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let values = [self.median, self.lowest, self.highest];
        serializer.collect_map(N::NAMES.into_iter().zip(values))
    }
}

/// Peregrine's figure over the kernel's; absent where that is 0 or was not measured.
#[derive(Clone, Debug, Serialize)]
struct Ratio {
    max_pps: Option<f64>,
    ndr_pps: Option<f64>,
    rtt_p50_idle: Option<f64>,
    rtt_p99_50: Option<f64>,
    cpu_s_per_mpkt: Option<f64>,
    /// The same over the kernel with RPS.
    max_pps_to_rps: Option<f64>,
    ndr_pps_to_rps: Option<f64>,
}

fn ratio(ours: Option<f64>, theirs: Option<f64>) -> Option<f64> {
    ours.zip(theirs).filter(|(_, theirs)| *theirs > 0.0).map(|(ours, theirs)| ours / theirs)
}

impl Ratio {
    fn new(kernel: &Side, rps: &Side, ours: &Side) -> Ratio {
        let rtt =
            |side: &Side, load: &str, name: &str| side.rtt_us.get(load).and_then(|at| at[name].as_f64());
        let over = |theirs: &Side, pick: fn(&Side) -> f64| ratio(Some(pick(ours)), Some(pick(theirs)));
        Ratio {
            max_pps: over(kernel, |side| side.max.median),
            ndr_pps: over(kernel, |side| side.ndr.median),
            rtt_p50_idle: ratio(rtt(ours, "idle", "p50"), rtt(kernel, "idle", "p50")),
            rtt_p99_50: ratio(rtt(ours, "50", "p99"), rtt(kernel, "50", "p99")),
            cpu_s_per_mpkt: over(kernel, |side| side.cpu_s_per_mpkt.total),
            max_pps_to_rps: over(rps, |side| side.max.median),
            ndr_pps_to_rps: over(rps, |side| side.ndr.median),
        }
    }
}

impl Side {
    fn new(figures: &[Figures]) -> Side {
        let cpu = |pick: fn(&Cpu) -> f64| {
            spread(figures.iter().map(|figures| pick(&figures.cpu)).collect()).unwrap_or_default()[1]
        };
        let mut rtt_us = Map::new();
        for load in LOADS {
            let runs = figures.iter().flat_map(|figures| &figures.round_trips);
            let runs: Vec<&RoundTrips> = runs.filter(|at| at.load == load).collect();
            if !runs.is_empty() {
                rtt_us.insert(load.into(), round_trips(&runs));
            }
        }
        Side {
            max: Spread::of(figures, |figures| figures.max_pps),
            ndr: Spread::of(figures, |figures| figures.ndr_pps),
            ndr_end: figures.iter().map(|figures| figures.ndr_end.clone()).collect(),
            rtt_us,
            cpu_s_per_mpkt: Cpu {
                generator_core: cpu(|cpu| cpu.generator_core),
                other_core: cpu(|cpu| cpu.other_core),
                total: cpu(|cpu| cpu.total),
                busy_share: cpu(|cpu| cpu.busy_share),
                total_busy: cpu(|cpu| cpu.total_busy),
            },
        }
    }
}

/// `{pps, sent, lost, late, p50 … max, lowest: {p50 …}, highest: {…}}`.
fn round_trips(runs: &[&RoundTrips]) -> Value {
    let sum = |pick: fn(&RoundTrips) -> u64| runs.iter().map(|run| pick(run)).sum::<u64>();
    let mut all = Map::new();
    all.insert("pps".into(), json!(runs.first().map(|run| run.pps)));
    all.insert("sent".into(), json!(sum(|run| run.sent)));
    all.insert("lost".into(), json!(sum(|run| run.lost)));
    all.insert("late".into(), json!(sum(|run| run.late)));
    let (mut lowest, mut highest) = (Map::new(), Map::new());
    for (at, name) in PERCENTILES.into_iter().enumerate() {
        let values = runs.iter().filter_map(|run| run.us.get(at).copied().flatten()).collect();
        let [low, middle, high] = spread(values).map_or([None; 3], |values| values.map(Some));
        all.insert(name.into(), json!(middle));
        lowest.insert(name.into(), json!(low));
        highest.insert(name.into(), json!(high));
    }
    all.insert("lowest".into(), lowest.into());
    all.insert("highest".into(), highest.into());
    all.into()
}

impl Environment {
    fn read(uplink: &Value) -> Environment {
        let machine = Watch::start().end();
        Environment {
            cores_used: 2,
            cores: machine.cores_online.unwrap_or(0),
            cpu: machine.cpu.unwrap_or_else(|| "unknown".into()),
            kernel: machine.kernel.unwrap_or_default(),
            mode: json!({
                "requested": uplink["mode_requested"], "actual": uplink["mode_actual"], "driver": uplink["driver"],
            }),
            hypervisor: machine.virtual_machine.is_some(),
        }
    }
}

/// One of the systems of a case.
type Pick = fn(&CaseReport) -> &Side;

impl Report {
    pub fn new(
        quick: bool,
        runs: usize,
        all: &[Measured],
        cases: &[Case],
        capacities: &[u64],
        uplink: &Value,
        took: Duration,
    ) -> Report {
        let side = |case: Case, system: System| {
            let of = all.iter().filter(|measured| measured.case == case && measured.system == system);
            Side::new(&of.map(|measured| measured.figures.clone()).collect::<Vec<_>>())
        };
        let case = |(case, capacity): (&Case, &u64)| {
            let [kernel, kernel_rps, peregrine] =
                [System::Kernel, System::KernelRps, System::Peregrine].map(|system| side(*case, system));
            CaseReport {
                case: *case,
                round_trip_capacity_pps: *capacity,
                ratio: Ratio::new(&kernel, &kernel_rps, &peregrine),
                kernel,
                kernel_rps,
                peregrine,
            }
        };
        let mut report = Report {
            quick,
            runs,
            seconds: took.as_secs_f64(),
            environment: Environment::read(uplink),
            cases: cases.iter().zip(capacities).map(case).collect(),
            notes: Vec::new(),
        };
        report.notes = report.explain();
        report
    }

    fn explain(&self) -> Vec<String> {
        let sides = |pick: Pick| self.cases.iter().map(pick);
        let ends = |pick: Pick, end: &str| {
            sides(pick).flat_map(|side| &side.ndr_end).filter(|is| *is == end).count()
        };
        let systems: [(&str, Pick); 3] = [
            ("the kernel", |case| &case.kernel),
            ("the kernel with RPS", |case| &case.kernel_rps),
            ("peregrine", |case| &case.peregrine),
        ];
        let searches = self.cases.len() * self.runs;
        let mut notes = vec![
            "Over veth the sender's core does the kernel's share of both ends of the wire, and without RPS of the overlay too.".into(),
        ];
        for (name, pick) in systems {
            let limited = ends(pick, "generator");
            if limited > 0 {
                notes.push(format!(
                    "The wire or the generator, not {name}, was the limit in {limited} of {searches} searches: its loss-free rate may be higher."
                ));
            }
            let unconfirmed = ends(pick, "unconfirmed");
            if unconfirmed > 0 {
                notes.push(format!(
                    "{unconfirmed} of {searches} searches of {name} ran out of time: their loss-free rates come from short trials."
                ));
            }
            if sides(pick).any(|side| side.rtt_us.is_empty()) {
                notes.push(format!(
                    "Round trips through {name} are missing: a quick run has no time for them."
                ));
            }
        }
        notes.push(
            "CPU seconds: what /proc/stat says the two cores were busy while the generator sent as fast as it could, per million packets that arrived; whatever else ran there is in it. A polling worker's core is always busy: busy_share is the part with work, and total_busy counts only that.".into(),
        );
        notes.push(
            "Round trips at 10, 50 and 90 % of what the kernel's overlay answers with at most 0.5 % lost (where no such rate was found, of half of what it answered at best); idle is 1000 a second. A percentile that so few packets do not have is null.".into(),
        );
        if self.quick {
            notes.push("Quick: one run, short trials, 64 bytes with 1 and 100 flows and 1400 bytes with 1: read ratios, not figures.".into());
        }
        notes
    }

    /// Tables.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:>5}{:>6}  {:<12}{:>12}{:>23}{:>12}{:>12}{:>10}{:>8}\n",
            "bytes",
            "flows",
            "system",
            "NDR, pps",
            "lowest–highest",
            "max, pps",
            "CPU s/Mpkt",
            "of work",
            "busy"
        );
        for case in &self.cases {
            for (name, side) in case.sides() {
                let Side { max, ndr, cpu_s_per_mpkt: cpu, .. } = side;
                let spread = format!("{:.0}–{:.0}", ndr.lowest, ndr.highest);
                out += &format!(
                    "{:>5}{:>6}  {name:<12}{:>12.0}{spread:>23}{:>12.0}{:>12.2}{:>10.2}{:>7.0} %\n",
                    case.case.bytes,
                    case.case.flows,
                    ndr.median,
                    max.median,
                    cpu.total,
                    cpu.total_busy,
                    cpu.busy_share * 100.0
                );
            }
            let show = |ratio: Option<f64>| ratio.map_or("–".into(), |ratio| format!("{ratio:.2}×"));
            out += &format!(
                "             peregrine to the kernel: NDR {}, max {}, CPU {}; with RPS: NDR {}, max {}\n",
                show(case.ratio.ndr_pps),
                show(case.ratio.max_pps),
                show(case.ratio.cpu_s_per_mpkt),
                show(case.ratio.ndr_pps_to_rps),
                show(case.ratio.max_pps_to_rps)
            );
        }
        self.round_trips_text(&mut out);
        let Environment { cores_used, cpu, kernel, mode, .. } = &self.environment;
        out += &format!(
            "\nMedian of {} runs in {:.0} s; {cores_used} cores in all systems; {cpu}, Linux {kernel}; AF_XDP: {}.\n",
            self.runs,
            self.seconds,
            mode["actual"].as_str().unwrap_or("unknown")
        );
        self.notes.iter().for_each(|note| out += &format!("{note}\n"));
        out
    }

    fn round_trips_text(&self, out: &mut String) {
        *out += &format!("\n{:>5}{:>6}  {:<12}{:>6}{:>10}", "bytes", "flows", "round trip", "load", "pps");
        for name in ["p50", "p90", "p99", "p99.9", "p99.99", "max, µs"] {
            *out += &format!("{name:>10}");
        }
        *out += &format!("{:>8}\n", "lost");
        for case in &self.cases {
            for (name, side) in case.sides() {
                for (load, at) in LOADS.into_iter().filter_map(|load| Some((load, side.rtt_us.get(load)?))) {
                    *out += &format!(
                        "{:>5}{:>6}  {name:<12}{load:>6}{:>10}",
                        case.case.bytes,
                        case.case.flows,
                        at["pps"].as_u64().unwrap_or(0)
                    );
                    for percentile in PERCENTILES {
                        let cell = at[percentile].as_f64().map_or("–".into(), |us| format!("{us:.1}"));
                        *out += &format!("{cell:>10}");
                    }
                    *out += &format!("{:>8}\n", at["lost"].as_u64().unwrap_or(0));
                }
            }
        }
    }
}

impl CaseReport {
    fn sides(&self) -> BTreeMap<&'static str, &Side> {
        [("kernel", &self.kernel), ("kernel, RPS", &self.kernel_rps), ("peregrine", &self.peregrine)].into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(system: System, scale: f64) -> Measured {
        let round_trips = |load| RoundTrips {
            load,
            pps: 1000,
            sent: 300,
            lost: 1,
            late: 0,
            us: [Some(10.0 / scale), Some(20.0), Some(30.0), None, None, Some(99.0)],
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
                ndr_end: if system == System::Peregrine { "generator" } else { "device" }.into(),
                cpu,
                round_trips: LOADS.map(round_trips).into(),
            },
        }
    }

    fn report() -> Report {
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
        let uplink = json!({"mode_requested": "copy", "mode_actual": "copy", "driver": "veth"});
        let case = [Case { bytes: 64, flows: 1 }];
        Report::new(true, 3, &all, &case, &[5000], &uplink, Duration::from_secs(9))
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
        }
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
    fn who_was_the_limit_is_said() {
        let notes = report().notes.join("\n");
        assert!(notes.contains("not peregrine, was the limit in 3 of 3 searches"), "{notes}");
        assert!(!notes.contains("not the kernel, was the limit"), "{notes}");
        assert!(
            report().text().contains("peregrine to the kernel: NDR 4.00×, max 4.00×"),
            "{}",
            report().text()
        );
    }

    #[test]
    fn what_was_not_measured_is_absent_and_no_zero() {
        let mut all = vec![measured(System::Kernel, 1.0), measured(System::Peregrine, 1.0)];
        all[0].figures.ndr_pps = 0.0;
        all[1].figures.round_trips.clear();
        let case = [Case { bytes: 64, flows: 1 }];
        let report = Report::new(true, 1, &all, &case, &[1], &Value::Null, Duration::ZERO);
        let json: Value = serde_json::from_str(&crate::figures::json(&report)).unwrap();
        assert_eq!(json["cases"][0]["ratio"]["ndr_pps"], Value::Null);
        assert_eq!(json["cases"][0]["ratio"]["rtt_p50_idle"], Value::Null);
        assert_eq!(json["cases"][0]["peregrine"]["rtt_us"], json!({}));
        assert!(
            report.notes.iter().any(|note| note.starts_with("Round trips through peregrine are missing"))
        );
    }
}
