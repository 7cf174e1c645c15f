//! The control thread: starts everything, keeps it going, stops it. It never touches a frame; when it is slow, or
//! gone, packets flow on what was last published.
//!
//! One loop on one poll set: signals, the control socket, tenants, the kernel's notices; and a timer. Each part has a
//! `ready` that only notes, and a `turn` that does a bounded share of work.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Registry, Token};
use peregrine_dataplane::engine::{Engine, Event, Member};
use peregrine_dataplane::plan::{Plan, PortPlan, UplinkPlan};
use peregrine_dataplane::stats::Stats;
use peregrine_dataplane::types::{CoreId, SourceId};
use peregrine_dataplane::xsk::UplinkInfo;
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_mio::v1_0::Signals;

use crate::api::Api;
use crate::doctor::mend::Mended;
use crate::doctor::{self, Got};
use crate::error::Error;
use crate::methods::Methods;
use crate::model::live::may_be_unsealed;
use crate::model::{self, Model};
use crate::pools::Pools;
use crate::preflight;
use crate::render;
use crate::sealer::Sealer;
use crate::status::{self, VERSION};
use crate::table::{count, thousands};
use crate::tenants::Tenants;
use crate::underlay::{Underlay, Uplink, Wanted};

const SIGNALS: Token = Token(0);
const NETLINK: Token = Token(1);
const API: Token = Token(2);
const TENANTS: Token = Token(API.0 + Api::TOKENS);

/// The engine has no descriptor to wait on: what workers report is looked at this often.
const TURN_MAX: Duration = Duration::from_millis(100);
/// Ageing, and the busy shares.
const SECOND: Duration = Duration::from_secs(1);
/// Networks and endpoints that are listed at start, each.
const LISTED_AT_START: usize = 8;

/// Runs a plan until SIGINT or SIGTERM. A second signal ends the process at once.
pub fn run(plan: &Plan) -> Result<(), Error> {
    let began = Instant::now();
    preflight::check(plan)?;
    let sealer =
        Sealer::start().map_err(|source| Error::System { doing: "start `peregrine seal-helper`", source })?;
    // Later ones have it from us.
    let usable = preflight::allowed_cores()?;
    let cores: Vec<CoreId> = plan.workers.iter().map(|worker| worker.core).collect();
    preflight::leave_workers_alone(&usable, &cores, Some(sealer.pid()));
    let mut signals = catch_signals().map_err(|source| Error::System { doing: "catch signals", source })?;
    let mut daemon = Daemon::start(plan, sealer, usable, &mut signals)?;
    preflight::leave_workers_alone(&daemon.usable, &cores, None);
    say(&format!("peregrine {VERSION}, process {}", std::process::id()));
    daemon.introduce();
    daemon.tell_what_is_bad();
    say(&format!("ready in {} ms", began.elapsed().as_millis()));
    let result = daemon.serve(&mut signals);
    let stats = daemon.stop();
    say(&format!("stopped; {}", conservation(&stats)));
    result
}

/// A tenant that may keep its memory unsealed can take it away: that must cost its connection and not the process.
fn guard(plan: &Plan) -> Result<(), Error> {
    if plan.endpoints.values().any(|endpoint| may_be_unsealed(&endpoint.port)) {
        peregrine_memif::guard_memory().map_err(|source| Error::System { doing: "handle SIGBUS", source })?;
    }
    Ok(())
}

/// Lines at start and end. That nobody reads them is no reason to stop.
fn say(text: &str) {
    use io::Write;
    let _unread = writeln!(io::stderr(), "{}", text.trim_end());
}

fn conservation(stats: &Stats) -> String {
    serde_json::to_value(stats.totals).map(|totals| render::conservation(&totals)).unwrap_or_default()
}

/// The first signal is told through the poll set; the second ends the process there and then.
fn catch_signals() -> io::Result<Signals> {
    let stopping = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM] {
        signal_hook::flag::register_conditional_shutdown(signal, 1, stopping.clone())?;
        signal_hook::flag::register(signal, stopping.clone())?;
    }
    Signals::new([SIGINT, SIGTERM])
}

struct Daemon<'p> {
    /// The config. What runs is the engine's plan: more, and less, as it was declared since.
    plan: &'p Plan,
    model: Model,
    poll: Poll,
    api: Api,
    tenants: Tenants,
    pools: Pools,
    underlay: Underlay,
    engine: Engine,
    sealer: Sealer,
    /// Settings of interfaces that are put back at the end.
    mended: Mended,
    /// The cores that this process could use at the start.
    usable: Vec<CoreId>,
    /// Those to which the underlay looks for ways: a number of the engine's.
    remotes_known: u64,
    started: Instant,
    last_second: Instant,
}

impl<'p> Daemon<'p> {
    /// In this order: the control socket first, so that a second daemon stops before it disturbs the first; the
    /// tenants' sockets last, so that who finds them finds everything running.
    fn start(
        plan: &'p Plan,
        sealer: Sealer,
        usable: Vec<CoreId>,
        signals: &mut Signals,
    ) -> Result<Daemon<'p>, Error> {
        let system = |doing| move |source| Error::System { doing, source };
        let poll = Poll::new().map_err(system("make an epoll descriptor"))?;
        let registry = poll.registry();
        registry.register(signals, SIGNALS, Interest::READABLE).map_err(system("watch for signals"))?;
        let mut api = Api::bind(&plan.control_socket, plan.control_group, API)?;
        let (model, begins) = model::file::load(plan)?;
        model.cut().iter().for_each(|line| say(&format!("warning: {line}")));
        guard(&begins)?;
        let (mended, lines) = Mended::begin(plan);
        lines.iter().for_each(|line| say(line));
        let mut engine = Engine::start(&begins).map_err(Error::Engine)?;
        let mut underlay = Underlay::open(underlay_of(plan, &engine), wanted(&engine))
            .map_err(system("open a netlink socket"))?;
        let now = Instant::now();
        publish(&mut underlay, &mut engine, now);
        let pools = Pools::start(plan)?;
        let mut tenants = Tenants::bind(plan, TENANTS, pools.regions().cloned())?;
        let watch = system("watch a socket");
        registry.register(&mut SourceFd(&underlay.raw_fd()), NETLINK, Interest::READABLE).map_err(watch)?;
        api.register(registry).map_err(watch)?;
        tenants.register(registry).map_err(watch)?;
        open_declared(&mut tenants, registry, &model).iter().for_each(|line| say(line));
        if let Err(why) = tenants.begin_pool() {
            say(&format!("warning: no pool of containers' parts: {why}"));
        }
        remove_leftovers(&mut tenants);
        tenants.begin(registry, &mut engine);
        Ok(Daemon {
            plan,
            model,
            poll,
            api,
            tenants,
            pools,
            underlay,
            engine,
            sealer,
            mended,
            usable,
            remotes_known: 0,
            started: now,
            last_second: now,
        })
    }

    fn serve(&mut self, signals: &mut Signals) -> Result<(), Error> {
        let mut events = Events::with_capacity(256);
        let mut more = false;
        loop {
            let timeout = if more { Duration::ZERO } else { self.timeout(Instant::now()) };
            match self.poll.poll(&mut events, Some(timeout)) {
                Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                    return Err(Error::System { doing: "wait for events", source: e });
                }
                _ => {}
            }
            let now = Instant::now();
            for event in &events {
                match event.token() {
                    SIGNALS => {}
                    NETLINK => self.underlay.readable(),
                    token if token < TENANTS => self.api.ready(token, now),
                    token => self.tenants.ready(token),
                }
            }
            if signals.pending().next().is_some() {
                return Ok(());
            }
            more = self.turn(now)?;
        }
    }

    fn turn(&mut self, now: Instant) -> Result<bool, Error> {
        for event in self.engine.poll() {
            match event {
                Event::TenantFault { endpoint, reason } => {
                    self.tenants.fault(endpoint, &reason, now, &mut self.engine);
                }
                Event::WorkerDied { core } => return Err(Error::WorkerDied { core }),
            }
        }
        self.tenants.turn(self.poll.registry(), now, &mut self.engine);
        for ifindex in self.underlay.containers_gone() {
            self.tenants.interface_gone(ifindex, now, &mut self.engine);
        }
        if self.underlay.has_missed() {
            self.tenants.look_for_interfaces(now, &mut self.engine);
        }
        let remotes = self.engine.remotes_generation();
        if std::mem::replace(&mut self.remotes_known, remotes) != remotes {
            self.underlay.want(wanted(&self.engine));
            // A remote that left one network and came to another since the last look has lost ways that are wanted as before.
            self.engine.set_paths(self.underlay.known());
        }
        publish(&mut self.underlay, &mut self.engine, now);
        if now.saturating_duration_since(self.last_second) >= SECOND {
            self.last_second = now;
            self.engine.age();
            self.tenants.retry(self.poll.registry());
            if let Some(line) = self.sealer.keep() {
                say(&format!("warning: {line}"));
            }
        }
        let Daemon { plan, model, poll, api, tenants, pools, underlay, engine, usable, started, .. } = self;
        let registry = poll.registry();
        let (started, known) = (*started, model.generation());
        let mut methods =
            Methods { plan, model, engine, tenants, pools, registry, underlay, usable, started };
        let more = api.turn(registry, now, |peer, method, given| methods.answer(peer, method, given, now));
        self.tell_watchers(known, now);
        Ok(more)
    }

    /// What was changed after this generation.
    fn tell_watchers(&mut self, known: u64, now: Instant) {
        let Daemon { model, api, .. } = self;
        if model.generation() == known || api.watchers() == 0 {
            return;
        }
        match model.since(known) {
            Some(changes) => {
                for changed in changes {
                    let params = serde_json::to_value(changed).unwrap_or_default();
                    api.notify(changed.generation, &params, now);
                }
            }
            // They find out when they come back.
            None => api.end_watches(),
        }
    }

    fn timeout(&self, now: Instant) -> Duration {
        let parts = [
            Some(self.underlay.deadline(now)),
            self.tenants.deadline(),
            self.api.deadline(),
            self.engine.deadline(),
        ];
        let next = parts.into_iter().flatten().min().unwrap_or(now + TURN_MAX);
        next.saturating_duration_since(now).min(TURN_MAX)
    }

    /// Tenants are told first, while the engine still runs; then the sockets go, then the workers and the uplink; and what is
    /// kept is made one file.
    fn stop(self) -> Stats {
        let Daemon { mut engine, tenants, api, underlay, mut model, mended, .. } = self;
        tenants.stop(Instant::now(), &mut engine);
        drop((api, underlay));
        let stats = engine.stop();
        mended.end().iter().for_each(|line| say(line));
        if let Err(why) = model.rest() {
            say(&format!("warning: {why}: the next start reads its journal"));
        }
        stats
    }

    /// What `peregrine doctor` would say of warnings and failures.
    fn tell_what_is_bad(&self) {
        let huge_pages = self.engine.uplinks().iter().all(|uplink| uplink.huge_pages);
        let usable = self.usable.iter().map(|core| core.0).collect();
        doctor::at_start(self.plan, Got { huge_pages, usable }).iter().for_each(|line| say(line));
    }

    /// What was asked for and what was got, on standard error.
    fn introduce(&self) {
        let uplinks = status::uplinks(self.engine.uplinks(), self.plan, &self.underlay);
        let mut pairs: Vec<_> =
            uplinks.into_iter().flat_map(|uplink| render::uplink(&Value::Object(uplink))).collect();
        let cores = self.plan.workers.iter().map(|w| w.core.0.to_string()).collect::<Vec<_>>().join(", ");
        pairs.push(("workers".into(), format!("{} on core {cores}", self.plan.workers.len())));
        let plan = self.engine.plan();
        for network in plan.networks.values().take(LISTED_AT_START) {
            let remotes = count(network.remotes.len(), "remote");
            let text = format!("{} (VNI {}), MTU {}, {remotes}", network.name, network.vni, network.mtu);
            pairs.push(("network".into(), text));
        }
        and_more(&mut pairs, plan.networks.len());
        for endpoint in plan.endpoints.values().take(LISTED_AT_START) {
            let at = match &endpoint.port {
                PortPlan::Memif(memif) => {
                    format!("memif {} id {}, {}", memif.socket, memif.id, status::role(&memif.role))
                }
                PortPlan::Veth(veth) => format!("{} in {}", veth.interface, veth.namespace),
            };
            let text = format!("{}, {}: {at}", endpoint.name, endpoint.mac);
            pairs.push(("endpoint".into(), text));
        }
        and_more(&mut pairs, plan.endpoints.len());
        pairs.push(("control".into(), self.api.path().display().to_string()));
        say(&render::lines(&pairs));
    }
}

/// Opens the sockets of what the control socket declared. Those that cannot be opened now are tried again, and a line is said of each of the
/// first: who declared them is another one than who starts us, and the others are to work.
fn open_declared(tenants: &mut Tenants, registry: &Registry, model: &Model) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, port) in model.held_ports() {
        if let Err(why) = tenants.hold_or_wait(registry, name, port) {
            lines.push(format!("warning: port {name}: {why}: tried again every second"));
        }
    }
    for coming in model.ports_in_use().filter_map(|port| model.coming(port)) {
        if let Err(why) = tenants.add_or_wait(registry, &coming) {
            lines.push(format!("warning: endpoint {}: {why}: tried again every second", coming.plan.name));
        }
    }
    if let Some(more @ 1..) = lines.len().checked_sub(LISTED_AT_START) {
        lines.truncate(LISTED_AT_START);
        let more = thousands(more as u64);
        lines.push(format!(
            "warning: and {more} more sockets of endpoints and ports: tried again every second"
        ));
    }
    lines
}

/// What an earlier daemon left in containers, and nobody wants any more.
fn remove_leftovers(tenants: &mut Tenants) {
    match tenants.remove_leftovers() {
        Ok(0) => {}
        Ok(removed) => say(&format!(
            "removing {} from containers that no endpoint is for any more",
            count(removed, "interface")
        )),
        Err(error) => say(&format!(
            "warning: interfaces that an earlier daemon left in containers cannot be looked for: {error}"
        )),
    }
}

fn and_more(pairs: &mut Vec<(String, String)>, total: usize) {
    if let Some(rest @ 1..) = total.checked_sub(LISTED_AT_START) {
        pairs.push((String::new(), format!("and {} more", thousands(rest as u64))));
    }
}

fn underlay_of(plan: &Plan, engine: &Engine) -> Vec<Uplink> {
    let uplink = |(plan, info): (&UplinkPlan, &UplinkInfo)| {
        Uplink::new(&info.interface, info.ifindex, plan.vlan, &plan.locals)
    };
    plan.uplinks.iter().zip(engine.uplinks()).map(uplink).collect()
}

/// The remotes that each network has now, from its source address; each way once.
fn wanted(engine: &Engine) -> BTreeSet<Wanted> {
    let sources: HashMap<Option<IpAddr>, SourceId> =
        engine.sources().iter().copied().zip((0..).map(SourceId)).collect();
    let way = |member: Member| {
        let local = engine.plan().network(member.network)?.local;
        let source = *sources.get(&local)?;
        Some(Wanted { remote: member.remote, address: member.address, source, local })
    };
    engine.members().filter(|member| !member.is_leaving).filter_map(way).collect()
}

fn publish(underlay: &mut Underlay, engine: &mut Engine, now: Instant) {
    let changes = underlay.turn(now, |remote| engine.frames_towards(remote));
    engine.set_paths(changes);
}
