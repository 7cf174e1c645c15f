//! Both sides of both rings under random sequences of operations, against a plain queue: with and without chains.

use std::collections::VecDeque;

use proptest::prelude::*;

use crate::CHAIN_MAX;
use crate::client::ClientConfig;
use crate::error::PushError;
use crate::pair;
use crate::ring::Role;
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
        2 => (0usize..12000).prop_map(Step::Push),
        1 => (30000usize..34000).prop_map(Step::Push),
        2 => Just(Step::Flush),
        2 => Just(Step::Pending),
        4 => Just(Step::Next),
        1 => Just(Step::Release),
        1 => Just(Step::Arm),
    ]
}

const BUFFER_BYTES: usize = 2048;

/// What a ring should do: three queues that packets pass through. Counted in slots, which a packet may take several of.
#[derive(Default)]
struct Oracle {
    pushed: VecDeque<Vec<u8>>,
    flushed: VecDeque<Vec<u8>>,
    seen: usize,
    held: usize,
}

fn slots_of(packets: &VecDeque<Vec<u8>>) -> usize {
    packets.iter().map(|packet| packet.len().div_ceil(BUFFER_BYTES)).sum()
}

impl Oracle {
    /// What a push must give, into a ring of `size` slots.
    fn push(&self, length: usize, chains: bool, size: usize, role: Role) -> Result<(), PushError> {
        let free = size - slots_of(&self.pushed) - slots_of(&self.flushed) - self.held;
        let slots_max = if chains { usize::from(CHAIN_MAX) } else { 1 };
        let capacity = slots_max * BUFFER_BYTES;
        // A server finds out what would fit only from the buffers that are offered.
        let knows_capacity = role == Role::Client || free >= slots_max;
        match length {
            0..14 => Err(PushError::TooShort),
            _ if free == 0 => Err(PushError::Full),
            _ if length > capacity && knows_capacity => Err(PushError::TooLong { capacity: capacity as u32 }),
            _ if length.div_ceil(BUFFER_BYTES) > free => Err(PushError::Full),
            _ => Ok(()),
        }
    }
}

fn run(mut tx: TxRing, mut rx: RxRing, chains: bool, steps: &[Step]) -> Result<(), TestCaseError> {
    let size = usize::from(tx.size());
    let mut oracle = Oracle::default();
    // A packet is cut from this at its step's number: its bytes differ from step to step and from buffer to buffer.
    let pattern: Vec<u8> = (0..40_000).map(|at| (at % 251) as u8).collect();
    let mut bytes = vec![0; usize::from(CHAIN_MAX) * BUFFER_BYTES];
    for (number, step) in steps.iter().enumerate() {
        match *step {
            Step::Push(length) => {
                let packet = &pattern[number..][..length];
                let expected = oracle.push(length, chains, size, tx.role());
                prop_assert_eq!(tx.push(packet), expected);
                if expected.is_ok() {
                    oracle.pushed.push_back(packet.to_vec());
                }
            }
            Step::Flush => {
                tx.flush().unwrap();
                oracle.flushed.append(&mut oracle.pushed);
            }
            Step::Pending => {
                oracle.seen = slots_of(&oracle.flushed);
                prop_assert_eq!(rx.pending(), Ok(oracle.seen as u16));
            }
            Step::Arm => {
                oracle.seen = slots_of(&oracle.flushed);
                prop_assert_eq!(rx.arm(), Ok(oracle.seen > 0));
            }
            Step::Next => {
                let taken = rx.next_packet().map(|packet| packet.unwrap().copy_to(&mut bytes).unwrap());
                let expected = if oracle.seen > 0 { oracle.flushed.pop_front() } else { None };
                prop_assert_eq!(taken.map(|length| bytes[..length].to_vec()), expected);
                let slots = taken.map_or(0, |length| length.div_ceil(BUFFER_BYTES));
                oracle.held += slots;
                oracle.seen -= slots;
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
    fn a_ring_is_a_bounded_queue(steps in prop::collection::vec(step(), 0..600), s2m: bool, chains: bool) {
        let client = ClientConfig { ring_log2: 5, chains, ..ClientConfig::default() };
        let server = ServerConfig { packet_bytes_max: 65536, chains, ..ServerConfig::default() };
        let (mut client, mut server) = pair(client, server).unwrap();
        if s2m {
            run(client.tx.remove(0), server.rx.remove(0), chains, &steps)?;
        } else {
            run(server.tx.remove(0), client.rx.remove(0), chains, &steps)?;
        }
    }
}
