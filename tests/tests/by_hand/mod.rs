//! The memif handshake, message by message, without the library that would not say anything wrong.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use peregrine_tests::{Random, within};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, ftruncate, memfd_create};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix,
    SocketFlags, SocketType, connect, recv, sendmsg, socket_with,
};

const REGION_BYTES: u64 = 1 << 20;

/// A connection to a memif socket.
pub struct Peer {
    socket: OwnedFd,
    memory: OwnedFd,
}

impl Peer {
    pub fn connect(path: &Path) -> Peer {
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).unwrap();
        connect(&socket, &SocketAddrUnix::new(path).unwrap()).unwrap();
        let memory = memfd_create("by-hand", MemfdFlags::ALLOW_SEALING | MemfdFlags::CLOEXEC).unwrap();
        ftruncate(&memory, REGION_BYTES).unwrap();
        fcntl_add_seals(&memory, SealFlags::SHRINK).unwrap();
        Peer { socket, memory }
    }

    /// Sends bytes, with a descriptor if wanted. The other side may have hung up: that is what is tested.
    pub fn send(&self, bytes: &[u8], with_descriptor: bool) {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let descriptors = [self.memory.as_fd()];
        if with_descriptor {
            assert!(control.push(SendAncillaryMessage::ScmRights(&descriptors)));
        }
        let _hung_up = sendmsg(&self.socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL);
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
            put(8, &(if step == 2 { 0u32 } else { 65536 }).to_ne_bytes());
            put(12, &[10]);
        }
        _ => {
            put(0, &6u16.to_ne_bytes());
            put(2, b"if0");
        }
    }
    bytes
}
