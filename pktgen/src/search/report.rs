//! What a search found, for people and for programs.

use std::fmt::Write;

use serde::Serialize;

use super::device::SearchSettings;
use super::{End, Findings, Found, Goals};
use crate::error::Error;
use crate::floor::Floor;
use crate::latency::Percentiles;
use crate::report::Outcome;

/// How the rates are searched.
pub const METHOD: &str = "MLRsearch (RFC 9900)";

/// Everything, of all sizes.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SearchReport {
    /// How the rates were searched.
    pub method: &'static str,
    /// What the search asked for.
    pub goals: GoalsReport,
    /// Flows of the sender.
    pub flows: u32,
    /// Keys of the profile that a search does not use.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub profile_unused: Vec<&'static str>,
    /// Whose time the latencies are.
    pub latency_of: LatencyOf,
    /// The generator's own part of them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub floor_ns: Option<Floor>,
    /// One object for each size.
    pub sizes: Vec<SizeReport>,
    /// Why there are no more.
    pub ended: SearchEnded,
}

/// [`Goals`], in numbers.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct GoalsReport {
    /// The loss that PDR allows.
    pub pdr_loss_ratio: f64,
    /// How far apart the bounds may be.
    pub width: f64,
    /// Length of the trials that decide.
    pub trial_seconds: f64,
    /// Time that a load is tried in the end.
    pub sum_seconds: f64,
}

/// What a latency is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum LatencyOf {
    /// From the intended departure to the arrival at the far end.
    OneWay,
    /// From the intended departure to the arrival of the answer.
    RoundTrip,
}

/// Why a search ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SearchEnded {
    /// It was done.
    Done,
    /// SIGINT or SIGTERM.
    Signal,
    /// Something failed.
    Failure,
}

/// One size.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SizeReport {
    /// Bytes of the inner frame; of a mix their mean.
    pub bytes: usize,
    /// The same, or the mix: sizes with their weights.
    pub sizes: String,
    /// The rates.
    #[serde(flatten)]
    pub findings: Findings,
    /// What `latency` is measured below.
    pub latency_at: Base,
    /// At 10, 50 and 90 % of it; empty if it is 0, or latency was not asked for.
    pub latency: Vec<LatencyAt>,
    /// How long it all took.
    pub seconds: f64,
}

/// The rate whose parts latency is measured at.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Base {
    /// NDR.
    Ndr,
    /// PDR, where NDR is 0.
    Pdr,
}

impl Base {
    /// For these findings.
    pub fn of(findings: &Findings) -> Base {
        if findings.ndr.pps > 0 { Base::Ndr } else { Base::Pdr }
    }

    fn name(self) -> &'static str {
        match self {
            Base::Ndr => "NDR",
            Base::Pdr => "PDR",
        }
    }
}

/// Latency at one rate.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct LatencyAt {
    /// Of the rate that was found.
    pub percent: u64,
    /// The rate.
    pub pps: u64,
    /// Packets that left.
    pub sent: u64,
    /// Those of them that arrived.
    pub received: u64,
    /// Packets that left late: their waiting is part of the latency.
    pub late: u64,
    /// Packets that the sender gave up.
    pub skipped: u64,
    /// How long they took.
    pub latency_us: Option<Percentiles>,
}

impl SearchReport {
    /// Nothing found yet.
    pub fn new(settings: &SearchSettings) -> SearchReport {
        let Goals { pdr_loss, width, last_trial, sum, .. } = settings.goals;
        SearchReport {
            method: METHOD,
            goals: GoalsReport {
                pdr_loss_ratio: pdr_loss,
                width,
                trial_seconds: last_trial.as_secs_f64(),
                sum_seconds: sum.as_secs_f64(),
            },
            flows: settings.send.profile().map_or(0, |profile| profile.flows.count),
            profile_unused: settings.profile_unused.clone(),
            latency_of: if settings.receiver.is_some() { LatencyOf::OneWay } else { LatencyOf::RoundTrip },
            floor_ns: None,
            sizes: Vec::new(),
            ended: SearchEnded::Done,
        }
    }

    /// One object.
    pub fn json(&self) -> String {
        #[derive(Serialize)]
        struct Named<'a> {
            command: &'static str,
            #[serde(flatten)]
            report: &'a SearchReport,
        }
        let text = serde_json::to_string(&Named { command: "search", report: self });
        text.unwrap_or_default() + "\n"
    }

    /// A table, and a sentence for each rate that the device did not decide.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:>6}{:>14}{:>14}{:>16}{:>16}{:>8}\n",
            "bytes", "NDR, pps", "PDR, pps", "most received", "most offered", "trials"
        );
        for size in &self.sizes {
            let Findings { ndr, pdr, max_offered_pps, max_received_pps, trials } = &size.findings;
            let _string = writeln!(
                out,
                "{:>6}{:>14}{:>14}{max_received_pps:>16.0}{max_offered_pps:>16.0}{:>8}",
                size.bytes,
                ndr.pps,
                pdr.pps,
                trials.len()
            );
        }
        self.latency_text(&mut out);
        for SizeReport { bytes, sizes, .. } in
            self.sizes.iter().filter(|size| size.sizes != size.bytes.to_string())
        {
            let _string = writeln!(out, "{bytes} bytes: the mean of {sizes}");
        }
        for size in &self.sizes {
            for (name, found) in [("NDR", &size.findings.ndr), ("PDR", &size.findings.pdr)] {
                let _string = writeln!(out, "{} bytes, {name}: {}", size.bytes, sentence(found));
            }
        }
        let GoalsReport { pdr_loss_ratio, width, trial_seconds, sum_seconds } = self.goals;
        let _string = writeln!(
            out,
            "NDR: no loss; PDR: at most {} % lost; {}, to {} %, trials of {trial_seconds} s, at most {sum_seconds} s for each rate; flows: {}.",
            pdr_loss_ratio * 100.0,
            self.method,
            width * 100.0,
            self.flows
        );
        if self.ended == SearchEnded::Signal {
            out += "Ended by a signal: this is what was found until then.\n";
        }
        out
    }

    fn latency_text(&self, out: &mut String) {
        let what = match self.latency_of {
            LatencyOf::OneWay => "one way, µs",
            LatencyOf::RoundTrip => "round trip, µs",
        };
        if self.sizes.iter().all(|size| size.latency.is_empty()) {
            return;
        }
        let _string = writeln!(
            out,
            "\n{:>6}{:>8}{:>14}  {what:<14}{:>10}{:>10}{:>10}{:>10}{:>10}{:>8}",
            "bytes", "load", "pps", "p50", "p90", "p99", "p99.9", "max", "lost"
        );
        for size in &self.sizes {
            let base = size.latency_at.name();
            for at in &size.latency {
                let load = format!("{} %", at.percent);
                let cells = at.latency_us.map_or("none".into(), |us| {
                    let all = [us.p50, us.p90, us.p99, us.p999, us.max];
                    all.map(|us| format!("{us:>10.1}")).concat()
                });
                let lost = at.sent.saturating_sub(at.received);
                let of = format!("of {base}");
                let _string =
                    writeln!(out, "{:>6}{load:>8}{:>14}  {of:<14}{cells}{lost:>8}", size.bytes, at.pps);
            }
        }
        if let Some(Floor { p50, p99 }) = self.floor_ns {
            let _string = writeln!(out, "the generator's own, ns: {p50} p50, {p99} p99");
        }
        out.push('\n');
    }
}

/// Why the rate is what it is, in words.
pub fn sentence(found: &Found) -> String {
    let Found { pps, upper_pps, trials, trials_good, .. } = *found;
    let confirmed = format!("{trials_good} of {trials} trials there were good");
    let upper = upper_pps.map_or(String::new(), |upper| format!("; {upper} is too much"));
    match found.end {
        End::Device => format!("the device's limit, {pps} packets/s: {confirmed}{upper}"),
        End::Generator if pps == 0 => {
            "not measured: the sender did not hold even the lowest rate; give it a core that nothing else uses".into()
        }
        End::Generator => format!(
            "not reached: the sender's own limit came first, at {pps} packets/s ({confirmed}); the device may do more{upper}"
        ),
        End::RateMax => {
            format!("not reached: {pps} packets/s is the highest rate that was asked for ({confirmed})")
        }
        End::Nothing => {
            let lowest = upper_pps.unwrap_or(0);
            format!("none: even {lowest} packets/s, the lowest rate tried, lose too much; do the frames fit the MTU on the way?")
        }
        End::Unconfirmed if pps == 0 => {
            format!("not found: the search reached its bounds before any rate was good{upper}; give it more --seconds or --trials")
        }
        End::Unconfirmed => format!(
            "not confirmed: the search reached its bounds at {pps} packets/s{upper}; give it more --seconds or --trials"
        ),
    }
}

/// Writes the report to standard output.
///
/// # Errors
/// If that cannot be written; or what ended the search.
pub fn finish(outcome: Outcome<SearchReport>, json: bool) -> Result<(), Error> {
    use std::io::Write;
    let text = if json { outcome.report.json() } else { outcome.report.text() };
    let mut out = std::io::stdout().lock();
    let written = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    written.map_err(Error::system("writing the report to standard output"))?;
    outcome.failure.map_or(Ok(()), Err)
}
