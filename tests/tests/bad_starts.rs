//! Starts that cannot succeed: one line that names the thing, the right exit status, and nothing left behind.

use std::time::Duration;

use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::QueueId;
use peregrine_dataplane::xsk::{self, XskConfig};
use peregrine_tests::{Daemon, FAR, NEAR, Net, Tenant, inside, ping_patiently, until, within};

fn good(net: &Net) -> String {
    Daemon::config(net, &[FAR.0], &[Tenant::WEB, Tenant::DB])
}

#[track_caller]
fn refused(net: &Net, config: &str, code: i32, naming: &[&str]) {
    let ended = Daemon::refused(net, config);
    assert_eq!((ended.code, ended.said.lines().count()), (Some(code), 1), "{}", ended.said);
    assert!(ended.said.starts_with("peregrine: error: "), "{}", ended.said);
    for name in naming {
        assert!(ended.said.contains(name), "no {name} in: {}", ended.said);
    }
    println!("bad start: {}", ended.said.trim_end());
}

#[track_caller]
fn nothing_is_left(net: &Net) {
    assert!(!net.has_program());
    for socket in ["control.sock", "memif.sock"] {
        assert!(!net.file(socket).exists(), "{socket}");
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn each_is_one_line_and_leaves_nothing() {
    let net = Net::new();
    let good = good(&net);
    let replaced = |from: &str, to: &str| {
        assert!(good.contains(from), "{from}");
        good.replace(from, to)
    };
    for (from, to, code, naming) in [
        ("interface = \"near0\"", "interface = \"none0\"", 1, &["none0"][..]),
        ("local = \"192.0.2.1\"", "local = \"192.0.2.77\"", 1, &["192.0.2.77", "192.0.2.1"]),
        ("mode = \"copy\"", "mode = \"require-zero-copy\"", 1, &["near0", "zero-copy", "veth"]),
        ("mode = \"copy\"", "mode = \"copy\"\nqueues = [7]", 1, &["near0", "7"]),
        (Tenant::DB.mac, Tenant::WEB.mac, 2, &[Tenant::WEB.mac, "endpoints"]),
        ("mode = \"copy\"", "mode = \"fast\"", 2, &["uplink.mode", "fast"]),
        ("mode = \"copy\"", "mdoe = \"copy\"", 2, &["mdoe", "mode"]),
        ("id = 1", "id = 0", 2, &["id"]),
        ("[[workers]]\ncore = ", "[[workers]]\ncore = 9", 1, &["core"]),
    ] {
        refused(&net, &replaced(from, to), code, naming);
        nothing_is_left(&net);
    }
    refused(&net, "nonsense", 2, &["peregrine.toml"]);
    nothing_is_left(&net);
    // All mistakes at once, each in its own line.
    let many = replaced("mode = \"copy\"", "mode = \"fast\"").replace("vni = 42", "vni = 0");
    let ended = Daemon::refused(&net, &many);
    assert_eq!((ended.code, ended.said.lines().count()), (Some(2), 2), "{}", ended.said);

    net.near.ip(&format!("link set {} down", NEAR.1)).unwrap();
    refused(&net, &good, 1, &["near0", "down"]);
    nothing_is_left(&net);
    net.near.ip(&format!("link set {} up", NEAR.1)).unwrap();
    // After all that it starts.
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    daemon.wait_for_next_hops();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_interface_that_another_has_is_left_to_it() {
    let net = Net::new();
    let first = Daemon::start(&net, &[Tenant::WEB]);
    let _echo = Tenant::WEB.echo(&net);
    first.wait_for_next_hops();
    let config = good(&net);
    // The same sockets: a daemon answers there.
    refused(&net, &config, 1, &["control.sock"]);
    // Other sockets, but the same interface: its program is not replaced.
    let other = config.replace("control.sock", "other.sock").replace("memif.sock", "other-memif.sock");
    refused(&net, &other, 1, &["near0", "XDP program", "peregrine_steer"]);
    assert!(!net.file("other.sock").exists() && !net.file("other-memif.sock").exists());
    assert!(net.has_program());
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 20, 0.01), 20, "the first was not disturbed");
}

/// A queue that somebody else has is waited for, then given up.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_taken_queue_is_waited_for_a_while() {
    let net = Net::new();
    let config = XskConfig::new(NEAR.1, XdpMode::Copy);
    let holder = inside(&net.near, || xsk::open(&config, &[vec![QueueId(0)]]).unwrap());
    refused(&net, &good(&net), 1, &["queue 0 of near0", "AF_XDP"]);
    nothing_is_left(&net);
    std::thread::scope(|scope| {
        let net = &net;
        scope.spawn(move || {
            // The control socket comes first: from then on the daemon meets the taken queue.
            until("the daemon to begin", || net.file("control.sock").exists());
            within(Duration::from_millis(300), || false);
            drop(holder);
        });
        let daemon = Daemon::start(net, &[Tenant::WEB]);
        println!("bad start: a queue free after 0.3 s: ready after {:?}", daemon.start_time);
        assert!(daemon.start_time > Duration::from_millis(300));
        daemon.wait_for_next_hops();
    });
}

/// Without huge pages it runs, and says that it has none.
#[test]
#[ignore = "needs root: make test runs it"]
fn what_was_asked_and_what_was_got_are_said_at_start() {
    let net = Net::new();
    let config = good(&net).replace("mode = \"copy\"", "mode = \"prefer-zero-copy\"");
    let daemon = Daemon::start_with(&net, &config);
    let status = daemon.status();
    let uplink = &status["uplinks"][0];
    assert_eq!(
        (&uplink["mode_requested"], &uplink["mode_actual"]),
        (&"prefer-zero-copy".into(), &"copy".into())
    );
    let said = daemon.stop().split_whitespace().collect::<Vec<_>>().join(" ");
    let pages = if uplink["huge_pages"] == true { "huge pages yes" } else { "huge pages no: none free" };
    assert!(said.contains("prefer-zero-copy asked, copy got"), "{said}");
    assert!(said.contains(pages), "{said}");
}
