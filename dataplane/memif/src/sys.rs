//! Every system call that the standard library does not wrap, each as a thin safe function. Nothing else in the crate calls libc, except
//! `doorbell` and `guard` for their own few.
//!
//! All descriptors made or received here are close-on-exec, and all sockets are non-blocking.

use std::fs::File;
use std::io;
use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr::{self, NonNull};
use std::time::Duration;

use libc::{c_int, c_void};

/// Room for ancillary data: one `SCM_CREDENTIALS` (a peer may have set `SO_PASSCRED` for us) and far more `SCM_RIGHTS` than the
/// one descriptor that any message carries. What does not fit is closed by the kernel and flagged `MSG_CTRUNC`.
const CONTROL_BYTES: usize = 256;

/// Most bytes that one call of [`populate`] works on: others that wait for our address space are let in between. A multiple of any
/// base page size.
const POPULATE_BYTES: usize = 4 << 20;

/// Ancillary data must be aligned like `cmsghdr`.
#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

/// What one `recvmsg` brought.
pub(crate) struct Received {
    /// Bytes read; 0 is the end of file.
    pub bytes: usize,
    /// The message was longer than the buffer.
    pub truncated: bool,
    /// Ancillary data was lost.
    pub control_truncated: bool,
    /// Every descriptor that came; dropping closes it.
    pub fds: Vec<OwnedFd>,
}

/// Who is at the other end of a socket, as the kernel recorded it at `connect`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// Process id, in our pid namespace (0 if it is not visible there).
    pub pid: i32,
    /// Effective user id, in our user namespace.
    pub uid: u32,
    /// Effective group id, in our user namespace.
    pub gid: u32,
}

/// Turns the result of a system call that gives -1 on error into a `Result`.
fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

/// Takes over a descriptor that the kernel has just given us.
fn owned(fd: RawFd) -> OwnedFd {
    // SAFETY: every caller passes the result of a system call that makes a new descriptor, checked not to be negative, and
    // passes it once; or a descriptor whose owner has left this table (`LeftBehind`), once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A non-blocking SOCK_SEQPACKET socket of the UNIX family.
pub(crate) fn socket() -> io::Result<OwnedFd> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) }).map(owned)
}

/// Two connected sockets of that kind.
pub(crate) fn socket_pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    let mut fds = [-1; 2];
    // SAFETY: the kernel writes two ints to `fds`, which has room for two.
    check(unsafe { libc::socketpair(libc::AF_UNIX, kind, 0, fds.as_mut_ptr()) })?;
    let [a, b] = fds;
    Ok((owned(a), owned(b)))
}

type RawAddr = (libc::sockaddr_un, libc::socklen_t);

pub(crate) fn bind(fd: BorrowedFd<'_>, (addr, len): &RawAddr) -> io::Result<()> {
    // SAFETY: `addr` is a whole sockaddr_un and `len` no more than its size (checked where it is made).
    check(unsafe { libc::bind(fd.as_raw_fd(), ptr::from_ref(addr).cast(), *len) }).map(drop)
}

pub(crate) fn connect(fd: BorrowedFd<'_>, (addr, len): &RawAddr) -> io::Result<()> {
    // SAFETY: as in `bind`.
    check(unsafe { libc::connect(fd.as_raw_fd(), ptr::from_ref(addr).cast(), *len) }).map(drop)
}

pub(crate) fn listen(fd: BorrowedFd<'_>, backlog: c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::listen(fd.as_raw_fd(), backlog) }).map(drop)
}

/// The next waiting connection; `None` when there is none.
pub(crate) fn accept(fd: BorrowedFd<'_>) -> io::Result<Option<OwnedFd>> {
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the address is not asked for, so both pointers may be null.
    match check(unsafe { libc::accept4(fd.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) }) {
        Ok(fd) => Ok(Some(owned(fd))),
        Err(err) => match err.kind() {
            // A client that has gone again by now is no reason to stop listening.
            io::ErrorKind::WouldBlock | io::ErrorKind::ConnectionAborted | io::ErrorKind::Interrupted => {
                Ok(None)
            }
            _ => Err(err),
        },
    }
}

/// The credentials of the process that connected.
pub(crate) fn credentials(fd: BorrowedFd<'_>) -> io::Result<Credentials> {
    let mut raw = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut len = mem::size_of::<libc::ucred>() as libc::socklen_t;
    let to = ptr::from_mut(&mut raw).cast();
    // SAFETY: the kernel writes at most `len` bytes, the size of `raw`.
    check(unsafe { libc::getsockopt(fd.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED, to, &mut len) })?;
    Ok(Credentials { pid: raw.pid, uid: raw.uid, gid: raw.gid })
}

/// An all-zero message header over one buffer and one control buffer.
fn message_header(iov: &mut libc::iovec, control: &mut Control, control_bytes: usize) -> libc::msghdr {
    // SAFETY: msghdr is plain integers and pointers; all zero is a header without anything.
    let mut header: libc::msghdr = unsafe { mem::zeroed() };
    header.msg_iov = iov;
    header.msg_iovlen = 1;
    if control_bytes > 0 {
        header.msg_control = control.0.as_mut_ptr().cast();
        header.msg_controllen = control_bytes as _;
    }
    header
}

/// Sends one packet, with one descriptor if there is one. Never blocks and never raises SIGPIPE.
pub(crate) fn send(socket: BorrowedFd<'_>, bytes: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
    // SAFETY: CMSG_SPACE and CMSG_LEN only calculate.
    let (space, len) = unsafe { (libc::CMSG_SPACE(4), libc::CMSG_LEN(4)) };
    let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL_BYTES]);
    let header = message_header(&mut iov, &mut control, if fd.is_some() { space as usize } else { 0 });
    if let Some(fd) = fd {
        // SAFETY: the control buffer is aligned for cmsghdr, zeroed, and has `space` bytes (24) of its 256 announced, so the
        // first header and four bytes of data lie inside it.
        unsafe {
            let first = libc::CMSG_FIRSTHDR(&header);
            (*first).cmsg_level = libc::SOL_SOCKET;
            (*first).cmsg_type = libc::SCM_RIGHTS;
            (*first).cmsg_len = len as _;
            libc::CMSG_DATA(first).cast::<RawFd>().write_unaligned(fd.as_raw_fd());
        }
    }
    // SAFETY: header, iov, bytes and control live until the call returns; the kernel only reads them.
    let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Receives one packet and every descriptor with it. `WouldBlock` when there is none.
pub(crate) fn receive(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Received> {
    receive_with(socket, bytes, libc::MSG_DONTWAIT)
}

/// The same, but waits for one: unless [`set_blocking`] was not done. Of several threads that wait, a packet wakes one.
pub(crate) fn receive_or_wait(socket: BorrowedFd<'_>, bytes: &mut [u8]) -> io::Result<Received> {
    receive_with(socket, bytes, 0)
}

fn receive_with(socket: BorrowedFd<'_>, bytes: &mut [u8], flags: c_int) -> io::Result<Received> {
    let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
    let mut control = Control([0; CONTROL_BYTES]);
    let mut header = message_header(&mut iov, &mut control, CONTROL_BYTES);
    let flags = libc::MSG_CMSG_CLOEXEC | flags;
    // SAFETY: the kernel writes at most iov_len bytes to `bytes` and CONTROL_BYTES to `control`; all live until it returns.
    let count = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut header, flags) };
    if count < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(Received {
        bytes: count as usize,
        truncated: header.msg_flags & libc::MSG_TRUNC != 0,
        control_truncated: header.msg_flags & libc::MSG_CTRUNC != 0,
        fds: received_fds(&header),
    })
}

/// Takes over all descriptors in the ancillary data, wanted or not.
fn received_fds(header: &libc::msghdr) -> Vec<OwnedFd> {
    let mut fds = Vec::new();
    // SAFETY: the kernel has filled the control buffer, which outlives this call, and set msg_controllen; the macros stay inside
    // it. Data of SCM_RIGHTS is ints, maybe unaligned, each a new descriptor that nobody else knows of; each is taken once.
    unsafe {
        let mut next = libc::CMSG_FIRSTHDR(header);
        while let Some(control) = next.as_ref() {
            if control.cmsg_level == libc::SOL_SOCKET && control.cmsg_type == libc::SCM_RIGHTS {
                let count = (control.cmsg_len - libc::CMSG_LEN(0) as usize) / mem::size_of::<RawFd>();
                let data = libc::CMSG_DATA(next).cast::<RawFd>();
                fds.extend((0..count).map(|i| owned(data.add(i).read_unaligned())));
            }
            next = libc::CMSG_NXTHDR(header, next);
        }
    }
    fds
}

/// A non-blocking eventfd with count 0.
pub(crate) fn eventfd() -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }).map(owned)
}

/// Whether a descriptor is an eventfd, and not a pipe or file whose write could do anything at all.
pub(crate) fn is_eventfd(fd: BorrowedFd<'_>) -> bool {
    let link = std::fs::read_link(format!("/proc/self/fd/{}", fd.as_raw_fd()));
    link.is_ok_and(|path| path.as_os_str() == "anon_inode:[eventfd]")
}

/// Sets O_NONBLOCK on an open file (which the peer shares, if it came from there).
pub(crate) fn set_nonblocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_flags(fd, |flags| flags | libc::O_NONBLOCK)
}

/// Takes it away.
pub(crate) fn set_blocking(fd: BorrowedFd<'_>) -> io::Result<()> {
    set_flags(fd, |flags| flags & !libc::O_NONBLOCK)
}

fn set_flags(fd: BorrowedFd<'_>, other: impl FnOnce(c_int) -> c_int) -> io::Result<()> {
    // SAFETY: no pointers.
    let flags = check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) })?;
    let wanted = other(flags);
    if wanted == flags {
        return Ok(());
    }
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFL, wanted) }).map(drop)
}

/// Adds 1 to an eventfd. A full one already wakes its reader, so that is no error. Waits if it is full and the peer has cleared
/// O_NONBLOCK: `doorbell` does better.
pub(crate) fn eventfd_signal(fd: BorrowedFd<'_>) -> io::Result<()> {
    let one = 1u64.to_ne_bytes();
    // SAFETY: the kernel reads the eight bytes of `one`.
    let written = unsafe { libc::write(fd.as_raw_fd(), one.as_ptr().cast(), one.len()) };
    ignore_would_block(written)
}

/// Sets an eventfd to 0. Does not block even if the peer has cleared O_NONBLOCK on the file we share with it.
pub(crate) fn eventfd_drain(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut count = [0u8; 8];
    let iov = libc::iovec { iov_base: count.as_mut_ptr().cast(), iov_len: count.len() };
    // SAFETY: the kernel writes at most the eight bytes of `count`. Offset -1: a file without positions.
    let read = unsafe { libc::preadv2(fd.as_raw_fd(), &iov, 1, -1, libc::RWF_NOWAIT) };
    ignore_would_block(read)
}

fn ignore_would_block(result: isize) -> io::Result<()> {
    if result >= 0 {
        return Ok(());
    }
    match io::Error::last_os_error() {
        err if err.kind() == io::ErrorKind::WouldBlock => Ok(()),
        err => Err(err),
    }
}

/// Waits until a descriptor is readable (or closed), or `timeout` (rounded up to ms, at most 2^31 of them) is over. A signal
/// ends the wait early.
pub(crate) fn wait_readable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    wait_for(fd, libc::POLLIN, timeout)
}

/// The same for a descriptor that is to be written to.
pub(crate) fn wait_writable(fd: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    wait_for(fd, libc::POLLOUT, timeout)
}

fn wait_for(fd: BorrowedFd<'_>, events: libc::c_short, timeout: Duration) -> io::Result<bool> {
    let timeout_ms = c_int::try_from(timeout.as_micros().div_ceil(1000)).unwrap_or(c_int::MAX);
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events, revents: 0 };
    // SAFETY: one pollfd, alive for the call.
    match check(unsafe { libc::poll(&mut poll, 1, timeout_ms) }) {
        Ok(ready) => Ok(ready > 0),
        Err(err) if err.kind() == io::ErrorKind::Interrupted => Ok(false),
        Err(err) => Err(err),
    }
}

/// An anonymous memory file of `bytes` bytes that can never shrink, so that no access inside it is beyond its end; nor grow: taking
/// out what a peer has put behind it would take time in which an access of ours may have to wait.
pub(crate) fn sealed_memory(bytes: u64) -> io::Result<File> {
    // SAFETY: the name is a NUL-terminated literal.
    let fd =
        check(unsafe { libc::memfd_create(c"memif".as_ptr(), libc::MFD_CLOEXEC | libc::MFD_ALLOW_SEALING) })?;
    let file = File::from(owned(fd));
    file.set_len(bytes)?;
    // SAFETY: no pointers.
    check(unsafe {
        libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SHRINK | libc::F_SEAL_GROW)
    })?;
    Ok(file)
}

/// Nobody can add a seal any more: so nobody can keep us from taking the pages back ([`empty`]).
pub(crate) fn forbid_seals(file: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_SEAL) }).map(drop)
}

/// Forbids whatever would take a page out of the file: punching holes (fallocate, MADV_REMOVE), and on the way also write(2) and
/// new writable mappings. Mappings that exist stay writable, so map first. Linux 5.1; EINVAL before. Can wait for the owner of
/// the file: `seal` does better.
pub(crate) fn seal_against_holes(file: &File) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, libc::F_SEAL_FUTURE_WRITE) }).map(drop)
}

/// Takes every page out of a memory file, whose length stays: all who have it open find zeros. Refused (EPERM) if it is sealed against
/// that. Can wait for others who have it open: `seal` does better.
pub(crate) fn empty(file: &File) -> io::Result<()> {
    let bytes = libc::off_t::try_from(file.metadata()?.len()).map_err(io::Error::other)?;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    // SAFETY: no pointers. Mappings of the file are of shared memory, whose bytes may change at any time.
    check(unsafe { libc::fallocate(file.as_raw_fd(), mode, 0, bytes) }).map(drop)
}

/// The file's seals; `None` for a file that has none.
fn seals(file: &File) -> Option<c_int> {
    // SAFETY: no pointers. A file without seals gives EINVAL.
    let seals = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_GET_SEALS) };
    (seals >= 0).then_some(seals)
}

/// Whether the file can no longer be mapped for writing.
pub(crate) fn is_sealed_against_writing(file: &File) -> bool {
    seals(file).is_some_and(|seals| seals & (libc::F_SEAL_WRITE | libc::F_SEAL_FUTURE_WRITE) != 0)
}

/// Whether the file is plain shared memory that can never shrink. A huge-page file does not count: its pages can be punched
/// out, and a fault then raises SIGBUS when the pool is empty.
pub(crate) fn is_sealed_memory(file: &File) -> bool {
    seals(file).is_some_and(|seals| seals & libc::F_SEAL_SHRINK != 0)
        && filesystem(file).is_some_and(|stat| stat.f_type == libc::TMPFS_MAGIC)
}

/// Bytes of a page of a huge-page file; `None` for any other.
pub(crate) fn huge_page_bytes(file: &File) -> Option<u64> {
    let stat = filesystem(file).filter(|stat| stat.f_type == libc::HUGETLBFS_MAGIC)?;
    u64::try_from(stat.f_bsize).ok().filter(|bytes| *bytes > 0)
}

/// Of the file system that a file is in.
fn filesystem(file: &File) -> Option<libc::statfs> {
    // SAFETY: statfs is plain integers, for which all zero is a value.
    let mut stat: libc::statfs = unsafe { mem::zeroed() };
    // SAFETY: the kernel writes one statfs.
    let result = unsafe { libc::fstatfs(file.as_raw_fd(), &mut stat) };
    (result == 0).then_some(stat)
}

/// Maps the first `bytes` of a file, shared, for reading and writing.
pub(crate) fn map(file: &File, bytes: usize) -> io::Result<NonNull<u8>> {
    let (flags, protection) = (libc::MAP_SHARED, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: address null: the kernel chooses a free range, so no existing memory changes.
    let base = unsafe { libc::mmap(ptr::null_mut(), bytes, protection, flags, file.as_fd().as_raw_fd(), 0) };
    if base == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

/// The same at an address that is a multiple of `alignment`, a power of two, if one is free.
pub(crate) fn map_aligned(file: &File, bytes: usize, alignment: usize) -> io::Result<NonNull<u8>> {
    let (private, none) = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE, libc::PROT_NONE);
    let Some(room) = bytes.checked_add(alignment) else { return map(file, bytes) };
    // SAFETY: address null: the kernel chooses a free range, so no existing memory changes.
    let start = unsafe { libc::mmap(ptr::null_mut(), room, none, private, -1, 0) };
    if start == libc::MAP_FAILED {
        return map(file, bytes);
    }
    let at = start.map_addr(|address| address.next_multiple_of(alignment));
    // SAFETY: the range was taken just now, and nobody else knows of it. It was looked for only: from here on it may be anybody's.
    unsafe { libc::munmap(start, room) };
    let (flags, protection) =
        (libc::MAP_SHARED | libc::MAP_FIXED_NOREPLACE, libc::PROT_READ | libc::PROT_WRITE);
    // SAFETY: where something is mapped by now this fails, so no existing memory changes.
    let base = unsafe { libc::mmap(at, bytes, protection, flags, file.as_fd().as_raw_fd(), 0) };
    if base == libc::MAP_FAILED {
        return map(file, bytes); // where it is refused for another reason, so is this
    }
    // A kernel older than 4.17 takes the address for a hint: then it is any.
    NonNull::new(base.cast()).ok_or_else(|| io::Error::from(io::ErrorKind::OutOfMemory))
}

/// Asks for pages that are larger than the smallest. Only a hint.
pub(crate) fn want_large_pages(base: NonNull<u8>, bytes: usize) {
    // SAFETY: this advice changes no byte of any memory, and addresses that are not mapped are reported.
    unsafe { libc::madvise(base.as_ptr().cast(), bytes, libc::MADV_HUGEPAGE) };
}

/// How memory is made present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Populate {
    /// Whatever file it is of: as if each page were written to.
    AnyFile,
    /// Of a memory file (tmpfs), as if each page were read: the kernel maps those that are in the file already sixteen at a time, which
    /// takes half as long. Writing needs no fault afterwards either: what such a file maps for writing is never write-protected, for
    /// nothing is ever written back.
    MemoryFile,
}

/// Makes every page of mapped memory present and writable, so that using it needs no page fault. Where an access would be a
/// SIGBUS, this is an error instead. Linux 5.14; before that it does nothing.
pub(crate) fn populate(base: NonNull<u8>, bytes: usize, how: Populate) -> io::Result<()> {
    let advice = match how {
        Populate::AnyFile => libc::MADV_POPULATE_WRITE,
        Populate::MemoryFile => libc::MADV_POPULATE_READ,
    };
    for start in (0..bytes).step_by(POPULATE_BYTES) {
        let slice = base.as_ptr().wrapping_add(start).cast::<c_void>();
        let length = POPULATE_BYTES.min(bytes - start);
        // SAFETY: this advice changes no byte of any memory, and addresses that are not mapped are reported.
        match check(unsafe { libc::madvise(slice, length, advice) }) {
            Err(err) if err.raw_os_error() == Some(libc::EINVAL) => return Ok(()),
            result => result?,
        };
    }
    Ok(())
}

/// Undoes [`map`] and [`map_aligned`].
///
/// # Safety
/// `base` and `bytes` are those of one `map`, and nothing uses that memory from here on.
pub(crate) unsafe fn unmap(base: NonNull<u8>, bytes: usize) {
    // SAFETY: the caller's promise. It cannot fail for a range of whole pages, as `offer` demands of huge ones.
    unsafe { libc::munmap(base.as_ptr().cast::<c_void>(), bytes) };
}

/// Blocks all signals in this thread, and in those that it starts: others of the process take them.
pub(crate) fn block_signals() {
    // SAFETY: a signal set is plain integers; sigfillset fills it, and pthread_sigmask only reads it. Neither can fail like this.
    unsafe {
        let mut all: libc::sigset_t = mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_BLOCK, &all, ptr::null_mut());
    }
}

/// Gives this thread, and those that it starts, a table of descriptors of their own with nothing in it but `kept`: what it waits for
/// then keeps nothing open that others close. The table of the others has `kept`, too, and for good: that one is the result, for another
/// thread to close. Linux 5.9; before that nothing changes, and there is no result.
pub(crate) fn leave_descriptors(kept: BorrowedFd<'_>) -> Option<LeftBehind> {
    let number = kept.as_raw_fd().unsigned_abs();
    let close = |from: u32, to: u32| {
        // SAFETY: no pointers. With this flag the thread gets a table of its own first, so no descriptor that another one owns is
        // closed; this one owns `kept` alone.
        unsafe { libc::syscall(libc::SYS_close_range, from, to, libc::CLOSE_RANGE_UNSHARE) == 0 }
    };
    let is_alone = close(number + 1, u32::MAX);
    if number > 0 {
        close(0, number - 1);
    }
    is_alone.then_some(LeftBehind(kept.as_raw_fd()))
}

/// A descriptor in a table that its owner has left.
#[derive(Debug)]
pub(crate) struct LeftBehind(RawFd);

impl LeftBehind {
    /// Closes it. Not in the thread that has left, where the same number is the owner's.
    pub(crate) fn close(self) {
        drop(owned(self.0));
    }
}

/// Gives up all capabilities of this thread, and of those that it starts, and the chance to get any.
pub(crate) fn drop_capabilities() -> io::Result<()> {
    /// Version 3 of the interface: two words of each set.
    const VERSION: u32 = 0x2008_0522;
    let header = [VERSION, 0];
    let none = [0u32; 6];
    // SAFETY: no pointers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) })?;
    // SAFETY: the kernel reads the two words of the header (version, this thread) and six words of sets.
    check(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) } as c_int).map(drop)
}

/// Ends the process, whatever its threads do.
pub(crate) fn exit_at_once(status: c_int) -> ! {
    // SAFETY: no memory is touched again; nothing here has to be tidied up.
    unsafe { libc::_exit(status) }
}
