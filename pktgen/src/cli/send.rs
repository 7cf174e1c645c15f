//! The flags of `send`, which are those of `search`, too.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, ValueEnum};
use peregrine_dataplane::types::{MacAddr, QueueId, Vni};
use peregrine_memif::SocketAddr;

use super::{Mode, RING_FLAGS, RingArgs, seconds, vni};
use crate::error::Error;
use crate::limits::Limits;
use crate::pacer::{Arrivals, Rate};
use crate::profile::{
    Choice, ClassDraft, Draft, FlowsDraft, IpRange, MacRange, NetworkDraft, PortRange, Profile, Sizes, Word,
};
use crate::replay::{Factor, LIMIT_MIB, Pace, ReplaySettings};
use crate::send::{MemifSettings, Outlet, SendSettings, SendWait, Traffic, Tunnel};

const TO: &str = "Where to";
const VXLAN: &str = "VXLAN";
const WHAT: &str = "What";
const WHEN: &str = "When";
const REPLAY: &str = "Replay";
const SEND_HELP: &str =
    "Sizes are without FCS. 'imix' is 7 of 60, 4 of 590 and 1 of 1514 bytes (64, 594 and 1518 with FCS).";

/// Flags of `send`.
#[derive(Clone, Debug, Args)]
#[command(after_help = SEND_HELP)]
pub struct SendArgs {
    /// Interface to send on, over AF_XDP (needs root)
    #[arg(long, value_name = "IF", required_unless_present = "memif", conflicts_with = "memif", conflicts_with_all = RING_FLAGS, help_heading = TO)]
    interface: Option<String>,
    /// Its queues, one for each thread: a list, or the first one's number [default: 0]
    #[arg(long, value_name = "N,..", value_delimiter = ',', conflicts_with = "memif", help_heading = TO)]
    queue: Vec<u32>,
    /// How the socket is bound
    #[arg(long, value_enum, default_value = "prefer-zero-copy", conflicts_with = "memif", help_heading = TO)]
    mode: Mode,
    /// memif server to send to: a path, or @name for an abstract socket
    #[arg(long, value_name = "SOCKET", help_heading = TO)]
    memif: Option<SocketAddr>,
    #[command(flatten)]
    ring: RingArgs,

    /// Ethernet address of the next hop; with --local, --remote and --vni: wrap the frames in VXLAN
    #[arg(long, value_name = "MAC", requires_all = ["local", "remote"], help_heading = VXLAN)]
    next_hop: Option<MacAddr>,
    /// Ethernet source [default: that of the interface]
    #[arg(long, value_name = "MAC", requires = "next_hop", help_heading = VXLAN)]
    outer_source_mac: Option<MacAddr>,
    /// Source VTEP: our address
    #[arg(long, value_name = "IPV4", requires = "next_hop", help_heading = VXLAN)]
    local: Option<Ipv4Addr>,
    /// Destination VTEP
    #[arg(long, value_name = "IPV4", requires = "next_hop", help_heading = VXLAN)]
    remote: Option<Ipv4Addr>,
    /// UDP destination port of VXLAN
    #[arg(long, value_name = "PORT", default_value_t = 4789, requires = "next_hop", help_heading = VXLAN)]
    port: u16,
    /// VXLAN network identifiers: flows take turns
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = vni, help_heading = VXLAN)]
    vni: Vec<Vni>,

    #[command(flatten)]
    pub(super) flows: FlowArgs,
    #[command(flatten)]
    replay: ReplayArgs,

    /// Packets per second; or bits per second of the frames as they are sent, without FCS, such as 500mbit; or 'max'
    /// [default: 10000]
    #[arg(long, value_name = "RATE", help_heading = WHEN)]
    rate: Option<Rate>,
    /// 'constant', 'poisson' or 'bursts:N' [default: constant]
    #[arg(long, value_name = "HOW", help_heading = WHEN)]
    arrivals: Option<Arrivals>,
    /// How long [default: 10, if neither this nor --count is given]
    #[arg(long, value_name = "N", value_parser = seconds, help_heading = WHEN)]
    pub(super) seconds: Option<Duration>,
    /// How many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = WHEN)]
    pub(super) count: Option<u64>,
    /// Receive the answers and measure round trips (over AF_XDP: attaches an XDP program)
    #[arg(long, help_heading = WHEN)]
    pub rtt: bool,
    /// With --rtt over AF_XDP and without VXLAN: take every frame that arrives. The kernel gets none of them, not even ARP or SSH: for an
    /// interface of its own
    #[arg(long, help_heading = WHEN)]
    all_frames: bool,
    /// With --rtt: do not measure the generator's own latency before the run
    #[arg(long, help_heading = WHEN)]
    pub no_floor: bool,
    /// With --rtt: write how many answers took how long to this file, as lines of nanoseconds and a count
    #[arg(long, value_name = "FILE", requires = "rtt", help_heading = WHEN)]
    pub rtt_counts: Option<PathBuf>,
    /// What to do while nothing is due
    #[arg(long, value_enum, default_value = "yield", help_heading = WHEN)]
    wait: SendWaitName,

    /// Threads that send, each on its own queue and with its own flows
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Run on these cores only: the first thread on the first, and so on
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    pub(super) core: Vec<usize>,
    /// No line per second on standard error
    #[arg(long)]
    quiet: bool,
    /// Print one JSON object at the end, instead of a table
    #[arg(long)]
    pub json: bool,
}

/// What frames `send` makes: without `--next-hop` they are sent as they are.
#[derive(Clone, Debug, Args)]
#[group(skip)]
pub(super) struct FlowArgs {
    /// Read networks, flows, sizes, classes and rate from a TOML file; what flags say counts more
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    pub(super) profile: Option<PathBuf>,
    /// Ethernet source of the inner, or only, frames
    #[arg(long, value_name = "MAC[-MAC]", required_unless_present_any = ["profile", "replay"], help_heading = WHAT)]
    inner_source_mac: Option<MacRange>,
    /// Ethernet destination
    #[arg(long, value_name = "MAC[-MAC]", required_unless_present_any = ["profile", "replay"], help_heading = WHAT)]
    inner_destination_mac: Option<MacRange>,
    /// Source addresses and UDP ports, with IPv6 as [IP[-IP]]:PORT; of one port: the first one, further flows have the next [default port: 20000]
    #[arg(long, value_name = "IP[-IP][:PORT[-PORT]]", required_unless_present_any = ["profile", "replay"], help_heading = WHAT)]
    inner_source: Option<Hosts>,
    /// Destination [default port: 9000]
    #[arg(long, value_name = "IP[-IP][:PORT[-PORT]]", required_unless_present_any = ["profile", "replay"], help_heading = WHAT)]
    inner_destination: Option<Hosts>,
    /// How many flows [default: 1]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=65536), help_heading = WHAT)]
    flows: Option<u32>,
    /// Which one is next: 'round-robin', 'uniform' or 'zipf:EXPONENT', the n-th of a class with weight n^-EXPONENT, whatever the
    /// --threads (with --rate max only among the flows of one thread) [default: round-robin]
    #[arg(long, value_name = "HOW", help_heading = WHAT)]
    flow_choice: Option<Choice>,
    /// Bytes of the inner, or only, frame: one size, sizes with weights such as 60:7,590:4,1514:1, or 'imix' [default: 64, over IPv6 80]
    #[arg(long, value_name = "BYTES", help_heading = WHAT)]
    size: Option<Sizes>,
    /// A class of packets, as often as there are; each has flows of its own [default: one class]
    #[arg(long = "class", value_name = "NAME:SHARE[:DSCP[:PORT]]", help_heading = WHAT)]
    classes: Vec<ClassWord>,
    /// What random choices begin with [default: 1]
    #[arg(long, value_name = "N", help_heading = WHAT)]
    seed: Option<u64>,
}

/// A capture file for `send`.
#[derive(Clone, Debug, Args)]
#[group(skip)]
struct ReplayArgs {
    /// Send the packets of a pcap or pcapng file
    #[arg(long, value_name = "FILE", help_heading = REPLAY, conflicts_with_all = [
        "profile", "inner_source_mac", "inner_destination_mac", "inner_source", "inner_destination", "flows", "flow_choice",
        "size", "classes", "seed",
    ])]
    replay: Option<PathBuf>,
    /// 'recorded', or how many times as fast [default: recorded, without --rate]
    #[arg(long, value_name = "PACE", requires = "replay", conflicts_with = "rate", help_heading = REPLAY)]
    pace: Option<Factor>,
    /// How often; 0: until --seconds, --count or a signal
    #[arg(long, value_name = "N", default_value_t = 1, requires = "replay", help_heading = REPLAY)]
    loops: u64,
    /// Send what can be read of a file that is cut, damaged or larger than --replay-limit
    #[arg(long, requires = "replay", help_heading = REPLAY)]
    replay_partial: bool,
    /// Memory for the packets, in MiB
    #[arg(long, value_name = "N", default_value_t = LIMIT_MIB, requires = "replay", help_heading = REPLAY,
        value_parser = clap::value_parser!(u64).range(1..=1 << 20))]
    replay_limit: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum SendWaitName {
    /// Look again at once
    Poll,
    /// Let others on this core run first
    Yield,
    /// Sleep until an answer comes or a packet is due
    Block,
}

/// Addresses with ports or without: `10.0.0.1-10.0.0.9:9000`, `[fd00::1-fd00::9]:9000`, `fd00::1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Hosts {
    pub(super) ip: IpRange,
    pub(super) port: Option<PortRange>,
}

impl FromStr for Hosts {
    type Err = String;

    fn from_str(text: &str) -> Result<Hosts, String> {
        let (ip, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((ip, "")) => (ip, None),
            Some((ip, port)) => (ip, Some(port.strip_prefix(':').unwrap_or(port))),
            None if text.matches(':').count() > 1 => (text, None), // IPv6
            None => text.split_once(':').map_or((text, None), |(ip, port)| (ip, Some(port))),
        };
        Ok(Hosts { ip: ip.parse()?, port: port.map(str::parse).transpose()? })
    }
}

/// A class in one word.
#[derive(Clone, PartialEq, Debug)]
struct ClassWord(ClassDraft);

impl FromStr for ClassWord {
    type Err = String;

    fn from_str(text: &str) -> Result<ClassWord, String> {
        let read = || {
            let mut parts = text.split(':');
            let (name, share) = (parts.next().filter(|name| !name.is_empty())?, parts.next()?.parse().ok()?);
            let dscp = parts.next().map_or(Some(0), |dscp| dscp.parse().ok())?;
            let destination_port = match parts.next() {
                None => None,
                Some(port) => Some(port.parse().ok()?),
            };
            let class = ClassDraft { name: name.into(), share, dscp, destination_port };
            parts.next().is_none().then_some(ClassWord(class))
        };
        read().ok_or_else(|| "a class is NAME:SHARE[:DSCP[:PORT]], such as voice:1:46:5004".into())
    }
}

impl SendArgs {
    /// What the flags, and the profile if they name one, mean.
    ///
    /// # Errors
    /// [`Error::Arguments`] if they contradict each other, or the profile cannot be.
    pub fn settings(&self) -> Result<SendSettings, Error> {
        let threads = self.threads.max(self.queue.len() as u32);
        let (traffic, limits) = match &self.replay.replay {
            Some(file) => self.replayed(file)?,
            None => self.profiled(threads)?,
        };
        let tunnel = match (self.next_hop, self.local, self.remote) {
            (Some(next_hop), Some(local), Some(remote)) => {
                Some(Tunnel { next_hop, source_mac: self.outer_source_mac, local, remote, port: self.port })
            }
            _ => None,
        };
        if self.core.len() > threads as usize {
            let what =
                format!("--core names {} cores for --threads {threads}: one for each", self.core.len());
            return Err(Error::Arguments(what));
        }
        Ok(SendSettings {
            outlet: self.outlet(threads)?,
            tunnel,
            traffic,
            limits,
            rtt: self.rtt,
            all_frames: self.all_frames,
            wait: self.wait.into(),
            threads,
            cores: self.core.clone(),
            quiet: self.quiet,
        })
    }

    fn outlet(&self, threads: u32) -> Result<Outlet, Error> {
        if let Some(socket) = &self.memif {
            let config = self.ring.config(threads as u16, "--threads")?;
            return Ok(Outlet::Memif(MemifSettings { socket: socket.clone(), config }));
        }
        let interface = self.interface.clone();
        let interface = interface.ok_or_else(|| Error::Arguments("give --interface or --memif".into()))?;
        let queues = match self.queue[..] {
            [] => (0..threads).map(QueueId).collect(),
            [first] => (0..threads).map(|n| QueueId(first.saturating_add(n))).collect(),
            ref queues if queues.len() == threads as usize => queues.iter().copied().map(QueueId).collect(),
            ref queues => {
                let what =
                    format!("--queue names {} queues for --threads {threads}: one for each", queues.len());
                return Err(Error::Arguments(what));
            }
        };
        Ok(Outlet::Xdp { interface, queues, mode: self.mode.into() })
    }

    fn profiled(&self, threads: u32) -> Result<(Traffic, Limits), Error> {
        let draft = match &self.flows.profile {
            Some(file) => Draft::read(file)?.overlaid(self.draft()),
            None => self.draft(),
        };
        let profile = Profile::new(draft, threads)?;
        let limits = SendSettings::limits(profile.seconds, profile.count, Some(Duration::from_secs(10)));
        Ok((Traffic::Profile(profile), limits))
    }

    /// What the flags say.
    fn draft(&self) -> Draft {
        let flows = &self.flows;
        let port = |hosts: Option<Hosts>| hosts.and_then(|hosts| hosts.port).map(Word);
        let ip = |hosts: Option<Hosts>| hosts.map(|hosts| Word(hosts.ip));
        let network = |vni: &Vni| NetworkDraft { vni: vni.get(), ..NetworkDraft::default() };
        Draft {
            seed: flows.seed,
            rate: self.rate.map(Word),
            arrivals: self.arrivals.map(Word),
            sizes: flows.size.clone().map(Word),
            seconds: self.seconds.map(|seconds| seconds.as_secs_f64()),
            count: self.count,
            flows: FlowsDraft {
                count: flows.flows,
                choice: flows.flow_choice.map(Word),
                source_mac: flows.inner_source_mac.map(Word),
                destination_mac: flows.inner_destination_mac.map(Word),
                source_ip: ip(flows.inner_source),
                destination_ip: ip(flows.inner_destination),
                source_port: port(flows.inner_source),
                destination_port: port(flows.inner_destination),
            },
            networks: self.vni.iter().map(network).collect(),
            classes: flows.classes.iter().map(|class| class.0.clone()).collect(),
        }
    }

    fn replayed(&self, file: &Path) -> Result<(Traffic, Limits), Error> {
        let vni = match self.vni[..] {
            [] => None,
            [vni] => Some(vni),
            _ => return Err(Error::Arguments("--replay is sent into one network: give one --vni".into())),
        };
        if let (None, Some(arrivals)) = (self.rate, self.arrivals) {
            let what =
                format!("--arrivals {arrivals}: a --replay has its recorded times, unless --rate is given");
            return Err(Error::Arguments(what));
        }
        let pace = match (self.rate, self.replay.pace) {
            (Some(rate), _) => Pace::Rate(rate, self.arrivals.unwrap_or_default()),
            (None, factor) => Pace::Recorded(factor.map_or(1.0, |factor| factor.0)),
        };
        let forever = self.replay.loops == 0;
        let replay = ReplaySettings {
            pace,
            loops: if forever { u64::MAX } else { self.replay.loops },
            partial: self.replay.replay_partial,
            limit_mib: self.replay.replay_limit,
            vni,
            ..ReplaySettings::new(file)
        };
        let seconds = self.seconds.map(|seconds| seconds.as_secs_f64());
        Ok((Traffic::Replay(replay), SendSettings::limits(seconds, self.count, None)))
    }
}

impl From<SendWaitName> for SendWait {
    fn from(name: SendWaitName) -> SendWait {
        match name {
            SendWaitName::Poll => SendWait::Poll,
            SendWaitName::Yield => SendWait::Yield,
            SendWaitName::Block => SendWait::Block,
        }
    }
}
