//! What an endpoint costs in memory: the region that its tenant shares with us, by the size of its rings, and what the engine keeps.

use std::collections::BTreeMap;
use std::time::Instant;

use peregrine_memif::ClientConfig;
use serde::{Deserialize, Serialize};

use super::aside;
use super::bursts::{Bench, until};
use crate::rig::connect;

/// Connections of one kind; what one costs is told from all.
const CONNECTIONS: usize = 100;
/// Rings and buffers that are tried: as small as they get, in between, and the defaults.
const SIZES: [(u8, u32); 4] = [(5, 2048), (6, 2048), (8, 2048), (10, 2048)];

/// One memif connection with one ring each way.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Rings {
    pub ring_slots: u32,
    pub buffer_bytes: u32,
    /// Shared memory, all of it.
    pub shared_bytes: u64,
    /// Of it what is there before a packet came: in pages that were written.
    pub resident_bytes: u64,
    /// The daemon's own, of the connection.
    pub heap_bytes: u64,
}

/// Everything.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Memory {
    pub rings: Vec<Rings>,
    /// What a change leaves behind for each endpoint, without a connection.
    pub engine_bytes: u64,
    /// What a place costs that nobody has: counters of a worker and the like.
    pub place_bytes: u64,
}

impl Memory {
    /// A memif endpoint with the smallest rings, all in all.
    pub fn of_one(&self) -> u64 {
        let rings = self.rings.first().map_or(0, |rings| rings.shared_bytes + rings.heap_bytes);
        rings + self.engine_bytes + self.place_bytes
    }
}

/// On a thread of its own, which it pins.
pub fn run(cores: [core_affinity::CoreId; 2]) -> Result<Memory, String> {
    let rings = SIZES.map(|(ring_log2, buffer_bytes)| {
        rings(&ClientConfig { ring_log2, buffer_bytes, ..ClientConfig::default() })
    });
    let rings = rings.into_iter().collect::<Result<_, _>>()?;
    let (engine_bytes, place_bytes) = engine(cores)?;
    Ok(Memory { rings, engine_bytes, place_bytes })
}

fn rings(config: &ClientConfig) -> Result<Rings, String> {
    let mut made = Vec::with_capacity(CONNECTIONS);
    let before = shared()?;
    let mut failure = None;
    let heap = allocation_counter::measure(|| {
        for _ in 0..CONNECTIONS {
            match connect(config.clone()) {
                Ok(connection) => made.push(connection),
                Err(error) => failure = Some(error),
            }
        }
    });
    if let Some(error) = failure {
        return Err(error);
    }
    let after = shared()?;
    let of = |all: u64| all / CONNECTIONS as u64;
    Ok(Rings {
        ring_slots: 1 << config.ring_log2,
        buffer_bytes: config.buffer_bytes,
        shared_bytes: of(after.0.saturating_sub(before.0)),
        resident_bytes: of(after.1.saturating_sub(before.1)),
        heap_bytes: of(u64::try_from(heap.bytes_current).unwrap_or(0)) / 2, // both ends are ours here
    })
}

/// Bytes of memory files that we have mapped, each once, and of them those that are there.
fn shared() -> Result<(u64, u64), String> {
    let file = "/proc/self/smaps";
    let text = std::fs::read_to_string(file).map_err(|error| format!("{file}: {error}"))?;
    let mut files: BTreeMap<(String, String), (u64, u64)> = BTreeMap::new();
    let mut current = None;
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            // Addresses, rights, offset, device, inode, name.
            [addresses, _, offset, _, inode, name, ..] if addresses.contains('-') => {
                let key = (inode.to_string(), offset.to_string());
                current = name.starts_with("/memfd:").then_some(key);
            }
            [addresses, _, _, _, _] if addresses.contains('-') => current = None,
            ["Size:", size, "kB"] => put(&mut files, &current, |sizes| &mut sizes.0, size),
            ["Rss:", size, "kB"] => put(&mut files, &current, |sizes| &mut sizes.1, size),
            _ => {}
        }
    }
    let sum = files.values().fold((0, 0), |sum, sizes| (sum.0 + sizes.0, sum.1 + sizes.1));
    Ok((sum.0 * 1024, sum.1 * 1024))
}

fn put<K: Ord + Clone>(
    files: &mut BTreeMap<K, (u64, u64)>,
    current: &Option<K>,
    part: impl Fn(&mut (u64, u64)) -> &mut u64,
    size: &str,
) {
    if let (Some(key), Ok(size)) = (current, size.parse::<u64>()) {
        let place = part(files.entry(key.clone()).or_default());
        *place = size.max(*place);
    }
}

/// For each endpoint, and for each free place.
fn engine(cores: [core_affinity::CoreId; 2]) -> Result<(u64, u64), String> {
    const MANY: u16 = 1000;
    const PLACES: u16 = 10_000;
    let mut sizes = Vec::new();
    let mut per_endpoint = 0;
    for burst in [MANY, MANY + PLACES] {
        let (start, change) = aside(|| grown_by(cores, burst))?;
        sizes.push(start);
        if burst == MANY {
            per_endpoint = u64::try_from(change).unwrap_or(0) / u64::from(MANY);
        }
    }
    let grown = match sizes[..] {
        [few, many] => u64::try_from(many - few).unwrap_or(0),
        _ => 0,
    };
    Ok((per_endpoint, grown / u64::from(PLACES)))
}

/// By how many bytes the start of an engine with room for a burst, and the burst, make what is allocated more.
fn grown_by(cores: [core_affinity::CoreId; 2], burst: u16) -> Result<(i64, i64), String> {
    let mut started = Err("nothing was started".into());
    let start = allocation_counter::measure(|| started = Bench::start(cores, 1, burst, vec![]));
    let mut bench = started?;
    let mut came = Ok(());
    let change = allocation_counter::measure(|| {
        came = bench.come(Instant::now()).map(|_| ());
        // What the worker gave back is freed.
        came = came.clone().and(until(bench.engine(), "no end", |engine| engine.is_in_force()));
        (0..10).for_each(|_| drop(bench.engine().poll()));
    });
    came?;
    Ok((start.bytes_current, change.bytes_current))
}
