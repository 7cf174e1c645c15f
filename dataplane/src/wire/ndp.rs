//! Neighbour Discovery (RFC 4861): solicitations are read with all checks of §7.1.1, advertisements written.

use std::net::Ipv6Addr;

use super::checksum::Sum;
use super::eth::{ETHERTYPE_IPV6, EthHeader};
use super::inner::{IPV6_LEN, PROTOCOL_ICMPV6, pseudo_header_v6};
use crate::types::MacAddr;

/// Bytes of an advertisement with its option.
pub const FRAME_LEN: usize = EthHeader::LEN + IPV6_LEN + ADVERTISEMENT_LEN;

const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;
/// Type, code, checksum, reserved, target; the options follow.
const FIXED_LEN: usize = 24;
const ADVERTISEMENT_LEN: usize = FIXED_LEN + 8;
const SOURCE_LINK_LAYER: u8 = 1;
const TARGET_LINK_LAYER: u8 = 2;
/// Who is not a neighbour cannot have sent it (§7.1.1).
const HOP_LIMIT: u8 = 255;
const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);

/// Somebody asks for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Solicitation {
    /// Who.
    pub asker: MacAddr,
    /// The asker's address; unspecified if it is about to take the target for its own (RFC 4862 §5.4).
    pub sender: Ipv6Addr,
    /// For which.
    pub target: Ipv6Addr,
}

/// What an advertisement says besides the address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flags {
    /// The station is a router.
    pub router: bool,
    /// Somebody asked.
    pub solicited: bool,
}

/// The group in which who has the address listens (RFC 4291 §2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., high, low] = address.segments();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | high & 0xff, low)
}

/// The Ethernet address of a group (RFC 2464 §7).
fn group_mac(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr([0x33, 0x33, a, b, c, d])
}

impl Solicitation {
    /// `None` for everything but a solicitation that passes all checks, is sent to the target's solicited-node group and names the
    /// station that the Ethernet header names.
    pub fn read(frame: &[u8]) -> Option<Solicitation> {
        let (eth, packet) = EthHeader::split(frame)?;
        let (header, rest) = packet.split_first_chunk::<IPV6_LEN>()?;
        let len = u16::from_be_bytes([header[4], header[5]]);
        let message = rest.get(..usize::from(len))?;
        let (fixed, options) = message.split_first_chunk::<FIXED_LEN>()?;
        let asker = eth.source();
        let sender = Ipv6Addr::from(*header[8..].first_chunk::<16>()?);
        let group = Ipv6Addr::from(*header[24..].first_chunk::<16>()?);
        let target = Ipv6Addr::from(*fixed[8..].first_chunk::<16>()?);
        let is_solicitation = eth.ethertype() == ETHERTYPE_IPV6
            && header[0] >> 4 == 6
            && header[6..8] == [PROTOCOL_ICMPV6, HOP_LIMIT]
            && fixed[..2] == [SOLICITATION, 0]
            && !sender.is_multicast()
            && !sender.is_loopback()
            && is_station(target)
            && group == solicited_node(target)
            && eth.destination() == group_mac(group)
            && pseudo_header_v6(&header[8..], len, PROTOCOL_ICMPV6).bytes(message).holds();
        if !is_solicitation {
            return None; // asked of every frame that is flooded, and its options are walked through only then
        }
        let named = source_link_layer(options)?;
        // With it, an unspecified sender is malformed (§7.1.1); another station than the frame's is unusual.
        let is_plausible = named.is_none_or(|named| named == asker && !sender.is_unspecified());
        (is_plausible && sender != target).then_some(Solicitation { asker, sender, target })
    }

    /// What the owner of the address answers (§7.2.4): to who asked, or, if that has no address yet, to all nodes.
    pub fn advertisement(&self, owner: MacAddr, is_router: bool) -> [u8; FRAME_LEN] {
        let flags = Flags { router: is_router, solicited: !self.sender.is_unspecified() };
        if flags.solicited {
            write((owner, self.target), (self.asker, self.sender), flags)
        } else {
            write((owner, self.target), (group_mac(ALL_NODES), ALL_NODES), flags)
        }
    }
}

/// An advertisement without a question, to all nodes: "this address is here" (§7.2.6).
pub fn announcement(owner: MacAddr, address: Ipv6Addr, is_router: bool) -> [u8; FRAME_LEN] {
    let flags = Flags { router: is_router, solicited: false };
    write((owner, address), (group_mac(ALL_NODES), ALL_NODES), flags)
}

/// A station's own address could be this one.
fn is_station(address: Ipv6Addr) -> bool {
    !address.is_multicast() && !address.is_unspecified() && !address.is_loopback()
}

/// The station that the sender names in an option, if it does. `None` if any option has no length, or not the length that it says.
fn source_link_layer(mut options: &[u8]) -> Option<Option<MacAddr>> {
    let mut named = None;
    while let [kind, len, ..] = options {
        let (option, rest) = options.split_at_checked(usize::from(*len) * 8).filter(|_| *len > 0)?;
        if *kind == SOURCE_LINK_LAYER {
            named = Some(MacAddr(*option[2..].first_chunk()?));
        }
        options = rest;
    }
    options.is_empty().then_some(named)
}

/// Always with the override flag and the target's link-layer address: what is known beforehand is truer than what a cache holds.
fn write(
    (owner, target): (MacAddr, Ipv6Addr),
    (to, destination): (MacAddr, Ipv6Addr),
    flags: Flags,
) -> [u8; FRAME_LEN] {
    const OVERRIDE: u8 = 0x20;
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&to.0);
    frame[6..12].copy_from_slice(&owner.0);
    frame[12..14].copy_from_slice(&ETHERTYPE_IPV6.to_be_bytes());
    let (header, message) = frame[EthHeader::LEN..].split_at_mut(IPV6_LEN);
    header[..8].copy_from_slice(&[0x60, 0, 0, 0, 0, ADVERTISEMENT_LEN as u8, PROTOCOL_ICMPV6, HOP_LIMIT]);
    header[8..24].copy_from_slice(&target.octets());
    header[24..].copy_from_slice(&destination.octets());
    message[0] = ADVERTISEMENT;
    message[4] = u8::from(flags.router) << 7 | u8::from(flags.solicited) << 6 | OVERRIDE;
    message[8..24].copy_from_slice(&target.octets());
    message[24..26].copy_from_slice(&[TARGET_LINK_LAYER, 1]);
    message[26..].copy_from_slice(&owner.0);
    let sum: Sum = pseudo_header_v6(&header[8..], ADVERTISEMENT_LEN as u16, PROTOCOL_ICMPV6).bytes(message);
    message[2..4].copy_from_slice(&sum.checksum().to_be_bytes());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use etherparse::{Icmpv6Header, Icmpv6Type};
    use proptest::prelude::*;

    const ASKER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OWNER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
    const SENDER: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, 1);
    const TARGET: Ipv6Addr = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0x12, 0x3456);

    /// fd00::1 asks for fd00::12:3456, and its checksum is right.
    fn solicitation(options: &[u8]) -> Vec<u8> {
        let mut frame = vec![0x33, 0x33, 0xff, 0x12, 0x34, 0x56, 2, 0, 0, 0, 0, 1, 0x86, 0xdd];
        frame.extend([0x60, 0, 0, 0, 0, 24 + options.len() as u8, 58, 255]);
        frame.extend(SENDER.octets());
        frame.extend([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0x12, 0x34, 0x56]);
        frame.extend([135, 0, 0, 0, 0, 0, 0, 0]);
        frame.extend(TARGET.octets());
        frame.extend(options);
        checked(frame)
    }

    /// With the checksum that another implementation computes.
    fn checked(mut frame: Vec<u8>) -> Vec<u8> {
        frame[56..58].fill(0);
        let (source, destination) = (frame[22..38].try_into().unwrap(), frame[38..54].try_into().unwrap());
        let end = (54 + usize::from(frame[19])).min(frame.len());
        let sum = etherparse::checksum::Sum16BitWords::new()
            .add_16bytes(source)
            .add_16bytes(destination)
            .add_4bytes(u32::from(frame[19]).to_be_bytes())
            .add_4bytes([0, 0, 0, 58])
            .add_slice(&frame[54..end])
            .ones_complement()
            .to_be();
        frame[56..58].copy_from_slice(&sum.to_be_bytes());
        frame
    }

    const FROM_ASKER: [u8; 8] = [1, 1, 2, 0, 0, 0, 0, 1];

    #[test]
    fn a_solicitation_is_answered_by_the_owner_to_the_asker() {
        let mut padded = solicitation(&FROM_ASKER);
        padded.extend([0xee; 4]);
        let read = Solicitation::read(&padded).unwrap();
        assert_eq!(read, Solicitation { asker: ASKER, sender: SENDER, target: TARGET });
        let reply = read.advertisement(OWNER, false);
        assert_eq!(
            reply[..22],
            [2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]
        );
        assert_eq!((&reply[22..38], &reply[38..54]), (&TARGET.octets()[..], &SENDER.octets()[..]));
        assert_eq!(reply[54..56], [136, 0]);
        assert_eq!(reply[58..62], [0x60, 0, 0, 0], "solicited, override");
        assert_eq!((&reply[62..78], &reply[78..]), (&TARGET.octets()[..], &[2, 1, 2, 0, 0, 0, 0, 2][..]));
        assert_eq!(checked(reply.to_vec()), reply, "the checksum");
        let (icmp, _) = Icmpv6Header::from_slice(&reply[54..]).unwrap();
        assert!(matches!(icmp.icmp_type, Icmpv6Type::NeighborAdvertisement(_)), "{icmp:?}");
        assert_eq!(read.advertisement(OWNER, true)[58], 0xe0, "a router says so");
    }

    /// With an option that we do not know (a nonce, RFC 7527), and from who has no address yet.
    #[test]
    fn who_checks_for_a_duplicate_is_told_as_all_nodes_are() {
        let mut probe = solicitation(&[14, 1, 1, 2, 3, 4, 5, 6]);
        probe[22..38].fill(0);
        let probe = checked(probe);
        let read = Solicitation::read(&probe).unwrap();
        assert!(read.sender.is_unspecified());
        let reply = read.advertisement(OWNER, false);
        assert_eq!(reply[..6], [0x33, 0x33, 0, 0, 0, 1]);
        assert_eq!(reply[38..54], ALL_NODES.octets());
        assert_eq!(reply[58], 0x20, "not solicited");
        assert_eq!(checked(reply.to_vec()), reply);
        let mut named = solicitation(&FROM_ASKER);
        named[22..38].fill(0);
        assert_eq!(Solicitation::read(&checked(named)), None, "no address, and a station");
    }

    #[test]
    fn what_the_rfc_has_discarded_is_not_answered() {
        assert!(Solicitation::read(&solicitation(&[])).is_some());
        for (what, offset, value) in [
            ("hop limit", 21, 254),
            ("version", 14, 0x70),
            ("code", 55, 1),
            ("another type", 54, 136),
            ("another protocol", 20, 17),
            ("an EtherType", 13, 0xde),
            ("from a group", 22, 0xff),
            ("for a group", 62, 0xff),
            ("to another group", 53, 0x57),
            ("to another Ethernet group", 5, 0x57),
            ("a shorter payload", 19, 23),
            ("a longer payload", 19, 41),
            ("an option without length", 79, 0),
            ("an option beyond the end", 79, 2),
            ("in another's name", 85, 9),
        ] {
            let mut frame = solicitation(&FROM_ASKER);
            frame[offset] = value;
            assert_eq!(Solicitation::read(&checked(frame)), None, "{what}");
        }
        let mut wrong = solicitation(&FROM_ASKER);
        wrong[56] ^= 1;
        assert_eq!(Solicitation::read(&wrong), None, "checksum");
        let whole = solicitation(&FROM_ASKER);
        for len in 0..whole.len() {
            assert_eq!(Solicitation::read(&whole[..len]), None, "{len} bytes");
        }
        assert_eq!(Solicitation::read(&solicitation(&[1, 1, 2, 0, 0, 0, 0, 1, 1])), None, "half an option");
    }

    #[test]
    fn what_is_announced() {
        let frame = announcement(OWNER, TARGET, true);
        assert_eq!(frame[..14], [0x33, 0x33, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 0x86, 0xdd]);
        assert_eq!(frame[38..54], ALL_NODES.octets());
        assert_eq!(frame[58], 0xa0, "router, override, not solicited");
        assert_eq!(checked(frame.to_vec()), frame);
        assert_eq!(Solicitation::read(&frame), None);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Solicitation::read(&bytes);
        }

        /// With right checksums, so that what follows is looked at.
        #[test]
        fn any_change_leaves_it_well_formed_or_unread(
            offset in 0usize..86, value: u8, options in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut frame = solicitation(&options);
            let last = frame.len() - 1;
            frame[offset.min(last)] = value;
            if let Some(read) = Solicitation::read(&checked(frame.clone())) {
                prop_assert_eq!((frame[20], frame[21], frame[54], frame[55]), (58, 255, 135, 0));
                prop_assert!(!read.target.is_multicast());
                let reply = read.advertisement(OWNER, false);
                prop_assert_eq!(checked(reply.to_vec()), reply);
            }
        }
    }
}
