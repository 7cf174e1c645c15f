//! Any bytes onto a device, and everything that passes there: AF_PACKET.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, setsockopt, socket, sockopt};
use peregrine_control::lab::Namespace;
use rustix::net::sockopt::{Timeout, set_socket_timeout};

use crate::{PATIENCE, inside};

/// A packet socket on one device of a host.
#[derive(Debug)]
pub struct RawSocket {
    file: File,
    device: String,
}

impl RawSocket {
    /// On `device` of `host`; from now on it sees what passes there, both ways.
    ///
    /// # Panics
    /// If there is no such device, or we are not root.
    pub fn open(host: &Namespace, device: &str) -> RawSocket {
        RawSocket::new(host, device, SockProtocol::EthAll)
    }

    /// One that only sends: what passes is not kept.
    ///
    /// # Panics
    /// As [`open`](Self::open).
    pub fn sender(host: &Namespace, device: &str) -> RawSocket {
        RawSocket::new(host, device, None)
    }

    fn new(host: &Namespace, device: &str, protocol: impl Into<Option<SockProtocol>> + Send) -> RawSocket {
        let file = inside(host, || {
            let (family, flags) = (AddressFamily::Packet, SockFlag::SOCK_CLOEXEC);
            let fd = socket(family, SockType::Raw, flags, protocol).expect("a packet socket");
            let all = getifaddrs().expect("the devices");
            let mut links = all.filter(|i| i.interface_name == device).filter_map(|i| i.address);
            let link = links.find_map(|a| a.as_link_addr().copied()).expect("a device of this name");
            setsockopt(&fd, sockopt::RcvBufForce, &(16 << 20)).expect("a large buffer");
            bind(fd.as_raw_fd(), &link).expect("bound to the device");
            File::from(fd)
        });
        RawSocket { file, device: device.to_string() }
    }

    /// Puts a frame on the device.
    ///
    /// # Panics
    /// If the device does not take it.
    #[track_caller]
    pub fn send(&self, frame: &[u8]) {
        let sent = (&self.file).write(frame);
        assert_eq!(sent.ok(), Some(frame.len()), "{} takes no frame of {}", self.device, frame.len());
    }

    /// The next frame that `wanted` picks; the others are passed over.
    ///
    /// # Panics
    /// If there is none within [`PATIENCE`].
    #[track_caller]
    pub fn receive(&self, wanted: impl FnMut(&[u8]) -> bool) -> Vec<u8> {
        self.next(PATIENCE, wanted).unwrap_or_else(|| panic!("the frame did not pass {}", self.device))
    }

    /// The next frame that `wanted` picks, if it comes in time.
    ///
    /// # Panics
    /// If the socket fails.
    pub fn next(&self, time: Duration, mut wanted: impl FnMut(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + time;
        let mut buffer = vec![0; 65536];
        loop {
            let left = deadline.checked_duration_since(Instant::now())?.max(Duration::from_micros(1));
            set_socket_timeout(&self.file, Timeout::Recv, Some(left)).expect("a timeout");
            match (&self.file).read(&mut buffer) {
                Ok(length) if wanted(buffer.get(..length)?) => {
                    buffer.truncate(length);
                    return Some(buffer);
                }
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return None,
                Err(error) => panic!("{}: {error}", self.device),
            }
        }
    }
}
