//! Packets that are longer than a chunk (multi-buffer AF_XDP): how they come and go as several descriptors.
//!
//! Used by [`XskSocket`](super::XskSocket) where a network's MTU needs it; elsewhere nothing of it is there.
//!
//! What the kernel does (Documentation/networking/af_xdp.rst, "Multi-Buffer Support"; Linux 6.6.10 or newer):
//! - The first socket of a UMEM is bound with XDP_USE_SG; the others, a queue's second one too, take it over (`xsk_bind` in
//!   net/xdp/xsk.c reads it from the UMEM's flags, since 6.6.10, by d609f3d228a8 "xsk: add multi-buffer support for sockets sharing umem". Before, in
//!   6.6, they had no such packets: they dropped what was long, and nothing tells that when they are bound). A driver with zero-copy, but with one segment a packet, refuses that, or has the copy mode.
//!   The XDP program must be one for packets in fragments (section "xdp.frags"); it sees the first fragment, where all headers are.
//! - In, copy mode: `__xsk_rcv` fills chunk after chunk from the fill ring and writes a descriptor for each, all but the last with
//!   XDP_PKT_CONTD, or drops the whole packet if the fill ring has not enough chunks (`rx_dropped`) or the rx ring no room for all
//!   (`rx_ring_full`); `xsk_rcv_zc` for drivers with zero-copy likewise. It publishes whole packets only; that a packet is split over two of our looks comes from a burst that is full.
//! - Out: the same flag on all but the last descriptor of a packet; each lies within a chunk, wherever in it (`xp_aligned_validate_desc`
//!   in net/xdp/xsk_queue.h). `__xsk_generic_xmit` takes them one by one, keeps what it has of a packet if its batch ends there, and sends with the
//!   last. With at most MAX_SKB_FRAGS (17) of them; we have 5.
//! - Each descriptor's address comes back in the completion ring, those of a packet one after the other when the device has let go of it.
//!
//! The library can do all of it but name an address that it has not made, so the rx and tx ring are mapped once more, and its own view of these
//! two, which caches indices, is never used.
//!
//! What must hold: of a packet all parts are taken or sent, or none; a packet that cannot be taken is counted in [`Losses`]; one look at a
//! ring takes no more descriptors than a burst of the longest packets has, however many packets are thrown away; and no more large buffers
//! are with the kernel than a socket's [`Share`], for as long as its interface is down they do not come back.

use std::io;
use std::os::fd::BorrowedFd;

use crate::frame::{BURST, Burst, Frame, FramePool, Hand, Part};
use crate::sys;

use super::rings::Ring;
use super::umem::Area;

/// All but the last descriptor of a packet have it (linux/if_xdp.h).
const XDP_PKT_CONTD: u32 = 1;

/// What a socket has for it.
#[derive(Debug)]
pub(super) struct Multi {
    pub(super) rx: Ring,
    pub(super) tx: Ring,
    pub(super) assembly: Assembly,
    /// Of the queue's second socket.
    pub(super) urgent_assembly: Assembly,
    pub(super) losses: Losses,
    /// The large buffers that are sent,
    pub(super) large: Share,
    /// and those on the queue's second socket.
    pub(super) urgent_large: Share,
}

/// How many large buffers a socket may have out at once. Its budget of descriptors is no bound for them: a packet that is a little longer than a
/// chunk takes a whole buffer and two descriptors.
#[derive(Clone, Copy, Debug)]
pub(super) struct Share {
    most: u32,
    lent: u32,
}

impl Share {
    /// That of a queue's two sockets, of `all` large buffers that the worker's sockets may have out, where it sends over so many interfaces.
    /// Urgent packets have a third, whatever the others have; none where there is no second socket.
    pub(super) fn of(all: usize, uplinks: usize, is_early: bool) -> (Share, Share) {
        let all = (all / uplinks.max(1)) as u32;
        let urgent = if is_early { all / 3 } else { 0 };
        (Share { most: all - urgent, lent: 0 }, Share { most: urgent, lent: 0 })
    }

    fn room(&self) -> u32 {
        self.most.saturating_sub(self.lent)
    }
}

/// Packets that have come in, and were thrown away.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Losses {
    /// They were longer than a large buffer.
    pub too_long: u64,
    /// No large buffer was free.
    pub no_buffer: u64,
}

impl Multi {
    /// For a socket that is bound, with rings of this size.
    pub(super) fn open(
        socket: BorrowedFd<'_>,
        ring_size: u32,
        (large, urgent_large): (Share, Share),
    ) -> io::Result<Multi> {
        let offsets = sys::xdp_offsets(socket)?;
        Ok(Multi {
            rx: Ring::map(socket, libc::XDP_PGOFF_RX_RING, &offsets.rx, ring_size)?,
            tx: Ring::map(socket, libc::XDP_PGOFF_TX_RING, &offsets.tx, ring_size)?,
            assembly: Assembly::default(),
            urgent_assembly: Assembly::default(),
            losses: Losses::default(),
            large,
            urgent_large,
        })
    }

    /// A large buffer that was sent is home.
    pub(super) fn large_home(&mut self, is_urgent: bool) {
        let share = if is_urgent { &mut self.urgent_large } else { &mut self.large };
        share.lent = share.lent.saturating_sub(1);
    }
}

/// A packet of several parts that is being put together in a large buffer; each part's chunk goes home at once. It lasts from one look at
/// the ring to the next if the packet's last part was not seen.
#[derive(Debug, Default)]
pub(super) struct Assembly {
    state: State,
}

#[derive(Debug, Default)]
enum State {
    /// The next part is the first of a packet.
    #[default]
    Between,
    /// These parts have come.
    Open(Frame),
    /// Of a packet that is thrown away the last part is still to come.
    Skipping,
}

impl Assembly {
    /// Takes descriptors from the ring as long as the burst has room, and puts the packets that are complete into it. Returns how many
    /// descriptors it took, and how many of their chunks are ours again.
    pub(super) fn receive(
        &mut self,
        (ring, hand, losses, faults): (&mut Ring, Hand, &mut Losses, &mut u64),
        area: &Area,
        pool: &mut FramePool,
        burst: &mut Burst,
    ) -> (u32, u32) {
        let most = (BURST * pool.large_parts()) as u32;
        let arrived = ring.arrived().min(most);
        let (mut taken, mut back) = (0, 0);
        while taken < arrived && burst.room() > 0 {
            let descriptor = ring.take();
            taken += 1;
            let (index, start) = area.locate(descriptor.addr as usize);
            let part = start.and_then(|start| pool.regain(index, start, descriptor.len as usize, hand));
            back += u32::from(part.is_some());
            let is_continued = descriptor.options & XDP_PKT_CONTD != 0;
            if let Some(frame) = self.add(part, is_continued, pool, (losses, &mut *faults)) {
                // There is room: looked at above.
                if let Err(frame) = burst.push(frame) {
                    pool.put(frame);
                }
            }
        }
        ring.release();
        (taken, back)
    }

    /// Adds a part (`None`: the kernel named one that it does not have); returns the packet when it is complete.
    fn add(
        &mut self,
        part: Option<Frame>,
        is_continued: bool,
        pool: &mut FramePool,
        (losses, faults): (&mut Losses, &mut u64),
    ) -> Option<Frame> {
        let state = std::mem::take(&mut self.state);
        let next = match (state, part) {
            (State::Between, Some(part)) if !is_continued => return Some(part),
            (State::Between, Some(part)) => begin(part, pool, losses),
            (State::Open(frame), Some(part)) => go_on(frame, part, pool, losses),
            (State::Skipping, Some(part)) => {
                pool.put(part);
                State::Skipping
            }
            (state, None) => {
                *faults += 1;
                if let State::Open(frame) = state {
                    pool.put(frame);
                }
                State::Skipping
            }
        };
        match (next, is_continued) {
            (next, true) => {
                self.state = next;
                None
            }
            (State::Open(frame), false) => Some(frame),
            (State::Between | State::Skipping, false) => None,
        }
    }
}

/// The first of several parts moves to a large buffer.
fn begin(part: Frame, pool: &mut FramePool, losses: &mut Losses) -> State {
    let Some(mut frame) = pool.take_large() else {
        losses.no_buffer += 1;
        pool.put(part);
        return State::Skipping;
    };
    let fits = frame.append(part.bytes()); // always: a chunk fits
    pool.put(part);
    if fits { State::Open(frame) } else { skip(frame, pool, losses) }
}

fn go_on(mut frame: Frame, part: Frame, pool: &mut FramePool, losses: &mut Losses) -> State {
    let fits = frame.append(part.bytes());
    pool.put(part);
    if fits { State::Open(frame) } else { skip(frame, pool, losses) }
}

fn skip(frame: Frame, pool: &mut FramePool, losses: &mut Losses) -> State {
    losses.too_long += 1;
    pool.put(frame);
    State::Skipping
}

/// What the descriptor of a part says beside its place.
pub(super) fn options(part: Part) -> u32 {
    if part.is_continued { XDP_PKT_CONTD } else { 0 }
}

/// Hands frames from the front of the burst, in order, to a tx ring that has room for so many descriptors: as many as fit with all their
/// parts. Returns how many. Large ones beyond the share are passed over and stay, behind the others and in any order: what is short goes out
/// although they cannot. What cannot be sent at all is taken out and counted in `faults`. `put` is given each part.
pub(super) fn send(
    (room, share, hand): (usize, &mut Share, Hand),
    pool: &mut FramePool,
    burst: &mut Burst,
    faults: &mut u64,
    mut put: impl FnMut(Part) -> bool,
) -> usize {
    let mut stay = Burst::new();
    let beyond = beyond(share.room(), pool, burst);
    for frame in burst.take_out(beyond) {
        // There is room: as in the burst that it comes from.
        if let Err(frame) = stay.push(frame) {
            pool.put(frame);
        }
    }
    let mut left = room;
    let fits = |frame: &&Frame| match left.checked_sub(pool.parts(frame)) {
        Some(rest) => {
            left = rest;
            true
        }
        None => false,
    };
    let fitting = burst.iter().take_while(fits).count();
    let mut count = 0;
    for frame in burst.drain_front(fitting) {
        if frame.is_empty() {
            *faults += 1; // the kernel would refuse it and never give it back
            pool.put(frame);
            continue;
        }
        let is_large = pool.is_large(&frame);
        let mut is_put = true;
        match pool.lend_parts(frame, hand, |part| is_put &= put(part)) {
            Ok(()) if is_put => {
                count += 1;
                share.lent += u32::from(is_large);
            }
            // Of another pool; or no room, which was looked at above: never.
            Ok(()) | Err(_) => *faults += 1,
        }
    }
    for frame in stay.drain() {
        if let Err(frame) = burst.push(frame) {
            pool.put(frame); // never: it was there before
        }
    }
    count
}

/// The large frames but for the first ones: a bit for each, the lowest for the first of the burst.
fn beyond(mut share: u32, pool: &FramePool, burst: &Burst) -> u64 {
    let mut which = 0;
    for (at, _) in burst.iter().enumerate().filter(|(_, frame)| pool.is_large(frame)) {
        match share.checked_sub(1) {
            Some(rest) => share = rest,
            None => which |= 1 << at,
        }
    }
    which
}

#[cfg(test)]
mod tests {
    use super::*;

    const SENDING: Hand = Hand::of_queue(0).1;

    struct Rig {
        pool: FramePool,
        assembly: Assembly,
        losses: Losses,
        faults: u64,
    }

    impl Rig {
        fn new(large: usize) -> Rig {
            let pool = FramePool::anonymous_with_large(2048, 8, 256, large);
            Rig { pool, assembly: Assembly::default(), losses: Losses::default(), faults: 0 }
        }

        /// A part of so many bytes of this value.
        fn add(&mut self, value: u8, len: usize, is_continued: bool) -> Option<Vec<u8>> {
            let mut part = self.pool.take().unwrap();
            part.reset(0, len).unwrap().fill(value);
            self.end(Some(part), is_continued)
        }

        fn end(&mut self, part: Option<Frame>, is_continued: bool) -> Option<Vec<u8>> {
            let counts = (&mut self.losses, &mut self.faults);
            let frame = self.assembly.add(part, is_continued, &mut self.pool, counts)?;
            let bytes = frame.bytes().to_vec();
            self.pool.put(frame);
            Some(bytes)
        }
    }

    #[test]
    fn parts_become_one_packet_and_single_ones_stay_where_they_are() {
        let mut rig = Rig::new(1);
        assert_eq!(rig.add(1, 60, false).unwrap(), [1; 60]);
        assert!(rig.add(1, 1792, true).is_none() && rig.add(2, 1792, true).is_none());
        assert_eq!((rig.pool.available(), rig.pool.large_available()), (8, 0), "chunks are home at once");
        assert_eq!(rig.add(3, 7, false).unwrap(), [&[1; 1792][..], &[2; 1792], &[3; 7]].concat());
        assert_eq!(rig.add(4, 60, false).unwrap(), [4; 60]);
        assert_eq!((rig.losses, rig.faults, rig.pool.large_available()), (Losses::default(), 0, 1));
    }

    #[test]
    fn what_is_too_long_is_thrown_away_whole_and_counted_once() {
        let mut rig = Rig::new(1);
        for _ in 0..9 {
            assert!(rig.add(1, 1792, true).is_none());
        }
        assert!(rig.add(1, 1792, false).is_none());
        assert_eq!(rig.losses, Losses { too_long: 1, no_buffer: 0 });
        assert_eq!(rig.add(2, 60, false).unwrap(), [2; 60]);
        assert_eq!((rig.pool.available(), rig.pool.large_available()), (8, 1));
    }

    #[test]
    fn without_a_free_buffer_a_long_packet_is_lost_and_a_short_one_is_not() {
        let mut rig = Rig::new(0);
        assert!(rig.add(1, 1792, true).is_none() && rig.add(1, 100, false).is_none());
        assert_eq!(rig.losses, Losses { too_long: 0, no_buffer: 1 });
        assert_eq!(rig.add(2, 60, false).unwrap(), [2; 60]);
        assert_eq!(rig.pool.available(), 8);
    }

    #[test]
    fn a_part_that_is_not_there_spoils_its_packet_only() {
        let mut rig = Rig::new(1);
        assert!(rig.add(1, 1792, true).is_none() && rig.end(None, true).is_none());
        assert!(rig.add(1, 100, false).is_none() && rig.end(None, false).is_none());
        assert_eq!(rig.faults, 2);
        assert_eq!(rig.add(2, 60, false).unwrap(), [2; 60]);
        assert_eq!((rig.pool.available(), rig.pool.large_available()), (8, 1));
    }

    #[test]
    fn frames_are_sent_with_all_their_parts_or_wait() {
        let mut pool = FramePool::anonymous_with_large(2048, 8, 256, 3);
        let mut burst = Burst::new();
        for len in [60, 9050, 0, 9050, 60] {
            let mut frame = pool.take_for(len).unwrap();
            frame.reset(0, len).unwrap();
            burst.push(frame).unwrap();
        }
        let (mut parts, mut faults) = (Vec::new(), 0);
        let mut put = |part: Part| {
            parts.push((part.len, options(part)));
            true
        };
        let (mut share, _) = Share::of(3, 1, false);
        let mut send = |room, burst: &mut Burst| {
            send((room, &mut share, SENDING), &mut pool, burst, &mut faults, &mut put)
        };
        assert_eq!(send(11, &mut burst), 2, "the next long one needs 5");
        assert_eq!(burst.iter().map(Frame::len).collect::<Vec<_>>(), [9050, 60]);
        assert_eq!(send(4, &mut burst), 0);
        assert_eq!(send(6, &mut burst), 2);
        assert_eq!(faults, 1, "the empty one");
        let long = [(1792, 1), (2048, 1), (2048, 1), (2048, 1), (1114, 0)];
        assert_eq!(parts, [&[(60, 0)][..], &long, &long, &[(60, 0)]].concat());
    }

    #[test]
    fn no_more_large_buffers_are_lent_than_the_share_and_short_packets_pass() {
        let mut pool = FramePool::anonymous_with_large(2048, 8, 256, 8);
        let (mut share, mut faults, mut burst) =
            (Share::of(pool.large_to_send(), 1, false).0, 0, Burst::new());
        for len in [1800, 60, 1800, 1800, 1800, 61, 1800] {
            let mut frame = pool.take_for(len).unwrap();
            frame.reset(0, len).unwrap();
            burst.push(frame).unwrap();
        }
        let mut parts = Vec::new();
        let mut put = |part: Part| {
            parts.push((part.address >> 11) as u32);
            true
        };
        assert_eq!(send((100, &mut share, SENDING), &mut pool, &mut burst, &mut faults, &mut put), 5);
        assert_eq!(burst.iter().map(Frame::len).collect::<Vec<_>>(), [1800, 1800]);
        assert_eq!((pool.large_lent(), share.room(), faults), (3, 0, 0), "three of eight");
        assert_eq!(send((100, &mut share, SENDING), &mut pool, &mut burst, &mut faults, &mut put), 0);
        share.lent -= parts.iter().filter(|part| pool.regain_part(**part) == Some(true)).count() as u32;
        let mut put = |_| true;
        assert_eq!(send((100, &mut share, SENDING), &mut pool, &mut burst, &mut faults, &mut put), 2);
        assert_eq!((pool.large_lent(), burst.len()), (2, 0));
    }

    #[test]
    fn the_shares_of_all_sockets_that_send_are_no_more_than_there_is() {
        for (all, uplinks, is_early) in [(192, 1, false), (192, 1, true), (384, 2, true), (7, 3, false)] {
            let (normal, urgent) = Share::of(all, uplinks, is_early);
            assert!((normal.most + urgent.most) as usize * uplinks <= all);
            assert!(normal.most > 0 && (urgent.most > 0) == is_early, "{normal:?} {urgent:?}");
        }
    }
}
