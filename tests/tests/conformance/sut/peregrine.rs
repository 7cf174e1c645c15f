//! Peregrine: `peregrine run`, and the suite itself as its memif tenants.

use std::fmt::Write;
use std::time::{Duration, Instant};

use peregrine_memif::{ClientConfig, Interface};
use peregrine_tests::{Daemon, NEAR, Net, Tenant, cores, program, run, within};

use super::{Dscp, Has, InnerVlan, LOCAL4, Network, SECOND_MAC, Setup, Sut, TENANT_MAC, VOICE_DSCP, Voice};

pub struct Peregrine {
    tenants: Vec<Interface>,
    addresses: Vec<Tenant>,
    daemon: Daemon,
}

impl Peregrine {
    pub fn start(net: &Net, setup: &Setup) -> Result<Peregrine, String> {
        let addresses: Vec<Tenant> =
            setup.networks.iter().flat_map(tenants).enumerate().map(numbered).collect();
        let config = config(net, setup, &addresses);
        std::fs::write(net.file("check.toml"), &config).map_err(|error| error.to_string())?;
        let mut check = std::process::Command::new(program("peregrine"));
        let output =
            check.arg("check").arg(net.file("check.toml")).output().map_err(|error| error.to_string())?;
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr)
                .lines()
                .next()
                .unwrap_or("refused")
                .to_string());
        }
        let daemon = Daemon::start_with(net, &config);
        let connect = |tenant: &Tenant| tenant.connect_with(net, memif(setup));
        let tenants = addresses.iter().map(connect).collect();
        // A way that is not found fails the cases that need it, not all.
        within(Duration::from_secs(5), || {
            let stats = daemon.stats();
            stats["remotes"].as_array().is_some_and(|all| all.iter().all(|remote| remote["resolved"] == true))
        });
        Ok(Peregrine { tenants, addresses, daemon })
    }
}

fn memif(setup: &Setup) -> ClientConfig {
    let chains = setup.wire_mtu > 2000;
    ClientConfig { chains, ..ClientConfig::default() }
}

/// The tenants of a network: the same addresses in each.
fn tenants(network: &Network) -> impl Iterator<Item = Tenant> + use<> {
    let (vni, count) = (network.vni, network.tenants);
    let all = [("web", TENANT_MAC, "10.42.0.1"), ("db", SECOND_MAC, "10.42.0.3")];
    all.into_iter().take(count).map(move |(name, mac, ip)| Tenant {
        name: format!("{name}{vni}").leak(),
        network: format!("net{vni}").leak(),
        id: 0,
        ip,
        mac,
    })
}

fn numbered((id, tenant): (usize, Tenant)) -> Tenant {
    Tenant { id: id as u32, ..tenant }
}

/// Only what is not as usual is written: so the usual is tested too.
fn config(net: &Net, setup: &Setup, tenants: &[Tenant]) -> String {
    let mut text = format!(
        "control_socket = \"{}\"\n\n[[workers]]\ncore = {}\n\n[uplink]\ninterface = \"{}\"\nmode = \"copy\"\n",
        net.file("control.sock").display(),
        cores().0,
        NEAR.1
    );
    let mut line = |what: String| text.push_str(&(what + "\n"));
    if setup.locals.is_empty() {
        line(format!("local = \"{LOCAL4}\""));
    } else {
        let all: Vec<&str> = std::iter::once(LOCAL4).chain(setup.locals.iter().copied()).collect();
        line(format!("local = {all:?}"));
    }
    if let Some(vlan) = setup.vlan {
        line(format!("vlan = {vlan}"));
    }
    match (setup.checksum4, setup.checksum6) {
        (false, true) => {}
        (all, other) => {
            assert_eq!(all, other, "one option for both");
            line(format!("udp_checksum = {all}"));
        }
    }
    if !setup.zero6 {
        line("accept_zero_checksum = false".into());
    }
    if setup.ttl != 64 {
        line(format!("ttl = {}", setup.ttl));
    }
    if setup.source_ports != (49152, 65535) {
        line(format!("source_ports = [{}, {}]", setup.source_ports.0, setup.source_ports.1));
    }
    if setup.networks.iter().any(|network| network.voice != Voice::None) {
        line(format!(
            "\n[[classes]]\nname = \"voice\"\ndscp = {VOICE_DSCP}\n\n[[classes]]\nname = \"normal\""
        ));
    }
    for network in setup.networks {
        one_network(&mut text, network);
    }
    for tenant in tenants {
        let network =
            setup.networks.iter().find(|network| tenant.network == format!("net{}", network.vni)).unwrap();
        let chains = if setup.wire_mtu > 2000 { ", chains = true" } else { "" };
        let memif = format!("socket = \"{}\", id = {}{chains}", net.file("memif.sock").display(), tenant.id);
        let mut endpoint = tenant.endpoint(&memif);
        if let Some(limit) = network.storm_limit {
            let _ = writeln!(endpoint, "storm_limit = {limit}");
        }
        if tenant.mac == TENANT_MAC {
            endpoint = endpoint.replace("[\"10.42.0.1\"]", "[\"10.42.0.1\", \"fd42::1\"]");
        }
        if network.announce {
            endpoint = endpoint.replace("announce = false", "announce = true");
        }
        text += &endpoint;
    }
    for network in setup.networks {
        if let Network { vni, voice: Voice::Port(port), .. } = network {
            let _ = writeln!(
                text,
                "\n[[rules]]\nclass = \"voice\"\nnetwork = \"net{vni}\"\nprotocol = \"udp\"\ndestination_port = {port}"
            );
        }
    }
    text
}

fn one_network(text: &mut String, network: &Network) {
    let Network { vni, mtu, remotes, .. } = network;
    let _ = writeln!(
        text,
        "\n[[networks]]\nname = \"net{vni}\"\nvni = {vni}\nmtu = {mtu}\nremotes = {remotes:?}"
    );
    let mut line = |what: String| text.push_str(&(what + "\n"));
    if let Some(port) = network.port {
        line(format!("port = {port}"));
    }
    if let Some(local) = network.local {
        line(format!("local = \"{local}\""));
    }
    if network.any_remote {
        line("any_remote = true".into());
    }
    if network.refuse_reserved {
        line("reserved_bits = \"refuse\"".into());
    }
    match network.inner_vlan {
        InnerVlan::Drop => {}
        InnerVlan::Strip => line("inner_vlan = \"strip\"".into()),
        InnerVlan::Carry => line("inner_vlan = \"carry\"".into()),
    }
    match network.dscp {
        Dscp::ByClass => {}
        Dscp::Copy => line("dscp = \"copy\"".into()),
        Dscp::Fixed(value) => line(format!("dscp = {value}")),
    }
    if network.voice == Voice::Network {
        line("class = \"voice\"".into());
    }
    if !network.suppression {
        line("suppression = false".into());
    }
    if !network.gateways.is_empty() {
        line(format!("gateways = {:?}", network.gateways));
    }
    if network.clamp_mss {
        line("clamp_mss = true".into());
    }
    if let Some(limit) = network.fdb_limit {
        line(format!("fdb_limit = {limit}"));
    }
    if let Some(seconds) = network.ageing_s {
        line(format!("ageing = \"{seconds}s\""));
    }
    if let Some(limit) = network.move_limit {
        line(format!("move_limit = {limit}"));
    }
    if !network.known.is_empty() {
        let one = |(mac, remote, ips): &(&str, &str, &[&str])| {
            format!("{{ mac = \"{mac}\", remote = \"{remote}\", addresses = {ips:?} }}")
        };
        let all: Vec<String> = network.known.iter().map(one).collect();
        line(format!("static_macs = [{}]", all.join(", ")));
    }
}

impl Sut for Peregrine {
    fn lacks(&self, _what: Has) -> Option<&'static str> {
        None
    }

    fn send(&mut self, tenant: usize, frame: &[u8]) {
        let ring = self.tenants[tenant].tx.first_mut().expect("a ring");
        ring.push(frame).expect("room in the ring");
        ring.flush().expect("flushed");
    }

    fn receive(
        &mut self,
        tenant: usize,
        last: &dyn Fn(&[u8]) -> bool,
        time: Duration,
    ) -> Option<Vec<Vec<u8>>> {
        let deadline = Instant::now() + time;
        let ring = self.tenants[tenant].rx.first_mut().expect("a ring");
        let mut received = Vec::new();
        while Instant::now() < deadline {
            ring.wait(Duration::from_millis(5)).expect("the ring");
            ring.pending().expect("an honest peer");
            let mut is_over = false;
            while let Some(packet) = ring.next_packet() {
                let packet = packet.expect("an honest peer");
                let mut bytes = vec![0; packet.len()];
                packet.copy_to(&mut bytes).expect("it fits");
                is_over |= last(&bytes);
                received.push(bytes);
            }
            ring.release();
            if is_over {
                return Some(received);
            }
        }
        None
    }

    fn drops(&self, reason: &str) -> Option<u64> {
        let stats = self.daemon.stats();
        let all = stats["drops"].as_object()?;
        Some(if reason == "all" {
            all.values().filter_map(serde_json::Value::as_u64).sum()
        } else {
            all.get(reason).and_then(serde_json::Value::as_u64).unwrap_or(0)
        })
    }

    fn passed(&self, reason: &str) -> Option<u64> {
        let stats = self.daemon.stats();
        let queues = stats["uplinks"][0]["program"].as_array()?;
        queues.iter().map(|queue| queue["passed"][reason].as_u64()).sum()
    }

    fn remote(&mut self, net: &Net, network: &Network, add: bool, address: &str) -> Result<(), String> {
        let name = format!("net{}", network.vni);
        command(net, &["remote", if add { "add" } else { "remove" }, &name, address])
    }

    fn flush(&mut self, net: &Net, network: &Network) -> Result<(), String> {
        command(net, &["fdb", "flush", "--network", &format!("net{}", network.vni)])
    }

    fn reconnect(&mut self, net: &Net, tenant: usize) {
        let connection = self.tenants.remove(tenant);
        drop(connection);
        self.daemon.wait_for_tenant(tenant, false);
        self.tenants.insert(tenant, self.addresses[tenant].connect_with(net, ClientConfig::default()));
    }

    fn settle(&mut self) -> Result<(), String> {
        self.daemon.at_rest();
        Ok(())
    }
}

/// A command of the operator to the daemon.
fn command(net: &Net, words: &[&str]) -> Result<(), String> {
    let mut command = std::process::Command::new(program("peregrine"));
    command.args(words).arg("--socket").arg(net.file("control.sock"));
    let output = command.output().map_err(|error| error.to_string())?;
    match output.status.success() {
        true => Ok(()),
        false => {
            Err(format!("peregrine {}: {}", words.join(" "), String::from_utf8_lossy(&output.stderr).trim()))
        }
    }
}

/// The version, as the program says it.
pub fn version() -> String {
    run(std::process::Command::new(program("peregrine")).arg("--version")).trim().to_string()
}
