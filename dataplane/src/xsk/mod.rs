//! The AF_XDP uplinks: the XDP programs, the UMEMs and the sockets. The only place that knows `xsk-rs`.
//!
//! ```text
//! open_all() --> Uplink       control half, one per interface: what was got, counters, the served VNIs; dropping it
//!            \                detaches the program
//!             \-> WorkerPort  data half, one per worker: a pool of frames in one UMEM and the sockets of its queues,
//!                             whatever interface these are of
//! ```
//!
//! - `error`: what can go wrong, in words
//! - `interface`: facts about the interface, and checks of the config against them
//! - `umem`: one worker's memory; addresses and chunks
//! - `socket`: the four rings of one queue; what runs per burst
//! - `urgent`: the two rings of its second socket, for urgent frames
//! - `rings`: rings that we map ourselves
//! - `port`: a container's veth, which is no uplink
//! - `multi`: packets that are longer than a chunk
//! - `program`: the XDP program in the kernel
//! - `early`: which frames are urgent, as the program is told
//! - `inspect`: what `peregrine doctor` asks, and nobody else
//! - `grace`: until the programs that were told otherwise have ended
//! - `uplink`: the control half
//!
//! What must hold: the fill rings are full before the program is attached, so no frame is steered into an empty
//! ring; and a program that is not ours is never replaced.

mod early;
mod error;
mod grace;
pub mod inspect;
mod interface;
mod multi;
mod port;
mod program;
mod rings;
mod socket;
mod umem;
mod uplink;
mod urgent;

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use xsk_rs::config::{BindFlags, LibxdpFlags, QueueSize, SocketConfig};
use xsk_rs::socket::SocketCreateError;

use crate::frame::FramePool;
use crate::plan::{Early, XdpMode};
use crate::sys;
use crate::types::{QueueId, UplinkId, Vni};

pub use early::{
    EARLY_NETWORKS_MAX, EARLY_PORTS_MAX, EarlyNetwork, EarlyPort, EarlyProtocol, EarlyRules, EarlySet,
    EarlySide,
};
pub use error::XskError;
pub(crate) use grace::Grace;
pub use interface::{Interface, interface, unusable};
pub use multi::Losses;
pub use port::{PortConfig, Ports, XskPort, switch_offloads_off};
pub use program::{PassedCounters, SteeringCounters};
pub use socket::{Kicks, XskSocket};
pub use uplink::{ActualMode, SocketStatistics, Uplink, UplinkInfo};

use interface::{largest_mtu, largest_zero_copy_mtu};
use multi::{Multi, Share};
use program::{AttachError, Program};
use socket::Parts;
use umem::{Area, Sizes};
use uplink::ControlSocket;
use urgent::{Urgent, UrgentParts};

/// Bytes in front of each packet in its chunk, which the kernel keeps for XDP (XDP_PACKET_HEADROOM of linux/bpf.h).
pub const HEADROOM: usize = 256;

/// How long a queue that has another socket is tried: the kernel frees the sockets of a dead process late.
const QUEUE_PATIENCE: Duration = Duration::from_secs(5);

/// How long a program of ours is given to go away: the process that had it may just be ending.
const PREDECESSOR_PATIENCE: Duration = Duration::from_secs(1);

/// What is to be opened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct XskConfig {
    /// Name of the interface.
    pub interface: String,
    /// How the sockets are bound and the program attached.
    pub mode: XdpMode,
    /// Bytes per chunk: 2048 or 4096.
    pub chunk_size: u32,
    /// Descriptors in each of a socket's four rings: a power of two from 64 to 32768. With `early` fill and completion ring, which
    /// the two sockets of a queue share, are twice as large, and the second one's own rings half as large.
    pub ring_size: u32,
    /// Each queue gets a second socket, with an rx ring and a tx ring for urgent frames. Which frames are urgent says
    /// [`Uplink::set_early`]; none, at first.
    pub early: Early,
    /// Packets may be longer than a chunk: they come and go as several descriptors, and the pools have large buffers for them. Where the
    /// kernel or the driver has no such packets, opening fails.
    pub multi_buffer: bool,
    /// How many frames per socket may be on their way out at once, at most `ring_size` (on a second socket half of that). Every socket can send, so every
    /// one gets this many chunks, even where its owner sends on one of its sockets only.
    pub tx_frames: u32,
    /// The watchdog wakes a socket that has had frames out and got none back for so many ticks of the clock that
    /// [`XskSocket::kick`] is given.
    pub watchdog_ticks: u64,
    /// What is steered to us. `None`: no program is attached, and the sockets only transmit.
    pub steering: Option<Steering>,
    /// Every frame of all queues is steered to us instead, whatever it is, and the kernel gets those of queues without a socket
    /// only. For a packet generator that has the interface for itself; Peregrine never asks for it.
    pub everything: bool,
}

impl XskConfig {
    /// The defaults for an interface: chunks of 2048 bytes, rings of 2048, transmission only, and a watchdog of
    /// 10 ms when its clock counts nanoseconds.
    pub fn new(interface: &str, mode: XdpMode) -> XskConfig {
        XskConfig {
            interface: interface.into(),
            mode,
            chunk_size: 2048,
            ring_size: 2048,
            early: Early::Off,
            multi_buffer: false,
            tx_frames: 2048,
            watchdog_ticks: 10_000_000,
            steering: None,
            everything: false,
        }
    }
}

/// What the XDP program gives to us.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Steering {
    /// Packets to one of these addresses, which the interface must have ([`LOCALS_MAX`] of each family),
    pub locals: Vec<IpAddr>,
    /// with this VLAN's tag (then its VLAN device must have the addresses), or without any,
    pub vlan: Option<u16>,
    /// of these networks, each at its UDP port ([`Uplink::serve`] and [`Uplink::release`] change them);
    pub networks: Vec<(Vni, u16)>,
    /// this is the port of most of them.
    pub port: u16,
}

/// Addresses of each family that the XDP program has room for.
pub const LOCALS_MAX: usize = 8;

impl Steering {
    /// To one address, all at one port, untagged.
    pub fn new(local: IpAddr, port: u16, vnis: &[Vni]) -> Steering {
        let networks = vnis.iter().map(|vni| (*vni, port)).collect();
        Steering { locals: vec![local], vlan: None, networks, port }
    }
}

/// The data half of the uplinks for one worker. The sockets share the pool's UMEM.
#[derive(Debug)]
pub struct WorkerPort {
    // First, so that the sockets are closed before the memory that they use may go.
    /// One per queue of this worker: interface by interface, each in the order asked for.
    pub sockets: Vec<XskSocket>,
    /// Their frames. Empty (no chunks) if the worker has no queue.
    pub pool: FramePool,
}

// Control and the workers are threads of their own.
const _: fn() = || {
    fn is_send<T: Send>() {}
    is_send::<Uplink>();
    is_send::<WorkerPort>();
};

/// The queues of one worker, interface by interface.
pub type Hand = Vec<Vec<QueueId>>;

/// [`open_all`] for one interface: the queues of each worker.
pub fn open(config: &XskConfig, workers: &[Vec<QueueId>]) -> Result<(Uplink, Vec<WorkerPort>), XskError> {
    let hands: Vec<Hand> = workers.iter().map(|queues| vec![queues.clone()]).collect();
    let (mut uplinks, ports) = open_all(std::slice::from_ref(config), &hands)?;
    let uplink =
        uplinks.pop().ok_or_else(|| XskError::NoInterface { interface: config.interface.clone() })?;
    Ok((uplink, ports))
}

/// Opens the sockets of each worker's queues, fills their fill rings, loads the programs and attaches them.
///
/// A worker's sockets share one UMEM, also across interfaces (a kernel from 5.10 on can do that), so chunks and rings have
/// the same size on all; and all are zero-copy, or none is.
///
/// What fails leaves nothing behind. Takes some seconds at most, when a queue is still held by somebody else.
pub fn open_all(configs: &[XskConfig], workers: &[Hand]) -> Result<(Vec<Uplink>, Vec<WorkerPort>), XskError> {
    let mode = match common_mode(configs) {
        XdpMode::PreferZeroCopy if !configs.iter().all(fits_zero_copy) => XdpMode::Copy,
        mode => mode,
    };
    match open_in(mode, configs, workers) {
        // One driver has zero-copy, and another, whose socket is to share the memory, has not.
        Err(XskError::Bind { .. }) if mode == XdpMode::PreferZeroCopy && configs.len() > 1 => {
            open_in(XdpMode::Copy, configs, workers)
        }
        result => result,
    }
}

/// How all the sockets are bound: the kernel has a UMEM zero-copy or not, as its first socket is.
fn common_mode(configs: &[XskConfig]) -> XdpMode {
    let is_asked = |mode: XdpMode| configs.iter().any(|config| config.mode == mode);
    if is_asked(XdpMode::RequireZeroCopy) {
        XdpMode::RequireZeroCopy
    } else if is_asked(XdpMode::Copy) || is_asked(XdpMode::Generic) {
        XdpMode::Copy
    } else {
        XdpMode::PreferZeroCopy
    }
}

/// Whether each packet of the interface has room in a chunk with zero-copy. Not every driver and kernel refuses where it has not.
fn fits_zero_copy(config: &XskConfig) -> bool {
    let fits = |found: Interface| found.mtu <= largest_zero_copy_mtu(&found.driver, config.chunk_size);
    // What is wrong with it, opening it says.
    config.multi_buffer || interface(&config.interface).map_or(true, fits)
}

fn open_in(
    mode: XdpMode,
    configs: &[XskConfig],
    workers: &[Hand],
) -> Result<(Vec<Uplink>, Vec<WorkerPort>), XskError> {
    sys::raise_memlock(); // where that is not permitted, the UMEM may not fit the limit: then its own error says so
    // SAFETY: sets a function pointer. The library's remarks would mix with ours on standard error; what matters in
    // them we get as errors.
    unsafe { libxdp_sys::libxdp_set_print(None) };

    let mut opening = Vec::with_capacity(configs.len());
    for (id, config) in UplinkId::all(configs.len()).zip(configs) {
        let queues = workers.iter().filter_map(|hand| hand.get(id.index())).flatten().copied();
        opening.push(Opening::new(id, config, flags(mode, configs), queues)?);
    }
    refuse_differences(configs)?;
    let deadline = Instant::now() + QUEUE_PATIENCE;
    let (mut ports, mut huge_pages) = (Vec::new(), true);
    for hand in workers {
        let (port, huge) = open_port(&mut opening, hand, deadline)?;
        huge_pages &= huge;
        ports.push(port);
    }
    let frames = ports.iter().map(|port| port.pool.capacity()).sum();
    let start = |opening: Opening<'_>| opening.start(huge_pages, frames);
    let uplinks = opening.into_iter().map(start).collect::<Result<_, _>>()?;
    Ok((uplinks, ports))
}

/// Bytes of frames' memory that a worker with these queues gets from [`open_all`]; a worker without a queue gets none.
pub fn frame_memory(configs: &[XskConfig], hand: &Hand) -> usize {
    let sizes =
        |(config, queues): (&XskConfig, &Vec<QueueId>)| std::iter::repeat_n(Sizes::of(config), queues.len());
    let sizes: Vec<Sizes> = configs.iter().zip(hand).flat_map(sizes).collect();
    match configs.first() {
        Some(first) if !sizes.is_empty() => umem::bytes(first.chunk_size, &sizes),
        _ => 0,
    }
}

/// How the first socket of a UMEM is bound; the others take over from it.
///
/// Without XDP_USE_NEED_WAKEUP where urgent frames may come from a zero-copy driver. With it, i40e, ice, ixgbe, igb and others leave
/// a frame for which the rx ring has no room in the NIC's ring until there is room (-ENOBUFS from xdp_do_redirect in *_run_xdp_zc),
/// and with it the urgent ones behind; without it they drop it. It costs a system call for each batch that is sent, and a driver that
/// polls while the fill ring is empty. In the copy modes drivers drop in any case.
fn flags(mode: XdpMode, configs: &[XskConfig]) -> BindFlags {
    let is_early = configs.iter().any(|config| config.early != Early::Off);
    let wakeup = if is_early { BindFlags::empty() } else { BindFlags::XDP_USE_NEED_WAKEUP };
    let is_multi = configs.iter().any(|config| config.multi_buffer);
    let multi = if is_multi { BindFlags::XDP_USE_SG } else { BindFlags::empty() };
    multi
        | match mode {
            XdpMode::RequireZeroCopy => BindFlags::XDP_ZEROCOPY | wakeup,
            XdpMode::PreferZeroCopy => wakeup,
            XdpMode::Copy | XdpMode::Generic => BindFlags::XDP_COPY | BindFlags::XDP_USE_NEED_WAKEUP,
        }
}

/// What lies in a UMEM, or is made with it, is the same for all its sockets.
fn refuse_differences(configs: &[XskConfig]) -> Result<(), XskError> {
    let sizes = |config: &XskConfig| (config.chunk_size, config.ring_size, config.multi_buffer);
    let first = configs.first();
    match configs.iter().find(|config| first.is_some_and(|first| sizes(first) != sizes(config))) {
        None => Ok(()),
        Some(other) => Err(XskError::SizesDiffer { interface: other.interface.clone() }),
    }
}

/// One interface while it is being opened.
struct Opening<'c> {
    id: UplinkId,
    config: &'c XskConfig,
    /// How its sockets are bound: as all are.
    flags: BindFlags,
    interface: Interface,
    program: Option<Program>,
    sockets: Vec<ControlSocket>,
    /// The queue that got no second socket, and why: from then on none does. Only where they are asked for.
    early_refused: Option<String>,
}

impl<'c> Opening<'c> {
    fn new(
        id: UplinkId,
        config: &'c XskConfig,
        flags: BindFlags,
        queues: impl Iterator<Item = QueueId>,
    ) -> Result<Opening<'c>, XskError> {
        let vlan = config.steering.as_ref().and_then(|steering| steering.vlan);
        let interface = interface(&config.interface)?.with_vlan(vlan)?;
        interface.check(config, queues)?;
        let program = if config.steering.is_some() || config.everything {
            wait_for_predecessor(&interface)?;
            refuse_foreign_program(&interface)?;
            let steering = config.steering.as_ref().filter(|_| !config.everything);
            let (early, multi) = (config.early != Early::Off, config.multi_buffer);
            Some(Program::load(steering, interface.queue_count, early, multi)?)
        } else {
            None
        };
        Ok(Opening { id, config, flags, interface, program, sockets: Vec::new(), early_refused: None })
    }

    /// The program attached: from here on frames come.
    fn start(self, huge_pages: bool, frames: usize) -> Result<Uplink, XskError> {
        let Opening { config, interface, program, sockets, early_refused, .. } = self;
        let start = |program| start_program(program, config, &interface, &sockets);
        let program = program.map(start).transpose()?;
        let info = UplinkInfo::new(config, &interface, &sockets, early_refused, huge_pages, frames);
        Ok(Uplink::new(info, program, sockets))
    }
}

/// A program of ours may be that of a process which is about to end: it is given a moment.
fn wait_for_predecessor(interface: &Interface) -> Result<(), XskError> {
    let deadline = Instant::now() + PREDECESSOR_PATIENCE;
    while program::attached(interface.index)?.is_some_and(|(_, name)| name == program::NAME) {
        if Instant::now() >= deadline {
            break; // then it is refused like any other
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

fn refuse_foreign_program(interface: &Interface) -> Result<(), XskError> {
    match program::attached(interface.index)? {
        None => Ok(()),
        Some((id, name)) => Err(XskError::ForeignProgram { interface: interface.name.clone(), name, id }),
    }
}

/// One worker's UMEM and sockets, their fill rings full.
fn open_port(
    opening: &mut [Opening<'_>],
    hand: &[Vec<QueueId>],
    deadline: Instant,
) -> Result<(WorkerPort, bool), XskError> {
    let count = hand.iter().map(Vec::len).sum();
    let Some(first) = opening.first().map(|first| first.config) else {
        return Ok((WorkerPort { sockets: Vec::new(), pool: FramePool::anonymous(2048, 0, HEADROOM) }, true));
    };
    if count == 0 {
        let pool = FramePool::anonymous(first.chunk_size as usize, 0, HEADROOM);
        return Ok((WorkerPort { sockets: Vec::new(), pool }, true));
    }
    let sizes = |(opening, queues): (&Opening<'_>, &Vec<QueueId>)| {
        std::iter::repeat_n(Sizes::of(opening.config), queues.len())
    };
    let sizes: Vec<Sizes> = opening.iter().zip(hand).flat_map(sizes).collect();
    let (area, mut pool, huge_pages) = umem::create(first.chunk_size, &sizes)?;
    let large = (pool.large_to_send(), hand.iter().filter(|queues| !queues.is_empty()).count());
    let mut sockets = Vec::with_capacity(count);
    for (opening, queues) in opening.iter_mut().zip(hand) {
        for queue in queues {
            let parts = bind(opening, &area, large, *queue, deadline)?;
            // No card has so many queues.
            let mut socket = XskSocket::new(parts, sockets.len() as u16);
            socket.refill(&mut pool);
            socket.kick(0); // some drivers want to be told of the first frames
            opening.sockets.push(control_socket(&socket, false, socket.fd())?);
            if let Some(fd) = socket.urgent_fd() {
                opening.sockets.push(control_socket(&socket, true, fd)?);
            }
            sockets.push(socket);
        }
    }
    Ok((WorkerPort { sockets, pool }, huge_pages))
}

fn control_socket(socket: &XskSocket, urgent: bool, fd: BorrowedFd<'_>) -> Result<ControlSocket, XskError> {
    let fd: OwnedFd = fd.try_clone_to_owned().map_err(|source| XskError::System {
        what: format!("keeping the socket of queue {}", socket.queue().0),
        source,
    })?;
    Ok(ControlSocket { queue: socket.queue(), urgent, zero_copy: socket.is_zero_copy(), fd })
}

/// One queue's socket, tried until the deadline while another one has the queue, and its second one. `large`: how many large buffers the
/// worker's sockets may have out, and over how many interfaces it sends.
fn bind(
    opening: &mut Opening<'_>,
    area: &Area,
    large: (usize, usize),
    queue: QueueId,
    deadline: Instant,
) -> Result<Parts, XskError> {
    let mut parts = bind_first(opening, area, large, queue, deadline)?;
    if opening.config.early != Early::Off && opening.early_refused.is_none() {
        match bind_second(opening, &parts) {
            Ok(urgent) => parts.urgent = Some(urgent),
            Err(source) if opening.config.early == Early::IfPossible => {
                opening.early_refused = Some(format!("queue {}: {source}", queue.0));
            }
            Err(source) => {
                return Err(XskError::NoEarly { interface: opening.interface.name.clone(), queue, source });
            }
        }
    }
    Ok(parts)
}

fn bind_second(opening: &Opening<'_>, first: &Parts) -> io::Result<Urgent> {
    Urgent::open(&UrgentParts {
        // SAFETY: `rx` keeps it open while this is used.
        first: unsafe { BorrowedFd::borrow_raw(first.rx.fd().as_raw_fd()) },
        interface_index: opening.interface.index,
        queue: first.queue,
        ring_size: first.sizes.urgent,
        tx_frames: first.sizes.urgent_tx_frames,
        watchdog_ticks: first.watchdog_ticks,
        chunks: first.area.descriptors.len(),
    })
}

fn bind_first(
    opening: &Opening<'_>,
    area: &Area,
    large: (usize, usize),
    queue: QueueId,
    deadline: Instant,
) -> Result<Parts, XskError> {
    let mut pause = Duration::from_millis(5);
    loop {
        let error = match try_bind(opening, area, large, queue) {
            Ok(parts) => return Ok(parts),
            Err(error) => error,
        };
        if error.raw_os_error() != Some(libc::EBUSY) {
            return Err(bind_error(opening, queue, error));
        }
        if Instant::now() >= deadline {
            let interface = opening.interface.name.clone();
            return Err(XskError::QueueTaken { interface, queue, waited: QUEUE_PATIENCE });
        }
        std::thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(200));
    }
}

fn bind_error(opening: &Opening<'_>, queue: QueueId, source: io::Error) -> XskError {
    let Interface { name, driver, .. } = &opening.interface;
    let name = name.clone();
    match source.raw_os_error() {
        Some(libc::EPERM) => XskError::NotPermitted { what: "opening an AF_XDP socket" },
        Some(libc::ENETDOWN) => XskError::InterfaceDown { interface: name },
        // Before Linux 6.6 the flag is unknown (what 6.6.0 to 6.6.9 lack does not show here: `multi`); a driver with one segment a packet says that it has no such operation.
        Some(libc::EINVAL | libc::EOPNOTSUPP) if opening.flags.contains(BindFlags::XDP_USE_SG) => {
            XskError::NoMultiBuffer {
                interface: name,
                driver: driver.clone(),
                mode: opening.config.mode,
                chunk_size: opening.config.chunk_size,
                source,
            }
        }
        _ if opening.flags.contains(BindFlags::XDP_ZEROCOPY) => XskError::NoZeroCopy {
            interface: name,
            is_asked: opening.config.mode == XdpMode::RequireZeroCopy,
            driver: driver.clone(),
            source,
        },
        _ => XskError::Bind { interface: name, queue, source },
    }
}

fn try_bind(
    opening: &Opening<'_>,
    area: &Area,
    (large, uplinks): (usize, usize),
    queue: QueueId,
) -> io::Result<Parts> {
    let Opening { config, interface, .. } = opening;
    let ring_size = QueueSize::new(config.ring_size).map_err(io::Error::other)?;
    let socket_config = SocketConfig::builder()
        .rx_queue_size(ring_size)
        .tx_queue_size(ring_size)
        .libxdp_flags(LibxdpFlags::XSK_LIBXDP_FLAGS_INHIBIT_PROG_LOAD)
        .bind_flags(opening.flags)
        .build();
    let name = interface.name.parse().map_err(io::Error::other)?;
    // SAFETY: the library loads no program (the flag above), and no queue is bound twice (`Interface::check`).
    let opened = unsafe { xsk_rs::Socket::new(socket_config, &area.umem, &name, queue.0) };
    let (tx, rx, rings) = opened.map_err(|error: SocketCreateError| kernel_error(&error))?;
    let (fill, completion) = rings.ok_or_else(|| io::Error::other("the library gave no fill ring"))?;
    // SAFETY: `rx` keeps it open while this is used.
    let fd = unsafe { BorrowedFd::borrow_raw(rx.fd().as_raw_fd()) };
    sys::close_on_exec(fd)?; // the library does not: a child process would hold the queue after our end
    let zero_copy = sys::xdp_is_zero_copy(fd)?;
    let shares = Share::of(large, uplinks, config.early != Early::Off);
    let multi = config.multi_buffer.then(|| Multi::open(fd, config.ring_size, shares)).transpose()?;
    Ok(Parts {
        uplink: opening.id,
        queue,
        area: area.clone(),
        rx,
        tx,
        fill,
        completion,
        zero_copy,
        urgent: None,
        multi: multi.map(Box::new),
        sizes: Sizes::of(config),
        watchdog_ticks: config.watchdog_ticks,
    })
}

/// The kernel's reason inside one of the library's errors.
fn kernel_error(error: &(dyn std::error::Error + 'static)) -> io::Error {
    let inner = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    match inner.and_then(io::Error::raw_os_error) {
        Some(errno) => io::Error::from_raw_os_error(errno),
        None => io::Error::other(error.to_string()),
    }
}

/// Enters the sockets and attaches the program.
fn start_program(
    mut program: Program,
    config: &XskConfig,
    interface: &Interface,
    sockets: &[ControlSocket],
) -> Result<Program, XskError> {
    for socket in sockets {
        program.set_socket(socket.queue, socket.urgent, socket.fd.as_fd())?;
    }
    match program.attach(interface.index, config.mode == XdpMode::Generic) {
        Ok(()) => Ok(program),
        Err(AttachError::Other(error)) => Err(error),
        Err(AttachError::Refused(source)) => {
            refuse_foreign_program(interface)?; // if one came in just now, that is the reason
            Err(XskError::ProgramRefused {
                interface: interface.name.clone(),
                driver: interface.driver.clone(),
                mode: config.mode,
                mtu: interface.mtu,
                multi_buffer: config.multi_buffer.then_some(config.chunk_size),
                source,
            })
        }
    }
}
