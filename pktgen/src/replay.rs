//! A capture file that is sent again: [`Capture`] reads pcap and pcapng into memory, up to a limit, and [`Replay`] sends what
//! it holds, at the recorded pace or at a rate. A replay leaves nothing out: what is late is sent late, and counted as such.
//!
//! It is read before the first packet leaves, since a disk's pauses would show in the pace.

use std::fmt;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use pcap_parser::traits::{PcapNGPacketBlock, PcapReaderIterator};
use pcap_parser::{Block, Linktype, PcapBlockOwned, PcapError, create_reader};
use peregrine_dataplane::types::Vni;
use peregrine_dataplane::wire::flow::flow_hash;
use peregrine_dataplane::wire::outer::{OVERHEAD_IPV4, OuterFields, OuterTemplate};
use serde::Serialize;

use crate::clock::SECOND;
use crate::error::Error;
use crate::pacer::{Arrivals, LAG_MAX_NS, Pacer, Rate};
use crate::profile::SECONDS_MAX;
use crate::rng::Rng;
use crate::send::wire::{Load, Written};
use crate::template::outer_port;

/// What is kept of a file, unless another limit is given.
pub const LIMIT_MIB: u64 = 1024;
/// The longest block of a file that is read.
const BLOCK_BYTES_MAX: usize = 4 << 20;
/// What a packet costs in memory beside its bytes.
const PACKET_COST: u64 = size_of::<Recorded>() as u64;

/// At which pace.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Pace {
    /// As recorded, so many times as fast.
    Recorded(f64),
    /// At a rate.
    Rate(Rate, Arrivals),
}

/// `recorded`, or how many times as fast.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Factor(pub f64);

impl FromStr for Factor {
    type Err = String;

    fn from_str(text: &str) -> Result<Factor, String> {
        if text == "recorded" {
            return Ok(Factor(1.0));
        }
        let factor = text.parse::<f64>().ok().filter(|factor| (0.001..=1000.0).contains(factor));
        factor
            .map(Factor)
            .ok_or_else(|| format!("'{text}': 'recorded', or how many times as fast: 0.001 to 1000"))
    }
}

/// What is to be replayed.
#[derive(Clone, PartialEq, Debug)]
pub struct ReplaySettings {
    /// The capture file.
    pub file: PathBuf,
    /// At which pace.
    pub pace: Pace,
    /// How often; `u64::MAX`: for ever.
    pub loops: u64,
    /// Take what can be read of a file that is cut or too large.
    pub partial: bool,
    /// Keep at most so many MiB of it.
    pub limit_mib: u64,
    /// Wrap the frames for this network.
    pub vni: Option<Vni>,
}

/// What a file held, for the report.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct ReplayReport {
    /// The file.
    pub file: PathBuf,
    /// How often its packets were to be sent; `None`: until something else ended it.
    pub loops: Option<u64>,
    /// Packets that can be sent.
    pub packets: u64,
    /// Their bytes.
    pub bytes: u64,
    /// From the first packet to the last one, as recorded.
    pub seconds: f64,
    /// Packets left out because they are too long for the wire.
    pub too_long: u64,
    /// Packets left out because they are shorter than an Ethernet header.
    pub too_short: u64,
    /// Packets of which only a part was recorded; that part is sent.
    pub snapped: u64,
    /// Packets recorded with a time before their predecessor's; they leave together with it.
    pub backwards: u64,
    /// Why the file was not read to its end, if it was not.
    pub partial: Option<String>,
}

#[derive(Clone, Copy, Debug)]
struct Recorded {
    start: usize,
    len: u32,
    hash: u32,
    /// After the first packet.
    offset_ns: u64,
}

/// The packets of a file.
#[derive(Debug)]
pub struct Capture {
    bytes: Vec<u8>,
    packets: Vec<Recorded>,
    first_ns: Option<i128>,
    last_offset_ns: u64,
    len_max: usize,
    report: ReplayReport,
}

/// Why reading stopped before the end.
enum Stopped {
    /// What was read is whole.
    Early(String),
    /// Nothing of it can be used.
    Useless(String),
}

impl Capture {
    /// Reads a file. Packets longer than `len_max` are left out.
    ///
    /// # Errors
    /// A file that cannot be read, that has no packets, or that is cut or too large, unless [`ReplaySettings::partial`] allows it.
    pub fn read(settings: &ReplaySettings, len_max: usize) -> Result<Capture, Error> {
        let name = settings.file.display();
        let refused = |why: String| Error::Replay { what: format!("--replay {name}: {why}") };
        let file = File::open(&settings.file).map_err(|why| refused(why.to_string()))?;
        let mut capture = Capture::empty(settings, len_max);
        match capture.fill(file, settings.limit_mib << 20) {
            Ok(()) => {}
            Err(Stopped::Useless(why)) => return Err(refused(why)),
            Err(Stopped::Early(why)) if settings.partial => capture.report.partial = Some(why),
            Err(Stopped::Early(why)) => {
                let read = capture.packets.len();
                let way_out = format!("{why}: the {read} packets before can be sent with --replay-partial");
                return Err(refused(way_out));
            }
        }
        if capture.packets.is_empty() {
            let ReplayReport { too_long, too_short, .. } = capture.report;
            let why = format!(
                "no packet to send: {too_long} are longer than {len_max} bytes, {too_short} too short"
            );
            return Err(refused(why));
        }
        capture.check_pace(settings.pace).map_err(refused)?;
        capture.report.packets = capture.packets.len() as u64;
        capture.report.bytes = capture.bytes.len() as u64;
        capture.report.seconds = crate::clock::seconds(capture.last_offset_ns);
        Ok(capture)
    }

    /// Time stamps that are nonsense would make a run that ends in years.
    fn check_pace(&self, pace: Pace) -> Result<(), String> {
        let Pace::Recorded(factor) = pace else { return Ok(()) };
        let seconds = crate::clock::seconds(self.last_offset_ns) / factor;
        if seconds <= SECONDS_MAX {
            return Ok(());
        }
        Err(format!(
            "takes {seconds:.0} s at this pace, and {SECONDS_MAX} at most are sent: give a larger --pace, or --rate, which uses no \
             time stamps"
        ))
    }

    fn empty(settings: &ReplaySettings, len_max: usize) -> Capture {
        Capture {
            bytes: Vec::new(),
            packets: Vec::new(),
            first_ns: None,
            last_offset_ns: 0,
            len_max,
            report: ReplayReport {
                file: settings.file.clone(),
                loops: (settings.loops < u64::MAX).then_some(settings.loops),
                packets: 0,
                bytes: 0,
                seconds: 0.0,
                too_long: 0,
                too_short: 0,
                snapped: 0,
                backwards: 0,
                partial: None,
            },
        }
    }

    fn fill(&mut self, file: File, limit: u64) -> Result<(), Stopped> {
        let useless = |why| Stopped::Useless(format!("neither pcap nor pcapng ({})", said(why)));
        let mut reader = create_reader(1 << 16, file).map_err(useless)?;
        let mut format = Format::default();
        loop {
            match reader.next() {
                Ok((length, block)) => {
                    if let Some(packet) = format.packet(block)? {
                        self.add(packet, limit)?;
                    }
                    reader.consume(length);
                }
                Err(PcapError::Eof) => return Ok(()),
                Err(PcapError::Incomplete(_)) => refill(reader.as_mut(), self.packets.len())?,
                Err(PcapError::BufferTooSmall) => self.grow(reader.as_mut())?,
                Err(why) => {
                    let number = self.packets.len() + 1;
                    return Err(Stopped::Early(format!(
                        "ends or is damaged in packet {number} ({})",
                        said(why)
                    )));
                }
            }
        }
    }

    fn grow(&self, reader: &mut dyn PcapReaderIterator) -> Result<(), Stopped> {
        let size = reader.data().len().saturating_mul(2).max(1 << 17);
        if size > BLOCK_BYTES_MAX || !reader.grow(size) {
            let number = self.packets.len() + 1;
            return Err(Stopped::Early(format!(
                "packet {number} says it has over {} bytes",
                BLOCK_BYTES_MAX / 2
            )));
        }
        refill(reader, self.packets.len())
    }

    fn add(&mut self, packet: Packet<'_>, limit: u64) -> Result<(), Stopped> {
        let bytes = packet.bytes;
        let first = *self.first_ns.get_or_insert(packet.time_ns);
        let offset = u64::try_from((packet.time_ns - first).max(0)).unwrap_or(u64::MAX);
        self.report.backwards += u64::from(offset < self.last_offset_ns);
        self.last_offset_ns = self.last_offset_ns.max(offset);
        self.report.snapped += u64::from(packet.snapped);
        if bytes.len() > self.len_max {
            self.report.too_long += 1;
            return Ok(());
        }
        if bytes.len() < 14 {
            self.report.too_short += 1;
            return Ok(());
        }
        let used = self.bytes.len() as u64 + self.packets.len() as u64 * PACKET_COST;
        if used + bytes.len() as u64 + PACKET_COST > limit {
            let (mib, count) = (limit >> 20, self.packets.len());
            return Err(Stopped::Early(format!(
                "holds more than {mib} MiB, which end after packet {count}: raise --replay-limit if there is memory"
            )));
        }
        let (start, len) = (self.bytes.len(), bytes.len() as u32);
        self.packets.push(Recorded { start, len, hash: flow_hash(bytes), offset_ns: self.last_offset_ns });
        self.bytes.extend_from_slice(bytes);
        Ok(())
    }

    /// What the file held.
    pub fn report(&self) -> &ReplayReport {
        &self.report
    }

    /// How many packets there are.
    #[allow(clippy::len_without_is_empty, reason = "a capture is never empty")]
    pub fn len(&self) -> u64 {
        self.packets.len() as u64
    }

    /// How long a loop takes, with the pause after it.
    fn loop_ns(&self, pause_ns: u64, factor: f64) -> u64 {
        (self.last_offset_ns.saturating_add(pause_ns) as f64 / factor) as u64
    }

    /// The longest packet.
    pub fn longest(&self) -> usize {
        self.packets.iter().map(|packet| packet.len as usize).max().unwrap_or(0)
    }
}

fn refill(reader: &mut dyn PcapReaderIterator, packets: usize) -> Result<(), Stopped> {
    let number = packets + 1;
    if reader.reader_exhausted() {
        return Err(Stopped::Early(format!("ends in the middle of packet {number}")));
    }
    reader
        .refill()
        .map_err(|why| Stopped::Early(format!("cannot be read at packet {number} ({})", said(why))))
}

/// Without the bytes that an error carries.
fn said(why: PcapError<&[u8]>) -> &'static str {
    match why {
        PcapError::Eof | PcapError::UnexpectedEof | PcapError::Incomplete(_) => "the file ends there",
        PcapError::BufferTooSmall => "a block is too long",
        PcapError::ReadError => "reading fails",
        PcapError::HeaderNotRecognized => "unknown header",
        PcapError::NomError(..) | PcapError::OwnedNomError(..) => "not the format's bytes",
    }
}

struct Packet<'a> {
    bytes: &'a [u8],
    time_ns: i128,
    snapped: bool,
}

/// What a file has said of the packets that follow.
#[derive(Default)]
struct Format {
    /// Of pcap: nanoseconds in a unit of the time stamp's second half.
    unit_ns: u32,
    /// Of the pcapng section.
    interfaces: Vec<Interface>,
}

#[derive(Clone, Copy)]
struct Interface {
    /// The time stamp's units in a second, and seconds to be added.
    units: u64,
    offset: i64,
}

impl Format {
    fn packet<'a>(&mut self, block: PcapBlockOwned<'a>) -> Result<Option<Packet<'a>>, Stopped> {
        match block {
            PcapBlockOwned::LegacyHeader(header) => {
                ethernet(header.network)?;
                self.unit_ns = if header.is_nanosecond_precision() { 1 } else { 1000 };
                Ok(None)
            }
            PcapBlockOwned::Legacy(packet) => {
                let fraction = i128::from(packet.ts_usec) * i128::from(self.unit_ns);
                Ok(Some(Packet {
                    bytes: packet.data,
                    time_ns: i128::from(packet.ts_sec) * i128::from(SECOND) + fraction,
                    snapped: packet.caplen < packet.origlen,
                }))
            }
            PcapBlockOwned::NG(Block::SectionHeader(_)) => {
                self.interfaces.clear();
                Ok(None)
            }
            PcapBlockOwned::NG(Block::InterfaceDescription(interface)) => {
                ethernet(interface.linktype)?;
                let units = units(interface.if_tsresol).ok_or_else(|| {
                    Stopped::Useless(format!("unknown time resolution {:#04x}", interface.if_tsresol))
                })?;
                self.interfaces.push(Interface { units, offset: interface.if_tsoffset });
                Ok(None)
            }
            PcapBlockOwned::NG(Block::EnhancedPacket(packet)) => {
                let known = usize::try_from(packet.if_id).ok().and_then(|id| self.interfaces.get(id));
                let interface = known.copied().ok_or_else(|| {
                    Stopped::Early(format!(
                        "a packet names interface {}, which is not described",
                        packet.if_id
                    ))
                })?;
                let stamp = u64::from(packet.ts_high) << 32 | u64::from(packet.ts_low);
                let ns = i128::from(stamp) * i128::from(SECOND) / i128::from(interface.units);
                let bytes = packet.data.get(..packet.caplen as usize).unwrap_or(packet.data);
                let snapped = packet.truncated() || packet.caplen < packet.origlen;
                let time_ns = ns + i128::from(interface.offset) * i128::from(SECOND);
                Ok(Some(Packet { bytes, time_ns, snapped }))
            }
            PcapBlockOwned::NG(Block::SimplePacket(_)) => Err(Stopped::Useless(
                "has packets without a time (Simple Packet Blocks): convert it with `editcap -F pcap`".into(),
            )),
            PcapBlockOwned::NG(_) => Ok(None),
        }
    }
}

fn ethernet(linktype: Linktype) -> Result<(), Stopped> {
    if linktype == Linktype::ETHERNET {
        return Ok(());
    }
    let Linktype(number) = linktype;
    Err(Stopped::Useless(format!("link type {number}: only Ethernet (1) can be sent")))
}

/// if_tsresol of the pcapng specification: a power of 10, or of 2 if the highest bit is set.
fn units(resolution: u8) -> Option<u64> {
    match resolution {
        0..0x80 => 10u64.checked_pow(u32::from(resolution)),
        _ => 1u64.checked_shl(u32::from(resolution & 0x7f)),
    }
}

/// Sends a capture.
#[derive(Debug)]
pub struct Replay<'a> {
    capture: &'a Capture,
    outer: Option<(OuterTemplate, Vni)>,
    loops_left: u64,
    /// The next packet, and when it leaves.
    at: usize,
    due_ns: u64,
    pace: Paced,
}

#[derive(Debug)]
enum Paced {
    Recorded {
        factor: f64,
        /// When this loop began.
        begun_ns: u64,
        /// From the last packet of a loop to the first of the next.
        pause_ns: u64,
    },
    Rate(Pacer),
}

impl<'a> Replay<'a> {
    /// The first packet leaves at `start_ns`.
    pub fn new(
        capture: &'a Capture,
        settings: &ReplaySettings,
        outer: Option<&OuterFields>,
        start_ns: u64,
    ) -> Replay<'a> {
        let overhead = if outer.is_some() { OVERHEAD_IPV4 } else { 0 };
        let mean = capture.bytes.len() as f64 / capture.packets.len().max(1) as f64 + overhead as f64;
        let pace = match settings.pace {
            Pace::Recorded(factor) => {
                // The mean distance; a lone packet leaves once a millisecond.
                let gaps = (capture.packets.len() as u64).saturating_sub(1);
                let pause_ns = capture.last_offset_ns.checked_div(gaps).unwrap_or(SECOND / 1000);
                Paced::Recorded { factor, begun_ns: start_ns, pause_ns }
            }
            Pace::Rate(rate, arrivals) => {
                Paced::Rate(Pacer::with(rate, arrivals, mean, Rng::new(1, 0), start_ns))
            }
        };
        let outer = outer.map(OuterTemplate::new).zip(settings.vni);
        Replay { capture, outer, loops_left: settings.loops, at: 0, due_ns: start_ns, pace }
    }

    /// Goes on to the packet after this one.
    #[inline]
    fn advance(&mut self) {
        self.at += 1;
        let begins = self.at >= self.capture.packets.len();
        if begins {
            self.at = 0;
            self.loops_left = self.loops_left.saturating_sub(1);
        }
        if let Paced::Recorded { factor, begun_ns, pause_ns } = &mut self.pace {
            if begins {
                *begun_ns = begun_ns.saturating_add(self.capture.loop_ns(*pause_ns, *factor));
            }
            let offset = self.capture.packets.get(self.at).map_or(0, |packet| packet.offset_ns);
            self.due_ns = begun_ns.saturating_add((offset as f64 / *factor) as u64);
        }
    }
}

impl Load for Replay<'_> {
    #[inline]
    fn next_ns(&self, now: u64) -> u64 {
        match &self.pace {
            _ if self.loops_left == 0 => u64::MAX,
            Paced::Recorded { .. } => self.due_ns,
            Paced::Rate(pacer) => pacer.next_ns(now),
        }
    }

    fn slot_end_ns(&self, now: u64) -> u64 {
        match &self.pace {
            Paced::Rate(pacer) if self.loops_left > 0 => pacer.slot_end_ns(now),
            _ => now,
        }
    }

    #[inline]
    fn next_len(&self) -> usize {
        let overhead = if self.outer.is_some() { OVERHEAD_IPV4 } else { 0 };
        self.capture.packets.get(self.at).map_or(0, |packet| packet.len as usize) + overhead
    }

    #[inline]
    fn write(&mut self, now: u64, out: &mut [u8]) -> Option<Written> {
        let packet = *self.capture.packets.get(self.at)?;
        let bytes = self.capture.bytes.get(packet.start..packet.start + packet.len as usize)?;
        let due = match &mut self.pace {
            Paced::Recorded { .. } => self.due_ns,
            Paced::Rate(pacer) => pacer.take(now, out.len())?,
        };
        match &self.outer {
            None => out.copy_from_slice(bytes),
            Some((outer, vni)) => {
                let (head, inner) = out.split_first_chunk_mut::<OVERHEAD_IPV4>()?;
                outer.write(head, packet.len as u16, *vni, outer_port(packet.hash));
                inner.copy_from_slice(bytes);
            }
        }
        self.advance();
        Some(Written { due, class: 0 })
    }

    #[inline]
    fn skip_overdue(&mut self, _now: u64) -> u64 {
        0
    }

    fn due_before(&mut self, end_ns: u64) -> u64 {
        let (len, loops) = (self.capture.len(), std::mem::take(&mut self.loops_left));
        let owed = len.saturating_mul(loops).saturating_sub(self.at as u64);
        let due = match &mut self.pace {
            _ if loops == 0 => 0,
            Paced::Rate(pacer) => {
                // Most of them at once: it may be that nothing was taken for hours.
                let most = pacer.skip_overdue(end_ns.saturating_add(LAG_MAX_NS));
                most + pacer.take_before(end_ns, self.capture.bytes.len() / self.capture.packets.len().max(1))
            }
            Paced::Recorded { factor, begun_ns, pause_ns } => {
                let loop_ns = self.capture.loop_ns(*pause_ns, *factor);
                let since = end_ns.saturating_sub(*begun_ns);
                // What takes no time is all due, or, sent for ever, as fast as it can be: then nothing is owed.
                let Some(whole) = since.checked_div(loop_ns) else {
                    return if loops == u64::MAX { 0 } else { owed };
                };
                let begun =
                    |packet: &&Recorded| ((packet.offset_ns as f64 / *factor) as u64) < since % loop_ns;
                let of_last = self.capture.packets.iter().filter(begun).count() as u64;
                (whole.saturating_mul(len) + of_last).saturating_sub(self.at as u64)
            }
        };
        due.min(owed)
    }
}

impl fmt::Display for Pace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Pace::Recorded(factor) => write!(f, "recorded, {factor} times as fast"),
            Pace::Rate(rate, arrivals) => write!(f, "{rate} {arrivals}"),
        }
    }
}

/// For settings.
impl ReplaySettings {
    /// A file as it is, once, at its own pace.
    pub fn new(file: &Path) -> ReplaySettings {
        ReplaySettings {
            file: file.to_owned(),
            pace: Pace::Recorded(1.0),
            loops: 1,
            partial: false,
            limit_mib: LIMIT_MIB,
            vni: None,
        }
    }
}

#[cfg(test)]
mod tests;
