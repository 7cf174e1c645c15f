//! A port without a network: frames that lie in memory are presented again and again, as fast as the worker takes them or each at its
//! time. For measuring and for tests.
//!
//! A worker has some streams, each with its frames and a [`Pace`] that control may change while it runs. A stream with a rate does not
//! wait for the worker: what is due waits as in a NIC's receive ring, in the order in which it was due, and what finds that
//! full is missed: counted, never presented. With early classes what is urgent has a ring of its own, half as large, as an uplink's
//! queue has then, and is presented apart.
//!
//! Each frame is stamped in its last bytes with the number of its flow, a number that counts within the flow, and when it was due, so
//! that whoever takes it (`discard`) can tell loss from reordering, and how late it is. What is sent out here is counted and thrown away.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::clock::cycles;
use crate::counters::Counter;
use crate::frame::{BURST, Burst, FramePool};

/// Bytes of a [`Stamp`].
pub const STAMP: usize = 20;

/// Frames that are due and wait for the worker, all its streams together: as many as a usual receive ring holds.
pub const WAITING_MAX: usize = 2048;

/// The same of urgent streams, if they have a ring of their own: as large as that of a second AF_XDP socket.
pub const URGENT_WAITING_MAX: usize = WAITING_MAX / 2;

/// What the last bytes of a frame say.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stamp {
    /// Which flow.
    pub flow: u32,
    /// Counts the frames of the flow, from 0.
    pub sequence: u64,
    /// When it was due, in [`cycles`]; 0 if it had no time.
    pub due: u64,
}

impl Stamp {
    /// Big-endian, like everything on a wire.
    #[inline]
    pub fn to_bytes(self) -> [u8; STAMP] {
        let mut bytes = [0; STAMP];
        if let Some((flow, rest)) = bytes.split_first_chunk_mut::<4>()
            && let Some((sequence, due)) = rest.split_first_chunk_mut::<8>()
        {
            *flow = self.flow.to_be_bytes();
            *sequence = self.sequence.to_be_bytes();
            due.copy_from_slice(&self.due.to_be_bytes());
        }
        bytes
    }

    /// Writes over what is new in a stamp that was made with the flow, and 0 for the rest.
    #[inline]
    fn renew(bytes: &mut [u8; STAMP], sequence: u64, due: u64) {
        if let Some((_flow, rest)) = bytes.split_first_chunk_mut::<4>()
            && let Some((at, rest)) = rest.split_first_chunk_mut::<8>()
        {
            *at = sequence.to_be_bytes();
            if due != 0 {
                rest.copy_from_slice(&due.to_be_bytes());
            }
        }
    }

    /// Of a packet; `None` if it is too short.
    #[inline]
    pub fn of(packet: &[u8]) -> Option<Stamp> {
        let bytes: &[u8; STAMP] = packet.last_chunk()?;
        let (flow, rest) = bytes.split_first_chunk::<4>()?;
        let (sequence, due) = rest.split_first_chunk::<8>()?;
        Some(Stamp {
            flow: u32::from_be_bytes(*flow),
            sequence: u64::from_be_bytes(*sequence),
            due: u64::from_be_bytes(due.try_into().ok()?),
        })
    }
}

/// How fast a stream goes.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Speed {
    /// No frames.
    Stopped,
    /// As fast as the worker takes them.
    Full,
    /// A frame whenever so many [`cycles`] have passed; up to some seconds.
    Every(f64),
}

/// A stream's speed, which control sets and the worker looks at before each burst, and what came of it.
#[derive(Debug)]
pub struct Pace {
    /// [`cycles`] between frames, the lower half of the bits behind the point; or [`FULL`] or [`STOPPED`].
    interval: AtomicU64,
    /// Frames that were due, of a stream with a rate: presented, missed or waiting.
    pub due: Counter,
    /// Frames that were due when [`WAITING_MAX`] others waited (or [`URGENT_WAITING_MAX`] urgent ones), and so were never presented.
    pub missed: Counter,
}

const FULL: u64 = 0;
const STOPPED: u64 = u64::MAX;
/// Bits behind the point of a time.
const FRACTION_BITS: u32 = 32;

impl Pace {
    /// To begin with.
    pub fn new(speed: Speed) -> Pace {
        let pace =
            Pace { interval: AtomicU64::new(STOPPED), due: Counter::default(), missed: Counter::default() };
        pace.set(speed);
        pace
    }

    /// From the worker's next look on.
    pub fn set(&self, speed: Speed) {
        let interval = match speed {
            Speed::Stopped => STOPPED,
            Speed::Full => FULL,
            Speed::Every(cycles) => {
                ((cycles * (1u64 << FRACTION_BITS) as f64) as u64).clamp(FULL + 1, STOPPED - 1)
            }
        };
        self.interval.store(interval, Relaxed);
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

/// Frames that are presented in turn, and how fast. Streams of one worker may have frames of the same flow, if all of them are urgent or
/// none is: else the flow is overtaken by itself.
#[derive(Clone, Debug)]
pub struct ReplayStream {
    /// The frames.
    pub frames: Vec<ReplayFrame>,
    /// How fast; whoever holds it too can change that.
    pub pace: Arc<Pace>,
    /// What tells the presentations apart, besides the stamp.
    pub field: Option<Field>,
    /// With early classes its frames are in the urgent ring, whatever the rules say of them.
    pub is_urgent: bool,
}

/// Four bytes of a stream's frames that have another number each time one is presented, big-endian: part of an address, for one.
/// The stamp is written after it.
#[derive(Clone, Debug)]
pub struct Field {
    /// Where in the frame it begins. A frame that ends before its end goes as it is.
    pub at: usize,
    /// What is written there.
    pub numbers: Numbers,
}

/// Numbers without an end, of a range.
#[derive(Clone, Debug)]
pub struct Numbers {
    first: u32,
    count: u32,
    /// Of those that rise, the next; of those at random, where the generator is.
    state: u64,
    is_random: bool,
}

impl Numbers {
    /// One after the other, `count` of them from `first` on, and again.
    pub fn rising(first: u32, count: u32) -> Numbers {
        Numbers { first, count, state: 0, is_random: false }
    }

    /// At random, each as often as any other; the same in every run.
    pub fn random(first: u32, count: u32) -> Numbers {
        Numbers { first, count, state: 1, is_random: true }
    }
}

impl Iterator for Numbers {
    type Item = u32;

    #[inline]
    fn next(&mut self) -> Option<u32> {
        let number = if self.is_random {
            // Knuth's MMIX generator, of which the upper half is good.
            self.state =
                self.state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((self.state >> 32) * u64::from(self.count)) >> 32
        } else {
            let number = self.state;
            self.state = if number + 1 < u64::from(self.count) { number + 1 } else { 0 };
            number
        };
        Some(self.first.wrapping_add(number as u32))
    }
}

/// One worker's frames.
#[derive(Debug)]
pub struct Replay {
    streams: Box<[Stream]>,
    /// Of the normal streams, or of all.
    normal: Waiting,
    /// Of the urgent ones, with early classes.
    urgent: Waiting,
    /// By flow: the number that its next frame has.
    sequences: Box<[u64]>,
}

/// What a receive ring is to the streams whose frames go through it.
#[derive(Debug)]
struct Waiting {
    /// What is due, oldest first.
    due: VecDeque<Arrival>,
    /// How many there may be.
    most: usize,
    /// The stream at full speed that is next.
    turn: usize,
}

impl Waiting {
    fn new(most: usize) -> Waiting {
        Waiting { due: VecDeque::with_capacity(most), most, turn: 0 }
    }

    fn has_room(&self) -> bool {
        self.due.len() < self.most
    }
}

/// A stream and how far it is.
#[derive(Debug)]
struct Stream {
    frames: Box<[ReplayFrame]>,
    next: usize,
    field: Option<Field>,
    /// Its frames are in the urgent ring.
    is_apart: bool,
    pace: Arc<Pace>,
    /// The pace's interval at the last look.
    interval: u64,
    /// When the next frame is due, with [`FRACTION_BITS`] behind the point.
    next_due: u128,
}

/// A frame of this stream, due then.
#[derive(Clone, Copy, Debug)]
struct Arrival {
    stream: usize,
    due: u64,
}

impl Replay {
    /// Presents what these streams hold: a few of them, each costs a look for each burst. With `early` the urgent ones apart.
    pub fn new(streams: Vec<ReplayStream>, early: bool) -> Replay {
        let frames = streams.iter().flat_map(|stream| &stream.frames);
        let flows = frames.map(|frame| frame.flow as usize + 1).max().unwrap_or(0);
        let stream = |stream: ReplayStream| {
            let is_apart = early && stream.is_urgent;
            Stream::new(stream, is_apart)
        };
        Replay {
            streams: streams.into_iter().map(stream).collect(),
            normal: Waiting::new(WAITING_MAX),
            urgent: Waiting::new(URGENT_WAITING_MAX),
            sequences: vec![0; flows].into(),
        }
    }

    /// Nothing of it is due at a time.
    #[inline]
    pub fn can_wait(&self) -> bool {
        self.streams.iter().all(Stream::stays_at_full_speed)
    }

    /// All streams have stopped, and nothing waits.
    pub fn is_at_rest(&self) -> bool {
        let nothing_waits = self.normal.due.is_empty() && self.urgent.due.is_empty();
        nothing_waits && self.streams.iter().all(Stream::has_stopped)
    }

    /// There is something that [`present_urgent`](Self::present_urgent) should see. The clock is read only if none of it waits and an urgent
    /// stream has a rate.
    #[inline]
    pub fn has_urgent(&self) -> bool {
        self.has_urgent_at(cycles)
    }

    #[inline]
    fn has_urgent_at(&self, clock: impl FnOnce() -> u64) -> bool {
        if !self.urgent.due.is_empty() {
            return true;
        }
        let mut apart = self.streams.iter().filter(|stream| stream.is_apart).peekable();
        apart.peek().is_some() && {
            let now = clock();
            apart.any(|stream| stream.wants(now))
        }
    }

    /// A burst of what is not in the urgent ring, as far as there are free chunks. Returns how many frames.
    #[inline]
    pub fn present(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        self.present_at(cycles, false, pool, burst)
    }

    /// The same of what is.
    #[inline]
    pub fn present_urgent(&mut self, pool: &mut FramePool, burst: &mut Burst) -> usize {
        self.present_at(cycles, true, pool, burst)
    }

    /// The clock is read once, and only if there is a stream with a rate.
    #[inline]
    fn present_at(
        &mut self,
        clock: impl FnOnce() -> u64,
        is_urgent: bool,
        pool: &mut FramePool,
        burst: &mut Burst,
    ) -> usize {
        let wanted = burst.room().min(BURST);
        let mut count = 0;
        if !self.can_wait() {
            self.look(clock(), is_urgent);
            count = self.present_waiting(is_urgent, wanted, pool, burst);
        }
        let Replay { streams, normal, urgent, sequences } = self;
        let turn = if is_urgent { &mut urgent.turn } else { &mut normal.turn };
        for _ in 0..streams.len() {
            let Some(stream) = streams.get_mut(*turn) else { break };
            let is_full_speed = stream.interval == FULL && stream.is_apart == is_urgent;
            if is_full_speed {
                let room = wanted - count;
                for _ in 0..room {
                    let put = stream.put_next(0, sequences, pool, burst);
                    let Some(is_put) = put else { break };
                    count += usize::from(is_put);
                }
            }
            *turn = if *turn + 1 < streams.len() { *turn + 1 } else { 0 };
            if is_full_speed {
                break; // the others of this kind have their turns
            }
        }
        count
    }

    /// What waits, oldest first.
    fn present_waiting(
        &mut self,
        is_urgent: bool,
        wanted: usize,
        pool: &mut FramePool,
        burst: &mut Burst,
    ) -> usize {
        let Replay { streams, normal, urgent, sequences } = self;
        let waiting = if is_urgent { urgent } else { normal };
        let mut count = 0;
        while count < wanted
            && let Some(Arrival { stream, due }) = waiting.due.front().copied()
            && let Some(stream) = streams.get_mut(stream)
            && let Some(is_put) = stream.put_next(due, sequences, pool, burst)
        {
            let _presented = waiting.due.pop_front();
            count += usize::from(is_put);
        }
        count
    }

    /// Lets wait what has become due of one ring's streams, as far as there is room; the rest is missed. Then new speeds count. The other
    /// ring's have their own looks: nothing urgent waits for what is done for many others.
    fn look(&mut self, now: u64, is_urgent: bool) {
        let Replay { streams, normal, urgent, .. } = self;
        let waiting = if is_urgent { urgent } else { normal };
        while waiting.has_room() {
            let its = streams.iter_mut().enumerate().filter(|(_, stream)| stream.is_apart == is_urgent);
            let due = its.filter(|(_, stream)| stream.is_due(now));
            let Some((index, stream)) = due.min_by_key(|(_, stream)| stream.next_due) else { break };
            waiting.due.push_back(Arrival { stream: index, due: stream.arrive() });
        }
        for stream in streams.iter_mut().filter(|stream| stream.is_apart == is_urgent) {
            stream.miss(now);
            stream.take_over_pace(now);
        }
    }
}

impl Stream {
    fn new(stream: ReplayStream, is_apart: bool) -> Stream {
        let interval = stream.pace.interval.load(Relaxed);
        let mut frames = stream.frames;
        for frame in &mut frames {
            if let Some(last) = frame.bytes.last_chunk_mut() {
                *last = Stamp { flow: frame.flow, sequence: 0, due: 0 }.to_bytes();
            }
        }
        Stream {
            frames: frames.into(),
            next: 0,
            field: stream.field,
            is_apart,
            pace: stream.pace,
            // One with a rate begins at the first look.
            interval: if interval == FULL { FULL } else { STOPPED },
            next_due: 0,
        }
    }

    #[inline]
    fn stays_at_full_speed(&self) -> bool {
        self.interval == FULL && self.pace.interval.load(Relaxed) == FULL
    }

    fn has_stopped(&self) -> bool {
        self.frames.is_empty() || self.interval == STOPPED && self.pace.interval.load(Relaxed) == STOPPED
    }

    fn has_rate(&self) -> bool {
        self.interval != FULL && self.interval != STOPPED
    }

    fn is_due(&self, now: u64) -> bool {
        self.has_rate() && self.next_due <= exact(now)
    }

    /// A look would find something of it: a frame, or another speed.
    fn wants(&self, now: u64) -> bool {
        self.stays_at_full_speed() || self.is_due(now) || self.pace.interval.load(Relaxed) != self.interval
    }

    /// The next frame is due: when.
    fn arrive(&mut self) -> u64 {
        let due = (self.next_due >> FRACTION_BITS) as u64;
        self.next_due += u128::from(self.interval);
        self.pace.due.add(1);
        due
    }

    /// What is due and found no room.
    fn miss(&mut self, now: u64) {
        if self.is_due(now) {
            let missed = (exact(now) - self.next_due) / u128::from(self.interval) + 1;
            self.next_due += missed * u128::from(self.interval);
            self.pace.due.add(missed as u64);
            self.pace.missed.add(missed as u64);
        }
    }

    /// What was due until now went at the old speed; the first frame at the new one is not later than it would have been.
    fn take_over_pace(&mut self, now: u64) {
        let interval = self.pace.interval.load(Relaxed);
        if interval == self.interval {
            return;
        }
        let next_due = exact(now) + u128::from(interval);
        self.next_due = if self.has_rate() { self.next_due.min(next_due) } else { next_due };
        self.interval = interval;
    }

    /// Puts the next frame into the burst. `None` if there is none or no chunk for it; false if it does not fit a chunk: nobody sees it.
    #[inline]
    fn put_next(
        &mut self,
        due: u64,
        sequences: &mut [u64],
        pool: &mut FramePool,
        burst: &mut Burst,
    ) -> Option<bool> {
        let frame = self.frames.get(self.next)?;
        let mut chunk = pool.take_for(frame.bytes.len())?;
        self.next = if self.next + 1 < self.frames.len() { self.next + 1 } else { 0 };
        let sequence = sequences.get_mut(frame.flow as usize);
        let number = sequence.as_ref().map_or(0, |next| **next);
        let filled = chunk.reset(0, frame.bytes.len()).is_some_and(|room| {
            room.copy_from_slice(&frame.bytes);
            if let Some(Field { at, numbers }) = &mut self.field
                && let Some(field) = room.get_mut(*at..*at + 4)
                && let Some(number) = numbers.next()
            {
                field.copy_from_slice(&number.to_be_bytes());
            }
            room.last_chunk_mut().map(|last| Stamp::renew(last, number, due)).is_some()
        });
        if !filled {
            pool.put(chunk);
            return Some(false);
        }
        if let Some(next) = sequence {
            *next += 1;
        }
        let _room = burst.push(chunk); // as many as it takes
        Some(true)
    }
}

/// With [`FRACTION_BITS`] behind the point.
fn exact(cycles: u64) -> u128 {
    u128::from(cycles) << FRACTION_BITS
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(flow: u32, fill: u8) -> ReplayFrame {
        ReplayFrame { flow, bytes: vec![fill; 30] }
    }

    fn stream(frames: Vec<ReplayFrame>, speed: Speed) -> (ReplayStream, Arc<Pace>) {
        let pace = Arc::new(Pace::new(speed));
        (ReplayStream { frames, pace: pace.clone(), field: None, is_urgent: false }, pace)
    }

    /// The worker's end: takes a burst at a time on a clock of its own.
    struct Taker {
        replay: Replay,
        pool: FramePool,
    }

    impl Taker {
        fn new(streams: Vec<ReplayStream>) -> Taker {
            Taker { replay: Replay::new(streams, true), pool: FramePool::anonymous(2048, 64, 256) }
        }

        /// First bytes and stamps of one burst.
        fn take(&mut self, now: u64) -> Vec<(u8, Stamp)> {
            self.take_of(false, now)
        }

        /// The same, of the urgent ring or of the other.
        fn take_of(&mut self, is_urgent: bool, now: u64) -> Vec<(u8, Stamp)> {
            let mut burst = Burst::new();
            let count = self.replay.present_at(|| now, is_urgent, &mut self.pool, &mut burst);
            assert_eq!(count, burst.len());
            let seen = burst.iter().map(|frame| (frame.bytes()[0], Stamp::of(frame.bytes()).unwrap()));
            let seen = seen.collect();
            burst.drain().for_each(|frame| self.pool.put(frame));
            seen
        }

        /// When those were due that are presented until nothing waits.
        fn dues(&mut self, now: u64) -> Vec<u64> {
            let bursts = std::iter::from_fn(|| Some(self.take(now)).filter(|burst| !burst.is_empty()));
            bursts.flatten().map(|(_, stamp)| stamp.due).collect()
        }
    }

    #[test]
    fn frames_come_in_turn_and_count_within_their_flow() {
        let (full, pace) = stream(vec![frame(0, 1), frame(1, 2), frame(0, 3)], Speed::Full);
        let mut replay = Replay::new(vec![full], false);
        let mut pool = FramePool::anonymous(2048, 7, 256);
        let mut burst = Burst::new();
        assert_eq!(replay.present(&mut pool, &mut burst), 7, "no more than there are chunks");
        let seen: Vec<_> = burst
            .iter()
            .map(|frame| (frame.bytes()[0], Stamp::of(frame.bytes()).unwrap()))
            .map(|(fill, stamp)| (fill, stamp.flow, stamp.sequence, stamp.due))
            .collect();
        let expected = [(1, 0, 0), (2, 1, 0), (3, 0, 1), (1, 0, 2), (2, 1, 1), (3, 0, 3), (1, 0, 4)];
        assert_eq!(seen, expected.map(|(fill, flow, sequence)| (fill, flow, sequence, 0)));
        assert_eq!((pace.due.get(), pace.missed.get()), (0, 0));
        burst.drain().for_each(|frame| pool.put(frame));
    }

    #[test]
    fn a_field_has_the_next_number_in_each_frame_that_is_long_enough() {
        let frames = [60, 22].map(|len| ReplayFrame { flow: 0, bytes: vec![7; len] });
        let (mut full, _pace) = stream(frames.into(), Speed::Full);
        full.field = Some(Field { at: 20, numbers: Numbers::rising(0x0100_0000, 3) });
        let mut replay = Replay::new(vec![full], false);
        let mut pool = FramePool::anonymous(2048, 8, 256);
        let mut burst = Burst::new();
        replay.present(&mut pool, &mut burst);
        let long = burst.iter().filter(|frame| frame.len() == 60);
        let fields: Vec<_> = long.map(|frame| frame.bytes()[19..25].to_vec()).collect();
        assert_eq!(fields, [0, 1, 2, 0].map(|number| vec![7, 1, 0, 0, number, 7]));
        let short = burst.iter().filter(|frame| frame.len() == 22).map(|frame| Stamp::of(frame.bytes()));
        let numbers: Vec<u64> = short.map(|stamp| stamp.unwrap().sequence).collect();
        assert_eq!(numbers, [1, 3, 5, 7], "as it is, but for the stamp");
        burst.drain().for_each(|frame| pool.put(frame));
    }

    #[test]
    fn random_numbers_meet_all_of_their_range_alike() {
        let mut counts = [0; 100];
        for number in Numbers::random(50, 100).take(100_000) {
            counts[number as usize - 50] += 1;
        }
        assert!(counts.iter().all(|count| (800..1200).contains(count)), "{counts:?}");
        assert!(Numbers::random(7, 1).take(5).all(|number| number == 7));
    }

    #[test]
    fn a_frame_that_fits_no_chunk_is_left_out() {
        for speed in [Speed::Full, Speed::Every(1.0)] {
            let (long, _pace) = stream(vec![ReplayFrame { flow: 0, bytes: vec![0; 5000] }], speed);
            let mut taker = Taker::new(vec![long]);
            assert_eq!((taker.take(10), taker.take(20)), (vec![], vec![]));
            assert_eq!(taker.pool.available(), 64);
        }
    }

    #[test]
    fn a_rate_is_exact_however_seldom_the_worker_looks() {
        let (paced, pace) = stream(vec![frame(0, 1)], Speed::Every(10.75));
        let mut taker = Taker::new(vec![paced]);
        assert_eq!(taker.dues(1000), [], "the first is due an interval after the first look");
        let (mut dues, mut now) = (Vec::new(), 1000);
        for step in [1, 10, 11, 500, 3, 4096, 1, 1, 10_000].into_iter().cycle().take(900) {
            now += step;
            dues.extend(taker.dues(now));
        }
        let expected: Vec<u64> = (1..).map(|n| 1000 + n * 43 / 4).take_while(|due| *due <= now).collect();
        assert_eq!(dues, expected);
        assert_eq!((pace.due.get(), pace.missed.get()), (dues.len() as u64, 0));
    }

    #[test]
    fn what_finds_no_room_is_missed_and_counts_in_no_flow() {
        let (paced, pace) = stream(vec![frame(0, 1)], Speed::Every(2.0));
        let mut taker = Taker::new(vec![paced]);
        assert_eq!(taker.dues(0), []);
        assert_eq!(taker.dues(20_000).len(), WAITING_MAX, "of 10,000");
        assert_eq!((pace.due.get(), pace.missed.get()), (10_000, 10_000 - WAITING_MAX as u64));
        let next = taker.take(20_003);
        assert_eq!(next, [(1, Stamp { flow: 0, sequence: WAITING_MAX as u64, due: 20_002 })]);
        // A worker that takes one burst after so long and then looks again: there is room for a burst.
        let burst = taker.take(40_000).len() as u64;
        let missed = pace.missed.get();
        let _burst = taker.take(40_000 + 2 * 100);
        assert_eq!(pace.missed.get() - missed, 100 - burst);
    }

    #[test]
    fn without_free_chunks_frames_wait() {
        let (paced, pace) = stream(vec![frame(0, 1)], Speed::Every(1.0));
        let mut taker = Taker::new(vec![paced]);
        assert_eq!(taker.dues(0), []);
        let held: Vec<_> = std::iter::from_fn(|| taker.pool.take()).collect();
        assert_eq!(taker.take(5), []);
        held.into_iter().for_each(|chunk| taker.pool.put(chunk));
        assert_eq!(taker.dues(5), [1, 2, 3, 4, 5]);
        assert_eq!((pace.due.get(), pace.missed.get()), (5, 0));
    }

    #[test]
    fn streams_are_merged_by_time_and_share_the_numbers_of_a_flow() {
        let (slow, _pace) = stream(vec![frame(0, 1), frame(1, 2)], Speed::Every(100.0));
        let (fast, _pace) = stream(vec![frame(1, 3)], Speed::Every(40.0));
        let mut taker = Taker::new(vec![slow, fast]);
        assert_eq!(taker.dues(0), []);
        let seen = taker.take(210).into_iter();
        let seen: Vec<_> = seen.map(|(fill, stamp)| (fill, stamp.flow, stamp.sequence, stamp.due)).collect();
        let expected = [
            (3, 1, 0, 40),
            (3, 1, 1, 80),
            (1, 0, 0, 100),
            (3, 1, 2, 120),
            (3, 1, 3, 160),
            (2, 1, 4, 200),
            (3, 1, 5, 200),
        ];
        assert_eq!(seen, expected);
    }

    #[test]
    fn a_new_speed_counts_from_the_look_that_sees_it() {
        let (changed, pace) = stream(vec![frame(0, 1)], Speed::Stopped);
        let mut taker = Taker::new(vec![changed]);
        assert_eq!(taker.dues(1_000_000), [], "stopped");
        pace.set(Speed::Every(100.0));
        assert_eq!((taker.dues(1_000_000), taker.dues(1_000_250)), (vec![], vec![1_000_100, 1_000_200]));
        pace.set(Speed::Every(10.0));
        assert_eq!(taker.dues(1_000_410), [1_000_300, 1_000_400], "until then at the old speed");
        assert_eq!(taker.dues(1_000_445), [1_000_420, 1_000_430, 1_000_440]);
        pace.set(Speed::Every(1000.0));
        assert_eq!(taker.dues(1_000_446), []);
        assert_eq!(taker.dues(1_002_000), [1_000_450, 1_001_450], "one has its time already");
        pace.set(Speed::Full);
        assert_eq!(taker.take(1_002_000).len(), 64);
        pace.set(Speed::Stopped);
        assert_eq!((taker.take(1_003_000).len(), taker.take(2_000_000).len()), (0, 0));
        assert_eq!((pace.due.get(), pace.missed.get()), (9, 0));
    }

    #[test]
    fn streams_at_full_speed_take_turns_after_those_with_a_rate() {
        let (first, _pace) = stream(vec![frame(0, 1)], Speed::Full);
        let (second, _pace) = stream(vec![frame(1, 2)], Speed::Full);
        let (paced, _pace) = stream(vec![frame(2, 3)], Speed::Every(10.0));
        let mut taker = Taker::new(vec![first, paced, second]);
        let mut fills = |now| {
            let burst = taker.take(now);
            [1, 2, 3].map(|fill| burst.iter().filter(|(of, _)| *of == fill).count())
        };
        assert_eq!(fills(0), [64, 0, 0]);
        assert_eq!(fills(30), [0, 61, 3]);
        assert_eq!(fills(40), [63, 0, 1]);
    }

    fn urgent(frames: Vec<ReplayFrame>, speed: Speed) -> (ReplayStream, Arc<Pace>) {
        let (stream, pace) = stream(frames, speed);
        (ReplayStream { is_urgent: true, ..stream }, pace)
    }

    #[test]
    fn with_early_classes_urgent_frames_wait_in_a_ring_of_their_own() {
        let (flood, flood_pace) = stream(vec![frame(0, 1)], Speed::Every(1.0));
        let (rare, rare_pace) = urgent(vec![frame(1, 2)], Speed::Every(100.0));
        let mut taker = Taker::new(vec![flood, rare]);
        assert_eq!((taker.take(0), taker.take_of(true, 0)), (vec![], vec![]));
        let first = taker.take_of(true, 5_050);
        let dues: Vec<u64> = first.iter().map(|(_, stamp)| stamp.due).collect();
        assert_eq!(dues, (1..=50).map(|n| 100 * n).collect::<Vec<_>>(), "all, though the other ring is full");
        assert!(first.iter().all(|(fill, _)| *fill == 2));
        assert!(taker.take(5_050).iter().all(|(fill, _)| *fill == 1));
        assert_eq!((rare_pace.due.get(), rare_pace.missed.get()), (50, 0));
        assert_eq!((flood_pace.due.get(), flood_pace.missed.get()), (5_050, 5_050 - WAITING_MAX as u64));
        // A flood of urgent ones takes no place of the others.
        rare_pace.set(Speed::Every(1.0));
        flood_pace.set(Speed::Every(100.0));
        let _until_now = taker.take_of(true, 5_051);
        while !taker.take(5_051).is_empty() {}
        while !taker.take_of(true, 5_051).is_empty() {}
        let (missed, of_flood) = (rare_pace.missed.get(), flood_pace.missed.get());
        assert_eq!(taker.dues(10_051).len(), 50);
        assert_eq!(taker.take_of(true, 10_051).len(), BURST);
        assert_eq!(rare_pace.missed.get() - missed, 5_000 - URGENT_WAITING_MAX as u64);
        assert_eq!(flood_pace.missed.get(), of_flood);
    }

    #[test]
    fn without_early_classes_urgent_frames_wait_with_the_others() {
        let (normal, _pace) = stream(vec![frame(0, 1)], Speed::Every(20.0));
        let (rare, _pace) = urgent(vec![frame(1, 2)], Speed::Every(30.0));
        let replay = Replay::new(vec![normal, rare], false);
        let mut taker = Taker { replay, pool: FramePool::anonymous(2048, 64, 256) };
        assert_eq!(taker.take(0), []);
        assert!(!taker.replay.has_urgent());
        assert_eq!(taker.take_of(true, 65), []);
        let fills: Vec<u8> = taker.take(65).iter().map(|(fill, _)| *fill).collect();
        assert_eq!(fills, [1, 2, 1, 1, 2], "by time");
    }

    #[test]
    fn whether_there_is_something_urgent_is_told_before_a_look() {
        let (normal, _pace) = stream(vec![frame(0, 1)], Speed::Full);
        let (rare, pace) = urgent(vec![frame(1, 2)], Speed::Stopped);
        let mut taker = Taker::new(vec![normal, rare]);
        let has = |taker: &Taker, now| taker.replay.has_urgent_at(|| now);
        assert!(!has(&taker, 0), "it is stopped");
        pace.set(Speed::Every(10.0));
        assert!(has(&taker, 0), "another speed wants a look");
        assert_eq!(taker.take_of(true, 0), []);
        assert_eq!([9, 10, 1000].map(|now| has(&taker, now)), [false, true, true]);
        assert_eq!(taker.take_of(true, 1000).len(), BURST);
        assert!(has(&taker, 1000), "the rest waits");
        assert_eq!(taker.take_of(true, 1000).len(), 100 - BURST);
        assert!(!has(&taker, 1000));
        pace.set(Speed::Full);
        assert_eq!(taker.take_of(true, 1000).len(), BURST);
        assert!(has(&taker, 1000), "always");
        assert_eq!(taker.take(1000)[0].0, 1, "the other has its own turns");
    }
}
