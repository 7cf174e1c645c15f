//! The control socket against clients that behave badly. A clock that the tests move.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream as StdStream;

use mio::{Events, Poll};
use serde_json::json;

use super::*;
use crate::rpc::Watch;

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
        let mut api = Api::bind(&dir.path().join("x.sock"), None, Token(10)).unwrap();
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
            let more = self.api.turn(self.poll.registry(), self.now, |peer, method, params| {
                *calls += 1;
                match method {
                    "big" => Ok(json!("x".repeat(OUTPUT_BYTES_HIGH)).into()),
                    "who" => Ok(json!([peer.pid, peer.uid, peer.is_owner, peer.may_change]).into()),
                    "length" => Ok(json!(params["text"].as_str().map(str::len)).into()),
                    "watch" => Ok(Reply {
                        result: json!({"generation": 5}),
                        watch: Some(Watch {
                            generation: 5,
                            missed: params["missed"].as_array().cloned().unwrap_or_default(),
                        }),
                    }),
                    _ => Ok(json!(method).into()),
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

fn request_with(method: &str, params: &Value) -> Vec<u8> {
    format!("{}\n", json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params})).into_bytes()
}

/// All lines that have come.
fn lines(stream: &StdStream) -> Vec<Value> {
    stream.set_nonblocking(true).unwrap();
    let (mut all, mut piece) = (Vec::new(), vec![0; 1 << 20]);
    while let Ok(count @ 1..) = (&*stream).read(&mut piece) {
        all.extend_from_slice(&piece[..count]);
    }
    stream.set_nonblocking(false).unwrap();
    all.split(|b| *b == b'\n').filter(|l| !l.is_empty()).map(|l| serde_json::from_slice(l).unwrap()).collect()
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

/// Writes as much as is taken; returns how much that was.
fn flood(bench: &mut Bench, stream: &mut StdStream, bytes: usize) -> usize {
    stream.set_nonblocking(true).unwrap();
    let piece = vec![b'x'; 64 * 1024];
    let mut written = 0;
    while written < bytes {
        match stream.write(&piece[..piece.len().min(bytes - written)]) {
            Ok(count) => written += count,
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(_) => break,
        }
        bench.settle();
    }
    stream.set_nonblocking(false).unwrap();
    written
}

#[test]
fn a_giant_line_ends_the_conversation() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    let written = flood(&mut bench, &mut stream, usize::MAX);
    assert!((LONG_LINE_BYTES_MAX..LONG_LINE_BYTES_MAX + (2 << 20)).contains(&written), "{written}");
    let said = line(&stream)["error"]["message"].to_string();
    assert!(said.contains("at most 67108864 bytes"), "{said}");
    assert_eq!((bench.clients(), bench.calls), (0, 0));
}

#[test]
fn who_may_change_nothing_has_shorter_lines() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    bench.settle();
    for client in bench.api.clients.iter_mut().flatten() {
        client.lines = Lines::new(Peer::with(1, 1000, 0, false).line_bytes_max());
    }
    let written = flood(&mut bench, &mut stream, usize::MAX);
    assert!((LINE_BYTES_MAX..LINE_BYTES_MAX + (2 << 20)).contains(&written), "{written}");
    assert_eq!(bench.clients(), 0);
}

#[test]
fn a_long_line_is_taken_whole_and_its_memory_not_kept() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    let text = "x".repeat(20 << 20);
    let request = request_with("length", &json!({ "text": text }));
    stream.set_nonblocking(true).unwrap();
    let mut rest = request.as_slice();
    while !rest.is_empty() {
        if let Ok(count) = stream.write(rest) {
            rest = &rest[count..];
        }
        bench.settle();
    }
    stream.set_nonblocking(false).unwrap();
    assert_eq!(line(&stream)["result"], text.len());
    let kept = &bench.api.clients.iter().flatten().next().unwrap().lines;
    assert_eq!(kept.held(), 0);
}

#[test]
fn all_long_lines_together_are_bounded() {
    let mut bench = Bench::new();
    let mut long: Vec<StdStream> = (0..3).map(|_| bench.connect()).collect();
    let part = 60 << 20;
    for stream in &mut long[..2] {
        assert_eq!(flood(&mut bench, stream, part), part);
    }
    // What is left is less than the third one wants.
    let taken = flood(&mut bench, &mut long[2], part);
    assert!(taken < 12 << 20, "{taken}");
    let said = line(&long[2])["error"]["message"].to_string();
    assert!(said.contains("too many long requests"), "{said}");
    assert_eq!(bench.clients(), 2);
    // Short ones are served all the same, and whoever stops in the middle is dropped.
    let mut short = bench.connect();
    short.write_all(request("status").as_bytes()).unwrap();
    bench.settle();
    assert_eq!(line(&short)["result"], "status");
    bench.pass(IDLE_MAX);
    assert_eq!(bench.clients(), 0);
}

#[test]
fn a_method_is_told_who_asks() {
    let mut bench = Bench::new();
    let mut stream = bench.connect();
    stream.write_all(request("who").as_bytes()).unwrap();
    bench.settle();
    let own = rustix::process::geteuid().as_raw();
    assert_eq!(line(&stream)["result"], json!([std::process::id(), own, true, true]));
}

#[test]
fn root_the_daemons_user_and_the_group_may_change_things() {
    for (uid, own, is_member, is_owner, may_change) in [
        (0, 1000, false, true, true),
        (1000, 1000, false, true, true),
        (1001, 1000, true, false, true),
        (1001, 1000, false, false, false),
        (u32::MAX, 0, false, false, false),
    ] {
        let peer = Peer::with(1, uid, own, is_member);
        assert_eq!((peer.is_owner, peer.may_change), (is_owner, may_change), "{uid} {own} {is_member}");
    }
}

#[test]
fn who_watches_is_told_what_it_does_not_know_yet() {
    let mut bench = Bench::new();
    let (mut watcher, other) = (bench.connect(), bench.connect());
    let missed = json!([{"generation": 4}, {"generation": 5}]);
    watcher.write_all(&request_with("watch", &json!({ "missed": missed }))).unwrap();
    bench.settle();
    for generation in 5..8 {
        bench.api.notify(generation, &json!({ "generation": generation }), bench.now);
    }
    let got = lines(&watcher);
    let told: Vec<_> = got[1..].iter().map(|told| told["params"]["generation"].clone()).collect();
    assert_eq!(
        (&got[0]["result"], told),
        (&json!({"generation": 5}), vec![json!(4), json!(5), json!(6), json!(7)])
    );
    assert!(got[1]["method"] == "changed" && got[1].get("id").is_none());
    assert!(lines(&other).is_empty());
    // It is still served, and may say nothing for as long as it likes.
    bench.pass(10 * IDLE_MAX);
    assert_eq!(bench.clients(), 1);
    bench.api.notify(8, &json!({}), bench.now);
    bench.settle();
    watcher.write_all(request("status").as_bytes()).unwrap();
    bench.settle();
    assert_eq!(lines(&watcher)[1]["result"], "status");
    drop(watcher);
    bench.settle();
    assert_eq!(bench.clients(), 0);
}

#[test]
fn who_has_missed_very_much_is_to_ask_anew() {
    let mut bench = Bench::new();
    let mut watcher = bench.connect();
    let missed = json!([{ "text": "x".repeat(OUTPUT_BYTES_HIGH) }]);
    watcher.write_all(&request_with("watch", &json!({ "missed": missed }))[..100_000]).unwrap();
    bench.settle();
    watcher.write_all(&request_with("watch", &json!({ "missed": missed }))[100_000..]).unwrap();
    bench.settle();
    assert_eq!(
        lines(&watcher).iter().map(|l| l["result"].clone()).collect::<Vec<_>>(),
        [json!({"generation": 5, "resync": true})]
    );
}

#[test]
fn a_watcher_that_does_not_read_is_dropped_and_the_others_are_told() {
    let mut bench = Bench::new();
    let mut watchers: Vec<StdStream> = (0..2).map(|_| bench.connect()).collect();
    for watcher in &mut watchers {
        watcher.write_all(request("watch").as_bytes()).unwrap();
    }
    bench.settle();
    let change = json!({ "text": "x".repeat(100_000) });
    let mut told = 0;
    for generation in 6..106 {
        bench.api.notify(generation, &change, bench.now);
        bench.settle();
        told += lines(&watchers[0]).iter().filter(|line| line["method"] == "changed").count();
        bench.settle();
    }
    told += lines(&watchers[0]).len();
    assert_eq!((told, bench.clients()), (100, 1));
    // And one to whom little is owed, after a while.
    for generation in 106..110 {
        bench.api.notify(generation, &change, bench.now);
    }
    bench.pass(STUCK_MAX);
    assert_eq!(bench.clients(), 0);
}

#[test]
fn watchers_leave_room_for_others() {
    let mut bench = Bench::new();
    let mut watchers: Vec<StdStream> = (0..=WATCHERS_MAX).map(|_| bench.connect()).collect();
    for watcher in &mut watchers {
        watcher.write_all(request("watch").repeat(2).as_bytes()).unwrap();
        bench.settle();
    }
    assert_eq!(bench.api.watchers(), WATCHERS_MAX);
    let said = line(&watchers[WATCHERS_MAX])["error"]["message"].to_string();
    assert!(said.contains("32 connections watch already"), "{said}");
    bench.pass(EVICT_AFTER);
    let others: Vec<StdStream> = (0..CLIENTS_MAX)
        .map(|_| {
            let stream = bench.connect();
            bench.settle();
            stream
        })
        .collect();
    assert_eq!((bench.api.watchers(), bench.clients()), (WATCHERS_MAX, CLIENTS_MAX));
    drop(others);
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
    assert!(matches!(Api::bind(bench.api.path(), None, Token(0)), Err(Error::AlreadyRunning { .. })));
}
