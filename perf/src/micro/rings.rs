//! Micro-benches of memif rings, one half at a time, in both roles: the other half works between the rounds. Used by `micro`.

use peregrine_memif::{ClientConfig, Interface, ServerConfig};

use super::{Case, Maker, PACKETS, case, maker};
use crate::rig::pair;

/// Longer than one buffer: a chain of three.
const CHAINED: usize = 5000;

pub fn cases() -> Vec<Maker> {
    let mut cases = Vec::new();
    for bytes in [64, 1500, CHAINED] {
        for (role, server) in [("client", false), ("server", true)] {
            let kind = if bytes == CHAINED { "chain-" } else { "" };
            cases.push(maker(format!("memif/send/{role}/{kind}{bytes}"), move |name| {
                Ok(send(name, Halves::new(bytes, server)?))
            }));
            cases.push(maker(format!("memif/receive/{role}/{kind}{bytes}"), move |name| {
                Ok(receive(name, Halves::new(bytes, !server)?))
            }));
        }
    }
    cases
}

/// Two connected ends and something to send.
struct Halves {
    sender: Interface,
    receiver: Interface,
    packet: Vec<u8>,
    read: Vec<u8>,
}

impl Halves {
    fn new(bytes: usize, server_sends: bool) -> Result<Halves, String> {
        let chains = bytes > 2048;
        let client = ClientConfig { chains, ..ClientConfig::default() };
        let server =
            ServerConfig { chains, packet_bytes_max: bytes.max(2048) as u32, ..ServerConfig::default() };
        let (client, server) = pair(client, server)?;
        let (sender, receiver) = if server_sends { (server, client) } else { (client, server) };
        Ok(Halves { sender, receiver, packet: vec![0xa5; bytes], read: vec![0; bytes] })
    }

    /// A burst into the ring; how many packets it took.
    #[inline]
    fn send(&mut self) -> usize {
        let Some(tx) = self.sender.tx.first_mut() else { return 0 };
        let sent = (0..PACKETS).filter(|_| tx.push(&self.packet).is_ok()).count();
        if tx.flush().is_ok() { sent } else { 0 }
    }

    /// All that waits, copied out; how many packets.
    #[inline]
    fn receive(&mut self) -> usize {
        let Some(rx) = self.receiver.rx.first_mut() else { return 0 };
        if rx.pending().is_err() {
            return 0;
        }
        let mut received = 0;
        while let Some(packet) = rx.next_packet() {
            received += usize::from(packet.is_ok_and(|packet| packet.copy_to(&mut self.read).is_some()));
        }
        rx.release();
        received
    }
}

fn send(name: &str, halves: Halves) -> Case {
    case(name, halves, |halves| _ = halves.receive(), Halves::send)
}

fn receive(name: &str, halves: Halves) -> Case {
    case(name, halves, |halves| _ = halves.send(), Halves::receive)
}
