//! The flags of `sink` and `echo`: where packets come from, how long, and what each does with them.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4};
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use peregrine_dataplane::types::{MacAddr, QueueId, Vni};
use peregrine_dataplane::wire::outer::Vtep;
use peregrine_memif::{ClientConfig, SocketAddr};

use super::{Common, Mode, RING_FLAGS, RingArgs, seconds, vni};
use crate::classes::{CLASSES_MAX, Class};
use crate::echo::EchoSettings;
use crate::echo::reply::Identity;
use crate::error::Error;
use crate::limits::{Limits, Wait};
use crate::port::udp::BUFFER_BYTES;
use crate::port::xdp::{Taken, XdpSettings};
use crate::sink::{Demands, SinkSettings};

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
    /// What the UDP socket's receive buffer is asked to hold: the less, the sooner too high a rate shows as loss
    #[arg(long, value_name = "BYTES", requires = "udp", default_value_t = BUFFER_BYTES as u32, value_parser = clap::value_parser!(u32).range(4096..=1 << 30))]
    pub udp_buffer: u32,
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
    #[arg(long, value_name = "IP:PORT", conflicts_with_all = RING_FLAGS)]
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

/// Where packets come from if not from an interface. What requires `--interface` is not refused for that alone: clap waives a
/// requirement that conflicts with what is given.
const OTHER_PORTS: [&str; 2] = ["memif", "udp"];

#[derive(Clone, Debug, Args)]
#[group(skip)]
struct XdpArgs {
    /// Interface to take frames from over AF_XDP (needs root; attaches an XDP program): those of one network in VXLAN, or --all-frames
    #[arg(long, value_name = "IF", conflicts_with_all = ["memif", "udp", "reconnect", "queue_pairs"],
        conflicts_with_all = RING_FLAGS)]
    interface: Option<String>,
    /// Its queues
    #[arg(long = "queue", value_name = "N,..", value_delimiter = ',', default_value = "0", requires = "interface", conflicts_with_all = OTHER_PORTS)]
    queues: Vec<u32>,
    /// How its sockets are bound
    #[arg(long, value_enum, default_value = "prefer-zero-copy", requires = "interface", conflicts_with_all = OTHER_PORTS)]
    mode: Mode,
    /// Our VTEP address
    #[arg(long, value_name = "IPV4", requires = "interface", conflicts_with_all = OTHER_PORTS)]
    local: Option<Ipv4Addr>,
    /// UDP port of VXLAN
    #[arg(long, value_name = "PORT", default_value_t = 4789, requires = "interface", conflicts_with_all = OTHER_PORTS)]
    port: u16,
    /// VXLAN network identifier
    #[arg(long, value_name = "N", value_parser = vni, requires = "interface", conflicts_with_all = OTHER_PORTS)]
    vni: Option<Vni>,
    /// Take every frame that arrives, plain ones as they are. The kernel gets none of them, not even ARP or SSH: for an interface of its own
    #[arg(long, requires = "interface", conflicts_with_all = ["memif", "udp", "local", "port", "vni"])]
    all_frames: bool,
}

#[derive(Clone, Debug, Args)]
struct RunArgs {
    /// What to do while nothing is there
    #[arg(long, value_enum, default_value = "interrupt")]
    wait: WaitName,
    /// How long --wait pause sleeps, in microseconds [default: 300]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=50_000))]
    pause_us: Option<u64>,
    /// End after so long
    #[arg(long, value_name = "N", value_parser = seconds)]
    seconds: Option<Duration>,
    /// End after so many packets, or up to 63 more: all that came with the last one count
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End when so long nothing came, after the first packet
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    idle_ms: Option<u64>,
    /// No line per second on standard error
    #[arg(long)]
    quiet: bool,
}

/// How long 'pause' sleeps, if nothing is said.
pub(super) const PAUSE: Duration = Duration::from_micros(300);

#[derive(Clone, Copy, Debug, ValueEnum)]
pub(super) enum WaitName {
    /// Look again at once
    Poll,
    /// Look again after others that share the core had their turn (sched_yield).
    Yield,
    /// Sleep until woken
    Interrupt,
    /// Sleep between looks: for --pause-us, in a search for 300 µs
    Pause,
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
        let socket = self.memif.clone().ok_or_else(|| {
            Error::Arguments("say where packets come from: --memif, --udp or, with sink, --interface".into())
        })?;
        let config = self.ring.config(self.queue_pairs, "--queue-pairs")?;
        Ok(if self.reconnect {
            PortSettings::Reconnecting(socket, config)
        } else {
            PortSettings::Memif(socket, config)
        })
    }
}

impl XdpArgs {
    /// `None`: it is not AF_XDP that packets come from.
    fn settings(&self) -> Result<Option<XdpSettings>, Error> {
        let Some(interface) = self.interface.clone() else { return Ok(None) };
        let taken = match (self.all_frames, self.local, self.vni) {
            (true, ..) => Taken::Everything,
            (false, Some(address), Some(vni)) => Taken::Vxlan(Vtep { address, port: self.port }, vni),
            _ => {
                return Err(Error::Arguments(format!(
                    "sink --interface {interface} takes VXLAN frames, which need --local and --vni; give --all-frames for plain ones"
                )));
            }
        };
        let queues = self.queues.iter().map(|queue| QueueId(*queue)).collect();
        let mode = self.mode.into();
        Ok(Some(XdpSettings { interface, queues, mode, taken }))
    }
}

impl WaitName {
    /// What is meant by it; 'pause' sleeps so long.
    pub(super) fn with_pause(self, pause: Duration) -> Wait {
        match self {
            WaitName::Poll => Wait::Poll,
            WaitName::Yield => Wait::Yield,
            WaitName::Interrupt => Wait::Interrupt,
            WaitName::Pause => Wait::Pause(pause),
        }
    }
}

impl RunArgs {
    fn wait(&self) -> Result<Wait, Error> {
        let pause = self.pause_us.map_or(PAUSE, Duration::from_micros);
        match (self.wait.with_pause(pause), self.pause_us) {
            (wait @ Wait::Pause(_), _) | (wait, None) => Ok(wait),
            (_, Some(us)) => {
                Err(Error::Arguments(format!("--pause-us {us}: nothing pauses without --wait pause")))
            }
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
            wait: self.run.wait()?,
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
            EchoSettings { wait: self.run.wait()?, limits: self.run.limits(), quiet: self.run.quiet },
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

fn ratio(text: &str) -> Result<f64, String> {
    let ratio = text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
    ratio.ok_or_else(|| "a ratio is 0 to 1: 0.005 is half a percent".into())
}
