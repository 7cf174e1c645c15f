//! Who gets what: tenants of one network and of another, the far kernel, two far hosts.

use std::net::UdpSocket;

use etherparse::{SlicedPacket, TransportSlice};
use peregrine_control::lab::Namespace;
use peregrine_tests::{
    Daemon, FAR, FAR_OVERLAY, Guest, NEAR, Net, PATIENCE, RawSocket, Tenant, VNI, frame, inside,
    ping_patiently, report, totals, until,
};
use serde_json::{Value, json};

const EVERYBODY: &str = "ff:ff:ff:ff:ff:ff";
/// On another network, with an address that the first network has as well.
const RED: Tenant = Tenant { name: "red", network: "red", id: 2, ip: "10.43.0.1", mac: Tenant::WEB.mac };

/// Networks 42 (two tenants) and 43 (one), each with a vxlan device of the far kernel. ICMP is urgent on the first.
fn two_networks(net: &Net, workers: usize) -> Daemon {
    let command = format!(
        "link add vx43 address 02:00:00:00:43:02 mtu 1450 type vxlan id 43 local {} remote {} dstport 4789",
        FAR.0, NEAR.0
    );
    for command in [&command, "addr add 10.43.0.2/24 dev vx43", "link set vx43 up"] {
        net.far.ip(command).unwrap();
    }
    let config = Daemon::config(net, &[FAR.0], &[Tenant::WEB, Tenant::DB, RED]);
    let red = format!("\n[[networks]]\nname = \"red\"\nvni = 43\nremotes = [\"{}\"]\n", FAR.0);
    let red = red + "\n[[rules]]\nclass = \"urgent\"\nnetwork = \"blue\"\nprotocol = \"icmp\"\n";
    let config = config + &red;
    let daemon = Daemon::start_with(net, &if workers == 1 { config } else { Daemon::spread(&config) });
    daemon.wait_for_next_hops();
    daemon
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_far_kernel_pings_tenants_of_two_networks_and_is_learned() {
    far_kernel_pings_tenants(1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn with_two_workers_the_far_kernel_pings_tenants_as_well() {
    let stats = far_kernel_pings_tenants(2);
    let handed: Vec<u64> =
        stats["workers"].as_array().unwrap().iter().map(|w| w["handed_over"].as_u64().unwrap()).collect();
    // 20 echo requests to each of three tenants: at least one of their steps is on the other worker, and they come back.
    assert!(handed.len() == 2 && handed.iter().all(|&frames| frames >= 60), "{handed:?}");
}

fn far_kernel_pings_tenants(workers: usize) -> Value {
    let net = Net::new();
    let daemon = two_networks(&net, workers);
    let echoes = [Tenant::WEB, Tenant::DB, RED].map(|tenant| (tenant, tenant.echo(&net)));
    for (tenant, _) in &echoes {
        let answered = ping_patiently(&net.far, tenant.ip, 20, 0.01);
        assert_eq!(answered, 20, "{}: {:#}", tenant.name, daemon.stats());
    }
    let fdb = daemon.ask("fdb");
    let learned = |network: &str, mac: &str| {
        let mut entries = fdb["entries"].as_array().unwrap().iter();
        entries.any(|e| e["network"] == network && e["mac"] == mac && e["remote"] == FAR.0)
    };
    assert!(learned("blue", FAR_OVERLAY.1) && learned("red", "02:00:00:00:43:02"), "{fdb:#}");
    assert!(!learned("blue", "02:00:00:00:43:02"), "{fdb:#}");
    let stats = daemon.at_rest();
    assert_eq!(totals(&stats, "dropped"), 0, "{}", stats["drops"]);
    let urgent = &stats["classes"][0];
    for (arrived, left) in [("uplink_rx", "tenant_tx"), ("tenant_rx", "uplink_tx")] {
        let pings = urgent[arrived].as_u64().unwrap();
        assert!(pings >= 40 && urgent[left] == pings, "pings on one of both networks: {urgent:#}");
    }
    let status = daemon.status();
    assert_eq!(
        (&status["classes"][0]["order"], &status["classes"][1]["order"]),
        (&json!("sync"), &Value::Null)
    );
    assert_eq!(status["endpoints"][0]["queues"], "one for all classes", "{status:#}");
    for (tenant, echo) in echoes {
        assert_eq!(report(echo)["answered"]["icmp"], 20, "{}: its own pings and no others", tenant.name);
    }
    stats
}

#[test]
#[ignore = "needs root: make test runs it"]
fn broadcast_stays_in_its_network_and_reaches_everybody_there_once() {
    broadcast_reaches_everybody_once(1);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn with_two_workers_broadcast_reaches_everybody_once_as_well() {
    broadcast_reaches_everybody_once(2);
}

fn broadcast_reaches_everybody_once(workers: usize) {
    let net = Net::new();
    let daemon = two_networks(&net, workers);
    let (mut web, mut db, mut red) =
        (Guest::new(&net, Tenant::WEB), Guest::new(&net, Tenant::DB), Guest::new(&net, RED));
    (0..3).for_each(|index| daemon.wait_for_tenant(index, true));
    let far = RawSocket::open(&net.far, "vx");
    let far_red = RawSocket::open(&net.far, "vx43");
    let end = |to: &str| frame(FAR_OVERLAY.1, to, "the end");
    // What marks the end is of another flow, which may be faster between two workers.
    let arrives = |way: &str, send: &mut dyn FnMut()| {
        let before = totals(&daemon.at_rest(), way);
        send();
        until("it to be taken in", || totals(&daemon.stats(), way) > before);
        daemon.at_rest();
    };

    // From the far host: both tenants, once each; nobody else.
    let hello = frame(FAR_OVERLAY.1, EVERYBODY, "from the far host");
    arrives("uplink_rx", &mut || far.send(&hello));
    far.send(&end(Tenant::WEB.mac));
    far.send(&end(Tenant::DB.mac));
    far_red.send(&end(RED.mac));
    assert_eq!(web.receive_until(&end(Tenant::WEB.mac)), std::slice::from_ref(&hello));
    assert_eq!(db.receive_until(&end(Tenant::DB.mac)), std::slice::from_ref(&hello));
    assert_eq!(red.receive_until(&end(RED.mac)), [[0; 0]; 0], "another network");

    // From a tenant, to everybody and to nobody known: the other tenant and the far host, once each.
    for to in [EVERYBODY, "02:00:00:00:42:77"] {
        let hello = frame(Tenant::WEB.mac, to, "from a tenant");
        arrives("tenant_rx", &mut || web.send(&hello));
        web.send(&frame(Tenant::WEB.mac, Tenant::DB.mac, "the end"));
        web.send(&frame(Tenant::WEB.mac, FAR_OVERLAY.1, "the end"));
        let last = frame(Tenant::WEB.mac, Tenant::DB.mac, "the end");
        assert_eq!(db.receive_until(&last), std::slice::from_ref(&hello));
        let mut seen = 0;
        far.receive(|frame| {
            seen += u32::from(frame == hello);
            frame == self::frame(Tenant::WEB.mac, FAR_OVERLAY.1, "the end")
        });
        assert_eq!(seen, 1, "{to}");
    }
    let last = frame(Tenant::DB.mac, Tenant::WEB.mac, "the end");
    db.send(&last);
    assert_eq!(web.receive_until(&last), [[0; 0]; 0], "nothing of its own came back");

    // What a tenant says in another's name is dropped.
    db.send(&frame(Tenant::WEB.mac, FAR_OVERLAY.1, "not mine"));
    until("the drop", || daemon.drops("source_spoofed") == 1);
    daemon.at_rest();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_kernel_keeps_the_networks_that_are_not_ours() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    let device = |host: &Namespace, local: &str, remote: &str, address: &str| {
        host.ip(&format!("link add vx99 type vxlan id 99 local {local} remote {remote} dstport 4789"))
            .unwrap();
        host.ip(&format!("addr add {address}/24 dev vx99")).unwrap();
        host.ip("link set vx99 up").unwrap();
    };
    device(&net.far, FAR.0, NEAR.0, "10.99.0.2");
    device(&net.near, NEAR.0, FAR.0, "10.99.0.1");
    let _echo = Tenant::WEB.echo(&net);
    daemon.wait_for_next_hops();
    assert_eq!(ping_patiently(&net.far, "10.99.0.1", 20, 0.01), 20, "the kernel's network");
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 20, 0.01), 20, "ours");
    assert_eq!(ping_patiently(&net.far, NEAR.0, 20, 0.01), 20, "no overlay at all");
    let stats = daemon.at_rest();
    assert!(stats["uplinks"][0]["program"][0]["passed"]["other_vni"].as_u64() >= Some(20), "{stats:#}");
    assert_eq!(totals(&stats, "dropped"), 0, "{}", stats["drops"]);
}

/// The far kernel leaves checksums to a network card that a veth does not have.
#[test]
#[ignore = "needs root: make test runs it"]
fn datagrams_of_kernel_sockets_come_back_with_right_checksums() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    let echo = Tenant::WEB.echo(&net);
    daemon.wait_for_next_hops();
    for outer in ["noudpcsum", "udpcsum"] {
        net.far.ip("link del vx").unwrap();
        net.far
            .ip(&format!(
                "link add vx address {} mtu 1450 type vxlan id {VNI} local {} remote {} dstport 4789 {outer}",
                FAR_OVERLAY.1, FAR.0, NEAR.0
            ))
            .unwrap();
        net.far.ip(&format!("addr add {}/24 dev vx", FAR_OVERLAY.0)).unwrap();
        net.far.ip("link set vx up").unwrap();
        let wire = RawSocket::open(&net.far, FAR.1);
        let socket = inside(&net.far, || UdpSocket::bind((FAR_OVERLAY.0, 0)).unwrap());
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
        socket.connect((Tenant::WEB.ip, 9000)).unwrap();
        let mut buffer = [0; 2048];
        for number in 0..200u32 {
            // Lengths odd and even, from nothing to the MTU.
            let length = (number as usize * 37) % (1450 - 28 + 1);
            let payload: Vec<u8> = (0..length).map(|at| (at as u32 + number) as u8).collect();
            socket.send(&payload).unwrap();
            let got = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{outer} {length}: {e}"));
            assert_eq!(buffer[..got], payload, "{outer}");
            let answer = wire.receive(|f| f.get(30..34) == Some(&[192, 0, 2, 2]) && f.get(73) == Some(&17));
            let inner = SlicedPacket::from_ethernet(&answer[50..]).unwrap();
            let (Some(etherparse::NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) =
                (&inner.net, &inner.transport)
            else {
                panic!("{answer:?}")
            };
            let right = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap();
            // Zero says that there is none.
            assert!(udp.checksum() == right, "{outer}: {:#x}, right is {right:#x}", udp.checksum());
        }
    }
    assert_eq!(report(echo)["answered"]["udp"], 400);
    assert_eq!(totals(&daemon.at_rest(), "dropped"), 0);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn broadcast_is_replicated_to_each_remote_once_and_never_reflected() {
    const FAR2: (&str, &str, &str) = ("192.0.2.3", "far0", "02:00:00:00:0f:03");
    const FAR2_MAC: &str = "02:00:00:00:42:04";
    let net = Net::apart();
    let (far2, switch) = (net.host("far2"), net.host("switch"));
    switch.ip("link add br0 type bridge").unwrap();
    switch.ip("link set br0 up").unwrap();
    for (host, (address, device, mac), port) in
        [(&net.near, NEAR, "p0"), (&net.far, FAR, "p1"), (&far2, FAR2, "p2")]
    {
        let end = format!("02:00:00:00:0e:0{}", &port[1..]);
        host.wire((device, mac), &switch, (port, &end), 1500).unwrap();
        switch.ip(&format!("link set {port} master br0")).unwrap();
        if device == NEAR.1 {
            host.ip(&format!("addr add {address}/24 dev {device}")).unwrap();
        }
    }
    net.overlay(&net.far, FAR, FAR_OVERLAY);
    net.overlay(&far2, FAR2, ("10.42.0.4", FAR2_MAC));
    let config = Daemon::config(&net, &[FAR.0, FAR2.0], &[Tenant::WEB, Tenant::DB]);
    let daemon = Daemon::start_with(&net, &config);
    let mut web = Guest::new(&net, Tenant::WEB);
    let echo = Tenant::DB.echo(&net);
    daemon.wait_for_tenant(0, true);
    daemon.wait_for_next_hops();
    for host in [&net.far, &far2] {
        assert_eq!(ping_patiently(host, Tenant::DB.ip, 20, 0.01), 20);
    }
    let (one, two) = (RawSocket::open(&net.far, "vx"), RawSocket::open(&far2, "vx"));

    let hello = frame(Tenant::WEB.mac, EVERYBODY, "from a tenant");
    web.send(&hello);
    for (socket, mac) in [(&one, FAR_OVERLAY.1), (&two, FAR2_MAC)] {
        let last = frame(Tenant::WEB.mac, mac, "the end");
        web.send(&last);
        let mut seen = 0;
        socket.receive(|frame| {
            seen += u32::from(frame == hello);
            frame == last
        });
        assert_eq!(seen, 1, "{mac}");
    }

    // From one far host: to the tenants, not to the other far host, and not back.
    let hello = frame(FAR_OVERLAY.1, EVERYBODY, "from a far host");
    one.send(&hello);
    let last = frame(FAR_OVERLAY.1, Tenant::WEB.mac, "the end");
    one.send(&last);
    assert!(web.receive_until(&last).contains(&hello));
    for (socket, mac) in [(&one, FAR_OVERLAY.1), (&two, FAR2_MAC)] {
        let last = frame(Tenant::WEB.mac, mac, "the very end");
        web.send(&last);
        let mut seen = 0;
        socket.receive(|frame| {
            seen += u32::from(frame == hello);
            frame == last
        });
        assert_eq!(seen, 0, "{mac}"); // a packet socket does not see what it sends itself
    }
    let stats = daemon.at_rest();
    assert!(totals(&stats, "replicated") > 0, "{stats}");
    assert_eq!(totals(&stats, "dropped"), 0, "{}", stats["drops"]);
    drop(echo);
}
