//! Containers that know nothing of us as tenants: namespaces with a veth, whose other end an engine drives by AF_XDP. TCP between them, and
//! to the kernel's vxlan device, over both address families, whatever offloads their ends have; what goes away goes away under traffic; and
//! every frame is accounted for.
#![allow(unsafe_code, reason = "namespaces have no safe wrapper")]

mod rig;
mod veth;

use std::fs::File;
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peregrine_dataplane::engine::{Engine, Event, NextHop, TenantRings};
use peregrine_dataplane::plan::{IdleMode, WorkerPlan};
use peregrine_dataplane::port::Port;
use peregrine_dataplane::types::{CoreId, EndpointId, MacAddr, RemoteId, SourceId, UplinkId};
use peregrine_dataplane::xsk::{PortConfig, Ports, XskError, switch_offloads_off};
use peregrine_memif::{ClientConfig, ServerConfig};
use rig::{BLUE, DB, WEB, mac, packets_of, plan, rings};
use veth::{OUR_ADDRESS, PATIENCE, THEIR_ADDRESS, Wire, enter, namespace_path, new_namespace, run, until};

/// Bytes of a TCP transfer.
const MUCH: usize = 4 << 20;

/// A namespace with `eth0`, whose other end is in ours.
struct Container {
    namespace: File,
    ours: File,
    port: String,
    addresses: [IpAddr; 2],
}

impl Container {
    /// Its Ethernet address and its IP addresses end with this number.
    fn new(number: u8, mtu: u16) -> Container {
        let ours = File::open("/proc/thread-self/ns/net").unwrap();
        let namespace = new_namespace();
        enter(&ours);
        let port = format!("p{number}");
        let (mac, path) = (mac(number), namespace_path(&namespace));
        run(&format!(
            "ip link add {port} mtu {mtu} numrxqueues 1 numtxqueues 1 type veth peer name eth0 mtu {mtu} address {mac} \
             numrxqueues 1 numtxqueues 1 netns {path}"
        ));
        run(&format!("ip link set {port} up"));
        let addresses = [IpAddr::from([10, 42, 0, number]), format!("fd42::{number}").parse().unwrap()];
        let container = Container { namespace, ours, port, addresses };
        container.inside(|| addressed("eth0", number));
        container
    }

    fn inside<T>(&self, work: impl FnOnce() -> T) -> T {
        enter(&self.namespace);
        let result = work();
        enter(&self.ours);
        result
    }

    /// A thread in it.
    fn thread<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> std::thread::JoinHandle<T> {
        let namespace = self.namespace.try_clone().unwrap();
        std::thread::spawn(move || {
            enter(&namespace);
            work()
        })
    }

    /// Received packets whose TCP or UDP checksum was wrong.
    fn checksum_errors(&self) -> u64 {
        self.inside(checksum_errors)
    }
}

fn addressed(device: &str, number: u8) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{device}/disable_ipv6"), "0").unwrap();
    run(&format!("ip address add 10.42.0.{number}/24 dev {device}"));
    run(&format!("ip address add fd42::{number}/64 dev {device} nodad"));
    run(&format!("ip link set {device} up"));
}

fn checksum_errors() -> u64 {
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp").unwrap();
    let mut errors = 0;
    for protocol in ["Tcp: ", "Udp: "] {
        let mut lines = text.lines().filter_map(|line| line.strip_prefix(protocol));
        let (names, values) = (lines.next().unwrap(), lines.next().unwrap());
        let mut pairs = names.split(' ').zip(values.split(' '));
        errors += pairs
            .find(|(name, _)| *name == "InCsumErrors")
            .map(|(_, count)| count.parse::<u64>().unwrap())
            .unwrap();
    }
    let text = std::fs::read_to_string("/proc/thread-self/net/snmp6").unwrap();
    let count = |line: &str| line.split_whitespace().last().unwrap().parse::<u64>().unwrap();
    errors + text.lines().filter(|line| line.starts_with("Udp6InCsumErrors")).map(count).sum::<u64>()
}

fn byte(at: usize) -> u8 {
    (at.wrapping_mul(2_654_435_761) >> 13) as u8
}

/// Takes one connection and checks each byte; then says so.
fn serve(listener: &TcpListener) {
    let (mut stream, _) = listener.accept().unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut at, mut buffer) = (0, vec![0; 1 << 16]);
    while at < MUCH {
        let got = stream.read(&mut buffer).unwrap();
        assert!(got > 0, "the end after {at} bytes");
        assert!(buffer[..got].iter().enumerate().all(|(n, b)| *b == byte(at + n)), "other bytes after {at}");
        at += got;
    }
    stream.write_all(b"all").unwrap();
}

fn send_to(address: SocketAddr) {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    let bytes: Vec<u8> = (0..MUCH).map(byte).collect();
    stream.write_all(&bytes).unwrap();
    let mut answer = [0; 3];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"all");
}

/// A TCP transfer from one container to an address of another.
fn transfer(from: &Container, to: &Container, family: usize) {
    let address = to.addresses[family];
    let listener = to.inside(|| TcpListener::bind((address, 0)).unwrap());
    let port = listener.local_addr().unwrap().port();
    let server = std::thread::spawn(move || serve(&listener));
    from.thread(move || send_to(SocketAddr::new(address, port))).join().unwrap();
    server.join().unwrap();
}

/// An engine on `a0`, with so many workers, whose network has the far host as a remote.
fn engine(workers: usize) -> Engine {
    // Any test can be run with workers that sleep.
    let is_asked = std::env::var("PEREGRINE_TEST_IDLE").is_ok_and(|idle| idle == "adaptive");
    engine_that(workers, if is_asked { IdleMode::Adaptive } else { IdleMode::Busy })
}

/// The same, whose workers do this while there is nothing to do.
fn engine_that(workers: usize, idle: IdleMode) -> Engine {
    let mut plan = plan();
    let cores = core_affinity::get_core_ids().unwrap();
    let worker = |n: usize| WorkerPlan { idle, ..WorkerPlan::on(CoreId(cores[n % cores.len()].id)) };
    plan.workers = (0..workers).map(worker).collect();
    (plan.uplinks[0].interface, plan.uplinks[0].locals) = ("a0".into(), vec![IpAddr::V4(OUR_ADDRESS)]);
    plan.networks[0].remotes = vec![IpAddr::V4(THEIR_ADDRESS)];
    let mut engine = Engine::start(&plan).unwrap();
    let hop = NextHop {
        uplink: UplinkId(0),
        destination: MacAddr([2, 0, 0, 0, 9, 2]),
        source: MacAddr([2, 0, 0, 0, 9, 1]),
    };
    engine.set_paths([(RemoteId(0), SourceId(0), vec![hop.path(IpAddr::V4(OUR_ADDRESS), 1500)])]);
    engine
}

/// The far host, whose kernel has a vxlan device.
fn far(wire: &Wire) -> Container {
    wire.in_theirs(|| {
        run(&format!(
            "ip link add vx mtu 1450 type vxlan id {BLUE} local {THEIR_ADDRESS} remote {OUR_ADDRESS} dstport 4789"
        ));
        addressed("vx", 9);
    });
    Container {
        namespace: wire.theirs(),
        ours: File::open("/proc/thread-self/ns/net").unwrap(),
        port: String::new(),
        addresses: [[10, 42, 0, 9].into(), "fd42::9".parse().unwrap()],
    }
}

fn attach(engine: &mut Engine, ports: &mut Ports, endpoint: EndpointId, container: &Container) {
    let port = ports.open(&container.port, &PortConfig::default()).unwrap();
    engine.attach(endpoint, TenantRings::port(port)).unwrap();
}

/// All that came in went out or was counted as dropped.
fn assert_conserved(engine: &mut Engine) {
    until("nothing is in flight", || {
        engine.poll();
        engine.stats().totals.conserved
    });
    let stats = engine.stats();
    println!("{:?} {:?}", stats.totals, stats.drops);
    assert!(stats.workers.iter().all(|worker| worker.chunk_faults == 0), "{stats:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn tcp_flows_between_two_containers_and_to_the_kernels_vtep_whatever_their_offloads() {
    let wire = Wire::new(1);
    let far = far(&wire);
    let (web, db) = (Container::new(1, 1450), Container::new(2, 1450));
    let (mut engine, mut ports) = (engine(1), Ports::load().unwrap());
    attach(&mut engine, &mut ports, WEB, &web);
    attach(&mut engine, &mut ports, DB, &db);
    for address in ["10.42.0.2", "fd42::2", "10.42.0.9", "fd42::9"] {
        web.inside(|| run(&format!("ping -c 3 -i 0.01 -W 10 {address}")));
    }
    let switches =
        ["tx off gso off tso off", "tx on gso off tso off", "tx on gso on", "tx on gso on tso on gro on"];
    for offloads in switches {
        for container in [&web, &db] {
            // What the kernel does not offer any more with an XDP program at the other end it refuses.
            container.inside(|| {
                let _refused = std::process::Command::new("ethtool")
                    .arg("-K")
                    .arg("eth0")
                    .args(offloads.split(' '))
                    .output()
                    .unwrap();
            });
        }
        for family in [0, 1] {
            transfer(&web, &db, family);
            transfer(&web, &far, family);
            transfer(&far, &db, family);
            datagrams(&web, &db, family);
            datagrams(&web, &far, family);
        }
        for (name, container) in [("web", &web), ("db", &db), ("far", &far)] {
            assert_eq!(container.checksum_errors(), 0, "{name}, {offloads}");
        }
    }
    web.inside(|| switch_offloads_off("eth0").unwrap());
    let features = web.inside(|| run("ethtool -k eth0"));
    for feature in ["tx-checksumming", "tcp-segmentation-offload", "generic-segmentation-offload"] {
        assert!(features.contains(&format!("{feature}: off")), "{features}");
    }
    assert!(features.contains("tx-vlan-offload: off"), "{features}");
    assert_conserved(&mut engine);
    assert!(engine.stop().totals.conserved);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn ports_of_different_workers_reach_each_other_and_the_far_host() {
    let wire = Wire::new(2);
    let far = far(&wire);
    let (web, db) = (Container::new(1, 1450), Container::new(2, 1450));
    let (mut engine, mut ports) = (engine(2), Ports::load().unwrap());
    attach(&mut engine, &mut ports, WEB, &web);
    attach(&mut engine, &mut ports, DB, &db);
    assert_ne!(engine.home(WEB), engine.home(DB));
    for family in [0, 1] {
        transfer(&web, &db, family);
        transfer(&db, &far, family);
        transfer(&far, &web, family);
    }
    assert_conserved(&mut engine);
    assert!(engine.stop().totals.conserved);
}

/// Sends back what comes, until that is nothing.
fn echo(socket: &UdpSocket) {
    let mut buffer = [0; 2048];
    loop {
        let (length, from) = socket.recv_from(&mut buffer).unwrap();
        if length == 0 {
            return;
        }
        socket.send_to(&buffer[..length], from).unwrap();
    }
}

/// Asks these in turn, after pauses around those after which workers fall asleep; how long the usual answer took.
fn ask(number: u8, addresses: &[SocketAddr]) -> Duration {
    let socket = UdpSocket::bind(("10.42.0.1", 0)).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let (mut buffer, mut times) = ([0; 2048], Vec::new());
    for round in 0..600u32 {
        let pause =
            Duration::from_micros(u64::from(round * 37 % 256) + if round % 8 == 0 { 12_000 } else { 0 });
        let (began, address) = (Instant::now(), addresses[round as usize % addresses.len()]);
        while began.elapsed() < pause {
            std::hint::spin_loop();
        }
        let (began, question) = (Instant::now(), [number, round as u8, (round >> 8) as u8]);
        socket.send_to(&question, address).unwrap();
        let length = socket.recv(&mut buffer).unwrap_or_else(|error| panic!("{round}: no answer: {error}"));
        assert_eq!(buffer[..length], question);
        times.push(began.elapsed());
    }
    times.sort();
    times[times.len() / 2]
}

#[test]
#[ignore = "needs root: make test runs it"]
fn workers_that_sleep_are_woken_by_containers_and_by_the_far_host() {
    for workers in [1, 2usize] {
        let wire = Wire::new(workers as u32);
        let far = far(&wire);
        let (web, db) = (Container::new(1, 1450), Container::new(2, 1450));
        let (mut engine, mut ports) = (engine_that(workers, IdleMode::Adaptive), Ports::load().unwrap());
        attach(&mut engine, &mut ports, WEB, &web);
        attach(&mut engine, &mut ports, DB, &db);
        for address in ["10.42.0.2", "10.42.0.9"] {
            web.inside(|| run(&format!("ping -c 2 -i 0.01 -W 10 {address}")));
        }
        let answerers = [&db, &far].map(|container| {
            let socket = container.inside(|| UdpSocket::bind((container.addresses[0], 0)).unwrap());
            let address = socket.local_addr().unwrap();
            (address, container.thread(move || echo(&socket)))
        });
        let addresses: Vec<SocketAddr> = answerers.iter().map(|(address, _)| *address).collect();
        let asked = addresses.clone();
        let usual = web.thread(move || ask(workers as u8, &asked)).join().unwrap();
        web.inside(|| {
            let socket = UdpSocket::bind(("10.42.0.1", 0)).unwrap();
            addresses.iter().for_each(|address| assert_eq!(socket.send_to(&[], address).unwrap(), 0));
        });
        answerers.into_iter().for_each(|(_, thread)| thread.join().unwrap());
        assert_conserved(&mut engine);
        let stats = engine.stop();
        let woken: Vec<_> = stats.workers.iter().map(|worker| worker.woken_by).collect();
        println!("{usual:?} {woken:?}");
        assert!(usual < Duration::from_millis(5), "{usual:?}"); // not the time after which they look anyway
        assert!(woken.iter().map(|by| by.tenants).sum::<u64>() > 100, "{woken:?}");
        assert!(woken.iter().map(|by| by.uplink).sum::<u64>() > 50, "{woken:?}");
        assert!(stats.workers.iter().all(|worker| worker.unwatched == 0 && worker.slept <= 1.0));
    }
}

/// Datagrams of many sizes, each of which arrives whole: also those of several fragments.
fn datagrams(from: &Container, to: &Container, family: usize) {
    let (address, source) = (to.addresses[family], from.addresses[family]);
    let receiver = to.inside(|| UdpSocket::bind((address, 0)).unwrap());
    let sender = from.inside(|| UdpSocket::bind((source, 0)).unwrap());
    receiver.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    sender.connect(receiver.local_addr().unwrap()).unwrap();
    let mut buffer = vec![0; 10_000];
    for length in (0..40).chain([1000, 1001, 1402, 1422, 3000, 8000]) {
        let bytes: Vec<u8> = (0..length).map(|at| byte(at + length)).collect();
        let arrived = (0..20).any(|_| {
            sender.send(&bytes).unwrap();
            matches!(receiver.recv(&mut buffer), Ok(got) if buffer[..got] == bytes)
        });
        assert!(arrived, "{length} bytes");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_container_and_a_memif_tenant_reach_each_other() {
    let _wire = Wire::new(1);
    let web = Container::new(1, 1450);
    let (mut engine, mut ports) = (engine(1), Ports::load().unwrap());
    attach(&mut engine, &mut ports, WEB, &web);
    let (mut client, server) =
        peregrine_memif::pair(ClientConfig::default(), ServerConfig::default()).unwrap();
    engine.attach(DB, rings(server)).unwrap();

    web.inside(|| {
        run("ip neighbour add 10.42.0.2 lladdr 02:00:00:00:00:02 dev eth0");
        run("ethtool -K eth0 tx on");
        let socket = UdpSocket::bind("10.42.0.1:2000").unwrap();
        socket.send_to(b"from a container", "10.42.0.2:3000").unwrap();
    });
    let mut got = Vec::new();
    until("it has come", || {
        got.extend(packets_of(&mut client.rx[0]).into_iter().filter(|packet| packet[12..14] == [8, 0]));
        !got.is_empty()
    });
    let packet = etherparse::SlicedPacket::from_ethernet(&got[0]).unwrap();
    let (Some(etherparse::NetSlice::Ipv4(ip)), Some(etherparse::TransportSlice::Udp(udp))) =
        (packet.net, packet.transport)
    else {
        panic!("{got:x?}")
    };
    assert_eq!(udp.payload(), b"from a container");
    let header = udp.to_header();
    assert_eq!(header.calc_checksum_ipv4(&ip.header().to_header(), udp.payload()), Ok(header.checksum));

    let socket = web.inside(|| UdpSocket::bind("10.42.0.1:2001").unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut packet = Vec::new();
    etherparse::PacketBuilder::ethernet2(mac(2).0, mac(1).0)
        .ipv4([10, 42, 0, 2], [10, 42, 0, 1], 64)
        .udp(3000, 2001)
        .write(&mut packet, b"from memif")
        .unwrap();
    client.tx[0].push(&packet).unwrap();
    client.tx[0].flush().unwrap();
    let mut buffer = [0; 100];
    assert_eq!(socket.recv(&mut buffer).unwrap(), 10);
    assert_eq!(&buffer[..10], b"from memif");
    assert_conserved(&mut engine);
}

/// Threads that send to each other's addresses until told to end, whatever becomes of it.
fn storm(containers: [&Container; 2]) -> (Arc<AtomicBool>, Vec<std::thread::JoinHandle<()>>) {
    let ends = Arc::new(AtomicBool::new(false));
    let threads = [0, 1].map(|n| {
        let (to, ends) = (containers[1 - n].addresses[0], ends.clone());
        containers[n].thread(move || {
            let socket = UdpSocket::bind("0.0.0.0:5000").unwrap();
            let bytes = [7; 1000];
            while !ends.load(Ordering::Relaxed) {
                let _unreachable = socket.send_to(&bytes, (to, 5000));
            }
        })
    });
    (ends, threads.into())
}

fn given(engine: &Engine, endpoint: EndpointId) -> u64 {
    engine.stats().endpoints[endpoint.0 as usize].to_tenant.frames
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_port_is_removed_under_traffic_and_another_one_comes() {
    let _wire = Wire::new(1);
    let (web, db) = (Container::new(1, 1450), Container::new(2, 1450));
    let (mut engine, mut ports) = (engine(1), Ports::load().unwrap());
    attach(&mut engine, &mut ports, DB, &db);
    let (ends, threads) = storm([&web, &db]);
    for _ in 0..20 {
        attach(&mut engine, &mut ports, WEB, &web);
        let before = (given(&engine, WEB), given(&engine, DB));
        until("packets flow both ways", || {
            assert_eq!(engine.poll(), []);
            given(&engine, WEB) > before.0 + 100 && given(&engine, DB) > before.1 + 100
        });
        engine.detach(WEB);
        until("the program is off", || {
            assert_eq!(engine.poll(), []);
            !run(&format!("ip -d link show {}", web.port)).contains("xdp")
        });
    }
    ends.store(true, Ordering::Relaxed);
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_conserved(&mut engine);
    let stats = engine.stop();
    assert!(stats.totals.conserved && stats.totals.in_flight == 0, "{stats:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_namespace_that_is_deleted_under_traffic_is_noticed_and_harms_nobody() {
    let _wire = Wire::new(1);
    let (web, db) = (Container::new(1, 1450), Container::new(2, 1450));
    let (mut engine, mut ports) = (engine(1), Ports::load().unwrap());
    attach(&mut engine, &mut ports, WEB, &web);
    attach(&mut engine, &mut ports, DB, &db);
    // It sends until the end; the other one goes away meanwhile.
    let (to, ends) = (db.addresses[0], Arc::new(AtomicBool::new(false)));
    let told = ends.clone();
    web.inside(|| run("ip neighbour add 10.42.0.2 lladdr 02:00:00:00:00:02 dev eth0"));
    let sender = web.thread(move || {
        let socket = UdpSocket::bind("0.0.0.0:5000").unwrap();
        while !told.load(Ordering::Relaxed) {
            let _unreachable = socket.send_to(&[7; 1000], (to, 5000));
        }
    });
    until("packets flow", || given(&engine, DB) > 1000);
    drop(db);
    let mut events = Vec::new();
    until("it is noticed", || {
        events.extend(engine.poll());
        !events.is_empty()
    });
    let [Event::TenantFault { endpoint: DB, reason }] = &events[..] else { panic!("{events:?}") };
    assert!(reason.contains("gone"), "{reason}");
    ends.store(true, Ordering::Relaxed);
    sender.join().unwrap();
    // Whose name is free again.
    let again = Container::new(2, 1450);
    attach(&mut engine, &mut ports, DB, &again);
    transfer(&web, &again, 0);
    assert_conserved(&mut engine);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_cannot_be_a_port_is_refused_with_its_name_and_a_way_out() {
    let _wire = Wire::new(1);
    let mut ports = Ports::load().unwrap();
    let text = |error: XskError| error.to_string();
    assert!(
        text(ports.open("nosuch0", &PortConfig::default()).unwrap_err()).contains("no interface 'nosuch0'")
    );
    let web = Container::new(1, 9000);
    let error = text(ports.open("p1", &PortConfig::default()).unwrap_err());
    assert!(error.contains("port p1 has an MTU of 9000"), "{error}");
    run("ip link set p1 mtu 3700");
    web.inside(|| run("ip link set eth0 mtu 3700"));
    let error = text(ports.open("p1", &PortConfig::default()).unwrap_err());
    assert!(error.contains("(MTU 3700)") && error.contains("use a smaller MTU"), "{error}");
    run("ip link set p1 mtu 1500");
    web.inside(|| run("ip link set eth0 mtu 1500"));
    let error = text(ports.open("p1", &PortConfig { ring_size: 100 }).unwrap_err());
    assert!(error.contains("rings of 100"), "{error}");
    run("ip link set p1 down");
    let error = text(ports.open("p1", &PortConfig::default()).unwrap_err());
    assert!(error.contains("p1 is down"), "{error}");
    run("ip link set p1 up");
    let port = ports.open("p1", &PortConfig::default()).unwrap();
    let error = text(ports.open("p1", &PortConfig::default()).unwrap_err());
    assert!(error.contains("p1"), "{error}");
    drop(port);
    // Packets of more than one chunk of 2048 bytes.
    run("ip link set p1 mtu 3400");
    web.inside(|| run("ip link set eth0 mtu 3400"));
    let mut port = ports.open("p1", &PortConfig::default()).unwrap();
    let socket = web.inside(|| {
        run("ip neighbour add 10.42.0.2 lladdr 02:00:00:00:00:02 dev eth0");
        UdpSocket::bind("10.42.0.1:2000").unwrap()
    });
    socket.send_to(&[7; 3000], "10.42.0.2:3000").unwrap();
    let mut lengths = Vec::new();
    until("it has come", || {
        port.take(64, &mut |packet| lengths.push(packet.len()));
        lengths.contains(&(14 + 20 + 8 + 3000))
    });
}
