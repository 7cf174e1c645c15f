//! The ways to each remote, as the kernel sees them, kept true: routes, neighbours and path MTUs are read by rtnetlink, watched,
//! and kept fresh while frames go that way. Called by the [daemon](crate::daemon), which hands what changed to the
//! engine.
//!
//! Level-triggered: a notice only says what to look at again; the answer is always read anew, so a notice that is
//! late, doubled or lost (ENOBUFS) can do no harm. Everything is read again now and then for the same reason. What is to be looked at
//! waits in a queue, of which each turn takes some: thousands of remotes must not stop the control thread.

pub mod decide;
pub mod facts;
pub mod netlink;
mod path_mtu;
mod uplink;
mod ways;

use std::collections::{HashMap, HashSet, VecDeque};
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use peregrine_dataplane::engine::{Path, SourceId};
use peregrine_dataplane::types::{RemoteId, UplinkId};

use decide::{Backoff, Care, Hop, Refusal, Verdict, Why};
use facts::Affects;
use netlink::{Heard, Notices, Requests};
use path_mtu::{Attention, Exceptions};
pub use uplink::Uplink;
use ways::Survey;

/// How often what is in use is looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often everything is read again, whatever the notices said.
const REREAD_EVERY: Duration = Duration::from_secs(30);
/// Changes that come in a row are taken together: when all is looked at, so long until the next look.
const SETTLE: Duration = Duration::from_millis(20);
/// One turn takes about so long of what waits to be looked at.
const STEP: Duration = Duration::from_millis(5);
/// So many ways without an answer from the kernel end a turn: it is short of memory, say.
const FAILURES_PER_TURN: usize = 8;
/// So many neighbours are asked for in one turn, at most.
const NUDGES_PER_TURN: usize = 256;

/// The underlay of all uplinks.
#[derive(Debug)]
pub struct Underlay {
    requests: Requests,
    notices: Notices,
    /// For each local address of each uplink.
    attention: Vec<Attention>,
    exceptions: Exceptions,
    /// By [`UplinkId`].
    uplinks: Vec<Uplink>,
    /// The numbers of those that were removed.
    removed: HashSet<u32>,
    ways: Vec<Way>,
    /// Which of them are to be looked at, in the order in which that was noticed: none waits for ever, however many notices come.
    queue: VecDeque<usize>,
    asks: HashMap<(UplinkId, IpAddr), Backoff>,
    dirty: Dirty,
    unread: bool,
    /// Before this nothing is looked at.
    next_step: Option<Instant>,
    /// When everything was last read.
    reread: Option<Instant>,
    looked: Option<Instant>,
    /// Our ends of containers' veths that the kernel removed.
    containers_gone: Vec<u32>,
    /// Notices were lost.
    has_missed: bool,
}

/// A way that is wanted: to a remote, from a source address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Wanted {
    /// The remote.
    pub remote: RemoteId,
    /// Its address.
    pub address: IpAddr,
    /// The source address.
    pub source: SourceId,
    /// That address; `None`: that of the uplink, of the remote's family.
    pub local: Option<IpAddr>,
}

#[derive(Debug)]
struct Way {
    wanted: Wanted,
    verdict: Verdict,
    is_queued: bool,
    frames_seen: u64,
}

impl Way {
    fn new(wanted: Wanted) -> Way {
        let why = Why::Refused(Refusal::Other("not looked up yet".into()));
        Way { wanted, verdict: Verdict::no("", why), is_queued: false, frames_seen: 0 }
    }

    /// Whether the kernel may know its path's MTU by a gateway other than the one it would tell of.
    fn has_exceptions(&self) -> bool {
        let hops = self.verdict.hops.iter(); // sorted by uplink
        self.wanted.address.is_ipv6() && hops.clone().zip(hops.skip(1)).any(|(a, b)| a.uplink == b.uplink)
    }

    /// Neighbours of its hops that are to be treated like this.
    fn neighbours(&self, of: impl Fn(&Hop) -> bool) -> impl Iterator<Item = (UplinkId, IpAddr)> {
        self.verdict.hops.iter().filter(move |hop| of(hop)).map(|hop| (hop.uplink, hop.neighbour))
    }
}

#[derive(Debug, Default)]
struct Dirty {
    all: bool,
    /// By the number of their interface.
    neighbours: HashSet<(u32, IpAddr)>,
}

impl Dirty {
    fn any(&self) -> bool {
        self.all || !self.neighbours.is_empty()
    }
}

/// Ways that changed. An empty list: there is none.
pub type Change = (RemoteId, SourceId, Vec<Path>);

impl Underlay {
    /// Opens the sockets for these uplinks. The first [`turn`](Self::turn) begins to read everything.
    ///
    /// # Errors
    /// The kernel gives no netlink sockets.
    pub fn open(uplinks: Vec<Uplink>, wanted: impl IntoIterator<Item = Wanted>) -> io::Result<Underlay> {
        // Listening before the first look: nothing that happens in between is missed.
        let notices = Notices::open()?;
        Ok(Underlay {
            requests: Requests::open()?,
            notices,
            attention: uplinks.iter().flat_map(|uplink| &uplink.locals).copied().map(Attention::to).collect(),
            exceptions: Exceptions::new(),
            uplinks,
            removed: HashSet::new(),
            ways: wanted.into_iter().map(Way::new).collect(),
            queue: VecDeque::new(),
            asks: HashMap::new(),
            dirty: Dirty { all: true, neighbours: HashSet::new() },
            unread: true,
            next_step: None,
            reread: None,
            looked: None,
            containers_gone: Vec::new(),
            has_missed: false,
        })
    }

    /// From now on these ways are wanted. What is known of those that were wanted before stays; for those that are not wanted any more
    /// there are no changes.
    pub fn want(&mut self, wanted: impl IntoIterator<Item = Wanted>) {
        let mut known: HashMap<Wanted, Way> = self.ways.drain(..).map(|way| (way.wanted, way)).collect();
        self.queue.clear();
        for wanted in wanted {
            let (mut way, is_new) = match known.remove(&wanted) {
                Some(way) => (way, false),
                None => (Way::new(wanted), true),
            };
            way.is_queued |= is_new;
            if way.is_queued {
                self.queue.push_back(self.ways.len());
            }
            self.ways.push(way);
        }
    }

    /// For the poll set.
    pub fn raw_fd(&self) -> RawFd {
        self.notices.raw_fd()
    }

    /// The poll says that there are notices.
    pub fn readable(&mut self) {
        self.unread = true;
    }

    /// Does a share of what is due: reads notices, looks again at what they touch, nudges the kernel. `frames` tells how many
    /// frames went towards a remote. Returns the ways that changed.
    pub fn turn(&mut self, now: Instant, frames: impl Fn(RemoteId) -> u64) -> Vec<Change> {
        if self.unread {
            self.hear();
        }
        if self.reread.is_some_and(|at| now.saturating_duration_since(at) >= REREAD_EVERY) {
            self.dirty.all = true;
        }
        if self.looked.is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY) {
            self.looked = Some(now);
            self.look(now, frames);
        }
        let mut changes = Vec::new();
        if self.has_work() && self.next_step.is_none_or(|at| now >= at) {
            changes = self.step(now);
            self.nudge(now);
        }
        changes
    }

    /// When [`turn`](Self::turn) is wanted next, at the latest.
    pub fn deadline(&self, now: Instant) -> Instant {
        if self.unread {
            return now;
        }
        let look = self.looked.map_or(now, |at| at + LOOK_EVERY);
        if self.has_work() { look.min(self.next_step.unwrap_or(now)) } else { look }
    }

    fn has_work(&self) -> bool {
        self.dirty.any() || !self.queue.is_empty()
    }

    /// The uplinks as the kernel sees them now, by [`UplinkId`].
    pub fn uplinks(&self) -> &[Uplink] {
        &self.uplinks
    }

    /// What is wanted, and what is known of it.
    pub fn ways(&self) -> impl Iterator<Item = (&Wanted, &Verdict)> {
        self.ways.iter().map(|way| (&way.wanted, &way.verdict))
    }

    /// The ways as they are known, for who may have forgotten some that did not change here.
    pub fn known(&self) -> impl Iterator<Item = Change> + '_ {
        self.ways().map(|(wanted, verdict)| (wanted.remote, wanted.source, verdict.paths()))
    }

    /// Why path MTUs are not learned for packets from an address of ours; `None`: they are.
    pub fn path_mtu_unknown(&self, local: IpAddr) -> Option<&io::Error> {
        self.attention.iter().find(|attention| attention.local == local)?.socket.as_ref().err()
    }

    /// Our ends of containers' veths that the kernel has removed since the last time.
    pub fn containers_gone(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.containers_gone)
    }

    /// Notices were lost since the last time.
    pub fn has_missed(&mut self) -> bool {
        std::mem::take(&mut self.has_missed)
    }

    fn hear(&mut self) {
        let (dirty, removed, containers) = (&mut self.dirty, &mut self.removed, &mut self.containers_gone);
        let own: Vec<u32> = self.uplinks.iter().map(|uplink| uplink.ifindex).collect();
        let ifindexes: Vec<u32> = self.uplinks.iter().flat_map(Uplink::ifindexes).collect();
        let heard = self.notices.read(&ifindexes, |change| match change {
            Affects::Nothing => {}
            Affects::Everything => dirty.all = true,
            Affects::Removal(ifindex) => {
                if own.contains(&ifindex) {
                    removed.insert(ifindex);
                }
                dirty.all = true;
            }
            Affects::ContainerGone(ifindex) => containers.push(ifindex),
            Affects::Neighbour(ifindex, address) => {
                dirty.neighbours.insert((ifindex, address));
            }
        });
        self.unread = matches!(heard, Ok(Heard::More | Heard::Overrun));
        if !matches!(heard, Ok(Heard::All | Heard::More)) {
            self.dirty.all = true;
            self.has_missed = true;
        }
    }

    /// Notes what the notices touch and looks at some of what waits.
    fn step(&mut self, now: Instant) -> Vec<Change> {
        let began = Instant::now();
        let dirty = std::mem::take(&mut self.dirty);
        let mut is_answered = true;
        if dirty.all {
            self.reread = Some(now);
            self.attention.iter_mut().for_each(Attention::retry);
            for uplink in &mut self.uplinks {
                is_answered &= uplink.read(&mut self.requests, &mut self.removed).is_ok();
            }
        }
        let ifindex = |id: UplinkId| self.uplinks.get(id.index()).and_then(|uplink| uplink.device().ok());
        for (index, way) in self.ways.iter_mut().enumerate().filter(|(_, way)| !way.is_queued) {
            let is_touched = |(id, address)| {
                ifindex(id).is_some_and(|device| dirty.neighbours.contains(&(device.ifindex, address)))
            };
            way.is_queued = dirty.all || way.neighbours(|_| true).any(is_touched);
            if way.is_queued {
                self.queue.push_back(index);
            }
        }
        self.dirty.all |= !is_answered;
        let (changes, is_answered) = self.look_again(began);
        // However long this takes, the control thread has as much time for everything else, and more.
        let pause = began.elapsed() * 2;
        let is_done = self.queue.is_empty() || !is_answered;
        self.next_step = Some(Instant::now() + if is_done { pause.max(SETTLE) } else { pause });
        changes
    }

    /// Looks at what waits, for the time of a step. Also, whether the kernel gave answers.
    fn look_again(&mut self, began: Instant) -> (Vec<Change>, bool) {
        let mut survey = Survey::new(&mut self.requests, &self.uplinks, &self.exceptions);
        let (mut changes, mut failed) = (Vec::new(), Vec::new());
        while began.elapsed() < STEP
            && failed.len() < FAILURES_PER_TURN
            && let Some(index) = self.queue.pop_front()
        {
            let Some(way) = self.ways.get_mut(index) else { continue };
            way.is_queued = false;
            let before = way.verdict.paths();
            match survey.judge(way.wanted.address, way.wanted.local) {
                Ok(verdict) => way.verdict = verdict,
                // No answer says nothing about the way: what was known stands until there is one.
                Err(why) => {
                    if before.is_empty() {
                        way.verdict = Verdict::no("", why);
                    }
                    way.is_queued = true;
                    failed.push(index);
                }
            }
            let after = way.verdict.paths();
            if before != after {
                changes.push((way.wanted.remote, way.wanted.source, after));
            }
        }
        let is_answered = failed.is_empty();
        self.queue.extend(failed);
        (changes, is_answered)
    }

    /// Asks for what is unresolved, as often as the backoff allows; forgets the backoff of what is resolved.
    fn nudge(&mut self, now: Instant) {
        let unresolved = |hop: &Hop| hop.state.is_err();
        let wanted: HashSet<_> = self.ways.iter().flat_map(|way| way.neighbours(unresolved)).collect();
        self.asks.retain(|neighbour, _| wanted.contains(neighbour));
        let unasked = |hop: &Hop| hop.care == Care::Resolve;
        let due: HashSet<_> = self.ways.iter().flat_map(|way| way.neighbours(unasked)).collect();
        let (began, mut room) = (Instant::now(), NUDGES_PER_TURN);
        for neighbour in due {
            if room == 0 || began.elapsed() >= STEP {
                break; // their backoff is not touched: the next turn has them
            }
            if self.asks.entry(neighbour).or_insert_with(|| Backoff::new(now)).due(now) {
                self.use_neighbour(neighbour);
                room -= 1;
            }
        }
    }

    /// Once a second: what is in use is kept fresh, and asked for sooner; and its path MTU is read again, because there are no
    /// notices about what ICMP says.
    fn look(&mut self, now: Instant, frames: impl Fn(RemoteId) -> u64) {
        let (mut refresh, mut has_exceptions) = (HashSet::new(), false);
        for (index, way) in self.ways.iter_mut().enumerate() {
            let count = frames(way.wanted.remote);
            if count == std::mem::replace(&mut way.frames_seen, count) {
                continue;
            }
            if !way.is_queued {
                way.is_queued = true;
                self.queue.push_back(index);
            }
            has_exceptions |= way.has_exceptions();
            refresh.extend(way.neighbours(|hop| hop.care == Care::Refresh));
            for neighbour in way.neighbours(|hop| hop.state.is_err()) {
                if let Some(backoff) = self.asks.get_mut(&neighbour) {
                    backoff.hurry(now);
                }
            }
        }
        if has_exceptions {
            self.exceptions.read(now);
        }
        let began = Instant::now();
        let refresh = refresh.into_iter().take(NUDGES_PER_TURN).take_while(|_| began.elapsed() < STEP);
        refresh.for_each(|neighbour| self.use_neighbour(neighbour));
        self.nudge(now);
    }

    /// The answer comes as a notice. To be refused (the link went down just now) is no harm: a notice tells of
    /// that too; but this neighbour is looked at again in any case, because INCOMPLETE is not told of.
    fn use_neighbour(&mut self, (uplink, address): (UplinkId, IpAddr)) {
        let Some(Ok(device)) = self.uplinks.get(uplink.index()).map(Uplink::device) else { return };
        let _refused = self.requests.use_neighbour(device.ifindex, address);
        self.dirty.neighbours.insert((device.ifindex, address));
    }
}
