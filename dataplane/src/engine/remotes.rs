//! Remotes that come and go while frames flow: added and removed by control, and, in a network that takes any, discovered and forgotten.
//! Called by the engine.
//!
//! A remote has its [`RemoteId`] for its life, in all networks that it is in. Coming takes one publication. Going takes three steps, one
//! batch at a time, each looked after by [`Engine::poll`] without waiting:
//!
//! ```text
//! Tables ─────────────► Rounds ──────────────► Sweep ─────────────► gone: its id may be used again
//! all workers have      what they found by     what they learned of
//! tables without it     others has left        it is forgotten
//! ```
//!
//! The first two are a grace (`grace.rs`). So when a remote is gone, no frame goes there and no entry points to it, and no frame that
//! another remote sent can be taken for one of its successor. What is fixed behind it goes at once. (An address that is moved within the
//! forwarding database just while it is swept can be missed. It is then behind the id's next holder, until it is seen elsewhere or
//! ages, and counts for nothing unless that is in the same network.)

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::grace::Grace;
use super::{Engine, FLUSH_BUCKETS_MAX, smallest_mtu};
use crate::fdb::{AgeingHand, Destination};
use crate::plan::{NetworkPlan, Plan};
use crate::strangers::{self, Stranger};
use crate::tables::{Remote, Tables, overhead, remote_addresses};
use crate::types::{NetworkId, RemoteId, SourceId};

/// Remotes that there is room for beyond those that the plan has,
pub const REMOTES_LATER: usize = 1024;
/// and, so that who sends from many addresses does not take that, for as many that were discovered and never added.
pub const DISCOVERED_LATER: usize = 1024;
/// Remotes of one network that frames are flooded to: beyond those of the plan, if it has more.
pub const REMOTES_MAX: usize = 1024;
/// Discovered remotes of one network.
pub const DISCOVERED_MAX: usize = 256;
/// Discovered remotes that are forgotten in one call.
const FORGOTTEN_MAX: usize = 64;
/// Remotes that may not send after they were removed from networks that take any. One more, and the first may again.
pub const BARRED_MAX: usize = 1024;
/// Discovered remotes of a network that give way to others in one second,
const GIVE_WAY_MAX: usize = 4;
/// if nothing was heard of them for so long.
const QUIET_S: u32 = 10;
/// How often control looks while remotes go.
const LOOK: Duration = Duration::from_millis(1);

/// How a remote came to be one of its network.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The plan has it.
    Configured,
    /// It was added while the workers run.
    Added,
    /// It sent, and the network takes any. Nothing is flooded to it.
    Discovered,
}

/// A remote of a network, for people.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Member {
    /// The network.
    pub network: NetworkId,
    /// Its id.
    pub remote: RemoteId,
    /// Its address.
    pub address: IpAddr,
    /// How it came.
    pub standing: Standing,
    /// It was removed, and is not gone yet.
    pub is_leaving: bool,
}

/// Why a remote was not added, or not removed. One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum RemoteError {
    /// No such network.
    NoSuchNetwork,
    /// It is one of our own addresses.
    Own(IpAddr),
    /// Not the address of one host.
    NotUnicast(IpAddr),
    /// We have no address of its family, by which we could send to it.
    Family(IpAddr),
    /// The network sends from another family.
    Local {
        /// The remote.
        address: IpAddr,
        /// From this.
        local: IpAddr,
    },
    /// The network's packets do not fit the uplinks with the headers that it needs.
    Mtu {
        /// The remote.
        address: IpAddr,
        /// The network's MTU, in bytes.
        mtu: u16,
        /// It would have to be this at most.
        most: u32,
    },
    /// It is one of the network's remotes.
    There(IpAddr),
    /// It is none of them.
    NotThere(IpAddr),
    /// It is being removed.
    Leaving(IpAddr),
    /// The network has as many as it can have.
    NetworkFull(usize),
    /// There is no room for another one.
    Full(usize),
}

impl fmt::Display for RemoteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RemoteError::NoSuchNetwork => f.write_str("there is no such network"),
            RemoteError::Own(address) => {
                write!(f, "{address} is an address of our own: a remote is another host's")
            }
            RemoteError::NotUnicast(address) => {
                write!(f, "{address} is not the address of one host: a remote's is unicast")
            }
            RemoteError::Family(address) => {
                let family = if address.is_ipv4() { "IPv4" } else { "IPv6" };
                write!(f, "{address}: no uplink has an {family} address in `local`, from which to send to it")
            }
            RemoteError::Local { address, local } => {
                write!(f, "{address}: the network sends from {local}, which is of the other IP version")
            }
            RemoteError::Mtu { address, mtu, most } => write!(
                f,
                "{address}: with the headers over {} the network's MTU of {mtu} does not fit the uplinks: {most} would",
                if address.is_ipv4() { "IPv4" } else { "IPv6" }
            ),
            RemoteError::There(address) => write!(f, "{address} is a remote of this network already"),
            RemoteError::NotThere(address) => {
                write!(f, "{address} is no remote of this network: `peregrine remote list` shows them")
            }
            RemoteError::Leaving(address) => {
                write!(f, "{address} is just being removed from this network: try again in a moment")
            }
            RemoteError::NetworkFull(most) => {
                write!(f, "the network has {most} remotes, as many as it can have: remove one first")
            }
            RemoteError::Full(most) => write!(
                f,
                "there are {most} remotes, as many as there is room for since the start: remove one first, or restart with these in the config"
            ),
        }
    }
}

impl std::error::Error for RemoteError {}

/// What the engine knows of the remotes.
#[derive(Debug)]
pub(super) struct Remotes {
    /// By [`RemoteId`]; `None` where none is.
    places: Vec<Option<Place>>,
    by_address: HashMap<IpAddr, RemoteId>,
    /// Free places, the one that was freed first in front.
    free: VecDeque<RemoteId>,
    capacity: usize,
    /// Places of those that were discovered and never added,
    found: usize,
    /// and how many others there may be.
    known_max: usize,
    /// Behind these some address is, as far as the forwarding database was looked through; `looked_until` buckets.
    occupied: HashSet<(NetworkId, RemoteId)>,
    looked_until: usize,
    members: BTreeMap<(NetworkId, RemoteId), Membership>,
    /// Those that go now,
    leaving: Vec<(NetworkId, RemoteId)>,
    step: Step,
    /// and those that are next.
    next: Vec<(NetworkId, RemoteId)>,
    /// Counts what changed.
    generation: u64,
    /// By network.
    counts: Vec<Counts>,
    /// Removed from networks that take any, the last one at the end.
    barred: VecDeque<(NetworkId, IpAddr)>,
}

/// Of a network.
#[derive(Clone, Copy, Default, Debug)]
struct Counts {
    /// Configured and added remotes that do not leave,
    known: usize,
    /// and discovered ones.
    discovered: usize,
    /// Times that a sender did not become a remote for want of room.
    unwelcome: u64,
    /// There was one lately.
    is_crowded: bool,
}

impl Counts {
    fn of(&mut self, standing: Standing) -> &mut usize {
        match standing {
            Standing::Discovered => &mut self.discovered,
            Standing::Configured | Standing::Added => &mut self.known,
        }
    }
}

/// What is to change in the tables: collected, so that the workers get one new set of them however many remotes come and go at once.
#[derive(Default, Debug)]
pub(super) struct Change {
    /// Ids that have another address now, or none, and whether its DSCP is believed.
    places: Vec<(RemoteId, Option<IpAddr>, bool)>,
    /// Ways that are not looked for any more.
    ways: Vec<(RemoteId, SourceId)>,
    /// Networks that have others.
    networks: BTreeSet<NetworkId>,
}

#[derive(Clone, Copy, Debug)]
struct Place {
    address: IpAddr,
    /// In so many networks,
    networks: usize,
    /// and it stays in one of them.
    is_reachable: bool,
    /// It was discovered, and added to no network.
    is_found: bool,
    /// Frames that went to others who had the id before.
    frames_before: u64,
}

#[derive(Clone, Copy, Debug)]
struct Membership {
    standing: Standing,
    /// Second in which it became so.
    since_s: u32,
    is_leaving: bool,
}

#[derive(Debug)]
enum Step {
    /// Workers may have found their way by older tables.
    Grace(Grace),
    /// Buckets from this one on are to be looked at.
    Sweep(usize),
}

impl Remotes {
    pub(super) fn new(plan: &Plan) -> Remotes {
        let by_address: HashMap<IpAddr, RemoteId> = remote_addresses(plan).into_iter().collect();
        let mut places = vec![None; by_address.len()];
        for (&address, id) in &by_address {
            if let Some(place) = places.get_mut(id.index()) {
                *place = Some(Place {
                    address,
                    networks: 0,
                    is_reachable: true,
                    is_found: false,
                    frames_before: 0,
                });
            }
        }
        let known_max = (places.len() + REMOTES_LATER).min(usize::from(RemoteId::LIMIT));
        let capacity = (known_max + DISCOVERED_LATER).min(usize::from(RemoteId::LIMIT));
        let mut remotes = Remotes {
            places,
            by_address,
            free: VecDeque::new(),
            capacity,
            found: 0,
            known_max,
            occupied: HashSet::new(),
            looked_until: 0,
            members: BTreeMap::new(),
            leaving: Vec::new(),
            step: Step::Grace(Grace::Tables),
            next: Vec::new(),
            generation: 0,
            counts: vec![Counts::default(); plan.networks_max()],
            barred: VecDeque::new(),
        };
        for (network, plan) in plan.networks.iter() {
            for address in &plan.remotes {
                if let Some(&remote) = remotes.by_address.get(address) {
                    remotes.enter(network, remote, Standing::Configured, 0);
                }
            }
        }
        remotes
    }

    /// How many there may be.
    pub(super) fn capacity(&self) -> usize {
        self.capacity
    }

    /// Those that stay.
    pub(super) fn iter(&self) -> impl Iterator<Item = (RemoteId, IpAddr)> + '_ {
        let there = (0..).map(RemoteId).zip(&self.places);
        there.filter_map(|(id, place)| Some((id, place.as_ref().filter(|its| its.is_reachable)?.address)))
    }

    pub(super) fn is_reachable(&self, id: RemoteId) -> bool {
        self.places.get(id.index()).and_then(Option::as_ref).is_some_and(|place| place.is_reachable)
    }

    pub(super) fn address(&self, id: RemoteId) -> Option<IpAddr> {
        self.places.get(id.index())?.as_ref().map(|place| place.address)
    }

    pub(super) fn frames_before(&self, id: RemoteId) -> u64 {
        self.places.get(id.index()).and_then(Option::as_ref).map_or(0, |place| place.frames_before)
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let is_idle = self.leaving.is_empty() && self.next.is_empty();
        (!is_idle).then(|| Instant::now() + LOOK)
    }

    fn enter(&mut self, network: NetworkId, remote: RemoteId, standing: Standing, since_s: u32) {
        let membership = Membership { standing, since_s, is_leaving: false };
        let before = self.members.insert((network, remote), membership);
        if let Some(counts) = self.counts.get_mut(network.index()) {
            if let Some(before) = before {
                *counts.of(before.standing) -= 1;
            }
            *counts.of(standing) += 1;
        }
        if before.is_none()
            && let Some(Some(place)) = self.places.get_mut(remote.index())
        {
            place.networks += 1;
        }
    }

    /// The remotes of a network that do not leave.
    fn of(&self, network: NetworkId) -> impl Iterator<Item = (RemoteId, Membership)> + '_ {
        self.all_of(network).filter(|(_, its)| !its.is_leaving)
    }

    fn all_of(&self, network: NetworkId) -> impl Iterator<Item = (RemoteId, Membership)> + '_ {
        let its = self.members.range((network, RemoteId(0))..=(network, RemoteId(u16::MAX)));
        its.map(|(&(_, remote), its)| (remote, *its))
    }

    fn is_found(&self, id: RemoteId) -> bool {
        self.places.get(id.index()).and_then(Option::as_ref).is_some_and(|place| place.is_found)
    }

    fn counts(&self, network: NetworkId) -> Counts {
        self.counts.get(network.index()).copied().unwrap_or_default()
    }

    /// From now on it leaves. False if it did so already.
    fn begin_to_leave(&mut self, network: NetworkId, remote: RemoteId) -> bool {
        let its = self.members.get_mut(&(network, remote)).filter(|its| !its.is_leaving);
        let Some(its) = its else { return false };
        its.is_leaving = true;
        if let Some(counts) = self.counts.get_mut(network.index()) {
            *counts.of(its.standing) -= 1;
        }
        self.next.push((network, remote));
        true
    }

    fn membership(&self, network: NetworkId, address: IpAddr) -> Option<(RemoteId, Membership)> {
        let remote = *self.by_address.get(&address)?;
        Some((remote, *self.members.get(&(network, remote))?))
    }

    /// There is room for one more of its kind.
    fn check_room(&self, is_found: bool) -> Result<(), RemoteError> {
        let known = self.places.len() - self.free.len() - self.found;
        match is_found {
            true if self.found >= DISCOVERED_LATER => Err(RemoteError::Full(self.found)),
            false if known >= self.known_max => Err(RemoteError::Full(known)),
            _ => Ok(()),
        }
    }

    /// One that is there was added: it takes the room of such a one.
    fn claim(&mut self, remote: RemoteId) -> Result<(), RemoteError> {
        if self.is_found(remote) {
            self.check_room(false)?;
            self.found -= 1;
            if let Some(Some(place)) = self.places.get_mut(remote.index()) {
                place.is_found = false;
            }
        }
        Ok(())
    }

    /// A place for a remote that is in no network yet.
    fn take_place(&mut self) -> Result<RemoteId, RemoteError> {
        // A new one first: that of one who has gone rests as long as it can.
        let id = if self.places.len() < self.capacity {
            self.places.push(None);
            RemoteId((self.places.len() - 1) as u16)
        } else {
            self.free.pop_front().ok_or(RemoteError::Full(self.capacity))?
        };
        Ok(id)
    }

    /// It has left the network: and is gone if that was the last.
    fn leave(&mut self, network: NetworkId, remote: RemoteId) {
        let was_there = self.members.remove(&(network, remote)).is_some();
        let Some(place) = self.places.get_mut(remote.index()) else { return };
        let Some(its) = place.as_mut().filter(|_| was_there) else { return };
        its.networks -= 1;
        if its.networks == 0 {
            self.by_address.remove(&its.address);
            self.found -= usize::from(its.is_found);
            *place = None;
            self.free.push_back(remote);
        }
    }
}

impl Engine {
    /// The remote VTEPs whose next hops are wanted.
    pub fn remotes(&self) -> impl Iterator<Item = (RemoteId, IpAddr)> + '_ {
        self.remotes.iter()
    }

    /// The address of a remote.
    pub fn remote_address(&self, remote: RemoteId) -> Option<IpAddr> {
        self.remotes.address(remote)
    }

    /// Another number than before when the networks have other remotes.
    pub fn remotes_generation(&self) -> u64 {
        self.remotes.generation
    }

    /// The remotes of all networks.
    pub fn members(&self) -> impl Iterator<Item = Member> + '_ {
        self.remotes.members.iter().filter_map(|(&(network, remote), its)| {
            let address = self.remotes.address(remote)?;
            Some(Member { network, remote, address, standing: its.standing, is_leaving: its.is_leaving })
        })
    }

    /// Those that were removed from networks that take any, and may not send there until they are added again.
    pub fn barred(&self) -> impl Iterator<Item = (NetworkId, IpAddr)> + '_ {
        self.remotes.barred.iter().copied()
    }

    /// How many discovered remotes a network has, and how often a sender did not become one for want of room: more than
    /// once if it went on sending.
    pub fn discovered(&self, network: NetworkId) -> (usize, u64) {
        let counts = self.remotes.counts(network);
        (counts.discovered, counts.unwelcome)
    }

    /// The id of the remote with this address, also while it leaves.
    pub fn remote_id(&self, address: IpAddr) -> Option<RemoteId> {
        self.remotes.by_address.get(&address).copied()
    }

    /// Adds a remote to a network: from the workers' next turn on it may send, and what is flooded goes there. A discovered one becomes such
    /// a one.
    ///
    /// # Errors
    /// [`RemoteError`]; nothing has changed then.
    pub fn add_remote(&mut self, network: NetworkId, address: IpAddr) -> Result<(), RemoteError> {
        self.check_remote(network, address)?;
        match self.remotes.membership(network, address) {
            Some((_, its)) if its.is_leaving => return Err(RemoteError::Leaving(address)),
            Some((_, its)) if its.standing != Standing::Discovered => {
                return Err(RemoteError::There(address));
            }
            _ => {}
        }
        let known = self.remotes.counts(network).known;
        if known >= REMOTES_MAX {
            return Err(RemoteError::NetworkFull(known));
        }
        let mut change = Change::default();
        self.let_in_remote(network, address, Standing::Added, &mut change)?;
        self.remotes.barred.retain(|one| *one != (network, address));
        self.publish_members(&change);
        Ok(())
    }

    /// There is room for those of these that are new, and none of them is just leaving.
    pub(super) fn check_room_for(&self, addresses: &BTreeSet<IpAddr>) -> Result<(), RemoteError> {
        let mut new = 0;
        for &address in addresses {
            match self.remotes.by_address.get(&address) {
                Some(&remote) if !self.remotes.is_reachable(remote) => {
                    return Err(RemoteError::Leaving(address));
                }
                // A discovered one takes the room of one that was added.
                Some(&remote) => new += usize::from(self.remotes.is_found(remote)),
                None => new += 1,
            }
        }
        let known = self.remotes.places.len() - self.remotes.free.len() - self.remotes.found;
        let fits = known + new <= self.remotes.known_max;
        if fits { Ok(()) } else { Err(RemoteError::Full(known)) }
    }

    /// A network has come: so do these remotes of it, for which there is [room](Self::check_room_for).
    pub(super) fn let_in_remotes(&mut self, network: NetworkId, addresses: &[IpAddr], change: &mut Change) {
        for &address in addresses {
            let let_in = self.let_in_remote(network, address, Standing::Added, change);
            debug_assert_eq!(let_in, Ok(()), "there was room");
        }
    }

    /// A network goes: so do all remotes of it, and what is fixed behind them.
    pub(super) fn let_out_remotes(&mut self, network: NetworkId, change: &mut Change) {
        let its: Vec<RemoteId> = self.remotes.of(network).map(|(remote, _)| remote).collect();
        for remote in its {
            self.let_out_remote(network, remote, change);
            self.forget_fixed_behind(network, remote);
        }
        self.remotes.barred.retain(|(of, _)| *of != network);
    }

    /// It has no remotes any more, also none that leaves.
    pub(super) fn has_no_members(&self, network: NetworkId) -> bool {
        self.remotes.all_of(network).next().is_none()
    }

    fn let_in_remote(
        &mut self,
        network: NetworkId,
        address: IpAddr,
        standing: Standing,
        change: &mut Change,
    ) -> Result<(), RemoteError> {
        let known = self.remotes.by_address.get(&address).copied();
        let is_found = standing == Standing::Discovered;
        let remote = match known {
            Some(remote) if self.remotes.is_reachable(remote) => {
                if !is_found {
                    self.remotes.claim(remote)?;
                }
                remote
            }
            Some(_) => return Err(RemoteError::Leaving(address)), // from everywhere
            None => {
                self.remotes.check_room(is_found)?;
                let remote = self.remotes.take_place()?;
                self.remotes.found += usize::from(is_found);
                let frames_before = self.frames_ever_towards(remote);
                if let Some(place) = self.remotes.places.get_mut(remote.index()) {
                    *place =
                        Some(Place { address, networks: 0, is_reachable: true, is_found, frames_before });
                }
                self.remotes.by_address.insert(address, remote);
                self.paths.resize(self.remotes.places.len() * self.tables.sources.len(), Vec::new());
                change.places.push((remote, Some(address), self.plan.classes.trusted.contains(&address)));
                remote
            }
        };
        self.remotes.enter(network, remote, standing, self.seconds.now());
        change.networks.insert(network);
        Ok(())
    }

    /// The workers get tables with the remotes that these networks have now, and so does the plan.
    fn publish_members(&mut self, change: &Change) {
        if change.networks.is_empty() {
            return;
        }
        let mut tables = Tables::clone(&self.tables);
        self.write_members(change, &mut tables);
        self.publish(tables);
    }

    /// Writes the same into tables that are then published.
    pub(super) fn write_members(&mut self, change: &Change, tables: &mut Tables) {
        tables.set_remotes(&change.places);
        for &(remote, source) in &change.ways {
            tables.set_paths(remote, source, &[]);
        }
        for &network in &change.networks {
            let is_flooded = |(_, its): &(RemoteId, Membership)| its.standing != Standing::Discovered;
            let (flooded, others): (Vec<_>, Vec<_>) = self.remotes.of(network).partition(is_flooded);
            let flooded: Vec<RemoteId> = flooded.into_iter().map(|(remote, _)| remote).collect();
            let others: Vec<RemoteId> = others.into_iter().map(|(remote, _)| remote).collect();
            if let Some(plan) = self.plan.networks.get_mut(network) {
                plan.remotes = flooded.iter().filter_map(|id| self.remotes.address(*id)).collect();
            }
            tables.set_members(network, flooded.into(), &others);
            if let Some(of_tables) = tables.networks.get_mut(network) {
                let its = self.remotes.barred.iter().filter(|(of, _)| *of == network);
                let mut barred: Vec<IpAddr> = its.map(|(_, address)| *address).collect();
                barred.sort_unstable();
                of_tables.barred = barred.into();
            }
        }
        self.remotes.generation += 1;
    }

    /// Removes a remote from a network, and what is fixed behind it there: so many addresses are returned. From the workers' next turn on
    /// it is no remote any more, and it is gone when [`members`](Self::members) has it no more. Where any may send, it is [`barred`](Self::barred).
    ///
    /// # Errors
    /// [`RemoteError`]; nothing has changed then.
    pub fn remove_remote(&mut self, network: NetworkId, address: IpAddr) -> Result<usize, RemoteError> {
        if self.plan.network(network).is_none() {
            return Err(RemoteError::NoSuchNetwork);
        }
        let found = self.remotes.membership(network, address);
        let (remote, its) = found.ok_or(RemoteError::NotThere(address))?;
        if its.is_leaving {
            return Err(RemoteError::Leaving(address));
        }
        let mut change = Change::default();
        self.let_out_remote(network, remote, &mut change);
        if self.plan.network(network).is_some_and(|network| network.any_remote) {
            // Else it would be discovered with its next frame.
            self.remotes.barred.push_back((network, address));
            if self.remotes.barred.len() > BARRED_MAX
                && let Some((other, _)) = self.remotes.barred.pop_front()
            {
                change.networks.insert(other);
            }
        }
        self.publish_members(&change);
        Ok(self.forget_fixed_behind(network, remote))
    }

    fn let_out_remote(&mut self, network: NetworkId, remote: RemoteId, change: &mut Change) {
        if !self.remotes.begin_to_leave(network, remote) {
            return;
        }
        change.networks.insert(network);
        // From where nobody sends to it any more, nobody looks for ways to it; and a frame for it that is under way finds none.
        let sources = self.sources_to(remote);
        for source in (0..).map(SourceId).take(self.tables.sources.len()) {
            if sources.contains(&source) {
                continue;
            }
            change.ways.push((remote, source));
            let at = self.tables.way_index(remote, source);
            if let Some(known) = at.and_then(|at| self.paths.get_mut(at)) {
                known.clear();
            }
        }
        if sources.is_empty() {
            change.places.push((remote, None, false));
            if let Some(Some(place)) = self.remotes.places.get_mut(remote.index()) {
                place.is_reachable = false;
            }
        }
    }

    /// The addresses from which networks send to a remote that stays there.
    fn sources_to(&self, remote: RemoteId) -> HashSet<SourceId> {
        let Some(Some(place)) = self.remotes.places.get(remote.index()) else { return HashSet::new() };
        // Most are in one, which it leaves: there is no need to look for others.
        let count = if place.networks > 1 { self.plan.networks.end() } else { 0 };
        let networks = (0..).map(NetworkId).take(count);
        let stays = |network: &NetworkId| {
            self.remotes.members.get(&(*network, remote)).is_some_and(|its| !its.is_leaving)
        };
        // By the plan: a network that just comes is not in the tables yet.
        networks
            .filter(stays)
            .filter_map(|id| Some(self.tables.source_of(self.plan.network(id)?.local)))
            .collect()
    }

    /// What would make it no remote of this network.
    fn check_remote(&self, network: NetworkId, address: IpAddr) -> Result<(), RemoteError> {
        let network = self.plan.network(network).ok_or(RemoteError::NoSuchNetwork)?;
        self.check_remote_of(network, address)
    }

    /// The same of a network that is not there yet.
    pub(super) fn check_remote_of(&self, network: &NetworkPlan, address: IpAddr) -> Result<(), RemoteError> {
        if !Remote::may_be(address) {
            return Err(RemoteError::NotUnicast(address));
        }
        let mut locals = self.plan.uplinks.iter().flat_map(|uplink| &uplink.locals);
        if locals.clone().any(|local| *local == address) {
            return Err(RemoteError::Own(address));
        }
        if !locals.any(|local| local.is_ipv4() == address.is_ipv4()) {
            return Err(RemoteError::Family(address));
        }
        if let Some(local) = network.local
            && local.is_ipv4() != address.is_ipv4()
        {
            return Err(RemoteError::Local { address, local });
        }
        let (remotes, local) = (vec![address], network.local);
        let with_it = NetworkPlan { remotes, local, ..NetworkPlan::new("", network.vni) };
        let overhead = overhead(&with_it, &self.plan.uplinks) as u32;
        // Nothing to fit where frames come from memory.
        match smallest_mtu(&self.infos).map(|uplink| uplink.mtu.saturating_sub(overhead)) {
            Some(most) if !self.uplinks.is_empty() && u32::from(network.mtu) > most => {
                Err(RemoteError::Mtu { address, mtu: network.mtu, most })
            }
            _ => Ok(()),
        }
    }

    /// Goes on with remotes that leave, as far as it can without waiting, and with those that workers found.
    pub(super) fn settle_remotes(&mut self) {
        let mut change = Change::default();
        for _ in 0..strangers::CAPACITY {
            let Some(stranger) = self.tables.strangers.take() else { break };
            self.discover(stranger, &mut change);
        }
        self.publish_members(&change);
        if self.remotes.leaving.is_empty() {
            if self.remotes.next.is_empty() {
                return;
            }
            self.remotes.leaving = std::mem::take(&mut self.remotes.next);
            self.remotes.step = Step::Grace(Grace::Tables);
        }
        if let Step::Grace(grace) = &mut self.remotes.step {
            let mut grace = std::mem::take(grace);
            let is_over = self.go_on(&mut grace);
            self.remotes.step = if is_over { Step::Sweep(0) } else { Step::Grace(grace) };
        }
        if let Step::Sweep(from) = self.remotes.step {
            self.sweep_remotes(from);
        }
    }

    /// One bounded step through the forwarding database; with the last one they are gone.
    fn sweep_remotes(&mut self, from: usize) {
        let goes: HashSet<(NetworkId, RemoteId)> = self.remotes.leaving.iter().copied().collect();
        self.fdb.forget_behind(from, AgeingHand::STEP_MAX, |network, _, remote, _| {
            goes.contains(&(network, remote))
        });
        let next = from + AgeingHand::STEP_MAX;
        if next < self.fdb.buckets() {
            self.remotes.step = Step::Sweep(next);
            return;
        }
        for (network, remote) in std::mem::take(&mut self.remotes.leaving) {
            self.remotes.leave(network, remote);
        }
    }

    /// A worker noted somebody who sent to a network that takes any.
    fn discover(&mut self, Stranger { network, address }: Stranger, change: &mut Change) {
        let takes_any = self.plan.network(network).is_some_and(|network| network.any_remote);
        // One that is just leaving may come back when it is gone.
        let is_there = self.remotes.membership(network, address).is_some();
        let is_barred = self.remotes.barred.contains(&(network, address));
        if !takes_any || is_there || is_barred || self.check_remote(network, address).is_err() {
            return;
        }
        let refused = if self.remotes.counts(network).discovered < DISCOVERED_MAX {
            self.let_in_remote(network, address, Standing::Discovered, change).err()
        } else {
            Some(RemoteError::NetworkFull(DISCOVERED_MAX))
        };
        let is_full_everywhere = matches!(refused, Some(RemoteError::Full(_)));
        if (is_full_everywhere || matches!(refused, Some(RemoteError::NetworkFull(_))))
            && let Some(counts) = self.remotes.counts.get_mut(network.index())
        {
            counts.unwelcome += 1;
            counts.is_crowded = true;
        }
        if is_full_everywhere {
            let holders = self.remotes.counts.iter_mut().filter(|counts| counts.discovered > 0);
            holders.for_each(|counts| counts.is_crowded = true);
        }
    }

    /// Once a second: discovered remotes that nothing was heard of for so long that every learned address behind them is past its time are
    /// forgotten; where there was no room for others, some of those behind which no address is are so sooner.
    pub(super) fn forget_discovered(&mut self) {
        self.forget_silent(self.seconds.now());
        self.make_way(self.seconds.now());
    }

    /// Looks through the forwarding database, a part of a large one at each call; then those that were silent for longest give way.
    fn make_way(&mut self, now_s: u32) {
        if !self.remotes.counts.iter().any(|counts| counts.is_crowded) {
            return;
        }
        let from = std::mem::take(&mut self.remotes.looked_until);
        for entry in self.fdb.entries_in(from, FLUSH_BUCKETS_MAX) {
            if let Destination::Remote(remote) = entry.destination {
                self.remotes.occupied.insert((entry.network, remote));
            }
        }
        let next = from + FLUSH_BUCKETS_MAX;
        if next < self.fdb.buckets() {
            self.remotes.looked_until = next;
            return;
        }
        let occupied = std::mem::take(&mut self.remotes.occupied);
        let gives_way = |&(network, remote, since_s): &(NetworkId, RemoteId, u32)| {
            let quiet_s = now_s.saturating_sub(self.heard_s(remote).max(since_s));
            let is_empty = !occupied.contains(&(network, remote));
            self.remotes.counts(network).is_crowded && is_empty && quiet_s >= QUIET_S
        };
        let mut quiet: Vec<_> = self.discovered_ones().filter(gives_way).collect();
        quiet.sort_by_cached_key(|&(_, remote, since_s)| self.heard_s(remote).max(since_s));
        let mut change = Change::default();
        let mut gone: HashMap<NetworkId, usize> = HashMap::new();
        for (network, remote, _) in quiet {
            let of_network = gone.entry(network).or_default();
            *of_network += 1;
            if *of_network <= GIVE_WAY_MAX {
                self.let_out_remote(network, remote, &mut change);
            }
        }
        self.remotes.counts.iter_mut().for_each(|counts| counts.is_crowded = false);
        self.publish_members(&change);
    }

    fn forget_silent(&mut self, now_s: u32) {
        // Most often ageing has gone round by then, and nothing is behind them any more. In a large table a round takes longer: what is left is
        // past its time as well, and is swept when they go.
        let slack_s = 2 * AgeingHand::ROUND.as_secs();
        let is_silent = |(network, remote, since_s): &(NetworkId, RemoteId, u32)| {
            let heard_s = self.heard_s(*remote).max(*since_s);
            let ageing_s = self.plan.network(*network).map_or(0, |network| network.ageing.as_secs());
            u64::from(now_s.saturating_sub(heard_s)) > ageing_s + slack_s
        };
        let silent: Vec<_> = self.discovered_ones().filter(is_silent).take(FORGOTTEN_MAX).collect();
        let mut change = Change::default();
        for (network, remote, _) in silent {
            self.let_out_remote(network, remote, &mut change);
        }
        self.publish_members(&change);
    }

    /// Those that do not leave, and since when they are there.
    fn discovered_ones(&self) -> impl Iterator<Item = (NetworkId, RemoteId, u32)> + '_ {
        let networks = (0..).map(NetworkId).zip(&self.remotes.counts);
        networks.filter(|(_, counts)| counts.discovered > 0).flat_map(|(network, _)| {
            let its = self.remotes.of(network).filter(|(_, its)| its.standing == Standing::Discovered);
            its.map(move |(remote, its)| (network, remote, its.since_s))
        })
    }

    /// When any worker last heard of it.
    fn heard_s(&self, remote: RemoteId) -> u32 {
        self.workers.iter().map(|worker| worker.counters.heard_s(remote)).max().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::pinned::usable_cores;
    use crate::plan::{PlacementMode, UplinkPlan, WorkerPlan};
    use crate::tables::{NextHop, Way};
    use crate::types::{CoreId, MacAddr, UplinkId, Vni};

    const PATIENCE: Duration = Duration::from_secs(60);
    const BLUE: NetworkId = NetworkId(0);
    const RED: NetworkId = NetworkId(1);

    fn address(last: u8) -> IpAddr {
        [192, 0, 2, last].into()
    }

    /// Networks with the remotes 2 and 3, and 3: the second takes any.
    fn engine() -> Engine {
        let network = |name: &str, vni, remotes: &[u8]| NetworkPlan {
            remotes: remotes.iter().map(|last| address(*last)).collect(),
            fdb_limit: 16,
            any_remote: name == "red",
            ..NetworkPlan::new(name, Vni::new(vni).unwrap())
        };
        let plan = Plan {
            workers: vec![WorkerPlan::on(CoreId(usable_cores()[0])); 2],
            placement: PlacementMode::Static,
            balance_threshold: 85,
            uplinks: vec![UplinkPlan { ring_size: 64, ..UplinkPlan::new("unused", address(1)) }],
            networks: vec![network("blue", 42, &[2, 3]), network("red", 43, &[3])].into(),
            endpoints: Default::default(),
            capacity: Default::default(),
            pools: Default::default(),
            classes: Default::default(),
            control_socket: PathBuf::new(),
            ..Plan::default()
        };
        Engine::replay(&plan, vec![]).unwrap()
    }

    fn until(engine: &mut Engine, mut is_so: impl FnMut(&mut Engine) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(engine) {
            assert!(Instant::now() < deadline, "{:?}", engine.remotes);
            assert_eq!(engine.poll(), []);
            std::thread::yield_now();
        }
    }

    fn until_gone(engine: &mut Engine) {
        until(engine, |engine| engine.remotes.deadline().is_none());
        assert!(engine.members().all(|member| !member.is_leaving));
    }

    fn id(engine: &Engine, last: u8) -> RemoteId {
        engine.remotes.by_address[&address(last)]
    }

    fn has_way(engine: &Engine, remote: RemoteId) -> bool {
        engine.tables.way(remote, SourceId(0)).is_some_and(|way| !matches!(way, Way::None))
    }

    #[test]
    fn a_remote_has_its_id_for_its_life_and_in_all_networks() {
        let mut engine = engine();
        let two = id(&engine, 2);
        engine.add_remote(RED, address(2)).unwrap();
        assert!(engine.tables.networks.values().all(|network| network.has_remote(two)));
        engine.remove_remote(BLUE, address(2)).unwrap();
        assert!(!engine.tables.networks[0].has_remote(two) && engine.tables.networks[1].has_remote(two));
        until_gone(&mut engine);
        assert_eq!((id(&engine, 2), engine.remote_address(two)), (two, Some(address(2))));
        // Of nobody any more.
        engine.remove_remote(RED, address(2)).unwrap();
        assert!(engine.remotes().all(|(id, _)| id != two) && engine.remote_address(two).is_some());
        assert_eq!(engine.add_remote(BLUE, address(2)), Err(RemoteError::Leaving(address(2))));
        until_gone(&mut engine);
        assert_eq!(engine.remote_address(two), None);
        engine.add_remote(BLUE, address(2)).unwrap();
        assert_ne!(id(&engine, 2), two, "while there are new ones");
        assert_eq!(engine.plan().networks[0].remotes, [address(3), address(2)]);
    }

    #[test]
    fn an_id_comes_back_when_there_is_no_new_one_and_knows_nothing_of_before() {
        let mut engine = engine();
        for n in 0..REMOTES_LATER as u32 {
            engine.add_remote(BLUE, IpAddr::from((0x0a00_0001 + n).to_be_bytes())).unwrap_or_else(|e| {
                assert_eq!((e, n), (RemoteError::NetworkFull(REMOTES_MAX), REMOTES_MAX as u32 - 2));
                engine.add_remote(RED, IpAddr::from((0x0a00_0001 + n).to_be_bytes())).unwrap();
            });
            if engine.remotes.counts(BLUE).known == REMOTES_MAX {
                break;
            }
        }
        while engine
            .add_remote(RED, IpAddr::from((0x0b00_0000 + engine.remotes.places.len() as u32).to_be_bytes()))
            .is_ok()
        {}
        assert_eq!(engine.remotes.places.len(), 2 + REMOTES_LATER);
        engine.remotes.capacity = engine.remotes.places.len(); // as if others had been discovered
        let two = id(&engine, 2);
        let hop = NextHop { uplink: UplinkId(0), destination: MacAddr([2; 6]), source: MacAddr([4; 6]) };
        let ways = [(two, SourceId(0), vec![hop.path(address(1), 1500)])];
        engine.set_paths(ways.clone());
        assert!(has_way(&engine, two));
        assert!(engine.fdb.set_fixed(BLUE, MacAddr([2; 6]), crate::fdb::Destination::Remote(two)));
        engine.remove_remote(BLUE, address(2)).unwrap();
        engine.set_paths(ways); // asked for before, answered now
        assert!(!has_way(&engine, two));
        until_gone(&mut engine);
        assert_eq!(engine.fdb.lookup(BLUE, MacAddr([2; 6])), None, "swept");
        engine.add_remote(RED, address(200)).unwrap();
        assert_eq!(id(&engine, 200), two);
        assert_eq!(
            (engine.tables.remote_by_ipv4([192, 0, 2, 200].into()), has_way(&engine, two)),
            (Some(two), false)
        );
        assert!(!engine.tables.networks[0].has_remote(two) && engine.tables.networks[1].has_remote(two));
        assert_eq!(engine.add_remote(RED, address(201)), Err(RemoteError::Full(2 + REMOTES_LATER)));
    }

    #[test]
    fn discovered_remotes_are_bounded_and_forgotten_when_silent() {
        let mut engine = engine();
        let stranger =
            |n: u32| Stranger { network: RED, address: IpAddr::from((0x0a00_0000 + n).to_be_bytes()) };
        let noted = DISCOVERED_MAX as u32 + 9;
        for (turn, n) in (1..=noted).enumerate() {
            engine.tables.strangers.note(stranger(n), 0);
            if (turn + 1) % strangers::CAPACITY == 0 || n == noted {
                let generation = engine.remotes_generation();
                engine.settle_remotes();
                assert!(engine.remotes_generation() - generation <= 1, "one publication for all");
            }
        }
        assert_eq!(engine.discovered(RED), (DISCOVERED_MAX, 9));
        for known in [2, 3, 1] {
            engine.tables.strangers.note(Stranger { network: BLUE, address: address(known) }, 0);
        }
        engine.settle_remotes();
        assert_eq!(engine.discovered(BLUE), (0, 0), "it takes no others");
        assert_eq!(engine.plan().networks[1].remotes, [address(3)]);
        let network = &engine.tables.networks[1];
        let (flooded, first) = (network.remotes.len(), engine.remotes.by_address[&stranger(1).address]);
        assert!(flooded == 1 && network.has_remote(first));
        // One that is added stays; so does one that was heard of.
        engine.add_remote(RED, stranger(2).address).unwrap();
        assert_eq!(
            (engine.tables.networks[1].remotes.len(), engine.discovered(RED).0),
            (2, DISCOVERED_MAX - 1)
        );
        engine.workers[1].counters.hear(first, 400);
        engine.forget_silent(316);
        assert_eq!(
            engine.discovered(RED).0,
            DISCOVERED_MAX - 1,
            "300 s of ageing, and two rounds of its hand"
        );
        for call in 1..=DISCOVERED_MAX.div_ceil(FORGOTTEN_MAX) {
            let generation = engine.remotes_generation();
            engine.forget_silent(400);
            assert_eq!(engine.remotes_generation() - generation, 1, "one publication for all");
            assert_eq!(
                engine.discovered(RED).0,
                (DISCOVERED_MAX - 1).saturating_sub(call * FORGOTTEN_MAX).max(1)
            );
        }
        until_gone(&mut engine);
        assert_eq!(engine.discovered(RED).0, 1);
        assert_eq!(engine.members().filter(|member| member.network == RED).count(), 3);
        engine.forget_silent(717);
        until_gone(&mut engine);
        assert_eq!(engine.discovered(RED).0, 0);
        engine.tables.strangers.note(stranger(1), 717);
        engine.settle_remotes();
        assert_eq!(engine.discovered(RED).0, 1, "and found again");
    }

    #[test]
    fn who_was_removed_is_not_discovered_again_until_added() {
        let mut engine = engine();
        find(&mut engine, RED, 1..2);
        let address = IpAddr::from([10, 0, 0, 1]);
        engine.remove_remote(RED, address).unwrap();
        until_gone(&mut engine);
        find(&mut engine, RED, 1..3);
        assert_eq!((engine.discovered(RED).0, engine.barred().count()), (1, 1));
        assert_eq!(*engine.tables.networks[1].barred, [address]);
        engine.add_remote(RED, address).unwrap();
        assert!(engine.barred().count() == 0 && engine.tables.networks[1].barred.is_empty());
        // Where not any may send, there is nothing to bar.
        engine.remove_remote(BLUE, self::address(2)).unwrap();
        assert_eq!(engine.barred().count(), 0);
    }

    /// As if they had sent.
    fn find(engine: &mut Engine, network: NetworkId, numbers: std::ops::Range<u32>) {
        for n in numbers {
            let address = IpAddr::from((0x0a00_0000 + n).to_be_bytes());
            engine.tables.strangers.note(Stranger { network, address }, n);
            engine.settle_remotes();
        }
    }

    #[test]
    fn those_who_send_from_many_addresses_leave_room_for_others() {
        let mut engine = engine();
        engine.plan.networks[0].any_remote = true;
        let room = DISCOVERED_MAX as u32;
        find(&mut engine, RED, 0..room + 1);
        find(&mut engine, BLUE, 0..room); // the same
        assert_eq!(
            (engine.remotes.found, engine.discovered(RED), engine.discovered(BLUE).1),
            (256, (256, 1), 0)
        );
        // The operator has all of the room that is his.
        assert_eq!(engine.remotes.known_max, 2 + REMOTES_LATER);
        engine.add_remote(RED, [10, 0, 0, 1].into()).unwrap();
        assert_eq!((engine.remotes.found, engine.discovered(RED).0), (255, 255));
        find(&mut engine, RED, room..room + 3);
        assert_eq!((engine.remotes.found, engine.discovered(RED)), (256, (256, 3)));
        // Some give way: behind which no address is, which were silent for longest, and not those of another network.
        let [busy, held] =
            [[10, 0, 0, 2], [10, 0, 0, 0]].map(|address| engine.remotes.by_address[&address.into()]);
        engine.workers[0].counters.hear(busy, 15);
        engine.fdb.learn(RED, MacAddr([2; 6]), held, 0, 16);
        engine.make_way(QUIET_S - 1);
        assert_eq!(engine.discovered(RED).0, 256, "it is too soon");
        find(&mut engine, RED, 900..901);
        engine.make_way(20);
        until_gone(&mut engine);
        assert_eq!((engine.discovered(RED).0, engine.discovered(BLUE).0), (256 - GIVE_WAY_MAX, 256));
        let has = |engine: &Engine, remote| engine.tables.networks[1].has_remote(remote);
        assert!(has(&engine, busy) && has(&engine, held));
        engine.make_way(30);
        assert_eq!(engine.discovered(RED).0, 256 - GIVE_WAY_MAX, "nobody has asked again");
        find(&mut engine, RED, 901..902);
        assert_eq!(engine.discovered(RED).0, 256 - GIVE_WAY_MAX + 1);
    }

    #[test]
    fn while_a_worker_does_not_obey_no_id_is_free() {
        let mut engine = engine();
        engine.remove_remote(BLUE, address(2)).unwrap();
        let two = id(&engine, 2);
        // As if a worker had not taken its orders.
        engine.workers[1].outbox.push_back(crate::mailbox::Order::Drain { number: 0 });
        for _ in 0..100 {
            engine.settle_remotes();
        }
        assert!(
            engine.remote_address(two).is_some() && matches!(engine.remotes.step, Step::Grace(Grace::Tables))
        );
        until_gone(&mut engine);
        assert_eq!(engine.remote_address(two), None);
    }
}
