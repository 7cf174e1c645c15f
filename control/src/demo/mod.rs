//! `peregrine demo`: the dataplane on real traffic, beside the kernel's overlay, on one machine.
//!
//! ```text
//!  namespace peregrine-demo-far                     namespace peregrine-demo-host
//!  ┌──────────────────────────────┐  wire (veth)   ┌─────────────────────────────────────────────┐
//!  │ the kernel's vxlan device    │ 192.0.2.2  .1  │ first:  peregrine run ── memif ── two tenants │
//!  │ peregrine-pktgen send        ├────────────────┤ then:   vxlan + bridge + veth ── UDP socket   │
//!  └──────────────────────────────┘                └─────────────────────────────────────────────┘
//! ```
//!
//! Everything runs as the programs that a user runs: this file starts them, waits for them, and reads what they say.
//! `hosts` makes them, `peregrine` and `kernel` are the two halves, `measure` is what both do, `report` shows the figures.
//! `containers` is another scenario, with parts of the same names; `place` is where a run of either keeps its files.

mod containers;
/// The hosts; `peregrine-perf` measures on the same.
pub mod hosts;
mod kernel;
mod measure;
mod peregrine;
mod place;
mod report;

use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::lab::{LabError, Namespace};
use hosts::{Cores, Hosts};
use report::Report;

/// What `peregrine demo` was asked for.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Which scenario; without one a stream and round trips to tenants on memif.
    #[command(subcommand)]
    pub scenario: Option<Scenario>,
    /// Length of each of the measurements, in seconds.
    #[arg(long, global = true, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Print one JSON object and nothing else on standard output.
    #[arg(long, global = true)]
    pub json: bool,
}

/// The other scenarios of `peregrine demo`.
#[derive(Clone, Copy, Debug, clap::Subcommand)]
pub enum Scenario {
    /// Two hosts with three containers each: ping, iperf3 and curl between them.
    Containers,
}

/// Why the demo ended without its figures, or with bad ones. One line.
#[derive(Debug)]
pub enum DemoError {
    /// Something in the lab failed.
    Lab(LabError),
    /// It cannot run here.
    Here(String),
    /// Somebody pressed Ctrl-C. What is still there of it, if anything.
    Interrupted(Vec<&'static str>),
    /// It ran to its end, but not as it should have.
    Bad(String),
}

impl std::fmt::Display for DemoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DemoError::Lab(error) => write!(f, "demo: {error}"),
            DemoError::Here(why) => write!(f, "demo: {why}"),
            DemoError::Interrupted(left) if left.is_empty() => {
                f.write_str("demo: interrupted; everything that it made was removed")
            }
            DemoError::Interrupted(left) => write!(
                f,
                "demo: interrupted; these namespaces are still there: {}: remove them with `ip netns del NAME`, or run the demo again",
                left.join(", ")
            ),
            DemoError::Bad(why) => write!(f, "demo: {why}"),
        }
    }
}

impl std::error::Error for DemoError {}

impl From<LabError> for DemoError {
    fn from(error: LabError) -> DemoError {
        DemoError::Lab(error)
    }
}

/// What all parts of the demo need.
struct Demo {
    hosts: Hosts,
    cores: Cores,
    /// The programs `peregrine` and `peregrine-pktgen`.
    daemon: PathBuf,
    pktgen: PathBuf,
    duration: Duration,
    interrupted: Arc<AtomicBool>,
}

impl Demo {
    fn stopped(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// The packet generator, in one of its roles, on a host or (a memif tenant) in none. In all of them and in both
    /// halves it runs with the highest ordinary priority, so that other programs on these cores show less.
    fn pktgen(&self, host: Option<&Namespace>) -> Command {
        let mut command = match host {
            Some(host) => host.command("nice"),
            None => Command::new("nice"),
        };
        command.args(["-n", "-20"]).arg(&self.pktgen);
        command
    }

    /// Between two steps: go on, or has somebody pressed Ctrl-C?
    fn check(&self) -> Result<(), LabError> {
        if self.stopped() { Err(LabError::Interrupted) } else { Ok(()) }
    }
}

/// Runs the demo and shows its figures with `print`.
///
/// # Errors
/// [`DemoError`]; namespaces and programs are gone by then.
pub fn run<E: From<DemoError>>(args: &DemoArgs, print: impl FnOnce(&str) -> Result<(), E>) -> Result<(), E> {
    let interrupted = Arc::new(AtomicBool::new(false));
    let result = match args.scenario {
        None => measure(args, &interrupted)
            .map(|report| (if args.json { report.json() } else { report.text() }, report.verdict())),
        Some(Scenario::Containers) => containers::measure(args, &interrupted)
            .map(|report| (if args.json { report.json() } else { report.text() }, report.verdict())),
    };
    let (text, verdict) = match result {
        // Whatever failed then, it failed because of that.
        _ if interrupted.load(Ordering::Relaxed) => Err(DemoError::Interrupted(hosts::left_behind())),
        result => result,
    }?;
    print(&text)?;
    verdict.map_err(|why| E::from(DemoError::Bad(why)))
}

fn measure(args: &DemoArgs, interrupted: &Arc<AtomicBool>) -> Result<Report, DemoError> {
    catch_signals(interrupted)?;
    let (daemon, pktgen) = programs()?;
    let demo = Demo {
        cores: Cores::choose()?,
        hosts: Hosts::create()?,
        daemon,
        pktgen,
        duration: Duration::from_secs(args.seconds),
        interrupted: interrupted.clone(),
    };
    let (peregrine, ping, daemon) = peregrine::measure(&demo)?;
    let kernel = kernel::measure(&demo)?;
    Ok(Report::new(peregrine, kernel, ping, daemon, demo.cores))
}

/// From now on Ctrl-C, SIGTERM and SIGHUP set this, and nothing else.
///
/// # Errors
/// If they cannot be caught.
pub fn catch_signals(interrupted: &Arc<AtomicBool>) -> Result<(), DemoError> {
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, interrupted.clone())
            .map_err(|error| DemoError::Here(format!("cannot catch signal {signal}: {error}")))?;
    }
    Ok(())
}

/// What the lab and the demo are made with, and the Debian package of each.
const TOOLS: [(&str, &str); 4] =
    [("ip", "iproute2"), ("ping", "iputils-ping"), ("nice", "coreutils"), ("setpriv", "util-linux")];

/// Whether hosts can be made here.
///
/// # Errors
/// Without root, or without the tools.
pub fn check_requirements() -> Result<(), DemoError> {
    if !rustix::process::geteuid().is_root() {
        return Err(DemoError::Here(
            "it makes network namespaces, so it needs root: run it with sudo".into(),
        ));
    }
    check_tools(&TOOLS)
}

/// Whether these programs are there; of the first that is not, its Debian package.
fn check_tools(tools: &[(&str, &str)]) -> Result<(), DemoError> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let there = |tool: &str| std::env::split_paths(&path).any(|folder| folder.join(tool).is_file());
    if let Some((tool, package)) = tools.iter().find(|(tool, _)| !there(tool)) {
        return Err(DemoError::Here(format!("{tool} is missing: run `make setup`, or install {package}")));
    }
    Ok(())
}

/// This program, which is also the daemon.
fn ourselves() -> Result<PathBuf, DemoError> {
    std::env::current_exe().map_err(|error| DemoError::Here(format!("cannot find this program: {error}")))
}

/// Ourselves, and the packet generator that is built beside us.
fn programs() -> Result<(PathBuf, PathBuf), DemoError> {
    check_requirements()?;
    let daemon = ourselves()?;
    let pktgen = daemon.with_file_name("peregrine-pktgen");
    if pktgen.is_file() {
        Ok((daemon, pktgen))
    } else {
        Err(DemoError::Here(format!("{} is missing: build everything with `make build`", pktgen.display())))
    }
}

/// Tells what is being done now; on standard error, so that `--json` stays alone on the other.
fn say(text: &str) {
    let _nobody_reads = writeln!(std::io::stderr(), "demo: {text}");
}
