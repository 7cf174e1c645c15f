//! How flows and tenants move from worker to worker, under the loom model checker: every interleaving, and every reordering that
//! the memory model allows, within a bound on preemptions. The rings, the buckets, the placement and the pool are the crate's own;
//! the workers turn as `worker.rs` does, frame by frame, with steps that do nothing but the last, and control changes its mind as
//! `engine.rs` and `engine/balancing.rs` do.
//!
//! Where a guard keeps the order, the model is also run without it, and must fail then.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p peregrine-dataplane --lib --release mesh::loom_tests`

use std::ops::Range;
use std::rc::Rc;

use loom::cell::Cell;
use loom::sync::Mutex;
use loom::thread;

use super::*;
use crate::bell::{Bell, Caller};
use crate::sync::AtomicBool;
use crate::sync::Ordering::{Acquire, Release};
use crate::types::{EndpointId, Route};

/// Where the frames enter.
const A: WorkerId = WorkerId(0);
const B: WorkerId = WorkerId(1);
const TENANT: EndpointId = EndpointId(0);
const NETWORK: NetworkId = NetworkId(0);
const HERE: Route = Route::all(A);
const ELSEWHERE: Route = Route::new(A, B, A);

/// What a model leaves out, to see that it is needed.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Without {
    Nothing,
    /// A bucket changes its way whatever is under way.
    BucketGuard,
    /// A worker says that all is home whatever is under way, and however many wait.
    Rest,
}

/// One flow into one tenant.
#[derive(Clone, Copy)]
struct Model {
    frames: u32,
    preemptions: usize,
    /// How often each worker turns while the others are at work.
    turns: (usize, usize),
    /// The way of the flow and who serves the tenant, at the start.
    route: Route,
    home: WorkerId,
    /// B serves another tenant, so A looks where its frames go.
    b_serves: bool,
    /// What control does meanwhile.
    change: fn(&Control),
}

impl Model {
    fn check(self, without: Without) {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(self.preemptions);
        builder.max_branches = 10_000;
        builder.check(move || self.run(without));
    }

    fn run(self, without: Without) {
        let placement = Arc::new(Placement::new(&[A, B], 1, 1));
        let tenant = Rc::new(Tenant { got: Cell::new(Vec::new()), at: Cell::new(self.home) });
        let control = Control { placement: placement.clone(), tenant: tenant.clone() };
        control.publish_home(self.home);
        placement.want(A, 0, self.route);
        control.let_b_serve(self.b_serves);

        let mut workers =
            mesh(&placement, &bells(), Lanes::ONE, self.frames as usize).into_iter().map(|mesh| {
                let (coming, turns) =
                    if mesh.me() == A { (0..self.frames, self.turns.0) } else { (0..0, self.turns.1) };
                let worker = Worker::new(mesh, coming, tenant.clone(), without);
                thread::spawn(move || worker.run(turns))
            });
        let (a, b) = (workers.next().unwrap(), workers.next().unwrap());
        (self.change)(&control);
        let (mut a, mut b) = (a.join().unwrap(), b.join().unwrap());
        // What is left is done in peace: had they gone on at once, the checker would not come to an end.
        for _ in 0..2 * (self.frames + 2) {
            a.turn();
            b.turn();
        }
        let got = tenant.got.take();
        assert!(got.is_sorted(), "overtaken: {got:?}");
        assert_eq!(got.len(), self.frames as usize, "lost: {got:?}");
        assert_eq!(a.pool.available(), a.pool.capacity());
    }
}

/// What the tenant got, and who serves it. Nothing but the protocol keeps those apart who use it: the checker reports those that
/// can do so at once.
struct Tenant {
    got: Cell<Vec<u32>>,
    at: Cell<WorkerId>,
}

struct Control {
    placement: Arc<Placement>,
    tenant: Rc<Tenant>,
}

impl Control {
    fn publish_home(&self, home: WorkerId) {
        self.placement.set_home(TENANT, Some(home));
        self.placement.set_serving(1 << home.0);
        self.placement.set_present(NETWORK, 1 << home.0);
    }

    fn want(&self, route: Route) {
        self.placement.want(A, 0, route);
    }

    /// Another tenant.
    fn let_b_serve(&self, b_serves: bool) {
        let home = self.placement.home(TENANT).map_or(0, |home| 1 << home.0);
        self.placement.set_serving(home | u32::from(b_serves) << B.0);
    }

    /// Its patience is short, as the engine's is.
    fn move_tenant(&self, number: u32, to: WorkerId) {
        self.placement.ask_pause(number);
        let mut looks = 0..2;
        while ![A, B].into_iter().all(|it| self.placement.is_paused(it, number)) {
            if looks.next().is_none() {
                return self.placement.ask_pause(0);
            }
            thread::yield_now();
        }
        self.tenant.at.set(to);
        self.publish_home(to);
        self.placement.ask_pause(0);
    }
}

struct Worker {
    mesh: Mesh,
    pool: FramePool,
    /// Frames that are yet to come in.
    coming: Range<u32>,
    tenant: Rc<Tenant>,
    /// A pool that has nothing under way, to be asked instead of the right one.
    wrong_pool: Option<FramePool>,
    always_rests: bool,
}

impl Worker {
    fn new(mesh: Mesh, coming: Range<u32>, tenant: Rc<Tenant>, without: Without) -> Worker {
        let mut pool = FramePool::anonymous(512, 2 * coming.len(), 0); // all may be under way, which half of them may
        pool.set_owner(mesh.me());
        let wrong_pool = (without == Without::BucketGuard).then(|| FramePool::anonymous(512, 0, 0));
        Worker { mesh, pool, coming, tenant, wrong_pool, always_rests: without == Without::Rest }
    }

    /// Turns so many times.
    fn run(mut self, turns: usize) -> Worker {
        for _ in 0..turns {
            let before = self.coming.len();
            self.turn();
            if self.coming.len() == before {
                thread::yield_now();
            }
        }
        self
    }

    fn rests(&self) -> bool {
        self.pool.all_under_way() == 0 && self.mesh.waiting() == 0
    }

    fn turn(&mut self) {
        let mut burst = Burst::new();
        self.mesh.homecoming(&mut self.pool);
        let mut looks = self.mesh.begin_turn();
        if self.always_rests || self.rests() {
            self.mesh.all_home();
        }
        while looks > 0 {
            let pool = self.wrong_pool.as_ref().unwrap_or(&self.pool);
            let Some(stage) = self.mesh.released(&mut burst, &mut looks, pool) else { break };
            self.go_on(stage, &mut burst);
        }
        for other in 0..self.mesh.others() {
            while let Some(stage) = self.mesh.arrivals(other, 0, &mut burst) {
                self.go_on(stage, &mut burst);
            }
        }
        if self.mesh.takes_in()
            && let Some(number) = self.coming.next()
        {
            self.take_in(number, &mut burst);
        }
    }

    fn take_in(&mut self, number: u32, burst: &mut Burst) {
        let mut frame = self.pool.take().unwrap();
        frame.meta.target = Target::Endpoint(TENANT);
        frame.meta.flow_hash = number;
        if self.mesh.is_plain() {
            return self.deliver(frame);
        }
        let pool = self.wrong_pool.as_ref().unwrap_or(&self.pool);
        if let Some(frame) = self.mesh.enter(frame, Stage::Decap, pool).unwrap() {
            burst.push(frame).unwrap();
            self.go_on(Stage::Decap, burst);
        }
    }

    /// Takes the frames through the steps that are this worker's, and gives them to whoever has the next one.
    fn go_on(&mut self, first: Stage, burst: &mut Burst) {
        for frame in burst.drain() {
            let mut stage = first;
            loop {
                let to = self.mesh.worker_for(stage, &frame);
                if to != self.mesh.me() {
                    self.mesh.hand_over(frame, to, stage, &mut self.pool).unwrap();
                    break;
                }
                if stage == Stage::Deliver {
                    self.deliver(frame);
                    break;
                }
                stage = stage.next().unwrap();
            }
        }
        self.mesh.settle(&mut self.pool);
    }

    fn deliver(&mut self, frame: Frame) {
        assert_eq!(self.tenant.at.get(), self.mesh.me(), "delivered where the tenant is not");
        let mut got = self.tenant.got.take();
        got.push(frame.meta.flow_hash);
        self.tenant.got.set(got);
        self.pool.put(frame);
    }
}

/// A flow takes its look-ups back while its frames come in.
const FLOW: Model = Model {
    frames: 2,
    preemptions: 2,
    turns: (3, 2),
    route: ELSEWHERE,
    home: A,
    b_serves: true, // so that A never stops looking at its buckets
    change: |control| control.want(HERE),
};
/// It gives them away and takes them back.
const FLOW_THERE_AND_BACK: Model = Model {
    preemptions: 1,
    route: HERE,
    change: |control| {
        control.want(ELSEWHERE);
        control.want(HERE);
    },
    ..FLOW
};

#[test]
fn a_flow_that_moves_keeps_its_order() {
    FLOW.check(Without::Nothing);
}

#[test]
fn a_flow_that_moves_twice_keeps_its_order() {
    FLOW_THERE_AND_BACK.check(Without::Nothing);
}

#[test]
#[should_panic(expected = "overtaken")]
fn a_flow_that_does_not_wait_for_its_frames_is_overtaken() {
    FLOW.check(Without::BucketGuard);
}

/// With its last flow that went elsewhere, its worker has nothing more to look at.
const BECOMES_PLAIN: Model = Model { preemptions: 1, b_serves: false, ..FLOW };
/// The same when a tenant comes to the other worker just then.
const TENANT_COMES: Model = Model {
    change: |control| {
        control.want(HERE);
        control.let_b_serve(true);
    },
    ..BECOMES_PLAIN
};
/// And when the last one there leaves.
const TENANT_GOES: Model = Model {
    b_serves: true,
    change: |control| {
        control.want(HERE);
        control.let_b_serve(false);
    },
    ..BECOMES_PLAIN
};

#[test]
fn a_worker_that_becomes_plain_keeps_the_order() {
    BECOMES_PLAIN.check(Without::Nothing);
}

#[test]
fn a_tenant_that_comes_elsewhere_does_not_change_the_order() {
    TENANT_COMES.check(Without::Nothing);
}

#[test]
fn a_tenant_that_goes_elsewhere_does_not_change_the_order() {
    TENANT_GOES.check(Without::Nothing);
}

#[test]
#[should_panic(expected = "overtaken")]
fn a_worker_that_becomes_plain_too_soon_overtakes() {
    BECOMES_PLAIN.check(Without::Rest);
}

/// A tenant goes from the worker where its frames enter to the other one; look-ups are there already.
const TENANT_FOLLOWS: Model = Model { preemptions: 1, change: |control| control.move_tenant(1, B), ..FLOW };
/// The same when nothing has left its worker before.
const TENANT_LEAVES: Model = Model { preemptions: 2, route: HERE, b_serves: false, ..TENANT_FOLLOWS };
/// And back.
const TENANT_RETURNS: Model =
    Model { preemptions: 1, home: B, change: |control| control.move_tenant(1, A), ..TENANT_LEAVES };

#[test]
fn a_tenant_follows_its_flow() {
    TENANT_FOLLOWS.check(Without::Nothing);
}

#[test]
fn a_tenant_leaves_a_plain_worker() {
    TENANT_LEAVES.check(Without::Nothing);
}

#[test]
fn a_tenant_returns_to_its_flow() {
    TENANT_RETURNS.check(Without::Nothing);
}

#[test]
#[should_panic(expected = "overtaken")]
fn a_tenant_that_follows_before_all_is_home_sees_them_overtaken() {
    TENANT_FOLLOWS.check(Without::Rest);
}

/// Two workers at the tenant at once.
#[test]
#[should_panic(expected = "Causality violation")]
fn a_tenant_that_returns_before_all_is_home_is_given_to_by_both() {
    TENANT_RETURNS.check(Without::Rest);
}

/// What `engine/workers.rs` tells a worker by its mailbox: its ends to another one.
#[derive(Default)]
struct Post(Mutex<Option<Links>>);

impl Post {
    fn send(&self, links: Links) {
        *self.0.lock().unwrap() = Some(links);
    }

    fn is_read(&self) -> bool {
        self.0.lock().unwrap().is_none()
    }

    fn obey(&self, worker: &mut Worker) {
        if let Some(mut links) = self.0.lock().unwrap().take() {
            worker.mesh.relink(&mut links, B);
        }
    }
}

/// Looks twice, while others go on.
fn looks(is_so: impl Fn() -> bool) -> bool {
    is_so() || {
        thread::yield_now();
        is_so()
    }
}

/// All that came in has arrived in its order, and is home.
fn check_arrived(a: &Worker, tenant: &Tenant, frames: u32) {
    let got = tenant.got.take();
    assert!(got.is_sorted(), "overtaken: {got:?}");
    assert_eq!(got.len(), frames as usize, "lost: {got:?}");
    assert_eq!(a.pool.available(), a.pool.capacity());
}

/// B comes while frames come in at A, and gets their look-ups: once A has its rings to it, or at once.
fn join_while_frames_come(waits_for_rings: bool) {
    const FRAMES: u32 = 2;
    let placement = Arc::new(Placement::new(&[A], 1, 1));
    let tenant = Rc::new(Tenant { got: Cell::new(Vec::new()), at: Cell::new(A) });
    let control = Control { placement: placement.clone(), tenant: tenant.clone() };
    control.publish_home(A);
    let post = Rc::new(Post::default());
    let mesh_a = mesh(&placement, &bells(), Lanes::ONE, FRAMES as usize).pop().unwrap();
    let mut a = Worker::new(mesh_a, 0..FRAMES, tenant.clone(), Without::Nothing);
    let letters = post.clone();
    let a = thread::spawn(move || {
        for _ in 0..3 {
            letters.obey(&mut a);
            a.turn();
        }
        a
    });
    let (mesh_b, mut theirs) =
        join(&placement, (B, &Arc::default()), &[(A, Arc::default())], Lanes::ONE, FRAMES as usize);
    let b = Worker::new(mesh_b, 0..0, tenant.clone(), Without::Nothing);
    let b = thread::spawn(move || b.run(2));
    thread::yield_now();
    post.send(theirs.pop().unwrap());
    if !waits_for_rings || looks(|| post.is_read()) {
        placement.come(B, A);
        control.want(ELSEWHERE);
    }
    let (mut a, mut b) = (a.join().unwrap(), b.join().unwrap());
    post.obey(&mut a);
    for _ in 0..2 * (FRAMES + 2) {
        a.turn();
        b.turn();
    }
    check_arrived(&a, &tenant, FRAMES);
}

/// B goes while frames come in at A whose look-ups it has: once A, who has them all, has said that none is under way, or at once. It
/// is not asked whether it rests, and turns no more from then on.
fn leave_while_frames_come(waits_for_rest: bool) {
    const FRAMES: u32 = 2;
    let placement = Arc::new(Placement::new(&[A, B], 1, 1));
    let tenant = Rc::new(Tenant { got: Cell::new(Vec::new()), at: Cell::new(A) });
    let control = Control { placement: placement.clone(), tenant: tenant.clone() };
    control.publish_home(A);
    control.want(ELSEWHERE);
    let mut meshes = mesh(&placement, &bells(), Lanes::ONE, FRAMES as usize).into_iter();
    let a = Worker::new(meshes.next().unwrap(), 0..FRAMES, tenant.clone(), Without::Nothing);
    let mut b = Worker::new(meshes.next().unwrap(), 0..0, tenant.clone(), Without::Nothing);
    let is_called_back = Arc::new(AtomicBool::new(false));
    let call = is_called_back.clone();
    let a = thread::spawn(move || a.run(3));
    let b = thread::spawn(move || {
        for _ in 0..2 {
            if call.load(Acquire) {
                break;
            }
            b.turn();
            thread::yield_now();
        }
        b
    });
    thread::yield_now();
    placement.go(B);
    placement.ask_pause(1);
    let goes = !waits_for_rest || looks(|| placement.is_paused(A, 1));
    placement.ask_pause(0);
    is_called_back.store(goes, Release);
    let (mut a, mut b) = (a.join().unwrap(), b.join().unwrap());
    if goes {
        a.mesh.relink(&mut vec![None, None].into(), B);
    }
    for _ in 0..2 * (FRAMES + 2) {
        a.turn();
        if !goes {
            b.turn();
        }
    }
    check_arrived(&a, &tenant, FRAMES);
}

/// Of workers that never sleep.
fn bells() -> [Arc<Bell>; 2] {
    Default::default()
}

/// B falls asleep while A gives it frames, or control wants a pause: in the end it does not sleep, or was called, or nothing is there.
fn fall_asleep_beside(frames: u32, wants_pause: bool, looks_again: bool) {
    let placement = Arc::new(Placement::new(&[A, B], 1, 1));
    let tenant = Rc::new(Tenant { got: Cell::new(Vec::new()), at: Cell::new(A) });
    let control = Control { placement: placement.clone(), tenant: tenant.clone() };
    control.publish_home(A);
    control.let_b_serve(true);
    control.want(ELSEWHERE);
    let bells = bells();
    bells.iter().for_each(|bell| bell.allow(true));
    let mut meshes = mesh(&placement, &bells, Lanes::ONE, frames as usize).into_iter();
    let a = Worker::new(meshes.next().unwrap(), 0..frames, tenant.clone(), Without::Nothing);
    let mut b = Worker::new(meshes.next().unwrap(), 0..0, tenant.clone(), Without::Nothing);
    let [_, bell] = bells;
    let sleeper = bell.clone();
    let a = thread::spawn(move || a.run(frames as usize));
    let b = thread::spawn(move || {
        b.turn();
        sleeper.lie_down();
        let is_asleep = !looks_again || !b.mesh.has_work();
        if !is_asleep {
            sleeper.get_up();
        }
        (b, is_asleep)
    });
    if wants_pause {
        placement.ask_pause(1);
        bell.ring(Caller::Control);
    }
    let (mut a, (mut b, is_asleep)) = (a.join().unwrap(), b.join().unwrap());
    let is_called = bell.get_up().is_some();
    assert!(!is_asleep || is_called || !b.mesh.has_work(), "forgotten");
    placement.ask_pause(0);
    for _ in 0..2 * (frames + 2) {
        a.turn();
        b.turn();
    }
    check_arrived(&a, &tenant, frames);
}

fn check(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(1);
    builder.max_branches = 10_000;
    builder.check(model);
}

#[test]
fn a_worker_joins_while_frames_come() {
    check(|| join_while_frames_come(true));
}

/// Its first frame finds no ring.
#[test]
#[should_panic(expected = "Result::unwrap")]
fn a_worker_that_is_used_before_all_have_their_rings_to_it_loses_frames() {
    check(|| join_while_frames_come(false));
}

#[test]
fn a_worker_leaves_while_frames_come() {
    check(|| leave_while_frames_come(true));
}

#[test]
#[should_panic(expected = "lost")]
fn a_worker_that_leaves_before_all_rest_takes_frames_along() {
    check(|| leave_while_frames_come(false));
}

#[test]
fn nobody_sleeps_beside_frames() {
    check(|| fall_asleep_beside(2, false, true));
}

#[test]
#[should_panic(expected = "forgotten")]
fn who_does_not_look_again_sleeps_beside_frames() {
    check(|| fall_asleep_beside(1, false, false));
}

#[test]
fn nobody_sleeps_while_control_waits() {
    check(|| fall_asleep_beside(1, true, true));
}

#[test]
#[should_panic(expected = "forgotten")]
fn who_does_not_look_again_lets_control_wait() {
    check(|| fall_asleep_beside(0, true, false));
}
