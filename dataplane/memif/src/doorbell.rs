//! Waking a peer through its eventfd without ever waiting for it.
//!
//! An eventfd whose count is at its largest makes a plain write wait for a reader, unless O_NONBLOCK is set; and that flag belongs to
//! the open file, which the peer shares and can change at any moment. So a hostile peer could stop our data thread inside write(2) for
//! as long as it likes. The kernel's own signal never waits: asynchronous I/O (`io_submit`) raises it when a request with
//! IOCB_FLAG_RESFD completes. Our request is to read one byte of a memory file of our own, which completes within the call.
//!
//! Each thread that rings makes one context, in [`warm_up`] or when it first rings. Where asynchronous I/O is not to be had (a
//! seccomp filter, a kernel without it) it falls back to the plain write, with that one weakness.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

use crate::sys;

/// Completions that may wait to be collected. The kernel rounds it up to some multiple of the processors.
const EVENTS: u32 = 64;
const OPCODE_PREAD: u16 = 0;
const FLAG_RESFD: u32 = 1;

/// The kernel's `struct iocb` (linux/aio_abi.h) on a little-endian machine.
#[repr(C)]
#[derive(Default)]
struct Request {
    data: u64,
    key: u32,
    rw_flags: i32,
    opcode: u16,
    priority: i16,
    file: u32,
    buffer: u64,
    bytes: u64,
    offset: i64,
    reserved: u64,
    flags: u32,
    event_fd: u32,
}

const _: () = assert!(size_of::<Request>() == 64);

/// The kernel's `struct io_event`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Completion([u64; 4]);

/// One thread's asynchronous I/O context.
#[derive(Debug)]
struct Context {
    id: libc::c_ulong,
    file: File,
}

thread_local! {
    static CONTEXT: OnceCell<Option<Context>> = const { OnceCell::new() };
}

/// Prepares this thread for [`TxRing::flush`](crate::TxRing::flush): call it once, at the start, on each thread that will flush.
/// Otherwise its first wake-up makes what waking needs (system calls and allocations, some 100 µs). Calling it again does no
/// harm.
///
/// Returns whether wake-ups on this thread never wait for a peer; false if asynchronous I/O (`io_setup`) is not to be had here (a
/// seccomp filter, `fs.aio-max-nr` used up), so that a hostile peer could hold the thread in its own eventfd.
pub fn warm_up() -> bool {
    // Once for real, into an eventfd that nobody reads: the code and the kernel's side are then warm as well.
    let rung = sys::eventfd().and_then(|event| ring(event.as_fd()));
    rung.is_ok() && CONTEXT.try_with(|cell| matches!(cell.get(), Some(Some(_)))).unwrap_or(false)
}

/// Adds 1 to an eventfd. Never waits; a count at its largest stays there, and its reader is awake anyway.
///
/// # Errors
/// Those of io_submit(2) or write(2).
pub(crate) fn ring(event: BorrowedFd<'_>) -> io::Result<()> {
    let rung = CONTEXT.try_with(|cell| {
        cell.get_or_init(|| Context::new().ok()).as_ref().map(|context| context.ring(event))
    });
    match rung {
        Ok(Some(result)) => result,
        // No asynchronous I/O here, or the thread is ending.
        Ok(None) | Err(_) => sys::eventfd_signal(event),
    }
}

impl Context {
    fn new() -> io::Result<Self> {
        if cfg!(target_endian = "big") {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let file = sys::sealed_memory(1)?;
        let mut id: libc::c_ulong = 0;
        // SAFETY: the kernel writes one context id.
        check(unsafe { libc::syscall(libc::SYS_io_setup, EVENTS, &mut id) })?;
        Ok(Self { id, file })
    }

    fn ring(&self, event: BorrowedFd<'_>) -> io::Result<()> {
        match self.submit(event) {
            // Room for completions is used up.
            Err(err) if err.kind() == io::ErrorKind::WouldBlock => {
                self.collect()?;
                self.submit(event)
            }
            result => result,
        }
    }

    fn submit(&self, event: BorrowedFd<'_>) -> io::Result<()> {
        let mut byte = 0u8;
        let mut request = Request {
            opcode: OPCODE_PREAD,
            file: self.file.as_raw_fd() as u32,
            buffer: (&raw mut byte) as u64,
            bytes: 1,
            flags: FLAG_RESFD,
            event_fd: event.as_raw_fd() as u32,
            ..Request::default()
        };
        let mut list = [&raw mut request];
        // SAFETY: one pointer to one request, both alive for the call. Reading a memory file completes within it, so the kernel
        // does not touch `byte` afterwards.
        check(unsafe { libc::syscall(libc::SYS_io_submit, self.id, 1, list.as_mut_ptr()) })
    }

    /// Throws all completions away.
    fn collect(&self) -> io::Result<()> {
        let mut events = [Completion::default(); EVENTS as usize];
        let (least, most) = (0, EVENTS);
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: the kernel writes at most `most` completions, for which there is room.
        check(unsafe {
            libc::syscall(libc::SYS_io_getevents, self.id, least, most, events.as_mut_ptr(), &mut now)
        })
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: no pointers. The context is ours and has no request under way.
        unsafe { libc::syscall(libc::SYS_io_destroy, self.id) };
    }
}

fn check(result: libc::c_long) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use std::os::fd::OwnedFd;

    use super::*;

    fn count(event: &OwnedFd) -> u64 {
        let mut bytes = [0; 8];
        io::Read::read_exact(&mut File::from(event.try_clone().unwrap()), &mut bytes).unwrap();
        u64::from_ne_bytes(bytes)
    }

    #[test]
    fn a_warm_thread_has_its_context() {
        let has_context = || CONTEXT.with(|cell| cell.get().is_some());
        std::thread::spawn(move || {
            assert!(!has_context());
            assert!(warm_up() && has_context() && warm_up());
        })
        .join()
        .unwrap();
    }

    #[test]
    fn every_ring_counts() {
        let event = sys::eventfd().unwrap();
        let context = Context::new().unwrap();
        for _ in 0..10_000 {
            context.ring(event.as_fd()).unwrap();
        }
        assert_eq!(count(&event), 10_000);
        ring(event.as_fd()).unwrap();
        sys::eventfd_signal(event.as_fd()).unwrap();
        assert_eq!(count(&event), 2);
    }
}
