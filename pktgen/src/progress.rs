//! What one sees while a run goes on: a line per second on standard error, and below them a bar where that is a terminal.
//!
//! A thread of its own writes, so that a slow terminal does not hold up the loop: what it cannot take is left out.

use std::io::{IsTerminal, Write, stderr};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::clock::{self, SECOND};
use crate::limits::Limits;

/// Lines that may wait for the terminal.
const BACKLOG: usize = 8;
/// The bar's length; it is drawn in so many steps.
const STEPS: u64 = 1000;

/// Counts the seconds of a run.
#[derive(Debug)]
pub struct Progress {
    what: &'static str,
    start_ns: u64,
    /// When the next line is due; never, if nobody wants it.
    next_ns: u64,
    shown_ns: u64,
    shown: u64,
    goal: Limits,
    writer: Option<(SyncSender<Second>, JoinHandle<()>)>,
}

/// What a sink knows of a second.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Quality {
    /// Packets that were found missing.
    pub lost: u64,
    /// Half of the second's packets took at most so many nanoseconds.
    pub p50_ns: u64,
    /// 99 % of them.
    pub p99_ns: u64,
    /// Packets of another run of a sender, which are counted nowhere else.
    pub other_runs: u64,
}

/// One line.
#[derive(Clone, Copy, PartialEq, Debug)]
struct Second {
    what: &'static str,
    /// Since the start.
    seconds: f64,
    total: u64,
    /// Since the last line.
    count: u64,
    pps: f64,
    quality: Option<Quality>,
    /// How far the run is, in [`STEPS`]; `None` if it has no end.
    done: Option<u64>,
}

impl Progress {
    /// `what` is done to the packets; nobody knows until when.
    pub fn new(what: &'static str, start_ns: u64) -> Progress {
        Progress::toward(what, start_ns, &Limits::default())
    }

    /// The same, until a limit is reached.
    pub fn toward(what: &'static str, start_ns: u64, goal: &Limits) -> Progress {
        let (sender, receiver) = sync_channel(BACKLOG);
        let has_end = goal.seconds.is_some() || goal.count.is_some();
        let thread = std::thread::Builder::new().name("progress".into());
        let writer = thread.spawn(move || write_all(&receiver, has_end)).ok().map(|thread| (sender, thread));
        let next_ns = if writer.is_some() { start_ns + SECOND } else { u64::MAX };
        Progress { start_ns, next_ns, shown_ns: start_ns, shown: 0, goal: goal.clone(), writer, what }
    }

    /// One that shows nothing.
    pub fn silent() -> Progress {
        Progress {
            start_ns: 0,
            next_ns: u64::MAX,
            shown_ns: 0,
            shown: 0,
            goal: Limits::default(),
            writer: None,
            what: "",
        }
    }

    /// `total` packets so far.
    #[inline]
    pub fn tick(&mut self, now: u64, total: u64) {
        if self.is_due(now) {
            self.show(now, total, None);
        }
    }

    /// Whether a line is due.
    #[inline]
    pub fn is_due(&self, now: u64) -> bool {
        now >= self.next_ns
    }

    /// A line: `total` packets so far, and what is known of those since the last line.
    #[cold]
    pub fn show(&mut self, now: u64, total: u64, quality: Option<Quality>) {
        let since_start = now.saturating_sub(self.start_ns);
        let count = total.saturating_sub(self.shown);
        let second = Second {
            what: self.what,
            seconds: clock::seconds(since_start),
            total,
            count,
            pps: clock::per_second(count, now.saturating_sub(self.shown_ns)),
            quality,
            done: done(&self.goal, since_start, total),
        };
        (self.next_ns, self.shown_ns, self.shown) = (now + SECOND, now, total);
        if let Some((sender, _)) = &self.writer {
            let _too_slow = sender.try_send(second);
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((sender, thread)) = self.writer.take() {
            drop(sender);
            let _panicked = thread.join();
        }
    }
}

/// The larger of the shares of time and of packets.
fn done(goal: &Limits, ns: u64, total: u64) -> Option<u64> {
    let time = goal.seconds.map(|end| clock::seconds(ns) / end.as_secs_f64());
    let count = goal.count.map(|end| total as f64 / end as f64);
    let share = time.into_iter().chain(count).reduce(f64::max)?;
    Some((share.min(1.0) * STEPS as f64) as u64)
}

fn line(second: &Second) -> String {
    let Second { what, seconds, total, count, pps, quality, .. } = second;
    let mut line = format!("{seconds:>4.0} s  {total:>12} {what}  {pps:>12.0} packets/s");
    if let Some(Quality { lost, p50_ns, p99_ns, .. }) = quality.filter(|quality| *count + quality.lost > 0) {
        let share = 100.0 * lost as f64 / (lost + count).max(1) as f64;
        let (p50, p99) = (p50_ns as f64 / 1000.0, p99_ns as f64 / 1000.0);
        line.push_str(&format!("  {lost} lost ({share:.3} %)  p50 {p50:.1} µs  p99 {p99:.1} µs"));
    }
    if let Some(other) = quality.map(|quality| quality.other_runs).filter(|other| *other > 0) {
        line.push_str(&format!("  {other} of another run of send, not counted"));
    }
    line
}

/// Until the run is over.
fn write_all(seconds: &Receiver<Second>, has_end: bool) {
    if !stderr().is_terminal() {
        for second in seconds {
            let _nobody_reads = writeln!(stderr(), "{}", line(&second));
        }
        return;
    }
    let bar = if has_end { ProgressBar::new(STEPS) } else { ProgressBar::new_spinner() };
    if has_end && let Ok(style) = ProgressStyle::with_template("[{bar:50}] {percent:>3} %  {elapsed}") {
        bar.set_style(style.progress_chars("=> "));
    }
    bar.enable_steady_tick(Duration::from_millis(250));
    for second in seconds {
        bar.println(line(&second));
        bar.set_position(second.done.unwrap_or(0));
    }
    bar.finish_and_clear();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_what_the_second_was_like() {
        let bare = Second {
            what: "received",
            seconds: 3.0002,
            total: 300_000,
            count: 99_988,
            pps: 99_988.4,
            quality: None,
            done: None,
        };
        assert_eq!(line(&bare), "   3 s        300000 received         99988 packets/s");
        let silence = Quality { lost: 0, p50_ns: 0, p99_ns: 0, other_runs: 0 };
        let nothing = Second { count: 0, pps: 0.0, quality: Some(silence), ..bare };
        assert_eq!(line(&nothing), "   3 s        300000 received             0 packets/s");
        let second_sender = Some(Quality { other_runs: 5, ..silence });
        assert_eq!(
            line(&Second { quality: second_sender, ..nothing }),
            "   3 s        300000 received             0 packets/s  5 of another run of send, not counted"
        );
        let quality = Some(Quality { lost: 12, p50_ns: 12_340, p99_ns: 45_000, other_runs: 0 });
        assert_eq!(
            line(&Second { quality, ..bare }),
            "   3 s        300000 received         99988 packets/s  12 lost (0.012 %)  p50 12.3 µs  p99 45.0 µs"
        );
    }

    #[test]
    fn the_bar_goes_by_what_ends_first() {
        let limits = |seconds: Option<u64>, count| Limits {
            seconds: seconds.map(Duration::from_secs),
            count,
            idle: None,
        };
        assert_eq!(done(&limits(None, None), SECOND, 5), None);
        assert_eq!(done(&limits(Some(4), None), SECOND, 5), Some(250));
        assert_eq!(done(&limits(Some(4), Some(10)), SECOND, 5), Some(500));
        assert_eq!(done(&limits(Some(4), Some(10)), 9 * SECOND, 5), Some(STEPS));
    }

    #[test]
    fn a_silent_one_is_never_due() {
        assert!(!Progress::silent().is_due(u64::MAX - 1));
        assert!(Progress::new("sent", 7).is_due(SECOND + 7));
    }
}
