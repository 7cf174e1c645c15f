//! What both halves do, with the same programs: ping, iperf3 and curl between container a1 on one host and b1 on the other.

use std::process::Command;
use std::time::{Duration, Instant};

use serde::Serialize;
use serde_json::Value;

use super::{A1, B1, Container, Lab, ON_A, ON_B};
use crate::demo::measure::{parse, ping_times};
use crate::demo::{DemoError, say};
use crate::lab::{LabError, Process, run_even_if};

/// Programs are ready within this, or something is wrong.
pub(super) const READY: Duration = Duration::from_secs(10);
/// Pings that are timed.
const PINGS: usize = 200;
/// The size of the file that is fetched.
pub(super) const FILE_BYTES: usize = 10 << 20;
/// Bytes of a small UDP packet, and how many of them a second.
pub(super) const UDP_BYTES: u64 = 64;
pub(super) const UDP_RATE: u64 = 10_000;
/// Where a1 serves the file.
const HTTP_PORT: u16 = 8000;

/// What one half achieved.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Figures {
    /// From the first container to the first answer between hosts.
    pub(super) first_ping_ms: f64,
    /// Pairs of containers, and of how many the one reached the other.
    pub(super) pairs: usize,
    pub(super) pairs_reached: usize,
    pub(super) ping: Ping,
    pub(super) tcp: Tcp,
    pub(super) udp: Udp,
    pub(super) curl_ipv4: Curl,
    pub(super) curl_ipv6: Curl,
}

/// One ping after the other.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Ping {
    pub(super) sent: usize,
    pub(super) received: usize,
    pub(super) rtt_us_p50: f64,
    pub(super) rtt_us_p90: f64,
}

/// `iperf3`: one connection.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Tcp {
    pub(super) gbit_s: f64,
    pub(super) retransmits: u64,
}

/// `iperf3 --udp`: small packets at a fixed rate.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Udp {
    pub(super) sent: u64,
    pub(super) lost: u64,
}

/// One file.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Curl {
    /// Of HTTP.
    pub(super) status: u16,
    pub(super) bytes: usize,
    /// Each byte is as it was sent.
    pub(super) intact: bool,
    pub(super) milliseconds: f64,
}

/// Writes the file that will be fetched, and returns what is in it: nothing that repeats, so that no byte that is missing or in another
/// place can be overlooked.
pub(super) fn make_file(lab: &Lab) -> Result<Vec<u8>, DemoError> {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    let mut content = Vec::with_capacity(FILE_BYTES);
    while content.len() < FILE_BYTES {
        // xorshift64
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        content.extend(state.to_le_bytes());
    }
    lab.place.write("file", &content)?;
    Ok(content)
}

/// Everything, in the half that is called so, whose containers began to be made at `began`.
pub(super) fn measure_all(lab: &Lab, file: &[u8], began: Instant, who: &str) -> Result<Figures, DemoError> {
    let first_ping_ms = first_ping(lab, began)?;
    let (pairs, pairs_reached) = everybody(lab)?;
    say(&format!("(b) {PINGS} pings through {who}"));
    let ping = ping(lab)?;
    say(&format!(
        "(c) iperf3 through {who}: TCP, then {UDP_RATE} small packets a second, {:?} each",
        lab.duration
    ));
    let (tcp, udp) = iperf(lab)?;
    say(&format!("(d) curl fetches a file through {who}"));
    let (curl_ipv4, curl_ipv6) = curl(lab, file)?;
    Ok(Figures { first_ping_ms, pairs, pairs_reached, ping, tcp, udp, curl_ipv4, curl_ipv6 })
}

/// Pings until an answer comes, and returns how long that is after `began`.
fn first_ping(lab: &Lab, began: Instant) -> Result<f64, LabError> {
    let deadline = Instant::now() + READY;
    while !reaches(&mut lab.on_a(A1, "ping"), &B1, "0.1")? {
        lab.check()?;
        if Instant::now() >= deadline {
            let what = format!("the first ping from {} to {}", A1.name, B1.name);
            return Err(LabError::Late { what, waited: READY, said: String::new() });
        }
    }
    Ok(milliseconds(began))
}

/// Whether one ping is answered within so many seconds.
fn reaches(ping: &mut Command, to: &Container, patience: &str) -> Result<bool, LabError> {
    let text = run_even_if(1, ping.args(["-n", "-c", "1", "-W", patience, &to.v4()]))?;
    Ok(!ping_times(&text).is_empty())
}

/// How many pairs of containers there are, and how many of them reach each other.
fn everybody(lab: &Lab) -> Result<(usize, usize), LabError> {
    let (mut pairs, mut reached) = (0, 0);
    let all = || ON_A.into_iter().chain(ON_B);
    for (at, from) in all().enumerate() {
        for to in all().filter(|to| to.name != from.name) {
            lab.check()?;
            let mut ping = if at < ON_A.len() { lab.on_a(from, "ping") } else { lab.on_b(from, "ping") };
            pairs += 1;
            reached += usize::from(reaches(&mut ping, &to, "2")?);
        }
    }
    Ok((pairs, reached))
}

fn ping(lab: &Lab) -> Result<Ping, LabError> {
    let mut command = lab.on_a(A1, "ping");
    command.args(["-n", "-i", "0.01", "-W", "1", "-c", &PINGS.to_string(), &B1.v4()]);
    let text = run_even_if(1, &mut command)?;
    let times = ping_times(&text);
    let at = |percent: usize| times.get(times.len() * percent / 100).copied().unwrap_or(0.0) * 1000.0;
    Ok(Ping { sent: PINGS, received: times.len(), rtt_us_p50: at(50), rtt_us_p90: at(90) })
}

/// A program that serves; it says on standard error when it is ready.
fn server(mut command: Command, line: &str, ready: &str) -> Result<Process, LabError> {
    let mut server = Process::start(command.args(["-c", &format!("exec {line} >&2")]))?;
    server.wait_for_line(ready, READY)?;
    Ok(server)
}

/// One TCP connection from a1 to b1, then small packets.
fn iperf(lab: &Lab) -> Result<(Tcp, Udp), LabError> {
    let _server = server(lab.on_b(B1, "sh"), "iperf3 --server --forceflush", "Server listening")?;
    let client = |more: &[&str]| -> Result<Value, LabError> {
        let mut command = lab.on_a(A1, "iperf3");
        command.args(["--json", "--connect-timeout", "5000", "--time", &lab.duration.as_secs().to_string()]);
        command.args(["--client", &B1.v4()]).args(more);
        let report: Value =
            parse("iperf3", &Process::start(&mut command)?.finish(lab.duration + READY, &|| lab.stopped())?)?;
        Ok(report["end"].clone())
    };
    let figure = |value: &Value, what: &str| {
        let why = || LabError::Answer { what: "iperf3 --json".into(), why: format!("it has no {what}") };
        value.as_f64().ok_or_else(why)
    };
    let end = client(&[])?;
    let tcp = Tcp {
        gbit_s: figure(&end["sum_received"]["bits_per_second"], "bits_per_second")? / 1e9,
        retransmits: figure(&end["sum_sent"]["retransmits"], "retransmits")? as u64,
    };
    let bits = (UDP_BYTES * 8 * UDP_RATE).to_string();
    let end = client(&["--udp", "--length", &UDP_BYTES.to_string(), "--bitrate", &bits])?;
    let udp = Udp {
        sent: figure(&end["sum"]["packets"], "packets")? as u64,
        lost: figure(&end["sum"]["lost_packets"], "lost_packets")? as u64,
    };
    Ok((tcp, udp))
}

/// b1 fetches the file from a1, over IPv4 and over IPv6.
fn curl(lab: &Lab, file: &[u8]) -> Result<(Curl, Curl), DemoError> {
    let folder = lab.place.file("");
    let line = format!("python3 -u -m http.server --bind :: --directory {} {HTTP_PORT}", folder.display());
    let _server = server(lab.on_a(A1, "sh"), &line, "Serving HTTP")?;
    Ok((fetch(lab, file, &A1.v4())?, fetch(lab, file, &format!("[{}]", A1.v6()))?))
}

fn fetch(lab: &Lab, file: &[u8], host: &str) -> Result<Curl, DemoError> {
    let came = lab.place.file("came");
    let _absent = std::fs::remove_file(&came);
    let mut command = lab.on_b(B1, "curl");
    command.args(["--silent", "--show-error", "--globoff", "--max-time", "30"]);
    command.args(["--write-out", "%{http_code}", "--output"]).arg(&came);
    command.arg(format!("http://{host}:{HTTP_PORT}/file"));
    let began = Instant::now();
    let status = Process::start(&mut command)?.finish(READY + Duration::from_secs(30), &|| lab.stopped())?;
    let milliseconds = milliseconds(began);
    let content = std::fs::read(&came).map_err(|error| {
        DemoError::Here(format!("cannot read what curl wrote to {}: {error}", came.display()))
    })?;
    Ok(Curl {
        status: status.trim().parse().unwrap_or(0),
        bytes: content.len(),
        intact: content == file,
        milliseconds,
    })
}

fn milliseconds(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1000.0
}
