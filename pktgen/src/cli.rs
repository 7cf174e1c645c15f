//! The command line: what clap reads ([`Cli`]), and what it means once checked (the settings of the commands).

mod receive;
mod search;
mod send;

use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::Vni;
use peregrine_memif::{ClientConfig, Secret};

use crate::error::Error;
use crate::profile::SECONDS_MAX;

pub use receive::{EchoArgs, PortSettings, SinkArgs};
pub use search::SearchArgs;
pub use send::SendArgs;

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

/// What a memif connection is like: refused where there is none, see [`RING_FLAGS`].
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

/// The names of [`RingArgs`], for what they say nothing to. `requires = "memif"` would not do: clap waives a requirement that
/// conflicts with what is given.
const RING_FLAGS: [&str; 4] = ["id", "secret", "ring_size", "buffer_size"];

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    PreferZeroCopy,
    RequireZeroCopy,
    Copy,
    Generic,
}

fn vni(text: &str) -> Result<Vni, String> {
    let number = text.parse().ok();
    number.and_then(Vni::new).ok_or_else(|| format!("a VNI is a number from 0 to {}", Vni::MAX))
}

fn seconds(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| *seconds > 0.0 && *seconds <= SECONDS_MAX);
    // A picosecond is above 0, and yet no duration.
    let duration = seconds.map(Duration::from_secs_f64).filter(|duration| !duration.is_zero());
    duration.ok_or_else(|| format!("a number above 0 and up to {SECONDS_MAX}"))
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

#[cfg(test)]
mod tests;
