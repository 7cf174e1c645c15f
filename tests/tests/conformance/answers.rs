//! What a VTEP answers for others: "packet too big" to who sends what does not fit, addresses that are known, announcements; and
//! what it does with TCP's MSS.

use crate::bench::{Bench, Not, Outcome, Outer, said};
use crate::sut::{
    A4, A6, Has, Kind, LEARN4, LEARN6, LITTLE4, LOCAL4, LOCAL6, Network, SMALL_MTU, SMALL4, SMALL6, Setup,
    TENANT_MAC,
};
use crate::{cases, ensure};
use std::time::{Duration, Instant};

const FOUR: u32 = 80;
const SMALL: u32 = 81;
const SMALL_SIX: u32 = 82;
const CLAMP: u32 = 83;
const KNOWN: u32 = 84;
const ANNOUNCE: u32 = 85;
const LEARN: u32 = 86;
const LEARN_SIX: u32 = 87;
const LEARN_LITTLE: u32 = 88;
static SETUP: Setup = Setup {
    locals: &[LOCAL6],
    ..Setup::new(&[
        Network { gateways: &["10.42.0.254", "fd42::fe"], ..Network::new(FOUR, &[A4]) },
        Network::new(SMALL, &[SMALL4]),
        Network::new(SMALL_SIX, &[SMALL6]),
        Network { mtu: 1400, clamp_mss: true, ..Network::new(CLAMP, &[A4]) },
        Network {
            suppression: true,
            known: &[("02:00:00:00:42:02", A4, &["10.42.0.2", "fd42::2"])],
            ..Network::new(KNOWN, &[A4])
        },
        Network { announce: true, ..Network::new(ANNOUNCE, &[A4]) },
        Network::new(LEARN, &[LEARN4]),
        Network::new(LEARN_SIX, &[LEARN6]),
        Network::new(LEARN_LITTLE, &[LITTLE4]),
    ])
};

cases! { ANSWERS = "MTU, and what is answered for others", SETUP;
    rfc1191_s4_too_long_for_the_network: "RFC 1191 §4", Should, "a tenant's IPv4 packet beyond the network's MTU: ICMP type 3, code 4, with the MTU";
    rfc4443_s3_2_too_long_for_the_network: "RFC 4443 §3.2", Should, "a tenant's IPv6 packet beyond the network's MTU: ICMPv6 type 2 with the MTU";
    rfc1191_s4_path: "RFC 1191 §4", Should, "IPv4 beyond what the path to the remote takes: the MTU told is what passes";
    rfc8201_s4_path: "RFC 8201 §4", Should, "IPv6 beyond what the path to the remote takes: the MTU told is what passes";
    rfc8201_s4_path_ipv6_underlay: "RFC 8201 §4", Should, "the same over an IPv6 underlay";
    rfc1191_s3_path_learned: "RFC 1191 §3", Should, "a router of the underlay says that a packet was too big: from then on the MTU told is what passes there";
    rfc0792_path_learned: "RFC 792", Must, "the same from a router that quotes no more than 8 bytes behind the IP header";
    rfc8201_s4_path_learned: "RFC 8201 §4", Must, "the same over an IPv6 underlay";
    rfc7348_s4_3_nothing_longer_leaves: "RFC 7348 §4.3", Must, "what is longer than the path is not sent, and not in fragments";
    rfc1812_s4_3_2_3_length: "RFC 1812 §4.3.2.3", Should, "an ICMP error quotes as much as fits into 576 bytes, at least the header and 8 bytes";
    rfc4443_s3_2_length: "RFC 4443 §3.2", Must, "an ICMPv6 error quotes as much as fits into 1280 bytes";
    rfc1122_s3_2_2_not_about_errors: "RFC 1122 §3.2.2", Must, "no ICMP error about an ICMP error, a broadcast, a later fragment";
    rfc1812_s4_3_2_8_rate: "RFC 1812 §4.3.2.8", Should, "ICMP errors are limited in rate";
    rfc9293_s3_7_1_clamped: "–", Option, "the MSS of SYN packets is lowered to what the network holds, both ways, checksum right";
    rfc9293_s3_7_1_others_left: "–", Option, "a smaller MSS, other TCP packets, SYNs without MSS: unchanged";
    rfc0826_suppression: "RFC 826", Option, "an ARP request for a known address is answered, not sent";
    rfc0826_unknown: "RFC 826", Must, "an ARP request for an unknown address is flooded as it is";
    rfc5227_gratuitous: "RFC 5227 §2.3", Must, "a gratuitous ARP is flooded as it is";
    rfc4861_s7_2_suppression: "RFC 4861 §7.2.4", Option, "a neighbour solicitation for a known address is answered: S and O flags, link-layer option";
    rfc1122_s2_3_2_1_poll: "RFC 1122 §2.3.2.1", Option, "an ARP request to one station goes there: who sends it wants to know whether it is alive";
    rfc4861_s7_3_3_probe: "RFC 4861 §7.3.3", Option, "a neighbour solicitation to one station, the same";
    rfc4861_s7_1_1_invalid: "RFC 4861 §7.1.1", Must, "an invalid solicitation (hop limit, checksum) is not answered";
    rfc5227_announced: "RFC 5227 §2.3", Option, "an endpoint that appears is announced by gratuitous ARP";
    rfc4861_s7_2_6_announced: "RFC 4861 §7.2.6", Option, "an endpoint that appears is announced by an unsolicited neighbour advertisement";
}

type Frames = Vec<Vec<u8>>;

/// Bytes of an inner packet that fit through the path of the smaller MTU.
const FITS4: usize = SMALL_MTU - 50;
const FITS6: usize = SMALL_MTU - 70;

/// The same for what must be answered: errors are limited in rate, so one may have to wait its turn.
fn told_patiently(bench: &mut Bench, network: u32, inner: &str) -> Result<(Frames, Frames), Not> {
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let (back, sent) = told(bench, network, inner)?;
        if !back.is_empty() || Instant::now() > deadline {
            return Ok((back, sent));
        }
    }
}

/// The tenant sends; what comes back to it, and what leaves.
fn told(bench: &mut Bench, network: u32, inner: &str) -> Result<(Frames, Frames), Not> {
    bench.needs(Has::PathMtu)?;
    let frame = bench.scapy(inner);
    let tenant = bench.tenant(network);
    let sent = bench.outbound_raw(network, tenant, &[frame])?;
    let back = bench.inbound(network, &[])?;
    Ok((back, sent))
}

/// An ICMPv4 error with this MTU comes back, right in all its parts; nothing is sent.
fn told_ipv4(bench: &mut Bench, network: u32, size: usize, mtu: usize) -> Outcome {
    let (back, sent) =
        told_patiently(bench, network, &format!("out4(flags='DF', id=77)/u(0, {})", size - 28))?;
    ensure!(sent.iter().all(|frame| frame.len() < SMALL_MTU + 14), "the packet is sent");
    ensure!(back.len() == 1, "{} answers come", back.len());
    let frame = &back[0];
    let slices = etherparse::SlicedPacket::from_ethernet(frame).map_err(|error| error.to_string())?;
    let Some(etherparse::NetSlice::Ipv4(ip)) = &slices.net else {
        return Err(format!("{frame:02x?} comes").into());
    };
    let icmp = ip.payload().payload;
    ensure!(icmp.get(..2) == Some(&[3, 4]), "ICMP {:02x?}", icmp.get(..2));
    let header = ip.header().to_header();
    ensure!(header.calc_header_checksum() == header.header_checksum, "its IP header checksum is wrong");
    ensure!(ones_complement(icmp) == 0, "its ICMP checksum is wrong");
    ensure!(frame[..6] == mac(TENANT_MAC), "it goes to {:02x?}", &frame[..6]);
    ensure!(header.destination == [10, 42, 0, 1], "it goes to {:?}", header.destination);
    let next_hop = usize::from(u16::from_be_bytes([icmp[6], icmp[7]]));
    ensure!(next_hop == mtu, "an MTU of {next_hop} is told instead of {mtu}");
    // What it quotes is what was sent.
    let inner = bench.scapy(&format!("out4(flags='DF', id=77)/u(0, {})", size - 28));
    let quoted = &icmp[8..];
    ensure!(quoted.len() >= 28 && inner[14..].starts_with(&quoted[..28]), "it quotes something else");
    Ok(())
}

fn told_ipv6(bench: &mut Bench, network: u32, size: usize, mtu: usize) -> Outcome {
    let (back, sent) = told_patiently(bench, network, &format!("out6()/u(0, {})", size - 48))?;
    ensure!(sent.iter().all(|frame| frame.len() < SMALL_MTU + 14), "the packet is sent");
    ensure!(back.len() == 1, "{} answers come", back.len());
    let frame = &back[0];
    let slices = etherparse::SlicedPacket::from_ethernet(frame).map_err(|error| error.to_string())?;
    let (Some(etherparse::NetSlice::Ipv6(ip)), Some(etherparse::TransportSlice::Icmpv6(icmp))) =
        (&slices.net, &slices.transport)
    else {
        return Err(format!("{frame:02x?} comes").into());
    };
    ensure!(icmp.slice().get(..2) == Some(&[2, 0]), "ICMPv6 {:02x?}", icmp.slice().get(..2));
    let header = ip.header();
    ensure!(icmp.is_checksum_valid(header.source(), header.destination()), "its checksum is wrong");
    ensure!(frame[..6] == mac(TENANT_MAC), "it goes to {:02x?}", &frame[..6]);
    let told = u32::from_be_bytes(icmp.slice()[4..8].try_into().unwrap()) as usize;
    ensure!(told == mtu, "an MTU of {told} is told instead of {mtu}");
    Ok(())
}

/// An Ethernet address as it stands in a frame.
pub fn mac(text: &str) -> [u8; 6] {
    text.parse::<peregrine_dataplane::types::MacAddr>().expect("an address").0
}

/// Zero for bytes that hold their own right checksum (RFC 1071).
fn ones_complement(bytes: &[u8]) -> u16 {
    let word = |pair: &[u8]| u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    let mut sum: u32 = bytes.chunks(2).map(word).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

fn rfc1191_s4_too_long_for_the_network(bench: &mut Bench) -> Outcome {
    told_ipv4(bench, FOUR, 1501, 1500)?;
    told_ipv4(bench, FOUR, 1600, 1500)
}

fn rfc4443_s3_2_too_long_for_the_network(bench: &mut Bench) -> Outcome {
    told_ipv6(bench, FOUR, 1501, 1500)
}

fn rfc1191_s4_path(bench: &mut Bench) -> Outcome {
    bench
        .passes(SMALL, &format!("side4(flags='DF')/u(0, {})", FITS4 - 28))
        .map_err(|not| said("what fits", not))?;
    told_ipv4(bench, SMALL, FITS4 + 1, FITS4)
}

fn rfc8201_s4_path(bench: &mut Bench) -> Outcome {
    bench.passes(SMALL, &format!("side6()/u(0, {})", FITS4 - 48)).map_err(|not| said("what fits", not))?;
    told_ipv6(bench, SMALL, FITS4 + 1, FITS4)
}

fn rfc8201_s4_path_ipv6_underlay(bench: &mut Bench) -> Outcome {
    bench
        .passes(SMALL_SIX, &format!("side4(flags='DF')/u(0, {})", FITS6 - 28))
        .map_err(|not| said("what fits", not))?;
    told_ipv4(bench, SMALL_SIX, FITS6 + 1, FITS6)?;
    told_ipv6(bench, SMALL_SIX, FITS6 + 1, FITS6)
}

/// A packet leaves; a router says that it was too big, and quotes this much of it; soon tenants are told so.
fn learned(bench: &mut Bench, network: u32, overhead: usize, router: &str, quoted: usize) -> Outcome {
    bench.needs(Has::PathMtu)?;
    let fits = SMALL_MTU - overhead;
    let inner = bench.scapy(&format!("out4(flags='DF')/u(0, {})", fits + 1 - 28));
    let sent = bench.leaves(network, &inner).map_err(|not| said("before", not))?;
    ensure!(sent.inner == inner, "it is changed");
    let quoted = &sent.bytes[sent.ip_at..][..quoted];
    let quoted: String = quoted.iter().map(|byte| format!("{byte:02x}")).collect();
    let error = bench.scapy(&format!("{router}/bytes.fromhex('{quoted}')"));
    bench.put(&error);
    let deadline = Instant::now() + Duration::from_secs(5);
    loop {
        match told_ipv4(bench, network, fits + 1, fits) {
            Err(not) if Instant::now() > deadline => return Err(not),
            Err(_) => {}
            Ok(()) => break,
        }
    }
    bench
        .passes(network, &format!("side4(flags='DF')/u(0, {})", fits - 28))
        .map_err(|not| said("what fits", not))
}

fn router4() -> String {
    format!(
        "Ether(src=FAR, dst=NEAR)/IP(src='{A4}', dst='{LOCAL4}')/ICMP(type=3, code=4, nexthopmtu={SMALL_MTU})"
    )
}

fn rfc1191_s3_path_learned(bench: &mut Bench) -> Outcome {
    // RFC 1812 §4.3.2.3: 576 bytes at most.
    learned(bench, LEARN, 50, &router4(), 548)
}

fn rfc0792_path_learned(bench: &mut Bench) -> Outcome {
    learned(bench, LEARN_LITTLE, 50, &router4(), 28)
}

fn rfc8201_s4_path_learned(bench: &mut Bench) -> Outcome {
    let router = format!(
        "Ether(src=FAR, dst=NEAR)/IPv6(src='{A6}', dst='{LOCAL6}')/ICMPv6PacketTooBig(mtu={SMALL_MTU})"
    );
    // RFC 4443 §3.2: 1280 bytes at most.
    learned(bench, LEARN_SIX, 70, &router, 1232)
}

fn rfc7348_s4_3_nothing_longer_leaves(bench: &mut Bench) -> Outcome {
    for flags in ["'DF'", "0"] {
        let inner = bench.scapy(&format!("out4(flags={flags})/u(0, {})", FITS4 + 1 - 28));
        let tenant = bench.tenant(SMALL);
        let sent = bench.outbound_raw(SMALL, tenant, &[inner])?;
        ensure!(sent.iter().all(|frame| frame.len() < 200), "it is sent, or a part of it");
        bench.inbound(SMALL, &[])?;
    }
    Ok(())
}

fn rfc1812_s4_3_2_3_length(bench: &mut Bench) -> Outcome {
    let (back, _) = told_patiently(bench, FOUR, "out4(flags='DF')/u(0, 1473)")?;
    ensure!(back.len() == 1, "{} answers come", back.len());
    let length = back[0].len() - 14;
    ensure!((56..=576).contains(&length), "{length} bytes");
    Ok(())
}

fn rfc4443_s3_2_length(bench: &mut Bench) -> Outcome {
    let (back, _) = told_patiently(bench, FOUR, "out6()/u(0, 1453)")?;
    ensure!(back.len() == 1, "{} answers come", back.len());
    let length = back[0].len() - 14;
    ensure!((96..=1280).contains(&length), "{length} bytes");
    Ok(())
}

fn rfc1122_s3_2_2_not_about_errors(bench: &mut Bench) -> Outcome {
    for inner in [
        "out4(flags='DF')/ICMP(type=3, code=1)/bytes(1500)",
        "out4(flags='DF')/ICMP(type=11)/bytes(1500)",
        "out4(frag=100, proto=17)/bytes(1500)",
        "Ether(src=TENANT, dst=ALL)/IP(src=T4, dst='255.255.255.255', flags='DF')/u(0, 1500)",
        "Ether(src=TENANT, dst='01:00:5e:01:02:03')/IP(src=T4, dst='239.1.2.3', flags='DF')/u(0, 1500)",
        "out4(src='0.0.0.0', flags='DF')/u(0, 1500)",
        "out6()/ICMPv6DestUnreach()/bytes(1500)",
    ] {
        bench.is_strange = true;
        let (back, _) = told(bench, FOUR, inner)?;
        ensure!(back.is_empty(), "{inner}: answered");
    }
    Ok(())
}

fn rfc1812_s4_3_2_8_rate(bench: &mut Bench) -> Outcome {
    bench.needs(Has::PathMtu)?;
    let frame = bench.scapy("out4(flags='DF')/u(0, 1473)");
    let tenant = bench.tenant(FOUR);
    let begin = Instant::now();
    bench.outbound_raw(FOUR, tenant, &vec![frame; 1000])?;
    let told = bench.inbound(FOUR, &[])?.len();
    let seconds = begin.elapsed().as_secs_f64();
    ensure!(told > 0, "none is told");
    // On a machine that takes seconds for them, a limit by the second lets more of them be told.
    let most = f64::max(700.0, 100.0 + 150.0 * seconds);
    ensure!((told as f64) < most, "{told} errors for 1000 packets in {seconds:.1} s");
    Ok(())
}

/// A SYN with this MSS from the wire and from the tenant comes with that one.
fn mss(bench: &mut Bench, six: bool, before: u16, after: u16, flags: &str) -> Outcome {
    let syn = |side: &str, mss: u16| {
        let version = if six { 6 } else { 4 };
        format!(
            "{side}{version}()/TCP(sport=1, dport=80, flags='{flags}', options=[('NOP', None), ('MSS', {mss}), ('WScale', 7)])"
        )
    };
    let packet = bench.outer(CLAMP, "", &syn("in", before));
    let inner = bench.scapy(&syn("in", after));
    bench.delivers(CLAMP, &packet, &inner).map_err(|not| said(format!("{flags} from the wire"), not))?;
    let (inner, right) = (bench.scapy(&syn("out", before)), bench.scapy(&syn("out", after)));
    let sent = bench.leaves(CLAMP, &inner)?;
    ensure!(sent.inner == right, "{flags} from the tenant: not as it should be");
    Ok(())
}

fn rfc9293_s3_7_1_clamped(bench: &mut Bench) -> Outcome {
    bench.needs(Has::MssClamping)?;
    mss(bench, false, 1460, 1360, "S")?;
    mss(bench, false, 65535, 1360, "SA")?;
    mss(bench, true, 1440, 1340, "S")
}

fn rfc9293_s3_7_1_others_left(bench: &mut Bench) -> Outcome {
    bench.needs(Has::MssClamping)?;
    mss(bench, false, 1360, 1360, "S")?;
    mss(bench, false, 536, 536, "SA")?;
    // The option stands in no packet but a SYN, and tshark says so.
    bench.is_strange = true;
    mss(bench, false, 1460, 1460, "A")?;
    bench.is_strange = false;
    bench.passes(CLAMP, "side4()/TCP(sport=1, dport=80, flags='S')")
}

/// The reply comes as it should, and nothing is sent.
fn answered(bench: &mut Bench, question: &str, reply: &str) -> Outcome {
    bench.needs(Has::Suppression)?;
    let question = bench.scapy(question);
    let reply = bench.scapy(reply);
    let sent = bench.outbound(KNOWN, std::slice::from_ref(&question))?;
    let back = bench.inbound(KNOWN, &[])?;
    ensure!(sent.is_empty(), "the question is sent");
    ensure!(back.len() == 1, "{} answers come", back.len());
    // Ethernet's padding is nobody's business.
    let length = back[0].len().min(reply.len());
    ensure!(back[0][..length] == reply[..length], "{:02x?} comes instead of {reply:02x?}", back[0]);
    Ok(())
}

fn rfc0826_suppression(bench: &mut Bench) -> Outcome {
    answered(
        bench,
        "Ether(src=TENANT, dst=ALL)/ARP(op=1, hwsrc=TENANT, psrc=T4, pdst=S4)",
        "Ether(src=STATION, dst=TENANT)/ARP(op=2, hwsrc=STATION, psrc=S4, hwdst=TENANT, pdst=T4)",
    )
}

/// The question goes to the remote as it is; nothing comes back.
fn left_alone(bench: &mut Bench, question: &str) -> Outcome {
    let inner = bench.scapy(question);
    let sent = bench.outbound(KNOWN, std::slice::from_ref(&inner))?;
    let back = bench.inbound(KNOWN, &[])?;
    ensure!(back.is_empty(), "it is answered");
    ensure!(!sent.is_empty(), "it is not sent on");
    ensure!(sent.len() == 1, "it is sent on {} times", sent.len());
    ensure!(sent[0].inner == inner, "it is changed");
    Ok(())
}

fn rfc0826_unknown(bench: &mut Bench) -> Outcome {
    left_alone(bench, "Ether(src=TENANT, dst=ALL)/ARP(op=1, hwsrc=TENANT, psrc=T4, pdst='10.42.0.99')")
}

fn rfc5227_gratuitous(bench: &mut Bench) -> Outcome {
    left_alone(bench, "Ether(src=TENANT, dst=ALL)/ARP(op=1, hwsrc=TENANT, psrc=T4, pdst=T4)")
}

fn rfc4861_s7_2_suppression(bench: &mut Bench) -> Outcome {
    answered(
        bench,
        "Ether(src=TENANT, dst='33:33:ff:00:00:02')/IPv6(src=T6, dst='ff02::1:ff00:2', hlim=255)/ICMPv6ND_NS(tgt=S6)/ICMPv6NDOptSrcLLAddr(lladdr=TENANT)",
        "Ether(src=STATION, dst=TENANT)/IPv6(src=S6, dst=T6, hlim=255)/ICMPv6ND_NA(tgt=S6, R=0, S=1, O=1)/ICMPv6NDOptDstLLAddr(lladdr=STATION)",
    )
}

fn rfc1122_s2_3_2_1_poll(bench: &mut Bench) -> Outcome {
    left_alone(bench, "Ether(src=TENANT, dst=STATION)/ARP(op=1, hwsrc=TENANT, psrc=T4, pdst=S4)")
}

fn rfc4861_s7_3_3_probe(bench: &mut Bench) -> Outcome {
    left_alone(
        bench,
        "Ether(src=TENANT, dst=STATION)/IPv6(src=T6, dst=S6, hlim=255)/ICMPv6ND_NS(tgt=S6)/ICMPv6NDOptSrcLLAddr(lladdr=TENANT)",
    )
}

fn rfc4861_s7_1_1_invalid(bench: &mut Bench) -> Outcome {
    bench.is_strange = true;
    let to = "Ether(src=TENANT, dst='33:33:ff:00:00:02')";
    for (what, question) in [
        (
            "hop limit 254",
            "IPv6(src=T6, dst='ff02::1:ff00:2', hlim=254)/ICMPv6ND_NS(tgt=S6)/ICMPv6NDOptSrcLLAddr(lladdr=TENANT)",
        ),
        (
            "checksum",
            "IPv6(src=T6, dst='ff02::1:ff00:2', hlim=255)/ICMPv6ND_NS(tgt=S6, cksum=0x1234)/ICMPv6NDOptSrcLLAddr(lladdr=TENANT)",
        ),
        (
            "code 1",
            "IPv6(src=T6, dst='ff02::1:ff00:2', hlim=255)/ICMPv6ND_NS(tgt=S6, code=1)/ICMPv6NDOptSrcLLAddr(lladdr=TENANT)",
        ),
        (
            "option of length 0",
            "IPv6(src=T6, dst='ff02::1:ff00:2', hlim=255)/ICMPv6ND_NS(tgt=S6)/ICMPv6NDOptSrcLLAddr(lladdr=TENANT, len=0)",
        ),
    ] {
        left_alone(bench, &format!("{to}/{question}")).map_err(|not| said(what, not))?;
    }
    Ok(())
}

/// The tenant goes and comes back: this frame is sent for it.
fn announced(bench: &mut Bench, frame: &str) -> Outcome {
    bench.needs(Has::Announcements)?;
    let frame = bench.scapy(frame);
    let tenant = bench.tenant(ANNOUNCE);
    let deadline = Instant::now() + Duration::from_secs(4);
    // Announcements of one endpoint are a second apart at least: one that comes back too soon is passed over.
    while Instant::now() < deadline {
        bench.sut.reconnect(&bench.net, tenant);
        let is_it = |sent: &[u8]| {
            Outer::parse(sent).is_some_and(|outer| outer.vni() == ANNOUNCE && outer.inner.starts_with(&frame))
        };
        if bench.wire_until(Duration::from_millis(300), is_it).is_some() {
            return Ok(());
        }
    }
    Err(Not::Fail("nothing of the kind is sent".into()))
}

fn rfc5227_announced(bench: &mut Bench) -> Outcome {
    announced(
        bench,
        "Ether(src=TENANT, dst=ALL)/ARP(op=1, hwsrc=TENANT, psrc=T4, hwdst='00:00:00:00:00:00', pdst=T4)",
    )
}

fn rfc4861_s7_2_6_announced(bench: &mut Bench) -> Outcome {
    announced(
        bench,
        "Ether(src=TENANT, dst='33:33:00:00:00:01')/IPv6(src=T6, dst='ff02::1', hlim=255)/ICMPv6ND_NA(tgt=T6, R=0, S=0, O=1)/ICMPv6NDOptDstLLAddr(lladdr=TENANT)",
    )
}

/// Only ours is asked about it.
pub fn only_ours(bench: &Bench, why: &str) -> Outcome {
    if bench.kind == Kind::Peregrine { Ok(()) } else { Err(Not::Absent(why.into())) }
}
