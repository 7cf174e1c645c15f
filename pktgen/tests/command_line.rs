//! The binary from outside: exit status, error lines, signals. Needs no privilege.

mod common;

use std::process::Command;

use common::{output, pktgen, until};
use peregrine_memif::{Listener, ListenerConfig, SocketAddr};
use rustix::process::Signal;

const SEND: &str = "send --next-hop 02:00:00:00:00:02 --local 192.0.2.1 --remote 192.0.2.2 --vni 7 \
                    --inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 02:00:00:00:01:02 \
                    --inner-source 10.0.0.1 --inner-destination 10.0.0.2";

const PLAIN: &str = "send --inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 02:00:00:00:01:02";
const FRAMES: &str = "send --inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 02:00:00:00:01:02 \
     --inner-source 10.0.0.1 --inner-destination 10.0.0.2";
const SEARCH: &str = "search --memif x --inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 02:00:00:00:01:02 \
     --inner-source 10.0.0.1 --inner-destination 10.0.0.2";

#[test]
fn bad_arguments_are_one_line_and_status_2() {
    for line in [
        "",
        "dance",
        "send",
        "sink",
        "sink --memif x --ring-size 1000",
        "sink --udp 127.0.0.1:0 --core 4000",
        "sink --memif x --interface lo",
        "sink --interface lo",
        "sink --udp 127.0.0.1:0 --class a=ports:1",
        "sink --udp 127.0.0.1:0 --max-loss 2",
        "sink --memif x --queue-pairs 0",
        "echo",
        "echo --memif x",
        &format!("{SEND} --interface lo --size 10"),
        &format!("{SEND} --interface lo --profile /no/such.toml"),
        &format!("{SEND} --interface lo --memif x"),
        &format!("{SEND} --interface lo --rtt --threads 2 --flows 2"),
        &format!("{SEND} --memif x --size 2049 --next-hop 02:00:00:00:00:02"),
        "send --memif x --replay a.pcap --size 64",
        "send --memif x --pace 2",
        &format!("{SEND} --interface lo --threads 2 --flows 2 --flow-choice zipf:10 --rate 100"),
        &format!("{SEND} --interface lo --rate 1000 --arrivals bursts:1000000 --seconds 1"),
        "sink --interface lo --local 192.0.2.1",
        "sink --udp 127.0.0.1:0 --vni 7",
        "sink --memif x --queue 1",
        "sink --udp 127.0.0.1:0 --all-frames",
        "sink --interface lo --all-frames --vni 7",
        "sink --interface lo --queue 0,x --all-frames",
        "sink --udp 127.0.0.1:0 --ring-size 1024",
        "sink --udp 127.0.0.1:0 --buffer-size 2048",
        "sink --udp 127.0.0.1:0 --id 1",
        "sink --interface lo --all-frames --secret s",
        "sink --interface lo --all-frames --queue-pairs 2",
        "sink --udp 127.0.0.1:0 --pause-us 100",
        "echo --udp 127.0.0.1:0 --id 1",
        &format!("{SEND} --interface lo --ring-size 1024"),
        &format!("{SEND} --interface lo --core 0,0"),
        &format!("{SEND} --memif x --mode copy"),
        &format!("{SEND} --interface lo --all-frames"),
        &format!("{SEND} --interface lo --rtt --all-frames"),
        &format!("{FRAMES} --interface lo --rtt"),
        &format!("{FRAMES} --interface lo --all-frames"),
        &format!("{FRAMES} --memif x --rtt --all-frames"),
        &format!("{FRAMES} --memif x --port 4790"),
        "send --memif x --replay a.pcap --arrivals poisson",
        "echo --memif x --mac 03:00:00:00:00:01 --ip 10.0.0.1",
        "echo --memif x --mac 02:00:00:00:00:01 --ip 224.0.0.1",
        "echo --memif x --mac 02:00:00:00:00:01 --ip 10.0.0.1 --ip6 ff02::1",
        &format!("{PLAIN} --memif x --inner-source 10.0.0.1 --inner-destination fd00::2"),
        &format!("{PLAIN} --memif x --inner-source fd00::2-10.0.0.1 --inner-destination fd00::2"),
        &format!("{PLAIN} --memif x --inner-source [fd00::1]:0x1 --inner-destination fd00::2"),
        &format!("{PLAIN} --memif x --inner-source fd00::1 --inner-destination fd00::2 --size 79"),
        SEARCH,
        &format!("{SEARCH} --rtt --sink-memif y"),
        &format!("{SEARCH} --rtt --sink-netns y"),
        &format!("{SEARCH} --sink-memif y --rate 500mbit"),
        &format!("{SEARCH} --sink-memif y --rate 100 --rate-min 200"),
        &format!("{SEARCH} --sink-memif y --count 7"),
        &format!("{SEARCH} --sink-memif y --sizes 64,59"),
        &format!("{SEARCH} --sink-memif y --sizes 64,2049"),
        &format!("{SEARCH} --sink-memif y --sizes 64 --size 64"),
        &format!("{SEARCH} --sink-memif y --width nan"),
        &format!("{SEARCH} --sink-memif y --loss 100"),
        &format!("{SEARCH} --sink-memif y --trial-seconds 1 --first-trial-seconds 2"),
        &format!("{SEARCH} --sink-memif y --sink-core 4000"),
        &format!("{SEARCH} --sink-memif y --sink-ring-size 1000"),
        &format!("{SEARCH} --sink-memif y --threads 2"),
        &format!("{SEARCH} --sink-memif y --trial-seconds 1e-12"),
        &format!("{SEARCH} --rtt --sink-id 1"),
        &format!("{SEARCH} --sink-udp 127.0.0.1:0 --sink-ring-size 64"),
        &format!("{SEARCH} --sink-udp 127.0.0.1:0 --sink-secret s"),
    ] {
        let got = output(line);
        let stderr = String::from_utf8(got.stderr).unwrap();
        assert_eq!(got.status.code(), Some(2), "{line}: {stderr}");
        assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "{line}: {stderr}");
        assert!(got.stdout.is_empty());
    }
}

#[test]
fn what_fails_is_one_line_and_status_1() {
    // The file of a server that has gone.
    let folder = tempfile::tempdir().unwrap();
    let left = folder.path().join("left.sock");
    drop(std::os::unix::net::UnixListener::bind(&left).unwrap());
    let left = left.display();
    for (line, said) in [
        (format!("{SEND} --interface no-such-one"), "no-such-one"),
        ("sink --udp 192.0.2.77:9000".into(), "192.0.2.77:9000"),
        (format!("{SEARCH} --sink-udp 192.0.2.77:9000"), "192.0.2.77:9000"),
        (format!("{SEARCH} --sink-udp 127.0.0.1:0 --trial-seconds 0.1"), "no memif connection to x"),
        ("sink --memif no-such.sock".into(), "nothing listens there"),
        ("echo --memif @no-such --mac 02:00:00:00:00:01 --ip 10.0.0.1".into(), "nothing listens there"),
        (format!("{PLAIN} --memif {left} --inner-source 10.0.0.1 --inner-destination 10.0.0.2"), "refused"),
    ] {
        let got = output(&line);
        let stderr = String::from_utf8(got.stderr).unwrap();
        assert_eq!(got.status.code(), Some(1), "{line}: {stderr}");
        assert!(stderr.contains(said) && stderr.lines().count() == 1, "{line}: {stderr}");
        assert!(got.stdout.is_empty());
    }
}

#[test]
fn help_and_version_go_to_standard_output() {
    for line in ["--help", "send --help", "sink --help", "echo --help", "--version"] {
        let got = output(line);
        assert_eq!(got.status.code(), Some(0), "{line}");
        assert!(!got.stdout.is_empty() && got.stderr.is_empty());
    }
}

#[test]
fn a_signal_ends_a_run_with_its_report() {
    for signal in [Signal::INT, Signal::TERM] {
        for wait in ["poll", "interrupt", "pause"] {
            let sink = pktgen(&format!("sink --udp 127.0.0.1:0 --json --wait {wait}")).ready();
            sink.signal(signal);
            let report = sink.end().report();
            assert_eq!(
                (report["command"].as_str(), report["ended"].as_str()),
                (Some("sink"), Some("signal"))
            );
            assert_eq!((report["received"].as_u64(), report["latency_us"].is_null()), (Some(0), true));
        }
    }
}

#[test]
fn a_search_that_is_still_connecting_ends_at_a_signal() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("mute.sock");
    let listener = Listener::bind(&SocketAddr::Path(path.clone()), ListenerConfig::default()).unwrap();
    let line = SEARCH.replacen("--memif x", &format!("--memif {}", path.display()), 1);
    let search = pktgen(&format!("{line} --rtt --no-floor"));
    let _never_answered = until("connection", || listener.accept().unwrap());
    // Not SIGINT, which is ignored by all that a shell has started with `&`.
    search.signal(Signal::TERM);
    let ended = search.end();
    assert_eq!((ended.status, ended.stdout.as_str()), (None, ""), "by the signal: {:?}", ended.stderr);
}

#[test]
fn without_json_there_is_a_table() {
    let echo = pktgen("echo --udp 127.0.0.1:0 --seconds 0.05").ready().end();
    assert_eq!(echo.status, Some(0));
    assert!(echo.stdout.starts_with("received  0 packets"), "{}", echo.stdout);
}

#[test]
fn a_closed_standard_error_is_no_panic() {
    for line in [&[][..], &["send", "--nonsense"]] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let status = Command::new(env!("CARGO_BIN_EXE_peregrine-pktgen")).args(line).stderr(writer).status();
        assert_eq!(status.unwrap().code(), Some(2), "{line:?}");
    }
}
