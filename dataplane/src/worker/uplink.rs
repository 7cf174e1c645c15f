//! Where a worker's frames come from and leave by: its queues of the interfaces, or memory.

use crate::frame::{Burst, FramePool};
use crate::replay::Replay;
use crate::stages::{Origin, RxRing, Wire};
use crate::types::UplinkId;
use crate::xsk::XskSocket;

/// Where frames come from and go to.
#[derive(Debug)]
pub(crate) enum Uplink {
    /// The worker's queues of the interfaces.
    Sockets(Sockets),
    /// Memory, and nowhere.
    Replay(Replay),
}

/// The sockets of a worker, which share its memory.
#[derive(Debug)]
pub(crate) struct Sockets {
    all: Vec<XskSocket>,
    /// For each uplink, the socket that sends everything which leaves by it, so that a flow keeps its order.
    senders: [usize; UplinkId::LIMIT],
}

impl Sockets {
    pub(super) fn new(all: Vec<XskSocket>) -> Sockets {
        let sender = |uplink: usize| all.iter().position(|socket| socket.uplink().index() == uplink);
        let senders = std::array::from_fn(|uplink| sender(uplink).unwrap_or(all.len()));
        Sockets { all, senders }
    }

    #[inline]
    fn sender(&mut self, uplink: UplinkId) -> Option<&mut XskSocket> {
        self.all.get_mut(*self.senders.get(uplink.index())?)
    }
}

impl Uplink {
    /// Of a worker without queues.
    pub(crate) fn none() -> Uplink {
        Uplink::Sockets(Sockets::new(Vec::new()))
    }

    /// How many places there are to take frames from.
    #[inline]
    pub(super) fn sources(&self) -> usize {
        match self {
            Uplink::Sockets(sockets) => sockets.all.len(),
            Uplink::Replay(_) => 1,
        }
    }

    /// Urgent frames have arrived in a ring of their own.
    #[inline]
    pub(super) fn has_urgent(&self, source: usize) -> bool {
        match self {
            Uplink::Sockets(sockets) => sockets.all.get(source).is_some_and(XskSocket::has_urgent),
            Uplink::Replay(replay) => replay.has_urgent(),
        }
    }

    /// One of the rings of a source.
    #[inline]
    pub(super) fn origin(&self, source: usize, is_urgent: bool) -> Origin {
        let (uplink, is_early) = match self {
            Uplink::Sockets(sockets) => match sockets.all.get(source) {
                Some(socket) => (socket.uplink(), socket.is_early()),
                None => (UplinkId(0), false),
            },
            Uplink::Replay(_) => (UplinkId(0), false),
        };
        let ring = match (is_urgent, is_early) {
            (true, _) => RxRing::Urgent,
            (false, true) => RxRing::Rest,
            (false, false) => RxRing::Only,
        };
        Origin { uplink, ring }
    }

    /// A burst from one ring of a source.
    #[inline]
    pub(super) fn receive(
        &mut self,
        source: usize,
        ring: RxRing,
        pool: &mut FramePool,
        burst: &mut Burst,
    ) -> usize {
        match self {
            Uplink::Sockets(sockets) => match (sockets.all.get_mut(source), ring) {
                (Some(socket), RxRing::Urgent) => socket.receive_urgent(pool, burst),
                (Some(socket), RxRing::Only | RxRing::Rest) => socket.receive(pool, burst),
                (None, _) => 0,
            },
            Uplink::Replay(replay) => match ring {
                RxRing::Urgent => replay.present_urgent(pool, burst),
                RxRing::Only | RxRing::Rest => replay.present(pool, burst),
            },
        }
    }

    /// Gives the source's fill ring free frames, where there is one.
    #[inline]
    pub(super) fn refill(&mut self, source: usize, pool: &mut FramePool) {
        if let Uplink::Sockets(sockets) = self
            && let Some(socket) = sockets.all.get_mut(source)
        {
            socket.refill(pool);
        }
    }

    /// What it has can wait for as long as it must, unlike what comes from a network.
    #[inline]
    pub(super) fn can_wait(&self) -> bool {
        match self {
            Uplink::Sockets(_) => false,
            Uplink::Replay(replay) => replay.can_wait(),
        }
    }

    #[inline]
    pub(super) fn sockets(&mut self) -> &mut [XskSocket] {
        match self {
            Uplink::Sockets(sockets) => &mut sockets.all,
            Uplink::Replay(_) => &mut [],
        }
    }

    /// What was handed over to be sent is out, but for what lies at an interface that is down or gone: nobody can say for how long,
    /// and who uses the other interfaces, or none, does not wait for it.
    pub(super) fn has_sent_all(&self) -> bool {
        match self {
            Uplink::Sockets(sockets) => {
                sockets.all.iter().all(|socket| socket.tx_outstanding() == 0 || socket.is_down())
            }
            Uplink::Replay(_) => true,
        }
    }

    /// Before a sleep: something has arrived, or is due at a time.
    pub(super) fn has_arrived(&mut self) -> bool {
        match self {
            Uplink::Sockets(sockets) => sockets.all.iter_mut().any(XskSocket::has_arrived),
            Uplink::Replay(replay) => !replay.is_at_rest(),
        }
    }

    /// There is somewhere to send to.
    pub(crate) fn sends(&self) -> bool {
        self.sources() > 0
    }
}

impl Wire for Uplink {
    #[inline]
    fn transmit(
        &mut self,
        uplink: UplinkId,
        is_urgent: bool,
        frames: &mut Burst,
        pool: &mut FramePool,
    ) -> (usize, usize) {
        let bytes = |frames: &Burst| frames.iter().map(|frame| frame.len()).sum::<usize>();
        let before = bytes(frames);
        match self {
            Uplink::Sockets(sockets) => {
                let Some(socket) = sockets.sender(uplink) else { return (0, 0) };
                let sent = match is_urgent && socket.is_early() {
                    true => socket.transmit_urgent(pool, frames),
                    false => socket.transmit(pool, frames),
                };
                (sent, before - bytes(frames))
            }
            Uplink::Replay(_) => {
                let sent = frames.len();
                frames.drain().for_each(|frame| pool.put(frame));
                (sent, before)
            }
        }
    }
}
