//! `sink`: counts what arrives, finds what is missing, and how long it took.

use serde::Serialize;

use crate::clock::{self, MILLISECOND};
use crate::error::Error;
use crate::latency::{Latency, Percentiles};
use crate::limits::{Ended, Limits, Stop, Until, Wait};
use crate::port::{PortStatistics, Source};
use crate::progress::Progress;
use crate::report::Outcome;
use crate::tracker::{Counts, Tracker};

/// How often a memif peer is looked at: it costs a system call.
const PEER_CHECK_NS: u64 = 20 * MILLISECOND;

/// What a sink does.
#[derive(Clone, Debug)]
pub struct SinkSettings {
    /// What it does while nothing is there.
    pub wait: Wait,
    /// When it ends.
    pub limits: Limits,
    /// How many flows are tracked, from 0.
    pub flows: usize,
}

/// What a sink saw.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SinkReport {
    /// Packets with our trailer, of flows that are tracked, duplicates included.
    pub received: u64,
    /// Their inner frames, headers included.
    pub bytes: u64,
    /// Per flow: numbers below the highest seen, from 0, that never came.
    pub lost: u64,
    /// Packets overtaken by a later one (RFC 4737).
    pub reordered: u64,
    /// Packets that had come before.
    pub duplicates: u64,
    /// Packets too old to tell whether they are late or came twice.
    pub beyond_window: u64,
    /// Packets without our trailer.
    pub not_ours: u64,
    /// Packets of flows beyond those tracked.
    pub unknown_flow: u64,
    /// Flows seen.
    pub flows: usize,
    /// From the first packet to the last.
    pub seconds: f64,
    /// Packets in that time, without the first.
    pub received_pps: f64,
    /// One way, from the intended departure.
    pub latency_us: Option<Percentiles>,
    /// Why it ended.
    pub ended: Ended,
    /// What ring or socket counted.
    #[serde(flatten)]
    pub port: PortStatistics,
}

/// What changes with every packet.
struct Tally {
    tracker: Tracker,
    latency: Latency,
    received: u64,
    bytes: u64,
    not_ours: u64,
    unknown_flow: u64,
    first_ns: Option<u64>,
    last_ns: u64,
}

impl Tally {
    fn new(flows: usize) -> Result<Tally, Error> {
        Ok(Tally {
            tracker: Tracker::new(flows),
            latency: Latency::new()?,
            received: 0,
            bytes: 0,
            not_ours: 0,
            unknown_flow: 0,
            first_ns: None,
            last_ns: 0,
        })
    }

    #[inline]
    fn take<S: Source>(&mut self, now: u64, packet: &[u8]) {
        let Some(trailer) = S::trailer(packet) else {
            self.not_ours += 1;
            return;
        };
        if !self.tracker.record(trailer.flow, trailer.sequence) {
            self.unknown_flow += 1;
            return;
        }
        self.latency.record(crate::trailer::elapsed(now, trailer.time));
        self.received += 1;
        self.bytes += (packet.len() + S::HEADERS_TAKEN_OFF) as u64;
        self.first_ns.get_or_insert(now);
        self.last_ns = now;
    }

    fn report(&self, ended: Ended, port: PortStatistics) -> SinkReport {
        let Counts { lost, reordered, duplicates, beyond_window, .. } = self.tracker.counts();
        let passed = self.first_ns.map_or(0, |first| self.last_ns.saturating_sub(first));
        SinkReport {
            received: self.received,
            bytes: self.bytes,
            lost,
            reordered,
            duplicates,
            beyond_window,
            not_ours: self.not_ours,
            unknown_flow: self.unknown_flow,
            flows: self.tracker.flows_seen(),
            seconds: clock::seconds(passed),
            received_pps: clock::per_second(self.received.saturating_sub(1), passed),
            latency_us: self.latency.percentiles(),
            ended,
            port,
        }
    }
}

/// Counts until a limit is reached or the peer is gone.
///
/// # Errors
/// Only if it cannot begin; what fails later comes with the report.
pub fn run<S: Source>(
    mut source: S,
    settings: &SinkSettings,
    stop: Stop,
) -> Result<Outcome<SinkReport>, Error> {
    let mut tally = Tally::new(settings.flows)?;
    let (ended, failure) = match receive(&mut source, settings, stop, &mut tally) {
        Ok(ended) => (ended, None),
        Err(error) => (Ended::Peer, Some(error)),
    };
    Ok(Outcome { report: tally.report(ended, source.statistics()), failure })
}

fn receive<S: Source>(
    source: &mut S,
    settings: &SinkSettings,
    stop: Stop,
    tally: &mut Tally,
) -> Result<Ended, Error> {
    let start = clock::now_ns();
    let until = Until::new(&settings.limits, start, stop);
    let mut progress = Progress::new("received", start);
    let mut peer_checked = start;
    loop {
        let count = source.receive(settings.wait, |now, packet| tally.take::<S>(now, packet))?;
        let now = clock::now_ns();
        if let Some(ended) = until.reached(now, tally.received, tally.first_ns.map(|_| tally.last_ns)) {
            return Ok(ended);
        }
        progress.tick(now, tally.received);
        if count == 0 && now.saturating_sub(peer_checked) >= PEER_CHECK_NS {
            peer_checked = now;
            if let Some(what) = source.gone() {
                while source.receive(Wait::Poll, |now, packet| tally.take::<S>(now, packet))? > 0 {}
                return Err(Error::PeerGone { what });
            }
        }
        if count < crate::port::BURST && (count == 0 || matches!(settings.wait, Wait::Pause(_))) {
            source.rest(settings.wait, until.sleep_ns(now))?;
        }
    }
}

#[cfg(test)]
mod tests;
