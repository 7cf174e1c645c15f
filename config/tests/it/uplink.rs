//! The file as a whole, workers and the uplink.

use std::time::Duration;

use peregrine_config::parse;
use peregrine_dataplane::plan::{Early, IdleMode, PlacementMode};

use crate::good::{GOOD, VTEP, refused, replaced};

#[test]
fn the_good_file_loads() {
    parse(GOOD, "t").unwrap();
}

#[test]
fn workers() {
    refused(
        &[
            ("core = 1", "core = -1", "workers[0].core = -1: must be a number from 0 to 1023"),
            ("core = 1", "core = 1024", "workers[0].core = 1024: must be a number from 0 to 1023"),
            ("core = 1", "core = 1.0", "workers[0].core = 1.0: must be a number from 0 to 1023"),
            ("core = 1", "", "workers[0].core: missing: must be a number from 0 to 1023"),
            (
                "[[workers]]\ncore = 1",
                "",
                "workers: missing: must be 1 to 31 [[workers]] tables, one for each core",
            ),
            (
                "[[workers]]\ncore = 1",
                "workers = []",
                "workers: 0 entries: must be 1 to 31 [[workers]] tables, one for each core",
            ),
            (
                "[[workers]]",
                "[workers]",
                "workers = {…}: must be 1 to 31 [[workers]] tables, one for each core",
            ),
        ],
        "",
    );
}

#[test]
fn the_interface_is_a_name_that_the_kernel_takes() {
    let rule = ": must be the name of an interface: 1 to 15 bytes, without spaces, '/' and ':'";
    refused(
        &[
            ("interface = \"eth0\"", "interface = \"\"", "uplink.interface = \"\""),
            ("interface = \"eth0\"", "interface = \"e/0\"", "uplink.interface = \"e/0\""),
            ("interface = \"eth0\"", "interface = \"e 0\"", "uplink.interface = \"e 0\""),
            ("interface = \"eth0\"", "interface = \"e:0\"", "uplink.interface = \"e:0\""),
            ("interface = \"eth0\"", "interface = \"e\\u0000\"", "uplink.interface = \"e\\0\""),
            ("interface = \"eth0\"", "interface = \"..\"", "uplink.interface = \"..\""),
            (
                "interface = \"eth0\"",
                "interface = \"a123456789012345\"",
                "uplink.interface = \"a123456789012345\"",
            ),
            ("interface = \"eth0\"", "interface = 0", "uplink.interface = 0"),
            ("interface = \"eth0\"", "", "uplink.interface: missing"),
        ],
        rule,
    );
}

#[test]
fn queues_are_all_or_a_list() {
    let rule = ": must be \"all\" or a list of different queue numbers from 0 to 4095, such as [0, 1]";
    refused(
        &[
            ("queues = \"all\"", "queues = \"some\"", "uplink.queues = \"some\""),
            ("queues = \"all\"", "queues = []", "uplink.queues = []"),
            ("queues = \"all\"", "queues = [0, 0]", "uplink.queues = [0, 0]"),
            ("queues = \"all\"", "queues = [4096]", "uplink.queues = [4096]"),
            ("queues = \"all\"", "queues = [-1]", "uplink.queues = [-1]"),
            ("queues = \"all\"", "queues = [\"0\"]", "uplink.queues = [\"0\"]"),
            ("queues = \"all\"", "queues = 1", "uplink.queues = 1"),
        ],
        rule,
    );
}

#[test]
fn vtep_addresses_are_unicast() {
    const GROUP: &str =
        "must be a VTEP's own address, not a multicast group: broadcast goes to each of `remotes` by itself";
    const LINK: &str =
        "must be an address that routers forward to: a link-local one means another host on each link";
    const MAPPED: &str = "must be an IPv4 address as such, without \"::ffff:\"";
    for (address, rule) in [
        ("127.0.0.1", VTEP),
        ("0.0.0.0", VTEP),
        ("0.1.2.3", VTEP),
        ("255.255.255.255", VTEP),
        ("192.0.2", VTEP),
        ("eth0", VTEP),
        ("", VTEP),
        ("::1", VTEP),
        ("::", VTEP),
        ("224.0.0.1", GROUP),
        ("ff02::1", GROUP),
        ("fe80::1", LINK),
        ("::ffff:192.0.2.9", MAPPED),
    ] {
        let bad = format!("\"{address}\"");
        for (line, key) in
            [("local = \"192.0.2.1\"", "uplink.local"), ("remotes = [\"192.0.2.2\", \"192.0.2.3\"]", "")]
        {
            let (instead, key) = match key {
                "" => (format!("remotes = [\"192.0.2.2\", {bad}]"), "networks[0].remotes[1]"),
                key => (format!("local = {bad}"), key),
            };
            let errors = parse(&replaced(line, &instead), "t").unwrap_err();
            assert_eq!(errors.to_string(), format!("t: {key} = {bad}: {rule}"));
        }
    }
}

#[test]
fn the_uplinks_numbers() {
    let ports = "must be two numbers from 1 to 65535 in order, such as [49152, 65535]";
    let power = "must be a power of two from 64 to 32768";
    let early = "must be true, false or \"if-possible\"";
    let mode = "must be \"require-zero-copy\", \"prefer-zero-copy\", \"copy\" or \"generic\"";
    for (line, instead, got, rule) in [
        ("port = 4789", "port = 0", "port = 0", "must be a number from 1 to 65535"),
        ("port = 4789", "port = 65536", "port = 65536", "must be a number from 1 to 65535"),
        ("port = 4789", "port = \"4789\"", "port = \"4789\"", "must be a number from 1 to 65535"),
        ("ttl = 64", "ttl = 0", "ttl = 0", "must be a number from 1 to 255"),
        ("ttl = 64", "ttl = 256", "ttl = 256", "must be a number from 1 to 255"),
        ("source_ports = [49152, 65535]", "source_ports = [2, 1]", "source_ports = [2, 1]", ports),
        ("source_ports = [49152, 65535]", "source_ports = [0, 1]", "source_ports = [0, 1]", ports),
        ("source_ports = [49152, 65535]", "source_ports = [1, 65536]", "source_ports = [1, 65536]", ports),
        ("source_ports = [49152, 65535]", "source_ports = [1]", "source_ports = [1]", ports),
        ("source_ports = [49152, 65535]", "source_ports = [[], {a=1}]", "source_ports = [[…], {…}]", ports),
        ("chunk_size = 2048", "chunk_size = 1024", "chunk_size = 1024", "must be 2048 or 4096"),
        ("ring_size = 2048", "ring_size = 32", "ring_size = 32", power),
        ("ring_size = 2048", "ring_size = 65536", "ring_size = 65536", power),
        ("ring_size = 2048", "ring_size = 100", "ring_size = 100", power),
        ("mode = \"copy\"", "mode = \"zero-copy\"", "mode = \"zero-copy\"", mode),
        ("early = false", "early = 1", "early = 1", early),
        ("early = false", "early = \"true\"", "early = \"true\"", early),
    ] {
        let errors = parse(&replaced(line, instead), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: uplink.{got}: {rule}"));
    }
}

#[test]
fn each_uplink_says_whether_urgent_frames_have_rings_of_their_own() {
    let several = [uplink(1, "early = true"), uplink(2, "early = \"if-possible\""), uplink(3, "")].concat();
    let plan = parse(&with_uplinks(&several), "t").unwrap();
    let early: Vec<Early> = plan.uplinks.iter().map(|uplink| uplink.early).collect();
    assert_eq!(early, [Early::On, Early::IfPossible, Early::Off]);
    assert_eq!(parse(GOOD, "t").unwrap().uplinks[0].early, Early::Off);
}

/// The good file with this instead of its uplink.
fn with_uplinks(tables: &str) -> String {
    let (before, rest) = GOOD.split_once("[uplink]").unwrap();
    let (_, after) = rest.split_once("[[networks]]").unwrap();
    format!("{before}{tables}\n[[networks]]{after}")
}

fn uplink(number: u8, more: &str) -> String {
    format!("[[uplink]]\ninterface = \"eth{number}\"\nlocal = \"198.51.100.{number}\"\n{more}\n")
}

#[test]
fn several_uplinks() {
    let plan = parse(&with_uplinks(&uplink(1, "")), "t").unwrap();
    assert_eq!(plan.uplinks.len(), 1);
    let two = uplink(1, "ttl = 5\nmode = \"copy\"") + &uplink(2, "port = 8472\nmode = \"generic\"");
    let plan = parse(&with_uplinks(&two), "t").unwrap();
    let all: Vec<_> =
        plan.uplinks.iter().map(|u| (u.interface.as_str(), u.local().to_string(), u.port, u.ttl)).collect();
    assert_eq!(
        all,
        [("eth1", "198.51.100.1".to_string(), 4789, 5), ("eth2", "198.51.100.2".to_string(), 8472, 64)]
    );
    let four: String = (1..=4).map(|number| uplink(number, "")).collect();
    assert_eq!(parse(&with_uplinks(&four), "t").unwrap().uplinks.len(), 4);
}

#[test]
fn what_uplinks_may_not_have_together() {
    let shared = "must be the same for all uplinks, whose sockets share memory";
    for (first, second, error) in [
        (
            "",
            "interface = \"eth1\"\nlocal = \"198.51.100.9\"".to_string(),
            "uplink[1].interface = \"eth1\": must be unique: uplink[0].interface is the same".to_string(),
        ),
        (
            "",
            "interface = \"eth9\"\nlocal = \"198.51.100.1\"".into(),
            "uplink[1].local = \"198.51.100.1\": must be unique: uplink[0].local is the same".into(),
        ),
        (
            "chunk_size = 4096",
            "interface = \"eth9\"\nlocal = \"198.51.100.9\"".into(),
            format!("uplink[1].chunk_size = 2048 (the default): {shared}: uplink[0].chunk_size = 4096"),
        ),
        (
            "",
            "interface = \"eth9\"\nlocal = \"198.51.100.9\"\nring_size = 64".into(),
            format!("uplink[1].ring_size = 64: {shared}: uplink[0].ring_size = 2048 (the default)"),
        ),
        (
            "mode = \"copy\"",
            "interface = \"eth9\"\nlocal = \"198.51.100.9\"\nmode = \"require-zero-copy\"".into(),
            format!("uplink[1].mode = \"require-zero-copy\": {shared}: uplink[0].mode = \"copy\""),
        ),
        (
            "",
            "interface = \"eth9\"\nlocal = \"192.0.2.3\"".into(),
            "networks[0].remotes[1] = \"192.0.2.3\": must be another host's address: uplink[1].local is the same"
                .into(),
        ),
        (
            "",
            "interface = \"eth9\"\nlocal = \"198.51.100.9\"\nlocl = 1".into(),
            "uplink[1].locl: unknown key: did you mean `local`?".into(),
        ),
    ] {
        let text = with_uplinks(&(uplink(1, first) + "[[uplink]]\n" + &second));
        assert_eq!(parse(&text, "t").unwrap_err().to_string(), format!("t: {error}"));
    }
    let rule = "must be a table: [uplink], or 1 to 4 of them: [[uplink]]";
    let five: String = (1..=5).map(|number| uplink(number, "")).collect();
    for (tables, error) in
        [(five.as_str(), format!("uplink: 5 entries: {rule}")), ("", format!("uplink: missing: {rule}"))]
    {
        assert_eq!(parse(&with_uplinks(tables), "t").unwrap_err().to_string(), format!("t: {error}"));
    }
    let none = format!("uplink = []\n{}", with_uplinks(""));
    assert_eq!(parse(&none, "t").unwrap_err().to_string(), format!("t: uplink: 0 entries: {rule}"));
    let mixed = format!("uplink = [1]\n{}", with_uplinks(""));
    assert_eq!(parse(&mixed, "t").unwrap_err().to_string(), "t: uplink[0] = 1: must be a table: [[uplink]]");
}

#[test]
fn several_workers_and_how_their_work_is_spread() {
    let two = GOOD.replace("core = 1", "core = 1\n[[workers]]\ncore = 2");
    let plan = parse(&two, "t").unwrap();
    assert_eq!(plan.workers.iter().map(|worker| worker.core.0).collect::<Vec<_>>(), [1, 2]);
    assert_eq!((plan.placement, plan.balance_threshold), (PlacementMode::Balanced, 85));
    let plan = parse(&format!("placement = \"static\"\n{two}"), "t").unwrap();
    assert_eq!(plan.placement, PlacementMode::Static);
    let plan = parse(&format!("placement = \"static-hashed\"\n{two}"), "t").unwrap();
    assert_eq!(plan.placement, PlacementMode::StaticHashed);
    let errors = parse(&format!("placement = \"falcon\"\n{GOOD}"), "t").unwrap_err();
    for percent in [49, 100] {
        let errors = parse(&format!("balance_threshold = {percent}\n{GOOD}"), "t").unwrap_err().to_string();
        assert_eq!(errors, format!("t: balance_threshold = {percent}: must be a number from 50 to 99"));
    }
    let rule = "must be \"balanced\", \"run-to-completion\", \"static\" or \"static-hashed\"";
    assert_eq!(errors.to_string(), format!("t: placement = \"falcon\": {rule}"));
    let many: String = (0..32).map(|core| format!("[[workers]]\ncore = {core}\n")).collect();
    let errors = parse(&GOOD.replace("[[workers]]\ncore = 1", &many), "t").unwrap_err();
    assert_eq!(
        errors.to_string(),
        "t: workers: 32 entries: must be 1 to 31 [[workers]] tables, one for each core"
    );
}

#[test]
fn workers_that_sleep() {
    let plan = parse(GOOD, "t").unwrap();
    assert_eq!((plan.workers[0].idle, plan.idle_after), (IdleMode::Busy, Duration::from_micros(50)));
    let adaptive = GOOD.replace("core = 1", "core = 1\nidle = \"adaptive\"");
    for (text, after) in [("1us", 1), ("200us", 200), ("2ms", 2000), ("1s", 1_000_000)] {
        let plan = parse(&format!("idle_after = \"{text}\"\n{adaptive}"), "t").unwrap();
        assert_eq!(
            (plan.workers[0].idle, plan.idle_after),
            (IdleMode::Adaptive, Duration::from_micros(after))
        );
    }
    let rule = "must be a duration from \"1us\" to \"1s\", such as \"50us\" or \"2ms\"";
    for bad in ["", "50", "us", "0us", "-1us", "1.5ms", "2s", "99999999999999999999us", "5 us", "µs"] {
        let errors = parse(&format!("idle_after = \"{bad}\"\n{GOOD}"), "t").unwrap_err().to_string();
        assert_eq!(errors, format!("t: idle_after = \"{bad}\": {rule}"));
    }
    let errors = parse(&adaptive.replace("adaptive", "lazy"), "t").unwrap_err().to_string();
    assert_eq!(errors, "t: workers[0].idle = \"lazy\": must be \"busy\" or \"adaptive\"");
}

#[test]
fn control_socket() {
    let rule = "must be an absolute path of at most 107 bytes, without \"..\"";
    for bad in ["", "control.sock", "@control", "/", "/run/../c"] {
        let text = format!("control_socket = \"{bad}\"\n{GOOD}");
        let errors = parse(&text, "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: control_socket = \"{bad}\": {rule}"));
    }
}

#[test]
fn what_is_just_right_loads() {
    for (line, instead) in [
        ("core = 1", "core = 0"),
        ("core = 1", "core = 1023"),
        ("interface = \"eth0\"", "interface = \"a12345678901234\""),
        ("queues = \"all\"", "queues = [4095, 0]"),
        ("port = 4789", "port = 49151"),
        ("ttl = 64", "ttl = 255"),
        ("source_ports = [49152, 65535]", "source_ports = [1, 1]"),
        ("ring_size = 2048", "ring_size = 64"),
        ("ring_size = 2048", "ring_size = 32768"),
        ("mode = \"copy\"", "mode = \"generic\""),
        ("vni = 42", "vni = 16777215"),
        ("mtu = 1450", "mtu = 576"),
        ("mtu = 1450", "mtu = 1728"),
        ("fdb_limit = 4096", "fdb_limit = 1_000_000"),
        // One network's addresses say nothing about another's.
        ("mac = \"02:00:00:00:00:03\"", "mac = \"02:00:00:00:00:01\"\naddresses = [\"10.42.0.1\"]"),
    ] {
        parse(&replaced(line, instead), "t").unwrap_or_else(|errors| panic!("{errors}"));
    }
    // The client in it needs larger buffers, or chains.
    let jumbo = replaced("mtu = 1450", "mtu = 9000").replace("buffer_size = 4096", "buffer_size = 9018");
    assert_eq!(parse(&jumbo, "t").unwrap().networks[0].mtu, 9000);
}
