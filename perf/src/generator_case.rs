//! What `peregrine-pktgen send` can do and whether it does what it says: its full rate beside the bare ring or socket that it
//! sends on, and how exactly it keeps a rate. `main.rs` calls `run`.
//!
//! The generator runs as the program that a user runs, on a core of its own. Over memif the other core takes what is in the ring
//! and looks at none of it. Over AF_XDP a veth pair leads into another namespace, whose kernel throws away what is not for it; both
//! ends of that are worked on by the generator's core. The bare senders (`side`) push one constant frame and do nothing else: what
//! the ring and the socket can do at all. They take turns with the generator, so that what else the machine does meets all
//! alike; `ratio` compares runs that followed one another.
//!
//! Between two cores most of the time may go into moving cache lines, which is none of the generator's work. So that is also
//! measured by itself: one thread sends a burst, and takes it out of the ring while the clock stands (`micro`).

/// The generator, the bare senders, and who takes what they send.
mod side;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use peregrine_control::demo;
use peregrine_dataplane::clock::cycles_per_second;
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch};
use crate::figures::{median, null_as_nan, share, spread};
use crate::kernel_case::plain;
use crate::micro;

pub use side::Side;
use side::{Bench, Sender, Sent};

/// Runs of everything; the median counts.
const RUNS: usize = 5;
/// Bytes of all frames, without Ethernet's checksum.
const BYTES: usize = 64;
/// Packets a second that are asked for.
const RATES: [u64; 4] = [1_000, 10_000, 100_000, 1_000_000];

/// What carries the frames.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outlet {
    Memif,
    Xdp,
}

impl Outlet {
    pub fn name(self) -> &'static str {
        match self {
            Outlet::Memif => "memif",
            Outlet::Xdp => "AF_XDP, veth",
        }
    }
}

/// One sender as fast as it can, in the median of its runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Speed {
    pub outlet: Outlet,
    pub sender: String,
    pub mpps: f64,
    pub mpps_lowest: f64,
    pub mpps_highest: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub cycles_per_packet: f64,
    /// Its rate over the bare sender's: the median over the runs that followed one another.
    #[serde(deserialize_with = "null_as_nan")]
    pub ratio: f64,
    /// Cycles per packet without another core; absent where the kernel does most of the work.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work_cycles_per_packet: Option<f64>,
    /// The smallest part of a core that sender or taker had, in any run.
    #[serde(deserialize_with = "share")]
    pub core_share: f64,
}

/// How well a rate was kept.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Accuracy {
    pub outlet: Outlet,
    pub wanted_pps: u64,
    /// What was sent over what was wanted, less 1, in percent: the median, the lowest and the highest.
    pub error_percent: f64,
    pub error_percent_lowest: f64,
    pub error_percent_highest: f64,
    /// Of all runs: packets, those that left over 1 ms after their time, and those that were given up.
    pub sent: u64,
    pub late: u64,
    pub skipped: u64,
    /// As in [`Speed::core_share`].
    #[serde(deserialize_with = "share")]
    pub core_share: f64,
}

/// All of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cores: usize,
    pub runs: usize,
    pub bytes: usize,
    pub full_rate: Vec<Speed>,
    pub rates: Vec<Accuracy>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
}

impl Report {
    /// Two tables.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<14}{:<18}{:>8}{:>16}{:>15}{:>8}{:>13}\n",
            "full rate", "sender", "Mpps", "lowest–highest", "cycles/packet", "ratio", "work cycles"
        );
        for speed in &self.full_rate {
            let spread = format!("{:.2}–{:.2}", speed.mpps_lowest, speed.mpps_highest);
            let work = speed.work_cycles_per_packet.map_or("-".into(), |cycles| format!("{cycles:.0}"));
            out += &format!(
                "{:<14}{:<18}{:>8.2}{:>16}{:>15.0}{:>8.2}{:>13}\n",
                speed.outlet.name(),
                speed.sender,
                speed.mpps,
                spread,
                speed.cycles_per_packet,
                speed.ratio,
                work
            );
        }
        out += &format!(
            "\n{:<14}{:>12}{:>10}{:>18}{:>10}{:>10}\n",
            "rate", "wanted pps", "error %", "lowest–highest", "late", "given up"
        );
        for rate in &self.rates {
            let spread = format!("{:+.3}–{:+.3}", rate.error_percent_lowest, rate.error_percent_highest);
            out += &format!(
                "{:<14}{:>12}{:>+10.3}{:>18}{:>10}{:>10}\n",
                rate.outlet.name(),
                rate.wanted_pps,
                rate.error_percent,
                spread,
                rate.late,
                rate.skipped
            );
        }
        let shares = self.full_rate.iter().map(|speed| speed.core_share);
        let least = shares.chain(self.rates.iter().map(|rate| rate.core_share)).fold(1.0, f64::min) * 100.0;
        out + &format!(
            "Median of {} runs each, in turns, {} bytes a frame; {} cores: on one the generator (over veth with the kernel's part of\n\
             both ends), on the other who empties the memif ring. Work cycles: the sender alone, all in its core's cache.\n\
             In its worst run a thread had {least:.0} % of its core.\n",
            self.runs, self.bytes, self.cores
        )
    }
}

/// Runs everything. Namespaces and programs are gone when it returns, however it ends.
pub fn run(quick: bool) -> Result<Report, String> {
    let interrupted = Arc::new(AtomicBool::new(false));
    demo::check_requirements().map_err(|error| plain(&error))?;
    demo::catch_signals(&interrupted).map_err(|error| plain(&error))?;
    let bench = Bench::new(if quick { 0.3 } else { 2.0 }, interrupted.clone())?;
    let result = measure(&bench, quick);
    if interrupted.load(Ordering::Relaxed) {
        return Err("interrupted; everything that it made was removed".into());
    }
    result
}

fn measure(bench: &Bench, quick: bool) -> Result<Report, String> {
    let watch = Watch::start();
    let work = |case| micro::cycles_of(quick, case).map(Some);
    let memif = [
        (Sender::Bare, work("memif/send/client/64")?),
        (Sender::Pktgen { flows: 1, pps: None }, work("generator/1-flow")?),
        (Sender::Pktgen { flows: 1000, pps: None }, work("generator/1000-flows")?),
    ];
    let xdp = [(Sender::Bare, None), (Sender::Pktgen { flows: 1, pps: None }, None)];
    let mut full_rate = speeds(bench, Outlet::Memif, &memif)?;
    full_rate.extend(speeds(bench, Outlet::Xdp, &xdp)?);
    let mut rates = Vec::new();
    for outlet in [Outlet::Memif, Outlet::Xdp] {
        for pps in RATES {
            rates.push(accuracy(bench, outlet, pps)?);
        }
    }
    Ok(Report { cores: 2, runs: RUNS, bytes: BYTES, full_rate, rates, environment: Some(watch.end()) })
}

/// All senders of an outlet, the bare one first, in turns.
fn speeds(bench: &Bench, outlet: Outlet, senders: &[(Sender, Option<f64>)]) -> Result<Vec<Speed>, String> {
    let mut runs: Vec<Vec<Sent>> = vec![Vec::new(); senders.len()];
    for run in 0..RUNS {
        for at in 0..senders.len() {
            // Who is first changes, so that what drifts favours nobody.
            let at = (at + run) % senders.len();
            if let (Some((sender, _)), Some(runs)) = (senders.get(at), runs.get_mut(at)) {
                runs.push(bench.send(outlet, *sender)?);
            }
        }
    }
    let bare = runs.first().cloned().unwrap_or_default();
    let speed = |((sender, work), runs): (&(Sender, Option<f64>), Vec<Sent>)| {
        let ratios = runs.iter().zip(&bare).map(|(run, bare)| run.rate() / bare.rate()).collect();
        let [lowest, middle, highest] = spread(runs.iter().map(Sent::rate).collect()).unwrap_or_default();
        Speed {
            outlet,
            sender: sender.name(),
            mpps: middle / 1e6,
            mpps_lowest: lowest / 1e6,
            mpps_highest: highest / 1e6,
            cycles_per_packet: cycles_per_second() as f64 / middle,
            ratio: median(ratios),
            work_cycles_per_packet: *work,
            core_share: least_share(&runs),
        }
    };
    Ok(senders.iter().zip(runs).map(speed).collect())
}

fn least_share(runs: &[Sent]) -> f64 {
    runs.iter().map(|run| run.core_share).fold(1.0, f64::min)
}

fn accuracy(bench: &Bench, outlet: Outlet, pps: u64) -> Result<Accuracy, String> {
    let sender = Sender::Pktgen { flows: 1, pps: Some(pps) };
    let runs = (0..RUNS).map(|_| bench.send(outlet, sender)).collect::<Result<Vec<Sent>, _>>()?;
    let errors = runs.iter().map(|run| (run.rate() / pps as f64 - 1.0) * 100.0).collect();
    let [lowest, middle, highest] = spread(errors).unwrap_or_default();
    let sum = |count: fn(&Sent) -> u64| runs.iter().map(count).sum();
    Ok(Accuracy {
        outlet,
        wanted_pps: pps,
        error_percent: middle,
        error_percent_lowest: lowest,
        error_percent_highest: highest,
        sent: sum(|run| run.sent),
        late: sum(|run| run.late),
        skipped: sum(|run| run.skipped),
        core_share: least_share(&runs),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_say_what_was_measured() {
        let speed = Speed {
            outlet: Outlet::Memif,
            sender: "send, 1 flow".into(),
            mpps: 40.0,
            mpps_lowest: 38.0,
            mpps_highest: 41.0,
            cycles_per_packet: 65.0,
            ratio: 0.9,
            work_cycles_per_packet: Some(39.4),
            core_share: 0.97,
        };
        let rate = Accuracy {
            outlet: Outlet::Xdp,
            wanted_pps: 1000,
            error_percent: -0.02,
            error_percent_lowest: -0.5,
            error_percent_highest: 0.01,
            sent: 5000,
            late: 3,
            skipped: 4,
            core_share: 0.5,
        };
        let report = Report {
            cores: 2,
            runs: 5,
            bytes: 64,
            full_rate: vec![speed],
            rates: vec![rate],
            environment: None,
        };
        let text = report.text();
        let lines: Vec<Vec<&str>> = text.lines().map(|line| line.split_whitespace().collect()).collect();
        assert_eq!(lines[1], ["memif", "send,", "1", "flow", "40.00", "38.00–41.00", "65", "0.90", "39"]);
        assert_eq!(lines[4], ["AF_XDP,", "veth", "1000", "-0.020", "-0.500–+0.010", "3", "4"]);
        assert!(text.contains("had 50 % of its core"), "{text}");
        let again: Report = serde_json::from_str(&crate::figures::json(&report)).unwrap();
        assert_eq!(again.text(), text);
    }
}
