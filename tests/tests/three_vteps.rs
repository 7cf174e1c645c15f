//! Three kinds of VTEP in one network, Linux, Peregrine and Open vSwitch's userspace datapath, with numbered packets from every
//! station to every other, while one of them moves between Linux and Open vSwitch, announced by gratuitous ARP. Whatever does not
//! arrive must have been counted as dropped by somebody. What comes to the host where the mover has just been has arrived: that host
//! drops it without counting, since it knows already that the station is elsewhere.
//!
//! 20 seconds; `LONG_SECONDS` says otherwise (`make long`: ten minutes).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use peregrine_control::lab::Namespace;
use peregrine_tests::{
    Daemon, FAR, Guest, NEAR, Net, OpenVswitch, RawSocket, Tenant, VNI, frame, run, totals, until,
};
use serde_json::Value;

/// The third VTEP.
const THIRD: (&str, &str, &str) = ("192.0.2.3", "ovs0", "02:00:00:00:0f:03");
/// The stations: behind Peregrine, behind Linux, behind Open vSwitch, and the one that moves.
const STATIONS: [&str; 4] = [Tenant::WEB.mac, "02:00:00:00:42:02", "02:00:00:00:42:04", "02:00:00:00:42:05"];
const MOVER: usize = 3;
/// Every pair of stations has a packet in each of these.
const TICK: Duration = Duration::from_millis(5);
/// The mover stays so long.
const STAY: Duration = Duration::from_secs(2);
const MARK: [u8; 4] = *b"long";

/// The number of each packet that came, by sender and receiver.
type Seen = HashMap<(u8, u8), Vec<bool>>;

/// A packet from one station to another.
fn packet(from: usize, to: usize, number: u32) -> Vec<u8> {
    let mac = |station: usize| STATIONS[station].parse::<peregrine_dataplane::types::MacAddr>().unwrap().0;
    let ip = |station: usize| [10, 42, 0, station as u8 + 1];
    let builder = PacketBuilder::ethernet2(mac(from), mac(to)).ipv4(ip(from), ip(to), 64).udp(20000, 9000);
    let mut payload = MARK.to_vec();
    payload.extend([from as u8, to as u8]);
    payload.extend(number.to_be_bytes());
    let mut frame = Vec::new();
    builder.write(&mut frame, &payload).unwrap();
    frame
}

/// Notes a packet of ours at a place where its receiver is or was.
fn note(seen: &mut Seen, frame: &[u8], here: &[usize]) {
    let Some(at) = frame.get(42..46).filter(|mark| *mark == MARK).map(|_| 46) else { return };
    let (from, to) = (frame[at], frame[at + 1]);
    let number = u32::from_be_bytes(frame[at + 2..at + 6].try_into().unwrap()) as usize;
    if here.contains(&usize::from(to)) {
        let numbers = seen.entry((from, to)).or_default();
        numbers.resize(numbers.len().max(number + 1), false);
        numbers[number] = true;
    }
}

/// A port for a station: the bridge's end and ours.
fn port(host: &Namespace, name: &str) {
    host.ip(&format!("link add {name} mtu 1500 type veth peer name {name}p mtu 1500")).unwrap();
    host.ip(&format!("link set {name} up")).unwrap();
    host.ip(&format!("link set {name}p up")).unwrap();
}

/// Linux: a bridge with a vxlan device and two stations' ports.
fn linux(host: &Namespace) {
    host.ip(&format!("addr add {}/24 dev {}", FAR.0, FAR.1)).unwrap();
    host.ip("link add br42 type bridge mcast_snooping 0").unwrap();
    host.ip(&format!("link add vx mtu 1450 type vxlan id {VNI} local {} dstport 4789 noudpcsum", FAR.0))
        .unwrap();
    for remote in [NEAR.0, THIRD.0] {
        run(host.command("bridge").args(["fdb", "append", "00:00:00:00:00:00", "dev", "vx", "dst", remote]));
    }
    for name in ["st", "mv"] {
        port(host, name);
        host.ip(&format!("link set {name} master br42")).unwrap();
    }
    host.ip("link set vx master br42").unwrap();
    host.ip("link set vx up").unwrap();
    host.ip("link set br42 up").unwrap();
}

/// The same with Open vSwitch.
fn open_vswitch(net: &Net, host: &Namespace) -> OpenVswitch {
    let switch = OpenVswitch::start(host, &net.file("ovs")).unwrap();
    let mut changes = vec![
        "add-br br-phy".to_string(),
        format!(
            "set bridge br-phy datapath_type=netdev fail-mode=standalone other_config:hwaddr={}",
            THIRD.2
        ),
        format!("add-port br-phy {}", THIRD.1),
        "add-br br42".to_string(),
        "set bridge br42 datapath_type=netdev fail-mode=standalone".to_string(),
    ];
    for name in ["st", "mv"] {
        port(host, name);
        changes.push(format!("add-port br42 {name}"));
    }
    for (name, remote) in [("v1", NEAR.0), ("v2", FAR.0)] {
        changes.push(format!("add-port br42 {name}"));
        changes.push(format!("set port {name} protected=true"));
        changes.push(format!("set interface {name} type=vxlan options:remote_ip={remote} options:key={VNI}"));
    }
    switch.set(&changes).unwrap();
    host.ip(&format!("addr add {}/24 dev br-phy", THIRD.0)).unwrap();
    host.ip("link set br-phy up").unwrap();
    switch
}

/// What hosts' devices say that they have dropped.
fn dropped_by_devices(host: &Namespace) -> u64 {
    let links: Value = serde_json::from_str(&host.ip("-s -json link show").unwrap()).unwrap();
    let one = |link: &Value| {
        let of = |way: &str| link["stats64"][way]["dropped"].as_u64().unwrap_or(0);
        of("rx") + of("tx")
    };
    links.as_array().into_iter().flatten().map(one).sum()
}

/// What Open vSwitch says that its ports have dropped.
fn dropped_by_switch(switch: &OpenVswitch) -> u64 {
    let text = switch.set(&["--columns=statistics list interface".to_string()]).unwrap();
    let words = text.split(['{', '}', ',', ' ', '\n']).filter_map(|word| word.split_once('='));
    words
        .filter(|(name, _)| name.ends_with("x_dropped"))
        .filter_map(|(_, value)| value.parse::<u64>().ok())
        .sum()
}

/// A place where packets are seen: a station's port, or the wire of the host with this VTEP.
struct Place<'a> {
    socket: RawSocket,
    vtep: Option<&'a str>,
    stations: &'a [usize],
}

/// Tells the readers of the end, also where the test fails: they would be waited for for ever.
struct End<'a>(&'a AtomicBool);

impl Drop for End<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Reads what comes to a place until the end is told and nothing comes any more.
fn reader(place: &Place<'_>, is_over: &AtomicBool) -> Seen {
    let vtep = place.vtep.map(|address| address.parse::<std::net::Ipv4Addr>().unwrap().octets());
    let mut seen = Seen::default();
    loop {
        let came = place.socket.next(Duration::from_millis(200), |frame| {
            let inner = match vtep {
                Some(to) if frame.get(30..34) == Some(&to) => frame.get(50..).unwrap_or(&[]),
                Some(_) => &[],
                None => frame,
            };
            note(&mut seen, inner, place.stations);
            is_over.load(Ordering::Relaxed)
        });
        if came.is_none() && is_over.load(Ordering::Relaxed) {
            return seen;
        }
    }
}

/// Reads what Peregrine's tenant has got so far.
fn read_guest(guest: &mut Guest, seen: &mut Seen) {
    let ring = guest.interface.rx.first_mut().unwrap();
    ring.pending().unwrap();
    while let Some(packet) = ring.next_packet() {
        let packet = packet.unwrap();
        let mut bytes = vec![0; packet.len()];
        packet.copy_to(&mut bytes).unwrap();
        note(seen, &bytes, &[0]);
    }
    ring.release();
}

/// A gratuitous ARP of the mover.
fn announcement() -> Vec<u8> {
    let mac = STATIONS[MOVER].parse::<peregrine_dataplane::types::MacAddr>().unwrap().0;
    let (hardware, protocol) = (etherparse::ArpHardwareId::ETHERNET, etherparse::EtherType::IPV4);
    let ip = [10, 42, 0, MOVER as u8 + 1];
    let ask = etherparse::ArpPacket::new(
        hardware,
        protocol,
        etherparse::ArpOperation::REQUEST,
        &mac,
        &ip,
        &[0; 6],
        &ip,
    );
    let mut frame = Vec::new();
    PacketBuilder::ethernet2(mac, [0xff; 6]).arp(ask.unwrap()).write(&mut frame).unwrap();
    frame
}

/// The three hosts on one switch.
fn hosts() -> (Net, Namespace, Namespace) {
    let net = Net::apart();
    let (third, switch) = (net.host("ovs"), net.host("switch"));
    switch.ip("link add br0 type bridge").unwrap();
    switch.ip("link set br0 up").unwrap();
    for (host, (_, device, mac), name) in
        [(&net.near, NEAR, "p0"), (&net.far, FAR, "p1"), (&third, THIRD, "p2")]
    {
        let end = format!("02:00:00:00:0e:0{}", &name[1..]);
        host.wire((device, mac), &switch, (name, &end), 1500).unwrap();
        switch.ip(&format!("link set {name} master br0")).unwrap();
    }
    net.near.ip(&format!("addr add {}/24 dev {}", NEAR.0, NEAR.1)).unwrap();
    (net, third, switch)
}

/// Sends from every station to every other for so long; how many each pair has sent, and how often the mover moved.
fn load(guest: &mut Guest, ports: &Ports, seen: &mut Seen, seconds: u64) -> (u32, u32) {
    let began = Instant::now();
    let (mut number, mut moves) = (0, 0);
    let mut next_move = STAY;
    while began.elapsed() < Duration::from_secs(seconds) {
        if began.elapsed() >= next_move {
            moves += 1;
            next_move += STAY;
            ports.mover(moves).send(&announcement());
        }
        for from in 0..STATIONS.len() {
            for to in (0..STATIONS.len()).filter(|to| *to != from) {
                let packet = packet(from, to, number);
                match from {
                    0 => guest.send(&packet),
                    1 => ports.linux.send(&packet),
                    2 => ports.switch.send(&packet),
                    _ => ports.mover(moves).send(&packet),
                }
            }
        }
        number += 1;
        // An even load: the next round has its time.
        while began.elapsed() < TICK * number {
            read_guest(guest, seen);
            std::thread::sleep(Duration::from_micros(200));
        }
    }
    (number, moves)
}

/// Where stations send.
struct Ports {
    linux: RawSocket,
    switch: RawSocket,
    movers: [RawSocket; 2],
}

impl Ports {
    /// Where the mover is after so many moves.
    fn mover(&self, moves: u32) -> &RawSocket {
        &self.movers[moves as usize % 2]
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn whatever_does_not_arrive_has_been_counted() {
    let seconds = std::env::var("LONG_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(20);
    let (net, third, _switch) = hosts();
    linux(&net.far);
    let vswitch = open_vswitch(&net, &third);
    let config = Daemon::config(&net, &[FAR.0, THIRD.0], &[Tenant::WEB]);
    // The mover moves as often as it likes.
    let daemon = Daemon::start_with(&net, &config.replace("remotes =", "move_limit = 0\nremotes ="));
    let mut guest = Guest::new(&net, Tenant::WEB);
    daemon.wait_for_next_hops();
    let ports = Ports {
        linux: RawSocket::sender(&net.far, "stp"),
        switch: RawSocket::sender(&third, "stp"),
        movers: [RawSocket::sender(&net.far, "mvp"), RawSocket::sender(&third, "mvp")],
    };
    meet(&net, &third, &mut guest, &ports);
    let before = (dropped_by_devices(&net.far), dropped_by_devices(&third), dropped_by_switch(&vswitch));

    let is_over = AtomicBool::new(false);
    let mut seen = Seen::default();
    let (rounds, moves, others) = std::thread::scope(|scope| {
        let is_over = &is_over;
        let end = End(is_over);
        // Open before the first packet is sent.
        let (far, third) = (&net.far, &third);
        let readers = [
            Place { socket: RawSocket::open(far, "stp"), vtep: None, stations: &[1] },
            Place { socket: RawSocket::open(far, "mvp"), vtep: None, stations: &[MOVER] },
            Place { socket: RawSocket::open(far, FAR.1), vtep: Some(FAR.0), stations: &[MOVER] },
            Place { socket: RawSocket::open(third, "stp"), vtep: None, stations: &[2] },
            Place { socket: RawSocket::open(third, "mvp"), vtep: None, stations: &[MOVER] },
            Place { socket: RawSocket::open(third, THIRD.1), vtep: Some(THIRD.0), stations: &[MOVER] },
        ]
        .map(|place| scope.spawn(move || reader(&place, is_over)));
        let (rounds, moves) = load(&mut guest, &ports, &mut seen, seconds);
        // The last ones are there when nothing moves any more.
        daemon.at_rest();
        guest.receive_rest(&mut seen);
        drop(end);
        (rounds, moves, readers.map(|reader| reader.join().unwrap()))
    });
    for other in others {
        for (pair, numbers) in other {
            let all = seen.entry(pair).or_default();
            all.resize(all.len().max(numbers.len()), false);
            all.iter_mut().zip(numbers).for_each(|(seen, also)| *seen |= also);
        }
    }

    let (mut sent, mut missing) = (0, 0);
    for (from, sender) in STATIONS.iter().enumerate() {
        for (to, receiver) in STATIONS.iter().enumerate().filter(|(to, _)| *to != from) {
            let came =
                seen.get(&(from as u8, to as u8)).map_or(0, |all| all.iter().filter(|seen| **seen).count());
            let lost = rounds as usize - came;
            println!("{sender} to {receiver}: {rounds} sent, {lost} did not arrive");
            (sent, missing) = (sent + rounds as usize, missing + lost);
        }
    }
    let stats = daemon.at_rest();
    // What floods bring to where it is not for is no loss.
    let is_loss = |reason: &str| !["split_horizon", "hairpin", "flood_nobody"].contains(&reason);
    let drops = stats["drops"].as_object().into_iter().flatten();
    let ours: u64 = drops.filter(|(reason, _)| is_loss(reason)).filter_map(|(_, count)| count.as_u64()).sum();
    let counted = (
        dropped_by_devices(&net.far) - before.0,
        dropped_by_devices(&third) - before.1,
        dropped_by_switch(&vswitch) - before.2,
    );
    let text = format!(
        "{sent} packets in {seconds} s, {moves} moves: {missing} did not arrive; counted as dropped: {ours} by Peregrine ({}), \
         {} by Linux, {} by the devices of Open vSwitch's host, {} by Open vSwitch",
        stats["drops"], counted.0, counted.1, counted.2
    );
    println!("{text}");
    assert!(missing as u64 <= ours + counted.0 + counted.1 + counted.2, "{text}");
    assert!(moves >= 2 || seconds < 5, "{text}");
    assert!(
        stats["networks"][0]["moved"].as_u64() >= Some(u64::from(moves) / 2),
        "moves are seen: {stats:#}"
    );
    assert!(totals(&stats, "uplink_rx") > 0 && totals(&stats, "uplink_tx") > 0);
}

/// Everybody speaks until everybody has heard everybody: neighbours are resolved, addresses learned.
fn meet(net: &Net, third: &Namespace, guest: &mut Guest, ports: &Ports) {
    let hello = |from: usize| frame(STATIONS[from], "ff:ff:ff:ff:ff:ff", "hello");
    let listeners = [RawSocket::open(&net.far, "stp"), RawSocket::open(third, "stp")];
    for from in 0..STATIONS.len() {
        let mut heard = [from == 1, from == 2, from == 0];
        until("a station to be heard by all others", || {
            match from {
                0 => guest.send(&hello(0)),
                1 => ports.linux.send(&hello(1)),
                2 => ports.switch.send(&hello(2)),
                _ => ports.movers[0].send(&hello(from)),
            }
            for (heard, listener) in heard.iter_mut().zip(&listeners) {
                *heard |= listener.next(Duration::from_millis(20), |frame| frame == hello(from)).is_some();
            }
            let ring = guest.interface.rx.first_mut().unwrap();
            ring.wait(Duration::from_millis(20)).unwrap();
            ring.pending().unwrap();
            while let Some(packet) = ring.next_packet() {
                let packet = packet.unwrap();
                let mut bytes = vec![0; packet.len()];
                packet.copy_to(&mut bytes).unwrap();
                heard[2] |= bytes == hello(from);
            }
            ring.release();
            heard == [true; 3]
        });
    }
}

/// The end of a tenant's packets.
trait Rest {
    fn receive_rest(&mut self, seen: &mut Seen);
}

impl Rest for Guest {
    fn receive_rest(&mut self, seen: &mut Seen) {
        let quiet = Instant::now() + Duration::from_millis(500);
        while Instant::now() < quiet {
            self.interface.rx.first_mut().unwrap().wait(Duration::from_millis(50)).unwrap();
            read_guest(self, seen);
        }
    }
}
