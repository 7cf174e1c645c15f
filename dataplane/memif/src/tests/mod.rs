//! Peers made by hand: they speak the protocol message by message and write the shared memory byte by byte, so they can do what no
//! honest peer would.

mod chains;
mod client_side;
mod connector;
mod guard;
mod handshake;
mod hostile_client;
mod locked_file;
mod model;

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use crate::channel::{Channel, Incoming};
use crate::error::HandshakeError;
use crate::interface::Interface;
use crate::listener::Limits;
use crate::message::{AddRing, Init, MODE_ETHERNET, Message, Secret, VERSION};
use crate::region::{Mapping, Regions};
use crate::server::{Handshake, Progress, ServerConfig};
use crate::sys;

/// The hand-made client's memory: S2M ring, M2S ring, buffers.
const LOG2: u8 = 5;
const SLOTS: u16 = 1 << LOG2;
const S2M_AT: u64 = 0;
const M2S_AT: u64 = 128 + 16 * 32;
const BUFFERS_AT: u32 = 4096;
const BUFFER_BYTES: u32 = 512;
const REGION_BYTES: u64 = 65536;

/// Descriptor bytes as they lie in memory.
fn descriptor(flags: u16, region: u16, length: u32, offset: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[0..2].copy_from_slice(&flags.to_ne_bytes());
    bytes[2..4].copy_from_slice(&region.to_ne_bytes());
    bytes[4..8].copy_from_slice(&length.to_ne_bytes());
    bytes[8..12].copy_from_slice(&offset.to_ne_bytes());
    bytes
}

/// Someone else's view of shared memory, through a mapping of its own.
struct Memory {
    file: File,
    regions: Regions,
}

impl Memory {
    fn new(file: File) -> Self {
        let bytes = file.metadata().unwrap().len() as usize;
        let regions = Regions::new(vec![Mapping::new(&file, bytes).unwrap()]);
        Self { file, regions }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.regions.span(0, at as u32, bytes.len() as u32).unwrap().copy_from(bytes).unwrap();
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.regions.span(0, at as u32, N as u32).unwrap().copy_to(&mut bytes).unwrap();
        bytes
    }

    fn set_head(&self, ring: u64, head: u16) {
        self.write(ring + 6, &head.to_ne_bytes());
    }

    fn head(&self, ring: u64) -> u16 {
        u16::from_ne_bytes(self.read(ring + 6))
    }

    fn set_tail(&self, ring: u64, tail: u16) {
        self.write(ring + 64, &tail.to_ne_bytes());
    }

    fn tail(&self, ring: u64) -> u16 {
        u16::from_ne_bytes(self.read(ring + 64))
    }

    fn flags(&self, ring: u64) -> u16 {
        u16::from_ne_bytes(self.read(ring + 4))
    }

    fn set_flags(&self, ring: u64, flags: u16) {
        self.write(ring + 4, &flags.to_ne_bytes());
    }

    fn set_slot(&self, ring: u64, slot: u16, descriptor: [u8; 16]) {
        self.write(ring + 128 + 16 * u64::from(slot), &descriptor);
    }

    fn slot(&self, ring: u64, slot: u16) -> [u8; 16] {
        self.read(ring + 128 + 16 * u64::from(slot))
    }
}

/// A hand-made client and the server's handshake with it.
struct Bench {
    channel: Channel,
    server: Handshake,
    config: ServerConfig,
    memory: Memory,
    s2m_event: OwnedFd,
    m2s_event: OwnedFd,
}

impl Bench {
    fn new(config: ServerConfig) -> Self {
        Self::with_limits(config, limits())
    }

    /// HELLO has been read.
    fn with_limits(config: ServerConfig, limits: Limits) -> Self {
        Self::over(sys::sealed_memory(REGION_BYTES).unwrap(), config, limits)
    }

    /// With this file as the client's memory.
    fn over(file: File, config: ServerConfig, limits: Limits) -> Self {
        let (ours, theirs) = sys::socket_pair().unwrap();
        let memory = Memory::new(file);
        memory.write(S2M_AT, &0x03E3_1F20u32.to_ne_bytes());
        memory.write(M2S_AT, &0x03E3_1F20u32.to_ne_bytes());
        let bench = Self {
            channel: Channel::new(ours),
            server: Handshake::new(theirs, "server".into(), limits),
            config,
            memory,
            s2m_event: sys::eventfd().unwrap(),
            m2s_event: sys::eventfd().unwrap(),
        };
        assert!(matches!(bench.heard(), Message::Hello(_)));
        bench
    }

    fn step(&mut self) -> Result<Progress, HandshakeError> {
        let config = &self.config;
        self.server.step(&mut |_| Ok(config.clone()))
    }

    /// Sends a message and lets the server handle it.
    fn say(&mut self, message: &Message, fd: Option<BorrowedFd<'_>>) -> Result<Progress, HandshakeError> {
        self.channel.send(message, fd).unwrap();
        self.step()
    }

    /// What the server has said.
    fn heard(&self) -> Message {
        match self.channel.receive().unwrap() {
            Incoming::Message(message, None) => message,
            _ => panic!("no message from the server"),
        }
    }

    fn say_and_hear_ack(&mut self, message: &Message, fd: Option<BorrowedFd<'_>>) {
        assert!(matches!(self.say(message, fd), Ok(Progress::Pending)), "{}", message.kind());
        assert!(matches!(self.heard(), Message::Ack));
    }

    fn init(&mut self) {
        self.say_and_hear_ack(&Message::Init(init()), None);
    }

    fn region(&mut self) {
        let fd = self.memory.file.try_clone().unwrap();
        self.say_and_hear_ack(&Message::AddRegion { index: 0, size: REGION_BYTES }, Some(fd.as_fd()));
    }

    fn ring(&mut self, ring: AddRing) {
        let fd = if ring.s2m { &self.s2m_event } else { &self.m2s_event }.try_clone().unwrap();
        self.say_and_hear_ack(&Message::AddRing(ring), Some(fd.as_fd()));
    }

    /// Everything up to CONNECT.
    fn described(config: ServerConfig) -> Self {
        Self::new(config).describe()
    }

    fn describe(mut self) -> Self {
        self.init();
        self.region();
        self.ring(s2m());
        self.ring(m2s());
        self
    }

    fn connect(&mut self) -> Result<Interface, HandshakeError> {
        let mut progress = self.say(&Message::Connect { name: "if0".into() }, None)?;
        loop {
            match progress {
                Progress::Connected(interface) => {
                    assert!(matches!(self.heard(), Message::Connected { .. }));
                    return Ok(*interface);
                }
                // A busy machine takes its time to seal.
                Progress::Pending => progress = self.next_step()?,
            }
        }
    }

    /// Steps when it is due.
    fn next_step(&mut self) -> Result<Progress, HandshakeError> {
        let left = self.server.deadline().saturating_duration_since(Instant::now());
        sys::wait_readable(self.server.socket().unwrap(), left).unwrap();
        self.step()
    }

    /// After a refusal: the reason in DISCONNECT, and nothing after it.
    fn farewell(&self) -> String {
        let Message::Disconnect { text, .. } = self.heard() else { panic!("no DISCONNECT") };
        assert!(matches!(self.channel.receive(), Ok(Incoming::Closed)), "not closed");
        text
    }
}

fn init() -> Init {
    Init { version: VERSION, id: 3, mode: MODE_ETHERNET, secret: Secret::default(), name: "tenant".into() }
}

fn s2m() -> AddRing {
    AddRing { s2m: true, index: 0, region: 0, offset: S2M_AT as u32, log2: LOG2, private_header: 0 }
}

fn m2s() -> AddRing {
    AddRing { s2m: false, offset: M2S_AT as u32, ..s2m() }
}

const CHILD: &str = "PEREGRINE_MEMIF_TEST_CHILD";
/// What a child says that has got to its end.
const SURVIVED: &str = "survived to the end";

/// The test of this name in another process, where [`role`] says this.
fn this_test_as(test: &str, role: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "--nocapture", "--include-ignored", "--test-threads=1"]);
    command.arg(format!("tests::{test}")).env(CHILD, role);
    command
}

fn role() -> Option<String> {
    std::env::var(CHILD).ok()
}

/// Runs `scenario` in a child process, as the test of this name.
fn in_a_process_of_its_own(test: &str, scenario: fn()) -> Output {
    if role().is_some() {
        // SAFETY: no pointers. A child that is to die need not leave a core file.
        unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0) };
        scenario();
        println!("{SURVIVED}");
        std::process::exit(0);
    }
    this_test_as(test, "child").output().unwrap()
}

/// Waits until this is so.
#[track_caller]
fn wait_until(what: &str, mut is_so: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(10);
    while !is_so() {
        assert!(Instant::now() < end, "waited in vain: {what}");
        std::thread::yield_now();
    }
}

/// Limits that leave a busy machine its time.
fn limits() -> Limits {
    Limits {
        seal_timeout: Duration::from_secs(60),
        handshake_timeout: Duration::from_secs(60),
        ..Limits::default()
    }
}

#[track_caller]
fn assert_survived(output: &Output) {
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.contains(SURVIVED), "{output:?}");
}

/// A descriptor that can be sent away, and a way to see when its last copy is closed.
struct Tracer {
    sent: std::io::PipeWriter,
    end: std::io::PipeReader,
}

impl Tracer {
    fn new() -> Self {
        let (end, sent) = std::io::pipe().unwrap();
        Self { sent, end }
    }

    /// Closes our copy; then the end of file comes at once if the receiver has closed all of its own.
    fn assert_closed(self) {
        let Self { sent, mut end } = self;
        drop(sent);
        assert!(sys::wait_readable(end.as_fd(), Duration::from_secs(1)).unwrap(), "descriptor leaked");
        assert_eq!(end.read(&mut [0]).unwrap(), 0);
    }
}
