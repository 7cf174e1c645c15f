//! A tenant without a process: takes packets as a ring would, copying each into memory of its own, checks their order within each
//! flow, and counts; on demand also how late each is. For measuring and for tests; what it takes must be stamped by `replay`.

use std::sync::Arc;

use crate::clock::cycles;
use crate::counters::Counter;
use crate::histogram::Histogram;
use crate::replay::Stamp;

/// Places that packets are copied to in turn: as many as a usual ring has.
const SLOTS: usize = 1024;
/// Bytes of each.
const SLOT: usize = 2048;

/// The longest packet.
const PACKET_MAX: usize = 9216;

/// What it found; read from any thread.
#[derive(Debug)]
pub struct DiscardCounters {
    /// Packets taken.
    pub packets: Counter,
    /// Packets with a lower number than one of their flow that came before (RFC 4737: reordered), or the same.
    pub reordered: Counter,
    /// Numbers passed over: lost on the way, unless they came late.
    pub missing: Counter,
    /// Packets without a stamp, or of a flow that is not known.
    pub strange: Counter,
    /// By flow: packets.
    pub by_flow: Box<[Counter]>,
    /// Cycles from when a packet was due until it was taken, of those that had a time, if that is wanted. Where the packets entered on
    /// another core it is as exact as these cores' counters go in step.
    pub latency: Option<Histogram>,
}

impl DiscardCounters {
    /// All zero, for so many flows.
    pub fn new(flows: usize) -> DiscardCounters {
        DiscardCounters {
            packets: Counter::default(),
            reordered: Counter::default(),
            missing: Counter::default(),
            strange: Counter::default(),
            by_flow: std::iter::repeat_with(Counter::default).take(flows).collect(),
            latency: None,
        }
    }
}

/// One endpoint's.
#[derive(Debug)]
pub struct Discard {
    memory: Box<[u8]>,
    slot: usize,
    /// By flow: the number that is expected next.
    expected: Box<[u64]>,
    counters: Arc<DiscardCounters>,
}

impl Discard {
    /// Counts into these, for as many flows as they have.
    pub fn new(counters: Arc<DiscardCounters>) -> Discard {
        let expected = vec![0; counters.by_flow.len()].into();
        Discard { memory: vec![0; SLOTS * SLOT].into(), slot: 0, expected, counters }
    }

    /// Takes a packet; false if it is longer than `PACKET_MAX`. A long one is a chain: it has some slots in a row.
    #[inline(never)] // it is for measuring, and would make the way to real tenants longer
    pub fn take(&mut self, packet: &[u8]) -> bool {
        let start = self.slot * SLOT;
        self.slot = (self.slot + 1) % SLOTS;
        let start = if packet.len() > SLOT { self.place(start, packet.len()) } else { start };
        let slot = self.memory.get_mut(start..start + packet.len());
        let Some(slot) = slot else { return false };
        slot.copy_from_slice(packet);
        self.counters.packets.add(1);
        let Some(stamp) = Stamp::of(slot) else {
            self.counters.strange.add(1);
            return true;
        };
        if let Some(latency) = &self.counters.latency
            && stamp.due != 0
        {
            latency.record(cycles().saturating_sub(stamp.due));
        }
        let flow = stamp.flow as usize;
        match (self.expected.get_mut(flow), self.counters.by_flow.get(flow)) {
            (Some(expected), Some(counter)) => {
                counter.add(1);
                if stamp.sequence >= *expected {
                    self.counters.missing.add(stamp.sequence - *expected);
                    *expected = stamp.sequence + 1;
                } else {
                    self.counters.reordered.add(1);
                }
            }
            _ => self.counters.strange.add(1),
        }
        true
    }
}

impl Discard {
    /// Where a long packet begins: here, or else at the beginning. One that is too long has no place.
    #[cold]
    fn place(&mut self, start: usize, length: usize) -> usize {
        if length > PACKET_MAX {
            return self.memory.len();
        }
        let start = if start + length <= self.memory.len() { start } else { 0 };
        self.slot = (start + length).div_ceil(SLOT) % SLOTS;
        start
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::histogram;

    #[test]
    fn loss_and_reordering_are_told_apart_for_each_flow() {
        let counters = Arc::new(DiscardCounters::new(2));
        let mut discard = Discard::new(counters.clone());
        let mut take = |flow, sequence| {
            let packet = [&[7; 44][..], &Stamp { flow, sequence, due: 0 }.to_bytes()].concat();
            assert!(discard.take(&packet));
        };
        [(0, 0), (1, 0), (0, 1), (0, 4), (1, 1), (0, 3), (0, 3), (0, 5), (9, 0)]
            .into_iter()
            .for_each(|(f, s)| take(f, s));
        assert!(discard.take(b"short") && !discard.take(&[0; 9217]));
        let read =
            [&counters.packets, &counters.missing, &counters.reordered, &counters.strange].map(Counter::get);
        assert_eq!(read, [10, 2, 2, 2]);
        assert_eq!(counters.by_flow.iter().map(Counter::get).collect::<Vec<_>>(), [6, 2]);
    }

    #[test]
    fn a_long_packet_has_slots_in_a_row() {
        let counters = Arc::new(DiscardCounters::new(1));
        let mut discard = Discard::new(counters.clone());
        for sequence in 0..2 * SLOTS as u64 {
            let stamp = Stamp { flow: 0, sequence, due: 0 }.to_bytes();
            assert!(discard.take(&[&vec![7; 9018 - stamp.len()][..], &stamp].concat()));
        }
        assert_eq!((counters.packets.get(), counters.missing.get(), counters.strange.get()), (2048, 0, 0));
    }

    #[test]
    fn how_late_packets_are_is_noted_of_those_that_had_a_time() {
        let latency = Some(Histogram::default());
        let counters = Arc::new(DiscardCounters { latency, ..DiscardCounters::new(1) });
        let mut discard = Discard::new(counters.clone());
        let hour = 3600 * crate::clock::cycles_per_second();
        let start = cycles().max(1);
        for (sequence, due) in [0, start, start + hour].into_iter().enumerate() {
            assert!(discard.take(&Stamp { flow: 0, sequence: sequence as u64, due }.to_bytes()));
        }
        let elapsed = cycles() - start;
        let counts = counters.latency.as_ref().map(Histogram::counts).unwrap();
        assert_eq!(counts.iter().sum::<u64>(), 2);
        assert!(counts[0] >= 1, "what comes before its time is not late");
        let latest = counts.iter().rposition(|count| *count > 0).unwrap();
        assert!(latest == 0 || histogram::highest(latest - 1) < elapsed, "not later than now");
    }
}
