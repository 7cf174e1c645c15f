//! Which frames are urgent, as far as the XDP program can tell: what control says, and how it stands in the program's maps.
//!
//! Called by [`Uplink::set_early`](super::Uplink::set_early). The maps, and what they mean, are told in bpf/steer.c ("Early
//! classes"); the numbers here are those there. What must hold: only the generation that the program does not use is changed, and
//! the program is told of it when it is complete.

use std::collections::{BTreeMap, BTreeSet};

use aya::Ebpf;
use aya::maps::{Array, HashMap, MapData};

use crate::types::Vni;
use crate::wire::ip::{PROTOCOL_SCTP, PROTOCOL_TCP, PROTOCOL_UDP};

use super::XskError;
use super::program::{failed, missing, or_absent};

/// Networks with rules of their own: as many as a config may have networks.
pub const EARLY_NETWORKS_MAX: usize = 4096;

/// Ports over all networks: each protocol's and each network's counts for itself, both sides of one are one.
pub const EARLY_PORTS_MAX: usize = 16_384;

/// Which frames are urgent. Nothing, by default.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EarlyRules {
    /// In all networks but those below.
    pub all: EarlySet,
    /// In these networks.
    pub networks: BTreeMap<Vni, EarlyNetwork>,
}

/// Which frames of one network are urgent.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EarlyNetwork {
    /// These,
    pub own: EarlySet,
    /// and those that [`EarlyRules::all`] says, if it is asked here.
    pub all: bool,
}

/// Frames with one of these properties.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct EarlySet {
    /// Every frame.
    pub everything: bool,
    /// IPv4 and IPv6 packets with one of these DSCPs: bit *n* for DSCP *n*.
    pub dscps: u64,
    /// Packets from or to one of these ports. Fragments, and what stands behind IPv6 extension headers, have none.
    pub ports: BTreeSet<EarlyPort>,
}

/// A port, and in which place.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct EarlyPort {
    /// Of which protocol.
    pub protocol: EarlyProtocol,
    /// As source or as destination.
    pub side: EarlySide,
    /// Its number.
    pub port: u16,
}

/// A protocol with ports.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum EarlyProtocol {
    /// TCP
    Tcp = PROTOCOL_TCP,
    /// UDP
    Udp = PROTOCOL_UDP,
    /// SCTP
    Sctp = PROTOCOL_SCTP,
}

impl EarlyProtocol {
    /// All of them.
    pub const ALL: [EarlyProtocol; 3] = [EarlyProtocol::Tcp, EarlyProtocol::Udp, EarlyProtocol::Sctp];
}

/// Whose port it is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
#[repr(u8)]
pub enum EarlySide {
    /// The sender's.
    Source = 1,
    /// The receiver's.
    Destination = 2,
}

/// `struct early_rule`: DSCPs and flags.
type Rule = [u64; 2];

/// `enum early_flags`
const EVERYTHING: u64 = 1;
const OWN_PORTS: u64 = 2;
const ALL_PORTS: u64 = 4;
const NETWORKS: u64 = 8;

/// In a port's key, instead of a VNI.
const ALL_NETWORKS: u32 = 1 << 24;

/// The rules as one generation of the maps has them, with keys without the generation.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Entries {
    all: Rule,
    networks: BTreeMap<u32, Rule>,
    ports: BTreeMap<u64, u8>,
}

impl EarlyRules {
    fn entries(&self) -> Result<Entries, XskError> {
        let bounded = |what, got, most| match got {
            _ if got <= most => Ok(()),
            _ => Err(XskError::EarlyRules { what, got, most }),
        };
        let mut entries = Entries { all: self.all.rule(ALL_PORTS), ..Entries::default() };
        if !self.networks.is_empty() {
            entries.all[1] |= NETWORKS;
        }
        self.all.enter_ports(ALL_NETWORKS, &mut entries.ports);
        for (vni, network) in &self.networks {
            let [mut dscps, mut flags] = network.own.rule(OWN_PORTS);
            if network.all {
                let [more_dscps, more_flags] = self.all.rule(ALL_PORTS);
                (dscps, flags) = (dscps | more_dscps, flags | more_flags);
            }
            entries.networks.insert(vni.get(), [dscps, flags]);
            network.own.enter_ports(vni.get(), &mut entries.ports);
        }
        bounded("networks", entries.networks.len(), EARLY_NETWORKS_MAX)?;
        bounded("ports", entries.ports.len(), EARLY_PORTS_MAX)?;
        Ok(entries)
    }
}

impl EarlySet {
    fn rule(&self, ports: u64) -> Rule {
        let everything = if self.everything { EVERYTHING } else { 0 };
        [self.dscps, everything | if self.ports.is_empty() { 0 } else { ports }]
    }

    fn enter_ports(&self, scope: u32, to: &mut BTreeMap<u64, u8>) {
        for EarlyPort { protocol, side, port } in &self.ports {
            let key = u64::from(scope) << 24 | u64::from(*protocol as u8) << 16 | u64::from(*port);
            *to.entry(key).or_default() |= *side as u8;
        }
    }
}

/// What stands in the program's maps.
#[derive(Debug, Default)]
pub(super) struct EarlyMaps {
    /// Which generation holds.
    generation: u32,
    /// What each has.
    entries: [Entries; 2],
}

impl EarlyMaps {
    /// Makes these the rules. After an error those before still hold.
    pub(super) fn set(&mut self, ebpf: &mut Ebpf, rules: &EarlyRules) -> Result<(), XskError> {
        let wanted = rules.entries()?;
        let next = self.generation ^ 1;
        let [first, second] = &mut self.entries;
        let there = if next == 0 { first } else { second };

        let mut networks: HashMap<_, u32, Rule> = hash(ebpf, "early_networks")?;
        let place = |key: &u32| next << 24 | key;
        renew(&mut networks, &mut there.networks, &wanted.networks, place)?;
        let mut ports: HashMap<_, u64, u8> = hash(ebpf, "early_ports")?;
        renew(&mut ports, &mut there.ports, &wanted.ports, |key| u64::from(next) << 56 | key)?;
        set_array(ebpf, "early_all", next, wanted.all)?;
        there.all = wanted.all;

        set_array(ebpf, "early_generation", 0, next)?;
        self.generation = next;
        Ok(())
    }
}

/// Takes out what is not wanted, enters what is missing, and notes each in `there`.
fn renew<K: aya::Pod + Ord, V: aya::Pod + PartialEq>(
    map: &mut HashMap<&mut MapData, K, V>,
    there: &mut BTreeMap<K, V>,
    wanted: &BTreeMap<K, V>,
    place: impl Fn(&K) -> K,
) -> Result<(), XskError> {
    const WHAT: &str = "changing the XDP program's rules for urgent frames";
    let gone: Vec<K> = there.keys().filter(|key| !wanted.contains_key(key)).copied().collect();
    for key in gone {
        or_absent(map.remove(&place(&key))).map_err(failed(WHAT))?;
        there.remove(&key);
    }
    for (key, value) in wanted {
        if there.get(key) != Some(value) {
            map.insert(place(key), value, 0).map_err(failed(WHAT))?;
            there.insert(*key, *value);
        }
    }
    Ok(())
}

fn hash<'e, K: aya::Pod, V: aya::Pod>(
    ebpf: &'e mut Ebpf,
    name: &'static str,
) -> Result<HashMap<&'e mut MapData, K, V>, XskError> {
    let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    HashMap::try_from(map).map_err(failed("opening the XDP program's rules for urgent frames"))
}

fn set_array<V: aya::Pod>(ebpf: &mut Ebpf, name: &'static str, place: u32, value: V) -> Result<(), XskError> {
    const WHAT: &str = "changing the XDP program's rules for urgent frames";
    let map = ebpf.map_mut(name).ok_or_else(|| missing(name))?;
    Array::try_from(map).map_err(failed(WHAT))?.set(place, value, 0).map_err(failed(WHAT))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vni(raw: u32) -> Vni {
        Vni::new(raw).unwrap()
    }

    fn port(protocol: EarlyProtocol, side: EarlySide, port: u16) -> EarlyPort {
        EarlyPort { protocol, side, port }
    }

    fn set(everything: bool, dscps: u64, ports: &[EarlyPort]) -> EarlySet {
        EarlySet { everything, dscps, ports: ports.iter().copied().collect() }
    }

    #[test]
    fn no_rules_are_no_entries() {
        assert_eq!(EarlyRules::default().entries().unwrap(), Entries::default());
    }

    #[test]
    fn keys_and_values_are_those_of_the_program() {
        use EarlyProtocol::{Tcp, Udp};
        use EarlySide::{Destination, Source};
        let all = set(false, 1 << 46, &[port(Udp, Destination, 53), port(Udp, Source, 53)]);
        let rules = EarlyRules {
            networks: BTreeMap::from([
                (vni(5), EarlyNetwork { own: set(true, 0, &[]), all: false }),
                (vni(0xff_ffff), EarlyNetwork { own: set(false, 1, &[port(Tcp, Source, 179)]), all: true }),
                (vni(6), EarlyNetwork::default()),
            ]),
            all,
        };
        let entries = rules.entries().unwrap();
        assert_eq!(entries.all, [1 << 46, ALL_PORTS | NETWORKS]);
        assert_eq!(
            entries.networks,
            BTreeMap::from([
                (5, [0, EVERYTHING]),
                (6, [0, 0]),
                (0xff_ffff, [1 << 46 | 1, OWN_PORTS | ALL_PORTS]),
            ])
        );
        let ports =
            BTreeMap::from([(0xff_ffff << 24 | 6 << 16 | 179, 1), (0x100_0000 << 24 | 17 << 16 | 53, 3)]);
        assert_eq!(entries.ports, ports);
        assert!(entries.ports.keys().all(|key| key >> 56 == 0), "room for the generation");
    }

    #[test]
    fn more_than_the_maps_hold_is_refused() {
        let networks = |count: u32| EarlyRules {
            networks: (0..count).map(|raw| (vni(raw), EarlyNetwork::default())).collect(),
            ..EarlyRules::default()
        };
        assert!(networks(4096).entries().is_ok());
        assert_eq!(
            networks(4097).entries().unwrap_err().to_string(),
            "4097 networks with rules for urgent frames: the XDP program has room for 4096"
        );
        let ports = |count: u16| {
            let ports = (0..count).map(|number| port(EarlyProtocol::Udp, EarlySide::Source, number));
            let ports: BTreeSet<EarlyPort> = ports.collect();
            EarlyRules { all: EarlySet { ports, ..EarlySet::default() }, ..EarlyRules::default() }
        };
        assert!(ports(16_384).entries().is_ok());
        let error = ports(16_385).entries().unwrap_err().to_string();
        assert_eq!(error, "16385 ports with rules for urgent frames: the XDP program has room for 16384");
    }
}
