//! What an entry says of its address, in one word that is changed by one exchange.

use super::Destination;
use crate::types::{EndpointId, RemoteId};

/// `seen_s` in the upper half; then how often the slot was filled; then flags; the endpoint or remote in the low 16
/// bits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Value(pub(super) u64);

impl Value {
    const LOCAL: u64 = 1 << 16;
    const FIXED: u64 = 1 << 17;
    /// The entry is being taken away. What the value says is true for those who read it now.
    const DEAD: u64 = 1 << 18;
    const ROUND_ONE: u64 = 1 << 19;
    /// Comes round after 8192 fillings.
    pub(super) const ROUND: u64 = 0xffff_ffff & !(Value::ROUND_ONE - 1);
    pub(super) const EMPTY: Value = Value(0);

    pub(super) fn fixed(destination: Destination) -> Value {
        match destination {
            Destination::Local(endpoint) => Value(Value::FIXED | Value::LOCAL | u64::from(endpoint.0)),
            Destination::Remote(remote) => Value(Value::FIXED | u64::from(remote.0)),
        }
    }

    /// Learned, in this value's round.
    #[inline]
    pub(super) fn seen_behind(self, remote: RemoteId, now_s: u32) -> Value {
        Value(u64::from(now_s) << 32 | self.0 & Value::ROUND | u64::from(remote.0))
    }

    pub(super) fn in_round_of(self, other: Value) -> Value {
        Value(self.0 & !Value::ROUND | other.0 & Value::ROUND)
    }

    pub(super) fn in_round_after(self, other: Value) -> Value {
        self.in_round_of(Value(other.0.wrapping_add(Value::ROUND_ONE)))
    }

    /// Which filling of the slot it is, where it stands.
    pub(super) fn round(self) -> u64 {
        self.0 & Value::ROUND
    }

    pub(super) fn dead(self) -> Value {
        Value(self.0 | Value::DEAD)
    }

    pub(super) fn is_dead(self) -> bool {
        self.0 & Value::DEAD != 0
    }

    #[inline]
    pub(super) fn destination(self) -> Destination {
        let id = self.0 as u16;
        if self.0 & Value::LOCAL != 0 {
            Destination::Local(EndpointId(id))
        } else {
            Destination::Remote(RemoteId(id))
        }
    }

    #[inline]
    pub(super) fn is_fixed(self) -> bool {
        self.0 & Value::FIXED != 0
    }

    pub(super) fn seen_s(self) -> u32 {
        (self.0 >> 32) as u32
    }
}
