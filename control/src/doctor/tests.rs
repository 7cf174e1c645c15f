//! Each check against made facts: a sound machine, on which all is well, and one thing after the other that is wrong. What a namespace can be
//! brought into is tested with the real thing, in tests/doctor.rs.

use std::collections::{BTreeMap, BTreeSet};

use peregrine_dataplane::plan::{NetworkPlan, Queues, WorkerPlan, XdpMode};
use peregrine_dataplane::types::{CoreId, MacAddr, Vni};
use peregrine_dataplane::xsk;
use peregrine_dataplane::xsk::inspect::{AfXdp, Channels, Feature, UdpFlow};
use rustix::thread::CapabilitySet;

use super::facts::{Cpu, HugePages, Interrupt, Refused};
use super::netdev::XdpFeatures;
use super::*;

/// Four cores of two nodes, a card with four queues on node 0, workers on cores 2 and 3.
fn sound() -> Case {
    let worker = |core| WorkerPlan::on(CoreId(core));
    let uplink =
        UplinkPlan { mode: XdpMode::RequireZeroCopy, ..UplinkPlan::new("eth0", [10, 0, 0, 1].into()) };
    let mut plan = Plan { workers: vec![worker(2), worker(3)], uplinks: vec![uplink], ..Plan::default() };
    plan.networks = std::iter::once(NetworkPlan::new("blue", Vni::new(42).unwrap())).collect();
    Case { wanted: Wanted::of(&plan), host: host(), links: vec![link()] }
}

fn host() -> Host {
    let cpu = |cpu: usize| {
        (cpu, Cpu { governor: Ok("performance".into()), siblings: Ok(vec![cpu]), node: Some(0) })
    };
    Host {
        kernel: Ok("6.18.1".into()),
        page_bytes: 4096,
        af_xdp: Ok(AfXdp { need_wakeup: true, multi_buffer: true }),
        rights: Ok(CapabilitySet::all()),
        lockable: None,
        huge: Ok(HugePages { bytes: 2 << 20, total: 64, free: BTreeMap::from([(0, 64), (1, 0)]) }),
        bpffs: Ok(true),
        jit: Ok(1),
        allowed: Ok(vec![0, 1, 2, 3]),
        isolated: Ok(vec![2, 3]),
        cpus: (0..4).map(cpu).collect(),
    }
}

fn link() -> Link {
    let feature = |name: &str| Feature { name: name.into(), is_on: false, can_change: true };
    let interface = xsk::Interface {
        name: "eth0".into(),
        index: 2,
        driver: "ice".into(),
        mac: MacAddr([2, 0, 0, 0, 0, 1]),
        mtu: 1500,
        up: true,
        addresses: vec![[10, 0, 0, 1].into()],
        vlan_device: None,
        vlan_mtu: None,
        queue_count: 4,
    };
    Link {
        name: "eth0".into(),
        interface: Ok(interface),
        carrier: Ok(true),
        channels: Ok(Channels { receive: 4, receive_max: 8, combined: 4, combined_max: 8 }),
        features: Ok(["rx-lro", "rx-gro-hw", "rx-vlan-hw-parse"].map(feature).into()),
        indirection: Ok(vec![0, 1, 2, 3]),
        hash: [(UdpFlow::Udp4, Ok(0xf0)), (UdpFlow::Udp6, Ok(0xf0))],
        xdp: Ok(XdpFeatures { bits: 0x7f, zero_copy_segments: 8 }),
        program: Ok(None),
        detachable: None,
        virtio_platform: Err("no virtio card".into()),
        taken: Ok(Vec::new()),
        node: Ok(0),
        interrupts: Ok(vec![Interrupt { number: 45, cpus: vec![0] }]),
        underlay: Ok(("eth0".into(), vec![[10, 0, 0, 1].into()])),
        elsewhere: Vec::new(),
        underlay_mtu: Ok(1500),
    }
}

fn uplink(case: &mut Case) -> &mut UplinkPlan {
    &mut case.wanted.uplinks[0]
}

fn interface(case: &mut Case) -> &mut xsk::Interface {
    case.links[0].interface.as_mut().unwrap()
}

/// What a check finds after something was made wrong, and nothing else finds fault with it but those of `also`.
#[track_caller]
fn found(check: &str, also: &[&str], wrong: impl FnOnce(&mut Case)) -> Finding {
    let mut case = sound();
    wrong(&mut case);
    let all = case.examine();
    for finding in all.iter().filter(|finding| finding.verdict >= Verdict::Warning) {
        assert!(finding.check == check || also.contains(&finding.check), "{}", finding.line());
        assert!(finding.why.is_some(), "{}", finding.line());
    }
    all.into_iter().filter(|finding| finding.check == check).max_by_key(|finding| finding.verdict).unwrap()
}

#[track_caller]
fn is(finding: &Finding, verdict: Verdict, what: &str, command: Option<&str>) {
    let line = finding.line();
    assert_eq!((finding.verdict, finding.command.as_deref()), (verdict, command), "{line}");
    assert!(line.contains(what), "no '{what}' in: {line}");
}

const FAILURE: Verdict = Verdict::Failure;
const WARNING: Verdict = Verdict::Warning;

#[test]
fn a_sound_machine_passes_every_check() {
    for finding in sound().examine() {
        assert_eq!(finding.verdict, Verdict::Ok, "{}", finding.line());
        assert!(finding.command.is_none() && finding.mend.is_none(), "{}", finding.line());
    }
}

#[test]
fn the_kernel_must_have_what_is_needed() {
    let old = found("kernel", &["multi-buffer"], |case| case.host.kernel = Ok("5.4.0-100".into()));
    is(&old, FAILURE, "Linux 5.4.0-100", None);
    let refused = |is_missing| Refused { is_missing, why: "no".into() };
    is(
        &found("af-xdp", &[], |case| case.host.af_xdp = Err(refused(true))),
        FAILURE,
        "CONFIG_XDP_SOCKETS",
        None,
    );
    is(
        &found("af-xdp", &[], |case| case.host.af_xdp = Err(refused(false))),
        Verdict::Skipped,
        "no socket to try with",
        None,
    );
    let none = AfXdp { need_wakeup: false, multi_buffer: true };
    is(&found("af-xdp", &[], |case| case.host.af_xdp = Ok(none)), FAILURE, "to be woken", None);
    let early = found("multi-buffer", &[], |case| {
        case.wanted.multi_buffer = true;
        case.host.kernel = Ok("6.6.9".into());
    });
    is(&early, FAILURE, "6.6.10", None);
    is(
        &found("jit", &[], |case| case.host.jit = Ok(0)),
        WARNING,
        "interpreted",
        Some("echo 1 > /proc/sys/net/core/bpf_jit_enable"),
    );
    is(&found("page-size", &[], |case| case.host.page_bytes = 65536), WARNING, "65536", None);
    is(
        &found("bpffs", &[], |case| case.host.bpffs = Ok(false)),
        WARNING,
        "not mounted",
        Some("mount -t bpf bpf /sys/fs/bpf"),
    );
}

#[test]
fn rights_and_memory_must_do() {
    let rights =
        found("rights", &[], |case| case.host.rights = Ok(CapabilitySet::all() - CapabilitySet::NET_RAW));
    assert_eq!((rights.verdict, rights.what.as_str()), (FAILURE, "this process has not CAP_NET_RAW"));
    let containers = found("rights", &[], |case| {
        case.wanted.containers = true;
        case.host.rights = Ok(CapabilitySet::all() - CapabilitySet::SYS_ADMIN);
    });
    assert!(containers.what.contains("CAP_SYS_ADMIN"), "{}", containers.what);
    let locked = found("locked-memory", &[], |case| {
        case.host.rights = Ok(CapabilitySet::all() - CapabilitySet::IPC_LOCK - CapabilitySet::SYS_RESOURCE);
        case.host.lockable = Some(8 << 20);
    });
    is(&locked, FAILURE, "at most 8 may be locked", Some("sudo prlimit --pid $$ --memlock=unlimited"));
    // Each worker has two queues of 2048 descriptors.
    let few = found("huge-pages", &[], |case| {
        case.host.huge = Ok(HugePages { bytes: 2 << 20, total: 12, free: BTreeMap::from([(0, 5)]) });
    });
    let needed = case_pages();
    is(&few, WARNING, "5 free", Some(&format!("echo {} > /proc/sys/vm/nr_hugepages", 12 + needed - 5)));
    let far = found("huge-pages", &["numa"], |case| case.host.cpus.get_mut(&3).unwrap().node = Some(1));
    let file = "/sys/devices/system/node/node1/hugepages/hugepages-2048kB/nr_hugepages";
    is(
        &far,
        WARNING,
        "0 free on node 1",
        Some(&format!("echo $(($(cat {file}) + {})) > {file}", needed / 2)),
    );
}

fn case_pages() -> u64 {
    sound().shares().unwrap().iter().map(|share| share.bytes.div_ceil(2 << 20)).sum()
}

#[test]
fn workers_must_have_their_cores() {
    let out = found("cores", &[], |case| case.host.allowed = Ok(vec![0, 1, 2]));
    assert_eq!(out.verdict, FAILURE);
    let command = out.command.unwrap();
    assert!(out.what.contains("on cores 3,") && command.starts_with("taskset -c 0-3 "), "{command}");
    let none = found("cores", &["siblings"], |case| {
        case.wanted.plan.as_mut().unwrap().workers[0].core = CoreId(9);
        case.host.isolated = Ok(vec![3, 9]);
    });
    is(&none, FAILURE, "on cores 9", None);
    let seen = Case::read(Wanted { got: Some(Got { huge_pages: true, usable: vec![7] }), ..sound().wanted });
    assert_eq!(seen.host.allowed, Ok(vec![7]), "the thread that looks may use fewer");
    is(&found("control-core", &[], |case| case.host.allowed = Ok(vec![2, 3])), WARNING, "all cores", None);
    is(
        &found("isolation", &[], |case| case.host.isolated = Ok(vec![2])),
        WARNING,
        "isolcpus=managed_irq,domain,2-3",
        None,
    );
    let pair =
        |case: &mut Case, a: usize, b: usize| case.host.cpus.get_mut(&a).unwrap().siblings = Ok(vec![a, b]);
    is(&found("siblings", &[], |case| pair(case, 2, 3)), WARNING, "one physical core", None);
    let off = "for cpu in 1; do echo 0 > /sys/devices/system/cpu/cpu$cpu/online; done";
    is(&found("siblings", &[], |case| pair(case, 2, 1)), WARNING, "cores 1 share", Some(off));
    is(&found("siblings", &[], |case| pair(case, 2, 0)), WARNING, "cores 0 share", None);
    let all = found("siblings", &[], |case| {
        case.host.allowed = Ok(vec![1, 2, 3]);
        pair(case, 2, 1);
    });
    is(&all, WARNING, "cores 1 share", None);
    let slow =
        found("governor", &[], |case| case.host.cpus.get_mut(&3).unwrap().governor = Ok("powersave".into()));
    is(
        &slow,
        WARNING,
        "'powersave'",
        Some("echo performance > /sys/devices/system/cpu/cpu3/cpufreq/scaling_governor"),
    );
    let none =
        found("governor", &[], |case| case.host.cpus.get_mut(&3).unwrap().governor = Err("no file".into()));
    is(&none, Verdict::Skipped, "no file", None);
}

#[test]
fn a_driver_must_have_what_is_asked_for() {
    let lacks = |bits: u64| {
        move |case: &mut Case| case.links[0].xdp = Ok(XdpFeatures { bits, zero_copy_segments: 1 })
    };
    is(&found("native-xdp", &["zero-copy"], lacks(0)), FAILURE, "generic", None);
    is(&found("zero-copy", &[], lacks(0b11)), FAILURE, "prefer-zero-copy", None);
    let preferred = found("zero-copy", &[], |case| {
        lacks(0b11)(case);
        uplink(case).mode = XdpMode::PreferZeroCopy;
        interface(case).driver = "e1000e".into();
    });
    is(&preferred, Verdict::Ok, "copies each packet", None);
    let old = |case: &mut Case| {
        interface(case).driver = "igb".into();
        case.links[0].xdp = Err("no family".into());
        case.host.kernel = Ok("6.12.0".into());
        uplink(case).mode = XdpMode::PreferZeroCopy;
    };
    is(&found("zero-copy", &[], old), WARNING, "none before Linux 6.14", None);
    let unknown = found("native-xdp", &[], |case| {
        interface(case).driver = "none".into();
        case.links[0].xdp = Err("no family".into());
    });
    is(&unknown, Verdict::Skipped, "no family", None);
    let single = found("zero-copy", &[], |case| {
        case.wanted.multi_buffer = true;
        case.links[0].xdp = Ok(XdpFeatures { bits: 0x7f, zero_copy_segments: 1 });
    });
    is(&single, FAILURE, "one chunk only", None);
    let whole = found("mtu", &[], |case| {
        case.wanted.multi_buffer = true;
        case.links[0].xdp = Ok(XdpFeatures { bits: 0x1f, zero_copy_segments: 8 });
    });
    is(&whole, FAILURE, "no packets in several parts", None);
    let limit = found("mtu", &[], |case| {
        interface(case).driver = "igc".into();
        interface(case).mtu = 1600;
    });
    is(&limit, FAILURE, "igc", Some("ip link set dev eth0 mtu 998"));
    let half = found("channels", &[], |case| {
        interface(case).driver = "ena".into();
        let channels = Channels { receive: 8, receive_max: 8, combined: 8, combined_max: 8 };
        case.links[0].channels = Ok(channels);
    });
    is(&half, FAILURE, "half of its channels", Some("ethtool -L eth0 combined 4"));
}

#[test]
fn a_virtio_card_has_zero_copy_only_where_the_hypervisor_lets_it() {
    let virtio = |platform: Result<bool, &str>| {
        let platform = platform.map_err(str::to_owned);
        move |case: &mut Case| {
            interface(case).driver = "virtio_net".into();
            case.links[0].virtio_platform = platform;
        }
    };
    is(&found("zero-copy", &[], virtio(Ok(false))), FAILURE, "VIRTIO_F_ACCESS_PLATFORM", None);
    is(&found("zero-copy", &[], virtio(Ok(true))), Verdict::Ok, "has it", None);
    is(&found("zero-copy", &[], virtio(Err("unread"))), Verdict::Skipped, "unread", None);
}

/// What zero-copy uses of a chunk is less than the chunk, and with igb and igc much less.
#[test]
fn packets_must_fit_what_zero_copy_uses_of_a_chunk() {
    let igb = |mode: XdpMode, chunk_size: u32| {
        move |case: &mut Case| {
            interface(case).driver = "igb".into();
            (uplink(case).mode, uplink(case).chunk_size) = (mode, chunk_size);
        }
    };
    let required = found("mtu", &[], igb(XdpMode::RequireZeroCopy, 2048));
    is(&required, FAILURE, "igb's zero-copy", Some("ip link set dev eth0 mtu 998"));
    let preferred = found("zero-copy", &[], igb(XdpMode::PreferZeroCopy, 2048));
    is(&preferred, WARNING, "use chunk_size = 4096", None);
    is(&found("mtu", &[], igb(XdpMode::RequireZeroCopy, 4096)), Verdict::Ok, "1500 of", None);
    is(&found("zero-copy", &[], igb(XdpMode::PreferZeroCopy, 4096)), Verdict::Ok, "", None);
}

#[test]
fn addresses_and_the_underlays_mtu_are_mended_without_harm() {
    let gone = |case: &mut Case| case.links[0].underlay = Ok(("eth0".into(), Vec::new()));
    is(&found("address", &[], gone), FAILURE, "not on eth0", Some("ip address add 10.0.0.1/32 dev eth0"));
    let moved = found("address", &[], |case| {
        gone(case);
        case.links[0].elsewhere = vec![([10, 0, 0, 1].into(), "br0".into())];
    });
    is(&moved, FAILURE, "is on br0", None);
    let long = found("vlan-device", &[], |case| {
        uplink(case).vlan = Some(100);
        interface(case).name = "enp129s0f1np1".into();
        case.links[0].underlay = Err("none".into());
    });
    is(&long, FAILURE, "none", Some("ip link add link enp129s0f1np1 name vlan100 type vlan id 100"));
    let network = |mtu: u16| {
        move |case: &mut Case| {
            let blue = NetworkPlan { mtu, ..NetworkPlan::new("blue", Vni::new(42).unwrap()) };
            case.wanted.plan.as_mut().unwrap().networks = std::iter::once(blue).collect();
        }
    };
    let low = found("underlay-mtu", &[], network(1500));
    is(&low, FAILURE, "raise it", Some("ip link set dev eth0 mtu 1550"));
    let device = found("underlay-mtu", &[], |case| {
        network(1500)(case);
        interface(case).mtu = 1600;
        case.links[0].underlay = Ok(("eth0.100".into(), vec![[10, 0, 0, 1].into()]));
    });
    is(&device, FAILURE, "raise it", Some("ip link set dev eth0.100 mtu 1550"));
    is(&found("underlay-mtu", &[], network(1750)), FAILURE, "lower networks[n].mtu", None);
}

#[test]
fn queues_must_get_their_share() {
    let too_many = found("channels", &[], |case| uplink(case).queues = Queues::List(vec![QueueId(5)]));
    is(&too_many, FAILURE, "queue 5", Some("ethtool -L eth0 combined 6"));
    let never = found("channels", &[], |case| uplink(case).queues = Queues::List(vec![QueueId(9)]));
    is(&never, FAILURE, "queue 9", None);
    let some = |list: &[u32]| Queues::List(list.iter().copied().map(QueueId).collect());
    let first = found("queues", &[], |case| uplink(case).queues = some(&[0, 1]));
    is(&first, WARNING, "queues 2, 3", Some("ethtool -X eth0 equal 2"));
    let tableless = found("queues", &[], |case| {
        uplink(case).queues = some(&[0, 1]);
        case.links[0].indirection = Err("none".into());
    });
    is(&tableless, WARNING, "queues 2, 3", Some("ethtool -L eth0 combined 2"));
    let last = found("queues", &[], |case| uplink(case).queues = some(&[2, 3]));
    is(&last, WARNING, "queues 0, 1", Some("ethtool -X eth0 weight 0 0 1 1"));
    let chosen = found("queues", &[], |case| {
        uplink(case).queues = some(&[2, 3]);
        case.links[0].indirection = Ok(vec![2, 3, 2]);
    });
    is(&chosen, Verdict::Ok, "", None);
    let idle = found("rss", &[], |case| case.links[0].indirection = Ok(vec![0, 1]));
    is(&idle, WARNING, "queues 2, 3", Some("ethtool -X eth0 equal 4"));
    let uneven = found("rss", &[], |case| {
        uplink(case).queues = some(&[2, 3]);
        case.links[0].indirection = Ok(vec![2, 2]);
    });
    is(&uneven, WARNING, "queues 3", Some("ethtool -X eth0 weight 0 0 1 1"));
    let hash = found("hash-udp4", &[], |case| case.links[0].hash[0].1 = Ok(0x30));
    is(&hash, WARNING, "by addresses only", Some("ethtool -N eth0 rx-flow-hash udp4 sdfn"));
    let other = found("hash-udp6", &[], |case| case.links[0].hash[1].1 = Ok(0x30));
    is(&other, Verdict::Ok, "IP version", None);
}

#[test]
fn offloads_must_leave_packets_alone() {
    let on = |driver: &'static str, at: usize, can_change: bool| {
        move |case: &mut Case| {
            interface(case).driver = driver.into();
            let feature = &mut case.links[0].features.as_mut().unwrap()[at];
            (feature.is_on, feature.can_change) = (true, can_change);
        }
    };
    is(&found("lro", &[], on("mlx5_core", 0, true)), FAILURE, "mlx5_core", Some("ethtool -K eth0 lro off"));
    is(&found("lro", &[], on("ice", 0, true)), WARNING, "merged", Some("ethtool -K eth0 lro off"));
    is(&found("gro-hw", &[], on("ice", 1, true)), WARNING, "merged", Some("ethtool -K eth0 rx-gro-hw off"));
    is(&found("gro-hw", &[], on("virtio_net", 1, true)), Verdict::Ok, "switches it off", None);
    is(&found("gro-hw", &[], on("virtio_net", 1, false)), FAILURE, "hypervisor", None);
    let strip = found("vlan-strip", &[], |case| {
        uplink(case).vlan = Some(100);
        on("ice", 2, true)(case);
    });
    is(&strip, FAILURE, "VLAN 100", Some("ethtool -K eth0 rxvlan off"));
    is(&found("vlan-strip", &[], on("ice", 2, true)), Verdict::Ok, "no tag", None);
}

#[test]
fn the_card_must_be_near_and_leave_workers_alone() {
    let crowded = found("interrupts", &[], |case| {
        let one = |number, cpu| Interrupt { number, cpus: vec![cpu] };
        case.links[0].interrupts = Ok(vec![one(45, 0), one(46, 2), one(47, 3)]);
    });
    let command = "for irq in 46 47; do echo 0 > /proc/irq/$irq/smp_affinity_list; done";
    is(&crowded, WARNING, "46, 47 are served", Some(command));
    is(&found("numa", &[], |case| case.links[0].node = Ok(1)), WARNING, "cores 2, 3", None);
    is(&found("carrier", &[], |case| case.links[0].carrier = Ok(false)), WARNING, "no carrier", None);
    let foreign = |mode| {
        move |case: &mut Case| {
            let link = &mut case.links[0];
            (link.program, link.detachable) = (Ok(Some((7, "firewall".into()))), mode);
        }
    };
    let generic = found("program", &[], foreign(Some("xdpgeneric")));
    is(&generic, FAILURE, "'firewall' (id 7)", Some("ip link set dev eth0 xdpgeneric off"));
    is(&found("program", &[], foreign(None)), FAILURE, "end the program that attached it", None);
    let unknown = found("program", &[], |case| {
        let link = &mut case.links[0];
        (link.program, link.detachable) = (Ok(Some((7, "unnamed".into()))), Some("xdpdrv"));
    });
    is(&unknown, FAILURE, "'unnamed' (id 7)", None);
    let taken = found("sockets", &[], |case| case.links[0].taken = Ok(vec![(2, "testpmd (7)".into())]));
    is(&taken, FAILURE, "queue 2 has an AF_XDP socket of testpmd (7)", None);
    let own = found("program", &[], |case| {
        case.wanted.got = Some(Got { huge_pages: true, usable: vec![0, 1, 2, 3] });
        case.links[0].program = Ok(Some((7, "peregrine_steer".into())));
    });
    is(&own, Verdict::Ok, "peregrine_steer", None);
    let of_another = |case: &mut Case| case.links[0].program = Ok(Some((7, "peregrine_steer".into())));
    is(&found("program", &["sockets"], of_another), WARNING, "another daemon cannot start", None);
    is(&found("sockets", &["program"], of_another), WARNING, "another daemon cannot start", None);
}

/// What is left of each check's warnings and failures: other ways to the same end, and those for which no command is known.
#[test]
fn a_machine_that_lacks_something_is_told_so() {
    let single = |is_wanted| {
        move |case: &mut Case| {
            case.wanted.multi_buffer = is_wanted;
            case.host.af_xdp = Ok(AfXdp { need_wakeup: true, multi_buffer: false });
        }
    };
    is(&found("multi-buffer", &[], single(true)), FAILURE, "chunk_size = 4096", None);
    is(&found("multi-buffer", &[], single(false)), Verdict::Ok, "none has to", None);
    let small = found("huge-pages", &[], |case| {
        case.wanted.got = Some(Got { huge_pages: false, usable: vec![0, 1, 2, 3] });
    });
    is(&small, WARNING, "`peregrine doctor -c FILE`", None);
    let garbled = found("kernel", &[], |case| case.host.kernel = Ok("x.y".into()));
    is(&garbled, Verdict::Skipped, "'x.y' is no kernel's name", None);
    let bare = Case { wanted: Wanted::of_interfaces(&["eth0".into()]), host: host(), links: vec![link()] };
    let bare =
        Case { host: Host { rights: Ok(CapabilitySet::empty()), lockable: Some(1), ..bare.host }, ..bare };
    for check in ["locked-memory", "huge-pages", "cores", "interrupts", "numa", "address"] {
        let finding = bare.examine().into_iter().find(|finding| finding.check == check).unwrap();
        is(&finding, Verdict::Skipped, "-c FILE", None);
    }
}

#[test]
fn a_link_that_is_gone_or_down_is_told_so() {
    let gone = |case: &mut Case| case.links[0].interface = Err("no such interface".into());
    is(&found("interface", &[], gone), FAILURE, "no such interface", None);
    is(&found("huge-pages", &["interface"], gone), Verdict::Skipped, "the queues of eth0", None);
    let down = found("interface", &[], |case| interface(case).up = false);
    is(&down, FAILURE, "it is down", Some("ip link set dev eth0 up"));
    let none = found("native-xdp", &[], |case| {
        interface(case).driver = "e1000e".into();
        case.links[0].xdp = Err("no family".into());
        uplink(case).mode = XdpMode::Copy;
    });
    is(&none, FAILURE, "driver e1000e runs no XDP programs: only mode", None);
    let old = found("native-xdp", &["kernel"], |case| {
        interface(case).driver = "igc".into();
        case.links[0].xdp = Err("no family".into());
        case.host.kernel = Ok("5.9.0".into());
        case.host.af_xdp = Ok(AfXdp { need_wakeup: true, multi_buffer: false });
        uplink(case).mode = XdpMode::Copy;
    });
    is(&old, FAILURE, "before Linux 5.13", None);
    let generic = found("native-xdp", &[], |case| {
        uplink(case).mode = XdpMode::Generic;
        case.links[0].xdp = Ok(XdpFeatures::default());
    });
    is(&generic, Verdict::Ok, "not needed", None);
    let single = found("zero-copy", &[], |case| {
        case.wanted.multi_buffer = true;
        uplink(case).mode = XdpMode::PreferZeroCopy;
        case.links[0].xdp = Ok(XdpFeatures { bits: 0x7f, zero_copy_segments: 1 });
    });
    is(&single, WARNING, "one chunk only", None);
    let virtio = found("zero-copy", &[], |case| {
        interface(case).driver = "virtio_net".into();
        case.links[0].virtio_platform = Ok(false);
        uplink(case).mode = XdpMode::PreferZeroCopy;
    });
    is(&virtio, WARNING, "the kernel copies each packet", None);
}

#[test]
fn where_nothing_mends_it_no_command_is_given() {
    let fixed = |driver: &'static str, at: usize| {
        move |case: &mut Case| {
            interface(case).driver = driver.into();
            uplink(case).vlan = (at == 2).then_some(100);
            let feature = &mut case.links[0].features.as_mut().unwrap()[at];
            (feature.is_on, feature.can_change) = (true, false);
        }
    };
    is(&found("lro", &[], fixed("mlx5_core", 0)), FAILURE, "takes no XDP program", None);
    is(&found("lro", &[], fixed("ice", 0)), WARNING, "merged", None);
    is(&found("vlan-strip", &[], fixed("ice", 2)), FAILURE, "VLAN 100", None);
    let crowded = found("interrupts", &["control-core"], |case| {
        case.host.allowed = Ok(vec![2, 3]);
        case.links[0].interrupts = Ok(vec![Interrupt { number: 46, cpus: vec![2] }]);
    });
    is(&crowded, WARNING, "46 are served", None);
    let no_table = found("queues", &[], |case| {
        uplink(case).queues = Queues::List(vec![QueueId(2), QueueId(3)]);
        case.links[0].indirection = Err("x".into());
    });
    is(&no_table, WARNING, "queues 0, 1", None);
}

/// A core of the card's node serves its interrupts, if one has no worker.
#[test]
fn commands_name_what_is_at_hand() {
    let near = found("interrupts", &["numa", "huge-pages"], |case| {
        for core in [0, 2, 3] {
            case.host.cpus.get_mut(&core).unwrap().node = Some(1);
        }
        case.links[0].interrupts = Ok(vec![Interrupt { number: 46, cpus: vec![2] }]);
    });
    let command = "for irq in 46; do echo 1 > /proc/irq/$irq/smp_affinity_list; done";
    is(&near, WARNING, "46 are served", Some(command));
    let ours: IpAddr = "2001:db8::1".parse().unwrap();
    let by_ipv6 = |case: &mut Case| {
        uplink(case).locals = vec![ours];
        case.links[0].underlay = Ok(("eth0".into(), vec![ours]));
    };
    let address = found("address", &[], |case| {
        by_ipv6(case);
        case.links[0].underlay = Ok(("eth0".into(), Vec::new()));
    });
    is(&address, FAILURE, "not on eth0", Some("ip address add 2001:db8::1/128 dev eth0"));
    let hash = found("hash-udp6", &[], |case| {
        by_ipv6(case);
        case.links[0].hash = [(UdpFlow::Udp4, Ok(0x30)), (UdpFlow::Udp6, Ok(0x30))];
    });
    is(&hash, WARNING, "by addresses only", Some("ethtool -N eth0 rx-flow-hash udp6 sdfn"));
    let apart = found("channels", &[], |case| {
        uplink(case).queues = Queues::List(vec![QueueId(5)]);
        let channels = Channels { receive: 4, receive_max: 8, combined: 0, combined_max: 0 };
        case.links[0].channels = Ok(channels);
    });
    is(&apart, FAILURE, "queue 5", Some("ethtool -L eth0 rx 6"));
    let both = found("underlay-mtu", &[], |case| {
        let blue = NetworkPlan { mtu: 1500, ..NetworkPlan::new("blue", Vni::new(42).unwrap()) };
        case.wanted.plan.as_mut().unwrap().networks = std::iter::once(blue).collect();
        case.links[0].underlay = Ok(("eth0.100".into(), vec![[10, 0, 0, 1].into()]));
    });
    let command = "ip link set dev eth0 mtu 1550 && ip link set dev eth0.100 mtu 1550";
    is(&both, FAILURE, "raise it", Some(command));
}

/// What is asked of a card that tells nothing of it is not known, which is not the same as well.
#[test]
fn what_a_card_does_not_tell_is_skipped() {
    let skipped = |check: &str, what: &str, wrong: fn(&mut Case)| {
        is(&found(check, &[], wrong), Verdict::Skipped, what, None);
    };
    skipped("rss", "no table", |case| case.links[0].indirection = Ok(Vec::new()));
    skipped("interrupts", "none that are known", |case| case.links[0].interrupts = Ok(Vec::new()));
    skipped("numa", "core 3's node", |case| case.host.cpus.get_mut(&3).unwrap().node = None);
    skipped("siblings", "no core 3", |case| drop(case.host.cpus.remove(&3)));
    skipped("governor", "no core 3", |case| drop(case.host.cpus.remove(&3)));
    let several = |mode| {
        move |case: &mut Case| {
            case.wanted.multi_buffer = true;
            case.links[0].xdp = Err("no family".into());
            uplink(case).mode = mode;
        }
    };
    is(&found("mtu", &[], several(XdpMode::Copy)), Verdict::Skipped, "no family", None);
    is(&found("mtu", &[], several(XdpMode::Generic)), Verdict::Ok, "several chunks", None);
}

#[test]
fn without_remotes_there_are_no_next_hops() {
    let found = |case: &Case| reach::checks(case).into_iter().next().unwrap();
    is(&found(&sound()), Verdict::Ok, "no remotes", None);
    let mut case = sound();
    case.wanted.plan = None;
    is(&found(&case), Verdict::Skipped, "-c FILE", None);
}

#[test]
fn what_cannot_be_mended_is_an_error_of_the_kernels() {
    let interface = || "none0".to_owned();
    let off = Mend::FeatureOff { interface: interface(), feature: "rx-lro", short: "lro" };
    let hash = Mend::HashByPort { interface: interface(), flow: UdpFlow::Udp4 };
    assert!(off.apply().is_err() && hash.apply().is_err());
}

#[test]
fn what_is_not_known_is_skipped_with_its_reason() {
    let blind = Case {
        host: Host {
            kernel: Err("x".into()),
            af_xdp: Err(Refused { is_missing: false, why: "x".into() }),
            rights: Err("x".into()),
            huge: Err("x".into()),
            bpffs: Err("x".into()),
            jit: Err("x".into()),
            allowed: Err("x".into()),
            isolated: Err("x".into()),
            cpus: BTreeMap::new(),
            ..host()
        },
        links: vec![Link {
            carrier: Err("x".into()),
            channels: Err("x".into()),
            features: Err("x".into()),
            indirection: Err("x".into()),
            hash: [(UdpFlow::Udp4, Err("x".into())), (UdpFlow::Udp6, Err("x".into()))],
            xdp: Err("x".into()),
            program: Err("x".into()),
            taken: Err("x".into()),
            node: Err("x".into()),
            interrupts: Err("x".into()),
            underlay: Err("x".into()),
            underlay_mtu: Err("x".into()),
            ..link()
        }],
        ..sound()
    };
    let skipped: Vec<&str> = blind
        .examine()
        .iter()
        .inspect(|finding| assert!(finding.verdict <= Verdict::Skipped, "{}", finding.line()))
        .filter(|finding| finding.verdict == Verdict::Skipped)
        .map(|finding| finding.check)
        .collect();
    let unknown = [
        "kernel",
        "af-xdp",
        "multi-buffer",
        "rights",
        "huge-pages",
        "bpffs",
        "jit",
        "cores",
        "control-core",
        "isolation",
        "siblings",
        "governor",
        "carrier",
        "native-xdp",
        "zero-copy",
        "program",
        "sockets",
        "channels",
        "rss",
        "hash-udp4",
        "lro",
        "gro-hw",
        "interrupts",
        "numa",
        "address",
        "underlay-mtu",
    ];
    assert_eq!(skipped, unknown);
}

#[test]
fn one_interface_of_several_can_be_looked_at() {
    let mut case = sound();
    let second = UplinkPlan::new("eth1", [10, 0, 1, 1].into());
    case.wanted.uplinks.push(second);
    case.links.push(Link { name: "eth1".into(), ..link() });
    case.wanted.only = Some("eth1".into());
    assert!(
        case.examine().iter().all(|finding| finding.about.as_deref().is_none_or(|about| about == "eth1"))
    );
    let none = Case { wanted: Wanted::of_interfaces(&[]), host: host(), links: Vec::new() };
    assert!(none.examine().iter().any(|finding| finding.what == "no interface here could be an uplink"));
    let mut hidden = none;
    hidden.wanted.left_out = ["veth0", "veth1", "veth2", "veth3"].map(String::from).into();
    let found =
        |case: &Case| case.examine().into_iter().find(|finding| finding.check == "interface").unwrap();
    is(
        &found(&hidden),
        FAILURE,
        "no card is here: 4 interfaces could be an uplink all the same (veth0, veth1, veth2, …): name one, or --all",
        None,
    );
    hidden.links = vec![link()];
    is(&found(&hidden), Verdict::Skipped, "4 interfaces not looked at", None);
}

#[test]
fn the_page_names_every_check_and_no_other() {
    let page = include_str!("../../../docs/doctor.md");
    let of_remotes = ["vlan-device", "next-hop", "path-mtu"].map(String::from);
    let all = sound().examine().into_iter().map(|finding| finding.check.to_owned()).chain(of_remotes);
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let named = rows.flat_map(|names| names.split('`').step_by(2)).filter(|name| !name.is_empty());
    assert_eq!(named.map(String::from).collect::<BTreeSet<_>>(), all.collect());
}

#[test]
fn the_report_has_a_schema() {
    let schema = schemars::schema_for!(Report).to_value();
    assert_eq!(schema["properties"]["checks"]["items"]["$ref"], "#/$defs/DoctorFinding");
    let report = serde_json::to_value(Report::new(sound().examine())).unwrap();
    assert_eq!(report["counts"]["failure"], 0);
    assert_eq!(
        report["checks"][0],
        serde_json::json!({"check": "kernel", "verdict": "ok", "what": "Linux 6.18.1"})
    );
}
