//! The far end of a search: a thread, on a core of its own if there is one, that counts what arrives of each trial.
//!
//! What must hold: a packet counts for the trial in which it was sent: each says of which run of a sender it is, and each
//! trial is one. And a trial ends when all packets have come or nothing has for a while (`SILENCE_NS`), however long that takes.

use std::fs::File;
use std::net::SocketAddrV4;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::mpsc::{Receiver as Inbox, Sender as Outbox, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use peregrine_memif::{ClientConfig, SocketAddr};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::clock::{MILLISECOND, now_ns};
use crate::error::Error;
use crate::latency::{Latency, Percentiles};
use crate::limits::{Wait, pin};
use crate::port::memif::MemifPort;
use crate::port::udp::{SMALL_BUFFER_BYTES, UdpPort};
use crate::port::{BURST, Source};
use crate::tracker::Tracker;
use crate::trailer::elapsed;

/// After the sender's end and so long without a packet, those that have not come are lost.
const SILENCE_NS: u64 = 100 * MILLISECOND;
/// How often a memif peer is looked at: it costs a system call.
const PEER_CHECK_NS: u64 = 20 * MILLISECOND;
/// The longest sleep: so soon it hears of the sender's end.
const REST_NS: u64 = MILLISECOND;
/// Batches of old packets that are thrown away before a trial; what still comes is known by its run.
const STALE_BATCHES_MAX: usize = 4096;

/// Where packets arrive.
#[derive(Clone, Debug)]
pub enum FarEnd {
    /// At a client of this memif server.
    Memif(SocketAddr, ClientConfig),
    /// At a UDP socket, in this network namespace if not in ours.
    Udp(SocketAddrV4, Option<String>),
}

/// What the thread is made with.
#[derive(Clone, Debug)]
pub struct ReceiverSettings {
    /// Where packets arrive.
    pub far_end: FarEnd,
    /// Its core.
    pub core: Option<usize>,
    /// What it does while nothing is there.
    pub wait: Wait,
    /// Flows of the sender.
    pub flows: usize,
}

/// What arrived of one trial.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Arrived {
    /// Packets, each once.
    pub packets: u64,
    /// From the first arrival to the last; zero if there were not two.
    pub span: Duration,
    /// From the intended departure to the arrival.
    pub latency: Option<Percentiles>,
}

enum Order {
    /// Counts packets of this run.
    Begin { run: u16 },
    /// So many have been sent.
    End { sent: u64 },
}

enum Answer {
    Ready,
    Done(Arrived),
}

/// The running thread. It ends when this is dropped.
#[derive(Debug)]
pub struct Receiver {
    orders: Option<Outbox<Order>>,
    answers: Inbox<Result<Answer, Error>>,
    thread: Option<JoinHandle<()>>,
}

impl Receiver {
    /// Starts it; it is connected or bound then.
    ///
    /// # Errors
    /// Those of connecting, or of entering the namespace.
    pub fn start(settings: ReceiverSettings) -> Result<Receiver, Error> {
        let (orders, inbox) = channel();
        let (outbox, answers) = channel();
        let run = move || {
            if let Err(error) = receive(&settings, &inbox, &outbox) {
                let _searcher_is_gone = outbox.send(Err(error));
            }
        };
        let thread = std::thread::Builder::new().name("receiver".into()).spawn(run);
        let thread = thread.map_err(Error::system("starting the receiver's thread"))?;
        let receiver = Receiver { orders: Some(orders), answers, thread: Some(thread) };
        receiver.answer()?;
        Ok(receiver)
    }

    /// A trial begins: packets of this run count, which no trial before had.
    ///
    /// # Errors
    /// What has happened to the thread since.
    pub fn begin(&self, run: u16) -> Result<(), Error> {
        self.order(Order::Begin { run });
        self.answer().map(drop)
    }

    /// The sender is done; waits for what is still on its way.
    ///
    /// # Errors
    /// A peer that went away, a socket that failed.
    pub fn end(&self, sent: u64) -> Result<Arrived, Error> {
        self.order(Order::End { sent });
        match self.answer()? {
            Answer::Done(arrived) => Ok(arrived),
            Answer::Ready => Err(gone()),
        }
    }

    fn order(&self, order: Order) {
        // If the thread has ended, its last answer says why.
        let _ended = self.orders.as_ref().map(|orders| orders.send(order));
    }

    fn answer(&self) -> Result<Answer, Error> {
        self.answers.recv().unwrap_or_else(|_| Err(gone()))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.orders = None;
        let _ended = self.thread.take().map(JoinHandle::join);
    }
}

fn gone() -> Error {
    Error::PeerGone { what: "the receiver's thread has ended".into() }
}

/// The thread.
fn receive(
    settings: &ReceiverSettings,
    orders: &Inbox<Order>,
    answers: &Outbox<Result<Answer, Error>>,
) -> Result<(), Error> {
    pin(settings.core)?;
    match &settings.far_end {
        FarEnd::Memif(socket, config) => {
            let port = MemifPort::connect(socket, config.clone())?;
            serve(port.rx, settings, orders, answers)
        }
        FarEnd::Udp(address, namespace) => {
            if let Some(name) = namespace {
                enter(name)?;
            }
            let mut port = UdpPort::bind_with(*address, SMALL_BUFFER_BYTES)?;
            port.sleep_at_most(Duration::from_nanos(REST_NS))?;
            serve(port, settings, orders, answers)
        }
    }
}

/// This thread, and only this one, moves into the network namespace.
fn enter(name: &str) -> Result<(), Error> {
    let path = Path::new("/run/netns").join(name);
    let what = || format!("entering network namespace {}", path.display());
    let file = File::open(&path).map_err(Error::system(what()))?;
    move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network)).map_err(Error::system(what()))
}

fn serve<S: Source>(
    mut source: S,
    settings: &ReceiverSettings,
    orders: &Inbox<Order>,
    answers: &Outbox<Result<Answer, Error>>,
) -> Result<(), Error> {
    let answer = |answer| answers.send(Ok(answer)).is_ok();
    if !answer(Answer::Ready) {
        return Ok(());
    }
    while let Ok(order) = orders.recv() {
        let Order::Begin { run } = order else { continue };
        for _ in 0..STALE_BATCHES_MAX {
            if source.receive(Wait::Poll, |_, _| {})? == 0 {
                break;
            }
        }
        let tally = Tally {
            run,
            tracker: Tracker::new(settings.flows),
            latency: Latency::new()?,
            first_ns: 0,
            last_ns: 0,
        };
        if !answer(Answer::Ready) {
            return Ok(());
        }
        match count(&mut source, settings.wait, orders, tally)? {
            Some(arrived) if answer(Answer::Done(arrived)) => {}
            _ => return Ok(()),
        }
    }
    Ok(())
}

/// What changes with every packet of a trial.
struct Tally {
    run: u16,
    tracker: Tracker,
    latency: Latency,
    /// 0 before the first packet.
    first_ns: u64,
    last_ns: u64,
}

impl Tally {
    #[inline]
    fn take<S: Source>(&mut self, now: u64, packet: &[u8]) {
        let Some(trailer) = S::trailer(packet) else { return };
        if trailer.run != self.run || !self.tracker.record(trailer.flow, trailer.sequence) {
            return;
        }
        self.latency.record(elapsed(now, trailer.time));
        if self.first_ns == 0 {
            self.first_ns = now;
        }
        self.last_ns = now;
    }

    /// Packets, each once; what is too old to tell whether it came twice does not count.
    fn distinct(&self) -> u64 {
        self.tracker.counts().distinct
    }
}

/// One trial. `None` if the search is over.
fn count<S: Source>(
    source: &mut S,
    wait: Wait,
    orders: &Inbox<Order>,
    mut tally: Tally,
) -> Result<Option<Arrived>, Error> {
    let mut ended: Option<(u64, u64)> = None;
    let mut peer_checked = now_ns();
    loop {
        let batch = source.receive(wait, |now, packet| tally.take::<S>(now, packet))?;
        let now = now_ns();
        match orders.try_recv() {
            Ok(Order::End { sent }) => ended = Some((now, sent)),
            Err(TryRecvError::Disconnected) => return Ok(None),
            Ok(Order::Begin { .. }) | Err(TryRecvError::Empty) => {}
        }
        if let Some((at, sent)) = ended {
            let silent = now.saturating_sub(at.max(tally.last_ns)) >= SILENCE_NS;
            if tally.distinct() >= sent || silent {
                let latency = tally.latency.percentiles();
                let span = Duration::from_nanos(elapsed(tally.last_ns, tally.first_ns));
                return Ok(Some(Arrived { packets: tally.distinct(), span, latency }));
            }
        }
        if batch == 0 && now.saturating_sub(peer_checked) >= PEER_CHECK_NS {
            peer_checked = now;
            if let Some(what) = source.gone() {
                return Err(Error::PeerGone { what });
            }
        }
        if batch < BURST && (batch == 0 || matches!(wait, Wait::Pause(_))) {
            source.rest(wait, REST_NS)?;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trailer::Trailer;
    use std::net::{Ipv4Addr, UdpSocket};

    fn receiver() -> (Receiver, UdpSocket) {
        // A port that is free: bound, asked for, and let go of.
        let address = UdpPort::bind(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0)).unwrap().local();
        let settings =
            ReceiverSettings { far_end: FarEnd::Udp(address, None), core: None, wait: Wait::Yield, flows: 2 };
        let receiver = Receiver::start(settings).unwrap();
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        socket.connect(address).unwrap();
        (receiver, socket)
    }

    fn send(socket: &UdpSocket, run: u16, flow: u16, sequence: u64) {
        socket.send(&Trailer { run, flow, sequence, time: now_ns() }.encode()).unwrap();
    }

    #[test]
    fn each_packet_counts_once_and_for_its_own_trial() {
        let (receiver, socket) = receiver();
        receiver.begin(7).unwrap();
        for (flow, sequence) in [(0, 0), (0, 1), (1, 0), (0, 1), (7, 0)] {
            send(&socket, 7, flow, sequence);
        }
        socket.send(b"not ours").unwrap();
        assert_eq!(receiver.end(3).unwrap().packets, 3);

        // One of the first comes between the trials, one in the second, and one of another sender, just now.
        send(&socket, 7, 0, 2);
        receiver.begin(8).unwrap();
        send(&socket, 7, 0, 3);
        send(&socket, 1234, 0, 4);
        send(&socket, 8, 0, 0);
        let arrived = receiver.end(5).unwrap();
        assert_eq!(arrived.packets, 1, "the four others never come, and it ends all the same");
        assert!(arrived.latency.unwrap().max < 10e6);
    }

    #[test]
    fn a_namespace_that_is_not_there_is_named() {
        let far_end = FarEnd::Udp(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 0), Some("no-such-netns".into()));
        let settings = ReceiverSettings { far_end, core: None, wait: Wait::Yield, flows: 1 };
        let error = Receiver::start(settings).unwrap_err().to_string();
        assert!(error.starts_with("entering network namespace /run/netns/no-such-netns: "), "{error}");
    }
}
