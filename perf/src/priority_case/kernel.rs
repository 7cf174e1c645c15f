//! The kernel's overlay under the same load: vxlan, bridge and veth of its near host on the worker's core (RPS), and a tenant there with
//! two UDP sockets, each read by a thread that sleeps until a packet comes. The generator is the same, on the other core.
//!
//! The kernel has no classes on this way: what is urgent waits with the others. That is what a user has without Peregrine.

use std::fs::File;
use std::net::UdpSocket;
use std::os::fd::AsFd;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use peregrine_control::demo::hosts::{ECHO, TENANT};
use peregrine_dataplane::clock::cycles;
use peregrine_dataplane::discard::histogram::Histogram;
use peregrine_dataplane::replay::{Speed, Stamp};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::bench::Offered;
use super::calm::{Calm, SLICE_WITH_GENERATOR, Thread};
use super::traffic::{NORMAL_PORT, URGENT_PORT};
use super::wire::Generator;
use crate::paced::{self, Latencies};

/// How long a thread waits for a packet before it looks whether it is to end.
const LOOK: Duration = Duration::from_millis(20);
/// What is still under way has arrived, or is lost, when nothing has come for so long.
const QUIET: Duration = Duration::from_millis(30);
const PATIENCE: Duration = Duration::from_secs(5);

/// One socket, and the thread that reads it.
struct Socket {
    packets: Arc<AtomicU64>,
    latency: Arc<Histogram>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Socket {
    /// In the tenant's namespace, on this core.
    fn open(port: u16, core: usize) -> Result<Socket, String> {
        let address = format!("{}:{port}", ECHO.0);
        let (packets, latency, stop) = <(Arc<AtomicU64>, Arc<Histogram>, Arc<AtomicBool>)>::default();
        let (counter, histogram, ends) = (packets.clone(), latency.clone(), stop.clone());
        let (ready, is_ready) = std::sync::mpsc::channel();
        let read = move || {
            let socket = match bound(&address) {
                Ok(socket) => socket,
                Err(error) => return drop(ready.send(Err(format!("{address}: {error}")))),
            };
            let _where_it_may = core_affinity::set_for_current(core_affinity::CoreId { id: core });
            let _listened = ready.send(Ok(()));
            let mut packet = [0; 2048];
            while !ends.load(Relaxed) {
                let Ok(length) = socket.recv(&mut packet) else { continue };
                let Some(stamp) = packet.get(..length).and_then(Stamp::of) else { continue };
                histogram.record(cycles().saturating_sub(stamp.due));
                counter.fetch_add(1, Relaxed);
            }
        };
        let thread = std::thread::Builder::new().name(format!("socket-{port}")).spawn(read);
        let thread = thread.map_err(|error| format!("cannot start a thread: {error}"))?;
        let opened = is_ready.recv().map_err(|_| "the tenant's thread ended".to_string());
        opened.and_then(|ready| ready)?;
        Ok(Socket { packets, latency, stop, thread: Some(thread) })
    }

    fn packets(&self) -> u64 {
        self.packets.load(Relaxed)
    }

    fn latencies(&self) -> Latencies {
        Latencies::sum(std::iter::once(self.latency.counts()))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ended = thread.join();
        }
    }
}

/// Moves this thread, and only this one, to the tenant.
fn bound(address: &str) -> std::io::Result<UdpSocket> {
    let namespace = File::open(Path::new("/run/netns").join(TENANT))?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
    let socket = UdpSocket::bind(address)?;
    socket.set_read_timeout(Some(LOOK))?;
    Ok(socket)
}

/// What a run gave.
#[derive(Clone, Debug)]
pub struct KernelRun {
    pub latencies: Latencies,
    /// Those of them that were met while nobody took the generator's core away.
    pub calm: Latencies,
    pub urgent_due: u64,
    /// As in `bench`.
    pub urgent_unsent: u64,
    pub urgent_lost: u64,
    pub normal_rate: f64,
}

/// The tenant's two sockets, and who sends to them.
pub struct Kernel<'a> {
    generator: &'a Generator,
    urgent: Socket,
    normal: Socket,
    hertz: f64,
}

impl Kernel<'_> {
    /// With the tenant on this core.
    pub fn start(generator: &Generator, core: usize, hertz: f64) -> Result<Kernel<'_>, String> {
        let [urgent, normal] = [URGENT_PORT, NORMAL_PORT].map(|port| Socket::open(port, core));
        Ok(Kernel { generator, urgent: urgent?, normal: normal?, hertz })
    }

    /// As `Bench::measure`.
    pub fn measure(
        &self,
        offered: Offered,
        warm_up: Duration,
        window: Duration,
    ) -> Result<KernelRun, String> {
        let urgent = || {
            let pace = &self.generator.paces.urgent;
            (pace.due.get(), pace.missed.get(), self.urgent.packets())
        };
        let (due, missed, received) = urgent();
        self.offer(offered);
        std::thread::sleep(warm_up);
        let (before, begun, normal) = (self.urgent.latencies(), Instant::now(), self.normal.packets());
        let mut calm = Calm::start(&[Thread::generator()], before.clone())?;
        while begun.elapsed() < window {
            std::thread::sleep(SLICE_WITH_GENERATOR);
            calm.slice(self.urgent.latencies())?;
        }
        let (normal, seconds) = (self.normal.packets() - normal, begun.elapsed().as_secs_f64());
        self.offer(Offered { urgent: 0.0, normal: 0.0 });
        self.drain();
        let (due_after, missed_after, received_after) = urgent();
        let (urgent_due, urgent_unsent) = (due_after - due, missed_after - missed);
        Ok(KernelRun {
            calm: calm.end(),
            latencies: self.urgent.latencies().since(&before),
            urgent_due,
            urgent_unsent,
            urgent_lost: (urgent_due - urgent_unsent).saturating_sub(received_after - received),
            normal_rate: normal as f64 / seconds,
        })
    }

    /// The highest rate of normal packets of which 99 % arrive: at full rate it can come to a standstill, which is not what it can do.
    pub fn capacity(&self, window: Duration) -> Result<f64, String> {
        const LOWEST: f64 = 10_000.0;
        const STEPS: u32 = 64;
        /// From one step to the next: from 10,000 to 2.7 million packets a second in all.
        const FACTOR: f64 = 1.0914;
        const LOST_MAX: f64 = 0.01;
        let rate = |step: u32| LOWEST * FACTOR.powi(step as i32);
        let (mut carried, mut beyond) = (0, STEPS);
        while beyond - carried > 1 {
            let middle = carried + (beyond - carried) / 2;
            let run = self.measure(Offered { urgent: 0.0, normal: rate(middle) }, window / 4, window)?;
            let wanted = (1.0 - LOST_MAX) * rate(middle);
            if run.normal_rate >= wanted { carried = middle } else { beyond = middle }
        }
        match carried {
            0 => Err(format!("the kernel's overlay carried less than {LOWEST} packets a second")),
            step => Ok(rate(step)),
        }
    }

    fn offer(&self, offered: Offered) {
        let speed = |rate: f64| if rate > 0.0 { paced::speed(rate, self.hertz) } else { Speed::Stopped };
        self.generator.paces.urgent.set(speed(offered.urgent));
        self.generator.paces.normal.set(speed(offered.normal));
    }

    fn drain(&self) {
        let packets = || self.urgent.packets() + self.normal.packets();
        let (mut seen, mut since) = (packets(), Instant::now());
        let deadline = Instant::now() + PATIENCE;
        while since.elapsed() < QUIET && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
            if packets() > seen {
                (seen, since) = (packets(), Instant::now());
            }
        }
    }
}
