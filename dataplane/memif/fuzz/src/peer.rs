//! The far end of a control connection: bytes and descriptors, and the messages of an honest peer, written out by hand.

use std::io;
use std::mem;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use peregrine_memif::{Client, ClientConfig, Handshake, Limits, Listener, ListenerConfig, SocketAddr};

/// What every ring starts with.
pub const COOKIE: [u8; 4] = 0x03E3_1F20u32.to_ne_bytes();
pub const MESSAGE_BYTES: usize = 128;
/// Room for more descriptors than the crate has; the kernel cuts there, not here.
const CONTROL_BYTES: usize = 1024;

pub type Message = [u8; MESSAGE_BYTES];

/// The socket of whoever is not under test.
#[derive(Debug)]
pub struct Peer(OwnedFd);

fn check(result: i32, doing: &str) -> i32 {
    assert!(result >= 0, "{doing}: {}", io::Error::last_os_error());
    result
}

fn socket() -> OwnedFd {
    let kind = libc::SOCK_SEQPACKET | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, kind, 0) }, "socket");
    // SAFETY: just made.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// This process's name for one of its sockets, in the abstract namespace.
fn name(of: &str) -> String {
    format!("peregrine-fuzz-{of}-{}", std::process::id())
}

fn raw_address(name: &str) -> (libc::sockaddr_un, libc::socklen_t) {
    let mut raw = libc::sockaddr_un { sun_family: libc::AF_UNIX as _, sun_path: [0; 108] };
    for (to, from) in raw.sun_path[1..].iter_mut().zip(name.bytes()) {
        *to = from as _;
    }
    (raw, (mem::size_of::<libc::sa_family_t>() + 1 + name.len()) as _)
}

/// A listener of the crate's, with a peer connected to it. A handshake has all the time it wants: a slow machine is no finding.
pub fn server_under_test() -> (Peer, Handshake) {
    let limits = Limits { handshake_timeout: std::time::Duration::from_secs(3600), ..Limits::default() };
    let config = ListenerConfig { limits, ..ListenerConfig::default() };
    let listener = Listener::bind(&SocketAddr::Abstract(name("server")), config).expect("listen");
    let (raw, len) = raw_address(&name("server"));
    let socket = socket();
    // SAFETY: a whole sockaddr_un.
    check(unsafe { libc::connect(socket.as_raw_fd(), ptr::from_ref(&raw).cast(), len) }, "connect");
    let handshake = listener.accept().expect("accept").expect("the peer waits to be accepted");
    (Peer(socket), handshake)
}

/// A client of the crate's, and the peer that has accepted it.
pub fn client_under_test(config: ClientConfig) -> (Peer, Client) {
    let listener = socket();
    let (raw, len) = raw_address(&name("client"));
    // SAFETY: a whole sockaddr_un.
    check(unsafe { libc::bind(listener.as_raw_fd(), ptr::from_ref(&raw).cast(), len) }, "bind");
    // SAFETY: no pointers.
    check(unsafe { libc::listen(listener.as_raw_fd(), 1) }, "listen");
    let client = Client::connect(&SocketAddr::Abstract(name("client")), config).expect("connect");
    let flags = libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK;
    // SAFETY: the address is not asked for.
    let fd = unsafe { libc::accept4(listener.as_raw_fd(), ptr::null_mut(), ptr::null_mut(), flags) };
    // SAFETY: just made.
    (Peer(unsafe { OwnedFd::from_raw_fd(check(fd, "accept")) }), client)
}

#[repr(C, align(8))]
struct Control([u8; CONTROL_BYTES]);

impl Peer {
    /// Sends bytes and descriptors as they are. What the other side does not take (closed, full) is lost.
    pub fn send(&self, bytes: &[u8], fds: &[RawFd]) {
        let data = mem::size_of_val(fds) as u32;
        // SAFETY: these only calculate.
        let (space, len) = unsafe { (libc::CMSG_SPACE(data), libc::CMSG_LEN(data)) };
        assert!(space as usize <= CONTROL_BYTES);
        let mut iov = libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() };
        let mut control = Control([0; CONTROL_BYTES]);
        // SAFETY: plain integers and pointers.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        (header.msg_iov, header.msg_iovlen) = (&mut iov, 1);
        if !fds.is_empty() {
            header.msg_control = control.0.as_mut_ptr().cast();
            header.msg_controllen = space as _;
            // SAFETY: the control buffer is aligned and has room for this one header and its data.
            unsafe {
                let first = libc::CMSG_FIRSTHDR(&header);
                (*first).cmsg_level = libc::SOL_SOCKET;
                (*first).cmsg_type = libc::SCM_RIGHTS;
                (*first).cmsg_len = len as _;
                ptr::copy_nonoverlapping(fds.as_ptr(), libc::CMSG_DATA(first).cast(), fds.len());
            }
        }
        // SAFETY: all live until the call returns.
        unsafe { libc::sendmsg(self.0.as_raw_fd(), &header, libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT) };
    }

    /// The next message from the side under test, which never sends anything else than whole ones with at most one descriptor.
    pub fn receive(&self) -> Option<(Message, Option<OwnedFd>)> {
        let mut bytes = [0; MESSAGE_BYTES];
        let mut iov = libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() };
        let mut control = Control([0; CONTROL_BYTES]);
        // SAFETY: plain integers and pointers.
        let mut header: libc::msghdr = unsafe { mem::zeroed() };
        (header.msg_iov, header.msg_iovlen) = (&mut iov, 1);
        (header.msg_control, header.msg_controllen) = (control.0.as_mut_ptr().cast(), CONTROL_BYTES as _);
        let flags = libc::MSG_CMSG_CLOEXEC | libc::MSG_DONTWAIT;
        // SAFETY: the kernel writes into the two buffers, which live until the call returns.
        let count = unsafe { libc::recvmsg(self.0.as_raw_fd(), &mut header, flags) };
        if count <= 0 {
            return None;
        }
        assert_eq!((count as usize, header.msg_flags & libc::MSG_TRUNC), (MESSAGE_BYTES, 0));
        assert!((1..=8).contains(&u16::from_ne_bytes([bytes[0], bytes[1]])), "a message of no known type");
        // SAFETY: the kernel has filled the control buffer; a header of SCM_RIGHTS has at least one descriptor, which is new.
        let fd = unsafe {
            let first = libc::CMSG_FIRSTHDR(&header);
            let one = !first.is_null() && (*first).cmsg_type == libc::SCM_RIGHTS;
            assert!(!one || (*first).cmsg_len == libc::CMSG_LEN(4) as _, "more than one descriptor");
            one.then(|| OwnedFd::from_raw_fd(libc::CMSG_DATA(first).cast::<RawFd>().read_unaligned()))
        };
        Some((bytes, fd))
    }
}

pub fn eventfd() -> OwnedFd {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) }, "eventfd");
    // SAFETY: just made.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// A message of this type with these fields, each at its offset.
fn message(kind: u16, fields: &[(usize, &[u8])]) -> Message {
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[..2].copy_from_slice(&kind.to_ne_bytes());
    for (at, field) in fields {
        bytes[*at..at + field.len()].copy_from_slice(field);
    }
    bytes
}

pub fn ack() -> Message {
    message(1, &[])
}

pub fn hello(highest: u16, log2: u8) -> Message {
    let (version, highest) = (0x0200u16.to_ne_bytes(), highest.to_ne_bytes());
    message(
        2,
        &[
            (2, b"peer"),
            (34, &version),
            (36, &version),
            (38, &highest),
            (40, &highest),
            (42, &highest),
            (44, &[log2]),
        ],
    )
}

pub fn init(secret: &[u8]) -> Message {
    message(3, &[(2, &0x0200u16.to_ne_bytes()), (9, secret), (33, b"peer")])
}

pub fn add_region(index: u16, bytes: u64) -> Message {
    message(4, &[(2, &index.to_ne_bytes()), (4, &bytes.to_ne_bytes())])
}

pub fn add_ring(s2m: bool, index: u16, offset: u32, log2: u8) -> Message {
    let (s2m, index) = (u16::from(s2m).to_ne_bytes(), index.to_ne_bytes());
    message(5, &[(2, &s2m), (4, &index), (8, &offset.to_ne_bytes()), (12, &[log2])])
}

pub fn connect() -> Message {
    message(6, &[(2, b"if0")])
}

pub fn connected() -> Message {
    message(7, &[(2, b"if0")])
}

pub fn disconnect() -> Message {
    message(8, &[(6, b"bye")])
}
