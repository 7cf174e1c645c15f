//! What we put around an inner frame, beside what the kernel's vxlan device puts around the same one; and what
//! tshark thinks of both.

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use peregrine_tests::{Daemon, FAR, NEAR, Net, RawSocket, Tenant, VNI, tshark, write_pcap};

/// A station that is not there: its frames go to the only remote.
const STRANGER: [u8; 6] = [2, 0, 0, 0, 0x42, 0x77];
const SOURCE: [u8; 6] = [2, 0, 0, 0, 0x42, 1];

/// Inner frames of the shortest, a usual and the longest kind.
fn inner_frames() -> Vec<Vec<u8>> {
    let udp = |length: usize| {
        let builder = PacketBuilder::ethernet2(SOURCE, STRANGER).ipv4([10, 42, 0, 1], [10, 42, 0, 77], 64);
        let mut frame = Vec::new();
        let payload: Vec<u8> = (0..length).map(|i| i as u8).collect();
        builder.udp(20000, 9000).write(&mut frame, &payload).unwrap();
        frame
    };
    let ask = etherparse::ArpPacket::new(
        etherparse::ArpHardwareId::ETHERNET,
        etherparse::EtherType::IPV4,
        etherparse::ArpOperation::REQUEST,
        &SOURCE,
        &[10, 42, 0, 1],
        &[0; 6],
        &[10, 42, 0, 77],
    );
    let mut arp = Vec::new();
    PacketBuilder::ethernet2(SOURCE, [0xff; 6]).arp(ask.unwrap()).write(&mut arp).unwrap();
    let frames = vec![arp, udp(18), udp(64), udp(1450 - 28)];
    assert_eq!(frames.iter().map(Vec::len).collect::<Vec<_>>(), [42, 60, 106, 1464]);
    frames
}

/// VXLAN towards an address, with this inner frame.
fn carries(inner: &[u8], to: [u8; 4]) -> impl FnMut(&[u8]) -> bool {
    move |frame: &[u8]| {
        frame.get(30..34) == Some(&to) && frame.get(36..38) == Some(&[0x12, 0xb5]) && {
            frame.ends_with(inner)
        }
    }
}

struct Outer<'a> {
    packet: SlicedPacket<'a>,
    bytes: &'a [u8],
}

impl<'a> Outer<'a> {
    fn new(bytes: &'a [u8]) -> Outer<'a> {
        Outer { packet: SlicedPacket::from_ethernet(bytes).unwrap(), bytes }
    }

    fn ip(&self) -> etherparse::Ipv4Header {
        let Some(NetSlice::Ipv4(ip)) = &self.packet.net else { panic!("not IPv4") };
        ip.header().to_header()
    }

    fn udp(&self) -> etherparse::UdpHeader {
        let Some(TransportSlice::Udp(udp)) = &self.packet.transport else { panic!("not UDP") };
        udp.to_header()
    }

    fn payload(&self) -> &'a [u8] {
        let Some(TransportSlice::Udp(udp)) = &self.packet.transport else { panic!("not UDP") };
        udp.payload()
    }
}

/// Field by field. What may differ stands here with its reason; everything else is the same.
fn compare(ours: &[u8], kernels: &[u8], inner: &[u8]) {
    let (a, b) = (Outer::new(ours), Outer::new(kernels));
    assert_eq!(ours.len(), kernels.len(), "frame length");
    assert_eq!(a.bytes[12..14], b.bytes[12..14], "EtherType");
    // Each is the sender of its own: addresses are each other's mirror.
    assert_eq!((&a.bytes[0..6], &a.bytes[6..12]), (&b.bytes[6..12], &b.bytes[0..6]), "link-layer addresses");
    let (ip, kip) = (a.ip(), b.ip());
    assert_eq!((ip.source, ip.destination), (kip.destination, kip.source), "IP addresses");
    assert_eq!(a.bytes[14], b.bytes[14], "version and header length");
    assert_eq!((ip.dscp, ip.ecn), (kip.dscp, kip.ecn), "type of service");
    assert_eq!(ip.total_len, kip.total_len, "total length");
    assert_eq!(ip.time_to_live, kip.time_to_live, "time to live");
    assert_eq!(ip.protocol, kip.protocol, "protocol");
    assert_eq!(
        (ip.more_fragments, ip.fragment_offset),
        (kip.more_fragments, kip.fragment_offset),
        "fragment"
    );
    // Ours are never to be fragmented (RFC 7348 §4.3), and so need no identification (RFC 6864 §4.1). The kernel's
    // device leaves DF unset unless it is told otherwise, and numbers its packets.
    assert_eq!((ip.dont_fragment, kip.dont_fragment), (true, false), "DF");
    assert_eq!(ip.identification, 0, "identification");
    // The checksums differ by DF and identification; each must be right.
    assert_eq!(ip.header_checksum, ip.calc_header_checksum(), "our checksum");
    assert_eq!(kip.header_checksum, kip.calc_header_checksum(), "the kernel's checksum");
    let (udp, kudp) = (a.udp(), b.udp());
    assert_eq!((udp.destination_port, kudp.destination_port), (4789, 4789), "destination port");
    // Each hashes the inner flow in its own way; RFC 7348 §5 wants the dynamic range. The kernel's is
    // ip_local_port_range, which begins lower.
    assert!(udp.source_port >= 49152, "source port {}", udp.source_port);
    assert!(kudp.source_port >= 32768, "source port {}", kudp.source_port);
    assert_eq!(udp.length, kudp.length, "UDP length");
    assert_eq!((udp.checksum, kudp.checksum), (0, 0), "UDP checksum, transmitted as zero (RFC 7348 §4.1)");
    let (vxlan, kvxlan) = (a.payload(), b.payload());
    assert_eq!(vxlan[..8], [0x08, 0, 0, 0, 0, 0, VNI as u8, 0], "VXLAN header (RFC 7348 §5)");
    assert_eq!(vxlan, kvxlan, "VXLAN header and inner frame");
    assert_eq!(&vxlan[8..], inner, "the inner frame, unchanged");
}

/// All checksums checked, nothing malformed, no warning, and the same inner frames seen.
fn dissect(file: &std::path::Path, frames: usize) -> Vec<String> {
    const WARNING: &str = "_ws.malformed || _ws.expert.severity >= 6291456";
    assert_eq!(tshark(file, &["-Y", WARNING]), "", "tshark complains of {}", file.display());
    let fields =
        ["vxlan.flags", "vxlan.vni", "eth.dst", "eth.src", "frame.len", "udp.length", "arp.dst.proto_ipv4"];
    let mut arguments = vec!["-T", "fields", "-E", "occurrence=l"];
    fields.iter().for_each(|field| arguments.extend(["-e", field]));
    let text = tshark(file, &arguments);
    let lines: Vec<String> = text.lines().map(str::to_string).collect();
    assert_eq!(lines.len(), frames, "{text}");
    for line in &lines {
        assert!(line.starts_with("0x0800\t42\t") && line.contains("02:00:00:00:42:01"), "{line}");
    }
    lines
}

#[test]
#[ignore = "needs root: make test runs it"]
fn our_frames_are_the_kernels_but_for_named_fields_and_tshark_likes_both() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    daemon.wait_for_next_hops();
    let mut tenant = Tenant::WEB.connect(&net);
    daemon.wait_for_tenant(0, true);
    // The far kernel must know the way too, before its first frame is captured.
    assert_eq!(peregrine_tests::ping_patiently(&net.far, NEAR.0, 1, 0.1), 1);
    let wire = RawSocket::open(&net.far, FAR.1);
    let vx = RawSocket::sender(&net.far, "vx");
    let (mut ours, mut kernels) = (Vec::new(), Vec::new());
    let inner = inner_frames();
    for frame in &inner {
        tenant.tx[0].push(frame).unwrap();
        tenant.tx[0].flush().unwrap();
        ours.push(wire.receive(carries(frame, [192, 0, 2, 2])));
        vx.send(frame);
        kernels.push(wire.receive(carries(frame, [192, 0, 2, 1])));
    }
    for (number, frame) in inner.iter().enumerate() {
        compare(&ours[number], &kernels[number], frame);
    }
    let (a, b) = (net.file("ours.pcap"), net.file("kernel.pcap"));
    write_pcap(&a, &ours);
    write_pcap(&b, &kernels);
    assert_eq!(dissect(&a, inner.len()), dissect(&b, inner.len()));
    // The check itself works: a spoilt IP checksum is found.
    let mut spoilt = ours[1].clone();
    spoilt[24] ^= 1;
    write_pcap(&a, &[spoilt]);
    assert_ne!(tshark(&a, &["-Y", "_ws.malformed || _ws.expert.severity >= 6291456"]), "");
    daemon.at_rest();
}
