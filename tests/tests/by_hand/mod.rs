//! The memif handshake, message by message, without the library that would not say anything wrong.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use peregrine_tests::{Random, within};
use rustix::event::{EventfdFlags, eventfd};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::io::pwrite;
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, socket_with,
};

const REGION_BYTES: u64 = 1 << 20;
/// Where the rings lie: client to server, server to client.
const RINGS_AT: [u32; 2] = [0, 65536];
/// Message types.
const ACK: u16 = 1;
const HELLO: u16 = 2;
const CONNECTED: u16 = 7;
const DISCONNECT: u16 = 8;

/// Descriptors that one message can carry (the kernel's `SCM_MAX_FD`).
pub const DESCRIPTORS_MAX: usize = 253;

/// A connection to a memif socket.
pub struct Peer {
    socket: OwnedFd,
    pub memory: OwnedFd,
}

impl Peer {
    pub fn connect(path: &Path) -> Peer {
        let peer = Peer::unsealed(path);
        fcntl_add_seals(&peer.memory, SealFlags::SHRINK).unwrap();
        peer
    }

    /// With memory that can be taken away again.
    pub fn unsealed(path: &Path) -> Peer {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        let memory = memfd_create("by-hand", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, REGION_BYTES).unwrap();
        Peer { socket, memory }
    }

    /// Sends bytes, with the memory's descriptor if wanted.
    pub fn send(&self, bytes: &[u8], with_descriptor: bool) {
        let memory = [self.memory.as_fd()];
        self.send_with(bytes, if with_descriptor { &memory } else { &[] });
    }

    /// Sends bytes with descriptors. The other side may have hung up: that is what is tested.
    pub fn send_with(&self, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS_MAX))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        if !descriptors.is_empty() {
            assert!(control.push(SendAncillaryMessage::ScmRights(descriptors)));
        }
        let _hung_up = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
    }

    /// Waits for a message: its bytes, and its type.
    fn answer(&self) -> ([u8; 128], u16) {
        let mut bytes = [0u8; 128];
        let (length, _) = recv(&self.socket, &mut bytes[..], RecvFlags::empty()).unwrap();
        assert_eq!(length, 128, "{bytes:?}");
        (bytes, u16::from_ne_bytes([bytes[0], bytes[1]]))
    }

    /// Waits for a message of this type.
    fn expect(&self, kind: u16) {
        let (bytes, got) = self.answer();
        assert_eq!(got, kind, "{}", String::from_utf8_lossy(&bytes));
    }

    /// The whole handshake, as it should be. False if it is too soon after a violation.
    pub fn attach(&self, id: u32) -> bool {
        for ring in RINGS_AT {
            pwrite(&self.memory, &0x03e3_1f20u32.to_ne_bytes(), ring.into()).unwrap();
        }
        let event = || eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).unwrap();
        self.expect(HELLO);
        for step in 0..=4 {
            let event = event();
            match step {
                1 => self.send(&good_message(step, id), true),
                2 | 3 => self.send_with(&good_message(step, id), &[event.as_fd()]),
                _ => self.send(&good_message(step, id), false),
            }
            let (bytes, got) = self.answer();
            let text = String::from_utf8_lossy(&bytes);
            if got == DISCONNECT && text.contains("try again later") {
                return false;
            }
            assert_eq!(got, if step == 4 { CONNECTED } else { ACK }, "{text}");
        }
        true
    }

    /// Whether the other side closes in time; what it says before is read.
    pub fn is_hung_up_on(&self, time: Duration) -> bool {
        let mut bytes = [0u8; 256];
        within(time, || {
            loop {
                match recv(&self.socket, &mut bytes[..], RecvFlags::DONTWAIT) {
                    Ok((0, _)) | Err(rustix::io::Errno::CONNRESET | rustix::io::Errno::PIPE) => return true,
                    Ok(_) => {}
                    Err(_) => return false,
                }
            }
        })
    }
}

/// Random bytes.
pub fn garbage(random: &mut Random, length: usize) -> Vec<u8> {
    (0..length).map(|_| random.byte()).collect()
}

/// The `step`th message of a right handshake: INIT, ADD_REGION, ADD_RING twice, CONNECT (without CONNECTED it is not
/// over, and with it everything else is too late).
pub fn good_message(step: usize, id: u32) -> [u8; 128] {
    let mut bytes = [0; 128];
    let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
    match step {
        0 => {
            put(0, &3u16.to_ne_bytes());
            put(2, &0x0200u16.to_ne_bytes());
            put(4, &id.to_ne_bytes());
            put(33, b"by hand");
        }
        1 => {
            put(0, &4u16.to_ne_bytes());
            put(4, &REGION_BYTES.to_ne_bytes());
        }
        2 | 3 => {
            put(0, &5u16.to_ne_bytes());
            put(2, &u16::from(step == 2).to_ne_bytes());
            put(8, &RINGS_AT[step - 2].to_ne_bytes());
            put(12, &[10]);
        }
        _ => {
            put(0, &6u16.to_ne_bytes());
            put(2, b"if0");
        }
    }
    bytes
}
