//! What the balancer decides, done: reads the counters for it, gives flows another way, and moves tenants from worker to worker.

use std::time::{Duration, Instant};

use super::Engine;
use super::workers::{Presence, WorkerHandle};
use crate::balance::model::Change;
use crate::balance::{BalanceStats, Balancer, Detail, Reading, TICK, WorkerReading};
use crate::clock::cycles;
use crate::mailbox::{Order, Returned};
use crate::types::{EndpointId, Stage, WorkerId};

/// What all workers may take until nothing is under way; no move of a tenant is worth a longer pause.
pub(super) const PAUSE_PATIENCE: Duration = Duration::from_millis(5);
/// What two of them may take to let go of a tenant and to take it up.
const HANDOVER_PATIENCE: Duration = Duration::from_millis(20);

/// When a worker has taken some of the orders that it has no room for all of.
const ORDERS_LOOK: Duration = Duration::from_millis(1);

/// The balancer and when it looks next.
#[derive(Debug)]
pub(super) struct Balancing {
    balancer: Balancer,
    next: Instant,
}

impl Balancing {
    pub(super) fn new(threshold_percent: u8) -> Balancing {
        Balancing { balancer: Balancer::new(f64::from(threshold_percent) / 100.0), next: Instant::now() }
    }

    pub(super) fn stats(&self) -> BalanceStats {
        self.balancer.stats()
    }
}

impl Engine {
    /// When [`poll`](Engine::poll) has something to do at the latest, besides what others ask for.
    pub fn deadline(&self) -> Option<Instant> {
        let balancing = self.balancing.as_ref().map(|balancing| balancing.next);
        // Workers take their orders within microseconds.
        let has_more = self.workers.iter().any(|worker| !worker.outbox.is_empty());
        let orders = has_more.then(|| Instant::now() + ORDERS_LOOK);
        let others = [
            self.rules.deadline(),
            self.remotes.deadline(),
            self.announcing.deadline(),
            self.lives.deadline(),
        ];
        [balancing, orders, self.due].into_iter().chain(others).flatten().min()
    }

    /// One look, if it is time.
    pub(super) fn balance(&mut self) {
        let now = Instant::now();
        let Some(mut balancing) = self.balancing.take_if(|balancing| balancing.next <= now) else { return };
        balancing.next = now + TICK;
        let decision = balancing.balancer.tick(self.reading(), || self.detail());
        if let Some(is_counted) = decision.count {
            for worker in 0..self.workers.len() {
                self.placement.count_entering(WorkerId(worker as u8), is_counted);
            }
        }
        for change in decision.changes {
            let is_done = match change {
                Change::Route { entry, bucket, route } => self.place(entry, bucket, route),
                Change::Home { endpoint, worker } => self.serve_at(endpoint, worker) || decision.is_undone,
            };
            if !is_done {
                balancing.balancer.abandon();
                break;
            }
        }
        self.balancing = Some(balancing);
    }

    fn reading(&self) -> Reading {
        let mut reading = Reading { at: cycles(), ..Reading::default() };
        for worker in &self.workers {
            let counters = &worker.counters;
            reading.workers.push(WorkerReading {
                busy: counters.cycles_busy.get(),
                turn_costs: counters.turn_costs.read(),
                running: counters.cycles_total.get().saturating_sub(counters.cycles_stalled.get()),
                inward: counters.uplink_rx.frames(),
                outward: counters.tenant_rx.frames.get(),
                delivered: counters.tenant_tx.frames.get(),
                sent: counters.uplink_tx.frames(),
                core: worker.thread,
                is_there: worker.presence == Presence::Present,
                serves: worker.sends,
            });
            for (sum, stage) in reading.stages.iter_mut().zip(Stage::ALL) {
                if let Some(counters) = counters.stage(stage) {
                    sum.0 += counters.sampled_frames.get();
                    sum.1 += counters.sampled_cycles.get();
                }
            }
        }
        reading
    }

    fn detail(&self) -> Detail {
        let enters = |worker: &WorkerId| self.workers.get(worker.index()).is_some_and(|worker| worker.sends);
        let entry = |worker: WorkerId| match self.placement.entered(worker).filter(|_| enters(&worker)) {
            Some(entered) => (0..=u8::MAX)
                .zip(entered)
                .map(|(bucket, counts)| {
                    (self.placement.wanted(worker, bucket), counts.inward.get(), counts.outward.get())
                })
                .collect(),
            None => Vec::new(),
        };
        let entries = (0..self.workers.len()).map(|worker| entry(WorkerId(worker as u8))).collect();
        let tenants = self.connections.iter().enumerate().filter_map(|(index, connection)| {
            let (endpoint, home) = (EndpointId(index as u16), connection.home?);
            let counters = || self.workers.iter().filter_map(|worker| worker.counters.endpoint(endpoint));
            let to = counters().map(|counters| counters.to_tenant.frames.get()).sum();
            let from = counters().map(|counters| counters.from_tenant.frames.get()).sum();
            Some((endpoint, home, to, from))
        });
        Detail { entries, tenants: tenants.collect() }
    }

    /// Lets another worker serve a tenant. Nothing may be under way then, or packets to or from it could be overtaken: all workers
    /// take nothing in for some microseconds, while rings of NIC and tenants hold what comes. False if nobody is attached there, that
    /// worker serves it already or can serve none, or the workers do not come to rest in time.
    pub fn serve_at(&mut self, endpoint: EndpointId, to: WorkerId) -> bool {
        let connection = self.connections.get(endpoint.index()).copied().unwrap_or_default();
        let Some(from) = connection.home.filter(|from| *from != to) else { return false };
        let can_serve = |worker: &WorkerHandle| {
            worker.sends && worker.presence == Presence::Present && worker.outbox.is_empty()
        };
        if !self.workers.get(to.index()).is_some_and(can_serve) {
            return false;
        }
        let serial = connection.serial;
        self.pause(PAUSE_PATIENCE, |engine| engine.hand_tenant(endpoint, serial, from, to))
    }

    /// Does something while nothing is under way and all workers take nothing in, which takes some microseconds. False if
    /// they do not come to rest in time, or if it could not be done. Who is between two threads cannot say that it rests: then nobody
    /// is asked.
    pub(super) fn pause(&mut self, patience: Duration, act: impl FnOnce(&mut Engine) -> bool) -> bool {
        if self.is_somebody_between_threads() {
            return false;
        }
        self.pauses = self.pauses.wrapping_add(1).max(1); // 0 is none
        let number = self.pauses;
        self.placement.ask_pause(number);
        self.workers.iter().for_each(|worker| worker.mailbox.call());
        // Who has no frames has none under way: those of others that lie with him are not home.
        let with_frames = |it: &WorkerId| self.workers.get(it.index()).is_some_and(|it| it.frames_total > 0);
        let with_frames: Vec<WorkerId> = self.present().filter(with_frames).collect();
        let is_done = wait(patience, || with_frames.iter().all(|it| self.placement.is_paused(*it, number)))
            && act(self);
        self.placement.ask_pause(0);
        is_done
    }

    /// While all workers pause.
    fn hand_tenant(&mut self, endpoint: EndpointId, serial: u64, from: WorkerId, to: WorkerId) -> bool {
        let Some(giver) = self.workers.get_mut(from.index()) else { return false };
        giver.send(Order::Detach { endpoint, serial });
        let deadline = Instant::now() + HANDOVER_PATIENCE;
        let mut is_put_out = false;
        // What comes too late, because the worker has lost its core, is attached again by the next poll.
        let rings = loop {
            let Some(giver) = self.workers.get_mut(from.index()) else { return false };
            giver.flush();
            match giver.mailbox.take_returned() {
                Some(Returned::Tenant(tenant)) if tenant.serial == serial && tenant.fault.is_none() => {
                    break tenant.rings;
                }
                Some(other) => {
                    // It was put out just before.
                    is_put_out |= matches!(&other, Returned::Tenant(it) if it.serial == serial);
                    self.returned.push(other); // for the next poll
                }
                None if is_put_out || Instant::now() >= deadline => return false,
                None => std::thread::yield_now(),
            }
        };
        if let Some(connection) = self.connections.get_mut(endpoint.index()) {
            connection.home = Some(to);
        }
        self.publish_home(endpoint);
        let Some(taker) = self.workers.get_mut(to.index()) else { return false };
        taker.send(Order::Attach { endpoint, serial, rings });
        wait(HANDOVER_PATIENCE, || taker.mailbox.is_read())
    }
}

/// Looks again and again until it is so; false if that takes longer.
fn wait(patience: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + patience;
    while !is_so() {
        if Instant::now() >= deadline {
            return false;
        }
        std::thread::yield_now();
    }
    true
}
