//! The underlay: IPv6, several local addresses and ports, two paths to one remote, what networks say of the outer header; and VLANs.

use crate::bench::{Bench, Not, Outcome, said};
use crate::header::ecn_name;
use crate::sut::{
    A4, A6, B_MAC, B6, Dscp, ECMP4, Has, InnerVlan, Kind, LOCAL4, LOCAL6, Network, OTHER_LOCAL4, STRANGER4,
    Setup, VOICE_DSCP, Voice, WEIGHTED4,
};
use crate::{cases, ensure};

const SIX: u32 = 60;
const REFUSE: u32 = 61;
const STRIP: u32 = 62;
const CARRY: u32 = 63;
const COPY: u32 = 64;
const FIXED: u32 = 65;
const PORT: u32 = 66;
const LOCAL: u32 = 67;
const ECMP: u32 = 68;
const ANY: u32 = 69;
const VOICE: u32 = 58;
const CALLS: u32 = 57;
const WEIGHTED: u32 = 56;
/// As usual.
const PLAIN: u32 = 59;

static SETUP: Setup = Setup {
    locals: &[OTHER_LOCAL4, LOCAL6],
    ..Setup::new(&[
        Network::new(PLAIN, &[A4]),
        Network::new(SIX, &[A6, B6]),
        Network { refuse_reserved: true, ..Network::new(REFUSE, &[A4]) },
        Network { inner_vlan: InnerVlan::Strip, ..Network::new(STRIP, &[A4]) },
        Network { inner_vlan: InnerVlan::Carry, ..Network::new(CARRY, &[A4]) },
        Network { dscp: Dscp::Copy, ..Network::new(COPY, &[A4]) },
        Network { dscp: Dscp::Fixed(26), ..Network::new(FIXED, &[A4]) },
        Network { port: Some(8472), ..Network::new(PORT, &[A4]) },
        Network { local: Some(OTHER_LOCAL4), ..Network::new(LOCAL, &[A4]) },
        Network { voice: Voice::Network, ..Network::new(VOICE, &[A4]) },
        Network { voice: Voice::Port(5060), ..Network::new(CALLS, &[A4]) },
        Network::new(ECMP, &[ECMP4]),
        Network::new(WEIGHTED, &[WEIGHTED4]),
        Network { any_remote: true, ..Network::new(ANY, &[A4]) },
    ])
};

cases! { UNDERLAY = "IPv6 underlay, and options by network", SETUP;
    ipv6_underlay_both_ways: "RFC 8200", Must, "over IPv6, both ways: addresses, next header, payload length, hop limit";
    ipv6_underlay_flood: "RFC 7348 §4.2", Must, "over IPv6 a broadcast goes to each remote once";
    rfc8200_s8_1_checksum_sent: "RFC 8200 §8.1", Must, "over IPv6 the UDP checksum is sent, and right";
    rfc6935_s5_zero_taken: "RFC 6935 §5", May, "over IPv6 a zero checksum is accepted where that is configured";
    rfc8200_s8_1_wrong_dropped: "RFC 8200 §8.1", Must, "over IPv6 a wrong checksum: dropped";
    rfc8200_s4_5_fragment: "RFC 8200 §4.5", May, "over IPv6 a lone fragment is not taken for a packet";
    rfc8200_s4_extension_headers: "RFC 8200 §4", Must, "over IPv6 extension headers: read over or left alone, not mistaken for UDP";
    rfc8200_lengths: "RFC 8200 §3", Must, "over IPv6 lying lengths: dropped; bytes behind the packet are no part of it";
    rfc6040_over_ipv6: "RFC 6040 §4.2", Should, "over IPv6: CE comes through, CE over Not-ECT is dropped, encapsulation copies";
    rfc6438_flow_label: "RFC 6438 §3", Should, "over IPv6 a flow keeps its flow label and source port";
    source_port_over_ipv6: "RFC 7348 §4.1", Should, "over IPv6: source port in 49152–65535, port 4789";
    reserved_bits_refused: "RFC 7348 §5", Option, "reserved bits can be refused";
    rfc7348_s6_1_stripped: "RFC 7348 §6.1", Option, "inner VLAN tags can be taken off, both ways";
    rfc7348_s6_1_carried: "RFC 7348 §6.1", Option, "inner VLAN tags can be carried, both ways, two of them too";
    rfc2983_s4_copied: "RFC 2983 §4.1", Option, "outer DSCP copied from the inner one (uniform model): 64 values, both IP versions";
    rfc2983_s4_fixed: "RFC 2983 §4.1", Option, "outer DSCP fixed (pipe model)";
    rfc2474_s3_default: "RFC 2474 §4.1", Must, "outer DSCP is the default one where nothing is configured";
    rfc2475_s2_3_1_class_of_a_network: "RFC 2475 §2.3.1", Option, "outer DSCP by priority class: a network's";
    rfc2475_s2_3_1_class_of_flows: "RFC 2475 §2.3.1", Option, "outer DSCP by priority class: that of some flows, by a rule";
    rfc2983_s4_decap: "RFC 2983 §4.1", Must, "the inner DSCP is not changed by the outer one";
    port_by_network: "RFC 7348 §4.1", Should, "the UDP port is configurable, by network";
    port_of_another_network: "–", Option, "a network is not reached by another's port";
    local_by_network: "–", Option, "a network's own local address, both ways";
    ecmp_spread: "RFC 2992", Option, "two next hops to one remote: flows are spread over both, one flow stays on one";
    rfc2991_ecmp_weighted: "RFC 2991", Option, "next hops with weights, 3 and 1: flows are spread by them";
    any_remote_accepted: "–", Option, "a network may take frames of any VTEP";
    any_remote_learned: "–", Option, "what is behind such a VTEP is learned: frames go there";
    rfc1122_s3_2_1_3_source: "RFC 1122 §3.2.1.3", Must, "packets from our own address, 255.255.255.255, a group, 0.0.0.0, ::1: dropped, by a network that takes any VTEP too";
    rfc1122_s3_2_1_3_directed_broadcast: "RFC 1122 §3.2.1.3", Must, "packets from the broadcast address of the underlay's subnet: dropped, by a network that takes any VTEP too";
}

fn ipv6_underlay_both_ways(bench: &mut Bench) -> Outcome {
    bench.passes(SIX, "side4()/u()")?;
    let inner = bench.scapy("out6()/u()");
    let sent = bench.leaves(SIX, &inner)?;
    let ip = &sent.bytes[sent.ip_at..];
    ensure!(sent.from == LOCAL6 && sent.to == A6, "from {} to {}", sent.from, sent.to);
    let length = usize::from(u16::from_be_bytes([ip[4], ip[5]]));
    ensure!(
        length == ip.len() - 40 && sent.udp_length == length,
        "payload length {length}, UDP length {}",
        sent.udp_length
    );
    ensure!(ip[6] == 17 && sent.ttl == 64, "next header {}, hop limit {}", ip[6], sent.ttl);
    ensure!(
        sent.vxlan == [8, 0, 0, 0, 0, 0, SIX as u8, 0] && sent.inner == inner,
        "VXLAN header {:02x?}",
        sent.vxlan
    );
    Ok(())
}

fn ipv6_underlay_flood(bench: &mut Bench) -> Outcome {
    bench.needs(Has::HeadEnd)?;
    let inner = bench.scapy("Ether(src=TENANT, dst=ALL)/IP(src=T4, dst='255.255.255.255')/u()");
    let sent = bench.outbound(SIX, &[inner])?;
    let to = crate::overlay::to(&sent);
    ensure!(to == [A6, B6], "it goes to {to:?}");
    Ok(())
}

fn rfc8200_s8_1_checksum_sent(bench: &mut Bench) -> Outcome {
    for size in [0, 1, 2, 31, 1471, 1472] {
        let inner = bench.scapy(&format!("out4()/u(0, {size})"));
        let sent = bench.leaves(SIX, &inner)?;
        ensure!(sent.checksum != 0, "zero");
        let headers =
            etherparse::SlicedPacket::from_ethernet(&sent.bytes).map_err(|error| error.to_string())?;
        let (Some(etherparse::NetSlice::Ipv6(ip)), Some(etherparse::TransportSlice::Udp(udp))) =
            (&headers.net, &headers.transport)
        else {
            return Err(Not::Fail("no UDP over IPv6".into()));
        };
        let right = udp.to_header().calc_checksum_ipv6(&ip.header().to_header(), udp.payload());
        ensure!(right == Ok(sent.checksum), "{size} bytes: {:#06x} instead of {right:?}", sent.checksum);
    }
    Ok(())
}

fn taken6(bench: &mut Bench, more: &str) -> Outcome {
    let packet = bench.outer(SIX, more, "in4()/u()");
    let inner = bench.scapy("in4()/u()");
    bench.delivers(SIX, &packet, &inner)
}

fn rfc6935_s5_zero_taken(bench: &mut Bench) -> Outcome {
    taken6(bench, "chksum=0")
}

fn rfc8200_s8_1_wrong_dropped(bench: &mut Bench) -> Outcome {
    let packet = bench.outer(SIX, "chksum=0x1234", "in4()/u()");
    bench.refuses_as(SIX, &packet, "outer_udp_checksum")
}

/// The packet with this between its IPv6 header and UDP.
fn extended(bench: &mut Bench, extension: &str) -> Vec<u8> {
    bench.scapy(&format!(
        "Ether(src=FAR, dst=NEAR)/IPv6(src='{A6}', dst='{LOCAL6}')/{extension}/UDP(sport=50000, dport=4789)/VXLAN(vni={SIX}, flags=8)/in4()/u()"
    ))
}

fn rfc8200_s4_5_fragment(bench: &mut Bench) -> Outcome {
    for header in ["IPv6ExtHdrFragment(id=7, m=1)", "IPv6ExtHdrFragment(id=8, offset=20)"] {
        let packet = extended(bench, header);
        bench.refuses(SIX, &packet).map_err(|not| said(header, not))?;
    }
    Ok(())
}

fn rfc8200_s4_extension_headers(bench: &mut Bench) -> Outcome {
    let inner = bench.scapy("in4()/u()");
    for header in [
        "IPv6ExtHdrHopByHop(options=[PadN(optdata=b'1234')])",
        "IPv6ExtHdrDestOpt(options=[PadN(optdata=b'1234')])",
    ] {
        let packet = extended(bench, header);
        let got = bench.inbound(SIX, &[packet])?;
        ensure!(got.is_empty() || got == [inner.clone()], "{header}: something else is delivered");
    }
    Ok(())
}

fn rfc8200_lengths(bench: &mut Bench) -> Outcome {
    let good = bench.outer(SIX, "chksum='right'", "in4()/u()");
    let inner = bench.scapy("in4()/u()");
    let length = good.len() - 54;
    for (what, more) in [
        ("payload length too long", format!("ip={{'plen': {}}}", length + 1)),
        ("UDP length too long", format!("length={}", length + 1)),
        ("UDP length 7", "length=7".to_string()),
    ] {
        let packet = bench.outer(SIX, &more, "in4()/u()");
        bench.refuses(SIX, &packet).map_err(|not| said(what, not))?;
    }
    let padded = [&good[..], &[0xa5; 5]].concat();
    bench.delivers(SIX, &padded, &inner).map_err(|not| said("with padding", not))
}

fn rfc6040_over_ipv6(bench: &mut Bench) -> Outcome {
    let packet = bench.outer(SIX, "tos=3", "in4(tos=2)/u()");
    let inner = bench.scapy("in4(tos=3)/u()");
    bench.delivers(SIX, &packet, &inner).map_err(|not| said("CE", not))?;
    let packet = bench.outer(SIX, "tos=3", "in4(tos=0)/u()");
    bench.refuses_as(SIX, &packet, "ecn_invalid").map_err(|not| said("CE over Not-ECT", not))?;
    for ecn in 0..4 {
        let inner = bench.scapy(&format!("out6(tc={ecn})/u()"));
        let sent = bench.leaves(SIX, &inner)?;
        ensure!(sent.tos & 3 == ecn, "{} is sent for {}", ecn_name(sent.tos & 3), ecn_name(ecn));
    }
    Ok(())
}

fn rfc6438_flow_label(bench: &mut Bench) -> Outcome {
    let mut seen = Vec::new();
    for size in [10, 600, 1400] {
        let inner = bench.scapy(&format!("out4()/u(3, {size})"));
        let sent = bench.leaves(SIX, &inner)?;
        let label = u32::from_be_bytes([0, sent.bytes[15] & 15, sent.bytes[16], sent.bytes[17]]);
        seen.push((label, sent.source_port));
    }
    ensure!(seen.windows(2).all(|pair| pair[0] == pair[1]), "label and port: {seen:?}");
    Ok(())
}

fn source_port_over_ipv6(bench: &mut Bench) -> Outcome {
    for flow in 0..32 {
        let inner = bench.scapy(&format!("out6()/u({flow})"));
        let sent = bench.leaves(SIX, &inner)?;
        ensure!(sent.source_port >= 49152 && sent.port == 4789, "{} to {}", sent.source_port, sent.port);
    }
    Ok(())
}

fn reserved_bits_refused(bench: &mut Bench) -> Outcome {
    bench.needs(Has::RefuseReserved)?;
    for bits in ["flags=0x88", "reserved1=1", "reserved2=1", "gpid=7, flags=0x88"] {
        let packet = bench.outer(REFUSE, bits, "in4()/u()");
        bench.refuses_as(REFUSE, &packet, "vxlan_reserved_set").map_err(|not| said(bits, not))?;
    }
    Ok(())
}

fn rfc7348_s6_1_stripped(bench: &mut Bench) -> Outcome {
    bench.needs(Has::VlanStripped)?;
    let packet = bench.outer(STRIP, "", "inn/Dot1Q(vlan=7)/IP(src=S4, dst=T4)/u()");
    let inner = bench.scapy("in4()/u()");
    bench.delivers(STRIP, &packet, &inner).map_err(|not| said("from the wire", not))?;
    let tagged = bench.scapy("out/Dot1Q(vlan=7)/IP(src=T4, dst=S4)/u()");
    let plain = bench.scapy("out4()/u()");
    let sent = bench.leaves(STRIP, &tagged)?;
    ensure!(sent.inner == plain, "from the tenant it is sent otherwise");
    Ok(())
}

fn rfc7348_s6_1_carried(bench: &mut Bench) -> Outcome {
    if bench.kind != Kind::Peregrine {
        return Err(Not::Untried(
            "the packet socket that is its tenant is shown frames without their tag".into(),
        ));
    }
    for tags in ["Dot1Q(vlan=7, prio=5)", "Dot1Q(vlan=0)", "Dot1AD(vlan=8)/Dot1Q(vlan=7)"] {
        let (s, t) = ("IP(src=S4, dst=T4)/u()", "IP(src=T4, dst=S4)/u()");
        let packet = bench.outer(CARRY, "", &format!("inn/{tags}/{s}"));
        let inner = bench.scapy(&format!("inn/{tags}/{s}"));
        bench.delivers(CARRY, &packet, &inner).map_err(|not| said(format!("{tags} from the wire"), not))?;
        let inner = bench.scapy(&format!("out/{tags}/{t}"));
        let sent = bench.leaves(CARRY, &inner).map_err(|not| said(format!("{tags} from the tenant"), not))?;
        ensure!(sent.inner == inner, "{tags} from the tenant: changed");
    }
    Ok(())
}

fn rfc2983_s4_copied(bench: &mut Bench) -> Outcome {
    bench.needs(Has::DscpCopied)?;
    for dscp in 0..64u8 {
        let six = format!("out6(tc={})/u()", dscp << 2 | 2);
        for inner in [format!("out4(tos={})/u()", dscp << 2 | 1), six] {
            let inner = bench.scapy(&inner);
            let sent = bench.leaves(COPY, &inner)?;
            ensure!(sent.tos >> 2 == dscp, "{} for {dscp}", sent.tos >> 2);
        }
    }
    Ok(())
}

fn rfc2983_s4_fixed(bench: &mut Bench) -> Outcome {
    bench.needs(Has::DscpFixed)?;
    for dscp in [0u8, 10, 46, 63] {
        let inner = bench.scapy(&format!("out4(tos={})/u()", dscp << 2));
        let sent = bench.leaves(FIXED, &inner)?;
        ensure!(sent.tos >> 2 == 26, "{} instead of 26, the inner one is {dscp}", sent.tos >> 2);
    }
    Ok(())
}

fn rfc2474_s3_default(bench: &mut Bench) -> Outcome {
    for dscp in [0u8, 46] {
        let inner = bench.scapy(&format!("out4(tos={})/u()", dscp << 2));
        let sent = bench.leaves(PLAIN, &inner)?;
        ensure!(sent.tos >> 2 == 0, "{} with an inner one of {dscp}", sent.tos >> 2);
    }
    Ok(())
}

/// What is sent for each of these inner packets has this DSCP; the inner one stays, and so do congestion marks.
fn classed(bench: &mut Bench, network: u32, port: u16, dscp: u8) -> Outcome {
    bench.needs(Has::Classes)?;
    for inside in [0u8, 26, 63] {
        for inner in [
            format!("out4(tos={})/UDP(sport=7, dport={port})/bytes(8)", inside << 2 | 3),
            format!("out6(tc={})/UDP(sport=7, dport={port})/bytes(8)", inside << 2 | 3),
        ] {
            let inner = bench.scapy(&inner);
            let sent = bench.leaves(network, &inner)?;
            ensure!(sent.tos == dscp << 2 | 3, "{:#04x} with an inner DSCP of {inside}", sent.tos);
            ensure!(sent.inner == inner, "the inner packet is changed");
        }
    }
    Ok(())
}

fn rfc2475_s2_3_1_class_of_a_network(bench: &mut Bench) -> Outcome {
    classed(bench, VOICE, 9000, VOICE_DSCP)?;
    classed(bench, PLAIN, 9000, 0).map_err(|not| said("another network", not))
}

fn rfc2475_s2_3_1_class_of_flows(bench: &mut Bench) -> Outcome {
    bench.is_strange = true; // nothing of what tshark expects at that port
    classed(bench, CALLS, 5060, VOICE_DSCP)?;
    classed(bench, CALLS, 9000, 0).map_err(|not| said("the others", not))?;
    classed(bench, PLAIN, 5060, 0).map_err(|not| said("another network", not))
}

fn rfc2983_s4_decap(bench: &mut Bench) -> Outcome {
    for network in [PLAIN, COPY, FIXED] {
        let packet = bench.outer(network, "tos=0xb8", "in4(tos=0x28)/u()");
        let inner = bench.scapy("in4(tos=0x28)/u()");
        bench.delivers(network, &packet, &inner)?;
    }
    Ok(())
}

fn port_by_network(bench: &mut Bench) -> Outcome {
    bench.needs(Has::PortPerNetwork)?;
    bench.passes(PORT, "side4()/u()")?;
    let inner = bench.scapy("out4()/u()");
    let port = bench.leaves(PORT, &inner)?.port;
    ensure!(port == 8472, "it is sent to port {port}");
    Ok(())
}

fn port_of_another_network(bench: &mut Bench) -> Outcome {
    for (network, port) in [(PORT, 4789), (PLAIN, 8472)] {
        let packet = bench.outer(network, &format!("dport={port}"), "in4()/u()");
        bench
            .refuses(network, &packet)
            .map_err(|not| said(format!("network {network} by port {port}"), not))?;
    }
    Ok(())
}

fn local_by_network(bench: &mut Bench) -> Outcome {
    bench.needs(Has::SeveralLocals)?;
    bench.passes(LOCAL, "side4()/u()")?;
    let inner = bench.scapy("out4()/u()");
    let from = bench.leaves(LOCAL, &inner)?.from;
    ensure!(from == OTHER_LOCAL4, "it is sent from {from}");
    let from = bench.leaves(PLAIN, &inner)?.from;
    ensure!(from == LOCAL4, "another network's is sent from {from}");
    Ok(())
}

/// How many of 256 flows go by the second router; each stays on its way.
fn by_second(bench: &mut Bench, network: u32) -> Result<u32, Not> {
    bench.needs(Has::Ecmp)?;
    let inner = bench.scapy("out4()/u()");
    bench
        .leaves(network, &inner)
        .map_err(|_| Not::Fail("nothing leaves where a route has two next hops".into()))?;
    let second = crate::answers::mac(B_MAC);
    let mut by_second = 0;
    for flow in 0..256 {
        let inner = bench.scapy(&format!("out4()/UDP(sport={}, dport=9000)/bytes(8)", 20000 + flow));
        let first = bench.leaves(network, &inner)?;
        by_second += u32::from(first.bytes[..6] == second);
        if flow % 16 == 0 {
            let again = bench.leaves(network, &inner)?;
            ensure!(again.bytes[..6] == first.bytes[..6], "one flow goes both ways");
        }
    }
    Ok(by_second)
}

fn ecmp_spread(bench: &mut Bench) -> Outcome {
    let by_second = by_second(bench, ECMP)?;
    // 256 throws of a coin: outside of this once in a million runs.
    ensure!((88..=168).contains(&by_second), "{by_second} of 256 flows go by the second router");
    Ok(())
}

fn rfc2991_ecmp_weighted(bench: &mut Bench) -> Outcome {
    let by_second = by_second(bench, WEIGHTED)?;
    // 64 are expected: outside of this once in a million runs.
    ensure!((31..=98).contains(&by_second), "{by_second} of 256 flows go by the second router");
    Ok(())
}

fn any_remote_accepted(bench: &mut Bench) -> Outcome {
    let packet = bench.outer_from(
        ANY,
        STRANGER4,
        "",
        "Ether(src='02:00:00:00:42:51', dst=TENANT)/IP(src=S4, dst=T4)/u()",
    );
    let inner = bench.scapy("Ether(src='02:00:00:00:42:51', dst=TENANT)/IP(src=S4, dst=T4)/u()");
    if bench.kind == Kind::Ovs {
        return Err(Not::Absent("needs a flow-based port beside those of the remotes".into()));
    }
    bench.delivers(ANY, &packet, &inner)
}

fn any_remote_learned(bench: &mut Bench) -> Outcome {
    any_remote_accepted(bench)?;
    let inner = "Ether(src='02:00:00:00:42:51', dst=TENANT)/IP(src=S4, dst=T4)/u()";
    let packet = bench.outer_from(ANY, STRANGER4, "", inner);
    // The VTEP may have to be taken in first: its next frame is then learned from.
    let mut outcome = Ok(());
    for _ in 0..50 {
        bench.inbound(ANY, std::slice::from_ref(&packet))?;
        let frame = bench.scapy("Ether(src=TENANT, dst='02:00:00:00:42:51')/IP(src=T4, dst=S4)/u()");
        let sent = bench.outbound(ANY, &[frame])?;
        let to = crate::overlay::to(&sent);
        outcome = if to == [STRANGER4] { Ok(()) } else { Err(Not::Fail(format!("frames go to {to:?}"))) };
        if outcome.is_ok() {
            break;
        }
    }
    outcome
}

/// Nothing from this address comes.
fn refuses_source(bench: &mut Bench, network: u32, source: &str) -> Outcome {
    let inner = "Ether(src='02:00:00:00:42:52', dst=TENANT)/IP(src=S4, dst=T4)/u()";
    let more = if source.contains(':') { "chksum='right'" } else { "" };
    let packet = bench.outer_from(network, source, more, inner);
    let of = if network == ANY { ", by a network that takes any VTEP" } else { "" };
    bench.refuses(network, &packet).map_err(|not| said(format!("from {source}{of}"), not))
}

fn rfc1122_s3_2_1_3_source(bench: &mut Bench) -> Outcome {
    for network in [PLAIN, ANY] {
        for source in [LOCAL4, OTHER_LOCAL4, "255.255.255.255", "0.0.0.0", "127.0.0.1", "224.0.0.1"] {
            refuses_source(bench, network, source)?;
        }
    }
    [LOCAL6, "::", "::1", "ff02::1"].iter().try_for_each(|source| refuses_source(bench, SIX, source))
}

fn rfc1122_s3_2_1_3_directed_broadcast(bench: &mut Bench) -> Outcome {
    [PLAIN, ANY].iter().try_for_each(|network| refuses_source(bench, *network, "192.0.2.255"))
}
