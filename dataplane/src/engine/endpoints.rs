//! Networks and endpoints that come and go while frames flow: a batch of them at once, with one publication. Called by the engine.

use std::fmt;

use super::Engine;
use crate::plan::{EndpointPlan, NetworkPlan};
use crate::types::{EndpointId, NetworkId};

/// What is to be there, or not: all of it at once. A place that is free gets what stands there; one that is taken gets something else, or
/// becomes free with `None`.
#[derive(Clone, Default, Debug)]
pub struct Change {
    /// Networks, by place.
    pub networks: Vec<(NetworkId, Option<NetworkPlan>)>,
    /// Endpoints, by place. One whose network or `memif` is another one than before is another endpoint: it needs another place.
    pub endpoints: Vec<(EndpointId, Option<EndpointPlan>)>,
}

/// Why a change was not made: nothing of it was. One line.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ChangeError {
    /// The place of this network is not free, or there is none.
    NoSuchPlace,
}

impl fmt::Display for ChangeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("")
    }
}

impl std::error::Error for ChangeError {}

impl Engine {
    /// Places that are free for networks now, in the order in which they should be used.
    pub fn vacant_networks(&self) -> impl Iterator<Item = NetworkId> + '_ {
        std::iter::empty()
    }

    /// Places that are free for endpoints now, in the order in which they should be used.
    pub fn vacant_endpoints(&self) -> impl Iterator<Item = EndpointId> + '_ {
        std::iter::empty()
    }

    /// Makes a change: the workers forward by all of it from their next turn on, or by nothing of it. What goes is gone when its place is
    /// [vacant](Self::vacant_endpoints) again, some turns later.
    ///
    /// # Errors
    /// [`ChangeError`]; nothing has changed then.
    pub fn change(&mut self, _change: Change) -> Result<(), ChangeError> {
        Err(ChangeError::NoSuchPlace)
    }

    /// Every worker forwards by the last change.
    pub fn is_in_force(&self) -> bool {
        true
    }
}
