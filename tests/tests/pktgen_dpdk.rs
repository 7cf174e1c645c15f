//! `peregrine-pktgen` against a second witness that is not ours: what `send` reports is what DPDK's testpmd has received over
//! memif, and what testpmd has sent is what `sink` has seen. Packet for packet, at a rate and as fast as both can.
//!
//! testpmd forgets what it counted when its client goes, so it goes first, in the middle of the traffic: `send` then must not
//! count what still lies in the ring, and `sink` must not leave it there.
//!
//! Nothing here needs root, only `dpdk-testpmd`. testpmd is the server and polls on a core: so one test at a time.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use peregrine_control::lab::tethered;
use peregrine_memif::Role;
use peregrine_tests::{PATIENCE, TestpmdSetup, forwarded, program, until};
use serde_json::Value;
use tempfile::TempDir;

/// Held by the test that runs.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Starts the generator, lets the testpmd of this folder forward once the two are connected, and waits until a second of the run has
/// passed; if the generator was refused, what it said.
fn start(command: &Command, folder: &TempDir) -> Result<(Child, impl Iterator<Item = String>), Vec<String>> {
    let mut command = tethered(command);
    let mut child =
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map_while(Result::ok);
    let mut said = Vec::new();
    while let Some(line) = lines.next() {
        if line == "ready" {
            TestpmdSetup::forward(folder);
        }
        if line.trim_start().starts_with("1 s ") {
            return Ok((child, lines));
        }
        said.push(line);
    }
    child.wait().unwrap();
    Err(said)
}

/// Runs the generator against a testpmd that forwards in this way. When a second has passed testpmd is ended, and so the
/// generator ends. The generator's report, and what testpmd has said.
fn beside_testpmd(mode: &'static str, command: &str, arguments: &str) -> (Value, String) {
    let folder = tempfile::tempdir().unwrap();
    let setup = TestpmdSetup { mode, ..TestpmdSetup::new(Role::Client, &folder) };
    let testpmd = setup.testpmd(&folder);
    let mut pktgen = Command::new(program("peregrine-pktgen"));
    pktgen.args([command, "--json", "--seconds", "60", "--memif", &setup.addr.to_string()]);
    pktgen.args(arguments.split_whitespace());
    let mut running = None;
    // A DPDK server listens late, and then before it knows its interface: it refuses who comes until then.
    until("testpmd to answer", || match start(&pktgen, &folder) {
        Ok(started) => running.insert(started).0.id() > 0,
        Err(said) => {
            let too_early = ["ID not found", "nothing listens there"];
            assert!(said.iter().any(|line| too_early.iter().any(|what| line.contains(what))), "{said:?}");
            false
        }
    });
    let (pktgen, lines) = running.unwrap();
    let said = testpmd.stop(PATIENCE).unwrap_or_else(|why| panic!("{why}"));
    let lines: Vec<String> = lines.collect();
    assert!(lines.iter().any(|line| line.contains("peer closed the connection")), "{lines:?}");
    let ended = pktgen.wait_with_output().unwrap();
    let report: Value = serde_json::from_slice(&ended.stdout).unwrap();
    assert_eq!((ended.status.code(), report["ended"].as_str()), (Some(1), Some("peer")), "{report}");
    (report, said)
}

#[test]
fn testpmd_has_received_what_send_reports() {
    let _alone = alone();
    const FLOWS: &str = "--inner-source-mac 02:00:00:00:01:01 --inner-destination-mac 02:00:00:00:01:02 \
                         --inner-source 10.9.0.1 --inner-destination 10.9.0.2";
    for more in [
        "--rate max --size 64",
        "--rate max --size imix --flows 1000 --class a:3 --class b:1:46",
        "--rate 20000",
    ] {
        let (report, said) = beside_testpmd("rxonly", "send", &format!("{FLOWS} {more}"));
        let count = |key: &str| report[key].as_u64().unwrap();
        println!("{more}: sent {}, left in the ring {}", count("sent"), count("uncompleted"));
        assert_eq!((forwarded(&said, "RX-packets:"), forwarded(&said, "RX-dropped:")), (count("sent"), 0));
        assert!(count("sent") > 0 && count("uncompleted") <= 1024, "{report}");
    }
}

#[test]
fn sink_has_seen_what_testpmd_sent() {
    let _alone = alone();
    let (report, said) = beside_testpmd("txonly", "sink", "");
    let sent = forwarded(&said, "TX-packets:");
    assert!(sent > 0, "{said}");
    // They carry no trailer, so none of them is of ours; but none is missing.
    let counts = ["received", "not_ours"].map(|key| report[key].as_u64().unwrap());
    assert_eq!((counts, report["ring"]["bad_descriptors"].as_u64()), ([0, sent], Some(0)), "{report}");
}
