//! Several queue pairs, and packets in several buffers, through a running daemon, in both roles of memif: every packet arrives
//! once and unchanged, and in the order in which its queue or its flow sent it.
//!
//! At the far end is the kernel's vxlan device: what leaves it is seen with a packet socket, what it gets is sent through a
//! UDP socket. Fewer packets are under way than any ring on the way holds, so nobody has a reason to drop one.

use std::collections::HashMap;
use std::net::UdpSocket;

use etherparse::{NetSlice, PacketBuilder, SlicedPacket, TransportSlice};
use peregrine_memif::{
    ClientConfig, Interface, Listener, ListenerConfig, Role, RxRing, ServerConfig, SocketAddr,
};
use peregrine_tests::{
    Daemon, FAR, FAR_OVERLAY, NEAR, Net, PATIENCE, Random, RawSocket, Tenant, inside, serve, totals, until,
};
use rustix::net::sockopt::set_socket_recv_buffer_size_force;
use serde_json::Value;

const QUEUES: usize = 4;
/// The tenants' MTU, the wire's, and bytes of every buffer of a memif ring.
const MTU: usize = 3400;
const WIRE_MTU: usize = 3500;
const BUFFER_BYTES: usize = 2048;
/// Inner IP packets: small ones, the longest that one buffer holds, one byte more, and such that need two buffers.
const SIZES: [usize; 7] = [64, BUFFER_BYTES - ETHERNET_BYTES, 2035, 1450, 3000, 100, MTU];
const ETHERNET_BYTES: usize = 14;
const HEADERS_BYTES: usize = ETHERNET_BYTES + 20 + 8;
/// Packets from each queue, and of each flow to the tenant.
const FROM_QUEUE: u32 = 1400;
const OF_FLOW: u32 = 70;
const FLOWS: u32 = 64;
/// Packets under way: fewer than a veth's 256.
const WINDOW: u32 = 128;
/// UDP ports: the first source port of the tenant, the first destination port of the far kernel.
const PORTS: [u16; 2] = [20_000, 10_000];

/// What the `number`th datagram of a sender says: both numbers, then random bytes, the same in every run.
fn payload(sender: u32, number: u32) -> Vec<u8> {
    let mut random = Random(u64::from(sender) << 32 | u64::from(number));
    let mut bytes = [sender.to_le_bytes(), number.to_le_bytes()].concat();
    let ip_bytes = SIZES[number as usize % SIZES.len()];
    bytes.resize_with(ETHERNET_BYTES + ip_bytes - HEADERS_BYTES, || random.byte());
    bytes
}

fn address(text: &str) -> [u8; 6] {
    text.parse::<peregrine_dataplane::types::MacAddr>().unwrap().0
}

/// The `number`th frame that the tenant sends on a queue; each queue has some flows.
fn frame_from(queue: u32, number: u32) -> Vec<u8> {
    let builder = PacketBuilder::ethernet2(address(Tenant::WEB.mac), address(FAR_OVERLAY.1));
    let udp = builder
        .ipv4([10, 42, 0, 1], [10, 42, 0, 2], 64)
        .udp(PORTS[0] + (queue * 5 + number % 5) as u16, 9000);
    let mut frame = Vec::new();
    udp.write(&mut frame, &payload(queue, number)).unwrap();
    frame
}

/// Wires and vxlan device for long packets, and no question for the tenant's address.
fn net() -> Net {
    let net = Net::new();
    net.far.ip(&format!("link set {} mtu {WIRE_MTU}", FAR.1)).unwrap();
    net.near.ip(&format!("link set {} mtu {WIRE_MTU}", NEAR.1)).unwrap();
    net.far.ip(&format!("link set vx mtu {MTU}")).unwrap();
    let Tenant { ip, mac, .. } = Tenant::WEB;
    net.far.ip(&format!("neigh replace {ip} lladdr {mac} dev vx nud permanent")).unwrap();
    net
}

/// A daemon with one tenant attached like this, and another one that is never there.
fn daemon(net: &Net, memif: &str) -> Daemon {
    let config = Daemon::config(net, &[FAR.0], &[]);
    assert!(config.contains("mtu = 1450"));
    let config = config.replace("mtu = 1450", &format!("mtu = {MTU}"));
    let config = config.replace("mode = \"copy\"", "mode = \"copy\"\nchunk_size = 4096");
    let absent = format!("socket = \"{}\", id = 9", net.file("absent.sock").display());
    let daemon =
        Daemon::start_with(net, &(config + &Tenant::WEB.endpoint(memif) + &Tenant::DB.endpoint(&absent)));
    daemon.wait_for_next_hops();
    daemon
}

/// A socket of the far kernel.
fn socket(net: &Net, port: u16) -> UdpSocket {
    let socket = inside(&net.far, || UdpSocket::bind((FAR_OVERLAY.0, port)).unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    set_socket_recv_buffer_size_force(&socket, 16 << 20).unwrap();
    socket
}

/// The numbers of the next packet of each queue.
#[derive(Default)]
struct Next([u32; QUEUES]);

impl Next {
    /// A payload has come: of which queue, and its number there, which must be the next one.
    fn take(&mut self, payload: &[u8]) -> (u32, u32) {
        let word = |at: usize| u32::from_le_bytes(*payload[at..].first_chunk().unwrap());
        let (queue, number) = (word(0), word(4));
        let next = &mut self.0[queue as usize];
        assert_eq!(number, *next, "the next one of queue {queue}");
        *next += 1;
        (queue, number)
    }
}

/// All queues at once, in turns. The far kernel's vxlan device shows the frames, and a socket the datagrams.
fn to_the_far_kernel(net: &Net, ours: &mut Interface) {
    let socket = socket(net, 9000);
    let (mut seen, mut taken) = (Next::default(), Next::default());
    let device = RawSocket::open(&net.far, "vx");
    let mut sent = [0u32; QUEUES];
    let mut bytes = [0; 1 << 14];
    while taken.0.iter().any(|&count| count < FROM_QUEUE) {
        for (queue, ring) in ours.tx.iter_mut().enumerate() {
            while sent[queue] < FROM_QUEUE && sent[queue] - taken.0[queue] < WINDOW / QUEUES as u32 {
                ring.push(&frame_from(queue as u32, sent[queue])).unwrap();
                sent[queue] += 1;
            }
            ring.flush().unwrap();
        }
        let source = address(Tenant::WEB.mac);
        let got = device.receive(|frame| frame.get(6..12) == Some(&source));
        let (queue, number) = seen.take(&got[HEADERS_BYTES..]);
        assert!(got == frame_from(queue, number), "queue {queue}, packet {number}: {got:?}");
        let length = socket.recv(&mut bytes).unwrap();
        let (queue, number) = taken.take(&bytes);
        assert!(bytes[..length] == payload(queue, number), "queue {queue}, packet {number}: other bytes");
    }
}

/// What the tenant has seen of the far kernel's flows: the next number of each, and its queue.
#[derive(Default)]
struct Flows {
    next: HashMap<u32, u32>,
    queue: HashMap<u32, usize>,
    arrived: u32,
}

impl Flows {
    /// Takes what has come on a queue.
    fn take(&mut self, queue: usize, ring: &mut RxRing) {
        let mut bytes = [0; 1 << 14];
        ring.pending().unwrap();
        while let Some(packet) = ring.next_packet() {
            let length = packet.unwrap().copy_to(&mut bytes).unwrap();
            self.check(queue, &bytes[..length]);
        }
        ring.release();
    }

    fn check(&mut self, queue: usize, frame: &[u8]) {
        let packet = SlicedPacket::from_ethernet(frame).unwrap();
        let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Udp(udp))) = (&packet.net, &packet.transport)
        else {
            panic!("no datagram: {frame:?}")
        };
        let flow = u32::from(udp.destination_port() - PORTS[1]);
        let next = self.next.entry(flow).or_default();
        assert!(udp.payload() == payload(flow, *next), "flow {flow}: not its {next}th packet: {frame:?}");
        *next += 1;
        let right = udp.to_header().calc_checksum_ipv4(&ip.header().to_header(), udp.payload()).unwrap();
        assert_eq!(udp.checksum(), right, "flow {flow}");
        let first = *self.queue.entry(flow).or_insert(queue);
        assert_eq!(queue, first, "flow {flow} has changed its queue");
        self.arrived += 1;
    }
}

/// Many flows of the far kernel, all at once.
fn from_the_far_kernel(net: &Net, ours: &mut Interface) {
    let socket = socket(net, 0);
    let (mut flows, mut sent) = (Flows::default(), 0);
    until("all datagrams", || {
        while sent < FLOWS * OF_FLOW && sent - flows.arrived < WINDOW {
            let (flow, number) = (sent % FLOWS, sent / FLOWS);
            let datagram = payload(flow, number);
            let to = (Tenant::WEB.ip, PORTS[1] + flow as u16);
            assert_eq!(socket.send_to(&datagram, to).unwrap(), datagram.len());
            sent += 1;
        }
        for (queue, ring) in ours.rx.iter_mut().enumerate() {
            flows.take(queue, ring);
        }
        flows.arrived == FLOWS * OF_FLOW
    });
    let shares: Vec<usize> =
        (0..QUEUES).map(|queue| flows.queue.values().filter(|&&q| q == queue).count()).collect();
    println!("queues: flows to the tenant on each of its queues: {shares:?}");
    assert!(shares.iter().all(|&share| share > 0), "{shares:?}");
}

/// Frames and bytes of `count` packets of one sender.
fn traffic(senders: u32, count: u32) -> Value {
    let bytes: usize = (0..count).map(|number| ETHERNET_BYTES + SIZES[number as usize % SIZES.len()]).sum();
    serde_json::json!({ "frames": senders * count, "bytes": senders as usize * bytes })
}

/// Both ways, one after the other, and what the daemon has counted then.
fn both_ways(net: &Net, daemon: &Daemon, mut ours: Interface) {
    assert_eq!((ours.rx.len(), ours.tx.len()), (QUEUES, QUEUES));
    assert_eq!(daemon.status()["endpoints"][0]["peer"]["queue_pairs"], QUEUES);
    to_the_far_kernel(net, &mut ours);
    from_the_far_kernel(net, &mut ours);
    let stats = daemon.at_rest();
    assert_eq!(totals(&stats, "dropped"), 0, "{}", stats["drops"]);
    let [tenant, absent] = [0, 1].map(|index| &stats["endpoints"][index]);
    assert_eq!(tenant["from_tenant"], traffic(QUEUES as u32, FROM_QUEUE));
    assert_eq!(tenant["to_tenant"], traffic(FLOWS, OF_FLOW));
    assert_eq!((&tenant["dropped"], &tenant["bad_descriptors"]), (&Value::from(0), &Value::from(0)));
    for counter in ["from_tenant", "to_tenant"] {
        assert_eq!(absent[counter]["frames"], 0, "{counter}");
    }
    for ring in &mut ours.rx {
        assert_eq!(ring.pending(), Ok(0), "a packet too many");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_server_takes_and_fills_every_queue_of_its_client_with_chains() {
    let net = net();
    let socket = net.file("memif.sock");
    let memif = format!("socket = \"{}\", id = 0, queue_pairs = {QUEUES}, chains = true", socket.display());
    let daemon = daemon(&net, &memif);
    let config = ClientConfig {
        queue_pairs: QUEUES as u16,
        buffer_bytes: BUFFER_BYTES as u32,
        chains: true,
        ..ClientConfig::default()
    };
    let ours = Tenant::WEB.connect_with(&net, config);
    assert_eq!(ours.role, Role::Client);
    both_ways(&net, &daemon, ours);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_takes_and_fills_every_queue_of_its_server_with_chains() {
    let net = net();
    let address = SocketAddr::Path(net.file("tenant.sock"));
    let listener = Listener::bind(&address, ListenerConfig::default()).unwrap();
    let memif = format!(
        "role = \"client\", socket = \"{}\", id = 5, queue_pairs = {QUEUES}, buffer_size = {BUFFER_BYTES}, chains = true",
        net.file("tenant.sock").display()
    );
    let daemon = daemon(&net, &memif);
    let ours =
        serve(&listener, &ServerConfig { chains: true, allow_unsealed: true, ..ServerConfig::default() })
            .unwrap();
    assert_eq!((ours.role, ours.id), (Role::Server, 5));
    Tenant::WEB.wait_until_served(&net);
    both_ways(&net, &daemon, ours);
}

/// The same long packets with a tenant that has not been allowed chains: dropped with the reason, each way; others pass.
#[test]
#[ignore = "needs root: make test runs it"]
fn without_chains_long_packets_are_dropped_with_a_reason() {
    let net = net();
    let daemon = daemon(&net, &format!("socket = \"{}\", id = 0", net.file("memif.sock").display()));
    let config = ClientConfig { chains: true, ..ClientConfig::default() };
    let mut ours = Tenant::WEB.connect_with(&net, config);
    let (device, socket) = (RawSocket::open(&net.far, "vx"), socket(&net, 9000));
    let (long, short) = (4, 5);
    assert!(SIZES[long] > BUFFER_BYTES && SIZES[short] < BUFFER_BYTES);
    for number in [long, short] {
        ours.tx[0].push(&frame_from(0, number as u32)).unwrap();
    }
    ours.tx[0].flush().unwrap();
    let source = address(Tenant::WEB.mac);
    let got = device.receive(|frame| frame.get(6..12) == Some(&source));
    assert_eq!(got, frame_from(0, short as u32));
    // Each of the two buffers of the long one is dropped for itself.
    assert_eq!(daemon.drops("tenant_chained"), 2);

    for number in [long, short] {
        socket.send_to(&payload(7, number as u32), (Tenant::WEB.ip, PORTS[1] + 7)).unwrap();
    }
    let mut bytes = [0; BUFFER_BYTES];
    let mut length = 0;
    until("the short one", || {
        ours.rx[0].pending().unwrap();
        let packet = ours.rx[0].next_packet();
        length = packet.map_or(0, |packet| packet.unwrap().copy_to(&mut bytes).unwrap());
        length > 0
    });
    assert_eq!(bytes[HEADERS_BYTES..length], payload(7, short as u32));
    assert_eq!(daemon.drops("tenant_buffer_small"), 1);
    assert_eq!(totals(&daemon.at_rest(), "dropped"), 3);
}
