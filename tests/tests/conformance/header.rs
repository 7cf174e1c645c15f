//! The headers that a VTEP writes and reads: RFC 7348 §4 and §5, RFC 791, RFC 768, RFC 6040, over IPv4.

use std::collections::BTreeMap;
use std::net::UdpSocket;

use crate::answers::only_ours;
use crate::bench::{Bench, Not, Outcome, Outer, said};
use crate::sut::{A_MAC, A4, Has, LOCAL4, Network, Setup};
use crate::{cases, ensure};
use peregrine_tests::{NEAR, PATIENCE, inside};

/// One network, one remote.
const V: u32 = 42;
static SETUP: Setup = Setup::new(&[Network::new(V, &[crate::sut::A4])]);

cases! { HEADER = "Outer headers, over IPv4", SETUP;
    rfc7348_s5_outer_addresses: "RFC 7348 §5", Must, "outer Ethernet and IP addresses are those of the VTEPs";
    rfc7348_s4_1_destination_port: "RFC 7348 §4.1", Must, "UDP destination port 4789";
    rfc7348_s4_1_source_port_range: "RFC 7348 §4.1", Should, "UDP source port in 49152–65535";
    rfc7348_s4_1_source_port_of_a_flow: "RFC 7348 §4.1", Should, "one flow, one source port";
    rfc7348_s4_1_source_port_spread: "RFC 7348 §4.1", Should, "source ports of 4096 flows are spread evenly (χ²)";
    rfc6438_s3_fragments_keep_the_port: "RFC 7348 §4.1", Option, "all fragments of an inner packet have one source port";
    rfc7348_s4_1_checksum_zero_sent: "RFC 7348 §4.1", Should, "UDP checksum sent as zero";
    rfc7348_s4_1_checksum_zero_taken: "RFC 7348 §4.1", Must, "a zero UDP checksum is accepted";
    rfc7348_s4_1_checksum_right_taken: "RFC 7348 §4.1", Must, "a right UDP checksum is accepted";
    rfc7348_s4_1_checksum_wrong_dropped: "RFC 7348 §4.1", Must, "a wrong UDP checksum: dropped";
    rfc7348_s4_3_no_fragments_sent: "RFC 7348 §4.3", Must, "DF is set, nothing is sent in fragments";
    rfc7348_s4_3_fragment_not_taken: "RFC 7348 §4.3", May, "a lone outer fragment is not taken for a packet";
    rfc7348_s4_3_fragments_left: "RFC 7348 §4.3", May, "outer fragments are counted and left to the kernel, which puts them together";
    left_to_the_kernel: "–", Option, "what is not for the VTEP is left to the kernel and counted by reason";
    rfc7348_s5_flags_sent: "RFC 7348 §5", Must, "the I flag is sent, all reserved bits zero";
    rfc7348_s5_flag_needed: "RFC 7348 §5", Must, "without the I flag: dropped";
    rfc7348_s5_reserved_ignored: "RFC 7348 §5", Must, "each reserved bit is ignored on receipt";
    rfc7348_s5_ttl: "RFC 7348 §5", Option, "outer TTL is what was configured, whatever the inner one is";
    rfc7348_s5_any_source_port: "RFC 7348 §4.1", Must, "packets from any source port are taken";
    rfc0791_s3_1_header: "RFC 791 §3.1", Must, "version, lengths and header checksum of what is sent";
    rfc0791_s3_1_checksum_wrong: "RFC 791 §3.1", Must, "a wrong header checksum: dropped";
    rfc0791_s3_1_options_taken: "RFC 791 §3.1", Must, "outer IPv4 options: read over, or left alone; not mistaken for UDP";
    rfc0791_s3_1_length: "RFC 791 §3.1", Must, "a total length beyond the frame: dropped; bytes behind it: no part of the packet";
    rfc0768_length: "RFC 768", Must, "a UDP length beyond the packet or below 8: dropped";
    rfc6864_s4_1_identification: "RFC 6864 §4.1", May, "atomic datagrams carry no meaning in their identification: any is taken";
    rfc6040_s4_1_encap_ipv4: "RFC 6040 §4.1", Should, "encapsulation copies the ECN field, inner IPv4: 4 values";
    rfc6040_s4_1_encap_ipv6: "RFC 6040 §4.1", Should, "encapsulation copies the ECN field, inner IPv6: 4 values";
    rfc6040_s4_2_decap_ipv4: "RFC 6040 §4.2", Should, "decapsulation, inner IPv4: 16 combinations";
    rfc6040_s4_2_decap_ipv6: "RFC 6040 §4.2", Should, "decapsulation, inner IPv6: 16 combinations";
    rfc6040_s4_2_decap_vlan: "RFC 6040 §4.2", Option, "what is not IP has no ECN field: passes as it is with outer CE";
}

fn flow(bench: &mut Bench, number: usize) -> Result<Outer, Not> {
    let inner = bench.scapy(&format!("out4()/u({number})"));
    bench.leaves(V, &inner)
}

fn rfc7348_s5_outer_addresses(bench: &mut Bench) -> Outcome {
    let sent = flow(bench, 0)?;
    let mac =
        |at: usize| sent.bytes[at..at + 6].iter().map(|b| format!("{b:02x}")).collect::<Vec<_>>().join(":");
    ensure!((mac(0).as_str(), mac(6).as_str()) == (A_MAC, NEAR.2), "from {} to {}", mac(6), mac(0));
    ensure!(sent.from == LOCAL4 && sent.to == crate::sut::A4, "from {} to {}", sent.from, sent.to);
    Ok(())
}

fn rfc7348_s4_1_destination_port(bench: &mut Bench) -> Outcome {
    let port = flow(bench, 0)?.port;
    ensure!(port == 4789, "port {port}");
    Ok(())
}

/// Packets of so many flows: ports 20000 on, of which the UDP checksum is none.
fn flows(bench: &mut Bench, count: u16) -> Result<Vec<Outer>, Not> {
    let template = bench.scapy("out4()/UDP(sport=1, dport=9000, chksum=0)/bytes(32)");
    let flow = |port: u16| {
        let mut frame = template.clone();
        frame[34..36].copy_from_slice(&port.to_be_bytes());
        frame
    };
    let frames: Vec<Vec<u8>> = (0..count).map(|number| flow(20000 + number)).collect();
    let sent = bench.outbound(V, &frames)?;
    ensure!(sent.len() == frames.len(), "{} of {} packets leave", sent.len(), frames.len());
    Ok(sent)
}

fn rfc7348_s4_1_source_port_range(bench: &mut Bench) -> Outcome {
    for sent in flows(bench, 512)? {
        ensure!(sent.source_port >= 49152, "port {}", sent.source_port);
    }
    Ok(())
}

fn rfc7348_s4_1_source_port_of_a_flow(bench: &mut Bench) -> Outcome {
    let mut ports = Vec::new();
    for size in [0, 18, 700, 1400, 32] {
        let inner = bench.scapy(&format!("out4(id={size}, ttl=64)/u(7, {size})"));
        ports.push(bench.leaves(V, &inner)?.source_port);
    }
    ensure!(ports.windows(2).all(|pair| pair[0] == pair[1]), "{ports:?}");
    Ok(())
}

fn rfc7348_s4_1_source_port_spread(bench: &mut Bench) -> Outcome {
    let mut bins = [0u32; 64];
    for sent in flows(bench, 4096)? {
        // The range is 16384 long.
        bins[usize::from(sent.source_port.wrapping_sub(49152)) / 256 % 64] += 1;
    }
    let chi2: f64 = bins.iter().map(|&n| (f64::from(n) - 64.0).powi(2) / 64.0).sum();
    // 63 degrees of freedom: random ports are above this one time in a million.
    ensure!(chi2 < 130.0, "χ² is {chi2:.0} with 63 degrees of freedom");
    Ok(())
}

fn rfc6438_s3_fragments_keep_the_port(bench: &mut Bench) -> Outcome {
    let mut ports = Vec::new();
    bench.is_strange = true;
    for fragment in [
        "flags='MF')/UDP(sport=20000, dport=9000, len=2000, chksum=0)/bytes(1392)",
        "frag=175, proto=17)/bytes(592)",
    ] {
        let inner = bench.scapy(&format!("out4(id=99, {fragment}"));
        ports.push(bench.leaves(V, &inner)?.source_port);
    }
    ensure!(ports[0] == ports[1], "its two fragments leave from ports {} and {}", ports[0], ports[1]);
    Ok(())
}

fn rfc7348_s4_1_checksum_zero_sent(bench: &mut Bench) -> Outcome {
    let sent = flow(bench, 0)?.checksum;
    ensure!(sent == 0, "checksum {sent:#06x}");
    Ok(())
}

/// A datagram within outer headers of which more is said: taken or not.
fn taken(bench: &mut Bench, more: &str) -> Outcome {
    let packet = bench.outer(V, more, "in4()/u()");
    let inner = bench.scapy("in4()/u()");
    bench.delivers(V, &packet, &inner)
}

fn refused(bench: &mut Bench, more: &str, reason: &str) -> Outcome {
    let packet = bench.outer(V, more, "in4()/u()");
    bench.refuses_as(V, &packet, reason)
}

fn rfc7348_s4_1_checksum_zero_taken(bench: &mut Bench) -> Outcome {
    taken(bench, "chksum=0")
}

fn rfc7348_s4_1_checksum_right_taken(bench: &mut Bench) -> Outcome {
    taken(bench, "chksum='right'")
}

fn rfc7348_s4_1_checksum_wrong_dropped(bench: &mut Bench) -> Outcome {
    refused(bench, "chksum=0x1234", "outer_udp_checksum")
}

fn rfc7348_s4_3_no_fragments_sent(bench: &mut Bench) -> Outcome {
    for size in [0, 1, 1000, 1472] {
        for flags in ["'DF'", "0"] {
            let inner = bench.scapy(&format!("out4(flags={flags})/u(0, {size})"));
            let sent = bench.leaves(V, &inner)?;
            ensure!(sent.dont_fragment && !sent.is_fragment, "DF is not set");
        }
    }
    Ok(())
}

fn rfc7348_s4_3_fragment_not_taken(bench: &mut Bench) -> Outcome {
    for fragment in ["{'flags': 'MF'}", "{'flags': 0, 'frag': 100}", "{'flags': 'MF', 'frag': 100}"] {
        let packet = bench.outer(V, &format!("ip={fragment}"), "in4()/u()");
        bench.refuses(V, &packet).map_err(|not| said(fragment, not))?;
    }
    Ok(())
}

/// How often frames were left to the kernel for a reason.
fn passed(bench: &Bench, reason: &str) -> Result<u64, Not> {
    bench.sut.passed(reason).ok_or_else(|| Not::Fail("no counters".into()))
}

fn rfc7348_s4_3_fragments_left(bench: &mut Bench) -> Outcome {
    only_ours(bench, "its own kernel or datapath takes all")?;
    let socket =
        inside(&bench.net.near, || UdpSocket::bind((LOCAL4, 4789))).map_err(|error| error.to_string())?;
    socket.set_read_timeout(Some(PATIENCE)).map_err(|error| error.to_string())?;
    let whole = bench.outer(V, "ip={'flags': 0, 'id': 7}", "in4()/u(0, 600)");
    let before = passed(bench, "fragment")?;
    for fragment in ["frag=0, flags='MF')/Raw(whole[:400])", "frag=50, flags=0)/Raw(whole[400:])"] {
        let bytes: String = whole[34..].iter().map(|byte| format!("{byte:02x}")).collect();
        let fragment = fragment.replace("whole", &format!("bytes.fromhex('{bytes}')"));
        let packet =
            format!("Ether(src=FAR, dst=NEAR)/IP(src='{A4}', dst='{LOCAL4}', proto=17, id=7, {fragment}");
        let packet = bench.scapy(&packet);
        bench.refuses(V, &packet)?;
    }
    let counted = passed(bench, "fragment")? - before;
    ensure!(counted == 2, "2 fragments are counted as {counted}");
    let mut buffer = [0; 2000];
    let length =
        socket.recv(&mut buffer).map_err(|error| format!("the kernel does not get them: {error}"))?;
    ensure!(buffer[..length] == whole[42..], "the kernel gets something else");
    Ok(())
}

fn left_to_the_kernel(bench: &mut Bench) -> Outcome {
    bench.needs(Has::Reasons)?;
    let outer = |bench: &mut Bench, more: &str| bench.outer(V, more, "in4()/u()");
    for (reason, packet) in [
        ("other_vni", outer(bench, "vni=4711")),
        ("no_vni_flag", outer(bench, "flags=0")),
        ("other_port", outer(bench, "dport=4790")),
        ("other_address", outer(bench, "dst='192.0.2.77'")),
        ("not_udp", outer(bench, "ip={'proto': 6}")),
        ("malformed", outer(bench, "")[..44].to_vec()),
        ("not_ip", bench.scapy("Ether(src=FAR, dst=NEAR)/ARP(op=2)")),
    ] {
        let before = passed(bench, reason)?;
        bench.refuses(V, &packet)?;
        let counted = passed(bench, reason)? - before;
        ensure!(counted == 1, "{reason}: counted {counted} times");
    }
    Ok(())
}

fn rfc7348_s5_flags_sent(bench: &mut Bench) -> Outcome {
    let header = flow(bench, 0)?.vxlan;
    ensure!(header == [8, 0, 0, 0, 0, 0, V as u8, 0], "{header:02x?}");
    Ok(())
}

fn rfc7348_s5_flag_needed(bench: &mut Bench) -> Outcome {
    let good = bench.outer(V, "", "in4()/u()");
    // Ours leaves them to the kernel before they are counted.
    for flags in (0..=255u8).filter(|flags| flags & 8 == 0) {
        let mut packet = good.clone();
        packet[42] = flags;
        bench.refuses(V, &packet).map_err(|not| said(format!("flags {flags:#04x}"), not))?;
    }
    Ok(())
}

fn rfc7348_s5_reserved_ignored(bench: &mut Bench) -> Outcome {
    let good = bench.outer(V, "", "in4()/u()");
    let inner = bench.scapy("in4()/u()");
    for bit in (0..32).chain(56..64).filter(|bit| *bit != 4) {
        let mut packet = good.clone();
        packet[42 + bit / 8] ^= 0x80 >> (bit % 8);
        let what = format!("with bit {bit} of the header");
        bench.delivers(V, &packet, &inner).map_err(|not| said(what, not))?;
    }
    Ok(())
}

fn rfc7348_s5_ttl(bench: &mut Bench) -> Outcome {
    for ttl in [1, 64, 255] {
        let inner = bench.scapy(&format!("out4(ttl={ttl})/u()"));
        let sent = bench.leaves(V, &inner)?.ttl;
        ensure!(sent == 64, "{sent} instead of 64, the inner one is {ttl}");
    }
    Ok(())
}

fn rfc7348_s5_any_source_port(bench: &mut Bench) -> Outcome {
    for port in [1, 53, 4789, 49151, 65535] {
        taken(bench, &format!("sport={port}")).map_err(|not| said(port, not))?;
    }
    Ok(())
}

fn rfc0791_s3_1_header(bench: &mut Bench) -> Outcome {
    for size in [0, 1, 1472] {
        let inner = bench.scapy(&format!("out4()/u(0, {size})"));
        let sent = bench.leaves(V, &inner)?;
        let ip = &sent.bytes[sent.ip_at..];
        let total = usize::from(u16::from_be_bytes([ip[2], ip[3]]));
        ensure!(ip[0] == 0x45 && total == ip.len() && total == inner.len() + 36, "total length {total}");
        ensure!(sent.udp_length == inner.len() + 16, "UDP length {}", sent.udp_length);
        let (header, _) = etherparse::Ipv4Header::from_slice(ip).map_err(|error| error.to_string())?;
        ensure!(header.header_checksum == header.calc_header_checksum(), "header checksum");
    }
    Ok(())
}

fn rfc0791_s3_1_checksum_wrong(bench: &mut Bench) -> Outcome {
    let packet = bench.outer(V, "ip={'chksum': 0x1234}", "in4()/u()");
    bench.refuses(V, &packet)
}

fn rfc0791_s3_1_options_taken(bench: &mut Bench) -> Outcome {
    let inner = bench.scapy("in4()/u()");
    let packet = bench.outer(V, "ip={'options': [IPOption_NOP()] * 4}", "in4()/u()");
    let got = bench.inbound(V, &[packet])?;
    ensure!(got.is_empty() || got == [inner], "something else is delivered");
    Ok(())
}

fn rfc0791_s3_1_length(bench: &mut Bench) -> Outcome {
    let inner = bench.scapy("in4()/u()");
    let good = bench.outer(V, "", "in4()/u()");
    let too_long = bench.outer(V, &format!("ip={{'len': {}}}", good.len() - 14 + 1), "in4()/u()");
    bench.refuses(V, &too_long).map_err(|not| said("one byte too long", not))?;
    let padded = [&good[..], &[0xa5; 7]].concat();
    bench.delivers(V, &padded, &inner).map_err(|not| said("with padding", not))
}

fn rfc0768_length(bench: &mut Bench) -> Outcome {
    let good = bench.outer(V, "", "in4()/u()").len() - 34;
    for length in [0, 7, good + 1, 65535] {
        let packet = bench.outer(V, &format!("length={length}"), "in4()/u()");
        bench.refuses(V, &packet).map_err(|not| said(format!("length {length}"), not))?;
    }
    Ok(())
}

fn rfc6864_s4_1_identification(bench: &mut Bench) -> Outcome {
    taken(bench, "ip={'id': 0xbeef}")
}

/// What is sent for each inner ECN field.
fn encap(bench: &mut Bench, inner: impl Fn(u8) -> String) -> Outcome {
    for ecn in 0..4 {
        let inner = bench.scapy(&inner(ecn));
        let sent = bench.leaves(V, &inner)?;
        // The DSCP may be anything: it is a case of its own.
        ensure!(sent.tos & 3 == ecn, "{} is sent for {}", ecn_name(sent.tos & 3), ecn_name(ecn));
        ensure!(sent.inner == inner, "the inner packet is changed");
    }
    Ok(())
}

/// An ECN field's name.
pub fn ecn_name(ecn: u8) -> &'static str {
    ["Not-ECT", "ECT(1)", "ECT(0)", "CE"][usize::from(ecn & 3)]
}

fn rfc6040_s4_1_encap_ipv4(bench: &mut Bench) -> Outcome {
    encap(bench, |ecn| format!("out4(tos={ecn})/u()"))
}

fn rfc6040_s4_1_encap_ipv6(bench: &mut Bench) -> Outcome {
    encap(bench, |ecn| format!("out6(tc={ecn})/u()"))
}

/// RFC 6040, figure 4: rows are the inner field, columns the outer one, both by value (Not-ECT, ECT(1), ECT(0), CE); `None` is dropped.
const DECAP: [[Option<u8>; 4]; 4] = [
    [Some(0), Some(0), Some(0), None],
    [Some(1), Some(1), Some(1), Some(3)],
    [Some(2), Some(1), Some(2), Some(3)],
    [Some(3), Some(3), Some(3), Some(3)],
];

/// Delivered with the field that the RFC's table says; all that is wrong is told.
fn decap(bench: &mut Bench, inner: impl Fn(u8) -> String) -> Outcome {
    let mut wrong = BTreeMap::new();
    for inside in 0..4u8 {
        for outside in 0..4u8 {
            let packet = bench.outer(V, &format!("tos={outside}"), &inner(inside));
            let got = bench.inbound(V, &[packet])?;
            let right = DECAP[usize::from(inside)][usize::from(outside)];
            // scapy computes the checksums of the changed packet.
            let right: Vec<Vec<u8>> = right.map(|ecn| bench.scapy(&inner(ecn))).into_iter().collect();
            if got != right {
                let what = match (got.len(), right.len()) {
                    (0, 1) => "dropped",
                    (1, 0) => "delivered",
                    _ => "delivered with another field",
                };
                wrong.insert(format!("{} in {}", ecn_name(inside), ecn_name(outside)), what);
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "{}",
        wrong.iter().map(|(k, v)| format!("{k}: {v}")).collect::<Vec<_>>().join("; ")
    );
    Ok(())
}

fn rfc6040_s4_2_decap_ipv4(bench: &mut Bench) -> Outcome {
    decap(bench, |ecn| format!("in4(tos={ecn})/u()"))
}

fn rfc6040_s4_2_decap_ipv6(bench: &mut Bench) -> Outcome {
    decap(bench, |ecn| format!("in6(tc={ecn})/u()"))
}

fn rfc6040_s4_2_decap_vlan(bench: &mut Bench) -> Outcome {
    let packet = bench.outer(V, "tos=3", "Ether(src=STATION, dst=TENANT, type=0x8847)/bytes(60)");
    let inner = bench.scapy("Ether(src=STATION, dst=TENANT, type=0x8847)/bytes(60)");
    bench.delivers(V, &packet, &inner)
}
