//! Requests of rtnetlink that make a container's network: built here, sent one by one with an answer each, or many in one.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use netlink_packet_core::{
    NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NetlinkMessage,
    NetlinkPayload,
};
use netlink_packet_route::address::{AddressAttribute, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoVeth, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteProtocol, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};

/// What is sent at once: below what a socket's buffer holds as the kernel makes it.
const BATCH_BYTES: usize = 96 * 1024;
/// More than any answer.
const ANSWER_BYTES: usize = 64 * 1024;
/// From linux/netlink.h.
const NLMSG_ERROR: u16 = 2;

/// A request, and the flags that it has besides those of all.
#[derive(Clone, Debug)]
pub struct Request(RouteNetlinkMessage, u16);

const NEW: u16 = NLM_F_CREATE | NLM_F_EXCL;

/// One end of a veth pair.
#[derive(Clone, Copy, Debug)]
pub struct End<'a> {
    pub name: &'a str,
    pub mac: [u8; 6],
    pub mtu: u32,
    /// In this namespace; where the request is made, if none is given.
    pub namespace: Option<RawFd>,
    /// In this bridge.
    pub bridge: Option<u32>,
    /// With this number; whichever is free, if 0.
    pub index: u32,
    pub is_up: bool,
}

impl End<'_> {
    fn message(&self) -> LinkMessage {
        let mut message = LinkMessage::default();
        message.header.index = self.index;
        if self.is_up {
            (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
        }
        message.attributes = vec![
            LinkAttribute::IfName(self.name.into()),
            LinkAttribute::Address(self.mac.into()),
            LinkAttribute::Mtu(self.mtu),
        ];
        message.attributes.extend(self.namespace.map(LinkAttribute::NetNsFd));
        message.attributes.extend(self.bridge.map(LinkAttribute::Controller));
        message
    }
}

/// A pair of devices.
pub fn veth(one: &End<'_>, other: &End<'_>) -> Request {
    let mut message = one.message();
    let peer = InfoData::Veth(InfoVeth::Peer(other.message()));
    let info = vec![LinkInfo::Kind(InfoKind::Veth), LinkInfo::Data(peer)];
    message.attributes.push(LinkAttribute::LinkInfo(info));
    Request(RouteNetlinkMessage::NewLink(message), NEW)
}

/// Changes a device.
fn set(index: u32, attributes: Vec<LinkAttribute>) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.attributes = attributes;
    Request(RouteNetlinkMessage::SetLink(message), 0)
}

/// Moves a device to a namespace, with another name.
pub fn move_to(index: u32, namespace: RawFd, name: &str) -> Request {
    set(index, vec![LinkAttribute::NetNsFd(namespace), LinkAttribute::IfName(name.into())])
}

/// Puts a device into a bridge.
pub fn enslave(index: u32, bridge: u32) -> Request {
    set(index, vec![LinkAttribute::Controller(bridge)])
}

pub fn up(index: u32) -> Request {
    let mut message = LinkMessage::default();
    message.header.index = index;
    (message.header.flags, message.header.change_mask) = (LinkFlags::Up, LinkFlags::Up);
    Request(RouteNetlinkMessage::SetLink(message), 0)
}

pub fn address(index: u32, ip: Ipv4Addr, prefix: u8) -> Request {
    let mut message = AddressMessage::default();
    message.header.family = AddressFamily::Inet;
    (message.header.prefix_len, message.header.index) = (prefix, index);
    message.attributes = vec![AddressAttribute::Local(ip.into()), AddressAttribute::Address(ip.into())];
    Request(RouteNetlinkMessage::NewAddress(message), NEW)
}

pub fn default_route(index: u32, gateway: Ipv4Addr) -> Request {
    let mut message = RouteMessage::default();
    message.header.address_family = AddressFamily::Inet;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    (message.header.protocol, message.header.kind) = (RouteProtocol::Boot, RouteType::Unicast);
    message.attributes = vec![RouteAttribute::Gateway(gateway.into()), RouteAttribute::Oif(index)];
    Request(RouteNetlinkMessage::NewRoute(message), NEW)
}

/// The bridge knows that an address is behind a port.
pub fn known_behind(index: u32, mac: [u8; 6]) -> Request {
    let mut message = NeighbourMessage::default();
    (message.header.family, message.header.ifindex) = (AddressFamily::Bridge, index);
    (message.header.state, message.header.flags) = (NeighbourState::Noarp, NeighbourFlags::Controller);
    message.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac.into())];
    Request(RouteNetlinkMessage::NewNeighbour(message), NLM_F_CREATE)
}

/// A socket; it stays in the namespace in which it was opened.
pub struct Netlink {
    socket: Socket,
    sequence: u32,
    answer: Vec<u8>,
}

impl Netlink {
    pub fn open() -> Result<Netlink, String> {
        let open = || -> io::Result<Socket> {
            let mut socket = Socket::new(NETLINK_ROUTE)?;
            socket.bind_auto()?;
            socket.connect(&SocketAddr::new(0, 0))?;
            Ok(socket)
        };
        let socket = open().map_err(|error| format!("cannot open a netlink socket: {error}"))?;
        Ok(Netlink { socket, sequence: 0, answer: Vec::with_capacity(ANSWER_BYTES) })
    }

    /// Sends one and waits for its answer.
    pub fn ask(&mut self, request: &Request) -> Result<(), String> {
        self.batch(std::slice::from_ref(request))
    }

    /// Sends all in as few messages as they fit, and waits for the answers.
    pub fn batch(&mut self, requests: &[Request]) -> Result<(), String> {
        let (mut bytes, mut left) = (Vec::new(), requests.len());
        for request in requests {
            left -= 1;
            let is_last = left == 0 || bytes.len() > BATCH_BYTES;
            // Only the last is answered if all goes well; what fails is answered in any case.
            self.append(request, if is_last { NLM_F_ACK } else { 0 }, &mut bytes);
            if is_last {
                self.socket.send(&bytes, 0).map_err(|error| format!("netlink: {error}"))?;
                bytes.clear();
                self.wait(&request.0)?;
            }
        }
        Ok(())
    }

    /// The number of a device.
    pub fn index_of(&mut self, name: &str) -> Result<u32, String> {
        let mut message = LinkMessage::default();
        message.attributes = vec![LinkAttribute::IfName(name.into())];
        let mut bytes = Vec::new();
        self.append(&Request(RouteNetlinkMessage::GetLink(message), 0), 0, &mut bytes);
        self.socket.send(&bytes, 0).map_err(|error| format!("netlink: {error}"))?;
        self.answer.clear();
        self.socket.recv(&mut self.answer, 0).map_err(|error| format!("netlink: {error}"))?;
        match NetlinkMessage::<RouteNetlinkMessage>::deserialize(&self.answer).map(|message| message.payload)
        {
            Ok(NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewLink(link))) => Ok(link.header.index),
            Ok(NetlinkPayload::Error(error)) => Err(format!("no device {name}: {error}")),
            _ => Err(format!("the kernel's answer about the device {name} was not understood")),
        }
    }

    fn append(&mut self, Request(message, flags): &Request, more: u16, bytes: &mut Vec<u8>) {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags | more;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::from(message.clone()));
        message.finalize();
        let start = bytes.len().next_multiple_of(4);
        bytes.resize(start + message.buffer_len(), 0);
        if let Some(place) = bytes.get_mut(start..) {
            message.serialize(place);
        }
    }

    /// Until the answer to the last request.
    fn wait(&mut self, last: &RouteNetlinkMessage) -> Result<(), String> {
        loop {
            self.answer.clear();
            self.socket.recv(&mut self.answer, 0).map_err(|error| format!("netlink: {error}"))?;
            let answer = NetlinkBuffer::new_checked(&self.answer[..]);
            let answer = answer.map_err(|_| "the kernel's answer was not understood")?;
            let code = answer.payload().get(..4).and_then(|bytes| bytes.try_into().ok());
            match code.map(i32::from_ne_bytes) {
                Some(0) if answer.sequence_number() == self.sequence => return Ok(()),
                Some(code) if answer.message_type() == NLMSG_ERROR && code != 0 => {
                    let error = io::Error::from_raw_os_error(code.wrapping_neg());
                    let what = answer.sequence_number();
                    return Err(format!(
                        "netlink refused request {what} of {}: {error}: {last:?}",
                        self.sequence
                    ));
                }
                _ => {}
            }
        }
    }
}
