//! The command line: what clap reads ([`Cli`]), and what it means once checked (the settings of the commands).

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::PathBuf;
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
use crate::pacer::Rate;
use crate::port::xdp::XdpSettings;
use crate::send::{SendSettings, SendWait};
use crate::sink::{Demands, SinkSettings};
use crate::template::{Inner, SIZE_MAX, SIZE_MIN};

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
    /// Send VXLAN frames over AF_XDP, each at its time (needs root)
    Send(SendArgs),
    /// Count what arrives: loss, order, latency
    Sink(SinkArgs),
    /// Send back what arrives: ARP and neighbour discovery, ICMP and ICMPv6 echo, UDP
    Echo(EchoArgs),
    /// Find the highest rate without loss, sending and counting in one (needs root)
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
pub struct SendArgs {
    /// Interface to send on
    #[arg(long, value_name = "IF")]
    interface: String,
    /// Its queue
    #[arg(long, value_name = "N", default_value_t = 0)]
    queue: u32,
    /// How the socket is bound
    #[arg(long, value_enum, default_value = "prefer-zero-copy")]
    mode: Mode,
    /// Ethernet address of the next hop
    #[arg(long, value_name = "MAC")]
    next_hop: MacAddr,
    /// Source VTEP: our address
    #[arg(long, value_name = "IPV4")]
    local: Ipv4Addr,
    /// Destination VTEP
    #[arg(long, value_name = "IPV4")]
    remote: Ipv4Addr,
    /// UDP destination port of VXLAN
    #[arg(long, value_name = "PORT", default_value_t = 4789)]
    port: u16,
    /// VXLAN network identifier
    #[arg(long, value_name = "N", value_parser = vni)]
    vni: Vni,
    /// Ethernet source of the inner frames
    #[arg(long, value_name = "MAC")]
    inner_source_mac: MacAddr,
    /// Ethernet destination of the inner frames
    #[arg(long, value_name = "MAC")]
    inner_destination_mac: MacAddr,
    /// Inner source, and UDP port of the first flow; each further flow has the next port [default port: 20000]
    #[arg(long, value_name = "IP[:PORT]")]
    inner_source: Host,
    /// Inner destination [default port: 9000]
    #[arg(long, value_name = "IP[:PORT]")]
    inner_destination: Host,
    /// How many flows, taking turns
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..))]
    flows: u16,
    /// Bytes of the inner frame, without FCS
    #[arg(long, value_name = "BYTES", default_value_t = 64)]
    size: usize,
    /// Packets per second, or 'max'
    #[arg(long, value_name = "PPS", default_value = "10000")]
    rate: Rate,
    /// How long; 10 if neither this nor --count is given
    #[arg(long, value_name = "N", value_parser = seconds)]
    seconds: Option<Duration>,
    /// How many packets
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// Receive the answers and measure round trips (attaches an XDP program)
    #[arg(long)]
    pub rtt: bool,
    /// With --rtt: do not measure the generator's own latency before the run
    #[arg(long)]
    pub no_floor: bool,
    /// What to do while nothing is due
    #[arg(long, value_enum, default_value = "yield")]
    wait: SendWaitName,
    /// Flags that all commands have.
    #[command(flatten)]
    pub common: Common,
}

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
    /// Interface id at the memif server
    #[arg(long, value_name = "N", default_value_t = 0)]
    id: u32,
    /// Secret that the memif server wants
    #[arg(long, value_name = "S", default_value = "")]
    secret: String,
    /// Wait for the memif server, now and whenever it goes away
    #[arg(long, conflicts_with = "udp")]
    reconnect: bool,
    /// Rings each way; the server must have as many. All are read, answers go out on the first
    #[arg(long, value_name = "N", default_value_t = 1, conflicts_with = "udp")]
    queue_pairs: u16,
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
    #[arg(long, value_name = "IF", conflicts_with_all = ["memif", "udp", "reconnect"], requires = "local", requires = "vni")]
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
    fn settings(&self) -> Option<XdpSettings> {
        Some(XdpSettings {
            interface: self.interface.clone()?,
            queues: self.queues.iter().map(|queue| QueueId(*queue)).collect(),
            mode: self.mode.into(),
            local: self.local?,
            port: self.port,
            vni: self.vni?,
        })
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

/// An address with a port or without.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Host {
    ip: Ipv4Addr,
    port: Option<u16>,
}

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Host, String> {
        let with_port =
            text.parse::<SocketAddrV4>().map(|host| Host { ip: *host.ip(), port: Some(host.port()) });
        with_port
            .or_else(|_| text.parse().map(|ip| Host { ip, port: None }))
            .map_err(|_| "not an IPv4 address, such as 10.0.0.1 or 10.0.0.1:9000".into())
    }
}

impl Host {
    fn or_port(self, port: u16) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip, self.port.unwrap_or(port))
    }
}

fn vni(text: &str) -> Result<Vni, String> {
    let number = text.parse().ok();
    number.and_then(Vni::new).ok_or_else(|| format!("a VNI is a number from 0 to {}", Vni::MAX))
}

fn seconds(text: &str) -> Result<Duration, String> {
    const LONGEST: f64 = 7.0 * 86400.0;
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= LONGEST);
    seconds.map(Duration::from_secs_f64).ok_or_else(|| format!("a number above 0 and up to {LONGEST}"))
}

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "a ratio is 0 to 1: 0.005 is half a percent".into())
}

impl SendArgs {
    /// What the flags mean.
    ///
    /// # Errors
    /// [`Error::Arguments`] if they contradict each other.
    pub fn settings(&self) -> Result<SendSettings, Error> {
        let inner = Inner {
            source_mac: self.inner_source_mac,
            destination_mac: self.inner_destination_mac,
            source: self.inner_source.or_port(20000),
            destination: self.inner_destination.or_port(9000),
            size: self.size,
            flows: self.flows,
        };
        if !(SIZE_MIN..=SIZE_MAX).contains(&inner.size) {
            let what = format!("--size {}: an inner frame is {SIZE_MIN} to {SIZE_MAX} bytes", inner.size);
            return Err(Error::Arguments(what));
        }
        let port = inner.source.port();
        if port.checked_add(inner.flows - 1).is_none() {
            let most = u32::from(u16::MAX - port) + 1;
            let what = format!("--flows {}: from port {port} on there are ports for {most}", inner.flows);
            return Err(Error::Arguments(what));
        }
        if inner.source_mac.is_group() || inner.source_mac.is_zero() {
            let what = format!("--inner-source-mac {}: no station has this address", inner.source_mac);
            return Err(Error::Arguments(what));
        }
        let unbounded = self.seconds.is_none() && self.count.is_none();
        Ok(SendSettings {
            interface: self.interface.clone(),
            queue: QueueId(self.queue),
            mode: self.mode.into(),
            next_hop: self.next_hop,
            local: self.local,
            remote: self.remote,
            port: self.port,
            vni: self.vni,
            inner,
            rate: self.rate,
            limits: Limits {
                seconds: if unbounded { Some(Duration::from_secs(10)) } else { self.seconds },
                count: self.count,
                idle: None,
            },
            rtt: self.rtt,
            wait: self.wait.into(),
        })
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
            queue_pairs: self.queue_pairs,
            ..ClientConfig::default()
        };
        config.check().map_err(|why| refused("--ring-size, --buffer-size or --queue-pairs", &why))?;
        Ok(if self.reconnect {
            PortSettings::Reconnecting(socket, config)
        } else {
            PortSettings::Memif(socket, config)
        })
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
        let port = match self.xdp.settings() {
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
        Ok((
            port,
            identity,
            EchoSettings { wait: self.run.wait(), limits: self.run.limits(), quiet: self.run.quiet },
        ))
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
