//! `echo`: sends back what arrives, as a host with an echo server would: ARP and neighbour discovery, ICMP and ICMPv6
//! echo and UDP over memif, datagrams over a UDP socket. The trailer stays as it is, so that the sender measures the round trip.

pub mod reply;

use serde::Serialize;

use crate::clock::{self, MILLISECOND};
use crate::error::Error;
use crate::limits::{Ended, Limits, Stop, Until, Wait};
use crate::port::memif::MemifPort;
use crate::port::reconnect::ReconnectingPort;
use crate::port::udp::UdpPort;
use crate::port::{BURST, Port, PortStatistics};
use crate::progress::Progress;
use crate::report::Outcome;
use reply::{Identity, Kind};

/// How often a memif peer is looked at: it costs a system call.
const PEER_CHECK_NS: u64 = 20 * MILLISECOND;

/// What an echo does.
#[derive(Clone, Debug)]
pub struct EchoSettings {
    /// What it does while nothing is there.
    pub wait: Wait,
    /// When it ends.
    pub limits: Limits,
    /// No line per second.
    pub quiet: bool,
}

/// Answers sent, by kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Answered {
    /// ARP replies.
    pub arp: u64,
    /// Neighbour advertisements.
    pub neighbour: u64,
    /// ICMP and ICMPv6 echo replies.
    pub icmp: u64,
    /// UDP packets sent back.
    pub udp: u64,
}

/// What an echo did.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct EchoReport {
    /// Packets that came.
    pub received: u64,
    /// Their frames, headers included.
    pub bytes: u64,
    /// Answers that went out.
    pub answered: Answered,
    /// Packets that were not for us or that nobody answers.
    pub ignored: u64,
    /// Answers that found no room in the ring or the socket.
    pub dropped: u64,
    /// From the first packet to the last.
    pub seconds: f64,
    /// Why it ended.
    pub ended: Ended,
    /// What ring or socket counted.
    #[serde(flatten)]
    pub port: PortStatistics,
}

/// What changes with every packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Tally {
    received: u64,
    bytes: u64,
    answered: Answered,
    ignored: u64,
    dropped: u64,
}

/// A port that answers.
pub trait Responder {
    /// Takes a batch and answers it. Returns how many packets there were.
    ///
    /// # Errors
    /// What ends the run.
    fn answer(&mut self, wait: Wait, tally: &mut Tally) -> Result<usize, Error>;
    /// The port behind it.
    fn port(&mut self) -> &mut impl Port;
}

/// A host on a memif interface: a [`MemifPort`] or a [`ReconnectingPort`].
#[derive(Debug)]
pub struct MemifResponder<P> {
    /// Where packets come from and answers go.
    pub port: P,
    /// Who we are.
    pub identity: Identity,
}

#[inline]
fn answer(port: &mut MemifPort, identity: Identity, tally: &mut Tally) -> Result<usize, Error> {
    let MemifPort { rx, tx } = port;
    let mut failure = None;
    let count = rx.receive_mut(|_, packet| {
        tally.received += 1;
        tally.bytes += packet.len() as u64;
        let Some((kind, answer)) = reply::answer(packet, identity) else {
            tally.ignored += 1;
            return;
        };
        match tx.push(answer) {
            Ok(true) => tally.answered.count(kind),
            Ok(false) => tally.dropped += 1,
            Err(error) => failure = Some(error),
        }
    })?;
    if count > 0 {
        tx.flush()?;
    }
    failure.map_or(Ok(count), Err)
}

impl Responder for MemifResponder<MemifPort> {
    #[inline]
    fn answer(&mut self, _wait: Wait, tally: &mut Tally) -> Result<usize, Error> {
        answer(&mut self.port, self.identity, tally)
    }

    fn port(&mut self) -> &mut impl Port {
        &mut self.port.rx
    }
}

impl Responder for MemifResponder<ReconnectingPort> {
    #[inline]
    fn answer(&mut self, _wait: Wait, tally: &mut Tally) -> Result<usize, Error> {
        self.port.with(|port| answer(port, self.identity, tally))
    }

    fn port(&mut self) -> &mut impl Port {
        &mut self.port
    }
}

impl Responder for UdpPort {
    #[inline]
    fn answer(&mut self, wait: Wait, tally: &mut Tally) -> Result<usize, Error> {
        let batch = self.echo(wait)?;
        tally.received += batch.received as u64;
        tally.bytes += (batch.bytes + batch.received * UdpPort::HEADERS_TAKEN_OFF) as u64;
        tally.answered.udp += batch.sent as u64;
        tally.dropped += batch.received.saturating_sub(batch.sent) as u64;
        Ok(batch.received)
    }

    fn port(&mut self) -> &mut impl Port {
        self
    }
}

impl Answered {
    #[inline]
    fn count(&mut self, kind: Kind) {
        match kind {
            Kind::Arp => self.arp += 1,
            Kind::NeighbourSolicitation => self.neighbour += 1,
            Kind::Icmp => self.icmp += 1,
            Kind::Udp => self.udp += 1,
        }
    }
}

/// Answers until a limit is reached or the peer is gone.
pub fn run<R: Responder>(mut responder: R, settings: &EchoSettings, stop: Stop) -> Outcome<EchoReport> {
    let (mut tally, mut span) = (Tally::default(), None);
    let (ended, failure) = match answer_all(&mut responder, settings, stop, &mut tally, &mut span) {
        Ok(ended) => (ended, None),
        Err(error) => (Ended::Peer, Some(error)),
    };
    let report = EchoReport {
        received: tally.received,
        bytes: tally.bytes,
        answered: tally.answered,
        ignored: tally.ignored,
        dropped: tally.dropped,
        seconds: span.map_or(0.0, |(first, last)| clock::seconds(last - first)),
        ended,
        port: responder.port().statistics(),
    };
    Outcome { report, failure }
}

/// `span`: when the first and the last packet came.
fn answer_all<R: Responder>(
    responder: &mut R,
    settings: &EchoSettings,
    stop: Stop,
    tally: &mut Tally,
    span: &mut Option<(u64, u64)>,
) -> Result<Ended, Error> {
    let start = clock::now_ns();
    let until = Until::new(&settings.limits, start, stop);
    let mut progress = if settings.quiet {
        Progress::silent()
    } else {
        Progress::toward("received", start, &settings.limits)
    };
    let mut peer_checked = start;
    loop {
        let count = responder.answer(settings.wait, tally)?;
        let now = clock::now_ns();
        if count > 0 {
            *span = Some((span.map_or(now, |(first, _)| first), now));
        }
        if let Some(ended) = until.reached(now, tally.received, span.map(|(_, last)| last)) {
            return Ok(ended);
        }
        progress.tick(now, tally.received);
        if count == 0 && now.saturating_sub(peer_checked) >= PEER_CHECK_NS {
            peer_checked = now;
            if let Some(what) = responder.port().gone() {
                return Err(Error::PeerGone { what });
            }
        }
        if count < BURST && (count == 0 || matches!(settings.wait, Wait::Pause(_))) {
            responder.port().rest(settings.wait, until.sleep_ns(now))?;
        }
    }
}

#[cfg(test)]
mod tests;
