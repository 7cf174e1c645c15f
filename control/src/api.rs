//! The control socket: a unix stream socket that speaks JSON-RPC, one object per line (see [`rpc`]).
//! Driven by the [daemon](crate::daemon)'s poll loop; nothing here waits.
//!
//! What must hold: a client can only harm itself. There are at most [`CLIENTS_MAX`]; each keeps at most one line of
//! input and one answer more than [`OUTPUT_BYTES_HIGH`] of output; who neither asks nor reads is dropped.

use std::io::{self, ErrorKind, Read, Write};
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use serde_json::Value;

use crate::error::Error;
use crate::rpc::{self, Lines, Next, RpcError};
use crate::socket::{self, SocketFile};

/// Clients at the same time.
pub const CLIENTS_MAX: usize = 64;
/// Mode of the socket: root, and a group that the operator may give it.
const SOCKET_MODE: u32 = 0o660;
/// With more than this unsent, no further request of that client is answered.
pub const OUTPUT_BYTES_HIGH: usize = 256 * 1024;
/// Answers to one client in one turn.
const ANSWERS_PER_TURN: usize = 16;
/// Who has done nothing for so long is dropped.
const IDLE_MAX: Duration = Duration::from_secs(30);
/// Who has answers waiting and takes none of their bytes for so long is dropped.
const STUCK_MAX: Duration = Duration::from_secs(5);
/// When all places are taken, the most idle client makes room if it has been idle for so long.
const EVICT_AFTER: Duration = Duration::from_secs(1);
/// After a failed accept (no descriptors left) the next try is so much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The listening socket and its clients.
#[derive(Debug)]
pub struct Api {
    listener: UnixListener,
    file: SocketFile,
    first: Token,
    clients: Vec<Option<Client>>,
    accept_from: Option<Instant>,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    lines: Lines,
    out: Vec<u8>,
    sent: usize,
    readable: bool,
    /// No more requests: what is still to be sent is sent, then it ends.
    closing: bool,
    active: Instant,
}

/// What is left to do for a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Rest {
    /// Nothing until the poll says so.
    Wait,
    /// More, at once: its share of this turn was used up.
    More,
    /// It is over.
    End,
}

impl Api {
    /// Binds the socket. Before anything else is started: a daemon that answers there is an error.
    pub fn bind(path: &Path, first: Token) -> Result<Api, Error> {
        let (listener, file) = socket::bind(path, SOCKET_MODE).map_err(|e| match e {
            Error::SocketTaken { path } => Error::AlreadyRunning { path },
            other => other,
        })?;
        let listener = UnixListener::from_std(listener);
        let clients = std::iter::repeat_with(|| None).take(CLIENTS_MAX).collect();
        Ok(Api { listener, file, first, clients, accept_from: None })
    }

    /// How many tokens it uses, from its first: the listener's, then one for each client.
    pub const TOKENS: usize = CLIENTS_MAX + 1;

    /// Joins the poll set.
    pub fn register(&mut self, registry: &Registry) -> io::Result<()> {
        registry.register(&mut self.listener, self.first, Interest::READABLE)
    }

    /// Where it listens.
    pub fn path(&self) -> &Path {
        self.file.path()
    }

    /// The poll has something for one of our tokens.
    pub fn ready(&mut self, token: Token, now: Instant) {
        match token.0.wrapping_sub(self.first.0) {
            0 => self.accept_from = Some(now),
            slot => {
                if let Some(Some(client)) = self.clients.get_mut(slot.wrapping_sub(1)) {
                    client.readable = true;
                }
            }
        }
    }

    /// Serves everybody their share. Returns true if there is more to do at once.
    pub fn turn(
        &mut self,
        registry: &Registry,
        now: Instant,
        mut method: impl FnMut(&str, Value) -> Result<Value, RpcError>,
    ) -> bool {
        self.accept(registry, now);
        let mut more = false;
        for slot in &mut self.clients {
            let Some(client) = slot else { continue };
            match client.turn(now, &mut method) {
                Rest::Wait => {}
                Rest::More => more = true,
                Rest::End => *slot = None, // closing the descriptor takes it out of the poll set
            }
        }
        more
    }

    /// When [`turn`](Self::turn) is wanted next, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let clients = self.clients.iter().flatten().map(Client::expires);
        clients.chain(self.accept_from).min()
    }

    fn accept(&mut self, registry: &Registry, now: Instant) {
        if self.accept_from.is_none_or(|at| now < at) {
            return;
        }
        for _ in 0..CLIENTS_MAX {
            match self.listener.accept() {
                Ok((stream, _)) => self.admit(stream, registry, now),
                Err(e) if e.kind() == ErrorKind::WouldBlock => {
                    self.accept_from = None;
                    return;
                }
                Err(_) => {
                    self.accept_from = Some(now + ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    /// Gives the client a place; without one it finds the connection closed.
    fn admit(&mut self, mut stream: UnixStream, registry: &Registry, now: Instant) {
        let free = self.clients.iter().position(Option::is_none).or_else(|| self.evictable(now));
        let Some((index, slot)) = free.and_then(|index| Some((index, self.clients.get_mut(index)?))) else {
            return;
        };
        let token = Token(self.first.0 + 1 + index);
        let interest = Interest::READABLE | Interest::WRITABLE;
        if registry.register(&mut stream, token, interest).is_ok() {
            *slot = Some(Client::new(stream, now));
        }
    }

    fn evictable(&self, now: Instant) -> Option<usize> {
        let clients = self.clients.iter().enumerate();
        let (index, active) =
            clients.filter_map(|(i, c)| Some((i, c.as_ref()?.active))).min_by_key(|c| c.1)?;
        (now.saturating_duration_since(active) >= EVICT_AFTER).then_some(index)
    }
}

impl Client {
    fn new(stream: UnixStream, now: Instant) -> Client {
        let (lines, out) = (Lines::default(), Vec::new());
        Client { stream, lines, out, sent: 0, readable: true, closing: false, active: now }
    }

    fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    fn expires(&self) -> Instant {
        self.active + if self.unsent() > 0 { STUCK_MAX } else { IDLE_MAX }
    }

    fn turn(
        &mut self,
        now: Instant,
        method: &mut impl FnMut(&str, Value) -> Result<Value, RpcError>,
    ) -> Rest {
        for _ in 0..ANSWERS_PER_TURN {
            if self.send(now).is_err() {
                return Rest::End;
            }
            if self.unsent() > OUTPUT_BYTES_HIGH {
                return self.wait(now);
            }
            match self.lines.take() {
                Next::Line(line) if !self.closing => {
                    self.active = now;
                    self.out.extend(rpc::answer(&line, &mut *method).unwrap_or_default());
                }
                Next::TooLong if !self.closing => {
                    self.out.extend(rpc::too_long());
                    self.closing = true;
                }
                Next::More if self.readable && !self.closing => {
                    if self.receive().is_err() {
                        return Rest::End;
                    }
                }
                _ => return self.wait(now),
            }
        }
        Rest::More
    }

    fn wait(&self, now: Instant) -> Rest {
        let done = self.closing && self.unsent() == 0;
        if done || now >= self.expires() { Rest::End } else { Rest::Wait }
    }

    fn send(&mut self, now: Instant) -> io::Result<()> {
        while self.unsent() > 0 {
            match self.stream.write(self.out.get(self.sent..).unwrap_or_default()) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.sent += count;
                    self.active = now;
                }
                Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        self.out = Vec::new(); // a large answer's memory is not kept
        self.sent = 0;
        Ok(())
    }

    fn receive(&mut self) -> io::Result<()> {
        let mut piece = [0; 16 * 1024];
        let room = self.lines.room().min(piece.len());
        match self.stream.read(piece.get_mut(..room).unwrap_or_default()) {
            // The other side may have shut down only its writing: what it asked for is still sent.
            Ok(0) => self.closing = true,
            Ok(count) => self.lines.push(piece.get(..count).unwrap_or_default()),
            Err(e) if e.kind() == ErrorKind::WouldBlock => self.readable = false,
            Err(e) if e.kind() == ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
        Ok(())
    }
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
