//! Memory that the client takes away while we use it. A handler of SIGBUS belongs to the whole process, and without one the process
//! dies: so each test runs in a process of its own, which is this test again.

use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Barrier};
use std::thread;

use super::*;
use crate::error::{PushError, Reject, Violation};
use crate::guard::{GUARDED_MAX, Guard, guard_memory};

/// A connection over memory that is not sealed.
struct Unsealed {
    bench: Bench,
    interface: Interface,
}

fn trusting() -> ServerConfig {
    ServerConfig { allow_unsealed: true, ..ServerConfig::default() }
}

fn unsealed_bench() -> Bench {
    let file = tempfile::tempfile().unwrap();
    file.set_len(REGION_BYTES).unwrap();
    Bench::over(file, trusting(), limits()).describe()
}

impl Unsealed {
    fn new() -> Self {
        let mut bench = unsealed_bench();
        for slot in 0..SLOTS {
            let at = BUFFERS_AT + u32::from(slot) * BUFFER_BYTES;
            bench.memory.set_slot(S2M_AT, slot, descriptor(0, 0, 64, at));
            bench.memory.set_slot(M2S_AT, slot, descriptor(0, 0, BUFFER_BYTES, at));
        }
        let interface = bench.connect().unwrap();
        bench.memory.set_head(S2M_AT, 4);
        bench.memory.set_head(M2S_AT, 4);
        bench.memory.write(u64::from(BUFFERS_AT), &[1; 2048]);
        Self { bench, interface }
    }

    /// The file from here on is taken away.
    fn truncate(&self, bytes: u64) {
        self.bench.memory.file.set_len(bytes).unwrap();
    }

    fn takes(&mut self) -> Vec<u8> {
        let mut bytes = vec![9; 64];
        let packet = self.interface.rx[0].next_packet().unwrap().unwrap();
        assert_eq!(packet.copy_to(&mut bytes), Some(64));
        bytes
    }

    fn assert_lost(&mut self) {
        let Interface { rx, tx, .. } = &mut self.interface;
        assert_eq!(rx[0].pending(), Err(Violation::MemoryLost));
        assert_eq!(rx[0].arm(), Err(Violation::MemoryLost));
        assert_eq!(tx[0].free(), Err(Violation::MemoryLost));
    }
}

#[test]
fn memory_taken_away_ends_one_connection_and_nothing_else() {
    let output =
        in_a_process_of_its_own("guard::memory_taken_away_ends_one_connection_and_nothing_else", || {
            guard_memory().unwrap();
            guard_memory().unwrap();
            let mut other = Unsealed::new();
            // While packets are read: between two of a burst, the rings and all.
            let mut reading = Unsealed::new();
            assert_eq!(reading.interface.rx[0].pending(), Ok(4));
            assert_eq!(reading.takes(), [1; 64]);
            let packet = reading.interface.rx[0].next_packet().unwrap().unwrap();
            reading.bench.memory.file.set_len(0).unwrap();
            let mut bytes = [9; 64];
            assert_eq!(packet.copy_to(&mut bytes), Some(64));
            assert_eq!(bytes, [0; 64], "zeros stand in its place");
            reading.interface.rx[0].release();
            reading.assert_lost();
            assert_eq!(
                reading.interface.tx[0].push(&[7; 64]),
                Err(PushError::Violation(Violation::MemoryLost))
            );
            // While packets are written: only the buffers are gone, the rings' page is not.
            let mut writing = Unsealed::new();
            assert_eq!(writing.interface.tx[0].free(), Ok(4));
            writing.truncate(4096);
            writing.interface.tx[0].push(&[7; 64]).unwrap();
            writing.interface.tx[0].flush().unwrap();
            writing.assert_lost();
            // At the look itself.
            let mut looking = Unsealed::new();
            looking.truncate(0);
            looking.assert_lost();
            // The other one has seen nothing of it.
            assert_eq!(other.interface.rx[0].pending(), Ok(4));
            assert_eq!(other.takes(), [1; 64]);
            other.interface.tx[0].push(&[7; 64]).unwrap();
            other.interface.tx[0].flush().unwrap();
            assert_eq!(other.bench.memory.tail(M2S_AT), 1);
        });
    assert_survived(&output);
}

#[test]
fn threads_that_use_memory_while_it_is_taken_away_find_out() {
    let output =
        in_a_process_of_its_own("guard::threads_that_use_memory_while_it_is_taken_away_find_out", || {
            guard_memory().unwrap();
            for _ in 0..20 {
                let Unsealed { bench, mut interface } = Unsealed::new();
                let (mut rx, mut tx) = (interface.rx.remove(0), interface.tx.remove(0));
                let file = bench.memory.file;
                drop(bench.memory.regions);
                // Taken away only once both threads are at work.
                let at_work = Arc::new(Barrier::new(3));
                let (first, second) = (Arc::clone(&at_work), Arc::clone(&at_work));
                let reader = thread::spawn(move || {
                    rx.pending().unwrap();
                    first.wait();
                    wait_until("the reader finds out", || rx.pending().is_err());
                    rx.pending()
                });
                let writer = thread::spawn(move || {
                    tx.free().unwrap();
                    second.wait();
                    wait_until("the writer finds out", || {
                        let _ = tx.push(&[7; 64]);
                        tx.free().is_err()
                    });
                    tx.free()
                });
                at_work.wait();
                file.set_len(0).unwrap();
                assert_eq!(reader.join().unwrap(), Err(Violation::MemoryLost));
                assert_eq!(writer.join().unwrap(), Err(Violation::MemoryLost));
            }
        });
    assert_survived(&output);
}

#[test]
fn beyond_the_table_a_client_is_refused_and_places_come_back() {
    let output =
        in_a_process_of_its_own("guard::beyond_the_table_a_client_is_refused_and_places_come_back", || {
            guard_memory().unwrap();
            // More connections than places, one after the other.
            for _ in 0..GUARDED_MAX + 10 {
                unsealed_bench().connect().unwrap();
            }
            // Mappings that nobody touches, at addresses that are nobody's.
            let place = |_| Guard::new(0, 1).unwrap().unwrap();
            let mut all: Vec<Guard> = (0..GUARDED_MAX).map(place).collect();
            let refused = unsealed_bench().connect();
            let full = Reject::TooManyGuarded { max: GUARDED_MAX };
            assert!(matches!(refused, Err(HandshakeError::Rejected(why)) if why == full), "{refused:?}");
            Bench::described(ServerConfig::default()).connect().expect("sealed memory needs no place");
            all.pop();
            let mut last = Unsealed::new();
            last.truncate(0);
            last.assert_lost();
            drop(last);
            assert!(!Guard::new(0, 1).unwrap().unwrap().is_lost(), "a place that was used is as new");
        });
    assert_survived(&output);
}

/// What `allow_unsealed` warns of.
#[test]
fn without_the_guard_the_process_dies() {
    let output = in_a_process_of_its_own("guard::without_the_guard_the_process_dies", || {
        let mut unsealed = Unsealed::new();
        unsealed.truncate(0);
        let _ = unsealed.interface.rx[0].pending();
    });
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

/// A fault that is not in a region of ours.
fn fault_elsewhere() {
    let file = tempfile::tempfile().unwrap();
    file.set_len(REGION_BYTES).unwrap();
    let memory = Memory::new(file);
    memory.file.set_len(0).unwrap();
    memory.read::<8>(0);
}

#[test]
fn a_fault_elsewhere_is_still_the_end() {
    let output = in_a_process_of_its_own("guard::a_fault_elsewhere_is_still_the_end", || {
        guard_memory().unwrap();
        let _unsealed = Unsealed::new();
        fault_elsewhere();
    });
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{output:?}");
}

/// A SIGBUS that is no fault, to this thread: sent by a process, or by the kernel (BUS_MCEERR_AO: broken memory that nobody has
/// touched yet), as the code says.
fn send_sigbus(code: i32) {
    // SAFETY: siginfo_t is plain integers, for which all zero is a value.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    (info.si_signo, info.si_code) = (libc::SIGBUS, code);
    // SAFETY: the kernel reads one whole siginfo_t.
    let sent = unsafe {
        let (process, thread) = (libc::getpid(), libc::gettid());
        libc::syscall(libc::SYS_rt_tgsigqueueinfo, process, thread, libc::SIGBUS, &raw const info)
    };
    assert_eq!(sent, 0);
}

fn assert_guarded() {
    let mut unsealed = Unsealed::new();
    unsealed.truncate(0);
    unsealed.assert_lost();
}

/// The handler before ours is that of Rust's standard library, which takes itself out when it is called.
#[test]
fn a_signal_that_was_sent_and_survived_leaves_the_guard() {
    let output =
        in_a_process_of_its_own("guard::a_signal_that_was_sent_and_survived_leaves_the_guard", || {
            guard_memory().unwrap();
            for _ in 0..2 {
                // SAFETY: no pointers.
                assert_eq!(unsafe { libc::kill(libc::getpid(), libc::SIGBUS) }, 0);
                for code in [libc::SI_USER, libc::SI_TKILL, libc::BUS_MCEERR_AO] {
                    send_sigbus(code);
                    assert_guarded();
                }
            }
            // Somebody sets it back: then it can be had again.
            // SAFETY: the default action.
            unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
            guard_memory().unwrap();
            assert_guarded();
        });
    assert_survived(&output);
}

#[test]
fn a_signal_that_was_ignored_still_is() {
    let output = in_a_process_of_its_own("guard::a_signal_that_was_ignored_still_is", || {
        // SAFETY: no handler.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_IGN) };
        guard_memory().unwrap();
        for code in [libc::SI_USER, libc::BUS_MCEERR_AO] {
            send_sigbus(code);
            assert_guarded();
        }
    });
    assert_survived(&output);
}

#[test]
fn a_signal_that_was_the_end_still_is() {
    let output = in_a_process_of_its_own("guard::a_signal_that_was_the_end_still_is", || {
        // SAFETY: no handler.
        unsafe { libc::signal(libc::SIGBUS, libc::SIG_DFL) };
        guard_memory().unwrap();
        assert_guarded();
        println!("guarded");
        send_sigbus(libc::BUS_MCEERR_AO);
    });
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.signal() == Some(libc::SIGBUS) && text.contains("guarded"), "{output:?}");
}

extern "C" fn leave_with_42(_: i32) {
    // SAFETY: ends the process at once, as a signal handler may.
    unsafe { libc::_exit(42) };
}

#[test]
fn a_fault_elsewhere_goes_to_the_handler_before() {
    let output = in_a_process_of_its_own("guard::a_fault_elsewhere_goes_to_the_handler_before", || {
        let handler: extern "C" fn(i32) = leave_with_42;
        // SAFETY: a handler of the right form that only ends the process.
        unsafe { libc::signal(libc::SIGBUS, handler as usize) };
        guard_memory().unwrap();
        let mut ours = Unsealed::new();
        ours.truncate(0);
        ours.assert_lost();
        println!("ours went to the guard");
        fault_elsewhere();
    });
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.code() == Some(42) && text.contains("ours went to the guard"), "{output:?}");
}
