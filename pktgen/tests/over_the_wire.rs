//! `send` against Linux's own vxlan device, which checks every header and checksum of ours:
//!
//! ```text
//! namespace a                              namespace b
//!   send (AF_XDP) - wa 192.0.2.1 ---veth--- wb 192.0.2.2 - vxlan vx, VNI 77, 10.9.0.2 - UDP socket: sink or echo
//! ```

mod common;

use common::{NetNs, Process};
use rustix::process::Signal;
use serde_json::Value;

struct Wire {
    a: NetNs,
    b: NetNs,
}

impl Wire {
    fn new() -> Wire {
        let (a, b) = (NetNs::new("a"), NetNs::new("b"));
        a.run(&format!("ip link add wa address 04:00:00:00:00:01 type veth peer name wb netns {}", b.name()));
        a.run("ip addr add 192.0.2.1/24 dev wa");
        a.run("ip link set wa up");
        for line in [
            "ip link set wb address 04:00:00:00:00:02 up",
            "ip addr add 192.0.2.2/24 dev wb",
            "ip link add vx address 02:00:00:00:01:02 type vxlan id 77 dstport 4789 local 192.0.2.2 remote 192.0.2.1",
            "ip addr add 10.9.0.2/24 dev vx",
            "ip link set vx up",
            "ip neigh add 10.9.0.1 lladdr 02:00:00:00:01:01 dev vx",
            "ip neigh add 192.0.2.1 lladdr 04:00:00:00:00:01 dev wb",
        ] {
            b.run(line);
        }
        Wire { a, b }
    }

    fn send(&self, arguments: &str) -> Process {
        self.a.pktgen(&format!(
            "send --json --interface wa --next-hop 04:00:00:00:00:02 --local 192.0.2.1 --remote 192.0.2.2 --vni 77 \
             --inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 02:00:00:00:01:02 \
             --inner-source 10.9.0.1 --inner-destination 10.9.0.2:9000 {arguments}"
        ))
    }
}

fn number(report: &Value, key: &str) -> u64 {
    report[key].as_u64().unwrap_or_else(|| panic!("no {key} in {report}"))
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_kernel_takes_every_one_of_10000_packets() {
    for size in [60, 65, 1464] {
        let wire = Wire::new();
        let sink = wire.b.pktgen("sink --udp 10.9.0.2:9000 --json --seconds 15 --count 10000").ready();
        let before = wire.a.counter("wa", "tx_packets");
        let sent = wire.send(&format!("--rate 20000 --count 10000 --flows 7 --size {size}")).end().report();
        let got = sink.end().report();
        assert_eq!((number(&sent, "sent"), number(&sent, "uncompleted")), (10_000, 0), "{sent}");
        assert_eq!(number(&sent, "bytes"), 10_000 * (size + 50));
        assert_eq!(wire.a.counter("wa", "tx_packets") - before, 10_000, "the kernel counts as we do");
        assert_eq!((number(&got, "received"), number(&got, "flows")), (10_000, 7), "{got}");
        for none in ["lost", "reordered", "duplicates", "not_ours", "unknown_flow", "beyond_window"] {
            assert_eq!(number(&got, none), 0, "{got}");
        }
        assert_eq!(number(&got, "bytes"), 10_000 * size);
        let [rate, seconds] = ["offered_pps", "seconds"].map(|key| sent[key].as_f64().unwrap());
        assert!(
            (rate * seconds - 10_000.0).abs() < 1.0 && seconds > 0.499,
            "the rate, and no faster: {sent}"
        );
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_sink_over_af_xdp_takes_every_packet_and_the_kernel_none() {
    for wait in ["yield", "interrupt"] {
        let wire = Wire::new();
        let line = "sink --interface wb --mode copy --local 192.0.2.2 --vni 77 --json --seconds 15 --count 5000 \
                    --class all=ports:9000 --wait";
        let sink = wire.b.pktgen(&format!("{line} {wait}")).ready();
        let counters = || [wire.a.counter("wa", "tx_packets"), wire.b.counter("wb", "rx_packets")];
        let before = counters();
        let sent = wire.send("--mode copy --rate 5000 --count 5000 --flows 3 --size 100").end().report();
        let got = sink.end().report();
        let counted = ["received", "flows", "bytes", "lost", "reordered", "duplicates", "not_ours"];
        assert_eq!(
            counted.map(|key| number(&got, key)),
            [5000, 3, 500_000, 0, 0, 0, 0],
            "{wait}: {sent} {got}"
        );
        let after = counters();
        // Bytes it counts without Ethernet's header where an XDP program looks first.
        assert_eq!([0, 1].map(|at| after[at] - before[at]), [5000; 2], "the kernel counts as both of us do");
        assert_eq!(number(&got["per_class"][0], "received"), 5000);
        assert_eq!(
            (&got["xdp"]["uplink"]["interface"], wire.b.counter("vx", "rx_packets")),
            (&"wb".into(), 0)
        );
        assert!(!wire.b.run("ip -d link show wb").contains("prog/xdp"));
    }
}

/// What `send` can send without VXLAN, over IPv4 and IPv6.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_sink_for_all_frames_takes_plain_ones_and_the_kernel_none() {
    let wire = Wire::new();
    let line = "sink --interface wb --mode copy --all-frames --json --seconds 15 --count 3000";
    let kernels = || {
        let table = wire.b.run("cat /proc/net/snmp /proc/net/snmp6");
        table
            .lines()
            .filter(|line| line.contains("InReceives") || line.starts_with("Ip: "))
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    for (from, to, size) in [("10.9.0.1", "10.9.0.2", 60), ("fd09::1", "fd09::2", 80)] {
        let sink = wire.b.pktgen(line).ready();
        let before = kernels();
        let sent = wire
            .a
            .pktgen(&format!(
                "send --json --interface wa --mode copy --rate 6000 --count 3000 --flows 3 --size {size} \
                 --inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 04:00:00:00:00:02 \
                 --inner-source {from} --inner-destination {to}"
            ))
            .end()
            .report();
        let got = sink.end().report();
        let counted = ["received", "flows", "bytes", "lost", "reordered", "duplicates"];
        assert_eq!(counted.map(|key| number(&got, key)), [3000, 3, 3000 * size, 0, 0, 0], "{sent} {got}");
        assert_eq!(kernels(), before, "its IP has seen nothing");
    }
}

/// A sink measures until its interface goes, and then says that it has.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_sink_whose_interface_goes_away_fails_with_what_it_has_measured() {
    for (how, said) in [("ip link set wb down", "is down"), ("ip link del wb", "is gone")] {
        for wait in ["yield", "interrupt"] {
            let wire = Wire::new();
            let line =
                format!("sink --json --interface wb --mode copy --local 192.0.2.2 --vni 77 --wait {wait}");
            let sink = wire.b.pktgen(&line).ready();
            wire.send("--mode copy --rate 5000 --count 100").end().report();
            wire.b.run(how);
            let ended = sink.end();
            assert_eq!(ended.status, Some(1), "{how}: {:?}", ended.stderr);
            let [.., last] = &ended.stderr[..] else { panic!("{how}: no error") };
            assert!(last.starts_with("error: interface wb") && last.contains(said), "{last}");
            let report: Value = serde_json::from_str(&ended.stdout).unwrap();
            assert_eq!(
                (report["ended"].as_str(), number(&report, "received")),
                (Some("peer"), 100),
                "{report}"
            );
        }
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_kernels_echo_answers_every_packet() {
    for wait in ["poll", "yield", "block"] {
        let wire = Wire::new();
        let echo = wire.b.pktgen("echo --udp 10.9.0.2:9000 --json --seconds 18").ready();
        let sent =
            wire.send(&format!("--rtt --rate 5000 --count 5000 --flows 3 --wait {wait}")).end().report();
        echo.signal(Signal::TERM);
        let echoed = echo.end().report();
        assert_eq!((number(&sent, "sent"), number(&sent, "received")), (5000, 5000), "{sent} {echoed}");
        for none in ["lost", "duplicates", "reordered"] {
            assert_eq!(number(&sent, none), 0, "{wait}: {sent}");
        }
        let rtt = &sent["rtt_us"];
        assert!(rtt["p50"].as_f64().unwrap() > 1.0 && rtt["p99"].as_f64() <= rtt["max"].as_f64(), "{sent}");
        assert_eq!(number(&echoed["answered"], "udp"), 5000);
    }
}

/// Without VXLAN the answers are known by their trailer alone, so every frame is taken, and given back to the kernel after.
#[test]
#[ignore = "needs root: make test runs it"]
fn round_trips_of_plain_frames_take_every_frame_that_arrives() {
    let wire = Wire::new();
    wire.b.run("ip addr add 10.8.0.2/24 dev wb");
    wire.b.run("ip neigh add 10.8.0.1 lladdr 04:00:00:00:00:01 dev wb");
    let echo = wire.b.pktgen("echo --udp 10.8.0.2:9000 --json --seconds 18").ready();
    let line = "send --json --interface wa --mode copy --rate 5000 --count 2000 --flows 3 --rtt --all-frames --wait block \
                --inner-source-mac 04:00:00:00:00:01 --inner-destination-mac 04:00:00:00:00:02 \
                --inner-source 10.8.0.1 --inner-destination 10.8.0.2:9000";
    let sent = wire.a.pktgen(line).end().report();
    echo.signal(Signal::TERM);
    let echoed = echo.end().report();
    let counted = ["sent", "received", "lost", "duplicates", "reordered"].map(|key| number(&sent, key));
    assert_eq!(counted, [2000, 2000, 0, 0, 0], "{sent} {echoed}");
    assert!(!wire.a.run("ip -d link show wa").contains("prog/xdp"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn full_rate_sends_all_it_says() {
    let wire = Wire::new();
    let _sink = wire.b.pktgen("sink --udp 10.9.0.2:9000 --seconds 15").ready(); // else the kernel says that nobody is there
    let before = wire.a.counter("wa", "tx_packets");
    let sent = wire.send("--rate max --count 50000").end().report();
    assert_eq!((number(&sent, "sent"), number(&sent, "uncompleted")), (50_000, 0), "{sent}");
    assert_eq!(wire.a.counter("wa", "tx_packets") - before, 50_000);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_signal_ends_a_sender_with_its_report_and_detaches_the_program() {
    let wire = Wire::new();
    let sender = wire.send("--rtt --rate 1000 --seconds 60").ready();
    assert!(wire.a.run("ip -d link show wa").contains("xdp"));
    sender.signal(Signal::INT);
    let report = sender.end().report();
    assert_eq!(report["ended"], "signal");
    assert!(!wire.a.run("ip -d link show wa").contains("prog/xdp"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_the_interface_cannot_do_is_refused_in_one_line() {
    let wire = Wire::new();
    for (arguments, status, said) in [
        ("--size 1465", 2, "at most 1464"),
        ("--queue 9", 1, "no queue 9"),
        ("--mode require-zero-copy", 1, "zero-copy"),
    ] {
        let got = wire.send(arguments).end();
        assert_eq!(
            (got.status, got.stdout.as_str(), got.stderr.len()),
            (Some(status), "", 1),
            "{:?}",
            got.stderr
        );
        assert!(got.stderr[0].contains(said), "{:?}", got.stderr);
    }
    wire.a.run("ip addr del 192.0.2.1/24 dev wa");
    let got = wire.send("--rtt").end();
    assert_eq!((got.status, got.stderr.len()), (Some(1), 1), "{:?}", got.stderr);
    assert!(got.stderr[0].contains("192.0.2.1"), "{:?}", got.stderr);
}

/// The far end counts in another namespace than the sender's, on a thread of the same process.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_search_counts_at_the_kernels_socket_in_another_namespace() {
    let wire = Wire::new();
    let ended = wire
        .a
        .pktgen(&format!(
            "search --json --interface wa --next-hop 04:00:00:00:00:02 --local 192.0.2.1 --remote 192.0.2.2 --vni 77 \
             --inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 02:00:00:00:01:02 \
             --inner-source 10.9.0.1 --inner-destination 10.9.0.2:9000 --flows 3 --sizes 64,1400 \
             --sink-udp 10.9.0.2:9000 --sink-netns {} --rate 5000 --rate-min 500 --seconds 3 \
             --first-trial-seconds 0.05 --trial-seconds 0.1 --sum-seconds 0.2 --latency-seconds 0.1",
            wire.b.name()
        ))
        .end();
    assert_eq!(ended.stderr.first().map(String::as_str), Some("ready"));
    let report = ended.report();
    let sizes = report["sizes"].as_array().unwrap();
    assert_eq!(sizes.iter().map(|size| number(size, "bytes")).collect::<Vec<_>>(), [64, 1400]);
    for size in sizes {
        assert!(size["max_received_pps"].as_f64() > Some(0.0), "{size:#}");
        assert!(number(&size["ndr"], "pps") <= number(&size["pdr"], "pps"), "{size:#}");
        for trial in size["trials"].as_array().unwrap() {
            assert!(number(trial, "received") <= number(trial, "sent"), "{trial}");
        }
    }
}

/// Plain frames of a mix on two queues by two threads: the report and the counters of both ends agree exactly.
#[test]
#[ignore = "needs root: make test runs it"]
fn the_report_agrees_with_the_kernels_counters() {
    let (a, b) = (NetNs::new("a"), NetNs::new("b"));
    a.run(&format!(
        "ip link add wa numtxqueues 2 numrxqueues 2 type veth peer name wb numtxqueues 2 numrxqueues 2 netns {}",
        b.name()
    ));
    a.run("ip link set wa up");
    b.run("ip link set wb up");
    let counters = || {
        let of = |netns: &NetNs, name: &str, way: &str| {
            [format!("{way}_packets"), format!("{way}_bytes")].map(|what| netns.counter(name, &what))
        };
        (of(&a, "wa", "tx"), of(&b, "wb", "rx"))
    };
    let (tx, rx) = counters();
    let sent = a
        .pktgen(
            "send --json --interface wa --threads 2 --flows 10 --size imix --rate 20000 --count 12001 --arrivals bursts:8 \
             --class a:3 --class b:1:46 --inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 02:00:00:00:01:02 \
             --inner-source 10.9.0.1-10.9.0.5 --inner-destination 10.9.0.2",
        )
        .end()
        .report();
    let (tx_after, rx_after) = counters();
    let wanted = [number(&sent, "sent"), number(&sent, "bytes")];
    assert_eq!((wanted[0], number(&sent, "uncompleted"), number(&sent, "skipped")), (12_001, 0, 0), "{sent}");
    assert_eq!([tx_after[0] - tx[0], tx_after[1] - tx[1]], wanted, "{sent}");
    assert_eq!([rx_after[0] - rx[0], rx_after[1] - rx[1]], wanted, "{sent}");
    let threads: Vec<u64> = (0..2).map(|thread| number(&sent["threads"][thread], "sent")).collect();
    assert_eq!(threads, [6001, 6000]);
    assert_eq!(number(&sent["classes"][0], "sent") + number(&sent["classes"][1], "sent"), 12_001);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_interface_that_goes_away_fails_the_run_with_what_was_sent() {
    for (how, said) in [("ip link set wa down", "is down"), ("ip link del wa", "is gone")] {
        let wire = Wire::new();
        let sender = wire.send("--rate 1000 --seconds 60").ready();
        wire.a.run(how);
        let ended = sender.end();
        assert_eq!(ended.status, Some(1), "{how}: {:?}", ended.stderr);
        let [.., last] = &ended.stderr[..] else { panic!("{how}: no error") };
        assert!(last.starts_with("error: interface wa") && last.contains(said), "{last}");
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(report["ended"], "peer", "{how}");
    }
}
