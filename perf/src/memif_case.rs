//! Packets from one process to another over one memif ring, each pinned to a core of its own: this project's memif
//! crate beside DPDK's testpmd on both ends, in turns, in the same run. `main.rs` calls `run`.
//!
//! Like for like: the client sends and the server receives, in rings of 1024 slots and buffers of 2048 bytes; the
//! sender writes each packet anew and pushes bursts of 32; the receiver copies each packet to memory of its own; only
//! packets that the receiver got count, over a window that begins after a warm-up. The two programs take turns, so that
//! what else the machine does meets both alike, and the report says how much of its core each polling thread had. How
//! far the two cores are from one another matters most, for either program: on cores that share a cache both move
//! several times as many packets as on cores that do not, and where virtual cores lie is the host's choice of the moment.
//! So `ratio` compares runs that followed one another.

/// This project's two processes.
mod ours;
/// DPDK's two processes.
mod testpmd;

use std::time::Duration;

use peregrine_dataplane::clock::cycles_per_second;
use serde::{Deserialize, Serialize};

use crate::environment::{Environment, Watch, two_cores};
use crate::figures::{median, null_as_nan, share, spread};

use ours::measure as measure_ours;
pub use ours::{Side, accept};
use testpmd::Testpmd;

/// Bytes of the packets, without Ethernet's checksum.
const SIZES: [usize; 3] = [64, 512, 1500];
/// Runs of each program at each size; the median counts.
const RUNS: usize = 5;
/// log2 of the slots of a ring, and bytes of a buffer: the defaults of both programs.
const RING_LOG2: u8 = 10;
const BUFFER_BYTES: usize = 2048;
/// Packets that a sender publishes together: DPDK's burst.
const BURST: usize = 32;

/// Which core each side polls on.
#[derive(Clone, Copy, Debug)]
struct Cores {
    receiver: usize,
    sender: usize,
}

/// How long packets flow.
#[derive(Clone, Copy, Debug)]
struct Times {
    warm_up: Duration,
    window: Duration,
}

/// What one run gave.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Run {
    /// Packets that the receiver got in the window.
    packets: u64,
    seconds: f64,
    /// The part of the window in which the polling threads had their cores: the smaller of the two.
    core_share: f64,
}

impl Run {
    /// Packets per second.
    fn rate(&self) -> f64 {
        self.packets as f64 / self.seconds
    }
}

/// Both programs at one packet size, in the median of their runs.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Size {
    pub bytes: usize,
    pub ours_mpps: f64,
    pub ours_mpps_lowest: f64,
    pub ours_mpps_highest: f64,
    #[serde(deserialize_with = "null_as_nan")]
    pub ours_cycles_per_packet: f64,
    pub testpmd_mpps: f64,
    pub testpmd_mpps_lowest: f64,
    pub testpmd_mpps_highest: f64,
    /// Ours over testpmd's: the median over the pairs of runs that followed one another.
    #[serde(deserialize_with = "null_as_nan")]
    pub ratio: f64,
    /// The smallest part of a core that a polling thread had, in any run.
    #[serde(deserialize_with = "share")]
    pub ours_core_share: f64,
    #[serde(deserialize_with = "share")]
    pub testpmd_core_share: f64,
}

/// All sizes.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Report {
    pub cores: usize,
    pub runs: usize,
    #[serde(default)]
    pub testpmd_huge_pages: bool,
    pub sizes: Vec<Size>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Environment>,
}

impl Report {
    /// A table.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:<8}{:>10}{:>16}{:>16}{:>15}{:>16}{:>8}\n",
            "bytes",
            "ours Mpps",
            "lowest–highest",
            "cycles/packet",
            "testpmd Mpps",
            "lowest–highest",
            "ratio"
        );
        for size in &self.sizes {
            let ours = format!("{:.1}–{:.1}", size.ours_mpps_lowest, size.ours_mpps_highest);
            let theirs = format!("{:.1}–{:.1}", size.testpmd_mpps_lowest, size.testpmd_mpps_highest);
            out += &format!(
                "{:<8}{:>10.1}{:>16}{:>16.0}{:>15.1}{:>16}{:>8.2}\n",
                size.bytes,
                size.ours_mpps,
                ours,
                size.ours_cycles_per_packet,
                size.testpmd_mpps,
                theirs,
                size.ratio
            );
        }
        out + &format!(
            "Median of {} runs each, in turns; {} cores: on one a client writes each packet and copies it into the ring\n\
             (testpmd: txonly), on the other a server copies it out (rxonly); testpmd with{} huge pages. {}\n",
            self.runs,
            self.cores,
            if self.testpmd_huge_pages { "" } else { "out" },
            self.shares()
        )
    }

    /// Whether the cores were theirs: on a machine that does something else too, figures say little.
    fn shares(&self) -> String {
        let least = |share: fn(&Size) -> f64| self.sizes.iter().map(share).fold(1.0, f64::min) * 100.0;
        format!(
            "In its worst run a thread had {:.0} % of its core (ours), {:.0} % (testpmd).",
            least(|size| size.ours_core_share),
            least(|size| size.testpmd_core_share)
        )
    }
}

/// Runs all sizes.
pub fn run(quick: bool) -> Result<Report, String> {
    let [receiver, sender] = two_cores("one for the sender and one for the receiver")?;
    let cores = Cores { receiver: receiver.id, sender: sender.id };
    let watch = Watch::start();
    let (warm_up_ms, window_ms) = if quick { (200, 400) } else { (500, 2000) };
    let times =
        Times { warm_up: Duration::from_millis(warm_up_ms), window: Duration::from_millis(window_ms) };
    let hertz = cycles_per_second();
    let testpmd_huge_pages = testpmd::has_huge_pages();
    let mut testpmd = Testpmd::start(cores)?;
    let mut sizes = Vec::new();
    for bytes in SIZES {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for run in 0..RUNS {
            // Who is first changes, so that what drifts favours nobody.
            if run % 2 == 0 {
                ours.push(measure_ours(bytes, cores, times)?);
                theirs.push(testpmd.measure(bytes, times)?);
            } else {
                theirs.push(testpmd.measure(bytes, times)?);
                ours.push(measure_ours(bytes, cores, times)?);
            }
        }
        sizes.push(summary(bytes, &ours, &theirs, hertz));
    }
    Ok(Report { cores: 2, runs: RUNS, testpmd_huge_pages, sizes, environment: Some(watch.end()) })
}

fn summary(bytes: usize, ours: &[Run], theirs: &[Run], hertz: u64) -> Size {
    let ([ours_lowest, ours_median, ours_highest], [lowest, middle, highest]) = (rates(ours), rates(theirs));
    let share = |runs: &[Run]| runs.iter().map(|run| run.core_share).fold(1.0, f64::min);
    Size {
        bytes,
        ours_mpps: ours_median / 1e6,
        ours_mpps_lowest: ours_lowest / 1e6,
        ours_mpps_highest: ours_highest / 1e6,
        ours_cycles_per_packet: hertz as f64 / ours_median,
        testpmd_mpps: middle / 1e6,
        testpmd_mpps_lowest: lowest / 1e6,
        testpmd_mpps_highest: highest / 1e6,
        ratio: median_ratio(ours, theirs),
        ours_core_share: share(ours),
        testpmd_core_share: share(theirs),
    }
}

/// Pair by pair: a virtual machine's cores can be near or far from one another, and change that between two runs.
fn median_ratio(ours: &[Run], theirs: &[Run]) -> f64 {
    median(ours.iter().zip(theirs).map(|(ours, theirs)| ours.rate() / theirs.rate()).collect())
}

/// Packets per second: lowest, median, highest.
fn rates(runs: &[Run]) -> [f64; 3] {
    spread(runs.iter().map(Run::rate).collect()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn runs(packets: [u64; 5]) -> Vec<Run> {
        packets.map(|packets| Run { packets, seconds: 0.5, core_share: packets as f64 / 1e8 }).to_vec()
    }

    #[test]
    fn the_report_has_the_median_and_the_spread_of_both_programs() {
        let ours = runs([30_000_000, 10_000_000, 20_000_000, 50_000_000, 40_000_000]);
        let theirs = runs([15_000_000, 14_000_000, 16_000_000, 12_000_000, 60_000_000]);
        let sizes = vec![summary(64, &ours, &theirs, 2_400_000_000)];
        let json: serde_json::Value = serde_json::from_str(&crate::figures::json(&Report {
            cores: 2,
            runs: 5,
            testpmd_huge_pages: false,
            sizes,
            environment: None,
        }))
        .unwrap();
        let expected = serde_json::json!({
            "cores": 2,
            "runs": 5,
            "testpmd_huge_pages": false,
            "sizes": [{
                "bytes": 64,
                "ours_mpps": 60.0,
                "ours_mpps_lowest": 20.0,
                "ours_mpps_highest": 100.0,
                "ours_cycles_per_packet": 40.0,
                "testpmd_mpps": 30.0,
                "testpmd_mpps_lowest": 24.0,
                "testpmd_mpps_highest": 120.0,
                // That of the third pair, not that of the medians.
                "ratio": 1.25,
                "ours_core_share": 0.1,
                "testpmd_core_share": 0.12,
            }],
        });
        assert_eq!(json, expected);
    }
}
