//! The second half: the kernel's overlay over the same wire, in its usual form: vxlan device, bridge, veth into a
//! tenant's namespace, UDP socket.

use std::process::Command;

use super::hosts::{ECHO, FAR, GENERATOR, NEAR, TENANT, VNI};
use super::measure::{Figures, PORT, READY, round_trips, stream};
use super::{Demo, DemoError, say};
use crate::lab::{LabError, Namespace, Process};

/// The same two measurements as for peregrine.
pub(super) fn measure(demo: &Demo) -> Result<Figures, DemoError> {
    demo.check()?;
    let tenant = overlay(demo)?;
    say(&format!("(b) the same stream through the kernel's overlay, {:?}", demo.duration));
    let stream = stream(demo, ECHO, &mut program(demo, &tenant, "sink", &["--idle-ms", "1000"]))?;
    say(&format!("(c) 10,000 round trips a second through the kernel's overlay, {:?}", demo.duration));
    let mut echo = Process::start(&mut program(demo, &tenant, "echo", &[]))?;
    echo.wait_for_line("ready", READY)?;
    let round_trips = round_trips(demo, ECHO)?;
    echo.stop(READY)?;
    Ok(Figures::new(stream, round_trips))
}

/// vxlan, bridge and veth on the near host; the tenant's namespace.
fn overlay(demo: &Demo) -> Result<Namespace, LabError> {
    let tenant = Namespace::create(TENANT)?;
    let near = &demo.hosts.near;
    near.wire(("tap0", "02:00:00:00:0f:03"), &tenant, ("eth0", ECHO.1), 1450)?;
    near.ip(&format!(
        "link add vx mtu 1450 type vxlan id {VNI} local {} remote {} dstport 4789",
        NEAR.0, FAR.0
    ))?;
    near.ip("link add br0 mtu 1450 type bridge")?;
    for device in ["vx", "tap0"] {
        near.ip(&format!("link set {device} master br0 up"))?;
    }
    near.ip("link set br0 up")?;
    tenant.ip(&format!("addr add {}/24 dev eth0", ECHO.0))?;
    // The generator answers no ARP.
    tenant.ip(&format!("neigh add {} lladdr {} dev eth0 nud permanent", GENERATOR.0, GENERATOR.1))?;
    Ok(tenant)
}

/// A program with a UDP socket, on a core of its own: the worker's, which is free now.
fn program(demo: &Demo, tenant: &Namespace, what: &str, more: &[&str]) -> Command {
    let mut command = demo.pktgen(Some(tenant));
    command.args([what, "--json", "--udp", &format!("{}:{PORT}", ECHO.0)]);
    // It polls, as Peregrine's tenants do, so that neither half pays for waking a program up.
    command.args(["--wait", "yield", "--core", &demo.cores.worker.to_string()]).args(more);
    command
}
