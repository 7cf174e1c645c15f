//! Connecting again: when, how often, and what ends it. Pauses are checked on times made up here, so nothing waits for them.

use std::thread::{self, JoinHandle};

use super::*;
use crate::addr::SocketAddr;
use crate::client::{Client, ClientConfig};
use crate::connector::{Attempt, Backoff, Connector};
use crate::error::{ConfigError, Reject};
use crate::message::Hello;

const FIRST: Duration = Duration::from_millis(10);
const MAX: Duration = Duration::from_millis(50);

/// A server's socket under a name of its own.
pub(super) struct Port {
    addr: SocketAddr,
    socket: OwnedFd,
}

impl Port {
    pub(super) fn new(name: &str) -> Self {
        let addr = SocketAddr::Abstract(format!("peregrine-memif-{name}-{}", std::process::id()));
        let socket = sys::socket().unwrap();
        sys::bind(socket.as_fd(), &addr.to_raw().unwrap()).unwrap();
        sys::listen(socket.as_fd(), 8).unwrap();
        Self { addr, socket }
    }

    fn accept(&self) -> OwnedFd {
        assert!(sys::wait_readable(self.socket.as_fd(), Duration::from_secs(10)).unwrap(), "nobody came");
        sys::accept(self.socket.as_fd()).unwrap().unwrap()
    }

    /// Accepts, says HELLO, reads INIT and refuses.
    fn refuse(&self, text: &str) {
        let channel = Channel::new(self.accept());
        channel.send(&Message::Hello(hello()), None).unwrap();
        assert!(sys::wait_readable(channel.as_fd(), Duration::from_secs(10)).unwrap(), "no INIT");
        assert!(matches!(channel.receive().unwrap(), Incoming::Message(Message::Init(_), None)));
        channel.send_disconnect(text);
    }

    /// Accepts and serves as it should be.
    fn serve(&self) -> Interface {
        let mut server = Handshake::new(self.accept(), "port".into(), limits());
        loop {
            match server.step(&mut |_| Ok(ServerConfig::default())).unwrap() {
                Progress::Connected(interface) => return *interface,
                Progress::Pending => {
                    let left = server.deadline().saturating_duration_since(Instant::now());
                    sys::wait_readable(server.socket().unwrap(), left).unwrap();
                }
            }
        }
    }

    /// A client that connects and has got as far as giving memory, and what it has given.
    pub(super) fn asks_for_memory(&self) -> Result<(Client, File), HandshakeError> {
        let mut client = Client::connect(&self.addr, config())?;
        let channel = Channel::new(self.accept());
        for message in [Message::Hello(hello()), Message::Ack] {
            channel.send(&message, None).unwrap();
            client.step()?;
        }
        assert!(matches!(channel.receive().unwrap(), Incoming::Message(Message::Init(_), None)));
        match channel.receive().unwrap() {
            Incoming::Message(Message::AddRegion { .. }, Some(fd)) => Ok((client, fd.into())),
            _ => panic!("no memory"),
        }
    }

    pub(super) fn gives_memory(&self) -> (Client, File) {
        self.asks_for_memory().unwrap()
    }

    fn connector(&self) -> Connector {
        Connector::new(self.addr.clone(), config(), Backoff { first: FIRST, max: MAX }).unwrap()
    }
}

fn hello() -> Hello {
    Hello {
        name: "port".into(),
        min_version: VERSION,
        max_version: VERSION,
        max_region: 255,
        max_m2s_ring: 255,
        max_s2m_ring: 255,
        max_log2: 14,
    }
}

fn config() -> ClientConfig {
    ClientConfig { ring_log2: 5, ..ClientConfig::default() }
}

/// The pause that the connector makes after `now`, checked to be kept.
fn pause(connector: &mut Connector, now: &mut Instant) -> Duration {
    let next = connector.deadline().unwrap();
    let (pause, attempts) = (next - *now, connector.attempts());
    assert!(matches!(connector.step(next - Duration::from_nanos(1)), Attempt::Waiting));
    assert_eq!((connector.attempts(), connector.raw_socket()), (attempts, None), "too early");
    *now = next;
    pause
}

fn connect_by(connector: &mut Connector, port: &Port, now: Instant) -> (Interface, Interface) {
    assert!(matches!(connector.step(now), Attempt::Waiting));
    thread::scope(|scope| {
        let served = scope.spawn(|| port.serve());
        loop {
            sys::wait_readable(connector.socket().unwrap(), Duration::from_secs(10)).unwrap();
            match connector.step(now) {
                Attempt::Waiting => {}
                Attempt::Connected(client) => return (*client, served.join().unwrap()),
                Attempt::Failed(why) => panic!("{why}"),
            }
        }
    })
}

#[test]
fn pauses_double_up_to_the_longest() {
    let nowhere = SocketAddr::Path("/nowhere/memif.sock".into());
    let mut connector = Connector::new(nowhere, config(), Backoff { first: FIRST, max: MAX }).unwrap();
    let mut now = Instant::now();
    let mut pauses = Vec::new();
    for attempt in 1..=5 {
        assert!(matches!(connector.step(now), Attempt::Failed(HandshakeError::Io { .. })));
        assert_eq!(connector.attempts(), attempt);
        pauses.push(pause(&mut connector, &mut now).as_millis());
    }
    assert_eq!(pauses, [10, 20, 40, 50, 50]);
}

#[test]
fn a_pause_of_nothing_is_still_one() {
    let none = Backoff { first: Duration::ZERO, max: Duration::ZERO };
    let mut connector =
        Connector::new(SocketAddr::Path("/nowhere/memif.sock".into()), config(), none).unwrap();
    let mut now = Instant::now();
    for _ in 0..3 {
        assert!(matches!(connector.step(now), Attempt::Failed(_)));
        assert_eq!(pause(&mut connector, &mut now), Duration::from_millis(1));
    }
}

#[test]
fn a_configuration_that_cannot_be_never_tries() {
    let bad = ClientConfig { queue_pairs: 9, ..config() };
    let error = Connector::new(SocketAddr::Abstract("x".into()), bad, Backoff::default()).unwrap_err();
    assert_eq!(error, ConfigError::QueuePairs { got: 9 });
}

#[test]
fn only_a_connection_that_lasted_makes_the_pauses_short_again() {
    let port = Port::new("steady");
    let mut connector = port.connector();
    let mut now = Instant::now();
    let mut pauses = Vec::new();
    for lasting in [0, 0, 999, 1000, 0] {
        let both = connect_by(&mut connector, &port, now);
        assert_eq!((connector.deadline(), connector.raw_socket()), (None, None));
        assert!(matches!(connector.step(now), Attempt::Waiting), "nothing to do while it lasts");
        drop(both);
        now += Duration::from_millis(lasting);
        connector.lost(now);
        connector.lost(now + Duration::from_secs(60));
        pauses.push(pause(&mut connector, &mut now).as_millis());
    }
    assert_eq!(pauses, [10, 20, 40, 10, 20]);
    assert_eq!(connector.attempts(), 5);
}

#[test]
fn pauses_grow_beyond_the_longest_only_after_what_cost_memory() {
    let port = Port::new("costly");
    let mut connector = port.connector();
    let mut now = Instant::now();
    let mut pauses = Vec::new();
    // A connection that does not last; an attempt that fails with our memory given away; one that fails before.
    let attempts = [1, 1, 1, 1, 2, 2, 3, 1, 3, 3, 2, 1, 1, 1, 1, 1, 2, 3, 1];
    for attempt in attempts {
        match attempt {
            1 => {
                let both = connect_by(&mut connector, &port, now);
                drop(both);
                connector.lost(now);
            }
            2 => take_memory_and_hang_up(&mut connector, &port, now),
            _ => refused(&mut connector, &port, now),
        }
        pauses.push(pause(&mut connector, &mut now).as_millis());
    }
    let expected =
        [10, 20, 40, 80, 160, 320, 50, 640, 50, 50, 1280, 2560, 5120, 10240, 20480, 30000, 30000, 50, 30000];
    assert_eq!(pauses, expected);
    // One that lasts is forgiven everything.
    let both = connect_by(&mut connector, &port, now);
    now += Duration::from_secs(1);
    drop(both);
    connector.lost(now);
    assert_eq!(pause(&mut connector, &mut now), FIRST);
}

/// A server that accepts INIT, takes the memory and hangs up.
fn take_memory_and_hang_up(connector: &mut Connector, port: &Port, now: Instant) {
    assert!(matches!(connector.step(now), Attempt::Waiting));
    let channel = Channel::new(port.accept());
    for message in [Message::Hello(hello()), Message::Ack] {
        channel.send(&message, None).unwrap();
        assert!(matches!(connector.step(now), Attempt::Waiting));
    }
    assert!(matches!(channel.receive().unwrap(), Incoming::Message(Message::Init(_), None)));
    assert!(matches!(channel.receive().unwrap(), Incoming::Message(Message::AddRegion { .. }, Some(_))));
    drop(channel);
    assert!(matches!(connector.step(now), Attempt::Failed(HandshakeError::Closed { .. })));
}

fn refused(connector: &mut Connector, port: &Port, now: Instant) {
    assert!(matches!(connector.step(now), Attempt::Waiting));
    let channel = Channel::new(port.accept());
    channel.send(&Message::Hello(hello()), None).unwrap();
    assert!(matches!(connector.step(now), Attempt::Waiting));
    channel.send_disconnect("ID not found");
    assert!(matches!(connector.step(now), Attempt::Failed(HandshakeError::Disconnected { .. })));
}

#[test]
fn a_silent_server_is_left_after_five_seconds_and_told() {
    let port = Port::new("silent");
    let mut connector = port.connector();
    let start = Instant::now();
    assert!(matches!(connector.step(start), Attempt::Waiting));
    assert!(connector.socket().is_some());
    let end = start + Duration::from_secs(5);
    assert_eq!(connector.deadline(), Some(end));
    assert!(matches!(connector.step(end - Duration::from_nanos(1)), Attempt::Waiting));
    let timed_out = connector.step(end);
    assert!(matches!(timed_out, Attempt::Failed(HandshakeError::Rejected(Reject::TimedOut))));
    assert_eq!((connector.raw_socket(), connector.deadline()), (None, Some(end + FIRST)));
    let told = Channel::new(port.accept()).receive().unwrap();
    assert!(
        matches!(told, Incoming::Message(Message::Disconnect { text, .. }, None) if text.contains("timed out"))
    );
}

fn blocking(port: &Port, timeout: Duration) -> JoinHandle<Result<Interface, HandshakeError>> {
    let addr = port.addr.clone();
    thread::spawn(move || Client::connect_blocking(&addr, config(), timeout))
}

/// A DPDK server says "ID not found" until its port is started; libmemif closes without a word.
#[test]
fn a_server_that_is_not_ready_yet_is_asked_again() {
    let port = Port::new("late");
    let client = blocking(&port, Duration::from_secs(30));
    port.refuse("ID not found");
    drop(port.accept());
    port.refuse("ID not found");
    let mut server = port.serve();
    let mut client = client.join().unwrap().unwrap();
    client.tx[0].push(&[1; 64]).unwrap();
    client.tx[0].flush().unwrap();
    assert_eq!(server.rx[0].pending(), Ok(1));
}

#[test]
fn at_the_timeout_the_last_reason_is_given() {
    let port = Port::new("never");
    let client = blocking(&port, Duration::from_secs(1));
    port.refuse("ID not found");
    match client.join().unwrap() {
        Err(HandshakeError::Disconnected { text, .. }) => assert_eq!(text, "ID not found"),
        other => panic!("{other:?}"),
    }
}

/// With a timeout of an hour, so what is not given up at once is never given up.
#[test]
fn what_cannot_get_better_is_given_up_at_once() {
    let hour = Duration::from_secs(3600);
    let port = Port::new("secret");
    let client = blocking(&port, hour);
    port.refuse("Incorrect secret");
    assert!(matches!(client.join().unwrap(), Err(HandshakeError::Disconnected { .. })));
    let client = blocking(&port, hour);
    let old = Hello { min_version: 0x0100, max_version: 0x0100, ..hello() };
    Channel::new(port.accept()).send(&Message::Hello(old), None).unwrap();
    assert!(matches!(client.join().unwrap(), Err(HandshakeError::Rejected(Reject::Version { .. }))));
    let bad = ClientConfig { ring_log2: 0, ..config() };
    assert!(matches!(Client::connect_blocking(&port.addr, bad, hour), Err(HandshakeError::Config(_))));
    let long = SocketAddr::Path("x".repeat(108).into());
    assert!(matches!(Client::connect_blocking(&long, config(), hour), Err(HandshakeError::Io { .. })));
}

/// Before it has heard a word of ours; in a process that belongs to user 0 or any other.
#[test]
fn a_server_of_another_user_is_refused_and_told() {
    // SAFETY: no pointers; it cannot fail.
    let us = unsafe { libc::geteuid() };
    let port = Port::new("user");
    let only = |uid| ClientConfig { server_uid: Some(uid), ..config() };
    let refused = Client::connect(&port.addr, only(us + 1)).unwrap_err();
    let why = Reject::WrongServer { uid: Some(us), expected: us + 1 };
    assert!(matches!(refused, HandshakeError::Rejected(given) if given == why), "{refused}");
    let channel = Channel::new(port.accept());
    let told = channel.receive().unwrap();
    assert!(
        matches!(told, Incoming::Message(Message::Disconnect { text, .. }, None) if text == why.to_string())
    );
    assert!(matches!(channel.receive(), Ok(Incoming::Closed)));
    let mut connector = Connector::new(port.addr.clone(), only(us), Backoff::default()).unwrap();
    drop(connect_by(&mut connector, &port, Instant::now()));
}
