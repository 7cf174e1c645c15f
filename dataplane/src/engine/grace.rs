//! When nothing that workers found by tables that were replaced is under way any more: then what it pointed to, a remote's or an endpoint's
//! place, may be somebody else's. Looked after by [`Engine::poll`] without waiting.
//!
//! First all workers take the tables. Then they make so many turns that whatever lay in a ring between two of them has been taken from it,
//! and that again and again, once for each place where a frame may still stop: that a worker made many turns before another one made any
//! tells nothing about what the other handed to it. (A frame that waits for its bucket to change workers waits as long as that takes, a few
//! turns, but is not bounded by a number of them.)

use super::{Engine, Presence};
use crate::types::Stage;

/// Turns of a round: a ring holds 16 bursts, and a turn takes one of them; but urgent ones first, and one turn has begun already.
const ROUND_TURNS: u64 = 64;
/// Steps that are left to a frame that has been classified, each on another worker, twice because it may have to wait for its way; and a
/// flooded one visits every worker.
const STEPS: usize = 2 * Stage::COUNT;

/// How far it is.
#[derive(Debug, Default)]
pub(super) enum Grace {
    /// Workers may look at the tables before.
    #[default]
    Tables,
    /// By worker: the turn that each is to reach; and so many rounds after this one.
    Rounds(Vec<u64>, usize),
}

impl Engine {
    /// Goes on as far as it can without waiting. True when it is over.
    pub(super) fn go_on(&self, grace: &mut Grace) -> bool {
        if matches!(grace, Grace::Tables) && self.has_everybody_obeyed() {
            let rounds = if self.is_alone { 0 } else { STEPS + self.workers.len() };
            *grace = Grace::Rounds(self.next_round(), rounds);
        }
        let Grace::Rounds(turns, rounds) = grace else { return false };
        let is_made = self.workers.iter().zip(&*turns).all(|(worker, turn)| {
            worker.presence == Presence::Absent || worker.counters.turns.get() >= *turn
        });
        if !is_made {
            return false;
        }
        match rounds.checked_sub(1) {
            Some(left) => {
                *grace = Grace::Rounds(self.next_round(), left);
                false
            }
            None => true,
        }
    }

    /// The turn that each worker is to reach for what lies in rings now to have been taken.
    fn next_round(&self) -> Vec<u64> {
        let turns = if self.is_alone { 1 } else { ROUND_TURNS };
        self.workers.iter().map(|worker| worker.counters.turns.get() + turns).collect()
    }
}
