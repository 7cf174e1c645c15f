//! The checks of an uplink's interface: its link, its driver, its queues and offloads, who else uses it, and its addresses.

use peregrine_dataplane::engine::underlay_mtu_needed;
use peregrine_dataplane::plan::{Queues, UplinkPlan, XdpMode};
use peregrine_dataplane::types::QueueId;
use peregrine_dataplane::xsk::Interface;
use peregrine_dataplane::xsk::inspect::{self, HASH_BY_PORT, UdpFlow};

use super::drivers::{self, Demand, Driver, Merging, Release};
use super::facts::{Known, Link, release};
use super::mend::Mend;
use super::{Case, Finding};

/// All of them. Where there is no such interface, that is all there is to say.
pub fn checks(case: &Case, uplink: &UplinkPlan, link: &Link) -> Vec<Finding> {
    let interface = match &link.interface {
        Ok(interface) => interface,
        Err(why) => return vec![Finding::failure("interface", why, "nothing can be sent or received there")],
    };
    let on = On { case, uplink, link, interface, driver: drivers::known(&interface.driver) };
    let mut all =
        vec![on.interface(), on.carrier(), on.native(), on.zero_copy(), on.mtu(), on.program(), on.taken()];
    all.extend([on.channels(), on.unserved(), on.spread()]);
    all.extend(link.hash.iter().map(|(flow, fields)| on.hash(*flow, fields)));
    all.extend([
        on.merging("lro", "rx-lro", "lro"),
        on.merging("gro-hw", "rx-gro-hw", "rx-gro-hw"),
        on.vlan_strip(),
    ]);
    all.extend([on.interrupts(), on.numa()]);
    all.extend(on.addresses());
    all.extend(on.underlay_mtu());
    all
}

/// An uplink, and its interface.
struct On<'a> {
    case: &'a Case,
    uplink: &'a UplinkPlan,
    link: &'a Link,
    interface: &'a Interface,
    driver: Option<&'static Driver>,
}

/// Whether something is there that came with a kernel; `None`: nobody knows.
fn came(since: Option<Release>, kernel: Option<(u32, u32, u32)>) -> Option<bool> {
    match (since, kernel) {
        (None, _) => Some(false),
        (Some(since), Some((major, minor, _))) => Some((major, minor) >= since),
        (Some(_), None) => None,
    }
}

impl On<'_> {
    fn kernel(&self) -> Option<(u32, u32, u32)> {
        self.case.host.kernel.as_ref().ok().and_then(|text| release(text))
    }

    fn driver_name(&self) -> &str {
        if self.interface.driver.is_empty() { "unknown" } else { &self.interface.driver }
    }

    /// ` before Linux 6.14`, where a newer kernel has it; one that should have it and tells of none has a reason, such as another setting.
    fn later(&self, since: Option<Release>) -> String {
        match (since, came(since, self.kernel())) {
            (None, _) => String::new(),
            (Some((major, minor)), Some(false)) => format!(" before Linux {major}.{minor}"),
            (Some(_), _) => ": the kernel tells of none now (LRO? the other end's queues?)".to_owned(),
        }
    }

    /// A daemon's program is there; a daemon that looks for itself has put it there.
    fn has_ours(&self) -> bool {
        matches!(&self.link.program, Ok(Some((_, program))) if inspect::is_ours(program))
    }

    fn interface(&self) -> Finding {
        let Interface { name, mtu, queue_count, up, .. } = self.interface;
        if !up {
            return Finding::failure("interface", "it is down", "no socket can be bound to it")
                .command(format!("ip link set dev {name} up"));
        }
        let note = self.driver.map_or("", |driver| driver.note);
        let separator = if note.is_empty() { "" } else { "; " };
        let driver = self.driver_name();
        Finding::ok(
            "interface",
            format!("driver {driver}, MTU {mtu}, queues: {queue_count}{separator}{note}"),
        )
    }

    fn carrier(&self) -> Finding {
        match &self.link.carrier {
            Err(why) => Finding::skipped("carrier", why),
            Ok(true) => Finding::ok("carrier", "the wire is there"),
            Ok(false) => Finding::warning(
                "carrier",
                "no carrier",
                "nothing comes or goes until there is: look at the cable, or the other end",
            ),
        }
    }

    /// What the kernel tells goes before what is known beforehand.
    fn native(&self) -> Finding {
        const NAME: &str = "native-xdp";
        if self.uplink.mode == XdpMode::Generic {
            return Finding::ok(NAME, "not needed in mode 'generic'");
        }
        let since = self.driver.and_then(|driver| driver.native);
        let there = match (&self.link.xdp, self.driver) {
            (Ok(xdp), _) => Some(xdp.is_native()),
            (Err(_), Some(driver)) => came(driver.native, self.kernel()),
            (Err(_), None) => None,
        };
        match (there, &self.link.xdp) {
            (Some(true), _) => Finding::ok(NAME, format!("driver {} runs XDP programs", self.driver_name())),
            (Some(false), _) => {
                let what = format!("driver {} runs no XDP programs{}", self.driver_name(), self.later(since));
                Finding::failure(
                    NAME,
                    what,
                    "only mode = \"generic\" works there, which any driver has, slower",
                )
            }
            (None, Err(why)) => Finding::skipped(NAME, why),
            (None, Ok(_)) => Finding::skipped(NAME, "the kernel's version is not known"),
        }
    }

    fn zero_copy(&self) -> Finding {
        const NAME: &str = "zero-copy";
        let is_required = self.uplink.mode == XdpMode::RequireZeroCopy;
        if !is_required && self.uplink.mode != XdpMode::PreferZeroCopy {
            return Finding::ok(NAME, format!("not asked for in mode '{}'", self.uplink.mode.name()));
        }
        let since = self.driver.and_then(|driver| driver.zero_copy);
        let there = match (&self.link.xdp, self.driver) {
            (Ok(xdp), _) => Some(xdp.is_zero_copy()),
            (Err(_), Some(driver)) => came(driver.zero_copy, self.kernel()),
            (Err(_), None) => None,
        };
        let is_single = self.link.xdp.as_ref().is_ok_and(|xdp| xdp.zero_copy_segments < 2);
        let driver = self.driver_name();
        match there {
            None => {
                Finding::skipped(NAME, format!("nobody tells whether driver {driver} has it: a start does"))
            }
            Some(true) if let Some(finding) = self.virtio(NAME, is_required) => finding,
            Some(true) if self.case.wanted.multi_buffer && is_single => {
                let what = format!("driver {driver} has it for packets in one chunk only");
                let why = "some networks[n].mtu does not fit one: lower it, or use chunk_size = 4096";
                if is_required {
                    Finding::failure(NAME, what, why)
                } else {
                    Finding::warning(NAME, what, why)
                }
            }
            Some(true) if !is_required && !self.fits_zero_copy() => {
                let what = format!(
                    "an MTU of {} does not fit a chunk of {} bytes with it",
                    self.interface.mtu, self.uplink.chunk_size
                );
                Finding::warning(NAME, what, "the kernel copies each packet: use chunk_size = 4096")
            }
            Some(true) => Finding::ok(NAME, format!("driver {driver} has it")),
            Some(false) => {
                let what = format!("driver {driver} has none{}", self.later(since));
                if is_required {
                    Finding::failure(NAME, what, "use mode = \"prefer-zero-copy\" or \"copy\"")
                } else if since.is_some() {
                    Finding::warning(NAME, what, "the kernel copies each packet")
                } else {
                    Finding::ok(NAME, format!("{what}: the kernel copies each packet"))
                }
            }
        }
    }

    /// The driver has zero-copy, but not each virtio card.
    fn virtio(&self, check: &'static str, is_required: bool) -> Option<Finding> {
        if self.interface.driver != "virtio_net" {
            return None;
        }
        let what = "the hypervisor gives this card no VIRTIO_F_ACCESS_PLATFORM, without which there is none";
        match &self.link.virtio_platform {
            Ok(true) => None,
            Err(why) => Some(Finding::skipped(check, why)),
            Ok(false) if is_required => {
                let why =
                    "use mode = \"prefer-zero-copy\" or \"copy\", or set iommu_platform=on in the hypervisor";
                Some(Finding::failure(check, what, why))
            }
            Ok(false) => Some(Finding::warning(check, what, "the kernel copies each packet")),
        }
    }

    /// Otherwise a start that only prefers it does without.
    fn fits_zero_copy(&self) -> bool {
        let most = inspect::largest_zero_copy_mtu(&self.interface.driver, self.uplink.chunk_size);
        self.case.wanted.multi_buffer || self.interface.mtu <= most
    }

    /// The largest MTU with packets in one chunk, and why there is no larger one.
    fn mtu_limit(&self) -> (u32, String) {
        let (driver, chunk) = (self.driver_name(), self.uplink.chunk_size);
        let is_zero_copy = self.uplink.mode == XdpMode::RequireZeroCopy;
        let (by_chunk, with) = if is_zero_copy {
            let most = inspect::largest_zero_copy_mtu(&self.interface.driver, chunk);
            (most, format!(" with driver {driver}'s zero-copy"))
        } else {
            (inspect::largest_mtu(chunk), String::new())
        };
        // Where our program is on, the driver has taken it.
        let is_asked = self.uplink.mode != XdpMode::Generic && !self.has_ours();
        match self.driver.and_then(|driver| driver.mtu_max).filter(|most| is_asked && *most < by_chunk) {
            Some(most) => (most, format!("driver {driver} takes no XDP program with a larger one")),
            None => {
                let why = format!(
                    "a chunk of {chunk} bytes holds no larger packet{with}: lower it, or use a larger chunk_size"
                );
                (by_chunk, why)
            }
        }
    }

    /// A packet must fit what the driver gives a program, and a chunk.
    fn mtu(&self) -> Finding {
        let Interface { name, mtu, .. } = self.interface;
        if self.case.wanted.multi_buffer {
            let is_asked = self.uplink.mode != XdpMode::Generic;
            let fragments = match &self.link.xdp {
                Err(why) if is_asked => return Finding::skipped("mtu", why),
                Err(_) => true,
                Ok(xdp) => xdp.has_fragments(),
            };
            if is_asked && !fragments {
                let what =
                    format!("driver {} gives programs no packets in several parts", self.driver_name());
                return Finding::failure(
                    "mtu",
                    what,
                    "some networks[n].mtu needs them: lower it, or use chunk_size = 4096",
                );
            }
            return Finding::ok("mtu", format!("{mtu}; packets may lie in several chunks"));
        }
        let (most, why) = self.mtu_limit();
        if *mtu <= most {
            return Finding::ok("mtu", format!("{mtu} of at most {most}"));
        }
        Finding::failure("mtu", format!("{mtu} of at most {most}"), why)
            .command(format!("ip link set dev {name} mtu {most}"))
    }

    fn program(&self) -> Finding {
        match &self.link.program {
            Err(why) => Finding::skipped("program", why),
            Ok(None) => Finding::ok("program", "no XDP program is there"),
            Ok(Some((id, program))) if inspect::is_ours(program) => {
                self.of_a_daemon("program", format!("a Peregrine daemon's ({program}, id {id})"))
            }
            Ok(Some((id, program))) => {
                let why = "there can be one only, and Peregrine replaces no other's, which may be a firewall: end the program that attached it, or choose another interface";
                let finding = Finding::failure(
                    "program",
                    format!("another's is there already: '{program}' (id {id})"),
                    why,
                );
                // What may be a daemon's is not detached, nor what may be held by another program.
                match self.link.detachable.filter(|_| inspect::is_known(program)) {
                    Some(mode) => {
                        finding.command(format!("ip link set dev {} {mode} off", self.interface.name))
                    }
                    None => finding,
                }
            }
        }
    }

    /// A daemon that looks for itself is well; for any other start the interface is taken.
    fn of_a_daemon(&self, check: &'static str, what: impl Into<String>) -> Finding {
        if self.case.wanted.got.is_some() {
            return Finding::ok(check, what);
        }
        let why = "another daemon cannot start here: for a new one, stop that which runs, or choose another interface";
        Finding::warning(check, what, why)
    }

    /// A queue has one user of AF_XDP.
    fn taken(&self) -> Finding {
        const NAME: &str = "sockets";
        let taken = match &self.link.taken {
            Err(why) => return Finding::skipped(NAME, why),
            Ok(_) if self.has_ours() => return self.of_a_daemon(NAME, "a Peregrine daemon has them"),
            Ok(taken) => taken,
        };
        let served = self.served();
        match taken.iter().find(|(queue, _)| served.contains(&QueueId(*queue))) {
            None => Finding::ok(NAME, "no AF_XDP socket is on the queues"),
            Some((queue, owner)) => {
                let what = format!("queue {queue} has an AF_XDP socket of {owner}");
                Finding::failure(
                    NAME,
                    what,
                    "a queue can have one user only: stop that program, or leave the queue out of `queues`",
                )
            }
        }
    }

    /// `combined 4`, or `rx 4` where they are not paired.
    fn channels_command(&self, count: u32) -> Option<String> {
        let channels = self.link.channels.as_ref().ok()?;
        let (kind, most) = match channels.combined_max {
            0 => ("rx", channels.receive_max),
            most => ("combined", most),
        };
        (count <= most).then(|| format!("ethtool -L {} {kind} {count}", self.interface.name))
    }

    /// Those that the config names must be there; and some drivers want room.
    fn channels(&self) -> Finding {
        const NAME: &str = "channels";
        let has = self.interface.queue_count;
        if let Queues::List(list) = &self.uplink.queues
            && let Some(most) = list.iter().map(|queue| queue.0).max().filter(|most| *most >= has)
        {
            let finding = Finding::failure(
                NAME,
                format!("queue {most} is asked for, and there are 0 to {}", has.saturating_sub(1)),
                "a socket needs a queue that is there: make more, or change `queues`",
            );
            return match self.channels_command(most + 1) {
                Some(command) => finding.command(command),
                None => finding,
            };
        }
        let channels = match &self.link.channels {
            Ok(channels) => channels,
            Err(why) => return Finding::skipped(NAME, why),
        };
        let is_half = self.driver.is_some_and(|driver| driver.channels == Demand::Half);
        let half = (channels.combined_max / 2).max(1);
        let is_attached = matches!(self.link.program, Ok(Some(_)));
        if is_half && channels.combined > half && !is_attached {
            let why = format!(
                "driver {} takes an XDP program with half of its channels at most",
                self.driver_name()
            );
            let what = format!("{} of {} are in use", channels.combined, channels.combined_max);
            return Finding::failure(NAME, what, why)
                .command(format!("ethtool -L {} combined {half}", self.interface.name));
        }
        Finding::ok(NAME, format!("{} of at most {}", channels.receive, channels.receive_max))
    }

    fn served(&self) -> Vec<QueueId> {
        self.interface.queues(&self.uplink.queues).unwrap_or_default()
    }

    /// Frames of queues without a socket go to the kernel.
    fn unserved(&self) -> Finding {
        const NAME: &str = "queues";
        let (served, has) = (self.served(), self.interface.queue_count);
        if served.is_empty() {
            return Finding::skipped(NAME, "not all queues that are asked for are there");
        }
        let is_served = |queue: &u32| served.contains(&QueueId(*queue));
        let mut left: Vec<u32> = match &self.link.indirection {
            Ok(table) if !table.is_empty() => {
                table.iter().copied().filter(|queue| !is_served(queue)).collect()
            }
            _ => (0..has).filter(|queue| !is_served(queue)).collect(),
        };
        left.sort_unstable();
        left.dedup();
        if left.is_empty() {
            return Finding::ok(NAME, "each queue that gets packets has a socket");
        }
        let names: Vec<String> = left.iter().map(u32::to_string).collect();
        let what = format!("packets come to queues {}, which have no socket", names.join(", "));
        let why = "they go to the kernel, and are lost for tenants: serve all queues, or let the card choose from those that are served";
        let finding = Finding::warning(NAME, what, why);
        // The table can be set where there is one; a number of channels that is told is not one that can be set (vmxnet3), nor below what
        // the table names.
        if self.link.indirection.as_ref().is_ok_and(|table| !table.is_empty()) {
            return finding.command(self.spread_command(&served));
        }
        match self.first_queues(&served).and_then(|count| self.channels_command(count)) {
            Some(command) => finding.command(command),
            None => finding,
        }
    }

    /// How many there are, if they are those from 0 on.
    fn first_queues(&self, served: &[QueueId]) -> Option<u32> {
        let count = served.len() as u32;
        (0..count).all(|queue| served.contains(&QueueId(queue))).then_some(count)
    }

    /// Makes the card choose from these queues.
    fn spread_command(&self, served: &[QueueId]) -> String {
        let name = &self.interface.name;
        if let Some(count) = self.first_queues(served) {
            return format!("ethtool -X {name} equal {count}");
        }
        let weight = |queue| if served.contains(&QueueId(queue)) { "1" } else { "0" };
        let weights: Vec<&str> = (0..self.interface.queue_count).map(weight).collect();
        format!("ethtool -X {name} weight {}", weights.join(" "))
    }

    /// Each queue that is served should get packets.
    fn spread(&self) -> Finding {
        let served = self.served();
        if served.len() < 2 {
            return Finding::ok("rss", "one queue is served");
        }
        let table = match &self.link.indirection {
            Ok(table) if !table.is_empty() => table,
            Ok(_) => return Finding::skipped("rss", "the card has no table of queues"),
            Err(why) => return Finding::skipped("rss", why),
        };
        let idle: Vec<String> = served
            .iter()
            .filter(|queue| !table.contains(&queue.0))
            .map(|queue| queue.0.to_string())
            .collect();
        if idle.is_empty() {
            return Finding::ok("rss", format!("packets are spread over {} queues", served.len()));
        }
        let what = format!("no packets come to queues {}", idle.join(", "));
        Finding::warning("rss", what, "their workers have nothing to receive")
            .command(self.spread_command(&served))
    }

    /// All VXLAN between two hosts has the same addresses: only the source port tells flows apart.
    fn hash(&self, flow: UdpFlow, fields: &Known<u64>) -> Finding {
        let name = if flow == UdpFlow::Udp4 { "hash-udp4" } else { "hash-udp6" };
        let is_ipv4 = flow == UdpFlow::Udp4;
        let locals = &self.uplink.locals;
        if !locals.is_empty() && locals.iter().all(|local| local.is_ipv4() != is_ipv4) {
            return Finding::ok(name, "no address of ours is of this IP version");
        }
        if self.interface.queue_count < 2 {
            return Finding::ok(name, "there is one queue");
        }
        match fields {
            Err(why) => Finding::skipped(name, why),
            Ok(fields) if fields & HASH_BY_PORT == HASH_BY_PORT => {
                Finding::ok(name, "by addresses and ports")
            }
            Ok(_) => {
                let why = "all packets between two hosts come to one queue, because the ports, which tell flows apart, do not count \
                           (by ports, fragments of other UDP may come out of order)";
                Finding::warning(name, "by addresses only", why)
                    .mend(Mend::HashByPort { interface: self.interface.name.clone(), flow })
            }
        }
    }

    /// A card that merges packets gives programs what never was on the wire.
    fn merging(&self, check: &'static str, feature: &'static str, short: &'static str) -> Finding {
        match self.link.feature(feature) {
            Err(why) => Finding::skipped(check, why),
            Ok((false, _)) => Finding::ok(check, "off"),
            Ok((true, can_change)) => {
                let driver = self.driver_name();
                let merging = self.driver.map_or(Merging::Disturbs, |driver| driver.merging);
                let finding = match (merging, can_change) {
                    (Merging::Yields, true) => {
                        return Finding::ok(
                            check,
                            format!("on; driver {driver} switches it off for an XDP program"),
                        );
                    }
                    (Merging::Yields, false) => {
                        let why = format!(
                            "driver {driver} takes no XDP program with it, and only the hypervisor can switch it off"
                        );
                        Finding::failure(check, "on, and fixed", why)
                    }
                    (Merging::Refuses, _) => {
                        Finding::failure(check, "on", format!("driver {driver} takes no XDP program with it"))
                    }
                    (Merging::Disturbs, _) => Finding::warning(
                        check,
                        "on",
                        "packets that the card has merged are longer than any chunk, and are lost",
                    ),
                };
                let interface = self.interface.name.clone();
                if can_change {
                    finding.mend(Mend::FeatureOff { interface, feature, short })
                } else {
                    finding
                }
            }
        }
    }

    fn vlan_strip(&self) -> Finding {
        const NAME: &str = "vlan-strip";
        let Some(vlan) = self.uplink.vlan else {
            let is_on = self.link.feature("rx-vlan-hw-parse").is_ok_and(|(is_on, _)| is_on);
            let trunk =
                if is_on { "; on a trunk, packets of any VLAN look as if they had none, too" } else { "" };
            return Finding::ok(NAME, format!("the underlay has no tag{trunk}"));
        };
        match self.link.feature("rx-vlan-hw-parse") {
            Err(why) => Finding::skipped(NAME, why),
            Ok((false, _)) => Finding::ok(NAME, "tags are left in packets"),
            Ok((true, can_change)) => {
                let why = format!("packets of VLAN {vlan} are known by their tags");
                let finding = Finding::failure(NAME, "the card takes VLAN tags off", why);
                let mend = Mend::FeatureOff {
                    interface: self.interface.name.clone(),
                    feature: "rx-vlan-hw-parse",
                    short: "rxvlan",
                };
                if can_change { finding.mend(mend) } else { finding }
            }
        }
    }

    /// The kernel receives for us in the interrupt: where a worker polls, the two take each other's time.
    fn interrupts(&self) -> Finding {
        const NAME: &str = "interrupts";
        let workers = self.case.wanted.cores();
        let all = match &self.link.interrupts {
            Ok(all) if !all.is_empty() => all,
            Ok(_) => return Finding::skipped(NAME, "the card has none that are known"),
            Err(why) => return Finding::skipped(NAME, format!("which are this card's is not known ({why})")),
        };
        if workers.is_empty() {
            return Finding::skipped(NAME, "which workers there are says a config: -c FILE");
        }
        let on_workers: Vec<String> = all
            .iter()
            .filter(|interrupt| interrupt.cpus.iter().any(|cpu| workers.contains(cpu)))
            .map(|interrupt| interrupt.number.to_string())
            .collect();
        if on_workers.is_empty() {
            return Finding::ok(NAME, format!("none of {} is on a worker's core", all.len()));
        }
        let what = format!("{} are served on workers' cores", on_workers.join(", "));
        let why = "the kernel receives there, in a worker's time: keep them on other cores (and irqbalance from moving them back)";
        let finding = Finding::warning(NAME, what, why);
        match self.free_core(&workers) {
            None => finding,
            Some(core) => finding.command(format!(
                "for irq in {}; do echo {core} > /proc/irq/$irq/smp_affinity_list; done",
                on_workers.join(" ")
            )),
        }
    }

    /// A core without a worker, near the card if there is one.
    fn free_core(&self, workers: &[usize]) -> Option<usize> {
        let allowed = self.case.host.allowed.as_deref().unwrap_or_default();
        let free = || allowed.iter().copied().filter(|core| !workers.contains(core));
        let node = self.link.node.as_ref().ok().copied();
        let is_near =
            |core: &usize| node.is_some() && self.case.host.cpus.get(core).and_then(|cpu| cpu.node) == node;
        free().find(is_near).or_else(|| free().next())
    }

    fn numa(&self) -> Finding {
        let node = match &self.link.node {
            Ok(node) => *node,
            Err(why) => return Finding::skipped("numa", why),
        };
        let shares = match self.case.shares() {
            Ok(shares) => shares,
            Err(why) => return Finding::skipped("numa", format!("node {node}; {why}")),
        };
        let place =
            self.case.wanted.uplinks.iter().position(|uplink| uplink.interface == self.uplink.interface);
        let serves = |hand: &[Vec<QueueId>]| {
            place.and_then(|at| hand.get(at)).is_some_and(|queues| !queues.is_empty())
        };
        let mut far = Vec::new();
        for core in shares.iter().filter(|share| serves(&share.hand)).map(|share| share.core) {
            match self.case.host.cpus.get(&core).and_then(|cpu| cpu.node) {
                None => return Finding::skipped("numa", format!("core {core}'s node is not known")),
                Some(of) if of != node => far.push(core.to_string()),
                Some(_) => {}
            }
        }
        if far.is_empty() {
            return Finding::ok("numa", format!("the card and its workers are on node {node}"));
        }
        let what = format!("the card is on node {node}, workers on cores {} are not", far.join(", "));
        Finding::warning(
            "numa",
            what,
            "each packet crosses between the processors: choose cores of the card's node",
        )
    }

    fn addresses(&self) -> Vec<Finding> {
        const NAME: &str = "address";
        if self.uplink.locals.is_empty() {
            return vec![Finding::skipped(NAME, "our addresses are in a config: -c FILE")];
        }
        let name = &self.interface.name;
        let (device, has) = match (&self.link.underlay, self.uplink.vlan) {
            (Ok(found), _) => found,
            (Err(why), None) => return vec![Finding::skipped(NAME, why)],
            (Err(why), Some(vlan)) => {
                // Names are of 15 bytes at most.
                let usual = format!("{name}.{vlan}");
                let device = if usual.len() <= 15 { usual } else { format!("vlan{vlan}") };
                let command = format!("ip link add link {name} name {device} type vlan id {vlan}");
                return vec![
                    Finding::failure("vlan-device", why, "our address must be on it").command(command),
                ];
            }
        };
        let one = |local: &std::net::IpAddr| {
            if has.contains(local) {
                return Finding::ok(NAME, format!("{local} is on {device}"));
            }
            if let Some((_, other)) = self.link.elsewhere.iter().find(|(address, _)| address == local) {
                let what = format!("{local} is on {other}, not on {device}");
                let why = "a VTEP sends from an address of its interface, and is answered there: take that interface, or move the address";
                return Finding::failure(NAME, what, why);
            }
            let bits = if local.is_ipv4() { 32 } else { 128 };
            let why = "a VTEP sends from an address of its interface, and is answered there: with its network's prefix instead of this command's, \
                       the kernel makes the route to that network, too";
            Finding::failure(NAME, format!("{local} is not on {device}"), why)
                .command(format!("ip address add {local}/{bits} dev {device}"))
        };
        self.uplink.locals.iter().map(one).collect()
    }

    /// The largest packet of any network must fit the underlay with its outer headers.
    fn underlay_mtu(&self) -> Option<Finding> {
        const NAME: &str = "underlay-mtu";
        let plan = self.case.wanted.plan.as_ref()?;
        let has = match &self.link.underlay_mtu {
            Ok(mtu) => (*mtu).min(self.interface.mtu),
            Err(why) => return Some(Finding::skipped(NAME, why)),
        };
        let networks = plan.networks.values().map(|network| (underlay_mtu_needed(network, plan), network));
        let (needed, network) = networks.max_by_key(|(needed, _)| *needed)?;
        if needed <= has {
            return Some(Finding::ok(NAME, format!("{has}, and no network needs more than {needed}")));
        }
        let what = format!("{has}, and network {} (MTU {}) needs {needed}", network.name, network.mtu);
        // Raised beyond what a chunk or the driver takes it would stop the start.
        let (most, limit) = self.mtu_limit();
        if needed > most && !self.case.wanted.multi_buffer {
            let why = format!(
                "its longest packets would be dropped, and the interface's may be {most} at most ({limit}): lower networks[n].mtu by {}, or use a larger chunk_size",
                needed - has
            );
            return Some(Finding::failure(NAME, what, why));
        }
        let why = format!(
            "its longest packets would be dropped: raise it on the whole underlay, or lower networks[n].mtu by {}",
            needed - has
        );
        let mut devices = vec![(&self.interface.name, self.interface.mtu)];
        if let (Ok((device, _)), Ok(mtu)) = (&self.link.underlay, &self.link.underlay_mtu)
            && *device != self.interface.name
        {
            devices.push((device, *mtu));
        }
        let low = devices.into_iter().filter(|(_, mtu)| *mtu < needed);
        let commands: Vec<String> =
            low.map(|(device, _)| format!("ip link set dev {device} mtu {needed}")).collect();
        Some(Finding::failure(NAME, what, why).command(commands.join(" && ")))
    }
}
