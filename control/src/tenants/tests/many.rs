//! Very many tenants: all of them at once, and what the others cost then.

use std::sync::atomic::{AtomicBool, Ordering};

use super::*;

/// Small rings: 32 slots each way.
fn small(id: u32) -> ClientConfig {
    ClientConfig { ring_log2: 5, ..client(id, b"") }
}

/// Connects as many clients as there are ids, all at once, and drives them until they are connected. One that has to make room, on a busy
/// machine, tries again, as tenants do.
fn connect_all(path: &SocketAddr, ids: std::ops::Range<u32>) -> Vec<Interface> {
    let mut poll = Poll::new().unwrap();
    let begin = |poll: &Poll, id: u32| {
        let client = Client::connect(path, small(id)).unwrap();
        let fd = client.raw_socket().unwrap();
        poll.registry().register(&mut SourceFd(&fd), Token(id as usize), Interest::READABLE).unwrap();
        client
    };
    let mut clients: HashMap<u32, Client> = ids.clone().map(|id| (id, begin(&poll, id))).collect();
    let (mut connected, mut again) = (Vec::new(), 0);
    let mut events = Events::with_capacity(1024);
    let end = Instant::now() + PATIENCE;
    while !clients.is_empty() {
        assert!(Instant::now() < end, "{} of {} connected in {PATIENCE:?}", connected.len(), ids.len());
        poll.poll(&mut events, Some(Duration::from_millis(100))).unwrap();
        for event in &events {
            let id = event.token().0 as u32;
            match clients.get_mut(&id).map(Client::step) {
                Some(Ok(Progress::Connected(interface))) => {
                    clients.remove(&id);
                    connected.push(*interface);
                }
                Some(Err(_)) => {
                    again += 1;
                    clients.insert(id, begin(&poll, id));
                }
                Some(Ok(Progress::Pending)) | None => {}
            }
        }
    }
    println!("{again} tried again");
    connected
}

/// Serves as the daemon's loop does, until told to stop.
fn serve(bench: &mut Bench, stop: &AtomicBool) -> usize {
    let mut turns = 0;
    let mut events = Events::with_capacity(256);
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        let most = Duration::from_millis(100);
        let wait = bench.tenants.deadline().map_or(most, |at| at.saturating_duration_since(now).min(most));
        bench.poll.poll(&mut events, Some(wait)).unwrap();
        let now = Instant::now();
        events.iter().for_each(|event| bench.tenants.ready(event.token()));
        bench.tenants.turn(bench.poll.registry(), now, &mut bench.shelf);
        turns += 1;
    }
    turns
}

/// How long this thread has run.
fn own_time() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
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
        let server = std::thread::Builder::new().name("server".into()).spawn_scoped(scope, || {
            let turns = serve(&mut bench, &stop);
            println!("{turns} turns; the server's thread ran for {:.1} ms", own_time().as_secs_f64() * 1e3);
        });
        let server = server.unwrap();
        let clients = scope.spawn(|| {
            let begun = Instant::now();
            let tenants = connect_all(&path, 0..COUNT);
            let (elapsed, ran) = (begun.elapsed().as_secs_f64() * 1e3, own_time().as_secs_f64() * 1e3);
            println!("{COUNT} tenants connected in {elapsed:.1} ms; their thread ran for {ran:.1} ms");
            drop(tenants);
        });
        let result = clients.join();
        stop.store(true, Ordering::Relaxed);
        assert!(result.is_ok());
        server.join().unwrap();
    });
    bench.settle();
    assert_eq!((bench.shelf.attached, bench.shelf.rings.len()), (COUNT as usize, 0));
}
