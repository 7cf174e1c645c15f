//! The two systems over a wire, each in a process on the near host.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::bench::Cores;
use super::measured::PortReport;
use super::port::{self, Times};
use crate::figures::json;
use crate::{near_host, paced};

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

/// Both systems, added to the ports. Namespaces and programs are gone when it returns, however it ends.
pub fn over_wire(
    cores: Cores,
    quick: bool,
    interrupted: &Arc<AtomicBool>,
    ports: &mut Vec<PortReport>,
) -> Result<(), String> {
    let lab = |error: &dyn std::fmt::Display| error.to_string();
    let hosts = near_host::create()?;
    let side = |role: Role| {
        eprintln!("peregrine-perf: priority: {}", role.name());
        let (arguments, cores) =
            (["priority-side", "--role", role.name()], (cores.first, cores.worker, quick));
        near_host::run(&hosts, role.name(), &arguments, cores, PATIENCE, interrupted)
    };
    ports.push(side(Role::Veth)?);
    let _tenant = hosts.kernel_overlay().map_err(|error| lab(&error))?;
    hosts.steer_receiving(Some(cores.worker)).map_err(|error| lab(&error))?;
    ports.push(side(Role::Kernel)?);
    Ok(())
}
