//! The four kinds of ring half without memory, a hostile peer's index included.

use std::cell::Cell;

use super::*;

/// The peer's word and ours, in one thread.
#[derive(Default)]
struct Words {
    peer: Cell<u16>,
    own: Cell<u16>,
    masked: Cell<bool>,
}

impl Indices for Words {
    fn load_peer(&self) -> u16 {
        self.peer.get()
    }
    fn store_own(&self, value: u16) {
        self.own.set(value);
    }
    fn is_masked(&self) -> bool {
        self.masked.get()
    }
    fn set_masked(&self, masked: bool) {
        self.masked.set(masked);
    }
    fn fence(&self) {}
}

const START: u16 = 0xfff0;

fn words(peer: u16) -> Words {
    Words { peer: Cell::new(peer), ..Words::default() }
}

fn use_up(cursor: &mut Cursor, count: u16) {
    for _ in 0..count {
        assert!(cursor.peek().is_some());
        cursor.advance();
    }
}

#[test]
fn a_server_half_walks_over_the_wrap() {
    let words = words(START);
    let mut cursor = Cursor::server(32, START);
    assert_eq!(cursor.look(&words), Ok(0));
    assert_eq!(cursor.peek(), None);
    words.peer.set(START.wrapping_add(32));
    assert_eq!(cursor.look(&words), Ok(32));
    use_up(&mut cursor, 32);
    assert_eq!(cursor.peek(), None);
    assert!(cursor.publish(&words));
    assert_eq!(words.own.get(), 0x0010);
    assert!(!cursor.publish(&words), "nothing new");
}

#[test]
fn a_client_tx_half_is_full_at_tail_plus_size() {
    let words = words(START);
    let mut cursor = Cursor::client_tx(32, START);
    assert_eq!(cursor.look(&words), Ok(32));
    use_up(&mut cursor, 32);
    assert_eq!(cursor.look(&words), Ok(0));
    cursor.publish(&words);
    assert_eq!(words.own.get(), 0x0010);
    words.peer.set(START.wrapping_add(5));
    assert_eq!(cursor.look(&words), Ok(5));
}

#[test]
fn a_client_rx_half_offers_what_it_does_not_hold() {
    let words = words(START);
    let mut cursor = Cursor::client_rx(32, START);
    assert_eq!(cursor.look(&words), Ok(0));
    words.peer.set(START.wrapping_add(20));
    assert_eq!(cursor.look(&words), Ok(20));
    use_up(&mut cursor, 20);
    cursor.publish(&words);
    assert_eq!(words.own.get(), START.wrapping_add(20 + 32));
}

#[test]
fn an_index_that_cannot_be_is_refused_and_changes_nothing() {
    let jump = |pending| Err(Violation::IndexJump { pending, size: 32 });
    let words = words(START);
    let halves = [Cursor::server(32, START), Cursor::client_tx(32, START), Cursor::client_rx(32, START)];
    for (mut cursor, bias) in halves.into_iter().zip([0u16, 32, 0]) {
        for claimed in [33u16, 34, 0x8000, 0xffff] {
            words.peer.set(START.wrapping_add(claimed).wrapping_sub(bias));
            assert_eq!(cursor.look(&words), jump(claimed));
        }
        words.peer.set(START.wrapping_add(32).wrapping_sub(bias));
        assert_eq!(cursor.look(&words), Ok(32));
    }
}

#[test]
fn an_index_behind_what_we_have_used_is_refused() {
    let words = words(10);
    let mut cursor = Cursor::server(32, 0);
    assert_eq!(cursor.look(&words), Ok(10));
    use_up(&mut cursor, 6);
    words.peer.set(5);
    assert_eq!(cursor.look(&words), Err(Violation::IndexJump { pending: 5, size: 32 }));
    words.peer.set(6);
    assert_eq!(cursor.look(&words), Ok(0), "back to what we have used harms nobody");
}

#[test]
fn slots_taken_and_not_released_count_against_the_ring() {
    let words = words(32);
    let mut cursor = Cursor::server(32, 0);
    assert_eq!(cursor.look(&words), Ok(32));
    use_up(&mut cursor, 20);
    words.peer.set(40);
    assert_eq!(cursor.look(&words), Err(Violation::IndexJump { pending: 40, size: 32 }));
    cursor.publish(&words);
    assert_eq!(cursor.look(&words), Ok(20));
}

#[test]
fn arm_clears_the_mask_and_looks_again() {
    let words = words(0);
    words.masked.set(true);
    let mut cursor = Cursor::server(32, 0);
    assert!(!must_wake(&words));
    assert_eq!(cursor.arm(&words), Ok(false));
    assert!(must_wake(&words));
    words.peer.set(1);
    assert_eq!(cursor.arm(&words), Ok(true));
}

#[test]
fn advancing_without_a_slot_does_nothing() {
    let mut cursor = Cursor::server(32, 7);
    cursor.advance();
    assert_eq!((cursor.available(), cursor.unpublished()), (0, 0));
}
