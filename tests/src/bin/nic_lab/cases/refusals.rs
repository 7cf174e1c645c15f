//! What cannot be: refused in one line with the reason and a command; and what the command brings.

use std::process::Command;

use peregrine_tests::{FAR, NEAR};

use super::nothing_lost;
use crate::bench::Bench;
use crate::kinds::Kind;

/// Each mode that the driver has works, each other one is refused with the reason.
pub fn modes(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let config = |mode: &str| bench.config(&[]).replace(kind.mode(), mode);
    let refused: &[(&str, &str)] = match kind {
        Kind::Igb | Kind::Virtio | Kind::Machine => &[],
        Kind::Vmxnet3 => &[("require-zero-copy", "has no zero-copy")],
        Kind::E1000e => &[
            ("require-zero-copy", "has no zero-copy"),
            ("prefer-zero-copy", "use mode 'generic'"),
            ("copy", "use mode 'generic'"),
        ],
    };
    let mut facts = Vec::new();
    for (mode, why) in refused {
        bench.refused(&config(mode), &[NEAR.1, kind.driver(), why]);
        facts.push(format!("{mode} refused"));
    }
    for (mode, actual) in [("prefer-zero-copy", kind.actual_mode()), ("copy", "copy"), ("generic", "generic")]
    {
        if refused.iter().any(|(refused, _)| *refused == mode) {
            continue;
        }
        let daemon = bench.start_in(&config(mode), actual);
        bench.pings(50);
        nothing_lost(&daemon);
        daemon.stop();
        facts.push(format!("{mode}: {actual}"));
    }
    if kind == Kind::Igb {
        // Too small for the card, which would cut packets in two: so no zero-copy.
        let small = config("prefer-zero-copy").replace(&bench.chunks(), "chunk_size = 2048");
        let daemon = bench.start_in(&small, "copy");
        bench.pings(50);
        nothing_lost(&daemon);
        facts.push("prefer-zero-copy with small chunks: copy".into());
    }
    facts.join(", ")
}

/// An MTU whose packets fit no chunk, and both ways out.
pub fn mtu(kind: Kind) -> String {
    let bench = Bench::new(kind);
    bench.net.near.ip(&format!("link set {} mtu 3000", NEAR.1)).expect("an MTU");
    let with_chunks = |size: u32| bench.config(&[]).replace(&bench.chunks(), &format!("chunk_size = {size}"));
    let most = kind.small_mtu();
    let (holds, small) = (format!("a chunk of 2048 bytes holds {most}"), with_chunks(2048));
    let said = bench.refused(&small, &["has an MTU of 3000", &holds, "use chunks of 4096 bytes"]);
    let with = |config: &str| {
        let daemon = bench.start(config);
        bench.pings(50);
        nothing_lost(&daemon);
        daemon.stop();
    };
    with(&with_chunks(4096));
    bench.obey(&said, "ip link set");
    // The other host must not send more than that.
    bench.net.far.ip(&format!("link set {} mtu {most}", FAR.1)).expect("an MTU");
    with(&small.replace("mtu = 1450\n", &format!("mtu = {}\n", (most - 50).min(1450))));
    format!("3000 refused with chunks of 2048, works with 4096; {most} works with 2048")
}

/// Somebody else's XDP program is never replaced; and nobody else replaces ours.
pub fn foreign_program(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let attach = format!("link set dev {} xdp obj /lab/foreign.o sec xdp", NEAR.1);
    bench.net.near.ip(&attach).expect("attached");
    let said = bench.refused(&bench.config(&[]), &["already has an XDP program", "somebody_elses"]);
    bench.obey(&said, "ip link set");
    let daemon = bench.start(&bench.config(&[]));
    assert!(bench.net.near.ip(&attach).is_err(), "our program was replaced");
    bench.pings(50);
    nothing_lost(&daemon);
    "refused, detached as the message says, started; ours stays".into()
}

/// The underlay in a VLAN: a NIC that takes the tags off is refused, told not to it works.
pub fn vlan(kind: Kind) -> String {
    let bench = Bench::new(kind);
    bench.near_in_a_vlan();
    bench.far_in_a_vlan();
    let config = bench.config_in_a_vlan();
    let mut facts = "the driver takes no tags off".to_string();
    if kind.strips_vlans() {
        let said = bench.refused(&config, &["takes VLAN tags off", "VLAN 100"]);
        bench.obey(&said, "ethtool -K");
        facts = "refused, told as the message says".into();
    }
    let daemon = bench.start(&config);
    bench.pings(100);
    nothing_lost(&daemon);
    let offloads = peregrine_tests::run(Command::new("ip").args([
        "netns",
        "exec",
        bench.net.near.name(),
        "ethtool",
        "-k",
        NEAR.1,
    ]));
    assert!(!kind.strips_vlans() || offloads.contains("rx-vlan-offload: off"), "{offloads}");
    format!("{facts}; 100 pings with tags")
}
