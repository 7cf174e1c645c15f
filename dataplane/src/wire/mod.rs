//! Header views and checks: bytes in, fields or a [`DropReason`](crate::counters::DropReason) out. No I/O.
//!
//! Every `split` looks at the length first and gives back the header and what follows it; a header that exists
//! is long enough, so its accessors cannot fail. Nothing here panics, whatever the bytes are.

pub mod arp;
pub mod checksum;
pub mod ecn;
pub mod eth;
pub mod flow;
pub mod icmp;
pub mod inner;
pub mod ip;
pub mod mss;
pub mod ndp;
pub mod outer;
pub mod partial;
pub mod template;
pub mod udp;
pub mod vxlan;

use bytemuck::{Pod, Zeroable};

/// A 16-bit number in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Pod, Zeroable)]
#[repr(transparent)]
pub struct Be16([u8; 2]);

impl Be16 {
    /// From the machine's order.
    #[inline]
    pub const fn new(value: u16) -> Be16 {
        Be16(value.to_be_bytes())
    }

    /// In the machine's order.
    #[inline]
    pub const fn get(self) -> u16 {
        u16::from_be_bytes(self.0)
    }
}

impl std::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#06x}", self.get())
    }
}

/// The first `size_of::<H>()` bytes as a header, and the rest. `None` if there are fewer.
#[inline]
fn split_header<H: Pod>(bytes: &[u8]) -> Option<(&H, &[u8])> {
    const { assert!(align_of::<H>() == 1, "a header may stand anywhere") }
    let (head, rest) = bytes.split_at_checked(size_of::<H>())?;
    bytemuck::try_from_bytes(head).ok().map(|header| (header, rest))
}
