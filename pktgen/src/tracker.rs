//! What was lost, came twice or out of order: per flow one counter and a bitmap of the last [`WINDOW`] numbers, so
//! the memory is bounded whatever arrives.
//!
//! - reordered (RFC 4737 §3.3): its number is smaller than one that came before; counted when it first comes.
//! - duplicate (RFC 5560): its number has come before.
//! - lost: a number below the highest seen, counted from 0, that has not come. What is lost at the very end cannot be
//!   known here; who knows how many were sent (the sender, with `--rtt`) counts it.
//! - A number older than the window may be late or double: it is counted as `beyond_window` and changes nothing else.

/// How late a packet may come and still be told from a duplicate, in sequence numbers.
pub const WINDOW: u64 = 4096;

const WORDS: usize = (WINDOW / 64) as usize;

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

/// One flow.
#[derive(Clone, Debug)]
struct Flow {
    /// The number expected next: one more than the highest seen.
    next: u64,
    distinct: u64,
    /// Which of the last numbers have come: number n at bit n modulo the window.
    seen: [u64; WORDS],
}

impl Flow {
    const EMPTY: Flow = Flow { next: 0, distinct: 0, seen: [0; WORDS] };

    #[inline]
    fn record(&mut self, sequence: u64, counts: &mut Counts) {
        if sequence == self.next {
            self.next += 1;
            self.mark(sequence);
        } else if sequence > self.next {
            self.forget(self.next, sequence);
            self.next = sequence + 1;
            self.mark(sequence);
        } else if self.next - sequence > WINDOW {
            counts.beyond_window += 1;
        } else if self.is_marked(sequence) {
            counts.duplicates += 1;
        } else {
            counts.reordered += 1;
            self.mark(sequence);
        }
    }

    #[inline]
    fn mark(&mut self, sequence: u64) {
        let (word, bit) = place(sequence);
        if let Some(word) = self.seen.get_mut(word) {
            *word |= bit;
        }
        self.distinct += 1;
    }

    #[inline]
    fn is_marked(&self, sequence: u64) -> bool {
        let (word, bit) = place(sequence);
        self.seen.get(word).is_some_and(|word| word & bit != 0)
    }

    /// The numbers `from..to` have not come: their bits are those of numbers that leave the window.
    fn forget(&mut self, from: u64, to: u64) {
        if to - from >= WINDOW {
            self.seen = [0; WORDS];
            return;
        }
        for sequence in from..to {
            let (word, bit) = place(sequence);
            if let Some(word) = self.seen.get_mut(word) {
                *word &= !bit;
            }
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
}

impl Tracker {
    /// For the flows from 0 to `flows - 1`. Some 530 bytes each, allocated here.
    pub fn new(flows: usize) -> Tracker {
        Tracker { flows: vec![Flow::EMPTY; flows], counts: Counts::default() }
    }

    /// A packet has come. False, and nothing counted, if its flow is not one of ours.
    #[inline]
    #[must_use]
    pub fn record(&mut self, flow: u16, sequence: u64) -> bool {
        match self.flows.get_mut(usize::from(flow)) {
            Some(flow) => {
                flow.record(sequence, &mut self.counts);
                true
            }
            None => false,
        }
    }

    /// The totals over all flows.
    pub fn counts(&self) -> Counts {
        let (distinct, highest) = self
            .flows
            .iter()
            .fold((0, 0), |(distinct, highest), flow| (distinct + flow.distinct, highest + flow.next));
        // What came beyond the window may be among the missing; it is left there.
        Counts { distinct, lost: highest - distinct, ..self.counts }
    }

    /// What is known without looking through the flows: all but `distinct` and `lost`.
    #[inline]
    pub fn totals(&self) -> Counts {
        self.counts
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

    /// Remembers everything.
    fn naive(sequences: &[u64]) -> Counts {
        let (mut seen, mut next, mut counts) = (HashSet::new(), 0u64, Counts::default());
        for &sequence in sequences {
            if next > sequence && next - sequence > WINDOW {
                counts.beyond_window += 1;
            } else if !seen.insert(sequence) {
                counts.duplicates += 1;
            } else if sequence < next {
                counts.reordered += 1;
            }
            next = next.max(sequence + 1);
        }
        counts.distinct = seen.len() as u64;
        counts.lost = next - counts.distinct;
        counts
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
            prop_assert_eq!(track(&sequences), naive(&sequences));
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
