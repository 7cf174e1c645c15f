//! The first half: `peregrine run` on the near host, with two tenants on memif.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::hosts::{ECHO, SINK};
use super::measure::{Figures, READY, ping_times, round_trips, stream};
use super::{Demo, DemoError, say};
use crate::client::Client;
use crate::lab::{LabError, Process, run_even_if};

/// What ping said.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ping {
    pub(super) sent: u64,
    pub(super) received: u64,
    pub(super) rtt_us_p50: f64,
}

/// What the daemon said at the end.
#[derive(Clone, Debug)]
pub(super) struct Daemon {
    pub(super) status: Value,
    pub(super) stats: Value,
}

/// Pings to send.
const PINGS: u64 = 20;
/// A daemon that was asked to stop is gone within this.
const STOP: Duration = Duration::from_secs(2);

/// Ping, stream, round trips; then the daemon is asked for its counters and stopped.
pub(super) fn measure(demo: &Demo) -> Result<(Figures, Ping, Daemon), DemoError> {
    let config = demo.hosts.write("demo.toml", demo.hosts.peregrine_config(demo.cores))?;
    say("starting peregrine on one host, and a kernel vxlan device on another");
    let mut daemon = Process::start(demo.hosts.near.command(&demo.daemon).args(["run", "-c"]).arg(&config))?;
    daemon.wait_for_line("ready", READY)?;
    let mut echo = Process::start(&mut tenant(demo, "echo", 0, &["--mac", ECHO.1, "--ip", ECHO.0]))?;
    echo.wait_for_line("ready", READY)?;

    say("(a) the far host's kernel pings a tenant through the overlay");
    let ping = ping(demo)?;
    say(&format!("(b) a stream at full rate through peregrine, {:?}", demo.duration));
    let stream = stream(demo, SINK, &mut tenant(demo, "sink", 1, &["--idle-ms", "1000"]))?;
    say(&format!("(c) 10,000 round trips a second through peregrine, {:?}", demo.duration));
    let round_trips = round_trips(demo, ECHO)?;

    let answers = ask(&demo.hosts.file("control.sock"))?;
    echo.stop(STOP)?;
    daemon.stop(STOP)?;
    Ok((Figures::new(stream, round_trips), ping, answers))
}

/// A tenant: the packet generator as a memif client. It needs no namespace: its network is the shared memory.
fn tenant(demo: &Demo, what: &str, id: u32, more: &[&str]) -> Command {
    let mut command = demo.pktgen(None);
    command
        .args([what, "--json", "--memif"])
        .arg(demo.hosts.file("memif.sock"))
        .args(["--id", &id.to_string()]);
    // They poll, and leave their core to the generator in between: on two cores it is the same one.
    command
        .args(["--ring-size", "16384", "--wait", "yield", "--core", &demo.cores.generator.to_string()])
        .args(more);
    command
}

/// That nobody answers is a figure, not a failure of the demo.
fn ping(demo: &Demo) -> Result<Ping, LabError> {
    let mut command = demo.hosts.far.command("ping");
    command.args(["-n", "-i", "0.02", "-W", "1", "-c", &PINGS.to_string(), ECHO.0]);
    let text = run_even_if(1, &mut command)?;
    let times = ping_times(&text);
    let middle = times.get(times.len() / 2).copied().unwrap_or(0.0);
    Ok(Ping { sent: PINGS, received: times.len() as u64, rtt_us_p50: middle * 1000.0 })
}

/// Status and counters, once nothing is in flight any more: the far host's kernel sends a packet of its own at times.
fn ask(socket: &Path) -> Result<Daemon, LabError> {
    let call = |method: &str| {
        let answer = Client::connect(socket).and_then(|mut client| client.call(method));
        answer
            .map_err(|error| LabError::Answer { what: format!("peregrine {method}"), why: error.to_string() })
    };
    let deadline = Instant::now() + STOP;
    let mut stats = call("stats")?;
    while stats["totals"]["conserved"] != true && Instant::now() < deadline {
        stats = call("stats")?;
    }
    Ok(Daemon { status: call("status")?, stats })
}
