//! The server's ring halves against a client that writes whatever it likes.

use std::time::Duration;

use super::*;
use crate::error::{BadDescriptor, PushError, Violation};
use crate::rx::RxRing;
use crate::tx::TxRing;

/// A connected bench whose indexes all start at `start`.
fn connected_at(start: u16) -> (Bench, RxRing, TxRing) {
    connected_with(ServerConfig { packet_bytes_max: 1500, ..ServerConfig::default() }, start)
}

pub(super) fn connected_with(config: ServerConfig, start: u16) -> (Bench, RxRing, TxRing) {
    let mut bench = Bench::described(config);
    for ring in [S2M_AT, M2S_AT] {
        bench.memory.set_head(ring, start);
        bench.memory.set_tail(ring, start);
    }
    let mut interface = bench.connect().unwrap();
    assert_eq!((interface.peer_name.as_str(), interface.peer_if_name.as_str()), ("tenant", "if0"));
    (bench, interface.rx.remove(0), interface.tx.remove(0))
}

fn connected() -> (Bench, RxRing, TxRing) {
    connected_at(0)
}

pub(super) fn taken(rx: &mut RxRing) -> Vec<u8> {
    let mut bytes = vec![0; 2048];
    let length = rx.next_packet().unwrap().unwrap().copy_to(&mut bytes).unwrap();
    bytes.truncate(length);
    bytes
}

#[test]
fn each_bad_descriptor_has_its_reason_and_costs_one_slot() {
    let end = REGION_BYTES as u32;
    let table = [
        (descriptor(0, 1, 64, 4096), BadDescriptor::Region),
        (descriptor(0, 0xffff, 64, 4096), BadDescriptor::Region),
        (descriptor(0, 0, 64, end - 63), BadDescriptor::Span),
        (descriptor(0, 0, 64, end), BadDescriptor::Span),
        (descriptor(0, 0, 64, u32::MAX), BadDescriptor::Span),
        (descriptor(0, 0, 1500, u32::MAX - 100), BadDescriptor::Span),
        (descriptor(0, 0, 1501, 4096), BadDescriptor::TooLong),
        (descriptor(0, 0, u32::MAX, 1), BadDescriptor::Span),
        (descriptor(0, 0, 13, 4096), BadDescriptor::TooShort),
        (descriptor(0, 0, 0, 4096), BadDescriptor::TooShort),
        (descriptor(1, 0, 64, 4096), BadDescriptor::Chained),
        // The last piece of that chain.
        (descriptor(0, 0, 64, 4096), BadDescriptor::Chained),
    ];
    let (bench, mut rx, _tx) = connected();
    for (slot, (bytes, _)) in (0..).zip(&table) {
        bench.memory.set_slot(S2M_AT, slot, *bytes);
    }
    let last = table.len() as u16;
    bench.memory.set_slot(S2M_AT, last, descriptor(0, 0, 64, end - 64));
    bench.memory.write(u64::from(end) - 64, &[0x5a; 64]);
    bench.memory.set_head(S2M_AT, last + 1);
    assert_eq!(rx.pending(), Ok(last + 1));
    for (bytes, reason) in &table {
        assert_eq!(rx.next_packet().unwrap().unwrap_err(), *reason, "{bytes:?}");
    }
    assert_eq!(
        taken(&mut rx),
        [0x5a; 64],
        "a good one after all the bad ones, at the very end of the region"
    );
    assert!(rx.next_packet().is_none());
    rx.release();
    assert_eq!(bench.memory.tail(S2M_AT), last + 1);
}

#[test]
fn a_chain_cut_by_a_burst_is_still_one_chain() {
    let (bench, mut rx, _tx) = connected();
    bench.memory.set_slot(S2M_AT, 0, descriptor(1, 0, 64, 4096));
    bench.memory.set_slot(S2M_AT, 1, descriptor(0, 0, 64, 4096));
    bench.memory.set_slot(S2M_AT, 2, descriptor(0, 0, 65, 4096));
    for (head, expected) in [(1, true), (2, true), (3, false)] {
        bench.memory.set_head(S2M_AT, head);
        assert_eq!(rx.pending(), Ok(1));
        let result = rx.next_packet().unwrap();
        assert_eq!(matches!(result, Err(BadDescriptor::Chained)), expected);
        rx.release();
    }
}

/// DPDK clients do not take NEXT out of a slot again.
#[test]
fn a_slot_that_had_next_is_given_back_without_it() {
    let (bench, mut rx, _tx) = connected();
    bench.memory.set_slot(S2M_AT, 0, descriptor(1, 0, 64, 4096));
    bench.memory.set_slot(S2M_AT, 1, descriptor(0, 0, 65, 8192));
    bench.memory.set_head(S2M_AT, 2);
    rx.pending().unwrap();
    while rx.next_packet().is_some() {}
    rx.release();
    assert_eq!(bench.memory.slot(S2M_AT, 0), descriptor(0, 0, 64, 4096));
    assert_eq!(bench.memory.slot(S2M_AT, 1), descriptor(0, 0, 65, 8192));
}

#[test]
fn a_jumping_head_is_a_violation_on_both_rings() {
    let (bench, mut rx, mut tx) = connected_at(0xfff0);
    for jump in [33u16, 1000, 0x8000, 0xffff] {
        let head = 0xfff0u16.wrapping_add(jump);
        bench.memory.set_head(S2M_AT, head);
        bench.memory.set_head(M2S_AT, head);
        let violation = Violation::IndexJump { pending: jump, size: 32 };
        assert_eq!(rx.pending(), Err(violation));
        assert_eq!(rx.arm(), Err(violation));
        assert_eq!(rx.wait(Duration::ZERO).unwrap_err().kind(), std::io::ErrorKind::InvalidData);
        assert!(rx.next_packet().is_none(), "nothing of it was believed");
        assert_eq!(tx.free(), Err(violation));
        assert_eq!(tx.push(&[0; 64]), Err(PushError::Violation(violation)));
    }
}

#[test]
fn indexes_go_on_from_where_they_stand_and_wrap() {
    let (bench, mut rx, mut tx) = connected_at(0xfff0);
    for slot in 0..SLOTS {
        let at = BUFFERS_AT + u32::from(slot) * BUFFER_BYTES;
        bench.memory.set_slot(S2M_AT, slot, descriptor(0, 0, 14 + u32::from(slot), at));
        bench.memory.set_slot(M2S_AT, slot, descriptor(0, 0, BUFFER_BYTES, at));
    }
    bench.memory.set_head(S2M_AT, 0x10);
    bench.memory.set_head(M2S_AT, 0x10);
    assert_eq!((rx.pending(), tx.free()), (Ok(32), Ok(32)));
    for offset in 0..32u16 {
        let slot = 0xfff0u16.wrapping_add(offset) % SLOTS;
        assert_eq!(taken(&mut rx).len(), 14 + usize::from(slot));
        tx.push(&vec![0; 100 + usize::from(offset)]).unwrap();
    }
    rx.release();
    tx.flush().unwrap();
    assert_eq!((bench.memory.tail(S2M_AT), bench.memory.tail(M2S_AT)), (0x10, 0x10));
    assert_eq!(bench.memory.slot(M2S_AT, 16)[4..8], 100u32.to_ne_bytes());
}

#[test]
fn a_descriptor_rewritten_after_it_was_read_changes_nothing() {
    let (bench, mut rx, mut tx) = connected();
    bench.memory.set_slot(S2M_AT, 0, descriptor(0, 0, 64, BUFFERS_AT));
    bench.memory.write(u64::from(BUFFERS_AT), &[1; 64]);
    bench.memory.set_head(S2M_AT, 1);
    rx.pending().unwrap();
    let packet = rx.next_packet().unwrap().unwrap();
    bench.memory.set_slot(S2M_AT, 0, descriptor(1, 9, u32::MAX, u32::MAX));
    let mut bytes = [0; 2048];
    assert_eq!(packet.copy_to(&mut bytes), Some(64));
    let mut front = [0; 8];
    assert_eq!(packet.copy_front_to(&mut front), Some(8));
    assert_eq!(front, bytes[..8]);
    assert_eq!(packet.copy_front_to(&mut [0; 65]), None, "longer than the packet");
    assert_eq!(bytes[..64], [1; 64]);
    // And a copy, once made, is out of reach.
    bench.memory.write(u64::from(BUFFERS_AT), &[2; 64]);
    assert_eq!(bytes[..64], [1; 64]);
    // An offer withdrawn after the look: the push reads it once, and judges what it read.
    bench.memory.set_slot(M2S_AT, 0, descriptor(0, 0, BUFFER_BYTES, BUFFERS_AT));
    bench.memory.set_head(M2S_AT, 1);
    assert_eq!(tx.free(), Ok(1));
    bench.memory.set_slot(M2S_AT, 0, descriptor(0, 7, BUFFER_BYTES, BUFFERS_AT));
    assert_eq!(tx.push(&[0; 64]), Err(PushError::BadDescriptor(BadDescriptor::Region)));
}

#[test]
fn bad_offers_are_passed_over_and_the_packet_takes_the_next() {
    let end = REGION_BYTES as u32;
    let table = [
        (descriptor(0, 1, 512, 4096), BadDescriptor::Region),
        (descriptor(0, 0, 512, end - 511), BadDescriptor::Span),
        (descriptor(0, 0, u32::MAX, 4096), BadDescriptor::Span),
        (descriptor(0, 0, 13, 4096), BadDescriptor::TooShort),
        (descriptor(0, 0, 0, 4096), BadDescriptor::TooShort),
    ];
    let (bench, _rx, mut tx) = connected();
    for (slot, (bytes, _)) in (0..).zip(&table) {
        bench.memory.set_slot(M2S_AT, slot, *bytes);
    }
    let last = table.len() as u16;
    // A stale NEXT in a good offer must not reach the reader.
    bench.memory.set_slot(M2S_AT, last, descriptor(1, 0, 512, end - 512));
    bench.memory.set_head(M2S_AT, last + 1);
    for (bytes, reason) in &table {
        assert_eq!(tx.push(&[7; 100]), Err(PushError::BadDescriptor(*reason)), "{bytes:?}");
    }
    tx.push(&[7; 100]).unwrap();
    assert_eq!(tx.push(&[7; 100]), Err(PushError::Full));
    tx.flush().unwrap();
    assert_eq!(bench.memory.tail(M2S_AT), last + 1);
    assert_eq!(bench.memory.slot(M2S_AT, 0), descriptor(0, 1, 0, 4096), "given back empty");
    assert_eq!(bench.memory.slot(M2S_AT, last), descriptor(0, 0, 100, end - 512));
    assert_eq!(bench.memory.read::<100>(u64::from(end) - 512), [7; 100]);
    assert_eq!(bench.memory.read::<1>(u64::from(end) - 412), [0], "nothing after the packet");
}

#[test]
fn a_small_offer_stays_for_a_small_packet() {
    let (bench, _rx, mut tx) = connected();
    bench.memory.set_slot(M2S_AT, 0, descriptor(0, 0, 100, BUFFERS_AT));
    bench.memory.set_head(M2S_AT, 1);
    assert_eq!(tx.push(&[7; 101]), Err(PushError::TooLong { capacity: 100 }));
    tx.push(&[7; 100]).unwrap();
}

#[test]
fn a_client_without_buffers_gets_nothing() {
    let (_bench, _rx, mut tx) = connected();
    assert_eq!(tx.free(), Ok(0));
    assert_eq!(tx.push(&[0; 64]), Err(PushError::Full));
    assert!(!tx.flush().unwrap());
}

#[test]
fn the_mask_decides_about_waking() {
    let (bench, mut rx, mut tx) = connected();
    assert_eq!(bench.memory.flags(S2M_AT), 1, "the server polls until it says otherwise");
    assert_eq!(rx.arm(), Ok(false));
    assert_eq!(bench.memory.flags(S2M_AT), 0);
    for slot in 0..4 {
        bench.memory.set_slot(M2S_AT, slot, descriptor(0, 0, BUFFER_BYTES, BUFFERS_AT));
    }
    bench.memory.set_head(M2S_AT, 4);
    let woken = || sys::wait_readable(bench.m2s_event.as_fd(), Duration::ZERO).unwrap();
    bench.memory.set_flags(M2S_AT, 1);
    tx.push(&[0; 64]).unwrap();
    assert!(!tx.flush().unwrap() && !woken());
    bench.memory.set_flags(M2S_AT, 0);
    tx.push(&[0; 64]).unwrap();
    tx.push(&[0; 64]).unwrap();
    assert!(tx.flush().unwrap() && woken());
}

/// Clears O_NONBLOCK on the open file that both sides share.
fn make_blocking(event: &OwnedFd) {
    // SAFETY: no pointers.
    let result = unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(event), libc::F_SETFL, 0) };
    assert_eq!(result, 0);
}

#[test]
fn an_eventfd_filled_and_made_blocking_by_the_client_does_not_stop_us() {
    let (bench, mut rx, mut tx) = connected();
    bench.memory.set_slot(M2S_AT, 0, descriptor(0, 0, BUFFER_BYTES, BUFFERS_AT));
    bench.memory.set_head(M2S_AT, 1);
    // The largest count there is: a plain write would now wait for a reader, and a plain read of the other for a writer.
    let full = (u64::MAX - 1).to_ne_bytes();
    std::io::Write::write_all(&mut File::from(bench.m2s_event.try_clone().unwrap()), &full).unwrap();
    make_blocking(&bench.m2s_event);
    make_blocking(&bench.s2m_event);
    let (done, finished) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        tx.push(&[0; 64]).unwrap();
        let woken = tx.flush().unwrap();
        rx.drain_event().unwrap();
        done.send(woken).unwrap();
    });
    assert_eq!(finished.recv_timeout(Duration::from_secs(10)), Ok(true), "stopped by the client's eventfd");
}

/// Tries to take the second page out of the file: by fallocate, then by MADV_REMOVE on a mapping. The errors.
fn punch(file: &File) -> [Option<i32>; 2] {
    use std::os::fd::AsRawFd;
    let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let error = |result| (result != 0).then(|| std::io::Error::last_os_error().raw_os_error().unwrap());
    // SAFETY: no pointers.
    let by_fallocate = error(unsafe { libc::fallocate(file.as_raw_fd(), mode, 4096, 4096) });
    // A read-only mapping can still be made, but is not enough.
    // SAFETY: a new mapping at an address of the kernel's choice, unmapped again.
    let by_advice = unsafe {
        let base =
            libc::mmap(std::ptr::null_mut(), 8192, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
        assert_ne!(base, libc::MAP_FAILED);
        let error = error(libc::madvise(base.byte_add(4096), 4096, libc::MADV_REMOVE));
        libc::munmap(base, 8192);
        error
    };
    [by_fallocate, by_advice]
}

#[test]
fn a_client_that_punches_holes_is_stopped_by_the_seal() {
    let mut bench = Bench::described(ServerConfig::default());
    assert_eq!(punch(&bench.memory.file)[0], None, "until CONNECT it can");
    let mut interface = bench.connect().unwrap();
    assert_eq!(punch(&bench.memory.file)[0], Some(libc::EPERM));
    assert!(punch(&bench.memory.file)[1].is_some());
    // Its own mapping, made before, stays writable, and everything works.
    bench.memory.write(4096, &[3; 64]);
    bench.memory.set_slot(S2M_AT, 0, descriptor(0, 0, 64, 4096));
    bench.memory.set_head(S2M_AT, 1);
    assert_eq!(interface.rx[0].pending(), Ok(1));
    assert_eq!(taken(&mut interface.rx[0]), [3; 64]);
    // All pages are there, touched or not.
    use std::os::unix::fs::MetadataExt;
    assert_eq!(bench.memory.file.metadata().unwrap().blocks() * 512, REGION_BYTES);
}
