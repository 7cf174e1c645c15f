//! The figures, for people and for programs.

use serde::Serialize;
use serde_json::{Value, json};

use super::Demo;
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
    drops: Value,
    conserved: bool,
    uplink: Value,
}

/// Peregrine's figure divided by the kernel's.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ratio {
    received_pps: f64,
    p50: f64,
    p99: f64,
}

impl Report {
    pub(super) fn new(peregrine: Figures, kernel: Figures, ping: Ping, daemon: Daemon) -> Report {
        let uplink = &daemon.status["uplink"];
        Report {
            ratio: Ratio {
                received_pps: peregrine.received_pps / kernel.received_pps,
                p50: peregrine.rtt_us.p50 / kernel.rtt_us.p50,
                p99: peregrine.rtt_us.p99 / kernel.rtt_us.p99,
            },
            peregrine,
            kernel,
            ping,
            drops: daemon.stats["drops"].clone(),
            conserved: daemon.stats["totals"]["conserved"] == json!(true),
            uplink: json!({
                "driver": uplink["driver"],
                "mode_requested": uplink["mode_requested"],
                "mode_actual": uplink["mode_actual"],
                "queues": uplink["queues"],
            }),
        }
    }

    pub(super) fn json(&self) -> String {
        format!("{}\n", json!(self))
    }

    pub(super) fn text(&self, demo: &Demo) -> String {
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
        row("stream: offered, packets/s", whole(ours.offered_pps), whole(theirs.offered_pps), String::new());
        row(
            "stream: received, packets/s",
            whole(ours.received_pps),
            whole(theirs.received_pps),
            times(self.ratio.received_pps),
        );
        for (name, ours, theirs) in [
            ("stream: sent", ours.sent, theirs.sent),
            ("stream: received", ours.received, theirs.received),
            ("stream: lost", ours.lost, theirs.lost),
            ("stream: reordered", ours.reordered, theirs.reordered),
        ] {
            row(name, thousands(ours), thousands(theirs), String::new());
        }
        for (name, pick) in [
            ("round trip p50, µs", (|f| f.rtt_us.p50) as fn(&Figures) -> f64),
            ("round trip p90, µs", |f| f.rtt_us.p90),
            ("round trip p99, µs", |f| f.rtt_us.p99),
            ("round trip p99.9, µs", |f| f.rtt_us.p999),
            ("round trip max, µs", |f| f.rtt_us.max),
        ] {
            row(name, tenth(pick(ours)), tenth(pick(theirs)), times(pick(ours) / pick(theirs)));
        }
        row("round trip: lost", thousands(ours.rtt_lost), thousands(theirs.rtt_lost), String::new());
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
            "\nInner frames of {FRAME_BYTES} bytes, one flow; round trips at {} a second. {} cores: {} generator{}, {} {}.",
            thousands(RTT_RATE),
            demo.cores.count(),
            demo.cores.generator,
            if demo.cores.count() == 2 { " and tenants" } else { "" },
            demo.cores.worker,
            "peregrine's worker, in the kernel's turn the program with the socket",
        ));
        line("Over veth the sender's core does the kernel's share of the wire, so the wire is the limit of the stream.".into());
        out
    }

    fn drops_text(&self) -> String {
        let drops: Vec<String> = self
            .drops
            .as_object()
            .into_iter()
            .flatten()
            .map(|(reason, count)| format!("{reason} {count}"))
            .collect();
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

fn whole(figure: f64) -> String {
    thousands(figure.round() as u64)
}

fn tenth(figure: f64) -> String {
    format!("{figure:.1}")
}

fn times(ratio: f64) -> String {
    format!("{ratio:.2}×")
}
