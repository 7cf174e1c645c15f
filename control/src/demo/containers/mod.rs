//! `peregrine demo containers`: containers on two hosts that talk to each other, through Peregrine and then through the kernel's overlay.
//!
//! ```text
//!  namespace peregrine-demo-a                        namespace peregrine-demo-b
//!  ┌───────────────────────────────┐  wire (veth)   ┌───────────────────────────────┐
//!  │ first: peregrine run          │ 192.0.2.1  .2  │ first: peregrine run          │
//!  │ then:  vxlan + bridge         ├────────────────┤ then:  vxlan + bridge         │
//!  └───┬─────────┬─────────┬───────┘                └───┬─────────┬─────────┬───────┘
//!    veth      veth      veth                         veth      veth      veth
//!  ┌───┴──┐  ┌───┴──┐  ┌───┴──┐                     ┌───┴──┐  ┌───┴──┐  ┌───┴──┐
//!  │ …-a1 │  │ …-a2 │  │ …-a3 │   10.42.0.0/24      │ …-b1 │  │ …-b2 │  │ …-b3 │
//!  └──────┘  └──────┘  └──────┘   fd42::/64         └──────┘  └──────┘  └──────┘
//! ```
//!
//! `peregrine` and `kernel` are the two halves, which make hosts and containers; `measure` is what both do then, with the same programs
//! on the same cores; `report` shows the figures.

mod kernel;
mod measure;
mod peregrine;
mod report;

use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rustix::thread::{CpuSet, sched_getaffinity};
use serde::Serialize;

use super::place::Place;
use super::{DemoArgs, DemoError, catch_signals, check_requirements, check_tools, ourselves};
use crate::lab::{LabError, Namespace};
use report::Report;

/// The network of the containers.
const VNI: u32 = 43;
/// What they run, besides what every demo needs, with the Debian package of each.
const TOOLS: [(&str, &str); 5] = [
    ("iperf3", "iperf3"),
    ("curl", "curl"),
    ("python3", "python3"),
    ("taskset", "util-linux"),
    ("nsenter", "util-linux"),
];

/// One of the two hosts, of whichever half.
struct HostName {
    namespace: &'static str,
    /// Its end of the wire, with its Ethernet address.
    device: (&'static str, &'static str),
    vtep: &'static str,
}

const A: HostName =
    HostName { namespace: "peregrine-demo-a", device: ("wire-a", "02:00:00:00:0f:0a"), vtep: "192.0.2.1" };
const B: HostName =
    HostName { namespace: "peregrine-demo-b", device: ("wire-b", "02:00:00:00:0f:0b"), vtep: "192.0.2.2" };

/// A container, of whichever half.
#[derive(Clone, Copy)]
struct Container {
    name: &'static str,
    namespace: &'static str,
    /// The last byte of its addresses, in the way that IPv4 and that Ethernet and IPv6 write it.
    last: (&'static str, &'static str),
}

impl Container {
    fn v4(&self) -> String {
        format!("10.42.0.{}", self.last.0)
    }

    fn v6(&self) -> String {
        format!("fd42::{}", self.last.1)
    }

    fn mac(&self) -> String {
        format!("02:00:00:00:42:{}", self.last.1)
    }

    const fn new(
        name: &'static str,
        namespace: &'static str,
        last: (&'static str, &'static str),
    ) -> Container {
        Container { name, namespace, last }
    }
}

const A1: Container = Container::new("a1", "peregrine-demo-a1", ("17", "11"));
const B1: Container = Container::new("b1", "peregrine-demo-b1", ("33", "21"));
/// Those on host A.
const ON_A: [Container; 3] = [
    A1,
    Container::new("a2", "peregrine-demo-a2", ("18", "12")),
    Container::new("a3", "peregrine-demo-a3", ("19", "13")),
];
/// Those on host B.
const ON_B: [Container; 3] = [
    B1,
    Container::new("b2", "peregrine-demo-b2", ("34", "22")),
    Container::new("b3", "peregrine-demo-b3", ("35", "23")),
];

/// All that this scenario makes: the containers first, so that they go before their hosts.
pub(super) fn namespaces() -> impl Iterator<Item = &'static str> {
    let containers = ON_A.into_iter().chain(ON_B).map(|container| container.namespace);
    containers.chain([A.namespace, B.namespace])
}

/// Which CPU does what, in both halves; in the kernel's half nothing polls on the workers' cores.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
struct Cores {
    /// Peregrine's workers.
    worker_a: usize,
    worker_b: usize,
    /// What runs in the containers.
    programs_a: usize,
    programs_b: usize,
}

impl Cores {
    /// The first of those that we may use: four if there are that many, so that nobody shares one. On three the programs share one, on two
    /// each host's programs share that of their host's worker.
    fn choose(usable: &[usize]) -> Result<Cores, DemoError> {
        let cores =
            |worker_a, worker_b, programs_a, programs_b| Cores { worker_a, worker_b, programs_a, programs_b };
        match *usable {
            [a, b, c, d, ..] => Ok(cores(a, b, c, d)),
            [a, b, c] => Ok(cores(a, b, c, c)),
            [a, b] => Ok(cores(a, b, a, b)),
            _ => Err(DemoError::Here("it needs two cores: one for the worker of each host".into())),
        }
    }

    /// Whether programs run beside a worker.
    fn are_shared(&self) -> bool {
        [self.programs_a, self.programs_b].iter().any(|core| [self.worker_a, self.worker_b].contains(core))
    }
}

/// What all parts need.
struct Lab {
    place: Place,
    cores: Cores,
    /// The program `peregrine`.
    daemon: PathBuf,
    duration: Duration,
    interrupted: Arc<AtomicBool>,
}

/// Both hosts and the wire between them. Dropped, they are gone.
struct Hosts {
    a: Namespace,
    b: Namespace,
}

impl Lab {
    fn stopped(&self) -> bool {
        self.interrupted.load(Ordering::Relaxed)
    }

    /// Between two steps: go on, or has somebody pressed Ctrl-C?
    fn check(&self) -> Result<(), LabError> {
        if self.stopped() { Err(LabError::Interrupted) } else { Ok(()) }
    }

    /// New ones: nothing of one half is left for the other.
    fn hosts(&self) -> Result<Hosts, LabError> {
        self.check()?;
        let hosts = Hosts { a: Namespace::create(A.namespace)?, b: Namespace::create(B.namespace)? };
        hosts.a.wire(A.device, &hosts.b, B.device, 1500)?;
        for (host, name) in [(&hosts.a, A), (&hosts.b, B)] {
            host.ip(&format!("addr add {}/24 dev {}", name.vtep, name.device.0))?;
        }
        Ok(hosts)
    }

    /// A program in a container on host A.
    fn on_a(&self, container: Container, program: &str) -> Command {
        inside(container, self.cores.programs_a, program)
    }

    /// A program in a container on host B.
    fn on_b(&self, container: Container, program: &str) -> Command {
        inside(container, self.cores.programs_b, program)
    }
}

/// With the same priority as Peregrine's workers: on two cores one that is above the other would leave it no time.
fn inside(container: Container, core: usize, program: &str) -> Command {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", container.namespace, "taskset", "-c", &core.to_string(), program]);
    command
}

/// Both halves, one after the other.
pub(super) fn measure(args: &DemoArgs, interrupted: &Arc<AtomicBool>) -> Result<Report, DemoError> {
    catch_signals(interrupted)?;
    check_requirements()?;
    check_tools(&TOOLS)?;
    let usable = sched_getaffinity(None)
        .map_err(|error| DemoError::Here(format!("cannot read the CPU affinity: {error}")))?;
    let usable: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|&core| usable.is_set(core)).collect();
    let lab = Lab {
        cores: Cores::choose(&usable)?,
        daemon: ourselves()?,
        place: Place::take()?,
        duration: Duration::from_secs(args.seconds),
        interrupted: interrupted.clone(),
    };
    let file = measure::make_file(&lab)?;
    let (peregrine, daemons) = peregrine::measure(&lab, &file)?;
    let kernel = kernel::measure(&lab, &file)?;
    Ok(Report::new(peregrine, kernel, daemons, lab.cores, args.seconds))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_shares_a_core_where_there_are_four() {
        let shared = |usable: &[usize]| Cores::choose(usable).unwrap().are_shared();
        assert_eq!([shared(&[2, 3]), shared(&[0, 1, 2]), shared(&[0, 1, 2, 3, 4])], [true, false, false]);
        assert!(Cores::choose(&[5]).is_err());
        let two = Cores::choose(&[2, 7]).unwrap();
        assert_eq!((two.worker_a, two.worker_b), (2, 7));
    }

    #[test]
    fn each_container_has_an_address_of_its_own() {
        let all = || ON_A.into_iter().chain(ON_B);
        for container in all() {
            let decimal: u8 = container.last.0.parse().unwrap();
            assert_eq!(format!("{decimal:02x}"), container.last.1, "{}", container.name);
            assert!(container.namespace.ends_with(container.name));
            assert_eq!(all().filter(|other| other.last == container.last).count(), 1);
        }
        assert_eq!(namespaces().count(), 8);
    }
}
