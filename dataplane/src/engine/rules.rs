//! Rules that are replaced while frames flow: none is lost, and in each class they keep their order.
//!
//! Where the XDP program puts urgent frames into a ring of their own, what lies in the rings when the rules change was judged by
//! the old ones. A frame from the urgent ring is of the most urgent class, whatever the rules say now. One from the normal ring has the
//! class that the rules say; but were it the most urgent one by the new rules, later frames of its flow would come by the
//! urgent ring and overtake it within that class. So there is a time between, in which the tables say `settling` and no
//! frame from a normal ring is of that class:
//!
//! ```text
//! Tables ────────► Programs ────────► Grace ────────► Rings ────────► Last ────────► Settled
//! new rules,       the XDP            programs that   what was in     not settling   all workers
//! settling, are    programs are       ran then have   the rx rings    any more       have that
//! with all workers told               ended           then is taken
//! ```
//!
//! Without such rings, or where the programs are told nothing new, it begins at Last: each worker goes from one set of tables to the
//! other between two bursts. Whenever new rules come, it begins again with them. At the start it begins with Grace.
//!
//! Nothing here waits: each [`Engine::poll`] looks how far it is. Workers take their time, whether they pause or change their thread; one
//! without queues has nothing in its rings; one that joins gets the tables of the moment. What is new or not in the
//! programs does not depend on workers at all. A time between needs a second class; where there is one only, the programs are never told
//! anything.
//!
//! **If a program cannot be told** (the kernel has no memory for its maps), it is told that nothing is urgent, which needs none: the
//! rules hold all the same, only not from the driver on, and [`RulesStatus`] has the reason.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::early::EarlyPlan;
use super::workers::{Presence, WorkerHandle};
use super::{Engine, Order};
use crate::classes::CompiledRules;
use crate::plan::{ClassesPlan, Plan, RulePlan};
use crate::tables::Tables;
use crate::types::WorkerId;
use crate::xsk::{EarlyRules, Grace, XskError};

/// How often control looks while rules come into force.
const LOOK: Duration = Duration::from_millis(2);
/// If not even that nothing is urgent could be told to a program: until the next try.
const RETRY: Duration = Duration::from_millis(100);

/// Why rules were not taken. One line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RulesError {
    /// More than [`ClassesPlan::RULES_MAX`].
    TooMany(usize),
    /// A rule's class is not there.
    NoSuchClass(usize),
    /// Its network is not there.
    NoSuchNetwork(usize),
    /// Its endpoint is not there, or not on its network.
    NoSuchEndpoint(usize),
}

impl fmt::Display for RulesError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RulesError::TooMany(count) => {
                write!(f, "{count} rules: there can be {}", ClassesPlan::RULES_MAX)
            }
            RulesError::NoSuchClass(rule) => write!(f, "rules[{rule}]: the plan has no such class"),
            RulesError::NoSuchNetwork(rule) => write!(f, "rules[{rule}]: the plan has no such network"),
            RulesError::NoSuchEndpoint(rule) => {
                write!(f, "rules[{rule}]: the plan has no such endpoint on this network")
            }
        }
    }
}

impl std::error::Error for RulesError {}

/// How far the rules have come into force.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RulesStatus {
    /// How many there are.
    pub count: usize,
    /// Where they are on their way.
    pub step: RulesStep,
    /// Why none of them is followed from the driver on, if the XDP programs did not take them.
    pub not_early: Option<String>,
}

impl RulesStatus {
    /// They are in force everywhere.
    pub fn is_settled(&self) -> bool {
        self.step == RulesStep::Settled
    }
}

/// A step of new rules on their way, see the head of `engine/rules.rs`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum RulesStep {
    /// The workers get them, and are told that they settle.
    Tables,
    /// The XDP programs get what they can decide.
    Programs,
    /// Programs that began before that still run, or may.
    Grace,
    /// What lay in the rx rings after that is being taken from them.
    Rings,
    /// The workers are told that the rules have settled.
    Last,
    /// They are in force everywhere.
    #[default]
    Settled,
}

/// What the engine knows of that.
#[derive(Debug, Default)]
pub(super) struct Rules {
    step: RulesStep,
    /// What the XDP programs are to know.
    wanted: EarlyRules,
    /// What they were told last; `None` if one did not take even that nothing is urgent.
    told: Option<EarlyRules>,
    not_early: Option<String>,
    /// Programs that were told something else before may still run.
    grace: Option<Grace>,
    /// Numbers the orders to empty the rings,
    drain: u32,
    /// and who has not done the last one.
    draining: Vec<WorkerId>,
    /// After an attempt that failed.
    retry: Option<Instant>,
}

impl Rules {
    /// At the start: the programs were told so, at a time when they steered frames already.
    pub(super) fn told(early: EarlyRules) -> Rules {
        let mut rules = Rules::default();
        if early != EarlyRules::default() {
            (rules.step, rules.grace) = (RulesStep::Grace, Some(Grace::begin()));
        }
        Rules { wanted: early.clone(), told: Some(early), ..rules }
    }

    pub(super) fn is_settled(&self) -> bool {
        self.step == RulesStep::Settled
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let now = Instant::now();
        (!self.is_settled()).then(|| self.retry.filter(|retry| *retry > now).unwrap_or(now + LOOK))
    }

    /// A worker has taken what lay in its rings.
    pub(super) fn note_drained(&mut self, worker: WorkerId, number: u32) {
        if number == self.drain {
            self.draining.retain(|waited_for| *waited_for != worker);
        }
    }

    /// Programs that were told something else have ended, and what they redirected is in the rings.
    fn is_grace_over(&mut self) -> bool {
        self.grace.take_if(|grace| grace.is_over());
        self.grace.is_none()
    }
}

impl Engine {
    /// Replaces all rules, while frames flow: none is lost, and in each class they keep their order. They come into force with the next
    /// calls of [`poll`](Self::poll), which [`rules_status`](Self::rules_status) shows. Rules that are given meanwhile replace them.
    ///
    /// # Errors
    /// [`RulesError`]; nothing has changed then.
    pub fn set_rules(&mut self, rules: Vec<RulePlan>) -> Result<(), RulesError> {
        check(&rules, &self.plan)?;
        self.plan.classes.rules = rules;
        let mut tables = Tables::clone(&self.tables);
        self.write_rules(&mut tables);
        self.publish(tables);
        Ok(())
    }

    /// Writes the plan's rules, and the classes of its networks, into tables that are then published.
    pub(super) fn write_rules(&mut self, tables: &mut Tables) {
        if self.has_early() {
            self.rules.wanted = EarlyPlan::of(&self.plan).rules;
        }
        let is_at_rest = matches!(self.rules.step, RulesStep::Settled | RulesStep::Last);
        let is_told = !self.has_early() || self.rules.told.as_ref() == Some(&self.rules.wanted);
        let is_one_step = is_at_rest && is_told;
        if is_one_step {
            self.rules.not_early = None;
        }
        tables.classes = Arc::new(CompiledRules::compile(&self.plan));
        tables.settling = !is_one_step;
        self.rules.step = if is_one_step { RulesStep::Last } else { RulesStep::Tables };
    }

    /// Some uplink has rings for urgent frames.
    fn has_early(&self) -> bool {
        self.infos.iter().any(|info| info.early)
    }

    /// How many rules there are, and whether they are in force everywhere.
    pub fn rules_status(&self) -> RulesStatus {
        RulesStatus {
            count: self.plan.classes.rules.len(),
            step: self.rules.step,
            not_early: self.rules.not_early.clone(),
        }
    }

    /// Goes on with rules that come into force, as far as it can without waiting.
    pub(super) fn settle_rules(&mut self) {
        while let Some(next) = self.next_rules_step() {
            self.rules.step = next;
        }
    }

    fn next_rules_step(&mut self) -> Option<RulesStep> {
        match self.rules.step {
            RulesStep::Tables => self.has_everybody_obeyed().then_some(RulesStep::Programs),
            // The programs must not change their minds twice while one runs: it would find the place of its rules used again.
            RulesStep::Programs => {
                let is_time = self.rules.retry.is_none_or(|retry| retry <= Instant::now());
                (is_time && self.rules.is_grace_over() && self.tell_programs()).then_some(RulesStep::Grace)
            }
            RulesStep::Grace => self.rules.is_grace_over().then(|| {
                self.drain_rings();
                RulesStep::Rings
            }),
            RulesStep::Rings => self.are_rings_drained().then(|| {
                let mut tables = Tables::clone(&self.tables);
                tables.settling = false;
                self.publish(tables);
                RulesStep::Last
            }),
            RulesStep::Last => self.has_everybody_obeyed().then_some(RulesStep::Settled),
            RulesStep::Settled => None,
        }
    }

    pub(super) fn has_everybody_obeyed(&self) -> bool {
        self.workers.iter().all(|worker| worker.presence == Presence::Absent || worker.has_obeyed())
    }

    /// Tells the XDP programs what they can decide; if one does not take it, all that nothing is urgent. False if one did not take that
    /// either.
    fn tell_programs(&mut self) -> bool {
        let mut tell = |rules: &EarlyRules| -> Result<(), XskError> {
            self.uplinks.iter_mut().try_for_each(|uplink| uplink.set_early(rules))
        };
        let mut rules = self.rules.wanted.clone();
        let refused = tell(&rules).err();
        let mut is_told = refused.is_none();
        if !is_told {
            rules = EarlyRules::default();
            is_told = tell(&rules).is_ok();
        }
        self.rules.told = is_told.then_some(rules);
        self.rules.not_early = refused.map(|error| error.to_string());
        self.rules.retry = (!is_told).then(|| Instant::now() + RETRY);
        self.rules.grace = Some(Grace::begin());
        is_told
    }

    /// Asks those who have rx rings to say when all that lies there now is taken.
    fn drain_rings(&mut self) {
        self.rules.drain = self.rules.drain.wrapping_add(1);
        self.rules.draining.clear();
        let number = self.rules.drain;
        let has_rings = |(_, worker): &(u8, &mut WorkerHandle)| worker.sends;
        for (place, worker) in (0u8..).zip(&mut self.workers).filter(has_rings) {
            worker.send(Order::Drain { number });
            self.rules.draining.push(WorkerId(place));
        }
    }

    /// Who has rings stays, whatever thread it is on, so all of them answer.
    fn are_rings_drained(&self) -> bool {
        self.rules.draining.is_empty()
    }
}

/// What would make the tables point to nowhere.
fn check(rules: &[RulePlan], plan: &Plan) -> Result<(), RulesError> {
    if rules.len() > ClassesPlan::RULES_MAX {
        return Err(RulesError::TooMany(rules.len()));
    }
    for (place, rule) in rules.iter().enumerate() {
        if rule.class.index() >= plan.classes.list.len() {
            return Err(RulesError::NoSuchClass(place));
        }
        if rule.network.is_some_and(|network| plan.network(network).is_none()) {
            return Err(RulesError::NoSuchNetwork(place));
        }
        let is_there =
            |endpoint| plan.endpoint(endpoint).is_some_and(|its| Some(its.network) == rule.network);
        if rule.endpoint.is_some_and(|endpoint| !is_there(endpoint)) {
            return Err(RulesError::NoSuchEndpoint(place));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::engine::NextHop;
    use crate::pinned::usable_cores;
    use crate::plan::{NetworkPlan, PlacementMode, UplinkPlan, WorkerPlan, XdpMode};
    use crate::replay::{ReplayFrame, STAMP};
    use crate::types::{Class, CoreId, EndpointId, MacAddr, NetworkId, RemoteId, SourceId, UplinkId, Vni};

    const PATIENCE: Duration = Duration::from_secs(60);
    const URGENT: RulePlan = RulePlan::any(Class::URGENT);
    const NORMAL: RulePlan = RulePlan::any(Class::NORMAL);

    fn core(n: usize) -> CoreId {
        let cores = usable_cores();
        CoreId(cores[n % cores.len()])
    }

    fn plan(workers: usize) -> Plan {
        Plan {
            workers: (0..workers).map(|n| WorkerPlan::on(core(n))).collect(),
            placement: PlacementMode::Static,
            balance_threshold: 85,
            uplinks: vec![UplinkPlan {
                mode: XdpMode::Copy,
                ring_size: 64,
                ..UplinkPlan::new("unused", [192, 0, 2, 1].into())
            }],
            networks: vec![NetworkPlan {
                remotes: vec![[192, 0, 2, 2].into()],
                fdb_limit: 16,
                ..NetworkPlan::new("blue", Vni::new(42).unwrap())
            }]
            .into(),
            endpoints: Default::default(),
            capacity: Default::default(),
            pools: Default::default(),
            classes: Default::default(),
            control_socket: PathBuf::new(),
            ..Plan::default()
        }
    }

    /// Workers whose frames come from memory; as if the interface had second rings, or not.
    fn engine(workers: usize, early: bool) -> Engine {
        let frame = ReplayFrame { flow: 0, bytes: vec![0; 30 + STAMP] };
        let mut engine = Engine::replay(&plan(workers), vec![vec![frame]; workers]).unwrap();
        engine.infos[0].early = early;
        engine.rules.told = early.then(EarlyRules::default);
        engine
    }

    fn until(engine: &mut Engine, mut is_so: impl FnMut(&mut Engine) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(engine) {
            assert!(Instant::now() < deadline, "{:?} {:?}", engine.rules, engine.workers);
            std::thread::yield_now();
        }
    }

    fn settle(engine: &mut Engine) {
        until(engine, |engine| engine.poll().is_empty() && engine.rules_status().is_settled());
        assert!(!engine.tables.settling && engine.rules.deadline().is_none());
    }

    fn class(engine: &Engine) -> Option<Class> {
        engine.tables.classes.settled(NetworkId(0))
    }

    /// Everybody has the last tables, and nobody any other.
    fn assert_all_have_the_last(engine: &mut Engine) {
        until(engine, |engine| {
            engine.poll();
            let present = engine.present().count();
            Arc::strong_count(&engine.tables) == present + 1
        });
    }

    /// One step after the other, and whether the tables say that they settle.
    fn steps(engine: &mut Engine) -> Vec<(RulesStep, bool)> {
        let mut steps = vec![(engine.rules.step, engine.tables.settling)];
        until(engine, |engine| {
            for worker in &mut engine.workers {
                worker.flush();
                while let Some(returned) = worker.mailbox.take_returned() {
                    if let crate::mailbox::Returned::Drained { worker, number } = returned {
                        engine.rules.note_drained(worker, number);
                    }
                }
            }
            if let Some(next) = engine.next_rules_step() {
                engine.rules.step = next;
                steps.push((next, engine.tables.settling));
            }
            engine.rules_status().is_settled()
        });
        steps
    }

    #[test]
    fn without_rings_for_urgent_frames_one_publication_is_enough() {
        let mut engine = engine(2, false);
        engine.set_rules(vec![URGENT]).unwrap();
        assert_eq!(class(&engine), Some(Class::URGENT));
        assert_eq!(steps(&mut engine), [(RulesStep::Last, false), (RulesStep::Settled, false)]);
        assert_all_have_the_last(&mut engine);
        assert_eq!(
            engine.rules_status(),
            RulesStatus { count: 1, step: RulesStep::Settled, not_early: None }
        );
    }

    #[test]
    fn with_them_the_rules_come_into_force_step_by_step() {
        use RulesStep::{Grace, Last, Programs, Rings, Settled, Tables};
        let mut engine = engine(2, true);
        let all =
            [(Tables, true), (Programs, true), (Grace, true), (Rings, true), (Last, false), (Settled, false)];
        engine.set_rules(vec![URGENT]).unwrap();
        assert_eq!(class(&engine), Some(Class::URGENT));
        assert_eq!(steps(&mut engine), all);
        // Nothing new for the programs: the packets that come early are the same ones.
        let dscp = Some([8].into_iter().collect());
        engine.set_rules(vec![URGENT, RulePlan { dscp, ..NORMAL }]).unwrap();
        assert_eq!(steps(&mut engine), all[4..]);
        engine.set_rules(vec![]).unwrap();
        assert_eq!(steps(&mut engine), all);
        assert_eq!((class(&engine), engine.plan().classes.rules.len()), (Some(Class::NORMAL), 0));
        assert_all_have_the_last(&mut engine);
    }

    #[test]
    fn at_the_start_what_came_before_the_programs_knew_is_waited_for() {
        assert!(Rules::told(EarlyRules::default()).is_settled());
        let early = EarlyPlan::of(&Plan {
            classes: ClassesPlan { rules: vec![URGENT], ..Default::default() },
            ..plan(1)
        });
        assert_eq!(Rules::told(early.rules).step, RulesStep::Grace);
    }

    #[test]
    fn rules_that_come_meanwhile_replace_those_before() {
        use RulesStep::{Grace, Last, Programs, Rings, Tables};
        let mut engine = engine(2, true);
        for at in [Tables, Programs, Grace, Rings, Last] {
            let (before, after) = match class(&engine) {
                Some(Class::URGENT) => (vec![], vec![URGENT]),
                _ => (vec![URGENT], vec![]),
            };
            engine.set_rules(before).unwrap();
            until(&mut engine, |engine| {
                for worker in &mut engine.workers {
                    worker.flush();
                }
                if engine.rules.step != at
                    && let Some(next) = engine.next_rules_step()
                {
                    engine.rules.step = next;
                }
                if engine.rules.step == Rings && at == Last {
                    engine.rules.draining.clear(); // as if they had answered
                }
                engine.rules.step == at
            });
            let (wanted, count) = (after.clone(), after.len());
            engine.set_rules(after).unwrap();
            assert!(engine.tables.settling, "{at:?}");
            settle(&mut engine);
            assert_eq!((&engine.plan.classes.rules, engine.rules_status().count), (&wanted, count));
            assert_eq!(engine.rules.told.as_ref(), Some(&EarlyPlan::of(&engine.plan).rules), "{at:?}");
            assert_all_have_the_last(&mut engine);
        }
    }

    #[test]
    fn an_answer_to_an_older_order_is_none() {
        let mut engine = engine(2, true);
        engine.drain_rings();
        let old = engine.rules.drain;
        engine.drain_rings();
        assert_eq!(engine.rules.draining, [WorkerId(0), WorkerId(1)]);
        engine.rules.note_drained(WorkerId(0), old);
        assert_eq!(engine.rules.draining.len(), 2);
        engine.rules.note_drained(WorkerId(0), old + 1);
        assert_eq!(engine.rules.draining, [WorkerId(1)]);
    }

    #[test]
    fn rules_and_next_hops_leave_each_other_alone() {
        let mut engine = engine(1, true);
        let hop = NextHop { uplink: UplinkId(0), destination: MacAddr([2; 6]), source: MacAddr([4; 6]) };
        let path = hop.path(engine.plan.uplinks[0].local(), 1500);
        let is_known = |engine: &Engine| !engine.paths[0].is_empty();
        let set = |engine: &mut Engine, paths| engine.set_paths([(RemoteId(0), SourceId(0), paths)]);
        set(&mut engine, vec![path]);
        engine.set_rules(vec![URGENT]).unwrap();
        assert!(is_known(&engine) && engine.tables.settling);
        set(&mut engine, vec![]);
        assert!(!is_known(&engine) && engine.tables.settling);
        assert_eq!(class(&engine), Some(Class::URGENT));
        set(&mut engine, vec![path]);
        settle(&mut engine);
        assert!(is_known(&engine));
        assert_eq!(class(&engine), Some(Class::URGENT));
    }

    #[test]
    fn workers_come_and_go_meanwhile() {
        let mut engine = engine(2, true);
        for round in 0..20 {
            let rules = if round % 2 == 0 { vec![URGENT] } else { vec![] };
            let (wanted, place) = (rules.len(), round / 2 % 3);
            engine.set_rules(rules).unwrap();
            for _ in 0..place {
                engine.poll();
            }
            // One without queues comes; the core of one with queues goes, so that it moves.
            match round % 4 {
                0 => engine.add_worker(&WorkerPlan::on(core(0))).unwrap(),
                1 => engine.remove_worker(core(0)).unwrap(),
                2 => engine.remove_worker(core(1)).unwrap(),
                _ => engine.add_worker(&WorkerPlan::on(core(1))).unwrap(),
            }
            settle(&mut engine);
            until(&mut engine, |engine| engine.poll().is_empty() && engine.deadline().is_none());
            assert_eq!(engine.rules_status().count, wanted);
            assert_all_have_the_last(&mut engine);
        }
        assert!(engine.stop().totals.conserved);
    }

    #[test]
    fn what_the_plan_does_not_have_is_refused() {
        let mut engine = engine(1, false);
        engine.set_rules(vec![URGENT]).unwrap();
        let network = |id| Some(NetworkId(id));
        for (rule, error) in [
            (RulePlan::any(Class(2)), RulesError::NoSuchClass(1)),
            (RulePlan { network: network(1), ..URGENT }, RulesError::NoSuchNetwork(1)),
            (RulePlan { endpoint: Some(EndpointId(0)), ..URGENT }, RulesError::NoSuchEndpoint(1)),
        ] {
            assert_eq!(engine.set_rules(vec![NORMAL, rule]), Err(error));
            assert!(error.to_string().starts_with("rules[1]: "), "{error}");
        }
        let many = vec![NORMAL; ClassesPlan::RULES_MAX + 1];
        assert_eq!(engine.set_rules(many), Err(RulesError::TooMany(1025)));
        assert_eq!((engine.plan().classes.rules.len(), class(&engine)), (1, Some(Class::URGENT)));
    }
}
