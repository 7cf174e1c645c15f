//! Sockets that cannot be opened at once.

use super::*;

impl Bench {
    fn folder(&self) -> std::path::PathBuf {
        self.dir.path().join("gone").join("run")
    }

    fn late(&self, name: &str) -> SocketAddr {
        SocketAddr::Path(self.folder().join(name))
    }

    fn wait_for(&mut self, id: u16, plan: &EndpointPlan) {
        let error = self.tenants.add_or_wait(self.poll.registry(), &coming(id, plan)).unwrap_err();
        assert!(error.to_string().contains("gone"), "{error}");
    }

    fn retry(&mut self) {
        self.tenants.retry(self.poll.registry());
    }
}

#[test]
fn a_socket_whose_folder_comes_later_is_opened_then() {
    let mut bench = Bench::new();
    let late = bench.late("late.sock");
    bench.wait_for(7, &endpoint(&late, 0, b""));
    bench.wait_for(8, &endpoint(&late, 1, b""));
    bench.wait_for(9, &endpoint(&late, 2, b""));
    bench.retry();
    let why = bench.tenants.record(EndpointId(7)).unwrap().last_failure.clone().unwrap();
    assert!(why.contains("gone"), "{why}");
    assert!(bench.connect(client(0, b"")).is_ok(), "the others work");
    // One of them is not wanted any more, and others have its place and its id.
    let now = Instant::now();
    bench.tenants.remove(&[EndpointId(8)], now, &mut bench.shelf);
    assert!(bench.tenants.record(EndpointId(8)).is_none());
    std::fs::create_dir_all(bench.folder()).unwrap();
    bench.retry();
    assert_eq!(bench.tenants.record(EndpointId(7)).unwrap().last_failure, None);
    bench.path = late.clone();
    assert!(bench.connect(client(0, b"")).is_ok() && bench.connect(client(2, b"")).is_ok());
    assert!(bench.connect(client(1, b"")).unwrap_err().to_string().contains("unmatched interface id"));
    bench.tenants.remove(&[EndpointId(7), EndpointId(9)], now, &mut bench.shelf);
    assert!(!late.path().unwrap().exists());
    bench.retry();
    assert!(!late.path().unwrap().exists());
}

#[test]
fn what_replaces_one_that_waits_replaces_it() {
    let mut bench = Bench::new();
    let late = bench.late("late.sock");
    bench.wait_for(7, &endpoint(&late, 0, b""));
    let other = coming(8, &endpoint(&late, 0, b"hush"));
    let change = |bench: &mut Bench| {
        let Bench { poll, tenants, shelf, .. } = bench;
        let added = std::slice::from_ref(&other);
        tenants.change(poll.registry(), &[EndpointId(7)], added, Instant::now(), shelf)
    };
    assert!(change(&mut bench).is_err());
    assert!(bench.tenants.record(EndpointId(7)).is_some(), "nothing has changed");
    std::fs::create_dir_all(bench.folder()).unwrap();
    change(&mut bench).unwrap();
    bench.retry();
    bench.path = late;
    assert!(bench.connect(client(0, b"hush")).is_ok());
    assert!(bench.tenants.record(EndpointId(7)).is_none());
}

#[test]
fn a_held_socket_waits_too() {
    let mut bench = Bench::new();
    let [kept, dropped] = ["kept.sock", "dropped.sock"].map(|name| bench.late(name));
    let port = |socket: &SocketAddr| PortPlan::Memif(MemifPlan::server(socket.clone(), 3));
    for socket in [&kept, &dropped] {
        assert!(bench.tenants.hold_or_wait(bench.poll.registry(), "p", &port(socket)).is_err());
    }
    bench.retry();
    bench.release(&port(&dropped));
    std::fs::create_dir_all(bench.folder()).unwrap();
    bench.retry();
    assert!(kept.path().unwrap().exists() && !dropped.path().unwrap().exists());
    bench.release(&port(&kept));
    bench.retry();
    assert!(!kept.path().unwrap().exists());
}
