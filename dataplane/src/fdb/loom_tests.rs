//! The table under the loom model checker: every interleaving, and every reordering that the memory model allows, within
//! a bound on preemptions.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p peregrine-dataplane --lib --release fdb::loom_tests`

use loom::sync::Arc;
use loom::thread;

use super::*;

const NET: NetworkId = NetworkId(0);
const A: RemoteId = RemoteId(1);
const B: RemoteId = RemoteId(2);
const LIMIT: u32 = 16;
const ONE_MOVE: Limits = Limits { addresses: LIMIT, moves: 1, hold_s: 30, known: None };

fn mac(n: u64) -> MacAddr {
    MacAddr::from_u64(0x0200_0000_0000 + n)
}

/// Checks the test with one side in a thread of its own and then with the other: what the checker runs first it does not
/// interrupt as thoroughly.
fn model(preemptions: usize, test: impl Fn(Sides) + Sync + Send + Clone + 'static) {
    for sides in [Sides::FirstHere, Sides::SecondHere] {
        let mut builder = loom::model::Builder::new();
        builder.preemption_bound = Some(preemptions);
        let test = test.clone();
        builder.check(move || test(sides));
    }
}

#[derive(Clone, Copy)]
enum Sides {
    FirstHere,
    SecondHere,
}

impl Sides {
    /// Runs both at once.
    fn run<A: 'static, B: 'static>(
        self,
        fdb: &Arc<Fdb>,
        first: impl FnOnce(&Fdb) -> A + 'static,
        second: impl FnOnce(&Fdb) -> B + 'static,
    ) -> (A, B) {
        let other = fdb.clone();
        match self {
            Sides::FirstHere => {
                let thread = thread::spawn(move || second(&other));
                (first(fdb), thread.join().unwrap())
            }
            Sides::SecondHere => {
                let thread = thread::spawn(move || first(&other));
                let second = second(fdb);
                (thread.join().unwrap(), second)
            }
        }
    }
}

fn table(entries: usize) -> Arc<Fdb> {
    Arc::new(Fdb::with_secret(entries, 1, 7))
}

/// Nobody works any more: each address is there once at most, and the count agrees.
fn is_whole(fdb: &Fdb) {
    let mut all: Vec<u64> = fdb.entries().map(|entry| entry.mac.to_u64()).collect();
    let learned = fdb.entries().filter(|entry| !entry.fixed).count();
    let count = all.len();
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len(), count, "an address is there twice");
    assert_eq!(fdb.learned(NET) as usize, learned);
}

#[test]
fn an_address_that_two_workers_learn_at_once_is_there_once() {
    model(3, |sides| {
        let fdb = table(1);
        let (one, other) = sides.run(
            &fdb,
            |fdb| fdb.learn(NET, mac(1), A, 5, LIMIT),
            |fdb| fdb.learn(NET, mac(1), B, 5, LIMIT),
        );
        assert!([one, other].contains(&Learned::New), "{one:?}, {other:?}: it is never lost");
        assert_ne!(one, other);
        assert_eq!(fdb.learned(NET), 1);
        is_whole(&fdb);
    });
}

#[test]
fn the_limit_holds_when_two_workers_learn_at_once() {
    model(3, |sides| {
        let fdb = table(1);
        sides.run(&fdb, |fdb| fdb.learn(NET, mac(1), A, 5, 1), |fdb| fdb.learn(NET, mac(2), A, 5, 1));
        assert_eq!(fdb.learned(NET), 1);
        is_whole(&fdb);
    });
}

/// What was seen again in time stays, whatever ageing meant to do.
#[test]
fn an_address_that_is_seen_while_it_ages_is_not_lost() {
    model(3, |sides| {
        let fdb = table(1);
        assert_eq!(fdb.learn(NET, mac(1), A, 5, LIMIT), Learned::New);
        let (forgotten, (seen, found)) = sides.run(
            &fdb,
            |fdb| fdb.age(0, fdb.buckets(), 100, |_| 30),
            |fdb| (fdb.learn(NET, mac(1), A, 100, LIMIT), fdb.lookup(NET, mac(1))),
        );
        match seen {
            Learned::Known => assert_eq!((forgotten, found), (0, Some(Destination::Remote(A)))),
            Learned::New => assert_eq!((forgotten, found), (1, Some(Destination::Remote(A)))),
            Learned::Busy => assert_eq!(forgotten, 1),
            other => panic!("{other:?}"),
        }
        assert_eq!(fdb.learned(NET), u32::from(seen != Learned::Busy));
        is_whole(&fdb);
    });
}

/// The slot of an address that has gone is filled with another while a worker still means to note the first one.
#[test]
fn who_comes_late_changes_nothing_that_is_not_his() {
    model(2, |sides| {
        let fdb = table(1);
        for n in 1..=8 {
            assert_eq!(fdb.learn(NET, mac(n), A, 5, LIMIT), Learned::New); // full: the next one takes the only free slot
        }
        let (new, (moved, found)) = sides.run(
            &fdb,
            |fdb| {
                assert!(fdb.remove(NET, mac(1)));
                fdb.learn(NET, mac(9), A, 5, LIMIT)
            },
            |fdb| (fdb.learn(NET, mac(1), B, 5, LIMIT), fdb.lookup(NET, mac(9))),
        );
        assert!(found.is_none_or(|place| place == Destination::Remote(A)), "{found:?}");
        assert!(moved != Learned::New || new != Learned::New, "there was room for one");
        if new == Learned::New {
            assert_eq!(fdb.lookup(NET, mac(9)), Some(Destination::Remote(A)));
        }
        is_whole(&fdb);
    });
}

/// A table in which learning the second address given moves the first one to its second bucket.
fn about_to_move() -> (Arc<Fdb>, u64, u64) {
    let fdb = table(8);
    assert_eq!(fdb.buckets(), 4);
    let both = |n: u64| {
        let place = fdb.place(NET, mac(n).to_u64());
        (fdb.first(place), fdb.second(place))
    };
    let with = |first: usize, second: usize, count: usize| {
        let found: Vec<u64> = (1..10_000).filter(|&n| both(n) == (first, second)).take(count).collect();
        assert_eq!(found.len(), count);
        found
    };
    // Bucket 0 fills with those whose second is 1, bucket 1 with those that came too late for 0; so only what has 3
    // for its second can move.
    let movable = with(0, 3, 1)[0];
    let rest = with(0, 1, 8);
    let (learned, last) = rest.split_at(7);
    assert_eq!(fdb.learn(NET, mac(movable), A, 5, LIMIT), Learned::New);
    for &n in learned {
        assert_eq!(fdb.learn(NET, mac(n), A, 5, LIMIT), Learned::New);
    }
    (fdb, movable, last[0])
}

#[test]
fn an_address_that_moves_is_never_missed() {
    model(3, |sides| {
        let (fdb, movable, last) = about_to_move();
        let (learned, found) = sides.run(
            &fdb,
            move |fdb| fdb.learn(NET, mac(last), B, 5, LIMIT),
            move |fdb| fdb.lookup(NET, mac(movable)),
        );
        assert_eq!((learned, found), (Learned::New, Some(Destination::Remote(A))));
        let place = fdb.place(NET, mac(movable).to_u64());
        let second = fdb.bucket(fdb.second(place));
        assert!(second.0.iter().any(|slot| slot.read(place.key).is_some()), "it has moved");
        is_whole(&fdb);
    });
}

#[test]
fn an_address_that_is_seen_while_it_moves_is_there_once() {
    model(2, |sides| {
        let (fdb, movable, last) = about_to_move();
        let (learned, seen) = sides.run(
            &fdb,
            move |fdb| fdb.learn(NET, mac(last), B, 5, LIMIT),
            move |fdb| fdb.learn(NET, mac(movable), B, 6, LIMIT),
        );
        assert_eq!(learned, Learned::New);
        assert!(matches!(seen, Learned::Moved | Learned::Busy), "{seen:?}");
        let now = if seen == Learned::Moved { B } else { A };
        assert_eq!(fdb.lookup(NET, mac(movable)), Some(Destination::Remote(now)));
        is_whole(&fdb);
    });
}

#[test]
fn control_and_a_worker_at_the_same_address_end_with_what_is_fixed() {
    model(3, |sides| {
        let fdb = table(1);
        let place = Destination::Local(EndpointId(3));
        let (fixed, _) = sides.run(
            &fdb,
            move |fdb| fdb.set_fixed(NET, mac(1), place),
            |fdb| fdb.learn(NET, mac(1), A, 5, LIMIT),
        );
        assert!(fixed);
        assert_eq!(fdb.lookup(NET, mac(1)), Some(place));
        assert_eq!(fdb.learned(NET), 0);
        is_whole(&fdb);
    });
}

/// Two workers that see an address elsewhere at once, where it may move once: one moves it or finds it held.
#[test]
fn an_address_that_two_workers_move_at_once_does_not_move_more_often_than_it_may() {
    model(3, |sides| {
        let fdb = table(1);
        let see =
            move |fdb: &Fdb, remote| fdb.learn_at(fdb.place(NET, mac(1).to_u64()), remote, 5, &ONE_MOVE);
        assert_eq!(see(&fdb, A), Learned::New);
        let (one, other) = sides.run(&fdb, move |fdb| see(fdb, B), move |fdb| see(fdb, RemoteId(3)));
        let moved = [one, other].iter().filter(|&&learned| learned == Learned::Moved).count();
        assert_eq!(moved, 1, "{one:?}, {other:?}");
        assert!(
            [one, other]
                .iter()
                .all(|learned| matches!(learned, Learned::Moved | Learned::Held | Learned::Busy))
        );
        let now = if one == Learned::Moved { B } else { RemoteId(3) };
        assert_eq!(fdb.lookup(NET, mac(1)), Some(Destination::Remote(now)));
        assert_eq!(see(&fdb, A), Learned::Held, "it has had its move");
        is_whole(&fdb);
    });
}

/// Held by one worker, while it is forgotten and learned anew by another: what is learned anew may move.
#[test]
fn holding_an_address_holds_no_other_in_its_place() {
    model(2, |sides| {
        let fdb = table(1);
        let see =
            move |fdb: &Fdb, n, remote| fdb.learn_at(fdb.place(NET, mac(n).to_u64()), remote, 5, &ONE_MOVE);
        for n in 1..=8 {
            assert_eq!(see(&fdb, n, A), Learned::New); // full: the next one takes the only free slot
        }
        assert_eq!(see(&fdb, 1, B), Learned::Moved);
        let (new, held) = sides.run(
            &fdb,
            move |fdb| {
                assert!(fdb.remove(NET, mac(1)));
                see(fdb, 9, A)
            },
            move |fdb| see(fdb, 1, A),
        );
        assert!(matches!(held, Learned::Held | Learned::Busy | Learned::New | Learned::Refused), "{held:?}");
        if new == Learned::New {
            assert_eq!((see(&fdb, 9, B), see(&fdb, 9, A)), (Learned::Moved, Learned::Held));
        }
        is_whole(&fdb);
    });
}

/// The address is seen where it is, and elsewhere, while it goes to its second bucket.
#[test]
fn an_address_that_is_held_while_it_moves_in_the_table_stays_held() {
    model(2, |sides| {
        let (fdb, movable, last) = about_to_move();
        let see = move |fdb: &Fdb, remote| {
            fdb.learn_at(fdb.place(NET, mac(movable).to_u64()), remote, 5, &ONE_MOVE)
        };
        assert_eq!((see(&fdb, B), see(&fdb, A)), (Learned::Moved, Learned::Held));
        let (learned, seen) =
            sides.run(&fdb, move |fdb| fdb.learn(NET, mac(last), B, 5, LIMIT), move |fdb| see(fdb, A));
        assert_eq!(learned, Learned::New);
        assert!(matches!(seen, Learned::Held | Learned::Busy), "{seen:?}");
        assert_eq!(
            (see(&fdb, A), fdb.lookup(NET, mac(movable))),
            (Learned::Held, Some(Destination::Remote(B)))
        );
        is_whole(&fdb);
    });
}

/// Two discovered remotes have an address, and it is held behind one of them, or about to be, when a known one sends from it.
#[test]
fn an_address_that_others_have_moved_is_the_known_ones_as_soon_as_it_gets_the_claim() {
    model(3, |sides| {
        const KNOWN: RemoteId = RemoteId(3);
        let fdb = table(1);
        let limits = Arc::new(Limits { known: Some([1 << KNOWN.0].into()), ..ONE_MOVE });
        let see = |limits: &Arc<Limits>| {
            let limits = limits.clone();
            move |fdb: &Fdb, remote| fdb.learn_at(fdb.place(NET, mac(1).to_u64()), remote, 5, &limits)
        };
        let (here, first, second) = (see(&limits), see(&limits), see(&limits));
        assert_eq!((here(&fdb, A), here(&fdb, B)), (Learned::New, Learned::Moved));
        let (held, known) = sides.run(&fdb, move |fdb| first(fdb, A), move |fdb| second(fdb, KNOWN));
        assert!(matches!(held, Learned::Held | Learned::Busy), "{held:?}");
        assert!(matches!(known, Learned::Moved | Learned::Busy), "{known:?}");
        if known == Learned::Busy {
            assert_eq!(here(&fdb, KNOWN), Learned::Moved, "with the next frame");
        }
        assert_eq!((here(&fdb, A), here(&fdb, B)), (Learned::Held, Learned::Held));
        assert_eq!(fdb.lookup(NET, mac(1)), Some(Destination::Remote(KNOWN)));
        is_whole(&fdb);
    });
}
