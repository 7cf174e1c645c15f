//! What is tried with each NIC.

mod doctor;
mod links;
mod machine;
mod refusals;
mod rings;
mod streams;

use std::time::Duration;

use peregrine_tests::{Daemon, totals};
use serde_json::Value;

use crate::bench::Bench;
use crate::kinds::Kind;

/// So long a start may take more after a kill: what it waits for the queues and for the program of the one before.
const TAKEN_PATIENCE: Duration = Duration::from_secs(6);

/// Frames that a container's kernel sends at most before somebody in it does.
const FIRST_WORDS: u64 = 8;

/// One case.
#[derive(Debug)]
pub struct Case {
    /// Its name, as it is printed.
    pub name: &'static str,
    /// The kinds of NIC that it is for.
    pub kinds: fn(Kind) -> bool,
    /// Does it. Panics if it fails; else a few facts.
    pub run: fn(Kind) -> String,
}

fn all(kind: Kind) -> bool {
    kind != Kind::Machine
}

fn machine(kind: Kind) -> bool {
    kind == Kind::Machine
}

/// All of them, in the order in which they run.
pub const CASES: &[Case] = &[
    Case { name: "ping", kinds: all, run: ping },
    Case { name: "modes", kinds: all, run: refusals::modes },
    Case { name: "stream", kinds: all, run: streams::both_ways },
    Case { name: "burst", kinds: all, run: streams::burst },
    Case { name: "link", kinds: all, run: links::cable_and_interface },
    Case { name: "killed", kinds: all, run: killed },
    Case { name: "dry", kinds: all, run: rings::dry },
    Case { name: "queues", kinds: Kind::is_multi_queue, run: rings::unserved_queue },
    Case { name: "mtu", kinds: all, run: refusals::mtu },
    Case { name: "foreign", kinds: all, run: refusals::foreign_program },
    Case { name: "vlan", kinds: all, run: refusals::vlan },
    Case { name: "doctor", kinds: all, run: doctor::link },
    Case { name: "doctor-queues", kinds: all, run: doctor::queues },
    Case { name: "fix", kinds: Kind::is_multi_queue, run: doctor::fix },
    Case { name: "filters", kinds: all, run: links::filters },
    Case { name: "huge", kinds: all, run: streams::huge },
    Case { name: "removed", kinds: all, run: links::removed },
    Case { name: "memory", kinds: machine, run: machine::memory },
    Case { name: "cores", kinds: machine, run: machine::cores },
    Case { name: "rights", kinds: machine, run: machine::rights },
];

/// The best mode of the driver, asked for and got; and a thousand pings, of which none is lost.
fn ping(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let daemon = bench.start(&bench.config(&[]));
    bench.pings(1000);
    let stats = nothing_lost(&daemon);
    format!(
        "{}, 1000 of 1000 pings, {} frames in, none dropped",
        kind.actual_mode(),
        totals(&stats, "uplink_rx")
    )
}

/// Killed with -9 and started again at once, while the kernel still has the sockets of the one before.
fn killed(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let config = bench.config(&[]);
    let daemon = bench.start(&config);
    let ordinary = daemon.start_time;
    bench.pings(20);
    daemon.kill();
    let mut slowest = Duration::ZERO;
    for _ in 0..2 {
        let daemon = bench.start(&config);
        let took = daemon.start_time;
        assert!(took <= ordinary + TAKEN_PATIENCE, "{took:?}, and at first {ordinary:?}");
        slowest = slowest.max(took);
        bench.pings(50);
        daemon.at_rest();
        daemon.kill();
    }
    format!("2 times; started at first within {ordinary:.1?}, after a kill within {slowest:.1?}")
}

/// At rest, and no frame was dropped, neither by us nor at the sockets; but for what the container says of itself as soon as it is attached
/// (RFC 3810, RFC 4862), when the way to the far host may not be known yet.
#[track_caller]
fn nothing_lost(daemon: &Daemon) -> Value {
    let stats = daemon.at_rest();
    let before_known = stats["drops"]["next_hop_unresolved"].as_u64().unwrap_or(0);
    let dropped = totals(&stats, "dropped");
    assert!(dropped == before_known && dropped <= FIRST_WORDS, "{}", stats["drops"]);
    let sockets = &stats["uplinks"][0]["sockets"];
    for socket in sockets.as_array().into_iter().flatten() {
        assert!(socket["rx_dropped"] == 0 && socket["rx_ring_full"] == 0, "{sockets}");
    }
    stats
}

/// Frames that the kernel dropped before they came into a ring of ours.
fn lost_at_sockets(stats: &Value) -> u64 {
    let of_socket = |socket: &Value| {
        ["rx_dropped", "rx_ring_full"].iter().filter_map(|key| socket[key].as_u64()).sum::<u64>()
    };
    stats["uplinks"][0]["sockets"].as_array().into_iter().flatten().map(of_socket).sum()
}
