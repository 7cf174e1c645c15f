//! One interface of ours, as the kernel sees it now: the link, the device of its VLAN, our addresses. Read by
//! [`Underlay`](super::Underlay) whenever something changed.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;

use super::decide::{self, Device, Why};
use super::facts::{LinkFact, Presence, VlanFact, VlanTag};
use super::netlink::Requests;

/// One interface of ours.
#[derive(Clone, Debug)]
pub struct Uplink {
    /// Its name when it was opened.
    pub interface: String,
    /// Its number.
    pub ifindex: u32,
    /// The VLAN of the underlay's frames; `None`: they have no tag.
    pub vlan: Option<u16>,
    /// Our VTEP addresses on it.
    pub locals: Vec<IpAddr>,
    /// As the kernel sees it now; `None`: it is gone, or not looked at yet. One that is gone stays so: another interface may get its number,
    /// or it may come back with it from another namespace, but our sockets are bound to neither.
    pub link: Option<LinkFact>,
    /// The kernel's device of that VLAN, or one of another kind of tag, which does not serve. It may come and go: nothing of ours is
    /// bound to it.
    pub vlan_link: Option<LinkFact>,
    /// Those of the addresses that this host does not have now, or may not send from, and which of it.
    pub missing: Vec<(IpAddr, Presence)>,
}

impl Uplink {
    /// Not looked at yet.
    pub fn new(interface: &str, ifindex: u32, vlan: Option<u16>, locals: &[IpAddr]) -> Uplink {
        Uplink {
            interface: interface.to_owned(),
            ifindex,
            vlan,
            locals: locals.to_vec(),
            link: None,
            vlan_link: None,
            missing: Vec::new(),
        }
    }

    /// What routes and neighbours are on: the device of the VLAN, or the interface itself.
    pub(super) fn device(&self) -> Result<Device, Why> {
        decide::device(self.link.as_ref(), self.vlan.map(|id| (id, self.vlan_link.as_ref())))
    }

    /// The numbers whose notices matter.
    pub(super) fn ifindexes(&self) -> impl Iterator<Item = u32> {
        [Some(self.ifindex), self.vlan_link.as_ref().map(|link| link.ifindex)].into_iter().flatten()
    }

    /// The address on it from which a remote is reached: `wanted`, or the first of the remote's family.
    pub(super) fn local_for(&self, remote: IpAddr, wanted: Option<IpAddr>) -> Option<IpAddr> {
        let mut of_family = self.locals.iter().filter(|local| local.is_ipv4() == remote.is_ipv4());
        of_family.find(|local| wanted.is_none_or(|wanted| **local == wanted)).copied()
    }

    /// Looks again. An error says nothing about the link or the addresses (the kernel is short of memory, say): what was known stands.
    pub(super) fn read(&mut self, requests: &mut Requests, removed: &mut HashSet<u32>) -> io::Result<()> {
        match requests.link(self.ifindex)? {
            Some(link) if !removed.contains(&self.ifindex) => self.link = Some(link),
            _ => {
                self.link = None;
                removed.insert(self.ifindex);
            }
        }
        if let Some(id) = self.vlan {
            let wanted = VlanFact { of: self.ifindex, id, tag: VlanTag::Customer };
            let known = match &self.vlan_link {
                Some(known) => requests.link(known.ifindex)?.filter(|link| link.vlan == Some(wanted)),
                None => None,
            };
            self.vlan_link = match known {
                Some(known) => Some(known),
                None => requests.vlan_device(wanted)?,
            };
        }
        let mut missing = Vec::new();
        for local in &self.locals {
            let presence = requests.presence(*local)?;
            if presence != Presence::Usable {
                missing.push((*local, presence));
            }
        }
        self.missing = missing;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_address_of_the_family_is_taken_or_the_wanted_one() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let locals = ["10.0.0.1", "fd00::1", "10.0.0.3"].map(address);
        let uplink = Uplink::new("ov0", 7, None, &locals);
        let local = |remote, wanted: Option<&str>| uplink.local_for(address(remote), wanted.map(address));
        assert_eq!(local("10.9.9.9", None), Some(address("10.0.0.1")));
        assert_eq!(local("fd09::9", None), Some(address("fd00::1")));
        assert_eq!(local("10.9.9.9", Some("10.0.0.3")), Some(address("10.0.0.3")));
        assert_eq!(local("10.9.9.9", Some("10.0.0.4")), None, "of another uplink");
        assert_eq!(local("fd09::9", Some("10.0.0.3")), None, "of the other family");
    }
}
