//! What can go wrong, by place: on the data path small `Copy` reasons that index a counter, on the control path typed
//! errors with their context.

use std::fmt;
use std::io;

use crate::message::{AddRing, Message, TEXT_BYTES_MAX};

/// The peer broke the ring protocol itself. Nothing on this ring can be trusted any more: disconnect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Violation {
    /// The peer's index (`head` at ring offset 6, or `tail` at 64) moved backwards or by more than the ring holds. Believing
    /// it would make us walk slots that were never given to us.
    IndexJump {
        /// Slots the index claims.
        pending: u16,
        /// Slots of the ring.
        size: u16,
    },
    /// The peer has taken away memory that it had not sealed ([`guard_memory`](crate::guard_memory)), or a page of it could not be had
    /// (file system full, no huge page left). Zeros stand in its place; packets of the burst in which it happened may be zeros, too.
    MemoryLost,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::IndexJump { pending, size } => {
                write!(f, "ring index jump: {pending} pending in a ring of {size}")
            }
            Self::MemoryLost => f.write_str("peer's unsealed memory is gone"),
        }
    }
}

impl std::error::Error for Violation {}

/// Why one descriptor, or one chain, was refused. Each costs its slots and nothing else; count them, and disconnect a peer that
/// keeps at it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum BadDescriptor {
    /// The region index (descriptor offset 2) names no region.
    Region,
    /// Offset + length (descriptor offsets 8 and 4) end outside the region.
    Span,
    /// The length is above the receiver's maximum; or a chain is, in bytes, or in pieces ([`CHAIN_MAX`](crate::CHAIN_MAX)).
    TooLong,
    /// The length is below [`PACKET_BYTES_MIN`](crate::PACKET_BYTES_MIN); or a whole chain's is, or a piece of it is empty.
    TooShort,
    /// A piece of a chain (flag NEXT, descriptor offset 0) where chains are refused. Each piece is reported.
    Chained,
    /// A chain without its last piece: NEXT in the last slot that the peer has published. Only where chains are allowed.
    Unfinished,
}

impl BadDescriptor {
    /// How many reasons there are: the size of a table of counters indexed by `reason as usize`.
    pub const COUNT: usize = 6;

    /// The reason as a name fit for a counter.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Region => "region",
            Self::Span => "span",
            Self::TooLong => "too_long",
            Self::TooShort => "too_short",
            Self::Chained => "chained",
            Self::Unfinished => "unfinished",
        }
    }
}

impl fmt::Display for BadDescriptor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Region => "descriptor names no region",
            Self::Span => "descriptor ends outside its region",
            Self::TooLong => "descriptor or chain is longer than allowed",
            Self::TooShort => "descriptor or chain is shorter than an Ethernet header",
            Self::Chained => "descriptor is part of a chain",
            Self::Unfinished => "chain has no last piece",
        })
    }
}

impl std::error::Error for BadDescriptor {}

/// Why a packet did not go into the ring. The caller still has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PushError {
    /// No slot is free, or fewer than the packet's chain needs: the peer has taken nothing (or offered no buffer) since.
    Full,
    /// The packet does not fit the next buffer (with chains allowed: as many as a chain may have), which stays for the next
    /// packet.
    TooLong {
        /// Bytes that would have fit.
        capacity: u32,
    },
    /// The packet is shorter than [`PACKET_BYTES_MIN`](crate::PACKET_BYTES_MIN): peers refuse or misread these.
    TooShort,
    /// The buffer that the peer offered is unusable. Its slot, and those that a chain had before it, went back with length 0, so
    /// the next push finds another.
    BadDescriptor(BadDescriptor),
    /// The peer broke the ring protocol: disconnect.
    Violation(Violation),
}

impl fmt::Display for PushError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Full => f.write_str("ring is full"),
            Self::TooLong { capacity } => {
                write!(f, "packet does not fit, there is room for {capacity} bytes")
            }
            Self::TooShort => f.write_str("packet is shorter than an Ethernet header"),
            Self::BadDescriptor(why) => write!(f, "offered buffer refused: {why}"),
            Self::Violation(why) => why.fmt(f),
        }
    }
}

impl std::error::Error for PushError {}

impl From<Violation> for PushError {
    fn from(why: Violation) -> Self {
        Self::Violation(why)
    }
}

/// What a peer did wrong in the handshake. Its `Display` is the text that goes into DISCONNECT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reject {
    /// A message of another size than 128 bytes.
    MessageSize {
        /// Bytes of the message; one more than 128 stands for "more".
        bytes: usize,
    },
    /// More ancillary data than any message has.
    ControlTruncated,
    /// A message type that memif 2.0 does not have.
    UnknownMessage {
        /// The type at message offset 0.
        kind: u16,
    },
    /// A known message at the wrong moment.
    UnexpectedMessage {
        /// Its name.
        kind: &'static str,
    },
    /// A file descriptor came with a message that carries none, or more than one came.
    UnexpectedFd,
    /// INIT names an interface id that is not served here.
    UnknownId,
    /// The interface id is in use by another client.
    AlreadyConnected,
    /// The caller's own reason (a tenant that may not attach as this user, …).
    NotAllowed,
    /// The client was disconnected for a violation just now.
    TooSoon,
    /// The peer does not speak 2.0.
    Version {
        /// The one version of INIT, or the lowest of HELLO.
        min: u16,
        /// The one version of INIT, or the highest of HELLO.
        max: u16,
    },
    /// Another mode than Ethernet.
    Mode {
        /// INIT's mode.
        mode: u8,
    },
    /// A secret is required and none came.
    SecretRequired,
    /// The secret is another.
    SecretWrong,
    /// ADD_REGION without a file descriptor.
    MissingRegionFd,
    /// ADD_RING without an eventfd.
    MissingRingFd,
    /// The file descriptor of ADD_RING is no eventfd.
    NotAnEventFd,
    /// Regions must come in the order 0, 1, 2 …
    RegionIndex {
        /// Index that came.
        got: u16,
        /// Index that was due.
        due: u16,
    },
    /// Rings must come in the order 0, 1, 2 … for each direction.
    RingIndex {
        /// Index that came.
        got: u16,
        /// Index that was due.
        due: u16,
    },
    /// More regions than allowed.
    TooManyRegions {
        /// The limit.
        max: u16,
    },
    /// More rings in one direction than allowed.
    TooManyRings {
        /// The limit.
        max: u16,
    },
    /// The file behind a region is shorter than announced (or the region is empty): touching the rest would kill us.
    RegionSize {
        /// Bytes announced.
        announced: u64,
        /// Bytes of the file.
        actual: u64,
    },
    /// A region of huge pages ends inside one.
    RegionHugePage {
        /// Bytes announced.
        bytes: u64,
        /// Bytes of a page.
        page: u64,
    },
    /// All regions together exceed the limit.
    TooMuchMemory {
        /// The limit in bytes.
        max: u64,
    },
    /// The file behind a region is not sealed against shrinking, or not plain memory.
    RegionUnsealed,
    /// The file behind a region is sealed against writing, so that it cannot be mapped: most likely we sealed it for an earlier
    /// connection. Every connection needs new memory.
    RegionReadOnly,
    /// The file behind a region could not be sealed with F_SEAL_FUTURE_WRITE, so the client could take pages out of it: it has
    /// forbidden more seals (F_SEAL_SEAL), or this kernel is older than Linux 5.1.
    RegionUnsealable,
    /// The file behind a region was locked by the client (it was writing to it, punching holes, …) for too long to be sealed, now
    /// or in an earlier handshake that is still stuck.
    RegionBusy,
    /// The process that seals regions has ended (EPIPE), or it could not do its work.
    NoSealer {
        /// Why not.
        errno: i32,
    },
    /// The region could not be mapped.
    RegionMap,
    /// A page of the region could not be made present: no memory, or the file has become shorter.
    RegionPopulate,
    /// No more unsealed regions can be guarded against being taken away ([`guard_memory`](crate::guard_memory)).
    TooManyGuarded {
        /// The limit, over all connections of this process.
        max: usize,
    },
    /// ADD_RING's private header size is not 0.
    PrivateHeader,
    /// log2 of the ring size is outside 1..=14.
    RingSize {
        /// The log2 that came.
        log2: u8,
    },
    /// A ring lies in no region, or ends outside it.
    RingOutside,
    /// A ring's offset is not a multiple of 8.
    RingMisaligned,
    /// A ring does not start with the cookie 0x03E31F20.
    RingCookie,
    /// CONNECT without a ring in each direction.
    NoRings,
    /// The listening process belongs to another user than [`ClientConfig::server_uid`](crate::ClientConfig::server_uid).
    WrongServer {
        /// Its user; `None` if the kernel would not tell.
        uid: Option<u32>,
        /// The user that it must have.
        expected: u32,
    },
    /// The server keeps the memory of so many earlier connections locked that it gets no more: it is not given back yet.
    MemoryKept,
    /// The limits in HELLO leave no ring or no size that the client could use.
    Limits,
    /// The handshake took too long.
    TimedOut,
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Self::MessageSize { bytes } => write!(f, "message has {bytes} bytes, expected 128"),
            Self::ControlTruncated => f.write_str("too many file descriptors"),
            Self::UnknownMessage { kind } => write!(f, "unknown message type {kind}"),
            Self::UnexpectedMessage { kind } => write!(f, "unexpected message {kind}"),
            Self::UnexpectedFd => f.write_str("unexpected file descriptor"),
            Self::UnknownId => f.write_str("unmatched interface id"),
            Self::AlreadyConnected => f.write_str("already connected"),
            Self::NotAllowed => f.write_str("not allowed"),
            Self::TooSoon => f.write_str("disconnected for a violation just now, try again later"),
            Self::Version { min, max } => write!(f, "unsupported version {min:#06x}..{max:#06x}"),
            Self::Mode { mode } => write!(f, "mode mismatch: {mode}, only ethernet (0) is served"),
            Self::SecretRequired => f.write_str("secret required"),
            Self::SecretWrong => f.write_str("incorrect secret"),
            Self::MissingRegionFd => f.write_str("missing memory region fd"),
            Self::MissingRingFd => f.write_str("missing ring interrupt fd"),
            Self::NotAnEventFd => f.write_str("ring interrupt fd is no eventfd"),
            Self::RegionIndex { got, due } => write!(f, "unexpected region index {got}, expected {due}"),
            Self::RingIndex { got, due } => write!(f, "unexpected ring index {got}, expected {due}"),
            Self::TooManyRegions { max } => write!(f, "too many regions, at most {max}"),
            Self::TooManyRings { max } => write!(f, "too many rings, at most {max} each way"),
            Self::RegionSize { announced, actual } => {
                write!(f, "region of {announced} bytes, file has {actual}")
            }
            Self::RegionHugePage { bytes, page } => {
                write!(f, "region of {bytes} bytes is not whole huge pages of {page}")
            }
            Self::TooMuchMemory { max } => write!(f, "regions exceed {max} bytes"),
            Self::RegionUnsealed => f.write_str("region is not a memfd sealed with F_SEAL_SHRINK"),
            Self::RegionReadOnly => f.write_str("region is sealed against writing, connect with new memory"),
            Self::RegionUnsealable => f.write_str("region cannot be sealed with F_SEAL_FUTURE_WRITE"),
            Self::RegionBusy => f.write_str("region cannot be sealed, its file is in use"),
            Self::NoSealer { errno } => {
                write!(f, "region cannot be sealed just now (errno {errno}), try again later")
            }
            Self::RegionMap => f.write_str("cannot map region"),
            Self::RegionPopulate => f.write_str("cannot populate region"),
            Self::TooManyGuarded { max } => {
                write!(f, "no room to guard an unsealed region, {max} are in use")
            }
            Self::PrivateHeader => f.write_str("private headers not supported"),
            Self::RingSize { log2 } => write!(f, "log2 ring size {log2} is not in 1..14"),
            Self::RingOutside => f.write_str("ring is outside its region"),
            Self::RingMisaligned => f.write_str("ring offset is not a multiple of 8"),
            Self::RingCookie => f.write_str("wrong ring cookie"),
            Self::NoRings => f.write_str("a ring in each direction is needed"),
            Self::WrongServer { uid: Some(uid), expected } => {
                write!(f, "server belongs to user {uid}, only user {expected} is trusted")
            }
            Self::WrongServer { uid: None, expected } => {
                write!(f, "server's user is unknown, only user {expected} is trusted")
            }
            Self::MemoryKept => f.write_str("memory of earlier connections is not given back yet"),
            Self::Limits => f.write_str("limits in HELLO are unusable"),
            Self::TimedOut => f.write_str("handshake timed out"),
        }
    }
}

impl std::error::Error for Reject {}

/// The client's last message in a handshake, seen from either side: the one that was outstanding when the peer ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sent {
    /// Not even INIT.
    Nothing,
    /// INIT: the id, the mode, the secret, the name.
    Init,
    /// ADD_REGION with this index.
    Region(u16),
    /// ADD_RING, client to server, with this index.
    RingS2m(u16),
    /// ADD_RING, server to client, with this index.
    RingM2s(u16),
    /// CONNECT: everything together.
    Connect,
}

impl Sent {
    /// A message as one of these; `None` if it is not one that a client's handshake has.
    pub(crate) fn of(message: &Message) -> Option<Self> {
        match message {
            Message::Init(_) => Some(Self::Init),
            Message::AddRegion { index, .. } => Some(Self::Region(*index)),
            Message::AddRing(AddRing { s2m: true, index, .. }) => Some(Self::RingS2m(*index)),
            Message::AddRing(AddRing { s2m: false, index, .. }) => Some(Self::RingM2s(*index)),
            Message::Connect { .. } => Some(Self::Connect),
            Message::Ack | Message::Hello(_) | Message::Connected { .. } | Message::Disconnect { .. } => None,
        }
    }
}

impl fmt::Display for Sent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("before INIT"),
            Self::Init => f.write_str("after INIT"),
            Self::Region(index) => write!(f, "after ADD_REGION {index}"),
            Self::RingS2m(index) => write!(f, "after ADD_RING S2M {index}"),
            Self::RingM2s(index) => write!(f, "after ADD_RING M2S {index}"),
            Self::Connect => f.write_str("after CONNECT"),
        }
    }
}

/// Why a handshake ended without an interface. The connection is closed.
#[derive(Debug)]
pub enum HandshakeError {
    /// A system call failed.
    Io {
        /// What was being done.
        doing: &'static str,
        /// The error.
        source: io::Error,
    },
    /// The peer closed the connection without a word.
    Closed {
        /// The client's last message.
        after: Sent,
    },
    /// The peer sent DISCONNECT.
    Disconnected {
        /// The client's last message: most likely what the peer did not like. DPDK and libmemif servers announce room for 255 rings
        /// and then refuse the first one beyond the queues that they were configured with.
        after: Sent,
        /// Its code (message offset 2).
        code: u32,
        /// Its text, printable characters only.
        text: String,
    },
    /// We refused the peer and told it why.
    Rejected(Reject),
    /// Our own configuration cannot be.
    Config(ConfigError),
    /// The handshake had already ended.
    Finished,
}

impl HandshakeError {
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }

    /// The peer's end of the handshake, with what the client had said before.
    pub(crate) fn after(mut self, sent: Sent) -> Self {
        if let Self::Closed { after } | Self::Disconnected { after, .. } = &mut self {
            *after = sent;
        }
        self
    }
}

impl fmt::Display for HandshakeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { doing, source } => write!(f, "cannot {doing}: {source}"),
            Self::Closed { after } => write!(f, "peer closed the connection {after}"),
            Self::Disconnected { after, code, text } => {
                write!(f, "peer disconnected: {text:?} (code {code}) {after}")
            }
            Self::Rejected(why) => write!(f, "we refused the peer: {why}"),
            Self::Config(why) => why.fmt(f),
            Self::Finished => f.write_str("handshake has already ended"),
        }
    }
}

impl std::error::Error for HandshakeError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            Self::Rejected(why) => Some(why),
            Self::Config(why) => Some(why),
            Self::Closed { .. } | Self::Disconnected { .. } | Self::Finished => None,
        }
    }
}

impl From<Reject> for HandshakeError {
    fn from(why: Reject) -> Self {
        Self::Rejected(why)
    }
}

impl From<ConfigError> for HandshakeError {
    fn from(why: ConfigError) -> Self {
        Self::Config(why)
    }
}

/// A configuration value that cannot be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConfigError {
    /// log2 of the ring size outside 5..=14.
    RingLog2 {
        /// The value.
        got: u8,
    },
    /// Buffer size outside 2048..=16384 bytes.
    BufferBytes {
        /// The value.
        got: u32,
    },
    /// Queue pairs outside 1..=8.
    QueuePairs {
        /// The value.
        got: u16,
    },
    /// Rings × slots reach 65536, which peers that count slots in 16 bits cannot address.
    Slots {
        /// Slots of all rings.
        got: u32,
    },
    /// A secret of more than 24 bytes.
    Secret {
        /// Bytes given.
        bytes: usize,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::RingLog2 { got } => write!(f, "ring_log2 = {got} is not in 5..=14"),
            Self::BufferBytes { got } => write!(f, "buffer_bytes = {got} is not in 2048..=16384"),
            Self::QueuePairs { got } => write!(f, "queue_pairs = {got} is not in 1..=8"),
            Self::Slots { got } => write!(f, "all rings together have {got} slots, at most 65535 can be"),
            Self::Secret { bytes } => write!(f, "secret has {bytes} bytes, at most 24 fit"),
        }
    }
}

impl std::error::Error for ConfigError {}

/// Why an established connection ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DisconnectReason {
    /// End of file: the peer closed its socket, or died.
    Closed,
    /// The peer sent DISCONNECT.
    Message {
        /// Its code.
        code: u32,
        /// Its text, printable characters only.
        text: String,
    },
    /// The peer sent something that has no place on an established connection.
    Protocol(Reject),
}

impl fmt::Display for DisconnectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("peer closed the connection"),
            Self::Message { code, text } => write!(f, "peer disconnected: {text:?} (code {code})"),
            Self::Protocol(why) => write!(f, "protocol error: {why}"),
        }
    }
}

/// Peer text made fit for a log: at most the field's size, everything but printable ASCII replaced by `?`.
pub(crate) fn printable(bytes: &[u8]) -> String {
    bytes
        .iter()
        .take(TEXT_BYTES_MAX)
        .take_while(|byte| **byte != 0)
        .map(|byte| if byte.is_ascii_graphic() || *byte == b' ' { char::from(*byte) } else { '?' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_refusal_fits_the_disconnect_text() {
        let longest = [
            Reject::RegionSize { announced: u64::MAX, actual: u64::MAX },
            Reject::TooMuchMemory { max: u64::MAX },
            Reject::RegionHugePage { bytes: u64::MAX, page: u64::MAX },
            Reject::WrongServer { uid: Some(u32::MAX), expected: u32::MAX },
            Reject::Version { min: u16::MAX, max: u16::MAX },
            Reject::Mode { mode: u8::MAX },
            Reject::RegionIndex { got: u16::MAX, due: u16::MAX },
            Reject::MessageSize { bytes: usize::MAX },
        ];
        for why in longest {
            assert!(why.to_string().len() < TEXT_BYTES_MAX, "{why}");
        }
    }

    #[test]
    fn peer_text_cannot_reach_the_terminal() {
        assert_eq!(printable(b"bye\x1b[2J\xff now\0rest"), "bye?[2J? now");
    }
}
