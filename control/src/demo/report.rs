//! The figures, for people and for programs.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::{Value, json};

use super::hosts::Cores;
use super::measure::{FRAME_BYTES, Figures, RTT_RATE};
use super::peregrine::{Daemon, Ping};
use crate::table::thousands;

/// Everything that was measured.
#[derive(Debug, Serialize)]
pub(super) struct Report {
    peregrine: Figures,
    kernel: Figures,
    ratio: Ratio,
    ping: Ping,
    /// Peregrine's, by reason, and those of the kernel before the frames were Peregrine's (`before_…`).
    drops: BTreeMap<String, u64>,
    conserved: bool,
    uplink: Value,
    cores: Cores,
}

/// Peregrine's figure divided by the kernel's.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ratio {
    received_pps: f64,
    p50: f64,
    p99: f64,
}

impl Report {
    pub(super) fn new(
        peregrine: Figures,
        kernel: Figures,
        ping: Ping,
        daemon: Daemon,
        cores: Cores,
    ) -> Report {
        let uplink = &daemon.status["uplinks"][0];
        Report {
            ratio: Ratio {
                received_pps: peregrine.stream.received_pps / kernel.stream.received_pps,
                p50: peregrine.round_trips.rtt_us.p50 / kernel.round_trips.rtt_us.p50,
                p99: peregrine.round_trips.rtt_us.p99 / kernel.round_trips.rtt_us.p99,
            },
            peregrine,
            kernel,
            ping,
            drops: drops(&daemon.stats),
            conserved: daemon.stats["totals"]["conserved"] == json!(true),
            uplink: json!({
                "driver": uplink["driver"],
                "mode_requested": uplink["mode_requested"],
                "mode_actual": uplink["mode_actual"],
                "queues": uplink["queues"],
            }),
            cores,
        }
    }

    /// A demo that shows something else than Peregrine working has failed.
    pub(super) fn verdict(&self) -> Result<(), String> {
        if !self.conserved {
            return Err(
                "frames in are not frames out + drops: this is a bug; `peregrine stats` would show where"
                    .into(),
            );
        }
        for (who, figures) in [("peregrine", &self.peregrine), ("the kernel's overlay", &self.kernel)] {
            if figures.stream.received == 0 {
                return Err(format!("nothing of the stream came through {who}"));
            }
        }
        if self.ping.received == 0 {
            return Err("no ping was answered".into());
        }
        Ok(())
    }

    pub(super) fn json(&self) -> String {
        format!("{}\n", json!(self))
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::new();
        let mut line = |text: String| {
            out.push_str(text.trim_end());
            out.push('\n');
        };
        let (ours, theirs) = (&self.peregrine, &self.kernel);
        line(format!("\n{:<34}{:>14}{:>14}{:>14}", "", "peregrine", "kernel", "ratio"));
        let mut row = |name: &str, a: String, b: String, ratio: String| {
            line(format!("{name:<34}{a:>14}{b:>14}{ratio:>14}"))
        };
        row(
            "stream: offered, packets/s",
            whole(ours.stream.offered_pps),
            whole(theirs.stream.offered_pps),
            String::new(),
        );
        row(
            "stream: received, packets/s",
            whole(ours.stream.received_pps),
            whole(theirs.stream.received_pps),
            times(self.ratio.received_pps),
        );
        for (name, ours, theirs) in [
            ("stream: sent", ours.stream.sent, theirs.stream.sent),
            ("stream: received", ours.stream.received, theirs.stream.received),
            ("stream: lost", ours.stream.lost, theirs.stream.lost),
            ("stream: reordered", ours.stream.reordered, theirs.stream.reordered),
        ] {
            row(name, thousands(ours), thousands(theirs), String::new());
        }
        for (name, pick) in [
            ("round trip p50, µs", (|f| f.round_trips.rtt_us.p50) as fn(&Figures) -> f64),
            ("round trip p90, µs", |f| f.round_trips.rtt_us.p90),
            ("round trip p99, µs", |f| f.round_trips.rtt_us.p99),
            ("round trip p99.9, µs", |f| f.round_trips.rtt_us.p999),
            ("round trip max, µs", |f| f.round_trips.rtt_us.max),
        ] {
            row(name, tenth(pick(ours)), tenth(pick(theirs)), times(pick(ours) / pick(theirs)));
        }
        for (name, ours, theirs) in [
            ("round trip: lost", ours.round_trips.rtt_lost, theirs.round_trips.rtt_lost),
            ("generator: sent over 1 ms late", ours.late, theirs.late),
            ("generator: given up", ours.skipped, theirs.skipped),
        ] {
            row(name, thousands(ours), thousands(theirs), String::new());
        }
        line(format!(
            "\nping through the overlay (kernel → tenant): {} of {} answered, median {} µs",
            self.ping.received,
            self.ping.sent,
            tenth(self.ping.rtt_us_p50)
        ));
        line(format!(
            "frames in = frames out + drops: {}; drops: {}",
            if self.conserved { "yes" } else { "NO" },
            self.drops_text()
        ));
        line(format!("uplink: {}", self.uplink_text()));
        line(format!(
            "\nInner frames of {FRAME_BYTES} bytes, one flow; round trips at {} a second, timed from when each packet was due.",
            thousands(RTT_RATE)
        ));
        line(format!(
            "Two cores in both halves: {0} generator{1}; {2} peregrine's worker, or the program with the socket (it polls too).",
            self.cores.generator, " and memif tenants", self.cores.worker
        ));
        line("Over veth the sender's core does the kernel's share of the wire, and here, without RPS, of its overlay too.".into());
        line("So the wire limits peregrine's stream; on a NIC both halves would look different.".into());
        out
    }

    fn drops_text(&self) -> String {
        let drops: Vec<String> =
            self.drops.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
        if drops.is_empty() { "none".into() } else { drops.join(", ") }
    }

    fn uplink_text(&self) -> String {
        let text = |key: &str| self.uplink[key].as_str().unwrap_or("?").to_string();
        format!(
            "{}, asked for {}, got {}, queues {}",
            text("driver"),
            text("mode_requested"),
            text("mode_actual"),
            self.uplink["queues"]
        )
    }
}

/// The dataplane's drops by reason, and what the kernel lost of the uplink's frames before they reached it.
fn drops(stats: &Value) -> BTreeMap<String, u64> {
    let mut drops: BTreeMap<String, u64> = BTreeMap::new();
    for (reason, count) in stats["drops"].as_object().into_iter().flatten() {
        drops.insert(reason.clone(), count.as_u64().unwrap_or(0));
    }
    let sum = |list: &str, key: &str| -> u64 {
        stats["uplinks"][0][list]
            .as_array()
            .into_iter()
            .flatten()
            .filter_map(|entry| entry[key].as_u64())
            .sum()
    };
    for (name, count) in [
        ("before_no_socket", sum("program", "no_socket")),
        ("before_rx_ring_full", sum("sockets", "rx_ring_full")),
        ("before_rx_dropped", sum("sockets", "rx_dropped")),
    ] {
        if count > 0 {
            drops.insert(name.into(), count);
        }
    }
    drops
}

fn whole(figure: f64) -> String {
    thousands(figure.round() as u64)
}

fn tenth(figure: f64) -> String {
    format!("{figure:.1}")
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2}×")
}
