//! Containers on the kernel's overlay: network namespaces with veth pairs into a bridge that a vxlan device is in, made by netlink alone,
//! without a program started. `endpoints_case` runs it.
//!
//! The "host" is a network namespace of its own, and all namespaces are held by descriptors only: whatever ends this process takes all of
//! it away. That nothing is mounted and no state written makes the kernel's side faster than what container runtimes really do.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd};
use std::process::Command;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use peregrine_control::lab;
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::bursts::us;
use super::netlink::{self, End, Netlink};
use super::probe::{Asker, Probe};

/// The bridge's number, and that of the first container's port where we choose it.
const BRIDGE: u32 = 100;
const FIRST_PORT: u32 = 1000;
const GATEWAY: Asker = Asker { device: "br0", mac: [2, 0, 0, 0, 77, 1], ip: Ipv4Addr::new(10, 77, 0, 1) };
const MTU: u32 = 1450;
/// The kernel takes namespaces away in the background, some milliseconds each.
const PATIENCE: Duration = Duration::from_secs(180);

/// How many neighbours all namespaces together may know; set on the host itself only, for all of it.
const NEIGHBOURS_MAX: &str = "/proc/sys/net/ipv4/neigh/default/gc_thresh3";
/// Each container knows the one who asks.
const NEIGHBOURS: u32 = 8192;

/// Room for the neighbours of a thousand containers. Without it those who come when 1024 are known do not answer.
struct Neighbours(Option<u32>);

impl Neighbours {
    /// Makes it, if it is ours to make; otherwise the burst will say so.
    fn allow() -> Neighbours {
        let most = std::fs::read_to_string(NEIGHBOURS_MAX).ok().and_then(|text| text.trim().parse().ok());
        let less = most.filter(|most: &u32| *most < NEIGHBOURS);
        Neighbours(less.filter(|_| std::fs::write(NEIGHBOURS_MAX, NEIGHBOURS.to_string()).is_ok()))
    }
}

impl Drop for Neighbours {
    fn drop(&mut self) {
        if let Some(before) = self.0 {
            let _as_it_was = std::fs::write(NEIGHBOURS_MAX, before.to_string());
        }
    }
}

/// How containers get their network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Form {
    /// One after the other, each request answered: the pair is made on the host, and its end moved in.
    Moved,
    /// The same, but the pair is made in the container with the other end on the host, as newer CNI bridge plugins do.
    InPlace,
    /// All namespaces first; then all pairs by one batch, both ends in place and the host's in the bridge, which is told who is behind which
    /// port; then one batch in each container.
    Batch,
}

impl Form {
    pub fn name(self) -> &'static str {
        match self {
            Form::Moved => "moved",
            Form::InPlace => "in-place",
            Form::Batch => "batch",
        }
    }
}

/// What one burst took.
#[derive(Clone, Debug)]
pub struct Run {
    /// Of it for the namespaces alone, where they are made at once.
    pub namespaces_us: Option<f64>,
    /// Until all were made.
    pub made_us: f64,
    /// Until each had answered its first packet, in rising order, from the beginning of the burst.
    pub first_packet_us: Vec<f64>,
    /// By container, what it took from its own beginning, made one after the other.
    pub own_us: Vec<f64>,
    /// Until the kernel had taken all of them away.
    pub removal_us: f64,
}

/// A container: its namespace is there as long as this is.
struct Container {
    namespace: File,
    netlink: Netlink,
}

fn mac(number: u32) -> [u8; 6] {
    let [_, _, high, low] = number.to_be_bytes();
    [2, 0, 0, 77, high, low]
}

fn ip(number: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 77, 1, 0)) + number)
}

/// The host's end, and the container's.
fn ends<'a>(number: u32, names: (&'a str, &'a str)) -> (End<'a>, End<'a>) {
    let end = |name, mac| End { name, mac, mtu: MTU, namespace: None, bridge: None, index: 0, is_up: false };
    let [a, b, c, d, e, f] = mac(number);
    (end(names.0, [a | 4, b, c, d, e, f]), end(names.1, mac(number)))
}

fn this_namespace() -> Result<File, String> {
    let path = "/proc/thread-self/ns/net";
    File::open(path).map_err(|error| format!("{path}: {error}"))
}

/// This thread goes to a new namespace.
#[allow(deprecated, reason = "what is wrong with it is wrong with FILES only")]
fn new_namespace() -> Result<(), String> {
    rustix::thread::unshare(UnshareFlags::NEWNET)
        .map_err(|error| format!("cannot make a network namespace: {error} (it needs root)"))
}

/// So many, held by these files only.
pub fn new_namespaces(count: u16) -> Result<Vec<File>, String> {
    let one = || new_namespace().and_then(|()| this_namespace());
    let all = || (0..count).map(|_| one()).collect();
    std::thread::scope(|scope| scope.spawn(all).join()).unwrap_or_else(|_| Err("it panicked".into()))
}

fn enter(namespace: &File) -> Result<(), String> {
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
        .map_err(|error| format!("cannot enter a network namespace: {error}"))
}

/// Does something in a named namespace, on a thread of its own.
pub fn inside<T: Send>(name: &str, work: impl FnOnce() -> T + Send) -> Result<T, String> {
    let path = std::path::Path::new("/run/netns").join(name);
    let namespace = File::open(&path).map_err(|error| format!("{}: {error}", path.display()))?;
    let there = || enter(&namespace).map(|()| work());
    std::thread::scope(|scope| scope.spawn(there).join()).unwrap_or_else(|_| Err("it panicked".into()))
}

impl Container {
    fn new() -> Result<Container, String> {
        new_namespace()?;
        Ok(Container { namespace: this_namespace()?, netlink: Netlink::open()? })
    }

    /// What is asked for in the container, once its device is there.
    fn set_up(number: u32, index: u32) -> [netlink::Request; 4] {
        [
            netlink::up(1),
            netlink::address(index, ip(number), 16),
            netlink::up(index),
            netlink::default_route(index, GATEWAY.ip),
        ]
    }
}

/// The host.
pub struct Host {
    namespace: File,
}

impl Host {
    /// Runs something on a host of its own, on a thread of its own, as this one stays where it is.
    pub fn with<T: Send>(work: impl FnOnce(&Host) -> Result<T, String> + Send) -> Result<T, String> {
        let _room = Neighbours::allow();
        let on_it = || {
            new_namespace()?;
            let host = Host { namespace: this_namespace()? };
            for line in [
                "link set lo up",
                "link add under0 type veth peer name under1",
                "link set under1 up",
                "addr add 192.0.2.1/24 dev under0",
                "link set under0 up",
                "link add br0 index 100 address 02:00:00:00:4d:01 type bridge",
                "link add vx0 type vxlan id 42 dstport 4789 local 192.0.2.1 remote 192.0.2.2",
                "link set vx0 master br0 up",
                "link set br0 up",
            ] {
                lab::run(Command::new("ip").args(line.split(' '))).map_err(|error| error.to_string())?;
            }
            work(&host)
        };
        let done = std::thread::scope(|scope| scope.spawn(on_it).join());
        done.unwrap_or_else(|_| Err("it panicked".into()))
    }

    /// One burst, from nothing and back to nothing.
    pub fn run(&self, form: Form, count: u32, threads: u32) -> Result<Run, String> {
        let (mut run, containers) = match form {
            Form::Moved | Form::InPlace => self.one_by_one(form, count, threads)?,
            Form::Batch => self.batch(count)?,
        };
        let begun = Instant::now();
        drop(containers);
        self.wait_until_empty(count)?;
        run.removal_us = us(begun);
        Ok(run)
    }

    fn one_by_one(&self, form: Form, count: u32, threads: u32) -> Result<(Run, Vec<Container>), String> {
        let barrier = Barrier::new(threads as usize);
        let begun = std::sync::OnceLock::new();
        let share = |thread: u32| -> Result<_, String> {
            enter(&self.namespace)?;
            let (mut host, mut probe) = (Netlink::open()?, Probe::open(GATEWAY)?);
            barrier.wait();
            let begun: Instant = *begun.get_or_init(Instant::now);
            let mut made = Vec::new();
            for number in (thread..count).step_by(threads as usize) {
                let own = Instant::now();
                let container = self.make(form, number, &mut host)?;
                let made_us = us(begun);
                let first = probe.reach(&[(ip(number), mac(number))], begun)?;
                made.push((container, made_us, first, us(own)));
            }
            Ok(made)
        };
        let mut run = Run {
            namespaces_us: None,
            made_us: 0.0,
            first_packet_us: Vec::new(),
            own_us: Vec::new(),
            removal_us: 0.0,
        };
        let mut containers = Vec::new();
        let shares: Result<Vec<_>, String> = std::thread::scope(|scope| {
            let share = &share;
            let all: Vec<_> = (0..threads).map(|thread| scope.spawn(move || share(thread))).collect();
            all.into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err("it panicked".into())))
                .collect()
        });
        for (container, made_us, first, own_us) in shares?.into_iter().flatten() {
            containers.push(container);
            run.made_us = run.made_us.max(made_us);
            run.first_packet_us.extend(first);
            run.own_us.push(own_us);
        }
        run.first_packet_us.sort_by(f64::total_cmp);
        Ok((run, containers))
    }

    fn make(&self, form: Form, number: u32, host: &mut Netlink) -> Result<Container, String> {
        let mut container = Container::new()?;
        let (ours, theirs) = (format!("vh{number}"), format!("vc{number}"));
        let index = if form == Form::Moved {
            let (one, other) = ends(number, (&ours, &theirs));
            host.ask(&netlink::veth(&one, &other))?;
            let index = host.index_of(&theirs)?;
            host.ask(&netlink::move_to(index, container.namespace.as_raw_fd(), "eth0"))?;
            container.netlink.index_of("eth0")?
        } else {
            let (one, other) = ends(number, (&ours, "eth0"));
            let one = End { namespace: Some(self.namespace.as_raw_fd()), ..one };
            container.netlink.ask(&netlink::veth(&other, &one))?;
            container.netlink.index_of("eth0")?
        };
        let port = host.index_of(&ours)?;
        host.ask(&netlink::up(port))?;
        host.ask(&netlink::enslave(port, BRIDGE))?;
        for request in Container::set_up(number, index) {
            container.netlink.ask(&request)?;
        }
        Ok(container)
    }

    fn batch(&self, count: u32) -> Result<(Run, Vec<Container>), String> {
        enter(&self.namespace)?;
        let (mut host, mut probe) = (Netlink::open()?, Probe::open(GATEWAY)?);
        let begun = Instant::now();
        let containers: Result<Vec<Container>, String> = (0..count).map(|_| Container::new()).collect();
        let mut containers = containers?;
        enter(&self.namespace)?;
        let namespaces_us = us(begun);
        let names: Vec<String> = (0..count).map(|number| format!("vh{number}")).collect();
        let all = || (0..count).zip(&containers).zip(&names);
        let pairs = all().map(|((number, container), name)| {
            let (one, other) = ends(number, (name, "eth0"));
            let one = End { bridge: Some(BRIDGE), index: FIRST_PORT + number, is_up: true, ..one };
            let inside = Some(container.namespace.as_raw_fd());
            netlink::veth(&one, &End { namespace: inside, index: 2, ..other })
        });
        let known = (0..count).map(|number| netlink::known_behind(FIRST_PORT + number, mac(number)));
        let requests: Vec<netlink::Request> = pairs.chain(known).collect();
        host.batch(&requests)?;
        for (number, container) in (0..).zip(&mut containers) {
            container.netlink.batch(&Container::set_up(number, 2))?;
        }
        let made_us = us(begun);
        let whom: Vec<_> = (0..count).map(|number| (ip(number), mac(number))).collect();
        let first_packet_us = probe.reach(&whom, begun)?;
        let run = Run {
            namespaces_us: Some(namespaces_us),
            made_us,
            first_packet_us,
            own_us: Vec::new(),
            removal_us: 0.0,
        };
        Ok((run, containers))
    }

    /// Until all ports are gone.
    fn wait_until_empty(&self, count: u32) -> Result<(), String> {
        enter(&self.namespace)?;
        let (mut host, begun) = (Netlink::open()?, Instant::now());
        for number in 0..count {
            while host.index_of(&format!("vh{number}")).is_ok() {
                if begun.elapsed() > PATIENCE {
                    return Err(format!(
                        "the kernel still has vh{number} of {count} containers that are gone"
                    ));
                }
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[ignore = "needs root: make test runs it"]
    fn a_thousand_containers_answer() {
        let before = std::fs::read_to_string(NEIGHBOURS_MAX).unwrap();
        let run = Host::with(|host| host.run(Form::Batch, 1000, 1)).unwrap();
        assert_eq!(run.first_packet_us.len(), 1000);
        println!("{:.0} ms, removal {:.0} ms", run.first_packet_us[999] / 1e3, run.removal_us / 1e3);
        assert_eq!(std::fs::read_to_string(NEIGHBOURS_MAX).unwrap(), before);
    }
}
