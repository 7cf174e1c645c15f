//! What needs a wire: the near host of `peregrine demo` with both ends of it, and there a process of this program's own, for what an uplink
//! is made of is read under `/sys`, which shows the network namespace that a process began in. `idle` and `priority` measure there.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use peregrine_control::demo::hosts::{FAR, Hosts};
use peregrine_control::demo::{self};
use peregrine_control::lab::Process;
use serde::de::DeserializeOwned;

use crate::kernel_case::plain;

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}

/// Both hosts, with both ends of the wire on the near one. Namespaces and programs are gone when it is dropped.
pub fn create() -> Result<Hosts, String> {
    let hosts = Hosts::create().map_err(|error| plain(&error))?;
    let far = FAR.1;
    hosts.far.ip(&format!("link set {far} netns {}", hosts.near.name())).map_err(text)?;
    hosts.near.ip(&format!("link set {far} up")).map_err(text)?;
    Ok(hosts)
}

/// Runs this program on the near host, on these cores, and reads what it prints; `name` is for what it says instead.
pub fn run<T: DeserializeOwned>(
    hosts: &Hosts,
    name: &str,
    arguments: &[&str],
    (first, worker, quick): (usize, usize, bool),
    patience: Duration,
    interrupted: &Arc<AtomicBool>,
) -> Result<T, String> {
    let program = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let mut command = hosts.near.command(program);
    command.args(arguments);
    command.args(["--first", &first.to_string(), "--worker", &worker.to_string()]);
    command.args(if quick { &["--quick"][..] } else { &[] });
    let process = Process::start(&mut command).map_err(text)?;
    let stop = || interrupted.load(Ordering::Relaxed);
    let said = process.finish(patience, &stop).map_err(|error| match stop() {
        true => "interrupted; everything that it made was removed".into(),
        false => text(error),
    })?;
    serde_json::from_str(&said).map_err(|error| format!("{name}: it said: {error}"))
}

/// Why nothing can be measured over a wire here, if so.
pub fn missing() -> Option<String> {
    demo::check_requirements().err().map(|error| plain(&error))
}
