//! `send`: VXLAN frames over AF_XDP, each at its time; with `rtt` also the answers, and how long they took.
//!
//! One loop, one thread, one socket: bring frames home, send what is due, look for answers, and rest when there is
//! nothing to do.

mod rtt;

use std::net::Ipv4Addr;
use std::time::Duration;

use peregrine_dataplane::frame::{BURST, Burst, FramePool};
use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::{MacAddr, QueueId, Vni};
use peregrine_dataplane::wire::outer::{OVERHEAD_IPV4, OuterFields};
use peregrine_dataplane::xsk::{
    self, Kicks, SocketStatistics, Steering, Uplink, UplinkInfo, XskConfig, XskSocket,
};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use crate::clock::{self, MILLISECOND, SECOND, now_ns};
use crate::error::Error;
use crate::limits::{Ended, Limits, SLEEP_MAX, Stop, Until};
use crate::pacer::{Pacer, Rate};
use crate::progress::Progress;
use crate::report::Outcome;
use crate::template::{Inner, Template, Vxlan};
use crate::trailer::Trailer;
use rtt::{Rtt, RttReport};

/// How late a packet may be sent and not count as late.
const LATE_NS: u64 = MILLISECOND;
/// How long the kernel may take to give the last frames back.
const COMPLETION_PATIENCE_NS: u64 = 2 * SECOND;
/// How long the last answers may take.
const ANSWER_PATIENCE_NS: u64 = 500 * MILLISECOND;
/// The same, after a signal.
const HURRY_NS: u64 = 50 * MILLISECOND;
/// Sleeping for less than this costs more time than it leaves.
const NAP_MIN_NS: u64 = 20_000;

/// What a sender does while nothing is due.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SendWait {
    /// Looks again at once.
    Poll,
    /// Lets others run first (sched_yield).
    Yield,
    /// Sleeps until an answer comes or the next packet is due.
    Block,
}

/// What is sent, and where.
#[derive(Clone, Debug)]
pub struct SendSettings {
    /// Name of the interface.
    pub interface: String,
    /// Its queue.
    pub queue: QueueId,
    /// How the socket is bound.
    pub mode: XdpMode,
    /// Ethernet address of the next hop.
    pub next_hop: MacAddr,
    /// Our VTEP address.
    pub local: Ipv4Addr,
    /// The remote VTEP.
    pub remote: Ipv4Addr,
    /// VXLAN's UDP port.
    pub port: u16,
    /// The network.
    pub vni: Vni,
    /// The packets inside.
    pub inner: Inner,
    /// How many a second.
    pub rate: Rate,
    /// When it ends.
    pub limits: Limits,
    /// Receive the answers.
    pub rtt: bool,
    /// What it does while nothing is due.
    pub wait: SendWait,
}

/// What was sent.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct SendReport {
    /// Frames that the kernel took and gave back.
    pub sent: u64,
    /// Their bytes, outer headers included.
    pub bytes: u64,
    /// From the first departure to the last completion.
    pub seconds: f64,
    /// Packets in that time.
    pub offered_pps: f64,
    /// Sent more than a millisecond after their time.
    pub late: u64,
    /// Departures given up because the sender was too far behind.
    pub skipped: u64,
    /// Frames that the kernel has not given back.
    pub uncompleted: u64,
    /// Why it ended.
    pub ended: Ended,
    /// What was asked for and what was got.
    pub uplink: UplinkInfo,
    /// The kernel's counters of the socket.
    pub kernel: Option<SocketStatistics>,
    /// Wake-ups of the kernel.
    pub kicks: KickCounts,
    /// The answers.
    #[serde(flatten)]
    pub rtt: Option<RttReport>,
}

/// [`Kicks`], summed up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct KickCounts {
    /// System calls that told the kernel of frames to send.
    pub transmit: u64,
    /// Those that it put off.
    pub deferred: u64,
    /// Frames that the device dropped after they were handed over; they count as sent.
    pub lost: u64,
    /// Those that found the interface down.
    pub down: u64,
    /// Those that failed for another reason.
    pub failed: u64,
    /// System calls that told the kernel of free frames.
    pub receive: u64,
    /// Wake-ups because nothing had come back for too long.
    pub watchdog: u64,
}

impl KickCounts {
    #[inline]
    fn add(&mut self, kicks: Kicks) {
        self.transmit += u64::from(kicks.transmit);
        self.deferred += u64::from(kicks.deferred);
        self.lost += u64::from(kicks.lost);
        self.down += u64::from(kicks.down);
        self.failed += u64::from(kicks.failed);
        self.receive += u64::from(kicks.receive);
        self.watchdog += u64::from(kicks.watchdog);
    }
}

/// An open socket and what goes out on it.
#[derive(Debug)]
pub struct Sender {
    // First, so that it is closed before its memory goes.
    socket: XskSocket,
    pool: FramePool,
    uplink: Uplink,
    template: Template,
    settings: SendSettings,
    /// The next number of each flow, and the flow whose turn it is.
    sequences: Vec<u64>,
    flow: usize,
    burst: Burst,
    /// Handed to the kernel.
    handed: u64,
    late: u64,
    skipped: u64,
    kicks: KickCounts,
    rtt: Option<Rtt>,
}

impl Sender {
    /// Opens the socket; with `rtt` it also attaches the XDP program.
    ///
    /// # Errors
    /// Whatever [`xsk::open`] refuses; packets that do not fit the interface's MTU.
    pub fn open(settings: SendSettings) -> Result<Sender, Error> {
        let interface = xsk::interface(&settings.interface)?;
        let size_max = (interface.mtu as usize + 14).saturating_sub(OVERHEAD_IPV4);
        if settings.inner.size > size_max {
            let (name, mtu, size) = (&interface.name, interface.mtu, settings.inner.size);
            let what =
                format!("--size {size} does not fit the MTU {mtu} of {name}: at most {size_max} bytes do");
            return Err(Error::Arguments(what));
        }
        let mut config = XskConfig::new(&settings.interface, settings.mode);
        if interface.mtu > 1700 {
            config.chunk_size = 4096;
        }
        config.steering = settings.rtt.then(|| Steering {
            local: settings.local.into(),
            port: settings.port,
            vnis: vec![settings.vni],
        });
        let template = settings.template(interface.mac)?;
        let rtt = settings.rtt.then(|| Rtt::new(&settings)).transpose()?;
        let (uplink, ports) = xsk::open(&config, &[vec![settings.queue]])?;
        let port = ports
            .into_iter()
            .next()
            .and_then(|mut port| port.sockets.pop().map(|socket| (socket, port.pool)));
        let (socket, pool) =
            port.ok_or_else(|| Error::Arguments(format!("no socket on queue {}", settings.queue.0)))?;
        Ok(Sender {
            socket,
            pool,
            uplink,
            sequences: vec![0; usize::from(template.flows())],
            template,
            settings,
            flow: 0,
            burst: Burst::new(),
            handed: 0,
            late: 0,
            skipped: 0,
            kicks: KickCounts::default(),
            rtt,
        })
    }

    /// Sends until a limit is reached, waits for what is still out, and reports.
    ///
    /// # Errors
    /// Those of waiting for the socket.
    pub fn run(mut self, stop: &Stop) -> Result<Outcome<SendReport>, Error> {
        let report = self.again(self.settings.rate, self.settings.limits.clone(), stop)?;
        Ok(Outcome { report, failure: None })
    }

    /// The same over a socket that stays open: each time everything is counted from nothing.
    ///
    /// # Errors
    /// Those of waiting for the socket.
    pub fn again(&mut self, rate: Rate, limits: Limits, stop: &Stop) -> Result<SendReport, Error> {
        (self.settings.rate, self.settings.limits) = (rate, limits);
        self.burst.drain().for_each(|frame| self.pool.put(frame));
        self.sequences.fill(0);
        (self.flow, self.handed, self.late, self.skipped) = (0, 0, 0, 0);
        self.kicks = KickCounts::default();
        if let Some(rtt) = &mut self.rtt {
            *rtt = Rtt::new(&self.settings)?;
        }
        if self.settings.wait == SendWait::Block {
            // Wake-ups to the microsecond; where that is not allowed they come 50 µs late.
            let _ = rustix::thread::set_current_timer_slack(std::num::NonZeroU64::new(1));
        }
        let start = now_ns();
        let (ended, scheduled) = self.send(start, stop)?;
        let end = self.settle(ended)?.max(scheduled);
        let uncompleted = self.socket.tx_outstanding() as u64;
        let sent = self.handed.saturating_sub(uncompleted);
        let passed = end.saturating_sub(start);
        Ok(SendReport {
            sent,
            bytes: sent * self.template.len() as u64,
            seconds: clock::seconds(passed),
            offered_pps: clock::per_second(sent, passed),
            late: self.late,
            skipped: self.skipped,
            uncompleted,
            ended,
            uplink: self.uplink.info().clone(),
            kernel: self.uplink.sockets()?.first().copied(),
            kicks: self.kicks,
            rtt: self.rtt.as_ref().map(|rtt| rtt.report(sent)),
        })
    }

    /// Returns why it ended, and when the packet after the last one would have been due.
    fn send(&mut self, start: u64, stop: &Stop) -> Result<(Ended, u64), Error> {
        let mut pacer = Pacer::new(self.settings.rate, start);
        let until = Until::new(&self.settings.limits, start, stop.clone());
        let count = self.settings.limits.count.unwrap_or(u64::MAX);
        let mut progress = Progress::new("sent", start);
        loop {
            let now = now_ns();
            // The next packet's time decides, so that a sender that is late still sends what was due before the end.
            let due = pacer.next_ns(now);
            if let Some(ended) = until.reached(due.min(now), self.handed, None) {
                return Ok((ended, due));
            }
            self.socket.complete(&mut self.pool);
            self.skipped += pacer.skip_overdue(now);
            self.fill(&mut pacer, now, until.end_ns(), count);
            let busy = self.turn(now);
            progress.tick(now, self.handed);
            if !busy {
                let longest = until.sleep_ns(now).min(pacer.next_ns(now).saturating_sub(now));
                self.rest(longest)?;
            }
        }
    }

    /// Builds what is due, as far as there is room for it and its time is before the end.
    #[inline]
    fn fill(&mut self, pacer: &mut Pacer, now: u64, end: u64, count: u64) {
        let owed = count.saturating_sub(self.handed + self.burst.len() as u64);
        let room = self.socket.tx_budget().saturating_sub(self.burst.len()).min(self.burst.room());
        for _ in 0..room.min(usize::try_from(owed).unwrap_or(BURST)) {
            if pacer.next_ns(now) >= end {
                break;
            }
            let Some(mut frame) = self.pool.take() else { break };
            let Some(time) = pacer.take(now) else {
                self.pool.put(frame);
                break;
            };
            self.late += u64::from(now - time > LATE_NS);
            let Some(sequence) = self.sequences.get_mut(self.flow) else { break };
            let packet = Trailer { flow: self.flow as u16, sequence: *sequence, time };
            let written =
                frame.reset(0, self.template.len()).is_some_and(|out| self.template.write(out, packet));
            if !written {
                self.pool.put(frame); // never: the size has been checked against the MTU, and that against the chunk
                break;
            }
            *sequence += 1;
            self.flow = if self.flow + 1 < self.sequences.len() { self.flow + 1 } else { 0 };
            if let Err(frame) = self.burst.push(frame) {
                self.pool.put(frame); // never: there was room
            }
        }
    }

    /// Hands frames to the kernel and looks for answers. False if there was nothing to do.
    #[inline]
    fn turn(&mut self, now: u64) -> bool {
        let handed =
            if self.burst.is_empty() { 0 } else { self.socket.transmit(&mut self.pool, &mut self.burst) };
        self.handed += handed as u64;
        self.kicks.add(self.socket.kick(now));
        let heard = self.rtt.as_mut().map_or(0, |rtt| rtt.receive(&mut self.socket, &mut self.pool));
        handed + heard > 0
    }

    /// After the last packet: waits for completions, and for answers. Returns when the last completion was seen.
    fn settle(&mut self, ended: Ended) -> Result<u64, Error> {
        let begun = now_ns();
        let patience = |usual| begun + if ended == Ended::Signal { HURRY_NS } else { usual };
        let (completed_by, answered_by) = (patience(COMPLETION_PATIENCE_NS), patience(ANSWER_PATIENCE_NS));
        let mut completed_at = begun;
        loop {
            let now = now_ns();
            if self.socket.complete(&mut self.pool) > 0 {
                completed_at = now;
            }
            let busy = self.turn(now);
            let out = self.socket.tx_outstanding() + self.burst.len();
            let missing = self.rtt.as_ref().is_some_and(|rtt| rtt.distinct() < self.handed);
            if (out == 0 || now >= completed_by) && (!missing || now >= answered_by) {
                return Ok(completed_at);
            }
            if !busy {
                self.rest(MILLISECOND)?;
            }
        }
    }

    /// Nothing to do for `longest_ns`, unless an answer comes.
    fn rest(&mut self, longest_ns: u64) -> Result<(), Error> {
        match self.settings.wait {
            SendWait::Poll => std::hint::spin_loop(),
            SendWait::Yield => std::thread::yield_now(),
            SendWait::Block if longest_ns < NAP_MIN_NS => std::hint::spin_loop(),
            SendWait::Block => self.sleep(longest_ns)?,
        }
        Ok(())
    }

    fn sleep(&self, longest_ns: u64) -> Result<(), Error> {
        // Frames that are out come home without a sign, so they are looked for.
        let most = if self.socket.tx_outstanding() > 0 { MILLISECOND } else { SLEEP_MAX.as_nanos() as u64 };
        let timeout = Timespec::try_from(Duration::from_nanos(longest_ns.min(most))).ok();
        let events = if self.rtt.is_some() { PollFlags::IN } else { PollFlags::empty() };
        match poll(&mut [PollFd::new(&self.socket, events)], timeout.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
            Err(errno) => {
                Err(Error::System { what: "waiting for the AF_XDP socket".into(), source: errno.into() })
            }
        }
    }
}

impl SendSettings {
    /// The frames, sent from this Ethernet address.
    fn template(&self, source_mac: MacAddr) -> Result<Template, Error> {
        let outer = OuterFields {
            destination_mac: self.next_hop,
            source_mac,
            source: self.local,
            destination: self.remote,
            port: self.port,
            ttl: 64,
        };
        Template::new(&self.inner, Some(&Vxlan { outer, vni: self.vni }))
            .ok_or_else(|| Error::Arguments("--size or --flows is out of range".into()))
    }
}
