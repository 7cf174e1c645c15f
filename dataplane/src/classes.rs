//! Which priority class a packet belongs to: the plan's rules, made so that 1000 of them cost what 10 do. Pure; part of
//! [`Tables`](crate::tables::Tables), never changed.
//!
//! The stages ask [`settled`](CompiledRules::settled) first: where no header can matter it answers by one load, and nothing else need be
//! read. Otherwise they read [`Headers`] (which give the flow hash too) and ask [`classify`](CompiledRules::classify).
//!
//! Each thing that a rule may ask for is a dimension: the packet's value in it gives a row, the set of rules that this value does
//! not rule out (`rows.rs`), by a table or a trie (`trie.rs`). What is in all rows matches, and the first of it in the plan decides.
//! Dimensions that no rule asks for are skipped. What a packet can cost is bounded, whatever its sender puts into it: 64 words of
//! each row, where hash tables by combination of fields can be made to be searched all.
//!
//! What must hold: no allocation, lock or panic in a look-up.

mod rows;
mod trie;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use self::rows::{Rows, set, words};
use self::trie::{Range, Trie};
use crate::plan::{ClassesPlan, PlaceId, Plan, Prefix, RulePlan};
use crate::types::{Class, EndpointId, MacAddr, NetworkId};
use crate::wire::flow::{Headers, Ip, mix};

/// What is known of a packet before its headers are read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Known {
    /// Where it is.
    pub network: NetworkId,
    /// Who sends it, if that is a tenant of this host.
    pub sender: Option<EndpointId>,
    /// The outer header's DSCP, if the remote is trusted to set it ([`Remote::trusted`](crate::tables::Remote::trusted)).
    pub outer_dscp: Option<u8>,
}

/// All of a packet that rules can ask for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Key {
    /// Where it is.
    pub network: NetworkId,
    /// Who sends it, if that is a tenant of this host.
    pub sender: Option<EndpointId>,
    /// Who receives it, if that is a tenant of this host that a rule names.
    pub receiver: Option<EndpointId>,
    /// The outer header's, if believed.
    pub outer_dscp: Option<u8>,
    /// The IP header's.
    pub dscp: Option<u8>,
    /// IPv4's protocol, IPv6's next header.
    pub protocol: Option<u8>,
    /// Source and destination; fragments have none.
    pub ports: Option<[u16; 2]>,
    /// Source and destination.
    pub addresses: Addresses,
}

/// The addresses of a packet: source and destination.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Addresses {
    /// It is not IP.
    None,
    /// IPv4.
    V4([[u8; 4]; 2]),
    /// IPv6.
    V6([[u8; 16]; 2]),
}

/// The rules of a plan, to be looked up.
#[derive(Debug)]
pub struct CompiledRules {
    rows: Box<[u64]>,
    /// By bit.
    places: Box<[Place]>,
    /// By network.
    networks: Box<[Network]>,
    default: Class,
    is_trivial: bool,
    endpoints: Option<Endpoints>,
    outer_dscp: Option<ByteTable>,
    dscp: Option<ByteTable>,
    protocol: Option<ByteTable>,
    source_port: Option<PortTrie>,
    destination_port: Option<PortTrie>,
    port: Option<PortTrie>,
    source: Option<AddressTries>,
    destination: Option<AddressTries>,
    address: Option<AddressTries>,
}

#[derive(Clone, Copy, Debug)]
struct Network {
    /// The class of all its packets, if headers do not matter.
    settled: Option<Class>,
    default: Class,
    row: u32,
}

impl CompiledRules {
    /// From a plan.
    pub fn compile(plan: &Plan) -> CompiledRules {
        let rules = arranged(&plan.classes.rules);
        let words = rules.last().map_or(0, |last| words(last.bit + 1));
        let mut places = vec![Place { rule: u16::MAX, class: plan.classes.default }; words * 64];
        for Arranged { bit, place, rule } in &rules {
            if let Some(at) = places.get_mut(*bit) {
                *at = Place { rule: *place as u16, class: rule.class };
            }
        }
        let mut make = Make { rules, words, rows: Rows::new() };
        let networks = make.networks(plan);
        let is_trivial = networks.iter().all(|network| network.settled == Some(plan.classes.default));
        CompiledRules {
            places: places.into(),
            is_trivial,
            networks,
            default: plan.classes.default,
            endpoints: make.endpoints(plan),
            outer_dscp: make.bytes(|rule| rule.outer_dscp, |set, value| set.contains(value)),
            dscp: make.bytes(|rule| rule.dscp, |set, value| set.contains(value)),
            protocol: make.bytes(|rule| rule.protocol, |protocol, value| protocol == value),
            source_port: make.ports(|rule| rule.source_port.as_ref()),
            destination_port: make.ports(|rule| rule.destination_port.as_ref()),
            port: make.ports(|rule| rule.port.as_ref()),
            source: make.addresses(|rule| rule.source),
            destination: make.addresses(|rule| rule.destination),
            address: make.addresses(|rule| rule.address),
            rows: make.rows.into_words(),
        }
    }

    /// Every packet has the default class: nobody needs to ask.
    #[inline]
    pub fn is_trivial(&self) -> bool {
        self.is_trivial
    }

    /// Some rule asks for the outer DSCP: only then it needs to be in [`Known`].
    #[inline]
    pub fn asks_outer_dscp(&self) -> bool {
        self.outer_dscp.is_some()
    }

    /// The class of all packets on this network, if their headers do not matter: there are no rules for it, or the first takes all.
    #[inline]
    pub fn settled(&self, network: NetworkId) -> Option<Class> {
        match self.networks.get(network.index()) {
            Some(network) => network.settled,
            None => Some(self.default),
        }
    }

    /// The class of a packet. A frame too short for an Ethernet header has none of its own: ask with
    /// [`settled`](Self::settled) or drop it.
    #[inline]
    pub fn classify(&self, known: &Known, headers: &Headers<'_>) -> Class {
        match self.settled(known.network) {
            Some(class) => class,
            None => self.class_of(&self.key(known, headers)),
        }
    }

    /// What rules can ask for, of this packet.
    #[inline]
    pub fn key(&self, known: &Known, headers: &Headers<'_>) -> Key {
        let receiver = |endpoints: &Endpoints| {
            endpoints.macs.get(mac_key(known.network, headers.eth.destination())).map(EndpointId)
        };
        let mut key = Key {
            network: known.network,
            sender: known.sender,
            receiver: self.endpoints.as_ref().and_then(receiver),
            outer_dscp: known.outer_dscp,
            dscp: None,
            protocol: None,
            ports: None,
            addresses: Addresses::None,
        };
        let ports = match headers.ip {
            // Version 4 and a header of 5 to 15 words.
            Ip::V4(header, ports) if header[0].wrapping_sub(0x45) <= 10 => {
                let [_, tos, _, _, _, _, _, _, _, protocol, _, _, addresses @ ..] = *header;
                let [a, b, c, d, e, f, g, h] = addresses;
                key.dscp = Some(tos >> 2);
                key.protocol = Some(protocol);
                key.addresses = Addresses::V4([[a, b, c, d], [e, f, g, h]]);
                ports
            }
            Ip::V6(header, ports) if header[0] >> 4 == 6 => {
                let (addresses, _) = header[8..].as_chunks::<16>();
                let [source, destination] = addresses else { return key };
                key.dscp = Some((header[0] & 0xf) << 2 | header[1] >> 6);
                key.protocol = Some(header[6]);
                key.addresses = Addresses::V6([*source, *destination]);
                ports
            }
            _ => None,
        };
        key.ports = ports.map(|&[a, b, c, d]| [u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d])]);
        key
    }

    /// The class of a packet with this key: that of the first rule that matches, or its network's default.
    #[inline]
    pub fn class_of(&self, key: &Key) -> Class {
        let Some(network) = self.networks.get(key.network.index()) else { return self.default };
        let mut left = Left::new(&self.rows);
        left.keep(network.row);
        if let Some(endpoints) = &self.endpoints {
            left.keep_either(endpoints.get(key.sender), endpoints.get(key.receiver));
        }
        if let Some(table) = &self.outer_dscp {
            left.keep(table.get(key.outer_dscp));
        }
        if let Some(table) = &self.dscp {
            left.keep(table.get(key.dscp));
        }
        if let Some(table) = &self.protocol {
            left.keep(table.get(key.protocol));
        }
        let [source, destination] = key.ports.map_or([None; 2], |ports| ports.map(Some));
        if let Some(trie) = &self.source_port {
            left.keep(trie.get(source));
        }
        if let Some(trie) = &self.destination_port {
            left.keep(trie.get(destination));
        }
        if let Some(trie) = &self.port {
            left.keep_either(trie.get(source), trie.get(destination));
        }
        if let Some(tries) = &self.source {
            left.keep(tries.get(&key.addresses, 0));
        }
        if let Some(tries) = &self.destination {
            left.keep(tries.get(&key.addresses, 1));
        }
        if let Some(tries) = &self.address {
            left.keep_either(tries.get(&key.addresses, 0), tries.get(&key.addresses, 1));
        }
        left.first(&self.places).map_or(network.default, |place| place.class)
    }
}

/// Where a bit of the rows stands in the plan.
#[derive(Clone, Copy, Debug)]
struct Place {
    /// The rule's number: the lowest decides.
    rule: u16,
    class: Class,
}

/// What of a packet must be in one row,
const SINGLE: usize = 8;
/// and what in either of two.
const EITHER: usize = 3;

/// The rules that are not ruled out yet.
struct Left<'a> {
    rows: &'a [u64],
    /// Words in which there may be some.
    summary: u64,
    single: [u32; SINGLE],
    singles: usize,
    either: [(u32, u32); EITHER],
    eithers: usize,
}

impl<'a> Left<'a> {
    #[inline(always)]
    fn new(rows: &'a [u64]) -> Left<'a> {
        Left {
            rows,
            summary: u64::MAX,
            single: [0; SINGLE],
            singles: 0,
            either: [(0, 0); EITHER],
            eithers: 0,
        }
    }

    /// Keeps those that are in this row.
    #[inline(always)]
    fn keep(&mut self, row: u32) {
        self.summary &= self.word(row, 0);
        if let Some(place) = self.single.get_mut(self.singles) {
            *place = row;
            self.singles += 1;
        }
    }

    /// Keeps those that are in one of two rows.
    #[inline(always)]
    fn keep_either(&mut self, one: u32, other: u32) {
        self.summary &= self.word(one, 0) | self.word(other, 0);
        if let Some(place) = self.either.get_mut(self.eithers) {
            *place = (one, other);
            self.eithers += 1;
        }
    }

    /// The first in the plan of those that are left. In each word they stand in the plan's order.
    #[inline(always)]
    fn first(&self, places: &[Place]) -> Option<Place> {
        let mut first: Option<Place> = None;
        let mut summary = self.summary;
        while summary != 0 {
            let at = summary.trailing_zeros();
            summary &= summary - 1;
            let mut word = u64::MAX;
            for &row in self.single.iter().take(self.singles) {
                word &= self.word(row, 1 + at);
            }
            for &(one, other) in self.either.iter().take(self.eithers) {
                word &= self.word(one, 1 + at) | self.word(other, 1 + at);
            }
            if word != 0
                && let Some(place) = places.get(at as usize * 64 + word.trailing_zeros() as usize)
                && first.is_none_or(|first| place.rule < first.rule)
            {
                first = Some(*place);
            }
        }
        first
    }

    #[inline(always)]
    fn word(&self, row: u32, at: u32) -> u64 {
        self.rows.get(row as usize + at as usize).copied().unwrap_or_default()
    }
}

/// Rows by a byte.
#[derive(Debug)]
struct ByteTable {
    by_value: Box<[u32; 256]>,
    none: u32,
}

impl ByteTable {
    #[inline]
    fn get(&self, value: Option<u8>) -> u32 {
        value.and_then(|value| self.by_value.get(usize::from(value)).copied()).unwrap_or(self.none)
    }
}

/// Rows by a port.
#[derive(Debug)]
struct PortTrie {
    trie: Trie,
    none: u32,
}

impl PortTrie {
    #[inline]
    fn get(&self, port: Option<u16>) -> u32 {
        port.map_or(self.none, |port| self.trie.get(&port.to_be_bytes()))
    }
}

/// Rows by an address.
#[derive(Debug)]
struct AddressTries {
    v4: Trie,
    v6: Trie,
    none: u32,
}

impl AddressTries {
    #[inline]
    fn get(&self, addresses: &Addresses, side: usize) -> u32 {
        match addresses {
            Addresses::V4(sides) => sides.get(side).map_or(self.none, |address| self.v4.get(address)),
            Addresses::V6(sides) => sides.get(side).map_or(self.none, |address| self.v6.get(address)),
            Addresses::None => self.none,
        }
    }
}

/// Rows by an endpoint.
#[derive(Debug)]
struct Endpoints {
    by_id: Box<[u32]>,
    none: u32,
    /// Those that a rule names.
    macs: MacIndex,
}

impl Endpoints {
    #[inline]
    fn get(&self, endpoint: Option<EndpointId>) -> u32 {
        endpoint.and_then(|id| self.by_id.get(id.index()).copied()).unwrap_or(self.none)
    }
}

/// Network and address in one number.
#[inline]
const fn mac_key(network: NetworkId, mac: MacAddr) -> u64 {
    (network.0 as u64) << 48 | mac.to_u64()
}

/// Network and MAC address → endpoint: open addressing, at most half full, made once and only read. Whoever sends packets cannot
/// put anything in.
#[derive(Debug)]
struct MacIndex {
    slots: Box<[Option<(u64, u16)>]>,
}

impl MacIndex {
    fn new(pairs: &[(u64, u16)]) -> MacIndex {
        let len = (pairs.len() * 2).next_power_of_two().max(2);
        let mut index = MacIndex { slots: vec![None; len].into() };
        for pair in pairs {
            let mut at = index.home(pair.0);
            while let Some(Some(_)) = index.slots.get(at) {
                at = (at + 1) & (len - 1);
            }
            if let Some(slot) = index.slots.get_mut(at) {
                *slot = Some(*pair);
            }
        }
        index
    }

    #[inline]
    fn get(&self, key: u64) -> Option<u16> {
        let mut at = self.home(key);
        loop {
            let (stored, id) = (*self.slots.get(at)?)?; // at most half full: a free slot always comes
            if stored == key {
                return Some(id);
            }
            at = (at + 1) & (self.slots.len() - 1);
        }
    }

    #[inline]
    fn home(&self, key: u64) -> usize {
        mix(key ^ 0x243f_6a88_85a3_08d3, 0x9e37_79b9_7f4a_7c15) as usize & (self.slots.len() - 1)
    }
}

/// A rule, and where it stands.
#[derive(Clone, Copy)]
struct Arranged<'p> {
    /// In the rows.
    bit: usize,
    /// In the plan.
    place: usize,
    rule: &'p RulePlan,
}

/// More words have no bit in the summary.
const WORDS_MAX: usize = 64;

/// The rules as their bits stand in the rows: those that ask for the same things together, and in each word in the plan's order.
/// A packet that lacks what one of them asks for then mostly rules out its neighbours too, and the summary says so. Rules that ask
/// for different things share no word, unless there are too many kinds.
fn arranged(rules: &[RulePlan]) -> Vec<Arranged<'_>> {
    let mut kinds = BTreeMap::<u16, Vec<(usize, &RulePlan)>>::new();
    for (place, rule) in rules.iter().enumerate().take(ClassesPlan::RULES_MAX) {
        kinds.entry(rule.asks()).or_default().push((place, rule));
    }
    let apart = kinds.values().map(|kind| words(kind.len())).sum::<usize>() <= WORDS_MAX;
    let mut arranged = Vec::with_capacity(rules.len());
    let mut bit = 0;
    for kind in kinds.values() {
        if apart {
            bit = words(bit) * 64;
        }
        for &(place, rule) in kind {
            arranged.push(Arranged { bit, place, rule });
            bit += 1;
        }
    }
    for word in arranged.chunk_by_mut(|one, next| one.bit / 64 == next.bit / 64) {
        let bits: Vec<usize> = word.iter().map(|rule| rule.bit).collect();
        word.sort_by_key(|rule| rule.place);
        word.iter_mut().zip(bits).for_each(|(rule, bit)| rule.bit = bit);
    }
    arranged
}

/// The dimensions while they are made; those that no rule asks for are `None`.
struct Make<'p> {
    rules: Vec<Arranged<'p>>,
    words: usize,
    rows: Rows,
}

impl Make<'_> {
    /// The set of rules of which this is true.
    fn those(&self, is: impl Fn(&RulePlan) -> bool) -> Vec<u64> {
        let mut those = vec![0; self.words];
        for arranged in self.rules.iter().filter(|arranged| is(arranged.rule)) {
            set(&mut those, arranged.bit);
        }
        those
    }

    /// By place. Where there is none, no packet is on it.
    fn networks(&mut self, plan: &Plan) -> Box<[Network]> {
        let mut networks = Vec::with_capacity(plan.networks.end());
        for id in (0..plan.networks.end()).map(NetworkId::at) {
            let class = plan.network(id).map_or(plan.classes.default, |network| network.class);
            let applies = |rule: &RulePlan| rule.network.is_none_or(|its| its == id);
            let settled = match plan.classes.rules.iter().find(|rule| applies(rule)) {
                Some(rule) if rule.is_network_only() => Some(rule.class),
                Some(_) => None,
                None => Some(class),
            };
            let row = self.those(applies);
            networks.push(Network { settled, default: class, row: self.rows.add(&row) });
        }
        networks.into()
    }

    fn endpoints(&mut self, plan: &Plan) -> Option<Endpoints> {
        let asked = self.rules.iter().filter_map(|arranged| arranged.rule.endpoint);
        let named: BTreeSet<EndpointId> = asked.collect();
        let unasked = self.those(|rule| rule.endpoint.is_none());
        let none = self.rows.add(&unasked);
        let mut by_id = vec![none; plan.endpoints.end()];
        let mut macs = Vec::new();
        for id in &named {
            let (Some(endpoint), Some(place)) = (plan.endpoint(*id), by_id.get_mut(id.index())) else {
                continue;
            };
            let row = self.those(|rule| rule.endpoint.is_none_or(|asked| asked == *id));
            *place = self.rows.add(&row);
            macs.extend(endpoint.stations().map(|station| (mac_key(endpoint.network, station.mac), id.0)));
        }
        (!named.is_empty()).then(|| Endpoints { by_id: by_id.into(), none, macs: MacIndex::new(&macs) })
    }

    fn bytes<T>(
        &mut self,
        asks: impl Fn(&RulePlan) -> Option<T>,
        matches: impl Fn(T, u8) -> bool,
    ) -> Option<ByteTable> {
        self.rules.iter().find_map(|arranged| asks(arranged.rule))?;
        let unasked = self.those(|rule| asks(rule).is_none());
        let mut table = ByteTable { by_value: Box::new([0; 256]), none: self.rows.add(&unasked) };
        for (value, place) in (0..=255u8).zip(table.by_value.iter_mut()) {
            let row = self.those(|rule| asks(rule).is_none_or(|asked| matches(asked, value)));
            *place = self.rows.add(&row);
        }
        Some(table)
    }

    fn ports(&mut self, asks: impl Fn(&RulePlan) -> Option<&RangeInclusive<u16>>) -> Option<PortTrie> {
        self.rules.iter().find_map(|arranged| asks(arranged.rule))?;
        let unasked = self.those(|rule| asks(rule).is_none());
        let range = |rule: &RulePlan| asks(rule).map(|r| (u128::from(*r.start()), u128::from(*r.end())));
        Some(PortTrie { trie: self.trie(2, range, &unasked), none: self.rows.add(&unasked) })
    }

    fn addresses(&mut self, asks: impl Fn(&RulePlan) -> Option<Prefix>) -> Option<AddressTries> {
        self.rules.iter().find_map(|arranged| asks(arranged.rule))?;
        let unasked = self.those(|rule| asks(rule).is_none());
        let range = |v4| {
            let asks = &asks;
            move |rule: &RulePlan| asks(rule).filter(|p| p.is_ipv4() == v4).map(|p| p.numbers())
        };
        Some(AddressTries {
            v4: self.trie(4, range(true), &unasked),
            v6: self.trie(16, range(false), &unasked),
            none: self.rows.add(&unasked),
        })
    }

    /// For numbers of so many bytes.
    fn trie(
        &mut self,
        bytes: u32,
        asks: impl Fn(&RulePlan) -> Option<(u128, u128)>,
        unasked: &[u64],
    ) -> Trie {
        let range =
            |arranged: &Arranged<'_>| asks(arranged.rule).map(|(first, last)| (first, last, arranged.bit));
        let ranges: Vec<Range> = self.rules.iter().filter_map(range).collect();
        Trie::new(bytes, &ranges, unasked, &mut self.rows)
    }
}
