//! The checks of the ways to the remotes: is there a route over an uplink, does the next hop answer, does the path hold the largest packet.
//! The kernel is asked as the daemon asks it, and made to resolve what it does not know; that takes seconds only where nobody answers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use peregrine_dataplane::engine::underlay_mtu_needed;
use peregrine_dataplane::plan::{NetworkPlan, Plan};
use peregrine_dataplane::types::{RemoteId, SourceId};

use super::{Case, Finding};
use crate::underlay::decide::{Hop, Verdict, Why};
use crate::underlay::{Underlay, Uplink, Wanted};

/// So many remotes are looked at.
const REMOTES_MAX: usize = 256;
/// The kernel gives up on a neighbour after three seconds.
const PATIENCE: Duration = Duration::from_secs(4);
const NAME: &str = "next-hop";

/// All of them.
pub fn checks(case: &Case) -> Vec<Finding> {
    let Some(plan) = &case.wanted.plan else {
        return vec![Finding::skipped(NAME, "which remotes there are says a config: -c FILE")];
    };
    let ways = ways(plan);
    if ways.is_empty() {
        return vec![Finding::ok(NAME, "there are no remotes in the config")];
    }
    let uplinks: Vec<Uplink> = case
        .wanted
        .uplinks
        .iter()
        .zip(&case.links)
        .filter_map(|(uplink, link)| {
            let ifindex = link.interface.as_ref().ok()?.index;
            Some(Uplink::new(&uplink.interface, ifindex, uplink.vlan, &uplink.locals))
        })
        .collect();
    let known = match look(uplinks, &ways) {
        Ok(known) => known,
        Err(error) => {
            return vec![Finding::skipped(NAME, format!("the kernel does not tell of routes ({error})"))];
        }
    };
    let mut all: Vec<Finding> =
        ways.iter().zip(&known).map(|((way, needed), verdict)| judge(*way, *needed, verdict)).collect();
    let more = remotes(plan).len().saturating_sub(REMOTES_MAX);
    if more > 0 {
        all.push(Finding::skipped(NAME, format!("{more} more remotes: `peregrine status` shows them")));
    }
    all
}

/// A remote, and the address that is sent from, if the network says which.
type Way = (IpAddr, Option<IpAddr>);

/// Each way once, with what the network with the largest packets needs.
fn remotes(plan: &Plan) -> BTreeMap<Way, u32> {
    let mut all = BTreeMap::new();
    let of = |network: &NetworkPlan| {
        let (local, needed) = (network.local, underlay_mtu_needed(network, plan));
        network.remotes.iter().map(move |remote| ((*remote, local), needed)).collect::<Vec<_>>()
    };
    for (way, needed) in plan.networks.values().flat_map(of) {
        let known: &mut u32 = all.entry(way).or_default();
        *known = (*known).max(needed);
    }
    all
}

fn ways(plan: &Plan) -> Vec<(Way, u32)> {
    remotes(plan).into_iter().take(REMOTES_MAX).collect()
}

/// What the kernel knows when all is resolved, or nobody answers.
fn look(uplinks: Vec<Uplink>, ways: &[(Way, u32)]) -> std::io::Result<Vec<Verdict>> {
    let wanted = (0..).zip(ways).map(|(place, ((address, local), _))| Wanted {
        remote: RemoteId(place),
        address: *address,
        source: SourceId(u8::from(local.is_some())),
        local: *local,
    });
    let mut underlay = Underlay::open(uplinks, wanted)?;
    let mut poll = Poll::new()?;
    poll.registry().register(&mut SourceFd(&underlay.raw_fd()), Token(0), Interest::READABLE)?;
    let (mut events, end) = (Events::with_capacity(4), Instant::now() + PATIENCE);
    loop {
        let now = Instant::now();
        let _changes = underlay.turn(now, |_| 0);
        let is_settled = underlay.ways().all(|(_, verdict)| !is_open(verdict));
        if is_settled || now >= end {
            return Ok(underlay.ways().map(|(_, verdict)| verdict.clone()).collect());
        }
        let wait = underlay.deadline(now).min(end).saturating_duration_since(now);
        match poll.poll(&mut events, Some(wait)) {
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return Err(error),
            _ if !events.is_empty() => underlay.readable(),
            _ => {}
        }
    }
}

/// It was not looked at yet, or the kernel is still asking.
fn is_open(verdict: &Verdict) -> bool {
    let is_asking = |hop: &Hop| matches!(hop.state, Err(Why::Asking { .. }));
    let is_new = verdict.hops.is_empty() && verdict.others.iter().any(|(interface, _)| interface.is_empty());
    is_new && !matches!(verdict.why(), Some(Why::NoLocal)) || verdict.hops.iter().any(is_asking)
}

fn judge((remote, _): Way, needed: u32, verdict: &Verdict) -> Finding {
    let about = remote.to_string();
    if let Some(why) = verdict.why() {
        let finding = Finding::failure(NAME, why.to_string(), "nothing can be sent to it").about(&about);
        return match why {
            Why::LinkDown | Why::VlanDown { .. } => match verdict.others.first() {
                Some((interface, _)) if !interface.is_empty() => finding.command(up_command(interface, &why)),
                _ => finding,
            },
            _ => finding,
        };
    }
    let least =
        verdict.hops.iter().filter(|hop| hop.state.is_ok()).map(|hop| hop.mtu).min().unwrap_or(u32::MAX);
    if least < needed {
        let what = format!("the path holds packets of {least} bytes, and its networks need {needed}");
        let why = "the longest packets are answered with \"packet too big\" and dropped: raise the MTU on the path, or lower networks[n].mtu";
        return Finding::warning("path-mtu", what, why).about(&about);
    }
    let hops: Vec<String> =
        verdict.hops.iter().map(|hop| format!("{} over {}", hop.neighbour, hop.interface)).collect();
    Finding::ok(NAME, format!("resolved: {}", hops.join(", "))).about(&about)
}

fn up_command(interface: &str, why: &Why) -> String {
    match why {
        Why::VlanDown { device } => format!("ip link set dev {device} up"),
        _ => format!("ip link set dev {interface} up"),
    }
}

#[cfg(test)]
mod tests {
    use peregrine_dataplane::engine::NextHop;
    use peregrine_dataplane::types::{MacAddr, UplinkId};

    use super::super::Verdict as Ending;
    use super::*;
    use crate::underlay::decide::{Care, Refusal};

    const REMOTE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 2));

    fn hop(state: Result<NextHop, Why>) -> Verdict {
        let hop = Hop {
            uplink: UplinkId(0),
            interface: "eth0".into(),
            local: [10, 0, 0, 1].into(),
            neighbour: REMOTE,
            weight: 1,
            mtu: 1500,
            mtu_not_believed: None,
            state,
            care: Care::None,
        };
        Verdict { hops: vec![hop], others: Vec::new() }
    }

    fn resolved() -> NextHop {
        NextHop { uplink: UplinkId(0), destination: MacAddr([4; 6]), source: MacAddr([2; 6]) }
    }

    #[track_caller]
    fn is(verdict: &Verdict, ending: Ending, what: &str, command: Option<&str>) {
        let found = judge((REMOTE, None), 1450, verdict);
        assert_eq!((found.verdict, found.command.as_deref()), (ending, command), "{found:?}");
        assert!(found.line().contains(what) && found.about.as_deref() == Some("10.0.0.2"), "{found:?}");
    }

    #[test]
    fn each_reason_without_a_way_is_told_with_what_mends_it() {
        is(&hop(Ok(resolved())), Ending::Ok, "10.0.0.2 over eth0", None);
        let failed = |why: Why, what: &str, command: Option<&str>| {
            let verdict = Verdict::no("eth0", why);
            is(&verdict, Ending::Failure, what, command);
        };
        failed(Why::LinkDown, "is down", Some("ip link set dev eth0 up"));
        let device = || "eth0.100".to_owned();
        failed(Why::VlanDown { device: device() }, "is down", Some("ip link set dev eth0.100 up"));
        failed(Why::NoCarrier, "no carrier", None);
        failed(Why::Refused(Refusal::NoRoute), "no route", None);
        failed(Why::Refused(Refusal::BlackHole), "blackhole", None);
        failed(Why::Elsewhere { interface: "eth7".into() }, "leads over eth7", None);
        failed(Why::Local, "this host's own", None);
        let silent = Why::NoAnswer { neighbour: REMOTE };
        is(&hop(Err(silent)), Ending::Failure, "10.0.0.2 does not answer", None);
        let asking = Why::Asking { neighbour: REMOTE };
        assert!(is_open(&hop(Err(asking))) && !is_open(&hop(Ok(resolved()))));
    }

    #[test]
    fn a_path_that_holds_too_little_is_told() {
        let mut narrow = hop(Ok(resolved()));
        narrow.hops[0].mtu = 1430;
        is(&narrow, Ending::Warning, "packets of 1430 bytes, and its networks need 1450", None);
    }
}
