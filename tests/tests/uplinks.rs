//! Two interfaces towards the underlay: far hosts behind one and the other on one overlay network, and a far host that is reached
//! over both, as the routes say.
//!
//! ```text
//!  far:  vx 10.42.0.2, 192.0.2.2    ── far0 ── near0 ──┐
//!                                                      near: peregrine run ── memif
//!  far2: vx 10.42.0.4, 198.51.100.2 ── far1 ── near1 ──┘
//! ```

use etherparse::{Icmpv4Type, PacketBuilder, SlicedPacket, TransportSlice};
use peregrine_control::lab::Namespace;
use peregrine_dataplane::types::MacAddr;
use peregrine_tests::{
    Daemon, FAR, FAR_OVERLAY, Guest, NEAR, Net, RawSocket, Tenant, VNI, frame, ping_patiently, report,
    totals, until,
};
use serde_json::{Value, json};

const EVERYBODY: &str = "ff:ff:ff:ff:ff:ff";
/// The second wire's ends: address, device, link-layer address.
const NEAR2: (&str, &str, &str) = ("198.51.100.1", "near1", "02:00:00:00:0e:01");
const FAR2: (&str, &str, &str) = ("198.51.100.2", "far1", "02:00:00:00:0e:02");
/// The second far kernel on the overlay.
const FAR2_OVERLAY: (&str, &str) = ("10.42.0.4", "02:00:00:00:42:04");

type End = (&'static str, &'static str, &'static str);

/// A wire between two hosts, with so many queues and with addresses.
fn wire((near, near_end): (&Namespace, End), (far, far_end): (&Namespace, End), queues: u32) {
    let count = format!("numrxqueues {queues} numtxqueues {queues}");
    near.ip(&format!(
        "link add {} address {} {count} type veth peer name {} address {} {count} netns {}",
        near_end.1,
        near_end.2,
        far_end.1,
        far_end.2,
        far.name()
    ))
    .unwrap();
    for (host, (address, device, _)) in [(near, near_end), (far, far_end)] {
        host.ip(&format!("link set {device} up")).unwrap();
        host.ip(&format!("addr add {address}/24 dev {device}")).unwrap();
    }
}

/// The kernel's vxlan device of a far host.
fn overlay(host: &Namespace, local: &str, remote: &str, (address, mac): (&str, &str)) {
    for command in [
        format!(
            "link add vx address {mac} mtu 1450 type vxlan id {VNI} local {local} remote {remote} dstport 4789"
        ),
        format!("addr add {address}/24 dev vx"),
        "link set vx up".to_string(),
    ] {
        host.ip(&command).unwrap();
    }
}

/// The config of the tests with both uplinks.
fn config(net: &Net, remotes: &[&str], tenants: &[Tenant]) -> String {
    let one = Daemon::config(net, remotes, tenants);
    let second =
        format!("[[uplink]]\ninterface = \"{}\"\nlocal = \"{}\"\nmode = \"copy\"\n", NEAR2.1, NEAR2.0);
    one.replace("[uplink]\n", &format!("{second}\n[[uplink]]\n"))
}

/// Place of an uplink in `status` and `stats`: the second one stands first in the config.
fn uplink<'v>(answer: &'v Value, interface: &str) -> &'v Value {
    let mut all = answer["uplinks"].as_array().unwrap().iter();
    all.find(|uplink| uplink["interface"] == interface).unwrap_or_else(|| panic!("{interface}: {answer}"))
}

fn frames(answer: &Value, interface: &str, way: &str) -> u64 {
    uplink(answer, interface)[way]["frames"].as_u64().unwrap()
}

/// Both far hosts, with so many queues on each wire.
fn two_far_hosts(queues: (u32, u32)) -> (Net, Namespace) {
    let net = Net::apart();
    let far2 = net.host("far2");
    wire((&net.near, NEAR), (&net.far, FAR), queues.0);
    wire((&net.near, NEAR2), (&far2, FAR2), queues.1);
    overlay(&net.far, FAR.0, NEAR.0, FAR_OVERLAY);
    overlay(&far2, FAR2.0, NEAR2.0, FAR2_OVERLAY);
    (net, far2)
}

fn start(net: &Net, workers: usize) -> Daemon {
    let config = config(net, &[FAR.0, FAR2.0], &[Tenant::WEB, Tenant::DB]);
    let daemon = Daemon::start_with(net, &if workers == 1 { config } else { Daemon::spread(&config) });
    daemon.wait_for_next_hops();
    daemon
}

fn mac(text: &str) -> [u8; 6] {
    text.parse::<MacAddr>().unwrap().0
}

fn ip(text: &str) -> [u8; 4] {
    text.parse::<std::net::Ipv4Addr>().unwrap().octets()
}

/// An ARP packet: request (1) or answer (2).
fn arp(operation: u8, from: (&str, &str), to: (&str, &str), destination: &str) -> Vec<u8> {
    let mut packet = [&mac(destination)[..], &mac(from.1), &[0x08, 0x06]].concat();
    packet.extend([0, 1, 0x08, 0, 6, 4, 0, operation]);
    packet.extend([&mac(from.1)[..], &ip(from.0), &mac(to.1), &ip(to.0)].concat());
    packet
}

/// The tenant asks by broadcast who has the address, and pings it.
fn tenant_pings(web: &mut Guest, station: (&str, &str)) {
    let us = (Tenant::WEB.ip, Tenant::WEB.mac);
    web.send(&arp(1, us, (station.0, "00:00:00:00:00:00"), EVERYBODY));
    let answer = arp(2, station, us, us.1);
    web.receive(|frame| frame == answer);
    for sequence in 0..20u16 {
        let mut request = Vec::new();
        PacketBuilder::ethernet2(mac(us.1), mac(station.1))
            .ipv4(ip(us.0), ip(station.0), 64)
            .icmpv4_echo_request(7, sequence)
            .write(&mut request, b"hello")
            .unwrap();
        web.send(&request);
        web.receive(|frame| {
            let packet = SlicedPacket::from_ethernet(frame).unwrap();
            let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else { return false };
            matches!(icmp.icmp_type(), Icmpv4Type::EchoReply(echo) if (echo.id, echo.seq) == (7, sequence))
        });
    }
}

fn both_ways(workers: usize, queues: (u32, u32), with_sockets: usize) {
    let (net, far2) = two_far_hosts(queues);
    let daemon = start(&net, workers);
    let status = daemon.status();
    let hops: Vec<_> = status["next_hops"]
        .as_array()
        .unwrap()
        .iter()
        .map(|hop| (hop["remote"].as_str().unwrap(), hop["uplink"].as_str().unwrap()))
        .collect();
    assert_eq!(hops, [(FAR.0, NEAR.1), (FAR2.0, NEAR2.1)]);
    assert_eq!(uplink(&status, NEAR.1)["local"], json!([NEAR.0]));
    assert_eq!(uplink(&status, NEAR2.1)["local"], json!([NEAR2.0]));
    let total = |worker: &Value| worker["frames_total"].as_u64().unwrap();
    let workers = daemon.stats()["workers"].as_array().unwrap().clone();
    assert_eq!(workers.iter().filter(|worker| total(worker) > 0).count(), with_sockets, "{workers:?}");

    let mut web = Guest::new(&net, Tenant::WEB);
    let echo = Tenant::DB.echo(&net);
    daemon.wait_for_tenant(0, true);
    for (host, station) in [(&net.far, FAR_OVERLAY), (&far2, FAR2_OVERLAY)] {
        tenant_pings(&mut web, station);
        assert_eq!(ping_patiently(host, Tenant::DB.ip, 20, 0.01), 20, "{:#}", daemon.stats());
    }
    assert_eq!(report(echo)["answered"]["icmp"], 40);

    // A broadcast reaches both, once each, and in a burst with frames for either.
    let sockets = [(&net.far, FAR_OVERLAY), (&far2, FAR2_OVERLAY)].map(|(host, (_, mac))| {
        let to_it = |text| frame(Tenant::WEB.mac, mac, text);
        (RawSocket::open(host, "vx"), to_it("to one"), to_it("the end"))
    });
    let before = totals(&daemon.at_rest(), "tenant_rx");
    let hello = frame(Tenant::WEB.mac, EVERYBODY, "to everybody");
    let ring = web.interface.tx.first_mut().unwrap();
    ring.push(&hello).unwrap();
    for (_, single, _) in &sockets {
        ring.push(single).unwrap();
    }
    ring.flush().unwrap();
    // Other flows may be faster between two workers, so the end is marked when all have left.
    until("all to be taken", || totals(&daemon.stats(), "tenant_rx") == before + 3);
    daemon.at_rest();
    for (socket, single, last) in &sockets {
        web.send(last);
        let mut seen = (0, 0);
        socket.receive(|frame| {
            seen.0 += u32::from(frame == hello);
            seen.1 += u32::from(frame == single);
            frame == last
        });
        assert_eq!(seen, (1, 1));
    }

    let stats = daemon.at_rest();
    assert_eq!(totals(&stats, "dropped"), stats["drops"]["tenant_absent"].as_u64().unwrap_or(0), "{stats:#}");
    for interface in [NEAR.1, NEAR2.1] {
        // 20 pings each way and a question for an address, at least.
        assert!(frames(&stats, interface, "rx") > 40 && frames(&stats, interface, "tx") > 40, "{stats:#}");
    }
    for (way, total) in [("rx", "uplink_rx"), ("tx", "uplink_tx")] {
        let sum = frames(&stats, NEAR.1, way) + frames(&stats, NEAR2.1, way);
        assert_eq!(sum, totals(&stats, total), "{stats:#}");
    }
    assert!(totals(&stats, "replicated") >= 3, "{stats:#}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn tenants_and_hosts_behind_either_uplink_reach_each_other() {
    both_ways(1, (1, 1), 1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn with_two_workers_that_have_both_uplinks_as_well() {
    both_ways(2, (2, 2), 2);
}

/// One uplink has no queue for the second worker, which therefore has none of the other either.
#[test]
#[ignore = "needs root: make test runs it"]
fn with_two_workers_of_which_one_has_both_uplinks_as_well() {
    both_ways(2, (2, 1), 1);
}

/// The far host has an address of its own that is reached over either wire.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_remote_whose_route_changes_is_followed_and_one_uplink_outlives_the_other() {
    const REMOTE: &str = "203.0.113.1";
    let net = Net::apart();
    wire((&net.near, NEAR), (&net.far, FAR), 1);
    wire((&net.near, NEAR2), (&net.far, FAR2), 1);
    net.far.ip(&format!("addr add {REMOTE}/32 dev lo")).unwrap();
    overlay(&net.far, REMOTE, NEAR.0, FAR_OVERLAY);
    let route = |verb: &str, via: End, metric: u32| {
        net.near.ip(&format!("route {verb} {REMOTE}/32 via {} metric {metric}", via.0)).unwrap();
    };
    route("add", FAR, 200);
    let daemon = Daemon::start_with(&net, &config(&net, &[REMOTE], &[Tenant::WEB, Tenant::DB]));
    daemon.wait_for_next_hops();
    let mut web = Guest::new(&net, Tenant::WEB);
    daemon.wait_for_tenant(0, true);
    let device = RawSocket::open(&net.far, "vx");
    let mut number = 0;
    let mut goes_over = |interface: &str| {
        until("the way to change", || daemon.stats()["remotes"][0]["uplink"] == interface);
        // The worker hears of it a moment later, and drops what it cannot send yet.
        let probe = frame(Tenant::WEB.mac, FAR_OVERLAY.1, "probe");
        let start = frames(&daemon.stats(), interface, "tx");
        until("the worker to know", || {
            web.send(&probe);
            frames(&daemon.stats(), interface, "tx") > start
        });
        let mut cross = || {
            number += 1;
            let packet = frame(Tenant::WEB.mac, FAR_OVERLAY.1, &number.to_string());
            web.send(&packet);
            device.receive(|frame| frame == packet);
        };
        cross(); // behind it there is no probe that the worker has not taken yet
        let before = daemon.at_rest();
        (0..50).for_each(|_| cross());
        let after = daemon.at_rest();
        for one in [NEAR.1, NEAR2.1] {
            let sent = frames(&after, one, "tx") - frames(&before, one, "tx");
            assert_eq!(sent, if one == interface { 50 } else { 0 }, "{one}");
        }
        assert_eq!(totals(&after, "dropped"), totals(&before, "dropped"), "{}", after["drops"]);
    };
    goes_over(NEAR.1);
    route("add", FAR2, 100);
    goes_over(NEAR2.1);
    route("del", FAR2, 100);
    goes_over(NEAR.1);
    route("add", FAR2, 100);
    goes_over(NEAR2.1);
    // The wire is pulled out; and plugged in again.
    net.near.ip(&format!("link set {} down", NEAR2.1)).unwrap();
    goes_over(NEAR.1);
    net.near.ip(&format!("link set {} up", NEAR2.1)).unwrap();
    route("add", FAR2, 100);
    goes_over(NEAR2.1);
    // Somewhere that is no uplink.
    net.near.ip("link add other0 type veth peer name other1").unwrap();
    net.near.ip("link set other0 up").unwrap();
    net.near.ip(&format!("route add {REMOTE}/32 dev other0 metric 50")).unwrap();
    until("the way to be lost", || daemon.stats()["remotes"][0]["resolved"] == false);
    let reason = daemon.status()["next_hops"][0]["reason"].clone();
    assert_eq!(reason, "the route leads over other0");
    net.near.ip("link del other0").unwrap();
    goes_over(NEAR2.1);
    net.near.ip(&format!("link del {}", NEAR2.1)).unwrap();
    goes_over(NEAR.1);
    let status = daemon.status();
    assert!(uplink(&status, NEAR2.1)["link"].is_null() && uplink(&status, NEAR.1)["link"]["up"] == true);
    let shown = daemon.stop();
    assert!(shown.contains("conserved"), "{shown}");
}

/// A network that fits one uplink and not the other.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_network_must_fit_the_smallest_uplink() {
    let (net, _far2) = two_far_hosts((1, 1));
    net.near.ip(&format!("link set {} mtu 1400", NEAR.1)).unwrap();
    let ended = Daemon::refused(&net, &config(&net, &[FAR.0], &[Tenant::WEB]));
    let want =
        "network blue: its MTU of 1450 and 50 bytes of outer headers do not fit the MTU of near0, 1400";
    assert!(ended.said.contains(want), "{}", ended.said);
    assert_eq!(ended.code, Some(1));
}
