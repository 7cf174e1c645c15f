//! `peregrine doctor`'s checks of the machine, where it can be brought out of order: processors of two threads on two NUMA nodes, the near NIC
//! on the second one, booted with core 2 isolated. What cannot be had in QEMU, a governor of the clock or another kernel, has made facts only.

use std::fs::read_to_string;

use rustix::thread::{CpuSet, sched_setaffinity};

use super::doctor::{Doctor, tells};
use crate::bench::Bench;
use crate::kinds::{ISOLATED, Kind};

/// The config with workers on these cores.
fn on_cores(bench: &Bench, cores: &[usize]) -> String {
    let line = format!("[[workers]]\ncore = {}\n", peregrine_tests::cores().0);
    let config = bench.config(&[]);
    assert!(config.contains(&line), "{config}");
    let lines: Vec<String> = cores.iter().map(|core| format!("[[workers]]\ncore = {core}\n")).collect();
    config.replace(&line, &lines.join(""))
}

/// Huge pages and the NIC on the second node; the file system for BPF objects, and the compiler.
pub fn memory(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let far = Doctor::new(&bench, "far", &on_cores(&bench, &[0]));
    far.tells("numa", "warning", "the card is on node 1, workers on cores 0 are not");
    let near = Doctor::new(&bench, "near", &on_cores(&bench, &[3]));
    let report = near.report("");
    tells(&report, "numa", "ok", "node 1");
    let finding = tells(&report, "huge-pages", "warning", "0 free on node 1");
    let command = finding["command"].as_str().expect("a command");
    let folder = |node| format!("/sys/devices/system/node/node{node}/hugepages/hugepages-2048kB");
    assert!(command.ends_with(&format!("> {}/nr_hugepages", folder(1))), "{finding}");
    near.shell(command);
    near.tells("huge-pages", "ok", "on node 1");
    let free = || read_to_string(folder(1) + "/free_hugepages").expect("sysfs");
    let before = free();
    let daemon = bench.start(&on_cores(&bench, &[3]));
    assert_eq!(daemon.status()["uplinks"][0]["huge_pages"], true, "{}", daemon.status());
    assert!(free() != before && read_to_string(folder(0) + "/nr_hugepages").expect("sysfs").trim() == "0");
    bench.pings(50);
    daemon.stop();
    near.shell(&format!("echo 0 > {}/nr_hugepages", folder(1)));

    let outside = near.outside();
    outside.shell("umount /sys/fs/bpf; echo 0 > /proc/sys/net/core/bpf_jit_enable");
    outside.are_mended(&[
        ("bpffs", "warning", "not mounted at /sys/fs/bpf", "mount -t bpf bpf /sys/fs/bpf"),
        ("jit", "warning", "does not compile", "echo 1 > /proc/sys/net/core/bpf_jit_enable"),
    ]);
    outside.shell("umount /sys/fs/bpf");
    outside.is_fixed("bpffs", "warning", "bpf mounted at /sys/fs/bpf");
    "huge pages on the worker's node, NIC on another node, bpffs, JIT: told, and mended by the commands"
        .into()
}

/// Cores that are nobody's, everybody's, isolated, and two threads of one.
pub fn cores(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let isolated = Doctor::new(&bench, "isolated", &on_cores(&bench, &[2]));
    let finding = isolated.tells("cores", "failure", "run on cores 2, and this process may use 0-1,3");
    let as_told = format!("taskset -c 0-3 {}", isolated.command_line());
    assert_eq!(finding["command"], as_told.trim_end(), "{finding}");
    let report = isolated.report_of(&as_told);
    tells(&report, "cores", "ok", "workers on 2 of 0-3");
    tells(&report, "isolation", "ok", "cores 2 are kept free of others");
    tells(&report, "governor", "skipped", "nobody tells");
    let sibling = tells(&report, "siblings", "warning", "cores 3 share physical cores with workers");
    let off = "for cpu in 3; do echo 0 > /sys/devices/system/cpu/cpu$cpu/online; done";
    assert_eq!(sibling["command"], off, "{sibling}");
    isolated.shell(off);
    tells(&isolated.report_of(&as_told), "siblings", "ok", "for itself");
    isolated.shell("echo 1 > /sys/devices/system/cpu/cpu3/online");

    // What it says of another core is what this machine was booted with for core 2.
    let shared = Doctor::new(&bench, "shared", &on_cores(&bench, &[1]));
    let words = ISOLATED.replace('2', "1");
    shared.tells("isolation", "warning", &words);
    let line = read_to_string("/proc/cmdline").expect("a command line");
    assert!(line.contains(ISOLATED), "{line}");

    let all = Doctor::new(&bench, "all", &on_cores(&bench, &[0, 1, 2, 3]));
    let report = all.report_of(&format!("taskset -c 0-3 {}", all.command_line()));
    tells(&report, "control-core", "warning", "workers are on all cores");
    tells(&report, "siblings", "warning", "workers on 0 and 1, which are one physical core");

    let mut every = CpuSet::new();
    (0..4).for_each(|core| every.set(core));
    sched_setaffinity(None, &every).expect("all cores");
    let daemon = bench.start(&on_cores(&bench, &[2]));
    bench.pings(50);
    let said = daemon.stop();
    assert!(!said.contains("are not isolated"), "{said}");
    "a core that this process may not use, one that is not isolated, siblings: told, and mended as is told; none left over; no governor".into()
}

/// Capabilities, and the limit of locked memory. `sudo` is a stand-in: who runs this is root.
pub fn rights(kind: Kind) -> String {
    let bench = Bench::new(kind);
    let doctor = Doctor::new(&bench, "plain", &bench.config(&[]));
    let sudo = bench.net.file("sudo");
    doctor.shell(&format!("printf '#!/bin/dash\\nexec \"$@\"\\n' > {0}; chmod +x {0}", sudo.display()));
    let path = format!("PATH={}:$PATH", sudo.parent().expect("a folder").display());
    let line = doctor.command_line();
    for (without, told) in [
        ("-net_admin", "CAP_NET_ADMIN"),
        ("-net_raw", "CAP_NET_RAW"),
        ("-bpf,-sys_admin", "CAP_BPF"),
        ("-perfmon,-sys_admin", "CAP_PERFMON"),
    ] {
        let weak = doctor.report_of(&format!("exec setpriv --bounding-set {without} {line}"));
        let finding = tells(&weak, "rights", "failure", &format!("this process has not {told}"));
        assert_eq!(finding["command"], format!("sudo {line}"), "{finding}");
    }
    tells(&doctor.report_of(&format!("{path}; sudo {line}")), "rights", "ok", "");

    let weak = format!("setpriv --bounding-set -ipc_lock,-sys_resource {line}");
    let limited = doctor.report_of(&format!("ulimit -l 1024; {weak}"));
    let finding = tells(&limited, "locked-memory", "failure", "at most 1 may be locked");
    let command = finding["command"].as_str().expect("a command");
    let raised = doctor.report_of(&format!("{path}; ulimit -l 1024; {command}; {weak}"));
    tells(&raised, "locked-memory", "ok", "");
    "4 capabilities and the limit of locked memory: told, and mended".into()
}
