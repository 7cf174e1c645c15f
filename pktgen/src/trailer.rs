//! The trailer: the last 18 bytes of a packet's UDP payload, by which sink and sender know it again.
//!
//! ```text
//! byte   0       2     4      6              12             18
//!        | magic | run | flow | sequence     | time         |     all in network byte order
//!        | "Pg"  | u16 | u16  | u48          | u48          |
//! ```
//! `run` is drawn anew for each run of a sender, so that a sink tells it from another one. `sequence` counts the packets of the flow from 0. `time` is when the packet was meant to leave: CLOCK_MONOTONIC
//! nanoseconds of the sender's host, the low 48 bits, which come round every 78 hours; [`elapsed`] knows.
//!
//! 18 bytes and the inner headers make 60: so the smallest Ethernet frame (64 bytes with its FCS) has room for it.

use std::hash::{BuildHasher, Hasher, RandomState};

/// Bytes of a trailer.
pub const LEN: usize = 18;
/// What it begins with.
pub const MAGIC: [u8; 2] = *b"Pg";
/// The largest sequence number.
pub const SEQUENCE_MAX: u64 = MASK_48;

const MASK_48: u64 = (1 << 48) - 1;

/// What a trailer says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Trailer {
    /// Which run of which sender.
    pub run: u16,
    /// Which flow of the sender.
    pub flow: u16,
    /// Its how many-th packet, from 0; 48 bits.
    pub sequence: u64,
    /// When it was meant to leave; 48 bits of nanoseconds.
    pub time: u64,
}

impl Trailer {
    /// The bytes. What does not fit 48 bits is cut off.
    #[inline]
    pub fn encode(&self) -> [u8; LEN] {
        let mut bytes = [0; LEN];
        bytes[..2].copy_from_slice(&MAGIC);
        bytes[2..4].copy_from_slice(&self.run.to_be_bytes());
        bytes[4..6].copy_from_slice(&self.flow.to_be_bytes());
        bytes[6..12].copy_from_slice(&self.sequence.to_be_bytes()[2..]);
        bytes[12..].copy_from_slice(&self.time.to_be_bytes()[2..]);
        bytes
    }

    /// The trailer at the end of a UDP payload; `None` if that has none.
    #[inline]
    pub fn of_payload(payload: &[u8]) -> Option<Trailer> {
        let [m0, m1, r0, r1, f0, f1, s0, s1, s2, s3, s4, s5, t0, t1, t2, t3, t4, t5] =
            *payload.last_chunk::<LEN>()?;
        (MAGIC == [m0, m1]).then_some(Trailer {
            run: u16::from_be_bytes([r0, r1]),
            flow: u16::from_be_bytes([f0, f1]),
            sequence: u64::from_be_bytes([0, 0, s0, s1, s2, s3, s4, s5]),
            time: u64::from_be_bytes([0, 0, t0, t1, t2, t3, t4, t5]),
        })
    }

    /// The trailer of a UDP packet over IPv4 or IPv6 in an Ethernet frame, which may be padded and have up to two VLAN tags. `None`
    /// for all else, and behind extension headers.
    #[inline]
    pub fn of_frame(frame: &[u8]) -> Option<Trailer> {
        let (ethernet, packet) = frame.split_first_chunk::<14>()?;
        let datagram = match [ethernet[12], ethernet[13]] {
            IPV4 => over_ipv4(packet)?,
            IPV6 => over_ipv6(packet)?,
            VLAN | QINQ => tagged(packet)?,
            _ => return None,
        };
        let [_, _, _, _, high, low, _, _] = *datagram.first_chunk::<8>()?;
        let length = usize::from(u16::from_be_bytes([high, low]));
        Trailer::of_payload(datagram.get(8..length)?)
    }
}

/// The number of a run that begins: by chance, so that two hosts seldom have the same one.
pub fn new_run() -> u16 {
    RandomState::new().build_hasher().finish() as u16 // the standard library's keys are random
}

/// Ethernet's types.
const IPV4: [u8; 2] = [0x08, 0x00];
const IPV6: [u8; 2] = [0x86, 0xdd];
const VLAN: [u8; 2] = [0x81, 0x00];
const QINQ: [u8; 2] = [0x88, 0xa8];

/// The UDP datagram in a packet, with its header.
#[inline]
fn over_ipv4(packet: &[u8]) -> Option<&[u8]> {
    let [version_ihl, _, _, _, _, _, flags, offset, _, protocol, ..] = *packet.first_chunk::<20>()?;
    let is_fragment = u16::from_be_bytes([flags, offset]) & 0x3fff != 0;
    if version_ihl >> 4 != 4 || protocol != 17 || is_fragment {
        return None;
    }
    packet.get(usize::from(version_ihl & 0x0f) * 4..)
}

#[inline]
fn over_ipv6(packet: &[u8]) -> Option<&[u8]> {
    let (head, datagram) = packet.split_first_chunk::<40>()?;
    (head[0] >> 4 == 6 && head[6] == 17).then_some(datagram)
}

/// Behind one or two VLAN tags; the first one's type has been read.
fn tagged(mut packet: &[u8]) -> Option<&[u8]> {
    for _ in 0..2 {
        let ([_, _, ethertype @ ..], rest) = packet.split_first_chunk::<4>()?;
        match *ethertype {
            IPV4 => return over_ipv4(rest),
            IPV6 => return over_ipv6(rest),
            VLAN | QINQ => packet = rest,
            _ => return None,
        }
    }
    None
}

/// Nanoseconds from a trailer's time to `now`; 0 if it lies in the future.
#[inline]
pub fn elapsed(now: u64, time: u64) -> u64 {
    let ns = now.wrapping_sub(time) & MASK_48;
    if ns > MASK_48 / 2 { 0 } else { ns }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: [u8; LEN] =
        [b'P', b'g', 0xab, 0xcd, 0x12, 0x34, 0, 0, 0, 0, 0x56, 0x78, 0x0a, 0x0b, 0x0c, 0x0d, 0x0e, 0x0f];

    #[test]
    fn the_bytes_are_as_documented() {
        let trailer = Trailer { run: 0xabcd, flow: 0x1234, sequence: 0x5678, time: 0x0a0b_0c0d_0e0f };
        assert_eq!(trailer.encode(), BYTES);
        assert_eq!(Trailer::of_payload(&BYTES), Some(trailer));
        assert_eq!(Trailer::of_payload(&[&[9; 50], &BYTES[..]].concat()), Some(trailer), "at the end");
    }

    #[test]
    fn runs_differ() {
        let runs: std::collections::HashSet<u16> = (0..100).map(|_| new_run()).collect();
        assert!(runs.len() > 80, "{}", runs.len());
    }

    #[test]
    fn other_payloads_have_none() {
        assert_eq!(Trailer::of_payload(&BYTES[1..]), None);
        let mut wrong = BYTES;
        wrong[1] = b'0';
        assert_eq!(Trailer::of_payload(&wrong), None);
        assert_eq!(Trailer::of_payload(&[]), None);
    }

    fn frame() -> Vec<u8> {
        let mut out = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        builder.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64).udp(1, 2).write(&mut out, &BYTES).unwrap();
        out
    }

    #[test]
    fn it_is_found_in_a_frame_even_if_that_is_padded() {
        let mut bytes = frame();
        assert!(Trailer::of_frame(&bytes).is_some());
        bytes.extend([0; 20]);
        assert!(Trailer::of_frame(&bytes).is_some());
    }

    fn frame_over_ipv6() -> Vec<u8> {
        let mut out = Vec::new();
        let builder = etherparse::PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], [2, 0, 0, 0, 0, 2]);
        builder.ipv6([1; 16], [2; 16], 64).udp(1, 2).write(&mut out, &BYTES).unwrap();
        out
    }

    #[test]
    fn it_is_found_over_ipv6_and_behind_tags() {
        let wanted = Trailer::of_payload(&BYTES);
        for plain in [frame(), frame_over_ipv6()] {
            assert_eq!(Trailer::of_frame(&plain), wanted);
            let with_tags = |tags: &[u8]| [&plain[..12], tags, &plain[12..], &[0; 9]].concat();
            assert_eq!(Trailer::of_frame(&with_tags(&[0x81, 0, 0, 7])), wanted);
            assert_eq!(Trailer::of_frame(&with_tags(&[0x88, 0xa8, 0, 7, 0x81, 0, 0, 8])), wanted);
            assert_eq!(Trailer::of_frame(&with_tags(&[0x81, 0, 0, 7].repeat(3))), None, "three tags");
            for len in 0..plain.len() {
                assert_eq!(Trailer::of_frame(&plain[..len]), None, "{len} bytes");
            }
        }
        for (what, at, value) in
            [("version", 14, 0x40), ("TCP", 20, 6), ("a fragment", 20, 44), ("UDP length", 58, 1)]
        {
            let mut bytes = frame_over_ipv6();
            bytes[at] = value;
            assert_eq!(Trailer::of_frame(&bytes), None, "{what}");
        }
    }

    #[test]
    fn frames_of_another_kind_have_none() {
        let good = frame();
        for (what, at, value) in [
            ("IPv6", 12, 0x86),
            ("version", 14, 0x65),
            ("TCP", 23, 6),
            ("fragment", 20, 0x20),
            ("UDP length", 38, 1),
        ] {
            let mut bytes = good.clone();
            bytes[at] = value;
            assert_eq!(Trailer::of_frame(&bytes), None, "{what}");
        }
        for len in 0..good.len() {
            assert_eq!(Trailer::of_frame(&good[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn time_passes_also_where_48_bits_come_round() {
        assert_eq!(elapsed((5 << 48) + 10, MASK_48 - 4), 15);
        assert_eq!(elapsed(1000, 400), 600);
        assert_eq!(elapsed(400, 1000), 0, "a clock that was read a moment too early");
    }

    proptest! {
        #[test]
        fn what_is_encoded_is_decoded(run: u16, flow: u16, sequence in 0..=SEQUENCE_MAX, time in 0..=SEQUENCE_MAX) {
            let trailer = Trailer { run, flow, sequence, time };
            prop_assert_eq!(Trailer::of_payload(&trailer.encode()), Some(trailer));
        }

        #[test]
        fn any_bytes_are_looked_at_without_harm(bytes in proptest::collection::vec(any::<u8>(), 0..120)) {
            let _ = Trailer::of_frame(&bytes);
        }
    }
}
