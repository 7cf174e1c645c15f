//! The client against a server made by hand: what it sends, what it leaves in memory and when, and a server that lies.

use super::*;
use crate::client::{Client, ClientConfig};
use crate::error::{BadDescriptor, DisconnectReason, PushError, Reject, Sent, Violation};
use crate::message::Hello;

/// Two rings of 32 slots, then the buffers on the next page.
pub(super) const RX_RING: u64 = 128 + 16 * 32;
pub(super) const TX_RING: u64 = 0;
/// 33 cache lines.
pub(super) const STRIDE: u32 = 2112;
pub(super) const TX_BUFFERS: u32 = 4096;
pub(super) const RX_BUFFERS: u32 = 4096 + 32 * STRIDE;

pub(super) struct Peer {
    channel: Channel,
    client: Client,
}

pub(super) fn hello() -> Hello {
    Hello {
        name: "srv".into(),
        min_version: VERSION,
        max_version: VERSION,
        max_region: 255,
        max_m2s_ring: 255,
        max_s2m_ring: 255,
        max_log2: 14,
    }
}

impl Peer {
    fn new(config: ClientConfig) -> Self {
        let (ours, theirs) = sys::socket_pair().unwrap();
        Self { channel: Channel::new(ours), client: Client::over(theirs, config) }
    }

    fn say(&mut self, message: &Message) -> Result<Progress, HandshakeError> {
        self.channel.send(message, None).unwrap();
        self.client.step()
    }

    fn heard(&self) -> (Message, Option<OwnedFd>) {
        match self.channel.receive().unwrap() {
            Incoming::Message(message, fd) => (message, fd),
            _ => panic!("no message from the client"),
        }
    }

    /// Plays an honest server up to CONNECT; the client's memory, and the ring messages that came.
    pub(super) fn served(config: ClientConfig, hello: Hello) -> (Self, Memory, Vec<AddRing>) {
        let mut peer = Self::new(config);
        peer.say(&Message::Hello(hello)).unwrap();
        assert!(
            matches!(peer.heard(), (Message::Init(init), None) if init.version == VERSION && init.id == 9)
        );
        peer.say(&Message::Ack).unwrap();
        let (Message::AddRegion { index: 0, size }, Some(fd)) = peer.heard() else { panic!("no ADD_REGION") };
        let memory = Memory::new(File::from(fd));
        assert_eq!(memory.file.metadata().unwrap().len(), size);
        assert!(sys::is_sealed_memory(&memory.file));
        let mut rings = Vec::new();
        loop {
            peer.say(&Message::Ack).unwrap();
            match peer.heard() {
                (Message::AddRing(ring), Some(fd)) if sys::is_eventfd(fd.as_fd()) => rings.push(ring),
                (Message::Connect { .. }, None) => return (peer, memory, rings),
                (message, fd) => panic!("{} with {fd:?}", message.kind()),
            }
        }
    }

    pub(super) fn connected(&mut self) -> Interface {
        match self.say(&Message::Connected { name: "if9".into() }).unwrap() {
            Progress::Connected(interface) => *interface,
            Progress::Pending => panic!("pending"),
        }
    }
}

pub(super) fn config() -> ClientConfig {
    ClientConfig { id: 9, ring_log2: 5, ..ClientConfig::default() }
}

#[test]
fn buffers_are_offered_only_after_connected_and_indexes_read_afresh() {
    let (mut peer, memory, rings) = Peer::served(config(), hello());
    assert_eq!(rings.len(), 2);
    assert_eq!((rings[0].s2m, rings[0].offset), (true, TX_RING as u32));
    assert_eq!((rings[1].s2m, rings[1].offset), (false, RX_RING as u32));
    for ring in [TX_RING, RX_RING] {
        assert_eq!(memory.read::<8>(ring), [0x20, 0x1f, 0xe3, 0x03, 0, 0, 0, 0], "cookie, flags 0, head 0");
        assert_eq!(memory.tail(ring), 0);
        // A server that has used this memory before, or is confused.
        memory.set_tail(ring, 0xfff0);
        memory.set_head(ring, 5);
    }
    let mut interface = peer.connected();
    assert_eq!((interface.peer_name.as_str(), interface.peer_if_name.as_str()), ("srv", "if9"));
    assert_eq!(memory.head(RX_RING), 0x10, "all 32 buffers offered");
    assert_eq!(memory.head(TX_RING), 0xfff0, "nothing sent");
    assert_eq!(memory.flags(RX_RING), 1);
    for slot in 0..SLOTS {
        let at = RX_BUFFERS + u32::from(slot) * STRIDE;
        assert_eq!(memory.slot(RX_RING, slot), descriptor(0, 0, 2048, at));
    }
    assert_eq!(interface.tx[0].free(), Ok(32));
    assert_eq!(interface.rx[0].pending(), Ok(0));
}

#[test]
fn a_taken_buffer_is_offered_again_whole() {
    let (mut peer, memory, _) = Peer::served(config(), hello());
    let mut rx = peer.connected().rx.remove(0);
    let mut bytes = [0; 2048];
    // The server fills two, and scribbles over one descriptor on the way.
    memory.write(u64::from(RX_BUFFERS), &[3; 60]);
    memory.set_slot(RX_RING, 0, descriptor(0, 0, 60, RX_BUFFERS));
    memory.set_slot(RX_RING, 1, descriptor(0, 5, 60, 1));
    memory.set_tail(RX_RING, 2);
    assert_eq!(rx.pending(), Ok(2));
    assert_eq!(rx.next_packet().unwrap().unwrap().copy_to(&mut bytes), Some(60));
    assert_eq!(bytes[..60], [3; 60]);
    assert_eq!(rx.next_packet().unwrap().unwrap_err(), BadDescriptor::Region);
    assert_eq!(memory.head(RX_RING), 32, "not before release");
    rx.release();
    assert_eq!(memory.head(RX_RING), 34);
    assert_eq!(memory.slot(RX_RING, 0), descriptor(0, 0, 2048, RX_BUFFERS));
    assert_eq!(memory.slot(RX_RING, 1), descriptor(0, 0, 2048, RX_BUFFERS + STRIDE));
}

#[test]
fn a_server_that_lies_is_found_out() {
    let (mut peer, memory, _) = Peer::served(config(), hello());
    let mut interface = peer.connected();
    let (rx, tx) = (&mut interface.rx[0], &mut interface.tx[0]);
    memory.set_tail(RX_RING, 33);
    assert_eq!(rx.pending(), Err(Violation::IndexJump { pending: 33, size: 32 }));
    memory.set_tail(TX_RING, 1);
    assert_eq!(tx.free(), Err(Violation::IndexJump { pending: 33, size: 32 }), "took what was never sent");
    memory.set_tail(TX_RING, 0);
    // Lengths beyond the buffer, and chains.
    for (slot, bytes) in (0..).zip([
        descriptor(0, 0, 2049, RX_BUFFERS),
        descriptor(0, 0, 0, RX_BUFFERS),
        descriptor(0, 0, 100, u32::MAX),
        descriptor(1, 0, 100, RX_BUFFERS),
    ]) {
        memory.set_slot(RX_RING, slot, bytes);
    }
    memory.set_tail(RX_RING, 4);
    assert_eq!(rx.pending(), Ok(4));
    let reasons: Vec<_> = std::iter::from_fn(|| rx.next_packet().map(|result| result.unwrap_err())).collect();
    use BadDescriptor::{Chained, Span, TooLong, TooShort};
    assert_eq!(reasons, [TooLong, TooShort, Span, Chained]);
    // What the server writes into our own send descriptors does not matter.
    memory.set_slot(TX_RING, 0, descriptor(1, 7, u32::MAX, u32::MAX));
    tx.push(&[8; 100]).unwrap();
    tx.flush().unwrap();
    assert_eq!(memory.slot(TX_RING, 0), descriptor(0, 0, 100, TX_BUFFERS));
    assert_eq!(memory.read::<100>(u64::from(TX_BUFFERS)), [8; 100]);
    assert_eq!(memory.head(TX_RING), 1);
    assert_eq!(tx.push(&[8; 2049]), Err(PushError::TooLong { capacity: 2048 }));
}

#[test]
fn the_limits_in_hello_are_kept() {
    let many = ClientConfig { queue_pairs: 4, ring_log2: 12, ..config() };
    let tight = Hello { max_s2m_ring: 1, max_m2s_ring: 2, max_log2: 8, ..hello() };
    let (mut peer, _memory, rings) = Peer::served(many, tight);
    assert_eq!(
        rings.iter().map(|ring| (ring.s2m, ring.index, ring.log2)).collect::<Vec<_>>(),
        [(true, 0, 8), (true, 1, 8), (false, 0, 8), (false, 1, 8)],
        "the smaller number, both ways"
    );
    let interface = peer.connected();
    assert_eq!((interface.tx.len(), interface.rx.len(), interface.rx[0].size()), (2, 2, 256));
}

/// In a process of its own, so that the memory counted is this client's.
#[test]
fn memory_is_made_only_once_init_is_accepted() {
    let test = "client_side::memory_is_made_only_once_init_is_accepted";
    let output = in_a_process_of_its_own(test, || {
        let mut peer = Peer::new(config());
        peer.say(&Message::Hello(hello())).unwrap();
        assert!(matches!(peer.heard(), (Message::Init(_), None)));
        assert_eq!(memory_files(), 0, "not made for HELLO");
        let refused = peer.say(&Message::Disconnect { code: 0, text: "ID not found".into() });
        assert!(matches!(refused, Err(HandshakeError::Disconnected { after: Sent::Init, .. })));
        assert_eq!(memory_files(), 0, "nor for a refusal");
        let mut peer = Peer::new(config());
        peer.say(&Message::Hello(hello())).unwrap();
        peer.say(&Message::Ack).unwrap();
        assert_eq!(memory_files(), 1);
    });
    assert_survived(&output);
}

/// A sealer of this process keeps one descriptor open in it: its socket.
#[test]
fn the_first_connection_leaves_one_descriptor_open_and_the_next_ones_none() {
    let test = "client_side::the_first_connection_leaves_one_descriptor_open_and_the_next_ones_none";
    let output = in_a_process_of_its_own(test, || {
        let descriptors = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        for round in 1..=3 {
            drop(crate::pair(config(), ServerConfig::default()).unwrap());
            assert_eq!(descriptors(), before + 1, "after connection {round}");
        }
    });
    assert_survived(&output);
}

/// Blocks of a file that are there.
pub(super) fn blocks(file: &File) -> u64 {
    use std::os::unix::fs::MetadataExt;
    file.metadata().unwrap().blocks()
}

#[test]
fn a_peer_can_change_the_size_of_our_memory_neither_way() {
    let (_peer, memory, _) = Peer::served(config(), hello());
    let bytes = memory.file.metadata().unwrap().len();
    for other in [bytes - 1, bytes + 1] {
        let refused = memory.file.set_len(other).unwrap_err();
        assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied, "{other} of {bytes} bytes");
    }
}

/// They are charged to us, and would be for as long as the peer keeps the file.
#[test]
fn a_peer_that_keeps_our_memory_keeps_no_page_of_it() {
    let (mut peer, memory, _) = Peer::served(config(), hello());
    let interface = peer.connected();
    assert_ne!(blocks(&memory.file), 0);
    let Interface { rx, tx, control, .. } = interface;
    drop((rx, control));
    let mut tx = tx;
    tx[0].push(&[7; 64]).unwrap();
    tx[0].flush().unwrap();
    assert_eq!(memory.read::<64>(u64::from(TX_BUFFERS)), [7; 64], "there until the last half is dropped");
    drop(tx);
    wait_until("the pages are gone", || blocks(&memory.file) == 0);
    // It hangs up in the middle of the handshake.
    let (peer, memory, _) = Peer::served(config(), hello());
    let Peer { channel, mut client } = peer;
    drop(channel);
    assert!(matches!(client.step(), Err(HandshakeError::Closed { after: Sent::Connect })));
    drop(client);
    wait_until("the pages are gone", || blocks(&memory.file) == 0);
}

/// Open memory files of this process.
fn memory_files() -> usize {
    let links =
        std::fs::read_dir("/proc/self/fd").unwrap().map(|entry| std::fs::read_link(entry.unwrap().path()));
    links
        .filter(|link| link.as_ref().is_ok_and(|path| path.to_string_lossy().starts_with("/memfd:memif")))
        .count()
}

#[test]
fn a_server_that_cannot_be_used_is_told_why() {
    let table = [
        (
            Message::Hello(Hello { min_version: 0x0300, max_version: 0x0300, ..hello() }),
            Reject::Version { min: 0x0300, max: 0x0300 },
        ),
        (Message::Hello(Hello { max_log2: 0, ..hello() }), Reject::Limits),
        (Message::Ack, Reject::UnexpectedMessage { kind: "ACK" }),
        (Message::Connected { name: String::new() }, Reject::UnexpectedMessage { kind: "CONNECTED" }),
    ];
    for (message, why) in table {
        let mut peer = Peer::new(config());
        assert!(matches!(peer.say(&message), Err(HandshakeError::Rejected(given)) if given == why));
        assert!(matches!(peer.heard(), (Message::Disconnect { text, .. }, None) if text == why.to_string()));
        assert!(matches!(peer.channel.receive(), Ok(Incoming::Closed)));
    }
    let tracer = Tracer::new();
    let mut peer = Peer::new(config());
    peer.channel.send(&Message::Hello(hello()), Some(tracer.sent.as_fd())).unwrap();
    assert!(matches!(peer.client.step(), Err(HandshakeError::Rejected(Reject::UnexpectedFd))));
    tracer.assert_closed();
}

#[test]
fn the_end_of_file_at_every_step_ends_the_handshake() {
    let sent = [Sent::Init, Sent::Region(0), Sent::RingS2m(0), Sent::RingM2s(0), Sent::Connect];
    for (acks, sent) in sent.into_iter().enumerate() {
        let mut peer = Peer::new(config());
        peer.say(&Message::Hello(hello())).unwrap();
        for _ in 0..acks {
            peer.say(&Message::Ack).unwrap();
        }
        let Peer { channel, mut client } = peer;
        drop(channel);
        // A test beside this one that has just forked holds a copy of the socket until its exec.
        let deadline = Instant::now() + Duration::from_secs(10);
        let end = loop {
            match client.step() {
                Ok(Progress::Pending) if Instant::now() < deadline => std::thread::yield_now(),
                end => break end,
            }
        };
        match end {
            Err(HandshakeError::Closed { after }) => assert_eq!(after, sent),
            other => panic!("after {acks} ACKs: {other:?}"),
        }
        assert!(client.socket().is_none());
        assert!(matches!(client.step(), Err(HandshakeError::Finished)));
    }
}

#[test]
fn a_reason_sent_just_before_closing_is_read() {
    // The server refuses without having read INIT: the client's socket is reset, and its message lost, but not the reason.
    let mut peer = Peer::new(config());
    peer.say(&Message::Hello(hello())).unwrap();
    peer.channel.send_disconnect("no room");
    let Peer { channel, mut client } = peer;
    drop(channel);
    match client.step() {
        Err(HandshakeError::Disconnected { text, .. }) => assert_eq!(text, "no room"),
        other => panic!("{other:?}"),
    }
    // It refuses before the client has said anything.
    let Peer { channel, mut client } = Peer::new(config());
    channel.send(&Message::Hello(hello()), None).unwrap();
    channel.send_disconnect("no room");
    drop(channel);
    assert!(matches!(client.step(), Err(HandshakeError::Disconnected { .. })));
}

/// DPDK and libmemif servers announce 255 rings in HELLO, and refuse the first one beyond the queues they were configured with.
#[test]
fn a_server_that_refuses_a_ring_shows_which() {
    let mut peer = Peer::new(ClientConfig { queue_pairs: 2, ..config() });
    peer.say(&Message::Hello(hello())).unwrap();
    // INIT, region 0 and S2M ring 0 are well received.
    for _ in 0..3 {
        peer.say(&Message::Ack).unwrap();
    }
    let refused = Message::Disconnect { code: 0, text: "Invalid ring index".into() };
    let error = peer.say(&refused).unwrap_err().to_string();
    assert_eq!(error, "peer disconnected: \"Invalid ring index\" (code 0) after ADD_RING S2M 1");
}

#[test]
fn a_connected_client_sees_why_it_ends() {
    let (mut peer, _memory, _) = Peer::served(config(), hello());
    let interface = peer.connected();
    assert_eq!(interface.control.poll_disconnect().unwrap(), None);
    peer.channel.send(&Message::Disconnect { code: 5, text: "\x1b[31mbye".into() }, None).unwrap();
    let reason = DisconnectReason::Message { code: 5, text: "?[31mbye".into() };
    assert_eq!(interface.control.poll_disconnect().unwrap(), Some(reason));
    peer.channel.send(&Message::Ack, None).unwrap();
    let reason = DisconnectReason::Protocol(Reject::UnexpectedMessage { kind: "ACK" });
    assert_eq!(interface.control.poll_disconnect().unwrap(), Some(reason));
    interface.control.disconnect(&"long ".repeat(50));
    assert!(matches!(peer.heard(), (Message::Disconnect { text, .. }, None) if text.len() == 95));
    assert!(matches!(peer.channel.receive(), Ok(Incoming::Closed)));
}
