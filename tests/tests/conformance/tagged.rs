//! The underlay in a VLAN. The far end's packet socket is shown what leaves without its tag: the tag is seen by what is taken in, and by the
//! tests of the outer headers.

use crate::bench::{Bench, Outcome, said};
use crate::sut::{A4, A6, Has, LOCAL6, Network, Setup};
use crate::{cases, ensure};

const FOUR: u32 = 70;
const SIX: u32 = 71;
const TAG: u16 = 7;
static SETUP: Setup = Setup {
    locals: &[LOCAL6],
    vlan: Some(TAG),
    ..Setup::new(&[Network::new(FOUR, &[A4]), Network::new(SIX, &[A6])])
};

cases! { TAGGED = "VLAN underlay", SETUP;
    ieee802_1q_both_ways: "IEEE 802.1Q §9", Option, "an underlay in a VLAN, both ways, over IPv4";
    ieee802_1q_both_ways_ipv6: "IEEE 802.1Q §9", Option, "the same over IPv6";
    ieee802_1q_other_vlan: "IEEE 802.1Q §9", Must, "packets of another VLAN, or of none, are not taken";
    ieee802_1q_longest: "RFC 7348 §4.3", Must, "the longest packet of the network fits with the tag, both ways";
}

fn both_ways(bench: &mut Bench, network: u32, size: usize) -> Outcome {
    bench.needs(Has::Vlan)?;
    let protocol = format!("side4()/u(0, {size})");
    let more = if network == SIX { "chksum='right'" } else { "" };
    let inside = protocol.replace("side", "in");
    let packet = bench.outer(network, more, &inside);
    let inner = bench.scapy(&inside);
    bench.delivers(network, &packet, &inner).map_err(|not| said("from the wire", not))?;
    let inner = bench.scapy(&protocol.replace("side", "out"));
    let sent = bench.leaves(network, &inner)?;
    ensure!(sent.inner == inner, "it is changed");
    Ok(())
}

fn ieee802_1q_both_ways(bench: &mut Bench) -> Outcome {
    both_ways(bench, FOUR, 32)
}

fn ieee802_1q_both_ways_ipv6(bench: &mut Bench) -> Outcome {
    both_ways(bench, SIX, 32)
}

fn ieee802_1q_other_vlan(bench: &mut Bench) -> Outcome {
    for (network, checksum) in [(FOUR, ""), (SIX, "chksum='right', ")] {
        for vlan in ["8", "0", "None", "4094"] {
            let packet = bench.outer(network, &format!("{checksum}vlan={vlan}"), "in4()/u()");
            bench.refuses(network, &packet).map_err(|not| said(format!("tag {vlan}"), not))?;
        }
    }
    Ok(())
}

fn ieee802_1q_longest(bench: &mut Bench) -> Outcome {
    both_ways(bench, FOUR, 1472)?;
    both_ways(bench, SIX, 1472)
}
