//! What workers cost that have nothing to do, and what it costs to wake them: `busy` and `adaptive` in turn, several times, each in an
//! engine of its own with one worker on a core of its own. *Nothing to do*: the processor time of the worker's thread over the time that
//! passed. *1000 packets a second*: the same, and how long each takes from who sends it to the tenant, who polls: a packet that comes
//! every millisecond finds an adaptive worker asleep.
//!
//! Packets come from a tenant (memif), or over a wire: by AF_XDP on a veth, whose both ends are in the namespace of a process of this
//! program's own (`idle_case/side.rs`). Sender and tenant are this thread, on the other core.

mod bench;
mod side;

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use peregrine_dataplane::plan::IdleMode;
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch, two_cores};
use crate::figures::spread;
use crate::kernel_case::plain;
use crate::near_host;
pub use side::Side;

/// Runs of each kind; medians count.
const RUNS: usize = 5;

/// Which core does what, and for how long.
#[derive(Clone, Copy, Debug)]
struct Setup {
    /// Sender, tenant and control.
    first: usize,
    worker: usize,
    /// In which nothing comes.
    window: Duration,
    packets: usize,
}

impl Setup {
    fn new(first: usize, worker: usize, quick: bool) -> Setup {
        let (window, packets) = if quick { (500, 500) } else { (3000, 5000) };
        Setup { first, worker, window: Duration::from_millis(window), packets }
    }
}

/// One engine's.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Run {
    /// Percent of a core with nothing to do, and at 1000 packets a second.
    pub idle_percent: f64,
    pub paced_percent: f64,
    /// From the sender to the tenant.
    pub p50_us: f64,
    pub p99_us: f64,
    pub p999_us: f64,
    /// Of how many packets none came.
    pub lost: u64,
}

/// Lowest, median and highest of several.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Figures {
    pub port: String,
    pub idle: String,
    pub idle_percent: [f64; 3],
    pub paced_percent: [f64; 3],
    pub p50_us: [f64; 3],
    pub p99_us: [f64; 3],
    pub p999_us: [f64; 3],
    pub lost: u64,
}

/// All of them.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cores: usize,
    pub runs: usize,
    pub figures: Vec<Figures>,
    /// Why there was no wire, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_wire: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
}

impl Report {
    /// A table.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<8}{:<10}{:>22}{:>22}{:>24}{:>24}{:>24}{:>6}\n",
            "from", "idle", "% of a core at rest", "at 1000/s", "p50 µs", "p99 µs", "p99.9 µs", "lost"
        );
        for it in &self.figures {
            let cell =
                |[lowest, median, highest]: [f64; 3]| format!("{median:.2} [{lowest:.2}, {highest:.2}]");
            out += &format!(
                "{:<8}{:<10}{:>22}{:>22}{:>24}{:>24}{:>24}{:>6}\n",
                it.port,
                it.idle,
                cell(it.idle_percent),
                cell(it.paced_percent),
                cell(it.p50_us),
                cell(it.p99_us),
                cell(it.p999_us),
                it.lost
            );
        }
        if let Some(why) = &self.no_wire {
            out += &format!("Not over a wire: {why}\n");
        }
        out + &format!(
            "Medians of {} runs, and the lowest and highest. One core for the worker, one for sender and tenant.\n",
            self.runs
        )
    }
}

/// Runs all.
pub fn run(quick: bool) -> Result<Report, String> {
    let [first, worker] = two_cores("one for the worker and one for who sends and receives")?;
    let watch = Watch::start();
    let setup = Setup::new(first.id, worker.id, quick);
    let mut figures = measure("memif", || bench::memif(setup))?;
    let no_wire = near_host::missing();
    if no_wire.is_none() {
        let interrupted = Arc::new(AtomicBool::new(false));
        peregrine_control::demo::catch_signals(&interrupted).map_err(|error| plain(&error))?;
        figures.extend(side::over_wire(setup, quick, &interrupted)?);
    }
    Ok(Report { cores: 2, runs: RUNS, figures, no_wire, environment: Some(watch.end()) })
}

/// Both kinds in turn.
fn measure<B: FnMut(IdleMode) -> Result<Run, String>>(
    port: &str,
    bench: impl FnOnce() -> B,
) -> Result<Vec<Figures>, String> {
    let mut bench = bench();
    let modes = [IdleMode::Busy, IdleMode::Adaptive];
    let mut runs: [Vec<Run>; 2] = Default::default();
    for _ in 0..RUNS {
        for (mode, runs) in modes.iter().zip(&mut runs) {
            runs.push(bench(*mode)?);
        }
    }
    Ok(modes.iter().zip(&runs).map(|(mode, runs)| Figures::of(port, *mode, runs)).collect())
}

impl Figures {
    fn of(port: &str, mode: IdleMode, runs: &[Run]) -> Figures {
        let of = |value: fn(&Run) -> f64| spread(runs.iter().map(value).collect()).unwrap_or_default();
        Figures {
            port: port.into(),
            idle: mode.name().into(),
            idle_percent: of(|run| run.idle_percent),
            paced_percent: of(|run| run.paced_percent),
            p50_us: of(|run| run.p50_us),
            p99_us: of(|run| run.p99_us),
            p999_us: of(|run| run.p999_us),
            lost: runs.iter().map(|run| run.lost).sum(),
        }
    }
}
