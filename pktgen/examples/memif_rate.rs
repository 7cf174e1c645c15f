//! How many prepared frames `send` puts into a memif ring whose reader throws them away: an upper bound for what it can offer.
//!
//! `cargo run --release --example memif_rate -- [SECONDS] [SIZE] [FLOWS]`. It needs two cores: the reader has the first.
#![allow(clippy::unwrap_used, reason = "an example")]

use std::time::{Duration, Instant};

use clap::Parser;
use peregrine_memif::{Listener, ListenerConfig, Progress, ServerConfig, SocketAddr};
use peregrine_pktgen::cli::{Cli, Command};
use peregrine_pktgen::limits::{Stop, pin};
use peregrine_pktgen::send::Sender;

fn main() {
    let argument = |n, usual: &str| std::env::args().nth(n).unwrap_or_else(|| usual.into());
    let (seconds, size, flows) = (argument(1, "2"), argument(2, "64"), argument(3, "1"));
    let name = format!("@memif-rate-{}", std::process::id());
    let stop = Stop::new();
    let listener = Listener::bind(&name.parse::<SocketAddr>().unwrap(), ListenerConfig::default()).unwrap();
    let reader = {
        let stop = stop.clone();
        std::thread::spawn(move || discard(&listener, &stop))
    };
    let line = format!(
        "pktgen send --memif {name} --rate max --seconds {seconds} --size {size} --flows {flows} --core 1 --wait poll --quiet \
         --inner-source-mac 02:00:00:00:00:01 --inner-destination-mac 02:00:00:00:00:02 \
         --inner-source 10.0.0.1 --inner-destination 10.0.0.2"
    );
    let Command::Send(args) = Cli::parse_from(line.split_whitespace()).command else { return };
    let outcome = Sender::open(args.settings().unwrap()).unwrap().run(&Stop::new()).unwrap();
    stop.set();
    let taken = reader.join().unwrap();
    println!(
        "{size} bytes, {flows} flows: {:.1} Mpps, {} sent, {taken} taken",
        outcome.report.offered_pps / 1e6,
        outcome.report.sent
    );
}

/// Takes one client, and throws away what it sends.
fn discard(listener: &Listener, stop: &Stop) -> u64 {
    pin(Some(0)).unwrap();
    let deadline = Instant::now() + Duration::from_secs(10);
    let mut handshake = loop {
        match listener.accept().unwrap() {
            Some(handshake) => break handshake,
            None => assert!(Instant::now() < deadline, "nobody connects"),
        }
    };
    let mut interface = loop {
        match handshake.step(&mut |_| Ok(ServerConfig::default())).unwrap() {
            Progress::Connected(interface) => break interface,
            Progress::Pending => assert!(Instant::now() < deadline, "the handshake does not end"),
        }
    };
    let mut taken = 0;
    while !stop.is_set() {
        interface.rx[0].pending().unwrap();
        while let Some(packet) = interface.rx[0].next_packet() {
            packet.unwrap();
            taken += 1;
        }
        interface.rx[0].release();
    }
    taken
}
