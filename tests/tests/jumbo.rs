//! Packets of 9000 bytes through the daemon: the far end is the kernel's vxlan device, the tenant's buffers are short and its packets chains.
//! And what is said where an interface has no room for them.

use std::net::UdpSocket;

use etherparse::PacketBuilder;
use peregrine_memif::ClientConfig;
use peregrine_tests::{Daemon, FAR, FAR_OVERLAY, Guest, NEAR, Net, PATIENCE, Tenant, VNI, inside, totals};

const PORT: u16 = 7000;

/// The hosts and a wire with this MTU.
fn net(mtu: u16) -> Net {
    let net = Net::apart();
    net.far.wire((FAR.1, FAR.2), &net.near, (NEAR.1, NEAR.2), mtu).unwrap();
    net.far.ip(&format!("addr add {}/24 dev {}", FAR.0, FAR.1)).unwrap();
    net.near.ip(&format!("addr add {}/24 dev {}", NEAR.0, NEAR.1)).unwrap();
    net
}

/// A tenant that takes chains on a network for long packets.
fn config(net: &Net) -> String {
    Daemon::config(net, &[FAR.0], &[Tenant::WEB])
        .replace("mtu = 1450", "mtu = 9000")
        .replace("id = 0", "id = 0, chains = true")
}

/// The far kernel's vxlan device and a UDP socket behind it.
fn far_socket(net: &Net) -> UdpSocket {
    let underlay = format!("local {} remote {} dstport 4789 noudpcsum", FAR.0, NEAR.0);
    let (address, mac) = FAR_OVERLAY;
    for command in [
        format!("link add vx address {mac} mtu 9000 type vxlan id {VNI} {underlay}"),
        format!("addr add {address}/24 dev vx"),
        "link set vx up".to_string(),
        format!("neigh add {} lladdr {} dev vx", Tenant::WEB.ip, Tenant::WEB.mac),
    ] {
        net.far.ip(&command).unwrap();
    }
    let socket = inside(&net.far, || UdpSocket::bind((address, PORT)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn from_tenant(payload: &[u8]) -> Vec<u8> {
    let mac = |text: &str| text.parse::<peregrine_dataplane::types::MacAddr>().unwrap().0;
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac(Tenant::WEB.mac), mac(FAR_OVERLAY.1))
        .ipv4([10, 42, 0, 1], [10, 42, 0, 2], 64)
        .udp(PORT, PORT)
        .write(&mut frame, payload)
        .unwrap();
    frame
}

#[test]
#[ignore = "needs root: make test runs it"]
fn long_packets_pass_both_ways_whole_and_in_order() {
    let net = net(9050);
    let socket = far_socket(&net);
    let daemon = Daemon::start_with(&net, &config(&net));
    daemon.wait_for_next_hops();
    assert_eq!(daemon.status()["uplinks"][0]["multi_buffer"], true, "{:#}", daemon.status());
    let interface = Tenant::WEB.connect_with(&net, ClientConfig { chains: true, ..ClientConfig::default() });
    let mut web = Guest { interface };
    // The longest, some about as long as a chunk or a buffer, and short ones.
    let lengths = [8972, 100, 1686, 1687, 2006, 2007, 5000, 8971, 200];
    let mut buffer = vec![0; 10_000];
    for round in 0..20usize {
        let payloads =
            lengths.map(|length| (0..length).map(|at| (at * 7 + round) as u8).collect::<Vec<u8>>());
        // Outwards first: then the worker serves the tenant.
        payloads.iter().for_each(|payload| web.send(&from_tenant(payload)));
        for payload in &payloads {
            let length = socket.recv(&mut buffer).unwrap_or_else(|e| panic!("{e}: {}", daemon.stats()));
            assert!(buffer[..length] == payload[..], "round {round}: {length} for {}", payload.len());
        }
        payloads.iter().for_each(|payload| {
            socket.send_to(payload, (Tenant::WEB.ip, PORT)).unwrap();
        });
        let last = payloads.last().unwrap();
        let got = web.receive(|frame| frame.get(42..) == Some(last));
        let got: Vec<&[u8]> = got.iter().filter_map(|frame| frame.get(42..)).collect();
        assert!(got == payloads, "round {round}: {:?}", got.iter().map(|p| p.len()).collect::<Vec<_>>());
    }
    let stats = daemon.at_rest();
    assert_eq!(totals(&stats, "dropped"), 0, "{}", stats["drops"]);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_interface_with_a_small_mtu_is_refused_in_one_line() {
    let net = net(1500);
    let ended = Daemon::refused(&net, &config(&net));
    assert_eq!((ended.code, ended.said.lines().count()), (Some(1), 1), "{}", ended.said);
    for part in ["peregrine: error: ", "blue", NEAR.1, "1500", "9000", "9050", "1450"] {
        assert!(ended.said.contains(part), "no {part} in: {}", ended.said);
    }
    assert!(!net.has_program() && !net.file("control.sock").exists());
    // The way out that it names.
    let daemon = Daemon::start_with(&net, &config(&net).replace("mtu = 9000", "mtu = 1450"));
    assert_ne!(daemon.status()["uplinks"][0]["multi_buffer"], true, "nobody needs it");
}
