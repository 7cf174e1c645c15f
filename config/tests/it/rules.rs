//! `[[rules]]` alone, for a daemon that runs.

use std::ops::RangeInclusive;

use peregrine_config::{ConfigErrors, RuleTable, RulesFile, parse, rules, rules_file, rules_toml, written};
use peregrine_dataplane::plan::{DscpSet, Plan, Prefix, RulePlan};
use peregrine_dataplane::types::{Class, EndpointId, NetworkId};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::select;

use crate::good::GOOD;

const TOP: &str = "classes = [\"gold\", \"urgent\", \"normal\"]\ntrusted_remotes = [\"192.0.2.2\"]\n";

/// The good file, whose second network is called `green`.
fn running() -> Plan {
    parse(&format!("{TOP}{GOOD}"), "t").unwrap_or_else(|errors| panic!("{errors}"))
}

fn file(text: &str) -> Result<RulesFile, ConfigErrors> {
    let name = format!("peregrine-rules-{}-{:?}.toml", std::process::id(), std::thread::current().id());
    let path = std::env::temp_dir().join(name);
    std::fs::write(&path, text).unwrap();
    let file = rules_file(&path);
    std::fs::remove_file(&path).unwrap();
    file
}

fn lines(errors: &ConfigErrors) -> Vec<String> {
    errors.list().iter().map(ToString::to_string).collect()
}

/// A file's rules for what runs.
fn read(text: &str, plan: &Plan) -> Result<Vec<RulePlan>, Vec<String>> {
    let file = file(text).map_err(|errors| lines(&errors))?;
    rules(toml::Value::Array(file.rules), "t", plan).map_err(|errors| lines(&errors))
}

#[test]
fn rules_alone_are_what_they_are_in_a_whole_file() {
    let text = "[[rules]]\nclass = \"gold\"\nendpoint = \"web\"\ndscp = [46, \"40-43\"]\n\n\
                [[rules]]\nclass = \"normal\"\nprotocol = \"udp\"\nport = \"5000-5999\"\nouter_dscp = 46\n";
    let whole = parse(&format!("{TOP}{GOOD}\n{text}"), "t").unwrap();
    assert_eq!(whole.classes.rules.len(), 2);
    assert_eq!(read(text, &running()), Ok(whole.classes.rules));
    assert_eq!(read("rules = []", &running()), Ok(vec![]));
}

#[test]
fn what_is_wrong_is_told_as_in_a_whole_file() {
    let plan = running();
    let rule = |text: &str| read(&format!("[[rules]]\nclass = \"gold\"\n{text}"), &plan).unwrap_err();
    assert_eq!(
        rule("network = \"gren\"\nport = 70000"),
        [
            "rules[0].network = \"gren\": must be the name of a network: did you mean \"green\"?",
            "rules[0].port = 70000: must be a number from 0 to 65535, or a range such as \"5000-5999\"",
        ]
    );
    assert_eq!(
        rule("[[rules]]\nclass = \"golden\"\nprot = 1"),
        [
            "rules[1].prot: unknown key: did you mean `port`?",
            "rules[1].class = \"golden\": must be the name of a class: \"gold\", \"urgent\", \"normal\"",
        ]
    );
    let mut nobody = running();
    nobody.classes.trusted.clear();
    let outer = read("[[rules]]\nclass = \"gold\"\nouter_dscp = 1", &nobody).unwrap_err();
    assert!(outer[0].starts_with("rules[0].outer_dscp = 1: must be left out"), "{outer:?}");
    let many = "[[rules]]\nclass = \"gold\"\n".repeat(1025);
    assert_eq!(
        read(&many, &plan).unwrap_err(),
        ["rules: 1025 entries: must be a list of at most 1024 tables: [[rules]]"]
    );
}

#[test]
fn a_file_of_rules_has_nothing_else() {
    let errors = |text: &str| file(text).unwrap_err().to_string();
    let more = errors("rules = []\n[[networks]]\n");
    assert!(more.ends_with("networks: unknown key: must be one of rules"), "{more}");
    let nothing = errors("# nothing\n");
    let wanted = "rules: missing: must be a list of tables, [[rules]], and nothing else; rules = [] for none";
    assert!(nothing.ends_with(wanted), "{nothing}");
    let number = errors("rules = 7");
    assert!(number.contains("rules = 7: must be a list of tables"), "{number}");
    let syntax = errors("[[rules]]\nclass = \n");
    assert!(syntax.contains(".toml:2:"), "{syntax}");
    assert!(rules_file("/nonexistent/x.toml".as_ref()).unwrap_err().to_string().contains("cannot be read"));
}

fn prefix(v4: bool) -> impl Strategy<Value = Prefix> {
    let v4s = ["0.0.0.0/0", "10.0.0.0/8", "10.42.0.1", "10.42.0.0/31"];
    let v6s = ["::/0", "fd00::/8", "fd00::1", "2001:db8:0:1::/64"];
    select(if v4 { v4s } else { v6s }.to_vec()).prop_map(|text| text.parse().unwrap())
}

fn ports() -> impl Strategy<Value = RangeInclusive<u16>> {
    (any::<u16>(), any::<u16>()).prop_map(|(a, b)| if a % 3 == 0 { a..=a } else { a.min(b)..=a.max(b) })
}

fn dscps() -> impl Strategy<Value = DscpSet> {
    any::<u64>().prop_map(|bits| DscpSet(bits.max(1)))
}

/// Any rule that a file can have.
fn rule() -> impl Strategy<Value = RulePlan> {
    let place = (option::of(0..2u16), any::<bool>());
    let dscps = (option::of(dscps()), option::of(dscps()));
    let ports = (option::of(any::<u8>()), option::of(ports()), option::of(ports()), option::of(ports()));
    let prefixes = any::<bool>()
        .prop_flat_map(|v4| [option::of(prefix(v4)), option::of(prefix(v4)), option::of(prefix(v4))]);
    (0..3u8, place, dscps, ports, prefixes).prop_map(|(class, place, dscps, ports, prefixes)| {
        let (network, with_endpoint) = place;
        let (protocol, source_port, destination_port, port) = ports;
        let protocol = protocol.map(|number| [number, 6, 17, 132][usize::from(number % 4)]);
        let has_ports = protocol.is_none_or(|number| [6, 17, 132].contains(&number));
        let is_within_reach = source_port.is_none() || destination_port.is_none();
        let [source, destination, address] = prefixes;
        let endpoint = network.filter(|network| with_endpoint && *network == 0).map(|_| EndpointId(0));
        RulePlan {
            class: Class(class),
            network: network.map(NetworkId),
            endpoint,
            dscp: dscps.0,
            protocol,
            source_port: source_port.filter(|_| has_ports),
            destination_port: destination_port.filter(|_| has_ports),
            port: port.filter(|_| has_ports && is_within_reach),
            source,
            destination,
            address,
            outer_dscp: dscps.1,
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    /// By way of a file, and of the values in it.
    #[test]
    fn what_is_written_is_read_as_the_same(wanted in proptest::collection::vec(rule(), 0..6)) {
        let mut plan = running();
        plan.classes.rules = wanted.clone();
        let tables: Vec<RuleTable<'_>> = written(&plan);
        let text = rules_toml(&tables);
        prop_assert_eq!(&read(&text, &plan), &Ok(wanted), "{}", &text);
        let again: Vec<RuleTable<'_>> =
            file(&text).unwrap().rules.into_iter().map(|rule| rule.try_into().unwrap()).collect();
        prop_assert_eq!(again, tables);
    }
}
