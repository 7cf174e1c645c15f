//! Networks.

use peregrine_config::{parse, warnings};

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
fn too_many_gateways_are_one_mistake() {
    let gateways = |list: &str| {
        let text = replaced("mtu = 1450", &format!("mtu = 1450\ngateways = {list}"));
        parse(&text, "t").map(|plan| plan.networks[0].gateways.len()).map_err(|errors| errors.to_string())
    };
    let rule = "must be a list of at most two addresses, one of each IP version, such as [\"10.42.0.254\"]";
    let three = "[\"10.42.0.1\", \"10.42.0.2\", \"fd00::1\"]";
    assert_eq!(gateways(three), Err(format!("t: networks[0].gateways: 3 entries: {rule}")));
    let two = Err(format!("t: networks[0].gateways[1] = \"10.42.0.2\": {rule}"));
    assert_eq!(gateways("[\"10.42.0.1\", \"10.42.0.2\"]"), two);
    assert_eq!(gateways("[\"10.42.0.1\", \"fd00::1\"]"), Ok(2));
}

#[test]
fn an_address_of_two_stations_is_hardly_meant_and_one_twice_is_a_mistake() {
    let with = |stations: &[&str]| {
        let station = |(place, addresses): (usize, &&str)| {
            format!(
                "{{ mac = \"02:00:00:00:01:{place:02x}\", remote = \"192.0.2.2\", addresses = [{addresses}] }}"
            )
        };
        let list: Vec<String> = stations.iter().enumerate().map(station).collect();
        replaced("{ mac = \"02:00:00:00:00:99\", remote = \"192.0.2.2\" }", &list.join(", "))
    };
    let errors = parse(&with(&["\"10.42.0.9\", \"10.42.0.8\", \"10.42.0.9\""]), "t").unwrap_err();
    let path = "networks[0].static_macs[0].addresses";
    let unique = "must be unique";
    assert_eq!(errors.to_string(), format!("t: {path}[2] = \"10.42.0.9\": {unique}: {path}[0] is the same"));
    let said = |stations: &[&str]| {
        let plan = parse(&with(stations), "t").unwrap();
        warnings(&plan).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let (nine, both) = ("\"10.42.0.9\"", "\"10.42.0.7\", \"10.42.0.9\"");
    assert_eq!(said(&[nine, "\"10.42.0.8\""]), [""; 0]);
    let want = "networks[0].static_macs[1].addresses: 10.42.0.9 is an address of static_macs[0], too: nobody is answered for where several stations have the same";
    assert_eq!(said(&[nine, nine, nine]), [want]);
    let want = "networks[0].static_macs[2].addresses: 10.42.0.7 is an address of static_macs[1], too: nobody is answered for where several stations have the same (and 1 more)";
    assert_eq!(said(&["\"fd00::9\"", both, both]), [want]);
}

#[test]
fn an_mtu_for_ipv4_gives_a_warning_where_remotes_are_reached_over_ipv6() {
    let said = |mtu: &str, remotes: &str| {
        let text = GOOD
            .replace("local = \"192.0.2.1\"", "local = [\"192.0.2.1\", \"2001:db8::1\"]")
            .replace(
                "remotes = [\"192.0.2.2\", \"192.0.2.3\"]",
                &format!("remotes = [\"192.0.2.2\", {remotes}]"),
            )
            .replace("mtu = 1450", &format!("mtu = {mtu}"))
            .replace("buffer_size = 4096", "buffer_size = 16384");
        let plan = parse(&text, "t").unwrap_or_else(|errors| panic!("{errors}"));
        warnings(&plan).iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let want = |mtu: u32, needs: u32, fits: u32, on: u32| {
        [format!(
            "networks[0].mtu: with remotes over IPv6, {mtu} needs an interface MTU of at least {needs}: {fits} fits {on}"
        )]
    };
    let ipv6 = "\"2001:db8::2\"";
    assert_eq!(said("1450", ipv6), want(1450, 1520, 1430, 1500));
    assert_eq!(said("1431", ipv6), want(1431, 1501, 1430, 1500));
    assert_eq!(said("8950", ipv6), want(8950, 9020, 8930, 9000));
    assert_eq!(said("1450", "\"192.0.2.3\""), [""; 0]);
    for fits in ["1430", "1460", "8930"] {
        assert_eq!(said(fits, ipv6), [""; 0], "{fits}: meant for other interfaces");
    }
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
