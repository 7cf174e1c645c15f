//! What needs a wire: the two hosts of `peregrine demo` with both ends of the wire on the near one, and there a process of this
//! program's own, for what an uplink is made of is read under `/sys`, which shows the network namespace that a process began in.

use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use clap::{Args, ValueEnum};
use peregrine_control::demo::hosts::{FAR, Hosts};
use peregrine_control::demo::{self};
use peregrine_control::lab::Process;

use super::bench::Cores;
use super::measured::PortReport;
use super::port::{self, Times};
use crate::figures::json;
use crate::kernel_case::plain;
use crate::paced;

/// All that one side measures takes less than this.
const PATIENCE: Duration = Duration::from_secs(900);

/// One system over the wire. For `priority` itself only.
#[derive(Debug, Args)]
pub struct Side {
    #[arg(long)]
    role: Role,
    #[arg(long)]
    quick: bool,
    #[arg(long)]
    first: usize,
    #[arg(long)]
    worker: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    Veth,
    Kernel,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Role::Veth => "veth",
            Role::Kernel => "kernel",
        }
    }
}

impl Side {
    /// Runs it in this process; what is to be printed.
    pub fn run(&self) -> Result<String, String> {
        let cores = Cores { first: self.first, worker: self.worker, hertz: paced::hertz() };
        let times = Times::of(self.quick);
        let report = match self.role {
            Role::Veth => port::veth(self.role.name(), cores, times),
            Role::Kernel => port::kernel(self.role.name(), cores, times),
        };
        report.map(|report| json(&report))
    }
}

/// Both systems. Namespaces and programs are gone when it returns, however it ends.
pub fn over_wire(
    cores: Cores,
    quick: bool,
    interrupted: &Arc<AtomicBool>,
) -> Result<Vec<PortReport>, String> {
    let lab = |error: &dyn std::fmt::Display| error.to_string();
    let hosts = Hosts::create().map_err(|error| plain(&error))?;
    let far = FAR.1;
    hosts.far.ip(&format!("link set {far} netns {}", hosts.near.name())).map_err(|error| lab(&error))?;
    hosts.near.ip(&format!("link set {far} up")).map_err(|error| lab(&error))?;
    let side = |role: Role| {
        eprintln!("peregrine-perf: priority: {}", role.name());
        let program =
            std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
        let mut command: Command = hosts.near.command(program);
        command.args(["priority-side", "--role", role.name()]);
        command.args(["--first", &cores.first.to_string(), "--worker", &cores.worker.to_string()]);
        command.args(if quick { &["--quick"][..] } else { &[] });
        let process = Process::start(&mut command).map_err(|error| lab(&error))?;
        let stop = || interrupted.load(Ordering::Relaxed);
        let text = process.finish(PATIENCE, &stop).map_err(|error| match stop() {
            true => "interrupted; everything that it made was removed".into(),
            false => lab(&error),
        })?;
        serde_json::from_str(&text).map_err(|error| format!("{}: it said: {error}", role.name()))
    };
    let peregrine = side(Role::Veth)?;
    let _tenant = hosts.kernel_overlay().map_err(|error| lab(&error))?;
    hosts.steer_receiving(Some(cores.worker)).map_err(|error| lab(&error))?;
    Ok(vec![peregrine, side(Role::Kernel)?])
}

/// Why nothing can be measured over a wire here, if so.
pub fn missing() -> Option<String> {
    demo::check_requirements().err().map(|error| plain(&error))
}
