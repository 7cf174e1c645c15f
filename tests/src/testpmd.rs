//! DPDK's testpmd at the other end of a memif connection of ours, in either role. It has one port and forwards it to itself
//! (`io`, which leaves every byte as it is), queue `i` to queue `i`, or does what else it is told. It needs no huge pages and no root.
//!
//! It begins to forward, and so to poll, when it is told to ([`TestpmdSetup::forward`]): once it is connected. For a DPDK server
//! (22.11, and newer ones) that polls while somebody connects can die of SIGSEGV: `eth_memif_rx` and `eth_memif_tx` compute the
//! ring's address (the region's, which is NULL until CONNECT is handled, plus the ring's offset) before they ask whether there is a
//! connection. A polling thread that loses its core in between, while the interrupt thread handles CONNECT, then reads at the offset.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use peregrine_control::lab::Process;
use peregrine_memif::{
    Attempt, Backoff, ClientConfig, Connector, HandshakeError, Interface, Listener, ListenerConfig, Role,
    Secret, ServerConfig, SocketAddr,
};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use tempfile::TempDir;

use crate::{Net, PATIENCE, cores, until};

/// log2 of the slots of every ring.
const RING_LOG2: u8 = 10;
/// Bytes before an mbuf's data (RTE_PKTMBUF_HEADROOM).
const HEADROOM_BYTES: u32 = 128;

/// Both ends of a memif connection that is to be made.
#[derive(Clone, Debug)]
pub struct TestpmdSetup {
    /// Our side.
    pub role: Role,
    /// Where the server listens.
    pub addr: SocketAddr,
    /// How testpmd forwards.
    pub mode: &'static str,
    /// Queue pairs.
    pub queues: u16,
    /// Of each buffer, at both ends: DPDK copies without asking whether ours are as long as its own.
    pub buffer_bytes: u32,
    /// testpmd's mbufs hold so much; longer packets it keeps in chains of them.
    pub mbuf_bytes: u32,
    /// Packets of several buffers.
    pub chains: bool,
    /// What we know or want to be told.
    pub our_secret: Option<Secret>,
    /// More options of testpmd's device.
    pub device: String,
    /// More options of its environment.
    pub eal: &'static [&'static str],
    /// What we grant a client.
    pub server: ServerConfig,
}

impl TestpmdSetup {
    /// One queue pair and one buffer for each packet, at a socket in `folder`.
    pub fn new(role: Role, folder: &TempDir) -> TestpmdSetup {
        TestpmdSetup {
            role,
            addr: SocketAddr::Path(folder.path().join("memif.sock")),
            mode: "io",
            queues: 1,
            buffer_bytes: 2048,
            mbuf_bytes: 2048,
            chains: false,
            our_secret: None,
            device: String::new(),
            eal: &[],
            server: ServerConfig::default(),
        }
    }

    /// testpmd at the other end, which forwards nothing before [`forward`](Self::forward). What it keeps in files goes into `folder`.
    ///
    /// # Panics
    /// If it does not start.
    pub fn testpmd(&self, folder: &TempDir) -> Process {
        let role = if self.role == Role::Client { "server" } else { "client" };
        let socket = match &self.addr {
            SocketAddr::Path(path) => format!("socket-abstract=no,socket={}", path.display()),
            SocketAddr::Abstract(name) => format!("socket-abstract=yes,socket={name}"),
        };
        let (bytes, device) = (self.buffer_bytes, &self.device);
        let vdev =
            format!("--vdev=net_memif0,role={role},id=0,{socket},bsize={bytes},rsize={RING_LOG2}{device}");
        let (worker, other) = cores();
        let mut command = Command::new("dpdk-testpmd");
        command.env("RUNTIME_DIRECTORY", folder.path().join("dpdk"));
        command.args(["--no-huge", "-m", "128", "--no-pci", "--no-shconf", "--no-telemetry", &vdev]);
        // Its main thread only waits; the other one polls.
        command.args(["-l", &format!("{other},{worker}"), "--main-lcore", &other.to_string()]);
        command.args(self.eal).arg("--");
        // It reads commands when its port has been started, and forwards once it has read all: there are none, but the end of the
        // file comes when we say so.
        let commands = commands(folder);
        let _earlier = fs::remove_file(&commands);
        mknodat(CWD, &commands, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a FIFO");
        command.arg(format!("--cmdline-file={}", commands.display()));
        command.args(["--auto-start", "--nb-cores=1", "--total-num-mbufs=4096"]);
        command.arg(format!("--forward-mode={}", self.mode));
        command.args([format!("--rxq={}", self.queues), format!("--txq={}", self.queues)]);
        command.arg(format!("--mbuf-size={}", self.mbuf_bytes + HEADROOM_BYTES));
        // It would throw away what comes before it has begun; and without statistics it ends with its standard input.
        command.args(["--no-flush-rx", "--stats-period=1", "--no-lsc-interrupt"]);
        // It would lock all memory, and wait 9 s for a link before it forwards.
        command.args(["--no-mlockall", "--disable-link-check"]);
        let mut testpmd = Process::start(&mut command).unwrap_or_else(|why| panic!("{why}"));
        // One that is not installed, or does not like its options, says so here.
        testpmd.wait_for_line("EAL: ", PATIENCE).unwrap_or_else(|why| panic!("{why}"));
        testpmd
    }

    /// Lets the testpmd of this folder begin to forward.
    ///
    /// # Panics
    /// If it does not.
    pub fn forward(folder: &TempDir) {
        // Without a reader it cannot be opened so. The reader then finds its end: we close it at once.
        let nonblocking = OFlags::NONBLOCK.bits().cast_signed();
        let opened = || OpenOptions::new().write(true).custom_flags(nonblocking).open(commands(folder));
        until("testpmd to read its commands", || opened().is_ok());
    }

    fn client(&self) -> ClientConfig {
        ClientConfig {
            secret: self.our_secret.unwrap_or_default(),
            ring_log2: RING_LOG2,
            buffer_bytes: self.buffer_bytes,
            // A DPDK server refuses rings that it has no queue for, and reads rubbish where it has more of them.
            queue_pairs: self.queues,
            chains: self.chains,
            ..ClientConfig::default()
        }
    }

    /// Starts testpmd, connects, and lets it forward.
    ///
    /// # Panics
    /// If either fails.
    pub fn link(&self, folder: &TempDir) -> TestpmdLink {
        let (testpmd, ours) = match self.role {
            Role::Server => {
                // A DPDK client connects once, when it starts.
                let listener = Listener::bind(&self.addr, ListenerConfig::default()).expect("a listener");
                let testpmd = self.testpmd(folder);
                (testpmd, self.serve(&listener).unwrap_or_else(|why| panic!("{why}")))
            }
            Role::Client => {
                let testpmd = self.testpmd(folder);
                (testpmd, self.connect().unwrap_or_else(|why| panic!("{why}")))
            }
        };
        let link = TestpmdLink { testpmd: Some(testpmd), ours };
        TestpmdSetup::forward(folder);
        assert_eq!((link.ours.rx.len(), link.ours.tx.len()), (self.queues.into(), self.queues.into()));
        link
    }

    /// Serves the next client of the listener.
    ///
    /// # Errors
    /// Those of the handshake.
    ///
    /// # Panics
    /// If nobody comes.
    pub fn serve(&self, listener: &Listener) -> Result<Interface, HandshakeError> {
        let config = ServerConfig { secret: self.our_secret, chains: self.chains, ..self.server.clone() };
        crate::serve(listener, &config)
    }

    /// Connects as a client. A DPDK server listens before it knows its interface: so again until it does.
    ///
    /// # Errors
    /// Those of the handshake.
    ///
    /// # Panics
    /// If testpmd does not answer.
    pub fn connect(&self) -> Result<Interface, HandshakeError> {
        let mut connector = Connector::new(self.addr.clone(), self.client(), Backoff::default())?;
        let mut result = None;
        until("testpmd to answer", || match connector.step(Instant::now()) {
            Attempt::Waiting | Attempt::Failed(HandshakeError::Io { .. } | HandshakeError::Closed { .. }) => {
                false
            }
            Attempt::Failed(HandshakeError::Disconnected { text, .. }) if text == "ID not found" => false,
            Attempt::Failed(why) => result.insert(Err(why)).is_err(),
            Attempt::Connected(interface) => result.insert(Ok(*interface)).is_ok(),
        });
        result.expect("a result")
    }
}

/// The file that testpmd reads its commands from.
fn commands(folder: &TempDir) -> PathBuf {
    folder.path().join("commands")
}

/// testpmd as a tenant that answers ARP and ICMP echo, over the memif device with these arguments (`role=…,id=…,…`). Its
/// statistics come every so many seconds, and when it is stopped.
///
/// # Panics
/// If it does not start.
pub fn answering_testpmd(net: &Net, device: &str, statistics_s: u32) -> Process {
    let (worker, other) = cores();
    let mut command = Command::new("dpdk-testpmd");
    // What it keeps in files goes where everything of the test goes.
    command.env("RUNTIME_DIRECTORY", net.file("dpdk"));
    command.args(["--no-huge", "-m", "512", "--no-pci", "--no-shconf", "--no-telemetry"]);
    command.arg(format!("--vdev=net_memif0,socket-abstract=no,bsize=2048,{device}"));
    // Its main thread waits only, so it may share the worker's core; the other one polls.
    command.args(["-l", &format!("{other},{worker}"), "--main-lcore", &worker.to_string(), "--"]);
    command.args(["--forward-mode=icmpecho", "--auto-start", "--total-num-mbufs=16384", "--nb-cores=1"]);
    // It would throw away what comes before it has begun; and without statistics it ends with its standard input.
    command.args(["--no-flush-rx", &format!("--stats-period={statistics_s}"), "--no-lsc-interrupt"]);
    Process::start(&mut command).unwrap_or_else(|why| panic!("{why}"))
}

/// A connection with testpmd.
#[derive(Debug)]
pub struct TestpmdLink {
    /// The program; none once it has ended.
    pub testpmd: Option<Process>,
    /// Our end.
    pub ours: Interface,
}

impl TestpmdLink {
    /// Ends testpmd, which says what it has forwarded: packets received, sent, dropped. Nothing more may come, and we
    /// must be told of the end.
    ///
    /// # Panics
    /// If any of that does not happen.
    pub fn end(mut self) -> (u64, u64, u64) {
        let testpmd = self.testpmd.take().expect("it runs");
        let said = testpmd.stop(PATIENCE).unwrap_or_else(|why| panic!("{why}"));
        until("the end of the connection", || {
            self.ours.control.poll_disconnect().expect("the socket").is_some()
        });
        for rx in &mut self.ours.rx {
            assert_eq!(rx.pending(), Ok(0), "a packet too many");
        }
        let count = |name: &str| forwarded(&said, name);
        (count("RX-packets:"), count("TX-packets:"), count("RX-dropped:") + count("TX-dropped:"))
    }
}

impl Drop for TestpmdLink {
    /// What testpmd said belongs to what a failing test says.
    fn drop(&mut self) {
        if let Some(testpmd) = self.testpmd.take()
            && std::thread::panicking()
        {
            match testpmd.stop(PATIENCE) {
                Ok(said) => eprintln!("testpmd said: {said}"),
                Err(why) => eprintln!("testpmd: {why}"),
            }
        }
    }
}

/// A figure of what testpmd has forwarded in all, from what it said until its end: `RX-packets:` and the like.
///
/// # Panics
/// If it is not there.
pub fn forwarded(said: &str, name: &str) -> u64 {
    let totals = said.split("Accumulated forward statistics").nth(1);
    let rest = totals.and_then(|totals| totals.split(name).nth(1)).unwrap_or_else(|| panic!("{said}"));
    rest.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or_else(|| panic!("{said}"))
}
