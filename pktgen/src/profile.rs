//! What `send` sends: networks, flows, sizes, classes, rate and arrivals, from flags, from a TOML file, or from a file with flags
//! on top. `cli/send.rs` reads the flags; the sender gets a checked [`Profile`] only.
//!
//! A flow belongs to one network and one class: flow n to the n-th network in turn, and each class has flows that follow one
//! another, as many as its share says. So who knows the flow of a packet knows its class.

mod file;
pub mod parts;
mod words;

use std::net::SocketAddr;
use std::num::NonZeroU64;
use std::ops::Range;

use peregrine_dataplane::types::{MacAddr, Vni};
use serde::Serialize;

use crate::error::Error;
use crate::pacer::{Arrivals, Rate};
use crate::rng::Deck;
use crate::template::{Flow, SIZE_MAX, SIZE_MIN, SIZE_MIN_IPV6};

use parts::Part;

pub use file::{ClassDraft, Draft, FlowsDraft, NetworkDraft};
pub use words::{Choice, IpRange, MacRange, PortRange, Size, Sizes, Word};

/// Flows that the trailer can tell apart.
pub const FLOWS_MAX: u32 = 1 << 16;
/// Classes that a profile can have.
pub const CLASSES_MAX: usize = 64;
/// The longest run.
pub const SECONDS_MAX: f64 = 7.0 * 86400.0;
/// UDP port of the flows' destination, unless another is given.
const DESTINATION_PORT: u16 = 9000;
/// UDP port of the first flow's source.
const SOURCE_PORT: u16 = 20000;
/// Bytes of a frame, or as many as there must be.
const DEFAULT_SIZE: usize = 64;
/// Packets a second.
const DEFAULT_PPS: NonZeroU64 = NonZeroU64::new(10_000).unwrap();

/// A profile that can be.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Profile {
    /// What random choices begin with.
    pub seed: u64,
    /// How many packets a second, of all threads.
    #[serde(serialize_with = "words::as_text")]
    pub rate: Rate,
    /// How they are spread.
    #[serde(serialize_with = "words::as_text")]
    pub arrivals: Arrivals,
    /// Of the inner, or only, frames, without FCS.
    #[serde(serialize_with = "words::as_text")]
    pub sizes: Sizes,
    /// For how long.
    pub seconds: Option<f64>,
    /// How many packets.
    pub count: Option<u64>,
    /// Who talks to whom.
    pub flows: Flows,
    /// Networks that frames are wrapped for; none: plain frames.
    pub networks: Vec<Network>,
    /// At least one.
    pub classes: Vec<Class>,
    /// What each thread sends of it.
    #[serde(skip)]
    pub parts: Box<[Part]>,
}

/// The flows' headers.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Flows {
    /// How many.
    pub count: u32,
    /// Whose turn it is.
    #[serde(serialize_with = "words::as_text")]
    pub choice: Choice,
    /// Ethernet source: the n-th source address has the n-th.
    #[serde(serialize_with = "words::as_text")]
    pub source_mac: MacRange,
    /// Ethernet destination, likewise.
    #[serde(serialize_with = "words::as_text")]
    pub destination_mac: MacRange,
    /// IP source.
    #[serde(serialize_with = "words::as_text")]
    pub source_ip: IpRange,
    /// IP destination, of the same version.
    #[serde(serialize_with = "words::as_text")]
    pub destination_ip: IpRange,
    /// UDP source.
    #[serde(serialize_with = "words::as_text")]
    pub source_port: PortRange,
    /// UDP destination, unless the class has its own.
    #[serde(serialize_with = "words::as_text")]
    pub destination_port: PortRange,
}

/// A VXLAN network.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Network {
    /// Its identifier.
    pub vni: Vni,
    /// Ethernet source in it, if not that of the flows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_mac: Option<MacAddr>,
    /// Ethernet destination in it, likewise.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_mac: Option<MacAddr>,
}

/// A class of packets.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Class {
    /// What it is called.
    pub name: String,
    /// Its part of the packets, beside those of the other classes.
    pub share: u32,
    /// Differentiated services code point.
    pub dscp: u8,
    /// UDP destination port of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<u16>,
    /// The number of its first flow.
    pub first_flow: u32,
    /// How many flows it has.
    pub flow_count: u32,
}

impl Class {
    /// Its flows' numbers.
    pub fn flows(&self) -> Range<u32> {
        self.first_flow..self.first_flow + self.flow_count
    }
}

impl Profile {
    /// What a draft means, where `threads` senders share the flows.
    ///
    /// # Errors
    /// [`Error::Arguments`]: the first thing that cannot be.
    pub fn new(draft: Draft, threads: u32) -> Result<Profile, Error> {
        let flows = flows(&draft)?;
        let classes = classes(&draft.classes, flows.count, threads)?;
        let profile = Profile {
            seed: draft.seed.unwrap_or(1),
            rate: draft.rate.map_or(Rate::Pps(DEFAULT_PPS), |rate| rate.0),
            arrivals: draft.arrivals.map_or(Arrivals::Constant, |arrivals| arrivals.0),
            sizes: draft
                .sizes
                .map_or_else(|| Sizes::fixed(DEFAULT_SIZE.max(flows.size_min())), |sizes| sizes.0),
            seconds: draft.seconds,
            count: draft.count,
            networks: networks(&draft.networks)?,
            parts: parts::of(&classes, flows.choice, threads),
            classes,
            flows,
        };
        profile.check_sizes()?;
        profile.check_times()?;
        profile.check_flows()?;
        Ok(profile)
    }

    fn check_sizes(&self) -> Result<(), Error> {
        for Size { bytes, .. } in self.sizes.iter() {
            self.flows.check_size("sizes (--size)", bytes)?;
        }
        if Deck::new(&self.sizes.weights()).is_none() {
            return Err(refused(format!(
                "sizes (--size) {}: weights, without their common divisor, add up to 1 to {}",
                self.sizes,
                Deck::CARDS_MAX
            )));
        }
        Ok(())
    }

    fn check_times(&self) -> Result<(), Error> {
        if let Some(seconds) = self.seconds.filter(|seconds| !(*seconds > 0.0 && *seconds <= SECONDS_MAX)) {
            return Err(refused(format!("seconds {seconds}: a number above 0 and up to {SECONDS_MAX}")));
        }
        let threads = self.parts.len();
        if let Some(count) = self.count.filter(|count| self.parts.iter().any(|part| part.of(*count) == 0)) {
            return Err(refused(format!(
                "count (--count) {count}: at least 1 for each thread, of which there are {threads}{}",
                self.zipf_hint()
            )));
        }
        if !self.has_rate_for_each(self.rate) {
            let rate = self.rate;
            return Err(refused(format!(
                "rate (--rate) {rate}: less than 1 for each of --threads {threads}{}",
                self.zipf_hint()
            )));
        }
        Ok(())
    }

    fn zipf_hint(&self) -> &'static str {
        let unequal = self.parts.len() > 1 && matches!(self.flows.choice, Choice::Zipf(_));
        if unequal { " (by Zipf the last thread has the least)" } else { "" }
    }

    /// Whether at this rate every thread has something to send.
    pub fn has_rate_for_each(&self, rate: Rate) -> bool {
        self.parts.iter().all(|part| rate.part(part).is_some())
    }

    /// The smallest part that a thread sends, of 1.
    pub fn smallest_part(&self) -> f64 {
        self.parts.iter().map(Part::share).fold(1.0, f64::min)
    }

    fn check_flows(&self) -> Result<(), Error> {
        let Flows { count, source_mac, .. } = &self.flows;
        let sources = self.networks.iter().filter_map(|network| network.source_mac);
        for mac in [source_mac.first, source_mac.last].into_iter().chain(sources) {
            if mac.is_group() || mac.is_zero() {
                let what =
                    format!("flows.source_mac (--inner-source-mac) {mac}: no station has this address");
                return Err(refused(what));
            }
        }
        let networks = self.networks.len().max(1) as u64;
        let most = self.flows.combinations().saturating_mul(networks);
        if u64::from(*count) > most {
            let port = self.flows.source_port;
            return Err(refused(format!(
                "flows.count (--flows) {count}: addresses and ports (source port {port} on) make {most} flows: give wider ranges"
            )));
        }
        Ok(())
    }

    /// The headers of a flow.
    pub fn flow(&self, number: u32) -> Flow {
        let networks = self.networks.len().max(1);
        let network = self.networks.get(number as usize % networks);
        let class = self.classes.iter().find(|class| class.flows().contains(&number));
        let mut rest = u64::from(number) / networks as u64;
        // Addresses change first, so that a few flows already have many.
        let mut digit = |base: u64| {
            let digit = rest % base.max(1);
            rest /= base.max(1);
            digit
        };
        let flows = &self.flows;
        let (host, source_port) = (digit(flows.source_ip.len()), digit(flows.source_port.len()));
        let (peer, destination_port) =
            (digit(flows.destination_ip.len()), digit(flows.destination_port.len()));
        let port = class
            .and_then(|class| class.destination_port)
            .unwrap_or_else(|| flows.destination_port.nth(destination_port));
        Flow {
            source_mac: network.and_then(|it| it.source_mac).unwrap_or_else(|| flows.source_mac.nth(host)),
            destination_mac: network
                .and_then(|it| it.destination_mac)
                .unwrap_or_else(|| flows.destination_mac.nth(peer)),
            source: SocketAddr::new(flows.source_ip.nth(host), flows.source_port.nth(source_port)),
            destination: SocketAddr::new(flows.destination_ip.nth(peer), port),
            dscp: class.map_or(0, |class| class.dscp),
            vni: network.map(|network| network.vni),
        }
    }

    /// Bytes of the longest frame, without outer headers.
    pub fn longest(&self) -> usize {
        self.sizes.iter().map(|size| size.bytes).max().unwrap_or(0)
    }

    /// The networks' identifiers.
    pub fn vnis(&self) -> Vec<Vni> {
        self.networks.iter().map(|network| network.vni).collect()
    }
}

impl Flows {
    /// The smallest frame with all headers and a trailer.
    pub fn size_min(&self) -> usize {
        if self.source_ip.is_ipv6() { SIZE_MIN_IPV6 } else { SIZE_MIN }
    }

    /// Whether frames can have so many bytes.
    ///
    /// # Errors
    /// If not: with what says so.
    pub fn check_size(&self, what: &str, bytes: usize) -> Result<(), Error> {
        let least = self.size_min();
        if (least..=SIZE_MAX).contains(&bytes) {
            return Ok(());
        }
        let version = if self.source_ip.is_ipv6() { 6 } else { 4 };
        Err(refused(format!(
            "{what} {bytes}: over IPv{version} headers and trailer take {least} bytes, so a frame is {least} to {SIZE_MAX} bytes"
        )))
    }

    fn combinations(&self) -> u64 {
        let addresses = self.source_ip.len().saturating_mul(self.destination_ip.len());
        addresses.saturating_mul(self.source_port.len()).saturating_mul(self.destination_port.len())
    }
}

fn refused(what: String) -> Error {
    Error::Arguments(what)
}

fn flows(draft: &Draft) -> Result<Flows, Error> {
    fn given<T: Copy>(word: &Option<Word<T>>, key: &str, flag: &str) -> Result<T, Error> {
        let missing = || refused(format!("flows.{key} is not given: use {flag}, or a --profile that has it"));
        word.as_ref().map(|word| word.0).ok_or_else(missing)
    }
    let draft = &draft.flows;
    let port =
        |word: &Option<Word<PortRange>>, usual| word.as_ref().map_or(PortRange::single(usual), |word| word.0);
    let count = draft.count.unwrap_or(1);
    if !(1..=FLOWS_MAX).contains(&count) {
        return Err(refused(format!("flows.count (--flows) {count}: 1 to {FLOWS_MAX}")));
    }
    let flows = Flows {
        count,
        choice: draft.choice.as_ref().map_or(Choice::RoundRobin, |choice| choice.0),
        source_mac: given(&draft.source_mac, "source_mac", "--inner-source-mac")?,
        destination_mac: given(&draft.destination_mac, "destination_mac", "--inner-destination-mac")?,
        source_ip: given(&draft.source_ip, "source_ip", "--inner-source")?,
        destination_ip: given(&draft.destination_ip, "destination_ip", "--inner-destination")?,
        source_port: port(&draft.source_port, SOURCE_PORT).or_open(),
        destination_port: port(&draft.destination_port, DESTINATION_PORT),
    };
    let Flows { source_ip, destination_ip, .. } = flows;
    if source_ip.is_ipv6() != destination_ip.is_ipv6() {
        return Err(refused(format!(
            "flows.source_ip (--inner-source) {source_ip} and flows.destination_ip (--inner-destination) {destination_ip}: \
             give both as IPv4 or both as IPv6"
        )));
    }
    Ok(flows)
}

fn networks(drafts: &[NetworkDraft]) -> Result<Vec<Network>, Error> {
    let mut networks: Vec<Network> = Vec::new();
    for draft in drafts {
        let vni = Vni::new(draft.vni).ok_or_else(|| {
            refused(format!("networks.vni (--vni) {}: a VNI is a number from 0 to {}", draft.vni, Vni::MAX))
        })?;
        if networks.iter().any(|network| network.vni == vni) {
            return Err(refused(format!(
                "networks.vni (--vni) {vni}: is there twice, give each network once"
            )));
        }
        let mac = |mac: &Option<Word<MacAddr>>| mac.as_ref().map(|mac| mac.0);
        let (source_mac, destination_mac) = (mac(&draft.source_mac), mac(&draft.destination_mac));
        networks.push(Network { vni, source_mac, destination_mac });
    }
    Ok(networks)
}

/// Gives each class its flows: by its share, but at least one for each thread.
fn classes(drafts: &[ClassDraft], flows: u32, threads: u32) -> Result<Vec<Class>, Error> {
    let all = [ClassDraft::default()];
    let drafts = if drafts.is_empty() { &all } else { drafts };
    let shares: Vec<u32> = drafts.iter().map(|class| class.share).collect();
    if drafts.len() > CLASSES_MAX || Deck::new(&shares).is_none() || shares.contains(&0) {
        let most = Deck::CARDS_MAX;
        return Err(refused(format!(
            "classes.share {shares:?}: 1 to {CLASSES_MAX} shares above 0 that, without their common divisor, add up to at most {most}"
        )));
    }
    if let Some(class) = drafts.iter().find(|class| class.dscp >= 64) {
        return Err(refused(format!("classes.dscp {} of {}: 0 to 63", class.dscp, class.name)));
    }
    let least = threads.saturating_mul(drafts.len() as u32);
    if flows < least {
        let count = drafts.len();
        return Err(refused(format!(
            "flows.count (--flows) {flows}: {count} classes times --threads {threads} need at least {least} flows"
        )));
    }
    let mut classes = Vec::new();
    let (mut flows_left, mut first) = (flows, 0);
    let mut shares_left: u64 = shares.iter().map(|share| u64::from(*share)).sum();
    for (draft, after) in drafts.iter().zip((0..drafts.len() as u32).rev()) {
        let fair = (u64::from(flows_left) * u64::from(draft.share) + shares_left / 2) / shares_left.max(1);
        let count = (fair as u32).clamp(threads, flows_left - threads * after);
        classes.push(Class {
            name: draft.name.clone(),
            share: draft.share,
            dscp: draft.dscp,
            destination_port: draft.destination_port,
            first_flow: first,
            flow_count: count,
        });
        first += count;
        flows_left -= count;
        shares_left -= u64::from(draft.share);
    }
    Ok(classes)
}

#[cfg(test)]
mod tests;
