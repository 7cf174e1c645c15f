//! The server's side of the handshake: one client from accept to CONNECTED, driven by whatever event loop the caller has.
//!
//! ```text
//! client                                server
//!   connect ─────────────────────────▶  HELLO (at once)
//!   INIT(id, mode, secret, name) ────▶  ACK          the id is looked up here
//!   ADD_REGION i + fd ───────────────▶  ACK          size and seals are checked here
//!   ADD_RING S2M i, M2S i + eventfd ─▶  ACK
//!   CONNECT ─────────────────────────▶  CONNECTED    memory is mapped and sealed, rings are checked here
//! ```
//! Sealing may have to wait for the client, so CONNECT may take several steps; whatever the client says meanwhile is wrong.
//! Whatever is wrong: DISCONNECT with the reason, and the socket is closed.

use std::mem;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use crate::channel::{Channel, Incoming};
use crate::error::{HandshakeError, Reject, Sent};
use crate::interface::{ControlSocket, Interface};
use crate::listener::Limits;
use crate::message::{Hello, Init, LOG2_MAX, MODE_ETHERNET, Message, Secret, VERSION};
use crate::offer::{Mapped, Offer};
use crate::ring::Role;
use crate::sys::{self, Credentials};

/// Where a client's memory is not sealed at once (seals take microseconds, unless the client holds the file's lock), how often it is looked at.
const SEAL_LOOK_EVERY: Duration = Duration::from_millis(3);

/// What a client asks for, to be looked up.
#[derive(Debug)]
pub struct Request<'a> {
    /// The interface id.
    pub id: u32,
    /// The client's name, printable characters only.
    pub name: &'a str,
    /// The process that connected; `None` if the kernel would not tell.
    pub credentials: Option<Credentials>,
}

/// Why an interface may not be attached to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// No such interface id on this socket.
    UnknownId,
    /// Another client has it.
    AlreadyConnected,
    /// This client may not (its user, its name, …).
    NotAllowed,
    /// It was put out for a violation just now, and may try again later.
    TooSoon,
}

impl From<Refusal> for Reject {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::UnknownId => Self::UnknownId,
            Refusal::AlreadyConnected => Self::AlreadyConnected,
            Refusal::NotAllowed => Self::NotAllowed,
            Refusal::TooSoon => Self::TooSoon,
        }
    }
}

/// How to serve one interface.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// The interface's name, given to the client in CONNECTED; up to 31 bytes.
    pub name: String,
    /// What the client must know; `None`: nothing.
    pub secret: Option<Secret>,
    /// Most rings in each direction; the socket's limit applies as well.
    pub rings_max: u16,
    /// Longest packet accepted from the client, in bytes.
    pub packet_bytes_max: u32,
    /// Take and send packets in several buffers (chains), at most [`CHAIN_MAX`](crate::CHAIN_MAX) of them. Those taken are at most
    /// [`packet_bytes_max`](Self::packet_bytes_max) long; those sent, as long as the buffers that the client offers. The client
    /// must know chains, too, which memif has no way to ask: gomemif does not.
    pub chains: bool,
    /// Most memory of the client that we map, in bytes, over all regions. All of it is made present at CONNECT, and what the
    /// client had not touched before counts as ours (cgroup): so this is also what a client can make us pay, in memory and in the
    /// time of that step. 65535 slots of 16 KiB would be 1 GiB. Buffers of 2 KiB always fit the default; raise it for larger ones
    /// in many long rings, and for clients that share whole memory pools (VPP and DPDK with zero-copy).
    pub memory_bytes_max: u64,
    /// Also take regions that can shrink (not sealed), that cannot be sealed any further, or are huge pages; and add no seal to
    /// any region. Also needed on kernels before Linux 5.1, which have no seal against holes. Pages are made present all the
    /// same.
    ///
    /// **Danger**: such a client can make its memory vanish under us, and the next access is SIGBUS: the whole process dies, unless
    /// the program has called [`guard_memory`](crate::guard_memory) before; then only this connection ends. Or it punches holes into
    /// it again and again, and the thread that touches them sleeps meanwhile, guard or not, for as long as the client makes its hole
    /// last: seconds, if it starves the thread that makes it. Only for a peer that is trusted as much as this process itself.
    ///
    /// Without this, a region gets the seal F_SEAL_FUTURE_WRITE at CONNECT. The client must have mapped it before (all known ones
    /// have), cannot use write(2) on it any more, and needs new memory for its next connection.
    pub allow_unsealed: bool,
}

impl Default for ServerConfig {
    /// Name `memif`, no secret, 8 rings each way, packets up to 9216 bytes, no chains, 128 MiB, sealed memory only.
    fn default() -> Self {
        Self {
            name: "memif".to_owned(),
            secret: None,
            rings_max: 8,
            packet_bytes_max: 9216,
            chains: false,
            memory_bytes_max: 128 << 20,
            allow_unsealed: false,
        }
    }
}

/// Where a handshake is after a step.
#[derive(Debug)]
pub enum Progress {
    /// Waiting for the peer: step again when the socket is readable, or at the handshake's deadline.
    Pending,
    /// Done. The socket has moved into [`Interface::control`], with the same file descriptor number.
    Connected(Box<Interface>),
}

/// What has been settled so far.
#[derive(Debug)]
enum State {
    Hello,
    Init,
    Offers(Box<Accepted>),
    Sealing(Box<Sealed>),
}

/// A client that was let in and is describing its memory.
#[derive(Debug)]
struct Accepted {
    peer_name: String,
    config: ServerConfig,
    offer: Offer,
}

/// A client that has said CONNECT, and whose memory is mapped and being sealed.
#[derive(Debug)]
struct Sealed {
    peer_name: String,
    peer_if_name: String,
    config: ServerConfig,
    mapped: Mapped,
    /// When to look whether it is sealed.
    look_at: Instant,
}

/// A client between accept and CONNECTED. Drop it to refuse silently.
#[derive(Debug)]
pub struct Handshake {
    /// `None` once the handshake has ended, either way.
    channel: Option<Channel>,
    state: State,
    name: String,
    limits: Limits,
    deadline: Instant,
    credentials: Option<Credentials>,
    /// The interface that the client was let in to.
    id: Option<u32>,
    /// The client's last message.
    sent: Sent,
}

impl Handshake {
    /// Over a connected socket. Never fails: what goes wrong with HELLO shows in the first step.
    pub(crate) fn new(socket: OwnedFd, name: String, limits: Limits) -> Self {
        let credentials = sys::credentials(socket.as_fd()).ok();
        let deadline = Instant::now() + limits.handshake_timeout;
        let mut handshake = Self {
            channel: Some(Channel::new(socket)),
            state: State::Hello,
            name,
            limits,
            deadline,
            credentials,
            id: None,
            sent: Sent::Nothing,
        };
        if handshake.send(&handshake.hello()).is_ok() {
            handshake.state = State::Init;
        }
        handshake
    }

    /// When to call [`step`](Self::step) at the latest, even if the socket is not readable: when the handshake must be over, and
    /// while the client's memory cannot be sealed yet, every few milliseconds. Ask again after each step.
    pub fn deadline(&self) -> Instant {
        match &self.state {
            State::Sealing(sealed) => sealed.look_at.min(self.deadline),
            State::Hello | State::Init | State::Offers(_) => self.deadline,
        }
    }

    /// The process that connected; `None` if the kernel would not tell.
    pub fn credentials(&self) -> Option<Credentials> {
        self.credentials
    }

    /// The interface id, once the client has named it and was let in.
    pub fn id(&self) -> Option<u32> {
        self.id
    }

    /// The client has said CONNECT, and its memory is not sealed yet.
    pub fn is_sealing(&self) -> bool {
        matches!(self.state, State::Sealing(_))
    }

    /// The sealer has answered what was asked for it: worth a step. For who serves many clients, after [`sealer::wait`](crate::sealer::wait).
    pub fn is_answered(&self) -> bool {
        matches!(&self.state, State::Sealing(sealed) if sealed.mapped.is_answered())
    }

    /// Ends it; the client is told why.
    pub fn refuse(mut self, why: &str) {
        if let Some(channel) = self.channel.take() {
            channel.send_disconnect(why);
        }
    }

    /// Handles everything that has arrived. Never waits for more. The step that finds CONNECT makes all the client's memory
    /// present (up to [`memory_bytes_max`](ServerConfig::memory_bytes_max)): not for a thread that moves packets. If the client
    /// holds a lock on its file then, so that it cannot be sealed, that step waits for [`Limits::seal_patience`]; later ones only look (when:
    /// [`deadline`](Self::deadline)), and after [`Limits::seal_timeout`] the client is refused. The [`sealer`](crate::sealer) goes on
    /// waiting until the client lets go, and until then the interface's name is refused. `lookup` is called once, at INIT; two
    /// handshakes for one id can both get past it, so check again when one connects.
    ///
    /// # Errors
    /// [`HandshakeError`]; the client has been told and the socket is closed. Drop the handshake.
    pub fn step(
        &mut self,
        lookup: &mut dyn FnMut(&Request<'_>) -> Result<ServerConfig, Refusal>,
    ) -> Result<Progress, HandshakeError> {
        let result = self.run(lookup);
        if let Err(why) = &result
            && let Some(channel) = self.channel.take()
            && let HandshakeError::Rejected(why) = why
        {
            channel.send_disconnect(&why.to_string());
        }
        if result.is_err() {
            // With all that the client has given us.
            self.state = State::Hello;
        }
        result
    }

    fn run(
        &mut self,
        lookup: &mut dyn FnMut(&Request<'_>) -> Result<ServerConfig, Refusal>,
    ) -> Result<Progress, HandshakeError> {
        loop {
            let channel = self.channel.as_ref().ok_or(HandshakeError::Finished)?;
            if matches!(self.state, State::Hello) {
                return Err(HandshakeError::Closed { after: self.sent });
            }
            if Instant::now() >= self.deadline {
                return Err(Reject::TimedOut.into());
            }
            let (message, fd) = match channel.receive()? {
                Incoming::Empty if matches!(self.state, State::Sealing(_)) => {
                    return self.seal(Duration::ZERO);
                }
                Incoming::Empty => return Ok(Progress::Pending),
                Incoming::Closed => return Err(HandshakeError::Closed { after: self.sent }),
                Incoming::Message(message, fd) => (message, fd),
            };
            if let Some(if_name) = self.handle(message, fd, lookup)? {
                return self.connect(if_name);
            }
            self.send(&Message::Ack)?;
        }
    }

    /// One message. Gives the client's interface name when it was CONNECT.
    fn handle(
        &mut self,
        message: Message,
        fd: Option<OwnedFd>,
        lookup: &mut dyn FnMut(&Request<'_>) -> Result<ServerConfig, Refusal>,
    ) -> Result<Option<String>, HandshakeError> {
        if fd.is_some() && !matches!(message, Message::AddRegion { .. } | Message::AddRing(_)) {
            return Err(Reject::UnexpectedFd.into());
        }
        self.sent = Sent::of(&message).unwrap_or(self.sent);
        match (&mut self.state, message) {
            (_, Message::Disconnect { code, text }) => {
                return Err(HandshakeError::Disconnected { after: self.sent, code, text });
            }
            (State::Init, Message::Init(init)) => {
                let id = init.id;
                self.state = State::Offers(Box::new(self.let_in(init, lookup)?));
                self.id = Some(id);
            }
            (State::Offers(accepted), Message::AddRegion { index, size }) => {
                accepted.offer.add_region(index, size, fd, &accepted.config)?;
            }
            (State::Offers(accepted), Message::AddRing(ring)) => accepted.offer.add_ring(ring, fd)?,
            (State::Offers(_), Message::Connect { name }) => return Ok(Some(name)),
            (_, message) => return Err(Reject::UnexpectedMessage { kind: message.kind() }.into()),
        }
        Ok(None)
    }

    fn let_in(
        &self,
        init: Init,
        lookup: &mut dyn FnMut(&Request<'_>) -> Result<ServerConfig, Refusal>,
    ) -> Result<Accepted, Reject> {
        if init.version != VERSION {
            return Err(Reject::Version { min: init.version, max: init.version });
        }
        if init.mode != MODE_ETHERNET {
            return Err(Reject::Mode { mode: init.mode });
        }
        let config = lookup(&Request { id: init.id, name: &init.name, credentials: self.credentials })?;
        if let Some(secret) = &config.secret
            && !secret.matches(&init.secret)
        {
            return Err(if init.secret.is_empty() { Reject::SecretRequired } else { Reject::SecretWrong });
        }
        let offer = Offer::new(self.limits.regions_max, self.limits.rings_max.min(config.rings_max));
        Ok(Accepted { peer_name: init.name, config, offer })
    }

    /// CONNECT: maps the client's memory and begins to seal it.
    fn connect(&mut self, peer_if_name: String) -> Result<Progress, HandshakeError> {
        let State::Offers(accepted) = mem::replace(&mut self.state, State::Hello) else {
            return Err(HandshakeError::Finished);
        };
        let Accepted { peer_name, config, offer } = *accepted;
        let mapped = offer.map(&config, self.limits.seal_timeout)?;
        let look_at = Instant::now();
        self.state = State::Sealing(Box::new(Sealed { peer_name, peer_if_name, config, mapped, look_at }));
        self.seal(self.limits.seal_patience)
    }

    /// Goes on once the memory is sealed, for which it waits `patience` at most.
    fn seal(&mut self, patience: Duration) -> Result<Progress, HandshakeError> {
        let State::Sealing(sealed) = &mut self.state else { return Err(HandshakeError::Finished) };
        if !sealed.mapped.is_sealed(patience)? {
            sealed.look_at = Instant::now() + SEAL_LOOK_EVERY;
            return Ok(Progress::Pending);
        }
        match mem::replace(&mut self.state, State::Hello) {
            State::Sealing(sealed) => self.finish(*sealed),
            State::Hello | State::Init | State::Offers(_) => Err(HandshakeError::Finished),
        }
    }

    /// All is sealed: checks the rings and answers CONNECTED.
    fn finish(&mut self, sealed: Sealed) -> Result<Progress, HandshakeError> {
        let Sealed { peer_name, peer_if_name, config, mapped, .. } = sealed;
        let (rx, tx) = mapped.finish(&config)?;
        self.send(&Message::Connected { name: config.name.clone() })?;
        let (channel, id) = self.channel.take().zip(self.id).ok_or(HandshakeError::Finished)?;
        Ok(Progress::Connected(Box::new(Interface {
            id,
            role: Role::Server,
            name: config.name,
            peer_name,
            peer_if_name,
            credentials: self.credentials,
            rx,
            tx,
            control: ControlSocket::new(channel),
        })))
    }

    fn send(&self, message: &Message) -> Result<(), HandshakeError> {
        let channel = self.channel.as_ref().ok_or(HandshakeError::Finished)?;
        channel.send(message, None).map_err(|why| why.after(self.sent))
    }

    /// Always log2 14: VPP as a client announces its configured size even when it was told a smaller one.
    fn hello(&self) -> Message {
        Message::Hello(Hello {
            name: self.name.clone(),
            min_version: VERSION,
            max_version: VERSION,
            max_region: self.limits.regions_max.saturating_sub(1),
            max_m2s_ring: self.limits.rings_max.saturating_sub(1),
            max_s2m_ring: self.limits.rings_max.saturating_sub(1),
            max_log2: LOG2_MAX,
        })
    }

    /// The socket, while the handshake runs; `None` once it has ended.
    pub fn socket(&self) -> Option<BorrowedFd<'_>> {
        self.channel.as_ref().map(AsFd::as_fd)
    }

    /// The socket's number, while the handshake runs; `None` once it has ended.
    pub fn raw_socket(&self) -> Option<RawFd> {
        self.socket().map(|fd| fd.as_raw_fd())
    }
}
