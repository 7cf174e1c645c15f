//! Frames of 9000 bytes.

use crate::bench::{Bench, Outcome};
use crate::cases;
use crate::sut::{A4, Network, Setup};

const V: u32 = 42;
static SETUP: Setup =
    Setup { wire_mtu: 9100, ..Setup::new(&[Network { mtu: 9000, ..Network::new(V, &[A4]) }]) };

cases! { JUMBO = "Jumbo frames", SETUP;
    jumbo_longest: "RFC 7348 §4.3", Option, "inner packets of 9000 bytes pass both ways";
    jumbo_sizes: "RFC 7348 §4.3", Option, "and every size between, in steps of 509";
    jumbo_short: "RFC 7348 §4.3", Must, "and short ones";
}

fn jumbo_longest(bench: &mut Bench) -> Outcome {
    bench.passes(V, "side4()/u(0, 8972)")?;
    bench.passes(V, "side6()/u(0, 8952)")
}

fn jumbo_sizes(bench: &mut Bench) -> Outcome {
    (1..9000 - 28).step_by(509).try_for_each(|size| bench.passes(V, &format!("side4()/u(0, {size})")))
}

fn jumbo_short(bench: &mut Bench) -> Outcome {
    bench.passes(V, "side4()/u(0, 0)")
}
