//! One worker with an order of work, and what is offered to it: frames from memory, or over a wire by the generator's thread. Control,
//! which is this thread, stays off the worker's core.
//!
//! Latency is taken where it counts: from when a frame was due, by the clock of whoever makes it, to when the tenant has it. The tenants
//! are counters on the worker (`discard`), which need no third core.
//!
//! What must hold at the end of each run, else it is an error: frames that came in are with the tenants, dropped or under way; none
//! of a flow was overtaken.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peregrine_dataplane::discard::DiscardCounters;
use peregrine_dataplane::engine::Engine;
use peregrine_dataplane::frame::BURST;
use peregrine_dataplane::histogram::Histogram;
use peregrine_dataplane::plan::{Early, Plan, RulePlan, WorkOrder, WorkerPlan};
use peregrine_dataplane::replay::Speed;
use peregrine_dataplane::stages::Stage;
use peregrine_dataplane::types::{CoreId, EndpointId};

use super::calm::{Calm, SLICE, SLICE_WITH_GENERATOR, Thread};
use super::measured::Taken;
use super::traffic::{self, FLOWS, Paces, Receiver, classes};
use super::wire::{Generator, NEAR_DEVICE};
use crate::environment::{Apart, CpuTime};
use crate::paced::{self, Latencies};
use crate::pipeline_case::mode::{check, worker_time};
use crate::proc_stat::{self, Ticks};
use crate::rig::plan;

/// The steps that work is added to, the same to each.
const WORKED: [Stage; 4] = [Stage::Classify, Stage::Decap, Stage::Lookup, Stage::Deliver];
/// How often control looks: seldom, for its core may be the generator's.
const TICK: Duration = Duration::from_millis(20);
/// What is still under way at the end has arrived, or is lost, when nothing has come for so long, and for so many turns of the worker.
const QUIET: Duration = Duration::from_millis(30);
const QUIET_TURNS: u64 = 100;
/// A wait that began before a window can be longer than it: then there is nothing to tell, and nothing to divide by.
const HAD_MIN: f64 = 0.1;
/// Nothing takes longer than this to begin.
const PATIENCE: Duration = Duration::from_secs(10);

/// Which core does what.
#[derive(Clone, Copy, Debug)]
pub struct Cores {
    /// Control, and the generator with the wire.
    pub first: usize,
    pub worker: usize,
    /// Of the clock that all times are taken by.
    pub hertz: f64,
}

/// How the worker is set.
#[derive(Clone, Debug)]
pub struct Setup {
    pub cores: Cores,
    pub order: WorkOrder,
    pub early: bool,
    /// Cycles added to each packet's way, a quarter in each of four steps.
    pub work: u32,
    pub normal_share: u8,
    pub rules: Vec<RulePlan>,
    /// Frames from memory that go to the normal tenant are urgent for the driver, too: with early classes they have that ring.
    pub is_all_urgent: bool,
}

impl Setup {
    fn plan(&self, is_wire: bool) -> Plan {
        let mut plan = plan(2);
        plan.workers = vec![WorkerPlan::on(CoreId(self.cores.worker))];
        plan.classes = classes(self.order, self.normal_share, self.rules.clone());
        for uplink in &mut plan.uplinks {
            uplink.early = if self.early { Early::On } else { Early::Off };
            if is_wire {
                uplink.interface = NEAR_DEVICE.into();
            }
        }
        plan
    }

    fn name(&self) -> String {
        let early = if self.early { ", early classes" } else { "" };
        format!("{}{early}, {} cycles of work", self.order.name(), self.work)
    }
}

/// Offered packets a second.
#[derive(Clone, Copy, Debug)]
pub struct Offered {
    pub urgent: f64,
    pub normal: f64,
}

/// Where things stood at one moment, all counted since the start.
#[derive(Clone, Debug)]
pub struct Reading {
    at: Instant,
    pub urgent: u64,
    pub normal: u64,
    latencies: Latencies,
    cpu: CpuTime,
    ticks: Ticks,
    stalls: u64,
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct Run {
    /// Of urgent packets due in the window, as they arrived.
    pub latencies: Latencies,
    /// Those of them that were met while nobody took a core away.
    pub calm: Latencies,
    /// Urgent packets that were due in the whole run; those of them that the generator gave up, because the wire's core was taken away or
    /// too slow; and those that were offered to the worker and no tenant got.
    pub urgent_due: u64,
    pub urgent_unsent: u64,
    pub urgent_lost: u64,
    /// Packets a second that came to the tenants in the window.
    pub urgent_rate: f64,
    pub normal_rate: f64,
    /// The part of the window in which it did not wait for its core. What `core_share` is made of moves on in scheduler ticks only, which is
    /// too coarse for short windows.
    pub had_core: f64,
    pub core_share: f64,
    pub taken: Taken,
    /// Cycles that a packet costs in the slowest step, in the mean.
    pub slowest_step: f64,
}

impl Run {
    /// Packets a second of the time in which the worker had its core: what is taken away from it says nothing of what it does.
    pub fn normal_of_core(&self) -> f64 {
        self.normal_rate / self.had_core
    }

    pub fn urgent_of_core(&self) -> f64 {
        self.urgent_rate / self.had_core
    }
}

/// A worker that runs.
pub struct Bench {
    engine: Engine,
    urgent: Arc<DiscardCounters>,
    normal: Arc<DiscardCounters>,
    paces: Paces,
    /// Due and missed, of the generator, which counts on from run to run.
    urgent_before: [u64; 2],
    is_wire: bool,
    core: usize,
    hertz: f64,
    name: String,
    // Last, so that the next engine finds all cores again.
    _apart: Apart,
}

impl Bench {
    /// Starts it, with nothing offered yet; frames come from this generator, or from memory.
    pub fn start(setup: &Setup, wire: Option<&Generator>) -> Result<Bench, String> {
        let plan = setup.plan(wire.is_some());
        let failed = |error: &dyn std::fmt::Display| format!("{}: {error}", setup.name());
        let (started, paces) = match wire {
            Some(generator) => (Engine::start(&plan), generator.paces.clone()),
            None => {
                let (mut streams, paces) = traffic::streams(Receiver::Tenants)?;
                streams.iter_mut().for_each(|stream| stream.is_urgent |= setup.is_all_urgent);
                (Engine::replay_streams(&plan, vec![streams]), paces)
            }
        };
        let mut engine = started.map_err(|error| failed(&error))?;
        for stage in WORKED {
            engine.work().set(stage, setup.work / WORKED.len() as u32);
        }
        let urgent = engine.attach_timed_discard(EndpointId(0), FLOWS).map_err(|error| failed(&error))?;
        let normal = engine.attach_discard(EndpointId(1), FLOWS).map_err(|error| failed(&error))?;
        Ok(Bench {
            engine,
            urgent,
            normal,
            urgent_before: of_urgent(&paces),
            paces,
            is_wire: wire.is_some(),
            core: setup.cores.worker,
            hertz: setup.cores.hertz,
            name: setup.name(),
            _apart: Apart::on(setup.cores.first)?,
        })
    }

    /// From now on so many packets are due.
    pub fn offer(&self, offered: Offered) {
        let speed = |rate: f64| if rate > 0.0 { paced::speed(rate, self.hertz) } else { Speed::Stopped };
        self.paces.urgent.set(speed(offered.urgent));
        self.paces.normal.set(speed(offered.normal));
    }

    /// Offers these, and lets things settle for `warm_up`; then what comes in `window`, and what was lost of the urgent ones in all.
    pub fn measure(self, offered: Offered, warm_up: Duration, window: Duration) -> Result<Run, String> {
        self.offer(offered);
        self.measure_what_is_offered(warm_up, window)
    }

    fn measure_what_is_offered(mut self, warm_up: Duration, window: Duration) -> Result<Run, String> {
        self.pass(warm_up, TICK, |_| Ok(()))?;
        let (threads, slice) = self.threads();
        let before = self.read()?;
        let mut calm = Calm::start(&threads, before.latencies.clone())?;
        self.pass(window, slice, |bench| calm.slice(bench.latencies()))?;
        let after = self.read()?;
        let slowest_step = self.slowest_step();
        self.offer(Offered { urgent: 0.0, normal: 0.0 });
        self.drain();
        let last = self.read()?;
        let [due, missed] = of_urgent(&self.paces);
        let (urgent_due, missed) = (due - self.urgent_before[0], missed - self.urgent_before[1]);
        // What finds the ring full that `replay` is, no tenant gets; what the generator gives up, nobody was offered.
        let urgent_unsent = if self.is_wire { missed } else { 0 };
        self.stop()?;
        let seconds = (after.at - before.at).as_secs_f64();
        let (waited_ns, switches) = after.cpu.taken_since(&before.cpu);
        Ok(Run {
            latencies: last.latencies.since(&before.latencies),
            calm: calm.end(),
            urgent_due,
            urgent_unsent,
            urgent_lost: (urgent_due - urgent_unsent).saturating_sub(last.urgent),
            urgent_rate: (after.urgent - before.urgent) as f64 / seconds,
            normal_rate: (after.normal - before.normal) as f64 / seconds,
            had_core: (1.0 - waited_ns as f64 / 1e9 / seconds).max(HAD_MIN),
            core_share: after.cpu.share_since(&before.cpu),
            taken: Taken {
                switches,
                waited_ms: waited_ns as f64 / 1e6,
                stolen_ms: after.ticks.since(before.ticks).stolen as f64 * 1000.0 / proc_stat::TICKS,
                stalls: after.stalls - before.stalls,
            },
            slowest_step,
        })
    }

    /// The most packets that come through in a second of the time in which the worker has its core: normal ones, as fast as they go.
    pub fn most(self, window: Duration) -> Result<f64, String> {
        self.paces.normal.set(Speed::Full);
        let run = self.measure_what_is_offered(window / 2, window)?;
        Ok(run.normal_of_core())
    }

    /// The same with a rate that nobody keeps up with, so that frames are due at times.
    pub fn capacity(self, window: Duration) -> Result<f64, String> {
        /// Cycles between frames.
        const TOO_FAST: f64 = 8.0;
        let normal = self.hertz / TOO_FAST;
        let run = self.measure(Offered { urgent: 0.0, normal }, window / 2, window)?;
        Ok(run.normal_of_core())
    }

    /// Who must have their cores for what is met to be the worker's, and how long slices are.
    fn threads(&self) -> (Vec<Thread>, Duration) {
        let worker = Thread::worker(self.core);
        match self.is_wire {
            true => (vec![worker, Thread::generator()], SLICE_WITH_GENERATOR),
            false => (vec![worker], SLICE),
        }
    }

    /// Does what control does for so long, and until packets have come; `each` at each look.
    fn pass(
        &mut self,
        time: Duration,
        tick: Duration,
        mut each: impl FnMut(&Bench) -> Result<(), String>,
    ) -> Result<(), String> {
        let (start, packets) = (Instant::now(), self.packets());
        loop {
            let elapsed = start.elapsed();
            if elapsed >= time && self.packets() > packets {
                return Ok(());
            }
            if elapsed >= time + PATIENCE {
                let counters = serde_json::json!(self.engine.stats());
                return Err(format!("{}: traffic stands still: {counters}", self.name));
            }
            std::thread::sleep(time.saturating_sub(elapsed).clamp(Duration::from_millis(1), tick));
            self.engine.poll();
            each(self)?;
        }
    }

    /// Until nothing comes any more.
    fn drain(&mut self) {
        let (mut packets, mut turns, mut since) = (self.packets(), self.turns(), Instant::now());
        let deadline = Instant::now() + PATIENCE;
        while (since.elapsed() < QUIET || self.turns() - turns < QUIET_TURNS) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            self.engine.poll();
            if self.packets() > packets {
                (packets, turns, since) = (self.packets(), self.turns(), Instant::now());
            }
        }
    }

    fn turns(&self) -> u64 {
        self.engine.stats().workers.iter().map(|worker| worker.turns).sum()
    }

    fn packets(&self) -> u64 {
        self.urgent.packets.get() + self.normal.packets.get()
    }

    fn read(&self) -> Result<Reading, String> {
        let stats = self.engine.stats();
        let name = format!("cpu{}", self.core);
        let ticks = Ticks::parse(&proc_stat::read()?, &name);
        Ok(Reading {
            at: Instant::now(),
            urgent: self.urgent.packets.get(),
            normal: self.normal.packets.get(),
            latencies: self.latencies(),
            cpu: worker_time(self.core)?,
            ticks: ticks.ok_or(format!("/proc/stat has no line for {name}"))?,
            stalls: stats.workers.iter().map(|worker| worker.stalls).sum(),
        })
    }

    fn latencies(&self) -> Latencies {
        Latencies::sum(self.urgent.latency.iter().map(Histogram::counts))
    }

    fn slowest_step(&self) -> f64 {
        let stats = self.engine.stats();
        let steps = stats.workers.iter().flat_map(|worker| &worker.stages);
        steps.filter_map(|step| step.cycles_per_frame).fold(0.0, f64::max)
    }

    /// Ends it. Whatever does not add up is an error, with all counters.
    fn stop(self) -> Result<(), String> {
        let Bench { engine, urgent, normal, is_wire, name, .. } = self;
        let stats = engine.stop();
        let all = DiscardCounters::new(0);
        for tenant in [&urgent, &normal] {
            all.packets.add(tenant.packets.get());
            all.reordered.add(tenant.reordered.get());
            all.strange.add(tenant.strange.get());
            // Over a wire numbers are passed over by what is lost there, and begin where the last run ended.
            all.missing.add(if is_wire { 0 } else { tenant.missing.get() });
        }
        check(&stats, &all).map_err(|fault| format!("{name}: {fault}: {all:?} {}", serde_json::json!(stats)))
    }
}

/// Due and missed.
fn of_urgent(paces: &Paces) -> [u64; 2] {
    [paces.urgent.due.get(), paces.urgent.missed.get()]
}

/// How long a whole burst takes in a step in which a packet costs so many cycles, in µs.
pub fn batch_us(step_cycles: f64, hertz: f64) -> f64 {
    1e6 * BURST as f64 * step_cycles / hertz
}

#[cfg(test)]
mod tests {
    use super::super::port::setup;
    use super::*;
    use crate::pipeline_case::mode::tests::ENGINE;

    fn cores() -> Cores {
        let cores = core_affinity::get_core_ids().unwrap();
        Cores { first: cores[0].id, worker: cores[1 % cores.len()].id, hertz: paced::hertz() }
    }

    #[test]
    fn every_order_brings_both_kinds_to_their_tenants() {
        let _alone = ENGINE.lock();
        let time = Duration::from_millis(5);
        for order in WorkOrder::ALL {
            for early in [false, true] {
                let bench = Bench::start(&setup(cores(), order, early, 100), None).unwrap();
                let run = bench.measure(Offered { urgent: 20_000.0, normal: 20_000.0 }, time, time).unwrap();
                let arrived = run.urgent_due - run.urgent_lost;
                assert!(arrived > 0 && run.latencies.samples() <= arrived, "{order:?} {early} {run:?}");
                assert!(run.normal_rate + run.urgent_rate > 0.0 && run.had_core > 0.0, "{run:?}");
                assert!(run.calm.samples() <= run.latencies.samples() && run.urgent_unsent == 0, "{run:?}");
            }
        }
    }

    #[test]
    fn a_worker_that_has_too_much_to_do_takes_what_it_can() {
        let _alone = ENGINE.lock();
        let time = Duration::from_millis(5);
        let setup = setup(cores(), WorkOrder::Sync, true, 400);
        assert!(Bench::start(&setup, None).unwrap().capacity(time).unwrap() > 0.0);
        // The thread may run where it likes again, or no engine would find the worker's core.
        assert!(Bench::start(&setup, None).unwrap().most(time).unwrap() > 0.0);
    }
}
