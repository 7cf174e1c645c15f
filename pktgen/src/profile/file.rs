//! A profile as it is given, nothing of it checked yet but its form: from TOML, and flags over it.

use std::io::Read;
use std::path::Path;

use peregrine_dataplane::types::MacAddr;
use serde::Deserialize;

use super::words::{Choice, IpRange, MacRange, PortRange, Sizes, Word};
use crate::error::Error;
use crate::pacer::{Arrivals, Rate};

/// No profile is longer.
const BYTES_MAX: u64 = 1 << 20;

/// A profile before it is checked; the fields are those of [`Profile`](super::Profile).
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "as in `Profile`")]
pub struct Draft {
    pub seed: Option<u64>,
    pub rate: Option<Word<Rate>>,
    pub arrivals: Option<Word<Arrivals>>,
    pub sizes: Option<Word<Sizes>>,
    pub seconds: Option<f64>,
    pub count: Option<u64>,
    #[serde(default)]
    pub flows: FlowsDraft,
    #[serde(default)]
    pub networks: Vec<NetworkDraft>,
    #[serde(default)]
    pub classes: Vec<ClassDraft>,
}

/// The flows before they are checked.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "as in `Flows`")]
pub struct FlowsDraft {
    pub count: Option<u32>,
    pub choice: Option<Word<Choice>>,
    pub source_mac: Option<Word<MacRange>>,
    pub destination_mac: Option<Word<MacRange>>,
    pub source_ip: Option<Word<IpRange>>,
    pub destination_ip: Option<Word<IpRange>>,
    pub source_port: Option<Word<PortRange>>,
    pub destination_port: Option<Word<PortRange>>,
}

/// A network before it is checked.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "as in `Network`")]
pub struct NetworkDraft {
    pub vni: u32,
    pub source_mac: Option<Word<MacAddr>>,
    pub destination_mac: Option<Word<MacAddr>>,
}

/// A class before it is checked.
#[derive(Clone, PartialEq, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(missing_docs, reason = "as in `Class`")]
pub struct ClassDraft {
    pub name: String,
    pub share: u32,
    #[serde(default)]
    pub dscp: u8,
    pub destination_port: Option<u16>,
}

impl Default for ClassDraft {
    /// All packets.
    fn default() -> ClassDraft {
        ClassDraft { name: "all".into(), share: 1, dscp: 0, destination_port: None }
    }
}

/// The first `most` characters of a line that may be as long as the file.
fn cut(line: &str, most: usize) -> String {
    match line.char_indices().nth(most) {
        Some((end, _)) => line.get(..end).unwrap_or_default().to_string() + "...",
        None => line.into(),
    }
}

impl Draft {
    /// Reads a file.
    ///
    /// # Errors
    /// [`Error::Arguments`] with the line that is wrong, or why it cannot be read.
    pub fn read(path: &Path) -> Result<Draft, Error> {
        let refused = |why: String| Error::Arguments(format!("--profile {}: {why}", path.display()));
        let file = std::fs::File::open(path).map_err(|why| refused(why.to_string()))?;
        let mut text = String::new();
        let read = file.take(BYTES_MAX + 1).read_to_string(&mut text);
        if read.map_err(|why| refused(why.to_string()))? as u64 > BYTES_MAX {
            return Err(refused(format!("is longer than {BYTES_MAX} bytes, which no profile is")));
        }
        Draft::parse(&text).map_err(refused)
    }

    /// Reads TOML.
    ///
    /// # Errors
    /// One line that has the line of the text which is wrong.
    pub fn parse(text: &str) -> Result<Draft, String> {
        toml::from_str(text).map_err(|error: toml::de::Error| {
            let why = cut(&error.message().split_whitespace().collect::<Vec<_>>().join(" "), 300);
            let Some(span) = error.span() else { return why };
            let number = text.get(..span.start).unwrap_or(text).matches('\n').count() + 1;
            let line = text.lines().nth(number - 1).unwrap_or_default().trim();
            format!("line {number}, `{}`: {why}", cut(line, 80))
        })
    }

    /// What `over` says counts; what it leaves open stays. A list is replaced as a whole.
    #[must_use]
    pub fn overlaid(self, over: Draft) -> Draft {
        fn list<T>(under: Vec<T>, over: Vec<T>) -> Vec<T> {
            if over.is_empty() { under } else { over }
        }
        // Who gives one limit does not want the file's other one.
        let limited = over.seconds.is_some() || over.count.is_some();
        let (seconds, count) = if limited { (over.seconds, over.count) } else { (self.seconds, self.count) };
        let (flows, over_flows) = (self.flows, over.flows);
        Draft {
            seed: over.seed.or(self.seed),
            rate: over.rate.or(self.rate),
            arrivals: over.arrivals.or(self.arrivals),
            sizes: over.sizes.or(self.sizes),
            seconds,
            count,
            flows: FlowsDraft {
                count: over_flows.count.or(flows.count),
                choice: over_flows.choice.or(flows.choice),
                source_mac: over_flows.source_mac.or(flows.source_mac),
                destination_mac: over_flows.destination_mac.or(flows.destination_mac),
                source_ip: over_flows.source_ip.or(flows.source_ip),
                destination_ip: over_flows.destination_ip.or(flows.destination_ip),
                source_port: over_flows.source_port.or(flows.source_port),
                destination_port: over_flows.destination_port.or(flows.destination_port),
            },
            networks: list(self.networks, over.networks),
            classes: list(self.classes, over.classes),
        }
    }
}
