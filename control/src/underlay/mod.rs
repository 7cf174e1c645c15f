//! The way to each remote, as the kernel sees it, kept true: routes and neighbours are read by rtnetlink, watched,
//! and kept fresh while frames go that way. Called by the [daemon](crate::daemon), which hands what changed to the
//! engine.
//!
//! Level-triggered: a notice only says what to look at again; the answer is always read anew, so a notice that is
//! late, doubled or lost (ENOBUFS) can do no harm. Everything is read again now and then for the same reason.

pub mod decide;
pub mod facts;
pub mod netlink;

use std::collections::{HashMap, HashSet};
use std::io;
use std::net::IpAddr;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use peregrine_dataplane::engine::NextHop;
use peregrine_dataplane::types::{RemoteId, UplinkId};

use decide::{Backoff, Care, Refusal, Verdict, Why};
use facts::{Affects, LinkFact, RouteFact};
use netlink::{Heard, Notices, Requests};

/// How often what is in use is looked at.
pub const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How often everything is read again, whatever the notices said.
const REREAD_EVERY: Duration = Duration::from_secs(30);
/// Changes that come in a row are taken together: at most one evaluation in this time.
const SETTLE: Duration = Duration::from_millis(20);

/// The underlay of all uplinks.
#[derive(Debug)]
pub struct Underlay {
    requests: Requests,
    notices: Notices,
    /// By [`UplinkId`].
    uplinks: Vec<Uplink>,
    /// The numbers of those that were removed.
    removed: HashSet<u32>,
    remotes: Vec<Remote>,
    asks: HashMap<(UplinkId, IpAddr), Backoff>,
    dirty: Dirty,
    unread: bool,
    /// When an evaluation last ended.
    evaluated: Option<Instant>,
    /// When everything was last read.
    reread: Option<Instant>,
    looked: Option<Instant>,
}

/// One interface of ours.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Its name when it was opened.
    pub interface: String,
    /// Its number.
    pub ifindex: u32,
    /// Our VTEP address on it.
    pub local: IpAddr,
    /// As the kernel sees it now; `None`: it is gone, or not looked at yet. One that is gone stays so: another interface may get its number,
    /// or it may come back with it from another namespace, but our sockets are bound to neither.
    pub link: Option<LinkFact>,
}

#[derive(Debug)]
struct Remote {
    address: IpAddr,
    verdict: Verdict,
    frames_seen: u64,
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

/// One remote, for `status`.
#[derive(Clone, Debug)]
pub struct RemoteView<'a> {
    /// Its address.
    pub address: IpAddr,
    /// Whose link-layer address counts: a gateway, or the remote itself.
    pub neighbour: Option<IpAddr>,
    /// The next hop, or why there is none.
    pub hop: Result<NextHop, &'a Why>,
}

/// A next hop that changed.
pub type Change = (RemoteId, Option<NextHop>);

impl Underlay {
    /// Opens the sockets for these uplinks. The first [`turn`](Self::turn) reads everything.
    pub fn open(uplinks: Vec<Uplink>, remotes: &[IpAddr]) -> io::Result<Underlay> {
        // Listening before the first look: nothing that happens in between is missed.
        let notices = Notices::open()?;
        let unknown = |&address| {
            let why = Why::Refused(Refusal::Other("not looked up yet".into()));
            Remote { address, verdict: Verdict::no(why), frames_seen: 0 }
        };
        Ok(Underlay {
            requests: Requests::open()?,
            notices,
            uplinks,
            removed: HashSet::new(),
            remotes: remotes.iter().map(unknown).collect(),
            asks: HashMap::new(),
            dirty: Dirty { all: true, neighbours: HashSet::new() },
            unread: true,
            evaluated: None,
            reread: None,
            looked: None,
        })
    }

    /// For the poll set.
    pub fn raw_fd(&self) -> RawFd {
        self.notices.raw_fd()
    }

    /// The poll says that there are notices.
    pub fn readable(&mut self) {
        self.unread = true;
    }

    /// Does what is due: reads notices, looks again at what they touch, nudges the kernel. `frames` tells how many
    /// frames went towards a remote. Returns the next hops that changed.
    pub fn turn(&mut self, now: Instant, frames: impl Fn(RemoteId) -> u64) -> Vec<Change> {
        if self.unread {
            self.hear();
        }
        if self.reread.is_some_and(|at| now.saturating_duration_since(at) >= REREAD_EVERY) {
            self.dirty.all = true;
        }
        let looking = self.looked.is_none_or(|at| now.saturating_duration_since(at) >= LOOK_EVERY);
        let settled = self.evaluated.is_none_or(|at| now.saturating_duration_since(at) >= SETTLE);
        let mut changes = Vec::new();
        if self.dirty.any() && settled {
            if self.dirty.all {
                self.reread = Some(now);
            }
            changes = self.evaluate();
            // From its end: however long it takes, the control thread has as much time for everything else.
            let took = now.elapsed();
            self.evaluated = Some(now + took + took);
            self.nudge(now);
        }
        if looking {
            self.looked = Some(now);
            self.look(now, frames);
        }
        changes
    }

    /// When [`turn`](Self::turn) is wanted next, at the latest.
    pub fn deadline(&self, now: Instant) -> Instant {
        if self.unread {
            return now;
        }
        let look = self.looked.map_or(now, |at| at + LOOK_EVERY);
        if self.dirty.any() { look.min(self.evaluated.map_or(now, |at| at + SETTLE)) } else { look }
    }

    /// The uplinks as the kernel sees them now, by [`UplinkId`].
    pub fn uplinks(&self) -> &[Uplink] {
        &self.uplinks
    }

    /// All remotes, in the order of their [`RemoteId`].
    pub fn remotes(&self) -> impl Iterator<Item = RemoteView<'_>> {
        self.remotes.iter().map(|remote| RemoteView {
            address: remote.address,
            neighbour: remote.verdict.neighbour.map(|(_, address)| address),
            hop: remote.verdict.hop.as_ref().map(|hop| *hop),
        })
    }

    fn hear(&mut self) {
        let (dirty, removed) = (&mut self.dirty, &mut self.removed);
        let ifindexes: Vec<u32> = self.uplinks.iter().map(|uplink| uplink.ifindex).collect();
        let heard = self.notices.read(&ifindexes, |change| match change {
            Affects::Nothing => {}
            Affects::Everything => dirty.all = true,
            Affects::Removal(ifindex) => {
                removed.insert(ifindex);
                dirty.all = true;
            }
            Affects::Neighbour(ifindex, address) => {
                dirty.neighbours.insert((ifindex, address));
            }
        });
        self.unread = matches!(heard, Ok(Heard::More | Heard::Overrun));
        if !matches!(heard, Ok(Heard::All | Heard::More)) {
            self.dirty.all = true;
        }
    }

    fn evaluate(&mut self) -> Vec<Change> {
        let dirty = std::mem::take(&mut self.dirty);
        if dirty.all {
            for uplink in &mut self.uplinks {
                match self.requests.link(uplink.ifindex) {
                    Ok(Some(link)) if !self.removed.contains(&uplink.ifindex) => uplink.link = Some(link),
                    Ok(_) => {
                        uplink.link = None;
                        self.removed.insert(uplink.ifindex);
                    }
                    Err(_) => self.dirty.all = true, // the kernel is short of memory, say: look again
                }
            }
        }
        let mut changes = Vec::new();
        for index in 0..self.remotes.len() {
            let Some(remote) = self.remotes.get(index) else { break };
            let ifindex = |id: UplinkId| self.uplinks.get(id.index()).map_or(0, |uplink| uplink.ifindex);
            let its = remote.verdict.neighbour.map(|(uplink, address)| (ifindex(uplink), address));
            let touched = its.is_some_and(|its| dirty.neighbours.contains(&its));
            if !(dirty.all || touched) {
                continue;
            }
            let (address, was_known) = (remote.address, remote.verdict.hop.is_ok());
            let verdict = match self.judge(address) {
                Ok(verdict) => verdict,
                // No answer says nothing about the way: what was known stands until there is one.
                Err(Why::Refused(Refusal::Other(_))) if was_known => {
                    self.dirty.all = true;
                    continue;
                }
                Err(why) => {
                    self.dirty.all |= matches!(why, Why::Refused(Refusal::Other(_)));
                    Verdict::no(why)
                }
            };
            let Some(remote) = self.remotes.get_mut(index) else { break };
            let (before, after) = (remote.verdict.hop.as_ref().ok(), verdict.hop.as_ref().ok());
            if before != after {
                changes.push((RemoteId(index as u16), after.copied()));
            }
            remote.verdict = verdict;
        }
        changes
    }

    /// The uplink over which the kernel itself would go is asked first; then the others, in the order of the config: a rule for
    /// packets from the local address of one may lead them elsewhere.
    fn judge(&mut self, remote: IpAddr) -> Result<Verdict, Why> {
        let mut order: Vec<UplinkId> = UplinkId::all(self.uplinks.len()).collect();
        if order.len() > 1
            && let Ok(Some(way_out)) = self.requests.way_out(remote)
        {
            let is_other = |id: &UplinkId| self.uplinks.get(id.index()).is_none_or(|u| u.ifindex != way_out);
            order.sort_by_key(is_other); // stable
        }
        let mut reasons = Vec::new();
        for id in order {
            let Some(uplink) = self.uplinks.get(id.index()).cloned() else { continue };
            match self.judge_over(id, &uplink, remote) {
                Err(why @ Why::Refused(Refusal::Other(_))) => return Err(why),
                Err(why) => reasons.push((uplink.interface, why)),
                verdict => return verdict,
            }
        }
        Err(Why::all(reasons))
    }

    fn judge_over(&mut self, id: UplinkId, uplink: &Uplink, remote: IpAddr) -> Result<Verdict, Why> {
        let source = decide::source(uplink.link.as_ref())?;
        let route = self.requests.route(uplink.local, remote, uplink.ifindex);
        let route = route.map_err(|e| Why::Refused(self.refusal(&e, uplink.local)))?;
        let neighbour = match decide::neighbour_of(&route, remote, uplink.ifindex) {
            Err(Why::Elsewhere { interface }) => {
                return Err(Why::Elsewhere { interface: self.name_of(&route).unwrap_or(interface) });
            }
            other => other?,
        };
        let entry = self
            .requests
            .neighbour(uplink.ifindex, neighbour)
            .map_err(|e| Why::Refused(Refusal::Other(e.to_string())))?;
        Ok(decide::verdict(id, source, neighbour, entry))
    }

    /// "No route" is also what the kernel says when the source address is not on this host.
    fn refusal(&mut self, error: &io::Error, local: IpAddr) -> Refusal {
        match Refusal::from(error) {
            Refusal::NoRoute if !self.requests.is_ours(local) => Refusal::NotOurAddress,
            other => other,
        }
    }

    fn name_of(&mut self, route: &RouteFact) -> Option<String> {
        let RouteFact::Unicast { ifindex, .. } = route else { return None };
        self.requests.link(*ifindex).ok().flatten().map(|link| link.name).filter(|name| !name.is_empty())
    }

    /// Asks for what is unresolved, as often as the backoff allows; forgets the backoff of what is resolved.
    fn nudge(&mut self, now: Instant) {
        let wanted: HashSet<(UplinkId, IpAddr)> = self
            .remotes
            .iter()
            .filter(|r| r.verdict.hop.is_err())
            .filter_map(|r| r.verdict.neighbour)
            .collect();
        self.asks.retain(|neighbour, _| wanted.contains(neighbour));
        let due: HashSet<(UplinkId, IpAddr)> = self
            .remotes
            .iter()
            .filter(|r| r.verdict.care == Care::Resolve)
            .filter_map(|r| r.verdict.neighbour)
            .collect();
        for neighbour in due {
            if self.asks.entry(neighbour).or_insert_with(|| Backoff::new(now)).due(now) {
                self.use_neighbour(neighbour);
            }
        }
    }

    /// Once a second: what is in use is kept fresh, and asked for sooner.
    fn look(&mut self, now: Instant, frames: impl Fn(RemoteId) -> u64) {
        let mut refresh = HashSet::new();
        for (index, remote) in self.remotes.iter_mut().enumerate() {
            let count = frames(RemoteId(index as u16));
            let used = count != remote.frames_seen;
            remote.frames_seen = count;
            let (true, Some(neighbour)) = (used, remote.verdict.neighbour) else { continue };
            if remote.verdict.care == Care::Refresh {
                refresh.insert(neighbour);
            } else if let Some(backoff) = self.asks.get_mut(&neighbour) {
                backoff.hurry(now);
            }
        }
        refresh.into_iter().for_each(|neighbour| self.use_neighbour(neighbour));
        self.nudge(now);
    }

    /// The answer comes as a notice. To be refused (the link went down just now) is no harm: a notice tells of
    /// that too; but this neighbour is looked at again in any case, because INCOMPLETE is not told of.
    fn use_neighbour(&mut self, (uplink, address): (UplinkId, IpAddr)) {
        let Some(uplink) = self.uplinks.get(uplink.index()) else { return };
        let _refused = self.requests.use_neighbour(uplink.ifindex, address);
        self.dirty.neighbours.insert((uplink.ifindex, address));
    }
}
