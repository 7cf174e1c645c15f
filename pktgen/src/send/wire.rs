//! The two things that the sending loop (`engine.rs`) is between: a [`Load`], what is sent and when, and a [`Wire`], where to.
//!
//! What must hold: neither allocates or locks per frame, and a wire makes system calls per burst only.

use peregrine_dataplane::xsk::Kicks;

use super::SendWait;
use crate::error::Error;

/// Frames that are built at once, at most.
pub const BURST: usize = 64;

/// Where frames go. They are built in its memory, handed over in bursts, and may come home later.
pub trait Wire {
    /// How many frames can be built now, at most [`BURST`] with those that are.
    ///
    /// # Errors
    /// A peer that breaks the rules.
    fn room(&mut self) -> Result<usize, Error>;

    /// Builds a frame of `len` bytes. False, and nothing has changed: no room, or `write` says so.
    fn build(&mut self, len: usize, write: impl FnOnce(&mut [u8]) -> bool) -> bool;

    /// Frames that are built and not handed over.
    fn built(&self) -> usize;

    /// Hands over what is built, in order, and returns how many were taken; the others stay.
    ///
    /// # Errors
    /// A peer that breaks the rules, or a system call that fails.
    fn transmit(&mut self, now: u64) -> Result<usize, Error>;

    /// Brings home what has been sent, and returns how many came.
    fn complete(&mut self) -> usize;

    /// Frames that were taken and have not come home.
    fn outstanding(&mut self) -> usize;

    /// Takes what has arrived; `each` gets the time of the look and a frame.
    ///
    /// # Errors
    /// A peer that breaks the rules.
    fn receive(&mut self, each: impl FnMut(u64, &[u8])) -> Result<usize, Error>;

    /// Sleeps, at most so long; `listening` also until something arrives.
    ///
    /// # Errors
    /// Those of the system call.
    fn sleep(&mut self, longest_ns: u64, listening: bool) -> Result<(), Error>;

    /// If the peer has gone away: who, and what it said. A system call; asked now and then.
    fn gone(&mut self) -> Option<String>;

    /// Throws away what is built and not handed over, and returns how many frames that were.
    fn discard(&mut self) -> usize;

    /// Wake-ups since this was last asked.
    fn kicks(&mut self) -> Kicks;

    /// Nothing to do for `longest_ns`, unless something arrives.
    ///
    /// # Errors
    /// Those of the system call.
    #[inline]
    fn rest(&mut self, wait: SendWait, longest_ns: u64, listening: bool) -> Result<(), Error> {
        match wait {
            SendWait::Poll => std::hint::spin_loop(),
            SendWait::Yield => std::thread::yield_now(),
            SendWait::Block if longest_ns < NAP_MIN_NS => std::hint::spin_loop(),
            SendWait::Block => self.sleep(longest_ns, listening)?,
        }
        Ok(())
    }
}

/// Sleeping for less than this costs more time than it leaves.
const NAP_MIN_NS: u64 = 20_000;

/// A frame that has been written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// When it was meant to leave.
    pub due: u64,
    /// Its class.
    pub class: u8,
}

/// What is sent, and when.
pub trait Load {
    /// When the next frame is meant to leave; never, if there is none.
    fn next_ns(&self, now: u64) -> u64;

    /// When the time of the last frame is over: where frames follow one another at a rate, when the next one would leave. A gap
    /// between bursts, or one that was recorded, is no frame's time: then it is `now`.
    fn slot_end_ns(&self, now: u64) -> u64;

    /// Bytes of the next frame.
    fn next_len(&self) -> usize;

    /// Writes the next frame if it is due, and goes on to the one after it.
    fn write(&mut self, now: u64, out: &mut [u8]) -> Option<Written>;

    /// Gives up departures that are overdue by too much, and returns how many.
    fn skip_overdue(&mut self, now: u64) -> u64;

    /// After the run: how many more frames were due before `end_ns`. They are given up, and none is told twice.
    fn due_before(&mut self, end_ns: u64) -> u64;
}
