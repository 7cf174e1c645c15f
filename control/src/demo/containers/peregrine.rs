//! The first half: `peregrine run` on both hosts, whose containers come by `peregrine endpoint add` while it runs.

use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::measure::{Figures, READY, measure_all};
use super::{A, B, Container, HostName, Lab, ON_A, ON_B, VNI};
use crate::client::Client;
use crate::demo::{DemoError, say};
use crate::lab::{LabError, Namespace, Process, run};

/// A daemon that was asked to stop is gone within this.
const STOP: Duration = Duration::from_secs(5);

/// What a daemon said when it ended.
#[derive(Clone, Debug, Serialize)]
pub(super) struct LastLine {
    pub(super) host: &'static str,
    /// `frames in … = frames out … + drops …: conserved`
    pub(super) frames: String,
    pub(super) conserved: bool,
}

/// A daemon of one host.
struct Daemon {
    process: Process,
    host: &'static str,
}

pub(super) fn measure(lab: &Lab, file: &[u8]) -> Result<(Figures, Vec<LastLine>), DemoError> {
    let hosts = lab.hosts()?;
    // They are made by the daemons, and gone when this is dropped: after the daemons, which might make them again.
    let containers: Vec<Namespace> =
        ON_A.iter().chain(&ON_B).map(|container| Namespace::adopt(container.namespace)).collect();
    say("starting peregrine on both hosts");
    let daemons = [start(lab, A, B, lab.cores.worker_a)?, start(lab, B, A, lab.cores.worker_b)?];
    for host in [A, B] {
        wait_for_the_pool(lab, host)?;
    }
    say("(a) peregrine: six containers, the first ping between hosts, then everybody pings everybody");
    let began = Instant::now();
    for (host, container) in ON_A.iter().map(|on_a| (A, on_a)).chain(ON_B.iter().map(|on_b| (B, on_b))) {
        run(&mut add(lab, &host, container))?;
    }
    let figures = measure_all(lab, file, began, "peregrine")?;
    let daemons: Result<Vec<LastLine>, LabError> = daemons.into_iter().map(stop).collect();
    drop((containers, hosts));
    Ok((figures, daemons?))
}

fn socket(lab: &Lab, host: &HostName) -> std::path::PathBuf {
    lab.place.file(&format!("{}.sock", host.device.0))
}

fn config(lab: &Lab, host: &HostName, other: &HostName, core: usize) -> String {
    // Whoever shares a core with a worker that polls waits for the scheduler each time.
    let idle = if lab.cores.are_shared() { "adaptive" } else { "busy" };
    format!(
        "control_socket = \"{}\"\n\n[[workers]]\ncore = {core}\nidle = \"{idle}\"\n\n[pools]\ncontainers = {}\n\n\
         [uplink]\ninterface = \"{}\"\nlocal = \"{}\"\nmode = \"copy\"\n\n\
         [[networks]]\nname = \"demo\"\nvni = {VNI}\nmtu = 1450\nremotes = [\"{}\"]\nsubnets = [\"10.42.0.0/24\", \"fd42::/64\"]\n",
        socket(lab, host).display(),
        ON_A.len(),
        host.device.0,
        host.vtep,
        other.vtep,
    )
}

fn start(lab: &Lab, host: HostName, other: HostName, core: usize) -> Result<Daemon, DemoError> {
    let config = lab.place.write(&format!("{}.toml", host.device.0), config(lab, &host, &other, core))?;
    // Not `ip netns exec`: it would give the daemon mounts of its own, and names of namespaces that are made behind it are seen by nobody
    // else.
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--net=/run/netns/{}", host.namespace))
        .arg(&lab.daemon)
        .args(["run", "-c"])
        .arg(config);
    let mut process = Process::start(&mut command)?;
    process.wait_for_line("ready", READY)?;
    Ok(Daemon { process, host: host.namespace })
}

/// The containers that each host can give away at once are there.
fn wait_for_the_pool(lab: &Lab, host: HostName) -> Result<(), LabError> {
    let what = format!("the pool of containers on {}", host.namespace);
    let deadline = Instant::now() + READY;
    loop {
        lab.check()?;
        let status = Client::connect(&socket(lab, &host)).and_then(|mut client| client.call("status"));
        let status = status
            .map_err(|error| LabError::Answer { what: "peregrine status".into(), why: error.to_string() })?;
        if status["pools"]["containers"]["ready"].as_u64() >= Some(ON_A.len() as u64) {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(LabError::Late { what, waited: READY, said: String::new() });
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn add(lab: &Lab, host: &HostName, container: &Container) -> Command {
    let mut command = Command::new(&lab.daemon);
    command.args(["endpoint", "add", container.name, "--network", "demo", "--mac", &container.mac()]);
    command.args(["--address", &container.v4(), "--address", &container.v6()]);
    command
        .args(["--namespace", container.namespace, "--create-namespace", "--socket"])
        .arg(socket(lab, host));
    command
}

/// Ends a daemon and returns what it said of its frames.
fn stop(daemon: Daemon) -> Result<LastLine, LabError> {
    let Daemon { mut process, host } = daemon;
    process.signal(rustix::process::Signal::TERM);
    process.wait_for_line("stopped; ", STOP)?;
    let last = process.said().last().and_then(|line| line.strip_prefix("stopped; ")).unwrap_or_default();
    let line = LastLine { host, frames: last.to_owned(), conserved: last.ends_with(": conserved") };
    process.finish(STOP, &|| false)?;
    Ok(line)
}
