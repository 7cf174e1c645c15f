//! The second half: the kernel's overlay on both hosts, in its usual form: vxlan device, bridge, and a veth pair into each container.

use std::time::Instant;

use super::measure::{Figures, measure_all};
use super::{A, B, Container, HostName, Lab, ON_A, ON_B, VNI};
use crate::demo::{DemoError, say};
use crate::lab::{LabError, Namespace};

pub(super) fn measure(lab: &Lab, file: &[u8]) -> Result<Figures, DemoError> {
    let hosts = lab.hosts()?;
    for (host, name, other) in [(&hosts.a, A, B), (&hosts.b, B, A)] {
        overlay(host, &name, &other)?;
    }
    say("(a) the kernel: six containers, the first ping between hosts, then everybody pings everybody");
    let began = Instant::now();
    let mut containers = Vec::new();
    for (host, container) in
        ON_A.iter().map(|on_a| (&hosts.a, on_a)).chain(ON_B.iter().map(|on_b| (&hosts.b, on_b)))
    {
        containers.push(add(host, container)?);
    }
    let figures = measure_all(lab, file, began, "the kernel")?;
    drop(containers);
    drop(hosts);
    Ok(figures)
}

/// What a host has before its first container comes.
fn overlay(host: &Namespace, name: &HostName, other: &HostName) -> Result<(), LabError> {
    host.ip("link add br0 mtu 1450 type bridge")?;
    host.ip(&format!(
        "link add vx mtu 1450 type vxlan id {VNI} local {} remote {} dstport 4789",
        name.vtep, other.vtep
    ))?;
    host.ip("link set vx master br0 up")?;
    host.ip("link set br0 up")?;
    Ok(())
}

/// What `peregrine endpoint add` does in the other half.
fn add(host: &Namespace, container: &Container) -> Result<Namespace, LabError> {
    let namespace = Namespace::create(container.namespace)?;
    let tap = format!("tap-{}", container.name);
    // Before it is up, or the addresses would have to wait for nobody to have them already.
    host.ip(&format!(
        "link add {tap} mtu 1450 master br0 up type veth peer name eth0 address {} mtu 1450 netns {}",
        container.mac(),
        container.namespace
    ))?;
    namespace.ip(&format!("addr add {}/24 dev eth0", container.v4()))?;
    namespace.ip(&format!("addr add {}/64 dev eth0 nodad", container.v6()))?;
    namespace.ip("link set eth0 up")?;
    Ok(namespace)
}
