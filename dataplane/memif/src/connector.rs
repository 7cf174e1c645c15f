//! A client that connects, and connects again: attempts one after the other, with growing pauses between them. Used by programs
//! that outlive their server, and by [`Client::connect_blocking`](crate::Client::connect_blocking).
//!
//! It has no thread and no clock of its own and never waits: the caller's event loop watches [`Connector::socket`] and
//! [`Connector::deadline`], and calls [`Connector::step`] with the time. At most one socket is open at any moment.
//!
//! What must hold: a server that takes our memory and hangs up, again and again, cannot make us give it memory fast. It may keep what
//! it was given, and that is charged to us. And one that keeps too much of it gets no more (`seal::may_make_memory`), however long its
//! connections have lasted.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::thread;
use std::time::{Duration, Instant};

use crate::addr::SocketAddr;
use crate::client::{Client, ClientConfig};
use crate::error::{ConfigError, HandshakeError, Reject};
use crate::interface::Interface;
use crate::server::Progress;
use crate::sys;

/// Longest handshake. A server has nothing to wait for; the rest is for a busy machine.
const HANDSHAKE_MAX: Duration = Duration::from_secs(5);
/// A connection that lasted this long was a good one: after it the pauses begin with the shortest again.
const STEADY_AFTER: Duration = Duration::from_secs(1);
/// Shortest pause, whatever was asked for: without one a server that refuses would be asked without end.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// Longest pause, and longest timeout, so that no time runs over.
const PAUSE_MAX: Duration = Duration::from_secs(1 << 30);

/// Longest pause after an attempt that has cost memory and came to nothing, unless [`Backoff::max`] is longer.
const COSTLY_PAUSE_MAX: Duration = Duration::from_secs(30);

/// Pauses between attempts: `first` after the first failure, then twice as long each time, up to `max`.
///
/// After attempts that have cost memory and came to nothing, pauses go on doubling beyond `max`, up to 30 s: the server had been given
/// our memory when the handshake failed, or the connection ended within a second. A server that refuses before that (a wrong id, a
/// port that is not started) costs no memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// The shortest pause; less than 1 ms counts as 1 ms.
    pub first: Duration,
    /// The longest pause, of all that cost no memory; less than `first` counts as `first`.
    pub max: Duration,
}

impl Default for Backoff {
    /// 10 ms, doubling to 1 s.
    fn default() -> Self {
        Self { first: Duration::from_millis(10), max: Duration::from_secs(1) }
    }
}

/// What a step of a [`Connector`] has brought.
#[derive(Debug)]
pub enum Attempt {
    /// Nothing new: wait for the socket or the deadline. Also as long as a connection lasts.
    Waiting,
    /// Connected. Tell [`Connector::lost`] when that has ended.
    Connected(Box<Interface>),
    /// The attempt has failed and its socket is closed; the next one begins at [`Connector::deadline`].
    Failed(HandshakeError),
}

/// Where a [`Connector`] is.
#[derive(Debug)]
enum State {
    /// Between two attempts.
    Resting { until: Instant },
    /// An attempt is under way.
    Attempting { client: Box<Client>, until: Instant },
    /// The caller has the connection.
    Connected { since: Instant },
}

/// A client that attaches to a server and comes back to it after every end, for as long as it is asked to.
///
/// ```
/// use std::time::{Duration, Instant};
/// use peregrine_memif::{Attempt, Backoff, ClientConfig, Connector, Listener, ListenerConfig, Progress, ServerConfig, SocketAddr};
///
/// let addr = SocketAddr::Abstract(format!("connector-example-{}", std::process::id()));
/// let mut connector = Connector::new(addr.clone(), ClientConfig::default(), Backoff::default())?;
/// // Nobody listens yet.
/// let mut now = Instant::now();
/// assert!(matches!(connector.step(now), Attempt::Failed(_)));
/// assert!(connector.deadline().is_some_and(|next| next > now));
///
/// // A moment later somebody does. An event loop would watch `socket()` for readability, and sleep until `deadline()`.
/// let listener = Listener::bind(&addr, ListenerConfig::default())?;
/// now += Duration::from_secs(1);
/// assert!(matches!(connector.step(now), Attempt::Waiting));
/// assert_eq!((connector.attempts(), connector.socket().is_some()), (2, true));
/// let mut server = listener.accept()?.ok_or("nobody has come")?;
/// let (mut tenant, mut served) = (None, None);
/// while tenant.is_none() {
///     if served.is_none()
///         && let Progress::Connected(interface) = server.step(&mut |_| Ok(ServerConfig::default()))?
///     {
///         served = Some(interface);
///     }
///     if let Attempt::Connected(interface) = connector.step(now) {
///         tenant = Some(interface);
///     }
/// }
/// assert!(connector.deadline().is_none());
///
/// // The server ends. The threads drop their ring halves, and it begins again.
/// drop(served);
/// let interface = tenant.ok_or("not connected")?;
/// assert!(interface.control.poll_disconnect()?.is_some());
/// drop(interface);
/// connector.lost(now);
/// assert!(connector.deadline().is_some());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Connector {
    addr: SocketAddr,
    config: ClientConfig,
    backoff: Backoff,
    /// The pause after the next failure; longer than `backoff.max` only for one that has cost memory.
    pause: Duration,
    state: State,
    attempts: u64,
}

impl Connector {
    /// A connector that will try at its first [`step`](Self::step). It keeps at it whatever the server answers: which refusals
    /// are final is the caller's to know.
    ///
    /// # Errors
    /// A configuration that cannot be, as from [`ClientConfig::check`].
    pub fn new(addr: SocketAddr, config: ClientConfig, backoff: Backoff) -> Result<Self, ConfigError> {
        config.check()?;
        let first = backoff.first.clamp(PAUSE_MIN, PAUSE_MAX);
        let backoff = Backoff { first, max: backoff.max.clamp(first, PAUSE_MAX) };
        let state = State::Resting { until: Instant::now() };
        Ok(Self { addr, config, backoff, pause: first, state, attempts: 0 })
    }

    /// Does what can be done now: connects when it is time, moves the handshake on, ends it after 5 s. Never waits, but makes the
    /// client's memory as [`Client::step`] does. Look at [`attempts`](Self::attempts) afterwards: when it has grown, there may be a new
    /// [`socket`](Self::socket) to watch.
    pub fn step(&mut self, now: Instant) -> Attempt {
        if let State::Resting { until } = self.state {
            // The first attempt does not wait, even for a caller whose `now` is older than we are.
            if self.attempts > 0 && now < until {
                return Attempt::Waiting;
            }
            self.attempts += 1;
            match Client::connect(&self.addr, self.config.clone()) {
                Ok(client) => {
                    self.state = State::Attempting { client: Box::new(client), until: now + HANDSHAKE_MAX }
                }
                Err(why) => return self.failed(why, false, now),
            }
        }
        let State::Attempting { client, until } = &mut self.state else { return Attempt::Waiting };
        match client.step() {
            Ok(Progress::Connected(interface)) => {
                self.state = State::Connected { since: now };
                Attempt::Connected(interface)
            }
            Ok(Progress::Pending) if now < *until => Attempt::Waiting,
            Ok(Progress::Pending) => {
                let (why, is_costly) = (client.time_out(), client.has_given_memory());
                self.failed(why, is_costly, now)
            }
            Err(why) => {
                let is_costly = client.has_given_memory();
                self.failed(why, is_costly, now)
            }
        }
    }

    /// When [`step`](Self::step) is wanted next if the socket does not become readable before; `None` while connected.
    pub fn deadline(&self) -> Option<Instant> {
        match &self.state {
            State::Resting { until } | State::Attempting { until, .. } => Some(*until),
            State::Connected { .. } => None,
        }
    }

    /// The socket of the attempt under way: watch it for readability. Once connected it lives on, with the same number, as
    /// [`Interface::control`].
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        match &self.state {
            State::Attempting { client, .. } => client.socket(),
            State::Resting { .. } | State::Connected { .. } => None,
        }
    }

    /// The number of [`socket`](Self::socket).
    pub fn raw_socket(&self) -> Option<RawFd> {
        self.socket().map(|socket| socket.as_raw_fd())
    }

    /// Attempts begun so far: tells one socket from the next, whose number may be the same.
    pub fn attempts(&self) -> u64 {
        self.attempts
    }

    /// The connection that [`step`](Self::step) gave has ended: begins again, after a pause. The pause is the shortest one if that
    /// connection lasted a second or more; else pauses grow on from where they were, and beyond [`Backoff::max`]: a server that accepts
    /// and hangs up at once may keep the memory that it was given. Does nothing unless connected.
    pub fn lost(&mut self, now: Instant) {
        if let State::Connected { since } = self.state {
            let was_steady = now.saturating_duration_since(since) >= STEADY_AFTER;
            if was_steady {
                self.pause = self.backoff.first;
            }
            self.rest(!was_steady, now);
        }
    }

    fn failed(&mut self, why: HandshakeError, is_costly: bool, now: Instant) -> Attempt {
        self.rest(is_costly, now);
        Attempt::Failed(why)
    }

    /// A failure that cost nothing neither waits longer than `backoff.max` nor takes anything back from the pause that the next costly
    /// one is to have: else a server could make the costly ones cheap by refusing in between.
    fn rest(&mut self, is_costly: bool, now: Instant) {
        let max = self.backoff.max;
        let pause = if is_costly { self.pause } else { self.pause.min(max) };
        self.state = State::Resting { until: now + pause };
        let next_max = if is_costly { max.max(COSTLY_PAUSE_MAX) } else { max.max(self.pause) };
        self.pause = self.pause.saturating_mul(2).min(next_max);
    }

    /// The error of an attempt that may not go on; the server is told.
    fn time_out(mut self) -> HandshakeError {
        match &mut self.state {
            State::Attempting { client, .. } => client.time_out(),
            State::Resting { .. } | State::Connected { .. } => Reject::TimedOut.into(),
        }
    }
}

/// What [`Client::connect_blocking`](crate::Client::connect_blocking) is.
pub(crate) fn connect_blocking(
    addr: &SocketAddr,
    config: ClientConfig,
    timeout: Duration,
) -> Result<Interface, HandshakeError> {
    let end = Instant::now() + timeout.min(PAUSE_MAX);
    let mut connector = Connector::new(addr.clone(), config, Backoff::default())?;
    let mut last = None;
    loop {
        match connector.step(Instant::now()) {
            Attempt::Connected(interface) => return Ok(*interface),
            Attempt::Failed(why) if is_final(&why) => return Err(why),
            Attempt::Failed(why) => last = Some(why),
            Attempt::Waiting => {}
        }
        let now = Instant::now();
        if now >= end {
            // An earlier attempt's end says more than that the present one has none yet.
            let why = connector.time_out();
            return Err(last.unwrap_or(why));
        }
        let until = connector.deadline().unwrap_or(end).min(end);
        let pause = until.saturating_duration_since(now);
        match connector.socket() {
            Some(socket) => {
                sys::wait_readable(socket, pause).map_err(HandshakeError::io("wait for the server"))?;
            }
            None => thread::sleep(pause),
        }
    }
}

/// Whether trying again within seconds cannot help. What a peer says in DISCONNECT is no reason to stop: it may not have made the
/// interface yet (a DPDK server says "ID not found" until its port is started), or not have noticed that an earlier client is
/// gone. Only a wrong secret stays wrong, and all known servers name it with this word.
fn is_final(why: &HandshakeError) -> bool {
    match why {
        HandshakeError::Io { source, .. } => !is_transient(source),
        HandshakeError::Closed { .. } => false,
        HandshakeError::Disconnected { text, .. } => text.to_ascii_lowercase().contains("secret"),
        HandshakeError::Rejected(why) => !matches!(why, Reject::TimedOut | Reject::MemoryKept),
        HandshakeError::Config(_) | HandshakeError::Finished => true,
    }
}

/// Whether nobody listens yet, or too many wait there; or the socket file has not been given its mode and owner yet.
fn is_transient(err: &io::Error) -> bool {
    matches!(
        err.kind(),
        io::ErrorKind::WouldBlock
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::Interrupted
    )
}
