//! The ring between workers under the loom model checker: every interleaving, and every reordering that the memory model allows,
//! within a bound on preemptions. The file under test is the crate's own; only the atomics and cells are loom's, which also
//! see any slot that is written and read at once.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p peregrine-dataplane --test loom --release`
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests")]

/// Takes the place of the crate's module of that name.
mod sync {
    pub use loom::cell::UnsafeCell;
    pub use loom::sync::Arc;
    pub use loom::sync::atomic::{AtomicUsize, Ordering};

    /// A hint, of which the model has nothing to check.
    pub fn prefetch<T>(_: &T) {}
}

#[path = "../src/ring.rs"]
#[allow(dead_code, reason = "not all of it is modelled")]
mod ring;

use loom::thread;
use ring::ring;

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

/// Three items through a ring of two: it is full once and wraps.
#[test]
fn items_arrive_once_and_in_order() {
    model(|| {
        let (mut producer, mut consumer) = ring::<u32>(2);
        let sender = thread::spawn(move || {
            for item in 0..3 {
                let mut rest = Err(item);
                while let Err(item) = rest {
                    rest = producer.push(item);
                    producer.publish();
                    if rest.is_err() {
                        thread::yield_now();
                    }
                }
            }
        });
        let mut got = Vec::new();
        while got.len() < 3 {
            match consumer.pop() {
                Some(item) => got.push(item),
                None => thread::yield_now(),
            }
            consumer.release();
        }
        sender.join().unwrap();
        assert_eq!(got, [0, 1, 2]);
        assert_eq!(consumer.pop(), None);
    });
}

/// What is put in and not published is not seen; what was taken and not released is not overwritten.
#[test]
fn a_burst_is_seen_as_a_whole() {
    model(|| {
        let (mut producer, mut consumer) = ring::<u32>(2);
        let sender = thread::spawn(move || {
            producer.push(1).unwrap();
            producer.push(2).unwrap();
            assert_eq!(producer.push(3), Err(3));
            producer.publish();
            producer
        });
        let first = consumer.pop();
        if first.is_some() {
            assert_eq!((first, consumer.peek(|item| *item)), (Some(1), Some(2)));
        }
        let mut producer = sender.join().unwrap();
        // Nothing was released, so there is no room whatever was taken.
        assert_eq!(producer.push(3), Err(3));
        consumer.release();
        assert_eq!(producer.has_room(), first.is_some());
    });
}
