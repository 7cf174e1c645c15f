//! An ordinary UDP socket, in batches (recvmmsg, sendmmsg): what an application on the kernel's overlay would use.
//!
//! It is made as fast as such an application can be, for the comparison with the kernel to be fair: 64 datagrams per
//! system call, a large buffer, and one blocking call instead of poll and receive when it waits.

use std::io::{self, IoSlice, IoSliceMut};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

use arrayvec::ArrayVec;
use nix::sys::socket::{MsgFlags, MultiHeaders, SockaddrIn, getsockopt, recvmmsg, setsockopt, sockopt};
use rustix::net::{MMsgHdr, SendAncillaryBuffer, SendFlags, SocketAddrAny};

use super::{BURST, Port, PortStatistics, SocketStatistics, Source};
use crate::clock::now_ns;
use crate::error::Error;
use crate::limits::{SLEEP_MAX, Wait, is_nothing};
use crate::template::INNER_HEADERS;
use crate::trailer::Trailer;

/// The longest datagram taken.
const DATAGRAM_BYTES_MAX: usize = 9216;
/// What the kernel is asked to keep for us: some ten milliseconds at a million packets a second.
pub const BUFFER_BYTES: usize = 16 << 20;
/// The same where a rate is searched: what a buffer keeps does not show as loss. The kernel makes it twice that, which is
/// some 1400 small packets or 450 large ones: about as many as a memif ring of the usual size has slots.
pub const SMALL_BUFFER_BYTES: usize = 512 << 10;

/// A bound socket and the memory for one batch.
#[derive(Debug)]
pub struct UdpPort {
    socket: UdpSocket,
    local: SocketAddrV4,
    headers: MultiHeaders<SockaddrIn>,
    /// One chunk of [`DATAGRAM_BYTES_MAX`] for each datagram of a batch.
    buffers: Vec<u8>,
    /// Of each datagram of the last batch: who sent it, and its length.
    received: ArrayVec<(SocketAddrV4, usize), BURST>,
}

/// What became of a batch of answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Echoed {
    /// Datagrams received.
    pub received: usize,
    /// Their payload.
    pub bytes: usize,
    /// Datagrams sent back.
    pub sent: usize,
}

impl UdpPort {
    /// Binds a socket with a large receive buffer.
    ///
    /// # Errors
    /// As [`bind_with`](Self::bind_with).
    pub fn bind(address: SocketAddrV4) -> Result<UdpPort, Error> {
        UdpPort::bind_with(address, BUFFER_BYTES)
    }

    /// Binds a socket for which the kernel is asked to keep so much, in bytes of its own accounting.
    ///
    /// # Errors
    /// Those of bind(2) and setsockopt(2), with the address.
    pub fn bind_with(address: SocketAddrV4, receive_buffer: usize) -> Result<UdpPort, Error> {
        let what = || format!("a UDP socket on {address}");
        let socket = UdpSocket::bind(address).map_err(Error::system(what()))?;
        let local = match socket.local_addr().map_err(Error::system(what()))? {
            SocketAddr::V4(local) => local,
            SocketAddr::V6(_) => address,
        };
        socket.set_read_timeout(Some(SLEEP_MAX)).map_err(Error::system(what()))?;
        // The first needs CAP_NET_ADMIN; the second is cut to a limit of the system. What was got is reported.
        if setsockopt(&socket, sockopt::RcvBufForce, &receive_buffer).is_err() {
            setsockopt(&socket, sockopt::RcvBuf, &receive_buffer).map_err(Error::system(what()))?;
        }
        if setsockopt(&socket, sockopt::SndBufForce, &BUFFER_BYTES).is_err() {
            setsockopt(&socket, sockopt::SndBuf, &BUFFER_BYTES).map_err(Error::system(what()))?;
        }
        let headers = MultiHeaders::preallocate(BURST, None);
        let buffers = vec![0; BURST * DATAGRAM_BYTES_MAX];
        Ok(UdpPort { socket, local, headers, buffers, received: ArrayVec::new() })
    }

    /// With [`Wait::Interrupt`] a receive lasts [`SLEEP_MAX`] at most, unless told otherwise here.
    ///
    /// # Errors
    /// Those of setsockopt(2).
    pub fn sleep_at_most(&mut self, longest: Duration) -> Result<(), Error> {
        let what = || format!("a UDP socket on {}", self.local);
        self.socket.set_read_timeout(Some(longest)).map_err(Error::system(what()))
    }

    /// Where it is bound.
    pub fn local(&self) -> SocketAddrV4 {
        self.local
    }

    /// Takes one batch and sends it back to where it came from.
    ///
    /// # Errors
    /// Those of recvmmsg(2).
    pub fn echo(&mut self, wait: Wait) -> Result<Echoed, Error> {
        let received = self.receive_batch(wait)?;
        let mut answers: ArrayVec<(SocketAddrAny, [IoSlice<'_>; 1]), BURST> = ArrayVec::new();
        for (from, datagram) in self.datagrams() {
            answers.push((from.into(), [IoSlice::new(datagram)]));
        }
        let bytes = self.datagrams().map(|(_, datagram)| datagram.len()).sum();
        Ok(Echoed { received, bytes, sent: send_batch(&self.socket, &answers) })
    }

    /// The datagrams of the last batch.
    #[inline]
    fn datagrams(&self) -> impl Iterator<Item = (SocketAddrV4, &[u8])> {
        let chunks = self.buffers.chunks_exact(DATAGRAM_BYTES_MAX);
        self.received
            .iter()
            .zip(chunks)
            .map(|((from, length), chunk)| (*from, chunk.get(..*length).unwrap_or(chunk)))
    }

    /// One system call. In the way of [`Wait::Interrupt`] it sleeps until there is something, at most [`SLEEP_MAX`], or what
    /// [`sleep_at_most`](Self::sleep_at_most) was given.
    fn receive_batch(&mut self, wait: Wait) -> Result<usize, Error> {
        let flags = match wait {
            Wait::Interrupt => MsgFlags::MSG_WAITFORONE,
            Wait::Poll | Wait::Yield | Wait::Pause(_) => MsgFlags::MSG_DONTWAIT,
        };
        let mut chunks = self.buffers.chunks_exact_mut(DATAGRAM_BYTES_MAX);
        let mut slices: [[IoSliceMut<'_>; 1]; BURST] =
            std::array::from_fn(|_| [IoSliceMut::new(chunks.next().unwrap_or_default())]);
        self.received.clear();
        match recvmmsg(self.socket.as_raw_fd(), &mut self.headers, slices.iter_mut(), flags, None) {
            Ok(messages) => {
                for message in messages {
                    let from = message
                        .address
                        .map_or(SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 0), SocketAddrV4::from);
                    self.received.push((from, message.bytes.min(DATAGRAM_BYTES_MAX)));
                }
                Ok(self.received.len())
            }
            Err(errno) => match io::Error::from(errno) {
                source if is_nothing(&source) => Ok(0),
                source => Err(Error::System { what: format!("receiving on {}", self.local), source }),
            },
        }
    }

    /// Datagrams that the kernel dropped because the socket's buffer was full, as /proc/net/udp shows them.
    fn drops(&self) -> Option<u64> {
        let table = std::fs::read_to_string("/proc/thread-self/net/udp").ok()?;
        let address = u32::from_ne_bytes(self.local.ip().octets());
        let wanted = format!("{address:08X}:{:04X}", self.local.port());
        let line = table.lines().find(|line| line.split_whitespace().nth(1) == Some(&wanted))?;
        line.split_whitespace().last()?.parse().ok()
    }
}

impl Port for UdpPort {
    const HEADERS_TAKEN_OFF: usize = INNER_HEADERS;

    #[inline]
    fn trailer(packet: &[u8]) -> Option<Trailer> {
        Trailer::of_payload(packet)
    }

    fn rest(&mut self, wait: Wait, longest_ns: u64) -> Result<(), Error> {
        match wait {
            Wait::Poll => std::hint::spin_loop(),
            Wait::Yield => std::thread::yield_now(),
            Wait::Interrupt => {} // the next receive sleeps by itself
            Wait::Pause(pause) => std::thread::sleep(pause.min(Duration::from_nanos(longest_ns))),
        }
        Ok(())
    }

    fn gone(&mut self) -> Option<String> {
        None
    }

    fn statistics(&self) -> PortStatistics {
        PortStatistics::Socket(SocketStatistics {
            receive_buffer_bytes: getsockopt(&self.socket, sockopt::RcvBuf).unwrap_or(0),
            drops: self.drops(),
        })
    }
}

impl Source for UdpPort {
    #[inline]
    fn receive(&mut self, wait: Wait, mut each: impl FnMut(u64, &[u8])) -> Result<usize, Error> {
        let count = self.receive_batch(wait)?;
        if count > 0 {
            let now = now_ns();
            self.datagrams().for_each(|(_, datagram)| each(now, datagram));
        }
        Ok(count)
    }
}

/// Sends answers in one system call; returns how many the kernel took.
fn send_batch(socket: &UdpSocket, answers: &[(SocketAddrAny, [IoSlice<'_>; 1])]) -> usize {
    if answers.is_empty() {
        return 0;
    }
    let mut controls: [SendAncillaryBuffer<'_, '_, '_>; BURST] =
        std::array::from_fn(|_| SendAncillaryBuffer::default());
    let mut messages: ArrayVec<MMsgHdr<'_>, BURST> = answers
        .iter()
        .zip(&mut controls)
        .map(|((address, payload), control)| MMsgHdr::new_with_addr(address, payload, control))
        .collect();
    rustix::net::sendmmsg(socket.as_fd(), &mut messages, SendFlags::DONTWAIT).unwrap_or(0)
}
