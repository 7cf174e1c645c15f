//! Inner frames of every kind pass as they are, both ways; what is malformed around them is not delivered, and told apart.

use crate::bench::{Bench, Not, Outcome, said};
use crate::sut::{A4, Has, Kind, Network, Setup};
use crate::{cases, ensure};

const V: u32 = 42;
static SETUP: Setup = Setup::new(&[Network::new(V, &[A4])]);

cases! { TRANSPARENCY = "Inner frames, and malformed ones", SETUP;
    ipv4_udp: "RFC 7348 §3", Must, "IPv4: UDP, without and with checksum";
    ipv4_tcp: "RFC 7348 §3", Must, "IPv4: TCP with options";
    ipv4_options: "RFC 7348 §3", Must, "IPv4 with options (router alert, record route)";
    ipv4_fragments: "RFC 7348 §3", Must, "IPv4 fragments: first, middle, last";
    ipv4_icmp: "RFC 7348 §3", Must, "IPv4: ICMP, IGMP";
    ipv6: "RFC 7348 §3", Must, "IPv6: UDP, TCP, ICMPv6";
    ipv6_extensions: "RFC 7348 §3", Must, "IPv6 with hop-by-hop, routing, destination options, fragment header";
    gre: "RFC 7348 §3", Must, "GRE, IP in IP, IPv6 in IPv4";
    sctp: "RFC 7348 §3", Must, "SCTP with its CRC32c";
    esp: "RFC 7348 §3", Must, "ESP and AH";
    arp: "RFC 7348 §3", Must, "ARP replies, unicast";
    mpls: "RFC 7348 §3", Must, "MPLS, PPPoE, unknown EtherTypes";
    llc: "RFC 7348 §3", Must, "IEEE 802.3 length and LLC instead of an EtherType";
    nested_vxlan: "RFC 7348 §3", Must, "VXLAN within VXLAN";
    sizes: "RFC 7348 §4.3", Must, "every size from 60 bytes to the MTU, in steps of 61, and the MTU itself";
    garbage: "RFC 7348 §3", Must, "inner packets that lie about their lengths: not the VTEP's business";
    inner_checksum: "RFC 7348 §3", Must, "a wrong inner checksum passes as it is";
    mtu_in: "–", Option, "from the wire, longer than the network's MTU: not delivered";
    truncations: "RFC 791, 768, 7348 §5", Must, "every truncation of a good packet, lengths as they were: nothing is delivered";
    truncated_payload: "RFC 7348 §5", Must, "every truncation with right outer lengths: no header is read beyond its end";
    reasons: "–", Option, "each malformation is counted under its own reason";
    partial_checksums_ipv4: "–", Option, "unfinished TCP and UDP checksums of a sender on the same machine are completed: IPv4";
    partial_checksums_ipv6: "–", Option, "the same: IPv6";
    partial_checksums_sctp: "–", Option, "unfinished SCTP CRC32c is completed";
}

/// All of these pass both ways; `side` becomes `in` or `out`.
fn all_pass(bench: &mut Bench, inner: &[&str]) -> Outcome {
    inner.iter().try_for_each(|inner| bench.passes(V, inner).map_err(|not| said(inner, not)))
}

fn ipv4_udp(bench: &mut Bench) -> Outcome {
    all_pass(
        bench,
        &[
            "side4()/u()",
            "side4()/UDP(sport=1, dport=2, chksum=0)/bytes(33)",
            "side4(tos=0xb8, ttl=1)/u(0, 0)",
        ],
    )
}

fn ipv4_tcp(bench: &mut Bench) -> Outcome {
    all_pass(
        bench,
        &[
            "side4()/TCP(sport=1000, dport=80, flags='S', options=[('MSS', 1460), ('SAckOK', b''), ('Timestamp', (1, 0)), ('WScale', 7)])",
            "side4()/TCP(sport=1000, dport=80, flags='PA', seq=1, ack=1)/bytes(1000)",
        ],
    )
}

fn ipv4_options(bench: &mut Bench) -> Outcome {
    all_pass(
        bench,
        &[
            "side4(options=[IPOption_Router_Alert()])/u()",
            "side4(options=[IPOption_RR(routers=['0.0.0.0'] * 9)])/u()",
        ],
    )
}

fn ipv4_fragments(bench: &mut Bench) -> Outcome {
    bench.is_strange = true;
    all_pass(
        bench,
        &[
            "side4(id=9, flags='MF')/UDP(sport=1, dport=2, len=4000, chksum=0)/bytes(1000)",
            "side4(id=9, flags='MF', frag=126, proto=17)/bytes(1000)",
            "side4(id=9, frag=251, proto=17)/bytes(30)",
        ],
    )
}

fn ipv4_icmp(bench: &mut Bench) -> Outcome {
    all_pass(
        bench,
        &[
            "side4()/ICMP(type=0, id=7, seq=1)/bytes(56)",
            "side4(proto=2, ttl=1)/bytes.fromhex('1600f8faef010203')",
        ],
    )
}

fn ipv6(bench: &mut Bench) -> Outcome {
    all_pass(
        bench,
        &[
            "side6(tc=0xb8, fl=0x12345)/u()",
            "side6()/TCP(sport=1000, dport=80, flags='A', seq=5, ack=6)/bytes(100)",
            "side6()/ICMPv6EchoReply(id=7, seq=1)/bytes(56)",
        ],
    )
}

fn ipv6_extensions(bench: &mut Bench) -> Outcome {
    bench.is_strange = true;
    all_pass(
        bench,
        &[
            "side6()/IPv6ExtHdrHopByHop(options=[RouterAlert()])/u()",
            "side6()/IPv6ExtHdrDestOpt(options=[PadN(optdata=b'1234')])/u()",
            "side6()/IPv6ExtHdrRouting(type=0, segleft=0, addresses=['fd42::9'])/u()",
            "side6()/IPv6ExtHdrFragment(id=5, m=1)/UDP(sport=1, dport=2, len=3000, chksum=1)/bytes(1000)",
            "side6()/IPv6ExtHdrFragment(id=5, offset=126, nh=17)/bytes(500)",
        ],
    )
}

fn gre(bench: &mut Bench) -> Outcome {
    all_pass(
        bench,
        &[
            "side4()/GRE(key_present=1, key=5)/IP(src='10.1.1.1', dst='10.1.1.2')/u()",
            "side4()/IP(src='10.1.1.1', dst='10.1.1.2')/u()",
            "side4()/IPv6(src='fd01::1', dst='fd01::2')/u()",
        ],
    )
}

fn sctp(bench: &mut Bench) -> Outcome {
    all_pass(
        bench,
        &["side4()/SCTP(sport=1, dport=2)/SCTPChunkInit()", "side6()/SCTP(sport=1, dport=2)/SCTPChunkInit()"],
    )
}

fn esp(bench: &mut Bench) -> Outcome {
    bench.is_strange = true;
    all_pass(
        bench,
        &[
            "side4()/ESP(spi=0x1234, seq=9, data=bytes(range(100)))",
            "side6(nh=50)/bytes(range(100))",
            "side4()/AH(spi=0x1234, seq=9, icv=bytes(12), nh=17)/u()",
        ],
    )
}

fn arp(bench: &mut Bench) -> Outcome {
    let reply = |ends: &str| {
        format!("{ends}/ARP(op=2, hwsrc={ends}.src, hwdst={ends}.dst, psrc='10.42.0.77', pdst='10.42.0.78')")
    };
    // The names of the ends are `inn` and `out`: each way by itself.
    let inner = bench.scapy(&reply("inn"));
    let packet = bench.outer(V, "", &format!("({})", reply("inn")));
    bench.delivers(V, &packet, &inner)?;
    let inner = bench.scapy(&reply("out"));
    let sent = bench.leaves(V, &inner)?;
    ensure!(sent.inner == inner, "it is changed");
    Ok(())
}

fn mpls(bench: &mut Bench) -> Outcome {
    bench.is_strange = true;
    all_pass(
        bench,
        &[
            "side/MPLS(label=77, s=1)/IP(src=T4, dst=S4)/u()",
            "Ether(bytes(side)[:12] + b'\\x88\\x64')/bytes.fromhex('1100000500020021')/bytes(40)",
            "Ether(bytes(side)[:12] + b'\\x12\\x34')/bytes(46)",
            "Ether(bytes(side)[:12] + b'\\xff\\xff')/bytes(46)",
        ],
    )
}

fn llc(bench: &mut Bench) -> Outcome {
    bench.is_strange = true;
    all_pass(
        bench,
        &[
            "Ether(bytes(side)[:12] + b'\\x00\\x2e')/bytes.fromhex('aaaa03000000080b')/bytes(38)",
            "Ether(bytes(side)[:12] + b'\\x00\\x2e')/bytes.fromhex('424203')/bytes(43)",
        ],
    )
}

fn nested_vxlan(bench: &mut Bench) -> Outcome {
    all_pass(
        bench,
        &[
            "side4()/UDP(sport=50001, dport=4789, chksum=0)/VXLAN(vni=42, flags=8)/Ether(src='02:00:00:00:99:01', dst=ALL)/IP(src='10.9.9.9', dst='10.9.9.8')/u()",
        ],
    )
}

fn sizes(bench: &mut Bench) -> Outcome {
    for length in (46..1500).step_by(61).chain([1499, 1500]) {
        bench
            .passes(V, &format!("side4()/UDP(sport=1, dport=2)/bytes({})", length - 28))
            .map_err(|not| said(format!("{length} bytes"), not))?;
    }
    Ok(())
}

fn garbage(bench: &mut Bench) -> Outcome {
    bench.is_strange = true;
    all_pass(
        bench,
        &[
            "side4(len=9999)/u()",
            "side4(len=4)/u()",
            "side4(ihl=15)/u()",
            "side4(version=7)/u()",
            "side6(plen=9999)/u()",
            "side4()/UDP(len=3)/bytes(40)",
            "side4()/TCP(dataofs=15)",
        ],
    )
}

fn inner_checksum(bench: &mut Bench) -> Outcome {
    bench.is_strange = true;
    all_pass(
        bench,
        &[
            "side4(chksum=0x1111)/u()",
            "side4()/UDP(sport=1, dport=2, chksum=0x2222)/bytes(32)",
            "side6()/TCP(chksum=0x3333)",
        ],
    )
}

fn mtu_in(bench: &mut Bench) -> Outcome {
    let packet = bench.outer(V, "", "in4()/u(0, 1473)");
    bench.refuses_as(V, &packet, "inner_too_long")
}

fn truncations(bench: &mut Bench) -> Outcome {
    let good = bench.outer(V, "", "in4()/u()");
    for length in 14..good.len() {
        let got = bench.inbound(V, &[good[..length].to_vec()])?;
        ensure!(got.is_empty(), "cut to {length} bytes it is delivered");
    }
    Ok(())
}

fn truncated_payload(bench: &mut Bench) -> Outcome {
    let inner = bench.scapy("in4()/u()");
    for length in (0..8 + inner.len()).step_by(1) {
        let cut = "UDP(sport=50000, dport=4789, chksum=0)";
        let packet = bench.scapy(&format!(
            "Ether(src=FAR, dst=NEAR)/IP(src='{A4}', dst='192.0.2.1', id=0)/{cut}/(bytes(VXLAN(vni=42, flags=8)/in4()/u())[:{length}])"
        ));
        let got = bench.inbound(V, &[packet])?;
        // An Ethernet header that is whole is a frame; what is in it is not ours to judge.
        let right: &[Vec<u8>] = &if length >= 8 + 14 { vec![inner[..length - 8].to_vec()] } else { vec![] };
        ensure!(
            got == right || (length < 8 + 60 && got.is_empty()),
            "{length} bytes of payload: {} frames are delivered",
            got.len()
        );
    }
    Ok(())
}

fn reasons(bench: &mut Bench) -> Outcome {
    bench.needs(Has::Reasons)?;
    for (reason, more, inner) in [
        ("outer_ip_checksum", "ip={'chksum': 0x1234}", "in4()/u()"),
        ("outer_ip_invalid", "ip={'len': 2000}", "in4()/u()"),
        ("outer_udp_invalid", "length=2000", "in4()/u()"),
        ("outer_udp_invalid", "length=7", "in4()/u()"),
        ("outer_udp_checksum", "chksum=0x1234", "in4()/u()"),
        ("remote_unknown", "src='192.0.2.66'", "in4()/u()"),
        ("inner_truncated", "", "bytes(13)"),
        ("inner_source_invalid", "", "Ether(src='01:00:00:00:00:01', dst=TENANT)/bytes(46)"),
        ("inner_vlan_tagged", "", "inn/Dot1Q(vlan=5)/bytes(46)"),
        ("inner_too_long", "", "in4()/u(0, 1473)"),
        ("split_horizon", "", "Ether(src='02:00:00:00:42:31', dst=STATION)/bytes(46)"),
    ] {
        // A split horizon needs somebody behind it who is elsewhere: the station is behind the only remote.
        let reason = if reason == "split_horizon" { "hairpin" } else { reason };
        let packet = bench.outer(V, more, inner);
        let (before, all) = (counted(bench, reason)?, counted(bench, "all")?);
        bench.refuses(V, &packet).map_err(|not| said(reason, not))?;
        let (now, all_now) = (counted(bench, reason)?, counted(bench, "all")?);
        let either = reason == "hairpin" && all_now == all + 1;
        ensure!(
            either || (now, all_now) == (before + 1, all + 1),
            "{reason}: counted {} times, {} drops in all",
            now - before,
            all_now - all
        );
    }
    Ok(())
}

fn counted(bench: &Bench, reason: &str) -> Result<u64, Not> {
    bench.sut.drops(reason).ok_or_else(|| Not::Fail("no counters".into()))
}

/// A packet whose checksum holds only the sum over its pseudo header, as a kernel's stack leaves it to a card; it must come with the
/// right one.
fn completed(bench: &mut Bench, packets: &[(&str, &str)]) -> Outcome {
    if bench.kind != Kind::Peregrine {
        return Err(Not::Absent("learns of it from the kernel, beside the packet".into()));
    }
    for (unfinished, right) in packets {
        let packet = bench.outer(V, "", unfinished);
        let inner = bench.scapy(right);
        bench.delivers(V, &packet, &inner).map_err(|not| said(right, not))?;
    }
    Ok(())
}

/// scapy's sum over the pseudo header alone: its complement's complement.
const PSEUDO: &str = "0xffff ^ checksum(bytes(socket.inet_pton(socket.AF_INET";

fn partial_checksums_ipv4(bench: &mut Bench) -> Outcome {
    let sum = |protocol: u8, length: usize| {
        format!(
            "({PSEUDO}, S4)) + socket.inet_pton(socket.AF_INET, T4) + struct.pack('!HH', {protocol}, {length})))"
        )
    };
    completed(
        bench,
        &[
            (
                &format!("in4()/UDP(sport=1, dport=2, chksum={})/bytes(range(33))", sum(17, 41)),
                "in4()/UDP(sport=1, dport=2)/bytes(range(33))",
            ),
            (
                &format!("in4()/TCP(sport=1, dport=2, chksum={})/bytes(range(100))", sum(6, 120)),
                "in4()/TCP(sport=1, dport=2)/bytes(range(100))",
            ),
        ],
    )
}

fn partial_checksums_ipv6(bench: &mut Bench) -> Outcome {
    let pton = |address: &str| format!("socket.inet_pton(socket.AF_INET6, {address})");
    let sum = |protocol: u8, length: usize| {
        format!(
            "(0xffff ^ checksum({} + {} + struct.pack('!II', {length}, {protocol})))",
            pton("S6"),
            pton("T6")
        )
    };
    completed(
        bench,
        &[
            (
                &format!("in6()/UDP(sport=1, dport=2, chksum={})/bytes(range(33))", sum(17, 41)),
                "in6()/UDP(sport=1, dport=2)/bytes(range(33))",
            ),
            (
                &format!("in6()/TCP(sport=1, dport=2, chksum={})/bytes(range(100))", sum(6, 120)),
                "in6()/TCP(sport=1, dport=2)/bytes(range(100))",
            ),
        ],
    )
}

fn partial_checksums_sctp(bench: &mut Bench) -> Outcome {
    completed(
        bench,
        &[(
            "in4()/SCTP(sport=1, dport=2, chksum=0)/SCTPChunkInit()",
            "in4()/SCTP(sport=1, dport=2)/SCTPChunkInit()",
        )],
    )
}
