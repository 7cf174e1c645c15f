//! tshark's verdict on what left a VTEP's host. Called by `suite` when a group is through.
//!
//! A frame is judged as far as it is its sender's own work, and no further. A tenant's strange frame is carried as it is, so of what carries it
//! only the outside counts. An ICMP error quotes a packet that somebody else sent, often one that was refused because it is wrong, and as
//! little of it as the RFCs ask for: it counts up to the quotation.

use std::path::Path;

use peregrine_tests::{tshark, write_pcap};

/// Errors, warnings and wrong checksums.
const FOUND: &str = "_ws.malformed || _ws.expert.severity >= 6291456 || \
                     ip.checksum.status == 0 || udp.checksum.status == 0 || tcp.checksum.status == 0 || \
                     icmp.checksum.status == 0 || icmpv6.checksum.status == 0";

/// How far tshark reads.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Depth {
    /// To the end.
    Whole,
    /// Up to the inner frame.
    Outside,
    /// An ICMP error, up to what stands behind the quoted IP header.
    Unquoted,
}

impl Depth {
    const ALL: [Depth; 3] = [Depth::Whole, Depth::Outside, Depth::Unquoted];

    fn of(is_strange: bool, frame: &[u8]) -> Depth {
        if is_icmp_error(frame) {
            Depth::Unquoted
        } else if is_strange {
            Depth::Outside
        } else {
            Depth::Whole
        }
    }

    fn arguments(self) -> &'static [&'static str] {
        match self {
            Depth::Whole => &[],
            Depth::Outside => &["--disable-protocol", "vxlan"],
            Depth::Unquoted => &["--disable-protocol", "udp"],
        }
    }
}

/// An ICMP or ICMPv6 error as the outermost packet.
fn is_icmp_error(frame: &[u8]) -> bool {
    let at = |place: usize| frame.get(place).copied();
    match frame.get(12..14) {
        Some([0x08, 0x00]) => {
            let header_len = at(14).map_or(0, |byte| usize::from(byte & 15) * 4);
            at(23) == Some(1) && matches!(at(14 + header_len), Some(3 | 4 | 5 | 11 | 12))
        }
        // Types below 128 are errors (RFC 4443 §2.1).
        Some([0x86, 0xdd]) => at(20) == Some(58) && at(54).is_some_and(|kind| kind < 128),
        _ => false,
    }
}

/// What tshark finds in these frames, a line each. With each: whether what is in it was made strange by intent. No UDP checksum over IPv6 is a finding
/// unless that was asked for (RFC 6935).
pub fn findings(sent: &[(bool, Vec<u8>)], zero6: bool, file: &Path) -> Vec<String> {
    let of = |depth: Depth| {
        let is_of = |(is_strange, frame): &&(bool, Vec<u8>)| Depth::of(*is_strange, frame) == depth;
        let frames: Vec<Vec<u8>> = sent.iter().filter(is_of).map(|(_, frame)| frame.clone()).collect();
        dissected(&frames, depth, zero6, file)
    };
    Depth::ALL.into_iter().flat_map(of).collect()
}

fn dissected(frames: &[Vec<u8>], depth: Depth, zero6: bool, file: &Path) -> Vec<String> {
    if frames.is_empty() {
        return Vec::new();
    }
    write_pcap(file, frames);
    // The payload of the suite's datagrams is nobody's protocol.
    let usual = ["-d", "udp.port==9000,data", "-o", "tcp.analyze_sequence_numbers:FALSE", "-Y", FOUND];
    let shown = ["-T", "fields", "-e", "frame.number", "-e", "_ws.col.Info", "-e", "_ws.expert.message"];
    let zero6 = [
        "-o",
        if zero6 { "udp.ignore_ipv6_zero_checksum:TRUE" } else { "udp.ignore_ipv6_zero_checksum:FALSE" },
    ];
    let text = tshark(file, &[&usual[..], &shown[..], &zero6[..], depth.arguments()].concat());
    text.lines().map(str::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::PacketBuilder;

    const MACS: ([u8; 6], [u8; 6]) = ([2, 0, 0, 0, 15, 1], [2, 0, 0, 0, 15, 2]);

    fn found(is_strange: bool, frame: &[u8]) -> Vec<String> {
        let directory = tempfile::tempdir().unwrap();
        findings(&[(is_strange, frame.to_vec())], false, &directory.path().join("sent.pcap"))
    }

    /// An inner frame, a datagram of which this byte is spoilt, in VXLAN with a right or a wrong UDP checksum.
    fn carried(spoilt: Option<usize>, outer_is_right: bool) -> Vec<u8> {
        let mut inner = Vec::new();
        let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4([10, 42, 0, 1], [10, 42, 0, 2], 64);
        builder.udp(20000, 9000).write(&mut inner, &[7; 40]).unwrap();
        if let Some(at) = spoilt {
            inner[at] ^= 0x55;
        }
        let payload = [&[8, 0, 0, 0, 0, 0, 42, 0], &inner[..]].concat();
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        builder.udp(50000, 4789).write(&mut frame, &payload).unwrap();
        if !outer_is_right {
            frame[40] ^= 0x55;
        }
        frame
    }

    #[test]
    fn what_is_sound_is_found_to_be_so_and_what_is_not_is_found() {
        assert_eq!(found(false, &carried(None, true)), Vec::<String>::new());
        assert_eq!(found(false, &carried(None, false)).len(), 1, "outer UDP checksum");
        assert_eq!(found(false, &carried(Some(50), true)).len(), 1, "inner UDP payload");
    }

    #[test]
    fn no_checksum_over_ipv6_is_a_finding_unless_it_was_asked_for() {
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv6([1; 16], [2; 16], 64);
        builder.udp(50000, 9000).write(&mut frame, &[7; 40]).unwrap();
        frame[60..62].fill(0);
        let directory = tempfile::tempdir().unwrap();
        let found = |zero6| findings(&[(false, frame.clone())], zero6, &directory.path().join("sent.pcap"));
        assert_eq!((found(false).len(), found(true).len()), (1, 0));
    }

    #[test]
    fn a_strange_inner_frame_does_not_count_but_what_carries_it_does() {
        assert_eq!(found(true, &carried(Some(50), true)), Vec::<String>::new());
        assert_eq!(found(true, &carried(Some(50), false)).len(), 1);
    }

    /// "Port unreachable" about a packet cut off where this kernel would not, whose VXLAN header lacks the I flag and whose inner EtherType is a length
    /// beyond its end.
    fn error(checksum_is_right: bool) -> Vec<u8> {
        let mut refused = carried(None, true);
        (refused[42], refused[62], refused[63]) = (0xf7, 0, 200);
        let quoted = &refused[14..90];
        let mut frame = Vec::new();
        let builder = PacketBuilder::ethernet2(MACS.0, MACS.1).ipv4([192, 0, 2, 1], [192, 0, 2, 2], 64);
        let port = etherparse::icmpv4::DestUnreachableHeader::Port;
        builder
            .icmpv4(etherparse::Icmpv4Type::DestinationUnreachable(port))
            .write(&mut frame, quoted)
            .unwrap();
        if !checksum_is_right {
            frame[36] ^= 0x55;
        }
        frame
    }

    #[test]
    fn what_an_icmp_error_quotes_does_not_count_but_the_error_does() {
        assert_eq!(found(false, &error(true)), Vec::<String>::new());
        assert_eq!(found(false, &error(false)).len(), 1, "its checksum");
        let mut frame = error(true);
        frame[24] ^= 0x55;
        assert_eq!(found(false, &frame).len(), 1, "its IP header's checksum");
        let directory = tempfile::tempdir().unwrap();
        let read_on = dissected(&[error(true)], Depth::Whole, false, &directory.path().join("sent.pcap"));
        assert_eq!(read_on.len(), 1, "the quotation is one that tshark complains of");
    }
}
