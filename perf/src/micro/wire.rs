//! Micro-benches of headers: taken off, put on, summed, hashed. Used by `micro`.

use std::hint::black_box;
use std::net::Ipv4Addr;

use peregrine_dataplane::wire::checksum::Sum;
use peregrine_dataplane::wire::flow::flow_hash;
use peregrine_dataplane::wire::ip::udp_pseudo_header;
use peregrine_dataplane::wire::outer::{self, Listening, OVERHEAD_IPV4, OuterFields, OuterTemplate};

use super::{Case, Maker, PACKETS, case, maker};
use crate::rig::{
    FAR, LOCAL, LOCAL_IPV6, REMOTE, Underlay, VNI, encapsulated_over, inner, tenant_mac, underlay_frame,
};

/// Where the UDP header begins in a frame of [`underlay_frame`].
const UDP: usize = 34;

pub fn cases() -> Vec<Maker> {
    let mut cases = Vec::new();
    for bytes in [64, 1400] {
        cases.push(maker(format!("wire/parse/{bytes}"), move |name| {
            Ok(parse(name, underlay_frame(tenant_mac(0), bytes)))
        }));
        cases.push(maker(format!("wire/parse-udp-sum/{bytes}"), move |name| {
            Ok(parse(name, with_udp_sum(underlay_frame(tenant_mac(0), bytes))))
        }));
    }
    for (name, underlay) in
        [("parse-ipv6", Underlay::Ipv6ZeroChecksum), ("parse-ipv6-udp-sum", Underlay::Ipv6)]
    {
        for bytes in [64, 1400] {
            cases.push(maker(format!("wire/{name}/{bytes}"), move |name| {
                let frame = encapsulated_over(underlay, &inner(FAR, tenant_mac(0), bytes));
                let listening = Listening::new(&[LOCAL_IPV6.into()], &[4789], true);
                Ok(each(name, frame, move |frame| black_box(outer::plain_ipv6(frame, &listening)).is_some()))
            }));
        }
    }
    cases.push(maker("wire/template-write", |name| Ok(template_write(name))));
    for bytes in [20, 64, 1400] {
        cases.push(maker(format!("wire/checksum/{bytes}"), move |name| {
            Ok(each(name, vec![0xa5u8; bytes], |bytes| Sum::ZERO.bytes(bytes).checksum() != 0))
        }));
    }
    cases.push(maker("wire/flow-hash/ipv4-udp", |name| {
        Ok(each(name, inner(FAR, tenant_mac(0), 64), |packet| flow_hash(packet) != 0))
    }));
    cases.push(maker("wire/flow-hash/ipv6-udp", |name| {
        Ok(each(name, ipv6_udp(), |packet| flow_hash(packet) != 0))
    }));
    cases
}

/// A function that is called with the same bytes again and again; true counts as a packet.
fn each(name: &str, bytes: Vec<u8>, mut call: impl FnMut(&[u8]) -> bool + 'static) -> Case {
    let run = move |bytes: &mut Vec<u8>| (0..PACKETS).filter(|_| call(black_box(bytes))).count();
    case(name, bytes, |_| {}, run)
}

fn parse(name: &str, frame: Vec<u8>) -> Case {
    let listening = Listening::new(&[LOCAL.into()], &[4789], true);
    each(name, frame, move |frame| black_box(outer::plain_ipv4(frame, &listening)).is_some())
}

fn template_write(name: &str) -> Case {
    let template = OuterTemplate::new(&OuterFields {
        destination_mac: FAR,
        source_mac: tenant_mac(0),
        source: LOCAL,
        destination: REMOTE,
        port: 4789,
        ttl: 64,
    });
    case(
        name,
        (template, [0u8; OVERHEAD_IPV4]),
        |_| {},
        |(template, out)| {
            for _ in 0..PACKETS {
                template.write(black_box(&mut *out), black_box(64), black_box(VNI), black_box(50000));
            }
            PACKETS
        },
    )
}

/// The frame with its UDP checksum filled in, as a VTEP sends it that computes one.
fn with_udp_sum(mut frame: Vec<u8>) -> Vec<u8> {
    let (_, udp) = frame.split_at_mut(UDP);
    let pseudo = udp_pseudo_header(REMOTE, Ipv4Addr::from(LOCAL.octets()), udp.len() as u16);
    let sum = pseudo.bytes(udp).checksum();
    udp[6..8].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn ipv6_udp() -> Vec<u8> {
    let mut packet = Vec::new();
    packet.extend(tenant_mac(0).0);
    packet.extend(FAR.0);
    packet.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 16, 17, 64]);
    packet.extend([0xfd; 32]);
    packet.extend([0x4e, 0x20, 0x23, 0x28, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    packet
}
