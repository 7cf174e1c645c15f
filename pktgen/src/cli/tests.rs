//! What the flags mean, and what is refused.

use clap::CommandFactory;
use peregrine_dataplane::types::QueueId;
use peregrine_memif::SocketAddr;

use super::send::Hosts;
use super::*;
use crate::limits::Wait;
use crate::pacer::{Arrivals, Rate};
use crate::profile::Sizes;
use crate::search::receiver::FarEnd;
use crate::send::{Outlet, SendWait, Traffic};

const SEND: &str = "send --interface eth0 --next-hop 02:00:00:00:00:02 --local 192.0.2.1 --remote 192.0.2.2 --vni 7 \
                    --inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 02:00:00:00:01:02 \
                    --inner-source 10.0.0.1 --inner-destination 10.0.0.2:7";

fn parse(line: &str) -> Result<Command, clap::Error> {
    Cli::try_parse_from(std::iter::once("peregrine-pktgen").chain(line.split_whitespace()))
        .map(|cli| cli.command)
}

/// What is said about a command line that is refused.
fn refused(line: &str) -> String {
    let error = match parse(line) {
        Err(error) => return error.to_string(),
        Ok(Command::Send(args)) => args.settings().map(drop).unwrap_err(),
        Ok(Command::Sink(args)) => args.settings().map(drop).unwrap_err(),
        Ok(Command::Echo(args)) => args.settings().map(drop).unwrap_err(),
        Ok(Command::Search(args)) => args.settings().map(drop).unwrap_err(),
    };
    assert_eq!(error.exit_status(), 2);
    error.to_string()
}

#[test]
fn the_definition_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn send_has_the_documented_defaults() {
    let Command::Send(args) = parse(SEND).unwrap() else { panic!() };
    let settings = args.settings().unwrap();
    let Outlet::Xdp { interface, queues, mode } = &settings.outlet else { panic!() };
    assert_eq!((&interface[..], &queues[..], *mode), ("eth0", &[QueueId(0)][..], XdpMode::PreferZeroCopy));
    assert_eq!(settings.tunnel.unwrap().port, 4789);
    let Traffic::Profile(profile) = &settings.traffic else { panic!() };
    assert_eq!((profile.flows.count, profile.longest(), profile.seed), (1, 64, 1));
    let flow = profile.flow(0);
    assert_eq!(
        (flow.source.to_string(), flow.destination.to_string()),
        ("10.0.0.1:20000".into(), "10.0.0.2:7".into())
    );
    assert_eq!((profile.rate.to_string(), profile.arrivals), ("10000".into(), Arrivals::Constant));
    assert_eq!((settings.wait, settings.rtt, settings.threads), (SendWait::Yield, false, 1));
    assert_eq!((settings.limits.seconds, settings.limits.count), (Some(Duration::from_secs(10)), None));
    assert!(!args.json && args.core.is_empty());
}

#[test]
fn a_count_alone_has_no_time_limit() {
    let Command::Send(args) = parse(&format!("{SEND} --count 5 --rate max")).unwrap() else { panic!() };
    let settings = args.settings().unwrap();
    let Traffic::Profile(profile) = &settings.traffic else { panic!() };
    assert_eq!((settings.limits.seconds, settings.limits.count, profile.rate), (None, Some(5), Rate::Max));
}

#[test]
fn sink_and_echo_take_memif_or_a_socket() {
    let Command::Sink(args) =
        parse("sink --memif @tenant --id 3 --secret s --ring-size 4096 --wait pause").unwrap()
    else {
        panic!()
    };
    let (port, settings) = args.settings().unwrap();
    let PortSettings::Memif(socket, config) = port else { panic!("{port:?}") };
    assert_eq!(socket, SocketAddr::Abstract("tenant".into()));
    assert_eq!((config.id, config.ring_log2, config.buffer_bytes), (3, 12, 2048));
    assert_eq!((settings.wait, settings.flows), (Wait::Pause(Duration::from_micros(300)), 1024));

    let Command::Sink(args) = parse("sink --memif /run/m --reconnect").unwrap() else { panic!() };
    assert!(matches!(args.settings().unwrap().0, PortSettings::Reconnecting(..)));

    let Command::Echo(args) = parse("echo --udp 10.0.0.2:9000 --idle-ms 20 --seconds 0.5").unwrap() else {
        panic!()
    };
    let (port, identity, settings) = args.settings().unwrap();
    assert!(matches!(port, PortSettings::Udp(_)) && identity.is_none());
    assert_eq!(settings.limits.seconds, Some(Duration::from_millis(500)));
    assert_eq!((settings.limits.idle, settings.wait), (Some(Duration::from_millis(20)), Wait::Interrupt));
}

#[test]
fn hosts_are_of_either_version_with_ports_or_without() {
    for (text, ip, port) in [
        ("10.0.0.1", "10.0.0.1", None),
        ("10.0.0.1-10.0.0.9:80-90", "10.0.0.1-10.0.0.9", Some("80-90")),
        ("fd00::1", "fd00::1", None),
        ("fd00::1-fd00::9", "fd00::1-fd00::9", None),
        ("[fd00::1]", "fd00::1", None),
        ("[fd00::1-fd00::9]:9000", "fd00::1-fd00::9", Some("9000")),
    ] {
        let hosts: Hosts = text.parse().unwrap();
        assert_eq!(
            (hosts.ip, hosts.port),
            (ip.parse().unwrap(), port.map(|port| port.parse().unwrap())),
            "{text}"
        );
    }
    for bad in [
        "",
        ":80",
        "10.0.0.1:",
        "[fd00::1",
        "fd00::1]",
        "[fd00::1]x",
        "[]:80",
        "fd00::2-fd00::1",
        "10.0.0.1-fd00::1",
    ] {
        assert!(bad.parse::<Hosts>().is_err(), "{bad}");
    }
}

#[test]
fn bad_arguments_are_refused_with_what_would_be_right() {
    for (line, said) in [
        (format!("{SEND} --size 59"), "60 to"),
        (format!("{SEND} --rate 0"), "'max'"),
        (format!("{SEND} --rate fast"), "'max'"),
        (format!("{SEND} --flows 0"), "--flows"),
        (format!("{SEND} --flows 50000"), "45536"),
        (format!("{SEND} --seconds=-1"), "--seconds"),
        (format!("{SEND} --seconds nan"), "--seconds"),
        (format!("{SEND} --count 0"), "--count"),
        (format!("{SEND} --mode fastest"), "require-zero-copy"),
        (SEND.replace("--vni 7", "--vni 16777216"), "16777215"),
        (SEND.replace("02:00:00:00:01:01", "03:00:00:00:01:01"), "--inner-source-mac"),
        (SEND.replace("02:00:00:00:01:01", "02:00"), "six pairs"),
        (SEND.replace("10.0.0.1", "10.0.0"), "such as 10.0.0.1-10.0.0.9"),
        ("send".into(), "--interface"),
        ("sink".into(), "--memif"),
        ("sink --memif a --udp 1.2.3.4:5".into(), "--udp"),
        ("sink --memif a --ring-size 1000".into(), "power of two"),
        ("sink --memif a --ring-size 16".into(), "5..=14"),
        ("sink --memif a --buffer-size 100".into(), "2048..=16384"),
        ("sink --memif a --secret 1234567890123456789012345".into(), "24"),
        ("sink --memif a --flows 65537".into(), "--flows"),
        ("echo --memif a --mac 02:00:00:00:00:01".into(), "--ip"),
        ("echo --udp 1.2.3.4:5 --mac 02:00:00:00:00:01".into(), "--udp"),
        ("echo --memif a --reconnect".into(), "--mac"),
        ("sink --udp 1.2.3.4:5 --reconnect".into(), "--reconnect"),
        ("dance".into(), "dance"),
    ] {
        let text = refused(&line);
        assert!(text.contains(said), "{line}: {text}");
    }
}

fn search(more: &str) -> String {
    format!("{} {more}", SEND.replacen("send", "search", 1))
}

#[test]
fn search_has_the_documented_defaults() {
    let Command::Search(args) = parse(&search("--sink-memif /run/x --sink-id 3")).unwrap() else { panic!() };
    let settings = args.settings().unwrap();
    let receiver = settings.receiver.unwrap();
    assert_eq!((settings.sizes, receiver.flows, receiver.wait), (vec![Sizes::fixed(64)], 1, Wait::Yield));
    let FarEnd::Memif(socket, config) = receiver.far_end else { panic!() };
    assert_eq!((socket.to_string().as_str(), config.id, config.ring_log2), ("/run/x", 3, 14));
    let goals = settings.goals;
    assert_eq!((goals.pps_max, goals.pdr_loss, goals.width), (None, 0.005, 0.02));
    assert_eq!((goals.time_max, goals.last_trial), (Duration::from_secs(60), Duration::from_secs(1)));
}

#[test]
fn a_search_counts_in_one_place() {
    let Command::Search(args) =
        parse(&search("--sink-udp 10.0.0.2:7 --sink-netns x --sizes 64,512 --rate 5000 --seconds 9"))
            .unwrap()
    else {
        panic!()
    };
    let settings = args.settings().unwrap();
    assert_eq!(settings.sizes, [Sizes::fixed(64), Sizes::fixed(512)]);
    assert_eq!(settings.goals.pps_max, std::num::NonZeroU64::new(5000));
    assert_eq!(settings.goals.time_max, Duration::from_secs(9));
    assert!(matches!(settings.receiver.unwrap().far_end, FarEnd::Udp(_, Some(name)) if name == "x"));
    let Command::Search(args) = parse(&search("--size imix --rtt --quiet")).unwrap() else { panic!() };
    let settings = args.settings().unwrap();
    assert!(settings.sizes == ["imix".parse().unwrap()] && settings.send.quiet);
    let Command::Search(args) = parse(&search("--rtt --no-latency")).unwrap() else { panic!() };
    let settings = args.settings().unwrap();
    assert!(settings.receiver.is_none() && settings.send.rtt && settings.latency.is_zero());

    assert!(refused(&search("")).contains("--sink-memif"));
    assert!(refused(&search("--rtt --sink-udp 10.0.0.2:7")).contains("cannot be used with"));
    assert!(refused(&search("--rtt --sink-netns x")).contains("--sink-udp"));
    assert!(refused(&search("--rtt --count 5")).starts_with("--count: "));
    assert!(refused(&search("--rtt --rtt-counts /x")).starts_with("--rtt-counts: "));
    assert!(refused(&search("--rtt --rate 5mbit")).starts_with("--rate 5000kbit: "));
    assert!(
        refused(&search("--sink-udp 10.0.0.2:7 --threads 8 --flows 8 --rate-min 7"))
            .starts_with("--rate-min 7: ")
    );
    let replay = "search --interface eth0 --replay x.pcap --sink-udp 10.0.0.2:7";
    assert!(refused(replay).starts_with("--replay: "));
    assert!(refused(&search("--rtt --sizes 64,20")).starts_with("--sizes 20: "));
    assert!(refused(&search("--rtt --width 0.5")).starts_with("--width 0.5: "));
    assert!(refused(&search("--rtt --loss=-1")).starts_with("--loss -1: "));
    assert!(refused(&search("--rtt --loss=NaN")).starts_with("--loss NaN: "));
    assert!(refused(&search("--rtt --first-trial-seconds 2")).starts_with("--first-trial-seconds: "));
    assert!(refused(&search("--sink-memif /x --sink-ring-size 1000")).starts_with("--sink-ring-size: "));
}
