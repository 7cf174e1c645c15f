//! What was lost, came twice or out of order: per flow a few counters, a bitmap of the last [`WINDOW`] numbers and the
//! last [`GAPS`] gaps, so the memory is bounded whatever arrives.
//!
//! - reordered (RFC 4737 §3.3): its number is smaller than one that came before; counted when it first comes. The ratio
//!   to all that came is that of §4.1.
//! - extent of a reordered packet (§4.2): how many arrivals ago the first one with a larger number was. A swap of
//!   neighbours has extent 1.
//! - n-reordered (§5.3): each of the n arrivals just before it has a larger number. TCP with three duplicate
//!   acknowledgements takes a 3-reordered packet for lost.
//! - duplicate (RFC 5560): its number has come before. Copies are no arrivals in the sense of the above.
//! - lost: a number below the highest seen, counted from 0, that has not come. What is lost at the very end cannot be
//!   known here; who knows how many were sent (the sender, with `--rtt`) counts it.
//! - A number older than the window may be late or double: it is counted as `beyond_window` and changes nothing else.

use serde::Serialize;

/// How late a packet may come and still be told from a duplicate, in sequence numbers.
pub const WINDOW: u64 = 4096;
/// How many gaps a flow remembers, to tell the extent of what fills them later.
pub const GAPS: usize = 64;

const WORDS: usize = (WINDOW / 64) as usize;
/// Extents are counted one by one up to here, and in one count beyond.
const EXTENT_MAX: usize = WINDOW as usize;
/// Arrivals that are remembered, for n-reordering up to 3; a power of two.
const RECENT: usize = 4;

/// Totals, over one flow or all.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    /// Packets, each number once.
    pub distinct: u64,
    /// Numbers below the highest that never came.
    pub lost: u64,
    /// Packets that a later number overtook.
    pub reordered: u64,
    /// Packets whose number had come before.
    pub duplicates: u64,
    /// Packets too old to tell what they are.
    pub beyond_window: u64,
}

/// How far out of order packets came (RFC 4737).
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Reordering {
    /// Reordered packets to all that came, copies not counted (§4.1).
    pub ratio: f64,
    /// Of the reordered ones whose extent is known (§4.2); absent when there are none.
    pub extent: Option<Extents>,
    /// Reordered packets that filled a gap which was forgotten: more than [`GAPS`] newer ones came before them.
    pub extent_unknown: u64,
    /// Packets that were at least 1-, 2- and 3-reordered (§5.3).
    pub n_reordered: [u64; 3],
}

/// Extents of reordered packets, in arrivals.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct Extents {
    /// Half were at most so late.
    pub p50: u64,
    /// 90 %.
    pub p90: u64,
    /// 99 %.
    pub p99: u64,
    /// The latest.
    pub max: u64,
}

/// Numbers that did not come in their turn.
#[derive(Clone, Copy, Debug)]
struct Gap {
    /// The first of them.
    from: u64,
    /// Which arrival it was that showed the gap: the first with a larger number.
    arrival: u64,
}

/// One flow.
#[derive(Clone, Debug)]
struct Flow {
    /// The number expected next: one more than the highest seen.
    next: u64,
    /// Arrivals, copies not counted.
    distinct: u64,
    reordered: u64,
    duplicates: u64,
    beyond_window: u64,
    /// The numbers of the last arrivals: arrival n at n modulo their count.
    recent: [u64; RECENT],
    /// Gaps that there have been, and the last of them: gap n at n modulo their count.
    gaps_seen: usize,
    gaps: [Gap; GAPS],
    /// Which of the last numbers have come: number n at bit n modulo the window.
    seen: [u64; WORDS],
}

/// What a number says about the packet that has it.
enum Arrival {
    /// After so many numbers that have not come.
    InTurn {
        skipped: u64,
    },
    Duplicate,
    BeyondWindow,
    Reordered {
        extent: Option<u64>,
        n: usize,
    },
}

impl Flow {
    const EMPTY: Flow = Flow {
        next: 0,
        distinct: 0,
        reordered: 0,
        duplicates: 0,
        beyond_window: 0,
        recent: [0; RECENT],
        gaps_seen: 0,
        gaps: [Gap { from: 0, arrival: 0 }; GAPS],
        seen: [0; WORDS],
    };

    #[inline]
    fn record(&mut self, sequence: u64) -> Arrival {
        if sequence == self.next {
            self.next += 1;
            self.arrive(sequence);
            Arrival::InTurn { skipped: 0 }
        } else if sequence > self.next {
            let skipped = sequence - self.next;
            self.gap(sequence);
            self.next = sequence + 1;
            self.arrive(sequence);
            Arrival::InTurn { skipped }
        } else {
            self.late(sequence)
        }
    }

    #[cold]
    fn late(&mut self, sequence: u64) -> Arrival {
        if self.next - sequence > WINDOW {
            self.beyond_window += 1;
            return Arrival::BeyondWindow;
        }
        if self.is_marked(sequence) {
            self.duplicates += 1;
            return Arrival::Duplicate;
        }
        self.reordered += 1;
        let late = Arrival::Reordered { extent: self.extent(sequence), n: self.overtaken_in_a_row(sequence) };
        self.arrive(sequence);
        late
    }

    /// How many arrivals ago the first one with a larger number was.
    fn extent(&self, sequence: u64) -> Option<u64> {
        let kept = self.gaps_seen.min(GAPS);
        let newest_first = (1..=kept).filter_map(|back| self.gaps.get((self.gaps_seen - back) % GAPS));
        // Gaps are in the order of their numbers, so the newest that begins at or before the number holds it.
        let gap = newest_first.into_iter().find(|gap| gap.from <= sequence)?;
        Some(self.distinct - gap.arrival)
    }

    /// How many of the last arrivals, up to 3, have larger numbers with no smaller one between.
    fn overtaken_in_a_row(&self, sequence: u64) -> usize {
        let past = (1..RECENT as u64).map_while(|back| self.distinct.checked_sub(back));
        past.take_while(|arrival| self.recent[*arrival as usize % RECENT] > sequence).count()
    }

    #[inline]
    fn arrive(&mut self, sequence: u64) {
        let (word, bit) = place(sequence);
        if let Some(word) = self.seen.get_mut(word) {
            *word |= bit;
        }
        self.recent[self.distinct as usize % RECENT] = sequence;
        self.distinct += 1;
    }

    #[inline]
    fn is_marked(&self, sequence: u64) -> bool {
        let (word, bit) = place(sequence);
        self.seen.get(word).is_some_and(|word| word & bit != 0)
    }

    /// The numbers from the next one up to `to` have not come: their bits are those of numbers that leave the window.
    #[cold]
    fn gap(&mut self, to: u64) {
        self.gaps[self.gaps_seen % GAPS] = Gap { from: self.next, arrival: self.distinct };
        self.gaps_seen += 1;
        if to - self.next >= WINDOW {
            self.seen = [0; WORDS];
            return;
        }
        for sequence in self.next..to {
            let (word, bit) = place(sequence);
            if let Some(word) = self.seen.get_mut(word) {
                *word &= !bit;
            }
        }
    }

    fn counts(&self) -> Counts {
        Counts {
            distinct: self.distinct,
            // What came beyond the window may be among the missing; it is left there.
            lost: self.next - self.distinct,
            reordered: self.reordered,
            duplicates: self.duplicates,
            beyond_window: self.beyond_window,
        }
    }
}

#[inline]
fn place(sequence: u64) -> (usize, u64) {
    let bit = sequence % WINDOW;
    ((bit / 64) as usize, 1 << (bit % 64))
}

/// The flows of one sender.
#[derive(Clone, Debug)]
pub struct Tracker {
    flows: Vec<Flow>,
    counts: Counts,
    /// How many reordered packets had each extent; the last place is for all that are longer.
    extents: Vec<u64>,
    extent_max: u64,
    extent_unknown: u64,
    n_reordered: [u64; 3],
}

impl Tracker {
    /// For the flows from 0 to `flows - 1`. Some 1.7 kB each, allocated here.
    pub fn new(flows: usize) -> Tracker {
        Tracker {
            flows: vec![Flow::EMPTY; flows],
            counts: Counts::default(),
            extents: vec![0; EXTENT_MAX + 2],
            extent_max: 0,
            extent_unknown: 0,
            n_reordered: [0; 3],
        }
    }

    /// A packet has come. False, and nothing counted, if its flow is not one of ours.
    #[inline]
    #[must_use]
    pub fn record(&mut self, flow: u16, sequence: u64) -> bool {
        let Some(flow) = self.flows.get_mut(usize::from(flow)) else { return false };
        match flow.record(sequence) {
            Arrival::InTurn { skipped } => {
                self.counts.distinct += 1;
                self.counts.lost += skipped;
            }
            Arrival::Duplicate => self.counts.duplicates += 1,
            Arrival::BeyondWindow => self.counts.beyond_window += 1,
            Arrival::Reordered { extent, n } => self.reordered(extent, n),
        }
        true
    }

    #[cold]
    fn reordered(&mut self, extent: Option<u64>, n: usize) {
        self.counts.distinct += 1;
        self.counts.lost -= 1;
        self.counts.reordered += 1;
        self.n_reordered.iter_mut().take(n).for_each(|count| *count += 1);
        let Some(extent) = extent else {
            self.extent_unknown += 1;
            return;
        };
        self.extent_max = self.extent_max.max(extent);
        if let Some(count) = self.extents.get_mut((extent as usize).min(EXTENT_MAX + 1)) {
            *count += 1;
        }
    }

    /// The totals over all flows.
    #[inline]
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// The same of one flow; `None` if it has not been seen.
    pub fn flow(&self, flow: u16) -> Option<Counts> {
        self.flows.get(usize::from(flow)).filter(|flow| flow.next > 0).map(Flow::counts)
    }

    /// How far out of order packets came, over all flows.
    pub fn reordering(&self) -> Reordering {
        let Counts { distinct, reordered, .. } = self.counts();
        Reordering {
            ratio: if distinct == 0 { 0.0 } else { reordered as f64 / distinct as f64 },
            extent: self.extents(),
            extent_unknown: self.extent_unknown,
            n_reordered: self.n_reordered,
        }
    }

    fn extents(&self) -> Option<Extents> {
        let total: u64 = self.extents.iter().sum();
        let at = |share: f64| {
            let rank = ((total as f64 * share).ceil() as u64).max(1);
            let mut below = 0;
            let found = self.extents.iter().position(|count| {
                below += count;
                below >= rank
            });
            found.filter(|extent| *extent <= EXTENT_MAX).map_or(self.extent_max, |extent| extent as u64)
        };
        (total > 0).then(|| Extents { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: self.extent_max })
    }

    /// How many flows have been seen.
    pub fn flows_seen(&self) -> usize {
        self.flows.iter().filter(|flow| flow.next > 0).count()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashSet;

    fn track(sequences: &[u64]) -> Counts {
        let mut tracker = Tracker::new(1);
        for sequence in sequences {
            assert!(tracker.record(0, *sequence));
        }
        tracker.counts()
    }

    #[test]
    fn in_order_nothing_is_wrong() {
        let all: Vec<u64> = (0..20_000).collect();
        assert_eq!(track(&all), Counts { distinct: 20_000, ..Counts::default() });
    }

    #[test]
    fn each_fault_is_named() {
        assert_eq!(track(&[0, 1, 3]), Counts { distinct: 3, lost: 1, ..Counts::default() });
        assert_eq!(track(&[0, 2, 1]), Counts { distinct: 3, reordered: 1, ..Counts::default() });
        assert_eq!(track(&[0, 1, 1]), Counts { distinct: 2, duplicates: 1, ..Counts::default() });
        assert_eq!(
            track(&[5]),
            Counts { distinct: 1, lost: 5, ..Counts::default() },
            "the first ones count, too"
        );
        assert_eq!(
            track(&[WINDOW, 0]),
            Counts { distinct: 1, lost: WINDOW, beyond_window: 1, ..Counts::default() }
        );
        assert_eq!(
            track(&[WINDOW, 1]),
            Counts { distinct: 2, lost: WINDOW - 1, reordered: 1, ..Counts::default() }
        );
    }

    #[test]
    fn flows_do_not_mix_and_strangers_are_refused() {
        let mut tracker = Tracker::new(2);
        assert!(tracker.record(0, 0) && tracker.record(1, 0) && tracker.record(0, 1));
        assert!(!tracker.record(2, 0));
        assert_eq!(tracker.counts(), Counts { distinct: 3, ..Counts::default() });
        assert_eq!(tracker.flows_seen(), 2);
    }

    fn reordering(sequences: &[u64]) -> Reordering {
        let mut tracker = Tracker::new(1);
        for sequence in sequences {
            assert!(tracker.record(0, *sequence));
        }
        tracker.reordering()
    }

    /// Counted out by hand from the definitions.
    #[test]
    fn extents_are_those_of_the_definition() {
        // The first that is larger than 3 came 5 arrivals before it.
        let one_late = reordering(&[0, 1, 2, 4, 5, 6, 7, 8, 3, 9]);
        let alike = |at| Some(Extents { p50: at, p90: at, p99: at, max: at });
        assert_eq!((one_late.ratio, one_late.extent, one_late.n_reordered), (0.1, alike(5), [1, 1, 1]));
        // Extents 5 and 6; just before 4 came 3, which is smaller, so only 3 is n-reordered.
        let two_late = reordering(&[0, 1, 2, 5, 6, 7, 8, 9, 3, 4, 10]);
        assert_eq!(two_late.extent, Some(Extents { p50: 5, p90: 6, p99: 6, max: 6 }));
        assert_eq!(two_late.n_reordered, [1, 1, 1]);
        // Extents 4, 5 and 6.
        let three_late = reordering(&[0, 1, 2, 6, 7, 8, 9, 3, 4, 5, 10]);
        assert_eq!(three_late.extent, Some(Extents { p50: 5, p90: 6, p99: 6, max: 6 }));
        let swap = reordering(&[0, 2, 1, 3]);
        assert_eq!((swap.extent, swap.n_reordered), (alike(1), [1, 0, 0]));
        let none = reordering(&[0, 1, 3]);
        assert_eq!((none.ratio, none.extent, none.extent_unknown), (0.0, None, 0));
    }

    #[test]
    fn copies_are_no_arrivals() {
        let got = reordering(&[0, 2, 2, 2, 1]);
        assert_eq!((got.extent.map(|extent| extent.max), got.n_reordered), (Some(1), [1, 0, 0]));
    }

    #[test]
    fn a_gap_that_was_forgotten_has_no_extent() {
        let last = 2 * GAPS as u64;
        let odd_lost: Vec<u64> = (0..=last).step_by(2).collect();
        assert_eq!(reordering(&[&odd_lost[..], &[1]].concat()).extent_unknown, 0);
        let one_more = [&odd_lost[..], &[last + 2, 1]].concat();
        let got = reordering(&one_more);
        assert_eq!((got.extent, got.extent_unknown, got.n_reordered), (None, 1, [1, 1, 1]));
    }

    #[test]
    fn flows_are_told_apart() {
        let mut tracker = Tracker::new(3);
        for (flow, sequence) in [(0, 0), (0, 2), (0, 1), (1, 3), (1, 3)] {
            assert!(tracker.record(flow, sequence));
        }
        assert_eq!(tracker.flow(0), Some(Counts { distinct: 3, reordered: 1, ..Counts::default() }));
        let second = Counts { distinct: 1, lost: 3, duplicates: 1, ..Counts::default() };
        assert_eq!((tracker.flow(1), tracker.flow(2), tracker.flow(3)), (Some(second), None, None));
    }

    /// Remembers everything: counts; the extents of all reordered packets, sorted; how many were n-reordered.
    fn naive(sequences: &[u64]) -> (Counts, Vec<u64>, [u64; 3]) {
        let (mut seen, mut next, mut counts) = (HashSet::new(), 0u64, Counts::default());
        let (mut arrivals, mut extents, mut n_reordered): (Vec<u64>, Vec<u64>, [u64; 3]) = Default::default();
        for &sequence in sequences {
            if next > sequence && next - sequence > WINDOW {
                counts.beyond_window += 1;
                continue;
            }
            if !seen.insert(sequence) {
                counts.duplicates += 1;
                continue;
            }
            if sequence < next {
                counts.reordered += 1;
                let first = arrivals.iter().position(|other| *other > sequence).unwrap();
                extents.push((arrivals.len() - first) as u64);
                let n = arrivals.iter().rev().take_while(|other| **other > sequence).count();
                n_reordered.iter_mut().take(n).for_each(|count| *count += 1);
            }
            arrivals.push(sequence);
            next = next.max(sequence + 1);
        }
        counts.distinct = seen.len() as u64;
        counts.lost = next - counts.distinct;
        extents.sort_unstable();
        (counts, extents, n_reordered)
    }

    /// Steps forward, mostly small, sometimes beyond the window, and looks back.
    fn walk() -> impl Strategy<Value = Vec<u64>> {
        let step = prop_oneof![
            8 => (0i64..3).boxed(),
            4 => (-6i64..0).boxed(),
            2 => (-5000i64..5000).boxed(),
            1 => (4000i64..9000).boxed(),
        ];
        proptest::collection::vec(step, 1..400).prop_map(|steps| {
            let mut at = 0i64;
            steps
                .into_iter()
                .map(|step| {
                    at = (at + step).max(0);
                    at as u64
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn it_agrees_with_one_that_remembers_everything(sequences in walk()) {
            let (counts, extents, n_reordered) = naive(&sequences);
            prop_assert_eq!(track(&sequences), counts);
            let got = reordering(&sequences);
            prop_assert_eq!(got.n_reordered, n_reordered);
            if got.extent_unknown == 0 {
                let at = |share: f64| extents[(extents.len() as f64 * share).ceil() as usize - 1];
                let wanted = (!extents.is_empty())
                    .then(|| Extents { p50: at(0.5), p90: at(0.9), p99: at(0.99), max: at(1.0) });
                prop_assert_eq!(got.extent, wanted);
            }
        }

        #[test]
        fn drops_swaps_and_copies_are_counted_exactly(
            faults in proptest::collection::vec((0usize..4, 3usize..40), 0..30),
        ) {
            // Faults of known kinds, far enough apart not to touch each other.
            let (mut stream, mut n, mut wanted) = (Vec::new(), 0u64, Counts::default());
            for (kind, calm) in faults {
                match kind {
                    0 => { n += 1; wanted.lost += 1; }
                    1 => { stream.extend([n, n]); n += 1; wanted.duplicates += 1; }
                    2 => { stream.extend([n + 1, n]); n += 2; wanted.reordered += 1; }
                    _ => {}
                }
                for _ in 0..calm {
                    stream.push(n);
                    n += 1;
                }
            }
            wanted.distinct = n - wanted.lost;
            prop_assert_eq!(track(&stream), wanted);
        }
    }
}
