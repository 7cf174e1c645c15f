//! The instruction counts that are checked in (`perf/baseline/instructions.json`), and what differs from them. Used by
//! `instructions`.
//!
//! Counts are compared only with those of the same compiler, flags and C library: others make other code of the same
//! source. Then it is said that nothing was compared, and nothing fails.

use std::path::Path;
use std::process::Command;

use serde::{Deserialize, Serialize};

use super::instructions::PerPacket;

/// A case may cost so much more (or less) before it is worth a word: unrelated changes, and building in another folder, change what
/// the compiler puts inline.
const TOLERANCE: f64 = 0.08;
/// And so many instructions a packet, which are more than that in the smallest cases.
const TOLERANCE_INSTRUCTIONS: f64 = 1.0;

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Baseline {
    built_by: String,
    c_library: String,
    instructions_per_packet: PerPacket,
}

impl Baseline {
    fn of(counts: &PerPacket) -> Baseline {
        let rounded = |(name, count): (&String, &f64)| (name.clone(), (count * 100.0).round() / 100.0);
        Baseline {
            built_by: env!("PEREGRINE_BUILT_BY").into(),
            c_library: c_library(),
            instructions_per_packet: counts.iter().map(rounded).collect(),
        }
    }
}

/// Name and version of the C library, whose memcpy is counted too.
fn c_library() -> String {
    match Command::new("getconf").arg("GNU_LIBC_VERSION").output() {
        Ok(out) if out.status.success() => String::from_utf8_lossy(&out.stdout).trim().to_owned(),
        _ => "unknown".into(),
    }
}

/// What a comparison found.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    /// Sentences, one a line.
    pub text: String,
    /// Cases that are as they were, or better.
    pub passed: usize,
    /// Cases that cost more, are new, or are gone.
    pub failed: usize,
}

/// Writes the counts down as the new baseline.
pub fn update(file: &Path, counts: &PerPacket) -> Result<String, String> {
    let text = serde_json::to_string_pretty(&Baseline::of(counts)).map_err(|error| error.to_string())?;
    std::fs::write(file, text + "\n").map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(format!("{}: {} cases written\n", file.display(), counts.len()))
}

/// The counts beside the baseline. `whole` says that all cases were counted, so none may be missing.
pub fn compare(file: &Path, counts: &PerPacket, whole: bool) -> Result<Verdict, String> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| format!("{}: {error}: `make instructions-baseline` writes it", file.display()))?;
    let old: Baseline =
        serde_json::from_str(&text).map_err(|error| format!("{}: {error}", file.display()))?;
    Ok(judge(&old, &Baseline::of(counts), whole))
}

fn judge(old: &Baseline, new: &Baseline, whole: bool) -> Verdict {
    let mut verdict = Verdict::default();
    let now = &new.instructions_per_packet;
    for (what, then, this) in
        [("built by", &old.built_by, &new.built_by), ("C library", &old.c_library, &new.c_library)]
    {
        if then != this {
            verdict.text +=
                &format!("instructions: NOT COMPARED: the baseline says {what} `{then}`, this is `{this}`\n");
        }
    }
    if !verdict.text.is_empty() {
        verdict.passed = now.len(); // they ran, moved every packet and did not allocate
        return verdict;
    }
    for (name, &count) in now {
        let (ok, words) = match old.instructions_per_packet.get(name) {
            Some(&before) => judge_case(before, count),
            None => (false, Some(format!("{count:.2}, and the baseline does not have it"))),
        };
        *if ok { &mut verdict.passed } else { &mut verdict.failed } += 1;
        if let Some(words) = words {
            verdict.text += &format!("instructions: {name}: {words}\n");
        }
    }
    if whole {
        for name in old.instructions_per_packet.keys().filter(|name| !now.contains_key(*name)) {
            verdict.failed += 1;
            verdict.text += &format!("instructions: {name}: in the baseline, but there is no such case\n");
        }
    }
    if !verdict.text.is_empty() {
        verdict.text += "instructions: if that is as it should be: `make instructions-baseline`, and say why in the commit\n";
    }
    verdict
}

/// Whether the case passes, and what is to be said about it.
fn judge_case(before: f64, now: f64) -> (bool, Option<String>) {
    let change = now - before;
    if change.abs() <= (before * TOLERANCE).max(TOLERANCE_INSTRUCTIONS) {
        return (true, None);
    }
    let percent = change / before * 100.0;
    let words = format!("{now:.2} instructions a packet, {before:.2} in the baseline ({percent:+.1} %)");
    if change > 0.0 {
        (false, Some(words))
    } else {
        (true, Some(format!("better: {words}: update the baseline")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn baseline(built_by: &str, counts: &[(&str, f64)]) -> Baseline {
        Baseline {
            built_by: built_by.into(),
            c_library: "c".into(),
            instructions_per_packet: counts.iter().map(|(name, count)| ((*name).into(), *count)).collect(),
        }
    }

    #[test]
    fn more_fails_less_is_said_and_within_the_tolerance_is_silence() {
        let old = baseline("a", &[("more", 100.0), ("less", 100.0), ("alike", 100.0), ("small", 5.0)]);
        let new = baseline("a", &[("more", 108.1), ("less", 91.9), ("alike", 108.0), ("small", 6.0)]);
        let verdict = judge(&old, &new, true);
        assert_eq!((verdict.passed, verdict.failed), (3, 1), "{}", verdict.text);
        let lines: Vec<&str> = verdict.text.lines().collect();
        assert_eq!(lines.len(), 3, "{}", verdict.text);
        assert!(lines[0].contains("less: better: 91.90") && lines[0].contains("(-8.1 %)"), "{}", lines[0]);
        assert!(lines[1].contains("more: 108.10") && lines[1].contains("100.00"), "{}", lines[1]);
        assert!(lines[2].contains("make instructions-baseline"), "{}", lines[2]);
    }

    #[test]
    fn a_new_case_and_one_that_is_gone_fail() {
        let (old, new) = (baseline("a", &[("gone", 1.0)]), baseline("a", &[("new", 1.0)]));
        assert_eq!(judge(&old, &new, true).failed, 2);
        assert_eq!(judge(&old, &new, false).failed, 1, "with a filter the others are not expected");
    }

    #[test]
    fn another_compiler_is_not_compared_with_and_that_is_said() {
        let verdict = judge(&baseline("a", &[("x", 1.0)]), &baseline("b", &[("x", 100.0)]), true);
        assert_eq!((verdict.passed, verdict.failed), (1, 0));
        assert!(verdict.text.contains("NOT COMPARED") && verdict.text.contains("`a`"), "{}", verdict.text);
    }

    #[test]
    fn what_was_written_compares_equal() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("instructions.json");
        let counts = PerPacket::from([("a".into(), 1.234_567), ("b".into(), 1000.0)]);
        update(&file, &counts).unwrap();
        assert_eq!(compare(&file, &counts, true).unwrap(), Verdict { passed: 2, ..Verdict::default() });
        std::fs::write(&file, "{}").unwrap();
        assert!(compare(&file, &counts, true).unwrap_err().contains("instructions.json: missing field"));
    }
}
