//! Any text at all: no panic, no endless work, errors that are lines, and a plan only when it keeps its promises.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use peregrine_config::{ConfigErrors, parse};
use peregrine_dataplane::plan::{MemifRole, Plan};
use peregrine_dataplane::types::UplinkId;
use peregrine_memif::{ClientConfig, Secret};
use proptest::prelude::*;
use proptest::sample::{Index, select};

use crate::good::{GOOD, replaced};

/// What must hold whatever the text was.
fn checked(text: &str) -> Result<Plan, ConfigErrors> {
    let result = parse(text, "any\norigin");
    match &result {
        Ok(plan) => promises(plan),
        Err(errors) => {
            assert!(!errors.list().is_empty());
            let told = errors.to_string();
            let lines: Vec<&str> = told.split('\n').collect();
            assert_eq!(lines.len(), errors.list().len() + usize::from(errors.unlisted() > 0), "{told}");
            for line in lines {
                assert!(line.starts_with("any\\u{a}origin:"), "{line:?}");
                assert!(!line.chars().any(|c| c.is_control() || c == '\u{2028}'), "{line:?}");
            }
        }
    }
    result
}

fn promises(plan: &Plan) {
    assert_eq!(plan.workers.len(), 1);
    assert!(!plan.networks.is_empty());
    assert!((1..=UplinkId::LIMIT).contains(&plan.uplinks.len()));
    let room = plan.uplinks[0].chunk_size - 256 - 64;
    for network in plan.networks.values() {
        assert!(u32::from(network.mtu) <= room && network.vni.get() != 0);
        assert!(network.static_macs.iter().all(|fixed| network.remotes.contains(&fixed.remote)));
        assert!(plan.uplinks.iter().all(|uplink| !network.remotes.contains(&uplink.local())));
    }
    let distinct = |count: usize| assert_eq!(count, plan.endpoints.len());
    assert!(plan.endpoints.values().all(|e| plan.network(e.network).is_some()));
    distinct(plan.endpoints.values().map(|e| &e.name).collect::<HashSet<_>>().len());
    distinct(plan.endpoints.values().map(|e| (e.network, e.mac)).collect::<HashSet<_>>().len());
    distinct(
        plan.endpoints
            .values()
            .map(|e| (&e.port.memif().unwrap().socket, e.port.memif().unwrap().id))
            .collect::<HashSet<_>>()
            .len(),
    );
    let mut sockets = HashMap::new();
    for endpoint in plan.endpoints.values() {
        let memif = &endpoint.port.memif().unwrap();
        assert!((1..=8).contains(&memif.queue_pairs));
        let once = match memif.role {
            MemifRole::Server { mode, owner, group, memory_bytes_max, .. } => {
                assert!((1 << 20..=4 << 30).contains(&memory_bytes_max));
                assert!(memif.socket.path().is_some() == mode.is_some());
                Some((mode, owner, group))
            }
            MemifRole::Client { ring_log2, buffer_bytes, .. } => {
                let mtu = plan.network(endpoint.network).unwrap().mtu;
                assert!(memif.chains || buffer_bytes >= u32::from(mtu) + 18);
                let (queue_pairs, secret) = (memif.queue_pairs, Secret::new(&memif.secret).unwrap());
                let config =
                    ClientConfig { ring_log2, buffer_bytes, queue_pairs, secret, ..Default::default() };
                config.check().unwrap();
                None
            }
        };
        assert_eq!(*sockets.entry(&memif.socket).or_insert(once), once);
    }
}

/// Pieces that TOML, and this format, are made of.
const PIECES: [&str; 34] = [
    "[",
    "]",
    "[[",
    "]]",
    "{",
    "}",
    "=",
    ",",
    ".",
    "\n",
    "\"",
    "'",
    "\"\"\"",
    "#",
    " ",
    "-1",
    "0",
    "42",
    "1e9",
    "nan",
    "true",
    "1979-05-27",
    "\"x\"",
    "networks",
    "endpoints",
    "uplink",
    "workers",
    "memif",
    "name",
    "vni",
    "remotes",
    "static_macs",
    "\\u0000",
    "\u{2028}",
];

/// What a mutation does at a place.
#[derive(Clone, Debug)]
enum Change {
    Insert(String),
    Delete(usize),
    Repeat(usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        select(&PIECES[..]).prop_map(|piece| Change::Insert(piece.to_owned())),
        any::<char>().prop_map(|c| Change::Insert(c.to_string())),
        (1usize..40).prop_map(Change::Delete),
        (1usize..200).prop_map(Change::Repeat),
    ]
}

fn mutated(text: &str, changes: &[(Index, Change)]) -> String {
    let mut chars: Vec<char> = text.chars().collect();
    for (at, change) in changes {
        let at = at.index(chars.len() + 1);
        match change {
            Change::Insert(piece) => drop(chars.splice(at..at, piece.chars())),
            Change::Delete(count) => drop(chars.drain(at..(at + count).min(chars.len()))),
            Change::Repeat(count) => {
                let again: Vec<char> = chars[at..(at + count).min(chars.len())].to_vec();
                chars.splice(at..at, again);
            }
        }
    }
    chars.into_iter().collect()
}

/// A good file, with one key's value replaced by any TOML value: this gets past the parser and into the checks.
fn another_value() -> impl Strategy<Value = String> {
    let lines = GOOD.lines().count();
    let value = prop_oneof![
        any::<i64>().prop_map(|n| n.to_string()),
        any::<f64>().prop_map(|f| if f.is_finite() { format!("{f:?}") } else { "inf".to_owned() }),
        any::<String>().prop_map(|s| toml_text(&s)),
        proptest::collection::vec(any::<i64>(), 0..12).prop_map(|list| format!("{list:?}")),
        select(&["true", "{}", "{ a = 1 }", "[[[]]]", "1979-05-27T07:32:00Z", "[{}, {}]"][..])
            .prop_map(str::to_owned),
    ];
    (0..lines, value).prop_map(|(place, value)| {
        let swap = |(i, line): (usize, &str)| match line.split_once(" = ") {
            Some((key, _)) if i == place => format!("{key} = {value}\n"),
            _ => format!("{line}\n"),
        };
        GOOD.lines().enumerate().map(swap).collect()
    })
}

fn toml_text(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        write!(quoted, "\\U{:08x}", u32::from(c)).unwrap();
    }
    quoted + "\""
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_text(text in any::<String>()) {
        let _ = checked(&text);
    }

    #[test]
    fn any_pieces(pieces in proptest::collection::vec(select(&PIECES[..]), 0..60)) {
        let _ = checked(&pieces.concat());
    }

    #[test]
    fn mutated_files(changes in proptest::collection::vec((any::<Index>(), change()), 1..6)) {
        let _ = checked(&mutated(GOOD, &changes));
    }

    #[test]
    fn other_values(text in another_value()) {
        let result = checked(&text);
        if let Err(errors) = result {
            prop_assert!(errors.list().iter().all(|error| error.key().is_some()), "{errors}");
        }
    }
}

#[test]
fn every_beginning_of_a_good_file() {
    for (end, _) in GOOD.char_indices() {
        let _ = checked(&GOOD[..end]);
    }
}

#[test]
fn deep_nesting_is_refused_by_the_parser_and_not_by_the_stack() {
    for depth in [10, 79, 81, 100_000] {
        let _ = checked(&format!("x = {}{}", "[".repeat(depth), "]".repeat(depth)));
        let _ = checked(&format!("x = {}{}", "{x=".repeat(depth), "}".repeat(depth)));
        let _ = checked(&format!("x{} = 1", ".x".repeat(depth)));
        let _ = checked(&format!("[uplink{}]", ".x".repeat(depth)));
        let _ = checked(&format!("[[networks{}]]", ".x".repeat(depth)));
    }
    // Dotted keys within inline tables: each level of the one holds as many levels of the other as are allowed.
    let dotted = format!("queues{}", ".x".repeat(78));
    for levels in [1, 20, 78] {
        let open = format!("{{{dotted} = ").repeat(levels);
        let _ = checked(&format!("[uplink]\n{dotted} = {open}1{}", "}".repeat(levels)));
    }
}

#[test]
fn a_file_at_its_limits_loads_and_beyond_them_does_not() {
    let mut text =
        String::from("[[workers]]\ncore = 1\n[uplink]\ninterface = \"eth0\"\nlocal = \"192.0.2.1\"\n");
    for i in 1..=4096 {
        writeln!(text, "[[networks]]\nname = \"n{i}\"\nvni = {i}\nfdb_limit = 1").unwrap();
    }
    for i in 0..65534 {
        let mac = format!("02:00:00:00:{:02x}:{:02x}", i >> 8, i & 0xff);
        writeln!(text, "[[endpoints]]\nname = \"e{i}\"\nnetwork = \"n{}\"\nmac = \"{mac}\"", i % 4096 + 1)
            .unwrap();
        writeln!(text, "memif = {{ socket = \"/run/m\", id = {i} }}").unwrap();
    }
    let plan = checked(&text).unwrap();
    assert_eq!((plan.networks.len(), plan.endpoints.len()), (4096, 65534));
    assert_eq!(plan.endpoints[65533].network.index(), 65533 % 4096);

    text.push_str("[[endpoints]]\nname = \"one\"\nnetwork = \"n1\"\nmac = \"02:01:00:00:00:00\"\nmemif.socket = \"@x\"\n");
    text.push_str("[[networks]]\nname = \"more\"\nvni = 5000\n");
    let errors = checked(&text).unwrap_err().to_string();
    let want = "any\\u{a}origin: networks: 4097 entries: must be a list of 1 to 4096 tables: [[networks]]\n\
        any\\u{a}origin: endpoints: 65535 entries: must be a list of at most 65534 tables: [[endpoints]]";
    assert_eq!(errors, want);

    // As many mistakes as endpoints: the first are listed, the others counted.
    let errors = checked(&text.replace("network = \"n", "network = \"m")).unwrap_err();
    assert_eq!(errors.list().len(), ConfigErrors::LISTED_MAX);
    assert_eq!(errors.unlisted(), 65535 + 2 - ConfigErrors::LISTED_MAX);
}

#[test]
fn lists_within_a_network_are_bounded() {
    let remotes = |count: u32| {
        let list: Vec<String> = (0..count).map(|i| format!("\"10.0.{}.{}\"", i >> 8, i & 0xff)).collect();
        replaced("vni = 43", &format!("vni = 43\nremotes = [{}]", list.join(",")))
    };
    assert_eq!(checked(&remotes(1024)).unwrap().networks[1].remotes.len(), 1024);
    let errors = checked(&remotes(1025)).unwrap_err().to_string();
    assert!(errors.contains("networks[1].remotes: 1025 entries: must be a list of at most 1024"), "{errors}");

    let mut many = String::from(GOOD);
    for network in 0..65 {
        let list: Vec<String> =
            (0..1024).map(|i| format!("\"10.{network}.{}.{}\"", i >> 8, i & 0xff)).collect();
        writeln!(
            many,
            "[[networks]]\nname = \"m{network}\"\nvni = {}\nremotes = [{}]",
            100 + network,
            list.join(",")
        )
        .unwrap();
    }
    let errors = checked(&many).unwrap_err().to_string();
    let want = "networks[*].remotes = 66562 in total: must be at most 65535 different ones over all networks";
    assert_eq!(errors, format!("any\\u{{a}}origin: {want}"));
}
