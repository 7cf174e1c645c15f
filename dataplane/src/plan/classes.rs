//! The priority classes of a plan, and the rules that put packets into them: plain data, and whether one rule hides another.
//! Made by `peregrine-config`, compiled by `classes.rs` of this crate.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::str::FromStr;

use serde::Serialize;

use super::{NetworkPlan, Places};
use crate::types::{Class, EndpointId, NetworkId};

/// The classes, and which packets belong to which.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClassesPlan {
    /// By [`Class`]: the most urgent first, 1 to [`Class::LIMIT`].
    pub list: Vec<ClassPlan>,
    /// So many bursts of more urgent classes a worker takes in a row while one of the others waits; at least 1.
    pub urgent_quota: u16,
    /// Of frames that no rule and no network gives another.
    pub default: Class,
    /// The first that matches decides; at most [`RULES_MAX`](Self::RULES_MAX).
    pub rules: Vec<RulePlan>,
    /// Remotes whose outer DSCP is believed.
    pub trusted: Vec<IpAddr>,
}

impl ClassesPlan {
    /// How many rules there may be.
    pub const RULES_MAX: usize = 1024;
    /// [`urgent_quota`](Self::urgent_quota), if nobody says otherwise.
    pub const URGENT_QUOTA: u16 = 16;

    /// Some packet can belong to another class than the default.
    pub fn are_used(&self, networks: &Places<NetworkId, NetworkPlan>) -> bool {
        self.rules.iter().any(|rule| rule.class != self.default)
            || networks.values().any(|network| network.class != self.default)
    }

    /// Rules that no packet reaches because an earlier one matches all that they do: (the rule, the first such earlier one).
    /// What several earlier ones hide together is not found.
    pub fn hidden(&self) -> Vec<(usize, usize)> {
        let first_cover =
            |(place, rule): (usize, &RulePlan)| self.rules.iter().take(place).position(|r| r.covers(rule));
        self.rules
            .iter()
            .enumerate()
            .filter_map(|(place, rule)| Some((place, first_cover((place, rule))?)))
            .collect()
    }
}

impl Default for ClassesPlan {
    /// `urgent` and `normal`, and every packet is normal.
    fn default() -> ClassesPlan {
        ClassesPlan {
            list: ["urgent", "normal"].map(ClassPlan::new).into(),
            urgent_quota: ClassesPlan::URGENT_QUOTA,
            default: Class::NORMAL,
            rules: Vec::new(),
            trusted: Vec::new(),
        }
    }
}

/// One class.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClassPlan {
    /// For people.
    pub name: String,
    /// How its packets are preferred to those of the classes behind it; of the last class without meaning.
    pub order: WorkOrder,
    /// Percent of each worker's time that it has at least, while it has packets there; all together at most 100.
    pub share: u8,
    /// DSCP of the outer header of what is sent (RFC 2474 §3).
    pub dscp: u8,
}

impl ClassPlan {
    /// With the defaults.
    pub fn new(name: &str) -> ClassPlan {
        ClassPlan { name: name.into(), order: WorkOrder::Sync, share: 0, dscp: 0 }
    }
}

/// In which order a worker takes up the packets of a class and those of less urgent ones (PRISM, ICDCS 2022).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum WorkOrder {
    /// As they come: the class is not preferred.
    Fifo,
    /// Its burst goes first at each stage, with at most one stage of one less urgent burst in between.
    Batch,
    /// Its burst goes through all its stages at once.
    #[default]
    Sync,
}

impl WorkOrder {
    /// All of them.
    pub const ALL: [WorkOrder; 3] = [WorkOrder::Fifo, WorkOrder::Batch, WorkOrder::Sync];

    /// The word used in the config and in `status`.
    pub const fn name(self) -> &'static str {
        match self {
            WorkOrder::Fifo => "fifo",
            WorkOrder::Batch => "batch",
            WorkOrder::Sync => "sync",
        }
    }
}

/// One rule: a packet matches if it has all that is named. What is `None` does not matter.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct RulePlan {
    /// Where a packet that matches belongs.
    pub class: Class,
    /// It is on this network. If an endpoint is named, this is the endpoint's.
    pub network: Option<NetworkId>,
    /// This tenant sends or receives it.
    pub endpoint: Option<EndpointId>,
    /// The DSCP of its IP header is one of these.
    pub dscp: Option<DscpSet>,
    /// Its IP protocol (in IPv6 the next header).
    pub protocol: Option<u8>,
    /// Its source port.
    pub source_port: Option<RangeInclusive<u16>>,
    /// Its destination port.
    pub destination_port: Option<RangeInclusive<u16>>,
    /// Its source or its destination port.
    pub port: Option<RangeInclusive<u16>>,
    /// Where its source address lies.
    pub source: Option<Prefix>,
    /// Where its destination address lies.
    pub destination: Option<Prefix>,
    /// Where its source or its destination address lies.
    pub address: Option<Prefix>,
    /// A trusted remote sent it with one of these as DSCP of the outer header.
    pub outer_dscp: Option<DscpSet>,
}

impl RulePlan {
    /// Matches every packet.
    pub const fn any(class: Class) -> RulePlan {
        RulePlan {
            class,
            network: None,
            endpoint: None,
            dscp: None,
            protocol: None,
            source_port: None,
            destination_port: None,
            port: None,
            source: None,
            destination: None,
            address: None,
            outer_dscp: None,
        }
    }

    /// True if headers do not matter to it: it names at most a network.
    pub fn is_network_only(&self) -> bool {
        *self == RulePlan { network: self.network, ..RulePlan::any(self.class) }
    }

    /// Which things it names, a bit for each; two rules that name the same things have the same.
    pub fn asks(&self) -> u16 {
        [
            self.network.is_some(),
            self.endpoint.is_some(),
            self.dscp.is_some(),
            self.protocol.is_some(),
            self.source_port.is_some(),
            self.destination_port.is_some(),
            self.port.is_some(),
            self.source.is_some(),
            self.destination.is_some(),
            self.address.is_some(),
            self.outer_dscp.is_some(),
        ]
        .into_iter()
        .fold(0, |asks, one| asks << 1 | u16::from(one))
    }

    /// True if every packet that matches `other` matches this one.
    pub fn covers(&self, other: &RulePlan) -> bool {
        let dscp = |ours: &DscpSet, theirs: &DscpSet| theirs.0 & !ours.0 == 0;
        let range = |ours: &RangeInclusive<u16>, theirs: &RangeInclusive<u16>| {
            ours.start() <= theirs.start() && theirs.end() <= ours.end()
        };
        let same = |ours: &u8, theirs: &u8| ours == theirs;
        covered(&self.network, [&other.network], |a, b| a == b)
            && covered(&self.endpoint, [&other.endpoint], |a, b| a == b)
            && covered(&self.dscp, [&other.dscp], dscp)
            && covered(&self.outer_dscp, [&other.outer_dscp], dscp)
            && covered(&self.protocol, [&other.protocol], same)
            && covered(&self.source_port, [&other.source_port], range)
            && covered(&self.destination_port, [&other.destination_port], range)
            && covered(&self.port, [&other.port, &other.source_port, &other.destination_port], range)
            && covered(&self.source, [&other.source], Prefix::covers)
            && covered(&self.destination, [&other.destination], Prefix::covers)
            && covered(&self.address, [&other.address, &other.source, &other.destination], Prefix::covers)
    }
}

/// What one rule asks is asked by one of these, too, as narrowly or more so.
fn covered<T, const N: usize>(
    ours: &Option<T>,
    theirs: [&Option<T>; N],
    covers: impl Fn(&T, &T) -> bool,
) -> bool {
    ours.as_ref().is_none_or(|ours| theirs.into_iter().flatten().any(|theirs| covers(ours, theirs)))
}

/// Some of the 64 values of the DSCP (RFC 2474 §3): one bit each.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct DscpSet(pub u64);

impl DscpSet {
    /// The largest value.
    pub const MAX: u8 = 63;

    /// This one is among them; none above [`MAX`](Self::MAX) is.
    pub const fn contains(self, dscp: u8) -> bool {
        dscp <= Self::MAX && self.0 >> dscp & 1 == 1
    }
}

impl FromIterator<u8> for DscpSet {
    /// Values above [`MAX`](Self::MAX) are left out.
    fn from_iter<I: IntoIterator<Item = u8>>(values: I) -> DscpSet {
        let values = values.into_iter().filter(|value| *value <= Self::MAX);
        DscpSet(values.fold(0, |set, value| set | 1 << value))
    }
}

/// Addresses that begin alike.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct Prefix {
    address: IpAddr,
    bits: u8,
}

impl Prefix {
    /// The first `bits` bits of `address`.
    ///
    /// # Errors
    /// [`PrefixError`]: it has not so many, or others are set.
    pub fn new(address: IpAddr, bits: u8) -> Result<Prefix, PrefixError> {
        let prefix = Prefix { address, bits };
        if bits > prefix.width() {
            return Err(PrefixError::TooLong { bits_max: prefix.width() });
        }
        let (first, _) = prefix.numbers();
        let network = match address {
            IpAddr::V4(_) => Ipv4Addr::from(first as u32).into(),
            IpAddr::V6(_) => Ipv6Addr::from(first).into(),
        };
        if network == address { Ok(prefix) } else { Err(PrefixError::HostBits { network, bits }) }
    }

    /// The first and the last address as numbers, of 32 or 128 bits.
    pub fn numbers(&self) -> (u128, u128) {
        let number = match self.address {
            IpAddr::V4(address) => u128::from(u32::from(address)),
            IpAddr::V6(address) => u128::from(address),
        };
        let host_bits = u32::from(self.width().saturating_sub(self.bits));
        let rest = 1u128.checked_shl(host_bits).map_or(u128::MAX, |size| size - 1);
        (number & !rest, number | rest)
    }

    /// How many bits its addresses have in common.
    pub const fn bits(&self) -> u8 {
        self.bits
    }

    /// It holds this address.
    pub fn holds(&self, address: IpAddr) -> bool {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        self.covers(&Prefix { address, bits })
    }

    /// Of IPv4 addresses.
    pub const fn is_ipv4(&self) -> bool {
        self.address.is_ipv4()
    }

    /// All of `other` is in this one.
    pub fn covers(&self, other: &Prefix) -> bool {
        let ((first, last), (other_first, other_last)) = (self.numbers(), other.numbers());
        self.is_ipv4() == other.is_ipv4() && first <= other_first && other_last <= last
    }

    const fn width(&self) -> u8 {
        if self.is_ipv4() { 32 } else { 128 }
    }
}

impl fmt::Display for Prefix {
    /// As it is read; a whole address without its length.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bits == self.width() {
            return self.address.fmt(f);
        }
        write!(f, "{}/{}", self.address, self.bits)
    }
}

/// Why a text is not a prefix.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PrefixError {
    /// Not an address, or not a number behind the slash.
    Syntax,
    /// More bits than an address has.
    TooLong {
        /// So many it has.
        bits_max: u8,
    },
    /// Bits behind the prefix are set.
    HostBits {
        /// The address without them.
        network: IpAddr,
        /// The length.
        bits: u8,
    },
}

impl fmt::Display for PrefixError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PrefixError::Syntax => {
                f.write_str("an IP address or a prefix, such as \"10.42.0.0/16\" or \"fd00::/8\"")
            }
            PrefixError::TooLong { bits_max } => write!(f, "a prefix of at most {bits_max} bits"),
            PrefixError::HostBits { network, bits } => {
                write!(f, "a prefix whose other bits are zero: \"{network}/{bits}\"")
            }
        }
    }
}

impl std::error::Error for PrefixError {}

impl FromStr for Prefix {
    type Err = PrefixError;

    fn from_str(text: &str) -> Result<Prefix, PrefixError> {
        let (address, bits) = text.split_once('/').map_or((text, None), |(a, bits)| (a, Some(bits)));
        let address: IpAddr = address.parse().map_err(|_| PrefixError::Syntax)?;
        let width = if address.is_ipv4() { 32 } else { 128 };
        let Some(bits) = bits else { return Prefix::new(address, width) };
        if bits.is_empty() || bits.len() > 3 || !bits.bytes().all(|b| b.is_ascii_digit()) {
            return Err(PrefixError::Syntax);
        }
        Prefix::new(address, bits.parse().map_err(|_| PrefixError::TooLong { bits_max: width })?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prefix(text: &str) -> Prefix {
        text.parse().unwrap()
    }

    #[test]
    fn prefixes_are_read_and_their_ends_are_right() {
        assert_eq!(prefix("10.42.0.0/16").numbers(), (0x0a2a_0000, 0x0a2a_ffff));
        assert_eq!(prefix("10.42.0.1").numbers(), (0x0a2a_0001, 0x0a2a_0001));
        assert_eq!(prefix("0.0.0.0/0").numbers(), (0, 0xffff_ffff));
        assert_eq!(prefix("::/0").numbers(), (0, u128::MAX));
        assert_eq!(prefix("fd00::1").numbers(), (0xfd << 120 | 1, 0xfd << 120 | 1));
        for (text, error) in [
            ("10.42.0.1/16", PrefixError::HostBits { network: [10, 42, 0, 0].into(), bits: 16 }),
            ("10.42.0.0/33", PrefixError::TooLong { bits_max: 32 }),
            ("fd00::/129", PrefixError::TooLong { bits_max: 128 }),
            ("fd00::/999", PrefixError::TooLong { bits_max: 128 }),
            ("10.42.0.0/", PrefixError::Syntax),
            ("10.42.0.0/+8", PrefixError::Syntax),
            ("10.42.0/16", PrefixError::Syntax),
            ("", PrefixError::Syntax),
        ] {
            assert_eq!(text.parse::<Prefix>(), Err(error), "{text}");
        }
    }

    #[test]
    fn prefixes_are_written_as_they_are_read() {
        for text in ["10.42.0.0/16", "10.42.0.1", "0.0.0.0/0", "::/0", "fd00::/8", "fd00::1"] {
            assert_eq!(prefix(text).to_string(), text);
        }
        assert_eq!(prefix("10.42.0.1/32").to_string(), "10.42.0.1");
    }

    #[test]
    fn prefixes_cover_what_lies_in_them() {
        for (wide, narrow, covers) in [
            ("10.0.0.0/8", "10.1.0.0/16", true),
            ("10.0.0.0/8", "10.0.0.0/8", true),
            ("10.1.0.0/16", "10.0.0.0/8", false),
            ("0.0.0.0/0", "::/0", false),
            ("::/0", "10.0.0.0/8", false),
            ("fd00::/8", "fd12::1", true),
        ] {
            assert_eq!(prefix(wide).covers(&prefix(narrow)), covers, "{wide} {narrow}");
        }
    }

    #[test]
    fn rules_that_an_earlier_one_covers_are_found() {
        let rule = RulePlan::any(Class::URGENT);
        let udp = RulePlan { protocol: Some(17), ..rule.clone() };
        let port = RulePlan { port: Some(1000..=2000), ..rule.clone() };
        let source = RulePlan { source_port: Some(1500..=1500), ..udp.clone() };
        let wide = RulePlan { source_port: Some(1500..=2500), ..udp.clone() };
        let plan = |rules: &[&RulePlan]| ClassesPlan {
            rules: rules.iter().copied().cloned().collect(),
            ..ClassesPlan::default()
        };
        assert_eq!(plan(&[&port, &source, &wide, &udp]).hidden(), [(1, 0)]);
        assert_eq!(plan(&[&udp, &source, &port, &wide]).hidden(), [(1, 0), (3, 0)]);
        assert_eq!(plan(&[&source, &wide, &port, &rule, &udp]).hidden(), [(4, 3)]);
        assert_eq!(plan(&[&source, &port]).hidden(), []);
    }
}
