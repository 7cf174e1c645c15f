//! Options of the whole VTEP that are other than usual: TTL, source ports, and no checksums over IPv6 either.

use crate::bench::{Bench, Outcome};
use crate::sut::{A4, A6, LOCAL6, Network, Setup};
use crate::{cases, ensure};

const FOUR: u32 = 74;
const SIX: u32 = 75;
const TTL: u8 = 33;
const PORTS: (u16, u16) = (50000, 50999);
static SETUP: Setup = Setup {
    locals: &[LOCAL6],
    checksum6: false,
    ttl: TTL,
    source_ports: PORTS,
    ..Setup::new(&[Network::new(FOUR, &[A4]), Network::new(SIX, &[A6])])
};

cases! { SETTINGS = "Options of the whole VTEP", SETUP;
    ttl_set: "RFC 7348 §5", Option, "outer TTL and hop limit as configured (33), whatever the inner one is";
    source_ports_set: "RFC 7348 §4.1", Option, "source ports from a range that is configured, and from all of it; one flow, one port";
    rfc6935_s5_zero_sent: "RFC 6935 §5", May, "over IPv6 no checksum is sent where that is configured";
    rfc6936_s4_zero_both_ways: "RFC 6936 §4", May, "and none is needed";
}

fn ttl_set(bench: &mut Bench) -> Outcome {
    for network in [FOUR, SIX] {
        for inner in ["out4(ttl=1)/u()", "out4(ttl=255)/u()", "out6(hlim=64)/u()"] {
            let inner = bench.scapy(inner);
            let sent = bench.leaves(network, &inner)?.ttl;
            ensure!(sent == TTL, "{sent} instead of {TTL}");
        }
    }
    Ok(())
}

fn source_ports_set(bench: &mut Bench) -> Outcome {
    for network in [FOUR, SIX] {
        let mut tenths = [0; 10];
        for number in 0..256 {
            let inner = bench.scapy(&format!("out4()/UDP(sport={}, dport=9000)/bytes(8)", 20000 + number));
            let port = bench.leaves(network, &inner)?.source_port;
            ensure!((PORTS.0..=PORTS.1).contains(&port), "port {port}");
            tenths[usize::from(port - PORTS.0) / 100] += 1;
            if number % 32 == 0 {
                let again = bench.leaves(network, &inner)?.source_port;
                ensure!(again == port, "one flow has ports {port} and {again}");
            }
        }
        // 25.6 are expected of each tenth: fewer than 4 is one chance in ten million.
        ensure!(tenths.iter().all(|count| *count >= 4), "by tenths of the range: {tenths:?}");
    }
    Ok(())
}

fn rfc6935_s5_zero_sent(bench: &mut Bench) -> Outcome {
    for size in [0, 1, 1472] {
        let inner = bench.scapy(&format!("out4()/u(0, {size})"));
        let sent = bench.leaves(SIX, &inner)?;
        ensure!(sent.checksum == 0, "one is sent ({:#06x})", sent.checksum);
        ensure!(sent.inner == inner, "it is changed");
    }
    Ok(())
}

fn rfc6936_s4_zero_both_ways(bench: &mut Bench) -> Outcome {
    let packet = bench.outer(SIX, "chksum=0", "in4()/u()");
    let inner = bench.scapy("in4()/u()");
    bench.delivers(SIX, &packet, &inner)?;
    let packet = bench.outer(SIX, "chksum='right'", "in4()/u()");
    bench.delivers(SIX, &packet, &inner)
}
