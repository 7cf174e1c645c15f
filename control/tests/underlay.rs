//! Next hops, against the kernel's own routes and neighbours. Each test has a wire of its own:
//! `here: ov0 10.9.0.1/24 ── ov1 10.9.0.2/24 :there`.

mod common;

use std::time::{Duration, Instant};

use common::bench::{Bench, mac_of};
use common::until;
use peregrine_dataplane::engine::NextHop;
use peregrine_dataplane::types::{MacAddr, UplinkId};

const PEER: &str = "10.9.0.2";

#[test]
#[ignore = "needs root: make test runs it"]
fn a_neighbour_is_resolved_and_its_changes_are_followed() {
    let mut bench = Bench::new(&[PEER]);
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    bench.expect_mac(0, &mac);
    let ours: MacAddr = mac_of(&bench.net.here("-o link show ov0")).parse().unwrap();
    assert_eq!(bench.hops[0].unwrap().source, ours);
    bench.net.here("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:77 dev ov0 nud permanent");
    bench.expect_mac(0, "02:00:00:00:00:77");
    bench.net.here("neigh del 10.9.0.2 dev ov0");
    bench.expect_mac(0, &mac); // gone, asked for again, found again
}

#[test]
#[ignore = "needs root: make test runs it"]
fn our_own_address_is_the_source_also_when_it_changes() {
    let mut bench = Bench::new(&[PEER]);
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    bench.expect_mac(0, &mac);
    bench.net.here("link set ov0 address 02:00:00:00:00:55");
    until(5, "the new source", || {
        bench.turn();
        bench.hops[0].is_some_and(|hop| hop.source == "02:00:00:00:00:55".parse().unwrap())
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_silent_neighbour_is_unresolved_until_it_answers() {
    let mut bench = Bench::new(&["10.9.0.99"]);
    bench.expect_none(0, "10.9.0.99 does not answer");
    bench.net.there("addr add 10.9.0.99/24 dev ov1");
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    // Somebody wants it: it is asked for again within a second or two.
    until(15, "an answer", || {
        bench.frames.set(bench.frames.get() + 1);
        bench.turn();
        bench.hops[0].is_some_and(|hop| hop.destination == mac.parse().unwrap())
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_stale_entry_in_use_is_validated_and_a_new_address_noticed() {
    let mut bench = Bench::new(&[PEER]);
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    bench.expect_mac(0, &mac);
    // The entry is stale and wrong: only a probe can find that out. Five seconds of DELAY are the kernel's rule;
    // shorter here.
    std::fs::write("/proc/sys/net/ipv4/neigh/ov0/delay_first_probe_time", "1").unwrap();
    bench.net.here("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:66 dev ov0 nud stale");
    bench.expect_mac(0, "02:00:00:00:00:66");
    until(15, "the probe's answer", || {
        bench.frames.set(bench.frames.get() + 1);
        bench.turn();
        bench.hops[0].is_some_and(|hop| hop.destination == mac.parse().unwrap())
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_stale_entry_that_nobody_uses_is_left_alone() {
    let mut bench = Bench::new(&[PEER]);
    bench.turn();
    bench.net.here("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:66 dev ov0 nud stale");
    bench.expect_mac(0, "02:00:00:00:00:66");
    let end = Instant::now() + Duration::from_millis(2500);
    while Instant::now() < end {
        bench.turn();
        assert!(bench.net.here("neigh show 10.9.0.2 dev ov0").contains("STALE"));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn routes_decide_gateway_other_interface_or_none() {
    let mut bench = Bench::new(&["192.168.7.7"]);
    bench.expect_none(0, "no route");
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    bench.net.here("route add 192.168.7.0/24 via 10.9.0.2");
    bench.expect_mac(0, &mac);
    let neighbour = bench.underlay.ways().next().map(|(_, verdict)| verdict.hops[0].neighbour);
    assert_eq!(neighbour, PEER.parse().ok());
    bench.net.there("addr add 10.9.0.3/24 dev ov1");
    bench.net.here("neigh replace 10.9.0.3 lladdr 02:00:00:00:00:03 dev ov0 nud permanent");
    bench.net.here("route replace 192.168.7.0/24 via 10.9.0.3");
    bench.expect_mac(0, "02:00:00:00:00:03");
    bench.net.here("link add other0 type veth peer name other1");
    bench.net.here("link set other0 up");
    bench.net.here("link set other1 up");
    bench.net.here("route add 192.168.7.7/32 dev other0");
    bench.expect_none(0, "the route leads over other0");
    bench.net.here("route replace unreachable 192.168.7.7/32");
    bench.expect_none(0, "unreachable");
    bench.net.here("route replace prohibit 192.168.7.7/32");
    bench.expect_none(0, "prohibit");
    bench.net.here("route replace blackhole 192.168.7.7/32");
    bench.expect_none(0, "blackhole");
    bench.net.here("route del 192.168.7.7/32");
    bench.expect_mac(0, "02:00:00:00:00:03");
    bench.net.here("route del 192.168.7.0/24");
    bench.expect_none(0, "no route");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn of_equal_routes_the_one_over_the_uplink_is_taken() {
    let mut bench = Bench::new(&["192.168.7.1", "192.168.7.2", "192.168.7.3", "192.168.7.4"]);
    bench.net.here("link add other0 type veth peer name other1");
    bench.net.here("addr add 10.8.0.1/24 dev other0");
    bench.net.here("link set other0 up");
    bench.net.here("link set other1 up");
    bench.net.here("route add 192.168.7.0/24 nexthop via 10.8.0.2 dev other0 nexthop via 10.9.0.2 dev ov0");
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    (0..4).for_each(|index| bench.expect_mac(index, &mac));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn of_two_uplinks_that_is_taken_which_the_kernel_would_take() {
    const ROUTED: &str = "192.168.7.7";
    const RULED: &str = "192.168.8.8";
    let mut bench = Bench::with_two_uplinks(&[PEER, "10.8.0.2", ROUTED, RULED]);
    bench.expect_uplink(0, 0);
    bench.expect_uplink(1, 1);
    let (ours, theirs) =
        (mac_of(&bench.net.here("-o link show other0")), mac_of(&bench.net.there("-o link show other1")));
    let hop =
        NextHop { uplink: UplinkId(1), destination: theirs.parse().unwrap(), source: ours.parse().unwrap() };
    assert_eq!(bench.hops[1], Some(hop));
    bench.expect_none(2, "no route");
    assert_eq!(bench.reason(2), "no route", "the same for both is said once");
    bench.net.here("route add 192.168.7.0/24 via 10.8.0.2 metric 20");
    bench.expect_uplink(2, 1);
    bench.net.here("route add 192.168.7.0/24 via 10.9.0.2 metric 10");
    bench.expect_uplink(2, 0);
    bench.net.here("route del 192.168.7.0/24 via 10.9.0.2");
    bench.expect_uplink(2, 1);
    // What is true for packets from our address on the second one only.
    bench.net.here("route add 192.168.8.0/24 via 10.8.0.2 table 8");
    bench.expect_none(3, "no route");
    bench.net.here("rule add from 10.8.0.1 table 8");
    bench.expect_uplink(3, 1);
    bench.net.here("rule del from 10.8.0.1 table 8");
    bench.expect_none(3, "no route");
}

/// A way that nobody answers on is none.
#[test]
#[ignore = "needs root: make test runs it"]
fn an_uplink_whose_gateway_is_silent_gives_way_to_one_that_a_rule_leads_over() {
    let mut bench = Bench::with_two_uplinks(&["192.168.8.8"]);
    bench.net.here("route add 192.168.8.0/24 via 10.9.0.99");
    bench.expect_none(0, "10.9.0.99 does not answer");
    bench.net.here("route add 192.168.8.0/24 via 10.8.0.2 table 8");
    bench.net.here("rule add from 10.8.0.1 table 8");
    bench.expect_uplink(0, 1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn one_uplink_that_fails_leaves_the_other_alone_and_says_why() {
    let mut bench = Bench::with_two_uplinks(&[PEER, "10.8.0.2", "192.168.7.7"]);
    bench.net.here("route add 192.168.7.0/24 via 10.8.0.2 metric 10");
    bench.net.here("route add 192.168.7.0/24 via 10.9.0.2 metric 20");
    bench.expect_uplink(0, 0);
    bench.expect_uplink(1, 1);
    bench.expect_uplink(2, 1);
    bench.net.there("link set other1 down");
    bench.expect_none(1, "other0: the uplink has no carrier");
    bench.expect_none(2, "other0: the uplink has no carrier");
    // The kernel goes on using such a route unless it is told not to.
    std::fs::write("/proc/sys/net/ipv4/conf/all/ignore_routes_with_linkdown", "1").unwrap();
    bench.net.here("link set other0 mtu 1400"); // a notice
    bench.expect_uplink(2, 0);
    bench.net.there("link set other1 up");
    bench.expect_uplink(2, 1);
    bench.net.here("link del other0");
    bench.expect_uplink(2, 0);
    bench.expect_none(1, "other0: the uplink interface is gone");
    assert!(bench.reason(1).contains("ov0: no route"), "{}", bench.reason(1));
    assert!(bench.hops[0].is_some());
    let links: Vec<bool> = bench.underlay.uplinks().iter().map(|uplink| uplink.link.is_some()).collect();
    assert_eq!(links, [true, false]);
}

/// Its sockets are not bound to what comes back, even under the same number: the way must not lead there again.
#[test]
#[ignore = "needs root: make test runs it"]
fn an_uplink_that_was_removed_stays_so_though_it_comes_back_with_its_number() {
    let mut bench = Bench::with_two_uplinks(&[PEER, "10.8.0.2"]);
    bench.expect_uplink(0, 0);
    bench.expect_uplink(1, 1);
    let (number, there) = (bench.underlay.uplinks()[0].ifindex, bench.net.there.clone());
    bench.net.here("link del ov0");
    bench.expect_none(0, "the uplink interface is gone");
    bench.net.here(&format!("link add ov0 index {number} type veth peer name ov1 netns {there}"));
    bench.net.there("link set ov1 up");
    bench.net.here("addr add 10.9.0.1/24 dev ov0");
    bench.net.here("link set ov0 up");
    bench.net.here("neigh replace 10.9.0.2 lladdr 02:00:00:00:00:77 dev ov0 nud permanent");
    // All is looked at again, this later change and what came before.
    bench.net.here("link set other0 address 02:00:00:00:00:55");
    until(5, "the other uplink's change", || {
        bench.turn();
        bench.hops[1].is_some_and(|hop| hop.source == "02:00:00:00:00:55".parse().unwrap())
    });
    assert_eq!(bench.hops[0], None);
    assert!(bench.reason(0).contains("ov0: the uplink interface is gone"), "{}", bench.reason(0));
    assert!(bench.underlay.uplinks()[0].link.is_none());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_link_that_goes_down_or_away_is_noticed() {
    let mut bench = Bench::new(&[PEER]);
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    bench.expect_mac(0, &mac);
    bench.net.there("link set ov1 down");
    bench.expect_none(0, "no carrier");
    bench.net.there("link set ov1 up");
    bench.expect_mac(0, &mac);
    bench.net.here("link set ov0 down");
    bench.expect_none(0, "the uplink is down");
    bench.net.here("link set ov0 up");
    bench.expect_mac(0, &mac);
    bench.net.here("addr del 10.9.0.1/24 dev ov0");
    bench.expect_none(0, "not on this host");
    bench.net.here("addr add 10.9.0.1/24 dev ov0");
    bench.expect_mac(0, &mac);
    bench.net.here("link del ov0");
    bench.expect_none(0, "gone");
    assert!(bench.underlay.uplinks()[0].link.is_none());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_storm_of_notices_loses_nothing() {
    let mut bench = Bench::new(&[PEER]);
    let mac = mac_of(&bench.net.there("-o link show ov1"));
    bench.expect_mac(0, &mac);
    // More than the notices' buffer holds while nobody reads: the kernel says ENOBUFS.
    let batch: String = (0..20_000)
        .map(|n| format!("route add 172.{}.{}.{}/32 dev ov0\n", 16 + n / 65_536, n / 256 % 256, n % 256))
        .chain(["neigh replace 10.9.0.2 lladdr 02:00:00:00:00:44 dev ov0 nud permanent\n".to_owned()])
        .collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("batch");
    std::fs::write(&file, batch).unwrap();
    bench.net.here(&format!("-batch {}", file.display()));
    bench.expect_mac(0, "02:00:00:00:00:44");
}
