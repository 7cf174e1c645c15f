//! The two rtnetlink sockets: [`Requests`] asks and gets its answer at once (the kernel answers inside the send),
//! [`Notices`] hears of changes and belongs in the poll set. Nothing here decides anything.

use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_DUMP, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::AddressMessage;
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkMessage};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage};
use netlink_packet_route::route::{RouteAttribute, RouteFlags, RouteMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

use super::decide::Refusal;
use super::facts::{
    self, Affects, HopFact, LinkFact, NeighbourFact, NextHopFact, Presence, RouteFact, VlanFact, VlanTag,
};

/// Larger than any message the kernel builds (NLMSG_GOODSIZE, and 32 KiB for a dump).
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// Answers to older questions that may be in the way of ours.
const STALE_ANSWERS_MAX: usize = 64;
/// Datagrams of a list: each holds some twenty interfaces.
const DUMP_DATAGRAMS_MAX: usize = 4096;
/// Datagrams taken from the notices in one turn, so that a storm of routes does not stop the control thread.
const NOTICES_PER_TURN: usize = 512;
/// Room for notices before the kernel says ENOBUFS.
const NOTICE_BUFFER_BYTES: usize = 1 << 20;

/// Groups that tell of links, neighbours, addresses, routes, rules and next-hop objects (linux/rtnetlink.h).
const GROUPS: &[u32] = &[1, 3, 5, 7, 8, 9, 11, 19, 32];

/// The message inside, if it is one of rtnetlink's that the parser knows.
pub fn parse(bytes: &[u8]) -> Option<RouteNetlinkMessage> {
    match NetlinkMessage::<RouteNetlinkMessage>::deserialize(bytes).ok()?.payload {
        NetlinkPayload::InnerMessage(message) => Some(message),
        _ => None,
    }
}

fn family(address: IpAddr) -> AddressFamily {
    if address.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 }
}

fn prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// Questions to the kernel.
pub struct Requests {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Requests {
    /// Opens the socket.
    pub fn open() -> io::Result<Requests> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_non_blocking(true)?;
        Ok(Requests { socket, sequence: 0, buffer: Vec::with_capacity(MESSAGE_BYTES_MAX) })
    }

    /// The same, for [`exceptions`](Self::exceptions): the kernel then heeds what of a list is asked for (Linux 5.3 and later).
    pub fn open_strict() -> io::Result<Requests> {
        let requests = Requests::open()?;
        requests.socket.set_netlink_get_strict_chk(true)?;
        Ok(requests)
    }

    /// The interface with this number; `None` when there is none.
    pub fn link(&mut self, ifindex: u32) -> io::Result<Option<LinkFact>> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Ok(payload) => facts::link(&payload).map(Some).ok_or_else(|| garbled("interface")),
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// The interface of this name; `None` when there is none.
    pub fn link_named(&mut self, name: &str) -> io::Result<Option<LinkFact>> {
        let link = self.link_payload(name)?;
        link.map(|link| facts::link(&link).ok_or_else(|| garbled("interface"))).transpose()
    }

    /// Number and alias of the interface of this name; `None` when there is none.
    pub fn alias_of(&mut self, name: &str) -> io::Result<Option<(u32, String)>> {
        let link = self.link_payload(name)?;
        Ok(link.and_then(|link| facts::alias(&link)).map(|(ifindex, _, alias)| (ifindex, alias)))
    }

    /// Gives an interface an alias.
    pub fn set_alias(&mut self, ifindex: u32, alias: &str) -> io::Result<()> {
        let mut message = LinkMessage::default();
        message.header.index = ifindex;
        message.attributes = vec![LinkAttribute::IfAlias(alias.to_owned())];
        self.change(RouteNetlinkMessage::SetLink(message), 0)
    }

    /// Number, name and alias of all interfaces that have one.
    pub fn aliases(&mut self) -> io::Result<Vec<(u32, String, String)>> {
        let mut all = Vec::new();
        self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |link| {
            all.extend(facts::alias(link).filter(|(_, _, alias)| !alias.is_empty()));
        })?;
        Ok(all)
    }

    /// The numbers of all interfaces.
    pub fn ifindexes(&mut self) -> io::Result<std::collections::HashSet<u32>> {
        let mut all = std::collections::HashSet::new();
        self.dump(RouteNetlinkMessage::GetLink(LinkMessage::default()), |link| {
            all.extend(facts::alias(link).map(|(ifindex, ..)| ifindex));
        })?;
        Ok(all)
    }

    /// The number of the interface that the one of this name is joined to: of a veth the other end.
    pub fn below_of(&mut self, name: &str) -> io::Result<Option<u32>> {
        Ok(self.link_payload(name)?.and_then(|link| facts::below(&link)))
    }

    fn link_payload(&mut self, name: &str) -> io::Result<Option<Vec<u8>>> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.to_owned())];
        match self.ask(RouteNetlinkMessage::GetLink(message), 0) {
            Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
            payload => payload.map(Some),
        }
    }

    /// Makes the kernel change something.
    pub fn change(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        self.ask(message, flags | NLM_F_ACK).map(drop)
    }

    /// Makes the kernel change several things, one after the other, for one system call.
    ///
    /// # Errors
    /// Which was refused first, counted from 0, and why. Those after it may have been done. Of more than some 100 that are refused the
    /// answers may not fit into the socket.
    pub fn change_all(
        &mut self,
        messages: impl IntoIterator<Item = (RouteNetlinkMessage, u16)>,
    ) -> Result<(), (usize, io::Error)> {
        let mut messages = messages.into_iter().peekable();
        let (mut bytes, first) = (Vec::new(), self.sequence.wrapping_add(1));
        while let Some((message, flags)) = messages.next() {
            // What goes well is not answered, but for the last; what is refused is answered in any case.
            let flags = if messages.peek().is_none() { flags | NLM_F_ACK } else { flags };
            self.append(message, flags, &mut bytes);
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.socket.send(&bytes, 0).map_err(|error| (0, error))?;
        self.answers(first)
    }

    /// The answers to the requests from number `first` to the last.
    fn answers(&mut self, first: u32) -> Result<(), (usize, io::Error)> {
        let (last, mut result) = (self.sequence.wrapping_sub(first) as usize, Ok(()));
        for _ in 0..=last + STALE_ANSWERS_MAX {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => {}
                // All that there was; some were lost.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    return result.and(Err((last, error)));
                }
                Err(error) => {
                    result = result.and(Err((last, error)));
                    continue;
                }
            }
            let answer =
                NetlinkBuffer::new_checked(&self.buffer[..]).map_err(|_| (last, garbled("message")))?;
            let which = answer.sequence_number().wrapping_sub(first) as usize;
            if which > last || answer.message_type() != NLMSG_ERROR {
                continue; // to an older question
            }
            if let (Some(error), Ok(())) = (refusal(answer.payload()), &result) {
                result = Err((which, error));
            }
            if which == last {
                return result;
            }
        }
        Err((last, garbled("sequence of answers")))
    }

    /// The device of this VLAN on an interface, or of the other kind with the same number; `None` when there is neither.
    pub fn vlan_device(&mut self, vlan: VlanFact) -> io::Result<Option<LinkFact>> {
        let mut message = LinkMessage::default();
        // Kernels that have VLAN devices leave the others out.
        message.attributes = vec![LinkAttribute::LinkInfo(vec![LinkInfo::Kind(InfoKind::Vlan)])];
        let other = match vlan.tag {
            VlanTag::Customer => VlanFact { tag: VlanTag::Service, ..vlan },
            VlanTag::Service => VlanFact { tag: VlanTag::Customer, ..vlan },
        };
        let (mut found, mut unlike) = (None, None);
        self.dump(RouteNetlinkMessage::GetLink(message), |link| match facts::link(link) {
            Some(link) if link.vlan == Some(vlan) => found = Some(link),
            Some(link) if link.vlan == Some(other) => unlike = Some(link),
            _ => {}
        })?;
        Ok(found.or(unlike))
    }

    /// The whole route to `remote`, from `local` or from whatever address the kernel takes.
    pub fn route(&mut self, local: Option<IpAddr>, remote: IpAddr) -> io::Result<RouteFact> {
        let message = self.route_message(local, remote, None, RouteFlags::FibMatch)?;
        match (facts::route(&message), facts::next_hop_object(&message)) {
            // So it is where the kernel tells the object's number only (`net.ipv4.nexthop_compat_mode = 0`).
            (RouteFact::Unicast { hops, mtu }, Some(id)) if hops.is_empty() => {
                Ok(RouteFact::Unicast { hops: self.next_hops(id)?, mtu })
            }
            (fact, _) => Ok(fact),
        }
    }

    /// The next hops of a next-hop object: itself, or those of its group. None where it is gone: a notice follows.
    fn next_hops(&mut self, id: u32) -> io::Result<Vec<HopFact>> {
        let members = match self.next_hop(id)? {
            Some(NextHopFact::Hop(hop)) => return Ok(vec![hop]),
            Some(NextHopFact::Group(members)) => members,
            None => return Ok(Vec::new()),
        };
        let mut hops = Vec::new();
        for (id, weight) in members {
            if let Some(NextHopFact::Hop(hop)) = self.next_hop(id)? {
                hops.push(HopFact { weight, ..hop });
            }
        }
        Ok(hops)
    }

    /// The next-hop object with this number; `None` when there is none, or packets are not to go there.
    fn next_hop(&mut self, id: u32) -> io::Result<Option<NextHopFact>> {
        self.send_bytes(facts::next_hop_question(id), RTM_GETNEXTHOP)?;
        match self.answer() {
            Ok(payload) => Ok(facts::next_hop(&payload)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// What the kernel would do with a packet from `local` to `remote` that is to leave by this interface. Knows what ICMP said about
    /// this remote, which [`route`](Self::route) does not.
    pub fn route_over(&mut self, ifindex: u32, local: IpAddr, remote: IpAddr) -> io::Result<RouteFact> {
        let message = self.route_message(Some(local), remote, Some(ifindex), RouteFlags::empty())?;
        Ok(facts::route(&message))
    }

    /// Visits interface, remote and MTU of each path MTU that ICMP taught the kernel over IPv6.
    pub fn exceptions(&mut self, mut visit: impl FnMut(u32, IpAddr, u32)) -> io::Result<()> {
        let mut message = RouteMessage::default();
        message.header.address_family = AddressFamily::Inet6;
        message.header.flags = RouteFlags::Cloned;
        self.dump(RouteNetlinkMessage::GetRoute(message), |payload| {
            if let Some((ifindex, remote, mtu)) = facts::exception(payload) {
                visit(ifindex, remote, mtu);
            }
        })
    }

    /// Whether this host has the address, and may send from it.
    ///
    /// # Errors
    /// The kernel gave no answer, which says nothing about the address.
    pub fn presence(&mut self, address: IpAddr) -> io::Result<Presence> {
        // Nothing is detected over IPv4: the list, which may be long, need not be read.
        if address.is_ipv4() && self.is_local(address)? {
            return Ok(Presence::Usable);
        }
        // A rule may come before the local table,
        match self.presence_in_list(address)? {
            // and a whole prefix can be local, without addresses.
            Presence::Absent if self.is_local(address)? => Ok(Presence::Usable),
            found => Ok(found),
        }
    }

    fn is_local(&mut self, address: IpAddr) -> io::Result<bool> {
        match self.route(None, address) {
            Err(e) if matches!(Refusal::from(&e), Refusal::Other(_)) => Err(e),
            found => Ok(matches!(found, Ok(RouteFact::Local))),
        }
    }

    fn presence_in_list(&mut self, address: IpAddr) -> io::Result<Presence> {
        let mut message = AddressMessage::default();
        message.header.family = family(address);
        let mut best = Presence::Absent;
        self.dump(RouteNetlinkMessage::GetAddress(message), |payload| {
            best = best.max(facts::presence(payload, address));
        })?;
        Ok(best)
    }

    fn route_message(
        &mut self,
        source: Option<IpAddr>,
        destination: IpAddr,
        ifindex: Option<u32>,
        flags: RouteFlags,
    ) -> io::Result<RouteMessage> {
        let mut message = RouteMessage::default();
        message.header.address_family = family(destination);
        message.header.destination_prefix_length = prefix(destination);
        message.header.flags = flags;
        message.attributes = vec![RouteAttribute::Destination(destination.into())];
        if let Some(source) = source {
            message.header.source_prefix_length = prefix(source);
            message.attributes.push(RouteAttribute::Source(source.into()));
        }
        message.attributes.extend(ifindex.map(RouteAttribute::Oif));
        self.ask(RouteNetlinkMessage::GetRoute(message), 0)?;
        match parse(&self.buffer) {
            Some(RouteNetlinkMessage::NewRoute(message)) => Ok(message),
            _ => Err(garbled("route")),
        }
    }

    /// The neighbour entry for `address` on an interface; `None` when there is none.
    pub fn neighbour(&mut self, ifindex: u32, address: IpAddr) -> io::Result<Option<NeighbourFact>> {
        let message = neighbour_message(ifindex, address, NeighbourFlags::empty());
        match self.ask(RouteNetlinkMessage::GetNeighbour(message), 0) {
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(e),
        }
        match parse(&self.buffer) {
            Some(RouteNetlinkMessage::NewNeighbour(message)) => Ok(Some(facts::neighbour(&message))),
            _ => Err(garbled("neighbour")),
        }
    }

    /// Makes the kernel act as if it had a packet for `address`: it resolves what is unknown and probes what is
    /// stale. Not for permanent entries, which this would make temporary.
    pub fn use_neighbour(&mut self, ifindex: u32, address: IpAddr) -> io::Result<()> {
        let message = neighbour_message(ifindex, address, NeighbourFlags::Use);
        self.change(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)
    }

    /// Sends a request and returns the payload of its answer; the whole message stays in `self.buffer`.
    fn ask(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<Vec<u8>> {
        self.send(message, flags)?;
        self.answer()
    }

    fn answer(&mut self) -> io::Result<Vec<u8>> {
        for _ in 0..STALE_ANSWERS_MAX {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let answer = NetlinkBuffer::new_checked(&self.buffer[..]).map_err(|_| garbled("message"))?;
            if answer.sequence_number() != self.sequence {
                continue;
            }
            let payload = answer.payload().to_vec();
            if answer.message_type() == NLMSG_ERROR {
                return refusal(&payload).map_or(Ok(payload), Err);
            }
            return Ok(payload);
        }
        Err(garbled("sequence of answers"))
    }

    /// Sends a request for a list and visits the payload of each of its messages.
    fn dump(&mut self, message: RouteNetlinkMessage, mut visit: impl FnMut(&[u8])) -> io::Result<()> {
        self.send(message, NLM_F_DUMP)?;
        let sequence = self.sequence;
        for _ in 0..DUMP_DATAGRAMS_MAX {
            self.buffer.clear();
            self.socket.recv(&mut self.buffer, 0)?;
            let mut end = None;
            each_message(&self.buffer, |bytes| {
                let Ok(message) = NetlinkBuffer::new_checked(bytes) else { return };
                match message.message_type() {
                    _ if message.sequence_number() != sequence => {}
                    NLMSG_DONE => end = Some(Ok(())),
                    NLMSG_ERROR => {
                        end = Some(Err(refusal(message.payload()).unwrap_or_else(|| garbled("list"))))
                    }
                    _ => visit(message.payload()),
                }
            });
            if let Some(result) = end {
                return result;
            }
        }
        Err(garbled("list"))
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<()> {
        let mut bytes = Vec::new();
        self.append(message, flags, &mut bytes);
        self.socket.send(&bytes, 0).map(|_| ())
    }

    /// Writes a request behind others.
    fn append(&mut self, message: RouteNetlinkMessage, flags: u16, bytes: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message));
        message.finalize();
        let start = bytes.len().next_multiple_of(4);
        bytes.resize(start + message.buffer_len(), 0);
        if let Some(place) = bytes.get_mut(start..) {
            message.serialize(place);
        }
    }

    /// Sends a request that the crate has no type for.
    fn send_bytes(&mut self, payload: Vec<u8>, kind: u16) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let length = u32::try_from(NLMSG_HEADER_BYTES + payload.len()).map_err(io::Error::other)?;
        let mut bytes = Vec::from(length.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(NLM_F_REQUEST.to_ne_bytes());
        bytes.extend(self.sequence.to_ne_bytes());
        bytes.extend([0; 4]); // our port: the socket has one
        bytes.extend(payload);
        self.socket.send(&bytes, 0).map(|_| ())
    }
}

const NLMSG_HEADER_BYTES: usize = 16;
/// From linux/rtnetlink.h.
const RTM_GETNEXTHOP: u16 = 106;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;

/// The error of an NLMSG_ERROR; `None` when it is the acknowledgement.
fn refusal(payload: &[u8]) -> Option<io::Error> {
    let code = payload.get(..4).and_then(|b| b.try_into().ok()).map_or(-1, i32::from_ne_bytes);
    (code != 0).then(|| io::Error::from_raw_os_error(code.wrapping_neg()))
}

fn neighbour_message(ifindex: u32, address: IpAddr, flags: NeighbourFlags) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(address);
    message.header.ifindex = ifindex;
    message.header.flags = flags;
    message.attributes = vec![NeighbourAttribute::Destination(address.into())];
    message
}

fn garbled(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("the kernel's answer ({what}) was not understood"))
}

impl std::fmt::Debug for Requests {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Requests").field("sequence", &self.sequence).finish_non_exhaustive()
    }
}

/// What one turn of listening found.
#[derive(Debug, PartialEq, Eq)]
pub enum Heard {
    /// Nothing more to read.
    All,
    /// There is more: come back without waiting for the poll.
    More,
    /// The kernel could not keep up with telling us: everything must be read again.
    Overrun,
}

/// Changes, as the kernel tells of them.
pub struct Notices {
    socket: Socket,
    buffer: Vec<u8>,
}

impl Notices {
    /// Opens the socket and joins the groups.
    pub fn open() -> io::Result<Notices> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind_auto()?;
        socket.set_non_blocking(true)?;
        socket.set_rx_buf_sz(NOTICE_BUFFER_BYTES as i32)?;
        for &group in GROUPS {
            socket.add_membership(group)?;
        }
        Ok(Notices { socket, buffer: Vec::with_capacity(MESSAGE_BYTES_MAX) })
    }

    /// For the poll set.
    pub fn raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }

    /// Reads what is there, up to a bound, and says of each message what it changes for uplinks on these interfaces.
    pub fn read(&mut self, ifindexes: &[u32], mut changed: impl FnMut(Affects)) -> io::Result<Heard> {
        for _ in 0..NOTICES_PER_TURN {
            self.buffer.clear();
            match self.socket.recv(&mut self.buffer, 0) {
                Ok(_) => each_message(&self.buffer, |message| changed(facts::affects(message, ifindexes))),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(Heard::All),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) if e.raw_os_error() == Some(rustix::io::Errno::NOBUFS.raw_os_error()) => {
                    return Ok(Heard::Overrun);
                }
                Err(e) => return Err(e),
            }
        }
        Ok(Heard::More)
    }
}

impl std::fmt::Debug for Notices {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Notices").field("fd", &self.raw_fd()).finish_non_exhaustive()
    }
}

/// Cuts a datagram into its messages.
fn each_message(mut bytes: &[u8], mut visit: impl FnMut(&[u8])) {
    while let Ok(message) = NetlinkBuffer::new_checked(bytes) {
        let length = message.length() as usize;
        let Some(one) = bytes.get(..length) else { return };
        visit(one);
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_datagram_is_cut_into_its_messages() {
        let mut bytes = Vec::new();
        for len in [17u32, 16, 20] {
            bytes.extend(len.to_ne_bytes());
            bytes.resize(bytes.len() + (len as usize).next_multiple_of(4) - 4, 0);
        }
        let mut seen = Vec::new();
        each_message(&bytes, |m| seen.push(m.len()));
        assert_eq!(seen, [17, 16, 20]);
        for len in 0..bytes.len() {
            each_message(&bytes[..len], |m| assert!(m.len() >= 16));
        }
        each_message(&[4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], |_| {
            panic!("shorter than its header")
        });
    }

    #[test]
    fn an_acknowledgement_is_no_refusal() {
        assert!(refusal(&[0; 20]).is_none());
        assert_eq!(refusal(&(-2i32).to_ne_bytes()).unwrap().kind(), io::ErrorKind::NotFound);
        assert!(refusal(&[]).is_some() && refusal(&i32::MIN.to_ne_bytes()).is_some());
    }
}
