//! Bursts on a real daemon, from outside: one `change` on its control socket, all tenants connected by one process, to the first packet
//! from a VTEP on another host through each. `endpoints_case` runs it.
//!
//! The daemon drives a veth by AF_XDP in copy mode and keeps its state in a file, as in use. Its worker sleeps while there is nothing to do: with
//! two cores, control and the tenants would otherwise share one, which have a core each on a host. Memif tenants' first packets leave the far host's
//! kernel 64 at a time (UDP_SEGMENT), as a busy VTEP's do; containers are asked one by one, here and on the kernel's overlay.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, UdpSocket};
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::socket::SetSockOpt;
use nix::sys::socket::sockopt::UdpGsoSegment;
use peregrine_control::client::{self, CHANGE_TIMEOUT};
use peregrine_control::demo::hosts::{FAR, FAR_OVERLAY, Hosts, NEAR, VNI};
use peregrine_control::lab::{LabError, Process};
use peregrine_dataplane::types::MacAddr;
use peregrine_memif::{Client, ClientConfig, Interface, Progress, SocketAddr, sealer};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use serde_json::{Value, json};

use super::bursts::us;
use super::kernel::{inside, new_namespaces};
use super::probe::{Asker, Probe};
use crate::kernel_case::program;
use crate::rig::{FAR as STATION, inner, tenant_mac};

const INNER_BYTES: usize = 64;
/// Endpoints of one `change` while what is to exist is made.
const FILL: u16 = 1000;
/// The number of the first container: not in the network of the far host's own address.
const FIRST_CONTAINER: u16 = 256;
/// Handshakes at the same time.
const AT_ONCE: usize = 32;
/// Packets to the daemon with one call.
const SEGMENTS: usize = 64;
/// Packets are sent again to who has none yet.
const AGAIN: Duration = Duration::from_millis(2);
/// What on a quiet machine takes much less.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one burst took, from its beginning, in microseconds.
#[derive(Clone, Debug)]
pub struct Burst {
    /// Until the answer to `change` was here, and of it what the daemon says that it took.
    pub call_us: f64,
    pub took_us: f64,
    /// Until all tenants were connected.
    pub connected_us: f64,
    /// Until each had its first packet, in rising order.
    pub first_packet_us: Vec<f64>,
    /// The call that takes them away.
    pub removal_us: f64,
}

/// What a burst on a daemon is of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// Endpoints for ports that are there, with their tenants connected.
    ExistingPorts,
    /// Endpoints with ports of their own, and tenants that connect then.
    Memif,
    /// Containers whose namespace is made with them, from the daemon's pool.
    ContainerPool,
    /// Ports into namespaces that were there.
    ContainerGiven,
}

impl Kind {
    pub fn name(self) -> &'static str {
        match self {
            Kind::ExistingPorts => "existing-ports",
            Kind::Memif => "memif",
            Kind::ContainerPool => "container-pool",
            Kind::ContainerGiven => "container-given",
        }
    }
}

/// A daemon with so many endpoints.
pub struct Bench {
    // Before the hosts, so that it ends first.
    daemon: Process,
    hosts: Hosts,
    far: UdpSocket,
    existing: u16,
    /// Containers that its pool keeps ready.
    pool: u16,
}

fn lab(error: LabError) -> String {
    error.to_string()
}

impl Bench {
    /// Starts it, with a pool of so many containers, and lets it make what is to exist.
    pub fn start(worker: usize, existing: u16, burst: u16, pool: u16) -> Result<Bench, String> {
        let most = getrlimit(Resource::Nofile).maximum;
        setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most })
            .map_err(|error| format!("cannot raise the number of open files: {error}"))?;
        let hosts = Hosts::create().map_err(|error| format!("{error:?}"))?;
        let config = hosts.file("perf.toml");
        let text = format!(
            "control_socket = \"{}\"\nstate = \"{}\"\n\n[capacity]\nendpoints = {}\n\n[pools]\ncontainers = {pool}\n\n[[workers]]\ncore = {worker}\nidle = \"adaptive\"\n\n\
             [uplink]\ninterface = \"{}\"\nlocal = \"{}\"\nmode = \"copy\"\n\n\
             [[networks]]\nname = \"blue\"\nvni = {VNI}\nmtu = 1450\nremotes = [\"{}\"]\nsubnets = [\"10.42.0.0/16\"]\n",
            hosts.file("control.sock").display(),
            hosts.file("state.json").display(),
            // Places are free again a moment after the endpoints went.
            existing + 3 * burst,
            NEAR.1,
            NEAR.0,
            FAR.0
        );
        std::fs::write(&config, text)
            .map_err(|error| format!("cannot write {}: {error}", config.display()))?;
        // Not by `ip netns exec`, which has mounts of its own: names that the daemon gives to namespaces would not be seen here.
        let mut command = Command::new("nsenter");
        command.arg(format!("--net=/run/netns/{}", hosts.near.name())).arg(program("peregrine")?);
        let mut daemon = Process::start(command.args(["run", "-c"]).arg(&config)).map_err(lab)?;
        daemon.wait_for_line("ready", PATIENCE).map_err(lab)?;
        let far = inside(hosts.far.name(), || {
            UdpSocket::bind((FAR.0, 0)).and_then(|socket| socket.connect((NEAR.0, 4789)).map(|()| socket))
        })?;
        let far = far.map_err(|error| format!("no socket on the far host: {error}"))?;
        let length = packet(0).len() as i32;
        UdpGsoSegment.set(&far, &length).map_err(|error| {
            format!("no UDP packets of {length} bytes by segmentation (Linux 4.18 or newer has it): {error}")
        })?;
        let bench = Bench { daemon, hosts, far, existing, pool };
        let mut first = 0;
        while first < existing {
            let next = existing.min(first + FILL);
            bench.change((first..next).map(|number| bench.addition(number)).collect())?;
            first = next;
        }
        Ok(bench)
    }

    fn memif_socket(&self) -> PathBuf {
        self.hosts.file("memif.sock")
    }

    /// What asks for one, with memif.
    pub fn addition(&self, number: u16) -> Value {
        addition(number, "memif", self.memif(number))
    }

    fn memif(&self, number: u16) -> Value {
        json!({"socket": self.memif_socket().display().to_string(), "id": number})
    }

    /// The daemon's number.
    pub fn process(&self) -> u32 {
        self.daemon.id()
    }

    /// What it answers.
    pub fn ask(&self, method: &str) -> Result<Value, String> {
        let mut client =
            client::Client::connect(&self.hosts.file("control.sock")).map_err(|error| error.to_string())?;
        client.call(method).map_err(|error| error.to_string())
    }

    /// The answer, and when it was here.
    pub fn change(&self, changes: Vec<Value>) -> Result<(Value, f64), String> {
        let mut client =
            client::Client::connect(&self.hosts.file("control.sock")).map_err(|error| error.to_string())?;
        let parameters = json!({ "changes": changes });
        let begun = Instant::now();
        let answer =
            client.call_within("change", &parameters, CHANGE_TIMEOUT).map_err(|error| error.to_string())?;
        Ok((answer, us(begun)))
    }

    /// One burst, from nothing and back to nothing.
    pub fn run(&self, kind: Kind, burst: u16, rings: &ClientConfig) -> Result<Burst, String> {
        match kind {
            Kind::ExistingPorts => self.run_existing(burst, rings),
            Kind::Memif => self.run_memif(burst, rings),
            Kind::ContainerPool | Kind::ContainerGiven => self.run_containers(kind, burst),
        }
    }

    fn run_memif(&self, burst: u16, rings: &ClientConfig) -> Result<Burst, String> {
        let ids = self.existing..self.existing + burst;
        let additions = ids.clone().map(|number| self.addition(number)).collect();
        let begun = Instant::now();
        let (answer, call_us) = self.change(additions)?;
        let clients = self.connect(ids.clone(), rings)?;
        let connected_us = us(begun);
        let (first_packet_us, clients) = self.first_packets(clients, begun)?;
        let removal_us = self.remove("endpoint", "e", ids)?;
        self.leave(clients);
        Ok(Burst { call_us, took_us: took_us(&answer), connected_us, first_packet_us, removal_us })
    }

    /// The ports are declared, and their tenants connected, before it begins.
    fn run_existing(&self, burst: u16, rings: &ClientConfig) -> Result<Burst, String> {
        let ids = self.existing..self.existing + burst;
        let port = |number| json!({"add_port": {"name": format!("p{number}"), "memif": self.memif(number)}});
        self.change(ids.clone().map(port).collect())?;
        let clients = self.connect(ids.clone(), rings)?;
        let additions =
            ids.clone().map(|number| addition(number, "port", format!("p{number}").into())).collect();
        let begun = Instant::now();
        let (answer, call_us) = self.change(additions)?;
        let (first_packet_us, clients) = self.first_packets(clients, begun)?;
        let removal_us = self.remove("endpoint", "e", ids.clone())?;
        self.leave(clients);
        self.remove("port", "p", ids)?;
        Ok(Burst { call_us, took_us: took_us(&answer), connected_us: call_us, first_packet_us, removal_us })
    }

    /// One call; the time that it took.
    fn remove(&self, what: &str, prefix: &str, numbers: std::ops::Range<u16>) -> Result<f64, String> {
        let step = format!("remove_{what}");
        let all = numbers.map(|number| json!({ step.as_str(): format!("{prefix}{number}") })).collect();
        self.change(all).map(|(_, took_us)| took_us)
    }

    /// What tenants leave behind is not the next burst's.
    fn leave(&self, clients: Vec<(u16, Interface)>) {
        drop(clients);
        let left = Instant::now();
        while sealer::unreturned() > 0 && left.elapsed() < PATIENCE {
            sealer::wait(AGAIN);
        }
    }

    /// Containers, with one call: from the pool, or in namespaces that are there; until each one's kernel has answered the far host's.
    fn run_containers(&self, kind: Kind, burst: u16) -> Result<Burst, String> {
        self.until_pool_is_calm()?;
        let given = if kind == Kind::ContainerGiven { new_namespaces(burst)? } else { Vec::new() };
        let own = |there: &std::fs::File| json!({"namespace": format!("/proc/{}/fd/{}", std::process::id(), there.as_raw_fd())});
        let numbers = || FIRST_CONTAINER..FIRST_CONTAINER + burst;
        let additions = numbers().map(|number| match given.get(usize::from(number - FIRST_CONTAINER)) {
            Some(there) => addition(number, "veth", own(there)),
            None => container(number),
        });
        let additions = additions.collect();
        let asker = Asker {
            device: "vx",
            mac: FAR_OVERLAY.1.parse::<MacAddr>().map_err(|error| error.to_string())?.0,
            ip: FAR_OVERLAY.0.parse::<Ipv4Addr>().map_err(|error| error.to_string())?,
        };
        let mut probe = inside(self.hosts.far.name(), || Probe::open(asker))??;
        let whom: Vec<_> = numbers().map(|number| (overlay(number), tenant_mac(number).0)).collect();
        let begun = Instant::now();
        let (answer, call_us) = self.change(additions)?;
        let first_packet_us = probe.reach(&whom, begun)?;
        let removal_us = self.remove("endpoint", "e", numbers())?;
        drop(given); // and their devices with them
        self.until_pool_is_calm()?;
        Ok(Burst { call_us, took_us: took_us(&answer), connected_us: call_us, first_packet_us, removal_us })
    }

    /// It is full, and nothing of it is being removed.
    pub fn until_pool_is_calm(&self) -> Result<(), String> {
        if self.pool == 0 {
            return Ok(());
        }
        let begun = Instant::now();
        loop {
            let status = self.ask("status")?;
            let pool = &status["pools"]["containers"];
            if pool["ready"] == self.pool && pool["ending"] == 0 {
                return Ok(());
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("the daemon's pool is not filled: {pool}"));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Some at the same time; who is turned away, because too many come at once, comes again.
    pub fn connect(
        &self,
        ids: std::ops::Range<u16>,
        rings: &ClientConfig,
    ) -> Result<Vec<(u16, Interface)>, String> {
        let (begun, address) = (Instant::now(), SocketAddr::Path(self.memif_socket()));
        let (mut queue, mut flying): (VecDeque<u16>, Vec<(u16, Client)>) = (ids.collect(), Vec::new());
        let mut connected = Vec::with_capacity(queue.len());
        let mut last = String::from("nobody was tried");
        while !(queue.is_empty() && flying.is_empty()) {
            if begun.elapsed() > PATIENCE {
                return Err(format!(
                    "{} tenants do not connect, the last: {last}",
                    queue.len() + flying.len()
                ));
            }
            while flying.len() < AT_ONCE
                && let Some(id) = queue.pop_front()
            {
                match Client::connect(&address, ClientConfig { id: id.into(), ..rings.clone() }) {
                    Ok(client) => flying.push((id, client)),
                    Err(error) => {
                        last = error.to_string();
                        queue.push_back(id);
                        break;
                    }
                }
            }
            let readable = readable(&flying)?;
            let mut still = Vec::with_capacity(flying.len());
            for ((id, mut client), is_readable) in flying.into_iter().zip(readable) {
                match if is_readable { client.step() } else { Ok(Progress::Pending) } {
                    Ok(Progress::Connected(interface)) => connected.push((id, *interface)),
                    Ok(Progress::Pending) => still.push((id, client)),
                    Err(error) => {
                        last = error.to_string();
                        queue.push_back(id);
                    }
                }
            }
            flying = still;
        }
        Ok(connected)
    }

    /// When each had its first packet. The tenants stay until the end.
    #[allow(clippy::type_complexity, reason = "the times and who they are of")]
    fn first_packets(
        &self,
        clients: Vec<(u16, Interface)>,
        begun: Instant,
    ) -> Result<(Vec<f64>, Vec<(u16, Interface)>), String> {
        let (mut waiting, mut served) = (clients, Vec::new());
        let mut times = Vec::with_capacity(waiting.len());
        while !waiting.is_empty() {
            for some in waiting.chunks(SEGMENTS) {
                self.send(some.iter().map(|(id, _)| *id))?;
                // What comes meanwhile is seen below; a veth's queue is not as long as a burst.
                std::thread::yield_now();
            }
            let sent = Instant::now();
            while sent.elapsed() < AGAIN && !waiting.is_empty() {
                let mut still = Vec::with_capacity(waiting.len());
                for (id, mut client) in waiting {
                    let pending = client.rx.first_mut().map_or(Ok(0), |ring| ring.pending());
                    if pending.map_err(|error| error.to_string())? == 0 {
                        still.push((id, client));
                    } else {
                        times.push(us(begun));
                        served.push((id, client));
                    }
                }
                waiting = still;
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} tenants get no packet", waiting.len()));
            }
        }
        Ok((times, served))
    }

    /// A packet to each, as a VTEP sends them, with one call: the far host's way through its kernel is not what is measured.
    fn send(&self, ids: impl Iterator<Item = u16>) -> Result<(), String> {
        let packets: Vec<u8> = ids.flat_map(packet).collect();
        match self.far.send(&packets) {
            Ok(_) => Ok(()),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => Ok(()),
            Err(error) => Err(format!("the far host cannot send: {error}")),
        }
    }
}

/// VXLAN, and what is for that endpoint. Each is as long as the others.
fn packet(id: u16) -> Vec<u8> {
    let mut packet = vec![8, 0, 0, 0, 0, 0, VNI as u8, 0];
    packet.extend(inner(STATION, tenant_mac(id), INNER_BYTES));
    packet
}

/// An endpoint, and what it is attached by.
fn addition(number: u16, by: &str, port: Value) -> Value {
    json!({"add_endpoint": {
        "name": format!("e{number}"),
        "network": "blue",
        "mac": tenant_mac(number).to_string(),
        "addresses": [overlay(number).to_string()],
        "announce": false,
        by: port,
    }})
}

/// What asks for one with a container, whose namespace is made.
pub fn container(number: u16) -> Value {
    let namespace = format!("peregrine-perf-{}-{number}", std::process::id());
    addition(number, "veth", json!({"namespace": namespace, "create_namespace": true}))
}

fn took_us(answer: &Value) -> f64 {
    answer["took_us"].as_f64().unwrap_or(f64::NAN)
}

/// The overlay address of an endpoint.
fn overlay(number: u16) -> Ipv4Addr {
    let [high, low] = number.to_be_bytes();
    Ipv4Addr::new(10, 42, high, low)
}

/// Which of them have something to read; waits a moment for that.
fn readable(clients: &[(u16, Client)]) -> Result<Vec<bool>, String> {
    let sockets = clients.iter().filter_map(|(_, client)| client.socket());
    let mut all: Vec<PollFd<'_>> =
        sockets.map(|socket| PollFd::from_borrowed_fd(socket, PollFlags::IN)).collect();
    let moment = Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
    poll(&mut all, Some(&moment)).map_err(|error| format!("poll: {error}"))?;
    Ok(all.iter().map(|one| !one.revents().is_empty()).collect())
}
