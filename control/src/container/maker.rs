//! Ports into containers: a pair made, or found where an earlier daemon left it, and our end opened. Used by the tenants' `veth.rs`.
//!
//! A daemon that ends leaves the pairs where they are: a container keeps its interface, its addresses and its connections until the next one
//! drives it again. Which pairs are a daemon's, and what for, stands in an alias of our end (`ip link` shows it): the control socket's
//! path and a checksum of all that the pair was made by. One whose alias says the same is taken as it is, every other one of ours is removed.

use std::collections::HashSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use peregrine_dataplane::plan::{EndpointPlan, NamespaceRef, NetworkPlan, VethPlan as Wanted};
use peregrine_dataplane::types::MacAddr;
use peregrine_dataplane::xsk::{PortConfig, Ports, XskPort};

use super::remover::Remover;
use super::{ContainerError, Namespace, Pair, VethPlan, make};
use crate::underlay::netlink::Requests;

/// What is about to be removed is waited for so long.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a container's end is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// The endpoint's.
    pub mac: MacAddr,
    /// The network's.
    pub mtu: u16,
    /// The endpoint's, each with the length of its prefix.
    pub addresses: Vec<(IpAddr, u8)>,
    /// The network's, if the container is to have default routes.
    pub gateways: Vec<IpAddr>,
}

impl Link {
    /// That of an endpoint with a veth on a network.
    pub fn of(endpoint: &EndpointPlan, network: &NetworkPlan) -> Option<Link> {
        let veth = endpoint.port.veth()?;
        let with_bits = |address: &IpAddr| (*address, network.prefix_bits(*address));
        Some(Link {
            mac: endpoint.mac,
            mtu: network.mtu,
            addresses: endpoint.addresses.iter().map(with_bits).collect(),
            gateways: if veth.default_route { network.gateways.clone() } else { Vec::new() },
        })
    }
}

/// Makes them.
pub struct Maker {
    requests: Requests,
    /// Loaded with the first port.
    ports: Option<Ports>,
    remover: Remover,
    /// The path of the control socket: of two daemons that run it is never the same.
    owner: String,
}

impl std::fmt::Debug for Maker {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Maker").field("owner", &self.owner).finish_non_exhaustive()
    }
}

impl Maker {
    /// Of the daemon with this control socket.
    ///
    /// # Errors
    /// No netlink socket, or no thread.
    pub fn new(control_socket: &Path) -> io::Result<Maker> {
        let owner = control_socket.display().to_string().escape_debug().to_string();
        // The kernel takes 255 bytes; the end of a path tells more than its beginning.
        let owner = owner.char_indices().rev().nth(199).and_then(|(at, _)| owner.get(at..)).unwrap_or(&owner);
        Ok(Maker {
            requests: Requests::open()?,
            ports: None,
            remover: Remover::start()?,
            owner: owner.to_owned(),
        })
    }

    /// The name of our end: the same for the same place.
    pub fn device(&self, wanted: &Wanted) -> String {
        let place = format!("{}\0{:?}\0{}", self.owner, wanted.namespace, wanted.interface);
        let (first, second) =
            (crc32fast::hash(place.as_bytes()), crc32fast::hash(format!("2{place}").as_bytes()));
        format!("pg{first:08x}{:05x}", second >> 12)
    }

    fn alias(&self, wanted: &Wanted, link: &Link) -> String {
        let made_by = format!("{wanted:?} {link:?}");
        format!("{}{:08x}", self.mark(), crc32fast::hash(made_by.as_bytes()))
    }

    fn mark(&self) -> String {
        format!("peregrine {} ", self.owner)
    }

    /// The pair and the open port. One that is there is taken as it is; where `may_make` is false no other is made: the process whose
    /// namespace was meant may be another one by now.
    ///
    /// # Errors
    /// One line. Then no pair is there.
    pub fn open(&mut self, wanted: &Wanted, link: &Link, may_make: bool) -> Result<(Pair, XskPort), String> {
        let namespace = Namespace::open(&wanted.namespace).map_err(|error| error.to_string())?;
        let (device, alias) = (self.device(wanted), self.alias(wanted, link));
        let pair = match self.find(&device, &alias, wanted, &namespace)? {
            Some(pair) => pair,
            None if !may_make => {
                return Err(format!(
                    "the veth that was in the {} is gone, and the process may be another one by now: declare the port again",
                    wanted.namespace
                ));
            }
            None => self.make(&device, &alias, wanted, link, &namespace)?,
        };
        match self.open_port(&pair, wanted) {
            Ok(port) => Ok((pair, port)),
            Err(why) => {
                self.remover.remove(pair);
                Err(why)
            }
        }
    }

    fn open_port(&mut self, pair: &Pair, wanted: &Wanted) -> Result<XskPort, String> {
        if self.ports.is_none() {
            self.ports = Some(Ports::load().map_err(|error| error.to_string())?);
        }
        let Some(ports) = &mut self.ports else { return Err("no ports are to be had".to_owned()) };
        ports.open(&pair.port, &PortConfig { ring_size: wanted.ring_size }).map_err(|error| error.to_string())
    }

    /// One that an earlier daemon left, or this one before; another one of ours is removed.
    fn find(
        &mut self,
        device: &str,
        alias: &str,
        wanted: &Wanted,
        namespace: &Namespace,
    ) -> Result<Option<Pair>, String> {
        let failed = |error: io::Error| format!("looking for {device}: {error}");
        let Some((ifindex, found)) = self.requests.alias_of(device).map_err(failed)? else { return Ok(None) };
        if !self.remover.wait_for(ifindex, PATIENCE) {
            return Err(format!("{device} is still being removed"));
        }
        let Some((ifindex, _)) = self.requests.alias_of(device).map_err(failed)? else { return Ok(None) };
        if !found.starts_with(&self.mark()) {
            return Err(ContainerError::NameTaken { name: device.to_owned(), namespace: None }.to_string());
        }
        let pair = Pair { port: device.to_owned(), ifindex };
        let far = namespace.inside(|| Requests::open().and_then(|mut its| its.below_of(&wanted.interface)));
        if found == alias && matches!(far, Ok(Ok(Some(below))) if below == ifindex) {
            return Ok(Some(pair));
        }
        pair.remove(&mut self.requests).map_err(|error| error.to_string())?;
        Ok(None)
    }

    fn make(
        &mut self,
        device: &str,
        alias: &str,
        wanted: &Wanted,
        link: &Link,
        namespace: &Namespace,
    ) -> Result<Pair, String> {
        let plan = VethPlan {
            port: device.to_owned(),
            interface: wanted.interface.clone(),
            mac: link.mac,
            mtu: link.mtu,
            addresses: link.addresses.clone(),
            gateways: link.gateways.clone(),
        };
        let pair = make(&mut self.requests, &plan, namespace).map_err(|error| error.to_string())?;
        match self.requests.set_alias(pair.ifindex, alias) {
            Ok(()) => Ok(pair),
            Err(error) => {
                self.remover.remove(pair);
                Err(format!("marking {device} as ours: {error}"))
            }
        }
    }

    /// Takes a pair away, soon.
    pub fn remove(&self, pair: Pair) {
        self.remover.remove(pair);
    }

    /// Takes all pairs of this daemon away that are for none of these: what was not declared any more when it started.
    ///
    /// # Errors
    /// The kernel does not list its interfaces.
    pub fn remove_others<'w>(&mut self, wanted: impl Iterator<Item = &'w Wanted>) -> io::Result<usize> {
        let devices: HashSet<String> = wanted.map(|wanted| self.device(wanted)).collect();
        let mark = self.mark();
        let all = self.requests.aliases()?;
        let others =
            all.into_iter().filter(|(_, name, alias)| alias.starts_with(&mark) && !devices.contains(name));
        let mut count = 0;
        for (ifindex, port, _) in others {
            self.remover.remove(Pair { port, ifindex });
            count += 1;
        }
        Ok(count)
    }
}

/// Whether a namespace is given by what may be another's by now.
pub fn is_fleeting(namespace: &NamespaceRef) -> bool {
    matches!(namespace, NamespaceRef::Pid(_))
}
