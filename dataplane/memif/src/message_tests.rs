//! Golden bytes of every message, written out by hand from the protocol's table (little endian hosts).

use super::*;

/// 128 bytes: `head`, then zeros.
fn golden(head: &[u8]) -> Bytes {
    let mut bytes = [0; MESSAGE_BYTES];
    bytes[..head.len()].copy_from_slice(head);
    bytes
}

/// Encodes to the golden bytes, and decoding those and encoding again gives them back.
fn both_ways(message: &Message, bytes: &Bytes) {
    assert_eq!(&message.encode(), bytes, "{}", message.kind());
    let again = Message::decode(bytes).unwrap();
    assert_eq!(again.kind(), message.kind());
    assert_eq!(&again.encode(), bytes);
}

#[test]
fn ack() {
    both_ways(&Message::Ack, &golden(&[1, 0]));
}

#[test]
fn hello() {
    let message = Message::Hello(Hello {
        name: "srv".into(),
        min_version: VERSION,
        max_version: VERSION,
        max_region: 0x0102,
        max_m2s_ring: 0x0304,
        max_s2m_ring: 0x0506,
        max_log2: 14,
    });
    let mut bytes = golden(b"\x02\x00srv");
    bytes[34..45].copy_from_slice(&[0x00, 0x02, 0x00, 0x02, 0x02, 0x01, 0x04, 0x03, 0x06, 0x05, 14]);
    both_ways(&message, &bytes);
}

#[test]
fn init() {
    let message = Message::Init(Init {
        version: VERSION,
        id: 0x0403_0201,
        mode: MODE_ETHERNET,
        secret: Secret::new(b"s3cret").unwrap(),
        name: "tenant".into(),
    });
    let mut bytes = golden(&[3, 0, 0x00, 0x02, 1, 2, 3, 4, 0, b's', b'3', b'c', b'r', b'e', b't']);
    bytes[33..39].copy_from_slice(b"tenant");
    both_ways(&message, &bytes);
}

#[test]
fn add_region() {
    let message = Message::AddRegion { index: 0x0201, size: 0x0807_0605_0403_0201 };
    both_ways(&message, &golden(&[4, 0, 1, 2, 1, 2, 3, 4, 5, 6, 7, 8]));
}

#[test]
fn add_ring() {
    let ring = AddRing {
        s2m: true,
        index: 0x0201,
        region: 0x0403,
        offset: 0x0807_0605,
        log2: 10,
        private_header: 0x0a09,
    };
    both_ways(&Message::AddRing(ring), &golden(&[5, 0, 1, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 9, 10]));
    let m2s = AddRing { s2m: false, private_header: 0, ..ring };
    both_ways(&Message::AddRing(m2s), &golden(&[5, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 10]));
}

#[test]
fn connect_and_connected() {
    both_ways(&Message::Connect { name: "if0".into() }, &golden(b"\x06\x00if0"));
    both_ways(&Message::Connected { name: "if0".into() }, &golden(b"\x07\x00if0"));
}

#[test]
fn disconnect() {
    let message = Message::Disconnect { code: 0x0403_0201, text: "bye".into() };
    both_ways(&message, &golden(b"\x08\x00\x01\x02\x03\x04bye"));
}

#[test]
fn texts_keep_their_closing_nul() {
    let bytes = Message::Connect { name: "n".repeat(40) }.encode();
    assert_eq!((bytes[32], bytes[33]), (b'n', 0));
    let bytes = Message::Disconnect { code: 0, text: "t".repeat(200) }.encode();
    assert_eq!((bytes[100], bytes[101]), (b't', 0));
    // A peer that leaves the NUL out is read to the end of the field and no further.
    let Message::Connect { name } =
        Message::decode(&[[6, 0], [b'a'; 2]].concat().repeat(32).try_into().unwrap()).unwrap()
    else {
        panic!("not CONNECT")
    };
    assert!(name.len() <= 32);
}

#[test]
fn unknown_types_are_refused() {
    for kind in [0u16, 9, 0xffff] {
        assert_eq!(
            Message::decode(&golden(&kind.to_ne_bytes())).err(),
            Some(Reject::UnknownMessage { kind })
        );
    }
}

#[test]
fn secrets() {
    assert_eq!(Secret::new(&[1; 25]).err(), Some(ConfigError::Secret { bytes: 25 }));
    let secret = Secret::new(&[1; 24]).unwrap();
    assert!(secret.matches(&Secret::new(&[1; 24]).unwrap()));
    assert!(!secret.matches(&Secret::new(&[1; 23]).unwrap()));
    assert!(Secret::new(b"").unwrap().is_empty());
    assert_eq!(format!("{secret:?}"), "Secret(…)");
}
