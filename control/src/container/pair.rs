//! A pair of veth devices: one request makes both ends, each where it is to be, and the far end is then set up inside its namespace.

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteProtocol, RouteScope, RouteType,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use peregrine_dataplane::plan::NamespaceRef;
use peregrine_dataplane::types::MacAddr;
use peregrine_dataplane::xsk::switch_offloads_off;
use rustix::io::Errno;

use super::{ContainerError, Namespace};
use crate::underlay::netlink::Requests;

/// What is to be made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VethPlan {
    /// The name of our end.
    pub port: String,
    /// The name of the container's end.
    pub interface: String,
    /// What that is given.
    pub link: Link,
}

/// What a container's end is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// The largest IP packet, at both ends.
    pub mtu: u16,
    /// Its addresses, with the lengths of their prefixes.
    pub addresses: Vec<(IpAddr, u8)>,
    /// Where its packets to everybody else go: one for each family, or none. They need not be in one of the prefixes.
    pub gateways: Vec<IpAddr>,
}

/// A pair that was made. Nothing happens when it is dropped: [`remove`](Self::remove) does it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pair {
    /// The name of our end.
    pub port: String,
    /// Its number.
    pub ifindex: u32,
}

impl Pair {
    /// Whether our end is still there. It goes with the other one, and that with its namespace.
    ///
    /// # Errors
    /// The kernel gave no answer.
    pub fn is_there(&self, requests: &mut Requests) -> io::Result<bool> {
        requests.link(self.ifindex).map(|link| link.is_some())
    }

    /// The same, and whether it is still called so: numbers come again, some day.
    pub(super) fn is_still(&self, requests: &mut Requests) -> bool {
        matches!(requests.link(self.ifindex), Ok(Some(link)) if link.name == self.port)
    }

    /// Removes both ends. None there any more is no error.
    ///
    /// # Errors
    /// [`ContainerError`].
    pub fn remove(&self, requests: &mut Requests) -> Result<(), ContainerError> {
        let mut message = LinkMessage::default();
        message.header.index = self.ifindex;
        match requests.change(RouteNetlinkMessage::DelLink(message), 0) {
            Err(error) if !is(&error, Errno::NODEV) => {
                Err(refused(error, || format!("removing {}", self.port)))
            }
            _ => Ok(()),
        }
    }
}

/// Makes a pair: our end, up, in this thread's namespace, the other one in the container's, with all that the plan says. Its end leaves nothing
/// to its interface that nobody would do: checksums, tags, cutting packets into several.
///
/// # Errors
/// [`ContainerError`]. Then neither end is there.
pub fn make(requests: &mut Requests, plan: &VethPlan, namespace: &Namespace) -> Result<Pair, ContainerError> {
    for name in [&plan.port, &plan.interface] {
        if !is_interface_name(name) {
            return Err(ContainerError::BadName { name: name.clone() });
        }
    }
    let message = RouteNetlinkMessage::NewLink(pair_message(plan, namespace));
    let made = requests.change(message, NLM_F_CREATE | NLM_F_EXCL);
    made.map_err(|error| pair_error(error, requests, plan, namespace))?;
    let what = || format!("making {}", plan.port);
    let ours = requests.link_named(&plan.port).map_err(|error| refused(error, what))?;
    let gone = || refused(Errno::NODEV.into(), what);
    let pair = Pair { port: plan.port.clone(), ifindex: ours.ok_or_else(gone)?.ifindex };
    let done = namespace.inside(|| set_up(plan, namespace.which())).and_then(|result| result);
    match done {
        Ok(()) => Ok(pair),
        Err(error) => {
            let _gone = pair.remove(requests); // what is to be told is why
            Err(error)
        }
    }
}

/// As the kernel has it (dev_valid_name), without what would mean a pattern or another namespace's, or could not be typed.
pub(super) fn is_interface_name(name: &str) -> bool {
    let is_good = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    (1..=15).contains(&name.len()) && name.bytes().all(is_good) && !matches!(name, "." | "..")
}

pub(super) fn pair_message(plan: &VethPlan, namespace: &Namespace) -> LinkMessage {
    // One queue each way, as a port has one; otherwise the kernel makes room for as many as there are CPUs.
    let common = |name: &str| {
        vec![
            LinkAttribute::IfName(name.to_owned()),
            LinkAttribute::Mtu(plan.link.mtu.into()),
            LinkAttribute::NumTxQueues(1),
            LinkAttribute::NumRxQueues(1),
        ]
    };
    let mut theirs = LinkMessage::default();
    theirs.attributes = common(&plan.interface);
    theirs.attributes.push(LinkAttribute::Address(plan.link.mac.0.to_vec()));
    theirs.attributes.push(LinkAttribute::NetNsFd(namespace.raw_fd()));
    let mut ours = LinkMessage::default();
    (ours.header.flags, ours.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    ours.attributes = common(&plan.port);
    ours.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Veth),
        LinkInfo::Data(InfoData::Veth(InfoVeth::Peer(theirs))),
    ]));
    ours
}

fn pair_error(
    error: io::Error,
    requests: &mut Requests,
    plan: &VethPlan,
    namespace: &Namespace,
) -> ContainerError {
    let what = || format!("making the veth {} with {} in {}", plan.port, plan.interface, namespace.which());
    if !is(&error, Errno::EXIST) {
        return refused(error, what);
    }
    match requests.link_named(&plan.port) {
        Ok(Some(_)) => ContainerError::NameTaken { name: plan.port.clone(), namespace: None },
        _ => ContainerError::NameTaken {
            name: plan.interface.clone(),
            namespace: Some(namespace.which().clone()),
        },
    }
}

/// Inside the namespace.
fn set_up(plan: &VethPlan, namespace: &NamespaceRef) -> Result<(), ContainerError> {
    let at = |what: &str| format!("{what} {} in {namespace}", plan.interface);
    let failed = |what: &'static str| move |error| refused(error, || at(what));
    let mut requests = Requests::open().map_err(failed("setting up"))?;
    switch_offloads_off(&plan.interface).map_err(failed("switching off the offloads of"))?;
    let link = requests.link_named(&plan.interface).map_err(failed("finding"))?;
    let ifindex = link.ok_or_else(|| failed("finding")(Errno::NODEV.into()))?.ifindex;
    give(&mut requests, (&plan.interface, &plan.link), link_up(ifindex), None, namespace)
}

/// Brings an interface up.
pub(super) fn link_up(ifindex: u32) -> LinkMessage {
    let mut up = LinkMessage::default();
    up.header.index = ifindex;
    (up.header.flags, up.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    up
}

/// One thing that an interface is given.
#[derive(Clone, Copy, Debug)]
enum Gift {
    Address(IpAddr, u8),
    /// The one that its Ethernet address makes.
    Own(Ipv6Addr),
    /// What is in that request, most often that it is brought up.
    Change,
    Gateway(IpAddr),
}

/// Gives an interface, by a socket of its namespace, its addresses and routes, and what `message` says, such as that it is up: all at once, for one system
/// call.
pub(super) fn give(
    requests: &mut Requests,
    (interface, link): (&str, &Link),
    message: LinkMessage,
    own: Option<Ipv6Addr>,
    namespace: &NamespaceRef,
) -> Result<(), ContainerError> {
    let (ifindex, new) = (message.header.index, NLM_F_CREATE | NLM_F_EXCL);
    let addresses = link.addresses.iter().map(|&(address, prefix)| Gift::Address(address, prefix));
    let gateways = link.gateways.iter().map(|&gateway| Gift::Gateway(gateway));
    let gifts: Vec<Gift> =
        addresses.chain([Gift::Change]).chain(own.map(Gift::Own)).chain(gateways).collect();
    let all = gifts.iter().map(|&gift| match gift {
        Gift::Address(address, prefix) => {
            (RouteNetlinkMessage::NewAddress(address_message(ifindex, address, prefix)), new)
        }
        Gift::Own(address) => {
            // The kernel may have been faster.
            let flags = NLM_F_CREATE | NLM_F_REPLACE;
            (RouteNetlinkMessage::NewAddress(plain_address_message(ifindex, address.into(), 64)), flags)
        }
        Gift::Change => (RouteNetlinkMessage::SetLink(message.clone()), 0),
        Gift::Gateway(gateway) => (RouteNetlinkMessage::NewRoute(default_route(ifindex, gateway)), new),
    });
    requests.change_all(all).map_err(|(which, error)| {
        let gift = gifts.get(which).copied().unwrap_or(Gift::Change);
        gift_error(error, gift, interface, namespace)
    })
}

/// Inside the namespace: an interface that has these addresses gets those. New ones come first, so that it is never without; and at last
/// again: with the first IPv4 address of a prefix the kernel removes the others of that prefix.
pub(super) fn set_addresses(
    interface: &str,
    from: &Link,
    Link { addresses: to, gateways, .. }: &Link,
) -> Result<(), ContainerError> {
    let failed = |error| refused(error, || format!("changing the addresses of {interface}"));
    let mut requests = Requests::open().map_err(failed)?;
    let link = requests.link_named(interface).map_err(failed)?;
    let ifindex = link.ok_or_else(|| failed(Errno::NODEV.into()))?.ifindex;
    let message = |&(address, prefix): &(IpAddr, u8)| address_message(ifindex, address, prefix);
    let give = |requests: &mut Requests| {
        to.iter().try_for_each(|address| {
            let given =
                requests.change(RouteNetlinkMessage::NewAddress(message(address)), NLM_F_CREATE | NLM_F_EXCL);
            given.or_else(|error| if is(&error, Errno::EXIST) { Ok(()) } else { Err(error) })
        })
    };
    give(&mut requests).map_err(failed)?;
    for address in from.addresses.iter().filter(|address| !to.contains(address)) {
        let taken = requests.change(RouteNetlinkMessage::DelAddress(message(address)), 0);
        taken.or_else(|error| if is(&error, Errno::ADDRNOTAVAIL) { Ok(()) } else { Err(failed(error)) })?;
    }
    give(&mut requests).map_err(failed)?;
    // And with an interface's last address all routes over it.
    for &gateway in gateways {
        let message = RouteNetlinkMessage::NewRoute(default_route(ifindex, gateway));
        let given = requests.change(message, NLM_F_CREATE | NLM_F_EXCL);
        given.or_else(|error| if is(&error, Errno::EXIST) { Ok(()) } else { Err(failed(error)) })?;
    }
    Ok(())
}

fn gift_error(error: io::Error, gift: Gift, interface: &str, namespace: &NamespaceRef) -> ContainerError {
    let at = |what: String| format!("{what} {interface} in {namespace}");
    match gift {
        Gift::Address(ip, _) | Gift::Gateway(ip) if ip.is_ipv6() && is_without_ipv6(&error) => {
            ContainerError::NoIpv6 { namespace: namespace.clone() }
        }
        Gift::Gateway(gateway) if is(&error, Errno::EXIST) => {
            ContainerError::HasRoute { namespace: namespace.clone(), gateway }
        }
        Gift::Address(address, prefix) => refused(error, || at(format!("giving {address}/{prefix} to"))),
        Gift::Own(address) => refused(error, || at(format!("giving {address}/64 to"))),
        Gift::Change => refused(error, || at("setting up".into())),
        Gift::Gateway(gateway) => {
            refused(error, || at(format!("setting the default route by {gateway} over")))
        }
    }
}

/// As the kernel gives one: it asks first whether somebody has it, after a moment that is not the same for all.
fn plain_address_message(ifindex: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(address);
    message.header.index = ifindex;
    message.header.prefix_len = prefix;
    message.attributes = vec![AddressAttribute::Local(address), AddressAttribute::Address(address)];
    message
}

fn address_message(ifindex: u32, address: IpAddr, prefix: u8) -> AddressMessage {
    let mut message = plain_address_message(ifindex, address, prefix);
    if address.is_ipv6() {
        // Who gives the addresses out sees to it that there are no two; and it is usable at once.
        message.header.flags = AddressHeaderFlags::Nodad;
        message.attributes.push(AddressAttribute::Flags(AddressFlags::Nodad));
    }
    message
}

fn default_route(ifindex: u32, gateway: IpAddr) -> RouteMessage {
    let mut message = RouteMessage::default();
    message.header.address_family = family(gateway);
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.protocol = RouteProtocol::Static;
    message.header.scope = RouteScope::Universe;
    message.header.kind = RouteType::Unicast;
    message.header.flags = RouteFlags::Onlink;
    let via = match gateway {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    };
    message.attributes = vec![RouteAttribute::Gateway(via), RouteAttribute::Oif(ifindex)];
    message
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

pub(super) fn is(error: &io::Error, errno: Errno) -> bool {
    error.raw_os_error() == Some(errno.raw_os_error())
}

/// The device has IPv6 switched off, or the kernel has none.
fn is_without_ipv6(error: &io::Error) -> bool {
    [Errno::ACCESS, Errno::OPNOTSUPP, Errno::AFNOSUPPORT].into_iter().any(|errno| is(error, errno))
}

pub(super) fn refused(source: io::Error, what: impl FnOnce() -> String) -> ContainerError {
    if is(&source, Errno::PERM) {
        ContainerError::NotPermitted { what: what() }
    } else {
        ContainerError::Refused { what: what(), source }
    }
}
