//! Tenants that have just connected, and stations that are new behind them, are announced to their network, so that others learn where they are, and that they may have moved,
//! before they have said anything: their IPv4 addresses by ARP announcements (RFC 5227 §2.3), their IPv6 addresses by unsolicited
//! neighbour advertisements (RFC 4861 §7.2.6), and who has none of either by reverse ARP, as hypervisors do with a guest that has moved.
//!
//! Part of the engine: control builds the frames, and the worker that serves the tenant sends each as if the tenant had.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::time::{Duration, Instant};

use super::Engine;
use super::workers::WorkerHandle;
use crate::answers::Answers;
use crate::mailbox::{Announcement, Order};
use crate::plan::{EndpointPlan, Plan};
use crate::types::{EndpointId, MacAddr, WorkerId};
use crate::wire::{arp, ndp};

/// So many times, so far apart (RFC 5227 §1.1: `ANNOUNCE_NUM`, `ANNOUNCE_INTERVAL`): the first may be lost, for one because the way to a
/// remote is not known yet when the first tenant connects.
const TIMES: u8 = 2;
const INTERVAL: Duration = Duration::from_secs(2);
/// A tenant that connects again and again is announced no more often than this, and each time after twice as long, up to the second: each
/// announcement is copied to everybody.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSE_MAX: Duration = Duration::from_secs(60);
/// A worker is given so many frames at once, and more when it has nothing else to do for control: other orders wait for no more than these.
const AT_ONCE: usize = 16;
/// When to look whether it has.
const LOOK: Duration = Duration::from_millis(10);

/// Who is to be announced, and when.
#[derive(Debug)]
pub(super) struct Announcing {
    /// How often still, by when and who.
    pending: BTreeMap<(Instant, Who), u8>,
    /// Of those that were announced since their endpoint has its place, or are to be.
    standings: BTreeMap<Who, Standing>,
    /// Tells what is made now from what was made before.
    number: u32,
    /// Frames that no worker has been given yet, or that it could not send just then.
    unsent: VecDeque<Announcement>,
}

/// A station of a tenant's.
type Who = (EndpointId, MacAddr);

/// A station was announced.
#[derive(Clone, Copy, Debug)]
struct Last {
    at: Instant,
    /// Until it is announced again, if it connects again.
    pause: Duration,
}

#[derive(Clone, Copy, Default, Debug)]
struct Standing {
    last: Option<Last>,
    /// When it is announced next.
    due: Option<Instant>,
    /// That of frames that say what is so; others have another one.
    number: u32,
}

impl Announcing {
    pub(super) fn new() -> Announcing {
        Announcing {
            pending: BTreeMap::new(),
            standings: BTreeMap::new(),
            number: 0,
            unsent: VecDeque::new(),
        }
    }

    /// The station is new, or has other addresses: that is the operator's doing, so how often its tenant connects is no reason to wait.
    pub(super) fn begin_anew(&mut self, who: Who, now: Instant) {
        if let Some(standing) = self.standings.get_mut(&who) {
            standing.last = None;
        }
        self.begin(who, now);
    }

    /// The station's tenant has connected.
    pub(super) fn begin(&mut self, who: Who, now: Instant) {
        self.number = self.number.wrapping_add(1);
        let standing = self.standings.entry(who).or_default();
        standing.end(who, self.number, &mut self.pending);
        let due = standing.last.map_or(now, |last| now.max(last.at + last.pause));
        standing.due = Some(due);
        self.pending.insert((due, who), TIMES);
    }

    /// The tenant is gone: what was made for it is not sent any more.
    pub(super) fn end(&mut self, endpoint: EndpointId) {
        self.number = self.number.wrapping_add(1);
        for (who, standing) in self.standings.range_mut(all_of(endpoint)) {
            standing.end(*who, self.number, &mut self.pending);
        }
    }

    /// Another one has its place.
    pub(super) fn forget(&mut self, endpoint: EndpointId) {
        let its: Vec<Who> = self.standings.range(all_of(endpoint)).map(|(who, _)| *who).collect();
        its.into_iter().for_each(|who| self.forget_station(who));
    }

    /// The station is behind the tenant no more.
    pub(super) fn forget_station(&mut self, who: Who) {
        if let Some(due) = self.standings.remove(&who).and_then(|standing| standing.due) {
            self.pending.remove(&(due, who));
        }
    }

    /// Those that are to be announced now; next time they are not among them until it is time again.
    fn due(&mut self, now: Instant) -> Vec<Who> {
        let mut due = Vec::new();
        while let Some(first) = self.pending.first_entry().filter(|first| first.key().0 <= now) {
            let ((_, who), times) = first.remove_entry();
            due.push(who);
            let Some(standing) = self.standings.get_mut(&who) else { continue };
            standing.last = Some(Last::next(standing.last, now, times == TIMES));
            standing.due = (times > 1).then(|| now + INTERVAL);
            if let Some(next) = standing.due {
                self.pending.insert((next, who), times - 1);
            }
        }
        due
    }

    /// Tells frames that are made now from others.
    fn number(&self, who: Who) -> Option<u32> {
        self.standings.get(&who).map(|standing| standing.number)
    }

    fn is_current(&self, announcement: &Announcement) -> bool {
        self.number((announcement.endpoint, announcement.station)) == Some(announcement.number)
    }

    /// When to look again.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.unsent.is_empty()).then(|| Instant::now() + LOOK)
    }
}

impl Standing {
    /// Frames of before this number are not sent any more, and none is made.
    fn end(&mut self, who: Who, number: u32, pending: &mut BTreeMap<(Instant, Who), u8>) {
        self.number = number;
        if let Some(due) = self.due.take() {
            pending.remove(&(due, who));
        }
    }
}

/// The stations of an endpoint.
fn all_of(endpoint: EndpointId) -> RangeInclusive<Who> {
    (endpoint, MacAddr([0; 6]))..=(endpoint, MacAddr::BROADCAST)
}

impl Last {
    /// It is announced again; because it `has_come`, or once more. Who has not come for twice the pause begins anew.
    fn next(before: Option<Last>, at: Instant, has_come: bool) -> Last {
        let pause = match before {
            Some(last) if !has_come => last.pause,
            Some(last) if at < last.at + 2 * last.pause => (2 * last.pause).min(PAUSE_MAX),
            _ => PAUSE,
        };
        Last { at, pause }
    }
}

impl Engine {
    /// A tenant has connected.
    pub(super) fn begin_announcing(&mut self, endpoint: EndpointId) {
        let plan = self.plan.endpoint(endpoint).filter(|plan| plan.announce);
        for station in plan.into_iter().flat_map(EndpointPlan::stations) {
            self.announcing.begin((endpoint, station.mac), Instant::now());
        }
    }

    /// An endpoint is another one than before: what is new behind a tenant that is connected is announced, and what is gone is not any
    /// more.
    pub(super) fn announce_changed(&mut self, endpoint: EndpointId, before: &EndpointPlan) {
        let Some(plan) = self.plan.endpoint(endpoint) else { return };
        let mut gone: HashMap<MacAddr, &[IpAddr]> =
            before.stations().map(|station| (station.mac, station.addresses)).collect();
        let is_tenant = plan.announce && self.home(endpoint).is_some();
        for station in plan.stations() {
            let had = gone.remove(&station.mac).filter(|_| before.announce);
            let was_so = had.is_some_and(|had| station.addresses.iter().all(|address| had.contains(address)));
            if is_tenant && !was_so {
                self.announcing.begin_anew((endpoint, station.mac), Instant::now());
            }
        }
        gone.into_keys().for_each(|mac| self.announcing.forget_station((endpoint, mac)));
        if !plan.announce {
            self.announcing.forget(endpoint);
        }
    }

    /// Has those announced for whom it is time.
    pub(super) fn announce(&mut self) {
        for (endpoint, station) in self.announcing.due(Instant::now()) {
            if !self.has_listeners(endpoint) {
                continue;
            }
            let number = self.announcing.number((endpoint, station)).unwrap_or(0);
            let frames = frames(&self.plan, &self.tables.answers, (endpoint, station)).into_iter();
            let made = |frame| Announcement { endpoint, station, frame, number, is_sent: false };
            self.announcing.unsent.extend(frames.map(made));
        }
        if !self.announcing.unsent.is_empty() {
            self.order_announcements();
        }
    }

    /// Gives each worker that has done all it was told some of its frames.
    fn order_announcements(&mut self) {
        let room = |worker: &WorkerHandle| if worker.has_obeyed() { AT_ONCE } else { 0 };
        let mut rooms: Vec<usize> = self.workers.iter().map(room).collect();
        for announcement in std::mem::take(&mut self.announcing.unsent) {
            let home = self.home(announcement.endpoint).filter(|_| self.announcing.is_current(&announcement));
            let Some(home) = home.map(WorkerId::index) else { continue };
            match (rooms.get_mut(home).filter(|room| **room > 0), self.workers.get_mut(home)) {
                (Some(room), Some(worker)) => {
                    *room -= 1;
                    worker.send(Order::Announce(announcement));
                }
                _ => self.announcing.unsent.push_back(announcement),
            }
        }
    }

    /// A worker is done with one, or could not send it.
    pub(super) fn take_back_announcement(&mut self, announcement: Announcement) {
        if !announcement.is_sent && self.home(announcement.endpoint).is_some() {
            self.announcing.unsent.push_front(announcement);
        }
    }

    /// Somebody else is on its network.
    fn has_listeners(&self, endpoint: EndpointId) -> bool {
        let Some(id) = self.tables.endpoint(endpoint).map(|it| it.network) else { return false };
        let others = self.homes.tenants_of(id).saturating_sub(u32::from(self.home(endpoint).is_some()));
        others > 0 || self.tables.network(id).is_some_and(|network| !network.remotes.is_empty())
    }
}

/// What a station is announced with: those of its addresses that no other station has.
fn frames(plan: &Plan, answers: &Answers, (endpoint, mac): Who) -> Vec<Vec<u8>> {
    let Some(endpoint) = plan.endpoint(endpoint) else { return Vec::new() };
    let Some(station) = endpoint.stations().find(|station| station.mac == mac) else { return Vec::new() };
    let network = endpoint.network;
    let is_router = answers.network(network).is_some_and(|answers| answers.is_router(mac));
    let frame = |address: &IpAddr| match address {
        IpAddr::V4(v4) => arp::announcement(mac, *v4).to_vec(),
        IpAddr::V6(v6) => ndp::announcement(mac, *v6, is_router).to_vec(),
    };
    let own = station.addresses.iter().filter(|address| answers.station(network, **address) == Some(mac));
    let frames: Vec<_> = own.map(frame).collect();
    if frames.is_empty() { vec![arp::reverse_request(mac).to_vec()] } else { frames }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{MemifPlan, NetworkPlan, Station};
    use crate::types::{NetworkId, Vni};

    #[test]
    fn it_is_announced_twice_and_less_and_less_often_if_it_comes_and_goes() {
        let (id, start) = (EndpointId(0), Instant::now());
        let (who, other) = ((id, MacAddr([2; 6])), (EndpointId(1), MacAddr([2; 6])));
        let mut announcing = Announcing::new();
        let at =
            |announcing: &mut Announcing, ms: u64| announcing.due(start + Duration::from_millis(ms)).len();
        announcing.begin(who, start);
        announcing.begin(other, start);
        assert_eq!([0, 0, 1999, 2000, 4000].map(|ms| at(&mut announcing, ms)), [2, 0, 0, 2, 0]);
        // It comes and goes.
        let comings = |announcing: &mut Announcing, from_s: u64, to_s: u64| {
            let mut announced = Vec::new();
            for ms in (from_s * 1000..to_s * 1000).step_by(100) {
                announcing.begin(who, start + Duration::from_millis(ms));
                announced.extend((at(announcing, ms) > 0).then_some(ms / 1000));
                announcing.end(id);
            }
            announced
        };
        let often = comings(&mut announcing, 5, 250);
        assert_eq!(often, [5, 6, 8, 12, 20, 36, 68, 128, 188, 248]);
        assert_eq!(comings(&mut announcing, 370, 373), [370, 371], "it has stayed for twice the pause");
        assert_eq!(at(&mut announcing, 400_000), 0, "who is gone is not announced");
    }

    #[test]
    fn a_station_waits_for_itself_alone_and_what_was_made_before_it_changed_is_not_sent() {
        let start = Instant::now();
        let [first, second] = [1, 2].map(|last| (EndpointId(3), MacAddr([2, 0, 0, 0, 0, last])));
        let mut announcing = Announcing::new();
        announcing.begin(first, start);
        assert_eq!(announcing.due(start), [first]);
        announcing.begin(second, start);
        assert_eq!(announcing.due(start), [second], "the first one's pause is not its");
        announcing.begin(first, start);
        assert!(announcing.due(start).is_empty());
        announcing.begin_anew(first, start);
        assert_eq!(announcing.due(start), [first], "it has other addresses now");
        let made = |announcing: &Announcing, who: Who| Announcement {
            endpoint: who.0,
            station: who.1,
            frame: Vec::new(),
            number: announcing.number(who).unwrap(),
            is_sent: false,
        };
        let both = [first, second].map(|who| made(&announcing, who));
        announcing.begin(second, start);
        assert_eq!(both.each_ref().map(|it| announcing.is_current(it)), [true, false]);
        let again = made(&announcing, second);
        announcing.forget_station(second);
        assert!(!announcing.is_current(&again));
        announcing.begin(second, start);
        assert!(!announcing.is_current(&again), "that is another one");
        announcing.end(EndpointId(3));
        assert!(!announcing.is_current(&both[0]) && announcing.pending.is_empty());
        announcing.forget(EndpointId(3));
        assert!(announcing.standings.is_empty());
    }

    #[test]
    fn only_what_no_other_station_has_is_announced_and_a_router_as_one() {
        let memif = MemifPlan::server(peregrine_memif::SocketAddr::Abstract("unused".into()), 0);
        let mac = |last: u8| MacAddr([2, 0, 0, 0, 0, last]);
        let endpoint = |last: u8, addresses: &[&str]| EndpointPlan {
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
            ..EndpointPlan::new("x", NetworkId(0), mac(last), memif.clone())
        };
        let station = Station { name: "y".into(), mac: mac(4), addresses: vec!["10.0.0.4".parse().unwrap()] };
        let network = NetworkPlan {
            gateways: vec!["10.0.0.1".parse().unwrap()],
            ..NetworkPlan::new("x", Vni::new(1).unwrap())
        };
        let plan = Plan {
            workers: Vec::new(),
            placement: Default::default(),
            balance_threshold: 85,
            uplinks: Vec::new(),
            networks: vec![network].into(),
            endpoints: vec![
                endpoint(1, &["10.0.0.1", "10.0.0.9", "fe80::1"]),
                endpoint(2, &["10.0.0.9"]),
                EndpointPlan { more: vec![station], ..endpoint(3, &["fe80::3"]) },
            ]
            .into(),
            capacity: Default::default(),
            pools: Default::default(),
            classes: Default::default(),
            control_socket: Default::default(),
            ..Plan::default()
        };
        let answers = Answers::new(&plan);
        let v6 = |address: &str| address.parse().unwrap();
        assert_eq!(
            frames(&plan, &answers, (EndpointId(0), mac(1))),
            [
                arp::announcement(mac(1), [10, 0, 0, 1].into()).to_vec(),
                ndp::announcement(mac(1), v6("fe80::1"), true).to_vec()
            ]
        );
        assert_eq!(frames(&plan, &answers, (EndpointId(1), mac(2))), [arp::reverse_request(mac(2)).to_vec()]);
        let host = ndp::announcement(mac(3), v6("fe80::3"), false).to_vec();
        assert_eq!(frames(&plan, &answers, (EndpointId(2), mac(3))), [host]);
        let second = arp::announcement(mac(4), [10, 0, 0, 4].into()).to_vec();
        assert_eq!(frames(&plan, &answers, (EndpointId(2), mac(4))), [second]);
        assert!(frames(&plan, &answers, (EndpointId(2), mac(5))).is_empty(), "that is nobody");
    }
}
