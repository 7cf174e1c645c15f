//! `send`: frames over AF_XDP or memif, plain or wrapped in VXLAN, each at its time; with `rtt` also the answers, and how
//! long they took.
//!
//! - `wire`: the two things that the loop is between: where frames go (`xdp`, `memif`), and what they are (`flows`, and
//!   [`replay`](crate::replay))
//! - `engine`: the loop of one thread
//! - `rtt`: the answers
//! - `report`: what all threads sent
//!
//! Each thread has its own queue and its own flows; they share only the clock, the end, and one report.

pub mod engine;
pub mod flows;
mod memif;
mod report;
mod rtt;
pub mod wire;
mod xdp;

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::{MacAddr, QueueId, Vni};
use peregrine_dataplane::wire::outer::{OVERHEAD_IPV4, OuterFields, Vtep};
use peregrine_dataplane::xsk::{self, Steering, Uplink, XskConfig};

use crate::clock::now_ns;
use crate::error::Error;
use crate::limits::{Limits, Stop, check_core, pin};
use crate::pacer::{Arrivals, Rate};
use crate::profile::Profile;
use crate::replay::{Capture, Pace, Replay, ReplaySettings};
use crate::report::Outcome;
use crate::template::Template;
use crate::trailer::new_run;
use engine::{Engine, Part, Run};
use flows::FlowLoad;
pub use memif::{MemifInfo, MemifSettings, MemifWire};
use report::merge;
pub use report::{ClassReport, OutletInfo, SendReport, ThreadReport, TrafficReport};
use rtt::{Expected, Rtt};
use wire::{Load, Wire};
use xdp::XdpWire;

/// Threads of one run.
pub const THREADS_MAX: u32 = 64;

/// What a sender does while nothing is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendWait {
    /// Looks again at once.
    Poll,
    /// Lets others run first (sched_yield).
    Yield,
    /// Sleeps until an answer comes or the next packet is due.
    Block,
}

/// Where frames go.
#[derive(Clone, Debug)]
pub enum Outlet {
    /// AF_XDP sockets.
    Xdp {
        /// Name of the interface.
        interface: String,
        /// Its queues, one for each thread.
        queues: Vec<QueueId>,
        /// How the sockets are bound.
        mode: XdpMode,
    },
    /// A memif server, with a queue pair for each thread.
    Memif(MemifSettings),
}

/// The outer headers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Tunnel {
    /// Ethernet address of the next hop.
    pub next_hop: MacAddr,
    /// Ethernet source; the interface's own, if none is given.
    pub source_mac: Option<MacAddr>,
    /// Our VTEP address.
    pub local: Ipv4Addr,
    /// The remote VTEP.
    pub remote: Ipv4Addr,
    /// VXLAN's UDP port.
    pub port: u16,
}

/// What the frames are.
#[derive(Clone, PartialEq, Debug)]
pub enum Traffic {
    /// Made from a profile.
    Profile(Profile),
    /// From a capture file.
    Replay(ReplaySettings),
}

/// What is sent, and where.
#[derive(Clone, Debug)]
pub struct SendSettings {
    /// Where frames go.
    pub outlet: Outlet,
    /// What they are wrapped in: there exactly if the traffic has networks.
    pub tunnel: Option<Tunnel>,
    /// What they are.
    pub traffic: Traffic,
    /// When it ends.
    pub limits: Limits,
    /// Receive the answers; with one thread.
    pub rtt: bool,
    /// Over AF_XDP the answers come without VXLAN: every frame that arrives is taken, and the kernel gets none.
    pub all_frames: bool,
    /// What it does while nothing is due.
    pub wait: SendWait,
    /// How many threads send.
    pub threads: u32,
    /// The core of each thread; those without one run where they may.
    pub cores: Vec<usize>,
    /// No line per second.
    pub quiet: bool,
}

/// The open back end: the data half for the threads, and the control half. The sockets are closed first.
#[derive(Debug)]
enum Opened {
    Xdp(Vec<XdpWire>, Uplink),
    Memif(Vec<MemifWire>, MemifInfo),
}

/// What is sent, as far as it can be made before a run.
#[derive(Debug)]
enum Prepared {
    Flows(Profile, Arc<Template>),
    Capture(ReplaySettings, Capture, Option<OuterFields>),
}

/// An open back end and what goes out on it.
#[derive(Debug)]
pub struct Sender {
    opened: Opened,
    prepared: Prepared,
    settings: SendSettings,
}

impl Sender {
    /// Opens the sockets or connects; with `rtt` over AF_XDP it also attaches the XDP program. Reads the capture file, if there
    /// is one.
    ///
    /// # Errors
    /// Whatever [`xsk::open`] or the memif server refuses; frames that do not fit; a file that cannot be read; a core that the
    /// process may not use.
    pub fn open(settings: SendSettings) -> Result<Sender, Error> {
        settings.check()?;
        let overhead = settings.overhead();
        let (len_max, interface_mac) = settings.outlet.limits(overhead)?;
        let outer = settings.tunnel.as_ref().map(|tunnel| tunnel.fields(interface_mac));
        let (prepared, longest) = match &settings.traffic {
            Traffic::Replay(replay) => {
                let capture = Capture::read(replay, len_max)?;
                let longest = capture.longest();
                (Prepared::Capture(replay.clone(), capture, outer), longest)
            }
            Traffic::Profile(profile) => {
                settings.outlet.check_size(profile.longest(), len_max)?;
                let template = flows::template(profile, outer.as_ref());
                (Prepared::Flows(profile.clone(), template), profile.longest())
            }
        };
        let opened = match &settings.outlet {
            Outlet::Xdp { interface, queues, mode } => open_xdp(&settings, interface, queues, *mode)?,
            Outlet::Memif(memif) => {
                let (info, wires) = MemifWire::connect(memif, longest + overhead)?;
                Opened::Memif(wires, info)
            }
        };
        Ok(Sender { opened, prepared, settings })
    }

    /// Sends until a limit is reached, waits for what is still out, and reports.
    ///
    /// # Errors
    /// What keeps it from beginning. What happens later is told beside the report.
    pub fn run(mut self, stop: &Stop) -> Result<Outcome<SendReport>, Error> {
        self.send(new_run(), stop)
    }

    /// The same at another rate, over sockets that stay open: each time everything is counted from nothing. The packets say
    /// that they are of this run.
    ///
    /// # Errors
    /// Those of [`Sender::run`]; a rate of less than 1 for each thread.
    pub fn again(
        &mut self,
        number: u16,
        rate: Rate,
        limits: Limits,
        stop: &Stop,
    ) -> Result<Outcome<SendReport>, Error> {
        self.settings.limits = limits;
        match &mut self.prepared {
            Prepared::Flows(profile, _) => profile.rate = rate,
            Prepared::Capture(replay, ..) => replay.pace = Pace::Rate(rate, Arrivals::Constant),
        }
        self.send(number, stop)
    }

    fn send(&mut self, number: u16, stop: &Stop) -> Result<Outcome<SendReport>, Error> {
        let Sender { opened, prepared, settings } = self;
        let rtt = settings.expected(number).transpose()?; // takes its memory before the run begins
        let start_ns = now_ns();
        let sent: Vec<AtomicU64> = (0..settings.threads).map(|_| AtomicU64::new(0)).collect();
        let goal = (!settings.quiet).then_some(&settings.limits);
        let run = Run { start_ns, wait: settings.wait, stop, sent: &sent, goal };
        let plan = Plan { settings, prepared, number, run: &run };
        let (outlet, kernel, parts) = match opened {
            Opened::Xdp(wires, uplink) => {
                let parts = plan.run(wires, rtt)?;
                let kernel = uplink.sockets()?.first().copied();
                (OutletInfo::Uplink(uplink.info().clone()), kernel, parts)
            }
            Opened::Memif(wires, info) => (OutletInfo::Memif(info.clone()), None, plan.run(wires, rtt)?),
        };
        Ok(merge(settings, start_ns, outlet, kernel, prepared.report(), parts))
    }
}

impl Prepared {
    fn report(&self) -> TrafficReport {
        match self {
            Prepared::Flows(profile, _) => TrafficReport::Profile(profile.clone()),
            Prepared::Capture(_, capture, _) => TrafficReport::Replay(capture.report().clone()),
        }
    }
}

/// What the threads need to begin.
struct Plan<'a> {
    settings: &'a SendSettings,
    prepared: &'a Prepared,
    /// What the packets say which run they are of.
    number: u16,
    run: &'a Run<'a>,
}

impl Plan<'_> {
    fn run<W: Wire + Send>(&self, wires: &mut [W], rtt: Option<Rtt>) -> Result<Vec<Part>, Error> {
        let start_ns = self.run.start_ns;
        match self.prepared {
            Prepared::Capture(replay, capture, outer) => {
                let load = Replay::new(capture, replay, outer.as_ref(), start_ns);
                self.threads(wires, vec![load], rtt)
            }
            Prepared::Flows(profile, template) => {
                let threads = self.settings.threads;
                let load = |thread| {
                    let load = FlowLoad::new(profile, template, thread, threads, start_ns)?;
                    Ok(load.of_run(self.number))
                };
                let loads = (0..threads).map(load).collect::<Result<Vec<_>, Error>>()?;
                self.threads(wires, loads, rtt)
            }
        }
    }

    /// One thread is this one; several are made.
    fn threads<W: Wire + Send, L: Load + Send>(
        &self,
        wires: &mut [W],
        loads: Vec<L>,
        mut rtt: Option<Rtt>,
    ) -> Result<Vec<Part>, Error> {
        let alone = loads.len() == 1;
        std::thread::scope(|scope| {
            let (mut handles, mut parts) = (Vec::new(), Vec::new());
            for (thread, (wire, load)) in wires.iter_mut().zip(loads).enumerate() {
                let classes = self.settings.classes();
                let engine = Engine::new(wire, load, rtt.take(), self.run, thread, classes);
                let limits = self.settings.part_of_limits(thread);
                let core = self.settings.cores.get(thread).copied();
                if alone {
                    pin(core)?;
                    parts.push(engine.run(&limits));
                } else {
                    handles.push(scope.spawn(move || pin(core).map(|()| engine.run(&limits))));
                }
            }
            for handle in handles {
                let ended = handle.join().map_err(|_| Error::System {
                    what: "a sending thread failed".into(),
                    source: std::io::Error::other("panic"),
                })?;
                parts.push(ended.inspect_err(|_| self.run.stop.set())?);
            }
            Ok(parts)
        })
    }
}

fn open_xdp(
    settings: &SendSettings,
    interface: &str,
    queues: &[QueueId],
    mode: XdpMode,
) -> Result<Opened, Error> {
    let mut config = XskConfig::new(interface, mode);
    let found = xsk::interface(interface)?;
    if found.mtu > 1700 {
        config.chunk_size = 4096;
    }
    config.everything = settings.all_frames;
    let tunnel = settings.tunnel.filter(|_| settings.rtt);
    config.steering = tunnel.map(|tunnel| Steering::new(tunnel.local.into(), tunnel.port, &settings.vnis()));
    let workers: Vec<Vec<QueueId>> = queues.iter().map(|queue| vec![*queue]).collect();
    let (uplink, ports) = xsk::open(&config, &workers)?;
    let wire = |port| XdpWire::new(port, (found.name.clone(), found.index));
    Ok(Opened::Xdp(ports.into_iter().filter_map(wire).collect(), uplink))
}

impl Tunnel {
    /// The outer headers, sent from the interface's Ethernet address unless there is another.
    fn fields(&self, interface_mac: Option<MacAddr>) -> OuterFields {
        OuterFields {
            destination_mac: self.next_hop,
            source_mac: self.source_mac.or(interface_mac).unwrap_or(MEMIF_MAC),
            source: self.local,
            destination: self.remote,
            port: self.port,
            ttl: 64,
        }
    }
}

/// Who sends VXLAN into a memif ring, if nothing is said: locally administered.
const MEMIF_MAC: MacAddr = MacAddr([0x02, b'p', b'k', b't', b'g', 0x01]);

impl Outlet {
    /// The longest frame without outer headers of `overhead` bytes, and the interface's Ethernet address if it has one.
    fn limits(&self, overhead: usize) -> Result<(usize, Option<MacAddr>), Error> {
        match self {
            Outlet::Xdp { interface, .. } => {
                let interface = xsk::interface(interface)?;
                Ok(((interface.mtu as usize + 14).saturating_sub(overhead), Some(interface.mac)))
            }
            Outlet::Memif(memif) => Ok(((memif.config.buffer_bytes as usize).saturating_sub(overhead), None)),
        }
    }

    fn check_size(&self, size: usize, len_max: usize) -> Result<(), Error> {
        if size <= len_max {
            return Ok(());
        }
        Err(Error::Arguments(match self {
            Outlet::Xdp { interface, .. } => {
                format!("--size {size} does not fit the MTU of {interface}: at most {len_max} bytes do")
            }
            Outlet::Memif(_) => {
                format!(
                    "--size {size} does not fit --buffer-size: at most {len_max} bytes do, or give larger ones"
                )
            }
        }))
    }
}

impl SendSettings {
    /// What one part alone cannot know.
    fn check(&self) -> Result<(), Error> {
        let refused = |what: &str| Err(Error::Arguments(what.into()));
        let replayed = matches!(self.traffic, Traffic::Replay(_));
        match (&self.tunnel, self.vnis().is_empty()) {
            (None, false) => {
                return refused("a network (--vni) is for VXLAN: give --next-hop, --local and --remote, too");
            }
            (Some(_), true) => return refused("VXLAN needs a network: give --vni"),
            _ => {}
        }
        if self.rtt && self.threads > 1 {
            return refused("--rtt measures with one thread: leave --threads out");
        }
        if self.rtt && replayed {
            return refused("--rtt knows the answers by their trailer, which --replay has not");
        }
        let plain_over_xdp = self.tunnel.is_none() && matches!(self.outlet, Outlet::Xdp { .. });
        if self.rtt && plain_over_xdp && !self.all_frames {
            return refused(
                "--rtt over AF_XDP receives VXLAN: give --next-hop, --local, --remote and --vni; or --all-frames for plain frames, if \
                 nobody else uses the interface",
            );
        }
        if self.all_frames && !(self.rtt && plain_over_xdp) {
            return refused(
                "--all-frames is for --rtt over AF_XDP (--interface) without VXLAN: leave it out",
            );
        }
        self.cores.iter().take(self.threads as usize).try_for_each(|core| check_core(*core))?;
        if replayed && self.threads > 1 {
            return refused("--replay keeps the order of its packets: leave --threads out");
        }
        self.check_burst()
    }

    /// The rate holds over whole bursts: there must be time for one.
    fn check_burst(&self) -> Result<(), Error> {
        let (rate, arrivals, mean_bytes, least) = match &self.traffic {
            Traffic::Profile(profile) => {
                (profile.rate, profile.arrivals, profile.sizes.mean(), profile.smallest_part())
            }
            Traffic::Replay(ReplaySettings { pace: Pace::Rate(rate, arrivals), .. }) => {
                (*rate, *arrivals, 0.0, 1.0)
            }
            Traffic::Replay(_) => return Ok(()),
        };
        let (Arrivals::Bursts(burst), Some(seconds)) = (arrivals, self.limits.seconds) else { return Ok(()) };
        let all = f64::from(burst.get()) / least; // of the thread whose bursts are the furthest apart
        let lasts = match rate {
            Rate::Pps(pps) => all / pps.get() as f64,
            Rate::Bits(bits) => all * (mean_bytes + self.overhead() as f64) * 8.0 / bits.get() as f64,
            Rate::Max => 0.0,
        };
        if lasts <= seconds.as_secs_f64() * (1.0 + 1e-9) {
            return Ok(());
        }
        let (threads, seconds) = (self.threads.max(1), seconds.as_secs_f64());
        Err(Error::Arguments(format!(
            "--arrivals {arrivals}: at --rate {rate} the bursts of {threads} threads are {lasts:.3} s apart, longer than the \
             {seconds} s of the run: give smaller ones, or more --seconds"
        )))
    }

    /// Whether frames of so many bytes, without outer headers, can be sent.
    ///
    /// # Errors
    /// If they are too long, or there is no such interface.
    pub fn check_size(&self, bytes: usize) -> Result<(), Error> {
        let (len_max, _) = self.outlet.limits(self.overhead())?;
        self.outlet.check_size(bytes, len_max)
    }

    /// Bytes of the outer headers.
    fn overhead(&self) -> usize {
        if self.tunnel.is_some() { OVERHEAD_IPV4 } else { 0 }
    }

    fn vnis(&self) -> Vec<Vni> {
        match &self.traffic {
            Traffic::Profile(profile) => profile.vnis(),
            Traffic::Replay(replay) => replay.vni.into_iter().collect(),
        }
    }

    fn classes(&self) -> usize {
        match &self.traffic {
            Traffic::Profile(profile) => profile.classes.len(),
            Traffic::Replay(_) => 1,
        }
    }

    /// The profile, if it is none of a capture.
    pub fn profile(&self) -> Option<&Profile> {
        match &self.traffic {
            Traffic::Profile(profile) => Some(profile),
            Traffic::Replay(_) => None,
        }
    }

    /// Who receives the answers to what this run sends, if anybody.
    fn expected(&self, run: u16) -> Option<Result<Rtt, Error>> {
        let profile = self.profile()?;
        let vtep = self.tunnel.map(|tunnel| Vtep { address: tunnel.local, port: tunnel.port });
        let expected = vtep.map_or(Expected::Plain, |vtep| Expected::Vxlan(vtep, self.vnis()));
        self.rtt.then(|| Rtt::new(expected, profile.flows.count as usize, run))
    }

    /// Of a count each thread sends its part.
    fn part_of_limits(&self, thread: usize) -> Limits {
        let part = self.profile().and_then(|profile| profile.parts.get(thread));
        let count = self.limits.count.map(|count| part.map_or(count, |part| part.of(count)));
        Limits { count, ..self.limits.clone() }
    }

    /// Ten seconds, if nothing is said; a replay ends by itself.
    pub fn limits(seconds: Option<f64>, count: Option<u64>, default: Option<Duration>) -> Limits {
        let given = seconds.map(Duration::from_secs_f64);
        Limits {
            seconds: if given.is_none() && count.is_none() { default } else { given },
            count,
            idle: None,
        }
    }
}

#[cfg(test)]
mod tests;
