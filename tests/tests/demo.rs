//! `peregrine demo`, as a user runs it.

use std::fs::File;
use std::process::{Command, Stdio};

use peregrine_control::lab::{Namespace, Process};
use peregrine_tests::{PATIENCE, program, run, until};
use serde_json::Value;

fn namespaces() -> Vec<String> {
    let Ok(names) = std::fs::read_dir("/run/netns") else { return Vec::new() };
    let names = names.flatten().filter_map(|entry| entry.file_name().into_string().ok());
    names.filter(|name| name.starts_with("peregrine-demo")).collect()
}

fn demo() -> Command {
    let mut command = Command::new(program("peregrine"));
    command.args(["demo", "--seconds", "1", "--json"]).stdin(Stdio::null());
    command
}

fn containers() -> Command {
    let mut command = demo();
    command.arg("containers");
    command
}

/// What a killed demo left is polling on all cores: it must not meet the next test, also if this one fails. A demo
/// that somebody else runs holds the lock and is left alone.
struct Leftovers;

impl Drop for Leftovers {
    fn drop(&mut self) {
        let lock = File::create("/run/peregrine-demo.lock");
        if lock.is_ok_and(|lock| lock.try_lock().is_ok()) {
            // In place of the old one, which goes with its programs.
            namespaces().iter().for_each(|name| drop(Namespace::create(name)));
        }
    }
}

/// One whole run: everything that the report promises, with figures that can be.
fn runs_well() {
    let text = run(&mut demo());
    assert_eq!(text.lines().count(), 1, "one object: {text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    for half in ["peregrine", "kernel"] {
        let figures = &report[half];
        for key in ["offered_pps", "received_pps", "sent", "received"] {
            assert!(figures[key].as_f64() > Some(0.0), "{half}.{key} in {report:#}");
        }
        for key in ["lost", "reordered"] {
            assert!(figures[key].is_u64(), "{half}.{key} in {report:#}");
        }
        assert_eq!(figures["reordered"], 0, "{half}");
        let sum = figures["received"].as_u64().unwrap() + figures["lost"].as_u64().unwrap();
        assert_eq!(Some(sum), figures["sent"].as_u64(), "{half}: {report:#}");
        let rtt = &figures["rtt_us"];
        let percentiles = ["p50", "p90", "p99", "p999", "max"].map(|key| rtt[key].as_f64().unwrap());
        assert!(percentiles[0] > 0.0 && percentiles.is_sorted(), "{half}: {rtt}");
    }
    for key in ["received_pps", "p99"] {
        assert!(report["ratio"][key].as_f64() > Some(0.0), "ratio.{key} in {report:#}");
    }
    let ping = &report["ping"];
    assert_eq!((ping["sent"].as_u64(), ping["received"].as_u64()), (Some(20), Some(20)), "{ping}");
    assert!(ping["rtt_us_p50"].as_f64() > Some(0.0), "{ping}");
    assert_eq!(report["conserved"], true, "{report:#}");
    assert!(report["drops"].is_object(), "{report:#}");
    let uplink = &report["uplink"];
    assert_eq!((&uplink["driver"], &uplink["mode_actual"]), (&"veth".into(), &"copy".into()));
    assert!(uplink["mode_requested"].is_string() && uplink["queues"].is_array(), "{uplink}");
    assert_eq!(namespaces(), [""; 0]);
    println!(
        "demo: received {} of {}, kernel {}; ratio {}",
        report["peregrine"]["received"],
        report["peregrine"]["sent"],
        report["kernel"]["received"],
        report["ratio"]
    );
}

#[test]
#[ignore = "needs root: make test runs it"]
fn it_runs_twice_and_after_a_kill() {
    let _leftovers = Leftovers;
    runs_well();
    runs_well();
    let mut killed = Process::start(&mut demo()).unwrap();
    killed.wait_for_line("demo: (b)", PATIENCE).unwrap();
    drop(killed); // SIGKILL
    assert!(!namespaces().is_empty(), "a killed one cannot clean up");
    runs_well();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn interrupted_it_removes_everything() {
    let mut demo = Process::start(&mut demo()).unwrap();
    demo.wait_for_line("demo: (b)", PATIENCE).unwrap();
    demo.signal(rustix::process::Signal::INT);
    let error = demo.finish(PATIENCE, &|| false).unwrap_err().to_string();
    assert!(error.contains("interrupted"), "{error}");
    until("everything to be gone", || namespaces().is_empty());
    assert!(!std::path::Path::new("/run/peregrine-demo").exists());
}

/// The scenario with containers, to its end.
fn containers_run_well() {
    let text = run(&mut containers());
    assert_eq!(text.lines().count(), 1, "one object: {text}");
    let report: Value = serde_json::from_str(&text).unwrap();
    for half in ["peregrine", "kernel"] {
        let figures = &report[half];
        assert!(figures["first_ping_ms"].as_f64() > Some(0.0), "{half}: {figures}");
        assert_eq!(
            (&figures["pairs"], &figures["pairs_reached"]),
            (&30.into(), &30.into()),
            "{half}: {figures}"
        );
        let ping = &figures["ping"];
        assert_eq!((&ping["sent"], &ping["received"]), (&200.into(), &200.into()), "{half}: {ping}");
        let times = ["rtt_us_p50", "rtt_us_p90"].map(|key| ping[key].as_f64().unwrap());
        assert!(times[0] > 0.0 && times.is_sorted(), "{half}: {ping}");
        let (tcp, udp) = (&figures["tcp"], &figures["udp"]);
        assert!(tcp["gbit_s"].as_f64() > Some(0.0) && tcp["retransmits"].is_u64(), "{half}: {tcp}");
        assert!(
            udp["sent"].as_u64() > Some(1000) && udp["lost"].as_u64() < udp["sent"].as_u64(),
            "{half}: {udp}"
        );
        for curl in ["curl_ipv4", "curl_ipv6"].map(|key| &figures[key]) {
            assert_eq!(
                (&curl["status"], &curl["bytes"]),
                (&200.into(), &(10 << 20).into()),
                "{half}: {curl}"
            );
            assert!(curl["intact"] == true && curl["milliseconds"].as_f64() > Some(0.0), "{half}: {curl}");
        }
    }
    for key in ["first_ping", "ping_p50", "tcp"] {
        assert!(report["ratio"][key].as_f64() > Some(0.0), "ratio.{key} in {report:#}");
    }
    assert_eq!(report["conserved"], true, "{report:#}");
    let daemons = report["daemons"].as_array().unwrap();
    let conserved =
        |daemon: &Value| daemon["frames"].as_str().is_some_and(|line| line.ends_with(": conserved"));
    assert!(daemons.len() == 2 && daemons.iter().all(conserved), "{report:#}");
    assert!(report["cores"]["worker_a"].is_u64() && report["seconds"] == 1, "{report:#}");
    assert_eq!(namespaces(), [""; 0]);
    println!(
        "demo containers: {}, {}; ratio {}",
        report["peregrine"]["tcp"], report["kernel"]["tcp"], report["ratio"]
    );
}

#[test]
#[ignore = "needs root: make test runs it"]
fn containers_run_also_after_a_kill() {
    let _leftovers = Leftovers;
    for step in ["demo: (b) 200 pings through peregrine", "demo: (b) 200 pings through the kernel"] {
        let mut killed = Process::start(&mut containers()).unwrap();
        killed.wait_for_line(step, 2 * PATIENCE).unwrap();
        drop(killed); // SIGKILL
        assert!(!namespaces().is_empty(), "a killed one cannot clean up");
    }
    containers_run_well();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_demo_of_containers_leaves_nothing_when_it_is_interrupted() {
    let _leftovers = Leftovers;
    for step in
        ["demo: (a) peregrine", "demo: (c) iperf3 through peregrine", "demo: (c) iperf3 through the kernel"]
    {
        let mut demo = Process::start(&mut containers()).unwrap();
        demo.wait_for_line(step, 4 * PATIENCE).unwrap();
        demo.signal(rustix::process::Signal::INT);
        let error = demo.finish(PATIENCE, &|| false).unwrap_err().to_string();
        assert!(error.contains("interrupted"), "{error}");
        until("everything to be gone", || namespaces().is_empty());
        assert!(!std::path::Path::new("/run/peregrine-demo").exists());
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn the_demo_of_containers_names_the_package_that_is_missing() {
    let here = tempfile::tempdir().unwrap();
    for tool in ["ip", "ping", "nice", "setpriv", "curl", "python3", "taskset", "nsenter"] {
        File::create(here.path().join(tool)).unwrap();
    }
    let output = containers().env("PATH", here.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.lines().count() == 1 && said.contains("iperf3 is missing"), "{said}");
    assert_eq!(namespaces(), [""; 0]);
}
