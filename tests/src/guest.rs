//! The test itself as a tenant, and frames for it.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use etherparse::PacketBuilder;
use peregrine_memif::{Handshake, HandshakeError, Interface, Listener, Progress, ServerConfig};

use crate::{Net, PATIENCE, Tenant, until};

/// A connected memif client that sends and receives when it is told to.
#[derive(Debug)]
pub struct Guest {
    /// The connection.
    pub interface: Interface,
}

impl Guest {
    /// Connects at a tenant's endpoint.
    ///
    /// # Panics
    /// If it cannot.
    pub fn new(net: &Net, tenant: Tenant) -> Guest {
        Guest { interface: tenant.connect(net) }
    }

    /// Sends a frame.
    ///
    /// # Panics
    /// If the ring does not take it.
    #[track_caller]
    pub fn send(&mut self, frame: &[u8]) {
        let ring = self.interface.tx.first_mut().expect("a ring");
        ring.push(frame).expect("room in the ring");
        ring.flush().expect("flushed");
    }

    /// Everything up to the frame that equals `last`, in order, without it.
    ///
    /// # Panics
    /// If that does not come within [`PATIENCE`].
    #[track_caller]
    pub fn receive_until(&mut self, last: &[u8]) -> Vec<Vec<u8>> {
        let mut received = self.receive(|frame| frame == last);
        received.pop();
        received
    }

    /// Everything up to the frame that `is_last` picks, in order; what comes with it is passed over.
    ///
    /// # Panics
    /// If that does not come within [`PATIENCE`].
    #[track_caller]
    pub fn receive(&mut self, is_last: impl Fn(&[u8]) -> bool) -> Vec<Vec<u8>> {
        let deadline = Instant::now() + PATIENCE;
        let ring = self.interface.rx.first_mut().expect("a ring");
        let mut received = Vec::new();
        while Instant::now() < deadline {
            ring.wait(Duration::from_millis(5)).expect("the ring");
            ring.pending().expect("an honest peer");
            while let Some(packet) = ring.next_packet() {
                let packet = packet.expect("an honest peer");
                let mut bytes = vec![0; packet.len()];
                packet.copy_to(&mut bytes).expect("it fits");
                received.push(bytes);
            }
            ring.release();
            if let Some(at) = received.iter().position(|frame| is_last(frame)) {
                received.truncate(at + 1);
                return received;
            }
        }
        panic!("the frame did not come; what came: {received:?}");
    }
}

/// A guest's memory, written behind its back, as a tenant does that keeps no rule. There is one guest at a time when it is found.
#[derive(Debug)]
pub struct Memory {
    /// All of this process's: the memory's own file takes no writes once the daemon has sealed it.
    process: File,
    begin: u64,
}

impl Memory {
    /// The memory of the guest that there is.
    ///
    /// # Panics
    /// If there is none.
    pub fn of_the_guest() -> Memory {
        let maps = std::fs::read_to_string("/proc/self/maps").expect("our own maps");
        let range = maps.lines().find(|line| line.contains("/memfd:")).expect("a guest's memory");
        let begin = range.split('-').next().expect("where it begins");
        let begin = u64::from_str_radix(begin, 16).expect("an address");
        let process =
            OpenOptions::new().read(true).write(true).open("/proc/self/mem").expect("our own memory");
        Memory { process, begin }
    }

    /// Writes there.
    ///
    /// # Panics
    /// If nothing can be written there.
    pub fn write(&self, bytes: &[u8], offset: u64) {
        self.process.write_all_at(bytes, self.begin + offset).expect("memory");
    }

    /// The head of the ring that begins there.
    ///
    /// # Panics
    /// If there is none.
    pub fn head(&self, ring: u64) -> u16 {
        let mut head = [0; 2];
        self.process.read_exact_at(&mut head, self.begin + ring + 6).expect("memory");
        u16::from_ne_bytes(head)
    }

    /// Says in the daemon's name that it need not be called for the first ring.
    ///
    /// # Panics
    /// If there is none.
    pub fn mask(&self) {
        self.write(&1u16.to_ne_bytes(), 4);
    }
}

/// A datagram with this text between two stations; addresses as `02:00:00:00:42:01`.
///
/// # Panics
/// If that is no address.
pub fn frame(from: &str, to: &str, text: &str) -> Vec<u8> {
    let mac = |text: &str| text.parse::<peregrine_dataplane::types::MacAddr>().expect("an address").0;
    let builder = PacketBuilder::ethernet2(mac(from), mac(to)).ipv4([10, 42, 0, 99], [10, 42, 0, 98], 64);
    let mut frame = Vec::new();
    builder.udp(20000, 9000).write(&mut frame, text.as_bytes()).expect("a frame");
    frame
}

/// The test as a server: takes the next client of a listener in.
///
/// # Errors
/// Those of the handshake.
///
/// # Panics
/// If nobody comes.
pub fn serve(listener: &Listener, config: &ServerConfig) -> Result<Interface, HandshakeError> {
    let mut handshake: Option<Handshake> = None;
    let mut result = None;
    until("a client to connect", || {
        let Some(handshake) = &mut handshake else {
            handshake = listener.accept().expect("a client");
            return false;
        };
        match handshake.step(&mut |_| Ok(config.clone())) {
            Ok(Progress::Pending) => false,
            Ok(Progress::Connected(interface)) => result.insert(Ok(*interface)).is_ok(),
            Err(why) => result.insert(Err(why)).is_err(),
        }
    });
    result.expect("a result")
}
