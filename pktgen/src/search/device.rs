//! What a search is about, with a sender before it and a receiver behind it: makes the trials, for one frame size after
//! the other, and then measures the latency below the rate that was found.
//!
//! The sender is the thread that calls `run`; the answers (`--rtt`) come back to it, or else a
//! `Receiver` counts at the far end. Both sockets stay open over all trials of a size.

use std::io::Write;
use std::num::NonZeroU64;
use std::time::{Duration, Instant};

use super::receiver::{Receiver, ReceiverSettings};
use super::report::{Base, LatencyAt, SearchEnded, SearchReport, SizeReport};
use super::{Counted, Goals, search};
use crate::error::Error;
use crate::floor;
use crate::latency::Percentiles;
use crate::limits::{Ended, Limits, Stop};
use crate::pacer::Rate;
use crate::profile::Sizes;
use crate::report::Outcome;
use crate::send::{SendSettings, Sender, Traffic};
use crate::trailer::new_run;

/// Percent of NDR at which latency is measured.
const LATENCY_PERCENT: [u64; 3] = [10, 50, 90];

/// What is searched, and with what.
#[derive(Clone, Debug)]
pub struct SearchSettings {
    /// The sender, of a profile; rate, limits and sizes are the search's.
    pub send: SendSettings,
    /// Who counts; `None`: the answers are counted.
    pub receiver: Option<ReceiverSettings>,
    /// Of the inner frames, one search for each.
    pub sizes: Vec<Sizes>,
    /// What is searched.
    pub goals: Goals,
    /// How long each measurement of latency takes; zero: there is none.
    pub latency: Duration,
    /// Measure the generator's own latency before all that.
    pub floor: bool,
    /// Keys of the profile that say something to `send` only.
    pub profile_unused: Vec<&'static str>,
}

/// Why there are no more trials.
#[derive(Debug)]
enum NoMore {
    Stopped,
    Failed(Error),
}

impl From<Error> for NoMore {
    fn from(error: Error) -> NoMore {
        NoMore::Failed(error)
    }
}

/// Sender and receiver of one size.
struct Device<'a> {
    sender: Sender,
    receiver: Option<&'a Receiver>,
    /// Of the last trial, of any size: no two trials have the same number.
    run: &'a mut u16,
    stop: &'a Stop,
}

/// Searches. `ready` is called when everything is open.
///
/// # Errors
/// If it cannot begin; what fails later comes with what was found until then.
pub fn run(
    settings: &SearchSettings,
    stop: &Stop,
    ready: impl FnOnce() -> Result<(), Error>,
) -> Result<Outcome<SearchReport>, Error> {
    // Before the first search, so that the last one is not found to be impossible when all others are over.
    let all = settings.sizes.iter().flat_map(Sizes::iter);
    settings.send.check_size(all.map(|size| size.bytes).max().unwrap_or(0))?;
    let receiver = settings.receiver.clone().map(Receiver::start).transpose()?;
    let mut report = SearchReport::new(settings);
    report.floor_ns = settings.floor.then(floor::measure).transpose()?;
    let (mut ready, mut number) = (Some(ready), new_run());
    for sizes in &settings.sizes {
        // The line for each trial is enough.
        let mut send = SendSettings { quiet: true, ..settings.send.clone() };
        if let Traffic::Profile(profile) = &mut send.traffic {
            profile.sizes = sizes.clone();
        }
        let sender = match Sender::open(send) {
            Ok(sender) => sender,
            Err(error) if report.sizes.is_empty() => return Err(error),
            Err(error) => {
                report.ended = SearchEnded::Failure;
                return Ok(Outcome { report, failure: Some(error) });
            }
        };
        if let Some(ready) = ready.take() {
            ready()?;
        }
        let mut device = Device { sender, receiver: receiver.as_ref(), run: &mut number, stop };
        let (of_size, end) = one_size(&mut device, settings, sizes);
        report.sizes.push(of_size);
        match end {
            Ok(()) => {}
            Err(NoMore::Stopped) => {
                report.ended = SearchEnded::Signal;
                break;
            }
            Err(NoMore::Failed(error)) => {
                report.ended = SearchEnded::Failure;
                return Ok(Outcome { report, failure: Some(error) });
            }
        }
    }
    Ok(Outcome { report, failure: None })
}

fn one_size(
    device: &mut Device<'_>,
    settings: &SearchSettings,
    sizes: &Sizes,
) -> (SizeReport, Result<(), NoMore>) {
    let begun = Instant::now();
    let bytes = sizes.mean().round() as usize;
    let mut number = 0;
    let (findings, failure) = search(&settings.goals, |rate, duration| {
        number += 1;
        let counted = device.trial(rate, duration).map(|(counted, _)| counted)?;
        if !settings.send.quiet {
            tell(bytes, number, rate, &counted);
        }
        Ok(counted)
    });
    let base = Base::of(&findings);
    let mut report = SizeReport {
        bytes,
        sizes: sizes.to_string(),
        findings,
        latency_at: base,
        latency: Vec::new(),
        seconds: 0.0,
    };
    let ended = match failure {
        None => device.latency(settings, &mut report),
        Some(failure) => Err(failure),
    };
    report.seconds = begun.elapsed().as_secs_f64();
    (report, ended)
}

/// One line for each trial; on standard error, for whoever watches.
fn tell(bytes: usize, number: usize, rate: Rate, counted: &Counted) {
    let Counted { sent, received, late, skipped, sending, .. } = counted;
    let lost = sent.saturating_sub(*received);
    let percent = lost as f64 * 100.0 / (*sent).max(1) as f64;
    let behind =
        if late + skipped > 0 { format!(", {late} late, {skipped} given up") } else { String::new() };
    let seconds = sending.as_secs_f64();
    let _nobody_reads = writeln!(
        std::io::stderr(),
        "{bytes} bytes, trial {number}: {rate} packets/s for {seconds:.2} s: sent {sent}, lost {lost} ({percent:.3} %){behind}"
    );
}

impl Device<'_> {
    fn trial(&mut self, rate: Rate, duration: Duration) -> Result<(Counted, Option<Percentiles>), NoMore> {
        let begun = Instant::now();
        if self.stop.is_set() {
            return Err(NoMore::Stopped);
        }
        *self.run = self.run.wrapping_add(1);
        if let Some(receiver) = self.receiver {
            receiver.begin(*self.run)?;
        }
        let limits = Limits { seconds: Some(duration), ..Limits::default() };
        let Outcome { report: sent, failure } = self.sender.again(*self.run, rate, limits, self.stop)?;
        if let Some(failure) = failure {
            return Err(NoMore::Failed(failure));
        }
        let (received, arriving, latency) = match (self.receiver, &sent.rtt) {
            (Some(receiver), _) => {
                let arrived = receiver.end(sent.sent)?;
                (arrived.packets, Some(arrived.span), arrived.latency)
            }
            (None, Some(rtt)) => (sent.sent.saturating_sub(rtt.lost), None, rtt.rtt_us),
            (None, None) => (0, None, None),
        };
        if sent.ended == Ended::Signal {
            return Err(NoMore::Stopped);
        }
        let counted = Counted {
            due: sent.due,
            sent: sent.sent,
            received,
            arriving,
            late: sent.late,
            skipped: sent.skipped,
            sending: Duration::from_secs_f64(sent.seconds),
            took: begun.elapsed(),
        };
        Ok((counted, latency))
    }

    /// At some parts of NDR; where there is none, of PDR.
    fn latency(&mut self, settings: &SearchSettings, report: &mut SizeReport) -> Result<(), NoMore> {
        let pps = match report.latency_at {
            Base::Ndr => report.findings.ndr.pps,
            Base::Pdr => report.findings.pdr.pps,
        };
        for percent in LATENCY_PERCENT {
            let Some(rate) = NonZeroU64::new(pps * percent / 100) else { continue };
            let fits =
                settings.send.profile().is_none_or(|profile| profile.has_rate_for_each(Rate::Pps(rate)));
            if settings.latency.is_zero() || !fits {
                continue;
            }
            let (counted, latency_us) = self.trial(Rate::Pps(rate), settings.latency)?;
            report.latency.push(LatencyAt {
                percent,
                pps: rate.get(),
                sent: counted.sent,
                received: counted.received,
                late: counted.late,
                skipped: counted.skipped,
                latency_us,
            });
        }
        Ok(())
    }
}
