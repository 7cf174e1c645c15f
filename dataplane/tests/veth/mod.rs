//! Two network namespaces with a wire (veth) between them, frames to send over it, and an end of it in AF_XDP.
//!
//! The namespaces have no name: they belong to this thread and a descriptor, and the kernel removes them and what is
//! in them when the test ends, in whatever way. Addresses: `a0` 10.9.0.1 in ours, `b0` 10.9.0.2 in theirs.

#![allow(dead_code, reason = "each test program uses a part of it")]

use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::process::Command;
use std::time::{Duration, Instant};

use etherparse::{Ethernet2Header, IpNumber, Ipv4Header, UdpHeader};
use peregrine_dataplane::frame::{Burst, FramePool};
use peregrine_dataplane::plan::XdpMode;
use peregrine_dataplane::types::{QueueId, Vni};
use peregrine_dataplane::xsk::{Kicks, Steering, Uplink, WorkerPort, XskConfig, XskError, open};

pub const OUR_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
pub const THEIR_ADDRESS: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 2);
const OUR_MAC: [u8; 6] = [2, 0, 0, 0, 9, 1];
const THEIR_MAC: [u8; 6] = [2, 0, 0, 0, 9, 2];

/// Long enough for a busy machine; no test waits that long when all is well.
pub const PATIENCE: Duration = Duration::from_secs(20);

/// The wire. Made in a test's own thread, which is in `ours` from then on.
pub struct Wire {
    ours: File,
    theirs: File,
}

impl Wire {
    pub fn new(queues: u32) -> Wire {
        let theirs = new_namespace();
        let ours = new_namespace();
        let peer = namespace_path(&theirs);
        let count = format!("numrxqueues {queues} numtxqueues {queues}");
        run(&format!("ip link add a0 {count} type veth peer name b0 {count} netns {peer}"));
        run("ip link set a0 address 02:00:00:00:09:01 up");
        run("ip address add 10.9.0.1/24 dev a0");
        let wire = Wire { ours, theirs };
        wire.in_theirs(|| {
            run("ip link set b0 address 02:00:00:00:09:02 up");
            run("ip address add 10.9.0.2/24 dev b0");
        });
        until("the carrier is up", || run("ip -br link show a0").contains("LOWER_UP"));
        wire
    }

    /// A second wire beside the first: `c0`, 10.8.0.1, in ours, `d0` in theirs.
    pub fn add_second(&self) {
        run(&format!("ip link add c0 type veth peer name d0 netns {}", namespace_path(&self.theirs)));
        run("ip link set c0 up");
        run("ip address add 10.8.0.1/24 dev c0");
        self.in_theirs(|| run("ip link set d0 up"));
        until("the carrier is up", || run("ip -br link show c0").contains("LOWER_UP"));
    }

    /// The namespace at the other end.
    pub fn theirs(&self) -> File {
        self.theirs.try_clone().unwrap()
    }

    /// Runs `work` in the namespace at the other end.
    pub fn in_theirs<T>(&self, work: impl FnOnce() -> T) -> T {
        enter(&self.theirs);
        let result = work();
        enter(&self.ours);
        result
    }
}

pub fn namespace_path(namespace: &File) -> String {
    format!("/proc/{}/fd/{}", std::process::id(), namespace.as_raw_fd())
}

/// A new namespace; this thread is in it from then on.
pub fn new_namespace() -> File {
    // SAFETY: moves this thread to a namespace of its own.
    assert_eq!(unsafe { libc::unshare(libc::CLONE_NEWNET) }, 0, "{}", std::io::Error::last_os_error());
    // No neighbour or router discovery: tests count frames to the last one.
    std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1").unwrap();
    File::open("/proc/thread-self/ns/net").unwrap()
}

pub fn enter(namespace: &File) {
    // SAFETY: moves this thread to the namespace behind the descriptor.
    let result = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
    assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
}

/// Runs a command in this thread's namespace.
pub fn run(command: &str) -> String {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `done`.
pub fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

pub fn vni(raw: u32) -> Vni {
    Vni::new(raw).unwrap()
}

/// A config for one end: what is for `local` in network 7 is steered.
pub fn config(interface: &str, local: Ipv4Addr) -> XskConfig {
    let steering = Steering::new(IpAddr::V4(local), 4789, &[vni(7)]);
    XskConfig { steering: Some(steering), ..XskConfig::new(interface, XdpMode::Copy) }
}

/// One end of the wire in AF_XDP, with one worker, driven by the test.
pub struct End {
    pub uplinks: Vec<Uplink>,
    pub port: WorkerPort,
    pub kicks: Kicks,
    /// What has arrived on second sockets, until somebody takes it.
    pub urgent: Vec<Vec<u8>>,
    begin: Instant,
}

impl End {
    pub fn open(config: &XskConfig, queues: &[u32]) -> Result<End, XskError> {
        let queues = queues.iter().copied().map(QueueId).collect();
        let (uplink, mut ports) = open(config, &[queues])?;
        Ok(End::of(vec![uplink], ports.pop().unwrap()))
    }

    pub fn of(uplinks: Vec<Uplink>, port: WorkerPort) -> End {
        End { uplinks, port, kicks: Kicks::default(), urgent: Vec::new(), begin: Instant::now() }
    }

    /// One turn of a worker's loop: what arrived on any socket. Urgent frames are put aside.
    pub fn turn(&mut self) -> Vec<Vec<u8>> {
        let mut burst = Burst::new();
        let mut arrived = Vec::new();
        let now = u64::try_from(self.begin.elapsed().as_nanos()).unwrap();
        for socket in &mut self.port.sockets {
            socket.complete(&mut self.port.pool);
            socket.receive_urgent(&mut self.port.pool, &mut burst);
            for frame in burst.drain() {
                self.urgent.push(frame.bytes().to_vec());
                self.port.pool.put(frame);
            }
            socket.receive(&mut self.port.pool, &mut burst);
            for frame in burst.drain() {
                arrived.push(frame.bytes().to_vec());
                self.port.pool.put(frame);
            }
            socket.refill(&mut self.port.pool);
            self.kicks += socket.kick(now);
        }
        arrived
    }

    /// Turns until so many frames have arrived.
    pub fn receive(&mut self, count: usize) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let mut arrived = Vec::new();
        while arrived.len() < count {
            arrived.extend(self.turn());
            assert!(Instant::now() < deadline, "{} of {count} frames arrived: {self:?}", arrived.len());
        }
        arrived
    }

    /// Hands a frame to a socket; the kernel is told in the next turn.
    pub fn transmit(&mut self, socket: usize, bytes: &[u8], headroom: usize) -> usize {
        let mut burst = Burst::new();
        burst.push(filled(&mut self.port.pool, bytes, headroom)).unwrap();
        let count = self.port.sockets[socket].transmit(&mut self.port.pool, &mut burst);
        burst.drain().for_each(|frame| self.port.pool.put(frame));
        count
    }

    /// Every chunk is free, lent for receiving, or lent for transmission.
    pub fn assert_frames_are_home(&self) {
        let lent: usize = self.port.sockets.iter().map(|s| s.rx_outstanding() + s.tx_outstanding()).sum();
        let pool = &self.port.pool;
        assert_eq!(pool.large_available() + pool.large_lent(), pool.large_capacity(), "{self:?}");
        assert_eq!(pool.available() + lent, pool.capacity(), "{self:?}");
        assert!(self.port.sockets.iter().all(|socket| socket.faults() == 0), "{self:?}");
    }
}

impl std::fmt::Debug for End {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        writeln!(f, "{:?} {:?}", self.port.pool, self.kicks)?;
        for uplink in &self.uplinks {
            writeln!(f, "{:?} {:?}", uplink.steering(), uplink.sockets())?;
        }
        Ok(())
    }
}

/// A frame of the pool with these bytes.
pub fn filled(pool: &mut FramePool, bytes: &[u8], headroom: usize) -> peregrine_dataplane::frame::Frame {
    let mut frame = pool.take_for(headroom + bytes.len()).expect("a free frame");
    frame.reset(headroom, bytes.len()).expect("room for it").copy_from_slice(bytes);
    frame
}

/// A packet socket on an interface: sends whole frames as an ordinary host would.
pub struct RawSocket(OwnedFd);

impl RawSocket {
    pub fn new(interface: &str) -> RawSocket {
        let name = std::ffi::CString::new(interface).unwrap();
        // SAFETY: a terminated string; a socket just made and owned by nobody else; an address that is all zero but
        // for what is set.
        unsafe {
            let fd = libc::socket(libc::AF_PACKET, libc::SOCK_RAW, 0);
            assert!(fd >= 0, "{}", std::io::Error::last_os_error());
            let socket = OwnedFd::from_raw_fd(fd);
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET as u16;
            address.sll_ifindex = libc::if_nametoindex(name.as_ptr()) as i32;
            let result = libc::bind(fd, (&raw const address).cast(), size_of_val(&address) as u32);
            assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
            RawSocket(socket)
        }
    }

    pub fn send(&self, frame: &[u8]) {
        // SAFETY: a buffer of that length.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, frame.len() as isize, "{}", std::io::Error::last_os_error());
    }
}

/// A VXLAN frame from their end to ours, to be spoilt before it is built.
#[derive(Clone)]
pub struct Vxlan {
    pub to: [u8; 4],
    pub port: u16,
    pub source_port: u16,
    pub flags: u8,
    pub vni: u32,
    pub options: bool,
    pub fragment: bool,
    pub payload: Vec<u8>,
}

impl Default for Vxlan {
    fn default() -> Vxlan {
        let (to, port, source_port) = (OUR_ADDRESS.octets(), 4789, 50_000);
        Vxlan {
            to,
            port,
            source_port,
            flags: 8,
            vni: 7,
            options: false,
            fragment: false,
            payload: vec![0x5a; 64],
        }
    }
}

impl Vxlan {
    /// The whole frame, from their host to ours or, if it is addressed there, from ours to theirs.
    pub fn build(&self) -> Vec<u8> {
        let mut data = vec![self.flags, 0, 0, 0];
        data.extend(&(self.vni << 8).to_be_bytes());
        data.extend(&self.payload);
        let mut udp = UdpHeader::without_ipv4_checksum(self.source_port, self.port, data.len()).unwrap();
        udp.checksum = 0;
        let from = if self.to == THEIR_ADDRESS.octets() { OUR_ADDRESS } else { THEIR_ADDRESS };
        let length = u16::try_from(udp.header_len() + data.len()).unwrap();
        let mut ip = Ipv4Header::new(length, 64, IpNumber::UDP, from.octets(), self.to).unwrap();
        ip.more_fragments = self.fragment;
        if self.options {
            ip.options = (&[1u8; 8][..]).try_into().unwrap(); // eight times "no operation"
        }
        ip.header_checksum = ip.calc_header_checksum();
        let (source, destination) =
            if from == OUR_ADDRESS { (OUR_MAC, THEIR_MAC) } else { (THEIR_MAC, OUR_MAC) };
        let mut frame = Vec::new();
        let eth = Ethernet2Header { source, destination, ether_type: etherparse::EtherType::IPV4 };
        eth.write(&mut frame).unwrap();
        ip.write(&mut frame).unwrap();
        udp.write(&mut frame).unwrap();
        frame.extend(data);
        frame
    }
}

/// What a filter for system calls does at one place: it reads a word, goes on or passes so many over, or answers.
pub mod filter {
    pub const fn load(offset: u32) -> libc::sock_filter {
        libc::sock_filter { code: 0x20, jt: 0, jf: 0, k: offset }
    }

    pub const fn if_not_skip(value: u32, skip: u8) -> libc::sock_filter {
        libc::sock_filter { code: 0x15, jt: 0, jf: skip, k: value }
    }

    pub const fn if_less_skip(value: u32, skip: u8) -> libc::sock_filter {
        libc::sock_filter { code: 0x35, jt: 0, jf: skip, k: value }
    }

    pub const fn answer(value: u32) -> libc::sock_filter {
        libc::sock_filter { code: 0x06, jt: 0, jf: 0, k: value }
    }

    /// From here on it judges the system calls of this thread and its children. Seccomp.
    pub fn install(program: &mut [libc::sock_filter]) {
        let filter = libc::sock_fprog { len: program.len() as u16, filter: program.as_mut_ptr() };
        // SAFETY: a program of that length, for this thread and its children.
        let result = unsafe {
            libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
            libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const filter)
        };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
}
