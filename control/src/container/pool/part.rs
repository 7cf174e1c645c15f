//! One part: how it is made, what it is given when it is taken, and how many are removed at once.

use std::fs::File;
use std::hash::{BuildHasher, Hasher};
use std::io::{self, Write};
use std::net::Ipv6Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use peregrine_dataplane::plan::NamespaceRef;
use peregrine_dataplane::types::MacAddr;
use peregrine_dataplane::xsk::{PortConfig, Ports, XskPort, switch_offloads_off};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::names::{self, Names};
use super::{PartPlan, PoolConfig, Taken};
use crate::container::namespace::Namespace;
use crate::container::pair::{self, Link, Pair, VethPlan, is, refused};
use crate::container::{ContainerError, remover};
use crate::underlay::netlink::Requests;

/// This thread's network namespace.
const HERE: &str = "/proc/thread-self/ns/net";
/// Until it is taken.
const NO_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 0]);
/// The number of `lo` in each namespace.
const LOOPBACK: u32 = 1;
/// With a smaller MTU an interface has no IPv6 (RFC 8200, section 5).
const IPV6_MTU_MIN: u16 = 1280;
/// Names that are tried: others may have some that look like ours.
const NAMES_TRIED: u32 = 64;

/// A part that nobody has yet. Nothing outside this process holds its namespace: if this is dropped, or the process killed, the kernel takes all of it away.
#[derive(Debug)]
pub(super) struct Part {
    namespace: Namespace,
    inode: u64,
    /// Inside the namespace.
    requests: Requests,
    /// The container's end.
    interface: String,
    ifindex: u32,
    pair: Pair,
    port: XskPort,
    pub(super) mtu: u16,
    /// The container's end is up, without an address.
    is_up: bool,
    mark: File,
}

/// What ends.
#[derive(Debug)]
pub(super) enum Ending {
    /// Nobody had it, or it could not be given all that was asked for.
    Untaken(Box<Part>),
    Taken(Taken),
    /// Of somebody before us, and no name is left of it.
    Nameless(Pair),
}

/// What parts are made by.
#[derive(Debug)]
pub(super) struct Maker {
    pub(super) names: Names,
    ports: Arc<Mutex<Ports>>,
    config: PortConfig,
    interface: String,
    alias: String,
    /// Where our ends are to be.
    home: OwnedFd,
    next: AtomicU32,
}

impl Maker {
    /// Our ends will be in this thread's namespace.
    pub(super) fn new(
        names: Names,
        ports: Arc<Mutex<Ports>>,
        PoolConfig { interface, alias, port, .. }: &PoolConfig,
    ) -> Result<Maker, ContainerError> {
        if !pair::is_interface_name(interface) {
            return Err(ContainerError::BadName { name: interface.clone() });
        }
        let home = rustix::fs::open(HERE, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        let home = home.map_err(|error| refused(error.into(), || format!("opening {HERE}")))?;
        let first = std::hash::RandomState::new().build_hasher().finish() as u32;
        let (config, interface, alias) = (*port, interface.clone(), alias.clone());
        Ok(Maker { names, ports, config, interface, alias, home, next: AtomicU32::new(first) })
    }

    /// Opens our end again as a port.
    pub(super) fn open(&self, pair: &Pair) -> Result<XskPort, ContainerError> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.open(&pair.port, &self.config).map_err(ContainerError::from)
    }

    /// Makes a part on a thread of its own, as the caller's stays where it is.
    pub(super) fn make_aside(&self, mtu: u16) -> Result<Part, ContainerError> {
        let failed = |error| refused(error, || "making a container's part".into());
        let make = || self.make(&mut Requests::open().map_err(failed)?, mtu);
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new().name("pool-part".into()).spawn_scoped(scope, make);
            let thread = thread.map_err(failed)?;
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Makes a part. The thread goes to the new namespace, and comes back. `host` is a socket at home.
    pub(super) fn make(&self, host: &mut Requests, mtu: u16) -> Result<Part, ContainerError> {
        let made = self.make_far_away(host, mtu);
        // In any case.
        move_into_link_name_space(self.home.as_fd(), Some(LinkNameSpaceType::Network))
            .map_err(|error| refused(error.into(), || "coming back from a new network namespace".into()))?;
        let (namespace, inode, requests, (ifindex, is_up), pair) = made?;
        match self.names.mark(inode, &pair).and_then(|mark| Ok((mark, self.open(&pair)?))) {
            Ok((mark, port)) => {
                let interface = self.interface.clone();
                Ok(Part { namespace, inode, requests, interface, ifindex, pair, port, mtu, is_up, mark })
            }
            Err(error) => {
                let _gone = pair.remove(host); // what is to be told is why
                self.names.unmark(&pair);
                Err(error)
            }
        }
    }

    /// In the new namespace all but the port.
    #[allow(clippy::type_complexity, reason = "the parts of a part")]
    fn make_far_away(
        &self,
        host: &mut Requests,
        mtu: u16,
    ) -> Result<(Namespace, u64, Requests, (u32, bool), Pair), ContainerError> {
        new_namespace()?;
        let namespace = Namespace::open(&NamespaceRef::Path(HERE.into()))?;
        let failed = |what: &'static str| move |error: io::Error| refused(error, || what.into());
        let inode = namespace.inode().map_err(failed("looking at a new network namespace"))?;
        let mut requests = Requests::open().map_err(failed("entering a new network namespace"))?;
        let pair = self.make_pair(host, mtu, &namespace)?;
        let set_up = |requests: &mut Requests| {
            switch_offloads_off(&self.interface)?;
            let link = requests.link_named(&self.interface)?.ok_or(Errno::NODEV)?;
            let is_up = makes_common_addresses(&self.interface);
            let quiet = address_generation(link.ifindex, In6AddrGenMode::None);
            let early = [quiet, pair::link_up(link.ifindex)].into_iter().filter(|_| is_up);
            let all = early.chain([pair::link_up(LOOPBACK)]);
            let all = all.map(|message| (RouteNetlinkMessage::SetLink(message), 0));
            requests.change_all(all).map_err(|(_, error)| error)?;
            Ok((link.ifindex, is_up))
        };
        match set_up(&mut requests) {
            Ok(end) => Ok((namespace, inode, requests, end, pair)),
            Err(error) => {
                let _gone = pair.remove(host);
                Err(failed("setting up a new network namespace")(error))
            }
        }
    }

    fn make_pair(
        &self,
        host: &mut Requests,
        mtu: u16,
        namespace: &Namespace,
    ) -> Result<Pair, ContainerError> {
        let process = std::process::id();
        let mut tries = 0;
        loop {
            let number = self.next.fetch_add(1, Ordering::Relaxed) & 0xff_ffff; // all of it: 15 bytes
            let port = format!("pp{process:x}-{number:x}");
            let plan = VethPlan {
                port: port.clone(),
                interface: self.interface.clone(),
                link: Link { mac: NO_MAC, mtu, addresses: Vec::new(), gateways: Vec::new() },
            };
            tries += 1;
            let what = || format!("making the veth {port}");
            let message = RouteNetlinkMessage::NewLink(pair::pair_message(&plan, namespace));
            match host.change(message, NLM_F_CREATE | NLM_F_EXCL) {
                Err(error) if is(&error, Errno::EXIST) && tries < NAMES_TRIED => continue,
                made => made.map_err(|error| refused(error, what))?,
            }
            let link = host.link_named(&port).and_then(|link| link.ok_or_else(|| Errno::NODEV.into()));
            let ifindex = link.map_err(|error| refused(error, what))?.ifindex;
            let pair = Pair { port: port.clone(), ifindex };
            return match host.set_alias(ifindex, &self.alias) {
                Ok(()) => Ok(pair),
                Err(error) => {
                    let _gone = pair.remove(host);
                    Err(refused(error, what))
                }
            };
        }
    }
}

#[allow(deprecated, reason = "what is wrong with it is wrong with FILES only")]
fn new_namespace() -> Result<(), ContainerError> {
    rustix::thread::unshare(UnshareFlags::NEWNET)
        .map_err(|error| refused(error.into(), || "making a network namespace".into()))
}

impl Part {
    /// Gives it what the plan says, and its name last.
    pub(super) fn give(
        mut self,
        plan: &PartPlan,
        names: &Names,
    ) -> Result<(Taken, XskPort), (ContainerError, Box<Part>)> {
        let written = self.mark.write_all(plan.mark.as_bytes());
        let written = written.map_err(|error| refused(error, || format!("marking {}", self.pair.port)));
        let given = written.and_then(|()| self.set_up(plan));
        match given.and_then(|()| names.give(&plan.namespace, &self.namespace)) {
            Ok(()) => {
                let Part { inode, pair, port, .. } = self;
                let (namespace, mark) = (plan.namespace.clone(), plan.mark.clone());
                Ok((Taken { namespace, inode, pair, mark }, port))
            }
            Err(error) => Err((error, Box::new(self))),
        }
    }

    /// By one system call, unless its interface is to be called otherwise. Our end stays as it is: its MTU may be larger, the kernel holds packets against that of the end that they go to.
    fn set_up(&mut self, plan: &PartPlan) -> Result<(), ContainerError> {
        let which = names::which(&plan.namespace);
        let (mut theirs, mut own) = (pair::link_up(self.ifindex), None);
        if self.is_up && plan.interface.is_some() {
            // One that is up keeps its name, before Linux 6.2.
            let mut down = address_generation(self.ifindex, In6AddrGenMode::Eui64);
            down.header.change_mask = LinkFlags::Up;
            let what = || format!("taking down {} in {which}", self.interface);
            let done = self.requests.change(RouteNetlinkMessage::SetLink(down), 0);
            done.map_err(|error| refused(error, what))?;
        } else if self.is_up && plan.link.mtu < IPV6_MTU_MIN {
            // The kernel takes its IPv6 away, and all that is said about that.
            theirs = LinkMessage::default();
            theirs.header.index = self.ifindex;
        } else if self.is_up {
            theirs = address_generation(self.ifindex, In6AddrGenMode::Eui64);
            let its = link_local(plan.link.mac);
            own = (!plan.link.addresses.iter().any(|(address, _)| *address == its)).then_some(its);
        }
        theirs.attributes.push(LinkAttribute::Address(plan.link.mac.0.to_vec()));
        if plan.link.mtu != self.mtu {
            theirs.attributes.push(LinkAttribute::Mtu(plan.link.mtu.into()));
        }
        theirs.attributes.extend(plan.interface.clone().map(LinkAttribute::IfName));
        let interface = plan.interface.as_ref().unwrap_or(&self.interface);
        pair::give(&mut self.requests, (interface, &plan.link), theirs, own, &which)
    }
}

/// Whether an interface of this thread's namespace gets the one IPv6 address that its Ethernet address makes as soon as it is up, as is usual.
/// Then it can be brought up before it has its Ethernet address, and be given that address with it. The kernel holds its lock on network devices
/// for what follows when one comes up, twice as long as for all else that a container is given.
fn makes_common_addresses(interface: &str) -> bool {
    let is_zero = |what: &str| {
        let text = std::fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{interface}/{what}"));
        text.is_ok_and(|text| text.trim() == "0")
    };
    is_zero("disable_ipv6") && is_zero("addr_gen_mode")
}

/// What says which IPv6 address an interface makes when it comes up; nothing is made by it.
fn address_generation(ifindex: u32, mode: In6AddrGenMode) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = ifindex;
    let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
    message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![inet6])];
    message
}

/// The address that an Ethernet address makes (RFC 4291, appendix A).
fn link_local(MacAddr([a, b, c, d, e, f]): MacAddr) -> Ipv6Addr {
    let tail = [a ^ 2, b, c, 0xff, 0xfe, d, e, f];
    Ipv6Addr::from_bits((0xfe80 << 112) | u128::from(u64::from_be_bytes(tail)))
}

/// Removes what has ended, all devices at once: the kernel waits as long for many as for one. Where something is refused, the rest is done all the same.
pub(super) fn remove(all: Vec<Ending>, host: &mut Requests, names: &Names) -> Result<(), ContainerError> {
    let (mut pairs, mut result) = (Vec::with_capacity(all.len()), Ok(()));
    for ending in all {
        match ending {
            Ending::Untaken(part) => pairs.push(part.pair),
            Ending::Taken(taken) => {
                // Where it is gone, the name may be somebody else's.
                if taken.pair.is_still(host) {
                    result = result.and(names.remove(&taken.namespace, taken.inode));
                    pairs.push(taken.pair);
                } else {
                    names.unmark(&taken.pair);
                }
            }
            Ending::Nameless(pair) if pair.is_still(host) => pairs.push(pair),
            Ending::Nameless(pair) => names.unmark(&pair),
        }
    }
    remover::remove(host, &pairs);
    pairs.iter().for_each(|pair| names.unmark(pair));
    result
}
