//! The tenants' sockets against honest and hostile clients and servers, with rings that go nowhere. Where the time
//! matters it is made up: `turn` takes it as it is given.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream as StreamSocket;
use std::time::Duration;

use mio::{Events, Poll};
use peregrine_dataplane::plan::{MemifPlan, MemifRole, NetworkPlan, UplinkPlan, XdpMode};
use peregrine_dataplane::types::{MacAddr, NetworkId, Vni};
use peregrine_memif::{
    Client, ClientConfig, Handshake, HandshakeError, Interface, Limits, Listener, ListenerConfig, Progress,
    Refusal, RxRing, Secret, ServerConfig, SocketAddr, TxRing,
};

use super::server::{EVICT_AFTER, HANDSHAKES_MAX};
use super::*;

mod coming;
mod later;
mod listening;
mod many;

#[derive(Default)]
struct Shelf {
    rings: HashMap<EndpointId, TenantRings>,
    attached: usize,
}

impl Rings for Shelf {
    fn attach(&mut self, endpoint: EndpointId, rings: TenantRings) -> Result<(), String> {
        self.attached += 1;
        assert!(self.rings.insert(endpoint, rings).is_none(), "attached twice");
        Ok(())
    }

    fn detach(&mut self, endpoint: EndpointId) {
        assert!(self.rings.remove(&endpoint).is_some(), "detached twice");
    }
}

struct Bench {
    poll: Poll,
    tenants: Tenants,
    shelf: Shelf,
    path: SocketAddr,
    dir: tempfile::TempDir,
}

fn endpoint(path: &SocketAddr, id: u32, secret: &[u8]) -> EndpointPlan {
    let memif = MemifPlan { secret: secret.to_vec(), ..MemifPlan::server(path.clone(), id) };
    EndpointPlan::new(&format!("e{id}"), NetworkId(0), MacAddr([2, 0, 0, 0, 0, id as u8]), memif)
}

fn coming(id: u16, plan: &EndpointPlan) -> Coming {
    Coming::new(EndpointId(id), plan, None)
}

fn plan(endpoints: Vec<EndpointPlan>) -> Plan {
    let network = NetworkPlan { fdb_limit: 10, ..NetworkPlan::new("n", Vni::new(7).unwrap()) };
    let uplink =
        UplinkPlan { mode: XdpMode::Copy, ring_size: 64, ..UplinkPlan::new("x", [10, 0, 0, 1].into()) };
    Plan {
        workers: Vec::new(),
        placement: Default::default(),
        balance_threshold: 85,
        uplinks: vec![uplink],
        networks: vec![network].into(),
        endpoints: endpoints.into(),
        capacity: Default::default(),
        pools: Default::default(),
        classes: Default::default(),
        control_socket: "/x".into(),
        ..Plan::default()
    }
}

/// Far more than a handshake takes on the busiest machine.
const PATIENCE: Duration = Duration::from_secs(10);

impl Bench {
    fn new() -> Bench {
        Bench::with(|path| vec![endpoint(path, 0, b""), endpoint(path, 5, b"hush")])
    }

    fn with(endpoints: impl FnOnce(&SocketAddr) -> Vec<EndpointPlan>) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let path = SocketAddr::Path(dir.path().join("sockets").join("m.sock"));
        let plan = plan(endpoints(&path));
        let poll = Poll::new().unwrap();
        let mut tenants = Tenants::bind(&plan, Token(100), None).unwrap();
        tenants.register(poll.registry()).unwrap();
        Bench { poll, tenants, shelf: Shelf::default(), path, dir }
    }

    /// Turns until nothing is ready any more.
    fn settle(&mut self) {
        self.settle_at(Instant::now());
    }

    fn settle_at(&mut self, now: Instant) {
        let mut events = Events::with_capacity(64);
        loop {
            self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            events.iter().for_each(|event| self.tenants.ready(event.token()));
            self.tenants.turn(self.poll.registry(), now, &mut self.shelf);
            if events.is_empty() {
                return;
            }
        }
    }

    /// A client that has done all its steps.
    fn connect(&mut self, config: ClientConfig) -> Result<Interface, HandshakeError> {
        let mut client = Client::connect(&self.path, config)?;
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            self.settle();
            if let Progress::Connected(interface) = client.step()? {
                self.settle();
                return Ok(*interface);
            }
        }
        panic!("not connected in {PATIENCE:?}");
    }

    fn raw(&self) -> std::os::fd::OwnedFd {
        use rustix::net::{AddressFamily, SocketAddrUnix, SocketType, connect, socket};
        let fd = socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
        connect(&fd, &SocketAddrUnix::new(self.path.path().unwrap()).unwrap()).unwrap();
        fd
    }

    fn record(&self, index: usize) -> TenantRecord {
        self.tenants.record(EndpointId(index as u16)).unwrap().clone()
    }
}

fn client(id: u32, secret: &[u8]) -> ClientConfig {
    ClientConfig {
        id,
        name: "tester".into(),
        secret: Secret::new(secret).unwrap(),
        ..ClientConfig::default()
    }
}

#[test]
fn a_tenant_connects_leaves_and_comes_back_at_once() {
    let mut bench = Bench::new();
    for round in 1..=3 {
        let interface = bench.connect(client(0, b"")).unwrap();
        let record = bench.record(0);
        let peer = record.peer.unwrap();
        assert_eq!((peer.name.as_str(), record.attached), ("tester", round));
        assert_eq!(peer.credentials.unwrap().pid, std::process::id() as i32);
        assert!(bench.shelf.rings.contains_key(&EndpointId(0)));
        drop(interface); // no turn in between: the next client arrives before this end is noticed
    }
    bench.settle();
    assert!(bench.shelf.rings.is_empty());
    assert!(bench.record(0).last_end.unwrap().contains("closed"));
}

#[test]
fn an_id_in_use_is_refused_and_its_tenant_not_disturbed() {
    let mut bench = Bench::new();
    let _first = bench.connect(client(0, b"")).unwrap();
    let error = bench.connect(client(0, b"")).unwrap_err().to_string();
    assert!(error.contains("already connected"), "{error}");
    assert_eq!((bench.shelf.rings.len(), bench.record(0).refused), (1, 1));
    assert!(bench.record(0).peer.is_some());
}

#[test]
fn of_two_that_shake_hands_for_one_id_one_wins() {
    let mut bench = Bench::new();
    let mut clients: Vec<Client> =
        (0..2).map(|_| Client::connect(&bench.path, client(0, b"")).unwrap()).collect();
    let mut results = [None, None];
    let end = Instant::now() + PATIENCE;
    while results.iter().any(Option::is_none) && Instant::now() < end {
        bench.settle();
        for (client, result) in clients.iter_mut().zip(&mut results) {
            if result.is_none() {
                *result = match client.step() {
                    Ok(Progress::Pending) => None,
                    Ok(Progress::Connected(interface)) => Some(Ok(interface)),
                    Err(e) => Some(Err(e.to_string())),
                };
            }
        }
    }
    bench.settle();
    assert_eq!((bench.shelf.attached, bench.shelf.rings.len(), bench.record(0).refused), (1, 1, 1));
    // The loser hears of it in its handshake, or right after CONNECTED.
    assert!(results.iter().all(Option::is_some));
}

#[test]
fn the_secret_and_the_id_must_be_right() {
    let mut bench = Bench::new();
    for (config, want) in [
        (client(5, b""), "secret required"),
        (client(5, b"wrong"), "incorrect secret"),
        (client(9, b""), "unmatched interface id"),
    ] {
        let error = bench.connect(config).unwrap_err().to_string();
        assert!(error.contains(want), "{error}");
    }
    assert!(bench.connect(client(5, b"hush")).is_ok());
    assert_eq!(bench.record(1).refused, 2);
}

#[test]
fn a_fault_puts_the_tenant_out_and_tells_it_why() {
    let mut bench = Bench::new();
    let first = bench.connect(client(0, b"")).unwrap();
    let later = Instant::now() + PATIENCE;
    bench.tenants.fault(EndpointId(0), "ring index jump", later, &mut bench.shelf);
    let told = first.control.poll_disconnect().unwrap().unwrap().to_string();
    assert!(told.contains("ring index jump"), "{told}");
    assert!(bench.shelf.rings.is_empty());
    assert_eq!((bench.record(0).faults, bench.record(0).peer.is_some()), (1, false));
    bench.tenants.fault(EndpointId(77), "no such endpoint", later, &mut bench.shelf);
    assert_eq!(bench.record(0).faults, 1);
    let refused = bench.connect(client(0, b"")).unwrap_err().to_string();
    assert!(refused.contains("try again later"), "{refused}");
    assert_eq!(bench.record(0).refused, 1);
}

#[test]
fn who_hangs_up_before_its_fault_is_known_is_barred_all_the_same() {
    let mut bench = Bench::new();
    drop(bench.connect(client(0, b"")).unwrap());
    bench.settle();
    assert!(bench.shelf.rings.is_empty());
    let later = Instant::now() + PATIENCE;
    bench.tenants.fault(EndpointId(0), "ring index jump", later, &mut bench.shelf);
    let refused = bench.connect(client(0, b"")).unwrap_err().to_string();
    assert!(refused.contains("try again later"), "{refused}");
    let record = bench.record(0);
    assert_eq!((record.faults, record.last_end.as_deref()), (1, Some("ring index jump")));
}

#[test]
fn who_was_put_out_does_not_come_back_by_a_handshake_begun_before() {
    let mut bench = Bench::new();
    let mut second = Client::connect(&bench.path, client(0, b"")).unwrap();
    // INIT is accepted, and CONNECT not said yet.
    for _ in 0..3 {
        bench.settle();
        assert!(matches!(second.step(), Ok(Progress::Pending)));
    }
    let _first = bench.connect(client(0, b"")).unwrap();
    bench.tenants.fault(EndpointId(0), "ring index jump", Instant::now() + PATIENCE, &mut bench.shelf);
    let end = Instant::now() + PATIENCE;
    while bench.record(0).refused == 0 && Instant::now() < end {
        bench.settle();
        let _connected_or_refused = second.step();
    }
    assert_eq!((bench.record(0).refused, bench.shelf.attached), (1, 1), "{:?}", bench.record(0));
}

#[test]
fn who_was_put_out_may_come_back_after_a_pause() {
    let mut bench = Bench::new();
    let _first = bench.connect(client(0, b"")).unwrap();
    let before = Instant::now() - FAULT_PAUSE;
    bench.tenants.fault(EndpointId(0), "ring index jump", before, &mut bench.shelf);
    assert!(bench.connect(client(0, b"")).is_ok());
}

#[test]
fn silent_clients_are_bounded_and_time_out() {
    let mut bench = Bench::new();
    let silent: Vec<_> = (0..3 * HANDSHAKES_MAX).map(|_| bench.raw()).collect();
    bench.settle();
    assert_eq!(bench.tenants.handshakes(), HANDSHAKES_MAX);
    // An honest client behind them all gets through as the old ones are put out.
    let mut honest = Client::connect(&bench.path, client(0, b"")).unwrap();
    let mut now = Instant::now();
    let end = now + PATIENCE;
    while !matches!(honest.step(), Ok(Progress::Connected(_))) {
        assert!(Instant::now() < end, "the honest client does not get through");
        now += EVICT_AFTER;
        bench.settle_at(now);
    }
    assert!(bench.tenants.deadline().is_some());
    drop(silent);
    bench.settle();
    assert_eq!(bench.tenants.handshakes(), 0);
}

#[test]
fn nonsense_costs_only_the_connection_that_sends_it() {
    let mut bench = Bench::new();
    let tenant = bench.connect(client(0, b"")).unwrap();
    for bytes in [&[0xffu8; 128][..], &[0; 1], &[7; 500], &[]] {
        let fd = bench.raw();
        bench.settle();
        rustix::net::send(&fd, bytes, rustix::net::SendFlags::NOSIGNAL).unwrap();
        bench.settle();
        assert_eq!(bench.tenants.handshakes(), 0, "{} bytes", bytes.len());
    }
    assert!(tenant.control.poll_disconnect().unwrap().is_none());
    assert!(bench.shelf.rings.contains_key(&EndpointId(0)));
}

#[test]
fn a_connected_tenant_that_speaks_out_of_turn_is_put_out() {
    let mut bench = Bench::new();
    let first = bench.connect(client(0, b"")).unwrap();
    rustix::net::send(&first.control, &[1u8; 128], rustix::net::SendFlags::NOSIGNAL).unwrap();
    bench.settle();
    assert!(bench.shelf.rings.is_empty() && bench.record(0).peer.is_none());
}

#[test]
fn stopping_tells_everybody_and_removes_the_socket() {
    let mut bench = Bench::new();
    let first = bench.connect(client(0, b"")).unwrap();
    let path = bench.path.path().unwrap().to_owned();
    assert!(path.exists());
    bench.tenants.stop(Instant::now(), &mut bench.shelf);
    assert!(bench.shelf.rings.is_empty() && !path.exists());
    let told = first.control.poll_disconnect().unwrap().unwrap().to_string();
    assert!(told.contains("stopping"), "{told}");
}

#[test]
fn a_socket_that_is_taken_is_an_error_that_names_it() {
    let bench = Bench::new();
    let error =
        Tenants::bind(&plan(vec![endpoint(&bench.path, 1, b"")]), Token(0), None).unwrap_err().to_string();
    assert!(error.contains("m.sock") && error.contains("another process listens"), "{error}");
    // A stream socket of somebody else does not fool it either.
    let other = bench.dir.path().join("other.sock");
    let _listener = std::os::unix::net::UnixListener::bind(&other).unwrap();
    assert!(StreamSocket::connect(&other).is_ok());
    let other = SocketAddr::Path(other);
    assert!(Tenants::bind(&plan(vec![endpoint(&other, 1, b"")]), Token(0), None).is_err());
}

#[test]
fn a_tenant_brings_as_many_queues_as_its_endpoint_takes_and_no_more() {
    let pairs = |mut plan: EndpointPlan, pairs| {
        plan.port.memif_mut().unwrap().queue_pairs = pairs;
        plan
    };
    let mut bench =
        Bench::with(|path| vec![pairs(endpoint(path, 0, b""), 2), pairs(endpoint(path, 1, b""), 1)]);
    let two = |id| ClientConfig { queue_pairs: 2, ..client(id, b"") };
    let _first = bench.connect(two(0)).unwrap();
    let rings = &bench.shelf.rings[&EndpointId(0)];
    assert_eq!((rings.rx.len(), rings.tx.len()), (2, 2));
    assert_eq!(bench.record(0).peer.unwrap().queue_pairs, 2);
    let error = bench.connect(two(1)).unwrap_err().to_string();
    assert!(error.contains("too many rings"), "{error}");
    assert!(bench.record(1).last_failure.unwrap().contains("too many rings"));
    let _second = bench.connect(client(1, b"")).unwrap();
    assert_eq!(bench.record(1).last_failure, None);
}

#[test]
fn a_tenants_memory_has_the_endpoints_bound() {
    let mut bench = Bench::with(|path| {
        let mut plan = endpoint(path, 0, b"");
        let MemifRole::Server { memory_bytes_max, .. } = &mut plan.port.memif_mut().unwrap().role else {
            unreachable!()
        };
        *memory_bytes_max = 1 << 20;
        vec![plan]
    });
    assert!(bench.connect(ClientConfig { ring_log2: 5, ..client(0, b"") }).is_ok());
    bench.settle();
    let error = bench.connect(ClientConfig { ring_log2: 10, ..client(0, b"") }).unwrap_err().to_string();
    assert!(error.contains("regions exceed 1048576 bytes"), "{error}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_sockets_owner_group_and_mode_are_the_plans() {
    let bench = Bench::with(|path| {
        let mut plan = endpoint(path, 0, b"");
        let MemifRole::Server { mode, owner, group, .. } = &mut plan.port.memif_mut().unwrap().role else {
            unreachable!()
        };
        (*mode, *owner, *group) = (Some(0o640), Some(4321), Some(8765));
        vec![plan]
    });
    let file = std::fs::metadata(bench.path.path().unwrap()).unwrap();
    assert_eq!((file.uid(), file.gid(), file.mode() & 0o777), (4321, 8765, 0o640));
}
