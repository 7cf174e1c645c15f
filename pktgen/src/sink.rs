//! `sink`: counts what arrives, finds what is missing and what is out of order, and how long it took: over all, for each
//! of the first [`FLOWS_REPORTED`] flows, and for each class.

use serde::Serialize;

use crate::classes::{Class, class_of};
use crate::clock::{self, MILLISECOND};
use crate::error::Error;
use crate::latency::{Latency, Percentiles};
use crate::limits::{Ended, Limits, Stop, Until, Wait};
use crate::port::{PortStatistics, Source};
use crate::progress::{Progress, Quality};
use crate::report::Outcome;
use crate::tracker::{Counts, Reordering, Tracker};
use crate::trailer::elapsed;

/// How often a memif peer is looked at: it costs a system call.
const PEER_CHECK_NS: u64 = 20 * MILLISECOND;

/// How many flows have a histogram of their own: those with the lowest numbers.
pub const FLOWS_REPORTED: usize = 64;

/// What a sink does.
#[derive(Clone, Debug)]
pub struct SinkSettings {
    /// What it does while nothing is there.
    pub wait: Wait,
    /// When it ends.
    pub limits: Limits,
    /// How many flows are tracked, from 0.
    pub flows: usize,
    /// Packets that are reported by themselves, too; the first class that fits counts. Needs a source whose packets still have
    /// their headers.
    pub classes: Vec<Class>,
    /// No line per second.
    pub quiet: bool,
}

/// What a script wants of a run.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Demands {
    /// Lost packets to all that should have come, at most.
    pub max_loss: Option<f64>,
    /// Packets, copies not counted, at least.
    pub min_received: Option<u64>,
}

impl Demands {
    /// Whether the run was as wanted.
    ///
    /// # Errors
    /// [`Error::Unmet`], which says what was not.
    pub fn check(&self, report: &SinkReport) -> Result<(), Error> {
        if let Some(wanted) = self.min_received.filter(|wanted| report.distinct < *wanted) {
            return Err(Error::Unmet(format!("{} packets came: --min-received {wanted}", report.distinct)));
        }
        if let Some(most) = self.max_loss.filter(|_| report.distinct == 0) {
            return Err(Error::Unmet(format!(
                "no packet came, so nothing is known of loss: --max-loss {most}"
            )));
        }
        if let Some(most) = self.max_loss.filter(|_| report.other_runs > 0) {
            return Err(Error::Unmet(format!(
                "{} packets are of another run of send than the first, so nothing is known of their loss: --max-loss {most}; \
                 give each run a sink of its own",
                report.other_runs
            )));
        }
        if let Some(most) = self.max_loss.filter(|most| report.loss_ratio > *most) {
            let (lost, ratio) = (report.lost, report.loss_ratio);
            return Err(Error::Unmet(format!(
                "{lost} packets were lost, a ratio of {ratio:.6}: --max-loss {most}"
            )));
        }
        Ok(())
    }
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
    /// Packets of another run of `send` than the first that came, counted nowhere else: a second sender, or one that began anew.
    pub other_runs: u64,
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
    /// Numbers that came, each counted once.
    pub distinct: u64,
    /// Lost to lost and distinct.
    pub loss_ratio: f64,
    /// How far out of order packets came.
    pub reordering: Reordering,
    /// The first [`FLOWS_REPORTED`] flows, those that were seen.
    pub per_flow: Vec<FlowReport>,
    /// Each class, and at last what is of none; empty if no classes were asked for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub per_class: Vec<ClassReport>,
    /// All that [`latency_us`](Self::latency_us) is taken from.
    #[serde(skip)]
    pub latency: Latency,
    /// What ring or socket counted.
    #[serde(flatten)]
    pub port: PortStatistics,
}

/// What is known of one flow.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FlowReport {
    /// Its number.
    pub flow: u16,
    /// Numbers that came, each counted once.
    pub distinct: u64,
    /// As in [`SinkReport`].
    pub lost: u64,
    /// As in [`SinkReport`].
    pub reordered: u64,
    /// As in [`SinkReport`].
    pub duplicates: u64,
    /// One way, from the intended departure, to two digits.
    pub latency_us: Option<Percentiles>,
}

/// What is known of one class: of the flows whose last packet was of it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ClassReport {
    /// Its name.
    pub class: String,
    /// Packets of it, duplicates included.
    pub received: u64,
    /// As in [`SinkReport`].
    pub lost: u64,
    /// As in [`SinkReport`].
    pub reordered: u64,
    /// As in [`SinkReport`].
    pub duplicates: u64,
    /// One way, from the intended departure.
    pub latency_us: Option<Percentiles>,
}

/// One class, as packets come.
struct PerClass {
    name: String,
    received: u64,
    latency: Latency,
}

/// What changes with every packet.
struct Tally {
    tracker: Tracker,
    /// Until the last line of progress, and since.
    latency: Latency,
    since: Latency,
    /// Lost until the last line.
    lost_before: u64,
    flow_latency: Vec<Latency>,
    classes: Vec<Class>,
    per_class: Vec<PerClass>,
    /// Of each flow, if there are classes.
    class_of_flow: Vec<u8>,
    received: u64,
    bytes: u64,
    not_ours: u64,
    unknown_flow: u64,
    other_runs: u64,
    /// Until the last line of progress.
    other_runs_before: u64,
    /// Of the first packet, and so of all that are counted.
    run: Option<u16>,
    first_ns: Option<u64>,
    last_ns: u64,
}

impl Tally {
    fn new(settings: &SinkSettings) -> Result<Tally, Error> {
        let flow_latency = (0..settings.flows.min(FLOWS_REPORTED)).map(|_| Latency::coarse());
        let names = settings.classes.iter().map(|class| class.name.as_str()).chain(["other"]);
        let per_class = names
            .filter(|_| !settings.classes.is_empty())
            .map(|name| Ok(PerClass { name: name.into(), received: 0, latency: Latency::new()? }));
        let classified = if settings.classes.is_empty() { 0 } else { settings.flows };
        Ok(Tally {
            tracker: Tracker::new(settings.flows),
            latency: Latency::new()?,
            since: Latency::new()?,
            lost_before: 0,
            flow_latency: flow_latency.collect::<Result<_, Error>>()?,
            per_class: per_class.collect::<Result<_, Error>>()?,
            classes: settings.classes.clone(),
            class_of_flow: vec![0; classified],
            received: 0,
            bytes: 0,
            not_ours: 0,
            unknown_flow: 0,
            other_runs: 0,
            other_runs_before: 0,
            run: None,
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
        if *self.run.get_or_insert(trailer.run) != trailer.run {
            self.other_runs += 1;
            return;
        }
        if !self.tracker.record(trailer.flow, trailer.sequence) {
            self.unknown_flow += 1;
            return;
        }
        let (flow, ns) = (usize::from(trailer.flow), elapsed(now, trailer.time));
        self.since.record(ns);
        if let Some(latency) = self.flow_latency.get_mut(flow) {
            latency.record(ns);
        }
        if !self.classes.is_empty() {
            self.classify(flow, ns, packet);
        }
        self.received += 1;
        self.bytes += (packet.len() + S::HEADERS_TAKEN_OFF) as u64;
        self.first_ns.get_or_insert(now);
        self.last_ns = now;
    }

    #[inline]
    fn classify(&mut self, flow: usize, ns: u64, packet: &[u8]) {
        let class = class_of(&self.classes, packet);
        if let (Some(of), Some(place)) = (self.per_class.get_mut(class), self.class_of_flow.get_mut(flow)) {
            of.received += 1;
            of.latency.record(ns);
            *place = class as u8;
        }
    }

    /// What the packets since the last call were like.
    fn quality(&mut self) -> Quality {
        let lost = self.tracker.counts().lost;
        let quality = Quality {
            lost: lost.saturating_sub(self.lost_before),
            p50_ns: self.since.at(0.5),
            p99_ns: self.since.at(0.99),
            other_runs: self.other_runs - self.other_runs_before,
        };
        self.other_runs_before = self.other_runs;
        self.latency.add(&self.since);
        self.since.reset();
        self.lost_before = lost;
        quality
    }

    fn report(mut self, ended: Ended, port: PortStatistics) -> SinkReport {
        self.latency.add(&self.since);
        let Counts { distinct, lost, reordered, duplicates, beyond_window } = self.tracker.counts();
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
            other_runs: self.other_runs,
            flows: self.tracker.flows_seen(),
            seconds: clock::seconds(passed),
            received_pps: clock::per_second(self.received.saturating_sub(1), passed),
            latency_us: self.latency.percentiles(),
            ended,
            distinct,
            loss_ratio: if lost == 0 { 0.0 } else { lost as f64 / (lost + distinct) as f64 },
            reordering: self.tracker.reordering(),
            per_flow: self.per_flow(),
            per_class: self.per_class(),
            latency: self.latency,
            port,
        }
    }

    fn per_flow(&self) -> Vec<FlowReport> {
        let flows = (0..).zip(&self.flow_latency);
        let seen = flows.filter_map(|(flow, latency)| Some((flow, self.tracker.flow(flow)?, latency)));
        seen.map(|(flow, Counts { distinct, lost, reordered, duplicates, .. }, latency)| FlowReport {
            flow,
            distinct,
            lost,
            reordered,
            duplicates,
            latency_us: latency.percentiles(),
        })
        .collect()
    }

    fn per_class(&self) -> Vec<ClassReport> {
        let mut counts = vec![Counts::default(); self.per_class.len()];
        for (flow, class) in (0..=u16::MAX).zip(&self.class_of_flow) {
            if let (Some(sum), Some(of)) = (counts.get_mut(usize::from(*class)), self.tracker.flow(flow)) {
                sum.lost += of.lost;
                sum.reordered += of.reordered;
                sum.duplicates += of.duplicates;
            }
        }
        self.per_class
            .iter()
            .zip(counts)
            .map(|(class, Counts { lost, reordered, duplicates, .. })| ClassReport {
                class: class.name.clone(),
                received: class.received,
                lost,
                reordered,
                duplicates,
                latency_us: class.latency.percentiles(),
            })
            .collect()
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
    let mut tally = Tally::new(settings)?;
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
    let mut progress = if settings.quiet {
        Progress::silent()
    } else {
        Progress::toward("received", start, &settings.limits)
    };
    let mut peer_checked = start;
    loop {
        let count = source.receive(settings.wait, |now, packet| tally.take::<S>(now, packet))?;
        let now = clock::now_ns();
        if let Some(ended) = until.reached(now, tally.received, tally.first_ns.map(|_| tally.last_ns)) {
            return Ok(ended);
        }
        if progress.is_due(now) {
            progress.show(now, tally.received, Some(tally.quality()));
        }
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
