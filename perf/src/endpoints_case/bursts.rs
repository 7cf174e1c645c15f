//! Bursts of endpoints on an engine without a wire: one worker, the control thread on another core. `endpoints_case` runs it.
//!
//! What is timed is all that stands between a decision and a packet, but for the control socket and the state file: the change with
//! its checks, its publication to the worker, the memif rings handed over, and a packet from the far VTEP in each tenant's ring.

use std::sync::Arc;
use std::time::{Duration, Instant};

use peregrine_dataplane::engine::{Change, Engine, TenantRings};
use peregrine_dataplane::plan::{EndpointPlan, MemifPlan, Plan, WorkerPlan};
use peregrine_dataplane::replay::{Field, Numbers, Pace, ReplayFrame, ReplayStream, Speed};
use peregrine_dataplane::types::{CoreId, EndpointId};
use peregrine_dataplane::wire::outer::OVERHEAD_IPV4;
use peregrine_memif::{ClientConfig, Interface, SocketAddr};

use crate::paced::{hertz, speed};
use crate::rig::{NETWORK, connect, plan, tenant_mac, underlay_frame};

/// Bytes of the inner packets.
const INNER_BYTES: usize = 64;
/// Packets a second from the far VTEP, to one new endpoint after the other: each gets its first one soon, and the worker has time.
const PACKETS_PER_SECOND: f64 = 2e6;
/// What on a quiet machine takes much less.
const PATIENCE: Duration = Duration::from_secs(30);

/// What a burst of endpoints begins with, and ends with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Endpoints nobody is attached to: the change alone, until the worker forwards by it.
    Change,
    /// Tenants are connected before: the change, and their rings handed to the worker, to the first packet through each.
    ExistingPorts,
    /// The rings are made as well, with memif's handshake, each over a socket pair.
    Memif,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Change, Kind::ExistingPorts, Kind::Memif];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Change => "change",
            Kind::ExistingPorts => "existing-ports",
            Kind::Memif => "memif",
        }
    }
}

/// What one burst took, from its beginning.
#[derive(Clone, Debug)]
pub struct Burst {
    /// The call, with its checks.
    pub change_us: f64,
    /// Until the worker forwards by it.
    pub in_force_us: f64,
    /// Until each endpoint had its first packet, in rising order; none of [`Kind::Change`].
    pub first_packet_us: Vec<f64>,
    /// The same endpoints taken away again, the call.
    pub removal_us: f64,
}

/// An engine with so many endpoints, and room for a burst more.
pub struct Bench {
    engine: Engine,
    pace: Arc<Pace>,
    existing: u16,
    burst: u16,
    hertz: f64,
}

/// An endpoint as the bursts have it: with an address, as containers do.
pub fn endpoint(number: u16) -> EndpointPlan {
    let memif = MemifPlan::server(SocketAddr::Abstract("peregrine-perf".into()), number.into());
    let plan = EndpointPlan::new(&format!("tenant{number}"), NETWORK, tenant_mac(number), memif);
    let [high, low] = number.to_be_bytes();
    EndpointPlan { addresses: vec![[10, 0, high, low].into()], announce: false, ..plan }
}

impl Bench {
    /// Starts a worker on a core, and goes to another one.
    pub fn start(
        cores: [core_affinity::CoreId; 2],
        existing: u16,
        burst: u16,
        more: Vec<ReplayStream>,
    ) -> Result<Bench, String> {
        let [control, worker] = cores;
        let mut plan = Plan {
            workers: vec![WorkerPlan::on(CoreId(worker.id))],
            endpoints: (0..existing).map(endpoint).collect(),
            ..plan(0)
        };
        plan.capacity.endpoints = existing + burst;
        let pace = Arc::new(Pace::new(Speed::Stopped));
        let (first, number_in_mac) = (u32::from_be_bytes([0, 1, 0, 0]) + u32::from(existing), 2);
        let stream = ReplayStream {
            frames: vec![ReplayFrame { flow: 0, bytes: underlay_frame(tenant_mac(existing), INNER_BYTES) }],
            pace: pace.clone(),
            field: Some(Field {
                at: OVERHEAD_IPV4 + number_in_mac,
                numbers: Numbers::rising(first, burst.into()),
            }),
            is_urgent: false,
        };
        let streams = std::iter::once(stream).chain(more).collect();
        let mut engine = Engine::replay_streams(&plan, vec![streams]).map_err(|error| error.to_string())?;
        core_affinity::set_for_current(control);
        until(&mut engine, "the worker does not begin", Engine::is_in_force)?;
        Ok(Bench { engine, pace, existing, burst, hertz: hertz() })
    }

    pub fn engine(&mut self) -> &mut Engine {
        &mut self.engine
    }

    fn ids(&self) -> impl Iterator<Item = EndpointId> + use<> {
        (self.existing..self.existing + self.burst).map(EndpointId)
    }

    /// Lets the endpoints of a burst come; the call's time and that until it is in force, from `begun`.
    pub fn come(&mut self, begun: Instant) -> Result<(f64, f64), String> {
        let endpoints = self.ids().map(|id| (id, Some(endpoint(id.0)))).collect();
        self.engine.change(Change { endpoints, ..Change::default() }).map_err(|error| error.to_string())?;
        let change_us = us(begun);
        while !self.engine.is_in_force() {
            if begun.elapsed() > PATIENCE {
                return Err("a change does not come into force".into());
            }
            std::hint::spin_loop();
        }
        Ok((change_us, us(begun)))
    }

    /// Takes them away again; the call's time.
    pub fn go(&mut self) -> Result<f64, String> {
        let begun = Instant::now();
        let endpoints = self.ids().map(|id| (id, None)).collect();
        self.engine.change(Change { endpoints, ..Change::default() }).map_err(|error| error.to_string())?;
        let removal_us = us(begun);
        let last = EndpointId(self.existing + self.burst - 1);
        until(&mut self.engine, "endpoints do not go", |engine| {
            engine.vacant_endpoints().last() == Some(last) && engine.is_in_force()
        })?;
        Ok(removal_us)
    }

    /// One burst, from nothing and back to nothing.
    pub fn run(&mut self, kind: Kind, rings: &ClientConfig) -> Result<Burst, String> {
        let make = || -> Result<Vec<_>, String> { self.ids().map(|_| connect(rings.clone())).collect() };
        let before = if kind == Kind::ExistingPorts { make()? } else { Vec::new() };
        let begun = Instant::now();
        let (change_us, in_force_us) = self.come(begun)?;
        let connections =
            if kind == Kind::Memif { self.make_and_attach(rings)? } else { self.attach(before)? };
        let mut first_packet_us = Vec::new();
        if kind != Kind::Change {
            self.pace.set(speed(PACKETS_PER_SECOND, self.hertz));
            first_packet_us = self.first_packets(begun, connections)?;
            self.pace.set(Speed::Stopped);
        }
        Ok(Burst { change_us, in_force_us, first_packet_us, removal_us: self.go()? })
    }

    fn attach(&mut self, connections: Vec<(Interface, TenantRings)>) -> Result<Vec<Interface>, String> {
        let mut clients = Vec::with_capacity(connections.len());
        for (id, (client, rings)) in self.ids().zip(connections) {
            self.engine.attach(id, rings).map_err(|error| error.to_string())?;
            clients.push(client);
        }
        Ok(clients)
    }

    /// Each is handed over as soon as it is there.
    fn make_and_attach(&mut self, config: &ClientConfig) -> Result<Vec<Interface>, String> {
        let mut clients = Vec::with_capacity(self.burst.into());
        for id in self.ids() {
            let (client, rings) = connect(config.clone())?;
            self.engine.attach(id, rings).map_err(|error| error.to_string())?;
            clients.push(client);
        }
        Ok(clients)
    }

    /// When each had its first packet.
    fn first_packets(&mut self, begun: Instant, clients: Vec<Interface>) -> Result<Vec<f64>, String> {
        let (mut waiting, mut times) = (clients, Vec::with_capacity(self.burst.into()));
        // Those who have theirs stay until the end: nobody hangs up meanwhile.
        let mut served = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            if let Some(event) = self.engine.poll().first() {
                return Err(format!("a tenant was put out: {event:?}"));
            }
            let all = std::mem::take(&mut waiting);
            for mut client in all {
                let pending = client.rx.first_mut().map_or(Ok(0), |ring| ring.pending());
                match pending.map_err(|error| error.to_string())? {
                    0 => waiting.push(client),
                    _ => {
                        times.push(us(begun));
                        served.push(client);
                    }
                }
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} endpoints get no packet", waiting.len()));
            }
        }
        Ok(times)
    }
}

/// Does what control does until then.
pub fn until(engine: &mut Engine, fault: &str, is_so: impl Fn(&Engine) -> bool) -> Result<(), String> {
    let begun = Instant::now();
    while !is_so(engine) {
        engine.poll();
        if begun.elapsed() > PATIENCE {
            return Err(fault.into());
        }
        std::thread::yield_now();
    }
    Ok(())
}

/// Microseconds since.
pub fn us(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e6
}
