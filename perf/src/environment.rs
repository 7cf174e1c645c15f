//! What a measurement was made on. Every result carries it, so that a page drawn later, or elsewhere, does not show the wrong
//! machine. The cases call `Watch::start` before they measure and `Watch::end` after.
//!
//! Whatever the machine does not tell is left out, never guessed.

use std::fs;
use std::process::Command;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use serde::{Deserialize, Serialize};

use crate::proc_stat::{self, Ticks};

/// The first two cores that this process may use; `purpose` says what each is for.
pub fn two_cores(purpose: &str) -> Result<[core_affinity::CoreId; 2], String> {
    match core_affinity::get_core_ids().unwrap_or_default()[..] {
        [first, second, ..] => Ok([first, second]),
        _ => Err(format!("it needs two cores: {purpose}")),
    }
}

/// The machine, and how quiet it was.
#[derive(Clone, Debug, Default, Deserialize, Serialize)]
#[serde(default)]
pub struct Environment {
    /// When the measurement began, UTC.
    pub date: String,
    /// Of this program.
    pub version: String,
    /// The state of the source tree that this program was built from, when it measured.
    pub commit: Option<String>,
    pub cpu: Option<String>,
    pub cores_online: Option<usize>,
    pub kernel: Option<String>,
    /// Of all cores, each once; `None` where the machine shows none, as most virtual ones do.
    pub governor: Option<String>,
    /// Cores that the scheduler leaves alone.
    pub isolated_cores: Option<String>,
    /// What kind of virtual machine; `None` if the processor shows none.
    pub virtual_machine: Option<String>,
    /// Threads that wanted a core when it began: the average of the minute before.
    pub load_before: Option<f64>,
    /// The share of all cores' time that the hypervisor took away meanwhile.
    pub stolen_percent: Option<f64>,
}

/// An environment whose measurement is under way.
#[derive(Debug)]
pub struct Watch {
    environment: Environment,
    ticks: Option<Ticks>,
}

impl Watch {
    /// Reads all that does not change, and where the clocks stand.
    pub fn start() -> Watch {
        let cpuinfo = read("/proc/cpuinfo").unwrap_or_default();
        let environment = Environment {
            date: utc(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())),
            version: env!("CARGO_PKG_VERSION").into(),
            commit: commit(),
            cpu: field(&cpuinfo, "model name"),
            cores_online: std::thread::available_parallelism().ok().map(usize::from),
            kernel: read("/proc/sys/kernel/osrelease"),
            governor: governor(),
            isolated_cores: read("/sys/devices/system/cpu/isolated").filter(|cores| !cores.is_empty()),
            virtual_machine: virtual_machine(&cpuinfo),
            load_before: read("/proc/loadavg").and_then(|text| text.split(' ').next()?.parse().ok()),
            stolen_percent: None,
        };
        Watch { environment, ticks: all_cores() }
    }

    /// Adds what was taken away since.
    pub fn end(mut self) -> Environment {
        if let (Some(before), Some(after)) = (self.ticks, all_cores()) {
            let Ticks { all, stolen, .. } = after.since(before);
            self.environment.stolen_percent = Some(100.0 * stolen as f64 / all.max(1) as f64);
        }
        self.environment
    }
}

fn all_cores() -> Option<Ticks> {
    Ticks::parse(&proc_stat::read().ok()?, "cpu")
}

/// How long the kernel let a thread run, and how long it had to wait for a core: on a machine that does something else too, figures
/// say little.
#[derive(Clone, Copy, Debug, Default)]
pub struct CpuTime {
    ran_ns: u64,
    waited_ns: u64,
    /// How often it got a core.
    turns: u64,
}

impl CpuTime {
    /// Of the thread behind a folder of `/proc`.
    pub fn read(folder: &str) -> Result<CpuTime, String> {
        let file = format!("{folder}/schedstat");
        let text = fs::read_to_string(&file).map_err(|error| format!("cannot read {file}: {error}"))?;
        let mut numbers = text.split_whitespace().map_while(|word| word.parse().ok());
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(ran_ns), Some(waited_ns), Some(turns)) => Ok(CpuTime { ran_ns, waited_ns, turns }),
            _ => Err(format!("{file} says `{}`, not the times of a thread", text.trim())),
        }
    }

    /// The share of its core that the thread had since `earlier`; 1 if it had it for itself.
    pub fn share_since(&self, earlier: &CpuTime) -> f64 {
        let ran = self.ran_ns.saturating_sub(earlier.ran_ns) as f64;
        let waited = self.waited_ns.saturating_sub(earlier.waited_ns) as f64;
        ran / (ran + waited).max(1.0)
    }

    /// How long it ran since `earlier`.
    pub fn ran_since(&self, earlier: &CpuTime) -> Duration {
        Duration::from_nanos(self.ran_ns.saturating_sub(earlier.ran_ns))
    }

    /// Nanoseconds in which it wanted the core since `earlier` and did not have it, and how often it got it back. Of a thread that never
    /// sleeps: how often the core was taken away.
    pub fn taken_since(&self, earlier: &CpuTime) -> (u64, u64) {
        (self.waited_ns.saturating_sub(earlier.waited_ns), self.turns.saturating_sub(earlier.turns))
    }
}

/// This thread, on one core while this lives. The worker's is on another one already, and an engine that starts must see all cores.
#[derive(Debug)]
pub struct Apart {
    before: CpuSet,
}

impl Apart {
    pub fn on(core: usize) -> Result<Apart, String> {
        let failed = |error| format!("cannot keep control on core {core}: {error}");
        let before = sched_getaffinity(None).map_err(failed)?;
        let mut only = CpuSet::new();
        only.set(core);
        sched_setaffinity(None, &only).map_err(failed)?;
        Ok(Apart { before })
    }
}

impl Drop for Apart {
    fn drop(&mut self) {
        let _worse_only = sched_setaffinity(None, &self.before);
    }
}

fn read(file: &str) -> Option<String> {
    fs::read_to_string(file).ok().map(|text| text.trim().to_string())
}

/// `name : value`, the first one.
fn field(cpuinfo: &str, name: &str) -> Option<String> {
    let (_, value) =
        cpuinfo.lines().filter_map(|line| line.split_once(':')).find(|(key, _)| key.trim() == name)?;
    Some(value.trim().into())
}

/// x86 processors have a flag for it; the firmware's name says which.
fn virtual_machine(cpuinfo: &str) -> Option<String> {
    field(cpuinfo, "flags")?.split(' ').find(|flag| *flag == "hypervisor")?;
    let names = ["sys_vendor", "product_name"].map(|name| read(&format!("/sys/class/dmi/id/{name}")));
    let named: Vec<String> = names.into_iter().flatten().filter(|name| !name.is_empty()).collect();
    Some(if named.is_empty() { "yes, of unknown kind".into() } else { named.join(" ") })
}

fn governor() -> Option<String> {
    let cores = fs::read_dir("/sys/devices/system/cpu").ok()?.flatten();
    let files = cores.map(|core| core.path().join("cpufreq/scaling_governor"));
    let mut governors: Vec<String> = files.filter_map(|file| read(file.to_str()?)).collect();
    governors.sort();
    governors.dedup();
    Some(governors.join(", ")).filter(|all| !all.is_empty())
}

fn commit() -> Option<String> {
    let folder = env!("CARGO_MANIFEST_DIR");
    let git = Command::new("git").args(["-C", folder, "describe", "--always", "--dirty"]).output().ok()?;
    let text = String::from_utf8(git.stdout).ok()?;
    git.status.success().then(|| text.trim().to_string()).filter(|text| !text.is_empty())
}

/// Seconds since 1970 as `2026-03-01 12:00 UTC`. The days of a year that begins in March are those of its months in order,
/// with the leap day last.
fn utc(seconds: u64) -> String {
    let (days, minutes) = (seconds / 86_400 + 719_468, seconds / 60 % 1440);
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = (month_from_march + 2) % 12 + 1;
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    format!("{year:04}-{month:02}-{day:02} {:02}:{:02} UTC", minutes / 60, minutes % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_those_of_the_calendar() {
        assert_eq!(utc(0), "1970-01-01 00:00 UTC");
        assert_eq!(utc(951_782_399), "2000-02-28 23:59 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00 UTC");
        assert_eq!(utc(1_704_067_199), "2023-12-31 23:59 UTC");
        assert_eq!(utc(4_107_542_400), "2100-03-01 00:00 UTC");
    }

    #[test]
    fn a_processor_without_the_flag_is_no_virtual_machine() {
        let cpuinfo = "processor\t: 0\nmodel name\t: A: fast one\nflags\t\t: fpu vme\nmodel name\t: other\n";
        assert_eq!(field(cpuinfo, "model name").as_deref(), Some("A: fast one"));
        assert_eq!(virtual_machine(cpuinfo), None);
        assert!(virtual_machine("flags : fpu hypervisor vme\n").is_some());
        assert_eq!(virtual_machine(""), None);
    }

    #[test]
    fn this_machine_tells_what_every_linux_tells() {
        let environment = Watch::start().end();
        assert!(environment.kernel.is_some_and(|kernel| kernel.contains('.')));
        assert!(environment.cores_online.is_some_and(|cores| cores > 0));
        assert!(environment.stolen_percent.is_some_and(|percent| (0.0..=100.0).contains(&percent)));
    }

    #[test]
    fn the_share_of_a_core_is_what_the_thread_had_of_what_it_wanted() {
        let earlier = CpuTime { ran_ns: 1_000, waited_ns: 500, turns: 7 };
        let later = CpuTime { ran_ns: 4_000, waited_ns: 1_500, turns: 9 };
        assert!((later.share_since(&earlier) - 0.75).abs() < 1e-9);
        assert_eq!(later.taken_since(&earlier), (1_000, 2));
        assert!(CpuTime::read("/proc/thread-self").is_ok());
        assert!(CpuTime::read("/proc/none").unwrap_err().contains("/proc/none/schedstat"));
    }
}
