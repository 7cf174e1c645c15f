//! The control socket: a unix stream socket that speaks JSON-RPC, one object per line (see [`rpc`]).
//! Driven by the [daemon](crate::daemon)'s poll loop; nothing here waits.
//!
//! What must hold: a client can only harm itself. There are at most [`CLIENTS_MAX`]; each keeps at most one line of
//! input and one answer more than [`OUTPUT_BYTES_HIGH`] of output; who neither asks nor reads is dropped. A line has at most
//! [`LINE_BYTES_MAX`], or [`LONG_LINE_BYTES_MAX`] from those who may change what runs; and of all lines together at most
//! [`INPUT_BYTES_MAX`] are kept, beside [`LINE_BYTES_MAX`] for each client. At most [`WATCHERS_MAX`] watch what changes; one that does not
//! read what it is told is dropped.

use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::{Duration, Instant};

use mio::net::{UnixListener, UnixStream};
use mio::{Interest, Registry, Token};
use serde_json::Value;

use crate::error::Error;
use crate::rpc::{self, LINE_BYTES_MAX, LONG_LINE_BYTES_MAX, Lines, Next, Reply, RpcError, code};
use crate::socket::{self, SocketFile};

/// Clients at the same time.
pub const CLIENTS_MAX: usize = 64;
/// Clients that may watch at the same time: others find room beside them.
pub const WATCHERS_MAX: usize = CLIENTS_MAX / 2;
/// Mode of the socket: root, and a group that the operator may give it.
const SOCKET_MODE: u32 = 0o660;
/// With more than this unsent, no further request of that client is answered.
pub const OUTPUT_BYTES_HIGH: usize = 256 * 1024;
/// With more than this unsent, a client that watches and is to be told something is dropped.
pub const WATCH_BYTES_HIGH: usize = 4 * OUTPUT_BYTES_HIGH;
/// When so much of lines that are not whole yet is kept, those that are long ones and want more are refused.
pub const INPUT_BYTES_MAX: usize = 2 * LONG_LINE_BYTES_MAX;
/// Bytes that are read at once.
const PIECE_BYTES: usize = 64 * 1024;
/// Answers to one client, or pieces from it, in one turn.
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
    /// Whose members may change what runs.
    group: Option<u32>,
    first: Token,
    clients: Vec<Option<Client>>,
    accept_from: Option<Instant>,
}

/// Who is at the other end, as it was when it connected.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Peer {
    /// Its process.
    pub pid: i32,
    /// Its user.
    pub uid: u32,
    /// Root, or the daemon's own user: it may see secrets.
    pub is_owner: bool,
    /// It may change what runs: an owner, or in the group that may.
    pub may_change: bool,
}

#[derive(Debug)]
struct Client {
    stream: UnixStream,
    peer: Peer,
    /// It is told what changes; the generation of the state that it knows.
    watches: Option<u64>,
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
    /// Binds the socket, of this group if there is one. Before anything else is started: a daemon that answers there is an error.
    pub fn bind(path: &Path, group: Option<u32>, first: Token) -> Result<Api, Error> {
        let (listener, file) = socket::bind(path, SOCKET_MODE, group).map_err(|e| match e {
            Error::SocketTaken { path } => Error::AlreadyRunning { path },
            other => other,
        })?;
        let listener = UnixListener::from_std(listener);
        let clients = std::iter::repeat_with(|| None).take(CLIENTS_MAX).collect();
        Ok(Api { listener, file, group, first, clients, accept_from: None })
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
        mut method: impl FnMut(&Peer, &str, Value) -> Result<Reply, RpcError>,
    ) -> bool {
        self.accept(registry, now);
        let mut more = false;
        let held = |slot: &Option<Client>| slot.as_ref().map_or(0, |client| client.lines.held());
        let mut room = Room {
            input: INPUT_BYTES_MAX.saturating_sub(self.clients.iter().map(held).sum()),
            watchers: WATCHERS_MAX.saturating_sub(self.watchers()),
        };
        for slot in &mut self.clients {
            let Some(client) = slot else { continue };
            match client.turn(now, &mut room, &mut method) {
                Rest::Wait => {}
                Rest::More => more = true,
                Rest::End => *slot = None, // closing the descriptor takes it out of the poll set
            }
        }
        more
    }

    /// How many clients watch.
    pub fn watchers(&self) -> usize {
        self.clients.iter().flatten().filter(|client| client.watches.is_some()).count()
    }

    /// Ends the connections of those who watch.
    pub fn end_watches(&mut self) {
        for slot in &mut self.clients {
            slot.take_if(|client| client.watches.is_some());
        }
    }

    /// Tells those who watch about the change that led to this generation of the state. Who does not know it already from an answer, that
    /// is. One that has not read much of what it was told before is dropped.
    pub fn notify(&mut self, generation: u64, changed: &Value, now: Instant) {
        let is_for = |client: &Client| client.watches.is_some_and(|known| known < generation);
        let mut line = None;
        for slot in &mut self.clients {
            let Some(client) = slot.as_mut().filter(|client| is_for(client)) else { continue };
            if client.unsent() > WATCH_BYTES_HIGH {
                *slot = None;
                continue;
            }
            client.watches = Some(generation);
            client.put(line.get_or_insert_with(|| rpc::notification("changed", changed)), now);
            if client.send(now).is_err() {
                *slot = None;
            }
        }
    }

    /// When [`turn`](Self::turn) is wanted next, if nothing happens before.
    pub fn deadline(&self) -> Option<Instant> {
        let clients = self.clients.iter().flatten().filter_map(Client::expires);
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
            let peer = Peer::of(&stream, self.group);
            *slot = Some(Client::new(stream, peer, now));
        }
    }

    fn evictable(&self, now: Instant) -> Option<usize> {
        let clients = self.clients.iter().enumerate();
        let idle = clients.filter_map(|(i, c)| Some((i, c.as_ref().filter(|c| c.watches.is_none())?.active)));
        let (index, active) = idle.min_by_key(|c| c.1)?;
        (now.saturating_duration_since(active) >= EVICT_AFTER).then_some(index)
    }
}

/// What is left, in this turn, of what all clients share.
struct Room {
    /// Bytes of lines that are not whole yet.
    input: usize,
    watchers: usize,
}

impl Peer {
    fn of(stream: &UnixStream, group: Option<u32>) -> Peer {
        let Ok(process) = rustix::net::sockopt::socket_peercred(stream) else {
            return Peer { pid: 0, uid: u32::MAX, is_owner: false, may_change: false };
        };
        let (uid, gid) = (process.uid.as_raw(), process.gid.as_raw());
        let is_member = |group| {
            gid == group
                || peregrine_dataplane::peer_groups(stream.as_fd()).is_ok_and(|all| all.contains(&group))
        };
        let own = rustix::process::geteuid().as_raw();
        let pid = process.pid.as_raw_nonzero().get();
        Peer::with(pid, uid, own, group.is_some_and(is_member))
    }

    fn with(pid: i32, uid: u32, own: u32, is_member: bool) -> Peer {
        let is_owner = uid == 0 || uid == own;
        Peer { pid, uid, is_owner, may_change: is_owner || is_member }
    }

    fn line_bytes_max(&self) -> usize {
        if self.may_change { LONG_LINE_BYTES_MAX } else { LINE_BYTES_MAX }
    }
}

impl Client {
    fn new(stream: UnixStream, peer: Peer, now: Instant) -> Client {
        let (lines, out) = (Lines::new(peer.line_bytes_max()), Vec::new());
        Client {
            stream,
            peer,
            watches: None,
            lines,
            out,
            sent: 0,
            readable: true,
            closing: false,
            active: now,
        }
    }

    fn unsent(&self) -> usize {
        self.out.len() - self.sent
    }

    /// Who watches may be idle for as long as it likes.
    fn expires(&self) -> Option<Instant> {
        match (self.unsent() > 0, self.watches) {
            (true, _) => Some(self.active + STUCK_MAX),
            (false, None) => Some(self.active + IDLE_MAX),
            (false, Some(_)) => None,
        }
    }

    /// Something to be sent. Who has nothing to read yet is not stuck, however long ago that was.
    fn put(&mut self, bytes: &[u8], now: Instant) {
        if self.unsent() == 0 {
            self.active = now;
        }
        self.out.extend_from_slice(bytes);
    }

    fn turn(
        &mut self,
        now: Instant,
        room: &mut Room,
        method: &mut impl FnMut(&Peer, &str, Value) -> Result<Reply, RpcError>,
    ) -> Rest {
        for _ in 0..ANSWERS_PER_TURN {
            if self.send(now).is_err() {
                return Rest::End;
            }
            if self.unsent() > OUTPUT_BYTES_HIGH {
                return self.wait(now);
            }
            match self.lines.take() {
                Next::Line(line) if !self.closing => self.answer(&line, now, room, method),
                Next::TooLong if !self.closing => {
                    let text = format!("a request has at most {} bytes", self.lines.max());
                    self.refuse(&text, now);
                }
                Next::More if self.readable && !self.closing => {
                    if self.lines.held() > LINE_BYTES_MAX && room.input == 0 {
                        self.refuse(
                            "too many long requests are coming in at the same time: try again later",
                            now,
                        );
                        continue;
                    }
                    let held = self.lines.held();
                    if self.receive().is_err() {
                        return Rest::End;
                    }
                    room.input = room.input.saturating_sub(self.lines.held() - held);
                }
                _ => return self.wait(now),
            }
        }
        Rest::More
    }

    fn answer(
        &mut self,
        line: &[u8],
        now: Instant,
        room: &mut Room,
        method: &mut impl FnMut(&Peer, &str, Value) -> Result<Reply, RpcError>,
    ) {
        self.active = now;
        let (peer, watches) = (self.peer, self.watches.is_some());
        let mut watch = None;
        let answer = rpc::answer(line, |name, params| {
            let reply = method(&peer, name, params)?;
            if reply.watch.is_some() && !watches && room.watchers == 0 {
                let text =
                    format!("{WATCHERS_MAX} connections watch already, which is the most: end one of them");
                return Err(RpcError::new(code::REFUSED, text));
            }
            let Reply { mut result, watch: wanted } = reply;
            watch = wanted.map(|watch| (watch.generation, changes(&watch.missed)));
            // Who has missed too much is to ask for everything anew.
            if let Some((_, missed)) = &mut watch
                && missed.len() > OUTPUT_BYTES_HIGH
            {
                missed.clear();
                result["resync"] = true.into();
            }
            Ok(result)
        });
        self.out.extend(answer.unwrap_or_default());
        if let Some((generation, missed)) = watch {
            room.watchers -= usize::from(!watches && room.watchers > 0);
            self.watches = Some(generation);
            self.out.extend(missed);
        }
    }

    /// Says what is wrong with what comes, of which no more is read.
    fn refuse(&mut self, text: &str, now: Instant) {
        self.put(&rpc::not_taken(text), now);
        self.lines = Lines::new(0);
        self.closing = true;
    }

    fn wait(&self, now: Instant) -> Rest {
        let done = self.closing && self.unsent() == 0;
        if done || self.expires().is_some_and(|at| now >= at) { Rest::End } else { Rest::Wait }
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
        let mut piece = [0; PIECE_BYTES];
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

/// Lines that tell of these changes.
fn changes(params: &[Value]) -> Vec<u8> {
    params.iter().flat_map(|params| rpc::notification("changed", params)).collect()
}

#[cfg(test)]
#[path = "api_tests.rs"]
mod tests;
