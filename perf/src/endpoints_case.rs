//! Endpoints that come in bursts: until the first packet got through each, beside the kernel's overlay on the same machine; what others
//! notice of them; what one costs in memory. `main.rs` calls `run`.
//!
//! Peregrine's bursts come in two forms. *Engine*: within this process, with frames from memory and memif connections over socket pairs:
//! what the dataplane needs, without the control socket and without a wire. *Daemon*: one `change` on the control socket of a daemon, all
//! tenants connected by this process, packets over a veth from another host; and for a minute a thousand endpoints a second that come and
//! go (`churn.rs`), by which nothing of the daemon may grow. *Containers* (`containers.rs`) have veths: from a pool of namespaces
//! that are ready, made on the spot, or into namespaces that were there, each until its kernel answered an ARP request. The kernel's (`kernel.rs`) are made by netlink from this
//! process, as container runtimes do it and in the fastest way that we know of, each until an ARP request from the bridge's side was
//! answered.
//!
//! `ratio` is the kernel's time to the last first packet, one by one in its usual form, over ours; `strongest_ratio` the same of its
//! strongest form, with the namespaces there already unless ours are made with them.

mod bursts;
mod churn;
mod containers;
mod daemon;
mod kernel;
mod load;
mod memory;
mod netlink;
mod probe;

use std::time::Instant;

use peregrine_memif::ClientConfig;
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch, two_cores};
use crate::figures::{median, spread};
use bursts::{Bench, Kind};
use kernel::{Form, Host};

/// Endpoints that are there when a burst comes.
const EXISTING: [u16; 3] = [0, 1000, 10_000];
/// Endpoints of a burst.
const BURSTS: [u16; 3] = [1, 100, 1000];
/// Containers of the kernel's bursts.
const CONTAINERS: [u32; 2] = [100, 1000];
const QUICK_CONTAINERS: u32 = 20;
/// How the kernel's are made: form and threads.
const FORMS: [(Form, u32); 7] = [
    (Form::Moved, 1),
    (Form::Moved, 2),
    (Form::Moved, 8),
    (Form::InPlace, 1),
    (Form::InPlace, 2),
    (Form::InPlace, 8),
    (Form::Batch, 1),
];
/// A thousand containers of a form are made only if so long is enough, as far as a hundred tell, to make them and to remove them.
const LONGEST_S: f64 = 60.0;
/// For all of the kernel's; then no more begin.
const KERNEL_S: f64 = 240.0;
/// Containers of a burst of ours.
const OUR_CONTAINERS: u16 = 100;

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Part {
    /// What one costs in memory.
    Memory,
    /// The kernel's overlay.
    Kernel,
    /// Bursts on an engine without a wire.
    Engine,
    /// Containers on an engine.
    Containers,
    /// Bursts through a daemon.
    Daemon,
    /// What others notice.
    Load,
    /// Endpoints that come and go for a minute.
    Churn,
}

/// Lowest, median and highest of the runs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Figure {
    pub lowest: f64,
    pub median: f64,
    pub highest: f64,
}

impl Figure {
    fn of(values: impl Iterator<Item = f64>) -> Figure {
        let [lowest, median, highest] = spread(values.collect()).unwrap_or_default();
        Figure { lowest, median, highest }
    }

    fn text(&self) -> String {
        format!("{:.2} ({:.2}–{:.2})", self.median, self.lowest, self.highest)
    }
}

/// When endpoints had their first packet, from the beginning of the burst.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct PerEndpoint {
    pub p50: f64,
    pub p99: f64,
}

/// A burst on Peregrine.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct BurstFigures {
    pub n: u16,
    pub kind: String,
    /// What is measured: `engine` or `daemon`.
    pub level: String,
    pub existing: u16,
    /// Until the call came back, and until the worker forwards by it; of a daemon until all tenants were connected.
    pub change_ms: Figure,
    /// Of the call, what the daemon says that it took, with its state written to the file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daemon_took_ms: Option<Figure>,
    pub total_ms: Figure,
    /// Until a packet got through the last of them; nothing of `change`.
    pub first_packet_ms: Option<Figure>,
    /// Medians of the runs.
    pub per_endpoint_us: Option<PerEndpoint>,
    /// The call that takes them away.
    pub removal_ms: Figure,
    /// The kernel's usual form one by one, and its strongest, for as many.
    pub kernel_total_ms: Option<f64>,
    pub ratio: Option<f64>,
    pub strongest_total_ms: Option<f64>,
    pub strongest_ratio: Option<f64>,
}

/// A burst on the kernel's overlay.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct KernelFigures {
    pub n: u32,
    pub form: String,
    pub threads: u32,
    pub runs: usize,
    /// Of the total for the namespaces, where these are made at once.
    pub namespaces_ms: Option<Figure>,
    pub total_ms: Figure,
    /// With the namespaces.
    pub first_packet_ms: Figure,
    /// What one took from its own beginning, where one is made after the other.
    pub per_endpoint_us: Option<PerEndpoint>,
    pub removal_ms: Figure,
}

/// Everything.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub bursts: Vec<BurstFigures>,
    pub kernel: Vec<KernelFigures>,
    /// Why there is nothing of the kernel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_failure: Option<String>,
    /// What of the kernel's was not run, as it would take too long, or failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_skipped: Vec<String>,
    /// Why there is nothing of containers on an engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_failure: Option<String>,
    /// Why there is nothing of a daemon.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub daemon_failure: Option<String>,
    pub under_load: Option<load::UnderLoad>,
    /// Of endpoints that come and go all the time, through a daemon.
    #[serde(default)]
    pub churn: Option<churn::Churn>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub churn_failure: Option<String>,
    /// Of a memif endpoint with the smallest rings: shared memory and the daemon's own.
    pub per_endpoint_bytes: Option<u64>,
    pub memory: Option<memory::Memory>,
    pub runs: usize,
    pub cores: usize,
    pub environment: Option<Environment>,
}

/// Measures everything, or one part of it.
pub fn run(quick: bool, only: Option<Part>) -> Result<Report, String> {
    let cores = two_cores("one for the worker and one for control")?;
    let watch = Watch::start();
    let runs = if quick { 3 } else { 9 };
    let is_wanted = |part| only.is_none_or(|only| only == part);
    let memory = is_wanted(Part::Memory).then(|| aside(|| memory::run(cores))).transpose()?;
    let mut kernel_skipped = Vec::new();
    let kernel = is_wanted(Part::Kernel).then(|| kernel_bursts(quick, &mut kernel_skipped));
    let (kernel, kernel_failure) = apart(kernel);
    let mut bursts = Vec::new();
    if is_wanted(Part::Engine) {
        for (existing, n) in sizes() {
            bursts.extend(aside(|| engine_bursts(cores, existing, n, runs))?);
        }
    }
    let (containers, container_failure) =
        apart(is_wanted(Part::Containers).then(|| container_bursts(cores, runs)));
    let (daemon, daemon_failure) = apart(is_wanted(Part::Daemon).then(|| daemon_bursts(cores[1].id, runs)));
    bursts.extend([containers, daemon].into_iter().flatten().flatten());
    bursts.iter_mut().for_each(|burst| compare(burst, kernel.as_deref().unwrap_or_default()));
    let under_load = is_wanted(Part::Load).then(|| aside(|| load::run(cores, quick))).transpose()?;
    let (churn, churn_failure) = apart(is_wanted(Part::Churn).then(|| churn::run(cores[1].id, quick)));
    Ok(Report {
        bursts,
        kernel: kernel.unwrap_or_default(),
        kernel_failure,
        kernel_skipped,
        container_failure,
        daemon_failure,
        under_load,
        churn,
        churn_failure,
        per_endpoint_bytes: memory.as_ref().map(memory::Memory::of_one),
        memory,
        runs,
        cores: 2,
        environment: Some(watch.end()),
    })
}

/// So many are there, and so many come.
fn sizes() -> impl Iterator<Item = (u16, u16)> {
    EXISTING.into_iter().flat_map(|existing| BURSTS.map(|n| (existing, n)))
}

/// What came of a measurement, if there was one, and why nothing did.
fn apart<T>(measured: Option<Result<T, String>>) -> (Option<T>, Option<String>) {
    match measured {
        None => (None, None),
        Some(Ok(figures)) => (Some(figures), None),
        Some(Err(why)) => (None, Some(why)),
    }
}

/// On a thread of its own: control is pinned, and what is measured next must not inherit that.
fn aside<T: Send>(run: impl FnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    let done = std::thread::scope(|scope| scope.spawn(run).join());
    done.unwrap_or_else(|_| Err("it panicked".into()))
}

fn engine_bursts(
    cores: [core_affinity::CoreId; 2],
    existing: u16,
    n: u16,
    runs: usize,
) -> Result<Vec<BurstFigures>, String> {
    let rings = ClientConfig { ring_log2: 5, buffer_bytes: 2048, ..ClientConfig::default() };
    let mut bench = Bench::start(cores, existing, n, Vec::new())?;
    let mut all = Vec::new();
    for kind in Kind::ALL {
        bench.run(kind, &rings)?; // until all is warm
        let runs = (0..runs).map(|_| bench.run(kind, &rings)).collect::<Result<Vec<_>, _>>()?;
        all.push(engine_figures(kind.name(), n, existing, kind != Kind::Change, &runs));
    }
    Ok(all)
}

fn engine_figures(
    kind: &str,
    n: u16,
    existing: u16,
    has_packets: bool,
    runs: &[bursts::Burst],
) -> BurstFigures {
    let ms = |of: fn(&bursts::Burst) -> f64| Figure::of(runs.iter().map(|run| of(run) / 1e3));
    BurstFigures {
        n,
        kind: kind.into(),
        level: "engine".into(),
        existing,
        daemon_took_ms: None,
        change_ms: ms(|run| run.change_us),
        total_ms: ms(|run| run.in_force_us),
        first_packet_ms: has_packets
            .then(|| ms(|run| run.first_packet_us.last().copied().unwrap_or(f64::NAN))),
        per_endpoint_us: has_packets.then(|| percentiles(runs.iter().map(|run| run.first_packet_us.clone()))),
        removal_ms: ms(|run| run.removal_us),
        kernel_total_ms: None,
        ratio: None,
        strongest_total_ms: None,
        strongest_ratio: None,
    }
}

/// One call each; with memif tenants of this process's, or containers.
fn daemon_bursts(worker: usize, runs: usize) -> Result<Vec<BurstFigures>, String> {
    let rings = ClientConfig { ring_log2: 5, buffer_bytes: 2048, ..ClientConfig::default() };
    let mut all = Vec::new();
    let mut measure = |bench: &daemon::Bench, kind: daemon::Kind, n, existing| {
        bench.run(kind, n, &rings)?; // until all is warm
        let runs = (0..runs).map(|_| bench.run(kind, n, &rings)).collect::<Result<Vec<_>, String>>()?;
        all.push(daemon_figures(kind.name(), n, existing, &runs));
        Ok::<(), String>(())
    };
    for (existing, n) in sizes() {
        let bench = daemon::Bench::start(worker, existing, n, 0)?;
        measure(&bench, daemon::Kind::ExistingPorts, n, existing)?;
        measure(&bench, daemon::Kind::Memif, n, existing)?;
    }
    let bench = daemon::Bench::start(worker, 0, OUR_CONTAINERS, 2 * OUR_CONTAINERS)?;
    measure(&bench, daemon::Kind::ContainerPool, OUR_CONTAINERS, 0)?;
    measure(&bench, daemon::Kind::ContainerGiven, OUR_CONTAINERS, 0)?;
    Ok(all)
}

fn daemon_figures(kind: &str, n: u16, existing: u16, runs: &[daemon::Burst]) -> BurstFigures {
    let ms = |of: fn(&daemon::Burst) -> f64| Figure::of(runs.iter().map(|run| of(run) / 1e3));
    BurstFigures {
        n,
        kind: kind.into(),
        level: "daemon".into(),
        existing,
        daemon_took_ms: Some(ms(|run| run.took_us)),
        change_ms: ms(|run| run.call_us),
        total_ms: ms(|run| run.connected_us),
        first_packet_ms: Some(ms(|run| run.first_packet_us.last().copied().unwrap_or(f64::NAN))),
        per_endpoint_us: Some(percentiles(runs.iter().map(|run| run.first_packet_us.clone()))),
        removal_ms: ms(|run| run.removal_us),
        kernel_total_ms: None,
        ratio: None,
        strongest_total_ms: None,
        strongest_ratio: None,
    }
}

/// Each from its beginning, to an answer by each one's kernel.
fn container_bursts(cores: [core_affinity::CoreId; 2], runs: usize) -> Result<Vec<BurstFigures>, String> {
    containers::Bench::with(cores, OUR_CONTAINERS, |bench| {
        let mut all = Vec::new();
        for kind in containers::Kind::ALL {
            bench.run(kind)?; // until all is warm
            let runs = (0..runs).map(|_| bench.run(kind)).collect::<Result<Vec<_>, _>>()?;
            all.push(engine_figures(kind.name(), OUR_CONTAINERS, 0, true, &runs));
        }
        Ok(all)
    })
}

/// Medians over the runs.
fn percentiles(runs: impl Iterator<Item = Vec<f64>> + Clone) -> PerEndpoint {
    let of = |share: f64| median(runs.clone().filter_map(|times| nearest(times, share)).collect());
    PerEndpoint { p50: of(0.5), p99: of(0.99) }
}

/// So much of a whole of 1 is not above it.
fn nearest(mut values: Vec<f64>, share: f64) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    let rank = (share * values.len() as f64).ceil() as usize;
    values.get(rank.saturating_sub(1)).copied()
}

fn kernel_bursts(quick: bool, skipped: &mut Vec<String>) -> Result<Vec<KernelFigures>, String> {
    let [few, many] = CONTAINERS;
    let begun = Instant::now();
    let done = Host::with(|host| {
        let (mut all, mut skipped) = (Vec::new(), Vec::new());
        for (form, threads) in FORMS {
            if quick {
                all.push(kernel_burst(host, form, threads, QUICK_CONTAINERS, 3)?);
                continue;
            }
            all.push(kernel_burst(host, form, threads, few, 5)?);
        }
        for first in if quick { Vec::new() } else { all.clone() } {
            let Some((form, threads)) = FORMS
                .into_iter()
                .find(|(form, threads)| (form.name(), *threads) == (&first.form, first.threads))
            else {
                continue;
            };
            let one_s = (first.first_packet_ms.median + first.removal_ms.median) / 1e3;
            let expected_s = one_s * f64::from(many) / f64::from(few);
            if expected_s < LONGEST_S && begun.elapsed().as_secs_f64() + expected_s < KERNEL_S {
                match kernel_burst(host, form, threads, many, 1) {
                    Ok(burst) => all.push(burst),
                    Err(error) => skipped
                        .push(format!("{} with {threads} threads, {many} at once: {error}", form.name())),
                }
            } else {
                skipped.push(format!(
                    "{} with {threads} threads, {many} at once: it would take {expected_s:.0} s, as far as {few} tell",
                    form.name()
                ));
            }
        }
        Ok((all, skipped))
    });
    let (all, its) = done?;
    skipped.extend(its);
    Ok(all)
}

fn kernel_burst(host: &Host, form: Form, threads: u32, n: u32, runs: usize) -> Result<KernelFigures, String> {
    let runs = (0..runs).map(|_| host.run(form, n, threads)).collect::<Result<Vec<_>, _>>()?;
    let ms = |of: fn(&kernel::Run) -> f64| Figure::of(runs.iter().map(|run| of(run) / 1e3));
    Ok(KernelFigures {
        n,
        form: form.name().into(),
        threads,
        runs: runs.len(),
        namespaces_ms: (form == Form::Batch).then(|| ms(|run| run.namespaces_us.unwrap_or(f64::NAN))),
        total_ms: ms(|run| run.made_us),
        first_packet_ms: ms(|run| run.first_packet_us.last().copied().unwrap_or(f64::NAN)),
        per_endpoint_us: (form != Form::Batch)
            .then(|| percentiles(runs.iter().map(|run| run.own_us.clone()))),
        removal_ms: ms(|run| run.removal_us),
    })
}

/// Beside the kernel's bursts of as many, if there are.
fn compare(burst: &mut BurstFigures, kernel: &[KernelFigures]) {
    let Some(ours) = burst.first_packet_ms.map(|figure| figure.median) else { return };
    let of = |form: Form| {
        kernel
            .iter()
            .find(|other| other.n == u32::from(burst.n) && other.form == form.name() && other.threads == 1)
    };
    let usual = of(Form::Moved).map(|other| other.first_packet_ms.median);
    // The namespaces count where ours are made with them, too; a pool's are there before.
    let with_namespaces = burst.kind == containers::Kind::Empty.name();
    let strongest = of(Form::Batch).map(|other| {
        let namespaces = if with_namespaces { None } else { other.namespaces_ms };
        other.first_packet_ms.median - namespaces.map_or(0.0, |figure| figure.median)
    });
    (burst.kernel_total_ms, burst.ratio) = (usual, usual.map(|usual| usual / ours));
    (burst.strongest_total_ms, burst.strongest_ratio) = (strongest, strongest.map(|other| other / ours));
}

impl Report {
    /// Tables.
    pub fn text(&self) -> String {
        let mut out = self.bursts_text();
        if let Some(failure) = &self.container_failure {
            out += &format!("Containers on an engine were not measured: {failure}\n");
        }
        if let Some(failure) = &self.daemon_failure {
            out += &format!("A daemon was not measured: {failure}\n");
        }
        [out, self.kernel_text(), self.churn_text(), self.load_text(), self.memory_text(), self.notes()]
            .concat()
    }

    fn bursts_text(&self) -> String {
        if self.bursts.is_empty() {
            return String::new();
        }
        let mut out = String::from("Peregrine: medians (lowest–highest) in ms\n");
        out += &format!(
            "{:<9}{:<16}{:>6}{:>9}{:>24}{:>24}{:>26}{:>9}{:>10}\n",
            "level",
            "kind",
            "n",
            "existing",
            "call",
            "in force",
            "first packet, last one",
            "/kernel",
            "/strongest"
        );
        for burst in &self.bursts {
            let times = |ratio: Option<f64>| ratio.map_or("–".into(), |ratio| format!("{ratio:.0}×"));
            out += &format!(
                "{:<9}{:<16}{:>6}{:>9}{:>24}{:>24}{:>26}{:>9}{:>10}\n",
                burst.level,
                burst.kind,
                burst.n,
                burst.existing,
                burst.change_ms.text(),
                burst.total_ms.text(),
                burst.first_packet_ms.map_or("–".into(), |figure| figure.text()),
                times(burst.ratio),
                times(burst.strongest_ratio),
            );
        }
        out
    }

    fn kernel_text(&self) -> String {
        if let Some(failure) = &self.kernel_failure {
            return format!("The kernel's overlay was not measured: {failure}\n");
        }
        if self.kernel.is_empty() {
            return String::new();
        }
        let mut out = format!(
            "The kernel's overlay: ms\n{:<10}{:>8}{:>6}{:>6}{:>26}{:>30}{:>24}{:>24}\n",
            "form",
            "threads",
            "n",
            "runs",
            "namespaces of it",
            "first packet, last one",
            "one, µs p50 / p99",
            "removal"
        );
        for burst in &self.kernel {
            let one = burst.per_endpoint_us.map(|one| format!("{:.0} / {:.0}", one.p50, one.p99));
            out += &format!(
                "{:<10}{:>8}{:>6}{:>6}{:>26}{:>30}{:>24}{:>24}\n",
                burst.form,
                burst.threads,
                burst.n,
                burst.runs,
                burst.namespaces_ms.map_or("–".into(), |figure| figure.text()),
                burst.first_packet_ms.text(),
                one.unwrap_or_else(|| "–".into()),
                burst.removal_ms.text(),
            );
        }
        for what in &self.kernel_skipped {
            out += &format!("Not measured: {what}\n");
        }
        out
    }

    fn churn_text(&self) -> String {
        if let Some(why) = &self.churn_failure {
            return format!("Endpoints that come and go all the time were not measured: {why}\n");
        }
        let Some(churn) = &self.churn else { return String::new() };
        let grew = if churn.grew.is_empty() {
            "nothing grew".into()
        } else {
            format!("grew: {}", churn.grew.join("; "))
        };
        let has = |holdings: &churn::Holdings| {
            format!(
                "RSS {:.1} MB, {} descriptors, {} threads, {} devices, {} of {} frames free, {} endpoints",
                holdings.rss_bytes as f64 / 1e6,
                holdings.descriptors,
                holdings.threads,
                holdings.devices,
                holdings.frames_free,
                holdings.frames_total,
                holdings.endpoints
            )
        };
        format!(
            "Through a daemon: {} endpoints created and {} removed in {:.1} s, {:.0} a second each, calls of {:.1} ms (p99 {:.1}): {grew}\n  before: {}\n  after:  {}\n",
            churn.created,
            churn.removed,
            churn.seconds,
            churn.per_second,
            churn.call_ms_p50,
            churn.call_ms_p99,
            has(&churn.before),
            has(&churn.after)
        )
    }

    fn load_text(&self) -> String {
        let Some(load) = &self.under_load else { return String::new() };
        format!(
            "Others' p99 at {:.1} Mpps ({:.0} % of what the worker can), µs: {:.1} ({:.1}–{:.1}) before, {:.1} ({:.1}–{:.1}) while {:.0} endpoints a second come \
             and go: {:.3} times; not taken in time: {} and {} packets\n",
            load.load_pps / 1e6,
            100.0 * load.load_pps / load.capacity_pps,
            load.p99_us_before,
            load.p99_us_before_lowest,
            load.p99_us_before_highest,
            load.p99_us_during,
            load.p99_us_during_lowest,
            load.p99_us_during_highest,
            load.endpoints_per_second,
            load.p99_ratio,
            load.missed_before,
            load.missed_during,
        )
    }

    fn memory_text(&self) -> String {
        let Some(memory) = &self.memory else { return String::new() };
        let mut out = String::new();
        for rings in &memory.rings {
            out += &format!(
                "memif with {} slots of {} bytes: {} KB shared, {} KB of it there at once, {} bytes of the daemon's\n",
                rings.ring_slots,
                rings.buffer_bytes,
                rings.shared_bytes / 1024,
                rings.resident_bytes / 1024,
                rings.heap_bytes
            );
        }
        out + &format!(
            "Of the engine's: {} bytes for each endpoint, {} for each place. With the smallest rings {} bytes in all.\n",
            memory.engine_bytes,
            memory.place_bytes,
            memory.of_one(),
        )
    }

    fn notes(&self) -> String {
        format!(
            "Medians of {} runs; {} cores: one for the worker, one for control and the tenants; through a daemon the worker sleeps while it has nothing to do, and its core is the others'. Machine's load before: {:?}.\n",
            self.runs,
            self.cores,
            self.environment.as_ref().and_then(|environment| environment.load_before),
        )
    }
}
