//! `peregrine doctor`: what will not work on this machine, why, and the command that mends it, told before the start.
//!
//! - [`facts`]: what is so, read once; what cannot be found out has its reason (`netdev`: what the kernel tells of a
//!   driver; `sockets`: of others' AF_XDP sockets)
//! - [`drivers`]: what is known of drivers beforehand
//! - [`host`], [`nic`], [`reach`]: the checks, functions of the facts and of what is wanted; only [`reach`] asks more, about next hops
//! - [`mend`]: settings set right, by `--fix` for good, by the daemon for as long as it runs (`[uplink] fix`)
//!
//! What is not known is `skipped` and never `ok`. The daemon makes the same checks when it has started ([`at_start`]): what makes a
//! start impossible is told by the start's own error, and not twice.

pub mod drivers;
pub mod facts;
pub mod host;
pub mod mend;
pub mod netdev;
pub mod nic;
pub mod reach;
pub mod sockets;

use std::net::{IpAddr, Ipv4Addr};

use peregrine_dataplane::engine;
use peregrine_dataplane::plan::{Plan, PortPlan, UplinkPlan};
use peregrine_dataplane::types::QueueId;
use peregrine_dataplane::xsk::inspect;
use schemars::JsonSchema;
use serde::Serialize;

use facts::{Files, Host, Known, Link};
use mend::Mend;
use sockets::Sockets;

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// As it should be.
    Ok,
    /// It could not be found out.
    Skipped,
    /// It works, but worse than it could.
    Warning,
    /// It does not work.
    Failure,
}

impl Verdict {
    /// The word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Verdict::Ok => "ok",
            Verdict::Skipped => "skipped",
            Verdict::Warning => "warning",
            Verdict::Failure => "failure",
        }
    }
}

/// What a check found.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "DoctorFinding")]
pub struct Finding {
    /// The check's name.
    pub check: &'static str,
    /// The interface, network or remote that it was about; none: the machine.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub about: Option<String>,
    /// How it ended.
    pub verdict: Verdict,
    /// What is so; of what was skipped, why.
    pub what: String,
    /// Why that matters, and what else can be done.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
    /// A command that mends it, for root's shell.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The same done by us.
    #[serde(skip)]
    pub mend: Option<Mend>,
}

impl Finding {
    fn new(check: &'static str, verdict: Verdict, what: impl Into<String>) -> Finding {
        Finding { check, about: None, verdict, what: what.into(), why: None, command: None, mend: None }
    }

    fn ok(check: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Ok, what)
    }

    fn skipped(check: &'static str, why: impl Into<String>) -> Finding {
        Finding::new(check, Verdict::Skipped, why)
    }

    fn warning(check: &'static str, what: impl Into<String>, why: impl Into<String>) -> Finding {
        Finding { why: Some(why.into()), ..Finding::new(check, Verdict::Warning, what) }
    }

    fn failure(check: &'static str, what: impl Into<String>, why: impl Into<String>) -> Finding {
        Finding { why: Some(why.into()), ..Finding::new(check, Verdict::Failure, what) }
    }

    fn about(self, name: &str) -> Finding {
        Finding { about: Some(name.to_owned()), ..self }
    }

    fn command(self, command: impl Into<String>) -> Finding {
        Finding { command: Some(command.into()), ..self }
    }

    fn mend(self, mend: Mend) -> Finding {
        // Many drivers start the card anew for a setting.
        let may_interrupt = !matches!(mend, Mend::MountBpffs);
        let warned =
            |why| if may_interrupt { format!("{why}; the link may go away for seconds") } else { why };
        Finding { command: Some(mend.command()), why: self.why.map(warned), mend: Some(mend), ..self }
    }

    /// In one line, as the daemon says it at start.
    fn line(&self) -> String {
        let name = self.about.as_ref().map_or(String::new(), |about| format!("{about}: "));
        let why = self.why.as_ref().map_or(String::new(), |why| format!(": {why}"));
        let command = self.command.as_ref().map_or(String::new(), |command| format!(": `{command}`"));
        format!("doctor: {}: {name}{}{why}{command}", self.verdict.name(), self.what)
    }
}

/// How many checks ended how.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, JsonSchema)]
#[schemars(rename = "DoctorCounts")]
#[allow(missing_docs, reason = "the verdicts' names")]
pub struct Counts {
    pub ok: usize,
    pub warning: usize,
    pub failure: usize,
    pub skipped: usize,
}

/// What `peregrine doctor --json` prints.
#[derive(Clone, PartialEq, Debug, Serialize, JsonSchema)]
#[schemars(rename = "DoctorReport")]
pub struct Report {
    /// All checks, in a fixed order.
    pub checks: Vec<Finding>,
    /// How many ended how.
    pub counts: Counts,
    /// What `--fix` did, one line each.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub fixed: Vec<String>,
    /// And what it could not do.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub not_fixed: Vec<String>,
}

impl Report {
    fn new(checks: Vec<Finding>) -> Report {
        let count = |verdict| checks.iter().filter(|finding| finding.verdict == verdict).count();
        let counts = Counts {
            ok: count(Verdict::Ok),
            warning: count(Verdict::Warning),
            failure: count(Verdict::Failure),
            skipped: count(Verdict::Skipped),
        };
        Report { checks, counts, fixed: Vec::new(), not_fixed: Vec::new() }
    }
}

/// What the machine is to be fit for.
#[derive(Clone, Debug)]
pub struct Wanted {
    /// The whole config, if there is one.
    pub plan: Option<Plan>,
    /// The uplinks that are looked at.
    pub uplinks: Vec<UplinkPlan>,
    /// Only what is about this interface is told of them.
    pub only: Option<String>,
    /// Interfaces that could be uplinks and were not looked at, because nobody named them.
    pub left_out: Vec<String>,
    /// Some network's packets lie in several chunks.
    pub multi_buffer: bool,
    /// Containers have interfaces.
    pub containers: bool,
    /// What a daemon has got, where it runs already.
    pub got: Option<Got>,
}

/// What cannot be seen any more when a daemon runs.
#[derive(Clone, Debug)]
pub struct Got {
    /// The frames' memory lies on huge pages.
    pub huge_pages: bool,
    /// The cores that it could use at its start: the thread that looks leaves the workers' alone.
    pub usable: Vec<usize>,
}

impl Wanted {
    /// What a config asks for.
    pub fn of(plan: &Plan) -> Wanted {
        let is_veth = |port: &PortPlan| matches!(port, PortPlan::Veth(_));
        let mut chunk_sizes = plan.uplinks.iter().map(|uplink| uplink.chunk_size);
        Wanted {
            uplinks: plan.uplinks.clone(),
            only: None,
            left_out: Vec::new(),
            multi_buffer: chunk_sizes.any(|size| engine::needs_multi_buffer(plan, size)),
            containers: plan.pools.containers > 0 || plan.endpoints.values().any(|e| is_veth(&e.port)),
            plan: Some(plan.clone()),
            got: None,
        }
    }

    /// What any config would ask of these interfaces.
    pub fn of_interfaces(names: &[String]) -> Wanted {
        let uplink = |name: &String| UplinkPlan {
            locals: Vec::new(),
            ..UplinkPlan::new(name, IpAddr::V4(Ipv4Addr::UNSPECIFIED))
        };
        let uplinks = names.iter().map(uplink).collect();
        Wanted {
            plan: None,
            uplinks,
            only: None,
            left_out: Vec::new(),
            multi_buffer: false,
            containers: false,
            got: None,
        }
    }

    /// The CPUs that the workers run on.
    pub fn cores(&self) -> Vec<usize> {
        self.plan.iter().flat_map(|plan| &plan.workers).map(|worker| worker.core.0).collect()
    }
}

/// The facts and what is wanted, for the checks.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is wanted.
    pub wanted: Wanted,
    /// The machine.
    pub host: Host,
    /// The uplinks' interfaces, in their order.
    pub links: Vec<Link>,
}

impl Case {
    /// Reads the facts.
    pub fn read(wanted: Wanted) -> Case {
        let (files, sockets) = (Files::default(), Sockets::default());
        let read = |uplink: &UplinkPlan| Link::read(&files, &sockets, &uplink.interface, uplink.vlan);
        let links = wanted.uplinks.iter().map(read);
        let mut host = Host::read(&files);
        if let Some(got) = &wanted.got {
            host.allowed = Ok(got.usable.clone());
        }
        Case { links: links.collect(), host, wanted }
    }

    /// The queues that get sockets, uplink by uplink.
    fn queues(&self) -> Vec<Vec<QueueId>> {
        let of = |(uplink, link): (&UplinkPlan, &Link)| {
            let interface = link.interface.as_ref().ok()?;
            interface.queues(&uplink.queues).ok()
        };
        self.wanted.uplinks.iter().zip(&self.links).map(|pair| of(pair).unwrap_or_default()).collect()
    }

    /// Of each worker: its core, what it gets of the queues, and the bytes of its frames' memory. Only where all uplinks of a config
    /// are looked at, and there.
    fn shares(&self) -> Known<Vec<Share>> {
        let Some(plan) = &self.wanted.plan else {
            return Err("what workers need says a config: -c FILE".to_owned());
        };
        if plan.uplinks.len() != self.wanted.uplinks.len() {
            return Err("what workers need depends on uplinks that are not looked at".to_owned());
        }
        let queues = self.queues();
        if let Some((_, link)) = queues.iter().zip(&self.links).find(|(queues, _)| queues.is_empty()) {
            return Err(format!(
                "what workers need depends on the queues of {}, which are not there",
                link.name
            ));
        }
        let shares = engine::shares(plan, &queues).into_iter();
        let share = |(worker, (hand, bytes))| Share { core: worker, hand, bytes: bytes as u64 };
        Ok(plan.workers.iter().map(|worker| worker.core.0).zip(shares).map(share).collect())
    }

    /// All checks but those about next hops.
    fn examine(&self) -> Vec<Finding> {
        let mut all = host::checks(self);
        all.extend(self.unseen());
        let is_meant = |link: &Link| self.wanted.only.as_ref().is_none_or(|only| *only == link.name);
        let uplinks = self.wanted.uplinks.iter().zip(&self.links);
        for (uplink, link) in uplinks.filter(|(_, link)| is_meant(link)) {
            all.extend(nic::checks(self, uplink, link).into_iter().map(|finding| finding.about(&link.name)));
        }
        all
    }

    /// What is to be said where no interface was named.
    fn unseen(&self) -> Option<Finding> {
        const NAME: &str = "interface";
        let left_out = &self.wanted.left_out;
        let count = crate::table::count(left_out.len(), "interface");
        let some = left_out.iter().take(3).map(String::as_str).collect::<Vec<_>>().join(", ");
        let more = if left_out.len() > 3 { ", …" } else { "" };
        match (self.links.is_empty(), left_out.is_empty()) {
            (false, true) => None,
            (true, true) => {
                let why = "there is none of a driver that is known, and no card's: name one";
                Some(Finding::failure(NAME, "no interface here could be an uplink", why))
            }
            (true, false) => {
                let why =
                    format!("{count} could be an uplink all the same ({some}{more}): name one, or --all");
                Some(Finding::failure(NAME, "no card is here", why))
            }
            (false, false) => {
                let what = format!("{count} not looked at ({some}{more}): name one, or --all");
                Some(Finding::skipped(NAME, what))
            }
        }
    }
}

/// A worker's part.
#[derive(Clone, Debug)]
struct Share {
    core: usize,
    hand: Vec<Vec<QueueId>>,
    bytes: u64,
}

/// Makes all checks.
pub fn examine(wanted: Wanted) -> Report {
    let case = Case::read(wanted);
    let mut all = case.examine();
    all.extend(reach::checks(&case));
    Report::new(all)
}

/// The same after what [`Mend`] can do was done.
pub fn examine_and_fix(wanted: Wanted) -> Report {
    let first = examine(wanted.clone());
    let mends: Vec<&Mend> = first.checks.iter().filter_map(|finding| finding.mend.as_ref()).collect();
    if mends.is_empty() {
        return first;
    }
    let (mut fixed, mut not_fixed) = (Vec::new(), Vec::new());
    for mend in mends {
        match mend.apply() {
            Ok(()) => fixed.push(mend.to_string()),
            Err(error) => not_fixed.push(format!("{mend}: {error}")),
        }
    }
    Report { fixed, not_fixed, ..examine(wanted) }
}

/// The checks of a daemon that has just started: a line for each warning and failure. Next hops are what `status` shows; and that there is
/// no file system for BPF objects is no matter of ours.
pub fn at_start(plan: &Plan, got: Got) -> Vec<String> {
    let case = Case::read(Wanted { got: Some(got), ..Wanted::of(plan) });
    let bad = |finding: &Finding| finding.verdict >= Verdict::Warning && finding.check != host::BPFFS;
    case.examine().iter().filter(|finding| bad(finding)).map(Finding::line).collect()
}

/// Interfaces that could be uplinks: those of cards, or that may be (where /sys shows another network namespace), and others of a driver that is known, such as the veth of each container.
///
/// # Errors
/// The kernel's.
pub fn candidates() -> std::io::Result<(Vec<String>, Vec<String>)> {
    let (mut cards, mut others) = (Vec::new(), Vec::new());
    for name in inspect::interfaces()? {
        let Ok(interface) = peregrine_dataplane::xsk::interface(&name) else { continue };
        // One that is no card's for sure: the loopback has no driver at all.
        let may_be = || !matches!(interface.driver.as_str(), "veth" | "");
        if facts::is_card(&interface).unwrap_or_else(|_not_told| may_be()) {
            cards.push(name);
        } else if drivers::known(&interface.driver).is_some() {
            others.push(name);
        }
    }
    Ok((cards, others))
}

#[cfg(test)]
mod tests;
