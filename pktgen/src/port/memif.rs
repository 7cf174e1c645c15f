//! A memif interface, in the client's role: one queue pair.

use std::time::Duration;

use peregrine_memif::{
    Client, ClientConfig, ControlSocket, Interface, PushError, RxRing, SocketAddr, TxRing,
};

use super::{BURST, Port, PortStatistics, RingStatistics, Source};
use crate::clock::now_ns;
use crate::error::Error;
use crate::limits::Wait;
use crate::trailer::Trailer;

/// How long a server may take to appear and to answer.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How far ahead packets are fetched into the cache.
const PREFETCH: u16 = 4;

/// A connected interface.
#[derive(Debug)]
pub struct MemifPort {
    /// The receiving half: what a sink uses.
    pub rx: MemifRx,
    /// The sending half: what an echo answers with.
    pub tx: MemifTx,
}

/// The receiving half.
#[derive(Debug)]
pub struct MemifRx {
    ring: RxRing,
    control: ControlSocket,
    peer: String,
    /// Each packet is copied here before it is looked at: its sender can still write to the original.
    copy: Vec<u8>,
    statistics: RingStatistics,
}

/// The sending half.
#[derive(Debug)]
pub struct MemifTx {
    ring: TxRing,
    peer: String,
}

impl MemifPort {
    /// Connects to a server, which may yet be starting.
    ///
    /// # Errors
    /// No server, or one that refuses.
    pub fn connect(socket: &SocketAddr, config: ClientConfig) -> Result<MemifPort, Error> {
        let failed = |source| Error::Memif { socket: socket.clone(), source };
        let packet_bytes_max = config.buffer_bytes as usize;
        let interface = Client::connect_blocking(socket, config, CONNECT_PATIENCE).map_err(failed)?;
        MemifPort::new(interface, packet_bytes_max)
    }

    /// Over an interface that is connected already, in either role.
    ///
    /// # Errors
    /// If it has no queue pair.
    pub fn new(mut interface: Interface, packet_bytes_max: usize) -> Result<MemifPort, Error> {
        let peer = format!("memif server {} ({})", interface.peer_name, interface.peer_if_name);
        let (Some(rx), Some(tx)) = (interface.rx.pop(), interface.tx.pop()) else {
            return Err(Error::PeerGone { what: format!("{peer} gave no queue pair") });
        };
        let statistics = RingStatistics { size: rx.size(), connections: 1, ..RingStatistics::default() };
        Ok(MemifPort {
            tx: MemifTx { ring: tx, peer: peer.clone() },
            rx: MemifRx {
                ring: rx,
                control: interface.control,
                peer,
                copy: vec![0; packet_bytes_max],
                statistics,
            },
        })
    }
}

impl MemifRx {
    /// As [`Source::receive`], and the packets may be changed: they are copies.
    #[inline]
    pub fn receive_mut(&mut self, mut each: impl FnMut(u64, &mut [u8])) -> Result<usize, Error> {
        let pending = self.ring.pending().map_err(|why| broken(&self.peer, why))?;
        if pending == 0 {
            return Ok(0);
        }
        self.statistics.pending_max = self.statistics.pending_max.max(pending);
        let now = now_ns();
        let count = usize::from(pending).min(BURST);
        for _ in 0..count {
            self.ring.prefetch(PREFETCH);
            let copied = match self.ring.next_packet() {
                Some(Ok(packet)) => packet.copy_to(&mut self.copy),
                Some(Err(_)) => None,
                None => break,
            };
            match copied.and_then(|length| self.copy.get_mut(..length)) {
                Some(packet) => each(now, packet),
                None => self.statistics.bad_descriptors += 1,
            }
        }
        self.ring.release();
        Ok(count)
    }

    /// What has been counted.
    pub fn ring_statistics(&self) -> RingStatistics {
        self.statistics
    }
}

impl Port for MemifRx {
    const HEADERS_TAKEN_OFF: usize = 0;

    #[inline]
    fn trailer(packet: &[u8]) -> Option<Trailer> {
        Trailer::of_frame(packet)
    }

    fn rest(&mut self, wait: Wait, longest_ns: u64) -> Result<(), Error> {
        match wait {
            Wait::Poll => std::hint::spin_loop(),
            Wait::Yield => std::thread::yield_now(),
            Wait::Interrupt => {
                let what = format!("waiting for {}", self.peer);
                self.ring.wait(Duration::from_nanos(longest_ns)).map_err(Error::system(what))?;
            }
            Wait::Pause(pause) => std::thread::sleep(pause.min(Duration::from_nanos(longest_ns))),
        }
        Ok(())
    }

    fn gone(&mut self) -> Option<String> {
        match self.control.poll_disconnect() {
            Ok(None) => None,
            Ok(Some(why)) => Some(format!("{}: {why}", self.peer)),
            Err(why) => Some(format!("{}: {why}", self.peer)),
        }
    }

    fn statistics(&self) -> PortStatistics {
        PortStatistics::Ring(self.statistics)
    }
}

impl Source for MemifRx {
    #[inline]
    fn receive(&mut self, _wait: Wait, mut each: impl FnMut(u64, &[u8])) -> Result<usize, Error> {
        self.receive_mut(|now, packet| each(now, packet))
    }
}

impl MemifTx {
    /// Puts a packet into the ring; the peer sees it after [`flush`](Self::flush). False: no room for it, it is dropped.
    ///
    /// # Errors
    /// A peer that breaks the rules.
    #[inline]
    pub fn push(&mut self, packet: &[u8]) -> Result<bool, Error> {
        match self.ring.push(packet) {
            Ok(()) => Ok(true),
            Err(PushError::Violation(why)) => Err(broken(&self.peer, why)),
            Err(_) => Ok(false),
        }
    }

    /// Shows the peer what was pushed, and wakes it if it wants to be woken.
    ///
    /// # Errors
    /// Those of writing its eventfd.
    #[inline]
    pub fn flush(&mut self) -> Result<(), Error> {
        match self.ring.flush() {
            Ok(_) => Ok(()),
            Err(source) => Err(Error::System { what: format!("waking {}", self.peer), source }),
        }
    }
}

fn broken(peer: &str, why: peregrine_memif::Violation) -> Error {
    Error::PeerGone { what: format!("{peer} breaks the rules of memif: {why}") }
}
