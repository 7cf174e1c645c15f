//! The daemon is killed under traffic and started again, and its tenant is not touched: in both roles of memif.
//!
//! The far host pings the tenant all the time. Measured is how long nobody answered; and each ping without an answer is
//! accounted for: it came while no daemon ran (then the near host's kernel got it, and had no such port), or the second daemon
//! dropped it and counted that, or it was in a ring when the first one was killed. The rings are short, so that the last
//! share cannot hide the others.

use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::time::{Duration, Instant};

use peregrine_control::lab::Process;
use peregrine_tests::{
    Daemon, FAR, NEAR, Net, PATIENCE, Tenant, answering_testpmd, cores, forwarded, ping, ping_patiently,
    program, run, totals, until,
};
use rustix::process::Signal;
use serde_json::Value;

/// Slots of the uplink's rings and of the tenant's.
const UPLINK_SLOTS: u64 = 64;
const TENANT_SLOTS: u64 = 32;
/// Pings that must go unheard where the daemon is kept away: more than all rings hold.
const UNHEARD: u64 = 250;

/// What the far host saw: pings up to the last answer, answers, the longest time between two.
#[derive(Debug)]
struct Seen {
    sent: u64,
    answered: u64,
    gap: Duration,
}

/// Pings every 2 ms, until told to stop.
fn pinging(net: &Net) -> Process {
    let mut command = net.far.command("ping");
    command.args(["-n", "-D", "-i", "0.002", Tenant::WEB.ip]);
    Process::start(&mut command).unwrap()
}

/// `[1763712000.123456] 64 bytes from …: icmp_seq=7 …` for each answer.
fn seen(pinging: Process) -> Seen {
    pinging.signal(Signal::INT);
    let text = pinging.finish(PATIENCE, &|| false).unwrap_or_else(|error| panic!("{error}"));
    let answers: Vec<&str> = text.lines().filter(|line| line.contains("bytes from")).collect();
    let time = |line: &&str| line.strip_prefix('[')?.split(']').next()?.parse::<f64>().ok();
    let times: Vec<f64> = answers.iter().filter_map(time).collect();
    let gap = times.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max);
    let number = |line: &&str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse().ok();
    // Later ones may have been under way when it was stopped.
    let sent = answers.iter().filter_map(number).max().unwrap_or_else(|| panic!("ping said: {text}"));
    assert!(!text.contains("DUP!"), "answered twice: {text}");
    Seen { sent, answered: answers.len() as u64, gap: Duration::from_secs_f64(gap) }
}

/// Datagrams that the near host's kernel got and nobody wanted: ours, when the daemon is away.
fn unheard(net: &Net) -> u64 {
    let text = run(net.near.command("cat").arg("/proc/net/snmp"));
    let mut udp = text.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, values) = (udp.next().expect("names"), udp.next().expect("values"));
    let mut both = names.split(' ').zip(values.split(' '));
    both.find(|(name, _)| *name == "NoPorts").expect("a counter").1.parse().unwrap()
}

/// A daemon with the tenant attached and answering.
fn started(net: &Net, config: &str) -> Daemon {
    let daemon = Daemon::start_with(net, config);
    daemon.wait_for_tenant(0, true);
    daemon.wait_for_next_hops();
    until("the tenant to answer", || ping(&net.far, Tenant::WEB.ip, 1, 1.0) == 1);
    daemon
}

/// Kills the daemon under traffic and starts it again, after so many pings have gone unheard. What the far host saw; and the
/// second daemon.
fn killed_and_started_again(net: &Net, config: &str, first: Daemon, unheard_min: u64) -> (Seen, Daemon) {
    let heard = || unheard(net);
    let (before, tenant_rx) = (heard(), totals(&first.stats(), "tenant_rx"));
    let traffic = pinging(net);
    until("traffic", || totals(&first.stats(), "tenant_rx") > tenant_rx + 100);
    first.kill();
    let killed = Instant::now();
    until("pings that nobody hears", || heard() - before >= unheard_min);
    let began = Instant::now();
    let second = Daemon::start_with(net, config);
    second.wait_for_tenant(0, true);
    let attached = (began.elapsed(), killed.elapsed());
    until("traffic again", || totals(&second.stats(), "tenant_rx") > 100);
    let seen = seen(traffic);
    let stats = second.at_rest();
    account(&seen, heard() - before, &stats);
    println!("restart: tenant attached {:?} after the start, {:?} after the kill", attached.0, attached.1);
    assert_eq!(stats["endpoints"][0]["bad_descriptors"], 0, "the memory is new: {stats}");
    // Once all is back, nothing is lost any more.
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 100, 0.002), 100);
    (seen, second)
}

/// Where the pings without an answer have gone.
fn account(seen: &Seen, unheard: u64, second: &Value) {
    let lost = seen.sent - seen.answered;
    let dropped = totals(second, "dropped");
    println!(
        "restart: {lost} of {} pings lost, nobody answered for {:?}: {unheard} came while no daemon ran, {dropped} were dropped \
         by the second one ({}), the rest was in rings",
        seen.sent, seen.gap, second["drops"]
    );
    let counted = unheard + dropped;
    assert!(lost >= counted, "{lost} lost, {counted} counted");
    // Each ring of the way in and out at most once full.
    let rings_hold = 2 * UPLINK_SLOTS + 2 * TENANT_SLOTS;
    assert!(lost - counted <= rings_hold, "{} pings are unaccounted for", lost - counted);
    assert!(seen.answered > 200, "{seen:?}");
}

/// Two kills: the daemon comes back at once; and only after more pings than fit any ring. What was answered in all.
fn twice(net: &Net, config: &str) -> (u64, Daemon) {
    let Tenant { ip, mac, .. } = Tenant::WEB;
    // Nothing but pings: no question for the address.
    net.far.ip(&format!("neigh replace {ip} lladdr {mac} dev vx nud permanent")).unwrap();
    let daemon = started(net, config);
    let (at_once, daemon) = killed_and_started_again(net, config, daemon, 0);
    let (later, daemon) = killed_and_started_again(net, config, daemon, UNHEARD);
    (at_once.answered + later.answered, daemon)
}

/// A config whose rings are short.
fn config(net: &Net, memif: &str) -> String {
    let config = Daemon::config(net, &[FAR.0], &[]) + &Tenant::WEB.endpoint(memif);
    let uplink = format!("local = \"{}\"\n", NEAR.0);
    assert!(config.contains(&uplink));
    config.replace(&uplink, &format!("{uplink}ring_size = {UPLINK_SLOTS}\n"))
}

/// State and start time of a process, from `/proc/PID/stat`; `None` when it is gone or dead.
fn start_time(pid: u32) -> Option<u64> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    // Fields 3 and 22; a zombie still has an entry.
    if ["Z", "X"].contains(&fields[0]) { None } else { fields[19].parse().ok() }
}

/// DPDK's memif driver (22.11) reads memory of a client that is gone, now and then, and crashes (a fault in `librte_net_memif`, see
/// `dmesg`). Such an attempt says nothing of the daemon.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_dpdk_server_goes_on_untouched_when_the_daemon_is_killed() {
    const ATTEMPTS: u32 = 6;
    let crashed = (0..ATTEMPTS).take_while(|_| !a_dpdk_server_goes_on()).count();
    println!("restart: testpmd crashed {crashed} times by itself");
    assert!(crashed < ATTEMPTS as usize, "testpmd crashed each time");
}

/// False if testpmd has crashed.
fn a_dpdk_server_goes_on() -> bool {
    let net = Net::new();
    let socket = net.file("tenant.sock");
    let device = format!("role=server,id=7,socket={},rsize=5,mac={}", socket.display(), Tenant::WEB.mac);
    // The daemon is first: a tenant that is not there yet is waited for.
    let memif =
        format!("role = \"client\", socket = \"{}\", id = 7, ring_size = {TENANT_SLOTS}", socket.display());
    let config = config(&net, &memif);
    // Once, at the end: its periodic statistics were seen to crash it while nobody is connected.
    let testpmd = answering_testpmd(&net, &device, 3600);
    let began = start_time(testpmd.id());
    assert!(began.is_some(), "it runs");
    let (answered, _daemon) = match catch_unwind(AssertUnwindSafe(|| twice(&net, &config))) {
        _ if start_time(testpmd.id()) != began => return false,
        Ok(all) => all,
        Err(panic) => resume_unwind(panic),
    };
    let said = testpmd.stop(PATIENCE).unwrap_or_else(|error| panic!("{error}"));
    let [received, sent] = ["RX-packets:", "TX-packets:"].map(|name| forwarded(&said, name));
    println!(
        "restart: testpmd has received {received} and sent {sent} in all, and {answered} pings were answered"
    );
    assert!(sent >= answered, "its count went on: {sent} of {answered}");
    true
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_client_that_retries_comes_back_when_the_daemon_is_killed() {
    let net = Net::new();
    let Tenant { id, mac, ip, .. } = Tenant::WEB;
    let mut command = Command::new(program("peregrine-pktgen"));
    command.args(["echo", "--json", "--reconnect", "--memif"]).arg(net.file("memif.sock"));
    command.args(["--id", &id.to_string(), "--mac", mac, "--ip", ip]);
    command.args(["--core", &cores().1.to_string(), "--ring-size", &TENANT_SLOTS.to_string()]);
    // Before the daemon: it waits for it.
    let echo = Process::start(&mut command).unwrap();
    let memif = format!("socket = \"{}\", id = {id}", net.file("memif.sock").display());
    let (answered, _daemon) = twice(&net, &config(&net, &memif));
    let report = peregrine_tests::report(echo);
    assert_eq!(report["ring"]["connections"], 3, "{report}");
    assert!(report["answered"]["icmp"].as_u64() >= Some(answered), "{report}");
}
