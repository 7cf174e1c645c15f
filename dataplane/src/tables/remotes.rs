//! What changes in the tables when remotes come and go: called by the engine on a copy that is then published.

use std::net::IpAddr;

use super::{Network, Remote, Tables, Way};
use crate::types::{NetworkId, RemoteId};
use crate::wire::outer::{OVERHEAD_IPV4, OVERHEAD_IPV6};

impl Tables {
    /// From now on each remote with such an id has this address, or there is none with this id. Ways to it are unknown then.
    pub fn set_remotes(&mut self, changes: &[(RemoteId, Option<IpAddr>, bool)]) {
        if changes.is_empty() {
            return;
        }
        let mut remotes = self.remotes.to_vec();
        let mut ways = self.ways.to_vec();
        let sources = self.sources.len();
        for &(id, address, trusted) in changes {
            while remotes.len() <= id.index() {
                remotes.push(Remote { address: Remote::NOWHERE, trusted: false });
                ways.extend(std::iter::repeat_n(Way::None, sources));
            }
            if let Some(remote) = remotes.get_mut(id.index()) {
                *remote = Remote { address: address.unwrap_or(Remote::NOWHERE), trusted };
            }
            ways.iter_mut().skip(id.index() * sources).take(sources).for_each(|way| *way = Way::None);
        }
        (self.remotes, self.ways) = (remotes.into(), ways.into());
        self.index_remotes();
    }

    fn index_remotes(&mut self) {
        (self.by_ipv4, self.by_ipv6) = super::index_addresses(&self.remotes, self.secrets);
    }

    /// From now on these remotes belong to the network: what is flooded goes to `flooded`, and not to `others`.
    pub fn set_members(&mut self, network: NetworkId, flooded: Box<[RemoteId]>, others: &[RemoteId]) {
        let words = self.remotes.len().div_ceil(64);
        let mut all = flooded.iter().chain(others).filter_map(|remote| self.remotes.get(remote.index()));
        let has_ipv6 = all.any(|remote| remote.address.is_ipv6());
        let Some(network) = self.networks.get_mut(network) else { return };
        if has_ipv6 && network.overhead < OVERHEAD_IPV6 {
            network.overhead += OVERHEAD_IPV6 - OVERHEAD_IPV4; // the first of them
        }
        network.limits.known = Some(Network::bits(words, flooded.iter().copied()));
        network.members = Network::bits(words, flooded.iter().chain(others).copied());
        network.remotes = flooded;
    }
}

impl Remote {
    /// Some host may have this address, and we could send to it. No datagram has another source (RFC 1122 §3.2.1.3, RFC 4291 §2.5 and §2.7),
    /// but for link-local ones: these mean another host on each link. The config takes the same.
    pub fn may_be(address: IpAddr) -> bool {
        let is_of_nobody = match address {
            IpAddr::V4(address) => {
                address.octets()[0] == 0
                    || address.is_broadcast()
                    || address.is_multicast()
                    || address.is_loopback()
            }
            IpAddr::V6(address) => {
                address.is_unspecified()
                    || address.is_multicast()
                    || address.is_loopback()
                    || address.is_unicast_link_local()
                    || address.to_ipv4_mapped().is_some()
            }
        };
        !is_of_nobody
    }

    /// The address of a place where no remote is: none has it.
    const NOWHERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::UNSPECIFIED);
}

impl Network {
    /// One bit for each of these.
    pub(super) fn bits(words: usize, remotes: impl Iterator<Item = RemoteId>) -> Box<[u64]> {
        let mut bits = vec![0u64; words];
        for remote in remotes {
            if let Some(word) = bits.get_mut(remote.index() / 64) {
                *word |= 1 << (remote.index() % 64);
            }
        }
        bits.into()
    }
}
