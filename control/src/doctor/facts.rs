//! What is so on this machine, read once before the checks: they look at nothing else. Whatever cannot be found out has its reason.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;

use peregrine_dataplane::xsk;
use peregrine_dataplane::xsk::inspect::{self, AfXdp, Channels, Feature, UdpFlow};
use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use super::netdev::{self, XdpFeatures};
use super::sockets::Sockets;
use crate::preflight;

/// What was found out, or why it could not be.
pub type Known<T> = Result<T, String>;

/// The machine, but for its interfaces.
#[derive(Clone, Debug)]
pub struct Host {
    /// The kernel's name, such as `6.12.1-amd64`.
    pub kernel: Known<String>,
    /// Bytes of a page.
    pub page_bytes: usize,
    /// What AF_XDP can do; the error is the kernel's number where it has one.
    pub af_xdp: Result<AfXdp, Refused>,
    /// What this process may do.
    pub rights: Known<CapabilitySet>,
    /// Bytes that it may lock; `None`: as many as it likes.
    pub lockable: Option<u64>,
    /// Huge pages.
    pub huge: Known<HugePages>,
    /// Whether there is a file system for BPF objects at its usual place.
    pub bpffs: Known<bool>,
    /// `net.core.bpf_jit_enable`.
    pub jit: Known<u32>,
    /// The CPUs that this process may use.
    pub allowed: Known<Vec<usize>>,
    /// Those that the kernel keeps other programs off.
    pub isolated: Known<Vec<usize>>,
    /// Each CPU that is there.
    pub cpus: BTreeMap<usize, Cpu>,
}

/// Why the kernel gave no AF_XDP socket.
#[derive(Clone, Debug)]
pub struct Refused {
    /// It knows of none; any other refusal (no permission, no descriptors) says nothing about the kernel.
    pub is_missing: bool,
    /// In words.
    pub why: String,
}

/// Huge pages of the usual size that are free.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HugePages {
    /// Bytes of one.
    pub bytes: u64,
    /// All that there are, in use or not.
    pub total: u64,
    /// On each NUMA node; one node where the kernel knows of none.
    pub free: BTreeMap<usize, u64>,
}

/// A CPU.
#[derive(Clone, Debug)]
pub struct Cpu {
    /// What decides its clock.
    pub governor: Known<String>,
    /// CPUs on the same physical core, itself as well.
    pub siblings: Known<Vec<usize>>,
    /// Its NUMA node.
    pub node: Option<usize>,
}

/// An interface.
#[derive(Clone, Debug)]
pub struct Link {
    /// Its name.
    pub name: String,
    /// The interface; the error is that of a start.
    pub interface: Known<xsk::Interface>,
    /// The wire is there.
    pub carrier: Known<bool>,
    /// Queues.
    pub channels: Known<Channels>,
    /// Offloads and the like.
    pub features: Known<Vec<Feature>>,
    /// The queues that the hash chooses from.
    pub indirection: Known<Vec<u32>>,
    /// By which fields UDP is hashed, over IPv4 and IPv6.
    pub hash: [(UdpFlow, Known<u64>); 2],
    /// What its driver's XDP can do.
    pub xdp: Known<XdpFeatures>,
    /// The number and name of the XDP program on it.
    pub program: Known<Option<(u32, String)>>,
    /// The mode in which `ip link` detaches it, if it can.
    pub detachable: Option<&'static str>,
    /// Of a virtio card: it has VIRTIO_F_ACCESS_PLATFORM.
    pub virtio_platform: Known<bool>,
    /// Its queues that have AF_XDP sockets, and the process that has each, where that can be seen.
    pub taken: Known<Vec<(u32, String)>>,
    /// The NUMA node of the card.
    pub node: Known<usize>,
    /// The card's interrupts.
    pub interrupts: Known<Vec<Interrupt>>,
    /// Addresses of the device that the underlay is on, the VLAN's or its own; and that device.
    pub underlay: Known<(String, Vec<std::net::IpAddr>)>,
    /// Addresses that other interfaces have, with their names.
    pub elsewhere: Vec<(std::net::IpAddr, String)>,
    /// MTU of that device.
    pub underlay_mtu: Known<u32>,
}

/// An interrupt of a card.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interrupt {
    /// Its number.
    pub number: u32,
    /// The CPUs that serve it.
    pub cpus: Vec<usize>,
}

/// Where the kernel tells of itself; elsewhere in tests.
#[derive(Clone, Debug)]
pub struct Files(PathBuf);

impl Default for Files {
    fn default() -> Files {
        Files(PathBuf::from("/"))
    }
}

impl Files {
    /// Below another directory.
    pub fn below(root: impl Into<PathBuf>) -> Files {
        Files(root.into())
    }

    fn text(&self, path: &str) -> Known<String> {
        let text = std::fs::read_to_string(self.0.join(path));
        text.map(|text| text.trim().to_owned()).map_err(|error| format!("/{path}: {error}"))
    }

    fn number<T: std::str::FromStr>(&self, path: &str) -> Known<T> {
        let text = self.text(path)?;
        text.parse().map_err(|_| format!("/{path} says '{text}', which is no such number"))
    }

    fn names(&self, path: &str) -> Known<Vec<String>> {
        let entries = std::fs::read_dir(self.0.join(path)).map_err(|error| format!("/{path}: {error}"))?;
        let mut names: Vec<_> =
            entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
        names.sort();
        Ok(names)
    }

    /// The numbers behind `start` in the names of what is there.
    fn numbered(&self, path: &str, start: &str) -> Vec<usize> {
        let names = self.names(path).unwrap_or_default();
        let number = |name: &String| name.strip_prefix(start)?.parse().ok();
        names.iter().filter_map(number).collect()
    }
}

fn known<T, E: Display>(result: Result<T, E>) -> Known<T> {
    result.map_err(|error| error.to_string())
}

impl Host {
    /// Reads everything.
    pub fn read(files: &Files) -> Host {
        let limit = rustix::process::getrlimit(Resource::Memlock);
        Host {
            kernel: files.text("proc/sys/kernel/osrelease"),
            page_bytes: rustix::param::page_size(),
            af_xdp: inspect::af_xdp().map_err(|error| Refused {
                is_missing: error.raw_os_error() == Some(rustix::io::Errno::AFNOSUPPORT.raw_os_error()),
                why: error.to_string(),
            }),
            rights: known(rustix::thread::capabilities(None)).map(|sets| sets.effective),
            lockable: limit.current,
            huge: huge_pages(files),
            bpffs: files.text("proc/mounts").map(|mounts| has_bpffs(&mounts)),
            jit: files.number("proc/sys/net/core/bpf_jit_enable"),
            allowed: known(preflight::allowed_cores()).map(|cores| cores.iter().map(|core| core.0).collect()),
            isolated: files.text("sys/devices/system/cpu/isolated").and_then(|text| cpu_list(&text)),
            cpus: cpus(files),
        }
    }
}

impl Link {
    /// Reads everything about an interface; with a VLAN, the addresses of its device.
    pub fn read(files: &Files, sockets: &Sockets, name: &str, vlan: Option<u16>) -> Link {
        let interface = known(xsk::interface(name));
        let xdp = match &interface {
            Ok(interface) => netdev::xdp_features(interface.index)
                .map_err(|why| format!("the kernel does not tell what the driver's XDP can do ({why})")),
            Err(why) => Err(why.clone()),
        };
        let program = interface.clone().and_then(|interface| known(inspect::program_on(&interface)));
        let folder = interface.as_ref().map_err(String::clone).and_then(|interface| folder(files, interface));
        let at = |file: &str| folder.as_ref().map(|folder| format!("{folder}/{file}")).map_err(String::clone);
        let not_told = |error: std::io::Error| format!("the driver does not tell ({error})");
        let (underlay, underlay_mtu) = underlay(name, vlan, &interface);
        Link {
            name: name.to_owned(),
            carrier: at("carrier").and_then(|path| files.number::<u8>(&path)).map(|carrier| carrier == 1),
            channels: inspect::channels(name).map_err(not_told),
            features: inspect::features(name).map_err(not_told),
            indirection: inspect::indirection(name).map_err(not_told),
            hash: [UdpFlow::Udp4, UdpFlow::Udp6]
                .map(|flow| (flow, inspect::flow_hash(name, flow).map_err(not_told))),
            node: at("device/numa_node").and_then(|path| node(files, &path)),
            interrupts: at("device").and_then(|device| interrupts(files, &device)),
            virtio_platform: at("device/features").and_then(|path| virtio_platform(&files.text(&path)?)),
            detachable: interface.as_ref().ok().and_then(|it| inspect::detachable_mode(it).ok().flatten()),
            taken: taken(sockets, &interface, &program),
            elsewhere: elsewhere(underlay.as_ref().map_or(name, |(device, _)| device)),
            interface,
            xdp,
            program,
            underlay,
            underlay_mtu,
        }
    }

    /// Whether a feature is on, and can be switched.
    pub fn feature(&self, name: &str) -> Known<(bool, bool)> {
        let features = self.features.as_ref().map_err(String::clone)?;
        let feature = features.iter().find(|feature| feature.name == name);
        Ok(feature.map_or((false, false), |feature| (feature.is_on, feature.can_change)))
    }
}

/// Where /sys tells of an interface. In a network namespace it may show the interfaces of another one.
fn folder(files: &Files, interface: &xsk::Interface) -> Known<String> {
    let folder = format!("sys/class/net/{}", interface.name);
    let number: u32 = files.number(&format!("{folder}/ifindex"))?;
    if number == interface.index {
        Ok(folder)
    } else {
        Err("/sys shows another network namespace".to_owned())
    }
}

/// It has a device behind it, on PCI or a bus like it.
pub fn is_card(interface: &xsk::Interface) -> Known<bool> {
    let files = Files::default();
    folder(&files, interface).map(|folder| files.0.join(folder).join("device").exists())
}

/// Once a queue. Not asked where a daemon of ours has the interface: it has the sockets.
fn taken(
    sockets: &Sockets,
    interface: &Known<xsk::Interface>,
    program: &Known<Option<(u32, String)>>,
) -> Known<Vec<(u32, String)>> {
    if matches!(program, Ok(Some((_, name))) if inspect::is_ours(name)) {
        return Ok(Vec::new());
    }
    sockets.on(interface.as_ref().map_err(String::clone)?.index)
}

/// Bit 33 of a virtio device's features, which are written as ones and zeros from bit 0 on.
fn virtio_platform(features: &str) -> Known<bool> {
    match features.as_bytes().get(33) {
        Some(b'0') => Ok(false),
        Some(b'1') => Ok(true),
        _ => Err(format!("'{features}' are no virtio device's features")),
    }
}

/// The addresses of all interfaces but this one.
fn elsewhere(name: &str) -> Vec<(std::net::IpAddr, String)> {
    let all = inspect::addresses().unwrap_or_default();
    all.into_iter().filter(|(_, other)| other != name).collect()
}

type Addresses = (String, Vec<std::net::IpAddr>);

fn underlay(
    name: &str,
    vlan: Option<u16>,
    interface: &Known<xsk::Interface>,
) -> (Known<Addresses>, Known<u32>) {
    let device = match (vlan, interface) {
        (_, Err(why)) => Err(why.clone()),
        (None, Ok(interface)) => Ok(interface.clone()),
        (Some(vlan), Ok(_)) => match inspect::vlan_device(name, vlan) {
            Ok(Some(device)) => known(xsk::interface(&device)),
            Ok(None) => Err(format!("{name} has no device for VLAN {vlan}")),
            Err(error) => Err(error.to_string()),
        },
    };
    let addresses = device.clone().map(|device| (device.name, device.addresses));
    (addresses, device.map(|device| device.mtu))
}

fn huge_pages(files: &Files) -> Known<HugePages> {
    let meminfo = files.text("proc/meminfo")?;
    let value = |key| meminfo_value(&meminfo, key).ok_or_else(|| format!("/proc/meminfo has no {key}"));
    let (bytes, total) = (value("Hugepagesize:")? * 1024, value("HugePages_Total:")?);
    let nodes = files.numbered("sys/devices/system/node", "node");
    let of = |node: usize| {
        let path = format!(
            "sys/devices/system/node/node{node}/hugepages/hugepages-{}kB/free_hugepages",
            bytes / 1024
        );
        files.number(&path).ok().map(|free| (node, free))
    };
    let mut free: BTreeMap<usize, u64> = nodes.into_iter().filter_map(of).collect();
    if free.is_empty() {
        free.insert(0, value("HugePages_Free:")?);
    }
    // Some of the free ones are promised to others already; on which node, nobody tells.
    let promised = value("HugePages_Rsvd:")?;
    free.values_mut().for_each(|free| *free = free.saturating_sub(promised));
    Ok(HugePages { bytes, total, free })
}

/// The number behind a key of /proc/meminfo ("HugePages_Free:"): a count, or KiB where the kernel writes "kB".
pub fn meminfo_value(text: &str, key: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

/// A line of /proc/mounts: source, place, type, …
fn has_bpffs(mounts: &str) -> bool {
    mounts.lines().any(|line| {
        let mut words = line.split(' ').skip(1);
        words.next() == Some("/sys/fs/bpf") && words.next() == Some("bpf")
    })
}

fn cpus(files: &Files) -> BTreeMap<usize, Cpu> {
    let all = files.numbered("sys/devices/system/cpu", "cpu").into_iter().map(|cpu| {
        let folder = format!("sys/devices/system/cpu/cpu{cpu}");
        let siblings = files.text(&format!("{folder}/topology/thread_siblings_list"));
        let facts = Cpu {
            governor: files.text(&format!("{folder}/cpufreq/scaling_governor")),
            siblings: siblings.and_then(|text| cpu_list(&text)),
            node: files.numbered(&folder, "node").first().copied(),
        };
        (cpu, facts)
    });
    all.collect()
}

fn node(files: &Files, path: &str) -> Known<usize> {
    let node: i64 = files.number(path)?;
    usize::try_from(node).map_err(|_| "the card is on no particular node".to_owned())
}

/// A virtio card's interrupts are those of the PCI device that it is on.
fn interrupts(files: &Files, device: &str) -> Known<Vec<Interrupt>> {
    let own = files.names(&format!("{device}/msi_irqs"));
    let names = own.or_else(|why| files.names(&format!("{device}/../msi_irqs")).map_err(|_| why))?;
    let one = |name: &String| -> Known<Interrupt> {
        let number = name.parse().map_err(|_| format!("msi_irqs has '{name}', which is no number"))?;
        let list = |file| files.text(&format!("proc/irq/{number}/{file}")).and_then(|text| cpu_list(&text));
        let asked = list("smp_affinity_list")?;
        let serving: Vec<usize> = list("effective_affinity_list").unwrap_or_default();
        let serving: Vec<usize> = serving.into_iter().filter(|cpu| asked.contains(cpu)).collect();
        // One that was told to move does so with its next packet.
        Ok(Interrupt { number, cpus: if serving.is_empty() { asked } else { serving } })
    };
    // Those that nobody asked for have no entry in /proc.
    let is_used = |name: &&String| files.0.join("proc/irq").join(name).exists();
    names.iter().filter(is_used).map(one).collect()
}

/// `0-3,8` as 0, 1, 2, 3, 8.
pub fn cpu_list(text: &str) -> Known<Vec<usize>> {
    let mut cpus = Vec::new();
    for part in text.trim().split(',').filter(|part| !part.is_empty()) {
        let (first, last) = part.split_once('-').unwrap_or((part, part));
        match (first.parse::<usize>(), last.parse::<usize>()) {
            (Ok(first), Ok(last)) if last < 1 << 16 => cpus.extend(first..=last),
            _ => return Err(format!("'{text}' is no list of CPUs")),
        }
    }
    Ok(cpus)
}

/// `6.12.1-amd64` as 6, 12, 1.
pub fn release(text: &str) -> Option<(u32, u32, u32)> {
    let mut numbers = text.split(|letter: char| !letter.is_ascii_digit()).map(str::parse);
    let (major, minor) = (numbers.next()?.ok()?, numbers.next()?.ok()?);
    Some((major, minor, numbers.next().and_then(Result::ok).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_texts_of_proc_and_sys_are_read() {
        assert_eq!(release("6.12.1-amd64"), Some((6, 12, 1)));
        assert_eq!(release("7.2-rc1"), Some((7, 2, 0)));
        assert_eq!((release(""), release("six.one")), (None, None));
        assert_eq!(cpu_list("0-2,8\n"), Ok(vec![0, 1, 2, 8]));
        assert_eq!(cpu_list(""), Ok(vec![]));
        assert!(cpu_list("0-").is_err() && cpu_list("0-99999999").is_err());
        let meminfo = "MemTotal:  1000 kB\nHugePages_Total:      12\nHugePages_Free:        7\nHugepagesize:       2048 kB\n";
        assert_eq!(meminfo_value(meminfo, "HugePages_Free:"), Some(7));
        assert_eq!(meminfo_value(meminfo, "Hugetlb:"), None);
        assert!(has_bpffs("sysfs /sys sysfs rw 0 0\nbpf /sys/fs/bpf bpf rw,nosuid 0 0"));
        assert!(!has_bpffs("bpf /run/bpf bpf rw 0 0\ntmpfs /sys/fs/bpf tmpfs rw 0 0"));
    }

    /// A machine of two sockets with a card on the second, as its files have it.
    #[test]
    fn a_machine_is_read_from_its_files() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        write(
            "proc/meminfo",
            "HugePages_Total: 64\nHugePages_Free: 40\nHugePages_Rsvd: 8\nHugepagesize: 2048 kB\n",
        );
        for (node, free) in [(0, "8"), (1, "32")] {
            write(
                &format!("sys/devices/system/node/node{node}/hugepages/hugepages-2048kB/free_hugepages"),
                free,
            );
        }
        write("sys/devices/system/cpu/cpu3/cpufreq/scaling_governor", "powersave\n");
        write("sys/devices/system/cpu/cpu3/topology/thread_siblings_list", "3,7\n");
        write("sys/devices/system/cpu/cpu3/node1/cpulist", "");
        write("sys/devices/system/cpu/cpufreq/x", "");
        write("card/msi_irqs/45", "msix");
        write("card/msi_irqs/46", "msix");
        write("proc/irq/45/effective_affinity_list", "3\n");
        write("proc/irq/45/smp_affinity_list", "0-3\n");
        write("proc/irq/46/effective_affinity_list", "3\n");
        write("proc/irq/46/smp_affinity_list", "0-1\n");
        write("card/numa_node", "1\n");
        write("old/numa_node", "-1\n");
        let files = Files::below(root.path());
        let huge = huge_pages(&files).unwrap();
        assert_eq!((huge.bytes, huge.total, huge.free), (2 << 20, 64, BTreeMap::from([(0, 0), (1, 24)])));
        let cpus = cpus(&files);
        assert_eq!(cpus.keys().copied().collect::<Vec<_>>(), [3]);
        let cpu = &cpus[&3];
        assert_eq!((cpu.governor.as_deref(), cpu.node), (Ok("powersave"), Some(1)));
        assert_eq!(cpu.siblings, Ok(vec![3, 7]));
        let expected = [Interrupt { number: 45, cpus: vec![3] }, Interrupt { number: 46, cpus: vec![0, 1] }];
        assert_eq!(interrupts(&files, "card").unwrap(), expected);
        assert_eq!(node(&files, "card/numa_node"), Ok(1));
        assert!(node(&files, "old/numa_node").is_err());
        assert!(interrupts(&files, "none").unwrap_err().contains("none/msi_irqs"));
        assert!(Host::read(&files).kernel.is_err(), "what is not there is not known");
    }
}
