//! Starts, ends and everything that changes around a running daemon.

use std::time::{Duration, Instant};

use peregrine_tests::{
    Daemon, FAR, FAR_OVERLAY, Guest, NEAR, Net, PATIENCE, RawSocket, Tenant, frame, ping, ping_patiently,
    totals, until, within,
};
use rustix::process::Signal;

#[test]
#[ignore = "needs root: make test runs it"]
fn killed_under_traffic_it_leaves_no_program_and_starts_again_at_once() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    let echo = Tenant::WEB.echo(&net);
    daemon.wait_for_next_hops();
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 20, 0.01), 20);
    std::thread::scope(|scope| {
        let far = &net.far;
        let traffic = scope.spawn(move || ping(far, Tenant::WEB.ip, 400, 0.002));
        until("traffic", || totals(&daemon.stats(), "uplink_rx") > 100);
        assert!(net.has_program());
        daemon.kill();
        until("the program to be gone", || !net.has_program());
        drop(echo);
        let daemon = Daemon::start(&net, &[Tenant::WEB]);
        let _echo = Tenant::WEB.echo(&net);
        daemon.wait_for_next_hops();
        let answered = traffic.join().unwrap();
        assert!((50..400).contains(&answered), "{answered}");
        assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 20, 0.01), 20);
        daemon.at_rest();
    });
}

#[test]
#[ignore = "needs root: make test runs it"]
fn stopped_under_traffic_it_ends_within_a_second_and_leaves_nothing() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB, Tenant::DB]);
    let _echo = Tenant::WEB.echo(&net);
    let _idle = Guest::new(&net, Tenant::DB);
    daemon.wait_for_next_hops();
    std::thread::scope(|scope| {
        let far = &net.far;
        let traffic = scope.spawn(move || ping(far, Tenant::WEB.ip, 300, 0.002));
        until("traffic", || totals(&daemon.stats(), "uplink_rx") > 100);
        let began = Instant::now();
        daemon.signal(Signal::TERM);
        let ended = daemon.end(PATIENCE);
        let took = began.elapsed();
        assert_eq!(ended.code, Some(0), "{}", ended.said);
        assert!(took < Duration::from_secs(1), "{took:?}");
        println!("lifecycle: SIGTERM to the end in {took:?}");
        traffic.join().unwrap();
    });
    assert!(!net.has_program());
    assert!(!net.file("control.sock").exists() && !net.file("memif.sock").exists());
}

/// The daemon stays, says so, uses no processor time for it, and still ends when asked.
#[test]
#[ignore = "needs root: make test runs it"]
fn an_uplink_that_is_deleted_is_survived_or_told() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    let mut guest = Guest::new(&net, Tenant::WEB);
    daemon.wait_for_next_hops();
    net.near.ip(&format!("link del {}", NEAR.1)).unwrap();
    until("the daemon to notice", || daemon.status()["uplinks"][0]["link"]["up"] != true);
    for _ in 0..100 {
        guest.send(&frame(Tenant::WEB.mac, FAR_OVERLAY.1, "to nowhere"));
    }
    until("what was sent is taken", || totals(&daemon.stats(), "tenant_rx") >= 100);
    let rest = daemon.at_rest();
    // The worker polls, as ever; the control thread must not.
    let before = control_ticks(&daemon);
    within(Duration::from_millis(500), || false);
    let spent = control_ticks(&daemon) - before;
    assert!(spent < 25, "{spent} of 50 ticks");
    println!(
        "lifecycle: uplink deleted: link {}, drops {}",
        daemon.status()["uplinks"][0]["link"],
        rest["drops"]
    );
    assert!(daemon.is_alive());
    daemon.signal(Signal::TERM);
    let ended = daemon.end(Duration::from_secs(2));
    assert!(!ended.said.contains("panicked"), "{}", ended.said);
    assert_eq!(ended.code, Some(0), "{}", ended.said);
}

/// Processor time of the daemon's first thread, in clock ticks of 10 ms.
fn control_ticks(daemon: &Daemon) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{0}/task/{0}/stat", daemon.id())).unwrap();
    let fields: Vec<&str> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    fields[11..13].iter().filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_far_host_that_changes_its_link_layer_address_is_followed() {
    let net = Net::new();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    let _echo = Tenant::WEB.echo(&net);
    daemon.wait_for_next_hops();
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 10, 0.01), 10);
    // It announces the new address, as hosts do that take an address over.
    let notify = format!("net.ipv4.conf.{}.arp_notify=1", FAR.1);
    peregrine_tests::run(net.far.command("sysctl").args(["-qw", &notify]));
    let address = "02:00:00:00:0f:99";
    net.far.ip(&format!("link set {} address {address}", FAR.1)).unwrap();
    until("the new address", || daemon.stats()["remotes"][0]["next_hop"] == address);
    assert_eq!(ping_patiently(&net.far, Tenant::WEB.ip, 20, 0.01), 20);
    daemon.at_rest();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn frames_for_a_next_hop_that_is_not_resolved_are_counted_until_it_is() {
    let net = Net::new();
    net.far.ip(&format!("addr del {}/24 dev {}", FAR.0, FAR.1)).unwrap();
    let daemon = Daemon::start(&net, &[Tenant::WEB]);
    let mut guest = Guest::new(&net, Tenant::WEB);
    daemon.wait_for_tenant(0, true);
    let text = frame(Tenant::WEB.mac, FAR_OVERLAY.1, "anybody there?");
    (0..10).for_each(|_| guest.send(&text));
    until("ten drops", || daemon.drops("next_hop_unresolved") == 10);
    assert_eq!(daemon.status()["next_hops"][0]["resolved"], false);

    let wire = RawSocket::open(&net.far, "vx");
    net.far.ip(&format!("addr add {}/24 dev {}", FAR.0, FAR.1)).unwrap();
    // The kernel may have given up meanwhile: frames that want the way make it ask again.
    until("the next hop", || {
        guest.send(&text);
        daemon.stats()["remotes"][0]["resolved"] == true
    });
    let last = frame(Tenant::WEB.mac, FAR_OVERLAY.1, "now");
    // Control knows the way; a worker that has just lost its core knows it a little later.
    until("the frame", || {
        guest.send(&last);
        wire.next(Duration::from_millis(1), |frame| frame == last).is_some()
    });
    daemon.at_rest();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn it_is_small_and_starts_fast() {
    let net = Net::new();
    // The far host resolves the near one: what is measured is ours.
    assert_eq!(ping_patiently(&net.far, NEAR.0, 1, 0.1), 1);
    let wire = RawSocket::open(&net.far, "vx");
    let began = Instant::now();
    let daemon = Daemon::start(&net, &[Tenant::WEB, Tenant::DB]);
    let mut guests = [Tenant::WEB, Tenant::DB].map(|tenant| Guest::new(&net, tenant));
    let text = frame(Tenant::WEB.mac, FAR_OVERLAY.1, "first");
    until("the first frame", || {
        guests[0].send(&text);
        wire.next(Duration::from_millis(1), |frame| frame == text).is_some()
    });
    let took = began.elapsed();
    // Every page that is used in normal work has been touched by then.
    for number in 0..5000 {
        guests[number % 2].send(&frame([Tenant::WEB.mac, Tenant::DB.mac][number % 2], FAR_OVERLAY.1, "more"));
        if number % 200 == 199 {
            until("it to be taken", || totals(&daemon.stats(), "tenant_rx") > number as u64);
        }
    }
    let (now, most) = (daemon.memory_kb("VmRSS"), daemon.memory_kb("VmHWM"));
    println!(
        "lifecycle: ready after {:?}, first frame out after {took:?}; resident {} MB, at most {} MB",
        daemon.start_time,
        now / 1024,
        most / 1024
    );
    assert!(took < Duration::from_secs(3), "{took:?}");
    assert!(most < 200 * 1024, "{most} kB");
    daemon.at_rest();
}
