//! `peregrine-perf report`: reads results, or runs the cases, and writes `report.json` and `report.html`. `main.rs` calls
//! `run`. A case that cannot run here costs its section, not the others: the page says why it is missing.

mod endpoints_part;
mod fdb_part;
mod input;
mod kernel_part;
mod layout;
mod notes;
mod page;
mod parts;
mod placement_parts;
/// The section of urgent packets.
mod priority_part;
mod scale;
mod svg;

use std::fs;
use std::path::{Path, PathBuf};

use clap::Args;
use input::{Failure, Results};

use crate::{
    core_case, endpoints_case, fdb_case, generator_case, kernel_case, memif_case, pipeline_case,
    placement_latency_case, priority_case, rig, skew_case, tenants_case,
};

/// Flags of `report`.
#[derive(Clone, Debug, Args)]
pub struct ReportArgs {
    /// Shorter runs, where it runs the cases itself.
    #[arg(long, conflicts_with = "files")]
    quick: bool,
    /// Folder to write report.json and report.html to; made if it is not there.
    #[arg(long, value_name = "DIR", default_value = ".")]
    out: PathBuf,
    /// Results that `core`, `memif`, `pipeline`, `skew`, `placement-latency`, `priority`, `tenants`, `generator`, `kernel`, `fdb` or `endpoints` wrote with --json, or a
    /// report.json; none: run the cases now.
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,
}

/// Why there is no page: one line.
#[derive(Debug)]
pub enum Error {
    /// What was given is wrong.
    Input(String),
    /// It could not be done.
    Failed(String),
}

/// Returns what to print.
pub fn run(args: &ReportArgs) -> Result<String, Error> {
    fs::create_dir_all(&args.out).map_err(|error| failed("make", &args.out, &error))?;
    let mut results = match args.files.is_empty() {
        true => measure(args.quick)?,
        false => input::read(&args.files).map_err(Error::Input)?,
    };
    results.peregrine_report = env!("CARGO_PKG_VERSION").into();
    let (json, html) = (args.out.join("report.json"), args.out.join("report.html"));
    write(&json, &format!("{:#}\n", serde_json::json!(results)))?;
    write(&html, &page::html(&results))?;
    Ok(format!("{}\n{}\n", json.display(), html.display()))
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    fs::write(file, text).map_err(|error| failed("write", file, &error))
}

fn failed(what: &str, file: &Path, error: &std::io::Error) -> Error {
    Error::Failed(format!("cannot {what} {}: {error}", file.display()))
}

/// All cases, one after the other. Those over a wire are last: from then on Ctrl-C only ends the one that runs.
fn measure(quick: bool) -> Result<Results, Error> {
    let mut results = Results::default();
    let failures = &mut results.failures;
    results.memif = case("memif", || memif_case::run(quick), failures);
    results.core = case("core", || core_case::run(quick, rig::Underlay::Ipv4), failures);
    results.pipeline = case("pipeline", || pipeline_case::run(quick), failures);
    results.skew = case("skew", || skew_case::run(quick), failures);
    results.placement_latency = case("placement-latency", || placement_latency_case::run(quick), failures);
    results.tenants = case("tenants", || tenants_case::run(quick), failures);
    results.fdb = case("fdb", || fdb_case::run(quick), failures);
    results.priority = case("priority", || priority_case::run(quick), failures);
    results.generator = case("generator", || generator_case::run(quick), failures);
    results.endpoints = case("endpoints", || endpoints_case::run(quick, None), failures);
    results.kernel = case("kernel", || kernel_case::run(quick), failures);
    if let Some(error) = results.priority.as_ref().and_then(|report| report.failure.clone()) {
        results.failures.push(Failure { case: "priority over a wire".into(), error });
    }
    if let Some(error) = results.kernel.as_ref().and_then(|report| report.failure.clone()) {
        results.failures.push(Failure { case: "the other runs of kernel".into(), error });
    }
    if results.environments().is_empty() {
        let errors: Vec<String> =
            results.failures.iter().map(|failure| format!("{}: {}", failure.case, failure.error)).collect();
        return Err(Error::Failed(format!("no case could be measured: {}", errors.join("; "))));
    }
    Ok(results)
}

fn case<T>(
    name: &str,
    run: impl FnOnce() -> Result<T, String> + Send,
    failures: &mut Vec<Failure>,
) -> Option<T>
where
    T: Send,
{
    eprintln!("peregrine-perf: measuring {name}");
    // A thread of its own: a case pins the thread that it runs on.
    let done = std::thread::scope(|scope| scope.spawn(run).join());
    match done.unwrap_or_else(|_| Err("it panicked".into())) {
        Ok(result) => Some(result),
        Err(error) => {
            eprintln!("peregrine-perf: {name}: {error}");
            failures.push(Failure { case: name.into(), error });
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(out: &Path, files: &[PathBuf]) -> ReportArgs {
        ReportArgs { quick: false, out: out.into(), files: files.into() }
    }

    #[test]
    fn a_page_drawn_again_from_its_own_json_is_the_same() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| folder.path().join(name);
        fs::write(of("core.json"), input::tests::CORE).unwrap();
        fs::write(of("kernel.json"), input::tests::KERNEL).unwrap();
        let told = run(&args(&of("a/b"), &[of("core.json"), of("kernel.json")])).unwrap();
        assert_eq!(
            told,
            format!("{}\n{}\n", of("a/b/report.json").display(), of("a/b/report.html").display())
        );
        run(&args(&of("c"), &[of("a/b/report.json")])).unwrap();
        for name in ["report.json", "report.html"] {
            let [one, other] = ["a/b", "c"].map(|place| fs::read(of(place).join(name)).unwrap());
            assert!(one == other && one.len() > 500, "{name}");
        }
    }

    #[test]
    fn what_cannot_be_read_or_written_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("core.json");
        fs::write(&file, "{\"cases\": [").unwrap();
        assert!(
            matches!(run(&args(folder.path(), std::slice::from_ref(&file))), Err(Error::Input(line)) if line.contains("core.json: not whole JSON"))
        );
        assert!(!folder.path().join("report.html").exists());
        fs::write(&file, input::tests::CORE).unwrap();
        let Err(Error::Failed(line)) = run(&args(&file, std::slice::from_ref(&file))) else {
            panic!("it wrote into a file")
        };
        assert!(line.starts_with("cannot make ") && line.contains("core.json"), "{line}");
    }

    #[test]
    fn a_case_that_fails_or_panics_is_kept_as_a_line() {
        let mut failures = Vec::new();
        assert_eq!(case("a", || Ok(1), &mut failures), Some(1));
        assert_eq!(case::<u8>("b", || Err("no cores".into()), &mut failures), None);
        assert_eq!(failures.len(), 1);
        assert_eq!((failures[0].case.as_str(), failures[0].error.as_str()), ("b", "no cores"));
    }
}
