//! The second half: the kernel's overlay over the same wire, in its usual form: vxlan device, bridge, veth into a
//! tenant's namespace, UDP socket.

use std::process::Command;

use super::hosts::ECHO;
use super::measure::{Figures, PORT, READY, round_trips, stream};
use super::{Demo, DemoError, say};
use crate::lab::{Namespace, Process};

/// The same two measurements as for peregrine.
pub(super) fn measure(demo: &Demo) -> Result<Figures, DemoError> {
    demo.check()?;
    let tenant = demo.hosts.kernel_overlay()?;
    say(&format!("(b) the same stream through the kernel's overlay, {:?}", demo.duration));
    let stream = stream(demo, ECHO, &mut program(demo, &tenant, "sink", &["--idle-ms", "1000"]))?;
    say(&format!("(c) 10,000 round trips a second through the kernel's overlay, {:?}", demo.duration));
    let mut echo = Process::start(&mut program(demo, &tenant, "echo", &[]))?;
    echo.wait_for_line("ready", READY)?;
    let round_trips = round_trips(demo, ECHO)?;
    echo.stop(READY)?;
    Ok(Figures::new(stream, round_trips))
}

/// A program with a UDP socket, on a core of its own: the worker's, which is free now.
fn program(demo: &Demo, tenant: &Namespace, what: &str, more: &[&str]) -> Command {
    let mut command = demo.pktgen(Some(tenant));
    command.args([what, "--json", "--udp", &format!("{}:{PORT}", ECHO.0)]);
    // It polls, as Peregrine's tenants do, so that neither half pays for waking a program up.
    command.args(["--wait", "yield", "--core", &demo.cores.worker.to_string()]).args(more);
    command
}
