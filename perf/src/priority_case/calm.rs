//! Which latencies were met while nobody took a core away: a run is cut into slices, and a slice counts if in it, and in the one before,
//! the worker (and the generator) waited for their cores for next to no time. What those say is the worker's; the rest is
//! the machine's, too.

use std::time::Duration;

use crate::environment::CpuTime;
use crate::paced::Latencies;
use crate::pipeline_case::mode::thread_folder;

/// A thread may wait for its core so long in a slice. Control's own look at a slice is shorter.
const WAITED_NS: u64 = 50_000;

/// Lengths of slices: with the generator they are longer, for control has its core.
pub const SLICE: Duration = Duration::from_millis(2);
pub const SLICE_WITH_GENERATOR: Duration = Duration::from_millis(10);

/// The calm part of a run.
#[derive(Debug)]
pub struct Calm {
    /// In `/proc`, of each thread that must have its core, and its time at the last look.
    threads: Vec<(String, CpuTime)>,
    seen: Latencies,
    was_calm: bool,
    calm: Latencies,
}

impl Calm {
    /// Begins a run, with the latencies until now.
    pub fn start(threads: &[String], seen: Latencies) -> Result<Calm, String> {
        let thread = |name: &String| {
            let folder = thread_folder(name)?;
            CpuTime::read(&folder).map(|time| (folder, time))
        };
        let threads = threads.iter().map(thread).collect::<Result<_, _>>()?;
        Ok(Calm { threads, calm: seen.since(&seen), seen, was_calm: true })
    }

    /// A slice has ended, with the latencies until now.
    pub fn slice(&mut self, now: Latencies) -> Result<(), String> {
        let mut longest = 0;
        for (folder, before) in &mut self.threads {
            let time = CpuTime::read(folder)?;
            longest = longest.max(time.taken_since(before).0);
            *before = time;
        }
        self.note(now, longest);
        Ok(())
    }

    fn note(&mut self, now: Latencies, waited_ns: u64) {
        let is_calm = waited_ns <= WAITED_NS;
        if is_calm && self.was_calm {
            self.calm = self.calm.plus(&now.since(&self.seen));
        }
        (self.was_calm, self.seen) = (is_calm, now);
    }

    /// All of them.
    pub fn end(self) -> Latencies {
        self.calm
    }
}

#[cfg(test)]
mod tests {
    use peregrine_dataplane::discard::histogram::Histogram;

    use super::*;

    #[test]
    fn what_comes_in_a_disturbed_slice_or_right_after_it_does_not_count() {
        let histogram = Histogram::default();
        let met = |value| {
            histogram.record(value);
            Latencies::sum(std::iter::once(histogram.counts()))
        };
        let mut calm = Calm::start(&[], met(1)).unwrap();
        for (value, waited_ns) in [(2, 0), (3, WAITED_NS), (4, WAITED_NS + 1), (5, 0), (6, 0)] {
            calm.note(met(value), waited_ns);
        }
        let calm = calm.end();
        let expected = Histogram::default();
        [2, 3, 6].into_iter().for_each(|value| expected.record(value));
        assert_eq!(calm, Latencies::sum(std::iter::once(expected.counts())));
    }

    #[test]
    fn this_thread_is_found_by_its_name() {
        let wait = || {
            let mut calm = Calm::start(&["prio-calm-test".into()], Latencies::default()).unwrap();
            calm.slice(Latencies::default()).unwrap();
            calm.end().samples()
        };
        let thread = std::thread::Builder::new().name("prio-calm-test".into()).spawn(wait).unwrap();
        assert_eq!(thread.join().unwrap(), 0);
        assert!(Calm::start(&["nobody-is-called".into()], Latencies::default()).is_err());
    }
}
