//! The control socket against clients that behave badly. A clock that the tests move.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream as StdStream;

use mio::{Events, Poll};
use serde_json::json;

use super::*;

/// A server that is driven by hand.
struct Bench {
    poll: Poll,
    api: Api,
    now: Instant,
    calls: usize,
    _dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let poll = Poll::new().unwrap();
        let mut api = Api::bind(&dir.path().join("x.sock"), Token(10)).unwrap();
        api.register(poll.registry()).unwrap();
        Bench { poll, api, now: Instant::now(), calls: 0, _dir: dir }
    }

    fn connect(&self) -> StdStream {
        let stream = StdStream::connect(self.api.path()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        stream
    }

    /// Turns until nothing is ready any more. Unix sockets have no delay: what was written before is there.
    fn settle(&mut self) {
        let mut events = Events::with_capacity(256);
        loop {
            self.poll.poll(&mut events, Some(Duration::ZERO)).unwrap();
            events.iter().for_each(|event| self.api.ready(event.token(), self.now));
            let calls = &mut self.calls;
            let more = self.api.turn(self.poll.registry(), self.now, |method, _| {
                *calls += 1;
                match method {
                    "big" => Ok(json!("x".repeat(OUTPUT_BYTES_HIGH))),
                    _ => Ok(json!(method)),
                }
            });
            if events.is_empty() && !more {
                return;
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.settle();
    }

    fn clients(&self) -> usize {
        self.api.clients.iter().flatten().count()
    }
}

fn request(method: &str) -> String {
    format!("{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\"}}\n")
}

fn line(stream: &StdStream) -> Value {
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    serde_json::from_str(&line).unwrap()
}

#[test]
fn requests_in_pieces_and_in_a_row_are_answered() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    for piece in request("status").as_bytes().chunks(7) {
        stream.write_all(piece).unwrap();
        bench.settle();
    }
    assert_eq!(line(&stream)["result"], "status");
    stream.write_all(request("a").repeat(50).as_bytes()).unwrap();
    bench.settle();
    assert_eq!(bench.calls, 51);
}

#[test]
fn a_client_that_stops_writing_still_gets_its_answer() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    stream.write_all(request("status").as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    bench.settle();
    let mut all = String::new();
    stream.read_to_string(&mut all).unwrap();
    assert!(all.contains("\"result\":\"status\""), "{all}");
    assert_eq!(bench.clients(), 0);
}

#[test]
fn garbage_gets_errors_and_the_next_request_its_answer() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    stream.write_all(b"\x00\xff{]\n").unwrap();
    bench.settle();
    assert_eq!(line(&stream)["error"]["code"], rpc::code::PARSE);
    stream.write_all(request("status").as_bytes()).unwrap();
    bench.settle();
    assert_eq!(line(&stream)["result"], "status");
}

#[test]
fn a_giant_line_ends_the_conversation() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    stream.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(count) = stream.write(&[b'x'; 4096]) {
        written += count;
        bench.settle();
    }
    assert!(written > rpc::LINE_BYTES_MAX);
    assert_eq!(bench.clients(), 0);
}

#[test]
fn half_a_line_does_not_hold_a_place_for_ever() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    stream.write_all(b"{\"jsonrpc\"").unwrap();
    bench.settle();
    assert_eq!(bench.clients(), 1);
    assert!(bench.api.deadline().unwrap() <= bench.now + IDLE_MAX);
    for _ in 0..3 {
        stream.write_all(b" ").unwrap(); // dripping does not count as activity
        bench.pass(IDLE_MAX / 3);
    }
    bench.pass(Duration::from_secs(1));
    assert_eq!(bench.clients(), 0);
}

#[test]
fn a_slow_reader_is_bounded_and_dropped_and_others_are_served() {
    let mut bench = Bench::new();
    let mut slow = bench.connect();
    slow.write_all(request("big").repeat(100).as_bytes()).unwrap();
    bench.settle();
    assert!(bench.calls < 10, "{} answers for a client that reads none", bench.calls);
    let mut other = bench.connect();
    other.write_all(request("status").as_bytes()).unwrap();
    bench.settle();
    assert_eq!(line(&other)["result"], "status");
    bench.pass(STUCK_MAX);
    assert_eq!(bench.clients(), 1);
}

#[test]
fn a_reader_that_comes_back_gets_everything() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    stream.write_all(request("big").repeat(5).as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let (mut total, mut piece) = (0, vec![0; 100_000]);
    loop {
        bench.settle();
        match stream.read(&mut piece).unwrap() {
            0 => break,
            count => total += count,
        }
    }
    assert!(total > 5 * OUTPUT_BYTES_HIGH, "{total}");
}

#[test]
fn places_are_bounded_and_the_idle_make_room() {
    let mut bench = Bench::new();
    let idle: Vec<StdStream> = (0..CLIENTS_MAX)
        .map(|_| {
            let stream = bench.connect();
            bench.settle();
            stream
        })
        .collect();
    let mut refused = bench.connect();
    bench.settle();
    assert_eq!((bench.clients(), refused.read(&mut [0; 10]).unwrap()), (CLIENTS_MAX, 0));
    bench.pass(EVICT_AFTER);
    let mut late = bench.connect();
    late.write_all(request("status").as_bytes()).unwrap();
    bench.settle();
    assert_eq!(line(&late)["result"], "status");
    assert_eq!(bench.clients(), CLIENTS_MAX);
    drop(idle);
    bench.settle();
    assert_eq!(bench.clients(), 1);
}

#[test]
fn a_second_daemon_is_told_that_one_is_there() {
    let bench = Bench::new();
    assert!(matches!(Api::bind(bench.api.path(), Token(0)), Err(Error::AlreadyRunning { .. })));
}
