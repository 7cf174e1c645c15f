//! Networks and endpoints that come and go while frames flow: a batch of them at once, with one publication. Called by the engine.
//!
//! What comes is in force when all workers have taken the tables. What goes is gone after a grace (`grace.rs`): until then its place, by which frames
//! that are under way name it, is nobody's. An address that moves from one place to another within a change is found at the new one a moment
//! before the tables say so: if that has just come as well, packets for it are flooded until then, as for an address that is not known.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::grace::Grace;
use super::remotes::{self, RemoteError};
use super::{Engine, Presence, WorkerHandle, smallest_mtu};
use crate::fdb::Destination;
use crate::mailbox::Order;
use crate::plan::{EndpointPlan, NetworkPlan, PlaceId, Plan};
use crate::stats::{EndpointStats, NetworkStats};
use crate::tables::{Tables, overhead};
use crate::tenants::room_for;
use crate::types::{EndpointId, MacAddr, NetworkId, Vni};
use crate::xsk::XskError;

/// How often control looks while something goes.
const LOOK: Duration = Duration::from_millis(1);

/// What is to be there, or not: all of it at once. A place that is free gets what stands there; one that is taken gets something else, or
/// becomes free with `None`.
#[derive(Clone, Default, Debug)]
pub struct Change {
    /// Networks, by place. One that is there can go, and not become another one.
    pub networks: Vec<(NetworkId, Option<NetworkPlan>)>,
    /// Endpoints, by place, each with all its stations. One whose network or `memif` is another one than before is another endpoint: it
    /// needs another place.
    pub endpoints: Vec<(EndpointId, Option<EndpointPlan>)>,
}

/// Why a change was not made: nothing of it was. One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangeError {
    /// The place of this network is not free, or there is none.
    NetworkPlace(NetworkId),
    /// The place of this endpoint is not free for it, or there is none, or the change has it twice.
    EndpointPlace(EndpointId),
    /// The endpoint's network is not there, or goes.
    NoSuchNetwork(EndpointId),
    /// Endpoints stay in a network that is to go.
    NotEmpty(NetworkId),
    /// A rule names what is to go.
    Ruled(usize),
    /// Another network has the number.
    Vni(Vni),
    /// Another endpoint of the network has the address, or another station of this one.
    Mac(EndpointId, MacAddr),
    /// The address is fixed behind a remote.
    Fixed(EndpointId, MacAddr),
    /// A remote of a new network cannot be one.
    Remote(NetworkId, RemoteError),
    /// A fixed address of a new network is not behind one of its remotes.
    FixedBehind(NetworkId, MacAddr),
    /// More addresses would be fixed behind remotes than there is room for.
    FixedFull(NetworkId),
    /// The network sends from an address that is not ours.
    Local(NetworkId, IpAddr),
    /// The network's packets do not fit the uplinks, or, where the uplinks have no multi-buffer, a chunk.
    Mtu {
        /// Which.
        network: NetworkId,
        /// It would have to be this at most, in bytes.
        most: u32,
    },
    /// All networks together would learn more addresses than there is room for.
    FdbLimit {
        /// Which.
        network: NetworkId,
        /// So many are left.
        left: usize,
    },
    /// There would be more stations of endpoints than there is room for, from this one on.
    StationsFull {
        /// The endpoint whose it is.
        endpoint: EndpointId,
        /// Its address.
        mac: MacAddr,
        /// So many can be there.
        most: usize,
    },
    /// The forwarding database has no room for an address, where it would have to stand.
    FdbFull(EndpointId, MacAddr),
    /// A program in a driver was not told of a network.
    Steering(String),
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ChangeError::NetworkPlace(id) => write!(f, "place {} is not free for a network", id.0),
            ChangeError::EndpointPlace(id) => write!(f, "place {} is not free for this endpoint", id.0),
            ChangeError::NoSuchNetwork(_) => f.write_str("its network is not there"),
            ChangeError::NotEmpty(_) => {
                f.write_str("it has endpoints: remove them first, or in the same change")
            }
            ChangeError::Ruled(rule) => {
                write!(f, "rules[{rule}] names it: replace the rules first (`peregrine rules`)")
            }
            ChangeError::Vni(vni) => write!(f, "another network has VNI {vni}"),
            ChangeError::Mac(_, mac) => write!(f, "another endpoint of the network has {mac}"),
            ChangeError::Fixed(_, mac) => {
                write!(f, "{mac} is fixed behind a remote of the network: `peregrine fdb` shows it")
            }
            ChangeError::Remote(_, error) => error.fmt(f),
            ChangeError::FixedBehind(_, mac) => {
                write!(f, "{mac} is to be fixed behind an address that is no remote of the network")
            }
            ChangeError::FixedFull(_) => f.write_str(
                "there is no room for so many static_macs of networks that come: restart with these in the config",
            ),
            ChangeError::Local(_, local) => write!(f, "{local} is no `local` of an uplink"),
            ChangeError::Mtu { most, .. } => {
                write!(f, "its MTU does not fit the uplinks: {most} would")
            }
            ChangeError::FdbLimit { left, .. } => write!(
                f,
                "its fdb_limit is more than is left for networks that come: {left}; raise capacity.addresses and restart"
            ),
            ChangeError::StationsFull { mac, most, .. } => write!(
                f,
                "there is no room for {mac}: {most} addresses of endpoints can be there; raise capacity.endpoints and restart"
            ),
            ChangeError::FdbFull(_, mac) => write!(
                f,
                "the forwarding database has no room for {mac}: flush learned addresses and try again, or give it another one"
            ),
            ChangeError::Steering(why) => f.write_str(why),
        }
    }
}

impl std::error::Error for ChangeError {}

/// What the engine knows of comings and goings.
#[derive(Debug)]
pub(super) struct Lives {
    networks: Vacant<NetworkId>,
    endpoints: Vacant<EndpointId>,
    /// Those that go now,
    leaving: Leaving,
    grace: Grace,
    /// and those that are next.
    next: Leaving,
    /// Networks whose grace is over, but which have remotes that leave.
    lingering: Vec<NetworkId>,
    /// Learned addresses that all networks may have together.
    pub(super) addresses_max: usize,
    /// How many stations of endpoints there are, and may be.
    stations: usize,
    stations_max: usize,
    /// How many endpoints each network has,
    counts: Vec<usize>,
    /// and how many the workers' lists have room for.
    rooms: Vec<usize>,
    /// What was counted for those who had the places before.
    networks_before: HashMap<NetworkId, NetworkStats>,
    endpoints_before: HashMap<EndpointId, EndpointStats>,
}

#[derive(Default, Debug)]
struct Leaving {
    networks: Vec<NetworkId>,
    endpoints: Vec<EndpointId>,
}

impl Leaving {
    fn is_empty(&self) -> bool {
        self.networks.is_empty() && self.endpoints.is_empty()
    }
}

/// Places that nobody has, the one that was freed last at the end: it rests as long as it can.
#[derive(Debug)]
struct Vacant<I> {
    /// Free ones, and some that were taken out of turn.
    queue: VecDeque<I>,
    /// By place.
    states: Vec<State>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct State {
    is_taken: bool,
    /// It stands in the queue.
    is_queued: bool,
}

impl<I: PlaceId> Vacant<I> {
    fn new(places: usize, is_taken: impl Fn(I) -> bool) -> Vacant<I> {
        let mut vacant = Vacant { queue: VecDeque::new(), states: Vec::with_capacity(places) };
        for id in (0..places).map(I::at) {
            let is_taken = is_taken(id);
            vacant.states.push(State { is_taken, is_queued: !is_taken });
            vacant.queue.extend((!is_taken).then_some(id));
        }
        vacant
    }

    fn is_free(&self, id: I) -> bool {
        self.states.get(id.place()).is_some_and(|state| !state.is_taken)
    }

    fn iter(&self) -> impl Iterator<Item = I> + '_ {
        self.queue.iter().copied().filter(|id| self.is_free(*id))
    }

    fn take(&mut self, id: I) {
        if let Some(state) = self.states.get_mut(id.place()) {
            state.is_taken = true;
        }
        while let Some(first) = self.queue.pop_front() {
            if self.is_free(first) {
                self.queue.push_front(first);
                return;
            }
            if let Some(state) = self.states.get_mut(first.place()) {
                state.is_queued = false;
            }
        }
    }

    fn free(&mut self, id: I) {
        let Some(state) = self.states.get_mut(id.place()) else { return };
        state.is_taken = false;
        if !std::mem::replace(&mut state.is_queued, true) {
            self.queue.push_back(id);
        }
    }
}

impl Lives {
    pub(super) fn new(plan: &Plan, addresses_max: usize) -> Lives {
        let mut counts = vec![0; plan.networks_max()];
        for endpoint in plan.endpoints.values() {
            if let Some(count) = counts.get_mut(endpoint.network.index()) {
                *count += 1;
            }
        }
        Lives {
            networks: Vacant::new(plan.networks_max(), |id| plan.network(id).is_some()),
            endpoints: Vacant::new(plan.endpoints_max(), |id| plan.endpoint(id).is_some()),
            leaving: Leaving::default(),
            grace: Grace::default(),
            next: Leaving::default(),
            lingering: Vec::new(),
            addresses_max,
            stations: plan.endpoints.values().map(|endpoint| endpoint.stations().count()).sum(),
            stations_max: plan.stations_max(),
            rooms: counts.iter().copied().map(room_for).collect(),
            counts,
            networks_before: HashMap::new(),
            endpoints_before: HashMap::new(),
        }
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        let is_idle = self.leaving.is_empty() && self.next.is_empty() && self.lingering.is_empty();
        (!is_idle).then(|| Instant::now() + LOOK)
    }

    /// How many endpoints a network has.
    fn endpoints_of(&self, id: NetworkId) -> usize {
        self.counts.get(id.index()).copied().unwrap_or(0)
    }

    /// What was counted for others who had this place before.
    pub(super) fn network_before(&self, id: NetworkId) -> Option<&NetworkStats> {
        self.networks_before.get(&id)
    }

    /// The same of an endpoint.
    pub(super) fn endpoint_before(&self, id: EndpointId) -> Option<&EndpointStats> {
        self.endpoints_before.get(&id)
    }
}

/// A place of the forwarding database as one number.
fn key_of((network, mac): (NetworkId, MacAddr)) -> u64 {
    u64::from(network.0) << 48 | mac.to_u64()
}

/// The first that has a key which another one before it has: sorted, since thousands come at once.
fn second_of<K: Ord + Copy, V: Copy>(keyed: impl Iterator<Item = (K, V)>) -> Option<(K, V)> {
    let mut sorted: Vec<(K, usize, V)> =
        keyed.enumerate().map(|(place, (key, of))| (key, place, of)).collect();
    sorted.sort_unstable_by_key(|(key, place, _)| (*key, *place));
    let seconds = sorted.windows(2).filter_map(|pair| match pair {
        [one, other] if one.0 == other.0 => Some(*other),
        _ => None,
    });
    seconds.min_by_key(|(_, place, _)| *place).map(|(key, _, of)| (key, of))
}

/// Where the forwarding database has an endpoint's stations.
fn places_of(endpoint: &EndpointPlan) -> impl Iterator<Item = (NetworkId, MacAddr)> + Clone {
    endpoint.stations().map(|station| (endpoint.network, station.mac))
}

impl Engine {
    /// Places that are free for networks now, in the order in which they should be used.
    pub fn vacant_networks(&self) -> impl Iterator<Item = NetworkId> + '_ {
        self.lives.networks.iter()
    }

    /// Places that are free for endpoints now, in the order in which they should be used.
    pub fn vacant_endpoints(&self) -> impl Iterator<Item = EndpointId> + '_ {
        self.lives.endpoints.iter()
    }

    /// Makes a change: the workers forward by all of it from their next turn on, or by nothing of it. What goes is gone when its place is
    /// [vacant](Self::vacant_endpoints) again, some turns later; a tenant that is attached there is detached.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed then.
    pub fn change(&mut self, change: Change) -> Result<(), ChangeError> {
        self.check_change(&change)?;
        self.enter_addresses(&change)?;
        if let Err(error) = self.steer(&change) {
            self.leave_addresses(&change);
            return Err(error);
        }
        let Change { networks, endpoints } = change;
        let mut tables = Tables::clone(&self.tables);
        self.change_networks(networks, &mut tables);
        self.change_endpoints(endpoints, &mut tables);
        self.publish(tables);
        Ok(())
    }

    /// Every worker forwards by the last change, and serves whom it was told to serve.
    pub fn is_in_force(&self) -> bool {
        self.has_everybody_obeyed()
    }

    /// Gives workers the orders that there was no room for before. [`poll`](Self::poll) does it, too: this is for who waits for what was asked for.
    pub fn send_orders(&mut self) {
        self.workers.iter_mut().for_each(WorkerHandle::flush);
    }

    /// Whether [`change`](Self::change) would make it, but for what is only found out by doing it: a forwarding database that has no room
    /// where an address would stand, and a driver that was not told.
    ///
    /// # Errors
    /// [`ChangeError`].
    pub fn check_change(&self, change: &Change) -> Result<(), ChangeError> {
        let networks: BTreeMap<NetworkId, Option<&NetworkPlan>> =
            change.networks.iter().map(|(id, network)| (*id, network.as_ref())).collect();
        for (&id, network) in &networks {
            let is_right = match network {
                Some(_) => self.lives.networks.is_free(id),
                None => self.plan.network(id).is_some(),
            };
            if !is_right {
                return Err(ChangeError::NetworkPlace(id));
            }
        }
        let mut seen = HashSet::new();
        if let Some((id, _)) = change.networks.iter().find(|(id, _)| !seen.insert(*id)) {
            return Err(ChangeError::NetworkPlace(*id));
        }
        self.check_new_networks(&networks)?;
        self.check_endpoints(change, &networks)?;
        self.check_rules(change)
    }

    fn check_new_networks(
        &self,
        networks: &BTreeMap<NetworkId, Option<&NetworkPlan>>,
    ) -> Result<(), ChangeError> {
        let new = || networks.iter().filter_map(|(id, network)| Some((*id, (*network)?)));
        if new().next().is_none() {
            return Ok(());
        }
        let stays = self.plan.networks.iter().filter(|(id, _)| !networks.contains_key(id));
        let mut vnis: HashSet<Vni> = stays.clone().map(|(_, network)| network.vni).collect();
        let mut left = self
            .lives
            .addresses_max
            .saturating_sub(stays.map(|(_, network)| network.fdb_limit as usize).sum());
        let mut remotes = BTreeSet::new();
        for (id, network) in new() {
            if !vnis.insert(network.vni) {
                return Err(ChangeError::Vni(network.vni));
            }
            left = left
                .checked_sub(network.fdb_limit as usize)
                .ok_or(ChangeError::FdbLimit { network: id, left })?;
            if let Some(local) = network.local
                && !self.tables.sources.contains(&Some(local))
            {
                return Err(ChangeError::Local(id, local));
            }
            self.check_mtu_of(id, network)?;
            for &address in &network.remotes {
                self.check_remote_of(network, address).map_err(|error| ChangeError::Remote(id, error))?;
                remotes.insert(address);
            }
            if let Some(fixed) =
                network.static_macs.iter().find(|fixed| !network.remotes.contains(&fixed.remote))
            {
                return Err(ChangeError::FixedBehind(id, fixed.mac));
            }
        }
        let first = new().next().map_or(NetworkId(0), |(id, _)| id);
        let fixed: usize = new().map(|(_, network)| network.static_macs.len()).sum();
        if self.fixed.len() + fixed > self.fixed_max {
            return Err(ChangeError::FixedFull(first));
        }
        self.check_room_for(&remotes).map_err(|error| ChangeError::Remote(first, error))
    }

    /// It fits the uplinks and, where they have no multi-buffer, a chunk.
    fn check_mtu_of(&self, id: NetworkId, network: &NetworkPlan) -> Result<(), ChangeError> {
        if self.uplinks.is_empty() {
            return Ok(()); // nothing to fit where frames come from memory
        }
        let by_mtu = smallest_mtu(&self.infos).map_or(u32::MAX, |uplink| {
            uplink.mtu.saturating_sub(overhead(network, &self.plan.uplinks) as u32)
        });
        let by_chunk = if self.infos.iter().all(|info| info.multi_buffer) {
            u32::MAX
        } else {
            let chunk = self.plan.uplinks.first().map_or(0, |uplink| uplink.chunk_size);
            super::mtu_max(network, &self.plan, chunk)
        };
        let most = by_mtu.min(by_chunk);
        if u32::from(network.mtu) > most { Err(ChangeError::Mtu { network: id, most }) } else { Ok(()) }
    }

    fn check_endpoints(
        &self,
        change: &Change,
        networks: &BTreeMap<NetworkId, Option<&NetworkPlan>>,
    ) -> Result<(), ChangeError> {
        let mut goes = Vec::new();
        let mut stations = self.lives.stations;
        for (id, now) in &change.endpoints {
            let before = self.plan.endpoint(*id);
            let is_same = |now: &EndpointPlan, before: &EndpointPlan| {
                now.network == before.network && now.port == before.port
            };
            let is_right = match (before, now) {
                (Some(before), Some(now)) => is_same(now, before),
                (Some(_), None) => true,
                (None, Some(_)) => self.lives.endpoints.is_free(*id),
                (None, None) => false,
            };
            if !is_right {
                return Err(ChangeError::EndpointPlace(*id));
            }
            stations = stations.saturating_sub(before.map_or(0, |before| 1 + before.more.len()));
            goes.extend(before.into_iter().flat_map(places_of).map(key_of));
        }
        goes.sort_unstable();
        let ids = change.endpoints.iter().map(|(id, _)| *id);
        if let Some((id, _)) = second_of(ids.clone().zip(ids)) {
            return Err(ChangeError::EndpointPlace(id));
        }
        let mut comes = Vec::with_capacity(change.endpoints.len());
        for (id, now) in change.endpoints.iter().filter_map(|(id, now)| Some((*id, now.as_ref()?))) {
            let is_there = match networks.get(&now.network) {
                Some(network) => network.is_some(),
                None => self.plan.network(now.network).is_some(),
            };
            if !is_there {
                return Err(ChangeError::NoSuchNetwork(id));
            }
            let new = networks.get(&now.network).copied().flatten();
            for (network, mac) in places_of(now) {
                let key = key_of((network, mac));
                let is_free = !matches!(self.fdb.lookup(network, mac), Some(Destination::Local(_)))
                    || goes.binary_search(&key).is_ok();
                if !is_free {
                    return Err(ChangeError::Mac(id, mac));
                }
                comes.push((key, (id, mac)));
                let is_new_fixed =
                    new.is_some_and(|new| new.static_macs.iter().any(|fixed| fixed.mac == mac));
                if is_new_fixed || self.fixed.contains_key(&(network, mac)) {
                    return Err(ChangeError::Fixed(id, mac));
                }
                let most = self.lives.stations_max;
                if stations + comes.len() > most {
                    return Err(ChangeError::StationsFull { endpoint: id, mac, most });
                }
            }
        }
        if let Some((_, (id, mac))) = second_of(comes.into_iter()) {
            return Err(ChangeError::Mac(id, mac));
        }
        // None of them stays in a network that goes, and each is named once: so they are all if they are as many.
        for (&id, _) in networks.iter().filter(|(_, network)| network.is_none()) {
            let is_its = |(endpoint, _): &&(EndpointId, Option<EndpointPlan>)| {
                self.plan.endpoint(*endpoint).is_some_and(|before| before.network == id)
            };
            if change.endpoints.iter().filter(is_its).count() < self.lives.endpoints_of(id) {
                return Err(ChangeError::NotEmpty(id));
            }
        }
        Ok(())
    }

    /// Rules know networks and endpoints by their places.
    fn check_rules(&self, change: &Change) -> Result<(), ChangeError> {
        if self.plan.classes.rules.is_empty() {
            return Ok(());
        }
        let networks: HashSet<NetworkId> =
            change.networks.iter().filter(|(_, now)| now.is_none()).map(|(id, _)| *id).collect();
        let endpoints: HashSet<EndpointId> =
            change.endpoints.iter().filter(|(_, now)| now.is_none()).map(|(id, _)| *id).collect();
        let names = |rule: &crate::plan::RulePlan| {
            rule.network.is_some_and(|id| networks.contains(&id))
                || rule.endpoint.is_some_and(|id| endpoints.contains(&id))
        };
        match self.plan.classes.rules.iter().position(names) {
            Some(rule) => Err(ChangeError::Ruled(rule)),
            None => Ok(()),
        }
    }

    /// The addresses of endpoints that come, in the forwarding database: by tables that do not know these, they count for nothing.
    fn enter_addresses(&mut self, change: &Change) -> Result<(), ChangeError> {
        for (id, now) in &change.endpoints {
            for (network, mac) in now.iter().flat_map(places_of) {
                if !self.fdb.set_fixed(network, mac, Destination::Local(*id)) {
                    self.leave_addresses(change);
                    return Err(ChangeError::FdbFull(*id, mac));
                }
            }
        }
        Ok(())
    }

    /// Undoes that.
    fn leave_addresses(&mut self, change: &Change) {
        let mut stay = HashSet::new();
        for (id, _) in &change.endpoints {
            for (network, mac) in self.plan.endpoint(*id).into_iter().flat_map(places_of) {
                // In place of what was entered, or in its own place still: it needs no room.
                let _had_room = self.fdb.set_fixed(network, mac, Destination::Local(*id));
                stay.insert((network, mac));
            }
        }
        for (id, now) in &change.endpoints {
            for (network, mac) in now.iter().flat_map(places_of) {
                let is_entered = self.fdb.lookup(network, mac) == Some(Destination::Local(*id));
                if is_entered && !stay.contains(&(network, mac)) {
                    self.fdb.remove(network, mac);
                }
            }
        }
    }

    /// Frames of networks that go pass to the kernel from now on, and those of networks that come to us.
    fn steer(&mut self, change: &Change) -> Result<(), ChangeError> {
        if change.networks.is_empty() {
            return Ok(()); // and what there is of networks is not gone through
        }
        let come = change.networks.iter().filter_map(|(_, now)| now.as_ref());
        let come: HashMap<Vni, Option<u16>> = come.map(|network| (network.vni, network.port)).collect();
        let gone = change.networks.iter().filter(|(_, now)| now.is_none());
        let gone = gone.filter_map(|(id, _)| self.plan.network(*id).map(|network| network.vni));
        let before: HashMap<Vni, Option<u16>> =
            self.plan.networks.values().map(|network| (network.vni, network.port)).collect();
        // One that comes again is served all the time.
        let gone: Vec<Vni> = gone.filter(|vni| !come.contains_key(vni)).collect();
        let told = gone
            .iter()
            .try_for_each(|vni| self.serve(*vni, None))
            .and_then(|()| come.iter().try_for_each(|(vni, port)| self.serve(*vni, Some(*port))));
        if told.is_err() {
            for vni in gone.into_iter().chain(come.into_keys()) {
                // Best effort: it was so a moment ago.
                let _told = self.serve(vni, before.get(&vni).copied());
            }
        }
        told.map_err(|error| ChangeError::Steering(error.to_string()))
    }

    /// Frames of this network are steered, if they come to its own port or the uplink's; or not any more.
    fn serve(&mut self, vni: Vni, network: Option<Option<u16>>) -> Result<(), XskError> {
        let uplinks = self.uplinks.iter_mut().zip(&self.plan.uplinks);
        for (uplink, plan) in uplinks {
            match network {
                Some(own) => uplink.serve(vni, own.unwrap_or(plan.port))?,
                None => uplink.release(vni)?,
            }
        }
        Ok(())
    }

    /// In the plan and in tables to be published.
    fn change_networks(&mut self, networks: Vec<(NetworkId, Option<NetworkPlan>)>, tables: &mut Tables) {
        if networks.is_empty() {
            return;
        }
        let mut changed = Vec::with_capacity(networks.len());
        let mut members = remotes::Change::default();
        // Those that come are first: a remote that one of them takes over from one that goes stays.
        let (come, gone): (Vec<_>, Vec<_>) = networks.into_iter().partition(|(_, now)| now.is_some());
        for (id, now) in come.into_iter().chain(gone) {
            match now {
                None => {
                    self.let_out_remotes(id, &mut members);
                    changed.push((id, self.plan.networks.set(id, None)));
                    self.lives.next.networks.push(id);
                }
                Some(network) => {
                    self.lives.networks.take(id);
                    let NetworkPlan { remotes, static_macs, .. } = network.clone();
                    changed.push((id, self.plan.networks.set(id, Some(network))));
                    self.note_before_network(id);
                    self.let_in_remotes(id, &remotes, &mut members);
                    for fixed in static_macs {
                        self.fix(id, &fixed);
                    }
                }
            }
        }
        tables.set_networks(&changed, &self.plan);
        self.write_members(&members, tables);
        self.write_rules(tables);
    }

    fn fix(&mut self, network: NetworkId, fixed: &crate::plan::StaticMac) {
        if let Some(remote) = self.remote_id(fixed.remote)
            && self.fdb.set_fixed(network, fixed.mac, Destination::Remote(remote))
        {
            self.fixed.insert((network, fixed.mac), remote);
        }
    }

    /// The same of endpoints.
    fn change_endpoints(&mut self, endpoints: Vec<(EndpointId, Option<EndpointPlan>)>, tables: &mut Tables) {
        if endpoints.is_empty() {
            return;
        }
        let mut stay: Vec<u64> = Vec::with_capacity(endpoints.len());
        let mut changed: Vec<(EndpointId, Option<EndpointPlan>)> = Vec::with_capacity(endpoints.len());
        for (id, now) in endpoints {
            stay.extend(now.iter().flat_map(places_of).map(key_of));
            let is_gone = now.is_none();
            if is_gone {
                self.detach(id);
                self.lives.next.endpoints.push(id);
            }
            let before = self.plan.endpoints.set(id, now);
            match &before {
                None => {
                    self.lives.endpoints.take(id);
                    self.announcing.forget(id);
                    self.note_before_endpoint(id);
                }
                Some(before) if !is_gone => self.announce_changed(id, before),
                Some(_) => {}
            }
            self.count(before.as_ref(), id);
            changed.push((id, before));
        }
        let changes = changed.iter().map(|(id, before)| (*id, before.as_ref(), self.plan.endpoint(*id)));
        tables.set_endpoints(changes, &self.plan);
        // Rules that name an endpoint know its addresses.
        let is_moved = |(id, before): &(EndpointId, Option<EndpointPlan>)| {
            before
                .as_ref()
                .zip(self.plan.endpoint(*id))
                .is_some_and(|(old, now)| !places_of(old).eq(places_of(now)))
                && self.plan.classes.rules.iter().any(|rule| rule.endpoint == Some(*id))
        };
        if changed.iter().any(is_moved) {
            self.write_rules(tables);
        }
        stay.sort_unstable();
        let before = changed.iter().filter_map(|(_, before)| before.as_ref()).flat_map(places_of);
        for (network, mac) in before.filter(|place| stay.binary_search(&key_of(*place)).is_err()) {
            self.fdb.remove(network, mac);
        }
        let touched: BTreeSet<NetworkId> = changed
            .iter()
            .filter_map(|(id, before)| Some(self.plan.endpoint(*id).or(before.as_ref())?.network))
            .collect();
        for network in touched {
            self.make_room(network);
        }
    }

    /// How many there are of everything, where this was there before.
    fn count(&mut self, before: Option<&EndpointPlan>, id: EndpointId) {
        let now = self.plan.endpoint(id);
        for (endpoint, is_now) in [(now, true), (before, false)] {
            let Some(endpoint) = endpoint else { continue };
            let stations = 1 + endpoint.more.len();
            let Some(count) = self.lives.counts.get_mut(endpoint.network.index()) else { continue };
            if is_now {
                *count += 1;
                self.lives.stations += stations;
            } else {
                *count -= 1;
                self.lives.stations -= stations;
            }
        }
    }

    /// The workers' lists of who is attached have room for all endpoints of a network, before those come.
    fn make_room(&mut self, network: NetworkId) {
        let needed = self.lives.endpoints_of(network);
        let Some(room) = self.lives.rooms.get_mut(network.index()).filter(|room| **room < needed) else {
            return;
        };
        *room = room_for(needed);
        for worker in self.workers.iter_mut().filter(|worker| worker.presence != Presence::Absent) {
            worker.send(Order::Room { network, room: Vec::with_capacity(*room) });
        }
    }

    /// What was counted so far at this place is not its.
    fn note_before_network(&mut self, id: NetworkId) {
        self.lives.networks_before.remove(&id);
        let before = self.network_stats_of(id);
        self.lives.networks_before.extend(before.map(|stats| (id, stats)));
    }

    /// The same.
    fn note_before_endpoint(&mut self, id: EndpointId) {
        self.lives.endpoints_before.remove(&id);
        let before = self.endpoint_stats_of(id).filter(|stats| !stats.is_nothing());
        self.lives.endpoints_before.extend(before.map(|stats| (id, stats)));
    }

    /// Goes on with what goes, as far as it can without waiting.
    pub(super) fn settle_lives(&mut self) {
        self.settle_lingering();
        if self.lives.leaving.is_empty() {
            if self.lives.next.is_empty() {
                return;
            }
            self.lives.leaving = std::mem::take(&mut self.lives.next);
            self.lives.grace = Grace::default();
        }
        let mut grace = std::mem::take(&mut self.lives.grace);
        if !self.go_on(&mut grace) {
            self.lives.grace = grace;
            return;
        }
        let Leaving { networks, endpoints } = std::mem::take(&mut self.lives.leaving);
        endpoints.iter().for_each(|id| self.lives.endpoints.free(*id));
        if !endpoints.is_empty() {
            let there = self.workers.iter_mut().filter(|worker| worker.presence != Presence::Absent);
            there.for_each(|worker| worker.send(Order::Vacated(endpoints.clone())));
        }
        self.lives.lingering.extend(networks);
        self.settle_lingering();
    }

    /// A network is gone when all its remotes are, and what was learned behind them.
    fn settle_lingering(&mut self) {
        if self.lives.lingering.is_empty() {
            return;
        }
        let lingering = std::mem::take(&mut self.lives.lingering);
        for id in lingering {
            if self.has_no_members(id) {
                self.lives.networks.free(id);
            } else {
                self.lives.lingering.push(id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use peregrine_memif::{ClientConfig, Interface, ServerConfig, SocketAddr, pair};

    use super::*;
    use crate::counters::DropReason;
    use crate::engine::{PlacementMode, TenantRings};
    use crate::pinned::usable_cores;
    use crate::plan::{Capacity, MemifPlan, RulePlan, StaticMac, Station, UplinkPlan, WorkerPlan};
    use crate::types::{Class, CoreId};

    const PATIENCE: Duration = Duration::from_secs(60);
    const BLUE: NetworkId = NetworkId(0);

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    fn network(name: &str, vni: u32) -> NetworkPlan {
        NetworkPlan { fdb_limit: 16, ..NetworkPlan::new(name, Vni::new(vni).unwrap()) }
    }

    fn endpoint(last: u8, network: NetworkId) -> EndpointPlan {
        let memif = MemifPlan::server(SocketAddr::Abstract("unused".into()), last.into());
        let plan = EndpointPlan::new(&format!("e{last}"), network, mac(last), memif);
        EndpointPlan { addresses: vec![[10, 0, 0, last].into()], announce: false, ..plan }
    }

    /// One network with one endpoint, and room for 3 and 4.
    fn engine(workers: usize) -> Engine {
        let blue = NetworkPlan { remotes: vec![[192, 0, 2, 2].into()], ..network("blue", 42) };
        let plan = Plan {
            workers: vec![WorkerPlan::on(CoreId(usable_cores()[0])); workers],
            placement: PlacementMode::Static,
            balance_threshold: 85,
            uplinks: vec![UplinkPlan { ring_size: 64, ..UplinkPlan::new("unused", [192, 0, 2, 1].into()) }],
            networks: vec![blue].into(),
            endpoints: vec![endpoint(1, BLUE)].into(),
            capacity: Capacity { networks: 3, endpoints: 4, addresses: 40 },
            pools: Default::default(),
            ..Plan::default()
        };
        Engine::replay(&plan, vec![]).unwrap()
    }

    fn until(engine: &mut Engine, what: &str, mut is_so: impl FnMut(&Engine) -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !is_so(engine) {
            assert!(Instant::now() < deadline, "{what}: {:?}", engine.lives);
            assert_eq!(engine.poll(), []);
            std::thread::yield_now();
        }
    }

    #[test]
    fn orders_that_a_mailbox_had_no_room_for_are_sent_soon() {
        let mut engine = engine(1);
        until(&mut engine, "it begins", Engine::is_in_force);
        engine.workers[0].outbox.push_back(Order::Drain { number: 0 });
        assert!(!engine.is_in_force());
        let soon = Instant::now() + Duration::from_millis(5);
        assert!(engine.deadline().is_some_and(|at| at < soon), "who polls by it would come late");
        engine.send_orders();
        until(&mut engine, "they are taken", Engine::is_in_force);
    }

    fn come(id: u16, last: u8) -> (EndpointId, Option<EndpointPlan>) {
        (EndpointId(id), Some(endpoint(last, BLUE)))
    }

    fn endpoints(endpoints: Vec<(EndpointId, Option<EndpointPlan>)>) -> Change {
        Change { endpoints, ..Change::default() }
    }

    fn attach(engine: &mut Engine, id: EndpointId) -> Interface {
        let (client, server) = pair(ClientConfig::default(), ServerConfig::default()).unwrap();
        engine.attach(id, TenantRings::new(server.rx, server.tx)).unwrap();
        client
    }

    /// From one tenant to another, the address alone saying where to.
    fn send(from: &mut Interface, source: u8, destination: u8) {
        let mut packet = [0; 60];
        packet[..6].copy_from_slice(&mac(destination).0);
        packet[6..12].copy_from_slice(&mac(source).0);
        packet[12..14].copy_from_slice(&[0x88, 0xb5]);
        from.tx[0].push(&packet).unwrap();
        from.tx[0].flush().unwrap();
    }

    fn takes(interface: &mut Interface) -> bool {
        interface.rx[0].pending().unwrap();
        let is_one = interface.rx[0].next_packet().is_some();
        interface.rx[0].release();
        is_one
    }

    #[test]
    fn what_comes_forwards_and_what_goes_leaves_nothing() {
        for workers in [1, 2] {
            let mut engine = engine(workers);
            let mut one = attach(&mut engine, EndpointId(0));
            assert_eq!(engine.vacant_endpoints().collect::<Vec<_>>(), [1, 2, 3].map(EndpointId));
            engine.change(endpoints(vec![come(1, 2), come(2, 3)])).unwrap();
            until(&mut engine, "in force", Engine::is_in_force);
            assert_eq!(engine.lives.endpoints_of(BLUE), 3);
            assert_eq!(engine.tables.answers.station(BLUE, [10, 0, 0, 3].into()), Some(mac(3)));
            let mut three = attach(&mut engine, EndpointId(2));
            until(&mut engine, "in force", Engine::is_in_force);
            send(&mut one, 1, 3);
            until(&mut engine, "a packet for the third", |_| takes(&mut three));
            until(&mut engine, "its count", |engine| engine.stats().endpoints[2].to_tenant.frames == 1);
            // It goes, under a packet, and another one gets its place when it is the only one.
            engine.change(endpoints(vec![come(3, 4)])).unwrap();
            engine.change(endpoints(vec![(EndpointId(2), None)])).unwrap();
            assert_eq!(engine.fdb.lookup(BLUE, mac(3)), None);
            assert_eq!(engine.tables.answers.station(BLUE, [10, 0, 0, 3].into()), None);
            assert_eq!(engine.home(EndpointId(2)), None);
            until(&mut engine, "a place", |engine| engine.vacant_endpoints().next().is_some());
            assert_eq!(engine.vacant_endpoints().collect::<Vec<_>>(), [EndpointId(2)]);
            engine.change(endpoints(vec![come(2, 5)])).unwrap();
            assert_eq!(engine.stats().endpoints[2].to_tenant.frames, 0, "that was another one");
            let mut five = attach(&mut engine, EndpointId(2));
            until(&mut engine, "in force", Engine::is_in_force);
            send(&mut one, 1, 5);
            until(&mut engine, "a packet for the fifth", |_| takes(&mut five));
            until(&mut engine, "its count", |engine| engine.stats().endpoints[2].to_tenant.frames == 1);
            let totals = engine.stop().totals;
            assert_eq!(totals.tenant_rx.frames, 2);
        }
    }

    #[test]
    fn an_endpoint_becomes_another_one_and_addresses_change_places_at_once() {
        let mut engine = engine(1);
        engine.change(endpoints(vec![come(1, 2)])).unwrap();
        let [mut first, mut second] = [endpoint(1, BLUE), endpoint(2, BLUE)];
        (first.mac, second.mac) = (second.mac, first.mac);
        (first.addresses, second.addresses) = (second.addresses, first.addresses);
        engine
            .change(endpoints(vec![(EndpointId(0), Some(first.clone())), (EndpointId(1), Some(second))]))
            .unwrap();
        assert_eq!(engine.fdb.lookup(BLUE, mac(2)), Some(Destination::Local(EndpointId(0))));
        assert_eq!(engine.fdb.lookup(BLUE, mac(1)), Some(Destination::Local(EndpointId(1))));
        assert_eq!(engine.tables.answers.station(BLUE, [10, 0, 0, 2].into()), Some(mac(2)));
        first.mac = mac(9);
        engine.change(endpoints(vec![(EndpointId(0), Some(first.clone()))])).unwrap();
        assert_eq!(engine.fdb.lookup(BLUE, mac(2)), None);
        first.port.memif_mut().unwrap().id += 1;
        let other = engine.change(endpoints(vec![(EndpointId(0), Some(first))]));
        assert_eq!(other, Err(ChangeError::EndpointPlace(EndpointId(0))), "that is another port");
    }

    fn station(last: u8) -> Station {
        Station { name: format!("s{last}"), mac: mac(last), addresses: vec![[10, 0, 0, last].into()] }
    }

    /// The first endpoint with these stations, in this order.
    fn stations(lasts: &[u8]) -> Change {
        let [first, more @ ..] = lasts else { panic!("none") };
        let plan = EndpointPlan { port: endpoint(1, BLUE).port, ..endpoint(*first, BLUE) };
        let more = more.iter().map(|last| station(*last)).collect();
        endpoints(vec![(EndpointId(0), Some(EndpointPlan { more, ..plan }))])
    }

    /// All that the engine knows of who is where.
    fn known(
        engine: &Engine,
        lasts: impl Iterator<Item = u8>,
    ) -> Vec<(u8, Option<Destination>, Option<MacAddr>)> {
        let of = |last: u8| {
            let answered = engine.tables.answers.station(BLUE, [10, 0, 0, last].into());
            (last, engine.fdb.lookup(BLUE, mac(last)), answered)
        };
        lasts.map(of).collect()
    }

    #[test]
    fn stations_come_and_go_behind_a_tenant_that_stays() {
        for workers in [1, 2] {
            let mut engine = engine(workers);
            let [mut tenant, mut other] = [attach(&mut engine, EndpointId(0)), {
                engine.change(endpoints(vec![come(1, 2)])).unwrap();
                attach(&mut engine, EndpointId(1))
            }];
            let (mut sent, mut spoofed, spoof) = (0, 0, DropReason::SourceSpoofed);
            // Two come; one goes; one becomes the first, and one comes; the one that was the first goes; all go but one that is new then.
            let steps: [&[u8]; 5] = [&[1, 7, 8], &[1, 8], &[8, 1, 9], &[8, 9], &[7]];
            for lasts in steps {
                engine.change(stations(lasts)).unwrap();
                until(&mut engine, "in force", Engine::is_in_force);
                for (last, found, answered) in known(&engine, [1, 7, 8, 9].into_iter()) {
                    let is_there = lasts.contains(&last);
                    assert_eq!(found, is_there.then_some(Destination::Local(EndpointId(0))), "{last}");
                    assert_eq!(answered, is_there.then_some(mac(last)));
                    send(&mut tenant, last, 2);
                    if is_there {
                        until(&mut engine, "what it sends", |_| takes(&mut other));
                        send(&mut other, 2, last);
                        until(&mut engine, "what is for it", |_| takes(&mut tenant));
                        sent += 2;
                    } else {
                        spoofed += 1;
                        until(&mut engine, "its refusal", |engine| {
                            engine.workers.iter().map(|it| it.counters.dropped.get(spoof)).sum::<u64>()
                                == spoofed
                        });
                    }
                }
                assert!(!takes(&mut tenant) && !takes(&mut other));
                let stats = engine.endpoint_stats_of(EndpointId(0)).unwrap();
                let more: Vec<MacAddr> = stats.more.iter().map(|station| station.mac).collect();
                assert_eq!(
                    [vec![stats.mac], more].concat(),
                    lasts.iter().map(|l| mac(*l)).collect::<Vec<_>>()
                );
            }
            let stats = engine.stop();
            assert!(stats.totals.conserved, "{stats:?}");
            assert_eq!((stats.totals.tenant_tx.frames, stats.totals.dropped), (sent, spoofed));
        }
    }

    #[test]
    fn a_station_goes_from_one_place_to_another_at_once_and_a_place_with_all_of_them() {
        let mut engine = engine(1);
        engine.change(stations(&[1, 7, 8])).unwrap();
        let mut second = endpoint(2, BLUE);
        second.more = vec![station(8)];
        let mut both = stations(&[7, 1]);
        both.endpoints.push((EndpointId(1), Some(second)));
        engine.change(both).unwrap();
        let at = |place| Some(Destination::Local(EndpointId(place)));
        let places: Vec<_> = known(&engine, [1, 7, 2, 8].into_iter()).iter().map(|known| known.1).collect();
        assert_eq!(places, [at(0), at(0), at(1), at(1)]);
        assert_eq!(engine.lives.stations, 4);
        engine.change(endpoints(vec![(EndpointId(0), None), (EndpointId(1), None)])).unwrap();
        assert_eq!((engine.lives.stations, engine.fdb.entries().count()), (0, 0));
        assert!(known(&engine, [1, 7, 2, 8].into_iter()).iter().all(|known| known.2.is_none()));
        until(&mut engine, "the places", |engine| engine.vacant_endpoints().count() == 4);
    }

    #[test]
    fn what_was_entered_for_a_change_that_is_not_made_is_taken_back() {
        let mut engine = engine(1);
        engine.change(stations(&[1, 7])).unwrap();
        engine.change(endpoints(vec![come(1, 2)])).unwrap();
        let before = known(&engine, 1..=9);
        // The seventh moves, the eighth and ninth come.
        let mut second = endpoint(9, BLUE);
        second.port = endpoint(2, BLUE).port;
        second.more = vec![station(7)];
        let mut change = stations(&[8, 1]);
        change.endpoints.push((EndpointId(1), Some(second)));
        engine.check_change(&change).unwrap();
        engine.enter_addresses(&change).unwrap();
        assert_ne!(known(&engine, 1..=9), before);
        engine.leave_addresses(&change);
        assert_eq!(known(&engine, 1..=9), before);
    }

    #[test]
    fn a_plan_begins_with_stations() {
        let blue = network("blue", 42);
        let mut first = endpoint(1, BLUE);
        first.more = (7..20).map(station).collect();
        let plan = Plan {
            workers: vec![WorkerPlan::on(CoreId(usable_cores()[0]))],
            uplinks: vec![UplinkPlan { ring_size: 64, ..UplinkPlan::new("unused", [192, 0, 2, 1].into()) }],
            networks: vec![blue].into(),
            endpoints: vec![first].into(),
            capacity: Capacity { networks: 1, endpoints: 2, addresses: 0 },
            ..Plan::default()
        };
        let mut engine = Engine::replay(&plan, vec![]).unwrap();
        let local = Some(Destination::Local(EndpointId(0)));
        assert!(known(&engine, 7..20).iter().all(|known| (known.1, known.2) == (local, Some(mac(known.0)))));
        // There is room for as many as the plan has, and no more.
        let full = ChangeError::StationsFull { endpoint: EndpointId(1), mac: mac(2), most: 14 };
        assert_eq!(engine.change(endpoints(vec![come(1, 2)])), Err(full));
        engine.change(stations(&[1])).unwrap();
        engine.change(endpoints(vec![come(1, 2)])).unwrap();
        assert!(known(&engine, 7..20).iter().all(|known| (known.1, known.2) == (None, None)));
    }

    #[test]
    fn a_network_comes_with_remotes_and_fixed_addresses_and_goes_with_them() {
        let mut engine = engine(2);
        let (red, far): (NetworkId, IpAddr) = (NetworkId(1), [192, 0, 2, 3].into());
        let fixed = StaticMac { mac: mac(9), remote: far, addresses: vec![[10, 0, 0, 9].into()] };
        let plan = NetworkPlan {
            remotes: vec![far, [192, 0, 2, 2].into()],
            static_macs: vec![fixed],
            ..network("red", 43)
        };
        let change = || Change {
            networks: vec![(red, Some(plan.clone()))],
            endpoints: vec![(EndpointId(1), Some(endpoint(1, red)))],
        };
        for _ in 0..3 {
            engine.change(change()).unwrap();
            let remote = engine.remote_id(far).unwrap();
            assert_eq!(engine.fdb.lookup(red, mac(9)), Some(Destination::Remote(remote)));
            assert_eq!(engine.tables.network_by_vni(Vni::new(43).unwrap()).unwrap().0, red);
            assert!(engine.tables.networks[1].has_remote(remote));
            assert_eq!(engine.tables.answers.station(red, [10, 0, 0, 9].into()), Some(mac(9)));
            assert_eq!(engine.stats().networks[1].name, "red");
            let gone = Change { networks: vec![(red, None)], ..Change::default() };
            assert_eq!(engine.change(gone.clone()), Err(ChangeError::NotEmpty(red)));
            engine.change(Change { endpoints: vec![(EndpointId(1), None)], ..gone }).unwrap();
            assert_eq!(engine.tables.network_by_vni(Vni::new(43).unwrap()).map(|(id, _)| id), None);
            assert_eq!((engine.fdb.lookup(red, mac(9)), engine.fixed.len()), (None, 0));
            until(&mut engine, "red to be gone", |engine| {
                engine.vacant_networks().any(|id| id == red) && engine.vacant_endpoints().count() == 3
            });
            assert_eq!(engine.remote_id(far), None);
            assert_eq!(engine.members().count(), 1);
        }
    }

    #[test]
    fn a_network_that_is_replaced_keeps_its_remotes() {
        for workers in [1, 2] {
            let mut engine = engine(workers);
            let far: IpAddr = [192, 0, 2, 3].into();
            let fixed = StaticMac { mac: mac(9), remote: far, addresses: vec![] };
            let red = NetworkPlan { remotes: vec![far], static_macs: vec![fixed], ..network("red", 43) };
            let mut place = NetworkId(1);
            engine
                .change(Change { networks: vec![(place, Some(red.clone()))], ..Change::default() })
                .unwrap();
            let remote = engine.remote_id(far).unwrap();
            for other in [2, 1, 2, 1].map(NetworkId) {
                // Whichever is named first, and whether the place is beyond all others or was used before.
                let mut networks = vec![(other, Some(red.clone())), (place, None)];
                networks.rotate_left(usize::from(other.0 == 1));
                engine.change(Change { networks, ..Change::default() }).unwrap();
                assert_eq!(engine.remote_id(far), Some(remote));
                assert!(engine.remotes.is_reachable(remote));
                assert!(engine.tables.networks[other.index()].has_remote(remote));
                assert_eq!(engine.tables.networks[other.index()].remotes[..], [remote]);
                assert_eq!(engine.tables.remote_by_ipv4([192, 0, 2, 3].into()), Some(remote));
                assert_eq!(engine.fdb.lookup(other, mac(9)), Some(Destination::Remote(remote)));
                until(&mut engine, "the other to be gone", |engine| engine.vacant_networks().count() == 1);
                assert_eq!((engine.fdb.lookup(place, mac(9)), engine.fixed.len()), (None, 1));
                assert!(engine.tables.networks[other.index()].has_remote(remote));
                place = other;
            }
        }
    }

    #[test]
    fn a_rule_follows_its_endpoint_to_another_address() {
        let mut engine = engine(1);
        let rule =
            RulePlan { network: Some(BLUE), endpoint: Some(EndpointId(0)), ..RulePlan::any(Class::URGENT) };
        engine.set_rules(vec![rule]).unwrap();
        let before = Arc::as_ptr(&engine.tables.classes);
        engine.change(endpoints(vec![come(1, 2)])).unwrap();
        assert_eq!(Arc::as_ptr(&engine.tables.classes), before, "no rule is about that one");
        let moved = EndpointPlan { mac: mac(7), ..endpoint(1, BLUE) };
        engine.change(endpoints(vec![(EndpointId(0), Some(moved))])).unwrap();
        assert_ne!(Arc::as_ptr(&engine.tables.classes), before);
        let before = Arc::as_ptr(&engine.tables.classes);
        engine.change(stations(&[7, 8])).unwrap();
        assert_ne!(Arc::as_ptr(&engine.tables.classes), before, "all its stations are meant");
    }

    #[test]
    fn what_cannot_be_changes_nothing() {
        let mut engine = engine(1);
        engine.set_rules(vec![RulePlan { network: Some(BLUE), ..RulePlan::any(Class::URGENT) }]).unwrap();
        let red = |change: &dyn Fn(&mut NetworkPlan)| {
            let mut plan = network("red", 43);
            change(&mut plan);
            Change { networks: vec![(NetworkId(1), Some(plan))], ..Change::default() }
        };
        let far: IpAddr = [192, 0, 2, 7].into();
        let fixed = StaticMac { mac: mac(9), remote: far, addresses: vec![] };
        let cases = [
            (endpoints(vec![come(0, 2)]), ChangeError::EndpointPlace(EndpointId(0))),
            (endpoints(vec![come(4, 2)]), ChangeError::EndpointPlace(EndpointId(4))),
            (endpoints(vec![come(1, 2), come(1, 3)]), ChangeError::EndpointPlace(EndpointId(1))),
            (endpoints(vec![(EndpointId(2), None)]), ChangeError::EndpointPlace(EndpointId(2))),
            (endpoints(vec![come(1, 1)]), ChangeError::Mac(EndpointId(1), mac(1))),
            (endpoints(vec![come(2, 7), come(1, 7)]), ChangeError::Mac(EndpointId(1), mac(7))),
            (stations(&[1, 7, 1]), ChangeError::Mac(EndpointId(0), mac(1))),
            (
                Change {
                    endpoints: [stations(&[1, 7]).endpoints, vec![come(1, 7)]].concat(),
                    ..Change::default()
                },
                ChangeError::Mac(EndpointId(1), mac(7)),
            ),
            (
                stations(&[1, 5, 6, 7, 8]),
                ChangeError::StationsFull { endpoint: EndpointId(0), mac: mac(8), most: 4 },
            ),
            (
                endpoints(vec![come(2, 7), (EndpointId(1), Some(endpoint(8, NetworkId(2))))]),
                ChangeError::NoSuchNetwork(EndpointId(1)),
            ),
            (
                Change { networks: vec![(BLUE, None)], endpoints: vec![(EndpointId(0), None)] },
                ChangeError::Ruled(0),
            ),
            (
                Change { networks: vec![(BLUE, Some(network("x", 9)))], ..Change::default() },
                ChangeError::NetworkPlace(BLUE),
            ),
            (red(&|red| red.vni = Vni::new(42).unwrap()), ChangeError::Vni(Vni::new(42).unwrap())),
            (red(&|red| red.fdb_limit = 41), ChangeError::FdbLimit { network: NetworkId(1), left: 40 }),
            (red(&|red| red.local = Some(far)), ChangeError::Local(NetworkId(1), far)),
            (
                red(&|red| red.remotes = vec![[192, 0, 2, 1].into()]),
                ChangeError::Remote(NetworkId(1), RemoteError::Own([192, 0, 2, 1].into())),
            ),
            (
                red(&|red| red.static_macs = vec![fixed.clone()]),
                ChangeError::FixedBehind(NetworkId(1), mac(9)),
            ),
        ];
        let before =
            (format!("{:?}", engine.plan), engine.fdb.entries().count(), Arc::as_ptr(&engine.tables));
        for (change, want) in cases {
            assert_eq!(engine.change(change), Err(want.clone()));
            assert!(!want.to_string().is_empty() && !want.to_string().contains('\n'), "{want}");
            let now =
                (format!("{:?}", engine.plan), engine.fdb.entries().count(), Arc::as_ptr(&engine.tables));
            assert_eq!(now, before, "{want}");
        }
    }

    #[test]
    fn places_are_used_in_turn_whoever_chooses_them() {
        let mut vacant = Vacant::<EndpointId>::new(4, |id| id.0 == 1);
        let free = |vacant: &Vacant<EndpointId>| vacant.iter().map(|id| id.0).collect::<Vec<_>>();
        assert_eq!(free(&vacant), [0, 2, 3]);
        vacant.take(EndpointId(2));
        assert_eq!(free(&vacant), [0, 3]);
        vacant.free(EndpointId(2));
        vacant.free(EndpointId(1));
        assert_eq!(free(&vacant), [0, 2, 3, 1], "it had not left the queue");
        for id in [0, 2, 3] {
            vacant.take(EndpointId(id));
        }
        vacant.free(EndpointId(0));
        assert_eq!(free(&vacant), [1, 0]);
        assert!(!vacant.is_free(EndpointId(9)));
    }
}
