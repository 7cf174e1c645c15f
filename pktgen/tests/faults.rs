//! Faults that are put in on purpose are found: a sender, a real sink, and a man in the middle who drops, copies and swaps
//! known packets. And a sink that is stopped for a while, one whose peer goes away, and what scripts see of all that. Needs
//! no privilege.
//!
//! ```text
//!  sender: frames of the template, at their time ── memif ── the man in the middle ── memif ── peregrine-pktgen sink
//! ```

mod common;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::num::NonZeroU64;

use common::{Process, accept, pktgen, until};
use peregrine_dataplane::types::MacAddr;
use peregrine_memif::{ClientConfig, Interface, Listener, ListenerConfig, ServerConfig, SocketAddr, pair};
use peregrine_pktgen::clock::{MILLISECOND, now_ns};
use peregrine_pktgen::pacer::{Pacer, Rate};
use peregrine_pktgen::template::{Inner, Template};
use peregrine_pktgen::trailer::Trailer;
use rustix::process::Signal;
use serde_json::{Value, json};

const FLOWS: u16 = 2;

/// A sink, and our end of its connection.
fn sink(arguments: &str) -> (Process, Interface) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.sock");
    let listener = Listener::bind(&SocketAddr::Path(path.clone()), ListenerConfig::default()).unwrap();
    let sink = pktgen(&format!("sink --memif {} --json --quiet {arguments}", path.display()));
    let interface = accept(&listener);
    (sink.ready(), interface)
}

fn template() -> Template {
    let inner = Inner {
        source_mac: MacAddr([2, 0, 0, 0, 0, 1]),
        destination_mac: MacAddr([2, 0, 0, 0, 0, 2]),
        source: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 20000),
        destination: SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 2), 9000),
        size: 64,
        flows: FLOWS,
    };
    Template::new(&inner, None).unwrap()
}

/// Sends `count` packets at their time from `start` on, the flows in turns.
fn send(to: &mut Interface, start: u64, rate: u64, count: u64) {
    let template = template();
    let mut frame = vec![0; template.len()];
    let mut pacer = Pacer::new(Rate::Pps(NonZeroU64::new(rate).unwrap()), start);
    for n in 0..count {
        let time = until("time", || pacer.take(now_ns(), frame.len()));
        let (flow, sequence) = ((n % u64::from(FLOWS)) as u16, n / u64::from(FLOWS));
        assert!(template.write(&mut frame, Trailer { run: 7, flow, sequence, time }));
        until("room", || to.tx[0].push(&frame).ok());
        to.tx[0].flush().unwrap();
    }
}

/// What the man in the middle does to packet `n` of flow 0.
enum Fault {
    Drop,
    Copies(usize),
    /// It goes on only after so many later packets of its flow.
    Delay(usize),
}

fn fault(n: u64) -> Option<Fault> {
    match n {
        20 | 21 | 500 => Some(Fault::Drop),
        40 => Some(Fault::Copies(1)),
        60 => Some(Fault::Copies(2)),
        80 | 90 | 100 | 110 | 120 => Some(Fault::Delay(1)),
        200 => Some(Fault::Delay(7)),
        _ => None,
    }
}

/// Hands `count` packets on, but for the faults. Flow 1 is left alone.
fn meddle(from: &mut Interface, to: &mut Interface, count: u64) {
    let mut put = |frame: &[u8]| {
        until("room", || to.tx[0].push(frame).ok());
        to.tx[0].flush().unwrap();
    };
    let mut held: Vec<(usize, Vec<u8>)> = Vec::new();
    for _ in 0..count {
        until("packet", || (from.rx[0].pending().unwrap() > 0).then_some(()));
        let mut frame = [0; 128];
        let length = from.rx[0].next_packet().unwrap().unwrap().copy_to(&mut frame).unwrap();
        from.rx[0].release();
        let frame = &frame[..length];
        let trailer = Trailer::of_frame(frame).unwrap();
        if trailer.flow == 1 {
            put(frame);
            continue;
        }
        match fault(trailer.sequence) {
            Some(Fault::Drop) => {}
            Some(Fault::Copies(more)) => (0..=more).for_each(|_| put(frame)),
            Some(Fault::Delay(by)) => {
                held.push((by, frame.to_vec()));
                continue;
            }
            None => put(frame),
        }
        held.iter_mut().for_each(|(left, _)| *left -= 1);
        held.retain(|(left, frame)| {
            if *left == 0 {
                put(frame);
            }
            *left > 0
        });
    }
}

#[test]
fn drops_copies_and_swaps_are_reported_exactly_so() {
    const SENT: u64 = 2000;
    const ARRIVED: u64 = SENT - 3 + 3;
    let percentiles = tempfile::NamedTempFile::new().unwrap();
    let line = format!(
        "--count {ARRIVED} --seconds 18 --class web=ports:9000 --class voice=dscp:46 --percentiles {}",
        percentiles.path().display()
    );
    let (sink, mut near_sink) = sink(&line);
    let (mut sender, mut near_sender) = pair(ClientConfig::default(), ServerConfig::default()).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| send(&mut sender, now_ns(), 20_000, SENT));
        scope.spawn(|| meddle(&mut near_sender, &mut near_sink, SENT));
    });
    let got = sink.end().report();
    let counted = ["received", "distinct", "lost", "duplicates", "reordered", "beyond_window", "not_ours"];
    assert_eq!(counted.map(|key| got[key].as_u64().unwrap()), [ARRIVED, 1997, 3, 3, 6, 0, 0], "{got}");
    assert_eq!(got["loss_ratio"].as_f64(), Some(3.0 / 2000.0));
    assert_eq!(
        got["reordering"],
        json!({"ratio": 6.0 / 1997.0, "extent": {"p50": 1, "p90": 7, "p99": 7, "max": 7}, "extent_unknown": 0,
               "n_reordered": [6, 1, 1]})
    );
    let of_flow = |at: usize| {
        ["flow", "distinct", "lost", "reordered", "duplicates"]
            .map(|key| got["per_flow"][at][key].as_u64().unwrap())
    };
    assert_eq!((of_flow(0), of_flow(1)), ([0, 997, 3, 6, 3], [1, 1000, 0, 0, 0]));
    let classes: Vec<_> = got["per_class"]
        .as_array()
        .unwrap()
        .iter()
        .map(|of| (of["class"].as_str().unwrap(), &of["received"], &of["lost"]))
        .collect();
    assert_eq!(
        classes,
        [
            ("web", &json!(ARRIVED), &json!(3)),
            ("voice", &json!(0), &json!(0)),
            ("other", &json!(0), &json!(0))
        ]
    );
    assert!(got["floor_ns"]["p50"].as_u64() > Some(0), "{got}");

    let text = std::fs::read_to_string(percentiles.path()).unwrap();
    let rows: Vec<Vec<f64>> = text
        .lines()
        .skip(2)
        .take_while(|line| !line.starts_with('#'))
        .map(|line| line.split_whitespace().map(|word| word.parse().unwrap()).collect())
        .collect();
    assert!(rows.is_sorted_by(|a, b| a[0] <= b[0] && a[1] <= b[1] && a[2] <= b[2]), "{text}");
    let last = rows.last().unwrap();
    assert_eq!(
        (last[0], last[1], last[2]),
        (got["latency_us"]["max"].as_f64().unwrap(), 1.0, ARRIVED as f64)
    );
    assert!(text.contains("Total count    =         2000]"), "{text}");
}

/// Whether a signal has stopped a process.
fn is_stopped(pid: rustix::process::Pid) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).unwrap();
    status.rsplit(')').next().unwrap().trim_start().starts_with('T')
}

/// 400 packets at 2000 a second, and a stop of 100 ms: those that were due in its first 20 ms, 40 of them, took 80 ms at
/// least, whatever else the machine did.
#[test]
fn a_stop_of_the_receiver_shows_in_the_histogram() {
    const STOP_NS: u64 = 100 * MILLISECOND;
    let (sink, mut server) = sink("--count 400 --seconds 18");
    let pid = sink.pid();
    sink.signal(Signal::STOP);
    until("stop", || is_stopped(pid).then_some(()));
    let start = now_ns();
    let sender = std::thread::spawn(move || {
        send(&mut server, start, 2000, 400);
        server
    });
    until("end of the stop", || (now_ns() >= start + STOP_NS).then_some(()));
    sink.signal(Signal::CONT);
    let got = sink.end().report();
    drop(sender.join().unwrap());
    let at = |which: &str| got["latency_us"][which].as_f64().unwrap();
    assert_eq!((got["received"].as_u64(), got["lost"].as_u64()), (Some(400), Some(0)), "{got}");
    assert!(at("max") >= 99_000.0 && at("p90") >= 79_000.0 && at("p50") > 0.0, "{got}");
}

#[test]
fn a_peer_that_goes_away_costs_nothing_that_was_measured() {
    for how in ["says so", "is just gone"] {
        let (sink, mut server) = sink("--wait interrupt");
        send(&mut server, now_ns(), 100_000, 300);
        if how == "says so" {
            server.control.disconnect("going home");
        } else {
            drop(server);
        }
        let ended = sink.end();
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(
            (report["received"].as_u64(), report["ended"].as_str()),
            (Some(300), Some("peer")),
            "{how}"
        );
        let [said] = &ended.stderr[..] else { panic!("{:?}", ended.stderr) };
        assert_eq!(ended.status, Some(1));
        assert!(said.starts_with("error: memif server") && said.contains("until then"), "{said}");
    }
}

#[test]
fn a_signal_ends_it_with_what_came_and_scripts_see_what_they_want() {
    for (wanted, status, said) in [
        ("--max-loss 0.5 --min-received 2", 0, None),
        ("--max-loss 0.3", 1, Some("error: 1 packets were lost")),
        ("--min-received 3", 1, Some("error: 2 packets came")),
    ] {
        let (sink, mut server) = sink(wanted);
        let template = template();
        let mut frame = vec![0; template.len()];
        for sequence in [0, 2] {
            assert!(template.write(&mut frame, Trailer { run: 7, flow: 0, sequence, time: now_ns() }));
            until("room", || server.tx[0].push(&frame).ok());
        }
        server.tx[0].flush().unwrap();
        // The sink gives the slots back when it has counted what was in them.
        let all = server.tx[0].size();
        until("sink", || (server.tx[0].free().unwrap() >= all).then_some(()));
        sink.signal(Signal::INT);
        let ended = sink.end();
        let report: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!((report["received"].as_u64(), report["ended"].as_str()), (Some(2), Some("signal")));
        assert_eq!(ended.status, Some(status), "{:?}", ended.stderr);
        assert_eq!(
            ended.stderr.first().is_some_and(|line| line.starts_with(said.unwrap_or("-"))),
            said.is_some()
        );
    }
}

#[test]
fn there_is_a_plain_line_per_second_unless_it_shall_be_quiet() {
    for (more, lines) in [("", true), ("--quiet", false)] {
        let sink = pktgen(&format!("sink --udp 127.0.0.1:0 --seconds 1.2 {more}")).ready();
        let ended = sink.end();
        let live = ended.stderr.iter().any(|line| line.ends_with("packets/s"));
        assert_eq!((ended.status, live), (Some(0), lines), "{:?}", ended.stderr);
        assert!(ended.stdout.contains("generator's own, ns"), "{}", ended.stdout);
    }
    let echo = pktgen("echo --udp 127.0.0.1:0 --seconds 1.2").ready().end();
    assert!(echo.stderr.iter().any(|line| line.ends_with("packets/s")), "{:?}", echo.stderr);
}

#[test]
fn a_percentiles_file_that_cannot_be_is_refused_before_the_run() {
    let ended = pktgen("sink --udp 127.0.0.1:0 --percentiles /nowhere/at/all --no-floor").end();
    assert_eq!((ended.status, ended.stdout.as_str()), (Some(1), ""));
    assert!(ended.stderr[0].contains("/nowhere/at/all"), "{:?}", ended.stderr);
}

#[test]
fn a_percentiles_file_is_written_even_if_nobody_reads_the_report() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let status = std::process::Command::new(env!("CARGO_BIN_EXE_peregrine-pktgen"))
        .args(["sink", "--udp", "127.0.0.1:0", "--seconds", "0.05", "--quiet", "--percentiles"])
        .arg(file.path())
        .stdout(writer)
        .status();
    assert_eq!(status.unwrap().code(), Some(1), "the report was not read");
    assert!(std::fs::read_to_string(file.path()).unwrap().contains("#[Mean"));
}

#[test]
fn a_percentiles_file_is_kept_until_there_is_a_new_one() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let old = "~".repeat(1 << 16);
    std::fs::write(file.path(), &old).unwrap();
    let path = file.path().display();
    let refused = pktgen(&format!("sink --udp 192.0.2.77:9000 --no-floor --percentiles {path}")).end();
    assert_eq!((refused.status, std::fs::read_to_string(file.path()).unwrap() == old), (Some(1), true));
    let ended =
        pktgen(&format!("sink --udp 127.0.0.1:0 --seconds 0.05 --no-floor --percentiles {path}")).end();
    let text = std::fs::read_to_string(file.path()).unwrap();
    assert_eq!((ended.status, text.contains("#[Mean"), text.contains('~')), (Some(0), true, false), "{text}");
}
