//! An established connection: its rings, ready to be handed to the threads that own them, and its control socket.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

use crate::channel::{Channel, Incoming};
use crate::error::{DisconnectReason, HandshakeError, Reject};
use crate::message::Message;
use crate::ring::Role;
use crate::rx::RxRing;
use crate::sys::Credentials;
use crate::tx::TxRing;

/// A connected memif interface, in either role.
///
/// Take it apart freely: every ring half keeps the shared memory mapped by itself, and the last one dropped unmaps it. Dropping
/// [`control`](Self::control) tells the peer that we are gone; stop using the rings of a peer that is gone.
#[derive(Debug)]
pub struct Interface {
    /// The interface id within its socket.
    pub id: u32,
    /// Which side we are.
    pub role: Role,
    /// Our name as we gave it to the peer.
    pub name: String,
    /// The peer's name as it gave it (HELLO, INIT), printable characters only.
    pub peer_name: String,
    /// The peer's interface name (CONNECT, CONNECTED), printable characters only.
    pub peer_if_name: String,
    /// The process at the other end when it connected; `None` if the kernel would not tell.
    pub credentials: Option<Credentials>,
    /// Packets to us, one half per queue.
    pub rx: Vec<RxRing>,
    /// Packets to the peer, one half per queue.
    pub tx: Vec<TxRing>,
    /// The connection itself.
    pub control: ControlSocket,
}

/// The control connection of an established interface: the sign that the peer lives. Watch it for readability.
#[derive(Debug)]
pub struct ControlSocket(Channel);

impl ControlSocket {
    pub(crate) fn new(channel: Channel) -> Self {
        Self(channel)
    }

    /// Whether the connection has ended, and why. Never blocks; ask when the socket is readable or has hung up, or now and then.
    ///
    /// # Errors
    /// Those of recvmsg(2); treat them as the end, too.
    pub fn poll_disconnect(&self) -> io::Result<Option<DisconnectReason>> {
        match self.0.receive() {
            Ok(Incoming::Empty) => Ok(None),
            Ok(Incoming::Closed) => Ok(Some(DisconnectReason::Closed)),
            Ok(Incoming::Message(Message::Disconnect { code, text }, _)) => {
                Ok(Some(DisconnectReason::Message { code, text }))
            }
            Ok(Incoming::Message(message, _)) => {
                Ok(Some(DisconnectReason::Protocol(Reject::UnexpectedMessage { kind: message.kind() })))
            }
            Err(HandshakeError::Rejected(why)) => Ok(Some(DisconnectReason::Protocol(why))),
            Err(HandshakeError::Io { source, .. }) => Err(source),
            Err(_) => Ok(Some(DisconnectReason::Closed)),
        }
    }

    /// Sends DISCONNECT with a reason (cut to 95 bytes), as well as can be, and closes.
    pub fn disconnect(self, reason: &str) {
        self.0.send_disconnect(reason);
    }
}

impl AsFd for ControlSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

impl AsRawFd for ControlSocket {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}
