//! Bursts of containers, which know nothing of us: veths with their ports, to an ARP answer by each one's kernel. `endpoints_case` runs it.
//!
//! On an engine without a wire a memif tenant asks, beside the containers; on a daemon the kernel's overlay of the other host does.
//! All devices are in namespaces of this process's own.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use peregrine_control::container::{
    Link, Namespace, Pair, PartPlan, Pool, PoolConfig, Taken, VethPlan, make,
};
use peregrine_control::underlay::netlink::Requests;
use peregrine_dataplane::engine::TenantRings;
use peregrine_dataplane::plan::NamespaceRef;
use peregrine_dataplane::types::EndpointId;
use peregrine_dataplane::xsk::{PortConfig, Ports};
use peregrine_memif::{ClientConfig, Interface};

use super::bursts::{self, us};
use super::kernel::{Host, new_namespaces};
use crate::rig::{connect, tenant_mac};

/// Who asks, and one more, so that no address is that of the network itself.
const EXISTING: u16 = 2;
const ASKER: u16 = 1;
const MTU: u16 = 1450;
const BITS: u8 = 16;
/// Parts that are ready beside those of the burst.
const SPARE: usize = 8;
/// Asked again after so long.
const AGAIN: Duration = Duration::from_millis(2);
/// What on a quiet machine takes much less.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where the containers come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// From a pool that has them ready: namespace, name, and all.
    Pool,
    /// The same from a pool that is empty: each is made on the spot, its namespace, too.
    Empty,
    /// A port into a namespace that was there.
    Given,
}

impl Kind {
    pub const ALL: [Kind; 3] = [Kind::Pool, Kind::Empty, Kind::Given];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Pool => "container-pool",
            Kind::Empty => "container-new",
            Kind::Given => "container-given",
        }
    }
}

/// What a burst has.
enum Made {
    Taken(Taken),
    Pair(Pair),
}

/// An engine, a pool, and who asks.
pub struct Bench {
    engine: bursts::Bench,
    burst: u16,
    asker: Interface,
    requests: Requests,
    ports: Arc<Mutex<Ports>>,
    pool: Pool,
    directory: tempfile::TempDir,
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

fn ip(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 0, high, low)
}

fn link(number: u16) -> Link {
    Link {
        mac: tenant_mac(number),
        mtu: MTU,
        addresses: vec![(ip(number).into(), BITS)],
        gateways: vec![IpAddr::V4(ip(ASKER))],
    }
}

impl Bench {
    /// Does something with it, in a namespace of its own, on a thread of its own.
    pub fn with<T: Send>(
        cores: [core_affinity::CoreId; 2],
        burst: u16,
        work: impl FnOnce(&mut Bench) -> Result<T, String> + Send,
    ) -> Result<T, String> {
        Host::with(|_| work(&mut Bench::start(cores, burst)?))
    }

    fn start(cores: [core_affinity::CoreId; 2], burst: u16) -> Result<Bench, String> {
        let mut engine = bursts::Bench::start(cores, EXISTING, burst, Vec::new())?;
        let rings = ClientConfig { ring_log2: 8, buffer_bytes: 2048, ..ClientConfig::default() };
        let (asker, its) = connect(rings)?;
        engine.engine().attach(EndpointId(ASKER), its).map_err(text)?;
        let ports = Arc::new(Mutex::new(Ports::load().map_err(text)?));
        let directory = tempfile::tempdir_in("/run").map_err(text)?; // as a daemon has it: names are links then
        let size = usize::from(burst) + SPARE;
        let config = PoolConfig {
            size,
            low_water: SPARE - 1,
            interface: "eth0".into(),
            mtu: MTU,
            port: PortConfig::default(),
            alias: "peregrine-perf".into(),
            directory: directory.path().into(),
        };
        let (pool, _) = Pool::start(&config, ports.clone()).map_err(text)?;
        let requests = Requests::open().map_err(text)?;
        Ok(Bench { engine, burst, asker, requests, ports, pool, directory })
    }

    /// One burst, from nothing and back to nothing.
    pub fn run(&mut self, kind: Kind) -> Result<bursts::Burst, String> {
        let size = if kind == Kind::Pool { usize::from(self.burst) + SPARE } else { 0 };
        self.pool.resize(size, SPARE - 1);
        self.until("the pool is not filled", |bench| bench.pool.counts().ready == size)?;
        let given = if kind == Kind::Given { new_namespaces(self.burst)? } else { Vec::new() };
        let numbers = EXISTING..EXISTING + self.burst;
        let begun = Instant::now();
        let (change_us, _) = self.engine.come(begun)?;
        let mut all = Vec::with_capacity(self.burst.into());
        for number in numbers.clone() {
            let namespace = given.get(usize::from(number - EXISTING));
            let (made, port) = match namespace {
                Some(namespace) => self.give(number, namespace)?,
                None => self.take(number)?,
            };
            self.engine.engine().attach(EndpointId(number), TenantRings::port(port)).map_err(text)?;
            all.push(made);
        }
        let made_us = us(begun);
        let first_packet_us = self.reach(numbers, begun)?;
        let begun = Instant::now();
        self.engine.go()?;
        let mut pairs = Vec::new();
        for made in all {
            match made {
                Made::Taken(taken) => self.pool.give_back(taken),
                Made::Pair(pair) => pairs.push(pair),
            }
        }
        drop(given); // and their devices with them
        for pair in pairs {
            self.until("a device is not removed", |_| {
                !Requests::open().and_then(|mut requests| pair.is_there(&mut requests)).unwrap_or(true)
            })?;
        }
        self.until("parts are not removed", |bench| bench.pool.counts().ending == 0)?;
        let removal_us = us(begun);
        Ok(bursts::Burst { change_us, in_force_us: made_us, first_packet_us, removal_us })
    }

    fn take(&mut self, number: u16) -> Result<(Made, peregrine_dataplane::xsk::XskPort), String> {
        let plan = PartPlan {
            namespace: format!("peregrine-perf-{}-{number}", std::process::id()),
            interface: None,
            mark: String::new(),
            link: link(number),
        };
        let (taken, port) = self.pool.take(&plan).map_err(text)?;
        Ok((Made::Taken(taken), port))
    }

    fn give(
        &mut self,
        number: u16,
        namespace: &File,
    ) -> Result<(Made, peregrine_dataplane::xsk::XskPort), String> {
        let path = format!("/proc/self/fd/{}", namespace.as_raw_fd());
        let namespace = Namespace::open(&NamespaceRef::Path(path.into())).map_err(text)?;
        let plan = VethPlan { port: format!("perf{number}"), interface: "eth0".into(), link: link(number) };
        let pair = make(&mut self.requests, &plan, &namespace).map_err(text)?;
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        let port = ports.open(&pair.port, &PortConfig::default()).map_err(text)?;
        Ok((Made::Pair(pair), port))
    }

    /// Asks each until it answers: when that was, in rising order.
    fn reach(&mut self, numbers: std::ops::Range<u16>, begun: Instant) -> Result<Vec<f64>, String> {
        let mut waiting: BTreeMap<[u8; 4], u16> =
            numbers.map(|number| (ip(number).octets(), number)).collect();
        let mut times = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            for number in waiting.values().copied().collect::<Vec<_>>() {
                self.ask(number)?;
                self.answers(&mut waiting, &mut times, begun)?;
            }
            let asked = Instant::now();
            while asked.elapsed() < AGAIN && !waiting.is_empty() {
                self.answers(&mut waiting, &mut times, begun)?;
            }
            if let Some(event) = self.engine.engine().poll().first() {
                return Err(format!("a container was put out: {event:?}"));
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} containers do not answer", waiting.len()));
            }
        }
        Ok(times)
    }

    fn ask(&mut self, number: u16) -> Result<(), String> {
        let (own, its) = (tenant_mac(ASKER).0, tenant_mac(number).0);
        // Ethernet, then ARP: Ethernet and IPv4, request, who asks, whom.
        let head = [&its[..], &own, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        let whom = [&own[..], &ip(ASKER).octets(), &[0; 6], &ip(number).octets()].concat();
        let tx = self.asker.tx.first_mut().ok_or("no ring")?;
        let _full = tx.push(&[head, whom].concat()); // then it is asked again
        tx.flush().map(drop).map_err(text)
    }

    fn answers(
        &mut self,
        waiting: &mut BTreeMap<[u8; 4], u16>,
        times: &mut Vec<f64>,
        begun: Instant,
    ) -> Result<(), String> {
        let rx = self.asker.rx.first_mut().ok_or("no ring")?;
        rx.pending().map_err(text)?;
        let mut packet = [0; 2048];
        while let Some(next) = rx.next_packet() {
            if next.map_err(text)?.copy_to(&mut packet).is_none() {
                continue;
            }
            let is_answer = packet.get(12..14) == Some(&[8, 6]) && packet.get(20..22) == Some(&[0, 2]);
            let sender: Option<[u8; 4]> = packet.get(28..32).and_then(|ip| ip.try_into().ok());
            if sender.is_some_and(|ip| is_answer && waiting.remove(&ip).is_some()) {
                times.push(us(begun));
            }
        }
        rx.release();
        Ok(())
    }

    fn until(&mut self, fault: &str, is_so: impl Fn(&Bench) -> bool) -> Result<(), String> {
        let begun = Instant::now();
        while !is_so(self) {
            self.engine.engine().poll();
            if begun.elapsed() > PATIENCE {
                return Err(format!("{fault}: {:?}", self.pool.counts()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

impl Drop for Bench {
    /// Before the directory of the marks.
    fn drop(&mut self) {
        self.pool.resize(0, 0);
        let _patient = self.until("", |bench| bench.pool.counts().ready + bench.pool.counts().ending == 0);
        debug_assert!(self.directory.path().exists());
    }
}
