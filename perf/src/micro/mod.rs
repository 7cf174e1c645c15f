//! `peregrine-perf micro`: single pieces of the packet path, each in a loop on one thread, 64 packets at a time: time and
//! allocations here, instructions in `instructions`. The pieces are in `wire`, `rings`, `tables`, `classes`, `stages` and
//! `generator`.
//!
//! Everything that is touched stays in this core's cache and there is one flow, so what shows is the work, not the memory: compare
//! a case with itself before a change, and use `core` for what a packet costs between two cores. Only the cases of a million
//! addresses (`1m`) are about memory; their instructions are not counted, being those of the small ones.
//!
//! What must hold: only what runs in [`measured`] counts; a case says how many packets it moved, and another number than it is
//! made for is an error; an allocation or a free in the measured part is an error, too.

mod baseline;
pub mod classes;
mod generator;
pub mod instructions;
mod rings;
mod stages;
mod tables;
mod wire;

use std::time::Duration;

use peregrine_dataplane::clock::{cycles, cycles_per_second};
use peregrine_dataplane::frame::BURST;
use serde::Serialize;

use crate::figures::spread;

/// Packets (or calls) that the measured part of every case handles.
const PACKETS: usize = BURST;
/// In the names of cases with tables of a million addresses, which no cache holds.
const MILLION: &str = "1m";
/// Times that a case is run before anything counts: the first turns fill caches and free lists.
const WARM_UP: usize = 16;

/// One piece of the path.
pub struct Case {
    name: String,
    body: Box<dyn Body>,
}

/// What a case does; state in, state out.
trait Body {
    /// Makes the next round ready.
    fn prepare(&mut self);
    /// The measured part; returns how many packets it moved.
    fn run(&mut self) -> usize;
}

struct Steps<S, P, R> {
    state: S,
    prepare: P,
    run: R,
}

impl<S, P: FnMut(&mut S), R: FnMut(&mut S) -> usize> Body for Steps<S, P, R> {
    fn prepare(&mut self) {
        (self.prepare)(&mut self.state);
    }

    fn run(&mut self) -> usize {
        (self.run)(&mut self.state)
    }
}

/// A case of a state, what makes it ready, and the measured part.
fn case<S: 'static>(
    name: impl Into<String>,
    state: S,
    prepare: impl FnMut(&mut S) + 'static,
    run: impl FnMut(&mut S) -> usize + 'static,
) -> Case {
    Case { name: name.into(), body: Box::new(Steps { state, prepare, run }) }
}

/// The one function that callgrind collects in, found by its name: what is not called from here does not count.
#[inline(never)]
fn measured(body: &mut dyn Body) -> usize {
    body.run()
}

impl Case {
    /// One round; returns its cycles, and how often this thread went to the allocator.
    fn round(&mut self) -> Result<(u64, u64), String> {
        self.body.prepare();
        let (mut moved, mut passed) = (0, 0);
        // Of this thread only: what others do is not on the path.
        let calls = allocation_counter::measure(|| {
            let start = cycles();
            moved = measured(&mut *self.body);
            passed = cycles().wrapping_sub(start);
        });
        self.check(moved)?;
        // A reallocation counts as both; a lone free makes the current count negative.
        Ok((passed, calls.count_total + calls.count_current.unsigned_abs()))
    }

    /// Rounds of which nothing is kept but errors, and which callgrind does not see.
    fn warm_up(&mut self) -> Result<(), String> {
        for _ in 0..WARM_UP {
            self.body.prepare();
            let moved = self.body.run();
            self.check(moved)?;
        }
        Ok(())
    }

    fn check(&self, moved: usize) -> Result<(), String> {
        if moved == PACKETS {
            return Ok(());
        }
        Err(format!("{}: {moved} packets went through instead of {PACKETS}", self.name))
    }
}

/// A case by its name and how it is made: the states are large, so there is only one at a time.
type Maker = (String, Box<dyn FnOnce(&str) -> Result<Case, String>>);

fn maker(name: impl Into<String>, make: impl FnOnce(&str) -> Result<Case, String> + 'static) -> Maker {
    (name.into(), Box::new(make))
}

/// Runs every case whose name contains `filter`, in order, one after the other.
fn each_case(filter: &str, run: impl FnMut(&mut Case) -> Result<(), String>) -> Result<(), String> {
    each_case_of(|name| name.contains(filter), filter, run)
}

/// Runs every case whose name is wanted; `filter` is what the user asked for.
fn each_case_of(
    wanted: impl Fn(&str) -> bool,
    filter: &str,
    mut run: impl FnMut(&mut Case) -> Result<(), String>,
) -> Result<(), String> {
    let all = [
        wire::cases(),
        rings::cases(),
        tables::cases(),
        classes::cases(),
        stages::cases(),
        generator::cases(),
    ];
    let chosen: Vec<Maker> = all.into_iter().flatten().filter(|(name, _)| wanted(name)).collect();
    if chosen.is_empty() {
        return Err(format!("no case has `{filter}` in its name: `peregrine-perf micro --quick` shows all"));
    }
    for (name, make) in chosen {
        let mut case = make(&name)?;
        case.warm_up()?;
        run(&mut case)?;
    }
    Ok(())
}

/// What one case gave: the median of its runs, and between which they lay.
#[derive(Debug, Serialize)]
struct Times {
    name: String,
    ns: f64,
    ns_lowest: f64,
    ns_highest: f64,
    cycles: f64,
    allocations: u64,
}

/// All cases.
#[derive(Debug, Serialize)]
pub struct Report {
    runs: usize,
    packets_per_burst: usize,
    cases: Vec<Times>,
}

impl Report {
    /// A table.
    pub fn text(&self) -> String {
        let mut out =
            format!("{:<32}{:>11}{:>18}{:>16}\n", "case", "ns/packet", "lowest–highest", "cycles/packet");
        for case in &self.cases {
            let spread = format!("{:.2}–{:.2}", case.ns_lowest, case.ns_highest);
            out += &format!("{:<32}{:>11.2}{:>18}{:>16.1}\n", case.name, case.ns, spread, case.cycles);
        }
        out + &format!(
            "Median of {} runs in bursts of {} packets on one core, all but `1m` in its cache; cycles of the time-stamp counter. No case \
             allocated.\n",
            self.runs, self.packets_per_burst
        )
    }
}

/// Times every case whose name contains `filter`. An allocation is an error that names the cases.
pub fn run(quick: bool, filter: &str) -> Result<Report, String> {
    let (runs, duration) =
        if quick { (5, Duration::from_millis(10)) } else { (11, Duration::from_millis(100)) };
    let hertz = cycles_per_second();
    let budget = (duration.as_secs_f64() * hertz as f64) as u64;
    let mut cases = Vec::new();
    each_case(filter, |case| {
        cases.push(time(case, runs, budget, hertz)?);
        Ok(())
    })?;
    refuse_allocations(cases.iter().map(|case| (case.name.as_str(), case.allocations)))?;
    Ok(Report { runs, packets_per_burst: PACKETS, cases })
}

/// Cycles per packet of the case of this name.
pub fn cycles_of(quick: bool, name: &str) -> Result<f64, String> {
    let report = run(quick, name)?;
    let case = report.cases.iter().find(|case| case.name == name);
    case.map(|case| case.cycles).ok_or_else(|| format!("no case is called `{name}`"))
}

/// Each run lasts `budget` cycles, what is not measured included. Its median round counts, so that a core that is taken away now
/// and then does not show.
fn time(case: &mut Case, runs: usize, budget: u64, hertz: u64) -> Result<Times, String> {
    let mut medians = Vec::with_capacity(runs);
    let mut allocations = 0;
    let mut rounds = Vec::new();
    for _ in 0..runs {
        rounds.clear();
        let start = cycles();
        while rounds.is_empty() || cycles().wrapping_sub(start) < budget {
            let (passed, calls) = case.round()?;
            rounds.push(passed);
            allocations += calls;
        }
        rounds.sort_unstable();
        medians.push(rounds.get(rounds.len() / 2).map_or(0.0, |median| *median as f64 / PACKETS as f64));
    }
    let [lowest, median, highest] = spread(medians).unwrap_or_default();
    let ns = |cycles: f64| cycles * 1e9 / hertz as f64;
    Ok(Times {
        name: case.name.clone(),
        ns: ns(median),
        ns_lowest: ns(lowest),
        ns_highest: ns(highest),
        cycles: median,
        allocations,
    })
}

/// The path of a packet allocates and frees nothing.
fn refuse_allocations<'a>(cases: impl Iterator<Item = (&'a str, u64)>) -> Result<(), String> {
    let guilty: Vec<String> = cases
        .filter(|(_, calls)| *calls > 0)
        .map(|(name, calls)| format!("{name} ({calls} calls of the allocator)"))
        .collect();
    if guilty.is_empty() { Ok(()) } else { Err(format!("the packet path allocates: {}", guilty.join(", "))) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn boxes(prepare: impl FnMut(&mut Vec<Box<u8>>) + 'static, run: fn(&mut Vec<Box<u8>>)) -> Case {
        let run = move |boxes: &mut Vec<Box<u8>>| {
            run(boxes);
            PACKETS
        };
        case("boxes", Vec::with_capacity(8), prepare, run)
    }

    #[test]
    fn what_the_measured_part_allocates_and_frees_is_counted_and_nothing_else() {
        let mut idle = boxes(|boxes| *boxes = Vec::with_capacity(8), |_| {});
        assert_eq!(idle.round().unwrap().1, 0, "preparing does not count");
        let mut allocates = boxes(|boxes| boxes.clear(), |boxes| boxes.push(Box::new(1)));
        assert_eq!(allocates.round().unwrap().1, 2, "one made, and not freed");
        let mut frees = boxes(|boxes| boxes.push(Box::new(1)), Vec::clear);
        assert_eq!(frees.round().unwrap().1, 1);
        let mut both = boxes(|_| {}, |_| drop(std::hint::black_box(Box::new(1))));
        assert_eq!(both.round().unwrap().1, 1, "made and freed");
    }

    #[test]
    fn allocations_fail_the_run_by_the_cases_name() {
        assert_eq!(refuse_allocations([("a", 0), ("b", 0)].into_iter()), Ok(()));
        let error = refuse_allocations([("a", 0), ("stage/b", 3)].into_iter()).unwrap_err();
        assert!(error.contains("stage/b (3 calls") && !error.contains("a ("), "{error}");
    }

    #[test]
    fn a_case_that_loses_packets_is_an_error() {
        let mut case = case("short", (), |()| {}, |()| PACKETS - 1);
        assert_eq!(case.round().unwrap_err(), "short: 63 packets went through instead of 64");
        assert!(case.warm_up().is_err());
    }

    /// Every case is made and moves all its packets, in this profile too.
    #[test]
    fn every_case_moves_its_packets_and_allocates_nothing() {
        let mut names = std::collections::BTreeSet::new();
        each_case("", |case| {
            assert_eq!(case.round()?.1, 0, "{}", case.name);
            assert!(names.insert(case.name.clone()), "{} is there twice", case.name);
            Ok(())
        })
        .unwrap();
        assert!(each_case("no such case", |_| Ok(())).is_err());
    }
}
