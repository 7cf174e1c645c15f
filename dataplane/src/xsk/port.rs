//! A port: our end of a container's veth, driven by AF_XDP. What a tenant without memif is served through.
//!
//! ```text
//!  container ── veth ── our end: XDP program ─► rx ring ─► take ─► copied into a frame of the worker's (collect)
//!                          ▲                   fill ring ◄──┘
//!                          └─── kernel ◄─ flush ◄─ tx ring ◄─ push ◄─ copied from a frame of any worker's (deliver)
//!                                                  completion ring ─► push
//! ```
//!
//! [`Ports`] is control's: it loads the program and opens ports. An [`XskPort`] is handed to a worker in the rings of a tenant, moves with it
//! to other workers, and comes back to control to be dropped, which takes the program off.
//!
//! A port has memory (a UMEM) of its own, and each packet is copied once at the edge, as with memif; it does not share the worker's UMEM.
//! - The kernel has copied the packet into its chunk to where no outer headers fit before it: a frame's room begins there. It would have to
//!   be moved in any case.
//! - It can move to another worker, and be made ready before anybody knows who will serve it; a socket cannot change its UMEM.
//! - Uplinks may be zero-copy: the kernel would bind all that share their UMEM so, and a veth cannot.
//! - It takes nothing from the worker's pool, so that has no bound to keep, and nothing in the rings has to come home when the port
//!   ends.
//!
//! What must hold: a chunk is in the hands of the kernel, or free here, or being read (`take`). The tenant never sees this memory, nor the rings; the kernel is trusted to name each chunk once (a veth has no ring of its own that could hold one twice), and its ranges
//! are checked all the same. No checksum leaves unfinished (`wire::partial`), whatever the container's end of the veth
//! promises its kernel.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use aya::maps::XskMap;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use peregrine_memif::PushError;

use crate::clock::cycles;
use crate::port::{PACKET_MIN, Port, PortFlush, PortPacket};
use crate::sys::{self, Pages};
use crate::types::QueueId;

use super::program::{failed, link, missing};
use super::rings::Ring;
use super::socket::KERNEL_TX_BATCH;
use super::{HEADROOM, XskError};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/port.o"));

/// The function in bpf/port.c.
const NAME: &str = "peregrine_port";

/// As in bpf/port.c.
const PLACES: u32 = 1 << 16;

/// Ethernet header and a VLAN tag, beyond the MTU.
const LINK_HEADER: u32 = 18;

/// What the kernel did not take is offered again after so many cycles (some 0.1 ms).
const RETRY_CYCLES: u64 = 300_000;

/// How long a queue that has another socket is tried.
const QUEUE_PATIENCE: Duration = Duration::from_secs(1);

/// How large a port is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PortConfig {
    /// Packets that may wait each way: a power of two from 64 to 4096. Each has a chunk of 2048 bytes, or of 4096 where the MTU needs it.
    pub ring_size: u32,
}

impl Default for PortConfig {
    fn default() -> PortConfig {
        PortConfig { ring_size: 256 }
    }
}

/// The XDP program of all ports.
#[derive(Debug)]
pub struct Ports {
    ebpf: Ebpf,
}

impl Ports {
    /// Loads it.
    ///
    /// # Errors
    /// [`XskError::Program`].
    pub fn load() -> Result<Ports, XskError> {
        sys::raise_memlock(); // where that is not permitted, a port's memory may not fit the limit: then its own error says so
        let mut ebpf = EbpfLoader::new().load(OBJECT).map_err(failed("loading the map of ports"))?;
        let program: &mut Xdp = ebpf
            .program_mut(NAME)
            .ok_or_else(|| missing("its function"))?
            .try_into()
            .map_err(failed("loading the XDP program of ports"))?;
        program.load().map_err(failed("loading the XDP program of ports"))?;
        Ok(Ports { ebpf })
    }

    /// Opens an interface of this thread's network namespace as a port: from here on all that arrives there is the port's, and the kernel's
    /// stack has nothing of it.
    ///
    /// # Errors
    /// [`XskError`]. Then nothing has changed.
    pub fn open(&mut self, name: &str, config: &PortConfig) -> Result<XskPort, XskError> {
        let PortConfig { ring_size } = *config;
        if !ring_size.is_power_of_two() || !(64..=4096).contains(&ring_size) {
            return Err(XskError::PortRing { interface: name.into(), got: ring_size });
        }
        let (index, mtu) = facts(name)?;
        let chunk_size = if mtu <= super::largest_mtu(2048) { 2048 } else { 4096 };
        if mtu > super::largest_mtu(chunk_size) {
            return Err(XskError::PortMtu { interface: name.into(), mtu });
        }
        let mut port = open_patiently(name, (index, mtu), chunk_size, ring_size)?;
        self.enter(name, index, &port)?;
        let program = self.ebpf.program(NAME).ok_or_else(|| missing("its function"))?;
        let program: &Xdp = program.try_into().map_err(failed("attaching the XDP program of ports"))?;
        let program = program.fd().map_err(failed("attaching the XDP program of ports"))?;
        let attached = link(program.as_fd(), index, false);
        port.link =
            Some(attached.map_err(|source| XskError::PortRefused { interface: name.into(), mtu, source })?);
        Ok(port)
    }

    /// Nobody else's place is taken. The kernel forgets the socket when it is closed.
    fn enter(&mut self, name: &str, interface_index: u32, port: &XskPort) -> Result<(), XskError> {
        const BPF_NOEXIST: u64 = 1;
        let map = self.ebpf.map_mut("ports").ok_or_else(|| missing("the map of ports"))?;
        let mut ports = XskMap::try_from(map).map_err(failed("opening the map of ports"))?;
        ports.set(interface_index % PLACES, port.socket.fd.as_fd(), BPF_NOEXIST).map_err(|source| {
            XskError::System {
                what: format!(
                    "entering {name} into the map of ports (at most {PLACES}; a new interface would have another place)"
                ),
                source: io::Error::other(source),
            }
        })
    }
}

/// Number and MTU of an interface that is up. Only what costs the same however many interfaces there are.
fn facts(name: &str) -> Result<(u32, u32), XskError> {
    let unknown = |source: io::Error| match source.raw_os_error() {
        Some(libc::ENODEV) => XskError::NoInterface { interface: name.into() },
        _ if source.kind() == io::ErrorKind::InvalidInput => XskError::NoInterface { interface: name.into() },
        _ => XskError::System { what: format!("asking for the state of {name}"), source },
    };
    match sys::interface_state(name).map_err(unknown)? {
        (index, true) => Ok((index, sys::interface_mtu(name).map_err(unknown)?)),
        (_, false) => Err(XskError::InterfaceDown { interface: name.into() }),
    }
}

/// Tried for a while if another socket has the queue: the kernel frees those that were closed late.
fn open_patiently(
    name: &str,
    (index, mtu): (u32, u32),
    chunk_size: u32,
    ring_size: u32,
) -> Result<XskPort, XskError> {
    let deadline = Instant::now() + QUEUE_PATIENCE;
    loop {
        let error = match XskPort::open(index, chunk_size, ring_size, mtu) {
            Ok(port) => return Ok(port),
            Err(error) => error,
        };
        if error.raw_os_error() != Some(libc::EBUSY) || Instant::now() >= deadline {
            return Err(bind_error(name, error));
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn bind_error(name: &str, source: io::Error) -> XskError {
    match source.raw_os_error() {
        Some(libc::EBUSY) => {
            let queue = QueueId(0);
            XskError::QueueTaken { interface: name.into(), queue, waited: QUEUE_PATIENCE }
        }
        Some(libc::EPERM) => XskError::NotPermitted { what: "opening an AF_XDP socket" },
        Some(libc::ENETDOWN) => XskError::InterfaceDown { interface: name.into() },
        _ => XskError::Bind { interface: name.into(), queue: QueueId(0), source },
    }
}

/// An open port. Dropping it detaches the program from its interface at once, and closes the socket in a thread of its own: the kernel waits
/// for an RCU grace period, 8 to 16 ms, and for one together where many are closed. Control does it.
#[derive(Debug)]
pub struct XskPort {
    link: Option<OwnedFd>,
    /// Until it is dropped.
    socket: ManuallyDrop<Socket>,
    chunk_size: u32,
    /// How many chunks are for each way: those for receiving come first.
    chunks: u32,
    /// Chunks to send from.
    free: Vec<u64>,
    /// The longest packet that the interface sends.
    packet_max: usize,
    /// When the kernel last left something in the tx ring.
    stuck_at: u64,
    faults: u64,
}

/// The socket of a port: open as long as a ring of its is mapped.
#[derive(Debug)]
struct Socket {
    // In this order: no more users of the memory, and then the memory.
    fd: OwnedFd,
    rx: Ring,
    fill: Ring<u64>,
    tx: Ring,
    completion: Ring<u64>,
    memory: Pages,
}

impl Drop for XskPort {
    fn drop(&mut self) {
        self.link = None;
        // SAFETY: once, and it is not used after.
        let socket = unsafe { ManuallyDrop::take(&mut self.socket) };
        let closing = std::thread::Builder::new().name("port-close".into()).stack_size(64 << 10);
        let _or_here = closing.spawn(move || drop(socket)); // without a thread it has been dropped when this returns
    }
}

impl XskPort {
    fn open(interface_index: u32, chunk_size: u32, ring_size: u32, mtu: u32) -> io::Result<XskPort> {
        let memory = Pages::new(2 * ring_size as usize * chunk_size as usize)?;
        let fd = sys::xdp_socket_with_memory(&memory, chunk_size, ring_size)?;
        let offsets = sys::xdp_offsets(fd.as_fd())?;
        let (fill, completion) = (libc::XDP_UMEM_PGOFF_FILL_RING, libc::XDP_UMEM_PGOFF_COMPLETION_RING);
        let socket = Socket {
            rx: Ring::map(fd.as_fd(), libc::XDP_PGOFF_RX_RING, &offsets.rx, ring_size)?,
            fill: Ring::map(fd.as_fd(), fill as libc::off_t, &offsets.fr, ring_size)?,
            tx: Ring::map(fd.as_fd(), libc::XDP_PGOFF_TX_RING, &offsets.tx, ring_size)?,
            completion: Ring::map(fd.as_fd(), completion as libc::off_t, &offsets.cr, ring_size)?,
            fd,
            memory,
        };
        let mut port = XskPort {
            link: None,
            socket: ManuallyDrop::new(socket),
            chunk_size,
            chunks: ring_size,
            free: (ring_size..2 * ring_size).map(|chunk| u64::from(chunk) * u64::from(chunk_size)).collect(),
            packet_max: (mtu + LINK_HEADER) as usize,
            stuck_at: 0,
            faults: 0,
        };
        for chunk in 0..ring_size {
            let _room = port.socket.fill.put_entry(u64::from(chunk) * u64::from(chunk_size)); // as many as it has places
        }
        port.socket.fill.publish();
        sys::xdp_bind(port.socket.fd.as_fd(), interface_index, 0)?;
        Ok(port)
    }

    /// The next packet that has arrived; its memory goes back with `release`.
    #[inline]
    fn next_packet(&mut self) -> Option<PortPacket<'_>> {
        // The kernel may say a moment later that it has taken a chunk than that a packet has arrived in it: then it is taken next time.
        while self.socket.rx.arrived() > 0 && self.socket.fill.room() > 0 {
            let descriptor = self.socket.rx.take();
            let (address, length) = (descriptor.addr as usize, descriptor.len as usize);
            let chunk = address / self.chunk_size as usize;
            let start = chunk * self.chunk_size as usize;
            let is_ours = chunk < self.chunks as usize
                && length >= PACKET_MIN
                && address - start >= HEADROOM
                && address - start + length <= self.chunk_size as usize;
            // Never, unless the kernel has a bug: what it names wrongly is lost.
            if !is_ours || !self.socket.fill.put_entry(start as u64) {
                self.faults += 1;
                continue;
            }
            let Some(place) = self.socket.memory.at(address, length) else { continue };
            // SAFETY: inside the memory, and written by the kernel before it published the descriptor; it is not the kernel's again before
            // `release`, which cannot be called while this is borrowed.
            let bytes = unsafe { std::slice::from_raw_parts(place.as_ptr(), length) };
            return Some(PortPacket::new(bytes));
        }
        None
    }

    /// What was taken has been read: its memory is the kernel's.
    #[inline]
    fn release(&mut self) {
        self.socket.rx.release();
        self.socket.fill.publish();
    }

    /// Takes back what was sent.
    fn complete(&mut self) {
        let first = u64::from(self.chunks) * u64::from(self.chunk_size);
        for _ in 0..self.socket.completion.arrived() {
            let address = self.socket.completion.take();
            let is_ours = address >= first
                && address < 2 * first
                && address.is_multiple_of(u64::from(self.chunk_size))
                && self.free.len() < self.chunks as usize;
            if is_ours {
                self.free.push(address); // never grows
            } else {
                self.faults += 1;
            }
        }
        self.socket.completion.release();
    }

    /// Descriptors of the kernel's that made no sense. Always 0 unless there is a bug.
    pub fn faults(&self) -> u64 {
        self.faults
    }
}

impl Port for XskPort {
    #[inline]
    fn has_work(&self) -> bool {
        self.socket.rx.arrived() > 0 || self.is_due()
    }

    #[inline]
    fn is_due(&self) -> bool {
        self.stuck_at != 0 && cycles().wrapping_sub(self.stuck_at) >= RETRY_CYCLES
    }

    #[inline]
    fn is_stuck(&self) -> bool {
        self.stuck_at != 0
    }

    fn event_fd(&self) -> BorrowedFd<'_> {
        self.socket.fd.as_fd()
    }

    fn take(&mut self, most: usize, each: &mut dyn FnMut(PortPacket<'_>)) -> usize {
        let mut taken = 0;
        while taken < most
            && let Some(packet) = self.next_packet()
        {
            taken += 1;
            each(packet);
        }
        if taken > 0 {
            self.release();
        }
        taken
    }

    #[inline]
    fn push(&mut self, packet: &[u8]) -> Result<(), PushError> {
        if packet.len() > self.packet_max {
            return Err(PushError::TooLong { capacity: self.packet_max as u32 });
        }
        if packet.len() < PACKET_MIN {
            return Err(PushError::TooShort);
        }
        if self.free.is_empty() {
            self.complete();
        }
        let Some(address) = self.free.pop() else { return Err(PushError::Full) };
        let place = self.socket.memory.at(address as usize, packet.len());
        let Some(place) = place.filter(|_| self.socket.tx.put(address, packet.len() as u32, 0)) else {
            self.free.push(address); // never: the ring has a place for each, which is inside the memory; it came from this list
            return Err(PushError::Full);
        };
        // SAFETY: inside the memory, in a chunk that was free, so that nobody else looks at it before `flush` publishes it; no packet
        // is longer than a chunk.
        unsafe { place.as_ptr().copy_from_nonoverlapping(packet.as_ptr(), packet.len()) };
        Ok(())
    }

    /// One call for each batch that the kernel takes at once.
    fn flush(&mut self) -> PortFlush {
        self.socket.tx.publish();
        let mut done = PortFlush::default();
        let mut pending = self.socket.tx.pending();
        // One more than if all goes well, and one for each that the device drops, within bounds.
        let most = u64::from(pending.div_ceil(KERNEL_TX_BATCH)) + 1;
        while pending > 0 && done.calls < most + done.lost.min(u64::from(KERNEL_TX_BATCH)) {
            done.calls += 1;
            match sys::wake_transmit(self.socket.fd.as_raw_fd()) {
                Ok(()) | Err(libc::EAGAIN) => {}
                // The frame is out of the ring, and the device has dropped it.
                Err(libc::EBUSY) => done.lost += 1,
                Err(libc::ENETDOWN) => done.down += 1,
                Err(libc::ENXIO | libc::ENODEV | libc::EBADF) => done.is_gone = true,
                Err(_) => done.failed += 1,
            }
            let left = self.socket.tx.pending();
            if left >= pending {
                break;
            }
            pending = left;
        }
        self.stuck_at = if self.socket.tx.pending() > 0 { cycles().max(1) } else { 0 };
        done
    }
}

/// Makes the kernel, in this thread's network namespace, send packets through this interface as they are to be on a wire: checksums written,
/// VLAN tags in their place, none that is to be cut into several. For the container's end of a port, where nobody does it later.
///
/// # Errors
/// Those of ethtool's ioctl.
pub fn switch_offloads_off(interface: &str) -> io::Result<()> {
    sys::interface_without_offloads(interface)
}
