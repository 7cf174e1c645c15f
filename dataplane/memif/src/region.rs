//! Memory that a peer can write at any time, and the only ways to touch it.
//!
//! Two rules hold here and so in the whole crate: there is never a `&` or `&mut` to a byte of shared memory (an atomic, which
//! expects to be written by others, is the one exception), and no span leaves this file unless it lies inside its mapping.
//! A `Span` is a pointer and a length that were checked together, from numbers that were read once.

use std::fmt;
use std::fs::File;
use std::io;
use std::marker::PhantomData;
use std::ptr::{self, NonNull};
use std::sync::Arc;

use crate::error::{BadDescriptor, Reject};
use crate::guard::Guard;
use crate::sys::Populate;
use crate::{pages, seal, sys};

/// What a processor moves from core to core at once, and the longest packet that is copied in such pieces.
const LINE_BYTES: usize = 64;
const BY_LINE_BYTES_MAX: usize = 1024;

/// One file mapped MAP_SHARED, unmapped on drop, and emptied if it is ours.
#[derive(Debug)]
pub(crate) struct Mapping {
    base: NonNull<u8>,
    bytes: usize,
    /// Of memory that the peer could take away.
    guard: Option<Guard>,
    /// Of memory that is ours, and whose: to be given back in the end.
    ours: Option<(Arc<File>, Arc<str>)>,
}

// SAFETY: a mapping is a range of addresses valid in every thread. All access goes through `Span` and the ring's volatile and
// atomic operations, which expect concurrent writers (the peer is one).
unsafe impl Send for Mapping {}
// SAFETY: as above; no method gives out a reference to the memory.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the first `bytes` of `file`. The caller has checked that the file is that long and cannot shrink.
    pub fn new(file: &File, bytes: usize) -> io::Result<Self> {
        pages::map(file, bytes).map(|base| Self { base, bytes, guard: None, ours: None })
    }

    /// Maps all of our own memory, which nobody has written to yet, present.
    pub fn present(file: &File, bytes: usize) -> io::Result<Self> {
        pages::prepare(file, bytes)?;
        let mapping = Self::new(file, bytes)?;
        pages::make_present(mapping.base, bytes)?;
        Ok(mapping)
    }

    /// Memory of our own that a peer is to have as well: in the end its pages are given back even if the peer keeps the file; `name` stands
    /// for the peer.
    pub fn shared(mut self, file: Arc<File>, name: Arc<str>) -> Self {
        self.ours = Some((file, name));
        self
    }

    /// Guards it against being taken away, if the program has asked for that.
    pub fn guard(&mut self) -> Result<(), Reject> {
        self.guard = Guard::new(self.base.addr().get(), self.bytes)?;
        Ok(())
    }

    /// Makes every page present, or says that one cannot be. Pages stay so only if nobody can take them out of the file.
    pub fn populate(&self, how: Populate) -> io::Result<()> {
        sys::populate(self.base, self.bytes, how)
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // Before somebody else can be given these addresses.
        self.guard = None;
        // SAFETY: from `pages::map` with the same length. Every user of the memory holds an `Arc<Regions>` that owns this mapping,
        // so none is left.
        unsafe { sys::unmap(self.base, self.bytes) };
        if let Some((file, name)) = &self.ours {
            seal::empty(file, name);
        }
    }
}

/// All regions of one connection, by index. Kept in an `Arc` by every ring half: the last one unmaps.
pub(crate) struct Regions(Box<[Mapping]>);

impl Regions {
    pub fn new(mappings: Vec<Mapping>) -> Self {
        Self(mappings.into_boxed_slice())
    }

    /// Whether a peer could take any of it away, and we would survive that.
    pub fn is_guarded(&self) -> bool {
        self.0.iter().any(|mapping| mapping.guard.is_some())
    }

    /// Whether any of it was taken away, and zeros stand in its place.
    #[cold]
    pub fn is_lost(&self) -> bool {
        self.0.iter().filter_map(|mapping| mapping.guard.as_ref()).any(Guard::is_lost)
    }

    /// The bytes `offset .. offset + length` of a region, if they are all inside it.
    #[inline(always)]
    pub fn span(&self, region: u16, offset: u32, length: u32) -> Result<Span<'_>, BadDescriptor> {
        let mapping = self.0.get(usize::from(region)).ok_or(BadDescriptor::Region)?;
        if u64::from(offset) + u64::from(length) > mapping.bytes as u64 {
            return Err(BadDescriptor::Span);
        }
        // SAFETY: offset ≤ offset + length ≤ the mapping's length: inside the mapping or at its end.
        let start = unsafe { mapping.base.add(offset as usize) };
        Ok(Span { start, length, regions: PhantomData })
    }
}

impl fmt::Debug for Regions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.0.iter().map(|mapping| mapping.bytes)).finish()
    }
}

/// A checked piece of shared memory: `length` bytes from `start` are mapped for as long as `'a`.
#[derive(Clone, Copy)]
pub(crate) struct Span<'a> {
    start: NonNull<u8>,
    length: u32,
    regions: PhantomData<&'a Regions>,
}

// SAFETY: a span only names mapped memory, which is valid in every thread; see `Mapping`.
unsafe impl Send for Span<'_> {}

impl Span<'_> {
    pub fn start(&self) -> NonNull<u8> {
        self.start
    }

    pub fn length(&self) -> u32 {
        self.length
    }

    /// Its first bytes; `None` if there are fewer.
    #[inline(always)]
    pub fn front(self, bytes: usize) -> Option<Self> {
        let length = u32::try_from(bytes).ok().filter(|length| *length <= self.length)?;
        Some(Self { length, ..self })
    }

    /// Copies all of it to the front of `to`; `None`, and nothing copied, if `to` is shorter.
    #[inline(always)]
    pub fn copy_to(&self, to: &mut [u8]) -> Option<usize> {
        let length = self.length as usize;
        let to = to.get_mut(..length)?;
        // SAFETY: both sides are `length` bytes; `to` is private memory, so they do not overlap. The peer may write while we
        // copy: the copy is then a mixture, which is why all checks are made on the copy. For the language that is a data race; that
        // the copy is one nevertheless rests on the machine, whose loads give some bytes or others, and on what follows.
        unsafe { copy(self.start.as_ptr(), to.as_mut_ptr(), length) };
        assume_memory_has_changed();
        Some(length)
    }

    /// Copies `from` to the front of it; `None`, and nothing copied, if `from` is longer.
    #[inline(always)]
    pub fn copy_from(&self, from: &[u8]) -> Option<()> {
        if from.len() > self.length as usize {
            return None;
        }
        // SAFETY: `from` fits the span; it is private memory, so they do not overlap.
        unsafe { copy(from.as_ptr(), self.start.as_ptr(), from.len()) };
        Some(())
    }

    /// Asks the processor to fetch the first cache line. Only a hint.
    #[inline(always)]
    pub fn prefetch(&self) {
        prefetch(self.start);
    }

    /// Asks the processor for all its cache lines, to be written: the other core, which read them last, then gives them up
    /// while this one still works on something else. Only a hint.
    #[inline(always)]
    pub fn prefetch_to_write(&self) {
        #[cfg(target_arch = "x86_64")]
        for line in (0..self.length as usize).step_by(LINE_BYTES) {
            // SAFETY: the address is inside the span. A prefetch never faults and changes nothing; processors without this one
            // (there is no intrinsic that gives it on every x86_64) take it for no operation.
            unsafe {
                let at = self.start.as_ptr().add(line);
                core::arch::asm!("prefetchw [{at}]", at = in(reg) at, options(nostack, preserves_flags, readonly));
            }
        }
    }
}

/// Costs no instruction. After it the compiler knows nothing of any memory, and so cannot take bytes from shared memory, checked or
/// not, in place of those that were copied from it before.
#[inline(always)]
fn assume_memory_has_changed() {
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    // SAFETY: no instruction at all.
    unsafe {
        core::arch::asm!("", options(nostack, preserves_flags));
    }
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    std::sync::atomic::compiler_fence(std::sync::atomic::Ordering::SeqCst);
}

/// Asks the processor to fetch a cache line.
#[inline(always)]
pub(crate) fn prefetch(at: NonNull<u8>) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: SSE is part of x86_64, and a prefetch never faults and changes nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.as_ptr().cast()) };
    }
}

/// Copies between shared and private memory: short packets line by line, in moves that the compiler lays out here. The C
/// library's memcpy, which the rest goes to, is slower where the lines come from another core (a third at 64 bytes).
///
/// # Safety
/// As `ptr::copy_nonoverlapping`.
#[inline(always)]
unsafe fn copy(from: *const u8, to: *mut u8, length: usize) {
    if !(LINE_BYTES..=BY_LINE_BYTES_MAX).contains(&length) {
        // SAFETY: the caller's.
        return unsafe { ptr::copy_nonoverlapping(from, to, length) };
    }
    let last = length - LINE_BYTES;
    let mut at = 0;
    loop {
        // SAFETY: at ≤ last, so this ends at `length` at the latest.
        unsafe { copy_line(from.add(at), to.add(at)) };
        if at == last {
            return;
        }
        // The last piece may overlap the one before: the same bytes once more.
        at = (at + LINE_BYTES).min(last);
    }
}

/// Copies `LINE_BYTES`, however they are aligned: all is read before the first byte is written.
///
/// # Safety
/// As `ptr::copy_nonoverlapping`.
#[inline(always)]
unsafe fn copy_line(from: *const u8, to: *mut u8) {
    #[cfg(target_arch = "x86_64")]
    {
        use core::arch::x86_64::{__m128i, _mm_loadu_si128, _mm_storeu_si128};
        let (from, to) = (from.cast::<__m128i>(), to.cast::<__m128i>());
        // SAFETY: SSE2 is part of x86_64; four moves of 16 bytes are the caller's `LINE_BYTES`.
        unsafe {
            let (a, b) = (_mm_loadu_si128(from), _mm_loadu_si128(from.add(1)));
            let (c, d) = (_mm_loadu_si128(from.add(2)), _mm_loadu_si128(from.add(3)));
            _mm_storeu_si128(to, a);
            _mm_storeu_si128(to.add(1), b);
            _mm_storeu_si128(to.add(2), c);
            _mm_storeu_si128(to.add(3), d);
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    // SAFETY: the caller's.
    unsafe {
        ptr::copy_nonoverlapping(from, to, LINE_BYTES);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_exact_at_every_length_and_alignment() {
        let from: Vec<u8> = (0..2200_u32).map(|i| (i % 251) as u8 + 1).collect();
        for length in 0..=2049 {
            for at in [0, 1, 17] {
                let mut to = vec![0; 2200];
                // SAFETY: both ends are inside vectors of their own.
                unsafe { copy(from.as_ptr().add(at), to.as_mut_ptr().add(at), length) };
                assert_eq!(to[at..at + length], from[at..at + length], "{length} bytes at {at}");
                assert!(
                    to[..at].iter().chain(&to[at + length..]).all(|byte| *byte == 0),
                    "{length} bytes at {at}"
                );
            }
        }
    }
}
