//! One engine with one worker, what is sent to it, and how long that took. This thread sends, is the tenant that receives, and does what
//! control does.

use std::time::{Duration, Instant};

use peregrine_control::demo::hosts::{FAR as FAR_END, NEAR};
use peregrine_dataplane::clock::{cycles, cycles_per_second};
use peregrine_dataplane::engine::{Engine, TenantRings};
use peregrine_dataplane::frame::Burst;
use peregrine_dataplane::plan::{IdleMode, Plan, WorkerPlan, XdpMode};
use peregrine_dataplane::types::{CoreId, EndpointId, MacAddr, QueueId};
use peregrine_dataplane::wire::outer::{OVERHEAD_IPV4, OuterFields, OuterTemplate};
use peregrine_dataplane::xsk::{self, WorkerPort, XskConfig};
use peregrine_memif::{ClientConfig, Interface};

use super::{Run, Setup};
use crate::environment::Apart;
use crate::pipeline_case::mode::worker_time;
use crate::rig::{self, FAR, LOCAL, REMOTE, VNI, inner, tenant_mac};

/// Between two packets.
const INTERVAL: Duration = Duration::from_millis(1);
/// Until all is warm, and asleep if it sleeps.
const SETTLING: Duration = Duration::from_millis(200);
/// A packet that has not come by then is lost.
const PATIENCE: Duration = Duration::from_millis(500);
const INNER_BYTES: usize = 64;

/// Tenants whose memif rings are in this process: the first receives, the second sends.
pub fn memif(setup: Setup) -> impl FnMut(IdleMode) -> Result<Run, String> {
    move |idle| {
        let mut engine = Engine::replay(&plan(setup, idle), Vec::new()).map_err(|e| e.to_string())?;
        let [mut receiver, mut sender] = [attach(&mut engine, 0)?, attach(&mut engine, 1)?];
        let packet = inner(tenant_mac(1), tenant_mac(0), INNER_BYTES);
        let send = || {
            let ring = sender.tx.first_mut().ok_or("the tenant has no ring")?;
            ring.push(&packet).map_err(|error| format!("the tenant cannot send: {error:?}"))?;
            ring.flush().map(drop).map_err(|error| format!("the tenant cannot call: {error}"))
        };
        measure((setup, idle), &mut engine, &mut receiver, send)
    }
}

/// The same with packets that come over a wire, whose far end is this thread's.
pub fn wire(setup: Setup) -> impl FnMut(IdleMode) -> Result<Run, String> {
    move |idle| {
        let config = XskConfig::new(FAR_END.1, XdpMode::Copy);
        let (_far, mut ports) = xsk::open(&config, &[vec![QueueId(0)]]).map_err(|error| error.to_string())?;
        let mut port = ports.pop().ok_or("the far end of the wire has no queue")?;
        let mut plan = plan(setup, idle);
        plan.uplinks.iter_mut().for_each(|uplink| uplink.interface = NEAR.1.into());
        let mut engine = Engine::start(&plan).map_err(|error| error.to_string())?;
        let mut receiver = attach(&mut engine, 0)?;
        let packet = encapsulated(&inner(FAR, tenant_mac(0), INNER_BYTES))?;
        measure((setup, idle), &mut engine, &mut receiver, || transmit(&mut port, &packet))
    }
}

fn plan(setup: Setup, idle: IdleMode) -> Plan {
    let worker = WorkerPlan { idle, ..WorkerPlan::on(CoreId(setup.worker)) };
    Plan { workers: vec![worker], ..rig::plan(2) }
}

fn attach(engine: &mut Engine, endpoint: u16) -> Result<Interface, String> {
    let (client, rings): (Interface, TenantRings) = rig::connect(ClientConfig::default())?;
    engine.attach(EndpointId(endpoint), rings).map_err(|error| error.to_string())?;
    Ok(client)
}

/// From the far VTEP.
fn encapsulated(inner: &[u8]) -> Result<Vec<u8>, String> {
    let destination_mac: MacAddr =
        NEAR.2.parse().map_err(|_| format!("{} is no Ethernet address", NEAR.2))?;
    let template = OuterTemplate::new(&OuterFields {
        destination_mac,
        source_mac: FAR,
        source: REMOTE,
        destination: LOCAL,
        port: 4789,
        ttl: 64,
    });
    let mut head = [0; OVERHEAD_IPV4];
    template.write(&mut head, inner.len() as u16, VNI, 50_000);
    Ok([&head[..], inner].concat())
}

fn transmit(port: &mut WorkerPort, packet: &[u8]) -> Result<(), String> {
    let WorkerPort { sockets, pool } = port;
    let socket = sockets.first_mut().ok_or("the far end of the wire has no socket")?;
    socket.complete(pool);
    let mut frame = pool.take().ok_or("no packet that was sent comes back")?;
    frame.reset(0, packet.len()).ok_or("a packet does not fit its frame")?.copy_from_slice(packet);
    let mut burst = Burst::new();
    let _room = burst.push(frame);
    socket.transmit(pool, &mut burst);
    socket.kick(cycles());
    burst.drain().for_each(|frame| pool.put(frame));
    Ok(())
}

/// At rest, and then a packet every millisecond.
fn measure(
    (setup, idle): (Setup, IdleMode),
    engine: &mut Engine,
    receiver: &mut Interface,
    mut send: impl FnMut() -> Result<(), String>,
) -> Result<Run, String> {
    let _apart = Apart::on(setup.first)?;
    for _ in 0..20 {
        packet(receiver, &mut send)?;
        pass(engine, SETTLING / 20);
    }
    let idle_percent = percent(setup, || {
        pass(engine, setup.window);
        Ok(())
    })?;
    let before = sleeps(engine);
    let (mut times, mut lost) = (Vec::with_capacity(setup.packets), 0);
    let paced_percent = percent(setup, || {
        let mut due = Instant::now();
        for _ in 0..setup.packets {
            // Never sooner than that after the one before, or a worker would not be asleep.
            due = due.max(Instant::now()) + INTERVAL;
            while Instant::now() < due {
                std::hint::spin_loop();
            }
            match packet(receiver, &mut send)? {
                Some(time) => times.push(time),
                None => lost += 1,
            }
            engine.poll();
        }
        Ok(())
    })?;
    // Otherwise it is not waking that was measured.
    let slept = sleeps(engine) - before;
    if idle == IdleMode::Adaptive && slept < setup.packets as u64 / 2 {
        return Err(format!(
            "the worker on core {} slept {slept} times between {} packets: keep other programs from cores {} and {}",
            setup.worker, setup.packets, setup.first, setup.worker
        ));
    }
    times.sort_unstable();
    let us = |share: f64| {
        let place = ((times.len() as f64 * share) as usize).min(times.len().saturating_sub(1));
        times.get(place).map_or(0.0, |time| *time as f64 * 1e6 / cycles_per_second() as f64)
    };
    Ok(Run { idle_percent, paced_percent, p50_us: us(0.5), p99_us: us(0.99), p999_us: us(0.999), lost })
}

/// How often its worker has slept.
fn sleeps(engine: &Engine) -> u64 {
    engine.stats().workers.iter().map(|worker| worker.sleeps).sum()
}

/// Processor time of the worker's thread meanwhile, in percent of a core.
fn percent(setup: Setup, work: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    let (began, before) = (Instant::now(), worker_time(setup.worker)?);
    work()?;
    let ran = worker_time(setup.worker)?.ran_since(&before);
    Ok(100.0 * ran.as_secs_f64() / began.elapsed().as_secs_f64())
}

/// Does what control does, for so long.
fn pass(engine: &mut Engine, time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        std::thread::sleep(left.min(Duration::from_millis(20)));
        engine.poll();
    }
}

/// Sends one, and waits for it at its tenant: how many cycles that took. One that was late, and counts as lost, is not taken for it.
fn packet(
    receiver: &mut Interface,
    send: &mut impl FnMut() -> Result<(), String>,
) -> Result<Option<u64>, String> {
    let ring = receiver.rx.first_mut().ok_or("the tenant has no ring")?;
    while ring.next_packet().is_some() {}
    ring.release();
    let (began, deadline) = (cycles(), Instant::now() + PATIENCE);
    send()?;
    loop {
        let pending = ring.pending().map_err(|error| error.to_string())?;
        if pending > 0 {
            let time = cycles().saturating_sub(began);
            while ring.next_packet().is_some() {}
            ring.release();
            return Ok(Some(time));
        }
        if Instant::now() > deadline {
            return Ok(None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline_case::mode::tests::ENGINE;

    #[test]
    fn every_packet_comes_in_both_modes() {
        let _alone = ENGINE.lock();
        let cores = core_affinity::get_core_ids().unwrap();
        let window = Duration::from_millis(50);
        let setup = Setup { first: cores[0].id, worker: cores[1 % cores.len()].id, window, packets: 50 };
        let mut bench = memif(setup);
        for idle in [IdleMode::Busy, IdleMode::Adaptive] {
            let run = bench(idle).unwrap();
            assert_eq!(run.lost, 0, "{run:?}");
            assert!(run.p50_us > 0.0 && run.p50_us <= run.p99_us && run.p99_us <= run.p999_us, "{run:?}");
        }
    }
}
