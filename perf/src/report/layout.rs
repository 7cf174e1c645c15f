//! What the sections of the page are made of: plots in rows, with a legend, and the same figures as a table. `page.rs` and
//! the sections call it.

use super::scale::Scale;
use super::svg::{Curve, Mark, PERCENTILES, Row, Series, Spread, curves, escape, figure, rows, sample};

/// What stands under one heading of a row of plots.
pub struct Group {
    pub title: String,
    pub small: String,
    pub rows: Vec<Row>,
}

/// Round trips at one load.
pub struct Load {
    pub title: String,
    /// In a table.
    pub short: String,
    pub small: String,
    pub curves: Vec<Curve>,
    /// Beside each curve, for the table: the maximum, how many answers there were, and what disturbed them.
    pub beside: Vec<[String; 4]>,
}

/// Heads of [`Load::beside`].
const BESIDE: [&str; 4] = ["max", "answers", "late, %", "stolen, ms"];

pub fn row(series: Series, value: Spread) -> Row {
    Row { label: series.name().into(), series, value }
}

pub fn spread(median: f64, lowest: f64, highest: f64) -> Spread {
    Spread { median, lowest, highest }
}

/// `whole` divided by each: the fastest run is the cheapest.
pub fn inverse(whole: f64, rate: Spread) -> Spread {
    Spread { median: whole / rate.median, lowest: whole / rate.highest, highest: whole / rate.lowest }
}

/// Title and words are this program's own, and HTML.
pub fn section(title: &str, words: &str) -> String {
    format!("<h2>{title}</h2>\n<p>{words}</p>\n")
}

/// Of items that are HTML already.
pub fn list(items: &[String]) -> String {
    let items: Vec<String> = items.iter().map(|item| format!("<li>{item}</li>\n")).collect();
    format!("<ul>\n{}</ul>\n", items.concat())
}

/// Whose colour and shape is which.
pub fn legend(all: &[Series], more: &str) -> String {
    let of = |series: &Series| format!("<span>{}{}</span>\n", sample(*series), series.name());
    let all: Vec<String> = all.iter().map(of).collect();
    let more = if more.is_empty() { String::new() } else { format!("<span>{more}</span>\n") };
    format!("<p class=\"legend\">\n{}{more}</p>\n", all.concat())
}

/// Bars from 0, all on one scale.
pub fn bars(groups: &[Group], unit: &str) -> String {
    plots(groups, Mark::Bar, &Scale::linear(values(groups)), unit)
}

/// Points on one logarithmic scale.
pub fn points(groups: &[Group], unit: &str) -> String {
    plots(groups, Mark::Point, &Scale::log(values(groups)), unit)
}

fn values(groups: &[Group]) -> impl Iterator<Item = f64> + '_ {
    groups.iter().flat_map(|group| &group.rows).flat_map(|row| row.value.values())
}

fn plots(groups: &[Group], mark: Mark, scale: &Scale, unit: &str) -> String {
    let figures: Vec<String> = groups
        .iter()
        .map(|group| {
            let title = format!("{}, {unit}", group.title);
            caption(&group.title, &group.small)
                + &rows(&group.rows, mark, scale, unit, &title)
                + "</figure>\n"
        })
        .collect();
    format!("<div class=\"plots\">\n{}</div>\n", figures.concat())
}

fn caption(title: &str, small: &str) -> String {
    format!("<figure><figcaption>{} <small>{}</small></figcaption>\n", escape(title), escape(small))
}

/// One plot a load, all on one scale.
pub fn latency_plots(loads: &[Load]) -> String {
    let curves_of = loads.iter().flat_map(|load| &load.curves);
    let scale = Scale::log(curves_of.flat_map(|curve| curve.points).flat_map(|point| point.values()));
    let figures: Vec<String> = loads
        .iter()
        .map(|load| {
            let title = format!("round trip in µs by percentile, {}", load.title);
            caption(&load.title, &load.small) + &curves(&load.curves, &scale, &title) + "</figure>\n"
        })
        .collect();
    format!("<div class=\"plots wide\">\n{}</div>\n", figures.concat())
}

/// The figures of the plots above, for those who want them exactly.
pub fn table_of(parts: &[(&str, &[Group])]) -> String {
    let cells = |unit: &str, group: &Group, row: &Row| {
        let numbers: Vec<String> = [row.value.median, row.value.lowest, row.value.highest]
            .iter()
            .map(|value| format!("<td class=\"n\">{}</td>", figure(*value)))
            .collect();
        format!(
            "<tr><td>{}</td><td>{}</td><td>{}</td>{}<td>{}</td></tr>\n",
            escape(unit),
            escape(&group.title),
            escape(&row.label),
            numbers.concat(),
            escape(&group.small)
        )
    };
    let all: Vec<String> = parts
        .iter()
        .flat_map(|(unit, groups)| groups.iter().map(move |group| (unit, group)))
        .flat_map(|(unit, group)| group.rows.iter().map(move |row| cells(unit, group, row)))
        .collect();
    details("The numbers", &["of", "case", "who", "median", "lowest", "highest", ""], &all.concat(), false)
}

/// Lines of text under heads that are this program's own; all but the first column are figures.
pub fn table(head: &[&str], lines: &[Vec<String>]) -> String {
    let class = |nth: usize| if nth == 0 { "" } else { " class=\"n\"" };
    let head: Vec<String> =
        head.iter().enumerate().map(|(nth, name)| format!("<th{}>{name}</th>", class(nth))).collect();
    let line = |line: &Vec<String>| {
        let cells = line.iter().enumerate();
        let cells: Vec<String> =
            cells.map(|(nth, text)| format!("<td{}>{}</td>", class(nth), escape(text))).collect();
        format!("<tr>{}</tr>\n", cells.concat())
    };
    let lines: Vec<String> = lines.iter().map(line).collect();
    format!("<div class=\"scroll\"><table>\n<tr>{}</tr>\n{}</table></div>\n", head.concat(), lines.concat())
}

/// The lowest and highest stand below the median.
fn with_range(point: &Spread) -> String {
    let Spread { median, lowest, highest } = *point;
    if !lowest.is_finite() || !highest.is_finite() || lowest == highest {
        return format!("<td class=\"n\">{}</td>", figure(median));
    }
    let (median, lowest, highest) = (figure(median), figure(lowest), figure(highest));
    format!("<td class=\"n\">{median}<br><small>{lowest}–{highest}</small></td>")
}

/// In microseconds: one row a curve, one column a percentile; shown at once if `open`.
pub fn latency_table(loads: &[Load], open: bool) -> String {
    let number = |text: &str| format!("<td class=\"n\">{}</td>", escape(text));
    let line = |load: &Load, curve: &Curve, beside: &[String; 4]| {
        let points: Vec<String> = curve.points.iter().map(with_range).collect();
        let beside: Vec<String> = beside.iter().map(|text| number(text)).collect();
        let (title, who) = (escape(&load.short), curve.series.name());
        format!("<tr><td>{title}</td><td>{who}</td>{}{}</tr>\n", points.concat(), beside.concat())
    };
    let of = |load: &Load| -> String {
        load.curves.iter().zip(&load.beside).map(|(curve, beside)| line(load, curve, beside)).collect()
    };
    let head: Vec<&str> =
        ["load", "who"].into_iter().chain(PERCENTILES.map(|(name, _)| name)).chain(BESIDE).collect();
    details("The numbers, in µs", &head, &loads.iter().map(of).collect::<String>(), open)
}

fn details(summary: &str, head: &[&str], body: &str, open: bool) -> String {
    let open = if open { " open" } else { "" };
    let number = |name: &str| {
        matches!(name, "median" | "lowest" | "highest") || name.ends_with('%') || BESIDE.contains(&name)
    };
    let head: Vec<String> = head
        .iter()
        .map(|name| format!("<th{}>{name}</th>", if number(name) { " class=\"n\"" } else { "" }))
        .collect();
    format!(
        "<details{open}><summary>{summary}</summary><div class=\"scroll\"><table>\n<tr>{}</tr>\n{body}</table></div></details>\n",
        head.concat()
    )
}
