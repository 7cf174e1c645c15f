//! Newtypes for the numbers that would otherwise swap silently. Nothing else lives here.
//!
//! Identifiers ([`NetworkId`], [`EndpointId`], [`RemoteId`]) are dense indexes into the
//! [`Plan`](crate::plan::Plan)'s lists; names are for people and stay in the plan.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// VXLAN Network Identifier, 24 bits (RFC 7348 §5).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct Vni(u32);

impl Vni {
    /// The largest value that fits the 24-bit field.
    pub const MAX: u32 = 0x00ff_ffff;

    /// `None` when `raw` does not fit 24 bits.
    pub const fn new(raw: u32) -> Option<Vni> {
        if raw <= Self::MAX { Some(Vni(raw)) } else { None }
    }

    /// The three bytes as they stand in the VXLAN header.
    pub const fn from_bytes(bytes: [u8; 3]) -> Vni {
        Vni(u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]))
    }

    /// The three bytes for the VXLAN header.
    pub const fn to_bytes(self) -> [u8; 3] {
        let [_, a, b, c] = self.0.to_be_bytes();
        [a, b, c]
    }

    /// The number itself.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl fmt::Display for Vni {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// An Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
#[repr(transparent)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// ff:ff:ff:ff:ff:ff
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// True for multicast and broadcast: the group bit (IEEE 802.3 §3.2.3) is set.
    #[inline]
    pub const fn is_group(self) -> bool {
        self.0[0] & 1 != 0
    }

    /// [`is_group`](Self::is_group) for the address as [`to_u64`](Self::to_u64) has it.
    #[inline]
    pub const fn number_is_group(number: u64) -> bool {
        number >> 40 & 1 != 0
    }

    /// True for 00:00:00:00:00:00, which no station may use as its address.
    #[inline]
    pub const fn is_zero(self) -> bool {
        self.to_u64() == 0
    }

    /// The address as the low 48 bits of a number, first byte highest.
    #[inline]
    pub const fn to_u64(self) -> u64 {
        let m = self.0;
        u64::from_be_bytes([0, 0, m[0], m[1], m[2], m[3], m[4], m[5]])
    }

    /// The low 48 bits of `raw`; what is above them is ignored.
    #[inline]
    pub const fn from_u64(raw: u64) -> MacAddr {
        let [_, _, a, b, c, d, e, f] = raw.to_be_bytes();
        MacAddr([a, b, c, d, e, f])
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Why a text is not an Ethernet address.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MacAddrError;

impl fmt::Display for MacAddrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not an Ethernet address: six pairs of hexadecimal digits with colons between, such as 02:00:00:00:00:01")
    }
}

impl std::error::Error for MacAddrError {}

impl FromStr for MacAddr {
    type Err = MacAddrError;

    fn from_str(text: &str) -> Result<MacAddr, MacAddrError> {
        let mut bytes = [0u8; 6];
        let mut parts = text.split(':');
        for byte in &mut bytes {
            let part = parts.next().ok_or(MacAddrError)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(MacAddrError);
            }
            *byte = u8::from_str_radix(part, 16).map_err(|_| MacAddrError)?;
        }
        if parts.next().is_some() { Err(MacAddrError) } else { Ok(MacAddr(bytes)) }
    }
}

impl Serialize for MacAddr {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for MacAddr {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<MacAddr, D::Error> {
        let text = String::deserialize(deserializer)?;
        text.parse().map_err(|e| serde::de::Error::custom(format!("'{text}' is {e}")))
    }
}

/// A CPU as the kernel numbers it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct CoreId(pub usize);

/// An uplink: its place in [`Plan::uplinks`](crate::plan::Plan::uplinks).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct UplinkId(pub u8);

impl UplinkId {
    /// How many there may be: each has rings and memory in every worker.
    pub const LIMIT: usize = 4;

    /// As an index into a list.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }

    /// Those of a list of so many.
    pub fn all(count: usize) -> impl Iterator<Item = UplinkId> {
        (0u8..).map(UplinkId).take(count)
    }
}

/// A worker: its place in [`Plan::workers`](crate::plan::Plan::workers).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct WorkerId(pub u8);

impl WorkerId {
    /// How many there may be: one bit of a 32-bit word each, and the last number for none.
    pub const LIMIT: usize = 31;
    /// No worker.
    pub const NONE: WorkerId = WorkerId(31);

    /// As an index into a list.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A step between two ports.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Stage {
    /// Outer headers checked and taken off; the flow is known then.
    Classify,
    /// VXLAN header taken off, network found, inner header checked.
    Decap,
    /// Source learned, destination found.
    Lookup,
    /// Copied into tenants' rings.
    Deliver,
    /// Outer headers put on.
    Encap,
    /// Handed to the uplink.
    Transmit,
}

impl Stage {
    /// How many there are.
    pub const COUNT: usize = 6;
    /// All of them, in their order.
    pub const ALL: [Stage; Stage::COUNT] =
        [Stage::Classify, Stage::Decap, Stage::Lookup, Stage::Deliver, Stage::Encap, Stage::Transmit];

    /// The name in `stats`.
    pub const fn name(self) -> &'static str {
        match self {
            Stage::Classify => "classify",
            Stage::Decap => "decap",
            Stage::Lookup => "lookup",
            Stage::Deliver => "deliver",
            Stage::Encap => "encap",
            Stage::Transmit => "transmit",
        }
    }

    /// The step after this one.
    pub const fn next(self) -> Option<Stage> {
        match self {
            Stage::Classify => Some(Stage::Decap),
            Stage::Decap => Some(Stage::Lookup),
            Stage::Lookup => Some(Stage::Deliver),
            Stage::Deliver => Some(Stage::Encap),
            Stage::Encap => Some(Stage::Transmit),
            Stage::Transmit => None,
        }
    }

    /// It takes frames from one burst to another; the other steps leave them where they are.
    pub const fn moves_on(self) -> bool {
        matches!(self, Stage::Deliver | Stage::Encap)
    }
}

/// Which workers take a frame through the steps that may run anywhere. The others are bound: Classify and collect to the worker
/// where the frame enters, Deliver to the one that serves the tenant, Transmit to the one whose memory the frame lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Route(u16);

impl Route {
    /// All steps on one worker.
    pub const fn all(worker: WorkerId) -> Route {
        Route::new(worker, worker, worker)
    }

    /// Step by step.
    pub const fn new(decap: WorkerId, lookup: WorkerId, encap: WorkerId) -> Route {
        Route((decap.0 & 31) as u16 | ((lookup.0 & 31) as u16) << 5 | ((encap.0 & 31) as u16) << 10)
    }

    /// Who runs Decap.
    #[inline]
    pub const fn decap(self) -> WorkerId {
        WorkerId((self.0 & 31) as u8)
    }

    /// Who runs Lookup.
    #[inline]
    pub const fn lookup(self) -> WorkerId {
        WorkerId((self.0 >> 5 & 31) as u8)
    }

    /// Who runs Encap.
    #[inline]
    pub const fn encap(self) -> WorkerId {
        WorkerId((self.0 >> 10 & 31) as u8)
    }

    /// As a number, for an atomic.
    #[inline]
    pub const fn to_bits(self) -> u16 {
        self.0
    }

    /// From such a number.
    #[inline]
    pub const fn from_bits(bits: u16) -> Route {
        Route(bits)
    }
}

/// A priority class: 0 is the most urgent. Its name is in [`ClassesPlan::list`](crate::plan::ClassesPlan::list).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct Class(pub u8);

impl Class {
    /// How many there may be.
    pub const LIMIT: usize = 4;
    /// Of two, as they are if nothing else is said, the first.
    pub const URGENT: Class = Class(0);
    /// The second of these two.
    pub const NORMAL: Class = Class(1);

    /// As an index into a list.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

/// A receive queue of an interface, from 0.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct QueueId(pub u32);

macro_rules! index_type {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
        #[serde(transparent)]
        pub struct $name(pub u16);

        impl $name {
            /// How many there may be; the value itself is never an index.
            pub const LIMIT: u16 = 0xffff;

            /// As an index into a list.
            #[inline]
            pub const fn index(self) -> usize {
                self.0 as usize
            }
        }
    };
}

index_type!(
    /// A network (one VNI): its place in [`Plan::networks`](crate::plan::Plan::networks).
    NetworkId
);
index_type!(
    /// A tenant's endpoint: its place in [`Plan::endpoints`](crate::plan::Plan::endpoints).
    EndpointId
);
index_type!(
    /// A remote VTEP: its place in [`Tables::remotes`](crate::tables::Tables::remotes).
    RemoteId
);

/// A source address of what we send: 0 is "the uplink's own, of the remote's family", then comes each that some network asks for.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
#[serde(transparent)]
pub struct SourceId(pub u8);

impl SourceId {
    /// As an index into a list.
    #[inline]
    pub const fn index(self) -> usize {
        self.0 as usize
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_vni_is_24_bits() {
        assert_eq!(Vni::new(0x00ff_ffff).map(Vni::to_bytes), Some([0xff, 0xff, 0xff]));
        assert_eq!(Vni::new(0x0100_0000), None);
        assert_eq!(Vni::from_bytes([0x01, 0x02, 0x03]).get(), 0x010203);
    }

    #[test]
    fn mac_addresses_round_trip_through_text_and_number() {
        let mac: MacAddr = "02:00:5e:10:00:fF".parse().unwrap();
        assert_eq!(mac, MacAddr([0x02, 0x00, 0x5e, 0x10, 0x00, 0xff]));
        assert_eq!(mac.to_string(), "02:00:5e:10:00:ff");
        assert_eq!(MacAddr::from_u64(mac.to_u64()), mac);
        for bad in [
            "",
            "02:00:5e:10:00",
            "02:00:5e:10:00:ff:00",
            "2:0:5e:10:0:ff",
            "02:00:5e:10:00:+f",
            "zz:00:00:00:00:00",
        ] {
            assert_eq!(bad.parse::<MacAddr>(), Err(MacAddrError), "{bad}");
        }
    }

    #[test]
    fn a_route_keeps_its_workers_apart() {
        for n in 0..WorkerId::LIMIT as u8 {
            let route = Route::new(WorkerId(n), WorkerId(30 - n), WorkerId((n + 7) % 31));
            assert_eq!((route.decap().0, route.lookup().0, route.encap().0), (n, 30 - n, (n + 7) % 31));
            assert_eq!(Route::from_bits(route.to_bits()), route);
        }
        assert_eq!(Route::all(WorkerId(5)), Route::new(WorkerId(5), WorkerId(5), WorkerId(5)));
    }

    #[test]
    fn group_addresses_are_told_from_stations() {
        assert!(MacAddr::BROADCAST.is_group());
        assert!(MacAddr([0x33, 0x33, 0, 0, 0, 1]).is_group());
        assert!(!MacAddr([0x02, 0xff, 0xff, 0xff, 0xff, 0xff]).is_group());
        assert!(MacAddr([0; 6]).is_zero());
        for mac in [MacAddr::BROADCAST, MacAddr([0x33; 6]), MacAddr([0x02, 0xff, 0xff, 0xff, 0xff, 0xff])] {
            assert_eq!(MacAddr::number_is_group(mac.to_u64()), mac.is_group());
        }
    }
}
