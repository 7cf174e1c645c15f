//! The memif crate between two processes: the same program started twice more, as `Side`s, by `measure`.
//!
//! The receiver listens, and its line `measuring` on standard error and its `Run` on standard output are all that it
//! says; the sender runs until it is killed. Packets carry a number, and a receiver that misses one fails.

use std::process::Command;
use std::time::{Duration, Instant};

use clap::{Args, ValueEnum};
use peregrine_control::lab::Process;
use peregrine_memif::{
    Client, ClientConfig, Interface, Listener, ListenerConfig, Progress, RxRing, ServerConfig, SocketAddr,
    TxRing,
};

use super::{BUFFER_BYTES, BURST, Cores, RING_LOG2, Run, Times};
use crate::environment::CpuTime;

/// What a receiver says on standard error when its window begins.
const MEASURING: &str = "measuring";
/// How long a step that takes milliseconds may take before the run has failed.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bursts between two looks at the clock: some 0.1 ms.
const BURSTS_PER_LOOK: usize = 100;
/// The thread that asks.
const THREAD: &str = "/proc/thread-self";
/// Ethernet, IPv4 and UDP, as far as anybody looks.
const HEADERS: [u8; 42] = [
    2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0, 0x45, 0, 0, 50, 0, 0, 0, 0, 64, 17, 0, 0, 198, 18, 0, 1, 198,
    18, 0, 2, 0, 9, 0, 9, 0, 30, 0, 0,
];

/// One process of the measurement. For `memif` itself only.
#[derive(Debug, Args)]
pub struct Side {
    #[arg(long)]
    role: Role,
    /// Of the memif socket, an abstract one.
    #[arg(long)]
    name: String,
    #[arg(long)]
    core: usize,
    #[arg(long)]
    bytes: usize,
    #[arg(long, default_value_t = 0)]
    warm_up_ms: u64,
    #[arg(long, default_value_t = 0)]
    window_ms: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Role {
    Receive,
    Send,
}

/// One run: starts both sides, and ends them.
pub fn measure(bytes: usize, cores: Cores, times: Times) -> Result<Run, String> {
    let name = format!("peregrine-perf-{}", std::process::id());
    let mut receiver = side("receive", &name, cores.receiver, bytes, times)?;
    let sender = side("send", &name, cores.sender, bytes, times)?;
    // A sender that cannot start is told here, by the receiver that misses it.
    receiver.wait_for_line(MEASURING, PATIENCE + times.warm_up).map_err(said)?;
    let thread = format!("/proc/{}", sender.id());
    let before = CpuTime::read(&thread)?;
    let output = receiver.finish(PATIENCE + times.window, &|| false).map_err(said)?;
    let sender_share = CpuTime::read(&thread)?.share_since(&before);
    let run: Run = serde_json::from_str(&output).map_err(|error| format!("the receiver said: {error}"))?;
    Ok(Run { core_share: run.core_share.min(sender_share), ..run })
}

fn side(role: &str, name: &str, core: usize, bytes: usize, times: Times) -> Result<Process, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut command = Command::new(program);
    command.args(["memif-side", "--role", role, "--name", name]);
    command.arg("--core").arg(core.to_string());
    command.arg("--bytes").arg(bytes.to_string());
    command.arg("--warm-up-ms").arg(times.warm_up.as_millis().to_string());
    command.arg("--window-ms").arg(times.window.as_millis().to_string());
    Process::start(&mut command).map_err(said)
}

impl Side {
    /// Runs it in this process; what is to be printed.
    pub fn run(&self) -> Result<String, String> {
        if !(HEADERS.len() + 8..=BUFFER_BYTES).contains(&self.bytes) {
            return Err(format!("--bytes {}: {} to {BUFFER_BYTES}", self.bytes, HEADERS.len() + 8));
        }
        if !core_affinity::set_for_current(core_affinity::CoreId { id: self.core }) {
            return Err(format!("cannot run on core {}", self.core));
        }
        let addr = SocketAddr::Abstract(self.name.as_str().into());
        match self.role {
            Role::Receive => {
                let run = self.receive(accept(&addr)?)?;
                Ok(format!("{}\n", serde_json::json!(run)))
            }
            Role::Send => {
                let config = ClientConfig { ring_log2: RING_LOG2, ..ClientConfig::default() };
                let interface = Client::connect_blocking(&addr, config, PATIENCE);
                self.send(interface.map_err(said)?).map(|()| String::new())
            }
        }
    }

    /// Takes packets, through the warm-up and the window.
    fn receive(&self, mut interface: Interface) -> Result<Run, String> {
        let rx = interface.rx.first_mut().ok_or("the client brought no ring")?;
        let mut taker = Taker { packets: 0, bytes: self.bytes, buffers: vec![[0; BUFFER_BYTES]; BURST] };
        taker.take_until(rx, Instant::now() + Duration::from_millis(self.warm_up_ms))?;
        eprintln!("{MEASURING}");
        let (before, cpu) = (taker.packets, CpuTime::read(THREAD)?);
        let start = Instant::now();
        taker.take_until(rx, start + Duration::from_millis(self.window_ms))?;
        let seconds = start.elapsed().as_secs_f64();
        let core_share = CpuTime::read(THREAD)?.share_since(&cpu);
        Ok(Run { packets: taker.packets - before, seconds, core_share })
    }

    /// Sends until it is killed, or long after the window.
    fn send(&self, mut interface: Interface) -> Result<(), String> {
        let tx = interface.tx.first_mut().ok_or("the server took no ring")?;
        let end = Instant::now() + PATIENCE + Duration::from_millis(self.warm_up_ms + self.window_ms);
        let mut sender = Sender { number: 0, bytes: self.bytes, packets: vec![[0; BUFFER_BYTES]; BURST] };
        while Instant::now() < end {
            for _ in 0..BURSTS_PER_LOOK {
                sender.burst(tx)?;
            }
        }
        Ok(())
    }
}

/// The sender's packets, which are the same memory in each burst, as those of testpmd's pool are.
struct Sender {
    number: u64,
    bytes: usize,
    packets: Vec<[u8; BUFFER_BYTES]>,
}

impl Sender {
    /// Writes a burst of packets and pushes it, when the ring has room for all of it.
    fn burst(&mut self, tx: &mut TxRing) -> Result<(), String> {
        if usize::from(tx.free().map_err(said)?) < BURST {
            std::hint::spin_loop();
            return Ok(());
        }
        for packet in &mut self.packets {
            write_headers(packet, self.number);
            self.number += 1;
        }
        for packet in &self.packets {
            tx.push(packet.get(..self.bytes).unwrap_or_default()).map_err(said)?;
        }
        tx.flush().map(|_woken| ()).map_err(said)
    }
}

/// The receiver's memory, and what came.
struct Taker {
    packets: u64,
    bytes: usize,
    buffers: Vec<[u8; BUFFER_BYTES]>,
}

impl Taker {
    fn take_until(&mut self, rx: &mut RxRing, end: Instant) -> Result<(), String> {
        while Instant::now() < end {
            for _ in 0..BURSTS_PER_LOOK {
                self.burst(rx)?;
            }
        }
        Ok(())
    }

    /// Copies out what is there, at most a burst, and looks whether it is the right packets.
    fn burst(&mut self, rx: &mut RxRing) -> Result<(), String> {
        if rx.pending().map_err(said)? == 0 {
            std::hint::spin_loop();
            return Ok(());
        }
        for buffer in &mut self.buffers {
            let Some(packet) = rx.next_packet() else { break };
            let copied = packet.map_err(said)?.copy_to(buffer);
            if copied != Some(self.bytes) || number(buffer) != self.packets {
                return Err(format!(
                    "packet {} came as number {}, {copied:?} bytes",
                    self.packets,
                    number(buffer)
                ));
            }
            self.packets += 1;
        }
        rx.release();
        Ok(())
    }
}

/// What testpmd's sender writes into each packet too: the headers of Ethernet, IPv4 and UDP. And the packet's number.
fn write_headers(packet: &mut [u8; BUFFER_BYTES], number: u64) {
    let (headers, rest) = packet.split_at_mut(HEADERS.len());
    headers.copy_from_slice(&HEADERS);
    rest[..8].copy_from_slice(&number.to_ne_bytes());
}

fn number(packet: &[u8; BUFFER_BYTES]) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&packet[HEADERS.len()..HEADERS.len() + 8]);
    u64::from_ne_bytes(number)
}

/// The receiver's side of the handshake.
pub fn accept(addr: &SocketAddr) -> Result<Interface, String> {
    let listener = Listener::bind(addr, ListenerConfig::default()).map_err(said)?;
    let end = Instant::now() + PATIENCE;
    let mut handshake = None;
    while Instant::now() < end {
        match &mut handshake {
            None => handshake = listener.accept().map_err(said)?,
            Some(handshake) => {
                let progress = handshake.step(&mut |_| Ok(ServerConfig::default())).map_err(said)?;
                if let Progress::Connected(interface) = progress {
                    return Ok(*interface);
                }
            }
        }
        // Nothing is measured yet: the sender needs the machine to start.
        std::thread::yield_now();
    }
    Err(format!("no sender came within {PATIENCE:?}"))
}

fn said(error: impl std::fmt::Display) -> String {
    error.to_string()
}
