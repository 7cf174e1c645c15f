//! What needs a wire: the near host of `peregrine demo` with both ends of the wire, and there a process of this program's own, for what
//! an uplink is made of is read under `/sys`, which shows the network namespace that a process began in.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::Args;
use peregrine_control::demo::hosts::{FAR, Hosts};
use peregrine_control::demo::{self};
use peregrine_control::lab::Process;

use super::{Figures, Setup, bench, measure};
use crate::figures::json;
use crate::kernel_case::plain;

/// All takes less than this.
const PATIENCE: Duration = Duration::from_secs(300);

/// The runs over a wire. For `idle` itself only.
#[derive(Debug, Args)]
pub struct Side {
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    first: usize,
    #[arg(long)]
    worker: usize,
}

impl Side {
    /// Runs them in this process; what is to be printed.
    pub fn run(&self) -> Result<String, String> {
        let setup = Setup::new(self.first, self.worker, self.quick);
        measure("veth", || bench::wire(setup)).map(|figures| json(&figures))
    }
}

/// Runs them in a process there. Namespaces and programs are gone when it returns, however it ends.
pub fn over_wire(setup: Setup, quick: bool, interrupted: &Arc<AtomicBool>) -> Result<Vec<Figures>, String> {
    let lab = |error: &dyn std::fmt::Display| error.to_string();
    let hosts = Hosts::create().map_err(|error| plain(&error))?;
    let far = FAR.1;
    hosts.far.ip(&format!("link set {far} netns {}", hosts.near.name())).map_err(|error| lab(&error))?;
    hosts.near.ip(&format!("link set {far} up")).map_err(|error| lab(&error))?;
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut command = hosts.near.command(program);
    command.arg("idle-side");
    command.args(["--first", &setup.first.to_string(), "--worker", &setup.worker.to_string()]);
    command.args(if quick { &["--quick"][..] } else { &[] });
    let process = Process::start(&mut command).map_err(|error| lab(&error))?;
    let stop = || interrupted.load(Ordering::Relaxed);
    let text = process.finish(PATIENCE, &stop).map_err(|error| match stop() {
        true => "interrupted; everything that it made was removed".into(),
        false => lab(&error),
    })?;
    serde_json::from_str(&text).map_err(|error| format!("over a wire: it said: {error}"))
}

/// Why nothing can be measured over a wire here, if so.
pub fn missing() -> Option<String> {
    demo::check_requirements().err().map(|error| plain(&error))
}
