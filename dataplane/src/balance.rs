//! When to change who does what: watches how busy the workers are, and when one has too much to do has it counted what its flows are,
//! asks the `model` for a better placement, tries it, and goes back if it did not help. When there is time to spare again, what was
//! spread is gathered: fewer hand-overs, less latency. Pure: `engine` reads the counters and does what is decided.
//!
//! ```text
//! watch ──too busy, or idle and spread──► count ──a better way?──► settle ──► trial ──► watch
//!   ▲                                       │ no: wait longer                   │ no gain: undone, wait longer
//!   └───────────────────────────────────────┴───────────────────────────────────┘
//! ```
//!
//! What must hold: a placement that measured worse than the one before it does not stay. The figure for that is what the busiest
//! worker spends on each frame that comes through: the rate that is possible is its inverse, whatever the rate offered is.

/// What a placement costs, and the search for a better one.
#[cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)
)]
pub mod model;

use std::collections::HashMap;
use std::time::Duration;

use crate::frame::BUCKETS;
use crate::types::{EndpointId, Route, Stage, WorkerId};
use model::{Change, Flow, Goal, Load, Proposal, TenantLoad, WorkerLoad, propose};

/// How often it looks.
pub const TICK: Duration = Duration::from_millis(10);

/// Looks in a row that must agree before it believes that a worker has too much to do, or that there is time to spare.
const HOT_TICKS: u32 = 3;
const COOL_TICKS: u32 = 20;
/// Looks during which what enters is counted by bucket.
const COUNT_TICKS: u32 = 2;
/// Looks after a change before it is measured, and for how many it is measured then.
const SETTLE_TICKS: u32 = 3;
const TRIAL_TICKS: u32 = 6;
/// Looks until it tries again after it found nothing: doubled each time, up to the highest.
const WAIT_TICKS: u32 = 10;
const WAIT_TICKS_MAX: u32 = 320;
/// Looks between two moves of tenants: all traffic pauses for one.
const TENANT_TICKS: u32 = 100;
/// All is gathered again as long as no worker's load comes above this part of the threshold: so far below that it is not spread again at
/// once.
const GATHER_BELOW: f64 = 0.7;
/// Looks without a worker that has too much to do, after which it tries as readily as at the start: another load may have another answer.
const CALM_TICKS: u32 = 100;
/// What a placement must promise, and what it must then show: the highest load, as a share of the one before.
const PROMISED: f64 = 0.9;
const SHOWN: f64 = 0.98;
/// Less than this part of what came through before is too little, while there is too much to do.
const SLOWER: f64 = 0.9;
/// Turns move alike if the variance of what they move is below this part of its square.
const ALIKE: f64 = 0.02;
/// At least this part of what a worker is busy with is for its frames.
const NEEDED_MIN: f64 = 0.1;
/// Cycles in what is called a second here.
const HERTZ: f64 = 1e9;
/// What a hand-over costs, both ends together, as long as nothing else is known, and at most.
const HOP_CYCLES: f64 = 150.0;
const HOP_CYCLES_MAX: f64 = 2000.0;
/// What it has learned of that fades by this part at each look, in a minute by most of it: what was so once may have changed.
const FADING: f64 = 0.0003;

/// All that has been counted since the start.
#[derive(Clone, Debug, Default)]
pub struct Reading {
    /// When, in cycles of the clock.
    pub at: u64,
    /// By worker.
    pub workers: Vec<WorkerReading>,
    /// By step, of all workers: frames that were looked at, and their cycles.
    pub stages: [(u64, u64); Stage::COUNT],
}

impl Reading {
    /// Frames that came through, to tenants and to the underlay.
    fn frames(&self) -> u64 {
        self.workers.iter().map(|worker| worker.delivered + worker.sent).sum()
    }

    fn of(&self, worker: WorkerId) -> WorkerReading {
        self.workers.get(worker.index()).copied().unwrap_or_default()
    }

    /// The same workers on the same cores.
    fn is_like(&self, other: &Reading) -> bool {
        let who = |reading: &Reading| -> Vec<(usize, bool)> {
            reading.workers.iter().map(|worker| (worker.core, worker.is_there)).collect()
        };
        who(self) == who(other)
    }
}

/// One worker.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerReading {
    /// Cycles in turns that found work.
    pub busy: u64,
    /// Sums over these turns: how many, frames, their squares, cycles, cycles times frames.
    pub turn_costs: [u64; 5],
    /// Cycles in all turns but those in which it lost its core.
    pub running: u64,
    /// Frames that entered there from the underlay.
    pub inward: u64,
    /// Frames that entered there from tenants.
    pub outward: u64,
    /// Packets given to tenants there.
    pub delivered: u64,
    /// Frames sent to the underlay there.
    pub sent: u64,
    /// The core that it runs on: those with the same number share one.
    pub core: usize,
    /// It is to be used.
    pub is_there: bool,
    /// It may serve tenants.
    pub serves: bool,
}

/// What only a placement needs to know; counted since the start, or since counting began.
#[derive(Clone, Debug, Default)]
pub struct Detail {
    /// By worker of entry and bucket: the way wanted, frames from the underlay, frames from tenants. None for a worker where none enter.
    pub entries: Vec<Vec<(Route, u64, u64)>>,
    /// Tenants that are attached: who serves them, packets to them, packets from them.
    pub tenants: Vec<(EndpointId, WorkerId, u64, u64)>,
}

/// What is to be done now.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Decision {
    /// Begin (or end) to count by bucket what enters.
    pub count: Option<bool>,
    /// In this order.
    pub changes: Vec<Change>,
    /// They bring back what was before: as much as can be.
    pub is_undone: bool,
}

/// What it has done since the start, for people.
#[derive(Clone, Copy, Debug, Default, PartialEq, serde::Serialize)]
pub struct BalanceStats {
    /// Placements tried.
    pub tried: u64,
    /// Those of them that did not show what they promised, and were undone.
    pub undone: u64,
    /// Flow buckets that were given another way.
    pub bucket_moves: u64,
    /// Tenants that were given to another worker.
    pub tenant_moves: u64,
    /// What it takes a hand-over to cost, both ends together, in cycles.
    pub hop_cycles: f64,
}

/// The watch.
#[derive(Debug)]
pub struct Balancer {
    /// Share of its cycles above which a worker has too much to do.
    threshold: f64,
    /// Looks in a row without a worker above it.
    calm: u32,
    phase: Phase,
    last: Reading,
    /// Since it last looked at something else.
    ticks: u32,
    /// Looks until it may try again, and what that was the last time.
    wait: u32,
    wait_next: u32,
    tenant_wait: u32,
    /// By step: cycles a frame at the last looks.
    costs: [Recent; Stage::COUNT],
    /// What is not where it began; and what was not before the last change, should that be undone.
    away: Away,
    away_before: Away,
    stats: BalanceStats,
}

#[derive(Debug)]
enum Phase {
    /// For so many looks in a row: too busy since the reading, or idle.
    Watch {
        hot: u32,
        cool: u32,
        since: Reading,
    },
    Count {
        goal: Goal,
        before: Cost,
        begun: Option<(Reading, Detail)>,
    },
    Settle {
        tried: Tried,
    },
    Trial {
        tried: Tried,
        from: Reading,
    },
}

impl Phase {
    const WATCH: Phase = Phase::Watch {
        hot: 0,
        cool: 0,
        since: Reading { at: 0, workers: Vec::new(), stages: [(0, 0); Stage::COUNT] },
    };
}

/// A placement on trial.
#[derive(Debug)]
struct Tried {
    /// What the one before it cost.
    before: Cost,
    /// What brings that one back.
    undo: Vec<Change>,
    promised: Proposal,
}

/// What is not where it began.
#[derive(Clone, Debug, Default)]
struct Away {
    flows: bool,
    /// Tenants, and where they began.
    tenants: HashMap<EndpointId, WorkerId>,
}

impl Away {
    fn is_spread(&self) -> bool {
        self.flows || !self.tenants.is_empty()
    }

    fn note(&mut self, load: &Load, proposal: &Proposal) {
        self.flows = proposal.leaves;
        for change in &proposal.changes {
            if let Change::Home { endpoint, worker } = *change
                && let Some(tenant) = load.tenants.iter().find(|tenant| tenant.endpoint == endpoint)
                && *self.tenants.entry(endpoint).or_insert(tenant.home) == worker
            {
                self.tenants.remove(&endpoint);
            }
        }
        // Who has left is nobody's.
        self.tenants.retain(|endpoint, _| load.tenants.iter().any(|tenant| tenant.endpoint == *endpoint));
    }
}

/// Cycles for each frame that came through.
#[derive(Clone, Copy, Debug)]
struct Cost {
    /// Of the busiest worker.
    highest: f64,
    /// Of all.
    total: f64,
    /// The busiest core's share of its cycles.
    share: f64,
    /// Frames that came through in a cycle of the clock.
    rate: f64,
}

/// The last few values; one that is off, because the core was taken away in the middle, does not count.
#[derive(Clone, Copy, Debug, Default)]
struct Recent {
    values: [f64; 5],
    count: usize,
}

impl Recent {
    fn add(&mut self, value: f64) {
        let place = self.count % self.values.len();
        if let Some(old) = self.values.get_mut(place) {
            *old = value;
        }
        self.count += 1;
    }

    fn median(&self) -> f64 {
        let mut seen: Vec<f64> = self.values.iter().copied().take(self.count).collect();
        seen.sort_by(f64::total_cmp);
        seen.get(seen.len() / 2).copied().unwrap_or(0.0)
    }
}

impl Balancer {
    /// A worker has too much to do above this share of its cycles.
    pub fn new(threshold: f64) -> Balancer {
        Balancer {
            threshold,
            calm: 0,
            phase: Phase::WATCH,
            last: Reading::default(),
            ticks: 0,
            wait: 0,
            wait_next: WAIT_TICKS,
            tenant_wait: 0,
            costs: [Recent::default(); Stage::COUNT],
            away: Away::default(),
            away_before: Away::default(),
            stats: BalanceStats { hop_cycles: HOP_CYCLES, ..BalanceStats::default() },
        }
    }

    /// What it has done so far.
    pub fn stats(&self) -> BalanceStats {
        self.stats
    }

    /// One look, [`TICK`] after the last one or later. `detail` is asked for only when it is needed.
    pub fn tick(&mut self, now: Reading, detail: impl FnOnce() -> Detail) -> Decision {
        let last = std::mem::replace(&mut self.last, now.clone());
        if !last.is_like(&now) {
            return self.begin_again(); // the first look, or somebody came or went
        }
        self.note_costs(&last, &now);
        self.wait = self.wait.saturating_sub(1);
        self.tenant_wait = self.tenant_wait.saturating_sub(1);
        self.ticks += 1;
        self.stats.hop_cycles += FADING * (HOP_CYCLES - self.stats.hop_cycles);
        match std::mem::replace(&mut self.phase, Phase::WATCH) {
            Phase::Watch { hot, cool, since } => self.watch(&last, now, (hot, cool, since)),
            Phase::Count { goal, before, begun: None } => {
                // By now every worker counts.
                self.ticks = 0;
                self.phase = Phase::Count { goal, before, begun: Some((now, detail())) };
                Decision::default()
            }
            Phase::Count { goal, before, begun: Some((from, earlier)) } if self.ticks >= COUNT_TICKS => {
                self.decide(goal, before, loads(&from, &now, &earlier, &detail()))
            }
            Phase::Settle { tried } if self.ticks >= SETTLE_TICKS => {
                self.ticks = 0;
                self.phase = Phase::Trial { tried, from: now };
                Decision::default()
            }
            Phase::Trial { tried, from } if self.ticks >= TRIAL_TICKS => self.judge(tried, cost(&from, &now)),
            unfinished => {
                self.phase = unfinished;
                Decision::default()
            }
        }
    }

    /// With other workers than before nothing that was measured, or is on trial, says anything.
    fn begin_again(&mut self) -> Decision {
        let phase = std::mem::replace(&mut self.phase, Phase::WATCH);
        (self.wait, self.wait_next) = (0, WAIT_TICKS);
        Decision { count: matches!(phase, Phase::Count { .. }).then_some(false), ..Decision::default() }
    }

    fn note_costs(&mut self, last: &Reading, now: &Reading) {
        const FRAMES_MIN: u64 = 64;
        // What a step costs whatever it moves is in the samples, too.
        let sum = |of: fn(&WorkerReading, &WorkerReading) -> f64| {
            now.workers.iter().zip(&last.workers).map(|(now, last)| of(last, now)).sum::<f64>()
        };
        let busy = sum(|last, now| now.busy.saturating_sub(last.busy) as f64);
        let share = if busy > 0.0 { sum(needed) / busy } else { 1.0 };
        for (recent, (new, old)) in self.costs.iter_mut().zip(now.stages.iter().zip(&last.stages)) {
            let frames = new.0.saturating_sub(old.0);
            if frames >= FRAMES_MIN {
                recent.add(share * new.1.saturating_sub(old.1) as f64 / frames as f64);
            }
        }
    }

    fn watch(&mut self, last: &Reading, now: Reading, (hot, cool, since): (u32, u32, Reading)) -> Decision {
        let highest = by_core(&now, shares(last, &now)).into_iter().fold(0.0, f64::max);
        let below = GATHER_BELOW * self.threshold;
        let (hot, cool) = match () {
            () if highest >= self.threshold => (hot + 1, 0),
            () if highest < below => (0, cool + 1),
            () => (0, 0),
        };
        self.calm = if hot == 0 { self.calm.saturating_add(1) } else { 0 };
        if self.calm == CALM_TICKS {
            self.wait_next = WAIT_TICKS;
        }
        let since = if hot <= 1 { now.clone() } else { since };
        let goal = match () {
            () if hot > HOT_TICKS => Some(Goal::Spread),
            () if cool > COOL_TICKS && self.away.is_spread() => Some(Goal::Gather { below }),
            () => None,
        };
        let begins = goal == Some(Goal::Spread) && !self.away.is_spread();
        let goal = goal.filter(|_| self.wait == 0 && (!begins || self.could_help(&since, &now)));
        self.phase = match goal {
            Some(goal) => Phase::Count { goal, before: cost(&since, &now), begun: None },
            None => Phase::Watch { hot, cool, since },
        };
        Decision { count: goal.map(|_| true), ..Decision::default() }
    }

    /// The load with what is known of costs, and what could be done.
    fn search(&self, load: Load, goal: Goal) -> (Load, Proposal) {
        let costs = self.costs.map(|recent| recent.median());
        let load = Load { stage_cycles: costs, hop_cycles: self.stats.hop_cycles, ..load };
        let mut proposal = propose(&load, goal, self.tenant_wait == 0);
        if goal == Goal::Spread && proposal.highest[1] > PROMISED * proposal.highest[0] {
            proposal.changes.clear();
        }
        (load, proposal)
    }

    /// Before what enters is counted, which costs something on each frame: could anything help, were it one flow for one tenant, or many
    /// alike for as many?
    fn could_help(&mut self, from: &Reading, to: &Reading) -> bool {
        let helps = |parts| !self.search(coarse(parts, from, to), Goal::Spread).1.changes.is_empty();
        let could_help = helps(1) || helps(8);
        if !could_help {
            self.wait_longer();
        }
        could_help
    }

    fn decide(&mut self, goal: Goal, before: Cost, load: Load) -> Decision {
        let (load, proposal) = self.search(load, goal);
        let Proposal { changes, .. } = &proposal;
        if changes.is_empty() {
            self.wait_longer();
            return Decision { count: Some(false), ..Decision::default() };
        }
        let tenant_moves = changes.iter().filter(|change| matches!(change, Change::Home { .. })).count();
        self.stats.tried += 1;
        self.stats.tenant_moves += tenant_moves as u64;
        self.stats.bucket_moves += (changes.len() - tenant_moves) as u64;
        if tenant_moves > 0 {
            self.tenant_wait = TENANT_TICKS;
        }
        let (changes, undo) = (in_order(changes.clone()), undone(&load, changes));
        self.away_before = self.away.clone();
        self.away.note(&load, &proposal);
        self.ticks = 0;
        // What is gathered is not tried: there is room for it.
        if goal == Goal::Spread {
            self.phase = Phase::Settle { tried: Tried { before, undo, promised: proposal } };
        }
        self.wait = WAIT_TICKS;
        Decision { count: Some(false), changes, is_undone: false }
    }

    /// The tenant that was to move did not, and nothing of what was decided with that was done.
    pub fn abandon(&mut self) {
        self.phase = Phase::WATCH;
        self.away = std::mem::take(&mut self.away_before);
        self.wait_longer();
    }

    /// The placement stays if the busiest worker now spends less on a frame.
    fn judge(&mut self, tried: Tried, after: Cost) -> Decision {
        let Tried { before, undo, promised } = tried;
        if after.total > 0.0 && promised.added > 0.0 {
            self.learn_hop(&promised, before, after);
        }
        // Two workers that have not a core each lose more in waiting for one than their cycles tell: where there is too much to do before and
        // after, less must not come through. Not by a little: they lose their cores now and then anyway.
        let is_full = |cost: &Cost| cost.share >= self.threshold;
        let is_slower = is_full(&before) && is_full(&after) && after.rate < SLOWER * before.rate;
        if after.highest <= SHOWN * before.highest && !is_slower {
            (self.wait, self.wait_next) = (HOT_TICKS, WAIT_TICKS);
            return Decision::default();
        }
        self.stats.undone += 1;
        self.stats.hop_cycles = (1.25 * self.stats.hop_cycles).min(HOP_CYCLES_MAX);
        self.away = std::mem::take(&mut self.away_before);
        self.wait_longer();
        Decision { count: None, changes: in_order(undo), is_undone: true }
    }

    /// What the hand-overs cost is what a frame costs more, all workers together.
    fn learn_hop(&mut self, promised: &Proposal, before: Cost, after: Cost) {
        let shown = (after.total - before.total) / before.total;
        let expected = promised.added / promised.total_before;
        let factor = (shown / expected).clamp(0.5, 2.0);
        if factor.is_finite() {
            self.stats.hop_cycles =
                (self.stats.hop_cycles * (1.0 + factor) / 2.0).clamp(20.0, HOP_CYCLES_MAX);
        }
    }

    fn wait_longer(&mut self) {
        self.wait = self.wait_next;
        self.wait_next = (2 * self.wait_next).min(WAIT_TICKS_MAX);
    }
}

/// By worker: the share of its cycles that it needs for its frames.
fn shares<'r>(from: &'r Reading, to: &'r Reading) -> impl Iterator<Item = f64> + 'r {
    to.workers.iter().zip(&from.workers).map(|(to, from)| {
        let running = to.running.saturating_sub(from.running);
        needed(from, to) / running.max(1) as f64
    })
}

/// By core: the sums of what the workers on it have.
fn by_core(reading: &Reading, of_workers: impl Iterator<Item = f64>) -> Vec<f64> {
    let mut cores = vec![0.0; reading.workers.iter().map(|worker| worker.core + 1).max().unwrap_or(0)];
    for (worker, value) in reading.workers.iter().zip(of_workers) {
        if let Some(core) = cores.get_mut(worker.core) {
            *core += value;
        }
    }
    cores
}

/// Cycles that a worker needed for its frames: those in which it was busy, but for what each turn costs whatever it moves. A polling
/// worker with little to do takes a few frames in each of many turns and looks busy; with more to do the same turns
/// move more.
fn needed(from: &WorkerReading, to: &WorkerReading) -> f64 {
    let busy = to.busy.saturating_sub(from.busy) as f64;
    let mut sums = [0.0; 5];
    for (sum, (to, from)) in sums.iter_mut().zip(to.turn_costs.iter().zip(&from.turn_costs)) {
        *sum = to.saturating_sub(*from) as f64;
    }
    let [turns, frames, squares, cycles, frame_cycles] = sums;
    let spread = turns * squares - frames * frames;
    // Where all turns move alike, as at full load, nothing can be told apart, and nothing needs to be.
    if spread <= ALIKE * frames * frames {
        return busy;
    }
    let per_frame = (turns * frame_cycles - frames * cycles) / spread;
    let share = (per_frame * frames / cycles.max(1.0)).clamp(NEEDED_MIN, 1.0);
    busy * share
}

fn cost(from: &Reading, to: &Reading) -> Cost {
    let frames = to.frames().saturating_sub(from.frames()).max(1) as f64;
    let cycles = to.workers.iter().zip(&from.workers).map(|(to, from)| needed(from, to) / frames);
    let cores = by_core(to, cycles);
    Cost {
        highest: cores.iter().copied().fold(0.0, f64::max),
        total: cores.iter().sum(),
        share: by_core(to, shares(from, to)).into_iter().fold(0.0, f64::max),
        rate: frames / to.at.saturating_sub(from.at).max(1) as f64,
    }
}

/// What was counted between two looks.
fn loads(from: &Reading, to: &Reading, earlier: &Detail, later: &Detail) -> Load {
    let rate = |worker, later, earlier| rate(worker, later, earlier, from, to);
    let mut flows = Vec::new();
    for (entry, (later, earlier)) in later.entries.iter().zip(&earlier.entries).enumerate() {
        let entry = WorkerId(entry as u8);
        for (bucket, (new, old)) in later.iter().zip(earlier).enumerate().take(BUCKETS) {
            let (inward, outward) = (rate(entry, new.1, old.1), rate(entry, new.2, old.2));
            let flow = Flow { entry, bucket: bucket as u8, route: new.0, inward, outward };
            if inward + outward > 0.0 || flow.leaves() {
                flows.push(flow);
            }
        }
    }
    let before: HashMap<EndpointId, (u64, u64)> =
        earlier.tenants.iter().map(|&(endpoint, _, to, from)| (endpoint, (to, from))).collect();
    let tenants = later.tenants.iter().map(|&(endpoint, home, to, from)| {
        let (to_before, from_before) = before.get(&endpoint).copied().unwrap_or((to, from));
        TenantLoad { endpoint, home, to: rate(home, to, to_before), from: rate(home, from, from_before) }
    });
    load(from, to, flows, tenants.collect())
}

/// As if what enters at each worker were so many flows of one rate, and what is given to tenants there for as many tenants.
fn coarse(parts: u8, from: &Reading, to: &Reading) -> Load {
    let (mut flows, mut tenants) = (Vec::new(), Vec::new());
    for worker in (0..to.workers.len()).map(|worker| WorkerId(worker as u8)) {
        let (new, old) = (to.of(worker), from.of(worker));
        let part = |new, old| rate(worker, new, old, from, to) / f64::from(parts);
        let (inward, outward) = (part(new.inward, old.inward), part(new.outward, old.outward));
        let delivered = part(new.delivered, old.delivered);
        for bucket in 0..parts {
            flows.push(Flow { entry: worker, bucket, route: Route::all(worker), inward, outward });
            let endpoint = EndpointId(tenants.len() as u16);
            tenants.push(TenantLoad { endpoint, home: worker, to: delivered, from: outward });
        }
    }
    load(from, to, flows, tenants)
}

/// For each second of a clock with [`HERTZ`]: what counts is how rates compare. It is the worker's own running time: what it would have done
/// had it not lost its core.
fn rate(worker: WorkerId, later: u64, earlier: u64, from: &Reading, to: &Reading) -> f64 {
    match to.of(worker).running.saturating_sub(from.of(worker).running) {
        0 => 0.0, // it had no core at all: nothing is known
        running => later.saturating_sub(earlier) as f64 * HERTZ / running as f64,
    }
}

fn load(from: &Reading, to: &Reading, flows: Vec<Flow>, tenants: Vec<TenantLoad>) -> Load {
    let workers = shares(from, to).zip(&to.workers);
    Load {
        workers: workers
            .map(|(busy, worker)| WorkerLoad {
                busy,
                core: worker.core,
                is_there: worker.is_there,
                serves: worker.serves,
            })
            .collect(),
        stage_cycles: [0.0; Stage::COUNT],
        hop_cycles: HOP_CYCLES,
        flows,
        tenants,
        hertz: HERTZ,
    }
}

/// What brings back the state before the changes.
fn undone(load: &Load, changes: &[Change]) -> Vec<Change> {
    let before = |change: &Change| match *change {
        Change::Route { entry, bucket, .. } => {
            let flow = load.flows.iter().find(|flow| flow.entry == entry && flow.bucket == bucket)?;
            Some(Change::Route { entry, bucket, route: flow.route })
        }
        Change::Home { endpoint, .. } => {
            let tenant = load.tenants.iter().find(|tenant| tenant.endpoint == endpoint)?;
            Some(Change::Home { endpoint, worker: tenant.home })
        }
    };
    // A flow that was changed twice is back with the first.
    changes.iter().filter_map(before).collect()
}

/// The tenant first: if it does not move, nothing else is to be done.
fn in_order(mut changes: Vec<Change>) -> Vec<Change> {
    changes.sort_by_key(|change| matches!(change, Change::Route { .. }));
    changes
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: WorkerId = WorkerId(0);
    const B: WorkerId = WorkerId(1);
    const TENANT: EndpointId = EndpointId(3);
    const BUCKET: u8 = 7;

    /// Two workers, one flow and its tenant, with what things cost there in truth. The flow enters at A.
    struct World {
        balancer: Balancer,
        /// Frames a tick that somebody sends.
        offered: f64,
        /// Cycles of each of four steps.
        work: f64,
        hop: f64,
        route: Route,
        home: WorkerId,
        reading: Reading,
        entered: u64,
        rate: f64,
        changes: usize,
        /// The tenant does not move, as if the workers never came to rest.
        stays: bool,
        /// What both cores together have of the time of one, while both are at work; nothing of that shows in the cycles of a worker.
        shared: f64,
    }

    fn reading_on(core: usize) -> WorkerReading {
        WorkerReading { core, is_there: true, serves: true, ..WorkerReading::default() }
    }

    impl World {
        const TICK_CYCLES: f64 = 20e6;
        const BASE: f64 = 60.0;

        fn new(work: f64, hop: f64, offered: f64) -> World {
            World {
                balancer: Balancer::new(0.85),
                offered,
                work,
                hop,
                route: Route::all(A),
                home: A,
                reading: Reading { workers: [0, 1].map(reading_on).into(), ..Reading::default() },
                entered: 0,
                rate: 0.0,
                changes: 0,
                stays: false,
                shared: 2.0,
            }
        }

        /// Cycles a frame of A and of B.
        fn costs(&self) -> [f64; 2] {
            let mut costs = [World::BASE + self.work, 0.0];
            let way = [A, self.route.decap(), self.route.lookup(), self.home];
            for (step, pair) in way.windows(2).enumerate() {
                costs[pair[1].index()] += self.work;
                if pair[0] != pair[1] {
                    costs[pair[0].index()] += self.hop / 3.0;
                    costs[pair[1].index()] += self.hop * 2.0 / 3.0;
                }
                assert!(step < 3);
            }
            costs
        }

        fn tick(&mut self) {
            let costs = self.costs();
            let [least, most] = if costs[0] < costs[1] { costs } else { [costs[1], costs[0]] };
            // Who has least to do needs that part of the time; the rest of it is lost for who has most.
            let part = (self.shared / (1.0 + least / most)).min(1.0);
            self.rate = self.offered.min(part * World::TICK_CYCLES / most);
            self.reading.at += World::TICK_CYCLES as u64;
            for (worker, cost) in self.reading.workers.iter_mut().zip(costs) {
                worker.running += (part * World::TICK_CYCLES) as u64;
                worker.busy += (self.rate * cost) as u64;
            }
            self.reading.workers[0].inward += self.rate as u64;
            self.reading.workers[self.home.index()].delivered += self.rate as u64;
            self.entered += self.rate as u64;
            for stage in [Stage::Classify, Stage::Decap, Stage::Lookup, Stage::Deliver] {
                let sum = &mut self.reading.stages[stage as usize];
                sum.0 += 1000;
                sum.1 += (1000.0 * self.work) as u64;
            }
            let row = |bucket| {
                (
                    if bucket == BUCKET { self.route } else { Route::all(A) },
                    u64::from(bucket == BUCKET) * self.entered,
                    0,
                )
            };
            let other = (0..=u8::MAX).map(|_| (Route::all(B), 0, 0));
            let detail = Detail {
                entries: vec![(0..=u8::MAX).map(row).collect(), other.collect()],
                tenants: vec![(TENANT, self.home, self.entered, 0)],
            };
            for change in self.balancer.tick(self.reading.clone(), || detail).changes {
                self.changes += 1;
                match change {
                    Change::Route { entry, bucket, route } => {
                        assert_eq!((entry, bucket), (A, BUCKET));
                        self.route = route;
                    }
                    Change::Home { .. } if self.stays => return self.balancer.abandon(),
                    Change::Home { endpoint, worker } => {
                        assert_eq!(endpoint, TENANT);
                        self.home = worker;
                    }
                }
            }
        }

        fn run(&mut self, ticks: usize) -> BalanceStats {
            (0..ticks).for_each(|_| self.tick());
            self.balancer.stats()
        }
    }

    #[test]
    fn a_flow_that_is_too_heavy_for_one_worker_is_split_and_stays_so() {
        let mut world = World::new(300.0, 150.0, f64::INFINITY);
        world.run(1);
        let alone = world.rate;
        let stats = world.run(50);
        assert!(world.rate > 1.5 * alone, "{alone} {} {:?} {stats:?}", world.rate, world.route);
        let (changes, route) = (world.changes, world.route);
        let stats = world.run(3000);
        assert!(world.changes <= changes + 2 && stats.undone == 0, "{changes} {} {stats:?}", world.changes);
        assert!(world.rate > 1.5 * alone, "{route:?} {:?}", world.route);
    }

    #[test]
    fn when_workers_come_or_go_it_begins_again() {
        let mut world = World::new(300.0, 150.0, f64::INFINITY);
        while world.balancer.stats().tried == 0 {
            world.run(1);
        }
        // A third worker in the middle of the trial: that says nothing any more, and what it found is kept.
        let route = world.route;
        world.reading.workers.push(reading_on(2));
        let stats = world.run(1);
        assert!(matches!(world.balancer.phase, Phase::Watch { .. }), "{stats:?}");
        assert_eq!((stats.undone, world.route), (0, route));
        // Who counts is told to stop.
        let mut world = World::new(300.0, 150.0, f64::INFINITY);
        while !matches!(world.balancer.phase, Phase::Count { .. }) {
            world.run(1);
        }
        world.reading.workers[1].is_there = false;
        let decision = world.balancer.tick(world.reading.clone(), Detail::default);
        assert_eq!(decision, Decision { count: Some(false), ..Decision::default() });
    }

    #[test]
    fn what_measures_worse_is_undone_and_tried_ever_less() {
        let mut world = World::new(100.0, 1500.0, f64::INFINITY);
        let stats = world.run(100);
        assert!(stats.tried >= 1 && stats.undone == stats.tried, "{stats:?}");
        let stats = world.run(4000);
        assert_eq!((world.route, world.home), (Route::all(A), A));
        assert!(stats.undone == stats.tried && stats.tried <= 8, "{stats:?}");
        assert!(stats.hop_cycles > 1.2 * HOP_CYCLES, "it has learned: {stats:?}");
    }

    #[test]
    fn two_workers_that_have_one_core_between_them_keep_nothing_that_lets_less_through() {
        let mut world = World::new(300.0, 150.0, f64::INFINITY);
        world.shared = 1.0;
        world.run(1);
        let alone = world.rate;
        let stats = world.run(1000);
        assert!(stats.tried >= 1 && stats.undone == stats.tried, "{stats:?}");
        assert_eq!((world.route, world.home, world.rate), (Route::all(A), A, alone));
    }

    #[test]
    fn what_cannot_pay_is_not_even_tried() {
        let mut world = World::new(15.0, 150.0, f64::INFINITY);
        let stats = world.run(1000);
        assert_eq!((stats.tried, world.changes), (0, 0));
    }

    #[test]
    fn when_load_falls_all_is_gathered_and_when_it_rises_split_again() {
        let mut world = World::new(300.0, 150.0, f64::INFINITY);
        world.run(100);
        assert_ne!((world.route, world.home), (Route::all(A), A));
        let full = World::TICK_CYCLES / (4.0 * 300.0 + World::BASE);
        world.offered = full / 4.0;
        world.run(1000);
        assert_eq!((world.route, world.home), (Route::all(A), A), "{:?}", world.balancer.stats());
        world.offered = f64::INFINITY;
        world.run(300);
        assert!(world.rate > 1.5 * full, "{:?}", world.balancer.stats());
    }

    #[test]
    fn a_tenant_that_could_not_be_gathered_is_not_forgotten() {
        let mut world = World::new(300.0, 150.0, f64::INFINITY);
        world.run(100);
        let (route, home) = (world.route, world.home);
        assert_ne!((route, home), (Route::all(A), A));
        world.offered = World::TICK_CYCLES / (4.0 * 300.0 + World::BASE) / 4.0;
        world.stays = true;
        world.run(1000);
        assert_eq!((world.route, world.home), (route, home));
        world.stays = false;
        world.run(1000);
        assert_eq!((world.route, world.home), (Route::all(A), A), "{:?}", world.balancer.stats());
    }

    #[test]
    fn whatever_the_threshold_nothing_goes_to_and_fro() {
        let full = World::TICK_CYCLES / (4.0 * 300.0 + World::BASE);
        for threshold in [0.5, 0.7, 0.99] {
            for share in [0.3, 0.45, 0.55, 0.65, 0.8, 0.95, 1.5] {
                let mut world = World::new(300.0, 150.0, full * share);
                world.balancer = Balancer::new(threshold);
                world.run(500);
                let changes = world.changes;
                let stats = world.run(3000);
                assert!(
                    world.changes <= changes + 4,
                    "{threshold} {share}: {changes} {} {stats:?}",
                    world.changes
                );
            }
        }
    }

    #[test]
    fn what_a_turn_costs_whatever_it_moves_is_no_load() {
        let at = |busy, turn_costs| WorkerReading { busy, turn_costs, ..WorkerReading::default() };
        // Turns of 300 cycles and 100 for each frame: ten with one frame, ten with three.
        let (turns, frames, squares) = (20, 40, 100);
        let (cycles, frame_cycles) = (10 * 400 + 10 * 600, 10 * 400 + 10 * 3 * 600);
        let seen = [turns, frames, squares, cycles, frame_cycles];
        assert_eq!(needed(&at(0, [0; 5]), &at(2 * cycles, seen)).round(), 2.0 * 4000.0);
        // All alike: nothing to tell.
        let alike = [10, 640, 64 * 640, 67_000, 64 * 67_000];
        assert_eq!(needed(&at(500, [0; 5]), &at(67_500, alike)), 67_000.0);
        // Less for more frames: noise, of which no load below nothing comes.
        let strange = [2, 4, 10, 1000, 900 + 3 * 100];
        assert_eq!(needed(&at(0, [0; 5]), &at(1000, strange)), 100.0);
    }

    #[test]
    fn a_load_that_fits_is_left_alone() {
        let full = World::TICK_CYCLES / (4.0 * 300.0 + World::BASE);
        for share in [0.1, 0.5, 0.8] {
            let mut world = World::new(300.0, 150.0, full * share);
            let stats = world.run(500);
            assert_eq!((stats.tried, world.changes), (0, 0), "{share}");
        }
    }
}
