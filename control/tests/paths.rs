//! Several paths, source addresses, VLANs, IPv6 and path MTUs, against the kernel's own routes and neighbours. Each test has a wire of its
//! own: `here: ov0 10.9.0.1/24 ── ov1 10.9.0.2/24 :there`, and more where it says so.

mod common;

use std::net::{IpAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use common::bench::{Bench, mac_of, uplink, wanted_ways};
use common::{Net, ip, until};
use peregrine_dataplane::types::{MacAddr, UplinkId};

impl Bench {
    /// Uplink, last byte of the neighbour's link-layer address, and weight of each path.
    fn shares(&self, index: usize) -> Vec<(u8, u8, u8)> {
        let share = |path: &peregrine_dataplane::engine::Path| {
            (path.hop.uplink.0, path.hop.destination.0[5], path.weight)
        };
        self.paths[index].iter().map(share).collect()
    }

    fn expect_shares(&mut self, index: usize, shares: &[(u8, u8, u8)]) {
        let until_then = Instant::now() + Duration::from_secs(5);
        while self.shares(index) != shares {
            self.turn();
            let (_, verdict) = self.underlay.ways().nth(index).unwrap();
            assert!(Instant::now() < until_then, "{shares:?} expected, {verdict:?} found");
        }
    }

    fn neighbour(&self, device: &str, address: &str, last: u8) {
        self.net.here(&format!(
            "neigh replace {address} lladdr 02:00:00:00:00:{last:02x} dev {device} nud permanent"
        ));
    }

    /// Turns until the MTU of all paths is this, with frames that go that way.
    fn expect_mtu(&mut self, index: usize, mtu: u32) {
        until(15, &format!("an MTU of {mtu}"), || {
            self.frames.set(self.frames.get() + 1);
            self.turn();
            !self.paths[index].is_empty() && self.paths[index].iter().all(|path| path.mtu == mtu)
        });
    }
}

fn set(name: &str, value: &str) {
    std::fs::write(format!("/proc/sys/net/{name}"), value).unwrap_or_else(|e| panic!("{name}: {e}"));
}

/// The wire's ends have fd09::1/64 and fd09::2/64 as well.
fn with_ipv6() -> Net {
    let net = Net::new();
    net.here("addr add fd09::1/64 dev ov0 nodad");
    net.there("addr add fd09::2/64 dev ov1 nodad");
    net
}

/// A second wire: `here: other0 10.8.0.1/24, fd08::1/64 ── other1 10.8.0.2/24, fd08::2/64 :there`.
fn with_two_wires() -> Net {
    let net = with_ipv6();
    net.here(&format!("link add other0 type veth peer name other1 netns {}", net.there));
    net.here("addr add 10.8.0.1/24 dev other0");
    net.there("addr add 10.8.0.2/24 dev other1");
    net.here("addr add fd08::1/64 dev other0 nodad");
    net.there("addr add fd08::2/64 dev other1 nodad");
    net.here("link set other0 up");
    net.there("link set other1 up");
    net
}

/// Both are uplinks, and a remote of each family is wanted.
fn over_both_wires() -> Bench {
    let net = with_two_wires();
    let uplinks = vec![
        uplink(&net, "ov0", None, &["10.9.0.1", "fd09::1"]),
        uplink(&net, "other0", None, &["10.8.0.1", "fd08::1"]),
    ];
    Bench::wanting(net, uplinks, &[("192.168.7.7", None), ("fd77::7", None)])
}

#[test]
#[ignore = "needs root: make test runs it"]
fn over_ipv6_neighbours_and_gateways_are_found_too() {
    let net = with_ipv6();
    let uplinks = vec![uplink(&net, "ov0", None, &["10.9.0.1", "fd09::1"])];
    let mut bench = Bench::wanting(net, uplinks, &[("fd09::2", None), ("fd77::7", None), ("10.9.0.2", None)]);
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    bench.expect_mac(0, &mac);
    bench.expect_mac(2, &mac);
    bench.expect_none(1, "no route");
    bench.net.here("-6 route add fd77::/64 via fd09::2");
    bench.expect_mac(1, &mac);
    let locals: Vec<IpAddr> = bench.paths.iter().map(|paths| paths[0].local).collect();
    assert_eq!(locals, ["fd09::1", "fd09::1", "10.9.0.1"].map(|text| text.parse::<IpAddr>().unwrap()));
    bench.net.here("-6 neigh replace fd09::2 lladdr 02:00:00:00:00:77 dev ov0 nud permanent");
    bench.expect_mac(0, "02:00:00:00:00:77");
    bench.expect_mac(1, "02:00:00:00:00:77");
    bench.net.here("-6 route replace unreachable fd77::/64");
    bench.expect_none(1, "unreachable");
    bench.net.here("addr del fd09::1/64 dev ov0");
    bench.expect_none(0, "not on this host");
    bench.expect_mac(2, &mac);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_ipv4_route_over_an_ipv6_gateway_is_followed() {
    let net = with_ipv6();
    let mut bench = Bench::over(net, &[("ov0", "10.9.0.1")], &["192.168.7.7"]);
    bench.net.here("route add 192.168.7.0/24 via inet6 fd09::2 dev ov0");
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    bench.expect_mac(0, &mac);
    assert_eq!(bench.paths[0][0].local, "10.9.0.1".parse::<IpAddr>().unwrap());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn of_two_gateways_each_has_its_weight_and_one_that_fails_its_reason() {
    let mut bench = Bench::over(Net::new(), &[("ov0", "10.9.0.1")], &["192.168.7.7"]);
    bench.neighbour("ov0", "10.9.0.11", 11);
    bench.neighbour("ov0", "10.9.0.12", 12);
    bench.net.here("route add 192.168.7.0/24 nexthop via 10.9.0.12 weight 3 nexthop via 10.9.0.11 weight 1");
    bench.expect_shares(0, &[(0, 11, 1), (0, 12, 3)]);
    // Nobody answers for the second any more.
    bench.net.here("neigh del 10.9.0.12 dev ov0");
    bench.expect_shares(0, &[(0, 11, 1)]);
    until(10, "the reason to be shown", || {
        bench.turn();
        let (_, verdict) = bench.underlay.ways().next().unwrap();
        let why = verdict.hops[1].state.as_ref().err().map(ToString::to_string);
        verdict.why().is_none() && why.as_deref() == Some("10.9.0.12 does not answer")
    });
    // It is asked for meanwhile: when it is there, it is used again, with no notice but the kernel's answer.
    bench.net.there("addr add 10.9.0.12/24 dev ov1");
    let mac: MacAddr = mac_of(&bench.net.there("-o link show ov1")).parse().unwrap();
    until(15, "the second gateway", || {
        bench.frames.set(bench.frames.get() + 1);
        bench.turn();
        bench.paths[0].iter().any(|path| path.hop.destination == mac && path.weight == 3)
    });
    bench
        .net
        .here("route replace 192.168.7.0/24 nexthop via 10.9.0.11 weight 2 nexthop via 10.9.0.12 weight 200");
    bench.expect_shares(0, &[(0, 11, 2), (0, mac.0[5], 200)]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn groups_of_next_hop_objects_are_several_paths_too() {
    let mut bench = over_both_wires();
    for (device, address, last) in [
        ("ov0", "10.9.0.11", 11),
        ("other0", "10.8.0.12", 12),
        ("ov0", "fd09::11", 13),
        ("other0", "fd08::12", 14),
    ] {
        bench.neighbour(device, address, last);
    }
    bench.net.here("nexthop add id 1 via 10.9.0.11 dev ov0");
    bench.net.here("nexthop add id 2 via 10.8.0.12 dev other0");
    bench.net.here("nexthop add id 10 group 1,2/2,5");
    bench.net.here("route add 192.168.7.0/24 nhid 10");
    bench.expect_shares(0, &[(0, 11, 2), (1, 12, 5)]);
    bench.net.here("-6 nexthop add id 3 via fd09::11 dev ov0");
    bench.net.here("-6 nexthop add id 4 via fd08::12 dev other0");
    bench.net.here("nexthop add id 11 group 3,7/4");
    bench.net.here("-6 route add fd77::/64 nhid 11");
    bench.expect_shares(1, &[(0, 13, 7), (1, 14, 1)]);
    bench.net.here("nexthop replace id 10 group 1/2");
    bench.expect_shares(0, &[(0, 11, 1), (1, 12, 1)]);
    bench.net.here("nexthop replace id 10 group 2");
    bench.expect_shares(0, &[(1, 12, 1)]);
}

/// As hosts of FRRouting are set: the kernel then answers with the object's number only.
#[test]
#[ignore = "needs root: make test runs it"]
fn where_the_kernel_tells_the_number_of_a_next_hop_object_only_the_object_is_asked_for() {
    let mut bench = over_both_wires();
    set("ipv4/nexthop_compat_mode", "0");
    for (device, address, last) in
        [("ov0", "10.9.0.11", 11), ("other0", "10.8.0.12", 12), ("ov0", "fd09::11", 13)]
    {
        bench.neighbour(device, address, last);
    }
    bench.net.here("nexthop add id 1 via 10.9.0.11 dev ov0");
    bench.net.here("nexthop add id 2 via 10.8.0.12 dev other0");
    bench.net.here("nexthop add id 10 group 1,2/2,5");
    bench.net.here("route add 192.168.7.0/24 nhid 10");
    bench.expect_shares(0, &[(0, 11, 2), (1, 12, 5)]);
    bench.net.here("-6 nexthop add id 3 via fd09::11 dev ov0");
    bench.net.here("-6 route add fd77::/64 nhid 3");
    bench.expect_shares(1, &[(0, 13, 1)]);
    bench.net.here("nexthop replace id 10 group 2");
    bench.expect_shares(0, &[(1, 12, 1)]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn over_two_uplinks_both_are_used_and_one_alone_when_the_other_fails() {
    let net = with_two_wires();
    let mut bench =
        Bench::over(net, &[("ov0", "10.9.0.1"), ("other0", "10.8.0.1")], &["192.168.7.7", "10.8.0.2"]);
    bench.neighbour("ov0", "10.9.0.2", 1);
    bench.neighbour("other0", "10.8.0.2", 2);
    bench.net.here("route add 192.168.7.0/24 nexthop via 10.8.0.2 weight 2 nexthop via 10.9.0.2");
    bench.expect_shares(0, &[(0, 1, 1), (1, 2, 2)]);
    bench.expect_shares(1, &[(1, 2, 1)]);
    let locals: Vec<IpAddr> = bench.paths[0].iter().map(|path| path.local).collect();
    assert_eq!(locals, ["10.9.0.1", "10.8.0.1"].map(|text| text.parse::<IpAddr>().unwrap()));
    let sources = bench.paths[0].iter().map(|path| path.hop.source);
    let ours = ["ov0", "other0"].map(|name| mac_of(&bench.net.here(&format!("-o link show {name}"))));
    assert!(sources.eq(ours.map(|mac| mac.parse::<MacAddr>().unwrap())));
    bench.net.there("link set other1 down");
    bench.expect_shares(0, &[(0, 1, 1)]);
    bench.expect_none(1, "other0: the uplink has no carrier");
    bench.net.there("link set other1 up");
    bench.expect_shares(0, &[(0, 1, 1), (1, 2, 2)]);
    bench.net.here("link set ov0 down");
    bench.expect_shares(0, &[(1, 2, 2)]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_next_hop_over_another_interface_is_shown_and_left_out() {
    let net = with_two_wires();
    let mut bench = Bench::over(net, &[("ov0", "10.9.0.1")], &["192.168.7.7"]);
    bench.neighbour("ov0", "10.9.0.2", 1);
    bench.net.here("route add 192.168.7.0/24 nexthop via 10.8.0.2 weight 2 nexthop via 10.9.0.2");
    bench.expect_shares(0, &[(0, 1, 1)]);
    let (_, verdict) = bench.underlay.ways().next().unwrap();
    let others: Vec<_> = verdict.others.iter().map(|(name, why)| format!("{name}: {why}")).collect();
    assert_eq!(others, ["other0: no uplink of ours"]);
    bench.net.here("route replace 192.168.7.0/24 via 10.8.0.2");
    bench.expect_none(0, "the route leads over other0");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_source_address_is_kept_and_has_ways_of_its_own() {
    let net = with_two_wires();
    net.here("addr add 10.9.0.5/32 dev ov0");
    let uplinks = vec![
        uplink(&net, "ov0", None, &["10.9.0.1", "10.9.0.5"]),
        uplink(&net, "other0", None, &["10.8.0.1"]),
    ];
    let ways = [
        ("192.168.7.7", None),
        ("192.168.7.7", Some("10.9.0.5")),
        ("192.168.7.7", Some("10.8.0.1")),
        ("fd09::2", Some("10.9.0.5")),
        ("192.168.7.7", Some("10.7.7.7")),
    ];
    let mut bench = Bench::wanting(net, uplinks, &ways);
    bench.neighbour("ov0", "10.9.0.2", 1);
    bench.neighbour("other0", "10.8.0.2", 2);
    bench.net.here("route add 192.168.7.0/24 nexthop via 10.8.0.2 nexthop via 10.9.0.2");
    bench.expect_shares(0, &[(0, 1, 1), (1, 2, 1)]);
    bench.expect_shares(1, &[(0, 1, 1)]);
    bench.expect_shares(2, &[(1, 2, 1)]);
    let local = |bench: &Bench, index: usize| bench.paths[index][0].local.to_string();
    assert_eq!([0, 1, 2].map(|index| local(&bench, index)), ["10.9.0.1", "10.9.0.5", "10.8.0.1"]);
    bench.expect_none(3, "no uplink has a VTEP address for it");
    bench.expect_none(4, "no uplink has a VTEP address for it");
    // A rule for this address alone.
    bench.neighbour("ov0", "10.9.0.3", 3);
    bench.net.here("route add 192.168.7.0/24 via 10.9.0.3 table 8");
    bench.net.here("rule add from 10.9.0.5 table 8");
    bench.expect_shares(1, &[(0, 3, 1)]);
    bench.expect_shares(0, &[(0, 1, 1), (1, 2, 1)]);
    bench.net.here("addr del 10.9.0.5/32 dev ov0");
    bench.expect_none(1, "not on this host");
    bench.expect_shares(0, &[(0, 1, 1), (1, 2, 1)]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_address_is_ours_though_a_rule_comes_before_the_local_table() {
    let mut bench = Bench::over(Net::new(), &[("ov0", "10.9.0.1")], &["10.9.0.2"]);
    bench.net.here("rule add pref 100 lookup local");
    bench.net.here("rule add pref 50 to 10.9.0.0/24 lookup main");
    bench.net.here("rule del pref 0 lookup local");
    bench.neighbour("ov0", "10.9.0.2", 7);
    bench.expect_shares(0, &[(0, 7, 1)]);
    bench.net.here("addr del 10.9.0.1/24 dev ov0");
    bench.expect_none(0, "not on this host");
}

/// As it is found on the wire while the address is tentative; and when the other host has let go of it, and it is set again, it is used.
#[test]
#[ignore = "needs root: make test runs it"]
fn an_address_that_another_host_has_too_is_not_used() {
    let net = with_ipv6();
    net.there("addr add fd09::7/64 dev ov1 nodad");
    net.here("addr add fd09::7/64 dev ov0");
    let uplinks = vec![uplink(&net, "ov0", None, &["fd09::7"])];
    let mut bench = Bench::wanting(net, uplinks, &[("fd09::2", None)]);
    bench.expect_none(0, "another host has it too (duplicate address)");
    bench.net.there("addr del fd09::7/64 dev ov1");
    bench.net.here("addr del fd09::7/64 dev ov0");
    bench.expect_none(0, "the local VTEP address is not on this host");
    set("ipv6/conf/ov0/dad_transmits", "2");
    bench.net.here("addr add fd09::7/64 dev ov0");
    bench.expect_none(0, "is not usable yet (duplicate address detection)");
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    until(15, "the end of the detection", || {
        bench.turn();
        bench.hops[0].is_some_and(|hop| hop.destination == mac.parse().unwrap())
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_route_that_encapsulates_is_not_followed() {
    let net = with_ipv6();
    let uplinks = vec![uplink(&net, "ov0", None, &["10.9.0.1", "fd09::1"])];
    let mut bench = Bench::wanting(net, uplinks, &[("192.168.7.7", None), ("fd77::7", None)]);
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    bench.net.here("route add 192.168.7.0/24 via 10.9.0.2");
    bench.net.here("-6 route add fd77::/64 via fd09::2");
    bench.expect_mac(0, &mac);
    bench.expect_mac(1, &mac);
    const WHY: &str =
        "the route encapsulates (`encap`), which is not followed: give this VTEP a route without it";
    bench.net.here("route replace 192.168.7.0/24 encap ip id 5 dst 10.9.0.9 via 10.9.0.2");
    bench.expect_none(0, WHY);
    bench.net.here("-6 route replace fd77::/64 encap ip6 id 5 dst fd09::9 via fd09::2");
    bench.expect_none(1, WHY);
    bench.net.here(
        "route replace 192.168.7.0/24 nexthop encap ip id 5 dst 10.9.0.9 via 10.9.0.2 nexthop via 10.9.0.3",
    );
    bench.neighbour("ov0", "10.9.0.3", 3);
    bench.expect_shares(0, &[(0, 3, 1)]);
    let (_, verdict) = bench.underlay.ways().next().unwrap();
    assert!(verdict.others.iter().any(|(_, why)| why.to_string() == WHY), "{verdict:?}");
    bench.net.here("nexthop add id 1 encap ip id 5 dst 10.9.0.9 via 10.9.0.2 dev ov0");
    set("ipv4/nexthop_compat_mode", "0");
    bench.net.here("route replace 192.168.7.0/24 nhid 1");
    bench.expect_none(0, WHY);
}

/// Where the kernel has no 802.1Q (CONFIG_VLAN_8021Q) only the complaint about that can be tested.
#[test]
#[ignore = "needs root: make test runs it"]
fn on_a_vlan_its_device_counts() {
    let net = Net::new();
    net.here("addr del 10.9.0.1/24 dev ov0");
    net.here("addr add 10.9.0.1/24 dev lo"); // there, but the route is not over the VLAN
    let uplinks = vec![uplink(&net, "ov0", Some(5), &["10.9.0.1"])];
    let mut bench = Bench::wanting(net, uplinks, &[("10.9.0.2", None)]);
    bench.expect_none(0, "ov0 has no device for VLAN 5: ip link add link ov0 name ov0.5 type vlan id 5");
    let add =
        ["-n", &bench.net.here, "link", "add", "link", "ov0", "name", "five", "type", "vlan", "id", "5"];
    if !Command::new("ip").args(add).output().expect("iproute2").status.success() {
        common::left_out("paths: in a VLAN: this kernel has no VLAN devices");
        return;
    }
    bench.expect_none(0, "the VLAN's device five is down");
    bench.net.here("link set five address 02:00:00:00:00:55 up mtu 1400");
    bench.net.here("addr del 10.9.0.1/24 dev lo");
    bench.net.here("addr add 10.9.0.1/24 dev five");
    bench.neighbour("five", "10.9.0.2", 7);
    bench.expect_shares(0, &[(0, 7, 1)]);
    assert_eq!(bench.paths[0][0].hop.source, MacAddr([2, 0, 0, 0, 0, 0x55]));
    assert_eq!(bench.paths[0][0].mtu, 1400);
    bench.net.here("link set ov0 down");
    bench.expect_none(0, "the uplink is down");
    bench.net.here("link set ov0 up");
    bench.net.here("link del five");
    bench.expect_none(0, "no device for VLAN 5");
}

/// `here: ov0 ── ov1 :there: far0 ── far1 :beyond`; the far wire takes 1400 bytes. `beyond` is a third namespace that goes with `there`'s wire.
struct Beyond(String);

impl Beyond {
    fn behind(net: &Net) -> Beyond {
        let beyond = Beyond(format!("{}-beyond", net.here));
        ip(&format!("netns add {}", beyond.0));
        net.there(&format!("link add far0 mtu 1400 type veth peer name far1 mtu 1400 netns {}", beyond.0));
        beyond.ip("addr add 10.7.0.2/24 dev far1");
        beyond.ip("addr add fd07::2/64 dev far1 nodad");
        net.there("addr add 10.7.0.1/24 dev far0");
        net.there("addr add fd07::1/64 dev far0 nodad");
        net.there("link set far0 up");
        beyond.ip("link set far1 up");
        ip(&format!(
            "netns exec {} sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
            net.there
        ));
        net.here("route add 10.7.0.0/24 via 10.9.0.2");
        net.here("-6 route add fd07::/64 via fd09::2");
        beyond
    }

    fn ip(&self, arguments: &str) {
        ip(&format!("-n {} {arguments}", self.0));
    }
}

impl Drop for Beyond {
    fn drop(&mut self) {
        let _gone = Command::new("ip").args(["netns", "del", &self.0]).output();
    }
}

/// An outer packet as an AF_XDP socket sends it: no UDP socket has its port, and over IPv6 it has a flow label.
fn send_outer(net: &Net, local: &str, remote: &str, bytes: usize) {
    let text = "import socket, struct, sys\n\
        local, remote, size = sys.argv[1], sys.argv[2], int(sys.argv[3])\n\
        six = ':' in local\n\
        family = socket.AF_INET6 if six else socket.AF_INET\n\
        source, target = socket.inet_pton(family, local), socket.inet_pton(family, remote)\n\
        rest = size - (40 if six else 20)\n\
        udp = struct.pack('!HHHH', 50000, 4789, rest, 0x1234 if six else 0) + bytes(rest - 8)\n\
        head = struct.pack('!IHBB', 6 << 28 | target[15] * 7919, rest, 17, 64) if six else struct.pack('!BBHHHBBH', 0x45, 0, size, 0, 0x4000, 64, 17, 0)\n\
        s = socket.socket(family, socket.SOCK_RAW, socket.IPPROTO_RAW)\n\
        s.sendto(head + source + target + udp, (remote, 0))\n";
    let output = net.command("python3").args(["-c", text, local, remote, &bytes.to_string()]).output();
    let output = output.expect("python3");
    assert!(output.status.success(), "{}", common::text(&output));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_a_router_says_about_the_path_mtu_is_learned_and_forgotten() {
    let net = with_ipv6();
    let beyond = Beyond::behind(&net);
    let uplinks = vec![uplink(&net, "ov0", None, &["10.9.0.1", "fd09::1"])];
    let mut bench =
        Bench::wanting(net, uplinks, &[("10.7.0.2", None), ("fd07::2", None), ("10.9.0.2", None)]);
    set("ipv4/route/mtu_expires", "4");
    set("ipv6/route/mtu_expires", "4");
    for index in 0..3 {
        bench.expect_mtu(index, 1500);
    }
    for (index, local, remote) in [(0, "10.9.0.1", "10.7.0.2"), (1, "fd09::1", "fd07::2")] {
        assert!(bench.underlay.path_mtu_unknown(local.parse().unwrap()).is_none());
        send_outer(&bench.net, local, remote, 1500);
        bench.expect_mtu(index, 1400);
        assert_eq!(bench.paths[2][0].mtu, 1500, "another remote's path is another one");
        bench.expect_mtu(index, 1500);
    }
    drop(beyond);
}

/// The kernel notes it with one of the gateways, and tells of another.
#[test]
#[ignore = "needs root: make test runs it"]
fn over_ipv6_a_path_mtu_is_learned_by_whichever_gateway() {
    let net = with_ipv6();
    let beyond = Beyond::behind(&net);
    net.there("addr add fd09::3/64 dev ov1 nodad");
    net.here("-6 nexthop add id 1 via fd09::2 dev ov0");
    net.here("-6 nexthop add id 2 via fd09::3 dev ov0");
    net.here("nexthop add id 3 group 1/2");
    net.here("-6 route replace fd07::/64 nhid 3");
    let remotes: Vec<String> = (2..12).map(|last| format!("fd07::{last:x}")).collect();
    remotes[1..].iter().for_each(|remote| beyond.ip(&format!("addr add {remote}/64 dev far1 nodad")));
    let wanted: Vec<_> = remotes.iter().map(|remote| (remote.as_str(), None)).collect();
    let uplinks = vec![uplink(&net, "ov0", None, &["fd09::1"])];
    let mut bench = Bench::wanting(net, uplinks, &wanted);
    for (index, remote) in remotes.iter().enumerate() {
        bench.expect_mtu(index, 1500);
        send_outer(&bench.net, "fd09::1", remote, 1500);
        bench.expect_mtu(index, 1400);
        assert_eq!(bench.paths[index].len(), 2);
    }
    drop(beyond);
}

/// Anybody can send such a message.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_path_mtu_that_no_path_should_have_is_shown_and_not_believed() {
    let net = with_ipv6();
    let beyond = Beyond::behind(&net);
    let uplinks = vec![uplink(&net, "ov0", None, &["10.9.0.1", "fd09::1"])];
    let mut bench = Bench::wanting(net, uplinks, &[("10.7.0.2", None), ("fd07::2", None)]);
    bench.expect_mtu(0, 1500);
    bench.expect_mtu(1, 1500);
    bench.net.there("link set far0 mtu 1290");
    for (index, local, remote) in [(0, "10.9.0.1", "10.7.0.2"), (1, "fd09::1", "fd07::2")] {
        send_outer(&bench.net, local, remote, 1500);
        until(15, "what is not believed", || {
            bench.frames.set(bench.frames.get() + 1);
            bench.turn();
            let (_, verdict) = bench.underlay.ways().nth(index).unwrap();
            verdict.hops[0].mtu_not_believed == Some(1290)
        });
        assert_eq!(bench.paths[index][0].mtu, 1500);
    }
    drop(beyond);
}

/// What is not for us must be answered as if we were not there.
#[test]
#[ignore = "needs root: make test runs it"]
fn learning_path_mtus_swallows_nothing() {
    let net = with_ipv6();
    let uplinks = vec![uplink(&net, "ov0", None, &["10.9.0.1", "fd09::1"])];
    let bench = Bench::wanting(net, uplinks, &[("10.9.0.2", None)]);
    for (own, local) in [("10.9.0.1", "10.9.0.1:4789"), ("fd09::1", "[fd09::1]:4789")] {
        let socket = UdpSocket::bind((own, 0)).unwrap();
        socket.connect(local).unwrap();
        let mut refused = false;
        until(5, "port unreachable", || {
            refused |= socket.send(b"not VXLAN").is_err();
            refused
        });
    }
    bench.net.here("link add vx0 type vxlan id 5 dstport 4789 local 10.9.0.1 remote 10.9.0.2");
    bench.net.here("link set vx0 up");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_mtu_of_the_interface_or_the_route_counts_too() {
    let mut bench = Bench::over(with_ipv6(), &[("ov0", "10.9.0.1")], &["10.9.0.2", "192.168.7.7"]);
    bench.expect_mtu(0, 1500);
    bench.net.here("link set ov0 mtu 1450");
    bench.expect_mtu(0, 1450);
    bench.net.here("route add 192.168.7.0/24 via 10.9.0.2 mtu 1300");
    bench.expect_mtu(1, 1300);
    bench.net.here("route replace 192.168.7.0/24 via 10.9.0.2 mtu 1800");
    bench.expect_mtu(1, 1450);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_is_wanted_can_change() {
    let mut bench = Bench::over(Net::new(), &[("ov0", "10.9.0.1")], &["10.9.0.2", "10.9.0.3"]);
    bench.neighbour("ov0", "10.9.0.2", 2);
    bench.neighbour("ov0", "10.9.0.3", 3);
    bench.neighbour("ov0", "10.9.0.4", 4);
    bench.expect_shares(0, &[(0, 2, 1)]);
    bench.expect_shares(1, &[(0, 3, 1)]);
    bench.paths = vec![Vec::new(); 2];
    bench.underlay.want(wanted_ways(&[("10.9.0.2", None), ("10.9.0.4", None)]));
    bench.expect_shares(1, &[(0, 4, 1)]);
    assert!(bench.paths[0].is_empty(), "nothing changed about that one");
    assert_eq!(bench.underlay.ways().count(), 2);
    bench.neighbour("ov0", "10.9.0.2", 9);
    bench.expect_shares(0, &[(0, 9, 1)]);
}

/// Each turn's share is bounded, and all get theirs, however often something changes meanwhile.
#[test]
#[ignore = "needs root: make test runs it"]
fn thousands_of_remotes_are_looked_at_a_few_at_a_time() {
    const COUNT: usize = 4000;
    let remotes: Vec<String> = (0..COUNT).map(|n| format!("172.16.{}.{}", n / 250, n % 250 + 1)).collect();
    let remotes: Vec<&str> = remotes.iter().map(String::as_str).collect();
    let mut bench = Bench::over(Net::new(), &[("ov0", "10.9.0.1")], &remotes);
    bench.neighbour("ov0", "10.9.0.2", 2);
    bench.net.here("route add 172.16.0.0/12 via 10.9.0.2");
    let (mut turns, mut largest) = (0, 0);
    until(60, "all remotes", || {
        let known = |bench: &Bench| bench.paths.iter().filter(|paths| !paths.is_empty()).count();
        let before = known(&bench);
        bench.turn();
        let after = known(&bench);
        turns += usize::from(after > before);
        largest = largest.max(after - before);
        if turns % 8 == 0 && after > before {
            bench.net.here(&format!("route replace 192.168.{}.0/24 via 10.9.0.2", turns / 8 % 250));
        }
        after == COUNT
    });
    assert!(turns > 1 && largest < COUNT, "{largest} of {COUNT} in one of {turns} turns");
    assert!(bench.paths.iter().all(|paths| paths[0].hop.uplink == UplinkId(0)));
}
