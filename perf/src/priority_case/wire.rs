//! The wire, and the generator at its far end: a thread on a core of its own that makes the same stamped frames as `replay` does, at the
//! same kinds of rates, and sends them over AF_XDP. The core does the kernel's part of both ends of the wire, too.
//!
//! Both ends lie in the namespace that this process runs in: no packet for the far end's host is needed, and the two streams' speeds can
//! be changed without a message. What is due and not sent waits here, as in a host's queue: how late it is then is told apart.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::JoinHandle;

use peregrine_control::demo::hosts::{FAR, NEAR};
use peregrine_dataplane::clock::cycles;
use peregrine_dataplane::frame::{BURST, Burst};
use peregrine_dataplane::histogram::Histogram;
use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::replay::{Replay, Stamp};
use peregrine_dataplane::types::QueueId;
use peregrine_dataplane::xsk::{self, Uplink, WorkerPort, XskConfig};

use super::traffic::{self, Paces, Receiver, URGENT_FLOW};
use crate::paced::Latencies;

/// The worker's end of the wire.
pub const NEAR_DEVICE: &str = NEAR.1;
/// What the generator's thread is called.
pub const GENERATOR_THREAD: &str = "generator";

/// The generator's thread.
pub struct Generator {
    pub paces: Paces,
    late: Arc<Histogram>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    _uplink: Uplink,
}

impl Generator {
    /// Begins, with both streams stopped.
    pub fn start(core: usize, receiver: Receiver, hertz: f64) -> Result<Generator, String> {
        let (streams, paces) = traffic::streams(receiver)?;
        let config =
            XskConfig { watchdog_ticks: (hertz / 100.0) as u64, ..XskConfig::new(FAR.1, XdpMode::Copy) };
        let (uplink, mut ports) =
            xsk::open(&config, &[vec![QueueId(0)]]).map_err(|error| error.to_string())?;
        let port = ports.pop().ok_or("the far end of the wire has no queue")?;
        let (stop, late) = (Arc::new(AtomicBool::new(false)), Arc::new(Histogram::default()));
        let (ends, lateness) = (stop.clone(), late.clone());
        let run = move || {
            let _where_it_may = core_affinity::set_for_current(core_affinity::CoreId { id: core });
            send(port, Replay::new(streams, false), &lateness, &ends);
        };
        let thread = std::thread::Builder::new().name(GENERATOR_THREAD.into()).spawn(run);
        let thread = thread.map_err(|error| format!("cannot start the generator: {error}"))?;
        Ok(Generator { paces, late, stop, thread: Some(thread), _uplink: uplink })
    }

    /// How late urgent frames were when they went to the socket, so far.
    pub fn lateness(&self) -> Latencies {
        Latencies::sum(std::iter::once(self.late.counts()))
    }
}

impl Drop for Generator {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// The way of an urgent frame begins now; how late that is, is the generator's own.
fn stamp_anew(frame: &mut [u8], now: u64, late: &Histogram) {
    let Some(stamp) = Stamp::of(frame).filter(|stamp| stamp.flow == URGENT_FLOW && stamp.due != 0) else {
        return;
    };
    late.record(now.saturating_sub(stamp.due));
    if let Some(last) = frame.last_chunk_mut() {
        *last = Stamp { due: now, ..stamp }.to_bytes();
    }
}

/// A burst is made when the one before has left, so that what waits does so in the order in which it was due.
fn send(port: WorkerPort, mut replay: Replay, late: &Histogram, stop: &AtomicBool) {
    let WorkerPort { mut sockets, mut pool } = port;
    let Some(socket) = sockets.first_mut() else { return };
    let mut burst = Burst::new();
    while !stop.load(Relaxed) {
        socket.complete(&mut pool);
        if burst.is_empty() && socket.tx_outstanding() < BURST {
            replay.present(&mut pool, &mut burst);
            let now = cycles();
            burst.iter_mut().for_each(|frame| stamp_anew(frame.bytes_mut(), now, late));
        }
        if !burst.is_empty() {
            socket.transmit(&mut pool, &mut burst);
        }
        socket.kick(cycles());
    }
    burst.drain().for_each(|frame| pool.put(frame));
}
