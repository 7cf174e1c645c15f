//! A daemon that is killed in the middle of changes, again and again: what it begins with afterwards is what it answered last, or that and
//! the change that was under way, as a whole. Some are killed while they write their state as a whole, because its journal is large enough. `here: ov0 10.9.0.1/24 ── ov1 10.9.0.2/24 :there`.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use common::Net;
use peregrine_control::preflight::allowed_cores;
use serde_json::{Value, json};

const PROGRAM: &str = env!("CARGO_BIN_EXE_peregrine");
/// Changes that the daemon is to have answered in all.
const CHANGES: u64 = 1000;
/// Each life answers about so many.
const ANSWERS_A_LIFE: u64 = 40;
/// Objects of one change, at most.
const BATCH_MAX: u64 = 8;
/// Of one with which the journal becomes part of the file.
const LARGE: u64 = 64;
/// The journal may become so large, and one such change from here makes it larger.
const JOURNAL_BYTES_MAX: u64 = 256 << 10;
const NEARLY_BYTES: u64 = JOURNAL_BYTES_MAX - 4096;

/// The same numbers in each run.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(0x1405_7b7e_f767_814f);
        ((u128::from(self.0 >> 32) * u128::from(end)) >> 32) as u64
    }
}

/// The endpoints that there should be, each with the last byte of its address.
type State = BTreeMap<u64, u8>;

struct Host {
    net: Net,
    dir: tempfile::TempDir,
}

impl Host {
    fn new() -> Host {
        let host = Host { net: Net::new(), dir: tempfile::tempdir().unwrap() };
        let core = allowed_cores().unwrap().last().unwrap().0;
        let config = format!(
            "control_socket = \"{}\"\nstate = \"{}\"\n[[workers]]\ncore = {core}\n[uplink]\ninterface = \"ov0\"\n\
             mode = \"copy\"\nlocal = \"10.9.0.1\"\nring_size = 512\n[[networks]]\nname = \"blue\"\nvni = 7\n",
            host.file("control.sock").display(),
            host.file("state.json").display(),
        );
        std::fs::write(host.file("peregrine.toml"), config).unwrap();
        host
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A life of the daemon, from "ready" on.
    fn start(&self) -> Life {
        let mut command = self.net.command(PROGRAM);
        command.args(["run", "-c"]).arg(self.file("peregrine.toml")).stdin(Stdio::null());
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut said = String::new();
        while !said.lines().last().is_some_and(|line| line.starts_with("ready in ")) {
            assert!(stderr.read_line(&mut said).unwrap() > 0, "it ended before it was ready:\n{said}");
        }
        let stream = UnixStream::connect(self.file("control.sock")).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        Life { child, _stderr: stderr, stream: BufReader::new(stream) }
    }

    fn journal_bytes(&self) -> u64 {
        std::fs::metadata(self.file("state.json.journal")).map_or(0, |journal| journal.len())
    }

    /// The file itself: another one each time that it is written as a whole.
    fn file_number(&self) -> u64 {
        std::os::unix::fs::MetadataExt::ino(&std::fs::metadata(self.file("state.json")).unwrap())
    }

    fn endpoint(&self, number: u64, last: u8) -> Value {
        let (high, low) = (number / 256, number % 256);
        json!({
            "name": format!("e{number}"),
            "network": "blue",
            "mac": format!("02:00:00:00:{high:02x}:{low:02x}"),
            "addresses": [format!("10.{high}.{low}.{last}")],
            "memif": { "socket": self.file("memif.sock"), "id": number },
        })
    }

    /// Some endpoints come, become others, or go; and how it is after that.
    fn change(&self, state: &State, dice: &mut Dice, count: u64) -> (Value, State) {
        let mut after = state.clone();
        let mut steps = Vec::new();
        let numbers: BTreeSet<u64> = (0..count).map(|_| dice.below(400)).collect();
        for number in numbers {
            let last = 1 + dice.below(250) as u8;
            steps.push(if !state.contains_key(&number) {
                after.insert(number, last);
                json!({ "add_endpoint": self.endpoint(number, last) })
            } else if dice.below(2) == 0 {
                after.insert(number, last);
                json!({ "set_endpoint": self.endpoint(number, last) })
            } else {
                after.remove(&number);
                json!({ "remove_endpoint": format!("e{number}") })
            });
        }
        (json!({ "changes": steps }), after)
    }
}

struct Life {
    child: Child,
    _stderr: BufReader<std::process::ChildStderr>,
    stream: BufReader<UnixStream>,
}

impl Life {
    /// `None` if it was killed before it had answered.
    fn ask(&mut self, method: &str, params: &Value) -> Option<Value> {
        self.send(method, params)?;
        let mut line = String::new();
        let read = self.stream.read_line(&mut line).ok()?;
        if read == 0 || !line.ends_with('\n') {
            return None;
        }
        let answer: Value = serde_json::from_str(&line).unwrap();
        assert!(answer["error"].is_null(), "{method} {params}: {answer}");
        Some(answer["result"].clone())
    }

    fn send(&mut self, method: &str, params: &Value) -> Option<()> {
        let request = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        self.stream.get_mut().write_all(format!("{request}\n").as_bytes()).ok()
    }

    /// What is declared, by number.
    fn state(&mut self) -> State {
        let export = self.ask("export", &Value::Null).unwrap();
        let endpoints = export["endpoints"].as_array().unwrap();
        let number = |endpoint: &Value| endpoint["name"].as_str().unwrap()[1..].parse().unwrap();
        let last = |endpoint: &Value| {
            let address = endpoint["addresses"][0].as_str().unwrap();
            address.rsplit('.').next().unwrap().parse().unwrap()
        };
        endpoints.iter().map(|endpoint| (number(endpoint), last(endpoint))).collect()
    }

    /// What runs is what is declared: by the engine's own forwarding database.
    fn runs(&mut self, state: &State) {
        let fdb = self.ask("fdb", &Value::Null).unwrap();
        let local = |entry: &&Value| !entry["endpoint"].is_null();
        assert_eq!(fdb["entries"].as_array().unwrap().iter().filter(local).count(), state.len(), "{fdb}");
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn whenever_it_is_killed_the_state_is_whole() {
    let host = Host::new();
    let mut dice = Dice(7);
    let mut state = State::new();
    let (mut answered, mut lives, mut kept, mut lost, mut whole) = (0, 0, 0, 0, 0);
    while answered < CHANGES {
        let mut life = host.start();
        lives += 1;
        let until = answered + 1 + dice.below(2 * ANSWERS_A_LIFE);
        // Every other one dies when its journal is full.
        let fills = lives % 2 == 0;
        while if fills { host.journal_bytes() < NEARLY_BYTES } else { answered < until } {
            let room = NEARLY_BYTES.saturating_sub(host.journal_bytes());
            let count = if fills && room > 32 << 10 { LARGE } else { 1 + dice.below(BATCH_MAX) };
            let (request, after) = host.change(&state, &mut dice, count);
            life.ask("change", &request).expect("an answer");
            state = after;
            answered += 1;
        }
        // One more, and it dies somewhere in it.
        let file = host.file_number();
        let count = if fills { LARGE } else { 1 + dice.below(BATCH_MAX) };
        let (request, after) = host.change(&state, &mut dice, count);
        life.send("change", &request).unwrap();
        // A random moment, not a wait for something: from 1 µs to 32 ms, each time scale alike.
        std::thread::sleep(Duration::from_micros(1 << dice.below(16)));
        drop(life);
        whole += u32::from(host.file_number() != file);
        let mut life = host.start();
        let found = life.state();
        match found == after {
            true => kept += 1,
            false => lost += 1,
        }
        assert!(found == after || found == state, "{found:?} is neither {state:?} nor {after:?}");
        life.runs(&found);
        state = found;
    }
    println!(
        "{answered} changes answered, {lives} kills: the last change was kept {kept} times, and {lost} times not; {whole} times the file was another one by then"
    );
}
