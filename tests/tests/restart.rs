//! The daemon is killed under traffic and started again, and its tenant is not touched: in both roles of memif.
//!
//! Measured is the outage that the far host sees, in pings: how many got no answer, and the longest time between two answers.

use std::process::Command;
use std::time::{Duration, Instant};

use peregrine_control::lab::{Namespace, Process};
use peregrine_tests::{Daemon, FAR, Net, PATIENCE, Tenant, cores, ping, program, totals, until};

/// What `ping` saw: packets sent, answers, the longest time between two answers.
#[derive(Debug)]
struct Seen {
    sent: u64,
    answered: u64,
    gap: Duration,
}

/// Pings every 2 ms for so long.
fn pinging(from: &Namespace, to: &str, seconds: u32) -> Process {
    let mut command = from.command("ping");
    command.args(["-n", "-D", "-i", "0.002", "-w", &seconds.to_string(), to]);
    Process::start(&mut command).unwrap()
}

/// `[1763712000.123456] 64 bytes from …` for each answer; `400 packets transmitted, …` at the end.
fn seen(text: &str) -> Seen {
    let time = |line: &str| line.strip_prefix('[')?.split(']').next()?.parse::<f64>().ok();
    let times: Vec<f64> = text.lines().filter(|line| line.contains("bytes from")).filter_map(time).collect();
    let gap = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    let sent = text.lines().find_map(|line| line.split(" packets transmitted").next()?.parse().ok());
    let sent = sent.unwrap_or_else(|| panic!("ping said: {text}"));
    Seen { sent, answered: times.len() as u64, gap: Duration::from_secs_f64(gap) }
}

/// Kills the daemon under traffic and starts it again; what the far host saw.
fn killed_and_started_again(net: &Net, config: &str) -> Seen {
    let daemon = Daemon::start_with(net, config);
    daemon.wait_for_tenant(0, true);
    daemon.wait_for_next_hops();
    until("the tenant to answer", || ping(&net.far, Tenant::WEB.ip, 1, 1.0) == 1);
    let traffic = pinging(&net.far, Tenant::WEB.ip, 5);
    let before = totals(&daemon.stats(), "tenant_rx");
    until("traffic", || totals(&daemon.stats(), "tenant_rx") > before + 100);
    daemon.kill();
    let began = Instant::now();
    let daemon = Daemon::start_with(net, config);
    daemon.wait_for_tenant(0, true);
    let back = began.elapsed();
    until("traffic again", || totals(&daemon.stats(), "tenant_rx") > 100);
    let text = traffic.finish(PATIENCE, &|| false).unwrap_or_else(|error| panic!("{error}"));
    let seen = seen(&text);
    let stats = daemon.at_rest();
    let endpoint = &stats["endpoints"][0];
    println!(
        "restart: tenant attached {back:?} after the kill; {} of {} pings unanswered, longest time between answers {:?}; drops {}",
        seen.sent - seen.answered,
        seen.sent,
        seen.gap,
        stats["drops"]
    );
    assert_eq!(endpoint["bad_descriptors"], 0, "the memory is new or was taken up well: {stats}");
    assert!(seen.answered > 200 && seen.answered <= seen.sent, "{seen:?}");
    // After the restart nothing is lost but what came before the tenant and the next hop were back: all of it counted.
    assert_eq!(ping(&net.far, Tenant::WEB.ip, 100, 0.002), 100);
    seen
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_dpdk_server_goes_on_untouched_when_the_daemon_is_killed() {
    let net = Net::new();
    let socket = net.file("tenant.sock");
    let tenant = Tenant::WEB;
    let (worker, other) = cores();
    let mut command = Command::new("dpdk-testpmd");
    command.env("RUNTIME_DIRECTORY", net.file("dpdk"));
    command.args(["--no-huge", "-m", "512", "--no-pci", "--no-shconf", "--no-telemetry"]);
    command.arg(format!(
        "--vdev=net_memif0,role=server,id=7,socket-abstract=no,socket={},bsize=2048,rsize=10,mac={}",
        socket.display(),
        tenant.mac
    ));
    command.args(["-l", &format!("{other},{worker}"), "--main-lcore", &worker.to_string(), "--"]);
    command.args(["--forward-mode=icmpecho", "--auto-start", "--total-num-mbufs=16384", "--nb-cores=1"]);
    command.args(["--no-flush-rx", "--stats-period=1", "--no-lsc-interrupt"]);
    // The daemon is first: a tenant that is not there yet is waited for.
    let config = Daemon::config(&net, &[FAR.0], &[])
        + &format!(
            "\n[[endpoints]]\nname = \"{}\"\nnetwork = \"{}\"\nmac = \"{}\"\n\
             memif = {{ role = \"client\", socket = \"{}\", id = 7 }}\n",
            tenant.name,
            tenant.network,
            tenant.mac,
            socket.display()
        );
    let testpmd = Process::start(&mut command).unwrap();
    let pid = testpmd.id();
    killed_and_started_again(&net, &config);
    assert_eq!(testpmd.id(), pid);
    assert!(std::path::Path::new("/proc").join(pid.to_string()).exists(), "it ran all the time");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_that_retries_comes_back_when_the_daemon_is_killed() {
    let net = Net::new();
    let tenant = Tenant::WEB;
    let mut command = Command::new(program("peregrine-pktgen"));
    command.args(["echo", "--json", "--reconnect", "--memif"]).arg(net.file("memif.sock"));
    command.args(["--id", &tenant.id.to_string(), "--mac", tenant.mac, "--ip", tenant.ip]);
    command.args(["--core", &cores().1.to_string()]);
    // Before the daemon: it waits for it.
    let echo = Process::start(&mut command).unwrap();
    killed_and_started_again(&net, &Daemon::config(&net, &[FAR.0], &[tenant]));
    let report = peregrine_tests::report(echo);
    assert_eq!(report["ring"]["connections"], 2, "{report}");
}
