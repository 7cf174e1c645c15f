//! The forwarding database changed by hand: learned addresses forgotten, fixed ones added and taken away while frames flow. Called by the
//! control thread.

use std::fmt;

use super::Engine;
use crate::fdb::Destination;
use crate::types::{EndpointId, MacAddr, NetworkId, RemoteId};

/// Fixed addresses that there is room for beyond those that the plan has.
pub const FIXED_LATER: usize = 1024;
/// Buckets that one call of [`Engine::flush`] looks at: 8 MiB of the table, some milliseconds. A table for 262,144 addresses has no more.
pub const FLUSH_BUCKETS_MAX: usize = 1 << 17;

/// Which addresses are meant: those for which all that is given is so.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct AddressFilter {
    /// On this network.
    pub network: Option<NetworkId>,
    /// This one.
    pub mac: Option<MacAddr>,
    /// Behind this remote.
    pub remote: Option<RemoteId>,
}

/// What a call of [`Engine::flush`] did.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flushed {
    /// So many addresses were forgotten.
    pub addresses: usize,
    /// Where to go on, if there is more of the table.
    pub next: Option<usize>,
}

/// Why an address was not added, or not removed. One line.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum AddressError {
    /// Not the address of one station.
    NotAStation(MacAddr),
    /// It is a tenant's of this host.
    Local(MacAddr, EndpointId),
    /// The remote is none of the network's, or only a discovered one.
    NoSuchRemote,
    /// It was learned.
    Learned(MacAddr),
    /// It is not there.
    NotThere(MacAddr),
    /// There are as many fixed ones as there is room for.
    Full,
    /// Both of its places in the forwarding database are full.
    NoRoom(MacAddr),
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            AddressError::NotAStation(mac) => {
                write!(f, "{mac} is not the address of one station: give a unicast one")
            }
            AddressError::Local(mac, _) => {
                write!(f, "{mac} is the address of an endpoint of this host: it is where the config says")
            }
            AddressError::NoSuchRemote => f.write_str(
                "the remote is none of the network's, or was only discovered: `peregrine remote add` makes it one",
            ),
            AddressError::Learned(mac) => {
                write!(f, "{mac} was learned, and is not fixed: `peregrine fdb flush --mac {mac}` forgets it")
            }
            AddressError::NotThere(mac) => write!(f, "{mac} is not known on this network"),
            AddressError::NoRoom(mac) => write!(
                f,
                "the forwarding database is full where {mac} belongs: flush learned addresses and try again, or raise fdb_limit"
            ),
            AddressError::Full => write!(
                f,
                "there is no room for another fixed address: {FIXED_LATER} more than the config has can be there"
            ),
        }
    }
}

impl std::error::Error for AddressError {}

impl Engine {
    /// Forgets learned addresses, in a part of the table that is looked at in a few milliseconds: `from` is 0, or where the call before says
    /// to go on. Frames that flow meanwhile may be learned again.
    pub fn flush(&mut self, filter: AddressFilter, from: usize) -> Flushed {
        let buckets = self.fdb.buckets();
        let from = from.min(buckets);
        let count = FLUSH_BUCKETS_MAX.min(buckets - from);
        let AddressFilter { network: on, mac: which, remote: behind } = filter;
        let addresses = self.fdb.forget_behind(from, count, |network, mac, remote, is_fixed| {
            !is_fixed
                && on.is_none_or(|on| on == network)
                && which.is_none_or(|which| which == mac)
                && behind.is_none_or(|behind| behind == remote)
        });
        Flushed { addresses, next: Some(from + count).filter(|next| *next < buckets) }
    }

    /// Puts an address behind a remote of its network, instead of where it was learned or fixed before. It never ages.
    ///
    /// # Errors
    /// [`AddressError`]; nothing has changed then.
    pub fn add_address(
        &mut self,
        network: NetworkId,
        mac: MacAddr,
        remote: RemoteId,
    ) -> Result<(), AddressError> {
        if mac.is_group() || mac.is_zero() {
            return Err(AddressError::NotAStation(mac));
        }
        if let Some(Destination::Local(endpoint)) = self.fdb.lookup(network, mac) {
            return Err(AddressError::Local(mac, endpoint));
        }
        let is_its = self.tables.network(network).is_some_and(|network| network.remotes.contains(&remote));
        if !is_its {
            return Err(AddressError::NoSuchRemote);
        }
        let is_new = !self.fixed.contains_key(&(network, mac));
        if is_new && self.fixed.len() >= self.fixed_max {
            return Err(AddressError::Full);
        }
        if !self.fdb.set_fixed(network, mac, Destination::Remote(remote)) {
            return Err(AddressError::NoRoom(mac));
        }
        self.fixed.insert((network, mac), remote);
        Ok(())
    }

    /// Takes a fixed address away: what is for it is flooded until it is learned.
    ///
    /// # Errors
    /// [`AddressError`]; nothing has changed then.
    pub fn remove_address(&mut self, network: NetworkId, mac: MacAddr) -> Result<(), AddressError> {
        if self.fixed.remove(&(network, mac)).is_some() {
            self.fdb.remove(network, mac);
            return Ok(());
        }
        Err(match self.fdb.lookup(network, mac) {
            Some(Destination::Local(endpoint)) => AddressError::Local(mac, endpoint),
            Some(Destination::Remote(_)) => AddressError::Learned(mac),
            None => AddressError::NotThere(mac),
        })
    }

    /// The remote goes: so does what is fixed behind it.
    pub(super) fn forget_fixed_behind(&mut self, network: NetworkId, remote: RemoteId) -> usize {
        let of_network = (network, MacAddr([0; 6]))..=(network, MacAddr::BROADCAST);
        let its = self.fixed.range(of_network).filter(|(_, behind)| **behind == remote);
        let its: Vec<MacAddr> = its.map(|(&(_, mac), _)| mac).collect();
        for mac in &its {
            self.fixed.remove(&(network, *mac));
            self.fdb.remove(network, *mac);
        }
        its.len()
    }
}
