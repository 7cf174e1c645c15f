//! The tenants' edge: several queues, many tenants, and nothing of one in the memory of another.

mod rig;

use std::collections::HashMap;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use peregrine_dataplane::counters::DropReason;
use peregrine_dataplane::plan::{EndpointPlan, Plan};
use peregrine_dataplane::tenants::{BAD_DESCRIPTORS_MAX, Detached, Taken, Tenants};
use peregrine_dataplane::types::{EndpointId, MacAddr, NetworkId, RemoteId};
use rig::*;
use rustix::event::{PollFd, PollFlags, Timespec, epoll, poll};

const FAR: u8 = 0x77;

#[test]
fn a_flow_stays_on_its_queue_and_flows_use_all_of_them() {
    let mut rig = Rig::with_queues(plan(), 4);
    let mut queue_of = HashMap::new();
    for round in 0..3 {
        let frames: Vec<_> = (0..64)
            .map(|port| vxlan(REMOTE_A, BLUE, &flow(mac(FAR), mac(1), 1000 + port, 20 + round)))
            .collect();
        rig.receive(&frames);
        for queue in 0..4 {
            for packet in rig.queue_gives(WEB, queue) {
                let port = u16::from_be_bytes([packet[34], packet[35]]);
                assert_eq!(*queue_of.entry(port).or_insert(queue), queue, "port {port} in round {round}");
            }
        }
    }
    assert_eq!(queue_of.len(), 64, "all have come");
    for queue in 0..4 {
        let flows = queue_of.values().filter(|&&other| other == queue).count();
        assert!((6..=32).contains(&flows), "queue {queue} has {flows} of 64 flows");
    }
}

#[test]
fn all_queues_of_a_tenant_share_its_turn() {
    let mut rig = Rig::with_queues(plan(), 4);
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    for queue in 0..4u16 {
        let tx = &mut rig.clients[WEB.index()].tx[usize::from(queue)];
        (0..100).for_each(|_| tx.push(&flow(mac(1), mac(FAR), queue, 10)).unwrap());
        tx.flush().unwrap();
    }
    let tx = &mut rig.clients[DB.index()].tx[0];
    (0..200).for_each(|_| tx.push(&flow(mac(2), mac(FAR), 9, 10)).unwrap());
    tx.flush().unwrap();
    let mut by_port = HashMap::new();
    for turn in 0..4 {
        let sent = rig.collect();
        let from_db = sent.iter().filter(|frame| frame[50 + 11] == 2).count();
        assert_eq!((sent.len(), from_db), (64, 32), "turn {turn}: four queues weigh no more than one");
        for frame in sent {
            *by_port.entry(u16::from_be_bytes([frame[50 + 34], frame[50 + 35]])).or_insert(0) += 1;
        }
    }
    assert!((0..4).all(|queue| by_port[&queue] == 32), "each queue had its turn: {by_port:?}");
}

/// As many tenants on one network.
fn crowd(size: u16) -> Plan {
    let mut plan = plan();
    let one = plan.endpoints[0].clone();
    plan.endpoints = (0..size)
        .map(|n| EndpointPlan {
            name: format!("e{n}"),
            mac: MacAddr([2, 0, 0, 1, (n >> 8) as u8, n as u8]),
            ..one.clone()
        })
        .collect();
    plan
}

#[test]
fn a_quiet_tenant_among_many_is_heard() {
    let mut rig = Rig::with(crowd(200));
    let mac_of = |n: u16| MacAddr([2, 0, 0, 1, (n >> 8) as u8, n as u8]);
    // Long enough for all to be quiet, but for the first, which talks.
    for turn in 0..6000 {
        rig.tenant_sends(EndpointId(0), &inner(mac_of(0), mac_of(1), 10));
        let got = rig.tenant_gets(EndpointId(1)).len();
        assert!(got == 1 || turn < 5000, "who talks is served in each turn");
    }
    let tx = &mut rig.clients[150].tx[0];
    tx.push(&inner(mac_of(150), mac_of(1), 11)).unwrap();
    tx.flush().unwrap();
    let turns = (1..=500).find(|_| {
        rig.collect();
        !rig.tenant_gets(EndpointId(1)).is_empty()
    });
    assert!(turns.is_some_and(|turns| turns <= 400), "heard after {turns:?} turns");
    // And who answers what it has just got is served at once.
    rig.tenant_sends(EndpointId(0), &inner(mac_of(0), mac_of(120), 10));
    rig.tenant_sends(EndpointId(120), &inner(mac_of(120), mac_of(1), 10));
    assert_eq!(rig.tenant_gets(EndpointId(1)).len(), 1);
}

#[test]
fn a_broadcast_does_not_wake_those_who_are_quiet() {
    let mut rig = Rig::with(crowd(200));
    let mac_of = |n: u16| MacAddr([2, 0, 0, 1, (n >> 8) as u8, n as u8]);
    let turn = |rig: &mut Rig| {
        rig.tenant_sends(EndpointId(0), &inner(mac_of(0), mac_of(1), 10));
        rig.tenant_gets(EndpointId(1)).len()
    };
    for _ in 0..6000 {
        turn(&mut rig);
    }
    for _ in 0..50 {
        rig.tenant_sends(EndpointId(0), &inner(mac_of(0), MacAddr::BROADCAST, 10));
        assert_eq!(rig.tenant_gets(EndpointId(1)).len(), 1);
        assert_eq!(turn(&mut rig), 1, "who talks is still served in each turn");
    }
}

#[test]
fn who_was_cut_short_is_next() {
    // The first two fill each burst between them, but for one place.
    let mut rig = Rig::new();
    rig.fdb.learn(NetworkId(0), mac(FAR), RemoteId(0), 0, 64);
    rig.fdb.learn(NetworkId(1), mac(FAR), RemoteId(0), 0, 64);
    let mut given = [0; 3];
    for _ in 0..300 {
        for (tenant, count) in [(WEB, 32), (DB, 31), (LONER, 32)] {
            let source = if tenant == DB { mac(2) } else { mac(1) };
            let tx = &mut rig.clients[tenant.index()].tx[0];
            while tx.size() - tx.free().unwrap() < count && tx.push(&inner(source, mac(FAR), 10)).is_ok() {}
            tx.flush().unwrap();
        }
        rig.collect();
        for (tenant, given) in given.iter_mut().enumerate() {
            *given = rig.counters.endpoints[tenant].from_tenant.frames.get();
        }
    }
    let (least, most) = (given.iter().min().unwrap(), given.iter().max().unwrap());
    assert!(least * 2 > *most, "each had its share: {given:?}");
}

/// Waits for an eventfd `side` x `side` times over: 20,000 times make a wake-up take a millisecond.
fn waiters(event: BorrowedFd<'_>, side: usize) -> Vec<OwnedFd> {
    let many: Vec<_> = (0..side).map(|_| event.try_clone_to_owned().unwrap()).collect();
    let set = |_| {
        let set = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
        for (number, event) in (0..).zip(&many) {
            epoll::add(&set, event, epoll::EventData::new_u64(number), epoll::EventFlags::IN).unwrap();
        }
        set
    };
    let sets: Vec<_> = (0..side).map(set).collect();
    many.into_iter().chain(sets).collect()
}

/// Gives WEB a burst over both its queues, of which only those named want to be woken.
fn wake(rig: &mut Rig, queues: &[usize]) -> Option<Detached> {
    for (number, queue) in rig.clients[WEB.index()].rx.iter_mut().enumerate() {
        if queues.contains(&number) { queue.enable_interrupt() } else { queue.disable_interrupt() }
    }
    let frames: Vec<_> =
        (0..16).map(|port| vxlan(REMOTE_A, BLUE, &flow(mac(FAR), mac(1), 1000 + port, 20))).collect();
    rig.receive(&frames);
    (0..2).for_each(|queue| drop(rig.queue_gives(WEB, queue)));
    rig.tenants.put_out()
}

fn assert_slow(detached: &Detached) {
    let why = detached.fault.map(|fault| fault.to_string());
    assert_eq!(why.as_deref(), Some("waking it through its eventfd takes too long"));
}

/// Its eventfd wakes so many that a wake-up takes a millisecond.
#[test]
fn a_tenant_whose_wake_ups_are_slow_is_put_out_and_may_not_come_back_at_once() {
    let mut rig = Rig::with_queues(plan(), 2);
    peregrine_memif::warm_up();
    let _waiters = waiters(rig.clients[WEB.index()].rx[1].event_fd(), 140);
    // Most wake-ups are fast, and they excuse nothing.
    let detached = (0..10_000).find_map(|_| wake(&mut rig, &[0, 1])).expect("put out");
    assert_slow(&detached);
    // The endpoint's account stays: a new connection ends before it is woken.
    let woken = rig.counters.tenant_wakeups.get();
    rig.tenants.attach(WEB, 8, detached.rings).unwrap();
    assert_slow(&wake(&mut rig, &[0, 1]).expect("put out again"));
    assert_eq!(rig.counters.tenant_wakeups.get(), woken);
}

/// What it owes goes with it to another worker, before it is woken there even once.
#[test]
fn a_tenant_that_is_moved_is_not_forgiven_its_slow_wake_ups() {
    let mut rig = Rig::with_queues(plan(), 2);
    peregrine_memif::warm_up();
    let _waiters = waiters(rig.clients[WEB.index()].rx[1].event_fd(), 140);
    let detached = (0..10_000).find_map(|_| wake(&mut rig, &[0, 1])).expect("put out");
    let mut other = Tenants::new(&rig.tables);
    other.attach(WEB, 8, detached.rings).unwrap();
    assert_slow(&other.put_out().expect("put out there, too"));
}

/// Other waits for its eventfd count as wake-ups: what one connection has cost goes on to the next, and to another worker.
#[test]
fn what_a_tenants_eventfd_costs_otherwise_is_counted_too() {
    let mut rig = Rig::new();
    (0..10_000).for_each(|_| rig.tenants.charge(WEB, 15_000));
    rig.tenants.charge(WEB, 6_000_000);
    assert!(rig.tenants.put_out().is_none());
    let mut detached = rig.tenants.detach(WEB, 7).unwrap();
    rig.tenants.charge(WEB, 3_000_000);
    rig.tenants.give_account(&mut detached);
    let mut other = Tenants::new(&rig.tables);
    other.attach(WEB, 8, detached.rings).unwrap();
    assert!(other.put_out().is_none());
    other.charge(WEB, 3_000_000);
    assert_slow(&other.put_out().expect("put out"));
}

/// However often it is moved: it has as many in all as one that stays.
#[test]
fn a_tenant_that_is_moved_is_not_forgiven_its_bad_descriptors() {
    let mut rig = Rig::new();
    let mut rings = rig.tenants.detach(WEB, 7).unwrap().rings;
    let mut workers = [Tenants::new(&rig.tables), Tenants::new(&rig.tables)];
    for sent in 1..=BAD_DESCRIPTORS_MAX + 1 {
        let here = &mut workers[sent as usize % 2];
        here.attach(WEB, 7, rings).unwrap();
        assert!(here.next_turn().is_some());
        here.turn_over(WEB, false, Ok(Taken { packets: 1, bad: 1, ..Taken::default() }));
        let put_out = here.put_out();
        assert_eq!(put_out.is_some(), sent > BAD_DESCRIPTORS_MAX, "after {sent}");
        rings = match put_out {
            Some(detached) => {
                let why = detached.fault.map(|fault| fault.to_string());
                return assert_eq!(why.as_deref(), Some("more than 256 bad descriptors"));
            }
            None => here.detach(WEB, 7).unwrap().rings,
        };
    }
}

/// Any number of fast ones on another queue make nobody forget a slow one.
#[test]
fn a_tenant_whose_wake_ups_are_slow_now_and_then_is_put_out() {
    let mut rig = Rig::with_queues(plan(), 2);
    peregrine_memif::warm_up();
    let _waiters = waiters(rig.clients[WEB.index()].rx[1].event_fd(), 140);
    let round = |rig: &mut Rig| wake(rig, &[1]).or_else(|| (0..64).find_map(|_| wake(rig, &[0])));
    assert_slow(&(0..300).find_map(|_| round(&mut rig)).expect("put out"));
}

/// So many that a wake-up takes some 70 µs: with eight queues that is half a millisecond for each burst.
#[test]
fn a_tenant_whose_wake_ups_are_all_a_little_slow_is_put_out() {
    let mut rig = Rig::with_queues(plan(), 2);
    peregrine_memif::warm_up();
    let _waiters: Vec<_> =
        rig.clients[WEB.index()].rx.iter().map(|queue| waiters(queue.event_fd(), 39)).collect();
    assert_slow(&(0..20_000).find_map(|_| wake(&mut rig, &[0, 1])).expect("put out"));
}

/// Whatever else runs on this machine. Each wake-up wakes one who waits.
#[test]
fn a_tenant_that_sleeps_between_packets_is_not_put_out() {
    let mut rig = Rig::with_queues(plan(), 2);
    peregrine_memif::warm_up();
    let is_over = Arc::new(AtomicBool::new(false));
    for queue in &rig.clients[WEB.index()].rx {
        let (event, is_over) = (queue.event_fd().try_clone_to_owned().unwrap(), is_over.clone());
        std::thread::spawn(move || {
            let timeout = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            while !is_over.load(Ordering::Relaxed) {
                if poll(&mut [PollFd::new(&event, PollFlags::IN)], Some(&timeout)).unwrap() > 0 {
                    rustix::io::read(&event, &mut [0; 8]).unwrap();
                }
            }
        });
    }
    let detached = (0..20_000).find_map(|_| wake(&mut rig, &[0, 1]));
    is_over.store(true, Ordering::Relaxed);
    let wakeups = rig.counters.tenant_wakeups.get();
    assert!(detached.is_none() && wakeups == 40_000, "{:?} after {wakeups}", detached.map(|d| d.fault));
}

#[test]
fn nothing_of_one_tenants_packets_shows_in_anothers_memory() {
    const SECRET: &str = "for the eyes of web alone";
    let mut rig = Rig::new();
    // Through every chunk of the pool and every slot of the rings: long packets with the secret, then short ones for others.
    let mut long = inner(mac(FAR), mac(1), 1000);
    for at in (42..1000).step_by(SECRET.len()) {
        long[at..at + SECRET.len()].copy_from_slice(SECRET.as_bytes());
    }
    let sealed = vxlan(REMOTE_A, BLUE, &long);
    let short = vxlan(REMOTE_A, BLUE, &inner(mac(FAR), mac(2), 10));
    for _ in 0..40 {
        rig.receive(&vec![sealed.clone(); 64]);
        assert_eq!(rig.tenant_gets(WEB).len(), 64);
        rig.receive(&vec![short.clone(); 64]);
        assert_eq!(rig.tenant_gets(DB).len(), 64);
        rig.tenant_sends(WEB, &inner(mac(1), mac(2), 5));
        rig.tenant_sends(WEB, &long);
        rig.tenant_gets(DB);
        rig.tenant_gets(WEB);
    }
    assert_eq!(rig.dropped(DropReason::Hairpin) + rig.dropped(DropReason::SourceSpoofed), 40);
    let holders = memories_with(SECRET);
    assert_eq!(holders, 1, "memories of tenants that hold the secret");
}

/// How many of the tenants' memories hold these bytes. Each is mapped twice here, by the tenant and by us.
fn memories_with(text: &str) -> usize {
    use std::io::{Read, Seek, SeekFrom};
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut memory = std::fs::File::open("/proc/self/mem").unwrap();
    let mut holders = std::collections::HashSet::new();
    for line in maps.lines().filter(|line| line.contains("/memfd:")) {
        let mut words = line.split_whitespace();
        let (range, inode) = (words.next().unwrap(), words.nth(3).unwrap());
        let (begin, end) = range.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; (address(end) - address(begin)) as usize];
        memory.seek(SeekFrom::Start(address(begin))).unwrap();
        // Another test's may go in this moment; ours do not.
        if memory.read_exact(&mut bytes).is_err() {
            continue;
        }
        if String::from_utf8_lossy(&bytes).contains(text) {
            holders.insert(inode.to_owned());
        }
    }
    holders.len()
}
