//! Priority classes and rules.

use peregrine_config::{parse, warnings};
use peregrine_dataplane::plan::{ClassPlan, ClassesPlan, DscpSet, Plan, RulePlan, WorkOrder};
use peregrine_dataplane::types::{Class, EndpointId, NetworkId};

use crate::good::GOOD;

/// The good file with something before its first table, and something behind its last.
fn text(top: &str, rules: &str) -> String {
    format!("{top}\n{GOOD}\n{rules}")
}

fn plan(top: &str, rules: &str) -> Plan {
    parse(&text(top, rules), "t").unwrap_or_else(|errors| panic!("{errors}"))
}

fn errors(top: &str, rules: &str) -> Vec<String> {
    match parse(&text(top, rules), "t") {
        Ok(plan) => panic!("accepted: {:?}", plan.classes),
        Err(errors) => errors.list().iter().map(ToString::to_string).collect(),
    }
}

/// One rule with this in it, and the one error that it gives.
fn error(rule: &str) -> String {
    let mut errors =
        errors("trusted_remotes = [\"192.0.2.2\"]", &format!("[[rules]]\nclass = \"urgent\"\n{rule}"));
    assert_eq!(errors.len(), 1, "{rule}: {errors:?}");
    errors.remove(0)
}

fn said(plan: &Plan) -> Vec<String> {
    warnings(plan).iter().map(ToString::to_string).collect()
}

#[test]
fn without_a_word_there_are_two_classes_and_all_is_normal() {
    let plan = plan("", "");
    let names: Vec<&str> = plan.classes.list.iter().map(|class| class.name.as_str()).collect();
    assert_eq!(names, ["urgent", "normal"]);
    assert_eq!(plan.classes, ClassesPlan::default());
    assert!(plan.networks.values().all(|network| network.class == Class::NORMAL));
}

#[test]
fn classes_have_names_and_networks_have_classes() {
    let top = "classes = [\"gold\", \"silver\", \"normal\", \"rest\"]";
    let green = |class: &str| text(top, "").replace("vni = 43", &format!("vni = 43\nclass = \"{class}\""));
    let plan = parse(&green("gold"), "t").unwrap();
    assert_eq!(plan.classes.default, Class(2));
    assert_eq!(plan.networks.values().map(|network| network.class).collect::<Vec<_>>(), [Class(2), Class(0)]);
    let wrong = parse(&green("bronze"), "t").unwrap_err().to_string();
    let known = "\"gold\", \"silver\", \"normal\", \"rest\"";
    assert_eq!(wrong, format!("t: networks[1].class = \"bronze\": must be the name of a class: {known}"));
    let count =
        "must be a list of 1 to 4 names or tables, the most urgent first, such as [\"urgent\", \"normal\"]";
    for (top, wanted) in [
        ("classes = [\"a\", \"b\", \"c\", \"d\", \"normal\"]", format!("classes: 5 entries: {count}")),
        ("classes = []", format!("classes: 0 entries: {count}")),
        ("classes = \"urgent\"", format!("classes = \"urgent\": {count}")),
        (
            "classes = [\"normal\", \"normal\"]",
            "classes[1] = \"normal\": must be unique: classes[0] is the same".into(),
        ),
        (
            "classes = [\"normal\", \"a b\"]",
            "classes[1] = \"a b\": must be 1 to 63 letters, digits, '_', '.' or '-'".into(),
        ),
        (
            "classes = [\"gold\"]",
            "default_class: missing: must be the name of a class, because no class is called \"normal\""
                .into(),
        ),
        (
            "default_class = \"gold\"",
            "default_class = \"gold\": must be the name of a class: \"urgent\", \"normal\"".into(),
        ),
    ] {
        assert_eq!(errors(top, ""), [wanted]);
    }
    let only = parse(&text("classes = [\"gold\"]\ndefault_class = \"gold\"", ""), "t").unwrap();
    assert_eq!(only.classes.default, Class(0));
}

#[test]
fn a_class_may_say_more_than_its_name() {
    let top = r#"
        urgent_quota = 1024
        classes = [
            { name = "voice", order = "sync", share = 60, dscp = 46 },
            { name = "video", order = "batch", share = 40, dscp = 63 },
            "web",
            { name = "normal" },
        ]
    "#;
    let found = plan(top, "").classes;
    let want = vec![
        ClassPlan { share: 60, dscp: 46, ..ClassPlan::new("voice") },
        ClassPlan { order: WorkOrder::Batch, share: 40, dscp: 63, ..ClassPlan::new("video") },
        ClassPlan::new("web"),
        ClassPlan::new("normal"),
    ];
    assert_eq!((found.list, found.urgent_quota, found.default), (want.clone(), 1024, Class(3)));
    let long = r#"
        [[classes]]
        name = "voice"
        order = "fifo"
        [[classes]]
        name = "normal"
        share = 100
        dscp = 0
    "#;
    let found = plan("urgent_quota = 1", long).classes;
    let want = [
        ClassPlan { order: WorkOrder::Fifo, ..ClassPlan::new("voice") },
        ClassPlan { share: 100, ..ClassPlan::new("normal") },
    ];
    assert_eq!((&found.list[..], found.urgent_quota), (&want[..], 1));
}

#[test]
fn what_a_class_cannot_say_is_refused() {
    let one = |entry: &str| format!("classes = [{{ name = \"a\", {entry} }}, \"normal\"]");
    let number = |last| format!("must be a number from 0 to {last}");
    for (entry, key, wanted) in [
        ("order = \"Sync\"", "classes[0].order = \"Sync\"", "must be \"sync\", \"batch\" or \"fifo\"".into()),
        ("order = 1", "classes[0].order = 1", "must be \"sync\", \"batch\" or \"fifo\"".into()),
        ("share = 101", "classes[0].share = 101", number(100)),
        ("share = -1", "classes[0].share = -1", number(100)),
        ("share = \"20%\"", "classes[0].share = \"20%\"", number(100)),
        ("dscp = 64", "classes[0].dscp = 64", number(63)),
        ("dscp = \"ef\"", "classes[0].dscp = \"ef\"", number(63)),
        ("weight = 1", "classes[0].weight", "unknown key: must be one of name, order, share, dscp".into()),
        ("shares = 1", "classes[0].shares", "unknown key: did you mean `share`?".into()),
    ] {
        let colon = format!("{key}: {wanted}");
        assert_eq!(errors(&one(entry), ""), [colon]);
    }
    let entry = "must be a name, or a table with the key name";
    let name = "must be 1 to 63 letters, digits, '_', '.' or '-'";
    for (top, wanted) in [
        ("classes = [7, \"normal\"]", format!("classes[0] = 7: {entry}")),
        ("classes = [[\"a\"], \"normal\"]", format!("classes[0] = [\"a\"]: {entry}")),
        ("classes = [{ share = 1 }, \"normal\"]", format!("classes[0].name: missing: {name}")),
        ("classes = [{ name = 1 }, \"normal\"]", format!("classes[0].name = 1: {name}")),
        (
            "classes = [{ name = \"normal\" }, \"normal\"]",
            "classes[1] = \"normal\": must be unique: classes[0].name is the same".into(),
        ),
        (
            "classes = [\"normal\", { name = \"normal\" }]",
            "classes[1].name = \"normal\": must be unique: classes[0] is the same".into(),
        ),
        (
            "classes = [\"a\", { name = \"normal\", order = \"fifo\" }]",
            "classes[1].order = \"fifo\": must be left out: the last class has nobody behind it".into(),
        ),
        (
            "classes = [{ name = \"a\", share = 60 }, { name = \"normal\", share = 41 }]",
            "classes[*].share = 101 in total: must be at most 100 over all classes".into(),
        ),
        ("urgent_quota = 0", "urgent_quota = 0: must be a number from 1 to 1024".into()),
        ("urgent_quota = 1025", "urgent_quota = 1025: must be a number from 1 to 1024".into()),
        ("urgent_quota = true", "urgent_quota = true: must be a number from 1 to 1024".into()),
    ] {
        assert_eq!(errors(top, ""), [wanted]);
    }
    // Other mistakes in a class do not make its name unknown to rules.
    let rules = "[[rules]]\nclass = \"a\"\ndscp = 46";
    assert_eq!(errors(&one("dscp = 99"), rules), [format!("classes[0].dscp = 99: {}", number(63))]);
}

#[test]
fn a_rule_is_what_it_says() {
    let top = "trusted_remotes = [\"192.0.2.3\"]";
    let plan = plan(
        top,
        r#"
        [[rules]]
        class = "urgent"
        network = "green"
        endpoint = "cache"
        dscp = [46, "0-1"]
        protocol = "udp"
        source_port = 5201
        destination_port = "0-65535"
        port = "5201-5202"
        source = "10.42.0.0/16"
        destination = "10.0.0.1"
        address = "0.0.0.0/0"
        outer_dscp = "62-63"
        [[rules]]
        class = "normal"
        endpoint = "database"
        protocol = 47
        dscp = 0
        "#,
    );
    let prefix = |text: &str| Some(text.parse().unwrap());
    let full = RulePlan {
        class: Class::URGENT,
        network: Some(NetworkId(1)),
        endpoint: Some(EndpointId(2)),
        dscp: Some(DscpSet::from_iter([0, 1, 46])),
        protocol: Some(17),
        source_port: Some(5201..=5201),
        destination_port: Some(0..=65535),
        port: Some(5201..=5202),
        source: prefix("10.42.0.0/16"),
        destination: prefix("10.0.0.1/32"),
        address: prefix("0.0.0.0/0"),
        outer_dscp: Some(DscpSet(3 << 62)),
    };
    let short = RulePlan {
        network: Some(NetworkId(0)),
        endpoint: Some(EndpointId(1)),
        dscp: Some(DscpSet(1)),
        protocol: Some(47),
        ..RulePlan::any(Class::NORMAL)
    };
    assert_eq!(plan.classes.rules, [full, short]);
    assert_eq!(plan.classes.trusted, [std::net::IpAddr::from([192, 0, 2, 3])]);
}

#[test]
fn values_that_cannot_be_are_refused() {
    let dscp = "must be a number from 0 to 63, a range such as \"40-47\", or a list of both";
    let port = "must be a number from 0 to 65535, or a range such as \"5000-5999\"";
    let protocol = "must be \"tcp\", \"udp\", \"icmp\", \"icmpv6\", \"sctp\" or a number from 0 to 255";
    let address = "must be an IP address or a prefix, such as \"10.42.0.0/16\" or \"fd00::/8\"";
    for (key, values, rule) in [
        ("dscp", vec!["64", "-1", "\"ef\"", "\"47-40\"", "\"0-64\"", "[]", "[46, 64]", "true"], dscp),
        ("outer_dscp", vec!["64", "\"1-\""], dscp),
        (
            "port",
            vec!["65536", "-1", "\"5-4\"", "\"1-65536\"", "\"1-2-3\"", "\"+1-2\"", "[1, 2]", "\"http\""],
            port,
        ),
        ("source_port", vec!["65536"], port),
        ("destination_port", vec!["\"-\""], port),
        ("protocol", vec!["256", "-1", "\"UDP\"", "\"\"", "[\"udp\"]"], protocol),
        ("source", vec!["\"10.0.0\"", "10", "\"10.0.0.0/\"", "\"\""], address),
        ("address", vec!["\"10.0.0.1/33\""], "must be a prefix of at most 32 bits"),
        ("destination", vec!["\"fd00::1/8\""], "must be a prefix whose other bits are zero: \"fd00::/8\""),
    ] {
        for value in values {
            assert_eq!(error(&format!("{key} = {value}")), format!("rules[0].{key} = {value}: {rule}"));
        }
    }
}

#[test]
fn names_that_nothing_has_are_refused() {
    assert_eq!(
        error("network = \"blu\""),
        "rules[0].network = \"blu\": must be the name of a network: did you mean \"blue\"?"
    );
    assert_eq!(
        error("endpoint = \"nobody\""),
        "rules[0].endpoint = \"nobody\": must be the name of an endpoint, such as \"cache\", \"database\", \"log\", \"store\", \"web\""
    );
    assert_eq!(
        errors("", "[[rules]]\nclass = \"urgant\""),
        ["rules[0].class = \"urgant\": must be the name of a class: \"urgent\", \"normal\""]
    );
    assert_eq!(errors("", "[[rules]]"), ["rules[0].class: missing: must be the name of a class"]);
    assert!(error("prot = 6").starts_with("rules[0].prot: unknown key: "));
}

#[test]
fn contradictions_are_refused() {
    for (rule, wanted) in [
        (
            "network = \"green\"\nendpoint = \"web\"",
            "rules[0].network = \"green\": must be left out, or the endpoint's network, \"blue\"",
        ),
        (
            "protocol = \"icmp\"\nport = 7",
            "rules[0].port = 7: must be left out: protocol = \"icmp\" has no ports",
        ),
        (
            "source = \"10.0.0.0/8\"\ndestination = \"fd00::/8\"",
            "rules[0].destination = \"fd00::/8\": must be of the same IP version as source: a packet has one",
        ),
        (
            "source_port = 1\ndestination_port = \"2-3\"\nport = \"4-5\"",
            "rules[0].port = \"4-5\": must be within reach of source_port or destination_port",
        ),
    ] {
        assert_eq!(error(rule), wanted);
    }
    assert_eq!(
        errors("", "[[rules]]\nclass = \"urgent\"\nouter_dscp = 46"),
        [
            "rules[0].outer_dscp = 46: must be left out: it is believed only from trusted_remotes, and there are none"
        ]
    );
    assert_eq!(
        errors("trusted_remotes = [\"192.0.2.77\"]", ""),
        ["trusted_remotes[0] = \"192.0.2.77\": must be one of the remotes of a network"]
    );
}

#[test]
fn all_mistakes_come_at_once() {
    let rules = "[[rules]]\nclass = 1\nport = \"x\"\n[[rules]]\nnetwork = \"x\"\n[[rules]]\nclass = \"normal\"\nprotocol = 300";
    let keys = errors("default_class = \"x\"", rules);
    let keys: Vec<&str> = keys.iter().map(|error| error.split([' ', ':']).next().unwrap()).collect();
    let wanted = [
        "default_class",
        "rules[0].class",
        "rules[0].port",
        "rules[1].class",
        "rules[1].network",
        "rules[2].protocol",
    ];
    assert_eq!(keys, wanted);
}

#[test]
fn there_are_at_most_1024_rules() {
    let rules = |count| "[[rules]]\nclass = \"urgent\"\n".repeat(count);
    assert_eq!(plan("", &rules(1024)).classes.rules.len(), 1024);
    assert_eq!(
        errors("", &rules(1025)),
        ["rules: 1025 entries: must be a list of at most 1024 tables: [[rules]]"]
    );
}

#[test]
fn a_rule_that_is_never_reached_gives_a_warning_that_names_both() {
    let rules = r#"
        [[rules]]
        class = "urgent"
        protocol = "udp"
        port = "5000-5999"
        [[rules]]
        class = "normal"
        protocol = "udp"
        network = "blue"
        source_port = 5201
        [[rules]]
        class = "urgent"
        protocol = "udp"
        source_port = "5999-6000"
        [[rules]]
        class = "urgent"
        protocol = "udp"
        port = 5000
    "#;
    let hidden = "no packet reaches it: rules[0] stands before it and matches all that it does";
    assert_eq!(
        said(&plan("", rules)),
        [format!("rules[1]: {hidden}, for another class"), format!("rules[3]: {hidden}, for the same class"),]
    );
    assert_eq!(warnings(&plan("", "")), []);
}

#[test]
fn with_early_what_the_driver_cannot_decide_gives_a_warning() {
    let rules = r#"
        [[rules]]
        class = "urgent"
        network = "blue"
        protocol = "udp"
        port = 5201
        [[rules]]
        class = "urgent"
        address = "10.42.0.0/24"
    "#;
    assert!(GOOD.contains("early = false"));
    let early = |rules: &str| {
        let text = text("", rules).replace("early = false", "early = \"if-possible\"");
        said(&parse(&text, "t").unwrap())
    };
    let warned = early(rules);
    assert_eq!(warned.len(), 1, "{warned:?}");
    assert!(warned[0].starts_with("rules[1]: early: its packets, or some of them, come on the normal"));
    assert_eq!(said(&plan("", rules)), [""; 0], "without early nobody promised anything");
    assert_eq!(early(""), [NOTHING_IS.replace("CLASS", "classes[0]: nothing is \"urgent\"")]);
    // A network's class, and a rule that may take some of its packets.
    let green = text("", "[[rules]]\nclass = \"normal\"\ndscp = 8")
        .replace("early = false", "early = true")
        .replace("vni = 43", "vni = 43\nclass = \"urgent\"");
    assert_eq!(
        said(&parse(&green, "t").unwrap()),
        [
            "networks[1].class: early: its packets come on the normal rings, because a rule for another class stands before it"
        ]
    );
}

const NOTHING_IS: &str = "CLASS: no rule that is reached and no network names it, and it is not the default";

#[test]
fn a_class_that_nothing_gets_into_gives_a_warning() {
    let four = "classes = [\"a\", \"b\", \"normal\", \"c\"]";
    let nothing = |place: usize, name: &str| {
        NOTHING_IS.replace("CLASS", &format!("classes[{place}]: nothing is {name:?}"))
    };
    assert_eq!(said(&plan(four, "")), [nothing(0, "a"), nothing(1, "b"), nothing(3, "c")]);
    // A rule that is never reached does not count, a network does.
    let rules = "[[rules]]\nclass = \"a\"\nport = 7\n[[rules]]\nclass = \"b\"\nport = 7\nprotocol = \"udp\"";
    let green = text(four, rules).replace("vni = 43", "vni = 43\nclass = \"c\"");
    let hidden = "rules[1]: no packet reaches it: rules[0] stands before it and matches all that it does, for another class";
    assert_eq!(said(&parse(&green, "t").unwrap()), [nothing(1, "b"), hidden.into()]);
}

#[test]
fn a_default_that_goes_before_all_others_gives_a_warning() {
    let rule = "[[rules]]\nclass = \"urgent\"\ndscp = 46";
    assert_eq!(
        said(&plan("classes = [\"normal\", \"urgent\"]", rule)),
        [
            "default_class: it is \"normal\", the most urgent: what no rule and no network names goes before all that they name"
        ]
    );
    assert_eq!(said(&plan("classes = [\"normal\"]", "")), [""; 0]);
}

#[test]
fn a_class_that_is_listed_first_and_goes_last_gives_a_warning() {
    let top = |orders: [&str; 3]| {
        let class = |(name, order): (&str, &str)| format!("{{ name = {name:?}, order = {order:?} }}");
        let classes: Vec<String> = ["a", "b", "c"].into_iter().zip(orders).map(class).collect();
        format!("classes = [{}, \"normal\"]", classes.join(", "))
    };
    let rules: String = ["a", "b", "c"]
        .into_iter()
        .zip(1..)
        .map(|(name, dscp)| format!("[[rules]]\nclass = {name:?}\ndscp = {dscp}\n"))
        .collect();
    let goes_first = |class: usize, first: usize| {
        format!(
            "classes[{class}].order: \"fifo\" is not preferred, so classes[{first}], though behind it in the list, goes first"
        )
    };
    assert_eq!(said(&plan(&top(["fifo", "fifo", "batch"]), &rules)), [goes_first(0, 2), goes_first(1, 2)]);
    assert_eq!(said(&plan(&top(["sync", "fifo", "fifo"]), &rules)), [""; 0]);
}
