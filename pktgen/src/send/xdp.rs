//! An AF_XDP socket to send on: frames are built in the UMEM.

use std::time::Duration;

use peregrine_dataplane::frame::{Burst, FramePool};
use peregrine_dataplane::xsk::{self, Kicks, WorkerPort, XskSocket};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::wire::Wire;
use crate::clock::{MILLISECOND, now_ns};
use crate::error::Error;
use crate::limits::SLEEP_MAX;

/// One queue of an interface.
#[derive(Debug)]
pub struct XdpWire {
    // First, so that it is closed before its memory goes.
    socket: XskSocket,
    pool: FramePool,
    burst: Burst,
    received: Burst,
    kicks: Kicks,
    /// Name and number of the interface.
    interface: (String, u32),
}

impl XdpWire {
    /// Over a port that has one socket, on the interface of this name and number.
    pub fn new(mut port: WorkerPort, interface: (String, u32)) -> Option<XdpWire> {
        let socket = port.sockets.pop()?;
        let (burst, received) = (Burst::new(), Burst::new());
        Some(XdpWire { socket, pool: port.pool, burst, received, kicks: Kicks::default(), interface })
    }
}

impl Wire for XdpWire {
    #[inline]
    fn room(&mut self) -> Result<usize, Error> {
        Ok(self.socket.tx_budget().saturating_sub(self.burst.len()).min(self.burst.room()))
    }

    #[inline]
    fn build(&mut self, len: usize, write: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let Some(mut frame) = self.pool.take() else { return false };
        if !frame.reset(0, len).is_some_and(write) {
            self.pool.put(frame);
            return false;
        }
        match self.burst.push(frame) {
            Ok(()) => true,
            Err(frame) => {
                self.pool.put(frame); // never: there was room
                false
            }
        }
    }

    #[inline]
    fn built(&self) -> usize {
        self.burst.len()
    }

    #[inline]
    fn transmit(&mut self, now: u64) -> Result<usize, Error> {
        let taken =
            if self.burst.is_empty() { 0 } else { self.socket.transmit(&mut self.pool, &mut self.burst) };
        self.kicks += self.socket.kick(now);
        Ok(taken)
    }

    #[inline]
    fn complete(&mut self) -> usize {
        self.socket.complete(&mut self.pool)
    }

    #[inline]
    fn outstanding(&mut self) -> usize {
        self.socket.tx_outstanding()
    }

    #[inline]
    fn receive(&mut self, mut each: impl FnMut(u64, &[u8])) -> Result<usize, Error> {
        let count = self.socket.receive(&mut self.pool, &mut self.received);
        if count == 0 {
            return Ok(0);
        }
        let now = now_ns();
        for frame in self.received.drain() {
            each(now, frame.bytes());
            self.pool.put(frame);
        }
        self.socket.refill(&mut self.pool);
        Ok(count)
    }

    fn sleep(&mut self, longest_ns: u64, listening: bool) -> Result<(), Error> {
        // Frames that are out come home without a sign, so they are looked for.
        let most = if self.socket.tx_outstanding() > 0 { MILLISECOND } else { SLEEP_MAX.as_nanos() as u64 };
        let timeout = Timespec::try_from(Duration::from_nanos(longest_ns.min(most))).ok();
        let events = if listening { PollFlags::IN } else { PollFlags::empty() };
        match poll(&mut [PollFd::new(&self.socket, events)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => Err(Error::system("waiting for the AF_XDP socket")(errno)),
        }
    }

    fn gone(&mut self) -> Option<String> {
        let (name, index) = &self.interface;
        xsk::unusable(name, *index)
    }

    fn discard(&mut self) -> usize {
        let count = self.burst.len();
        self.burst.drain().for_each(|frame| self.pool.put(frame));
        count
    }

    fn kicks(&mut self) -> Kicks {
        std::mem::take(&mut self.kicks)
    }
}
