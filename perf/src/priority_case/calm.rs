//! Which latencies were met while nobody took a core away: a run is cut into slices, and a slice counts if in it, and in the one before,
//! the worker (and the generator) waited for their cores for next to no time. What those say is the worker's; the rest is
//! the machine's, too.

use std::time::Duration;

use super::wire::GENERATOR_THREAD;
use crate::environment::CpuTime;
use crate::paced::Latencies;
use crate::pipeline_case::mode::thread_folder;

/// A thread that must have its core, and how long it may wait for it in a slice.
#[derive(Clone, Debug)]
pub struct Thread {
    name: String,
    most_ns: u64,
}

impl Thread {
    /// Nobody else belongs on its core.
    pub fn worker(core: usize) -> Thread {
        Thread { name: format!("worker-{core}"), most_ns: 20_000 }
    }

    /// Control is there, too, for less than this at the end of each slice.
    pub fn generator() -> Thread {
        Thread { name: GENERATOR_THREAD.into(), most_ns: 100_000 }
    }
}

/// Lengths of slices: with the generator they are longer, for control has its core.
pub const SLICE: Duration = Duration::from_millis(2);
pub const SLICE_WITH_GENERATOR: Duration = Duration::from_millis(10);

/// The calm part of a run.
#[derive(Debug)]
pub struct Calm {
    /// Where `/proc` tells of each thread, its time at the last look, and how long it may wait.
    threads: Vec<(String, CpuTime, u64)>,
    seen: Latencies,
    was_calm: bool,
    calm: Latencies,
}

impl Calm {
    /// Begins a run, with the latencies until now.
    pub fn start(threads: &[Thread], seen: Latencies) -> Result<Calm, String> {
        let thread = |thread: &Thread| {
            let folder = thread_folder(&thread.name)?;
            CpuTime::read(&folder).map(|time| (folder, time, thread.most_ns))
        };
        let threads = threads.iter().map(thread).collect::<Result<_, _>>()?;
        Ok(Calm { threads, calm: seen.since(&seen), seen, was_calm: true })
    }

    /// A slice has ended, with the latencies until now.
    pub fn slice(&mut self, now: Latencies) -> Result<(), String> {
        let mut is_calm = true;
        for (folder, before, most_ns) in &mut self.threads {
            let time = CpuTime::read(folder)?;
            is_calm &= time.taken_since(before).0 <= *most_ns;
            *before = time;
        }
        self.note(now, is_calm);
        Ok(())
    }

    fn note(&mut self, now: Latencies, is_calm: bool) {
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
        for (value, is_calm) in [(2, true), (3, true), (4, false), (5, true), (6, true)] {
            calm.note(met(value), is_calm);
        }
        let calm = calm.end();
        let expected = Histogram::default();
        [2, 3, 6].into_iter().for_each(|value| expected.record(value));
        assert_eq!(calm, Latencies::sum(std::iter::once(expected.counts())));
    }

    #[test]
    fn this_thread_is_found_by_its_name() {
        let wait = || {
            let mut calm =
                Calm::start(&[Thread { name: "calm-test".into(), most_ns: 0 }], Latencies::default())
                    .unwrap();
            calm.slice(Latencies::default()).unwrap();
            calm.end().samples()
        };
        let thread = std::thread::Builder::new().name("calm-test".into()).spawn(wait).unwrap();
        assert_eq!(thread.join().unwrap(), 0);
        assert!(Calm::start(&[Thread::worker(9999)], Latencies::default()).is_err());
    }
}
