//! How long frames wait before each step, by class: timed for one burst in [`SAMPLED`], so that it costs next to nothing.
//!
//! ```text
//! where it waits                        from when                          until when          timed by
//! in a ring from another worker         it was published                   its step begins     a Probe: one frame in the ring
//! between two steps of a lane's burst   the end of one                     the next begins     `worker/by_class.rs`
//! in an uplink's ring, before Classify  that ring was last looked at       Classify begins     the same
//! at tenants, before Collect            tenants were last looked at        Collect begins      the same
//! ```
//!
//! The last two are bounds: what a look finds has come since the last one, unless that left something there. How long frames lie in a ring
//! that is never emptied nobody can tell; nor is a tenant seen that was quiet and so is not looked at each time (`turns.rs`). A worker
//! on which classes need not be told apart times the first kind only: elsewhere nothing goes before anything.
//!
//! A probe's two ends are on different cores: times are as exact as these cores' counters go in step.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use crossbeam::utils::CachePadded;

use crate::clock::cycles;
use crate::counters::Counter;
use crate::histogram::Histogram;
use crate::types::{Class, Stage};

/// Of so many bursts one is timed.
pub const SAMPLED: u64 = 32;

/// What frames wait for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// To be taken from a tenant.
    Collect,
    /// This step.
    Step(Stage),
}

impl Before {
    const COUNT: usize = Stage::COUNT + 1;

    /// All of them.
    pub fn all() -> impl Iterator<Item = Before> {
        [Before::Collect].into_iter().chain(Stage::ALL.into_iter().map(Before::Step))
    }

    /// The name in `stats`.
    pub const fn name(self) -> &'static str {
        match self {
            Before::Collect => "collect",
            Before::Step(stage) => stage.name(),
        }
    }

    fn index(self) -> usize {
        match self {
            Before::Collect => 0,
            Before::Step(stage) => 1 + stage as usize,
        }
    }
}

/// How long frames waited on one worker, which alone writes it, in cycles.
#[derive(Debug, Default)]
pub struct Waiting {
    /// By class, and for each by what they waited for.
    all: Box<[(Counter, Histogram)]>,
}

impl Waiting {
    /// For so many classes.
    pub fn new(classes: usize) -> Waiting {
        let all = std::iter::repeat_with(Default::default).take(classes * Before::COUNT);
        Waiting { all: all.collect() }
    }

    fn of(&self, class: Class, before: Before) -> Option<&(Counter, Histogram)> {
        self.all.get(class.index() * Before::COUNT + before.index())
    }

    /// A burst of this class has waited so long.
    #[cold]
    pub fn record(&self, class: Class, before: Before, cycles: u64) {
        if let Some((samples, histogram)) = self.of(class, before) {
            histogram.record(cycles);
            samples.add(1);
        }
    }

    /// How often each time came, as [`Histogram::counts`] has it; `None` if nothing was timed yet.
    pub fn counts(&self, class: Class, before: Before) -> Option<Vec<u64>> {
        let (samples, histogram) = self.of(class, before)?;
        (samples.get() > 0).then(|| histogram.counts())
    }
}

/// What the two ends of a ring share beside it.
#[derive(Debug, Default)]
struct Slot {
    /// How many had been put into the ring with the frame that is timed; 0: none is.
    position: AtomicUsize,
    /// When it was published, in cycles.
    since: AtomicU64,
}

/// The end of who puts in.
#[derive(Debug)]
pub struct ProbeIn {
    slot: Arc<CachePadded<Slot>>,
    /// Put in when it was last published.
    published: usize,
    bursts: u64,
}

/// The end of who takes out.
#[derive(Debug)]
pub struct ProbeOut {
    slot: Arc<CachePadded<Slot>>,
}

/// Both ends, for a ring that is empty and new.
pub fn probe() -> (ProbeIn, ProbeOut) {
    let slot = Arc::new(CachePadded::new(Slot::default()));
    (ProbeIn { slot: slot.clone(), published: 0, bursts: 0 }, ProbeOut { slot })
}

impl ProbeIn {
    /// So many were put in so far, and they are about to be published.
    #[inline]
    pub fn publishes(&mut self, put_in: usize) {
        if put_in != self.published {
            self.published = put_in;
            self.bursts += 1;
            if self.bursts.is_multiple_of(SAMPLED) {
                self.time(put_in);
            }
        }
    }

    /// Unless another one is still under way.
    #[cold]
    fn time(&self, position: usize) {
        // Acquire: the other end has read the time of the one before. Release: the time is there before the position is seen, and that
        // before the frame.
        if self.slot.position.load(Ordering::Acquire) == 0 {
            self.slot.since.store(cycles(), Ordering::Relaxed);
            self.slot.position.store(position, Ordering::Release);
        }
    }
}

impl ProbeOut {
    /// So many were taken out so far. If one of them was timed that had not been taken before: how many were taken after it, and when
    /// it was published.
    #[inline]
    pub fn takes(&mut self, taken: usize) -> Option<(usize, u64)> {
        let position = self.slot.position.load(Ordering::Acquire);
        if position == 0 || position > taken { None } else { Some(self.take(taken - position)) }
    }

    #[cold]
    fn take(&mut self, after: usize) -> (usize, u64) {
        let since = self.slot.since.load(Ordering::Relaxed);
        self.slot.position.store(0, Ordering::Release);
        (after, since)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram::value_at;

    #[test]
    fn one_burst_in_some_is_timed_and_found_when_it_is_taken() {
        let (mut into, mut out) = probe();
        let begin = cycles();
        let mut put_in = 0;
        for _ in 0..SAMPLED - 1 {
            put_in += 3;
            into.publishes(put_in);
            into.publishes(put_in); // nothing new
        }
        assert_eq!(out.takes(put_in), None);
        put_in += 5;
        into.publishes(put_in);
        let end = cycles();
        assert_eq!(out.takes(put_in - 1), None, "it is still there");
        // While one is under way no other is timed, nor is one found twice.
        for more in 1..=2 * SAMPLED as usize {
            into.publishes(put_in + more);
        }
        let (after, since) = out.takes(put_in + 7).unwrap();
        assert_eq!((after, (begin..=end).contains(&since)), (7, true));
        assert_eq!(out.takes(put_in + 2 * SAMPLED as usize), None);
    }

    /// Two threads, each burst of the producer a number higher: what is found is always a burst that was timed, after it was published.
    #[test]
    fn times_belong_to_what_was_timed() {
        const BURSTS: usize = 200_000;
        let (mut into, mut out) = probe();
        let (tell, hear) = std::sync::mpsc::sync_channel(64);
        let producer = std::thread::spawn(move || {
            let mut before = Vec::with_capacity(BURSTS + 1);
            before.push(0);
            for burst in 1..=BURSTS {
                before.push(cycles());
                into.publishes(burst);
                tell.send(burst).unwrap();
            }
            before
        });
        let mut found = Vec::new();
        for taken in hear {
            if let Some((after, since)) = out.takes(taken) {
                assert_eq!(after, 0, "it would have been found before");
                found.push((taken, since));
            }
        }
        let before = producer.join().unwrap();
        assert!(!found.is_empty());
        for (burst, since) in found {
            assert!(burst % SAMPLED as usize == 0 && since >= before[burst], "{burst}");
            assert!(before.get(burst + 1).is_none_or(|next| since <= *next), "{burst}");
        }
    }

    #[test]
    fn each_class_and_step_is_noted_for_itself() {
        let waiting = Waiting::new(3);
        let mut value = 0;
        for class in [Class(0), Class(2), Class(3)] {
            for before in Before::all() {
                value += 1;
                waiting.record(class, before, value);
            }
        }
        for (place, before) in Before::all().enumerate() {
            let of = |class| {
                waiting
                    .counts(Class(class), before)
                    .map(|counts| (counts.iter().sum::<u64>(), value_at(&counts, 1).unwrap()))
            };
            let place = place as u64;
            assert_eq!(
                [0, 1, 2, 3].map(of),
                [Some((1, 1 + place)), None, Some((1, 8 + place)), None],
                "{before:?}"
            );
        }
        assert_eq!(Waiting::default().counts(Class(0), Before::Collect), None);
    }
}
