//! The MSS that a TCP connection announces (RFC 9293 §3.7.1), lowered to what the network holds: for senders that do not hear "packet
//! too big". Only packets with SYN say one.

use super::inner::Packet;
use super::ip::PROTOCOL_TCP;

const SYN: u8 = 0x02;
const END: u8 = 0;
const NOTHING: u8 = 1;
const MSS: u8 = 2;
const TCP_LEN: usize = 20;

/// Lowers the MSS in a SYN of this frame to what an IP packet of `mtu` bytes holds: 40 bytes less over IPv4, 60 over IPv6. True if it
/// was higher. Everything else is left alone: also a SYN without the option, and one whose options are malformed.
pub fn clamp(frame: &mut [u8], mtu: usize) -> bool {
    let Some(found) = find(frame) else { return false };
    let highest = u16::try_from(mtu.saturating_sub(found.headers)).unwrap_or(u16::MAX);
    let Some(segment) = frame.get_mut(found.segment..) else { return false };
    let Some(field) = segment.get_mut(found.value..).and_then(|rest| rest.first_chunk_mut::<2>()) else {
        return false;
    };
    let announced = u16::from_be_bytes(*field);
    if announced <= highest {
        return false;
    }
    *field = highest.to_be_bytes();
    // Where the option begins at an even place its value does, too; else its bytes are halves of two words, and the sum of words whose
    // bytes are swapped is the swapped sum (RFC 1071 §2 B).
    let swap = |value: u16| if found.value.is_multiple_of(2) { value } else { value.swap_bytes() };
    if let Some(field) = segment.get_mut(16..18).and_then(|field| field.first_chunk_mut::<2>()) {
        *field = updated(u16::from_be_bytes(*field), swap(announced), swap(highest)).to_be_bytes();
    }
    true
}

/// A checksum after one word of what it covers has changed (RFC 1624 §3, equation 3).
fn updated(checksum: u16, before: u16, after: u16) -> u16 {
    let mut sum = u32::from(!checksum) + u32::from(!before) + u32::from(after);
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    !(sum as u16)
}

/// The option in a SYN.
struct Found {
    /// Where the segment begins in the frame.
    segment: usize,
    /// Where the value begins in the segment.
    value: usize,
    /// Bytes of an IP packet that are not the segment's data.
    headers: usize,
}

fn find(frame: &[u8]) -> Option<Found> {
    let (packet, start) = Packet::find(frame)?;
    let upper = packet.upper().filter(|upper| upper.protocol == PROTOCOL_TCP)?;
    let (bytes, headers) = match packet {
        Packet::V4(_, bytes) => (bytes, 20 + TCP_LEN),
        Packet::V6(_, bytes) => (bytes, 40 + TCP_LEN),
    };
    let segment = bytes.get(upper.start..packet.total_len().min(bytes.len()))?;
    let header: &[u8; TCP_LEN] = segment.first_chunk()?;
    if header[13] & SYN == 0 {
        return None;
    }
    let options = segment.get(TCP_LEN..usize::from(header[12] >> 4) * 4)?;
    let value = TCP_LEN + value_of(options)?;
    Some(Found { segment: start + upper.start, value, headers })
}

/// Where the value of the MSS option begins.
fn value_of(options: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        match *options.get(at)? {
            END => return None,
            NOTHING => at += 1,
            kind => {
                let len = usize::from(*options.get(at + 1)?);
                if len < 2 || at + len > options.len() {
                    return None;
                }
                if kind == MSS {
                    return (len == 4).then_some(at + 2);
                }
                at += len;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
    use proptest::prelude::*;

    /// A SYN with these options, as another implementation builds it.
    fn syn(v6: bool, options: &[u8]) -> Vec<u8> {
        let (mut out, eth) = (Vec::new(), PacketBuilder::ethernet2([2; 6], [4; 6]));
        let ip = if v6 {
            eth.ipv6([0xfd; 16], [0xfe; 16], 64)
        } else {
            eth.ipv4([10, 0, 0, 1], [10, 0, 0, 2], 64)
        };
        ip.tcp(1000, 80, 7, 1024).syn().options_raw(options).unwrap().write(&mut out, &[]).unwrap();
        out
    }

    /// What another implementation says the checksum is, and what it says there.
    fn checksums(frame: &[u8]) -> (u16, u16) {
        let sliced = SlicedPacket::from_ethernet(frame).unwrap();
        let Some(TransportSlice::Tcp(tcp)) = sliced.transport else { panic!("no TCP") };
        let computed = match sliced.net.unwrap() {
            NetSlice::Ipv4(ip) => tcp.calc_checksum_ipv4(ip.header().source(), ip.header().destination()),
            NetSlice::Ipv6(ip) => tcp.calc_checksum_ipv6(ip.header().source(), ip.header().destination()),
            NetSlice::Arp(_) => panic!("no IP"),
        };
        (computed.unwrap(), tcp.checksum())
    }

    #[test]
    fn it_is_lowered_wherever_it_stands() {
        for (v6, expected) in [(false, 1410u16), (true, 1390)] {
            for (options, value) in [
                (&[2, 4, 0x05, 0xb4][..], 2),
                (&[1, 2, 4, 0x05, 0xb4, 1, 1, 1], 3),
                (&[4, 2, 8, 10, 1, 2, 3, 4, 5, 6, 7, 8, 2, 4, 0x05, 0xb4], 14),
            ] {
                let mut frame = syn(v6, options);
                let before = frame.clone();
                assert!(clamp(&mut frame, 1450), "{options:?}");
                let at = if v6 { 54 } else { 34 } + 20 + value;
                assert_eq!(frame[at..at + 2], expected.to_be_bytes());
                let (computed, there) = checksums(&frame);
                assert_eq!(there, computed, "{options:?}");
                let changed = frame.iter().zip(&before).filter(|(a, b)| a != b).count();
                assert!(changed <= 4, "nothing else is touched");
                assert!(!clamp(&mut frame, 1450), "it is low enough now");
            }
        }
    }

    #[test]
    fn what_is_low_enough_or_malformed_is_left_alone() {
        let mut cases = vec![
            ("low enough", syn(false, &[2, 4, 0x05, 0x82])),
            ("no option", syn(false, &[1, 1, 1, 1])),
            ("behind the end", syn(false, &[0, 0, 0, 0, 2, 4, 0x05, 0xb4])),
            ("an option without length", syn(false, &[8, 0, 1, 1, 2, 4, 0x05, 0xb4])),
            ("an option of one byte", syn(false, &[8, 1, 1, 1, 2, 4, 0x05, 0xb4])),
            ("too long a value", syn(false, &[2, 5, 0x05, 0xb4, 0, 0, 0, 0])),
            ("beyond the header", syn(false, &[1, 1, 2, 4])),
        ];
        let good = syn(false, &[2, 4, 0x05, 0xb4]);
        let mut change = |what, offset: usize, value: u8| {
            let mut frame = good.clone();
            frame[offset] = value;
            cases.push((what, frame));
        };
        change("no SYN", 47, 0x10);
        change("a later fragment", 21, 1);
        change("not TCP", 23, 17);
        change("a header of nothing", 46, 0x40);
        change("a header longer than the packet", 46, 0xf0);
        for (what, frame) in cases {
            let mut after = frame.clone();
            assert!(!clamp(&mut after, 1450), "{what}");
            assert_eq!(after, frame, "{what}");
        }
        for len in 0..good.len() {
            assert!(!clamp(&mut good[..len].to_vec(), 1450), "{len} bytes");
        }
    }

    proptest! {
        #[test]
        fn any_options_will_do(options in proptest::collection::vec(any::<u8>(), 0..40), v6: bool, mtu in 0usize..2000) {
            let mut frame = syn(v6, &options);
            let (len, was) = (frame.len(), checksums(&frame));
            prop_assert_eq!(was.0, was.1);
            clamp(&mut frame, mtu);
            let (computed, there) = checksums(&frame);
            // 0 and 0xffff are the same in ones' complement.
            prop_assert!(there == computed || there.min(computed) == 0 && there.max(computed) == 0xffff);
            prop_assert_eq!(frame.len(), len);
        }

        #[test]
        fn any_bytes_will_do(mut bytes in proptest::collection::vec(any::<u8>(), 0..120), v6: bool) {
            if bytes.len() > 23 {
                bytes[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[8, 0] });
                bytes[14] = if v6 { 0x60 } else { 0x45 };
                bytes[if v6 { 20 } else { 23 }] = 6;
            }
            clamp(&mut bytes, 576);
        }
    }
}
