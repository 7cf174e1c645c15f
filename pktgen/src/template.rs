//! A frame prepared once per flow and finished for each packet: the smallest frame copied, then lengths, flow, sequence number
//! and time put in, and the checksums brought up to date from prepared sums (RFC 1624's idea: only what changes is summed again).
//!
//! ```text
//! | Ethernet 14 | IPv4 20 | UDP 8 | VXLAN 8 || Ethernet 14 | IPv4 20 | UDP 8 | filling | trailer 18 |
//! |-------------- outer, with VXLAN ---------||-------------- inner, `size` bytes -------------------|
//! ```
//! Inner IPv6 has 40 bytes in the place of IPv4's 20 (`ipv6`). The outer source port comes from the inner flow's hash (RFC 7348 §4.1); the outer DSCP is the inner one.

mod ipv6;

use std::net::{SocketAddr, SocketAddrV4};

use peregrine_dataplane::types::{MacAddr, Vni};
use peregrine_dataplane::wire::checksum::Sum;
use peregrine_dataplane::wire::flow::flow_hash;
use peregrine_dataplane::wire::ip::udp_pseudo_header;
use peregrine_dataplane::wire::outer::{OVERHEAD_IPV4, OuterFields, OuterTemplate};

use crate::trailer::{self, Trailer};

pub use ipv6::SIZE_MIN as SIZE_MIN_IPV6;

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

/// The headers of one flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    /// Ethernet source.
    pub source_mac: MacAddr,
    /// Ethernet destination.
    pub destination_mac: MacAddr,
    /// IP and UDP source.
    pub source: SocketAddr,
    /// IP and UDP destination, of the same version.
    pub destination: SocketAddr,
    /// Differentiated services code point, 6 bits.
    pub dscp: u8,
    /// The network, if the frames are wrapped.
    pub vni: Option<Vni>,
}

/// The smallest frame of a flow, its trailer, lengths and checksums zero, and the folded sums of what the checksums cover.
#[derive(Clone, Debug)]
#[repr(align(64))]
struct Head {
    outer: [u8; OVERHEAD_IPV4],
    inner: [u8; SIZE_MIN],
    outer_ip: u16,
    inner_ip: u16,
    /// Pseudo header and UDP header.
    udp: u16,
}

/// The frames of one sender.
#[derive(Debug)]
pub struct Template {
    heads: Vec<Head>,
    /// If the flows are over IPv6; then there are no other heads.
    ipv6: Vec<ipv6::Head>,
    wrapped: bool,
    /// Of a sender whose frames are all of one size.
    len: usize,
}

impl Template {
    /// All flows alike but for their source port, all frames of one size. `None` if the size is not in
    /// [`SIZE_MIN`]`..=`[`SIZE_MAX`], there are no flows, or the ports do not suffice.
    pub fn new(inner: &Inner, vxlan: Option<&Vxlan>) -> Option<Template> {
        inner.source.port().checked_add(inner.flows.checked_sub(1)?)?;
        if !(SIZE_MIN..=SIZE_MAX).contains(&inner.size) {
            return None;
        }
        let flows = (0..inner.flows).map(|flow| Flow {
            source_mac: inner.source_mac,
            destination_mac: inner.destination_mac,
            source: SocketAddrV4::new(*inner.source.ip(), inner.source.port().saturating_add(flow)).into(),
            destination: inner.destination.into(),
            dscp: 0,
            vni: vxlan.map(|vxlan| vxlan.vni),
        });
        let template = Template::of_flows(flows, vxlan.map(|vxlan| &vxlan.outer));
        Some(Template { len: template.overhead() + inner.size, ..template })
    }

    /// Of these flows, all over one version of IP, the first of which is number 0; wrapped if there are outer headers. Frames of any size.
    pub fn of_flows(flows: impl Iterator<Item = Flow>, outer: Option<&OuterFields>) -> Template {
        let outer_bytes = outer.map(|outer| {
            let mut bytes = [0; OVERHEAD_IPV4];
            OuterTemplate::new(outer).write(&mut bytes, 0, Vni::from_bytes([0; 3]), 0);
            bytes
        });
        let mut template = Template { heads: Vec::new(), ipv6: Vec::new(), wrapped: outer.is_some(), len: 0 };
        for flow in flows {
            match (flow.source, flow.destination) {
                (SocketAddr::V4(source), SocketAddr::V4(destination)) => {
                    template.heads.push(head(&flow, source, destination, outer_bytes));
                }
                (SocketAddr::V6(source), SocketAddr::V6(destination)) => {
                    template.ipv6.push(ipv6::Head::new(&flow, source, destination, outer_bytes));
                }
                _ => {} // never: profiles are checked
            }
        }
        template
    }

    /// Bytes of each frame, outer headers included; 0 if the template was made without a size.
    #[allow(clippy::len_without_is_empty, reason = "a frame is never empty")]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Bytes of the outer headers.
    pub fn overhead(&self) -> usize {
        if self.wrapped { OVERHEAD_IPV4 } else { 0 }
    }

    /// How many flows.
    pub fn flows(&self) -> usize {
        self.heads.len().max(self.ipv6.len())
    }

    /// Writes the frame of a packet, as long as `out`. False, and `out` is not to be used, if headers and trailer do not fit
    /// it, the template was made for another length, or there is no such flow.
    #[inline]
    #[must_use]
    pub fn write(&self, out: &mut [u8], packet: Trailer) -> bool {
        let Some(head) = self.heads.get(usize::from(packet.flow)) else {
            let head = self.ipv6.get(usize::from(packet.flow));
            return head.is_some_and(|head| head.write(out, packet, self.wrapped));
        };
        if self.len != 0 && out.len() != self.len {
            return false;
        }
        let mut inner = out;
        if self.wrapped {
            let Some((outer, rest)) = inner.split_first_chunk_mut::<OVERHEAD_IPV4>() else { return false };
            head.write_outer(outer, rest.len() as u16);
            inner = rest;
        }
        head.write_inner(inner, packet)
    }
}

/// Where the IPv4 and the UDP header begin in an Ethernet frame with IPv4 without options.
const IP_AT: usize = 14;
const UDP_AT: usize = IP_AT + 20;
/// The sum of a trailer's magic.
const MAGIC_SUM: u64 = u16::from_be_bytes(trailer::MAGIC) as u64;

impl Head {
    #[inline]
    fn write_outer(&self, out: &mut [u8; OVERHEAD_IPV4], inner_len: u16) {
        let udp_len = inner_len.wrapping_add(16);
        let ip_len = udp_len.wrapping_add(20);
        *out = self.outer;
        out[IP_AT + 2..IP_AT + 4].copy_from_slice(&ip_len.to_be_bytes());
        let checksum = !fold(u64::from(self.outer_ip) + u64::from(ip_len));
        out[IP_AT + 10..IP_AT + 12].copy_from_slice(&checksum.to_be_bytes());
        out[UDP_AT + 4..UDP_AT + 6].copy_from_slice(&udp_len.to_be_bytes());
    }

    #[inline(always)]
    fn write_inner(&self, out: &mut [u8], packet: Trailer) -> bool {
        if out.len() > SIZE_MAX {
            return false;
        }
        let size = out.len() as u16;
        let Some(front) = out.first_chunk_mut::<SIZE_MIN>() else { return false };
        let (ip_len, udp_len) = (size - IP_AT as u16, size - UDP_AT as u16);
        let ip_sum = !fold(u64::from(self.inner_ip) + u64::from(ip_len));
        let changing = trailer_sum(packet);
        // A trailer that begins at an odd place of what the checksum covers has its words turned round there.
        let changing = if size & 1 == 0 { changing } else { fold(changing).swap_bytes().into() };
        let udp_sum = !fold(u64::from(self.udp) + 2 * u64::from(udp_len) + changing);
        *front = self.inner;
        front[IP_AT + 2..IP_AT + 4].copy_from_slice(&ip_len.to_be_bytes());
        front[IP_AT + 10..IP_AT + 12].copy_from_slice(&ip_sum.to_be_bytes());
        front[UDP_AT + 4..UDP_AT + 6].copy_from_slice(&udp_len.to_be_bytes());
        front[UDP_AT + 6..UDP_AT + 8].copy_from_slice(&transmitted(udp_sum).to_be_bytes());
        // What is filled beyond the smallest frame, if anything.
        if let Some(filling) = out.get_mut(SIZE_MIN..usize::from(size) - trailer::LEN) {
            filling.fill(0);
        }
        if let Some(tail) = out.last_chunk_mut::<{ trailer::LEN }>() {
            *tail = packet.encode();
        }
        true
    }
}

/// The sum of a trailer's words, not folded: as 2^16 counts as 1, a number's words need not be taken apart. Not from its bytes,
/// which have just been written piece by piece: a processor waits for such writes when it reads them back in larger pieces.
#[inline]
fn trailer_sum(packet: Trailer) -> u64 {
    MAGIC_SUM
        + u64::from(packet.run)
        + u64::from(packet.flow)
        + (packet.sequence & trailer::SEQUENCE_MAX)
        + (packet.time & trailer::SEQUENCE_MAX)
}

/// The ones' complement sum of the four 16-bit words of `sum` (RFC 1071 §2): each half is added to the other, carry and all.
#[inline]
const fn fold(sum: u64) -> u16 {
    let sum = (sum.wrapping_add(sum.rotate_left(32)) >> 32) as u32;
    (sum.wrapping_add(sum.rotate_left(16)) >> 16) as u16
}

fn head(
    flow: &Flow,
    source: SocketAddrV4,
    destination: SocketAddrV4,
    outer: Option<[u8; OVERHEAD_IPV4]>,
) -> Head {
    let mut inner = [0; SIZE_MIN];
    inner[..6].copy_from_slice(&flow.destination_mac.0);
    inner[6..12].copy_from_slice(&flow.source_mac.0);
    inner[12..14].copy_from_slice(&[0x08, 0x00]);
    // Identification 0 with DF: an atomic datagram (RFC 6864 §4.1). TTL 64, UDP.
    inner[IP_AT..IP_AT + 12].copy_from_slice(&[0x45, flow.dscp << 2, 0, 0, 0, 0, 0x40, 0, 64, 17, 0, 0]);
    inner[IP_AT + 12..IP_AT + 16].copy_from_slice(&source.ip().octets());
    inner[IP_AT + 16..UDP_AT].copy_from_slice(&destination.ip().octets());
    inner[UDP_AT..UDP_AT + 2].copy_from_slice(&source.port().to_be_bytes());
    inner[UDP_AT + 2..UDP_AT + 4].copy_from_slice(&destination.port().to_be_bytes());
    let pseudo = udp_pseudo_header(*source.ip(), *destination.ip(), 0);
    Head {
        inner_ip: Sum::ZERO.bytes(&inner[IP_AT..UDP_AT]).fold(),
        udp: pseudo.bytes(&inner[UDP_AT..]).fold(),
        inner,
        ..outer_head(flow, &inner, outer)
    }
}

/// The outer headers of a flow, chosen by its inner ones.
fn outer_head(flow: &Flow, inner: &[u8], outer: Option<[u8; OVERHEAD_IPV4]>) -> Head {
    let mut outer = outer.unwrap_or([0; OVERHEAD_IPV4]);
    outer[IP_AT + 1] = flow.dscp << 2;
    outer[IP_AT + 2..IP_AT + 4].fill(0);
    outer[IP_AT + 10..IP_AT + 12].fill(0);
    outer[UDP_AT..UDP_AT + 2].copy_from_slice(&outer_port(flow_hash(inner)).to_be_bytes());
    if let Some(vni) = flow.vni {
        outer[UDP_AT + 12..UDP_AT + 15].copy_from_slice(&vni.to_bytes());
    }
    Head {
        outer_ip: Sum::ZERO.bytes(&outer[IP_AT..UDP_AT]).fold(),
        outer,
        inner: [0; _],
        inner_ip: 0,
        udp: 0,
    }
}

/// The outer source port of a flow with this hash (RFC 7348 §4.1).
pub fn outer_port(hash: u32) -> u16 {
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
