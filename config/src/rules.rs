//! `[[rules]]` alone, for a daemon that runs: read from a file, checked against the plan that runs, and written as a file has them.
//!
//! Called by the control socket's methods and by the command line. What must hold: what [`written`] and [`rules_toml`] give is read as the
//! same rules again.

use std::borrow::Cow;
use std::fmt;
use std::ops::RangeInclusive;
use std::path::Path;

use peregrine_dataplane::plan::{DscpSet, Plan, Prefix, RulePlan};
use serde::{Deserialize, Deserializer, Serialize};
use toml::Value;

use crate::at::{At, Report};
use crate::check;
use crate::error::{ConfigError, ConfigErrors};
use crate::raw::{List, Rule, Rules};
use crate::syntax;

/// The rules of a file that has nothing else. TOML, and a list; the rest is for [`rules`] to check.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct RulesFile {
    /// As they are written.
    pub rules: Vec<Value>,
}

/// Reads a file with nothing but `[[rules]]`; where there is none, it must say so: `rules = []`.
pub fn rules_file(path: &Path) -> Result<RulesFile, ConfigErrors> {
    let origin = path.display().to_string();
    let text = crate::read(path, &origin)?;
    let file: Rules = syntax::read(&text).map_err(|error| ConfigErrors::one(&origin, error))?;
    let report = Report::default();
    let top = At::top(&report);
    top.unknown_keys(&file);
    let rule = "a list of tables, [[rules]], and nothing else; rules = [] for none";
    let rules = top
        .key("rules")
        .required(&file.rules, rule, |rules| rules.iter().map(|rule| rule.value().cloned()).collect());
    match rules {
        Some(rules) if report.is_clean() => Ok(RulesFile { rules }),
        _ => Err(report.into_errors(&origin)),
    }
}

/// Checks a list of rules as a file's are checked; names are those of `plan`. `origin` is what errors call it.
pub fn rules<'de, D: Deserializer<'de>>(
    given: D,
    origin: &str,
    plan: &Plan,
) -> Result<Vec<RulePlan>, ConfigErrors> {
    let report = Report::default();
    let top = At::top(&report);
    let at = top.key("rules");
    match <List<Rule> as Deserialize>::deserialize(given) {
        Ok(field) => {
            let rules = check::rules_of(&at, &field, plan);
            if report.is_clean() { Ok(rules) } else { Err(report.into_errors(origin)) }
        }
        // What TOML has no word for, such as null.
        Err(error) => {
            let (key, rule) = ("rules".to_owned(), "what can stand in a file".into());
            let got = crate::error::one_line(&error.to_string()).into_owned();
            Err(ConfigErrors::one(origin, ConfigError::Invalid { key, got, rule }))
        }
    }
}

/// A rule with the keys and values of a file. What it does not ask for is left out.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
#[allow(missing_docs, reason = "the keys of the format, which are told at the head of the crate")]
pub struct RuleTable<'a> {
    pub class: Cow<'a, str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dscp: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub protocol: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source_port: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_port: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub address: Option<Written>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outer_dscp: Option<Written>,
}

/// A value as a file has it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Written {
    /// A number.
    Number(u16),
    /// A name, a range or a prefix.
    Text(String),
    /// Some of these.
    List(Vec<Written>),
}

impl RuleTable<'_> {
    /// What it asks for: keys and values, in the order of the format.
    pub fn asks(&self) -> Vec<(&'static str, Written)> {
        let name = |name: &Option<Cow<'_, str>>| name.as_deref().map(|name| Written::Text(name.into()));
        let values = [
            ("network", name(&self.network)),
            ("endpoint", name(&self.endpoint)),
            ("dscp", self.dscp.clone()),
            ("protocol", self.protocol.clone()),
            ("source_port", self.source_port.clone()),
            ("destination_port", self.destination_port.clone()),
            ("port", self.port.clone()),
            ("source", self.source.clone()),
            ("destination", self.destination.clone()),
            ("address", self.address.clone()),
            ("outer_dscp", self.outer_dscp.clone()),
        ];
        values.into_iter().filter_map(|(key, value)| Some((key, value?))).collect()
    }
}

/// The rules of a plan.
pub fn written(plan: &Plan) -> Vec<RuleTable<'_>> {
    let table = |rule| table(rule, plan);
    plan.classes.rules.iter().map(table).collect()
}

fn table<'p>(rule: &RulePlan, plan: &'p Plan) -> RuleTable<'p> {
    let name = |name: &'p String| Cow::Borrowed(name.as_str());
    let class = plan.classes.list.get(rule.class.index()).map(|class| name(&class.name));
    let network = rule.network.and_then(|network| plan.network(network));
    let endpoint = rule.endpoint.and_then(|endpoint| plan.endpoint(endpoint));
    let prefix = |prefix: Prefix| Written::Text(prefix.to_string());
    RuleTable {
        class: class.unwrap_or_default(),
        network: network.map(|network| name(&network.name)),
        endpoint: endpoint.map(|endpoint| name(&endpoint.name)),
        dscp: rule.dscp.map(dscps),
        protocol: rule.protocol.map(protocol),
        source_port: rule.source_port.as_ref().map(range),
        destination_port: rule.destination_port.as_ref().map(range),
        port: rule.port.as_ref().map(range),
        source: rule.source.map(prefix),
        destination: rule.destination.map(prefix),
        address: rule.address.map(prefix),
        outer_dscp: rule.outer_dscp.map(dscps),
    }
}

fn range(range: &RangeInclusive<u16>) -> Written {
    match (*range.start(), *range.end()) {
        (first, last) if first == last => Written::Number(first),
        (first, last) => Written::Text(format!("{first}-{last}")),
    }
}

/// Neighbours as ranges; one alone without a list.
fn dscps(set: DscpSet) -> Written {
    let mut ranges: Vec<RangeInclusive<u16>> = Vec::new();
    for dscp in (0..=DscpSet::MAX).filter(|dscp| set.contains(*dscp)).map(u16::from) {
        match ranges.last_mut() {
            Some(last) if last.end() + 1 == dscp => *last = *last.start()..=dscp,
            _ => ranges.push(dscp..=dscp),
        }
    }
    match &ranges[..] {
        [one] => range(one),
        all => Written::List(all.iter().map(range).collect()),
    }
}

fn protocol(number: u8) -> Written {
    match check::protocol_name(number) {
        Some(name) => Written::Text(name.into()),
        None => Written::Number(number.into()),
    }
}

/// The text of a file that has these rules.
pub fn rules_toml(rules: &[RuleTable<'_>]) -> String {
    if rules.is_empty() {
        return "rules = []\n".to_owned();
    }
    let tables: Vec<String> = rules.iter().map(RuleTable::to_string).collect();
    tables.join("\n")
}

impl fmt::Display for RuleTable<'_> {
    /// As in a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "[[rules]]\nclass = {}", Written::Text(self.class.to_string()))?;
        self.asks().iter().try_for_each(|(key, value)| writeln!(f, "{key} = {value}"))
    }
}

impl fmt::Display for Written {
    /// As in a file.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Written::Number(number) => number.fmt(f),
            Written::Text(text) => Value::String(text.clone()).fmt(f),
            Written::List(list) => {
                let parts: Vec<String> = list.iter().map(Written::to_string).collect();
                write!(f, "[{}]", parts.join(", "))
            }
        }
    }
}
