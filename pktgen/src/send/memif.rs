//! A memif ring to send into, as a client: frames are built in memory of our own and copied into the ring, a burst at a time.
//!
//! A frame is built some packets before it is copied: a processor waits when it reads back in large pieces what it has just
//! written in small ones.

use std::sync::Arc;
use std::time::Duration;

use peregrine_dataplane::xsk::Kicks;
use peregrine_memif::{ClientConfig, ControlSocket, PushError, RxRing, SocketAddr, TxRing};
use serde::Serialize;

use super::wire::{BURST, Wire};
use crate::clock::now_ns;
use crate::error::Error;
use crate::limits::SLEEP_MAX;
use crate::port::memif::connect;

/// So that neither a cache line nor a pair of them is shared by two frames.
const ALIGNMENT: usize = 128;

/// Where to connect.
#[derive(Clone, Debug)]
pub struct MemifSettings {
    /// The server's socket.
    pub socket: SocketAddr,
    /// How.
    pub config: ClientConfig,
}

/// What was got.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct MemifInfo {
    /// The server's name for itself.
    pub peer: String,
    /// Queue pairs of the connection.
    pub queue_pairs: usize,
    /// Slots of each ring.
    pub ring_size: u16,
    /// Bytes of each buffer.
    pub buffer_bytes: u32,
}

/// One queue pair.
#[derive(Debug)]
pub struct MemifWire {
    tx: TxRing,
    rx: RxRing,
    /// The connection, which lasts until the last queue pair is done.
    control: Option<Arc<ControlSocket>>,
    peer: String,
    /// Free slots of the ring, at least.
    free: usize,
    /// [`BURST`] places for frames, of which those from `first` to before `end` are built.
    places: Vec<u8>,
    stride: usize,
    lens: [usize; BURST],
    first: usize,
    end: usize,
    /// What arrives is copied here before it is looked at: its sender can still write to the original.
    copy: Vec<u8>,
}

impl MemifWire {
    /// Connects, and gives one wire for each queue pair. No frame will be longer than `longest`.
    ///
    /// # Errors
    /// No server, one that refuses, or one that takes fewer queue pairs; frames too long for its buffers.
    pub fn connect(settings: &MemifSettings, longest: usize) -> Result<(MemifInfo, Vec<MemifWire>), Error> {
        let MemifSettings { socket, config } = settings;
        if longest > config.buffer_bytes as usize {
            return Err(Error::Arguments(format!(
                "a frame of {longest} bytes does not fit a buffer of {}: give a larger --buffer-size, up to 16384",
                config.buffer_bytes
            )));
        }
        let interface = connect(socket, config.clone())?;
        let peer = format!("memif server {} ({})", interface.peer_name, interface.peer_if_name);
        let (wanted, got) = (usize::from(config.queue_pairs), interface.tx.len().min(interface.rx.len()));
        if got < wanted {
            return Err(Error::Arguments(format!(
                "{peer} gives {got} queue pairs: use at most so many --threads"
            )));
        }
        let control = Arc::new(interface.control);
        let wires: Vec<MemifWire> = interface
            .tx
            .into_iter()
            .zip(interface.rx)
            .map(|(tx, rx)| MemifWire::new(tx, rx, Some(Arc::clone(&control)), peer.clone(), longest))
            .collect();
        let ring_size = wires.first().map_or(0, |wire| wire.tx.size());
        let buffer_bytes = config.buffer_bytes;
        Ok((MemifInfo { peer, queue_pairs: wires.len(), ring_size, buffer_bytes }, wires))
    }

    /// Over one queue pair of a connected interface.
    pub fn new(
        tx: TxRing,
        rx: RxRing,
        control: Option<Arc<ControlSocket>>,
        peer: String,
        longest: usize,
    ) -> MemifWire {
        let stride = longest.max(1).next_multiple_of(ALIGNMENT);
        MemifWire {
            tx,
            rx,
            control,
            peer,
            free: 0,
            places: vec![0; stride * BURST],
            stride,
            lens: [0; BURST],
            first: 0,
            end: 0,
            copy: vec![0; 1 << 16],
        }
    }

    fn broken(&self, why: impl std::fmt::Display) -> Error {
        Error::PeerGone { what: format!("{} breaks the rules of memif: {why}", self.peer) }
    }
}

impl Wire for MemifWire {
    #[inline]
    fn room(&mut self) -> Result<usize, Error> {
        // The peer's index is in a cache line that it writes: looked at only when what is known to be free runs out.
        if self.free < BURST {
            self.free = usize::from(self.tx.free().map_err(|why| self.broken(why))?);
        }
        Ok(self.free.saturating_sub(self.built()).min(BURST - self.end))
    }

    #[inline]
    fn build(&mut self, len: usize, write: impl FnOnce(&mut [u8]) -> bool) -> bool {
        let start = self.end * self.stride;
        let place = self.places.get_mut(start..start + len);
        let (Some(place), Some(kept)) = (place, self.lens.get_mut(self.end)) else { return false };
        if len > self.stride || !write(place) {
            return false;
        }
        *kept = len;
        self.end += 1;
        true
    }

    #[inline]
    fn built(&self) -> usize {
        self.end - self.first
    }

    #[inline]
    fn transmit(&mut self, _now: u64) -> Result<usize, Error> {
        let lens = self.lens.get(self.first..self.end).unwrap_or_default();
        let places = self.places.get(self.first * self.stride..).unwrap_or_default();
        let (mut taken, mut refused) = (0, None);
        for (place, len) in places.chunks_exact(self.stride).zip(lens) {
            match self.tx.push(place.get(..*len).unwrap_or_default()) {
                Ok(()) => taken += 1,
                Err(why) => {
                    refused = Some(why);
                    break;
                }
            }
        }
        self.first += taken;
        if self.first == self.end {
            (self.first, self.end) = (0, 0);
        }
        if let Some(why) = refused.filter(|why| !matches!(why, PushError::Full)) {
            return Err(self.broken(why));
        }
        if taken > 0 {
            self.free = self.free.saturating_sub(taken);
            let woken = self.tx.flush();
            woken.map_err(|why| Error::System { what: format!("waking {}", self.peer), source: why })?;
        }
        Ok(taken)
    }

    #[inline]
    fn complete(&mut self) -> usize {
        0
    }

    #[inline]
    fn outstanding(&mut self) -> usize {
        // What the peer has not taken: it would be lost if we went now.
        let size = usize::from(self.tx.size());
        self.tx.free().map_or(size, |free| size.saturating_sub(free.into()))
    }

    #[inline]
    fn receive(&mut self, mut each: impl FnMut(u64, &[u8])) -> Result<usize, Error> {
        let pending = self.rx.pending().map_err(|why| self.broken(why))?;
        if pending == 0 {
            return Ok(0);
        }
        let now = now_ns();
        let mut count = 0;
        for _ in 0..usize::from(pending).min(BURST) {
            let copied = match self.rx.next_packet() {
                Some(Ok(packet)) => packet.copy_to(&mut self.copy),
                Some(Err(_)) => None,
                None => break,
            };
            // What cannot be read is no answer, and is told as such.
            each(now, copied.and_then(|len| self.copy.get(..len)).unwrap_or_default());
            count += 1;
        }
        self.rx.release();
        Ok(count)
    }

    fn sleep(&mut self, longest_ns: u64, listening: bool) -> Result<(), Error> {
        let longest = Duration::from_nanos(longest_ns).min(SLEEP_MAX);
        if !listening {
            std::thread::sleep(longest);
            return Ok(());
        }
        let what = format!("waiting for {}", self.peer);
        self.rx.wait(longest).map(drop).map_err(Error::system(what))
    }

    fn gone(&mut self) -> Option<String> {
        match self.control.as_ref()?.poll_disconnect() {
            Ok(None) => None,
            Ok(Some(why)) => Some(format!("{}: {why}", self.peer)),
            Err(why) => Some(format!("{}: {why}", self.peer)),
        }
    }

    fn discard(&mut self) -> usize {
        let count = self.built();
        (self.first, self.end) = (0, 0);
        count
    }

    fn kicks(&mut self) -> Kicks {
        Kicks::default()
    }
}
