//! Asks the kernel which ways there are to a remote, for [`Underlay`](super::Underlay): routes, next hops, their neighbours, the path's
//! MTU.

use std::collections::HashMap;
use std::net::IpAddr;

use peregrine_dataplane::types::UplinkId;

use super::decide::{self, Device, Hop, Refusal, Verdict, Why};
use super::facts::{HopFact, NeighbourFact, RouteFact};
use super::netlink::Requests;
use super::path_mtu::Exceptions;
use super::uplink::Uplink;

/// For one step of work: what was asked for once in it is not asked for again.
pub struct Survey<'a> {
    requests: &'a mut Requests,
    uplinks: &'a [Uplink],
    exceptions: &'a Exceptions,
    neighbours: HashMap<(u32, IpAddr), Option<NeighbourFact>>,
}

/// The kernel's answers about one uplink.
struct Over<'a> {
    id: UplinkId,
    uplink: &'a Uplink,
    local: IpAddr,
}

impl<'a> Survey<'a> {
    /// Nothing is known yet.
    pub fn new(requests: &'a mut Requests, uplinks: &'a [Uplink], exceptions: &'a Exceptions) -> Survey<'a> {
        Survey { requests, uplinks, exceptions, neighbours: HashMap::new() }
    }

    /// The ways to a remote from `local`, or from each uplink's own address. Those uplinks are asked first over which the kernel itself
    /// would go, and each that has a way is taken; if none has one that can be used now, the others are, in the order of the config, until
    /// one has: a rule for packets from its address may lead them over it.
    ///
    /// # Errors
    /// The kernel gave no answer, which says nothing about the way.
    pub fn judge(&mut self, remote: IpAddr, local: Option<IpAddr>) -> Result<Verdict, Why> {
        let ids = UplinkId::all(self.uplinks.len()).zip(self.uplinks);
        let mut own: Vec<Over<'a>> = ids
            .filter_map(|(id, uplink)| Some(Over { id, uplink, local: uplink.local_for(remote, local)? }))
            .collect();
        if own.is_empty() {
            return Ok(Verdict::no("", Why::NoLocal));
        }
        let others = self.split_off_idle(&mut own, remote)?;
        let mut verdict = Verdict::default();
        for over in own {
            self.ask(&over, remote, &mut verdict)?;
        }
        for over in others {
            if verdict.hops.iter().any(|hop| hop.state.is_ok()) {
                break;
            }
            self.ask(&over, remote, &mut verdict)?;
        }
        // The kernel's order may change without a reason.
        verdict.hops.sort_by_key(|hop| (hop.uplink, hop.neighbour));
        Ok(verdict)
    }

    /// Of several, those that the kernel would not use for packets of its own.
    fn split_off_idle(&mut self, own: &mut Vec<Over<'a>>, remote: IpAddr) -> Result<Vec<Over<'a>>, Why> {
        if own.len() < 2 {
            return Ok(Vec::new());
        }
        let hops = match self.requests.route(None, remote).map_err(|e| Refusal::from(&e)) {
            Ok(RouteFact::Unicast { hops, .. }) => hops,
            Err(refusal @ Refusal::Other(_)) => return Err(Why::Refused(refusal)),
            _ => Vec::new(),
        };
        let is_used = |over: &Over<'_>| {
            let device = over.uplink.device().map_or(over.uplink.ifindex, |device| device.ifindex);
            hops.iter().any(|hop| hop.ifindex == device)
        };
        let (used, idle) = std::mem::take(own).into_iter().partition(is_used);
        *own = used;
        Ok(idle)
    }

    fn ask(&mut self, over: &Over<'_>, remote: IpAddr, verdict: &mut Verdict) -> Result<(), Why> {
        match self.hops_over(over, remote, verdict) {
            Err(why @ Why::Refused(Refusal::Other(_))) => return Err(why),
            Err(why) => verdict.others.push((over.uplink.interface.clone(), why)),
            Ok(()) => {}
        }
        Ok(())
    }

    fn hops_over(&mut self, over: &Over<'_>, remote: IpAddr, verdict: &mut Verdict) -> Result<(), Why> {
        let device = over.uplink.device()?;
        if let Some((_, presence)) = over.uplink.missing.iter().find(|(local, _)| *local == over.local) {
            return Err(Why::Missing(*presence));
        }
        let route = self.requests.route(Some(over.local), remote);
        let (all, of_route) = match route.map_err(|e| Why::Refused(Refusal::from(&e)))? {
            RouteFact::Unicast { hops, mtu } => (hops, mtu),
            RouteFact::Local => return Err(Why::Local),
            RouteFact::Unusable(kind) => return Err(Why::Unusable(kind)),
        };
        let (own, strange): (Vec<_>, Vec<_>) = all.into_iter().partition(|hop| hop.ifindex == device.ifindex);
        if own.is_empty() {
            let first = strange.first().ok_or(Why::Refused(Refusal::NoRoute))?;
            return Err(Why::Elsewhere { interface: self.name_of(first.ifindex) });
        }
        self.note_strangers(&strange, verdict);
        let (own, used) = self.as_used(over, &device, remote, own)?;
        let (unfit, own): (Vec<_>, Vec<_>) = own.into_iter().partition(|hop| hop.has_encap);
        if own.is_empty() {
            return Err(Why::Encapsulates);
        }
        if !unfit.is_empty() {
            verdict.others.push((over.uplink.interface.clone(), Why::Encapsulates));
        }
        let (mtu, mtu_not_believed) = decide::path_mtu(of_route, used);
        let by_others = (own.len() > 1).then(|| self.exceptions.least(device.ifindex, remote)).flatten();
        let mtu = mtu.into_iter().chain(by_others).min();
        for hop in own {
            let hop = self.hop(over, &device, remote, hop, device.mtu(remote, mtu))?;
            verdict.hops.push(Hop { mtu_not_believed, ..hop });
        }
        Ok(())
    }

    /// What the kernel would do over this interface: the path's MTU; and if there is one next hop only, the router that another one may
    /// have told it to use instead (ICMP redirect). It tells the MTU by one of several gateways on the interface: over IPv6 another may
    /// have learned a smaller one.
    fn as_used(
        &mut self,
        over: &Over<'_>,
        device: &Device,
        remote: IpAddr,
        mut own: Vec<HopFact>,
    ) -> Result<(Vec<HopFact>, Option<u32>), Why> {
        let used = self.requests.route_over(device.ifindex, over.local, remote);
        let RouteFact::Unicast { hops, mtu } = used.map_err(|e| Why::Refused(Refusal::from(&e)))? else {
            return Ok((own, None)); // changed just now: a notice follows
        };
        if let ([own], [used]) = (&mut own[..], &hops[..])
            && used.ifindex == own.ifindex
        {
            own.gateway = used.gateway;
        }
        Ok((own, mtu))
    }

    fn hop(
        &mut self,
        over: &Over<'_>,
        device: &Device,
        remote: IpAddr,
        hop: HopFact,
        mtu: u32,
    ) -> Result<Hop, Why> {
        let neighbour = hop.gateway.unwrap_or(remote);
        let entry = self.neighbour(device.ifindex, neighbour)?;
        let (state, care) = decide::neighbour(over.id, device.mac, neighbour, entry);
        Ok(Hop {
            uplink: over.id,
            interface: over.uplink.interface.clone(),
            local: over.local,
            neighbour,
            weight: hop.weight,
            mtu,
            mtu_not_believed: None,
            state,
            care,
        })
    }

    fn neighbour(&mut self, ifindex: u32, address: IpAddr) -> Result<Option<NeighbourFact>, Why> {
        if let Some(known) = self.neighbours.get(&(ifindex, address)) {
            return Ok(*known);
        }
        let entry = self.requests.neighbour(ifindex, address);
        let entry = entry.map_err(|e| Why::Refused(Refusal::Other(e.to_string())))?;
        self.neighbours.insert((ifindex, address), entry);
        Ok(entry)
    }

    /// Next hops over interfaces that are no uplinks.
    fn note_strangers(&mut self, hops: &[HopFact], verdict: &mut Verdict) {
        let ours: Vec<u32> = self.uplinks.iter().flat_map(Uplink::ifindexes).collect();
        for hop in hops.iter().filter(|hop| !ours.contains(&hop.ifindex)) {
            let stranger = (self.name_of(hop.ifindex), Why::NoUplink);
            if !verdict.others.contains(&stranger) {
                verdict.others.push(stranger);
            }
        }
    }

    /// An interface's name, or its number if it has none (any more).
    fn name_of(&mut self, ifindex: u32) -> String {
        let name = self.requests.link(ifindex).ok().flatten().map(|link| link.name);
        name.filter(|name| !name.is_empty()).unwrap_or_else(|| format!("interface {ifindex}"))
    }
}
