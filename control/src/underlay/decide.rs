//! From facts to a decision: by which next hops a remote is reached, or why it is not, and whether the kernel should be
//! nudged. No I/O and no clock of its own. Called by [`Underlay`](super::Underlay).

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteType;
use peregrine_dataplane::engine::{NextHop, Path};
use peregrine_dataplane::types::{MacAddr, UplinkId};
use rustix::io::Errno;

use super::facts::{LinkFact, NeighbourFact, Presence, VlanTag};

/// Why there is no next hop. Its text is what `status` shows.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Why {
    /// The uplink was removed.
    InterfaceGone,
    /// The uplink is switched off.
    LinkDown,
    /// The uplink has no carrier.
    NoCarrier,
    /// The uplink has no Ethernet address.
    NoMac,
    /// The kernel has no device for the uplink's VLAN.
    NoVlanDevice {
        /// The interface.
        interface: String,
        /// The VLAN.
        vlan: u16,
    },
    /// The kernel's device for the uplink's VLAN is switched off.
    VlanDown {
        /// Its name.
        device: String,
    },
    /// The kernel's device for the uplink's VLAN tags in another way than we do.
    NotCustomerVlan {
        /// Its name.
        device: String,
        /// The interface.
        interface: String,
        /// The VLAN.
        vlan: u16,
    },
    /// No uplink has an address of the remote's family, or the one that was asked for.
    NoLocal,
    /// The local address cannot be used.
    Missing(Presence),
    /// The kernel refused the look-up.
    Refused(Refusal),
    /// The route leads over another interface.
    Elsewhere {
        /// Its name, or its number if it has none (any more).
        interface: String,
    },
    /// The interface is no uplink.
    NoUplink,
    /// The remote's address is this host's own.
    Local,
    /// A route that carries no unicast packets.
    Unusable(RouteType),
    /// A route that puts packets into others.
    Encapsulates,
    /// The kernel is finding out the link-layer address.
    Asking {
        /// Whom it asks.
        neighbour: IpAddr,
    },
    /// Nobody answered.
    NoAnswer {
        /// Who was asked.
        neighbour: IpAddr,
    },
    /// There are several uplinks, and none will do, each for another reason.
    Each(Vec<(String, Why)>),
}

impl Why {
    /// Of several uplinks: each one's interface, and why it will not do. That the route leads over another one of them
    /// tells nothing.
    pub fn all(reasons: Vec<(String, Why)>) -> Why {
        if let [(_, first), rest @ ..] = &reasons[..]
            && rest.iter().all(|(_, why)| why == first)
        {
            return first.clone();
        }
        let leads_to =
            |why: &Why, name: &str| matches!(why, Why::Elsewhere { interface } if interface == name);
        let is_idle = |why: &Why| reasons.iter().any(|(name, _)| leads_to(why, name));
        let telling: Vec<_> = reasons.iter().filter(|(_, why)| !is_idle(why)).cloned().collect();
        Why::Each(if telling.is_empty() { reasons } else { telling })
    }
}

/// How the kernel refused a route look-up.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Refusal {
    /// There is no route.
    NoRoute,
    /// The route says unreachable.
    Unreachable,
    /// The route or a rule forbids it.
    Prohibited,
    /// The route throws packets away.
    BlackHole,
    /// Anything else.
    Other(String),
}

impl From<&io::Error> for Refusal {
    fn from(error: &io::Error) -> Refusal {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NETUNREACH) => Refusal::NoRoute,
            Some(Errno::HOSTUNREACH) => Refusal::Unreachable,
            Some(Errno::ACCESS) => Refusal::Prohibited,
            Some(Errno::INVAL) => Refusal::BlackHole,
            _ => Refusal::Other(error.to_string()),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::InterfaceGone => f.write_str("the uplink interface is gone: restart when it is back"),
            Why::LinkDown => f.write_str("the uplink is down"),
            Why::NoCarrier => f.write_str("the uplink has no carrier"),
            Why::NoMac => f.write_str("the uplink has no Ethernet address"),
            Why::NoVlanDevice { interface, vlan } => write!(
                f,
                "{interface} has no device for VLAN {vlan}: ip link add link {interface} name {interface}.{vlan} type vlan id {vlan}"
            ),
            Why::VlanDown { device } => write!(f, "the VLAN's device {device} is down"),
            Why::NotCustomerVlan { device, interface, vlan } => write!(
                f,
                "{device} is an 802.1ad device: 802.1Q is needed: ip link add link {interface} name {interface}.{vlan}q type vlan protocol 802.1Q id {vlan}"
            ),
            Why::Missing(presence) => write!(f, "the local VTEP address {presence}"),
            Why::NoLocal => f.write_str("no uplink has a VTEP address for it"),
            Why::Refused(Refusal::NoRoute) => f.write_str("no route"),
            Why::Refused(Refusal::Unreachable) => f.write_str("the route says unreachable"),
            Why::Refused(Refusal::Prohibited) => f.write_str("the route or a rule prohibits it"),
            Why::Refused(Refusal::BlackHole) => f.write_str("the route is a blackhole"),
            Why::Refused(Refusal::Other(text)) => write!(f, "route look-up failed: {text}"),
            Why::Elsewhere { interface } => write!(f, "the route leads over {interface}"),
            Why::NoUplink => f.write_str("no uplink of ours"),
            Why::Local => f.write_str("the address is this host's own"),
            Why::Encapsulates => f.write_str(
                "the route encapsulates (`encap`), which is not followed: give this VTEP a route without it",
            ),
            Why::Unusable(kind) => write!(f, "the route is {}", format!("{kind:?}").to_lowercase()),
            Why::Asking { neighbour } => write!(f, "asking who has {neighbour}"),
            Why::NoAnswer { neighbour } => write!(f, "{neighbour} does not answer"),
            Why::Each(reasons) => {
                for (place, (interface, why)) in reasons.iter().enumerate() {
                    write!(f, "{}{interface}: {why}", if place > 0 { "; " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

/// What the kernel should be made to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Care {
    /// Nothing.
    None,
    /// Find the link-layer address.
    Resolve,
    /// Validate the address it has, if it is in use.
    Refresh,
}

/// The smallest path MTU that is believed: a path of IPv6 takes 1280 bytes (RFC 8200, section 5), and the outer headers need 70.
pub const PATH_MTU_LEAST: u32 = 1280 + 70;

/// The largest packet, of what the route says and what the kernel would use for it; and what the latter has learned that is not believed.
/// Who wants less than [`PATH_MTU_LEAST`] says so in the route (`ip route … mtu`).
pub fn path_mtu(route: Option<u32>, used: Option<u32>) -> (Option<u32>, Option<u32>) {
    match used {
        Some(learned) if learned < PATH_MTU_LEAST && used != route => (route, used),
        _ => (used, None),
    }
}

/// What is known about the ways to one remote from one source address.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Verdict {
    /// The next hops over our uplinks, in a fixed order.
    pub hops: Vec<Hop>,
    /// Why other interfaces do not serve, by name: uplinks that cannot, and those that are no uplinks of ours.
    pub others: Vec<(String, Why)>,
}

/// A next hop over an uplink.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hop {
    /// The uplink.
    pub uplink: UplinkId,
    /// The uplink's interface, for people.
    pub interface: String,
    /// Our address on it.
    pub local: IpAddr,
    /// Whose link-layer address counts: a gateway, or the remote itself.
    pub neighbour: IpAddr,
    /// Its share, relative to the others'.
    pub weight: u8,
    /// The largest outer IP packet that gets through, as far as is known.
    pub mtu: u32,
    /// A smaller one that was learned from ICMP and is not believed.
    pub mtu_not_believed: Option<u32>,
    /// The link-layer addresses, or why they are not known.
    pub state: Result<NextHop, Why>,
    /// What the kernel should be made to do.
    pub care: Care,
}

impl Hop {
    /// What is published, if it can be used.
    pub fn path(&self) -> Option<Path> {
        let Hop { local, weight, mtu, .. } = *self;
        self.state.as_ref().ok().map(|&hop| Path { hop, local, weight, mtu })
    }
}

impl Verdict {
    /// No way, and nothing that asking would help.
    pub fn no(interface: &str, why: Why) -> Verdict {
        Verdict { hops: Vec::new(), others: vec![(interface.to_owned(), why)] }
    }

    /// What is published: those next hops that can be used.
    pub fn paths(&self) -> Vec<Path> {
        self.hops.iter().filter_map(Hop::path).collect()
    }

    /// Why there is no way; `None`: there is one.
    pub fn why(&self) -> Option<Why> {
        let reason = |hop: &Hop| hop.state.as_ref().err().map(|why| (hop.interface.clone(), why.clone()));
        let reasons: Option<Vec<_>> = self.hops.iter().map(reason).collect();
        let reasons = reasons?;
        Some(Why::all(if reasons.is_empty() { self.others.clone() } else { reasons }))
    }
}

/// The device by which an uplink's packets leave, if it can carry any: that of its VLAN (`vlan`: which), or the interface itself.
pub fn device<'a>(
    link: Option<&'a LinkFact>,
    vlan: Option<(u16, Option<&'a LinkFact>)>,
) -> Result<Device, Why> {
    let link = link.ok_or(Why::InterfaceGone)?;
    if !link.up {
        return Err(Why::LinkDown);
    }
    if !link.carrier {
        return Err(Why::NoCarrier);
    }
    let on = match vlan {
        None => link,
        Some((id, None)) => return Err(Why::NoVlanDevice { interface: link.name.clone(), vlan: id }),
        Some((id, Some(on))) if on.vlan.is_some_and(|vlan| vlan.tag != VlanTag::Customer) => {
            let (device, interface) = (on.name.clone(), link.name.clone());
            return Err(Why::NotCustomerVlan { device, interface, vlan: id });
        }
        Some((_, Some(on))) if !on.up => return Err(Why::VlanDown { device: on.name.clone() }),
        Some((_, Some(on))) => on,
    };
    let mtu = on.mtu.min(link.mtu);
    Ok(Device {
        ifindex: on.ifindex,
        mac: on.mac.ok_or(Why::NoMac)?,
        mtu_ipv4: mtu,
        mtu_ipv6: on.mtu_ipv6.map_or(mtu, |less| less.min(mtu)),
    })
}

/// What of a link a next hop over it has.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its number.
    pub ifindex: u32,
    /// Our address on the link.
    pub mac: MacAddr,
    /// The largest IPv4 packet.
    pub mtu_ipv4: u32,
    /// The largest IPv6 packet.
    pub mtu_ipv6: u32,
}

impl Device {
    /// The largest packet to this address, where `route_mtu` is what the route says.
    pub fn mtu(&self, remote: IpAddr, route_mtu: Option<u32>) -> u32 {
        let own = if remote.is_ipv4() { self.mtu_ipv4 } else { self.mtu_ipv6 };
        route_mtu.map_or(own, |less| less.min(own))
    }
}

/// Reads the neighbour entry.
pub fn neighbour(
    uplink: UplinkId,
    source: MacAddr,
    neighbour: IpAddr,
    entry: Option<NeighbourFact>,
) -> (Result<NextHop, Why>, Care) {
    use NeighbourState::{Delay, Failed, Incomplete, Noarp, Permanent, Probe, Reachable, Stale};
    match entry {
        Some(NeighbourFact {
            state: state @ (Permanent | Noarp | Reachable | Stale | Delay | Probe),
            mac: Some(destination),
        }) => {
            let care = if state == Stale { Care::Refresh } else { Care::None };
            (Ok(NextHop { uplink, destination, source }), care)
        }
        // Asking for a permanent or NOARP entry would not help and would change it.
        Some(NeighbourFact { state: Permanent | Noarp, .. }) => {
            (Err(Why::NoAnswer { neighbour }), Care::None)
        }
        Some(NeighbourFact { state: Failed, .. }) => (Err(Why::NoAnswer { neighbour }), Care::Resolve),
        Some(NeighbourFact { state: Incomplete, .. }) => (Err(Why::Asking { neighbour }), Care::None),
        _ => (Err(Why::Asking { neighbour }), Care::Resolve),
    }
}

/// When to ask again for a neighbour that does not answer: 1 s, 2 s, … 30 s apart.
#[derive(Clone, Copy, Debug)]
pub struct Backoff {
    next: Instant,
    delay: Duration,
}

impl Backoff {
    /// The first wait, and the wait while the next hop is wanted.
    pub const FIRST: Duration = Duration::from_secs(1);
    /// The longest wait.
    pub const LAST: Duration = Duration::from_secs(30);

    /// Due at once.
    pub fn new(now: Instant) -> Backoff {
        Backoff { next: now, delay: Self::FIRST }
    }

    /// True when it is time; the next time is then later than the last.
    pub fn due(&mut self, now: Instant) -> bool {
        if now < self.next {
            return false;
        }
        self.next = now + self.delay;
        self.delay = (self.delay * 2).min(Self::LAST);
        true
    }

    /// Somebody wants it now: ask as often as at first.
    pub fn hurry(&mut self, now: Instant) {
        self.delay = Self::FIRST;
        self.next = self.next.min(now + Self::FIRST);
    }
}

#[cfg(test)]
mod tests {
    use super::super::facts::VlanFact;
    use super::*;

    const UPLINK: UplinkId = UplinkId(1);
    const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const THEM: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn link() -> LinkFact {
        let (name, mac) = ("ov0".into(), Some(US));
        LinkFact { ifindex: 7, name, mac, mtu: 1500, mtu_ipv6: None, vlan: None, up: true, carrier: true }
    }

    fn entry(state: NeighbourState, mac: Option<MacAddr>) -> (Result<NextHop, Why>, Care) {
        neighbour(UPLINK, US, [10, 0, 0, 2].into(), Some(NeighbourFact { state, mac }))
    }

    #[test]
    fn usable_states_give_a_next_hop() {
        use NeighbourState::*;
        for state in [Permanent, Noarp, Reachable, Stale, Delay, Probe] {
            assert_eq!(
                entry(state, Some(THEM)).0,
                Ok(NextHop { uplink: UPLINK, destination: THEM, source: US }),
                "{state}"
            );
            assert!(entry(state, Option::None).0.is_err(), "{state}");
        }
    }

    #[test]
    fn other_states_give_none_even_with_an_old_address() {
        use NeighbourState::*;
        for state in [Incomplete, Failed, None, Other(0x1234)] {
            assert!(entry(state, Some(THEM)).0.is_err(), "{state}");
        }
    }

    #[test]
    fn the_kernel_is_nudged_only_where_that_helps() {
        use NeighbourState::*;
        assert_eq!(entry(Stale, Some(THEM)).1, Care::Refresh);
        for state in [Permanent, Noarp, Reachable, Delay, Probe] {
            assert_eq!(entry(state, Some(THEM)).1, Care::None, "{state}");
        }
        assert_eq!(entry(Incomplete, Option::None).1, Care::None, "it is asking already");
        assert_eq!(entry(Failed, Option::None).1, Care::Resolve);
        assert_eq!(entry(Permanent, Option::None).1, Care::None, "NTF_USE would make it temporary");
        assert_eq!(neighbour(UPLINK, US, [10, 0, 0, 2].into(), Option::None).1, Care::Resolve);
    }

    #[test]
    fn a_link_that_cannot_carry_frames_has_no_device() {
        let plain = Device { ifindex: 7, mac: US, mtu_ipv4: 1500, mtu_ipv6: 1500 };
        assert_eq!(device(Some(&link()), None), Ok(plain));
        assert_eq!(device(None, None), Err(Why::InterfaceGone));
        assert_eq!(device(Some(&LinkFact { up: false, ..link() }), None), Err(Why::LinkDown));
        assert_eq!(device(Some(&LinkFact { carrier: false, ..link() }), None), Err(Why::NoCarrier));
        assert_eq!(device(Some(&LinkFact { mac: None, ..link() }), None), Err(Why::NoMac));
    }

    #[test]
    fn of_a_vlan_the_device_counts_and_it_must_be_there() {
        let on = LinkFact { ifindex: 9, name: "ov0.5".into(), mac: Some(THEM), mtu: 1496, ..link() };
        let expected = Device { ifindex: 9, mac: THEM, mtu_ipv4: 1496, mtu_ipv6: 1496 };
        assert_eq!(device(Some(&link()), Some((5, Some(&on)))), Ok(expected));
        let why = device(Some(&link()), Some((5, None))).unwrap_err().to_string();
        assert_eq!(why, "ov0 has no device for VLAN 5: ip link add link ov0 name ov0.5 type vlan id 5");
        let down = LinkFact { up: false, ..on.clone() };
        let why = device(Some(&link()), Some((5, Some(&down)))).unwrap_err().to_string();
        assert_eq!(why, "the VLAN's device ov0.5 is down");
        let tag = VlanTag::Service;
        let service = LinkFact { vlan: Some(VlanFact { of: 7, id: 5, tag }), ..on.clone() };
        let why = device(Some(&link()), Some((5, Some(&service)))).unwrap_err().to_string();
        assert!(
            why.starts_with("ov0.5 is an 802.1ad device: 802.1Q is needed: ip link add link ov0 "),
            "{why}"
        );
        let pulled = LinkFact { carrier: false, ..link() };
        assert_eq!(device(Some(&pulled), Some((5, Some(&on)))), Err(Why::NoCarrier));
    }

    #[test]
    fn the_smallest_mtu_counts() {
        let less = LinkFact { mtu_ipv6: Some(1400), ..link() };
        let device = device(Some(&less), None).unwrap();
        let (v4, v6) = ([10, 0, 0, 2].into(), "fd00::2".parse().unwrap());
        assert_eq!((device.mtu(v4, None), device.mtu(v6, None)), (1500, 1400));
        assert_eq!((device.mtu(v4, Some(1300)), device.mtu(v6, Some(1300))), (1300, 1300));
        assert_eq!(device.mtu(v4, Some(9000)), 1500);
    }

    #[test]
    fn a_path_mtu_that_no_path_should_have_is_believed_of_the_route_only() {
        assert_eq!(path_mtu(None, None), (None, None));
        assert_eq!(path_mtu(None, Some(1400)), (Some(1400), None));
        assert_eq!(path_mtu(None, Some(1350)), (Some(1350), None));
        assert_eq!(path_mtu(None, Some(552)), (None, Some(552)));
        assert_eq!(path_mtu(Some(1300), Some(1300)), (Some(1300), None));
        assert_eq!(path_mtu(Some(1400), Some(1280)), (Some(1400), Some(1280)));
    }

    fn hop(interface: &str, state: Result<MacAddr, Why>) -> Hop {
        let state = state.map(|destination| NextHop { uplink: UPLINK, destination, source: US });
        let (local, neighbour) = ([10, 0, 0, 1].into(), [10, 0, 0, 2].into());
        let interface = interface.into();
        let (mtu, mtu_not_believed) = (1500, None);
        let (uplink, care) = (UPLINK, Care::None);
        Hop { uplink, interface, local, neighbour, weight: 1, mtu, mtu_not_believed, state, care }
    }

    #[test]
    fn one_usable_next_hop_is_enough_and_without_one_all_tell_why() {
        let asking = Why::Asking { neighbour: [10, 0, 0, 2].into() };
        let others = vec![("wan0".to_owned(), Why::Elsewhere { interface: "wan0".into() })];
        let hops = vec![hop("a", Err(asking.clone())), hop("b", Ok(THEM))];
        let verdict = Verdict { hops, others: others.clone() };
        assert_eq!((verdict.paths().len(), verdict.why()), (1, None));
        let hops = vec![hop("a", Err(asking.clone())), hop("b", Err(Why::NoCarrier))];
        let why = Verdict { hops, others: others.clone() }.why().unwrap().to_string();
        assert_eq!(why, "a: asking who has 10.0.0.2; b: the uplink has no carrier");
        let why = Verdict { hops: vec![], others }.why().unwrap().to_string();
        assert_eq!(why, "the route leads over wan0");
    }

    #[test]
    fn of_several_uplinks_those_tell_why_that_have_something_to_say() {
        let text = |reasons: &[(&str, Why)]| {
            Why::all(reasons.iter().map(|(name, why)| ((*name).to_owned(), why.clone())).collect())
                .to_string()
        };
        let over = |interface: &str| Why::Elsewhere { interface: interface.into() };
        assert_eq!(text(&[("a", over("x")), ("b", over("x"))]), "the route leads over x");
        assert_eq!(text(&[("a", over("b")), ("b", Why::NoCarrier)]), "b: the uplink has no carrier");
        assert_eq!(
            text(&[("a", over("b")), ("b", over("a"))]),
            "a: the route leads over b; b: the route leads over a"
        );
        let no_route = Why::Refused(Refusal::NoRoute);
        assert_eq!(text(&[("a", no_route), ("b", Why::LinkDown)]), "a: no route; b: the uplink is down");
    }

    #[test]
    fn asking_backs_off_to_half_a_minute_and_hurries_when_wanted() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut backoff = Backoff::new(start);
        let asked: Vec<u64> = (0..130).filter(|&s| backoff.due(at(s))).collect();
        assert_eq!(asked, [0, 1, 3, 7, 15, 31, 61, 91, 121]);
        backoff.hurry(at(130));
        let asked: Vec<u64> = (130..136).filter(|&s| backoff.due(at(s))).collect();
        assert_eq!(asked, [131, 132, 134]);
    }

    #[test]
    fn refusals_are_named() {
        let text = |errno: Errno| Why::Refused(Refusal::from(&io::Error::from(errno))).to_string();
        assert_eq!(text(Errno::NETUNREACH), "no route");
        assert_eq!(text(Errno::HOSTUNREACH), "the route says unreachable");
        assert_eq!(text(Errno::INVAL), "the route is a blackhole");
        assert!(text(Errno::NOMEM).contains("look-up failed"));
    }
}
