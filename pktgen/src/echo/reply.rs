//! Turns a frame into its answer, in place: ARP requests and neighbour solicitations for our addresses, ICMP and ICMPv6
//! echo requests and UDP packets to us.
//!
//! Swapping addresses and ports leaves every checksum right, as a sum does not care for order; only ICMP's type
//! changes, and its checksum with it (RFC 1624). A neighbour advertisement is written anew. IPv6 extension headers are
//! not looked through: what has them is not answered.

use std::net::{Ipv4Addr, Ipv6Addr};

use peregrine_dataplane::types::MacAddr;
use peregrine_dataplane::wire::checksum::Sum;

/// Who answers.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its IPv4 address.
    pub ip: Ipv4Addr,
    /// Its IPv6 address, if it has one.
    pub ip6: Option<Ipv6Addr>,
}

/// What was answered.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Kind {
    /// An ARP request.
    Arp,
    /// A neighbour solicitation of IPv6.
    NeighbourSolicitation,
    /// An ICMP echo request, of either version.
    Icmp,
    /// A UDP packet, over either version.
    Udp,
}

const ARP_END: usize = 14 + 28;
/// Ethernet, IPv6, and an advertisement with its one option.
const ADVERTISEMENT_END: usize = 14 + 40 + ADVERTISEMENT_LEN;
const ADVERTISEMENT_LEN: usize = 32;
const ICMPV6: u8 = 58;

/// The answer to a frame, in the same bytes. `None`: nobody answers it, and its bytes are as they were.
#[inline]
pub fn answer(frame: &mut [u8], we: Identity) -> Option<(Kind, &[u8])> {
    let kind = match *frame.get(12..14)? {
        [0x08, 0x00] => ipv4(frame, we)?,
        [0x08, 0x06] => arp(frame, we)?,
        [0x86, 0xdd] => ipv6(frame, we)?,
        _ => return None,
    };
    let length = match kind {
        Kind::Arp => ARP_END,
        Kind::NeighbourSolicitation => ADVERTISEMENT_END,
        Kind::Icmp | Kind::Udp => frame.len(),
    };
    frame.get(..length).map(|answer| (kind, answer))
}

/// RFC 826: a request for our address, over Ethernet and IPv4.
fn arp(frame: &mut [u8], we: Identity) -> Option<Kind> {
    let body = frame.get_mut(14..ARP_END)?;
    let is_request = body[..8] == [0, 1, 0x08, 0x00, 6, 4, 0, 1];
    if !is_request || body[24..28] != we.ip.octets() {
        return None;
    }
    body[7] = 2; // a reply
    body.copy_within(8..18, 18); // the asker becomes the target
    body[8..14].copy_from_slice(&we.mac.0);
    body[14..18].copy_from_slice(&we.ip.octets());
    swap_ethernet(frame, we)?;
    Some(Kind::Arp)
}

#[inline]
fn ipv4(frame: &mut [u8], we: Identity) -> Option<Kind> {
    let (ethernet, packet) = frame.split_first_chunk_mut::<14>()?;
    let (head, _) = packet.split_first_chunk::<20>()?;
    let header_len = usize::from(head[0] & 0x0f) * 4;
    let total_len = usize::from(u16::from_be_bytes([head[2], head[3]]));
    let is_fragment = u16::from_be_bytes([head[6], head[7]]) & 0x3fff != 0;
    let is_ours = ethernet[..6] == we.mac.0 && head[16..20] == we.ip.octets();
    if head[0] >> 4 != 4 || header_len < 20 || is_fragment || !is_ours {
        return None;
    }
    let protocol = head[9];
    let segment = packet.get_mut(header_len..total_len)?;
    let kind = match protocol {
        1 => icmp(segment)?,
        17 => udp(segment)?,
        _ => return None,
    };
    let (source, destination) = packet.get_mut(12..20)?.split_at_mut(4);
    source.swap_with_slice(destination);
    swap_ethernet(frame, we)?;
    Some(kind)
}

#[inline]
fn ipv6(frame: &mut [u8], we: Identity) -> Option<Kind> {
    let ours = we.ip6?.octets();
    let (ethernet, packet) = frame.split_first_chunk_mut::<14>()?;
    let (head, rest) = packet.split_first_chunk_mut::<40>()?;
    let payload_len = usize::from(u16::from_be_bytes([head[4], head[5]]));
    let segment = rest.get_mut(..payload_len)?;
    if head[0] >> 4 != 6 {
        return None;
    }
    if head[6] == ICMPV6 && segment.first() == Some(&135) {
        return neighbour(frame, payload_len, we.mac, ours);
    }
    if ethernet[..6] != we.mac.0 || head[24..40] != ours {
        return None;
    }
    let kind = match head[6] {
        ICMPV6 => icmpv6(segment)?,
        17 => udp(segment)?,
        _ => return None,
    };
    let (source, destination) = head[8..40].split_at_mut(16);
    source.swap_with_slice(destination);
    swap_ethernet(frame, we)?;
    Some(kind)
}

/// RFC 4861 §7.1.1 and §7.2.4: a solicitation for our address becomes an advertisement that has our Ethernet address.
///
/// Who asks whether the address is free (duplicate address detection, from the unspecified address) gets no answer.
fn neighbour(frame: &mut [u8], solicitation_len: usize, mac: MacAddr, ours: [u8; 16]) -> Option<Kind> {
    let (head, rest) = frame.get(14..)?.split_first_chunk::<40>()?;
    let solicitation = rest.get(..solicitation_len)?;
    let target = solicitation.get(8..24)?;
    let (source, destination) = head[8..40].split_at(16);
    let [.., high, middle, low] = ours;
    // The solicited-node address (RFC 4291 §2.7.1).
    let group = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, high, middle, low];
    let is_for_us = target == ours && (destination == ours || destination == group);
    let is_good = head[7] == 255 && solicitation.get(1) == Some(&0) && source != [0; 16] && source[0] != 0xff;
    if !is_for_us || !is_good || icmpv6_sum(head, solicitation) != 0xffff {
        return None;
    }
    // Our option goes where the asker's own was, which all but a few send; without that there is no room.
    let (ethernet, packet) = frame.get_mut(..ADVERTISEMENT_END)?.split_first_chunk_mut::<14>()?;
    let (head, body) = packet.split_first_chunk_mut::<40>()?;
    head[4..6].copy_from_slice(&(ADVERTISEMENT_LEN as u16).to_be_bytes());
    head.copy_within(8..24, 24);
    head[8..24].copy_from_slice(&ours);
    // Type 136; solicited, and to be preferred to what was known.
    body[..8].copy_from_slice(&[136, 0, 0, 0, 0x60, 0, 0, 0]);
    body[8..24].copy_from_slice(&ours);
    body[24..26].copy_from_slice(&[2, 1]);
    body[26..32].copy_from_slice(&mac.0);
    let checksum = !icmpv6_sum(head, body);
    body[2..4].copy_from_slice(&checksum.to_be_bytes());
    ethernet.copy_within(6..12, 0);
    ethernet[6..12].copy_from_slice(&mac.0);
    Some(Kind::NeighbourSolicitation)
}

/// The folded sum over the pseudo header (RFC 8200 §8.1) and a message: all ones if its checksum is right.
fn icmpv6_sum(head: &[u8; 40], message: &[u8]) -> u16 {
    let pseudo = Sum::ZERO.bytes(&head[8..40]).word(message.len() as u16).word(u16::from(ICMPV6));
    pseudo.bytes(message).fold()
}

/// Changes the type from echo request to reply, and the checksum by as much.
fn icmpv6(segment: &mut [u8]) -> Option<Kind> {
    let [kind, code, high, low, _, _, _, _] = segment.first_chunk_mut::<8>()?;
    if (*kind, *code) != (128, 0) {
        return None;
    }
    *kind = 129;
    // The sum gains 0x0100.
    [*high, *low] = (!plus(!u16::from_be_bytes([*high, *low]), 0x0100)).to_be_bytes();
    Some(Kind::Icmp)
}

fn icmp(segment: &mut [u8]) -> Option<Kind> {
    let [kind, code, high, low, _, _, _, _] = segment.first_chunk_mut::<8>()?;
    if (*kind, *code) != (8, 0) {
        return None;
    }
    *kind = 0;
    // The sum, whose complement the checksum is, loses 0x0800.
    [*high, *low] = (!plus(!u16::from_be_bytes([*high, *low]), !0x0800)).to_be_bytes();
    Some(Kind::Icmp)
}

/// In ones' complement: the carry comes round.
fn plus(a: u16, b: u16) -> u16 {
    let (sum, carry) = a.overflowing_add(b);
    sum + u16::from(carry)
}

#[inline]
fn udp(segment: &mut [u8]) -> Option<Kind> {
    segment.first_chunk::<8>()?;
    let (source, destination) = segment.get_mut(..4)?.split_at_mut(2);
    source.swap_with_slice(destination);
    Some(Kind::Udp)
}

/// Back to the sender, from us.
#[inline]
fn swap_ethernet(frame: &mut [u8], we: Identity) -> Option<()> {
    let (destination, source) = frame.get_mut(..12)?.split_at_mut(6);
    destination.copy_from_slice(source);
    source.copy_from_slice(&we.mac.0);
    Some(())
}

#[cfg(test)]
mod tests;
