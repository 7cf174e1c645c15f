//! A daemon whose worker sleeps while there is nothing to do: it costs next to nothing then, everybody wakes it, and a tenant that does not
//! want to is noticed all the same.

use std::time::{Duration, Instant};

use peregrine_tests::{Daemon, FAR, Guest, Memory, Net, Tenant, frame, ping_patiently, totals, until};
use rustix::process::Signal;

const PINGS: u32 = 1000;

fn sleepy(net: &Net) -> Daemon {
    let config = Daemon::config(net, &[FAR.0], &[Tenant::WEB, Tenant::DB]);
    let daemon = Daemon::start_with(net, &Daemon::sleepy(&config));
    daemon.wait_for_next_hops();
    daemon
}

/// Of its one worker.
fn worker(daemon: &Daemon) -> serde_json::Value {
    daemon.stats()["workers"][0].take()
}

/// A sleep has ended, and with nothing to do the next one soon begins.
fn until_asleep(daemon: &Daemon) {
    let sleeps = || worker(daemon)["sleeps"].as_u64().unwrap();
    let before = sleeps();
    until("another sleep", || sleeps() > before);
}

/// Processor time of the worker's thread.
fn ran(daemon: &Daemon) -> Duration {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", daemon.id())).unwrap().flatten();
    let read =
        |task: &std::fs::DirEntry, file: &str| std::fs::read_to_string(task.path().join(file)).unwrap();
    let of_worker = tasks.filter(|task| read(task, "comm").starts_with("worker-"));
    let ns =
        of_worker.map(|task| read(&task, "schedstat").split(' ').next().unwrap().parse::<u64>().unwrap());
    Duration::from_nanos(ns.sum())
}

#[test]
#[ignore = "needs root: make test runs it"]
fn pings_wake_it_and_at_rest_it_costs_next_to_nothing() {
    let net = Net::new();
    let daemon = sleepy(&net);
    let echo = Tenant::WEB.echo(&net);
    daemon.wait_for_tenant(0, true);
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, PINGS, 0.002), PINGS, "{:#}", daemon.stats());
    let woken = worker(&daemon)["woken_by"].take();
    assert!(woken["uplink"].as_u64() > Some(100) && woken["tenants"].as_u64() > Some(100), "{woken}");
    // At rest, as far as a host without packets of its own goes.
    until("most of a second asleep", || {
        let status = daemon.status();
        assert_eq!(status["workers"][0]["idle"], "adaptive");
        status["workers"][0]["slept"].as_f64() > Some(0.9)
    });
    let (began, before) = (Instant::now(), ran(&daemon));
    let sleeps = worker(&daemon)["sleeps"].as_u64().unwrap() + 100;
    until("a hundred sleeps", || worker(&daemon)["sleeps"].as_u64() > Some(sleeps));
    let share = (ran(&daemon) - before).as_secs_f64() / began.elapsed().as_secs_f64();
    println!("at rest {:.2} % of a core, {woken}", 100.0 * share);
    assert!(share < 0.05, "{share}");
    assert_eq!(totals(&daemon.at_rest(), "dropped"), 0, "{:#}", daemon.stats());
    drop(echo);
    // And it ends at once.
    until_asleep(&daemon);
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.end(Duration::from_secs(5)).code, Some(0));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_tenant_that_does_not_call_is_noticed_all_the_same() {
    let net = Net::new();
    let daemon = sleepy(&net);
    let mut mute = Guest::new(&net, Tenant::WEB);
    let memory = Memory::of_the_guest();
    let mut other = Guest::new(&net, Tenant::DB);
    for round in 0..50 {
        until_asleep(&daemon);
        memory.mask();
        let sent = frame(Tenant::WEB.mac, Tenant::DB.mac, &format!("{round}"));
        mute.send(&sent);
        other.receive_until(&sent);
        // And what is for it comes all the same.
        let answer = frame(Tenant::DB.mac, Tenant::WEB.mac, &format!("{round}"));
        other.send(&answer);
        mute.receive_until(&answer);
    }
    assert_eq!(totals(&daemon.at_rest(), "dropped"), 0, "{:#}", daemon.stats());
    daemon.stop();
}
