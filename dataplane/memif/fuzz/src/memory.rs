//! A memory file and the peer's own view of it.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::ptr;

/// Someone else's memory, mapped here. Offsets are taken modulo what fits, so that every one of the fuzzer's hits.
#[derive(Debug)]
pub struct Memory {
    base: *mut u8,
    bytes: usize,
}

impl Memory {
    /// Maps the first `bytes` of a file, which has as many.
    pub fn map(file: &OwnedFd, bytes: usize) -> Self {
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: the kernel chooses a free range.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), bytes, protection, libc::MAP_SHARED, file.as_raw_fd(), 0) };
        assert!(base != libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        Self { base: base.cast(), bytes }
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub fn write(&self, at: usize, bytes: &[u8]) {
        assert!(at + bytes.len() <= self.bytes);
        // SAFETY: inside the mapping; `bytes` is private memory.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), self.base.add(at), bytes.len()) };
    }

    pub fn read(&self, at: usize, to: &mut [u8]) {
        assert!(at + to.len() <= self.bytes);
        // SAFETY: inside the mapping; `to` is private memory.
        unsafe { ptr::copy_nonoverlapping(self.base.add(at), to.as_mut_ptr(), to.len()) };
    }

    /// The first byte that is not as in `bytes`, which are as many.
    pub fn differs(&self, bytes: &[u8]) -> Option<usize> {
        assert_eq!(bytes.len(), self.bytes);
        // SAFETY: both are as long. Nobody writes into the mapping meanwhile: the side under test is called by this thread.
        if unsafe { libc::memcmp(self.base.cast(), bytes.as_ptr().cast(), self.bytes) } == 0 {
            return None;
        }
        let mut is = vec![0; self.bytes];
        self.read(0, &mut is);
        is.iter().zip(bytes).position(|(is, wanted)| is != wanted)
    }

    pub fn read_array<const N: usize>(&self, at: usize) -> [u8; N] {
        let mut bytes = [0; N];
        self.read(at, &mut bytes);
        bytes
    }

    pub fn u16(&self, at: usize) -> u16 {
        u16::from_ne_bytes(self.read_array(at))
    }

    pub fn set_u16(&self, at: usize, value: u16) {
        self.write(at, &value.to_ne_bytes());
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: the range of `map`; spans of it do not outlive `self`.
        unsafe { libc::munmap(self.base.cast(), self.bytes) };
    }
}

/// An anonymous memory file with these seals.
pub fn file(bytes: u64, seals: i32) -> OwnedFd {
    // SAFETY: a NUL-terminated literal.
    let fd = unsafe { libc::memfd_create(c"peer".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) };
    assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
    // SAFETY: just made.
    let file = File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    file.set_len(bytes).expect("memory");
    // SAFETY: no pointers.
    assert!(seals == 0 || unsafe { libc::fcntl(fd, libc::F_ADD_SEALS, seals) } == 0);
    file.into()
}

/// A sealed memory file that could hold a ring at every multiple of 128 bytes: with 8 slots given, most of them good.
pub fn file_full_of_rings(bytes: usize) -> OwnedFd {
    let mut content = vec![0; bytes];
    for ring in content.chunks_mut(128) {
        for good in ring.chunks_exact_mut(16) {
            good[4..8].copy_from_slice(&64u32.to_ne_bytes());
            good[8..12].copy_from_slice(&20_000u32.to_ne_bytes());
        }
        ring[..4].copy_from_slice(&crate::peer::COOKIE);
        ring[4..8].copy_from_slice(&[0u16.to_ne_bytes(), 8u16.to_ne_bytes()].concat());
        // The tail, where there is one.
        if let Some(tail) = ring.get_mut(64..66) {
            tail.fill(0);
        }
    }
    let file = File::from(file(bytes as u64, 0));
    file.write_all_at(&content, 0).expect("memory");
    // SAFETY: no pointers.
    assert!(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK) } == 0);
    file.into()
}
