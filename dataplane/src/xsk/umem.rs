//! One worker's UMEM: the memory that its sockets share, and how its addresses map to chunks.
//!
//! Called by [`open`](super::open). What must hold: the layout here is the one that [`FramePool`] was made with, so
//! that a chunk index means the same chunk to both.

use std::io;
use std::num::NonZeroU32;
use std::ptr::NonNull;
use std::sync::Arc;

use xsk_rs::FrameDesc;
use xsk_rs::Umem;
use xsk_rs::config::{FrameSize, QueueSize, UmemConfig};

use crate::frame::{BURST, FramePool, large_parts};
use crate::plan::Early;

use super::{HEADROOM, XskConfig, XskError};

/// What a huge page holds where its size is the usual one. Elsewhere the mapping fails and ordinary pages are used.
const HUGE_PAGE: usize = 2 << 20;

/// Frames per socket beyond its rings: bursts on their way through the stages.
const SLACK: u32 = 256;

/// Large buffers of a queue, where it has some: enough for what a burst brings, what is being sent, and what is held up at
/// other workers. The last two have bounds (`FramePool::large_to_send` and `can_spare_this`).
const LARGE: u32 = 512;

/// How large the rings of one queue are, in descriptors, and how many chunks may be where.
///
/// With a second socket the first one's rx ring must not be able to swallow what urgent frames need. Nobody takes from either ring, say,
/// and a flood comes: each normal frame takes a chunk from the fill ring until `rx` of them are in the rx ring; from then on the kernel
/// drops (`rx_ring_full`) and uses the chunk again. So what the fill ring holds beyond `rx` is there for urgent frames, and they
/// have a place for each if it holds `rx + urgent`. It is filled in batches and may lack one less than a batch. Hence: a fill ring of
/// twice `rx`, `urgent` half of `rx`, and a batch no larger than the other half.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Sizes {
    /// The first socket's rx ring, and its tx ring.
    pub(super) rings: u32,
    /// The second one's, both. 0 without.
    pub(super) urgent: u32,
    /// The fill ring.
    pub(super) fill: u32,
    /// The completion ring has room for all that is on its way out, so that neither socket waits for the other.
    pub(super) completion: u32,
    /// Frames on their way out on the first socket,
    pub(super) tx_frames: u32,
    /// and on the second.
    pub(super) urgent_tx_frames: u32,
    /// Large buffers. 0 without multi-buffer packets.
    pub(super) large: u32,
}

impl Sizes {
    pub(super) fn of(config: &XskConfig) -> Sizes {
        let (rings, tx_frames) = (config.ring_size, config.tx_frames);
        let large = if config.multi_buffer { LARGE.min(rings) } else { 0 };
        match config.early {
            Early::Off => Sizes {
                rings,
                urgent: 0,
                fill: rings,
                completion: rings,
                tx_frames,
                urgent_tx_frames: 0,
                large,
            },
            Early::IfPossible | Early::On => Sizes {
                rings,
                urgent: rings / 2,
                fill: 2 * rings,
                completion: 2 * rings,
                tx_frames,
                urgent_tx_frames: tx_frames.min(rings / 2),
                large,
            },
        }
    }

    /// So many chunks enter the fill ring at once.
    pub(super) fn batch(&self) -> u32 {
        (BURST as u32).min(self.rings / 2)
    }

    /// The most chunks lent for receiving: what all the rings hold.
    pub(super) fn receiving(&self) -> u32 {
        self.fill + self.rings + self.urgent
    }

    /// Chunks of one queue: those, its frames for transmission, and what is on its way between them. Transmission is held to its
    /// share (`XskSocket::tx_budget`), so that the fill ring can always be filled.
    fn chunks(&self) -> usize {
        (self.receiving() + self.tx_frames + self.urgent_tx_frames + SLACK) as usize
    }
}

/// How many chunks the queues of one worker need, without those of the large buffers, and how many of these.
fn chunk_count(chunk_size: usize, queues: &[Sizes]) -> (usize, usize) {
    let wanted: usize = queues.iter().map(Sizes::chunks).sum();
    let large: usize = queues.iter().map(|sizes| sizes.large as usize).sum();
    let in_large = large * large_parts(chunk_size, HEADROOM);
    // A mapping of huge pages is a whole number of them.
    let all = ((wanted + in_large) * chunk_size).next_multiple_of(HUGE_PAGE) / chunk_size;
    (all - in_large, large)
}

/// Bytes of the UMEM for these queues.
pub(super) fn bytes(chunk_size: u32, queues: &[Sizes]) -> usize {
    let chunk_size = chunk_size as usize;
    let (chunks, large) = chunk_count(chunk_size, queues);
    (chunks + large * large_parts(chunk_size, HEADROOM)) * chunk_size
}

/// A UMEM as its sockets see it. Cheap to clone; the memory lives until the last clone is gone.
#[derive(Clone)]
pub(super) struct Area {
    pub(super) umem: Umem,
    /// The descriptor of each chunk, as the library made it: it cannot be built from an address.
    pub(super) descriptors: Arc<[FrameDesc]>,
    chunk_log2: u32,
    /// Where the pool's memory begins.
    base: usize,
}

/// A new UMEM for these queues, the pool of its frames, and whether it lies on huge pages.
pub(super) fn create(chunk_size: u32, queues: &[Sizes]) -> Result<(Area, FramePool, bool), XskError> {
    let chunk_log2 = chunk_size.trailing_zeros();
    let umem_config = umem_config(chunk_size, queues);
    let chunk_size = chunk_size as usize;
    let (chunks, large) = chunk_count(chunk_size, queues);
    let count = chunks + large * large_parts(chunk_size, HEADROOM);
    let failed = |source| XskError::Umem { bytes: count * chunk_size, source };
    let frames = u32::try_from(count).ok().and_then(NonZeroU32::new);
    let frames = frames.ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let umem_config = umem_config.map_err(|error| failed(io::Error::other(error)))?;

    let (umem, mut descriptors, huge_pages) = match Umem::new(umem_config, frames, true) {
        Ok((umem, descriptors)) => (umem, descriptors, true),
        Err(_) => match Umem::new(umem_config, frames, false) {
            Ok((umem, descriptors)) => (umem, descriptors, false),
            Err(error) => return Err(umem_error(error, failed)),
        },
    };
    let first = descriptors.first_mut().ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    // SAFETY: the descriptor is of this UMEM, whose memory nobody else knows yet.
    let data = unsafe { umem.data(first) }.contents().as_ptr();
    // The library shows a slice of this one packet only. The area is a mapping from outside of Rust's own memory, so
    // a pointer to all of it is made from the address.
    let base = std::ptr::with_exposed_provenance_mut::<u8>(data.expose_provenance() - HEADROOM);
    let base = NonNull::new(base).ok_or_else(|| failed(io::ErrorKind::InvalidData.into()))?;
    let memory = Box::new(umem.clone());
    // SAFETY: the UMEM is `count` chunks of `chunk_size` from `base` on: its first packet begins behind the headroom
    // of the first chunk. It is mapped until its last clone is dropped, one of which the pool keeps. Only the pool and
    // the sockets, which the pool lends to, touch it. `Interface::check` has checked the chunk size.
    let pool = unsafe { FramePool::from_raw(base, chunk_size, (chunks, large), HEADROOM, memory) };
    let area = Area { umem, descriptors: descriptors.into(), chunk_log2, base: pool.base() };
    Ok((area, pool, huge_pages))
}

/// The library makes the fill and completion rings of all queues as large as the largest must be. A queue that asked for less
/// has no more chunks in them for that ([`Sizes::receiving`]).
fn umem_config(
    chunk_size: u32,
    queues: &[Sizes],
) -> Result<UmemConfig, Box<dyn std::error::Error + Send + Sync>> {
    let largest = |size: fn(&Sizes) -> u32| queues.iter().map(size).max().unwrap_or_default();
    Ok(UmemConfig::builder()
        .frame_size(FrameSize::new(chunk_size)?)
        .fill_queue_size(QueueSize::new(largest(|sizes| sizes.fill))?)
        .comp_queue_size(QueueSize::new(largest(|sizes| sizes.completion))?)
        .build()?)
}

fn umem_error(error: xsk_rs::umem::UmemCreateError, failed: impl Fn(io::Error) -> XskError) -> XskError {
    match super::kernel_error(&error) {
        reason if reason.raw_os_error() == Some(libc::EPERM) => {
            XskError::NotPermitted { what: "opening an AF_XDP socket" }
        }
        reason => failed(reason),
    }
}

impl Area {
    /// Whether the pool is the one that was made with this UMEM: only its indexes mean the same chunks. The clone in
    /// here keeps the memory mapped, so no other pool can begin where it does.
    #[inline]
    pub(super) fn has(&self, pool: &FramePool) -> bool {
        pool.base() == self.base
    }

    /// The descriptor of a chunk. `None` for a chunk that is not there.
    #[inline]
    pub(super) fn descriptor(&self, index: u32) -> Option<FrameDesc> {
        self.descriptors.get(index as usize).copied()
    }

    /// Which chunk an address lies in, and where in its data segment.
    #[inline]
    pub(super) fn locate(&self, address: usize) -> (u32, Option<usize>) {
        locate(address, self.chunk_log2)
    }
}

impl std::fmt::Debug for Area {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Area").field("chunks", &self.descriptors.len()).finish_non_exhaustive()
    }
}

/// Which chunk an address lies in, and where in its data segment (`None`: in front of it, where no packet of ours is).
/// An address beyond all chunks gives an index beyond all, which the pool refuses.
#[inline]
fn locate(address: usize, chunk_log2: u32) -> (u32, Option<usize>) {
    let index = u32::try_from(address >> chunk_log2).unwrap_or(u32::MAX);
    let offset = address & ((1 << chunk_log2) - 1);
    (index, offset.checked_sub(HEADROOM))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::XdpMode;

    #[test]
    fn an_address_is_a_chunk_and_a_place_behind_the_headroom() {
        assert_eq!(locate(256, 11), (0, Some(0)));
        assert_eq!(locate(3 * 2048 + 256 + 7, 11), (3, Some(7)));
        assert_eq!(locate(3 * 2048 + 255, 11), (3, None));
        assert_eq!(locate(5 * 4096 + 4095, 12), (5, Some(4095 - 256)));
        assert_eq!(locate(usize::MAX, 11).0, u32::MAX);
    }

    fn sizes(early: Early, ring_size: u32) -> Sizes {
        let config = XskConfig::new("eth0", XdpMode::Copy);
        Sizes::of(&XskConfig { early, ring_size, tx_frames: ring_size, ..config })
    }

    #[test]
    fn the_memory_is_a_whole_number_of_huge_pages_and_enough() {
        let (count, none) = chunk_count(2048, &[sizes(Early::Off, 64); 3]);
        assert_eq!(none, 0);
        assert!(count >= 3 * (64 + 64 + 64 + 256));
        assert_eq!(count * 2048 % HUGE_PAGE, 0);
        let (more, _) = chunk_count(2048, &[sizes(Early::On, 2048)]);
        assert!(more >= 2 * 2048 + 2048 + 1024 + 2048 + 1024 + 256, "{more}");
        let large = Sizes { large: 64, ..sizes(Early::Off, 64) };
        let (count, large) = chunk_count(2048, &[large; 3]);
        assert_eq!((large, (count + large * 5) * 2048 % HUGE_PAGE), (192, 0));
        assert!(count >= 3 * (64 + 64 + 64 + 256));
    }

    #[test]
    fn a_full_rx_ring_leaves_a_chunk_for_each_place_of_the_urgent_one() {
        for log2 in 6..=15 {
            let sizes = sizes(Early::On, 1 << log2);
            let in_fill_ring = sizes.fill - (sizes.batch() - 1);
            assert!(in_fill_ring >= sizes.rings + sizes.urgent, "{sizes:?}");
            assert!(sizes.completion >= sizes.tx_frames + sizes.urgent_tx_frames, "{sizes:?}");
        }
    }
}
