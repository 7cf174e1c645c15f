//! What the workers forward by: uplinks, networks, endpoints, remote VTEPs with their outer headers. A [`Tables`] never
//! changes; control makes a new one and hands it to each worker, which gives the old one back to be freed.
//!
//! MAC addresses are not here: they change all the time and live in the [`Fdb`](crate::fdb::Fdb).

mod endpoints;
mod remotes;
mod rows;

use std::collections::BTreeMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::ops::RangeInclusive;
use std::sync::Arc;

pub(crate) use self::rows::Nothing;
pub use self::rows::{Chunks, Rows};
use crate::answers::Answers;
use crate::classes::CompiledRules;
use crate::fdb::Limits;
use crate::frame::Target;
use crate::plan::{
    EndpointPlan, InnerVlan, NetworkPlan, OuterDscp, Places, Plan, ReservedBits, UdpChecksum, UplinkPlan,
};
use crate::strangers::Strangers;
use crate::types::{Class, EndpointId, MacAddr, NetworkId, RemoteId, SourceId, UplinkId, Vni};
use crate::wire::eth::EthHeader;
use crate::wire::flow::mix;
use crate::wire::outer::{Listening, OVERHEAD_IPV4, OVERHEAD_IPV6, OuterFields, OuterHeaders, VLAN_TAG};

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

impl NextHop {
    /// The one path over it, from this address of ours.
    pub fn path(self, local: IpAddr, mtu: u32) -> Path {
        Path { hop: self, local, weight: 1, mtu }
    }
}

/// One way to a remote.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Path {
    /// The next hop.
    pub hop: NextHop,
    /// Our address, from which it is gone: of the remote's family.
    pub local: IpAddr,
    /// Its share of the flows beside other paths, at least 1.
    pub weight: u8,
    /// The largest outer IP packet that it takes, in bytes.
    pub mtu: u32,
}

/// One uplink, as the stages need it.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Our own addresses on it, and all ports.
    pub listening: Listening,
    /// Its frames have this VLAN's tag.
    pub vlan: Option<u16>,
    /// It is a wire without a network card: checksums that senders left to one arrive unfinished.
    pub cardless: bool,
    source_ports: SourcePorts,
    port: u16,
    ttl: u8,
    udp_checksum: UdpChecksum,
}

impl Uplink {
    fn new(plan: &UplinkPlan, networks: &Places<NetworkId, NetworkPlan>) -> Uplink {
        let mut ports = vec![plan.port];
        ports.extend(networks.values().filter_map(|network| network.port));
        ports.sort_unstable_by_key(|port| (*port != plan.port, *port));
        ports.dedup();
        Uplink {
            listening: Listening::new(&plan.locals, &ports, plan.accept_zero_checksum),
            vlan: plan.vlan,
            cardless: false,
            source_ports: SourcePorts::new(&plan.source_ports),
            port: plan.port,
            ttl: plan.ttl,
            udp_checksum: plan.udp_checksum,
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

/// One path to a remote: everything that encapsulation needs, in one place.
#[derive(Clone, Debug)]
pub struct Adjacency {
    /// The outer headers.
    pub outer: OuterHeaders,
    /// Whether they have a UDP checksum.
    pub udp_checksum: bool,
    /// The longest inner frame that the path takes with them, in bytes.
    pub inner_max: usize,
    /// Their UDP source ports.
    pub source_ports: SourcePorts,
    /// What a frame's target is from then on: the uplink that these headers are for.
    pub target: Target,
}

/// How a remote is reached from one of our addresses.
#[derive(Clone, Debug)]
pub enum Way {
    /// Not at all: the kernel knows no next hop yet.
    None,
    /// By one path.
    One(Adjacency),
    /// By several of equal cost.
    Several(Box<Several>),
}

impl Way {
    /// The path of this flow.
    #[inline]
    pub fn of(&self, flow_hash: u32) -> Option<&Adjacency> {
        match self {
            Way::One(adjacency) => Some(adjacency),
            Way::Several(several) => several.of(flow_hash),
            Way::None => None,
        }
    }

    fn new(mut paths: Vec<(Adjacency, u8)>) -> Way {
        match paths.len() {
            0 => Way::None,
            1 => paths.pop().map_or(Way::None, |(adjacency, _)| Way::One(adjacency)),
            _ => Way::Several(Box::new(Several::new(paths))),
        }
    }
}

/// Paths that share the flows.
#[derive(Clone, Debug)]
pub struct Several {
    paths: Box<[Adjacency]>,
    /// The path of each part of the flows: as many parts as its weight is of all weights, as nearly as whole numbers can.
    parts: [u8; PARTS],
}

/// A flow's part is told by the lowest bits of its hash, and its source port by the highest: so both are even.
const PARTS: usize = 64;

impl Several {
    /// At most [`PARTS`] of them.
    fn new(paths: Vec<(Adjacency, u8)>) -> Several {
        let weights: Vec<u32> =
            paths.iter().take(PARTS).map(|(_, weight)| u32::from(*weight).max(1)).collect();
        Several { parts: share_out(&weights), paths: paths.into_iter().map(|(path, _)| path).collect() }
    }

    #[inline]
    fn of(&self, flow_hash: u32) -> Option<&Adjacency> {
        let part = self.parts.get(flow_hash as usize % PARTS)?;
        self.paths.get(usize::from(*part))
    }
}

/// To whom each part belongs: everybody has at least one, and the next one goes to who has the fewest for its weight (Sainte-Laguë).
fn share_out(weights: &[u32]) -> [u8; PARTS] {
    let mut counts = vec![1u32; weights.len()];
    for _ in weights.len()..PARTS {
        let claim = |(count, weight): (&u32, &u32)| u64::from(*weight) * 1_000_000 / u64::from(2 * count + 1);
        let next = counts.iter().zip(weights).enumerate().rev().max_by_key(|(_, pair)| claim(*pair));
        if let Some(count) = next.map(|(index, _)| index).and_then(|index| counts.get_mut(index)) {
            *count += 1;
        }
    }
    let owners = (0u8..).zip(counts).flat_map(|(owner, count)| std::iter::repeat_n(owner, count as usize));
    let mut parts = [0; PARTS];
    parts.iter_mut().zip(owners).for_each(|(part, owner)| *part = owner);
    parts
}

/// One overlay network, as the stages need it.
#[derive(Clone, Debug)]
pub struct Network {
    /// Its number.
    pub vni: Vni,
    /// From which of our addresses its frames are sent.
    pub source: SourceId,
    /// Longest inner frame in bytes: MTU and Ethernet header, and one VLAN tag where such frames are taken.
    pub frame_max: usize,
    /// The same without a tag.
    pub untagged_max: usize,
    /// Bytes that encapsulation puts in front of an inner frame, at most. For another number a frame is moved, by encap or by the uplink.
    pub overhead: usize,
    /// Its UDP destination port and its DSCP are those of the uplink and of the class.
    pub is_usual: bool,
    /// Its own UDP destination port.
    pub port: Option<u16>,
    /// DSCP of the outer header.
    pub dscp: OuterDscp,
    /// VXLAN headers with reserved bits set.
    pub reserved_bits: ReservedBits,
    /// Inner frames with a VLAN tag.
    pub inner_vlan: InnerVlan,
    /// Learn addresses behind remotes.
    pub learning: bool,
    /// Any other VTEP may send to it, too.
    pub any_remote: bool,
    /// How much is learned.
    pub limits: Limits,
    /// The VTEPs that belong to it.
    pub remotes: Box<[RemoteId]>,
    /// Removed by hand from a network that takes any: they may not send until they are added again. In order.
    pub barred: Box<[IpAddr]>,
    /// One bit for each remote that belongs to it.
    members: Box<[u64]>,
}

impl Network {
    /// With no endpoints and no remotes.
    fn new(plan: &NetworkPlan, uplinks: &[UplinkPlan], sources: &[Option<IpAddr>]) -> Network {
        let outer_tag = if uplinks.iter().any(|uplink| uplink.vlan.is_some()) { VLAN_TAG } else { 0 };
        Network {
            vni: plan.vni,
            source: source_of(sources, plan.local),
            frame_max: usize::from(plan.mtu) + EthHeader::LEN + inner_tag(plan.inner_vlan),
            untagged_max: usize::from(plan.mtu) + EthHeader::LEN,
            overhead: overhead(plan, uplinks) + outer_tag,
            is_usual: plan.port.is_none() && plan.dscp == OuterDscp::ByClass,
            port: plan.port,
            dscp: plan.dscp,
            reserved_bits: plan.reserved_bits,
            inner_vlan: plan.inner_vlan,
            learning: plan.learning,
            any_remote: plan.any_remote,
            limits: limits(plan, Box::default()),
            barred: Box::default(),
            members: Box::default(),
            remotes: Box::default(),
        }
    }

    /// True if the VTEP may send to this network.
    #[inline]
    pub fn has_remote(&self, remote: RemoteId) -> bool {
        self.members.get(remote.index() / 64).is_some_and(|word| word >> (remote.index() % 64) & 1 == 1)
    }

    /// It is one of the plan, or was added.
    pub fn knows(&self, remote: RemoteId) -> bool {
        self.limits.knows(remote)
    }
}

/// One tenant, as the stages need it.
#[derive(Clone, Debug)]
pub struct Endpoint {
    /// Its network.
    pub network: NetworkId,
    /// Its Ethernet address, or that of the first of its stations.
    pub mac: MacAddr,
    /// Refuse other source addresses.
    pub anti_spoofing: bool,
    /// What one of its stations sends to another one goes back to it.
    pub hairpin: bool,
    /// Those of its other stations, in order; most have none.
    more: Option<Arc<Vec<MacAddr>>>,
}

impl Nothing for Network {
    /// Not in [`Tables::network_by_vni`], without remotes and endpoints, and no way leads anywhere from its source.
    fn nothing() -> Network {
        let plan = NetworkPlan { mtu: 0, ..NetworkPlan::new("", Vni::from_bytes([0; 3])) };
        Network { source: SourceId(u8::MAX), ..Network::new(&plan, &[], &[]) }
    }

    fn is_nothing(&self) -> bool {
        self.source == SourceId(u8::MAX)
    }
}

impl Nothing for Endpoint {
    /// On no network.
    fn nothing() -> Endpoint {
        let network = NetworkId(u16::MAX);
        Endpoint { network, mac: MacAddr([0; 6]), anti_spoofing: true, hairpin: false, more: None }
    }

    fn is_nothing(&self) -> bool {
        self.network == NetworkId(u16::MAX)
    }
}

impl Endpoint {
    fn new(plan: &EndpointPlan) -> Endpoint {
        let mut more: Vec<MacAddr> = plan.more.iter().map(|station| station.mac).collect();
        more.sort_unstable();
        Endpoint {
            network: plan.network,
            mac: plan.mac,
            anti_spoofing: plan.anti_spoofing,
            hairpin: plan.hairpin,
            more: (!more.is_empty()).then(|| Arc::new(more)),
        }
    }

    /// One of its stations has this address.
    #[inline]
    pub fn has(&self, mac: MacAddr) -> bool {
        mac == self.mac || self.has_behind_first(mac)
    }

    /// Out of the way of those that have one.
    #[cold]
    #[inline(never)]
    fn has_behind_first(&self, mac: MacAddr) -> bool {
        self.more.as_ref().is_some_and(|more| more.binary_search(&mac).is_ok())
    }
}

/// One remote VTEP.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Its address.
    pub address: IpAddr,
    /// Its outer DSCP is believed: rules may ask for it.
    pub trusted: bool,
}

/// Everything that the stages look up but MAC addresses. A copy shares what there may be much of, until it is changed: what an endpoint
/// that comes costs does not depend on how many there are.
#[derive(Clone, Debug)]
pub struct Tables {
    /// By [`UplinkId`].
    pub uplinks: Box<[Uplink]>,
    /// Those that there are.
    pub networks: Rows<NetworkId, Network>,
    /// Those that there are.
    pub endpoints: Chunks<EndpointId, Endpoint>,
    /// By [`RemoteId`].
    pub remotes: Arc<[Remote]>,
    /// By [`SourceId`]: the addresses that networks ask for; the first is `None`.
    pub sources: Box<[Option<IpAddr>]>,
    /// By remote and source.
    ways: Arc<[Way]>,
    /// Which packets belong to which priority class.
    pub classes: Arc<CompiledRules>,
    /// What is answered for tenants.
    pub answers: Arc<Answers>,
    /// Some network lowers the MSS of TCP connections.
    pub clamps_mss: bool,
    /// So many classes the queues of a tenant are shared out among; 1 where none but the default was used when the engine started.
    pub queue_classes: usize,
    /// DSCP of the outer header of what is sent, by class.
    pub dscps: [u8; Class::LIMIT],
    /// The rules have just been replaced, and frames that the XDP program judged by the old ones may lie in the rx rings. Until they are
    /// gone, what comes by the normal ring of an uplink with early classes is not of the most urgent class, whatever the rules say.
    pub settling: bool,
    /// The largest IP packet that every uplink takes, in bytes.
    uplink_mtu: usize,
    /// Senders that are no remotes, for control.
    pub(crate) strangers: Arc<Strangers>,
    /// Different in each process, so that who sends to a network that takes any remote cannot choose addresses that stand in each other's
    /// way.
    secrets: [u64; 2],
    by_vni: Index<u32>,
    by_ipv4: Index<Ipv4Key>,
    by_ipv6: Index<u128>,
}

impl Tables {
    /// From a plan; no next hop is known yet. `uplink_mtu` is the smallest of all, in bytes.
    pub fn new(plan: &Plan, uplink_mtu: usize) -> Tables {
        Tables::with_secret(plan, uplink_mtu, RandomState::new().hash_one(0u64))
    }

    /// The same with a known secret, so that measurements find every remote in the same slot each time. Not for a table that strangers can
    /// fill: see `secrets`.
    pub fn with_secret(plan: &Plan, uplink_mtu: usize, secret: u64) -> Tables {
        let secrets = [secret, mix(secret, GOLDEN) | 1];
        let addresses = remote_addresses(plan);
        let sources = sources(plan);
        let remote_id = |address: &IpAddr| addresses.get(address).copied();
        let networks = Rows::of(&plan.networks, |_, network| {
            let remotes: Box<[RemoteId]> = network.remotes.iter().filter_map(remote_id).collect();
            let members = Network::bits(addresses.len().div_ceil(64), remotes.iter().copied());
            Network {
                limits: limits(network, members.clone()),
                members,
                remotes,
                ..Network::new(network, &plan.uplinks, &sources)
            }
        });
        let mut remotes: Vec<(RemoteId, IpAddr)> =
            addresses.iter().map(|(&address, &id)| (id, address)).collect();
        remotes.sort_unstable();
        let remotes: Arc<[Remote]> = remotes.into_iter().map(|(_, address)| remote(plan, address)).collect();
        let (by_ipv4, by_ipv6) = index_addresses(&remotes, secrets);
        Tables {
            uplinks: plan.uplinks.iter().map(|uplink| Uplink::new(uplink, &plan.networks)).collect(),
            secrets,
            by_vni: index_vnis(&networks, secrets),
            by_ipv4,
            by_ipv6,
            networks,
            ways: vec![Way::None; remotes.len() * sources.len()].into(),
            sources,
            endpoints: Chunks::of(&plan.endpoints, |_, endpoint| Endpoint::new(endpoint)),
            remotes,
            classes: Arc::new(CompiledRules::compile(plan)),
            answers: Arc::new(Answers::new(plan)),
            clamps_mss: plan.networks.values().any(|network| network.clamp_mss),
            queue_classes: if plan.classes.are_used(&plan.networks) { plan.classes.list.len() } else { 1 },
            dscps: std::array::from_fn(|class| plan.classes.list.get(class).map_or(0, |class| class.dscp)),
            settling: false,
            uplink_mtu,
            strangers: Arc::default(),
        }
    }

    /// Sets how a remote is reached from one of our addresses: by these paths, or not at all.
    pub fn set_paths(&mut self, remote: RemoteId, source: SourceId, paths: &[Path]) {
        let way = Way::new(
            paths.iter().filter_map(|path| Some((self.adjacency(remote, path)?, path.weight))).collect(),
        );
        let at = self.way_index(remote, source);
        if let Some(entry) = at.and_then(|at| Arc::make_mut(&mut self.ways).get_mut(at)) {
            *entry = way;
        }
    }

    fn adjacency(&self, remote: RemoteId, path: &Path) -> Option<Adjacency> {
        let uplink = self.uplinks.get(path.hop.uplink.index())?;
        let fields = OuterFields {
            destination_mac: path.hop.destination,
            source_mac: path.hop.source,
            source: path.local,
            destination: self.remotes.get(remote.index())?.address,
            port: uplink.port,
            ttl: uplink.ttl,
        };
        let outer = OuterHeaders::new(&fields, uplink.vlan)?;
        let udp_checksum = if outer.is_ipv6() { uplink.udp_checksum.ipv6 } else { uplink.udp_checksum.ipv4 };
        let link_header = EthHeader::LEN + uplink.vlan.map_or(0, |_| VLAN_TAG);
        let packet_max = (path.mtu as usize).min(self.uplink_mtu).min(usize::from(u16::MAX));
        let inner_max = (packet_max + link_header).checked_sub(outer.len())?;
        let target = Target::Uplink(path.hop.uplink);
        Some(Adjacency { outer, udp_checksum, inner_max, source_ports: uplink.source_ports, target })
    }

    /// How a remote is reached from one of our addresses.
    #[inline]
    pub fn way(&self, remote: RemoteId, source: SourceId) -> Option<&Way> {
        self.ways.get(self.way_index(remote, source)?)
    }

    #[inline]
    pub(crate) fn way_index(&self, remote: RemoteId, source: SourceId) -> Option<usize> {
        (source.index() < self.sources.len()).then(|| remote.index() * self.sources.len() + source.index())
    }

    /// The uplink with this id.
    #[inline]
    pub fn uplink(&self, id: UplinkId) -> Option<&Uplink> {
        self.uplinks.get(id.index())
    }

    /// The source of a network that asks for this address.
    pub(crate) fn source_of(&self, local: Option<IpAddr>) -> SourceId {
        source_of(&self.sources, local)
    }

    /// The network with this VNI.
    #[inline]
    pub fn network_by_vni(&self, vni: Vni) -> Option<(NetworkId, &Network)> {
        let id = NetworkId(self.by_vni.get(vni.get())?);
        Some((id, self.networks.get(id)?))
    }

    /// The network with this id.
    #[inline]
    pub fn network(&self, id: NetworkId) -> Option<&Network> {
        self.networks.get(id)
    }

    /// The endpoint with this id.
    #[inline]
    pub fn endpoint(&self, id: EndpointId) -> Option<&Endpoint> {
        self.endpoints.get(id)
    }

    /// The remote with this id.
    #[inline]
    pub fn remote(&self, id: RemoteId) -> Option<&Remote> {
        self.remotes.get(id.index())
    }

    /// The remote VTEP with this IPv4 address.
    #[inline]
    pub fn remote_by_ipv4(&self, address: Ipv4Addr) -> Option<RemoteId> {
        self.by_ipv4.get(Ipv4Key(address.into())).map(RemoteId)
    }

    /// The remote VTEP with this IPv6 address.
    #[inline]
    pub fn remote_by_ipv6(&self, address: Ipv6Addr) -> Option<RemoteId> {
        self.by_ipv6.get(u128::from(address)).map(RemoteId)
    }
}

/// Each remote VTEP of any network once, with its id.
pub fn remote_addresses(plan: &Plan) -> BTreeMap<IpAddr, RemoteId> {
    let mut addresses = BTreeMap::new();
    for address in plan.networks.values().flat_map(|network| &network.remotes) {
        let next = RemoteId(addresses.len() as u16);
        addresses.entry(*address).or_insert(next);
    }
    addresses
}

fn remote(plan: &Plan, address: IpAddr) -> Remote {
    Remote { address, trusted: plan.classes.trusted.contains(&address) }
}

/// Bytes of the outer headers, without a tag, of what is sent to the network's remotes, at most. One that has none, because they come while
/// it runs, sends from any address of ours; and to one that takes any remote they may come over every family that it has an address of.
pub fn overhead(network: &NetworkPlan, uplinks: &[UplinkPlan]) -> usize {
    let mut locals = uplinks.iter().flat_map(|uplink| &uplink.locals);
    let has_ipv6 = match network.local {
        Some(local) => local.is_ipv6(),
        None if network.any_remote => locals.any(IpAddr::is_ipv6),
        None if network.remotes.is_empty() => locals.all(IpAddr::is_ipv6),
        None => network.remotes.iter().any(IpAddr::is_ipv6),
    };
    if has_ipv6 { OVERHEAD_IPV6 } else { OVERHEAD_IPV4 }
}

/// Bytes that an inner frame may be longer by when it comes.
pub(crate) fn inner_tag(inner_vlan: InnerVlan) -> usize {
    if inner_vlan == InnerVlan::Drop { 0 } else { VLAN_TAG }
}

fn limits(network: &NetworkPlan, known: Box<[u64]>) -> Limits {
    Limits {
        addresses: network.fdb_limit,
        moves: network.move_limit,
        hold_s: u32::try_from(network.move_hold.as_secs()).unwrap_or(u32::MAX),
        known: Some(known),
    }
}

fn index_vnis(networks: &Rows<NetworkId, Network>, secrets: [u64; 2]) -> Index<u32> {
    Index::new(secrets, networks.iter().map(|(id, network)| (network.vni.get(), id.0)))
}

/// Where to find those that are somewhere.
fn index_addresses(remotes: &[Remote], secrets: [u64; 2]) -> (Index<Ipv4Key>, Index<u128>) {
    let there = || remotes.iter().zip(0u16..).filter(|(remote, _)| !remote.address.is_unspecified());
    let ipv4 = there().filter_map(|(remote, id)| match remote.address {
        IpAddr::V4(address) => Some((Ipv4Key(address.into()), id)),
        IpAddr::V6(_) => None,
    });
    let ipv6 = there().filter_map(|(remote, id)| match remote.address {
        IpAddr::V6(address) => Some((u128::from(address), id)),
        IpAddr::V4(_) => None,
    });
    (Index::new(secrets, ipv4), Index::new(secrets, ipv6))
}

/// The addresses that networks may ask to be sent from, each once, behind "whichever" as the first: also those that come later.
fn sources(plan: &Plan) -> Box<[Option<IpAddr>]> {
    let mut sources = vec![None];
    let locals = plan.uplinks.iter().flat_map(|uplink| &uplink.locals).copied();
    let asked = plan.networks.values().filter_map(|network| network.local);
    for local in asked.chain(locals).map(Some) {
        if !sources.contains(&local) {
            sources.push(local);
        }
    }
    sources.into()
}

fn source_of(sources: &[Option<IpAddr>], local: Option<IpAddr>) -> SourceId {
    SourceId(sources.iter().position(|source| *source == local).map_or(0, |index| index as u8))
}

/// A number → a 16-bit index: open addressing, at most half full, made once and only read.
#[derive(Clone, Debug)]
struct Index<K> {
    slots: Arc<[(K, u16)]>,
    secrets: [u64; 2],
}

/// What can be looked up in an [`Index`].
trait Key: Copy + Default + Eq {
    /// A hash whose lowest bits are as good as any.
    fn hash(self, secrets: [u64; 2]) -> u64;
}

/// VNIs are the config's: nobody else can choose them, and no secret is needed.
impl Key for u32 {
    #[inline]
    fn hash(self, _: [u64; 2]) -> u64 {
        mix(u64::from(self) ^ 0x243f_6a88_85a3_08d3, GOLDEN)
    }
}

/// Addresses of remotes are chosen by whoever sends to a network that takes any.
impl Key for Ipv4Key {
    #[inline]
    fn hash(self, secrets: [u64; 2]) -> u64 {
        hash_address(u64::from(self.0), 0, secrets)
    }
}

impl Key for u128 {
    #[inline]
    fn hash(self, secrets: [u64; 2]) -> u64 {
        hash_address(self as u64, (self >> 64) as u64, secrets)
    }
}

/// An IPv4 address.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
struct Ipv4Key(u32);

/// Two products: both halves of an address are behind a secret, so nobody knows which one makes a factor zero, and the second product takes
/// apart what goes in step after the first.
#[inline]
fn hash_address(low: u64, high: u64, [first, second]: [u64; 2]) -> u64 {
    mix(mix(low ^ first, high ^ second), GOLDEN)
}

/// Digits of the golden ratio: any odd number with its bits well mixed would do.
const GOLDEN: u64 = 0x9e37_79b9_7f4a_7c15;

/// Marks a free slot; no id has this value.
const NONE: u16 = u16::MAX;

impl<K: Key> Index<K> {
    fn new(secrets: [u64; 2], pairs: impl Iterator<Item = (K, u16)> + Clone) -> Index<K> {
        let len = (pairs.clone().count() * 2).next_power_of_two().max(2);
        let mut slots = vec![(K::default(), NONE); len];
        for (key, id) in pairs {
            let mut at = key.hash(secrets) as usize & (len - 1);
            while let Some(slot) = slots.get_mut(at) {
                if slot.1 == NONE {
                    *slot = (key, id);
                    break;
                }
                at = (at + 1) & (len - 1);
            }
        }
        Index { slots: slots.into(), secrets }
    }

    #[inline]
    fn get(&self, key: K) -> Option<u16> {
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
    fn home(&self, key: K) -> usize {
        key.hash(self.secrets) as usize & (self.slots.len() - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: u64 = 0x1234_5678_9abc_def1;
    const SECRETS: [u64; 2] = [SECRET, 7];

    #[test]
    fn an_index_finds_what_was_put_in_and_nothing_else() {
        for count in [0u32, 1, 2, 3, 100, 5000] {
            let index = Index::new(SECRETS, (0..count).map(|n| (n * 3, n as u16)));
            let ipv4_index = Index::new(SECRETS, (0..count).map(|n| (Ipv4Key(n * 3), n as u16)));
            let wide = |n: u32| u128::from(n) << 64 | 0xfe80;
            let wide_index = Index::new(SECRETS, (0..count).map(|n| (wide(n * 3), n as u16)));
            for n in 0..count * 3 + 10 {
                let expected = (n % 3 == 0 && n / 3 < count).then_some((n / 3) as u16);
                let found = [index.get(n), ipv4_index.get(Ipv4Key(n)), wide_index.get(wide(n))];
                assert_eq!(found, [expected; 3], "{n} of {count}");
            }
        }
    }

    /// The slots that a look-up of each key goes through, all of them together.
    fn steps<K: Key>(index: &Index<K>, keys: impl Iterator<Item = K>) -> usize {
        let mask = index.slots.len() - 1;
        let of = |key: K| {
            let home = index.home(key);
            let at = index.slots.iter().position(|slot| slot.1 != NONE && slot.0 == key).unwrap();
            (at.wrapping_sub(home) & mask) + 1
        };
        keys.map(of).sum()
    }

    /// As many senders as a network takes, who know how the hash is made but not the secret.
    #[test]
    fn addresses_that_were_chosen_do_not_stand_in_each_others_way() {
        let secrets = |n: u64| {
            let secret = mix(n + 1, 0x517c_c1b7_2722_0a95);
            Tables::with_secret(&plan(), 1500, secret).secrets
        };
        let ids = 0..256u16;
        // Those that meet in one slot by another process's secret, and networks that hit one factor by constants or by that secret.
        let known = secrets(1000);
        let meet: Vec<Ipv4Key> =
            (0x0a00_0000..).map(Ipv4Key).filter(|key| key.hash(known) & 511 == 0).take(ids.len()).collect();
        let zero = u128::from(known[1]) << 64;
        let ipv6: [Vec<u128>; 3] = [
            ids.clone().map(|n| u128::from(n) << 64 | 0x243f_6a88_85a3_08d3).collect(),
            ids.clone().map(|n| 0x9e37_79b9_7f4a_7c15 << 64 | u128::from(n)).collect(),
            ids.clone().map(|n| zero | u128::from(n)).collect(),
        ];
        let strides: Vec<Vec<Ipv4Key>> = (0..24)
            .map(|bits| ids.clone().map(|n| Ipv4Key(0x0a00_0000 + (u32::from(n) << bits))).collect())
            .collect();
        for secrets in (0..64).map(secrets) {
            for keys in strides.iter().chain([&meet]) {
                let index = Index::new(secrets, keys.iter().copied().zip(0..));
                let steps = steps(&index, keys.iter().copied());
                assert!(steps < 4 * keys.len(), "{steps} steps, {:?} and others", keys[1]);
            }
            for keys in &ipv6 {
                let index = Index::new(secrets, keys.iter().copied().zip(0..));
                let steps = steps(&index, keys.iter().copied());
                assert!(steps < 4 * keys.len(), "{steps} steps, {:x} and others", keys[1]);
            }
        }
    }

    #[test]
    fn tables_have_secrets_of_their_own_and_keep_them() {
        let tables = Tables::new(&plan(), 1500);
        assert_ne!(tables.secrets, Tables::new(&plan(), 1500).secrets);
        let mut later = tables.clone();
        later.set_remotes(&[(RemoteId(0), Some([192, 0, 2, 9].into()), false)]);
        assert_eq!((later.secrets, later.by_ipv4.secrets), (tables.secrets, tables.secrets));
        assert_eq!(later.remote_by_ipv4([192, 0, 2, 9].into()), Some(RemoteId(0)));
    }

    fn plan() -> Plan {
        Plan {
            workers: Vec::new(),
            placement: Default::default(),
            balance_threshold: 85,
            uplinks: Vec::new(),
            networks: Default::default(),
            endpoints: Default::default(),
            capacity: Default::default(),
            classes: Default::default(),
            control_socket: Default::default(),
            ..Plan::default()
        }
    }

    #[test]
    fn outer_headers_are_as_long_as_the_longest_that_a_network_may_need() {
        let (v4, v6) = (IpAddr::from([192, 0, 2, 1]), IpAddr::from([0xfd, 0, 0, 0, 0, 0, 0, 1]));
        let uplink = |locals: &[IpAddr]| UplinkPlan { locals: locals.into(), ..UplinkPlan::new("eth0", v4) };
        let plain = NetworkPlan::new("blue", Vni::new(42).unwrap());
        let any = NetworkPlan { any_remote: true, ..plain.clone() };
        let to = |remotes: &[IpAddr]| NetworkPlan { remotes: remotes.into(), ..plain.clone() };
        let cases = [
            (&plain, vec![v4, v6], OVERHEAD_IPV4),
            (&plain, vec![v6], OVERHEAD_IPV6),
            (&to(&[v4]), vec![v4, v6], OVERHEAD_IPV4),
            (&to(&[v4, v6]), vec![v4, v6], OVERHEAD_IPV6),
            (&any, vec![v4], OVERHEAD_IPV4),
            (&any, vec![v4, v6], OVERHEAD_IPV6),
            (&NetworkPlan { any_remote: true, ..to(&[v4]) }, vec![v4, v6], OVERHEAD_IPV6),
            (&NetworkPlan { local: Some(v4), ..any.clone() }, vec![v4, v6], OVERHEAD_IPV4),
        ];
        for (network, locals, expected) in cases {
            assert_eq!(overhead(network, &[uplink(&locals)]), expected, "{network:?} from {locals:?}");
        }
    }

    #[test]
    fn parts_are_shared_out_by_weight() {
        let shares = |weights: &[u32]| {
            let parts = share_out(weights);
            (0..weights.len())
                .map(|owner| parts.iter().filter(|part| **part == owner as u8).count())
                .collect()
        };
        let cases: [(&[u32], &[usize]); 7] = [
            (&[1, 1], &[32, 32]),
            (&[1, 3], &[16, 48]),
            (&[1, 1, 1], &[22, 21, 21]),
            (&[2, 1, 1], &[32, 16, 16]),
            (&[255, 1], &[63, 1]),
            (&[5, 11], &[20, 44]),
            (&[1; 64], &[1; 64]),
        ];
        for (weights, expected) in cases {
            let shares: Vec<usize> = shares(weights);
            assert_eq!(shares, expected, "{weights:?}");
        }
    }
}
