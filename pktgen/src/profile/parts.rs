//! Which part of the packets each thread sends. Flows are dealt out to the threads, so that each has one that counts its packets;
//! by Zipf's law those of one thread are asked for more than those of another, and so it sends more.
//!
//! What must hold: with the parts of this file for rate and count, and weights by the rank in the class within a thread, each
//! flow has the part of all packets that it would have if one thread sent them all.

use super::{Choice, Class};

/// One thread's part.
#[derive(Clone, PartialEq, Debug)]
pub struct Part {
    /// Where it begins and ends, if all packets are from 0 to 1 and the threads' parts follow one another.
    from: f64,
    to: f64,
    /// Of each class: which part of all packets.
    pub classes: Vec<f64>,
}

impl Part {
    /// Which part of all packets.
    pub fn share(&self) -> f64 {
        self.to - self.from
    }

    /// So much of `whole`: all threads' together are exactly `whole`.
    pub fn of(&self, whole: u64) -> u64 {
        let bound = |at: f64| (whole as f64 * at).round() as u64;
        bound(self.to).saturating_sub(bound(self.from)) // the last thread's part may be smaller than what rounding took
    }
}

/// The numbers of a thread's flows in a class: every so-many-th.
pub fn flows(class: &Class, thread: u32, threads: u32) -> impl Iterator<Item = u32> {
    class.flows().skip(thread as usize).step_by(threads.max(1) as usize)
}

/// How often a flow is chosen, beside the others of its class.
pub fn weight(class: &Class, choice: Choice, flow: u32) -> f64 {
    match choice {
        Choice::Zipf(exponent) => f64::from(flow - class.first_flow + 1).powf(-exponent),
        Choice::RoundRobin | Choice::Uniform => 1.0,
    }
}

/// The parts of all threads: equal ones, unless flows have weights.
pub fn of(classes: &[Class], choice: Choice, threads: u32) -> Box<[Part]> {
    let shares: f64 = classes.iter().map(|class| f64::from(class.share)).sum();
    let part = |class: &Class, thread| {
        let weights = |flows: &mut dyn Iterator<Item = u32>| -> f64 {
            flows.map(|flow| weight(class, choice, flow)).sum()
        };
        let of_class = match choice {
            Choice::Zipf(_) => weights(&mut flows(class, thread, threads)) / weights(&mut class.flows()),
            Choice::RoundRobin | Choice::Uniform => 1.0 / f64::from(threads.max(1)),
        };
        of_class * f64::from(class.share) / shares
    };
    let mut from = 0.0;
    (0..threads.max(1))
        .map(|thread| {
            let classes: Vec<f64> = classes.iter().map(|class| part(class, thread)).collect();
            let is_last = thread + 1 >= threads;
            let to = if is_last { 1.0 } else { from + classes.iter().sum::<f64>() };
            Part { from: std::mem::replace(&mut from, to), to, classes }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_rounding_swallows_is_nothing_and_no_panic() {
        let part = Part { from: 1.0 + f64::EPSILON, to: 1.0, classes: Vec::new() };
        assert_eq!((part.of(1_000_000_000_000_000_000), part.of(u64::MAX)), (0, 0));
    }
}
