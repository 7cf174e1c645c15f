//! The ring's index protocol under the loom model checker: every interleaving, and every reordering that the memory model allows,
//! within a bound on preemptions. The code under test is the crate's own `cursor`; only the words it works on are loom's.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p peregrine-memif --test loom --release`
#![cfg(loom)]
#![allow(clippy::unwrap_used, reason = "tests")]

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::sync::atomic::{AtomicBool, AtomicU16, Ordering, fence};
use loom::thread;
use peregrine_memif::cursor::{Cursor, Indices, must_wake};

const SIZE: u16 = 2;

/// One ring: the client writes `head`, the server `tail`, the receiver `masked`.
struct Ring {
    head: AtomicU16,
    tail: AtomicU16,
    masked: AtomicBool,
    slots: [UnsafeCell<u16>; SIZE as usize],
    /// Stands for the eventfd: a wake-up that was sent.
    woken: AtomicBool,
}

// SAFETY: loom's cells check every access themselves: a race fails the test instead of being undefined.
unsafe impl Sync for Ring {}

impl Ring {
    fn new(start: u16, masked: bool) -> Arc<Self> {
        Arc::new(Self {
            head: AtomicU16::new(start),
            tail: AtomicU16::new(start),
            masked: AtomicBool::new(masked),
            slots: [UnsafeCell::new(0), UnsafeCell::new(0)],
            woken: AtomicBool::new(false),
        })
    }

    /// loom reports a race if a slot is ever read and written at once: so this also checks who owns it when.
    fn put(&self, index: u16, value: u16) {
        // SAFETY: loom checks that no other access is concurrent, and fails the test if one is.
        self.slots[usize::from(index % SIZE)].with_mut(|slot| unsafe { *slot = value });
    }

    fn take(&self, index: u16) -> u16 {
        // SAFETY: as in `put`.
        self.slots[usize::from(index % SIZE)].with(|slot| unsafe { *slot })
    }
}

struct Client(Arc<Ring>);
struct Server(Arc<Ring>);

macro_rules! indices {
    ($side:ident, own $own:ident, peer $peer:ident) => {
        impl Indices for $side {
            fn load_peer(&self) -> u16 {
                self.0.$peer.load(Ordering::Acquire)
            }
            fn store_own(&self, value: u16) {
                self.0.$own.store(value, Ordering::Release);
            }
            fn is_masked(&self) -> bool {
                self.0.masked.load(Ordering::Relaxed)
            }
            fn set_masked(&self, masked: bool) {
                self.0.masked.store(masked, Ordering::Relaxed);
            }
            fn fence(&self) {
                fence(Ordering::SeqCst);
            }
        }
    };
}
indices!(Client, own head, peer tail);
indices!(Server, own tail, peer head);

fn model(test: impl Fn() + Sync + Send + 'static) {
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(test);
}

/// Sends 1, 2, 3 through a ring of two slots.
fn send(ring: &Ring, side: &impl Indices, mut cursor: Cursor) {
    let mut value = 1;
    while value <= 3 {
        if cursor.look(side).unwrap() == 0 {
            thread::yield_now();
        }
        while value <= 3 {
            let Some(index) = cursor.peek() else { break };
            ring.put(index, value);
            cursor.advance();
            value += 1;
        }
        cursor.publish(side);
    }
}

/// Receives them in order.
fn receive(ring: &Ring, side: &impl Indices, mut cursor: Cursor) {
    let mut value = 1;
    while value <= 3 {
        if cursor.look(side).unwrap() == 0 {
            thread::yield_now();
        }
        while let Some(index) = cursor.peek() {
            assert_eq!(ring.take(index), value);
            cursor.advance();
            value += 1;
        }
        cursor.publish(side);
    }
}

#[test]
fn s2m_packets_cross_in_order_and_slots_are_never_shared() {
    model(|| {
        let start = 0xffff;
        let ring = Ring::new(start, true);
        let client = Client(Arc::clone(&ring));
        let sender = thread::spawn(move || send(&client.0, &client, Cursor::client_tx(SIZE, start)));
        receive(&ring, &Server(Arc::clone(&ring)), Cursor::server(SIZE, start));
        sender.join().unwrap();
    });
}

#[test]
fn m2s_packets_cross_in_order_and_slots_are_never_shared() {
    model(|| {
        let start = 0xffff;
        let ring = Ring::new(start, true);
        let client = Client(Arc::clone(&ring));
        client.store_own(start.wrapping_add(SIZE));
        let server = Server(Arc::clone(&ring));
        let sender = thread::spawn(move || send(&server.0, &server, Cursor::server(SIZE, start)));
        receive(&ring, &client, Cursor::client_rx(SIZE, start));
        sender.join().unwrap();
    });
}

/// The sender sends one packet while the receiver goes to sleep: either the receiver sees the packet, or the sender sees that it
/// must wake it. Never neither.
fn no_wakeup_is_lost(
    sender: impl Indices + Send + 'static,
    mut tx: Cursor,
    receiver: &impl Indices,
    mut rx: Cursor,
    ring: &Arc<Ring>,
) {
    let doorbell = Arc::clone(ring);
    let thread = thread::spawn(move || {
        tx.look(&sender).unwrap();
        tx.advance();
        tx.publish(&sender);
        if must_wake(&sender) {
            doorbell.woken.store(true, Ordering::Relaxed);
        }
    });
    let pending = rx.arm(receiver).unwrap();
    thread.join().unwrap();
    assert!(pending || ring.woken.load(Ordering::Relaxed), "asleep with a packet in the ring");
}

#[test]
fn s2m_no_wakeup_is_lost() {
    model(|| {
        let ring = Ring::new(0, true);
        let (client, server) = (Client(Arc::clone(&ring)), Server(Arc::clone(&ring)));
        no_wakeup_is_lost(client, Cursor::client_tx(SIZE, 0), &server, Cursor::server(SIZE, 0), &ring);
    });
}

#[test]
fn m2s_no_wakeup_is_lost() {
    model(|| {
        let ring = Ring::new(0, true);
        let (client, server) = (Client(Arc::clone(&ring)), Server(Arc::clone(&ring)));
        client.store_own(SIZE);
        no_wakeup_is_lost(server, Cursor::server(SIZE, 0), &client, Cursor::client_rx(SIZE, 0), &ring);
    });
}

/// A sender without the full fence, as some peers are.
struct Unfenced(Client);

impl Indices for Unfenced {
    fn load_peer(&self) -> u16 {
        self.0.load_peer()
    }
    fn store_own(&self, value: u16) {
        self.0.store_own(value);
    }
    fn is_masked(&self) -> bool {
        self.0.is_masked()
    }
    fn set_masked(&self, masked: bool) {
        self.0.set_masked(masked);
    }
    fn fence(&self) {}
}

/// The model can fail: without the fence it finds the lost wake-up. That is why a sleep has a bound.
#[test]
#[should_panic(expected = "asleep with a packet in the ring")]
fn without_the_fence_the_model_finds_the_lost_wakeup() {
    model(|| {
        let ring = Ring::new(0, true);
        let (client, server) = (Unfenced(Client(Arc::clone(&ring))), Server(Arc::clone(&ring)));
        no_wakeup_is_lost(client, Cursor::client_tx(SIZE, 0), &server, Cursor::server(SIZE, 0), &ring);
    });
}
