//! Who gets what: RFC 7348 §4.2 (learning, broadcast, unknown), §5 (VNI), §6.1 (inner VLAN tags), IEEE 802 addresses.

use std::time::{Duration, Instant};

use crate::bench::{Bench, Not, Outcome, Outer, said};
use crate::sut::{A4, B4, Has, Network, STRANGER4, Setup};
use crate::{cases, ensure};

/// Two tenants, two remotes.
const V: u32 = 42;
/// Another network with the same addresses.
const OTHER: u32 = 43;
/// Stations known beforehand, behind the second remote.
const FIXED: u32 = 44;
/// The second tenant, for scapy.
const SECOND: &str = "'02:00:00:00:42:03'";
static SETUP: Setup = Setup::new(&[
    Network { tenants: 2, ..Network::new(V, &[A4, B4]) },
    Network::new(OTHER, &[A4]),
    Network {
        known: &[("02:00:00:00:42:02", A4, &[]), ("02:00:00:00:42:21", B4, &[])],
        ..Network::new(FIXED, &[A4, B4])
    },
]);

cases! { OVERLAY = "Who gets what", SETUP;
    rfc7348_s4_2_broadcast_to_all: "RFC 7348 §4.2", Must, "a tenant's broadcast goes to each remote once";
    rfc7348_s4_2_multicast_to_all: "RFC 7348 §4.2", Must, "a tenant's multicast goes to each remote once";
    rfc7348_s4_2_unknown_to_all: "RFC 7348 §4.2", Must, "unknown destinations go to each remote once";
    rfc7348_s4_2_broadcast_to_tenants: "RFC 7348 §4.2", Must, "a broadcast from a remote goes to every tenant, to no remote";
    rfc7348_s4_1_learning: "RFC 7348 §4.1", Must, "addresses are learned from what arrives: then frames go to one remote";
    rfc7348_s4_1_relearning: "RFC 7348 §4.1", Must, "an address that appears behind another remote is sent there";
    rfc7348_s4_1_static: "RFC 7348 §4.1", Option, "an address can be given beforehand; frames from elsewhere do not move it";
    rfc7348_s4_1_local: "RFC 7348 §4.1", Must, "between two tenants of a host nothing leaves it";
    rfc7348_s4_1_own_address: "RFC 7348 §4.1", Option, "a tenant's own address arriving from a remote is not learned there";
    rfc7348_s5_isolation: "RFC 7348 §5", Must, "a network's frames reach its tenants only, with equal addresses too";
    rfc7348_s5_isolation_of_broadcast: "RFC 7348 §5", Must, "a broadcast reaches its network only";
    rfc7348_s5_unknown_vni: "RFC 7348 §5", Must, "an unknown VNI is delivered to nobody";
    rfc7348_s7_unknown_remote: "RFC 7348 §7", Option, "frames from a VTEP that is no remote of the network are refused";
    rfc7348_s7_remote_of_another_network: "RFC 7348 §7", Option, "frames from a remote of another network only are refused";
    rfc7348_s6_1_tag_dropped_in: "RFC 7348 §6.1", Should, "an inner VLAN tag from the wire: dropped";
    rfc7348_s6_1_tag_dropped_out: "RFC 7348 §6.1", Should, "a VLAN tag from the tenant: not sent";
    ieee802_multicast_source: "IEEE 802.3 §3.2.4", Must, "an inner multicast source address: dropped, not learned";
    ieee802_runt: "IEEE 802.3 §3.1", Must, "an inner frame shorter than its header: dropped";
    ieee802_short_frame: "RFC 7348 §5", Must, "inner frames below 60 bytes pass as they are: the FCS and padding are Ethernet's";
    split_horizon: "–", Must, "what came from a remote never goes to a remote";
    hairpin: "–", Must, "a frame of a tenant to itself is not sent";
    spoofing: "–", Option, "a tenant's frame from an address that is not its own: dropped";
}

/// Where the packets go, sorted.
pub fn to(sent: &[Outer]) -> Vec<&str> {
    let mut to: Vec<&str> = sent.iter().map(|outer| outer.to.as_str()).collect();
    to.sort_unstable();
    to
}

/// A tenant's frame goes to both remotes once each.
fn to_both(bench: &mut Bench, destination: &str) -> Outcome {
    bench.needs(Has::HeadEnd)?;
    let inner = bench.scapy(&format!("Ether(src=TENANT, dst={destination})/IP(src=T4, dst=S4)/u()"));
    let sent = bench.outbound(V, std::slice::from_ref(&inner))?;
    ensure!(to(&sent) == [A4, B4], "it goes to {:?}", to(&sent));
    ensure!(sent.iter().all(|outer| outer.inner == inner), "it is changed");
    Ok(())
}

fn rfc7348_s4_2_broadcast_to_all(bench: &mut Bench) -> Outcome {
    to_both(bench, "ALL")
}

fn rfc7348_s4_2_multicast_to_all(bench: &mut Bench) -> Outcome {
    to_both(bench, "'01:00:5e:00:01:02'")?;
    to_both(bench, "'33:33:00:00:01:02'")
}

fn rfc7348_s4_2_unknown_to_all(bench: &mut Bench) -> Outcome {
    to_both(bench, "'02:00:00:00:42:99'")
}

fn rfc7348_s4_2_broadcast_to_tenants(bench: &mut Bench) -> Outcome {
    let inner = "Ether(src=STATION, dst=ALL)/IP(src=S4, dst='255.255.255.255')/u()";
    let packet = bench.outer(V, "", inner);
    let inner = bench.scapy(inner);
    let (first, second) = (bench.tenant(V), bench.tenant(V) + 1);
    bench.inbound_to(V, second, SECOND, &[])?;
    let one = bench.inbound(V, std::slice::from_ref(&packet))?;
    let two = bench.inbound_to(V, second, SECOND, &[])?;
    ensure!(one == [inner.clone()], "tenant {first} gets {} frames", one.len());
    ensure!(two == [inner.clone()], "tenant {second} gets {} frames", two.len());
    let sent = bench.outbound(V, &[])?;
    ensure!(sent.iter().all(|outer| outer.inner != inner), "it is sent to a remote");
    Ok(())
}

/// A station says something from behind a remote.
pub fn appears(bench: &mut Bench, vni: u32, mac: &str, remote: &str) -> Outcome {
    let packet =
        bench.outer_from(vni, remote, "", &format!("Ether(src='{mac}', dst=TENANT)/IP(src=S4, dst=T4)/u()"));
    let got = bench.inbound(vni, &[packet])?;
    ensure!(got.len() == 1, "its frame does not come");
    Ok(())
}

/// Frames to a station go to this remote alone; a VTEP that caches its decisions may take a second to think again.
pub fn goes_to(bench: &mut Bench, vni: u32, mac: &str, remotes: &[&str]) -> Outcome {
    let inner = bench.scapy(&format!("Ether(src=TENANT, dst='{mac}')/IP(src=T4, dst=S4)/u()"));
    let deadline = Instant::now() + Duration::from_secs(1);
    loop {
        let sent = bench.outbound(vni, std::slice::from_ref(&inner))?;
        if to(&sent) == remotes {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "frames go to {:?} instead of {remotes:?}", to(&sent));
    }
}

fn rfc7348_s4_1_learning(bench: &mut Bench) -> Outcome {
    bench.needs(Has::HeadEnd)?;
    for (mac, remote) in [("02:00:00:00:42:11", A4), ("02:00:00:00:42:12", B4)] {
        appears(bench, V, mac, remote)?;
        goes_to(bench, V, mac, &[remote])?;
    }
    Ok(())
}

fn rfc7348_s4_1_relearning(bench: &mut Bench) -> Outcome {
    bench.needs(Has::HeadEnd)?;
    for remote in [A4, B4, A4] {
        appears(bench, V, "02:00:00:00:42:13", remote)?;
        goes_to(bench, V, "02:00:00:00:42:13", &[remote])?;
    }
    Ok(())
}

fn rfc7348_s4_1_static(bench: &mut Bench) -> Outcome {
    bench.needs(Has::StaticEntries)?;
    goes_to(bench, FIXED, "02:00:00:00:42:21", &[B4])?;
    let packet =
        bench.outer_from(FIXED, A4, "", "Ether(src='02:00:00:00:42:21', dst=TENANT)/IP(src=S4, dst=T4)/u()");
    bench.inbound(FIXED, &[packet])?;
    goes_to(bench, FIXED, "02:00:00:00:42:21", &[B4]).map_err(|not| said("after a frame from elsewhere", not))
}

fn rfc7348_s4_1_local(bench: &mut Bench) -> Outcome {
    let (first, second) = (bench.tenant(V), bench.tenant(V) + 1);
    // Both have spoken.
    bench.outbound_raw(V, second, &[])?;
    let inner = bench.scapy("Ether(src=TENANT, dst='02:00:00:00:42:03')/IP(src=T4, dst='10.42.0.3')/u()");
    let sent = bench.outbound_raw(V, first, std::slice::from_ref(&inner))?;
    let got = bench.inbound_to(V, second, SECOND, &[])?;
    ensure!(got.contains(&inner), "it does not come");
    ensure!(sent.iter().all(|frame| !frame.ends_with(&inner)), "it leaves the host");
    Ok(())
}

fn rfc7348_s4_1_own_address(bench: &mut Bench) -> Outcome {
    let (first, second) = (bench.tenant(V), bench.tenant(V) + 1);
    let claim =
        bench.outer(V, "", "Ether(src=TENANT, dst='02:00:00:00:42:03')/IP(src=T4, dst='10.42.0.3')/u()");
    bench.put(&claim);
    bench.inbound_to(V, second, SECOND, &[])?;
    let inner = bench.scapy("Ether(src='02:00:00:00:42:03', dst=TENANT)/IP(src='10.42.0.3', dst=T4)/u(3)");
    let sent = bench.outbound_raw(V, second, std::slice::from_ref(&inner))?;
    let got = bench.inbound_to(V, first, "TENANT", &[]);
    let got = got.map_err(|_| Not::Fail("the tenant's traffic is drawn to the remote".into()))?;
    // So that all is as before for what follows.
    bench.outbound(V, &[])?;
    ensure!(sent.iter().all(|frame| !frame.ends_with(&inner)), "the tenant's traffic is drawn to the remote");
    ensure!(got.contains(&inner), "the tenant does not get it");
    Ok(())
}

fn rfc7348_s5_isolation(bench: &mut Bench) -> Outcome {
    for (vni, other) in [(V, OTHER), (OTHER, V)] {
        let packet = bench.outer(vni, "", "in4()/u()");
        let inner = bench.scapy("in4()/u()");
        bench.delivers(vni, &packet, &inner)?;
        let got = bench.inbound(other, &[])?;
        ensure!(got.is_empty(), "a packet of network {vni} reaches one of {other}");
    }
    Ok(())
}

fn rfc7348_s5_isolation_of_broadcast(bench: &mut Bench) -> Outcome {
    let inner = bench.scapy("Ether(src=TENANT, dst=ALL)/IP(src=T4, dst='255.255.255.255')/u(5)");
    let tenant = bench.tenant(V);
    let sent = bench.outbound_raw(V, tenant, std::slice::from_ref(&inner))?;
    let vnis: Vec<u32> =
        sent.iter().filter_map(|frame| Outer::parse(frame)).map(|outer| outer.vni()).collect();
    ensure!(!vnis.is_empty() && vnis.iter().all(|vni| *vni == V), "{vnis:?}");
    let got = bench.inbound(OTHER, &[])?;
    ensure!(!got.contains(&inner), "a tenant of another network gets it");
    // The second tenant has it, and keeps nothing for later cases.
    let second = tenant + 1;
    let got = bench.inbound_to(V, second, SECOND, &[])?;
    ensure!(got.contains(&inner), "the second tenant of the network does not get it");
    Ok(())
}

fn rfc7348_s5_unknown_vni(bench: &mut Bench) -> Outcome {
    for vni in [0, 1, 45, V << 8, 0xff_ffff] {
        for to in ["TENANT", "ALL"] {
            let packet = bench.outer(
                V,
                &format!("vni={vni}"),
                &format!("Ether(src=STATION, dst={to})/IP(src=S4, dst=T4)/u()"),
            );
            for network in [V, OTHER] {
                bench.refuses(network, &packet).map_err(|not| said(format!("VNI {vni}"), not))?;
            }
        }
    }
    Ok(())
}

fn rfc7348_s7_unknown_remote(bench: &mut Bench) -> Outcome {
    bench.needs(Has::KnownRemotes)?;
    let packet = bench.outer_from(V, STRANGER4, "", "in4()/u()");
    bench.refuses_as(V, &packet, "remote_unknown")
}

fn rfc7348_s7_remote_of_another_network(bench: &mut Bench) -> Outcome {
    bench.needs(Has::KnownRemotes)?;
    let packet = bench.outer_from(OTHER, B4, "", "in4()/u()");
    bench.refuses_as(OTHER, &packet, "remote_unknown")
}

fn rfc7348_s6_1_tag_dropped_in(bench: &mut Bench) -> Outcome {
    bench.needs(Has::VlanDropped)?;
    for tag in ["Dot1Q(vlan=7)", "Dot1AD(vlan=7)", "Dot1Q(vlan=0)"] {
        let packet = bench.outer(V, "", &format!("inn/{tag}/IP(src=S4, dst=T4)/u()"));
        bench.refuses_as(V, &packet, "inner_vlan_tagged").map_err(|not| said(tag, not))?;
    }
    Ok(())
}

fn rfc7348_s6_1_tag_dropped_out(bench: &mut Bench) -> Outcome {
    bench.needs(Has::VlanDropped)?;
    for tag in ["Dot1Q(vlan=7)", "Dot1AD(vlan=7)", "Dot1Q(vlan=0)"] {
        let inner = bench.scapy(&format!("out/{tag}/IP(src=T4, dst=S4)/u()"));
        let sent = bench.outbound(V, &[inner])?;
        ensure!(sent.is_empty(), "{tag}: it is sent");
    }
    Ok(())
}

fn ieee802_multicast_source(bench: &mut Bench) -> Outcome {
    for source in ["01:00:5e:00:00:05", "ff:ff:ff:ff:ff:ff", "03:00:00:00:00:01"] {
        let packet = bench.outer(V, "", &format!("Ether(src='{source}', dst=TENANT)/IP(src=S4, dst=T4)/u()"));
        bench.refuses_as(V, &packet, "inner_source_invalid").map_err(|not| said(source, not))?;
    }
    to_both(bench, "'03:00:00:00:00:01'").map_err(|not| said("afterwards, a frame to that address", not))
}

fn ieee802_runt(bench: &mut Bench) -> Outcome {
    for length in [0, 1, 12, 13] {
        let packet = bench.outer(V, "", &format!("bytes(inn/IP(src=S4, dst=T4))[:{length}]"));
        bench
            .refuses_as(V, &packet, "inner_truncated")
            .map_err(|not| said(format!("{length} bytes"), not))?;
    }
    Ok(())
}

fn ieee802_short_frame(bench: &mut Bench) -> Outcome {
    for length in [0, 1, 20, 45, 46] {
        let (inside, outside) = (format!("inn/bytes({length})"), format!("out/bytes({length})"));
        let packet = bench.outer(V, "", &inside);
        let inner = bench.scapy(&inside);
        bench.delivers(V, &packet, &inner).map_err(|not| said(format!("{} bytes in", length + 14), not))?;
        bench.is_strange = true;
        let inner = bench.scapy(&outside);
        let sent = bench.leaves(V, &inner).map_err(|not| said(format!("{} bytes out", length + 14), not))?;
        ensure!(sent.inner == inner, "{} bytes leave as {}", inner.len(), sent.inner.len());
    }
    Ok(())
}

fn split_horizon(bench: &mut Bench) -> Outcome {
    appears(bench, V, "02:00:00:00:42:14", B4)?;
    for to in ["'02:00:00:00:42:14'", "'02:00:00:00:42:98'", "ALL"] {
        let inner = format!("Ether(src=STATION, dst={to})/IP(src=S4, dst=T4)/u()");
        let packet = bench.outer(V, "", &inner);
        let inner = bench.scapy(&inner);
        bench.inbound(V, &[packet])?;
        let sent = bench.outbound(V, &[])?;
        ensure!(
            sent.iter().all(|outer| outer.inner != inner),
            "a frame from one remote to {to} is sent to another"
        );
    }
    Ok(())
}

fn hairpin(bench: &mut Bench) -> Outcome {
    let inner = bench.scapy("Ether(src=TENANT, dst=TENANT)/IP(src=T4, dst=T4)/u()");
    let sent = bench.outbound(V, &[inner])?;
    ensure!(sent.is_empty(), "it is sent");
    Ok(())
}

fn spoofing(bench: &mut Bench) -> Outcome {
    if bench.kind != crate::sut::Kind::Peregrine {
        return Err(Not::Absent("needs filters beside the VTEP".into()));
    }
    let inner = bench.scapy("Ether(src=STATION, dst=ALL)/IP(src=S4, dst=T4)/u()");
    let sent = bench.outbound(V, &[inner])?;
    ensure!(sent.is_empty(), "it is sent");
    Ok(())
}
