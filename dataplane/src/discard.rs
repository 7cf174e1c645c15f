//! A tenant without a process: takes packets as a ring would, copying each into memory of its own, checks their order within each
//! flow, and counts. For measuring and for tests; what it takes must be stamped by `replay`.

use std::sync::Arc;

use crate::counters::Counter;
use crate::replay::Stamp;

/// Places that packets are copied to in turn: as many as a usual ring has.
const SLOTS: usize = 1024;
/// Bytes of each.
const SLOT: usize = 2048;

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
    /// For so many flows.
    pub fn new(flows: usize) -> (Discard, Arc<DiscardCounters>) {
        let counters = Arc::new(DiscardCounters {
            packets: Counter::default(),
            reordered: Counter::default(),
            missing: Counter::default(),
            strange: Counter::default(),
            by_flow: std::iter::repeat_with(Counter::default).take(flows).collect(),
        });
        let memory = vec![0; SLOTS * SLOT].into();
        (Discard { memory, slot: 0, expected: vec![0; flows].into(), counters: counters.clone() }, counters)
    }

    /// Takes a packet; false if it fits no slot.
    #[inline]
    pub fn take(&mut self, packet: &[u8]) -> bool {
        let start = self.slot * SLOT;
        self.slot = (self.slot + 1) % SLOTS;
        let slot = self.memory.get_mut(start..start + SLOT).and_then(|slot| slot.get_mut(..packet.len()));
        let Some(slot) = slot else { return false };
        slot.copy_from_slice(packet);
        self.counters.packets.add(1);
        let Some(stamp) = Stamp::of(slot) else {
            self.counters.strange.add(1);
            return true;
        };
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loss_and_reordering_are_told_apart_for_each_flow() {
        let (mut discard, counters) = Discard::new(2);
        let mut take = |flow, sequence| {
            let packet = [&[7; 52][..], &Stamp { flow, sequence }.to_bytes()].concat();
            assert!(discard.take(&packet));
        };
        [(0, 0), (1, 0), (0, 1), (0, 4), (1, 1), (0, 3), (0, 3), (0, 5), (9, 0)]
            .into_iter()
            .for_each(|(f, s)| take(f, s));
        assert!(discard.take(b"short") && !discard.take(&[0; 3000]));
        let read =
            [&counters.packets, &counters.missing, &counters.reordered, &counters.strange].map(Counter::get);
        assert_eq!(read, [10, 2, 2, 2]);
        assert_eq!(counters.by_flow.iter().map(Counter::get).collect::<Vec<_>>(), [6, 2]);
    }
}
