//! What a run sent: the figures of one thread each, and of all together. `report.rs` of the crate shows them.

use peregrine_dataplane::xsk::{Kicks, SocketStatistics, UplinkInfo};
use serde::Serialize;

use super::engine::{Part, Tally};
use super::memif::MemifInfo;
use super::rtt::{Rtt, RttReport};
use super::{SendSettings, Traffic};
use crate::clock;
use crate::limits::Ended;
use crate::profile::Profile;
use crate::replay::ReplayReport;
use crate::report::Outcome;

/// What was sent.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SendReport {
    /// Frames that the kernel took and gave back, or that the memif server took.
    pub sent: u64,
    /// The bytes of all frames that were handed over, outer headers included.
    pub bytes: u64,
    /// From the first departure to the last completion.
    pub seconds: f64,
    /// Packets in that time.
    pub offered_pps: f64,
    /// Sent more than a millisecond after their time.
    pub late: u64,
    /// Departures given up because the sender was too far behind.
    pub skipped: u64,
    /// Frames that the kernel has not given back, or the memif server has not taken.
    pub uncompleted: u64,
    /// Departures that were due: those that were sent or given up, and those that fell into the time that the last ones took
    /// beyond the end.
    pub due: u64,
    /// Why it ended.
    pub ended: Ended,
    /// What was asked for and what was got.
    #[serde(flatten)]
    pub outlet: OutletInfo,
    /// The kernel's counters of the first socket.
    pub kernel: Option<SocketStatistics>,
    /// Wake-ups of the kernel.
    pub kicks: Kicks,
    /// What was sent of each class.
    pub classes: Vec<ClassReport>,
    /// What each thread sent.
    pub threads: Vec<ThreadReport>,
    /// What was asked for, or what the file held.
    #[serde(flatten)]
    pub traffic: TrafficReport,
    /// The answers.
    #[serde(flatten)]
    pub rtt: Option<RttReport>,
}

/// What was got.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum OutletInfo {
    /// AF_XDP sockets.
    Uplink(UplinkInfo),
    /// A memif connection.
    Memif(MemifInfo),
}

/// What was sent: asked for, or read.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TrafficReport {
    /// The profile.
    Profile(Profile),
    /// The file.
    Replay(ReplayReport),
}

/// What was handed over of one class.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ClassReport {
    /// Which class.
    pub name: String,
    /// Frames.
    pub sent: u64,
    /// Their bytes.
    pub bytes: u64,
}

/// What one thread sent.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ThreadReport {
    /// The core that it was kept on.
    pub core: Option<usize>,
    /// Frames, as in [`SendReport::sent`].
    pub sent: u64,
    /// Sent late.
    pub late: u64,
    /// Given up.
    pub skipped: u64,
}

/// One report of all threads.
pub(super) fn merge(
    settings: &SendSettings,
    start_ns: u64,
    outlet: OutletInfo,
    kernel: Option<SocketStatistics>,
    traffic: TrafficReport,
    parts: Vec<Part>,
) -> Outcome<SendReport> {
    let names: Vec<String> = match &settings.traffic {
        Traffic::Profile(profile) => profile.classes.iter().map(|class| class.name.clone()).collect(),
        Traffic::Replay(_) => vec!["replay".into()],
    };
    let mut classes: Vec<ClassReport> =
        names.into_iter().map(|name| ClassReport { name, sent: 0, bytes: 0 }).collect();
    let (mut threads, mut kicks) = (Vec::new(), Kicks::default());
    let (mut bytes, mut due, mut uncompleted, mut end_ns) = (0, 0, 0, start_ns);
    let (mut ended, mut rtt, mut failure) = (None, None, None);
    for (thread, part) in parts.into_iter().enumerate() {
        let Tally { handed, late, skipped, .. } = part.tally;
        let core = settings.cores.get(thread).copied();
        threads.push(ThreadReport { core, sent: handed.saturating_sub(part.uncompleted), late, skipped });
        for (class, (frames, bytes)) in classes.iter_mut().zip(&part.tally.classes) {
            class.sent += frames;
            class.bytes += bytes;
        }
        bytes += part.tally.bytes;
        due += part.due;
        uncompleted += part.uncompleted;
        end_ns = end_ns.max(part.end_ns);
        kicks += part.kicks;
        // When one thread loses its peer the others end by a signal, which is not why.
        if ended.is_none() || part.failure.is_some() {
            ended = Some(part.ended);
        }
        rtt = rtt.or(part.rtt);
        failure = failure.or(part.failure);
    }
    let sum = |count: fn(&ThreadReport) -> u64| threads.iter().map(count).sum::<u64>();
    let (sent, late, skipped) = (sum(|it| it.sent), sum(|it| it.late), sum(|it| it.skipped));
    let passed = end_ns.saturating_sub(start_ns);
    let report = SendReport {
        sent,
        bytes,
        seconds: clock::seconds(passed),
        offered_pps: clock::per_second(sent, passed),
        late,
        skipped,
        uncompleted,
        due,
        ended: ended.unwrap_or(Ended::Signal),
        outlet,
        kernel,
        kicks,
        classes,
        threads,
        traffic,
        rtt: rtt.map(|rtt: Rtt| rtt.report(sent)),
    };
    Outcome { report, failure }
}
