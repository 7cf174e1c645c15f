//! The figures, for people and for programs.

use serde::Serialize;
use serde_json::json;

use super::Cores;
use super::measure::{Curl, FILE_BYTES, Figures, UDP_BYTES, UDP_RATE};
use super::peregrine::LastLine;
use crate::table::thousands;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(in crate::demo) struct Report {
    peregrine: Figures,
    kernel: Figures,
    ratio: Ratio,
    daemons: Vec<LastLine>,
    conserved: bool,
    cores: Cores,
    /// Length of each run of iperf3.
    seconds: u64,
}

/// Peregrine's figure divided by the kernel's.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ratio {
    first_ping: f64,
    ping_p50: f64,
    tcp: f64,
}

impl Report {
    pub(super) fn new(
        peregrine: Figures,
        kernel: Figures,
        daemons: Vec<LastLine>,
        cores: Cores,
        seconds: u64,
    ) -> Report {
        Report {
            ratio: Ratio {
                first_ping: peregrine.first_ping_ms / kernel.first_ping_ms,
                ping_p50: peregrine.ping.rtt_us_p50 / kernel.ping.rtt_us_p50,
                tcp: peregrine.tcp.gbit_s / kernel.tcp.gbit_s,
            },
            conserved: daemons.iter().all(|daemon| daemon.conserved),
            peregrine,
            kernel,
            daemons,
            cores,
            seconds,
        }
    }

    /// A demo that shows something else than containers that reach each other has failed.
    pub(in crate::demo) fn verdict(&self) -> Result<(), String> {
        if let Some(daemon) = self.daemons.iter().find(|daemon| !daemon.conserved) {
            return Err(format!(
                "frames in are not frames out + drops on {}: this is a bug: {}",
                daemon.host, daemon.frames
            ));
        }
        for (who, figures) in [("peregrine", &self.peregrine), ("the kernel's overlay", &self.kernel)] {
            for (version, curl) in [("IPv4", &figures.curl_ipv4), ("IPv6", &figures.curl_ipv6)] {
                if !curl.is_good() {
                    return Err(format!(
                        "curl over {version} through {who} got status {} and {} bytes{}, instead of 200 and the {FILE_BYTES} that were sent",
                        curl.status,
                        curl.bytes,
                        if curl.bytes == FILE_BYTES { " of other content" } else { "" },
                    ));
                }
            }
            if figures.pairs_reached < figures.pairs {
                return Err(format!(
                    "of {} pairs of containers only {} reached each other through {who}",
                    figures.pairs, figures.pairs_reached
                ));
            }
            if figures.ping.received == 0 {
                return Err(format!("no ping was answered through {who}"));
            }
        }
        Ok(())
    }

    pub(in crate::demo) fn json(&self) -> String {
        format!("{}\n", json!(self))
    }

    pub(in crate::demo) fn text(&self) -> String {
        let mut out = row("", ["peregrine", "kernel", "ratio"].map(String::from));
        out.insert(0, '\n');
        out += &self.rows();
        out.push('\n');
        for daemon in &self.daemons {
            out += &format!("{}: {}\n", daemon.host, daemon.frames);
        }
        out.push('\n');
        for line in self.notes() {
            out += &format!("{line}\n");
        }
        out
    }

    fn rows(&self) -> String {
        let (ours, theirs) = (&self.peregrine, &self.kernel);
        let both = |name: &str, show: fn(&Figures) -> String, ratio: String| {
            row(name, [show(ours), show(theirs), ratio])
        };
        [
            both(
                "containers there, first ping, ms",
                |f| tenth(f.first_ping_ms),
                times(self.ratio.first_ping),
            ),
            both("pairs of containers reached", |f| of(f.pairs_reached, f.pairs), String::new()),
            both("ping p50, µs", |f| tenth(f.ping.rtt_us_p50), times(self.ratio.ping_p50)),
            both(
                "ping p90, µs",
                |f| tenth(f.ping.rtt_us_p90),
                times(ours.ping.rtt_us_p90 / theirs.ping.rtt_us_p90),
            ),
            both("ping: answered", |f| of(f.ping.received, f.ping.sent), String::new()),
            both("iperf3 TCP, Gbit/s", |f| format!("{:.2}", f.tcp.gbit_s), times(self.ratio.tcp)),
            both("iperf3 TCP: retransmits", |f| thousands(f.tcp.retransmits), String::new()),
            both("iperf3 UDP: packets", |f| thousands(f.udp.sent), String::new()),
            both("iperf3 UDP: lost", |f| thousands(f.udp.lost), String::new()),
            both(
                "curl IPv4: 10 MiB intact, ms",
                |f| fetched(&f.curl_ipv4),
                curl_ratio(&ours.curl_ipv4, &theirs.curl_ipv4),
            ),
            both(
                "curl IPv6: 10 MiB intact, ms",
                |f| fetched(&f.curl_ipv6),
                curl_ratio(&ours.curl_ipv6, &theirs.curl_ipv6),
            ),
        ]
        .concat()
    }

    /// What the figures stand for.
    fn notes(&self) -> Vec<String> {
        let Cores { worker_a, worker_b, programs_a, programs_b } = self.cores;
        let mut notes = vec![
            "Everything between container a1 on one host and b1 on the other; ping with nothing else going on, one every 10 ms.".into(),
            format!(
                "iperf3 for {} s each, one connection; UDP with {UDP_BYTES} bytes, {} a second. ratio: peregrine's figure by the kernel's.",
                self.seconds,
                thousands(UDP_RATE)
            ),
            "Six containers: one `peregrine endpoint add` each, from a pool that was full; in the kernel's half six `ip` commands each.".into(),
            format!(
                "Cores: peregrine's workers {worker_a} (host a) and {worker_b} (host b); programs in containers {programs_a} (a) and {programs_b} (b)."
            ),
        ];
        notes.push(match self.cores.are_shared() {
            true => "The workers sleep while there is nothing to do (idle = \"adaptive\"): the programs share their cores with them.".into(),
            false => "The workers poll (idle = \"busy\").".into(),
        });
        if self.ratio.tcp < 1.0 {
            notes.push("TCP: the kernel carries segments of up to 64 KiB through its overlay (GSO, GRO), peregrine each packet by itself.".into());
        }
        notes
    }
}

impl Curl {
    fn is_good(&self) -> bool {
        self.status == 200 && self.bytes == FILE_BYTES && self.intact
    }
}

fn row(name: &str, [ours, theirs, ratio]: [String; 3]) -> String {
    let line = format!("{name:<34}{ours:>14}{theirs:>14}{ratio:>14}");
    format!("{}\n", line.trim_end())
}

fn fetched(curl: &Curl) -> String {
    if curl.is_good() { tenth(curl.milliseconds) } else { "NO".into() }
}

fn curl_ratio(ours: &Curl, theirs: &Curl) -> String {
    if ours.is_good() && theirs.is_good() {
        times(ours.milliseconds / theirs.milliseconds)
    } else {
        String::new()
    }
}

fn of(some: usize, all: usize) -> String {
    format!("{some} of {all}")
}

fn tenth(figure: f64) -> String {
    format!("{figure:.1}")
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2}×")
}
