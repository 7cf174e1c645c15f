//! A flow of 1,000 urgent packets a second beside normal ones that are 70, 95 and 120 % of what the worker can take: how late the urgent
//! ones are and how many are lost, by order of work (`fifo`, `batch`, `sync`), with early classes and without. `main.rs` calls `run`.
//!
//! Ports: frames from memory, without and with work added to each packet; AF_XDP over a veth pair, where work makes the worker slower than
//! the wire; and beside them the kernel's overlay under the same parts of what *it* can take. Two cores: one has the worker (or the kernel's
//! near host with its tenant), the other control and, over the wire, the generator and the kernel's part of both ends.
//!
//! What the machine takes is shown apart: how long a packet would have waited for the worker's core if the worker took no time at all
//! (`machine`), and how often and for how long the core was away while it was measured (`taken`).

/// One worker, and what is offered to it.
mod bench;
/// What was met while nobody took a core away.
mod calm;
/// The kernel's overlay.
mod kernel;
/// What the machine itself takes.
mod machine;
/// What is reported.
mod measured;
/// What classes cost, and what is left for normal packets.
mod pairs;
/// One port, measured.
mod port;
/// What needs a wire.
mod side;
/// What is offered.
mod traffic;
/// The wire and the generator.
mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use peregrine_control::demo;
use serde::{Deserialize, Serialize};

use bench::Cores;
use machine::{Gaps, MachineWaits};
use measured::{Goal, PortReport};
pub use measured::{LoadReport, Mode, Percentiles};
use pairs::{Pair, ShareReport};
use port::{Times, URGENT_PPS};
pub use side::Side;

use crate::environment::{Environment, Watch, two_cores};
use crate::kernel_case::plain;
use crate::near_host;
use crate::paced;

/// Frames from memory: what each such port is called, and the cycles added to each packet's way.
const REPLAYS: [(&str, u32); 2] = [("replay", 0), ("replay+work", 400)];

/// A port, without what was measured under load.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct PortInfo {
    pub port: String,
    pub work_cycles: u32,
    pub capacity_mpps: f64,
    pub wire_mpps: Option<f64>,
    pub batch_us: Option<f64>,
    pub sent_late_us: Option<Percentiles>,
}

/// Everything.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cores: usize,
    pub runs: usize,
    pub window_ms: u64,
    pub inner_bytes: usize,
    pub urgent_pps: f64,
    pub ports: Vec<PortInfo>,
    pub loads: Vec<LoadReport>,
    /// By port: urgent packets alone.
    pub idle_us: BTreeMap<String, Percentiles>,
    pub idle_calm_us: BTreeMap<String, Percentiles>,
    /// What a packet that comes at any moment waits for the worker's core.
    pub machine_us: MachineWaits,
    pub pairs: Vec<Pair>,
    pub shares: Vec<ShareReport>,
    pub goals: Vec<Goal>,
    /// Why nothing was measured over a wire.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub left_out: Option<String>,
    /// What ended the measurement over the wire before its end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
    pub environment: Option<Environment>,
}

/// Runs everything. Namespaces and programs are gone when it returns, however it ends.
pub fn run(quick: bool) -> Result<Report, String> {
    let [first, second] = two_cores("one for the worker; one for control, the generator and the wire")?;
    let left_out = near_host::missing();
    let watch = Watch::start();
    let times = Times::of(quick);
    let cores = Cores { first: first.id, worker: second.id, hertz: paced::hertz() };
    let mut gaps = Gaps::default();
    let mut ports = Vec::new();
    for (name, work) in REPLAYS {
        eprintln!("peregrine-perf: priority: {name}");
        gaps.add(Gaps::of_core(cores.worker, times.machine, cores.hertz)?);
        ports.push(port::replay(name, work, cores, times)?);
    }
    eprintln!("peregrine-perf: priority: pairs and shares");
    let (pairs, shares) = (pairs::pairs(cores, times)?, pairs::shares(cores, times)?);
    gaps.add(Gaps::of_core(cores.worker, times.machine, cores.hertz)?);
    let mut failure = None;
    if left_out.is_none() {
        // From here on there is something to remove.
        let interrupted = Arc::new(AtomicBool::new(false));
        demo::catch_signals(&interrupted).map_err(|error| plain(&error))?;
        failure = side::over_wire(cores, quick, &interrupted, &mut ports).err();
        gaps.add(Gaps::of_core(cores.worker, times.machine, cores.hertz)?);
    }
    let goals = ports.iter().flat_map(measured::goals).chain(pairs::goals(&pairs, &shares)).collect();
    Ok(Report {
        cores: 2,
        runs: times.runs,
        window_ms: times.window.as_millis() as u64,
        inner_bytes: traffic::INNER_BYTES,
        urgent_pps: URGENT_PPS,
        idle_us: ports.iter().map(|port| (port.port.clone(), port.idle_us)).collect(),
        idle_calm_us: ports.iter().map(|port| (port.port.clone(), port.idle_calm_us)).collect(),
        machine_us: gaps.waits(cores.hertz),
        loads: ports.iter().flat_map(|port| port.loads.clone()).collect(),
        ports: ports.into_iter().map(PortInfo::from).collect(),
        pairs,
        shares,
        goals,
        left_out,
        failure,
        environment: Some(watch.end()),
    })
}

impl From<PortReport> for PortInfo {
    fn from(report: PortReport) -> PortInfo {
        let PortReport { port, work_cycles, capacity_mpps, wire_mpps, batch_us, sent_late_us, .. } = report;
        PortInfo { port, work_cycles, capacity_mpps, wire_mpps, batch_us, sent_late_us }
    }
}

fn us(us: Option<f64>) -> String {
    us.map_or("-".into(), |us| format!("{us:.1}"))
}

/// Latencies, and those of them that were met in calm.
fn times(all: &Percentiles, calm: Option<&Percentiles>) -> String {
    let Percentiles { p50, p99, p999, max, samples } = *all;
    let calm = calm.copied().unwrap_or_default();
    format!(
        "{:>9}{:>9}{:>9}{:>9}{samples:>8}{:>10}{:>9}{:>6.0}%",
        us(p50),
        us(p99),
        us(p999),
        us(max),
        us(calm.p99),
        us(calm.max),
        100.0 * calm.samples as f64 / samples.max(1) as f64
    )
}

impl Report {
    /// Tables.
    pub fn text(&self) -> String {
        let parts =
            [self.loads_text(), self.ports_text(), self.classes_text(), self.goals_text(), self.notes()];
        parts.join("\n")
    }

    fn loads_text(&self) -> String {
        let mut out = format!(
            "{:<12}{:>5}  {:<7}{:<6}{:>9}{:>9}{:>9}{:>9}{:>8}{:>10}{:>9}{:>7}{:>6}{:>7}{:>8}{:>6}{:>8}{:>10}{:>10}\n",
            "port",
            "load",
            "order",
            "early",
            "p50 us",
            "p99 us",
            "p99.9",
            "max",
            "packets",
            "calm: p99",
            "max",
            "part",
            "lost",
            "unsent",
            "normal",
            "/fifo",
            "core %",
            "switches",
            "stolen ms"
        );
        for load in &self.loads {
            let of_kernel = load.mode == Mode::Kernel;
            let known = |text: String| if of_kernel { "-".into() } else { text };
            out += &format!(
                "{:<12}{:>4.0}%  {:<7}{:<6}{}{:>6}{:>7}{:>8.3}{:>6}{:>8}{:>10}{:>10}\n",
                load.port,
                100.0 * load.fraction,
                load.mode.name(),
                known(if load.early { "on" } else { "off" }.into()),
                times(&load.urgent_us, Some(&load.urgent_calm_us)),
                load.urgent_lost,
                load.urgent_unsent,
                load.normal_mpps,
                load.normal_over_fifo.map_or("-".into(), |ratio| format!("{ratio:.2}")),
                known(format!("{:.0}", 100.0 * load.core_share)),
                known(load.taken.switches.to_string()),
                known(format!("{:.0}", load.taken.stolen_ms))
            );
        }
        for (port, all) in &self.idle_us {
            out +=
                &format!("{port:<12}{:>5}  {:<13}{}\n", "idle", "", times(all, self.idle_calm_us.get(port)));
        }
        out
    }

    fn ports_text(&self) -> String {
        let mut out = format!(
            "{:<12}{:>13}{:>10}{:>16}{:>12}{:>19}\n",
            "port", "can take Mpps", "work", "the wire, Mpps", "batch us", "sent late p99 us"
        );
        for port in &self.ports {
            out += &format!(
                "{:<12}{:>13.3}{:>10}{:>16}{:>12}{:>19}\n",
                port.port,
                port.capacity_mpps,
                port.work_cycles,
                port.wire_mpps.map_or("-".into(), |mpps| format!("{mpps:.3}")),
                us(port.batch_us),
                us(port.sent_late_us.and_then(|late| late.p99))
            );
        }
        let MachineWaits { p99, p999, max, share, gaps_per_s, .. } = self.machine_us;
        out + &format!(
            "The machine alone keeps a packet from the worker's core for {p99:.1} us at p99, {p999:.1} at p99.9, {max:.1} at most \
             ({gaps_per_s:.0} gaps a second, {:.2} % of the time).\n",
            100.0 * share
        )
    }

    fn classes_text(&self) -> String {
        let mut out = String::new();
        for pair in &self.pairs {
            let Pair { what, mpps, over_mpps, ratio, ratio_lowest, ratio_highest, .. } = pair;
            out += &format!(
                "{what}: {mpps:.2} and {over_mpps:.2} Mpps, ratio {ratio:.3} ({ratio_lowest:.3}–{ratio_highest:.3})\n"
            );
        }
        for share in &self.shares {
            out += &format!(
                "{}{}: of what the worker can take, {:.0} % urgent and {:.0} % normal offered, {:.0} % guaranteed to normal: {:.1} % normal and \
                 {:.1} % urgent came through, {:.1} % of it normal\n",
                share.mode.name(),
                if share.early { ", early" } else { "" },
                100.0 * share.urgent_offered,
                100.0 * share.normal_offered,
                100.0 * share.share,
                100.0 * share.normal_got,
                100.0 * share.urgent_got,
                100.0 * share.normal_part
            );
        }
        out
    }

    fn goals_text(&self) -> String {
        let line = |goal: &Goal| {
            let found = goal.found.map_or("too few packets".into(), |found| format!("{found:.3}"));
            let bound = if goal.at_least { "at least" } else { "at most" };
            let met = match goal.is_met() {
                Some(true) => "met",
                Some(false) => "missed",
                None => "not told",
            };
            format!("{:<9}{:<12}{}: {found}, wanted {bound} {:.3}\n", met, goal.port, goal.what, goal.wanted)
        };
        self.goals.iter().map(line).collect()
    }

    fn notes(&self) -> String {
        let left_out = self.left_out.as_ref().map(|why| format!("Nothing over a wire: {why}.\n"));
        let failure = self.failure.as_ref().map(|why| format!("Not all over the wire: {why}.\n"));
        format!(
            "One-way, from when an urgent packet is due (over a wire: sent) to the tenant; {:.0} a second, {} bytes inside, beside normal ones at a part of what the \
             worker (or the kernel's overlay) can take while it has its core.\n\
             {} runs of {} ms in turns on {} cores: p50 and p99 are their medians, p99.9 and the highest of all together; at most 3 % too high.\n\
             calm: met while nobody took the worker's core or the generator's away, of all runs together, and their part of all: what is the worker's own.\n\
             lost: offered to the worker, and no tenant got it; unsent: given up by the generator. normal: Mpps; /fifo: over those with fifo, early off.\n\
             core %: what the worker had of its core in the worst run; switches, stolen: how often another thread had it, what the hypervisor took.\n\
             batch: what 64 packets cost in the slowest step, which an urgent one may have to wait for. Goals are of sync with early classes at 120 %.\n{}",
            self.urgent_pps,
            self.inner_bytes,
            self.runs,
            self.window_ms,
            self.cores,
            left_out.or(failure).unwrap_or_default()
        )
    }
}
