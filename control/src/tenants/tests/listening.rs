//! Tenants that listen: those that come late, refuse, hang, hang up, break the protocol, and come back.

use super::*;

/// An endpoint where we connect.
fn dialling(path: &SocketAddr, id: u32) -> EndpointPlan {
    let mut plan = endpoint(path, id, b"");
    plan.port.memif_mut().unwrap().role =
        MemifRole::Client { ring_log2: 5, buffer_bytes: 2048, tenant_uid: None };
    plan
}

/// A listening tenant lets the daemon keep its memory unsealed: it trusts its host.
fn trusting() -> ServerConfig {
    ServerConfig { allow_unsealed: true, ..ServerConfig::default() }
}

/// A tenant that listens, and how often it was connected to.
struct Host {
    listener: Listener,
    accepted: u64,
}

impl Host {
    fn at(addr: &SocketAddr) -> Host {
        Host::with(addr, ListenerConfig::default())
    }

    fn with(addr: &SocketAddr, config: ListenerConfig) -> Host {
        let path = addr.path().unwrap();
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        Host { listener: Listener::bind(addr, config).unwrap(), accepted: 0 }
    }

    fn accept(&mut self) -> Option<Handshake> {
        let handshake = self.listener.accept().unwrap()?;
        self.accepted += 1;
        Some(handshake)
    }

    /// Serves the next connection to its end.
    fn serve(
        &mut self,
        bench: &mut Bench,
        now: Instant,
        answer: Result<ServerConfig, Refusal>,
    ) -> Result<Interface, HandshakeError> {
        bench.settle_at(now);
        let mut handshake = self.accept().expect("a client");
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let progress = handshake.step(&mut |_| answer.clone())?;
            bench.settle_at(now);
            if let Progress::Connected(interface) = progress {
                return Ok(*interface);
            }
        }
        panic!("not connected in {PATIENCE:?}: {:?}", bench.record(0));
    }

    fn welcome(&mut self, bench: &mut Bench, now: Instant) -> Interface {
        self.serve(bench, now, Ok(trusting())).unwrap()
    }
}

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn as_client_it_connects_with_as_many_queues_as_both_want() {
    for (limit, want) in [(8, 2), (2, 2), (1, 1)] {
        let mut bench = Bench::with(|path| {
            let mut plan = dialling(path, 3);
            plan.port.memif_mut().unwrap().queue_pairs = 2;
            vec![plan]
        });
        let now = Instant::now();
        let limits = Limits { rings_max: limit, ..Limits::default() };
        let mut host = Host::with(&bench.path, ListenerConfig { limits, ..ListenerConfig::default() });
        let tenant = host.welcome(&mut bench, now);
        assert_eq!((tenant.id, tenant.peer_name.as_str(), tenant.rx.len()), (3, "e3", want));
        let rings = &bench.shelf.rings[&EndpointId(0)];
        assert_eq!((rings.rx.len(), rings.tx.len()), (want, want));
        let record = bench.record(0);
        let peer = record.peer.unwrap();
        assert_eq!((peer.name.as_str(), peer.queue_pairs, peer.since), ("peregrine", want, now));
        assert_eq!(peer.credentials.unwrap().pid, std::process::id() as i32);
        assert_eq!((record.attempts, record.attached, record.refused), (1, 1, 0));
        assert_eq!(bench.tenants.deadline(), None, "nothing to do but to watch the socket");
    }
}

#[test]
fn a_tenant_that_listens_may_come_late_go_and_come_back() {
    let mut bench = Bench::with(|path| vec![dialling(path, 0)]);
    let mut now = Instant::now();
    bench.settle_at(now);
    let failure = bench.record(0).last_failure.unwrap();
    assert!(failure.contains("No such file"), "{failure}");
    assert!(bench.tenants.deadline().unwrap() > now);
    for round in 1..=3 {
        let mut host = Host::at(&bench.path);
        now += SECOND;
        let tenant = host.welcome(&mut bench, now);
        let record = bench.record(0);
        assert_eq!((record.attached, record.peer.is_some(), record.last_failure), (round, true, None));
        drop((tenant, host));
        now += SECOND;
        bench.settle_at(now);
        assert!(bench.shelf.rings.is_empty());
        let record = bench.record(0);
        assert!(record.peer.is_none() && record.last_end.unwrap().contains("closed"));
        now += SECOND;
        bench.settle_at(now);
        assert!(bench.record(0).last_failure.unwrap().contains("No such file"));
    }
    assert_eq!(bench.record(0).faults, 0);
}

#[test]
fn a_server_that_refuses_is_asked_again_and_its_reason_shown() {
    let mut bench = Bench::with(|path| vec![dialling(path, 7)]);
    let mut host = Host::at(&bench.path);
    let mut now = Instant::now();
    for attempts in 1..=5 {
        let refused = host.serve(&mut bench, now, Err(Refusal::UnknownId));
        assert!(refused.is_err());
        bench.settle_at(now);
        let record = bench.record(0);
        let failure = record.last_failure.unwrap();
        assert!(failure.contains("unmatched interface id"), "{failure}");
        assert_eq!((record.attempts, record.attached), (attempts, 0));
        now += SECOND;
    }
    host.welcome(&mut bench, now);
    assert_eq!(bench.record(0).last_failure, None);
}

/// Drives the bench through a made-up minute, in steps of 10 ms.
fn a_minute(bench: &mut Bench, mut each: impl FnMut(&mut Bench, Instant)) {
    let start = Instant::now();
    for step in 0..6000 {
        let now = start + Duration::from_millis(10) * step;
        bench.settle_at(now);
        each(bench, now);
    }
}

#[test]
fn a_server_that_hangs_up_at_once_is_not_hammered() {
    let mut bench = Bench::with(|path| vec![dialling(path, 0)]);
    let mut host = Host::at(&bench.path);
    a_minute(&mut bench, |_, _| drop(host.accept()));
    // Pauses of 10 ms to 640 ms, then of a second.
    assert!((55..=70).contains(&host.accepted), "{} connections in a minute", host.accepted);
    let record = bench.record(0);
    assert!((host.accepted..=host.accepted + 1).contains(&record.attempts), "{record:?}");
    assert!(record.last_failure.is_some());
}

#[test]
fn a_server_that_breaks_the_protocol_each_time_is_not_hammered() {
    let mut bench = Bench::with(|path| vec![dialling(path, 0)]);
    let mut host = Host::at(&bench.path);
    let (mut handshake, mut tenant) = (None, None);
    a_minute(&mut bench, |bench, now| {
        if handshake.is_none() {
            handshake = host.accept();
        }
        let end = Instant::now() + PATIENCE;
        while let Some(open) = &mut handshake {
            assert!(Instant::now() < end, "not connected in {PATIENCE:?}: {:?}", bench.record(0));
            match open.step(&mut |_| Ok(trusting())) {
                Ok(Progress::Connected(interface)) => (handshake, tenant) = (None, Some(interface)),
                Ok(Progress::Pending) => bench.settle_at(now),
                Err(why) => panic!("{why}"),
            }
        }
        bench.settle_at(now);
        if bench.shelf.rings.contains_key(&EndpointId(0)) {
            bench.tenants.fault(EndpointId(0), "ring index jump", now, &mut bench.shelf);
            // The sealer gives memory back in real time, of which a made-up minute has little.
            let end = Instant::now() + PATIENCE;
            while sealer::unreturned() >= sealer::UNRETURNED_MAX {
                assert!(
                    Instant::now() < end,
                    "{} files not given back in {PATIENCE:?}",
                    sealer::unreturned()
                );
                std::thread::yield_now();
            }
        }
    });
    let record = bench.record(0);
    // Each has cost memory that it can keep: pauses of 10 ms, 20 ms … 20 s, then of 30 s.
    assert!((10..=14).contains(&record.faults), "{record:?}");
    assert_eq!((record.faults, record.last_end.as_deref()), (record.attached, Some("ring index jump")));
    let told = tenant.unwrap().control.poll_disconnect().unwrap().unwrap().to_string();
    assert!(told.contains("ring index jump"), "{told}");
}

#[test]
fn a_server_that_says_nothing_is_given_up_after_a_while() {
    let mut bench = Bench::with(|path| vec![dialling(path, 0)]);
    let mut host = Host::at(&bench.path);
    let now = Instant::now();
    bench.settle_at(now);
    let limit = bench.tenants.deadline().unwrap();
    assert_eq!(limit, now + 5 * SECOND);
    bench.settle_at(limit - Duration::from_millis(1));
    assert_eq!(bench.record(0).last_failure, None);
    bench.settle_at(limit);
    let failure = bench.record(0).last_failure.unwrap();
    assert!(failure.contains("timed out"), "{failure}");
    // What it accepts then is closed already, and the next attempt is another connection.
    let mut late = host.accept().unwrap();
    assert!(late.step(&mut |_| Ok(trusting())).is_err());
    host.welcome(&mut bench, limit + SECOND);
    assert_eq!(bench.record(0).attempts, 2);
}

#[test]
fn a_fault_of_a_server_detaches_it_and_it_may_come_back() {
    let mut bench = Bench::with(|path| vec![dialling(path, 0)]);
    let mut host = Host::at(&bench.path);
    let now = Instant::now();
    let tenant = host.welcome(&mut bench, now);
    bench.tenants.fault(EndpointId(0), "bad descriptors", now, &mut bench.shelf);
    let told = tenant.control.poll_disconnect().unwrap().unwrap().to_string();
    assert!(told.contains("bad descriptors"), "{told}");
    assert!(bench.shelf.rings.is_empty());
    let record = bench.record(0);
    assert_eq!((record.faults, record.last_end.as_deref()), (1, Some("bad descriptors")));
    bench.settle_at(now);
    assert!(host.accept().is_none(), "not before the pause is over");
    let _again = host.welcome(&mut bench, now + SECOND);
    assert_eq!((bench.record(0).attached, bench.shelf.rings.len()), (2, 1));
}

#[test]
fn both_roles_live_side_by_side_and_stopping_tells_both() {
    let mut bench = Bench::with(|path| {
        let theirs = SocketAddr::Path(path.path().unwrap().with_file_name("theirs.sock"));
        vec![dialling(&theirs, 0), endpoint(path, 0, b""), dialling(&theirs, 1)]
    });
    let theirs = SocketAddr::Path(bench.path.path().unwrap().with_file_name("theirs.sock"));
    let mut host = Host::at(&theirs);
    let now = Instant::now();
    let (first, second) = (host.welcome(&mut bench, now), host.welcome(&mut bench, now));
    let third = bench.connect(client(0, b"")).unwrap();
    assert_eq!(bench.shelf.rings.len(), 3);
    let names: Vec<_> = (0..3).map(|index| bench.record(index).peer.unwrap().name).collect();
    assert_eq!(names, ["peregrine", "tester", "peregrine"]);
    bench.tenants.stop(now, &mut bench.shelf);
    assert!(bench.shelf.rings.is_empty());
    for tenant in [first, second, third] {
        let told = tenant.control.poll_disconnect().unwrap().unwrap().to_string();
        assert!(told.contains("stopping"), "{told}");
    }
    assert!(theirs.path().unwrap().exists(), "the socket is the tenant's");
}

/// Sends a packet of three buffers: the length of what arrives, if it is taken.
fn three_buffers(from: &mut TxRing, to: &mut RxRing) -> Option<usize> {
    from.push(&[7; 5000]).unwrap();
    from.flush().unwrap();
    assert_eq!(to.pending(), Ok(3));
    let mut copy = [0; 6000];
    to.next_packet().unwrap().ok()?.copy_to(&mut copy)
}

#[test]
fn chains_are_taken_where_the_plan_says_so() {
    for chains in [false, true] {
        let mut bench = Bench::with(|path| {
            let theirs = SocketAddr::Path(path.path().unwrap().with_file_name("theirs.sock"));
            let mut plans = vec![endpoint(path, 0, b""), dialling(&theirs, 0)];
            plans.iter_mut().for_each(|plan| plan.port.memif_mut().unwrap().chains = chains);
            plans
        });
        // As server we take what a tenant sends in chains, or not.
        let mut tenant = bench.connect(ClientConfig { chains: true, ..client(0, b"") }).unwrap();
        let ours = bench.shelf.rings.get_mut(&EndpointId(0)).unwrap();
        assert_eq!(three_buffers(&mut tenant.tx[0], &mut ours.rx[0]), chains.then_some(5000));
        // As client we send in chains, or say that it is too long.
        let theirs = SocketAddr::Path(bench.path.path().unwrap().with_file_name("theirs.sock"));
        let config = ServerConfig { chains: true, ..trusting() };
        let mut tenant = Host::at(&theirs).serve(&mut bench, Instant::now() + SECOND, Ok(config)).unwrap();
        let ours = bench.shelf.rings.get_mut(&EndpointId(1)).unwrap();
        match chains {
            true => assert_eq!(three_buffers(&mut ours.tx[0], &mut tenant.rx[0]), Some(5000)),
            false => assert!(ours.tx[0].push(&[7; 5000]).is_err()),
        }
    }
}
