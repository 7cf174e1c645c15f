//! What must be known to read the figures, in sentences: how they were made, and where they are not the system's own.

use super::measured::{ATTEMPTS, System, UNCONFIRMED};
use super::report::Report;
use super::round_trips::AtLoad;

impl Report {
    /// All of it.
    pub(super) fn explain(&self) -> Vec<String> {
        let mut notes = vec![
            "Over veth the sender's core does the kernel's share of both ends of the wire, and without RPS of the overlay too.".into(),
        ];
        notes.extend(self.limits());
        notes.push(
            "CPU seconds: what /proc/stat says the two cores were busy during a stream, per million packets that arrived; that stream, at the load of which most arrived in the search, is also what the most that arrives was measured by; whatever else ran there is in it. A polling worker's core is always busy: busy_share is the part with work, and total_busy counts only that.".into(),
        );
        notes.push(
            "Round trips at 10, 50 and 90 % of what the kernel's overlay answers with at most 0.5 % lost and half of the answers within a millisecond; idle is 1000 a second. Up to p99 the median of the runs; p99.9, p99.99 and the maximum of the packets of all runs together. A percentile that so few packets do not have is null: p99.99 takes 10,000, which quick runs have at high loads only.".into(),
        );
        let late = self.cases.iter().filter(|case| !case.round_trip_capacity_prompt).count();
        if late > 0 {
            notes.push(format!(
                "In {late} of {} cases half of the answers took longer than a millisecond even at the lowest rate tried for that: there the loads are parts of that rate.",
                self.cases.len()
            ));
        }
        notes.extend(self.disturbances());
        if self.cases.iter().any(|case| case.ratio.ndr_pps.is_none() || case.ratio.ndr_pps_to_rps.is_none()) {
            notes.push(
                "There is no ratio of loss-free rates where one of the two was not found or not confirmed."
                    .into(),
            );
        }
        notes.extend(self.retried.iter().map(|what| format!("Failed, and was measured again: {what}.")));
        if let Some(failure) = &self.failure {
            notes.push(format!("Not all runs were made, these are the {} before: {failure}.", self.runs));
        }
        if self.quick {
            notes.push("Quick: one run, short trials, 64 bytes with 1 and 100 flows and 1400 bytes with 1: read ratios, not figures.".into());
        }
        notes
    }

    /// Where a rate is not the system's own.
    pub fn limits(&self) -> Vec<String> {
        let searches = self.cases.len().saturating_mul(self.runs);
        let mut notes = Vec::new();
        for system in System::ALL {
            let name = system.name();
            let ends = |end: &str| {
                let all = self.cases.iter().flat_map(|case| &case.side(system).ndr_end);
                all.filter(|is| *is == end).count()
            };
            let limited = ends("generator");
            if limited > 0 {
                notes.push(format!(
                    "The wire or the generator, not {name}, was the limit in {limited} of {searches} searches: its loss-free rate may be higher."
                ));
            }
            let unconfirmed = ends(UNCONFIRMED);
            if unconfirmed > 0 {
                notes.push(format!(
                    "{unconfirmed} of {searches} searches of {name} ran out of time: their loss-free rates come from short trials."
                ));
            }
        }
        notes
    }

    /// Where a tail is not the system's own.
    pub fn disturbances(&self) -> Option<String> {
        let sides = self.cases.iter().flat_map(|case| System::ALL.map(|system| case.side(system)));
        let loads: Vec<&AtLoad> = sides.flat_map(|side| side.rtt_us.values()).collect();
        let disturbed = loads.iter().map(|at| at.disturbed_runs).fold(0, usize::saturating_add);
        let worst = loads.iter().map(|at| at.late_share()).fold(0.0, f64::max);
        (disturbed > 0).then(|| {
            format!(
                "{disturbed} of {} measurements of round trips were disturbed, even in the best of up to {ATTEMPTS} attempts: packets left over 1 ms late (in the worst case {:.1} % of them), because the generator had lost its core or, without RPS, did the overlay's work on it; or the hypervisor took a core away. The delay of a packet that left late is in its round trip, so as many of the slowest ones are the generator's doing; both counts stand beside the percentiles.",
                loads.len().saturating_mul(self.runs),
                100.0 * worst
            )
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::tests::{measured, of, report};
    use super::*;

    #[test]
    fn who_was_the_limit_is_said() {
        let notes = report().notes.join("\n");
        assert!(notes.contains("not peregrine, was the limit in 3 of 3 searches"), "{notes}");
        assert!(!notes.contains("kernel's overlay, was the limit"), "{notes}");
        assert!(
            report().text().contains("peregrine to the kernel: NDR 4.00×, max 4.00×"),
            "{}",
            report().text()
        );
    }

    #[test]
    fn whose_delay_it_was_is_said() {
        let report = report();
        assert!((report.cases[0].kernel.rtt_us["idle"].late_share() - 0.1).abs() < 1e-9);
        let told = report.disturbances().unwrap();
        assert!(told.starts_with("36 of 36 measurements") && told.contains("10.0 % of them"), "{told}");
        let mut quiet = measured(System::Kernel, 1.0);
        quiet.figures.round_trips.iter_mut().for_each(|at| at.disturbed = 0.0);
        assert_eq!(of(&[quiet], 1).disturbances(), None);
    }

    #[test]
    fn numbers_that_no_run_gives_do_not_overflow() {
        let mut report = report();
        report.runs = usize::MAX;
        report.cases.push(report.cases[0].clone());
        for case in &mut report.cases {
            case.kernel.rtt_us.values_mut().for_each(|at| at.disturbed_runs = usize::MAX);
        }
        assert!(!report.limits().is_empty());
        assert!(report.disturbances().unwrap().starts_with(&format!("{} of", usize::MAX)));
    }

    #[test]
    fn what_cut_the_measurement_short_is_said() {
        let told = Report { failure: Some("the daemon ended".into()), ..report() };
        assert!(told.explain().iter().any(|note| note.contains("the 3 before: the daemon ended.")));
        let again = Report { retried: vec!["run 2: peregrine: no answer".into()], ..report() };
        assert!(
            again.explain().contains(&"Failed, and was measured again: run 2: peregrine: no answer.".into())
        );
        let mut slow = report();
        slow.cases[0].round_trip_capacity_prompt = false;
        assert!(slow.explain().iter().any(|note| note.starts_with("In 1 of 1 cases half")));
    }
}
