//! The headers that tell an inner flow, found in one walk; and its hash: same for all packets of a flow, spread evenly over flows.
//!
//! The hash chooses the outer UDP source port (RFC 7348 §4.1) and the flow bucket. Over IP it covers addresses, protocol
//! and, unless the packet is a fragment, ports; fragments of one packet therefore stay together. Everything else is
//! hashed by its Ethernet addresses and type. What class a packet belongs to (`classes.rs`) is read from the same walk.

use super::eth::{ETHERTYPE_IPV4, ETHERTYPE_IPV6, ETHERTYPE_QINQ, ETHERTYPE_VLAN, EthHeader};
use super::ip::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP};

/// Hash of the flow that an Ethernet frame belongs to. Any bytes have one.
#[inline]
pub fn flow_hash(frame: &[u8]) -> u32 {
    Headers::read(frame).map_or(0, |headers| headers.flow_hash)
}

/// The headers of a frame, as far as they tell its flow.
#[derive(Clone, Copy, Debug)]
pub struct Headers<'a> {
    /// Hash of the flow.
    pub flow_hash: u32,
    /// Ethernet.
    pub eth: &'a EthHeader,
    /// What follows it and up to two VLAN tags, if that is IP.
    pub ip: Ip<'a>,
}

/// What is known of an IP packet.
#[derive(Clone, Copy, Debug)]
pub enum Ip<'a> {
    /// It is none, or too short for one.
    None,
    /// IPv4 and its ports.
    V4(&'a [u8; 20], Option<&'a Ports>),
    /// IPv6 and its ports.
    V6(&'a [u8; 40], Option<&'a Ports>),
}

/// Source and destination port, as they stand in the packet. Fragments have none, and the first has none either: it goes where the
/// others go, and a packet is whole with its last fragment only.
pub type Ports = [u8; 4];

impl<'a> Headers<'a> {
    /// `None` if the frame is shorter than an Ethernet header.
    // Always put inline: who wants the hash only then pays for nothing else.
    #[inline(always)]
    pub fn read(frame: &'a [u8]) -> Option<Headers<'a>> {
        let (eth, mut rest) = EthHeader::split(frame)?;
        let mut ethertype = eth.ethertype();
        for _ in 0..2 {
            match (ethertype, rest) {
                (ETHERTYPE_VLAN | ETHERTYPE_QINQ, [_, _, high, low, inner @ ..]) => {
                    ethertype = u16::from_be_bytes([*high, *low]);
                    rest = inner;
                }
                _ => break,
            }
        }
        let ip = match ethertype {
            ETHERTYPE_IPV4 => ipv4(rest),
            ETHERTYPE_IPV6 => ipv6(rest),
            _ => None,
        };
        let (hash, ip) = ip.unwrap_or_else(|| {
            let hash = mix(
                eth.destination().to_u64() ^ SEED,
                eth.source().to_u64() ^ (u64::from(ethertype) << 48) ^ SEED.rotate_left(32),
            );
            (hash, Ip::None)
        });
        Some(Headers { flow_hash: (hash ^ (hash >> 32)) as u32, eth, ip })
    }
}

#[inline(always)]
fn ipv4(packet: &[u8]) -> Option<(u64, Ip<'_>)> {
    let header = packet.first_chunk::<20>()?;
    let [version_ihl, _, _, _, _, _, flags, offset, _, protocol, _, _, addresses @ ..] = header;
    let fragment = u16::from_be_bytes([*flags, *offset]) & 0x3fff != 0;
    let ports =
        if fragment { None } else { ports(*protocol, packet.get(usize::from(version_ihl & 0xf) * 4..)?) };
    Some((mix(u64::from_le_bytes(*addresses) ^ SEED, upper(ports, *protocol)), Ip::V4(header, ports)))
}

#[inline(always)]
fn ipv6(packet: &[u8]) -> Option<(u64, Ip<'_>)> {
    let (header, rest) = packet.split_first_chunk::<40>()?;
    let protocol = header[6]; // an extension header (a fragment, say) hides the ports: then only the addresses count
    let (words, _) = header[8..].as_chunks::<8>();
    let addresses =
        words.iter().fold(SEED, |hash, word| mix(hash ^ u64::from_le_bytes(*word), SEED.rotate_left(17)));
    let ports = ports(protocol, rest);
    Some((mix(addresses, upper(ports, protocol)), Ip::V6(header, ports)))
}

/// Both ports, if the protocol has them.
#[inline(always)]
fn ports(protocol: u8, segment: &[u8]) -> Option<&Ports> {
    match protocol {
        PROTOCOL_TCP | PROTOCOL_UDP | PROTOCOL_SCTP => segment.first_chunk::<4>(),
        _ => None,
    }
}

/// Ports (0 for none) and protocol in one number.
#[inline(always)]
fn upper(ports: Option<&Ports>, protocol: u8) -> u64 {
    let ports = ports.map_or(0, |ports| u64::from(u32::from_le_bytes(*ports)));
    ports ^ (u64::from(protocol) << 32) ^ SEED.rotate_left(32)
}

/// Digits of π: any odd number with its bits well mixed would do.
const SEED: u64 = 0x243f_6a88_85a3_08d3;

/// Both halves of the 128-bit product, folded together: each bit of the result depends on all bits of both inputs.
#[inline]
pub(crate) const fn mix(a: u64, b: u64) -> u64 {
    let product = (a as u128) * (b as u128);
    (product as u64) ^ ((product >> 64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    fn udp(source: [u8; 4], ports: (u16, u16), payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2])
            .ipv4(source, [10, 0, 0, 2], 64)
            .udp(ports.0, ports.1)
            .write(&mut out, payload)
            .unwrap();
        out
    }

    #[test]
    fn packets_of_a_flow_hash_alike_and_flows_differ() {
        let a = flow_hash(&udp([10, 0, 0, 1], (1000, 2000), b"first"));
        assert_eq!(a, flow_hash(&udp([10, 0, 0, 1], (1000, 2000), b"second, longer")));
        assert_ne!(a, flow_hash(&udp([10, 0, 0, 1], (1001, 2000), b"first")));
        assert_ne!(a, flow_hash(&udp([10, 0, 0, 3], (1000, 2000), b"first")));
    }

    #[test]
    fn fragments_of_a_packet_stay_together() {
        let mut first = udp([10, 0, 0, 1], (1000, 2000), b"x");
        first[14 + 6] = 0x20; // more fragments
        let mut second = udp([10, 0, 0, 1], (7777, 8888), b"y");
        second[14 + 7] = 1; // offset 8
        assert_eq!(flow_hash(&first), flow_hash(&second));
    }

    #[test]
    fn a_vlan_tag_does_not_hide_the_flow() {
        let plain = udp([10, 0, 0, 1], (1000, 2000), b"x");
        let mut tagged = plain.clone();
        tagged.splice(12..12, [0x81, 0x00, 0x00, 0x07]);
        assert_eq!(flow_hash(&plain), flow_hash(&tagged));
    }

    #[test]
    fn ipv6_flows_differ_by_port_and_address() {
        let build = |last: u8, port: u16| {
            let mut out = Vec::new();
            let mut source = [0xfd; 16];
            source[15] = last;
            PacketBuilder::ethernet2([2; 6], [4; 6])
                .ipv6(source, [0xfe; 16], 64)
                .tcp(port, 80, 0, 0)
                .write(&mut out, &[])
                .unwrap();
            flow_hash(&out)
        };
        assert_eq!(build(1, 1), build(1, 1));
        assert_ne!(build(1, 1), build(2, 1));
        assert_ne!(build(1, 1), build(1, 2));
    }

    /// 4096 flows that differ only in a port fill 64 slots evenly: χ² with 63 degrees of freedom stays below 120
    /// (p ≈ 0.00002).
    #[test]
    fn the_spread_is_even() {
        let mut slots = [0u32; 64];
        for port in 0..4096 {
            slots[(flow_hash(&udp([10, 0, 0, 1], (port, 53), b"")) % 64) as usize] += 1;
        }
        let chi: f64 = slots.iter().map(|&n| (f64::from(n) - 64.0).powi(2) / 64.0).sum();
        assert!(chi < 120.0, "χ² = {chi}: {slots:?}");
    }

    proptest::proptest! {
        #[test]
        fn any_bytes_have_a_hash(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200)) {
            let _ = flow_hash(&bytes);
        }
    }
}
