//! The runs over a wire, in a process on the near host.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;

use super::{Figures, Setup, bench, measure};
use crate::figures::json;
use crate::near_host;

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
    let hosts = near_host::create()?;
    let cores = (setup.first, setup.worker, quick);
    near_host::run(&hosts, "over a wire", &["idle-side"], cores, PATIENCE, interrupted)
}
