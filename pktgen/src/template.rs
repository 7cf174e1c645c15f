//! A frame prepared once and finished for each packet: copied, then flow, sequence number and time put in, and the
//! UDP checksum brought up to date from a prepared sum (RFC 1624's idea: only what changes is summed again).
//!
//! ```text
//! | Ethernet 14 | IPv4 20 | UDP 8 | VXLAN 8 || Ethernet 14 | IPv4 20 | UDP 8 | filling | trailer 18 |
//! |-------------- outer, with `Vxlan` -------||-------------- inner, `size` bytes -------------------|
//! ```
//! The flow chooses the inner source port, and the outer one by the inner flow's hash (RFC 7348 §4.1).

use std::net::SocketAddrV4;

use peregrine_dataplane::types::{MacAddr, Vni};
use peregrine_dataplane::wire::checksum::Sum;
use peregrine_dataplane::wire::flow::flow_hash;
use peregrine_dataplane::wire::ip::udp_pseudo_header;
use peregrine_dataplane::wire::outer::{OVERHEAD_IPV4, OuterFields, OuterTemplate};

use crate::trailer::{self, Trailer};

/// Bytes of the inner headers: Ethernet, IPv4, UDP.
pub const INNER_HEADERS: usize = 14 + 20 + 8;
/// The smallest inner frame, without FCS.
pub const SIZE_MIN: usize = INNER_HEADERS + trailer::LEN;
/// The largest: what the lengths in its headers can say.
pub const SIZE_MAX: usize = 14 + u16::MAX as usize - OVERHEAD_IPV4;

/// Outer source ports (RFC 7348 §4.1).
const OUTER_PORTS: std::ops::RangeInclusive<u16> = 49152..=65535;

/// The inner packets of all flows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Inner {
    /// Ethernet source.
    pub source_mac: MacAddr,
    /// Ethernet destination.
    pub destination_mac: MacAddr,
    /// IPv4 source, and UDP source port of flow 0; flow n has the port plus n.
    pub source: SocketAddrV4,
    /// IPv4 and UDP destination.
    pub destination: SocketAddrV4,
    /// Bytes of the frame, without FCS.
    pub size: usize,
    /// How many flows.
    pub flows: u16,
}

/// What the frames are wrapped in.
#[derive(Clone, Copy, Debug)]
pub struct Vxlan {
    /// Addresses and port of the outer headers.
    pub outer: OuterFields,
    /// The network.
    pub vni: Vni,
}

/// What differs from flow to flow.
#[derive(Clone, Copy, Debug)]
struct Patch {
    inner_port: [u8; 2],
    outer_port: [u8; 2],
    /// Folded sum over pseudo header, UDP header and payload, but for sequence and time.
    sum: u16,
}

/// The frames of one sender.
#[derive(Debug)]
pub struct Template {
    bytes: Vec<u8>,
    inner_at: usize,
    patches: Vec<Patch>,
    /// The trailer begins at an odd place of what the checksum covers, so its words are turned round there.
    odd: bool,
}

impl Template {
    /// `None` if the size is not in [`SIZE_MIN`]`..=`[`SIZE_MAX`], there are no flows, or the ports do not suffice.
    pub fn new(inner: &Inner, vxlan: Option<&Vxlan>) -> Option<Template> {
        let last_port = inner.source.port().checked_add(inner.flows.checked_sub(1)?);
        if !(SIZE_MIN..=SIZE_MAX).contains(&inner.size) || last_port.is_none() {
            return None;
        }
        let frame = inner_frame(inner)?;
        let patches = (0..inner.flows).map(|flow| patch(inner, &frame, flow)).collect::<Option<Vec<_>>>()?;
        let mut bytes = Vec::with_capacity(OVERHEAD_IPV4 + inner.size);
        if let Some(vxlan) = vxlan {
            let mut head = [0; OVERHEAD_IPV4];
            OuterTemplate::new(&vxlan.outer).write(&mut head, u16::try_from(inner.size).ok()?, vxlan.vni, 0);
            bytes.extend(head);
        }
        let inner_at = bytes.len();
        bytes.extend(frame);
        Some(Template { bytes, inner_at, patches, odd: !inner.size.is_multiple_of(2) })
    }

    /// Bytes of each frame, outer headers included.
    #[allow(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How many flows.
    pub fn flows(&self) -> u16 {
        self.patches.len() as u16
    }

    /// Writes the frame of a packet. False, and `out` is not to be used, if it is not [`len`](Self::len) bytes or there
    /// is no such flow.
    #[inline]
    #[must_use]
    pub fn write(&self, out: &mut [u8], packet: Trailer) -> bool {
        let Some(patch) = self.patches.get(usize::from(packet.flow)) else { return false };
        if out.len() != self.bytes.len() {
            return false;
        }
        out.copy_from_slice(&self.bytes);
        if self.inner_at == OVERHEAD_IPV4 {
            out[UDP_AT..UDP_AT + 2].copy_from_slice(&patch.outer_port);
        }
        let bytes = packet.encode();
        let changed = Sum::ZERO.bytes(&bytes[SEQUENCE_AT..]).fold();
        let changed = if self.odd { changed.swap_bytes() } else { changed };
        let checksum = transmitted(Sum::ZERO.word(patch.sum).word(changed).checksum());
        let udp_at = self.inner_at + UDP_AT;
        out[udp_at..udp_at + 2].copy_from_slice(&patch.inner_port);
        out[udp_at + 6..udp_at + 8].copy_from_slice(&checksum.to_be_bytes());
        let trailer_at = out.len() - trailer::LEN;
        out[trailer_at..].copy_from_slice(&bytes);
        true
    }
}

/// Where the UDP header begins in an Ethernet frame with IPv4 without options.
const UDP_AT: usize = 14 + 20;
/// Where the fields that differ from packet to packet begin in a trailer.
const SEQUENCE_AT: usize = 6;

/// The frame of flow 0 with an empty UDP checksum and no trailer.
fn inner_frame(inner: &Inner) -> Option<Vec<u8>> {
    let (ip_len, udp_len) = (u16::try_from(inner.size - 14).ok()?, u16::try_from(inner.size - UDP_AT).ok()?);
    let mut frame = Vec::with_capacity(inner.size);
    frame.extend(inner.destination_mac.0);
    frame.extend(inner.source_mac.0);
    frame.extend([0x08, 0x00]);
    let [high, low] = ip_len.to_be_bytes();
    // Identification 0 with DF: an atomic datagram (RFC 6864 §4.1). TTL 64, UDP.
    let mut ip = [0x45, 0, high, low, 0, 0, 0x40, 0, 64, 17, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    ip[12..16].copy_from_slice(&inner.source.ip().octets());
    ip[16..].copy_from_slice(&inner.destination.ip().octets());
    let checksum = Sum::ZERO.bytes(&ip).checksum();
    ip[10..12].copy_from_slice(&checksum.to_be_bytes());
    frame.extend(ip);
    frame.extend(inner.source.port().to_be_bytes());
    frame.extend(inner.destination.port().to_be_bytes());
    frame.extend(udp_len.to_be_bytes());
    frame.resize(inner.size, 0);
    Some(frame)
}

fn patch(inner: &Inner, frame: &[u8], flow: u16) -> Option<Patch> {
    let mut frame = frame.to_vec();
    let inner_port = inner.source.port().checked_add(flow)?.to_be_bytes();
    frame.get_mut(UDP_AT..UDP_AT + 2)?.copy_from_slice(&inner_port);
    let trailer_at = frame.len().checked_sub(trailer::LEN)?;
    frame.get_mut(trailer_at..)?.copy_from_slice(&Trailer { flow, sequence: 0, time: 0 }.encode());
    let udp_len = u16::try_from(frame.len() - UDP_AT).ok()?;
    let pseudo = udp_pseudo_header(*inner.source.ip(), *inner.destination.ip(), udp_len);
    let sum = pseudo.bytes(frame.get(UDP_AT..)?).fold();
    Some(Patch { inner_port, outer_port: outer_port(flow_hash(&frame)).to_be_bytes(), sum })
}

fn outer_port(hash: u32) -> u16 {
    let count = u64::from(OUTER_PORTS.end() - OUTER_PORTS.start()) + 1;
    OUTER_PORTS.start() + ((u64::from(hash) * count) >> 32) as u16
}

/// RFC 768: a checksum of zero is sent as all ones, as zero means that there is none.
#[inline]
fn transmitted(checksum: u16) -> u16 {
    if checksum == 0 { 0xffff } else { checksum }
}

#[cfg(test)]
mod tests;
