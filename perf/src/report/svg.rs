//! Plots as SVG text. `page.rs` puts them into the page.
//!
//! Positions along the width are percentages and everything else is in pixels, so a plot fits any width and its letters keep their
//! size. Colours are classes of the style sheet; each mark also has a label or a shape of its own. Nothing here
//! writes `NaN` or `inf`: what is not a number is not drawn, and its figure reads `–`.

use std::fmt::Write;

use super::scale::Scale;

/// Three digits, or all those before the point; `–` for what is no number.
pub fn figure(value: f64) -> String {
    if !value.is_finite() {
        return "–".into();
    }
    match value.abs() {
        0.0 => "0".into(),
        tiny if tiny < 0.0005 => format!("{value:.1e}"),
        large if large >= 99.95 => thousands(value),
        middle if middle >= 9.995 => format!("{value:.1}"),
        small if small >= 0.9995 => format!("{value:.2}"),
        _ => format!("{value:.3}"),
    }
}

/// At an axis: as short as it can be, so that neighbours do not lie on one another.
fn tick(value: f64) -> String {
    let short = |value: f64| format!("{}", (value * 1e6).round() / 1e6);
    match value {
        many if many >= 1e15 => thousands(many),
        many if many >= 1e9 => short(many / 1e9) + "G",
        many if many >= 1e6 => short(many / 1e6) + "M",
        many if many >= 1e3 => short(many / 1e3) + "k",
        few => short(few),
    }
}

fn thousands(value: f64) -> String {
    if value.abs() >= 1e15 {
        return format!("{value:.2e}");
    }
    let digits = format!("{:.0}", value.abs());
    let mut out = String::from(if value < 0.0 { "−" } else { "" });
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Text that means itself inside HTML and SVG, in attributes too.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

/// Whose figure it is: a colour and a shape.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Series {
    Peregrine,
    Kernel,
    KernelRps,
    Testpmd,
    Alone,
    Beside,
    Balanced,
    Static,
    Best,
    RunToCompletion,
}

impl Series {
    pub fn name(self) -> &'static str {
        match self {
            Series::Peregrine => "Peregrine",
            Series::Kernel => "kernel",
            Series::KernelRps => "kernel + RPS",
            Series::Testpmd => "testpmd",
            Series::Alone => "alone",
            Series::Beside => "beside",
            Series::Balanced => "balanced",
            Series::Static => "static",
            Series::Best => "best split",
            Series::RunToCompletion => "run-to-completion",
        }
    }

    fn class(self) -> &'static str {
        match self {
            Series::Peregrine | Series::Beside | Series::Balanced => "s1",
            Series::Kernel | Series::Static => "s2",
            Series::KernelRps | Series::Best => "s3",
            Series::Testpmd | Series::Alone | Series::RunToCompletion => "s4",
        }
    }

    /// Around 0, 0.
    fn shape(self) -> &'static str {
        match self {
            Series::Peregrine | Series::Balanced => r#"<circle r="4"/>"#,
            Series::Beside => r#"<circle r="5"/>"#,
            Series::Kernel | Series::Static => r#"<rect x="-4" y="-4" width="8" height="8"/>"#,
            Series::KernelRps | Series::Best => r#"<path d="M0-5L5 4L-5 4Z"/>"#,
            Series::Testpmd | Series::RunToCompletion => r#"<path d="M0-5L5 0L0 5L-5 0Z"/>"#,
            Series::Alone => r#"<circle class="hollow" r="4.5"/>"#,
        }
    }
}

/// A median and what lies around it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Spread {
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
}

impl Spread {
    /// `14.7 Mpps, 12.3–44.0`, or without the second part where there is no spread.
    pub fn text(&self, unit: &str) -> String {
        if !self.median.is_finite() {
            return figure(self.median);
        }
        let median = format!("{} {unit}", figure(self.median));
        if !self.lowest.is_finite() || !self.highest.is_finite() || self.lowest == self.highest {
            return median;
        }
        format!("{median}, {}–{}", figure(self.lowest), figure(self.highest))
    }

    pub fn values(&self) -> [f64; 3] {
        [self.median, self.lowest, self.highest]
    }
}

/// One measured thing, with a line of text above its mark.
#[derive(Clone, Debug)]
pub struct Row {
    pub label: String,
    pub series: Series,
    pub value: Spread,
}

/// How rows are drawn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Mark {
    /// From 0 to the median: for linear scales.
    Bar,
    /// A shape at the median: for logarithmic ones, which have no 0.
    Point,
}

const ROW_PX: usize = 40;
/// Ticks, and below them what the axis is of.
const AXIS_PX: usize = 40;

/// Rows below one another, on one axis. `title` is for those who do not see it.
pub fn rows(rows: &[Row], mark: Mark, scale: &Scale, unit: &str, title: &str) -> String {
    let bottom = rows.len() * ROW_PX + 4;
    let mut out = open("rows", bottom + AXIS_PX, title);
    for tick_value in scale.ticks() {
        let Some(x) = scale.percent(tick_value) else { continue };
        let anchor = anchor(x);
        let text = tick(tick_value);
        let _infallible = write!(
            out,
            r#"<line class="grid" x1="{x:.2}%" y1="0" x2="{x:.2}%" y2="{bottom}"/><text class="tick" x="{x:.2}%" y="{}" text-anchor="{anchor}">{text}</text>"#,
            bottom + 16
        );
    }
    out += &axis_title(&escape(unit), bottom + 34);
    for (index, row) in rows.iter().enumerate() {
        out += &one_row(row, mark, scale, unit, index * ROW_PX);
    }
    out + "</svg>"
}

fn one_row(row: &Row, mark: Mark, scale: &Scale, unit: &str, top: usize) -> String {
    let (class, label) = (row.series.class(), escape(&row.label));
    let value = escape(&row.value.text(unit));
    let (text_y, middle) = (top + 15, top + 28);
    let mut out = format!(
        r#"<text class="label" x="0" y="{text_y}">{label}</text><text class="value" x="100%" y="{text_y}" text-anchor="end">{value}</text>"#
    );
    let Some(x) = scale.percent(row.value.median) else { return out };
    let y = middle - 6;
    out += &match mark {
        Mark::Bar => format!(r#"<rect class="{class}" x="0" y="{y}" width="{x:.2}%" height="12" rx="1"/>"#),
        Mark::Point => format!(r#"<line class="track" x1="0" y1="{middle}" x2="100%" y2="{middle}"/>"#),
    };
    out += &whisker(&row.value, scale, middle);
    if mark == Mark::Point {
        out += &placed(row.series, x, middle);
    }
    out
}

/// From the lowest to the highest, with ends that show over a bar too.
fn whisker(value: &Spread, scale: &Scale, middle: usize) -> String {
    let (Some(low), Some(high)) = (scale.percent(value.lowest), scale.percent(value.highest)) else {
        return String::new();
    };
    if high - low < 0.01 {
        return String::new();
    }
    let (top, bottom) = (middle - 4, middle + 4);
    format!(
        r#"<g class="spread"><line x1="{low:.2}%" y1="{middle}" x2="{high:.2}%" y2="{middle}"/><line x1="{low:.2}%" y1="{top}" x2="{low:.2}%" y2="{bottom}"/><line x1="{high:.2}%" y1="{top}" x2="{high:.2}%" y2="{bottom}"/></g>"#
    )
}

fn placed(series: Series, x: f64, y: impl std::fmt::Display) -> String {
    placed_as(series, "", x, y)
}

/// `more`: further classes.
fn placed_as(series: Series, more: &str, x: f64, y: impl std::fmt::Display) -> String {
    let (class, shape) = (series.class(), series.shape());
    format!(r#"<svg class="mark {class}{more}" x="{x:.2}%" y="{y}">{shape}</svg>"#)
}

/// Below the ticks, in the middle.
fn axis_title(text: &str, y: usize) -> String {
    format!(r#"<text class="axis" x="50%" y="{y}" text-anchor="middle">{text}</text>"#)
}

/// A bar and the mark of a series, for a legend.
pub fn sample(series: Series) -> String {
    let (class, mark) = (series.class(), placed(series, 50.0, 7));
    format!(
        r#"<svg class="plot sample" aria-hidden="true" width="26" height="14"><line class="curve {class}" x1="0" y1="7" x2="26" y2="7"/>{mark}</svg>"#
    )
}

fn anchor(x: f64) -> &'static str {
    match x {
        x if x < 1.0 => "start",
        x if x > 99.0 => "end",
        _ => "middle",
    }
}

fn open(class: &str, height: usize, title: &str) -> String {
    let title = escape(title);
    format!(r#"<svg class="plot {class}" role="img" aria-label="{title}" width="100%" height="{height}">"#)
}

/// The percentiles that latency is plotted at: text, and quantile.
pub const PERCENTILES: [(&str, f64); 5] =
    [("50 %", 0.5), ("90 %", 0.9), ("99 %", 0.99), ("99.9 %", 0.999), ("99.99 %", 0.9999)];

/// Latencies of one system, at [`PERCENTILES`].
#[derive(Clone, Debug)]
pub struct Curve {
    pub series: Series,
    pub points: [Spread; 5],
    /// The first so many are the system's own; in the others the generator's delay is what shows.
    pub sound: usize,
}

const CURVES_PX: usize = 200;

/// Percent of the width, where each further 9 takes as much room as the one before: log10 of 1/(1 − q).
fn percentile_x(quantile: f64) -> f64 {
    let nines = |quantile: f64| -(1.0 - quantile).log10();
    let (first, last) = (nines(0.5), nines(0.9999));
    100.0 * (nines(quantile) - first) / (last - first)
}

/// Latency in microseconds by percentile, both axes logarithmic.
pub fn curves(curves: &[Curve], scale: &Scale, title: &str) -> String {
    let mut out = open("curves", CURVES_PX + AXIS_PX, title);
    let y = |value: f64| scale.percent(value).map(|percent| CURVES_PX as f64 * (1.0 - percent / 100.0));
    for tick_value in scale.ticks() {
        let Some(y) = y(tick_value) else { continue };
        let text = tick(tick_value);
        let _infallible = write!(
            out,
            r#"<line class="grid" x1="0" y1="{y:.1}" x2="100%" y2="{y:.1}"/><text class="tick" x="-8" y="{:.1}" text-anchor="end">{text}</text>"#,
            y + 4.0
        );
    }
    out += r#"<text class="axis" x="-8" y="-10" text-anchor="end">µs</text>"#;
    out += &axis_title("percentile of the round trips", CURVES_PX + 34);
    for (text, quantile) in PERCENTILES {
        let x = percentile_x(quantile);
        let _infallible = write!(
            out,
            r#"<text class="tick" x="{x:.2}%" y="{}" text-anchor="middle">{text}</text>"#,
            CURVES_PX + 18
        );
    }
    for curve in curves {
        out += &one_curve(curve, y);
    }
    out + &end_labels(curves, y) + "</svg>"
}

fn one_curve(curve: &Curve, y: impl Fn(f64) -> Option<f64>) -> String {
    let class = curve.series.class();
    let (mut lines, mut marks) = (String::new(), String::new());
    let mut before: Option<(f64, f64)> = None;
    for (at, (spread, (_, quantile))) in curve.points.iter().zip(PERCENTILES).enumerate() {
        let doubtful = if at < curve.sound { "" } else { " doubtful" };
        let x = percentile_x(quantile);
        let here = y(spread.median).map(|y| (x, y));
        if let (Some((x1, y1)), Some((x2, y2))) = (before, here) {
            let _infallible = write!(
                lines,
                r#"<line class="curve {class}{doubtful}" x1="{x1:.2}%" y1="{y1:.1}" x2="{x2:.2}%" y2="{y2:.1}"/>"#
            );
        }
        if let (Some(low), Some(high)) = (y(spread.lowest), y(spread.highest))
            && low - high > 0.5
        {
            let _infallible = write!(
                lines,
                r#"<line class="range {class}" x1="{x:.2}%" y1="{low:.1}" x2="{x:.2}%" y2="{high:.1}"/>"#
            );
        }
        if let Some((x, y)) = here {
            marks += &placed_as(curve.series, doubtful, x, format!("{y:.1}"));
        }
        before = here;
    }
    lines + &marks
}

/// The names, right of the last points, pushed apart where they would lie on one another.
fn end_labels(curves: &[Curve], y: impl Fn(f64) -> Option<f64>) -> String {
    const APART_PX: f64 = 15.0;
    let last = |curve: &Curve| curve.points.iter().rev().find_map(|point| y(point.median));
    let mut ends: Vec<(f64, Series)> =
        curves.iter().filter_map(|curve| Some((last(curve)?, curve.series))).collect();
    ends.sort_by(|one, other| one.0.total_cmp(&other.0));
    let (mut out, mut free) = (String::new(), f64::NEG_INFINITY);
    for (wanted, series) in ends {
        let place = wanted.max(free);
        free = place + APART_PX;
        let (class, name) = (series.class(), series.name());
        let _infallible =
            write!(out, r#"<text class="end {class}" x="100%" dx="10" y="{:.1}">{name}</text>"#, place + 4.0);
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spread(median: f64, lowest: f64, highest: f64) -> Spread {
        Spread { median, lowest, highest }
    }

    fn row(value: Spread) -> Row {
        Row { label: "Peregrine".into(), series: Series::Peregrine, value }
    }

    #[test]
    fn each_further_nine_takes_the_same_room() {
        let places = PERCENTILES.map(|(_, quantile)| percentile_x(quantile));
        assert_eq!(places[0], 0.0);
        assert!((places[4] - 100.0).abs() < 1e-9);
        let nine = 100.0 / (4.0 - 2f64.log10());
        for (index, place) in places.iter().enumerate().skip(1) {
            assert!((place - nine * (index as f64 - 2f64.log10())).abs() < 1e-6, "{places:?}");
        }
    }

    #[test]
    fn figures_have_three_digits() {
        let texts = [0.0, 0.0004, 0.0123, 0.9999, 9.99, 9.996, 99.96, 1234.5, 1_234_567.0, -1234.0, 2e20];
        assert_eq!(
            texts.map(figure),
            [
                "0",
                "4.0e-4",
                "0.012",
                "1.00",
                "9.99",
                "10.0",
                "100",
                "1,234",
                "1,234,567",
                "−1,234",
                "2.00e20"
            ]
        );
        assert_eq!([f64::NAN, f64::INFINITY, f64::NEG_INFINITY].map(figure), ["–", "–", "–"]);
        assert_eq!(
            [0.0, 0.6000000000000001, 2.5, 10.0, 2000.0, 20_000.0, 1.5e8, 2e9].map(tick),
            ["0", "0.6", "2.5", "10", "2k", "20k", "150M", "2G"]
        );
    }

    #[test]
    fn a_bar_has_its_label_its_value_and_its_spread() {
        let svg =
            rows(&[row(spread(10.0, 5.0, 15.0))], Mark::Bar, &Scale::linear([20.0]), "Mpps", "64 bytes");
        assert!(svg.starts_with(
            r#"<svg class="plot rows" role="img" aria-label="64 bytes" width="100%" height="84"><line class="grid" x1="0.00%""#
        ));
        assert!(svg.contains(concat!(
            r#"<text class="label" x="0" y="15">Peregrine</text>"#,
            r#"<text class="value" x="100%" y="15" text-anchor="end">10.0 Mpps, 5.00–15.0</text>"#,
            r#"<rect class="s1" x="0" y="22" width="50.00%" height="12" rx="1"/>"#,
            r#"<g class="spread"><line x1="25.00%" y1="28" x2="75.00%" y2="28"/>"#,
            r#"<line x1="25.00%" y1="24" x2="25.00%" y2="32"/><line x1="75.00%" y1="24" x2="75.00%" y2="32"/></g></svg>"#,
        )));
        assert!(
            svg.contains(r#"<text class="tick" x="100.00%" y="60" text-anchor="end">20</text>"#),
            "{svg}"
        );
    }

    #[test]
    fn a_curve_goes_through_its_points_and_names_lie_apart() {
        let flat = |series, value| Curve { series, points: [spread(value, value, value); 5], sound: 5 };
        let svg = curves(
            &[flat(Series::Kernel, 100.0), flat(Series::Peregrine, 100.0)],
            &Scale::log([10.0, 1000.0]),
            "latency",
        );
        assert!(
            svg.contains(r#"<line class="curve s2" x1="0.00%" y1="100.0" x2="18.90%" y2="100.0"/>"#),
            "{svg}"
        );
        assert!(svg.contains(r#"<svg class="mark s1" x="100.00%" y="100.0"><circle r="4"/></svg>"#));
        assert!(svg.contains(r#"<text class="end s2" x="100%" dx="10" y="104.0">kernel</text>"#));
        assert!(svg.contains(r#"<text class="end s1" x="100%" dx="10" y="119.0">Peregrine</text>"#));
    }

    #[test]
    fn what_is_no_number_is_not_drawn() {
        let odd = [
            0.0,
            -0.0,
            -1.0,
            f64::NAN,
            f64::INFINITY,
            f64::NEG_INFINITY,
            f64::MAX,
            f64::MIN_POSITIVE,
            5e-324,
        ];
        let mut drawn = String::new();
        for median in odd {
            for highest in odd {
                let value = spread(median, median, highest);
                for scale in [Scale::linear(value.values()), Scale::log(value.values()), Scale::linear([])] {
                    drawn += &rows(&[row(value)], Mark::Bar, &scale, "Mpps", "t");
                    drawn += &rows(&[row(value)], Mark::Point, &scale, "Mpps", "t");
                    let points = [value, spread(1.0, 1.0, 1.0), value, value, spread(2.0, median, highest)];
                    drawn += &curves(&[Curve { series: Series::Kernel, points, sound: 2 }], &scale, "t");
                }
            }
        }
        drawn += &rows(&[], Mark::Bar, &Scale::linear([]), "Mpps", "t");
        drawn += &curves(&[], &Scale::log([]), "t");
        assert!(!drawn.contains("NaN") && !drawn.contains("inf"), "{drawn:.2000}");
    }

    #[test]
    fn text_cannot_become_markup() {
        let mut evil = row(spread(1.0, 1.0, 1.0));
        evil.label = "</text><script>alert('1')</script>\"&".into();
        let svg = rows(&[evil], Mark::Bar, &Scale::linear([1.0]), "M<pps", "\" onload=\"x");
        assert!(!svg.contains("<script") && !svg.contains("M<pps") && !svg.contains("\" onload"), "{svg}");
        assert!(svg.contains("&lt;/text&gt;&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&quot;&amp;"));
    }
}
