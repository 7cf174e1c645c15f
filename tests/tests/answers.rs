//! What the daemon answers for its tenants, with the kernel at the far end: it believes announcements, and the connections that it opens
//! are lowered to what the network holds.

use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use etherparse::{Icmpv4Type, PacketBuilder, SlicedPacket, TransportSlice, icmpv4::DestUnreachableHeader};
use peregrine_dataplane::types::MacAddr;
use peregrine_dataplane::wire::arp;
use peregrine_tests::{Daemon, FAR, FAR_OVERLAY, Guest, Net, Tenant, inside, run, until};

fn mac(text: &str) -> MacAddr {
    text.parse().unwrap()
}

/// "Fragmentation needed", with right checksums: by whom, and what the next link takes.
fn told(frame: &[u8]) -> Option<([u8; 4], u16)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Icmpv4(icmp)) = packet.transport else { return None };
    let Icmpv4Type::DestinationUnreachable(DestUnreachableHeader::FragmentationNeeded { next_hop_mtu }) =
        icmp.icmp_type()
    else {
        return None;
    };
    assert_eq!(icmp.icmp_type().calc_checksum(icmp.payload()), icmp.checksum());
    Some((*frame[26..].first_chunk()?, next_hop_mtu))
}

/// The MSS of a SYN without options before it, as Linux writes it.
fn mss(frame: &[u8]) -> Option<u16> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(TransportSlice::Tcp(tcp)) = packet.transport else { return None };
    (tcp.syn() && frame[54..56] == [2, 4]).then(|| u16::from_be_bytes([frame[56], frame[57]]))
}

#[test]
#[ignore = "needs root: make test runs it"]
fn tenants_are_answered_announced_and_kept_within_the_mtu() {
    let net = Net::new();
    run(net.far.command("sysctl").args(["-qw", "net.ipv4.conf.vx.arp_accept=1"]));
    let config = Daemon::config(&net, &[FAR.0], &[Tenant::WEB, Tenant::DB])
        .replace("announce = false", "announce = true")
        .replace("mtu = 1450", "mtu = 1400\nclamp_mss = true\ngateways = [\"10.42.0.254\"]");
    let daemon = Daemon::start_with(&net, &config);
    let mut guest = Guest::new(&net, Tenant::WEB);
    until("the far kernel has heard of the tenant", || {
        let known = net.far.ip(&format!("neigh show {} dev vx", Tenant::WEB.ip)).unwrap();
        known.contains(Tenant::WEB.mac)
    });

    // The other tenant is known once it is connected, which it says itself.
    let _db = Guest::new(&net, Tenant::DB);
    guest.receive(|frame| frame[12..14] == [8, 6] && frame[22..28] == mac(Tenant::DB.mac).0);
    let mut question = arp::announcement(mac(Tenant::WEB.mac), Tenant::WEB.ip.parse().unwrap());
    question[38..].copy_from_slice(&Tenant::DB.ip.parse::<std::net::Ipv4Addr>().unwrap().octets());
    guest.send(&question);
    let answer = guest.receive(|frame| frame[12..14] == [8, 6] && frame[21] == 2).pop().unwrap();
    assert_eq!(answer[22..28], mac(Tenant::DB.mac).0);

    let mut packet = Vec::new();
    PacketBuilder::ethernet2(mac(Tenant::WEB.mac).0, mac(FAR_OVERLAY.1).0)
        .ipv4([10, 42, 0, 1], [10, 42, 0, 2], 64)
        .udp(1000, 2000)
        .write(&mut packet, &[0; 1401 - 28])
        .unwrap();
    guest.send(&packet);
    let answer = guest.receive(|frame| told(frame).is_some()).pop().unwrap();
    assert_eq!(told(&answer), Some(([10, 42, 0, 254], 1400)));

    // The far kernel's device takes 1450 bytes: of its own it would say 1410.
    let to: SocketAddr = format!("{}:80", Tenant::WEB.ip).parse().unwrap();
    let syn = std::thread::scope(|scope| {
        scope.spawn(|| inside(&net.far, || TcpStream::connect_timeout(&to, Duration::from_secs(2)).is_err()));
        guest.receive(|frame| mss(frame).is_some()).pop().unwrap()
    });
    assert_eq!(mss(&syn), Some(1360));

    let stats = daemon.at_rest();
    let blue = &stats["networks"][0];
    assert_eq!((&blue["arp_answered"], &blue["too_big_told"]), (&1.into(), &1.into()), "{stats:#}");
    assert_eq!(stats["drops"]["inner_too_long"], 1, "{stats:#}");
    daemon.stop();
}
