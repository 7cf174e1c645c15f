//! Workers that sleep while there is nothing to do: whoever has something for them wakes them, whatever the pause before it was, nobody is
//! forgotten who sends just as they fall asleep, and frames in = frames out + drops. Tenants over memif, in one process. Nothing but a call
//! ends a sleep here: one that is lost is a packet that does not come.

mod rig;
mod veth;

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use peregrine_dataplane::engine::{Change, Engine, Event};
use peregrine_dataplane::plan::{EndpointPlan, IdleMode, MemifPlan, PlacementMode, Plan, WorkerPlan};
use peregrine_dataplane::stats::{Stats, WokenBy};
use peregrine_dataplane::types::{CoreId, EndpointId, NetworkId, WorkerId};
use peregrine_memif::{ClientConfig, Interface, ServerConfig};
use rig::{DB, Dice, WEB, flow, mac, packets_of, plan, rings};
use rustix::event::epoll;
use veth::filter::{answer, if_less_skip, if_not_skip, install, load};

/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);
/// They sleep after twice that time.
const AFTER: Duration = Duration::from_micros(50);
/// They do not get up by themselves.
const FOR_EVER: Duration = Duration::from_secs(3600);

/// Threads are known by their names, so there is one engine at a time.
fn alone() -> MutexGuard<'static, ()> {
    static ALONE: Mutex<()> = Mutex::new(());
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn adaptive(workers: &[IdleMode], placement: PlacementMode) -> Plan {
    let cores: Vec<usize> = core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).collect();
    let worker = |(n, idle): (usize, &IdleMode)| WorkerPlan {
        idle: *idle,
        ..WorkerPlan::on(CoreId(cores[n % cores.len()]))
    };
    let mut plan = Plan {
        workers: workers.iter().enumerate().map(worker).collect(),
        placement,
        idle_after: AFTER,
        sleep_max: FOR_EVER,
        ..plan()
    };
    plan.networks[0].remotes.clear();
    plan
}

fn connect(engine: &mut Engine, endpoint: EndpointId) -> Interface {
    let (client, server) = peregrine_memif::pair(ClientConfig::default(), ServerConfig::default()).unwrap();
    engine.attach(endpoint, rings(server)).unwrap();
    client
}

/// Does what control does until it is so.
fn until<T>(engine: &mut Engine, what: &str, mut is_so: impl FnMut(&mut Engine) -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        assert_eq!(engine.poll(), []);
        if let Some(result) = is_so(engine) {
            return result;
        }
        assert!(Instant::now() < deadline, "{what}: {:?}", engine.stats());
        std::thread::yield_now();
    }
}

/// A thread on this core waits in the kernel. Those of workers do so nowhere but where they sleep, so it is not a busy one that may be there, too.
fn is_asleep(core: CoreId) -> bool {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap().flatten();
    let mut stats = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("stat")).ok());
    let name = format!("(worker-{}) ", core.0);
    stats.any(|stat| stat.split_once(&name).is_some_and(|(_, rest)| rest.starts_with('S')))
}

/// These sleep, and control has nothing for them that would wake them: each of several looks finds them so.
fn until_asleep(engine: &mut Engine, workers: &[usize]) {
    let mut looks = 0;
    until(engine, "it does not sleep", |engine| {
        let stats = engine.stats();
        let are_asleep = workers.iter().all(|worker| is_asleep(stats.workers[*worker].core));
        looks = if are_asleep { looks + 1 } else { 0 };
        (looks == 10).then_some(())
    });
}

fn send(from: &mut Interface, to: u8, number: u16) {
    let sender = if to == 1 { 2 } else { 1 };
    from.tx[0].push(&flow(mac(sender), mac(to), number, 30)).unwrap();
    from.tx[0].flush().unwrap();
}

/// Waits as a tenant does that polls; how long it took.
fn receive(engine: &mut Engine, tenant: &mut Interface, packets: usize) -> Duration {
    let (began, mut got) = (Instant::now(), 0);
    until(engine, "a packet was forgotten", |_| {
        got += packets_of(&mut tenant.rx[0]).len();
        (got >= packets).then_some(())
    });
    began.elapsed()
}

/// Until a packet comes through: both are attached then.
fn begin(engine: &mut Engine, from: &mut Interface, to: &mut Interface) {
    until(engine, "nothing comes through", |_| {
        send(from, 2, 0);
        let deadline = Instant::now() + Duration::from_millis(200);
        std::iter::from_fn(|| (Instant::now() < deadline).then(|| packets_of(&mut to.rx[0])))
            .any(|packets| !packets.is_empty())
            .then_some(())
    });
}

fn pause(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

fn stopped(engine: Engine) -> Stats {
    let stats = engine.stop();
    assert!(stats.totals.conserved, "{stats:?}");
    assert!(stats.drops.keys().all(|reason| *reason == "tenant_absent"), "{:?}", stats.drops);
    stats
}

fn woken(stats: &Stats) -> WokenBy {
    stats.workers.iter().fold(WokenBy::default(), |sum, worker| WokenBy {
        uplink: sum.uplink + worker.woken_by.uplink,
        tenants: sum.tenants + worker.woken_by.tenants,
        workers: sum.workers + worker.woken_by.workers,
        control: sum.control + worker.woken_by.control,
        time: sum.time + worker.woken_by.time,
    })
}

/// Packets to and fro, after pauses around those after which workers fall asleep. Half of the time the far one answers.
fn talk(engine: &mut Engine, web: &mut Interface, db: &mut Interface, packets: u16) -> Vec<Duration> {
    let mut dice = Dice::new(u64::from(packets));
    let mut times = Vec::new();
    for number in 0..packets {
        let time = match number % 8 {
            0 => Duration::from_millis(dice.below(15) as u64),
            1..4 => AFTER * 2 + Duration::from_nanos(dice.below(20_000) as u64),
            4..7 => Duration::from_nanos(dice.below(200_000) as u64),
            _ => Duration::ZERO,
        };
        pause(time);
        send(web, 2, number);
        times.push(receive(engine, db, 1));
        if dice.below(2) == 0 {
            send(db, 1, number);
            receive(engine, web, 1);
        }
    }
    times.sort();
    times
}

#[test]
fn a_packet_arrives_whatever_the_pause_before_it() {
    let _alone = alone();
    use IdleMode::{Adaptive, Busy};
    let cases: [(&[IdleMode], PlacementMode); 5] = [
        (&[Adaptive], PlacementMode::Balanced),
        (&[Adaptive, Adaptive], PlacementMode::RunToCompletion),
        (&[Adaptive, Busy], PlacementMode::Static),
        (&[Adaptive, Adaptive], PlacementMode::Static),
        (&[Adaptive, Adaptive, Adaptive, Adaptive], PlacementMode::Static), // two on each thread's core
    ];
    for (workers, placement) in cases {
        let mut engine = Engine::replay(&adaptive(workers, placement), vec![]).unwrap();
        let (mut web, mut db) = (connect(&mut engine, WEB), connect(&mut engine, DB));
        begin(&mut engine, &mut web, &mut db);
        let times = talk(&mut engine, &mut web, &mut db, 2000);
        let (median, worst) = (times[times.len() / 2], times[times.len() - 1]);
        let stats = stopped(engine);
        println!("{placement:?} {workers:?}: {median:?}, {worst:?} {:?}", woken(&stats));
        assert!(median < Duration::from_millis(5), "{median:?}");
        assert!(woken(&stats).tenants > 100, "{stats:?}");
        assert!(placement != PlacementMode::Static || woken(&stats).workers > 100, "{stats:?}");
        for (worker, idle) in stats.workers.iter().zip(workers) {
            assert_eq!((worker.idle, worker.sleeps > 0), (*idle, *idle == Adaptive), "{worker:?}");
        }
    }
}

#[test]
fn tenants_that_were_silent_for_long_wake_it_however_many_there_are() {
    let _alone = alone();
    const TENANTS: u16 = 300;
    let mut plan = adaptive(&[IdleMode::Adaptive], PlacementMode::Balanced);
    let endpoint = |id: u16| {
        let memif = MemifPlan::server(peregrine_memif::SocketAddr::Abstract("unused".into()), id.into());
        let address = peregrine_dataplane::types::MacAddr([2, 0, 0, 1, (id >> 8) as u8, id as u8]);
        EndpointPlan { announce: false, ..EndpointPlan::new(&format!("t{id}"), NetworkId(0), address, memif) }
    };
    plan.endpoints = (0..TENANTS).map(endpoint).collect();
    let mut engine = Engine::replay(&plan, vec![]).unwrap();
    let mut tenants: Vec<Interface> = (0..TENANTS).map(|id| connect(&mut engine, EndpointId(id))).collect();
    until_asleep(&mut engine, &[0]);
    let mut dice = Dice::new(1);
    for _ in 0..1000 {
        let (from, to) = (dice.below(300), dice.below(300));
        if from == to {
            continue;
        }
        let addresses = [from, to].map(|id| plan.endpoints[id].mac);
        tenants[from].tx[0].push(&flow(addresses[0], addresses[1], 7, 30)).unwrap();
        tenants[from].tx[0].flush().unwrap();
        receive(&mut engine, &mut tenants[to], 1);
        pause(Duration::from_nanos(dice.below(300_000) as u64));
    }
    let stats = stopped(engine);
    assert_eq!(stats.workers[0].unwatched, 0);
    assert!(woken(&stats).tenants > 50, "{stats:?}");
}

#[test]
fn a_tenant_with_several_queues_wakes_it_by_any_of_them() {
    let _alone = alone();
    let mut engine =
        Engine::replay(&adaptive(&[IdleMode::Adaptive], PlacementMode::Balanced), vec![]).unwrap();
    let config = ClientConfig { queue_pairs: 4, ..ClientConfig::default() };
    let server = ServerConfig { rings_max: 4, ..ServerConfig::default() };
    let (mut web, theirs) = peregrine_memif::pair(config, server).unwrap();
    engine.attach(WEB, rings(theirs)).unwrap();
    let mut db = connect(&mut engine, DB);
    let mut woken_by = [0; 4];
    for n in 0..200 {
        // Every fourth packet finds it asleep, by each queue in turn; those between come by all queues.
        let is_asleep = n % 4 == 0;
        let queue = if is_asleep { n / 4 % 4 } else { n % 4 };
        if is_asleep {
            until_asleep(&mut engine, &[0]);
        }
        let before = woken(&engine.stats()).tenants;
        web.tx[queue].push(&flow(mac(1), mac(2), 7, 30)).unwrap();
        web.tx[queue].flush().unwrap();
        receive(&mut engine, &mut db, 1);
        let woken = woken(&engine.stats()).tenants - before;
        woken_by[queue] += if is_asleep { woken } else { 0 };
    }
    let stats = stopped(engine);
    // Of 12 or 13 times each.
    assert!(woken_by.iter().all(|times| *times >= 10), "{woken_by:?} {stats:?}");
}

#[test]
fn what_control_wants_wakes_them() {
    let _alone = alone();
    for workers in [&[IdleMode::Adaptive; 1][..], &[IdleMode::Adaptive; 2][..]] {
        let all: Vec<usize> = (0..workers.len()).collect();
        let plan = adaptive(workers, PlacementMode::RunToCompletion);
        let mut engine = Engine::replay(&plan, vec![]).unwrap();
        let mut web = connect(&mut engine, WEB);
        for round in 0..20 {
            until_asleep(&mut engine, &all);
            let mut db = connect(&mut engine, DB);
            if workers.len() > 1 && round % 2 == 0 {
                until_asleep(&mut engine, &all);
                let to = WorkerId(1 - engine.home(DB).unwrap().0);
                until(&mut engine, "it does not move", |engine| engine.serve_at(DB, to).then_some(()));
            }
            until_asleep(&mut engine, &all);
            send(&mut web, 2, round);
            receive(&mut engine, &mut db, 1);
            until_asleep(&mut engine, &all);
            engine.detach(DB);
            let change =
                EndpointPlan { storm_limit: Some(1000 + u32::from(round)), ..plan.endpoints[1].clone() };
            engine.change(Change { endpoints: vec![(DB, Some(change))], ..Change::default() }).unwrap();
        }
        until_asleep(&mut engine, &all);
        let before = Instant::now();
        let stats = stopped(engine);
        let ended = before.elapsed();
        println!("ended in {ended:?}, {:?}", woken(&stats));
        assert!(ended < Duration::from_secs(5), "the end waits for those who sleep: {ended:?}");
        assert!(woken(&stats).control > 30, "{stats:?}");
    }
}

#[test]
fn workers_sleep_and_are_woken_where_they_come_to() {
    let _alone = alone();
    let cores: Vec<CoreId> =
        core_affinity::get_core_ids().unwrap().iter().map(|core| CoreId(core.id)).collect();
    let [first, second] = [cores[0], *cores.get(1).expect("two CPUs are needed")];
    let mut plan = adaptive(&[IdleMode::Busy; 2], PlacementMode::Static);
    plan.workers[0].idle = IdleMode::Adaptive;
    let mut engine = Engine::replay(&plan, vec![]).unwrap();
    let (mut web, mut db) = (connect(&mut engine, WEB), connect(&mut engine, DB));
    begin(&mut engine, &mut web, &mut db);
    let settle = |engine: &mut Engine| {
        until(engine, "workers do not come and go", |engine| engine.deadline().is_none().then_some(()));
    };
    for _ in 0..10 {
        // From a busy thread to one that sleeps, where both are then, and back.
        engine.remove_worker(second).unwrap();
        settle(&mut engine);
        until_asleep(&mut engine, &[0, 1]);
        talk(&mut engine, &mut web, &mut db, 20);
        engine.add_worker(&WorkerPlan::on(second)).unwrap();
        settle(&mut engine);
        until_asleep(&mut engine, &[0]);
        talk(&mut engine, &mut web, &mut db, 20);
        // One without queues comes, and goes.
        engine.add_worker(&WorkerPlan { idle: IdleMode::Adaptive, ..WorkerPlan::on(second) }).unwrap();
        settle(&mut engine);
        until_asleep(&mut engine, &[0, 2]);
        talk(&mut engine, &mut web, &mut db, 20);
        until_asleep(&mut engine, &[0, 2]);
        engine.remove_worker(second).unwrap();
        settle(&mut engine);
    }
    assert!(engine.cores().contains(&first));
    stopped(engine);
}

/// From this number on, no descriptor can be watched by epoll: that is for tenants that come late.
const UNWATCHED: u32 = 300;

/// From here on this thread, and those that it starts, get no epoll if `at` is 0, and otherwise watch no descriptors from that number on. A
/// seccomp filter that answers as a system does that has no room.
fn refuse_to_watch(at: u32) {
    let allow = answer(libc::SECCOMP_RET_ALLOW);
    let refuse = |why: libc::c_int| answer(libc::SECCOMP_RET_ERRNO | why as u32);
    if at == 0 {
        install(&mut [load(0), if_not_skip(libc::SYS_epoll_create1 as u32, 1), refuse(libc::EMFILE), allow]);
        return;
    }
    install(&mut [
        load(0), // the number of the system call
        if_not_skip(libc::SYS_epoll_ctl as u32, 5),
        load(24), // its second argument
        if_not_skip(libc::EPOLL_CTL_ADD as u32, 3),
        load(32), // its third one
        if_less_skip(at, 1),
        refuse(libc::ENOSPC),
        allow,
    ]);
}

/// Descriptors up to those that nobody can watch.
fn fill() -> Vec<OwnedFd> {
    let file = std::fs::File::open("/dev/null").unwrap();
    let more = || rustix::io::fcntl_dupfd_cloexec(&file, 0).unwrap();
    let is_last = |fd: &OwnedFd| std::os::fd::AsRawFd::as_raw_fd(fd) + 1 >= UNWATCHED as i32;
    let mut all = vec![more()];
    while !all.last().is_some_and(is_last) {
        all.push(more());
    }
    all
}

#[test]
fn a_tenant_that_no_epoll_has_room_for_gets_and_sends_its_packets_all_the_same() {
    let _alone = alone();
    refuse_to_watch(UNWATCHED);
    let plan = Plan {
        sleep_max: Duration::from_millis(10),
        ..adaptive(&[IdleMode::Adaptive], PlacementMode::Balanced)
    };
    let mut engine = Engine::replay(&plan, vec![]).unwrap();
    let mut web = connect(&mut engine, WEB);
    let full = fill();
    let mut db = connect(&mut engine, DB);
    begin(&mut engine, &mut web, &mut db);
    assert_eq!(engine.stats().workers[0].unwatched, 1);
    for number in 0..100 {
        let slept = engine.stats().workers[0].sleeps;
        until(&mut engine, "it does not sleep", |engine| {
            (engine.stats().workers[0].sleeps > slept).then_some(())
        });
        // It is not called for this one, but looks.
        send(&mut db, 1, number);
        let took = receive(&mut engine, &mut web, 1);
        assert!(took < Duration::from_secs(1), "{took:?}");
        send(&mut web, 2, number);
        receive(&mut engine, &mut db, 1);
    }
    // One that comes in its place when there is room again is watched.
    drop((full, db));
    engine.detach(DB);
    let mut db = connect(&mut engine, DB);
    begin(&mut engine, &mut web, &mut db);
    assert_eq!(engine.stats().workers[0].unwatched, 1);
    let stats = stopped(engine);
    assert!(woken(&stats).time > 20, "{stats:?}");
}

/// Among busy ones, and where it comes to a thread that may sleep: there all tenants are watched at once.
#[test]
fn tenants_are_looked_at_where_a_worker_comes_to_that_cannot_watch_them() {
    let _alone = alone();
    refuse_to_watch(UNWATCHED);
    let cores: Vec<usize> = core_affinity::get_core_ids().unwrap().iter().map(|core| core.id).collect();
    let second = CoreId(*cores.get(1).expect("two CPUs are needed"));
    let mut plan = adaptive(&[IdleMode::Adaptive, IdleMode::Busy], PlacementMode::RunToCompletion);
    plan.sleep_max = Duration::from_millis(10);
    let mut engine = Engine::replay(&plan, vec![]).unwrap();
    let _full = fill();
    let (mut web, mut db) = (connect(&mut engine, WEB), connect(&mut engine, DB));
    for endpoint in [WEB, DB] {
        until(&mut engine, "it does not move", |engine| {
            let is_there = engine.home(endpoint) == Some(WorkerId(1));
            (is_there || engine.serve_at(endpoint, WorkerId(1))).then_some(())
        });
    }
    begin(&mut engine, &mut web, &mut db);
    let before = engine.stats().workers[1].unwatched;
    engine.remove_worker(second).unwrap();
    until(&mut engine, "it does not come", |engine| engine.deadline().is_none().then_some(()));
    talk(&mut engine, &mut web, &mut db, 100);
    let stats = stopped(engine);
    assert_eq!(stats.workers[1].unwatched - before, 2, "{stats:?}");
}

#[test]
fn a_worker_that_gets_no_epoll_stays_awake() {
    let _alone = alone();
    refuse_to_watch(0);
    let plan = adaptive(&[IdleMode::Adaptive], PlacementMode::Balanced);
    let mut engine = Engine::replay(&plan, vec![]).unwrap();
    let (mut web, mut db) = (connect(&mut engine, WEB), connect(&mut engine, DB));
    begin(&mut engine, &mut web, &mut db);
    talk(&mut engine, &mut web, &mut db, 200);
    assert_eq!(stopped(engine).workers[0].sleeps, 0);
}

/// So many times each of so many epolls watches an eventfd: to signal it then takes milliseconds, in which it is locked.
const WATCHERS: usize = 120;

fn watchers(event: BorrowedFd<'_>) -> Vec<OwnedFd> {
    let many: Vec<_> = (0..WATCHERS).map(|_| event.try_clone_to_owned().unwrap()).collect();
    let set = |_| {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for (number, event) in (0..).zip(&many) {
            epoll::add(&set, event, epoll::EventData::new_u64(number), epoll::EventFlags::IN).unwrap();
        }
        set
    };
    let sets: Vec<_> = (0..WATCHERS).map(set).collect();
    many.into_iter().chain(sets).collect()
}

/// Ends who signals, even if a look in between fails.
struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// It comes and goes, and makes the worker wait each time for who signals its eventfd without end.
#[test]
fn a_tenant_whose_eventfd_is_slow_to_watch_is_put_out() {
    let _alone = alone();
    let plan = adaptive(&[IdleMode::Adaptive], PlacementMode::Balanced);
    let mut engine = Engine::replay(&plan, vec![]).unwrap();
    // Who signals has a core for itself, beside the worker's.
    let cores = core_affinity::get_core_ids().unwrap();
    let [here, elsewhere] = [cores[0], *cores.get(1).expect("two CPUs are needed")];
    core_affinity::set_for_current(here);
    let deadline = Instant::now() + 4 * PATIENCE;
    let mut put_out = None;
    for round in 1.. {
        let (_client, server) =
            peregrine_memif::pair(ClientConfig::default(), ServerConfig::default()).unwrap();
        let event = server.rx[0].event_fd().try_clone_to_owned().unwrap();
        let _watchers = watchers(event.as_fd());
        let is_over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                core_affinity::set_for_current(elsewhere);
                while !is_over.load(Ordering::Relaxed) {
                    rustix::io::write(&event, &1u64.to_ne_bytes()).unwrap();
                }
            });
            let _over = Over(&is_over);
            engine.attach(WEB, rings(server)).unwrap();
            for _ in 0..2 {
                let end = Instant::now() + Duration::from_millis(20);
                while Instant::now() < end && put_out.is_none() {
                    put_out = engine.poll().pop();
                }
                engine.detach(WEB);
            }
        });
        if put_out.is_some() {
            println!("in round {round}");
            break;
        }
        assert!(Instant::now() < deadline, "it was never put out");
    }
    let reason = "waking it through its eventfd takes too long".to_owned();
    assert_eq!(put_out, Some(Event::TenantFault { endpoint: WEB, reason }));
    stopped(engine);
}
