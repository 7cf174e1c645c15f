//! Facts about an interface and the kernel for `peregrine doctor`, and the few settings of an interface that it changes. Nothing here is
//! needed to open an uplink, and nothing decides anything.
//!
//! Settings are asked for by ethtool's ioctl: its netlink family has no hash fields before Linux 6.17. All of it looks at the network
//! namespace of the calling thread.

use std::io;
use std::net::IpAddr;
use std::os::fd::AsFd;

use serde::{Deserialize, Serialize};

use super::{Interface, XskError, program};
use crate::sys;

/// The largest MTU whose frames fit a chunk behind the kernel's headroom.
pub const fn largest_mtu(chunk_size: u32) -> u32 {
    super::largest_mtu(chunk_size)
}

/// The same for zero-copy, where some drivers use less of a chunk.
pub fn largest_zero_copy_mtu(driver: &str, chunk_size: u32) -> u32 {
    super::largest_zero_copy_mtu(driver, chunk_size)
}

/// How many channels an interface has, and may have.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Channels {
    /// Receive queues, however they are paired.
    pub receive: u32,
    /// The most of them.
    pub receive_max: u32,
    /// Channels that receive and send; 0: the two are counted apart.
    pub combined: u32,
    /// The most of them.
    pub combined_max: u32,
}

/// The channels of an interface.
///
/// # Errors
/// Its driver does not tell.
pub fn channels(name: &str) -> io::Result<Channels> {
    let [rx_max, _, _, combined_max, rx, _, _, combined] = sys::interface_all_channels(name)?;
    Ok(Channels {
        receive: rx.saturating_add(combined),
        receive_max: rx_max.saturating_add(combined_max),
        combined,
        combined_max,
    })
}

/// A feature of an interface, such as `rx-lro`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Feature {
    /// Its name in the kernel.
    pub name: String,
    /// It is on.
    pub is_on: bool,
    /// It can be switched.
    pub can_change: bool,
}

/// All features of an interface.
///
/// # Errors
/// The kernel's.
pub fn features(name: &str) -> io::Result<Vec<Feature>> {
    let names = sys::interface_features(name)?;
    let blocks = sys::interface_feature_bits(name, names.len())?;
    let feature = |(at, feature): (usize, &Vec<u8>)| {
        let [available, _, active, never] = blocks.get(at / 32).copied().unwrap_or_default();
        let has = |word: u32| word & (1 << (at % 32)) != 0;
        Feature {
            name: String::from_utf8_lossy(feature).into_owned(),
            is_on: has(active),
            can_change: has(available) && !has(never),
        }
    };
    let all = names.iter().enumerate().map(feature);
    Ok(all.filter(|feature| !feature.name.is_empty()).collect())
}

/// Switches a feature, and looks whether it is so now.
///
/// # Errors
/// The kernel's, or that the driver left it as it was.
pub fn set_feature(name: &str, feature: &str, on: bool) -> io::Result<()> {
    let names = sys::interface_features(name)?;
    let at = names.iter().position(|known| known == feature.as_bytes());
    let at = at.ok_or_else(|| io::Error::other(format!("the kernel knows no feature '{feature}'")))?;
    sys::set_interface_feature(name, (at, names.len()), on)?;
    let is_so = features(name)?.iter().any(|known| known.name == feature && known.is_on == on);
    if is_so { Ok(()) } else { Err(io::Error::other("the driver left it as it was")) }
}

/// Whose packets are hashed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum UdpFlow {
    /// UDP over IPv4.
    Udp4,
    /// UDP over IPv6.
    Udp6,
}

impl UdpFlow {
    /// As ethtool names it.
    pub const fn name(self) -> &'static str {
        match self {
            UdpFlow::Udp4 => "udp4",
            UdpFlow::Udp6 => "udp6",
        }
    }

    /// UDP_V4_FLOW and UDP_V6_FLOW of linux/ethtool.h.
    const fn number(self) -> u32 {
        match self {
            UdpFlow::Udp4 => 0x02,
            UdpFlow::Udp6 => 0x06,
        }
    }
}

/// Both addresses and both ports (`sdfn`): RXH_IP_SRC, RXH_IP_DST, RXH_L4_B_0_1 and RXH_L4_B_2_3 of linux/ethtool.h.
pub const HASH_BY_PORT: u64 = 0b1111 << 4;

/// By which fields of its packets a NIC chooses the queue.
///
/// # Errors
/// Its driver does not tell.
pub fn flow_hash(name: &str, flow: UdpFlow) -> io::Result<u64> {
    sys::interface_flow_hash(name, flow.number(), None)
}

/// Sets these fields, and looks whether they are set.
///
/// # Errors
/// The kernel's, or that the driver left them as they were.
pub fn set_flow_hash(name: &str, flow: UdpFlow, fields: u64) -> io::Result<()> {
    sys::interface_flow_hash(name, flow.number(), Some(fields))?;
    if flow_hash(name, flow)? == fields {
        Ok(())
    } else {
        Err(io::Error::other("the driver left it as it was"))
    }
}

/// The queues that a NIC chooses from by the hash, one for each place of its table.
///
/// # Errors
/// Its driver does not tell.
pub fn indirection(name: &str) -> io::Result<Vec<u32>> {
    sys::interface_indirection(name)
}

/// The number and name of the XDP program on an interface, if there is one.
///
/// # Errors
/// The kernel's.
pub fn program_on(interface: &Interface) -> Result<Option<(u32, String)>, XskError> {
    program::attached(interface.index)
}

/// What `ip link set dev … MODE off` calls the mode of the program on an interface; `None`: there is none, or a BPF link holds it, which
/// ends only with the program that made it.
///
/// # Errors
/// The kernel's; without CAP_SYS_ADMIN it does not tell of links.
pub fn detachable_mode(interface: &Interface) -> io::Result<Option<&'static str>> {
    program::detachable_mode(interface.index)
}

/// Whether a program of this name is one of ours.
pub fn is_ours(program: &str) -> bool {
    program.starts_with(program::NAME)
}

/// False of a program whose name could not be read (that needs CAP_SYS_ADMIN), or that has none: it may be anybody's.
pub fn is_known(program: &str) -> bool {
    program != program::UNNAMED
}

/// The kernel's device for a VLAN on an interface.
///
/// # Errors
/// The kernel's.
pub fn vlan_device(interface: &str, vlan: u16) -> io::Result<Option<String>> {
    sys::vlan_device(interface, vlan)
}

/// Each address, with the name of its interface.
///
/// # Errors
/// The kernel's.
pub fn addresses() -> io::Result<Vec<(IpAddr, String)>> {
    let all = sys::all_addresses()?.into_iter();
    Ok(all
        .flat_map(|(name, found)| found.addresses.into_iter().map(move |address| (address, name.clone())))
        .collect())
}

/// The name that the interface with this number has now.
///
/// # Errors
/// The kernel's.
pub fn name_of(ifindex: u32) -> io::Result<Option<String>> {
    Ok(sys::all_addresses()?.into_iter().find(|(_, found)| found.index == ifindex).map(|(name, _)| name))
}

/// A number of this thread's network namespace: none other has it until the next boot, where the kernel is 5.14 or newer.
///
/// # Errors
/// The kernel's.
pub fn network_namespace() -> io::Result<u64> {
    sys::network_namespace()
}

/// The names of all interfaces.
///
/// # Errors
/// The kernel's.
pub fn interfaces() -> io::Result<Vec<String>> {
    sys::interface_names()
}

/// What the kernel's AF_XDP can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct AfXdp {
    /// Drivers say when they want to be woken (XDP_USE_NEED_WAKEUP).
    pub need_wakeup: bool,
    /// Packets may lie in several chunks (XDP_USE_SG).
    pub multi_buffer: bool,
}

/// Asks for it with a socket that is bound to no interface: flags that it does not know the kernel refuses before it looks for one.
///
/// # Errors
/// There are no such sockets, or not for this process.
pub fn af_xdp() -> io::Result<AfXdp> {
    let knows = |flag: u16| -> io::Result<bool> {
        let socket = sys::xdp_socket(64)?;
        match sys::xdp_bind_nowhere(socket.as_fd(), flag) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(false),
            Err(error) if error.raw_os_error() != Some(libc::ENODEV) => Err(error),
            _ => Ok(true),
        }
    };
    // linux/if_xdp.h
    const XDP_USE_SG: u16 = 1 << 4;
    Ok(AfXdp { need_wakeup: knows(libc::XDP_USE_NEED_WAKEUP)?, multi_buffer: knows(XDP_USE_SG)? })
}
