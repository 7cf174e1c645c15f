//! What is compared, and what one run of it gives: `bench` measures it, `report` and `round_trips` take medians of it.

use serde::{Deserialize, Serialize};

use crate::figures::null_as_nan;

/// Round trips at one rate are measured so often at most, until hardly anything disturbed them.
pub const ATTEMPTS: u64 = 3;
/// Disturbed: the part of the packets that left late, and of the time that the hypervisor took from the two cores.
pub const DISTURBED: f64 = 0.001;

/// How `peregrine-pktgen search` calls the end of a search that had no time to be sure.
pub const UNCONFIRMED: &str = "unconfirmed";

/// What is compared.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum System {
    Kernel,
    KernelRps,
    Peregrine,
}

impl System {
    /// In the order in which they take turns.
    pub const ALL: [System; 3] = [System::Kernel, System::KernelRps, System::Peregrine];

    /// In tables.
    pub fn short(self) -> &'static str {
        match self {
            System::Kernel => "kernel",
            System::KernelRps => "kernel, RPS",
            System::Peregrine => "peregrine",
        }
    }

    pub fn name(self) -> &'static str {
        match self {
            System::Kernel => "the kernel's overlay",
            System::KernelRps => "the kernel's overlay with RPS",
            System::Peregrine => "peregrine",
        }
    }
}

/// Which packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
pub struct Case {
    /// Of the inner frame.
    pub bytes: usize,
    pub flows: u16,
}

impl Case {
    /// `64 bytes, 1 flow`
    pub fn title(self) -> String {
        let Case { bytes, flows } = self;
        format!("{bytes} bytes, {flows} flow{}", if flows == 1 { "" } else { "s" })
    }
}

/// How many round trips the kernel's overlay can answer a second.
#[derive(Clone, Copy, Debug)]
pub struct Capacity {
    pub pps: u64,
    /// Half of the answers came within a millisecond; if not, the search for such a rate ended before.
    pub prompt: bool,
}

/// What one system gave for one case in one run.
#[derive(Clone, Debug)]
pub struct Measured {
    pub system: System,
    pub case: Case,
    pub figures: Figures,
}

#[derive(Clone, Debug)]
pub struct Figures {
    /// Most packets a second that arrived, in the stream or without loss in the search.
    pub max_pps: f64,
    pub ndr_pps: f64,
    /// How long the search took.
    pub search_seconds: f64,
    /// Why NDR is not higher: as `peregrine-pktgen search` calls it.
    pub ndr_end: String,
    pub cpu: Cpu,
    /// Idle, and at 10, 50 and 90 % of the kernel's capacity.
    pub round_trips: Vec<RoundTrips>,
}

impl Figures {
    /// The rate without loss, if the search was sure of it.
    pub fn confirmed_ndr(&self) -> Option<u64> {
        Some(self.ndr_pps as u64).filter(|pps| *pps > 0 && self.ndr_end != UNCONFIRMED)
    }
}

/// CPU seconds per million packets that arrived.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct Cpu {
    /// The generator's core: generator, wire, and Peregrine's tenant.
    pub generator_core: f64,
    /// The other one: Peregrine's worker; the kernel's tenant, and with RPS its stack.
    pub other_core: f64,
    /// Both.
    pub total: f64,
    /// The share of a polling worker's time in which it had work; 1 for the kernel, which does not poll. `null` if the
    /// daemon did not tell.
    #[serde(deserialize_with = "null_as_nan")]
    pub busy_share: f64,
    /// Both, of the other core only that share.
    #[serde(deserialize_with = "null_as_nan")]
    pub total_busy: f64,
}

/// Round trips at one rate: of several attempts the one that was disturbed least, whatever came of it.
#[derive(Clone, Debug)]
pub struct RoundTrips {
    /// `idle`, or percent of the kernel's capacity.
    pub load: &'static str,
    pub pps: u64,
    pub sent: u64,
    pub lost: u64,
    /// Left more than a millisecond after their time: the generator's own stalls, in which the system has no part unless
    /// its work is done on the generator's core.
    pub late: u64,
    /// What the hypervisor took from the two cores meanwhile.
    pub stolen_ms: f64,
    /// The part of the packets that were late, and of the time that was taken away.
    pub disturbed: f64,
    pub attempts: u64,
    /// The generator's own part, in the median: less than this tells no systems apart.
    pub floor_ns: Option<f64>,
    /// p50, p90, p99, p99.9, p99.99 and the maximum, in microseconds; those that so few packets do not have are absent.
    pub us: [Option<f64>; 6],
    /// How many answers took how many nanoseconds: what the runs together are made of.
    pub counts: Vec<(u64, u64)>,
}

/// Names of [`RoundTrips::us`].
pub const PERCENTILES: [&str; 6] = ["p50", "p90", "p99", "p999", "p9999", "max"];
/// As many packets as it takes for one to lie beyond.
pub const PACKETS_MIN: [u64; 6] = [1, 10, 100, 1000, 10_000, 1];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_is_named_as_one_says_it() {
        assert_eq!(Case { bytes: 64, flows: 1 }.title(), "64 bytes, 1 flow");
        assert_eq!(Case { bytes: 1400, flows: 100 }.title(), "1400 bytes, 100 flows");
    }
}
