//! The loop of one sending thread: bring frames home, build what is due, hand it over, look for answers, and rest when there is
//! nothing to do. One clock reading a turn.

use std::sync::atomic::{AtomicU64, Ordering};

use arrayvec::ArrayVec;
use peregrine_dataplane::xsk::Kicks;

use super::SendWait;
use super::rtt::Rtt;
use super::wire::{BURST, Load, Wire};
use crate::clock::{MILLISECOND, SECOND, now_ns};
use crate::error::Error;
use crate::limits::{Ended, Limits, SLEEP_MAX, Stop, Until};
use crate::pacer::LAG_MAX_NS;
use crate::progress::Progress;

/// How late a packet may be sent and not count as late.
const LATE_NS: u64 = MILLISECOND;
/// How long the last frames may take to leave.
const COMPLETION_PATIENCE_NS: u64 = 2 * SECOND;
/// How long the last answers may take.
const ANSWER_PATIENCE_NS: u64 = 500 * MILLISECOND;
/// The same, after a signal.
const HURRY_NS: u64 = 50 * MILLISECOND;

/// What one thread sent.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Frames that were taken.
    pub handed: u64,
    /// Their bytes.
    pub bytes: u64,
    /// Of each class: frames and bytes.
    pub classes: Vec<(u64, u64)>,
    /// Sent more than a millisecond after their time.
    pub late: u64,
    /// Departures given up.
    pub skipped: u64,
}

/// How one thread ended.
#[derive(Debug)]
pub struct Part {
    /// What it sent.
    pub tally: Tally,
    /// Departures that were due until the last frame was done: those taken, those given up, and those that were due while the
    /// sender was still busy with the ones before.
    pub due: u64,
    /// Frames that have not come home.
    pub uncompleted: u64,
    /// Why it ended.
    pub ended: Ended,
    /// When the last frame was done; of a count, not before the one after it would have been due, unless it ends a burst.
    pub end_ns: u64,
    /// Wake-ups.
    pub kicks: Kicks,
    /// The answers.
    pub rtt: Option<Rtt>,
    /// What ended it early.
    pub failure: Option<Error>,
}

/// What all threads of a run have in common.
#[derive(Debug)]
pub struct Run<'a> {
    /// When the run begins.
    pub start_ns: u64,
    /// What to do while nothing is due.
    pub wait: SendWait,
    /// Ends the run.
    pub stop: &'a Stop,
    /// Frames sent so far, by thread.
    pub sent: &'a [AtomicU64],
    /// What all threads are to send, for the line per second; `None`: no lines.
    pub goal: Option<&'a Limits>,
}

/// One thread's part in a run.
#[derive(Debug)]
pub struct Engine<'a, W, L> {
    wire: &'a mut W,
    load: L,
    rtt: Option<Rtt>,
    run: &'a Run<'a>,
    thread: usize,
    tally: Tally,
    /// The frames that are built and not yet handed over.
    pending: ArrayVec<Alike, BURST>,
}

/// Frames built one after the other that count alike.
#[derive(Clone, Copy, Debug)]
struct Alike {
    len: usize,
    class: u8,
    count: usize,
}

impl<'a, W: Wire, L: Load> Engine<'a, W, L> {
    /// Of `classes` classes.
    pub fn new(
        wire: &'a mut W,
        load: L,
        rtt: Option<Rtt>,
        run: &'a Run<'a>,
        thread: usize,
        classes: usize,
    ) -> Engine<'a, W, L> {
        let tally = Tally { classes: vec![(0, 0); classes], ..Tally::default() };
        Engine { wire, load, rtt, run, thread, tally, pending: ArrayVec::new() }
    }

    /// Sends until a limit is reached and waits for what is still out. What goes wrong is told beside what was sent.
    pub fn run(mut self, limits: &Limits) -> Part {
        if self.run.wait == SendWait::Block {
            // Wake-ups to the microsecond; where that is not allowed they come 50 µs late.
            let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        }
        let (mut ended, mut end_ns, mut failure) = (Ended::Peer, 0, None);
        match self.send(limits) {
            Ok((reason, sent_ns)) => {
                (ended, end_ns) = (reason, sent_ns);
                match self.settle(ended) {
                    Ok(completed) => end_ns = end_ns.max(completed),
                    Err(why) => (ended, failure) = (Ended::Peer, Some(why)),
                }
            }
            Err(why) => failure = Some(why),
        }
        if failure.is_some() {
            end_ns = now_ns();
            self.run.stop.set(); // the other threads end as well
        }
        self.tally.skipped += self.wire.discard() as u64;
        let more = if ended == Ended::Seconds { self.load.due_before(end_ns) } else { 0 };
        Part {
            due: self.tally.handed + self.tally.skipped + more,
            uncompleted: self.wire.outstanding() as u64,
            kicks: self.wire.kicks(),
            tally: self.tally,
            ended,
            end_ns,
            rtt: self.rtt,
            failure,
        }
    }

    /// Returns why it ended, and when: with a count that is when the packet after the last one would have been due, so that the
    /// rate is the one asked for; but not with bursts, between which nothing is sent.
    fn send(&mut self, limits: &Limits) -> Result<(Ended, u64), Error> {
        let start = self.run.start_ns;
        let until = Until::new(limits, start, self.run.stop.clone());
        let count = limits.count.unwrap_or(u64::MAX);
        let mut progress = match self.run.goal {
            Some(goal) if self.thread == 0 => Progress::toward("sent", start, goal),
            _ => Progress::silent(),
        };
        let mut look_at = start;
        loop {
            let now = now_ns();
            // The next packet's time decides, so that a sender that is late still sends what was due before the end: but one that
            // is too late gives it up.
            let due = self.load.next_ns(now);
            let at = due.max(now.saturating_sub(LAG_MAX_NS)).min(now);
            if let Some(ended) = until.reached(at, self.tally.handed, None) {
                if ended == Ended::Seconds {
                    self.tally.skipped += self.load.due_before(until.end_ns());
                }
                // What has not come yet is no time that passed.
                return Ok((ended, if ended == Ended::Count { self.load.slot_end_ns(now) } else { now }));
            }
            if due == u64::MAX && self.wire.built() == 0 {
                return Ok((Ended::Count, now)); // all that there was
            }
            if now >= look_at {
                look_at = now + SLEEP_MAX.as_nanos() as u64;
                self.look(now, &mut progress)?;
            }
            let busy = self.step(now, until.end_ns(), count)?;
            if !busy {
                let longest = until.sleep_ns(now).min(self.load.next_ns(now).saturating_sub(now));
                self.wire.rest(self.run.wait, longest, self.rtt.is_some())?;
            }
        }
    }

    /// What was sent so far.
    pub fn tally(&self) -> &Tally {
        &self.tally
    }

    /// One turn at `now`: sends what is due before `end`, until `count` packets have been sent. False if there was nothing to do.
    ///
    /// # Errors
    /// Those of the wire.
    #[inline]
    pub fn step(&mut self, now: u64, end: u64, count: u64) -> Result<bool, Error> {
        self.wire.complete();
        self.tally.skipped += self.load.skip_overdue(now);
        self.fill(now, end, count)?;
        self.turn(now)
    }

    /// Now and then: is the peer there, and how much has been sent.
    #[cold]
    fn look(&mut self, now: u64, progress: &mut Progress) -> Result<(), Error> {
        if let Some(what) = self.wire.gone() {
            return Err(Error::PeerGone { what });
        }
        if let Some(mine) = self.run.sent.get(self.thread) {
            mine.store(self.tally.handed, Ordering::Relaxed);
        }
        if self.thread == 0 {
            progress.tick(now, self.run.sent.iter().map(|sent| sent.load(Ordering::Relaxed)).sum());
        }
        Ok(())
    }

    /// Builds what is due, as far as there is room for it and its time is before the end.
    #[inline]
    fn fill(&mut self, now: u64, end: u64, count: u64) -> Result<(), Error> {
        let owed = count.saturating_sub(self.tally.handed + self.wire.built() as u64);
        let room = self.wire.room()?.min(usize::try_from(owed).unwrap_or(BURST));
        for _ in 0..room {
            let next = self.load.next_ns(now);
            if next > now || next >= end {
                break;
            }
            let (len, load, mut written) = (self.load.next_len(), &mut self.load, None);
            let built = self.wire.build(len, |out| {
                written = load.write(now, out);
                written.is_some()
            });
            let Some(written) = written.filter(|_| built) else { break };
            self.tally.late += u64::from(now - written.due > LATE_NS);
            match self.pending.last_mut() {
                Some(last) if (last.len, last.class) == (len, written.class) => last.count += 1,
                _ => {
                    let full = self.pending.try_push(Alike { len, class: written.class, count: 1 });
                    debug_assert!(full.is_ok(), "a wire builds no more than a burst");
                }
            }
        }
        Ok(())
    }

    /// The first `taken` frames of those that are built have been handed over.
    #[inline]
    fn count(&mut self, mut taken: usize) {
        self.tally.handed += taken as u64;
        let mut done = 0;
        for alike in &mut self.pending {
            let count = taken.min(alike.count);
            let bytes = (count * alike.len) as u64;
            self.tally.bytes += bytes;
            if let Some(class) = self.tally.classes.get_mut(usize::from(alike.class)) {
                *class = (class.0 + count as u64, class.1 + bytes);
            }
            taken -= count;
            alike.count -= count;
            if alike.count > 0 {
                break;
            }
            done += 1;
        }
        self.pending.drain(..done);
    }

    /// Hands frames over and looks for answers. False if there was nothing to do.
    #[inline]
    fn turn(&mut self, now: u64) -> Result<bool, Error> {
        let taken = self.wire.transmit(now)?;
        if taken > 0 {
            self.count(taken);
        }
        let Some(rtt) = &mut self.rtt else { return Ok(taken > 0) };
        let heard = self.wire.receive(|now, frame| rtt.record(now, frame))?;
        Ok(taken + heard > 0)
    }

    /// After the last packet: waits for completions, and for answers. Returns when the last frame was done.
    fn settle(&mut self, ended: Ended) -> Result<u64, Error> {
        let begun = now_ns();
        let patience = |usual| begun + if ended == Ended::Signal { HURRY_NS } else { usual };
        let (completed_by, answered_by) = (patience(COMPLETION_PATIENCE_NS), patience(ANSWER_PATIENCE_NS));
        let (mut done_at, mut look_at) = (begun, begun);
        loop {
            let now = now_ns();
            let unfinished = self.wire.built() > 0;
            if self.wire.complete() > 0 {
                done_at = now;
            }
            let busy = self.turn(now)?;
            if unfinished && self.wire.built() == 0 {
                done_at = done_at.max(now);
            }
            let out = self.wire.outstanding() + self.wire.built();
            let missing = self.rtt.as_ref().is_some_and(|rtt| rtt.distinct() < self.tally.handed);
            if (out == 0 || now >= completed_by) && (!missing || now >= answered_by) {
                return Ok(done_at);
            }
            if now >= look_at {
                look_at = now + MILLISECOND;
                if let Some(what) = self.wire.gone() {
                    return Err(Error::PeerGone { what });
                }
            }
            if !busy {
                self.wire.rest(self.run.wait, MILLISECOND, self.rtt.is_some())?;
            }
        }
    }
}
