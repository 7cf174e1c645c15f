//! One system on the demo's hosts, and what is measured on it: rates by `peregrine-pktgen search`, CPU time over a
//! stream at the best load, round trips by `peregrine-pktgen send --rtt`. Dropped, everything is gone.

use std::cell::Cell;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use peregrine_control::client::Client;
use peregrine_control::demo::hosts::{Cores, ECHO, FAR, GENERATOR, Hosts, NEAR, SINK, VNI};
use peregrine_control::lab::{LabError, Namespace, Process};
use serde_json::Value;

use super::measured::{
    ATTEMPTS, Capacity, Case, Cpu, DISTURBED, Figures, PACKETS_MIN, PERCENTILES, RoundTrips, System,
};
use super::{Times, plain};
use crate::proc_stat::{self, TICKS, Ticks};

/// UDP ports of the tenant that counts and of the one that answers.
const SINK_PORT: u16 = 9000;
const ECHO_PORT: u16 = 9001;
/// Programs are ready, and gone, within this.
const PATIENCE: Duration = Duration::from_secs(10);
/// What the tenant that counts may leave waiting, small beside the packets of a trial or a stream, for it does not show
/// as loss: the same for the kernel's socket as `search` takes, and slots of the memif ring.
const UDP_BUFFER: &str = "524288";
const SINK_RING: &str = "4096";
/// It sleeps when it has nothing to do, so that its core's time is work; in the search as in the stream, so that the rates of
/// both are of the same receiver.
const SINK_WAIT: &str = "interrupt";
/// Round trips a second where nothing else is to be done.
const IDLE_PPS: u64 = 1000;
/// How often `status` is asked how busy the worker is.
const STATUS_EVERY: Duration = Duration::from_millis(100);
/// Half of the answers come within this, or there is a queue that grows: the rate is beyond the capacity.
const PROMPT_US: f64 = 1000.0;

/// A system that runs.
pub struct Bench {
    times: Times,
    // Before the hosts, so that the programs end first.
    daemon: Option<Process>,
    tenant: Option<Namespace>,
    hosts: Hosts,
    cores: Cores,
    pktgen: PathBuf,
    interrupted: Arc<AtomicBool>,
    /// Seconds left for attempts after the first.
    spare: Cell<f64>,
}

fn lab(error: LabError) -> String {
    error.to_string()
}

/// A program that is built beside this one.
pub fn program(name: &str) -> Result<PathBuf, String> {
    let here = std::env::current_exe().map_err(|error| format!("cannot find this program: {error}"))?;
    let path = here.with_file_name(name);
    let missing = || format!("{} is missing: build everything with `make build`", path.display());
    path.is_file().then_some(path.clone()).ok_or_else(missing)
}

impl Bench {
    pub fn start(system: System, times: Times, interrupted: Arc<AtomicBool>) -> Result<Bench, String> {
        let (daemon, pktgen) = (program("peregrine")?, program("peregrine-pktgen")?);
        let cores = Cores::choose().map_err(|error| plain(&error))?;
        let hosts = Hosts::create().map_err(|error| plain(&error))?;
        let mut bench = Bench {
            times,
            daemon: None,
            tenant: None,
            hosts,
            cores,
            pktgen,
            interrupted,
            spare: Cell::new(times.spare),
        };
        bench.go_on()?;
        if system != System::Peregrine {
            bench.tenant = Some(bench.hosts.kernel_overlay().map_err(lab)?);
            let core = (system == System::KernelRps).then_some(cores.worker);
            bench.hosts.steer_receiving(core).map_err(lab)?;
            return Ok(bench);
        }
        let config = bench.hosts.file("perf.toml");
        std::fs::write(&config, bench.hosts.peregrine_config(cores))
            .map_err(|error| format!("cannot write {}: {error}", config.display()))?;
        let mut command = bench.hosts.near.command(&daemon);
        let mut daemon = Process::start(command.args(["run", "-c"]).arg(&config)).map_err(lab)?;
        daemon.wait_for_line("ready", PATIENCE).map_err(lab)?;
        bench.daemon = Some(daemon);
        Ok(bench)
    }

    /// Ends it; Peregrine's last `status`.
    pub fn stop(mut self) -> Result<Option<Value>, String> {
        let Some(daemon) = self.daemon.take() else { return Ok(None) };
        // On a busy machine it may not answer in time at once.
        let status = (0..3).find_map(|_| self.status());
        daemon.stop(PATIENCE).map_err(lab)?;
        Ok(status)
    }

    /// The highest rate of round trips of which at most 0.5 % are lost (where the search finds none, half of what was
    /// answered at best), and half come back within a millisecond: a socket's buffer keeps so much that a short trial
    /// alone would not show that a rate is too high. The search takes so many seconds at most.
    pub fn round_trip_capacity(&self, case: Case, seconds: f64) -> Result<Capacity, String> {
        let echo = self.echo()?;
        let mut command = self.generator("search", case, self.answerer(), ECHO_PORT);
        let report = self.finish(self.bound_search(&mut command, seconds).arg("--rtt"))?;
        let found = &report["sizes"][0];
        let answered = found["max_received_pps"].as_f64().unwrap_or(0.0);
        let mut pps = found["pdr"]["pps"].as_f64().filter(|pps| *pps > 0.0).unwrap_or(answered / 2.0);
        let mut prompt = false;
        for _ in 0..self.times.capacity_steps {
            let [p50, ..] = self.round_trips(case, "capacity", (pps as u64).max(1))?.us;
            prompt = p50.is_some_and(|p50| p50 <= PROMPT_US);
            if prompt {
                break;
            }
            pps *= self.times.capacity_step;
        }
        echo.stop(PATIENCE).map_err(lab)?;
        Ok(Capacity { pps: pps as u64, prompt })
    }

    /// Everything of one case. `capacity` is the kernel's, in round trips; the search takes so many seconds at most, and
    /// begins at `start` if there is one.
    pub fn measure(
        &self,
        case: Case,
        capacity: u64,
        seconds: f64,
        start: Option<u64>,
    ) -> Result<Figures, String> {
        let begun = Instant::now();
        let mut command = self.generator("search", case, self.counter(), SINK_PORT);
        // Only the rate without loss is wanted: with a loss of 0 allowed the two searches are one.
        self.bound_search(&mut command, seconds).args(["--loss", "0"]).args(self.sink_of_search());
        if let Some(start) = start {
            command.args(["--rate-start", &start.to_string()]);
        }
        let found = self.finish(&mut command)?;
        let search_seconds = begun.elapsed().as_secs_f64();
        let found = &found["sizes"][0];
        let (received, cpu) = self.stream(case, &best_load(found))?;
        let echo = self.echo()?;
        let part = |percent: u64| (capacity * percent / 100).max(1);
        let loads = [("idle", IDLE_PPS), ("10", part(10)), ("50", part(50)), ("90", part(90))];
        let round_trips: Result<Vec<RoundTrips>, String> =
            loads.into_iter().map(|(load, pps)| self.round_trips(case, load, pps)).collect();
        echo.stop(PATIENCE).map_err(lab)?;
        let ndr_pps = found["ndr"]["pps"].as_f64().unwrap_or(0.0);
        Ok(Figures {
            // The most that arrives at any loss is no less than what arrives without. The two were measured alike, but one
            // after the other, and between them the machine may have changed by more than what they differ by.
            max_pps: received.max(ndr_pps),
            ndr_pps,
            search_seconds,
            ndr_end: found["ndr"]["end"].as_str().unwrap_or("unknown").to_string(),
            cpu,
            round_trips: round_trips?,
        })
    }

    /// At this rate; packets a second that arrived, and what they cost.
    fn stream(&self, case: Case, rate: &str) -> Result<(f64, Cpu), String> {
        let mut command = self.far_end("sink", SINK_PORT, SINK_WAIT, &["--idle-ms", "150"]);
        if self.tenant.is_some() {
            command.args(["--udp-buffer", UDP_BUFFER]);
        }
        let mut sink = Process::start(&mut command).map_err(lab)?;
        sink.wait_for_line("ready", PATIENCE).map_err(lab)?;
        let mut command = self.generator("send", case, self.counter(), SINK_PORT);
        let seconds = if self.daemon.is_some() { self.times.stream_peregrine } else { self.times.stream };
        command.args(["--rate", rate, "--seconds", &seconds.to_string()]);
        let before = self.ticks()?;
        let (asked, busy_share) = (Cell::new(Instant::now()), Cell::new(f64::NAN));
        let watch = || {
            // The worker's share is over the last second; its highest is the one of a second that was all stream.
            if self.daemon.is_some() && asked.get().elapsed() >= STATUS_EVERY {
                asked.set(Instant::now());
                let share = self.status().and_then(|status| status["workers"][0]["busy"].as_f64());
                busy_share.set(busy_share.get().max(share.unwrap_or(f64::NAN)));
            }
            self.stopped()
        };
        let sender = Process::start(&mut command).map_err(lab)?;
        sender.finish(self.patience(seconds), &watch).map_err(lab)?;
        let after = self.ticks()?;
        let got = json(&sink.finish(PATIENCE, &|| self.stopped()).map_err(lab)?)?;
        let received = got["received"].as_f64().unwrap_or(0.0);
        let per_million = |after: Ticks, before: Ticks| match received {
            0.0 => 0.0,
            received => after.since(before).busy as f64 / TICKS * 1e6 / received,
        };
        let ([generator_after, other_after], [generator_before, other_before]) = (after, before);
        let generator_core = per_million(generator_after, generator_before);
        let other_core = per_million(other_after, other_before);
        let busy_share = if self.daemon.is_some() { busy_share.get() } else { 1.0 };
        let cpu = Cpu {
            generator_core,
            other_core,
            total: generator_core + other_core,
            busy_share,
            total_busy: generator_core + other_core * busy_share,
        };
        // By arrivals: what waited in a buffer at the sender's end adds its time, too.
        Ok((got["received_pps"].as_f64().unwrap_or(0.0), cpu))
    }

    /// Again if something disturbed them, as far as there is time: the attempt that was disturbed least counts.
    fn round_trips(&self, case: Case, load: &'static str, pps: u64) -> Result<RoundTrips, String> {
        let mut best = self.one_attempt(case, load, pps)?;
        let mut attempts = 1;
        while best.disturbed > DISTURBED && attempts < ATTEMPTS && self.spare.get() > 0.0 {
            let begun = Instant::now();
            let again = self.one_attempt(case, load, pps)?;
            self.spare.set(self.spare.get() - begun.elapsed().as_secs_f64());
            attempts += 1;
            if again.disturbed < best.disturbed {
                best = again;
            }
        }
        Ok(RoundTrips { attempts, ..best })
    }

    fn one_attempt(&self, case: Case, load: &'static str, pps: u64) -> Result<RoundTrips, String> {
        let Times { round_trips: least, round_trips_longest: most, packets, .. } = self.times;
        let seconds = (packets / pps as f64).clamp(least, most);
        let counts = self.hosts.file("rtt.counts");
        let mut command = self.generator("send", case, self.answerer(), ECHO_PORT);
        command.args(["--rtt", "--rate", &pps.to_string(), "--seconds", &seconds.to_string()]);
        command.arg("--rtt-counts").arg(&counts);
        let before = self.ticks()?;
        let report = self.finish(&mut command)?;
        let after = self.ticks()?;
        let stolen: u64 = after.iter().zip(before).map(|(after, before)| after.since(before).stolen).sum();
        let stolen_ms = stolen as f64 * 1000.0 / TICKS;
        let number = |key: &str| report[key].as_u64().unwrap_or(0);
        let (sent, late, answered) = (number("sent"), number("late"), number("received"));
        let mut us = [None; 6];
        for ((us, name), least) in us.iter_mut().zip(PERCENTILES).zip(PACKETS_MIN) {
            *us = report["rtt_us"][name].as_f64().filter(|_| answered >= least);
        }
        let disturbed = late as f64 / sent.max(1) as f64 + stolen_ms / 1000.0 / seconds;
        let lost = number("lost");
        let floor_ns = report["floor_ns"]["p50"].as_f64();
        let text = std::fs::read_to_string(&counts)
            .map_err(|error| format!("cannot read {}: {error}", counts.display()))?;
        let counts = parse_counts(&text)?;
        Ok(RoundTrips {
            load,
            pps,
            sent,
            lost,
            late,
            stolen_ms,
            disturbed,
            attempts: 1,
            floor_ns,
            us,
            counts,
        })
    }

    /// Bounds of a search, and no latency: that is measured as round trips.
    fn bound_search<'a>(&self, command: &'a mut Command, seconds: f64) -> &'a mut Command {
        let Times { first_trial, trial, sum, width, .. } = self.times;
        let bounds = [
            ("--seconds", seconds),
            ("--first-trial-seconds", first_trial),
            ("--trial-seconds", trial),
            ("--sum-seconds", sum),
            ("--width", width),
        ];
        for (flag, value) in bounds {
            command.args([flag, &value.to_string()]);
        }
        command.args(["--no-latency", "--rate-min", "1000"])
    }

    /// The far end of a search, in the generator's own process.
    fn sink_of_search(&self) -> Vec<String> {
        let words: Vec<String> = match &self.tenant {
            Some(tenant) => {
                let address = format!("{}:{SINK_PORT}", ECHO.0);
                vec!["--sink-udp".into(), address, "--sink-netns".into(), tenant.name().into()]
            }
            None => {
                let socket = self.hosts.file("memif.sock").display().to_string();
                let words = ["--sink-memif", &socket, "--sink-id", "1", "--sink-ring-size", SINK_RING];
                words.map(String::from).into()
            }
        };
        let how =
            ["--sink-wait", SINK_WAIT, "--sink-core", &self.tenant_core().to_string()].map(String::from);
        [words, how.into()].concat()
    }

    /// The tenant that answers, as `(ip, mac)`; of the kernel's overlay there is one tenant only, with two sockets.
    fn answerer(&self) -> (&'static str, &'static str) {
        ECHO
    }

    fn counter(&self) -> (&'static str, &'static str) {
        if self.tenant.is_some() { ECHO } else { SINK }
    }

    /// A memif tenant shares the generator's core: the other one is the worker's. The kernel's has the other one.
    fn tenant_core(&self) -> usize {
        if self.tenant.is_some() { self.cores.worker } else { self.cores.generator }
    }

    fn echo(&self) -> Result<Process, String> {
        let mut echo = Process::start(&mut self.far_end("echo", ECHO_PORT, "yield", &[])).map_err(lab)?;
        echo.wait_for_line("ready", PATIENCE).map_err(lab)?;
        Ok(echo)
    }

    /// A tenant's program.
    fn far_end(&self, what: &str, port: u16, wait: &str, more: &[&str]) -> Command {
        let mut command = self.pktgen(self.tenant.as_ref());
        command.args([what, "--json"]);
        if self.tenant.is_some() {
            command.args(["--udp", &format!("{}:{port}", ECHO.0)]);
        } else {
            let (id, ring) = if what == "echo" { ("0", "16384") } else { ("1", SINK_RING) };
            command.arg("--memif").arg(self.hosts.file("memif.sock"));
            command.args(["--id", id, "--ring-size", ring]);
            if what == "echo" {
                command.args(["--mac", ECHO.1, "--ip", ECHO.0]);
            }
        }
        command.args(["--wait", wait, "--core", &self.tenant_core().to_string()]).args(more);
        command
    }

    /// `send` or `search` on the far host, to this tenant.
    fn generator(&self, what: &str, case: Case, to: (&str, &str), port: u16) -> Command {
        let mut command = self.pktgen(Some(&self.hosts.far));
        command.args([what, "--json", "--interface", FAR.1, "--mode", "copy", "--next-hop", NEAR.2]);
        command.args(["--local", FAR.0, "--remote", NEAR.0, "--vni", &VNI.to_string()]);
        command.args(["--inner-source-mac", GENERATOR.1, "--inner-source", GENERATOR.0]);
        command.args(["--inner-destination-mac", to.1]);
        command.args(["--inner-destination", &format!("{}:{port}", to.0)]);
        command.args(["--size", &case.bytes.to_string(), "--flows", &case.flows.to_string()]);
        command.args(["--core", &self.cores.generator.to_string()]);
        command
    }

    /// With the highest ordinary priority in every system, so that other programs on these cores show less: those of the
    /// same session, where the kernel groups them by session (autogroup).
    fn pktgen(&self, host: Option<&Namespace>) -> Command {
        let mut command = host.map_or_else(|| Command::new("nice"), |host| host.command("nice"));
        command.args(["-n", "-20"]).arg(&self.pktgen);
        command
    }

    /// Runs a generator to its end.
    fn finish(&self, command: &mut Command) -> Result<Value, String> {
        self.go_on()?;
        let process = Process::start(command).map_err(lab)?;
        let text = process.finish(self.patience(self.times.search * 2.0), &|| self.stopped()).map_err(lab)?;
        json(&text)
    }

    fn patience(&self, seconds: f64) -> Duration {
        PATIENCE + Duration::from_secs_f64(seconds)
    }

    fn stopped(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    fn go_on(&self) -> Result<(), String> {
        if self.stopped() { Err("interrupted".into()) } else { Ok(()) }
    }

    fn status(&self) -> Option<Value> {
        Client::connect(&self.hosts.file("control.sock")).ok()?.call("status").ok()
    }

    /// What the generator's core and the other did since the machine was started.
    fn ticks(&self) -> Result<[Ticks; 2], String> {
        let text = proc_stat::read()?;
        let of = |core: usize| {
            Ticks::parse(&text, &format!("cpu{core}")).ok_or(format!("/proc/stat has no line for cpu{core}"))
        };
        Ok([of(self.cores.generator)?, of(self.cores.worker)?])
    }
}

/// Lines of nanoseconds and a count.
fn parse_counts(text: &str) -> Result<Vec<(u64, u64)>, String> {
    let parse = |line: &str| {
        let (ns, count) = line.split_once(' ')?;
        Some((ns.parse().ok()?, count.parse().ok()?))
    };
    let bad = |line: &str| format!("peregrine-pktgen's counts of round trips have a line `{line}`");
    text.lines().map(|line| parse(line).ok_or_else(|| bad(line))).collect()
}

/// The load of which most arrived in a search: packets a second, or `max`, if it never came to a load that was too much.
fn best_load(found: &Value) -> String {
    let received = |trial: &&Value| trial["received_pps"].as_f64().unwrap_or(0.0);
    // A queue may hide the loss of a short trial.
    let was_too_much =
        |trial: &Value| trial["loss_ratio"].as_f64().unwrap_or(0.0) > 0.0 || trial["queued"] == true;
    let trials = found["trials"].as_array().map(Vec::as_slice).unwrap_or_default();
    let trials = if trials.iter().any(was_too_much) { trials.iter() } else { [].iter() };
    let best = trials.max_by(|one, other| received(one).total_cmp(&received(other)));
    best.and_then(|trial| trial["pps"].as_u64()).map_or("max".into(), |pps| pps.to_string())
}

fn json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("peregrine-pktgen's report is not JSON: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn counts_are_read_or_the_line_is_named() {
        assert_eq!(parse_counts("5 1\n900 2\n"), Ok(vec![(5, 1), (900, 2)]));
        assert_eq!(parse_counts(""), Ok(Vec::new()));
        for bad in ["5", "5 -1", "x 1", ""] {
            let error = parse_counts(&format!("1 1\n{bad}\n")).unwrap_err();
            assert!(error.ends_with(&format!("`{bad}`")), "{error}");
        }
    }

    #[test]
    fn the_best_load_is_not_the_highest_where_an_overload_brings_less() {
        let trial = |pps: Option<u64>, received: f64| {
            let loss = if pps.is_some_and(|pps| pps < 100_000) { 0.0 } else { 0.1 };
            json!({"pps": pps, "received_pps": received, "loss_ratio": loss})
        };
        let collapsing =
            json!({"trials": [trial(None, 2400.0), trial(Some(300_000), 2e5), trial(Some(200_000), 1.9e5)]});
        assert_eq!(best_load(&collapsing), "300000");
        assert_eq!(best_load(&json!({"trials": [trial(None, 9e5), trial(Some(8), 8.0)]})), "max");
        assert_eq!(best_load(&json!({})), "max");
        let queued = json!({"pps": 7000, "received_pps": 6e3, "loss_ratio": 0.0, "queued": true});
        assert_eq!(best_load(&json!({"trials": [trial(Some(5000), 5e3), queued]})), "7000");
        // A search that had no time to come to a load that was too much.
        assert_eq!(best_load(&json!({"trials": [trial(Some(5000), 5e3), trial(Some(8), 8.0)]})), "max");
    }
}
