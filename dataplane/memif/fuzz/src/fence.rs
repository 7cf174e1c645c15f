//! mmap(2) and munmap(2) of this program, with fences around every shared file, so that AddressSanitizer sees an access outside
//! a region. It knows nothing of such memory by itself, and the kernel likes to put one mapping right behind another.
//!
//! A mapping lies between two stretches that nobody may touch, and what is left of its last page is poisoned. The crate's own
//! calls come here because the linker takes the program's definitions before those of the C library.

use std::ffi::{c_int, c_long, c_void};
use std::ptr;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Bytes of a fence; a multiple of any page size.
const FENCE_BYTES: usize = 1 << 16;

/// Where fenced mappings begin; 0 is a free place. A mapping that finds none has no fence.
static FENCED: [AtomicUsize; 64] = [const { AtomicUsize::new(0) }; 64];

unsafe extern "C" {
    fn __asan_poison_memory_region(start: *const c_void, bytes: usize);
    fn __asan_unpoison_memory_region(start: *const c_void, bytes: usize);
}

/// How many mappings have a fence now.
pub fn count() -> usize {
    FENCED.iter().filter(|place| place.load(Ordering::Relaxed) != 0).count()
}

/// Mapping and both fences.
fn bytes_in_all(bytes: usize) -> usize {
    bytes.next_multiple_of(FENCE_BYTES) + 2 * FENCE_BYTES
}

fn swap_place(from: usize, to: usize) -> bool {
    FENCED.iter().any(|place| place.compare_exchange(from, to, Ordering::Relaxed, Ordering::Relaxed).is_ok())
}

unsafe fn raw_mmap(
    at: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    // SAFETY: the caller's arguments, which are mmap's.
    let base: c_long = unsafe { libc::syscall(libc::SYS_mmap, at, bytes, protection, flags, fd, offset) };
    base as *mut c_void
}

/// # Safety
/// As mmap(2).
#[unsafe(no_mangle)]
pub unsafe extern "C" fn mmap(
    at: *mut c_void,
    bytes: usize,
    protection: c_int,
    flags: c_int,
    fd: c_int,
    offset: i64,
) -> *mut c_void {
    let is_shared_file = at.is_null() && fd >= 0 && flags & libc::MAP_TYPE == libc::MAP_SHARED;
    if !is_shared_file {
        // SAFETY: the caller's promise.
        return unsafe { raw_mmap(at, bytes, protection, flags, fd, offset) };
    }
    let nothing = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    // SAFETY: new memory at an address that the kernel chooses.
    let all = unsafe { raw_mmap(ptr::null_mut(), bytes_in_all(bytes), libc::PROT_NONE, nothing, -1, 0) };
    if all == libc::MAP_FAILED {
        return all;
    }
    let base = all.wrapping_byte_add(FENCE_BYTES);
    // SAFETY: replaces the middle of what was just made.
    if unsafe { raw_mmap(base, bytes, protection, flags | libc::MAP_FIXED, fd, offset) } == libc::MAP_FAILED {
        // SAFETY: nobody knows of it yet.
        unsafe { libc::syscall(libc::SYS_munmap, all, bytes_in_all(bytes)) };
        return libc::MAP_FAILED;
    }
    assert!(swap_place(0, base as usize), "too many mappings at once");
    let end = base.wrapping_byte_add(bytes);
    let rest = bytes.next_multiple_of(FENCE_BYTES) - bytes;
    // SAFETY: addresses of ours behind the mapping's last byte.
    unsafe { __asan_poison_memory_region(end, rest) };
    base
}

/// # Safety
/// As munmap(2), and of a fenced mapping always the whole.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn munmap(at: *mut c_void, bytes: usize) -> c_int {
    let (mut at, mut bytes) = (at, bytes);
    if swap_place(at as usize, 0) {
        (at, bytes) = (at.wrapping_byte_sub(FENCE_BYTES), bytes_in_all(bytes));
        // SAFETY: a range of addresses of ours.
        unsafe { __asan_unpoison_memory_region(at, bytes) };
    }
    // SAFETY: the caller's promise; for a fenced mapping the range is that of `mmap`.
    unsafe { libc::syscall(libc::SYS_munmap, at, bytes) as c_int }
}
