//! A memif interface, in the client's role. All its rings are read, in turns; answers go out on the first.

use std::io::{ErrorKind, Write};
use std::time::{Duration, Instant};

use peregrine_memif::{
    Attempt, Backoff, Client, ClientConfig, Connector, ControlSocket, HandshakeError, Interface, PushError,
    RxRing, SocketAddr, TxRing,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::{BURST, Port, PortStatistics, RingStatistics, Source};
use crate::clock::now_ns;
use crate::error::Error;
use crate::limits::{Wait, is_nothing};
use crate::trailer::Trailer;

/// How long a server that is there may take to answer, and to accept us.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// How far ahead packets are fetched into the cache.
const PREFETCH: u16 = 4;
/// The longest sleep over several rings: some senders' wake-ups can be lost.
const NAP: Duration = Duration::from_millis(10);

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
    rings: Vec<RxRing>,
    /// The ring that is looked at first.
    turn: usize,
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

/// Connects to a server. If nothing listens there, that is said at once; a server that refuses is tried for a while, and that is
/// said, too: it may yet be starting, or not know that the client before us has gone.
///
/// # Errors
/// No server, or one that refuses.
pub fn connect(socket: &SocketAddr, config: ClientConfig) -> Result<Interface, Error> {
    let failed = |source| Error::Memif { socket: socket.clone(), source };
    let end = Instant::now() + CONNECT_PATIENCE;
    let why = match first_attempt(socket, &config, end)? {
        Ok(interface) => return Ok(interface),
        Err(HandshakeError::Io { source, .. }) if is_nobody(source.kind()) => {
            return Err(Error::NobodyListens { socket: socket.clone(), source });
        }
        Err(why) => why,
    };
    let left = end.saturating_duration_since(Instant::now());
    if !left.is_zero() {
        let line = format!("{socket}: {why}: trying again for {:.0} s", left.as_secs_f64());
        let _nobody_reads = writeln!(std::io::stderr(), "{line}");
    }
    Client::connect_blocking(socket, config, left).map_err(failed)
}

fn is_nobody(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::NotFound | ErrorKind::ConnectionRefused)
}

/// Until it is connected or the server says no, at most until `end`.
fn first_attempt(
    socket: &SocketAddr,
    config: &ClientConfig,
    end: Instant,
) -> Result<Result<Interface, HandshakeError>, Error> {
    let mut connector = Connector::new(socket.clone(), config.clone(), Backoff::default())
        .map_err(|why| Error::Arguments(why.to_string()))?;
    loop {
        let now = Instant::now();
        match connector.step(now) {
            Attempt::Connected(interface) => return Ok(Ok(*interface)),
            Attempt::Failed(why) => return Ok(Err(why)),
            Attempt::Waiting => {}
        }
        let until = connector.deadline().unwrap_or(end).min(end);
        wait_for_server(&connector, until.saturating_duration_since(now))?;
    }
}

/// Sleeps until the server says something, at most so long.
///
/// # Errors
/// Those of the system call.
pub(super) fn wait_for_server(connector: &Connector, longest: Duration) -> Result<(), Error> {
    let Some(socket) = connector.socket() else {
        std::thread::sleep(longest);
        return Ok(());
    };
    let timeout = Timespec { tv_sec: longest.as_secs() as i64, tv_nsec: longest.subsec_nanos().into() };
    match poll(&mut [PollFd::new(&socket, PollFlags::IN)], Some(&timeout)) {
        Err(why) if !is_nothing(&why.into()) => Err(Error::system("waiting for the memif server")(why)),
        _ => Ok(()),
    }
}

impl MemifPort {
    /// [`connect`]s.
    ///
    /// # Errors
    /// No server, or one that refuses.
    pub fn connect(socket: &SocketAddr, config: ClientConfig) -> Result<MemifPort, Error> {
        let packet_bytes_max = config.buffer_bytes as usize;
        MemifPort::new(connect(socket, config)?, packet_bytes_max)
    }

    /// Over an interface that is connected already, in either role.
    ///
    /// # Errors
    /// If it has no queue pair.
    pub fn new(mut interface: Interface, packet_bytes_max: usize) -> Result<MemifPort, Error> {
        let peer = format!("memif server {} ({})", interface.peer_name, interface.peer_if_name);
        interface.tx.truncate(1);
        let (Some(first), Some(tx)) = (interface.rx.first(), interface.tx.pop()) else {
            return Err(Error::PeerGone { what: format!("{peer} gave no queue pair") });
        };
        let statistics = RingStatistics {
            size: first.size(),
            queues: interface.rx.len(),
            connections: 1,
            ..RingStatistics::default()
        };
        Ok(MemifPort {
            tx: MemifTx { ring: tx, peer: peer.clone() },
            rx: MemifRx {
                rings: interface.rx,
                turn: 0,
                control: interface.control,
                peer,
                copy: vec![0; packet_bytes_max],
                statistics,
            },
        })
    }
}

impl MemifRx {
    /// As [`Source::receive`], and the packets may be changed: they are copies. The batch is of one ring, the first in turn
    /// that has something.
    #[inline]
    pub fn receive_mut(&mut self, mut each: impl FnMut(u64, &mut [u8])) -> Result<usize, Error> {
        for _ in 0..self.rings.len() {
            let at = self.turn;
            self.turn = if at + 1 < self.rings.len() { at + 1 } else { 0 };
            let count = self.receive_from(at, &mut each)?;
            if count > 0 {
                return Ok(count);
            }
        }
        Ok(0)
    }

    #[inline]
    fn receive_from(&mut self, at: usize, each: &mut impl FnMut(u64, &mut [u8])) -> Result<usize, Error> {
        let Some(ring) = self.rings.get_mut(at) else { return Ok(0) };
        let pending = ring.pending().map_err(|why| broken(&self.peer, why))?;
        if pending == 0 {
            return Ok(0);
        }
        self.statistics.pending_max = self.statistics.pending_max.max(pending);
        let now = now_ns();
        let count = usize::from(pending).min(BURST);
        for _ in 0..count {
            ring.prefetch(PREFETCH);
            let copied = match ring.next_packet() {
                Some(Ok(packet)) => packet.copy_to(&mut self.copy),
                Some(Err(_)) => None,
                None => break,
            };
            match copied.and_then(|length| self.copy.get_mut(..length)) {
                Some(packet) => each(now, packet),
                None => self.statistics.bad_descriptors += 1,
            }
        }
        ring.release();
        Ok(count)
    }

    /// Sleeps until a ring has something, or for `longest`.
    fn sleep(&mut self, longest: Duration) -> std::io::Result<()> {
        if let [ring] = &mut self.rings[..] {
            return ring.wait(longest).map(drop);
        }
        let slept = self.sleep_over_all(Instant::now() + longest);
        self.rings.iter_mut().for_each(RxRing::disable_interrupt);
        slept
    }

    fn sleep_over_all(&mut self, deadline: Instant) -> std::io::Result<()> {
        loop {
            let mut pending = false;
            for ring in &mut self.rings {
                pending |= ring.arm().map_err(std::io::Error::other)?;
            }
            let left = deadline.saturating_duration_since(Instant::now()).min(NAP);
            if pending || left.is_zero() {
                return Ok(());
            }
            let event = |ring| PollFd::from_borrowed_fd(RxRing::event_fd(ring), PollFlags::IN);
            let mut events: Vec<_> = self.rings.iter().map(event).collect();
            let timeout = Timespec { tv_sec: 0, tv_nsec: left.subsec_nanos().into() };
            if let Err(why) = poll(&mut events, Some(&timeout)).map_err(std::io::Error::from)
                && !is_nothing(&why)
            {
                return Err(why);
            }
            for ring in &mut self.rings {
                ring.drain_event()?;
            }
        }
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
                let slept = self.sleep(Duration::from_nanos(longest_ns));
                slept.map_err(Error::system(format!("waiting for {}", self.peer)))?;
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
