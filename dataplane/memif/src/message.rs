//! The eight control messages, to the byte: 128 bytes each, a u16 type at offset 0, the body from offset 2, host byte order,
//! zero padded. Fields are unaligned, so they are read and written by offset and never by cast.
//!
//! Called by `channel`; knows no I/O.

use std::fmt;

use crate::error::{ConfigError, Reject, printable};

/// Bytes of every message.
pub(crate) const MESSAGE_BYTES: usize = 128;
/// memif 2.0: major in the high byte, minor in the low one.
pub(crate) const VERSION: u16 = 0x0200;
/// The largest log2 ring size there is, and the one every known server advertises.
pub(crate) const LOG2_MAX: u8 = 14;
/// Ethernet, the only mode spoken here.
pub(crate) const MODE_ETHERNET: u8 = 0;
/// Bytes of the DISCONNECT text, closing NUL included.
pub(crate) const TEXT_BYTES_MAX: usize = 96;
const NAME_BYTES: usize = 32;
const SECRET_BYTES: usize = 24;

type Bytes = [u8; MESSAGE_BYTES];

/// A shared secret: up to 24 bytes, zero padded (INIT, offset 9). It crosses the socket in clear: a second factor next to
/// the socket file's permissions, never the only one.
#[derive(Clone, Copy, Default)]
pub struct Secret([u8; SECRET_BYTES]);

impl Secret {
    /// The secret with these bytes.
    ///
    /// # Errors
    /// [`ConfigError::Secret`] above 24 bytes.
    pub fn new(bytes: &[u8]) -> Result<Self, ConfigError> {
        let mut secret = [0; SECRET_BYTES];
        let room = secret.get_mut(..bytes.len()).ok_or(ConfigError::Secret { bytes: bytes.len() })?;
        room.copy_from_slice(bytes);
        Ok(Self(secret))
    }

    /// Whether there is none: all bytes zero.
    pub(crate) fn is_empty(&self) -> bool {
        self.0.iter().all(|byte| *byte == 0)
    }

    /// Equality in a time that does not depend on where the first difference is.
    pub(crate) fn matches(&self, other: &Self) -> bool {
        let mut difference = 0;
        for (a, b) in self.0.iter().zip(&other.0) {
            // black_box: keeps the compiler from ending the loop at the first difference.
            difference = std::hint::black_box(difference | (a ^ b));
        }
        difference == 0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.is_empty() { "Secret(none)" } else { "Secret(…)" })
    }
}

/// HELLO: what the server accepts. The `max_*` are highest indexes, not counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hello {
    pub name: String,
    pub min_version: u16,
    pub max_version: u16,
    pub max_region: u16,
    pub max_m2s_ring: u16,
    pub max_s2m_ring: u16,
    pub max_log2: u8,
}

/// INIT: who the client is and which interface it wants.
#[derive(Clone, Debug)]
pub(crate) struct Init {
    pub version: u16,
    pub id: u32,
    pub mode: u8,
    pub secret: Secret,
    pub name: String,
}

/// ADD_RING: where one ring lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AddRing {
    pub s2m: bool,
    pub index: u16,
    pub region: u16,
    pub offset: u32,
    pub log2: u8,
    pub private_header: u16,
}

/// One control message.
#[derive(Clone, Debug)]
pub(crate) enum Message {
    Ack,
    Hello(Hello),
    Init(Init),
    AddRegion { index: u16, size: u64 },
    AddRing(AddRing),
    Connect { name: String },
    Connected { name: String },
    Disconnect { code: u32, text: String },
}

impl Message {
    /// The message's name in the protocol.
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Ack => "ACK",
            Self::Hello(_) => "HELLO",
            Self::Init(_) => "INIT",
            Self::AddRegion { .. } => "ADD_REGION",
            Self::AddRing(_) => "ADD_RING",
            Self::Connect { .. } => "CONNECT",
            Self::Connected { .. } => "CONNECTED",
            Self::Disconnect { .. } => "DISCONNECT",
        }
    }

    /// The 128 bytes. Names and texts are cut so that their closing NUL fits.
    pub fn encode(&self) -> Bytes {
        let mut out = [0; MESSAGE_BYTES];
        let to = &mut out;
        match self {
            Self::Ack => put(to, 0, 1u16.to_ne_bytes()),
            Self::Hello(hello) => {
                put(to, 0, 2u16.to_ne_bytes());
                put_text::<NAME_BYTES>(to, 2, &hello.name);
                put(to, 34, hello.min_version.to_ne_bytes());
                put(to, 36, hello.max_version.to_ne_bytes());
                put(to, 38, hello.max_region.to_ne_bytes());
                put(to, 40, hello.max_m2s_ring.to_ne_bytes());
                put(to, 42, hello.max_s2m_ring.to_ne_bytes());
                put(to, 44, [hello.max_log2]);
            }
            Self::Init(init) => {
                put(to, 0, 3u16.to_ne_bytes());
                put(to, 2, init.version.to_ne_bytes());
                put(to, 4, init.id.to_ne_bytes());
                put(to, 8, [init.mode]);
                put(to, 9, init.secret.0);
                put_text::<NAME_BYTES>(to, 33, &init.name);
            }
            Self::AddRegion { index, size } => {
                put(to, 0, 4u16.to_ne_bytes());
                put(to, 2, index.to_ne_bytes());
                put(to, 4, size.to_ne_bytes());
            }
            Self::AddRing(ring) => {
                put(to, 0, 5u16.to_ne_bytes());
                put(to, 2, u16::from(ring.s2m).to_ne_bytes());
                put(to, 4, ring.index.to_ne_bytes());
                put(to, 6, ring.region.to_ne_bytes());
                put(to, 8, ring.offset.to_ne_bytes());
                put(to, 12, [ring.log2]);
                put(to, 13, ring.private_header.to_ne_bytes());
            }
            Self::Connect { name } => {
                put(to, 0, 6u16.to_ne_bytes());
                put_text::<NAME_BYTES>(to, 2, name);
            }
            Self::Connected { name } => {
                put(to, 0, 7u16.to_ne_bytes());
                put_text::<NAME_BYTES>(to, 2, name);
            }
            Self::Disconnect { code, text } => {
                put(to, 0, 8u16.to_ne_bytes());
                put(to, 2, code.to_ne_bytes());
                put_text::<TEXT_BYTES_MAX>(to, 6, text);
            }
        }
        out
    }

    /// Reads a message. Only the type can be wrong here; what the values mean is checked by who receives them.
    pub fn decode(from: &Bytes) -> Result<Self, Reject> {
        Ok(match u16::from_ne_bytes(get(from, 0)) {
            1 => Self::Ack,
            2 => Self::Hello(Hello {
                name: text::<NAME_BYTES>(from, 2),
                min_version: u16::from_ne_bytes(get(from, 34)),
                max_version: u16::from_ne_bytes(get(from, 36)),
                max_region: u16::from_ne_bytes(get(from, 38)),
                max_m2s_ring: u16::from_ne_bytes(get(from, 40)),
                max_s2m_ring: u16::from_ne_bytes(get(from, 42)),
                max_log2: u8::from_ne_bytes(get(from, 44)),
            }),
            3 => Self::Init(Init {
                version: u16::from_ne_bytes(get(from, 2)),
                id: u32::from_ne_bytes(get(from, 4)),
                mode: u8::from_ne_bytes(get(from, 8)),
                secret: Secret(get(from, 9)),
                name: text::<NAME_BYTES>(from, 33),
            }),
            4 => Self::AddRegion {
                index: u16::from_ne_bytes(get(from, 2)),
                size: u64::from_ne_bytes(get(from, 4)),
            },
            5 => Self::AddRing(AddRing {
                s2m: u16::from_ne_bytes(get(from, 2)) & 1 != 0,
                index: u16::from_ne_bytes(get(from, 4)),
                region: u16::from_ne_bytes(get(from, 6)),
                offset: u32::from_ne_bytes(get(from, 8)),
                log2: u8::from_ne_bytes(get(from, 12)),
                private_header: u16::from_ne_bytes(get(from, 13)),
            }),
            6 => Self::Connect { name: text::<NAME_BYTES>(from, 2) },
            7 => Self::Connected { name: text::<NAME_BYTES>(from, 2) },
            8 => Self::Disconnect {
                code: u32::from_ne_bytes(get(from, 2)),
                text: text::<TEXT_BYTES_MAX>(from, 6),
            },
            kind => return Err(Reject::UnknownMessage { kind }),
        })
    }
}

/// What the bytes become when they are decoded and encoded again: for the fuzzer, which knows the crate from outside only.
#[cfg(fuzzing)]
#[doc(hidden)]
pub fn recode(from: &Bytes) -> Option<Bytes> {
    Message::decode(from).ok().map(|message| message.encode())
}

/// Writes a field. Every offset is a literal above, so a field always fits; were one wrong, the golden tests would show it.
fn put<const N: usize>(to: &mut Bytes, at: usize, field: [u8; N]) {
    if let Some(room) = to.get_mut(at..at + N) {
        room.copy_from_slice(&field);
    }
}

fn get<const N: usize>(from: &Bytes, at: usize) -> [u8; N] {
    from.get(at..).and_then(<[u8]>::first_chunk).copied().unwrap_or([0; N])
}

fn put_text<const N: usize>(to: &mut Bytes, at: usize, text: &str) {
    for (room, byte) in to.iter_mut().skip(at).take(N - 1).zip(text.bytes()) {
        *room = byte;
    }
}

fn text<const N: usize>(from: &Bytes, at: usize) -> String {
    printable(&get::<N>(from, at))
}

#[cfg(test)]
#[path = "message_tests.rs"]
mod tests;
