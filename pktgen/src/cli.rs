//! The command line: what clap reads ([`Cli`]), and what it means once checked (the settings of the commands).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::{MacAddr, QueueId, Vni};
use peregrine_memif::{ClientConfig, Secret, SocketAddr};

use crate::classes::{CLASSES_MAX, Class};
use crate::echo::EchoSettings;
use crate::echo::reply::Identity;
use crate::error::Error;
use crate::limits::{Limits, Wait};
use crate::pacer::{Arrivals, Rate};
use crate::port::xdp::XdpSettings;
use crate::profile::{
    Choice, ClassDraft, Draft, FlowsDraft, IpRange, MacRange, NetworkDraft, PortRange, Profile, SECONDS_MAX,
    Sizes, Word,
};
use crate::replay::{Factor, LIMIT_MIB, Pace, ReplaySettings};
use crate::send::{MemifSettings, Outlet, SendSettings, SendWait, Traffic, Tunnel};
use crate::sink::{Demands, SinkSettings};

mod search;
pub use search::SearchArgs;

/// VXLAN packet generator, sink and echo over AF_XDP, memif and UDP sockets.
#[derive(Clone, Debug, Parser)]
#[command(name = "peregrine-pktgen", version, disable_help_subcommand = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What to do.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Send frames, plain or in VXLAN, over AF_XDP or memif, each at its time
    Send(Box<SendArgs>),
    /// Count what arrives: loss, order, latency
    Sink(SinkArgs),
    /// Send back what arrives: ARP and neighbour discovery, ICMP and ICMPv6 echo, UDP
    Echo(EchoArgs),
    /// Find the highest rate without loss, sending and counting in one (over AF_XDP: needs root)
    Search(Box<SearchArgs>),
}

/// Flags that all commands have.
#[derive(Clone, Copy, Debug, Args)]
pub struct Common {
    /// Run on this core only
    #[arg(long, value_name = "N")]
    pub core: Option<usize>,
    /// Print one JSON object at the end, instead of a table
    #[arg(long)]
    pub json: bool,
}

/// Flags of `send`.
#[derive(Clone, Debug, Args)]
#[command(after_help = SEND_HELP)]
pub struct SendArgs {
    /// Interface to send on, over AF_XDP (needs root)
    #[arg(long, value_name = "IF", required_unless_present = "memif", conflicts_with = "memif", help_heading = TO)]
    interface: Option<String>,
    /// Its queues, one for each thread: a list, or the first one's number [default: 0]
    #[arg(long, value_name = "N,..", value_delimiter = ',', conflicts_with = "memif", help_heading = TO)]
    queue: Vec<u32>,
    /// How the socket is bound
    #[arg(long, value_enum, default_value = "prefer-zero-copy", help_heading = TO)]
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
    #[arg(long, value_name = "PORT", default_value_t = 4789, help_heading = VXLAN)]
    port: u16,
    /// VXLAN network identifiers: flows take turns
    #[arg(long, value_name = "N,..", value_delimiter = ',', value_parser = vni, help_heading = VXLAN)]
    vni: Vec<Vni>,

    #[command(flatten)]
    flows: FlowArgs,
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
    seconds: Option<Duration>,
    /// How many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), help_heading = WHEN)]
    count: Option<u64>,
    /// Receive the answers and measure round trips (over AF_XDP: attaches an XDP program)
    #[arg(long, help_heading = WHEN)]
    pub rtt: bool,
    /// With --rtt: do not measure the generator's own latency before the run
    #[arg(long, help_heading = WHEN)]
    pub no_floor: bool,
    /// What to do while nothing is due
    #[arg(long, value_enum, default_value = "yield", help_heading = WHEN)]
    wait: SendWaitName,

    /// Threads that send, each on its own queue and with its own flows
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=64))]
    threads: u32,
    /// Run on these cores only: the first thread on the first, and so on
    #[arg(long, value_name = "N,..", value_delimiter = ',')]
    core: Vec<usize>,
    /// No line per second on standard error
    #[arg(long)]
    quiet: bool,
    /// Print one JSON object at the end, instead of a table
    #[arg(long)]
    pub json: bool,
}

const TO: &str = "Where to";
const VXLAN: &str = "VXLAN";
const WHAT: &str = "What";
const WHEN: &str = "When";
const SEND_HELP: &str =
    "Sizes are without FCS. 'imix' is 7 of 60, 4 of 590 and 1 of 1514 bytes (64, 594 and 1518 with FCS).";

/// What frames `send` makes: without `--next-hop` they are sent as they are.
#[derive(Clone, Debug, Args)]
#[group(skip)]
struct FlowArgs {
    /// Read networks, flows, sizes, classes and rate from a TOML file; what flags say counts more
    #[arg(long, value_name = "FILE", help_heading = WHAT)]
    profile: Option<PathBuf>,
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
    /// Which one is next: 'round-robin', 'uniform' or 'zipf:EXPONENT' [default: round-robin]
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

const REPLAY: &str = "Replay";

/// Flags of `sink`.
#[derive(Clone, Debug, Args)]
pub struct SinkArgs {
    #[command(flatten)]
    port: PortArgs,
    #[command(flatten)]
    xdp: XdpArgs,
    /// How many flows to track, from 0
    #[arg(long, value_name = "N", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..=65536))]
    flows: u32,
    /// Report these packets by themselves, too: NAME=ports:9000-9099 (UDP destination) or NAME=dscp:46; may be repeated
    #[arg(long = "class", value_name = "NAME=WHAT", conflicts_with = "udp")]
    classes: Vec<Class>,
    /// Write the latencies to a file that HdrHistogram's plotters read
    #[arg(long, value_name = "FILE")]
    pub percentiles: Option<PathBuf>,
    /// Exit status 1 if more was lost: lost packets to all that should have come
    #[arg(long, value_name = "RATIO", value_parser = ratio)]
    max_loss: Option<f64>,
    /// Exit status 1 if fewer packets came, copies not counted
    #[arg(long, value_name = "N")]
    min_received: Option<u64>,
    /// Do not measure the generator's own latency before the run
    #[arg(long)]
    pub no_floor: bool,
    #[command(flatten)]
    run: RunArgs,
    /// Flags that all commands have.
    #[command(flatten)]
    pub common: Common,
}

/// Flags of `echo`.
#[derive(Clone, Debug, Args)]
pub struct EchoArgs {
    #[command(flatten)]
    port: PortArgs,
    /// Our Ethernet address
    #[arg(long, value_name = "MAC", conflicts_with = "udp")]
    mac: Option<MacAddr>,
    /// Our IPv4 address
    #[arg(long, value_name = "IPV4", conflicts_with = "udp")]
    ip: Option<Ipv4Addr>,
    /// Our IPv6 address
    #[arg(long, value_name = "IPV6", conflicts_with = "udp")]
    ip6: Option<Ipv6Addr>,
    #[command(flatten)]
    run: RunArgs,
    /// Flags that all commands have.
    #[command(flatten)]
    pub common: Common,
}

#[derive(Clone, Debug, Args)]
#[group(skip)]
struct PortArgs {
    /// memif server to connect to: a path, or @name for an abstract socket
    #[arg(long, value_name = "SOCKET", conflicts_with = "udp")]
    memif: Option<SocketAddr>,
    /// UDP socket of the kernel to bind
    #[arg(long, value_name = "IP:PORT")]
    udp: Option<SocketAddrV4>,
    /// Wait for the memif server, now and whenever it goes away
    #[arg(long, conflicts_with = "udp")]
    reconnect: bool,
    /// Rings each way; the server must have as many. All are read, answers go out on the first
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "udp")]
    queue_pairs: u16,
    #[command(flatten)]
    ring: RingArgs,
}

/// What a memif connection is like.
#[derive(Clone, Debug, Args)]
#[group(skip)]
struct RingArgs {
    /// Interface id at the memif server
    #[arg(long, value_name = "N", default_value_t = 0)]
    id: u32,
    /// Secret that the memif server wants
    #[arg(long, value_name = "S", default_value = "")]
    secret: String,
    /// Slots of each memif ring
    #[arg(long, value_name = "N", default_value_t = 1024)]
    ring_size: u16,
    /// Bytes of each memif buffer
    #[arg(long, value_name = "BYTES", default_value_t = 2048)]
    buffer_size: u32,
}

#[derive(Clone, Debug, Args)]
#[group(skip)]
struct XdpArgs {
    /// Interface to take VXLAN frames from over AF_XDP (needs root; attaches an XDP program)
    #[arg(long, value_name = "IF", conflicts_with_all = ["memif", "udp", "reconnect"])]
    interface: Option<String>,
    /// Its queues, each by a --queue of its own
    #[arg(long = "queue", value_name = "N", default_value = "0", requires = "interface")]
    queues: Vec<u32>,
    /// How its sockets are bound
    #[arg(long, value_enum, default_value = "prefer-zero-copy", requires = "interface")]
    mode: Mode,
    /// Our VTEP address
    #[arg(long, value_name = "IPV4", requires = "interface")]
    local: Option<Ipv4Addr>,
    /// UDP port of VXLAN
    #[arg(long, value_name = "PORT", default_value_t = 4789, requires = "interface")]
    port: u16,
    /// VXLAN network identifier
    #[arg(long, value_name = "N", value_parser = vni, requires = "interface")]
    vni: Option<Vni>,
}

impl XdpArgs {
    /// `None`: it is not AF_XDP that packets come from.
    fn settings(&self) -> Result<Option<XdpSettings>, Error> {
        let Some(interface) = self.interface.clone() else { return Ok(None) };
        let (Some(local), Some(vni)) = (self.local, self.vni) else {
            return Err(Error::Arguments(format!(
                "sink --interface {interface} takes VXLAN frames, which need --local and --vni; plain frames go to a socket of \
                 the kernel (--udp), since the XDP program leaves the kernel all that is not VXLAN"
            )));
        };
        let queues = self.queues.iter().map(|queue| QueueId(*queue)).collect();
        let mode = self.mode.into();
        Ok(Some(XdpSettings { interface, queues, mode, local, port: self.port, vni }))
    }
}

#[derive(Clone, Debug, Args)]
struct RunArgs {
    /// What to do while nothing is there
    #[arg(long, value_enum, default_value = "interrupt")]
    wait: WaitName,
    /// How long 'pause' sleeps, in microseconds
    #[arg(long, value_name = "N", default_value_t = 300, value_parser = clap::value_parser!(u64).range(1..=50_000))]
    pause_us: u64,
    /// End after so long
    #[arg(long, value_name = "N", value_parser = seconds)]
    seconds: Option<Duration>,
    /// End after so many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End when so long nothing came, after the first packet
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    idle_ms: Option<u64>,
    /// No line per second on standard error
    #[arg(long)]
    quiet: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    PreferZeroCopy,
    RequireZeroCopy,
    Copy,
    Generic,
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

#[derive(Clone, Copy, Debug, ValueEnum)]
enum WaitName {
    /// Look again at once
    Poll,
    /// Look again after others that share the core had their turn (sched_yield).
    Yield,
    /// Sleep until woken
    Interrupt,
    /// Sleep for --pause-us between looks
    Pause,
}

/// Addresses with ports or without: `10.0.0.1-10.0.0.9:9000`, `[fd00::1-fd00::9]:9000`, `fd00::1`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Hosts {
    ip: IpRange,
    port: Option<PortRange>,
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

fn vni(text: &str) -> Result<Vni, String> {
    let number = text.parse().ok();
    number.and_then(Vni::new).ok_or_else(|| format!("a VNI is a number from 0 to {}", Vni::MAX))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= SECONDS_MAX);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("a number above 0 and up to {SECONDS_MAX}"))
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "a ratio is 0 to 1: 0.005 is half a percent".into())
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
        Ok(SendSettings {
            outlet: self.outlet(threads)?,
            tunnel,
            traffic,
            limits,
            rtt: self.rtt,
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

/// Where a sink or an echo gets its packets from.
#[derive(Clone, Debug)]
pub enum PortSettings {
    /// A memif server.
    Memif(SocketAddr, ClientConfig),
    /// A memif server that may come and go.
    Reconnecting(SocketAddr, ClientConfig),
    /// A UDP socket.
    Udp(SocketAddrV4),
    /// AF_XDP sockets; only of a sink.
    Xdp(XdpSettings),
}

impl PortArgs {
    fn settings(&self) -> Result<PortSettings, Error> {
        if let Some(address) = self.udp {
            return Ok(PortSettings::Udp(address));
        }
        let socket = self
            .memif
            .clone()
            .ok_or_else(|| Error::Arguments("say where packets come from: --memif or --udp".into()))?;
        let config = self.ring.config(self.queue_pairs, "--queue-pairs")?;
        Ok(if self.reconnect {
            PortSettings::Reconnecting(socket, config)
        } else {
            PortSettings::Memif(socket, config)
        })
    }
}

impl RingArgs {
    /// `queue_pairs_flag` is what decides how many queue pairs there are.
    fn config(&self, queue_pairs: u16, queue_pairs_flag: &str) -> Result<ClientConfig, Error> {
        let refused = |flag: &str, why: &dyn std::fmt::Display| Error::Arguments(format!("{flag}: {why}"));
        if !self.ring_size.is_power_of_two() {
            return Err(refused(
                "--ring-size",
                &format!("{} is no power of two, such as 1024", self.ring_size),
            ));
        }
        let config = ClientConfig {
            id: self.id,
            name: "peregrine-pktgen".into(),
            secret: Secret::new(self.secret.as_bytes()).map_err(|why| refused("--secret", &why))?,
            ring_log2: self.ring_size.trailing_zeros() as u8,
            buffer_bytes: self.buffer_size,
            queue_pairs,
            ..ClientConfig::default()
        };
        let flags = format!("--ring-size, --buffer-size or {queue_pairs_flag}");
        config.check().map_err(|why| refused(&flags, &why))?;
        Ok(config)
    }
}

impl RunArgs {
    fn wait(&self) -> Wait {
        match self.wait {
            WaitName::Poll => Wait::Poll,
            WaitName::Yield => Wait::Yield,
            WaitName::Interrupt => Wait::Interrupt,
            WaitName::Pause => Wait::Pause(Duration::from_micros(self.pause_us)),
        }
    }

    fn limits(&self) -> Limits {
        Limits { seconds: self.seconds, count: self.count, idle: self.idle_ms.map(Duration::from_millis) }
    }
}

impl SinkArgs {
    /// What the flags mean.
    ///
    /// # Errors
    /// [`Error::Arguments`] if they cannot be.
    pub fn settings(&self) -> Result<(PortSettings, SinkSettings), Error> {
        if self.classes.len() > CLASSES_MAX {
            return Err(Error::Arguments(format!("--class: at most {CLASSES_MAX} are told apart")));
        }
        let settings = SinkSettings {
            wait: self.run.wait(),
            limits: self.run.limits(),
            flows: self.flows as usize,
            classes: self.classes.clone(),
            quiet: self.run.quiet,
        };
        let port = match self.xdp.settings()? {
            Some(xdp) => PortSettings::Xdp(xdp),
            None => self.port.settings()?,
        };
        Ok((port, settings))
    }

    /// What decides about the exit status.
    pub fn demands(&self) -> Demands {
        Demands { max_loss: self.max_loss, min_received: self.min_received }
    }
}

impl EchoArgs {
    /// What the flags mean. The identity is there with memif.
    ///
    /// # Errors
    /// [`Error::Arguments`] if they cannot be.
    pub fn settings(&self) -> Result<(PortSettings, Option<Identity>, EchoSettings), Error> {
        let port = self.port.settings()?;
        let identity = self.mac.zip(self.ip).map(|(mac, ip)| Identity { mac, ip, ip6: self.ip6 });
        if !matches!(port, PortSettings::Udp(_)) && identity.is_none() {
            return Err(Error::Arguments("echo --memif needs --mac and --ip: who it answers as".into()));
        }
        identity.map_or(Ok(()), check_identity)?;
        Ok((
            port,
            identity,
            EchoSettings { wait: self.run.wait(), limits: self.run.limits(), quiet: self.run.quiet },
        ))
    }
}

/// Nobody can be a group, or no address at all.
fn check_identity(we: Identity) -> Result<(), Error> {
    let refused = |flag: &str, address: &dyn std::fmt::Display| {
        Err(Error::Arguments(format!("{flag} {address}: no station has this address")))
    };
    if we.mac.is_group() || we.mac.is_zero() {
        return refused("--mac", &we.mac);
    }
    if we.ip.is_multicast() || we.ip.is_broadcast() || we.ip.is_unspecified() {
        return refused("--ip", &we.ip);
    }
    match we.ip6 {
        Some(ip6) if ip6.is_multicast() || ip6.is_unspecified() => refused("--ip6", &ip6),
        _ => Ok(()),
    }
}

impl From<Mode> for XdpMode {
    fn from(mode: Mode) -> XdpMode {
        match mode {
            Mode::PreferZeroCopy => XdpMode::PreferZeroCopy,
            Mode::RequireZeroCopy => XdpMode::RequireZeroCopy,
            Mode::Copy => XdpMode::Copy,
            Mode::Generic => XdpMode::Generic,
        }
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

#[cfg(test)]
mod tests;
