//! The XDP program in the kernel: loading it, attaching it, its maps and its counters.
//!
//! Called by [`open`](super::open) and [`Uplink`](super::Uplink). What must hold:
//! - A program that is not ours is never replaced. [`attached`] looks first; and the kernel itself refuses a link
//!   where there is a program already, so nothing can slip in between.
//! - It is attached by a bpf_link and in no other way: the kernel detaches it when the link's descriptor is closed,
//!   also after SIGKILL.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya::maps::{HashMap, MapData, MapError, PerCpuArray, XskMap};
use aya::programs::Xdp;
use aya::programs::loaded_programs;
use aya::{Ebpf, EbpfLoader};
use serde::Serialize;

use crate::types::{QueueId, Vni};

use super::early::{EARLY_NETWORKS_MAX, EARLY_PORTS_MAX, EarlyMaps, EarlyRules};
use super::{Steering, XskError};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.o"));

/// The function in bpf/steer.c, and the program's name in the kernel, which keeps 15 letters of it.
pub(super) const NAME: &str = "peregrine_steer";

/// `enum verdict` of bpf/steer.c has this many values.
const VERDICTS: u32 = 11;

/// What the XDP program did with the frames of one receive queue. Frames of queues that the interface got after
/// start are counted under the last.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct SteeringCounters {
    /// Redirected to our sockets.
    pub steered: u64,
    /// Of these, to the second one, for urgent frames.
    pub urgent: u64,
    /// For us, but the queue has no socket: passed to the kernel.
    pub no_socket: u64,
    /// Passed to the kernel because they are not for us.
    pub passed: PassedCounters,
}

/// Frames passed to the kernel, by the first reason that applied.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct PassedCounters {
    /// Neither IPv4 nor IPv6 directly behind the Ethernet header (ARP, VLAN-tagged, ...).
    pub not_ip: u64,
    /// An IP, UDP or VXLAN header that is cut off or impossible.
    pub malformed: u64,
    /// Not UDP (or UDP behind IPv6 extension headers).
    pub not_udp: u64,
    /// Not to our VTEP address.
    pub other_address: u64,
    /// A fragment.
    pub fragment: u64,
    /// Not to our VXLAN port.
    pub other_port: u64,
    /// VXLAN without the I flag.
    pub no_vni_flag: u64,
    /// A VNI that we do not serve.
    pub other_vni: u64,
}

impl PassedCounters {
    /// All of them together.
    pub fn total(&self) -> u64 {
        let PassedCounters { not_ip, malformed, not_udp, other_address, .. } = self;
        let PassedCounters { fragment, other_port, no_vni_flag, other_vni, .. } = self;
        not_ip + malformed + not_udp + other_address + fragment + other_port + no_vni_flag + other_vni
    }
}

/// The loaded program. Dropping it detaches and unloads it.
#[derive(Debug)]
pub(super) struct Program {
    ebpf: Ebpf,
    queue_count: u32,
    early: EarlyMaps,
    link: Option<OwnedFd>,
}

impl Program {
    /// Loads the program for an interface with so many queues; it is not attached yet. Without `steering` it takes everything. With
    /// `early` it knows urgent frames, which are none at first.
    pub(super) fn load(
        steering: Option<&Steering>,
        queue_count: u32,
        early: bool,
    ) -> Result<Program, XskError> {
        let take_everything = u8::from(steering.is_none());
        let (local, port) = steering
            .map_or((IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0), |steering| (steering.local, steering.port));
        let local_is_ipv6 = u8::from(local.is_ipv6());
        let local = address_words(local);
        // Both generations.
        let room = |most: usize| if early { 2 * most as u32 } else { 1 };
        let mut ebpf = EbpfLoader::new()
            .override_global("local_address", &local, true)
            .override_global("local_is_ipv6", &local_is_ipv6, true)
            .override_global("vxlan_port", &port, true)
            .override_global("take_everything", &take_everything, true)
            .override_global("queue_count", &queue_count, true)
            .override_global("has_early", &u8::from(early), true)
            .map_max_entries("sockets", queue_count.saturating_mul(2))
            .map_max_entries("early_networks", room(EARLY_NETWORKS_MAX))
            .map_max_entries("early_ports", room(EARLY_PORTS_MAX))
            .map_max_entries("counters", queue_count.saturating_mul(VERDICTS))
            .load(OBJECT)
            .map_err(failed("loading the XDP program's maps"))?;
        let program: &mut Xdp = ebpf
            .program_mut(NAME)
            .ok_or_else(|| missing("its function"))?
            .try_into()
            .map_err(failed("loading the XDP program"))?;
        program.load().map_err(failed("loading the XDP program"))?;
        let mut program = Program { ebpf, queue_count, early: EarlyMaps::default(), link: None };
        for vni in steering.map_or(&[][..], |steering| &steering.vnis) {
            program.serve(*vni)?;
        }
        Ok(program)
    }

    /// Steers the frames of `queue`, or its urgent ones, to this socket. The kernel forgets it when the socket is closed.
    pub(super) fn set_socket(
        &mut self,
        queue: QueueId,
        urgent: bool,
        socket: BorrowedFd<'_>,
    ) -> Result<(), XskError> {
        let map = self.ebpf.map_mut("sockets").ok_or_else(|| missing("the map of sockets"))?;
        let mut sockets = XskMap::try_from(map).map_err(failed("opening the map of sockets"))?;
        let place = queue.0.saturating_mul(2) + u32::from(urgent);
        sockets.set(place, socket, 0).map_err(failed("entering a socket into the XDP program's map"))
    }

    /// From now on these frames are urgent.
    pub(super) fn set_early(&mut self, rules: &EarlyRules) -> Result<(), XskError> {
        self.early.set(&mut self.ebpf, rules)
    }

    /// From now on frames of this network are steered.
    pub(super) fn serve(&mut self, vni: Vni) -> Result<(), XskError> {
        self.served()?.insert(vni.get(), 1, 0).map_err(failed("entering a VNI into the XDP program's map"))
    }

    /// From now on frames of this network pass to the kernel. No error if they did already.
    pub(super) fn release(&mut self, vni: Vni) -> Result<(), XskError> {
        or_absent(self.served()?.remove(&vni.get()))
            .map_err(failed("removing a VNI from the XDP program's map"))
    }

    fn served(&mut self) -> Result<HashMap<&mut MapData, u32, u8>, XskError> {
        let map = self.ebpf.map_mut("served_vnis").ok_or_else(|| missing("the map of VNIs"))?;
        HashMap::try_from(map).map_err(failed("opening the map of VNIs"))
    }

    /// Attaches the program: from here on frames are steered.
    pub(super) fn attach(&mut self, interface_index: u32, generic: bool) -> Result<(), AttachError> {
        let program = self.ebpf.program(NAME).ok_or_else(|| missing("its function"))?;
        let program: &Xdp = program.try_into().map_err(failed("attaching the XDP program"))?;
        let fd = program.fd().map_err(failed("attaching the XDP program"))?;
        self.link = Some(link(fd.as_fd(), interface_index, generic).map_err(AttachError::Refused)?);
        Ok(())
    }

    /// What happened so far, by receive queue from 0 on.
    pub(super) fn counters(&self) -> Result<Vec<SteeringCounters>, XskError> {
        const WHAT: &str = "reading the XDP program's counters";
        let map = self.ebpf.map("counters").ok_or_else(|| missing("the map of counters"))?;
        let counters = PerCpuArray::<_, u64>::try_from(map).map_err(failed(WHAT))?;
        let read = |place| counters.get(&place, 0).map(|cpus| cpus.iter().sum::<u64>()).map_err(failed(WHAT));
        (0..self.queue_count).map(|queue| queue_counters(queue, &read)).collect()
    }
}

/// Why a program was not attached.
pub(super) enum AttachError {
    /// The driver or the kernel did not want it.
    Refused(io::Error),
    /// Something of ours.
    Other(XskError),
}

impl From<XskError> for AttachError {
    fn from(error: XskError) -> AttachError {
        AttachError::Other(error)
    }
}

/// In the order of `enum verdict` in bpf/steer.c.
fn queue_counters(
    queue: u32,
    read: &impl Fn(u32) -> Result<u64, XskError>,
) -> Result<SteeringCounters, XskError> {
    let at = |verdict: u32| read(queue * VERDICTS + verdict);
    let urgent = at(10)?;
    Ok(SteeringCounters {
        steered: at(0)? + urgent,
        urgent,
        no_socket: at(1)?,
        passed: PassedCounters {
            not_ip: at(2)?,
            malformed: at(3)?,
            not_udp: at(4)?,
            other_address: at(5)?,
            fragment: at(6)?,
            other_port: at(7)?,
            no_vni_flag: at(8)?,
            other_vni: at(9)?,
        },
    })
}

/// The number and name of the program that is attached to an interface, in whatever mode.
pub(super) fn attached(interface_index: u32) -> Result<Option<(u32, String)>, XskError> {
    let id = program_id(interface_index)
        .map_err(|source| XskError::System { what: "asking which XDP program is attached".into(), source })?;
    Ok(id.map(|id| (id, program_name(id).unwrap_or_else(|| "unnamed".into()))))
}

/// `None` as well when we may not look or it has no name.
fn program_name(id: u32) -> Option<String> {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)?;
    info.name_as_str().filter(|name| !name.is_empty()).map(str::to_string)
}

fn program_id(interface_index: u32) -> io::Result<Option<u32>> {
    // SAFETY: all zero is a valid value: numbers only.
    let mut answer: libxdp_sys::bpf_xdp_query_opts = unsafe { std::mem::zeroed() };
    answer.sz = size_of::<libxdp_sys::bpf_xdp_query_opts>();
    // SAFETY: the call fills in a structure of the size that its first member says.
    let result = unsafe { libxdp_sys::bpf_xdp_query(interface_index.cast_signed(), 0, &mut answer) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    let ids = [answer.prog_id, answer.drv_prog_id, answer.skb_prog_id, answer.hw_prog_id];
    Ok(ids.into_iter().find(|id| *id != 0))
}

/// aya's own attach turns to netlink when the kernel answers EINVAL, which is neither a link nor safe for a foreign
/// program; so the call is made here.
fn link(program: BorrowedFd<'_>, interface_index: u32, generic: bool) -> io::Result<OwnedFd> {
    // SAFETY: all zero is a valid value: numbers and null pointers.
    let mut options: libxdp_sys::bpf_link_create_opts = unsafe { std::mem::zeroed() };
    options.sz = size_of::<libxdp_sys::bpf_link_create_opts>();
    // linux/if_link.h: XDP_FLAGS_SKB_MODE, XDP_FLAGS_DRV_MODE.
    options.flags = if generic { 1 << 1 } else { 1 << 2 };
    // SAFETY: the call reads a structure of the size that its first member says.
    let fd = unsafe {
        libxdp_sys::bpf_link_create(
            program.as_raw_fd(),
            interface_index.cast_signed(),
            libxdp_sys::bpf_attach_type_BPF_XDP,
            &options,
        )
    };
    if fd < 0 {
        return Err(io::Error::from_raw_os_error(-fd));
    }
    // SAFETY: just made, owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// The address as the program compares it: as on the wire, IPv4 in the first word.
fn address_words(address: IpAddr) -> [u32; 4] {
    match address {
        IpAddr::V4(v4) => [u32::from_ne_bytes(v4.octets()), 0, 0, 0],
        IpAddr::V6(v6) => {
            let mut words = [0; 4];
            for (word, bytes) in words.iter_mut().zip(v6.octets().as_chunks().0) {
                *word = u32::from_ne_bytes(*bytes);
            }
            words
        }
    }
}

/// It is gone, or was not there.
pub(super) fn or_absent(removed: Result<(), MapError>) -> Result<(), MapError> {
    match removed {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

pub(super) fn failed<E: std::error::Error + Send + Sync + 'static>(
    what: &'static str,
) -> impl FnOnce(E) -> XskError + Copy {
    move |source| {
        if is_not_permitted(&source) {
            return XskError::NotPermitted { what };
        }
        XskError::Program { what, source: Box::new(source) }
    }
}

/// Whether the kernel's reason, somewhere below, is that we may not.
fn is_not_permitted(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut next = Some(error);
    while let Some(error) = next {
        if error.downcast_ref::<io::Error>().is_some_and(|error| error.raw_os_error() == Some(libc::EPERM)) {
            return true;
        }
        next = error.source();
    }
    false
}

pub(super) fn missing(what: &str) -> XskError {
    XskError::Program {
        what: "the XDP program is not the one built",
        source: format!("{what} is missing").into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_compared_as_on_the_wire() {
        assert_eq!(address_words([10, 0, 0, 1].into())[0].to_ne_bytes(), [10, 0, 0, 1]);
        let v6 = address_words("2001:db8::1".parse().unwrap());
        assert_eq!(v6[0].to_ne_bytes(), [0x20, 0x01, 0x0d, 0xb8]);
        assert_eq!(v6[3].to_ne_bytes(), [0, 0, 0, 1]);
    }

    #[test]
    fn each_counter_has_its_own_place() {
        let counters = queue_counters(2, &|place| Ok(u64::from(place))).unwrap();
        assert_eq!((counters.steered, counters.urgent, counters.no_socket), (22 + 32, 32, 23));
        assert_eq!(counters.passed.not_ip, 24);
        assert_eq!(counters.passed.other_vni, 31);
        assert_eq!(counters.passed.total(), (24..=31).sum::<u64>());
    }
}
