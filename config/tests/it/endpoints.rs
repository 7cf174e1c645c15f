//! Endpoints and their memifs.

use peregrine_config::parse;
use peregrine_dataplane::plan::{EndpointPlan, MemifRole, PortPlan};

use crate::good::{GOOD, refused, replaced};

const STATION: &str =
    "must be a station's Ethernet address, such as \"02:00:00:00:00:01\" (not multicast, not zero)";

#[test]
fn names() {
    let rule = ": must be 1 to 63 letters, digits, '_', '.' or '-'";
    refused(
        &[
            ("name = \"web\"", "name = \"\"", "endpoints[0].name = \"\""),
            ("name = \"web\"", "name = \"a b\"", "endpoints[0].name = \"a b\""),
            ("name = \"web\"", "name = \"ä\"", "endpoints[0].name = \"ä\""),
            ("name = \"web\"", "name = \"a\\nb\"", "endpoints[0].name = \"a\\nb\""),
            ("name = \"web\"", "", "endpoints[0].name: missing"),
        ],
        rule,
    );
    // Told once, and not again where the endpoints refer to it.
    let errors = parse(&GOOD.replace("\"green\"", "\"gr/n\""), "t").unwrap_err();
    assert_eq!(errors.to_string(), format!("t: networks[1].name = \"gr/n\"{rule}"));
    let long = "x".repeat(64);
    let errors = parse(&replaced("name = \"web\"", &format!("name = \"{long}\"")), "t").unwrap_err();
    assert_eq!(errors.to_string(), format!("t: endpoints[0].name = \"{}\"…{rule}", &long[..60]));
}

#[test]
fn station_addresses() {
    for bad in [
        "01:00:5e:00:00:01",
        "ff:ff:ff:ff:ff:ff",
        "00:00:00:00:00:00",
        "2:0:0:0:0:1",
        "02-00-00-00-00-01",
        "",
    ] {
        let errors =
            parse(&replaced("mac = \"02:00:00:00:00:01\"", &format!("mac = \"{bad}\"")), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: endpoints[0].mac = \"{bad}\": {STATION}"));
        let pair = format!("{{ mac = \"{bad}\", remote = \"192.0.2.2\" }}");
        let line = "{ mac = \"02:00:00:00:00:99\", remote = \"192.0.2.2\" }";
        let errors = parse(&replaced(line, &pair), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: networks[0].static_macs[0].mac = \"{bad}\": {STATION}"));
    }
    let rule = "must be a station's IP address, such as \"10.42.0.1\" (not multicast, broadcast, loopback or unspecified)";
    for bad in ["224.0.0.1", "ff02::1", "::", "::1", "127.0.0.1", "0.0.0.0", "10.0.0.0/8", ""] {
        let line = "addresses = [\"10.42.0.1\", \"fd00::1\"]";
        let errors =
            parse(&replaced(line, &format!("addresses = [\"10.42.0.1\", \"{bad}\"]")), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: endpoints[0].addresses[1] = \"{bad}\": {rule}"));
    }
}

#[test]
fn an_ipv4_address_is_written_as_such() {
    let rule = "must be an IPv4 address as such, without \"::ffff:\"";
    let remotes = "remotes = [\"192.0.2.2\", \"192.0.2.3\"]";
    let gateways = format!("{remotes}\ngateways = [\"::ffff:10.42.0.9\"]");
    let own = "addresses = [\"10.42.0.1\", \"fd00::1\"]";
    let fixed = "{ mac = \"02:00:00:00:00:99\", remote = \"192.0.2.2\" }";
    let of_fixed = fixed.replace(" }", ", addresses = [\"::ffff:10.42.0.9\"] }");
    for (line, instead, key) in [
        (own, "addresses = [\"::ffff:10.42.0.9\"]", "endpoints[0].addresses[0]"),
        (remotes, gateways.as_str(), "networks[0].gateways[0]"),
        (fixed, of_fixed.as_str(), "networks[0].static_macs[0].addresses[0]"),
    ] {
        let errors = parse(&replaced(line, instead), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: {key} = \"::ffff:10.42.0.9\": {rule}"));
    }
    parse(&replaced(own, "addresses = [\"fe80::1\", \"169.254.0.1\"]"), "t").unwrap();
}

#[test]
fn endpoints() {
    refused(
        &[
            (
                "network = \"green\"",
                "network = \"gren\"",
                "endpoints[2].network = \"gren\": must be the name of a network: did you mean \"green\"?",
            ),
            (
                "network = \"green\"",
                "network = \"yellow\"",
                "endpoints[2].network = \"yellow\": must be the name of a network, such as \"blue\", \"green\"",
            ),
            ("network = \"green\"", "network = 1", "endpoints[2].network = 1: must be the name of a network"),
            ("network = \"green\"", "", "endpoints[2].network: missing: must be the name of a network"),
            (
                "name = \"database\"",
                "name = \"web\"",
                "endpoints[1].name = \"web\": must be unique: endpoints[0].name is the same",
            ),
            (
                "mac = \"02:00:00:00:00:02\"",
                "mac = \"02:00:00:00:00:01\"",
                "endpoints[1].mac = \"02:00:00:00:00:01\": must be unique: endpoints[0].mac is the same",
            ),
            (
                "addresses = [\"10.42.0.2\"]",
                "addresses = [\"10.42.0.1\"]",
                "endpoints[1].addresses[0] = \"10.42.0.1\": must be unique: endpoints[0].addresses[0] is the same",
            ),
            (
                "anti_spoofing = true",
                "anti_spoofing = \"no\"",
                "endpoints[0].anti_spoofing = \"no\": must be true or false",
            ),
            (
                "memif = { socket = \"@green\" }",
                "",
                "endpoints[2].memif: missing: must be a table, such as { socket = \"/run/peregrine/memif.sock\", id = 0 }; or there must be a table veth, such as { namespace = \"web\" }",
            ),
        ],
        "",
    );
}

#[test]
fn memif_sockets() {
    let rule =
        "must be an absolute path of at most 107 bytes, without \"..\", or \"@name\" for an abstract socket";
    let long = format!("/{}", "x".repeat(107));
    for bad in [
        "",
        "@",
        "run/x.sock",
        "/",
        "/run/",
        "/run/.",
        "/run/..",
        "/run/../x",
        "/run/a\\u0000b",
        "@a\\u0000",
        &long,
    ] {
        let errors = parse(&replaced("\"@green\"", &format!("\"{bad}\"")), "t").unwrap_err().to_string();
        assert!(errors.starts_with("t: endpoints[2].memif.socket = \""), "{errors}");
        assert!(errors.ends_with(rule) && errors.lines().count() == 1, "{errors}");
    }
    for good in [format!("/{}", "x".repeat(106)), format!("@{}", "x".repeat(107)), "/run/x.sock".into()] {
        parse(&replaced("\"@green\"", &format!("\"{good}\"")), "t").unwrap();
    }
}

#[test]
fn what_endpoints_on_one_socket_must_agree_on() {
    let second = "memif = { socket = \"/run/peregrine/memif.sock\", id = 1, mode = \"0660\" }";
    refused(
        &[
            (
                second,
                "memif = { socket = \"/run//peregrine/./memif.sock\", id = 0, mode = \"0660\" }",
                "endpoints[1].memif.id = 0 on \"/run//peregrine/./memif.sock\": must be unique: endpoints[0].memif.id is the same",
            ),
            (
                second,
                "memif = { socket = \"/run/peregrine/memif.sock\", mode = \"0660\" }",
                "endpoints[1].memif.id = 0 (the default) on \"/run/peregrine/memif.sock\": must be unique: endpoints[0].memif.id is the same",
            ),
            (
                second,
                "memif = { socket = \"/run/peregrine/memif.sock\", id = 1, mode = \"0600\" }",
                "endpoints[1].memif.mode = \"0600\": must be the same for one socket: endpoints[0].memif.mode = \"0660\"",
            ),
            (
                second,
                "memif = { socket = \"/run/peregrine/memif.sock\", id = 1, mode = \"0660\", owner = 0 }",
                "endpoints[1].memif.owner = 0: must be the same for one socket: endpoints[0].memif.owner = the daemon's (the default)",
            ),
            (
                second,
                "memif = { socket = \"/run/peregrine/memif.sock\", id = 1, mode = \"0660\", group = 7 }",
                "endpoints[1].memif.group = 7: must be the same for one socket: endpoints[0].memif.group = the daemon's (the default)",
            ),
            (
                second,
                "memif = { socket = \"/run/peregrine/memif.sock\", id = 1, role = \"client\" }",
                "endpoints[1].memif.role = \"client\": must be the same for one socket: endpoints[0].memif.role = \"server\" (the default)",
            ),
            (
                "\"/run/tenants/store.sock\"",
                "\"@green\"\nid = 1",
                "endpoints[3].memif.role = \"client\": must be the same for one socket: endpoints[2].memif.role = \"server\" (the default)",
            ),
            (
                "\"/run/log.sock\"",
                "\"/run/peregrine/memif.sock\"\nid = 2",
                "endpoints[4].memif.mode = \"0600\": must be the same for one socket: endpoints[0].memif.mode = \"0660\"\n\
                 t: endpoints[4].memif.owner = 1000: must be the same for one socket: endpoints[0].memif.owner = the daemon's (the default)\n\
                 t: endpoints[4].memif.group = 0: must be the same for one socket: endpoints[0].memif.group = the daemon's (the default)",
            ),
            (
                "\"@green\"",
                "\"@green\", owner = 0, group = 0",
                "endpoints[2].memif.owner = 0: must be left out: an abstract socket has no owner\n\
                 t: endpoints[2].memif.group = 0: must be left out: an abstract socket has no group",
            ),
            (
                "\"/run/tenants/store.sock\"",
                "\"/run/peregrine/control.sock\"",
                "endpoints[3].memif.socket = \"/run/peregrine/control.sock\": must be unique: control_socket is the same",
            ),
            (
                "\"@green\"",
                "\"@green\", mode = \"0660\"",
                "endpoints[2].memif.mode = \"0660\": must be left out: an abstract socket has no permission bits",
            ),
            (
                "\"@green\"",
                "\"/run/peregrine/control.sock\"",
                "endpoints[2].memif.socket = \"/run/peregrine/control.sock\": must be unique: control_socket is the same",
            ),
        ],
        "",
    );
}

#[test]
fn a_mode_left_out_is_the_default_and_counts_as_given() {
    let second = "id = 1, mode = \"0660\"";
    let plan = parse(&replaced(second, "id = 1"), "t").unwrap();
    let mode = |endpoint: &EndpointPlan| match endpoint.port.memif().unwrap().role {
        MemifRole::Server { mode, .. } => mode,
        MemifRole::Client { .. } => panic!("{endpoint:?}"),
    };
    assert_eq!(
        plan.endpoints.values().take(3).map(mode).collect::<Vec<_>>(),
        [Some(0o660), Some(0o660), None]
    );
    let first = "id = 0, mode = \"0660\"";
    let errors =
        parse(&replaced(first, "id = 0, mode = \"0600\"").replace(second, "id = 1"), "t").unwrap_err();
    let want = "t: endpoints[1].memif.mode = \"0660\" (the default): must be the same for one socket: \
        endpoints[0].memif.mode = \"0600\"";
    assert_eq!(errors.to_string(), want);
}

#[test]
fn what_a_memif_says_for_itself() {
    let mode = "must be an octal text from \"0000\" to \"0777\", such as \"0660\"";
    for bad in ["\"1000\"", "\"0888\"", "\"rw\"", "\"\"", "\"+660\"", "660", "\"00660\""] {
        let errors = parse(&replaced("\"@green\"", &format!("\"/run/g\", mode = {bad}")), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: endpoints[2].memif.mode = {bad}: {mode}"));
    }
    for bad in ["-1", "4294967296", "\"0\""] {
        let errors = parse(&replaced("\"@green\"", &format!("\"/run/g\", id = {bad}")), "t").unwrap_err();
        let rule = "must be a number from 0 to 4294967295";
        assert_eq!(errors.to_string(), format!("t: endpoints[2].memif.id = {bad}: {rule}"));
    }
    parse(&replaced("\"@green\"", "\"/run/g\", mode = \"777\", id = 4294967295"), "t").unwrap();
}

#[test]
fn roles_are_two_and_each_has_its_keys() {
    let role = "must be \"server\" or \"client\"";
    for bad in ["\"master\"", "\"Client\"", "\"\"", "true"] {
        let errors = parse(&replaced("\"@green\"", &format!("\"@g\", role = {bad}")), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: endpoints[2].memif.role = {bad}: {role}"));
    }
    for (key, value) in [("ring_size", "1024"), ("buffer_size", "\"whatever\""), ("tenant_uid", "0")] {
        let errors = parse(&replaced("\"@green\"", &format!("\"@g\", {key} = {value}")), "t").unwrap_err();
        let rule = "must be left out: it is for role = \"client\", and the role here is \"server\"";
        assert_eq!(errors.to_string(), format!("t: endpoints[2].memif.{key} = {value}: {rule}"));
    }
    for (key, value) in [
        ("mode", "\"0660\""),
        ("owner", "0"),
        ("group", "0"),
        ("allow_unsealed", "false"),
        ("memory_max", "128"),
    ] {
        let text = replaced("\"@green\"", &format!("\"/run/g\", role = \"client\", {key} = {value}"));
        let errors = parse(&text, "t").unwrap_err();
        let rule = "must be left out: it is for role = \"server\", and the role here is \"client\"";
        assert_eq!(errors.to_string(), format!("t: endpoints[2].memif.{key} = {value}: {rule}"));
    }
}

#[test]
fn what_a_server_says() {
    let rule = |key: &str| match key {
        "queue_pairs" => "must be a number from 1 to 8",
        "memory_max" => "must be a number from 1 to 4096",
        "chains" => "must be true or false",
        _ => "must be a number from 0 to 4294967294",
    };
    for (key, bad) in [
        ("queue_pairs", "0"),
        ("queue_pairs", "9"),
        ("memory_max", "0"),
        ("memory_max", "4097"),
        ("memory_max", "\"128\""),
        ("chains", "1"),
        ("owner", "-1"),
        ("owner", "4294967295"),
        ("group", "\"staff\""),
        ("group", "4294967295"),
    ] {
        let errors = parse(&replaced("\"@green\"", &format!("\"/run/g\", {key} = {bad}")), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: endpoints[2].memif.{key} = {bad}: {}", rule(key)));
    }
    let log = parse(GOOD, "t").unwrap().endpoints.values().last().unwrap().port.memif().unwrap().clone();
    assert_eq!((log.queue_pairs, log.chains), (8, true));
    let role = MemifRole::Server {
        mode: Some(0o600),
        owner: Some(1000),
        group: Some(0),
        allow_unsealed: false,
        memory_bytes_max: 256 << 20,
    };
    assert_eq!(log.role, role);
    // One that is wrong does not make the next on the socket disagree with it.
    let text = replaced("id = 0, mode = \"0660\"", "id = 0, mode = \"rw\", owner = -2");
    let errors = parse(&text, "t").unwrap_err().to_string();
    let want = "t: endpoints[0].memif.mode = \"rw\": must be an octal text from \"0000\" to \"0777\", such as \"0660\"\n\
        t: endpoints[0].memif.owner = -2: must be a number from 0 to 4294967294";
    assert_eq!(errors, want);
}

#[test]
fn what_a_client_says() {
    let power = "must be a power of two from 32 to 16384";
    let slots = "2 × queue_pairs × ring_size must stay below 65536";
    let bytes = "must be a number from 2048 to 16384";
    for (line, instead, rule) in [
        ("ring_size = 512", "ring_size = 16", power),
        ("ring_size = 512", "ring_size = 32768", power),
        ("ring_size = 512", "ring_size = 1000", power),
        ("ring_size = 512", "ring_size = 0", power),
        ("ring_size = 512", "ring_size = -512", power),
        ("buffer_size = 4096", "buffer_size = 2047", bytes),
        ("buffer_size = 4096", "buffer_size = 16385", bytes),
        (
            "ring_size = 512",
            "ring_size = 16384",
            &format!("must be at most 8192 with queue_pairs = 2: {slots}"),
        ),
    ] {
        let errors = parse(&replaced(line, instead), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: endpoints[3].memif.{instead}: {rule}"));
    }
    let many = replaced("queue_pairs = 2", "queue_pairs = 7").replace("ring_size = 512", "ring_size = 8192");
    let errors = parse(&many, "t").unwrap_err().to_string();
    let want = format!("must be at most 4096 with queue_pairs = 7: {slots}");
    assert_eq!(errors, format!("t: endpoints[3].memif.ring_size = 8192: {want}"));
    parse(&many.replace("ring_size = 8192", "ring_size = 4096"), "t").unwrap();
    for log2 in 5..=14 {
        let text =
            replaced("queue_pairs = 2", "").replace("ring_size = 512", &format!("ring_size = {}", 1 << log2));
        let plan = parse(&text, "t").unwrap();
        assert_eq!(
            plan.endpoints[3].port.memif().unwrap().role,
            MemifRole::Client { ring_log2: log2, buffer_bytes: 4096, tenant_uid: None }
        );
    }
}

#[test]
fn a_clients_buffers_hold_the_networks_frames_or_there_are_chains() {
    let wide = GOOD.replace("chunk_size = 2048", "chunk_size = 4096").replace("mtu = 1450", "mtu = 3776");
    parse(&wide, "t").unwrap();
    let short = wide.replace("buffer_size = 4096", "buffer_size = 3793");
    let rule = "must be at least 3794, or chains = true: networks[0].mtu + 18 bytes must fit a buffer";
    let want = |got: &str| format!("t: endpoints[3].memif.buffer_size = {got}: {rule}");
    assert_eq!(parse(&short, "t").unwrap_err().to_string(), want("3793"));
    let default = wide.replace("buffer_size = 4096", "");
    assert_eq!(parse(&default, "t").unwrap_err().to_string(), want("2048 (the default)"));
    parse(&wide.replace("buffer_size = 4096", "buffer_size = 3794"), "t").unwrap();
    parse(&wide.replace("buffer_size = 4096", "chains = true"), "t").unwrap();
}

#[test]
fn secrets_are_bounded_and_never_shown() {
    let rule = "must be 1 to 24 bytes without NUL; leave the key out for no secret";
    for bad in ["\"\"", "\"hunter2hunter2hunter2hunt\"", "\"hunter2\\u0000\"", "[\"hunter2\"]", "2"] {
        let errors = parse(&replaced("\"@green\"", &format!("\"@g\", secret = {bad}")), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: endpoints[2].memif.secret = (not shown): {rule}"));
        assert!(!format!("{errors:?}").contains("hunter2"));
    }
    for leak in ["sekret = \"hunter2\"", "secret = \"hunter2\", id = {secret = \"hunter2\"}"] {
        let errors = parse(&replaced("\"@green\"", &format!("\"@g\", {leak}")), "t").unwrap_err();
        assert!(!format!("{errors} {errors:?}").contains("hunter2"), "{errors}");
    }
    // Not even when the file is not TOML right after it.
    let errors = parse("[[endpoints]]\nmemif = { secret = \"hunter2\" x }", "t").unwrap_err();
    assert!(!format!("{errors} {errors:?}").contains("hunter2"), "{errors:?}");
    let plan = parse(&replaced("\"@green\"", "\"@g\", secret = \"123456789012345678901234\""), "t").unwrap();
    assert_eq!(plan.endpoints[2].port.memif().unwrap().secret.len(), 24);
}

#[test]
fn a_container_has_a_veth() {
    use peregrine_dataplane::plan::{NamespaceRef, VethPlan};
    let memif = "memif = { socket = \"@green\" }";
    let veth = |text: &str| replaced(memif, &format!("veth = {{ {text} }}"));
    for (text, want) in [
        ("namespace = \"web-1\"", VethPlan::new(NamespaceRef::Name("web-1".into()))),
        ("namespace = \"/proc/7/ns/net\"", VethPlan::new(NamespaceRef::Path("/proc/7/ns/net".into()))),
        (
            "pid = 7, interface = \"net1\", default_route = false, ring_size = 64",
            VethPlan {
                interface: "net1".into(),
                default_route: false,
                ring_size: 64,
                ..VethPlan::new(NamespaceRef::Pid(7))
            },
        ),
        (
            "namespace = \"x\", create_namespace = true",
            VethPlan { create: true, ..VethPlan::new(NamespaceRef::Name("x".into())) },
        ),
    ] {
        let plan = parse(&veth(text), "t").unwrap_or_else(|errors| panic!("{errors}"));
        assert_eq!(plan.endpoints[2].port, PortPlan::Veth(want));
    }
    let namespace = "must be the name of a network namespace (1 to 63 letters, digits, '_', '.' or '-'), or the path of one, such as \"/proc/4242/ns/net\"";
    for (text, want) in [
        ("", format!("namespace: missing: {namespace}")),
        ("namespace = \"..\"", format!("namespace = \"..\": {namespace}")),
        ("namespace = \"a/b\"", format!("namespace = \"a/b\": {namespace}")),
        ("namespace = \"x\", pid = 1", "namespace = \"x\": must be left out: there is pid".into()),
        ("pid = 0", "pid = 0: must be a number from 1 to 2147483647".into()),
        (
            "namespace = \"x\", create_namespace = true, ring_size = 64",
            "ring_size = 64: must be left out: with create_namespace it is that of all that are made beforehand, 256".into(),
        ),
        ("pid = 1, ring_size = 100", "ring_size = 100: must be a power of two from 64 to 4096".into()),
        (
            "pid = 1, create_namespace = true",
            "create_namespace = true: must be false, or the namespace must be given by a name: it is made under that".into(),
        ),
        (
            "pid = 1, interface = \"a b\"",
            "interface = \"a b\": must be the name of an interface: 1 to 15 bytes, without spaces, '/' and ':'".into(),
        ),
        ("pid = 1, id = 3", "id: unknown key: did you mean `pid`?".into()),
    ] {
        let errors = parse(&veth(text), "t").unwrap_err().to_string();
        assert_eq!(errors, format!("t: endpoints[2].veth.{want}"), "{text}");
    }
    let both =
        parse(&replaced(memif, &format!("{memif}\nveth = {{ pid = 1 }}")), "t").unwrap_err().to_string();
    assert_eq!(both, "t: endpoints[2].veth = {…}: must be left out: there is memif");
}

#[test]
fn a_container_has_an_interface_of_a_name_once_and_no_giant_packets() {
    let two = GOOD.replace("memif = { socket = \"@green\" }", "veth = { namespace = \"x\" }").replace(
        "memif = { socket = \"/run/peregrine/memif.sock\", id = 1, mode = \"0660\" }",
        "veth = { namespace = \"x\" }",
    );
    let errors = parse(&two, "t").unwrap_err().to_string();
    let want = "t: endpoints[2].veth.interface = \"eth0\" in network namespace 'x': must be unique: endpoints[1].veth.interface is the same";
    assert_eq!(errors, want);
    let giant = replaced("memif = { socket = \"@green\" }", "veth = { pid = 1 }")
        .replace("name = \"green\"", "name = \"green\"\nmtu = 3401");
    let errors = parse(&giant, "t").unwrap_err().to_string();
    assert_eq!(
        errors,
        "t: networks[1].mtu = 3401: must be at most 3400: endpoints[2].veth is on that network"
    );
}
