//! The XDP program in the kernel: loading it, attaching it, its maps and its counters.
//!
//! Called by [`open`](super::open) and [`Uplink`](super::Uplink). What must hold:
//! - A program that is not ours is never replaced. [`attached`] looks first; and the kernel itself refuses a link
//!   where there is a program already, so nothing can slip in between.
//! - It is attached by a bpf_link and in no other way: the kernel detaches it when the link's descriptor is closed,
//!   also after SIGKILL.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use aya::maps::{HashMap, MapData, MapError, PerCpuArray, XskMap};
use aya::programs::Xdp;
use aya::programs::links::LinkType;
use aya::programs::{loaded_links, loaded_programs};
use aya::{Ebpf, EbpfLoader};
use serde::Serialize;

use crate::types::{QueueId, Vni};

use super::early::{EARLY_NETWORKS_MAX, EARLY_PORTS_MAX, EarlyMaps, EarlyRules};
use super::{LOCALS_MAX, Steering, XskError};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.o"));

/// The function in bpf/steer.c, and the program's name in the kernel, which keeps 15 letters of it.
pub(super) const NAME: &str = "peregrine_steer";

/// The same for packets in several fragments. In the kernel, too.
const NAME_FRAGS: &str = "peregrine_steer_frags";

/// `enum verdict` of bpf/steer.c has this many values.
const VERDICTS: u32 = 12;

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
    /// Neither IPv4 nor IPv6 directly behind the Ethernet header, and the tag if there is to be one (ARP, VLAN-tagged, ...).
    pub not_ip: u64,
    /// The tag of our VLAN is wanted, and it has none or another one.
    pub other_vlan: u64,
    /// An IP, UDP or VXLAN header that is cut off or impossible.
    pub malformed: u64,
    /// Not UDP (or UDP behind IPv6 extension headers).
    pub not_udp: u64,
    /// Not to one of our VTEP addresses.
    pub other_address: u64,
    /// A fragment.
    pub fragment: u64,
    /// Not to the VXLAN port of its network.
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
        let PassedCounters { fragment, other_port, no_vni_flag, other_vni, other_vlan, .. } = self;
        not_ip
            + other_vlan
            + malformed
            + not_udp
            + other_address
            + fragment
            + other_port
            + no_vni_flag
            + other_vni
    }
}

/// The loaded program. Dropping it detaches and unloads it.
#[derive(Debug)]
pub(super) struct Program {
    ebpf: Ebpf,
    name: &'static str,
    queue_count: u32,
    early: EarlyMaps,
    link: Option<OwnedFd>,
}

impl Program {
    /// Loads the program for an interface with so many queues; it is not attached yet. Without `steering` it takes everything. With
    /// `early` it knows urgent frames, which are none at first. With `multi_buffer` packets may have several fragments.
    pub(super) fn load(
        steering: Option<&Steering>,
        queue_count: u32,
        early: bool,
        multi_buffer: bool,
    ) -> Result<Program, XskError> {
        let take_everything = u8::from(steering.is_none());
        let locals = Locals::of(steering.map_or(&[], |steering| &steering.locals));
        let vlan = steering.and_then(|steering| steering.vlan).unwrap_or(0);
        let port = steering.map_or(0, |steering| steering.port);
        let networks = steering.map_or(&[][..], |steering| &steering.networks);
        // Both generations.
        let room = |most: usize| if early { 2 * most as u32 } else { 1 };
        let mut ebpf = EbpfLoader::new()
            .override_global("ipv4_locals", &locals.ipv4, true)
            .override_global("ipv4_count", &locals.ipv4_count, true)
            .override_global("ipv6_locals", &locals.ipv6, true)
            .override_global("ipv6_count", &locals.ipv6_count, true)
            .override_global("vlan", &vlan, true)
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
        let name = if multi_buffer { NAME_FRAGS } else { NAME };
        let program: &mut Xdp = ebpf
            .program_mut(name)
            .ok_or_else(|| missing("its function"))?
            .try_into()
            .map_err(failed("loading the XDP program"))?;
        program.load().map_err(failed("loading the XDP program"))?;
        let mut program = Program { ebpf, name, queue_count, early: EarlyMaps::default(), link: None };
        for (vni, port) in networks {
            program.serve(*vni, *port)?;
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

    /// From now on frames of this network are steered, if they come to this port.
    pub(super) fn serve(&mut self, vni: Vni, port: u16) -> Result<(), XskError> {
        self.served()?.insert(vni.get(), port, 0).map_err(failed("entering a VNI into the XDP program's map"))
    }

    /// From now on frames of this network pass to the kernel. No error if they did already.
    pub(super) fn release(&mut self, vni: Vni) -> Result<(), XskError> {
        or_absent(self.served()?.remove(&vni.get()))
            .map_err(failed("removing a VNI from the XDP program's map"))
    }

    fn served(&mut self) -> Result<HashMap<&mut MapData, u32, u16>, XskError> {
        let map = self.ebpf.map_mut("served_vnis").ok_or_else(|| missing("the map of VNIs"))?;
        HashMap::try_from(map).map_err(failed("opening the map of VNIs"))
    }

    /// Attaches the program: from here on frames are steered.
    pub(super) fn attach(&mut self, interface_index: u32, generic: bool) -> Result<(), AttachError> {
        let program = self.ebpf.program(self.name).ok_or_else(|| missing("its function"))?;
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
            other_vlan: at(11)?,
        },
    })
}

/// The number and name of the program that is attached to an interface, in whatever mode.
pub(super) fn attached(interface_index: u32) -> Result<Option<(u32, String)>, XskError> {
    let id = program_id(interface_index)
        .map_err(|source| XskError::System { what: "asking which XDP program is attached".into(), source })?;
    Ok(id.map(|id| (id, program_name(id).unwrap_or_else(|| UNNAMED.into()))))
}

/// In place of a name.
pub(super) const UNNAMED: &str = "unnamed";

/// `None` as well when we may not look or it has no name.
fn program_name(id: u32) -> Option<String> {
    let info = loaded_programs().filter_map(Result::ok).find(|info| info.id() == id)?;
    info.name_as_str().filter(|name| !name.is_empty()).map(str::to_string)
}

/// For [`inspect`](super::inspect): as `ip link` names it, if netlink can detach it.
pub(super) fn detachable_mode(interface_index: u32) -> io::Result<Option<&'static str>> {
    let answer = query(interface_index)?;
    let modes = [
        (answer.drv_prog_id, "xdpdrv"),
        (answer.skb_prog_id, "xdpgeneric"),
        (answer.hw_prog_id, "xdpoffload"),
    ];
    let Some((id, mode)) = modes.into_iter().find(|(id, _)| *id != 0) else { return Ok(None) };
    for link in loaded_links() {
        let link = link.map_err(|error| io::Error::other(error.to_string()))?;
        if link.program_id() == id && matches!(link.link_type(), Ok(LinkType::Xdp)) {
            return Ok(None);
        }
    }
    Ok(Some(mode))
}

fn program_id(interface_index: u32) -> io::Result<Option<u32>> {
    let answer = query(interface_index)?;
    let ids = [answer.prog_id, answer.drv_prog_id, answer.skb_prog_id, answer.hw_prog_id];
    Ok(ids.into_iter().find(|id| *id != 0))
}

fn query(interface_index: u32) -> io::Result<libxdp_sys::bpf_xdp_query_opts> {
    // SAFETY: all zero is a valid value: numbers only.
    let mut answer: libxdp_sys::bpf_xdp_query_opts = unsafe { std::mem::zeroed() };
    answer.sz = size_of::<libxdp_sys::bpf_xdp_query_opts>();
    // SAFETY: the call fills in a structure of the size that its first member says.
    let result = unsafe { libxdp_sys::bpf_xdp_query(interface_index.cast_signed(), 0, &mut answer) };
    if result < 0 {
        return Err(io::Error::from_raw_os_error(-result));
    }
    Ok(answer)
}

/// aya's own attach turns to netlink when the kernel answers EINVAL, which is neither a link nor safe for a foreign
/// program; so the call is made here.
pub(super) fn link(program: BorrowedFd<'_>, interface_index: u32, generic: bool) -> io::Result<OwnedFd> {
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

/// Our addresses as the program compares them: as on the wire.
#[derive(Default)]
struct Locals {
    ipv4: [u32; LOCALS_MAX],
    ipv4_count: u32,
    /// Four words each.
    ipv6: [u32; 4 * LOCALS_MAX],
    ipv6_count: u32,
}

impl Locals {
    fn of(addresses: &[IpAddr]) -> Locals {
        let mut locals = Locals::default();
        for address in addresses {
            match address {
                IpAddr::V4(v4) => {
                    if let Some(place) = locals.ipv4.get_mut(locals.ipv4_count as usize) {
                        *place = u32::from_ne_bytes(v4.octets());
                        locals.ipv4_count += 1;
                    }
                }
                IpAddr::V6(v6) => {
                    let (places, _) = locals.ipv6.as_chunks_mut::<4>();
                    if let Some(place) = places.get_mut(locals.ipv6_count as usize) {
                        let octets = v6.octets();
                        let (words, _) = octets.as_chunks();
                        place.iter_mut().zip(words).for_each(|(to, from)| *to = u32::from_ne_bytes(*from));
                        locals.ipv6_count += 1;
                    }
                }
            }
        }
        locals
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
        let addresses = ["10.0.0.1", "2001:db8::1", "10.0.0.2", "2001:db8::2"].map(|a| a.parse().unwrap());
        let locals = Locals::of(&addresses);
        assert_eq!((locals.ipv4_count, locals.ipv6_count), (2, 2));
        assert_eq!(locals.ipv4.map(u32::to_ne_bytes)[..3], [[10, 0, 0, 1], [10, 0, 0, 2], [0; 4]]);
        let words = locals.ipv6.map(u32::to_ne_bytes);
        assert_eq!((words[0], words[3]), ([0x20, 0x01, 0x0d, 0xb8], [0, 0, 0, 1]));
        assert_eq!((words[4], words[7]), ([0x20, 0x01, 0x0d, 0xb8], [0, 0, 0, 2]));
        let many = [addresses; 9].concat();
        let full = Locals::of(&many);
        assert_eq!((full.ipv4_count, full.ipv6_count), (8, 8), "no more than there is room for");
    }

    /// Runs the program on a frame by itself (BPF_PROG_TEST_RUN): there is no socket, so what is ours is counted as `no_socket`.
    fn judge(program: &Program, frame: &[u8]) {
        let xdp: &Xdp = program.ebpf.program(NAME).unwrap().try_into().unwrap();
        // SAFETY: all zero is a valid value: numbers and null pointers.
        let mut options: libxdp_sys::bpf_test_run_opts = unsafe { std::mem::zeroed() };
        options.sz = size_of::<libxdp_sys::bpf_test_run_opts>();
        options.data_in = frame.as_ptr().cast();
        options.data_size_in = frame.len() as u32;
        options.repeat = 1;
        // SAFETY: the call reads a structure of the size that its first member says, and the frame.
        let result = unsafe {
            libxdp_sys::bpf_prog_test_run_opts(xdp.fd().unwrap().as_fd().as_raw_fd(), &mut options)
        };
        assert_eq!(result, 0, "{}", io::Error::last_os_error());
    }

    /// VXLAN of this VNI to this address and port, with these bytes between the addresses and the EtherType.
    fn frame(to: &str, port: u16, vni: u8, tag: &[u8]) -> Vec<u8> {
        use crate::types::MacAddr;
        use crate::wire::outer::{OuterFields, OuterHeaders, OwnFields};
        let destination: IpAddr = to.parse().unwrap();
        let source: IpAddr = if destination.is_ipv4() { [10, 0, 0, 9].into() } else { [9u16; 8].into() };
        let (destination_mac, source_mac) = (MacAddr([2; 6]), MacAddr([4; 6]));
        let fields = OuterFields { destination_mac, source_mac, source, destination, port, ttl: 64 };
        let headers = OuterHeaders::new(&fields, None).unwrap();
        let mut frame = vec![0; headers.len() + 60];
        let vni = Vni::from_bytes([0, 0, vni]);
        let own = OwnFields { vni, source_port: 50_000, port: None, tos: 0, udp_checksum: false };
        assert!(headers.write(&mut frame, &own));
        frame.splice(12..12, tag.iter().copied());
        frame
    }

    #[test]
    #[ignore = "needs root: make test runs it"]
    fn addresses_tags_and_ports_decide_what_is_ours() {
        let vni = |vni| Vni::from_bytes([0, 0, vni]);
        let steering = |vlan| Steering {
            locals: ["10.0.0.1", "2001:db8::1", "10.0.0.2", "2001:db8::2"]
                .map(|a| a.parse().unwrap())
                .to_vec(),
            vlan,
            networks: vec![(vni(7), 4789), (vni(8), 8472)],
            port: 4789,
        };
        let (tag, other_tag, service_tag) = ([0x81, 0, 0xe0, 5], [0x81, 0, 0xe0, 6], [0x88, 0xa8, 0, 5]);
        for vlan in [None, Some(5)] {
            let program = Program::load(Some(&steering(vlan)), 1, false, false).unwrap();
            let (ours, nobodys): (&[u8], [&[u8]; 3]) = match vlan {
                None => (&[], [&tag, &other_tag, &service_tag]),
                Some(_) => (&tag, [&[], &other_tag, &service_tag]),
            };
            for to in ["10.0.0.1", "10.0.0.2", "2001:db8::1", "2001:db8::2"] {
                judge(&program, &frame(to, 4789, 7, ours));
                judge(&program, &frame(to, 8472, 8, ours));
                judge(&program, &frame(to, 8472, 7, ours));
                judge(&program, &frame(to, 4789, 8, ours));
                judge(&program, &frame(to, 4789, 9, ours));
                judge(&program, &frame(to, 8472, 9, ours));
                judge(&program, &frame(to, 53, 7, ours));
                nobodys.iter().for_each(|tag| judge(&program, &frame(to, 4789, 7, tag)));
            }
            for to in ["10.0.0.3", "0.0.0.0", "2001:db8::3", "::"] {
                judge(&program, &frame(to, 4789, 7, ours));
            }
            let counted = program.counters().unwrap()[0];
            let passed = PassedCounters {
                other_port: 16,
                other_vni: 4,
                other_address: 4,
                ..PassedCounters::default()
            };
            let passed = match vlan {
                None => PassedCounters { not_ip: 12, ..passed },
                Some(_) => PassedCounters { other_vlan: 12, ..passed },
            };
            assert_eq!((counted.steered, counted.no_socket, counted.passed), (0, 8, passed), "{vlan:?}");
        }
    }

    #[test]
    fn addresses_lie_one_after_the_other_as_on_the_wire() {
        let addresses = ["2001:db8:102:304:506:708:90a:b0c", "10.0.0.1", "fe80::fffe", "10.0.0.2"];
        let locals = Locals::of(&addresses.map(|address| address.parse().unwrap()));
        let bytes = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let ipv6 = bytes(&locals.ipv6);
        assert_eq!(ipv6[..16], [0x20, 1, 0xd, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0xa, 0xb, 0xc]);
        assert_eq!(ipv6[16..32], [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe]);
        assert_eq!(ipv6[32..], [0; 16 * (LOCALS_MAX - 2)]);
        let ipv4 = bytes(&locals.ipv4);
        assert_eq!(ipv4, [&[10, 0, 0, 1, 10, 0, 0, 2][..], &[0; 4 * (LOCALS_MAX - 2)]].concat());
        assert_eq!((locals.ipv4_count, locals.ipv6_count), (2, 2));
    }

    #[test]
    fn addresses_beyond_the_room_are_left_out() {
        let addresses: Vec<IpAddr> = (0..=LOCALS_MAX as u16)
            .flat_map(|last| [[0, 0, 0, 0, 0, 0, 1, last].into(), [10, 0, 0, last as u8].into()])
            .collect();
        let locals = Locals::of(&addresses);
        assert_eq!((locals.ipv4_count, locals.ipv6_count), (LOCALS_MAX as u32, LOCALS_MAX as u32));
        assert_eq!(locals.ipv6.last().unwrap().to_ne_bytes(), [0, 1, 0, LOCALS_MAX as u8 - 1]);
        assert_eq!(locals.ipv4.last().unwrap().to_ne_bytes(), [10, 0, 0, LOCALS_MAX as u8 - 1]);
    }

    #[test]
    fn each_counter_has_its_own_place() {
        let counters = queue_counters(2, &|place| Ok(u64::from(place))).unwrap();
        assert_eq!((counters.steered, counters.urgent, counters.no_socket), (24 + 34, 34, 25));
        assert_eq!(counters.passed.not_ip, 26);
        assert_eq!((counters.passed.other_vni, counters.passed.other_vlan), (33, 35));
        assert_eq!(counters.passed.total(), (26..=33).sum::<u64>() + 35);
    }
}
