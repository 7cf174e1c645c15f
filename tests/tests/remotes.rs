//! Remotes that come and go by the command line while the far kernel pings, that kernel as a remote that nobody told of, and addresses that
//! are fixed, forgotten, and held.

use std::process::{Command, Output};

use peregrine_tests::{
    Daemon, FAR, FAR_OVERLAY, Guest, NEAR, Net, RawSocket, Tenant, VNI, frame, ping, ping_patiently, program,
    run, totals, until,
};
use serde_json::{Value, json};

const EVERYBODY: &str = "ff:ff:ff:ff:ff:ff";

fn peregrine(net: &Net, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("peregrine"));
    command.args(arguments).arg("--socket").arg(net.file("control.sock"));
    command
}

fn asked(net: &Net, arguments: &[&str]) -> Value {
    let said = run(peregrine(net, arguments).arg("--json"));
    serde_json::from_str(&said).unwrap_or_else(|error| panic!("{arguments:?}: {error}: {said}"))
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// What it says when it is refused, with exit status 1.
fn refused(net: &Net, arguments: &[&str]) -> String {
    let output = peregrine(net, arguments).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{arguments:?}");
    stderr(&output)
}

/// No remotes at the start.
fn start(net: &Net, more: &str) -> Daemon {
    let config = Daemon::config(net, &[], &[Tenant::WEB, Tenant::DB]);
    let remotes = "remotes = []\n";
    assert!(config.contains(remotes), "{config}");
    Daemon::start_with(net, &config.replace(remotes, &format!("{remotes}{more}")))
}

fn standing(net: &Net) -> Vec<(String, String)> {
    let list = asked(net, &["remote", "list", "blue"]);
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    list["remotes"].as_array().unwrap().iter().map(|r| (text(&r["remote"]), text(&r["standing"]))).collect()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_remote_is_added_and_removed_while_the_daemon_runs() {
    let net = Net::new();
    let daemon = start(&net, "");
    let _echo = Tenant::WEB.echo(&net);
    assert_eq!(ping(&net.far, Tenant::WEB.ip, 2, 0.1), 0, "it is none of our remotes");
    assert!(daemon.drops("remote_unknown") > 0);
    for round in 0..3 {
        run(&mut peregrine(&net, &["remote", "add", "blue", FAR.0]));
        assert_eq!(standing(&net), [(FAR.0.to_owned(), "added".to_owned())]);
        daemon.wait_for_next_hops();
        // The far kernel has asked for the tenant in vain: what it queued behind that would fail with it.
        net.far.ip("neigh flush dev vx").unwrap();
        assert_eq!(
            ping_patiently(&net.far, Tenant::WEB.ip, 20, 0.01),
            20,
            "round {round}: {:#}",
            daemon.stats()
        );
        let there = asked(&net, &["fdb", "--mac", FAR_OVERLAY.1]);
        assert_eq!((&there["total"], &there["entries"][0]["remote"]), (&json!(1), &json!(FAR.0)), "{there}");
        assert!(
            refused(&net, &["remote", "add", "blue", FAR.0]).contains("is a remote of this network already")
        );
        let fixed = ["--network", "blue", "--mac", "02:00:00:00:42:77"];
        run(peregrine(&net, &["fdb", "add", "--remote", FAR.0]).args(fixed));
        let said = run(&mut peregrine(&net, &["remote", "remove", "blue", FAR.0]));
        assert!(said.contains("is no remote of network blue any more; 1 fixed address behind it"), "{said}");
        assert_eq!(standing(&net), []);
        assert_eq!(asked(&net, &["fdb", "list", "--network", "blue"])["total"], 2, "both tenants");
        let before = daemon.drops("remote_unknown");
        assert_eq!(ping(&net.far, Tenant::WEB.ip, 2, 0.1), 0);
        assert!(daemon.drops("remote_unknown") > before);
    }
    assert!(refused(&net, &["remote", "remove", "blue", FAR.0]).contains("is no remote of this network"));
    assert!(refused(&net, &["remote", "add", "green", FAR.0]).contains("no network green: there are blue"));
    daemon.at_rest();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_kernel_that_nobody_told_of_is_found_where_any_remote_may_send() {
    let net = Net::new();
    let daemon = start(&net, "any_remote = true\n");
    let _echo = Tenant::WEB.echo(&net);
    // Its first frames come from nobody we know, and what the tenant answers goes to nobody yet.
    until("the far kernel to be found and pinged", || ping(&net.far, Tenant::WEB.ip, 1, 0.1) == 1);
    assert_eq!(standing(&net), [(FAR.0.to_owned(), "discovered".to_owned())]);
    assert_eq!(daemon.stats()["networks"][0]["discovered"], 1);
    daemon.wait_for_next_hops();
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 20, 0.01), 20, "{:#}", daemon.stats());
    let there = asked(&net, &["fdb", "--remote", FAR.0]);
    assert_eq!(there["entries"][0]["mac"], FAR_OVERLAY.1, "{there:#}");
    // By unicast only, until it is added.
    let mut db = Guest::new(&net, Tenant::DB);
    daemon.wait_for_tenant(1, true);
    let sent = |daemon: &Daemon| daemon.at_rest()["networks"][0]["to_underlay"]["frames"].as_u64().unwrap();
    let before = sent(&daemon);
    let (cry, call) = (frame(Tenant::DB.mac, EVERYBODY, "cry"), frame(Tenant::DB.mac, FAR_OVERLAY.1, "call"));
    let taken = |daemon: &Daemon| totals(&daemon.stats(), "tenant_rx");
    let mut send = |what: &[u8]| {
        let before = taken(&daemon);
        db.send(what);
        until("it to be taken", || taken(&daemon) > before);
    };
    send(&cry);
    assert_eq!(sent(&daemon), before);
    send(&call);
    assert_eq!(sent(&daemon), before + 1);
    run(&mut peregrine(&net, &["remote", "add", "blue", FAR.0]));
    assert_eq!(standing(&net), [(FAR.0.to_owned(), "added".to_owned())]);
    send(&cry);
    assert_eq!(sent(&daemon), before + 2);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn addresses_are_fixed_forgotten_and_held() {
    let net = Net::new();
    let config = Daemon::config(&net, &[FAR.0, "192.0.2.7"], &[Tenant::WEB]);
    let daemon = Daemon::start_with(&net, &config.replace("vni = ", "move_limit = 2\nvni = "));
    let _echo = Tenant::WEB.echo(&net);
    until("the way to the far kernel", || {
        daemon.stats()["remotes"]
            .as_array()
            .unwrap()
            .iter()
            .any(|r| r["address"] == FAR.0 && r["resolved"] == true)
    });
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 5, 0.01), 5);
    let far = ["--mac", FAR_OVERLAY.1];
    let of_far = || asked(&net, &["fdb", "list", far[0], far[1]])["entries"].as_array().unwrap().clone();
    assert_eq!(of_far()[0]["fixed"], false);
    assert_eq!(asked(&net, &["fdb", "flush", "--network", "blue", far[0], far[1]]), json!({"flushed": 1}));
    assert!(of_far().is_empty());
    // Fixed elsewhere: what the far kernel sends is not believed, and dropped.
    let fixed = ["--network", "blue", far[0], far[1]];
    run(peregrine(&net, &["fdb", "add", "--remote", "192.0.2.7"]).args(fixed));
    assert_eq!(ping(&net.far, Tenant::WEB.ip, 2, 0.1), 0);
    assert!(daemon.drops("source_spoofed") > 0);
    assert_eq!(asked(&net, &["fdb", "flush"]), json!({"flushed": 0}));
    run(peregrine(&net, &["fdb", "remove"]).args(fixed));
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 5, 0.01), 5);
    let learned = refused(&net, &["fdb", "remove", "--network", "blue", far[0], far[1]]);
    assert!(learned.contains("was learned, and is not fixed"), "{learned}");
    let local = ["fdb", "remove", "--network", "blue", "--mac", Tenant::WEB.mac];
    assert!(refused(&net, &local).contains("of an endpoint of this host"));

    // The same address behind a second VTEP on the far host, again and again.
    net.far.ip(&format!("addr add 192.0.2.7/24 dev {}", FAR.1)).unwrap();
    let here = frame(FAR_OVERLAY.1, Tenant::WEB.mac, "here I am");
    // A host has one vxlan device of a VNI and port: the second VTEP's packets are written by hand.
    let places = [RawSocket::sender(&net.far, "vx"), RawSocket::sender(&net.far, FAR.1)];
    let said = [here.clone(), encapsulated([192, 0, 2, 7], &here)];
    let moved = |key: &str| daemon.stats()["networks"][0][key].as_u64().unwrap();
    let mut turn = 0;
    until("the address to be held", || {
        places[turn % 2].send(&said[turn % 2]);
        turn += 1;
        moved("moves_damped") > 3
    });
    let entry = &of_far()[0];
    assert!(entry["held_seconds"].as_u64().is_some_and(|left| (1..=30).contains(&left)), "{entry:#}");
    assert_eq!(moved("moved"), 2);
    let shown = run(&mut peregrine(&net, &["fdb"]));
    assert!(shown.contains(", held "), "{shown}");
    daemon.at_rest();
}

/// What a VTEP with this address on the far host sends to the near one.
fn encapsulated(from: [u8; 4], inner: &[u8]) -> Vec<u8> {
    let mac = |text: &str| text.parse::<peregrine_dataplane::types::MacAddr>().unwrap().0;
    let header = [&[8, 0, 0, 0][..], &(VNI << 8).to_be_bytes()].concat();
    let builder =
        etherparse::PacketBuilder::ethernet2(mac(FAR.2), mac(NEAR.2)).ipv4(from, [192, 0, 2, 1], 64);
    let mut packet = Vec::new();
    builder.udp(50000, 4789).write(&mut packet, &[&header, inner].concat()).unwrap();
    packet
}
