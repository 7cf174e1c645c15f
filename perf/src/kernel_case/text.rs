//! The figures as tables, for people. `main.rs` calls it for what is not asked as JSON.

use super::System;
use super::report::{Environment, LOADS, Report, Side};

impl Report {
    /// Tables.
    pub fn text(&self) -> String {
        let mut out = format!(
            "{:>5}{:>6}  {:<12}{:>12}{:>23}{:>12}{:>12}{:>10}{:>8}\n",
            "bytes",
            "flows",
            "system",
            "NDR, pps",
            "lowest–highest",
            "max, pps",
            "CPU s/Mpkt",
            "of work",
            "busy"
        );
        for case in &self.cases {
            for system in System::ALL {
                let Side { ndr_pps, ndr_pps_lowest, ndr_pps_highest, max_pps, .. } = case.side(system);
                let cpu = case.side(system).cpu_s_per_mpkt.median;
                let ndr = match (ndr_pps, case.side(system).is_unconfirmed()) {
                    (0.0, _) => "–".into(),
                    (pps, true) => format!("{pps:.0}?"),
                    (pps, false) => format!("{pps:.0}"),
                };
                let spread = format!("{ndr_pps_lowest:.0}–{ndr_pps_highest:.0}");
                out += &format!(
                    "{:>5}{:>6}  {:<12}{ndr:>12}{spread:>23}{max_pps:>12.0}{:>12.2}{:>10.2}{:>7.0} %\n",
                    case.case.bytes,
                    case.case.flows,
                    system.short(),
                    cpu.total,
                    cpu.total_busy,
                    cpu.busy_share * 100.0,
                );
            }
            let show = |ratio: Option<f64>| ratio.map_or("–".into(), |ratio| format!("{ratio:.2}×"));
            out += &format!(
                "             peregrine to the kernel: NDR {}, max {}, CPU {}; with RPS: NDR {}, max {}\n",
                show(case.ratio.ndr_pps),
                show(case.ratio.max_pps),
                show(case.ratio.cpu_s_per_mpkt),
                show(case.ratio.ndr_pps_to_rps),
                show(case.ratio.max_pps_to_rps)
            );
        }
        self.round_trips_text(&mut out);
        let Environment { cores_used, machine, .. } = &self.environment;
        let told = |text: &Option<String>| text.clone().unwrap_or_else(|| "unknown".into());
        out += &format!(
            "\n{} in {:.0} s; {cores_used} cores in all systems; {}, Linux {}; AF_XDP: {}.\n",
            if self.runs == 1 { "One run".into() } else { format!("Median of {} runs", self.runs) },
            self.seconds,
            told(&machine.cpu),
            told(&machine.kernel),
            self.environment.mode_text()
        );
        out += "–: not found, or too few packets for it; ?: the search ran out of time before it was sure.\n";
        self.notes.iter().for_each(|note| out += &format!("{note}\n"));
        out
    }

    fn round_trips_text(&self, out: &mut String) {
        *out += &format!("\n{:>5}{:>6}  {:<12}{:>6}{:>10}", "bytes", "flows", "round trip", "load", "pps");
        for name in ["p50", "p90", "p99", "p99.9", "p99.99", "max, µs"] {
            *out += &format!("{name:>10}");
        }
        *out += &format!("{:>8}{:>8}{:>11}\n", "lost", "late", "stolen, ms");
        for case in &self.cases {
            for system in System::ALL {
                let loads = &case.side(system).rtt_us;
                for (load, at) in LOADS.into_iter().filter_map(|load| Some((load, loads.get(load)?))) {
                    *out += &format!(
                        "{:>5}{:>6}  {:<12}{load:>6}{:>10}",
                        case.case.bytes,
                        case.case.flows,
                        system.short(),
                        at.pps
                    );
                    for us in at.median.values() {
                        let cell = us.map_or("–".into(), |us| format!("{us:.1}"));
                        *out += &format!("{cell:>10}");
                    }
                    *out += &format!("{:>8}{:>8}{:>11.0}\n", at.lost, at.late, at.stolen_ms);
                }
            }
        }
    }
}
