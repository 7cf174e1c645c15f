//! What `peregrine-perf kernel --json` says, as the page needs it. Figures are looked up by name, as a number or as an
//! object with `median`, `lowest` and `highest`: what a result does not have is not drawn.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::svg::Spread;

/// All cases.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cases: Vec<Case>,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// One packet size and number of flows.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Case {
    pub bytes: u64,
    pub flows: u64,
    pub kernel: System,
    pub kernel_rps: Option<System>,
    pub peregrine: Option<System>,
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

/// What one system did.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(transparent)]
pub struct System(pub Map<String, Value>);

/// Latencies at one load.
#[derive(Clone, Debug, PartialEq)]
pub struct Latency {
    pub load: String,
    pub points: [Spread; 5],
}

impl System {
    /// A figure with its spread, if it has one.
    pub fn spread(&self, name: &str) -> Option<Spread> {
        spread(&self.0, name)
    }

    /// One per load; one without a name if the percentiles stand there directly.
    pub fn latencies(&self) -> Vec<Latency> {
        let Some(Value::Object(all)) = self.0.get("rtt_us") else { return Vec::new() };
        if let Some(points) = points(all) {
            return vec![Latency { load: String::new(), points }];
        }
        let of = |(load, value): (&String, &Value)| {
            let points = points(value.as_object()?)?;
            Some(Latency { load: load.replace('_', " "), points })
        };
        all.iter().filter_map(of).collect()
    }
}

/// The median alone makes a spread without width.
fn spread(all: &Map<String, Value>, name: &str) -> Option<Spread> {
    match all.get(name)? {
        Value::Object(parts) => {
            let part = |name: &str| parts.get(name).and_then(Value::as_f64);
            let median = part("median")?;
            Some(Spread {
                median,
                lowest: part("lowest").unwrap_or(median),
                highest: part("highest").unwrap_or(median),
            })
        }
        number => {
            let median = number.as_f64()?;
            let beside =
                |end: &str| all.get(&format!("{name}_{end}")).and_then(Value::as_f64).unwrap_or(median);
            Some(Spread { median, lowest: beside("lowest"), highest: beside("highest") })
        }
    }
}

/// `None` if it has none of the percentiles.
fn points(all: &Map<String, Value>) -> Option<[Spread; 5]> {
    let found = ["p50", "p90", "p99", "p999", "p9999"].map(|name| spread(all, name));
    let nothing = Spread { median: f64::NAN, lowest: f64::NAN, highest: f64::NAN };
    found.iter().any(Option::is_some).then(|| found.map(|point| point.unwrap_or(nothing)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn system(text: &str) -> System {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn figures_may_have_a_spread() {
        let system = system(
            r#"{"max_pps": 5, "ndr_pps": {"median": 4, "lowest": 3, "highest": 6},
                "cpu": 1.5, "cpu_lowest": 1, "cpu_highest": 2, "none": null}"#,
        );
        assert_eq!(system.spread("max_pps"), Some(Spread { median: 5.0, lowest: 5.0, highest: 5.0 }));
        assert_eq!(system.spread("ndr_pps"), Some(Spread { median: 4.0, lowest: 3.0, highest: 6.0 }));
        assert_eq!(system.spread("cpu"), Some(Spread { median: 1.5, lowest: 1.0, highest: 2.0 }));
        assert_eq!((system.spread("none"), system.spread("absent")), (None, None));
    }

    #[test]
    fn latencies_are_of_one_load_or_of_several() {
        let one = system(r#"{"rtt_us": {"p50": 1, "p90": 2, "p99": 3, "p999": 4, "p9999": 5}}"#).latencies();
        assert_eq!(one.len(), 1);
        assert_eq!(one[0].points.map(|point| point.median), [1.0, 2.0, 3.0, 4.0, 5.0]);
        let several = system(r#"{"rtt_us": {"idle": {"p50": 1}, "at_10": {"p50": 2, "p90": 3}, "runs": 5}}"#)
            .latencies();
        assert_eq!(
            several.iter().map(|latency| latency.load.as_str()).collect::<Vec<_>>(),
            ["at 10", "idle"]
        );
        assert!(several[0].points[2].median.is_nan());
        assert!(system(r#"{"rtt_us": 5}"#).latencies().is_empty());
    }
}
