//! The senders of the case, each a process of its own: `peregrine-pktgen send`, or this program as a bare sender. And the two far
//! ends: a memif server that takes everything and reads nothing of it, and a namespace at the end of a veth pair.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use peregrine_control::lab::{Namespace, Process};
use peregrine_dataplane::frame::{BURST, Burst};
use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::{MacAddr, QueueId};
use peregrine_dataplane::xsk::{self, XskConfig};
use peregrine_memif::{Client, ClientConfig, Interface, SocketAddr};
use serde::{Deserialize, Serialize};

use super::{BYTES, Outlet};
use crate::environment::{CpuTime, two_cores};
use crate::figures::json;
use crate::kernel_case::program;
use crate::memif_case::accept;
use crate::rig::{fill, inner};

/// The highest ordinary priority, so that other programs on these cores show less.
const HIGHEST: [&str; 2] = ["-n", "-20"];
/// How long a process may take beside its measurement.
const PATIENCE: Duration = Duration::from_secs(10);
/// The ends of the wire: name and Ethernet address.
const OURS: (&str, &str) = ("gen0", "02:00:00:00:01:01");
const THEIRS: (&str, &str) = ("gen1", "02:00:00:00:01:02");
/// What the frames say: to nobody who is there.
const FROM: MacAddr = MacAddr([2, 0, 0, 0, 1, 1]);
const TO: MacAddr = MacAddr([2, 0, 0, 0, 2, 1]);
/// Bursts between two looks at the clock, which takes as long as some packets.
const BURSTS_PER_LOOK: usize = 64;
/// Fewer packets are left to become more, for a while: who looks all the time takes the ring's index away from who writes it.
const WORTH_TAKING: u16 = 128;
const PAUSE_SPINS: usize = 8;
/// Looks at the ring between two at the connection, which are system calls.
const LOOKS_AT_RING: usize = 4096;

/// Who sends.
#[derive(Clone, Copy, Debug)]
pub enum Sender {
    /// One constant frame, again and again.
    Bare,
    /// The generator; at full rate, or at so many packets a second.
    Pktgen { flows: u16, pps: Option<u64> },
}

impl Sender {
    /// As the table calls it.
    pub fn name(self) -> String {
        match self {
            Sender::Bare => "bare".into(),
            Sender::Pktgen { flows: 1, .. } => "send, 1 flow".into(),
            Sender::Pktgen { flows, .. } => format!("send, {flows} flows"),
        }
    }
}

/// What a sender says at its end; `send` says more.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct Sent {
    pub sent: u64,
    pub seconds: f64,
    #[serde(default)]
    pub late: u64,
    #[serde(default)]
    pub skipped: u64,
    /// The part of their cores that sender and taker had, as this case saw it: the smaller one.
    #[serde(skip)]
    pub core_share: f64,
}

impl Sent {
    /// Packets per second.
    pub fn rate(&self) -> f64 {
        self.sent as f64 / self.seconds
    }
}

/// Where everything runs.
pub struct Bench {
    seconds: f64,
    taker: core_affinity::CoreId,
    sender: core_affinity::CoreId,
    pktgen: PathBuf,
    near: Namespace,
    _far: Namespace,
    interrupted: Arc<AtomicBool>,
}

impl Bench {
    /// Two namespaces with a wire between them; each run will last so long.
    pub fn new(seconds: f64, interrupted: Arc<AtomicBool>) -> Result<Bench, String> {
        let [taker, sender] = two_cores("one for the generator and one for who takes its packets")?;
        let pktgen = program("peregrine-pktgen")?;
        let (near, far) = (namespace("near")?, namespace("far")?);
        near.wire(OURS, &far, THEIRS, 1500).map_err(said)?;
        Ok(Bench { seconds, taker, sender, pktgen, near, _far: far, interrupted })
    }

    /// One run.
    pub fn send(&self, outlet: Outlet, sender: Sender) -> Result<Sent, String> {
        let name = format!("@peregrine-perf-generator-{}", std::process::id());
        let (mut command, words, taker) = match outlet {
            Outlet::Memif => (Command::new("nice"), ["--memif", &name], Some(self.taker(&name)?)),
            Outlet::Xdp => (self.near.command("nice"), ["--interface", OURS.0], None),
        };
        command.args(HIGHEST);
        self.arguments(&mut command, sender, outlet)?;
        command.args(words).args(["--seconds", &self.seconds.to_string()]);
        command.args(["--core", &self.sender.id.to_string()]);
        let sender = Process::start(&mut command).map_err(said)?;
        let (text, core_share) = self.finish(sender, taker.as_ref().map(Process::id))?;
        if let Some(taker) = taker {
            self.finish(taker, None)?;
        }
        let sent: Sent = serde_json::from_str(&text).map_err(|error| format!("the sender said: {error}"))?;
        // None at all is a result, too: on a busy machine its core may be another's all the time.
        Ok(Sent { core_share, ..sent })
    }

    /// The program, and what it is to send.
    fn arguments(&self, command: &mut Command, sender: Sender, outlet: Outlet) -> Result<(), String> {
        match sender {
            Sender::Bare => command.arg(this_program()?).args(["generator-side", "--role", "send"]),
            Sender::Pktgen { flows, pps } => command
                .arg(&self.pktgen)
                .args([
                    "send",
                    "--json",
                    "--quiet",
                    "--size",
                    &BYTES.to_string(),
                    "--flows",
                    &flows.to_string(),
                ])
                .args(["--wait", "poll", "--rate", &pps.map_or("max".into(), |pps| pps.to_string())])
                .args(["--inner-source-mac", &FROM.to_string(), "--inner-destination-mac", &TO.to_string()])
                .args(["--inner-source", "10.0.0.1", "--inner-destination", "10.0.0.2"])
                .args(if outlet == Outlet::Xdp { &["--mode", "copy"][..] } else { &[] }),
        };
        Ok(())
    }

    /// Who takes from the ring, on the other core, until the client has gone.
    fn taker(&self, name: &str) -> Result<Process, String> {
        let mut command = Command::new("nice");
        command.args(HIGHEST).arg(this_program()?).args([
            "generator-side",
            "--role",
            "take",
            "--memif",
            name,
        ]);
        Process::start(command.args(["--core", &self.taker.id.to_string()])).map_err(said)
    }

    /// Waits for its end; what it printed, and the part of their cores that it and another one had.
    fn finish(&self, process: Process, other: Option<u32>) -> Result<(String, f64), String> {
        let longest = PATIENCE + Duration::from_secs_f64(self.seconds);
        let share = Cell::new(1.0);
        let folders: Vec<String> =
            other.into_iter().chain([process.id()]).map(|id| format!("/proc/{id}")).collect();
        let look = || {
            // Since it began; the last look, just before it ends, counts.
            let shares = folders.iter().filter_map(|folder| CpuTime::read(folder).ok());
            share.set(shares.map(|time| time.share_since(&CpuTime::default())).fold(1.0, f64::min));
            self.interrupted.load(Ordering::Relaxed)
        };
        process.finish(longest, &look).map(|text| (text, share.get())).map_err(said)
    }
}

fn this_program() -> Result<PathBuf, String> {
    std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))
}

fn namespace(name: &str) -> Result<Namespace, String> {
    let namespace = Namespace::create(&format!("peregrine-perf-generator-{name}")).map_err(said)?;
    // The kernel's own packets would go over the wire, too.
    let quiet = "sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1";
    let mut words = quiet.split(' ');
    let mut command = namespace.command(words.next().unwrap_or_default());
    peregrine_control::lab::run(command.args(words)).map_err(said)?;
    Ok(namespace)
}

/// The bare senders, and who takes from a ring. For `generator` itself only.
#[derive(Debug, Args)]
pub struct Side {
    #[arg(long)]
    role: Role,
    #[arg(long)]
    memif: Option<SocketAddr>,
    #[arg(long, required_unless_present = "memif", default_value = "", hide_default_value = true)]
    interface: String,
    #[arg(long, default_value_t = 0.0)]
    seconds: f64,
    #[arg(long)]
    core: usize,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    Send,
    Take,
}

impl Side {
    /// Runs it in this process; what is to be printed.
    pub fn run(&self) -> Result<String, String> {
        if !core_affinity::set_for_current(core_affinity::CoreId { id: self.core }) {
            return Err(format!("cannot run on core {}", self.core));
        }
        let frame = inner(FROM, TO, BYTES);
        let sent = match (self.role, &self.memif) {
            (Role::Take, Some(addr)) => return take(accept(addr)?).map(|()| String::new()),
            (Role::Take, None) => return Err("only from memif".into()),
            (Role::Send, Some(addr)) => self.push(addr, &frame)?,
            (Role::Send, None) => self.transmit(&frame)?,
        };
        Ok(json(&sent))
    }

    /// The ring alone: a burst whenever there is room for one.
    fn push(&self, addr: &SocketAddr, frame: &[u8]) -> Result<Sent, String> {
        let interface = Client::connect_blocking(addr, ClientConfig::default(), PATIENCE);
        let mut interface = interface.map_err(said)?;
        let tx = interface.tx.first_mut().ok_or("the server took no ring")?;
        let (start, mut sent, mut free) = (Instant::now(), 0, 0);
        while start.elapsed().as_secs_f64() < self.seconds {
            for _ in 0..BURSTS_PER_LOOK {
                if free < BURST {
                    free = usize::from(tx.free().map_err(said)?);
                    pause();
                    continue;
                }
                for _ in 0..BURST {
                    tx.push(frame).map_err(said)?;
                }
                tx.flush().map_err(said)?;
                free -= BURST;
                sent += BURST as u64;
            }
        }
        Ok(Sent { sent, seconds: start.elapsed().as_secs_f64(), late: 0, skipped: 0, core_share: 0.0 })
    }

    /// The socket alone: frames that are written once, to its ring and back, and its wake-ups.
    fn transmit(&self, frame: &[u8]) -> Result<Sent, String> {
        let config = XskConfig::new(&self.interface, XdpMode::Copy);
        let (_uplink, mut ports) = xsk::open(&config, &[vec![QueueId(0)]]).map_err(said)?;
        let mut port = ports.pop().ok_or("no port")?;
        fill(&mut port.pool, frame)?;
        let socket = port.sockets.first_mut().ok_or("no socket")?;
        let (start, mut sent, mut burst) = (Instant::now(), 0, Burst::new());
        let end = Duration::from_secs_f64(self.seconds);
        loop {
            let passed = start.elapsed();
            sent += socket.complete(&mut port.pool) as u64;
            let done = passed >= end;
            if done && (socket.tx_outstanding() == 0 || passed >= end + PATIENCE) {
                break;
            }
            while !done && burst.len() < socket.tx_budget().min(BURST) {
                let Some(mut next) = port.pool.take() else { break };
                let _there = next.reset(0, frame.len());
                if let Err(next) = burst.push(next) {
                    port.pool.put(next);
                    break;
                }
            }
            socket.transmit(&mut port.pool, &mut burst);
            socket.kick(passed.as_nanos() as u64);
        }
        burst.drain().for_each(|left| port.pool.put(left));
        Ok(Sent { sent, seconds: start.elapsed().as_secs_f64(), late: 0, skipped: 0, core_share: 0.0 })
    }
}

/// Takes what comes and reads none of it, until the client goes.
fn take(mut client: Interface) -> Result<(), String> {
    let rx = client.rx.first_mut().ok_or("the client brought no ring")?;
    while client.control.poll_disconnect().map_err(said)?.is_none() {
        for _ in 0..LOOKS_AT_RING {
            if rx.pending().map_err(said)? < WORTH_TAKING {
                pause();
            }
            // In bursts, so that the sender has room again before all is taken.
            for _ in 0..BURST {
                let _unread = rx.next_packet();
            }
            rx.release();
        }
    }
    Ok(())
}

/// Leaves the ring's indexes alone for a while.
fn pause() {
    (0..PAUSE_SPINS).for_each(|_| std::hint::spin_loop());
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}
