//! Connecting over real sockets, and what is left of a thousand connections: nothing. One test, since it counts the whole process's
//! descriptors and mappings.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::os::fd::AsRawFd;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use peregrine_memif::{
    Client, ClientConfig, DisconnectReason, Handshake, HandshakeError, Interface, Listener, ListenerConfig,
    Progress, Refusal, Secret, ServerConfig, SocketAddr, pair,
};

fn config() -> ClientConfig {
    ClientConfig { ring_log2: 5, ..ClientConfig::default() }
}

/// Descriptors and mappings of this process.
fn open_things() -> (usize, usize) {
    let fds = fs::read_dir("/proc/self/fd").unwrap().count();
    let memory = fs::read_to_string("/proc/self/maps").unwrap();
    (fds, memory.lines().filter(|line| line.contains("memfd:memif")).count())
}

fn accepted(listener: &Listener) -> Handshake {
    listener.accept().unwrap().unwrap()
}

/// Steps both sides in turn until the client's handshake is over; the server's interface if there is one.
fn finish(
    client: &mut Client,
    server: &mut Handshake,
    lookup: impl Fn() -> Result<ServerConfig, Refusal>,
) -> Result<(Interface, Interface), HandshakeError> {
    let mut served = None;
    loop {
        if served.is_none()
            && let Ok(Progress::Connected(interface)) = server.step(&mut |_| lookup())
        {
            served = Some(*interface);
        }
        if let Progress::Connected(interface) = client.step()? {
            return Ok((*interface, served.unwrap()));
        }
    }
}

fn connected(listener: &Listener, addr: &SocketAddr) -> (Interface, Interface) {
    let mut client = Client::connect(addr, config()).unwrap();
    finish(&mut client, &mut accepted(listener), || Ok(ServerConfig::default())).unwrap()
}

fn crossing(client: &mut Interface, server: &mut Interface) {
    client.tx[0].push(&[1; 64]).unwrap();
    client.tx[0].flush().unwrap();
    assert_eq!(server.rx[0].pending(), Ok(1));
}

fn a_thousand_connections_leave_nothing(addr: &SocketAddr) {
    let listener = Listener::bind(addr, ListenerConfig::default()).unwrap();
    // What the first one sets up for all, such as the sealer.
    drop(connected(&listener, addr));
    let before = open_things();
    for _ in 0..1000 {
        let (mut client, mut server) = connected(&listener, addr);
        crossing(&mut client, &mut server);
        client.control.disconnect("bye");
        let reason = DisconnectReason::Message { code: 0, text: "bye".into() };
        assert_eq!(server.control.poll_disconnect().unwrap(), Some(reason));
        assert_eq!(server.control.poll_disconnect().unwrap(), Some(DisconnectReason::Closed));
    }
    assert_eq!(open_things(), before);
    for _ in 0..200 {
        let mut client = Client::connect(addr, config()).unwrap();
        let refused = finish(&mut client, &mut accepted(&listener), || Err(Refusal::AlreadyConnected));
        match refused {
            Err(HandshakeError::Disconnected { text, .. }) => assert_eq!(text, "already connected"),
            other => panic!("{other:?}"),
        }
    }
    // A client that goes away in the middle, at each of its messages.
    for steps in 0..6 {
        let mut client = Client::connect(addr, config()).unwrap();
        let mut server = accepted(&listener);
        for _ in 0..steps {
            client.step().unwrap();
            server.step(&mut |_| Ok(ServerConfig::default())).unwrap();
        }
        // Memory that is being sealed is given back when that is done.
        while steps == 5 && server.socket().is_some() {
            server.step(&mut |_| Ok(ServerConfig::default())).unwrap();
        }
    }
    assert_eq!(open_things(), before);
}

fn memory_lives_as_long_as_the_last_ring_half() {
    let before = open_things().1;
    let (client, mut server) = pair(config(), ServerConfig::default()).unwrap();
    assert_eq!(open_things().1, before + 2);
    drop(client);
    let mut rx = server.rx.remove(0);
    drop(server);
    assert_eq!(open_things().1, before + 1);
    assert_eq!(rx.pending(), Ok(0));
    drop(rx);
    assert_eq!(open_things().1, before);
}

fn socket_files(folder: &std::path::Path) {
    let path = folder.join("a.sock");
    let addr = SocketAddr::Path(path.clone());
    let listener =
        Listener::bind(&addr, ListenerConfig { mode: Some(0o600), ..ListenerConfig::default() }).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let taken = Listener::bind(&addr, ListenerConfig::default()).unwrap_err();
    assert_eq!(taken.kind(), std::io::ErrorKind::AddrInUse);
    assert!(taken.to_string().contains("another process listens"), "{taken}");
    assert!(listener.as_raw_fd() > 0);
    // A crash leaves the file: the same path, with nobody behind it.
    let moved = folder.join("left.sock");
    fs::rename(&path, &moved).unwrap();
    drop(listener);
    assert!(moved.exists());
    let listener = Listener::bind(&SocketAddr::Path(moved.clone()), ListenerConfig::default()).unwrap();
    // Another file at our path is not ours to remove.
    fs::remove_file(&moved).unwrap();
    fs::write(&moved, "x").unwrap();
    drop(listener);
    assert!(moved.exists());
    let refused = Listener::bind(&SocketAddr::Path(moved), ListenerConfig::default()).unwrap_err();
    assert!(refused.to_string().contains("no socket"), "{refused}");
    let listener = Listener::bind(&addr, ListenerConfig::default()).unwrap();
    drop(listener);
    assert!(!path.exists());
}

fn a_client_waits_for_its_server(folder: &std::path::Path) {
    let addr = SocketAddr::Path(folder.join("late.sock"));
    let alone = Client::connect_blocking(&addr, config(), Duration::from_millis(50));
    assert!(matches!(alone, Err(HandshakeError::Io { .. })));
    let there = addr.clone();
    let client = std::thread::spawn(move || {
        let secret = Secret::new(b"word").unwrap();
        Client::connect_blocking(&there, ClientConfig { secret, ..config() }, Duration::from_secs(20))
    });
    let listener = Listener::bind(&addr, ListenerConfig::default()).unwrap();
    let guarded = ServerConfig { secret: Some(Secret::new(b"word").unwrap()), ..ServerConfig::default() };
    let mut handshake = loop {
        match listener.accept().unwrap() {
            Some(handshake) => break handshake,
            None => std::thread::yield_now(),
        }
    };
    let mut server = loop {
        match handshake.step(&mut |_| Ok(guarded.clone())).unwrap() {
            Progress::Connected(interface) => break interface,
            Progress::Pending => std::thread::yield_now(),
        }
    };
    let mut client = client.join().unwrap().unwrap();
    crossing(&mut client, &mut server);
    // Nobody answers: the listener never accepts.
    let silent = Client::connect_blocking(&addr, config(), Duration::from_millis(50));
    assert!(matches!(silent, Err(HandshakeError::Closed { .. } | HandshakeError::Rejected(_))), "{silent:?}");
}

#[test]
fn connections() {
    let folder = tempfile::tempdir().unwrap();
    a_thousand_connections_leave_nothing(&SocketAddr::Path(folder.path().join("many.sock")));
    let name = format!("peregrine-memif-test-{}", std::process::id());
    a_thousand_connections_leave_nothing(&SocketAddr::Abstract(name));
    memory_lives_as_long_as_the_last_ring_half();
    socket_files(folder.path());
    a_client_waits_for_its_server(folder.path());
}

#[test]
fn nonsense_in_the_configuration_is_refused() {
    let nonsense = [
        ClientConfig { ring_log2: 4, ..config() },
        ClientConfig { ring_log2: 15, ..config() },
        ClientConfig { buffer_bytes: 2047, ..config() },
        ClientConfig { buffer_bytes: 16385, ..config() },
        ClientConfig { queue_pairs: 0, ..config() },
        ClientConfig { queue_pairs: 9, ..config() },
        ClientConfig { queue_pairs: 2, ring_log2: 14, ..config() },
    ];
    for config in nonsense {
        let named = config.check().unwrap_err();
        match Client::connect(&SocketAddr::Path("/nowhere".into()), config) {
            Err(HandshakeError::Config(why)) => assert_eq!(why, named),
            other => panic!("{other:?}"),
        }
    }
}
