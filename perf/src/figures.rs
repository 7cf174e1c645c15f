//! What several runs say together, and how results are written: used by all cases.

use serde::de::Error;
use serde::{Deserialize, Deserializer, Serialize};

/// Lowest, median and highest; the upper one of two in the middle. `None` of nothing.
pub fn spread(mut values: Vec<f64>) -> Option<[f64; 3]> {
    values.sort_by(f64::total_cmp);
    Some([*values.first()?, *values.get(values.len() / 2)?, *values.last()?])
}

/// The one in the middle; 0 of nothing.
pub fn median(values: Vec<f64>) -> f64 {
    spread(values).map_or(0.0, |[_, median, _]| median)
}

/// A report as one JSON object on a line.
pub fn json(report: &impl Serialize) -> String {
    format!("{}\n", serde_json::json!(report))
}

/// A part of a whole: 0 to 1. What was written otherwise is no result of ours.
pub fn share<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    let share = f64::deserialize(from)?;
    let refused = || D::Error::custom(format!("a share of {share}: it is from 0 to 1"));
    (0.0..=1.0).contains(&share).then_some(share).ok_or_else(refused)
}

/// JSON has no numbers without a value, as a rate of 0 makes of what is divided by it: it is written as `null`.
pub fn null_as_nan<'de, D: Deserializer<'de>>(from: D) -> Result<f64, D::Error> {
    Ok(Option::<f64>::deserialize(from)?.unwrap_or(f64::NAN))
}
