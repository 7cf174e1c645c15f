//! Limits, and what changes while a VTEP runs; a loop in the underlay; mistakes in the configuration.

use std::time::{Duration, Instant};

use peregrine_control::lab::Namespace;
use peregrine_tests::{Daemon, FAR, PATIENCE, cores, program};

use crate::answers::only_ours;
use crate::bench::{Bench, Not, Outcome, Outer, said};
use crate::overlay::{appears, goes_to, to};
use crate::sut::{A_MAC, A4, B_MAC, B4, Has, Kind, LOCAL4, Network, Setup};
use crate::{cases, ensure};

const STORM: u32 = 90;
const FEW: u32 = 91;
const MOVES: u32 = 92;
const AGES: u32 = 93;
const CHANGES: u32 = 94;
const LOOP: u32 = 95;
static SETUP: Setup = Setup::new(&[
    Network { storm_limit: Some(100), ..Network::new(STORM, &[A4]) },
    Network { fdb_limit: Some(10), ..Network::new(FEW, &[A4]) },
    Network { move_limit: Some(3), ..Network::new(MOVES, &[A4, B4]) },
    Network { ageing_s: Some(1), ..Network::new(AGES, &[A4, B4]) },
    Network::new(CHANGES, &[A4]),
    Network::new(LOOP, &[A4, B4]),
]);

cases! { LIMITS = "Limits, changes at run time, loops, configuration", SETUP;
    storm_limit: "–", Option, "a tenant's flood is limited; what goes to known addresses is not";
    learning_limit: "–", Option, "no more addresses are learned than allowed; frames to the others still come";
    rfc7432_s15_1_damping: "RFC 7432 §15.1", Option, "an address that moves too often stays where it is";
    ageing: "RFC 7348 §4.1", Should, "a learned address is forgotten when nothing comes from it";
    flush: "–", Option, "what was learned can be flushed";
    remote_added: "–", Option, "a remote can be added while it runs: broadcasts go there too";
    remote_removed: "–", Option, "and removed again";
    loop_dies_out: "–", Must, "remotes that send back what they get, a bridged circle: a broadcast dies out";
    loop_of_unicast: "–", Must, "the same for an unknown unicast";
    loop_of_vteps: "–", Must, "two Linux VTEPs as remotes, bridged to each other behind our back: a broadcast and an unknown unicast die out";
    config_mtu: "–", Option, "an MTU that does not fit is refused, with the limit";
    config_mtu_of_the_uplink: "–", Option, "an MTU that the uplink cannot carry is refused at start, with both and the way out";
    config_self: "–", Option, "a remote that is ourselves is refused";
    config_port: "RFC 6335 §6", Option, "a VXLAN port among the source ports is refused";
    config_multicast: "–", Option, "a multicast address as a VTEP is refused";
    config_versions: "–", Option, "a remote of an IP version without a local address is refused";
}

fn storm_limit(bench: &mut Bench) -> Outcome {
    bench.needs(Has::StormLimit)?;
    let flood = bench.scapy("Ether(src=TENANT, dst=ALL)/IP(src=T4, dst='255.255.255.255')/u()");
    let began = Instant::now();
    let sent = bench.outbound(STORM, &vec![flood.clone(); 500])?;
    let passed = sent.iter().filter(|outer| outer.inner == flood).count();
    let most = 100.0 * began.elapsed().as_secs_f64() + 11.0;
    ensure!(
        passed >= 10 && passed as f64 <= most,
        "{passed} of 500 are flooded, {most:.0} at most are allowed"
    );
    let known = bench.scapy("out4()/u()");
    let sent = bench.outbound(STORM, &vec![known; 500])?;
    ensure!(sent.len() == 500, "{} of 500 to a known address pass", sent.len());
    Ok(())
}

fn learning_limit(bench: &mut Bench) -> Outcome {
    bench.needs(Has::LearningLimit)?;
    for number in 0..30 {
        appears(bench, FEW, &format!("02:00:00:00:43:{number:02x}"), A4)
            .map_err(|not| said(format!("address {number}"), not))?;
    }
    // To one that was not learned, frames are flooded: with one remote that is the same. It must still get there.
    goes_to(bench, FEW, "02:00:00:00:43:1d", &[A4])
}

fn rfc7432_s15_1_damping(bench: &mut Bench) -> Outcome {
    bench.needs(Has::Damping)?;
    let mac = "02:00:00:00:42:61";
    for remote in [A4, B4, A4, B4, A4, B4, A4, B4] {
        appears(bench, MOVES, mac, remote)?;
    }
    // It was let go three times: A, B, A, B. There it stays.
    goes_to(bench, MOVES, mac, &[B4])?;
    appears(bench, MOVES, mac, A4)?;
    goes_to(bench, MOVES, mac, &[B4])
}

fn ageing(bench: &mut Bench) -> Outcome {
    match bench.kind {
        Kind::Peregrine => {}
        Kind::Linux => return Err(Not::Untried("looks every 10 s only: not waited for".into())),
        Kind::Ovs => return Err(Not::Untried("15 s at least: not waited for".into())),
    }
    let mac = "02:00:00:00:42:62";
    appears(bench, AGES, mac, B4)?;
    let inner = bench.scapy(&format!("Ether(src=TENANT, dst='{mac}')/IP(src=T4, dst=S4)/u()"));
    // Its hand goes round the table in 8 s.
    let deadline = Instant::now() + Duration::from_secs(12);
    loop {
        let sent = bench.outbound(AGES, std::slice::from_ref(&inner))?;
        if to(&sent) == [A4, B4] {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "after 12 s (ageing is 1 s) frames go to {:?}", to(&sent));
    }
}

fn flush(bench: &mut Bench) -> Outcome {
    let mac = "02:00:00:00:42:63";
    appears(bench, LOOP, mac, B4)?;
    goes_to(bench, LOOP, mac, &[B4])?;
    let network = bench.network(LOOP);
    bench.sut.flush(&bench.net, network)?;
    goes_to(bench, LOOP, mac, &[A4, B4])
}

/// Where a broadcast goes, within a second.
fn floods_to(bench: &mut Bench, vni: u32, remotes: &[&str]) -> Outcome {
    goes_to(bench, vni, "ff:ff:ff:ff:ff:ff", remotes)
}

fn remote_added(bench: &mut Bench) -> Outcome {
    floods_to(bench, CHANGES, &[A4])?;
    let network = bench.network(CHANGES);
    bench.sut.remote(&bench.net, network, true, B4)?;
    floods_to(bench, CHANGES, &[A4, B4])?;
    appears(bench, CHANGES, "02:00:00:00:42:64", B4)
}

fn remote_removed(bench: &mut Bench) -> Outcome {
    let network = bench.network(CHANGES);
    bench.sut.remote(&bench.net, network, false, B4)?;
    floods_to(bench, CHANGES, &[A4])?;
    goes_to(bench, CHANGES, "02:00:00:00:42:64", &[A4]).map_err(|not| said("what was learned behind it", not))
}

/// What the tenant sends is sent back by each remote to which it goes, in the other's name: two VTEPs that are bridged behind us.
fn goes_round(bench: &mut Bench, destination: &str) -> Outcome {
    let inner =
        bench.scapy(&format!("Ether(src=TENANT, dst={destination})/IP(src=T4, dst='255.255.255.255')/u()"));
    let mut rounds = 0;
    let mut copies = bench.outbound(LOOP, std::slice::from_ref(&inner))?;
    ensure!(!copies.is_empty(), "it is not sent");
    while !copies.is_empty() {
        rounds += 1;
        ensure!(rounds < 5, "{} copies after {rounds} rounds", copies.len());
        for copy in &copies {
            let other = if copy.to == A4 { B4 } else { A4 };
            let bytes: String = copy.inner.iter().map(|byte| format!("{byte:02x}")).collect();
            let back = bench.outer_from(LOOP, other, "", &format!("bytes.fromhex('{bytes}')"));
            bench.put(&back);
        }
        copies = left_meanwhile(bench)?;
        copies.retain(|copy| copy.inner == inner);
    }
    Ok(())
}

/// What has left the VTEP when all that was put on the wire before has been dealt with: a marker behind it has come. That is a broadcast: the
/// tenant's address may have been learned elsewhere.
fn left_meanwhile(bench: &mut Bench) -> Result<Vec<Outer>, Not> {
    let tenant = bench.tenant(LOOP);
    bench.inbound_to(LOOP, tenant, "ALL", &[])?;
    bench.outbound(LOOP, &[])
}

fn loop_dies_out(bench: &mut Bench) -> Outcome {
    goes_round(bench, "ALL")
}

fn loop_of_unicast(bench: &mut Bench) -> Outcome {
    goes_round(bench, "'02:00:00:00:42:97'")
}

/// The far host becomes A and the other one B: VTEPs of Linux, each bridging its vxlan device to a cable between them. Nothing there ends a loop.
fn two_vteps(far: &Namespace, other: &Namespace) -> Result<(), Box<dyn std::error::Error>> {
    // The wire and a cable to B on one bridge, which is A's own interface too.
    far.wire(("wire1", "02:00:00:00:0e:01"), other, ("wire0", B_MAC), 1600)?;
    far.ip(&format!("link add wires address {A_MAC} mtu 1600 type bridge mcast_snooping 0"))?;
    for port in [FAR.1, "wire1"] {
        far.ip(&format!("link set {port} master wires"))?;
    }
    far.ip("link set wires up")?;
    far.wire(("cable", "02:00:00:00:0e:02"), other, ("cable", "02:00:00:00:0e:03"), 1500)?;
    for (host, address, device) in [(far, A4, "wires"), (other, B4, "wire0")] {
        host.ip(&format!("addr add {address}/24 dev {device}"))?;
        host.ip(&format!(
            "neigh replace {LOCAL4} lladdr {} dev {device} nud permanent",
            peregrine_tests::NEAR.2
        ))?;
        host.ip(&format!(
            "link add vx mtu 1500 type vxlan id {LOOP} local {address} remote {LOCAL4} dstport 4789 noudpcsum"
        ))?;
        host.ip("link add overlay type bridge mcast_snooping 0")?;
        for port in ["vx", "cable"] {
            host.ip(&format!("link set {port} master overlay"))?;
            host.ip(&format!("link set {port} up"))?;
        }
        host.ip("link set overlay up")?;
    }
    Ok(())
}

/// The tenant's frame goes to both, comes back from both, and that is all.
fn comes_back_once(bench: &mut Bench, destination: &str) -> Outcome {
    let inner =
        bench.scapy(&format!("Ether(src=TENANT, dst={destination})/IP(src=T4, dst='255.255.255.255')/u(9)"));
    let is_copy = |outer: &Outer| outer.vni() == LOOP && outer.inner == inner;
    let mut copies: Vec<Outer> = bench.outbound(LOOP, std::slice::from_ref(&inner))?;
    copies.retain(is_copy);
    let mut back = copies.iter().filter(|copy| copy.to == LOCAL4).count();
    if back < 2 {
        let rest = bench.wire_until(PATIENCE, |frame| {
            back +=
                usize::from(Outer::parse(frame).is_some_and(|outer| is_copy(&outer) && outer.to == LOCAL4));
            back >= 2
        });
        let rest = rest.ok_or_else(|| Not::Fail("it does not come back from both".into()))?;
        copies.extend(rest.iter().filter_map(|frame| Outer::parse(frame)).filter(is_copy));
    }
    copies.extend(left_meanwhile(bench)?.into_iter().filter(is_copy));
    let mut ways: Vec<(&str, &str)> =
        copies.iter().map(|copy| (copy.from.as_str(), copy.to.as_str())).collect();
    ways.sort_unstable();
    ensure!(
        ways == [(LOCAL4, A4), (LOCAL4, B4), (A4, LOCAL4), (B4, LOCAL4)],
        "{} copies from us, {} back",
        ways.iter().filter(|(from, _)| *from == LOCAL4).count(),
        ways.iter().filter(|(_, to)| *to == LOCAL4).count()
    );
    Ok(())
}

fn loop_of_vteps(bench: &mut Bench) -> Outcome {
    bench.needs(Has::HeadEnd)?;
    let other = bench.net.host("other");
    let made = two_vteps(&bench.net.far, &other).map_err(|error| Not::Fail(format!("no VTEPs: {error}")));
    let outcome = made.and_then(|()| {
        for round in 1..=3 {
            for destination in ["ALL", "'01:00:5e:01:02:03'", "'02:00:00:00:42:96'"] {
                comes_back_once(bench, destination)
                    .map_err(|not| said(format!("round {round}, to {destination}"), not))?;
            }
        }
        Ok(())
    });
    // The wire is the suite's again.
    for device in ["vx", "overlay", "cable", "wires", "wire1"] {
        let _absent = bench.net.far.ip(&format!("link del {device}"));
    }
    outcome
}

/// `peregrine check` refuses it, and its one line says all of this.
fn refused(bench: &Bench, uplink: &str, network: &str, says: &[&str]) -> Outcome {
    only_ours(bench, "not a file to be checked")?;
    let text = format!(
        "[[workers]]\ncore = {}\n[uplink]\ninterface = \"near0\"\n{uplink}\n[[networks]]\nname = \"blue\"\nvni = 42\n{network}\n",
        cores().0
    );
    let file = bench.net.file("mistake.toml");
    std::fs::write(&file, text).map_err(|error| error.to_string())?;
    let mut command = std::process::Command::new(program("peregrine"));
    let output = command.arg("check").arg(&file).output().map_err(|error| error.to_string())?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(output.status.code() == Some(2), "status {:?}: {said}", output.status.code());
    let lines: Vec<&str> = said.lines().filter(|line| line.contains("mistake.toml")).collect();
    ensure!(lines.len() == 1, "{} lines: {said}", lines.len());
    for word in says {
        ensure!(lines[0].contains(word), "it does not say {word}: {said}");
    }
    Ok(())
}

fn config_mtu(bench: &mut Bench) -> Outcome {
    refused(bench, "local = \"192.0.2.1\"", "mtu = 9001", &["networks[0].mtu", "9001"])?;
    refused(bench, "local = \"192.0.2.1\"", "mtu = 100", &["networks[0].mtu", "100", "576"])
}

fn config_mtu_of_the_uplink(bench: &mut Bench) -> Outcome {
    only_ours(bench, "not a file to be checked")?;
    let near = &bench.net.near;
    for command in [
        "link add small0 mtu 1500 type veth peer name small1 mtu 1500",
        "addr add 203.0.113.1/24 dev small0",
        "link set small0 up",
        "link set small1 up",
    ] {
        near.ip(command).map_err(|error| error.to_string())?;
    }
    let text = format!(
        "control_socket = \"{}\"\n[[workers]]\ncore = {}\n[uplink]\ninterface = \"small0\"\nlocal = \"203.0.113.1\"\nmode = \"copy\"\n\
         [[networks]]\nname = \"blue\"\nvni = 42\nmtu = 1451\n",
        bench.net.file("second.sock").display(),
        cores().0
    );
    let ended = Daemon::refused(&bench.net, &text);
    let _absent = near.ip("link del small0");
    ensure!(ended.code == Some(1), "status {:?}: {}", ended.code, ended.said);
    for word in ["blue", "small0", "1500", "1451", "1501", "1450"] {
        ensure!(ended.said.contains(word), "it does not say {word}: {}", ended.said);
    }
    Ok(())
}

fn config_self(bench: &mut Bench) -> Outcome {
    refused(
        bench,
        "local = \"192.0.2.1\"",
        "remotes = [\"192.0.2.1\"]",
        &["networks[0].remotes[0]", "192.0.2.1"],
    )
}

fn config_port(bench: &mut Bench) -> Outcome {
    refused(bench, "local = \"192.0.2.1\"\nport = 50000", "", &["port", "50000"])
}

fn config_multicast(bench: &mut Bench) -> Outcome {
    refused(
        bench,
        "local = \"192.0.2.1\"",
        "remotes = [\"239.1.1.1\"]",
        &["networks[0].remotes[0]", "239.1.1.1"],
    )?;
    refused(bench, "local = \"239.1.1.1\"", "", &["uplink.local", "239.1.1.1"])
}

fn config_versions(bench: &mut Bench) -> Outcome {
    refused(
        bench,
        "local = \"192.0.2.1\"",
        "remotes = [\"2001:db8::2\"]",
        &["networks[0].remotes[0]", "2001:db8::2"],
    )
}
