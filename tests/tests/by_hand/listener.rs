//! The server's side of the memif handshake, message by message, without the library that would not say anything wrong; and
//! the client's memory, as such a server gets it.

use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use peregrine_tests::{PATIENCE, until};
use rustix::io::{pread, pwrite};
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen,
    recvmsg, sendmsg, socket_with,
};

/// Message types.
pub const ACK: u16 = 1;
pub const HELLO: u16 = 2;
const INIT: u16 = 3;
const ADD_REGION: u16 = 4;
const ADD_RING: u16 = 5;
const CONNECT: u16 = 6;
pub const CONNECTED: u16 = 7;
pub const DISCONNECT: u16 = 8;

/// Right answers that a client with one queue pair needs: HELLO, then one to each of INIT, ADD_REGION, ADD_RING twice, CONNECT.
pub const ANSWERS: usize = 6;

/// Descriptors that one message can carry (the kernel's `SCM_MAX_FD`).
pub const DESCRIPTORS_MAX: usize = 253;

/// A listening socket.
pub struct Listening {
    socket: OwnedFd,
    path: PathBuf,
}

impl Listening {
    pub fn bind(path: &Path, backlog: i32) -> Listening {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        bind(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        listen(&socket, backlog).unwrap();
        Listening { socket, path: path.to_owned() }
    }

    /// The next client.
    pub fn accept(&self) -> Visitor {
        let mut socket = None;
        until("a client to come", || {
            socket = accept_with(&self.socket, SocketFlags::CLOEXEC).ok();
            socket.is_some()
        });
        let socket = socket.unwrap();
        set_socket_timeout(&socket, Timeout::Recv, Some(PATIENCE)).unwrap();
        Visitor { socket, id: 0, memory: None, events: Vec::new(), rings: Vec::new() }
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        std::fs::remove_file(&self.path).unwrap();
    }
}

/// A ring of a client's memory: where it lies.
#[derive(Clone, Copy, Debug)]
pub struct RingAt {
    /// From the client to us.
    pub s2m: bool,
    offset: u64,
    pub slots: u16,
}

/// A client, and what it has told and given us so far.
pub struct Visitor {
    socket: OwnedFd,
    pub id: u32,
    pub memory: Option<OwnedFd>,
    /// In the order of the rings.
    pub events: Vec<OwnedFd>,
    pub rings: Vec<RingAt>,
}

impl Visitor {
    /// Says so many right things.
    pub fn served(mut self, answers: usize) -> Visitor {
        for answer in 0..answers.min(ANSWERS) {
            self.answer(answer);
        }
        self
    }

    /// Waits for what the client says before the `answer`th answer, and gives that.
    pub fn answer(&mut self, answer: usize) {
        let expected = self.listen(answer);
        self.send(&expected, &[]);
    }

    /// Waits for what the client says before the `answer`th answer; the right one.
    pub fn listen(&mut self, answer: usize) -> [u8; 128] {
        if answer == 0 {
            return good_answer(0);
        }
        let (bytes, fd) = self.receive().expect("a message of an honest client");
        let word = |at: usize| u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap());
        let kinds = [INIT, ADD_REGION, ADD_RING, ADD_RING, CONNECT];
        assert_eq!(u16::from_ne_bytes([bytes[0], bytes[1]]), kinds[answer - 1]);
        match answer {
            1 => self.id = word(4),
            2 => self.memory = fd,
            3 | 4 => {
                self.events.push(fd.expect("an eventfd"));
                let (s2m, slots) = (bytes[2] & 1 == 1, 1 << bytes[12]);
                self.rings.push(RingAt { s2m, offset: word(8).into(), slots });
            }
            _ => {}
        }
        good_answer(answer)
    }

    /// Sends bytes with descriptors. The other side may have hung up: that is what is tested.
    pub fn send(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let _hung_up = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    }

    /// The next message, with what it carries; `None` once the client has hung up.
    fn receive(&self) -> Option<([u8; 128], Option<OwnedFd>)> {
        let mut bytes = [0; 128];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let room = &mut [IoSliceMut::new(&mut bytes)];
        let length = match recvmsg(&self.socket, room, &mut control, RecvFlags::CMSG_CLOEXEC) {
            Ok(message) => message.bytes,
            Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::PIPE) => 0,
            Err(error) => panic!("the client says nothing: {error}"),
        };
        let fd = control.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
            _ => None,
        });
        (length == bytes.len()).then_some((bytes, fd))
    }

    /// Waits until the client hangs up: the last reason that it gave, or nothing.
    pub fn farewell(&self) -> String {
        let mut why = String::new();
        while let Some((bytes, _)) = self.receive() {
            if u16::from_ne_bytes([bytes[0], bytes[1]]) == DISCONNECT {
                why = String::from_utf8_lossy(&bytes[6..102]).trim_end_matches('\0').to_owned();
            }
        }
        why
    }

    pub fn memory(&self) -> BorrowedFd<'_> {
        self.memory.as_ref().expect("a region").as_fd()
    }

    /// The ring from the client to us, or the other one.
    pub fn ring(&self, s2m: bool) -> Ring<'_> {
        let at = *self.rings.iter().find(|ring| ring.s2m == s2m).expect("both rings");
        Ring { memory: self.memory(), at }
    }
}

/// A ring, in memory that the client trusts us with.
pub struct Ring<'a> {
    memory: BorrowedFd<'a>,
    pub at: RingAt,
}

impl Ring<'_> {
    fn word(&self, offset: u64) -> u16 {
        let mut bytes = [0; 2];
        assert_eq!(pread(self.memory, &mut bytes, self.at.offset + offset).unwrap(), 2);
        u16::from_ne_bytes(bytes)
    }

    /// The client's index.
    pub fn head(&self) -> u16 {
        self.word(6)
    }

    /// Ours.
    pub fn tail(&self) -> u16 {
        self.word(64)
    }

    pub fn set_tail(&self, tail: u16) {
        pwrite(self.memory, &tail.to_ne_bytes(), self.at.offset + 64).unwrap();
    }

    /// Asks the client to wake us, or not to.
    pub fn set_masked(&self, masked: bool) {
        pwrite(self.memory, &u16::from(masked).to_ne_bytes(), self.at.offset + 4).unwrap();
    }

    fn slot(&self, index: u16) -> u64 {
        self.at.offset + 128 + 16 * u64::from(index % self.at.slots)
    }

    pub fn set_descriptor(&self, index: u16, descriptor: &[u8; 16]) {
        pwrite(self.memory, descriptor, self.slot(index)).unwrap();
    }

    /// The packet that a descriptor speaks of.
    pub fn packet(&self, index: u16) -> Vec<u8> {
        let mut descriptor = [0; 16];
        assert_eq!(pread(self.memory, &mut descriptor, self.slot(index)).unwrap(), 16);
        let word = |at: usize| u32::from_ne_bytes(*descriptor[at..].first_chunk().unwrap());
        let mut bytes = vec![0; word(4) as usize];
        assert_eq!(pread(self.memory, &mut bytes[..], word(8).into()).unwrap(), bytes.len());
        bytes
    }
}

/// The `answer`th thing that a right server says.
pub fn good_answer(answer: usize) -> [u8; 128] {
    let kind = match answer {
        0 => HELLO,
        5 => CONNECTED,
        _ => ACK,
    };
    let mut bytes = message(kind);
    if answer == 0 {
        bytes[2..9].copy_from_slice(b"by hand");
        for (at, most) in [(34, 0x0200u16), (36, 0x0200), (38, 255), (40, 255), (42, 255), (44, 14)] {
            bytes[at..at + 2].copy_from_slice(&most.to_ne_bytes());
        }
    }
    bytes
}

/// A message of this type with nothing in it.
pub fn message(kind: u16) -> [u8; 128] {
    let mut bytes = [0; 128];
    bytes[..2].copy_from_slice(&kind.to_ne_bytes());
    bytes
}
