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
/// Workers that flows are tried on: those with the lowest load.
const TARGETS_TRIED: usize = 2;
/// Changes that one search makes, at most.
const CHANGES_MAX: usize = 32;

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
    /// Share of its cycles in which it had work.
    pub busy: f64,
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
    /// The highest load before and after, as a share of a worker's cycles; above 1: more than it can do.
    pub highest: [f64; 2],
    /// Cycles a second of all workers together that come in addition (negative: that are saved).
    pub added: f64,
    /// What all workers together spend before, in cycles a second.
    pub total_before: f64,
}

/// The search: one change after the other, each the best of those tried, as long as the goal comes nearer.
pub fn propose(load: &Load, goal: Goal, may_move_tenants: bool) -> Proposal {
    let mut model = Model::new(load);
    let before = model.score(&model.cycles, goal);
    let (mut changes, mut tenants_may) = (Vec::new(), may_move_tenants);
    while changes.len() < CHANGES_MAX {
        let Some(best) = model.best_step(goal, tenants_may) else { break };
        // One tenant at a time: all traffic pauses for it.
        tenants_may &= best.home.is_none();
        model.apply(&best);
        changes.extend(best.changes());
    }
    let after = model.score(&model.cycles, goal);
    Proposal {
        changes,
        highest: [before.highest, after.highest].map(|cycles| cycles / load.hertz),
        added: after.total - before.total,
        total_before: before.total,
    }
}

/// A flow's new way, a tenant's new home, or both at once.
#[derive(Clone, Copy, Debug, Default)]
struct Step {
    /// The flow's place in the list.
    flow: Option<(usize, Flow)>,
    /// The tenant's place in the list.
    home: Option<(usize, TenantLoad)>,
}

impl Step {
    fn changes(&self) -> impl Iterator<Item = Change> + use<> {
        let route =
            self.flow.map(|(_, Flow { entry, bucket, route, .. })| Change::Route { entry, bucket, route });
        let home =
            self.home.map(|(_, TenantLoad { endpoint, home, .. })| Change::Home { endpoint, worker: home });
        // The tenant first: it has arrived when the flow is sent after it.
        home.into_iter().chain(route)
    }
}

#[derive(Clone, Copy, Debug)]
struct Score {
    /// What is compared: lower is better.
    value: f64,
    highest: f64,
    total: f64,
}

#[derive(Clone, Debug)]
struct Model<'l> {
    load: &'l Load,
    /// Cycles a second, by worker: measured, and what the changes so far add.
    cycles: Vec<f64>,
    flows: Vec<Flow>,
    tenants: Vec<TenantLoad>,
    /// By worker: the share of all packets for tenants that are delivered there.
    delivered: Vec<f64>,
}

impl<'l> Model<'l> {
    fn new(load: &'l Load) -> Model<'l> {
        let mut model = Model {
            load,
            cycles: load.workers.iter().map(|worker| worker.busy * load.hertz).collect(),
            flows: load.flows.clone(),
            tenants: load.tenants.clone(),
            delivered: Vec::new(),
        };
        model.delivered = model.shares();
        model
    }

    fn shares(&self) -> Vec<f64> {
        let all: f64 = self.tenants.iter().map(|tenant| tenant.to).sum();
        let share = |worker: usize| {
            let here = self.tenants.iter().filter(|tenant| tenant.home.index() == worker);
            here.map(|tenant| tenant.to).sum::<f64>() / all.max(1.0)
        };
        (0..self.load.workers.len()).map(share).collect()
    }

    fn stage(&self, stage: Stage) -> f64 {
        self.load.stage_cycles.get(stage as usize).copied().unwrap_or(0.0)
    }

    /// Adds what a flow costs the workers (`sign` 1), or takes it away (−1), but for what is bound to its entry and to the tenants.
    fn charge(&self, cycles: &mut [f64], flow: &Flow, sign: f64) {
        let Flow { entry, route, .. } = *flow;
        let (inward, outward) = (sign * flow.inward, sign * flow.outward);
        add(cycles, route.decap(), inward * self.stage(Stage::Decap));
        add(cycles, route.lookup(), (inward + outward) * self.stage(Stage::Lookup));
        add(cycles, route.encap(), outward * self.stage(Stage::Encap));
        self.hop(cycles, entry, route.decap(), inward);
        self.hop(cycles, route.decap(), route.lookup(), inward);
        for (worker, share) in (0u8..).zip(&self.delivered) {
            let there = WorkerId(worker);
            self.hop(cycles, route.lookup(), there, inward * share);
            if there != entry {
                let homing = inward * share * self.load.hop_cycles * HOMING / 2.0;
                add(cycles, there, homing);
                add(cycles, entry, homing);
            }
        }
        self.hop(cycles, entry, route.lookup(), outward);
        self.hop(cycles, route.lookup(), route.encap(), outward);
        self.hop(cycles, route.encap(), entry, outward);
    }

    fn hop(&self, cycles: &mut [f64], from: WorkerId, to: WorkerId, frames: f64) {
        if from != to {
            add(cycles, from, frames * self.load.hop_cycles * GIVING);
            add(cycles, to, frames * self.load.hop_cycles * (1.0 - GIVING));
        }
    }

    /// What enters there is looked at frame by frame: not all of it stays there.
    fn looks(&self, entry: WorkerId) -> bool {
        let leaves = self.flows.iter().any(|flow| flow.entry == entry && flow.leaves());
        leaves || self.tenants.iter().any(|tenant| tenant.home != entry)
    }

    /// What that costs, of all workers.
    fn charge_looks(&self, cycles: &mut [f64], sign: f64) {
        for worker in (0..cycles.len()).map(|worker| WorkerId(worker as u8)) {
            if self.looks(worker) {
                let flows = self.flows.iter().filter(|flow| flow.entry == worker);
                let frames: f64 = flows.map(|flow| flow.inward).sum();
                add(cycles, worker, sign * ENTRY_CYCLES * frames);
            }
        }
    }

    /// The loads after a step in which only a flow goes another way.
    fn after_route(&self, place: usize, moved: &Flow) -> Vec<f64> {
        let mut cycles = self.cycles.clone();
        if let Some(old) = self.flows.get(place) {
            self.charge(&mut cycles, old, -1.0);
            self.charge(&mut cycles, moved, 1.0);
            // The first that leaves makes its entry look at each frame; that the last one came home is seen when it is done.
            if moved.leaves() && !self.looks(moved.entry) {
                let flows = self.flows.iter().filter(|flow| flow.entry == moved.entry);
                let frames: f64 = flows.map(|flow| flow.inward).sum();
                add(&mut cycles, moved.entry, ENTRY_CYCLES * frames);
            }
        }
        cycles
    }

    fn after(&self, step: &Step) -> Vec<f64> {
        match step {
            Step { flow: Some((place, moved)), home: None } => self.after_route(*place, moved),
            _ => {
                let mut model = self.clone();
                model.apply(step);
                model.cycles
            }
        }
    }

    /// Takes away what everything costs, changes it, and adds what it costs then.
    fn apply(&mut self, step: &Step) {
        let mut cycles = std::mem::take(&mut self.cycles);
        self.charge_looks(&mut cycles, -1.0);
        self.flows.iter().for_each(|flow| self.charge(&mut cycles, flow, -1.0));
        if let Some((place, moved)) = step.home {
            self.move_tenant(&mut cycles, place, moved);
        }
        if let Some((place, moved)) = step.flow
            && let Some(flow) = self.flows.get_mut(place)
        {
            *flow = moved;
        }
        self.flows.iter().for_each(|flow| self.charge(&mut cycles, flow, 1.0));
        self.charge_looks(&mut cycles, 1.0);
        self.cycles = cycles;
    }

    /// With the tenant go the copies to it, and everything that it sends.
    fn move_tenant(&mut self, cycles: &mut [f64], place: usize, moved: TenantLoad) {
        let Some(old) = self.tenants.get(place).copied() else { return };
        let sent = self.stage(Stage::Lookup) + self.stage(Stage::Deliver) + self.stage(Stage::Encap);
        let spent = old.to * self.stage(Stage::Deliver) + old.from * sent;
        add(cycles, old.home, -spent);
        add(cycles, moved.home, spent);
        if let Some(tenant) = self.tenants.get_mut(place) {
            *tenant = moved;
        }
        self.delivered = self.shares();
    }

    fn score(&self, cycles: &[f64], goal: Goal) -> Score {
        let highest = cycles.iter().copied().fold(0.0, f64::max);
        let total = cycles.iter().sum();
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
        let now = self.score(&self.cycles, goal).value;
        let steps = self.steps(may_move_tenants).into_iter();
        let scored = steps.map(|step| (self.score(&self.after(&step), goal).value, step));
        let (value, step) = scored.min_by(|a, b| a.0.total_cmp(&b.0))?;
        (value < now - worth).then_some(step)
    }

    /// Everything that could be done for the busiest worker, with the flows that cost it most and the workers that have least to do.
    fn steps(&self, may_move_tenants: bool) -> Vec<Step> {
        let workers = || (0..self.cycles.len()).map(|worker| WorkerId(worker as u8));
        let cycles = |worker: &WorkerId| self.cycles.get(worker.index()).copied().unwrap_or(0.0);
        let Some(busiest) = workers().max_by(|a, b| cycles(a).total_cmp(&cycles(b))) else {
            return Vec::new();
        };
        let mut targets: Vec<WorkerId> = workers().filter(|worker| *worker != busiest).collect();
        targets.sort_by(|a, b| cycles(a).total_cmp(&cycles(b)));
        targets.truncate(TARGETS_TRIED);

        let flows = self.heaviest_flows();
        let homes = if may_move_tenants { self.homes(busiest, &targets) } else { Vec::new() };
        let mut steps: Vec<Step> = homes.iter().map(|home| Step { flow: None, home: Some(*home) }).collect();
        for (nth, flow) in flows.into_iter().enumerate() {
            for moved in self.ways(flow, busiest, &targets) {
                steps.push(Step { flow: Some(moved), home: None });
                // A flow and its tenant may be worth nothing each and much together.
                if nth == 0 {
                    steps.extend(homes.iter().map(|home| Step { flow: Some(moved), home: Some(*home) }));
                }
            }
        }
        steps
    }

    /// Places in the list, those with the most work first.
    fn heaviest_flows(&self) -> Vec<usize> {
        let rate = |place: &usize| self.flows.get(*place).map_or(0.0, |flow| flow.inward + flow.outward);
        let mut places: Vec<usize> = (0..self.flows.len()).collect();
        places.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
        // Those that already have another way first, so that they are gathered again though others carry more.
        let leaves = |place: &usize| self.flows.get(*place).is_some_and(Flow::leaves);
        let (away, at_home): (Vec<usize>, Vec<usize>) = places.into_iter().partition(leaves);
        let tried = |places: Vec<usize>| places.into_iter().take(FLOWS_TRIED);
        let mut both: Vec<usize> = tried(at_home).chain(tried(away)).collect();
        both.sort_by(|a, b| rate(b).total_cmp(&rate(a)));
        both
    }

    /// The flow with each of its steps where it is, where it enters, on the busiest, or on one of the targets.
    fn ways(&self, place: usize, busiest: WorkerId, targets: &[WorkerId]) -> Vec<(usize, Flow)> {
        let Some(flow) = self.flows.get(place) else { return Vec::new() };
        let mut ways = Vec::new();
        for other in targets.iter().copied().chain([busiest]) {
            let choices = |now: WorkerId| [now, flow.entry, other];
            for decap in choices(flow.route.decap()) {
                for lookup in choices(flow.route.lookup()) {
                    for encap in choices(flow.route.encap()) {
                        let route = Route::new(decap, lookup, encap);
                        let moved = (place, Flow { route, ..*flow });
                        if route != flow.route && !ways.contains(&moved) {
                            ways.push(moved);
                        }
                    }
                }
            }
        }
        ways
    }

    /// The tenants that get most from the busiest worker, each with another one of the targets; and, to gather, the other way round.
    fn homes(&self, busiest: WorkerId, targets: &[WorkerId]) -> Vec<(usize, TenantLoad)> {
        let serves =
            |worker: &WorkerId| self.load.workers.get(worker.index()).is_some_and(|load| load.serves);
        let mut tenants: Vec<(usize, TenantLoad)> = self.tenants.iter().copied().enumerate().collect();
        tenants.sort_by(|a, b| (b.1.to + b.1.from).total_cmp(&(a.1.to + a.1.from)));
        let all = || targets.iter().copied().chain([busiest]).filter(serves);
        let moved = |(place, tenant): (usize, TenantLoad)| {
            all()
                .filter(move |home| *home != tenant.home)
                .map(move |home| (place, TenantLoad { home, ..tenant }))
        };
        tenants.into_iter().take(2).flat_map(moved).collect()
    }
}

fn add(cycles: &mut [f64], worker: WorkerId, more: f64) {
    if let Some(load) = cycles.get_mut(worker.index()) {
        *load += more;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerId = WorkerId(0);
    const B: WorkerId = WorkerId(1);

    /// One flow that fills worker A of two, `work` cycles in each of four steps.
    fn one_flow(work: f64, hop: f64, serves: bool) -> Load {
        let base = 100.0;
        let rate = 1e9 / (4.0 * work + base);
        Load {
            workers: vec![WorkerLoad { busy: 1.0, serves: true }, WorkerLoad { busy: 0.0, serves }],
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
    fn what_was_split_is_gathered_when_there_is_time() {
        let mut load = one_flow(500.0, 150.0, true);
        let share = 0.2;
        load.flows[0].inward *= share;
        load.flows[0].route = Route::new(A, B, A);
        load.tenants[0].to *= share;
        load.tenants[0].home = B;
        load.workers = vec![WorkerLoad { busy: 0.11, serves: true }; 2];
        let found = propose(&load, Goal::Gather { below: 0.6 }, true);
        assert_eq!(found.changes.len(), 2, "{found:?}");
        assert!(found.added < 0.0 && found.highest[1] < 0.3, "{found:?}");
        load.workers = vec![WorkerLoad { busy: 0.45, serves: true }; 2];
        load.flows[0].inward *= 4.0;
        load.tenants[0].to *= 4.0;
        let full = propose(&load, Goal::Gather { below: 0.6 }, true);
        assert_eq!(full.changes, [], "it would not fit on one: {full:?}");
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
        assert!((5..=CHANGES_MAX).contains(&found.changes.len()), "{found:?}");
        assert!(found.highest[1] < 0.75, "{found:?}");
    }
}
