//! Onto how many cores the steps of a flow fall, if nothing but a hash decides: the one that FALCON (EuroSys 2021) published, of
//! whole flow hashes, and this engine's table for `static` placement.

use peregrine_dataplane::frame::bucket;
use peregrine_dataplane::placement::{Buckets, Entry, Placement, hashed, in_turn};
use peregrine_dataplane::types::{Route, WorkerId};
use serde::{Deserialize, Serialize};

/// Cores, and steps of each flow.
const CORES: usize = 3;
/// Flows that are looked at.
const FLOWS: u64 = 1 << 20;

/// The share of flows whose three steps fall on three cores.
#[derive(Clone, Copy, Debug, Deserialize, Serialize)]
pub struct DistinctShare {
    pub paper_hash: f64,
    pub ours: f64,
}

impl DistinctShare {
    pub fn count() -> DistinctShare {
        let routes = static_routes(CORES);
        let share = |cores: &dyn Fn(u32) -> [usize; CORES]| {
            let distinct = (0..FLOWS).filter(|flow| are_distinct(cores(mixed(*flow))));
            distinct.count() as f64 / FLOWS as f64
        };
        DistinctShare {
            paper_hash: share(&|hash| [1, 2, 3].map(|step| hashed(hash, step, CORES).index())),
            ours: share(&|hash| {
                let route = routes.get(usize::from(bucket(hash))).copied().unwrap_or(Route::all(WorkerId(0)));
                [route.decap(), route.lookup(), route.encap()].map(WorkerId::index)
            }),
        }
    }
}

/// By bucket, what the engine does with `static` placement.
pub fn static_routes(workers: usize) -> Vec<Route> {
    let exits: Vec<WorkerId> = (0..workers).map(|worker| WorkerId(worker as u8)).collect();
    let placement = Placement::new(&exits, 0, 0);
    placement.spread(in_turn);
    let entry = WorkerId(0);
    let mut buckets = Buckets::new(&placement, entry);
    let mut route = |bucket| match buckets.enter(bucket, 0) {
        Entry::Go(route) => route,
        Entry::Wait => Route::all(entry), // never: nothing is under way
    };
    (0..=u8::MAX).map(&mut route).collect()
}

fn are_distinct([a, b, c]: [usize; CORES]) -> bool {
    a != b && b != c && a != c
}

/// A flow hash, as good as drawn by lot (SplitMix64).
fn mixed(flow: u64) -> u32 {
    let mut z = (flow + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((z ^ z >> 31) >> 32) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Over all 2^32 hashes 1.1576 % of the paper's are distinct: 0x61c8 is a multiple of 3, so most consecutive numbers fall on
    /// the same core.
    #[test]
    fn the_papers_hash_rarely_takes_three_cores_and_ours_always() {
        let share = DistinctShare::count();
        assert!((share.paper_hash - 0.011576).abs() < 0.001, "{share:?}");
        assert_eq!(share.ours, 1.0);
    }

    #[test]
    fn on_two_workers_static_placement_moves_one_step_of_each_flow() {
        for route in static_routes(2) {
            assert_ne!(route.decap(), route.lookup());
        }
    }
}
