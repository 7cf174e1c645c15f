//! Real namespaces with real names, which no other test's look like.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::AtomicU32;

use peregrine_dataplane::types::MacAddr;

use super::*;
use crate::container::tests::{PLAN, ours, run};

static NUMBER: AtomicU32 = AtomicU32::new(0);

/// A name that nobody else has.
fn name() -> String {
    let number = NUMBER.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    format!("peregrine-pool-{}-{number}", std::process::id())
}

fn config(directory: &Path, size: usize) -> PoolConfig {
    PoolConfig {
        size,
        low_water: 1,
        interface: "eth0".into(),
        mtu: 1500,
        port: PortConfig { ring_size: 64 },
        alias: "a pool's".into(),
        directory: directory.into(),
    }
}

fn plan(number: u8) -> PartPlan {
    PartPlan {
        namespace: name(),
        interface: None,
        mark: format!("a container, number {number}"),
        link: link(number),
    }
}

fn link(number: u8) -> Link {
    Link {
        mac: MacAddr([2, 0, 0, 0, 0x42, number]),
        mtu: 1450,
        addresses: vec![([10, 42, 0, number].into(), 24), (format!("fd42::{number}").parse().unwrap(), 64)],
        gateways: vec![[10, 42, 0, 254].into(), "fe80::1".parse().unwrap()],
    }
}

fn start(config: &PoolConfig) -> (Pool, Vec<Taken>) {
    Pool::start(config, Arc::new(Mutex::new(Ports::load().unwrap()))).unwrap()
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::yield_now();
    }
}

fn inside(taken: &Taken, command: &str) -> String {
    run(&format!("ip netns exec {} {command}", taken.namespace))
}

/// What this process and its namespace have: descriptors, devices, names.
fn everything() -> (usize, String, String) {
    let files = std::fs::read_dir("/proc/self/fd").unwrap().count();
    let names = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let ours = format!("peregrine-pool-{}-", std::process::id());
    let names = names.lines().filter(|line| line.contains(&ours)).collect();
    (files, run("ip -o link show"), names)
}

#[test]
#[ignore = "needs root: make test runs it"]
fn containers_from_the_pool_reach_each_other_through_an_engine() {
    use peregrine_dataplane::engine::{Engine, TenantRings};
    use peregrine_dataplane::types::EndpointId;

    let _in_our_namespace = ours();
    let directory = tempfile::tempdir().unwrap();
    let core = rustix::thread::sched_getcpu();
    let plan_of_engine = peregrine_config::parse(&PLAN.replace("CORE", &core.to_string()), "t").unwrap();
    let mut engine = Engine::replay(&plan_of_engine, vec![]).unwrap();
    let (mut pool, left) = start(&config(directory.path(), 4));
    assert_eq!(left, []);
    until("it does not fill", || pool.counts().ready == 4);
    let other = PartPlan { interface: Some("net1".into()), ..plan(2) };
    let taken = [plan(1), other].map(|plan| {
        let (taken, port) = pool.take(&plan).unwrap();
        let number = u16::from(plan.link.mac.0[5]);
        engine.attach(EndpointId(number - 1), TenantRings::port(port)).unwrap();
        taken
    });
    let counts = pool.counts();
    assert_eq!((counts.hits, counts.misses, counts.failed), (2, 0, 0), "{counts:?}");
    for address in ["10.42.0.2", "fd42::2"] {
        // 28 and 48 bytes of headers: as long as the MTU allows.
        let size = if address.contains(':') { 1402 } else { 1422 };
        inside(&taken[0], &format!("ping -q -c 3 -i 0.05 -W 10 -M do -s {size} {address}"));
    }
    let far = inside(&taken[1], "ip -d link show net1");
    for part in ["02:00:00:00:42:02", "mtu 1450", "state UP"] {
        assert!(far.contains(part), "{far}");
    }
    let near = run(&format!("ip link show {}", taken[1].pair.port));
    assert!(near.contains("alias a pool's"), "{near}");
    assert!(inside(&taken[0], "ip link show lo").contains("LOWER_UP"));
    assert!(inside(&taken[0], "ip route").contains("default via 10.42.0.254 dev eth0"));
    assert!(inside(&taken[0], "ip -6 route").contains("default via fe80::1 dev eth0"));
    let features = inside(&taken[0], "ethtool -k eth0");
    assert!(features.contains("\ntx-checksumming: off"), "{features}");
    // The address that its Ethernet address makes, and no other; also when it has been down. (`up` gives addresses back later than it returns.)
    for (taken, interface, number) in [(&taken[0], "eth0", 1), (&taken[1], "net1", 2)] {
        let own = || inside(taken, &format!("ip -6 -o address show dev {interface} scope link"));
        let is_so =
            || own().lines().count() == 1 && own().contains(&format!("inet6 fe80::ff:fe00:420{number}/64"));
        assert!(is_so(), "{}", own());
        inside(taken, &format!("ip link set {interface} down"));
        inside(taken, &format!("ip link set {interface} up"));
        until("it is not made again", is_so);
    }
    // There were more than the low-water mark.
    until("what was taken is not made again", || pool.counts().ready == 4);
    for taken in taken.clone() {
        pool.give_back(taken);
    }
    let mut requests = Requests::open().unwrap();
    until("they are not removed", || !taken.iter().any(|taken| taken.pair.is_there(&mut requests).unwrap()));
    assert!(engine.stop().totals.conserved);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_container_without_ipv6_and_one_whose_own_address_was_declared_are_as_good() {
    let _in_our_namespace = ours();
    let directory = tempfile::tempdir().unwrap();
    let (mut pool, _) = start(&config(directory.path(), 3));
    until("it does not fill", || pool.counts().ready == 3);
    // Too small an MTU for IPv6: ready beforehand, and made on the spot.
    let v4 = |number: u8| Link {
        mtu: 1000,
        addresses: vec![([10, 42, 0, number].into(), 24)],
        gateways: vec![[10, 42, 0, 254].into()],
        ..link(number)
    };
    let declared = Link {
        addresses: vec![("fe80::ff:fe00:4203".parse().unwrap(), 128)],
        gateways: Vec::new(),
        ..link(3)
    };
    let mut all = Vec::new();
    for (link, interface) in [(v4(1), None), (declared, None), (v4(4), Some("net1"))] {
        let interface = interface.map(str::to_owned);
        let (taken, _port) = pool.take(&PartPlan { link, interface, ..plan(1) }).unwrap();
        all.push(taken);
    }
    pool.resize(0, 0);
    until("it is not emptied", || pool.counts().ready == 0 && pool.counts().ending == 0);
    all.push(pool.take(&PartPlan { link: v4(5), ..plan(1) }).unwrap().0);
    assert_eq!((pool.counts().hits, pool.counts().misses), (3, 1));
    for (taken, interface) in [(&all[0], "eth0"), (&all[2], "net1"), (&all[3], "eth0")] {
        let text = inside(taken, &format!("ip address show dev {interface}"));
        assert!(
            text.contains("mtu 1000") && text.contains("inet 10.42.0.") && !text.contains("inet6"),
            "{text}"
        );
        assert!(text.contains("state UP"), "{text}");
    }
    let text = inside(&all[1], "ip -6 -o address show dev eth0");
    assert!(text.lines().count() == 1 && text.contains("fe80::ff:fe00:4203/128"), "{text}");
    all.into_iter().for_each(|taken| pool.give_back(taken));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn an_empty_pool_makes_a_part_on_the_spot_and_so_does_one_of_too_small_parts() {
    let _in_our_namespace = ours();
    let directory = tempfile::tempdir().unwrap();
    let (mut pool, _) = start(&config(directory.path(), 0));
    let (taken, _port) = pool.take(&plan(1)).unwrap();
    assert!(inside(&taken, "ip address show eth0").contains("inet 10.42.0.1/24"));
    pool.give_back(taken);
    pool.resize(2, 1);
    until("it does not fill", || pool.counts().ready == 2);
    let (taken, _port) = pool.take(&PartPlan { link: Link { mtu: 1600, ..link(2) }, ..plan(2) }).unwrap();
    assert!(inside(&taken, "ip link show eth0").contains("mtu 1600"));
    let counts = pool.counts();
    assert_eq!((counts.hits, counts.misses, counts.failed, counts.ready), (0, 2, 0, 2), "{counts:?}");
    pool.give_back(taken);
    let (taken, _port) = pool.take(&plan(3)).unwrap();
    assert_eq!(pool.counts().hits, 1);
    until("it is not filled again", || pool.counts().ready == 2);
    pool.give_back(taken);
    pool.resize(0, 0);
    until("they are not removed", || pool.counts().ready == 0 && !run("ip link").contains("pp"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn nothing_is_left_of_a_pool_and_what_was_taken_from_it() {
    let _in_our_namespace = ours();
    let directory = tempfile::tempdir().unwrap();
    drop(start(&config(directory.path(), 0))); // so that what is made once is there: names can be given
    let before = everything();
    let (mut pool, _) = start(&config(directory.path(), 8));
    for round in 0..10 {
        let all: Vec<_> = (1..=8).map(|number| pool.take(&plan(number)).unwrap()).collect();
        assert_eq!(everything().2.matches(" - nsfs ").count(), 8);
        all.into_iter().for_each(|(taken, _port)| pool.give_back(taken));
        until("they are not removed", || pool.counts().ending == 0 && everything().2.is_empty());
        assert_eq!(pool.counts().failure, None, "round {round}");
    }
    let counts = pool.counts();
    assert_eq!(counts.hits + counts.misses, 80);
    drop(pool);
    until(&format!("something is left: {before:?}, {:?}", everything()), || everything() == before);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "a mark");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_cannot_be_given_is_named_and_leaves_nothing_behind() {
    let _in_our_namespace = ours();
    let directory = tempfile::tempdir().unwrap();
    let (mut pool, _) = start(&config(directory.path(), 2));
    let (taken, _port) = pool.take(&plan(1)).unwrap();
    let mut refused = |plan: PartPlan| {
        let error = pool.take(&plan).map(drop).unwrap_err().to_string();
        assert_eq!(error.lines().count(), 1, "{error}");
        assert!(plan.namespace == taken.namespace || !Names::is_taken(&plan.namespace), "{error}");
        error
    };
    let error = refused(PartPlan { namespace: taken.namespace.clone(), ..plan(2) });
    assert!(error.starts_with("there is a network namespace 'peregrine-pool-"), "{error}");
    let error = refused(PartPlan { namespace: "a/b".into(), ..plan(2) });
    assert!(error.starts_with("no network namespace can be called 'a/b'"), "{error}");
    let error = refused(PartPlan { interface: Some("a b".into()), ..plan(2) });
    assert!(error.starts_with("no interface can be called 'a b'"), "{error}");
    let bad = PartPlan { link: Link { addresses: vec![([10, 0, 0, 1].into(), 99)], ..link(2) }, ..plan(2) };
    let at = format!("giving 10.0.0.1/99 to eth0 in network namespace '{}'", bad.namespace);
    let error = refused(bad);
    assert!(error.starts_with(&at), "{error}");
    let error = refused(PartPlan { link: Link { mtu: 60_000, ..link(2) }, ..plan(2) });
    assert!(error.contains("60000"), "{error}");
    // Given back, its name is free at once.
    pool.give_back(taken.clone());
    let (again, _port) = pool.take(&PartPlan { namespace: taken.namespace.clone(), ..plan(1) }).unwrap();
    assert_ne!(again.inode, taken.inode);
    until("it is not removed", || pool.counts().ending == 0);
    inside(&again, "ip link show eth0");
    // Its name is another's now.
    run(&format!("ip netns del {}", again.namespace));
    run(&format!("ip netns add {}", again.namespace));
    pool.give_back(again.clone());
    until("it is not removed", || pool.counts().ending == 0);
    drop(pool);
    inside(&again, "ip link show lo");
    run(&format!("ip netns del {}", again.namespace));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_pool_that_cannot_be_filled_says_why_and_does_not_spin() {
    let _in_our_namespace = ours();
    let directory = tempfile::tempdir().unwrap();
    let begun = Instant::now();
    let (mut pool, _) = start(&PoolConfig { mtu: 60_000, ..config(directory.path(), 4) });
    until("it does not fail", || pool.counts().failed >= 3);
    let most = begun.elapsed().as_millis() / PATIENCE.as_millis() + 1;
    let counts = pool.counts();
    assert!(u128::from(counts.failed) <= most, "{counts:?} in {:?}", begun.elapsed());
    assert!(counts.failure.unwrap().contains("60000"));
    let (taken, _port) = pool.take(&plan(1)).unwrap();
    pool.give_back(taken);
    let refused = Pool::start(&config(directory.path(), 0), Arc::new(Mutex::new(Ports::load().unwrap())));
    let error = refused.unwrap_err().to_string();
    let text = format!("another process has its pool of containers' parts in {}", directory.path().display());
    assert!(error.starts_with(&text), "{error}");
}

/// The directory of the pool of a process that is killed; set in that process only.
const KILLED: &str = "PEREGRINE_TEST_POOL_KILLED";

#[test]
#[ignore = "needs root: make test runs it"]
fn what_a_killed_pool_had_given_out_is_found_and_the_rest_is_gone() {
    if let Ok(directory) = std::env::var(KILLED) {
        let (mut pool, _) = start(&config(directory.as_ref(), 4));
        until("it does not fill", || pool.counts().ready == 4);
        let all = [1, 2, 3].map(|number| pool.take(&plan(number)).unwrap());
        println!("\ntaken {}", all.map(|(taken, _)| taken.namespace).join(" "));
        loop {
            std::thread::park();
        }
    }
    let _in_our_namespace = ours();
    let directory = tempfile::tempdir().unwrap();
    let test = "container::pool::tests::what_a_killed_pool_had_given_out_is_found_and_the_rest_is_gone";
    let mut child = Command::new("/proc/self/exe")
        .args(["--exact", test, "--ignored", "--nocapture"])
        .env(KILLED, directory.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let output = std::io::BufReader::new(child.stdout.take().unwrap());
    let names = std::io::BufRead::lines(output)
        .find_map(|line| line.unwrap().strip_prefix("taken ").map(str::to_owned))
        .unwrap();
    let names: Vec<&str> = names.split(' ').collect();
    child.kill().unwrap();
    child.wait().unwrap();
    until("what nobody had is still there", || run("ip -o link").matches("pp").count() == 3);
    run(&format!("ip netns del {}", names[2]));
    until("it is still there", || run("ip -o link").matches("pp").count() == 2);

    let (pool, mut left) = start(&config(directory.path(), 0));
    left.sort_by(|one, other| one.namespace.cmp(&other.namespace));
    assert_eq!(left.iter().map(|taken| taken.namespace.as_str()).collect::<Vec<_>>(), names[..2]);
    let adopted = pool.adopt(&left[0]).unwrap();
    assert!(inside(&left[0], "ip link show eth0").contains("state UP"));
    drop(adopted);
    left.into_iter().for_each(|taken| pool.give_back(taken));
    drop(pool);
    assert!(!run("ip link").contains("pp"));
    assert!(names.iter().all(|name| !Names::is_taken(name)));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "a mark");
}
