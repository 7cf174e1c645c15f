//! What must be true before anything is started, checked with errors that say what to do. What concerns the uplink
//! is checked by the engine itself.

use peregrine_dataplane::plan::Plan;
use peregrine_dataplane::types::CoreId;
use rustix::process::{Pid, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CpuSet};

use crate::error::Error;
use crate::tenants;

/// What the kernel asks of us: the uplink's settings, AF_XDP sockets, the XDP program.
const NEEDED: &[(CapabilitySet, &str)] = &[
    (CapabilitySet::NET_ADMIN, "CAP_NET_ADMIN"),
    (CapabilitySet::NET_RAW, "CAP_NET_RAW"),
    (CapabilitySet::BPF, "CAP_BPF"),
    // The verifier allows headers of different lengths to nobody else.
    (CapabilitySet::PERFMON, "CAP_PERFMON"),
];
/// Descriptors besides the tenants': sockets, maps, programs, clients.
const DESCRIPTORS_BASE: u64 = 512;

/// Checks rights and cores, and raises the limit of descriptors.
pub fn check(plan: &Plan) -> Result<(), Error> {
    capabilities()?;
    cores(plan, &allowed_cores()?)?;
    raise_descriptor_limit(plan);
    Ok(())
}

fn capabilities() -> Result<(), Error> {
    let sets = rustix::thread::capabilities(None)
        .map_err(|e| Error::System { doing: "read this process's capabilities", source: e.into() })?;
    let missing = missing(sets.effective);
    if missing.is_empty() { Ok(()) } else { Err(Error::Capabilities { missing }) }
}

/// The rights that are needed and not held. CAP_SYS_ADMIN includes CAP_BPF and CAP_PERFMON.
pub fn missing(held: CapabilitySet) -> Vec<&'static str> {
    let included = CapabilitySet::BPF | CapabilitySet::PERFMON;
    let held = if held.contains(CapabilitySet::SYS_ADMIN) { held | included } else { held };
    NEEDED.iter().filter(|(needed, _)| !held.contains(*needed)).map(|(_, name)| *name).collect()
}

/// The CPUs that this process may run on, in order.
pub fn allowed_cores() -> Result<Vec<CoreId>, Error> {
    let set = rustix::thread::sched_getaffinity(None)
        .map_err(|e| Error::System { doing: "read this process's CPU affinity", source: e.into() })?;
    Ok((0..CpuSet::MAX_CPU).filter(|&cpu| set.is_set(cpu)).map(CoreId).collect())
}

fn cores(plan: &Plan, allowed: &[CoreId]) -> Result<(), Error> {
    match plan.workers.iter().enumerate().find(|(_, worker)| !allowed.contains(&worker.core)) {
        None => Ok(()),
        Some((worker, plan)) => Err(Error::Core { worker, core: plan.core, allowed: ranges(allowed) }),
    }
}

/// `0-3,8` for 0, 1, 2, 3, 8.
pub fn ranges(cores: &[CoreId]) -> String {
    let mut ranges: Vec<(usize, usize)> = Vec::new();
    for core in cores {
        match ranges.last_mut() {
            Some((_, last)) if *last + 1 == core.0 => *last = core.0,
            _ => ranges.push((core.0, core.0)),
        }
    }
    let texts = ranges.iter().map(|(a, b)| if a == b { a.to_string() } else { format!("{a}-{b}") });
    texts.collect::<Vec<_>>().join(",")
}

/// Keeps a thread on those of the usable cores where no worker is, if there are any: this one, which is to be done when the workers have
/// been pinned, or the first one of another process.
pub fn leave_workers_alone(usable: &[CoreId], workers: &[CoreId], thread: Option<Pid>) {
    let others: Vec<CoreId> = usable.iter().copied().filter(|core| !workers.contains(core)).collect();
    let mut set = CpuSet::new();
    let cores = if others.is_empty() { usable } else { &others };
    cores.iter().for_each(|core| set.set(core.0));
    // Only a courtesy to the workers: without it everything works as well, a little less evenly.
    let _refused = rustix::thread::sched_setaffinity(thread, &set);
}

/// Tenants and handshakes need descriptors. Without the right to raise the limit, what goes beyond it waits in the
/// listeners' queues.
fn raise_descriptor_limit(plan: &Plan) {
    let wanted = DESCRIPTORS_BASE + tenants::descriptors_max(plan);
    let now = rustix::process::getrlimit(Resource::Nofile);
    if now.current.is_none_or(|current| current >= wanted) {
        return;
    }
    let maximum = now.maximum.map(|maximum| maximum.max(wanted));
    let raised = Rlimit { current: Some(wanted), maximum };
    if rustix::process::setrlimit(Resource::Nofile, raised).is_err() {
        let _refused = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: now.maximum, ..now });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_short() {
        let text = |cores: &[usize]| ranges(&cores.iter().copied().map(CoreId).collect::<Vec<_>>());
        assert_eq!(text(&[0, 1, 2, 3, 8]), "0-3,8");
        assert_eq!(text(&[5]), "5");
        assert_eq!(text(&[0, 2, 3]), "0,2-3");
        assert_eq!(text(&[]), "");
    }

    #[test]
    fn every_missing_right_is_named() {
        assert_eq!(
            missing(CapabilitySet::empty()),
            ["CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_BPF", "CAP_PERFMON"]
        );
        assert_eq!(missing(CapabilitySet::NET_ADMIN | CapabilitySet::SYS_ADMIN), ["CAP_NET_RAW"]);
        assert!(missing(CapabilitySet::all()).is_empty());
    }

    #[test]
    fn this_process_may_run_somewhere() {
        assert!(!allowed_cores().unwrap().is_empty());
    }
}
