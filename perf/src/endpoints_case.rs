//! Endpoints that come in bursts. `main.rs` calls `run`.

mod bursts;
mod kernel;
mod netlink;
mod probe;

use peregrine_memif::ClientConfig;
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch, two_cores};
use crate::figures::spread;
use bursts::{Bench, Kind};

#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub lines: Vec<String>,
    pub environment: Option<Environment>,
}

impl Report {
    pub fn text(&self) -> String {
        self.lines.join("\n") + "\n"
    }
}

pub fn run(quick: bool) -> Result<Report, String> {
    let cores = two_cores("one for the worker and one for control")?;
    let watch = Watch::start();
    let rings = ClientConfig { ring_log2: 5, buffer_bytes: 2048, ..ClientConfig::default() };
    let mut lines = Vec::new();
    if std::env::var_os("K").is_some() {
        let n: u32 = std::env::var("K").unwrap_or_default().parse().unwrap_or(20);
        kernel::Host::with(|host| {
            for (form, threads) in [
                (kernel::Form::Moved, 1),
                (kernel::Form::Moved, 2),
                (kernel::Form::Moved, 4),
                (kernel::Form::InPlace, 1),
                (kernel::Form::InPlace, 4),
                (kernel::Form::Batch, 1),
            ] {
                for _ in 0..3 {
                    let run = host.run(form, n, threads)?;
                    let own = spread(run.own_us.clone());
                    eprintln!(
                        "{} {threads}: namespaces {:?} made {:.0} first packet {:?} own {own:?} removal {:.0}",
                        form.name(),
                        run.namespaces_us,
                        run.made_us,
                        run.first_packet_us.last(),
                        run.removal_us
                    );
                }
            }
            Ok(())
        })?;
        return Err("done".into());
    }
    for existing in [0, 1000, 10_000] {
        for n in [1, 100, 1000] {
            let mut bench = Bench::start(cores, existing, n, vec![])?;
            for kind in Kind::ALL {
                let runs: Result<Vec<_>, _> =
                    (0..if quick { 3 } else { 9 }).map(|_| bench.run(kind, &rings)).collect();
                let runs = runs?;
                let of = |f: &dyn Fn(&bursts::Burst) -> f64| {
                    spread(runs.iter().map(f).collect()).unwrap_or_default().map(|v| v.round())
                };
                lines.push(format!("{existing} {n} {}: change {:?} in force {:?} first packet through the last {:?} removal {:?}", kind.name(),
                    of(&|b| b.change_us), of(&|b| b.in_force_us), of(&|b| b.first_packet_us.last().copied().unwrap_or(0.0)), of(&|b| b.removal_us)));
            }
        }
    }
    Ok(Report { lines, environment: Some(watch.end()) })
}
