//! Where values lie on an axis, and which of them are written at it. `svg.rs` draws with it.

/// An axis.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scale {
    /// From 0.
    Linear { step: f64, steps: u32 },
    /// Both are 1, 2 or 5 times a power of ten.
    Log { low: f64, high: f64 },
}

/// No axis goes further: what lies beyond stands at its end.
const LEAST: f64 = 1e-9;
const MOST: f64 = 1e15;

impl Scale {
    /// From 0 to at least the greatest of the values, in at most five round steps.
    pub fn linear(values: impl IntoIterator<Item = f64>) -> Scale {
        let most = values.into_iter().filter(|value| value.is_finite()).fold(0.0, f64::max).min(MOST);
        if most < LEAST {
            return Scale::Linear { step: 1.0, steps: 1 };
        }
        let step = round_up(most / 5.0);
        Scale::Linear { step, steps: (most / step - 1e-9).ceil().clamp(1.0, 5.0) as u32 }
    }

    /// Round values around all that can lie on such an axis: those above 0.
    pub fn log(values: impl IntoIterator<Item = f64>) -> Scale {
        let usable = values.into_iter().filter(|value| value.is_finite() && *value > 0.0);
        let usable = usable.map(|value| value.clamp(LEAST, MOST));
        let (least, most) = usable.fold((f64::INFINITY, 0.0), |(least, most), value| {
            (f64::min(least, value), f64::max(most, value))
        });
        if most == 0.0 {
            return Scale::Log { low: 1.0, high: 10.0 };
        }
        let (low, high) = (round_down(least), round_up(most));
        Scale::Log { low, high: if high > low { high } else { round_up(low * 1.5) } }
    }

    /// Percent of the axis; `None` for what has no place on it.
    pub fn percent(&self, value: f64) -> Option<f64> {
        let part = match *self {
            Scale::Linear { step, steps } => value / (step * f64::from(steps)),
            Scale::Log { low, high } => (value / low).log10() / (high / low).log10(),
        };
        part.is_finite().then(|| 100.0 * part.clamp(0.0, 1.0))
    }

    /// The values to write at the axis: 1, 2 and 5 of each power of ten, or where these are many only the powers.
    pub fn ticks(&self) -> Vec<f64> {
        match *self {
            Scale::Linear { step, steps } => (0..=steps).map(|index| f64::from(index) * step).collect(),
            Scale::Log { low, high } => {
                let every = if high / low > 200.0 { &[1.0][..] } else { &[1.0, 2.0, 5.0] };
                let powers = low.log10().floor() as i32..=high.log10().ceil() as i32;
                let all = powers.flat_map(|power| every.iter().map(move |digit| digit * 10f64.powi(power)));
                all.filter(|tick| *tick > low * 0.999 && *tick < high * 1.001).collect()
            }
        }
    }
}

/// The next of 1, 2, 5 times a power of ten, for a value above 0.
fn round_up(value: f64) -> f64 {
    let power = 10f64.powf(value.log10().floor());
    [1.0, 2.0, 5.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|round| *round >= value * 0.999_999)
        .unwrap_or(10.0 * power)
}

fn round_down(value: f64) -> f64 {
    let power = 10f64.powf((value.log10() + 1e-9).floor());
    [5.0, 2.0]
        .map(|digit| digit * power)
        .into_iter()
        .find(|round| *round <= value * 1.000_001)
        .unwrap_or(power)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_axis_begins_at_0_and_ends_at_a_round_value_beyond_the_greatest() {
        let axis = |most: f64| Scale::linear([0.1, most]).ticks();
        assert_eq!(axis(44.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(axis(50.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0]);
        assert_eq!(axis(0.9), [0.0, 0.2, 0.4, 0.6000000000000001, 0.8, 1.0]);
        assert_eq!(axis(5.1), [0.0, 2.0, 4.0, 6.0]);
        assert_eq!(axis(1e9), [0.0, 2e8, 4e8, 6e8, 8e8, 1e9]);
        let scale = Scale::linear([44.0]);
        assert_eq!(scale.percent(0.0), Some(0.0));
        assert_eq!(scale.percent(25.0), Some(50.0));
        assert_eq!(scale.percent(1e300), Some(100.0));
        assert_eq!(scale.percent(-1.0), Some(0.0));
    }

    #[test]
    fn a_logarithmic_axis_lies_between_1_2_and_5_times_powers_of_ten() {
        assert_eq!(Scale::log([340.0, 2894.0]), Scale::Log { low: 200.0, high: 5000.0 });
        assert_eq!(Scale::log([340.0, 2894.0]).ticks(), [200.0, 500.0, 1000.0, 2000.0, 5000.0]);
        assert_eq!(Scale::log([10.0, 1000.0]), Scale::Log { low: 10.0, high: 1000.0 });
        assert_eq!(Scale::log([11.1, 8953.0]).ticks(), [10.0, 100.0, 1000.0, 10000.0]);
        assert_eq!(Scale::log([10.0]), Scale::Log { low: 10.0, high: 20.0 });
        let scale = Scale::log([10.0, 1000.0]);
        assert_eq!(scale.percent(100.0), Some(50.0));
        assert_eq!(scale.percent(1.0), Some(0.0));
        assert_eq!(scale.percent(0.0), None);
        assert_eq!(scale.percent(-5.0), None);
    }
}
