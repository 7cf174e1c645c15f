//! What a look-up costs by the size of the table, each frame with another address of those in it, at random. In: each source address
//! is found, and sometimes written (once a second), and one destination. Out: each destination is found.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use peregrine_dataplane::frame::BURST;
use peregrine_dataplane::replay::{Numbers, Speed};
use peregrine_memif::Interface;
use serde::{Deserialize, Serialize};

use super::bench::{Bench, NUMBER_IN_ADDRESS, SENDER, Setup, stream};
use super::{Figure, INNER_BYTES, MILLION, Plan, RUNS, as_control};
use crate::rig::{inner, station, tenant_mac};

/// Addresses in the table.
const SIZES: [u32; 4] = [1, 1_000, 100_000, MILLION];
/// Nothing ages here.
const AGEING: Duration = Duration::from_secs(3600);

/// Which way the frames go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Way {
    /// From the underlay to a tenant: the source address is at random.
    In,
    /// From a tenant to the underlay: the destination address is.
    Out,
}

impl Way {
    pub fn name(self) -> &'static str {
        match self {
            Way::In => "in, by source",
            Way::Out => "out, by destination",
        }
    }
}

/// One way with a table of one size.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Point {
    pub way: Way,
    pub addresses: u32,
    pub mpps: Figure,
    /// Of the worker, in turns that found work.
    pub cycles_per_packet: Figure,
    /// Of these in the look-up alone, in one turn of 32.
    pub lookup_cycles: Figure,
    /// In all runs.
    pub lost: u64,
    pub core_share: f64,
}

/// A table.
pub fn text(points: &[Point]) -> String {
    let mut out = format!(
        "{:<21}{:>10}{:>20}{:>22}{:>22}{:>8}{:>8}\n",
        "look-ups", "addresses", "Mpps", "cycles a packet", "of these look-up", "lost", "core %"
    );
    for point in points {
        out += &format!(
            "{:<21}{:>10}{:>20}{:>22}{:>22}{:>8}{:>8.0}\n",
            point.way.name(),
            point.addresses,
            point.mpps.text(2),
            point.cycles_per_packet.text(0),
            point.lookup_cycles.text(1),
            point.lost,
            100.0 * point.core_share
        );
    }
    out
}

/// What one run gave.
#[derive(Clone, Copy, Debug)]
struct Run {
    rate: f64,
    cycles: f64,
    lookup_cycles: f64,
    lost: u64,
    core_share: f64,
}

/// All sizes, both ways.
pub fn run(plan: &Plan) -> Result<Vec<Point>, String> {
    let points = [Way::In, Way::Out].into_iter().flat_map(|way| SIZES.map(|addresses| (way, addresses)));
    let mut points: Vec<((Way, u32), Vec<Run>)> = points.map(|point| (point, Vec::new())).collect();
    for round in 0..RUNS {
        // Who is first changes, so that what drifts favours nobody.
        let count = points.len();
        for index in 0..count {
            let ((way, addresses), runs) = &mut points[(round + index) % count];
            runs.push(match way {
                Way::In => as_control(|| way_in(plan, *addresses))?,
                Way::Out => as_control(|| way_out(plan, *addresses))?,
            });
        }
    }
    Ok(points.iter().map(|((way, addresses), runs)| point(*way, *addresses, runs)).collect())
}

fn point(way: Way, addresses: u32, runs: &[Run]) -> Point {
    let figure = |of: fn(&Run) -> f64| Figure::of(runs.iter().map(of));
    Point {
        way,
        addresses,
        mpps: figure(|run| run.rate / 1e6),
        cycles_per_packet: figure(|run| run.cycles),
        lookup_cycles: figure(|run| run.lookup_cycles),
        lost: runs.iter().map(|run| run.lost).sum(),
        core_share: runs.iter().map(|run| run.core_share).fold(1.0, f64::min),
    }
}

fn setup(plan: &Plan, addresses: u32) -> Setup {
    Setup { worker: plan.worker, control: plan.second, room: addresses, ageing: AGEING, known: addresses }
}

fn way_in(plan: &Plan, addresses: u32) -> Result<Run, String> {
    let traffic = stream(1, Numbers::random(0, addresses));
    let mut bench = Bench::start(&setup(plan, addresses), vec![traffic])?;
    bench.set_speed(1, Speed::Full);
    let run = measure(plan, &mut bench, Way::In)?;
    bench.stop()?;
    Ok(run)
}

fn way_out(plan: &Plan, addresses: u32) -> Result<Run, String> {
    let mut bench = Bench::start(&setup(plan, addresses), Vec::new())?;
    let client = bench.attach_sender()?;
    let stop = &AtomicBool::new(false);
    let run = std::thread::scope(|scope| {
        scope.spawn(move || {
            core_affinity::set_for_current(plan.second);
            send(client, Numbers::random(0, addresses), stop);
        });
        let run = measure(plan, &mut bench, Way::Out);
        stop.store(true, Ordering::Relaxed);
        run
    })?;
    bench.stop()?;
    Ok(run)
}

/// A tenant that sends to all these stations as fast as it can.
fn send(mut client: Interface, mut numbers: Numbers, stop: &AtomicBool) {
    let Some(tx) = client.tx.first_mut() else { return };
    let mut packet = inner(tenant_mac(SENDER.0), station(0), INNER_BYTES);
    while !stop.load(Ordering::Relaxed) {
        for number in numbers.by_ref().take(BURST) {
            if let Some(field) = packet.get_mut(NUMBER_IN_ADDRESS..NUMBER_IN_ADDRESS + 4) {
                field.copy_from_slice(&number.to_be_bytes());
            }
            if tx.push(&packet).is_err() {
                break; // full
            }
        }
        let _woken = tx.flush();
    }
}

fn measure(plan: &Plan, bench: &mut Bench, way: Way) -> Result<Run, String> {
    bench.pass(plan.warm_up)?;
    let before = bench.read()?;
    bench.pass(plan.lookup)?;
    let after = bench.read()?;
    let packets = match way {
        Way::In => after.received - before.received,
        Way::Out => after.sent - before.sent,
    } as f64;
    let seconds = after.seconds_since(&before);
    Ok(Run {
        rate: packets / seconds,
        cycles: after.busy * seconds * plan.hertz / packets,
        lookup_cycles: after.lookup_cycles_since(&before),
        lost: after.lost - before.lost,
        core_share: after.core_share_since(&before),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pipeline_case::mode::tests::ENGINE;

    #[test]
    fn both_ways_move_packets_and_know_what_a_look_up_costs() {
        let _alone = ENGINE.lock();
        let plan = super::super::tests::plan();
        for run in [as_control(|| way_in(&plan, 1000)), as_control(|| way_out(&plan, 1000))] {
            let run = run.unwrap();
            assert!(run.rate > 0.0 && run.cycles > 0.0 && run.lookup_cycles > 0.0, "{run:?}");
            assert_eq!(run.lost, 0);
        }
    }

    #[test]
    fn a_point_is_of_all_its_runs() {
        let run = |rate, core_share| Run { rate, cycles: 90.0, lookup_cycles: 9.0, lost: 2, core_share };
        let point = point(Way::Out, 7, &[run(1e6, 0.5), run(3e6, 1.0), run(2e6, 0.75)]);
        assert_eq!(point.mpps, Figure { median: 2.0, lowest: 1.0, highest: 3.0 });
        assert_eq!((point.lost, point.core_share), (6, 0.5));
        assert!(text(&[point]).contains("2.00 (1.00–3.00)"));
    }
}
