//! The program as it is run: start, questions, tenants, stop; and everything that can be wrong with a start.
//! `here: ov0 10.9.0.1/24 ── ov1 10.9.0.2/24 :there`.

mod common;

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use common::{Net, text, until};
use peregrine_control::client::{CHANGE_TIMEOUT, Client};
use peregrine_control::preflight::allowed_cores;
use peregrine_memif::{
    Client as MemifClient, ClientConfig, Interface, Listener, ListenerConfig, Progress, ServerConfig,
    SocketAddr,
};
use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_peregrine");

struct Host {
    net: Net,
    dir: tempfile::TempDir,
}

/// A daemon that has said that it is ready. Killed when dropped.
struct Daemon {
    child: Child,
    said: Vec<String>,
    stderr: BufReader<std::process::ChildStderr>,
}

impl Host {
    fn new() -> Host {
        Host { net: Net::new(), dir: tempfile::tempdir().unwrap() }
    }

    fn control(&self) -> PathBuf {
        self.dir.path().join("run").join("control.sock")
    }

    fn memif(&self) -> PathBuf {
        self.dir.path().join("run").join("tenant.sock")
    }

    /// A config file; `change` replaces a text in it.
    fn config(&self, change: (&str, &str)) -> PathBuf {
        let core = allowed_cores().unwrap().last().unwrap().0;
        let good = format!(
            "control_socket = \"{}\"\n[[workers]]\ncore = {core}\n[uplink]\ninterface = \"ov0\"\nmode = \"copy\"\n\
             local = \"10.9.0.1\"\nring_size = 512\n[[networks]]\nname = \"blue\"\nvni = 7\nremotes = [\"10.9.0.2\"]\n\
             [[endpoints]]\nname = \"web\"\nnetwork = \"blue\"\nmac = \"02:00:00:00:07:01\"\n\
             memif = {{ socket = \"{}\", id = 3 }}\n",
            self.control().display(),
            self.memif().display()
        );
        let file = self.dir.path().join("peregrine.toml");
        std::fs::write(&file, good.replace(change.0, change.1)).unwrap();
        file
    }

    fn run(&self, config: &Path) -> Command {
        let mut command = self.net.command(PROGRAM);
        command.args(["run", "-c"]).arg(config).stdin(Stdio::null());
        command
    }

    fn start(&self) -> Daemon {
        self.start_with(("", ""))
    }

    fn start_with(&self, change: (&str, &str)) -> Daemon {
        let mut child = self.run(&self.config(change)).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let mut daemon = Daemon { child, said: Vec::new(), stderr };
        daemon.listen_for("ready in ");
        daemon
    }

    /// Runs a config that cannot be run: the one line of error.
    fn refused(&self, change: (&str, &str)) -> String {
        let output = self.run(&self.config(change)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!((output.status.code(), said.lines().count()), (Some(1), 1), "{}", text(&output));
        assert!(said.starts_with("peregrine: error: "), "{said}");
        assert!(!self.control().exists() && !self.memif().exists());
        said
    }

    fn ask(&self, arguments: &[&str]) -> Output {
        Command::new(PROGRAM).args(arguments).arg("--socket").arg(self.control()).output().unwrap()
    }

    fn json(&self, what: &str) -> Value {
        let output = self.ask(&[what, "--json"]);
        assert!(output.status.success(), "{}", text(&output));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn connect(&self) -> Interface {
        let config = ClientConfig { id: 3, name: "tester".into(), ..ClientConfig::default() };
        let address = SocketAddr::Path(self.memif());
        MemifClient::connect_blocking(&address, config, Duration::from_secs(5)).unwrap()
    }

    fn program_attached(&self) -> bool {
        self.net.here("-d link show ov0").contains("xdp")
    }
}

impl Daemon {
    fn listen_for(&mut self, text: &str) {
        loop {
            let mut line = String::new();
            let count = self.stderr.read_line(&mut line).unwrap();
            assert!(count > 0, "it ended before it said '{text}':\n{}", self.said.concat());
            self.said.push(line);
            if self.said.last().is_some_and(|line| line.starts_with(text)) {
                return;
            }
        }
    }

    fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// The process that seals tenants' memory: its one child that lives.
    fn sealer(&self) -> Pid {
        let pid = self.child.id();
        let mut found = Vec::new();
        // One that was just started has no command line for a moment.
        until(5, "one process that seals", || {
            let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
            let pids = children.split_whitespace().map(|pid| pid.parse::<i32>().unwrap());
            found = pids.filter(|pid| is_sealer(*pid)).collect();
            found.len() == 1
        });
        Pid::from_raw(found[0]).unwrap()
    }

    fn end(&mut self, seconds: u64) -> std::process::ExitStatus {
        let mut status = None;
        until(seconds, "the daemon's end", || {
            status = self.child.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

fn is_sealer(pid: i32) -> bool {
    // Of one that is dead and was not waited for there is nothing to read.
    std::fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"\0seal-helper\0"))
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _ended = self.child.wait();
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn it_starts_answers_and_stops_and_leaves_nothing() {
    let host = Host::new();
    let mut daemon = host.start();
    let said = daemon.said.concat();
    assert!(said.contains("copy asked, copy got") && said.contains("VNI 7"), "{said}");
    assert!(host.program_attached());
    let status = host.json("status");
    assert_eq!(status["pid"], daemon.child.id());
    assert_eq!(
        (&status["uplinks"][0]["mode_requested"], &status["uplinks"][0]["mode_actual"]),
        (&"copy".into(), &"copy".into())
    );
    until(5, "a next hop", || host.json("status")["next_hops"][0]["resolved"] == true);
    until(5, "the same in the engine", || host.json("stats")["remotes"][0]["resolved"] == true);
    let stats = host.json("stats");
    for key in ["totals", "drops", "workers", "networks", "endpoints", "remotes", "uplinks"] {
        assert!(!stats[key].is_null(), "{key}");
    }
    assert_eq!(host.json("fdb")["entries"][0]["endpoint"], "web");
    for (what, want) in [("status", "Next hops"), ("stats", "frames in"), ("fdb", "endpoint web")] {
        let output = host.ask(&[what]);
        assert!(output.status.success() && text(&output).contains(want), "{}", text(&output));
    }
    let began = Instant::now();
    daemon.signal(Signal::TERM);
    assert!(daemon.end(5).success());
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    assert!(!host.program_attached() && !host.control().exists() && !host.memif().exists());
    let output = host.ask(&["status"]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("no daemon answers at"), "{}", text(&output));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_sealing_process_that_dies_is_started_again() {
    let host = Host::new();
    let mut daemon = host.start();
    drop(host.connect());
    let first = daemon.sealer();
    kill_process(first, Signal::KILL).unwrap();
    daemon.listen_for("warning: the process that seals tenants' memory");
    assert!(daemon.said.last().unwrap().contains("started another one"), "{:?}", daemon.said);
    let second = daemon.sealer();
    assert_ne!(first, second);
    drop(host.connect());
    daemon.signal(Signal::KILL);
    daemon.end(5);
    until(5, "the end of the sealing process", || {
        let state = std::fs::read_to_string(format!("/proc/{}/stat", second.as_raw_nonzero()));
        state.map_or(true, |state| state.contains(") Z "))
    });
}

/// One that is stuck, too; and when it ends at last, nothing of it stays.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_sealing_process_that_does_not_answer_is_replaced() {
    let host = Host::new();
    let mut daemon = host.start();
    let first = daemon.sealer();
    kill_process(first, Signal::STOP).unwrap();
    daemon.listen_for("warning: the process that seals tenants' memory");
    drop(host.connect());
    kill_process(first, Signal::CONT).unwrap();
    let process = format!("/proc/{}", first.as_raw_nonzero());
    until(5, "it to end and to be waited for", || !Path::new(&process).exists());
}

#[test]
#[ignore = "needs root: make test runs it"]
fn that_the_sealing_process_cannot_be_started_again_is_told_once() {
    let host = Host::new();
    let mut daemon = host.start();
    let (sealer, pid) = (daemon.sealer(), Pid::from_child(&daemon.child));
    let maximum = getrlimit(Resource::Nofile).maximum;
    let descriptors =
        |current| prlimit(Some(pid), Resource::Nofile, Rlimit { current, maximum }).unwrap().current;
    let before = descriptors(Some(3));
    kill_process(sealer, Signal::KILL).unwrap();
    daemon.listen_for("warning: the process that seals tenants' memory");
    assert!(daemon.said.last().unwrap().contains("cannot be started again"), "{:?}", daemon.said);
    let began = Instant::now();
    until(10, "it to be tried some more times", || began.elapsed() > Duration::from_secs(4));
    descriptors(before);
    daemon.listen_for("warning: the process that seals tenants' memory");
    assert!(daemon.said.last().unwrap().contains("started another one"), "{:?}", daemon.said);
}

/// From the start, when this process itself may still run there.
#[test]
#[ignore = "needs root: make test runs it"]
fn the_sealing_process_leaves_the_workers_core_alone() {
    let cores = allowed_cores().unwrap();
    let host = Host::new();
    let daemon = host.start();
    let set = rustix::thread::sched_getaffinity(Some(daemon.sealer())).unwrap();
    let others: Vec<_> = cores.iter().filter(|core| set.is_set(core.0)).collect();
    let worker = cores.last().unwrap();
    assert!(cores.len() == 1 || (!others.is_empty() && !others.contains(&worker)), "{others:?} of {cores:?}");
}

#[test]
#[ignore = "needs root: make test runs it"]
fn tenants_come_and_go() {
    let host = Host::new();
    let mut daemon = host.start();
    for round in 1..=3 {
        let tenant = host.connect();
        let endpoint = host.json("status")["endpoints"][0].clone();
        assert_eq!((&endpoint["connected"], &endpoint["attached"]), (&true.into(), &round.into()));
        assert_eq!(
            (&endpoint["peer"]["name"], &endpoint["peer"]["pid"]),
            (&"tester".into(), &std::process::id().into())
        );
        assert_eq!(host.json("stats")["endpoints"][0]["connected"], true);
        drop(tenant);
    }
    until(5, "its end noticed", || host.json("status")["endpoints"][0]["connected"] == false);
    let tenant = host.connect();
    daemon.signal(Signal::INT);
    assert!(daemon.end(5).success());
    let why = tenant.control.poll_disconnect().unwrap().unwrap().to_string();
    assert!(why.contains("stopping"), "{why}");
}

/// Nothing changes about the ways that are wanted, but the workers were told to forget one of them.
#[test]
#[ignore = "needs root: make test runs it"]
fn a_remote_that_changes_its_network_keeps_its_way() {
    let host = Host::new();
    let tables = "[[networks]]\nname = \"green\"\nvni = 8\nlocal = \"10.9.0.1\"\nremotes = [\"10.9.0.2\"]\n\
                  [[networks]]\nname = \"red\"\nvni = 9\nlocal = \"10.9.0.1\"\n\
                  [[endpoints]]\nname = \"web\"\nnetwork = \"red\"";
    let _daemon = host.start_with(("[[endpoints]]\nname = \"web\"\nnetwork = \"blue\"", tables));
    until(5, "both ways", || {
        let hops = host.json("status")["next_hops"].clone();
        hops.as_array().unwrap().iter().filter(|hop| hop["resolved"] == true).count() == 2
    });
    let mut stream = UnixStream::connect(host.control()).unwrap();
    let call = |id: u8, method: &str, network: &str| {
        let params = serde_json::json!({ "network": network, "remote": "10.9.0.2" });
        format!("{}\n", serde_json::json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}))
    };
    let both = call(1, "remote.remove", "green") + &call(2, "remote.add", "red");
    stream.write_all(both.as_bytes()).unwrap();
    for answer in BufReader::new(&stream).lines().take(2) {
        let answer: Value = serde_json::from_str(&answer.unwrap()).unwrap();
        assert!(answer["error"].is_null(), "{answer}");
    }
    let mut tenant = host.connect();
    let frame = [&[0xff; 6][..], &[2, 0, 0, 0, 7, 1, 0x88, 0xb5], &[1; 50]].concat();
    let end = Instant::now() + Duration::from_secs(5);
    while host.json("stats")["networks"][2]["to_underlay"]["frames"] == 0 {
        assert!(Instant::now() < end, "no frame leaves: {}", host.json("stats"));
        if tenant.tx[0].push(&frame).is_ok() {
            tenant.tx[0].flush().unwrap();
        }
    }
    assert!(host.json("status")["next_hops"].as_array().unwrap().iter().all(|hop| hop["resolved"] == true));
}

/// Only remotes over IPv6 are there: no way tells of it.
#[test]
#[ignore = "needs root: make test runs it"]
fn an_address_that_goes_is_told_though_no_way_needs_it() {
    let host = Host::new();
    host.net.here("addr add fd09::1/64 dev ov0 nodad");
    let dual = "local = [\"10.9.0.1\", \"fd09::1\"]\nring_size = 512\n[[networks]]\nname = \"blue\"\n\
                vni = 7\nmtu = 1430\nremotes = [\"fd09::2\"]";
    let single = "local = \"10.9.0.1\"\nring_size = 512\n[[networks]]\nname = \"blue\"\nvni = 7\nremotes = [\"10.9.0.2\"]";
    let _daemon = host.start_with((single, dual));
    assert_eq!(host.json("status")["uplinks"][0]["missing"], serde_json::json!([]));
    host.net.here("addr del 10.9.0.1/24 dev ov0");
    let missing = serde_json::json!([{ "address": "10.9.0.1", "reason": "is not on this host" }]);
    until(5, "it to be told", || host.json("status")["uplinks"][0]["missing"] == missing);
    let said = text(&host.ask(&["status"]));
    assert!(said.contains("UDP port 4789, 10.9.0.1 is not on this host"), "{said}");
}

/// Serves the next client of a tenant's socket.
fn serve(listener: &Listener) -> Interface {
    let (mut handshake, mut interface) = (None, None);
    until(10, "the daemon to connect", || {
        handshake = handshake.take().or_else(|| listener.accept().unwrap());
        if let Some(open) = &mut handshake {
            match open
                .step(&mut |_| Ok(ServerConfig { allow_unsealed: true, ..ServerConfig::default() }))
                .unwrap()
            {
                Progress::Connected(connected) => interface = Some(*connected),
                Progress::Pending => {}
            }
        }
        interface.is_some()
    });
    interface.unwrap()
}

#[test]
#[ignore = "needs root: make test runs it"]
fn tenants_that_listen_outlive_the_daemon() {
    let host = Host::new();
    let clients = (
        "id = 3 }",
        "id = 3, role = \"client\", queue_pairs = 2 }\nannounce = false\n\
         [[endpoints]]\nname = \"store\"\nnetwork = \"blue\"\nmac = \"02:00:00:00:07:02\"\n\
         memif = { socket = \"@SOCKET\", id = 4, role = \"client\", ring_size = 64 }",
    );
    let change = clients.1.replace("@SOCKET", &host.memif().display().to_string());
    let mut daemon = host.start_with((clients.0, &change));
    let web = || host.json("status")["endpoints"][0].clone();
    until(5, "a second attempt", || web()["attempts"].as_u64() > Some(1));
    assert_eq!((&web()["role"], &web()["state"]), (&"client".into(), &"connecting".into()));
    assert!(web()["last_failure"].as_str().unwrap().contains("No such file"), "{}", web());
    let listener = Listener::bind(&SocketAddr::Path(host.memif()), ListenerConfig::default()).unwrap();
    for round in 1..=3 {
        let mut tenants = [serve(&listener), serve(&listener)];
        tenants.sort_by_key(|tenant| tenant.id);
        let [web_tenant, store_tenant] = &mut tenants;
        assert_eq!((web_tenant.id, web_tenant.rx.len(), store_tenant.rx.len()), (3, 2, 1));
        until(5, "both", || {
            host.json("status")["endpoints"][1]["state"] == "connected" && web()["connected"] == true
        });
        assert_eq!((&web()["peer"]["queue_pairs"], &web()["last_failure"]), (&2.into(), &Value::Null));
        // From one to the other, through the worker. It takes one order a turn: what it collects before it knows of
        // the other one is dropped and counted.
        let frame = [&[2, 0, 0, 0, 7, 2, 2, 0, 0, 0, 7, 1, 0x88, 0xb5][..], &[round; 50]].concat();
        let mut copy = [0; 128];
        let end = Instant::now() + Duration::from_secs(5);
        while store_tenant.rx[0].pending().unwrap() == 0 {
            assert!(Instant::now() < end, "round {round}: no frame: {}", host.json("stats"));
            if web_tenant.tx[0].push(&frame).is_ok() {
                web_tenant.tx[0].flush().unwrap();
            }
        }
        let length = store_tenant.rx[0].next_packet().unwrap().unwrap().copy_to(&mut copy).unwrap();
        assert_eq!(copy[..length], frame);
        daemon.signal(if round == 1 { Signal::KILL } else { Signal::TERM });
        daemon.end(5);
        until(5, "its end noticed", || web_tenant.control.poll_disconnect().unwrap().is_some());
        until(5, "the program detached", || !host.program_attached());
        daemon = host.start_with((clients.0, &change));
    }
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_second_daemon_is_refused_and_the_first_not_disturbed() {
    let host = Host::new();
    let _first = host.start();
    let output = host.run(&host.config(("", ""))).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output).contains("a daemon already answers at"), "{}", text(&output));
    assert!(host.program_attached());
    host.json("status");
    host.connect();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn after_a_kill_it_starts_again() {
    let host = Host::new();
    let mut daemon = host.start();
    daemon.signal(Signal::KILL);
    daemon.end(5);
    until(5, "the program detached", || !host.program_attached());
    assert!(host.control().exists(), "left behind by the dead daemon");
    let _again = host.start();
    host.json("status");
    host.connect();
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_is_wrong_at_start_is_one_line() {
    let host = Host::new();
    assert!(host.refused(("interface = \"ov0\"", "interface = \"none0\"")).contains("none0"));
    assert!(host.refused(("local = \"10.9.0.1\"", "local = \"10.9.0.77\"")).contains("10.9.0.77"));
    assert!(host.refused(("core = ", "core = 99")).contains("this process may use cores"));
    let elsewhere = format!("{}/not/there/c.sock", host.dir.path().display());
    let control = host.control().display().to_string();
    assert!(host.refused((&control, &elsewhere)).contains("cannot make the directory"));
    host.net.here("link set ov0 down");
    assert!(host.refused(("", "")).contains("down"));
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_reader_that_stops_reading_is_no_panic() {
    let host = Host::new();
    let _daemon = host.start();
    let mut child = Command::new(PROGRAM)
        .args(["stats", "--socket"])
        .arg(host.control())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{}", text(&output));
}

/// The endpoint of this number, on the socket `many.sock` beside the control socket.
fn declared(host: &Host, number: usize) -> Value {
    let socket = host.control().with_file_name("many.sock");
    serde_json::json!({"add_endpoint": {
        "name": format!("e{number}"),
        "network": "blue",
        "mac": format!("02:00:00:01:00:{number:02x}"),
        "addresses": [format!("10.1.1.{number}")],
        "memif": {"socket": socket, "id": number},
    }})
}

#[test]
#[ignore = "needs root: make test runs it"]
fn what_is_declared_while_it_runs_is_there_after_a_restart() {
    let host = Host::new();
    let state = host.dir.path().join("state.json");
    let with_state = format!("state = \"{}\"\ncontrol_socket", state.display());
    let change = ("control_socket", with_state.as_str());
    let call = |method: &str, params: Value| {
        Client::connect(&host.control()).unwrap().call_within(method, &params, CHANGE_TIMEOUT).unwrap()
    };
    let connect = |id: u32| {
        let config = ClientConfig { id, name: "tester".into(), ..ClientConfig::default() };
        let address = SocketAddr::Path(host.control().with_file_name("many.sock"));
        MemifClient::connect_blocking(&address, config, Duration::from_secs(5)).unwrap()
    };
    let mut daemon = host.start_with(change);
    let steps: Vec<Value> = (1..=100).map(|number| declared(&host, number)).collect();
    let answer = call("change", serde_json::json!({ "changes": steps }));
    assert_eq!((&answer["added"], &answer["generation"]), (&100.into(), &1.into()));
    let _tenant = connect(77);
    until(5, "a tenant of a declared endpoint", || {
        call("endpoint.list", serde_json::json!({"name": "e77"}))["endpoints"][0]["connected"] == true
    });
    let export = call("export", serde_json::json!({}));
    daemon.signal(Signal::TERM);
    assert!(daemon.end(5).success());

    let mut daemon = host.start_with(change);
    assert_eq!(call("export", serde_json::json!({})), export);
    assert_eq!(host.json("status")["endpoints"].as_array().unwrap().len(), 101);
    let _tenant = connect(100);
    // What it keeps is worth nothing once it is damaged.
    assert_eq!(call("apply", serde_json::json!({}))["totals"]["removed"], 100);
    until(5, "the socket's end", || !host.control().with_file_name("many.sock").exists());
    daemon.signal(Signal::TERM);
    assert!(daemon.end(5).success());
    let whole = std::fs::read(&state).unwrap();
    std::fs::write(&state, &whole[..whole.len() - 1]).unwrap();
    let said = host.refused(change);
    assert!(
        said.contains("check: it is not what was written: to go back to what was before it: mv "),
        "{said}"
    );
    std::fs::rename(state.with_file_name("state.json.last"), &state).unwrap();
    let daemon = host.start_with(change);
    assert_eq!(call("endpoint.list", serde_json::json!({}))["total"], 101);
    drop(daemon);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn a_declared_socket_that_cannot_be_opened_keeps_nobody_from_work() {
    let host = Host::new();
    let state = host.dir.path().join("state.json");
    let with_state = format!("state = \"{}\"\ncontrol_socket", state.display());
    let change = ("control_socket", with_state.as_str());
    let call = |params: Value| {
        Client::connect(&host.control()).unwrap().call_within("change", &params, CHANGE_TIMEOUT).unwrap()
    };
    let folder = host.dir.path().join("theirs").join("run");
    let [late, held] = ["late.sock", "held.sock"].map(|name| folder.join(name));
    std::fs::create_dir_all(&folder).unwrap();
    let mut daemon = host.start_with(change);
    call(serde_json::json!({"changes": [
        {"add_endpoint": {"name": "late", "network": "blue", "mac": "02:00:00:00:07:02", "memif": {"socket": late}}},
        {"add_endpoint": {"name": "gone", "network": "blue", "mac": "02:00:00:00:07:03", "memif": {"socket": late, "id": 1}}},
        {"add_port": {"name": "held", "memif": {"socket": held}}},
    ]}));
    daemon.signal(Signal::TERM);
    assert!(daemon.end(5).success());
    std::fs::remove_dir_all(host.dir.path().join("theirs")).unwrap();

    let daemon = host.start_with(change);
    let warnings: Vec<&String> = daemon.said.iter().filter(|line| line.starts_with("warning: ")).collect();
    for what in ["endpoint late", "endpoint gone", "port held"] {
        let begin = format!("warning: {what}: ");
        let is_it =
            |line: &&&String| line.starts_with(&begin) && line.ends_with(": tried again every second\n");
        assert_eq!(warnings.iter().filter(is_it).count(), 1, "{warnings:?}");
    }
    let _tenant = host.connect();
    call(serde_json::json!({"changes": [{"remove_endpoint": "gone"}]}));
    std::fs::create_dir_all(&folder).unwrap();
    until(10, "the sockets", || late.exists() && held.exists());
    let config = ClientConfig { name: "tester".into(), ..ClientConfig::default() };
    let address = SocketAddr::Path(late.clone());
    let _late = MemifClient::connect_blocking(&address, config, Duration::from_secs(5)).unwrap();
    let endpoint = |status: &Value, name: &str| {
        status["endpoints"].as_array().unwrap().iter().find(|it| it["name"] == name).cloned()
    };
    until(5, "its tenant", || endpoint(&host.json("status"), "late").unwrap()["connected"] == true);
    assert_eq!(endpoint(&host.json("status"), "gone"), None);
}

#[test]
#[ignore = "needs root: make test runs it"]
fn networks_and_endpoints_come_and_go_by_the_command_line() {
    let host = Host::new();
    let _daemon = host.start();
    let ask = |arguments: &[&str]| {
        let output = host.ask(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let mut watch = Command::new(PROGRAM)
        .args(["watch", "--socket"])
        .arg(host.control())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut told = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(told.next().unwrap().starts_with("generation "));

    let socket = host.memif().with_file_name("more.sock");
    ask(&["network", "add", "green", "--vni", "8", "--remote", "10.9.0.2"]);
    assert!(told.next().unwrap().ends_with(": added network green"));
    ask(&["port", "add", "p", "--memif", socket.to_str().unwrap()]);
    assert!(told.next().unwrap().ends_with(": added port p"));
    ask(&["endpoint", "add", "db", "--network", "green", "--mac", "02:00:00:00:08:01", "--port", "p"]);
    assert!(told.next().unwrap().ends_with(": added endpoint db"));
    let address = SocketAddr::Path(socket.clone());
    let config = ClientConfig { name: "tester".into(), ..ClientConfig::default() };
    let tenant = MemifClient::connect_blocking(&address, config, Duration::from_secs(5)).unwrap();
    until(5, "the tenant is connected", || ask(&["endpoint", "list", "db"]).contains("yes"));
    assert!(ask(&["network", "list"]).contains("green") && ask(&["port", "list"]).contains("connected"));

    let export = ask(&["export", "--toml"]);
    let file = host.dir.path().join("all.toml");
    std::fs::write(&file, &export).unwrap();
    let file = file.to_str().unwrap();
    assert_eq!(ask(&["apply", file]), "nothing to change\n");
    let refused = host.ask(&["network", "remove", "green"]);
    assert!(!refused.status.success() && text(&refused).contains("green"), "{}", text(&refused));
    ask(&["endpoint", "remove", "db"]);
    assert!(told.next().unwrap().ends_with(": removed endpoint db"));
    let gone = tenant.control.poll_disconnect().unwrap().unwrap().to_string();
    assert!(gone.contains("the endpoint was removed"), "{gone}");
    let shown = ask(&["apply", file, "--dry-run"]);
    assert_eq!(shown, "+ endpoint db\n1 added, 0 changed, 0 removed (dry run: nothing was changed)\n");
    ask(&["port", "remove", "p"]);
    assert!(!socket.exists());

    // Who only can open the socket may look, and no more.
    std::fs::set_permissions(host.control(), std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let as_nobody = |method: &str| {
        let script = format!(
            "import socket,sys\ns=socket.socket(socket.AF_UNIX)\ns.connect(sys.argv[1])\n\
             s.sendall(b'{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\"}}\\n')\nprint(s.makefile().readline())\n"
        );
        let mut command = Command::new("/usr/bin/python3");
        std::os::unix::process::CommandExt::uid(&mut command, 65534);
        text(&command.args(["-c", &script]).arg(host.control()).output().unwrap())
    };
    assert!(as_nobody("network.list").contains("green"), "{}", as_nobody("network.list"));
    for method in ["change", "export"] {
        assert!(as_nobody(method).contains("this is uid 65534"), "{}", as_nobody(method));
    }
    watch.kill().unwrap();
    watch.wait().unwrap();
}
