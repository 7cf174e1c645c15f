//! What answers for tenants are made by: who has which address, whom "packet too big" is told from, and how much of it a tenant gets.
//! Part of the [`Tables`](crate::tables::Tables), which keep it when they are replaced unless networks or endpoints come or go.
//!
//! `stages/answer.rs` asks it about frames that are flooded or too long. An address of a tenant's is answered for only while that is
//! connected, one behind a remote as long as the station's MAC address is fixed there.

mod stations;

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;
use std::sync::Arc;

use crate::clock::cycles_per_second;
use crate::limit::{Account, Limiter};
use crate::plan::{EndpointPlan, InnerVlan, NetworkPlan, Places, Plan};
use crate::tables::{Chunks, Nothing};
use crate::types::{EndpointId, MacAddr, NetworkId};
use crate::wire::icmp::Gateways;
use stations::Stations;

/// "Packet too big" that a tenant is told each second, and at once: senders need one for each path, and ask again after minutes.
const TOLD_PER_SECOND: u32 = 100;
const TOLD_AT_ONCE: u32 = 10;

/// Frames that may be flooded at once are those of so many parts of a second, or [`STORM_BURST_MIN`].
const STORM_BURSTS_PER_SECOND: u32 = 10;
const STORM_BURST_MIN: u32 = 10;

/// All of it. A copy shares what there may be much of, until it is changed.
#[derive(Clone, Debug)]
pub struct Answers {
    networks: Arc<Places<NetworkId, NetworkAnswers>>,
    /// What a tenant may be told.
    told: Limiter,
    /// What each may flood.
    storms: Chunks<EndpointId, Storm>,
    /// By endpoint, with room for all that may come, and shared with all that come after these: a tenant's limits hold on.
    accounts: Arc<[Accounts]>,
    stations: Stations,
}

/// What is answered on a network.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NetworkAnswers {
    /// ARP and neighbour solicitations for known addresses.
    pub suppression: bool,
    /// Frames with VLAN tags are its own.
    pub is_tagged: bool,
    /// Lower the MSS of TCP connections.
    pub clamps_mss: bool,
    /// Largest inner IP packet.
    pub mtu: usize,
    /// Who tells it.
    pub gateways: Gateways,
    /// The stations of the gateways' addresses.
    routers: [Option<MacAddr>; 2],
}

impl NetworkAnswers {
    fn new(id: NetworkId, network: &NetworkPlan, stations: &Stations) -> NetworkAnswers {
        let station = |address: IpAddr| stations.get((id, address));
        let gateways = gateways(network, station);
        let v4_station = gateways.v4.and_then(|v4| station(v4.into()));
        NetworkAnswers {
            suppression: network.suppression,
            is_tagged: network.inner_vlan == InnerVlan::Carry,
            clamps_mss: network.clamp_mss,
            mtu: usize::from(network.mtu),
            gateways,
            routers: [v4_station, gateways.v6_station],
        }
    }

    /// The station is a router, by whichever of its addresses: one that is answered for as if it were none would be forgotten as one (RFC
    /// 4861 §7.2.5).
    pub fn is_router(&self, station: MacAddr) -> bool {
        self.routers.contains(&Some(station))
    }
}

/// What was counted out to a tenant, on all workers together.
#[derive(Default, Debug)]
struct Accounts {
    told: Account,
    storm: Account,
}

/// What a tenant may flood.
#[derive(Clone, Copy, Debug)]
enum Storm {
    /// There is none.
    Nobody,
    /// Everything.
    Free,
    /// So much.
    Limited(Limiter),
}

impl Nothing for Storm {
    fn nothing() -> Storm {
        Storm::Nobody
    }

    fn is_nothing(&self) -> bool {
        matches!(self, Storm::Nobody)
    }
}

impl Storm {
    fn new(endpoint: &EndpointPlan, ticks_per_second: u64) -> Storm {
        let limit = |rate: u32| {
            let burst = (rate / STORM_BURSTS_PER_SECOND).max(STORM_BURST_MIN);
            Limiter::new(rate, burst, ticks_per_second)
        };
        endpoint.storm_limit.map(limit).map_or(Storm::Free, Storm::Limited)
    }
}

impl Answers {
    /// From a plan.
    pub fn new(plan: &Plan) -> Answers {
        let ticks_per_second = cycles_per_second();
        let stations = stations(plan);
        Answers {
            networks: Arc::new(plan.networks.map(|id, network| NetworkAnswers::new(id, network, &stations))),
            told: Limiter::new(TOLD_PER_SECOND, TOLD_AT_ONCE, ticks_per_second),
            storms: Chunks::of(&plan.endpoints, |_, endpoint| Storm::new(endpoint, ticks_per_second)),
            accounts: std::iter::repeat_with(Accounts::default).take(plan.endpoints_max()).collect(),
            stations,
        }
    }

    /// From now on there is this endpoint, or another one than `before`.
    pub(crate) fn let_in(&mut self, id: EndpointId, before: Option<&EndpointPlan>, endpoint: &EndpointPlan) {
        for station in endpoint.stations() {
            for address in station.addresses {
                self.stations.insert((endpoint.network, *address), station.mac);
            }
        }
        if before.is_none_or(|before| before.storm_limit != endpoint.storm_limit) {
            self.storms.set(id, Some(Storm::new(endpoint, cycles_per_second())));
        }
        if let Some(accounts) = self.accounts.get(id.index()).filter(|_| before.is_none()) {
            accounts.told.clear();
            accounts.storm.clear();
        }
    }

    /// It is not there any more, or is another one.
    pub(crate) fn let_out(&mut self, id: EndpointId, endpoint: &EndpointPlan, is_another: bool) {
        for station in endpoint.stations() {
            for address in station.addresses {
                self.stations.remove((endpoint.network, *address), station.mac);
            }
        }
        if !is_another {
            self.storms.set(id, None);
        }
    }

    /// Nothing is known of the fixed stations of this network any more: it goes. Its endpoints go as well.
    pub(crate) fn forget_network(&mut self, id: NetworkId, network: &NetworkPlan) {
        for fixed in &network.static_macs {
            for address in &fixed.addresses {
                self.stations.remove((id, *address), fixed.mac);
            }
        }
    }

    /// There is such a network, with such a place, or none. Again when stations have come or gone that have its gateways' addresses.
    pub(crate) fn set_network(&mut self, id: NetworkId, network: Option<&NetworkPlan>) {
        if let Some(network) = network.filter(|_| self.networks.get(id).is_none()) {
            let mut stations: HashMap<IpAddr, Option<MacAddr>> = HashMap::new();
            for fixed in &network.static_macs {
                add_all(&mut stations, fixed.mac, fixed.addresses.iter().copied());
            }
            let stations = stations.into_iter().filter_map(|(ip, mac)| Some(((id, ip), mac?)));
            stations.for_each(|(place, mac)| self.stations.insert(place, mac));
        }
        let now = network.map(|network| NetworkAnswers::new(id, network, &self.stations));
        if self.networks.get(id) != now.as_ref() {
            Arc::make_mut(&mut self.networks).set(id, now);
        }
    }

    /// What is answered on a network.
    pub fn network(&self, id: NetworkId) -> Option<&NetworkAnswers> {
        self.networks.get(id)
    }

    /// The station that has this address on a network, if that is known.
    pub fn station(&self, network: NetworkId, address: IpAddr) -> Option<MacAddr> {
        self.stations.get((network, address))
    }

    /// Whether it would be worth while to make what this tenant may be told: takes nothing.
    pub fn could_tell(&self, id: EndpointId, now: u64) -> bool {
        self.accounts_of(id).is_some_and(|accounts| self.told.would_admit(&accounts.told, now))
    }

    /// This tenant may be told once more.
    pub fn may_tell(&self, id: EndpointId, now: u64) -> bool {
        self.accounts_of(id).is_some_and(|accounts| self.told.admit(&accounts.told, now))
    }

    /// One more frame of this tenant's may be flooded.
    pub fn may_flood(&self, id: EndpointId, now: u64) -> bool {
        let Some(Storm::Limited(limit)) = self.storms.get(id) else { return true };
        self.accounts.get(id.index()).is_none_or(|accounts| limit.admit(&accounts.storm, now))
    }

    fn accounts_of(&self, id: EndpointId) -> Option<&Accounts> {
        self.accounts.get(id.index()).filter(|_| self.storms.get(id).is_some_and(|storm| !storm.is_nothing()))
    }
}

/// Addresses that two stations have are nobody's: who asks hears both.
fn stations(plan: &Plan) -> Stations {
    let mut stations: HashMap<(NetworkId, IpAddr), Option<MacAddr>> = HashMap::new();
    let mut add = |network: NetworkId, mac: MacAddr, addresses: &[IpAddr]| {
        add_all(&mut stations, mac, addresses.iter().map(|address| (network, *address)));
    };
    for endpoint in plan.endpoints.values() {
        endpoint.stations().for_each(|station| add(endpoint.network, station.mac, station.addresses));
    }
    for (id, network) in plan.networks.iter() {
        network.static_macs.iter().for_each(|fixed| add(id, fixed.mac, &fixed.addresses));
    }
    let mut known = Stations::default();
    stations
        .into_iter()
        .filter_map(|(place, mac)| Some((place, mac?)))
        .for_each(|(at, mac)| known.insert(at, mac));
    known
}

/// The station has these addresses, but for those that another one has as well.
fn add_all<K: Eq + Hash>(
    stations: &mut HashMap<K, Option<MacAddr>>,
    mac: MacAddr,
    addresses: impl Iterator<Item = K>,
) {
    for address in addresses {
        let known = stations.entry(address).or_insert(Some(mac));
        *known = known.filter(|known| *known == mac);
    }
}

fn gateways(network: &NetworkPlan, station: impl Fn(IpAddr) -> Option<MacAddr>) -> Gateways {
    let mut gateways = Gateways::default();
    for &address in &network.gateways {
        match address {
            IpAddr::V4(address) => gateways.v4 = Some(address),
            IpAddr::V6(address) => gateways.v6 = Some(address),
        }
    }
    gateways.v6_station = gateways.v6.and_then(|v6| station(v6.into()));
    gateways
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{MemifPlan, StaticMac, Station};
    use crate::types::Vni;

    fn mac(last: u8) -> MacAddr {
        MacAddr([2, 0, 0, 0, 0, last])
    }

    fn plan() -> Plan {
        let address = |last: u8| IpAddr::from([10, 0, 0, last]);
        let memif = MemifPlan::server(peregrine_memif::SocketAddr::Abstract("unused".into()), 0);
        let endpoint = |last: u8, network, addresses: &[u8]| EndpointPlan {
            addresses: addresses.iter().map(|last| address(*last)).collect(),
            ..EndpointPlan::new("x", NetworkId(network), mac(last), memif.clone())
        };
        let fixed =
            |last: u8| StaticMac { mac: mac(last), remote: address(200), addresses: vec![address(last)] };
        let network = |vni| NetworkPlan::new("x", Vni::new(vni).unwrap());
        let gateway: IpAddr = "fd00::fe".parse().unwrap();
        let mut router = endpoint(3, 0, &[9]);
        let station =
            |last: u8, addresses: Vec<IpAddr>| Station { name: "x".into(), mac: mac(last), addresses };
        router.more = vec![station(6, vec![gateway]), station(7, vec![address(7), address(2)])];
        Plan {
            workers: Vec::new(),
            placement: Default::default(),
            balance_threshold: 85,
            uplinks: Vec::new(),
            networks: vec![
                NetworkPlan { static_macs: vec![fixed(5), fixed(1)], gateways: vec![gateway], ..network(1) },
                network(2),
            ]
            .into(),
            endpoints: vec![endpoint(1, 0, &[1, 2]), endpoint(2, 1, &[1]), router, endpoint(4, 0, &[9])]
                .into(),
            capacity: Default::default(),
            classes: Default::default(),
            control_socket: Default::default(),
            ..Plan::default()
        }
    }

    #[test]
    fn an_address_is_one_stations_on_one_network() {
        let answers = Answers::new(&plan());
        let station = |network, last: u8| answers.station(NetworkId(network), [10, 0, 0, last].into());
        assert_eq!([1, 5, 7].map(|last| station(0, last)), [1, 5, 7].map(|last| Some(mac(last))));
        assert_eq!((station(1, 1), station(1, 2)), (Some(mac(2)), None));
        assert_eq!([2, 9].map(|last| station(0, last)), [None; 2], "two have it");
        let network = answers.network(NetworkId(0)).unwrap();
        assert_eq!(network.gateways.v6_station, Some(mac(6)));
        assert_eq!([1, 3, 6, 7].map(|last| network.is_router(mac(last))), [false, false, true, false]);
    }

    #[test]
    fn who_has_no_limit_may_flood() {
        let mut plan = plan();
        plan.endpoints[0].storm_limit = Some(20);
        plan.endpoints[1].storm_limit = Some(1000);
        let answers = Answers::new(&plan);
        let at_once = |id| (0..500).filter(|_| answers.may_flood(EndpointId(id), 1)).count();
        assert_eq!([0, 1, 2].map(at_once), [10, 100, 500]);
        assert_eq!((0..500).filter(|_| answers.may_tell(EndpointId(0), 1)).count(), 10);
        assert!(!answers.may_tell(EndpointId(9), 1), "there is none");
    }
}
