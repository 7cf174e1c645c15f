//! The client's side of the handshake, and the configuration of a client.
//!
//! The client owns all memory. It makes it to the limits of HELLO, but only once the server has accepted INIT: what a server that
//! refuses costs is a few messages. It offers its receive buffers only after CONNECTED: libmemif and DPDK servers set every head and
//! tail to 0 just before they send it.
//!
//! What no client can prevent: a server punches holes into the memory while it is used (`lib`, security).

use std::collections::VecDeque;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::addr::SocketAddr;
use crate::channel::{Channel, Incoming};
use crate::connector;
use crate::error::{ConfigError, HandshakeError, Reject, Sent};
use crate::interface::{ControlSocket, Interface};
use crate::memory::{ClientMemory, Layout};
use crate::message::{Hello, Init, MODE_ETHERNET, Message, Secret, VERSION};
use crate::pool::RegionPool;
use crate::ring::Role;
use crate::seal;
use crate::server::Progress;
use crate::sys::{self, Credentials};

/// How to attach to a server.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// The interface id at the server.
    pub id: u32,
    /// Our name, in INIT and CONNECT; up to 31 bytes.
    pub name: String,
    /// The secret that the server may want.
    pub secret: Secret,
    /// log2 of the slots of each ring, 5..=14.
    pub ring_log2: u8,
    /// Bytes of each buffer, 2048..=16384: the longest packet, each way, unless chains are allowed.
    pub buffer_bytes: u32,
    /// Rings in each direction, 1..=8. A server that takes fewer one way gets fewer both ways.
    pub queue_pairs: u16,
    /// The user that the listening process must have (its effective user id when it began to listen): any other is refused before it
    /// is told the secret. `None`: whoever listens. Wanted where others than the server could bind the address first: abstract
    /// names, directories that others can write.
    pub server_uid: Option<u32>,
    /// Let the server add no seals to the memory. One that does (F_SEAL_FUTURE_WRITE) can keep the pages, charged to us, after the
    /// connection has ended: so against servers that are not trusted with that much. But a server that trusts its clients no further
    /// adds just this seal, as those of this crate do without [`allow_unsealed`](crate::ServerConfig::allow_unsealed); DPDK, VPP and
    /// libmemif add none.
    pub forbid_seals: bool,
    /// Take and send packets in several buffers (chains): up to [`CHAIN_MAX`](crate::CHAIN_MAX) × `buffer_bytes` long, each way.
    /// The peer must know chains, too, which memif has no way to ask: gomemif does not.
    pub chains: bool,
    /// Where memory is taken from that was made beforehand; `None`, or none there: it is made when it is needed.
    pub pool: Option<RegionPool>,
}

impl Default for ClientConfig {
    /// Id 0, name `memif`, no secret, 1 queue pair of 1024 slots, buffers of 2048 bytes, any server's user, no chains, no pool.
    fn default() -> Self {
        Self {
            id: 0,
            name: "memif".to_owned(),
            secret: Secret::default(),
            ring_log2: 10,
            buffer_bytes: 2048,
            queue_pairs: 1,
            server_uid: None,
            forbid_seals: false,
            chains: false,
            pool: None,
        }
    }
}

impl ClientConfig {
    /// Whether the values can be.
    ///
    /// # Errors
    /// The first one that cannot.
    pub fn check(&self) -> Result<(), ConfigError> {
        if !(5..=14).contains(&self.ring_log2) {
            return Err(ConfigError::RingLog2 { got: self.ring_log2 });
        }
        if !(2048..=16384).contains(&self.buffer_bytes) {
            return Err(ConfigError::BufferBytes { got: self.buffer_bytes });
        }
        if !(1..=8).contains(&self.queue_pairs) {
            return Err(ConfigError::QueuePairs { got: self.queue_pairs });
        }
        let slots = (u32::from(self.queue_pairs) * 2) << self.ring_log2;
        if slots >= 1 << 16 { Err(ConfigError::Slots { got: slots }) } else { Ok(()) }
    }

    /// What the server's limits leave. They are highest indexes, so one less than a count.
    fn layout(&self, hello: &Hello) -> Result<Layout, Reject> {
        // As many each way: DPDK programs crash otherwise.
        let rings = self.queue_pairs.min(hello.max_s2m_ring.min(hello.max_m2s_ring).saturating_add(1));
        let layout = Layout {
            s2m_rings: rings,
            m2s_rings: rings,
            log2: self.ring_log2.min(hello.max_log2),
            buffer_bytes: self.buffer_bytes,
        };
        if layout.log2 == 0 { Err(Reject::Limits) } else { Ok(layout) }
    }
}

/// A message of the client's script, and which descriptor goes with it.
#[derive(Debug)]
enum Line {
    /// The memory is made for it.
    Region(Layout),
    Ring {
        s2m: bool,
        index: u16,
    },
    Connect,
}

#[derive(Debug)]
enum State {
    /// Waiting for HELLO.
    Hello,
    /// Waiting for ACK; then the next line of the script is sent.
    Script,
    /// Waiting for CONNECTED.
    Connected,
}

/// A client between connect and CONNECTED.
#[derive(Debug)]
pub struct Client {
    /// `None` once the handshake has ended, either way.
    channel: Option<Channel>,
    config: ClientConfig,
    /// Address and id of the interface at the server.
    server: Arc<str>,
    state: State,
    script: VecDeque<Line>,
    memory: Option<ClientMemory>,
    peer_name: String,
    credentials: Option<Credentials>,
    /// Our last message.
    sent: Sent,
}

impl Client {
    /// Connects to a server's socket; the handshake is then driven by [`step`](Self::step). Never blocks.
    ///
    /// # Errors
    /// [`HandshakeError::Config`] before anything is done; [`HandshakeError::Io`] if nobody listens (`NotFound`,
    /// `ConnectionRefused`) or too many wait there (`WouldBlock`): try again later. [`HandshakeError::Rejected`] if another user listens
    /// than [`server_uid`](ClientConfig::server_uid) wants.
    pub fn connect(addr: &SocketAddr, config: ClientConfig) -> Result<Self, HandshakeError> {
        config.check()?;
        let connect = || {
            let socket = sys::socket()?;
            sys::connect(socket.as_fd(), &addr.to_raw()?)?;
            Ok(socket)
        };
        let socket = connect().map_err(HandshakeError::io("connect to the memif socket"))?;
        let server = format!("{addr} id {}", config.id);
        let mut client = Self { server: server.into(), ..Self::over(socket, config) };
        match client.check_server() {
            Ok(()) => Ok(client),
            Err(why) => Err(client.close(why.into())),
        }
    }

    /// Connects and goes through the handshake, within `timeout` in all. Tries again, as a [`Connector`](crate::Connector) does, while
    /// nobody listens or too many wait there, and after every handshake that the server ends: it may yet be starting (a DPDK server
    /// refuses until its port is started).
    ///
    /// ```
    /// use std::time::Duration;
    /// use peregrine_memif::{Client, ClientConfig, HandshakeError, SocketAddr};
    ///
    /// let nobody = SocketAddr::Abstract(format!("nobody-{}", std::process::id()));
    /// let error = Client::connect_blocking(&nobody, ClientConfig::default(), Duration::from_millis(20));
    /// assert!(matches!(error, Err(HandshakeError::Io { .. })));
    /// ```
    ///
    /// # Errors
    /// At the timeout: that of the last attempt that ended, or [`Reject::TimedOut`] if none did. At once: what cannot get better, which
    /// is a configuration that cannot be, a wrong secret, a server that this client cannot use, and errors of system calls.
    pub fn connect_blocking(
        addr: &SocketAddr,
        config: ClientConfig,
        timeout: Duration,
    ) -> Result<Interface, HandshakeError> {
        connector::connect_blocking(addr, config, timeout)
    }

    /// Over a connected socket, to a server that is like no other.
    pub(crate) fn over(socket: OwnedFd, config: ClientConfig) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let server = format!("server {}", NUMBER.fetch_add(1, Ordering::Relaxed));
        let credentials = sys::credentials(socket.as_fd()).ok();
        Self {
            channel: Some(Channel::new(socket)),
            server: server.into(),
            config,
            state: State::Hello,
            script: VecDeque::new(),
            memory: None,
            peer_name: String::new(),
            credentials,
            sent: Sent::Nothing,
        }
    }

    /// Whether the right user listens.
    fn check_server(&self) -> Result<(), Reject> {
        let uid = self.credentials.map(|process| process.uid);
        match self.config.server_uid {
            Some(expected) if uid != Some(expected) => Err(Reject::WrongServer { uid, expected }),
            _ => Ok(()),
        }
    }

    /// Handles everything that has arrived, and never waits for more. The step that finds INIT accepted makes all of the client's
    /// memory present, which takes a while if that is large (up to 1 GiB): not for a thread that moves packets. The caller keeps the
    /// time: drop the client when it takes too long.
    ///
    /// # Errors
    /// [`HandshakeError`]; the server has been told and the socket is closed.
    pub fn step(&mut self) -> Result<Progress, HandshakeError> {
        self.run().map_err(|why| self.close(why))
    }

    /// Ends the handshake because it takes too long; the server is told.
    pub(crate) fn time_out(&mut self) -> HandshakeError {
        self.close(Reject::TimedOut.into())
    }

    /// Closes, and tells the server why if it is we who refuse.
    fn close(&mut self, why: HandshakeError) -> HandshakeError {
        if let Some(channel) = self.channel.take()
            && let HandshakeError::Rejected(why) = &why
        {
            channel.send_disconnect(&why.to_string());
        }
        why
    }

    fn run(&mut self) -> Result<Progress, HandshakeError> {
        loop {
            let channel = self.channel.as_ref().ok_or(HandshakeError::Finished)?;
            let message = match channel.receive()? {
                Incoming::Empty => return Ok(Progress::Pending),
                Incoming::Closed => return Err(HandshakeError::Closed { after: self.sent }),
                Incoming::Message(_, Some(_)) => return Err(Reject::UnexpectedFd.into()),
                Incoming::Message(message, None) => message,
            };
            match (&self.state, message) {
                (_, Message::Disconnect { code, text }) => {
                    return Err(HandshakeError::Disconnected { after: self.sent, code, text });
                }
                (State::Hello, Message::Hello(hello)) => self.greet(hello)?,
                (State::Script, Message::Ack) => self.send_next()?,
                (State::Connected, Message::Connected { name }) => return self.connected(name),
                (_, message) => return Err(Reject::UnexpectedMessage { kind: message.kind() }.into()),
            }
        }
    }

    /// HELLO: plans the memory and answers INIT.
    fn greet(&mut self, hello: Hello) -> Result<(), HandshakeError> {
        if !(hello.min_version..=hello.max_version).contains(&VERSION) {
            return Err(Reject::Version { min: hello.min_version, max: hello.max_version }.into());
        }
        let layout = self.config.layout(&hello)?;
        self.script.push_back(Line::Region(layout));
        self.script.extend((0..layout.s2m_rings).map(|index| Line::Ring { s2m: true, index }));
        self.script.extend((0..layout.m2s_rings).map(|index| Line::Ring { s2m: false, index }));
        self.script.push_back(Line::Connect);
        self.peer_name = hello.name;
        self.state = State::Script;
        let name = self.config.name.clone();
        let init = Init {
            version: VERSION,
            id: self.config.id,
            mode: MODE_ETHERNET,
            secret: self.config.secret,
            name,
        };
        self.sent = Sent::Init;
        self.send(&Message::Init(init), None)
    }

    /// ACK: the next line of the script.
    fn send_next(&mut self) -> Result<(), HandshakeError> {
        let line = self.script.pop_front().ok_or(HandshakeError::Finished)?;
        if let Line::Region(layout) = line {
            seal::may_make_memory(&self.server)?;
            let made = ClientMemory::new(layout, &self.server, &self.config)
                .map_err(HandshakeError::io("make shared memory"))?;
            self.memory = Some(made);
        }
        let memory = self.memory.as_ref().ok_or(HandshakeError::Finished)?;
        let (message, fd) = match line {
            Line::Region(_) => {
                let size = u64::from(memory.layout.bytes());
                (Message::AddRegion { index: 0, size }, Some(memory.file.as_fd()))
            }
            Line::Ring { s2m, index } => {
                let event = memory.event(s2m, index).map(AsFd::as_fd);
                (Message::AddRing(memory.layout.add_ring(s2m, index)), event)
            }
            Line::Connect => {
                self.state = State::Connected;
                (Message::Connect { name: self.config.name.clone() }, None)
            }
        };
        self.sent = Sent::of(&message).unwrap_or(self.sent);
        self.send(&message, fd)
    }

    /// A server that refuses us may have closed before it read this: then its reason waits to be read, and sending fails. So a
    /// closed connection is left for the next `receive` to find.
    fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> Result<(), HandshakeError> {
        match self.channel.as_ref().ok_or(HandshakeError::Finished)?.send(message, fd) {
            Err(HandshakeError::Closed { .. }) => Ok(()),
            result => result,
        }
    }

    /// Whether the server has been given memory of ours, which it can keep.
    pub(crate) fn has_given_memory(&self) -> bool {
        !matches!(self.sent, Sent::Nothing | Sent::Init)
    }

    fn connected(&mut self, peer_if_name: String) -> Result<Progress, HandshakeError> {
        let (channel, memory) =
            self.channel.take().zip(self.memory.take()).ok_or(HandshakeError::Finished)?;
        let (rx, tx) = memory.connect(self.config.chains);
        Ok(Progress::Connected(Box::new(Interface {
            id: self.config.id,
            role: Role::Client,
            name: self.config.name.clone(),
            peer_name: std::mem::take(&mut self.peer_name),
            peer_if_name,
            credentials: self.credentials,
            rx,
            tx,
            control: ControlSocket::new(channel),
        })))
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
