//! Underlays of other shapes: IPv6, a VLAN, two wires to one remote at once, a UDP port and a source address of a network's own. The far end
//! is the kernel's vxlan device.

use std::io::Write;

use peregrine_control::lab::Namespace;
use peregrine_tests::{
    Daemon, FAR, FAR_OVERLAY, Guest, NEAR, Net, RawSocket, Tenant, VNI, frame, ping_patiently, run, totals,
    until,
};
use serde_json::Value;

/// A network of its own.
const RED: Tenant = Tenant { name: "red", network: "red", id: 2, ip: "10.43.0.1", mac: "02:00:00:00:43:01" };
const RED_VNI: u32 = 43;
/// The second wire's ends: address, device, link-layer address.
const NEAR2: (&str, &str, &str) = ("198.51.100.1", "near1", "02:00:00:00:0e:01");
const FAR2: (&str, &str, &str) = ("198.51.100.2", "far1", "02:00:00:00:0e:02");
/// The IPv6 VTEPs.
const NEAR_V6: &str = "2001:db8::1";
const FAR_V6: &str = "2001:db8::2";

/// The hosts and their wire, with IPv6 but without what IPv6 says by itself.
fn net_with_ipv6(mtu: u16) -> Net {
    let net = Net::apart();
    net.far.wire((FAR.1, FAR.2), &net.near, (NEAR.1, NEAR.2), mtu).unwrap();
    for (host, device, v4, v6) in [(&net.far, FAR.1, FAR.0, FAR_V6), (&net.near, NEAR.1, NEAR.0, NEAR_V6)] {
        let key = format!("net.ipv6.conf.{device}.disable_ipv6=0");
        run(host.command("sysctl").args(["-qw", &key]));
        host.ip(&format!("addr add {v4}/24 dev {device}")).unwrap();
        host.ip(&format!("addr add {v6}/64 dev {device} nodad")).unwrap();
    }
    net
}

/// A vxlan device of the far kernel: its name, VNI, and how the wire's side is.
fn vxlan(host: &Namespace, name: &str, vni: u32, underlay: &str, (address, mac): (&str, &str)) {
    host.ip(&format!("link add {name} address {mac} mtu 1400 type vxlan id {vni} {underlay}")).unwrap();
    host.ip(&format!("addr add {address}/24 dev {name}")).unwrap();
    host.ip(&format!("link set {name} up")).unwrap();
}

/// Pings from the far kernel to the tenant, and back: what was lost is told by the daemon.
fn pings(net: &Net, daemon: &Daemon, tenant: Tenant) {
    let answered = ping_patiently(&net.far, tenant.ip, 20, 0.01);
    assert_eq!(answered, 20, "{}: {:#}", tenant.name, daemon.stats());
}

/// Nothing was lost, and all that left went this way.
fn nothing_lost(daemon: &Daemon) -> Value {
    let stats = daemon.at_rest();
    assert_eq!(totals(&stats, "dropped"), 0, "{}", stats["drops"]);
    stats
}

#[test]
#[ignore = "needs root: make test runs it"]
fn over_ipv6_the_far_kernel_and_a_tenant_reach_each_other() {
    let net = net_with_ipv6(1500);
    // Checksums sent and wanted, as it is by default over IPv6.
    vxlan(&net.far, "vx", VNI, &format!("local {FAR_V6} remote {NEAR_V6} dstport 4789"), FAR_OVERLAY);
    let config = Daemon::config(&net, &[FAR_V6], &[Tenant::WEB])
        .replace(&format!("local = \"{}\"", NEAR.0), &format!("local = \"{NEAR_V6}\""))
        .replace("mtu = 1450", "mtu = 1430");
    let daemon = Daemon::start_with(&net, &config);
    let _echo = Tenant::WEB.echo(&net);
    daemon.wait_for_next_hops();
    let wire = RawSocket::open(&net.far, FAR.1);
    pings(&net, &daemon, Tenant::WEB);
    let outer = wire.receive(|frame| {
        let is_ours = frame.get(6..12) == Some(&mac(NEAR.2));
        is_ours && frame.get(12..14) == Some(&[0x86, 0xdd]) && frame.get(20) == Some(&17)
    });
    let source: [u8; 16] = outer[22..38].try_into().unwrap();
    assert_eq!(std::net::Ipv6Addr::from(source).to_string(), NEAR_V6);
    assert_ne!(outer[60..62], [0, 0], "a checksum: {outer:?}");
    nothing_lost(&daemon);
    let hop = &daemon.status()["next_hops"][0];
    assert_eq!((&hop["remote"], &hop["mtu"]), (&Value::from(FAR_V6), &Value::from(1500)), "{hop:#}");
    assert_eq!(hop["paths"][0]["local"], NEAR_V6, "{hop:#}");
}

fn mac(text: &str) -> [u8; 6] {
    text.parse::<peregrine_dataplane::types::MacAddr>().unwrap().0
}

/// Blue is on the first address and port 4789, red on another address and port of the same uplink.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_network_has_its_own_port_and_source_address_and_another_has_ipv6() {
    const NEAR_RED: &str = "192.0.2.11";
    const GREEN: Tenant =
        Tenant { name: "green", network: "green", id: 3, ip: "10.44.0.1", mac: "02:00:00:00:44:01" };
    let net = net_with_ipv6(1500);
    net.near.ip(&format!("addr add {NEAR_RED}/24 dev {}", NEAR.1)).unwrap();
    let far = |remote: &str, port: u16| format!("local {} remote {remote} dstport {port} noudpcsum", FAR.0);
    vxlan(&net.far, "vx", VNI, &far(NEAR.0, 4789), FAR_OVERLAY);
    vxlan(&net.far, "vx43", RED_VNI, &far(NEAR_RED, 8472), ("10.43.0.2", "02:00:00:00:43:02"));
    let v6 = format!("local {FAR_V6} remote {NEAR_V6} dstport 4789");
    vxlan(&net.far, "vx44", 44, &v6, ("10.44.0.2", "02:00:00:00:44:02"));
    let networks = format!(
        "\n[[networks]]\nname = \"red\"\nvni = {RED_VNI}\nmtu = 1400\nport = 8472\nlocal = \"{NEAR_RED}\"\nremotes = [\"{}\"]\n\
         \n[[networks]]\nname = \"green\"\nvni = 44\nmtu = 1400\nremotes = [\"{FAR_V6}\"]\n",
        FAR.0
    );
    let locals = format!("local = [\"{}\", \"{NEAR_RED}\", \"{NEAR_V6}\"]", NEAR.0);
    let config = Daemon::config(&net, &[FAR.0], &[Tenant::WEB, RED, GREEN])
        .replace(&format!("local = \"{}\"", NEAR.0), &locals);
    let daemon = Daemon::start_with(&net, &(config + &networks));
    let tenants = [Tenant::WEB, RED, GREEN];
    let _echoes = tenants.map(|tenant| tenant.echo(&net));
    daemon.wait_for_next_hops();
    let wire = RawSocket::open(&net.far, FAR.1);
    for tenant in tenants {
        pings(&net, &daemon, tenant);
    }
    // From the address and to the port of the network.
    let sent = |source: &str, port: u16, vni: u32| {
        let source: std::net::Ipv4Addr = source.parse().unwrap();
        wire.receive(|frame| {
            frame.get(26..30) == Some(&source.octets())
                && frame.get(36..38) == Some(&port.to_be_bytes())
                && frame.get(46..49) == Some(&vni.to_be_bytes()[1..])
        })
    };
    sent(NEAR.0, 4789, VNI);
    sent(NEAR_RED, 8472, RED_VNI);
    let hops = daemon.status()["next_hops"].clone();
    let locals: Vec<&Value> = hops.as_array().unwrap().iter().map(|hop| &hop["paths"][0]["local"]).collect();
    assert_eq!(locals, [NEAR.0, NEAR_RED, NEAR_V6], "{hops:#}");
    nothing_lost(&daemon);
}

/// Two wires between the hosts, and a VTEP on the far one that is reached over either.
#[test]
#[ignore = "needs root: make test runs it"]
fn two_uplinks_to_one_remote_share_its_flows_and_keep_their_order() {
    const REMOTE: &str = "203.0.113.1";
    const FLOWS: u16 = 64;
    const EACH: u16 = 40;
    let net = Net::apart();
    net.far.wire((FAR.1, FAR.2), &net.near, (NEAR.1, NEAR.2), 1500).unwrap();
    net.far.wire((FAR2.1, FAR2.2), &net.near, (NEAR2.1, NEAR2.2), 1500).unwrap();
    for (host, (address, device, _)) in
        [(&net.far, FAR), (&net.near, NEAR), (&net.far, FAR2), (&net.near, NEAR2)]
    {
        host.ip(&format!("addr add {address}/24 dev {device}")).unwrap();
    }
    net.far.ip(&format!("addr add {REMOTE}/32 dev lo")).unwrap();
    vxlan(
        &net.far,
        "vx",
        VNI,
        &format!("local {REMOTE} remote {} dstport 4789 noudpcsum", NEAR.0),
        FAR_OVERLAY,
    );
    net.near.ip(&format!("route add {REMOTE}/32 nexthop via {} nexthop via {}", FAR.0, FAR2.0)).unwrap();
    let second =
        format!("[[uplink]]\ninterface = \"{}\"\nlocal = \"{}\"\nmode = \"copy\"\n", NEAR2.1, NEAR2.0);
    let config = Daemon::config(&net, &[REMOTE], &[Tenant::WEB])
        .replace("[uplink]\n", &format!("{second}\n[[uplink]]\n"));
    let daemon = Daemon::start_with(&net, &config);
    daemon.wait_for_next_hops();
    until("both paths", || {
        let hop = daemon.status()["next_hops"][0].clone();
        let paths = hop["paths"].as_array().unwrap();
        paths.len() == 2 && paths.iter().all(|path| path["reason"].is_null())
    });
    let mut web = Guest::new(&net, Tenant::WEB);
    daemon.wait_for_tenant(0, true);
    let device = RawSocket::open(&net.far, "vx");
    let before = daemon.at_rest();
    let mut next = vec![0u16; usize::from(FLOWS)];
    // As many at once as all rings on the way hold.
    for first in (0..EACH).step_by(4) {
        for (number, flow) in (first..first + 4).flat_map(|number| (0..FLOWS).map(move |flow| (number, flow)))
        {
            web.send(&numbered(flow, number));
        }
        for _ in 0..FLOWS * 4 {
            let frame = device.receive(|frame| frame.len() == 46 && frame.get(36..38) == Some(&[0x23, 0x28]));
            let field = |at: usize| u16::from_be_bytes(frame[at..at + 2].try_into().unwrap());
            let (flow, number) = (field(42), field(44));
            assert_eq!(number, next[usize::from(flow)], "flow {flow}: in order, each once");
            next[usize::from(flow)] += 1;
        }
    }
    let after = nothing_lost(&daemon);
    for interface in [NEAR.1, NEAR2.1] {
        let sent = |stats: &Value| {
            let mut all = stats["uplinks"].as_array().unwrap().iter();
            all.find(|uplink| uplink["interface"] == interface).unwrap()["tx"]["frames"].as_u64().unwrap()
        };
        let share = sent(&after) - sent(&before);
        // Half of 64 flows is expected; fewer than 8 would be a chance of one in 10^10.
        assert!(share >= u64::from(8 * EACH), "{interface}: {share} of {}", FLOWS * EACH);
    }
    net.near.ip(&format!("link set {} down", NEAR2.1)).unwrap();
    until("one path", || {
        let hop = daemon.status()["next_hops"][0].clone();
        hop["uplink"] == NEAR.1 && hop["paths"].as_array().unwrap().len() == 1
    });
}

/// A datagram of this flow, with flow and number in it.
fn numbered(flow: u16, number: u16) -> Vec<u8> {
    let builder = etherparse::PacketBuilder::ethernet2(mac(Tenant::WEB.mac), mac(FAR_OVERLAY.1))
        .ipv4([10, 42, 0, 1], [10, 42, 0, 98], 64)
        .udp(10_000 + flow, 9000);
    let mut frame = Vec::new();
    builder.write(&mut frame, &[flow.to_be_bytes(), number.to_be_bytes()].concat()).unwrap();
    frame
}

/// What a router on the way says reaches the workers: the path's MTU falls.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_router_with_a_smaller_mtu_is_listened_to() {
    const BEYOND: (&str, &str, &str) = ("203.0.113.2", "beyond0", "02:00:00:00:0d:02");
    let net = net_with_ipv6(1500);
    let beyond = net.host("beyond");
    net.far.wire(("far1", "02:00:00:00:0d:01"), &beyond, (BEYOND.1, BEYOND.2), 1400).unwrap();
    net.far.ip("addr add 203.0.113.1/24 dev far1").unwrap();
    beyond.ip(&format!("addr add {}/24 dev {}", BEYOND.0, BEYOND.1)).unwrap();
    beyond.ip("route add default via 203.0.113.1").unwrap();
    run(net.far.command("sysctl").args(["-qw", "net.ipv4.ip_forward=1"]));
    net.near.ip(&format!("route add {}/32 via {}", BEYOND.0, FAR.0)).unwrap();
    vxlan(
        &beyond,
        "vx",
        VNI,
        &format!("local {} remote {} dstport 4789 noudpcsum", BEYOND.0, NEAR.0),
        FAR_OVERLAY,
    );
    let daemon = Daemon::start_with(&net, &Daemon::config(&net, &[BEYOND.0], &[Tenant::WEB]));
    daemon.wait_for_next_hops();
    let mut web = Guest::new(&net, Tenant::WEB);
    daemon.wait_for_tenant(0, true);
    let mtu = || daemon.status()["next_hops"][0]["mtu"].as_u64();
    assert_eq!(mtu(), Some(1500));
    let small = frame(Tenant::WEB.mac, FAR_OVERLAY.1, "fits");
    let device = RawSocket::open(&beyond, "vx");
    web.send(&small);
    device.receive(|frame| frame == small);
    until("the path's MTU to be known", || {
        web.send(&frame(Tenant::WEB.mac, FAR_OVERLAY.1, &"x".repeat(1400)));
        mtu() == Some(1400)
    });
    let stats = daemon.at_rest();
    let before = stats["drops"]["path_mtu_exceeded"].as_u64().unwrap_or(0);
    until("the workers to know", || {
        web.send(&frame(Tenant::WEB.mac, FAR_OVERLAY.1, &"x".repeat(1400)));
        daemon.drops("path_mtu_exceeded") > before
    });
    let last = frame(Tenant::WEB.mac, FAR_OVERLAY.1, "still fits");
    web.send(&last);
    device.receive(|frame| frame == last);
}

/// Where the kernel has 802.1Q; elsewhere the complaint about that.
#[test]
#[ignore = "needs root: make test runs it"]
fn on_a_vlan_the_far_kernel_and_a_tenant_reach_each_other() {
    let net = Net::apart();
    net.far.wire((FAR.1, FAR.2), &net.near, (NEAR.1, NEAR.2), 1500).unwrap();
    let config = Daemon::config(&net, &[FAR.0], &[Tenant::WEB])
        .replace("mode = \"copy\"\n", "mode = \"copy\"\nvlan = 5\n")
        .replace("mtu = 1450", "mtu = 1400");
    let ended = Daemon::refused(&net, &config);
    assert!(ended.said.contains("`ethtool -K"), "{}", ended.said);
    // The tag must be in the packet: ours is not to take it off, nor the far kernel to send it beside.
    run(net.near.command("ethtool").args(["-K", NEAR.1, "rxvlan", "off"]));
    run(net.far.command("ethtool").args(["-K", FAR.1, "txvlan", "off"]));
    let ended = Daemon::refused(&net, &config);
    assert!(ended.said.contains("no device for VLAN 5"), "{}", ended.said);
    let is_there = [(&net.far, FAR), (&net.near, NEAR)].into_iter().all(|(host, (address, device, _))| {
        host.ip(&format!("link add link {device} name five type vlan id 5")).is_ok_and(|_| {
            host.ip(&format!("addr add {address}/24 dev five")).unwrap();
            host.ip("link set five up").is_ok()
        })
    });
    if !is_there {
        // Not by a macro: what those print is shown of tests that fail only.
        let what = "underlays: in a VLAN: this kernel has no VLAN devices";
        writeln!(std::io::stderr(), "\nleft out: {what}").unwrap();
        return;
    }
    let underlay = format!("local {} remote {} dstport 4789 noudpcsum", FAR.0, NEAR.0);
    vxlan(&net.far, "vx", VNI, &underlay, FAR_OVERLAY);
    let daemon = Daemon::start_with(&net, &config);
    let _echo = Tenant::WEB.echo(&net);
    daemon.wait_for_next_hops();
    pings(&net, &daemon, Tenant::WEB);
    nothing_lost(&daemon);
}
