//! What the machine itself takes: a thread on the worker's core looks at the clock and does nothing else. Where two looks lie far apart,
//! the core was somebody else's: another thread's, the kernel's, the hypervisor's. A packet that comes at any moment waits for what is left
//! of such a gap, whatever the worker does; that is the part of its latency that no order of work can change.

use std::time::Duration;

use peregrine_dataplane::clock::cycles;
use serde::{Deserialize, Serialize};

/// Cycles between two looks that lie side by side are fewer than this.
const GAP: u64 = 1_000;
/// Gaps that are remembered; in a second of a quiet machine there are some hundreds.
const GAPS_MAX: usize = 1 << 20;

/// Gaps of a core, over some time.
#[derive(Clone, Debug, Default)]
pub struct Gaps {
    /// Cycles of each.
    gaps: Vec<u64>,
    /// Cycles of all the time.
    all: u64,
}

/// What a packet that comes at any moment would have waited for the core, in µs.
#[derive(Clone, Copy, Debug, Default, Deserialize, Serialize)]
pub struct MachineWaits {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
    /// The part of the time that was gaps.
    pub share: f64,
    pub gaps_per_s: f64,
}

impl Gaps {
    /// Of this core, for so long.
    pub fn of_core(core: usize, time: Duration, hertz: f64) -> Result<Gaps, String> {
        let look = move || {
            let pinned = core_affinity::set_for_current(core_affinity::CoreId { id: core });
            pinned.then(|| looked(cycles, (time.as_secs_f64() * hertz) as u64))
        };
        let ended = std::thread::spawn(look).join().ok().flatten();
        ended.ok_or_else(|| format!("cannot look at core {core}"))
    }

    /// Those of another time, too.
    pub fn add(&mut self, other: Gaps) {
        self.gaps.extend(other.gaps);
        self.all += other.all;
    }

    /// What they mean for who comes at any moment.
    pub fn waits(&self, hertz: f64) -> MachineWaits {
        let us = |cycles: u64| 1e6 * cycles as f64 / hertz;
        let time = self.all.max(1) as f64;
        MachineWaits {
            p50: us(self.wait(0.5)),
            p99: us(self.wait(0.99)),
            p999: us(self.wait(0.999)),
            max: us(self.gaps.iter().copied().max().unwrap_or(0)),
            share: self.gaps.iter().sum::<u64>() as f64 / time,
            gaps_per_s: self.gaps.len() as f64 * hertz / time,
        }
    }

    /// The wait that so much of all moments has at most. Who comes in a gap waits for its rest: more than `wait` if that lies more than so
    /// much before the end.
    fn wait(&self, share: f64) -> u64 {
        let most = (1.0 - share) * self.all as f64;
        let beyond = |wait: u64| self.gaps.iter().map(|gap| gap.saturating_sub(wait)).sum::<u64>() as f64;
        let (mut low, mut high) = (0, self.gaps.iter().copied().max().unwrap_or(0));
        while low < high {
            let middle = low + (high - low) / 2;
            if beyond(middle) > most { low = middle + 1 } else { high = middle }
        }
        low
    }
}

fn looked(clock: impl Fn() -> u64, time: u64) -> Gaps {
    let mut gaps = Vec::with_capacity(GAPS_MAX);
    let start = clock();
    let mut last = start;
    while last - start < time {
        let now = clock();
        if now.saturating_sub(last) > GAP && gaps.len() < GAPS_MAX {
            gaps.push(now - last);
        }
        last = now.max(last);
    }
    Gaps { gaps, all: last - start }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[test]
    fn who_comes_in_a_gap_waits_for_the_rest_of_it() {
        let mut gaps = Gaps { gaps: vec![1_000, 9_000], all: 100_000 };
        assert_eq!(gaps.wait(0.5), 0, "most come when the core is there");
        // 1 % of the time, 1000 cycles, lies more than 8000 cycles before the end of a gap: at the beginning of the long one.
        assert_eq!(gaps.wait(0.99), 8_000);
        assert_eq!(gaps.wait(0.85), 0);
        gaps.add(Gaps { gaps: vec![], all: 900_000 });
        let waits = gaps.waits(1e6);
        assert_eq!((waits.p99, waits.max, waits.share, waits.gaps_per_s), (0.0, 9_000.0, 0.01, 2.0));
        assert_eq!(Gaps::default().waits(1e6).max, 0.0);
    }

    #[test]
    fn a_gap_is_what_lies_between_two_looks() {
        let now = Cell::new(0);
        let clock = || {
            let step = if now.get() == 500 { 4_000 } else { 100 };
            now.replace(now.get() + step)
        };
        let gaps = looked(clock, 10_000);
        assert_eq!((gaps.gaps, gaps.all), (vec![4_000], 10_000));
    }
}
