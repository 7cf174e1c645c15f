//! One port, measured: what the worker can take, and then each order of work, with early classes and without, under each load, in
//! turns. And the kernel's overlay, likewise.

use std::time::Duration;

use peregrine_dataplane::plan::WorkOrder;
use peregrine_dataplane::types::Class;

use super::bench::{Bench, Cores, Offered, Run, Setup, batch_us};
use super::kernel::{Kernel, KernelRun};
use super::measured::{LoadReport, OVERLOAD, Percentiles, Point, PortReport};
use super::traffic::{Receiver, URGENT_PORT, rule};
use super::wire::Generator;
use crate::figures::median;

/// Urgent packets a second.
pub const URGENT_PPS: f64 = 1000.0;
/// Normal ones, as parts of what the worker can take.
pub const FRACTIONS: [f64; 3] = [0.7, 0.95, OVERLOAD];
/// What the worker can take over the wire, as a part of what the wire brings: so that the most that is offered is well below that, since
/// it drops without regard to class.
const OF_WIRE: f64 = 0.25;
/// Windows for a capacity; the median counts.
const WINDOWS: usize = 5;
/// What is told of added work is a multiple of this.
const WORK_STEP: f64 = 100.0;

/// How long what takes.
#[derive(Clone, Copy, Debug)]
pub struct Times {
    /// Of each mode under each load, in turns.
    pub runs: usize,
    pub warm_up: Duration,
    pub window: Duration,
    /// Of a capacity, and of each run of a throughput pair.
    pub capacity: Duration,
    /// Each look at what the machine takes.
    pub machine: Duration,
    pub pairs: usize,
}

impl Times {
    /// All of it under a minute.
    const QUICK: Times = Times {
        runs: 1,
        warm_up: Duration::from_millis(50),
        window: Duration::from_millis(350),
        capacity: Duration::from_millis(60),
        machine: Duration::from_millis(500),
        pairs: 5,
    };
    /// Some eight minutes.
    const FULL: Times = Times {
        runs: 5,
        warm_up: Duration::from_millis(150),
        window: Duration::from_millis(1000),
        capacity: Duration::from_millis(250),
        machine: Duration::from_millis(2000),
        pairs: 11,
    };

    pub fn of(quick: bool) -> Times {
        if quick { Times::QUICK } else { Times::FULL }
    }
}

/// A worker on its core, set like this, with the rule for the urgent flow.
pub fn setup(cores: Cores, order: WorkOrder, early: bool, work: u32) -> Setup {
    let rules = vec![rule(URGENT_PORT, Class::URGENT)];
    Setup { cores, order, early, work, normal_share: 0, rules, is_all_urgent: false }
}

/// What the worker takes of normal packets alone, a second.
pub fn capacity(setup: &Setup, wire: Option<&Generator>, times: Times) -> Result<f64, String> {
    let rates: Result<Vec<f64>, String> = (0..WINDOWS)
        .map(|_| {
            let bench = Bench::start(setup, wire)?;
            match wire {
                Some(_) => bench.most(times.capacity),
                None => bench.capacity(times.capacity),
            }
        })
        .collect();
    Ok(median(rates?))
}

/// With frames from memory.
pub fn replay(name: &str, work: u32, cores: Cores, times: Times) -> Result<PortReport, String> {
    measure(name, work, None, cores, times)
}

/// Over AF_XDP, with so much work on each packet that the worker is slower than the wire.
pub fn veth(name: &str, cores: Cores, times: Times) -> Result<PortReport, String> {
    let generator = Generator::start(cores.first, Receiver::Tenants, cores.hertz)?;
    let idle = setup(cores, WorkOrder::Fifo, false, 0);
    let wire = capacity(&idle, Some(&generator), times)?;
    let work = ((cores.hertz / (OF_WIRE * wire) / WORK_STEP).ceil() * WORK_STEP) as u32;
    let report = measure(name, work, Some(&generator), cores, times)?;
    let late = Percentiles::of(&[generator.lateness()], cores.hertz);
    Ok(PortReport { wire_mpps: Some(wire / 1e6), sent_late_us: Some(late), ..report })
}

fn points() -> Vec<Point> {
    let of = |fraction| {
        let with = move |order| [false, true].map(|early| Point { fraction, order, early });
        WorkOrder::ALL.into_iter().flat_map(with)
    };
    FRACTIONS.into_iter().flat_map(of).collect()
}

fn measure(
    name: &str,
    work: u32,
    wire: Option<&Generator>,
    cores: Cores,
    times: Times,
) -> Result<PortReport, String> {
    let capacity = capacity(&setup(cores, WorkOrder::Fifo, false, work), wire, times)?;
    let run = |order, early, normal| {
        let bench = Bench::start(&setup(cores, order, early, work), wire)?;
        bench.measure(Offered { urgent: URGENT_PPS, normal }, times.warm_up, times.window)
    };
    let mut idle: Vec<Run> = Vec::new();
    let mut all: Vec<(Point, Vec<Run>)> = points().into_iter().map(|point| (point, Vec::new())).collect();
    for _ in 0..times.runs {
        idle.push(run(WorkOrder::Sync, true, 0.0)?);
        for (point, runs) in &mut all {
            runs.push(run(point.order, point.early, point.fraction * capacity)?);
        }
        all.rotate_left(1); // who is first changes, so that what drifts favours nobody
    }
    let runs =
        |wanted: Point| all.iter().filter(move |(point, _)| *point == wanted).flat_map(|(_, runs)| runs);
    let load = |point: Point| {
        let baseline = Point { order: WorkOrder::Fifo, early: false, ..point };
        let [its, baseline] = [point, baseline].map(|point| runs(point).cloned().collect::<Vec<Run>>());
        LoadReport::of(point, name, &its, &baseline, cores.hertz)
    };
    // In others the core may have been taken away in the middle of a step.
    let step = all.iter().flat_map(|(_, runs)| runs).map(|run| run.slowest_step).fold(f64::MAX, f64::min);
    let (idle, idle_calm): (Vec<_>, Vec<_>) = idle.into_iter().map(|run| (run.latencies, run.calm)).unzip();
    Ok(PortReport {
        port: name.into(),
        work_cycles: work,
        capacity_mpps: capacity / 1e6,
        wire_mpps: None,
        batch_us: Some(batch_us(step, cores.hertz)),
        sent_late_us: None,
        idle_us: Percentiles::of(&idle, cores.hertz),
        idle_calm_us: Percentiles::of_all(&idle_calm, cores.hertz),
        loads: points().into_iter().map(load).collect(),
    })
}

/// The kernel's overlay, with the tenant on the worker's core.
pub fn kernel(name: &str, cores: Cores, times: Times) -> Result<PortReport, String> {
    let generator = Generator::start(cores.first, Receiver::Kernel, cores.hertz)?;
    let kernel = Kernel::start(&generator, cores.worker, cores.hertz)?;
    let capacity = kernel.capacity(times.capacity)?;
    let run = |normal| kernel.measure(Offered { urgent: URGENT_PPS, normal }, times.warm_up, times.window);
    let mut idle: Vec<KernelRun> = Vec::new();
    let mut loads: Vec<Vec<KernelRun>> = vec![Vec::new(); FRACTIONS.len()];
    for _ in 0..times.runs {
        idle.push(run(0.0)?);
        for (fraction, runs) in FRACTIONS.into_iter().zip(&mut loads) {
            runs.push(run(fraction * capacity)?);
        }
    }
    let (idle, idle_calm): (Vec<_>, Vec<_>) = idle.into_iter().map(|run| (run.latencies, run.calm)).unzip();
    let report =
        |(fraction, runs): (f64, &Vec<KernelRun>)| LoadReport::of_kernel(fraction, name, runs, cores.hertz);
    Ok(PortReport {
        port: name.into(),
        work_cycles: 0,
        capacity_mpps: capacity / 1e6,
        wire_mpps: None,
        batch_us: None,
        sent_late_us: Some(Percentiles::of(&[generator.lateness()], cores.hertz)),
        idle_us: Percentiles::of(&idle, cores.hertz),
        idle_calm_us: Percentiles::of_all(&idle_calm, cores.hertz),
        loads: FRACTIONS.into_iter().zip(&loads).map(report).collect(),
    })
}
