//! What was measured, for people (a table) and for programs (one JSON object, `--json`).

use std::io::{self, Write};

use serde::Serialize;

use crate::echo::EchoReport;
use crate::error::Error;
use crate::floor::Floor;
use crate::latency::Percentiles;
use crate::port::PortStatistics;
use crate::send::{ClassReport as SentClass, OutletInfo, SendReport, TrafficReport};
use crate::sink::{ClassReport, FlowReport, SinkReport};

/// How many flows the table shows: those with the highest 99th percentile.
const WORST_FLOWS: usize = 5;

/// A report, and what ended the run early, if anything.
#[derive(Debug)]
pub struct Outcome<R> {
    /// What was measured until the end.
    pub report: R,
    /// Why it is not all that was asked for.
    pub failure: Option<Error>,
}

/// A line of the table: what, and how much.
pub type Row = (&'static str, String);

/// A report that can be shown.
pub trait Report: Serialize {
    /// The command that it is of.
    const COMMAND: &'static str;

    /// Its rows: what, and how much.
    fn rows(&self) -> Vec<Row>;
}

#[derive(Serialize)]
struct Named<'a, R> {
    command: &'static str,
    #[serde(flatten)]
    report: &'a R,
    #[serde(skip_serializing_if = "Option::is_none")]
    floor_ns: Option<Floor>,
}

/// Writes a report to standard output, and below it the generator's own latency, if that was measured.
///
/// # Errors
/// If that cannot be written.
pub fn print<R: Report>(report: &R, floor_ns: Option<Floor>, json: bool) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    let written = if json {
        serde_json::to_writer(&mut out, &Named { command: R::COMMAND, report, floor_ns })
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        let floor =
            floor_ns.map(|Floor { p50, p99 }| ("generator's own, ns", format!("{p50} p50, {p99} p99")));
        table(&mut out, &report.rows().into_iter().chain(floor).collect::<Vec<_>>())
    };
    written.and_then(|()| out.flush()).map_err(Error::system("writing the report to standard output"))
}

fn table(out: &mut impl Write, rows: &[Row]) -> io::Result<()> {
    let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or(0);
    rows.iter().try_for_each(|(what, value)| writeln!(out, "{what:<width$}  {value}"))
}

fn rate(pps: f64, seconds: f64) -> String {
    format!("{pps:.0} packets/s in {seconds:.3} s")
}

fn percentiles(got: Option<Percentiles>) -> String {
    got.map_or("none".into(), |Percentiles { p50, p90, p99, p999, p9999, max }| {
        format!("{p50:.1} p50, {p90:.1} p90, {p99:.1} p99, {p999:.1} p99.9, {p9999:.1} p99.99, {max:.1} max")
    })
}

fn port(statistics: &PortStatistics) -> Row {
    match statistics {
        PortStatistics::Ring(ring) => (
            "ring",
            format!(
                "{} of {} slots, {} filled at most, {} bad descriptors, {} connections",
                ring.queues, ring.size, ring.pending_max, ring.bad_descriptors, ring.connections
            ),
        ),
        PortStatistics::Socket(socket) => {
            let drops = socket.drops.map_or("unknown".into(), |drops| drops.to_string());
            ("socket", format!("buffer {} bytes, drops {drops}", socket.receive_buffer_bytes))
        }
        PortStatistics::Xdp(xdp) => {
            let drops: u64 = xdp.kernel.iter().map(|socket| socket.rx_dropped + socket.rx_ring_full).sum();
            let (name, sockets, mode) =
                (&xdp.uplink.interface, xdp.kernel.len(), mode_name(xdp.uplink.mode_actual));
            ("AF_XDP", format!("{name}, {sockets} sockets, {mode}, drops {drops}"))
        }
    }
}

impl Report for SendReport {
    const COMMAND: &'static str = "send";

    fn rows(&self) -> Vec<Row> {
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
            let who = match &self.outlet {
                OutletInfo::Uplink(_) => "the kernel has not given back",
                OutletInfo::Memif(_) => "the memif server has not taken",
            };
            rows.push(("uncompleted", format!("{} frames that {who}", self.uncompleted)));
        }
        if let TrafficReport::Replay(replay) = &self.traffic {
            let times = replay.loops.map_or("again and again".into(), |loops| format!("{loops} times"));
            let text = format!("{} packets, {times}", replay.packets);
            rows.push((
                "replayed",
                replay.partial.iter().fold(text, |all, why| all + ", partial: it " + why),
            ));
            rows.push(("left out", format!("{} too long, {} too short", replay.too_long, replay.too_short)));
        }
        if self.classes.len() > 1 {
            let class = |class: &SentClass| format!("{} {}", class.name, class.sent);
            rows.push(("classes", self.classes.iter().map(class).collect::<Vec<_>>().join(", ")));
        }
        if let Some(rtt) = &self.rtt {
            rows.push(("received", rtt.received.to_string()));
            rows.push(("lost", rtt.lost.to_string()));
            rows.push(("reordered", rtt.reordered.to_string()));
            rows.push(("duplicates", rtt.duplicates.to_string()));
            rows.push(("round trip, µs", percentiles(rtt.rtt_us)));
            if self.skipped > 0 {
                rows.push((
                    "  without",
                    format!(
                        "{} departures given up, each over 100 ms late: they are in no latency",
                        self.skipped
                    ),
                ));
            }
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

    fn rows(&self) -> Vec<Row> {
        let mut rows = vec![
            ("received", format!("{} packets, {} bytes, {} flows", self.received, self.bytes, self.flows)),
            ("rate", rate(self.received_pps, self.seconds)),
            ("lost", format!("{} ({:.4} %)", self.lost, self.loss_ratio * 100.0)),
            ("reordered", self.reordered()),
            ("duplicates", self.duplicates.to_string()),
            ("too old to tell", self.beyond_window.to_string()),
            ("not ours", format!("{}, of unknown flows {}", self.not_ours, self.unknown_flow)),
            ("one way, µs", percentiles(self.latency_us)),
        ];
        if self.other_runs > 0 {
            rows.push((
                "other runs",
                format!(
                    "{} packets of another run of send, not counted above: give each run a sink of its own",
                    self.other_runs
                ),
            ));
        }
        rows.extend(self.per_class.iter().map(|class| ("  class", class_line(class))));
        if self.per_flow.len() > 1 {
            let p99 = |flow: &FlowReport| flow.latency_us.map_or(0.0, |got| got.p99);
            let mut worst: Vec<&FlowReport> = self.per_flow.iter().collect();
            worst.sort_by(|a, b| p99(b).total_cmp(&p99(a)));
            rows.extend(worst.into_iter().take(WORST_FLOWS).map(|flow| ("  flow", flow_line(flow))));
        }
        rows.push(port(&self.port));
        rows
    }
}

impl SinkReport {
    fn reordered(&self) -> String {
        let mut text = format!("{} ({:.4} %)", self.reordered, self.reordering.ratio * 100.0);
        if let Some(extent) = self.reordering.extent {
            let [_, _, three] = self.reordering.n_reordered;
            let (p50, p99, max) = (extent.p50, extent.p99, extent.max);
            text.push_str(&format!(", by {p50} p50, {p99} p99, {max} max packets; {three} by 3 in a row"));
        }
        text
    }
}

fn class_line(class: &ClassReport) -> String {
    let ClassReport { class, received, lost, reordered, duplicates, latency_us } = class;
    let faults = format!("{lost} lost, {reordered} reordered, {duplicates} duplicates");
    format!("{class}: {received} received, {faults}; µs: {}", percentiles(*latency_us))
}

fn flow_line(flow: &FlowReport) -> String {
    let FlowReport { flow, distinct, lost, reordered, duplicates, latency_us } = flow;
    let faults = format!("{lost} lost, {reordered} reordered, {duplicates} duplicates");
    format!("{flow}: {distinct} received, {faults}; µs: {}", percentiles(*latency_us))
}

impl Report for EchoReport {
    const COMMAND: &'static str = "echo";

    fn rows(&self) -> Vec<Row> {
        let answered = self.answered;
        vec![
            ("received", format!("{} packets, {} bytes in {:.3} s", self.received, self.bytes, self.seconds)),
            (
                "answered",
                format!(
                    "{} ARP, {} ND, {} ICMP, {} UDP",
                    answered.arp, answered.neighbour, answered.icmp, answered.udp
                ),
            ),
            ("ignored", self.ignored.to_string()),
            ("dropped", self.dropped.to_string()),
            port(&self.port),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::latency::Latency;
    use crate::limits::Ended;
    use crate::port::{RingStatistics, SocketStatistics};
    use crate::tracker::Tracker;

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
            other_runs: 0,
            flows: 1,
            seconds: 0.5,
            received_pps: 4.0,
            latency_us: None,
            ended: Ended::Idle,
            distinct: 3,
            loss_ratio: 0.25,
            reordering: Tracker::new(1).reordering(),
            per_flow: Vec::new(),
            per_class: Vec::new(),
            latency: Latency::new().unwrap(),
            port: PortStatistics::Ring(RingStatistics {
                size: 1024,
                queues: 2,
                pending_max: 3,
                bad_descriptors: 0,
                connections: 1,
            }),
        }
    }

    #[test]
    fn the_json_keys_are_a_contract() {
        let json = serde_json::to_string(&Named {
            command: "sink",
            report: &sink(),
            floor_ns: Some(Floor { p50: 90, p99: 120 }),
        })
        .unwrap();
        assert_eq!(
            json,
            r#"{"command":"sink","received":3,"bytes":192,"lost":1,"reordered":0,"duplicates":0,"beyond_window":0,"not_ours":2,"unknown_flow":0,"other_runs":0,"flows":1,"seconds":0.5,"received_pps":4.0,"latency_us":null,"ended":"idle","distinct":3,"loss_ratio":0.25,"reordering":{"ratio":0.0,"extent":null,"extent_unknown":0,"n_reordered":[0,0,0]},"per_flow":[],"ring":{"size":1024,"queues":2,"pending_max":3,"bad_descriptors":0,"connections":1},"floor_ns":{"p50":90,"p99":120}}"#
        );
        let port = PortStatistics::Socket(SocketStatistics { receive_buffer_bytes: 9, drops: Some(1) });
        let percentiles = Percentiles { p50: 1.0, p90: 2.0, p99: 3.0, p999: 4.0, p9999: 4.5, max: 5.5 };
        let udp = SinkReport { port, latency_us: Some(percentiles), ..sink() };
        let json: serde_json::Value =
            serde_json::to_value(Named { command: "sink", report: &udp, floor_ns: None }).unwrap();
        assert_eq!(json["socket"], serde_json::json!({"receive_buffer_bytes": 9, "drops": 1}));
        assert_eq!(
            json["latency_us"],
            serde_json::json!({"p50": 1.0, "p90": 2.0, "p99": 3.0, "p999": 4.0, "p9999": 4.5, "max": 5.5})
        );
    }

    #[test]
    fn the_table_lines_its_columns_up() {
        let mut out = Vec::new();
        table(&mut out, &[("a", "1".into()), ("long name", "2".into())]).unwrap();
        assert_eq!(String::from_utf8(out).unwrap(), "a          1\nlong name  2\n");
    }
}
