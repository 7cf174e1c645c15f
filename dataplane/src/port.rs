//! What a container's packets come and go by, as tenants and stages know it: a tenant that has no rings of its own. `xsk/port.rs` is the one
//! that there is.
//!
//! What must hold: a packet is looked at only while it is shown, and is copied once; what was pushed is sent by the next
//! [`flush`](Port::flush), or stays to be offered again, and is never waited for.

use std::os::fd::BorrowedFd;

use peregrine_memif::PushError;

use crate::wire::partial;

/// The shortest packet: an Ethernet header.
pub const PACKET_MIN: usize = 14;

/// Our end of the way to a container. A worker has it, and no one else.
pub trait Port: std::fmt::Debug + Send {
    /// There is something to do: packets have arrived, or some wait to be sent for long enough to be [due](Self::is_due). Cheap: quiet ones are
    /// asked again and again.
    fn has_work(&self) -> bool;

    /// What could not be sent is to be offered again: by [`flush`](Self::flush).
    fn is_due(&self) -> bool;

    /// Something could not be sent, and is not due yet.
    fn is_stuck(&self) -> bool;

    /// What is readable when packets have arrived, for one who sleeps.
    fn event_fd(&self) -> BorrowedFd<'_>;

    /// Shows the next packets that have arrived, this many at most, and forgets them. Returns how many there were.
    fn take(&mut self, most: usize, each: &mut dyn FnMut(PortPacket<'_>)) -> usize;

    /// Copies a packet, to be sent by [`flush`](Self::flush).
    ///
    /// # Errors
    /// As of a memif ring.
    fn push(&mut self, packet: &[u8]) -> Result<(), PushError>;

    /// Sends what was pushed, as far as that goes now.
    fn flush(&mut self) -> PortFlush;
}

/// What [`Port::flush`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct PortFlush {
    /// System calls.
    pub calls: u64,
    /// Packets that the device dropped, as the far end is down, or its queue full.
    pub lost: u64,
    /// Calls that found our end down: packets wait until it is up.
    pub down: u64,
    /// Calls that failed for another reason.
    pub failed: u64,
    /// The interface is no more: its namespace was deleted, or somebody has deleted it.
    pub is_gone: bool,
}

/// A packet that has arrived.
#[derive(Clone, Copy, Debug)]
pub struct PortPacket<'a> {
    bytes: &'a [u8],
}

impl<'a> PortPacket<'a> {
    /// As the kernel gave it: a checksum may be unfinished. At least [`PACKET_MIN`] bytes.
    #[inline]
    pub fn new(bytes: &'a [u8]) -> PortPacket<'a> {
        PortPacket { bytes }
    }
}

impl PortPacket<'_> {
    /// Bytes of the packet.
    #[allow(clippy::len_without_is_empty, reason = "a packet is never empty")]
    #[inline]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Copies the packet to the front of `to` and returns its length; `None`, and nothing copied, if `to` is shorter. A checksum that the
    /// container left to its interface is finished in the copy: there is no card behind it that would do it.
    #[inline]
    #[must_use]
    pub fn copy_to(&self, to: &mut [u8]) -> Option<usize> {
        let to = to.get_mut(..self.bytes.len())?;
        to.copy_from_slice(self.bytes);
        partial::complete(to);
        Some(to.len())
    }

    /// Copies the first bytes of the packet, as many as `to` has; `None`, and nothing copied, if the packet is shorter.
    #[must_use]
    pub fn copy_front_to(&self, to: &mut [u8]) -> Option<usize> {
        to.copy_from_slice(self.bytes.get(..to.len())?);
        Some(to.len())
    }
}
