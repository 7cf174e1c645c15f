//! Waiting until the XDP programs that run now have ended, and what they redirected lies in the sockets' rings.
//!
//! A program that has just read the old rules still acts by them after control has written new ones: for a moment, or for as long as the
//! CPU is away that it runs on. The kernel publishes what programs redirect before it leaves the same stretch of its receive loop, which
//! counts as one reader of RCU; so what is to be waited for is an RCU grace period, some 10 ms. To replace a map in a map
//! is the call that returns after one: it is there for exactly this question (`maybe_wait_bpf_programs` in kernel/bpf/syscall.c).
//! membarrier(2) does it too, but not where CPUs run without a tick (`nohz_full`), which is where workers like to run.
//!
//! Called by the engine when rules change. The call blocks, so a thread of its own makes it.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// If the kernel cannot be asked, this is taken to be longer than any program runs.
const INSTEAD: Duration = Duration::from_secs(1);

/// Such a wait.
#[derive(Debug)]
pub(crate) struct Grace {
    /// Ends with it.
    thread: Option<JoinHandle<()>>,
    /// If there is no thread.
    until: Instant,
}

impl Grace {
    /// It begins now.
    pub(crate) fn begin() -> Grace {
        let body = || {
            if wait_for_programs().is_err() {
                std::thread::sleep(INSTEAD);
            }
        };
        let thread = std::thread::Builder::new().name("grace".into()).spawn(body).ok();
        Grace { thread, until: Instant::now() + INSTEAD }
    }

    /// All that ran when it began have ended.
    pub(crate) fn is_over(&self) -> bool {
        match &self.thread {
            Some(thread) => thread.is_finished(),
            None => Instant::now() >= self.until,
        }
    }
}

/// Blocks for an RCU grace period.
fn wait_for_programs() -> io::Result<()> {
    let inner = map(libxdp_sys::bpf_map_type_BPF_MAP_TYPE_ARRAY, None)?;
    let outer = map(libxdp_sys::bpf_map_type_BPF_MAP_TYPE_ARRAY_OF_MAPS, Some(&inner))?;
    let (key, value) = (0u32, inner.as_raw_fd());
    // SAFETY: a key and a value of four bytes each, as the map was made.
    let result = unsafe {
        libxdp_sys::bpf_map_update_elem(
            outer.as_raw_fd(),
            (&raw const key).cast(),
            (&raw const value).cast(),
            0,
        )
    };
    if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
}

/// A map of one entry of four bytes.
fn map(kind: libxdp_sys::bpf_map_type, inner: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    // SAFETY: all zero is a valid value: numbers only.
    let mut options: libxdp_sys::bpf_map_create_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of::<libxdp_sys::bpf_map_create_opts>();
    options.inner_map_fd = inner.map_or(0, |inner| inner.as_raw_fd().cast_unsigned());
    // SAFETY: a terminated name, and a structure of the size that its first member says.
    let fd = unsafe { libxdp_sys::bpf_map_create(kind, c"grace".as_ptr(), 4, 4, 1, &options) };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: make test runs it"]
    fn the_kernel_answers() {
        wait_for_programs().unwrap();
    }

    #[test]
    fn it_is_over_whether_the_kernel_answers_or_not() {
        let deadline = Instant::now() + 20 * INSTEAD;
        let begun = [Grace::begin(), Grace { thread: None, until: Instant::now() + INSTEAD / 10 }];
        assert!(!begun[1].is_over());
        while !begun.iter().all(Grace::is_over) {
            assert!(Instant::now() < deadline, "{begun:?}");
            std::thread::yield_now();
        }
    }
}
