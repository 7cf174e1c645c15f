//! The two measurements that both halves take with the same generator: a stream at full rate, and round trips at a
//! fixed rate.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Demo;
use super::hosts::{FAR, GENERATOR, NEAR, VNI};
use crate::lab::{LabError, Process};

/// Round trips per second.
pub(super) const RTT_RATE: u64 = 10_000;
/// Bytes of an inner frame.
pub(super) const FRAME_BYTES: u64 = 64;
/// UDP port that tenants listen on.
pub(super) const PORT: u16 = 9000;
/// Programs are ready within this, or something is wrong.
pub(super) const READY: Duration = Duration::from_secs(10);

/// Microseconds.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Percentiles {
    pub(super) p50: f64,
    pub(super) p90: f64,
    pub(super) p99: f64,
    pub(super) p999: f64,
    pub(super) max: f64,
}

/// What one half achieved.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    #[serde(flatten)]
    pub(super) stream: Stream,
    #[serde(flatten)]
    pub(super) round_trips: RoundTrips,
    /// Packets of both measurements that left more than a millisecond after their time.
    pub(super) late: u64,
    /// Packets of both that were given up because the generator was 100 ms behind: they are missing in the figures.
    pub(super) skipped: u64,
}

impl Figures {
    pub(super) fn new(stream: Stream, round_trips: RoundTrips) -> Figures {
        let late = stream.late + round_trips.late;
        let skipped = stream.skipped + round_trips.skipped;
        Figures { stream, round_trips, late, skipped }
    }
}

/// The stream at full rate.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Stream {
    pub(super) offered_pps: f64,
    pub(super) received_pps: f64,
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) lost: u64,
    pub(super) reordered: u64,
    #[serde(skip)]
    late: u64,
    #[serde(skip)]
    skipped: u64,
}

/// The round trips.
#[derive(Clone, Debug, Serialize)]
pub(super) struct RoundTrips {
    pub(super) rtt_us: Percentiles,
    pub(super) rtt_sent: u64,
    pub(super) rtt_lost: u64,
    #[serde(skip)]
    late: u64,
    #[serde(skip)]
    skipped: u64,
}

/// What `peregrine-pktgen send` says.
#[derive(Debug, Deserialize)]
struct Sent {
    sent: u64,
    offered_pps: f64,
    late: u64,
    skipped: u64,
    lost: Option<u64>,
    rtt_us: Option<Percentiles>,
}

/// What `peregrine-pktgen sink` says.
#[derive(Debug, Deserialize)]
struct Sunk {
    received: u64,
    received_pps: f64,
    duplicates: u64,
    reordered: u64,
}

/// A stream at full rate from the far host to the tenant `(ip, mac)`, taken by the program `sink`.
pub(super) fn stream(demo: &Demo, to: (&str, &str), sink: &mut Command) -> Result<Stream, LabError> {
    let mut sink = Process::start(sink)?;
    sink.wait_for_line("ready", READY)?;
    let sent: Sent = parse("peregrine-pktgen send", &generate(demo, to, "max", &[])?)?;
    // It ends by itself when nothing has come for a while.
    let sunk: Sunk = parse("peregrine-pktgen sink", &sink.finish(READY, &|| demo.stopped())?)?;
    let distinct = sunk.received - sunk.duplicates;
    Ok(Stream {
        offered_pps: sent.offered_pps,
        received_pps: sunk.received_pps,
        sent: sent.sent,
        received: sunk.received,
        lost: sent.sent.saturating_sub(distinct),
        reordered: sunk.reordered,
        late: sent.late,
        skipped: sent.skipped,
    })
}

/// Round trips between the far host and the tenant `(ip, mac)`, which already answers.
pub(super) fn round_trips(demo: &Demo, to: (&str, &str)) -> Result<RoundTrips, LabError> {
    let sent: Sent = parse("peregrine-pktgen send", &generate(demo, to, &RTT_RATE.to_string(), &["--rtt"])?)?;
    let why =
        || LabError::Answer { what: "peregrine-pktgen send --rtt".into(), why: "no packet came back".into() };
    Ok(RoundTrips {
        rtt_us: sent.rtt_us.ok_or_else(why)?,
        rtt_sent: sent.sent,
        rtt_lost: sent.lost.unwrap_or(0),
        late: sent.late,
        skipped: sent.skipped,
    })
}

/// Runs the generator on the far host and returns its report.
fn generate(demo: &Demo, to: (&str, &str), rate: &str, more: &[&str]) -> Result<String, LabError> {
    let mut command = demo.pktgen(Some(&demo.hosts.far));
    command.args(["send", "--json", "--interface", FAR.1, "--mode", "copy", "--next-hop", NEAR.2]);
    command.args(["--local", FAR.0, "--remote", NEAR.0, "--vni", &VNI.to_string()]);
    command.args(["--inner-source-mac", GENERATOR.1, "--inner-source", GENERATOR.0]);
    command.args(["--inner-destination-mac", to.1, "--inner-destination", &format!("{}:{PORT}", to.0)]);
    command.args(["--size", &FRAME_BYTES.to_string(), "--rate", rate]);
    command.args([
        "--seconds",
        &demo.duration.as_secs().to_string(),
        "--core",
        &demo.cores.generator.to_string(),
    ]);
    command.args(more);
    Process::start(&mut command)?.finish(demo.duration + READY, &|| demo.stopped())
}

/// A report in JSON.
pub(super) fn parse<T: DeserializeOwned>(what: &str, text: &str) -> Result<T, LabError> {
    serde_json::from_str(text).map_err(|error| LabError::Answer { what: what.into(), why: error.to_string() })
}

/// Milliseconds of each answer to `ping`, sorted; of an answer that came twice one.
pub(super) fn ping_times(text: &str) -> Vec<f64> {
    let answers: BTreeMap<&str, f64> = text.lines().filter_map(answer).collect();
    let mut times: Vec<f64> = answers.into_values().collect();
    times.sort_by(f64::total_cmp);
    times
}

/// Sequence number and milliseconds of `64 bytes from 10.42.0.1: icmp_seq=1 ttl=64 time=0.123 ms`.
fn answer(line: &str) -> Option<(&str, f64)> {
    let after = |key: &str| line.split_once(key)?.1.split_whitespace().next();
    Some((after("icmp_seq=")?, after("time=")?.parse().ok()?))
}
