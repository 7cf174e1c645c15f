//! What the kernel says of a driver's XDP: generic netlink's family `netdev` (Linux 6.3), a question and an answer.

use std::io;

use netlink_packet_core::{NLA_HEADER_SIZE, NLM_F_REQUEST, NlasIterator};
use netlink_sys::protocols::NETLINK_GENERIC;
use netlink_sys::{Socket, SocketAddr};

/// From linux/netlink.h and linux/genetlink.h.
const NLMSG_HEADER_BYTES: usize = 16;
const GENL_HEADER_BYTES: usize = 4;
const NLMSG_ERROR: u16 = 2;
const GENL_ID_CTRL: u16 = 16;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;
/// From linux/netdev.h.
const NETDEV_CMD_DEV_GET: u8 = 1;
const NETDEV_A_DEV_IFINDEX: u16 = 1;
const NETDEV_A_DEV_XDP_FEATURES: u16 = 3;
const NETDEV_A_DEV_XDP_ZC_MAX_SEGS: u16 = 4;

/// What a driver's XDP can do.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct XdpFeatures {
    /// NETDEV_XDP_ACT_….
    pub bits: u64,
    /// Segments of a packet with zero-copy; 1: it has none of several, or the kernel does not tell.
    pub zero_copy_segments: u32,
}

impl XdpFeatures {
    const BASIC: u64 = 1 << 0;
    const REDIRECT: u64 = 1 << 1;
    const XSK_ZEROCOPY: u64 = 1 << 3;
    const RX_SG: u64 = 1 << 5;

    /// Programs run in the driver, and may hand packets to sockets.
    pub fn is_native(self) -> bool {
        self.bits & (Self::BASIC | Self::REDIRECT) == Self::BASIC | Self::REDIRECT
    }

    /// AF_XDP without copying.
    pub fn is_zero_copy(self) -> bool {
        self.bits & Self::XSK_ZEROCOPY != 0
    }

    /// Packets in several fragments.
    pub fn has_fragments(self) -> bool {
        self.bits & Self::RX_SG != 0
    }
}

/// Asks about an interface.
///
/// # Errors
/// The kernel has no such family, or does not answer.
pub fn xdp_features(ifindex: u32) -> io::Result<XdpFeatures> {
    let mut socket = Socket::new(NETLINK_GENERIC)?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    socket.set_non_blocking(true)?;
    let name = attribute(CTRL_ATTR_FAMILY_NAME, b"netdev\0");
    let answer = ask(&socket, GENL_ID_CTRL, CTRL_CMD_GETFAMILY, &name)?;
    let family = each(&answer).find(|(kind, _)| *kind == CTRL_ATTR_FAMILY_ID);
    let family = family.and_then(|(_, value)| value.try_into().ok()).map(u16::from_ne_bytes);
    let family = family.ok_or_else(garbled)?;
    let which = attribute(NETDEV_A_DEV_IFINDEX, &ifindex.to_ne_bytes());
    features(&ask(&socket, family, NETDEV_CMD_DEV_GET, &which)?).ok_or_else(garbled)
}

/// The attributes of an answer about an interface.
fn features(attributes: &[u8]) -> Option<XdpFeatures> {
    let mut features = XdpFeatures { bits: 0, zero_copy_segments: 1 };
    let mut is_told = false;
    for (kind, value) in each(attributes) {
        match kind {
            NETDEV_A_DEV_XDP_FEATURES => {
                features.bits = value.try_into().ok().map(u64::from_ne_bytes)?;
                is_told = true;
            }
            NETDEV_A_DEV_XDP_ZC_MAX_SEGS => {
                features.zero_copy_segments = value.try_into().ok().map(u32::from_ne_bytes)?;
            }
            _ => {}
        }
    }
    is_told.then_some(features)
}

/// Sends a request and returns the attributes of its answer, which the kernel gives inside the send.
fn ask(socket: &Socket, family: u16, command: u8, attributes: &[u8]) -> io::Result<Vec<u8>> {
    let length = NLMSG_HEADER_BYTES + GENL_HEADER_BYTES + attributes.len();
    let mut bytes = Vec::from(u32::try_from(length).map_err(io::Error::other)?.to_ne_bytes());
    bytes.extend(family.to_ne_bytes());
    bytes.extend(NLM_F_REQUEST.to_ne_bytes());
    bytes.extend([0; 8]); // number, and our port: there is one question at a time, and the socket has a port
    bytes.extend([command, 1, 0, 0]);
    bytes.extend(attributes);
    socket.send(&bytes, 0)?;
    let (answer, _) = socket.recv_from_full()?;
    let (header, rest) = answer.split_at_checked(NLMSG_HEADER_BYTES).ok_or_else(garbled)?;
    let kind = header.get(4..6).and_then(|kind| kind.try_into().ok()).map(u16::from_ne_bytes);
    if kind == Some(NLMSG_ERROR) {
        let code = rest.get(..4).and_then(|code| code.try_into().ok()).map_or(-1, i32::from_ne_bytes);
        return Err(io::Error::from_raw_os_error(code.wrapping_neg()));
    }
    rest.get(GENL_HEADER_BYTES..).map(<[u8]>::to_vec).ok_or_else(garbled)
}

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = NLA_HEADER_SIZE + value.len();
    let mut bytes = Vec::with_capacity(length.next_multiple_of(4));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(length.next_multiple_of(4), 0);
    bytes
}

fn each(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    NlasIterator::new(bytes).map_while(|attribute| {
        let attribute = attribute.ok()?;
        let (kind, end) = (attribute.kind(), usize::from(attribute.length()));
        Some((kind, attribute.into_inner().get(NLA_HEADER_SIZE..end)?))
    })
}

fn garbled() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "the kernel's answer was not understood")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_read_and_a_cut_one_is_not() {
        let mut bytes = attribute(NETDEV_A_DEV_IFINDEX, &7u32.to_ne_bytes());
        bytes.extend(attribute(NETDEV_A_DEV_XDP_FEATURES, &0b101011u64.to_ne_bytes()));
        bytes.extend(attribute(NETDEV_A_DEV_XDP_ZC_MAX_SEGS, &8u32.to_ne_bytes()));
        let told = features(&bytes).unwrap();
        assert!(told.is_native() && told.is_zero_copy() && told.has_fragments());
        assert_eq!(told.zero_copy_segments, 8);
        for end in 0..bytes.len() {
            let _nothing_breaks = features(&bytes[..end]);
        }
        assert_eq!(features(&attribute(NETDEV_A_DEV_XDP_FEATURES, &[1])), None);
        assert_eq!(features(&[]), None);
    }
}
