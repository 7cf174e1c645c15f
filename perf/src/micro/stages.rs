//! Micro-benches of the stages, each with one burst of 64, and of whole ways: from the underlay to a tenant, from a tenant to the
//! underlay, from tenant to tenant. No wire: what would leave is counted and thrown away. Used by `micro`.

use peregrine_dataplane::frame::{BURST, Burst};
use peregrine_dataplane::stages::{self, Stage, collect};
use peregrine_dataplane::types::{EndpointId, MacAddr};
use peregrine_memif::{ClientConfig, Interface};

use super::{Case, MILLION, Maker, PACKETS, case, maker};
use crate::rig::{FAR, Rig, Underlay, encapsulated_over, fill, inner, station, tenant_mac};

/// Tenants: a burst takes half of its packets from each.
const TENANTS: u16 = 2;

pub fn cases() -> Vec<Maker> {
    let mut cases = Vec::new();
    for bytes in [64, 1400] {
        for (name, last) in [
            ("classify", Stage::Classify),
            ("decap", Stage::Decap),
            ("lookup-in", Stage::Lookup),
            ("deliver", Stage::Deliver),
        ] {
            cases.push(maker(format!("stage/{name}/{bytes}"), move |name| {
                Ok(stage_in(name, Bench::new(bytes)?, last))
            }));
        }
        cases.push(maker(format!("stage/collect/{bytes}"), move |name| {
            Ok(collect_burst(name, Bench::new(bytes)?))
        }));
        for (name, last) in [("lookup-out", Stage::Lookup), ("encap", Stage::Encap)] {
            cases.push(maker(format!("stage/{name}/{bytes}"), move |name| {
                Ok(stage_out(name, Bench::new(bytes)?, last))
            }));
        }
        cases.push(maker(format!("path/in/{bytes}"), move |name| Ok(path_in(name, Bench::new(bytes)?))));
        cases.push(maker(format!("path/out/{bytes}"), move |name| Ok(path_out(name, Bench::new(bytes)?))));
        cases.push(maker(format!("path/tenant-to-tenant/{bytes}"), move |name| {
            Ok(tenant_to_tenant(name, Bench::new(bytes)?))
        }));
    }
    for (name, underlay) in [("ipv6", Underlay::Ipv6ZeroChecksum), ("ipv6-udp-sum", Underlay::Ipv6)] {
        for bytes in [64, 1400] {
            let bench = move || Bench::with(underlay, bytes, 0);
            cases.push(maker(format!("stage/classify-{name}/{bytes}"), move |name| {
                Ok(stage_in(name, bench()?, Stage::Classify))
            }));
            cases.push(maker(format!("stage/encap-{name}/{bytes}"), move |name| {
                Ok(stage_out(name, bench()?, Stage::Encap))
            }));
            cases.push(maker(format!("path/in-{name}/{bytes}"), move |name| Ok(path_in(name, bench()?))));
            cases.push(maker(format!("path/out-{name}/{bytes}"), move |name| Ok(path_out(name, bench()?))));
        }
    }
    cases.push(maker(format!("stage/lookup-in/{MILLION}"), |name| {
        Ok(lookup_many(name, Bench::with(Underlay::Ipv4, 64, STATIONS)?))
    }));
    cases
}

/// Stations behind the far VTEP in the case with many.
const STATIONS: u32 = 1_000_000;

/// A worker's things, its tenants' ends, and the two bursts that a stage works between.
struct Bench {
    rig: Rig,
    clients: Vec<Interface>,
    input: Burst,
    output: Burst,
    frame_bytes: usize,
    inner_bytes: usize,
    read: Vec<u8>,
}

impl Bench {
    fn new(inner_bytes: usize) -> Result<Bench, String> {
        Bench::with(Underlay::Ipv4, inner_bytes, 0)
    }

    fn with(underlay: Underlay, inner_bytes: usize, stations: u32) -> Result<Bench, String> {
        let mut rig = Rig::over(underlay, TENANTS, 4 * BURST, stations)?;
        let clients = (0..TENANTS)
            .map(|id| rig.attach(EndpointId(id), ClientConfig::default()))
            .collect::<Result<Vec<_>, _>>()?;
        let frame = encapsulated_over(underlay, &inner(FAR, tenant_mac(0), inner_bytes));
        fill(&mut rig.pool, &frame)?;
        Ok(Bench {
            rig,
            clients,
            input: Burst::new(),
            output: Burst::new(),
            frame_bytes: frame.len(),
            inner_bytes,
            read: vec![0; 2048],
        })
    }

    /// Both bursts empty, all frames at home, nothing in the rings towards the tenants.
    fn clear(&mut self) {
        for frame in self.input.drain().chain(self.output.drain()) {
            self.rig.pool.put(frame);
        }
        for rx in self.clients.iter_mut().flat_map(|client| &mut client.rx) {
            let _waiting = rx.pending();
            while let Some(packet) = rx.next_packet() {
                let _read = packet.is_ok_and(|packet| packet.copy_to(&mut self.read).is_some());
            }
            rx.release();
        }
    }

    /// A burst as it comes from the underlay, taken through the stages before `stage`.
    fn take_underlay(&mut self, stage: Stage) {
        self.clear();
        while self.input.room() > 0
            && let Some(mut frame) = self.rig.pool.take()
        {
            let _there = frame.reset(0, self.frame_bytes);
            if let Err(frame) = self.input.push(frame) {
                self.rig.pool.put(frame);
            }
        }
        self.run_until(Stage::Classify, stage);
    }

    /// A burst as the tenants sent it, taken through the stages before `stage`.
    fn take_tenants(&mut self, stage: Stage) {
        self.clear();
        self.tenants_send(|_| FAR);
        collect::run(&mut self.input, &mut self.rig.cx());
        self.run_until(Stage::Lookup, stage);
    }

    fn run_until(&mut self, first: Stage, end: Stage) {
        let mut stage = first;
        while stage != end {
            self.run(stage);
            if self.input.is_empty() {
                std::mem::swap(&mut self.input, &mut self.output);
            }
            match stage.next() {
                Some(next) => stage = next,
                None => return,
            }
        }
    }

    /// One stage; returns how many frames go on.
    #[inline]
    fn run(&mut self, stage: Stage) -> usize {
        stages::run(stage, (&mut self.input, &mut self.output), &mut self.rig.cx()).0.len()
    }

    /// Each tenant sends its part of a burst.
    fn tenants_send(&mut self, to: fn(u16) -> MacAddr) {
        for (number, tx) in
            (0..TENANTS).zip(self.clients.iter_mut().filter_map(|client| client.tx.first_mut()))
        {
            let packet = inner(tenant_mac(number), to(number), self.inner_bytes);
            for _ in 0..PACKETS / usize::from(TENANTS) {
                let _sent = tx.push(&packet);
            }
            let _woken = tx.flush();
        }
    }

    /// Packets given to tenants so far.
    fn given(&self) -> usize {
        self.rig.counters.tenant_tx.frames.get() as usize
    }
}

fn stage_in(name: &str, bench: Bench, stage: Stage) -> Case {
    case(
        name,
        bench,
        move |bench| bench.take_underlay(stage),
        move |bench| {
            let given = bench.given();
            bench.run(stage) + bench.given() - given
        },
    )
}

/// Each packet comes from another station, of all that are known.
fn lookup_many(name: &str, bench: Bench) -> Case {
    let prepare = |(bench, next): &mut (Bench, u32)| {
        bench.take_underlay(Stage::Lookup);
        let Bench { input, output, .. } = bench;
        for mut frame in input.drain() {
            if let Some(source) = frame.bytes_mut().get_mut(6..12) {
                source.copy_from_slice(&station(*next).0);
            }
            *next = (*next + 619_999) % STATIONS; // no divisor of it: all have their turn, in no order
            let _room_for_all = output.push(frame);
        }
        std::mem::swap(input, output);
    };
    case(name, (bench, 0), prepare, |(bench, _)| bench.run(Stage::Lookup))
}

fn stage_out(name: &str, bench: Bench, stage: Stage) -> Case {
    case(name, bench, move |bench| bench.take_tenants(stage), move |bench| bench.run(stage))
}

fn collect_burst(name: &str, bench: Bench) -> Case {
    let prepare = |bench: &mut Bench| {
        bench.clear();
        bench.tenants_send(|_| FAR);
    };
    let run = |bench: &mut Bench| {
        collect::run(&mut bench.output, &mut bench.rig.cx());
        bench.output.len()
    };
    case(name, bench, prepare, run)
}

fn path_in(name: &str, bench: Bench) -> Case {
    let run = |bench: &mut Bench| {
        let given = bench.given();
        let Bench { rig, input, output, .. } = bench;
        stages::run_from(Stage::Classify, (input, output), &mut rig.cx());
        bench.given() - given
    };
    case(name, bench, |bench| bench.take_underlay(Stage::Classify), run)
}

fn path_out(name: &str, bench: Bench) -> Case {
    let prepare = |bench: &mut Bench| {
        bench.clear();
        bench.tenants_send(|_| FAR);
    };
    let run = |bench: &mut Bench| {
        let sent = bench.rig.sent();
        let _nobody = bench.rig.turn();
        (bench.rig.sent() - sent) as usize
    };
    case(name, bench, prepare, run)
}

fn tenant_to_tenant(name: &str, bench: Bench) -> Case {
    let prepare = |bench: &mut Bench| {
        bench.clear();
        bench.tenants_send(|number| tenant_mac(TENANTS - 1 - number));
    };
    let run = |bench: &mut Bench| {
        let given = bench.given();
        let _nobody = bench.rig.turn();
        bench.given() - given
    };
    case(name, bench, prepare, run)
}
