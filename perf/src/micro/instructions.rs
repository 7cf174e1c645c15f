//! `peregrine-perf instructions`: how many instructions a packet costs in each micro-bench, counted by valgrind's callgrind. Unlike
//! times they are the same in every run, on a busy machine too, so a program can compare them (`baseline`).
//!
//! The program runs itself under callgrind, once for all cases. Collecting is off but inside [`super::measured`], and
//! whenever [`case_over`] is entered callgrind writes a file of what was collected since the last one. No client request and no
//! runner of another version is needed: only valgrind, whose options do all this.
//!
//! What must hold, so that two runs count alike: the child has an environment of its own (its size moves the stack); the C
//! library is told to copy by its SSE2 routine, whatever the processor has; hashes have a known secret (`rig`). The compiler still
//! matters, and so does the C library: the baseline names both.

use std::collections::BTreeMap;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::Args as ClapArgs;
use serde::{Deserialize, Serialize};

use super::{Case, MILLION, PACKETS, baseline, each_case_of, refuse_allocations};

/// Rounds of each case that are counted.
const ROUNDS: usize = 8;

/// Keeps memcpy from choosing by the processor: without these it takes the plain SSE2 routine.
const TUNABLES: &str =
    "glibc.cpu.hwcaps=-AVX512VL,-AVX512F,-AVX2,-AVX_Fast_Unaligned_Load,-ERMS,-FSRM,-SSSE3";

/// What the command line says.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Print one JSON object and nothing else.
    #[arg(long, conflicts_with_all = ["compare", "update"])]
    json: bool,
    /// Compare with this baseline; a case that costs over 8 % more fails.
    #[arg(long, value_name = "FILE", conflicts_with = "update")]
    compare: Option<PathBuf>,
    /// Write a new baseline, of all cases.
    #[arg(long, value_name = "FILE", conflicts_with = "filter")]
    update: Option<PathBuf>,
    /// Only cases with this in their name, such as `stage/`.
    #[arg(default_value = "", hide_default_value = true)]
    filter: String,
}

/// What was counted, by case.
pub type PerPacket = BTreeMap<String, f64>;

/// What the child says of one case.
#[derive(Debug, Serialize, Deserialize)]
struct Counted {
    name: String,
    allocations: u64,
}

/// Counts, and prints, compares or writes down. A comparison ends like a test: what went wrong, and a line of results.
pub fn run(args: &Args) -> Result<String, String> {
    let counts = count(&args.filter)?;
    if let Some(file) = &args.update {
        return baseline::update(file, &counts);
    }
    let Some(file) = &args.compare else {
        return Ok(if args.json { json(&counts) } else { text(&counts) });
    };
    let verdict = baseline::compare(file, &counts, args.filter.is_empty())?;
    let result = format!("{} passed; {} failed", verdict.passed, verdict.failed);
    if verdict.failed > 0 {
        return Err(format!("{} cases\n{}test result: FAILED. {result}", verdict.failed, verdict.text));
    }
    Ok(format!("{}test result: ok. {result}\n", verdict.text))
}

/// Entered after each case: callgrind looks for it by its name.
#[inline(never)]
fn case_over(case: &Case) {
    black_box(case);
}

/// The child's part: every case for some rounds, and a line for each.
pub fn rounds(filter: &str) -> Result<String, String> {
    let mut lines = String::new();
    each_case_of(
        |name| name.contains(filter) && !name.ends_with(MILLION),
        filter,
        |case| {
            let mut allocations = 0;
            for _ in 0..ROUNDS {
                allocations += case.round()?.1;
            }
            case_over(case);
            lines += &format!("{}\n", serde_json::json!(Counted { name: case.name.clone(), allocations }));
            Ok(())
        },
    )?;
    Ok(lines)
}

/// Counts every case whose name contains `filter`. An allocation is an error that names the cases.
fn count(filter: &str) -> Result<PerPacket, String> {
    let folder = tempfile::tempdir().map_err(|error| format!("a temporary folder: {error}"))?;
    let out = folder.path().join("callgrind");
    let program = std::env::current_exe().map_err(|error| format!("this program's own path: {error}"))?;
    let child = Command::new("valgrind")
        .args(["--quiet", "--tool=callgrind", "--collect-atstart=no"])
        .args([
            "--toggle-collect=peregrine_perf::micro::measured*",
            "--dump-before=peregrine_perf::micro::instructions::case_over*",
        ])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(program)
        .args(["micro-rounds", filter])
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_default())
        .env("GLIBC_TUNABLES", TUNABLES)
        .output()
        .map_err(|error| format!("valgrind: {error}: `make setup` installs it"))?;
    if !child.status.success() {
        let said = String::from_utf8_lossy(&child.stderr);
        return Err(format!("under valgrind ({}): {}", child.status, said.trim()));
    }
    let cases = String::from_utf8_lossy(&child.stdout)
        .lines()
        .map(|line| serde_json::from_str(line).map_err(|error| format!("the child's line `{line}`: {error}")))
        .collect::<Result<Vec<Counted>, _>>()?;
    refuse_allocations(cases.iter().map(|case| (case.name.as_str(), case.allocations)))?;
    let per_packet = |(index, case): (usize, Counted)| {
        let file = out.with_extension((index + 1).to_string());
        let instructions = total(&file)?;
        if instructions == 0 {
            return Err(format!("{}: callgrind counted nothing: was `measured` inlined?", case.name));
        }
        Ok((case.name, instructions as f64 / (ROUNDS * PACKETS) as f64))
    };
    cases.into_iter().enumerate().map(per_packet).collect()
}

/// The sum in a file of callgrind's.
fn total(file: &Path) -> Result<u64, String> {
    let text = std::fs::read_to_string(file).map_err(|error| format!("{}: {error}", file.display()))?;
    text.lines()
        .find_map(|line| line.strip_prefix("totals: "))
        .and_then(|number| number.trim().parse().ok())
        .ok_or_else(|| format!("{}: it has no line `totals: NUMBER`", file.display()))
}

/// A table.
fn text(counts: &PerPacket) -> String {
    let mut out = format!("{:<32}{:>21}\n", "case", "instructions/packet");
    for (name, count) in counts {
        out += &format!("{name:<32}{count:>21.2}\n");
    }
    out
}

/// One object.
fn json(counts: &PerPacket) -> String {
    format!("{}\n", serde_json::json!(counts))
}
