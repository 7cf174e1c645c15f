//! The forwarding database under load: what a look-up costs by the size of the table, what 100,000 new addresses a second cost those
//! that are forwarded meanwhile, and whether ageing shows in how late packets are. `main.rs` calls `run`.
//!
//! One worker has the first core and does everything; control (and, for the way out, the tenant that sends) has the second. Frames
//! come from memory, each time from another station: the port writes its address, so that a million of them need no million frames.

mod ageing;
mod bench;
mod learning;
mod lookup;

use std::time::Duration;

use core_affinity::CoreId;
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch, two_cores};
use crate::figures::spread;
use crate::paced;

/// Bytes of the inner packets.
const INNER_BYTES: usize = 64;
/// Runs of everything, in turns; the median counts.
const RUNS: usize = 5;
/// As many as the table is to hold.
const MILLION: u32 = 1_000_000;
/// New addresses a second.
const NEW_PER_SECOND: u32 = 100_000;

/// Everything.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cores: usize,
    pub worker_core: usize,
    pub control_core: usize,
    pub runs: usize,
    pub inner_bytes: usize,
    pub lookups: Vec<lookup::Point>,
    pub learning: learning::Learning,
    pub ageing: ageing::Ageing,
    pub environment: Environment,
}

/// Median of the runs, and how far they lie apart.
#[derive(Clone, Copy, PartialEq, Debug, Default, Deserialize, Serialize)]
pub struct Figure {
    pub median: f64,
    pub lowest: f64,
    pub highest: f64,
}

impl Figure {
    fn of(values: impl Iterator<Item = f64>) -> Figure {
        let [lowest, median, highest] = spread(values.collect()).unwrap_or_default();
        Figure { median, lowest, highest }
    }

    fn text(&self, digits: usize) -> String {
        let Figure { median, lowest, highest } = self;
        format!("{median:.digits$} ({lowest:.digits$}–{highest:.digits$})")
    }
}

/// Where and for how long.
#[derive(Clone, Copy, Debug)]
struct Plan {
    worker: usize,
    /// Control, and a tenant that sends.
    second: CoreId,
    warm_up: Duration,
    lookup: Duration,
    learning: Duration,
    ageing: Duration,
    hertz: f64,
}

impl Report {
    /// Three tables.
    pub fn text(&self) -> String {
        lookup::text(&self.lookups)
            + "\n"
            + &self.learning.text()
            + "\n"
            + &self.ageing.text()
            + &format!(
                "\n{} bytes inside; medians of {} runs in turns, with the lowest and the highest. Two cores: the worker has {}; control, and the \
                 tenant that sends, {}.\ncore %: what the worker had of its core in the worst run; below 100, tails are the machine's.\n",
                self.inner_bytes, self.runs, self.worker_core, self.control_core
            )
    }
}

/// Runs everything.
pub fn run(quick: bool) -> Result<Report, String> {
    let [worker, second] = two_cores("one for the worker and one for control")?;
    let watch = Watch::start();
    let (warm_up_ms, lookup_ms, learning_ms, ageing_ms) =
        if quick { (20, 150, 400, 1000) } else { (200, 1000, 1500, 5000) };
    let plan = Plan {
        worker: worker.id,
        second,
        warm_up: Duration::from_millis(warm_up_ms),
        lookup: Duration::from_millis(lookup_ms),
        learning: Duration::from_millis(learning_ms),
        ageing: Duration::from_millis(ageing_ms),
        hertz: paced::hertz(),
    };
    Ok(Report {
        cores: 2,
        worker_core: worker.id,
        control_core: second.id,
        runs: RUNS,
        inner_bytes: INNER_BYTES,
        lookups: lookup::run(&plan)?,
        learning: learning::run(&plan)?,
        ageing: ageing::run(&plan)?,
        environment: watch.end(),
    })
}

/// Runs it as control: on the second core, in a thread of its own, since the next worker could not have the first core otherwise.
fn as_control<T: Send>(run: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    let done = std::thread::scope(|scope| scope.spawn(run).join());
    done.unwrap_or_else(|_| Err("it panicked".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    pub fn plan() -> Plan {
        let cores = core_affinity::get_core_ids().unwrap();
        let time = Duration::from_millis(5);
        Plan {
            worker: cores[0].id,
            second: cores[1 % cores.len()],
            warm_up: time,
            lookup: time,
            learning: time,
            ageing: time,
            hertz: paced::hertz(),
        }
    }

    #[test]
    fn a_figure_is_the_median_between_the_ends() {
        let figure = Figure::of([3.0, 1.0, 2.25].into_iter());
        assert_eq!(figure, Figure { median: 2.25, lowest: 1.0, highest: 3.0 });
        assert_eq!(figure.text(1), "2.2 (1.0–3.0)");
        assert_eq!(Figure::of([].into_iter()), Figure::default());
    }
}
