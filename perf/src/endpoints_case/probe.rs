//! The first packet through a container: an ARP request from the bridge's side, which the container's kernel answers.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
use std::num::NonZeroU32;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use nix::ifaddrs::getifaddrs;
use nix::sys::socket::bind;
use rustix::net::{AddressFamily, Protocol, SocketFlags, SocketType, socket_with};

use super::bursts::us;

/// ETH_P_ARP, as the system call wants it.
const ARP: u32 = (0x0806_u16).to_be() as u32;
/// An answer that takes longer is asked for again.
const AGAIN: Duration = Duration::from_millis(2);
/// What on a quiet machine takes much less.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who asks.
#[derive(Clone, Copy, Debug)]
pub struct Asker {
    pub device: &'static str,
    pub mac: [u8; 6],
    pub ip: Ipv4Addr,
}

/// A socket on the bridge.
pub struct Probe {
    file: File,
    asker: Asker,
}

impl Probe {
    pub fn open(asker: Asker) -> Result<Probe, String> {
        let failed = |error: &dyn std::fmt::Display| format!("{}: no packet socket: {error}", asker.device);
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let protocol = NonZeroU32::new(ARP).map(Protocol::from_raw);
        let fd = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, protocol)
            .map_err(|error| failed(&error))?;
        let mut all = getifaddrs().map_err(|error| failed(&error))?;
        let link = all.find_map(|interface| {
            let its = interface.address.filter(|_| interface.interface_name == asker.device)?;
            its.as_link_addr().copied()
        });
        let link = link.ok_or_else(|| failed(&"there is no such device"))?;
        bind(fd.as_raw_fd(), &link).map_err(|error| failed(&error))?;
        Ok(Probe { file: File::from(fd), asker })
    }

    /// Asks each until it answers: when that was, in microseconds from `begun`, in rising order.
    pub fn reach(&mut self, all: &[(Ipv4Addr, [u8; 6])], begun: Instant) -> Result<Vec<f64>, String> {
        let mut waiting: BTreeMap<Ipv4Addr, [u8; 6]> = all.iter().copied().collect();
        let mut times = Vec::with_capacity(all.len());
        while !waiting.is_empty() {
            for (ip, mac) in waiting.clone() {
                self.ask(ip, mac)?;
                self.take(&mut waiting, &mut times, begun)?;
            }
            let asked = Instant::now();
            while asked.elapsed() < AGAIN && !waiting.is_empty() {
                self.take(&mut waiting, &mut times, begun)?;
            }
            if begun.elapsed() > PATIENCE {
                return Err(format!("{} of {} containers do not answer", waiting.len(), all.len()));
            }
        }
        Ok(times)
    }

    fn ask(&mut self, ip: Ipv4Addr, mac: [u8; 6]) -> Result<(), String> {
        let Asker { device, mac: asker, ip: asker_ip } = self.asker;
        // Ethernet, then ARP: Ethernet and IPv4, request, who asks, whom.
        let head = [&mac[..], &asker, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
        let whom = [&asker[..], &asker_ip.octets(), &[0; 6], &ip.octets()].concat();
        match self.file.write(&[head, whom].concat()) {
            Ok(_) => Ok(()),
            // No room just now: it is asked again.
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock) => Ok(()),
            Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => Ok(()),
            Err(error) => Err(format!("{device} takes no packet: {error}")),
        }
    }

    /// The answers that are there.
    fn take(
        &mut self,
        waiting: &mut BTreeMap<Ipv4Addr, [u8; 6]>,
        times: &mut Vec<f64>,
        begun: Instant,
    ) -> Result<(), String> {
        let mut packet = [0; 64];
        loop {
            match self.file.read(&mut packet) {
                Ok(_) => {
                    let sender: Option<[u8; 4]> = packet.get(28..32).and_then(|ip| ip.try_into().ok());
                    let is_answer = packet.get(20..22) == Some(&[0, 2]);
                    let sender = sender.filter(|_| is_answer).map(Ipv4Addr::from);
                    if sender.is_some_and(|ip| waiting.remove(&ip).is_some()) {
                        times.push(us(begun));
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) => return Err(format!("{}: {error}", self.asker.device)),
            }
        }
    }
}
