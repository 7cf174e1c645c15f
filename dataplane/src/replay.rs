//! A port without a network: frames that lie in memory are presented again and again, as fast as the worker takes them. For
//! measuring and for tests.
//!
//! Each frame is stamped in its last bytes with the number of its flow and a number that counts within the flow, so that
//! whoever takes it (`discard`) can tell loss from reordering. What is sent out here is counted and thrown away.

use crate::frame::{BURST, Burst, FramePool};

/// Bytes of a [`Stamp`].
pub const STAMP: usize = 12;

/// What the last bytes of a frame say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Which flow.
    pub flow: u32,
    /// Counts the frames of the flow, from 0.
    pub sequence: u64,
}

impl Stamp {
    /// Big-endian, like everything on a wire.
    #[inline]
    pub fn to_bytes(self) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        if let Some((flow, sequence)) = bytes.split_first_chunk_mut::<4>() {
            *flow = self.flow.to_be_bytes();
            sequence.copy_from_slice(&self.sequence.to_be_bytes());
        }
        bytes
    }

    /// Of a packet; `None` if it is too short.
    #[inline]
    pub fn of(packet: &[u8]) -> Option<Stamp> {
        let bytes: &[u8; STAMP] = packet.last_chunk()?;
        let (flow, sequence) = bytes.split_first_chunk::<4>()?;
        Some(Stamp {
            flow: u32::from_be_bytes(*flow),
            sequence: u64::from_be_bytes(sequence.try_into().ok()?),
        })
    }
}

/// A frame that is presented again and again.
#[derive(Clone, Debug)]
pub struct ReplayFrame {
    /// Which flow it belongs to, below the number of flows.
    pub flow: u32,
    /// The frame as it would come from the wire. Its last [`STAMP`] bytes are written over, so it
    /// must have no checksum over them.
    pub bytes: Vec<u8>,
}

/// One worker's frames.
#[derive(Clone, Debug)]
pub struct Replay {
    frames: Box<[ReplayFrame]>,
    next: usize,
    /// By flow: the number that its next frame has.
    sequences: Box<[u64]>,
}

impl Replay {
    /// Presents these frames in turn.
    pub fn new(frames: Vec<ReplayFrame>) -> Replay {
        let flows = frames.iter().map(|frame| frame.flow as usize + 1).max().unwrap_or(0);
        Replay { frames: frames.into(), next: 0, sequences: vec![0; flows].into() }
    }

    /// A burst, as far as there are free chunks. Returns how many frames.
    #[inline]
    pub fn present(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        let wanted = burst.room().min(BURST);
        let mut count = 0;
        for _ in 0..wanted {
            let Some(frame) = self.frames.get(self.next) else { break };
            let Some(mut chunk) = pool.take() else { break };
            self.next = if self.next + 1 < self.frames.len() { self.next + 1 } else { 0 };
            let sequence = self.sequences.get_mut(frame.flow as usize);
            let stamp = Stamp { flow: frame.flow, sequence: sequence.as_ref().map_or(0, |next| **next) };
            let filled = chunk.reset(0, frame.bytes.len()).is_some_and(|room| {
                room.copy_from_slice(&frame.bytes);
                room.last_chunk_mut().map(|last| *last = stamp.to_bytes()).is_some()
            });
            if !filled {
                pool.put(chunk); // it does not fit: nobody sees it
                continue;
            }
            if let Some(next) = sequence {
                *next += 1;
            }
            let _room = burst.push(chunk); // as many as it takes
            count += 1;
        }
        count
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_in_turn_and_count_within_their_flow() {
        let frame = |flow, fill| ReplayFrame { flow, bytes: vec![fill; 20] };
        let mut replay = Replay::new(vec![frame(0, 1), frame(1, 2), frame(0, 3)]);
        let mut pool = FramePool::anonymous(2048, 7, 256);
        let mut burst = Burst::new();
        assert_eq!(replay.present(&mut pool, &mut burst), 7, "no more than there are chunks");
        let seen: Vec<_> = burst
            .iter()
            .map(|frame| (frame.bytes()[0], Stamp::of(frame.bytes()).unwrap()))
            .map(|(fill, stamp)| (fill, stamp.flow, stamp.sequence))
            .collect();
        assert_eq!(seen, [(1, 0, 0), (2, 1, 0), (3, 0, 1), (1, 0, 2), (2, 1, 1), (3, 0, 3), (1, 0, 4)]);
        burst.drain().for_each(|frame| pool.put(frame));
    }

    #[test]
    fn a_frame_that_fits_no_chunk_is_left_out() {
        let mut replay = Replay::new(vec![ReplayFrame { flow: 0, bytes: vec![0; 5000] }]);
        let (mut pool, mut burst) = (FramePool::anonymous(2048, 4, 256), Burst::new());
        assert_eq!((replay.present(&mut pool, &mut burst), pool.available()), (0, 4));
    }
}
