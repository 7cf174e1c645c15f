//! The binary as a process, and network namespaces that are gone when a test is.
#![allow(dead_code, reason = "each test program uses a part")]

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use peregrine_memif::{Handshake, Interface, Listener, Progress, ServerConfig};
use serde_json::Value;

const BINARY: &str = env!("CARGO_BIN_EXE_peregrine-pktgen");
/// What works at all works within this on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// What `look` finds, or a failure that says so.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(Instant::now() < deadline, "no {what}");
        std::thread::yield_now();
    }
}

/// The next client of a memif server, connected.
pub fn accept(listener: &Listener) -> Interface {
    let mut handshake: Handshake = until("client", || listener.accept().unwrap());
    until("connection", || match handshake.step(&mut |_| Ok(ServerConfig::default())).unwrap() {
        Progress::Connected(interface) => Some(*interface),
        Progress::Pending => None,
    })
}

/// A namespace; removed, with what is in it, when dropped.
pub struct NetNs(String);

impl NetNs {
    pub fn new(what: &str) -> NetNs {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let name = format!("pgtest-{what}-{}-{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        run(&format!("ip netns add {name}"));
        let netns = NetNs(name);
        netns.run("sysctl -qw net.ipv6.conf.all.disable_ipv6=1 net.ipv6.conf.default.disable_ipv6=1");
        netns.run("ip link set lo up");
        netns
    }

    pub fn name(&self) -> &str {
        &self.0
    }

    pub fn run(&self, line: &str) -> String {
        run(&format!("ip netns exec {} {line}", self.0))
    }

    /// One of the kernel's counters of an interface.
    pub fn counter(&self, interface: &str, counter: &str) -> u64 {
        self.run(&format!("cat /sys/class/net/{interface}/statistics/{counter}")).trim().parse().unwrap()
    }

    /// Starts the binary in here.
    pub fn pktgen(&self, arguments: &str) -> Process {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.0, BINARY]).args(arguments.split_whitespace());
        Process::start(command)
    }
}

impl Drop for NetNs {
    fn drop(&mut self) {
        let _ = Command::new("ip").args(["netns", "del", &self.0]).status();
    }
}

/// A command that must succeed; what it printed.
pub fn run(line: &str) -> String {
    let mut words = line.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// A running binary; killed when dropped.
pub struct Process {
    child: Child,
    lines: Receiver<String>,
}

/// What it left.
pub struct Ended {
    pub status: Option<i32>,
    pub stdout: String,
    pub stderr: Vec<String>,
}

impl Ended {
    /// The report of a run that went well: one JSON object and nothing else.
    pub fn report(&self) -> Value {
        assert_eq!(self.status, Some(0), "{:?}", self.stderr);
        serde_json::from_str(&self.stdout).unwrap()
    }
}

impl Process {
    pub fn start(mut command: Command) -> Process {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let stderr = BufReader::new(child.stderr.take().unwrap());
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Process { child, lines }
    }

    /// Waits until it says that it is ready.
    pub fn ready(self) -> Process {
        let line = self.lines.recv_timeout(PATIENCE);
        assert_eq!(line.as_deref(), Ok("ready"));
        self
    }

    pub fn pid(&self) -> rustix::process::Pid {
        rustix::process::Pid::from_child(&self.child)
    }

    pub fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(self.pid(), signal).unwrap();
    }

    /// Waits until it ends, not for ever.
    pub fn end(mut self) -> Ended {
        let deadline = Instant::now() + PATIENCE;
        let status = loop {
            match self.child.try_wait().unwrap() {
                Some(status) => break status,
                None if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(5)),
                None => panic!("it does not end: {:?}", self.lines.try_iter().collect::<Vec<_>>()),
            }
        };
        let mut stdout = String::new();
        self.child.stdout.take().unwrap().read_to_string(&mut stdout).unwrap();
        Ended { status: status.code(), stdout, stderr: self.lines.iter().collect() }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The binary, outside of any namespace of ours.
pub fn pktgen(arguments: &str) -> Process {
    let mut command = Command::new(BINARY);
    command.args(arguments.split_whitespace());
    Process::start(command)
}

pub fn output(arguments: &str) -> Output {
    Command::new(BINARY).args(arguments.split_whitespace()).output().unwrap()
}
