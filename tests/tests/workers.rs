//! Cores that the daemon gets and gives up while a tenant answers pings: none is lost. And what it refuses.

use std::process::{Command, Output};

use peregrine_tests::{Daemon, Net, Tenant, cores, ping_patiently, program, totals, until};
use serde_json::{Value, json};

const PINGS: u32 = 1000;

/// `peregrine worker …`, to its end.
fn worker(net: &Net, arguments: &[&str]) -> Output {
    let mut command = Command::new(program("peregrine"));
    command.arg("worker").args(arguments).arg("--socket").arg(net.file("control.sock"));
    command.output().unwrap()
}

/// The cores in use, as it says.
#[track_caller]
fn done(net: &Net, what: &str, core: usize) -> Value {
    let output = worker(net, &[what, &core.to_string(), "--json"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice::<Value>(&output.stdout).unwrap()["cores"].take()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_tenant_answers_every_ping_while_workers_come_and_go() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    daemon.wait_for_next_hops();
    let echo = Tenant::WEB.echo(&net);
    daemon.wait_for_tenant(0, true);
    let (first, second) = cores();
    let both = json!([first.min(second), first.max(second)]);
    let run_on = |wanted: &[usize]| {
        let status = daemon.status();
        let cores: Vec<u64> =
            status["workers"].as_array().unwrap().iter().map(|it| it["core"].as_u64().unwrap()).collect();
        cores.iter().eq(wanted.iter().map(|core| *core as u64).collect::<Vec<_>>().iter())
    };
    std::thread::scope(|scope| {
        let pings = scope.spawn(|| ping_patiently(&net.far, Tenant::WEB.ip, PINGS, 0.002));
        // A worker without queues comes; the first core goes, so that its worker moves to the other one; it gets a core again; and the one
        // without queues ends.
        assert_eq!(done(&net, "add", second), both);
        until("two workers", || run_on(&[first, second]));
        assert_eq!(done(&net, "remove", first), json!([second]));
        until("both on the second core", || run_on(&[second, second]));
        assert_eq!(done(&net, "add", first), both);
        until("each on its core", || run_on(&[first, second]));
        assert_eq!(done(&net, "remove", second), json!([first]));
        until("one worker", || run_on(&[first]));
        let answered = pings.join().unwrap();
        assert_eq!(answered, PINGS, "{:#}", daemon.stats());
    });
    let stats = daemon.at_rest();
    assert_eq!(totals(&stats, "dropped"), 0, "{}", stats["drops"]);
    drop(echo);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_cannot_be_done_is_said_in_one_line() {
    let net = Net::new();
    let config = Daemon::config(&net, &[], &[Tenant::WEB]).replace("remotes = []\n", "");
    let daemon = Daemon::start_with(&net, &format!("placement = \"run-to-completion\"\n{config}"));
    let (first, second) = cores();
    let (first, second) = (first.to_string(), second.to_string());
    for (arguments, status, want) in [
        (&["add", &first][..], 1, "has a worker already"),
        (&["add", "4095"], 1, "this process may use cores"),
        (&["add", &second, "--nice", "-21"], 1, "nice is from -20"),
        (&["add", &second], 1, "another one has nothing to do"),
        (&["remove", &second], 1, "has no worker: those on cores"),
        (&["remove", &first], 1, "is the last one"),
        (&["remove", "x"], 2, "invalid value"),
    ] {
        let output = worker(&net, arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!((output.status.code(), said.lines().count()), (Some(status), 1), "{arguments:?}: {said}");
        assert!(said.contains(want), "{arguments:?}: {said}");
    }
    assert_eq!(daemon.status()["workers"].as_array().unwrap().len(), 1);
}
