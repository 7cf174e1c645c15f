//! Surviving memory that a peer takes away: a handler of SIGBUS, and the table of the mappings that it guards.
//!
//! A client whose regions are not sealed can truncate them, and the next access beyond the new end raises SIGBUS, which ends the
//! process. With the handler installed ([`guard_memory`]) the kernel calls it instead, in the thread that made the access: it puts
//! empty private pages over the whole mapping and marks it lost; the access is made again, and finds zeros. The next look at a ring
//! of that connection finds the mark and is `Violation::MemoryLost`, so the owner disconnects that peer and no other.
//!
//! `offer` registers mappings, `region` keeps the registrations and gives them back before it unmaps. What must hold:
//! - The handler only does what a signal handler may: atomics on statics, mmap(2), and calling the handler before it.
//! - The table is read without a lock, while others change it. Each entry has a version, odd while it changes. An entry that was read
//!   whole and holds the faulting address is that of the mapping which the faulting thread is using: mappings do not overlap, an
//!   entry is there only while its mapping is, and a mapping that a thread uses is kept by it.
//! - Only faults of a page that is not to be had (BUS_ADRERR: beyond the end of the file; or the file system is full, or the pool of huge
//!   pages empty) in registered mappings are ours. All others go on to whoever handled them before, such as broken memory
//!   (BUS_MCEERR_*): with sealed regions and with any other memory it ends the process as always.
//! - A signal that is passed on and survived leaves our handler in place, whatever the one before it has done to the action.

use std::io;
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering, fence};
use std::sync::{Mutex, OnceLock, PoisonError};

use libc::{c_int, c_void, siginfo_t};

use crate::error::Reject;

/// Mappings that can be guarded at the same time.
pub(crate) const GUARDED_MAX: usize = 1024;

static TABLE: [Entry; GUARDED_MAX] = [const { Entry::new() }; GUARDED_MAX];

/// What handled SIGBUS before us. Its presence says that our handler is installed.
static BEFORE: OnceLock<libc::sigaction> = OnceLock::new();

/// Installs a handler of SIGBUS for the whole process, so that a client whose memory is not sealed
/// ([`ServerConfig::allow_unsealed`](crate::ServerConfig::allow_unsealed)) cannot end the process by taking its memory away: only its own
/// connection ends, with [`Violation::MemoryLost`](crate::Violation::MemoryLost). Memory of such clients is guarded from then on,
/// up to 1024 regions at a time; a client beyond these is refused. Connections made before are not guarded. Without such clients
/// there is no need for it.
///
/// Call it once, early, after other libraries have installed their handlers: signals that are not ours are passed on to what
/// handled them before, but a handler that is installed later and does not do likewise turns the guard off. Calling it again does
/// no harm, and installs it again where somebody has set SIGBUS back to its default.
///
/// In the place of lost memory the handler maps as much empty memory, of which nothing is touched before it is used. With mlockall(2)
/// use MCL_ONFAULT: else all of it is made present there and then, in the thread that made the access, or cannot be had
/// (RLIMIT_MEMLOCK); the same is true of vm.overcommit_memory = 2. Where it cannot be had, the process ends as without the guard.
///
/// # Errors
/// Those of sigaction(2).
pub fn guard_memory() -> io::Result<()> {
    static INSTALL: Mutex<()> = Mutex::new(());
    let _alone = INSTALL.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: sigaction is plain integers and pointers, for which all zero is a value.
    let mut present: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: only reads the present action, into a whole sigaction.
    check(unsafe { libc::sigaction(libc::SIGBUS, ptr::null(), &mut present) })?;
    // Another handler than ours was installed after it, and may call it: to be called by ours in turn would never end.
    if BEFORE.get().is_some() && present.sa_sigaction != libc::SIG_DFL {
        return Ok(());
    }
    install()?;
    // A fault in between finds no predecessor, and an empty table.
    let _ = BEFORE.set(present);
    Ok(())
}

/// Makes our handler the action of SIGBUS. May be called in a signal handler.
fn install() -> io::Result<()> {
    // SAFETY: as in `guard_memory`.
    let mut ours: libc::sigaction = unsafe { std::mem::zeroed() };
    let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) = on_sigbus;
    ours.sa_sigaction = handler as usize;
    // On the thread's alternate stack if it has one; and not blocked meanwhile, for the sake of handlers that we call.
    ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | libc::SA_NODEFER;
    // SAFETY: `on_sigbus` has the form that SA_SIGINFO asks for, and does only what a handler may.
    check(unsafe { libc::sigaction(libc::SIGBUS, &ours, ptr::null_mut()) })
}

fn check(result: c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// One guarded mapping, or a place for one.
#[derive(Debug)]
struct Entry {
    /// Somebody has it.
    taken: AtomicBool,
    /// Odd while `base` and `bytes` change, and another number afterwards.
    version: AtomicUsize,
    base: AtomicUsize,
    /// 0: no mapping.
    bytes: AtomicUsize,
    lost: AtomicBool,
}

impl Entry {
    const fn new() -> Self {
        Self {
            taken: AtomicBool::new(false),
            version: AtomicUsize::new(0),
            base: AtomicUsize::new(0),
            bytes: AtomicUsize::new(0),
            lost: AtomicBool::new(false),
        }
    }

    /// Only by whoever has taken it.
    fn set(&self, base: usize, bytes: usize) {
        let version = self.version.load(Ordering::Relaxed);
        self.version.store(version.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        self.base.store(base, Ordering::Relaxed);
        self.bytes.store(bytes, Ordering::Relaxed);
        self.version.store(version.wrapping_add(2), Ordering::Release);
    }

    /// Base and bytes as they were at one moment, if the mapping holds `address`. An entry that is just changing is nobody's who is
    /// using it.
    fn holding(&self, address: usize) -> Option<(usize, usize)> {
        let version = self.version.load(Ordering::Acquire);
        let (base, bytes) = (self.base.load(Ordering::Relaxed), self.bytes.load(Ordering::Relaxed));
        fence(Ordering::Acquire);
        let is_whole = version.is_multiple_of(2) && self.version.load(Ordering::Relaxed) == version;
        (is_whole && address.wrapping_sub(base) < bytes).then_some((base, bytes))
    }
}

/// A mapping in the table; not any more once it is dropped.
#[derive(Debug)]
pub(crate) struct Guard(&'static Entry);

impl Guard {
    /// Guards a mapping, if [`guard_memory`] was called; to be dropped before it is unmapped.
    pub fn new(base: usize, bytes: usize) -> Result<Option<Self>, Reject> {
        if BEFORE.get().is_none() {
            return Ok(None);
        }
        let take = |entry: &&Entry| {
            entry.taken.compare_exchange(false, true, Ordering::Acquire, Ordering::Relaxed).is_ok()
        };
        let entry = TABLE.iter().find(take).ok_or(Reject::TooManyGuarded { max: GUARDED_MAX })?;
        entry.lost.store(false, Ordering::Relaxed);
        entry.set(base, bytes);
        Ok(Some(Self(entry)))
    }

    /// Whether the memory was taken away, and zeros stand in its place.
    #[inline]
    pub fn is_lost(&self) -> bool {
        self.0.lost.load(Ordering::Relaxed)
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.0.set(0, 0);
        self.0.taken.store(false, Ordering::Release);
    }
}

/// The handler.
extern "C" fn on_sigbus(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a whole siginfo_t; a SIGBUS with this code has an address.
    let address = unsafe { ((*info).si_code == libc::BUS_ADRERR).then(|| (*info).si_addr() as usize) };
    if !address.is_some_and(replace) {
        pass_on(signal, info, context);
    }
}

/// Puts zeros in the place of the guarded mapping that holds the address; false if there is none, or they cannot be had.
fn replace(address: usize) -> bool {
    let found = TABLE.iter().find_map(|entry| entry.holding(address).map(|place| (entry, place)));
    let Some((entry, (base, bytes))) = found else { return false };
    // First, so that no thread finds zeros without the mark.
    entry.lost.store(true, Ordering::SeqCst);
    // All of it: one signal for a mapping, not one for each of its pages; and huge pages can only be replaced whole (`offer` takes
    // no region that ends inside one).
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_NORESERVE;
    let protection = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: errno of the interrupted code is kept. The range is that of a mapping of ours whose users expect any bytes at any time,
    // and which is not unmapped meanwhile: the faulting thread, which is waiting for us, keeps it (see the head of this file).
    let mapped = unsafe {
        let errno = *libc::__errno_location();
        let mapped = libc::mmap(base as *mut c_void, bytes, protection, flags, -1, 0);
        *libc::__errno_location() = errno;
        mapped
    };
    mapped != libc::MAP_FAILED
}

/// A signal that is not ours: what would have happened without us.
fn pass_on(signal: c_int, info: *mut siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel's siginfo_t.
    let code = unsafe { (*info).si_code };
    // The codes of an access that is made again when the handler returns. All others were sent: by a process (0 and below), or by the
    // kernel, which has found broken memory that nobody has touched yet (BUS_MCEERR_AO).
    let is_fault =
        matches!(code, libc::BUS_ADRALN | libc::BUS_ADRERR | libc::BUS_OBJERR | libc::BUS_MCEERR_AR);
    let (action, flags) = BEFORE.get().map_or((libc::SIG_DFL, 0), |old| (old.sa_sigaction, old.sa_flags));
    match action {
        libc::SIG_IGN if !is_fault => {}
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: an all-zero sigaction is the default action. A fault is then made again, and is the end; a signal that was sent
            // is sent again, and is the end as well.
            unsafe {
                let default: libc::sigaction = std::mem::zeroed();
                libc::sigaction(signal, &default, ptr::null_mut());
                if !is_fault {
                    libc::raise(signal);
                }
            }
        }
        handler if flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever installed it with SA_SIGINFO gave a function of this form.
            let handler: extern "C" fn(c_int, *mut siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: whoever installed it without SA_SIGINFO gave a function of this form.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
    if !is_fault && action != libc::SIG_IGN {
        // It was survived, but the handler may have set the default action: that of Rust's standard library does. (After a fault this
        // is as it should be: the access is made again, and ends the process.) It cannot fail with these arguments.
        let _ = install();
    }
}
