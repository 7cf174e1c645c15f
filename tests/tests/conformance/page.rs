//! The table of `docs/conformance.md`, and the tests that concern all groups.

use std::fmt::Write;
use std::path::PathBuf;

use crate::GROUPS;
use crate::bench::Not;
use crate::suite::{Column, Word};
use crate::sut::{linux, ovs, peregrine};

/// Set by `make conformance`: the page is written instead of compared.
const WRITE: &str = "CONFORMANCE_WRITE";

/// A cell that says nothing.
const NOT_TRIED: &str = "not tried";
const NAMES: [&str; 3] = ["Peregrine", "Linux", "Open vSwitch"];
/// Columns of a table of cases, and which is ours in a row that is split at its bars.
const COLUMNS: usize = 6;
const OURS: usize = 4;
const NOTES: &str = "\n## Notes\n\n";

fn file() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/conformance.md"))
}

/// A cell, and its note if there is more to say.
fn cell(outcome: &Result<(), Not>, notes: &mut Vec<String>) -> String {
    let (mark, why) = match outcome {
        Ok(()) => return "yes".into(),
        Err(Not::Fail(why)) => ("**no**", why),
        Err(Not::Absent(why)) => ("–", why),
        Err(Not::Untried(why)) => (NOT_TRIED, why),
    };
    let at = notes.iter().position(|note| note == why).unwrap_or_else(|| {
        notes.push(why.clone());
        notes.len() - 1
    });
    format!("{mark} [{}]", at + 1)
}

fn word(word: Word) -> &'static str {
    match word {
        Word::Must => "must",
        Word::Should => "should",
        Word::May => "may",
        Word::Option => "option",
    }
}

/// Frames that tshark saw.
fn captured(column: usize) -> usize {
    GROUPS.iter().map(|group| group.results()[column].captured).sum()
}

/// What is said over all groups, as one outcome.
fn over_all(pick: impl Fn(&Column) -> &Vec<String>, column: usize) -> Result<(), Not> {
    if captured(column) == 0 {
        return Err(Not::Untried("it sent nothing".into()));
    }
    let all: Vec<&String> = GROUPS.iter().flat_map(|group| pick(&group.results()[column])).collect();
    match all.first() {
        None => Ok(()),
        Some(first) => {
            Err(Not::Fail(format!("{} findings, the first: {}", all.len(), first.replace('\t', " "))))
        }
    }
}

fn heading() -> String {
    let ovs = ovs::version().map_or("not installed".into(), |version| format!("Open vSwitch {version}"));
    format!("| Section | What | Asked | Peregrine | Linux {} | {ovs} |\n", linux::version())
}

/// The page as of now.
fn page() -> String {
    let mut notes = Vec::new();
    let mut body = String::new();
    let mut passed = [[0usize; 4]; 3];
    for group in GROUPS {
        let results = group.results();
        let _ = write!(body, "\n## {}\n\n{}|---|---|---|---|---|---|\n", group.title, heading());
        for (at, case) in group.cases.iter().enumerate() {
            let cells = results.each_ref().map(|column| {
                let outcome = &column.outcomes[at];
                cell(outcome, &mut notes)
            });
            for (column, sums) in results.iter().zip(&mut passed) {
                sums[match &column.outcomes[at] {
                    Ok(()) => 0,
                    Err(Not::Fail(_)) => 1,
                    Err(Not::Absent(_)) => 2,
                    Err(Not::Untried(_)) => 3,
                }] += 1;
            }
            let [ours, linux, ovs] = cells;
            let _ = writeln!(
                body,
                "| {} | {} | {} | {ours} | {linux} | {ovs} |",
                case.section,
                case.says,
                word(case.word)
            );
        }
    }
    let _ = write!(body, "\n## Over all cases\n\n{}|---|---|---|---|---|---|\n", heading());
    for (says, asked, cells) in [
        (
            "tshark finds nothing malformed, no wrong checksum and no warning in what was sent",
            "must",
            [0, 1, 2].map(|column| cell(&over_all(|c| &c.tshark, column), &mut notes)),
        ),
        (
            "in = out + drops, each drop with a reason",
            "option",
            [cell(&over_all(|c| &c.account, 0), &mut notes), "– ".into(), "– ".into()],
        ),
    ] {
        let [ours, linux, ovs] = cells.map(|cell| cell.trim().to_string());
        let _ = writeln!(body, "| | {says} | {asked} | {ours} | {linux} | {ovs} |");
    }
    let mut sums = String::from(
        "\n| | passed | not passed | has nothing of the kind | not tried |\n|---|---|---|---|---|\n",
    );
    for (name, [yes, no, absent, untried]) in NAMES.iter().zip(passed) {
        let _ = writeln!(sums, "| {name} | {yes} | {no} | {absent} | {untried} |");
    }
    let mut text = format!("{}{sums}{body}{NOTES}", include_str!("page_head.md"));
    for (number, note) in notes.iter().enumerate() {
        let _ = writeln!(text, "{}. {note}", number + 1);
    }
    if !crate::known::KNOWN.is_empty() {
        text += "\n## Known failures of Peregrine\n\n";
        for (name, why) in crate::known::KNOWN {
            let mut cases = GROUPS.iter().flat_map(|group| group.cases);
            let case = cases.find(|case| case.name == *name).expect("a case of that name");
            let _ = writeln!(text, "- {}, {} (`{name}`): {why}.", case.section, case.says);
        }
    }
    text += &format!("\n{}", include_str!("page_foot.md"));
    text.replace("@PEREGRINE@", &peregrine::version())
}

/// All but the sums, with the notes of ours in their places, and without the cells of the others: what they do is theirs, and another release, or a
/// slow machine, may do otherwise.
fn stands(text: &str) -> Vec<String> {
    let (before, after) = text.split_once(NOTES).unwrap_or((text, ""));
    let is_note = |line: &&str| !line.starts_with('#');
    let notes: Vec<&str> = after.lines().take_while(is_note).filter_map(note).collect();
    let rest = after.lines().skip_while(is_note);
    let is_sum = |line: &&str| NAMES.iter().any(|name| line.starts_with(&format!("| {name} |")));
    let lines = before.lines().filter(|line| !is_sum(line)).map(|line| row(line, &notes));
    lines.chain(rest.map(str::to_string)).collect()
}

/// The text of a numbered note.
fn note(line: &str) -> Option<&str> {
    line.split_once(". ").map(|(_, text)| text)
}

/// A row of a table up to our cell, with our note instead of its number, which counts over all columns.
fn row(line: &str, notes: &[&str]) -> String {
    let cells: Vec<&str> = line.split('|').map(str::trim).collect();
    if cells.len() != COLUMNS + 2 {
        return line.to_string();
    }
    let cell = |(at, cell): (usize, &&str)| {
        let (mark, number) = cell.split_once(" [").unwrap_or((cell, ""));
        let number: Option<usize> = number.trim_end_matches(']').parse().ok();
        let note = number.filter(|_| at == OURS).and_then(|number| notes.get(number - 1).copied());
        format!("{mark} {}", note.unwrap_or_default()).trim_end().to_string()
    };
    cells.iter().enumerate().take(OURS + 1).map(cell).collect::<Vec<_>>().join("|")
}

/// The first line in which the page that is written differs from the one that would be. A cell of which either says that it was not tried counts for
/// nothing: they may be of different machines.
fn difference(written: &str, now: &str) -> Option<String> {
    let (written, now) = (stands(written), stands(now));
    let is_same = |a: &str, b: &str| {
        let (a, b): (Vec<&str>, Vec<&str>) = (a.split('|').collect(), b.split('|').collect());
        let is_same =
            |(a, b): (&&str, &&str)| a == b || [a, b].iter().any(|cell| cell.starts_with(NOT_TRIED));
        a.len() == b.len() && a.iter().zip(&b).all(is_same)
    };
    let at = |lines: &[String], place: usize| lines.get(place).cloned().unwrap_or_default();
    let mut lines = (0..written.len().max(now.len())).map(|place| (at(&written, place), at(&now, place)));
    let (written, now) = lines.find(|(written, now)| !is_same(written, now))?;
    Some(format!("\nwritten: {written}\nnow:     {now}"))
}

#[test]
#[ignore = "needs root: make test runs it"]
fn page_is_what_the_suite_finds_now() {
    let now = page();
    if std::env::var_os(WRITE).is_some() {
        std::fs::create_dir_all(file().parent().unwrap()).unwrap();
        std::fs::write(file(), &now).unwrap();
        return;
    }
    let written = std::fs::read_to_string(file()).unwrap_or_default();
    let difference = difference(&written, &now).unwrap_or_default();
    assert!(difference.is_empty(), "docs/conformance.md is not current: make conformance{difference}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn tshark_likes_every_frame_that_we_sent() {
    assert!(captured(0) > 1000, "tshark saw {} frames", captured(0));
    assert_eq!(over_all(|column| &column.tshark, 0), Ok(()));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn every_frame_is_accounted_for() {
    assert_eq!(over_all(|column| &column.account, 0), Ok(()));
}

/// A page as it is written, of two cases, one of which none of the three passes.
#[cfg(test)]
const SMALL: &str = "# Conformance\n\n| | passed |\n|---|---|\n| Peregrine | 1 |\n| Linux | 1 |\n\n\
    | Section | What | Asked | Peregrine | Linux 6.1 | Open vSwitch 3.1 |\n|---|---|---|---|---|---|\n\
    | RFC 1 | flies | must | yes | – [1] | yes |\n\
    | IEEE 2 | swims | may | **no** [2] | **no** [3] | not tried [4] |\n\
    \n## Notes\n\n1. has no wings\n2. sinks\n3. 17 drops\n4. no water\n\n## Known failures of Peregrine\n\n- `swims`: sinks\n";

#[test]
fn a_page_that_is_not_current_is_found_out() {
    let is_current = |from: &str, to: &str| {
        assert!(SMALL.contains(from), "{from}");
        difference(SMALL, &SMALL.replacen(from, to, 1)).is_none()
    };
    assert_eq!(difference(SMALL, SMALL), None);
    assert!(difference("", SMALL).is_some(), "there is none");
    for (what, from, to) in [
        ("an outcome of ours", "must | yes", "must | **no** [1]"),
        ("the same elsewhere than in an RFC", "may | **no** [2]", "may | yes"),
        ("why ours fails", "2. sinks", "2. floats"),
        ("a case more", "| RFC 1", "| RFC 1 | walks | must | yes | yes | yes |\n| RFC 1"),
        ("a case less", "| RFC 1 | flies | must | yes | – [1] | yes |\n", ""),
        ("what a case says", "flies", "soars"),
        ("how strongly it is asked for", "must", "should"),
        ("a known failure", "- `swims`: sinks\n", ""),
        ("the text", "# Conformance", "# Conformity"),
    ] {
        assert!(!is_current(from, to), "{what}");
    }
    assert!(is_current("**no** [2]", "not tried [4]"), "another machine has not got what it takes");
    for (from, to) in [("– [1]", "yes"), ("17 drops", "18 drops"), ("Linux 6.1 |", "Linux 6.2 |")] {
        assert!(is_current(from, to), "{from}: what the others do is theirs");
    }
}
