//! Fuzz target: a peer that says anything at all, in any order and with any descriptor, to either handshake.
//!
//! Input: the side under test (`S` server, `C` client), a digit whose bits are [`Flags`] (`:` to `?` are 10 to 15), then
//! operations:
//! `r` the right next message; `m` the same with some bytes changed (how many; offset and value of each); `k` the script goes on at a line (number);
//! `b` any bytes (length, bytes); `f` what goes with the next message instead of the right descriptor (kind); `q` the next
//! message waits for the one after it; `d` DISCONNECT; `x` close.
//!
//! What must hold: no panic, no access outside memory, no wait; every handshake ends at most once, in a known way; a peer that
//! said only what is right is connected; every file is closed and every thread has ended; and what is decoded and encoded comes
//! back the same.
#![no_main]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::{Duration, Instant};

use libfuzzer_sys::fuzz_target;
use peregrine_memif::{
    CHAIN_MAX, Client, ClientConfig, Handshake, HandshakeError, Interface, Progress, Refusal, Reject,
    Request, Secret, ServerConfig, recode,
};
use peregrine_memif_fuzz::input::Input;
use peregrine_memif_fuzz::peer::{self, MESSAGE_BYTES, Message, Peer};
use peregrine_memif_fuzz::{Holdings, memory};

/// Not a whole number of rings: the last that begins in it ends 16 bytes outside.
const REGION_BYTES: usize = 59_888;
const SECRET: &[u8] = b"hunter2";
const PACKET_BYTES_MAX: u32 = 3000;

fuzz_target!(init: { peregrine_memif::warm_up(); }, |data: &[u8]| {
    let before = Holdings::at_rest();
    let mut input = Input::new(data);
    if let Some([side, flags]) = input.array()
        && matches!(side, b'S' | b'C')
    {
        Session::new(side == b'S', Flags(flags)).run(&mut input);
    }
    before.assert_given_back();
});

/// Bits of the second byte.
#[derive(Clone, Copy)]
struct Flags(u8);

impl Flags {
    fn allow_unsealed(self) -> bool {
        self.0 & 1 != 0
    }

    fn secret(self) -> &'static [u8] {
        if self.0 & 2 != 0 { SECRET } else { b"" }
    }

    fn queue_pairs(self) -> u16 {
        if self.0 & 4 != 0 { 2 } else { 1 }
    }

    fn chains(self) -> bool {
        self.0 & 8 != 0
    }

    fn server_config(self) -> ServerConfig {
        ServerConfig {
            secret: (!self.secret().is_empty()).then(|| Secret::new(self.secret()).expect("short enough")),
            rings_max: 3,
            packet_bytes_max: PACKET_BYTES_MAX,
            chains: self.chains(),
            allow_unsealed: self.allow_unsealed(),
            ..ServerConfig::default()
        }
    }

    fn client_config(self) -> ClientConfig {
        let secret = Secret::new(self.secret()).expect("short enough");
        ClientConfig {
            secret,
            ring_log2: 5,
            queue_pairs: self.queue_pairs(),
            chains: self.chains(),
            ..ClientConfig::default()
        }
    }
}

/// A descriptor that goes with a message.
#[derive(Clone, Copy)]
enum Extra {
    None,
    Region,
    Event,
}

enum Side {
    Server(Handshake, ServerConfig),
    Client(Client),
}

impl Side {
    fn step(&mut self) -> Result<Progress, HandshakeError> {
        match self {
            Self::Client(client) => client.step(),
            Self::Server(handshake, config) => {
                handshake.step(&mut |request: &Request<'_>| match request.id {
                    0 => Ok(config.clone()),
                    1 => Err(Refusal::AlreadyConnected),
                    2 => Err(Refusal::NotAllowed),
                    _ => Err(Refusal::UnknownId),
                })
            }
        }
    }
}

struct Session {
    side: Side,
    /// `None` once it has closed.
    peer: Option<Peer>,
    /// What an honest client says, and the line that is next.
    script: Vec<(Message, Extra)>,
    line: usize,
    /// What the side under test has said and an honest server has not answered yet.
    unanswered: VecDeque<u16>,
    region: OwnedFd,
    event: OwnedFd,
    connected: Option<Box<Interface>>,
    has_ended: bool,
    /// Whether everything said so far was right, each thing at its time.
    is_honest: bool,
}

impl Session {
    fn new(is_server: bool, flags: Flags) -> Self {
        let (peer, side) = if is_server {
            let (peer, handshake) = peer::server_under_test();
            (peer, Side::Server(handshake, flags.server_config()))
        } else {
            let (peer, client) = peer::client_under_test(flags.client_config());
            (peer, Side::Client(client))
        };
        let mut session = Self {
            side,
            peer: Some(peer),
            script: if is_server { client_script(flags) } else { Vec::new() },
            line: 0,
            unanswered: VecDeque::new(),
            region: memory::file_full_of_rings(REGION_BYTES),
            event: peer::eventfd(),
            connected: None,
            has_ended: false,
            is_honest: true,
        };
        session.listen();
        session
    }

    fn run(mut self, input: &mut Input<'_>) {
        let mut extra = None;
        let mut waits = false;
        while let Some(operation) = input.byte() {
            let sent = match operation {
                b'r' => self.next().map(|(message, fd)| (message.to_vec(), fd)),
                b'm' => self.changed(input),
                b'b' => self.raw(input),
                b'd' => Some((peer::disconnect().to_vec(), Extra::None)),
                b'f' => {
                    extra = input.byte();
                    continue;
                }
                b'k' => {
                    self.line = usize::from(input.byte().unwrap_or(0) % 16);
                    self.is_honest = false;
                    continue;
                }
                b'q' => {
                    waits = true;
                    continue;
                }
                b'x' => {
                    self.peer = None;
                    None
                }
                _ => continue,
            };
            self.is_honest &= operation == b'r' && extra.is_none() && !waits;
            if let Some((bytes, right)) = sent {
                self.say(&bytes, right, extra.take());
            }
            if !std::mem::take(&mut waits) {
                self.step();
            }
        }
        self.step();
        let was_all_said = match self.side {
            Side::Server(..) => self.line == self.script.len(),
            Side::Client(_) => self.line > 0 && self.unanswered.is_empty(),
        };
        // A busy machine takes its time to seal the memory, and is given it: the handshake gives up by itself.
        let deadline = Instant::now() + Duration::from_secs(20);
        while self.is_honest && was_all_said && !self.has_ended && Instant::now() < deadline {
            std::thread::yield_now();
            self.step();
        }
        assert!(!(self.is_honest && was_all_said) || self.connected.is_some(), "an honest peer was refused");
    }

    /// The right next message. An honest server answers what it has heard: nothing → HELLO, CONNECT → CONNECTED, other → ACK.
    fn next(&mut self) -> Option<(Message, Extra)> {
        let line = self.line;
        let message = match self.side {
            Side::Server(..) => *self.script.get(line)?,
            Side::Client(_) if line == 0 => (peer::hello(1, 5), Extra::None),
            Side::Client(_) => match self.unanswered.pop_front()? {
                6 => (peer::connected(), Extra::None),
                _ => (peer::ack(), Extra::None),
            },
        };
        self.line += 1;
        assert_eq!(recode(&message.0), Some(message.0), "a right message does not come back the same");
        Some(message)
    }

    fn changed(&mut self, input: &mut Input<'_>) -> Option<(Vec<u8>, Extra)> {
        let count = usize::from(input.byte()? % 8);
        let changes = input.take(2 * count)?;
        let (mut message, fd) = self.next()?;
        for change in changes.chunks_exact(2) {
            message[usize::from(change[0]) % MESSAGE_BYTES] = change[1];
        }
        Some((message.to_vec(), fd))
    }

    fn raw(&mut self, input: &mut Input<'_>) -> Option<(Vec<u8>, Extra)> {
        let length = input.byte()?;
        Some((input.take(length.into())?.to_vec(), Extra::None))
    }

    fn say(&mut self, bytes: &[u8], right: Extra, extra: Option<u8>) {
        if let Ok(message) = bytes.try_into() {
            check_recode(message);
        }
        let Some(peer) = &self.peer else { return };
        let (region, event) = (self.region.as_raw_fd(), self.event.as_raw_fd());
        let Some(kind) = extra else {
            return match right {
                Extra::None => peer.send(bytes, &[]),
                Extra::Region => peer.send(bytes, &[region]),
                Extra::Event => peer.send(bytes, &[event]),
            };
        };
        let made = match kind {
            b'u' => Some(memory::file(REGION_BYTES as u64, 0)),
            b's' => Some(memory::file(4096, libc::F_SEAL_SHRINK)),
            b'w' => Some(memory::file(REGION_BYTES as u64, libc::F_SEAL_SHRINK | libc::F_SEAL_WRITE)),
            b'z' => Some(File::options().read(true).write(true).open("/dev/null").expect("/dev/null").into()),
            b'p' => Some(io::pipe().expect("pipe").1.into()),
            _ => None,
        };
        let fds: Vec<RawFd> = match (kind, &made) {
            (_, Some(made)) => vec![made.as_raw_fd()],
            (b'e', _) => vec![event],
            (b'g', _) => vec![region],
            (b'2', _) => vec![event, region],
            (b'9', _) => vec![event; 99],
            _ => vec![],
        };
        peer.send(bytes, &fds);
    }

    /// Lets the side under test handle what has arrived.
    fn step(&mut self) {
        if let Some(interface) = &mut self.connected {
            use_rings(interface);
            // Whatever it is, it has an answer; an error of recvmsg(2) is one.
            let _ = interface.control.poll_disconnect();
            return;
        }
        let ended = match self.side.step() {
            Ok(Progress::Pending) => return self.listen(),
            Ok(Progress::Connected(interface)) => {
                self.connected = Some(interface);
                true
            }
            Err(HandshakeError::Finished) => false,
            Err(HandshakeError::Rejected(Reject::RegionBusy)) => {
                // A machine that is too busy to seal in time.
                self.is_honest = false;
                true
            }
            Err(
                HandshakeError::Rejected(_)
                | HandshakeError::Closed { .. }
                | HandshakeError::Disconnected { .. },
            ) => true,
            // Of a peer that does not read.
            Err(HandshakeError::Io { source, .. }) if source.kind() == io::ErrorKind::WouldBlock => true,
            Err(why) => panic!("{why}"),
        };
        assert!(ended != self.has_ended, "ends a second time, or has ended without a reason");
        self.has_ended = true;
        self.listen();
    }

    /// Reads what the side under test has said.
    fn listen(&mut self) {
        while let Some((message, _fd)) = self.peer.as_ref().and_then(Peer::receive) {
            if matches!(self.side, Side::Client(_)) {
                self.unanswered.push_back(u16::from_ne_bytes([message[0], message[1]]));
            }
        }
    }
}

/// All rings lie one after another in region 0.
fn client_script(flags: Flags) -> Vec<(Message, Extra)> {
    let (queues, log2) = (flags.queue_pairs(), 3);
    let ring_bytes = 128 + (16 << log2);
    let mut script = vec![
        (peer::init(flags.secret()), Extra::None),
        (peer::add_region(0, REGION_BYTES as u64), Extra::Region),
    ];
    for (s2m, first) in [(true, 0), (false, queues)] {
        for index in 0..queues {
            let offset = u32::from(first + index) * ring_bytes;
            script.push((peer::add_ring(s2m, index, offset, log2), Extra::Event));
        }
    }
    script.push((peer::connect(), Extra::None));
    script
}

/// Decoding and encoding loses nothing but what follows the end of a text, and a text has an end.
fn check_recode(message: &Message) {
    let Some(once) = recode(message) else {
        assert!(!(1..=8).contains(&u16::from_ne_bytes([message[0], message[1]])));
        return;
    };
    assert_eq!(recode(&once), Some(once));
    // The fields that are no text, and no flags of which only some count; and a text's last byte.
    let (fields, end) = match u16::from_ne_bytes([message[0], message[1]]) {
        2 => (34..45, 33),
        3 => (2..33, 64),
        4 => (2..12, 127),
        5 => (4..15, 127),
        8 => (2..6, 101),
        _ => (0..2, 33),
    };
    assert_eq!(once[end], 0);
    assert_eq!(message[fields.clone()], once[fields]);
}

/// One turn of a worker.
fn use_rings(interface: &mut Interface) {
    // As long as a client's longest chain.
    let mut packet = [0; 2048 * CHAIN_MAX as usize];
    for rx in &mut interface.rx {
        let Ok(pending) = rx.pending() else { continue };
        assert!(pending <= rx.size());
        let mut turns = 0;
        while let Some(taken) = rx.next_packet() {
            turns += 1;
            assert!(turns <= pending);
            if let Ok(taken) = taken {
                assert_eq!(taken.copy_to(&mut packet), Some(taken.len()));
            }
        }
        rx.release();
    }
    for tx in &mut interface.tx {
        // Longer than a server's peer's buffers, and than a client's own: a chain, or an error.
        for length in [300, 5000] {
            let _ = tx.push(&packet[..length]);
        }
        while tx.push(&packet[..60]).is_ok() {}
        tx.flush().expect("waking never fails");
    }
}
