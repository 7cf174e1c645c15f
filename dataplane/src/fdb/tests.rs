//! The table by itself, beside a map, and under threads.

use std::collections::HashMap;
use std::time::Instant;

use super::*;
use crate::plan::MOVE_WINDOW;
use proptest::prelude::*;

const NET: NetworkId = NetworkId(0);
const A: RemoteId = RemoteId(3);
const B: RemoteId = RemoteId(4);

fn mac(n: u64) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 + n)
}

#[test]
fn an_address_is_learned_moves_and_ages() {
    let fdb = Fdb::new(16, 2);
    assert_eq!(fdb.lookup(NET, mac(1)), None);
    assert_eq!(fdb.learn(NET, mac(1), A, 100, 10), Learned::New);
    assert_eq!(fdb.learn(NET, mac(1), A, 100, 10), Learned::Known);
    assert_eq!(fdb.lookup(NET, mac(1)), Some(Destination::Remote(A)));
    assert_eq!(fdb.lookup(NetworkId(1), mac(1)), None, "networks are apart");
    assert_eq!(fdb.learn(NET, mac(1), B, 130, 10), Learned::Moved);
    assert_eq!(fdb.lookup(NET, mac(1)), Some(Destination::Remote(B)));
    assert_eq!(fdb.learned(NET), 1);
    assert_eq!(fdb.age(0, fdb.buckets(), 160, |_| 30), 0, "30 seconds old: not older than 30");
    assert_eq!(fdb.age(0, fdb.buckets(), 161, |_| 30), 1);
    assert_eq!((fdb.lookup(NET, mac(1)), fdb.learned(NET)), (None, 0));
}

#[test]
fn being_seen_keeps_an_address_young() {
    let fdb = Fdb::new(16, 1);
    fdb.learn(NET, mac(1), A, 0, 10);
    fdb.learn(NET, mac(1), A, 25, 10);
    assert_eq!(fdb.age(0, fdb.buckets(), 50, |_| 30), 0);
}

#[test]
fn what_is_fixed_is_neither_learned_over_nor_aged() {
    let fdb = Fdb::new(16, 1);
    assert_eq!(fdb.learn(NET, mac(1), A, 0, 10), Learned::New);
    assert!(fdb.set_fixed(NET, mac(1), Destination::Local(EndpointId(7))));
    assert_eq!(fdb.learned(NET), 0, "the learned entry gave way");
    assert_eq!(fdb.learn(NET, mac(1), B, 9, 10), Learned::Fixed);
    let place = fdb.place(NET, mac(1).to_u64());
    assert_eq!(fdb.lookup_fixed_at(place), Some(Destination::Local(EndpointId(7))));
    assert!(fdb.set_fixed(NET, mac(2), Destination::Remote(A)));
    assert_eq!(fdb.learn(NET, mac(2), A, 9, 10), Learned::Known, "it is where it should be");
    assert_eq!(fdb.age(0, fdb.buckets(), u32::MAX, |_| 0), 0);
    assert_eq!(fdb.lookup(NET, mac(1)), Some(Destination::Local(EndpointId(7))));
    assert!(fdb.remove(NET, mac(1)) && !fdb.remove(NET, mac(1)));
}

const THREE: Limits = Limits { addresses: 10, moves: 3, hold_s: 30, known: None };

fn see(fdb: &Fdb, n: u64, remote: RemoteId, now_s: u32, limits: &Limits) -> Learned {
    fdb.learn_at(fdb.place(NET, mac(n).to_u64()), remote, now_s, limits)
}

fn held_until(fdb: &Fdb, n: u64) -> Option<u32> {
    fdb.entries().find(|entry| entry.mac == mac(n)).unwrap().held_until_s
}

#[test]
fn an_address_that_moves_too_often_is_held_and_then_free_again() {
    let fdb = Fdb::new(16, 1);
    assert_eq!(see(&fdb, 1, A, 100, &THREE), Learned::New);
    for (remote, now_s) in [(B, 100), (A, 104), (B, 109)] {
        assert_eq!(see(&fdb, 1, remote, now_s, &THREE), Learned::Moved);
    }
    assert_eq!(held_until(&fdb, 1), None);
    for now_s in [109, 110, 138] {
        assert_eq!(see(&fdb, 1, A, now_s, &THREE), Learned::Held);
        assert_eq!(see(&fdb, 1, B, now_s, &THREE), Learned::Known, "it is seen where it is held");
        assert_eq!((fdb.lookup(NET, mac(1)), held_until(&fdb, 1)), (Some(Destination::Remote(B)), Some(139)));
    }
    for (remote, learned) in
        [(A, Learned::Moved), (B, Learned::Moved), (A, Learned::Moved), (B, Learned::Held)]
    {
        assert_eq!(see(&fdb, 1, remote, 139, &THREE), learned, "it begins again");
    }
    assert!(held_until(&fdb, 1).is_some());
    assert!(fdb.set_fixed(NET, mac(1), Destination::Remote(A)));
    assert_eq!(held_until(&fdb, 1), None, "what is fixed is not held");
}

/// A and B are known, and all others were discovered.
fn two_known(moves: u8) -> Limits {
    Limits { moves, known: Some([1 << A.0 | 1 << B.0].into()), ..THREE }
}

#[test]
fn what_discovered_remotes_do_to_an_address_does_not_keep_it_from_a_known_one() {
    let [hostile, other] = [70, 71].map(RemoteId);
    for moves in [0, 1, 3] {
        let (fdb, limits) = (Fdb::new(16, 1), two_known(moves));
        assert_eq!(see(&fdb, 1, hostile, 5, &limits), Learned::New);
        let seen: Vec<_> = (0..10).map(|n| see(&fdb, 1, [other, hostile][n % 2], 5, &limits)).collect();
        assert_eq!(seen.contains(&Learned::Held), moves > 0, "equals: {seen:?}");
        assert_eq!(held_until(&fdb, 1).is_some(), moves > 0);
        assert_eq!(see(&fdb, 1, A, 5, &limits), Learned::Moved, "it has it at once");
        assert_eq!((fdb.lookup(NET, mac(1)), held_until(&fdb, 1)), (Some(Destination::Remote(A)), None));
        for now_s in [5, 15, 100] {
            assert_eq!(see(&fdb, 1, hostile, now_s, &limits), Learned::Held, "and keeps it");
            assert_eq!(see(&fdb, 1, A, now_s, &limits), Learned::Known);
        }
        // Nor does it keep the address from moving on, as often as it may.
        assert_eq!(see(&fdb, 1, B, 100, &limits), Learned::Moved);
        assert_eq!(fdb.age(0, fdb.buckets(), 500, |_| 30), 1);
        assert_eq!(see(&fdb, 1, hostile, 500, &limits), Learned::New, "until it has aged");
    }
}

#[test]
fn known_remotes_are_held_among_themselves() {
    let (fdb, limits) = (Fdb::new(16, 1), two_known(3));
    assert_eq!(see(&fdb, 1, RemoteId(70), 5, &limits), Learned::New);
    let seen = [A, B, A, B, A].map(|remote| see(&fdb, 1, remote, 5, &limits));
    let moved = Learned::Moved; // the first is nobody's move but its own
    assert_eq!(seen, [moved, moved, moved, moved, Learned::Held]);
}

#[test]
fn moves_are_counted_from_the_first_of_them_for_ten_seconds() {
    let fdb = Fdb::new(16, 1);
    assert_eq!(see(&fdb, 1, A, 0, &THREE), Learned::New);
    let mut now_s = 0;
    for round in 0..20 {
        // Three in a window, and then the next window begins.
        for remote in [[B, A, B], [A, B, A]][round % 2] {
            assert_eq!(see(&fdb, 1, remote, now_s, &THREE), Learned::Moved, "round {round}");
        }
        now_s += MOVE_WINDOW.as_secs() as u32;
    }
    assert_eq!(held_until(&fdb, 1), None);
    let always = Limits { moves: 0, ..THREE };
    for round in 0..1000u16 {
        assert_eq!(see(&fdb, 1, RemoteId(round + 10), now_s, &always), Learned::Moved);
    }
}

#[test]
fn what_was_counted_of_an_address_is_not_that_of_the_next_in_its_place() {
    let fdb = Fdb::new(1, 1);
    let one = Limits { moves: 1, ..THREE };
    for n in 0..1000 {
        assert_eq!(see(&fdb, n, A, 5, &one), Learned::New);
        assert_eq!(see(&fdb, n, B, 5, &one), Learned::Moved, "{n}");
        assert_eq!(see(&fdb, n, A, 5, &one), Learned::Held);
        match n % 2 {
            0 => assert!(fdb.remove(NET, mac(n))),
            _ => assert_eq!(fdb.age(0, fdb.buckets(), 500, |_| 30), 1, "what is held ages as well"),
        }
    }
}

/// What makes room for others takes along what was counted.
#[test]
fn an_address_is_held_wherever_it_is_in_the_table() {
    let fdb = Fdb::with_secret(1 << 8, 1, 7);
    let limits = Limits { addresses: 10_000, moves: 1, hold_s: 30, known: None };
    let mut held = Vec::new();
    let place = |n: u64| fdb.place(NET, mac(n).to_u64());
    let is_in_first =
        |n: u64| fdb.bucket(fdb.first(place(n))).0.iter().any(|slot| slot.read(place(n).key).is_some());
    let mut were_first = 0;
    for n in 0..fdb.buckets() as u64 * 3 {
        if see(&fdb, n, A, 5, &limits) == Learned::New {
            assert_eq!(
                (see(&fdb, n, B, 5, &limits), see(&fdb, n, A, 5, &limits)),
                (Learned::Moved, Learned::Held)
            );
            were_first += usize::from(is_in_first(n));
            held.push(n);
        }
    }
    let are_first = held.iter().filter(|&&n| is_in_first(n)).count();
    assert!(were_first > are_first, "{were_first} and {are_first}: some have moved in the table");
    for n in held {
        assert_eq!((see(&fdb, n, A, 6, &limits), held_until(&fdb, n)), (Learned::Held, Some(35)), "{n}");
    }
}

#[test]
fn what_is_behind_a_remote_is_forgotten_and_nothing_else() {
    let fdb = Fdb::new(100, 2);
    for n in 0..10 {
        assert_eq!(fdb.learn(NET, mac(n), A, 0, 100), Learned::New);
        assert_eq!(fdb.learn(NetworkId(1), mac(n), A, 0, 100), Learned::New);
        assert_eq!(fdb.learn(NET, mac(n + 10), B, 0, 100), Learned::New);
    }
    assert!(fdb.set_fixed(NET, mac(20), Destination::Remote(A)));
    assert!(fdb.set_fixed(NET, mac(21), Destination::Local(EndpointId(A.0))));
    let forget = |fixed_too: bool| {
        fdb.forget_behind(0, fdb.buckets(), |network, _, remote, fixed| {
            network == NET && remote == A && (fixed_too || !fixed)
        })
    };
    assert_eq!((forget(false), forget(false), forget(true), forget(true)), (10, 0, 1, 0));
    assert_eq!((fdb.learned(NET), fdb.learned(NetworkId(1)), fdb.entries().count()), (10, 10, 21));
    let one = |_, mac_: MacAddr, _, _| mac_ == mac(15);
    assert_eq!(fdb.forget_behind(0, fdb.buckets(), one), 1);
    assert_eq!(fdb.lookup(NET, mac(15)), None);
}

#[test]
fn a_network_learns_no_more_than_its_limit() {
    let fdb = Fdb::new(100, 2);
    for n in 0..5 {
        assert_eq!(fdb.learn(NET, mac(n), A, 0, 5), Learned::New);
    }
    assert_eq!(fdb.learn(NET, mac(5), A, 0, 5), Learned::Refused);
    assert_eq!(fdb.learn(NET, mac(4), B, 0, 5), Learned::Moved, "what is known may move");
    assert_eq!(fdb.learn(NetworkId(1), mac(5), A, 0, 5), Learned::New, "limits are per network");
    assert_eq!(fdb.learn(NetworkId(2), mac(5), A, 0, 5), Learned::Refused, "no such network");
}

/// Addresses one after the other, as a vendor or a lab gives them, with a step between them, and without any order.
#[test]
fn a_table_takes_as_many_as_it_was_made_for() {
    const ENTRIES: u64 = 1 << 17; // just so many that the table is half full
    for (what, address) in [
        ("consecutive", (|n| mac(n)) as fn(u64) -> MacAddr),
        ("every 256th", |n| mac(n << 8)),
        ("some of each vendor", |n| MacAddr::from_u64((n & !0x3ff) << 14 | n & 0x3ff | 1 << 41)),
        ("anywhere", |n| MacAddr::from_u64(mix(n, GOLDEN) | 1 << 41)),
    ] {
        let fdb = Fdb::new(ENTRIES as usize, 1);
        assert_eq!(fdb.buckets() as u64 * SLOTS as u64, ENTRIES * 2);
        let learn = |n: &u64| fdb.learn(NET, address(*n), A, 0, u32::MAX);
        let refused = (0..ENTRIES).filter(|n| learn(n) == Learned::Refused).count();
        // The table's secret is another one in each run: with some of them a single address finds no room.
        assert!(refused <= 2, "{what}: {refused}");
        let found = |n: &u64| fdb.lookup(NET, address(*n)) == Some(Destination::Remote(A));
        assert_eq!((0..ENTRIES).filter(found).count(), ENTRIES as usize - refused, "{what}");
        assert_eq!(fdb.entries().count(), fdb.learned(NET) as usize, "{what}");
    }
}

/// First and second buckets of addresses one after the other, each by itself and both together: χ² with 63 degrees
/// of freedom stays below 130 (p ≈ 0.000001).
#[test]
fn both_buckets_are_chosen_evenly_and_apart() {
    let fdb = Fdb::new(1 << 16, 1);
    let mut counts = [[0u32; 64]; 3];
    for n in 0..1 << 16 {
        let place = fdb.place(NET, mac(n).to_u64());
        let (first, second) = (fdb.first(place), fdb.second(place));
        assert_ne!(first, second);
        // Of both together three bits each, without the last, in which they always differ.
        for (counts, bucket) in
            counts.iter_mut().zip([first % 64, second % 64, first / 2 % 8 * 8 + second / 2 % 8])
        {
            counts[bucket] += 1;
        }
    }
    for counts in counts {
        let chi: f64 = counts.iter().map(|&n| (f64::from(n) - 1024.0).powi(2) / 1024.0).sum();
        assert!(chi < 130.0, "χ² = {chi}: {counts:?}");
    }
}

#[test]
fn a_tiny_table_refuses_and_stays_whole() {
    let fdb = Fdb::new(1, 1);
    let taken = (0..100).filter(|&n| fdb.learn(NET, mac(n), A, 0, 100) == Learned::New).count();
    assert_eq!((taken, fdb.learned(NET)), (8, 8), "two buckets of four");
}

#[test]
fn what_makes_room_for_others_is_still_found() {
    let fdb = Fdb::new(1 << 12, 1);
    let known: Vec<u64> = (0..fdb.buckets() as u64 * 3)
        .filter(|&n| fdb.learn(NET, mac(n), A, 0, u32::MAX) == Learned::New)
        .collect();
    let in_its_first = |entry: Entry| {
        let place = fdb.place(NET, entry.mac.to_u64());
        fdb.bucket(fdb.first(place)).0.iter().any(|slot| slot.read(place.key).is_some())
    };
    let elsewhere = fdb.entries().filter(|entry| !in_its_first(*entry)).count();
    assert!(elsewhere > known.len() / 20, "{elsewhere} of {} are in their second bucket", known.len());
    assert_eq!(known.iter().find(|&&n| fdb.lookup(NET, mac(n)).is_none()), None);
    assert_eq!((fdb.entries().count(), fdb.learned(NET) as usize), (known.len(), known.len()));
}

#[test]
fn the_hand_goes_round_in_its_time_and_no_faster() {
    let (fdb, start) = (Fdb::new(4000, 1), Instant::now());
    (0..4000).for_each(|n| assert_eq!(fdb.learn(NET, mac(n), A, 0, u32::MAX), Learned::New));
    let mut hand = AgeingHand::new(start);
    let mut forgotten = 0;
    let steps = 700; // no divisor of anything here
    for step in 1..=steps {
        forgotten += hand.go(&fdb, start + AgeingHand::ROUND * step / steps, 100, |_| 30);
        let even = 4000.0 * f64::from(step) / f64::from(steps);
        assert!(
            (forgotten as f64 - even).abs() < 300.0,
            "{forgotten} after {step} steps, about {even:.0} expected"
        );
    }
    assert!(forgotten >= 3990, "{forgotten}: the last bucket may come with the next step");
    forgotten += hand.go(&fdb, start + AgeingHand::ROUND * 2, 100, |_| 30);
    assert_eq!((forgotten, fdb.learned(NET)), (4000, 0));
    assert_eq!(hand.go(&fdb, start, 100, |_| 30), 0, "a clock that goes back is no harm");
}

#[test]
fn a_hand_that_was_kept_waiting_takes_a_step_of_bounded_length() {
    let (fdb, start) = (Fdb::new(AgeingHand::STEP_MAX * SLOTS, 1), Instant::now());
    assert_eq!(fdb.buckets(), 2 * AgeingHand::STEP_MAX);
    let total = 1000 * SLOTS as u64;
    (0..total).for_each(|n| assert_eq!(fdb.learn(NET, mac(n), A, 0, u32::MAX), Learned::New));
    let mut hand = AgeingHand::new(start);
    let half = hand.go(&fdb, start + AgeingHand::ROUND, 100, |_| 30) as f64;
    assert!((half - total as f64 / 2.0).abs() < total as f64 / 10.0, "{half} of {total}");
    assert_eq!(
        hand.go(&fdb, start + AgeingHand::ROUND, 100, |_| 30),
        0,
        "what was too much is not made up for"
    );
}

/// Threads that learn, look up and forget at once never see an address behind a remote that it never was
/// behind: the remote is a function of the address here.
#[test]
fn readers_never_see_a_torn_entry() {
    let fdb = Fdb::new(64, 1);
    let remote = |n: u64| RemoteId((n % 1000) as u16);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..200_000u64 {
                let n = round * 7 % 512;
                fdb.learn(NET, mac(n), remote(n), (round / 100) as u32, 400);
            }
        });
        scope.spawn(|| {
            for round in 0..2_000u32 {
                fdb.age(0, fdb.buckets(), round, |_| 0);
            }
        });
        for round in 0..200_000u64 {
            let n = round * 13 % 512;
            if let Some(found) = fdb.lookup(NET, mac(n)) {
                assert_eq!(found, Destination::Remote(remote(n)));
            }
        }
    });
    fdb.age(0, fdb.buckets(), u32::MAX, |_| 0);
    assert_eq!((fdb.learned(NET), fdb.entries().count()), (0, 0), "the count agrees with the entries");
}

/// Workers that learn the same addresses at once, in a table that is so full that entries move all the time, while
/// others age and are looked up: none is there twice, the count agrees, and what is fixed is never missed.
#[test]
fn threads_that_learn_the_same_addresses_never_enter_one_twice() {
    const ADDRESSES: u64 = 600;
    for round in 0..20u64 {
        let fdb = Fdb::with_secret(256, 1, mix(round + 1, GOLDEN));
        let fixed: Vec<u64> = (ADDRESSES..ADDRESSES + 40).collect();
        let place = |n: u64| Destination::Local(EndpointId(n as u16));
        assert!(fixed.iter().all(|&n| fdb.set_fixed(NET, mac(n), place(n))));
        let missed = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for worker in 0..3u64 {
                let fdb = &fdb;
                scope.spawn(move || {
                    for step in 0..20_000u64 {
                        let n = mix((step / 3) ^ round, GOLDEN) % ADDRESSES;
                        fdb.learn(NET, mac(n), RemoteId(worker as u16), (step / 1000) as u32, 500);
                    }
                });
            }
            scope.spawn(|| {
                (0..2000u32).for_each(|n| {
                    fdb.age(0, fdb.buckets(), n / 100, |_| 1);
                })
            });
            for n in fixed.iter().cycle().take(50_000) {
                let found = fdb.lookup(NET, mac(*n)) == Some(place(*n));
                missed.fetch_add(usize::from(!found), std::sync::atomic::Ordering::Relaxed);
            }
        });
        assert_eq!(missed.into_inner(), 0, "fixed addresses that were not found");
        let mut all: Vec<Entry> = fdb.entries().collect();
        let count = all.len();
        all.sort_unstable_by_key(|entry| entry.mac);
        all.dedup_by_key(|entry| entry.mac);
        assert_eq!((all.len(), fdb.learned(NET) as usize + fixed.len()), (count, count), "round {round}");
        assert!(fdb.learned(NET) <= 500);
    }
}

#[derive(Clone, Debug)]
enum Op {
    Learn(u64, u16),
    Fix(u64, u16),
    Remove(u64),
    Age(u32),
}

proptest! {
    /// Against a map, one operation after the other.
    #[test]
    fn it_behaves_like_a_map(ops in proptest::collection::vec(prop_oneof![
        (0u64..40, 0u16..4).prop_map(|(n, r)| Op::Learn(n, r)),
        (0u64..40, 0u16..4).prop_map(|(n, r)| Op::Fix(n, r)),
        (0u64..40).prop_map(Op::Remove),
        (0u32..10).prop_map(Op::Age),
    ], 0..400)) {
        let fdb = Fdb::new(200, 1);
        let mut map: HashMap<u64, (Destination, bool, u32)> = HashMap::new();
        for (step, op) in ops.into_iter().enumerate() {
            let now = step as u32;
            match op {
                Op::Learn(n, r) => {
                    fdb.learn(NET, mac(n), RemoteId(r), now, 1000);
                    let entry = map.entry(n).or_insert((Destination::Remote(RemoteId(r)), false, now));
                    if !entry.1 { *entry = (Destination::Remote(RemoteId(r)), false, now); }
                }
                Op::Fix(n, r) => {
                    prop_assert!(fdb.set_fixed(NET, mac(n), Destination::Local(EndpointId(r))));
                    map.insert(n, (Destination::Local(EndpointId(r)), true, 0));
                }
                Op::Remove(n) => prop_assert_eq!(fdb.remove(NET, mac(n)), map.remove(&n).is_some()),
                Op::Age(limit) => {
                    fdb.age(0, fdb.buckets(), now, |_| limit);
                    map.retain(|_, (_, fixed, seen)| *fixed || now - *seen <= limit);
                }
            }
            for n in 0..40 {
                prop_assert_eq!(fdb.lookup(NET, mac(n)), map.get(&n).map(|e| e.0));
            }
            prop_assert_eq!(fdb.learned(NET) as usize, map.values().filter(|e| !e.1).count());
        }
    }
}
