//! From facts to a decision: which link-layer address a remote is reached by, or why it is not, and whether the
//! kernel should be nudged. No I/O and no clock of its own. Called by [`Underlay`](super::Underlay).

use std::fmt;
use std::io;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use netlink_packet_route::neighbour::NeighbourState;
use netlink_packet_route::route::RouteType;
use peregrine_dataplane::engine::NextHop;
use peregrine_dataplane::types::{MacAddr, UplinkId};
use rustix::io::Errno;

use super::facts::{LinkFact, NeighbourFact, RouteFact};

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
    /// The kernel refused the look-up.
    Refused(Refusal),
    /// The route leads over another interface.
    Elsewhere {
        /// Its name, or its number if it has none (any more).
        interface: String,
    },
    /// The remote's address is this host's own.
    Local,
    /// A route that carries no unicast packets.
    Unusable(RouteType),
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
    /// The local address is not one of this host.
    NotOurAddress,
    /// Anything else.
    Other(String),
}

impl From<&io::Error> for Refusal {
    fn from(error: &io::Error) -> Refusal {
        match error.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NETUNREACH) => Refusal::NoRoute,
            Some(Errno::HOSTUNREACH) => Refusal::Unreachable,
            Some(Errno::ACCESS) => Refusal::Prohibited,
            Some(Errno::INVAL) => Refusal::NotOurAddress,
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
            Why::Refused(Refusal::NoRoute) => f.write_str("no route"),
            Why::Refused(Refusal::Unreachable) => f.write_str("the route says unreachable"),
            Why::Refused(Refusal::Prohibited) => f.write_str("the route or a rule prohibits it"),
            Why::Refused(Refusal::NotOurAddress) => {
                f.write_str("the local VTEP address is not on this host (any more)")
            }
            Why::Refused(Refusal::Other(text)) => write!(f, "route look-up failed: {text}"),
            Why::Elsewhere { interface } => write!(f, "the route leads over {interface}"),
            Why::Local => f.write_str("the address is this host's own"),
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

/// What is known about one remote.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Verdict {
    /// The next hop, or why there is none.
    pub hop: Result<NextHop, Why>,
    /// Whose neighbour entry decides, and on which uplink: the gateway, or the remote itself.
    pub neighbour: Option<(UplinkId, IpAddr)>,
    /// What the kernel should be made to do.
    pub care: Care,
}

impl Verdict {
    /// Unresolved, and nothing that asking would help.
    pub fn no(why: Why) -> Verdict {
        Verdict { hop: Err(why), neighbour: None, care: Care::None }
    }
}

/// Our own address on the link, if the link can carry frames.
pub fn source(link: Option<&LinkFact>) -> Result<MacAddr, Why> {
    let link = link.ok_or(Why::InterfaceGone)?;
    if !link.up {
        return Err(Why::LinkDown);
    }
    if !link.carrier {
        return Err(Why::NoCarrier);
    }
    link.mac.ok_or(Why::NoMac)
}

/// Whose link-layer address is needed to reach `remote`.
pub fn neighbour_of(route: &RouteFact, remote: IpAddr, uplink: u32) -> Result<IpAddr, Why> {
    match route {
        RouteFact::Unicast { ifindex, gateway } if *ifindex == uplink => Ok(gateway.unwrap_or(remote)),
        RouteFact::Unicast { ifindex, .. } => {
            Err(Why::Elsewhere { interface: format!("interface {ifindex}") })
        }
        RouteFact::Local => Err(Why::Local),
        RouteFact::Unusable(kind) => Err(Why::Unusable(*kind)),
    }
}

/// Reads the neighbour entry.
pub fn verdict(
    uplink: UplinkId,
    source: MacAddr,
    neighbour: IpAddr,
    entry: Option<NeighbourFact>,
) -> Verdict {
    use NeighbourState::{Delay, Failed, Incomplete, Noarp, Permanent, Probe, Reachable, Stale};
    let (hop, care) = match entry {
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
    };
    Verdict { hop, neighbour: Some((uplink, neighbour)), care }
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
    use super::*;

    const UPLINK: UplinkId = UplinkId(1);
    const US: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
    const THEM: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);

    fn link() -> LinkFact {
        LinkFact { ifindex: 7, name: "ov0".into(), mac: Some(US), mtu: 1500, up: true, carrier: true }
    }

    fn entry(state: NeighbourState, mac: Option<MacAddr>) -> Verdict {
        verdict(UPLINK, US, [10, 0, 0, 2].into(), Some(NeighbourFact { state, mac }))
    }

    #[test]
    fn usable_states_give_a_next_hop() {
        use NeighbourState::*;
        for state in [Permanent, Noarp, Reachable, Stale, Delay, Probe] {
            assert_eq!(
                entry(state, Some(THEM)).hop,
                Ok(NextHop { uplink: UPLINK, destination: THEM, source: US }),
                "{state}"
            );
            assert!(entry(state, Option::None).hop.is_err(), "{state}");
        }
    }

    #[test]
    fn other_states_give_none_even_with_an_old_address() {
        use NeighbourState::*;
        for state in [Incomplete, Failed, None, Other(0x1234)] {
            assert!(entry(state, Some(THEM)).hop.is_err(), "{state}");
        }
    }

    #[test]
    fn the_kernel_is_nudged_only_where_that_helps() {
        use NeighbourState::*;
        assert_eq!(entry(Stale, Some(THEM)).care, Care::Refresh);
        for state in [Permanent, Noarp, Reachable, Delay, Probe] {
            assert_eq!(entry(state, Some(THEM)).care, Care::None, "{state}");
        }
        assert_eq!(entry(Incomplete, Option::None).care, Care::None, "it is asking already");
        assert_eq!(entry(Failed, Option::None).care, Care::Resolve);
        assert_eq!(entry(Permanent, Option::None).care, Care::None, "NTF_USE would make it temporary");
        assert_eq!(verdict(UPLINK, US, [10, 0, 0, 2].into(), Option::None).care, Care::Resolve);
    }

    #[test]
    fn a_link_that_cannot_carry_frames_has_no_source() {
        assert_eq!(source(Some(&link())), Ok(US));
        assert_eq!(source(None), Err(Why::InterfaceGone));
        assert_eq!(source(Some(&LinkFact { up: false, ..link() })), Err(Why::LinkDown));
        assert_eq!(source(Some(&LinkFact { carrier: false, ..link() })), Err(Why::NoCarrier));
        assert_eq!(source(Some(&LinkFact { mac: None, ..link() })), Err(Why::NoMac));
    }

    #[test]
    fn the_gateway_or_the_remote_itself_is_the_neighbour() {
        let remote = [192, 168, 9, 9].into();
        let via = |ifindex, gateway| RouteFact::Unicast { ifindex, gateway };
        assert_eq!(neighbour_of(&via(7, None), remote, 7), Ok(remote));
        let gateway = [10, 0, 0, 1].into();
        assert_eq!(neighbour_of(&via(7, Some(gateway)), remote, 7), Ok(gateway));
        assert!(matches!(neighbour_of(&via(8, None), remote, 7), Err(Why::Elsewhere { .. })));
        assert_eq!(neighbour_of(&RouteFact::Local, remote, 7), Err(Why::Local));
        assert!(neighbour_of(&RouteFact::Unusable(RouteType::BlackHole), remote, 7).is_err());
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
        assert!(text(Errno::INVAL).contains("not on this host"));
        assert!(text(Errno::NOMEM).contains("look-up failed"));
    }
}
