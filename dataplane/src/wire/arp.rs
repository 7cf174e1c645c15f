//! ARP over Ethernet for IPv4 (RFC 826): requests are read, replies and announcements (RFC 5227) written.

use std::net::Ipv4Addr;

use super::eth::EthHeader;
use crate::types::MacAddr;

/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of reverse ARP (RFC 903).
pub const ETHERTYPE_RARP: u16 = 0x8035;
/// Bytes of a frame of ours: Ethernet, and 28 bytes of ARP.
pub const FRAME_LEN: usize = EthHeader::LEN + 28;

/// Hardware type Ethernet, protocol type IPv4, and the lengths of both addresses.
const ETHERNET_IPV4: [u8; 6] = [0, 1, 8, 0, 6, 4];
const REQUEST: u16 = 1;
const REPLY: u16 = 2;
/// "Request reverse" (RFC 903).
const REQUEST_REVERSE: u16 = 3;

/// Somebody asks for an address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Request {
    /// Who.
    pub asker: MacAddr,
    /// The asker's address; 0.0.0.0 in a probe (RFC 5227 §2.1.1).
    pub sender: Ipv4Addr,
    /// For which.
    pub target: Ipv4Addr,
}

impl Request {
    /// `None` for everything but a well-formed request to everybody, by the station that the Ethernet header names. An announcement
    /// (sender and target are the same) asks for nothing.
    pub fn read(frame: &[u8]) -> Option<Request> {
        let (eth, rest) = EthHeader::split(frame)?;
        let arp: &[u8; 28] = rest.first_chunk()?;
        let asker = MacAddr(*arp[8..].first_chunk()?);
        let is_request = eth.ethertype() == ETHERTYPE_ARP
            && eth.destination() == MacAddr::BROADCAST
            && arp[..6] == ETHERNET_IPV4
            && arp[6..8] == REQUEST.to_be_bytes()
            && asker == eth.source();
        let sender = Ipv4Addr::from(*arp[14..].first_chunk::<4>()?);
        let target = Ipv4Addr::from(*arp[24..].first_chunk::<4>()?);
        (is_request && sender != target).then_some(Request { asker, sender, target })
    }

    /// What the owner of the address answers: this is its station. A probe is answered to the sender 0.0.0.0, as RFC 826 has it: what
    /// the prober looks at is whose address it is (RFC 5227 §2.1.1).
    pub fn reply(&self, owner: MacAddr) -> [u8; FRAME_LEN] {
        let (from, to) = ((owner, self.target), (self.asker, self.sender));
        write(self.asker, ETHERTYPE_ARP, REPLY, from, to)
    }
}

/// An announcement: "this address is here" (RFC 5227 §2.3). It has the form of a request, which all hosts take note of.
pub fn announcement(owner: MacAddr, address: Ipv4Addr) -> [u8; FRAME_LEN] {
    write(MacAddr::BROADCAST, ETHERTYPE_ARP, REQUEST, (owner, address), (MacAddr([0; 6]), address))
}

/// "Which address have I?" to everybody: nobody answers, but bridges learn where the station is. Hypervisors announce a guest so that
/// has moved and whose addresses they do not know.
pub fn reverse_request(station: MacAddr) -> [u8; FRAME_LEN] {
    let own = (station, Ipv4Addr::UNSPECIFIED);
    write(MacAddr::BROADCAST, ETHERTYPE_RARP, REQUEST_REVERSE, own, own)
}

fn write(
    destination: MacAddr,
    ethertype: u16,
    operation: u16,
    (station, address): (MacAddr, Ipv4Addr),
    (target_station, target): (MacAddr, Ipv4Addr),
) -> [u8; FRAME_LEN] {
    let mut frame = [0; FRAME_LEN];
    frame[..6].copy_from_slice(&destination.0);
    frame[6..12].copy_from_slice(&station.0);
    frame[12..14].copy_from_slice(&ethertype.to_be_bytes());
    frame[14..20].copy_from_slice(&ETHERNET_IPV4);
    frame[20..22].copy_from_slice(&operation.to_be_bytes());
    frame[22..28].copy_from_slice(&station.0);
    frame[28..32].copy_from_slice(&address.octets());
    frame[32..38].copy_from_slice(&target_station.0);
    frame[38..].copy_from_slice(&target.octets());
    frame
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ASKER: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const OWNER: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    /// 10.0.0.1 asks for 10.0.0.2; padded to the Ethernet minimum.
    fn request() -> Vec<u8> {
        let mut frame = vec![
            255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 1, 8, 6, // Ethernet
            0, 1, 8, 0, 6, 4, 0, 1, // Ethernet and IPv4, request
            2, 0, 0, 0, 0, 1, 10, 0, 0, 1, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
        ];
        frame.resize(60, 0);
        frame
    }

    #[test]
    fn a_request_is_answered_by_the_owner_to_the_asker() {
        let read = Request::read(&request()).unwrap();
        let (sender, target) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        assert_eq!(read, Request { asker: ASKER, sender, target });
        assert_eq!(
            read.reply(OWNER),
            [
                2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 6, // Ethernet
                0, 1, 8, 0, 6, 4, 0, 2, // reply
                2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 2, 0, 0, 0, 0, 1, 10, 0, 0, 1,
            ]
        );
    }

    #[test]
    fn a_probe_is_a_request_from_nobody() {
        let mut probe = request();
        probe[28..32].fill(0);
        let read = Request::read(&probe).unwrap();
        assert!(read.sender.is_unspecified());
        assert_eq!(read.reply(OWNER)[28..42], [10, 0, 0, 2, 2, 0, 0, 0, 0, 1, 0, 0, 0, 0]);
    }

    #[test]
    fn everything_else_asks_for_nothing() {
        for (what, offset, value) in [
            ("to one station", 0, 2),
            ("another EtherType", 13, 5),
            ("another hardware type", 15, 6),
            ("another protocol type", 16, 9),
            ("longer stations", 18, 8),
            ("longer addresses", 19, 16),
            ("a reply", 21, 2),
            ("in another's name", 27, 9),
            ("an announcement", 41, 1),
        ] {
            let mut frame = request();
            frame[offset] = value;
            assert_eq!(Request::read(&frame), None, "{what}");
        }
        for len in 0..FRAME_LEN {
            assert_eq!(Request::read(&request()[..len]), None, "{len} bytes");
        }
    }

    #[test]
    fn what_is_announced() {
        let mut expected = [
            255, 255, 255, 255, 255, 255, 2, 0, 0, 0, 0, 2, 8, 6, // Ethernet
            0, 1, 8, 0, 6, 4, 0, 1, // request
            2, 0, 0, 0, 0, 2, 10, 0, 0, 2, 0, 0, 0, 0, 0, 0, 10, 0, 0, 2,
        ];
        assert_eq!(announcement(OWNER, Ipv4Addr::new(10, 0, 0, 2)), expected);
        assert_eq!(Request::read(&expected), None, "nobody needs to answer it");
        // What QEMU's announce_self_create writes (net/announce.c).
        expected[12..].copy_from_slice(&[
            0x80, 0x35, 0, 1, 8, 0, 6, 4, 0, 3, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0, 2, 0, 0, 0, 0,
        ]);
        assert_eq!(reverse_request(OWNER), expected);
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_not(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _ = Request::read(&bytes);
        }

        /// Each byte of a request that is changed either makes another request of it or none.
        #[test]
        fn what_is_read_is_well_formed(offset in 0usize..42, value: u8) {
            let mut frame = request();
            frame[offset] = value;
            if let Some(read) = Request::read(&frame) {
                prop_assert_eq!(&frame[..6], &[255; 6]);
                prop_assert_eq!(&frame[12..22], &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
                prop_assert_eq!(&frame[6..12], &frame[22..28]);
                prop_assert_eq!(&read.reply(OWNER)[..6], &frame[6..12]);
            }
        }
    }
}
