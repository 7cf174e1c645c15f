//! What the workers forward by: uplinks, networks, endpoints, remote VTEPs with their outer headers. A [`Tables`] never
//! changes; control makes a new one and hands it to each worker, which gives the old one back to be freed.
//!
//! MAC addresses are not here: they change all the time and live in the [`Fdb`](crate::fdb::Fdb).

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

use crate::classes::CompiledRules;
use crate::frame::Target;
use crate::plan::{Plan, UplinkPlan};
use crate::types::{Class, EndpointId, MacAddr, NetworkId, RemoteId, UplinkId, Vni};
use crate::wire::eth::EthHeader;
use crate::wire::flow::mix;
use crate::wire::outer::{OVERHEAD_IPV4, OuterFields, OuterTemplate, Vtep};

/// Where a next hop is: the uplink, and the link-layer addresses there.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NextHop {
    /// The uplink that it is on.
    pub uplink: UplinkId,
    /// The neighbour's.
    pub destination: MacAddr,
    /// Our interface's.
    pub source: MacAddr,
}

/// One uplink, as the stages need it.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Our own address on it.
    pub vtep: Vtep,
    /// It is a wire without a network card: checksums that senders left to one arrive unfinished.
    pub cardless: bool,
    /// Its queues have rings for urgent frames.
    pub early: bool,
    source_ports: SourcePorts,
    ttl: u8,
}

impl Uplink {
    fn new(plan: &UplinkPlan) -> Uplink {
        Uplink {
            vtep: Vtep { address: ipv4(plan.local), port: plan.port },
            cardless: false,
            early: false,
            source_ports: SourcePorts::new(&plan.source_ports),
            ttl: plan.ttl,
        }
    }
}

/// A range of outer UDP source ports.
#[derive(Clone, Copy, Debug)]
pub struct SourcePorts {
    first: u16,
    count: u32,
}

impl SourcePorts {
    fn new(ports: &RangeInclusive<u16>) -> SourcePorts {
        let (first, last) = (*ports.start(), *ports.end());
        SourcePorts { first, count: u32::from(last).saturating_sub(u32::from(first)) + 1 }
    }

    /// That of a flow: all of the range, evenly (multiply and shift, no division).
    #[inline]
    pub fn of(self, flow_hash: u32) -> u16 {
        let offset = (u64::from(flow_hash) * u64::from(self.count)) >> 32;
        self.first.wrapping_add(offset as u16)
    }
}

/// How a remote is reached: everything that encapsulation needs, in one place.
#[derive(Clone, Debug)]
pub struct Adjacency {
    /// The outer headers.
    pub outer: OuterTemplate,
    /// Their UDP source ports.
    pub source_ports: SourcePorts,
    /// What a frame's target is from then on: the uplink that these headers are for.
    pub target: Target,
}

/// One overlay network, as the stages need it.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its number.
    pub vni: Vni,
    /// Longest inner frame in bytes: MTU, Ethernet header and one VLAN tag.
    pub frame_max: usize,
    /// Bytes that encapsulation puts in front of an inner frame.
    pub overhead: usize,
    /// Learn addresses behind remotes.
    pub learning: bool,
    /// At most so many learned addresses.
    pub fdb_limit: u32,
    /// Its tenants on this host.
    pub endpoints: Box<[EndpointId]>,
    /// The VTEPs that belong to it.
    pub remotes: Box<[RemoteId]>,
    /// One bit for each remote that belongs to it.
    members: Box<[u64]>,
}

impl Network {
    /// True if the VTEP may send to this network.
    #[inline]
    pub fn has_remote(&self, remote: RemoteId) -> bool {
        self.members.get(remote.index() / 64).is_some_and(|word| word >> (remote.index() % 64) & 1 == 1)
    }
}

/// One tenant address, as the stages need it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its network.
    pub network: NetworkId,
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Refuse other source addresses.
    pub anti_spoofing: bool,
}

/// One remote VTEP.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Its address.
    pub address: Ipv4Addr,
    /// Its outer DSCP is believed: rules may ask for it.
    pub trusted: bool,
    /// How it is reached; `None` while the kernel does not know its next hop.
    pub adjacency: Option<Adjacency>,
}

/// Everything that the stages look up but MAC addresses.
#[derive(Clone, Debug)]
pub struct Tables {
    /// By [`UplinkId`].
    pub uplinks: Box<[Uplink]>,
    /// By [`NetworkId`].
    pub networks: Box<[Network]>,
    /// By [`EndpointId`].
    pub endpoints: Box<[Endpoint]>,
    /// By [`RemoteId`].
    pub remotes: Box<[Remote]>,
    /// Which packets belong to which priority class.
    pub classes: Arc<CompiledRules>,
    /// The rules have just been replaced, and frames that the XDP program judged by the old ones may lie in the rx rings. Until they are
    /// gone, what comes by the normal ring of an uplink with early classes is not of the most urgent class, whatever the rules say.
    pub settling: bool,
    /// So many classes the queues of a tenant are shared out among; 1 where none but the default was used when the engine started.
    pub queue_classes: usize,
    /// DSCP of the outer header of what is sent, by class.
    pub dscps: [u8; Class::LIMIT],
    /// Longest frame that every uplink takes: the smallest MTU and an Ethernet header.
    pub uplink_frame_max: usize,
    by_vni: Index,
    by_address: Index,
}

impl Tables {
    /// From a plan; no next hop is known yet. `uplink_mtu` is the smallest of all, in bytes.
    pub fn new(plan: &Plan, uplink_mtu: usize) -> Tables {
        let addresses = remote_addresses(plan);
        let remote_id = |address: &IpAddr| addresses.get(address).copied();
        let networks: Box<[Network]> = plan
            .networks
            .iter()
            .enumerate()
            .map(|(index, network)| {
                let remotes: Box<[RemoteId]> = network.remotes.iter().filter_map(remote_id).collect();
                let mut members = vec![0u64; addresses.len().div_ceil(64)];
                for remote in &remotes {
                    if let Some(word) = members.get_mut(remote.index() / 64) {
                        *word |= 1 << (remote.index() % 64);
                    }
                }
                let is_here =
                    |&(_, endpoint): &(usize, &crate::plan::EndpointPlan)| endpoint.network.index() == index;
                Network {
                    vni: network.vni,
                    frame_max: usize::from(network.mtu) + EthHeader::LEN + 4,
                    overhead: OVERHEAD_IPV4,
                    learning: network.learning,
                    fdb_limit: network.fdb_limit,
                    endpoints: plan
                        .endpoints
                        .iter()
                        .enumerate()
                        .filter(is_here)
                        .map(|(id, _)| EndpointId(id as u16))
                        .collect(),
                    remotes,
                    members: members.into(),
                }
            })
            .collect();
        let endpoints = plan.endpoints.iter().map(|endpoint| Endpoint {
            network: endpoint.network,
            mac: endpoint.mac,
            anti_spoofing: endpoint.anti_spoofing,
        });
        let mut remotes: Vec<(RemoteId, Ipv4Addr)> =
            addresses.iter().map(|(&address, &id)| (id, ipv4(address))).collect();
        remotes.sort_unstable();
        Tables {
            uplinks: plan.uplinks.iter().map(Uplink::new).collect(),
            by_vni: Index::new(
                networks.iter().enumerate().map(|(index, network)| (network.vni.get(), index as u16)),
            ),
            by_address: Index::new(remotes.iter().map(|&(id, address)| (u32::from(address), id.0))),
            networks,
            endpoints: endpoints.collect(),
            remotes: remotes.into_iter().map(|(_, address)| remote(plan, address)).collect(),
            classes: Arc::new(CompiledRules::compile(plan)),
            settling: false,
            queue_classes: if plan.classes.are_used(&plan.networks) { plan.classes.list.len() } else { 1 },
            dscps: std::array::from_fn(|class| plan.classes.list.get(class).map_or(0, |class| class.dscp)),
            uplink_frame_max: uplink_mtu + EthHeader::LEN,
        }
    }

    /// The most urgent class that a frame from a normal rx ring of this uplink may have, see [`settling`](Self::settling).
    #[inline]
    pub fn most_urgent(&self, uplink: &Uplink) -> Class {
        if self.settling && uplink.early { Class(1) } else { Class::URGENT }
    }

    /// Sets how a remote is reached; `None` when the kernel does not know.
    pub fn set_next_hop(&mut self, remote: RemoteId, hop: Option<NextHop>) {
        let Some(entry) = self.remotes.get_mut(remote.index()) else { return };
        entry.adjacency = hop.and_then(|hop| {
            let uplink = self.uplinks.get(hop.uplink.index())?;
            let outer = OuterTemplate::new(&OuterFields {
                destination_mac: hop.destination,
                source_mac: hop.source,
                source: uplink.vtep.address,
                destination: entry.address,
                port: uplink.vtep.port,
                ttl: uplink.ttl,
            });
            Some(Adjacency { outer, source_ports: uplink.source_ports, target: Target::Uplink(hop.uplink) })
        });
    }

    /// The uplink with this id.
    #[inline]
    pub fn uplink(&self, id: UplinkId) -> Option<&Uplink> {
        self.uplinks.get(id.index())
    }

    /// The network with this VNI.
    #[inline]
    pub fn network_by_vni(&self, vni: Vni) -> Option<(NetworkId, &Network)> {
        let id = NetworkId(self.by_vni.get(vni.get())?);
        Some((id, self.networks.get(id.index())?))
    }

    /// The network with this id.
    #[inline]
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(id.index())
    }

    /// The endpoint with this id.
    #[inline]
    pub fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.endpoints.get(id.index())
    }

    /// The remote with this id.
    #[inline]
    pub fn remote(&self, id: RemoteId) -> Option<&Remote> {
        self.remotes.get(id.index())
    }

    /// The remote VTEP with this address.
    #[inline]
    pub fn remote_by_address(&self, address: Ipv4Addr) -> Option<RemoteId> {
        self.by_address.get(u32::from(address)).map(RemoteId)
    }
}

/// Each remote VTEP of any network once, with its id.
pub fn remote_addresses(plan: &Plan) -> BTreeMap<IpAddr, RemoteId> {
    let mut addresses = BTreeMap::new();
    for address in plan.networks.iter().flat_map(|network| &network.remotes) {
        let next = RemoteId(addresses.len() as u16);
        addresses.entry(*address).or_insert(next);
    }
    addresses
}

fn remote(plan: &Plan, address: Ipv4Addr) -> Remote {
    Remote { address, trusted: plan.classes.trusted.contains(&IpAddr::V4(address)), adjacency: None }
}

/// The config refuses IPv6 VTEPs for now.
fn ipv4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(_) => Ipv4Addr::UNSPECIFIED,
    }
}

/// A 32-bit number → a 16-bit index: open addressing, at most half full, made once and only read.
#[derive(Clone, Debug)]
struct Index {
    slots: Box<[(u32, u16)]>,
}

/// Marks a free slot; no id has this value.
const NONE: u16 = u16::MAX;

impl Index {
    fn new(pairs: impl Iterator<Item = (u32, u16)> + Clone) -> Index {
        let len = (pairs.clone().count() * 2).next_power_of_two().max(2);
        let mut index = Index { slots: vec![(0, NONE); len].into() };
        for (key, id) in pairs {
            let mut at = index.home(key);
            while let Some(slot) = index.slots.get_mut(at) {
                if slot.1 == NONE {
                    *slot = (key, id);
                    break;
                }
                at = (at + 1) & (len - 1);
            }
        }
        index
    }

    #[inline]
    fn get(&self, key: u32) -> Option<u16> {
        let mut at = self.home(key);
        loop {
            let &(stored, id) = self.slots.get(at)?;
            if id == NONE {
                return None; // at most half full: a free slot always comes
            }
            if stored == key {
                return Some(id);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    #[inline]
    fn home(&self, key: u32) -> usize {
        mix(u64::from(key) ^ 0x243f_6a88_85a3_08d3, 0x9e37_79b9_7f4a_7c15) as usize & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_index_finds_what_was_put_in_and_nothing_else() {
        for count in [0u32, 1, 2, 3, 100, 5000] {
            let index = Index::new((0..count).map(|n| (n * 3, n as u16)));
            for n in 0..count * 3 + 10 {
                let expected = (n % 3 == 0 && n / 3 < count).then_some((n / 3) as u16);
                assert_eq!(index.get(n), expected, "{n} of {count}");
            }
        }
    }
}
