//! The checks of the machine: the kernel, what this process may do, memory, and the workers' cores.

use std::collections::BTreeMap;

use rustix::thread::CapabilitySet;

use super::facts::{Cpu, Known, release};
use super::mend::Mend;
use super::{Case, Finding, Share};
use crate::preflight;

/// What a start needs not, so it is not told there.
pub const BPFFS: &str = "bpffs";

/// The first kernel with all that is needed: links for XDP (5.9), memory that sockets of several interfaces share (5.10).
const KERNEL_LEAST: (u32, u32, u32) = (5, 10, 0);
/// The first one whose packets of several chunks come out whole (XDP_USE_SG came with 6.6.0).
const MULTI_BUFFER_LEAST: (u32, u32, u32) = (6, 6, 10);
const NO_CONFIG: &str = "which workers there are says a config: -c FILE";

/// All of them.
pub fn checks(case: &Case) -> Vec<Finding> {
    let mut all = vec![kernel(case), af_xdp(case), multi_buffer(case), rights(case)];
    let shares = case.shares();
    all.push(locked_memory(case, &shares));
    all.extend(huge_pages(case, &shares));
    all.extend([page_size(case), bpffs(case), jit(case)]);
    if case.wanted.plan.is_none() {
        all.push(Finding::skipped("cores", NO_CONFIG));
        return all;
    }
    all.extend([cores(case), control_core(case), isolation(case), siblings(case)]);
    all.extend(governor(case));
    all
}

fn kernel(case: &Case) -> Finding {
    let text = match &case.host.kernel {
        Ok(text) => text,
        Err(why) => return Finding::skipped("kernel", why),
    };
    match release(text) {
        None => Finding::skipped("kernel", format!("'{text}' is no kernel's name")),
        Some(found) if found < KERNEL_LEAST => {
            let why = "older ones have no links for XDP programs, or no memory that sockets of several interfaces share: use 5.10 or newer";
            Finding::failure("kernel", format!("Linux {text}"), why)
        }
        Some(_) => Finding::ok("kernel", format!("Linux {text}")),
    }
}

fn af_xdp(case: &Case) -> Finding {
    match &case.host.af_xdp {
        Err(refused) if !refused.is_missing => {
            Finding::skipped("af-xdp", format!("no socket to try with ({})", refused.why))
        }
        Err(refused) => {
            let why = "AF_XDP is missing in this kernel: use one that was built with CONFIG_XDP_SOCKETS";
            Finding::failure("af-xdp", format!("the kernel gives no AF_XDP sockets ({})", refused.why), why)
        }
        Ok(found) if !found.need_wakeup => {
            let why = "XDP_USE_NEED_WAKEUP is missing: use Linux 5.10 or newer";
            Finding::failure("af-xdp", "sockets cannot ask to be woken", why)
        }
        Ok(_) => Finding::ok("af-xdp", "sockets, and wake-ups where they are needed"),
    }
}

fn multi_buffer(case: &Case) -> Finding {
    const NAME: &str = "multi-buffer";
    let is_wanted = case.wanted.multi_buffer;
    let release = case.host.kernel.as_ref().ok().and_then(|text| release(text));
    let there = match &case.host.af_xdp {
        Err(refused) => return Finding::skipped(NAME, format!("no socket to try with ({})", refused.why)),
        Ok(found) => found.multi_buffer && release.is_none_or(|found| found >= MULTI_BUFFER_LEAST),
    };
    match (there, is_wanted) {
        (true, _) => Finding::ok(NAME, "packets may lie in several chunks"),
        (false, false) => Finding::ok(NAME, "packets may not lie in several chunks; none has to"),
        (false, true) => {
            let why = "some networks[n].mtu does not fit a chunk with its headers: lower it, use chunk_size = 4096, or Linux 6.6.10 or newer";
            Finding::failure(NAME, "packets may not lie in several chunks", why)
        }
    }
}

fn rights(case: &Case) -> Finding {
    let held = match &case.host.rights {
        Ok(held) => *held,
        Err(why) => return Finding::skipped("rights", why),
    };
    let mut missing = preflight::missing(held);
    if case.wanted.containers && !held.contains(CapabilitySet::SYS_ADMIN) {
        missing.push("CAP_SYS_ADMIN");
    }
    if missing.is_empty() {
        return Finding::ok("rights", "all that are needed");
    }
    let why = "without them no AF_XDP socket, XDP program or interface's setting: run it as root, or give its service AmbientCapabilities";
    let what = format!("this process has not {}", missing.join(", "));
    Finding::failure("rights", what, why).command(format!("sudo {}", own_command()))
}

/// This process's command line.
fn own_command() -> String {
    let words: Vec<String> = std::env::args_os().map(|word| word.to_string_lossy().into_owned()).collect();
    words.join(" ")
}

fn locked_memory(case: &Case, shares: &Known<Vec<Share>>) -> Finding {
    const NAME: &str = "locked-memory";
    let rights = case.host.rights.as_ref().copied().unwrap_or(CapabilitySet::empty());
    if rights.intersects(CapabilitySet::IPC_LOCK | CapabilitySet::SYS_RESOURCE) {
        return Finding::ok(NAME, "no limit for this process");
    }
    let Some(limit) = case.host.lockable else { return Finding::ok(NAME, "no limit") };
    let shares = match shares {
        Ok(shares) => shares,
        Err(why) => return Finding::skipped(NAME, format!("at most {} MiB; {why}", limit >> 20)),
    };
    let needed: u64 = shares.iter().map(|share| share.bytes).sum();
    let (least, most) = (needed.div_ceil(1 << 20), limit >> 20);
    if needed <= limit {
        return Finding::ok(NAME, format!("{least} MiB of at most {most}"));
    }
    let why = "the frames' memory is locked: raise the limit (LimitMEMLOCK=infinity for a service, this command for a shell), or give CAP_IPC_LOCK";
    Finding::failure(NAME, format!("{least} MiB are needed, and at most {most} may be locked"), why)
        .command("sudo prlimit --pid $$ --memlock=unlimited")
}

/// Of the nodes that the workers are on.
fn huge_pages(case: &Case, shares: &Known<Vec<Share>>) -> Vec<Finding> {
    const NAME: &str = "huge-pages";
    const WHY: &str = "the frames' memory lies on small pages, where each look at a frame may cost a look-up of its address";
    if let Some(got) = &case.wanted.got {
        return vec![if got.huge_pages {
            Finding::ok(NAME, "the frames' memory lies on huge pages")
        } else {
            Finding::warning(
                NAME,
                "no huge pages for the frames",
                format!("{WHY}: `peregrine doctor -c FILE` says how many are needed"),
            )
        }];
    }
    let (huge, shares) = match (&case.host.huge, shares) {
        (Err(why), _) | (_, Err(why)) => return vec![Finding::skipped(NAME, why)],
        (Ok(huge), Ok(shares)) => (huge, shares),
    };
    let mut needed: BTreeMap<usize, u64> = BTreeMap::new();
    for share in shares {
        let node = case.host.cpus.get(&share.core).and_then(|cpu| cpu.node);
        let node = node.filter(|node| huge.free.contains_key(node)).or(huge.free.keys().next().copied());
        *needed.entry(node.unwrap_or(0)).or_default() += share.bytes.div_ceil(huge.bytes.max(1));
    }
    let is_one_node = huge.free.len() < 2;
    let of_node = |(node, needed): (usize, u64)| {
        let free = huge.free.get(&node).copied().unwrap_or(0);
        let place = if is_one_node { String::new() } else { format!(" on node {node}") };
        if free >= needed {
            return Finding::ok(NAME, format!("{free} free{place}, {needed} needed"));
        }
        let command = if is_one_node {
            format!("echo {} > /proc/sys/vm/nr_hugepages", huge.total + needed - free)
        } else {
            let kib = huge.bytes / 1024;
            let file =
                format!("/sys/devices/system/node/node{node}/hugepages/hugepages-{kib}kB/nr_hugepages");
            format!("echo $(($(cat {file}) + {})) > {file}", needed - free)
        };
        Finding::warning(NAME, format!("{free} free{place}, {needed} needed"), WHY).command(command)
    };
    needed.into_iter().map(of_node).collect()
}

fn page_size(case: &Case) -> Finding {
    match case.host.page_bytes {
        4096 => Finding::ok("page-size", "4096 bytes"),
        other => {
            let why = "drivers' limits are known for pages of 4096 bytes only, and Peregrine is tested with no others";
            Finding::warning("page-size", format!("{other} bytes"), why)
        }
    }
}

fn bpffs(case: &Case) -> Finding {
    match &case.host.bpffs {
        Err(why) => Finding::skipped(BPFFS, why),
        Ok(true) => Finding::ok(BPFFS, "mounted at /sys/fs/bpf"),
        Ok(false) => {
            let why = "Peregrine keeps nothing there, but tools for XDP programs (bpftool, xdp-loader) do";
            Finding::warning(BPFFS, "not mounted at /sys/fs/bpf", why).mend(Mend::MountBpffs)
        }
    }
}

fn jit(case: &Case) -> Finding {
    match &case.host.jit {
        Err(why) => Finding::skipped("jit", why),
        Ok(0) => {
            let why = "the XDP program is interpreted, several times as slowly";
            Finding::warning("jit", "the kernel does not compile BPF programs", why)
                .command("echo 1 > /proc/sys/net/core/bpf_jit_enable")
        }
        Ok(_) => Finding::ok("jit", "the kernel compiles BPF programs"),
    }
}

fn list(cores: &[usize]) -> String {
    let mut cores: Vec<_> = cores.iter().copied().map(peregrine_dataplane::types::CoreId).collect();
    cores.sort();
    cores.dedup();
    preflight::ranges(&cores)
}

fn cores(case: &Case) -> Finding {
    let allowed = match &case.host.allowed {
        Ok(allowed) => allowed,
        Err(why) => return Finding::skipped("cores", why),
    };
    let workers = case.wanted.cores();
    let out: Vec<usize> = workers.iter().copied().filter(|core| !allowed.contains(core)).collect();
    if out.is_empty() {
        return Finding::ok("cores", format!("workers on {} of {}", list(&workers), list(allowed)));
    }
    let what =
        format!("workers are to run on cores {}, and this process may use {}", list(&out), list(allowed));
    let why = "choose others in the config, or widen the affinity (taskset, cpuset; isolated cores are in nobody's unless asked for)";
    let finding = Finding::failure("cores", what, why);
    if !out.iter().all(|core| case.host.cpus.contains_key(core)) {
        return finding;
    }
    let all: Vec<usize> = allowed.iter().chain(&out).copied().collect();
    finding.command(format!("taskset -c {} {}", list(&all), own_command()))
}

fn control_core(case: &Case) -> Finding {
    const NAME: &str = "control-core";
    let workers = case.wanted.cores();
    let allowed = match &case.host.allowed {
        Ok(allowed) => allowed,
        Err(why) => return Finding::skipped(NAME, why),
    };
    let others: Vec<usize> = allowed.iter().copied().filter(|core| !workers.contains(core)).collect();
    if others.is_empty() {
        let why = "what the kernel does for the interface, and the control thread, then take the workers' time: leave one free";
        return Finding::warning(NAME, "workers are on all cores", why);
    }
    Finding::ok(NAME, format!("cores {} are left to others", list(&others)))
}

fn isolation(case: &Case) -> Finding {
    const NAME: &str = "isolation";
    let isolated = match &case.host.isolated {
        Ok(isolated) => isolated,
        Err(why) => return Finding::skipped(NAME, why),
    };
    let workers = case.wanted.cores();
    let shared: Vec<usize> = workers.iter().copied().filter(|core| !isolated.contains(core)).collect();
    if shared.is_empty() {
        return Finding::ok(NAME, format!("cores {} are kept free of others", list(&workers)));
    }
    let cores = list(&workers);
    let why = format!(
        "other programs may run there for milliseconds, which is more than the rings hold: boot with \
         isolcpus=managed_irq,domain,{cores} nohz_full={cores} rcu_nocbs={cores}"
    );
    Finding::warning(NAME, format!("cores {} are not isolated", list(&shared)), why)
}

fn siblings(case: &Case) -> Finding {
    const NAME: &str = "siblings";
    let workers = case.wanted.cores();
    let isolated = case.host.isolated.as_deref().unwrap_or_default();
    let of = |core: usize| match case.host.cpus.get(&core).map(|cpu| &cpu.siblings) {
        Some(Ok(siblings)) => Ok(siblings.iter().copied().filter(|other| *other != core).collect::<Vec<_>>()),
        Some(Err(why)) => Err(why.clone()),
        None => Err(format!("the kernel shows no core {core}")),
    };
    let mut in_use = Vec::new();
    for &core in &workers {
        match of(core) {
            Err(why) => return Finding::skipped(NAME, why),
            Ok(others) => {
                if let Some(other) = others.iter().find(|other| workers.contains(other)) {
                    let what = format!("workers on {core} and {other}, which are one physical core");
                    return Finding::warning(
                        NAME,
                        what,
                        "each is then about half as fast: put them on different ones in the config",
                    );
                }
                in_use.extend(others.into_iter().filter(|other| !isolated.contains(other)));
            }
        }
    }
    if in_use.is_empty() {
        return Finding::ok(NAME, "each worker has its physical core for itself");
    }
    let each: Vec<String> = in_use.iter().map(usize::to_string).collect();
    let allowed = case.host.allowed.as_deref().unwrap_or_default();
    let is_left = |core: &usize| !workers.contains(core) && !in_use.contains(core);
    // The first core often cannot be switched off, and somebody must serve the others.
    let can_be_off = !in_use.contains(&0) && allowed.iter().any(is_left);
    let command =
        format!("for cpu in {}; do echo 0 > /sys/devices/system/cpu/cpu$cpu/online; done", each.join(" "));
    let what = format!("cores {} share physical cores with workers", list(&in_use));
    const WHY: &str = "what runs there halves the worker's speed";
    if can_be_off {
        let why = format!("{WHY}: isolate them, or switch them off");
        Finding::warning(NAME, what, why).command(command)
    } else {
        Finding::warning(NAME, what, format!("{WHY}: isolate them, or put the workers on other cores"))
    }
}

fn governor(case: &Case) -> Vec<Finding> {
    const NAME: &str = "governor";
    let of = |core: usize| case.host.cpus.get(&core).map(|cpu: &Cpu| cpu.governor.clone());
    let mut slow = Vec::new();
    for core in case.wanted.cores() {
        match of(core) {
            Some(Ok(governor)) if governor == "performance" => {}
            Some(Ok(governor)) => slow.push((core, governor)),
            Some(Err(why)) => {
                return vec![Finding::skipped(
                    NAME,
                    format!("nobody tells, as in most virtual machines ({why})"),
                )];
            }
            None => return vec![Finding::skipped(NAME, format!("the kernel shows no core {core}"))],
        }
    }
    if slow.is_empty() {
        return vec![Finding::ok(NAME, "performance")];
    }
    let one = |(core, governor): (usize, String)| {
        let command =
            format!("echo performance > /sys/devices/system/cpu/cpu{core}/cpufreq/scaling_governor");
        let why = "the clock may be low when packets come after a pause";
        Finding::warning(NAME, format!("core {core} has '{governor}'"), why).command(command)
    };
    slow.into_iter().map(one).collect()
}
