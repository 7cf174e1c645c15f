//! Nonsense from the wire: every frame is accounted for, and nobody else notices.

use std::fs::File;
use std::io::{Read, Seek};

use etherparse::PacketBuilder;
use peregrine_tests::{
    Daemon, FAR, Net, Random, RawSocket, Tenant, VNI, inside, ping_patiently, report, totals, until,
};
use serde_json::Value;

const MUTATIONS: usize = 100_000;
/// Frames between two looks at whether they arrived: fewer than the wire's ring of 256 holds.
const BATCH: usize = 100;

/// A datagram for the second tenant, in VXLAN.
fn vxlan() -> Vec<u8> {
    let station = [2, 0, 0, 0, 0x42, 0x77];
    let builder = PacketBuilder::ethernet2(station, [2, 0, 0, 0, 0x42, 3]);
    let mut inner = vec![8, 0, 0, 0, 0, 0, VNI as u8, 0];
    let builder = builder.ipv4([10, 42, 0, 77], [10, 42, 0, 3], 64).udp(20000, 9000);
    builder.write(&mut inner, b"a datagram that is echoed").unwrap();
    inner
}

/// An outer packet from the far host, with the lengths that its payload has.
fn outer(payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0xf, 2], [2, 0, 0, 0, 0xf, 1]);
    let builder = builder.ipv4([192, 0, 2, 2], [192, 0, 2, 1], 64).udp(50000, 4789);
    builder.write(&mut frame, payload).unwrap();
    frame
}

/// One to four places changed; half of them with the IP checksum put right again, so that more get further. Now and
/// then cut or lengthened as well.
fn mutated(valid: &[u8], random: &mut Random) -> Vec<u8> {
    let mut frame = valid.to_vec();
    for _ in 0..=random.below(4) {
        // The headers more often than the payload.
        let at = if random.below(4) > 0 { random.below(92) } else { random.below(frame.len()) };
        match random.below(4) {
            0 => frame[at] = random.byte(),
            1 => frame[at] ^= 1 << random.below(8),
            2 => frame[at] = 0xff,
            _ => frame[at] = 0,
        }
    }
    if random.below(2) == 0 {
        let header: [u8; 20] = frame[14..34].try_into().unwrap();
        if let Ok((mut header, _)) = etherparse::Ipv4Header::from_slice(&header) {
            header.header_checksum = header.calc_header_checksum();
            frame[24..26].copy_from_slice(&header.header_checksum.to_be_bytes());
        }
        frame[40..42].copy_from_slice(&[0, 0]); // no UDP checksum
    }
    match random.below(16) {
        0 => frame.truncate(14 + random.below(frame.len() - 14)),
        1 => frame.resize(frame.len() + random.below(1515 - frame.len()), 0xa5),
        _ => {}
    }
    frame
}

/// Frames that the XDP program has seen, and those it steered.
fn seen(stats: &Value) -> (u64, u64) {
    let queues = stats["uplinks"][0]["program"].as_array().expect("the program's counters");
    let sum = |pick: &dyn Fn(&Value) -> u64| queues.iter().map(pick).sum::<u64>();
    let steered = sum(&|queue| queue["steered"].as_u64().unwrap());
    let no_socket = sum(&|queue| queue["no_socket"].as_u64().unwrap());
    let passed = sum(&|queue| queue["passed"].as_object().unwrap().values().filter_map(Value::as_u64).sum());
    (steered + no_socket + passed, steered)
}

fn lost_by_sockets(stats: &Value) -> u64 {
    let sockets = stats["uplinks"][0]["sockets"].as_array().unwrap();
    let lost = |s: &Value| s["rx_dropped"].as_u64().unwrap() + s["rx_ring_full"].as_u64().unwrap();
    sockets.iter().map(lost).sum()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn every_truncation_and_many_mutations_are_accounted_for_and_disturb_nobody() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB, Tenant::DB]);
    let (neighbour, target) = (Tenant::WEB.echo(&net), Tenant::DB.echo(&net));
    daemon.wait_for_next_hops();
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 1, 1.0), 1);
    let before = daemon.at_rest();
    let sent_before = net.sent(FAR.1);
    let behind = seen(&before).0 as i64 - sent_before.0 as i64;

    let devices = inside(&net.far, || File::open("/proc/thread-self/net/dev").unwrap());
    let wire = RawSocket::sender(&net.far, FAR.1);
    let (vxlan, frame) = (vxlan(), outer(&vxlan()));
    // A wire carries no frame without an Ethernet header.
    let cut_outside = (14..=frame.len()).map(|length| frame[..length].to_vec());
    let cut_inside = (0..=vxlan.len()).map(|length| outer(&vxlan[..length]));
    let mut random = Random(7348);
    let mutations = (0..MUTATIONS).map(|_| mutated(&frame, &mut random));
    let frames: Vec<Vec<u8>> = cut_outside.chain(cut_inside).chain(mutations).collect();
    let began = std::time::Instant::now();
    let answered = std::thread::scope(|scope| {
        let far = &net.far;
        let pinging = scope.spawn(move || ping_patiently(far, Tenant::WEB.ip, 300, 0.01));
        for batch in frames.chunks(BATCH) {
            batch.iter().for_each(|frame| wire.send(frame));
            let sent = sent_frames(&devices) as i64;
            // Taken from the ring, too: the next one would fill it where the worker has lost its core.
            until("the batch has been taken", || {
                let stats = daemon.stats();
                let (all, steered) = seen(&stats);
                let taken = totals(&stats, "uplink_rx") + lost_by_sockets(&stats);
                all as i64 - behind >= sent && taken + BATCH as u64 > steered
            });
        }
        pinging.join().unwrap()
    });
    let took = began.elapsed();

    let after = daemon.at_rest();
    let sent = net.sent(FAR.1);
    let (all, steered) = (seen(&after).0 - seen(&before).0, seen(&after).1 - seen(&before).1);
    assert_eq!(sent.1, sent_before.1, "the wire itself lost something: the test is too fast");
    assert_eq!(all, sent.0 - sent_before.0, "each frame is steered or passed");
    assert!(
        all >= frames.len() as u64 && steered >= frames.len() as u64 / 4,
        "{all} seen, {steered} steered"
    );
    let taken = totals(&after, "uplink_rx") - totals(&before, "uplink_rx");
    let lost = lost_by_sockets(&after) - lost_by_sockets(&before);
    assert_eq!(taken, steered - lost, "{after:#}");
    assert_eq!(answered, 300, "the neighbour's pings");
    assert!(daemon.is_alive());
    for reason in [
        "outer_ip_invalid",
        "outer_ip_checksum",
        "outer_udp_invalid",
        "outer_udp_checksum",
        "remote_unknown",
        "inner_truncated",
        "inner_source_invalid",
    ] {
        assert!(after["drops"][reason].as_u64() > Some(0), "{reason} never occurred: {}", after["drops"]);
    }
    // Both tenants are as they were.
    let (neighbour, target) = (report(neighbour), report(target));
    assert!(neighbour["answered"]["icmp"].as_u64() >= Some(301), "{neighbour}");
    assert!(target["answered"]["udp"].as_u64() > Some(1000), "{target}");
    println!(
        "malformed: {} frames in {took:?}, {steered} steered, {lost} lost by the socket, drops {}",
        frames.len(),
        after["drops"]
    );
    assert!(took.as_secs() < 30, "{took:?}");
}

/// Frames that the far host's end of the wire has sent; the file tells of the host in which it was opened.
fn sent_frames(mut devices: &File) -> u64 {
    let mut text = String::new();
    devices.rewind().unwrap();
    devices.read_to_string(&mut text).unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix(FAR.1)?.strip_prefix(':')).unwrap();
    line.split_whitespace().nth(9).unwrap().parse().unwrap()
}
