//! Rules that are replaced by the command line while a tenant answers pings, with a ring for urgent frames: none is lost. And what is
//! refused.

use std::process::{Command, Output};

use peregrine_tests::{Daemon, FAR, Net, Tenant, ping_patiently, program, run, totals};
use serde_json::{Value, json};

const PINGS: u32 = 1500;

/// `peregrine rules …`.
fn rules(net: &Net, arguments: &[&str]) -> Command {
    let mut command = Command::new(program("peregrine"));
    command.arg("rules").args(arguments).arg("--socket").arg(net.file("control.sock"));
    command
}

/// A file of this test.
fn file(net: &Net, name: &str, text: &str) -> String {
    let path = net.file(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn start(net: &Net) -> Daemon {
    let config = Daemon::config(net, &[FAR.0], &[Tenant::WEB]);
    assert!(config.contains("[uplink]\n"));
    let daemon = Daemon::start_with(net, &config.replace("[uplink]\n", "[uplink]\nearly = true\n"));
    daemon.wait_for_next_hops();
    daemon
}

/// How many frames the XDP program has steered, and how many of them by the urgent ring.
fn steered(daemon: &Daemon) -> [u64; 2] {
    let program = &daemon.stats()["uplinks"][0]["program"][0];
    ["steered", "urgent"].map(|name| program[name].as_u64().unwrap())
}

const ALL: &str = "[[rules]]\nclass = \"urgent\"\nnetwork = \"blue\"\n";
const NONE: &str = "rules = []\n";
const PORT: &str = "[[rules]]\nclass = \"urgent\"\nnetwork = \"blue\"\nprotocol = \"udp\"\ndestination_port = \"5000-5099\"\n";

#[test]
#[ignore = "needs root: make test runs it"]
fn a_tenant_answers_every_ping_while_rules_change() {
    let net = Net::new();
    let daemon = start(&net);
    let echo = Tenant::WEB.echo(&net);
    let files = [("all", ALL), ("none", NONE), ("port", PORT)].map(|(name, text)| file(&net, name, text));
    let changes = std::thread::scope(|scope| {
        let pings = scope.spawn(|| ping_patiently(&net.far, Tenant::WEB.ip, PINGS, 0.002));
        let mut changes = 0;
        while !pings.is_finished() || changes < 3 {
            let place = changes % files.len();
            let said = run(&mut rules(&net, &["set", &files[place]]));
            assert_eq!(said, ["1 rule in force\n", "0 rules in force\n", "1 rule in force\n"][place]);
            let status = daemon.status()["rules"].take();
            assert_eq!(status["step"], "settled", "{status}");
            changes += 1;
        }
        assert_eq!(pings.join().unwrap(), PINGS, "{:#}", daemon.stats());
        changes
    });
    // What is urgent now comes by the urgent ring, and only that.
    for (set, urgent) in [(&files[0], 10), (&files[1], 0)] {
        run(&mut rules(&net, &["set", set]));
        let before = steered(&daemon);
        assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 10, 0.002), 10);
        let after = steered(&daemon);
        // An ARP request may be among them.
        assert!(after[0] - before[0] >= 10, "after {changes} changes");
        let came = after[1] - before[1];
        assert!(
            if urgent == 0 { came == 0 } else { came >= urgent },
            "{came} urgent after {changes} changes"
        );
    }
    let stats = daemon.at_rest();
    assert_eq!(totals(&stats, "dropped"), 0, "{}", stats["drops"]);
    drop(echo);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_is_listed_can_be_set_again() {
    let net = Net::new();
    let daemon = start(&net);
    let listed = |how: &[&str]| run(&mut rules(&net, &[&["list"], how].concat()));
    assert_eq!((listed(&["--toml"]), listed(&[])), (NONE.into(), "0 rules\n".into()));
    let text = format!("{PORT}\n[[rules]]\nclass = \"normal\"\nendpoint = \"web\"\ndscp = [8, \"40-47\"]\n");
    let said = rules(&net, &["set", &file(&net, "two", &text), "--json"]).output().unwrap();
    let answer: Value = serde_json::from_slice(&said.stdout).unwrap();
    let settled = json!({"count": 2, "step": "settled", "not_early": null});
    assert_eq!((&answer["count"], &answer["status"]), (&json!(2), &settled), "{answer}");
    let toml = listed(&["--toml"]);
    let told: Value = serde_json::from_str(&listed(&["--json"])).unwrap();
    assert_eq!(
        told["rules"][1],
        json!({"class": "normal", "network": "blue", "endpoint": "web", "dscp": [8, "40-47"]})
    );
    let human = listed(&[]);
    assert!(human.contains("destination_port 5000-5099") && human.contains("dscp 8|40-47"), "{human}");
    run(&mut rules(&net, &["set", &file(&net, "none", NONE)]));
    run(&mut rules(&net, &["set", &file(&net, "again", &toml)]));
    assert_eq!(listed(&["--toml"]), toml);
    let status =
        run(Command::new(program("peregrine")).args(["status", "--socket"]).arg(net.file("control.sock")));
    assert!(status.lines().any(|line| line.split_whitespace().eq(["rules", "2", "rules"])), "{status}");
    daemon.stop();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_cannot_be_taken_is_said_with_its_place() {
    let net = Net::new();
    let daemon = start(&net);
    let good = file(&net, "good", ALL);
    run(&mut rules(&net, &["set", &good]));
    let rule = |more: &str| format!("[[rules]]\nclass = \"urgent\"\n{more}\n");
    for (text, lines, want) in [
        (rule("port = 70000"), 1, ": rules[0].port = 70000: must be a number from 0 to 65535"),
        (
            rule("network = \"bleu\"\nprot = 1"),
            2,
            ": rules[0].network = \"bleu\": must be the name of a network",
        ),
        (rule("port = "), 1, ":3:8: "),
        (format!("{ALL}[uplink]\n"), 1, ": uplink: unknown key: must be one of rules"),
        (String::new(), 1, ": rules: missing: must be a list of tables"),
    ] {
        let file = file(&net, "bad", &text);
        for what in ["set", "check"] {
            let output = rules(&net, &[what, &file]).output().unwrap();
            let said = stderr(&output);
            assert_eq!((output.status.code(), said.lines().count()), (Some(2), lines), "{text}: {said}");
            assert!(said.contains(&format!("peregrine: error: {file}{want}")), "{text}: {said}");
        }
    }
    let output = rules(&net, &["set", "/nonexistent"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2), "{}", stderr(&output));
    assert_eq!(daemon.ask("rules.get")["rules"], json!([{"class": "urgent", "network": "blue"}]));

    let odd = file(&net, "odd", &format!("{ALL}{}", rule("network = \"blue\"\nport = 22")));
    let output = rules(&net, &["check", &odd]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), format!("{odd}: ok — 2 rules\n"));
    let said = stderr(&output);
    assert!(said.starts_with("peregrine: warning: rules[1]: no packet reaches it"), "{said}");
    assert_eq!(daemon.status()["rules"]["count"], 1);
    daemon.stop();
    let output = rules(&net, &["list"]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "{}", stderr(&output));
}
