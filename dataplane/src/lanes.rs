//! Which work of a worker goes first: a lane for each class that is preferred to those behind it, and one for all the rest.
//!
//! ```text
//! class     order     lane
//! voice     sync      0     its burst goes through all its stages at once
//! web       batch     1     it goes first at each stage, with at most one stage of a less urgent burst in between
//! video     fifo      2  \  in the order in which they came
//! bulk      -         2  /
//! ```
//!
//! [`Lanes`] says which class is in which, the same for all workers and as long as they run. [`Precedence`] decides, on each worker,
//! which lane may go before which: the lower number, but not more than a quota of bursts in a row, and not while a lane behind
//! has had less than its share of the time (PRISM, ICDCS 2022, has neither: there an urgent flood starves the rest). Pure; the worker moves the
//! frames.

use crate::plan::{ClassesPlan, WorkOrder};
use crate::types::Class;

/// Which class is in which lane.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Lanes {
    by_class: [u8; Class::LIMIT],
    count: u8,
}

impl Lanes {
    /// All classes in one.
    pub const ONE: Lanes = Lanes { by_class: [0; Class::LIMIT], count: 1 };

    /// Those of a plan.
    pub fn new(classes: &ClassesPlan) -> Lanes {
        let is_preferred = |index: usize| {
            let order = classes.list.get(index).map(|class| class.order);
            index + 1 < classes.list.len() && order.is_some_and(|order| order != WorkOrder::Fifo)
        };
        let last = (0..Class::LIMIT).filter(|index| is_preferred(*index)).count() as u8;
        let mut by_class = [last; Class::LIMIT];
        let preferred = by_class.iter_mut().enumerate().filter(|(index, _)| is_preferred(*index));
        for (lane, (_, place)) in (0..).zip(preferred) {
            *place = lane;
        }
        Lanes { by_class, count: last + 1 }
    }

    /// How many there are, at least one.
    #[inline]
    pub fn count(self) -> usize {
        usize::from(self.count)
    }

    /// The one that all others go before.
    #[inline]
    pub fn last(self) -> usize {
        self.count() - 1
    }

    /// The lane of a class.
    #[inline]
    pub fn of(self, class: Class) -> usize {
        self.by_class.get(class.index()).map_or(self.last(), |lane| usize::from(*lane))
    }

    /// The lane of the most urgent class, if that is preferred to any.
    #[inline]
    pub fn urgent(self) -> Option<usize> {
        let lane = self.of(Class::URGENT);
        (lane < self.last()).then_some(lane)
    }
}

/// Beyond this, in cycles, nobody's claim to time grows, nor what it has had too much: some ten bursts.
const CLAIM_MAX: i64 = 200_000;

/// Which lane may go before which, on one worker.
#[derive(Debug)]
pub struct Precedence {
    quota: u16,
    has_shares: bool,
    lanes: [Standing; Class::LIMIT],
}

/// How one lane has fared.
#[derive(Clone, Copy, Debug)]
struct Standing {
    order: WorkOrder,
    /// Percent of the time.
    share: u8,
    /// Bursts that went before it since its last one, or since it had nothing.
    waited: u16,
    /// Hundredths of cycles that it should have had and has not.
    claim: i64,
}

impl Precedence {
    /// Of a plan.
    pub fn new(classes: &ClassesPlan, lanes: Lanes) -> Precedence {
        let mut standings =
            [Standing { order: WorkOrder::Fifo, share: 0, waited: 0, claim: 0 }; Class::LIMIT];
        for (index, class) in classes.list.iter().enumerate() {
            if let Some(standing) = standings.get_mut(lanes.of(Class(index as u8))) {
                standing.order = class.order;
                standing.share += class.share;
            }
        }
        Precedence {
            quota: classes.urgent_quota,
            has_shares: classes.list.iter().any(|class| class.share > 0),
            lanes: standings,
        }
    }

    /// Somebody has a share: what time is spent on is to be told by [`spent`](Self::spent).
    #[inline]
    pub fn has_shares(&self) -> bool {
        self.has_shares
    }

    /// Whether a burst of this lane lets one of another go a stage further after each of its own.
    #[inline]
    pub fn alternates(&self, lane: usize) -> bool {
        self.lanes.get(lane).is_some_and(|standing| standing.order == WorkOrder::Batch)
    }

    /// Others have gone before this lane often enough, or for long enough: none may now.
    #[inline]
    pub fn is_due(&self, lane: usize) -> bool {
        self.lanes.get(lane).is_some_and(|standing| standing.waited >= self.quota || standing.claim > 0)
    }

    /// A burst of this lane is taken up before those behind it.
    #[inline]
    pub fn takes(&mut self, lane: usize) {
        for standing in self.lanes.iter_mut().skip(lane + 1) {
            standing.waited = standing.waited.saturating_add(1);
        }
    }

    /// A burst of this lane is done.
    #[inline]
    pub fn has_done(&mut self, lane: usize) {
        if let Some(standing) = self.lanes.get_mut(lane) {
            standing.waited = 0;
        }
    }

    /// This lane has no work: it does not wait, and claims nothing for the time.
    #[inline]
    pub fn has_nothing(&mut self, lane: usize) {
        if let Some(standing) = self.lanes.get_mut(lane) {
            standing.waited = 0;
            standing.claim = standing.claim.min(0);
        }
    }

    /// So many cycles were spent on this lane.
    #[inline]
    pub fn spent(&mut self, lane: usize, cycles: u64) {
        let cycles = i64::try_from(cycles).unwrap_or(CLAIM_MAX).min(CLAIM_MAX);
        for (index, standing) in self.lanes.iter_mut().enumerate() {
            let had = if index == lane { 100 } else { 0 };
            let claim = standing.claim + cycles * (i64::from(standing.share) - had);
            // Without a share there is never a claim.
            let most = if standing.share > 0 { 100 * CLAIM_MAX } else { 0 };
            standing.claim = claim.clamp(-100 * CLAIM_MAX, most);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::ClassPlan;

    fn classes(orders: &[(WorkOrder, u8)]) -> ClassesPlan {
        let class = |&(order, share): &(WorkOrder, u8)| ClassPlan { order, share, ..ClassPlan::new("x") };
        ClassesPlan { list: orders.iter().map(class).collect(), ..ClassesPlan::default() }
    }

    #[test]
    fn each_preferred_class_has_a_lane_and_the_rest_the_last() {
        use WorkOrder::{Batch, Fifo, Sync};
        let lanes = |orders: &[WorkOrder]| {
            let orders: Vec<_> = orders.iter().map(|order| (*order, 0)).collect();
            let lanes = Lanes::new(&classes(&orders));
            let each: Vec<usize> = (0..orders.len() as u8).map(|class| lanes.of(Class(class))).collect();
            (each, lanes.count(), lanes.urgent())
        };
        assert_eq!(lanes(&[Sync]), (vec![0], 1, None));
        assert_eq!(lanes(&[Sync, Sync]), (vec![0, 1], 2, Some(0)));
        assert_eq!(lanes(&[Fifo, Sync]), (vec![0, 0], 1, None));
        assert_eq!(lanes(&[Sync, Batch, Fifo, Sync]), (vec![0, 1, 2, 2], 3, Some(0)));
        assert_eq!(lanes(&[Fifo, Batch, Sync, Fifo]), (vec![2, 0, 1, 2], 3, None));
    }

    /// Lanes that always have work, each burst of so many cycles: what of the time each gets.
    fn time_of(plan: &ClassesPlan, cost: [u64; 3]) -> Vec<f64> {
        let lanes = Lanes::new(plan);
        let mut precedence = Precedence::new(plan, lanes);
        let mut time = vec![0u64; lanes.count()];
        for _ in 0..100_000 {
            let due = (1..lanes.count()).rev().find(|lane| precedence.is_due(*lane));
            let lane = due.unwrap_or(0);
            precedence.takes(lane);
            precedence.spent(lane, cost[lane]);
            precedence.has_done(lane);
            time[lane] += cost[lane];
        }
        let all: u64 = time.iter().sum();
        time.iter().map(|time| *time as f64 / all as f64).collect()
    }

    #[test]
    fn nobody_starves_and_shares_are_kept() {
        use WorkOrder::{Batch, Fifo, Sync};
        let close = |got: &[f64], wanted: &[f64]| {
            assert!(got.iter().zip(wanted).all(|(a, b)| (a - b).abs() < 0.02 * b), "{got:?} {wanted:?}");
        };
        let by_quota = ClassesPlan { urgent_quota: 4, ..classes(&[(Sync, 0), (Fifo, 0)]) };
        close(&time_of(&by_quota, [1000, 1000, 0]), &[0.8, 0.2]);
        let by_share = |orders: &[_]| ClassesPlan { urgent_quota: 1024, ..classes(orders) };
        close(&time_of(&by_share(&[(Sync, 0), (Fifo, 30)]), [1000, 7000, 0]), &[0.7, 0.3]);
        let three = by_share(&[(Sync, 0), (Batch, 25), (Fifo, 15)]);
        close(&time_of(&three, [500, 4000, 9000]), &[0.6, 0.25, 0.15]);
    }

    #[test]
    fn who_had_nothing_to_do_has_no_claim_on_the_time() {
        let plan = classes(&[(WorkOrder::Sync, 0), (WorkOrder::Fifo, 50)]);
        let mut precedence = Precedence::new(&plan, Lanes::new(&plan));
        precedence.takes(0);
        precedence.spent(0, 1000);
        assert!(precedence.is_due(1));
        precedence.has_nothing(1);
        assert!(!precedence.is_due(1));
        // And who had all of it while nobody else wanted any pays for some bursts at most.
        precedence.spent(1, 1 << 40);
        (0..3 * CLAIM_MAX / 1000).for_each(|_| precedence.spent(0, 1000));
        assert!(precedence.is_due(1));
    }
}
