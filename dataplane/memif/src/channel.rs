//! One control connection: whole messages with at most one descriptor each, over a non-blocking SOCK_SEQPACKET socket.
//!
//! Used by both handshakes and by [`ControlSocket`](crate::ControlSocket). Whatever comes is checked for its form here; every
//! descriptor that is not handed on is closed.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use crate::error::{HandshakeError, Reject, Sent};
use crate::message::{MESSAGE_BYTES, Message};
use crate::sys;

#[derive(Debug)]
pub(crate) struct Channel(OwnedFd);

/// What was there to receive.
pub(crate) enum Incoming {
    /// Nothing yet.
    Empty,
    /// The peer has closed, or is gone.
    Closed,
    /// A message of the right form, with its descriptor.
    Message(Message, Option<OwnedFd>),
}

impl Channel {
    pub fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// Sends one message. A peer that does not read until our send buffer is full gets an error, never our patience. What the client had
    /// said before is not known here: the server's handshake fills it in.
    pub fn send(&self, message: &Message, fd: Option<BorrowedFd<'_>>) -> Result<(), HandshakeError> {
        sys::send(self.0.as_fd(), &message.encode(), fd).map_err(|source| match source.kind() {
            io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
                HandshakeError::Closed { after: Sent::Nothing }
            }
            _ => HandshakeError::Io { doing: "send a control message", source },
        })
    }

    /// Tells the peer why we leave, as well as can be: it may be gone already.
    pub fn send_disconnect(&self, text: &str) {
        let message = Message::Disconnect { code: 0, text: text.to_owned() };
        // An error is no news: the socket is closed next.
        let _ = self.send(&message, None);
    }

    /// Takes the next message.
    pub fn receive(&self) -> Result<Incoming, HandshakeError> {
        let mut bytes = [0; MESSAGE_BYTES];
        let mut received = match self.receive_bytes(&mut bytes) {
            Ok(received) => received,
            Err(source) => {
                return match source.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(Incoming::Empty),
                    io::ErrorKind::ConnectionReset => Ok(Incoming::Closed),
                    _ => Err(HandshakeError::Io { doing: "receive a control message", source }),
                };
            }
        };
        if received.bytes == 0 {
            return Ok(Incoming::Closed);
        }
        if received.truncated || received.bytes != MESSAGE_BYTES {
            let bytes = received.bytes + usize::from(received.truncated);
            return Err(Reject::MessageSize { bytes }.into());
        }
        if received.control_truncated {
            return Err(Reject::ControlTruncated.into());
        }
        let fd = received.fds.pop();
        if !received.fds.is_empty() {
            return Err(Reject::UnexpectedFd.into());
        }
        Ok(Incoming::Message(Message::decode(&bytes)?, fd))
    }

    /// A peer that closes with our message unread makes the first read fail with ECONNRESET, although its last message (most
    /// likely DISCONNECT, with a reason) may be waiting: so a reset is read through once.
    fn receive_bytes(&self, bytes: &mut [u8; MESSAGE_BYTES]) -> io::Result<sys::Received> {
        match sys::receive(self.0.as_fd(), bytes) {
            Err(err) if err.kind() == io::ErrorKind::ConnectionReset => sys::receive(self.0.as_fd(), bytes),
            result => result,
        }
    }
}

impl AsFd for Channel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
