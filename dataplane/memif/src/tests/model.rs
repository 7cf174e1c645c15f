//! Both sides of both rings under random sequences of operations, against a plain queue.

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::client::ClientConfig;
use crate::error::PushError;
use crate::pair;
use crate::rx::RxRing;
use crate::server::ServerConfig;
use crate::tx::TxRing;

#[derive(Clone, Debug)]
enum Step {
    Push(usize),
    Flush,
    Pending,
    Next,
    Release,
    Arm,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0usize..2100).prop_map(Step::Push),
        2 => Just(Step::Flush),
        2 => Just(Step::Pending),
        4 => Just(Step::Next),
        1 => Just(Step::Release),
        1 => Just(Step::Arm),
    ]
}

/// What a ring should do: three queues that packets pass through.
#[derive(Default)]
struct Oracle {
    pushed: VecDeque<Vec<u8>>,
    flushed: VecDeque<Vec<u8>>,
    seen: usize,
    held: usize,
}

fn run(mut tx: TxRing, mut rx: RxRing, steps: &[Step]) -> Result<(), TestCaseError> {
    let size = usize::from(tx.size());
    let mut oracle = Oracle::default();
    let mut bytes = [0; 2048];
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Step::Push(length) => {
                let packet = vec![number as u8; length];
                let full = oracle.pushed.len() + oracle.flushed.len() + oracle.held == size;
                let expected = match length {
                    0..14 => Err(PushError::TooShort),
                    _ if full => Err(PushError::Full),
                    2049.. => Err(PushError::TooLong { capacity: 2048 }),
                    _ => Ok(()),
                };
                prop_assert_eq!(tx.push(&packet), expected);
                if expected.is_ok() {
                    oracle.pushed.push_back(packet);
                }
            }
            Step::Flush => {
                tx.flush().unwrap();
                oracle.flushed.append(&mut oracle.pushed);
            }
            Step::Pending => {
                oracle.seen = oracle.flushed.len();
                prop_assert_eq!(rx.pending(), Ok(oracle.seen as u16));
            }
            Step::Arm => {
                oracle.seen = oracle.flushed.len();
                prop_assert_eq!(rx.arm(), Ok(oracle.seen > 0));
            }
            Step::Next => {
                let taken = rx.next_packet().map(|packet| packet.unwrap().copy_to(&mut bytes).unwrap());
                let expected = if oracle.seen > 0 { oracle.flushed.pop_front() } else { None };
                prop_assert_eq!(taken.map(|length| bytes[..length].to_vec()), expected);
                oracle.held += usize::from(taken.is_some());
                oracle.seen -= usize::from(taken.is_some());
            }
            Step::Release => {
                rx.release();
                oracle.held = 0;
            }
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]
    #[test]
    fn a_ring_is_a_bounded_queue(steps in prop::collection::vec(step(), 0..600), s2m: bool) {
        let config = ClientConfig { ring_log2: 5, ..ClientConfig::default() };
        let (mut client, mut server) = pair(config, ServerConfig::default()).unwrap();
        if s2m {
            run(client.tx.remove(0), server.rx.remove(0), &steps)?;
        } else {
            run(server.tx.remove(0), client.rx.remove(0), &steps)?;
        }
    }
}
