//! Very many tenants: all of them at once, and what the others cost then.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Small rings: 32 slots each way.
fn small(id: u32) -> ClientConfig {
    ClientConfig { ring_log2: 5, ..client(id, b"") }
}

/// Connects as many clients as there are ids, all at once, and drives them until they are connected.
fn connect_all(path: &SocketAddr, ids: std::ops::Range<u32>) -> Vec<Interface> {
    let mut poll = Poll::new().unwrap();
    let mut clients: Vec<Option<Client>> = Vec::new();
    let mut connected = Vec::new();
    for id in ids.clone() {
        let client = Client::connect(path, small(id)).unwrap();
        let fd = client.raw_socket().unwrap();
        let token = Token(clients.len());
        poll.registry().register(&mut SourceFd(&fd), token, Interest::READABLE).unwrap();
        clients.push(Some(client));
    }
    let mut events = Events::with_capacity(1024);
    let end = Instant::now() + PATIENCE;
    while connected.len() < ids.len() {
        assert!(Instant::now() < end, "{} of {} connected in {PATIENCE:?}", connected.len(), ids.len());
        poll.poll(&mut events, Some(Duration::from_millis(100))).unwrap();
        for event in &events {
            let Some(place) = clients.get_mut(event.token().0) else { continue };
            if let Some(Progress::Connected(interface)) = place.as_mut().map(|client| client.step().unwrap()) {
                *place = None;
                connected.push(*interface);
            }
        }
    }
    connected
}

/// Serves as the daemon's loop does, until told to stop.
fn serve(bench: &mut Bench, stop: &AtomicBool) {
    let mut events = Events::with_capacity(256);
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let most = Duration::from_millis(100);
        let wait = bench.tenants.deadline().map_or(most, |at| at.saturating_duration_since(now).min(most));
        bench.poll.poll(&mut events, Some(wait)).unwrap();
        let now = Instant::now();
        events.iter().for_each(|event| bench.tenants.ready(event.token(), now));
        bench.tenants.turn(bench.poll.registry(), now, &mut bench.shelf);
    }
}

#[test]
fn a_thousand_tenants_connect_at_once() {
    const COUNT: u32 = 1000;
    let descriptors = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: descriptors.maximum, ..descriptors };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let mut bench = Bench::with(|path| (0..COUNT).map(|id| endpoint(path, id, b"")).collect());
    let (path, stop) = (bench.path.clone(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let server = scope.spawn(|| {
            serve(&mut bench, &stop);
            bench.shelf.rings.len()
        });
        let begun = Instant::now();
        let tenants = connect_all(&path, 0..COUNT);
        println!("{COUNT} tenants connected in {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
        let begun = Instant::now();
        drop(tenants);
        println!("and gone in {:.1} ms", begun.elapsed().as_secs_f64() * 1e3);
        stop.store(true, Ordering::Relaxed);
        server.join().unwrap();
    });
    bench.settle();
    assert_eq!((bench.shelf.attached, bench.shelf.rings.len()), (COUNT as usize, 0));
}
