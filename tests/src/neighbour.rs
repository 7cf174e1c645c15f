//! What a neighbour notices of a tenant's misdeeds: pings go to it meanwhile, and all of them must be answered. What the
//! misdeeds cost the daemon must be given back.

use std::time::{Duration, Instant};

use peregrine_control::lab::Process;
use rustix::process::Signal;

use crate::{Daemon, Net, PATIENCE, Tenant, until};

/// A kind of trouble, and how it is made.
pub type Case<'a> = (&'static str, Box<dyn FnMut() + 'a>);

/// What the neighbour noticed: its pings, those answered, and the round trips.
struct Noticed {
    sent: usize,
    answered: usize,
    p50_us: u64,
    p99_us: u64,
}

/// Makes each kind of trouble for a second or more while [`Tenant::WEB`] is pinged. No ping may be lost, and afterwards the
/// daemon must have as many descriptors and mappings open as before.
///
/// # Panics
/// If that does not hold.
pub fn beside(net: &Net, daemon: &Daemon, cases: &mut [Case<'_>]) {
    let before = daemon.open_things();
    for (name, work) in cases {
        let Noticed { sent, answered, p50_us, p99_us } = noticed(net, work);
        println!(
            "beside {name:<22}: {answered} of {sent} pings of the neighbour answered, {p50_us} µs, 99 % {p99_us} µs"
        );
        assert_eq!(answered, sent, "the neighbour's pings beside: {name}");
        // Not more than before: a question of ours that was just being answered may have been counted then.
        until("descriptors and mappings as before", || {
            let now = daemon.open_things();
            now.0 <= before.0 && now.1 <= before.1
        });
    }
}

/// Pings the neighbour every 2 ms while `work` is done again and again, for a second at least.
fn noticed(net: &Net, mut work: impl FnMut()) -> Noticed {
    let mut command = net.far.command("ping");
    command.args(["-n", "-i", "0.002", "-W", "2", Tenant::WEB.ip]);
    let pinging = Process::start(&mut command).unwrap_or_else(|error| panic!("{error}"));
    let began = Instant::now();
    while began.elapsed() < Duration::from_secs(1) {
        work();
    }
    pinging.signal(Signal::INT);
    let text = pinging.finish(PATIENCE, &|| false).unwrap_or_else(|error| panic!("{error}"));
    let time = |line: &str| line.split("time=").nth(1)?.split(' ').next()?.parse::<f64>().ok();
    let mut times: Vec<u64> = text.lines().filter_map(time).map(|ms| (ms * 1000.0) as u64).collect();
    times.sort_unstable();
    // Not what `ping` says that it sent: the last one was under way when it was stopped.
    let number = |line: &str| line.split("icmp_seq=").nth(1)?.split(' ').next()?.parse::<usize>().ok();
    let sent = text.lines().filter_map(number).max().unwrap_or_else(|| panic!("ping said: {text}"));
    let at = |share: usize| times.get(times.len() * share / 100).or(times.last()).copied().unwrap_or(0);
    Noticed { sent, answered: times.len(), p50_us: at(50), p99_us: at(99) }
}
