//! The client's shared memory: one sealed region with all rings first and all buffers after them. Used by the client only.
//!
//! ```text
//! | S2M ring 0 … | M2S ring 0 … | (to the next page) | buffers of S2M 0 … | buffers of M2S 0 … |
//! ```
//! The buffer of slot `i` of ring `r` (counted over both directions) lies at `buffers + (r · slots + i) · stride`. The stride is an odd number of
//! cache lines: with a power of two the first lines of all buffers, often all there is of a packet, would share a few sets of the
//! processor's caches.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use crate::client::ClientConfig;
use crate::error::Reject;
use crate::message::AddRing;
use crate::pool::Blank;
use crate::region::Regions;
use crate::ring::{RingMemory, RingPlace, Role, ring_bytes};
use crate::rx::{Buffers, RxRing};
use crate::sys;
use crate::tx::TxRing;

/// Where buffers start is rounded up to this.
const PAGE_BYTES: u32 = 4096;
const LINE_BYTES: u32 = 64;

/// Sizes of the client's memory, checked by [`ClientConfig`] and cut to the server's limits.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    pub s2m_rings: u16,
    pub m2s_rings: u16,
    pub log2: u8,
    pub buffer_bytes: u32,
}

impl Layout {
    /// What a configuration wants, if the server allows all of it.
    pub fn of(config: &ClientConfig) -> Self {
        let rings = config.queue_pairs;
        let (log2, buffer_bytes) = (config.ring_log2, config.buffer_bytes);
        Self { s2m_rings: rings, m2s_rings: rings, log2, buffer_bytes }
    }

    fn rings(&self) -> u32 {
        u32::from(self.s2m_rings) + u32::from(self.m2s_rings)
    }

    fn buffers_start(&self) -> u32 {
        (self.rings() * ring_bytes(self.log2)).next_multiple_of(PAGE_BYTES)
    }

    /// From one buffer to the next, in bytes.
    fn stride(&self) -> u32 {
        (self.buffer_bytes.div_ceil(LINE_BYTES) | 1) * LINE_BYTES
    }

    /// Bytes of the region. At most 65535 slots of little more than 16 KiB, so every offset fits the protocol's u32.
    pub fn bytes(&self) -> u32 {
        self.buffers_start() + (self.rings() << self.log2) * self.stride()
    }

    fn ring_number(&self, s2m: bool, index: u16) -> u32 {
        u32::from(index) + if s2m { 0 } else { u32::from(self.s2m_rings) }
    }

    /// The message that announces a ring.
    pub fn add_ring(&self, s2m: bool, index: u16) -> AddRing {
        let offset = self.ring_number(s2m, index) * ring_bytes(self.log2);
        AddRing { s2m, index, region: 0, offset, log2: self.log2, private_header: 0 }
    }

    fn buffers(&self, s2m: bool, index: u16) -> Buffers {
        let first_slot = self.ring_number(s2m, index) << self.log2;
        let stride = self.stride();
        Buffers { start: self.buffers_start() + first_slot * stride, stride, bytes: self.buffer_bytes }
    }
}

/// The memory itself, with the rings' headers written and their eventfds made.
#[derive(Debug)]
pub(crate) struct ClientMemory {
    pub layout: Layout,
    pub file: Arc<File>,
    s2m: Vec<(RingMemory, OwnedFd)>,
    m2s: Vec<(RingMemory, OwnedFd)>,
}

impl ClientMemory {
    /// For a connection to the server that `name` stands for.
    pub fn new(layout: Layout, name: &Arc<str>, config: &ClientConfig) -> io::Result<Self> {
        let (bytes, forbid_seals) = (layout.bytes(), config.forbid_seals);
        let taken = config.pool.as_ref().and_then(|pool| pool.take(bytes, forbid_seals));
        let Blank { file, mapping } = taken.map_or_else(|| Blank::new(bytes, forbid_seals), Ok)?;
        let mapping = mapping.shared(Arc::clone(&file), Arc::clone(name));
        let regions = Arc::new(Regions::new(vec![mapping]));
        let ring = |s2m: bool, index: u16| {
            let AddRing { region, offset, log2, .. } = layout.add_ring(s2m, index);
            let place = RingPlace { region, offset, log2 };
            let ring = RingMemory::new(Arc::clone(&regions), place, Role::Client).map_err(impossible)?;
            Ok::<_, io::Error>((ring, sys::eventfd()?))
        };
        let s2m = (0..layout.s2m_rings).map(|index| ring(true, index)).collect::<Result<_, _>>()?;
        let m2s = (0..layout.m2s_rings).map(|index| ring(false, index)).collect::<Result<_, _>>()?;
        Ok(Self { layout, file, s2m, m2s })
    }

    /// The eventfd of a ring.
    pub fn event(&self, s2m: bool, index: u16) -> Option<&OwnedFd> {
        let rings = if s2m { &self.s2m } else { &self.m2s };
        rings.get(usize::from(index)).map(|(_, event)| event)
    }

    /// After CONNECTED: the client's halves, with all receive buffers offered.
    pub fn connect(self, chains: bool) -> (Vec<RxRing>, Vec<TxRing>) {
        let layout = self.layout;
        let rx = (0..).zip(self.m2s);
        let tx = (0..).zip(self.s2m);
        (
            rx.map(|(i, (ring, event))| RxRing::client(ring, event, layout.buffers(false, i), chains))
                .collect(),
            tx.map(|(i, (ring, event))| TxRing::client(ring, event, layout.buffers(true, i), chains))
                .collect(),
        )
    }
}

/// Our own layout always fits our own region.
fn impossible(why: Reject) -> io::Error {
    io::Error::other(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rings_lie_back_to_back_and_buffers_follow() {
        let layout = Layout { s2m_rings: 2, m2s_rings: 1, log2: 10, buffer_bytes: 2048 };
        let ring = 128 + 16 * 1024;
        assert_eq!(layout.add_ring(true, 1).offset, ring);
        assert_eq!(layout.add_ring(false, 0).offset, 2 * ring);
        let start = (3 * ring).next_multiple_of(4096);
        assert_eq!(layout.buffers(true, 0).start, start);
        assert_eq!(layout.buffers(false, 0).start, start + 2 * 1024 * 2112);
        assert_eq!(layout.bytes(), start + 3 * 1024 * 2112);
    }

    #[test]
    fn the_largest_layout_fits_u32() {
        let layout = Layout { s2m_rings: 1, m2s_rings: 2, log2: 14, buffer_bytes: 16384 };
        assert_eq!(layout.bytes(), layout.buffers_start() + 3 * 16384 * 16448);
    }
}
