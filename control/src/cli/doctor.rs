//! `peregrine doctor`: what will not work here, why, and what mends it.

use std::fmt::Write;
use std::path::PathBuf;

use clap::Args;

use super::{load, print};
use crate::doctor::{self, Finding, Report, Verdict, Wanted};
use crate::error::Error;
use crate::table::count;

/// What is looked at, and what is done.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// The interface; without it all uplinks of the config, or, without a config, all cards.
    #[arg(value_name = "INTERFACE")]
    pub interface: Option<String>,
    /// Not only cards, but all interfaces that could be an uplink: each veth, too.
    #[arg(long, conflicts_with_all = ["interface", "config"])]
    pub all: bool,
    /// The config that is to run, in TOML: without it nothing is known of workers, addresses and remotes.
    #[arg(short, long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Set right what of an INTERFACE or a config's can be at once: LRO, GRO-HW and VLAN stripping off, UDP hashed by ports, bpffs mounted. The
    /// link may go away for seconds, and fragments of UDP may come out of order.
    #[arg(long)]
    pub fix: bool,
    /// Print one JSON object and nothing else.
    #[arg(long)]
    pub json: bool,
}

/// Does it.
///
/// # Errors
/// [`Error::Unfit`] where a check failed; mistakes in the config.
pub fn execute(args: &DoctorArgs) -> Result<(), Error> {
    if args.fix && args.interface.is_none() && args.config.is_none() {
        let line =
            "--fix changes no interface that nobody named: name an interface, or a config with -c FILE";
        return Err(Error::Mistakes { lines: vec![line.into()] });
    }
    let wanted = wanted(args)?;
    let report = if args.fix { doctor::examine_and_fix(wanted) } else { doctor::examine(wanted) };
    if args.json {
        let json = serde_json::to_string(&report).map_err(|error| Error::Output(error.into()))?;
        print(&format!("{json}\n"))?;
    } else {
        print(&text(&report))?;
    }
    if report.counts.failure > 0 { Err(Error::Unfit) } else { Ok(()) }
}

fn wanted(args: &DoctorArgs) -> Result<Wanted, Error> {
    let system = |source| Error::System { doing: "list the interfaces", source };
    match (&args.config, &args.interface) {
        (None, Some(interface)) => Ok(Wanted::of_interfaces(std::slice::from_ref(interface))),
        (None, None) => {
            let (mut names, mut left_out) = doctor::candidates().map_err(system)?;
            if args.all {
                names.append(&mut left_out);
            }
            Ok(Wanted { left_out, ..Wanted::of_interfaces(&names) })
        }
        (Some(path), only) => {
            let wanted = Wanted::of(&load(path)?);
            let names: Vec<&str> = wanted.uplinks.iter().map(|uplink| uplink.interface.as_str()).collect();
            if let Some(interface) = only.as_deref().filter(|interface| !names.contains(interface)) {
                let reason = format!("has no uplink '{interface}': it has {}", names.join(", "));
                return Err(Error::File { path: path.clone(), reason });
            }
            Ok(Wanted { only: only.clone(), ..wanted })
        }
    }
}

/// A line for each check, and below it, where there is something to say, why and the command; at the end how many ended how.
fn text(report: &Report) -> String {
    let width = report.checks.iter().map(|finding| name(finding).chars().count()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in &report.checks {
        let (verdict, name) = (finding.verdict.name(), name(finding));
        let _infallible = writeln!(text, "{verdict:<8} {name:<width$}  {}", finding.what);
        if let Some(why) = &finding.why {
            let _infallible = writeln!(text, "{:9}{why}", "");
        }
        if let Some(command) = &finding.command {
            let _infallible = writeln!(text, "{:9}  {command}", "");
        }
    }
    for line in &report.fixed {
        let _infallible = writeln!(text, "fixed    {line}");
    }
    for line in &report.not_fixed {
        let _infallible = writeln!(text, "not fixed: {line}");
    }
    let counts = report.counts;
    let _infallible = writeln!(
        text,
        "{}: {} ok, {}, {}, {} skipped",
        count(report.checks.len(), "check"),
        counts.ok,
        count(counts.warning, Verdict::Warning.name()),
        count(counts.failure, Verdict::Failure.name()),
        counts.skipped
    );
    text
}

/// `eth0 lro`, or `kernel`.
fn name(finding: &Finding) -> String {
    match &finding.about {
        Some(about) => format!("{about} {}", finding.check),
        None => finding.check.to_owned(),
    }
}
