//! UDP checksums that are asked for: sent over IPv4 too, and demanded over IPv6.

use crate::bench::{Bench, Outcome};
use crate::sut::{A4, A6, Has, LOCAL6, Network, Setup};
use crate::{cases, ensure};

const FOUR: u32 = 72;
const SIX: u32 = 73;
static SETUP: Setup = Setup {
    locals: &[LOCAL6],
    checksum4: true,
    zero6: false,
    ..Setup::new(&[Network::new(FOUR, &[A4]), Network::new(SIX, &[A6])])
};

cases! { CHECKSUMS = "UDP checksums demanded", SETUP;
    rfc0768_checksum_ipv4: "RFC 768", Option, "over IPv4 a checksum can be sent, and is right";
    rfc6936_s4_zero_refused: "RFC 6936 §4", Must, "over IPv6 a zero checksum is refused unless configured";
    rfc8200_s8_1_right_taken: "RFC 8200 §8.1", Must, "over IPv6 a right checksum is accepted";
}

fn rfc0768_checksum_ipv4(bench: &mut Bench) -> Outcome {
    for size in [0, 1, 32, 1471] {
        let inner = bench.scapy(&format!("out4()/u(0, {size})"));
        let sent = bench.leaves(FOUR, &inner)?;
        let ip = &sent.bytes[sent.ip_at..];
        let (header, _) = etherparse::Ipv4Header::from_slice(ip).map_err(|error| error.to_string())?;
        let (udp, payload) =
            etherparse::UdpHeader::from_slice(&ip[20..]).map_err(|error| error.to_string())?;
        let right = udp.calc_checksum_ipv4(&header, payload).map_err(|error| error.to_string())?;
        ensure!(udp.checksum == right, "{size} bytes: {:#06x} instead of {right:#06x}", udp.checksum);
    }
    Ok(())
}

fn rfc6936_s4_zero_refused(bench: &mut Bench) -> Outcome {
    bench.needs(Has::RefuseZero6)?;
    let packet = bench.outer(SIX, "chksum=0", "in4()/u()");
    bench.refuses_as(SIX, &packet, "outer_udp_no_checksum")
}

fn rfc8200_s8_1_right_taken(bench: &mut Bench) -> Outcome {
    let packet = bench.outer(SIX, "chksum='right'", "in4()/u()");
    let inner = bench.scapy("in4()/u()");
    bench.delivers(SIX, &packet, &inner)
}
