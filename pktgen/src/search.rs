//! Searches the highest rate that a device forwards without loss (NDR), and with at most a given loss (PDR).
//!
//! The method is MLRsearch (RFC 9900): it searches several loss ratios at once, begins with short trials and goes on to
//! long ones, and asks of a rate that the greater part of its trials be good, not every one (`EXCEED_RATIO`). That is
//! why it is this one and not RFC 2544's bisection: there a single trial that something else on the machine disturbed
//! sends the whole search below the true rate for good. One thing is added: a trial in which a queue grew is bad, whatever it lost (`QUEUED`). What the RFC leaves to the implementation, which load is tried
//! next, is `Search::candidate`: what got through at full rate is the first guess, then steps that double, then halves.
//!
//! This file knows neither sender nor receiver: whoever calls [`search`] brings a function that makes a trial. What must
//! hold: NDR ≤ PDR; the search ends, within its bounds; a rate that the *sender* did not hold says nothing about the device.

/// The parts that make a trial: the sender, and who counts at the far end.
pub mod device;
/// The receiving thread.
pub mod receiver;
/// What is shown.
pub mod report;

use std::num::NonZeroU64;
use std::time::Duration;

use serde::Serialize;

use crate::pacer::Rate;

/// The part of a load's trials, by time, that may be bad: RFC 9900's Goal Exceed Ratio.
const EXCEED_RATIO: f64 = 0.5;
/// Searches before the final one, each with shorter trials and twice the width of the next.
const PRECEDING: i32 = 2;
/// What the sender must really have sent of what was due, to have held a rate.
const HELD: f64 = 0.99;
/// A rate that was not held so often is beyond the sender.
const UNHELD_MAX: usize = 2;

/// A queue grew if packets arrived over a longer time than they left in: by more than this part of it, and so many seconds
/// for who counts may have been kept waiting at the end. A buffer would else hide a rate that is too high from any trial
/// that is over before it is full.
const QUEUED: f64 = 0.02;
const QUEUED_S: f64 = 0.005;

/// What is searched, and how long.
#[derive(Clone, Debug)]
pub struct Goals {
    /// The loss that PDR allows, as a part of what was sent.
    pub pdr_loss: f64,
    /// How far apart the bounds are in the end, as a part of the rate.
    pub width: f64,
    /// Length of the first trials.
    pub first_trial: Duration,
    /// Length of the trials that decide.
    pub last_trial: Duration,
    /// Time that a load is tried in the end, in all: RFC 9900's Goal Duration Sum.
    pub sum: Duration,
    /// The lowest rate of interest.
    pub pps_min: u64,
    /// The highest; `None`: as fast as the sender can.
    pub pps_max: Option<NonZeroU64>,
    /// Where to begin if not all arrives at full rate; `None`: at what then arrived. Of a device that comes to a
    /// standstill under overload that is far below what it can do, and the way up from there takes many trials.
    pub pps_start: Option<u64>,
    /// Trials at most.
    pub trials_max: usize,
    /// Time at most, over all trials.
    pub time_max: Duration,
    /// The part of the packets that may leave late in a trial with loss that counts.
    pub late_max: f64,
}

impl Default for Goals {
    fn default() -> Goals {
        Goals {
            pdr_loss: 0.005,
            width: 0.02,
            first_trial: Duration::from_millis(200),
            last_trial: Duration::from_secs(1),
            sum: Duration::from_secs(3),
            pps_min: 100,
            pps_max: None,
            pps_start: None,
            trials_max: 200,
            time_max: Duration::from_secs(60),
            late_max: 0.01,
        }
    }
}

/// What happened in a trial.
#[derive(Clone, Copy, PartialEq, Debug, Default)]
pub struct Counted {
    /// Packets that were due to leave, by the schedule: at random times that is not the rate times the time.
    pub due: u64,
    /// Packets that left.
    pub sent: u64,
    /// Those of them that arrived (or were answered), each once.
    pub received: u64,
    /// From the first arrival to the last; `None`: not known.
    pub arriving: Option<Duration>,
    /// Packets that left late.
    pub late: u64,
    /// Packets that the sender gave up.
    pub skipped: u64,
    /// How long it sent.
    pub sending: Duration,
    /// How long it all took, with the wait for the last packets.
    pub took: Duration,
}

/// A trial, as it is reported.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Trial {
    /// The rate that was asked for; `None`: as fast as the sender can.
    pub pps: Option<u64>,
    /// For how long.
    pub seconds: f64,
    /// Packets that were due to leave in the time that it took.
    pub due: u64,
    /// Packets that left.
    pub sent: u64,
    /// Those of them that arrived.
    pub received: u64,
    /// The rest, as a part of `sent`.
    pub loss_ratio: f64,
    /// Packets a second that left.
    pub offered_pps: f64,
    /// Packets a second that arrived, from the first arrival to the last; of answers: in the time that it sent.
    pub received_pps: f64,
    /// They arrived over a longer time than they left in: a queue grew, so the rate is too high whatever was lost.
    pub queued: bool,
    /// Packets that left late.
    pub late: u64,
    /// Packets that the sender gave up.
    pub skipped: u64,
    /// The sender did not hold the rate: the trial says nothing about the device.
    pub generator_limited: bool,
}

impl Trial {
    /// At most so much was lost, and no queue hid more of it.
    fn is_good(&self, loss: f64) -> bool {
        self.loss_ratio <= loss && !self.queued
    }
}

/// What a search for one loss ratio came to.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
pub struct Found {
    /// The loss that is allowed.
    pub loss_ratio_max: f64,
    /// The rate; 0 if none of those tried will do.
    pub pps: u64,
    /// The lowest rate found to be too high; absent if there is none.
    pub upper_pps: Option<u64>,
    /// Why `pps` is not higher.
    pub end: End,
    /// Trials at `pps` that counted.
    pub trials: usize,
    /// Those of them that met the goal.
    pub trials_good: usize,
}

/// Why a rate that was found is not higher.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum End {
    /// The device: a rate at most a width above it loses too much.
    Device,
    /// The sender: it cannot hold a higher rate.
    Generator,
    /// Higher rates were not asked for.
    RateMax,
    /// Even the lowest rate loses too much.
    Nothing,
    /// The bounds of the search were reached first: the rate is not confirmed by long trials.
    Unconfirmed,
}

/// All that was found.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Findings {
    /// No packet lost.
    pub ndr: Found,
    /// At most a small part lost.
    pub pdr: Found,
    /// The highest rate at which packets left, in any trial.
    pub max_offered_pps: f64,
    /// The highest rate at which packets arrived, in any trial.
    pub max_received_pps: f64,
    /// Every trial, in order.
    pub trials: Vec<Trial>,
}

/// What a load is, for a target (RFC 9900, Load Classification).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Class {
    Lower,
    Upper,
    Undecided,
}

/// A goal, or a coarser one on the way to it.
#[derive(Clone, Copy, Debug)]
struct Target {
    loss: f64,
    trial: f64,
    sum: f64,
    width: f64,
    /// The bounds that the target before this one found.
    hints: Bounds,
}

/// RFC 9900's relevant bounds: the lowest load that is too high, and the highest below it that is not.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
struct Bounds {
    lower: Option<u64>,
    upper: Option<u64>,
}

struct Search<'a, F> {
    goals: &'a Goals,
    run: F,
    trials: Vec<Trial>,
    took: Duration,
    /// No load above this is tried.
    ceiling: u64,
    /// It is the sender that cannot do more.
    ceiling_is_the_senders: bool,
    /// How often the ceiling has come down.
    lowered: u32,
}

/// Searches both rates with the trials that `run` makes. If a trial fails, what was found until then, and the failure.
pub fn search<E>(
    goals: &Goals,
    run: impl FnMut(Rate, Duration) -> Result<Counted, E>,
) -> (Findings, Option<E>) {
    let (ceiling, ceiling_is_the_senders) = goals.pps_max.map_or((u64::MAX, true), |pps| (pps.get(), false));
    let mut search = Search {
        goals,
        run,
        trials: Vec::new(),
        took: Duration::ZERO,
        ceiling,
        ceiling_is_the_senders,
        lowered: 0,
    };
    let failure = search.all().err();
    (search.findings(), failure)
}

impl<F, E> Search<'_, F>
where
    F: FnMut(Rate, Duration) -> Result<Counted, E>,
{
    fn all(&mut self) -> Result<(), E> {
        let mut hints = Bounds::default();
        if self.goals.pps_max.is_none() {
            let trial = self.trial(None, self.goals.first_trial)?;
            self.ceiling = (trial.offered_pps as u64).max(self.goals.pps_min);
            hints = self.guess(&trial);
        }
        let mut hints = [hints; 2];
        for step in 0..=PRECEDING {
            let [ndr, pdr] = hints;
            let targets = [self.target(step, 0.0, ndr), self.target(step, self.goals.pdr_loss, pdr)];
            // What is tried for the one may tell more about the other.
            while targets.iter().any(|target| self.candidate(target).is_some()) {
                for target in &targets {
                    if !self.reach(target)? {
                        return Ok(());
                    }
                }
            }
            hints = targets.map(|target| self.bounds(&target));
        }
        Ok(())
    }

    /// If not all arrived at full rate: what did is the first guess of a lower bound, unless there is a better one.
    fn guess(&self, trial: &Trial) -> Bounds {
        let arrived = trial.received_pps as u64;
        let lower = self.goals.pps_start.unwrap_or(arrived).max(self.goals.pps_min);
        Bounds {
            lower: ((trial.received < trial.sent || trial.queued) && lower < self.ceiling).then_some(lower),
            upper: None,
        }
    }

    /// The last step is the goal itself.
    fn target(&self, step: i32, loss: f64, hints: Bounds) -> Target {
        let (first, sum) = (self.goals.first_trial.as_secs_f64(), self.goals.sum.as_secs_f64());
        let last = self.goals.last_trial.as_secs_f64();
        let sum = if step == PRECEDING {
            sum.max(last)
        } else {
            first * (sum.max(last) / first).powf(f64::from(step) / f64::from(PRECEDING))
        };
        Target {
            loss,
            trial: if step == PRECEDING { last } else { sum.min(last) },
            sum,
            width: self.goals.width * f64::from(1 << (PRECEDING - step)),
            hints,
        }
    }

    /// Trials until the target's bounds are close enough. False if the search must end before.
    fn reach(&mut self, target: &Target) -> Result<bool, E> {
        while let Some(load) = self.candidate(target) {
            let duration = Duration::from_secs_f64(target.trial);
            let Some(pps) = NonZeroU64::new(load) else { return Ok(true) };
            if self.trials.len() >= self.goals.trials_max || self.took + duration > self.goals.time_max {
                return Ok(false);
            }
            self.trial(Some(pps), duration)?;
            self.lower_ceiling(load);
        }
        Ok(true)
    }

    fn trial(&mut self, pps: Option<NonZeroU64>, duration: Duration) -> Result<Trial, E> {
        let counted = (self.run)(pps.map_or(Rate::Max, Rate::Pps), duration)?;
        self.took += counted.took.max(duration);
        let trial = self.judge(pps.map(NonZeroU64::get), duration, &counted);
        self.trials.push(trial);
        Ok(trial)
    }

    fn judge(&self, pps: Option<u64>, duration: Duration, counted: &Counted) -> Trial {
        let sent = counted.sent as f64;
        let received = counted.received.min(counted.sent);
        let seconds = counted.sending.max(duration).as_secs_f64();
        let arriving = counted.arriving.map_or(0.0, |span| span.as_secs_f64());
        let queued = arriving > seconds * (1.0 + QUEUED) + QUEUED_S;
        // Never more than by the sender's time: of a few packets in one batch the arrivals tell no rate.
        let received_pps = match arriving > seconds {
            true => received.saturating_sub(1) as f64 / arriving,
            false => received as f64 / seconds,
        };
        // A packet that is due at the very end may be one too few.
        let held = sent + 1.0 >= HELD * counted.due as f64;
        // Late packets leave in bursts. A device that loses none of them has shown more than it was asked for; one that
        // loses some was asked for more than this rate.
        let bursts = counted.late as f64 > self.goals.late_max * sent && (received < counted.sent || queued);
        Trial {
            pps,
            seconds: duration.as_secs_f64(),
            due: counted.due,
            sent: counted.sent,
            received,
            loss_ratio: if sent > 0.0 { (counted.sent - received) as f64 / sent } else { 1.0 },
            offered_pps: sent / seconds,
            received_pps,
            queued,
            late: counted.late,
            skipped: counted.skipped,
            generator_limited: pps.is_some() && (!held || bursts),
        }
    }

    /// If the sender has failed to hold this load again and again, the search stays below it.
    fn lower_ceiling(&mut self, load: u64) {
        let here = |trial: &&Trial| trial.pps == Some(load);
        let unheld = self.trials.iter().filter(here).filter(|trial| trial.generator_limited).count();
        let held = self.trials.iter().filter(here).count() - unheld;
        if unheld < UNHELD_MAX || unheld <= held {
            return;
        }
        let offered = self.trials.iter().filter(here).map(|trial| trial.offered_pps).fold(0.0, f64::max);
        let step = (self.goals.width * f64::from(1 << self.lowered.min(8))).min(0.5);
        let below = offered.min(load as f64 * (1.0 - step)) as u64;
        // What it held, it can do.
        let counted = self.trials.iter().filter(|trial| !trial.generator_limited);
        let best = counted.filter_map(|trial| trial.pps).filter(|pps| *pps < load).max().unwrap_or(0);
        self.ceiling = self.ceiling.min(below.max(best).max(self.goals.pps_min).min(load.saturating_sub(1)));
        self.ceiling_is_the_senders = true;
        self.lowered += 1;
    }

    /// RFC 9900, Load Classification: what the load is if all further trials were bad, and if all were good.
    fn class(&self, load: u64, target: &Target) -> Class {
        let (mut good, mut bad, mut good_short, mut bad_short) = (0.0, 0.0, 0.0, 0.0);
        for trial in self.trials.iter().filter(|trial| trial.pps == Some(load) && !trial.generator_limited) {
            let long = trial.seconds >= target.trial * 0.999_999;
            *match (trial.is_good(target.loss), long) {
                (true, true) => &mut good,
                (false, true) => &mut bad,
                (true, false) => &mut good_short,
                (false, false) => &mut bad_short,
            } += trial.seconds;
        }
        let balancing = good_short * EXCEED_RATIO / (1.0 - EXCEED_RATIO);
        let bad = bad + f64::max(0.0, bad_short - balancing);
        let whole = f64::max(good + bad, target.sum);
        let allowed = whole * EXCEED_RATIO;
        match (bad <= allowed, whole - good <= allowed) {
            (true, true) => Class::Lower,
            (false, false) => Class::Upper,
            _ => Class::Undecided,
        }
    }

    /// The loads that have this class, in no order.
    fn of_class(&self, class: Class, target: &Target) -> impl Iterator<Item = u64> {
        let mut loads: Vec<u64> = self.trials.iter().filter_map(|trial| trial.pps).collect();
        loads.sort_unstable();
        loads.dedup();
        loads.retain(|load| self.class(*load, target) == class);
        loads.into_iter()
    }

    fn bounds(&self, target: &Target) -> Bounds {
        let upper = self.of_class(Class::Upper, target).min();
        let below = |load: &u64| upper.is_none_or(|upper| *load < upper);
        Bounds { lower: self.of_class(Class::Lower, target).filter(below).max(), upper }
    }

    /// The load to try next; `None` if the bounds are close enough, or nothing is left to try. The same one again until
    /// it is decided.
    fn candidate(&self, target: &Target) -> Option<u64> {
        let Bounds { lower, upper } = self.bounds(target);
        let hints = target.hints;
        let load = match (lower, upper) {
            (None, None) => hints.lower.or(hints.upper).unwrap_or(self.ceiling),
            (Some(lower), None) => {
                let beyond = hints.upper.filter(|hint| *hint > lower);
                beyond.unwrap_or_else(|| self.above(lower, target))
            }
            (None, Some(upper)) if upper <= self.goals.pps_min => return None,
            (None, Some(upper)) => {
                let below = hints.lower.filter(|hint| *hint < upper);
                below.unwrap_or_else(|| self.below(upper, target)).max(self.goals.pps_min)
            }
            (Some(lower), Some(upper)) => {
                if (upper - lower) as f64 <= (target.width * upper as f64).max(1.0) {
                    return None;
                }
                // Where the coarser target's bound is inside, it is the better guess; else the middle.
                let inside = [hints.lower, hints.upper].into_iter().flatten();
                let middle = ((lower as f64) * (upper as f64)).sqrt() as u64;
                let fresh = |hint: &u64| *hint > lower && *hint < upper;
                inside.filter(fresh).max().unwrap_or(middle.clamp(lower + 1, upper - 1))
            }
        };
        let load = load.min(self.ceiling).max(self.goals.pps_min);
        // At the ceiling there may be nothing left to learn, or nothing that the sender can do.
        let known = lower.is_some_and(|lower| load <= lower) || upper.is_some_and(|upper| load >= upper);
        let hopeless = load > self.ceiling;
        (!known && !hopeless).then_some(load)
    }

    /// A step up that doubles with each load that will do.
    fn above(&self, lower: u64, target: &Target) -> u64 {
        let tried = self.of_class(Class::Lower, target).count().min(16);
        let step = (target.width * f64::from(1 << tried.saturating_sub(1))).min(1.0);
        ((lower as f64 * (1.0 + step)) as u64).max(lower + 1)
    }

    /// Down to what got through, but at least by a step that doubles with each load that will not do.
    fn below(&self, upper: u64, target: &Target) -> u64 {
        let tried = self.of_class(Class::Upper, target).count().min(16);
        let step = (target.width * f64::from(1 << tried.saturating_sub(1))).min(0.5);
        let through = self.trials.iter().filter(|trial| trial.pps == Some(upper));
        let through = through.map(|trial| trial.received_pps).fold(0.0, f64::max);
        f64::min(through, upper as f64 * (1.0 - step)) as u64
    }

    fn findings(&self) -> Findings {
        let pdr = self.found(self.goals.pdr_loss);
        let mut ndr = self.found(0.0);
        if ndr.pps > pdr.pps {
            // Only where the search had to end early: then less is known of the one than of the other.
            ndr = Found { pps: pdr.pps, end: End::Unconfirmed, ..ndr };
        }
        let most = |rate: fn(&Trial) -> f64| self.trials.iter().map(rate).fold(0.0, f64::max);
        Findings {
            ndr,
            pdr,
            max_offered_pps: most(|trial| trial.offered_pps),
            max_received_pps: most(|trial| trial.received_pps),
            trials: self.trials.clone(),
        }
    }

    /// From the finest target that has a lower bound.
    fn found(&self, loss: f64) -> Found {
        let goal = self.target(PRECEDING, loss, Bounds::default());
        let done = self.candidate(&goal).is_none();
        let all = (0..=PRECEDING).rev().map(|step| self.bounds(&self.target(step, loss, Bounds::default())));
        let known = all.clone().find(|bounds| bounds.lower.is_some());
        let bounds = if done { self.bounds(&goal) } else { known.unwrap_or(self.bounds(&goal)) };
        let pps = bounds.lower.unwrap_or(0);
        let close = |upper: u64| (upper - pps) as f64 <= (goal.width * upper as f64).max(1.0);
        let end = match bounds {
            _ if !done => End::Unconfirmed,
            Bounds { lower: None, upper: Some(_) } => End::Nothing,
            Bounds { lower: Some(_), upper: Some(upper) } if close(upper) => End::Device,
            _ if self.ceiling_is_the_senders => End::Generator,
            Bounds { lower: None, upper: None } => End::Unconfirmed,
            Bounds { .. } => End::RateMax,
        };
        let counted = |trial: &&Trial| trial.pps == Some(pps) && !trial.generator_limited;
        let trials = self.trials.iter().filter(counted);
        Found {
            loss_ratio_max: loss,
            pps,
            upper_pps: bounds.upper,
            end,
            trials: trials.clone().count(),
            trials_good: trials.filter(|trial| trial.is_good(loss)).count(),
        }
    }
}

#[cfg(test)]
mod tests;
