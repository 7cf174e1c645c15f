//! `echo` asked by the kernel: ping over IPv4 and IPv6, which begin with ARP and neighbour discovery. This test carries the
//! frames between a veth's end (AF_PACKET) and the memif connection:
//!
//! ```text
//! namespace: ping - va ---veth--- vb - packet socket ── this test ── memif ── peregrine-pktgen echo
//! ```

mod common;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use common::{NetNs, PATIENCE, accept, pktgen, until};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, SockFlag, SockProtocol, SockType, bind, socket};
use peregrine_memif::{Interface, Listener, ListenerConfig, SocketAddr};
use rustix::process::Signal;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// All frames that pass a device, without waiting.
fn packet_socket(netns: &NetNs, device: &str) -> File {
    let namespace = File::open(Path::new("/run/netns").join(netns.name())).unwrap();
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
            let fd = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll).unwrap();
            let mut links = getifaddrs().unwrap().filter(|i| i.interface_name == device);
            let link = links.find_map(|i| i.address?.as_link_addr().copied()).unwrap();
            bind(fd.as_raw_fd(), &link).unwrap();
            File::from(fd)
        });
        thread.join().unwrap()
    })
}

/// Carries frames both ways until `done`.
fn carry(mut wire: &File, memif: &mut Interface, mut done: impl FnMut() -> bool) {
    let mut frame = [0; 2048];
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "the pings do not end");
        match wire.read(&mut frame) {
            Ok(length) => until("room", || memif.tx[0].push(&frame[..length]).ok()),
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        memif.tx[0].flush().unwrap();
        memif.rx[0].pending().unwrap();
        while let Some(packet) = memif.rx[0].next_packet() {
            let length = packet.unwrap().copy_to(&mut frame).unwrap();
            assert_eq!(wire.write(&frame[..length]).unwrap(), length);
        }
        memif.rx[0].release();
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_kernels_pings_find_it_and_are_answered() {
    let netns = NetNs::new("ping");
    for line in [
        "ip link add va type veth peer name vb",
        "sysctl -qw net.ipv6.conf.va.disable_ipv6=0 net.ipv6.conf.va.accept_dad=0",
        "ip link set vb up",
        "ip link set va up",
        "ip addr add 10.0.0.1/24 dev va",
        "ip addr add fd00::1/64 dev va nodad",
    ] {
        netns.run(line);
    }
    let wire = packet_socket(&netns, "vb");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.sock");
    let listener = Listener::bind(&SocketAddr::Path(path.clone()), ListenerConfig::default()).unwrap();
    let echo = pktgen(&format!(
        "echo --memif {} --json --mac 02:00:00:00:00:09 --ip 10.0.0.9 --ip6 fd00::9",
        path.display()
    ));
    let mut memif = accept(&listener);
    let echo = echo.ready();
    for to in ["10.0.0.9", "fd00::9"] {
        let arguments =
            ["netns", "exec", netns.name(), "ping", "-n", "-q", "-c", "5", "-i", "0.01", "-W", "5"];
        let mut ping = Command::new("ip")
            .args(arguments)
            .args(["-s", "1001", to])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        carry(&wire, &mut memif, || ping.try_wait().unwrap().is_some());
        let output = ping.wait_with_output().unwrap();
        let said = String::from_utf8(output.stdout).unwrap();
        assert!(said.contains("5 received"), "{to}: {said}");
    }
    echo.signal(Signal::TERM);
    let answered = echo.end().report()["answered"].clone();
    assert_eq!(answered["icmp"], 10, "{answered}");
    assert!(answered["arp"].as_u64() >= Some(1) && answered["neighbour"].as_u64() >= Some(1), "{answered}");
    assert!(netns.run("ip -6 neigh show dev va").contains("02:00:00:00:00:09"));
}
