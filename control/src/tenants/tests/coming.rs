//! Endpoints that come and go, with the sockets that they are on.

use super::*;

fn socket(bench: &Bench, name: &str) -> SocketAddr {
    SocketAddr::Path(bench.dir.path().join("sockets").join(name))
}

impl Bench {
    fn add(&mut self, added: &[(u16, EndpointPlan)]) -> Result<(), (usize, Error)> {
        let added: Vec<_> = added.iter().map(|(id, plan)| coming(*id, plan)).collect();
        let Bench { poll, tenants, shelf, .. } = self;
        tenants.change(poll.registry(), &[], &added, Instant::now(), shelf)
    }

    pub fn release(&mut self, port: &PortPlan) {
        self.tenants.release(port, Instant::now(), &mut self.shelf);
    }

    fn remove(&mut self, ids: &[u16]) {
        let ids: Vec<EndpointId> = ids.iter().copied().map(EndpointId).collect();
        self.tenants.remove(&ids, Instant::now(), &mut self.shelf);
    }
}

#[test]
fn an_endpoint_that_comes_is_served_and_one_that_goes_is_told() {
    let mut bench = Bench::new();
    let (old, new) = (bench.path.clone(), socket(&bench, "new.sock"));
    bench.add(&[(2, endpoint(&old, 7, b"")), (9, endpoint(&new, 0, b""))]).unwrap();
    let on_old = bench.connect(client(7, b"")).unwrap();
    bench.path = new.clone();
    let on_new = bench.connect(client(0, b"")).unwrap();
    assert!(bench.shelf.rings.contains_key(&EndpointId(2)) && bench.shelf.rings.contains_key(&EndpointId(9)));
    assert_eq!(bench.tenants.record(EndpointId(9)).unwrap().attached, 1);
    bench.remove(&[2, 9, 9, 77]);
    assert!(bench.shelf.rings.is_empty());
    for tenant in [on_old, on_new] {
        let told = tenant.control.poll_disconnect().unwrap().unwrap().to_string();
        assert!(told.contains("the endpoint was removed"), "{told}");
    }
    assert!(old.path().unwrap().exists() && !new.path().unwrap().exists());
    bench.settle();
    bench.path = old;
    let error = bench.connect(client(7, b"")).unwrap_err().to_string();
    assert!(error.contains("unmatched interface id"), "{error}");
    assert!(bench.connect(client(0, b"")).is_ok(), "the others are as before");
    // Places, ids and sockets can be had again.
    bench.add(&[(9, endpoint(&new, 0, b"")), (2, endpoint(&new, 7, b""))]).unwrap();
    bench.path = new;
    assert!(bench.connect(client(7, b"")).is_ok() && bench.connect(client(0, b"")).is_ok());
}

#[test]
fn all_of_them_come_or_none() {
    let mut bench = Bench::new();
    let (old, new) = (bench.path.clone(), socket(&bench, "new.sock"));
    let nowhere = SocketAddr::Path("/nonexistent/run/x.sock".into());
    for (bad, want) in [
        ((4, endpoint(&nowhere, 0, b"")), "/nonexistent/run"),
        ((4, endpoint(&old, 5, b"")), "its id 5 is another's"),
        ((4, endpoint(&new, 0, b"")), "its id 0 is another's"),
        ((0, endpoint(&new, 1, b"")), "is there already"),
        ((4, endpoint(&old, 6, &[b'x'; 25])), "24"),
    ] {
        let (index, error) = bench.add(&[(2, endpoint(&new, 0, b"")), bad]).unwrap_err();
        assert_eq!(index, 1);
        assert!(error.to_string().contains(want), "{error}");
        assert!(bench.tenants.record(EndpointId(2)).is_none() && !new.path().unwrap().exists(), "{error}");
    }
    assert!(bench.connect(client(0, b"")).is_ok());
}

#[test]
fn what_goes_makes_room_for_what_comes() {
    let mut bench = Bench::new();
    let old = bench.path.clone();
    let before = std::fs::metadata(old.path().unwrap()).unwrap().ino();
    let tenant = bench.connect(client(0, b"")).unwrap();
    let (ids, added) = ([EndpointId(0), EndpointId(1)], [coming(0, &endpoint(&old, 0, b"other"))]);
    let registry = bench.poll.registry();
    bench.tenants.change(registry, &ids, &added, Instant::now(), &mut bench.shelf).unwrap();
    assert!(tenant.control.poll_disconnect().unwrap().is_some());
    assert_eq!(std::fs::metadata(old.path().unwrap()).unwrap().ino(), before, "the socket stays");
    bench.settle();
    assert!(bench.connect(client(0, b"")).is_err());
    assert!(bench.connect(client(0, b"other")).is_ok());
}

#[test]
fn a_handshake_ends_with_its_endpoint_or_its_socket() {
    let mut bench = Bench::new();
    let new = socket(&bench, "new.sock");
    bench.add(&[(2, endpoint(&new, 0, b""))]).unwrap();
    let mut asked = Client::connect(&bench.path, client(0, b"")).unwrap();
    let mut silent = Client::connect(&new, client(0, b"")).unwrap();
    let mut other = Client::connect(&bench.path, client(5, b"hush")).unwrap();
    bench.settle();
    for client in [&mut asked, &mut other] {
        assert!(matches!(client.step(), Ok(Progress::Pending)));
    }
    bench.settle();
    assert_eq!(bench.tenants.handshakes(), 3);
    bench.remove(&[0, 2]);
    assert_eq!(bench.tenants.handshakes(), 1);
    for (client, want) in [(&mut asked, "the endpoint was removed"), (&mut silent, "the socket was removed")]
    {
        let why = std::iter::repeat_with(|| client.step()).find_map(Result::err).unwrap().to_string();
        assert!(why.contains(want), "{why}");
    }
    let end = Instant::now() + PATIENCE;
    while !matches!(other.step(), Ok(Progress::Connected(_))) {
        assert!(Instant::now() < end, "the others' clients are not disturbed");
        bench.settle();
    }
}

#[test]
fn a_tenant_at_a_port_waits_for_an_endpoint() {
    let mut bench = Bench::new();
    let new = socket(&bench, "new.sock");
    let port = endpoint(&new, 3, b"").port;
    bench.tenants.hold(bench.poll.registry(), "spare", &port).unwrap();
    assert!(bench.tenants.hold(bench.poll.registry(), "spare", &port).is_err());
    bench.path = new.clone();
    assert!(bench.connect(client(4, b"")).unwrap_err().to_string().contains("unmatched interface id"));
    let early = bench.connect(client(3, b"")).unwrap();
    assert!(bench.shelf.rings.is_empty() && bench.tenants.record_of(&port).unwrap().peer.is_some());
    assert!(bench.connect(client(3, b"")).is_err(), "one is there");
    // It is served as soon as there is an endpoint, and connects again when that goes.
    bench.add(&[(2, endpoint(&new, 3, b""))]).unwrap();
    assert!(bench.shelf.rings.is_empty(), "the engine does not know the endpoint before");
    let now = Instant::now();
    bench.tenants.attach([EndpointId(2)].into_iter(), now, &mut bench.shelf);
    assert!(bench.shelf.rings.contains_key(&EndpointId(2)));
    assert!(bench.tenants.record(EndpointId(2)).unwrap().peer.is_some());
    assert!(bench.add(&[(7, endpoint(&new, 3, b""))]).is_err(), "it carries one");
    bench.remove(&[2]);
    assert!(bench.shelf.rings.is_empty());
    let told = early.control.poll_disconnect().unwrap().unwrap().to_string();
    assert!(told.contains("the endpoint was removed"), "{told}");
    bench.settle();
    let again = bench.connect(client(3, b"")).unwrap();
    // One endpoint in place of another; and a port that goes before its endpoint.
    bench.add(&[(2, endpoint(&new, 3, b""))]).unwrap();
    bench.tenants.attach([EndpointId(2)].into_iter(), now, &mut bench.shelf);
    let other = [coming(5, &endpoint(&new, 3, b""))];
    bench.tenants.change(bench.poll.registry(), &[EndpointId(2)], &other, now, &mut bench.shelf).unwrap();
    assert!(again.control.poll_disconnect().unwrap().is_some() && bench.shelf.rings.is_empty());
    bench.settle();
    let last = bench.connect(client(3, b"")).unwrap();
    assert!(bench.shelf.rings.contains_key(&EndpointId(5)));
    bench.release(&port);
    assert!(last.control.poll_disconnect().unwrap().is_none() && new.path().unwrap().exists());
    bench.remove(&[5]);
    assert!(last.control.poll_disconnect().unwrap().is_some() && !new.path().unwrap().exists());
    bench.release(&port);
}

#[test]
fn a_port_that_goes_takes_its_tenant_along() {
    let mut bench = Bench::new();
    let new = socket(&bench, "new.sock");
    let port = endpoint(&new, 3, b"").port;
    bench.tenants.hold(bench.poll.registry(), "spare", &port).unwrap();
    bench.path = new.clone();
    let tenant = bench.connect(client(3, b"")).unwrap();
    bench.release(&port);
    assert!(tenant.control.poll_disconnect().unwrap().unwrap().to_string().contains("the port was removed"));
    assert!(!new.path().unwrap().exists() && bench.tenants.record_of(&port).is_none());
}

#[test]
fn clients_are_told_the_most_queues_that_any_endpoint_on_the_socket_takes() {
    let mut bench = Bench::new();
    let more = |id, pairs| {
        let mut plan = endpoint(&bench.path, id, b"");
        plan.port.memif_mut().unwrap().queue_pairs = pairs;
        plan
    };
    let three = [(2, more(7, 3)), (3, more(8, 2))];
    let got = |bench: &mut Bench, id| {
        let tenant = bench.connect(ClientConfig { queue_pairs: 3, ..client(id, b"") });
        tenant.map(|tenant| tenant.rx.len()).map_err(|e| e.to_string())
    };
    bench.add(&three).unwrap();
    assert_eq!(got(&mut bench, 7), Ok(3));
    assert!(got(&mut bench, 8).is_err());
    bench.remove(&[2]);
    assert_eq!(got(&mut bench, 8), Ok(2));
    bench.remove(&[3]);
    assert_eq!(got(&mut bench, 0), Ok(1));
}

#[test]
fn a_tenant_that_listens_is_dialled_once_its_endpoint_is_there_and_left_alone_afterwards() {
    let mut bench = Bench::new();
    let theirs = socket(&bench, "theirs.sock");
    let listener = Listener::bind(&theirs, ListenerConfig::default()).unwrap();
    let mut plan = endpoint(&theirs, 0, b"");
    plan.port.memif_mut().unwrap().role =
        MemifRole::Client { ring_log2: 5, buffer_bytes: 2048, tenant_uid: None };
    bench.add(&[(4, plan.clone())]).unwrap();
    assert!(bench.tenants.deadline().is_some());
    bench.settle();
    assert!(listener.accept().unwrap().is_some());
    bench.remove(&[4]);
    assert_eq!(bench.tenants.deadline(), None);
    bench.settle_at(Instant::now() + PATIENCE);
    assert!(listener.accept().unwrap().is_none());
    // The place is another one's now: what comes late for the old one does no harm.
    bench.add(&[(4, plan)]).unwrap();
    bench.settle();
    assert!(listener.accept().unwrap().is_some());
}
