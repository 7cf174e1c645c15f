//! The system calls that no crate wraps, each behind a safe function that checks what came back.
//!
//! Called by `xsk` (interface facts at start; wake-ups while running). The wake-ups are the only ones on the
//! data path: they allocate nothing and never block.

use std::collections::BTreeMap;
use std::ffi::CStr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr::NonNull;

use crate::types::MacAddr;

/// What `getifaddrs` says about one interface.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct InterfaceAddresses {
    pub(crate) index: u32,
    pub(crate) up: bool,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) addresses: Vec<IpAddr>,
}

/// The addresses of the interface with this name in this thread's network namespace; `None` if there is no such one.
pub(crate) fn interface_addresses(name: &str) -> io::Result<Option<InterfaceAddresses>> {
    Ok(all_addresses()?.remove(name))
}

/// The same of all interfaces, by their names.
pub(crate) fn all_addresses() -> io::Result<BTreeMap<String, InterfaceAddresses>> {
    let mut list: *mut libc::ifaddrs = std::ptr::null_mut();
    // SAFETY: on success the call stores a list that is freed below, once.
    check(unsafe { libc::getifaddrs(&mut list) })?;
    let mut found: BTreeMap<String, InterfaceAddresses> = BTreeMap::new();
    let mut next = list;
    // SAFETY: `next` is null or a node of the list, which lives until freeifaddrs.
    while let Some(node) = unsafe { next.as_ref() } {
        next = node.ifa_next;
        // SAFETY: the kernel's names are terminated strings.
        let label = unsafe { CStr::from_ptr(node.ifa_name) }.to_string_lossy();
        // An address with a label has that for a name (`eth0:1`); a colon is in no interface's own name.
        let name = label.split(':').next().unwrap_or_default();
        let entry = found.entry(name.to_owned()).or_default();
        entry.up = node.ifa_flags & libc::IFF_UP as u32 != 0;
        // SAFETY: null, or an address of the family that it names.
        unsafe { take_address(node.ifa_addr, entry) };
    }
    // SAFETY: from getifaddrs, not freed yet, and no reference into it is left.
    unsafe { libc::freeifaddrs(list) };
    Ok(found)
}

/// The groups of the process at the other end of a unix socket, beside its first one, when it connected (SO_PEERGROUPS).
pub fn peer_groups(socket: BorrowedFd<'_>) -> io::Result<Vec<u32>> {
    let mut groups = vec![0u32; 64];
    loop {
        let mut bytes = std::mem::size_of_val(groups.as_slice()) as libc::socklen_t;
        let to = groups.as_mut_ptr().cast();
        // SAFETY: the kernel writes at most `bytes` bytes, the size of `groups`.
        let result = unsafe {
            libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERGROUPS, to, &mut bytes)
        };
        let count = bytes as usize / std::mem::size_of::<u32>();
        match check(result) {
            Ok(_) => {
                groups.truncate(count);
                return Ok(groups);
            }
            // It says how many there are.
            Err(e) if e.raw_os_error() == Some(libc::ERANGE) && count > groups.len() => {
                groups.resize(count, 0)
            }
            Err(e) => return Err(e),
        }
    }
}

/// # Safety
/// `address` is null or points to a socket address of the family that it names.
unsafe fn take_address(address: *const libc::sockaddr, entry: &mut InterfaceAddresses) {
    if address.is_null() {
        return;
    }
    // SAFETY: not null, so it is a socket address, whose family says which kind it is (this function's contract).
    unsafe {
        match i32::from((*address).sa_family) {
            libc::AF_INET => {
                let v4 = address.cast::<libc::sockaddr_in>().read_unaligned();
                entry.addresses.push(Ipv4Addr::from(v4.sin_addr.s_addr.to_ne_bytes()).into());
            }
            libc::AF_INET6 => {
                let v6 = address.cast::<libc::sockaddr_in6>().read_unaligned();
                entry.addresses.push(Ipv6Addr::from(v6.sin6_addr.s6_addr).into());
            }
            libc::AF_PACKET => {
                let link = address.cast::<libc::sockaddr_ll>().read_unaligned();
                entry.index = u32::try_from(link.sll_ifindex).unwrap_or(0);
                let [a, b, c, d, e, f, ..] = link.sll_addr;
                entry.mac = (link.sll_halen == 6).then_some(MacAddr([a, b, c, d, e, f]));
            }
            _ => {}
        }
    }
}

/// The interface's MTU in bytes.
pub(crate) fn interface_mtu(name: &str) -> io::Result<u32> {
    let mut request = interface_request(name)?;
    interface_ioctl(libc::SIOCGIFMTU, &mut request)?;
    // SAFETY: SIOCGIFMTU stores the MTU in this member of the union.
    let mtu = unsafe { request.ifr_ifru.ifru_mtu };
    u32::try_from(mtu).map_err(|_| io::ErrorKind::InvalidData.into())
}

/// The interface's number, and whether it is up: two system calls that wait for no lock of the kernel.
pub(crate) fn interface_state(name: &str) -> io::Result<(u32, bool)> {
    let mut request = interface_request(name)?;
    interface_ioctl(libc::SIOCGIFINDEX, &mut request)?;
    // SAFETY: SIOCGIFINDEX stores the number in this member of the union.
    let index = unsafe { request.ifr_ifru.ifru_ifindex };
    interface_ioctl(libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: SIOCGIFFLAGS stores the flags in this member of the union.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    let index = u32::try_from(index).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))?;
    Ok((index, libc::c_int::from(flags) & libc::IFF_UP != 0))
}

/// `struct ethtool_drvinfo` of linux/ethtool.h.
#[repr(C)]
struct EthtoolDriver {
    command: u32,
    driver: [u8; 32],
    version: [u8; 32],
    firmware: [u8; 32],
    bus: [u8; 32],
    expansion_rom: [u8; 32],
    reserved: [u8; 12],
    counts: [u32; 5],
}

const _: () = assert!(size_of::<EthtoolDriver>() == 196);

/// The name of the driver behind the interface.
pub(crate) fn interface_driver(name: &str) -> io::Result<String> {
    const ETHTOOL_GDRVINFO: u32 = 0x03;
    let mut info = EthtoolDriver {
        command: ETHTOOL_GDRVINFO,
        driver: [0; 32],
        version: [0; 32],
        firmware: [0; 32],
        bus: [0; 32],
        expansion_rom: [0; 32],
        reserved: [0; 12],
        counts: [0; 5],
    };
    // SAFETY: ETHTOOL_GDRVINFO fills in a `struct ethtool_drvinfo`, which this is.
    unsafe { ethtool(name, (&raw mut info).cast()) }?;
    let text = info.driver.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}

/// `struct ethtool_channels` of linux/ethtool.h.
#[repr(C)]
struct EthtoolChannels {
    command: u32,
    max: [u32; 4],
    rx: u32,
    tx: u32,
    other: u32,
    combined: u32,
}

/// How many receive queues the interface has, if its driver tells.
pub(crate) fn interface_channels(name: &str) -> io::Result<u32> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut channels =
        EthtoolChannels { command: ETHTOOL_GCHANNELS, max: [0; 4], rx: 0, tx: 0, other: 0, combined: 0 };
    // SAFETY: ETHTOOL_GCHANNELS fills in a `struct ethtool_channels`, which this is.
    unsafe { ethtool(name, (&raw mut channels).cast()) }?;
    Ok(channels.rx.saturating_add(channels.combined))
}

/// The channels of the interface, if its driver tells: the most of those that receive, send, do neither and do both, and how many there are.
pub(crate) fn interface_all_channels(name: &str) -> io::Result<[u32; 8]> {
    const ETHTOOL_GCHANNELS: u32 = 0x3c;
    let mut words = [0u32; 9];
    words[0] = ETHTOOL_GCHANNELS;
    // SAFETY: ETHTOOL_GCHANNELS fills in a `struct ethtool_channels`, which is the command and these eight.
    unsafe { ethtool(name, words.as_mut_ptr().cast()) }?;
    let [_, channels @ ..] = words;
    Ok(channels)
}

/// For each 32 features of the interface which can be changed, are wanted, are on and can never be changed.
pub(crate) fn interface_feature_bits(name: &str, count: usize) -> io::Result<Vec<[u32; 4]>> {
    const ETHTOOL_GFEATURES: u32 = 0x3a;
    let blocks = count.div_ceil(32);
    // `struct ethtool_gfeatures`: the command, how many blocks, the blocks.
    let mut request = vec![0u32; 2 + 4 * blocks];
    if let [command, size, ..] = request.as_mut_slice() {
        (*command, *size) = (ETHTOOL_GFEATURES, blocks as u32);
    }
    // SAFETY: there is room for as many blocks as it says.
    unsafe { ethtool(name, request.as_mut_ptr().cast()) }?;
    let (blocks, _) = request.get(2..).unwrap_or_default().as_chunks::<4>();
    Ok(blocks.to_vec())
}

/// Switches feature number `at`, of so many. That the driver does not want it is no error.
pub(crate) fn set_interface_feature(name: &str, (at, count): (usize, usize), on: bool) -> io::Result<()> {
    const ETHTOOL_SFEATURES: u32 = 0x3b;
    let blocks = count.div_ceil(32);
    let mut request = vec![0u32; 2 + 2 * blocks];
    if let [command, size, ..] = request.as_mut_slice() {
        (*command, *size) = (ETHTOOL_SFEATURES, blocks as u32);
    }
    if let Some([valid, requested]) =
        request.get_mut(2 + 2 * (at / 32)..).and_then(|rest| rest.first_chunk_mut())
    {
        *valid = 1 << (at % 32);
        *requested = if on { *valid } else { 0 };
    }
    // SAFETY: as many blocks as it says.
    unsafe { ethtool(name, request.as_mut_ptr().cast()) }
}

/// The fields that packets of this kind are hashed by (RXH_…), set first if some are given.
pub(crate) fn interface_flow_hash(name: &str, flow: u32, set: Option<u64>) -> io::Result<u64> {
    const ETHTOOL_GRXFH: u32 = 0x29;
    const ETHTOOL_SRXFH: u32 = 0x2a;
    // `struct ethtool_rxnfc`: command, kind, fields, and what other commands need; 192 bytes, with room to spare.
    let mut request = [0u64; 32];
    let [fields_low, fields_high] = bytemuck::cast::<u64, [u32; 2]>(set.unwrap_or_default());
    let words: &mut [u32] = bytemuck::cast_slice_mut(&mut request);
    if let [command, kind, low, high, ..] = words {
        *command = if set.is_some() { ETHTOOL_SRXFH } else { ETHTOOL_GRXFH };
        (*kind, *low, *high) = (flow, fields_low, fields_high);
    }
    // SAFETY: both commands read and write a `struct ethtool_rxnfc`, which fits.
    unsafe { ethtool(name, request.as_mut_ptr().cast()) }?;
    let [_, fields, ..] = request;
    Ok(fields)
}

/// The table by which the interface chooses a queue from the hash.
pub(crate) fn interface_indirection(name: &str) -> io::Result<Vec<u32>> {
    const ETHTOOL_GRXFHINDIR: u32 = 0x38;
    // `struct ethtool_rxfh_indir`: the command, how many places, the places. Without room for any the kernel tells how many there are.
    let mut question = [ETHTOOL_GRXFHINDIR, 0];
    // SAFETY: no places are asked for.
    unsafe { ethtool(name, question.as_mut_ptr().cast()) }?;
    let [_, places] = question;
    let places = places.min(1 << 16);
    let mut table = vec![0u32; 2 + places as usize];
    if let [command, size, ..] = table.as_mut_slice() {
        (*command, *size) = (ETHTOOL_GRXFHINDIR, places);
    }
    // SAFETY: there is room for as many as it says.
    unsafe { ethtool(name, table.as_mut_ptr().cast()) }?;
    Ok(table.split_off(2))
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// Whether the interface takes VLAN tags off what it receives.
pub(crate) fn interface_takes_tags(name: &str) -> io::Result<bool> {
    const ETHTOOL_GFLAGS: u32 = 0x25;
    const ETH_FLAG_RXVLAN: u32 = 1 << 8;
    let mut flags = EthtoolValue { command: ETHTOOL_GFLAGS, data: 0 };
    // SAFETY: ETHTOOL_GFLAGS fills in a `struct ethtool_value`, which this is.
    unsafe { ethtool(name, (&raw mut flags).cast()) }?;
    Ok(flags.data & ETH_FLAG_RXVLAN != 0)
}

/// Makes the kernel write checksums and VLAN tags into packets itself, instead of leaving them to the interface, and give it none that are to
/// be cut into several.
pub(crate) fn interface_without_offloads(name: &str) -> io::Result<()> {
    const ETHTOOL_SFEATURES: u32 = 0x3b;
    let left_to_it = |feature: &[u8]| {
        let ends = |end: &[u8]| feature.ends_with(end);
        feature.starts_with(b"tx-") && (ends(b"-segmentation") || ends(b"-hw-insert"))
            || feature.starts_with(b"tx-checksum-")
            || feature == b"tx-gso-list"
    };
    let names = interface_features(name)?;
    // `struct ethtool_sfeatures`: for each 32 features which are to change, and to what: nothing.
    let blocks = names.len().div_ceil(32);
    let mut request = vec![0u32; 2 + 2 * blocks];
    for (at, _) in names.iter().enumerate().filter(|(_, feature)| left_to_it(feature)) {
        if let Some(valid) = request.get_mut(2 + 2 * (at / 32)) {
            *valid |= 1 << (at % 32);
        }
    }
    if let [command, size, ..] = request.as_mut_slice() {
        (*command, *size) = (ETHTOOL_SFEATURES, blocks as u32);
    }
    // SAFETY: as many blocks as it says. What cannot be changed is passed over.
    unsafe { ethtool(name, request.as_mut_ptr().cast()) }
}

/// The names of the features of interfaces, each at its number.
pub(crate) fn interface_features(interface: &str) -> io::Result<Vec<Vec<u8>>> {
    const ETHTOOL_GSTRINGS: u32 = 0x1b;
    const ETHTOOL_GSSET_INFO: u32 = 0x37;
    const ETH_SS_FEATURES: u32 = 4;
    const NAME: usize = 32;
    const FEATURES_MAX: u32 = 1024;
    // `struct ethtool_sset_info`: which sets, of 64 bits, and the length of each.
    let [low, high] = bytemuck::cast::<u64, [u32; 2]>(1 << ETH_SS_FEATURES);
    let mut sets = [ETHTOOL_GSSET_INFO, 0, low, high, 0];
    // SAFETY: one set is asked for, and there is room for one length.
    unsafe { ethtool(interface, sets.as_mut_ptr().cast()) }?;
    let count = sets.last().copied().unwrap_or_default();
    if count > FEATURES_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // `struct ethtool_gstrings`: a header of three words and the names.
    let mut strings = vec![0u32; 3 + count as usize * NAME / size_of::<u32>()];
    if let [command, set, length, ..] = strings.as_mut_slice() {
        (*command, *set, *length) = (ETHTOOL_GSTRINGS, ETH_SS_FEATURES, count);
    }
    // SAFETY: the kernel writes all its names, however many are asked for. There is room for as many as it has said that there are, and their
    // number is built into it.
    unsafe { ethtool(interface, strings.as_mut_ptr().cast()) }?;
    let bytes: Vec<u8> = strings.iter().skip(3).flat_map(|word| word.to_ne_bytes()).collect();
    let name = |bytes: &[u8]| bytes.split(|byte| *byte == 0).next().unwrap_or_default().to_vec();
    Ok(bytes.chunks_exact(NAME).map(name).collect())
}

/// `struct vlan_ioctl_args` of linux/if_vlan.h.
#[repr(C)]
struct VlanRequest {
    command: libc::c_int,
    device: [u8; 24],
    /// The other device's name, or a number.
    answer: [u8; 24],
    priority: libc::c_short,
}

const _: () = assert!(size_of::<VlanRequest>() == 56);

/// The name of the kernel's device for this VLAN on an interface, in this thread's network namespace.
pub(crate) fn vlan_device(parent: &str, vlan: u16) -> io::Result<Option<String>> {
    const GET_VLAN_REALDEV_NAME_CMD: libc::c_int = 8;
    const GET_VLAN_VID_CMD: libc::c_int = 9;
    // What is no VLAN device refuses both questions.
    let is_it = |name: &String| {
        let below = vlan_question(name, GET_VLAN_REALDEV_NAME_CMD).ok()?;
        let is_above = below.split(|byte| *byte == 0).next() == Some(parent.as_bytes());
        let number = vlan_question(name, GET_VLAN_VID_CMD).ok()?;
        Some(is_above && i32::from_ne_bytes(*number.first_chunk()?) == i32::from(vlan))
    };
    Ok(interface_names()?.into_iter().find(|name| is_it(name) == Some(true)))
}

fn vlan_question(name: &str, command: libc::c_int) -> io::Result<[u8; 24]> {
    const SIOCGIFVLAN: libc::c_ulong = 0x8982;
    let mut request = VlanRequest { command, device: [0; 24], answer: [0; 24], priority: 0 };
    for (to, from) in request.device.iter_mut().take(libc::IFNAMSIZ - 1).zip(name.bytes()) {
        *to = from;
    }
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: SIOCGIFVLAN reads and writes a `struct vlan_ioctl_args`, which this is.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGIFVLAN as _, &raw mut request) })?;
    Ok(request.answer)
}

/// A number that no other network namespace has until the next boot (SO_NETNS_COOKIE, Linux 5.14): this thread's. Older kernels have but
/// the number of its inode, which another one may have when it is gone.
pub(crate) fn network_namespace() -> io::Result<u64> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let (mut cookie, mut bytes) = (0u64, size_of::<u64>() as libc::socklen_t);
    let to = (&raw mut cookie).cast();
    // SAFETY: the kernel writes at most `bytes` bytes, the size of `cookie`.
    let result = unsafe {
        libc::getsockopt(socket.as_raw_fd(), libc::SOL_SOCKET, libc::SO_NETNS_COOKIE, to, &mut bytes)
    };
    match check(result) {
        Ok(_) => Ok(cookie),
        Err(error) if error.raw_os_error() == Some(libc::ENOPROTOOPT) => {
            Ok(std::os::unix::fs::MetadataExt::ino(&std::fs::metadata("/proc/thread-self/ns/net")?))
        }
        Err(error) => Err(error),
    }
}

/// All interfaces of this thread's network namespace.
pub(crate) fn interface_names() -> io::Result<Vec<String>> {
    // SAFETY: no arguments; on success it gives a list that is freed below, once.
    let list = unsafe { libc::if_nameindex() };
    if list.is_null() {
        return Err(io::Error::last_os_error());
    }
    let mut names = Vec::new();
    let mut next = list;
    // SAFETY: an entry of the list, which ends with one whose name is null.
    while let Some(entry) = unsafe { next.as_ref() }.filter(|entry| !entry.if_name.is_null()) {
        // SAFETY: the names are terminated strings.
        names.push(unsafe { CStr::from_ptr(entry.if_name) }.to_string_lossy().into_owned());
        // SAFETY: this entry is not the last, so there is one behind it.
        next = unsafe { next.add(1) };
    }
    // SAFETY: from if_nameindex, not freed yet, and no reference into it is left.
    unsafe { libc::if_freenameindex(list) };
    Ok(names)
}

/// # Safety
/// `data` points to the structure that the ethtool command in its first member needs, writable.
unsafe fn ethtool(name: &str, data: *mut libc::c_char) -> io::Result<()> {
    const SIOCETHTOOL: libc::c_ulong = 0x8946;
    let mut request = interface_request(name)?;
    request.ifr_ifru.ifru_data = data;
    interface_ioctl(SIOCETHTOOL, &mut request)
}

fn interface_request(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: all zero is a valid `ifreq`: an empty name, and a union of numbers and a null pointer.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

fn interface_ioctl(command: libc::c_ulong, request: &mut libc::ifreq) -> io::Result<()> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: the commands used here read and write an `ifreq`, and what `ethtool` has put behind it.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), command as _, std::ptr::from_mut(request)) }).map(drop)
}

/// Sets the calling thread's nice value: −20 (highest priority) to 19.
pub(crate) fn set_thread_nice(nice: i8) -> io::Result<()> {
    // SAFETY: plain numbers; on Linux "process 0" is the calling thread (setpriority(2), NOTES).
    check(unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, nice.into()) }).map(drop)
}

/// What any thread of this process has written is seen by all others from here on, and the other way round (membarrier(2)). Where the kernel
/// cannot do that, some microseconds do. [`allow_barriers`] comes first.
pub(crate) fn barrier_on_all_threads() {
    const PRIVATE_EXPEDITED: libc::c_int = 1 << 3;
    // SAFETY: no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, PRIVATE_EXPEDITED, 0, 0) };
}

/// Before threads may use [`barrier_on_all_threads`]. The first time it can take milliseconds, so it is not for a worker.
pub(crate) fn allow_barriers() {
    const REGISTER_PRIVATE_EXPEDITED: libc::c_int = 1 << 4;
    // SAFETY: no pointers.
    unsafe { libc::syscall(libc::SYS_membarrier, REGISTER_PRIVATE_EXPEDITED, 0, 0) };
}

/// Lifts the limit on locked memory (a UMEM is locked). False if that is not permitted: then the limit stands.
pub(crate) fn raise_memlock() -> bool {
    let limit = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: reads the structure only.
    unsafe { libc::setrlimit(libc::RLIMIT_MEMLOCK, &limit) == 0 }
}

/// The counters of an AF_XDP socket (`struct xdp_statistics` of linux/if_xdp.h).
#[repr(C)]
#[derive(Clone, Copy, Default, Debug)]
pub(crate) struct XdpStatistics {
    pub(crate) rx_dropped: u64,
    pub(crate) rx_invalid_descs: u64,
    pub(crate) tx_invalid_descs: u64,
    pub(crate) rx_ring_full: u64,
    pub(crate) rx_fill_ring_empty_descs: u64,
    pub(crate) tx_ring_empty_descs: u64,
}

/// Reads the counters of an AF_XDP socket.
pub(crate) fn xdp_statistics(socket: BorrowedFd<'_>) -> io::Result<XdpStatistics> {
    let mut statistics = XdpStatistics::default();
    // SAFETY: integers only, so that any bytes are a valid value.
    unsafe { xdp_option(socket, libc::XDP_STATISTICS, &mut statistics) }?;
    Ok(statistics)
}

/// Whether the kernel has bound an AF_XDP socket with zero-copy.
pub(crate) fn xdp_is_zero_copy(socket: BorrowedFd<'_>) -> io::Result<bool> {
    let mut flags = 0u32;
    // SAFETY: an integer.
    unsafe { xdp_option(socket, libc::XDP_OPTIONS, &mut flags) }?;
    Ok(flags & libc::XDP_OPTIONS_ZEROCOPY != 0)
}

/// # Safety
/// Any bytes are a valid `T`.
unsafe fn xdp_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &mut T) -> io::Result<()> {
    let mut length = size_of::<T>() as libc::socklen_t;
    // SAFETY: the kernel writes at most `length` bytes to `value`.
    check(unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_XDP,
            option,
            std::ptr::from_mut(value).cast(),
            &mut length,
        )
    })
    .map(drop)
}

/// A new AF_XDP socket, with rx and tx rings of so many descriptors each.
pub(crate) fn xdp_socket(ring_size: u32) -> io::Result<OwnedFd> {
    // SAFETY: no pointers.
    let fd = check(unsafe { libc::socket(libc::AF_XDP, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: just made, owned by nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    for option in [libc::XDP_RX_RING, libc::XDP_TX_RING] {
        // SAFETY: an integer.
        unsafe { set_xdp_option(socket.as_fd(), option, &ring_size) }?;
    }
    Ok(socket)
}

/// A new AF_XDP socket with memory and rings of its own: all four have so many descriptors.
pub(crate) fn xdp_socket_with_memory(memory: &Pages, chunk_size: u32, ring_size: u32) -> io::Result<OwnedFd> {
    let socket = xdp_socket(ring_size)?;
    let memory = libc::xdp_umem_reg_v1 {
        addr: memory.base.as_ptr().expose_provenance() as u64,
        len: memory.bytes as u64,
        chunk_size,
        headroom: 0,
    };
    // SAFETY: numbers only, as the kernel reads them; the memory is the caller's, who sees to it that it stays mapped.
    unsafe { set_xdp_option(socket.as_fd(), libc::XDP_UMEM_REG, &memory) }?;
    for option in [libc::XDP_UMEM_FILL_RING, libc::XDP_UMEM_COMPLETION_RING] {
        // SAFETY: an integer.
        unsafe { set_xdp_option(socket.as_fd(), option, &ring_size) }?;
    }
    Ok(socket)
}

/// Binds an AF_XDP socket to a queue, in copy mode.
pub(crate) fn xdp_bind(socket: BorrowedFd<'_>, interface_index: u32, queue: u32) -> io::Result<()> {
    xdp_bind_to(
        socket,
        &libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_COPY,
            sxdp_ifindex: interface_index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: 0,
        },
    )
}

/// Tries to bind an AF_XDP socket to no interface at all, with these flags: it fails in any case.
pub(crate) fn xdp_bind_nowhere(socket: BorrowedFd<'_>, flags: u16) -> io::Result<()> {
    xdp_bind_to(
        socket,
        &libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: flags,
            sxdp_ifindex: 0,
            sxdp_queue_id: 0,
            sxdp_shared_umem_fd: 0,
        },
    )
}

fn xdp_bind_to(socket: BorrowedFd<'_>, address: &libc::sockaddr_xdp) -> io::Result<()> {
    let length = size_of_val(address) as libc::socklen_t;
    // SAFETY: an address of that length.
    check(unsafe { libc::bind(socket.as_raw_fd(), std::ptr::from_ref(address).cast(), length) }).map(drop)
}

/// # Safety
/// `value` is what the kernel expects of this option.
unsafe fn set_xdp_option<T>(socket: BorrowedFd<'_>, option: libc::c_int, value: &T) -> io::Result<()> {
    let (value, length) = (std::ptr::from_ref(value).cast(), size_of::<T>() as libc::socklen_t);
    // SAFETY: reads `length` bytes from `value`.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), libc::SOL_XDP, option, value, length) }).map(drop)
}

/// Binds an AF_XDP socket to the queue that `first` is bound to, whose UMEM, fill and completion ring it shares.
pub(crate) fn xdp_bind_beside(
    socket: BorrowedFd<'_>,
    first: BorrowedFd<'_>,
    interface_index: u32,
    queue: u32,
) -> io::Result<()> {
    xdp_bind_to(
        socket,
        &libc::sockaddr_xdp {
            sxdp_family: libc::AF_XDP as u16,
            sxdp_flags: libc::XDP_SHARED_UMEM,
            sxdp_ifindex: interface_index,
            sxdp_queue_id: queue,
            sxdp_shared_umem_fd: first.as_raw_fd().cast_unsigned(),
        },
    )
}

/// Where things are in the mappings of an AF_XDP socket's rings.
pub(crate) fn xdp_offsets(socket: BorrowedFd<'_>) -> io::Result<libc::xdp_mmap_offsets> {
    // SAFETY: all zero is a valid value: numbers only.
    let mut offsets: libc::xdp_mmap_offsets = unsafe { std::mem::zeroed() };
    // SAFETY: integers only, so that any bytes are a valid value.
    unsafe { xdp_option(socket, libc::XDP_MMAP_OFFSETS, &mut offsets) }?;
    Ok(offsets)
}

/// A ring of an AF_XDP socket in our memory.
#[derive(Debug)]
pub(crate) struct RingMapping {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: memory of this process, which any thread may use.
unsafe impl Send for RingMapping {}

impl RingMapping {
    /// The ring at `offset` (XDP_PGOFF_RX_RING or XDP_PGOFF_TX_RING).
    pub(crate) fn new(socket: BorrowedFd<'_>, offset: libc::off_t, bytes: usize) -> io::Result<RingMapping> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED | libc::MAP_POPULATE);
        // SAFETY: a new mapping, where the kernel likes.
        let base =
            unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, socket.as_raw_fd(), offset) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(RingMapping { base, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// The `T` that begins `offset` bytes behind the beginning, if one may lie there.
    pub(crate) fn at<T>(&self, offset: u64, count: u32) -> io::Result<NonNull<T>> {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        let end = size_of::<T>().checked_mul(count as usize).and_then(|bytes| bytes.checked_add(offset));
        match end {
            Some(end) if end <= self.bytes && offset.is_multiple_of(align_of::<T>()) => {
                // SAFETY: inside the mapping.
                Ok(unsafe { self.base.add(offset) }.cast())
            }
            _ => Err(io::ErrorKind::InvalidData.into()),
        }
    }
}

impl Drop for RingMapping {
    fn drop(&mut self) {
        // SAFETY: from mmap, and whoever has a pointer into it has this, too.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Memory that begins on a page, all zero.
#[derive(Debug)]
pub(crate) struct Pages {
    base: NonNull<u8>,
    bytes: usize,
}

// SAFETY: memory of this process, which any thread may use.
unsafe impl Send for Pages {}

impl Pages {
    pub(crate) fn new(bytes: usize) -> io::Result<Pages> {
        let (access, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
        // SAFETY: a new mapping, where the kernel likes.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), bytes, access, flags, -1, 0) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if base.as_ptr().cast() != libc::MAP_FAILED => Ok(Pages { base, bytes }),
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Where so many bytes lie, if they do.
    #[inline]
    pub(crate) fn at(&self, offset: usize, length: usize) -> Option<NonNull<u8>> {
        let end = offset.checked_add(length)?;
        // SAFETY: inside the mapping.
        (end <= self.bytes).then(|| unsafe { self.base.add(offset) })
    }
}

impl Drop for Pages {
    fn drop(&mut self) {
        // SAFETY: from mmap, and whoever has a pointer into it has this, too.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Keeps a descriptor from the programs that this process starts.
pub(crate) fn close_on_exec(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: no pointers.
    check(unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_SETFD, libc::FD_CLOEXEC) }).map(drop)
}

/// Makes the kernel look at the tx ring of an AF_XDP socket. Never blocks.
#[inline]
pub(crate) fn wake_transmit(socket: libc::c_int) -> Result<(), libc::c_int> {
    // SAFETY: no buffer and no address are passed.
    let sent = unsafe { libc::sendto(socket, std::ptr::null(), 0, libc::MSG_DONTWAIT, std::ptr::null(), 0) };
    if sent >= 0 { Ok(()) } else { Err(errno()) }
}

/// Makes the kernel look at the fill ring of an AF_XDP socket. Never blocks.
#[inline]
pub(crate) fn wake_receive(socket: libc::c_int) -> Result<(), libc::c_int> {
    // SAFETY: no buffer and no address are passed.
    let got = unsafe {
        libc::recvfrom(
            socket,
            std::ptr::null_mut(),
            0,
            libc::MSG_DONTWAIT,
            std::ptr::null_mut(),
            std::ptr::null_mut(),
        )
    };
    if got >= 0 { Ok(()) } else { Err(errno()) }
}

/// The kernel's reason for the last failure in this thread.
fn errno() -> libc::c_int {
    // SAFETY: always a valid pointer to this thread's own number.
    unsafe { *libc::__errno_location() }
}

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loopback_interface_is_described() {
        let lo = interface_addresses("lo").unwrap().unwrap();
        assert!(lo.index > 0);
        assert!(interface_mtu("lo").unwrap() >= 1500);
        assert_eq!(interface_addresses("no such one").unwrap(), None);
    }

    #[test]
    fn an_interface_name_that_is_too_long_is_refused() {
        assert_eq!(interface_mtu("sixteen_letters_").map_err(|e| e.kind()), Err(io::ErrorKind::InvalidInput));
    }
}
