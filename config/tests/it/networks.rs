//! Networks.

use peregrine_config::parse;

use crate::good::{GOOD, refused, replaced};

#[test]
fn networks() {
    let vni = "must be a number from 1 to 16777215";
    for (line, instead, error) in [
        ("vni = 42", "vni = 0", format!("networks[0].vni = 0: {vni}")),
        ("vni = 42", "vni = 16777216", format!("networks[0].vni = 16777216: {vni}")),
        ("vni = 42", "vni = -1", format!("networks[0].vni = -1: {vni}")),
        ("vni = 42", "vni = \"42\"", format!("networks[0].vni = \"42\": {vni}")),
        ("vni = 42", "vni = 43", "networks[1].vni = 43: must be unique: networks[0].vni is the same".into()),
        ("mtu = 1450", "mtu = 575", "networks[0].mtu = 575: must be a number from 576 to 9000".into()),
        ("mtu = 1450", "mtu = 9001", "networks[0].mtu = 9001: must be a number from 576 to 9000".into()),
        (
            "mtu = 1450",
            "mtu = 1729",
            "networks[0].mtu = 1729: must be at most 1728: mtu + 320 bytes must fit uplink.chunk_size = 2048"
                .into(),
        ),
        ("learning = true", "learning = 1", "networks[0].learning = 1: must be true or false".into()),
        (
            "fdb_limit = 4096",
            "fdb_limit = 0",
            "networks[0].fdb_limit = 0: must be a number from 1 to 1000000".into(),
        ),
        (
            "fdb_limit = 4096",
            "fdb_limit = 1_000_001",
            "networks[0].fdb_limit = 1000001: must be a number from 1 to 1000000".into(),
        ),
    ] {
        let errors = parse(&replaced(line, instead), "t").unwrap_err();
        assert_eq!(errors.to_string(), format!("t: {error}"));
    }
}

#[test]
fn ageing_is_a_duration() {
    for bad in [
        "\"\"",
        "\"0s\"",
        "\"300\"",
        "\"s\"",
        "\"5 m\"",
        "\"+5m\"",
        "\"25h\"",
        "\"86401s\"",
        "\"5ms\"",
        "\"5µ\"",
        "300",
    ] {
        let errors = parse(&replaced("ageing = \"300s\"", &format!("ageing = {bad}")), "t").unwrap_err();
        let rule = "must be a duration from \"1s\" to \"24h\", such as \"300s\" or \"5m\"";
        assert_eq!(errors.to_string(), format!("t: networks[0].ageing = {bad}: {rule}"));
    }
    let huge = format!("ageing = \"{}h\"", u64::MAX);
    assert!(parse(&replaced("ageing = \"300s\"", &huge), "t").is_err());
    for (good, seconds) in [("1s", 1), ("5m", 300), ("24h", 86400), ("86400s", 86400)] {
        let plan = parse(&replaced("ageing = \"300s\"", &format!("ageing = \"{good}\"")), "t").unwrap();
        assert_eq!(plan.networks[0].ageing.as_secs(), seconds);
    }
}

#[test]
fn remotes_and_what_is_behind_them() {
    let remotes = "remotes = [\"192.0.2.2\", \"192.0.2.3\"]";
    let macs = "{ mac = \"02:00:00:00:00:99\", remote = \"192.0.2.2\" }";
    refused(
        &[
            (
                remotes,
                "remotes = [\"192.0.2.2\", \"192.0.2.1\"]",
                "networks[0].remotes[1] = \"192.0.2.1\": must be another host's address: uplink.local is the same",
            ),
            (
                remotes,
                "remotes = [\"192.0.2.2\", \"192.0.2.2\"]",
                "networks[0].remotes[1] = \"192.0.2.2\": must be unique: networks[0].remotes[0] is the same",
            ),
            (
                remotes,
                "remotes = \"192.0.2.2\"\n#",
                "networks[0].remotes = \"192.0.2.2\": must be a list of at most 1024 VTEP addresses, such as [\"192.0.2.2\"]",
            ),
            (
                macs,
                "{ mac = \"02:00:00:00:00:99\", remote = \"192.0.2.4\" }",
                "networks[0].static_macs[0].remote = \"192.0.2.4\": must be one of networks[0].remotes",
            ),
            (
                macs,
                "{ mac = \"02:00:00:00:00:99\", remote = \"192.0.2.2\" }, { mac = \"02:00:00:00:00:99\", remote = \"192.0.2.3\" }",
                "networks[0].static_macs[1].mac = \"02:00:00:00:00:99\": must be unique: networks[0].static_macs[0].mac is the same",
            ),
            (
                macs,
                "{ mac = \"02:00:00:00:00:01\", remote = \"192.0.2.2\" }",
                "endpoints[0].mac = \"02:00:00:00:00:01\": must be unique: networks[0].static_macs[0].mac is the same",
            ),
            (macs, "3", "networks[0].static_macs[0] = 3: must be a table with the keys mac and remote"),
        ],
        "",
    );
}

#[test]
fn learned_addresses_are_bounded_over_all_networks() {
    let mut many = String::from(GOOD);
    for i in 0..17 {
        many += &format!("[[networks]]\nname = \"m{i}\"\nvni = {}\nfdb_limit = 1_000_000\n", 100 + i);
    }
    let errors = parse(&many, "t").unwrap_err();
    let want = "t: networks[*].fdb_limit = 17008192 in total: must be at most 16777216 over all networks";
    assert_eq!(errors.to_string(), want);
}
