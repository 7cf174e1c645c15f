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
//! `lab` makes the hosts, [`peregrine`] and [`kernel`] are the two halves, [`report`] shows the figures.

mod hosts;
mod kernel;
mod measure;
mod peregrine;
mod report;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::lab::{LabError, Namespace};
use hosts::{Cores, Hosts};

/// What `peregrine demo` was asked for.
#[derive(Clone, Debug, clap::Args)]
pub struct DemoArgs {
    /// Length of each of the four measurements, in seconds.
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u64).range(1..=600))]
    pub seconds: u64,
    /// Print one JSON object and nothing else on standard output.
    #[arg(long)]
    pub json: bool,
}

/// Why the demo ended without its figures. One line.
#[derive(Debug)]
pub enum DemoError {
    /// Something in the lab failed.
    Lab(LabError),
    /// It cannot run here.
    Here(String),
}

impl std::fmt::Display for DemoError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            DemoError::Lab(LabError::Interrupted) => {
                f.write_str("demo: interrupted; everything it made was removed")
            }
            DemoError::Lab(error) => write!(f, "demo: {error}"),
            DemoError::Here(why) => write!(f, "demo: {why}"),
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

/// Runs the demo and returns what is to be printed on standard output.
///
/// # Errors
/// [`DemoError`]; namespaces and programs are gone by then.
pub fn run(args: &DemoArgs) -> Result<String, DemoError> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [signal_hook::consts::SIGINT, signal_hook::consts::SIGTERM] {
        signal_hook::flag::register(signal, interrupted.clone())
            .map_err(|error| DemoError::Here(format!("cannot catch signal {signal}: {error}")))?;
    }
    let (daemon, pktgen) = programs()?;
    let demo = Demo {
        cores: Cores::choose()?,
        hosts: Hosts::create()?,
        daemon,
        pktgen,
        duration: Duration::from_secs(args.seconds),
        interrupted,
    };
    let (peregrine, ping, daemon) = peregrine::measure(&demo)?;
    let kernel = kernel::measure(&demo)?;
    let report = report::Report::new(peregrine, kernel, ping, daemon);
    demo.check()?;
    Ok(if args.json { report.json() } else { report.text(&demo) })
}

/// Ourselves, and the packet generator that is built beside us.
fn programs() -> Result<(PathBuf, PathBuf), DemoError> {
    if !rustix::process::geteuid().is_root() {
        return Err(DemoError::Here(
            "it makes network namespaces, so it needs root: run it with sudo, or `make demo`".into(),
        ));
    }
    let daemon = std::env::current_exe()
        .map_err(|error| DemoError::Here(format!("cannot find this program: {error}")))?;
    let pktgen = daemon.with_file_name("peregrine-pktgen");
    if pktgen.is_file() {
        Ok((daemon, pktgen))
    } else {
        Err(DemoError::Here(format!("{} is missing: build everything with `make build`", pktgen.display())))
    }
}

/// Tells what is being done now; on standard error, so that `--json` stays alone on the other.
fn say(text: &str) {
    eprintln!("demo: {text}");
}
