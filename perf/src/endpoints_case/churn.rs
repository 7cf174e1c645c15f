//! Endpoints that come and go for a minute, a thousand a second, through a real daemon: whether it keeps up, and whether anything of it grows.
//! Some of them are used: memif tenants connect to them, and are still there when they go; and some are containers, from a pool.

use std::time::{Duration, Instant};

use peregrine_memif::{ClientConfig, Interface};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::daemon::{Bench, container};

/// Endpoints that stay.
const EXISTING: u16 = 1000;
/// Those that come, and as many that go, with one call.
const AT_ONCE: u16 = 100;
/// Of these the first so many have tenants, who connect,
const TENANTS: u16 = 10;
/// and so many more come that are containers,
const CONTAINERS: u16 = 1;
/// from a pool of so many.
const POOL: u16 = 32;
/// From one call to the next.
const EVERY: Duration = Duration::from_millis(100);
/// Numbers are used again after so many calls.
const ROUND: u16 = 10;
/// Before it is measured what the daemon has: until its list of changes, for those that watch, is as long as it gets (65,536 names).
const WARM_CALLS: u32 = 66_000 / (2 * AT_ONCE as u32) + ROUND as u32;
/// What a call leaves behind is gone by then.
const CLOSED_BY: Duration = Duration::from_secs(2);
/// RSS may be larger by this share of it: the allocator keeps what it has had.
const RSS_MARGIN: f64 = 1.0 / 16.0;

/// What a daemon has.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Serialize)]
pub struct Holdings {
    pub rss_bytes: u64,
    pub descriptors: u64,
    pub threads: u64,
    /// Network devices of its host.
    pub devices: u64,
    pub frames_free: u64,
    pub frames_total: u64,
    pub endpoints: u64,
}

/// What came of it.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub struct Churn {
    pub seconds: f64,
    pub created: u64,
    pub removed: u64,
    /// Endpoints created a second, and as many removed.
    pub per_second: f64,
    /// Of the calls, in milliseconds.
    pub call_ms_p50: f64,
    pub call_ms_p99: f64,
    pub before: Holdings,
    pub after: Holdings,
    /// What grew; nothing, if all is well.
    pub grew: Vec<String>,
}

/// Runs it.
pub fn run(worker: usize, quick: bool) -> Result<Churn, String> {
    let bench = Bench::start(worker, EXISTING, (AT_ONCE + CONTAINERS) * ROUND, POOL)?;
    let mut tenants = Tenants { bench: &bench, calls: 0, connected: Vec::new() };
    while tenants.calls < WARM_CALLS {
        tenants.call()?;
    }
    tenants.end()?;
    let before = holdings(&bench)?;
    let seconds = if quick { 10 } else { 60 };
    let (begun, mut count, mut times) = (Instant::now(), 0_u32, Vec::new());
    while count < seconds * 10 {
        let due = EVERY * count;
        std::thread::sleep(due.saturating_sub(begun.elapsed()));
        times.push(tenants.call()? / 1e3);
        count += 1;
    }
    let elapsed = begun.elapsed().as_secs_f64();
    tenants.end()?;
    let ended = Instant::now();
    let mut after = holdings(&bench)?;
    // A connection of the last call's may be closed a moment later; what was leaked stays.
    while !grown(&before, &after).is_empty() && ended.elapsed() < CLOSED_BY {
        std::thread::sleep(EVERY);
        after = holdings(&bench)?;
    }
    let created = u64::from(count) * u64::from(AT_ONCE + CONTAINERS);
    let of = |share| super::nearest(times.clone(), share).unwrap_or(f64::NAN);
    Ok(Churn {
        seconds: elapsed,
        created,
        removed: created,
        per_second: created as f64 / elapsed,
        call_ms_p50: of(0.5),
        call_ms_p99: of(0.99),
        before,
        after,
        grew: grown(&before, &after),
    })
}

/// Those that come and go, and who uses them.
struct Tenants<'b> {
    bench: &'b Bench,
    calls: u32,
    connected: Vec<(u16, Interface)>,
}

impl Tenants<'_> {
    /// Some come, and those of the call before go, with one call; its time in microseconds.
    fn call(&mut self) -> Result<f64, String> {
        let [memif, containers] = groups(self.calls);
        let coming = memif.clone().map(|number| self.bench.addition(number)).chain(containers.map(container));
        let going = self.calls.checked_sub(1).map(groups).into_iter().flatten().flat_map(removals);
        let (_, took_us) = self.bench.change(going.chain(coming).collect())?;
        self.calls += 1;
        // Those of before hang up only now: their endpoints were taken away from under them.
        let users = memif.start..memif.start + TENANTS;
        self.connected =
            self.bench.connect(users, &ClientConfig { ring_log2: 5, ..ClientConfig::default() })?;
        Ok(took_us)
    }

    /// The last ones go. The next call is the first again.
    fn end(&mut self) -> Result<(), String> {
        let last = groups(std::mem::take(&mut self.calls) - 1);
        self.bench.change(last.into_iter().flat_map(removals).collect())?;
        self.connected.clear();
        Ok(())
    }
}

/// The numbers that come with this call: of memif endpoints, and of containers.
fn groups(call: u32) -> [std::ops::Range<u16>; 2] {
    let turn = (call % u32::from(ROUND)) as u16;
    let group = |first: u16, count: u16| first + turn * count..first + (turn + 1) * count;
    [group(EXISTING, AT_ONCE), group(EXISTING + ROUND * AT_ONCE, CONTAINERS)]
}

fn removals(numbers: std::ops::Range<u16>) -> impl Iterator<Item = Value> {
    numbers.map(|number| json!({ "remove_endpoint": format!("e{number}") }))
}

fn grown(before: &Holdings, after: &Holdings) -> Vec<String> {
    let most = before.rss_bytes + (RSS_MARGIN * before.rss_bytes as f64) as u64;
    let all = [
        ("rss_bytes", most, after.rss_bytes),
        ("descriptors", before.descriptors, after.descriptors),
        ("threads", before.threads, after.threads),
        ("devices", before.devices, after.devices),
        ("frames_in_use", before.frames_total - before.frames_free, after.frames_total - after.frames_free),
        ("endpoints", before.endpoints, after.endpoints),
    ];
    let more = all.into_iter().filter(|(_, before, after)| after > before);
    more.map(|(what, before, after)| format!("{what}: {after} instead of at most {before}")).collect()
}

/// What it has when nothing is under way any more.
fn holdings(bench: &Bench) -> Result<Holdings, String> {
    bench.until_pool_is_calm()?;
    let patience = Instant::now() + Duration::from_secs(5);
    let mut last = holdings_now(bench)?;
    loop {
        std::thread::sleep(Duration::from_millis(300));
        let now = holdings_now(bench)?;
        if now == last || Instant::now() > patience {
            return Ok(now);
        }
        last = now;
    }
}

fn holdings_now(bench: &Bench) -> Result<Holdings, String> {
    let process = format!("/proc/{}", bench.process());
    let read = |file: &str| {
        let path = format!("{process}/{file}");
        std::fs::read_to_string(&path).map_err(|error| format!("{path}: {error}"))
    };
    let status = read("status")?;
    let number = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        let word =
            line.and_then(|rest| rest.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok());
        word.ok_or_else(|| format!("{process}/status has no {key}"))
    };
    let descriptors =
        std::fs::read_dir(format!("{process}/fd")).map_err(|error| format!("{process}/fd: {error}"))?;
    let (stats, status) = (bench.ask("stats")?, bench.ask("status")?);
    Ok(Holdings {
        rss_bytes: number("VmRSS")? * 1024,
        descriptors: descriptors.count() as u64,
        threads: number("Threads")?,
        devices: read("net/dev")?.lines().count().saturating_sub(2) as u64,
        frames_free: sum(&stats, "frames_free"),
        frames_total: sum(&stats, "frames_total"),
        endpoints: status["endpoints"].as_array().map_or(0, Vec::len) as u64,
    })
}

/// Of all numbers that are called so, at any depth.
fn sum(value: &Value, key: &str) -> u64 {
    match value {
        Value::Object(members) => members
            .iter()
            .map(|(name, value)| if name == key { value.as_u64().unwrap_or(0) } else { sum(value, key) })
            .sum(),
        Value::Array(values) => values.iter().map(|value| sum(value, key)).sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grew_is_named() {
        let before = Holdings {
            rss_bytes: 1600,
            descriptors: 7,
            frames_free: 10,
            frames_total: 10,
            ..Holdings::default()
        };
        assert_eq!(grown(&before, &before), Vec::<String>::new());
        let after = Holdings { rss_bytes: 1700, descriptors: 6, ..before };
        assert_eq!(grown(&before, &after), Vec::<String>::new(), "less is no growth");
        let after = Holdings { rss_bytes: 1701, descriptors: 8, frames_free: 9, ..before };
        let grew = grown(&before, &after);
        assert_eq!(grew.len(), 3);
        assert_eq!(grew[1], "descriptors: 8 instead of at most 7");
    }

    #[test]
    fn numbers_are_found_at_any_depth() {
        let value = json!({"workers": [{"frames_free": 3}, {"x": {"frames_free": 4}, "frames_total": 9}]});
        assert_eq!((sum(&value, "frames_free"), sum(&value, "frames_total")), (7, 9));
    }
}
