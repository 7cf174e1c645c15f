//! What a placement costs each worker, computed from what was measured, and the search for a better one. Pure: no clock, no counters,
//! no threads. `balance` decides when to ask.
//!
//! A worker's load is what was measured; a change adds and takes away what it moves: for each frame of a flow the cycles of the steps,
//! and a hand-over wherever two steps in a row are on two workers. A hand-over costs both: the one that gives the frame a third of
//! [`Load::hop_cycles`], the one that takes it, and misses its cache, two thirds; and a frame that ends away from its own worker
//! must be sent home.

use crate::types::{EndpointId, Route, Stage, WorkerId};

/// Of the cycles of a hand-over, what the worker pays that gives the frame away.
const GIVING: f64 = 1.0 / 3.0;
/// What sending a frame home costs, compared with handing it over: a handle goes, and nobody looks at the frame. Half at each end.
const HOMING: f64 = 1.0 / 3.0;
/// Cycles a frame pays on its own worker once not all flows stay there: its flow is hashed and its bucket looked up.
const ENTRY_CYCLES: f64 = 30.0;
/// Flows that are tried in each step of the search: those that cost the worker most.
const FLOWS_TRIED: usize = 8;
/// Tenants that are tried: those that move most there.
const TENANTS_TRIED: usize = 2;
/// Workers that flows are tried on: those with the lowest load.
const TARGETS_TRIED: usize = 2;
/// Steps that one search makes, at most.
const STEPS_MAX: usize = 32;

/// What was measured, all rates per second.
#[derive(Clone, Debug)]
pub struct Load {
    /// By worker.
    pub workers: Vec<WorkerLoad>,
    /// By step: cycles a frame.
    pub stage_cycles: [f64; Stage::COUNT],
    /// Cycles that a hand-over costs, both ends together.
    pub hop_cycles: f64,
    /// Flow buckets, each with the worker where it enters.
    pub flows: Vec<Flow>,
    /// Tenants that are attached.
    pub tenants: Vec<TenantLoad>,
    /// Cycles a second.
    pub hertz: f64,
}

/// One worker.
#[derive(Clone, Copy, Debug)]
pub struct WorkerLoad {
    /// Share of its cycles that it needs for its frames.
    pub busy: f64,
    /// The core that it runs on: those with the same number share one.
    pub core: usize,
    /// Steps and tenants may be given to it.
    pub is_there: bool,
    /// It may serve tenants: it can send.
    pub serves: bool,
}

/// The flows of one bucket that enter at one worker.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Flow {
    /// Where its frames enter.
    pub entry: WorkerId,
    /// Which.
    pub bucket: u8,
    /// The way it has.
    pub route: Route,
    /// Frames from the underlay.
    pub inward: f64,
    /// Frames from tenants.
    pub outward: f64,
}

impl Flow {
    /// Some step of it is not where it enters.
    pub fn leaves(&self) -> bool {
        self.route != Route::all(self.entry)
    }
}

/// One tenant.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct TenantLoad {
    /// Which.
    pub endpoint: EndpointId,
    /// Who serves it.
    pub home: WorkerId,
    /// Packets to it.
    pub to: f64,
    /// Packets from it.
    pub from: f64,
}

/// One thing to be changed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// The flows of this bucket that enter there take another way.
    Route {
        /// Where they enter.
        entry: WorkerId,
        /// Which.
        bucket: u8,
        /// The way.
        route: Route,
    },
    /// Another worker serves this tenant.
    Home {
        /// Which.
        endpoint: EndpointId,
        /// Who.
        worker: WorkerId,
    },
}

/// What is to be reached.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum Goal {
    /// The highest load as low as possible: somebody has too much to do.
    Spread,
    /// The least work in all, as long as no worker's load is above this share: there is time to spare.
    Gather {
        /// A share of the cycles.
        below: f64,
    },
}

/// What a search found.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Proposal {
    /// In their order; empty: it is as good as it gets.
    pub changes: Vec<Change>,
    /// The highest load before and after, as a share of a core's cycles; above 1: more than it can do.
    pub highest: [f64; 2],
    /// Cycles a second of all workers together that come in addition (negative: that are saved).
    pub added: f64,
    /// What all workers together spend before, in cycles a second.
    pub total_before: f64,
    /// Some flow is not where it enters, after the changes.
    pub leaves: bool,
}

/// The search: one change after the other, each the best of those tried, as long as the goal comes nearer.
pub fn propose(load: &Load, goal: Goal, may_move_tenants: bool) -> Proposal {
    let mut model = Model::new(load);
    let before = model.score(&model.state, goal);
    let mut changes = if goal == Goal::Spread { Vec::new() } else { model.bring_idle_home() };
    let mut tenants_may = may_move_tenants;
    for _ in 0..STEPS_MAX {
        let Some(best) = model.best_step(goal, tenants_may) else { break };
        // One tenant at a time: all traffic pauses for it.
        tenants_may &= best.home.is_none();
        model.apply(&best);
        changes.extend(best.changes());
    }
    let after = model.score(&model.state, goal);
    Proposal {
        changes,
        highest: [before.highest, after.highest].map(|cycles| cycles / load.hertz),
        added: after.total - before.total,
        total_before: before.total,
        leaves: model.flows.iter().any(Flow::leaves),
    }
}

/// New ways of flows, a tenant's new home, or both at once.
#[derive(Clone, Debug, Default)]
struct Step {
    /// The flows' places in the list.
    flows: Vec<(usize, Flow)>,
    /// The tenant's place in the list.
    home: Option<(usize, TenantLoad)>,
}

impl Step {
    fn changes(&self) -> Vec<Change> {
        // The tenant first: it has arrived when the flows are sent after it.
        let home =
            self.home.map(|(_, TenantLoad { endpoint, home, .. })| Change::Home { endpoint, worker: home });
        let routes = self.flows.iter().map(|(_, flow)| Change::Route {
            entry: flow.entry,
            bucket: flow.bucket,
            route: flow.route,
        });
        home.into_iter().chain(routes).collect()
    }
}

#[derive(Clone, Copy, Debug)]
struct Score {
    /// What is compared: lower is better.
    value: f64,
    highest: f64,
    total: f64,
}

/// The workers' loads and what they follow from: all that a step changes, so that trying one costs no look at the other flows.
#[derive(Clone, Debug)]
struct State {
    /// Cycles a second, by worker: measured, and what the changes so far add.
    cycles: Vec<f64>,
    /// By worker: frames from the underlay that enter there, and those that are looked up there.
    inward: Vec<f64>,
    looked_up: Vec<f64>,
    /// By worker: flows that enter there and leave it.
    leaving: Vec<usize>,
    /// By worker: tenants, and packets given to them.
    tenants: Vec<usize>,
    delivered: Vec<f64>,
}

#[derive(Clone, Debug)]
struct Model<'l> {
    load: &'l Load,
    state: State,
    flows: Vec<Flow>,
    tenants: Vec<TenantLoad>,
}

impl State {
    fn new(load: &Load) -> State {
        let workers = load.workers.len();
        let mut state = State {
            cycles: load.workers.iter().map(|worker| worker.busy * load.hertz).collect(),
            inward: vec![0.0; workers],
            looked_up: vec![0.0; workers],
            leaving: vec![0; workers],
            tenants: vec![0; workers],
            delivered: vec![0.0; workers],
        };
        load.flows.iter().for_each(|flow| state.note_flow(flow, 1));
        load.tenants.iter().for_each(|tenant| state.note_tenant(tenant, 1));
        state
    }

    fn note_flow(&mut self, flow: &Flow, sign: i8) {
        add(&mut self.inward, flow.entry, f64::from(sign) * flow.inward);
        add(&mut self.looked_up, flow.route.lookup(), f64::from(sign) * flow.inward);
        if let Some(leaving) = self.leaving.get_mut(flow.entry.index()).filter(|_| flow.leaves()) {
            *leaving = leaving.wrapping_add_signed(isize::from(sign));
        }
    }

    fn note_tenant(&mut self, tenant: &TenantLoad, sign: i8) {
        add(&mut self.delivered, tenant.home, f64::from(sign) * tenant.to);
        if let Some(tenants) = self.tenants.get_mut(tenant.home.index()) {
            *tenants = tenants.wrapping_add_signed(isize::from(sign));
        }
    }

    /// What enters there is looked at frame by frame: not all of it stays there.
    fn looks(&self, entry: usize) -> bool {
        let elsewhere =
            self.tenants.iter().enumerate().any(|(worker, tenants)| worker != entry && *tenants > 0);
        elsewhere || self.leaving.get(entry).is_some_and(|flows| *flows > 0)
    }

    /// Adds what that costs all workers, or takes it away.
    fn charge_looks(&mut self, sign: f64) {
        for worker in 0..self.cycles.len() {
            if self.looks(worker) {
                let frames = self.inward.get(worker).copied().unwrap_or(0.0);
                add(&mut self.cycles, WorkerId(worker as u8), sign * ENTRY_CYCLES * frames);
            }
        }
    }

    /// The same for a hand-over of so many frames.
    fn charge_hop(&mut self, from: WorkerId, to: WorkerId, cycles: f64) {
        if from != to {
            add(&mut self.cycles, from, cycles * GIVING);
            add(&mut self.cycles, to, cycles * (1.0 - GIVING));
        }
    }

    /// The same for the way of so many frames from where they are looked up to whoever delivers them, and home from there. Which tenant
    /// a flow goes to is not known: each worker is taken to get the share of it that it has of all.
    fn charge_delivery(&mut self, entry: WorkerId, lookup: WorkerId, cycles: f64) {
        let all: f64 = self.delivered.iter().sum();
        for worker in 0..self.delivered.len() {
            let there = WorkerId(worker as u8);
            let share = self.delivered.get(worker).map_or(0.0, |delivered| delivered / all.max(1.0));
            self.charge_hop(lookup, there, cycles * share);
            if there != entry {
                add(&mut self.cycles, there, cycles * share * HOMING / 2.0);
                add(&mut self.cycles, entry, cycles * share * HOMING / 2.0);
            }
        }
    }
}

impl<'l> Model<'l> {
    fn new(load: &'l Load) -> Model<'l> {
        Model { load, state: State::new(load), flows: load.flows.clone(), tenants: load.tenants.clone() }
    }

    fn stage(&self, stage: Stage) -> f64 {
        self.load.stage_cycles.get(stage as usize).copied().unwrap_or(0.0)
    }

    /// Adds what a flow costs the workers (`sign` 1), or takes it away (−1), but for what is bound to its entry and to the tenants.
    fn charge(&self, state: &mut State, flow: &Flow, sign: f64) {
        let Flow { entry, route, .. } = *flow;
        let (inward, outward) = (sign * flow.inward, sign * flow.outward);
        let hop = self.load.hop_cycles;
        add(&mut state.cycles, route.decap(), inward * self.stage(Stage::Decap));
        add(&mut state.cycles, route.lookup(), (inward + outward) * self.stage(Stage::Lookup));
        add(&mut state.cycles, route.encap(), outward * self.stage(Stage::Encap));
        state.charge_hop(entry, route.decap(), inward * hop);
        state.charge_hop(route.decap(), route.lookup(), inward * hop);
        state.charge_hop(entry, route.lookup(), outward * hop);
        state.charge_hop(route.lookup(), route.encap(), outward * hop);
        state.charge_hop(route.encap(), entry, outward * hop);
    }

    /// For all flows together: where they are looked up, and where they came in, each for itself.
    fn charge_all_deliveries(&self, state: &mut State, sign: f64) {
        let hop = sign * self.load.hop_cycles;
        for worker in (0..state.cycles.len()).map(|worker| WorkerId(worker as u8)) {
            let of = |rates: &[f64]| rates.get(worker.index()).copied().unwrap_or(0.0);
            let (inward, looked_up) = (of(&state.inward), of(&state.looked_up));
            let all: f64 = state.delivered.iter().sum();
            for there in 0..state.delivered.len() {
                let share = state.delivered.get(there).map_or(0.0, |delivered| delivered / all.max(1.0));
                let there = WorkerId(there as u8);
                state.charge_hop(worker, there, hop * share * looked_up);
                if there != worker {
                    add(&mut state.cycles, there, hop * share * inward * HOMING / 2.0);
                    add(&mut state.cycles, worker, hop * share * inward * HOMING / 2.0);
                }
            }
        }
    }

    /// The loads after a step: what changes is taken away and added as it is then.
    fn after(&self, step: &Step) -> State {
        let mut state = self.state.clone();
        state.charge_looks(-1.0);
        let tenant = step.home.and_then(|(place, moved)| Some((*self.tenants.get(place)?, moved)));
        // With a tenant's place the deliveries of all flows change.
        if let Some((old, moved)) = tenant {
            self.charge_all_deliveries(&mut state, -1.0);
            self.move_tenant(&mut state, &old, &moved);
        }
        for (place, moved) in &step.flows {
            let Some(old) = self.flows.get(*place) else { continue };
            self.charge(&mut state, old, -1.0);
            self.charge(&mut state, moved, 1.0);
            if tenant.is_none() {
                let hop = self.load.hop_cycles;
                state.charge_delivery(old.entry, old.route.lookup(), -hop * old.inward);
                state.charge_delivery(moved.entry, moved.route.lookup(), hop * moved.inward);
            }
            state.note_flow(old, -1);
            state.note_flow(moved, 1);
        }
        if tenant.is_some() {
            self.charge_all_deliveries(&mut state, 1.0);
        }
        state.charge_looks(1.0);
        state
    }

    /// With the tenant go the copies to it, and everything that it sends.
    fn move_tenant(&self, state: &mut State, old: &TenantLoad, moved: &TenantLoad) {
        let sent = self.stage(Stage::Lookup) + self.stage(Stage::Deliver) + self.stage(Stage::Encap);
        let spent = old.to * self.stage(Stage::Deliver) + old.from * sent;
        add(&mut state.cycles, old.home, -spent);
        add(&mut state.cycles, moved.home, spent);
        state.note_tenant(old, -1);
        state.note_tenant(moved, 1);
    }

    fn apply(&mut self, step: &Step) {
        self.state = self.after(step);
        if let Some((place, moved)) = step.home
            && let Some(tenant) = self.tenants.get_mut(place)
        {
            *tenant = moved;
        }
        for (place, moved) in &step.flows {
            if let Some(flow) = self.flows.get_mut(*place) {
                *flow = *moved;
            }
        }
    }

    /// Flows that have ended are no load, and would be away for ever.
    fn bring_idle_home(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        for flow in self.flows.iter_mut().filter(|flow| flow.leaves() && flow.inward + flow.outward == 0.0) {
            self.state.note_flow(flow, -1);
            flow.route = Route::all(flow.entry);
            self.state.note_flow(flow, 1);
            changes.push(Change::Route { entry: flow.entry, bucket: flow.bucket, route: flow.route });
        }
        changes
    }

    fn core(&self, worker: WorkerId) -> Option<usize> {
        self.load.workers.get(worker.index()).map(|worker| worker.core)
    }

    /// Of the core that the worker runs on.
    fn core_cycles(&self, state: &State, worker: WorkerId) -> f64 {
        let here = self.core(worker);
        let on = |place: usize| self.core(WorkerId(place as u8));
        state
            .cycles
            .iter()
            .enumerate()
            .filter(|(place, _)| on(*place) == here)
            .map(|(_, cycles)| cycles)
            .sum()
    }

    fn score(&self, state: &State, goal: Goal) -> Score {
        let cores = (0..state.cycles.len()).map(|worker| self.core_cycles(state, WorkerId(worker as u8)));
        let highest = cores.fold(0.0, f64::max);
        let total = state.cycles.iter().sum();
        let value = match goal {
            // A little for the total, so that of two ways that relieve the busiest alike the cheaper one wins.
            Goal::Spread => highest + 0.01 * total,
            Goal::Gather { below } if highest > below * self.load.hertz => f64::INFINITY,
            Goal::Gather { .. } => total,
        };
        Score { value, highest, total }
    }

    /// The best of all steps that are tried; none if nothing makes it better by something that matters.
    fn best_step(&self, goal: Goal, may_move_tenants: bool) -> Option<Step> {
        let worth = 0.002 * self.load.hertz;
        let now = self.score(&self.state, goal).value;
        let steps = self.steps(goal, may_move_tenants).into_iter();
        let scored = steps.map(|step| (self.score(&self.after(&step), goal).value, step));
        let (value, step) = scored.min_by(|a, b| a.0.total_cmp(&b.0))?;
        (value < now - worth).then_some(step)
    }

    /// What could be done for the busiest worker with the flows and tenants that cost it most and the workers that have least to do; or
    /// to gather those that are away.
    fn steps(&self, goal: Goal, may_move_tenants: bool) -> Vec<Step> {
        let workers = || {
            let there = self.load.workers.iter().enumerate().filter(|(_, worker)| worker.is_there);
            there.map(|(place, _)| WorkerId(place as u8))
        };
        let cycles = |worker: &WorkerId| self.core_cycles(&self.state, *worker);
        let Some(busiest) = workers().max_by(|a, b| cycles(a).total_cmp(&cycles(b))) else {
            return Vec::new();
        };
        let mut others: Vec<WorkerId> = workers().filter(|worker| *worker != busiest).collect();
        others.sort_by(|a, b| cycles(a).total_cmp(&cycles(b)));
        others.truncate(TARGETS_TRIED);
        others.push(busiest);

        let flows = self.flows_to_try(goal, busiest);
        let homes = if may_move_tenants { self.homes(goal, busiest, &others) } else { Vec::new() };
        let mut steps: Vec<Step> =
            homes.iter().map(|home| Step { flows: Vec::new(), home: Some(*home) }).collect();
        for (nth, (place, flow)) in flows.iter().take(FLOWS_TRIED).enumerate() {
            let moved = |route| vec![(*place, Flow { route, ..*flow })];
            let ways = self.ways(flow, &others);
            steps.extend(ways.into_iter().map(|route| Step { flows: moved(route), home: None }));
            // A flow and its tenant may be worth nothing each and much together.
            if nth == 0 {
                for home in &homes {
                    let there = home.1.home;
                    steps.extend([flow.entry, flow.route.decap(), there].map(|decap| {
                        let route = Route::new(decap, there, flow.route.encap());
                        Step { flows: moved(route), home: Some(*home) }
                    }));
                }
            }
        }
        steps.extend(self.groups(goal, &flows, &others));
        steps
    }

    /// Many flows at once, whole: each may be too small to be worth the look at all frames that the first one costs.
    fn groups(&self, goal: Goal, flows: &[(usize, Flow)], others: &[WorkerId]) -> Vec<Step> {
        let mut groups = Vec::new();
        for &there in others {
            let encap = |flow: &Flow| if self.serves(there) { there } else { flow.route.encap() };
            let moved = |(place, flow): &(usize, Flow)| {
                let route = match goal {
                    Goal::Spread => Route::new(there, there, encap(flow)),
                    Goal::Gather { .. } => Route::all(flow.entry),
                };
                (*place, Flow { route, ..*flow })
            };
            // Some or all, with the heaviest or without it, which may be better off where it is.
            for size in [4, 16, 64, 256] {
                for from in [0, 1] {
                    let flows = flows.iter().skip(from).take(size).map(moved).collect();
                    groups.push(Step { flows, home: None });
                }
            }
        }
        groups
    }

    /// With their places in the list: the flows that cost the busiest worker most; to gather, the heaviest that are away.
    fn flows_to_try(&self, goal: Goal, busiest: WorkerId) -> Vec<(usize, Flow)> {
        let weight = |flow: &Flow| match goal {
            Goal::Spread => self.cycles_at(flow, busiest),
            Goal::Gather { .. } if flow.leaves() => flow.inward + flow.outward + 1.0,
            Goal::Gather { .. } => 0.0,
        };
        let mut weighed: Vec<(f64, usize, Flow)> =
            self.flows.iter().enumerate().map(|(place, flow)| (weight(flow), place, *flow)).collect();
        weighed.retain(|(weight, ..)| *weight > 0.0);
        weighed.sort_by(|a, b| b.0.total_cmp(&a.0));
        weighed.into_iter().map(|(_, place, flow)| (place, flow)).collect()
    }

    /// What of a flow could be taken off the core of this worker.
    fn cycles_at(&self, flow: &Flow, worker: WorkerId) -> f64 {
        let here = self.core(worker);
        let at = |there: WorkerId, cycles: f64| if self.core(there) == here { cycles } else { 0.0 };
        at(flow.route.decap(), flow.inward * self.stage(Stage::Decap))
            + at(flow.route.lookup(), (flow.inward + flow.outward) * self.stage(Stage::Lookup))
            + at(flow.route.encap(), flow.outward * self.stage(Stage::Encap))
    }

    /// The flow's ways with each of its steps where it is, where it enters, or on one of these; Encap only where it can leave.
    fn ways(&self, flow: &Flow, others: &[WorkerId]) -> Vec<Route> {
        let mut ways = Vec::new();
        for &other in others {
            let choices = |now: WorkerId| [now, flow.entry, other];
            for decap in choices(flow.route.decap()) {
                for lookup in choices(flow.route.lookup()) {
                    for encap in choices(flow.route.encap()).into_iter().filter(|worker| self.serves(*worker))
                    {
                        let route = Route::new(decap, lookup, encap);
                        if route != flow.route && !ways.contains(&route) {
                            ways.push(route);
                        }
                    }
                }
            }
        }
        ways
    }

    fn serves(&self, worker: WorkerId) -> bool {
        self.load.workers.get(worker.index()).is_some_and(|load| load.serves)
    }

    /// The tenants that move most packets on the core of the busiest worker, to gather on any, each with another one of these workers.
    fn homes(&self, goal: Goal, busiest: WorkerId, others: &[WorkerId]) -> Vec<(usize, TenantLoad)> {
        let tenants = self.tenants.iter().copied().enumerate();
        let mut tenants: Vec<(usize, TenantLoad)> = tenants
            .filter(|(_, tenant)| goal != Goal::Spread || self.core(tenant.home) == self.core(busiest))
            .collect();
        tenants.sort_by(|a, b| (b.1.to + b.1.from).total_cmp(&(a.1.to + a.1.from)));
        let moved = |(place, tenant): (usize, TenantLoad)| {
            let homes = others.iter().copied().filter(move |home| *home != tenant.home && self.serves(*home));
            homes.map(move |home| (place, TenantLoad { home, ..tenant }))
        };
        tenants.into_iter().take(TENANTS_TRIED).flat_map(moved).collect()
    }
}

fn add(sums: &mut [f64], worker: WorkerId, more: f64) {
    if let Some(load) = sums.get_mut(worker.index()) {
        *load += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerId = WorkerId(0);
    const B: WorkerId = WorkerId(1);

    fn worker(core: usize, busy: f64, serves: bool) -> WorkerLoad {
        WorkerLoad { busy, core, is_there: true, serves }
    }

    /// One flow that fills worker A of two, `work` cycles in each of four steps.
    fn one_flow(work: f64, hop: f64, serves: bool) -> Load {
        let base = 100.0;
        let rate = 1e9 / (4.0 * work + base);
        Load {
            workers: vec![worker(0, 1.0, true), worker(1, 0.0, serves)],
            stage_cycles: [work; Stage::COUNT],
            hop_cycles: hop,
            flows: vec![Flow { entry: A, bucket: 7, route: Route::all(A), inward: rate, outward: 0.0 }],
            tenants: vec![TenantLoad { endpoint: EndpointId(0), home: A, to: rate, from: 0.0 }],
            hertz: 1e9,
        }
    }

    #[test]
    fn a_heavy_flow_is_split_in_the_middle_and_takes_its_tenant_along() {
        let found = propose(&one_flow(500.0, 150.0, true), Goal::Spread, true);
        let home = Change::Home { endpoint: EndpointId(0), worker: B };
        // Classify, decap and the entry against lookup and deliver: one hop.
        let route = Change::Route { entry: A, bucket: 7, route: Route::new(A, B, A) };
        assert_eq!(found.changes, [home, route], "{found:?}");
        assert!(found.highest[1] < 0.6, "{found:?}");
    }

    #[test]
    fn where_tenants_stay_the_middle_of_the_way_goes() {
        for (serves, may) in [(false, true), (true, false)] {
            let found = propose(&one_flow(500.0, 150.0, serves), Goal::Spread, may);
            assert_eq!(
                found.changes,
                [Change::Route { entry: A, bucket: 7, route: Route::new(B, B, A) }],
                "{found:?}"
            );
            assert!(found.highest[1] < 0.62 && found.added > 0.0, "{found:?}");
        }
    }

    #[test]
    fn nothing_is_split_that_costs_more_than_it_brings() {
        for work in [0.0, 20.0, 40.0] {
            let found = propose(&one_flow(work, 400.0, true), Goal::Spread, true);
            assert_eq!(found.changes, [], "{work} {found:?}");
        }
    }

    #[test]
    fn a_worker_on_the_same_core_or_one_that_leaves_is_no_help() {
        for (core, is_there) in [(0, true), (1, false)] {
            let mut load = one_flow(500.0, 150.0, true);
            load.workers[1] = WorkerLoad { core, is_there, ..load.workers[1] };
            assert_eq!(propose(&load, Goal::Spread, true).changes, [], "core {core}, there: {is_there}");
        }
        // But one on another core is, and what the first two have to do together is seen.
        let mut load = one_flow(500.0, 150.0, true);
        load.workers = vec![worker(0, 0.5, true), worker(0, 0.5, true), worker(1, 0.0, true)];
        load.flows[0].inward /= 2.0;
        load.tenants[0].to /= 2.0;
        let found = propose(&load, Goal::Spread, true);
        assert!((found.highest[0] - 1.0).abs() < 1e-9 && found.highest[1] < 0.8, "{found:?}");
    }

    #[test]
    fn what_was_split_is_gathered_when_there_is_time() {
        let mut load = one_flow(500.0, 150.0, true);
        let share = 0.2;
        load.flows[0].inward *= share;
        load.flows[0].route = Route::new(A, B, A);
        load.tenants[0].to *= share;
        load.tenants[0].home = B;
        load.workers = vec![worker(0, 0.11, true), worker(1, 0.11, true)];
        let found = propose(&load, Goal::Gather { below: 0.6 }, true);
        assert_eq!(found.changes.len(), 2, "{found:?}");
        assert!(found.added < 0.0 && found.highest[1] < 0.3, "{found:?}");
        load.workers = vec![worker(0, 0.45, true), worker(1, 0.45, true)];
        load.flows[0].inward *= 4.0;
        load.tenants[0].to *= 4.0;
        let full = propose(&load, Goal::Gather { below: 0.6 }, true);
        assert_eq!(full.changes, [], "it would not fit on one: {full:?}");
    }

    /// Three workers, flows and tenants everywhere.
    fn mixed() -> Load {
        let worker = |n: u64| WorkerId((n % 3) as u8);
        let flow = |n: u64| Flow {
            entry: worker(n),
            bucket: n as u8,
            route: if n < 20 {
                Route::all(worker(n))
            } else {
                Route::new(worker(n), worker(n / 2), worker(n / 3))
            },
            inward: 1000.0 * (n % 7) as f64,
            outward: 500.0 * (n % 5) as f64,
        };
        let tenant = |n: u64| TenantLoad {
            endpoint: EndpointId(n as u16),
            home: worker(n / 2),
            to: 3000.0 * (n % 4) as f64,
            from: 700.0 * (n % 3) as f64,
        };
        Load {
            workers: (0..3).map(|core| super::tests::worker(core, 0.5, true)).collect(),
            stage_cycles: [100.0, 110.0, 120.0, 130.0, 140.0, 0.0],
            hop_cycles: 150.0,
            flows: (0..40).map(flow).collect(),
            tenants: (0..12).map(tenant).collect(),
            hertz: 1e9,
        }
    }

    #[test]
    fn whatever_is_done_and_undone_costs_nothing() {
        let load = mixed();
        let model = Model::new(&load);
        let steps = model.steps(Goal::Spread, true);
        assert!(steps.len() > 50, "{}", steps.len());
        for step in steps {
            let mut there = model.clone();
            there.apply(&step);
            let back = Step {
                flows: step.flows.iter().map(|(place, _)| (*place, load.flows[*place])).collect(),
                home: step.home.map(|(place, _)| (place, load.tenants[place])),
            };
            there.apply(&back);
            for (now, before) in there.state.cycles.iter().zip(&model.state.cycles) {
                assert!((now - before).abs() < 1.0, "{step:?}: {now} {before}");
            }
            assert_eq!(
                (&there.state.leaving, &there.state.tenants),
                (&model.state.leaving, &model.state.tenants)
            );
        }
    }

    #[test]
    fn one_flow_costs_the_same_alone_and_among_all() {
        let load = mixed();
        let model = Model::new(&load);
        let (mut all, mut each) = (model.state.clone(), model.state.clone());
        model.charge_all_deliveries(&mut all, 1.0);
        for flow in &load.flows {
            each.charge_delivery(flow.entry, flow.route.lookup(), load.hop_cycles * flow.inward);
        }
        for (all, each) in all.cycles.iter().zip(&each.cycles) {
            assert!((all - each).abs() < 1.0, "{all} {each}");
        }
    }

    #[test]
    fn what_others_do_does_not_hide_the_busiest_workers_flows() {
        let mut load = one_flow(1000.0, 150.0, true);
        load.hertz = 5e9;
        let small = |bucket| Flow { entry: A, bucket, route: Route::all(A), inward: 5_000.0, outward: 0.0 };
        let big = |bucket| Flow { entry: B, bucket, route: Route::all(B), inward: 40_000.0, outward: 0.0 };
        load.flows = (0..200).map(small).chain((0..12).map(big)).collect();
        load.workers = vec![worker(0, 1.0, true), worker(1, 0.4, true)];
        let found = propose(&load, Goal::Spread, false);
        assert!(found.highest[1] < 0.95, "{found:?}");
        assert!(found.changes.iter().any(|change| matches!(change, Change::Route { entry: A, .. })));
    }

    #[test]
    fn nothing_leaves_by_a_worker_that_cannot_send() {
        let mut load = one_flow(1000.0, 10.0, false);
        load.flows[0].outward = load.flows[0].inward;
        let found = propose(&load, Goal::Spread, true);
        assert!(!found.changes.is_empty());
        for change in found.changes {
            assert!(matches!(change, Change::Route { route, .. } if route.encap() == A), "{change:?}");
        }
    }

    #[test]
    fn flows_that_have_ended_come_home() {
        let mut load = one_flow(100.0, 150.0, true);
        load.workers = vec![worker(0, 0.1, true), worker(1, 0.1, true)];
        let ended = Flow { entry: B, bucket: 3, route: Route::all(A), inward: 0.0, outward: 0.0 };
        load.flows = vec![ended, Flow { bucket: 4, route: Route::all(B), ..ended }];
        let found = propose(&load, Goal::Gather { below: 0.6 }, false);
        assert_eq!(found.changes, [Change::Route { entry: B, bucket: 3, route: Route::all(B) }]);
        assert_eq!(propose(&load, Goal::Spread, false).changes, []);
    }

    #[test]
    fn many_flows_are_dealt_out_whole() {
        let flow = |bucket| Flow { entry: A, bucket, route: Route::all(A), inward: 50_000.0, outward: 0.0 };
        let mut load = one_flow(1000.0, 150.0, true);
        load.flows = (0..20).map(flow).collect();
        load.tenants = (0..4)
            .map(|n| TenantLoad {
                endpoint: EndpointId(n),
                home: WorkerId(n as u8 % 2),
                to: 250_000.0,
                from: 0.0,
            })
            .collect();
        load.hertz = 5e9;
        let found = propose(&load, Goal::Spread, false);
        assert!(found.changes.len() >= 5, "{found:?}");
        assert!(found.highest[1] < 0.75, "{found:?}");
    }
}
