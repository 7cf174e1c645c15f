//! The words of a profile, the same in flags and in TOML: sizes, choices, ranges.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use peregrine_dataplane::types::MacAddr;
use serde::{Deserialize, Deserializer, Serializer};

/// Something that is written as one word, or as a number.
#[derive(Clone, PartialEq, Debug)]
pub struct Word<T>(pub T);

impl<T: FromStr> FromStr for Word<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Word<T>, T::Err> {
        text.parse().map(Word)
    }
}

impl<'de, T: FromStr<Err: fmt::Display>> Deserialize<'de> for Word<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Word<T>, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged, expecting = "a text or a whole number")]
        enum Raw {
            Number(i64),
            Text(String),
        }
        let text = match Raw::deserialize(deserializer)? {
            Raw::Number(number) => number.to_string(),
            Raw::Text(text) => text,
        };
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// For `serialize_with`.
pub(super) fn as_text<T: fmt::Display, S: Serializer>(value: &T, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(value)
}

/// A frame's length and how often it comes beside the others.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Bytes, without FCS.
    pub bytes: usize,
    /// How often.
    pub weight: u32,
}

/// The lengths of frames.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Sizes(Vec<Size>);

/// The usual mix: 7 of 64, 4 of 594 and 1 of 1518 bytes with FCS, which ours have not.
const IMIX: [Size; 3] =
    [Size { bytes: 60, weight: 7 }, Size { bytes: 590, weight: 4 }, Size { bytes: 1514, weight: 1 }];

impl Sizes {
    /// All alike.
    pub fn fixed(bytes: usize) -> Sizes {
        Sizes(vec![Size { bytes, weight: 1 }])
    }

    /// The sizes.
    pub fn iter(&self) -> impl Iterator<Item = Size> + '_ {
        self.0.iter().copied()
    }

    /// Their weights.
    pub fn weights(&self) -> Vec<u32> {
        self.iter().map(|size| size.weight).collect()
    }

    /// The mean length.
    pub fn mean(&self) -> f64 {
        let weights: f64 = self.iter().map(|size| f64::from(size.weight)).sum();
        self.iter().map(|size| size.bytes as f64 * f64::from(size.weight)).sum::<f64>() / weights.max(1.0)
    }
}

impl FromStr for Sizes {
    type Err = String;

    fn from_str(text: &str) -> Result<Sizes, String> {
        if text == "imix" {
            return Ok(Sizes(IMIX.to_vec()));
        }
        let size = |part: &str| {
            let (bytes, weight) = part.split_once(':').unwrap_or((part, "1"));
            let weight = weight.parse().ok().filter(|weight| *weight > 0)?;
            Some(Size { bytes: bytes.parse().ok()?, weight })
        };
        let sizes = text.split(',').map(|part| size(part.trim())).collect::<Option<Vec<_>>>();
        sizes.map(Sizes).ok_or_else(|| {
            format!("'{text}': sizes are bytes, bytes with weights such as 60:7,590:4,1514:1, or 'imix'")
        })
    }
}

impl fmt::Display for Sizes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let [Size { bytes, .. }] = self.0[..] {
            return bytes.fmt(f);
        }
        for (at, Size { bytes, weight }) in self.iter().enumerate() {
            write!(f, "{}{bytes}:{weight}", if at == 0 { "" } else { "," })?;
        }
        Ok(())
    }
}

/// Which flow of a class is next.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Choice {
    /// One after the other.
    RoundRobin,
    /// At random, all alike.
    Uniform,
    /// At random, the n-th with weight n^-exponent.
    Zipf(f64),
}

/// Beyond this the second flow hardly gets a packet.
const ZIPF_MAX: f64 = 10.0;

impl FromStr for Choice {
    type Err = String;

    fn from_str(text: &str) -> Result<Choice, String> {
        let exponent =
            |text: &str| text.parse::<f64>().ok().filter(|exponent| *exponent > 0.0 && *exponent <= ZIPF_MAX);
        match text.split_once(':') {
            None if text == "round-robin" => Ok(Choice::RoundRobin),
            None if text == "uniform" => Ok(Choice::Uniform),
            Some(("zipf", number)) => exponent(number).map(Choice::Zipf).ok_or_else(|| {
                format!("'{text}': Zipf's exponent is above 0 and up to {ZIPF_MAX}, such as zipf:1.1")
            }),
            _ => Err(format!("'{text}': flows are chosen 'round-robin', 'uniform' or 'zipf:EXPONENT'")),
        }
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Choice::RoundRobin => f.write_str("round-robin"),
            Choice::Uniform => f.write_str("uniform"),
            Choice::Zipf(exponent) => write!(f, "zipf:{exponent}"),
        }
    }
}

/// `FIRST` or `FIRST-LAST`, the last one not below the first.
fn range<T: FromStr + PartialOrd + Copy>(text: &str) -> Option<(T, Option<T>)> {
    let (first, last) = match text.split_once('-') {
        None => (text.parse().ok()?, None),
        Some((first, last)) => (first.parse().ok()?, Some(last.parse().ok()?)),
    };
    last.is_none_or(|last| first <= last).then_some((first, last))
}

/// As it was given.
fn show<T: fmt::Display + PartialEq>(f: &mut fmt::Formatter<'_>, first: &T, last: &T) -> fmt::Result {
    if first == last { first.fmt(f) } else { write!(f, "{first}-{last}") }
}

/// IP addresses of one version, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
pub struct IpRange {
    /// The first one.
    pub first: IpAddr,
    /// The last one.
    pub last: IpAddr,
}

#[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
impl IpRange {
    /// How many there are, as far as that can be said.
    pub fn len(&self) -> u64 {
        let more = match (self.first, self.last) {
            (IpAddr::V4(first), IpAddr::V4(last)) => (last.to_bits() - first.to_bits()).into(),
            (IpAddr::V6(first), IpAddr::V6(last)) => last.to_bits() - first.to_bits(),
            _ => 0, // never: `from_str` looks
        };
        u64::try_from(more).unwrap_or(u64::MAX).saturating_add(1)
    }

    /// One of them, from 0; they come round.
    pub fn nth(&self, n: u64) -> IpAddr {
        let n = n % self.len();
        match self.first {
            IpAddr::V4(first) => IpAddr::V4((first.to_bits() + n as u32).into()),
            IpAddr::V6(first) => IpAddr::V6((first.to_bits() + u128::from(n)).into()),
        }
    }

    /// Whether they are of IPv6.
    pub fn is_ipv6(&self) -> bool {
        self.first.is_ipv6()
    }
}

impl FromStr for IpRange {
    type Err = String;

    fn from_str(text: &str) -> Result<IpRange, String> {
        let read = range(text).map(|(first, last)| IpRange { first, last: last.unwrap_or(first) });
        let read = read.filter(|range| range.first.is_ipv4() == range.last.is_ipv4());
        read.ok_or_else(|| {
            format!("'{text}': an IP address, or two with the higher one last, such as 10.0.0.1-10.0.0.9")
        })
    }
}

impl fmt::Display for IpRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, &self.first, &self.last)
    }
}

/// Ethernet addresses, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MacRange {
    /// The first one.
    pub first: MacAddr,
    /// The last one.
    pub last: MacAddr,
}

impl MacRange {
    /// One of them, from 0; they come round.
    pub fn nth(&self, n: u64) -> MacAddr {
        let count = self.last.to_u64() - self.first.to_u64() + 1;
        MacAddr::from_u64(self.first.to_u64() + n % count)
    }
}

impl FromStr for MacRange {
    type Err = String;

    fn from_str(text: &str) -> Result<MacRange, String> {
        let read = range(text).map(|(first, last)| MacRange { first, last: last.unwrap_or(first) });
        read.ok_or_else(|| {
            format!(
                "'{text}': an Ethernet address, six pairs of hexadecimal digits such as 02:00:00:00:00:01, or two with \
                 '-' between and the higher one last"
            )
        })
    }
}

impl fmt::Display for MacRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        show(f, &self.first, &self.last)
    }
}

/// UDP ports, both ends included.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortRange {
    /// The first one.
    pub first: u16,
    /// The last one.
    pub last: u16,
    /// Only the first one was given.
    single: bool,
}

#[allow(clippy::len_without_is_empty, reason = "a range is never empty")]
impl PortRange {
    /// One port.
    pub fn single(port: u16) -> PortRange {
        PortRange { first: port, last: port, single: true }
    }

    /// If it was given as one port: that and all above it, as many as flows need.
    pub fn or_open(self) -> PortRange {
        PortRange { last: if self.single { u16::MAX } else { self.last }, ..self }
    }

    /// How many there are.
    pub fn len(&self) -> u64 {
        u64::from(self.last - self.first) + 1
    }

    /// One of them, from 0; they come round.
    pub fn nth(&self, n: u64) -> u16 {
        self.first + (n % self.len()) as u16
    }
}

impl FromStr for PortRange {
    type Err = String;

    fn from_str(text: &str) -> Result<PortRange, String> {
        let read = range(text).map(|(first, last)| PortRange {
            first,
            last: last.unwrap_or(first),
            single: last.is_none(),
        });
        read.ok_or_else(|| format!("'{text}': a port, or two with the higher one last, such as 20000-20999"))
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let last = if self.single { self.first } else { self.last };
        show(f, &self.first, &last)
    }
}
