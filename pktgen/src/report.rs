//! What was measured, for people (a table) and for programs (one JSON object, `--json`).

use std::io::{self, Write};

use serde::Serialize;

use crate::echo::EchoReport;
use crate::error::Error;
use crate::latency::Percentiles;
use crate::port::PortStatistics;
use crate::send::{ClassReport, OutletInfo, SendReport, TrafficReport};
use crate::sink::SinkReport;

/// A report, and what ended the run early, if anything.
#[derive(Debug)]
pub struct Outcome<R> {
    /// What was measured until the end.
    pub report: R,
    /// Why it is not all that was asked for.
    pub failure: Option<Error>,
}

/// A report that can be shown.
pub trait Report: Serialize {
    /// The command that it is of.
    const COMMAND: &'static str;

    /// Its rows: what, and how much.
    fn rows(&self) -> Vec<(&'static str, String)>;
}

#[derive(Serialize)]
struct Named<'a, R> {
    command: &'static str,
    #[serde(flatten)]
    report: &'a R,
}

/// Writes a report to standard output.
///
/// # Errors
/// If that cannot be written.
pub fn print<R: Report>(report: &R, json: bool) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    let written = if json {
        serde_json::to_writer(&mut out, &Named { command: R::COMMAND, report })
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        table(&mut out, &report.rows())
    };
    written.and_then(|()| out.flush()).map_err(Error::system("writing the report to standard output"))
}

fn table(out: &mut impl Write, rows: &[(&'static str, String)]) -> io::Result<()> {
    let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    rows.iter().try_for_each(|(what, value)| writeln!(out, "{what:<width$}  {value}"))
}

fn rate(pps: f64, seconds: f64) -> String {
    format!("{pps:.0} packets/s in {seconds:.3} s")
}

fn percentiles(got: Option<Percentiles>) -> String {
    got.map_or("none".into(), |Percentiles { p50, p90, p99, p999, max }| {
        format!("{p50:.1} p50, {p90:.1} p90, {p99:.1} p99, {p999:.1} p99.9, {max:.1} max")
    })
}

fn port(statistics: &PortStatistics) -> (&'static str, String) {
    match statistics {
        PortStatistics::Ring(ring) => (
            "ring",
            format!(
                "{} slots, {} filled at most, {} bad descriptors, {} connections",
                ring.size, ring.pending_max, ring.bad_descriptors, ring.connections
            ),
        ),
        PortStatistics::Socket(socket) => {
            let drops = socket.drops.map_or("unknown".into(), |drops| drops.to_string());
            ("socket", format!("buffer {} bytes, drops {drops}", socket.receive_buffer_bytes))
        }
    }
}

impl Report for SendReport {
    const COMMAND: &'static str = "send";

    fn rows(&self) -> Vec<(&'static str, String)> {
        let outlet = match &self.outlet {
            OutletInfo::Uplink(info) => (
                "uplink",
                format!(
                    "{} ({}), mode asked {}, got {}",
                    info.interface,
                    info.driver,
                    info.mode_requested.name(),
                    mode_name(info.mode_actual)
                ),
            ),
            OutletInfo::Memif(info) => (
                "memif",
                format!("{}, {} queue pairs, {} slots", info.peer, info.queue_pairs, info.ring_size),
            ),
        };
        let mut rows = vec![
            outlet,
            ("sent", format!("{} frames, {} bytes", self.sent, self.bytes)),
            ("offered", rate(self.offered_pps, self.seconds)),
            ("late", format!("{} by more than 1 ms, {} given up", self.late, self.skipped)),
        ];
        if self.uncompleted > 0 {
            rows.push((
                "uncompleted",
                format!("{} frames that the kernel has not given back", self.uncompleted),
            ));
        }
        if let TrafficReport::Replay(replay) = &self.traffic {
            let text = format!("{} packets, {} times", replay.packets, replay.loops);
            rows.push((
                "replayed",
                replay.partial.iter().fold(text, |all, why| all + ", partial: it " + why),
            ));
            rows.push(("left out", format!("{} too long, {} too short", replay.too_long, replay.too_short)));
        }
        if self.classes.len() > 1 {
            let class = |class: &ClassReport| format!("{} {}", class.name, class.sent);
            rows.push(("classes", self.classes.iter().map(class).collect::<Vec<_>>().join(", ")));
        }
        if let Some(rtt) = &self.rtt {
            rows.push(("received", rtt.received.to_string()));
            rows.push(("lost", rtt.lost.to_string()));
            rows.push(("reordered", rtt.reordered.to_string()));
            rows.push(("duplicates", rtt.duplicates.to_string()));
            rows.push(("round trip, µs", percentiles(rtt.rtt_us)));
        }
        rows
    }
}

fn mode_name(mode: peregrine_dataplane::xsk::ActualMode) -> &'static str {
    use peregrine_dataplane::xsk::ActualMode;
    match mode {
        ActualMode::ZeroCopy => "zero-copy",
        ActualMode::Copy => "copy",
        ActualMode::Generic => "generic",
    }
}

impl Report for SinkReport {
    const COMMAND: &'static str = "sink";

    fn rows(&self) -> Vec<(&'static str, String)> {
        vec![
            ("received", format!("{} packets, {} bytes, {} flows", self.received, self.bytes, self.flows)),
            ("rate", rate(self.received_pps, self.seconds)),
            ("lost", self.lost.to_string()),
            ("reordered", self.reordered.to_string()),
            ("duplicates", self.duplicates.to_string()),
            ("too old to tell", self.beyond_window.to_string()),
            ("not ours", format!("{}, of unknown flows {}", self.not_ours, self.unknown_flow)),
            ("one way, µs", percentiles(self.latency_us)),
            port(&self.port),
        ]
    }
}

impl Report for EchoReport {
    const COMMAND: &'static str = "echo";

    fn rows(&self) -> Vec<(&'static str, String)> {
        let answered = self.answered;
        vec![
            ("received", format!("{} packets, {} bytes in {:.3} s", self.received, self.bytes, self.seconds)),
            ("answered", format!("{} ARP, {} ICMP, {} UDP", answered.arp, answered.icmp, answered.udp)),
            ("ignored", self.ignored.to_string()),
            ("dropped", self.dropped.to_string()),
            port(&self.port),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::Ended;
    use crate::port::{RingStatistics, SocketStatistics};

    fn sink() -> SinkReport {
        SinkReport {
            received: 3,
            bytes: 192,
            lost: 1,
            reordered: 0,
            duplicates: 0,
            beyond_window: 0,
            not_ours: 2,
            unknown_flow: 0,
            flows: 1,
            seconds: 0.5,
            received_pps: 4.0,
            latency_us: None,
            ended: Ended::Idle,
            port: PortStatistics::Ring(RingStatistics {
                size: 1024,
                pending_max: 3,
                bad_descriptors: 0,
                connections: 1,
            }),
        }
    }

    #[test]
    fn the_json_keys_are_a_contract() {
        let json = serde_json::to_string(&Named { command: "sink", report: &sink() }).unwrap();
        assert_eq!(
            json,
            r#"{"command":"sink","received":3,"bytes":192,"lost":1,"reordered":0,"duplicates":0,"beyond_window":0,"not_ours":2,"unknown_flow":0,"flows":1,"seconds":0.5,"received_pps":4.0,"latency_us":null,"ended":"idle","ring":{"size":1024,"pending_max":3,"bad_descriptors":0,"connections":1}}"#
        );
        let port = PortStatistics::Socket(SocketStatistics { receive_buffer_bytes: 9, drops: Some(1) });
        let percentiles = Percentiles { p50: 1.0, p90: 2.0, p99: 3.0, p999: 4.0, max: 5.5 };
        let udp = SinkReport { port, latency_us: Some(percentiles), ..sink() };
        let json: serde_json::Value = serde_json::to_value(Named { command: "sink", report: &udp }).unwrap();
        assert_eq!(json["socket"], serde_json::json!({"receive_buffer_bytes": 9, "drops": 1}));
        assert_eq!(
            json["latency_us"],
            serde_json::json!({"p50": 1.0, "p90": 2.0, "p99": 3.0, "p999": 4.0, "max": 5.5})
        );
    }

    #[test]
    fn the_table_lines_its_columns_up() {
        let mut out = Vec::new();
        table(&mut out, &[("a", "1".into()), ("long name", "2".into())]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a          1\nlong name  2\n");
    }
}
